package revocation

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"fmt"
	"time"
)

var (
	oidDeltaCRL          = asn1.ObjectIdentifier{2, 5, 29, 27}
	oidIssuingDistPoint  = asn1.ObjectIdentifier{2, 5, 29, 28}
	oidCRLNumber         = asn1.ObjectIdentifier{2, 5, 29, 20}
	oidAuthorityKeyID    = asn1.ObjectIdentifier{2, 5, 29, 35}
	oidCertificateIssuer = asn1.ObjectIdentifier{2, 5, 29, 29}
)

// issuingDistributionPoint is RFC 5280, section 5.2.5.
type issuingDistributionPoint struct {
	Name            asn1.RawValue  `asn1:"optional,tag:0"`
	OnlyUserCerts   bool           `asn1:"optional,tag:1"`
	OnlyCACerts     bool           `asn1:"optional,tag:2"`
	OnlySomeReasons asn1.BitString `asn1:"optional,tag:3"`
	Indirect        bool           `asn1:"optional,tag:4"`
	OnlyAttributes  bool           `asn1:"optional,tag:5"`
}

// judgeByCRLs judges by the CRLs of the issuer. ok is false where there is none
// of it at all. A good CRL decides; else the first refusal stands.
func judgeByCRLs(cert, issuer *x509.Certificate, crls []*x509.RevocationList, now time.Time, rules Rules) (verdict Verdict, ok bool) {
	for _, crl := range crls {
		if !bytes.Equal(crl.RawIssuer, issuer.RawSubject) {
			continue
		}
		v := judgeByCRL(cert, issuer, crl, now, rules)
		if v.Kind == Revoked {
			return v, true
		}
		if !ok || v.Kind == Good && verdict.Kind != Good {
			verdict, ok = v, true
		}
	}
	return verdict, ok
}

func judgeByCRL(cert, issuer *x509.Certificate, crl *x509.RevocationList, now time.Time, rules Rules) Verdict {
	v := Verdict{Source: "CRL", ThisUpdate: crl.ThisUpdate, NextUpdate: crl.NextUpdate}
	if err := CheckCRL(crl, issuer, now, rules); err != nil {
		return v.refused(err)
	}
	if err := checkScope(cert, crl); err != nil {
		return v.refused(err)
	}
	for _, e := range crl.RevokedCertificateEntries {
		for _, ext := range e.Extensions {
			// An entry with a certificate issuer is of an indirect CRL; anything
			// else critical is not understood (RFC 5280, section 5.3).
			if ext.Critical || ext.Id.Equal(oidCertificateIssuer) {
				return v.refused(refuse(Unsupported, askCA, "an entry of it has the extension %s, which is not understood", ext.Id))
			}
		}
		if e.SerialNumber.Cmp(cert.SerialNumber) == 0 {
			v.Kind, v.RevokedAt = Revoked, e.RevocationTime
			v.Reason = fmt.Sprintf("it was revoked at %s (%s)", e.RevocationTime.UTC().Format(time.RFC3339), reasonName(e.ReasonCode))
			v.Next = "the owner of the certificate must have it replaced; it must not be trusted"
			return v
		}
	}
	v.Kind, v.Reason = Good, "not on the CRL that holds until "+crl.NextUpdate.UTC().Format(time.RFC3339)
	return v
}

func (v Verdict) refused(err error) Verdict {
	v.Kind, v.Reason = Malformed, "the CRL is refused: "+err.Error()
	if r, ok := err.(*refusal); ok {
		v.Kind, v.Next = r.kind, r.next
	}
	return v
}

// CheckCRL checks a CRL itself, whoever it is asked about: its issuer and
// signature, its extensions, its freshness (RFC 5280, sections 5 and 6.3.3).
func CheckCRL(crl *x509.RevocationList, issuer *x509.Certificate, now time.Time, rules Rules) error {
	if !bytes.Equal(crl.RawIssuer, issuer.RawSubject) {
		return refuse(Mismatched, askCA, "it is of another issuer")
	}
	if issuer.KeyUsage != 0 && issuer.KeyUsage&x509.KeyUsageCRLSign == 0 {
		return refuse(Unauthorised, askCA, "the key usage of %q does not allow it to sign CRLs", issuer.Subject.CommonName)
	}
	if crl.SignatureAlgorithm == x509.SHA1WithRSA || crl.SignatureAlgorithm == x509.ECDSAWithSHA1 {
		return refuse(Weak, askCA, "it is signed with SHA-1")
	}
	if err := crl.CheckSignatureFrom(issuer); err != nil {
		return refuse(BadSignature, "treat this as an attack or as damage on the way", "its signature is wrong: %s", err)
	}
	for _, e := range crl.Extensions {
		switch {
		case e.Id.Equal(oidDeltaCRL):
			return refuse(Unsupported, "install the complete CRL", "it is a delta CRL")
		case e.Critical && !e.Id.Equal(oidIssuingDistPoint) && !e.Id.Equal(oidCRLNumber) && !e.Id.Equal(oidAuthorityKeyID):
			return refuse(Unsupported, askCA, "it has the critical extension %s, which is not understood", e.Id)
		}
	}
	return checkTimes(time.Time{}, crl.ThisUpdate, crl.NextUpdate, now, rules)
}

// checkScope: a CRL that covers only some certificates or reasons must cover this one, for all reasons.
func checkScope(cert *x509.Certificate, crl *x509.RevocationList) error {
	for _, e := range crl.Extensions {
		if !e.Id.Equal(oidIssuingDistPoint) {
			continue
		}
		var p issuingDistributionPoint
		if rest, err := asn1.Unmarshal(e.Value, &p); err != nil || len(rest) > 0 {
			return refuse(Malformed, askCA, "its issuing distribution point does not parse")
		}
		switch {
		case p.Indirect:
			return refuse(Unsupported, askCA, "it is an indirect CRL")
		case p.OnlySomeReasons.BitLength > 0:
			return refuse(Unsupported, askCA, "it covers only some reasons of revocation")
		case p.OnlyAttributes:
			return refuse(Mismatched, askCA, "it covers attribute certificates only")
		case p.OnlyUserCerts && cert.IsCA:
			return refuse(Mismatched, askCA, "it covers no CA certificates")
		case p.OnlyCACerts && !cert.IsCA:
			return refuse(Mismatched, askCA, "it covers CA certificates only")
		}
	}
	return nil
}
