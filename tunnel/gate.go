package tunnel

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/bedside-gateway/gatewayd/revocation"
	"github.com/bedside-gateway/gatewayd/tlsoverlay"
	"github.com/bedside-gateway/gatewayd/tlspolicy"
)

// A Result is what came of a handshake of the gate. The zero value lets nothing pass.
type Result uint8

// The results. Only Good lets sessions pass.
const (
	Unjudged    Result = iota
	Good               // the platform satisfies the policy
	Refused            // it does not: Verdict.Err has the rule
	Unreachable        // it could not be asked
	Declined           // it did not take the gateway's certificate, so it proved nothing
	results
)

// String is the result in small letters, as in metrics.
func (r Result) String() string {
	return [results]string{"unjudged", "good", "refused", "unreachable", "declined"}[r]
}

// Closed reports whether the platform was asked and nothing passes: not of one
// that was not asked yet, by its present rules.
func (r Result) Closed() bool { return r != Good && r != Unjudged }

// A Verdict is what the gate has found out about a platform.
type Verdict struct {
	Address netip.AddrPort // where; the zero value where it was not reached by its name
	At      time.Time      // when the handshake began
	Result  Result
	Err     error     // why it is not Good: a *tlspolicy.RefusalError or a *ReachError
	Until   time.Time // of Good: when the first of the responses, or the certificate, ends
	Version uint16    // of TLS, of Good
	leaves  [][]byte  // DER, of Good
	proofs  []proof   // of Good
	era     int       // of the gate: the rules that it was judged by
}

// A proof is a chain as it was sent, leaf first, and the responses to its
// certificates, fewer where some are missing.
type proof struct {
	chain     []*x509.Certificate
	responses [][]byte
}

// showed reports whether all responses are those that the gate has seen with
// the same certificates: then there is nothing new in them.
func (v *Verdict) showed(p proof) bool {
	for i, response := range p.responses {
		if len(response) > 0 && !slices.ContainsFunc(v.proofs, func(seen proof) bool { return seen.has(p.chain[i], response) }) {
			return false
		}
	}
	return true
}

func (p proof) has(certificate *x509.Certificate, response []byte) bool {
	for i, r := range p.responses {
		if bytes.Equal(r, response) && p.chain[i].Equal(certificate) {
			return true
		}
	}
	return false
}

// state is a proof as a VerifyConnection takes it.
func (p proof) state() (tls.ConnectionState, error) {
	state := tls.ConnectionState{Version: tls.VersionTLS12, PeerCertificates: p.chain}
	return state, setResponses(&state, p.responses)
}

// A gateKey is what has to be the same for a verdict to count.
type gateKey struct{ platform, address, connect, serverName string }

// A gate judges one platform by one name.
//
// A session waits for a handshake that began after its ClientHello was
// complete. While one is under way, all that come share the next: so a thousand
// reconnecting devices cost two or three handshakes, and none of them rides on
// one that began before it was there.
type gate struct {
	s   *Server
	key gateKey

	judging sync.Mutex             // around seen: one VerifyConnection at a time
	seen    [][]revocation.Verdict // of the one under way, by path to a root

	mu       sync.Mutex
	platform Platform // as it is configured now
	era      int      // counts the changes of what it judges by
	tls      *tls.Config
	lanes    map[netip.AddrPort]*lane // handshakes under way, by what is dialled
	posts    map[netip.AddrPort]*post // what is known, by address; zero: by name
	latest   netip.AddrPort           // where the name led last
}

// A lane is a handshake under way and the one behind it.
type lane struct{ running, next *flight }

// A flight is a handshake that several wait for.
type flight struct {
	done    chan struct{}
	verdict Verdict // once done
}

// A post is an address with what is known of it and who is there.
type post struct {
	verdict  Verdict   // the latest
	good     Verdict   // the latest that was Good
	since    time.Time // from when on the latest have been of one kind: they let sessions pass, or they do not
	sessions map[*session]struct{}
	stop     context.CancelFunc // of what watches it; nil while nobody is there
	kick     chan struct{}
}

