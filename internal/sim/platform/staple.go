package platform

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"sync"
	"time"

	"github.com/bedside-gateway/gatewayd/internal/sim/pki"
	"github.com/bedside-gateway/gatewayd/internal/sim/responder"
	"github.com/bedside-gateway/gatewayd/revocation"
)

// A stapler makes the responses for the platform's own chains in process, and
// makes them anew at half their life.
type stapler struct {
	pki     *pki.PKI
	answers []responder.Answer // by position, the truth where there is none
	now     func() time.Time

	mu     sync.Mutex
	chains [][]*x509.Certificate // by identity, each as far as the root
	made   [][][]byte
	at     time.Time
}

// newStapler finds the chains of the identities in the PKI.
func newStapler(p *pki.PKI, identities []tls.Certificate, answers []responder.Answer, now func() time.Time) (*stapler, error) {
	s := &stapler{pki: p, answers: answers, now: now}
	for _, id := range identities {
		name, err := nameOf(p, id)
		if err != nil {
			return nil, err
		}
		chain, err := p.Chain(name)
		if err != nil {
			return nil, err
		}
		s.chains = append(s.chains, chain)
	}
	return s, s.make()
}

func nameOf(p *pki.PKI, id tls.Certificate) (string, error) {
	leaf, err := x509.ParseCertificate(id.Certificate[0])
	if err != nil {
		return "", err
	}
	for _, e := range p.Entries {
		if e.Certificate.Equal(leaf) {
			return e.Name, nil
		}
	}
	return "", fmt.Errorf("certificate %q is not of the PKI that is to staple for it", leaf.Subject)
}

func (s *stapler) make() error {
	s.made, s.at = nil, s.now()
	for _, chain := range s.chains {
		staples, err := responder.StaplesAt(s.pki, chain, s.answers, s.at, responder.DefaultLifetime)
		if err != nil {
			return err
		}
		s.made = append(s.made, staples)
	}
	return nil
}

// staples are those of now for an identity.
func (s *stapler) staples(i int) [][]byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	if age := s.now().Sub(s.at); age > responder.DefaultLifetime/2 || age < 0 {
		if err := s.make(); err != nil {
			return nil // a handshake without staples is refused, with the reason
		}
	}
	return s.made[i]
}

// byCRL judges devices by the CRLs of the PKI.
func byCRL(p *pki.PKI, now func() time.Time) (func(context.Context, []*x509.Certificate, [][]byte) []revocation.Verdict, error) {
	var lists []*x509.RevocationList
	for _, e := range p.Entries {
		if !e.IsCA() {
			continue
		}
		list, err := x509.ParseRevocationList(e.CRL)
		if err != nil {
			return nil, fmt.Errorf("CRL of %s: %w", e.Name, err)
		}
		lists = append(lists, list)
	}
	return func(_ context.Context, chain []*x509.Certificate, stapled [][]byte) []revocation.Verdict {
		evidence := revocation.Stapled(stapled)
		evidence.CRLs = lists
		return revocation.Judge(chain, evidence, now(), revocation.Rules{CRLs: true})
	}, nil
}

// unjudged takes every device for good, as a platform does that knows of no CRL.
func unjudged(_ context.Context, chain []*x509.Certificate, _ [][]byte) []revocation.Verdict {
	verdicts := make([]revocation.Verdict, len(chain)-1)
	for i := range verdicts {
		verdicts[i] = revocation.Verdict{Kind: revocation.Good, Position: i, Subject: chain[i]}
	}
	return verdicts
}
