package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"time"

	"github.com/bedside-gateway/gatewayd/internal/config"
	"github.com/bedside-gateway/gatewayd/internal/status"
	"github.com/bedside-gateway/gatewayd/northbound"
	"github.com/bedside-gateway/gatewayd/spool"
	"github.com/bedside-gateway/gatewayd/tlspolicy"
)

// A destinationUnit is a running client of a platform.
type destinationUnit struct {
	config config.Destination
	trust  []byte // the trust file as it was when the client was made
	client *northbound.Client
	log    *slog.Logger
	panics atomic.Uint64
	judged *verdicts

	cancel context.CancelFunc
	done   chan struct{}
}

// Destination makes the northbound destination of a configured one.
func Destination(t config.Destination, trust []byte, identity tlspolicy.Client) (northbound.Destination, error) {
	host, _, err := net.SplitHostPort(t.Address)
	if err != nil {
		return northbound.Destination{}, fmt.Errorf("destination %s: address: %w", t.Name, err)
	}
	roots, _, err := config.Roots(trust)
	if err != nil {
		return northbound.Destination{}, fmt.Errorf("destination %s: %s %w", t.Name, t.Trust, err)
	}
	identity.ServerName, identity.Roots, identity.MaxAge = host, roots, t.StapleMaxAge
	secured, err := identity.Config()
	if err != nil {
		return northbound.Destination{}, fmt.Errorf("destination %s: %w", t.Name, err)
	}
	out := unsecured(t)
	out.TLS = secured
	return out, nil
}

// unsecured is a destination without its TLS.
func unsecured(t config.Destination) northbound.Destination {
	out := northbound.Destination{Name: t.Name, Address: t.Address, Connect: t.Connect, ConnectTimeout: t.ConnectTimeout,
		AckTimeout: t.AckTimeout, IdleTimeout: t.IdleTimeout, Pacing: t.Pacing, StrictAck: t.StrictAck}
	if t.OnReject == "halt" {
		out.OnReject = northbound.Halt
	}
	return out
}

func (d *Daemon) newDestination(t config.Destination, trust []byte, i identity) (*destinationUnit, error) {
	judged := &verdicts{counts: map[string]uint64{}}
	to, err := d.destination(t, trust, i, judged)
	if err != nil {
		return nil, err
	}
	log := d.log.With("destination", t.Name)
	return &destinationUnit{config: t, trust: trust, log: log, judged: judged, done: make(chan struct{}),
		client: northbound.NewClient(to, d.spool.Queue(t.Name), northbound.Options{Log: d.log, Now: d.options.Now, Grace: d.options.Grace / 2})}, nil
}

func (d *Daemon) destination(t config.Destination, trust []byte, i identity, judged *verdicts) (northbound.Destination, error) {
	if i.unready != nil {
		to := unsecured(t)
		to.Unready = i.unready
		return to, nil
	}
	return Destination(t, trust, tlspolicy.Client{Identity: i.certificate, Now: d.options.Now, Floor: d.options.Floor, Judged: judged.add})
}

func (u *destinationUnit) stop()                  { u.cancel() }
func (u *destinationUnit) ended() <-chan struct{} { return u.done }

// start runs the client until stop, or the end of ctx. A client that ends or
// panics is run again: its queue has kept what it did not deliver.
func (u *destinationUnit) start(ctx context.Context) {
	ctx, u.cancel = context.WithCancel(ctx)
	go func() {
		defer close(u.done)
		for ctx.Err() == nil {
			if err := u.run(ctx); err != nil && ctx.Err() == nil {
				u.log.Error("the client of the platform ended; it is started again", "error", err)
			}
			pause(ctx, time.Second)
		}
	}()
}

func (u *destinationUnit) run(ctx context.Context) (err error) {
	defer func() {
		if v := recover(); v != nil {
			u.panics.Add(1)
			u.log.Error("a fault of the program was contained to this destination", "kind", panicKind(v), "stack", string(debug.Stack()),
				"next", "report it with this log entry")
		}
	}()
	return u.client.Run(ctx)
}

func (u *destinationUnit) report(q spool.QueueStats) status.Destination {
	s := u.client.Status()
	counts, staples := u.judged.now()
	return status.Destination{TLS: s.TLS, CBC: s.CBC, Verdicts: counts, Staples: staples, Name: u.config.Name, Address: u.config.Address, State: s.State, Since: s.Since, Connected: s.Connected,
		LastAck: s.LastAck, Acks: s.Acks, Handshakes: s.Handshakes, Attempts: s.Attempts, Fault: s.Fault, Messages: q.Messages, Bytes: q.Bytes,
		Oldest: q.Oldest, Quarantined: q.Quarantined, Delivered: q.Accepted, Durations: status.Durations(s.RoundTrips)}
}

// destination raises the conditions of a destination. A connection that is
// closed for want of messages is none.
func (c *conditions) destination(u *destinationUnit, t *status.Destination) {
	what, next, _ := strings.Cut(t.Fault, "; ")
	if next == "" {
		next = "Look at the platform"
	}
	next += ". gatewayd tries again by itself."
	switch t.State {
	case northbound.Refused:
		c.down++
		c.raise(status.Degraded, "platform-refused", t.Name, t.Since, "No session with the platform: "+what+". Messages are kept.", next)
	case northbound.KeyFault:
		c.down++
		c.raise(status.Degraded, "key-unusable", t.Name, t.Since, "No session with the platform: "+what+". Messages are kept.", next)
	case northbound.Unreachable:
		if c.report.Now.Sub(t.Since) > unreachable {
			c.down++
			c.raise(status.Degraded, "platform-unreachable", t.Name, t.Since, "No delivery: "+what+". Messages are kept.", next)
		}
	case northbound.Unanswered:
		if c.report.Now.Sub(t.Since) > unreachable {
			c.down++
			c.raise(status.Degraded, "platform-unanswered", t.Name, t.Since, "The platform gives no answer to go by: "+what+". Messages are kept.", next)
		}
	case northbound.Held:
		c.raise(status.Degraded, "platform-holding", t.Name, t.Since, "The platform takes no messages at the moment: "+what+". They are kept.", next)
	case northbound.StoreFault:
		c.raise(status.Down, "delivery-unsaved", t.Name, t.Since, "What became of a message cannot be stored, and nothing more is sent: "+what+".",
			"Look at the disk of state_dir: is it full, read-only or broken?")
	case northbound.Halted:
		c.down++
		c.raise(status.Degraded, "queue-halted", t.Name, t.Since, "The platform rejects the first message, and on_reject is halt: nothing more is sent.",
			"Look at it: gatewayd spool ls --queue "+t.Name+"; have the platform take it, or drop it.")
	}
	if t.Quarantined > 0 {
		c.raise(status.Degraded, "messages-quarantined", t.Name, time.Time{}, fmt.Sprintf("The platform rejected messages: %d are set aside.", t.Quarantined),
			"Look at the reasons: gatewayd spool ls --queue "+t.Name+"; then release or drop them.")
	}
	if u.panics.Load() > 0 {
		c.raise(status.Degraded, "program-fault", t.Name, time.Time{}, "A fault of the program was contained to this destination.",
			"Report it with the log: journalctl -u gatewayd; the condition ends with a restart.")
	}
}