func newGate(s *Server, key gateKey, p Platform) (*gate, error) {
	g := &gate{s: s, key: key, lanes: map[netip.AddrPort]*lane{}, posts: map[netip.AddrPort]*post{}}
	config, err := g.policy(p)
	if err != nil {
		return nil, err
	}
	g.platform, g.tls = p, config
	return g, nil
}

// policy is the configuration of the gate's handshakes with a platform.
func (g *gate) policy(p Platform) (*tls.Config, error) {
	host, err := splitAddress(p.Address)
	if err != nil {
		return nil, err
	}
	config, err := tlspolicy.Client{ServerName: host, Roots: p.Roots, Identity: p.Identity, Now: g.s.o.Now, Floor: g.s.o.Floor,
		Memory: g.s.o.Memory, MaxAge: p.StapleMaxAge, Judged: func(v []revocation.Verdict) { g.seen = append(g.seen, v) }}.Config()
	if err != nil {
		return nil, err
	}
	// What the session asks for, so that the platform shows what it shows the
	// session. What its certificate has to name is fixed in the policy.
	config.ServerName = g.key.serverName
	return config, nil
}

// sameJudge reports whether two settings lead to the same verdict.
func sameJudge(a, b Platform) bool {
	return a.Roots.Equal(b.Roots) && reflect.DeepEqual(a.Identity.Certificate, b.Identity.Certificate) && a.StapleMaxAge == b.StapleMaxAge && a.TwoCertificates == b.TwoCertificates
}

// configure takes new settings, which newGate has tried. What was judged by
// other rules is judged anew at once, also where nobody waits for it: an operator
// who has corrected something wants to see what comes of it.
func (g *gate) configure(p Platform) {
	config, err := g.policy(p)
	g.mu.Lock()
	changed := err == nil && !sameJudge(g.platform, p)
	g.platform = p
	if changed {
		g.tls = config
		g.era++
	}
	again := changed && g.forgetVerdicts()
	g.mu.Unlock()
	if again {
		g.join(netip.AddrPort{})
	}
}

// forgetVerdicts has the addresses with sessions judged anew, and reports whether
// there were others. It needs gate.mu.
func (g *gate) forgetVerdicts() (others bool) {
	for address, at := range g.posts {
		at.verdict, at.since = Verdict{Address: address}, time.Time{}
		if at.stop != nil {
			at.wake()
			continue
		}
		delete(g.posts, address)
		others = true
	}
	return others
}

// wake has a post judged now.
func (p *post) wake() {
	select {
	case p.kick <- struct{}{}:
	default: // it was told
	}
}

// pass is the verdict for a session whose hello has come: one that is young
// enough, or one of a handshake that begins now.
func (g *gate) pass(ctx context.Context) (Verdict, error) {
	if v, ok := g.young(); ok {
		return v, nil
	}
	return g.ask(ctx, netip.AddrPort{})
}

// young is a good verdict within the configured age.
func (g *gate) young() (Verdict, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	at := g.posts[g.latest]
	if g.platform.VerdictAge == 0 || at == nil || at.verdict.Result != Good {
		return Verdict{}, false
	}
	now := g.s.o.Now()
	age := now.Sub(at.verdict.At)
	return at.verdict, age >= 0 && age <= g.platform.VerdictAge && now.Before(at.verdict.Until)
}

// ask waits for a handshake that begins after the call: at an address, or at
// what the name leads to.
func (g *gate) ask(ctx context.Context, at netip.AddrPort) (Verdict, error) {
	f := g.join(at)
	select {
	case <-f.done:
		return f.verdict, nil
	case <-ctx.Done():
		return Verdict{}, ctx.Err()
	}
}

func (g *gate) join(at netip.AddrPort) *flight {
	g.mu.Lock()
	defer g.mu.Unlock()
	l := g.lanes[at]
	if l == nil {
		l = &lane{running: &flight{done: make(chan struct{})}}
		g.lanes[at] = l
		f := l.running
		g.s.running.Go(func() { g.fly(l, f, at) })
		return f
	}
	if l.next == nil {
		l.next = &flight{done: make(chan struct{})}
	}
	return l.next
}

