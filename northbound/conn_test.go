package northbound

import (
	"bytes"
	"context"
	"crypto"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/bedside-gateway/gatewayd/mllp"
	"github.com/bedside-gateway/gatewayd/pcd"
	"github.com/bedside-gateway/gatewayd/tlspolicy"
)

var withERR = pcd.AckError{Location: "OBX^6^5", Code: "102", Text: secret, Diagnostic: secret, User: secret}

// What platforms answer, and what they do in place of it. Each row runs over
// TLS in virtual time and over TLS on the loopback.
var exchanges = []struct {
	name   string
	serve  func(p *peer)
	code   string // of the answer taken
	fault  Fault  // where there is none
	text   string // in the error
	other  uint64
	unsol  uint64
	stray  uint64
	strict bool
	waits  bool // the row is about a wait in vain
}{
	{name: "CA for AL and NE", serve: func(p *peer) { p.ack("CA") }, code: "CA"},
	{name: "AA for AL and NE", serve: func(p *peer) { p.ack("AA") }, code: "AA"},
	{name: "CE with an ERR", serve: func(p *peer) { p.ack("CE", withERR) }, code: "CE"},
	{name: "CR", serve: func(p *peer) { p.ack("CR", withERR) }, code: "CR"},
	{name: "an answer for another message, then ours", code: "CA", other: 1,
		serve: func(p *peer) { p.write(block(strings.Replace(p.answer("CR"), "|M1", "|M0", 1))); p.ack("CA") }},
	{name: "another message's and ours in one piece", code: "CA", other: 1,
		serve: func(p *peer) { p.write(block(strings.Replace(p.answer("AR"), "|M1", "|M0", 1)), block(p.answer("CA"))) }},
	{name: "an answer for another message only", waits: true, other: 1, fault: NoAnswer, text: "no acknowledgement came within",
		serve: func(p *peer) { p.write(block(strings.Replace(p.answer("CA"), "|M1", "|M10", 1))); p.read() }},
	{name: "the answer twice", code: "CA", unsol: 1, serve: func(p *peer) { a := block(p.answer("CA")); p.write(a, a) }},
	{name: "accepted, and then processed", code: "CA", unsol: 1, serve: func(p *peer) { p.ack("CA"); p.ack("AA") }},
	{name: "LF between segments", code: "CA", serve: func(p *peer) { p.write(block(strings.ReplaceAll(p.answer("CA"), "\r", "\n"))) }},
	{name: "CR and LF between segments", code: "CA", serve: func(p *peer) { p.write(block(strings.ReplaceAll(p.answer("CA"), "\r", "\r\n"))) }},
	{name: "no CR after the last segment", code: "CA", serve: func(p *peer) { p.write(block(strings.TrimSuffix(p.answer("CA"), "\r"))) }},
	{name: "byte by byte", code: "CA", serve: func(p *peer) {
		for _, b := range []byte(block(p.answer("CA"))) {
			p.write(string(b))
		}
	}},
	{name: "garbage before the start byte", code: "CA", stray: 12, serve: func(p *peer) { p.write("\r\nhello DOE\r\n", "\x1c", block(p.answer("CA"))) }},
	{name: "start and end bytes doubled", code: "CA", stray: 3, serve: func(p *peer) { p.write("\x0b", block(p.answer("CA")), "\x1c\r"); p.read() }},
	{name: "another version in MSH-12", code: "CA", serve: func(p *peer) { p.write(block(strings.Replace(p.answer("CA"), "|2.6", "|2.3", 1))) }},
	{name: "closed after the answer", code: "CA", serve: func(p *peer) { p.ack("CA"); p.goodbye() }},
	{name: "closed without the answer", fault: Lost, text: "closed the connection before it acknowledged", serve: func(p *peer) { p.goodbye() }},
	{name: "cut off without the answer", fault: Lost, text: "before it acknowledged", serve: func(p *peer) { p.raw.Close() }},
	{name: "silence", waits: true, fault: NoAnswer, text: "no acknowledgement came within", serve: func(p *peer) { p.read() }},
	{name: "an answer without a frame", waits: true, fault: Unframed, text: "they begin as an HL7 message does", stray: 1,
		serve: func(p *peer) { p.write(p.answer("CA")); p.read() }},
	{name: "an answer without a frame, then closed", fault: Unframed, text: "without an MLLP frame", stray: 1,
		serve: func(p *peer) { p.write(p.answer("CA")); p.goodbye() }},
	{name: "a web server", fault: Unframed, text: "a web server is there", stray: 1,
		serve: func(p *peer) { p.write("HTTP/1.1 400 Bad Request\r\n\r\n" + secret); p.goodbye() }},
	{name: "half an answer", waits: true, fault: Unfinished, text: "broke off after 25 bytes",
		serve: func(p *peer) { p.write(block(p.answer("CA"))[:26]); p.read() }},
	{name: "half an answer, then closed", fault: Unfinished, text: "broke off after 25 bytes",
		serve: func(p *peer) { p.write(block(p.answer("CA"))[:26]); p.goodbye() }},
	{name: "an answer without its last 0x0D", waits: true, fault: Unfinished, text: "without the 0x0D",
		serve: func(p *peer) { p.write("\x0b", p.answer("CA"), "\x1c"); p.read() }},
	{name: "an answer of a megabyte", fault: Oversize, text: "larger than 65536 bytes",
		serve: func(p *peer) { p.write("\x0b", strings.Repeat(secret, 1<<16)) }},
	{name: "a frame without an acknowledgement", fault: Garbage, text: "no MSA segment",
		serve: func(p *peer) { p.write(block("MSH|^~\\&|" + secret + "\rPID|" + secret + "\r")) }},
	{name: "a frame without HL7", fault: Garbage, text: "is no acknowledgement", serve: func(p *peer) { p.write(block(secret)) }},
	{name: "a code that is none", fault: Garbage, text: "none of the codes",
		serve: func(p *peer) { p.write(block(strings.Replace(p.answer("CA"), "MSA|CA", "MSA|"+secret, 1))) }},
	{name: "strict, and the mode asked for", strict: true, code: "CE", serve: func(p *peer) { p.ack("CE") }},
	{name: "strict, and the other mode", strict: true, fault: WrongMode, text: "answered with AA", serve: func(p *peer) { p.ack("AA") }},
}

