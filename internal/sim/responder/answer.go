package responder

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// An Answer is how a question about a certificate, or about the list of a CA,
// is answered. Slow may carry its delay: "slow:3s".
type Answer string

// The answers. Those with a fault in the form say good, so that the fault
// alone is a reason to refuse them.
const (
	Auto    Answer = "auto"    // the truth: what the CA's CRL says; unknown where it issued none of that number
	Good    Answer = "good"    // on CRLs: fresh, and nothing is on it
	Revoked Answer = "revoked" // on CRLs: fresh, and everything is on it
	Unknown Answer = "unknown"
	None    Answer = "none" // Staples has no response; a server sends an empty body

	Stale        Answer = "stale"          // nextUpdate is past
	Future       Answer = "future"         // thisUpdate is in an hour
	Old          Answer = "old"            // it holds, and is thirty days old
	NoNextUpdate Answer = "no-next-update" // it does not say how long it holds

	WrongSigner        Answer = "wrong-signer"        // signed by another certificate of the same CA; on CRLs: by another CA
	Delegated          Answer = "delegated"           // the truth, by a responder with OCSPSigning and nocheck
	DelegatedUnchecked Answer = "delegated-unchecked" // without nocheck: a CRL must vouch for the responder
	DelegatedExpired   Answer = "delegated-expired"
	DelegatedNoEKU     Answer = "delegated-no-eku"
	SHA1               Answer = "sha1"          // signed with SHA-1
	BadSignature       Answer = "bad-signature" // one bit of the signature is wrong
	Mismatched         Answer = "mismatched"    // about another certificate; the list of another CA
	Several            Answer = "several"       // the truth, among answers about other certificates of the CA
	Delta              Answer = "delta"         // a delta CRL (RFC 5280, section 5.2.4)

	TryLater  Answer = "try-later" // OCSP's own error 3
	Slow      Answer = "slow"      // the truth, late
	Garbage   Answer = "garbage"   // of the right content type, and no DER
	Portal    Answer = "portal"    // the page of a captive portal, with status 200
	HTTP500   Answer = "http-500"
	Redirect  Answer = "redirect"  // to another host name of this server, where the answer is good
	Truncated Answer = "truncated" // half of what Content-Length promises, then the end
	Huge      Answer = "huge"      // good and signed, and HugeSize long
)

// HugeSize is the least length of a huge answer in bytes.
const HugeSize = 4 << 20

// DefaultDelay is that of a slow answer that names none.
const DefaultDelay = 30 * time.Second

var (
	everywhere = []Answer{Auto, Good, Revoked, None, Stale, Future, Old, WrongSigner, SHA1, BadSignature, Mismatched,
		Slow, Garbage, Portal, HTTP500, Redirect, Truncated, Huge}
	ocspAnswers = append(slices.Clip(everywhere), Unknown, NoNextUpdate, Delegated, DelegatedUnchecked, DelegatedExpired, DelegatedNoEKU, Several, TryLater)
	crlAnswers  = append(slices.Clip(everywhere), Delta)
)

// split takes the delay off a slow answer.
func (a Answer) split() (Answer, time.Duration, error) {
	text, given := strings.CutPrefix(string(a), string(Slow)+":")
	if !given {
		return a, DefaultDelay, nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 {
		return a, 0, fmt.Errorf("answer %q: behind slow: stands a duration such as 3s", a)
	}
	return Slow, d, nil
}

// check refuses what a server does not know.
func (a Answer) check(known []Answer) error {
	kind, _, err := a.split()
	if err != nil {
		return err
	}
	if !slices.Contains(known, kind) {
		return fmt.Errorf("there is no answer %q; there are %s", a, Help(known))
	}
	return nil
}

// OCSPAnswers are those that an OCSP responder gives.
func OCSPAnswers() []Answer { return slices.Clone(ocspAnswers) }

// CRLAnswers are those that a CRL server gives.
func CRLAnswers() []Answer { return slices.Clone(crlAnswers) }

// Help lists answers for people.
func Help(answers []Answer) string {
	words := make([]string, len(answers))
	for i, a := range answers {
		words[i] = string(a)
	}
	return strings.Join(words, ", ")
}

// A plan says who is answered how. The names and numbers in it are those of
// entries of the PKI.
type plan struct {
	all Answer
	one map[string]Answer // by entry name
}

func (p plan) of(name string) Answer {
	if a, ok := p.one[name]; ok {
		return a
	}
	return p.all
}

func (p plan) String() string {
	words := make([]string, 0, len(p.one)+1)
	for name, a := range p.one {
		words = append(words, name+"="+string(a))
	}
	slices.Sort(words)
	return strings.Join(append(words, string(p.all)), ",")
}
