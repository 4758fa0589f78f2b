package est

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/bedside-gateway/gatewayd/internal/sim/pki"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var hospital = sync.OnceValue(func() *pki.PKI {
	p, err := pki.New(pki.Options{})
	if err != nil {
		panic(err)
	}
	return p
})

func entry(t testing.TB, name string) *pki.Entry {
	t.Helper()
	e, err := hospital().Find(name)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

const device = "0123456789ABCDEF"

func newKey(t testing.TB) crypto.Signer {
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

// issue makes a certificate of an issuing CA, as alter wants it.
func issue(t testing.TB, ca string, key crypto.PublicKey, alter func(*x509.Certificate)) *x509.Certificate {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: device},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}
	if alter != nil {
		alter(template)
	}
	by := entry(t, ca)
	der, err := x509.CreateCertificate(rand.Reader, template, by.Certificate, key, by.Key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// certsOnly writes the message of RFC 5272, section 4.1, in DER.
func certsOnly(t testing.TB, all ...*x509.Certificate) []byte {
	t.Helper()
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(oidSignedData)
		b.AddASN1(tagContext0, func(b *cryptobyte.Builder) {
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1Int64(1)
				b.AddASN1(cbasn1.SET, func(*cryptobyte.Builder) {})
				b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) { b.AddASN1ObjectIdentifier(oidData) })
				b.AddASN1(tagContext0, func(b *cryptobyte.Builder) {
					for _, c := range all {
						b.AddBytes(c.Raw)
					}
				})
				b.AddASN1(cbasn1.SET, func(*cryptobyte.Builder) {})
			})
		})
	})
	der, err := b.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func send(w http.ResponseWriter, der []byte) {
	w.Header().Set("Content-Type", "application/pkcs7-mime; smime-type=certs-only")
	_, _ = w.Write(encode(der))
}

// A fake is an EST server whose answers are functions.
type fake struct {
	*httptest.Server
	roots *x509.CertPool
	asked atomic.Int32
}

func serve(t testing.TB, handlers map[string]http.HandlerFunc) *fake {
	t.Helper()
	f := &fake{roots: x509.NewCertPool()}
	mux := http.NewServeMux()
	if handlers["/cacerts"] == nil {
		mux.HandleFunc("GET /.well-known/est/cacerts", func(w http.ResponseWriter, _ *http.Request) {
			send(w, certsOnly(t, entry(t, "ecc-root").Certificate, entry(t, "ecc-issuing").Certificate))
		})
	}
	for path, h := range handlers {
		mux.HandleFunc("/.well-known/est"+path, h)
	}
	f.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.asked.Add(1)
		mux.ServeHTTP(w, r)
	}))
	f.Config.ErrorLog = log.New(io.Discard, "", 0)
	f.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
	f.StartTLS()
	t.Cleanup(f.Close)
	f.roots.AddCert(f.Certificate())
	return f
}

func (f *fake) client(t testing.TB, alter func(*Options)) *Client {
	t.Helper()
	o := Options{URL: f.URL, Roots: f.roots}
	if alter != nil {
		alter(&o)
	}
	c, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// issuing answers requests as a CA does, with what give makes of them.
func issuing(t testing.TB, give func(*x509.CertificateRequest) []*x509.Certificate) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		if got := r.Header.Get("Content-Type"); got != "application/pkcs10" {
			t.Errorf("content type %q", got)
		}
		der, err := base64.StdEncoding.DecodeString(string(body))
		if err != nil {
			t.Errorf("the request is not base64: %v", err)
		}
		csr, err := x509.ParseCertificateRequest(der)
		if err != nil {
			t.Errorf("the request cannot be read: %v", err)
			return
		}
		send(w, certsOnly(t, give(csr)...))
	}
}

