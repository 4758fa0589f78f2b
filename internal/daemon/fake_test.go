package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bedside-gateway/gatewayd/drivers"
	"github.com/bedside-gateway/gatewayd/drivers/port"
	"github.com/bedside-gateway/gatewayd/mdc"
	"github.com/bedside-gateway/gatewayd/observation"
)

// words is a driver for a device that talks in lines: HR 72, DEMO 72, NIBP 120,
// NAME ID FAMILY, PANIC, BAD.
type words struct{}

func (words) Info() drivers.Info {
	return drivers.Info{Name: "words", Title: "a device that talks in lines", Passive: true, Silence: 10 * time.Second,
		Lines:   []port.Line{{Baud: 9600, DataBits: 8, Parity: port.None, StopBits: 1}},
		Options: []drivers.Option{{Name: "mute", Default: "false", Explain: "Whether it is mute."}}}
}

func (words) Identify(b []byte) drivers.Match {
	if bytes.ContainsRune(b, '\n') {
		return drivers.Certain
	}
	return drivers.NeedMore
}

func (words) Permit([]byte) error { return errors.New("nothing is ever sent") }

func (words) New(_ drivers.Settings, h drivers.Host) (drivers.Machine, error) {
	return &wordMachine{host: h, device: observation.Device{Type: 69965, ID: 0x1122334455667788, Manufacturer: "Words", BedLabel: "MARKBED"}}, nil
}

type wordMachine struct {
	host    drivers.Host
	device  observation.Device
	patient *observation.Patient
	rest    []byte
}

func (m *wordMachine) Start(time.Time) error {
	m.host.State(drivers.Associating)
	return nil
}

func (m *wordMachine) Receive(now time.Time, p []byte) error {
	m.rest = append(m.rest, p...)
	for {
		line, rest, ok := bytes.Cut(m.rest, []byte("\n"))
		if !ok {
			return nil
		}
		if err := m.line(now, strings.Fields(string(line))); err != nil {
			return err
		}
		m.rest = append(m.rest[:0], rest...)
	}
}

func (m *wordMachine) line(now time.Time, f []string) error {
	if len(f) == 0 {
		return nil
	}
	m.host.Count(drivers.FrameGood)
	m.host.State(drivers.Live)
	switch f[0] {
	case "NAME":
		m.patient = &observation.Patient{ID: observation.NewPHI(f[1]), Family: observation.NewPHI(f[2]), Admission: observation.Admitted}
	case "PANIC":
		var none *observation.Patient
		_ = none.Sex
	case "BAD":
		m.host.Count(drivers.FrameMalformed)
	default:
		return m.value(now, f)
	}
	return nil
}

func (m *wordMachine) value(now time.Time, f []string) error {
	n, err := strconv.Atoi(f[1])
	if err != nil {
		return errors.New("the device says no number")
	}
	o := observation.Observation{Code: 147842, Unit: 264864, Time: now, Value: observation.Value{Kind: observation.KindNumber, Number: observation.NewDecimal(int32(n), 0)}}
	switch f[0] {
	case "DEMO":
		o.Status = observation.Demo
	case "NIBP":
		o.Code, o.Unit, o.Episodic = 150021, 266016, true
	}
	m.host.Report(&observation.Report{Device: &m.device, Patient: m.patient, Received: now, Observations: []observation.Observation{o}})
	return nil
}

func (m *wordMachine) Tick(time.Time) error { return nil }
func (m *wordMachine) Wake() time.Time      { return time.Time{} }
func (m *wordMachine) Stop(time.Time)       {}

// bedside is the far end of the ports of a test: what is said into it, the
// daemon hears at the port of that device name.
type bedside struct {
	mu    sync.Mutex
	ends  map[string]net.Conn
	plugs map[string]bool // unplugged where true
	said  chan struct{}
}

func newBedside() *bedside {
	return &bedside{ends: map[string]net.Conn{}, plugs: map[string]bool{}, said: make(chan struct{}, 1)}
}

// open is Options.Open.
func (b *bedside) open(_ context.Context, s port.Spec, _ port.Line) (port.Port, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.plugs[s.String()] {
		return nil, fmt.Errorf("%s: %w", s, os.ErrNotExist)
	}
	near, far := net.Pipe()
	b.ends[s.String()] = far
	return &pipe{near}, nil
}

// say writes a line at a device, once its port is open.
func (b *bedside) say(t testing.TB, device, format string, args ...any) {
	t.Helper()
	eventually(t, "port "+device+" takes a line", func() bool {
		b.mu.Lock()
		end := b.ends[device]
		b.mu.Unlock()
		if end == nil {
			return false
		}
		end.SetWriteDeadline(time.Now().Add(time.Second))
		_, err := fmt.Fprintf(end, format+"\n", args...)
		return err == nil
	})
}

// unplug takes the cable out, plug puts it back.
func (b *bedside) unplug(device string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.plugs[device] = true
	if end := b.ends[device]; end != nil {
		end.Close()
	}
	delete(b.ends, device)
}

func (b *bedside) plug(device string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.plugs[device] = false
}

// pipe is a net.Conn as a port.
type pipe struct{ net.Conn }

func (p *pipe) ReadBefore(b []byte, deadline time.Time) (int, error) {
	p.SetReadDeadline(deadline)
	n, err := p.Read(b)
	if err == io.EOF {
		err = fmt.Errorf("the port is gone: %w", err)
	}
	return n, err
}

func (p *pipe) Datagrams() bool { return false }

// eventually waits until a condition holds that other goroutines bring about.
func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for tick := time.NewTicker(2 * time.Millisecond); !holds(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within a minute", what)
		}
	}
}

var _ = mdc.Code(0)
