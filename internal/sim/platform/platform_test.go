package platform_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/bedside-gateway/gatewayd/internal/sim/pki"
	"github.com/bedside-gateway/gatewayd/internal/sim/platform"
	"github.com/bedside-gateway/gatewayd/mllp"
	"github.com/bedside-gateway/gatewayd/observation"
	"github.com/bedside-gateway/gatewayd/pcd"
	"github.com/bedside-gateway/gatewayd/tlsoverlay/overlaytest"
)

func TestMain(m *testing.M) {
	overlaytest.Require()
	goleak.VerifyTestMain(m)
}

var hospital = sync.OnceValues(func() (*pki.PKI, error) { return pki.New(pki.Options{}) })

func certificates(t *testing.T) *pki.PKI {
	t.Helper()
	p, err := hospital()
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// start runs a platform; its events come as texts.
func start(t *testing.T, change func(*platform.Options)) *platform.Platform {
	t.Helper()
	p := certificates(t)
	identity, err := p.Identity("platform")
	if err != nil {
		t.Fatal(err)
	}
	o := platform.Options{Certificates: []tls.Certificate{identity}, Roots: p.Roots(), Hospital: p}
	if change != nil {
		change(&o)
	}
	pf, err := platform.New(o)
	if err != nil {
		t.Fatal(err)
	}
	if err := pf.Listen("127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := pf.Close(); err != nil {
			t.Error(err)
		}
	})
	return pf
}

// A gateway is a client of the platform: the plainest there can be.
type gateway struct {
	t    *testing.T
	tls  *tls.Conn
	conn *mllp.Conn
}

func dial(t *testing.T, pf *platform.Platform, who string) (*gateway, error) {
	t.Helper()
	p := certificates(t)
	identity, err := p.Identity(who)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := net.Dial("tcp", pf.Address())
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { raw.Close() })
	c := tls.Client(raw, &tls.Config{ServerName: pki.DefaultPlatform, RootCAs: p.Roots(), Certificates: []tls.Certificate{identity}})
	return &gateway{t, c, mllp.NewConn(c, 1<<20)}, c.Handshake()
}

