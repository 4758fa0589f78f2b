package southbound

import (
	"bytes"
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/bedside-gateway/gatewayd/internal/sim/pki"
	"github.com/bedside-gateway/gatewayd/internal/sim/responder"
	"github.com/bedside-gateway/gatewayd/mllp"
	"github.com/bedside-gateway/gatewayd/pcd"
	"github.com/bedside-gateway/gatewayd/revocation/fetch"
	"github.com/bedside-gateway/gatewayd/tlsoverlay"
	"github.com/bedside-gateway/gatewayd/tlspolicy"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// The RSA half costs some seconds under the race detector.
var hospital = sync.OnceValues(func() (*pki.PKI, error) {
	o := pki.Options{OCSPURL: "http://ocsp.test/{ca}", CRLURL: "http://crl.test/{ca}.crl"}
	if !testing.Short() {
		o.Schemes = []pki.Scheme{pki.ECC, pki.RSA}
	}
	return pki.New(o)
})

const deviceCN = "0123456789ABCDEF"

// A ward is a running server with everything around it.
type ward struct {
	*pki.PKI
	*Server
	t         testing.TB
	ocsp, crl *responder.Server
	fetcher   *fetch.Fetcher
	address   string
	log       *journal
	stop      func() error // ends Serve and returns its error
	got       chan received
}

type received struct{ device, message string }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func needOverlay(t testing.TB) {
	t.Helper()
	if err := tlsoverlay.Check(); err != nil {
		if os.Getenv("NEED_TLS_OVERLAY") == "1" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
}

func newWard(t testing.TB, change func(*Options)) *ward {
	t.Helper()
	return newWardOn(t, change, nil)
}

func newWardOn(t testing.TB, change func(*Options), wrap func(net.Listener) net.Listener) *ward {
	t.Helper()
	needOverlay(t)
	p, err := hospital()
	must(t, err)
	w := &ward{PKI: p, t: t, log: &journal{}, got: make(chan received, 100)}
	w.ocsp, err = responder.New(responder.Options{PKI: p})
	must(t, err)
	w.crl, err = responder.NewCRL(responder.Options{PKI: p})
	must(t, err)
	w.fetcher = fetch.New(fetch.Options{Client: w.client(), Timeout: 2 * time.Second})
	t.Cleanup(w.fetcher.Close)
	o := Options{
		Roots: p.Roots(), Fetcher: w.fetcher, Log: w.log.log(),
		Authorised: func(cn string) bool { return cn == deviceCN },
		Sink: func(_ context.Context, device string, message []byte) error {
			w.got <- received{device, string(message)}
			return nil
		},
	}
	names := []string{"platform"}
	if !testing.Short() {
		names = append(names, "rsa-platform")
	}
	for _, name := range names {
		id, err := p.Identity(name)
		must(t, err)
		o.Identities = append(o.Identities, id)
	}
	if change != nil {
		change(&o)
	}
	w.Server, err = New(o)
	must(t, err)
	t.Cleanup(w.Server.Close)
	_ = w.FetchStaples(t.Context()) // tests with a dead responder go on without
	w.serve(wrap)
	return w
}

func (w *ward) serve(wrap func(net.Listener) net.Listener) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(w.t, err)
	w.address = l.Addr().String()
	if wrap != nil {
		l = wrap(l)
	}
	ctx, cancel := context.WithCancel(w.t.Context())
	ended := make(chan error, 1)
	go func() { ended <- w.Serve(ctx, l) }()
	w.stop = sync.OnceValue(func() error {
		cancel()
		return <-ended
	})
	w.t.Cleanup(func() {
		if err := w.stop(); err != nil {
			w.t.Errorf("Serve: %v", err)
		}
	})
}

// client reaches the responders under all names.
func (w *ward) client() *http.Client {
	s := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.Host == "crl.test" {
			w.crl.ServeHTTP(rw, r)
			return
		}
		w.ocsp.ServeHTTP(rw, r)
	}))
	w.t.Cleanup(s.Close)
	return &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", s.Listener.Addr().String())
		},
	}}
}

// config is that of our own Interface B: it refuses a server that does not
// staple for its whole chain.
func (w *ward) config(device string, max uint16) *tls.Config {
	w.t.Helper()
	id, err := w.Identity(device)
	must(w.t, err)
	c, err := tlspolicy.Client{ServerName: pki.DefaultPlatform, Roots: w.Roots(), Identity: id}.Config()
	must(w.t, err)
	c.MaxVersion = max
	return c
}

func (w *ward) dial(c *tls.Config) (*tls.Conn, error) {
	raw, err := net.Dial("tcp", w.address)
	must(w.t, err)
	conn := tls.Client(raw, c)
	w.t.Cleanup(func() { _ = raw.Close() })
	must(w.t, conn.SetDeadline(time.Now().Add(20*time.Second)))
	return conn, conn.Handshake()
}

// device is a connected device.
func (w *ward) device() *mllp.Conn {
	w.t.Helper()
	c, err := w.dial(w.config("device", tls.VersionTLS13))
	must(w.t, err)
	return mllp.NewConn(c, 1<<16)
}

var inTime = func() time.Time { return time.Now().Add(20 * time.Second) }

func (w *ward) exchange(c *mllp.Conn, message string) pcd.Ack {
	w.t.Helper()
	must(w.t, c.WriteBlock([]byte(message), inTime()))
	return w.ack(c)
}

func (w *ward) ack(c *mllp.Conn) pcd.Ack {
	w.t.Helper()
	b, err := c.ReadBlock(inTime())
	must(w.t, err)
	a, err := pcd.ParseAck(b)
	must(w.t, err)
	return a
}

// refused waits for the server's note of a refusal.
func (w *ward) refused(rule string) Refusal {
	w.t.Helper()
	var found Refusal
	w.until("a refusal by rule "+rule, func(s Status) bool {
		for _, r := range s.Refusals {
			if r.Rule == rule {
				found = r
				return true
			}
		}
		return false
	})
	return found
}

// until polls: what the server does is not visible otherwise.
func (w *ward) until(what string, is func(Status) bool) {
	w.t.Helper()
	for end := inTime(); !is(w.Status()); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			w.t.Fatalf("no %s: %+v\n%s", what, w.Status(), w.log)
		}
	}
}

// message is a small PCD-01 message with an ID and what it wants as answer.
func message(id, accept, application string) string {
	return strings.Join([]string{
		`MSH|^~\&|PUMP^0123456789ABCDEF^EUI-64||GW||20261124120000+0000||ORU^R01^ORU_R01|` + id + `|P|2.6|||` + accept + `|` + application + `|||||IHE_PCD_001^IHE PCD^1.3.6.1.4.1.19376.1.6.1.1.1^ISO`,
		`PID|||42^^^H^PI||Doe^J^^^^^L`,
		`OBR|1|1^PUMP^0123456789ABCDEF^EUI-64|1^PUMP^0123456789ABCDEF^EUI-64|69985^MDC_DEV_PUMP_INFUS_MDS^MDC|||20261124120000+0000`,
		`OBX|1|NM|157784^MDC_FLOW_FLUID_PUMP^MDC|1.1.1.1|12|265266^MDC_DIM_MILLI_L_PER_HR^MDC|||||R`,
	}, "\r") + "\r"
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
