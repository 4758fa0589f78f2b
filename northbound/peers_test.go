package northbound

import (
	"bufio"
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bedside-gateway/gatewayd/internal/sim/pki"
	"github.com/bedside-gateway/gatewayd/internal/sim/responder"
	"github.com/bedside-gateway/gatewayd/mllp"
	"github.com/bedside-gateway/gatewayd/pcd"
	"github.com/bedside-gateway/gatewayd/spool"
	"github.com/bedside-gateway/gatewayd/tlspolicy"
)

// outside is a hospital of the present day, for peers with a clock of their
// own: a destination that trusts a CA of it, and the platform's files, the
// response for its leaf among them.
func outside(t *testing.T, anchor string) (d Destination, chain, key, roots, staple string) {
	t.Helper()
	p, err := pki.New(pki.Options{})
	if err != nil {
		t.Fatal(err)
	}
	device, err := p.Identity("device")
	if err != nil {
		t.Fatal(err)
	}
	ca, err := p.Find(anchor)
	if err != nil {
		t.Fatal(err)
	}
	trust := x509.NewCertPool()
	trust.AddCert(ca.Certificate)
	config, err := tlspolicy.Client{ServerName: pki.DefaultPlatform, Roots: trust, Identity: device}.Config()
	if err != nil {
		t.Fatal(err)
	}
	whole, err := p.Chain("platform")
	if err != nil {
		t.Fatal(err)
	}
	id, err := p.Identity("platform")
	if err != nil {
		t.Fatal(err)
	}
	root, err := p.Find("ecc-root")
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(id.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file := func(name, kind string, blocks ...[]byte) string {
		var b bytes.Buffer
		for _, der := range blocks {
			pem.Encode(&b, &pem.Block{Type: kind, Bytes: der})
		}
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	staple = filepath.Join(dir, "leaf.ocsp")
	if err := os.WriteFile(staple, responder.Staples(p, whole, nil)[0], 0o600); err != nil {
		t.Fatal(err)
	}
	return Destination{Name: "platform", Address: pki.DefaultPlatform, TLS: config},
		file("chain.pem", "CERTIFICATE", id.Certificate...), file("key.pem", "PRIVATE KEY", der), file("roots.pem", "CERTIFICATE", root.Certificate.Raw), staple
}

// start runs a peer until the test ends.
func start(t *testing.T, name string, args ...string) (stdin io.Writer, stdout *bufio.Reader) {
	t.Helper()
	cmd := exec.Command(name, args...)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var errs bytes.Buffer
	cmd.Stderr = &errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() {
			t.Logf("%s: %s", name, &errs)
		}
	})
	return in, bufio.NewReader(out)
}

// Python's ssl staples nothing: B18 refuses it, and nothing is sent.
func TestB18_PythonHL7AsThePlatformIsRefused(t *testing.T) {
	const python = "/usr/bin/python3"
	if exec.Command(python, "-c", "import hl7.mllp").Run() != nil {
		t.Skip("python3-hl7 is not installed")
	}
	d, chain, key, roots, _ := outside(t, "ecc-root")
	_, out := start(t, python, "../test/interop/hl7_peer.py", "serve", chain, key, roots)
	port, err := out.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	d.Connect = "127.0.0.1:" + strings.TrimSpace(port)
	var refusal *tlspolicy.RefusalError
	if _, err := Dial(t.Context(), d); !errors.As(err, &refusal) || refusal.Rule != "B18" || !strings.Contains(refusal.Certificate, "platform certificate, 1 of 2 sent") {
		t.Errorf("the platform without staples: %v", err)
	}
}

