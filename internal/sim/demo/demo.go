// Package demo runs the whole system on one machine: simulated monitors, the
// real gatewayd as a process of its own, and the reference platform. On the way
// it pulls a cable and kills the platform, and in the end it counts what left
// one end against what the other has.
//
// gatewaysim demo calls it. It ships in no firmware.
package demo

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/bedside-gateway/gatewayd/internal/sim/pki"
	"github.com/bedside-gateway/gatewayd/internal/sim/platform"
	"github.com/bedside-gateway/gatewayd/internal/status"
)

// Options say what is shown. Gatewayd and Out are required.
type Options struct {
	Gatewayd string        // the binary
	Duration time.Duration // until the monitors stop; at least MinDuration
	Capture  string        // a recorded session to play in place of the simulated monitors
	Dir      string        // kept; empty: a temporary one, removed at the end
	PowerCut bool          // also kills gatewayd with SIGKILL, and starts it again
	TPM      string        // where its key is: TPMAuto, TPMSwtpm or TPMNone
	Seed     uint64        // of the simulated monitors
	Out      io.Writer
	Live     bool // Out is a terminal of 80 by 24 or more
}

// MinDuration is the shortest demo: the monitors need some seconds to associate.
const MinDuration = 5 * time.Second

// ErrDiffer is that the two ends do not agree. It was said how.
var ErrDiffer = errors.New("the two ends do not agree")

// demo is one run.
type demo struct {
	o        Options
	dir      string
	platform *platform.Platform
	hospital *pki.PKI
	box      box
	gateway  *gateway
	beds     []*bed
	began    time.Time
	faults   chan error // of monitors
	restarts int

	mu     sync.Mutex
	report *status.Report // the last one; nil while gatewayd does not run
	seen   map[string]bool
	vitals map[string]*vitals // by bed label
	events []string
}

// Run runs a demo to its end, or until ctx ends. Its last line of output is
// "demo: N messages acknowledged, 0 lost, 0 duplicated"; an error is returned
// where that is not so.
func Run(ctx context.Context, o Options) (err error) {
	if o.Duration < MinDuration {
		return fmt.Errorf("a demo takes at least %v: the monitors need some seconds to associate", MinDuration)
	}
	d := &demo{o: o, faults: make(chan error, 4), seen: map[string]bool{}, vitals: map[string]*vitals{}}
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer func() {
		cancel()
		running.Wait()
		err = errors.Join(err, d.close())
	}()
	if err := d.build(ctx); err != nil {
		return err
	}
	for _, b := range d.beds {
		running.Go(func() {
			if err := b.serve(ctx); err != nil {
				d.faults <- fmt.Errorf("monitor of %s: %w", b.name, err)
			}
		})
	}
	if err := d.begin(ctx); err != nil {
		return d.explain(err)
	}
	running.Go(func() { d.watch(ctx) })
	shown := make(chan struct{})
	stopShow := d.show(shown)
	err = d.play(ctx)
	stopShow()
	<-shown
	if err != nil {
		return d.explain(err)
	}
	return d.settle()
}

// explain adds gatewayd's own words to an error, unless somebody just wanted to end it.
func (d *demo) explain(err error) error {
	if errors.Is(err, context.Canceled) {
		return err
	}
	if tail := d.gateway.tail(); tail != "" {
		return fmt.Errorf("%w\nthe end of gatewayd's log:\n%s", err, tail)
	}
	return err
}

// build makes everything that is there before gatewayd runs.
func (d *demo) build(ctx context.Context) error {
	var err error
	if d.dir, err = workDir(d.o.Dir); err != nil {
		return err
	}
	if d.gateway, err = newGateway(d.o.Gatewayd, d.dir); err != nil {
		return err
	}
	if err := d.buildPlatform(); err != nil {
		return err
	}
	if d.o.Capture != "" {
		d.beds, err = recorded(d.dir, d.o)
	} else {
		d.beds, err = simulated(d.dir, d.o, max(d.o.Duration/5, 3*time.Second))
	}
	if err != nil {
		return err
	}
	for _, b := range d.beds {
		d.vitals[b.label] = &vitals{}
	}
	if err := d.openBox(ctx); err != nil {
		return err
	}
	return configure(d.dir, d.box.identity(), d.platform.Address(), d.beds)
}

