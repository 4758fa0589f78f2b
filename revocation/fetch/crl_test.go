package fetch

import (
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/bedside-gateway/gatewayd/internal/sim/responder"
	"github.com/bedside-gateway/gatewayd/revocation"
)

// crlOf makes a CRL of the issuing CA that revokes the given serial numbers.
func (w *ward) crlOf(t testing.TB, number int64, from, to time.Time, extra []pkix.Extension, serials ...*big.Int) []byte {
	t.Helper()
	ca, err := w.Find("ecc-issuing")
	must(t, err)
	l := &x509.RevocationList{Number: big.NewInt(number), ThisUpdate: from, NextUpdate: to, ExtraExtensions: extra}
	for _, s := range serials {
		l.RevokedCertificateEntries = append(l.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: s, RevocationTime: from})
	}
	der, err := x509.CreateRevocationList(rand.Reader, l, ca.Certificate, ca.Key)
	must(t, err)
	return der
}

// pointTo is an issuing distribution point with a URL.
func pointTo(t testing.TB, url string) []pkix.Extension {
	t.Helper()
	name := asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 6, Bytes: []byte(url)}
	var point struct {
		Name struct {
			Full []asn1.RawValue `asn1:"optional,tag:0"`
		} `asn1:"optional,tag:0"`
	}
	point.Name.Full = []asn1.RawValue{name}
	der, err := asn1.Marshal(point)
	must(t, err)
	return []pkix.Extension{{Id: oidScope, Critical: true, Value: der}}
}

func TestCRLsDecideWhereNoResponderAnswers_A9(t *testing.T) {
	for _, test := range []struct {
		device string
		want   []revocation.Kind
	}{
		{"device", []revocation.Kind{revocation.Good, revocation.Good}},
		{"device-revoked", []revocation.Kind{revocation.Revoked, revocation.Good}},
		{"device-issuing-revoked", []revocation.Kind{revocation.Good, revocation.Revoked}},
	} {
		t.Run(test.device, func(t *testing.T) {
			w := newWard(t, nil)
			must(t, w.ocsp.Set("", responder.HTTP500))
			f := w.fetcher(t, nil)
			c := w.chain(t, test.device)
			for range 2 {
				v := f.Judge(t.Context(), c, nil)
				if fmt.Sprint(kinds(v)) != fmt.Sprint(test.want) || v[0].Source != "CRL" {
					t.Errorf("%v", v)
				}
			}
			if n := w.askedCRL("ecc-root"); n != 1 {
				t.Errorf("the root's CRL was fetched %d times", n)
			}
			lists := f.CRLs(t.Context(), c)
			e := f.Evidence(t.Context(), c, nil)
			if len(lists) != 2 || revocation.Judge(c, e, w.now(), revocation.Rules{CRLs: true})[0].Kind != test.want[0] {
				t.Errorf("%d lists, evidence %v", len(lists), e)
			}
		})
	}
}

func TestNothingToJudgeByIsARefusalThatSaysWhatWasTried(t *testing.T) {
	w := newWard(t, nil)
	must(t, w.ocsp.Set("", responder.HTTP500))
	must(t, w.crl.Set("", responder.HTTP500))
	v := w.fetcher(t, nil).Judge(t.Context(), w.chain(t, "device"), nil)
	for _, word := range []string{"none could be fetched", "http://ocsp.test/ecc-issuing", "no CRL covers it", "http://crl.test/ecc-issuing.crl", "status 500"} {
		if err := revocation.Refusal(v); err == nil || !strings.Contains(err.Error(), word) {
			t.Errorf("%v; want %q", err, word)
		}
	}
}

func TestAResponderThatSaysUnknownIsRefusedUnlessACRLKnows(t *testing.T) {
	w := newWard(t, nil)
	must(t, w.ocsp.Set("device", responder.Unknown))
	must(t, w.crl.Set("", responder.HTTP500))
	f := w.fetcher(t, nil)
	if v := f.Judge(t.Context(), w.chain(t, "device"), nil); v[0].Kind != revocation.Unknown {
		t.Errorf("%v", v[0])
	}
	must(t, w.crl.Set("", responder.Auto))
	w.move(maxBackoff)
	if v := f.Judge(t.Context(), w.chain(t, "device"), nil); !v[0].Good() || v[0].Source != "CRL" {
		t.Errorf("with the CRL: %v", v[0])
	}
}