// openssl is the platform's TLS endpoint, with the MLLP side played by the
// test. It staples for the leaf alone, which is enough where the issuing CA is
// the anchor.
func TestOpenSSLAsThePlatformsTLS(t *testing.T) {
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Skip("openssl is not installed")
	}
	for _, version := range []string{"-tls1_2", "-tls1_3"} {
		t.Run(version, func(t *testing.T) {
			d, chain, key, roots, staple := outside(t, "ecc-issuing")
			in, out := start(t, "openssl", "s_server", "-accept", "127.0.0.1:0", "-cert", chain, "-cert_chain", chain, "-key", key,
				"-CAfile", roots, "-Verify", "4", "-verify_return_error", "-naccept", "1", "-status_file", staple, version)
			for d.Connect == "" {
				line, err := out.ReadString('\n')
				if err != nil {
					t.Fatal(err)
				}
				if address, ok := strings.CutPrefix(line, "ACCEPT "); ok {
					d.Connect = strings.TrimSpace(address)
				}
			}
			go func() {
				b, err := mllp.NewReader(out, 1<<20).ReadBlock()
				if err != nil {
					return
				}
				ack, err := pcd.AppendAck(nil, b, "CA", pcd.AckOptions{ControlID: "OSSL1", Now: time.Now()})
				if err != nil {
					return
				}
				framed, _ := mllp.AppendBlock(nil, ack)
				in.Write(framed)
			}()
			conn, err := Dial(t.Context(), d)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			ack, err := conn.Exchange(t.Context(), message("M1"))
			if err != nil || ack.Code != "CA" || ack.ControlID != "M1" {
				t.Errorf("%+v, %v", ack, err)
			}
		})
	}
}

// OpenSSL's refusal of our certificate comes after our handshake, and its reset
// overtakes the alert: Send gets at it all the same, and does not try the rest.
func TestOpenSSLsRefusalIsHeardInTLS13(t *testing.T) {
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Skip("openssl is not installed")
	}
	d, chain, key, _, staple := outside(t, "ecc-issuing")
	_, _, _, foreign, _ := outside(t, "ecc-root")
	_, out := start(t, "openssl", "s_server", "-accept", "127.0.0.1:0", "-cert", chain, "-cert_chain", chain, "-key", key,
		"-CAfile", foreign, "-Verify", "4", "-verify_return_error", "-status_file", staple, "-tls1_3")
	for d.Connect == "" {
		line, err := out.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		if address, ok := strings.CutPrefix(line, "ACCEPT "); ok {
			d.Connect = strings.TrimSpace(address)
		}
	}
	go io.Copy(io.Discard, out)
	var reported []error
	err := Send(t.Context(), d, [][]byte{message("M1"), message("M2"), message("M3")}, func(_ int, r Result) { reported = append(reported, r.Err) })
	var refused *RefusedError
	if !errors.As(err, &refused) || refused.Alert < alertBadCertificate || refused.Alert > alertUnknownCA {
		t.Errorf("Send ended with %v", err)
	}
	if len(reported) != 1 || !errors.As(reported[0], &refused) {
		t.Errorf("it reported %v", reported)
	}
}

