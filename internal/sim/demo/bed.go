package demo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/bedside-gateway/gatewayd/drivers/intellivue/sim"
	"github.com/bedside-gateway/gatewayd/drivers/port"
)

// A bed is a monitor, simulated or played from a recording, and its line.
type bed struct {
	name     string // of the port
	label    string // PV1-3.3
	line     string // for people
	device   string // for the configuration
	simulate bool   // allow_simulated
	dead     bool   // nothing may arrive of it: its data are marked as simulated and not allowed

	monitor *sim.Monitor // nil for a recording
	replay  *sim.Replay
	pty     *sim.PTY // nil on the LAN
	conn    net.PacketConn

	mu     sync.Mutex
	sent   []sent
	marked int // values that the monitor marked as demonstration or test
	gaps   []gap
	end    time.Time
}

// Measurement states of the protocol that mark a value as no patient's.
const simulatedState = 0x0800 | 0x0400

func (b *bed) note(n sim.Numeric) {
	if n.Value == "" {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if n.State&simulatedState != 0 {
		b.marked++
	}
	v := sent{code: termOf(n.Physio), unit: unitOf(n.Unit), value: n.Value, at: time.Now(), episodic: n.Episodic}
	v.of = v.at
	switch {
	case n.Episodic:
		v.measured = n.Time
	case b.monitor != nil: // its clock is ours
		v.of = n.Time
	}
	b.sent = append(b.sent, v)
}

// serve runs the monitor until ctx ends.
func (b *bed) serve(ctx context.Context) error {
	switch {
	case b.pty != nil && b.replay != nil:
		return b.replay.ServeStream(ctx, b.pty)
	case b.pty != nil:
		return b.monitor.ServeStream(ctx, b.pty)
	}
	return b.monitor.ServePacket(ctx, b.conn)
}

// close frees the line of a bed that is not served.
func (b *bed) close() {
	if b.pty != nil {
		b.pty.Close()
	}
	if b.conn != nil {
		b.conn.Close()
	}
}

// pull unplugs the line.
func (b *bed) pull() error {
	b.interrupt()
	return b.pty.Unplug()
}

// interrupt notes that nobody listens, without touching the line.
func (b *bed) interrupt() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.gaps = append(b.gaps, gap{from: time.Now()})
}

// heard ends the gaps that a value was measured behind: it came over the line.
func (b *bed) heard(measured time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.replay != nil {
		measured = time.Now() // the clock of a recording is not ours
	}
	b.endGaps(measured)
}

func (b *bed) endGaps(at time.Time) {
	for i := range b.gaps {
		if g := &b.gaps[i]; g.to.IsZero() && at.After(g.from.Add(tolerance)) {
			g.to = at
		}
	}
}

// quit lets the monitor end its association in good order and refuse another;
// a recording just breaks off.
func (b *bed) quit() error {
	b.mu.Lock()
	b.end = time.Now()
	b.mu.Unlock()
	if b.monitor == nil {
		return b.pty.Unplug()
	}
	b.monitor.SetRefuse(true)
	b.monitor.Release()
	return nil
}

// patients are made up; nobody has these names.
func patient(n int) *sim.Patient {
	return &sim.Patient{ID: fmt.Sprintf("SIM-%04d", n), Given: "Simulated", Family: fmt.Sprintf("Patient-%d", n),
		Born: "19700101", Sex: sim.Female, Type: sim.Adult}
}

// simulated makes the two beds of a demo: one on a serial line, one on the LAN.
func simulated(dir string, o Options, cuff time.Duration) ([]*bed, error) {
	serial := &bed{name: "bed-1", label: "Bed 1", line: "RS-232 on a pty", device: filepath.Join(dir, "bed-1")}
	lan := &bed{name: "bed-2", label: "Bed 2", line: "LAN, UDP"}
	base := []sim.Baseline{{}, {HeartRate: 88, Systolic: 138, Diastolic: 84, SpO2: 94.5, RespRate: 18, Temp: 38.1}}
	for i, b := range []*bed{serial, lan} {
		m, err := sim.New(sim.Options{
			Seed: o.Seed + uint64(i), OnNumeric: b.note, MAC: [6]byte{0x00, 0x09, 0xFB, 0, 0, byte(i + 1)}, BedLabel: b.label,
			Serial: fmt.Sprintf("SIM000000%d", i+1), Patient: patient(i + 1), Baseline: base[i], NBPEvery: cuff,
			AcceptDelay: 300 * time.Millisecond,
		})
		if err != nil {
			return nil, err
		}
		b.monitor = m
	}
	var err error
	if serial.pty, err = sim.OpenPTY(serial.device); err != nil {
		return nil, err
	}
	if lan.conn, err = net.ListenPacket("udp", "127.0.0.1:0"); err != nil {
		serial.close()
		return nil, err
	}
	lan.device = "udp://" + lan.conn.LocalAddr().String()
	return []*bed{serial, lan}, nil
}

// recorded makes two beds that play one recording: of the first simulated data
// are let through, of the second, as by default, they are not.
func recorded(dir string, o Options) ([]*bed, error) {
	records, err := readCapture(o.Capture)
	if err != nil {
		return nil, err
	}
	beds := []*bed{
		{name: "bed-1", label: "Bed 1", line: "recording, allow_simulated = true", simulate: true},
		{name: "bed-2", label: "Bed 2", line: "recording, as configured by default"},
	}
	for i, b := range beds {
		b.device = filepath.Join(dir, b.name)
		if b.replay, err = replay(records, o.Duration, b.note); err == nil {
			b.pty, err = sim.OpenPTY(b.device)
		}
		if err != nil {
			for _, opened := range beds[:i] {
				opened.close()
			}
			return nil, fmt.Errorf("%s: %w", o.Capture, err)
		}
	}
	return beds, nil
}

// mostSpeed is how fast a recording is played at most: faster, and its results
// would come closer together than a monitor can send them.
const mostSpeed = 8

// mostSilence is what is left of longer silences in a recording.
const mostSilence = time.Second

// replay plays a recording again and again, as it was recorded or, where it is
// long, fast enough for all of it to be seen in two thirds of the time.
func replay(records []port.Record, in time.Duration, note func(sim.Numeric)) (*sim.Replay, error) {
	o := sim.ReplayOptions{Records: records, MaxGap: mostSilence, Loop: true, OnNumeric: note}
	r, err := sim.NewReplay(o)
	if err != nil {
		return nil, err
	}
	length, _ := r.Length()
	o.Speed = min(max(1, float64(length)/float64(in*2/3)), mostSpeed)
	return sim.NewReplay(o)
}

// maxCapture bounds what is read into memory, in bytes.
const maxCapture = 256 << 20

// dataPort is the UDP port of an IntelliVue monitor.
const dataPort = 24105

func readCapture(file string) ([]port.Record, error) {
	text, err := readLimited(file)
	if err != nil {
		return nil, err
	}
	var records []port.Record
	for r, err := range port.ReadRecording(bytes.NewReader(text), port.ReadOptions{UDPPort: dataPort}) {
		if err != nil && !errors.Is(err, port.ErrTorn) {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		if err == nil {
			r.Data = bytes.Clone(r.Data)
			records = append(records, r)
		}
	}
	return records, nil
}

func readLimited(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxCapture+1))
	if err == nil && len(text) > maxCapture {
		err = fmt.Errorf("%s is larger than %d MiB", file, maxCapture>>20)
	}
	return text, err
}
