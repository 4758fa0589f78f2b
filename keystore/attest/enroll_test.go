package attest_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"io"
	"log"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/bedside-gateway/gatewayd/keystore/attest"
)

// A stand is a device whose answers are fixed.
type stand struct {
	evidence attest.Evidence
	fail     error // of Evidence
	locked   error // of Activate
}

func (s stand) Evidence(context.Context, []byte) (attest.Evidence, error) { return s.evidence, s.fail }

func (s stand) Activate(context.Context, []byte, []byte) ([]byte, error) {
	return []byte("the secret"), s.locked
}

// A factory issues whatever it is told to.
func factory(t *testing.T, begun attest.Begun, chain ...*x509.Certificate) *httptest.Server {
	t.Helper()
	answers := map[string]any{attest.PathBegin: begun, attest.PathEvidence: attest.Challenged{CredentialBlob: []byte{1}, EncryptedSecret: []byte{2}}}
	issued := attest.Issued{}
	for _, c := range chain {
		issued.Chain = append(issued.Chain, c.Raw)
	}
	answers[attest.PathFinish] = issued
	return serve(t, func(w http.ResponseWriter, r *http.Request) {
		answer, known := answers[r.URL.Path]
		if !known || r.Method != http.MethodPost || r.Header.Get("Content-Type") != "application/json" {
			http.Error(w, "unexpected "+r.Method+" "+r.URL.Path, http.StatusNotFound)
			return
		}
		if err := json.NewEncoder(w).Encode(answer); err != nil {
			t.Error(err)
		}
	})
}

func serve(t *testing.T, h http.HandlerFunc) *httptest.Server {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

// issue makes a certificate of a CA of its own.
func (r *rig) issue(key *ecdsa.PublicKey, name string) *x509.Certificate {
	r.t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(9), Subject: pkix.Name{CommonName: name},
		NotBefore: now, NotAfter: now.Add(time.Hour)}, r.maker, key, r.makerKey)
	if err != nil {
		r.t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		r.t.Fatal(err)
	}
	return c
}

var begun = attest.Begun{ID: "1", Nonce: make([]byte, 32)}

func TestEnrollTakesItsOwnCertificateOnly(t *testing.T) {
	r := newRig(t)
	other := ecKey(t, elliptic.P256())
	good := r.issue(&r.deviceKey.PublicKey, device)
	for _, c := range []struct {
		name, want string
		begun      attest.Begun
		device     stand
		chain      []*x509.Certificate
	}{
		{"the right one", "", begun, stand{}, []*x509.Certificate{good, r.maker}},
		{"without its issuer", "", begun, stand{}, []*x509.Certificate{good}},
		{"for another key", "is for another key than ours", begun, stand{}, []*x509.Certificate{r.issue(&other.PublicKey, device)}},
		{"for another device", `issued to "FEDCBA9876543210"`, begun, stand{}, []*x509.Certificate{r.issue(&r.deviceKey.PublicKey, "FEDCBA9876543210")}},
		{"upside down", "certificate 2 of the CA's chain did not sign", begun, stand{}, []*x509.Certificate{r.maker, good}},
		{"none", "gave 0 certificates", begun, stand{}, nil},
		{"too many", "gave 9 certificates", begun, stand{}, []*x509.Certificate{good, good, good, good, good, good, good, good, good}},
		{"one that is none", "certificate 1 of the CA's chain cannot be read", begun, stand{}, []*x509.Certificate{{Raw: []byte("x")}}},
		{"after a nonce of one byte", "a nonce of 1 bytes", attest.Begun{Nonce: []byte{1}}, stand{}, []*x509.Certificate{good}},
		{"after a nonce that no TPM takes", "a nonce of 100 bytes", attest.Begun{Nonce: make([]byte, 100)}, stand{}, []*x509.Certificate{good}},
		{"from a device without a TPM", "evidence of the key: no TPM", begun, stand{fail: errors.New("no TPM")}, nil},
		{"from a TPM that cannot open the challenge", "the CA's challenge: integrity", begun, stand{locked: errors.New("integrity")}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := factory(t, c.begun, c.chain...)
			c.device.evidence = r.evidence()
			// The address of the CA's EST server is as good as its own.
			chain, err := attest.Enroll(t.Context(), s.Client(), s.URL+"/.well-known/est/wards", c.device)
			if c.want == "" {
				if err != nil || len(chain) != len(c.chain) {
					t.Errorf("%v, %d certificates", err, len(chain))
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.want) || chain != nil {
				t.Errorf("%v, without %q; chain %v", err, c.want, chain)
			}
		})
	}
}

