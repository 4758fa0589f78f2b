package fetch

import (
	"bytes"
	"context"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/bedside-gateway/gatewayd/internal/sim/responder"
)

func contextOf(t *testing.T) (context.Context, context.CancelFunc) {
	return context.WithCancel(t.Context())
}

// keep runs a keeper for the platform in a bubble.
func keep(t *testing.T, log *journal, test func(t *testing.T, w *ward, k *Keeper)) {
	synctest.Test(t, func(t *testing.T) {
		w := newWard(t, time.Now)
		f := w.fetcher(t, func(o *Options) {
			o.Now, o.Client, o.Log = time.Now, &http.Client{Transport: direct{w}}, log.log()
		})
		defer f.Close()
		k, err := NewKeeper(f, w.chain(t, "platform"))
		must(t, err)
		defer k.Close()
		ctx, cancel := contextOf(t)
		go f.Run(ctx)
		defer synctest.Wait()
		defer cancel()
		time.Sleep(2 * time.Second)
		test(t, w, k)
	})
}

func present(staples [][]byte) []bool {
	list := make([]bool, len(staples))
	for i, s := range staples {
		list[i] = len(s) > 0
	}
	return list
}

func TestStaplesAreRenewedAtHalfLife_A10(t *testing.T) {
	keep(t, &journal{}, func(t *testing.T, w *ward, k *Keeper) {
		first := k.Staples()
		if !slices.Equal(present(first), []bool{true, true}) {
			t.Fatalf("%v, %+v", present(first), k.Status())
		}
		time.Sleep(11*time.Hour + 50*time.Minute)
		if n := w.asked("platform"); n != 1 {
			t.Errorf("asked %d times before half of its life", n)
		}
		time.Sleep(20 * time.Minute)
		if n := w.asked("platform"); n != 2 || bytes.Equal(first[0], k.Staples()[0]) {
			t.Errorf("asked %d times after half of its life", n)
		}
	})
}

func TestTheLastGoodStapleServesUntilItsNextUpdateAndNotLonger_A10(t *testing.T) {
	log := &journal{}
	keep(t, log, func(t *testing.T, w *ward, k *Keeper) {
		first := k.Staples()
		must(t, w.ocsp.Set("platform", responder.HTTP500))
		until := k.Status()[0].Until
		if until.IsZero() {
			t.Fatalf("%+v", k.Status())
		}
		time.Sleep(time.Until(until) - time.Second)
		if !bytes.Equal(first[0], k.Staples()[0]) {
			t.Error("the last good one is not stapled")
		}
		if s := k.Status()[0]; s.Says != "good" || !strings.Contains(s.Problem, "status 500") || s.Retry.IsZero() {
			t.Errorf("%+v", s)
		}
		time.Sleep(time.Second)
		if got := present(k.Staples()); !slices.Equal(got, []bool{false, true}) {
			t.Errorf("%v", got)
		}
		if !strings.Contains(log.String(), "a renewal failed") || !strings.Contains(log.String(), "the old one holds until") {
			t.Errorf("%s", log)
		}
		must(t, w.ocsp.Set("platform", responder.Auto))
		time.Sleep(maxBackoff + time.Minute)
		if got := present(k.Staples()); !slices.Equal(got, []bool{true, true}) {
			t.Errorf("after it came back: %v", got)
		}
	})
}

func TestARevokedIdentityIsStapledAsRevoked(t *testing.T) {
	keep(t, &journal{}, func(t *testing.T, w *ward, k *Keeper) {
		must(t, w.ocsp.Set("platform", responder.Revoked))
		time.Sleep(13 * time.Hour)
		if s := k.Status(); s[0].Says != "revoked" || s[1].Says != "good" || len(k.Staples()[0]) == 0 {
			t.Errorf("%+v", s)
		}
	})
}

func TestAKeeperKeepsTryingAtAResponderThatIsNotThereYet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWard(t, time.Now)
		must(t, w.ocsp.Set("", responder.HTTP500))
		f := w.fetcher(t, func(o *Options) { o.Now, o.Client = time.Now, &http.Client{Transport: direct{w}} })
		defer f.Close()
		k, err := NewKeeper(f, w.chain(t, "platform"))
		must(t, err)
		if err := k.Fetch(t.Context()); err == nil || !strings.Contains(err.Error(), "platform.test") {
			t.Errorf("%v", err)
		}
		ctx, cancel := contextOf(t)
		go f.Run(ctx)
		time.Sleep(time.Hour)
		tries := w.asked("platform")
		if tries < 10 || tries > 40 {
			t.Errorf("%d tries in an hour", tries)
		}
		must(t, w.ocsp.Set("", responder.Auto))
		time.Sleep(maxBackoff + time.Minute)
		if got := present(k.Staples()); !slices.Equal(got, []bool{true, true}) {
			t.Errorf("%v", got)
		}
		k.Close()
		k.Close()
		asked := w.asked("platform")
		time.Sleep(48 * time.Hour)
		if n := w.asked("platform"); n > asked+1 {
			t.Errorf("after its end it asks on: %d", n-asked)
		}
		cancel()
		synctest.Wait()
	})
}

// Pre-made responses are the same for days: past their half nothing newer can
// be had, and the responder must not be asked all the time.
func TestAResponderThatRepeatsItselfIsNotPestered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWard(t, time.Now)
		c := w.chain(t, "platform")
		same, err := responder.StaplesAt(w.PKI, c, []responder.Answer{responder.Good, responder.Good}, time.Now(), 24*time.Hour)
		must(t, err)
		w.before = func(rw http.ResponseWriter, r *http.Request) {
			rw.Header().Set("Content-Type", "application/ocsp-response")
			i := 0
			if strings.Contains(r.URL.Path, "ecc-root") {
				i = 1
			}
			_, _ = rw.Write(same[i])
		}
		f := w.fetcher(t, func(o *Options) { o.Now, o.Client = time.Now, &http.Client{Transport: direct{w}} })
		defer f.Close()
		k, err := NewKeeper(f, c)
		must(t, err)
		ctx, cancel := contextOf(t)
		go f.Run(ctx)
		time.Sleep(24*time.Hour - time.Minute)
		if n := w.by("GET"); n < 10 || n > 200 || !slices.Equal(present(k.Staples()), []bool{true, true}) {
			t.Errorf("%d requests for two", n)
		}
		cancel()
		synctest.Wait()
	})
}

func TestAKeeperNeedsTheWholeChain(t *testing.T) {
	w := newWard(t, nil)
	f := w.fetcher(t, nil)
	c := w.chain(t, "platform")
	if _, err := NewKeeper(f, c[:1]); err == nil {
		t.Error("a chain of one")
	}
	slices.Reverse(c)
	if _, err := NewKeeper(f, c); err == nil || !strings.Contains(err.Error(), "not issued by") {
		t.Errorf("%v", err)
	}
}

// Only what is in use is renewed.
func TestTheResponseOfADeviceThatStaysAwayIsLetExpire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWard(t, time.Now)
		f := w.fetcher(t, func(o *Options) { o.Now, o.Client = time.Now, &http.Client{Transport: direct{w}} })
		defer f.Close()
		c := w.chain(t, "device")
		f.Judge(t.Context(), c, nil)
		ctx, cancel := contextOf(t)
		go f.Run(ctx)
		time.Sleep(10 * time.Hour)
		f.Judge(t.Context(), c, nil) // it comes back once
		time.Sleep(100 * time.Hour)
		if n := w.asked("device"); n != 2 {
			t.Errorf("asked %d times", n)
		}
		cancel()
		synctest.Wait()
	})
}
