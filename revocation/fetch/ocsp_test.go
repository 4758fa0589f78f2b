package fetch

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"math/big"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/bedside-gateway/gatewayd/internal/sim/responder"
	"github.com/bedside-gateway/gatewayd/revocation"
)

func TestAResponseIsFetchedOnceAndRemembered(t *testing.T) {
	w := newWard(t, nil)
	f := w.fetcher(t, nil)
	c := w.chain(t, "device")
	first, err := f.OCSP(t.Context(), c[0], c[1])
	must(t, err)
	again, err := f.OCSP(t.Context(), c[0], c[1])
	must(t, err)
	if !bytes.Equal(first, again) || w.asked("device") != 1 || w.by("GET") != 1 || w.by("POST") != 0 {
		t.Errorf("asked %d times, %d GET, %d POST", w.asked("device"), w.by("GET"), w.by("POST"))
	}
	w.move(25 * time.Hour) // past nextUpdate
	if later, err := f.OCSP(t.Context(), c[0], c[1]); err != nil || bytes.Equal(first, later) {
		t.Errorf("an expired response is not renewed: %v", err)
	}
}

func TestARevokedCertificateHasAResponseToo(t *testing.T) {
	w := newWard(t, nil)
	f := w.fetcher(t, nil)
	c := w.chain(t, "device-revoked")
	_, err := f.OCSP(t.Context(), c[0], c[1])
	must(t, err)
	for range 2 {
		if v := f.Judge(t.Context(), c, nil); v[0].Kind != revocation.Revoked || v[1].Kind != revocation.Good || v[1].Position != 1 {
			t.Errorf("%v", kinds(v))
		}
	}
	if w.asked("device-revoked") != 1 {
		t.Errorf("asked %d times", w.asked("device-revoked"))
	}
}

func TestAResponderThatKnowsNoGETIsAskedByPOST(t *testing.T) {
	for _, status := range []int{http.StatusMethodNotAllowed, http.StatusNotFound, http.StatusInternalServerError, http.StatusNotImplemented} {
		w := newWard(t, nil)
		w.before = func(rw http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodGet {
				rw.WriteHeader(status)
			}
		}
		f := w.fetcher(t, nil)
		c := w.chain(t, "device")
		if _, err := f.OCSP(t.Context(), c[0], c[1]); err != nil || w.by("POST") != 1 {
			t.Errorf("status %d: %v", status, err)
		}
	}
}

// What a cache on the way keeps too long, the POST gets around.
func TestAStaleAnswerToAGETIsAskedForByPOST(t *testing.T) {
	w := newWard(t, nil)
	old := responder.Staples(w.PKI, w.chain(t, "device"), []responder.Answer{responder.Stale})[0]
	w.before = func(rw http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			rw.Header().Set("Content-Type", "application/ocsp-response")
			_, _ = rw.Write(old)
		}
	}
	c := w.chain(t, "device")
	if _, err := w.fetcher(t, nil).OCSP(t.Context(), c[0], c[1]); err != nil {
		t.Error(err)
	}
}

// Every fault that the responder knows, over real HTTP: a good verdict, or an
// error that names the fault; and once it is mended, a good one.
func TestOnlyWhatIsJudgedIsKept(t *testing.T) {
	words := map[responder.Answer]string{
		responder.Auto: "", responder.Good: "", responder.Revoked: "", responder.Delegated: "", responder.Several: "", responder.Old: "",
		responder.Unknown: "does not know", responder.None: "no OCSP response", responder.Stale: "expired at", responder.Future: "our clock",
		responder.NoNextUpdate: "no nextUpdate", responder.WrongSigner: "OCSPSigning", responder.DelegatedUnchecked: "itself was revoked",
		responder.DelegatedExpired: "valid from", responder.DelegatedNoEKU: "OCSPSigning", responder.SHA1: "SHA-1",
		responder.BadSignature: "signature is wrong", responder.Mismatched: "another certificate", responder.TryLater: "try later",
		responder.Slow + ":1m": "no answer within", responder.Garbage: "no OCSP response", responder.Portal: "content type",
		responder.HTTP500: "status 500", responder.Redirect: "redirects elsewhere", responder.Truncated: "broke off", responder.Huge: "larger than the limit",
	}
	for _, a := range responder.OCSPAnswers() {
		if a == responder.Slow {
			a += ":1m"
		}
		word, known := words[a]
		if !known {
			t.Errorf("no row for %s", a)
			continue
		}
		t.Run(string(a), func(t *testing.T) {
			t.Parallel()
			w := newWard(t, nil)
			f := w.fetcher(t, func(o *Options) {
				if strings.HasPrefix(string(a), "slow") {
					o.Timeout = 100 * time.Millisecond
				}
			})
			must(t, w.ocsp.Set("", a))
			c := w.chain(t, "device")
			der, err := f.OCSP(t.Context(), c[0], c[1])
			if word == "" {
				must(t, err)
				return
			}
			if err == nil || der != nil || !strings.Contains(err.Error(), word) {
				t.Fatalf("%q: %v; want %q", der, err, word)
			}
			asked := w.by("GET") + w.by("POST")
			if _, again := f.OCSP(t.Context(), c[0], c[1]); again == nil || w.by("GET")+w.by("POST") != asked {
				t.Errorf("asked again at once: %v", again)
			}
			must(t, w.ocsp.Set("", responder.Auto))
			w.move(maxBackoff)
			if _, err := f.OCSP(t.Context(), c[0], c[1]); err != nil {
				t.Errorf("after it was mended: %v", err)
			}
		})
	}
}

