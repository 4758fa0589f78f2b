// Package responder is the OCSP responder and the CRL server of the simulated
// hospital. It speaks for the CAs of a pki.PKI, and tells the truth or, for one
// certificate or for all, whatever fault it is told to: a peer that checks
// revocation has to be shown each of them.
//
// It signs anything and protects nothing. The firmware does not import it;
// gatewaysim and tests do. Staples makes the same responses without a server.
package responder

import (
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/bedside-gateway/gatewayd/internal/sim/pki"
)

// DefaultLifetime is from thisUpdate to nextUpdate.
const DefaultLifetime = 24 * time.Hour

// Options are what a server needs. Only PKI has no default.
type Options struct {
	PKI *pki.PKI
	// Issued gives the certificate of a serial number that a CA of the PKI issued
	// after the PKI was made, nil where there is none. Nil: there are no such.
	Issued   func(serial *big.Int) (*x509.Certificate, error)
	Answers  string           // a script, see Server.Script; "" is auto
	Lifetime time.Duration    // of responses and CRLs
	Now      func() time.Time // nil is the system's clock
	Events   func(Event)      // is called for each request, from several goroutines
}

// An Event is a request and how it was answered.
type Event struct {
	Method string
	Names  []string // of the certificates or the CA asked about; a number where it is no entry
	Answer Answer   // "" where the request was not understood
	Err    error    // what was wrong with the request
}

// A Server answers over HTTP. New and NewCRL make it; it is safe for concurrent use.
type Server struct {
	pki      *pki.PKI
	cas      []*authority
	issued   func(*big.Int) (*x509.Certificate, error)
	lifetime time.Duration
	now      func() time.Time
	events   func(Event)
	answers  []Answer // that it knows
	lists    bool     // it serves lists
	handle   http.HandlerFunc

	mu    sync.Mutex
	plan  plan
	state State
}

// State is what a server says of itself.
type State struct {
	Answers  string         `json:"answers"`  // the script in force
	Requests int            `json:"requests"` // all of them
	Refused  int            `json:"refused"`  // those that were not understood
	Asked    map[string]int `json:"asked"`    // by certificate, or by CA
}

// New is an OCSP responder (RFC 6960) for every CA of the PKI, by GET and POST
// under any path. A nonce is ignored, as most public responders do.
func New(o Options) (*Server, error) {
	s, err := newServer(o, ocspAnswers, false)
	if err == nil {
		s.handle = s.ocsp
	}
	return s, err
}

// NewCRL serves the CRL of each CA by its name: /ecc-issuing or
// /anything/ecc-issuing.crl.
func NewCRL(o Options) (*Server, error) {
	s, err := newServer(o, crlAnswers, true)
	if err == nil {
		s.handle = s.crl
	}
	return s, err
}

