package fetch

import (
	"bytes"
	"context"
	"crypto/x509"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/bedside-gateway/gatewayd/internal/sim/pki"
	"github.com/bedside-gateway/gatewayd/internal/sim/responder"
	"github.com/bedside-gateway/gatewayd/revocation"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// epoch is where the clock of a synctest bubble begins.
var epoch = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

var hospital = sync.OnceValues(func() (*pki.PKI, error) {
	return pki.New(pki.Options{Now: epoch, OCSPURL: "http://ocsp.test/{ca}", CRLURL: "http://crl.test/{ca}.crl"})
})

// A clock that stands until it is moved.
type clock struct{ offset atomic.Int64 }

func (c *clock) now() time.Time       { return epoch.Add(time.Minute + time.Duration(c.offset.Load())) }
func (c *clock) move(d time.Duration) { c.offset.Add(int64(d)) }

// A ward is a hospital whose servers can be told to misbehave.
type ward struct {
	*pki.PKI
	*clock
	ocsp, crl *responder.Server
	before    http.HandlerFunc // may answer in their place
	methods   sync.Map         // what was asked by: *atomic.Int32 by method
	hosts     map[string]http.Handler
}

func newWard(t testing.TB, now func() time.Time) *ward {
	t.Helper()
	p, err := hospital()
	if err != nil {
		t.Fatal(err)
	}
	w := &ward{PKI: p, clock: &clock{}}
	if now == nil {
		now = w.now
	}
	if w.ocsp, err = responder.New(responder.Options{PKI: p, Now: now}); err != nil {
		t.Fatal(err)
	}
	if w.crl, err = responder.NewCRL(responder.Options{PKI: p, Now: now}); err != nil {
		t.Fatal(err)
	}
	w.hosts = map[string]http.Handler{"ocsp.test": w.ocsp, "crl.test": w.crl}
	return w
}

func (w *ward) chain(t testing.TB, name string) []*x509.Certificate {
	t.Helper()
	c, err := w.Chain(name)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (w *ward) asked(name string) int    { return w.ocsp.State().Asked[name] }
func (w *ward) askedCRL(name string) int { return w.crl.State().Asked[name] }
func (w *ward) by(method string) int {
	n, _ := w.methods.LoadOrStore(method, new(atomic.Int32))
	return int(n.(*atomic.Int32).Load())
}

func (w *ward) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	n, _ := w.methods.LoadOrStore(r.Method, new(atomic.Int32))
	n.(*atomic.Int32).Add(1)
	done := &touched{ResponseWriter: rw}
	if w.before != nil {
		if w.before(done, r); done.yes {
			return
		}
	}
	h := w.hosts[r.Host]
	if h == nil {
		http.NotFound(rw, r)
		return
	}
	h.ServeHTTP(rw, r)
}

type touched struct {
	http.ResponseWriter
	yes bool
}

func (t *touched) WriteHeader(code int)        { t.yes = true; t.ResponseWriter.WriteHeader(code) }
func (t *touched) Write(b []byte) (int, error) { t.yes = true; return t.ResponseWriter.Write(b) }

// overHTTP is a client that reaches the ward's servers under all names, over real connections.
func (w *ward) overHTTP(t testing.TB) *http.Client {
	s := httptest.NewServer(w)
	t.Cleanup(s.Close)
	return &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true, DisableCompression: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", s.Listener.Addr().String())
		},
	}}
}

// direct reaches them without connections, for tests in a bubble.
type direct struct{ http.Handler }

func (d direct) RoundTrip(r *http.Request) (*http.Response, error) {
	answer := make(chan *http.Response, 1)
	go func() {
		rec := httptest.NewRecorder()
		r := r.Clone(r.Context())
		r.Host = r.URL.Host
		if r.Body == nil {
			r.Body = http.NoBody
		}
		d.ServeHTTP(rec, r)
		answer <- rec.Result()
	}()
	select {
	case a := <-answer:
		return a, nil
	case <-r.Context().Done():
		return nil, r.Context().Err()
	}
}

func (w *ward) fetcher(t testing.TB, change func(*Options)) *Fetcher {
	o := Options{Now: w.now}
	if change != nil {
		change(&o)
	}
	if o.Client == nil {
		o.Client = w.overHTTP(t)
	}
	f := New(o)
	t.Cleanup(f.Close)
	return f
}

// A journal is a log that tests read.
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

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func kinds(verdicts []revocation.Verdict) []revocation.Kind {
	list := make([]revocation.Kind, len(verdicts))
	for i, v := range verdicts {
		list[i] = v.Kind
	}
	return list
}
