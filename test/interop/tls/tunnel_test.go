package tlsinterop

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bedside-gateway/gatewayd/internal/sim/pki"
	"github.com/bedside-gateway/gatewayd/mllp"
	"github.com/bedside-gateway/gatewayd/pcd"
	"github.com/bedside-gateway/gatewayd/tunnel"
	"github.com/bedside-gateway/gatewayd/tunnel/inspect"
)

// A passage is a running tunnel to one platform.
type passage struct {
	port   string
	events chan tunnel.Event
}

// tunnelTo runs a tunnel whose gate shows an identity of its own, so that no end
// can mistake it for the other.
func (w *ward) tunnelTo(t *testing.T, addr string, roots *x509.CertPool, change func(*tunnel.Listener)) *passage {
	t.Helper()
	l := tunnel.Listener{Name: "icu", Address: "127.0.0.1:0", Networks: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}, Allow13: true,
		Routes: []tunnel.Route{{Platform: "hospital", Default: true}}} // wolfSSL asks for no name here
	if change != nil {
		change(&l)
	}
	p := &passage{events: make(chan tunnel.Event, 100)}
	s := must(tunnel.New(tunnel.Options{Events: func(e tunnel.Event) { p.events <- e }, Config: tunnel.Config{Listeners: []tunnel.Listener{l},
		Platforms: []tunnel.Platform{{Name: "hospital", Address: w.pki.Options.Platform + ":2575", Connect: addr, Roots: roots, Identity: must(w.pki.Identity("device-wrong-name"))(t), Recheck: time.Hour}},
	}}))(t)
	if err := s.Listen(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	var err error
	if _, p.port, err = net.SplitHostPort(s.Status().Listeners[0].Bound); err != nil {
		t.Fatal(err)
	}
	return p
}

// event waits for what became of the one session.
func (p *passage) event(t *testing.T) tunnel.Event {
	t.Helper()
	late := time.After(patience)
	for {
		select {
		case e := <-p.events:
			if e.Kind == tunnel.Opened || e.Kind == tunnel.RefusedOne {
				return e
			}
		case <-late:
			t.Fatal("the tunnel says nothing")
		}
	}
}

// wantCut: the tunnel refused the session by a rule of what it saw in passing.
func (p *passage) wantCut(t *testing.T, rule inspect.Rule) {
	t.Helper()
	e := p.event(t)
	if c, ok := errors.AsType[*inspect.CutError](e.Err); e.Kind != tunnel.RefusedOne || !ok || c.Rule != rule {
		t.Errorf("want it cut by the rule %q, got %+v", rule, e)
	}
}

// wantOpened: it let it pass, and knows whether it judged the certificate itself.
func (p *passage) wantOpened(t *testing.T, enforced bool) {
	t.Helper()
	if e := p.event(t); e.Kind != tunnel.Opened || e.Enforced != enforced {
		t.Errorf("enforced is to be %v: %+v", enforced, e)
	}
}

// shows reports whether what a peer said has the certificate, as PEM or as a hash.
func shows(said string, cert *x509.Certificate) bool {
	sum := sha256.Sum256(cert.Raw)
	return strings.Contains(said, hex.EncodeToString(sum[:])) ||
		strings.Contains(said, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})))
}

// ---- OpenSSL as a platform that stays and acknowledges

// An openSSLPlatform is s_server, which takes one connection after the other.
// It cannot staple for an issuing CA: who talks to it has that CA for a root.
type openSSLPlatform struct {
	addr string
	mu   sync.Mutex
	log  bytes.Buffer
}

var (
	accepts = regexp.MustCompile(`ACCEPT (127\.0\.0\.1:\d+)`)
	block   = regexp.MustCompile(`(?s)\x0b(.*?)\x1c\r`)
)

func (w *ward) openSSLPlatform(t *testing.T, scheme pki.Scheme, more ...string) *openSSLPlatform {
	t.Helper()
	needOpenSSL(t)
	name := named(scheme, "platform")
	cmd := exec.Command("openssl", append([]string{"s_server", "-accept", "127.0.0.1:0", "-Verify", "2", "-verify_return_error", "-CAfile", w.file(pki.RootsFile),
		"-cert", w.file(name + ".pem"), "-cert_chain", w.file(string(scheme) + "-issuing.pem"), "-key", w.file(name + ".key"), "-status_file", w.staples(t, name)[0]}, more...)...)
	in := must(cmd.StdinPipe())(t)
	r, out := must2(t, os.Pipe)
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	out.Close()
	p, listens, ended := &openSSLPlatform{}, make(chan string, 1), make(chan struct{})
	go func() { defer close(ended); p.attend(r, in, listens) }()
	t.Cleanup(func() {
		in.Close()
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		<-ended
		r.Close()
	})
	select {
	case p.addr = <-listens:
	case <-ended:
		t.Fatalf("s_server ended: %s", p.said())
	case <-time.After(patience):
		t.Fatalf("s_server does not listen: %s", p.said())
	}
	return p
}

