package tunnel

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/bedside-gateway/gatewayd/internal/sim/responder"
)

// A storm of devices costs a handful of handshakes, and no session rides on one
// that began before it was there.
func TestAReconnectStormSharesTheNextHandshake(t *testing.T) {
	t.Parallel()
	f := newFar(t)
	w := newWard(t, f, nil)
	g := w.anyGate()
	const storm = 200
	var worst atomic.Int64
	var all sync.WaitGroup
	for range storm {
		all.Go(func() {
			arrived := time.Now()
			v, err := g.pass(t.Context())
			if err != nil || v.Result != Good {
				t.Errorf("%v, %v", v.Err, err)
			}
			if early := arrived.Sub(v.At); early > 0 {
				worst.Store(max(worst.Load(), int64(early)))
			}
		})
	}
	all.Wait()
	if worst.Load() > 0 {
		t.Errorf("a session was let through by a handshake that began %v before it came", time.Duration(worst.Load()))
	}
	// All that come while one is under way share the next: there are as many
	// as fit into the time of the storm, one after the other.
	if n := f.connections.Load(); n > storm/4 {
		t.Errorf("%d handshakes for %d sessions", n, storm)
	}
}

func (w *ward) anyGate() *gate {
	w.Server.mu.Lock()
	defer w.Server.mu.Unlock()
	for key, g := range w.gates {
		if key.serverName != "" {
			return g
		}
	}
	w.t.Fatal("no gate")
	return nil
}

func TestOneHandshakeAtATime(t *testing.T) {
	t.Parallel()
	f := newFar(t, face{mute: true})
	w := newWard(t, f, func(o *Options) { o.GateTimeout = 200 * time.Millisecond })
	g := w.anyGate()
	ctx := t.Context()
	first := g.join(netip.AddrPort{})
	second, third := g.join(netip.AddrPort{}), g.join(netip.AddrPort{})
	if first == second || second != third {
		t.Error("those who come while one is under way have to share the next")
	}
	for f.connections.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	if n := f.connections.Load(); n != 1 {
		t.Errorf("%d handshakes at once", n)
	}
	v, err := g.ask(ctx, netip.AddrPort{})
	must(t, err)
	if v.Result != Unreachable || !strings.Contains(v.Err.Error(), "did not finish") || f.connections.Load() != 2 {
		t.Errorf("%v %v after %d connections", v.Result, v.Err, f.connections.Load())
	}
}

func TestAGoodVerdictIsReusedOnlyWithinItsAge(t *testing.T) {
	t.Parallel()
	var offset atomic.Int64
	f := newFar(t)
	w := newWard(t, f, func(o *Options) {
		o.Now = func() time.Time { return time.Now().Add(time.Duration(offset.Load())) }
		o.Config.Platforms[0].VerdictAge = time.Minute
	})
	g := w.anyGate()
	look := func(want int64) {
		t.Helper()
		v, err := g.pass(t.Context())
		if err != nil || v.Result != Good {
			t.Fatalf("%v %v", v.Err, err)
		}
		if n := f.connections.Load(); n != want {
			t.Errorf("%d handshakes, want %d", n, want)
		}
	}
	look(1)
	look(1)
	offset.Store(int64(50 * time.Second))
	look(1)
	offset.Store(int64(61 * time.Second))
	look(2)
	offset.Store(int64(30 * time.Second)) // a clock that was set back makes nothing younger
	look(3)
}

func TestAVerdictEndsWithItsResponses(t *testing.T) {
	t.Parallel()
	w := newWard(t, newFar(t), func(o *Options) { o.Config.Platforms[0].VerdictAge = 100 * 24 * time.Hour })
	v, err := w.anyGate().pass(t.Context())
	must(t, err)
	if left := time.Until(v.Until); left > responder.DefaultLifetime || left < responder.DefaultLifetime-2*time.Hour {
		t.Errorf("it holds for %v", left)
	}
}

