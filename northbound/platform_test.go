package northbound

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/bedside-gateway/gatewayd/internal/sim/pki"
	"github.com/bedside-gateway/gatewayd/internal/sim/responder"
	"github.com/bedside-gateway/gatewayd/mllp"
	"github.com/bedside-gateway/gatewayd/pcd"
	"github.com/bedside-gateway/gatewayd/tlsoverlay"
	"github.com/bedside-gateway/gatewayd/tlsoverlay/overlaytest"
	"github.com/bedside-gateway/gatewayd/tlspolicy"
)

// secret marks what must not get into a log, a status or the queue.
const secret = "CANARY-DOE^JOHN"

var (
	hospital *pki.PKI
	today    = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
)

func TestMain(m *testing.M) {
	var err error
	if hospital, err = pki.New(pki.Options{Now: today}); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	overlaytest.Require()
	goleak.VerifyTestMain(m)
}

func identity(t testing.TB, name string) tls.Certificate {
	t.Helper()
	id, err := hospital.Identity(name)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// showing is an identity with the truth about its chain stapled.
func showing(t testing.TB, name string) tls.Certificate {
	t.Helper()
	id := identity(t, name)
	chain, err := hospital.Chain(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := tlsoverlay.SetStaples(&id, responder.Staples(hospital, chain, nil)); err != nil {
		t.Fatal(err)
	}
	return id
}

// policy is the gateway's, for the device of a name.
func policy(t testing.TB, device string) *tls.Config {
	t.Helper()
	c, err := tlspolicy.Client{ServerName: pki.DefaultPlatform, Roots: hospital.Roots(), Identity: identity(t, device),
		Now: func() time.Time { return today }}.Config()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// A platform does what a test has scripted, for each connection.
type platform struct {
	t     testing.TB
	tls   *tls.Config
	serve func(n int, p *peer) // n counts connections from 1
	plain func(net.Conn)       // in place of TLS

	mu    sync.Mutex
	dials int
	down  error
	got   []string // control IDs of the messages read, in order
	done  sync.WaitGroup
}

func newPlatform(t testing.TB, serve func(n int, p *peer)) *platform {
	f := &platform{t: t, serve: serve, tls: &tls.Config{
		Certificates: []tls.Certificate{showing(t, "platform")}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: hospital.Roots(),
		Time: func() time.Time { return today }, SessionTicketsDisabled: true,
	}}
	t.Cleanup(f.done.Wait)
	return f
}

// dial is a network that ends in the platform, without sockets: for virtual time.
func (f *platform) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	n, err := f.count()
	if err != nil {
		return nil, err
	}
	near, far := net.Pipe()
	f.done.Go(func() { f.handle(n, far) })
	return socket{near}, nil
}

// A socket takes a deadline also when the peer has closed. A pipe refuses it
// then, so that a write would fail before it has begun.
type socket struct{ net.Conn }

func (s socket) SetDeadline(t time.Time) error      { s.Conn.SetDeadline(t); return nil }
func (s socket) SetReadDeadline(t time.Time) error  { s.Conn.SetReadDeadline(t); return nil }
func (s socket) SetWriteDeadline(t time.Time) error { s.Conn.SetWriteDeadline(t); return nil }

func (f *platform) count() (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.dials++
	return f.dials, f.down
}

func (f *platform) setDown(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.down = err
}

// present has the platform show another certificate from now on.
func (f *platform) present(name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.tls = f.tls.Clone()
	f.tls.Certificates = []tls.Certificate{showing(f.t, name)}
}

func (f *platform) received() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]string(nil), f.got...)
}

func (f *platform) connections() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.dials
}

// listen opens the platform on the loopback.
func (f *platform) listen() string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { l.Close() })
	f.done.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			n, _ := f.count()
			f.done.Go(func() { f.handle(n, conn) })
		}
	})
	return l.Addr().String()
}

func (f *platform) handle(n int, raw net.Conn) {
	defer raw.Close()
	if f.plain != nil {
		f.plain(raw)
		return
	}
	f.mu.Lock()
	config := f.tls
	f.mu.Unlock()
	conn := tls.Server(raw, config)
	if conn.Handshake() != nil {
		return
	}
	f.serve(n, &peer{f: f, raw: raw, tls: conn, mllp: mllp.NewConn(conn, 4<<20)})
}

// A peer is one connection, seen from the platform.
type peer struct {
	f    *platform
	raw  net.Conn
	tls  *tls.Conn
	mllp *mllp.Conn
	last []byte // message read last
	acks int
}

// read reads a message and reports whether one came.
func (p *peer) read() bool {
	b, err := p.mllp.ReadBlock(time.Time{})
	if err != nil {
		return false
	}
	p.last = append(p.last[:0], b...)
	id, err := pcd.ControlID(b)
	if err != nil {
		p.f.t.Errorf("the platform read %q: %v", b, err)
	}
	p.f.mu.Lock()
	p.f.got = append(p.f.got, id)
	p.f.mu.Unlock()
	return true
}

// answer is the acknowledgement of the message read last.
func (p *peer) answer(code string, errs ...pcd.AckError) string {
	p.acks++
	b, err := pcd.AppendAck(nil, p.last, code, pcd.AckOptions{ControlID: fmt.Sprintf("ACK%d", p.acks), Now: today, Errors: errs})
	if err != nil {
		p.f.t.Errorf("no acknowledgement: %v", err)
	}
	return string(b)
}

func (p *peer) write(parts ...string) {
	// The client may have gone: what it makes of that is what is tested.
	_, _ = io.WriteString(p.tls, strings.Join(parts, ""))
}

func (p *peer) ack(code string, errs ...pcd.AckError) { p.write(block(p.answer(code, errs...))) }

// goodbye closes with the alert that TLS has for it.
func (p *peer) goodbye() { p.tls.Close() }

// takeAll acknowledges every message.
func takeAll(_ int, p *peer) {
	for p.read() {
		p.ack("CA")
	}
}

func block(s string) string { return "\x0b" + s + "\x1c\r" }

func message(id string) []byte {
	return fmt.Appendf(nil, "MSH|^~\\&|GW^0123456789ABCDEF^EUI-64|WARD|||20261121120000+0000||ORU^R01^ORU_R01|%s|P|2.6|||AL|NE||UNICODE UTF-8\rPID|||%s\r", id, secret)
}

func destination(t testing.TB) Destination {
	return Destination{Name: "platform", Address: pki.DefaultPlatform, TLS: policy(t, "device")}
}

var errDown = &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}

// A journal is a log to look into.
type journal struct {
	mu sync.Mutex
	b  strings.Builder
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.b.Write(p)
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.b.String()
}

func (j *journal) log() *slog.Logger {
	return slog.New(slog.NewTextHandler(j, &slog.HandlerOptions{Level: slog.LevelDebug}))
}