func TestAChainComesBackOrderedAndWhole(t *testing.T) {
	issuer := entry(t, "ecc-issuing").Certificate
	for _, c := range []struct {
		name string
		give func(leaf *x509.Certificate) []*x509.Certificate
	}{
		{"the leaf alone", func(leaf *x509.Certificate) []*x509.Certificate { return []*x509.Certificate{leaf} }},
		{"leaf and issuer", func(leaf *x509.Certificate) []*x509.Certificate { return []*x509.Certificate{leaf, issuer} }},
		{"upside down, with the root", func(leaf *x509.Certificate) []*x509.Certificate {
			return []*x509.Certificate{entry(t, "ecc-root").Certificate, issuer, leaf}
		}},
		{"among strangers", func(leaf *x509.Certificate) []*x509.Certificate {
			return []*x509.Certificate{entry(t, "ecc-foreign-issuing").Certificate, leaf}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := serve(t, map[string]http.HandlerFunc{"/simpleenroll": issuing(t, func(csr *x509.CertificateRequest) []*x509.Certificate {
				return c.give(issue(t, "ecc-issuing", csr.PublicKey, nil))
			})})
			key := newKey(t)
			chain, err := f.client(t, nil).SimpleEnroll(t.Context(), request(t, key, device))
			if err != nil {
				t.Fatal(err)
			}
			if len(chain) != 2 || !chain[1].Equal(issuer) {
				t.Fatalf("the chain has %d certificates", len(chain))
			}
			if !key.Public().(*ecdsa.PublicKey).Equal(chain[0].PublicKey) {
				t.Error("the chain begins with another key")
			}
		})
	}
}

func TestAnIssuedCertificateIsRefused(t *testing.T) {
	other := newKey(t)
	for _, c := range []struct {
		name, want string
		give       func(*x509.CertificateRequest) *x509.Certificate
	}{
		{"for another key", "is for another key than the request", func(*x509.CertificateRequest) *x509.Certificate {
			return issue(t, "ecc-issuing", other.Public(), nil)
		}},
		{"for another device", `issued to "FEDCBA9876543210"`, func(r *x509.CertificateRequest) *x509.Certificate {
			return issue(t, "ecc-issuing", r.PublicKey, func(c *x509.Certificate) { c.Subject.CommonName = "FEDCBA9876543210" })
		}},
		{"that has expired", "it expired on", func(r *x509.CertificateRequest) *x509.Certificate {
			return issue(t, "ecc-issuing", r.PublicKey, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })
		}},
		{"that is not valid yet", "it is not valid before", func(r *x509.CertificateRequest) *x509.Certificate {
			return issue(t, "ecc-issuing", r.PublicKey, func(c *x509.Certificate) { c.NotBefore = time.Now().Add(30 * time.Minute) })
		}},
		{"for a server", "lacks clientAuth", func(r *x509.CertificateRequest) *x509.Certificate {
			return issue(t, "ecc-issuing", r.PublicKey, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} })
		}},
		{"for anything", "lacks clientAuth", func(r *x509.CertificateRequest) *x509.Certificate {
			return issue(t, "ecc-issuing", r.PublicKey, func(c *x509.Certificate) { c.ExtKeyUsage = nil })
		}},
		{"without digital signatures", "lacks digitalSignature", func(r *x509.CertificateRequest) *x509.Certificate {
			return issue(t, "ecc-issuing", r.PublicKey, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyAgreement })
		}},
		{"that is a CA", "that of a CA", func(r *x509.CertificateRequest) *x509.Certificate {
			return issue(t, "ecc-root", r.PublicKey, func(c *x509.Certificate) { c.IsCA = true })
		}},
		{"of a root that nobody trusts", "no path to a root that we trust", func(r *x509.CertificateRequest) *x509.Certificate {
			return issue(t, "ecc-foreign-issuing", r.PublicKey, nil)
		}},
		{"with a signature that does not fit", "no path to a root that we trust", func(r *x509.CertificateRequest) *x509.Certificate {
			c := *issue(t, "ecc-issuing", r.PublicKey, nil)
			c.Raw = append([]byte(nil), c.Raw...)
			c.Raw[len(c.Raw)-1] ^= 1
			return &c
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := serve(t, map[string]http.HandlerFunc{"/simpleenroll": issuing(t, func(r *x509.CertificateRequest) []*x509.Certificate {
				return []*x509.Certificate{c.give(r)}
			})})
			chain, err := f.client(t, nil).SimpleEnroll(t.Context(), request(t, newKey(t), device))
			if err == nil || !strings.Contains(err.Error(), c.want) || chain != nil {
				t.Errorf("chain %v, error %v, without %q", chain, err, c.want)
			}
		})
	}
}

