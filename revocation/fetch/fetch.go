// Package fetch gets the OCSP responses and CRLs by which package revocation
// judges, keeps them, and renews them in time (A9, A10).
//
// It never believes what it got: a response or CRL is judged before it is
// kept, again when it comes from the disk, and again by whoever uses it. It
// connects to nothing but the http URLs that a certificate signed by its issuer
// names, and it waits for no responder longer than Options.Timeout; one that
// failed is left alone for a while, so that a dead responder does not hold up
// every handshake. Package southbound judges devices with it and staples what
// its Keeper holds.
package fetch

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/bedside-gateway/gatewayd/revocation"
)

// Options of a Fetcher. The zero value works, without a cache on disk.
type Options struct {
	// Client fetches; nil is one of our own, without proxy. Its redirect
	// policy is replaced: another host is never followed to.
	Client *http.Client
	Now    func() time.Time // nil is the system's clock
	// Dir keeps what was fetched over a restart; "" keeps nothing. What is
	// read from it is judged as if it came from the network.
	Dir         string
	Log         *slog.Logger  // nil logs nothing
	MaxResponse int64         // bytes of an OCSP response; 0 is 64 KiB
	MaxCRL      int64         // bytes of a CRL; 0 is 4 MiB, some 100,000 entries
	Timeout     time.Duration // for all tries of one fetch together; 0 is 5 s
	Rules       revocation.Rules
}

// Bounds of what is kept and done at once.
const (
	maxAnswers     = 4096 // certificates with a remembered response or failure
	maxAuthorities = 64   // issuers with CRLs
	maxLists       = 4    // CRLs of one issuer, one for each scope
	maxURLs        = 4    // tried for one certificate or issuer
	maxFetches     = 8    // at once
	maxFiles       = 2 * maxAnswers

	// A response is renewed at half of its life, and after a day where it
	// lives long, so that a revocation does not stay unseen for weeks.
	maxRefresh = 24 * time.Hour

	firstBackoff = 10 * time.Second
	maxBackoff   = 5 * time.Minute
)

// A Fetcher fetches and remembers. Its methods are safe for concurrent use.
type Fetcher struct {
	o       Options
	client  http.Client
	disk    *store // nil without Options.Dir
	life    context.Context
	end     context.CancelFunc
	flights sync.WaitGroup
	slots   chan struct{}
	wake    chan struct{} // something is due earlier than Run knows

	mu          sync.Mutex
	closed      bool
	answers     map[key]*answer
	authorities map[key]*authority
	hosts       map[string]*host
	generation  int // of the CRLs: verdicts on delegated signers depend on them
	counts      Counts
}

// Counts are what a Fetcher counted since it was made.
type Counts struct {
	Fetched    uint64 // responses and CRLs that were accepted
	Failed     uint64 // fetches that gave nothing acceptable
	Remembered uint64 // questions answered from memory
	Loaded     uint64 // responses and CRLs accepted from the disk
	Damaged    uint64 // files that were ignored, because they are not what was written
}

// New makes a Fetcher. Run renews what it holds; Close ends it. A directory
// that cannot be used is logged, and the Fetcher works without it.
func New(o Options) *Fetcher {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	o.MaxResponse, o.MaxCRL = cmp.Or(o.MaxResponse, 64<<10), cmp.Or(o.MaxCRL, 4<<20)
	o.Timeout = cmp.Or(o.Timeout, 5*time.Second)
	f := &Fetcher{
		o: o, client: newClient(o), slots: make(chan struct{}, maxFetches), wake: make(chan struct{}, 1),
		answers: map[key]*answer{}, authorities: map[key]*authority{}, hosts: map[string]*host{},
	}
	f.life, f.end = context.WithCancel(context.Background())
	if o.Dir == "" {
		return f
	}
	disk, err := openStore(o.Dir, maxFiles)
	if err != nil {
		o.Log.Error("revocation cache: not kept on disk", "dir", o.Dir, "error", err, "next", "make the directory writable for the gateway")
		return f
	}
	f.disk = disk
	return f
}

func newClient(o Options) http.Client {
	var c http.Client
	if o.Client != nil {
		c = *o.Client
	} else {
		// No proxy: the responders are in the hospital's network. No kept
		// connections: a responder is asked every few hours.
		c.Transport = &http.Transport{
			DialContext:       (&net.Dialer{Timeout: o.Timeout}).DialContext,
			DisableKeepAlives: true, DisableCompression: true,
			MaxResponseHeaderBytes: 16 << 10,
		}
	}
	c.CheckRedirect, c.Jar = stayHere, nil
	return c
}

// Close ends fetches that are under way and waits for them.
func (f *Fetcher) Close() {
	f.mu.Lock()
	f.closed = true
	f.mu.Unlock()
	f.end()
	f.flights.Wait()
	if f.disk != nil {
		f.disk.close()
	}
}

// Counts are the figures of now.
func (f *Fetcher) Counts() Counts {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.counts
}

func (f *Fetcher) count(change func(*Counts)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(&f.counts)
}

// A pair is a certificate and its issuer, as a verified chain has them.
type pair struct{ cert, issuer *x509.Certificate }

func (p pair) chain() []*x509.Certificate { return []*x509.Certificate{p.cert, p.issuer} }

// A key names a pair or an issuer.
type key [sha256.Size]byte

func (k key) String() string { return hex.EncodeToString(k[:20]) }

func (p pair) key() key { return keyOf(p.cert.Raw, p.issuer.Raw) }

func keyOf(parts ...[]byte) key {
	h := sha256.New()
	for _, b := range parts {
		n := len(b)
		h.Write([]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)})
		h.Write(b)
	}
	return key(h.Sum(nil))
}

// settled reports whether a verdict answers the question, either way.
func settled(v revocation.Verdict) bool {
	return v.Kind == revocation.Good || v.Kind == revocation.Revoked
}

// A flight is a fetch under way. Whoever wants its result waits for done.
type flight struct {
	done chan struct{}
	err  error // valid after done
}

func (fl *flight) wait(ctx context.Context) error {
	select {
	case <-fl.done:
		return fl.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// fly starts a fetch that outlives the caller who wanted it first: others may
// wait for it as well. land takes the result under the lock. f.mu is held.
func (f *Fetcher) fly(work func(context.Context) (land func(), err error)) *flight {
	fl := &flight{done: make(chan struct{})}
	if f.closed {
		fl.err = net.ErrClosed
		close(fl.done)
		return fl
	}
	f.flights.Go(func() {
		defer close(fl.done)
		ctx, cancel := context.WithTimeout(f.life, f.o.Timeout)
		defer cancel()
		var land func()
		land, fl.err = work(ctx)
		f.mu.Lock()
		defer f.mu.Unlock()
		land()
	})
	return fl
}

// backoff is how long to leave alone what failed n times in a row.
func backoff(n int) time.Duration {
	return min(firstBackoff<<min(max(n-1, 0), 10), maxBackoff)
}

// nudge makes Run look again at what is due.
func (f *Fetcher) nudge() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}
