package tlspolicy

import (
	"crypto/tls"
	"crypto/x509"
	"time"

	"github.com/bedside-gateway/gatewayd/revocation"
	"github.com/bedside-gateway/gatewayd/tlsoverlay"
)

// stapled is the step of the revocation rule (B18): for every certificate of
// the chain but the root, a response that the platform stapled has to say that
// it is good. There is no other source and no way around it.
func (v *verifier) stapled(rules revocation.Rules, c Client) step {
	rules.MaxAge, rules.PathVerified = c.MaxAge, true // by paths, a moment before
	memory := c.Memory
	if memory == nil {
		memory = new(revocation.Memory)
	}
	return func(chain []*x509.Certificate, state tls.ConnectionState, now time.Time) error {
		staples, err := staplesOf(chain, state)
		if err != nil {
			return err
		}
		verdicts := memory.Judge(chain, staples, now, rules)
		if c.Judged != nil {
			c.Judged(verdicts)
		}
		return v.refuseBy(verdicts, chain, state)
	}
}

// staplesOf are the responses of a handshake by position in the verified chain.
// The peer sends its certificates in any order, with others among them, and a
// response belongs to the one that it came with.
func staplesOf(chain []*x509.Certificate, state tls.ConnectionState) ([][]byte, error) {
	sent, err := tlsoverlay.Staples(&state)
	if err != nil {
		return nil, err
	}
	staples := make([][]byte, len(chain)-1)
	for i := range staples {
		for j, c := range state.PeerCertificates[:min(len(sent), len(state.PeerCertificates))] {
			if len(sent[j]) > 0 && c.Equal(chain[i]) {
				staples[i] = sent[j]
				break
			}
		}
	}
	return staples, nil
}

// refuseBy is nil where every certificate of the chain but the root has a
// verdict, and each is good.
func (v *verifier) refuseBy(verdicts []revocation.Verdict, chain []*x509.Certificate, state tls.ConnectionState) error {
	if len(verdicts) != len(chain)-1 {
		return &RefusalError{Rule: v.revocationRule, Alert: alertBadStatus, Reason: "not every certificate of the chain was judged", Next: "report this"}
	}
	for _, verdict := range verdicts {
		if verdict.Good() {
			continue
		}
		r := v.refuse(state.PeerCertificates, chain[verdict.Position], verdict.Reason, verdict.Next)
		r.Rule, r.Err, r.Alert = v.revocationRule, verdict, alertBadStatus
		if verdict.Kind == revocation.Revoked {
			r.Alert = alertRevoked
		}
		return r
	}
	return nil
}