func TestAnchorsOutweighWhatTheServerGives(t *testing.T) {
	f := serve(t, map[string]http.HandlerFunc{"/simpleenroll": issuing(t, func(r *x509.CertificateRequest) []*x509.Certificate {
		return []*x509.Certificate{issue(t, "ecc-issuing", r.PublicKey, nil)}
	})})
	foreign := x509.NewCertPool()
	foreign.AddCert(entry(t, "ecc-foreign-root").Certificate)
	_, err := f.client(t, func(o *Options) { o.Anchors = foreign }).SimpleEnroll(t.Context(), request(t, newKey(t), device))
	if err == nil || !strings.Contains(err.Error(), "no path to a root that we trust") {
		t.Errorf("another root: %v", err)
	}
	if _, err := f.client(t, func(o *Options) { o.Anchors = hospital().Roots() }).SimpleEnroll(t.Context(), request(t, newKey(t), device)); err != nil {
		t.Errorf("the right root: %v", err)
	}
}

func TestWithoutARootInCacertsOneHasToBeGiven(t *testing.T) {
	f := serve(t, map[string]http.HandlerFunc{
		"/cacerts": func(w http.ResponseWriter, _ *http.Request) {
			send(w, certsOnly(t, entry(t, "ecc-issuing").Certificate))
		},
		"/simpleenroll": issuing(t, func(r *x509.CertificateRequest) []*x509.Certificate {
			return []*x509.Certificate{issue(t, "ecc-issuing", r.PublicKey, nil)}
		})})
	_, err := f.client(t, nil).SimpleEnroll(t.Context(), request(t, newKey(t), device))
	if err == nil || !strings.Contains(err.Error(), "give the file of its root certificate") {
		t.Errorf("%v", err)
	}
}

func TestARequestThatCannotWorkIsNotSent(t *testing.T) {
	good := request(t, newKey(t), device)
	broken := append([]byte(nil), good...)
	broken[len(broken)-1] ^= 1
	id, err := hospital().Identity("device")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, want string
		csr        []byte
		renew      bool
		identity   *tls.Certificate
	}{
		{"nothing", "cannot be read", nil, false, nil},
		{"too much", "32768 are the most", make([]byte, maxCSR+1), false, nil},
		{"a broken signature", "not signed by its own key", broken, false, nil},
		{"a request without a name", "names nobody", request(t, newKey(t), ""), false, nil},
		{"a renewal without a certificate", "no current certificate to renew", good, true, nil},
		{"a renewal under another name", `that of "0123456789ABCDEF"`, request(t, newKey(t), "FEDCBA9876543210"), true, &id},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := serve(t, nil)
			client := f.client(t, func(o *Options) { o.Identity = c.identity })
			call := client.SimpleEnroll
			if c.renew {
				call = client.SimpleReenroll
			}
			if _, err := call(t.Context(), c.csr); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, without %q", err, c.want)
			}
			if n := f.asked.Load(); n != 0 {
				t.Errorf("the server was asked %d times", n)
			}
		})
	}
}

