package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestWhatIsIssuedLaterHasTheProfileOfTheFirst(t *testing.T) {
	dir := t.TempDir()
	made, err := New(Options{OCSPURL: "http://ocsp.test/{ca}", CRLURL: "http://crl.test/{ca}.crl"})
	if err != nil {
		t.Fatal(err)
	}
	if err := made.Write(dir); err != nil {
		t.Fatal(err)
	}
	p, err := Read(dir)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	chain, err := p.IssueDevice("ecc-issuing", key.Public(), 0xFEDCBA9876543210, now, 48*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	first, err := p.Find("device")
	if err != nil {
		t.Fatal(err)
	}
	got, want := chain[0], first.Certificate
	if got.Subject.CommonName != "FEDCBA9876543210" || got.KeyUsage != want.KeyUsage || !slices.Equal(got.ExtKeyUsage, want.ExtKeyUsage) ||
		!slices.Equal(got.OCSPServer, want.OCSPServer) || !slices.Equal(got.CRLDistributionPoints, want.CRLDistributionPoints) || len(got.OCSPServer) != 1 {
		t.Errorf("%v %v %v %v", got.Subject, got.ExtKeyUsage, got.OCSPServer, got.CRLDistributionPoints)
	}
	if d := got.NotAfter.Sub(now); d < 47*time.Hour || d > 48*time.Hour {
		t.Errorf("it is valid for %v", d)
	}
	verify(t, p, chain, x509.ExtKeyUsageClientAuth)

	if c, err := Issued(dir, got.SerialNumber); c != nil || err != nil {
		t.Errorf("known before it was recorded: %v, %v", c, err)
	}
	if err := Record(dir, got); err != nil {
		t.Fatal(err)
	}
	if c, err := Issued(dir, got.SerialNumber); err != nil || !c.Equal(got) {
		t.Errorf("%v, %v", c, err)
	}
	if c, err := Issued(dir, big.NewInt(5)); c != nil || err != nil {
		t.Errorf("another number: %v, %v", c, err)
	}
	for _, ca := range []string{"ecc-root", "device", "nobody"} {
		if _, err := p.IssueDevice(ca, key.Public(), 1, now, time.Hour); err == nil {
			t.Errorf("%s issues devices", ca)
		}
	}
}

func TestAServerHasItsNamesAndAddresses(t *testing.T) {
	p, err := New(Options{})
	if err != nil {
		t.Fatal(err)
	}
	id, err := p.IssueServer("ecc-issuing", []string{"ca.test", "127.0.0.1", "::1"}, time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"ca.test", "127.0.0.1", "[::1]"} {
		if err := id.Leaf.VerifyHostname(name); err != nil {
			t.Error(err)
		}
	}
	if err := id.Leaf.VerifyHostname("elsewhere.test"); err == nil {
		t.Error("it is elsewhere too")
	}
	issuing, err := x509.ParseCertificate(id.Certificate[1])
	if err != nil {
		t.Fatal(err)
	}
	verify(t, p, []*x509.Certificate{id.Leaf, issuing}, x509.ExtKeyUsageServerAuth)
	if _, err := p.IssueServer("ecc-issuing", nil, time.Now(), time.Hour); err == nil || !strings.Contains(err.Error(), "needs a name") {
		t.Errorf("%v", err)
	}
}

func verify(t *testing.T, p *PKI, chain []*x509.Certificate, use x509.ExtKeyUsage) {
	t.Helper()
	between := x509.NewCertPool()
	between.AddCert(chain[1])
	if _, err := chain[0].Verify(x509.VerifyOptions{Roots: p.Roots(), Intermediates: between, KeyUsages: []x509.ExtKeyUsage{use}}); err != nil {
		t.Error(err)
	}
}
