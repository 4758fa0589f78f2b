package tunnel

import (
	"crypto/tls"
	"errors"
	"io"
	"maps"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bedside-gateway/gatewayd/tunnel/inspect"
)

// raw is a connection to the tunnel that has said nothing.
func (w *ward) raw() *net.TCPConn {
	w.t.Helper()
	c, err := net.Dial("tcp", w.address())
	must(w.t, err)
	w.t.Cleanup(func() { c.Close() })
	must(w.t, c.SetDeadline(time.Now().Add(20*time.Second)))
	return c.(*net.TCPConn)
}

// ended waits for the end of a connection and gives what came before it.
func ended(t testing.TB, c net.Conn) string {
	t.Helper()
	got, err := io.ReadAll(c)
	if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
		t.Fatal("it was not ended")
	}
	return string(got)
}

func TestWhoMayNotConnect(t *testing.T) {
	t.Parallel()
	card := MAC{0, 0, 0x5e, 0, 0x53, 1}
	other := MAC{0, 0, 0x5e, 0, 0x53, 2}
	elsewhere := netip.MustParsePrefix("192.0.2.0/24")
	for _, test := range []struct {
		name     string
		networks []netip.Prefix
		macs     []MAC
		table    func(netip.Addr) (MAC, error)
		passes   bool
		word     string
	}{
		{"of the network", []netip.Prefix{loopback}, nil, nil, true, ""},
		{"of another network", []netip.Prefix{elsewhere}, nil, nil, false, "networks"},
		{"of one of two networks", []netip.Prefix{elsewhere, loopback}, nil, nil, true, ""},
		{"with the card", nil, []MAC{other, card}, func(netip.Addr) (MAC, error) { return card, nil }, true, ""},
		{"with another card", nil, []MAC{other}, func(netip.Addr) (MAC, error) { return card, nil }, false, card.String()},
		{"with an unknown card", nil, []MAC{card}, func(netip.Addr) (MAC, error) { return MAC{}, errNoNeighbour }, false, "not known"},
		{"with the card, of another network", []netip.Prefix{elsewhere}, []MAC{card}, func(netip.Addr) (MAC, error) { return card, nil }, false, "networks"},
		{"of the network, with another card", []netip.Prefix{loopback}, []MAC{other}, func(netip.Addr) (MAC, error) { return card, nil }, false, card.String()},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := newFar(t)
			w := newWard(t, f, func(o *Options) {
				l := &o.Config.Listeners[0]
				l.Networks, l.MACs, o.Neighbours = test.networks, test.macs, test.table
			})
			if test.passes {
				w.echo(w.device(tls.VersionTLS12), "ping")
				return
			}
			if got := ended(t, w.raw()); got != "" {
				t.Errorf("it is told %q", got)
			}
			if e := w.event(RefusedOne); e.Rule != "network" || !strings.Contains(e.Err.Error(), test.word) {
				t.Errorf("%s: %v", e.Rule, e.Err)
			}
			if f.connections.Load() != 0 {
				t.Error("the platform was bothered")
			}
		})
	}
}

func TestADeviceThatNeverSpeaks(t *testing.T) {
	t.Parallel()
	f := newFar(t)
	w := newWard(t, f, func(o *Options) { o.HelloTimeout = 50 * time.Millisecond })
	if got := ended(t, w.raw()); got != "" {
		t.Errorf("it is told %q", got)
	}
	if e := w.event(RefusedOne); e.Rule != "silent" {
		t.Errorf("%+v", e)
	}
	if f.connections.Load() != 0 {
		t.Error("the platform was bothered")
	}
}

// A hello that comes byte by byte does not stretch the time.
func TestSlowloris(t *testing.T) {
	t.Parallel()
	w := newWard(t, newFar(t), func(o *Options) { o.HelloTimeout = 100 * time.Millisecond })
	c := w.raw()
	began := time.Now()
	for i := 0; ; i++ {
		b := []byte{0}
		if begin := "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"; i < len(begin) {
			b[0] = begin[i]
		}
		if _, err := c.Write(b); err != nil {
			break
		}
		if time.Since(began) > 10*time.Second {
			t.Fatal("it is still taken")
		}
		time.Sleep(10 * time.Millisecond) // the attack itself
	}
	if e := w.event(RefusedOne); e.Rule != "silent" {
		t.Errorf("%+v", e)
	}
}

