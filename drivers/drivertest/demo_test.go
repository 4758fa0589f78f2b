package drivertest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"sync"
	"time"

	"github.com/bedside-gateway/gatewayd/drivers"
	"github.com/bedside-gateway/gatewayd/drivers/port"
	"github.com/bedside-gateway/gatewayd/mdc"
	"github.com/bedside-gateway/gatewayd/observation"
)

// demo is a driver of a protocol that was made up for these tests: a frame is
// 02, a type, a length of two bytes, the payload and its CRC-32. The host says
// H and is answered h; then it says P once a second and is answered with the
// pulse rate, tenths in two bytes, in a frame p. In datagrams it is the same.
//
// Each fault, named by a string, is a mistake that the kit must find.
type demo struct {
	faults map[string]bool
	starts int
	stop   chan struct{} // ends what the worst faults would leave
}

func newDemo(faults ...string) *demo {
	d := &demo{faults: make(map[string]bool), stop: make(chan struct{})}
	for _, f := range faults {
		d.faults[f] = true
	}
	return d
}

const (
	demoMax     = 64
	demoHeader  = 4
	demoTrailer = 4
)

var (
	errShort = errors.New("more is to come")
	errStart = errors.New("no start of a frame")
	errLong  = errors.New("too long")
	errCheck = errors.New("wrong check value")
)

func demoFrame(kind byte, payload ...byte) []byte {
	b := append([]byte{2, kind, 0, 0}, payload...)
	binary.BigEndian.PutUint16(b[2:], uint16(len(payload)))
	return binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(b))
}

// demoParse finds the frame at the start of b.
func (d *demo) parse(b []byte) (kind byte, payload []byte, n int, err error) {
	if d.faults["crashes on a short frame"] && len(b) > 1 {
		_ = b[3]
	}
	if len(b) < demoHeader {
		return 0, nil, 0, errShort
	}
	length := int(binary.BigEndian.Uint16(b[2:]))
	n = demoHeader + length + demoTrailer
	switch {
	case b[0] != 2:
		return 0, nil, 0, errStart
	case length > demoMax && !d.faults["believes any length"]:
		return 0, nil, 0, errLong
	case len(b) < n:
		return 0, nil, 0, errShort
	}
	sum := binary.BigEndian.Uint32(b[n-demoTrailer:])
	if sum != crc32.ChecksumIEEE(b[:n-demoTrailer]) && !d.faults["ignores the check value"] {
		return 0, nil, 0, errCheck
	}
	return b[1], b[demoHeader : demoHeader+length], n, nil
}

func (d *demo) Info() drivers.Info {
	info := drivers.Info{Name: "demo", Title: "Demo", UDPPort: 4711, Silence: 10 * time.Second,
		Lines:   []port.Line{{Baud: 9600, DataBits: 8, Parity: port.None, StopBits: 1}},
		Options: []drivers.Option{{Name: "unit", Default: "bpm", Explain: "The unit of the rate."}}}
	if d.faults["has no silence"] {
		info.Silence = 0
	}
	return info
}

func (d *demo) Identify(b []byte) drivers.Match {
	if d.faults["claims everything"] {
		return drivers.Certain
	}
	if d.faults["knows only clean bytes"] && len(b) > 0 && b[0] != 2 {
		return drivers.NoMatch
	}
	for i := range b {
		switch _, _, _, err := d.parse(b[i:]); {
		case err == nil:
			return drivers.Certain
		case err == errShort && b[i] == 2 || len(b) < 200:
			continue
		}
	}
	if len(b) < 200 {
		return drivers.NeedMore
	}
	return drivers.NoMatch
}

func (d *demo) Permit(frame []byte) error {
	if d.faults["permits everything"] {
		return nil
	}
	strict := &demo{faults: map[string]bool{"ignores the check value": d.faults["permits a wrong check value"]}}
	kind, payload, n, err := strict.parse(frame)
	switch {
	case err != nil:
		return err
	case n != len(frame) && !d.faults["permits what follows"]:
		return errors.New("bytes follow the frame")
	case kind == 'S' && d.faults["permits a setting"]:
		return nil
	case kind != 'H' && kind != 'P' || len(payload) != 0:
		return fmt.Errorf("%q is no question", kind)
	}
	return nil
}