func TestExchangeInVirtualTime(t *testing.T) {
	for _, c := range exchanges {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newPlatform(t, func(_ int, p *peer) {
					if p.read() {
						c.serve(p)
						io.Copy(io.Discard, p.tls)
					}
				})
				d := destination(t)
				d.StrictAck = c.strict
				d, err := d.complete()
				if err != nil {
					t.Fatal(err)
				}
				n := new(counters)
				conn, err := d.open(t.Context(), f.dial, n)
				if err != nil {
					t.Fatal(err)
				}
				began := time.Now()
				ack, err := conn.Exchange(t.Context(), message("M1"))
				if took := time.Since(began); c.waits != (took == d.AckTimeout) || !c.waits && took != 0 {
					t.Errorf("it took %v", took)
				}
				judge(t, c.code, c.fault, c.text, ack, err)
				synctest.Wait()
				if err != nil && conn.alive() {
					t.Error("the connection is still open")
				}
				conn.Close()
				if n.other.Load() != c.other || n.unsolicited.Load() != c.unsol || n.skipped.Load() < c.stray || c.stray == 0 && n.skipped.Load() > 0 {
					t.Errorf("counted %d for others, %d unsolicited, %d stray bytes", n.other.Load(), n.unsolicited.Load(), n.skipped.Load())
				}
			})
		})
	}
}

func TestExchangeOnTheLoopback(t *testing.T) {
	for _, c := range exchanges {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			f := newPlatform(t, func(_ int, p *peer) {
				if p.read() {
					c.serve(p)
					io.Copy(io.Discard, p.tls)
				}
			})
			d := destination(t)
			d.Connect, d.StrictAck, d.AckTimeout = f.listen(), c.strict, 30*time.Second
			if c.waits {
				d.AckTimeout = 200 * time.Millisecond
			}
			conn, err := Dial(t.Context(), d)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			ack, err := conn.Exchange(t.Context(), message("M1"))
			judge(t, c.code, c.fault, c.text, ack, err)
		})
	}
}

func judge(t *testing.T, code string, fault Fault, text string, ack pcd.Ack, err error) {
	t.Helper()
	if code != "" {
		if err != nil || ack.Code != code || ack.ControlID != "M1" {
			t.Errorf("the answer is %q for %q, %v", ack.Code, ack.ControlID, err)
		}
		return
	}
	var a *AckError
	if !errors.As(err, &a) || a.Fault != fault || !strings.Contains(a.Reason, text) || a.Next == "" {
		t.Fatalf("the error is %#v, not %v with %q", err, fault, text)
	}
	if strings.Contains(err.Error(), "CANARY") {
		t.Errorf("%v quotes the platform", err)
	}
}

