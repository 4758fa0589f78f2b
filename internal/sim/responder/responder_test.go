package responder

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"

	"github.com/bedside-gateway/gatewayd/internal/sim/pki"
	"github.com/bedside-gateway/gatewayd/revocation"
)

var now = time.Now().UTC().Truncate(time.Second)

// The RSA half costs some seconds under the race detector.
var hospital = sync.OnceValues(func() (*pki.PKI, error) {
	o := pki.Options{Now: now}
	if !testing.Short() {
		o.Schemes = []pki.Scheme{pki.ECC, pki.RSA}
	}
	return pki.New(o)
})

func ward(t testing.TB) *pki.PKI {
	t.Helper()
	p, err := hospital()
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func chain(t testing.TB, p *pki.PKI, name string) []*x509.Certificate {
	t.Helper()
	c, err := p.Chain(name)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func server(t testing.TB, newServer func(Options) (*Server, error), answers string) (*Server, *httptest.Server) {
	t.Helper()
	s, err := newServer(Options{PKI: ward(t), Answers: answers})
	if err != nil {
		t.Fatal(err)
	}
	h := httptest.NewServer(s)
	t.Cleanup(h.Close)
	return s, h
}

// verdicts is what revocation.Judge must think of each answer.
var verdicts = map[Answer]revocation.Kind{
	Auto: revocation.Good, Good: revocation.Good, Revoked: revocation.Revoked, Unknown: revocation.Unknown, None: revocation.Missing,
	Stale: revocation.Stale, Future: revocation.Future, Old: revocation.TooOld, NoNextUpdate: revocation.Stale,
	WrongSigner: revocation.Unauthorised, Delegated: revocation.Good, DelegatedUnchecked: revocation.Unauthorised,
	DelegatedExpired: revocation.Unauthorised, DelegatedNoEKU: revocation.Unauthorised,
	SHA1: revocation.Weak, BadSignature: revocation.BadSignature, Mismatched: revocation.Mismatched, Several: revocation.Good,
	TryLater: revocation.Unsuccessful, Slow: revocation.Good, Garbage: revocation.Malformed, Portal: revocation.Malformed,
	HTTP500: revocation.Missing, Redirect: revocation.Missing, Truncated: revocation.Malformed, Huge: revocation.Good,
}

func TestEveryAnswerIsJudgedAsItsNameSays(t *testing.T) {
	rules := revocation.Rules{MaxAge: 7 * 24 * time.Hour}
	platforms := []string{"platform"}
	if !testing.Short() {
		platforms = append(platforms, "rsa-platform")
	}
	for _, platform := range platforms {
		c := chain(t, ward(t), platform)
		for _, a := range OCSPAnswers() {
			for position := range 2 {
				t.Run(fmt.Sprintf("%s, position %d, %s", a, position, platform), func(t *testing.T) {
					want, known := verdicts[a]
					if !known {
						t.Fatal("this test does not know it")
					}
					answers := []Answer{Good, Good}
					answers[position] = a
					got := revocation.Judge(c, revocation.Stapled(Staples(ward(t), c, answers)), now, rules)
					if got[position].Kind != want || got[1-position].Kind != revocation.Good {
						t.Errorf("verdicts: %v (%v); %v", got[position].Kind, got[position].Reason, got[1-position].Kind)
					}
				})
			}
		}
	}
}

func TestAnUncheckedResponderIsGoodWithACRL(t *testing.T) {
	c := chain(t, ward(t), "platform")
	s, err := NewCRL(Options{PKI: ward(t)})
	if err != nil {
		t.Fatal(err)
	}
	evidence := revocation.Stapled(Staples(ward(t), c, []Answer{DelegatedUnchecked, DelegatedUnchecked}))
	for _, ca := range []string{"ecc-issuing", "ecc-root"} {
		der, err := s.List(ca, Auto)
		if err != nil {
			t.Fatal(err)
		}
		list, err := x509.ParseRevocationList(der)
		if err != nil {
			t.Fatal(err)
		}
		evidence.CRLs = append(evidence.CRLs, list)
	}
	if err := revocation.Refusal(revocation.Judge(c, evidence, now, revocation.Rules{})); err != nil {
		t.Error(err)
	}
}

func TestTheTruthIsThatOfThePKI(t *testing.T) {
	for name, want := range map[string]revocation.Kind{
		"platform": revocation.Good, "device-revoked": revocation.Revoked, "device-issuing-revoked": revocation.Good, "ecc-issuing-revoked": revocation.Revoked,
	} {
		c := chain(t, ward(t), name)
		if v := revocation.Judge(c, revocation.Stapled(Staples(ward(t), c, nil)), now, revocation.Rules{}); v[0].Kind != want {
			t.Errorf("%s: %v", name, v[0])
		}
	}
	// A number that nobody issued: a twin of the CA, made by another PKI, cannot be asked about here.
	s, h := server(t, New, "")
	c := chain(t, ward(t), "platform")
	stranger := *c[0]
	stranger.SerialNumber = new(big.Int).SetBytes([]byte("nobody issued me"))
	r := parse(t, post(t, h.URL, request(t, &stranger, c[1], crypto.SHA1)), &stranger, c[1])
	if r.Status != ocsp.Unknown {
		t.Errorf("a number that nobody issued has status %d", r.Status)
	}
	if n := s.State().Asked[stranger.SerialNumber.Text(16)]; n != 1 {
		t.Errorf("it was counted %d times: %+v", n, s.State())
	}
}

func request(t testing.TB, cert, issuer *x509.Certificate, hash crypto.Hash) []byte {
	t.Helper()
	der, err := ocsp.CreateRequest(cert, issuer, &ocsp.RequestOptions{Hash: hash})
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func post(t testing.TB, to string, der []byte) *http.Response {
	t.Helper()
	r, err := http.Post(to, typeRequest, bytes.NewReader(der))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Body.Close() })
	return r
}

func parse(t testing.TB, r *http.Response, cert, issuer *x509.Certificate) *ocsp.Response {
	t.Helper()
	if got := r.Header.Get("Content-Type"); r.StatusCode != http.StatusOK || got != typeResponse {
		t.Fatalf("%s, content type %q", r.Status, got)
	}
	der, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := ocsp.ParseResponseForCert(der, cert, issuer)
	if err != nil {
		t.Fatal(err)
	}
	return parsed
}

func TestGETAndPOSTUnderAnyPathAndWithAnyHash(t *testing.T) {
	var events []Event
	s, err := New(Options{PKI: ward(t), Events: func(e Event) { events = append(events, e) }})
	if err != nil {
		t.Fatal(err)
	}
	h := httptest.NewServer(s)
	defer h.Close()
	c := chain(t, ward(t), "device-revoked")
	get := func(to string) *http.Response {
		r, err := http.Get(to)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { r.Body.Close() })
		return r
	}
	asked := 0
	for _, hash := range []crypto.Hash{crypto.SHA1, crypto.SHA256, crypto.SHA384, crypto.SHA512} {
		der := request(t, c[0], c[1], hash)
		text := base64.StdEncoding.EncodeToString(der)
		for _, base := range []string{h.URL, h.URL + "/", h.URL + "/ocsp/ecc-issuing"} {
			for name, r := range map[string]*http.Response{
				"POST":                   post(t, base, der),
				"GET escaped":            get(strings.TrimSuffix(base, "/") + "/" + url.PathEscape(text)),
				"GET with bare slashes":  get(strings.TrimSuffix(base, "/") + "/" + strings.NewReplacer("+", "%2B", "=", "%3D").Replace(text)),
				"GET without its equals": get(strings.TrimSuffix(base, "/") + "/" + url.PathEscape(strings.TrimRight(text, "="))),
			} {
				asked++
				parsed := parse(t, r, c[0], c[1])
				if parsed.Status != ocsp.Revoked || parsed.RevocationReason != ocsp.KeyCompromise || parsed.IssuerHash != hash {
					t.Errorf("%s %s, %v: status %d, reason %d, hash %v", name, base, hash, parsed.Status, parsed.RevocationReason, parsed.IssuerHash)
				}
				if want := parsed.ThisUpdate.Add(DefaultLifetime); !parsed.NextUpdate.Equal(want) || parsed.ThisUpdate.After(time.Now()) {
					t.Errorf("%s: from %v to %v", name, parsed.ThisUpdate, parsed.NextUpdate)
				}
			}
		}
	}
	if got := s.State(); got.Requests != asked || got.Asked["device-revoked"] != asked || got.Refused != 0 {
		t.Errorf("after %d requests: %+v", asked, got)
	}
	if len(events) != asked || !slices.Equal(events[0].Names, []string{"device-revoked"}) || events[0].Answer != Auto {
		t.Errorf("%d events, the first is %+v", len(events), events[0])
	}
}