func (d *demo) New(s drivers.Settings, h drivers.Host) (drivers.Machine, error) {
	if u := s.Options["unit"]; u != "bpm" {
		return nil, fmt.Errorf("option unit: %q is not known", u)
	}
	if d.faults["leaves a goroutine"] {
		go func() { <-d.stop }()
	}
	return &demoMachine{d: d, s: s, h: h, observations: make([]observation.Observation, 0, 2)}, nil
}

type demoMachine struct {
	d *demo
	s drivers.Settings
	h drivers.Host

	buf          []byte
	live         bool
	next, heard  time.Time
	observations []observation.Observation
	device       observation.Device
	last         []byte
	count        int
	ticked       time.Time
	hoard        []byte
}

func (m *demoMachine) fault(name string) bool { return m.d.faults[name] }

func (m *demoMachine) Start(now time.Time) error {
	m.heard, m.ticked = now, now
	if m.d.starts++; m.fault("begins only once") && m.d.starts > 1 {
		return nil
	}
	m.device = observation.Device{Type: 69637, Manufacturer: "Demo"}
	if m.s.ListenOnly {
		if m.fault("waits for answers when it only listens") {
			m.next = now.Add(time.Second)
		}
		return nil
	}
	return m.ask(now)
}

func (m *demoMachine) ask(now time.Time) error {
	switch {
	case m.fault("sends a setting") && m.live:
		m.h.Send(demoFrame('S', 1))
	case m.live:
		m.h.Send(demoFrame('P'))
	default:
		m.h.Send(demoFrame('H'))
	}
	m.next = now.Add(time.Second)
	return nil
}

func (m *demoMachine) Tick(now time.Time) error {
	m.ticked = now
	if m.fault("asks at every tick") {
		return m.ask(now)
	}
	if m.next.IsZero() || now.Before(m.next) {
		return nil
	}
	if m.fault("waits for answers when it only listens") && m.s.ListenOnly {
		return errors.New("no answer")
	}
	if now.Sub(m.heard) > 5*time.Second && !m.fault("never gives up") {
		return errors.New("the device does not answer")
	}
	if m.fault("never gives up") && m.live && now.Sub(m.heard) > 5*time.Second {
		m.next = now.Add(time.Hour)
		return nil
	}
	return m.ask(now)
}

func (m *demoMachine) Wake() time.Time {
	switch {
	case m.fault("is never content"):
		return m.heard
	case m.fault("wakes too often"):
		return m.ticked.Add(50 * time.Millisecond)
	}
	return m.next
}

func (m *demoMachine) Receive(now time.Time, p []byte) error {
	if m.fault("hangs on a zero") && bytes.Contains(p, []byte{0, 0, 0, 0, 0, 0}) {
		<-m.d.stop
	}
	if m.fault("keeps all that it gets") {
		m.hoard = append(m.hoard, p...)
	}
	if m.fault("allocates what a length says") && len(p) > 3 {
		m.hoard = make([]byte, int(binary.BigEndian.Uint16(p[2:]))<<5)
		m.hoard = nil
	}
	if m.s.Datagrams {
		m.buf = append(m.buf[:0], p...)
	} else if m.fault("forgets what came before") || m.fault("keeps the buffer") && len(m.buf) == 0 {
		m.buf = p
	} else {
		m.buf = append(m.buf, p...)
	}
	for len(m.buf) > 0 {
		kind, payload, n, err := m.d.parse(m.buf)
		switch {
		case err == errShort && m.s.Datagrams:
			m.h.Count(drivers.FrameMalformed)
			m.buf = m.buf[:0]
			return nil
		case err == errShort && m.fault("forgets what came before"):
			return nil
		case err == errShort && m.buf[0] == 2:
			return nil
		case err != nil && m.fault("gives up at noise"):
			return err
		case err != nil && m.fault("loses its place at noise"):
			return nil
		case err != nil:
			m.h.Count(drivers.FrameNoise)
			m.buf = m.buf[1:]
			continue
		}
		if err := m.frame(now, kind, payload); err != nil {
			return err
		}
		m.buf = m.buf[n:]
		if m.fault("takes one frame a read") {
			m.buf = m.buf[:0]
		}
	}
	if !m.fault("keeps the buffer") {
		m.buf = bytes.Clone(m.buf)
	}
	return nil
}

