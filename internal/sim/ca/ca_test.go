package ca

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bedside-gateway/gatewayd/internal/sim/pki"
	"github.com/bedside-gateway/gatewayd/keystore/est"
	"github.com/bedside-gateway/gatewayd/observation"
)

const (
	device   = "0123456789ABCDEF"
	deviceID = observation.EUI64(0x0123456789ABCDEF)
)

var hospital = sync.OnceValue(func() *pki.PKI {
	p, err := pki.New(pki.Options{OCSPURL: "http://ocsp.test/{ca}", CRLURL: "http://crl.test/{ca}.crl"})
	if err != nil {
		panic(err)
	}
	return p
})

func ecKey(t testing.TB) crypto.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func request(t testing.TB, key crypto.Signer, name string) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: name}}, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// A running CA, with what it decided.
type running struct {
	*httptest.Server
	t      testing.TB
	mu     sync.Mutex
	events []Event
}

func run(t testing.TB, o Options) *running {
	t.Helper()
	r := &running{t: t}
	if o.PKI == nil {
		o.PKI = hospital()
	}
	o.Events = func(e Event) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.events = append(r.events, e)
	}
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	r.Server = httptest.NewUnstartedServer(s)
	if r.TLS, err = s.TLS(); err != nil {
		t.Fatal(err)
	}
	r.Config.ErrorLog = log.New(io.Discard, "", 0)
	r.StartTLS()
	t.Cleanup(r.Close)
	return r
}

// last is the latest decision.
func (r *running) last() Event {
	r.t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.events) == 0 {
		r.t.Fatal("nothing was decided")
	}
	return r.events[len(r.events)-1]
}

func (r *running) client(alter func(*est.Options)) *est.Client {
	r.t.Helper()
	o := est.Options{URL: r.URL, Roots: hospital().Roots(), Anchors: hospital().Roots()}
	if alter != nil {
		alter(&o)
	}
	c, err := est.New(o)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(c.Close)
	return c
}

func as(user, password string) func(*est.Options) {
	return func(o *est.Options) { o.Credential = func() (string, string, error) { return user, password, nil } }
}

func holding(t testing.TB, name string) func(*est.Options) {
	t.Helper()
	id, err := hospital().Identity(name)
	if err != nil {
		t.Fatal(err)
	}
	return func(o *est.Options) { o.Identity = &id }
}

func TestADeviceEnrolsAndRenews(t *testing.T) {
	var kept []*x509.Certificate
	r := run(t, Options{Credentials: map[string]string{"line-1": "secret"}, Lifetime: 48 * time.Hour,
		Record: func(c *x509.Certificate) error { kept = append(kept, c); return nil }})
	key := ecKey(t)
	first, err := r.client(as("line-1", "secret")).SimpleEnroll(t.Context(), request(t, key, device))
	if err != nil {
		t.Fatal(err)
	}
	leaf := first[0]
	if len(first) != 2 || leaf.Subject.CommonName != device || leaf.OCSPServer[0] != "http://ocsp.test/ecc-issuing" || leaf.CRLDistributionPoints[0] != "http://crl.test/ecc-issuing.crl" {
		t.Errorf("%v %v %v", leaf.Subject, leaf.OCSPServer, leaf.CRLDistributionPoints)
	}
	if e := r.last(); e.Way != "simpleenroll" || e.Device != device || e.Serial != leaf.SerialNumber.Text(16) || e.Detail != `user "line-1"` {
		t.Errorf("%+v", e)
	}
	id := tls.Certificate{Certificate: [][]byte{leaf.Raw, first[1].Raw}, PrivateKey: key}
	next := ecKey(t)
	second, err := r.client(func(o *est.Options) { o.Identity = &id }).SimpleReenroll(t.Context(), request(t, next, device))
	if err != nil {
		t.Fatal(err)
	}
	if second[0].Equal(leaf) || len(kept) != 2 || !kept[1].Equal(second[0]) {
		t.Errorf("%d certificates are on record", len(kept))
	}
}

func TestFormsOfTheName(t *testing.T) {
	r := run(t, Options{Credentials: map[string]string{"a": "b"}})
	_, err := r.client(as("a", "b")).SimpleEnroll(t.Context(), request(t, ecKey(t), "01-23-45-67-89-ab-cd-ef"))
	if err == nil || !strings.Contains(err.Error(), "it is issued to") {
		t.Errorf("the client takes another spelling: %v", err)
	}
	if e := r.last(); e.Device != device {
		t.Errorf("it was issued to %s", e.Device)
	}
}

