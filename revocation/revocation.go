// Package revocation says of each certificate of a chain whether it is good
// now, and if it cannot be called good, why not and what to do about it.
//
// Judge is a pure function of the chain, the responses and CRLs that are at
// hand, and the time: it reads no clock, no file and no network. Fetching and
// caching are in Fetcher, beside it. Package tlspolicy calls Judge inside the
// handshake: for the platform's chain with the stapled responses alone (B18),
// for a device's chain with fetched responses and CRLs as well (A9).
//
// It refuses by default: the zero Verdict is a refusal, and whatever is
// missing, malformed, unsigned, stale or merely odd is one too. The checks are
// those of RFC 6960 and RFC 5280, cited at the lines that make them.
package revocation

import (
	"bytes"
	"cmp"
	"crypto/x509"
	"errors"
	"fmt"
	"time"
)

// A Kind is the kind of a verdict. The zero value refuses.
type Kind uint8

// The kinds. Only Good lets a certificate pass.
const (
	Unjudged     Kind = iota
	Good              // a fresh, authentic source says so
	Revoked           // a fresh, authentic source says so
	Unknown           // the responder does not know the certificate
	Missing           // nothing was there to judge by
	Malformed         // not what RFC 6960 or RFC 5280 describe
	Unsuccessful      // the responder answered with an error
	Mismatched        // about another certificate or another issuer
	Unauthorised      // signed by somebody who may not speak for the issuer
	BadSignature      // the signature is wrong
	Weak              // signed with an algorithm that is not accepted
	Unsupported       // has a critical extension or a form that is not understood
	Stale             // nextUpdate is past, or not given
	Future            // thisUpdate or producedAt is not yet
	TooOld            // older than the policy allows
	BadChain          // the chain itself is not one
	kinds
)

// String is the kind in small letters, as in metrics and audit events.
func (k Kind) String() string {
	return [kinds]string{"unjudged", "good", "revoked", "unknown", "missing", "malformed", "unsuccessful", "mismatched",
		"unauthorised", "bad signature", "weak", "unsupported", "stale", "future", "too old", "bad chain"}[k]
}

// A Verdict is what is to be thought of one certificate.
type Verdict struct {
	Kind     Kind
	Position int               // in the chain, the leaf is 0
	Subject  *x509.Certificate // the certificate judged
	Source   string            // "stapled response", "fetched response", "CRL"
	Reason   string            // why, for an operator
	Next     string            // what to do, for an operator

	// Of the response or CRL that decided, where there is one.
	ThisUpdate, NextUpdate, RevokedAt time.Time
	signerNotAfter                    time.Time
}

// Good reports whether the certificate may be used.
func (v Verdict) Good() bool { return v.Kind == Good }

// Error is the verdict as a refusal in one line. It makes every verdict an
// error; callers return those that are not Good.
func (v Verdict) Error() string {
	name := "certificate"
	if v.Subject != nil {
		name = fmt.Sprintf("certificate %q", cmp.Or(v.Subject.Subject.CommonName, v.Subject.Subject.String()))
	}
	s := fmt.Sprintf("%s (position %d in the chain): %s", name, v.Position, cmp.Or(v.Reason, "it was not judged"))
	if v.Next != "" {
		s += "; " + v.Next
	}
	return s
}

// Rules are the policy of a judgement. The zero value is strict and usable.
type Rules struct {
	// Skew is how far thisUpdate and producedAt may lie in the future, for the
	// sake of clocks that differ; 0 is 5 minutes. nextUpdate has no tolerance:
	// an expired response is refused (B18).
	Skew time.Duration
	// MaxAge refuses what is older, counted from thisUpdate; 0 is no limit but nextUpdate.
	MaxAge time.Duration
	// CRLs lets a CRL decide where no response does (A9: the backup).
	CRLs bool
	// PathVerified says that the caller has the chain from path validation
	// itself, in the same handshake: the signatures on its certificates are not
	// checked a second time, only that each names the next as its issuer.
	PathVerified bool
}

func (r Rules) skew() time.Duration { return cmp.Or(r.Skew, 5*time.Minute) }

// A Response is an OCSP response in DER, and where it came from.
type Response struct {
	DER    []byte
	Source string // "stapled response", "fetched response"; empty is the first
}

// Evidence is what there is to judge by.
type Evidence struct {
	// Responses by position in the chain. A position may have several: they
	// are tried in order, the first that is Good or Revoked decides.
	Responses [][]Response
	// CRLs in DER, of any issuer; those of the issuer in question are used.
	CRLs []*x509.RevocationList
}

// Stapled is the evidence of a handshake: one response or none for each position.
func Stapled(staples [][]byte) Evidence {
	e := Evidence{Responses: make([][]Response, len(staples))}
	for i, s := range staples {
		if len(s) > 0 {
			e.Responses[i] = []Response{{DER: s}}
		}
	}
	return e
}

// Judge gives a verdict for every certificate of the chain but the last, the
// root, which nobody can vouch for. The chain is ordered from the leaf and was
// verified before (RFC 5280, section 6.1): Judge checks only that each
// certificate was issued by the next.
func Judge(chain []*x509.Certificate, evidence Evidence, now time.Time, rules Rules) []Verdict {
	if len(chain) < 2 {
		v := Verdict{Kind: BadChain, Reason: "the chain has no issuer for it", Next: "the peer must send its issuing CA certificates"}
		if len(chain) == 1 {
			v.Subject = chain[0]
		}
		return []Verdict{v}
	}
	verdicts := make([]Verdict, len(chain)-1)
	for i := range verdicts {
		verdicts[i] = judgeOne(chain[i], chain[i+1], evidence, i, now, rules)
	}
	return verdicts
}

// Refusal is the first verdict that is not Good, as an error; nil if all are
// good. No verdict at all is a refusal.
func Refusal(verdicts []Verdict) error {
	for _, v := range verdicts {
		if !v.Good() {
			return v
		}
	}
	if len(verdicts) == 0 {
		return Verdict{}
	}
	return nil
}

func issuedBy(cert, issuer *x509.Certificate, rules Rules) error {
	if !rules.PathVerified {
		return cert.CheckSignatureFrom(issuer)
	}
	if !bytes.Equal(cert.RawIssuer, issuer.RawSubject) {
		return errors.New("it names another issuer")
	}
	return nil
}

func judgeOne(cert, issuer *x509.Certificate, evidence Evidence, position int, now time.Time, rules Rules) Verdict {
	decide := func(v Verdict) Verdict {
		v.Position, v.Subject = position, cert
		return v
	}
	if err := issuedBy(cert, issuer, rules); err != nil {
		return decide(Verdict{Kind: BadChain, Reason: "it was not issued by the next certificate of the chain: " + err.Error(),
			Next: "the peer must send its chain in order"})
	}
	first := Verdict{Kind: Missing, Reason: "no response for it was stapled",
		Next: "the platform must staple an OCSP response for every certificate of its chain (RFC 6961, or TLS 1.3)"}
	if position < len(evidence.Responses) {
		for i, r := range evidence.Responses[position] {
			v := judgeResponse(cert, issuer, r, evidence.CRLs, now, rules)
			if v.Kind == Good || v.Kind == Revoked {
				return decide(v)
			}
			if i == 0 {
				first = v
			}
		}
	}
	if !rules.CRLs {
		return decide(first)
	}
	if v, ok := judgeByCRLs(cert, issuer, evidence.CRLs, now, rules); ok && (v.Kind == Good || v.Kind == Revoked || first.Kind == Missing) {
		return decide(v)
	}
	return decide(first)
}