func workDir(given string) (string, error) {
	if given == "" {
		return os.MkdirTemp("", "gatewayd-demo-")
	}
	if _, err := os.Stat(filepath.Join(given, configFile)); err == nil {
		return "", fmt.Errorf("%s holds a demo already: name another directory or remove this one", given)
	}
	if err := os.MkdirAll(given, 0o700); err != nil {
		return "", err
	}
	return filepath.Abs(given)
}

func (d *demo) buildPlatform() error {
	hospital, err := pki.New(pki.Options{})
	if err != nil {
		return err
	}
	d.hospital = hospital
	if err := hospital.Write(filepath.Join(d.dir, "pki")); err != nil {
		return err
	}
	identity, err := hospital.Identity("platform")
	if err != nil {
		return err
	}
	d.platform, err = platform.New(platform.Options{
		Certificates: []tls.Certificate{identity}, Roots: hospital.Roots(), Hospital: hospital, Keep: 1 << 20, Dir: filepath.Join(d.dir, "platform"), Events: d.platformEvent,
	})
	if err != nil {
		return err
	}
	return d.platform.Listen("127.0.0.1:0")
}

func (d *demo) begin(ctx context.Context) error {
	d.began = time.Now()
	d.say("the platform listens on %s, mutual TLS", d.platform.Address())
	for _, b := range d.beds {
		d.say("%s: %s at %s", b.name, b.line, b.device)
	}
	if err := d.enroll(ctx); err != nil {
		return err
	}
	if err := d.gateway.start(); err != nil {
		return err
	}
	if err := d.gateway.ready(ctx); err != nil {
		return err
	}
	d.say("gatewayd runs as process %d", d.gateway.running().Pid)
	return nil
}

// close ends and removes everything.
func (d *demo) close() error {
	if d.gateway != nil {
		d.gateway.close()
	}
	d.box.close()
	var err error
	if d.platform != nil {
		err = d.platform.Close()
	}
	for _, b := range d.beds {
		b.close()
	}
	if d.dir != "" && d.o.Dir == "" {
		err = errors.Join(err, os.RemoveAll(d.dir))
	}
	return err
}

// say tells an event: on the screen it stays in the list, in a log it is a line.
func (d *demo) say(format string, args ...any) {
	line := fmt.Sprintf("%6.1f s  %s", time.Since(d.began).Seconds(), fmt.Sprintf(format, args...))
	d.mu.Lock()
	defer d.mu.Unlock()
	d.events = append(d.events, line)
	if !d.o.Live {
		fmt.Fprintln(d.o.Out, line)
	}
}

// platformEvent follows what the platform does.
func (d *demo) platformEvent(e platform.Event) {
	switch e.Kind {
	case platform.Stored:
		d.received(e.Stored)
	case platform.Again:
		d.say("the platform got %s again and knows it by its control ID", e.Stored.ControlID)
	case platform.Connected:
		d.say("gateway %s is connected to the platform", e.Peer)
	case platform.Refused, platform.Rejected:
		d.say("the platform refused: %s", e.Text)
	}
}

func (d *demo) received(m *platform.Message) {
	for _, b := range d.beds {
		if m.Document.Location != "ICU Room 1 "+b.label {
			continue
		}
		d.mu.Lock()
		first := len(d.vitals[b.label].rows) == 0
		fresh := d.vitals[b.label].take(m.Document, time.Now())
		d.mu.Unlock()
		d.fresh(b, first, fresh)
		if rows, err := rowsOf(m.Document); err == nil && len(rows) > 0 {
			b.heard(latest(rows))
		}
	}
}

// fresh tells of the first values of a bed, and of a recording each value that
// is new: that is what one wants to see of it.
func (d *demo) fresh(b *bed, first bool, rows []platform.Row) {
	if first && len(rows) > 0 {
		d.say("the platform has the first values of %s", b.name)
	}
	if b.replay == nil {
		return
	}
	for _, r := range rows {
		d.say("  at the platform: %s %s", b.name, r)
	}
}

