// Package est has certificates issued and renewed by a CA that speaks
// Enrollment over Secure Transport (RFC 7030, with the clarifications of
// RFC 8951).
//
// Whom it speaks with is decided by explicit trust anchors only: there is no
// system store, no trust on first use and no way to switch the check off, so a
// gateway learns the CA's certificates from a server that it could verify
// before. What comes back is judged before anybody sees it: a certificate for
// another key, with another name or without a path to an anchor is refused.
//
// The package makes no keys and no requests, stores nothing and never repeats a
// request by itself. The daemon and gatewayd enroll call it.
package est

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"time"
)

// DefaultTimeout is how long a request may take, the handshake with its
// signature by the TPM included.
const DefaultTimeout = 30 * time.Second

// Options are what a Client needs. URL and Roots have no default.
type Options struct {
	// URL is https://HOST[:PORT], alone or with /.well-known/est and the label
	// of a CA behind it (RFC 7030, section 3.2.2).
	URL string
	// Roots verify the server, by its host name. Never the system's.
	Roots *x509.CertPool
	// Anchors are the roots of the certificates that are issued. nil: the
	// self-signed certificates that the server gives as /cacerts.
	Anchors *x509.CertPool
	// Identity is the current certificate, for TLS client authentication.
	Identity *tls.Certificate
	// Credential gives the user and the password of the first enrolment. It is
	// called when the verified server asks for them, and its results are not kept.
	Credential func() (user, password string, err error)
	Dial       func(ctx context.Context, network, address string) (net.Conn, error) // nil: the system's
	Now        func() time.Time                                                     // nil: the system's clock
	Timeout    time.Duration                                                        // of a request; 0: DefaultTimeout
}

// A Client speaks with one EST server. New makes it; it is safe for concurrent use.
type Client struct{ o Options }

// New refuses options that cannot work.
func New(o Options) (*Client, error) { return nil, errors.ErrUnsupported }

// Close drops idle connections.
func (c *Client) Close() {}

// CACerts are the certificates of the CA (RFC 7030, section 4.1).
func (c *Client) CACerts(ctx context.Context) ([]*x509.Certificate, error) {
	return nil, errors.ErrUnsupported
}

// SimpleEnroll has a first certificate issued for a request in DER (RFC 7030,
// section 4.2.1). The chain is leaf first, without its root.
func (c *Client) SimpleEnroll(ctx context.Context, csr []byte) ([]*x509.Certificate, error) {
	return nil, errors.ErrUnsupported
}

// SimpleReenroll has the certificate of Options.Identity renewed (RFC 7030,
// section 4.2.2).
func (c *Client) SimpleReenroll(ctx context.Context, csr []byte) ([]*x509.Certificate, error) {
	return nil, errors.ErrUnsupported
}
