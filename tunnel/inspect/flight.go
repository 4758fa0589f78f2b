package inspect

import (
	"bytes"
	"crypto/rsa"
	"crypto/x509"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/crypto/cryptobyte"
)

const (
	maxSubject      = 120
	maxCertificates = 16
	// maxRSA is the largest key that work is done for, as in package tls.
	maxRSA = 8192
)

// A flight is what the platform answers a hello with in TLS 1.2, held back
// until the message that ends it.
type flight struct {
	server       *serverHello
	certificates [][]byte // DER, the leaf first
	staples      [][]byte // by index of certificates
	exchange     exchange
}

// flightMessage takes the next message. They come in one order (RFC 5246,
// section 7.3; RFC 6961, section 2.2), and each once.
func (i *Inspector) flightMessage(u unit) error {
	f, s := &i.flight, &i.platform
	var ok bool
	switch at := i.state; {
	case at == awaitCertificate && u.message == messageCertificate:
		i.state, ok = awaitStatus, f.readCertificates(u.body)
	case at == awaitStatus && u.message == messageStatus:
		i.state, ok = awaitExchange, f.readStatus(u.body)
	case (at == awaitStatus || at == awaitExchange) && u.message == messageServerKeyExchange:
		i.state, ok = awaitRequest, f.exchange.read(kindOf(f.server.suite), u.body)
	case at == awaitRequest && u.message == messageRequest:
		i.state, ok = awaitEnd, wellFormedRequest(u.body)
	case (at == awaitRequest || at == awaitEnd) && u.message == messageServerHelloDone:
		ok = len(u.body) == 0
		if ok {
			return i.judgeFlight(u)
		}
	default:
		return s.malformed(alertUnexpectedMessage, "%v, which does not belong there", u)
	}
	if !ok {
		return s.malformed(alertDecode, "%v, which does not parse", u)
	}
	return nil
}

// readCertificates reads RFC 5246, section 7.4.2.
func (f *flight) readCertificates(body []byte) bool {
	s := cryptobyte.String(body)
	var list cryptobyte.String
	if !s.ReadUint24LengthPrefixed(&list) || !s.Empty() || list.Empty() {
		return false
	}
	for !list.Empty() {
		var der cryptobyte.String
		if !list.ReadUint24LengthPrefixed(&der) || der.Empty() || len(f.certificates) == maxCertificates {
			return false
		}
		f.certificates = append(f.certificates, der)
	}
	return true
}

// readStatus reads the responses: that of the leaf (RFC 6066, section 8), or
// those of the chain (RFC 6961, section 2.2), where an empty one is none.
func (f *flight) readStatus(body []byte) bool {
	s := cryptobyte.String(body)
	var kind uint8
	var list cryptobyte.String
	if !s.ReadUint8(&kind) || !s.ReadUint24LengthPrefixed(&list) || !s.Empty() || list.Empty() {
		return false
	}
	if kind == statusOCSP {
		f.staples = [][]byte{list}
		return true
	}
	for kind == statusOCSPMulti && !list.Empty() {
		var der cryptobyte.String
		if !list.ReadUint24LengthPrefixed(&der) || len(f.staples) == len(f.certificates) {
			return false
		}
		if der.Empty() {
			der = nil
		}
		f.staples = append(f.staples, der)
	}
	return kind == statusOCSPMulti
}

// wellFormedRequest looks at the form of a CertificateRequest (RFC 5246, section
// 7.4.4). What the platform asks the device for is between the two.
func wellFormedRequest(body []byte) bool {
	s := cryptobyte.String(body)
	var kinds, algorithms, names cryptobyte.String
	return s.ReadUint8LengthPrefixed(&kinds) && s.ReadUint16LengthPrefixed(&algorithms) && s.ReadUint16LengthPrefixed(&names) && s.Empty()
}

// judgeFlight ends the inspection: the leaf is one that was judged good, or is
// judged by its staples, and its key signed the randoms of this very session.
func (i *Inspector) judgeFlight(u unit) error {
	if s := &i.platform; !u.last || s.at < len(s.raw) {
		return s.malformed(alertUnexpectedMessage, "more behind its ServerHelloDone, before the device has answered")
	}
	f := &i.flight
	known := slices.ContainsFunc(i.rules.Leaves, func(der []byte) bool { return bytes.Equal(der, f.certificates[0]) })
	// A copy, since the verdict stays and what was held does not.
	leaf, err := x509.ParseCertificate(bytes.Clone(f.certificates[0]))
	if err != nil {
		return f.refuse(nil, RuleCertificate, nextForeign, "it does not parse").because(err)
	}
	if !known && (i.rules.JudgeStapled == nil || f.staples == nil) {
		return f.refuse(leaf, RuleCertificate, nextForeign, "it is not the certificate that the gate has judged, and nothing is stapled that could vouch for it here")
	}
	if err := f.judgeSignature(i.client.random, leaf); err != nil {
		return err
	}
	if f.staples != nil && i.rules.JudgeStapled != nil {
		if err := i.judgeStapled(leaf, known); err != nil {
			return err
		}
	}
	i.verdict.Enforced, i.verdict.Stapled, i.verdict.Leaf, i.done = true, !known, leaf, true
	return nil
}

const (
	nextForeign = "find out who answers at the platform's address; if it has an RSA certificate beside its ECC one, set two_certificates = true in [[tunnel.platform]]; if there are several machines, have them staple for their chain (RFC 6961)"
	nextStaple  = "ask the platform's operator why it staples that"
)

// judgeStapled puts a flight to the judge of its staples. A response that comes
// in the very session may be younger than what the gate saw.
func (i *Inspector) judgeStapled(leaf *x509.Certificate, known bool) error {
	f := &i.flight
	chain := []*x509.Certificate{leaf}
	for n, der := range f.certificates[1:] {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return f.refuse(leaf, RuleCertificate, nextForeign, "certificate %d of those sent with it does not parse", n+2).because(err)
		}
		if tooLarge(c) {
			return f.refuse(leaf, RuleCertificate, nextForeign, "certificate %d of those sent with it has a key of more than %d bits", n+2, maxRSA)
		}
		chain = append(chain, c)
	}
	err := i.rules.JudgeStapled(chain, f.staples, known)
	switch {
	case err == nil:
		return nil
	case known:
		return f.refuse(leaf, RuleCertificate, nextStaple, "the gate has judged it good, and what comes stapled in the TLS session itself speaks against it: %v", err).because(err)
	}
	return f.refuse(leaf, RuleCertificate, nextForeign, "it is not the certificate that the gate has judged, and by what is stapled with it it is refused: %v", err).because(err)
}

func tooLarge(c *x509.Certificate) bool {
	key, is := c.PublicKey.(*rsa.PublicKey)
	return is && key.N.BitLen() > maxRSA
}

// refuse is a refusal of the platform's leaf. The subject is quoted and cut:
// whoever made the certificate wrote it.
func (f *flight) refuse(leaf *x509.Certificate, rule Rule, next, format string, args ...any) *CutError {
	e := cut(rule, alertBadCertificate, next, format, args...)
	e.Certificate = fmt.Sprintf("platform certificate, 1 of %d sent", len(f.certificates))
	if leaf != nil {
		subject := leaf.Subject.String()
		if len(subject) > maxSubject {
			subject = subject[:maxSubject] + "…"
		}
		// A name has escapes of its own (RFC 4514, section 2.4): once is enough.
		e.Certificate += ", " + strings.ReplaceAll(strconv.QuoteToASCII(subject), `\\`, `\`)
	}
	return e
}

func (e *CutError) because(err error) *CutError {
	e.Err = err
	return e
}
