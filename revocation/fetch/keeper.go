package fetch

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"sync"
	"time"
)

// A Keeper has the responses to staple for a chain of our own (A10). The
// Fetcher's Run renews them at half of their life. If that fails, the last one
// is stapled until its nextUpdate, never longer. If a newer one says that our
// certificate was revoked, it is that one that is stapled: an old good one
// would deceive the peer.
type Keeper struct {
	f     *Fetcher
	pairs []pair
	once  sync.Once
}

// NewKeeper keeps the responses for a chain, ordered from the leaf, the root
// last. Close ends it.
func NewKeeper(f *Fetcher, chain []*x509.Certificate) (*Keeper, error) {
	if len(chain) < 2 {
		return nil, errors.New("no responses can be kept for a chain without the issuer's certificate: put it behind the certificate, or install its root")
	}
	k := &Keeper{f: f}
	f.mu.Lock()
	defer f.mu.Unlock()
	for i, cert := range chain[:len(chain)-1] {
		p := pair{cert, chain[i+1]}
		a, err := f.entry(p)
		if err != nil {
			k.unpin()
			return nil, fmt.Errorf("our certificate %s: %w: put the chain in order, or install its root", quote(cert.Subject.CommonName), err)
		}
		a.pins++
		a.used = f.o.Now()
		k.pairs = append(k.pairs, p)
	}
	f.nudge()
	return k, nil
}

// Close leaves the responses to others who may want them.
func (k *Keeper) Close() {
	k.once.Do(func() {
		k.f.mu.Lock()
		defer k.f.mu.Unlock()
		k.unpin()
	})
}

func (k *Keeper) unpin() {
	for _, p := range k.pairs {
		if a := k.f.answers[p.key()]; a != nil {
			a.pins--
		}
	}
}

// Staples are the responses of now, by position in the chain, the root left
// out; nil where there is none. It waits for nothing.
func (k *Keeper) Staples() [][]byte {
	k.f.mu.Lock()
	defer k.f.mu.Unlock()
	now := k.f.o.Now()
	staples := make([][]byte, len(k.pairs))
	for i, p := range k.pairs {
		if a := k.f.answers[p.key()]; a != nil && k.f.fresh(a, now) {
			staples[i] = a.der
		}
	}
	return staples
}

// Fetch gets what is missing, and returns when everything was tried once. Its
// error says what is missing still.
func (k *Keeper) Fetch(ctx context.Context) error {
	errs := make([]error, len(k.pairs))
	var wait sync.WaitGroup
	for i, p := range k.pairs {
		wait.Go(func() {
			if _, _, err := k.f.obtain(ctx, p); err != nil {
				errs[i] = fmt.Errorf("our certificate %s: %w", quote(p.cert.Subject.CommonName), err)
			}
		})
	}
	wait.Wait()
	return errors.Join(errs...)
}

// A Staple is the state of one response of a Keeper, for the status.
type Staple struct {
	Certificate string    // common name
	Says        string    // good or revoked; "" where there is no response
	Until       time.Time // nextUpdate
	Problem     string    // why there is no newer one
	Retry       time.Time // when it is tried again
}

// Status tells the state of every response.
func (k *Keeper) Status() []Staple {
	k.f.mu.Lock()
	defer k.f.mu.Unlock()
	now := k.f.o.Now()
	list := make([]Staple, len(k.pairs))
	for i, p := range k.pairs {
		list[i].Certificate = p.cert.Subject.CommonName
		a := k.f.answers[p.key()]
		if a == nil {
			continue
		}
		if k.f.fresh(a, now) {
			list[i].Says, list[i].Until = a.verdict.Kind.String(), a.verdict.NextUpdate
		}
		if a.problem != nil {
			list[i].Problem, list[i].Retry = a.problem.Error(), a.retry
		}
	}
	return list
}