func (m *demoMachine) frame(now time.Time, kind byte, payload []byte) error {
	m.h.Count(drivers.FrameGood)
	m.heard = now
	if kind == 'h' || m.s.ListenOnly {
		m.live = true
		if !m.fault("never says that it is live") {
			m.h.State(drivers.Live)
		}
	}
	if kind != 'p' || len(payload) != 2 && !m.fault("crashes on a short frame") {
		return nil
	}
	if m.fault("keeps the buffer") {
		// The value of the frame before, as it stands in the reader's buffer.
		payload, m.last = m.last, payload
		if payload == nil {
			return nil
		}
	}
	o := observation.Observation{Code: 149530, Unit: mdc.Code(264864), Time: now,
		Value: observation.Value{Kind: observation.KindNumber, Number: observation.NewDecimal(int32(int16(binary.BigEndian.Uint16(payload))), -1)}}
	switch {
	case m.fault("has no time"):
		o.Time = time.Time{}
	case m.fault("gives a value that is none"):
		o.Status = observation.Invalid
	}
	report := observation.Report{Device: &m.device, Received: now}
	if m.fault("patches its last report") && m.count > 0 {
		m.observations[0].Value.Number, m.observations[0].Time = o.Value.Number, now
	} else {
		m.observations = append(m.observations[:0], o)
	}
	report.Observations = m.observations
	m.count++
	m.h.Report(&report)
	return nil
}

func (m *demoMachine) Stop(time.Time) {
	if m.fault("crashes at the end") {
		panic("at the end")
	}
}

// demoDevice is the device of the protocol. It sends nothing unasked.
type demoDevice struct {
	mu    sync.Mutex
	live  bool
	value uint16
}

func (d *demoDevice) answer(request []byte) []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	kind, _, _, err := (&demo{}).parse(request)
	switch {
	case err != nil:
		return nil
	case kind == 'H':
		d.live = true
		return demoFrame('h')
	case kind == 'P' && d.live:
		d.value++
		value := binary.BigEndian.AppendUint16(nil, 700+d.value%300)
		return append(demoFrame('p', value...), demoFrame('x', value...)...)
	}
	return nil
}

func (d *demoDevice) ServeStream(_ context.Context, rw io.ReadWriter) error {
	var buf []byte
	piece := make([]byte, 64)
	for {
		n, err := rw.Read(piece)
		if err != nil {
			return err
		}
		buf = append(buf, piece[:n]...)
		for len(buf) >= demoHeader+demoTrailer { // no request has a payload
			if _, err := rw.Write(d.answer(buf)); err != nil {
				return err
			}
			buf = buf[demoHeader+demoTrailer:]
		}
	}
}

func (d *demoDevice) ServePacket(_ context.Context, c net.PacketConn) error {
	buf := make([]byte, 1500)
	for {
		n, from, err := c.ReadFrom(buf)
		if err != nil {
			return err
		}
		if answer := d.answer(buf[:n]); answer != nil {
			if _, err := c.WriteTo(answer, from); err != nil {
				return err
			}
		}
	}
}

// demoKit is the kit of the protocol without fault.
func demoKit() Kit {
	heard := Recording{Name: "heard", Records: []port.Record{
		{Direction: port.ToDevice, Data: demoFrame('H')},
		{Direction: port.FromDevice, Data: demoFrame('h')},
		{Offset: time.Second, Direction: port.FromDevice, Data: demoFrame('p', 2, 0xBC)},
		{Offset: 2 * time.Second, Direction: port.FromDevice, Data: append(demoFrame('p', 2, 0xBD), demoFrame('p', 2, 0xBE)...)},
	}, Expect: func(reports []observation.Report) error {
		if len(reports) != 3 || reports[2].Observations[0].Value.Number.String() != "70.2" {
			return fmt.Errorf("%d reports, not 3 with 70.2 as the last", len(reports))
		}
		return nil
	}}
	return Kit{
		Stream:     func() StreamDevice { return &demoDevice{} },
		Packet:     func() PacketDevice { return &demoDevice{} },
		Recordings: []Recording{heard},
		Foreign:    map[string][]byte{"text": []byte("SpO2=098% PR=072\r\n")},
		Dangerous:  map[string][]byte{"setting": demoFrame('S', 1), "question with a payload": demoFrame('P', 1)},
		Hostile:    map[string][]byte{"an empty value": demoFrame('p'), "a long value": demoFrame('p', make([]byte, demoMax)...)},
		Checked:    true,
	}
}
