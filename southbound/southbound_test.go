package southbound

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/bedside-gateway/gatewayd/hl7"
	"github.com/bedside-gateway/gatewayd/internal/sim/responder"
	"github.com/bedside-gateway/gatewayd/mllp"
	"github.com/bedside-gateway/gatewayd/pcd"
	"github.com/bedside-gateway/gatewayd/tlsoverlay"
)

func TestAMessageReachesTheSinkUnchanged(t *testing.T) {
	w := newWard(t, nil)
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		c, err := w.dial(w.config("device", version))
		must(t, err)
		sent := message("M1", "AL", "NE")
		if a := w.exchange(mllp.NewConn(c, 1<<16), sent); a.Code != "CA" || a.ControlID != "M1" {
			t.Errorf("%+v", a)
		}
		if got := <-w.got; got != (received{deviceCN, sent}) {
			t.Errorf("%q", got)
		}
	}
	s := w.Status()
	if s.Connections != 2 || s.Messages != 2 || s.Accepted != 2 || s.Devices[0].CommonName != deviceCN || s.Devices[0].Messages != 1 {
		t.Errorf("%+v", s)
	}
	if strings.Contains(w.log.String(), "Doe") {
		t.Error("a name is in the log")
	}
}

// What each message is answered with (HL7 v2.6, section 2.9).
func TestAnswers(t *testing.T) {
	fail, reject := errors.New("the spool is full"), &RejectError{Code: "200", Reason: "nobody wants it"}
	for _, test := range []struct {
		name, message string
		sink          error
		code, err     string // "" is no answer
	}{
		{"enhanced mode", message("A", "AL", "NE"), nil, "CA", ""},
		{"original mode", message("A", "", ""), nil, "AA", ""},
		{"application acknowledgement only", message("A", "NE", "AL"), nil, "AA", ""},
		{"both", message("A", "AL", "AL"), nil, "CA", ""},
		{"on success only", message("A", "SU", "NE"), nil, "CA", ""},
		{"on error only, and there is none", message("A", "ER", "NE"), nil, "", ""},
		{"none wanted", message("A", "NE", "NE"), nil, "", ""},
		{"the sink fails", message("A", "AL", "NE"), fail, "CE", "207"},
		{"the sink fails, original mode", message("A", "", ""), fail, "AE", "207"},
		{"the sink fails, on error only", message("A", "ER", "NE"), fail, "CE", "207"},
		{"the sink rejects", message("A", "AL", "NE"), reject, "CR", "200"},
		{"the sink rejects, original mode", message("A", "", ""), fmt.Errorf("no: %w", reject), "AR", "200"},
		{"a frame byte within", message("A", "AL", "NE") + "OBX|1|ST|1^A^MDC|1|\x1cx\r", nil, "CR", "102"},
		{"no message type", strings.Replace(message("A", "AL", "NE"), "ORU^R01^ORU_R01", "", 1), nil, "CR", "101"},
		{"a segment that is none", message("A", "AL", "NE") + "!\r", nil, "CR", "100"},
		{"LF between the segments", strings.ReplaceAll(message("A", "AL", "NE"), "\r", "\n"), nil, "CA", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWard(t, func(o *Options) { o.Sink = func(context.Context, string, []byte) error { return test.sink } })
			raw, err := w.dial(w.config("device", tls.VersionTLS13))
			must(t, err)
			_, err = fmt.Fprintf(raw, "\x0b%s\x1c\r", test.message) // package mllp would refuse to write some
			must(t, err)
			c := mllp.NewConn(raw, 1<<16)
			if test.code != "" {
				a := w.ack(c)
				if a.Code != test.code || a.ControlID != "A" || (len(a.Errors) > 0) != (test.err != "") || test.err != "" && a.Errors[0].Code != test.err {
					t.Errorf("%+v", a)
				}
			}
			if a := w.exchange(c, message("B", "", "")); a.ControlID != "B" {
				t.Errorf("the next one: %+v", a)
			}
		})
	}
}

