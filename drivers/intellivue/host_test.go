package intellivue

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bedside-gateway/gatewayd/drivers"
	"github.com/bedside-gateway/gatewayd/observation"
)

// A testHost keeps what a machine does. It judges every frame by Permit.
type testHost struct {
	t       testing.TB
	sent    [][]byte // messages, without their frames
	reports []observation.Report
	notes   []string
	counts  map[drivers.Frame]int
	state   drivers.State
	framed  bool
}

func (h *testHost) Send(frame []byte) {
	if err := (Driver{}).Permit(frame); err != nil {
		h.t.Errorf("Permit refuses %x: %v", frame, err)
	}
	if h.framed {
		user, err := unframe(frame)
		if err != nil {
			h.t.Errorf("sent %x: %v", frame, err)
		}
		frame = user
	}
	h.sent = append(h.sent, bytes.Clone(frame))
}

func (h *testHost) Report(r *observation.Report) {
	c := *r
	device := *r.Device
	c.Device = &device
	if r.Patient != nil {
		p := *r.Patient
		c.Patient = &p
	}
	c.Alerts = slices.Clone(r.Alerts)
	c.Observations = slices.Clone(r.Observations)
	for i := range c.Observations {
		if s := c.Observations[i].Value.Samples; s != nil {
			block := *s
			block.Values = slices.Clone(s.Values)
			c.Observations[i].Value.Samples = &block
		}
	}
	h.reports = append(h.reports, c)
	// Borrowed means borrowed: what is left behind here must not matter.
	clear(r.Observations)
	clear(r.Alerts)
	*r.Device = observation.Device{}
	if r.Patient != nil {
		*r.Patient = observation.Patient{}
	}
	*r = observation.Report{}
}

func (h *testHost) State(s drivers.State) { h.state = s }
func (h *testHost) Count(f drivers.Frame) { h.counts[f]++ }
func (h *testHost) Note(text string)      { h.notes = append(h.notes, text) }

func (h *testHost) noted(part string) bool {
	return slices.ContainsFunc(h.notes, func(n string) bool { return strings.Contains(n, part) })
}

// A rig is a machine with its host and a clock.
type rig struct {
	*testHost
	m   *machine
	now time.Time
}

func newRig(t testing.TB, s drivers.Settings) *rig {
	t.Helper()
	h := &testHost{t: t, counts: map[drivers.Frame]int{}, framed: !s.Datagrams}
	m, err := newMachine(s, h)
	if err != nil {
		t.Fatal(err)
	}
	return &rig{h, m, sessionStart}
}

// datagramRig is a rig on a LAN.
func datagramRig(t testing.TB, options map[string]string) *rig {
	return newRig(t, drivers.Settings{Datagrams: true, Options: options})
}

// run lets time pass, with the ticks that the machine wants.
func (r *rig) run(d time.Duration) {
	r.t.Helper()
	for end := r.now.Add(d); ; {
		wake := r.m.Wake()
		if wake.IsZero() || wake.After(end) {
			r.now = end
			return
		}
		if wake.After(r.now) {
			r.now = wake
		}
		if err := r.m.Tick(r.now); err != nil {
			r.t.Fatalf("Tick: %v", err)
		}
		if again := r.m.Wake(); !again.After(r.now) {
			if err := r.m.Tick(r.now); err != nil || !r.m.Wake().After(r.now) && r.m.Wake().Equal(again) {
				r.t.Fatalf("the machine wants to be woken at %v again and again", again)
			}
		}
	}
}

func (r *rig) receive(p []byte) {
	r.t.Helper()
	p = bytes.Clone(p)
	if r.framed {
		p = appendFrame(nil, p)
	}
	if err := r.m.Receive(r.now, p); err != nil {
		r.t.Fatalf("Receive: %v", err)
	}
	for i := range p {
		p[i] = 0xAA
	}
}

// take returns what was sent since, and forgets it.
func (r *rig) take() [][]byte {
	s := r.sent
	r.sent = nil
	return s
}

// observations are all of the reports.
func (r *rig) observations() (list []observation.Observation) {
	for _, p := range r.reports {
		list = append(list, p.Observations...)
	}
	return list
}
