package drivers

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"time"

	"github.com/bedside-gateway/gatewayd/drivers/port"
	"github.com/bedside-gateway/gatewayd/observation"
)

// A SessionConfig is what a session is made of. Name, Driver, Open, Sink and Log are needed.
type SessionConfig struct {
	Name   string // of the port, for the log and errors
	Driver Driver
	// Settings are those of the machine; Datagrams is set by the session, from the port.
	Settings Settings
	// Lines is the line to use. Leave it empty to have the lines of the driver tried in turn.
	Lines []port.Line
	// Open opens the port, such as port.Spec.Open.
	Open func(context.Context, port.Line) (port.Port, error)
	// Sink takes the reports, one at a time. A report is only borrowed.
	Sink func(*observation.Report)
	Log  *slog.Logger

	// Clock is the time; nil is the system's.
	Clock Clock
	// Rand gives numbers from 0 up to 1 for the jitter; nil is math/rand/v2.
	Rand func() float64
	// Known, where given, names a foreign protocol that is heard on the line.
	Known  *Registry
	Timing Timing
}

// A Clock is the time. Its readings must have a monotonic part: a step of the
// wall clock must not stop a session.
type Clock interface {
	Now() time.Time
	// Wait returns after d, or earlier with the error of ctx when that ends.
	Wait(ctx context.Context, d time.Duration) error
}

// Timing are the times of a session. Zero values are the usual ones.
type Timing struct {
	// Quiet is how long a session listens on a stream before it sends
	// anything (2 s); negative: not at all.
	Quiet time.Duration
	// Contention is how long it waits for traffic that it did not ask for to
	// end, before it says that there is another master (15 s).
	Contention time.Duration
	// Linger is how long after a live session its device may still send (3 min).
	Linger time.Duration
	// LineWait is how long one of several lines is given to show a good frame (10 s).
	LineWait time.Duration
	// SilentLimit is how long a session may be silent before the port is
	// opened anew (5 min).
	SilentLimit time.Duration
	// BackoffMin and BackoffMax bound the wait after a failed session (1 s, 1 min);
	// OpenMax bounds it while the port cannot be opened, so that a replugged
	// adapter is found soon (5 s).
	BackoffMin, BackoffMax, OpenMax time.Duration
	// Settled is how long a session must have been live for the backoff to
	// begin anew (30 s).
	Settled time.Duration
}

func (t Timing) withDefaults() Timing {
	for p, usual := range map[*time.Duration]time.Duration{
		&t.Quiet: 2 * time.Second, &t.Contention: 15 * time.Second, &t.Linger: 3 * time.Minute,
		&t.LineWait: 10 * time.Second, &t.SilentLimit: 5 * time.Minute, &t.Settled: 30 * time.Second,
		&t.BackoffMin: time.Second, &t.BackoffMax: time.Minute, &t.OpenMax: 5 * time.Second,
	} {
		if *p == 0 {
			*p = usual
		}
	}
	return t
}

// What a caller may want to tell apart in the errors of a session.
var (
	// ErrOtherMaster: someone else asks the device; the session stays off.
	ErrOtherMaster = errors.New("another master is on the line")
	// ErrForeign: what arrives is not the driver's protocol; the session stays off.
	ErrForeign = errors.New("this is another protocol")
)

// The bounds of a session.
const (
	streamBuffer   = 4 << 10
	datagramBuffer = 64 << 10
	maxHeard       = 4 << 10                // of what Identify is shown
	foreignBytes   = 32                     // fewer may be noise of plugging in
	stopGrace      = 500 * time.Millisecond // for the goodbye when the context has ended
	slice          = 200 * time.Millisecond // of a read that cannot be stopped
	idle           = time.Minute            // the longest read
	minTick        = 10 * time.Millisecond  // between two ticks
)