func TestWhatCannotBeAnsweredEndsTheConnection(t *testing.T) {
	for name, sent := range map[string]string{
		"no HL7":                         "GET / HTTP/1.1\r\n",
		"no control ID":                  message("", "AL", "NE"),
		"not taken and no answer wanted": message("A", "NE", "NE"),
	} {
		w := newWard(t, func(o *Options) { o.Sink = func(context.Context, string, []byte) error { return errors.New("no") } })
		c := w.device()
		must(t, c.WriteBlock([]byte(sent), inTime()))
		if _, err := c.ReadBlock(inTime()); !errors.Is(err, io.EOF) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestNothingIsAcknowledgedBeforeTheSinkHasIt(t *testing.T) {
	entered, let := make(chan bool), make(chan error)
	w := newWard(t, func(o *Options) {
		o.Sink = func(context.Context, string, []byte) error { entered <- true; return <-let }
	})
	c := w.device()
	must(t, c.WriteBlock([]byte(message("A", "AL", "NE")), inTime()))
	<-entered
	if b, err := c.ReadBlock(time.Now().Add(50 * time.Millisecond)); err == nil {
		t.Errorf("%q", b)
	}
	let <- nil
	w.until("message", func(s Status) bool { return s.Messages == 1 })
}

func TestASinkThatHangsIsGivenUp(t *testing.T) {
	w := newWard(t, func(o *Options) {
		o.SinkTimeout = 20 * time.Millisecond
		o.Sink = func(ctx context.Context, _ string, _ []byte) error { <-ctx.Done(); return ctx.Err() }
	})
	if a := w.exchange(w.device(), message("A", "AL", "NE")); a.Code != "CE" {
		t.Errorf("%+v", a)
	}
}

func TestShutdownLetsWhatIsUnderWayComeToItsEnd(t *testing.T) {
	entered, let := make(chan bool), make(chan error)
	w := newWard(t, func(o *Options) {
		o.Sink = func(context.Context, string, []byte) error { entered <- true; return <-let }
	})
	idle, busy := w.device(), w.device()
	must(t, busy.WriteBlock([]byte(message("A", "AL", "NE")), inTime()))
	<-entered
	ended := make(chan error)
	go func() { ended <- w.stop() }()
	if _, err := idle.ReadBlock(inTime()); !errors.Is(err, io.EOF) {
		t.Errorf("the idle one: %v", err)
	}
	if conn, err := net.Dial("tcp", w.address); err == nil {
		conn.Close()
		t.Error("it takes connections still")
	}
	let <- nil
	if a := w.ack(busy); a.Code != "CA" {
		t.Errorf("%+v", a)
	}
	if _, err := busy.ReadBlock(inTime()); !errors.Is(err, io.EOF) {
		t.Errorf("after the answer: %v", err)
	}
	must(t, <-ended)
}

func TestShutdownDoesNotWaitForEver(t *testing.T) {
	entered := make(chan bool)
	w := newWard(t, func(o *Options) {
		o.DrainTimeout, o.SinkTimeout = 50*time.Millisecond, time.Hour
		o.Sink = func(ctx context.Context, _ string, _ []byte) error {
			entered <- true
			<-ctx.Done()
			return ctx.Err()
		}
	})
	must(t, w.device().WriteBlock([]byte(message("A", "AL", "NE")), inTime()))
	<-entered
	must(t, w.stop())
}

// Each row is a device that must not get in, and what it must be told.
func TestWhoIsRefused(t *testing.T) {
	for _, test := range []struct {
		device, rule, word string
		alert              tls.AlertError
	}{
		{"device-revoked", "A9", "revoked", 44},
		{"device-issuing-revoked", "A9", "revoked", 44},
		{"device-expired", "A8", "expired", 45},
		{"device-not-yet-valid", "A8", "not valid before", 0},
		{"device-wrong-name", "A8", "not authorised", 49},
		{"device-wrong-eku", "A8", "extended key usage", 0},
		{"device-foreign", "A8", "", 48},
	} {
		for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			t.Run(test.device+" "+tls.VersionName(version), func(t *testing.T) {
				w := newWard(t, nil)
				config := w.config("device", version)
				id, err := w.Identity(test.device)
				must(t, err)
				config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &id, nil }
				c, err := w.dial(config)
				if err == nil { // in TLS 1.3 the client is done first; it sends at once, and must see the alert even so
					_, _ = c.Write(make([]byte, 64<<10))
					_, err = c.Read(make([]byte, 1))
				}
				alert, ok := errors.AsType[tls.AlertError](err)
				if op, isOp := errors.AsType[*net.OpError](err); !ok && isOp {
					ok = strings.Contains(op.Error(), "remote error: tls:")
					if test.alert != 0 && !strings.Contains(op.Error(), test.alert.Error()) {
						t.Errorf("%v; want %v", err, test.alert)
					}
				} else if test.alert != 0 && alert != test.alert {
					t.Errorf("%v; want %v", err, test.alert)
				}
				if !ok {
					t.Errorf("the device is not told why: %v", err)
				}
				if r := w.refused(test.rule); !strings.Contains(r.Reason, test.word) {
					t.Errorf("%+v", r)
				}
				if len(w.got) != 0 || !strings.Contains(w.log.String(), "level=ERROR") {
					t.Errorf("%d messages; %s", len(w.got), w.log)
				}
			})
		}
	}
}