func TestOptionsThatCannotWorkAreRefused(t *testing.T) {
	roots := hospital().Roots()
	for _, c := range []struct {
		name, url, want string
		roots           *x509.CertPool
	}{
		{"plain HTTP", "http://ca.test", "not https", roots},
		{"no URL", "", "not https", roots},
		{"no host", "https://:8443", "names no host", roots},
		{"a password in the URL", "https://user:secret@ca.test", "credentials have no place", roots},
		{"a query", "https://ca.test/?a=b", "more than a host and a path", roots},
		{"another path", "https://ca.test/est", "its path is /est", roots},
		{"a label of two parts", "https://ca.test/.well-known/est/a/b", "that and one label", roots},
		{"a name that only begins well", "https://ca.test/.well-known/estate", "its path is", roots},
		{"no roots", "https://ca.test", "no roots to verify", nil},
		{"an empty pool", "https://ca.test", "no roots to verify", x509.NewCertPool()},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := New(Options{URL: c.url, Roots: c.roots})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, without %q", err, c.want)
			}
			if a, is := errors.AsType[*AddressError](err); is != (c.roots == roots) || is && a.URL != c.url {
				t.Errorf("%#v", err)
			}
		})
	}
	if _, err := New(Options{URL: "https://ca.test", Roots: roots, Identity: &tls.Certificate{}}); err == nil {
		t.Error("an identity without anything is taken")
	}
	for url, want := range map[string]string{
		"https://ca.test":                          "https://ca.test/.well-known/est",
		"https://ca.test:8443/":                    "https://ca.test:8443/.well-known/est",
		"https://ca.test/.well-known/est/":         "https://ca.test/.well-known/est",
		"https://[::1]:8443/.well-known/est/wards": "https://[::1]:8443/.well-known/est/wards",
	} {
		if c, err := New(Options{URL: url, Roots: roots}); err != nil || c.base != want {
			t.Errorf("%s: %v, %v", url, c, err)
		}
	}
}

func TestTheServerHasToProveItself(t *testing.T) {
	f := serve(t, nil)
	for _, c := range []struct {
		name, want string
		alter      func(*Options)
	}{
		{"by a root that we have", "check that the configured root is that of this server", func(o *Options) { o.Roots = hospital().Roots() }},
		{"by its name", "use the name that is in its certificate", func(o *Options) {
			_, port, _ := net.SplitHostPort(f.Listener.Addr().String())
			o.URL = "https://localhost:" + port
		}},
		{"at our time", "check the gateway's clock", func(o *Options) { o.Now = func() time.Time { return time.Date(2200, 1, 1, 0, 0, 0, 0, time.UTC) } }},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, err := f.client(t, c.alter).CACerts(t.Context()); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, without %q", err, c.want)
			}
		})
	}
	if n := f.asked.Load(); n != 0 {
		t.Errorf("%d requests came through", n)
	}
}

func TestOldTLSIsRefused(t *testing.T) {
	f := httptest.NewUnstartedServer(http.NotFoundHandler())
	f.Config.ErrorLog = log.New(io.Discard, "", 0)
	f.TLS = &tls.Config{MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}
	f.StartTLS()
	defer f.Close()
	roots := x509.NewCertPool()
	roots.AddCert(f.Certificate())
	c, err := New(Options{URL: f.URL, Roots: roots})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.CACerts(t.Context()); err == nil || !strings.Contains(err.Error(), "protocol version") {
		t.Errorf("%v", err)
	}
}