// Mirth #1441, #2070: the late answer to one message was taken for the next one's.
func TestLateAnswerFindsNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newPlatform(t, func(_ int, p *peer) {
			p.read()
			time.Sleep(11 * time.Second)
			p.ack("CA")
		})
		d, _ := destination(t).complete()
		conn, err := d.open(t.Context(), f.dial, new(counters))
		if err != nil {
			t.Fatal(err)
		}
		if _, err = conn.Exchange(t.Context(), message("M1")); err == nil {
			t.Fatal("accepted in vain")
		}
		if _, err := conn.Exchange(t.Context(), message("M2")); !errors.Is(err, ErrNotSent) {
			t.Errorf("the connection was used again: %v", err)
		}
		time.Sleep(time.Minute)
		conn.Close()
	})
}

// The answer to the last message comes again while the next one is on its way.
func TestAnswersAreNotTakenForTheNextMessages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newPlatform(t, func(_ int, p *peer) {
			p.read()
			first := block(p.answer("CA"))
			p.write(first)
			p.read()
			p.write(first)
			p.ack("CR")
			p.read()
		})
		d, _ := destination(t).complete()
		n := new(counters)
		conn, err := d.open(t.Context(), f.dial, n)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		a, err := conn.Exchange(t.Context(), message("M1"))
		b, err2 := conn.Exchange(t.Context(), message("M2"))
		if err != nil || err2 != nil || a.Code != "CA" || b.Code != "CR" || n.other.Load() != 1 {
			t.Errorf("%v %v, %v %v, %d others", a.Code, err, b.Code, err2, n.other.Load())
		}
	})
}

func TestPeerThatStopsReadingOrClosesInTheMiddleOfAMessage(t *testing.T) {
	big := append(message("M1"), bytes.Repeat([]byte("OBX|1|\r"), 1<<18)...)
	for _, c := range []struct {
		name  string
		serve func(p *peer)
		fault Fault
		text  string
		took  time.Duration
	}{
		{"closes", func(p *peer) { p.tls.Read(make([]byte, 100)) }, Lost, "while the message was sent", 0},
		{"stops reading", func(p *peer) { p.tls.Read(make([]byte, 100)); time.Sleep(time.Hour) }, NoAnswer, "did not read the message within", 11 * time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newPlatform(t, func(_ int, p *peer) { c.serve(p); p.raw.Close() })
				d, _ := destination(t).complete()
				conn, err := d.open(t.Context(), f.dial, new(counters))
				if err != nil {
					t.Fatal(err)
				}
				began := time.Now()
				_, err = conn.Exchange(t.Context(), big)
				var a *AckError
				if !errors.As(err, &a) || a.Fault != c.fault || !strings.Contains(a.Reason, c.text) {
					t.Errorf("%v", err)
				}
				if took := time.Since(began); took != c.took {
					t.Errorf("it took %v", took)
				}
				conn.Close()
			})
		})
	}
}

func TestMessageThatCannotBeSentLeavesTheConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newPlatform(t, takeAll)
		d, _ := destination(t).complete()
		conn, err := d.open(t.Context(), f.dial, new(counters))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		var p *mllp.PayloadError
		if _, err := conn.Exchange(t.Context(), append(message("M1"), "NTE|||\x1c\r"...)); !errors.As(err, &p) || p.Segment != 3 {
			t.Errorf("a frame byte: %v", err)
		}
		for _, bad := range []string{"", "hello", "MSH|^~\\&|no control ID\r"} {
			if _, err := conn.Exchange(t.Context(), []byte(bad)); err == nil {
				t.Errorf("%q was sent", bad)
			}
		}
		if a, err := conn.Exchange(t.Context(), message("M2")); err != nil || a.Code != "CA" {
			t.Errorf("afterwards: %v", err)
		}
		if got := f.received(); len(got) != 1 {
			t.Errorf("the platform got %v", got)
		}
	})
}

