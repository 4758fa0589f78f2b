package tunnel

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/bedside-gateway/gatewayd/tlspolicy"
	"github.com/bedside-gateway/gatewayd/tunnel/inspect"
	"github.com/bedside-gateway/gatewayd/tunnel/relay"
)

// An Event is something that happened.
type Event struct {
	Kind       EventKind
	Listener   string // of a session
	Device     netip.AddrPort
	Platform   string
	ServerName string         // that the device asked for
	Address    netip.AddrPort // of the platform
	Enforced   bool           // of Opened: the certificate of this very session was judged
	Rule       string         // of RefusedOne, and of Closed where a rule cut it
	Result     string         // of Closed: how it ended, as in Counts.Ended
	Severity   Severity       // of RefusedOne and of a cut
	Loud       bool           // of RefusedOne: there were not too many by its rule for a log
	Err        error          // of RefusedOne, Closed and GateClosed: why, without a byte of what was sent

	ToPlatform, ToDevice uint64 // of Closed: bytes
}

// An EventKind is the kind of an Event.
type EventKind uint8

// The kinds of events.
const (
	Opened     EventKind = iota // a session flows
	Closed                      // a session that flowed has ended
	RefusedOne                  // a connection that did not get so far
	GateOpen                    // a platform satisfies the policy now
	GateClosed                  // it does not, or cannot be asked
)

// Status is the state of a server, for the status page and the metrics.
type Status struct {
	Listeners []ListenerStatus
	Sessions  []SessionStatus // those that flow, the oldest first
	Platforms []PlatformStatus
	Counts
	Refusals []Refusal // the latest by each rule, the gravest rule first
}

// A ListenerStatus is where devices can connect.
type ListenerStatus struct {
	Name, Address string
	Bound         string // the address as the system gave it; "" while it is not open
	Fault         error  // why it is not
	Since         time.Time
	Sessions      int
	Handshakes    int // under way
}

// A SessionStatus is a session that flows.
type SessionStatus struct {
	Listener             string
	Device               netip.AddrPort
	Since                time.Time
	Platform             string
	Address              netip.AddrPort // of the platform
	ServerName           string
	Version              uint16 // of TLS
	Enforced, Stapled    bool   // as in inspect.Verdict
	Draining             bool
	ToPlatform, ToDevice uint64 // bytes
	Last                 time.Time
}

// A PlatformStatus is what the gate knows of a platform by one name at one address.
type PlatformStatus struct {
	Platform, ServerName string
	Sessions             int
	Verdict              // the latest
	LastGood             time.Time
	// Since is from when on it has let sessions pass without a break, or let none pass.
	Since time.Time
}

// Counts are since New.
type Counts struct {
	Accepted             uint64            // connections that were taken
	Opened               uint64            // sessions that flowed
	Enforced, GateOnly   uint64            // of those: by what they were let through
	Stapled              uint64            // of Enforced: by the session's own staples
	Probes               uint64            // connections that were closed again without a byte: a health check of TCP
	Refused              map[string]uint64 // connections that did not get so far, by rule
	Ended                map[string]uint64 // sessions that flowed, by how they ended: closed, reset, broken, idle, newer, drained or gate
	Gate                 map[Result]uint64 // handshakes of the gate
	ToPlatform, ToDevice uint64            // bytes of all sessions
	Unlogged             map[string]uint64 // of Refused: those that were not logged, for there were too many of the rule
	Panics               uint64            // faults of the program that were contained
}

func newCounts() Counts {
	return Counts{Refused: map[string]uint64{}, Ended: map[string]uint64{}, Gate: map[Result]uint64{}, Unlogged: map[string]uint64{}}
}

// A Refusal is a connection that did not get through.
type Refusal struct {
	Time     time.Time
	Listener string
	Device   netip.AddrPort
	Platform string // "" where it was not known yet
	Rule     string
	Severity Severity
	Reason   string
}

func (s *Server) count(f func(*Counts)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(&s.counts)
}

