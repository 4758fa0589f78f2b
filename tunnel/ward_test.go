package tunnel

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/bedside-gateway/gatewayd/internal/sim/pki"
	"github.com/bedside-gateway/gatewayd/internal/sim/responder"
	"github.com/bedside-gateway/gatewayd/tlsoverlay"
	"github.com/bedside-gateway/gatewayd/tlsoverlay/overlaytest"
)

func TestMain(m *testing.M) {
	settings := os.Getenv(benchServer)
	if settings == "" {
		goleak.VerifyTestMain(m)
		return
	}
	if err := serveForBench(settings, os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

var (
	hospital = sync.OnceValues(func() (*pki.PKI, error) { return pki.New(pki.Options{}) })
	// twoSchemes costs some seconds.
	twoSchemes = sync.OnceValues(func() (*pki.PKI, error) { return pki.New(pki.Options{Schemes: []pki.Scheme{pki.ECC, pki.RSA}}) })
)

var loopback = netip.MustParsePrefix("127.0.0.0/8")

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// A face is what a platform shows to one connection.
type face struct {
	identity string             // "" is platform
	staples  []responder.Answer // leaf first; nil is the truth
	version  uint16             // 0 is as the client wishes
	mute     bool               // it takes the connection and says nothing
	hangUp   bool               // it closes at once
	second   string             // another identity beside it
}

// A far is a simulated platform: it shows its faces one connection after the
// other, the last one for ever, and echoes what it is sent.
type far struct {
	*pki.PKI
	t        testing.TB
	listener net.Listener
	running  sync.WaitGroup

	mu    sync.Mutex
	faces []face
	open  map[net.Conn]struct{}

	certificates sync.Map // tls.Certificate by what they are: as servers do, it staples a response for as long as it holds

	connections atomic.Int64
	shaken      atomic.Int64 // handshakes that the platform saw through
	received    atomic.Int64 // bytes of application data
	silent      atomic.Int64 // connections over which none came, ended in good order
}

func newFar(t testing.TB, faces ...face) *far {
	t.Helper()
	overlaytest.Need(t)
	p, err := hospital()
	must(t, err)
	return newFarOf(t, p, faces...)
}

func newFarOf(t testing.TB, p *pki.PKI, faces ...face) *far {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	f := &far{PKI: p, t: t, listener: l, faces: faces, open: map[net.Conn]struct{}{}}
	f.running.Go(f.accept)
	t.Cleanup(f.close)
	return f
}

func (f *far) address() string { return f.listener.Addr().String() }

// shows changes what it shows from now on.
func (f *far) shows(faces ...face) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.faces = faces
}

func (f *far) next() face {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.faces) == 0 {
		return face{}
	}
	one := f.faces[0]
	if len(f.faces) > 1 {
		f.faces = f.faces[1:]
	}
	return one
}

func (f *far) close() {
	f.listener.Close()
	f.mu.Lock()
	for c := range f.open {
		c.Close()
	}
	f.mu.Unlock()
	f.running.Wait()
}

func (f *far) accept() {
	for {
		c, err := f.listener.Accept()
		if err != nil {
			return
		}
		f.connections.Add(1)
		f.mu.Lock()
		f.open[c] = struct{}{}
		f.mu.Unlock()
		one := f.next()
		f.running.Go(func() {
			defer func() {
				c.Close()
				f.mu.Lock()
				delete(f.open, c)
				f.mu.Unlock()
			}()
			f.serve(c, one)
		})
	}
}

func (f *far) serve(c net.Conn, one face) {
	switch {
	case one.hangUp:
		return
	case one.mute:
		_, _ = io.Copy(io.Discard, c)
		return
	}
	secure := tls.Server(c, f.config(one))
	if secure.Handshake() != nil {
		return
	}
	f.shaken.Add(1)
	buffer := make([]byte, 16<<10)
	for {
		n, err := secure.Read(buffer)
		if n > 0 {
			f.received.Add(int64(n))
			if _, err := secure.Write(buffer[:n]); err != nil {
				return
			}
			continue
		}
		if errors.Is(err, io.EOF) {
			f.silent.Add(1)
			_ = secure.CloseWrite()
		}
		return
	}
}

func (f *far) config(one face) *tls.Config {
	name := one.identity
	if name == "" {
		name = "platform"
	}
	c := &tls.Config{Certificates: []tls.Certificate{f.stapled(name, one.staples)}, ClientAuth: tls.RequireAnyClientCert, MinVersion: one.version, MaxVersion: one.version}
	c.SetSessionTicketKeys([][32]byte{{1}}) // those of all connections: it resumes
	if one.second != "" {
		c.Certificates = append(c.Certificates, f.stapled(one.second, nil))
	}
	return c
}

