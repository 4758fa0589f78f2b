// Package pki makes the certificates of a simulated hospital: roots, issuing
// CAs, a platform and a device in both key schemes, and beside each good
// certificate the ones that a peer has to refuse, one fault each.
//
// Its keys are for tests and demonstrations: they lie in files, nothing
// protects them, and no real system may ever trust its roots. The firmware does
// not import it; gatewaysim and tests do.
package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/bedside-gateway/gatewayd/observation"
)

// A Scheme is a kind of key.
type Scheme string

// The schemes that the platform and the gateway have to support (A3, A5, A6).
const (
	ECC Scheme = "ecc" // CAs P-384, leaves P-256
	RSA Scheme = "rsa" // CAs 3072 bits, leaves 2048
)

// Defaults of Options.
const (
	DefaultPlatform = "platform.test"
	DefaultDevice   = observation.EUI64(0x0123456789ABCDEF)
	DefaultLifetime = 90 * 24 * time.Hour
)

// Options say what to make. The zero value makes the ECC half with the default
// names, valid from now on.
type Options struct {
	Schemes  []Scheme          // default ECC only: RSA keys take a second or more
	Platform string            // DNS name of the platform
	Device   observation.EUI64 // the common name of device certificates
	Now      time.Time         // default the present
	Lifetime time.Duration     // of the leaves
	// OCSPURL and CRLURL go into every certificate but the roots where they
	// are not empty. {ca} in them becomes the name of the CA that issued it.
	OCSPURL, CRLURL string
}

// A PKI is what New made.
type PKI struct {
	Options Options
	Entries []*Entry // CAs before what they issued
}

// An Entry is one certificate and what a peer must think of it. Its JSON form
// is a row of index.json.
type Entry struct {
	Name      string    `json:"name"`
	File      string    `json:"file"`
	KeyFile   string    `json:"key"`
	CRLFile   string    `json:"crl,omitempty"`
	Scheme    Scheme    `json:"scheme"`
	Role      Role      `json:"role"`
	Trusted   bool      `json:"trusted,omitempty"` // a root that is in roots.pem
	Verdict   string    `json:"verdict"`           // good or refuse
	Why       string    `json:"why"`
	Subject   string    `json:"subject"`
	Issuer    string    `json:"issuer"` // the name of the entry that issued it
	Serial    string    `json:"serial"` // hexadecimal
	NotBefore time.Time `json:"not_before"`
	NotAfter  time.Time `json:"not_after"`

	Certificate *x509.Certificate `json:"-"`
	Key         crypto.Signer     `json:"-"`
	CRL         []byte            `json:"-"` // DER; of CAs only

	issuer *Entry
	shares *Entry // whose key it has, where that is another's
	spec   spec
}

// A Role is what a certificate is for.
type Role string

// The roles.
const (
	Root      Role = "root"
	Issuing   Role = "issuing"
	Platform  Role = "platform"
	Device    Role = "device"
	Responder Role = "responder" // signs OCSP responses for its issuer (RFC 6960, section 4.2.2.2)
)

// New makes all keys and certificates.
func New(o Options) (*PKI, error) {
	if err := o.complete(); err != nil {
		return nil, err
	}
	p := &PKI{Options: o}
	for _, scheme := range o.Schemes {
		p.plan(scheme)
	}
	if err := p.makeKeys(); err != nil {
		return nil, err
	}
	for _, e := range p.Entries {
		if err := p.issue(e); err != nil {
			return nil, fmt.Errorf("certificate %s: %w", e.Name, err)
		}
	}
	return p, p.revoke()
}

func (o *Options) complete() error {
	if len(o.Schemes) == 0 {
		o.Schemes = []Scheme{ECC}
	}
	for _, s := range o.Schemes {
		if s != ECC && s != RSA {
			return fmt.Errorf("scheme %q: it is ecc or rsa", s)
		}
	}
	if o.Platform == "" {
		o.Platform = DefaultPlatform
	}
	if o.Device == 0 {
		o.Device = DefaultDevice
	}
	if o.Now.IsZero() {
		o.Now = time.Now()
	}
	if o.Lifetime == 0 {
		o.Lifetime = DefaultLifetime
	}
	if o.Lifetime < time.Hour {
		return fmt.Errorf("lifetime %v: it is at least an hour", o.Lifetime)
	}
	return nil
}