// fly makes one handshake after the other while somebody waits for the next.
func (g *gate) fly(l *lane, f *flight, at netip.AddrPort) {
	for f != nil {
		f.verdict = g.judged(at)
		g.publish(f.verdict, at)
		g.mu.Lock()
		done := f
		f, l.running, l.next = l.next, l.next, nil
		if f == nil {
			delete(g.lanes, at)
		}
		g.mu.Unlock()
		close(done.done)
	}
}

// judged is a verdict by the rules that are in force when it is there.
func (g *gate) judged(at netip.AddrPort) Verdict {
	for {
		era := g.now()
		v := g.contained(g.s.ctx, at)
		v.era = era
		if g.now() == era {
			return v
		}
	}
}

func (g *gate) now() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.era
}

// publish notes a verdict, tells what changed, and cuts the sessions that it is
// about. One that was under way when the gateway stopped says nothing of the platform.
func (g *gate) publish(v Verdict, asked netip.AddrPort) {
	if g.s.ctx.Err() != nil {
		return
	}
	g.s.count(func(n *Counts) { n.Gate[v.Result]++ })
	g.mu.Lock()
	var cut []*session
	var why error
	at, changed := g.note(v, asked)
	if at != nil {
		cut, why = g.condemned(at)
	}
	g.mu.Unlock()
	if changed {
		g.s.tellGate(Event{Kind: gateEvents[v.Result], Platform: g.key.platform, ServerName: g.key.serverName, Address: v.Address, Err: v.Err}, v)
	}
	for _, x := range cut {
		x.cut(why)
	}
}

// note puts a verdict into its place, and reports whether it says something new.
// It needs gate.mu.
func (g *gate) note(v Verdict, asked netip.AddrPort) (at *post, changed bool) {
	if v.era != g.era { // its rules are past
		return nil, false
	}
	since := g.since(v, asked)
	moved := !asked.IsValid() && g.move(v.Address)
	at = g.post(v.Address)
	before := at.verdict
	switch {
	case v.At.Before(before.At): // another way to the address was faster
		return nil, false
	case at.isPast(v.At):
		before = Verdict{} // it is told again
	}
	at.verdict, at.since = v, since
	if v.Result == Good {
		at.good = v
	}
	return at, before.Result != v.Result || moved || v.Err != nil && before.Err != nil && !sameFault(before.Err, v.Err)
}

// sameFault reports whether two verdicts have the same against a platform. What a
// refusal says of times, that of our own clock for one, is another at each look.
func sameFault(a, b error) bool {
	x, isX := errors.AsType[*tlspolicy.RefusalError](a)
	y, isY := errors.AsType[*tlspolicy.RefusalError](b)
	if !isX || !isY {
		return a.Error() == b.Error()
	}
	was, _ := errors.AsType[revocation.Verdict](a)
	is, _ := errors.AsType[revocation.Verdict](b)
	return x.Rule == y.Rule && x.Certificate == y.Certificate && x.Next == y.Next && was.Kind == is.Kind
}

// since is from when on verdicts have been of the kind of this one where it is
// about, which is that of its name where that leads elsewhere now.
func (g *gate) since(v Verdict, asked netip.AddrPort) time.Time {
	was := g.posts[asked]
	if was == nil && !asked.IsValid() {
		was = g.posts[g.latest]
	}
	if was == nil || was.isPast(v.At) || was.verdict.Result == Unjudged || was.verdict.Result.Closed() != v.Result.Closed() {
		return v.At
	}
	return was.since
}

// move is that the name leads to an address now, or to none. It reports whether it
// led to another before. What is known of the name, and of where it led, is past.
func (g *gate) move(to netip.AddrPort) bool {
	was := g.posts[g.latest]
	moved := was != nil && (g.latest != to || g.posts[netip.AddrPort{}] != nil)
	maps.DeleteFunc(g.posts, func(a netip.AddrPort, p *post) bool { return a != to && len(p.sessions) == 0 })
	if to.IsValid() {
		g.latest = to
		return moved
	}
	if was != nil {
		g.post(to).good = was.good
	}
	return false
}