func (d *demo) portOf(name string) (status.Port, bool) {
	if d.report == nil {
		return status.Port{}, false
	}
	for _, p := range d.report.Ports {
		if p.Name == name {
			return p, true
		}
	}
	return status.Port{}, false
}

// watch asks gatewayd again and again how it is and which messages it keeps.
func (d *demo) watch(ctx context.Context) {
	client := status.NewClient(filepath.Join(d.dir, socketFile))
	was := map[string]string{}
	for ; ctx.Err() == nil; pause(ctx, 150*time.Millisecond) {
		r, err := client.Report(ctx)
		d.mu.Lock()
		d.report = nil
		if err == nil {
			d.report = &r
		}
		d.mu.Unlock()
		if err != nil {
			continue
		}
		d.changes(&r, was)
		// A list that breaks off gives what it gave: the next one has the rest.
		_ = client.List(ctx, "", func(e status.Entry) error {
			d.mu.Lock()
			defer d.mu.Unlock()
			d.seen[e.ControlID] = true
			return nil
		})
	}
}

// changes tells the states that changed since the last report.
func (d *demo) changes(r *status.Report, was map[string]string) {
	tell := func(what, state string) {
		if was[what] != state && state != "connected" {
			d.say("gatewayd: %s is %s", what, state)
		}
		was[what] = state
	}
	for _, p := range r.Ports {
		tell(p.Name, p.State)
	}
	for _, t := range r.Destinations {
		tell("platform", t.State)
	}
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// show draws the screen, or says now and then how it goes, until it is stopped.
func (d *demo) show(done chan<- struct{}) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		defer close(done)
		if !d.o.Live {
			for pause(ctx, 3*time.Second); ctx.Err() == nil; pause(ctx, 3*time.Second) {
				d.summary()
			}
			return
		}
		s := screen{d.o.Out}
		s.open()
		defer s.close()
		for ; ctx.Err() == nil; pause(ctx, 200*time.Millisecond) {
			s.draw(d.page(time.Now()))
		}
	}()
	return cancel
}

func (d *demo) summary() {
	d.mu.Lock()
	var lines []string
	for _, b := range d.beds {
		if v := d.vitals[b.label]; len(v.rows) > 0 {
			lines = append(lines, fmt.Sprintf("%s at the platform: %s", b.name, v.short()))
		}
	}
	spooled := 0
	if d.report != nil {
		spooled = d.report.Spool.Messages
	}
	d.mu.Unlock()
	for _, l := range lines {
		d.say("%s", l)
	}
	c := d.platform.Counts()
	d.say("spool %d, stored %d, acknowledged %d, sent again %d", spooled, c.Stored, c.Acks, c.Again)
}

// await waits until condition holds.
func (d *demo) await(ctx context.Context, what string, patience time.Duration, condition func() bool) error {
	deadline := time.Now().Add(patience)
	for !condition() {
		if err := d.broken(ctx); err != nil {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("waited %v in vain for %s", patience, what)
		}
		pause(ctx, 20*time.Millisecond)
	}
	return nil
}

// broken is why the demo cannot go on.
func (d *demo) broken(ctx context.Context) error {
	p := d.gateway.running()
	if p == nil {
		return ctx.Err()
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case err := <-d.faults:
		return err
	case <-p.done:
		return fmt.Errorf("gatewayd ended (%v)", p.err)
	default:
		return nil
	}
}

// powerCut kills gatewayd at any instant and starts it again.
func (d *demo) powerCut(ctx context.Context) error {
	for _, b := range d.beds {
		b.interrupt()
	}
	d.say("POWER CUT: gatewayd is killed (SIGKILL)")
	d.gateway.end(syscall.SIGKILL, time.Second)
	d.restarts++
	pause(ctx, time.Second)
	if err := d.box.powerCut(ctx); err != nil {
		return err
	}
	if err := d.gateway.start(); err != nil {
		return err
	}
	if err := d.gateway.ready(ctx); err != nil {
		return err
	}
	d.say("gatewayd runs again as process %d", d.gateway.running().Pid)
	return nil
}