func connect(t *testing.T, pf *platform.Platform) *gateway {
	t.Helper()
	g, err := dial(t, pf, "device")
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func soon() time.Time { return time.Now().Add(5 * time.Second) }

func (g *gateway) send(message string) {
	g.t.Helper()
	if err := g.conn.WriteBlock([]byte(message), soon()); err != nil {
		g.t.Fatal(err)
	}
}

func (g *gateway) ack() pcd.Ack {
	g.t.Helper()
	b, err := g.conn.ReadBlock(soon())
	if err != nil {
		g.t.Fatal(err)
	}
	a, err := pcd.ParseAck(b)
	if err != nil {
		g.t.Fatalf("%v: %q", err, b)
	}
	return a
}

func (g *gateway) exchange(message string) pcd.Ack {
	g.t.Helper()
	g.send(message)
	return g.ack()
}

// silent proves that nothing comes: the next thing to be read is the answer to
// a later message.
func (g *gateway) silent(pf *platform.Platform) {
	g.t.Helper()
	pf.SetAnswer()
	if a := g.exchange(message("PROBE", "AL", "NE", "1")); a.ControlID != "PROBE" {
		g.t.Errorf("got an answer to %s", a.ControlID)
	}
}

func message(id, accept, application, value string) string {
	return strings.Join([]string{
		`MSH|^~\&|GW_TEST^0123456789ABCDEF^EUI-64|HOSPITAL_A|||20260102030405+0000||ORU^R01^ORU_R01|` + id + `|P|2.6|||` + accept + `|` + application +
			`||UNICODE UTF-8|||IHE_PCD_001^IHE PCD^1.3.6.1.4.1.19376.1.6.1.1.1^ISO`,
		`PID|||UNKNOWN^^^^U||^^^^^^U||||||||||||||||||||||||||Y`,
		`PV1||U|ICU^Room 1^Bed 2^HOSPITAL_A`,
		`OBR|1||` + id + `^GW_TEST^0123456789ABCDEF^EUI-64|69965^MDC_DEV_MON_PHYSIO_MULTI_PARAM_MDS^MDC|||20260102030400+0000|20260102030405+0000`,
		`OBX|1||69965^MDC_DEV_MON_PHYSIO_MULTI_PARAM_MDS^MDC|1.0.0.0|||||||X|||||||0009FBFFFE000001^^0009FBFFFE000001^EUI-64`,
		`OBX|2||69798^MDC_DEV_ECG_VMD^MDC|1.1.0.0|||||||X`,
		`OBX|3||69799^MDC_DEV_ECG_CHAN^MDC|1.1.1.0|||||||X`,
		`OBX|4|NM|147842^MDC_ECG_HEART_RATE^MDC|1.1.1.1|` + value + `|264864^MDC_DIM_BEAT_PER_MIN^MDC^{beat}/min^{beat}/min^UCUM|||||R`,
		``}, "\r")
}

func TestAMessageIsStoredAndAcknowledgedInTheModeThatItAsksFor(t *testing.T) {
	for _, row := range []struct{ accept, application, want string }{
		{"AL", "NE", "CA"}, {"NE", "AL", "AA"}, {"", "", "AA"}, {"SU", "NE", "CA"}, {"ER", "SU", "AA"}, {"AL", "AL", "CA"},
	} {
		t.Run(row.accept+"/"+row.application, func(t *testing.T) {
			pf := start(t, nil)
			a := connect(t, pf).exchange(message("ID1", row.accept, row.application, "72"))
			if a.Code != row.want || a.ControlID != "ID1" {
				t.Errorf("answer %+v, want %s for ID1", a, row.want)
			}
			stored := pf.Messages()
			if len(stored) != 1 || string(stored[0].Bytes) != message("ID1", row.accept, row.application, "72") {
				t.Fatalf("stored: %d messages", len(stored))
			}
			if m := stored[0]; m.Peer != pki.DefaultDevice.String() || m.Device != "0009FBFFFE000001" || m.Document.Location != "ICU Room 1 Bed 2" {
				t.Errorf("stored as %+v", m.Record)
			}
		})
	}
}

func TestNobodyIsAnsweredWhoDoesNotWantIt(t *testing.T) {
	pf := start(t, nil)
	g := connect(t, pf)
	g.send(message("QUIET", "NE", "NE", "72"))
	g.silent(pf)
	if n := pf.Counts().Stored; n != 2 {
		t.Errorf("stored %d", n)
	}
}

func TestACopyIsAnsweredLikeTheFirstAndStoredOnce(t *testing.T) {
	pf := start(t, nil)
	m := message("ID1", "AL", "NE", "72")
	first, second := connect(t, pf).exchange(m), connect(t, pf).exchange(m)
	if first.Code != "CA" || second.Code != "CA" {
		t.Errorf("answers %s, %s", first.Code, second.Code)
	}
	c := pf.Counts()
	if c.Stored != 1 || c.Again != 1 || c.Repeated != 0 || c.Acks != 2 {
		t.Errorf("counts %+v", c)
	}
	if got := pf.Messages(); len(got) != 1 || got[0].Copy != 2 {
		t.Errorf("messages %+v", got)
	}
}

func TestAControlIDForAnotherContentIsRejected(t *testing.T) {
	pf := start(t, nil)
	g := connect(t, pf)
	g.exchange(message("ID1", "AL", "NE", "72"))
	a := g.exchange(message("ID1", "AL", "NE", "73"))
	if a.Code != "CR" || len(a.Errors) != 1 || a.Errors[0].Code != "205" {
		t.Errorf("answer %+v", a)
	}
	if c := pf.Counts(); c.Stored != 1 || c.Conflicts != 1 || c.Rejected != 1 {
		t.Errorf("counts %+v", c)
	}
}

func TestOneContentUnderTwoControlIDsIsCounted(t *testing.T) {
	pf := start(t, nil)
	g := connect(t, pf)
	g.exchange(message("ID1", "AL", "NE", "72"))
	g.exchange(message("ID2", "AL", "NE", "72"))
	if c := pf.Counts(); c.Stored != 2 || c.Repeated != 1 {
		t.Errorf("counts %+v", c)
	}
}

func TestWhatCannotBeTakenIsRejectedWithTheCodeOfTable0357(t *testing.T) {
	good := message("ID1", "AL", "NE", "72")
	for name, row := range map[string]struct{ message, code string }{
		"another message type": {strings.Replace(good, "ORU^R01^ORU_R01", "ADT^A01^ADT_A01", 1), "200"},
		"another event":        {strings.Replace(good, "ORU^R01^ORU_R01", "ORU^R30^ORU_R30", 1), "201"},
		"another version":      {strings.Replace(good, "|2.6|", "|2.3|", 1), "203"},
	} {
		t.Run(name, func(t *testing.T) {
			pf := start(t, nil)
			a := connect(t, pf).exchange(row.message)
			if a.Code != "CR" || len(a.Errors) != 1 || a.Errors[0].Code != row.code {
				t.Errorf("answer %+v", a)
			}
			if c := pf.Counts(); c.Stored != 0 || c.Rejected != 1 {
				t.Errorf("counts %+v", c)
			}
		})
	}
}

func TestAStrictPlatformRefusesWhatBreaksTheProfile(t *testing.T) {
	broken := strings.Replace(message("ID1", "AL", "NE", "72"), "20260102030405+0000", "20260102030405", 1)
	lenient, strict := start(t, nil), start(t, func(o *platform.Options) { o.Strict = true })
	if a := connect(t, lenient).exchange(broken); a.Code != "CA" {
		t.Errorf("lenient: %+v", a)
	}
	if lenient.Counts().Findings == 0 {
		t.Error("lenient: no finding counted")
	}
	if a := connect(t, strict).exchange(broken); a.Code != "CE" || len(a.Errors) != 1 {
		t.Errorf("strict: %+v", a)
	}
}

func TestEachAnswerDoesWhatItsNameSays(t *testing.T) {
	m := message("ID1", "AL", "NE", "72")
	read := func(t *testing.T, g *gateway) string {
		b, err := io.ReadAll(g.tls)
		if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal(err)
		}
		return string(b)
	}
	for _, row := range []struct {
		answer string
		stored int
		check  func(*testing.T, *platform.Platform, *gateway)
	}{
		{"auto", 1, func(t *testing.T, _ *platform.Platform, g *gateway) { want(t, g.ack(), "CA", "ID1") }},
		{"AA", 1, func(t *testing.T, _ *platform.Platform, g *gateway) { want(t, g.ack(), "AA", "ID1") }},
		{"CA", 1, func(t *testing.T, _ *platform.Platform, g *gateway) { want(t, g.ack(), "CA", "ID1") }},
		{"AE", 0, func(t *testing.T, _ *platform.Platform, g *gateway) { want(t, g.ack(), "AE", "ID1") }},
		{"CE", 0, func(t *testing.T, _ *platform.Platform, g *gateway) { want(t, g.ack(), "CE", "ID1") }},
		{"AR", 0, func(t *testing.T, _ *platform.Platform, g *gateway) { want(t, g.ack(), "AR", "ID1") }},
		{"CR", 0, func(t *testing.T, _ *platform.Platform, g *gateway) { want(t, g.ack(), "CR", "ID1") }},
		{"late=80ms", 1, func(t *testing.T, _ *platform.Platform, g *gateway) {
			began := time.Now()
			want(t, g.ack(), "CA", "ID1")
			if took := time.Since(began); took < 60*time.Millisecond {
				t.Errorf("it took %v only", took)
			}
		}},
		{"never", 1, func(_ *testing.T, p *platform.Platform, g *gateway) { g.silent(p) }},
		{"hangup", 1, func(t *testing.T, _ *platform.Platform, g *gateway) {
			if got := read(t, g); got != "" {
				t.Errorf("it said %q before it hung up", got)
			}
		}},
		{"garbage", 1, func(t *testing.T, _ *platform.Platform, g *gateway) {
			b, err := g.conn.ReadBlock(soon())
			if err != nil {
				t.Fatal(err)
			}
			if _, err := pcd.ParseAck(b); err == nil {
				t.Errorf("the garbage is an acknowledgement: %q", b)
			}
		}},
		{"wrong-id", 1, func(t *testing.T, _ *platform.Platform, g *gateway) { want(t, g.ack(), "CA", "NOTYOURS") }},
		{"unframed", 1, func(t *testing.T, _ *platform.Platform, g *gateway) {
			if err := g.tls.SetReadDeadline(soon()); err != nil {
				t.Fatal(err)
			}
			b := make([]byte, 4096)
			n, err := g.tls.Read(b)
			if err != nil || !strings.HasPrefix(string(b[:n]), "MSH|") || !strings.Contains(string(b[:n]), "MSA|CA|ID1") {
				t.Errorf("got %q, %v", b[:n], err)
			}
		}},
		{"dup", 1, func(t *testing.T, _ *platform.Platform, g *gateway) {
			want(t, g.ack(), "CA", "ID1")
			want(t, g.ack(), "CA", "ID1")
		}},
	} {
		t.Run(row.answer, func(t *testing.T) {
			answers, err := platform.ParseAnswers(row.answer)
			if err != nil {
				t.Fatal(err)
			}
			pf := start(t, func(o *platform.Options) { o.Answer = answers })
			g := connect(t, pf)
			g.send(m)
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			if err := pf.Wait(ctx, func(c platform.Counts) bool { return c.Stored+c.Rejected == 1 }); err != nil {
				t.Fatal(err)
			}
			if n := pf.Counts().Stored; n != row.stored {
				t.Errorf("stored %d, want %d", n, row.stored)
			}
			row.check(t, pf, g)
		})
	}
}