func (f *far) stapled(name string, answers []responder.Answer) tls.Certificate {
	key := fmt.Sprint(name, answers)
	if c, made := f.certificates.Load(key); made {
		return c.(tls.Certificate)
	}
	id, err := f.Identity(name)
	if err != nil {
		panic(err)
	}
	chain, err := f.Chain(name)
	if err != nil {
		panic(err)
	}
	if err := tlsoverlay.SetStaples(&id, responder.Staples(f.PKI, chain, answers)); err != nil {
		panic(err)
	}
	f.certificates.Store(key, id)
	return id
}

// A ward is a running tunnel with a platform behind it.
type ward struct {
	*Server
	far    *far
	t      testing.TB
	log    *journal
	events chan Event
	stop   func()
	config Config
}

// newWard runs a tunnel to a platform. Times are short where a test has to wait for them.
func newWard(t testing.TB, f *far, change func(*Options)) *ward {
	t.Helper()
	w := &ward{far: f, t: t, log: &journal{}, events: make(chan Event, 10000)}
	device, err := f.Identity("device")
	must(t, err)
	w.config = Config{
		Platforms: []Platform{{Name: "hospital", Address: pki.DefaultPlatform + ":2575", Connect: f.address(), Roots: f.Roots(), Identity: device, Recheck: time.Hour}},
		Listeners: []Listener{{Name: "icu", Address: "127.0.0.1:0", Networks: []netip.Prefix{loopback}, Allow13: true,
			Routes: []Route{{Platform: "hospital", Default: true}}, MaxPerDevice: 10000, Rate: 1e6, Burst: 1e6}},
	}
	o := Options{Config: w.config, Log: w.log.log(), Events: func(e Event) { w.events <- e }, Quiet: 20 * time.Millisecond, Grace: 2 * time.Second}
	if change != nil {
		change(&o)
	}
	w.config = o.Config
	w.Server, err = New(o)
	must(t, err)
	must(t, w.Listen())
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- w.Run(ctx) }()
	w.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(w.stop)
	return w
}

func (w *ward) address() string { return w.Status().Listeners[0].Bound }

// config of a device that judges nothing but the path: what keeps it from a bad
// platform is the gateway alone.
func (w *ward) deviceConfig(version uint16) *tls.Config {
	id, err := w.far.Identity("device")
	must(w.t, err)
	return &tls.Config{ServerName: pki.DefaultPlatform, RootCAs: w.far.Roots(), Certificates: []tls.Certificate{id}, MinVersion: version, MaxVersion: version}
}

func (w *ward) connect(c *tls.Config) (*tls.Conn, error) {
	w.t.Helper()
	raw, err := net.Dial("tcp", w.address())
	must(w.t, err)
	w.t.Cleanup(func() { raw.Close() })
	must(w.t, raw.SetDeadline(time.Now().Add(20*time.Second)))
	conn := tls.Client(raw, c)
	err = conn.Handshake()
	if err != nil {
		raw.Close()
	}
	return conn, err
}

// device is a connected device.
func (w *ward) device(version uint16) *tls.Conn {
	w.t.Helper()
	c, err := w.connect(w.deviceConfig(version))
	if err != nil {
		w.t.Fatalf("%v\n%s", err, w.log)
	}
	return c
}

func (w *ward) echo(c *tls.Conn, text string) {
	w.t.Helper()
	_, err := c.Write([]byte(text))
	must(w.t, err)
	got := make([]byte, len(text))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != text {
		w.t.Fatalf("%q, %v\n%s", got, err, w.log)
	}
}

// until polls: what the server does is not visible otherwise.
func (w *ward) until(what string, is func(Status) bool) {
	w.t.Helper()
	for end := time.Now().Add(20 * time.Second); !is(w.Status()); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			w.t.Fatalf("no %s: %+v\n%s", what, w.Status(), w.log)
		}
	}
}

// event waits for one of a kind.
func (w *ward) event(kind EventKind) Event {
	w.t.Helper()
	late := time.After(20 * time.Second)
	for {
		select {
		case e := <-w.events:
			if e.Kind == kind {
				return e
			}
		case <-late:
			w.t.Fatalf("no event %d\n%s", kind, w.log)
		}
	}
}

type journal struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (j *journal) Write(b []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.b.Write(b)
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.b.String()
}

func (j *journal) log() *slog.Logger { return slog.New(slog.NewTextHandler(j, nil)) }

// requestAll has a device ask for a staple of every certificate in TLS 1.2 too.
func requestAll(c *tls.Config) error { return tlsoverlay.RequestStaples(c) }