// Slow ones have to make room for others, the oldest first; sessions that flow do not.
func TestTheSlowMakeRoom(t *testing.T) {
	t.Parallel()
	w := newWard(t, newFar(t), func(o *Options) { o.Config.Listeners[0].MaxSessions = 4 })
	flowing := w.device(tls.VersionTLS12)
	var slow []*net.TCPConn
	for range 3 {
		slow = append(slow, w.raw())
		w.until("one more", func(s Status) bool { return s.Listeners[0].Handshakes == len(slow) })
	}
	second := w.device(tls.VersionTLS13)
	ended(t, slow[0])
	third, fourth := w.device(tls.VersionTLS13), w.device(tls.VersionTLS13)
	for _, c := range []*tls.Conn{flowing, second, third, fourth} {
		w.echo(c, "ping")
	}
	if got := ended(t, w.raw()); got != "" { // all four places are taken by sessions that flow
		t.Errorf("it is told %q", got)
	}
	w.until("refusals", func(s Status) bool { return s.Refused["limit"] == 4 })
	if last := w.Status().Refusals; len(last) != 1 || !strings.Contains(last[0].Reason, "raise max_sessions in [[tunnel]], or LimitNOFILE") {
		t.Errorf("%+v", last)
	}
}

func TestAFurtherConnectionOfADeviceEndsItsOldest(t *testing.T) {
	t.Parallel()
	w := newWard(t, newFar(t), func(o *Options) { o.Config.Listeners[0].MaxPerDevice = 2 })
	first, second := w.device(tls.VersionTLS12), w.device(tls.VersionTLS13)
	third := w.device(tls.VersionTLS12)
	if _, err := first.Read(make([]byte, 1)); err == nil {
		t.Error("the oldest lives on")
	}
	w.echo(second, "ping")
	w.echo(third, "ping")
	if e := w.event(Closed); !errors.Is(e.Err, errNewer) {
		t.Errorf("%+v", e)
	}
}

func TestADeviceThatConnectsTooOften(t *testing.T) {
	t.Parallel()
	w := newWard(t, newFar(t), func(o *Options) {
		o.Config.Listeners[0].Rate, o.Config.Listeners[0].Burst = 0.001, 3
	})
	for range 3 {
		w.echo(w.device(tls.VersionTLS13), "ping")
	}
	ended(t, w.raw())
	if e := w.event(RefusedOne); e.Rule != "rate" {
		t.Errorf("%+v", e)
	}
}

func TestRatesOfManyDevicesAreForgotten(t *testing.T) {
	t.Parallel()
	w := newWard(t, newFar(t), func(o *Options) { o.Config.Listeners[0].Networks = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")} })
	w.Server.mu.Lock()
	l := w.listeners["127.0.0.1:0"]
	w.Server.mu.Unlock()
	for i := range 3 * maxRates {
		x := &session{settings: l.now(), from: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 1)}
		must(t, l.mayConnect(x))
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.rates) > maxRates {
		t.Errorf("%d are known", len(l.rates))
	}
}

func TestWhatIsNoTLSIsToldSo(t *testing.T) {
	t.Parallel()
	f := newFar(t)
	w := newWard(t, f, nil)
	for junk, rule := range map[string]string{"GET / HTTP/1.1\r\nHost: x\r\n\r\n": "format", "\x0bMSH|^~\\&|\x1c\r": "format", "\x80\x2e\x01\x03\x01": "version"} {
		c := w.raw()
		_, err := c.Write([]byte(junk))
		must(t, err)
		if got := ended(t, c); len(got) != 7 || got[0] != 21 {
			t.Errorf("%q is told %q", junk, got)
		}
		if e := w.event(RefusedOne); e.Rule != rule {
			t.Errorf("%q: %s: %v", junk, e.Rule, e.Err)
		}
	}
	if f.connections.Load() != 0 {
		t.Error("the platform was bothered")
	}
}

func TestThePlatformThatHangsUpOrStays(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		face face
		rule string
		word string
	}{
		{face{hangUp: true}, "broken", "platform ended"},
		{face{mute: true}, "platform late", "the platform did not go on"},
	} {
		f := newFar(t, face{}, test.face)
		w := newWard(t, f, func(o *Options) { o.HandshakeTimeout = 2 * time.Second }) // the gate's is of that time
		if _, err := w.connect(w.deviceConfig(tls.VersionTLS12)); err == nil || !strings.Contains(err.Error(), "internal error") {
			t.Errorf("%v", err)
		}
		if e := w.event(RefusedOne); e.Rule != test.rule || !strings.Contains(e.Err.Error(), test.word) {
			t.Errorf("%s: %v", e.Rule, e.Err)
		}
	}
}