func TestTheRevocationRuleEndToEnd_A9(t *testing.T) {
	t.Run("responder gone, the CRL decides", func(t *testing.T) {
		w := newWard(t, nil)
		must(t, w.ocsp.Set("device", responder.HTTP500))
		w.exchange(w.device(), message("A", "AL", "NE"))
	})
	t.Run("responder and CRL server gone", func(t *testing.T) {
		w := newWard(t, nil)
		must(t, w.ocsp.Set("device", responder.HTTP500))
		must(t, w.crl.Set("", responder.HTTP500))
		c, err := w.dial(w.config("device", tls.VersionTLS12))
		if err == nil {
			_, err = c.Read(make([]byte, 1))
		}
		if r := w.refused("A9"); err == nil || !strings.Contains(r.Reason, "none could be fetched") {
			t.Errorf("%v, %+v", err, r)
		}
	})
	t.Run("stapled by the device", func(t *testing.T) {
		w := newWard(t, nil)
		must(t, w.ocsp.Set("device", responder.Unknown))
		must(t, w.crl.Set("", responder.HTTP500))
		chain, err := w.Chain("device")
		must(t, err)
		id, err := w.Identity("device")
		must(t, err)
		must(t, tlsoverlay.SetStaples(&id, responder.Staples(w.PKI, chain, []responder.Answer{responder.Good, responder.Good})[:2]))
		config := w.config("device", tls.VersionTLS13)
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &id, nil }
		c, err := w.dial(config)
		must(t, err)
		w.exchange(mllp.NewConn(c, 1<<16), message("A", "AL", "NE"))
		if n := w.ocsp.State().Asked["device"]; n != 0 {
			t.Errorf("fetched %d times nevertheless", n)
		}
	})
	t.Run("the second connection asks nobody", func(t *testing.T) {
		w := newWard(t, nil)
		for range 3 {
			w.exchange(w.device(), message("A", "AL", "NE"))
		}
		if n := w.ocsp.State().Asked["device"]; n != 1 {
			t.Errorf("asked %d times", n)
		}
	})
}

func TestOurOwnChainIsStapled_A10(t *testing.T) {
	for _, test := range []struct {
		version  uint16
		leafOnly bool
		want     int
	}{{tls.VersionTLS12, false, 2}, {tls.VersionTLS13, false, 2}, {tls.VersionTLS13, true, 1}, {tls.VersionTLS12, true, 2}} {
		w := newWard(t, func(o *Options) { o.LeafOnly13 = test.leafOnly })
		config := w.config("device", test.version)
		config.VerifyConnection = nil // here only what comes counts
		c, err := w.dial(config)
		must(t, err)
		state := c.ConnectionState()
		staples, err := tlsoverlay.Staples(&state)
		must(t, err)
		n := 0
		for _, s := range staples {
			if len(s) > 0 {
				n++
			}
		}
		if n != test.want {
			t.Errorf("%s, leaf only %v: %d responses", tls.VersionName(test.version), test.leafOnly, n)
		}
		if s := w.Status().Staples; len(s) == 0 || s[0][0].Says != "good" {
			t.Errorf("%+v", s)
		}
	}
}

func TestOneWhoSaysNothingIsCutOff(t *testing.T) {
	w := newWard(t, func(o *Options) { o.HandshakeTimeout = 50 * time.Millisecond })
	c, err := net.Dial("tcp", w.address)
	must(t, err)
	defer c.Close()
	must(t, c.SetReadDeadline(inTime()))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Error(err)
	}
	if r := w.refused("TLS"); !strings.Contains(r.Reason, "no handshake within 50ms") {
		t.Errorf("%+v", r)
	}
}