func TestThePasswordIsGivenToWhomAsksForItOnly(t *testing.T) {
	give := issuing(t, func(r *x509.CertificateRequest) []*x509.Certificate {
		return []*x509.Certificate{issue(t, "ecc-issuing", r.PublicKey, nil)}
	})
	var seen atomic.Int32
	protected := serve(t, map[string]http.HandlerFunc{"/simpleenroll": func(w http.ResponseWriter, r *http.Request) {
		user, password, ok := r.BasicAuth()
		if !ok {
			w.Header().Set("WWW-Authenticate", `Basic realm="factory"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		seen.Add(1)
		if user != "line-1" || password != "secret" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		give(w, r)
	}})
	asked := 0
	credential := func() (string, string, error) { asked++; return "line-1", "secret", nil }
	if _, err := protected.client(t, func(o *Options) { o.Credential = credential }).SimpleEnroll(t.Context(), request(t, newKey(t), device)); err != nil {
		t.Fatal(err)
	}
	if asked != 1 || seen.Load() != 1 {
		t.Errorf("asked %d times, sent %d times", asked, seen.Load())
	}
	open := serve(t, map[string]http.HandlerFunc{"/simpleenroll": func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" {
			t.Error("the password came without being asked for")
		}
		give(w, r)
	}})
	if _, err := open.client(t, func(o *Options) { o.Credential = credential }).SimpleEnroll(t.Context(), request(t, newKey(t), device)); err != nil {
		t.Fatal(err)
	}
	wrong := protected.client(t, func(o *Options) { o.Credential = func() (string, string, error) { return "line-1", "guess", nil } })
	_, err := wrong.SimpleEnroll(t.Context(), request(t, newKey(t), device))
	if refused, is := errors.AsType[*Refused](err); !is || refused.Status != http.StatusUnauthorized || strings.Contains(err.Error(), "guess") {
		t.Errorf("a wrong password: %v", err)
	}
	if seen.Load() != 2 {
		t.Errorf("a wrong password was sent %d times", seen.Load()-1)
	}
	broken := protected.client(t, func(o *Options) {
		o.Credential = func() (string, string, error) { return "", "", errors.New("no such file") }
	})
	if _, err := broken.SimpleEnroll(t.Context(), request(t, newKey(t), device)); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("no password: %v", err)
	}
}

func TestAnotherAuthenticationIsNamed(t *testing.T) {
	f := serve(t, map[string]http.HandlerFunc{"/simpleenroll": func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("WWW-Authenticate", `Digest realm="Basic", nonce="x"`)
		w.WriteHeader(http.StatusUnauthorized)
	}})
	c := f.client(t, func(o *Options) {
		o.Credential = func() (string, string, error) { t.Error("the password was read"); return "a", "b", nil }
	})
	if _, err := c.SimpleEnroll(t.Context(), request(t, newKey(t), device)); err == nil || !strings.Contains(err.Error(), "knows Basic and client certificates") {
		t.Errorf("%v", err)
	}
}

func TestARenewalIsAuthenticatedByTheCurrentCertificate(t *testing.T) {
	id, err := hospital().Identity("device")
	if err != nil {
		t.Fatal(err)
	}
	f := serve(t, map[string]http.HandlerFunc{"/simplereenroll": func(w http.ResponseWriter, r *http.Request) {
		if len(r.TLS.PeerCertificates) == 0 || !r.TLS.PeerCertificates[0].Equal(id.Leaf) {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		issuing(t, func(csr *x509.CertificateRequest) []*x509.Certificate {
			return []*x509.Certificate{issue(t, "ecc-issuing", csr.PublicKey, nil)}
		})(w, r)
	}})
	c := f.client(t, func(o *Options) { o.Identity = &id })
	for name, key := range map[string]crypto.Signer{"the same key": id.PrivateKey.(crypto.Signer), "another key": newKey(t)} {
		if chain, err := c.SimpleReenroll(t.Context(), request(t, key, device)); err != nil || len(chain) != 2 {
			t.Errorf("%s: %v", name, err)
		}
	}
	// A server that hands out what it has on file renews nothing.
	stale := serve(t, map[string]http.HandlerFunc{"/simplereenroll": issuing(t, func(*x509.CertificateRequest) []*x509.Certificate {
		return []*x509.Certificate{id.Leaf}
	})})
	_, err = stale.client(t, func(o *Options) { o.Identity = &id }).SimpleReenroll(t.Context(), request(t, id.PrivateKey.(crypto.Signer), device))
	if err == nil || !strings.Contains(err.Error(), "that we have already") {
		t.Errorf("the old certificate: %v", err)
	}
}

// A server that refuses our certificate does so in TLS, in 1.3 after we are through.
func TestARefusalInTLSIsExplained(t *testing.T) {
	id, err := hospital().Identity("device")
	if err != nil {
		t.Fatal(err)
	}
	for name, version := range map[string]uint16{"1.2": tls.VersionTLS12, "1.3": tls.VersionTLS13} {
		t.Run(name, func(t *testing.T) {
			s := httptest.NewUnstartedServer(http.NotFoundHandler())
			s.Config.ErrorLog = log.New(io.Discard, "", 0)
			s.TLS = &tls.Config{MaxVersion: version, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: x509.NewCertPool()}
			s.StartTLS()
			defer s.Close()
			roots := x509.NewCertPool()
			roots.AddCert(s.Certificate())
			c, err := New(Options{URL: s.URL, Roots: roots, Identity: &id})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if _, err := c.CACerts(t.Context()); err == nil || !strings.Contains(err.Error(), "the server does not take our side of TLS") {
				t.Errorf("%v", err)
			}
		})
	}
}

// A certificate that only calls itself its own issuer is no root.
func TestARootHasToBeSignedByItself(t *testing.T) {
	key, root := newKey(t), entry(t, "ecc-root")
	forged := issue(t, "ecc-issuing", key.Public(), nil) // by another key than its own
	same := *forged
	same.RawIssuer = same.RawSubject
	csr, err := x509.ParseCertificateRequest(request(t, key, device))
	if err != nil {
		t.Fatal(err)
	}
	_, err = Judge(csr, []*x509.Certificate{forged}, []*x509.Certificate{&same}, nil, time.Now())
	if err == nil || !strings.Contains(err.Error(), "hold no root") {
		t.Errorf("%v", err)
	}
	cas := []*x509.Certificate{&same, root.Certificate, entry(t, "ecc-issuing").Certificate}
	if chain, err := Judge(csr, []*x509.Certificate{forged}, cas, nil, time.Now()); err != nil || len(chain) != 2 {
		t.Errorf("beside a real root: %v", err)
	}
}

// A CA that sends the old certificate along means the new one.
func TestOfTwoCertificatesTheNewerIsTaken(t *testing.T) {
	id, err := hospital().Identity("device")
	if err != nil {
		t.Fatal(err)
	}
	newer := issue(t, "ecc-issuing", id.Leaf.PublicKey, func(c *x509.Certificate) { c.NotBefore = id.Leaf.NotBefore.Add(time.Minute) })
	csr, err := x509.ParseCertificateRequest(request(t, id.PrivateKey.(crypto.Signer), device))
	if err != nil {
		t.Fatal(err)
	}
	cas := []*x509.Certificate{entry(t, "ecc-issuing").Certificate}
	for _, given := range [][]*x509.Certificate{{id.Leaf, newer}, {newer, id.Leaf}} {
		chain, err := Judge(csr, given, cas, hospital().Roots(), time.Now())
		if err != nil || !chain[0].Equal(newer) {
			t.Errorf("%v", err)
		}
	}
}

func TestARefusalSaysWhatTheServerSaidAndWhatToDo(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		name, text, want string
		status           int
	}{
		{"401", "", "check the user and password", 401},
		{"403", "EUI-64 not authorised\n", `saying "EUI-64 not authorised"; have the CA's operator authorise`, 403},
		{"404", "", "check the path", 404},
		{"400", "\x1b[31mred\x00 caf\u00e9", `"\x1b[31mred\x00 caf\u00e9"`, 400},
		{"500 with a page of text", strings.Repeat("long ", 400), `long ..."`, 500},
		{"a status that nobody knows", "", "599", 599},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := answer{status: c.status, body: []byte(c.text)}
			err := a.refusal(now)
			refused, is := errors.AsType[*Refused](err)
			if !is || refused.Status != c.status || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%#v: %v, without %q", refused, err, c.want)
			}
			if len(err.Error()) > 1000 {
				t.Errorf("the error has %d bytes", len(err.Error()))
			}
		})
	}
}

// Nothing is decided: it is no refusal, and the next attempt may be a good one.
func TestAServerThatCannotAnswerNowIsAskedAgain(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		name, retry, want string
		status            int
		after             time.Duration
	}{
		{"503 with a time", "120", "ask again in 2m0s", 503, 2 * time.Minute},
		{"503 without one", "", "ask again in 1m0s", 503, time.Minute},
		{"429 with a date", now.Add(90 * time.Second).Format(http.TimeFormat), "ask again in 1m30s", 429, 90 * time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := serve(t, map[string]http.HandlerFunc{"/simpleenroll": func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Retry-After", c.retry)
				http.Error(w, "the HSM is being exchanged", c.status)
			}})
			client := f.client(t, func(o *Options) { o.Now = func() time.Time { return now } })
			_, err := client.SimpleEnroll(t.Context(), request(t, newKey(t), device))
			u, is := errors.AsType[*Unavailable](err)
			if !is || u.Status != c.status || u.After != c.after || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), `"the HSM is being exchanged"`) {
				t.Errorf("%#v: %v, without %q", u, err, c.want)
			}
			if _, refused := errors.AsType[*Refused](err); refused {
				t.Error("it is taken for a refusal")
			}
		})
	}
}

