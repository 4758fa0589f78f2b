package fetch

import (
	"context"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"github.com/bedside-gateway/gatewayd/revocation"
)

// An authority is an issuer and its CRLs. Fetcher.mu guards it.
type authority struct {
	issuer   *x509.Certificate
	name     key
	urls     []string // of the certificates it issued, and of its CRLs
	lists    []*list  // one for each scope
	flight   *flight
	tried    bool // the disk was looked at
	problem  error
	failures int
	retry    time.Time
	used     time.Time
}

// A list is a CRL that was authentic when it was taken.
type list struct {
	*x509.RevocationList
	scope   string // its issuing distribution point, "" covers everything
	fetched time.Time
}

// AddCRL installs a CRL, in DER or PEM, as A9 asks for at setup. One that is
// not authentic is refused. One that is stale is refused too, but the URL in
// it is remembered, and its successor is fetched from there.
func (f *Fetcher) AddCRL(crl []byte, issuer *x509.Certificate) error {
	if block, _ := pem.Decode(crl); block != nil && block.Type == "X509 CRL" {
		crl = block.Bytes
	}
	parsed, err := x509.ParseRevocationList(crl)
	if err != nil {
		return fmt.Errorf("the CRL of %s cannot be read: %w", quote(issuer.Subject.CommonName), err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	now := f.o.Now()
	// Judged at its own time first: what speaks against it then is more than age.
	if err := revocation.CheckCRL(parsed, issuer, parsed.ThisUpdate, revocation.Rules{}); err != nil {
		return fmt.Errorf("the CRL of %s is refused: %w", quote(issuer.Subject.CommonName), err)
	}
	a := f.authority(issuer)
	a.used = now
	a.learn(ownURLs(parsed))
	f.nudge()
	if err := revocation.CheckCRL(parsed, issuer, now, f.o.Rules); err != nil {
		return fmt.Errorf("the CRL of %s is refused: %w", quote(issuer.Subject.CommonName), err)
	}
	if f.take(a, parsed, now) {
		f.save(a.file(scopeOf(parsed)), parsed.Raw)
	}
	return nil
}

// CRLs returns the CRLs that bear on a chain: those that are there, and for a
// certificate that none of them covers what its URLs give. The chain is
// ordered from the leaf and was verified before.
func (f *Fetcher) CRLs(ctx context.Context, chain []*x509.Certificate) []*x509.RevocationList {
	var flights []*flight
	for i := range max(len(chain)-1, 0) {
		if fl, err := f.cover(pair{chain[i], chain[i+1]}); err == nil && fl != nil {
			flights = append(flights, fl)
		}
	}
	for _, fl := range flights {
		_ = fl.wait(ctx) // its problem is kept at the authority, and the CRL is missing in what is returned
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	var all []*x509.RevocationList
	for _, issuer := range chain[min(1, len(chain)):] {
		all = append(all, f.listsOf(issuer)...)
	}
	return all
}

// cover fetches CRLs where none covers the certificate. It returns nil where
// one does, and an error where it makes no sense to try now.
func (f *Fetcher) cover(p pair) (*flight, error) {
	if p.cert.CheckSignatureFrom(p.issuer) != nil {
		return nil, errors.New("the certificate was not issued by the CA given as its issuer")
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	now := f.o.Now()
	a := f.authority(p.issuer)
	a.used = now
	a.learn(p.cert.CRLDistributionPoints)
	switch {
	case settled(f.judgeByCRL(p, now)):
		return nil, nil
	case a.problem != nil && now.Before(a.retry):
		return nil, a.problem
	case len(a.urls) == 0 && (a.tried || f.disk == nil):
		return nil, errors.New("no CRL is installed for it, and the certificate names no URL of one")
	}
	return f.refresh(a), nil
}

func (f *Fetcher) judgeByCRL(p pair, now time.Time) revocation.Verdict {
	rules := f.o.Rules
	rules.CRLs = true
	return revocation.Judge(p.chain(), revocation.Evidence{CRLs: f.listsOf(p.issuer)}, now, rules)[0]
}

// authority is the record of an issuer, a new one where there is none. f.mu is held.
func (f *Fetcher) authority(issuer *x509.Certificate) *authority {
	k := keyOf(issuer.Raw)
	if a := f.authorities[k]; a != nil {
		return a
	}
	if len(f.authorities) >= maxAuthorities {
		f.dropAuthority()
	}
	a := &authority{issuer: issuer, name: k}
	f.authorities[k] = a
	return a
}

func (f *Fetcher) dropAuthority() {
	var oldest *authority
	for _, a := range f.authorities {
		if a.flight == nil && (oldest == nil || a.used.Before(oldest.used)) {
			oldest = a
		}
	}
	if oldest != nil {
		delete(f.authorities, oldest.name)
	}
}

// learn remembers where CRLs are. The last slot is the newest certificate's.
func (a *authority) learn(urls []string) {
	for _, u := range urls[:min(len(urls), maxURLs)] {
		if slices.Contains(a.urls, u) {
			continue
		}
		if len(a.urls) >= maxURLs {
			a.urls = a.urls[:maxURLs-1]
		}
		a.urls = append(a.urls, u)
		a.retry = time.Time{} // a new one was not tried yet
	}
}

// listsOf are the CRLs of an issuer that are there. f.mu is held.
func (f *Fetcher) listsOf(issuer *x509.Certificate) []*x509.RevocationList {
	a := f.authorities[keyOf(issuer.Raw)]
	if a == nil {
		return nil
	}
	all := make([]*x509.RevocationList, len(a.lists))
	for i, l := range a.lists {
		all[i] = l.RevocationList
	}
	return all
}

// take puts a CRL in the place of an older one of the same scope. f.mu is held.
func (f *Fetcher) take(a *authority, crl *x509.RevocationList, fetched time.Time) bool {
	l := &list{crl, scopeOf(crl), fetched}
	at := slices.IndexFunc(a.lists, func(old *list) bool { return old.scope == l.scope })
	switch {
	case at < 0 && len(a.lists) >= maxLists:
		return false
	case at < 0:
		a.lists = append(a.lists, l)
	case !older(crl, a.lists[at].RevocationList):
		a.lists[at] = l
	default:
		a.lists[at].fetched = fetched // asked for, and nothing newer is there
		return false
	}
	f.generation++
	return true
}

// older: a CRL from before the one at hand may be from before a revocation.
func older(a, b *x509.RevocationList) bool {
	if a.Number != nil && b.Number != nil && a.Number.Cmp(b.Number) != 0 {
		return a.Number.Cmp(b.Number) < 0
	}
	return a.ThisUpdate.Before(b.ThisUpdate)
}

var oidScope = asn1.ObjectIdentifier{2, 5, 29, 28} // issuing distribution point

func scopeOf(crl *x509.RevocationList) string {
	for _, e := range crl.Extensions {
		if e.Id.Equal(oidScope) {
			return string(e.Value)
		}
	}
	return ""
}

// ownURLs are where a CRL says that it is distributed (RFC 5280, section 5.2.5).
func ownURLs(crl *x509.RevocationList) []string {
	var point struct {
		Name struct {
			Full []asn1.RawValue `asn1:"optional,tag:0"`
		} `asn1:"optional,tag:0"`
	}
	if _, err := asn1.Unmarshal([]byte(scopeOf(crl)), &point); err != nil {
		return nil
	}
	var urls []string
	for _, n := range point.Name.Full {
		if n.Class == asn1.ClassContextSpecific && n.Tag == 6 {
			urls = append(urls, string(n.Bytes))
		}
	}
	return urls
}

func (a *authority) file(scope string) string {
	return a.name.String() + "-" + keyOf([]byte(scope)).String()[:16] + ".crl"
}

// refresh fetches the CRLs of an issuer anew, or joins the fetch under way. f.mu is held.
func (f *Fetcher) refresh(a *authority) *flight {
	if a.flight != nil {
		return a.flight
	}
	first := !a.tried
	a.tried = true
	urls := slices.Clone(a.urls)
	a.flight = f.fly(func(ctx context.Context) (func(), error) {
		if first && f.loadCRLs(a) {
			return func() { a.flight = nil; f.nudge() }, nil
		}
		err := f.fetchCRLs(ctx, a, urls)
		return func() { f.listed(a, err) }, err
	})
	return a.flight
}

func (f *Fetcher) listed(a *authority, err error) {
	a.flight, a.problem = nil, err
	if err == nil {
		a.failures, a.retry = 0, f.o.Now().Add(firstBackoff)
	} else {
		a.failures++
		a.retry = f.o.Now().Add(backoff(a.failures))
		f.counts.Failed++
	}
	f.nudge()
}

// fetchCRLs tries the URLs until there is a CRL that covers everything: URLs
// may be of the same CRL, or of parts of it.
func (f *Fetcher) fetchCRLs(ctx context.Context, a *authority, urls []string) error {
	if len(urls) == 0 {
		return errors.New("no CRL is installed, and no URL of one is known")
	}
	select {
	case f.slots <- struct{}{}:
		defer func() { <-f.slots }()
	case <-ctx.Done():
		return errors.New("too many other fetches are under way")
	}
	var problems []error
	got := false
	for _, named := range urls {
		crl, err := f.fetchCRL(ctx, a, named)
		if err != nil {
			problems = append(problems, err)
			continue
		}
		got = true
		if scopeOf(crl) == "" {
			break
		}
	}
	if got {
		return nil
	}
	return errors.Join(problems...)
}

func (f *Fetcher) fetchCRL(ctx context.Context, a *authority, named string) (*x509.RevocationList, error) {
	u, err := usable(named)
	if err != nil {
		return nil, err
	}
	der, err := f.do(ctx, u, nil, f.wantCRL(), named)
	if err != nil {
		return nil, err
	}
	crl, err := f.checkCRL(der, a.issuer)
	if err != nil {
		return nil, &Error{URL: named, Reason: "its CRL is refused: " + err.Error(), Next: askServer, Err: err}
	}
	f.mu.Lock()
	f.counts.Fetched++
	taken := f.take(a, crl, f.o.Now())
	f.mu.Unlock()
	if taken {
		f.save(a.file(scopeOf(crl)), crl.Raw)
	}
	return crl, nil
}

func (f *Fetcher) checkCRL(der []byte, issuer *x509.Certificate) (*x509.RevocationList, error) {
	crl, err := x509.ParseRevocationList(der)
	if err != nil {
		return nil, errors.New("it is no CRL (RFC 5280, section 5.1)")
	}
	return crl, revocation.CheckCRL(crl, issuer, f.o.Now(), f.o.Rules)
}

// loadCRLs reads the CRLs of an issuer from the disk, and judges them.
func (f *Fetcher) loadCRLs(a *authority) (found bool) {
	if f.disk == nil {
		return false
	}
	for _, name := range f.disk.names(a.name.String() + "-") {
		der, err := f.read(name, f.o.MaxCRL)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		var crl *x509.RevocationList
		if err == nil {
			crl, err = f.checkCRL(der, a.issuer)
		}
		switch {
		case err == nil:
			found = f.loaded(a, crl) || found
		case crl == nil || f.o.Now().Before(crl.NextUpdate): // else it is only old
			f.damaged(name, err)
		}
	}
	return found
}

func (f *Fetcher) loaded(a *authority, crl *x509.RevocationList) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.counts.Loaded++
	a.learn(ownURLs(crl))
	return f.take(a, crl, crl.ThisUpdate)
}

// due is when to fetch again, before the first CRL expires; zero is never. f.mu is held.
func (a *authority) due() time.Time {
	if a.flight != nil || len(a.urls) == 0 {
		return time.Time{}
	}
	var at time.Time
	for _, l := range a.lists {
		if t := earlier(half(l.ThisUpdate, l.NextUpdate), l.fetched.Add(maxRefresh)); at.IsZero() || t.Before(at) {
			at = t
		}
	}
	if at.IsZero() { // a stale one was installed, or nothing is there yet
		at = a.used
	}
	return later(at, a.retry)
}
