// Package replay runs a driver over a recording in place of a port: for the
// tools that show what a recording holds, and for tests.
//
// It feeds the driver's machine as a listen-only session would be fed, at the
// times of the recording, and says how much of it was no good. It sends
// nothing and waits for nothing: a day of recording takes as long as decoding it.
package replay

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/bedside-gateway/gatewayd/drivers"
	"github.com/bedside-gateway/gatewayd/drivers/port"
	"github.com/bedside-gateway/gatewayd/observation"
)

// Framing is where the ends of datagrams are in a recording.
type Framing uint8

// The framings.
const (
	FramingAuto      Framing = iota // told by how the recording begins
	FramingStream                   // the bytes of a serial line, framed by the protocol
	FramingDatagrams                // datagrams: one a record, or one behind the other in a raw file
)

// ParseFraming reads auto, stream or datagrams.
func ParseFraming(s string) (Framing, error) {
	switch s {
	case "", "auto":
		return FramingAuto, nil
	case "stream":
		return FramingStream, nil
	case "datagrams":
		return FramingDatagrams, nil
	}
	return 0, fmt.Errorf("framing %.40q: it is auto, stream or datagrams", s)
}

// Options say what is run over the recording.
type Options struct {
	Driver  drivers.Driver
	Format  port.Format
	Framing Framing
	UDPPort int               // of the device in a network capture; 0: that of the driver
	Options map[string]string // of the driver
	// Begin is the time of the first byte in a recording that has no dates.
	Begin time.Time
}

// A Result tells how the recording was.
type Result struct {
	Bytes        uint64 // of the device
	Records      uint64
	Frames       drivers.Frames
	Reports      uint64
	Observations uint64
	Sessions     uint64 // machines that were needed: more than 1 after a fault or a goodbye
	Stray        uint64 // bytes between datagrams that are none
	Torn         bool   // the end of the recording is missing
	Fault        error  // the last error of a machine, if there was one
	Notes        []string
}

// Damaged reports whether something in the recording was no good.
func (r *Result) Damaged() bool {
	return r.Torn || r.Stray > 0 || r.Frames[drivers.FrameChecksum]+r.Frames[drivers.FrameMalformed]+
		r.Frames[drivers.FrameOversize]+r.Frames[drivers.FrameNoise] > 0
}

// String is the counts in one line.
func (r *Result) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d bytes, %d reports, %d observations", r.Bytes, r.Reports, r.Observations)
	for f, n := range r.Frames {
		if n > 0 {
			fmt.Fprintf(&b, ", %d frames %v", n, drivers.Frame(f))
		}
	}
	if r.Stray > 0 {
		fmt.Fprintf(&b, ", %d stray bytes", r.Stray)
	}
	if r.Torn {
		b.WriteString(", end cut off")
	}
	return b.String()
}

// Run feeds the recording to the driver and hands each report to sink, borrowed.
// It returns early with the error of sink, of the options or of a recording that
// cannot be read at all; damage is in the result.
func Run(in io.Reader, o Options, sink func(*observation.Report) error) (Result, error) {
	if o.UDPPort == 0 {
		o.UDPPort = o.Driver.Info().UDPPort
	}
	p := &player{options: o, sink: sink, framing: o.Framing}
	for record, err := range port.ReadRecording(in, port.ReadOptions{Format: o.Format, UDPPort: o.UDPPort}) {
		switch {
		case errors.Is(err, port.ErrTorn):
			p.result.Torn = true
		case err != nil:
			return p.result, fmt.Errorf("recording: %w", err)
		case record.Direction != port.ToDevice:
			p.record(record)
		}
		if p.failed != nil {
			return p.result, p.failed
		}
	}
	p.end()
	return p.result, p.failed
}

// A player is one run over one recording. It is the host of the machines.
type player struct {
	options Options
	sink    func(*observation.Report) error
	result  Result
	failed  error

	framing Framing
	rest    []byte // of a raw file: the datagram that is not complete yet
	machine drivers.Machine

	now         time.Time
	dated       bool // the recording has times
	deviceClock time.Time
}

