package enroll

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bedside-gateway/gatewayd/internal/sim/pki"
	"github.com/bedside-gateway/gatewayd/keystore"
	"github.com/bedside-gateway/gatewayd/keystore/tpm"
)

// pkcs7 is what OpenSSL makes of certificates.
func pkcs7(t *testing.T, chain []*x509.Certificate) []byte {
	t.Helper()
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Skip(err)
	}
	out, err := exec.CommandContext(t.Context(), "openssl", "crl2pkcs7", "-nocrl", "-certfile", write(t, "chain.pem", encode(chain))).Output()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestACertificateIsInstalledInWhateverOrderItCame(t *testing.T) {
	b := newBox(t, tpm.P256)
	b.init()
	chain := b.issue()
	whole := append(slices.Clone(chain), b.entry("ecc-root"))
	for name, text := range map[string][]byte{
		"ours first":                  encode(chain),
		"ours last":                   encode(reversed(chain)),
		"with the root":               encode(whole),
		"with the root in front":      encode(reversed(whole)),
		"with what does not belong":   encode(append([]*x509.Certificate{b.entry("platform"), b.entry("ecc-foreign-issuing")}, chain...)),
		"each twice":                  encode(append(slices.Clone(chain), chain...)),
		"PKCS #7 of OpenSSL":          pkcs7(t, chain),
		"PKCS #7 in the wrong order":  pkcs7(t, reversed(whole)),
		"pasted on a serial console":  bytes.ReplaceAll(encode(chain), []byte("\n"), []byte("\r\n")),
		"with the text of openssl":    append([]byte("Certificate:\n    Data:\n        Version: 3 (0x2)\n"), encode(chain)...),
		"PKCS #7 beside the issuer's": append(pkcs7(t, chain[:1]), encode(chain[1:])...),
	} {
		t.Run(name, func(t *testing.T) {
			a := *b.Applicant
			a.Store = keystore.Open(filepath.Join(t.TempDir(), "device"))
			waiting := b.slots().Next
			if err := a.Store.AddKey(waiting.KeyFile, waiting.Request); err != nil {
				t.Fatal(err)
			}
			if o, err := a.Install(text); err != nil || !o.Changed || !strings.Contains(o.Done, "in the current slot") {
				t.Fatalf("%+v %v", o, err)
			}
			got := must(a.Store.Read())(t)
			if got.Next != nil || !slices.EqualFunc(got.Current.Chain, chain, (*x509.Certificate).Equal) {
				t.Errorf("it has %d certificates", len(got.Current.Chain))
			}
			if o, err := a.Install(text); err != nil || o.Changed {
				t.Errorf("the same again: %+v %v", o, err)
			}
		})
	}
}

// A smallCA is a root that issues by itself.
type smallCA struct {
	t    *testing.T
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func newSmallCA(t *testing.T) *smallCA {
	t.Helper()
	c := &smallCA{t: t, key: must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)}
	c.cert = c.issue(&x509.Certificate{Subject: pkix.Name{CommonName: "Small CA"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}, c.key.Public())
	return c
}

func (c *smallCA) issue(template *x509.Certificate, key any) *x509.Certificate {
	c.t.Helper()
	template.SerialNumber = big.NewInt(time.Now().UnixNano())
	if template.NotAfter.IsZero() {
		template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour)
	}
	parent := c.cert
	if parent == nil {
		parent = template
	}
	der := must(x509.CreateCertificate(rand.Reader, template, parent, key, c.key))(c.t)
	return must(x509.ParseCertificate(der))(c.t)
}

func (c *smallCA) roots() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(c.cert)
	return pool
}

func (c *smallCA) device(key any, change func(*x509.Certificate)) *x509.Certificate {
	c.t.Helper()
	template := &x509.Certificate{Subject: pkix.Name{CommonName: pki.DefaultDevice.String()}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, KeyUsage: x509.KeyUsageDigitalSignature}
	if change != nil {
		change(template)
	}
	return c.issue(template, key)
}

// B16: the issuing CA is shown, also where it is a root.
func TestARootThatIssuedByItselfIsShown(t *testing.T) {
	b, ca := newBox(t, tpm.P256), newSmallCA(t)
	b.init()
	leaf := ca.device(b.key(), nil)
	if _, err := b.Install(encode([]*x509.Certificate{ca.cert, leaf})); err != nil {
		t.Fatal(err)
	}
	if chain := b.slots().Current.Chain; len(chain) != 2 || !chain[0].Equal(leaf) || !chain[1].Equal(ca.cert) {
		t.Errorf("it has %d certificates", len(chain))
	}
	b.signs(b.slots().Current)
}