func TestARefusalOfTheCAIsSaidSafely(t *testing.T) {
	for _, c := range []struct {
		name, want string
		answer     http.HandlerFunc
	}{
		{"a reason", `refused with 403 Forbidden, saying "EK is not known"`, func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "EK is not known", http.StatusForbidden) }},
		{"control characters", `\x1b[2J`, func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "\x1b[2J", 500) }},
		{"no reason", "refused with 404 Not Found", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(404) }},
		{"a novel", `..."`, func(w http.ResponseWriter, _ *http.Request) { http.Error(w, strings.Repeat("word ", 9999), 400) }},
		{"no JSON", "cannot be read", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<html>") }},
		{"a huge answer", "more than 65536 bytes", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, strings.Repeat("a", 70000)) }},
		{"half an answer", "broke off", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "100")
			_, _ = io.WriteString(w, "{")
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := serve(t, c.answer)
			_, err := attest.Enroll(t.Context(), s.Client(), s.URL, stand{})
			if err == nil || !strings.Contains(err.Error(), c.want) || len(err.Error()) > 1000 || strings.ContainsRune(err.Error(), 0x1b) {
				t.Errorf("%v, without %q", err, c.want)
			}
		})
	}
}

// The CA's no is told from a CA that has no time and from one that is none.
func TestARefusalOfTheCAHasAKindAndANextStep(t *testing.T) {
	r := newRig(t)
	for _, c := range []struct {
		name, path, next string
		status           int
		refused          bool
	}{
		{"an unknown TPM", attest.PathEvidence, "have the CA's operator admit this gateway and its TPM", 403, true},
		{"a CA without attestation", attest.PathBegin, "check the address of the CA", 404, true},
		{"an exchange that took too long", attest.PathFinish, "run gatewayd enroll attest again", 404, true},
		{"evidence twice", attest.PathEvidence, "run gatewayd enroll attest again", 409, true},
		{"bad evidence", attest.PathEvidence, "ask the CA's operator", 400, true},
		{"a disk that is full", attest.PathFinish, "try again later, or ask", 500, true},
		{"a CA with too many at once", attest.PathBegin, "try again later", 503, false},
		{"a CA that is asked too often", attest.PathBegin, "try again later", 429, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			good := factory(t, begun)
			s := serve(t, func(w http.ResponseWriter, q *http.Request) {
				if q.URL.Path == c.path {
					http.Error(w, "its reason", c.status)
					return
				}
				good.Config.Handler.ServeHTTP(w, q)
			})
			_, err := attest.Enroll(t.Context(), s.Client(), s.URL, stand{evidence: r.evidence()})
			refused, is := errors.AsType[*attest.Refused](err)
			if is != c.refused || is && (refused.Status != c.status || refused.Path != c.path) {
				t.Errorf("%#v", err)
			}
			if u, is := errors.AsType[*attest.Unavailable](err); is == c.refused || is && u.Status != c.status {
				t.Errorf("%#v", err)
			}
			if !strings.Contains(err.Error(), `"its reason"`) || !strings.Contains(err.Error(), c.next) {
				t.Errorf("%v, without %q", err, c.next)
			}
		})
	}
}

func TestEnrollGoesToAVerifiedServerOnly(t *testing.T) {
	s := factory(t, begun)
	if _, err := attest.Enroll(t.Context(), &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}, s.URL, stand{}); err == nil || !strings.Contains(err.Error(), "unknown authority") {
		t.Errorf("a server that nobody vouches for: %v", err)
	}
	for url, want := range map[string]string{
		"http://ca.test": "not https", "": "not https", "https://": "names no host", "https://a:b@ca.test": "more than a host",
		"https://ca.test?x": "more than a host", "https://%zz": "is no URL",
	} {
		_, err := attest.Enroll(t.Context(), s.Client(), url, stand{})
		if a, is := errors.AsType[*attest.AddressError](err); !is || a.URL != url || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", url, err)
		}
	}
}
