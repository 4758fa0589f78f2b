package demo

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/bedside-gateway/gatewayd/internal/sim/platform"
)

// A step is something that happens on the way: at a share of the whole time, or
// as soon after it as the steps before it are done.
type step struct {
	at float64
	do func(context.Context) error
}

// play runs the demo up to the moment when everything has arrived.
func (d *demo) play(ctx context.Context) error {
	if err := d.await(ctx, "values of every monitor at the platform", 30*time.Second, d.allHeard); err != nil {
		return err
	}
	steps := []step{{0.55, d.death}}
	if d.o.Capture == "" { // a recording would begin anew
		steps = slices.Insert(steps, 0, step{0.30, d.cable})
	}
	if d.o.PowerCut {
		steps = append(steps, step{0.75, d.powerCut})
	}
	for _, s := range append(steps, step{1, func(context.Context) error { return nil }}) {
		if err := d.until(ctx, s.at); err != nil {
			return err
		}
		if err := s.do(ctx); err != nil {
			return err
		}
	}
	if err := d.await(ctx, "values over the cable that was pulled", 30*time.Second, d.healed); err != nil {
		return err
	}
	return d.drain(ctx)
}

// until waits for a share of the time.
func (d *demo) until(ctx context.Context, share float64) error {
	at := d.began.Add(time.Duration(share * float64(d.o.Duration)))
	for time.Now().Before(at) {
		if err := d.broken(ctx); err != nil {
			return err
		}
		pause(ctx, min(time.Until(at), 50*time.Millisecond))
	}
	return d.broken(ctx)
}

// allHeard reports whether the platform has values of each bed, or gatewayd
// refused some where it has to.
func (d *demo) allHeard() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, b := range d.beds {
		p, _ := d.portOf(b.name)
		b.dead = b.isSimulated() && !b.simulate
		if b.dead && p.Simulated == 0 || !b.dead && len(d.vitals[b.label].rows) == 0 {
			return false
		}
	}
	return true
}

// isSimulated reports whether the monitor marks its values as no patient's.
func (b *bed) isSimulated() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.marked > 0
}

func (d *demo) healed() bool {
	return !slices.ContainsFunc(d.beds, func(b *bed) bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return !b.dead && slices.ContainsFunc(b.gaps, func(g gap) bool { return g.to.IsZero() })
	})
}

// cable pulls the serial adapter of the first bed and plugs it in again.
func (d *demo) cable(ctx context.Context) error {
	b := d.beds[0]
	d.say("CABLE PULLED at %s", b.name)
	if err := b.pull(); err != nil {
		return err
	}
	pause(ctx, max(d.o.Duration/15, time.Second))
	d.say("cable of %s is in again", b.name)
	return b.pty.Plug()
}

// death kills the platform at its worst moment: it has stored a message and not
// yet acknowledged it. The gateway has to send it again, and the platform to
// know it again.
func (d *demo) death(ctx context.Context) error {
	answers, err := platform.ParseAnswers("never")
	if err != nil {
		return err
	}
	stored := d.platform.Counts().Stored
	d.platform.SetAnswer(answers...)
	// A message that came before the answers changed is acknowledged in a moment.
	var since time.Time
	if err := d.await(ctx, "a message without an acknowledgement", 30*time.Second, func() bool {
		if c := d.platform.Counts(); c.Stored == stored || c.Stored+c.Again <= c.Acks {
			since = time.Time{}
		} else if since.IsZero() {
			since = time.Now()
		}
		return !since.IsZero() && time.Since(since) > 200*time.Millisecond
	}); err != nil {
		return err
	}
	d.platform.Kill()
	d.say("PLATFORM KILLED: connection reset, nothing listens; one message is stored there and not acknowledged")
	d.platform.SetAnswer()
	pause(ctx, max(d.o.Duration/8, time.Second))
	if err := d.platform.Restart(); err != nil {
		return err
	}
	d.say("the platform is back")
	return nil
}

// drain stops the monitors and waits until nothing is under way any more.
func (d *demo) drain(ctx context.Context) error {
	for _, b := range d.beds {
		if err := b.quit(); err != nil {
			return err
		}
	}
	d.say("the monitors stop; the spool empties")
	var made uint64
	quiet := time.Now()
	return d.await(ctx, "an empty spool", 60*time.Second, func() bool {
		m, waiting, known := d.under()
		if !known || waiting > 0 || m != made || !d.silent() {
			made, quiet = m, time.Now()
		}
		return time.Since(quiet) > 1500*time.Millisecond
	})
}