// A response that may be only so old proves nothing beyond that age.
func TestAVerdictEndsWithTheGreatestAgeOfItsResponses(t *testing.T) {
	t.Parallel()
	w := newWard(t, newFar(t), func(o *Options) { o.Config.Platforms[0].StapleMaxAge = 3 * time.Hour })
	v, err := w.anyGate().pass(t.Context())
	must(t, err)
	if left := time.Until(v.Until); left > 3*time.Hour || left < time.Hour {
		t.Errorf("it holds for %v", left)
	}
}

func TestARefusalIsNotReused(t *testing.T) {
	t.Parallel()
	f := newFar(t, face{identity: "platform-revoked"}, face{})
	w := newWard(t, f, func(o *Options) { o.Config.Platforms[0].VerdictAge = time.Hour })
	if _, err := w.connect(w.deviceConfig(tls.VersionTLS12)); err == nil {
		t.Fatal("it got through")
	}
	w.echo(w.device(tls.VersionTLS12), "mended")
	if text := w.log.String(); strings.Count(text, `msg="tunnel: the gate is closed"`) != 1 || strings.Count(text, `msg="tunnel: the gate is open"`) != 1 {
		t.Error(text)
	}
}

// While sessions are open the platform is judged again and again.
func TestOpenSessionsOfARefusedPlatformAreCut(t *testing.T) {
	t.Parallel()
	for _, keep := range []bool{false, true} {
		for _, version := range versions {
			f := newFar(t)
			w := newWard(t, f, func(o *Options) {
				p := &o.Config.Platforms[0]
				p.Recheck = 30 * time.Millisecond
				if keep {
					p.OnRefused = Keep
				}
			})
			c := w.device(version)
			w.echo(c, "ping")
			f.shows(face{identity: "platform-revoked"})
			w.until("refusal", func(s Status) bool { return s.Gate[Refused] > 0 })
			if keep {
				w.until("further looks", func(s Status) bool { return s.Gate[Refused] > 2 })
				w.echo(c, "still here")
				if s := w.Status(); s.Platforms[0].Result != Refused || len(s.Sessions) != 1 {
					t.Errorf("%+v", s)
				}
				continue
			}
			if _, err := c.Read(make([]byte, 1)); err == nil {
				t.Error("it lives on")
			}
			if e := w.event(Closed); !strings.Contains(e.Err.Error(), "revoked") {
				t.Error(e.Err)
			}
			if text := w.log.String(); strings.Count(text, `msg="tunnel: the gate is closed"`) != 1 {
				t.Error("not told once:", text)
			}
		}
	}
}

// A platform that cannot be asked keeps its sessions until what it has proved runs out.
func TestSessionsOutliveAnUnreachablePlatformOnlyAsLongAsItsResponses(t *testing.T) {
	t.Parallel()
	var offset atomic.Int64
	f := newFar(t)
	w := newWard(t, f, func(o *Options) {
		o.Now = func() time.Time { return time.Now().Add(time.Duration(offset.Load())) }
		o.Config.Platforms[0].Recheck = 30 * time.Millisecond
	})
	c := w.device(tls.VersionTLS13)
	f.shows(face{hangUp: true})
	w.until("that it cannot be asked", func(s Status) bool { return s.Gate[Unreachable] > 1 })
	w.echo(c, "still here")
	offset.Store(int64(responder.DefaultLifetime))
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("it lives on")
	}
	if e := w.event(Closed); !strings.Contains(e.Err.Error(), "the gate is closed") {
		t.Error(e.Err)
	}
}

