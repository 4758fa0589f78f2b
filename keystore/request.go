package keystore

import (
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"fmt"

	"github.com/bedside-gateway/gatewayd/observation"
)

// Request makes a certificate signing request (RFC 2986, PEM) whose subject is
// the device identifier as the common name and nothing else: it is what
// platforms authorise (A8, requirement 8 of the specification). The key signs it.
func Request(key crypto.Signer, id observation.EUI64) ([]byte, error) {
	der, err := RequestDER(key, id)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), nil
}

// RequestDER is Request in DER.
func RequestDER(key crypto.Signer, id observation.EUI64) ([]byte, error) {
	if id == 0 {
		return nil, fmt.Errorf("the gateway has no EUI-64 to request a certificate for: set eui64 in [gateway]")
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: id.String()}}, key)
	if err != nil {
		return nil, fmt.Errorf("certificate request: %w", err)
	}
	return der, nil
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