func TestEnrolmentIsRefused(t *testing.T) {
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p521, err := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	bootstrap := map[string]string{"line-1": "secret"}
	for _, c := range []struct {
		name, want string
		status     int
		policy     Options
		client     func(*est.Options)
		key        crypto.Signer
		cn         string
	}{
		{name: "without a password", want: "a user and a password are needed", status: 401, policy: Options{Credentials: bootstrap}},
		{name: "with a wrong password", want: "wrong user or password", status: 401, policy: Options{Credentials: bootstrap}, client: as("line-1", "guess")},
		{name: "with an unknown user", want: "wrong user or password", status: 401, policy: Options{Credentials: bootstrap}, client: as("nobody", "")},
		{name: "where nobody has a password", want: "there is no client certificate", status: 403},
		{name: "where attestation is required", want: "gatewayd enroll attest", status: 403, policy: Options{Credentials: bootstrap, RequireAttestation: true}, client: as("line-1", "secret")},
		{name: "of a device that is not authorised", want: "0123456789ABCDEF is not authorised", status: 400, policy: Options{Credentials: bootstrap, Authorised: []observation.EUI64{1}}, client: as("line-1", "secret")},
		{name: "under a name that is no device", want: "no device identifier", status: 400, policy: Options{Credentials: bootstrap}, client: as("line-1", "secret"), cn: "platform.test"},
		{name: "of an Ed25519 key", want: "of another kind", status: 400, policy: Options{Credentials: bootstrap}, client: as("line-1", "secret"), key: ed},
		{name: "of a key on P-521", want: "of another kind", status: 400, policy: Options{Credentials: bootstrap}, client: as("line-1", "secret"), key: p521},
		{name: "with the certificate of a platform", want: "client certificate is not taken", status: 403, client: holding(t, "platform")},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.key == nil {
				c.key = ecKey(t)
			}
			if c.cn == "" {
				c.cn = device
			}
			r := run(t, c.policy)
			_, err := r.client(c.client).SimpleEnroll(t.Context(), request(t, c.key, c.cn))
			refused, is := errors.AsType[*est.Refused](err)
			if !is || refused.Status != c.status || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, without %q", err, c.want)
			}
			if e := r.last(); e.Err == nil || e.Serial != "" {
				t.Errorf("%+v", e)
			}
		})
	}
}

func TestRenewalIsRefused(t *testing.T) {
	late := func() time.Time { return time.Now().Add(100 * 24 * time.Hour) }
	for _, c := range []struct {
		name, holder, want string
		now                func() time.Time
	}{
		{"with a revoked certificate", "device-revoked", "is revoked", nil},
		{"with a certificate of a revoked CA", "device-issuing-revoked", "is revoked", nil},
		{"with an expired certificate", "device-expired", "expired", nil},
		{"with a certificate that expired on the shelf", "device", "expired", late},
		{"with a certificate of a foreign root", "device-foreign", "unknown authority", nil},
		{"with a certificate for servers", "device-wrong-eku", "incompatible key usage", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := run(t, Options{Now: c.now})
			client := r.client(func(o *est.Options) {
				holding(t, c.holder)(o)
				o.Now = c.now
			})
			_, err := client.SimpleReenroll(t.Context(), request(t, ecKey(t), device))
			refused, is := errors.AsType[*est.Refused](err)
			if !is || refused.Status != http.StatusForbidden || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, without %q", err, c.want)
			}
		})
	}
}