// Find is the entry of a name: ecc-root, ecc-issuing, platform, device-revoked,
// rsa-platform and so on.
func (p *PKI) Find(name string) (*Entry, error) {
	for _, e := range p.Entries {
		if e.Name == name {
			return e, nil
		}
	}
	return nil, fmt.Errorf("no certificate named %q; there are %s", name, strings.Join(p.names(), ", "))
}

func (p *PKI) names() []string {
	names := make([]string, len(p.Entries))
	for i, e := range p.Entries {
		names[i] = e.Name
	}
	return names
}

// Identity is the certificate of a name with its issuing CA and its key, as
// package tls takes it.
func (p *PKI) Identity(name string) (tls.Certificate, error) {
	e, err := p.Find(name)
	if err != nil {
		return tls.Certificate{}, err
	}
	c := tls.Certificate{PrivateKey: e.Key, Leaf: e.Certificate}
	for _, link := range e.chain() {
		c.Certificate = append(c.Certificate, link.Certificate.Raw)
	}
	return c, nil
}

// Roots is the pool of all roots that are to be trusted.
func (p *PKI) Roots() *x509.CertPool {
	pool := x509.NewCertPool()
	for _, e := range p.Entries {
		if e.Trusted {
			pool.AddCert(e.Certificate)
		}
	}
	return pool
}

// chain is e and its issuing CA, as it is sent in a handshake: the root is
// left out of it.
func (e *Entry) chain() []*Entry {
	if e.issuer == e || e.issuer.issuer == e.issuer {
		return []*Entry{e}
	}
	return []*Entry{e, e.issuer}
}

func (e *Entry) isCA() bool { return e.Role == Root || e.Role == Issuing }

// IsCA reports whether it issues certificates and has a CRL.
func (e *Entry) IsCA() bool { return e.isCA() }

// IssuedBy is the entry that issued it; a root issued itself.
func (e *Entry) IssuedBy() *Entry { return e.issuer }

// Chain is the whole chain of a name, leaf first and root last, as package
// revocation judges it. Identity is what is sent of it.
func (p *PKI) Chain(name string) ([]*x509.Certificate, error) {
	e, err := p.Find(name)
	if err != nil {
		return nil, err
	}
	chain := []*x509.Certificate{e.Certificate}
	for e.issuer != e {
		e = e.issuer
		chain = append(chain, e.Certificate)
	}
	return chain, nil
}

// makeKeys makes the keys side by side: RSA keys are slow to find.
func (p *PKI) makeKeys() error {
	var g errgroup.Group
	g.SetLimit(8)
	for _, e := range p.Entries {
		if e.shares != nil {
			continue
		}
		g.Go(func() (err error) {
			e.Key, err = newKey(e.Scheme, e.isCA())
			return err
		})
	}
	err := g.Wait()
	for _, e := range p.Entries {
		if e.shares != nil {
			e.Key = e.shares.Key
		}
	}
	return err
}

func newKey(s Scheme, ca bool) (crypto.Signer, error) {
	switch {
	case s == RSA && ca:
		return rsa.GenerateKey(rand.Reader, 3072)
	case s == RSA:
		return rsa.GenerateKey(rand.Reader, 2048)
	case ca:
		return ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	}
	return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
}

func (p *PKI) issue(e *Entry) error {
	serial, err := newSerial()
	if err != nil {
		return err
	}
	t := p.template(e)
	t.SerialNumber = serial
	parent := t
	if e.issuer != e {
		parent = e.issuer.Certificate
	}
	der, err := x509.CreateCertificate(rand.Reader, t, parent, e.Key.Public(), e.issuer.Key)
	if err != nil {
		return err
	}
	e.Certificate, err = x509.ParseCertificate(der)
	if err != nil {
		return err
	}
	c := e.Certificate
	e.Subject, e.Issuer = c.Subject.String(), e.issuer.Name
	e.Serial, e.NotBefore, e.NotAfter = c.SerialNumber.Text(16), c.NotBefore, c.NotAfter
	return nil
}

