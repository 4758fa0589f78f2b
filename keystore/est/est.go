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
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// DefaultTimeout is how long a request may take, the handshake with its
// signature by the TPM included.
const DefaultTimeout = 30 * time.Second

// maxCSR bounds a request: an RSA key of 4096 bits makes some 2 kB.
const maxCSR = 32 << 10

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
type Client struct {
	o    Options
	base string // without a slash at its end
	http *http.Client
}

// AddressError is a URL that cannot be an EST server's: whoever configured it
// has to mend it, and to try again is of no use.
type AddressError struct{ URL, Reason string }

func (e *AddressError) Error() string { return fmt.Sprintf("EST server %q: %s", e.URL, e.Reason) }

// New refuses options that cannot work; a URL with an *AddressError.
func New(o Options) (*Client, error) {
	base, err := baseURL(o.URL)
	if err != nil {
		return nil, &AddressError{o.URL, err.Error()}
	}
	if o.Roots == nil || o.Roots.Equal(x509.NewCertPool()) {
		return nil, errors.New("no roots to verify the EST server with: give the file of its root certificate; the system's roots are not used")
	}
	if o.Identity != nil && (len(o.Identity.Certificate) == 0 || o.Identity.PrivateKey == nil) {
		return nil, errors.New("the current identity has no certificate or no key: enrol without it")
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Timeout == 0 {
		o.Timeout = DefaultTimeout
	}
	if o.Dial == nil {
		o.Dial = new(net.Dialer).DialContext
	}
	return &Client{o: o, base: base, http: newHTTP(o)}, nil
}

const wellKnown = "/.well-known/est"

// baseURL completes https://host to https://host/.well-known/est.
func baseURL(text string) (string, error) {
	u, err := url.Parse(text)
	switch {
	case err != nil:
		return "", errors.New("it is no URL: write https://HOST or https://HOST/.well-known/est/LABEL")
	case u.Scheme != "https":
		return "", errors.New("its scheme is not https: EST is spoken over TLS only")
	case u.Hostname() == "":
		return "", errors.New("it names no host")
	case u.User != nil:
		return "", errors.New("it holds a user name: credentials have no place in an address")
	case u.RawQuery != "" || u.Fragment != "":
		return "", errors.New("it has more than a host and a path")
	}
	path := strings.TrimRight(u.EscapedPath(), "/")
	if path == "" {
		path = wellKnown
	}
	if label, ok := strings.CutPrefix(path, wellKnown); !ok || label != "" && (label[0] != '/' || strings.Contains(label[1:], "/")) {
		return "", fmt.Errorf("its path is %s: it is %s, or that and one label", path, wellKnown)
	}
	return "https://" + u.Host + path, nil
}

// Close drops idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// HTTP is the client with the same roots, limits and clock, for what the same
// CA offers beside EST. It follows redirects within their host only.
func (c *Client) HTTP() *http.Client { return c.http }

// CACerts are the certificates of the CA (RFC 7030, section 4.1), as the
// server has them: it was verified, they were not.
func (c *Client) CACerts(ctx context.Context) ([]*x509.Certificate, error) {
	all, err := c.certificates(ctx, http.MethodGet, "cacerts", nil)
	if err != nil {
		return nil, fmt.Errorf("CA certificates of %s: %w", c.base, err)
	}
	return all, nil
}

// SimpleEnroll has a first certificate issued for a request in DER (RFC 7030,
// section 4.2.1). The chain is leaf first and lacks its root. Where the CA has
// to think, the error is a *Pending: call again after its time, with the very
// same request. A *Refused is the server's no.
func (c *Client) SimpleEnroll(ctx context.Context, csr []byte) ([]*x509.Certificate, error) {
	request, err := parseCSR(csr)
	if err != nil {
		return nil, err
	}
	return c.enroll(ctx, "simpleenroll", request)
}

// SimpleReenroll has the certificate of Options.Identity renewed (RFC 7030,
// section 4.2.2), for the same key or another one; the name has to be the same.
// Otherwise it is SimpleEnroll.
func (c *Client) SimpleReenroll(ctx context.Context, csr []byte) ([]*x509.Certificate, error) {
	request, err := parseCSR(csr)
	if err != nil {
		return nil, err
	}
	current, err := c.current()
	if err != nil {
		return nil, err
	}
	if old, want := current.Subject.CommonName, request.Subject.CommonName; old != want {
		return nil, fmt.Errorf("the certificate to be renewed is that of %q, the request names %q: have a new one issued instead", old, want)
	}
	chain, err := c.enroll(ctx, "simplereenroll", request)
	if err == nil && chain[0].Equal(current) {
		return nil, fmt.Errorf("renewal at %s: the server gave the certificate that we have already: ask the CA's operator", c.base)
	}
	return chain, err
}

// current is the leaf of the identity.
func (c *Client) current() (*x509.Certificate, error) {
	if c.o.Identity == nil {
		return nil, errors.New("there is no current certificate to renew: enrol for the first one")
	}
	leaf, err := x509.ParseCertificate(c.o.Identity.Certificate[0])
	if err != nil {
		return nil, fmt.Errorf("the current certificate cannot be read: %w; enrol for a new one", err)
	}
	return leaf, nil
}

func parseCSR(der []byte) (*x509.CertificateRequest, error) {
	if len(der) > maxCSR {
		return nil, fmt.Errorf("the certificate request has %d bytes: %d are the most", len(der), maxCSR)
	}
	request, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, fmt.Errorf("the certificate request cannot be read: %w", err)
	}
	if err := request.CheckSignature(); err != nil {
		return nil, fmt.Errorf("the certificate request is not signed by its own key: %w", err)
	}
	if request.Subject.CommonName == "" {
		return nil, errors.New("the certificate request names nobody: its common name has to be the gateway's EUI-64")
	}
	return request, nil
}

// enroll gets the CA's certificates first: were they missing afterwards, the
// new certificate would be lost.
func (c *Client) enroll(ctx context.Context, operation string, request *x509.CertificateRequest) ([]*x509.Certificate, error) {
	cas, err := c.CACerts(ctx)
	if err != nil {
		return nil, err
	}
	answer, err := c.certificates(ctx, http.MethodPost, operation, encode(request.Raw))
	if err != nil {
		return nil, fmt.Errorf("%s at %s: %w", operation, c.base, err)
	}
	chain, err := Judge(request, answer, cas, c.o.Anchors, c.o.Now())
	if err != nil {
		return nil, fmt.Errorf("%s at %s: %w", operation, c.base, err)
	}
	return chain, nil
}

// certificates asks for a certs-only message.
func (c *Client) certificates(ctx context.Context, method, operation string, body []byte) ([]*x509.Certificate, error) {
	a, err := c.ask(ctx, method, operation, body)
	if err != nil {
		return nil, err
	}
	if a.status != http.StatusOK {
		return nil, a.refusal(c.o.Now())
	}
	if err := a.isCertsOnly(); err != nil {
		return nil, err
	}
	return ParseResponse(a.body)
}

// encode breaks lines as RFC 7030 has them in its examples: some servers cannot
// read longer ones, RFC 8951 leaves it open.
func encode(der []byte) []byte {
	text := base64.StdEncoding.EncodeToString(der)
	var b bytes.Buffer
	for len(text) > 0 {
		n := min(64, len(text))
		b.WriteString(text[:n])
		b.WriteByte('\n')
		text = text[n:]
	}
	return b.Bytes()
}
