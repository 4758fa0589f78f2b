package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/bedside-gateway/gatewayd/observation"
)

// IssuedDir is where Record keeps what was issued after New, in the directory
// of the PKI.
const IssuedDir = "issued"

// IssueDevice signs a key as New signs those of its own devices: the same
// profile, and the same addresses of responders and CRLs. The chain is leaf
// first and lacks its root.
func (p *PKI) IssueDevice(ca string, key crypto.PublicKey, id observation.EUI64, now time.Time, lifetime time.Duration) ([]*x509.Certificate, error) {
	o := p.Options
	o.Device, o.Now, o.Lifetime = id, now, lifetime
	return p.issueLater(ca, Device, key, o, nil)
}

// IssueServer makes a key and a certificate of a server, with the names and IP
// addresses that it answers to.
func (p *PKI) IssueServer(ca string, names []string, now time.Time, lifetime time.Duration) (tls.Certificate, error) {
	if len(names) == 0 {
		return tls.Certificate{}, errors.New("a server needs a name")
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	chain, err := p.CertifyServer(ca, key.Public(), names, now, lifetime)
	if err != nil {
		return tls.Certificate{}, err
	}
	c := tls.Certificate{PrivateKey: key, Leaf: chain[0]}
	for _, link := range chain {
		c.Certificate = append(c.Certificate, link.Raw)
	}
	return c, nil
}

// CertifyServer signs the key of a server, as IssueServer does.
func (p *PKI) CertifyServer(ca string, key crypto.PublicKey, names []string, now time.Time, lifetime time.Duration) ([]*x509.Certificate, error) {
	o := p.Options
	o.Platform, o.Now, o.Lifetime = names[0], now, lifetime
	return p.issueLater(ca, Platform, key, o, func(t *x509.Certificate) { rename(t, names) })
}

func rename(t *x509.Certificate, names []string) {
	t.DNSNames = nil
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			t.IPAddresses = append(t.IPAddresses, ip)
			continue
		}
		t.DNSNames = append(t.DNSNames, name)
	}
}

// issueLater signs with a CA that New made, perhaps long ago: what Options said
// of responders then is read off its other certificates.
func (p *PKI) issueLater(ca string, role Role, key crypto.PublicKey, o Options, alter func(*x509.Certificate)) ([]*x509.Certificate, error) {
	issuer, err := p.Find(ca)
	if err != nil {
		return nil, err
	}
	if issuer.Role != Issuing {
		return nil, fmt.Errorf("%s does not issue certificates of devices: name an issuing CA", ca)
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	t := (&PKI{Options: o}).template(&Entry{Name: string(role), Scheme: issuer.Scheme, Role: role, issuer: issuer})
	t.SerialNumber = serial
	for _, e := range p.Entries {
		if e.issuer == issuer && e.Role == role {
			t.OCSPServer, t.CRLDistributionPoints = e.Certificate.OCSPServer, e.Certificate.CRLDistributionPoints
			break
		}
	}
	if alter != nil {
		alter(t)
	}
	der, err := x509.CreateCertificate(rand.Reader, t, issuer.Certificate, key, issuer.Key)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return []*x509.Certificate{leaf, issuer.Certificate}, nil
}

// Record keeps a certificate that was issued after New in the directory of the
// PKI, so that Issued knows it.
func Record(dir string, c *x509.Certificate) error {
	if err := os.MkdirAll(filepath.Join(dir, IssuedDir), 0o755); err != nil {
		return err
	}
	return os.WriteFile(issuedFile(dir, c.SerialNumber), pemBlock("CERTIFICATE", c.Raw), 0o644)
}

// Issued is the certificate of that serial number that Record kept, nil where
// there is none.
func Issued(dir string, serial *big.Int) (*x509.Certificate, error) {
	der, err := readPEM(filepath.Join(dir, IssuedDir), filepath.Base(issuedFile(dir, serial)))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

func issuedFile(dir string, serial *big.Int) string {
	return filepath.Join(dir, IssuedDir, serial.Text(16)+".pem")
}
