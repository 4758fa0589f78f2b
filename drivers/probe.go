package drivers

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/bedside-gateway/gatewayd/drivers/port"
)

// A lineError is that nothing was understood on a line; another one may be right.
type lineError struct{ err error }

func (e *lineError) Error() string { return e.err.Error() }
func (e *lineError) Unwrap() error { return e.err }

// probe listens on a stream before anything is sent. What it hears decides:
//
//   - the driver's protocol, from a device that talks unasked or on a
//     listen-only port: go on at once;
//   - the driver's protocol, though nobody asked: wait for it to end. It is
//     what a device still sends for a session that was cut off, or the answers
//     to another master, and then ours is not begun;
//   - another protocol: stay off;
//   - nothing: go on.
func (s *Session) probe(ctx context.Context, p port.Port) error {
	s.enter(Probing)
	s.heard = s.heard[:0]
	if p.Datagrams() || s.timing.Quiet < 0 {
		return ctx.Err()
	}
	began := s.cfg.Clock.Now()
	until, total := began.Add(s.timing.Quiet), 0
	for {
		b, err := s.read(ctx, p, until)
		if err != nil {
			return err
		}
		now := s.cfg.Clock.Now()
		if len(b) > 0 {
			total += len(b)
			s.hear(b)
			match, err := s.identify()
			switch {
			case err != nil:
				return err
			case match == NoMatch && total >= foreignBytes:
				return s.foreign()
			case match == Certain && s.listens():
				return nil
			case match >= Plausible && !s.listens() && !s.ours(now):
				if now.Sub(began) >= s.timing.Contention {
					return s.otherMaster()
				}
				until, s.heard = now.Add(s.timing.Quiet), s.heard[:0]
			}
		}
		if !now.Before(until) {
			return s.nothingHeard(total)
		}
	}
}

// listens reports whether values come without asking.
func (s *Session) listens() bool { return s.info.Passive || s.cfg.Settings.ListenOnly }

// ours reports whether the device may still be sending for a session of ours.
func (s *Session) ours(now time.Time) bool {
	return !s.lastLive.IsZero() && now.Sub(s.lastLive) < s.timing.Linger
}

// hear keeps the newest of what arrived.
func (s *Session) hear(b []byte) {
	if over := len(s.heard) + len(b) - maxHeard; over > 0 {
		n := min(over, len(s.heard))
		s.heard = append(s.heard[:0], s.heard[n:]...)
		b = b[over-n:]
	}
	s.heard = append(s.heard, b...)
}

func (s *Session) identify() (m Match, err error) {
	err = s.contain(func() error {
		m = s.cfg.Driver.Identify(s.heard)
		return nil
	})
	return m, err
}

func (s *Session) nothingHeard(total int) error {
	if total > 0 || !s.listens() || !s.choice() {
		return nil
	}
	return &lineError{fmt.Errorf("nothing was heard %s for %v: is the cable in, and is the device's output switched on?",
		s.where(), s.timing.Quiet)}
}

func (s *Session) foreign() error {
	what := "not " + s.info.Title
	if s.cfg.Known != nil {
		_ = s.contain(func() error { // another driver's mistake says nothing of this one's
			if d, m := s.cfg.Known.Identify(s.heard); m == Certain {
				what += ", it is " + d.Info().Title
			}
			return nil
		})
	}
	return &lineError{fmt.Errorf("%w: what arrives %s is %s; nothing is sent: check the line settings, the device and the driver in the configuration",
		ErrForeign, s.where(), what)}
}

func (s *Session) otherMaster() error {
	return fmt.Errorf("%w: %s answers arrive that this gateway did not ask for; nothing is sent: "+
		"take the other program or cable off the line, or set listen_only = true", ErrOtherMaster, s.info.Title)
}

func isTimeout(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }

// earlier is the earlier of two times, where the zero time is never.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}
