package revocation

import (
	"bytes"
	"crypto"
	"crypto/sha1"
	_ "crypto/sha256" // the hashes of CertID
	_ "crypto/sha512"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"time"
)

// The ASN.1 of RFC 6960, section 4.2.1.
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
		TBS          responseData
		Algorithm    pkix.AlgorithmIdentifier
		Signature    asn1.BitString
		Certificates []asn1.RawValue `asn1:"explicit,tag:0,optional"`
	}
	responseData struct {
		Raw        asn1.RawContent
		Version    int `asn1:"optional,default:0,explicit,tag:0"`
		Responder  asn1.RawValue
		ProducedAt time.Time `asn1:"generalized"`
		Responses  []singleResponse
		Extensions []pkix.Extension `asn1:"explicit,tag:1,optional"`
	}
	singleResponse struct {
		ID         certID
		Good       asn1.Flag        `asn1:"tag:0,optional"`
		Revoked    revokedInfo      `asn1:"tag:1,optional"`
		Unknown    asn1.Flag        `asn1:"tag:2,optional"`
		ThisUpdate time.Time        `asn1:"generalized"`
		NextUpdate time.Time        `asn1:"generalized,explicit,tag:0,optional"`
		Extensions []pkix.Extension `asn1:"explicit,tag:1,optional"`
	}
	certID struct {
		Hash       pkix.AlgorithmIdentifier
		IssuerName []byte
		IssuerKey  []byte
		Serial     *big.Int
	}
	revokedInfo struct {
		Time   time.Time       `asn1:"generalized"`
		Reason asn1.Enumerated `asn1:"explicit,tag:0,optional"`
	}
)

var (
	oidBasicResponse  = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 1}
	oidNoCheck        = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 5}
	oidNonce          = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 2}
	oidExtendedRevoke = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 9}
	oidPSS            = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 10}
)

// hashes of CertID. SHA-1 only names an issuer here, it vouches for nothing.
var hashes = map[string]crypto.Hash{
	"1.3.14.3.2.26":          crypto.SHA1,
	"2.16.840.1.101.3.4.2.1": crypto.SHA256,
	"2.16.840.1.101.3.4.2.2": crypto.SHA384,
	"2.16.840.1.101.3.4.2.3": crypto.SHA512,
}

var signatures = map[string]x509.SignatureAlgorithm{
	"1.2.840.113549.1.1.5":  x509.SHA1WithRSA,
	"1.2.840.113549.1.1.11": x509.SHA256WithRSA,
	"1.2.840.113549.1.1.12": x509.SHA384WithRSA,
	"1.2.840.113549.1.1.13": x509.SHA512WithRSA,
	"1.2.840.10045.4.1":     x509.ECDSAWithSHA1,
	"1.2.840.10045.4.3.2":   x509.ECDSAWithSHA256,
	"1.2.840.10045.4.3.3":   x509.ECDSAWithSHA384,
	"1.2.840.10045.4.3.4":   x509.ECDSAWithSHA512,
	"1.3.101.112":           x509.PureEd25519,
}

// unsuccessful are the answers of RFC 6960, section 2.3.
var unsuccessful = map[asn1.Enumerated]string{
	1: "malformed request", 2: "internal error", 3: "try later", 5: "the request must be signed", 6: "unauthorised",
}

// A refusal is an error that becomes a verdict.
type refusal struct {
	kind   Kind
	reason string
	next   string
}

func (r *refusal) Error() string { return r.reason }

func refuse(k Kind, next, format string, args ...any) error {
	return &refusal{kind: k, next: next, reason: fmt.Sprintf(format, args...)}
}

const (
	askPlatform = "the platform's operator must have its server staple a valid response"
	askCA       = "the CA's operator must mend its OCSP responder"
	askClock    = "check the clock of this gateway first, then that of the responder"
)

// judgeResponse judges a certificate by one response.
func judgeResponse(cert, issuer *x509.Certificate, r Response, crls []*x509.RevocationList, now time.Time, rules Rules) Verdict {
	v, err := decideByResponse(cert, issuer, r.DER, crls, now, rules)
	v.Source = r.Source
	if v.Source == "" {
		v.Source = "stapled response"
	}
	if err != nil {
		v.Kind, v.Reason, v.Next = Malformed, "the "+v.Source+" is refused: "+err.Error(), askPlatform
		if refused, ok := errors.AsType[*refusal](err); ok {
			v.Kind, v.Next = refused.kind, refused.next
		}
	}
	return v
}

