package daemon

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/bedside-gateway/gatewayd/internal/status"
	"github.com/bedside-gateway/gatewayd/tunnel"
)

// An audit keeps who was refused by the tunnels and who was cut, one record of
// the log for each, and counts them by tunnel and rule. It outlives a reload.
type audit struct {
	log *slog.Logger
	now func() time.Time

	mu     sync.Mutex
	counts map[tally]uint64
	quiet  map[tally]uint64               // of those: without a record
	latest map[tally]status.TunnelRefusal // of each
}

// A tally is what refusals are counted by.
type tally struct{ tunnel, rule string }

func newAudit(log *slog.Logger, now func() time.Time) *audit {
	return &audit{log: log, now: now, counts: map[tally]uint64{}, quiet: map[tally]uint64{}, latest: map[tally]status.TunnelRefusal{}}
}

// note takes what the tunnels tell. It does not wait.
func (a *audit) note(e tunnel.Event) {
	switch {
	case e.Kind == tunnel.RefusedOne:
		a.count(e)
		if e.Loud {
			a.record("refused", e)
		}
	case e.Kind == tunnel.Closed && e.Rule != "":
		a.record("cut", e)
	}
}

func (a *audit) count(e tunnel.Event) {
	a.mu.Lock()
	defer a.mu.Unlock()
	by := tally{e.Listener, e.Rule}
	a.counts[by]++
	if !e.Loud {
		a.quiet[by]++
	}
	a.latest[by] = status.TunnelRefusal{Time: a.now(), Tunnel: e.Listener, Device: e.Device.String(), Platform: e.Platform, Rule: e.Rule, Gate: byGate(e), Reason: e.Err.Error()}
}

// byGate reports whether a device was refused for what the gate found out, and
// not for anything of its session.
func byGate(e tunnel.Event) bool {
	if reach, ok := errors.AsType[*tunnel.ReachError](e.Err); ok {
		return !reach.Judged
	}
	return e.Severity == tunnel.GateRule
}

// record writes an entry of the audit trail; doc/operations.md promises its keys.
func (a *audit) record(event string, e tunnel.Event) {
	attrs := []any{"event", event, "tunnel", e.Listener, "rule", e.Rule, "device", e.Device.String()}
	if e.Platform != "" {
		attrs = append(attrs, "platform", e.Platform, "server_name", e.ServerName)
	}
	if e.Address.IsValid() {
		attrs = append(attrs, "address", e.Address.String())
	}
	if e.Kind == tunnel.Closed {
		attrs = append(attrs, "to_platform", e.ToPlatform, "to_device", e.ToDevice)
	}
	a.log.Log(context.Background(), weight(e.Severity), "tunnel: a device was "+event, append(attrs, "reason", e.Err.Error())...)
}

// weight is the level of a record.
func weight(s tunnel.Severity) slog.Level {
	switch s {
	case tunnel.Passing:
		return slog.LevelInfo
	case tunnel.GateRule, tunnel.Foreign:
		return slog.LevelError
	}
	return slog.LevelWarn
}

// of is what was counted of a tunnel, by rule.
func of(counts map[tally]uint64, name string) map[string]uint64 {
	out := map[string]uint64{}
	for by, n := range counts {
		if by.tunnel == name {
			out[by.rule] = n
		}
	}
	return out
}

// report adds it to the state of the tunnels.
func (a *audit) report(r *status.Tunnel) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for i := range r.Listeners {
		l := &r.Listeners[i]
		l.Refused, l.Unlogged = of(a.counts, l.Name), of(a.quiet, l.Name)
	}
	r.Refusals = slices.SortedFunc(maps.Values(a.latest), func(x, y status.TunnelRefusal) int {
		return cmp.Or(cmp.Compare(x.Tunnel, y.Tunnel), cmp.Compare(x.Rule, y.Rule))
	})
}
