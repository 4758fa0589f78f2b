package responder

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"math/big"
	"slices"
	"time"

	"golang.org/x/crypto/ocsp"

	"github.com/bedside-gateway/gatewayd/internal/sim/pki"
)

// The ASN.1 of RFC 6960, section 4.2.1. golang.org/x/crypto/ocsp makes
// responses too, but with one answer each, an id of its own choice and
// producedAt from the system's clock.
type (
	ocspResponse struct {
		Status asn1.Enumerated
		Bytes  responseBytes `asn1:"explicit,tag:0,optional"`
	}
	responseBytes struct {
		Type     asn1.ObjectIdentifier
		Response []byte
	}
	basicResponse struct {
		TBS          asn1.RawValue
		Algorithm    pkix.AlgorithmIdentifier
		Signature    asn1.BitString
		Certificates []asn1.RawValue `asn1:"explicit,tag:0,optional"`
	}
	responseData struct {
		Responder  asn1.RawValue
		ProducedAt time.Time `asn1:"generalized"`
		Responses  []singleResponse
		Extensions []pkix.Extension `asn1:"explicit,tag:1,optional"`
	}
	singleResponse struct {
		ID         certID
		Good       asn1.Flag   `asn1:"tag:0,optional"`
		Revoked    revokedInfo `asn1:"tag:1,optional"`
		Unknown    asn1.Flag   `asn1:"tag:2,optional"`
		ThisUpdate time.Time   `asn1:"generalized"`
		NextUpdate time.Time   `asn1:"generalized,explicit,tag:0,optional"`
	}
	revokedInfo struct {
		Time   time.Time       `asn1:"generalized"`
		Reason asn1.Enumerated `asn1:"explicit,tag:0,optional"`
	}
)

var (
	oidBasic   = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 1}
	oidPadding = asn1.ObjectIdentifier{2, 25, 1} // of the space for UUIDs, means nothing
)

// respond makes the OCSP response about certificates of a CA. The first id
// decides who signs, each is answered by its own answer.
func (s *Server) respond(ca *authority, ids []certID, answers []Answer) ([]byte, error) {
	now := s.now().UTC().Truncate(time.Second)
	first := answers[0]
	if first == TryLater {
		return failure(ocsp.TryLater)
	}
	signer, err := ca.signer(first, ids[0].SerialNum)
	if err != nil {
		return nil, err
	}
	data := responseData{ProducedAt: now, Responder: asn1.RawValue{
		Class: asn1.ClassContextSpecific, Tag: 1, IsCompound: true, Bytes: signer.Certificate.RawSubject}}
	if first == Several {
		others := ca.issued[:min(3, len(ca.issued))]
		answers = append(slices.Repeat([]Answer{Auto}, len(others)), answers...)
		for i, e := range others {
			ids = slices.Insert(ids, i, ca.idOf(e.Certificate.SerialNumber))
		}
	}
	for i, id := range ids {
		r, err := s.single(ca, id, answers[i], now)
		if err != nil {
			return nil, err
		}
		data.Responses = append(data.Responses, r)
	}
	if first == Huge {
		data.Extensions = []pkix.Extension{{Id: oidPadding, Value: make([]byte, HugeSize)}}
	}
	der, err := sign(data, signer, ca.Entry, first)
	if first == Truncated {
		der = der[:len(der)/2]
	}
	return der, err
}

// single answers about one certificate.
func (s *Server) single(ca *authority, id certID, a Answer, now time.Time) (r singleResponse, err error) {
	r = singleResponse{ID: id, ThisUpdate: now, NextUpdate: now.Add(s.lifetime)}
	r.ThisUpdate, r.NextUpdate = s.times(a, now)
	kind, _, _ := a.split()
	switch kind {
	case Auto, Delegated, Several, Slow:
		err = s.truth(ca, &r)
	case Revoked:
		r.Revoked = revokedInfo{Time: now.Add(-time.Hour), Reason: ocsp.KeyCompromise}
	case Unknown:
		r.Unknown = true
	case Mismatched:
		r.ID = ca.idOf(new(big.Int).Add(id.SerialNum, big.NewInt(1)))
		r.Good = true
	default:
		r.Good = true
	}
	return r, err
}

// truth is what the CA's CRL says of what it issued.
func (s *Server) truth(ca *authority, r *singleResponse) error {
	if revoked, is := ca.revoked[r.ID.SerialNum.String()]; is {
		r.Revoked = revokedInfo{Time: revoked.RevocationTime.UTC(), Reason: asn1.Enumerated(revoked.ReasonCode)}
		return nil
	}
	known, err := s.knows(ca, r.ID.SerialNum)
	r.Good, r.Unknown = asn1.Flag(known), asn1.Flag(!known)
	return err
}

// times are thisUpdate and nextUpdate.
func (s *Server) times(a Answer, now time.Time) (this, next time.Time) {
	switch a {
	case Stale:
		return now.Add(-2 * s.lifetime), now.Add(-s.lifetime)
	case Future:
		return now.Add(time.Hour), now.Add(time.Hour + s.lifetime)
	case Old:
		return now.AddDate(0, 0, -30), now.Add(s.lifetime)
	case NoNextUpdate:
		return now, time.Time{}
	}
	return now, now.Add(s.lifetime)
}

