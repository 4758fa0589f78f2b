package drivers

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"time"

	"golang.org/x/time/rate"

	"github.com/bedside-gateway/gatewayd/drivers/port"
	"github.com/bedside-gateway/gatewayd/observation"
)

// The bounds of what a machine may do.
const (
	maxRequests = 200 // at once
	requestRate = 100 // a second, in the long run
	maxNotes    = 64  // different ones, a session
)

// host is what the machine of one session sees.
type host struct {
	s     *Session
	port  port.Port // nil when the session is over
	now   time.Time // of the call that the machine is in
	limit *rate.Limiter
	notes map[string]bool
	err   error // ends the session when the machine returns

	state       State
	good        bool // something was understood
	lastReport  time.Time
	liveSince   time.Time
	silentSince time.Time
}

// drive runs a machine until it fails, the port fails or ctx ends.
func (s *Session) drive(ctx context.Context, p port.Port) error {
	h := &host{s: s, port: p, limit: rate.NewLimiter(requestRate, maxRequests), now: s.cfg.Clock.Now()}
	defer h.end()
	settings := s.cfg.Settings
	settings.Datagrams = p.Datagrams()
	m, err := s.newMachine(settings, h)
	if err != nil {
		return err
	}
	s.ledger.sessions.Add(1)
	h.enter(Associating)
	err = h.loop(ctx, m)
	stopped := ctx.Err() != nil && errors.Is(err, ctx.Err())
	if err == nil || stopped {
		// The device may not know yet: say goodbye. The port is closed anyway,
		// so it does not matter if that fails.
		h.now = s.cfg.Clock.Now()
		_ = h.call(func() error { m.Stop(h.now); return nil })
	}
	if err == nil {
		return fmt.Errorf("no report for %v: the port is opened anew", s.info.Silence+s.timing.SilentLimit)
	}
	return err
}

// loop feeds the machine. It returns nil when the session was silent for too long.
func (h *host) loop(ctx context.Context, m Machine) error {
	s := h.s
	began := h.now
	if err := h.call(func() error { return m.Start(h.now) }); err != nil {
		return err
	}
	if len(s.heard) > 0 && s.listens() {
		if err := h.call(func() error { return m.Receive(h.now, s.heard) }); err != nil {
			return err
		}
	}
	var notBefore time.Time // of the next tick
	for {
		var wake time.Time
		if err := h.call(func() error { wake = m.Wake(); return nil }); err != nil {
			return err
		}
		if !wake.IsZero() && wake.Before(notBefore) {
			wake = notBefore
		}
		b, err := s.read(ctx, h.port, h.deadline(wake, began))
		if err != nil {
			return err
		}
		h.now = s.cfg.Clock.Now()
		if len(b) > 0 {
			if err := h.call(func() error { return m.Receive(h.now, b) }); err != nil {
				return err
			}
		}
		if !wake.IsZero() && !wake.After(h.now) {
			if err := h.call(func() error { return m.Tick(h.now) }); err != nil {
				return err
			}
			notBefore = h.now.Add(minTick)
		}
		if over, err := h.watch(began); over || err != nil {
			return err
		}
	}
}

// deadline is when the loop must look again though nothing arrives.
func (h *host) deadline(wake, began time.Time) time.Time {
	d := earlier(wake, h.now.Add(idle))
	if h.s.choice() && !h.good {
		d = earlier(d, began.Add(h.s.timing.LineWait))
	}
	switch silence := h.s.info.Silence; {
	case h.state == Live && silence > 0:
		d = earlier(d, h.lastReport.Add(silence))
	case h.state == Silent:
		d = earlier(d, h.silentSince.Add(h.s.timing.SilentLimit))
	}
	return d
}

// watch ends a session on the wrong line and tells a silent one; over is set
// when it has been silent for too long.
func (h *host) watch(began time.Time) (over bool, err error) {
	t := h.s.timing
	if h.s.choice() && !h.good && h.now.Sub(began) >= t.LineWait {
		return false, &lineError{fmt.Errorf("nothing was understood %s for %v: is the device on, and set to this output?",
			h.s.where(), t.LineWait)}
	}
	switch silence := h.s.info.Silence; {
	case h.state == Live && silence > 0 && h.now.Sub(h.lastReport) >= silence:
		h.silentSince = h.now
		h.enter(Silent)
		h.s.cfg.Log.Warn("device is silent", "port", h.s.cfg.Name, "driver", h.s.info.Name, "for", silence)
	case h.state == Silent && h.now.Sub(h.silentSince) >= t.SilentLimit:
		return true, nil
	}
	return false, nil
}

