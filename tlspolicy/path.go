package tlspolicy

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	layout     = "2006-01-02 15:04:05Z"
	maxSubject = 120
)

func (s side) nextChain() string {
	return "have the " + s.name + " send its full chain, or install the root that issued it"
}

func (s side) nextTime() string {
	return "check the gateway's clock; if it is right, have the " + s.name + "'s certificate renewed"
}

func (s side) nextIssue() string {
	return "have the " + s.name + "'s certificate issued anew by the right CA"
}

// paths does basic path validation (RFC 5280, section 6) at the given time.
// Package x509 is stricter in that it also holds the root to its validity.
func (v *verifier) paths(sent []*x509.Certificate, now time.Time) ([][]*x509.Certificate, error) {
	others := x509.NewCertPool()
	for _, c := range sent[1:] {
		others.AddCert(c)
	}
	chains, err := sent[0].Verify(x509.VerifyOptions{
		Roots: v.roots, Intermediates: others, CurrentTime: now,
		KeyUsages: []x509.ExtKeyUsage{v.usage},
	})
	if err != nil {
		return nil, v.explain(err, sent, now)
	}
	// A certificate of the peer that is installed as a root vouches for itself,
	// and nobody could ever revoke it.
	chains = slices.DeleteFunc(chains, func(chain []*x509.Certificate) bool { return len(chain) < 2 })
	if len(chains) == 0 {
		return nil, v.refuse(sent, sent[0], "the "+v.name+"'s own certificate is installed as a root, so no CA vouches for it", v.nextIssue())
	}
	return chains, nil
}

// refuse names the certificate c among those that were sent.
func (s side) refuse(sent []*x509.Certificate, c *x509.Certificate, reason, next string) *RefusalError {
	return &RefusalError{Rule: s.rule, Certificate: s.describe(sent, c), Reason: reason, Next: next, Alert: alertBadCertificate}
}

// describe is the position and the subject of a certificate. The subject is
// quoted and cut: whoever made it wrote it.
func (s side) describe(sent []*x509.Certificate, c *x509.Certificate) string {
	at := slices.IndexFunc(sent, c.Equal)
	switch {
	case at == 0:
		return fmt.Sprintf("%s certificate, 1 of %d sent, %s", s.name, len(sent), subject(c.Subject.String()))
	case at > 0:
		return fmt.Sprintf("certificate %d of %d sent, %s", at+1, len(sent), subject(c.Subject.String()))
	}
	return "installed root " + subject(c.Subject.String())
}

// subject is a distinguished name as it is shown. What it escapes is escaped
// once (RFC 4514, section 2.4).
func subject(s string) string {
	if len(s) > maxSubject {
		s = s[:maxSubject] + "…"
	}
	return strings.ReplaceAll(strconv.QuoteToASCII(s), `\\`, `\`)
}

// explain puts an error of package x509 in an operator's terms.
func (s side) explain(err error, sent []*x509.Certificate, now time.Time) error {
	if e, ok := errors.AsType[x509.CertificateInvalidError](err); ok {
		return s.invalid(e, sent, now)
	}
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return s.noAnchor(sent)
	}
	r := s.refuse(sent, sent[0], "it cannot be validated: "+subject(err.Error()), s.nextIssue())
	if _, ok := errors.AsType[x509.UnhandledCriticalExtension](err); ok {
		at := slices.IndexFunc(sent, func(c *x509.Certificate) bool { return len(c.UnhandledCriticalExtensions) > 0 })
		r = s.refuse(sent, sent[max(at, 0)], "it has a critical extension that nothing here understands", s.nextIssue())
	}
	r.Err = err
	return r
}

func (s side) invalid(e x509.CertificateInvalidError, sent []*x509.Certificate, now time.Time) error {
	reason, next, alert := "", s.nextIssue(), alertBadCertificate
	switch e.Reason {
	case x509.Expired:
		reason, next, alert = outOfTime(e.Cert, now), s.nextTime(), alertExpired
	case x509.NotAuthorizedToSign:
		reason = "it has issued a certificate without being a CA"
	case x509.TooManyIntermediates:
		reason = "its path length does not allow so many CAs below it"
	case x509.IncompatibleUsage:
		reason = "its extended key usage, or that of a CA above it, is not that of " + s.purpose
	case x509.CANotAuthorizedForThisName:
		reason = "a CA above it may not issue certificates for its names (name constraints)"
	default:
		reason = "it is invalid: " + subject(e.Error())
	}
	r := s.refuse(sent, e.Cert, reason, next)
	r.Err, r.Alert = e, alert
	return r
}

func outOfTime(c *x509.Certificate, now time.Time) string {
	if now.Before(c.NotBefore) {
		return fmt.Sprintf("it is not valid before %s, and it is %s", c.NotBefore.UTC().Format(layout), now.UTC().Format(layout))
	}
	return fmt.Sprintf("it expired on %s, and it is %s", c.NotAfter.UTC().Format(layout), now.UTC().Format(layout))
}

// noAnchor finds where the way from the peer's certificate to a root ends:
// package x509 only says that there is none.
func (s side) noAnchor(sent []*x509.Certificate) error {
	c := sent[0]
	for range sent {
		if bytes.Equal(c.RawIssuer, c.RawSubject) {
			return s.unknownRoot(sent, c)
		}
		at := slices.IndexFunc(sent, func(p *x509.Certificate) bool { return bytes.Equal(p.RawSubject, c.RawIssuer) })
		if at < 0 {
			break
		}
		if err := c.CheckSignatureFrom(sent[at]); err != nil {
			return s.badLink(sent, c, sent[at], err)
		}
		c = sent[at]
	}
	if weak := weakSignature(c); weak != "" {
		return s.refuse(sent, c, weak, s.nextIssue())
	}
	r := s.refuse(sent, c, fmt.Sprintf("its issuer %s was not sent, and no installed root of that name signed it", subject(c.Issuer.String())), s.nextChain())
	r.Alert = alertUnknownCA
	return r
}

func (s side) unknownRoot(sent []*x509.Certificate, c *x509.Certificate) error {
	r := s.refuse(sent, c, "the chain ends in this root, which is not installed here",
		"install it if it is the hospital's; if not, this is not the hospital's "+s.name)
	if c == sent[0] {
		r = s.refuse(sent, c, "it is signed by itself", s.nextIssue())
	}
	r.Alert = alertUnknownCA
	return r
}

func (s side) badLink(sent []*x509.Certificate, c, issuer *x509.Certificate, err error) error {
	if weak := weakSignature(c); weak != "" {
		return s.refuse(sent, c, weak, s.nextIssue())
	}
	if _, ok := errors.AsType[x509.ConstraintViolationError](err); ok {
		return s.refuse(sent, issuer, "it has issued a certificate without being a CA", s.nextIssue())
	}
	return s.refuse(sent, c, "its signature is not that of the issuer it names", s.nextIssue())
}