func TestARequestThatIsNoneIsRefusedInOCSP(t *testing.T) {
	s, h := server(t, New, "")
	c, foreign := chain(t, ward(t), "platform"), chain(t, ward(t), "platform")
	good := request(t, c[0], c[1], crypto.SHA1)
	wrongIssuer := request(t, c[0], foreign[0], crypto.SHA1)
	for name, test := range map[string]struct {
		send func() *http.Response
		want ocsp.ResponseStatus
	}{
		"empty":             {func() *http.Response { return post(t, h.URL, nil) }, ocsp.Malformed},
		"cut off":           {func() *http.Response { return post(t, h.URL, good[:len(good)-1]) }, ocsp.Malformed},
		"with more behind":  {func() *http.Response { return post(t, h.URL, append(slices.Clip(good), 0)) }, ocsp.Malformed},
		"too long":          {func() *http.Response { return post(t, h.URL, make([]byte, maxRequest+1)) }, ocsp.Malformed},
		"of another issuer": {func() *http.Response { return post(t, h.URL, wrongIssuer) }, ocsp.Unauthorized},
		"of another type": {func() *http.Response {
			r, err := http.Post(h.URL, "text/plain", bytes.NewReader(good))
			if err != nil {
				t.Fatal(err)
			}
			return r
		}, ocsp.Malformed},
		"GET without one": {func() *http.Response {
			r, err := http.Get(h.URL + "/ocsp/MAAA")
			if err != nil {
				t.Fatal(err)
			}
			return r
		}, ocsp.Malformed},
	} {
		r := test.send()
		der, err := io.ReadAll(r.Body)
		if err != nil {
			t.Fatal(err)
		}
		r.Body.Close()
		_, err = ocsp.ParseResponse(der, nil)
		if refused, ok := err.(ocsp.ResponseError); !ok || refused.Status != test.want || r.StatusCode != http.StatusOK {
			t.Errorf("%s: %s, %v", name, r.Status, err)
		}
	}
	if got := s.State(); got.Refused != 7 || got.Requests != 7 || len(got.Asked) != 0 {
		t.Errorf("state %+v", got)
	}
}