func want(t *testing.T, a pcd.Ack, code, id string) {
	t.Helper()
	if a.Code != code || a.ControlID != id {
		t.Errorf("answer %s for %s, want %s for %s", a.Code, a.ControlID, code, id)
	}
}

func TestAScriptOfAnswersIsPlayedInOrder(t *testing.T) {
	answers, err := platform.ParseAnswers("AE*2, CR*1,auto")
	if err != nil {
		t.Fatal(err)
	}
	pf := start(t, func(o *platform.Options) { o.Answer = answers })
	g := connect(t, pf)
	var got []string
	for range 5 {
		got = append(got, g.exchange(message("ID1", "AL", "NE", "72")).Code)
	}
	if fmt.Sprint(got) != "[AE AE CR CA CA]" {
		t.Error(got)
	}
}

func TestAnAnswerThatIsNoneIsRefused(t *testing.T) {
	for script, names := range map[string]string{
		"": "answer", "AX": "AX", "late": "late", "late=-1s": "duration", "AE*0": "*N", "AE,auto": "nothing may follow", "never*x": "number",
	} {
		if _, err := platform.ParseAnswers(script); err == nil || !strings.Contains(err.Error(), names) {
			t.Errorf("%q: %v", script, err)
		}
	}
}

// A2, A8
func TestOnlyAuthorisedDevicesWithGoodCertificatesGetIn(t *testing.T) {
	for who, good := range map[string]bool{
		"device": true, "device-expired": false, "device-not-yet-valid": false, "device-wrong-name": false, "device-wrong-eku": false, "device-foreign": false,
	} {
		t.Run(who, func(t *testing.T) {
			pf := start(t, nil)
			g, err := dial(t, pf, who)
			if err == nil { // in TLS 1.3 the client learns with the first bytes what the server thinks of it
				if err = g.conn.WriteBlock([]byte(message("ID1", "AL", "NE", "72")), soon()); err == nil {
					_, err = g.conn.ReadBlock(soon())
				}
			}
			if (err == nil) != good {
				t.Fatalf("got in: %v (%v)", err == nil, err)
			}
			if !good && !strings.Contains(err.Error(), "remote error: tls:") {
				t.Errorf("the device is not told why: %v", err)
			}
			if n := pf.Counts().Stored; (n == 1) != good {
				t.Errorf("stored %d", n)
			}
		})
	}
	t.Run("a device that is not on the list", func(t *testing.T) {
		pf := start(t, func(o *platform.Options) { o.Authorised = []observation.EUI64{42} })
		g, err := dial(t, pf, "device")
		if err == nil {
			_, err = g.conn.ReadBlock(soon())
		}
		if err == nil || pf.Counts().Connections != 0 {
			t.Errorf("got in: %v", err)
		}
	})
	t.Run("TLS 1.1", func(t *testing.T) {
		pf := start(t, nil)
		raw, err := net.Dial("tcp", pf.Address())
		if err != nil {
			t.Fatal(err)
		}
		defer raw.Close()
		c := tls.Client(raw, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS11, MaxVersion: tls.VersionTLS11})
		if err := c.Handshake(); err == nil || !strings.Contains(err.Error(), "protocol version") {
			t.Errorf("got %v", err)
		}
	})
}

