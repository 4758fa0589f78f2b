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

// A use is what a certificate of ours is for.
type use struct {
	rule  string
	usage x509.ExtKeyUsage
	wrong string // what to say of another one
	next  string
}

var (
	clientUse = use{"B16", x509.ExtKeyUsageClientAuth, "its extended key usage is not that of a TLS client", "have it issued as a device certificate"}
	serverUse = use{"A5", x509.ExtKeyUsageServerAuth, "its extended key usage is not that of a TLS server", "have it issued as a platform certificate"}
)

// check holds our own certificate to what B16, A4 and A7 have us send: it with
// its issuing CA. That CA is asked for also where it is a root. TLS would allow
// to leave a root out (RFC 5246, 7.4.2), the rules do not, and an extra
// certificate hurts nobody. Whether it has expired is for the peer to say.
func (u use) check(id tls.Certificate) (tls.Certificate, error) {
	if len(id.Certificate) == 0 || id.PrivateKey == nil {
		return id, &RefusalError{Rule: u.rule, Reason: "there is no certificate and key of our own", Next: "name both files in the configuration"}
	}
	chain, err := u.parseChain(id.Certificate)
	if err != nil {
		return id, err
	}
	if err := u.checkChain(chain); err != nil {
		return id, err
	}
	id.Leaf = chain[0]
	return id, u.checkKey(id)
}

func (u use) parseChain(raw [][]byte) ([]*x509.Certificate, error) {
	chain := make([]*x509.Certificate, len(raw))
	for i, der := range raw {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, &RefusalError{Rule: u.rule, Certificate: fmt.Sprintf("our certificate %d of %d", i+1, len(raw)), Reason: "it cannot be read: " + subject(err.Error()), Next: nextIdentity, Err: err}
		}
		chain[i] = c
	}
	return chain, nil
}

func (u use) checkChain(chain []*x509.Certificate) error {
	if len(chain) < 2 {
		return u.ours(chain[0], fmt.Sprintf("the certificate of its issuer %s is missing", subject(chain[0].Issuer.String())), nextIdentity)
	}
	for i, issuer := range chain[1:] {
		c := chain[i]
		if weak := cmp.Or(weakKey(c), weakSignature(c), weakKey(issuer)); weak != "" {
			return u.ours(c, "it or its issuer is weak: "+weak, "have a certificate with a stronger key or signature issued")
		}
		if err := c.CheckSignatureFrom(issuer); err != nil {
			return u.ours(c, fmt.Sprintf("the certificate behind it, %s, is not its issuer", subject(issuer.Subject.String())), nextIdentity)
		}
	}
	usages := chain[0].ExtKeyUsage
	if len(usages) > 0 && !slices.Contains(usages, u.usage) && !slices.Contains(usages, x509.ExtKeyUsageAny) {
		return u.ours(chain[0], u.wrong, u.next)
	}
	return nil
}

func (u use) ours(c *x509.Certificate, reason, next string) error {
	return &RefusalError{Rule: u.rule, Certificate: "our certificate " + subject(c.Subject.String()), Reason: reason, Next: next}
}

func (u use) checkKey(id tls.Certificate) error {
	signer, ok := id.PrivateKey.(crypto.Signer)
	if !ok {
		return u.ours(id.Leaf, "its key cannot sign", "use the key that the certificate was requested with")
	}
	public, ok := signer.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !public.Equal(id.Leaf.PublicKey) {
		return u.ours(id.Leaf, "its key is another one", "use the key that the certificate was requested with")
	}
	return nil
}