// call calls the machine. An error of the host, such as a refused request,
// counts before that of the machine, which may follow from it.
func (h *host) call(f func() error) error {
	err := h.s.contain(f)
	if h.err != nil {
		return h.err
	}
	return err
}

// end takes the session from a host that a machine may have kept.
func (h *host) end() {
	h.port = nil
	if !h.liveSince.IsZero() {
		h.s.lastLive = h.now
		if h.now.Sub(h.liveSince) >= h.s.timing.Settled {
			h.s.failures = 0
		}
	}
}

// Send transmits a frame if it may.
func (h *host) Send(frame []byte) {
	l := &h.s.ledger
	switch {
	case h.port == nil || h.err != nil:
		return
	case h.s.cfg.Settings.ListenOnly:
		l.withheld.Add(1)
		return
	}
	if err := h.s.cfg.Driver.Permit(frame); err != nil {
		l.refused.Add(1)
		h.err = fmt.Errorf("driver %s made a request that is not on its list of permitted ones, and it was not sent: %w", h.s.info.Name, err)
		return
	}
	if !h.limit.AllowN(h.now, 1) {
		l.flooded.Add(1)
		h.err = fmt.Errorf("driver %s made more than %d requests a second, and the rest was not sent", h.s.info.Name, requestRate)
		return
	}
	n, err := h.port.Write(frame)
	l.sent.Add(uint64(n))
	if err != nil {
		h.err = err
		return
	}
	l.requests.Add(1)
}

// Report passes a report on.
func (h *host) Report(r *observation.Report) {
	if h.port == nil || h.err != nil {
		return
	}
	h.understood()
	h.lastReport = h.now
	h.s.ledger.report(len(r.Observations), h.now)
	if h.state == Silent {
		h.enter(Live)
	}
	h.s.cfg.Sink(r)
}

// State takes note of how far the machine is.
func (h *host) State(state State) {
	if h.port == nil || state != Associating && state != Live || state == h.state {
		return
	}
	if state == Live {
		h.understood()
		h.lastReport = h.now
		if h.liveSince.IsZero() {
			h.liveSince = h.now
			h.s.lastErr = ""
			h.s.cfg.Log.Info("device is live", "port", h.s.cfg.Name, "driver", h.s.info.Name)
		}
	}
	h.enter(state)
}

// Count counts a frame.
func (h *host) Count(f Frame) {
	if h.port == nil || f >= frames {
		return
	}
	if f == FrameGood {
		h.understood()
	}
	h.s.ledger.frames[f].Add(1)
}

// understood keeps the line.
func (h *host) understood() { h.good, h.s.tried = true, 0 }

// Note logs a text once.
func (h *host) Note(text string) {
	if h.port == nil || h.notes[text] || len(h.notes) == maxNotes {
		return
	}
	if h.notes == nil {
		h.notes = make(map[string]bool)
	}
	h.notes[strings.Clone(text)] = true
	h.s.cfg.Log.Info(text, "port", h.s.cfg.Name, "driver", h.s.info.Name)
}

func (h *host) enter(state State) {
	h.state = state
	h.s.enter(state)
}

// nobody is the host of a machine that only shows whether its options are right.
type nobody struct{}

func (nobody) Send([]byte)                {}
func (nobody) Report(*observation.Report) {}
func (nobody) State(State)                {}
func (nobody) Count(Frame)                {}
func (nobody) Note(string)                {}

// contain calls code of a driver. A panic there becomes an error: one driver
// must not end the sessions of the others.
func (s *Session) contain(f func() error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			s.ledger.panics.Add(1)
			err = fmt.Errorf("driver %s made a mistake at %s: %s; please report this with a recording of the port", s.info.Name, panickedAt(), panicText(v))
		}
	}()
	return f()
}

// panicText says what a panic was. Only the runtime's own words are kept: a
// text that a driver panics with might hold what a patient is called.
func panicText(v any) string {
	var r runtime.Error
	if err, ok := v.(error); ok && errors.As(err, &r) {
		return r.Error()
	}
	return fmt.Sprintf("panic of a %T", v)
}

// panickedAt is the place of the panic, called by the function that recovers.
func panickedAt() string {
	var pcs [32]uintptr
	frames := runtime.CallersFrames(pcs[:runtime.Callers(3, pcs[:])])
	for {
		f, more := frames.Next()
		if f.Function != "" && !strings.HasPrefix(f.Function, "runtime.") {
			return fmt.Sprintf("%s (line %d)", f.Function[strings.LastIndexByte(f.Function, '/')+1:], f.Line)
		}
		if !more {
			return "an unknown place"
		}
	}
}