// enter takes a connection in. Where there is no room, the oldest that has not
// said what it wants has to go: who is slow on purpose has been there the longest.
func (s *Server) enter(x *session) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return errStopping
	}
	s.counts.Accepted++
	var slow, same *session
	here, mine := 0, 0
	for other := range s.sessions {
		if other.listener != x.listener || other.cutAlready {
			continue
		}
		here++
		if other.phase == greeting {
			slow = older(slow, other)
		}
		if other.from.Addr() == x.from.Addr() {
			mine++
			same = older(same, other)
		}
	}
	switch {
	case mine >= x.settings.MaxPerDevice:
		s.evict(same, errNewer)
	case here >= x.settings.MaxSessions && slow != nil:
		s.evict(slow, errSlow)
	case here >= x.settings.MaxSessions:
		return errFull
	}
	s.sessions[x] = struct{}{}
	return nil
}

func older(a, b *session) *session {
	if a == nil || b.since.Before(a.since) {
		return b
	}
	return a
}

// evict cuts a session and stops counting it. It needs Server.mu.
func (s *Server) evict(x *session, why error) {
	x.cutAlready = true
	x.cut(why)
}

// leave takes a session off all lists.
func (s *Server) leave(x *session) {
	s.mu.Lock()
	delete(s.sessions, x)
	g, v := x.gate, x.judged
	s.mu.Unlock()
	if g != nil && v.Result == Good {
		g.leave(x, v)
	}
}

// route finds the gate for what a device asks for.
func (s *Server) route(x *session, serverName string) error {
	settings := x.listener.now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if name, ok := settings.route(serverName); ok {
		for key, g := range s.gates {
			if key.platform == name && key.serverName == serverName {
				x.gate, x.phase = g, judging
				return nil
			}
		}
	}
	return errRemoved
}

// admit lets a session flow.
func (s *Server) admit(x *session, v inspect.Verdict) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.ended:
		return errStopping
	case x.draining:
		return errRemoved
	}
	v.Leaf = nil // large, and not needed any more
	x.phase, x.verdict = open, v
	s.counts.Opened++
	switch {
	case !v.Enforced:
		s.counts.GateOnly++
	default:
		s.counts.Enforced++
	}
	if v.Stapled {
		s.counts.Stapled++
	}
	return nil
}

func (s *Server) opened(x *session) {
	s.o.Log.Info("tunnel: session opened", "listener", x.settings.Name, "device", x.from.String(), "platform", x.gate.key.platform, "address", x.judged.Address.String(),
		"server_name", x.verdict.ServerName, "version", tls.VersionName(x.verdict.Version), "enforced", x.verdict.Enforced)
	s.o.Events(x.event(Opened, nil))
}

func (x *session) event(kind EventKind, err error) Event {
	e := Event{Kind: kind, Listener: x.settings.Name, Device: x.from, Address: x.judged.Address, Enforced: x.verdict.Enforced, Err: err}
	if x.gate != nil {
		e.Platform, e.ServerName = x.gate.key.platform, x.gate.key.serverName
	}
	return e
}

// closed notes the end of a session that flowed.
func (s *Server) closed(x *session, err error) {
	result, up, down := resultOf(err), x.moved.ToPlatform.Load(), x.moved.ToDevice.Load()
	s.count(func(n *Counts) {
		n.Ended[result]++
		n.ToPlatform += up
		n.ToDevice += down
		x.counted = true
	})
	e := x.event(Closed, err)
	e.Result, e.ToPlatform, e.ToDevice = result, up, down
	if ours[result] { // the audit has a record of it
		e.Rule = ruleOf(err)
		e.Severity = SeverityOf(e.Rule)
	} else {
		s.logClosed(e)
	}
	s.o.Events(e)
}

func (s *Server) logClosed(e Event) {
	reason := "ended in good order"
	if e.Err != nil {
		reason = e.Err.Error()
	}
	s.o.Log.Info("tunnel: session closed", "listener", e.Listener, "device", e.Device.String(), "platform", e.Platform, "result", e.Result, "reason", reason, "to_platform", e.ToPlatform, "to_device", e.ToDevice)
}

// ours are the ends of sessions that flowed by a rule of ours.
var ours = map[string]bool{"gate": true, "newer": true, "drained": true}