func TestAKilledPlatformResetsItsPeersAndComesBackWithWhatItHad(t *testing.T) {
	pf := start(t, nil)
	m := message("ID1", "AL", "NE", "72")
	g := connect(t, pf)
	g.exchange(m)
	address := pf.Address()
	pf.Kill()
	if _, err := g.conn.ReadBlock(soon()); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the peer saw %v, want a reset", err)
	}
	if _, err := net.Dial("tcp", address); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("dialling a dead platform: %v", err)
	}
	if err := pf.Restart(); err != nil {
		t.Fatal(err)
	}
	if pf.Address() != address {
		t.Errorf("it came back at %s", pf.Address())
	}
	connect(t, pf).exchange(m)
	if c := pf.Counts(); c.Stored != 1 || c.Again != 1 {
		t.Errorf("counts %+v", c)
	}
}

func TestLimitsHoldHostilePeersOff(t *testing.T) {
	refused := func(c platform.Counts) bool { return c.Refused > 0 }
	t.Run("too many connections", func(t *testing.T) {
		pf := start(t, func(o *platform.Options) { o.MaxConnections = 1 })
		g := connect(t, pf)
		want(t, g.exchange(message("ID0", "AL", "NE", "71")), "CA", "ID0") // now it is in for certain
		if _, err := dial(t, pf, "device"); err == nil {
			t.Error("the second got in")
		}
		want(t, g.exchange(message("ID1", "AL", "NE", "72")), "CA", "ID1")
	})
	t.Run("no handshake", func(t *testing.T) {
		pf := start(t, func(o *platform.Options) { o.HandshakeTimeout = 20 * time.Millisecond })
		raw, err := net.Dial("tcp", pf.Address())
		if err != nil {
			t.Fatal(err)
		}
		defer raw.Close()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if err := pf.Wait(ctx, refused); err != nil {
			t.Error(err)
		}
	})
	t.Run("a message that is too large", func(t *testing.T) {
		pf := start(t, func(o *platform.Options) { o.MaxMessage = 2000 })
		g := connect(t, pf)
		_ = g.conn.WriteBlock([]byte(message("ID1", "AL", "NE", strings.Repeat("7", 2000))), soon()) // it may be cut off while it writes
		if _, err := g.conn.ReadBlock(soon()); err == nil {
			t.Error("it was answered")
		}
	})
	t.Run("a message that never ends", func(t *testing.T) {
		pf := start(t, func(o *platform.Options) { o.MessageTimeout = 30 * time.Millisecond })
		g := connect(t, pf)
		if _, err := g.tls.Write([]byte("\x0bMSH|")); err != nil {
			t.Fatal(err)
		}
		if _, err := g.conn.ReadBlock(soon()); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("it still waits: %v", err)
		}
	})
	t.Run("a message that is none", func(t *testing.T) {
		pf := start(t, nil)
		g := connect(t, pf)
		g.send("GET / HTTP/1.1\r")
		if _, err := g.conn.ReadBlock(soon()); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("it still waits: %v", err)
		}
		if c := pf.Counts(); c.Rejected != 1 {
			t.Errorf("counts %+v", c)
		}
	})
}