func TestSeveralQuestionsInOneRequestAreAnsweredOneByOne(t *testing.T) {
	_, h := server(t, New, "device=stale")
	p := ward(t)
	issuing, root := chain(t, p, "ecc-issuing")[0], chain(t, p, "ecc-root")[0]
	var list []struct{ ID certID }
	s, err := New(Options{PKI: p})
	if err != nil {
		t.Fatal(err)
	}
	names := []string{"platform", "device-revoked", "device"}
	for _, name := range names {
		list = append(list, struct{ ID certID }{s.named("ecc-issuing").idOf(chain(t, p, name)[0].SerialNumber)})
	}
	list = append(list, struct{ ID certID }{s.named("ecc-root").idOf(issuing.SerialNumber)}) // of another CA: not answered
	type tbs struct{ List []struct{ ID certID } }
	der := marshal(t, struct{ TBS tbs }{tbs{list}})
	r := post(t, h.URL, der)
	body, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []revocation.Kind{revocation.Good, revocation.Revoked, revocation.Stale} {
		v := revocation.Judge([]*x509.Certificate{chain(t, p, names[i])[0], issuing, root}, revocation.Stapled([][]byte{body}), time.Now(), revocation.Rules{})
		if v[0].Kind != want {
			t.Errorf("%s: %v", names[i], v[0])
		}
	}
	if v := revocation.Judge([]*x509.Certificate{issuing, root}, revocation.Stapled([][]byte{body}), time.Now(), revocation.Rules{}); v[0].Good() {
		t.Error("the issuing CA vouches for itself")
	}
}