func TestTheStapledResponseComesFirst_A9(t *testing.T) {
	w := newWard(t, nil)
	f := w.fetcher(t, nil)
	c := w.chain(t, "device")
	if v := f.Judge(t.Context(), c, responder.Staples(w.PKI, c, []responder.Answer{responder.Good, responder.Good})); revocation.Refusal(v) != nil || w.by("GET") != 0 {
		t.Errorf("%v after %d requests", v, w.by("GET"))
	}
	if v := f.Judge(t.Context(), c, responder.Staples(w.PKI, c, []responder.Answer{responder.Revoked, responder.Good})); v[0].Kind != revocation.Revoked {
		t.Errorf("stapled as revoked: %v", v[0])
	}
	if v := f.Judge(t.Context(), c, responder.Staples(w.PKI, c, []responder.Answer{responder.Stale, responder.None})); revocation.Refusal(v) != nil || v[0].Source != fetchedResponse {
		t.Errorf("stale, then fetched: %v", v)
	}
}

func TestADelegatedSignerIsVouchedForByTheCRL(t *testing.T) {
	w := newWard(t, nil)
	must(t, w.ocsp.Set("", responder.DelegatedUnchecked))
	f := w.fetcher(t, nil)
	c := w.chain(t, "device")
	if v := f.Judge(t.Context(), c, nil); revocation.Refusal(v) != nil {
		t.Errorf("%v", v)
	}
	w.move(maxBackoff) // now that the CRL is there, the response itself passes
	if _, err := f.OCSP(t.Context(), c[0], c[1]); err != nil {
		t.Error(err)
	}
}

func TestFaultyCRLsAreRefused(t *testing.T) {
	for _, a := range responder.CRLAnswers() {
		switch a {
		case responder.Auto, responder.Good, responder.Old, responder.Revoked:
			continue
		case responder.Slow:
			a += ":1m"
		}
		t.Run(string(a), func(t *testing.T) {
			t.Parallel()
			w := newWard(t, nil)
			must(t, w.ocsp.Set("", responder.HTTP500))
			must(t, w.crl.Set("", a))
			f := w.fetcher(t, func(o *Options) {
				if strings.HasPrefix(string(a), "slow") {
					o.Timeout = 200 * time.Millisecond
				}
				o.MaxCRL = 1 << 20
			})
			c := w.chain(t, "device")
			if v := f.Judge(t.Context(), c, nil); revocation.Refusal(v) == nil || len(f.CRLs(t.Context(), c)) != 0 {
				t.Errorf("%v", v)
			}
			must(t, w.crl.Set("", responder.Auto))
			w.move(maxBackoff)
			if v := f.Judge(t.Context(), c, nil); revocation.Refusal(v) != nil {
				t.Errorf("after it was mended: %v", v)
			}
		})
	}
}