func TestTheStoreSurvivesARestartAndATornTail(t *testing.T) {
	dir := t.TempDir()
	in := func(o *platform.Options) { o.Dir = dir }
	first := start(t, in)
	g := connect(t, first)
	g.exchange(message("ID1", "AL", "NE", "72"))
	g.exchange(message("ID2", "AL", "NE", "73"))
	g.exchange(message("ID1", "AL", "NE", "72"))
	identity, err := certificates(t).Identity("platform")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := platform.New(platform.Options{Dir: dir, Roots: certificates(t).Roots(), Certificates: []tls.Certificate{identity}}); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("a second platform in one store: %v", err)
	}
	g.tls.Close() // or the platform waits a second for it to hear the end
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(filepath.Join(dir, "messages.hl7"))
	if err != nil {
		t.Fatal(err)
	}
	if string(whole) != message("ID1", "AL", "NE", "72")+"\n"+message("ID2", "AL", "NE", "73")+"\n" {
		t.Errorf("the file holds %q", whole)
	}
	// What a cut leaves: a message without a row, and half a row.
	extend(t, filepath.Join(dir, "messages.hl7"), message("ID3", "AL", "NE", "7"))
	extend(t, filepath.Join(dir, "index.jsonl"), `{"number":3,"control`)

	second := start(t, in)
	if c := second.Counts(); c.Stored != 2 || c.Again != 1 {
		t.Errorf("after the restart: %+v", c)
	}
	g = connect(t, second)
	g.exchange(message("ID2", "AL", "NE", "73"))
	g.exchange(message("ID3", "AL", "NE", "74"))
	if c := second.Counts(); c.Stored != 3 || c.Again != 2 {
		t.Errorf("at the end: %+v", c)
	}
	g.tls.Close()
	if err := second.Close(); err != nil {
		t.Fatal(err)
	}
	after, err := os.ReadFile(filepath.Join(dir, "messages.hl7"))
	if err != nil {
		t.Fatal(err)
	}
	if string(after) != string(whole)+message("ID3", "AL", "NE", "74")+"\n" {
		t.Errorf("the file holds %q", after)
	}
}