// Who is judged anew by other rules and gives no answer is judged by what was proved before.
func TestRulesThatChangeAreHeldAgainstWhatWasProvedBefore(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		change func(p *Platform, foreign *x509.Certificate)
		want   string // why sessions are cut; "" where they are not
	}{
		"other roots": {func(p *Platform, foreign *x509.Certificate) {
			p.Roots = x509.NewCertPool()
			p.Roots.AddCert(foreign)
		}, "does not hold by the rules of now"},
		"an age that is past":   {func(p *Platform, _ *x509.Certificate) { p.StapleMaxAge = time.Second }, "does not hold by the rules of now"},
		"an age that is coming": {func(p *Platform, _ *x509.Certificate) { p.StapleMaxAge = 20 * time.Hour }, ""},
		"roots beside the old": {func(p *Platform, foreign *x509.Certificate) {
			p.Roots = p.Roots.Clone()
			p.Roots.AddCert(foreign)
		}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFar(t)
			foreign, err := f.Find("ecc-foreign-root")
			must(t, err)
			w := newWard(t, f, nil)
			c := w.device(tls.VersionTLS13)
			w.echo(c, "ping")
			f.shows(face{hangUp: true})
			must(t, w.Update(w.changed(func(c *Config) { test.change(&c.Platforms[0], foreign.Certificate) })))
			w.until("that it cannot be asked", func(s Status) bool { return s.Gate[Unreachable] == 1 })
			if test.want == "" {
				w.echo(c, "still here")
				return
			}
			if e := w.event(Closed); e.Result != "gate" || e.Rule != "unreachable" || !strings.Contains(e.Err.Error(), test.want) {
				t.Errorf("%+v", e)
			}
		})
	}
}

// However long the gate would wait before it asks again: the proof ends when it ends.
func TestASessionEndsWithTheProofOfAPlatformThatCannotBeAsked(t *testing.T) {
	t.Parallel()
	var offset atomic.Int64
	f := newFar(t)
	w := newWard(t, f, func(o *Options) {
		o.Now = func() time.Time { return time.Now().Add(time.Duration(offset.Load())) }
		o.GateTimeout = 20 * time.Second
	})
	v, err := w.anyGate().pass(t.Context())
	must(t, err)
	offset.Store(int64(time.Until(v.Until) - 1500*time.Millisecond))
	c := w.device(tls.VersionTLS13)
	w.echo(c, "ping")
	f.shows(face{hangUp: true}, face{mute: true})
	must(t, w.Update(w.changed(func(c *Config) { c.Platforms[0].StapleMaxAge = 1000 * time.Hour }))) // it is asked now
	w.until("that it cannot be asked", func(s Status) bool { return s.Gate[Unreachable] > 0 })
	must(t, c.SetReadDeadline(time.Now().Add(10*time.Second)))
	if _, err := c.Read(make([]byte, 1)); err == nil || isTimeout(err) {
		t.Errorf("it lives on: %v", err)
	}
	if e := w.event(Closed); e.Result != "gate" || e.Rule != "unreachable" || !strings.Contains(e.Err.Error(), "what the platform has proved last held until") {
		t.Errorf("%+v", e)
	}
}

func TestWhenThePlatformIsAskedAgain(t *testing.T) {
	t.Parallel()
	now := time.Now()
	at := netip.MustParseAddrPort("192.0.2.1:1")
	for _, test := range []struct {
		name   string
		result Result
		left   time.Duration // of the last proof
		pause  time.Duration
	}{
		{"good, and for long", Good, time.Hour, 5 * time.Minute},
		{"good, and its end leaves room for an answer", Good, 100 * time.Second, 90 * time.Second},
		{"good, and its end is near", Good, 5 * time.Second, 5 * time.Second},
		{"good, and at its end", Good, 0, shortPause},
		{"it cannot be asked", Unreachable, time.Hour, retryPause},
		{"it cannot be asked, and its end is near", Unreachable, 3 * time.Second, 3 * time.Second},
		{"it cannot be asked, and sessions are kept past its end", Unreachable, -time.Hour, retryPause},
		{"refused, and sessions are kept", Refused, 3 * time.Second, 3 * time.Second},
	} {
		g := &gate{s: &Server{o: Options{Now: func() time.Time { return now }, GateTimeout: 10 * time.Second}}, platform: Platform{Recheck: 5 * time.Minute}}
		g.posts = map[netip.AddrPort]*post{at: {verdict: Verdict{Result: test.result}, good: Verdict{Until: now.Add(test.left)}}}
		if got := g.pause(at); got != test.pause {
			t.Errorf("%s: after %v, want %v", test.name, got, test.pause)
		}
	}
}

