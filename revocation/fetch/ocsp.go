package fetch

import (
	"context"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"io/fs"
	"net/url"
	"time"

	"golang.org/x/crypto/ocsp"

	"github.com/bedside-gateway/gatewayd/revocation"
)

const fetchedResponse = "fetched response"

// An answer is what is known of one certificate. Fetcher.mu guards it.
type answer struct {
	pair
	name key

	// The last response that was authentic and said good or revoked.
	der        []byte
	verdict    revocation.Verdict
	judged     time.Time
	until      time.Time // the verdict holds as long, if the CRLs stay as they are
	generation int
	fetched    time.Time

	// Why there is no newer one.
	problem  error
	refused  []byte // what was sent in its place, to be judged for its reason
	failures int
	retry    time.Time

	flight *flight
	tried  bool // the disk was looked at
	used   time.Time
	pins   int // keepers
}

// OCSP returns the response for a certificate: the remembered one while it is
// fresh, else a new one from the URLs in the certificate. Every response it
// returns says good or revoked and passed revocation.Judge; what did not is an
// error, and is not asked for again for a while.
func (f *Fetcher) OCSP(ctx context.Context, cert, issuer *x509.Certificate) ([]byte, error) {
	der, _, err := f.obtain(ctx, pair{cert, issuer})
	return der, err
}

// obtain is OCSP; where it fails, refused is what was sent in place of a good
// response, if anything was.
func (f *Fetcher) obtain(ctx context.Context, p pair) (der, refused []byte, err error) {
	f.mu.Lock()
	a, err := f.entry(p)
	if err != nil {
		f.mu.Unlock()
		return nil, nil, err
	}
	now := f.o.Now()
	a.used = now
	if f.fresh(a, now) {
		defer f.mu.Unlock()
		f.counts.Remembered++
		return a.der, nil, nil
	}
	if a.problem != nil && now.Before(a.retry) {
		defer f.mu.Unlock()
		return nil, a.refused, a.problem
	}
	fl := f.ask(a)
	f.mu.Unlock()
	if err := fl.wait(ctx); err != nil {
		f.mu.Lock()
		defer f.mu.Unlock()
		return nil, a.refused, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.fresh(a, f.o.Now()) {
		return nil, nil, errors.New("the response expired on its way")
	}
	return a.der, nil, nil
}

// entry is the answer for a pair, a new one where there is none. f.mu is held.
func (f *Fetcher) entry(p pair) (*answer, error) {
	k := p.key()
	if a := f.answers[k]; a != nil {
		return a, nil
	}
	// The URLs of a certificate are used only if its issuer vouched for them.
	if err := p.cert.CheckSignatureFrom(p.issuer); err != nil {
		return nil, errors.New("the certificate was not issued by the CA given as its issuer")
	}
	if len(f.answers) >= maxAnswers {
		f.makeRoom()
	}
	a := &answer{pair: p, name: k}
	f.answers[k] = a
	return a, nil
}

// makeRoom drops the answer that was not used for the longest time.
func (f *Fetcher) makeRoom() {
	var oldest *answer
	for _, a := range f.answers {
		if a.pins == 0 && a.flight == nil && (oldest == nil || a.used.Before(oldest.used)) {
			oldest = a
		}
	}
	if oldest != nil {
		delete(f.answers, oldest.name)
	}
}

// fresh reports whether the answer holds now. f.mu is held.
func (f *Fetcher) fresh(a *answer, now time.Time) bool {
	if len(a.der) == 0 {
		return false
	}
	if a.generation == f.generation && !now.Before(a.judged) && now.Before(a.until) {
		return true
	}
	v := f.judge(a.pair, a.der, now)
	if !settled(v) {
		a.der = nil
		return false
	}
	f.keep(a, a.der, v, now)
	return true
}

// judge judges a response with the CRLs that are there. f.mu is held.
func (f *Fetcher) judge(p pair, der []byte, now time.Time) revocation.Verdict {
	rules := f.o.Rules
	rules.CRLs = false // here it is about this response alone
	e := revocation.Evidence{Responses: [][]revocation.Response{{{DER: der, Source: fetchedResponse}}}, CRLs: f.listsOf(p.issuer)}
	return revocation.Judge(p.chain(), e, now, rules)[0]
}

// due is when to ask again; zero is never. Nobody asks for a device that has
// not come back since the last time. f.mu is held.
func (a *answer) due() time.Time {
	switch {
	case a.flight != nil, a.pins == 0 && (len(a.der) == 0 || a.used.Before(a.fetched)):
		return time.Time{}
	case len(a.der) == 0:
		return later(a.retry, a.used)
	}
	return later(a.retry, earlier(half(a.verdict.ThisUpdate, a.verdict.NextUpdate), a.fetched.Add(maxRefresh)))
}

func half(from, to time.Time) time.Time { return from.Add(to.Sub(from) / 2) }

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

func (f *Fetcher) keep(a *answer, der []byte, v revocation.Verdict, now time.Time) {
	a.der, a.verdict, a.judged, a.generation = der, v, now, f.generation
	a.until = v.NextUpdate
	if age := f.o.Rules.MaxAge; age > 0 {
		a.until = earlier(a.until, v.ThisUpdate.Add(age))
	}
	for _, c := range embedded(der) {
		a.until = earlier(a.until, c.NotAfter)
	}
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// embedded are the certificates that a response brings along. One of them may
// have signed it, and the response holds no longer than its signer.
func embedded(der []byte) []*x509.Certificate {
	var outer struct {
		Status asn1.Enumerated
		Bytes  struct {
			Type     asn1.ObjectIdentifier
			Response []byte
		} `asn1:"explicit,tag:0,optional"`
	}
	var basic struct {
		TBS, Algorithm asn1.RawValue
		Signature      asn1.BitString
		Certificates   []asn1.RawValue `asn1:"explicit,tag:0,optional"`
	}
	if _, err := asn1.Unmarshal(der, &outer); err != nil {
		return nil
	}
	if _, err := asn1.Unmarshal(outer.Bytes.Response, &basic); err != nil {
		return nil
	}
	var list []*x509.Certificate
	for _, raw := range basic.Certificates {
		if c, err := x509.ParseCertificate(raw.FullBytes); err == nil {
			list = append(list, c)
		}
	}
	return list
}

// ask fetches anew, or joins the fetch under way. f.mu is held.
func (f *Fetcher) ask(a *answer) *flight {
	if a.flight != nil {
		return a.flight
	}
	first := !a.tried
	a.tried = true
	a.flight = f.fly(func(ctx context.Context) (func(), error) {
		if first {
			if der, v := f.load(a); der != nil {
				return func() { f.landed(a, der, v, true) }, nil
			}
		}
		der, v, refused, err := f.askResponders(ctx, a.pair)
		if err != nil {
			return func() { f.missed(a, refused, err) }, err
		}
		f.save(a.name.String()+".ocsp", der)
		return func() { f.landed(a, der, v, false) }, nil
	})
	return a.flight
}

// landed takes a response that Judge accepted. An older one than the one at
// hand changes nothing: it may be from before a revocation. f.mu is held.
func (f *Fetcher) landed(a *answer, der []byte, v revocation.Verdict, loaded bool) {
	now := f.o.Now()
	a.flight, a.problem, a.refused, a.failures, a.retry = nil, nil, nil, 0, time.Time{}
	if len(a.der) == 0 || !v.ThisUpdate.Before(a.verdict.ThisUpdate) {
		f.keep(a, der, v, now)
	}
	a.fetched = now
	if loaded {
		f.counts.Loaded++
		a.fetched = v.ThisUpdate
	} else {
		f.counts.Fetched++
		// A responder that repeats an old response is asked more often towards its end, not all the time.
		a.retry = now.Add(max(firstBackoff, v.NextUpdate.Sub(now)/8))
	}
	f.nudge()
}

// missed notes a failure. A response at hand stays. f.mu is held.
func (f *Fetcher) missed(a *answer, refused []byte, err error) {
	a.flight, a.problem, a.refused = nil, err, refused
	a.failures++
	a.retry = f.o.Now().Add(backoff(a.failures))
	f.counts.Failed++
	f.nudge()
}

// load reads the response from the disk, and judges it.
func (f *Fetcher) load(a *answer) ([]byte, revocation.Verdict) {
	name := a.name.String() + ".ocsp"
	der, err := f.read(name, f.o.MaxResponse)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			f.damaged(name, err)
		}
		return nil, revocation.Verdict{}
	}
	f.mu.Lock()
	v := f.judge(a.pair, der, f.o.Now())
	f.mu.Unlock()
	switch {
	case settled(v):
		return der, v
	case v.Kind != revocation.Stale && v.Kind != revocation.TooOld:
		f.damaged(name, v)
	}
	return nil, v
}