func TestContextEndsAnExchange(t *testing.T) {
	for name, big := range map[string]int{"while waiting": 0, "while writing": 1 << 18} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newPlatform(t, func(_ int, p *peer) {
					if big == 0 {
						p.read()
					}
					time.Sleep(time.Hour)
				})
				d, _ := destination(t).complete()
				conn, err := d.open(t.Context(), f.dial, new(counters))
				if err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				began := time.Now()
				if _, err := conn.Exchange(ctx, append(message("M1"), bytes.Repeat([]byte("OBX|1|\r"), big)...)); !errors.Is(err, context.DeadlineExceeded) {
					t.Error(err)
				}
				if took := time.Since(began); took != time.Second {
					t.Errorf("it took %v", took)
				}
				conn.Close()
			})
		})
	}
}

func TestIdleConnectionIsClosedPolitely(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ends := make(chan error, 1)
		f := newPlatform(t, func(_ int, p *peer) {
			p.read()
			p.ack("CA")
			_, err := p.tls.Read(make([]byte, 1))
			ends <- err
		})
		d, _ := destination(t).complete()
		var wire *recorded
		conn, err := d.open(t.Context(), func(ctx context.Context, network, address string) (net.Conn, error) {
			c, err := f.dial(ctx, network, address)
			wire = &recorded{Conn: c}
			return wire, err
		}, new(counters))
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(4 * time.Minute) // from here the time counts anew
		if _, err := conn.Exchange(t.Context(), message("M1")); err != nil {
			t.Fatal(err)
		}
		began, sent := time.Now(), wire.writes.Load()
		if err := <-ends; err != io.EOF {
			t.Errorf("the platform saw %v", err)
		}
		if n := wire.writes.Load() - sent; n != 1 { // close_notify (RFC 8446, 6.1)
			t.Errorf("we said goodbye %d times", n)
		}
		if took := time.Since(began); took != d.IdleTimeout {
			t.Errorf("it was closed after %v", took)
		}
		synctest.Wait()
		if conn.alive() || conn.cause() != nil {
			t.Errorf("alive %v, cause %v", conn.alive(), conn.cause())
		}
		if _, err := conn.Exchange(t.Context(), message("M2")); !errors.Is(err, ErrNotSent) {
			t.Error(err)
		}
	})
}

// recorded counts what we write.
type recorded struct {
	net.Conn
	writes atomic.Int32
}

func (r *recorded) Write(p []byte) (int, error) {
	r.writes.Add(1)
	return r.Conn.Write(p)
}

// A close with bytes unread would reset the connection, and the alert be lost.
func TestLingerEndsInAnOrderlyClose(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	near, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	far, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	if _, err := far.Write(make([]byte, 4096)); err != nil {
		t.Fatal(err)
	}
	near.Write([]byte("alert"))
	lingered := make(chan struct{})
	go func() { linger(near); close(lingered) }()
	if b, err := io.ReadAll(far); err != nil || string(b) != "alert" {
		t.Errorf("the peer read %q, %v", b, err)
	}
	far.Close()
	<-lingered
}

// unsigning is a key that does not sign.
type unsigning struct{ crypto.Signer }

func (unsigning) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	return nil, errors.New("the TPM is away; look for it")
}

// dumb takes the voice of our key.
func dumb(d *Destination) {
	id, err := d.TLS.GetClientCertificate(nil)
	if err != nil {
		panic(err)
	}
	own := *id
	own.PrivateKey = unsigning{id.PrivateKey.(crypto.Signer)}
	d.TLS = d.TLS.Clone()
	d.TLS.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &own, nil }
}

