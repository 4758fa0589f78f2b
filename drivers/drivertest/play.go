package drivertest

import (
	"fmt"
	"reflect"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/bedside-gateway/gatewayd/drivers"
	"github.com/bedside-gateway/gatewayd/drivers/port"
	"github.com/bedside-gateway/gatewayd/mdc"
	"github.com/bedside-gateway/gatewayd/observation"
)

// began is when every play begins.
var began = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// A play hands recorded bytes to a new machine, with simulated time.
type play struct {
	settings drivers.Settings
	records  []port.Record
	// pieces cuts what arrives at once; nil leaves it whole.
	pieces func([]byte) [][]byte
	still  bool // the time stands still: no ticks
	early  bool // more ticks than are asked for
	gentle bool // what is borrowed is left as it is
	quiet  time.Duration
	noStop bool
}

// An outcome is what a machine made of a play.
type outcome struct {
	reports []observation.Report
	sends   []string
	live    bool
	good    int
	ticks   int
	hasty   int // times that Wake was not later than the Tick before it
	first   int // records until the first report
	refused string
	lasted  time.Duration // until the end or the error
	err     error
	panic   string
	hung    bool
	machine drivers.Machine
}

func (o *outcome) broken() string {
	switch {
	case o.hung:
		return "the machine does not return"
	case o.panic != "":
		return o.panic
	}
	return ""
}

// play plays p. A machine that does not return is given up, with all checks.
func (c *checker) play(p play) *outcome {
	o := &outcome{}
	done := make(chan *outcome, 1)
	go func() {
		c.playNow(p, o)
		done <- o
	}()
	watchdog := time.NewTimer(c.watchdog)
	defer watchdog.Stop()
	select {
	case <-done:
	case <-watchdog.C:
		c.fatal = true
		return &outcome{hung: true}
	}
	for _, s := range o.sends {
		c.noteSent(s, p.settings.Datagrams)
	}
	if o.refused != "" {
		c.failf("the machine made a request that Permit refuses: %s", o.refused)
	}
	return o
}

func (c *checker) playNow(p play, o *outcome) {
	defer func() {
		if v := recover(); v != nil {
			o.panic = fmt.Sprintf("panic: %v\n%s", v, firstFrames())
		}
	}()
	h := &witness{c: c, o: o, gentle: p.gentle}
	if p.settings.Options == nil {
		p.settings.Options = c.options()
	}
	m, err := c.d.New(p.settings, h)
	if err != nil {
		o.err = err
		return
	}
	o.machine = m
	pl := player{p: p, o: o, m: m, now: began}
	defer func() { o.lasted = pl.now.Sub(began) }()
	if o.err = m.Start(pl.now); o.err == nil {
		o.err = pl.all()
	}
	if o.err == nil && !p.noStop {
		m.Stop(pl.now)
	}
}

// options are those of the kit with the defaults of the driver, as a session gives them.
func (c *checker) options() map[string]string {
	options := make(map[string]string)
	for _, o := range c.d.Info().Options {
		options[o.Name] = o.Default
	}
	for name, value := range c.k.Options {
		options[name] = value
	}
	return options
}

// firstFrames is the part of the stack that matters to who reads it.
func firstFrames() string {
	lines := strings.Split(string(debug.Stack()), "\n")
	for i, l := range lines {
		if strings.HasPrefix(l, "panic(") && i+8 < len(lines) {
			return strings.Join(lines[i+2:i+8], "\n")
		}
	}
	return strings.Join(lines, "\n")
}

// player is a play in progress.
type player struct {
	p   play
	o   *outcome
	m   drivers.Machine
	now time.Time
	buf []byte

	notBefore time.Time // of the next tick
}

func (pl *player) all() error {
	for _, r := range pl.p.records {
		if r.Direction != port.FromDevice {
			continue
		}
		if err := pl.until(began.Add(r.Offset)); err != nil {
			return err
		}
		if err := pl.receive(r.Data); err != nil {
			return err
		}
		if len(pl.o.reports) == 0 {
			pl.o.first++
		}
	}
	return pl.until(pl.now.Add(pl.p.quiet))
}

// until lets the time pass, with the ticks that the machine wants.
func (pl *player) until(t time.Time) error {
	if pl.p.still {
		return nil
	}
	if pl.p.early {
		for _, d := range []time.Duration{0, t.Sub(pl.now) / 3, t.Sub(pl.now) / 2} {
			if at := pl.now.Add(d); d >= 0 && pl.notDue(at) {
				if err := pl.m.Tick(at); err != nil {
					return err
				}
			}
		}
	}
	for {
		wake := pl.m.Wake()
		if !wake.IsZero() && wake.Before(pl.notBefore) {
			wake = pl.notBefore
		}
		if wake.IsZero() || wake.After(t) {
			break
		}
		if wake.After(pl.now) {
			pl.now = wake
		}
		if err := pl.tick(); err != nil {
			return err
		}
	}
	if t.After(pl.now) {
		pl.now = t
	}
	return nil
}