// newSerial has 127 bits, so that it is positive in 16 bytes (RFC 5280, 4.1.2.2).
func newSerial() (*big.Int, error) {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("serial number: %w", err)
	}
	return n.Add(n, big.NewInt(1)), nil
}

const year = 365 * 24 * time.Hour

func (p *PKI) template(e *Entry) *x509.Certificate {
	o := p.Options
	t := &x509.Certificate{
		Subject:   pkix.Name{Organization: []string{"Simulated Hospital, not for care"}},
		NotBefore: o.Now.Add(-time.Hour), NotAfter: o.Now.Add(o.Lifetime),
		BasicConstraintsValid: true,
	}
	if e.issuer != e {
		t.OCSPServer = endpoint(o.OCSPURL, e.issuer.Name)
		t.CRLDistributionPoints = endpoint(o.CRLURL, e.issuer.Name)
	}
	if e.isCA() {
		t.Subject.CommonName = caName(e)
		// CAs are older than the expired leaves that they issued.
		t.NotBefore, t.NotAfter = o.Now.Add(-2*year), o.Now.Add(10*year)
		t.IsCA, t.MaxPathLenZero = true, e.Role == Issuing
		t.SubjectKeyId = keyID(e.Key.Public())
		t.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
		return t
	}
	t.KeyUsage = x509.KeyUsageDigitalSignature
	switch e.Role {
	case Platform:
		t.Subject.CommonName, t.DNSNames = o.Platform, []string{o.Platform}
		t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	case Device:
		t.Subject.CommonName = o.Device.String()
		t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	case Responder:
		t.Subject.CommonName = "Simulated " + e.Name
		t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageOCSPSigning}
		t.ExtraExtensions = []pkix.Extension{noCheck}
		t.OCSPServer = nil // nobody asks a responder about itself
	}
	if e.spec.alter != nil {
		e.spec.alter(t, o)
	}
	return t
}

// keyID is the first method of RFC 5280, section 4.2.1.2, which most CAs use.
// Package x509 would take another, and wolfSSL finds the signer of an OCSP
// response by this one only.
func keyID(key crypto.PublicKey) []byte {
	var info struct {
		Algorithm pkix.AlgorithmIdentifier
		Key       asn1.BitString
	}
	der, err := x509.MarshalPKIXPublicKey(key)
	if err == nil {
		_, err = asn1.Unmarshal(der, &info)
	}
	if err != nil {
		return nil // CreateCertificate says what is wrong with the key
	}
	sum := sha1.Sum(info.Key.RightAlign())
	return sum[:]
}

func caName(e *Entry) string {
	words := strings.ReplaceAll(strings.TrimPrefix(e.Name, string(e.Scheme)+"-"), "-", " ")
	return fmt.Sprintf("Simulated %s CA (%s)", words, strings.ToUpper(string(e.Scheme)))
}

func endpoint(url, ca string) []string {
	if url == "" {
		return nil
	}
	return []string{strings.ReplaceAll(url, "{ca}", ca)}
}

// revoke gives each CA its CRL, empty ones included: a peer that asks for CRLs
// needs one of every CA in the chain.
func (p *PKI) revoke() error {
	for _, ca := range p.Entries {
		if !ca.isCA() {
			continue
		}
		list := &x509.RevocationList{
			Number:     big.NewInt(1),
			ThisUpdate: p.Options.Now.Add(-time.Hour), NextUpdate: p.Options.Now.Add(p.Options.Lifetime),
		}
		for e := range slices.Values(p.Entries) {
			if e.issuer == ca && e.spec.revoked {
				list.RevokedCertificateEntries = append(list.RevokedCertificateEntries, x509.RevocationListEntry{
					SerialNumber: e.Certificate.SerialNumber, RevocationTime: p.Options.Now.Add(-time.Hour), ReasonCode: keyCompromise,
				})
			}
		}
		crl, err := x509.CreateRevocationList(rand.Reader, list, ca.Certificate, ca.Key)
		if err != nil {
			return fmt.Errorf("CRL of %s: %w", ca.Name, err)
		}
		ca.CRL = crl
	}
	return nil
}

const keyCompromise = 1 // RFC 5280, 5.3.1
