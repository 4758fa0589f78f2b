package keystore

import (
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"

	"github.com/bedside-gateway/gatewayd/observation"
)

// A Subject is whom a certificate is requested for: a device by its EUI-64, which
// is what platforms authorise (A8, requirement 8 of the specification), or a
// server for devices by its DNS name.
type Subject struct {
	Device observation.EUI64
	Server string
}

// CommonName is the one that the certificate has to have.
func (s Subject) CommonName() string {
	if s.Server != "" {
		return s.Server
	}
	return s.Device.String()
}

// Request makes a certificate signing request (RFC 2986, PEM). The common name is
// all that the subject has; a server's name stands among the subject's alternative
// names as well. The key signs it.
func Request(key crypto.Signer, s Subject) ([]byte, error) {
	if s == (Subject{}) {
		return nil, errors.New("the gateway has no EUI-64 to request a certificate for: set eui64 in [gateway]")
	}
	t := &x509.CertificateRequest{Subject: pkix.Name{CommonName: s.CommonName()}}
	if s.Server != "" {
		t.DNSNames = []string{s.Server}
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, t, key)
	if err != nil {
		return nil, fmt.Errorf("certificate request: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), nil
}

// Mark is a short name of a public key, to compare by eye: the first eight
// bytes of the SHA-256 digest of its SubjectPublicKeyInfo.
func Mark(key crypto.PublicKey) string {
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return "unknown"
	}
	digest := sha256.Sum256(der)
	return hex.EncodeToString(digest[:8])
}
