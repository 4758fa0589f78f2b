package tlspolicy

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"slices"
	"time"

	"github.com/bedside-gateway/gatewayd/revocation"
	"github.com/bedside-gateway/gatewayd/tlsoverlay"
)

// A Server is what the gateway, or a simulated platform, holds devices to on
// Interface A, and what it shows them. Versions and what is marked as optional
// may be left out; the rest is needed.
type Server struct {
	// Identities are our certificates, each with its issuing CA behind it (A4,
	// A7): an ECC and an RSA one (A5). The suite decides which is used; where
	// one was left out, its suites are not chosen.
	Identities []tls.Certificate
	// Roots are the trust anchors for devices, ECC and RSA (A6).
	Roots *x509.CertPool
	// Authorised says whether the device of this subject common name may
	// connect (A8).
	Authorised func(commonName string) bool
	// Judge gives the verdicts on a verified chain, the root being its last
	// (A9). stapled are the responses that the device sent, by position in the
	// chain. The context is that of the handshake.
	Judge func(ctx context.Context, chain []*x509.Certificate, stapled [][]byte) []revocation.Verdict
	// Staples are the responses of now for Identities[i], by position (A10).
	// Nil staples nothing. It is called in each handshake and must not wait.
	Staples func(i int) [][]byte
	// LeafOnly13 staples for the leaf alone in TLS 1.3, optional: some clients
	// fail when they get more than one response.
	LeafOnly13 bool
	// MinVersion and MaxVersion are of TLS (A2); 0 is the policy's least and highest.
	MinVersion, MaxVersion uint16
	// Now is the clock, and Floor a time that is past for certain, as in Client.
	Now   func() time.Time
	Floor time.Time
}

// Config is the policy as package tls takes it. It fails with a *RefusalError
// where a setting alone breaks a rule, and with tlsoverlay.ErrMissing in a
// binary without the overlay.
func (s Server) Config() (*tls.Config, error) {
	identities, err := s.check()
	if err != nil {
		return nil, err
	}
	config, err := CMIIST().config()
	if err != nil {
		return nil, err
	}
	config.MinVersion, config.MaxVersion = cmp.Or(s.MinVersion, config.MinVersion), cmp.Or(s.MaxVersion, config.MaxVersion)
	if config.MinVersion < tls.VersionTLS12 || config.MaxVersion < config.MinVersion {
		return nil, &RefusalError{Rule: "A2", Reason: fmt.Sprintf("TLS from version %s to %s is configured", tls.VersionName(config.MinVersion), tls.VersionName(config.MaxVersion)), Next: "configure 1.2, 1.3, or both"}
	}
	v := &verifier{side: deviceSide, roots: s.Roots, clock: clock{s.Now, s.Floor}}
	config.Certificates, config.Time = identities, v.clock.time
	// The roots are named to the device, so that it knows which certificate to
	// show; what it shows is judged by VerifyConnection, which says why.
	config.ClientAuth, config.ClientCAs = tls.RequireAnyClientCert, s.Roots
	config.VerifyConnection = func(tls.ConnectionState) error {
		return &RefusalError{Rule: "A8", Alert: alertInternal, Reason: "the handshake was not prepared", Next: "report this"}
	}
	config.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		return s.prepare(config, v, hello)
	}
	return config, nil
}

// prepare is the configuration of one handshake: with the staples of now, and
// with a judge whose context ends with the handshake. It has to be a clone, or
// what the overlay keeps in it would be lost.
func (s Server) prepare(config *tls.Config, v *verifier, hello *tls.ClientHelloInfo) (*tls.Config, error) {
	one, judge := config.Clone(), *v
	judge.steps = []step{judge.authorised(s.Authorised), judge.strong, judge.unrevoked(hello.Context(), s.Judge)}
	one.VerifyConnection = judge.connection
	one.Certificates = slices.Clone(config.Certificates)
	if s.Staples == nil {
		return one, nil
	}
	leafOnly := s.LeafOnly13 && config.MaxVersion >= tls.VersionTLS13 && slices.Contains(hello.SupportedVersions, tls.VersionTLS13)
	for i := range one.Certificates {
		staples := s.Staples(i)
		if leafOnly && len(staples) > 1 {
			staples = staples[:1]
		}
		if err := tlsoverlay.SetStaples(&one.Certificates[i], staples); err != nil {
			return nil, err
		}
	}
	return one, nil
}

// check holds the settings to the rules.
func (s Server) check() ([]tls.Certificate, error) {
	missing := func(rule, reason, next string) error {
		return &RefusalError{Rule: rule, Reason: reason, Next: next}
	}
	switch {
	case len(s.Identities) == 0:
		return nil, missing("A5", "the server has no certificate and key", "name the files in the configuration")
	case s.Roots == nil || s.Roots.Equal(x509.NewCertPool()):
		return nil, missing("A6", "no root certificate of devices is installed", "name the file with the devices' roots in the configuration")
	case s.Authorised == nil:
		return nil, missing("A8", "nothing says which devices are authorised", "list their identifiers in the configuration")
	case s.Judge == nil:
		return nil, missing("A9", "nothing judges whether a device's certificate is revoked", "report this")
	}
	identities := make([]tls.Certificate, len(s.Identities))
	for i, id := range s.Identities {
		var err error
		if identities[i], err = serverUse.check(id); err != nil {
			return nil, err
		}
	}
	return identities, nil
}

// authorised is the step of the device's name (A8).
func (v *verifier) authorised(is func(string) bool) step {
	return func(chain []*x509.Certificate, state tls.ConnectionState, _ time.Time) error {
		name := chain[0].Subject.CommonName
		if is(name) {
			return nil
		}
		r := v.refuse(state.PeerCertificates, chain[0], fmt.Sprintf("the device %s is not authorised here", subject(name)), "enter it in the configuration if it is a device of this place")
		r.Alert = alertAccessDenied
		return r
	}
}

// unrevoked is the step of the revocation rule (A9).
func (v *verifier) unrevoked(ctx context.Context, judge func(context.Context, []*x509.Certificate, [][]byte) []revocation.Verdict) step {
	return func(chain []*x509.Certificate, state tls.ConnectionState, _ time.Time) error {
		staples, err := staplesOf(chain, state)
		if err != nil {
			return err
		}
		return v.refuseBy(judge(ctx, chain, staples), chain, state)
	}
}