func TestADeviceThatDoesNotGoOnIsTheOneThatWasLate(t *testing.T) {
	t.Parallel()
	f := newFar(t)
	retry := f.config(face{version: tls.VersionTLS13})
	retry.CurvePreferences = []tls.CurveID{tls.CurveP521}
	l, err := tls.Listen("tcp", "127.0.0.1:0", retry)
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
		o.HandshakeTimeout = 2 * time.Second
		o.Config.Platforms[0].Connect = l.Addr().String()
	})
	config := w.deviceConfig(tls.VersionTLS13)
	config.CurvePreferences = []tls.CurveID{tls.CurveP256, tls.CurveP521} // the platform asks for another hello
	c := w.raw()
	_ = tls.Client(helloOnly{c}, config).Handshake() // which does not come
	if e := w.event(RefusedOne); e.Rule != "device late" || !strings.Contains(e.Err.Error(), "the device did not go on") {
		t.Errorf("%s: %v", e.Rule, e.Err)
	}
}

// A load balancer or a monitor that looks whether something listens.
func TestAProbeIsCountedAndNoRefusal(t *testing.T) {
	t.Parallel()
	w := newWard(t, newFar(t), nil)
	for _, reset := range []bool{false, true} {
		c := w.raw()
		if reset {
			must(t, c.SetLinger(0))
		}
		c.Close()
	}
	w.until("two probes", func(s Status) bool { return s.Probes == 2 })
	if s := w.Status(); len(s.Refused) > 0 || len(s.Refusals) > 0 || len(w.events) > 0 || strings.Contains(w.log.String(), "level=ERROR") {
		t.Errorf("%+v\n%s", s, w.log)
	}
}

// What any host can cause does not keep out of the log what shows an attack.
func TestAFloodHidesNoRefusalByAnotherRule(t *testing.T) {
	t.Parallel()
	w := newWard(t, newFar(t), nil)
	x := &session{settings: w.config.Listeners[0], from: netip.MustParseAddrPort("192.0.2.1:1")}
	const flood = 1000
	for i := range flood {
		w.refused(x, errNetwork)
		if i%10 == 0 {
			w.refused(x, &inspect.CutError{Rule: inspect.RuleSignature, Reason: "its key is not there", Next: "attack"})
		}
	}
	s, loud := w.Status(), map[string]uint64{}
	for range flood + flood/10 {
		if e := w.event(RefusedOne); e.Loud {
			loud[e.Rule]++
		}
	}
	if n := loud["signature"]; n != flood/10 || s.Unlogged["signature"] != 0 {
		t.Errorf("%d of %d are for the log, %d are said to be missing", n, flood/10, s.Unlogged["signature"])
	}
	if n := loud["network"]; n > flood/2 || n+s.Unlogged["network"] != flood {
		t.Errorf("%d of the flood are for the log, %d are said to be missing", n, s.Unlogged["network"])
	}
	if r := s.Refusals[0]; len(s.Refusals) != 2 || r.Rule != "signature" || r.Severity != Foreign || s.Refusals[1].Rule != "network" || r.Listener != "icu" {
		t.Errorf("%+v", s.Refusals)
	}
}

func TestRefusalsAreRanked(t *testing.T) {
	t.Parallel()
	order := []string{"signature", "certificate", "key exchange", "B17", "B18", "resumption", "version", "network", "rate", "unreachable", "broken", "shutdown"}
	var all []Refusal
	for _, rule := range slices.Backward(order) {
		all = append(all, Refusal{Rule: rule})
	}
	slices.SortFunc(all, graver)
	for i, r := range all {
		if r.Rule != order[i] {
			t.Errorf("%d: %s, want %s", i, r.Rule, order[i])
		}
	}
	if SeverityOf("B18") != GateRule || SeverityOf("rate") != Access || SeverityOf("key exchange") != Foreign {
		t.Error("a severity is not what it was")
	}
}

