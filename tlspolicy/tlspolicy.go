// Package tlspolicy says what a TLS session must satisfy, as a tls.Config.
//
// The policy here is that of the gateway as a client of the platform, Interface
// B of the CMI specification (B12 to B17). It has no switch that weakens a rule,
// and the zero value refuses. A refusal names the rule, the certificate, the
// reason and the next step. Package northbound dials with it; the certificate
// and key come from package keystore.
package tlspolicy

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"time"
)

// A Client is what the gateway holds a platform to. All but Now is needed.
type Client struct {
	// ServerName is the host of the platform's URL: what its certificate has
	// to name (B17). Where another address is dialled, this stays.
	ServerName string
	// Roots are the trust anchors (B15). The system's roots are never used.
	Roots *x509.CertPool
	// Identity is our certificate, its issuing CA behind it (B16). The key may
	// be any crypto.Signer.
	Identity tls.Certificate
	// Now is the time at which certificates are judged; nil is the system's
	// clock. The zero time means that it is not known, and refuses.
	Now func() time.Time
}

// A RefusalError is a session or a setting that a rule refuses.
type RefusalError struct {
	Rule        string // row of the conformance table, such as B17
	Certificate string // position and subject, "" where it is not about one
	Reason      string
	Next        string // what the operator can do
	Err         error  // the cause, where there is one beside Reason
}

func (e *RefusalError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "refused by rule %s: ", e.Rule)
	if e.Certificate != "" {
		fmt.Fprintf(&b, "%s: ", e.Certificate)
	}
	fmt.Fprintf(&b, "%s; %s", e.Reason, e.Next)
	return b.String()
}

func (e *RefusalError) Unwrap() error { return e.Err }

// suites are those of TLS 1.2 (B14), authenticated encryption only: every
// platform that follows A3 has one of the first two. The specification's CBC
// suites are left out for want of a Lucky Thirteen protection in crypto/tls.
// The suites of TLS 1.3 are all of this kind and are not configurable.
var suites = [...]uint16{
	tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
	tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
	tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
	tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
}

// Config is the policy as package tls takes it. It fails with a *RefusalError
// where a setting alone breaks a rule.
func (c Client) Config() (*tls.Config, error) {
	if c.Now == nil {
		c.Now = time.Now
	}
	host, err := hostName(c.ServerName)
	if err != nil {
		return nil, err
	}
	if c.Roots == nil || c.Roots.Equal(x509.NewCertPool()) {
		return nil, &RefusalError{Rule: "B15", Reason: "no root certificate of the platform is installed", Next: "name the file with the platform's roots in the configuration"}
	}
	identity, err := checkIdentity(c.Identity)
	if err != nil {
		return nil, err
	}
	v := &verifier{host: host, roots: c.Roots, now: c.Now}
	v.steps = []step{v.named, strong}
	return &tls.Config{
		ServerName:   host,
		MinVersion:   tls.VersionTLS12, // B13
		CipherSuites: suites[:],
		Time:         c.Now,
		// Always ours: of several, crypto/tls would pick by the CA names that
		// the platform lists, and send none at all where the list is incomplete.
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &identity, nil },
		// The stock verification refuses a name that is in the subject only,
		// which B17 allows: VerifyConnection does all of it in its place.
		InsecureSkipVerify: true,
		VerifyConnection:   v.connection,
		// No resumption: each connection verifies everything anew. MLLP
		// connections live long, so nothing is lost.
		SessionTicketsDisabled: true,
		Renegotiation:          tls.RenegotiateNever,
		// A message in as few records as it can be.
		DynamicRecordSizingDisabled: true,
	}, nil
}

// A verifier judges what the platform presented.
type verifier struct {
	host  string
	roots *x509.CertPool
	now   func() time.Time
	steps []step
}

// A step judges a chain that path validation has built, leaf first and root
// last; nil is good. All have to agree on one chain. The revocation rule (B18)
// is to be one of them: it finds the responses in the state.
type step func(chain []*x509.Certificate, state tls.ConnectionState, now time.Time) error

// connection is the tls.Config's VerifyConnection. It runs before the peer has
// proved that it has the key: refusals speak of what was presented.
func (v *verifier) connection(state tls.ConnectionState) error {
	now := v.now()
	switch {
	case now.IsZero():
		return &RefusalError{Rule: "B17", Reason: "the time is not known, so no certificate can be judged", Next: "set the clock, or see why the time server does not answer"}
	case state.Version < tls.VersionTLS12:
		return &RefusalError{Rule: "B13", Reason: "the platform chose " + tls.VersionName(state.Version), Next: "have TLS 1.2 or higher enabled at the platform"}
	case state.DidResume:
		return &RefusalError{Rule: "B17", Reason: "the platform resumed an earlier session and showed no certificate", Next: "report this: the gateway asked for no resumption"}
	case len(state.PeerCertificates) == 0:
		return &RefusalError{Rule: "B17", Reason: "the platform showed no certificate", Next: "install one at the platform"}
	}
	chains, err := v.paths(state.PeerCertificates, now)
	if err != nil {
		return err
	}
	var refusal error = &RefusalError{Rule: "B17", Reason: "there is no path to an installed root", Next: nextChain}
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
