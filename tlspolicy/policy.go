package tlspolicy

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/bedside-gateway/gatewayd/revocation"
	"github.com/bedside-gateway/gatewayd/tlsoverlay"
)

// A Policy is what a specification asks of a TLS session, as data.
type Policy struct {
	Name                   string
	MinVersion, MaxVersion uint16
	// Suites are those of TLS 1.2, in the order in which they are offered and
	// chosen. The suites of TLS 1.3 are all of authenticated encryption, and
	// package tls has no choice among them.
	Suites []uint16
	// Curves are what is offered for ECDHE. Package tls orders them itself.
	Curves []tls.CurveID
	// Groups are those of RFC 7919 for DHE, in order.
	Groups []uint16
	// Revocation is how responses are judged: every certificate but the root
	// has to have a good one.
	Revocation revocation.Rules
}

// CMIIST is the policy cmi-ist: section 6 of CMI-SP-CDI-IHE-PCD-IST.
func CMIIST() Policy {
	return Policy{
		Name:       "cmi-ist",
		MinVersion: tls.VersionTLS12, MaxVersion: tls.VersionTLS13, // A2, B13
		// The order of A3, B14. The second is optional there, and has to stand
		// before the first of the CBC ones: here before DHE, which costs both
		// sides ten times as much.
		Suites: []uint16{
			tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
			tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
			tlsoverlay.DHE_RSA_AES_256_GCM_SHA384,
			tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256,
			tlsoverlay.DHE_RSA_AES_128_CBC_SHA256,
			tls.TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA,
			tlsoverlay.DHE_RSA_AES_256_CBC_SHA256,
		},
		// The NIST curves, and no others: package tls would put those first
		// whatever the list says, and every peer has to know these (6.1, 6.2).
		Curves:     []tls.CurveID{tls.CurveP256, tls.CurveP384, tls.CurveP521},
		Groups:     []uint16{tlsoverlay.FFDHE3072, tlsoverlay.FFDHE2048},
		Revocation: revocation.Rules{Skew: 5 * time.Minute},
	}
}

// config is the part of a tls.Config that is the same on both sides. It fails
// in a binary without the overlay.
func (p Policy) config() (*tls.Config, error) {
	c := &tls.Config{
		MinVersion: p.MinVersion, MaxVersion: p.MaxVersion, CurvePreferences: slices.Clone(p.Curves),
		// No resumption: each connection verifies everything anew. MLLP
		// connections live long, so nothing is lost.
		SessionTicketsDisabled: true,
		Renegotiation:          tls.RenegotiateNever,
		// A message in as few records as it can be.
		DynamicRecordSizingDisabled: true,
	}
	if err := tlsoverlay.SetCipherSuites(c, p.Suites); err != nil {
		return nil, err
	}
	if err := tlsoverlay.SetGroups(c, p.Groups); err != nil {
		return nil, err
	}
	return c, nil
}

// IsCBC reports whether a suite is one of the CBC mode. The specification asks
// for them; package tls has no full protection against Lucky Thirteen for those
// with SHA-256, so a session that uses one is worth a warning.
func IsCBC(suite uint16) bool { return strings.Contains(tls.CipherSuiteName(suite), "_CBC_") }

var errEnough = errors.New("seen enough")

// RemovedByFIPS are the names of the policy's suites that this process does not
// offer: those that its FIPS 140-3 mode removed. It looks at a ClientHello of
// its own, so it says what is and not what ought to be.
func RemovedByFIPS() ([]string, error) {
	p := CMIIST()
	c, err := p.config()
	if err != nil {
		return nil, err
	}
	c.InsecureSkipVerify = true // the peer is the other end of a pipe, and nothing is sent to it
	offered, err := hello(c)
	if err != nil {
		return nil, err
	}
	var removed []string
	for _, id := range p.Suites {
		if !slices.Contains(offered, id) {
			removed = append(removed, tls.CipherSuiteName(id))
		}
	}
	return removed, nil
}

// hello is what a client with a configuration offers.
func hello(c *tls.Config) (suites []uint16, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	near, far := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		// It fails: the far end hangs up once it has the ClientHello.
		_ = tls.Client(near, c).HandshakeContext(ctx)
		near.Close()
	}()
	look := &tls.Config{GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		suites = slices.Clone(h.CipherSuites)
		return nil, errEnough
	}}
	if err = tls.Server(far, look).HandshakeContext(ctx); errors.Is(err, errEnough) {
		err = nil
	}
	far.Close()
	<-done
	return suites, err
}
