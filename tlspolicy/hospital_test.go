//go:debug rsa1024min=0

package tlspolicy

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"sync"
	"testing"
	"time"

	"github.com/bedside-gateway/gatewayd/tlsoverlay/overlaytest"
)

const host = "platform.test"

var now = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

// A hospital is what a platform's chain is made from: a good one, for a test to
// break in one place.
type hospital struct {
	t                        testing.TB
	root, issuing, leaf      *x509.Certificate // templates
	rootKey, issuingKey, key crypto.Signer
	between                  *x509.Certificate // a further CA below issuing, where it is set
	betweenKey               crypto.Signer
	name                     string
	at                       time.Time
	trust                    func(c *chain) []*x509.Certificate
	send                     func(c *chain) []*x509.Certificate
	staple                   func(c *chain, good [][]byte) [][]byte
	state                    func(*tls.ConnectionState)
}

type chain struct{ root, issuing, between, leaf *x509.Certificate }

// keys are made once: only what is signed with them differs.
var keys = sync.OnceValue(func() (k [4]crypto.Signer) {
	for i := range k {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			panic(err)
		}
		k[i] = key
	}
	return k
})

func rsaKey(t testing.TB, bits int) crypto.Signer {
	t.Helper()
	k, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func newHospital(t testing.TB) *hospital {
	overlaytest.Need(t)
	k := keys()
	return &hospital{
		t: t, name: host, at: now,
		rootKey: k[0], issuingKey: k[1], betweenKey: k[2], key: k[3],
		root: authority("Root"), issuing: authority("Issuing"), leaf: &x509.Certificate{
			Subject: pkix.Name{CommonName: host}, DNSNames: []string{host},
			NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour),
			KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		},
		trust: func(c *chain) []*x509.Certificate { return []*x509.Certificate{c.root} },
		send: func(c *chain) []*x509.Certificate {
			if c.between != nil {
				return []*x509.Certificate{c.leaf, c.between, c.issuing}
			}
			return []*x509.Certificate{c.leaf, c.issuing}
		},
	}
}

func authority(name string) *x509.Certificate {
	return &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, NotBefore: now.Add(-24 * time.Hour), NotAfter: now.Add(24 * time.Hour),
		BasicConstraintsValid: true, IsCA: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
}

func (h *hospital) sign(c, issuer *x509.Certificate, key, by crypto.Signer) *x509.Certificate {
	h.t.Helper()
	if c.SerialNumber == nil {
		c.SerialNumber = big.NewInt(time.Now().UnixNano())
	}
	der, err := x509.CreateCertificate(rand.Reader, c, issuer, key.Public(), by)
	if err != nil {
		h.t.Fatal(err)
	}
	out, err := x509.ParseCertificate(der)
	if err != nil {
		h.t.Fatal(err)
	}
	return out
}

func (h *hospital) chain() *chain {
	h.t.Helper()
	c := &chain{root: h.sign(h.root, h.root, h.rootKey, h.rootKey)}
	c.issuing = h.sign(h.issuing, h.root, h.issuingKey, h.rootKey)
	above, by := h.issuing, h.issuingKey
	if h.between != nil {
		c.between = h.sign(h.between, above, h.betweenKey, by)
		above, by = h.between, h.betweenKey
	}
	c.leaf = h.sign(h.leaf, above, h.key, by)
	return c
}

// verdict is what the policy says to a connection with what h sends.
func (h *hospital) verdict() error {
	h.t.Helper()
	c := h.chain()
	client := Client{ServerName: h.name, Roots: pool(h.trust(c)...), Identity: device(h.t), Now: func() time.Time { return h.at }}
	config, err := client.Config()
	if err != nil {
		h.t.Fatal(err)
	}
	state := tls.ConnectionState{Version: tls.VersionTLS13, PeerCertificates: h.send(c)}
	stapled(&state, h.staples(c))
	if h.state != nil {
		h.state(&state)
	}
	return config.VerifyConnection(state)
}

func pool(certs ...*x509.Certificate) *x509.CertPool {
	p := x509.NewCertPool()
	for _, c := range certs {
		p.AddCert(c)
	}
	return p
}

// device is the gateway's own identity, of the same hospital.
func device(t testing.TB) tls.Certificate {
	t.Helper()
	h := &hospital{t: t}
	k := keys()
	root := h.sign(authority("Root"), authority("Root"), k[0], k[0])
	issuing := h.sign(authority("Issuing"), root, k[1], k[0])
	leaf := h.sign(&x509.Certificate{
		Subject: pkix.Name{CommonName: "0123456789ABCDEF"}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, issuing, k[3], k[1])
	return tls.Certificate{Certificate: [][]byte{leaf.Raw, issuing.Raw}, PrivateKey: k[3]}
}