// What could not be asked by a name that nobody uses any more is no state of now.
func TestAFailureByANameThatNobodyAsksForIsForgotten(t *testing.T) {
	t.Parallel()
	var offset atomic.Int64
	f := newFar(t, face{hangUp: true}, face{})
	w := newWard(t, f, func(o *Options) {
		o.Now = func() time.Time { return time.Now().Add(time.Duration(offset.Load())) }
		o.Config.Listeners[0].Routes[0].ServerNames = []string{"alias.test"}
	})
	by := func(name string) *tls.Config {
		c := w.deviceConfig(tls.VersionTLS12)
		c.ServerName, c.InsecureSkipVerify = name, true
		return c
	}
	rows := func() string {
		var all []string
		for _, p := range w.Status().Platforms {
			all = append(all, p.ServerName+" "+p.Result.String())
		}
		return strings.Join(all, ", ")
	}
	if got := rows(); got != " unjudged, alias.test unjudged, platform.test unjudged" || w.Status().Platforms[0].Result.Closed() {
		t.Errorf("at first %q", got)
	}
	if _, err := w.connect(by("alias.test")); err == nil {
		t.Fatal("it got through")
	}
	if got := rows(); got != "alias.test unreachable" || !w.Status().Platforms[0].Result.Closed() {
		t.Errorf("after a failure %q", got)
	}
	c, err := w.connect(by("platform.test"))
	must(t, err)
	w.echo(c, "ping")
	if got := rows(); got != "platform.test good" {
		t.Errorf("after it has answered by another name %q", got)
	}
	f.shows(face{identity: "platform-revoked"})
	if _, err := w.connect(by("alias.test")); err == nil {
		t.Fatal("it got through")
	}
	if got := rows(); !strings.Contains(got, "alias.test refused") {
		t.Errorf("after a refusal %q", got)
	}
	offset.Store(int64(pastAfter + time.Second))
	if got := rows(); strings.Contains(got, "alias.test") {
		t.Errorf("long after a refusal %q", got)
	}
	if _, err := w.connect(by("alias.test")); err == nil {
		t.Fatal("it got through")
	}
	if n := strings.Count(w.log.String(), "the gate is closed\" platform=hospital server_name=alias.test verdict=refused"); n != 2 {
		t.Errorf("it is told %d times:\n%s", n, w.log)
	}
}

// A refusal that comes between the verdict of a session and its connection counts.
func TestASessionDoesNotEnterAfterARefusal(t *testing.T) {
	t.Parallel()
	w := newWard(t, newFar(t), nil)
	g := w.anyGate()
	v, err := g.pass(t.Context())
	must(t, err)
	bad := v
	bad.At, bad.Result, bad.Err = v.At.Add(time.Millisecond), Refused, errors.New("revoked meanwhile")
	g.publish(bad, v.Address)
	if err := g.enter(&session{}, v); err == nil || !strings.Contains(err.Error(), "meanwhile") {
		t.Errorf("%v", err)
	}
	late := v // a handshake that began before it, and came in late
	g.publish(late, v.Address)
	if err := g.enter(&session{}, v); err == nil {
		t.Error("an older verdict has replaced a newer one")
	}
}

// A session that was let through by rules that have changed meanwhile has the
// platform judged by the new ones at once.
func TestASessionByOldRulesHasThePlatformJudged(t *testing.T) {
	t.Parallel()
	f := newFar(t)
	w := newWard(t, f, nil)
	g := w.anyGate()
	v, err := g.pass(t.Context())
	must(t, err)
	must(t, w.Update(w.changed(func(c *Config) { c.Platforms[0].StapleMaxAge = 1000 * time.Hour })))
	w.until("a look by the new rules", func(s Status) bool { return s.Gate[Good] == 2 })
	x := &session{}
	must(t, g.enter(x, v))
	w.until("one more", func(s Status) bool { return s.Gate[Good] == 3 })
	g.leave(x, v)
}

