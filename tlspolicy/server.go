package tlspolicy

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"time"

	"github.com/bedside-gateway/gatewayd/revocation"
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
	// Now is the clock; nil is the system's.
	Now func() time.Time
}

// Config is the policy as package tls takes it. It fails with a *RefusalError
// where a setting alone breaks a rule, and with tlsoverlay.ErrMissing in a
// binary without the overlay.
func (s Server) Config() (*tls.Config, error) { return nil, errors.New("not built") }