func TestAnInstalledCRLIsUsedWithoutAnyNetwork(t *testing.T) {
	w := newWard(t, nil)
	must(t, w.ocsp.Set("", responder.HTTP500))
	must(t, w.crl.Set("", responder.HTTP500))
	f := w.fetcher(t, nil)
	c := w.chain(t, "device")
	crl := w.crlOf(t, 5, epoch, epoch.Add(time.Hour), nil)
	must(t, f.AddCRL(pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: crl}), c[1]))
	if v := f.Judge(t.Context(), c, nil); !v[0].Good() || v[0].Source != "CRL" || v[1].Good() {
		t.Errorf("%v", v)
	}
	for name, test := range map[string]struct {
		crl  []byte
		word string
	}{
		"garbage":         {[]byte("x"), "cannot be read"},
		"of another CA":   {responderCRL(t, w, "ecc-root"), "another issuer"},
		"a flipped bit":   {append(crl[:len(crl)-1:len(crl)-1], crl[len(crl)-1]^1), "refused"},
		"an expired one":  {w.crlOf(t, 6, epoch.Add(-2*time.Hour), epoch.Add(-time.Hour), nil), "expired at"},
		"one of tomorrow": {w.crlOf(t, 6, epoch.Add(24*time.Hour), epoch.Add(25*time.Hour), nil), "our clock"},
	} {
		if err := f.AddCRL(test.crl, c[1]); err == nil || !strings.Contains(err.Error(), test.word) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func responderCRL(t testing.TB, w *ward, ca string) []byte {
	t.Helper()
	e, err := w.Find(ca)
	must(t, err)
	return e.CRL
}

func TestAnOlderCRLDoesNotReplaceANewerOne(t *testing.T) {
	w := newWard(t, nil)
	must(t, w.ocsp.Set("", responder.HTTP500))
	must(t, w.crl.Set("", responder.HTTP500))
	f := w.fetcher(t, nil)
	c := w.chain(t, "device")
	must(t, f.AddCRL(w.crlOf(t, 9, epoch, epoch.Add(time.Hour), nil, c[0].SerialNumber), c[1]))
	must(t, f.AddCRL(w.crlOf(t, 8, epoch, epoch.Add(2*time.Hour), nil), c[1]))
	if v := f.Judge(t.Context(), c, nil); v[0].Kind != revocation.Revoked {
		t.Errorf("%v", v[0])
	}
}

// A CRL that revokes a delegated signer ends the responses that it signed.
func TestANewCRLHasRememberedResponsesJudgedAgain(t *testing.T) {
	w := newWard(t, nil)
	must(t, w.ocsp.Set("", responder.Delegated))
	f := w.fetcher(t, nil)
	c := w.chain(t, "device")
	der, err := f.OCSP(t.Context(), c[0], c[1])
	must(t, err)
	must(t, f.AddCRL(w.crlOf(t, 9, epoch, epoch.Add(time.Hour), nil, embedded(der)[0].SerialNumber), c[1]))
	if _, err := f.OCSP(t.Context(), c[0], c[1]); err == nil || !strings.Contains(err.Error(), "was revoked") {
		t.Errorf("%v", err)
	}
}

func TestCRLsAreRenewedBeforeTheyExpire_A9(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWard(t, time.Now)
		must(t, w.ocsp.Set("", responder.HTTP500))
		f := w.fetcher(t, func(o *Options) { o.Now, o.Client = time.Now, &http.Client{Transport: direct{w}} })
		defer f.Close()
		c := w.chain(t, "device")
		f.Judge(t.Context(), c, nil)
		ctx, cancel := contextOf(t)
		go f.Run(ctx)
		time.Sleep(11 * time.Hour)
		if n := w.askedCRL("ecc-issuing"); n != 1 {
			t.Errorf("fetched %d times before half of its life", n)
		}
		time.Sleep(2 * time.Hour)
		if n := w.askedCRL("ecc-issuing"); n != 2 {
			t.Errorf("fetched %d times after half of its life", n)
		}
		must(t, w.crl.Set("", responder.HTTP500))
		time.Sleep(20 * time.Hour) // 8 past the second one's half
		v := f.Judge(t.Context(), c, nil)
		if revocation.Refusal(v) != nil {
			t.Errorf("the last good one does not hold: %v", v)
		}
		time.Sleep(5 * time.Hour)
		if v := f.Judge(t.Context(), c, nil); revocation.Refusal(v) == nil {
			t.Error("an expired CRL decides")
		}
		cancel()
		synctest.Wait()
	})
}

// "using the distribution server URL in the CRL header" (A9).
func TestTheSuccessorOfAnInstalledCRLComesFromTheURLInIt_A9(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWard(t, time.Now)
		must(t, w.ocsp.Set("", responder.HTTP500))
		f := w.fetcher(t, func(o *Options) { o.Now, o.Client = time.Now, &http.Client{Transport: direct{w}} })
		defer f.Close()
		c := w.chain(t, "device")
		stale := w.crlOf(t, 1, epoch.Add(-2*time.Hour), epoch.Add(-time.Hour), pointTo(t, "http://crl.test/ecc-issuing.crl"))
		if err := f.AddCRL(stale, c[1]); err == nil || !strings.Contains(err.Error(), "expired at") {
			t.Errorf("%v", err)
		}
		ctx, cancel := contextOf(t)
		go f.Run(ctx)
		time.Sleep(2 * time.Second)
		cancel()
		synctest.Wait()
		if n := w.askedCRL("ecc-issuing"); n != 1 || len(f.CRLs(t.Context(), c[:2])) != 1 {
			t.Errorf("fetched %d times", n)
		}
	})
}

func TestIssuersAndURLsAreBounded(t *testing.T) {
	w := newWard(t, nil)
	f := w.fetcher(t, nil)
	c := w.chain(t, "device")
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range 2 * maxAuthorities {
		fake := *c[1]
		fake.Raw = append([]byte{byte(i)}, c[1].Raw...)
		a := f.authority(&fake)
		for j := range 2 * maxURLs {
			a.learn([]string{fmt.Sprint("http://", j)})
		}
		if len(a.urls) != maxURLs || a.urls[maxURLs-1] != fmt.Sprint("http://", 2*maxURLs-1) {
			t.Fatal(a.urls)
		}
	}
	if len(f.authorities) != maxAuthorities {
		t.Errorf("%d issuers", len(f.authorities))
	}
}