func decideByResponse(cert, issuer *x509.Certificate, der []byte, crls []*x509.RevocationList, now time.Time, rules Rules) (Verdict, error) {
	basic, err := parseResponse(der)
	if err != nil {
		return Verdict{}, err
	}
	signer, err := findSigner(basic, issuer, crls, now, rules)
	if err != nil {
		return Verdict{}, err
	}
	if err := checkSignature(basic, signer); err != nil {
		return Verdict{}, err
	}
	single, err := findSingle(basic, cert, issuer)
	if err != nil {
		return Verdict{}, err
	}
	v := Verdict{ThisUpdate: single.ThisUpdate, NextUpdate: single.NextUpdate, signerNotAfter: signer.NotAfter}
	if err := checkTimes(basic.TBS.ProducedAt, single.ThisUpdate, single.NextUpdate, now, rules); err != nil {
		return v, err
	}
	switch {
	case single.isRevoked():
		v.Kind, v.RevokedAt = Revoked, single.Revoked.Time
		v.Reason = fmt.Sprintf("it was revoked at %s (%s)", single.Revoked.Time.UTC().Format(time.RFC3339), reasonName(int(single.Revoked.Reason)))
		v.Next = "the owner of the certificate must have it replaced; it must not be trusted"
	case bool(single.Good):
		v.Kind, v.Reason = Good, "good until "+single.NextUpdate.UTC().Format(time.RFC3339)
	default:
		v.Kind, v.Reason = Unknown, "the responder does not know it"
		v.Next = "the owner must ask the CA whether the certificate was issued by it"
	}
	return v, nil
}

// parseResponse reads the structure; nothing is believed yet.
func parseResponse(der []byte) (*basicResponse, error) {
	var outer ocspResponse
	if rest, err := asn1.Unmarshal(der, &outer); err != nil || len(rest) > 0 {
		return nil, refuse(Malformed, askPlatform, "it is no OCSP response (RFC 6960, section 4.2.1)")
	}
	if outer.Status != 0 {
		text, known := unsuccessful[outer.Status]
		if !known {
			text = fmt.Sprintf("status %d", outer.Status)
		}
		return nil, refuse(Unsuccessful, askCA, "the responder gave no answer: %s", text)
	}
	if !outer.Bytes.Type.Equal(oidBasicResponse) {
		return nil, refuse(Unsupported, askCA, "its type %s is not id-pkix-ocsp-basic", outer.Bytes.Type)
	}
	var basic basicResponse
	if rest, err := asn1.Unmarshal(outer.Bytes.Response, &basic); err != nil || len(rest) > 0 {
		return nil, refuse(Malformed, askPlatform, "its BasicOCSPResponse does not parse")
	}
	if basic.TBS.Version != 0 {
		return nil, refuse(Unsupported, askCA, "its version is %d, only version 1 is defined", basic.TBS.Version+1)
	}
	for _, e := range basic.TBS.Extensions {
		// A nonce answers a request that we did not make, and says nothing here.
		if e.Critical && !e.Id.Equal(oidNonce) && !e.Id.Equal(oidExtendedRevoke) {
			return nil, refuse(Unsupported, askCA, "it has the critical extension %s, which is not understood", e.Id)
		}
	}
	return &basic, nil
}

// findSigner finds who signed: the issuer itself, or a certificate of the
// response to which the issuer delegated (RFC 6960, section 4.2.2.2). A leaf or
// any other certificate of the issuer is not enough.
func findSigner(basic *basicResponse, issuer *x509.Certificate, crls []*x509.RevocationList, now time.Time, rules Rules) (*x509.Certificate, error) {
	if isResponder(basic.TBS.Responder, issuer) {
		return issuer, nil
	}
	problem := refuse(Unauthorised, askCA, "neither the issuing CA nor a certificate in the response is its responder")
	for _, raw := range basic.Certificates {
		candidate, err := x509.ParseCertificate(raw.FullBytes)
		if err != nil || !isResponder(basic.TBS.Responder, candidate) {
			continue
		}
		if problem = checkDelegate(candidate, issuer, crls, now, rules); problem == nil {
			return candidate, nil
		}
	}
	return nil, problem
}

// isResponder compares a certificate with the ResponderID: a name, or the SHA-1
// hash of the public key (RFC 6960, section 4.2.1).
func isResponder(id asn1.RawValue, cert *x509.Certificate) bool {
	if id.Class != asn1.ClassContextSpecific {
		return false
	}
	switch id.Tag {
	case 1:
		return bytes.Equal(id.Bytes, cert.RawSubject)
	case 2:
		var hash []byte
		if rest, err := asn1.Unmarshal(id.Bytes, &hash); err != nil || len(rest) > 0 {
			return false
		}
		key, err := publicKeyBits(cert)
		if err != nil {
			return false
		}
		sum := sha1.Sum(key)
		return bytes.Equal(hash, sum[:])
	}
	return false
}