// The whole way in real time: spool, TCP, TLS, a platform that fails at times.
func TestClientOverTCPLosesAndReordersNothing(t *testing.T) {
	const messages = 200
	f := newPlatform(t, func(n int, p *peer) {
		for i := 1; p.read(); i++ {
			if i%17 == 0 { // stored, and the connection gone before the answer
				return
			}
			p.ack("CA")
		}
	})
	s, err := spool.Open(filepath.Join(t.TempDir(), "spool.db"), spool.Options{Key: [32]byte{1}, MaxBytes: 64 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	d := destination(t)
	d.Connect = f.listen()
	q := &counting{Queue: s.Queue("platform"), left: messages, done: make(chan struct{})}
	c := NewClient(d, q, Options{})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }()
	var want []string
	for i := range messages {
		id := fmt.Sprintf("M%04d", i)
		want = append(want, id)
		if _, err := s.Enqueue(t.Context(), spool.Entry{Queue: "platform", Device: "bed-1", ControlID: id, Payload: message(id)}); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case <-q.done:
	case <-time.After(time.Minute):
		t.Errorf("only %d of %d messages were delivered", c.Status().Delivered, messages)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	got := f.received()
	if distinct := slices.Compact(slices.Clone(got)); !slices.Equal(distinct, want) {
		t.Errorf("the platform stored %d messages, in the order %v", len(distinct), distinct)
	}
	if len(got) == messages {
		t.Error("no answer was lost, so nothing was shown")
	}
}

// counting closes done when so many entries are accepted.
type counting struct {
	Queue
	left int
	done chan struct{}
}

func (q *counting) Accepted(id uint64) error {
	err := q.Queue.Accepted(id)
	if q.left--; q.left == 0 {
		close(q.done)
	}
	return err
}

func TestSendReportsEachMessage(t *testing.T) {
	f := newPlatform(t, func(_ int, p *peer) {
		for p.read() {
			switch id, _ := pcd.ControlID(p.last); id {
			case "M2":
				p.ack("AR", withERR)
			case "M3":
				p.goodbye()
				return
			default:
				p.ack("CA")
			}
		}
	})
	d := destination(t)
	d.Connect = f.listen()
	var got []string
	report := func(i int, r Result) {
		var a *AckError
		switch {
		case errors.As(r.Err, &a):
			got = append(got, fmt.Sprint(i, " ", a.Fault))
		case r.Err != nil:
			got = append(got, fmt.Sprint(i, " ", r.Err))
		case r.RoundTrip <= 0:
			t.Errorf("message %d took %v", i, r.RoundTrip)
			fallthrough
		default:
			got = append(got, fmt.Sprint(i, " ", r.Ack.Code))
		}
	}
	messages := [][]byte{message("M1"), message("M2"), message("M3"), message("M4"), []byte("MSH|^~\\&|no ID\r")}
	if err := Send(t.Context(), d, messages, report); err != nil {
		t.Fatal(err)
	}
	want := []string{"0 CA", "1 AR", "2 connection lost", "3 CA", "4 the message has no control ID (MSH-10)"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if n := f.connections(); n != 2 {
		t.Errorf("it took %d connections", n)
	}
	d.Connect = closedPort(t)
	if err := Send(t.Context(), d, messages, report); kindOf(err) != "unreachable" {
		t.Errorf("nobody there: %v", err)
	}
}

// Whatever a platform sends, an exchange ends in an answer or in a named error,
// within its time, and quotes nothing of it.
func FuzzAnswer(f *testing.F) {
	ack := "MSH|^~\\&|P|H|G|W|20261121||ACK^R01^ACK|7|P|2.6\rMSA|CA|M1\r"
	for _, s := range []string{block(ack), ack, block(strings.Replace(ack, "M1", "M2", 1)) + block(ack), "\x0b\x0b" + ack + "\x1c", block("MSH|"), "\x1c\r", block(ack + "ERR||OBX^1|102|E\r")} {
		f.Add([]byte(s))
	}
	d, err := destination(f).complete()
	if err != nil {
		f.Fatal(err)
	}
	d.MaxAckBytes = 512
	f.Fuzz(func(t *testing.T, in []byte) {
		c := &Conn{d: &d, raw: readConn{}, n: new(counters), answers: make(chan answer, 1), done: make(chan struct{}), waiting: "M1", busy: true}
		c.mllp = mllp.NewConn(readConn{from: bytes.NewReader(in)}, d.MaxAckBytes)
		c.idle = time.AfterFunc(time.Hour, func() {})
		defer c.idle.Stop()
		c.watch()
		select {
		case a := <-c.answers:
			if a.ack.ControlID != "M1" || !a.ack.Accepted() && !a.ack.Retry() && !a.ack.Rejected() {
				t.Fatalf("taken for the answer: %+v", a.ack)
			}
		default:
			err := c.lost()
			var e *AckError
			if !errors.As(err, &e) || e.Reason == "" || e.Next == "" || e.Fault >= faults {
				t.Fatalf("%#v", err)
			}
		}
	})
}

// readConn is a connection that gives what a reader has.
type readConn struct {
	net.Conn
	from io.Reader
}

func (c readConn) Read(p []byte) (int, error)    { return c.from.Read(p) }
func (readConn) SetReadDeadline(time.Time) error { return nil }
func (readConn) Close() error                    { return nil }

// One message and its answer over TLS on the loopback.
func BenchmarkExchange(b *testing.B) {
	f := newPlatform(b, takeAllQuick)
	d := destination(b)
	d.Connect = f.listen()
	conn, err := Dial(b.Context(), d)
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	m := append(message("M1"), bytes.Repeat([]byte("OBX|1|NM|150456^MDC_PULS_OXIM_SAT_O2^MDC|1.6.1.150456|97|262688^MDC_DIM_PERCENT^MDC|||||R\r"), 40)...)
	b.ReportAllocs()
	b.SetBytes(int64(len(m)))
	for b.Loop() {
		if _, _, err := conn.exchange(b.Context(), "M1", m); err != nil {
			b.Fatal(err)
		}
	}
}

func takeAllQuick(_ int, p *peer) {
	ack := []byte("MSH|^~\\&|P|H|G|W|20261121||ACK^R01^ACK|7|P|2.6\rMSA|CA|M1\r")
	for {
		if _, err := p.mllp.ReadBlock(time.Time{}); err != nil {
			return
		}
		if err := p.mllp.WriteBlock(ack, time.Time{}); err != nil {
			return
		}
	}
}