func TestSlowHandshakesDoNotKeepOthersOut(t *testing.T) {
	w := newWard(t, func(o *Options) { o.MaxHandshakes, o.HandshakeTimeout = 3, time.Hour })
	for range 10 {
		c, err := net.Dial("tcp", w.address)
		must(t, err)
		defer c.Close()
	}
	w.until("cut", func(s Status) bool { return s.CutHandshake == 7 && s.Handshakes == 3 })
	w.exchange(w.device(), message("A", "AL", "NE"))
}

func TestConnectionsAreLimited(t *testing.T) {
	w := newWard(t, func(o *Options) { o.MaxConnections = 2 })
	w.device()
	w.device()
	w.until("two", func(s Status) bool { return s.Connections == 2 })
	c, err := net.Dial("tcp", w.address)
	must(t, err)
	defer c.Close()
	must(t, c.SetReadDeadline(inTime()))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) {
		t.Error(err)
	}
	w.refused("limit")
}

func TestTheOldestConnectionOfADeviceMakesRoom(t *testing.T) {
	w := newWard(t, func(o *Options) { o.MaxPerDevice = 2 })
	first, second := w.device(), w.device()
	w.exchange(first, message("A", "AL", "NE"))
	third := w.device()
	if _, err := first.ReadBlock(inTime()); !errors.Is(err, io.EOF) {
		t.Error(err)
	}
	w.exchange(second, message("B", "AL", "NE"))
	w.exchange(third, message("C", "AL", "NE"))
}

func TestMessagesAreLimitedInSizeAndTime(t *testing.T) {
	w := newWard(t, func(o *Options) {
		o.MaxMessage, o.MessageTimeout, o.IdleTimeout = 2000, 50*time.Millisecond, 100*time.Millisecond
	})
	for name, sent := range map[string]string{
		"larger than the limit": "\x0bMSH|^~\\&|" + strings.Repeat("x", 3000),
		"not complete within":   "\x0bMSH|",
		"no message within":     "",
	} {
		c, err := w.dial(w.config("device", tls.VersionTLS13))
		must(t, err)
		_, err = c.Write([]byte(sent))
		must(t, err)
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("%s: %v", name, err)
		}
		_ = c.Close() // or the server waits a second for us to hear it
		w.until("end", func(s Status) bool { return s.Connections == 0 })
		if !strings.Contains(w.log.String(), name) {
			t.Errorf("%q is not in %s", name, w.log)
		}
	}
}

// A listener that fails now and then, as without descriptors.
type weak struct {
	net.Listener
	failures int
}

func (l *weak) Accept() (net.Conn, error) {
	if l.failures > 0 {
		l.failures--
		return nil, syscall.EMFILE
	}
	return l.Listener.Accept()
}

func TestNoDescriptorsAreATroubleThatPasses(t *testing.T) {
	w := newWardOn(t, nil, func(l net.Listener) net.Listener { return &weak{l, 3} })
	w.exchange(w.device(), message("A", "AL", "NE"))
	if !strings.Contains(w.log.String(), "too many open files") {
		t.Error(w.log)
	}
}

func TestAFloodOfRefusalsIsCountedAndNotAllLogged(t *testing.T) {
	w := newWard(t, nil)
	for range 120 {
		c, err := net.Dial("tcp", w.address)
		must(t, err)
		must(t, c.Close())
	}
	w.until("refusals", func(s Status) bool { return s.Refused["TLS"] == 120 })
	if n := strings.Count(w.log.String(), "connection refused"); n >= 120 || uint64(n)+w.Status().Unlogged != 120 {
		t.Errorf("%d logged, %d not", n, w.Status().Unlogged)
	}
	// Whoever can connect must not hide with this that a certificate is refused.
	if c, err := w.dial(w.config("device-revoked", tls.VersionTLS12)); err == nil {
		c.Close()
	}
	w.refused("A9")
	if !strings.Contains(w.log.String(), "rule=A9") {
		t.Errorf("a flood hides a refused certificate: %s", w.log)
	}
}