func TestOnlyURLsThatAnIssuerVouchedForAreAsked(t *testing.T) {
	w := newWard(t, nil)
	f := w.fetcher(t, nil)
	c, foreign := w.chain(t, "device"), w.chain(t, "device-foreign")
	if _, err := f.OCSP(t.Context(), c[0], foreign[1]); err == nil || !strings.Contains(err.Error(), "not issued by") {
		t.Error(err)
	}
	for _, raw := range []string{"https://ocsp.test/", "file:///etc/passwd", "ldap://ocsp.test/", "http://user:secret@ocsp.test/", "http:opaque", "//ocsp.test", "http://", "\x7f"} {
		forged := *c[0] // the signature is over Raw and still holds
		forged.OCSPServer = []string{raw}
		forged.Raw = append(bytes.Clone(forged.Raw), raw...)
		if _, err := f.OCSP(t.Context(), &forged, c[1]); err == nil || !strings.Contains(err.Error(), "no http URL") {
			t.Errorf("%q: %v", raw, err)
		}
	}
	none := *c[0]
	none.OCSPServer, none.Raw = nil, append(bytes.Clone(c[0].Raw), 1)
	if _, err := f.OCSP(t.Context(), &none, c[1]); err == nil || !strings.Contains(err.Error(), "names no OCSP responder") {
		t.Error(err)
	}
	if n := w.by("GET") + w.by("POST"); n != 0 {
		t.Errorf("%d requests were made", n)
	}
}

func TestTheSecondURLIsTriedWhenTheFirstFails(t *testing.T) {
	w := newWard(t, nil)
	w.hosts["dead.test"] = http.NotFoundHandler()
	f := w.fetcher(t, nil)
	c := w.chain(t, "device")
	two := *c[0]
	two.OCSPServer = []string{"http://dead.test/", "http://ocsp.test/ecc-issuing"}
	two.Raw = append(bytes.Clone(c[0].Raw), 1)
	if _, err := f.OCSP(t.Context(), &two, c[1]); err != nil {
		t.Error(err)
	}
}

func TestManyWhoAskAtOnceMakeOneRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWard(t, time.Now)
		must(t, w.ocsp.Set("", "slow:1s"))
		f := w.fetcher(t, func(o *Options) { o.Now, o.Client = time.Now, &http.Client{Transport: direct{w}} })
		defer f.Close()
		c := w.chain(t, "device")
		var wait sync.WaitGroup
		for range 50 {
			wait.Go(func() {
				if _, err := f.OCSP(t.Context(), c[0], c[1]); err != nil {
					t.Error(err)
				}
			})
		}
		wait.Wait()
		if n := w.asked("device"); n != 1 {
			t.Errorf("%d requests", n)
		}
	})
}

func TestOneWhoGivesUpLeavesTheResponseToTheOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWard(t, time.Now)
		must(t, w.ocsp.Set("", "slow:2s"))
		f := w.fetcher(t, func(o *Options) { o.Now, o.Client = time.Now, &http.Client{Transport: direct{w}} })
		defer f.Close()
		c := w.chain(t, "device")
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := f.OCSP(ctx, c[0], c[1]); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		start := time.Now()
		if _, err := f.OCSP(t.Context(), c[0], c[1]); err != nil || time.Since(start) != time.Second {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
	})
}