func (pl *player) notDue(at time.Time) bool {
	wake := pl.m.Wake()
	return wake.IsZero() || wake.After(at)
}

func (pl *player) tick() error {
	pl.o.ticks++
	if err := pl.m.Tick(pl.now); err != nil {
		return err
	}
	if wake := pl.m.Wake(); !wake.IsZero() && !wake.After(pl.now) {
		pl.o.hasty++
	}
	pl.notBefore = pl.now.Add(10 * time.Millisecond) // as a session does
	return nil
}

// receive hands data over in pieces, each in a buffer that is overwritten afterwards.
func (pl *player) receive(data []byte) error {
	pieces := [][]byte{data}
	if pl.p.pieces != nil {
		pieces = pl.p.pieces(data)
	}
	for _, piece := range pieces {
		if cap(pl.buf) < len(piece) || pl.p.gentle {
			pl.buf = make([]byte, len(piece))
		}
		b := pl.buf[:len(piece):len(piece)]
		copy(b, piece)
		err := pl.m.Receive(pl.now, b)
		if !pl.p.gentle {
			for i := range b {
				b[i] ^= 0xA5
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// witness is the Host of a play.
type witness struct {
	c      *checker
	o      *outcome
	gentle bool
}

func (w *witness) Send(frame []byte) {
	if err := w.c.permit(frame); err != nil && w.o.refused == "" {
		w.o.refused = fmt.Sprintf("% X: %v", frame, err)
	}
	w.o.sends = append(w.o.sends, string(frame))
}

func (w *witness) Report(r *observation.Report) {
	w.o.reports = append(w.o.reports, clone(r))
	if !w.gentle {
		scribble(r)
	}
}

func (w *witness) State(s drivers.State) { w.o.live = w.o.live || s == drivers.Live }

func (w *witness) Count(f drivers.Frame) {
	if f == drivers.FrameGood {
		w.o.good++
	}
}

func (w *witness) Note(string) {}

// clone copies a report and all that it points to.
func clone(r *observation.Report) observation.Report {
	c := *r
	if r.Device != nil {
		d := *r.Device
		c.Device = &d
	}
	if r.Patient != nil {
		p := *r.Patient
		c.Patient = &p
	}
	c.Alerts = slices.Clone(r.Alerts)
	c.Observations = slices.Clone(r.Observations)
	for i := range c.Observations {
		if s := c.Observations[i].Value.Samples; s != nil {
			copied := *s
			copied.Values = slices.Clone(s.Values)
			c.Observations[i].Value.Samples = &copied
		}
	}
	return c
}

// scribble overwrites what a sink may: a machine that relies on its last report
// being as it was makes nonsense of the next.
func scribble(r *observation.Report) {
	junk := observation.Observation{Code: 0xDEAD, Instance: 0xDE, Unit: 0xBEEF,
		Value: observation.Value{Kind: observation.KindNumber, Number: observation.NewDecimal(-99999, 0)}}
	for i := range r.Observations {
		if s := r.Observations[i].Value.Samples; s != nil {
			for j := range s.Values {
				s.Values[j] = 0xDEAD
			}
		}
		r.Observations[i] = junk
	}
	for i := range r.Alerts {
		r.Alerts[i] = observation.Alert{Code: 0xDEAD, Text: "overwritten"}
	}
}

// differ says where two series of reports differ first, or nothing.
func differ(got, want []observation.Report) string {
	for i := range min(len(got), len(want)) {
		if !reflect.DeepEqual(got[i], want[i]) {
			return fmt.Sprintf("report %d is other: %s", i+1, differOne(got[i], want[i]))
		}
	}
	if len(got) != len(want) {
		return fmt.Sprintf("%d reports, not %d", len(got), len(want))
	}
	return ""
}

func differOne(got, want observation.Report) string {
	if len(got.Observations) == len(want.Observations) {
		for i := range got.Observations {
			if g, w := got.Observations[i], want.Observations[i]; !reflect.DeepEqual(g, w) {
				return fmt.Sprintf("observation %d is %s of %v, not %s of %v", i+1, describe(g), g.Time, describe(w), w.Time)
			}
		}
	}
	return fmt.Sprintf("%d observations and %d alerts of %v, not %d and %d of %v", len(got.Observations), len(got.Alerts), got.Received,
		len(want.Observations), len(want.Alerts), want.Received)
}

// describe is an observation without its times.
func describe(o observation.Observation) string {
	s := fmt.Sprintf("%v/%v.%d", o.Code, o.Private, o.Instance)
	switch o.Value.Kind {
	case observation.KindNumber:
		s += " = " + o.Value.Number.String()
	case observation.KindCode:
		s += fmt.Sprintf(" = code %v %q", o.Value.Code, o.Value.Text)
	case observation.KindText:
		s += fmt.Sprintf(" = %q", o.Value.Text)
	case observation.KindSamples:
		s += fmt.Sprintf(" = %v", *o.Value.Samples)
	}
	if o.Unit != 0 {
		s += " " + mdc.Code(o.Unit).String()
	}
	return s
}