func TestWhyThePlatformCouldNotBeJudged(t *testing.T) {
	t.Parallel()
	plain, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := plain.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, "220 mail.example ESMTP ready\r\n")
			serving.Go(func() { _, _ = io.Copy(io.Discard, c); c.Close() })
		}
	})
	t.Cleanup(func() { plain.Close(); serving.Wait() })
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	closed.Close()
	f := newFar(t, face{version: tls.VersionTLS12, mute: true})
	for _, test := range []struct {
		name, connect string
		dial          DialFunc
		result        Result
		rule, word    string
	}{
		{"nothing listens", closed.Addr().String(), nil, Unreachable, "unreachable", "nothing listens"},
		{"it says nothing", f.address(), nil, Unreachable, "unreachable", "did not finish"},
		{"it speaks no TLS", plain.Addr().String(), nil, Refused, "B12", "does not speak TLS"},
		{"no name server knows it", "platform.invalid:1", func(context.Context, string, string) (net.Conn, error) {
			return nil, &net.DNSError{Err: "no such host", Name: "platform.invalid", IsNotFound: true}
		}, Unreachable, "unreachable", "resolved"},
		{"the connection is no TCP", "x:1", func(context.Context, string, string) (net.Conn, error) {
			a, b := net.Pipe()
			b.Close()
			return a, nil
		}, Unreachable, "unreachable", "cannot be relayed"},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWard(t, f, func(o *Options) {
				o.GateTimeout, o.Dial = 300*time.Millisecond, test.dial
				o.Config.Platforms[0].Connect = test.connect
			})
			_, err := w.connect(w.deviceConfig(tls.VersionTLS12))
			if err == nil {
				t.Fatal("it got through")
			}
			e := w.event(RefusedOne)
			if e.Rule != test.rule || !strings.Contains(e.Err.Error(), test.word) {
				t.Errorf("%s: %v", e.Rule, e.Err)
			}
			if s := w.Status(); s.Gate[test.result] != 1 || s.Platforms[0].Result != test.result {
				t.Errorf("%+v", s)
			}
			want := "internal error"
			if test.result == Refused {
				want = "access denied"
			}
			if !strings.Contains(err.Error(), want) {
				t.Errorf("the device is told %v", err)
			}
		})
	}
}

// What was wrong where the name led before is past once it leads elsewhere.
func TestAPlatformThatMoves(t *testing.T) {
	t.Parallel()
	bad, good := newFar(t, face{identity: "platform-revoked"}), newFar(t)
	var target atomic.Pointer[far]
	target.Store(bad)
	w := newWard(t, bad, func(o *Options) {
		o.Config.Platforms[0].Connect = "platform.test:2575"
		o.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			if address == "platform.test:2575" {
				f := target.Load()
				if f == nil {
					return nil, &net.DNSError{Err: "no such host", Name: address, IsNotFound: true}
				}
				address = f.address()
			}
			return (&net.Dialer{}).DialContext(ctx, network, address)
		}
	})
	if _, err := w.connect(w.deviceConfig(tls.VersionTLS12)); err == nil {
		t.Fatal("it got through")
	}
	target.Store(good)
	w.echo(w.device(tls.VersionTLS12), "ping")
	only := func(result Result, address string) {
		t.Helper()
		var rows []PlatformStatus
		for _, p := range w.Status().Platforms {
			if p.Sessions == 0 || p.Result != Good {
				rows = append(rows, p)
			}
		}
		if result == Good && len(rows) != 0 || result != Good && (len(rows) != 1 || rows[0].Result != result) {
			t.Errorf("%s at %s: %+v", result, address, rows)
		}
	}
	only(Good, good.address())
	target.Store(nil) // the name server is away
	if _, err := w.connect(w.deviceConfig(tls.VersionTLS12)); err == nil {
		t.Fatal("it got through")
	}
	only(Unreachable, "")
	target.Store(good)
	w.echo(w.device(tls.VersionTLS12), "ping")
	only(Good, good.address())
	if text := w.log.String(); strings.Count(text, `msg="tunnel: the gate is closed"`) != 2 || strings.Count(text, `msg="tunnel: the gate is open"`) != 2 {
		t.Error(text)
	}
}