// A Session runs a driver on a port: it opens, listens, starts the machine,
// feeds it, and begins anew after an error, until its context ends. All of it
// is one goroutine, and whatever a driver does wrong stays within it.
type Session struct {
	cfg     SessionConfig
	info    Info
	timing  Timing
	ledger  ledger
	running atomic.Bool

	// Of the goroutine of Run:
	line     int  // of cfg.Lines, the one that is used
	lined    bool // the port has line settings
	tried    int  // lines tried in vain since one was good
	failures int
	opens    int
	lastLive time.Time // when a live session ended
	lastErr  string
	buf      []byte
	heard    []byte
}

// NewSession checks the configuration, the driver's options included.
func NewSession(cfg SessionConfig) (*Session, error) {
	switch {
	case cfg.Driver == nil || cfg.Open == nil || cfg.Sink == nil || cfg.Log == nil || cfg.Name == "":
		return nil, errors.New("a session needs a name, a driver, a port to open, a sink and a log")
	}
	s := &Session{cfg: cfg, info: cfg.Driver.Info(), timing: cfg.Timing.withDefaults()}
	if s.cfg.Clock == nil {
		s.cfg.Clock = systemClock{}
	}
	if s.cfg.Rand == nil {
		s.cfg.Rand = rand.Float64
	}
	if len(s.cfg.Lines) == 0 {
		s.cfg.Lines = s.info.Lines
	}
	if len(s.cfg.Lines) == 0 { // a protocol without serial lines
		s.cfg.Lines = []port.Line{{}}
	}
	var err error
	if s.cfg.Settings.Options, err = withDefaults(s.info, cfg.Settings.Options); err != nil {
		return nil, fmt.Errorf("port %s: %w", cfg.Name, err)
	}
	if _, err := s.newMachine(s.cfg.Settings, nobody{}); err != nil {
		return nil, fmt.Errorf("port %s: %w", cfg.Name, err)
	}
	s.ledger.init(s.cfg.Clock.Now())
	return s, nil
}

// withDefaults adds the options that are not set, and refuses those that the
// driver does not have.
func withDefaults(info Info, set map[string]string) (map[string]string, error) {
	options := make(map[string]string, len(info.Options))
	var names []string
	for _, o := range info.Options {
		options[o.Name] = o.Default
		names = append(names, o.Name)
	}
	for name := range set {
		if _, ok := options[name]; ok {
			continue
		}
		if near := nearest(name, names); near != "" {
			return nil, fmt.Errorf("driver %s has no option %q: did you mean %s?", info.Name, name, near)
		}
		return nil, fmt.Errorf("driver %s has no option %q", info.Name, name)
	}
	maps.Copy(options, set)
	return options, nil
}

func (s *Session) newMachine(settings Settings, h Host) (m Machine, err error) {
	err = s.contain(func() (err error) {
		m, err = s.cfg.Driver.New(settings, h)
		return err
	})
	return m, err
}

// Run runs the session until ctx ends, and returns the error of ctx. A session
// is run once.
func (s *Session) Run(ctx context.Context) error {
	if s.running.Swap(true) {
		return fmt.Errorf("port %s: the session was started already", s.cfg.Name)
	}
	defer s.enter(Closed)
	for {
		opened, err := s.once(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		var more bool
		if more, err = s.nextLine(err); more {
			continue
		}
		s.failed(err)
		s.enter(Closed)
		d := s.backoff(opened)
		s.ledger.setNextOpen(s.cfg.Clock.Now().Add(d))
		if err := s.cfg.Clock.Wait(ctx, d); err != nil {
			return err
		}
	}
}

// once is one session, from opening the port to closing it.
func (s *Session) once(ctx context.Context) (opened bool, err error) {
	s.enter(Opening)
	line := s.cfg.Lines[s.line]
	p, err := s.cfg.Open(ctx, line)
	if err != nil {
		return false, err
	}
	// At once, whatever happens: an adapter that is plugged in again gets its
	// old name only when nobody holds the old one.
	defer p.Close()
	defer stopOnDone(ctx, p)()
	if s.opens++; s.opens > 1 {
		s.ledger.reopens.Add(1)
	}
	if s.lined = port.HasLine(p) && line != (port.Line{}); s.lined {
		s.ledger.setLine(line.String())
	}
	if want := bufferSize(p); cap(s.buf) < want {
		s.buf = make([]byte, want)
	}
	if err := s.probe(ctx, p); err != nil {
		return true, err
	}
	return true, s.drive(ctx, p)
}

func bufferSize(p port.Port) int {
	if p.Datagrams() {
		return datagramBuffer
	}
	return streamBuffer
}

// stopOnDone ends reading when ctx ends, and a write that still waits soon
// after. The function that it returns ends the watching.
func stopOnDone(ctx context.Context, p port.Port) func() {
	done, ended := make(chan struct{}), make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(ended)
		if r, ok := p.(port.ReadStopper); ok {
			r.StopReading()
		}
		grace := time.NewTimer(stopGrace)
		defer grace.Stop()
		select {
		case <-done:
		case <-grace.C:
			p.Close()
		}
	})
	return func() {
		close(done)
		if !stop() {
			<-ended
		}
	}
}

