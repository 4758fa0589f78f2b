package tlspolicy

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"time"
)

// A side is whom a verifier looks at.
type side struct {
	name           string // of the peer, in texts
	rule           string // of path validation
	versionRule    string
	revocationRule string
	purpose        string // of its certificate, in texts
	usage          x509.ExtKeyUsage
}

var (
	platformSide = side{"platform", "B17", "B13", "B18", "a TLS server", x509.ExtKeyUsageServerAuth}
	deviceSide   = side{"device", "A8", "A2", "A9", "a TLS client", x509.ExtKeyUsageClientAuth}
)

// A verifier judges what the peer presented.
type verifier struct {
	side
	host  string // of a platform
	roots *x509.CertPool
	clock clock
	steps []step
}

// A step judges a chain that path validation has built, leaf first and root
// last; nil is good. All have to agree on one chain.
type step func(chain []*x509.Certificate, state tls.ConnectionState, now time.Time) error

// A clock is the time, and what is known of it.
type clock struct {
	now   func() time.Time
	floor time.Time
}

func (c clock) time() time.Time {
	if c.now == nil {
		return time.Now()
	}
	return c.now()
}

const nextClock = "set the clock, or see why the time server does not answer"

// check refuses a time that cannot be right: everything would seem expired, or
// not valid yet, and the real reason would be hidden.
func (c clock) check(now time.Time, rule string) error {
	switch {
	case now.IsZero():
		return &RefusalError{Rule: rule, Alert: alertInternal, Next: nextClock, Reason: "the time is not known, so no certificate can be judged"}
	case now.Before(c.floor):
		return &RefusalError{Rule: rule, Alert: alertInternal, Next: nextClock, Reason: fmt.Sprintf("the gateway's clock shows %s, which is before this software was made (%s), so no certificate can be judged by it",
			now.UTC().Format(layout), c.floor.UTC().Format(layout))}
	}
	return nil
}

// connection is the tls.Config's VerifyConnection. It runs before the peer has
// proved that it has the key: refusals speak of what was presented.
func (v *verifier) connection(state tls.ConnectionState) error {
	now := v.clock.time()
	if err := v.session(state, now); err != nil {
		return err
	}
	chains, err := v.paths(state.PeerCertificates, now)
	if err != nil {
		return err
	}
	var refusal error = &RefusalError{Rule: v.rule, Alert: alertUnknownCA, Reason: "there is no path to an installed root", Next: v.nextChain()}
	for i, chain := range chains {
		err := v.judge(chain, state, now)
		if err == nil {
			return nil
		}
		if i == 0 {
			refusal = err
		}
	}
	return refusal
}

// session is what can be said before the certificates are looked at.
func (v *verifier) session(state tls.ConnectionState, now time.Time) error {
	if err := v.clock.check(now, v.rule); err != nil {
		return err
	}
	switch {
	case state.Version < tls.VersionTLS12:
		return &RefusalError{Rule: v.versionRule, Alert: alertProtocolVersion, Reason: "the " + v.name + " chose " + tls.VersionName(state.Version), Next: "have TLS 1.2 or higher enabled at the " + v.name}
	case state.DidResume:
		return &RefusalError{Rule: v.rule, Alert: alertHandshakeFailure, Reason: "the " + v.name + " resumed an earlier session and showed no certificate", Next: "report this: the gateway asked for no resumption"}
	case len(state.PeerCertificates) == 0:
		return &RefusalError{Rule: v.rule, Alert: alertBadCertificate, Reason: "the " + v.name + " showed no certificate", Next: "install one at the " + v.name}
	}
	return nil
}

func (v *verifier) judge(chain []*x509.Certificate, state tls.ConnectionState, now time.Time) error {
	if len(v.steps) == 0 {
		return errors.New("the policy has no rules")
	}
	for _, judge := range v.steps {
		if err := judge(chain, state, now); err != nil {
			return err
		}
	}
	return nil
}
