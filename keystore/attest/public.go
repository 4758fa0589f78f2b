package attest

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
)

const (
	maxPublic = 2 << 10 // bytes: a public area of RSA-4096 has some 600
	minRSA    = 2048    // bits (NIST SP 800-57)
	maxRSA    = 4096    // bits: more costs us time and no TPM has them
)

// A public is a public area that was read, with what follows from it.
type public struct {
	what string // in words, for errors
	area tpm2.TPMTPublic
	name []byte // Part 1, section 16: the hash of the whole area
	key  crypto.PublicKey
}

// parsePublic takes the one encoding of an area only: the name is a hash over
// these bytes, so two encodings of a key would be two names.
func parsePublic(what string, raw []byte) (public, error) {
	p := public{what: what}
	if len(raw) > maxPublic {
		return p, fmt.Errorf("%s: the public area has %d bytes: %d are the most", what, len(raw), maxPublic)
	}
	area, err := tpm2.Unmarshal[tpm2.TPMTPublic](raw)
	if err != nil {
		return p, fmt.Errorf("%s: the public area cannot be read: %w", what, err)
	}
	p.area = *area
	if err := p.kind(); err != nil {
		return p, fmt.Errorf("%s: %w", what, err)
	}
	if !bytes.Equal(tpm2.Marshal(area), raw) {
		return p, fmt.Errorf("%s: the public area is followed by something, or not encoded as a TPM does it", what)
	}
	name, err := tpm2.ObjectName(area)
	if err != nil {
		return p, fmt.Errorf("%s: %w", what, err)
	}
	p.name = name.Buffer
	return p, nil
}

// kind refuses what is not among the keys that the gateway and its CAs use.
func (p *public) kind() (err error) {
	switch p.area.NameAlg {
	case tpm2.TPMAlgSHA256, tpm2.TPMAlgSHA384, tpm2.TPMAlgSHA512:
	default:
		return fmt.Errorf("its name is a hash of the kind %#04x: SHA-256, SHA-384 and SHA-512 are taken", uint16(p.area.NameAlg))
	}
	if p.area.Type != tpm2.TPMAlgECC && p.area.Type != tpm2.TPMAlgRSA {
		return fmt.Errorf("it is of the kind %#04x: elliptic curves and RSA are taken", uint16(p.area.Type))
	}
	if p.key, err = tpm2.Pub(p.area); err != nil {
		return fmt.Errorf("its public key cannot be read: %w", err)
	}
	switch key := p.key.(type) {
	case *ecdsa.PublicKey:
		return curve(key)
	case *rsa.PublicKey:
		return p.modulus(key)
	}
	return errors.New("it is of an unknown kind")
}

func curve(key *ecdsa.PublicKey) error {
	if key.Curve != elliptic.P256() && key.Curve != elliptic.P384() {
		return fmt.Errorf("its curve is %s: P-256 and P-384 are taken", key.Params().Name)
	}
	if _, err := key.ECDH(); err != nil { // a point off the curve would leak what is encrypted to it
		return errors.New("its point is not on its curve")
	}
	return nil
}

func (p *public) modulus(key *rsa.PublicKey) error {
	parameters, err := p.area.Parameters.RSADetail()
	if err != nil {
		return err
	}
	switch bits := key.N.BitLen(); {
	case bits != int(parameters.KeyBits):
		return fmt.Errorf("its modulus has %d bits, its parameters say %d", bits, parameters.KeyBits)
	case bits < minRSA || bits > maxRSA:
		return fmt.Errorf("its modulus has %d bits: %d to %d are taken", bits, minRSA, maxRSA)
	case key.N.Bit(0) == 0:
		return errors.New("its modulus is even")
	case key.E != 65537:
		return fmt.Errorf("its exponent is %d: 65537 is taken", key.E)
	}
	return nil
}

// is reports whether the public key is that of a certificate or a request.
func (p *public) is(key crypto.PublicKey) bool {
	k, ok := p.key.(interface{ Equal(crypto.PublicKey) bool })
	return ok && k.Equal(key)
}

func (p *public) hexName() string { return hex.EncodeToString(p.name) }

// A rule is an attribute that a key must or must not have (Part 2, section 8.3).
type rule struct {
	holds bool
	why   string
}

// stays are the rules of every key here: made by this TPM, and never to leave it.
func stays(a tpm2.TPMAObject) []rule {
	return []rule{
		{a.FixedTPM, "it lacks fixedTPM: it could be moved into another TPM"},
		{a.FixedParent, "it lacks fixedParent: it could be duplicated"},
		{a.SensitiveDataOrigin, "it lacks sensitiveDataOrigin: it was made outside of the TPM, so that copies may exist"},
		{!a.EncryptedDuplication, "it has encryptedDuplication: it is made for being duplicated"},
	}
}

func (p *public) obey(rules ...rule) error {
	for _, r := range append(stays(p.area.ObjectAttributes), rules...) {
		if !r.holds {
			return fmt.Errorf("%s: %s", p.what, r.why)
		}
	}
	return nil
}

// obeyEK: the TPM decrypts with it only what the TPM itself then uses.
func (p *public) obeyEK() error {
	a := p.area.ObjectAttributes
	return p.obey(
		rule{a.Restricted, "it is not restricted: it would decrypt for anybody"},
		rule{a.Decrypt, "it does not decrypt: no challenge can be made for it"},
		rule{!a.SignEncrypt, "it signs: an endorsement key only decrypts"})
}

// obeyAK: a restricted key signs no outside data that begin like an attestation
// (Part 1, section 25.2), so what it signed was said by the TPM.
func (p *public) obeyAK() error {
	a := p.area.ObjectAttributes
	return p.obey(
		rule{a.Restricted, "it is not restricted: it would sign a forged attestation"},
		rule{a.SignEncrypt, "it does not sign"},
		rule{!a.Decrypt, "it decrypts: an attestation key only signs"})
}

func (p *public) obeyDevice() error {
	a := p.area.ObjectAttributes
	return p.obey(
		rule{a.SignEncrypt, "it does not sign"},
		rule{!a.Decrypt, "it decrypts: a key for TLS only signs"},
		rule{!a.Restricted, "it is restricted: it cannot sign handshakes"})
}

// parseCSR is about the request and the device's key.
func parseCSR(der []byte, key public) (*x509.CertificateRequest, error) {
	if len(der) > maxEvidence {
		return nil, fmt.Errorf("the certificate request has %d bytes: %d are the most", len(der), maxEvidence)
	}
	request, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, fmt.Errorf("the certificate request cannot be read: %w", err)
	}
	if err := request.CheckSignature(); err != nil {
		return nil, fmt.Errorf("the certificate request is not signed by its own key: %w", err)
	}
	if !key.is(request.PublicKey) {
		return nil, errors.New("the certificate request is for another key than the one that the TPM certified")
	}
	return request, nil
}