// What was good where the name led before says nothing once it leads nowhere.
func TestAPlatformThatIsAwayHasOneState(t *testing.T) {
	t.Parallel()
	f := newFar(t)
	var away atomic.Bool
	w := newWard(t, f, func(o *Options) {
		o.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			if away.Load() {
				return nil, &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}
			}
			return (&net.Dialer{}).DialContext(ctx, network, address)
		}
	})
	c := w.device(tls.VersionTLS12)
	w.echo(c, "ping")
	must(t, c.Close())
	w.event(Closed)
	w.until("its leaving", func(s Status) bool { return s.Platforms[0].Sessions == 0 })
	away.Store(true)
	if _, err := w.connect(w.deviceConfig(tls.VersionTLS12)); err == nil {
		t.Fatal("it got through")
	}
	if all := w.Status().Platforms; len(all) != 1 || all[0].Result != Unreachable || all[0].LastGood.IsZero() {
		t.Errorf("%+v", all)
	}
	away.Store(false)
	w.echo(w.device(tls.VersionTLS12), "ping")
	if all := w.Status().Platforms; len(all) != 1 || all[0].Result != Good {
		t.Errorf("%+v", all)
	}
	if text := w.log.String(); strings.Count(text, "the gate is closed") != 1 || strings.Count(text, "the gate is open") != 2 {
		t.Error(text)
	}
}

// What is wrong is told once for each change, also where its text has our clock in it.
func TestAFaultThatIsTheSameIsToldOnce(t *testing.T) {
	t.Parallel()
	f := newFar(t)
	var late atomic.Int64 // seconds
	w := newWard(t, f, func(o *Options) {
		o.Now = func() time.Time { return time.Now().Add(time.Duration(late.Load()) * time.Second) }
	})
	said := map[string]bool{}
	for n, step := range []struct {
		answer responder.Answer
		told   int
	}{{responder.Future, 1}, {responder.Future, 1}, {responder.Revoked, 2}, {responder.Revoked, 2}, {responder.Garbage, 3}, {responder.Mismatched, 4}} {
		late.Store(int64(2 * n))
		f.shows(face{staples: []responder.Answer{step.answer}})
		if _, err := w.connect(w.deviceConfig(tls.VersionTLS12)); err == nil {
			t.Fatal("it got through")
		}
		said[w.Status().Platforms[0].Err.Error()] = true
		if got := strings.Count(w.log.String(), "the gate is closed"); got != step.told {
			t.Errorf("step %d, %s: told %d times, want %d", n, step.answer, got, step.told)
		}
	}
	if len(said) < 5 {
		t.Errorf("no text has a clock in it: %v", said)
	}
}

