package fetch

import (
	"context"
	"errors"
	"time"
)

// How often Run looks, at least and at most.
const (
	longestWait  = time.Minute // the clock may be set meanwhile
	shortestWait = time.Second
)

// Run renews what is due until ctx ends: CRLs and the responses of keepers
// always, other responses while they are being used.
func (f *Fetcher) Run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-f.wake:
		case <-timer.C:
		}
		timer.Reset(f.renew(ctx))
	}
}

// renew starts what is due and says how long nothing else will be.
func (f *Fetcher) renew(ctx context.Context) time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := f.o.Now()
	next := now.Add(longestWait)
	isDue := func(at time.Time) bool {
		if at.IsZero() {
			return false
		}
		next = earlier(next, at)
		return !at.After(now)
	}
	for _, a := range f.answers {
		if isDue(a.due()) {
			f.report(ctx, f.ask(a), "OCSP response", a.cert.Subject.CommonName, func() time.Time { return a.until })
		}
	}
	for _, a := range f.authorities {
		if isDue(a.due()) {
			f.report(ctx, f.refresh(a), "CRL", a.issuer.Subject.CommonName, func() time.Time { return time.Time{} })
		}
	}
	return max(next.Sub(now), shortestWait)
}

// report logs a renewal that failed: nobody else is told.
func (f *Fetcher) report(ctx context.Context, fl *flight, what, of string, until func() time.Time) {
	f.flights.Go(func() {
		err := fl.wait(ctx)
		if err == nil || ctx.Err() != nil || errors.Is(err, context.Canceled) {
			return
		}
		f.mu.Lock()
		holds := until()
		f.mu.Unlock()
		attrs := []any{"what", what, "of", quote(of), "error", err.Error()}
		if f.o.Now().Before(holds) {
			attrs = append(attrs, "the old one holds until", holds.UTC().Format(time.RFC3339))
		}
		f.o.Log.Warn("revocation: a renewal failed and is tried again", attrs...)
	})
}