func TestPendingSaysWhenToAskAgain(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for retry, want := range map[string]time.Duration{
		"30": 30 * time.Second, "0": time.Second, "": time.Minute, "soon": time.Minute, "-5": time.Minute,
		"99999999999999999999999": 24 * time.Hour, "18446744073709551615": 24 * time.Hour, "864000": 24 * time.Hour,
		now.Add(time.Hour).Format(http.TimeFormat): time.Hour, now.Add(-time.Hour).Format(http.TimeFormat): time.Second,
	} {
		a := answer{status: 202, header: http.Header{"Retry-After": {retry}}}
		if pending, is := errors.AsType[*Pending](a.refusal(now)); !is || pending.After != want {
			t.Errorf("Retry-After %q: %v", retry, pending)
		}
	}
	var asked atomic.Int32
	f := serve(t, map[string]http.HandlerFunc{"/simpleenroll": func(w http.ResponseWriter, r *http.Request) {
		if asked.Add(1) == 1 {
			w.Header().Set("Retry-After", "7")
			w.WriteHeader(http.StatusAccepted)
			fmt.Fprintln(w, "waits for approval")
			return
		}
		issuing(t, func(r *x509.CertificateRequest) []*x509.Certificate {
			return []*x509.Certificate{issue(t, "ecc-issuing", r.PublicKey, nil)}
		})(w, r)
	}})
	c, csr := f.client(t, nil), request(t, newKey(t), device)
	_, err := c.SimpleEnroll(t.Context(), csr)
	if pending, is := errors.AsType[*Pending](err); !is || pending.After != 7*time.Second || !strings.Contains(err.Error(), "waits for approval") {
		t.Fatalf("%v", err)
	}
	if _, err := c.SimpleEnroll(t.Context(), csr); err != nil {
		t.Fatal(err)
	}
}

