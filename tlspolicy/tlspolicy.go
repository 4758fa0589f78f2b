// Package tlspolicy says what a TLS session must satisfy, as a tls.Config.
//
// The policy is data, CMIIST. A Client applies it to a platform: Interface B of
// the CMI specification (B12 to B18). A Server applies it to devices: Interface
// A (A1 to A10). Neither has a switch that weakens a rule, the zero values
// refuse, and without the overlay of package tlsoverlay there is no
// configuration at all. A refusal names the rule, the certificate, the reason
// and the next step, and carries the alert that tells the peer. Packages
// northbound and southbound use it; certificates and keys come from package
// keystore, verdicts from package revocation.
package tlspolicy

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"strings"
	"time"

	"github.com/bedside-gateway/gatewayd/revocation"
	"github.com/bedside-gateway/gatewayd/tlsoverlay"
)

// A Client is what the gateway holds a platform to. The first three are needed.
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
	// Floor is a time that is past for certain, such as that of the build: a
	// clock before it is wrong, and nothing is judged by it.
	Floor time.Time
	// Memory remembers responses that were verified; nil is one for this
	// Config alone.
	Memory *revocation.Memory
	// MaxAge refuses responses that are older (B18 allows that); 0 is no limit
	// but their own.
	MaxAge time.Duration
	// Judged is called in each handshake that got so far, with the verdicts on
	// the platform's chain. It must not wait.
	Judged func([]revocation.Verdict)
}

// A RefusalError is a session or a setting that a rule refuses.
type RefusalError struct {
	Rule        string // row of the conformance table, such as B17
	Certificate string // position and subject, "" where it is not about one
	Reason      string
	Next        string // what the operator can do
	Err         error  // the cause, where there is one beside Reason
	// Alert is what the peer is told; 0 is bad_certificate, or nothing where
	// there is no session.
	Alert tls.AlertError
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

// Unwrap gives the cause, and the alert to package tls.
func (e *RefusalError) Unwrap() []error {
	var all []error
	if e.Err != nil {
		all = append(all, e.Err)
	}
	if e.Alert != 0 {
		all = append(all, e.Alert)
	}
	return all
}

// Alerts (RFC 8446, section 6; RFC 6066, section 8).
const (
	alertHandshakeFailure tls.AlertError = 40
	alertBadCertificate   tls.AlertError = 42
	alertUnsupported      tls.AlertError = 43
	alertRevoked          tls.AlertError = 44
	alertExpired          tls.AlertError = 45
	alertUnknown          tls.AlertError = 46
	alertUnknownCA        tls.AlertError = 48
	alertAccessDenied     tls.AlertError = 49
	alertProtocolVersion  tls.AlertError = 70
	alertInternal         tls.AlertError = 80
	alertBadStatus        tls.AlertError = 113
)

// Config is the policy as package tls takes it. It fails with a *RefusalError
// where a setting alone breaks a rule, and with tlsoverlay.ErrMissing in a
// binary without the overlay.
func (c Client) Config() (*tls.Config, error) {
	host, err := hostName(c.ServerName)
	if err != nil {
		return nil, err
	}
	if c.Roots == nil || c.Roots.Equal(x509.NewCertPool()) {
		return nil, &RefusalError{Rule: "B15", Reason: "no root certificate of the platform is installed", Next: "name the file with the platform's roots in the configuration"}
	}
	identity, err := clientUse.check(c.Identity)
	if err != nil {
		return nil, err
	}
	policy := CMIIST()
	config, err := policy.config()
	if err != nil {
		return nil, err
	}
	if err := tlsoverlay.RequestStaples(config); err != nil {
		return nil, err
	}
	v := &verifier{side: platformSide, host: host, roots: c.Roots, clock: clock{c.Now, c.Floor}}
	v.steps = []step{v.named, v.strong, v.stapled(policy.Revocation, c)}
	config.ServerName, config.Time = host, v.clock.time
	// Always ours: of several, crypto/tls would pick by the CA names that the
	// platform lists, and send none at all where the list is incomplete.
	config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &identity, nil }
	// The stock verification refuses a name that is in the subject only, which
	// B17 allows: VerifyConnection does all of it in its place.
	config.InsecureSkipVerify, config.VerifyConnection = true, v.connection
	return config, nil
}
