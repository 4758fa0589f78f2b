package fetch

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"math/big"
	"net/http"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"

	"github.com/bedside-gateway/gatewayd/revocation"
)

// couple is a CA and a certificate of it, small so that fuzzing gets on: P-256
// is quick also where the compiler counts every branch.
func couple(t testing.TB) (p pair, key *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	issue := func(cn string, parent *x509.Certificate) *x509.Certificate {
		c := &x509.Certificate{
			SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: cn}, NotBefore: epoch, NotAfter: epoch.Add(time.Hour), BasicConstraintsValid: true,
			OCSPServer: []string{"http://ocsp.test/"}, CRLDistributionPoints: []string{"http://crl.test/"},
		}
		if parent == nil {
			c.IsCA, c.KeyUsage = true, x509.KeyUsageCertSign|x509.KeyUsageCRLSign
			parent = c
		}
		der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), key)
		must(t, err)
		c, err = x509.ParseCertificate(der)
		must(t, err)
		return c
	}
	p.issuer = issue("ca", nil)
	p.cert = issue("device", p.issuer)
	return p, key
}

// fixed answers every request alike.
type fixed struct {
	status int
	kind   string
	body   []byte
}

func (a fixed) RoundTrip(r *http.Request) (*http.Response, error) {
	return &http.Response{StatusCode: a.status, Header: http.Header{"Content-Type": {a.kind}, "Location": {string(a.body)}},
		ContentLength: -1, Body: io.NopCloser(bytes.NewReader(a.body)), Request: r}, nil
}

// FuzzResponse: whatever a server sends, nothing passes that Judge refuses.
func FuzzResponse(f *testing.F) {
	p, key := couple(f)
	// The library stamps producedAt with the time of the machine.
	clock := func() time.Time { return time.Now().Truncate(time.Minute) }
	for _, status := range []int{ocsp.Good, ocsp.Revoked, ocsp.Unknown} {
		template := ocsp.Response{Status: status, SerialNumber: p.cert.SerialNumber, ThisUpdate: clock(), NextUpdate: clock().Add(time.Hour), RevokedAt: clock()}
		der, err := ocsp.CreateResponse(p.issuer, p.issuer, template, key)
		must(f, err)
		f.Add(200, "application/ocsp-response", der)
		template.Certificate = p.cert
		der, err = ocsp.CreateResponse(p.issuer, p.cert, template, key)
		must(f, err)
		f.Add(200, "application/ocsp-response; charset=x", der)
	}
	f.Add(200, "text/html", []byte("<html>"))
	f.Add(200, "application/ocsp-response", ocsp.TryLaterErrorResponse)
	f.Add(302, "", []byte("http://elsewhere.test/"))
	f.Add(302, "", []byte("/here"))
	f.Fuzz(func(t *testing.T, status int, kind string, body []byte) {
		fetcher := New(Options{Now: clock, Client: &http.Client{Transport: fixed{status, kind, body}}})
		defer fetcher.Close()
		der, err := fetcher.OCSP(context.Background(), p.cert, p.issuer)
		v := revocation.Judge(p.chain(), revocation.Stapled([][]byte{der}), clock(), revocation.Rules{})[0]
		if (err == nil) != settled(v) || len(embedded(body)) > len(body) {
			t.Errorf("%v, and yet %v", err, v)
		}
	})
}

// FuzzCRL: whatever a server sends, only what CheckCRL passes is kept.
func FuzzCRL(f *testing.F) {
	p, key := couple(f)
	clock := func() time.Time { return epoch.Add(time.Minute) }
	for _, extra := range [][]pkix.Extension{nil, pointTo(f, "http://crl.test/")} {
		der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: epoch, NextUpdate: epoch.Add(time.Hour), ExtraExtensions: extra,
			RevokedCertificateEntries: []x509.RevocationListEntry{{SerialNumber: p.cert.SerialNumber, RevocationTime: epoch}}}, p.issuer, key)
		must(f, err)
		f.Add(der)
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		fetcher := New(Options{Now: clock, Client: &http.Client{Transport: fixed{200, "application/pkix-crl", body}}})
		defer fetcher.Close()
		lists := fetcher.CRLs(t.Context(), p.chain())
		crl, err := x509.ParseRevocationList(body)
		good := err == nil && revocation.CheckCRL(crl, p.issuer, clock(), revocation.Rules{}) == nil
		if good != (len(lists) == 1) {
			t.Errorf("good %v, and yet %d lists", good, len(lists))
		}
		_ = fetcher.AddCRL(body, p.issuer) // it must not panic
	})
}
