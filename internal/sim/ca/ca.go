// Package ca is the CA of the simulated hospital: it answers EST (RFC 7030) and
// factory attestation (keystore/attest) over HTTPS with the issuing CAs of a
// pki.PKI, and signs requests that come by hand. Whom it issues to is a policy
// that every way in has to pass.
//
// It is a peer to try the gateway with, and no CA for anything real: its keys
// lie in files. The firmware does not import it; gatewaysim and tests do.
package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/bedside-gateway/gatewayd/internal/sim/pki"
	"github.com/bedside-gateway/gatewayd/observation"
)

// Defaults of Options.
const (
	DefaultLifetime   = 90 * 24 * time.Hour
	DefaultRetryAfter = 5 * time.Second
)

// Options are the policy of a CA. Only PKI has no default.
type Options struct {
	PKI      *pki.PKI
	Issuer   string        // entry of the PKI; "" is the issuing CA of the key's scheme, or ecc-issuing
	Names    []string      // DNS names and addresses of its server, beside localhost
	Lifetime time.Duration // of certificates

	// Credentials are users and passwords of the first enrolment by EST.
	Credentials        map[string]string
	Authorised         []observation.EUI64 // who gets a certificate; empty: everybody
	RequireAttestation bool                // no first enrolment by EST, renewal only
	EKRoots            *x509.CertPool      // of makers of TPMs; nil: none is known
	EKIntermediates    *x509.CertPool
	AllowEK            []string // names of endorsement keys that need no certificate, hexadecimal

	Pending    int           // how many requests by EST are answered with 202 before one is decided
	RetryAfter time.Duration // what the 202 says

	Now    func() time.Time              // nil is the system's clock
	Record func(*x509.Certificate) error // is called before a certificate is given out; nil: nobody keeps them
	Events func(Event)                   // is called for each decision, from several goroutines
}

// An Event is a decision of the CA.
type Event struct {
	Way    string // simpleenroll, simplereenroll, attest, sign
	Device string // common name of the request, "" where it could not be read
	Serial string // of the certificate, hexadecimal
	Detail string // how the device proved itself
	Err    error  // why it was refused; a *Pending was put off
}

// A Server is a CA. New makes it; it is an http.Handler and safe for concurrent use.
type Server struct {
	o    Options
	mux  *http.ServeMux
	open exchanges

	mu      sync.Mutex
	pending int
}

// New refuses options that cannot work.
func New(o Options) (*Server, error) {
	if o.PKI == nil {
		return nil, errors.New("a CA needs a PKI")
	}
	if o.Issuer != "" {
		if e, err := o.PKI.Find(o.Issuer); err != nil {
			return nil, err
		} else if e.Role != pki.Issuing {
			return nil, fmt.Errorf("%s does not issue certificates of devices: name an issuing CA", o.Issuer)
		}
	}
	if o.Lifetime == 0 {
		o.Lifetime = DefaultLifetime
	}
	if o.Lifetime < time.Minute {
		return nil, fmt.Errorf("lifetime %v: it is at least a minute", o.Lifetime)
	}
	if o.RetryAfter == 0 {
		o.RetryAfter = DefaultRetryAfter
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Events == nil {
		o.Events = func(Event) {}
	}
	if o.Record == nil {
		o.Record = func(*x509.Certificate) error { return nil }
	}
	o.Credentials = maps.Clone(o.Credentials)
	s := &Server{o: o, mux: http.NewServeMux(), pending: o.Pending, open: exchanges{all: map[string]*exchange{}}}
	s.routeEST()
	s.routeAttestation()
	return s, nil
}

// ServeHTTP answers EST and attestation.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.mux.ServeHTTP(w, r) }

// TLS is the configuration of the server that this handler is for. Client
// certificates are judged by the handlers, so that a refusal has words.
func (s *Server) TLS() (*tls.Config, error) {
	issuer, err := s.issuer(nil)
	if err != nil {
		return nil, err
	}
	names := append([]string{"localhost", "127.0.0.1", "::1"}, s.o.Names...)
	id, err := s.o.PKI.IssueServer(issuer, names, s.o.Now(), s.o.Lifetime)
	if err != nil {
		return nil, err
	}
	return &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{id}, ClientAuth: tls.RequestClientCert, Time: s.o.Now}, nil
}

// Sign issues for a request (DER) that somebody brought, under the same policy
// as the other ways: who brings it stands for the device.
func (s *Server) Sign(csr []byte) ([]*x509.Certificate, error) {
	request, id, err := s.read(csr)
	if err != nil {
		s.o.Events(Event{Way: "sign", Err: err})
		return nil, err
	}
	return s.issue("sign", "brought by hand", request, id)
}