// However often and in whatever way a platform fails, it has been closed since it
// let sessions pass last.
func TestAGateHasBeenClosedSinceItLetSessionsPassLast(t *testing.T) {
	t.Parallel()
	f := newFar(t)
	var late atomic.Int64 // minutes
	var away atomic.Bool
	began := time.Now()
	w := newWard(t, f, func(o *Options) {
		o.Now = func() time.Time { return began.Add(time.Duration(late.Load()) * time.Minute) }
		o.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			if away.Load() {
				return nil, &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}
			}
			return (&net.Dialer{}).DialContext(ctx, network, address)
		}
	})
	for n, step := range []struct {
		shows  face
		away   bool
		result Result
		since  int // minutes
	}{
		{face{}, false, Good, 0},
		{face{}, false, Good, 0},
		{face{hangUp: true}, false, Unreachable, 2},
		{face{}, true, Unreachable, 2},
		{face{identity: "platform-revoked"}, false, Refused, 2},
		{face{identity: "platform-revoked"}, false, Refused, 2},
		{face{}, false, Good, 6},
		{face{}, true, Unreachable, 7},
	} {
		late.Store(int64(n))
		f.shows(step.shows)
		away.Store(step.away)
		if c, err := w.connect(w.deviceConfig(tls.VersionTLS12)); err == nil {
			must(t, c.Close())
			w.event(Closed)
			w.until("its leaving", func(s Status) bool { return s.Platforms[0].Sessions == 0 })
		}
		all := w.Status().Platforms
		if want := began.Add(time.Duration(step.since) * time.Minute); len(all) != 1 || all[0].Result != step.result || !all[0].Since.Equal(want) {
			t.Errorf("step %d: %+v, want %v since %v", n, all, step.result, want)
		}
	}
}

// A good verdict, and then nothing listens: that is another fault than a bad platform.
func TestAPlatformThatIsGoneAfterTheGate(t *testing.T) {
	t.Parallel()
	var dials atomic.Int64
	w := newWard(t, newFar(t), func(o *Options) {
		o.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			if dials.Add(1) == 2 {
				return nil, &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}
			}
			return (&net.Dialer{}).DialContext(ctx, network, address)
		}
	})
	if _, err := w.connect(w.deviceConfig(tls.VersionTLS12)); err == nil || !strings.Contains(err.Error(), "internal error") {
		t.Errorf("the device is told %v", err)
	}
	if e := w.event(RefusedOne); e.Rule != "unreachable" || e.Severity != Trouble || !strings.Contains(e.Err.Error(), "was found good, and then could not be reached for the session") {
		t.Errorf("%+v", e)
	}
	if p := w.Status().Platforms[0]; p.Result != Good || p.Err != nil {
		t.Errorf("%+v", p)
	}
}

// A platform that turns the gateway's certificate away has proved nothing, and
// is not told to be a bad one.
func TestAPlatformThatDeclinesTheGateway(t *testing.T) {
	t.Parallel()
	p, err := hospital()
	must(t, err)
	f := newFar(t)
	config := f.config(face{version: tls.VersionTLS12})
	config.ClientAuth, config.ClientCAs = tls.RequireAndVerifyClientCert, p.Roots()
	l, err := tls.Listen("tcp", "127.0.0.1:0", config)
	must(t, err)
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() { _, _ = io.Copy(io.Discard, c); c.Close() })
		}
	})
	t.Cleanup(func() { l.Close(); serving.Wait() })
	w := newWard(t, f, func(o *Options) {
		p := &o.Config.Platforms[0]
		p.Connect = l.Addr().String()
		var err error
		p.Identity, err = f.Identity("device-expired")
		must(t, err)
	})
	if _, err := w.connect(w.deviceConfig(tls.VersionTLS12)); err == nil {
		t.Fatal("it got through")
	}
	if e := w.event(RefusedOne); e.Rule != "unreachable" || !strings.Contains(e.Err.Error(), "turned the gateway away") {
		t.Errorf("%s: %v", e.Rule, e.Err)
	}
	if s := w.Status(); s.Gate[Declined] != 1 {
		t.Errorf("%+v", s)
	}
}

// unsigning is a key that does not sign, as one in a TPM that is away.
type unsigning struct{ crypto.Signer }

func (unsigning) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	return nil, errors.New("the TPM is away")
}

