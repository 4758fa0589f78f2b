package est

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Judge finds the certificate for a request among those that a CA gave, and
// completes its chain from them and from the CA's own: leaf first, the root
// left out. It refuses a certificate for another key or name, one that is not
// valid now or cannot be used as a TLS client, and one without a path to the
// anchors. Where anchors is nil they are the self-signed certificates in cas.
//
// EST's answers pass it, and so should a chain that came by hand.
func Judge(request *x509.CertificateRequest, given, cas []*x509.Certificate, anchors *x509.CertPool, now time.Time) ([]*x509.Certificate, error) {
	leaf, err := find(request, given)
	if err != nil {
		return nil, err
	}
	if err := fits(leaf, request, now); err != nil {
		return nil, fmt.Errorf("the certificate of serial number %x: %w", leaf.SerialNumber, err)
	}
	if anchors == nil {
		if anchors, err = selfSigned(cas); err != nil {
			return nil, err
		}
	}
	between := x509.NewCertPool()
	for _, c := range slices.Concat(given, cas) {
		between.AddCert(c)
	}
	paths, err := leaf.Verify(x509.VerifyOptions{
		Roots: anchors, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		return nil, fmt.Errorf("the certificate issued has no path to a root that we trust: %w; check that the trust file is of this CA", err)
	}
	shortest := slices.MinFunc(paths, func(a, b []*x509.Certificate) int { return len(a) - len(b) })
	if len(shortest) < 2 {
		return nil, errors.New("the certificate issued is a root by itself")
	}
	return shortest[:len(shortest)-1], nil
}

// find is the certificate for the key of the request, the newest where a CA
// gives older ones for the same key along.
func find(request *x509.CertificateRequest, given []*x509.Certificate) (*x509.Certificate, error) {
	key, ok := request.PublicKey.(interface{ Equal(crypto.PublicKey) bool })
	if !ok {
		return nil, fmt.Errorf("a request for a key of the kind %v: elliptic curves and RSA are used", request.PublicKeyAlgorithm)
	}
	var leaf *x509.Certificate
	for _, c := range given {
		if key.Equal(c.PublicKey) && (leaf == nil || c.NotBefore.After(leaf.NotBefore)) {
			leaf = c
		}
	}
	if leaf != nil {
		return leaf, nil
	}
	if len(given) == 0 {
		return nil, errors.New("the CA gave no certificate")
	}
	return nil, fmt.Errorf("the certificate that the CA gave (serial number %x, issued to %.80q) is for another key than the request: nothing was installed; ask the CA's operator which request it answered",
		given[0].SerialNumber, given[0].Subject.String())
}

// fits is about the leaf by itself.
func fits(leaf *x509.Certificate, request *x509.CertificateRequest, now time.Time) error {
	switch {
	case leaf.Subject.CommonName != request.Subject.CommonName:
		return fmt.Errorf("it is issued to %.80q, the request was for %q", leaf.Subject.CommonName, request.Subject.CommonName)
	case now.Before(leaf.NotBefore):
		return fmt.Errorf("it is not valid before %s: check the gateway's clock", leaf.NotBefore.UTC().Format(time.RFC3339))
	case now.After(leaf.NotAfter):
		return fmt.Errorf("it expired on %s: check the gateway's clock", leaf.NotAfter.UTC().Format(time.RFC3339))
	case leaf.IsCA:
		return errors.New("it is that of a CA")
	case !slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageClientAuth):
		return errors.New("its extended key usage lacks clientAuth: platforms would refuse it; have the CA use the profile for TLS clients")
	case leaf.KeyUsage != 0 && leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0:
		return errors.New("its key usage lacks digitalSignature: TLS needs it; have the CA use the profile for TLS clients")
	}
	return nil
}

// selfSigned are the anchors among the CA's certificates.
func selfSigned(cas []*x509.Certificate) (*x509.CertPool, error) {
	pool, found := x509.NewCertPool(), false
	for _, c := range cas {
		if bytes.Equal(c.RawSubject, c.RawIssuer) && c.CheckSignatureFrom(c) == nil {
			pool.AddCert(c)
			found = true
		}
	}
	if !found {
		return nil, errors.New("the CA's certificates hold no root: give the file of its root certificate")
	}
	return pool, nil
}