// silent reports whether no monitor is live at gatewayd any more.
func (d *demo) silent() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return !slices.ContainsFunc(d.beds, func(b *bed) bool {
		p, ok := d.portOf(b.name)
		return !ok || p.State == "live"
	})
}

// under is how many messages gatewayd made, and how many are under way.
func (d *demo) under() (made uint64, waiting int, known bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.report == nil {
		return 0, 0, false
	}
	for _, p := range d.report.Ports {
		made += p.Messages
		waiting += p.Pending
	}
	return made, waiting + d.report.Spool.Messages, true
}

// settle counts both ends against each other and says the result.
func (d *demo) settle() error {
	if d.o.Live {
		for _, e := range d.events {
			fmt.Fprintln(d.o.Out, e)
		}
	}
	b := d.balance()
	acknowledged, lost, duplicated, wrong := b.result()
	fmt.Fprintf(d.o.Out, "gateway:   %s, %d acknowledged, %d in the spool\n", b.madeText(), b.delivered, b.left)
	fmt.Fprintf(d.o.Out, "platform:  %d messages stored, %d came again and were known by their control ID, %d findings\n", b.counts.Stored, b.counts.Again, b.counts.Findings)
	for _, bed := range d.beds {
		wrong = append(wrong, d.settleBed(bed)...)
	}
	for _, w := range wrong[:min(len(wrong), 20)] {
		fmt.Fprintln(d.o.Out, "DIFFERS:  ", w)
	}
	fmt.Fprintf(d.o.Out, "demo: %d messages acknowledged, %d lost, %d duplicated\n", acknowledged, lost, duplicated)
	if len(wrong) > 0 || lost > 0 || duplicated > 0 {
		return ErrDiffer
	}
	return nil
}

func (d *demo) balance() *balance {
	b := &balance{restarts: d.restarts, stored: map[string]bool{}, counts: d.platform.Counts()}
	for _, m := range d.platform.Messages() {
		b.stored[m.ControlID] = true
		for _, f := range m.Findings {
			if text := f.String(); !slices.Contains(b.findings, text) {
				b.findings = append(b.findings, text)
			}
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	b.seen = slices.Sorted(maps.Keys(d.seen))
	if d.report != nil {
		b.left = d.report.Spool.Messages
		for _, p := range d.report.Ports {
			b.made += p.Messages
		}
		for _, t := range d.report.Destinations {
			b.delivered += t.Delivered
		}
	}
	return b
}

// settleBed holds a monitor against what the platform has of it.
func (d *demo) settleBed(b *bed) []string {
	d.mu.Lock()
	p, _ := d.portOf(b.name)
	d.mu.Unlock()
	b.mu.Lock()
	defer b.mu.Unlock()
	s := settle{sent: b.sent, gaps: b.gaps, end: b.end, restarts: d.restarts, recorded: b.replay != nil}
	for _, m := range d.platform.Messages() {
		if m.Document.Location != "ICU Room 1 "+b.label {
			continue
		}
		rows, err := rowsOf(m.Document)
		if err != nil {
			return []string{err.Error()}
		}
		s.received = append(s.received, rows...)
	}
	if b.dead {
		return d.settleDead(b, p.Simulated, len(s.received))
	}
	a := s.account()
	fmt.Fprintln(d.o.Out, a.line(b.name, len(s.sent), s.recorded))
	for i := range a.wrong {
		a.wrong[i] = b.name + ": " + a.wrong[i]
	}
	return a.wrong
}

// line is what became of the values of a bed.
func (a *account) line(name string, sent int, recorded bool) string {
	text := fmt.Sprintf("%s:     %d values sent, %d arrived", name, sent, a.values)
	if len(a.wrong) > 0 {
		return text
	}
	text += ", each as it was sent"
	if recorded {
		return text + " (the others repeated a standing one or were replaced within a second)"
	}
	text += fmt.Sprintf(" (%d repeated a standing one, %d were replaced within a second, %d went out while nobody listened); %d cuff measurements, each once",
		a.standing, a.replaced, a.unheard, a.cuffs)
	if a.again > 0 {
		text += fmt.Sprintf(" (%d once more after the power cut, with the time of the first)", a.again)
	}
	return text
}

// settleDead is for a bed whose values must not arrive.
func (d *demo) settleDead(b *bed, refused uint64, arrived int) []string {
	fmt.Fprintf(d.o.Out, "%s:     %d values sent, %d refused as simulated, %d arrived\n", b.name, len(b.sent), refused, arrived)
	if arrived > 0 || refused == 0 {
		return []string{b.name + ": demonstration data are to be refused unless the port allows them"}
	}
	return nil
}