// The first handshake waits for the time limit, all others fail or pass at
// once, whatever certificate they are about; then one tries again.
func TestADeadResponderIsLeftAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWard(t, time.Now)
		must(t, w.ocsp.Set("", "slow:1h"))
		f := w.fetcher(t, func(o *Options) { o.Now, o.Client = time.Now, &http.Client{Transport: direct{w}} })
		defer f.Close()
		defer time.Sleep(2 * time.Hour) // the slow answers end
		c, other := w.chain(t, "device"), w.chain(t, "device-revoked")
		took := func(c []*x509.Certificate) time.Duration {
			start := time.Now()
			if _, err := f.OCSP(t.Context(), c[0], c[1]); err == nil || !strings.Contains(err.Error(), "no answer within 5s") {
				t.Errorf("%v", err)
			}
			return time.Since(start)
		}
		if d := took(c); d != 5*time.Second {
			t.Errorf("the first one took %v", d)
		}
		for range 20 {
			if d := took(c) + took(other); d != 0 {
				t.Errorf("the next ones took %v", d)
			}
		}
		asked := w.by("GET")
		time.Sleep(firstBackoff)
		var wait sync.WaitGroup
		for range 10 {
			wait.Go(func() { took(c); took(other) })
		}
		wait.Wait()
		if n := w.by("GET") - asked; n != 1 {
			t.Errorf("%d tried again", n)
		}
		must(t, w.ocsp.Set("", responder.Auto))
		time.Sleep(2 * maxBackoff)
		if _, err := f.OCSP(t.Context(), c[0], c[1]); err != nil {
			t.Errorf("back again: %v", err)
		}
	})
}

func TestBackoffGrowsAndIsBounded(t *testing.T) {
	if backoff(1) != firstBackoff || backoff(2) != 2*firstBackoff || backoff(30) != maxBackoff || backoff(1<<40) != maxBackoff || backoff(0) != firstBackoff {
		t.Error(backoff(1), backoff(2), backoff(30), backoff(0))
	}
}

// A good response of before the revocation is still within its time: it must
// not bring the certificate back.
func TestAnOlderResponseDoesNotReplaceANewerOne(t *testing.T) {
	w := newWard(t, nil)
	c := w.chain(t, "device")
	old, err := responder.StaplesAt(w.PKI, c, []responder.Answer{responder.Good}, w.now().Add(-time.Hour), 24*time.Hour)
	must(t, err)
	f := w.fetcher(t, nil)
	must(t, w.ocsp.Set("device", responder.Revoked))
	_, err = f.OCSP(t.Context(), c[0], c[1])
	must(t, err)
	w.before = func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header().Set("Content-Type", "application/ocsp-response")
		_, _ = rw.Write(old[0])
	}
	f.mu.Lock()
	a, err := f.entry(pair{c[0], c[1]})
	must(t, err)
	fl := f.ask(a)
	f.mu.Unlock()
	must(t, fl.wait(t.Context()))
	if v := f.Judge(t.Context(), c, nil); v[0].Kind != revocation.Revoked {
		t.Errorf("%v", v[0])
	}
}

// The verdict of a remembered response ends with its signer's certificate.
func TestAResponseHoldsNoLongerThanItsSigner(t *testing.T) {
	w := newWard(t, nil)
	must(t, w.ocsp.Set("", responder.Delegated))
	f := w.fetcher(t, nil)
	c := w.chain(t, "device")
	der, err := f.OCSP(t.Context(), c[0], c[1])
	must(t, err)
	signers := embedded(der)
	if len(signers) != 1 {
		t.Fatalf("%d certificates in the response", len(signers))
	}
	a := f.answers[pair{c[0], c[1]}.key()]
	if a.until.After(signers[0].NotAfter) || a.until.After(a.verdict.NextUpdate) {
		t.Errorf("it is held until %v", a.until)
	}
}

func TestMemoryIsBounded(t *testing.T) {
	w := newWard(t, nil)
	f := w.fetcher(t, nil)
	for i := range maxAnswers {
		k := keyOf(big.NewInt(int64(i)).Bytes())
		f.answers[k] = &answer{name: k, used: epoch.Add(time.Duration(i+1) * time.Second)}
	}
	oldest := keyOf(big.NewInt(1).Bytes())
	f.answers[keyOf(nil)].pins = 1 // the oldest of all, but a keeper's
	c := w.chain(t, "device")
	_, err := f.OCSP(t.Context(), c[0], c[1])
	must(t, err)
	if len(f.answers) != maxAnswers || f.answers[oldest] != nil || f.answers[keyOf(nil)] == nil {
		t.Errorf("%d answers", len(f.answers))
	}
}

func TestAServerThatFailsIsNamedUntilItAnswers(t *testing.T) {
	w := newWard(t, nil)
	f, c := w.fetcher(t, nil), w.chain(t, "device")
	must(t, w.ocsp.Set("", responder.HTTP500))
	if _, err := f.OCSP(t.Context(), c[0], c[1]); err == nil {
		t.Fatal("no error")
	}
	if d := f.Down(); len(d) != 1 || d[0].Host != "ocsp.test" || d[0].Failures == 0 || !strings.Contains(d[0].Reason, "status 500") {
		t.Errorf("%+v", d)
	}
	must(t, w.ocsp.Set("", responder.Auto))
	w.move(maxBackoff)
	if _, err := f.OCSP(t.Context(), c[0], c[1]); err != nil || len(f.Down()) != 0 {
		t.Errorf("%v, %+v", err, f.Down())
	}
}