func TestFaultsOfHTTP(t *testing.T) {
	p := ward(t)
	c := chain(t, p, "platform")
	der := request(t, c[0], c[1], crypto.SHA1)
	s, h := server(t, New, "")
	ask := func(client *http.Client, a Answer) (*http.Response, []byte, error) {
		t.Helper()
		if err := s.Set("platform", a); err != nil {
			t.Fatal(err)
		}
		r, err := client.Post(h.URL+"/x", typeRequest, bytes.NewReader(der))
		if err != nil {
			return nil, nil, err
		}
		defer r.Body.Close()
		body, err := io.ReadAll(r.Body)
		return r, body, err
	}
	stay := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}

	if r, _, err := ask(stay, HTTP500); err != nil || r.StatusCode != http.StatusInternalServerError {
		t.Errorf("http-500: %v, %v", r, err)
	}
	if r, _, err := ask(stay, Portal); err != nil || r.StatusCode != http.StatusOK || !strings.HasPrefix(r.Header.Get("Content-Type"), "text/html") {
		t.Errorf("portal: %v, %v", r, err)
	}
	if r, body, err := ask(stay, Garbage); err != nil || r.Header.Get("Content-Type") != typeResponse || len(body) == 0 {
		t.Errorf("garbage: %v, %v", r, err)
	}
	if r, body, err := ask(stay, None); err != nil || r.StatusCode != http.StatusOK || len(body) != 0 {
		t.Errorf("none: %v, %v", r, err)
	}
	if _, body, err := ask(stay, Truncated); err != io.ErrUnexpectedEOF || len(body) == 0 {
		t.Errorf("truncated: %d bytes, %v", len(body), err)
	}
	if _, body, err := ask(stay, Huge); err != nil || len(body) < HugeSize {
		t.Errorf("huge: %d bytes, %v", len(body), err)
	}
	if r, _, err := ask(stay, Redirect); err != nil || r.StatusCode != http.StatusTemporaryRedirect || !strings.HasPrefix(r.Header.Get("Location"), "http://localhost:") {
		t.Errorf("redirect: %v, %v", r, err)
	}
	// Who follows it gets a good response, and has done wrong.
	if r, body, err := ask(http.DefaultClient, Redirect); err != nil || r.StatusCode != http.StatusOK {
		t.Errorf("redirect followed: %v, %v", r, err)
	} else if parsed, err := ocsp.ParseResponseForCert(body, c[0], c[1]); err != nil || parsed.Status != ocsp.Good {
		t.Errorf("redirect followed: %v", err)
	}
	if _, body, err := ask(stay, "slow:1ms"); err != nil {
		t.Error(err)
	} else if _, err := ocsp.ParseResponseForCert(body, c[0], c[1]); err != nil {
		t.Error(err)
	}
}

