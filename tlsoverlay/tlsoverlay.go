// Package tlsoverlay is the rest of the gateway's way to what the build adds to
// crypto/tls: responses for every certificate of a chain (RFC 6961 in TLS 1.2,
// RFC 8446 in TLS 1.3), cipher suites in a set order, DHE_RSA, and alerts that
// say what was wrong.
//
// The additions are found by interface assertion. So plain go build, go vet and
// editors need no set-up, and a binary that was built without the overlay finds
// none and refuses: Check is the first thing that main does, and every function
// here fails on its own. Package tlspolicy is the caller; nothing else touches
// these settings.
package tlsoverlay

import (
	"crypto/tls"
	"errors"
)

// ErrMissing is the error of every function in a binary built without the overlay.
var ErrMissing = errors.New("this binary was built without the crypto/tls overlay and cannot check stapled responses: build it with make build")

type (
	version     interface{ ExtVersion() string }
	statusV2    interface{ EnableStatusRequestV2() }
	suiteOrder  interface{ SetCipherSuiteOrder([]uint16) error }
	groups      interface{ SetFFDHEGroups([]uint16) error }
	setStaples  interface{ SetOCSPStaples([][]byte) }
	readStaples interface{ StapledOCSPResponses() [][]byte }
)

// Finite field groups (RFC 7919).
const (
	FFDHE2048 uint16 = 256
	FFDHE3072 uint16 = 257
)

// Cipher suites that the overlay adds (RFC 5246, RFC 5288).
const (
	DHE_RSA_AES_128_CBC_SHA256 uint16 = 0x0067
	DHE_RSA_AES_256_CBC_SHA256 uint16 = 0x006B
	DHE_RSA_AES_256_GCM_SHA384 uint16 = 0x009F
)

// Check returns ErrMissing in a binary without the overlay.
func Check() error {
	_, err := Version()
	return err
}

// Version is the overlay's mark: the Go version and a hash over the additions,
// such as go1.26.8+ext.b96d5e2207a377c6.
func Version() (string, error) {
	v, ok := any(&tls.Config{}).(version)
	if !ok {
		return "", ErrMissing
	}
	return v.ExtVersion(), nil
}

// RequestStaples makes a client ask for the responses of the whole chain also
// in TLS 1.2 (RFC 6961). In TLS 1.3 it asks anyway.
func RequestStaples(c *tls.Config) error {
	v, ok := any(c).(statusV2)
	if !ok {
		return ErrMissing
	}
	v.EnableStatusRequestV2()
	return nil
}

// SetCipherSuites sets the TLS 1.2 suites and their order, for both roles.
func SetCipherSuites(c *tls.Config, ids []uint16) error {
	v, ok := any(c).(suiteOrder)
	if !ok {
		return ErrMissing
	}
	return v.SetCipherSuiteOrder(ids)
}

// SetGroups sets the finite field groups for DHE_RSA and their order.
func SetGroups(c *tls.Config, ids []uint16) error {
	v, ok := any(c).(groups)
	if !ok {
		return ErrMissing
	}
	return v.SetFFDHEGroups(ids)
}

// SetStaples sets the responses to staple, by index of cert.Certificate.
func SetStaples(cert *tls.Certificate, staples [][]byte) error {
	v, ok := any(cert).(setStaples)
	if !ok {
		return ErrMissing
	}
	v.SetOCSPStaples(staples)
	return nil
}

// Staples are the responses that the peer stapled, by index of
// PeerCertificates. The list may be shorter; a missing entry and an empty one
// both mean that there was none.
func Staples(s *tls.ConnectionState) ([][]byte, error) {
	v, ok := any(s).(readStaples)
	if !ok {
		return nil, ErrMissing
	}
	return v.StapledOCSPResponses(), nil
}