func newServer(o Options, answers []Answer, lists bool) (*Server, error) {
	if o.PKI == nil {
		return nil, errors.New("a responder needs a PKI")
	}
	if o.Lifetime == 0 {
		o.Lifetime = DefaultLifetime
	}
	if o.Lifetime < time.Second {
		return nil, fmt.Errorf("lifetime %v: it is at least a second, the unit of OCSP and CRLs", o.Lifetime)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Events == nil {
		o.Events = func(Event) {}
	}
	if o.Issued == nil {
		o.Issued = func(*big.Int) (*x509.Certificate, error) { return nil, nil }
	}
	s := &Server{pki: o.PKI, issued: o.Issued, lifetime: o.Lifetime, now: o.Now, events: o.Events, answers: answers, lists: lists,
		plan: plan{all: Auto}, state: State{Asked: map[string]int{}}}
	for _, e := range o.PKI.Entries {
		if !e.IsCA() {
			continue
		}
		ca, err := newAuthority(e, o.PKI)
		if err != nil {
			return nil, err
		}
		s.cas = append(s.cas, ca)
	}
	return s, s.Script(o.Answers)
}

// Script replaces all answers by those of a text, separated by commas: an
// answer for all, and WHO=ANSWER for one, where WHO is the name of an entry of
// the PKI or a serial number in hexadecimal. On a CRL server WHO is a CA, whose
// list it is, or another certificate, which is on the list of its CA where it is
// revoked, and off it where it is good.
//
//	auto    platform=revoked,ecc-issuing=stale    slow:3s,platform=good
func (s *Server) Script(text string) error {
	p := plan{all: Auto, one: map[string]Answer{}}
	for word := range strings.SplitSeq(text, ",") {
		word = strings.TrimSpace(word)
		who, answer, one := strings.Cut(word, "=")
		if !one {
			who, answer = "", word
		}
		if word == "" {
			continue
		}
		if err := s.put(&p, who, Answer(answer)); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.plan = p
	return nil
}

// Set changes the answer for one, or for all that have none of their own where
// who is empty.
func (s *Server) Set(who string, a Answer) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.put(&s.plan, who, a)
}

func (s *Server) put(p *plan, who string, a Answer) error {
	if err := a.check(s.answers); err != nil {
		return err
	}
	if who == "" {
		p.all = a
		return nil
	}
	name, isCA, err := s.find(who)
	if err != nil {
		return err
	}
	if s.lists && !isCA && a != Revoked && a != Good {
		return fmt.Errorf("answer %s=%s: %s is no CA, and on a list it is revoked or good", who, a, who)
	}
	if p.one == nil {
		p.one = map[string]Answer{}
	}
	p.one[name] = a
	return nil
}

// find takes a name or a serial number. The name of what was issued after the
// PKI was made is its serial number.
func (s *Server) find(who string) (name string, isCA bool, err error) {
	n, ok := later(who)
	if ok {
		for _, e := range s.pki.Entries {
			if e.Certificate.SerialNumber.Cmp(n) == 0 {
				return e.Name, e.IsCA(), nil
			}
		}
	}
	e, err := s.pki.Find(who)
	if err == nil {
		return e.Name, e.IsCA(), nil
	}
	if !ok || n.Sign() <= 0 {
		return "", false, err
	}
	c, failed := s.issued(n)
	if c == nil || failed != nil {
		return "", false, errors.Join(err, failed)
	}
	return n.Text(16), false, nil
}

// knows reports whether the CA issued a certificate of that serial number, with
// the PKI or later.
func (s *Server) knows(ca *authority, serial *big.Int) (bool, error) {
	if ca.entry(serial) != nil {
		return true, nil
	}
	if serial.Sign() <= 0 {
		return false, nil
	}
	c, err := s.issued(serial)
	return c != nil && err == nil && c.SerialNumber.Cmp(serial) == 0 && c.CheckSignatureFrom(ca.Certificate) == nil, err
}

// State is the state of now.
func (s *Server) State() State {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.state
	now.Answers = s.plan.String()
	now.Asked = maps.Clone(s.state.Asked)
	return now
}

// ServeHTTP answers a request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.handle(w, r) }

// planned are the answers about those names. The request is counted before it
// is answered, so that whoever has the answer finds it in the State.
func (s *Server) planned(r *http.Request, names ...string) []Answer {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state.Requests++
	answers := make([]Answer, len(names))
	for i, name := range names {
		s.state.Asked[name]++
		answers[i] = s.plan.of(name)
		if r.URL.Query().Has(followed) {
			answers[i] = Good
		}
	}
	return answers
}

func (s *Server) misunderstood() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state.Requests++
	s.state.Refused++
}

// An authority is a CA for which the server speaks.
type authority struct {
	*pki.Entry
	issued    []*pki.Entry // by it, but not itself
	revoked   map[string]x509.RevocationListEntry
	delegates map[Answer]*pki.Entry
	names     map[crypto.Hash][2]string // hashes of name and key, as in CertID
}

func newAuthority(e *pki.Entry, p *pki.PKI) (*authority, error) {
	ca := &authority{Entry: e, revoked: map[string]x509.RevocationListEntry{}, delegates: map[Answer]*pki.Entry{}}
	list, err := x509.ParseRevocationList(e.CRL)
	if err != nil {
		return nil, fmt.Errorf("CRL of %s: %w", e.Name, err)
	}
	for _, r := range list.RevokedCertificateEntries {
		ca.revoked[r.SerialNumber.String()] = r
	}
	for _, other := range p.Entries {
		if other.IssuedBy() != e || other == e {
			continue
		}
		ca.issued = append(ca.issued, other)
		if other.Role != pki.Responder {
			continue
		}
		for _, a := range []Answer{Delegated, DelegatedUnchecked, DelegatedExpired, DelegatedNoEKU} {
			if strings.HasSuffix(other.Name, "responder"+strings.TrimPrefix(string(a), string(Delegated))) {
				ca.delegates[a] = other
			}
		}
	}
	ca.names, err = issuerHashes(e.Certificate)
	return ca, err
}

// entry is what has the serial number, nil where the CA issued none of it.
func (ca *authority) entry(serial *big.Int) *pki.Entry {
	for _, e := range ca.issued {
		if e.Certificate.SerialNumber.Cmp(serial) == 0 {
			return e
		}
	}
	return nil
}

// sibling is another certificate of the same CA, a good leaf where there is
// one: it can sign, and may not.
func (ca *authority) sibling(serial *big.Int) *pki.Entry {
	var found *pki.Entry
	for _, e := range ca.issued {
		if e.Role == pki.Responder || e.Certificate.SerialNumber.Cmp(serial) == 0 {
			continue
		}
		if !e.IsCA() && e.Verdict == "good" {
			return e
		}
		if found == nil {
			found = e
		}
	}
	return found
}