var gateEvents = [results]EventKind{Good: GateOpen, Refused: GateClosed, Unreachable: GateClosed, Declined: GateClosed, Unjudged: GateClosed}

// maxPosts bounds what is remembered of addresses that a name led to once.
const maxPosts = 32

func (g *gate) post(at netip.AddrPort) *post {
	if p := g.posts[at]; p != nil {
		return p
	}
	if len(g.posts) >= maxPosts {
		maps.DeleteFunc(g.posts, func(_ netip.AddrPort, p *post) bool { return len(p.sessions) == 0 })
	}
	p := &post{sessions: map[*session]struct{}{}, kick: make(chan struct{}, 1)}
	g.posts[at] = p
	return p
}

// condemned are the sessions at an address that have to end, and why: the
// platform was refused, or could not be asked for so long that what it proved
// last has run out.
func (g *gate) condemned(at *post) ([]*session, error) {
	why := at.verdict.Err
	switch {
	case g.platform.OnRefused == Keep || why == nil:
		return nil, nil
	case at.verdict.Result == Refused:
	case g.s.o.Now().Before(g.heldUntil(at)):
		return nil, nil
	case at.good.Until.IsZero():
		why = fmt.Errorf("what the platform has proved last does not hold by the rules of now, and since then nothing new: %w", why)
	default:
		why = fmt.Errorf("what the platform has proved last held until %s, and since then nothing new: %w", at.good.Until.UTC().Format(time.RFC3339), why)
	}
	return slices.Collect(maps.Keys(at.sessions)), errGateClosed{why}
}

// heldUntil is until when what was proved last at an address holds by the rules of
// now, which may have changed since; the zero value where it does not. So a
// platform does not gain by giving no answer. It needs gate.mu.
func (g *gate) heldUntil(at *post) time.Time {
	if at.good.era == g.era {
		return at.good.Until
	}
	at.good.era = g.era
	for _, p := range at.good.proofs {
		state, err := p.state()
		until := time.Time{}
		if err == nil {
			until, err = g.prove(g.tls.VerifyConnection, state, g.platform.StapleMaxAge)
		}
		if err != nil {
			at.good.Until = time.Time{}
			break
		}
		at.good.Until = earlier(at.good.Until, until)
	}
	return at.good.Until
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// prove judges what a platform shows, and gives until when that holds: the first
// of its responses ends, by itself or by the greatest age, or its certificate does.
func (g *gate) prove(verify func(tls.ConnectionState) error, state tls.ConnectionState, maxAge time.Duration) (until time.Time, err error) {
	g.judging.Lock()
	defer g.judging.Unlock()
	g.seen = nil
	if err := verify(state); err != nil {
		return time.Time{}, err
	}
	until = state.PeerCertificates[0].NotAfter
	for _, one := range g.seen[len(g.seen)-1] { // of the path that is good
		until = earlier(until, one.NextUpdate)
		if maxAge > 0 {
			until = earlier(until, one.ThisUpdate.Add(maxAge))
		}
	}
	return until, nil
}

// pastAfter is for how long a verdict that lets nobody pass is worth a look
// where nobody asks any more.
const pastAfter = 15 * time.Minute

// isPast reports whether a verdict says nothing about now: whoever comes next has
// the platform judged anew.
func (p *post) isPast(now time.Time) bool {
	return len(p.sessions) == 0 && p.verdict.Result.Closed() && now.Sub(p.verdict.At) > pastAfter
}

// enter registers a session at the address that was judged for it. It fails
// where the platform was refused since.
func (g *gate) enter(x *session, v Verdict) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	at := g.post(v.Address)
	if at.verdict.Result == Refused && at.verdict.At.After(v.At) {
		return errGateClosed{at.verdict.Err}
	}
	at.sessions[x] = struct{}{}
	if at.stop == nil {
		ctx, stop := context.WithCancel(g.s.ctx)
		at.stop = stop
		g.s.running.Go(func() { g.watch(ctx, v.Address, at.kick) })
	}
	if v.era != g.era {
		at.wake()
	}
	return nil
}