// read reads until the deadline; nothing is no error.
func (s *Session) read(ctx context.Context, p port.Port, deadline time.Time) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if _, ok := p.(port.ReadStopper); !ok {
		if soon := s.cfg.Clock.Now().Add(slice); soon.Before(deadline) {
			deadline = soon
		}
	}
	n, err := p.ReadBefore(s.buf[:bufferSize(p)], deadline)
	switch {
	case n > 0:
		s.ledger.received.Add(uint64(n))
		return s.buf[:n], nil
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case err == nil:
		return nil, errors.New("the port gave neither bytes nor an error")
	case isTimeout(err):
		return nil, nil
	}
	return nil, err
}

// nextLine goes on to the next line when nothing was understood on this one. It
// is false when there is no other, or all were tried; the error then names them.
func (s *Session) nextLine(err error) (bool, error) {
	var wrong *lineError
	if !errors.As(err, &wrong) || !s.choice() {
		return false, err
	}
	s.line = (s.line + 1) % len(s.cfg.Lines)
	if s.tried++; s.tried < len(s.cfg.Lines) {
		s.cfg.Log.Debug("next line", "port", s.cfg.Name, "line", s.cfg.Lines[s.line], "error", err)
		return true, nil
	}
	s.tried = 0
	names := make([]string, len(s.cfg.Lines))
	for i, l := range s.cfg.Lines {
		names[i] = l.String()
	}
	return false, fmt.Errorf("none of the lines fits (%s); of the last: %w", strings.Join(names, ", "), err)
}

// choice reports whether there are several lines that the port could have.
func (s *Session) choice() bool { return s.lined && len(s.cfg.Lines) > 1 }

// where says at which line, for errors.
func (s *Session) where() string {
	if !s.lined {
		return "on the port"
	}
	return "at " + s.cfg.Lines[s.line].String()
}

// backoff is how long to wait before the next attempt: twice as long after
// each failure, and half of it by chance, so that ports do not knock in step.
func (s *Session) backoff(opened bool) time.Duration {
	limit := s.timing.BackoffMax
	if !opened {
		limit = s.timing.OpenMax
	}
	d := s.timing.BackoffMin
	for i := 1; i < s.failures && d < limit; i++ {
		d *= 2
	}
	d = min(d, limit)
	return d/2 + time.Duration(s.cfg.Rand()*float64(d/2))
}

// failed notes why a session ended. It is logged when it is new, and then ever
// more rarely.
func (s *Session) failed(err error) {
	s.failures++
	s.ledger.fail(err, s.failures, s.cfg.Clock.Now())
	if err.Error() == s.lastErr && s.failures&(s.failures-1) != 0 {
		return
	}
	s.lastErr = err.Error()
	s.cfg.Log.Warn("session ended", "port", s.cfg.Name, "driver", s.info.Name, "error", err, "attempts", s.failures)
}

func (s *Session) enter(state State) { s.ledger.enter(state, s.cfg.Clock.Now()) }

type systemClock struct{}

func (systemClock) Now() time.Time { return time.Now() }

func (systemClock) Wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