func TestDialTellsApartWhoRefusedAndWhatIsUnreachable(t *testing.T) {
	expiredDevice := func(d *Destination) { d.TLS = policy(t, "device-expired") }
	silent := func(c net.Conn) { io.Copy(io.Discard, c) }
	for _, c := range []struct {
		name     string
		platform func(f *platform)
		change   func(d *Destination)
		kind     string
		text     string
	}{
		{name: "nothing listens", kind: "unreachable", text: "nothing listens there",
			change: func(d *Destination) { d.Connect = closedPort(t) }},
		{name: "a name that nobody knows", kind: "unreachable", text: "is not known",
			change: func(d *Destination) { d.Connect = "no-such-host.invalid:2575" }},
		{name: "a platform that stays silent", kind: "unreachable", text: "did not finish the TLS handshake within",
			platform: func(f *platform) { f.plain = silent }, change: func(d *Destination) { d.ConnectTimeout = 200 * time.Millisecond }},
		{name: "a platform that hangs up", kind: "unreachable", text: "closed the connection during the TLS handshake",
			platform: func(f *platform) { f.plain = func(c net.Conn) { io.ReadFull(c, make([]byte, 5)) } }},
		{name: "no TLS there", kind: "B12", text: "does not speak TLS",
			platform: func(f *platform) {
				f.plain = func(c net.Conn) { io.WriteString(c, "220 mail ready, "+secret+"\r\n"); silent(c) }
			}},
		{name: "TLS 1.1", kind: "refused", text: "protocol version",
			platform: func(f *platform) { f.tls.MinVersion, f.tls.MaxVersion = tls.VersionTLS10, tls.VersionTLS11 }},
		{name: "another platform", kind: "B17", text: "elsewhere.test",
			platform: func(f *platform) { f.tls.Certificates = []tls.Certificate{showing(t, "platform-wrong-name")} }},
		{name: "an expired platform", kind: "B17", text: "it expired",
			platform: func(f *platform) { f.tls.Certificates = []tls.Certificate{showing(t, "platform-expired")} }},
		{name: "a platform of another hospital", kind: "B17", text: "issuer",
			platform: func(f *platform) { f.tls.Certificates = []tls.Certificate{showing(t, "platform-foreign")} }},
		{name: "a platform that staples nothing", kind: "B18", text: "platform certificate, 1 of 2 sent",
			platform: func(f *platform) { f.tls.Certificates = []tls.Certificate{identity(t, "platform")} }},
		{name: "a revoked platform", kind: "B18", text: "it was revoked at",
			platform: func(f *platform) { f.tls.Certificates = []tls.Certificate{showing(t, "platform-revoked")} }},
		{name: "a platform of a revoked CA", kind: "B18", text: "certificate 2 of 2 sent",
			platform: func(f *platform) {
				f.tls.Certificates = []tls.Certificate{showing(t, "platform-issuing-revoked")}
			}},
		{name: "a platform that takes no certificate of ours, TLS 1.2", kind: "refused", text: "our certificate expired on",
			platform: func(f *platform) { f.tls.MaxVersion = tls.VersionTLS12 }, change: expiredDevice},
		{name: "no suite in common", kind: "refused", text: "no cipher suite",
			platform: func(f *platform) {
				f.tls.MaxVersion, f.tls.CipherSuites = tls.VersionTLS12, []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA}
			}},
		{name: "a key of ours that does not sign", kind: "key", text: "own key does not sign: the TPM is away", change: dumb},
		{name: "a key of ours that does not sign, TLS 1.2", kind: "key", text: "own key does not sign: the TPM is away", change: dumb,
			platform: func(f *platform) { f.tls.MaxVersion = tls.VersionTLS12 }},
		{name: "no policy", kind: "B12", text: "no TLS policy", change: func(d *Destination) { d.TLS = nil }},
		{name: "a policy that verifies nothing", kind: "B17", text: "does not verify",
			change: func(d *Destination) {
				d.TLS = &tls.Config{InsecureSkipVerify: true, ServerName: "platform.test", MinVersion: tls.VersionTLS12}
			}},
		{name: "a policy for old versions", kind: "B13", text: "below 1.2",
			change: func(d *Destination) { d.TLS = d.TLS.Clone(); d.TLS.MinVersion = 0 }},
		{name: "a policy for another name", kind: "B17", text: "and the address has",
			change: func(d *Destination) { d.Address = "elsewhere.test" }},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newPlatform(t, takeAll)
			if c.platform != nil {
				c.platform(f)
			}
			d := destination(t)
			d.Connect = f.listen()
			if c.change != nil {
				c.change(&d)
			}
			conn, err := Dial(t.Context(), d)
			if err == nil {
				conn.Close()
				t.Fatal("connected")
			}
			if kind := kindOf(err); kind != c.kind || !strings.Contains(err.Error(), c.text) {
				t.Errorf("%s: %v", kind, err)
			}
			if strings.Contains(err.Error(), "CANARY") {
				t.Errorf("%v quotes the peer", err)
			}
		})
	}
}

func kindOf(err error) string {
	if r, ok := errors.AsType[*tlspolicy.RefusalError](err); ok && r.Next != "" {
		return r.Rule
	}
	if _, ok := errors.AsType[*tlspolicy.KeyError](err); ok {
		return "key"
	}
	if r, ok := errors.AsType[*RefusedError](err); ok && r.Next != "" {
		return "refused"
	}
	if r, ok := errors.AsType[*UnreachableError](err); ok && r.Next != "" {
		return "unreachable"
	}
	return ""
}