// resultOf sorts the ends of sessions, for a metric's label.
func resultOf(err error) string {
	if err == nil {
		return "closed"
	}
	if _, gate := errors.AsType[errGateClosed](err); gate {
		return "gate"
	}
	switch {
	case errors.Is(err, relay.ErrIdle):
		return "idle"
	case errors.Is(err, errStopping), errors.Is(err, errRemoved):
		return "drained"
	case errors.Is(err, errNewer):
		return "newer"
	case errors.Is(err, syscall.ECONNRESET):
		return "reset"
	}
	return "broken"
}

// refused counts a connection that did not get through. The log's record of it
// is the audit's.
func (s *Server) refused(x *session, err error) {
	rule := ruleOf(err)
	s.mu.Lock()
	e := x.event(RefusedOne, err)
	e.Rule, e.Severity = rule, SeverityOf(rule)
	s.last[rule] = Refusal{Time: s.o.Now(), Listener: e.Listener, Device: x.from, Platform: e.Platform, Rule: rule, Severity: e.Severity, Reason: err.Error()}
	s.counts.Refused[rule]++
	e.Loud = s.isLoud(rule)
	s.mu.Unlock()
	s.o.Events(e)
}

// probed notes a connection that only asked whether something listens: load
// balancers and monitors do, every other second.
func (s *Server) probed(x *session) {
	s.count(func(n *Counts) { n.Probes++ })
	s.o.Log.Debug("tunnel: connection closed without a byte", "listener", x.settings.Name, "device", x.from.String())
}

// isLoud reports whether one more refusal by a rule is logged. It needs Server.mu.
func (s *Server) isLoud(rule string) bool {
	limit := s.loud[rule]
	if limit == nil {
		limit = loudness(rule)
		s.loud[rule] = limit
	}
	if limit.Allow() {
		return true
	}
	s.counts.Unlogged[rule]++
	return false
}

// ruleOf is the rule that a refusal is about, for a metric's label: a row of
// the conformance table, a rule of package inspect, or a word of ours.
func ruleOf(err error) string {
	if cut, ok := errors.AsType[*inspect.CutError](err); ok {
		return string(cut.Rule)
	}
	if r, ok := errors.AsType[*tlspolicy.RefusalError](err); ok {
		return cmp.Or(r.Rule, "TLS")
	}
	if _, ok := errors.AsType[*ReachError](err); ok {
		return "unreachable"
	}
	if end, ok := errors.AsType[*inspect.EndError](err); ok {
		return "ended by " + end.By
	}
	if late, ok := errors.AsType[errLate](err); ok {
		return late.who + " late"
	}
	for rule, kinds := range map[string][]error{
		"network":  {errNetwork, errCard},
		"rate":     {errRate},
		"limit":    {errFull, errNewer, errSlow},
		"shutdown": {errStopping, errRemoved},
		"silent":   {errSilent},
	} {
		if slices.ContainsFunc(kinds, func(kind error) bool { return errors.Is(err, kind) }) {
			return rule
		}
	}
	return "broken"
}

// tellGate says once what has changed about a platform.
func (s *Server) tellGate(e Event, v Verdict) {
	attrs := []any{"platform", e.Platform, "server_name", e.ServerName, "verdict", v.Result.String()}
	if e.Address.IsValid() { // it was reached
		attrs = append(attrs, "address", e.Address.String())
	}
	if e.Kind == GateOpen {
		s.o.Log.Info("tunnel: the gate is open", append(attrs, "until", v.Until)...)
	} else {
		s.o.Log.Error("tunnel: the gate is closed", append(attrs, "error", e.Err.Error())...)
	}
	s.o.Events(e)
}

// serve runs a session as far as it needs a goroutine: until it flows.
func (s *Server) serve(ctx context.Context, x *session) {
	s.contain(x, func() {
		if x.begin(ctx) {
			x.flow()
		}
	})
}

// contain keeps a fault of the program from the other sessions.
func (s *Server) contain(x *session, part func()) {
	defer func() {
		if v := recover(); v != nil {
			s.panicked(v)
			x.finish() // the device learns no more than that it was not answered
		}
	}()
	part()
}

// panicked does not log the value of the panic, for it could hold what a device sent.
func (s *Server) panicked(v any) {
	s.count(func(n *Counts) { n.Panics++ })
	s.o.Log.Error("tunnel: a fault of the program was contained", "kind", fmt.Sprintf("%T", v), "stack", string(debug.Stack()), "next", "report it with this log entry")
}