// The client would not ask for it, so this speaks HTTP by itself.
func TestACertificateRenewsItsOwnNameOnly(t *testing.T) {
	r := run(t, Options{})
	c := r.client(holding(t, "device"))
	body := base64.StdEncoding.EncodeToString(request(t, ecKey(t), "FEDCBA9876543210"))
	response, err := c.HTTP().Post(r.URL+"/.well-known/est/simplereenroll", "application/pkcs10", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusForbidden || !strings.Contains(string(text), "the request is for FEDCBA9876543210") {
		t.Errorf("%v, %d, %s", err, response.StatusCode, text)
	}
}

func TestBodiesThatAreNoRequest(t *testing.T) {
	r := run(t, Options{Credentials: map[string]string{"a": "b"}})
	c := r.client(nil)
	broken := request(t, ecKey(t), device)
	broken[len(broken)-1] ^= 1
	for _, x := range []struct{ name, kind, body, want string }{
		{"another type", "text/plain", "", "has to be application/pkcs10"},
		{"nothing", "application/pkcs10", "", "cannot be read"},
		{"no base64", "application/pkcs10", "*", "not base64"},
		{"no request", "application/pkcs10", "MAA=", "cannot be read"},
		{"a request that its key did not sign", "application/pkcs10", base64.StdEncoding.EncodeToString(broken), "not signed by its own key"},
		{"a huge one", "application/pkcs10", strings.Repeat("A", 1<<20), "too large"},
	} {
		response, err := c.HTTP().Post(r.URL+"/.well-known/est/simpleenroll", x.kind, strings.NewReader(x.body))
		if err != nil {
			t.Fatalf("%s: %v", x.name, err)
		}
		text, err := io.ReadAll(response.Body)
		_ = response.Body.Close()
		if err != nil || response.StatusCode != http.StatusBadRequest || !strings.Contains(string(text), x.want) {
			t.Errorf("%s: %v, %d, %s", x.name, err, response.StatusCode, text)
		}
	}
}

func TestPendingRequestsAreDecidedLater(t *testing.T) {
	r := run(t, Options{Credentials: map[string]string{"a": "b"}, Pending: 2, RetryAfter: 1500 * time.Millisecond})
	c, csr := r.client(as("a", "b")), request(t, ecKey(t), device)
	for range 2 {
		_, err := c.SimpleEnroll(t.Context(), csr)
		if p, is := errors.AsType[*est.Pending](err); !is || p.After != 2*time.Second {
			t.Fatalf("%v", err)
		}
	}
	if _, err := c.SimpleEnroll(t.Context(), csr); err != nil {
		t.Error(err)
	}
	// Who would be refused is refused at once.
	r = run(t, Options{Credentials: map[string]string{"a": "b"}, Pending: 1})
	_, err := r.client(as("a", "c")).SimpleEnroll(t.Context(), csr)
	if refused, is := errors.AsType[*est.Refused](err); !is || refused.Status != http.StatusUnauthorized {
		t.Errorf("%v", err)
	}
}

func TestWhatIsNotRecordedIsNotGivenOut(t *testing.T) {
	r := run(t, Options{Credentials: map[string]string{"a": "b"}, Record: func(*x509.Certificate) error { return errors.New("disk full") }})
	_, err := r.client(as("a", "b")).SimpleEnroll(t.Context(), request(t, ecKey(t), device))
	if refused, is := errors.AsType[*est.Refused](err); !is || refused.Status != 500 || !strings.Contains(err.Error(), "disk full") {
		t.Errorf("%v", err)
	}
}

func TestCACertificatesAndAttributes(t *testing.T) {
	r := run(t, Options{})
	for _, label := range []string{"", "/.well-known/est/wards"} {
		c := r.client(func(o *est.Options) { o.URL += label })
		all, err := c.CACerts(t.Context())
		if err != nil || len(all) != 2 {
			t.Fatalf("%v, %d certificates", err, len(all))
		}
		attributes, err := c.CSRAttrs(t.Context())
		if err != nil || len(attributes) != 2 || attributes[1].Type.String() != "1.2.840.10045.2.1" {
			t.Errorf("%v, %v", err, attributes)
		}
	}
}

// An EST client of other make: curl and openssl.
func TestOpenSSLAndCurlEnrol(t *testing.T) {
	for _, program := range []string{"curl", "openssl", "sh"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("%s is not installed", program)
		}
	}
	r, dir := run(t, Options{Credentials: map[string]string{"line-1": "secret"}}), t.TempDir()
	var roots bytes.Buffer
	e, err := hospital().Find("ecc-root")
	if err != nil {
		t.Fatal(err)
	}
	if err := pem.Encode(&roots, &pem.Block{Type: "CERTIFICATE", Bytes: e.Certificate.Raw}); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "roots.pem"), roots.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "sh", "-euc", `
		openssl ecparam -name prime256v1 -genkey -noout -out key.pem
		openssl req -new -key key.pem -subj /CN=`+device+` -outform DER | openssl base64 >csr.b64
		curl -sS --fail --cacert roots.pem -u line-1:secret -H 'Content-Type: application/pkcs10' --data-binary @csr.b64 "$CA/simpleenroll" | openssl base64 -d >leaf.p7
		openssl pkcs7 -inform DER -in leaf.p7 -print_certs -out chain.pem
		curl -sS --fail --cacert roots.pem "$CA/cacerts" | openssl base64 -d | openssl pkcs7 -inform DER -print_certs -out cas.pem
		openssl verify -CAfile roots.pem -untrusted cas.pem -purpose sslclient chain.pem
		openssl pkey -in key.pem -pubout >a; openssl x509 -in chain.pem -noout -pubkey >b; cmp a b`)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "CA="+r.URL+"/.well-known/est")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestARequestIsSignedByHand(t *testing.T) {
	s, err := New(Options{PKI: hospital(), Authorised: []observation.EUI64{deviceID}})
	if err != nil {
		t.Fatal(err)
	}
	chain, err := s.Sign(request(t, ecKey(t), device))
	if err != nil || len(chain) != 2 || chain[0].Subject.CommonName != device {
		t.Errorf("%v, %v", err, chain)
	}
	for want, csr := range map[string][]byte{
		"not authorised": request(t, ecKey(t), "FEDCBA9876543210"), "cannot be read": nil, "16384 are the most": make([]byte, maxCSR+1),
	} {
		if _, err := s.Sign(csr); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, without %q", err, want)
		}
	}
}

func TestAnRSAKeyIsSignedWhereOnlyECCIsIssued(t *testing.T) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(Options{PKI: hospital()})
	if err != nil {
		t.Fatal(err)
	}
	chain, err := s.Sign(request(t, key, device))
	if err != nil || chain[1].PublicKeyAlgorithm != x509.ECDSA {
		t.Errorf("%v", err)
	}
}

func TestOptionsThatCannotWorkAreRefused(t *testing.T) {
	for want, o := range map[string]Options{
		"needs a PKI":              {},
		"no certificate named":     {PKI: hospital(), Issuer: "nobody"},
		"does not issue":           {PKI: hospital(), Issuer: "ecc-root"},
		"it is at least a minute":  {PKI: hospital(), Lifetime: time.Second},
		"does not issue certifica": {PKI: hospital(), Issuer: "device"},
	} {
		if _, err := New(o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, without %q", err, want)
		}
	}
}