// An alert of either side reaches the other.
func TestAnAlertIsPassedOn(t *testing.T) {
	t.Parallel()
	f := newFar(t)
	w := newWard(t, f, nil)
	config := w.deviceConfig(tls.VersionTLS12)
	config.CipherSuites = []uint16{tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256} // the platform has no RSA certificate
	_, err := w.connect(config)
	if err == nil || !strings.Contains(err.Error(), "handshake failure") {
		t.Errorf("%v", err)
	}
	if e := w.event(RefusedOne); e.Rule != "ended by platform" {
		t.Errorf("%s: %v", e.Rule, e.Err)
	}
}

func descriptors(t testing.TB) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(all)
}

// settle waits until goroutines and descriptors are as they were.
func settle(t testing.TB, goroutines, fds int) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		g, n := runtime.NumGoroutine(), descriptors(t)
		if g <= goroutines && n <= fds {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%d goroutines and %d descriptors are left over, of %d and %d", g-goroutines, n-fds, g, n)
		}
	}
}

// Five hundred sessions, each with a word there and back, among slow ones, half
// of hellos, resets and connections that say nothing; then all of it ends.
func TestManySessionsAmongAttackers(t *testing.T) {
	f := newFar(t)
	goroutines, fds := runtime.NumGoroutine(), descriptors(t)
	attackers := new(crowd)
	w := newWard(t, f, func(o *Options) {
		o.Config.Listeners[0].MaxSessions = sessions + 100
		o.Config.Platforms[0].VerdictAge = time.Minute // the platform of the test does them all on the same two cores
	})
	conns := make([]*tls.Conn, sessions)
	var all sync.WaitGroup
	room := make(chan struct{}, 32)
	for i := range conns {
		room <- struct{}{}
		all.Go(func() {
			defer func() { <-room }()
			attackers.attack(t, w, i)
			version := versions[i%2]
			c, err := w.connect(w.deviceConfig(version))
			if err != nil {
				t.Errorf("session %d: %v", i, err)
				return
			}
			w.echo(c, "ping")
			conns[i] = c
		})
	}
	all.Wait()
	if t.Failed() {
		return
	}
	for _, c := range conns { // all of them are there at the same time
		w.echo(c, "ping")
	}
	s := w.Status()
	if len(s.Sessions) != sessions || s.Enforced != sessions/2 || s.GateOnly != sessions/2 {
		t.Errorf("%d sessions, %d enforced, %d by the gate only", len(s.Sessions), s.Enforced, s.GateOnly)
	}
	// Two sockets and two goroutines for each at the tunnel; beside them the
	// device's and the platform's own socket and the platform's goroutine. Of an
	// attacker that is still there, both ends of its connection and a goroutine.
	n := attackers.size()
	if got := descriptors(t) - fds; got > 4*sessions+2*n+40 {
		t.Errorf("%d descriptors for %d sessions and %d attackers", got, sessions, n)
	}
	if got := runtime.NumGoroutine() - goroutines; got > 3*sessions+n+20 {
		t.Errorf("%d goroutines for %d sessions and %d attackers", got, sessions, n)
	}
	attackers.close()
	w.stop()
	for _, c := range conns {
		if _, err := c.Read(make([]byte, 1)); err == nil {
			t.Fatal("a session lives on")
		}
		c.Close()
	}
	settle(t, goroutines, fds)
	w.wantEvents()
}

// wantEvents: once all is over, each connection has come to one end, and the audit
// was told of each once, with who, where and why.
func (w *ward) wantEvents() {
	w.t.Helper()
	s, told := w.Status(), map[string]uint64{}
	for len(w.events) > 0 {
		switch e := <-w.events; e.Kind {
		case RefusedOne:
			told[e.Rule]++
			if e.Listener != "icu" || !e.Device.IsValid() || e.Err == nil || e.Severity != SeverityOf(e.Rule) {
				w.t.Errorf("%+v", e)
			}
		case Closed:
			told["ended "+e.Result]++
			if e.Listener != "icu" || !e.Device.IsValid() || e.Platform != "hospital" || e.ToPlatform == 0 || (e.Rule != "") != ours[e.Result] {
				w.t.Errorf("%+v", e)
			}
		}
	}
	all := maps.Clone(s.Refused)
	ends := s.Probes
	for how, n := range s.Ended {
		all["ended "+how] = n
	}
	for _, n := range all {
		ends += n
	}
	if !maps.Equal(told, all) {
		w.t.Errorf("the audit was told %v, of %v", told, all)
	}
	if ends != s.Accepted+s.Refused["network"]+s.Refused["rate"] {
		w.t.Errorf("%d connections, %d ends: %+v", s.Accepted, ends, s.Counts)
	}
}