func TestWhoGivesUpOnASlowAnswerIsNotWaitedFor(t *testing.T) {
	c := chain(t, ward(t), "platform")
	s, err := New(Options{PKI: ward(t), Answers: "slow:1h"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	asked := make(chan struct{})
	s.events = func(Event) { close(asked) }
	r := httptest.NewRequestWithContext(ctx, http.MethodPost, "/", bytes.NewReader(request(t, c[0], c[1], crypto.SHA1)))
	r.Header.Set("Content-Type", typeRequest)
	w := httptest.NewRecorder()
	ended := make(chan struct{})
	go func() { s.ServeHTTP(w, r); close(ended) }()
	<-asked
	cancel()
	<-ended
	if w.Body.Len() != 0 {
		t.Errorf("%d bytes were written", w.Body.Len())
	}
}

func TestScriptsAreCheckedBeforeTheyHold(t *testing.T) {
	s, _ := server(t, New, "revoked")
	serial := chain(t, ward(t), "platform")[0].SerialNumber.Text(16)
	if err := s.Script(" device=stale, good," + serial + "=slow:3s ,"); err != nil {
		t.Fatal(err)
	}
	const held = "device=stale,platform=slow:3s,good"
	if got := s.State().Answers; got != held {
		t.Errorf("the script in force is %q", got)
	}
	for script, word := range map[string]string{
		"god": "no-next-update", "platfrom=good": "platform-revoked", "slow:soon": "slow:", "slow:-1s": "slow:", "delta": "there is no answer", "device=": "there is no answer",
	} {
		if err := s.Script(script); err == nil || !strings.Contains(err.Error(), word) {
			t.Errorf("%q: %v", script, err)
		}
	}
	if err := s.Set("", "god"); err == nil {
		t.Error("Set takes what is no answer")
	}
	if got := s.State().Answers; got != held {
		t.Errorf("a refused script changed it to %q", got)
	}
	for name, o := range map[string]Options{"PKI": {}, "lifetime": {PKI: ward(t), Lifetime: time.Millisecond}, "no answer": {PKI: ward(t), Answers: "perhaps"}} {
		if _, err := New(o); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestTheControlPathChangesARunningServer(t *testing.T) {
	s, _ := server(t, New, "")
	control := httptest.NewServer(s.Control())
	defer control.Close()
	r, err := http.Post(control.URL+"/answer", "text/plain", strings.NewReader("platform=revoked"))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	var state State
	if err := json.NewDecoder(r.Body).Decode(&state); err != nil || state.Answers != "platform=revoked,auto" {
		t.Errorf("%+v, %v", state, err)
	}
	wrong, err := http.Post(control.URL+"/answer", "text/plain", strings.NewReader("perhaps"))
	if err != nil {
		t.Fatal(err)
	}
	defer wrong.Body.Close()
	if wrong.StatusCode != http.StatusBadRequest {
		t.Errorf("a wrong script: %s", wrong.Status)
	}
	if got := s.State().Answers; got != "platform=revoked,auto" {
		t.Errorf("the script in force is %q", got)
	}
}

func TestStaplesOfAnotherChainPanicsWithItsName(t *testing.T) {
	other, err := pki.New(pki.Options{Now: now})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if r := fmt.Sprint(recover()); !strings.Contains(r, "not of this PKI") {
			t.Errorf("it says %s", r)
		}
	}()
	Staples(ward(t), chain(t, other, "platform"), nil)
}

// openssl is an implementation that shares nothing with ours.
func openssl(t *testing.T) func(args ...string) (string, error) {
	t.Helper()
	path, err := exec.LookPath("openssl")
	if err != nil {
		t.Skip("openssl is not installed")
	}
	return func(args ...string) (string, error) {
		out, err := exec.Command(path, args...).CombinedOutput()
		return string(out), err
	}
}

func TestTheClientOfOpenSSLAgrees(t *testing.T) {
	run := openssl(t)
	dir := filepath.Join(t.TempDir(), "pki")
	if err := ward(t).Write(dir); err != nil {
		t.Fatal(err)
	}
	in := func(name string) string { return filepath.Join(dir, name) }
	for _, test := range []struct {
		answer Answer
		words  []string // of what it prints
		not    string
	}{
		{Auto, []string{"Response verify OK", "platform.pem: good", "device-revoked.pem: revoked"}, ""},
		{Revoked, []string{"Response verify OK", "platform.pem: revoked", "keyCompromise"}, ""},
		{Unknown, []string{"Response verify OK", "platform.pem: unknown"}, ""},
		{Delegated, []string{"Response verify OK", "platform.pem: good"}, ""},
		{Several, []string{"Response verify OK", "platform.pem: good", "device-revoked.pem: revoked"}, ""},
		{Stale, []string{"Response verify OK", "Status times invalid", "status expired"}, ""},
		{Future, []string{"Response verify OK", "Status times invalid", "status not yet valid"}, ""},
		{WrongSigner, []string{"Response Verify Failure", "missing ocspsigning usage"}, "Response verify OK"},
		{DelegatedNoEKU, []string{"Response Verify Failure", "missing ocspsigning usage"}, "Response verify OK"},
		{DelegatedExpired, []string{"Response Verify Failure", "certificate has expired"}, "Response verify OK"},
		{BadSignature, []string{"Response Verify Failure"}, "Response verify OK"},
		{Mismatched, []string{"No Status found"}, ": good"},
		{TryLater, []string{"trylater (3)"}, ": good"},
		{HTTP500, []string{"500"}, ": good"},
		{Garbage, nil, ": good"},
	} {
		t.Run(string(test.answer), func(t *testing.T) {
			s, h := server(t, New, string(test.answer))
			out, _ := run("ocsp", "-url", h.URL+"/ecc-issuing", "-issuer", in("ecc-issuing.pem"), "-CAfile", in(pki.RootsFile),
				"-nonce", "-cert", in("platform.pem"), "-cert", in("device-revoked.pem"))
			for _, word := range test.words {
				if !strings.Contains(out, word) {
					t.Errorf("it does not say %q:\n%s", word, out)
				}
			}
			if test.not != "" && strings.Contains(out, test.not) {
				t.Errorf("it says %q:\n%s", test.not, out)
			}
			if s.State().Asked["platform"] != 1 {
				t.Errorf("it never asked: %+v\n%s", s.State(), out)
			}
		})
	}
}

func TestOpenSSLReadsAndVerifiesTheCRLs(t *testing.T) {
	run := openssl(t)
	dir := filepath.Join(t.TempDir(), "pki")
	if err := ward(t).Write(dir); err != nil {
		t.Fatal(err)
	}
	s, err := NewCRL(Options{PKI: ward(t)})
	if err != nil {
		t.Fatal(err)
	}
	serial := strings.ToUpper(chain(t, ward(t), "device-revoked")[0].SerialNumber.Text(16))
	for _, test := range []struct {
		answer Answer
		words  []string
		not    string
	}{
		{Auto, []string{"verify OK", serial, "Key Compromise"}, ""},
		{Good, []string{"verify OK", "No Revoked Certificates"}, serial},
		{Revoked, []string{"verify OK", serial}, ""},
		{Delta, []string{"verify OK", "Delta CRL Indicator: critical"}, ""},
		{SHA1, []string{"ecdsa-with-SHA1"}, ""},
		{WrongSigner, []string{"verify failure", serial}, "verify OK"},
		{BadSignature, []string{"verify failure"}, "verify OK"},
	} {
		t.Run(string(test.answer), func(t *testing.T) {
			der, err := s.List("ecc-issuing", test.answer)
			if err != nil {
				t.Fatal(err)
			}
			file := filepath.Join(t.TempDir(), "list.crl")
			if err := os.WriteFile(file, der, 0o600); err != nil {
				t.Fatal(err)
			}
			out, _ := run("crl", "-inform", "DER", "-in", file, "-CAfile", filepath.Join(dir, "ecc-issuing.pem"), "-noout", "-text")
			for _, word := range test.words {
				if !strings.Contains(out, word) {
					t.Errorf("it does not say %q:\n%s", word, out)
				}
			}
			if test.not != "" && strings.Contains(out, test.not) {
				t.Errorf("it says %q:\n%s", test.not, out)
			}
		})
	}
}

func TestCRLsAreJudgedAsTheirNamesSay(t *testing.T) {
	for _, a := range CRLAnswers() {
		want, known := map[Answer]revocation.Kind{
			Auto: revocation.Good, Good: revocation.Good, Revoked: revocation.Revoked, Stale: revocation.Stale, Future: revocation.Future, Old: revocation.TooOld,
			WrongSigner: revocation.BadSignature, SHA1: revocation.Weak, BadSignature: revocation.BadSignature, Delta: revocation.Unsupported,
			Mismatched: revocation.Missing, Slow: revocation.Good, Huge: revocation.Good,
			Truncated: revocation.Malformed, Garbage: revocation.Malformed, Portal: revocation.Malformed,
			None: revocation.Malformed, HTTP500: revocation.Malformed, Redirect: revocation.Malformed, // no list to judge
		}[a]
		if !known {
			t.Errorf("this test does not know %s", a)
			continue
		}
		s, h := server(t, NewCRL, strings.Replace(string(a), "slow", "slow:1ms", 1))
		client := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
		r, err := client.Get(h.URL + "/crl/ecc-issuing.crl")
		if err != nil {
			t.Fatal(err)
		}
		body, readErr := io.ReadAll(r.Body)
		r.Body.Close()
		list, err := x509.ParseRevocationList(body)
		if readErr != nil || err != nil {
			if want != revocation.Malformed {
				t.Errorf("%s: %v, %v", a, readErr, err)
			}
			continue
		}
		c := chain(t, ward(t), "platform")
		rules := revocation.Rules{CRLs: true, MaxAge: 7 * 24 * time.Hour}
		v := revocation.Judge(c[:2], revocation.Evidence{CRLs: []*x509.RevocationList{list}}, time.Now(), rules)
		if v[0].Kind != want {
			t.Errorf("%s: %v: %v", a, v[0].Kind, v[0].Reason)
		}
		if got := r.Header.Get("Content-Type"); got != typeCRL {
			t.Errorf("%s: content type %q", a, got)
		}
		if s.State().Asked["ecc-issuing"] != 1 {
			t.Errorf("%s: state %+v", a, s.State())
		}
	}
}

func TestACRLOfNobodyIsNotFound(t *testing.T) {
	s, h := server(t, NewCRL, "")
	r, err := http.Get(h.URL + "/platform.crl")
	if err != nil {
		t.Fatal(err)
	}
	r.Body.Close()
	posted, err := http.Post(h.URL+"/ecc-root.crl", "text/plain", nil)
	if err != nil {
		t.Fatal(err)
	}
	posted.Body.Close()
	if r.StatusCode != http.StatusNotFound || posted.StatusCode != http.StatusMethodNotAllowed || s.State().Refused != 2 {
		t.Errorf("%s, %s, %+v", r.Status, posted.Status, s.State())
	}
	if _, err := s.List("platform", Auto); err == nil {
		t.Error("a leaf has a list")
	}
}

func FuzzParseRequest(f *testing.F) {
	p, err := pki.New(pki.Options{Now: now})
	if err != nil {
		f.Fatal(err)
	}
	c := chain(f, p, "platform")
	good := request(f, c[0], c[1], crypto.SHA256)
	f.Add(good)
	f.Add(good[:20])
	f.Add([]byte("0\x80"))
	s, err := New(Options{PKI: p})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, der []byte) {
		ids, err := parseRequest(der)
		if err == nil && (len(ids) == 0 || len(ids) > maxCertIDs || ids[0].SerialNum == nil) {
			t.Fatalf("%d ids of a request that parses", len(ids))
		}
		byPath, pathErr := parsePath("/ocsp/" + url.PathEscape(base64.StdEncoding.EncodeToString(der)))
		if (err == nil) != (pathErr == nil) || len(ids) != len(byPath) {
			t.Fatalf("POST gives %v, GET gives %v", err, pathErr)
		}
		r := httptest.NewRequest(http.MethodPost, "/", bytes.NewReader(der))
		r.Header.Set("Content-Type", typeRequest)
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		if w.Code != http.StatusOK || w.Body.Len() == 0 {
			t.Fatalf("answered with %d and %d bytes", w.Code, w.Body.Len())
		}
	})
}

func marshal(t testing.TB, v any) []byte {
	t.Helper()
	der, err := asn1.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// afterwards is a certificate that was issued after the PKI was made, and the
// options of a server that knows of it.
func afterwards(t *testing.T, ca string) ([]*x509.Certificate, Options) {
	t.Helper()
	chain, err := ward(t).IssueDevice(ca, newKey(t).Public(), pki.DefaultDevice, now, pki.DefaultLifetime)
	if err != nil {
		t.Fatal(err)
	}
	return chain, Options{PKI: ward(t), Now: func() time.Time { return now }, Issued: func(serial *big.Int) (*x509.Certificate, error) {
		if serial.Cmp(chain[0].SerialNumber) == 0 {
			return chain[0], nil
		}
		return nil, nil
	}}
}

func newKey(t *testing.T) crypto.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// asks has a server judge a certificate.
func asks(t *testing.T, s *Server, c, issuer *x509.Certificate) (status int, err error) {
	t.Helper()
	request, err := ocsp.CreateRequest(c, issuer, nil)
	if err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	r := httptest.NewRequest(http.MethodPost, "/", bytes.NewReader(request))
	r.Header.Set("Content-Type", typeRequest)
	s.ServeHTTP(w, r)
	if w.Code != http.StatusOK {
		return 0, fmt.Errorf("status %d: %s", w.Code, w.Body)
	}
	got, err := ocsp.ParseResponseForCert(w.Body.Bytes(), c, issuer)
	if err != nil {
		return 0, err
	}
	return got.Status, nil
}

func TestWhatWasIssuedLaterIsKnownByItsSerialNumber(t *testing.T) {
	chain, o := afterwards(t, "ecc-issuing")
	serial := chain[0].SerialNumber.Text(16)
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	told := func(want int) {
		t.Helper()
		if got, err := asks(t, s, chain[0], chain[1]); err != nil || got != want {
			t.Errorf("status %d, want %d; %v", got, want, err)
		}
	}
	told(ocsp.Good)
	if err := s.Script(serial + "=revoked"); err != nil {
		t.Fatal(err)
	}
	told(ocsp.Revoked)
	if got := s.State(); got.Answers != serial+"=revoked,auto" || got.Asked[serial] != 2 {
		t.Errorf("the state is %+v", got)
	}
	if err := s.Script("abc123=revoked"); err == nil || !strings.Contains(err.Error(), "abc123") {
		t.Errorf("a serial number that nobody issued: %v", err)
	}
	alone, _ := server(t, New, "")
	if got, err := asks(t, alone, chain[0], chain[1]); err != nil || got != ocsp.Unknown {
		t.Errorf("a server without them says %d, %v", got, err)
	}
}

// A CA does not speak for what another one issued, whatever its number.
func TestWhatAnotherCAIssuedLaterIsUnknown(t *testing.T) {
	chain, o := afterwards(t, "ecc-foreign-issuing")
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	issuing, err := ward(t).Find("ecc-issuing")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := asks(t, s, chain[0], issuing.Certificate); err != nil || got != ocsp.Unknown {
		t.Errorf("status %d, %v", got, err)
	}
	if got, err := asks(t, s, chain[0], chain[1]); err != nil || got != ocsp.Good {
		t.Errorf("its own CA says %d, %v", got, err)
	}
}

func TestARecordThatCannotBeReadIsNoAnswer(t *testing.T) {
	chain, o := afterwards(t, "ecc-issuing")
	o.Issued = func(*big.Int) (*x509.Certificate, error) { return nil, errors.New("the record is damaged") }
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := asks(t, s, chain[0], chain[1]); err == nil || !strings.Contains(err.Error(), "the record is damaged") {
		t.Errorf("%v", err)
	}
	if err := s.Script("abc123=revoked"); err == nil || !strings.Contains(err.Error(), "the record is damaged") {
		t.Errorf("%v", err)
	}
}

func TestACertificateIsPutOnTheListOfItsCA(t *testing.T) {
	chain, o := afterwards(t, "ecc-issuing")
	s, err := NewCRL(o)
	if err != nil {
		t.Fatal(err)
	}
	device := func(name string) *big.Int {
		e, err := ward(t).Find(name)
		if err != nil {
			t.Fatal(err)
		}
		return e.Certificate.SerialNumber
	}
	on := func(ca string, serial *big.Int, a Answer) bool {
		t.Helper()
		der, err := s.List(ca, a)
		if err != nil {
			t.Fatal(err)
		}
		list, err := x509.ParseRevocationList(der)
		if err != nil {
			t.Fatal(err)
		}
		return slices.ContainsFunc(list.RevokedCertificateEntries, func(r x509.RevocationListEntry) bool { return r.SerialNumber.Cmp(serial) == 0 })
	}
	serial := chain[0].SerialNumber
	if on("ecc-issuing", serial, Auto) || on("ecc-issuing", device("device"), Auto) || !on("ecc-issuing", device("device-revoked"), Auto) {
		t.Error("the list is not the truth")
	}
	if err := s.Script(serial.Text(16) + "=revoked,device=revoked,device-revoked=good"); err != nil {
		t.Fatal(err)
	}
	if !on("ecc-issuing", serial, Auto) || !on("ecc-issuing", device("device"), Auto) || on("ecc-issuing", device("device-revoked"), Auto) {
		t.Error("the list is not that of the script")
	}
	if on("ecc-root", serial, Auto) || on("ecc-issuing", serial, Good) {
		t.Error("it is on the list of another CA, or on one that is to be empty")
	}
	if err := s.Set("device", Stale); err == nil || !strings.Contains(err.Error(), "on a list it is revoked or good") {
		t.Errorf("a device with a list of its own: %v", err)
	}
}