func closedPort(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// In TLS 1.3 the platform refuses our certificate after the handshake.
func TestRefusalAfterTheHandshakeIsNamed(t *testing.T) {
	f := newPlatform(t, takeAll)
	d := destination(t)
	d.Connect, d.TLS = f.listen(), policy(t, "device-foreign")
	conn, err := Dial(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	<-conn.done
	var r *RefusedError
	if _, err := conn.Exchange(t.Context(), message("M1")); !errors.As(err, &r) || !errors.Is(err, ErrNotSent) || r.Alert != alertUnknownCA {
		t.Errorf("%v", err)
	}
}

// The platform has to see why it was refused, not a reset connection, also
// where we have not read all that it sent.
func TestPlatformSeesOurAlert(t *testing.T) {
	saw := make(chan error, 2)
	f := newPlatform(t, nil)
	f.tls.Certificates = []tls.Certificate{showing(t, "platform-expired")}
	f.plain = func(c net.Conn) {
		saw <- tls.Server(wordy{c}, f.tls).Handshake()
		_, err := io.ReadAll(c)
		saw <- err
	}
	d := destination(t)
	d.Connect = f.listen()
	if _, err := Dial(t.Context(), d); kindOf(err) != "B17" {
		t.Fatal(err)
	}
	if err := <-saw; err == nil || !strings.Contains(err.Error(), "expired certificate") {
		t.Errorf("the platform saw %v", err)
	}
	if err := <-saw; err != nil {
		t.Errorf("then it saw %v", err)
	}
}

// wordy sends more than it is asked to.
type wordy struct{ net.Conn }

func (w wordy) Write(p []byte) (int, error) {
	n, err := w.Conn.Write(append(p[:len(p):len(p)], make([]byte, 16<<10)...))
	return min(n, len(p)), err
}

func TestAddressDefaultsToThePortOfB12(t *testing.T) {
	for in, want := range map[string]string{
		"platform.test": "platform.test:2575", "platform.test:99": "platform.test:99", "platform.test.": "platform.test.:2575",
	} {
		d := destination(t)
		d.Address = in
		d, err := d.complete()
		if err != nil || d.Address != want || d.Connect != want {
			t.Errorf("%q became %q and %q, %v", in, d.Address, d.Connect, err)
		}
	}
	for _, in := range []string{"", ":2575", "a:b:c", "[::1"} {
		d := destination(t)
		d.Address = in
		if err := d.Check(); err == nil {
			t.Errorf("%q was taken", in)
		}
	}
}

func TestUnreachableErrorsSayWhatToDo(t *testing.T) {
	d, _ := destination(t).complete()
	for _, c := range []struct {
		err  error
		text string
	}{
		{errDown, "nothing listens there"},
		{&net.OpError{Op: "dial", Err: syscall.EHOSTUNREACH}, "no route"},
		{&net.OpError{Op: "dial", Err: syscall.ENETUNREACH}, "no route"},
		{context.DeadlineExceeded, "no connection within 10s"},
		{&net.DNSError{Name: "platform.test", IsNotFound: true}, "is not known"},
		{&net.DNSError{Name: "platform.test", IsTimeout: true}, "no name server answers"},
		{errors.New("odd"), "odd"},
	} {
		if err := d.unreachable(c.err); kindOf(err) != "unreachable" || !strings.Contains(err.Error(), c.text) || !errors.Is(err, c.err) {
			t.Errorf("%v became %v", c.err, err)
		}
	}
}

func TestStrictModeReadsMSH15(t *testing.T) {
	for in, want := range map[string]bool{
		"MSH|^~\\&|a|b|c|d|e||ORU|1|P|2.6|||AL|NE\r": true,
		"MSH|^~\\&|a|b|c|d|e||ORU|1|P|2.6|||NE|AL\r": false,
		"MSH|^~\\&|a|b|c|d|e||ORU|1|P|2.6|||\r":      false,
		"MSH|^~\\&|a|b|c|d|e||ORU|1|P|2.6\r|||||AL":  false,
		"MSH": false,
	} {
		if got := wantsEnhanced([]byte(in)); got != want {
			t.Errorf("%q: %v", in, got)
		}
	}
}
