package inspect

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"slices"

	"golang.org/x/crypto/cryptobyte"
)

// A kind is a key exchange in which the server signs with the key of its
// certificate. The zero value is none of them.
type kind uint8

const (
	ecdheECDSA kind = iota + 1
	ecdheRSA
	dheRSA
)

// kindOf knows the suites of TLS 1.2 that pass: signed and ephemeral, with AES
// or ChaCha20. Static RSA and DH, PSK, SRP, anonymous, export, NULL, RC4 and
// 3DES are none.
func kindOf(suite uint16) kind {
	switch suite {
	case 0xc009, 0xc00a, 0xc023, 0xc024, 0xc02b, 0xc02c, 0xc0ac, 0xc0ad, 0xc0ae, 0xc0af, 0xcca9:
		return ecdheECDSA // RFC 8422, 5289, 7251, 7905
	case 0xc013, 0xc014, 0xc027, 0xc028, 0xc02f, 0xc030, 0xcca8:
		return ecdheRSA // RFC 8422, 5289, 7905
	case 0x0033, 0x0039, 0x0067, 0x006b, 0x009e, 0x009f, 0xc09e, 0xc09f, 0xc0a2, 0xc0a3, 0xccaa:
		return dheRSA // RFC 5246, 5288, 6655, 7905
	}
	return 0
}

const (
	namedCurve = 3
	// minPrime is the least size of a finite field group, in bits: 112 bits of
	// security (NIST SP 800-57, part 1), and too much for what was done to
	// smaller ones (Logjam).
	minPrime = 2048
)

// curves are those of RFC 8422 and 7027 with at least 112 bits of security.
var curves = [...]uint16{21, 23, 24, 25, 26, 27, 28, 29, 30}

// An exchange is a ServerKeyExchange: parameters, signed.
type exchange struct {
	params    []byte // as they are signed
	scheme    uint16
	signature []byte
	weak      string // why the parameters do not count, "" if they do
}

// read reads RFC 8422, section 5.4, and RFC 5246, section 7.4.3.
func (e *exchange) read(k kind, body []byte) bool {
	s := cryptobyte.String(body)
	readParams := e.readCurve
	if k == dheRSA {
		readParams = e.readGroup
	}
	if !readParams(&s) {
		return false
	}
	e.params = body[:len(body)-len(s)]
	var signature cryptobyte.String
	ok := s.ReadUint16(&e.scheme) && s.ReadUint16LengthPrefixed(&signature) && s.Empty()
	e.signature = signature
	return ok
}

func (e *exchange) readCurve(s *cryptobyte.String) bool {
	var form uint8
	var curve uint16
	var point cryptobyte.String
	if !s.ReadUint8(&form) || form != namedCurve || !s.ReadUint16(&curve) || !s.ReadUint8LengthPrefixed(&point) || point.Empty() {
		return false
	}
	if !slices.Contains(curves[:], curve) {
		e.weak = fmt.Sprintf("the curve %d, which is not accepted", curve)
	}
	return true
}

func (e *exchange) readGroup(s *cryptobyte.String) bool {
	var p, g, y cryptobyte.String
	if !s.ReadUint16LengthPrefixed(&p) || !s.ReadUint16LengthPrefixed(&g) || !s.ReadUint16LengthPrefixed(&y) || g.Empty() || y.Empty() {
		return false
	}
	if significant := bytes.TrimLeft(p, "\x00"); len(significant) < minPrime/8 || significant[0] < 0x80 && len(significant) == minPrime/8 {
		e.weak = fmt.Sprintf("a group of less than %d bits", minPrime)
	}
	return true
}

// signatures are the SignatureSchemes that count (RFC 8446, section 4.2.3, which
// also names what TLS 1.2 calls a pair of hash and signature). SHA-1, SHA-224
// and MD5 do not: who can forge them need not have the key.
var signatures = map[uint16]struct {
	algorithm x509.SignatureAlgorithm
	rsa       bool
}{
	0x0401: {x509.SHA256WithRSA, true}, 0x0501: {x509.SHA384WithRSA, true}, 0x0601: {x509.SHA512WithRSA, true},
	0x0804: {x509.SHA256WithRSAPSS, true}, 0x0805: {x509.SHA384WithRSAPSS, true}, 0x0806: {x509.SHA512WithRSAPSS, true},
	0x0403: {x509.ECDSAWithSHA256, false}, 0x0503: {x509.ECDSAWithSHA384, false}, 0x0603: {x509.ECDSAWithSHA512, false},
	0x0807: {x509.PureEd25519, false},
}

// judgeSignature shows that the far end of this connection has the key of the
// leaf, and not just a copy of the certificate.
func (f *flight) judgeSignature(clientRandom []byte, leaf *x509.Certificate) error {
	const nextStronger = "have the platform's TLS set up for SHA-256 and better, P-256 or groups of 2048 bits and more"
	e := &f.exchange
	scheme, known := signatures[e.scheme]
	switch {
	case e.weak != "":
		return f.refuse(leaf, RuleKeyExchange, nextStronger, "its key exchange uses %s", e.weak)
	case !known:
		return f.refuse(leaf, RuleSignature, nextStronger, "its key exchange is signed with %v, which can be forged or is not understood", tls.SignatureScheme(e.scheme))
	case scheme.rsa != (kindOf(f.server.suite) != ecdheECDSA):
		return f.refuse(leaf, RuleSignature, nextStronger, "its key exchange is signed with %v, which does not go with the suite %s", tls.SignatureScheme(e.scheme), tls.CipherSuiteName(f.server.suite))
	case tooLarge(leaf):
		return f.refuse(leaf, RuleCertificate, nextForeign, "its key has more than %d bits", maxRSA)
	}
	signed := slices.Concat(clientRandom, f.server.random, e.params)
	if err := leaf.CheckSignature(scheme.algorithm, signed, e.signature); err != nil {
		r := f.refuse(leaf, RuleSignature, "treat this as an attack: whoever answers there shows the certificate without having its key",
			"the key exchange is not signed with its key")
		r.Alert = alertDecrypt
		return r.because(err)
	}
	return nil
}