func TestSettingsThatBreakARule(t *testing.T) {
	w := newWard(t, nil)
	good := w.o
	for name, change := range map[string]func(*Options){
		"fetcher":              func(o *Options) { o.Fetcher = nil },
		"somewhere to put":     func(o *Options) { o.Sink = nil },
		"no certificate":       func(o *Options) { o.Identities = nil },
		"authorised":           func(o *Options) { o.Authorised = nil },
		"1.1":                  func(o *Options) { o.MinVersion = tls.VersionTLS11 },
		"install its root":     func(o *Options) { o.Roots = foreign(t, w) },
		"control":              func(o *Options) { o.Random = strings.NewReader("") },
		"no root certificate ": func(o *Options) { o.Roots = nil },
	} {
		o := good
		change(&o)
		if _, err := New(o); err == nil || name != "control" && !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func foreign(t *testing.T, w *ward) *x509.CertPool {
	e, err := w.Find("ecc-foreign-root")
	must(t, err)
	pool := x509.NewCertPool()
	pool.AddCert(e.Certificate)
	return pool
}

// FuzzAnswer: whatever a device sends, the answer is one that it can match, or none.
func FuzzAnswer(f *testing.F) {
	for _, m := range []string{message("A", "AL", "NE"), message("", "", ""), "MSH|^~\\&|||||||||B", "MSH|", "", "MSH|^~\\&|\n|"} {
		f.Add([]byte(m), byte(0))
		f.Add([]byte(m), byte(2))
	}
	f.Fuzz(func(t *testing.T, sent []byte, which byte) {
		verdict := "AER"[which%3]
		header, err := headerOf(sent)
		if err != nil {
			return
		}
		code, err := codeFor(header, verdict)
		if err != nil || code == "" {
			return
		}
		ack, err := pcd.AppendAck(nil, header, code, pcd.AckOptions{ControlID: "OURS-AND-NOT-YOURS", Now: time.Unix(0, 0)})
		if err != nil {
			return
		}
		a, err := pcd.ParseAck(ack)
		id, _ := pcd.ControlID(header)
		if err != nil || a.Code != code || a.ControlID != id {
			t.Errorf("%q for %q: %v", ack, sent, err)
		}
		var m hl7.Message
		if err := m.Parse(ack, hl7.Limits{}); err != nil {
			t.Error(err)
		}
	})
}

func TestAFaultOfTheProgramStaysAtItsConnection(t *testing.T) {
	w := newWard(t, func(o *Options) {
		took := o.Sink
		o.Sink = func(ctx context.Context, device string, message []byte) error {
			if bytes.Contains(message, []byte("|BAD|")) {
				panic(string(message))
			}
			return took(ctx, device, message)
		}
	})
	other := w.device()
	bad := w.device()
	must(t, bad.WriteBlock([]byte(message("BAD", "AL", "NE")), inTime()))
	if _, err := bad.ReadBlock(inTime()); err == nil {
		t.Error("it was answered")
	}
	w.exchange(other, message("A", "AL", "NE"))
	w.until("the count and the log", func(s Status) bool {
		return s.Panics == 1 && s.Connections == 1 && strings.Contains(w.log.String(), "contained to this connection")
	})
	if text := w.log.String(); strings.Contains(text, "Doe") {
		t.Error(text)
	}
}

func TestAKilledServerResetsItsConnections(t *testing.T) {
	w := newWard(t, nil)
	c := w.device()
	w.exchange(c, message("A", "AL", "NE"))
	w.Kill()
	if _, err := c.ReadBlock(inTime()); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("%v, want a reset", err)
	}
	must(t, w.stop())
}

func TestWhatIsInNoFrameIsCounted(t *testing.T) {
	var mu sync.Mutex
	var last Event
	w := newWard(t, func(o *Options) {
		o.Events = func(e Event) {
			mu.Lock()
			defer mu.Unlock()
			last = e
		}
	})
	c, err := w.dial(w.config("device", tls.VersionTLS13))
	must(t, err)
	_, err = c.Write([]byte("noise"))
	must(t, err)
	w.exchange(mllp.NewConn(c, 1<<16), message("A", "AL", "NE"))
	must(t, c.Close())
	w.until("the count", func(s Status) bool { return s.Skipped == 5 })
	must(t, w.stop())
	mu.Lock()
	defer mu.Unlock()
	if last.Kind != Disconnected || last.Skipped != 5 || last.Device != deviceCN {
		t.Errorf("%+v", last)
	}
}