const maxCSR = 16 << 10

// read judges a request by itself: whose it is, and that it is for a key that
// gateways may have.
func (s *Server) read(der []byte) (*x509.CertificateRequest, observation.EUI64, error) {
	if len(der) > maxCSR {
		return nil, 0, fmt.Errorf("a request of %d bytes: %d are the most", len(der), maxCSR)
	}
	request, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, 0, fmt.Errorf("the request cannot be read: %w", err)
	}
	if err := request.CheckSignature(); err != nil {
		return nil, 0, fmt.Errorf("the request is not signed by its own key: %w", err)
	}
	id, err := observation.ParseEUI64(request.Subject.CommonName)
	if err != nil {
		return nil, 0, fmt.Errorf("the common name of the request is no device identifier: %w", err)
	}
	if len(s.o.Authorised) > 0 && !slices.Contains(s.o.Authorised, id) {
		return nil, 0, fmt.Errorf("the device %s is not authorised here", id)
	}
	return request, id, kind(request.PublicKey)
}

func kind(key crypto.PublicKey) error {
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		if k.Curve == elliptic.P256() || k.Curve == elliptic.P384() {
			return nil
		}
	case *rsa.PublicKey:
		if n := k.N.BitLen(); n >= 2048 && n <= 4096 {
			return nil
		}
	}
	return errors.New("the request is for a key of another kind: P-256, P-384 and RSA of 2048 to 4096 bits are signed")
}

// issuer is the CA of the key's scheme where the PKI has one.
func (s *Server) issuer(key crypto.PublicKey) (string, error) {
	if s.o.Issuer != "" {
		return s.o.Issuer, nil
	}
	schemes := []pki.Scheme{pki.ECC, pki.RSA}
	if _, is := key.(*rsa.PublicKey); is {
		slices.Reverse(schemes)
	}
	for _, scheme := range schemes {
		name := string(scheme) + "-issuing"
		if _, err := s.o.PKI.Find(name); err == nil {
			return name, nil
		}
	}
	return "", errors.New("the PKI has no issuing CA")
}

// issue is the end of every way.
func (s *Server) issue(way, detail string, request *x509.CertificateRequest, id observation.EUI64) ([]*x509.Certificate, error) {
	e := Event{Way: way, Device: id.String(), Detail: detail}
	chain, err := s.sign(request, id)
	if err == nil {
		e.Serial = chain[0].SerialNumber.Text(16)
		err = s.o.Record(chain[0])
	}
	if e.Err = err; err != nil {
		chain = nil
	}
	s.o.Events(e)
	return chain, err
}

func (s *Server) sign(request *x509.CertificateRequest, id observation.EUI64) ([]*x509.Certificate, error) {
	issuer, err := s.issuer(request.PublicKey)
	if err != nil {
		return nil, err
	}
	return s.o.PKI.IssueDevice(issuer, request.PublicKey, id, s.o.Now(), s.o.Lifetime)
}

// holder judges a client certificate: one of ours, for TLS clients, valid now
// and not revoked.
func (s *Server) holder(r *http.Request) (*x509.Certificate, error) {
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		return nil, errors.New("there is no client certificate: renewal takes the current one")
	}
	leaf, between := r.TLS.PeerCertificates[0], x509.NewCertPool()
	for _, c := range r.TLS.PeerCertificates[1:] {
		between.AddCert(c)
	}
	for _, e := range s.o.PKI.Entries {
		if e.Role == pki.Issuing {
			between.AddCert(e.Certificate)
		}
	}
	chains, err := leaf.Verify(x509.VerifyOptions{Roots: s.o.PKI.Roots(), Intermediates: between, CurrentTime: s.o.Now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	if err != nil {
		return nil, fmt.Errorf("the client certificate is not taken: %w", err)
	}
	return leaf, s.revoked(chains[0])
}

// revoked looks every certificate of a chain up in the CRL of its issuer.
func (s *Server) revoked(chain []*x509.Certificate) error {
	for i, c := range chain[:len(chain)-1] {
		for _, e := range s.o.PKI.Entries {
			if !e.IsCA() || !e.Certificate.Equal(chain[i+1]) {
				continue
			}
			list, err := x509.ParseRevocationList(e.CRL)
			if err != nil {
				return fmt.Errorf("CRL of %s: %w", e.Name, err)
			}
			for _, r := range list.RevokedCertificateEntries {
				if r.SerialNumber.Cmp(c.SerialNumber) == 0 {
					return fmt.Errorf("the certificate of serial number %x is revoked", c.SerialNumber)
				}
			}
		}
	}
	return nil
}