// A11: our own key's fault is not told as one of the platform's TLS.
func TestAKeyOfOursThatDoesNotSignIsSaid_A11(t *testing.T) {
	t.Parallel()
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		f := newFar(t, face{version: version})
		w := newWard(t, f, func(o *Options) {
			id, err := f.Identity("device")
			must(t, err)
			id.PrivateKey = unsigning{id.PrivateKey.(crypto.Signer)}
			o.Config.Platforms[0].Identity = id
		})
		if _, err := w.connect(w.deviceConfig(version)); err == nil {
			t.Fatal("it got through")
		}
		if e := w.event(RefusedOne); e.Rule != "unreachable" || !strings.Contains(e.Err.Error(), "own key does not sign: the TPM is away") {
			t.Errorf("%s: %v", e.Rule, e.Err)
		}
	}
}

// A platform with an ECC and an RSA certificate shows either, and both are judged.
func TestBothCertificatesOfAPlatformAreJudged(t *testing.T) {
	t.Parallel()
	if testing.Short() || raceDetector {
		t.Skip("RSA keys take seconds")
	}
	p, err := twoSchemes()
	must(t, err)
	rsaOnly := func(w *ward) (*tls.Conn, error) {
		config := w.deviceConfig(tls.VersionTLS12)
		config.InsecureSkipVerify, config.CipherSuites = true, []uint16{tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384}
		return w.connect(config)
	}
	for _, test := range []struct {
		name, second string
		both         bool
		rsa, ecc     bool
	}{
		{"both", "rsa-platform", true, true, true},
		{"both, and the gate is not told", "rsa-platform", false, false, true},
		{"the RSA one is revoked", "rsa-platform-revoked", true, false, false},
		{"there is no RSA one", "", true, false, false},
	} {
		f := newFarOf(t, p, face{second: test.second})
		w := newWard(t, f, func(o *Options) { o.Config.Platforms[0].TwoCertificates = test.both })
		c, err := rsaOnly(w)
		if (err == nil) != test.rsa {
			t.Errorf("%s: a device with RSA: %v", test.name, err)
		}
		if err == nil {
			w.echo(c, "ping")
		}
		c, err = w.connect(w.deviceConfig(tls.VersionTLS12))
		if (err == nil) != test.ecc {
			t.Errorf("%s: a device with ECC: %v", test.name, err)
		}
		if e := w.Status().Platforms[0].Err; test.second == "" && (e == nil || !strings.Contains(e.Error(), "shows no RSA certificate; install one at the platform, or take two_certificates out")) {
			t.Errorf("%s: %v", test.name, e)
		}
		if err == nil {
			w.echo(c, "ping")
		}
	}
}

// By each name that devices may ask for, the gate asks for the same.
func TestTheGateAsksForTheNameOfTheSession(t *testing.T) {
	t.Parallel()
	f := newFar(t)
	var mu sync.Mutex
	var asked []string
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	base := f.config(face{})
	base.GetConfigForClient = func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		mu.Lock()
		defer mu.Unlock()
		asked = append(asked, h.ServerName)
		return nil, nil
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() { c := tls.Server(c, base); _, _ = io.Copy(c, c); c.Close() })
		}
	})
	t.Cleanup(func() { l.Close(); serving.Wait() })
	w := newWard(t, f, func(o *Options) {
		o.Config.Platforms[0].Connect = l.Addr().String()
		o.Config.Listeners[0].Routes[0].ServerNames = []string{"Alias.Test."}
	})
	for _, name := range []string{"platform.test", "", "alias.test"} {
		config := w.deviceConfig(tls.VersionTLS13)
		config.ServerName, config.InsecureSkipVerify = name, true
		c, err := w.connect(config)
		must(t, err)
		w.echo(c, "ping")
		c.Close()
	}
	config := w.deviceConfig(tls.VersionTLS13)
	config.ServerName, config.InsecureSkipVerify = "other.test", true
	if _, err := w.connect(config); err == nil {
		t.Error("another name got through")
	}
	if e := w.event(RefusedOne); e.Rule != "server name" {
		t.Errorf("%+v", e)
	}
	mu.Lock()
	defer mu.Unlock()
	if got, want := strings.Join(asked, ","), "platform.test,platform.test,,,alias.test,alias.test"; got != want {
		t.Errorf("the platform was asked for %q, want %q", got, want)
	}
}