func TestWhatNoPlatformCouldTakeIsRefused(t *testing.T) {
	b, ca := newBox(t, tpm.P256), newSmallCA(t)
	b.init()
	key := b.key()
	good := ca.device(key, nil)
	stranger := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	with := func(change func(*x509.Certificate)) []byte {
		return encode([]*x509.Certificate{ca.device(key, change), ca.cert})
	}
	for name, c := range map[string]struct {
		text []byte
		word string
	}{
		"an expired one": {with(func(c *x509.Certificate) {
			c.NotBefore, c.NotAfter = time.Now().AddDate(0, 0, -9), time.Now().AddDate(0, 0, -2)
		}), "the certificate expired on " + time.Now().AddDate(0, 0, -2).UTC().Format(time.DateOnly)},
		"that of a CA":              {with(func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = true, true }), "is that of a CA"},
		"one of another name":       {with(func(c *x509.Certificate) { c.Subject.CommonName = "FEDCBA9876543210" }), `common name "FEDCBA9876543210", and platforms know this gateway as ` + pki.DefaultDevice.String()},
		"one of no name":            {with(func(c *x509.Certificate) { c.Subject = pkix.Name{} }), `common name ""`},
		"one for servers":           {with(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }), "is not for TLS clients"},
		"one without its issuer":    {encode([]*x509.Certificate{good}), `of the issuing CA, "CN=Small CA", is missing`},
		"one with another's issuer": {encode([]*x509.Certificate{good, b.entry("ecc-issuing")}), "is missing"},
		"one of another key":        {encode([]*x509.Certificate{ca.device(stranger.Public(), nil), ca.cert}), "none of the 2 certificates is for a key of this gateway (" + keystore.Mark(key) + ")"},
		"only the issuer's":         {encode([]*x509.Certificate{ca.cert}), "none of the 1 certificates"},
		"nothing":                   {nil, "it holds no PEM block"},
		"half a block":              {encode([]*x509.Certificate{good, ca.cert})[:400], "are damaged"},
		"a damaged certificate":     {inPEM("CERTIFICATE", good.Raw[:100]), "PEM block 1"},
		"a damaged PKCS #7":         {inPEM("PKCS7", good.Raw), "PEM block 1"},
		"a request":                 {must(b.Request(b.ctx()))(t), "only certificates belong here"},
	} {
		t.Run(name, func(t *testing.T) {
			wantError(t, b.unchanged(func() (Outcome, error) { return b.Install(c.text) }), c.word)
		})
	}
	if _, err := b.Install(encode([]*x509.Certificate{good, ca.cert})); err != nil {
		t.Error("the good one: ", err)
	}
	none := newBox(t, tpm.P256)
	if _, err := none.Install(encode([]*x509.Certificate{good, ca.cert})); err != ErrNotBegun {
		t.Errorf("before there is a key: %v", err)
	}
	if err := os.Truncate(filepath.Join(b.Store.Dir(), keystore.Current, "key.pem"), 0); err != nil {
		t.Fatal(err)
	}
	wantFault(t, b.unchanged(func() (Outcome, error) { return b.Install(encode([]*x509.Certificate{good, ca.cert})) }), tpm.Tampered)
}

func TestALaterCertificateGoesBesideTheOneInUse(t *testing.T) {
	b := newBox(t, tpm.P256)
	first := b.enroll()
	again := b.issue() // for the present key
	if o, err := b.Install(encode(again)); err != nil || !o.Changed || !strings.Contains(o.Done, "in the next slot") {
		t.Fatalf("%+v %v", o, err)
	}
	s := b.slots()
	if !s.Current.Chain[0].Equal(first[0]) || !s.Next.Chain[0].Equal(again[0]) || keystore.Mark(s.Next.Public) != keystore.Mark(s.Current.Public) {
		t.Errorf("the slots are mixed up")
	}
	b.signs(s.Next)
	if o, is, err := b.Pending(); err != nil || !is || o.Changed || !strings.Contains(o.Done, "It was there already") {
		t.Errorf("%+v %v %v", o, is, err)
	}
	if _, err := b.NewKey(b.ctx()); err != nil { // takes its place
		t.Fatal(err)
	}
	if _, is, err := b.Pending(); err != nil || is {
		t.Errorf("a key without a certificate is one to be taken up: %v", err)
	}
	if _, err := b.Install(encode(b.issue())); err != nil {
		t.Fatal(err)
	}
	if s = b.slots(); !s.Current.Chain[0].Equal(first[0]) || keystore.Mark(s.Next.Public) == keystore.Mark(s.Current.Public) {
		t.Errorf("the slots are mixed up")
	}
	b.signs(s.Next)
	b.now = s.Next.NotAfter().Add(time.Hour)
	if _, is, err := b.Pending(); err != nil || is {
		t.Errorf("an expired one is one to be taken up: %v", err)
	}
}

// What Windows exports: a mark in front of the text, DER, and PKCS #7 without PEM.
func TestCertificatesAreReadAsWindowsExportsThem(t *testing.T) {
	p, err := pki.New(pki.Options{})
	if err != nil {
		t.Fatal(err)
	}
	id, err := p.Identity("device")
	if err != nil {
		t.Fatal(err)
	}
	var der, text []byte
	for _, c := range id.Certificate {
		der = append(der, c...)
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c})...)
	}
	forms := map[string][]byte{"DER": der, "a byte order mark": append([]byte("\ufeff"), text...)}
	if _, err := exec.LookPath("openssl"); err == nil {
		file := filepath.Join(t.TempDir(), "chain.pem")
		if err := os.WriteFile(file, text, 0o600); err != nil {
			t.Fatal(err)
		}
		p7, err := exec.Command("openssl", "crl2pkcs7", "-nocrl", "-certfile", file, "-outform", "DER").Output()
		if err != nil {
			t.Fatal(err)
		}
		forms["PKCS #7 in DER"], forms["PKCS #7 in base64"] = p7, []byte(base64.StdEncoding.EncodeToString(p7))
	}
	for name, form := range forms {
		if all, err := certificates(form); err != nil || len(all) != len(id.Certificate) {
			t.Errorf("%s: %d certificates, %v", name, len(all), err)
		}
	}
	if _, err := certificates([]byte("no certificate at all")); err == nil {
		t.Error("a text that holds none")
	}
}