func extend(t *testing.T, file, text string) {
	t.Helper()
	f, err := os.OpenFile(file, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(text); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestControlChangesARunningPlatform(t *testing.T) {
	pf := start(t, nil)
	control := pf.Control()
	do := func(method, path, body string) *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		control.ServeHTTP(w, httptest.NewRequest(method, path, strings.NewReader(body)))
		return w
	}
	if w := do("POST", "/answer", "AE*1,auto"); w.Code != 200 {
		t.Fatal(w.Body)
	}
	g := connect(t, pf)
	want(t, g.exchange(message("ID1", "AL", "NE", "72")), "AE", "ID1")
	want(t, g.exchange(message("ID1", "AL", "NE", "72")), "CA", "ID1")
	if w := do("POST", "/answer", "perhaps"); w.Code != 400 || !strings.Contains(w.Body.String(), "perhaps") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if w := do("POST", "/kill", ""); !strings.Contains(w.Body.String(), `"alive":false`) {
		t.Error(w.Body)
	}
	if w := do("POST", "/restart", ""); !strings.Contains(w.Body.String(), `"alive":true`) {
		t.Error(w.Body)
	}
	if w := do("POST", "/restart", ""); w.Code != 400 || !strings.Contains(w.Body.String(), "already") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if w := do("POST", "/kill?for=soon", ""); w.Code != 400 {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if w := do("POST", "/kill?for=10ms", ""); w.Code != 200 {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	for deadline := soon(); !pf.State().Alive; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it did not come back")
		}
	}
	if w := do("GET", "/status", ""); !strings.Contains(w.Body.String(), `"stored":1`) {
		t.Error(w.Body)
	}
}

func TestEventsTellTheCourseOfASession(t *testing.T) {
	var kinds []platform.EventKind
	pf := start(t, func(o *platform.Options) { o.Events = func(e platform.Event) { kinds = append(kinds, e.Kind) } })
	g := connect(t, pf)
	g.exchange(message("ID1", "AL", "NE", "72"))
	g.exchange(message("ID1", "AL", "NE", "72"))
	g.exchange(strings.Replace(message("ID2", "AL", "NE", "72"), "|2.6|", "|2.5|", 1))
	if err := g.tls.Close(); err != nil {
		t.Fatal(err)
	}
	if err := pf.Close(); err != nil {
		t.Fatal(err)
	}
	wanted := []platform.EventKind{platform.Listening, platform.Connected, platform.Stored, platform.Again, platform.Rejected, platform.Closed}
	if !slices.Equal(kinds, wanted) {
		t.Errorf("events %v, want %v", kinds, wanted)
	}
}