func TestAnAnswerThatIsNoEST(t *testing.T) {
	good := certsOnly(t, entry(t, "ecc-root").Certificate)
	for _, c := range []struct {
		name, kind, body, want string
	}{
		{"a portal's page", "text/html", "<html>sign in</html>", "something stands between"},
		{"no type", "", string(encode(good)), "something stands between"},
		{"a full CMC response", "application/pkcs7-mime; smime-type=CMC-response", string(encode(good)), "only certs-only is read"},
		{"DER without base64", "application/pkcs7-mime", string(good), "not base64"},
		{"nothing", "application/pkcs7-mime", "", "no certs-only message"},
		{"a huge body", "application/pkcs7-mime", strings.Repeat("A", maxBody+1), "more than 262144 bytes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := serve(t, map[string]http.HandlerFunc{"/cacerts": func(w http.ResponseWriter, _ *http.Request) {
				w.Header()["Content-Type"] = []string{c.kind}
				_, _ = io.WriteString(w, c.body)
			}})
			if _, err := f.client(t, nil).CACerts(t.Context()); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, without %q", err, c.want)
			}
		})
	}
}

func TestAnAnswerThatBreaksOffIsNoAnswer(t *testing.T) {
	f := serve(t, map[string]http.HandlerFunc{"/cacerts": func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/pkcs7-mime")
		w.Header().Set("Content-Length", "5000")
		_, _ = w.Write(encode(certsOnly(t, entry(t, "ecc-root").Certificate)))
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}})
	if _, err := f.client(t, nil).CACerts(t.Context()); err == nil || !strings.Contains(err.Error(), "broke off") {
		t.Errorf("%v", err)
	}
}