func checkDelegate(signer, issuer *x509.Certificate, crls []*x509.RevocationList, now time.Time, rules Rules) error {
	name := signer.Subject.CommonName
	if err := signer.CheckSignatureFrom(issuer); err != nil {
		return refuse(Unauthorised, askCA, "its signer %q was not issued by the CA that issued the certificate", name)
	}
	if !slices.Contains(signer.ExtKeyUsage, x509.ExtKeyUsageOCSPSigning) {
		return refuse(Unauthorised, "treat this as an attack: a certificate that may not do so has signed a response",
			"its signer %q has no OCSPSigning in its extended key usage (RFC 6960, section 4.2.2.2)", name)
	}
	if signer.KeyUsage != 0 && signer.KeyUsage&x509.KeyUsageDigitalSignature == 0 {
		return refuse(Unauthorised, askCA, "the key usage of its signer %q does not allow signatures", name)
	}
	if now.Before(signer.NotBefore) || now.After(signer.NotAfter) {
		return refuse(Unauthorised, askCA, "the certificate of its signer %q is valid from %s to %s only", name,
			signer.NotBefore.UTC().Format(time.RFC3339), signer.NotAfter.UTC().Format(time.RFC3339))
	}
	if len(signer.UnhandledCriticalExtensions) > 0 {
		return refuse(Unsupported, askCA, "its signer %q has the critical extension %s, which is not understood", name, signer.UnhandledCriticalExtensions[0])
	}
	return checkDelegateRevocation(signer, issuer, crls, now, rules)
}

// checkDelegateRevocation: the CA says that the signer need not be checked
// (id-pkix-ocsp-nocheck, RFC 6960, section 4.2.2.2.1), or a CRL of it shows
// that the signer is good. Neither leaves the signer unknown.
func checkDelegateRevocation(signer, issuer *x509.Certificate, crls []*x509.RevocationList, now time.Time, rules Rules) error {
	if v, ok := judgeByCRLs(signer, issuer, crls, now, rules); ok && v.Kind == Revoked {
		return refuse(Unauthorised, askCA, "the certificate of its signer %q was revoked", signer.Subject.CommonName)
	} else if ok && v.Kind == Good {
		return nil
	}
	if slices.ContainsFunc(signer.Extensions, func(e pkix.Extension) bool { return e.Id.Equal(oidNoCheck) }) {
		return nil
	}
	return refuse(Unauthorised, "the CA's operator must issue its responder's certificate with id-pkix-ocsp-nocheck, or a CRL that covers it must be installed",
		"nothing says whether its signer %q itself was revoked", signer.Subject.CommonName)
}

func checkSignature(basic *basicResponse, signer *x509.Certificate) error {
	algorithm, known := signatures[basic.Algorithm.Algorithm.String()]
	if basic.Algorithm.Algorithm.Equal(oidPSS) {
		algorithm, known = pssAlgorithm(basic.Algorithm.Parameters)
	}
	switch {
	case !known:
		return refuse(Weak, askCA, "its signature algorithm %s is not accepted", basic.Algorithm.Algorithm)
	case algorithm == x509.SHA1WithRSA || algorithm == x509.ECDSAWithSHA1:
		return refuse(Weak, askCA, "it is signed with SHA-1")
	}
	if err := signer.CheckSignature(algorithm, basic.TBS.Raw, basic.Signature.RightAlign()); err != nil {
		return refuse(BadSignature, "treat this as an attack or as damage on the way", "its signature is wrong: %s", err)
	}
	return nil
}

// pssAlgorithm reads RSASSA-PSS parameters (RFC 4055, section 3.1).
func pssAlgorithm(parameters asn1.RawValue) (x509.SignatureAlgorithm, bool) {
	var p struct {
		Hash pkix.AlgorithmIdentifier `asn1:"explicit,tag:0"`
		MGF  pkix.AlgorithmIdentifier `asn1:"explicit,tag:1"`
		Salt int                      `asn1:"explicit,tag:2"`
	}
	if _, err := asn1.Unmarshal(parameters.FullBytes, &p); err != nil {
		return 0, false
	}
	var mgf pkix.AlgorithmIdentifier
	if _, err := asn1.Unmarshal(p.MGF.Parameters.FullBytes, &mgf); err != nil || !mgf.Algorithm.Equal(p.Hash.Algorithm) {
		return 0, false
	}
	switch hash := hashes[p.Hash.Algorithm.String()]; {
	case hash == crypto.SHA256 && p.Salt == 32:
		return x509.SHA256WithRSAPSS, true
	case hash == crypto.SHA384 && p.Salt == 48:
		return x509.SHA384WithRSAPSS, true
	case hash == crypto.SHA512 && p.Salt == 64:
		return x509.SHA512WithRSAPSS, true
	}
	return 0, false
}