func (p *player) record(r port.Record) {
	p.result.Records++
	p.result.Bytes += uint64(len(r.Data))
	p.tell(r)
	if p.framing == FramingAuto {
		p.framing = p.guess(r.Data)
	}
	splitter, ok := p.options.Driver.(drivers.Splitter)
	if p.framing == FramingDatagrams && ok && !p.dated {
		p.rest = append(p.rest, r.Data...)
		p.split(splitter, false)
		return
	}
	p.feed(r.Data)
}

// tell sets the clock to the time of a record.
func (p *player) tell(r port.Record) {
	at := r.Time
	if at.IsZero() {
		at = p.options.Begin.Add(r.Offset)
	}
	p.dated = p.dated || !r.Time.IsZero() || r.Offset > 0
	if p.result.Records == 1 {
		p.now = at
	}
	if at.After(p.now) {
		p.wake(at)
		p.now = at
	}
}

// guess tells a stream from datagrams by whether a whole datagram begins the recording.
func (p *player) guess(data []byte) Framing {
	s, ok := p.options.Driver.(drivers.Splitter)
	if ok && s.Split(data) > 0 {
		return FramingDatagrams
	}
	return FramingStream
}

// datagram is more than any datagram of UDP has.
const datagram = 1 << 16

// split feeds the datagrams at the start of what is there, and passes over bytes
// that begin none.
func (p *player) split(s drivers.Splitter, last bool) {
	if !last && len(p.rest) < 2*datagram {
		return
	}
	data := p.rest
	for len(data) > 0 && p.failed == nil && (last || len(data) >= datagram) {
		if n := s.Split(data); n > 0 && n <= len(data) {
			p.feed(data[:n])
			data = data[n:]
			continue
		}
		p.result.Stray++
		data = data[1:]
	}
	p.rest = append(p.rest[:0], data...)
}

func (p *player) end() {
	if s, ok := p.options.Driver.(drivers.Splitter); ok && len(p.rest) > 0 {
		p.split(s, true)
	}
	if p.machine != nil {
		p.wake(p.now)
	}
}

// feed gives bytes to the machine, a new one where the last has failed.
func (p *player) feed(data []byte) {
	if p.machine == nil && !p.start() {
		return
	}
	if err := p.machine.Receive(p.now, data); err != nil {
		p.drop(err)
	}
}

func (p *player) start() bool {
	settings := drivers.Settings{Datagrams: p.framing == FramingDatagrams, ListenOnly: true, Options: p.options.Options}
	m, err := p.options.Driver.New(settings, (*host)(p))
	if err == nil {
		err = m.Start(p.now)
	}
	if err != nil {
		p.failed = err
		return false
	}
	p.result.Sessions++
	p.machine = m
	return true
}

// drop ends a session as the daemon would, without the wait for the next.
func (p *player) drop(err error) {
	p.machine = nil
	if !errors.Is(err, drivers.ErrDeviceClosed) {
		p.result.Fault = err
	}
}

// wake calls Tick at the times that the machine asked for, up to until.
func (p *player) wake(until time.Time) {
	for range 1000 { // a machine that asks for ever is not waited for
		if p.machine == nil {
			return
		}
		at := p.machine.Wake()
		if at.IsZero() || at.After(until) {
			return
		}
		if at.After(p.now) {
			p.now = at
		}
		if err := p.machine.Tick(p.now); err != nil {
			p.drop(err)
		}
	}
}

// host is what a machine sees of the player.
type host player

func (h *host) Send([]byte)           {}
func (h *host) State(drivers.State)   {}
func (h *host) Count(f drivers.Frame) { h.result.Frames[f]++ }

func (h *host) Note(text string) {
	if len(h.result.Notes) < 100 {
		h.result.Notes = append(h.result.Notes, text)
	}
}

func (h *host) Report(r *observation.Report) {
	if h.failed != nil {
		return
	}
	h.result.Reports++
	h.result.Observations += uint64(len(r.Observations))
	h.failed = h.sink(r)
	(*player)(h).follow(r.DeviceClock)
}

// follow lets the time of a recording without times go on as the device's own
// clock does, so that intervals mean something.
func (p *player) follow(clock time.Time) {
	if p.dated || clock.IsZero() {
		return
	}
	if d := clock.Sub(p.deviceClock); !p.deviceClock.IsZero() && d > 0 && d < time.Hour {
		p.now = p.now.Add(d)
	}
	p.deviceClock = clock
}
