package tlspolicy

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"slices"
	"time"
)

// Keys below 112 bits of security are refused (NIST SP 800-57, part 1).
const (
	minRSA   = 2048
	minCurve = 224
)

// strongAlgorithms are the signatures on certificates that count: the SHA-2
// family, and Ed25519, which is of similar security (section 6.2).
var strongAlgorithms = [...]x509.SignatureAlgorithm{
	x509.SHA256WithRSA, x509.SHA384WithRSA, x509.SHA512WithRSA,
	x509.SHA256WithRSAPSS, x509.SHA384WithRSAPSS, x509.SHA512WithRSAPSS,
	x509.ECDSAWithSHA256, x509.ECDSAWithSHA384, x509.ECDSAWithSHA512,
	x509.PureEd25519,
}

// strong is the step that refuses weak keys and signatures. The signature on a
// root is not looked at: it proves nothing.
func (v *verifier) strong(chain []*x509.Certificate, state tls.ConnectionState, _ time.Time) error {
	for i, c := range chain {
		weak := weakKey(c)
		if weak == "" && i < len(chain)-1 {
			weak = weakSignature(c)
		}
		if weak != "" {
			r := v.refuse(state.PeerCertificates, c, weak, v.nextIssue())
			r.Alert = alertUnsupported
			return r
		}
	}
	// RFC 5246, 7.4.2: the key of every suite here signs.
	if u := chain[0].KeyUsage; u != 0 && u&x509.KeyUsageDigitalSignature == 0 {
		return v.refuse(state.PeerCertificates, chain[0], "its key usage does not allow signatures", v.nextIssue())
	}
	return nil
}

// weakKey says why the key of a certificate does not count, "" if it does.
func weakKey(c *x509.Certificate) string {
	switch key := c.PublicKey.(type) {
	case *rsa.PublicKey:
		if n := key.N.BitLen(); n < minRSA {
			return fmt.Sprintf("its RSA key has %d bits; %d are the least", n, minRSA)
		}
	case *ecdsa.PublicKey:
		if n := key.Curve.Params().BitSize; n < minCurve {
			return fmt.Sprintf("its elliptic curve has %d bits; %d are the least", n, minCurve)
		}
	case ed25519.PublicKey:
	default:
		return "its key is of a kind that is not used here: RSA and elliptic curves are"
	}
	return ""
}

// weakSignature says why the signature on a certificate does not count, "" if it does.
func weakSignature(c *x509.Certificate) string {
	if slices.Contains(strongAlgorithms[:], c.SignatureAlgorithm) {
		return ""
	}
	return fmt.Sprintf("it is signed with %v, which can be forged or is not used here", c.SignatureAlgorithm)
}