func (g *gate) leave(x *session, v Verdict) {
	g.mu.Lock()
	defer g.mu.Unlock()
	at := g.posts[v.Address]
	if at == nil {
		return // it did not enter
	}
	delete(at.sessions, x)
	if len(at.sessions) == 0 && at.stop != nil {
		at.stop()
		at.stop = nil
	}
}

// watch judges an address again and again while sessions are open there.
func (g *gate) watch(ctx context.Context, address netip.AddrPort, kick <-chan struct{}) {
	timer := time.NewTimer(g.pause(address))
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-kick:
		case <-timer.C:
			g.expire(address)
		}
		if _, err := g.ask(ctx, address); err != nil {
			return
		}
		timer.Reset(g.pause(address))
	}
}

// expire cuts the sessions at an address whose proof has run out meanwhile.
func (g *gate) expire(address netip.AddrPort) {
	g.mu.Lock()
	var cut []*session
	var why error
	if at := g.posts[address]; at != nil {
		cut, why = g.condemned(at)
	}
	g.mu.Unlock()
	for _, x := range cut {
		x.cut(why)
	}
}

const (
	shortPause = time.Second      // of one whose responses end now
	retryPause = 30 * time.Second // of a platform that cannot be asked
)

// pause is until the next look: the configured time, or sooner where a response
// ends before, or the platform could not be asked. The look before the end leaves
// room for a platform that does not answer: so it is known then.
func (g *gate) pause(address netip.AddrPort) time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	at, d := g.posts[address], g.platform.Recheck
	if at == nil {
		return d
	}
	left := at.good.Until.Sub(g.s.o.Now())
	switch {
	case at.verdict.Result != Good && left <= 0:
		return min(d, retryPause)
	case at.verdict.Result != Good:
		return min(d, retryPause, left)
	case left > g.s.o.GateTimeout+shortPause:
		return min(d, left-g.s.o.GateTimeout)
	}
	return min(d, max(left, shortPause))
}

// stapled judges a flight of a session by its own staples, by the same policy. A
// leaf that is known has a good response for every certificate, by the verdict
// that lets the session pass: what it staples itself need not be all of them, and
// what is there has to be good as well.
func (g *gate) stapled(v Verdict, chain []*x509.Certificate, responses [][]byte, known bool) error {
	p := proof{chain, responses}
	if known && v.showed(p) {
		return nil
	}
	state, err := p.state()
	if err != nil {
		return err
	}
	g.mu.Lock()
	config := g.tls
	g.mu.Unlock()
	g.judging.Lock()
	defer g.judging.Unlock()
	g.seen = nil
	err = config.VerifyConnection(state)
	if err == nil || !known {
		return err
	}
	return against(g.seen, err)
}

// against is what is stapled against a platform: nil where there is a path on
// which each response that came is good, else what is wrong with the first.
func against(paths [][]revocation.Verdict, err error) error {
	for n, verdicts := range paths {
		bad := slices.IndexFunc(verdicts, func(v revocation.Verdict) bool { return !v.Good() && v.Kind != revocation.Missing })
		switch {
		case bad < 0:
			return nil
		case n == 0:
			err = verdicts[bad]
		}
	}
	return err
}

// setResponses puts responses where the overlay's VerifyConnection looks for
// them. The field is the overlay's, so it is found by its name.
func setResponses(state *tls.ConnectionState, responses [][]byte) error {
	field := reflect.ValueOf(state).Elem().FieldByName("OCSPResponses")
	if !field.IsValid() || field.Type() != reflect.TypeOf(responses) {
		return tlsoverlay.ErrMissing
	}
	field.Set(reflect.ValueOf(responses))
	return nil
}

// header reports whether sessions begin with a header of the PROXY protocol.
func (g *gate) header() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.platform.ProxyHeader
}
