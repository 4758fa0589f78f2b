package tlspolicy

import (
	"cmp"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"slices"
)

const nextIdentity = "put the gateway's certificate first and its issuing CA's behind it in the certificate file"

// checkIdentity holds our own certificate to what B16 has us send: it with its
// issuing CA. That CA is asked for also where it is a root. TLS would allow to
// leave a root out (RFC 5246, 7.4.2), B16 does not, and an extra certificate
// hurts nobody. Whether it has expired is for the platform to say.
func checkIdentity(id tls.Certificate) (tls.Certificate, error) {
	if len(id.Certificate) == 0 || id.PrivateKey == nil {
		return id, &RefusalError{Rule: "B16", Reason: "the gateway has no certificate and key of its own", Next: "name both files in the configuration"}
	}
	chain, err := parseChain(id.Certificate)
	if err != nil {
		return id, err
	}
	if err := checkChain(chain); err != nil {
		return id, err
	}
	id.Leaf = chain[0]
	return id, checkKey(id)
}

func parseChain(raw [][]byte) ([]*x509.Certificate, error) {
	chain := make([]*x509.Certificate, len(raw))
	for i, der := range raw {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, &RefusalError{Rule: "B16", Certificate: fmt.Sprintf("our certificate %d of %d", i+1, len(raw)), Reason: "it cannot be read: " + subject(err.Error()), Next: nextIdentity, Err: err}
		}
		chain[i] = c
	}
	return chain, nil
}

func checkChain(chain []*x509.Certificate) error {
	if len(chain) < 2 {
		return ours(chain[0], fmt.Sprintf("the certificate of its issuer %s is missing", subject(chain[0].Issuer.String())), nextIdentity)
	}
	for i, issuer := range chain[1:] {
		c := chain[i]
		if weak := cmp.Or(weakKey(c), weakSignature(c), weakKey(issuer)); weak != "" {
			return ours(c, "it or its issuer is weak: "+weak, "have a certificate with a stronger key or signature issued")
		}
		if err := c.CheckSignatureFrom(issuer); err != nil {
			return ours(c, fmt.Sprintf("the certificate behind it, %s, is not its issuer", subject(issuer.Subject.String())), nextIdentity)
		}
	}
	usages := chain[0].ExtKeyUsage
	if len(usages) > 0 && !slices.Contains(usages, x509.ExtKeyUsageClientAuth) && !slices.Contains(usages, x509.ExtKeyUsageAny) {
		return ours(chain[0], "its extended key usage is not that of a TLS client", "have it issued as a device certificate")
	}
	return nil
}

func ours(c *x509.Certificate, reason, next string) error {
	return &RefusalError{Rule: "B16", Certificate: "our certificate " + subject(c.Subject.String()), Reason: reason, Next: next}
}

func checkKey(id tls.Certificate) error {
	signer, ok := id.PrivateKey.(crypto.Signer)
	if !ok {
		return ours(id.Leaf, "its key cannot sign", "use the key that the certificate was requested with")
	}
	public, ok := signer.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !public.Equal(id.Leaf.PublicKey) {
		return ours(id.Leaf, "its key is another one", "use the key that the certificate was requested with")
	}
	return nil
}