// signer is who signs an answer about a certificate.
func (ca *authority) signer(a Answer, serial *big.Int) (*pki.Entry, error) {
	found := ca.Entry
	switch a {
	case WrongSigner:
		found = ca.sibling(serial)
	case Delegated, DelegatedUnchecked, DelegatedExpired, DelegatedNoEKU:
		found = ca.delegates[a]
	}
	if found == nil {
		return nil, fmt.Errorf("%s issued no certificate that could sign the answer %s", ca.Name, a)
	}
	return found, nil
}

// sign makes the response of its data. The signer's certificate goes with it
// unless it is the CA itself.
func sign(data responseData, signer, ca *pki.Entry, a Answer) ([]byte, error) {
	tbs, err := asn1.Marshal(data)
	if err != nil {
		return nil, err
	}
	algorithm, hash, err := algorithmOf(signer.Key.Public(), a == SHA1)
	if err != nil {
		return nil, err
	}
	h := hash.New()
	h.Write(tbs)
	signature, err := signer.Key.Sign(rand.Reader, h.Sum(nil), hash)
	if err != nil {
		return nil, err
	}
	if a == BadSignature {
		signature[len(signature)-1] ^= 1
	}
	basic := basicResponse{TBS: asn1.RawValue{FullBytes: tbs}, Algorithm: algorithm,
		Signature: asn1.BitString{Bytes: signature, BitLength: 8 * len(signature)}}
	if signer != ca {
		basic.Certificates = []asn1.RawValue{{FullBytes: signer.Certificate.Raw}}
	}
	der, err := asn1.Marshal(basic)
	if err != nil {
		return nil, err
	}
	return asn1.Marshal(ocspResponse{Bytes: responseBytes{Type: oidBasic, Response: der}})
}

// failure is a response without an answer (RFC 6960, section 2.3).
func failure(status ocsp.ResponseStatus) ([]byte, error) {
	return asn1.Marshal(struct{ Status asn1.Enumerated }{asn1.Enumerated(status)})
}

// algorithmOf is the signature algorithm that fits a key (RFC 5758, RFC 4055).
func algorithmOf(key crypto.PublicKey, weak bool) (pkix.AlgorithmIdentifier, crypto.Hash, error) {
	ecc := asn1.ObjectIdentifier{1, 2, 840, 10045, 4}
	pkcs1 := asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1}
	switch k := key.(type) {
	case *rsa.PublicKey:
		id := pkix.AlgorithmIdentifier{Algorithm: append(pkcs1, 11), Parameters: asn1.NullRawValue}
		if weak {
			id.Algorithm = append(pkcs1, 5)
			return id, crypto.SHA1, nil
		}
		return id, crypto.SHA256, nil
	case *ecdsa.PublicKey:
		if weak {
			return pkix.AlgorithmIdentifier{Algorithm: append(ecc, 1)}, crypto.SHA1, nil
		}
		if k.Curve.Params().BitSize >= 384 {
			return pkix.AlgorithmIdentifier{Algorithm: append(ecc, 3, 3)}, crypto.SHA384, nil
		}
		return pkix.AlgorithmIdentifier{Algorithm: append(ecc, 3, 2)}, crypto.SHA256, nil
	}
	return pkix.AlgorithmIdentifier{}, 0, fmt.Errorf("no signature algorithm for a key of type %T", key)
}

// Staples are the responses for a chain of the PKI, leaf first, as a server
// with these answers would get them: one for every certificate that another
// one issued, at its position. A position without an answer gets the truth;
// the answers None, HTTP500 and Redirect leave it empty. They are of the time
// at which the PKI was made, or of now for one that was read.
//
// It is for tests, and panics when the chain is not of the PKI.
func Staples(p *pki.PKI, chain []*x509.Certificate, answers []Answer) [][]byte {
	now := p.Options.Now
	if now.IsZero() {
		now = time.Now()
	}
	staples, err := StaplesAt(p, chain, answers, now, DefaultLifetime)
	if err != nil {
		panic(err)
	}
	return staples
}

// StaplesAt is Staples at another time and for another lifetime.
func StaplesAt(p *pki.PKI, chain []*x509.Certificate, answers []Answer, now time.Time, lifetime time.Duration) ([][]byte, error) {
	s, err := New(Options{PKI: p, Lifetime: lifetime, Now: func() time.Time { return now }})
	if err != nil {
		return nil, err
	}
	var staples [][]byte
	for i, cert := range chain {
		if bytes.Equal(cert.RawIssuer, cert.RawSubject) {
			break
		}
		a := Auto
		if i < len(answers) {
			a = answers[i]
		}
		der, err := s.staple(cert, a)
		if err != nil {
			return nil, fmt.Errorf("staple for position %d: %w", i, err)
		}
		staples = append(staples, der)
	}
	return staples, nil
}

func (s *Server) staple(cert *x509.Certificate, a Answer) ([]byte, error) {
	if err := a.check(ocspAnswers); err != nil {
		return nil, err
	}
	switch a {
	case None, HTTP500, Redirect:
		return nil, nil
	case Garbage, Portal:
		return fixed[a].body, nil
	}
	for _, ca := range s.cas {
		if e := ca.entry(cert.SerialNumber); e != nil && e.Certificate.Equal(cert) {
			return s.respond(ca, []certID{ca.idOf(cert.SerialNumber)}, []Answer{a})
		}
	}
	return nil, fmt.Errorf("certificate %q is not of this PKI", cert.Subject)
}