func TestASilentServerIsGivenUp(t *testing.T) {
	quit := make(chan struct{})
	f := serve(t, map[string]http.HandlerFunc{"/cacerts": func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-quit:
		case <-r.Context().Done():
		}
	}})
	defer close(quit)
	if _, err := f.client(t, func(o *Options) { o.Timeout = 100 * time.Millisecond }).CACerts(t.Context()); err == nil {
		t.Error("silence is taken for an answer")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := f.client(t, nil).CACerts(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

func TestRedirectsStayWithTheHost(t *testing.T) {
	elsewhere := serve(t, map[string]http.HandlerFunc{"/simpleenroll": func(http.ResponseWriter, *http.Request) { t.Error("the request went elsewhere") }})
	to := func(url string, status int) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, url, status) }
	}
	ok := issuing(t, func(r *x509.CertificateRequest) []*x509.Certificate {
		return []*x509.Certificate{issue(t, "ecc-issuing", r.PublicKey, nil)}
	})
	for _, c := range []struct {
		name, want string
		first      http.HandlerFunc
	}{
		{"another host", "configure that address", to(elsewhere.URL+"/.well-known/est/simpleenroll", 307)},
		{"plain HTTP", "configure that address", to("http://127.0.0.1:1/", 307)},
		{"one that loses the request", "would lose the request", to("/.well-known/est/moved", 302)},
		{"a circle", "redirects more than 3 times", to("/.well-known/est/simpleenroll", 308)},
		{"the same host", "", to("/.well-known/est/moved", 307)},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := serve(t, map[string]http.HandlerFunc{"/simpleenroll": c.first, "/moved": ok})
			_, err := f.client(t, func(o *Options) { o.Roots.AddCert(elsewhere.Certificate()) }).SimpleEnroll(t.Context(), request(t, newKey(t), device))
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
}

func TestCSRAttributes(t *testing.T) {
	// The example of RFC 7030, section 4.5.2, as RFC 8951 corrects it.
	const example = "MEEGCSqGSIb3DQEJBzASBgcqhkjOPQIBMQcGBSuBBAAiMBYGCSqGSIb3DQEJDjEJ\nBgcrBgEBAQEWBggqhkjOPQQDAw==\n"
	for _, c := range []struct {
		name, body, want string
		status, n        int
	}{
		{"the example", example, "", 200, 4},
		{"none", "MAA=", "", 200, 0},
		{"nothing to say", "", "", 204, 0},
		{"not offered", "404 page not found", "", 404, 0},
		{"no base64", "{}", "not base64", 200, 0},
		{"no sequence", "BAA=", "no CsrAttrs", 200, 0},
		{"something behind it", "MAAA", "no CsrAttrs", 200, 0},
		{"a broken attribute", "MAQwAgUA", "attribute 1", 200, 0},
		{"refused", "no", "403", 403, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := serve(t, map[string]http.HandlerFunc{"/csrattrs": func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(c.status)
				if c.status != http.StatusNoContent {
					_, _ = io.WriteString(w, c.body)
				}
			}})
			all, err := f.client(t, nil).CSRAttrs(t.Context())
			if c.want != "" {
				if err == nil || !strings.Contains(err.Error(), c.want) {
					t.Fatalf("%v, without %q", err, c.want)
				}
				return
			}
			if err != nil || len(all) != c.n {
				t.Fatalf("%v, %v", all, err)
			}
			if c.n == 0 {
				return
			}
			if all[0].Type.String() != "1.2.840.113549.1.9.7" || all[0].Values != nil || all[1].Type.String() != "1.2.840.10045.2.1" || len(all[1].Values) != 1 {
				t.Errorf("%v", all)
			}
		})
	}
}