func TestEachRefusalAndEachCutIsToldOnce(t *testing.T) {
	t.Parallel()
	f := newFar(t)
	w := newWard(t, f, func(o *Options) {
		o.Config.Listeners[0].MaxPerDevice, o.HelloTimeout, o.Config.Platforms[0].Recheck = 2, 500*time.Millisecond, time.Hour
	})
	room := func() { w.until("room", func(s Status) bool { return s.Listeners[0].Handshakes == 0 }) }
	connect := func(change func(*tls.Config)) {
		room()
		config := w.deviceConfig(tls.VersionTLS12)
		config.InsecureSkipVerify = true
		change(config)
		if _, err := w.connect(config); err == nil {
			t.Error("it got through")
		}
	}
	one, two := w.device(tls.VersionTLS12), w.device(tls.VersionTLS13)
	w.echo(one, "ping")
	w.echo(two, "ping")
	c := w.raw() // ends the oldest
	_, err := c.Write([]byte("GET /Doe^Jane HTTP/1.1\r\n\r\n"))
	must(t, err)
	ended(t, c)
	c.Close()
	room()
	ended(t, w.raw()) // silent
	connect(func(c *tls.Config) { c.ServerName = "other.test" })
	connect(func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS11 })
	f.shows(face{}, face{identity: "platform-revoked"}) // swapped behind the gate
	connect(func(*tls.Config) {})
	f.shows(face{identity: "platform-revoked"}) // the gate, which cuts the session that is open
	connect(func(*tls.Config) {})
	if _, err := two.Read(make([]byte, 1)); err == nil {
		t.Error("it lives on")
	}
	f.shows(face{})
	room()
	w.echo(w.device(tls.VersionTLS13), "ping")
	w.stop()
	s := w.Status()
	for _, rule := range []string{"format", "silent", "server name", "version", "certificate", "B18"} {
		if s.Refused[rule] != 1 {
			t.Errorf("%q: %v", rule, s.Refused)
		}
	}
	for _, how := range []string{"newer", "gate", "drained"} {
		if s.Ended[how] != 1 {
			t.Errorf("%q: %v", how, s.Ended)
		}
	}
	if strings.Contains(w.log.String(), "Doe") {
		t.Error("what a device sent is in the log")
	}
	w.wantEvents()
}

// A crowd is the attackers that stay.
type crowd struct {
	mu  sync.Mutex
	all []net.Conn
}

func (a *crowd) stay(c net.Conn) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.all = append(a.all, c)
}

func (a *crowd) size() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.all)
}

func (a *crowd) close() {
	for _, c := range a.all {
		c.Close()
	}
}

// attack is one of what ill-meaning or broken devices do.
func (a *crowd) attack(t *testing.T, w *ward, i int) {
	c, err := net.Dial("tcp", w.address())
	if err != nil {
		t.Error(err)
		return
	}
	switch i % 5 {
	case 0: // it never speaks
		a.stay(c)
		return
	case 1: // a reset
		_ = c.(*net.TCPConn).SetLinger(0)
	case 2: // half of a hello, then a reset
		_, _ = c.Write([]byte{22, 3, 1, 1, 0, 1, 0, 0, 252, 3, 3})
		_ = c.(*net.TCPConn).SetLinger(0)
	case 3: // half of a hello and half-closed
		_, _ = c.Write([]byte{22, 3, 1, 1, 0, 1})
		_ = c.(*net.TCPConn).CloseWrite()
		a.stay(c)
		return
	case 4: // a whole hello, then a reset
		_ = tls.Client(helloOnly{c}, w.deviceConfig(tls.VersionTLS12)).Handshake()
		_ = c.(*net.TCPConn).SetLinger(0)
	}
	c.Close()
}

// A helloOnly hangs up where it would have to wait for an answer.
type helloOnly struct{ net.Conn }

func (helloOnly) Read([]byte) (int, error) { return 0, io.EOF }