// askResponders tries the URLs of a certificate one after the other. refused is
// the last response that was sent and did not pass.
func (f *Fetcher) askResponders(ctx context.Context, p pair) (der []byte, v revocation.Verdict, refused []byte, err error) {
	urls := p.cert.OCSPServer
	if len(urls) == 0 {
		return nil, v, nil, errors.New("the certificate names no OCSP responder")
	}
	request, err := ocsp.CreateRequest(p.cert, p.issuer, nil)
	if err != nil {
		return nil, v, nil, errors.New("no OCSP request can be made of the certificate")
	}
	select {
	case f.slots <- struct{}{}:
		defer func() { <-f.slots }()
	case <-ctx.Done():
		return nil, v, nil, errors.New("too many other fetches are under way")
	}
	var problems []error
	for _, named := range urls[:min(len(urls), maxURLs)] {
		q := question{f: f, pair: p, named: named, request: request}
		if der, v, err = q.put(ctx); err == nil {
			return der, v, nil, nil
		}
		if len(der) > 0 {
			refused = der
		}
		problems = append(problems, err)
	}
	return nil, v, refused, errors.Join(problems...)
}

// A question is one certificate's, to one responder.
type question struct {
	f *Fetcher
	pair
	named   string
	request []byte
}

// put asks by GET, which caches on the way understand, and by POST where the
// GET was answered, but not well (RFC 6960, appendix A.1).
func (q question) put(ctx context.Context) ([]byte, revocation.Verdict, error) {
	u, err := usable(q.named)
	if err != nil {
		return nil, revocation.Verdict{}, err
	}
	if long, ok := withRequest(u, q.request); ok {
		der, v, err := q.try(ctx, long, nil)
		if e, isHTTP := errors.AsType[*Error](err); err == nil || isHTTP && (e.down || e.Err != nil) {
			return der, v, err
		}
	}
	return q.try(ctx, u, q.request)
}

func (q question) try(ctx context.Context, u *url.URL, body []byte) ([]byte, revocation.Verdict, error) {
	der, err := q.f.do(ctx, u, body, q.f.wantResponse(), q.named)
	if err != nil {
		return nil, revocation.Verdict{}, err
	}
	q.f.mu.Lock()
	v := q.f.judge(q.pair, der, q.f.o.Now())
	q.f.mu.Unlock()
	if !settled(v) {
		return der, v, v
	}
	return der, v, nil
}