// findSingle finds the answer about the certificate among those of the
// response. Where there are several about it, a revocation wins, then the newest.
func findSingle(basic *basicResponse, cert, issuer *x509.Certificate) (*singleResponse, error) {
	var found *singleResponse
	for i := range basic.TBS.Responses {
		s := &basic.TBS.Responses[i]
		if !s.ID.matches(cert, issuer) {
			continue
		}
		for _, e := range s.Extensions {
			if e.Critical {
				return nil, refuse(Unsupported, askCA, "it has the critical extension %s, which is not understood", e.Id)
			}
		}
		if n := s.answers(); n != 1 {
			return nil, refuse(Malformed, askCA, "it gives %d statuses for the certificate", n)
		}
		if found == nil || s.isRevoked() && !found.isRevoked() || s.isRevoked() == found.isRevoked() && s.ThisUpdate.After(found.ThisUpdate) {
			found = s
		}
	}
	if found == nil {
		return nil, refuse(Mismatched, askPlatform, "it is about another certificate or issuer")
	}
	return found, nil
}

func (s *singleResponse) isRevoked() bool { return !s.Revoked.Time.IsZero() }

func (s *singleResponse) answers() int {
	n := 0
	for _, is := range []bool{bool(s.Good), s.isRevoked(), bool(s.Unknown)} {
		if is {
			n++
		}
	}
	return n
}

// matches compares the serial number and both hashes of the issuer: one key may
// serve two CA names, and one name two keys.
func (id *certID) matches(cert, issuer *x509.Certificate) bool {
	hash, known := hashes[id.Hash.Algorithm.String()]
	if !known || id.Serial == nil || id.Serial.Cmp(cert.SerialNumber) != 0 {
		return false
	}
	key, err := publicKeyBits(issuer)
	if err != nil {
		return false
	}
	sum := func(b []byte) []byte { h := hash.New(); h.Write(b); return h.Sum(nil) }
	return bytes.Equal(id.IssuerName, sum(issuer.RawSubject)) && bytes.Equal(id.IssuerKey, sum(key))
}

// publicKeyBits is the value of subjectPublicKey without tag, length and unused bits.
func publicKeyBits(cert *x509.Certificate) ([]byte, error) {
	var info struct {
		Algorithm pkix.AlgorithmIdentifier
		Key       asn1.BitString
	}
	if _, err := asn1.Unmarshal(cert.RawSubjectPublicKeyInfo, &info); err != nil {
		return nil, err
	}
	return info.Key.RightAlign(), nil
}

// checkTimes is RFC 6960, section 4.2.2.1, and the policy's limit of age.
func checkTimes(producedAt, thisUpdate, nextUpdate, now time.Time, rules Rules) error {
	at := func(t time.Time) string { return t.UTC().Format(time.RFC3339) }
	switch {
	case nextUpdate.IsZero():
		return refuse(Stale, askCA, "it does not say how long it holds (no nextUpdate)")
	case nextUpdate.Before(thisUpdate):
		return refuse(Malformed, askCA, "its nextUpdate %s is before its thisUpdate %s", at(nextUpdate), at(thisUpdate))
	case !now.Before(nextUpdate):
		return refuse(Stale, askPlatform+" afresh; "+askClock, "it expired at %s", at(nextUpdate))
	case thisUpdate.After(now.Add(rules.skew())):
		return refuse(Future, askClock, "it begins to hold at %s, our clock shows %s", at(thisUpdate), at(now))
	case !producedAt.IsZero() && producedAt.After(now.Add(rules.skew())):
		return refuse(Future, askClock, "it was made at %s, our clock shows %s", at(producedAt), at(now))
	case rules.MaxAge > 0 && now.Sub(thisUpdate) > rules.MaxAge:
		return refuse(TooOld, askPlatform+" afresh", "it is of %s, older than the %s that the policy allows", at(thisUpdate), rules.MaxAge)
	}
	return nil
}

// reasonName is the name of a CRLReason (RFC 5280, section 5.3.1).
func reasonName(code int) string {
	names := map[int]string{0: "unspecified", 1: "key compromise", 2: "CA compromise", 3: "affiliation changed", 4: "superseded",
		5: "cessation of operation", 6: "certificate hold", 8: "removed from CRL", 9: "privilege withdrawn", 10: "AA compromise"}
	if name, ok := names[code]; ok {
		return name
	}
	return fmt.Sprintf("reason %d", code)
}