// attend acknowledges each message that it prints.
func (p *openSSLPlatform) attend(from io.Reader, to io.Writer, listens chan<- string) {
	buffer, known, answered := make([]byte, 1<<16), false, 0
	for {
		n, err := from.Read(buffer)
		p.mu.Lock()
		p.log.Write(buffer[:n])
		all := p.log.Bytes()
		p.mu.Unlock()
		if m := accepts.FindSubmatch(all); m != nil && !known {
			known = true
			listens <- string(m[1])
		}
		if m := block.FindSubmatchIndex(all[answered:]); m != nil {
			ack, ackErr := pcd.AppendAck(nil, all[answered+m[2]:answered+m[3]], "CA", pcd.AckOptions{ControlID: "ACK1", Now: time.Now()})
			framed, frameErr := mllp.AppendBlock(nil, ack)
			answered += m[1]
			if _, writeErr := to.Write(framed); errors.Join(ackErr, frameErr, writeErr) != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

func (p *openSSLPlatform) said() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.String()
}

// issuing trusts the issuing CA of a scheme: a chain of two, with one response.
func (w *ward) issuing(t *testing.T, scheme pki.Scheme) *x509.CertPool {
	t.Helper()
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(must(os.ReadFile(w.file(string(scheme) + "-issuing.pem")))(t))
	return pool
}

// ---- what goes through

func TestForeignDevicesReachForeignPlatformsUnopened_G2(t *testing.T) {
	w := needWard(t)
	for _, version := range versions {
		for _, scheme := range schemes {
			for i, p := range callers {
				title := fmt.Sprintf("%s, TLS %s, %s", p.name, version.name, scheme)
				j := job{name: named(scheme, "device"), version: version.name, tells: true}
				platform, device := must(w.pki.Find(named(scheme, "platform")))(t).Certificate, must(w.pki.Find(j.name))(t).Certificate
				check := func(t *testing.T, tun *passage, said, platformSaid string) {
					t.Helper()
					if !strings.HasPrefix(said, "done") || !strings.Contains(said, "MSA|CA|"+controlID) || !strings.Contains(platformSaid, "|"+controlID+"|") {
						t.Errorf("the device says: %s\nthe platform says: %s", said, platformSaid)
					}
					if !shows(said, platform) || !shows(platformSaid, device) {
						t.Errorf("an end sees another certificate than the other's\nthe device says: %s\nthe platform says: %s", said, platformSaid)
					}
					tun.wantOpened(t, version.id == tls.VersionTLS12)
				}
				t.Run(title+", to OpenSSL", func(t *testing.T) {
					p.need(t)
					if i == wolfssl && version.id == tls.VersionTLS12 {
						t.Skip("the device wants RFC 6961, which OpenSSL does not have")
					}
					far := w.openSSLPlatform(t, scheme, "-tls"+strings.ReplaceAll(version.name, ".", "_"))
					tun := w.tunnelTo(t, far.addr, w.issuing(t, scheme), nil)
					j := j
					j.port = tun.port
					if i == jsse {
						j.trust = string(scheme) + "-issuing.pem"
					}
					said := p.call(t, w, j)
					check(t, tun, said, far.said())
				})
				t.Run(title+", to JSSE", func(t *testing.T) {
					p.need(t)
					if i == wolfssl && version.id == tls.VersionTLS13 {
						t.Skip("the device takes one response only, and JSSE sends all")
					}
					needJSSE(t)
					w.answer(t, "auto")
					far := must(secondJSSE())(t)
					name := named(scheme, "platform")
					addr := far.serve(t, w, job{name: name, chain: name + "-root.pem", version: version.name, silent: 1})
					tun := w.tunnelTo(t, addr, w.pki.Roots(), nil)
					j := j
					j.port = tun.port
					said := p.call(t, w, j)
					check(t, tun, said, far.line(t))
				})
			}
		}
	}
}

func TestEverySuiteOfTheSpecificationGoesThrough_A3(t *testing.T) {
	w := needWard(t)
	needOpenSSL(t)
	for _, s := range suites {
		t.Run(s.openssl, func(t *testing.T) {
			far := w.openSSLPlatform(t, s.scheme, "-tls1_2")
			tun := w.tunnelTo(t, far.addr, w.issuing(t, s.scheme), nil)
			said := openSSLCall(t, w, job{name: "device", version: "1.2", suites: []suite{s}, port: tun.port, tells: true})
			if !strings.HasPrefix(said, "done") || !strings.Contains(said, "Cipher is "+s.openssl) {
				t.Errorf("the device says: %s", said)
			}
			tun.wantOpened(t, true)
		})
	}
}

func TestSessionsResumeByTheRuleOnly(t *testing.T) {
	w := needWard(t)
	for _, version := range versions {
		for _, allowed := range []bool{false, true} {
			t.Run(fmt.Sprintf("TLS %s, allowed %v", version.name, allowed), func(t *testing.T) {
				far := w.openSSLPlatform(t, pki.ECC)
				tun := w.tunnelTo(t, far.addr, w.issuing(t, pki.ECC), func(l *tunnel.Listener) { l.AllowResumption = allowed })
				ticket := filepath.Join(t.TempDir(), "session.pem")
				j := job{name: "device", version: version.name, port: tun.port, tells: true, more: []string{"-sess_out", ticket}}
				if said := openSSLCall(t, w, j); !strings.HasPrefix(said, "done") {
					t.Fatal(said)
				}
				tun.wantOpened(t, version.id == tls.VersionTLS12)
				j.more = []string{"-sess_in", ticket}
				said := openSSLCall(t, w, j)
				if version.id == tls.VersionTLS12 && !allowed {
					tun.wantCut(t, inspect.RuleResumption)
					if strings.HasPrefix(said, "done") || !strings.Contains(said, "alert handshake failure") {
						t.Errorf("the device says: %s", said)
					}
					return
				}
				tun.wantOpened(t, false)
				if !strings.HasPrefix(said, "done") || !strings.Contains(said, "Reused, ") {
					t.Errorf("the device says: %s", said)
				}
			})
		}
	}
}

// Without a look at the ServerHello that resumes, JSSE would try the same session
// again for ever.
func TestAJSSEDeviceGetsThroughAfterARefusedResumption(t *testing.T) {
	w := needWard(t)
	needJSSE(t)
	far := w.openSSLPlatform(t, pki.ECC, "-tls1_2")
	tun := w.tunnelTo(t, far.addr, w.issuing(t, pki.ECC), nil)
	said := jsseCall(t, w, job{name: "device", trust: "ecc-issuing.pem", version: "1.2", port: tun.port, times: 3})
	if !strings.HasPrefix(said, "done") || !strings.Contains(said, "MSA|CA|"+controlID) {
		t.Errorf("the device says: %s", said)
	}
	tun.wantOpened(t, true)
	tun.wantCut(t, inspect.RuleResumption)
	tun.wantOpened(t, true)
}

func TestEarlyDataIsRefusedAndTheSessionWithoutItPasses(t *testing.T) {
	w := needWard(t)
	far := w.openSSLPlatform(t, pki.ECC, "-early_data", "-tls1_3")
	tun := w.tunnelTo(t, far.addr, w.issuing(t, pki.ECC), nil)
	ticket, early := filepath.Join(t.TempDir(), "session.pem"), filepath.Join(t.TempDir(), "early")
	if err := os.WriteFile(early, []byte("too early"), 0o600); err != nil {
		t.Fatal(err)
	}
	j := job{name: "device", version: "1.3", port: tun.port, tells: true, more: []string{"-sess_out", ticket}}
	if said := openSSLCall(t, w, j); !strings.HasPrefix(said, "done") {
		t.Fatal(said)
	}
	tun.wantOpened(t, false)
	j.more = []string{"-sess_in", ticket, "-early_data", early}
	if said := openSSLCall(t, w, j); strings.HasPrefix(said, "done") {
		t.Errorf("the device says: %s", said)
	}
	tun.wantCut(t, inspect.RuleEarlyData)
	if strings.Contains(far.said(), "too early") {
		t.Error("the platform has the early data")
	}
	j.more = []string{"-sess_in", ticket}
	if said := openSSLCall(t, w, j); !strings.HasPrefix(said, "done") || !strings.Contains(said, "Reused, TLSv1.3") {
		t.Errorf("the device says: %s", said)
	}
	tun.wantOpened(t, false)
}

// Two ends that can both speak TLS 1.3 are protected from being talked down.
func TestWithoutTLS13OnlyEndsThatHaveItOffGetThrough(t *testing.T) {
	w := needWard(t)
	far := w.openSSLPlatform(t, pki.ECC)
	tun := w.tunnelTo(t, far.addr, w.issuing(t, pki.ECC), func(l *tunnel.Listener) { l.Allow13 = false })
	cert, key, trust := job{name: "device"}.files(w)
	said := piped(t, message, "openssl", "s_client", "-connect", "127.0.0.1:"+tun.port, "-servername", w.pki.Options.Platform, "-CAfile", trust, "-cert", cert, "-cert_chain", cert, "-key", key)
	e := tun.event(t)
	if c, ok := errors.AsType[*inspect.CutError](e.Err); !ok || c.Rule != inspect.RuleVersion || !strings.Contains(c.Next, "switch TLS 1.3 off at the device or at the platform") ||
		!strings.Contains(c.Next, "allow_tls13") || strings.HasPrefix(said, "done") {
		t.Errorf("%+v\nthe device says: %s", e, said)
	}
	if said := openSSLCall(t, w, job{name: "device", version: "1.2", port: tun.port}); !strings.HasPrefix(said, "done") {
		t.Errorf("the device says: %s", said)
	}
	tun.wantOpened(t, true)
}

// What OpenSSL prints of its state at each ClientHello.
const readHello = "SSL_accept:SSLv3/TLS read client hello"

func TestAHelloRetryRequestGoesThrough(t *testing.T) {
	w := needWard(t)
	far := w.openSSLPlatform(t, pki.ECC, "-groups", "P-521", "-tls1_3", "-state")
	tun := w.tunnelTo(t, far.addr, w.issuing(t, pki.ECC), nil)
	said := openSSLCall(t, w, job{name: "device", version: "1.3", port: tun.port, tells: true, more: []string{"-groups", "X25519:P-521"}})
	if !strings.HasPrefix(said, "done") || strings.Count(far.said(), readHello) != 4 { // two of the gate's
		t.Errorf("%d hellos\nthe device says: %s\nthe platform says: %s", strings.Count(far.said(), readHello), said, far.said())
	}
	tun.wantOpened(t, false)
}

func TestRenegotiationGoesThroughUnseen(t *testing.T) {
	w := needWard(t)
	far := w.openSSLPlatform(t, pki.ECC, "-client_renegotiation", "-tls1_2", "-state")
	tun := w.tunnelTo(t, far.addr, w.issuing(t, pki.ECC), nil)
	cert, key, trust := job{name: "device"}.files(w)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "openssl", "s_client", "-connect", "127.0.0.1:"+tun.port, "-servername", w.pki.Options.Platform, "-CAfile", trust,
		"-verify_return_error", "-cert", cert, "-cert_chain", cert, "-key", key, "-tls1_2")
	in := must(cmd.StdinPipe())(t)
	r, out := must2(t, os.Pipe)
	defer r.Close()
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	out.Close()
	defer func() { in.Close(); cancel(); _ = cmd.Wait() }()
	var said bytes.Buffer
	until := func(word string) {
		t.Helper()
		b := make([]byte, 1<<12)
		for !strings.Contains(said.String(), word) {
			n, err := r.Read(b)
			if said.Write(b[:n]); err != nil {
				t.Fatalf("no %q: %s\nthe platform says: %s", word, said.String(), far.said())
			}
		}
	}
	until("Verify return code: 0")
	fmt.Fprintln(in, "R")
	until("RENEGOTIATING")
	if _, err := in.Write(must(mllp.AppendBlock(nil, []byte(message)))(t)); err != nil {
		t.Fatal(err)
	}
	until("MSA|CA|" + controlID)
	if n := strings.Count(far.said(), readHello); n != 3 { // one of the gate's
		t.Errorf("%d hellos: %s", n, far.said())
	}
	tun.wantOpened(t, true)
}

func TestLargeMessagesGoThroughWhole(t *testing.T) {
	w := needWard(t)
	for _, version := range versions {
		t.Run(version.name, func(t *testing.T) {
			far := w.openSSLPlatform(t, pki.ECC)
			tun := w.tunnelTo(t, far.addr, w.issuing(t, pki.ECC), nil)
			large := message + "NTE|1||" + strings.Repeat("0123456789abcdef", 64<<10) + "\r" // a megabyte
			said := openSSLCall(t, w, job{name: "device", version: version.name, port: tun.port, message: large})
			if !strings.HasPrefix(said, "done") || !strings.Contains(said, "MSA|CA|"+controlID) {
				t.Errorf("the device says: %s", said)
			}
			if m := block.FindStringSubmatch(far.said()); m == nil || m[1] != large {
				t.Error("another message arrived than was sent")
			}
			tun.wantOpened(t, version.id == tls.VersionTLS12)
		})
	}
}

// A platform whose staples the gate does not like: no device of any make gets a
// word to it.
func TestNoDeviceReachesAPlatformThatTheGateRefuses(t *testing.T) {
	w := needWard(t)
	for _, p := range callers {
		t.Run(p.name, func(t *testing.T) {
			p.need(t)
			far := w.openSSLPlatform(t, pki.ECC)
			tun := w.tunnelTo(t, far.addr, w.pki.Roots(), nil) // so the issuing CA has to be stapled for
			said := p.call(t, w, job{name: "device", version: "1.2", port: tun.port})
			if e := tun.event(t); e.Kind != tunnel.RefusedOne || e.Rule != "B18" {
				t.Errorf("%+v", e)
			}
			if strings.HasPrefix(said, "done") || strings.Contains(far.said(), controlID) {
				t.Errorf("the device says: %s\nthe platform says: %s", said, far.said())
			}
		})
	}
}