// Status is the state of now.
func (s *Server) Status() Status {
	s.mu.Lock()
	st := Status{Counts: s.counts}
	st.Refused, st.Ended, st.Gate, st.Unlogged = maps.Clone(s.counts.Refused), maps.Clone(s.counts.Ended), maps.Clone(s.counts.Gate), maps.Clone(s.counts.Unlogged)
	st.Refusals = slices.SortedFunc(maps.Values(s.last), graver)
	flowing, shaking := map[*listener]int{}, map[*listener]int{}
	for x := range s.sessions {
		if x.phase != open {
			shaking[x.listener]++
			continue
		}
		flowing[x.listener]++
		one := x.status()
		if !x.counted {
			st.ToPlatform += one.ToPlatform
			st.ToDevice += one.ToDevice
		}
		st.Sessions = append(st.Sessions, one)
	}
	listeners, gates := slices.Collect(maps.Values(s.listeners)), slices.Collect(maps.Values(s.gates))
	s.mu.Unlock()
	for _, l := range listeners {
		st.Listeners = append(st.Listeners, l.status(flowing[l], shaking[l]))
	}
	for _, g := range gates {
		st.Platforms = append(st.Platforms, g.status()...)
	}
	st.Platforms = current(st.Platforms)
	slices.SortFunc(st.Sessions, func(a, b SessionStatus) int { return a.Since.Compare(b.Since) })
	slices.SortFunc(st.Listeners, func(a, b ListenerStatus) int { return strings.Compare(a.Name, b.Name) })
	slices.SortFunc(st.Platforms, func(a, b PlatformStatus) int {
		return cmp.Or(strings.Compare(a.Platform, b.Platform), strings.Compare(a.ServerName, b.ServerName), a.Address.Compare(b.Address))
	})
	return st
}

func (x *session) status() SessionStatus {
	return SessionStatus{Listener: x.settings.Name, Device: x.from, Since: x.since, Platform: x.gate.key.platform, Address: x.judged.Address, ServerName: x.verdict.ServerName,
		Version: x.verdict.Version, Enforced: x.verdict.Enforced, Stapled: x.verdict.Stapled, Draining: x.draining,
		ToPlatform: x.moved.ToPlatform.Load(), ToDevice: x.moved.ToDevice.Load(), Last: x.moved.Last()}
}

func (l *listener) status(flowing, shaking int) ListenerStatus {
	l.mu.Lock()
	defer l.mu.Unlock()
	st := ListenerStatus{Name: l.settings.Name, Address: l.address, Fault: l.fault, Since: l.since, Sessions: flowing, Handshakes: shaking}
	if l.raw != nil {
		st.Bound = l.raw.Addr().String()
	}
	return st
}

// status is one row for each address of which something is known now, or one
// without an address.
func (g *gate) status() []PlatformStatus {
	g.mu.Lock()
	defer g.mu.Unlock()
	row := PlatformStatus{Platform: g.platform.Name, ServerName: g.key.serverName}
	var rows []PlatformStatus
	for _, at := range g.posts {
		if !at.isPast(g.s.o.Now()) {
			one := row
			one.Verdict, one.Sessions, one.LastGood, one.Since = at.verdict, len(at.sessions), at.good.At, at.since
			rows = append(rows, one)
		}
	}
	if rows == nil {
		rows = append(rows, row)
	}
	return rows
}

// current leaves out what says nothing about now: that a platform was not asked
// by one name where it was by another, and that it could not be asked by one name
// where it has answered since by another.
func current(all []PlatformStatus) (kept []PlatformStatus) {
	for _, p := range all {
		past := slices.ContainsFunc(all, func(other PlatformStatus) bool {
			switch {
			case other.Platform != p.Platform || p.Sessions > 0:
				return false
			case p.Result == Unjudged:
				return other.Result != Unjudged
			}
			return (p.Result == Unreachable || p.Result == Declined) && other.Result == Good && other.At.After(p.At) &&
				(other.Address == p.Address || !p.Address.IsValid())
		})
		if !past {
			kept = append(kept, p)
		}
	}
	return kept
}
