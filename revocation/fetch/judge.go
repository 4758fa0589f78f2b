package fetch

import (
	"context"
	"crypto/x509"
	"sync"

	"github.com/bedside-gateway/gatewayd/revocation"
)

// Evidence collects what there is to judge a chain by, in the order of A9: the
// stapled response; where it does not settle the matter, the remembered or
// fetched one; and where neither does, the CRLs, fetched if need be. The chain
// is ordered from the leaf and was verified before. revocation.Judge needs
// Rules.CRLs for the last of them.
func (f *Fetcher) Evidence(ctx context.Context, chain []*x509.Certificate, stapled [][]byte) revocation.Evidence {
	var e revocation.Evidence
	for _, found := range f.investigate(ctx, chain, stapled) {
		e.Responses = append(e.Responses, found.responses)
		e.CRLs = append(e.CRLs, found.crls...)
	}
	return e
}

// Judge gives a verdict for every certificate of a chain but the root (A9). A
// certificate with a remembered good response costs no signature check, unless
// something else about it was stapled.
func (f *Fetcher) Judge(ctx context.Context, chain []*x509.Certificate, stapled [][]byte) []revocation.Verdict {
	rules := f.o.Rules
	rules.CRLs = true
	if len(chain) < 2 {
		return revocation.Judge(chain, revocation.Evidence{}, f.o.Now(), rules)
	}
	verdicts := make([]revocation.Verdict, len(chain)-1)
	for i, found := range f.investigate(ctx, chain, stapled) {
		v := found.verdict
		if v == nil {
			e := revocation.Evidence{Responses: [][]revocation.Response{found.responses}, CRLs: found.crls}
			v = &revocation.Judge(chain[i:i+2], e, f.o.Now(), rules)[0]
			found.explain(v)
		}
		v.Position = i
		verdicts[i] = *v
	}
	return verdicts
}

// findings are what bears on one certificate.
type findings struct {
	verdict   *revocation.Verdict // remembered
	responses []revocation.Response
	crls      []*x509.RevocationList
	problem   error // why there is no response
	noCRL     error // why there is no CRL
}

// investigate looks at all certificates at once: what one responder takes
// should not add to what another one takes.
func (f *Fetcher) investigate(ctx context.Context, chain []*x509.Certificate, stapled [][]byte) []findings {
	all := make([]findings, max(len(chain)-1, 0))
	var wait sync.WaitGroup
	for i := range all {
		var staple []byte
		if i < len(stapled) {
			staple = stapled[i]
		}
		if p := (pair{chain[i], chain[i+1]}); len(staple) == 0 && f.remembered(p, &all[i]) {
			continue
		} else {
			wait.Go(func() { all[i] = f.look(ctx, p, staple) })
		}
	}
	wait.Wait()
	return all
}

// remembered answers from memory alone. Only a good verdict is taken from there.
func (f *Fetcher) remembered(p pair, into *findings) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	a, now := f.answers[p.key()], f.o.Now()
	if a == nil || !f.fresh(a, now) || !a.verdict.Good() {
		return false
	}
	a.used = now
	f.counts.Remembered++
	v := a.verdict
	into.verdict, into.responses, into.crls = &v, []revocation.Response{{DER: a.der, Source: fetchedResponse}}, f.listsOf(p.issuer)
	return true
}

func (f *Fetcher) look(ctx context.Context, p pair, staple []byte) (found findings) {
	defer func() { // a delegated signer may depend on the CRLs, so they always belong to it
		f.mu.Lock()
		defer f.mu.Unlock()
		found.crls = f.listsOf(p.issuer)
	}()
	if len(staple) > 0 {
		found.responses = []revocation.Response{{DER: staple}}
		if f.settles(p, staple) {
			return found
		}
	}
	der, refused, err := f.obtain(ctx, p)
	if err == nil {
		found.responses = append(found.responses, revocation.Response{DER: der, Source: fetchedResponse})
		return found
	}
	if len(refused) > 0 {
		found.responses = append(found.responses, revocation.Response{DER: refused, Source: fetchedResponse})
	}
	found.problem = err
	fl, err := f.cover(p)
	if fl != nil {
		err = fl.wait(ctx)
	}
	found.noCRL = err
	return found
}

func (f *Fetcher) settles(p pair, der []byte) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return settled(f.judge(p, der, f.o.Now()))
}

// explain says why nothing was there to judge by: package revocation knows
// only what was stapled.
func (found findings) explain(v *revocation.Verdict) {
	if v.Kind != revocation.Missing || found.problem == nil {
		return
	}
	v.Reason = "no response for it was stapled, none could be fetched (" + found.problem.Error() + ")"
	if found.noCRL != nil {
		v.Reason += ", and no CRL covers it (" + found.noCRL.Error() + ")"
	} else {
		v.Reason += ", and no CRL covers it"
	}
	v.Next = "see that the CA's OCSP responder can be reached, or install the CRL of its issuer"
}
