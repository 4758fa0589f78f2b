package enroll

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/bedside-gateway/gatewayd/keystore"
	"github.com/bedside-gateway/gatewayd/keystore/est"
)

// Install takes a certificate that a CA issued, with its issuing CA's, from PEM
// in any order or from PKCS #7. It is for one of the keys of the store.
func (a *Applicant) Install(text []byte) (Outcome, error) {
	all, err := certificates(text)
	if err != nil {
		return Outcome{}, err
	}
	return a.install(all)
}

func (a *Applicant) install(all []*x509.Certificate) (Outcome, error) {
	slots, err := a.Store.Read()
	if err != nil {
		return Outcome{}, err
	}
	chain, err := order(&slots, all)
	if err != nil {
		return Outcome{}, err
	}
	return a.put(chain, a.Store.Install)
}

// put judges a chain, and installs it then.
func (a *Applicant) put(chain []*x509.Certificate, install func([]byte) (string, error)) (Outcome, error) {
	if err := a.judge(chain); err != nil {
		return Outcome{}, err
	}
	before := a.Store.Stamp()
	slot, err := install(encode(chain))
	if err != nil {
		return Outcome{}, err
	}
	return a.installed(chain[0], slot, a.Store.Stamp() != before), nil
}

func (a *Applicant) installed(leaf *x509.Certificate, slot string, changed bool) Outcome {
	what := fmt.Sprintf("The certificate %q, until %s, is in the %s slot.", leaf.Subject.CommonName, leaf.NotAfter.UTC().Format(time.DateOnly), slot)
	o := Outcome{Changed: changed, Done: what, Next: "Nothing: gatewayd takes it up by itself. Look with " + a.command("status") + "."}
	if slot == keystore.Next {
		o.Next = a.nextTrial() + " Look with " + a.command("status") + "."
	}
	if a.Now().Before(leaf.NotBefore) {
		o.Next = fmt.Sprintf("It is valid only from %s on: look at the clock of the gateway, or have one issued that is valid now.", leaf.NotBefore.UTC().Format(time.DateOnly))
	}
	if !changed {
		o.Done = what + " It was there already."
	}
	return o
}

// certificates reads all certificates in text.
func certificates(text []byte) (all []*x509.Certificate, err error) {
	if !bytes.Contains(text, []byte("-----BEGIN ")) {
		if all = unwrapped(text); all != nil {
			return all, nil
		}
	}
	blocks, err := keystore.Blocks(text)
	if err != nil {
		return nil, err
	}
	for i, b := range blocks {
		list, err := certificatesIn(b)
		if err != nil {
			return nil, fmt.Errorf("PEM block %d: %w", i+1, err)
		}
		all = append(all, list...)
	}
	return all, nil
}

// unwrapped reads certificates and PKCS #7 without PEM: in DER, or PKCS #7 in base64,
// as Windows exports them. Nil where it is none of them.
func unwrapped(text []byte) []*x509.Certificate {
	if all, err := x509.ParseCertificates(text); err == nil && len(all) > 0 {
		return all
	}
	for _, body := range [][]byte{[]byte(base64.StdEncoding.EncodeToString(text)), bytes.TrimPrefix(text, []byte("\ufeff"))} {
		if all, err := est.ParseResponse(body); err == nil {
			return all
		}
	}
	return nil
}

func certificatesIn(b *pem.Block) ([]*x509.Certificate, error) {
	switch b.Type {
	case "CERTIFICATE":
		c, err := x509.ParseCertificate(b.Bytes)
		return []*x509.Certificate{c}, err
	case "PKCS7":
		return est.ParseResponse([]byte(base64.StdEncoding.EncodeToString(b.Bytes)))
	}
	return nil, fmt.Errorf("it is a %.40q: only certificates belong here", b.Type)
}

// order finds the certificate of one of our keys, and puts its issuers behind it.
func order(slots *keystore.Slots, all []*x509.Certificate) ([]*x509.Certificate, error) {
	var keys []crypto.PublicKey
	missing := ErrNotBegun
	for _, s := range []*keystore.Slot{slots.Next, slots.Current} {
		switch {
		case s == nil:
		case s.Fault != nil:
			missing = s.Fault
		default:
			keys = append(keys, s.Public)
		}
	}
	if len(keys) == 0 {
		return nil, missing
	}
	for _, key := range keys {
		if chain := chainFor(key, all); chain != nil {
			return chain, nil
		}
	}
	return nil, fmt.Errorf("none of the %d certificates is for a key of this gateway (%s): have one issued for the request of gatewayd enroll csr", len(all), keystore.Mark(keys[0]))
}

// chainFor is the certificate for a key with its issuers; nil where there is none.
func chainFor(key crypto.PublicKey, all []*x509.Certificate) []*x509.Certificate {
	if i := slices.IndexFunc(all, func(c *x509.Certificate) bool { return keystore.Matches(key, c) }); i >= 0 {
		return follow(all[i], all)
	}
	return nil
}

// follow puts the issuers behind a certificate, as far as they are there. A root
// need not be shown, but an issuing CA that is one has to be (B16).
func follow(leaf *x509.Certificate, all []*x509.Certificate) []*x509.Certificate {
	chain := []*x509.Certificate{leaf}
	for last := leaf; len(chain) < 8; {
		i := slices.IndexFunc(all, func(c *x509.Certificate) bool {
			return bytes.Equal(c.RawSubject, last.RawIssuer) && !slices.ContainsFunc(chain, c.Equal) && last.CheckSignatureFrom(c) == nil
		})
		if i < 0 {
			break
		}
		last = all[i]
		chain = append(chain, last)
	}
	if n := len(chain); n > 2 && bytes.Equal(chain[n-1].RawSubject, chain[n-1].RawIssuer) {
		chain = chain[:n-1]
	}
	return chain
}

// judge refuses a chain that no platform could take.
func (a *Applicant) judge(chain []*x509.Certificate) error {
	leaf := chain[0]
	switch {
	case a.Subject.Server != "" && leaf.VerifyHostname(a.Subject.Server) != nil:
		return fmt.Errorf("the certificate is for %q, and devices find this server as %s (name in [[southbound.identity]]): have it issued for that", leaf.Subject.CommonName, a.Subject.Server)
	case a.Subject.Server == "" && leaf.Subject.CommonName != a.Subject.CommonName():
		return fmt.Errorf("the certificate has the common name %q, and platforms know this gateway as %s (eui64 in [gateway]): have it issued for that", leaf.Subject.CommonName, a.Subject.CommonName())
	case len(chain) < 2:
		return fmt.Errorf("the certificate of the issuing CA, %q, is missing: put it into the same file", leaf.Issuer)
	case a.Now().After(leaf.NotAfter):
		return fmt.Errorf("the certificate expired on %s: have a new one issued, or look at the clock", leaf.NotAfter.UTC().Format(time.DateOnly))
	case leaf.IsCA:
		return errors.New("the certificate is that of a CA: have one for a device issued")
	case !serves(leaf, a.purpose()):
		return fmt.Errorf("the certificate is not for %s (extended key usage, RFC 5280, section 4.2.1.12): have it issued for that", purposes[a.purpose()])
	}
	return nil
}

var purposes = map[x509.ExtKeyUsage]string{x509.ExtKeyUsageClientAuth: "TLS clients", x509.ExtKeyUsageServerAuth: "TLS servers"}

func (a *Applicant) purpose() x509.ExtKeyUsage {
	if a.Subject.Server != "" {
		return x509.ExtKeyUsageServerAuth
	}
	return x509.ExtKeyUsageClientAuth
}

// serves reports whether a certificate may be used for something: one that
// names no purpose has none against it.
func serves(c *x509.Certificate, what x509.ExtKeyUsage) bool {
	named := len(c.ExtKeyUsage) + len(c.UnknownExtKeyUsage)
	return named == 0 || slices.Contains(c.ExtKeyUsage, what) || slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageAny)
}

// nextTrial is what happens to a certificate in the next slot.
func (a *Applicant) nextTrial() string {
	if a.Subject.Server != "" {
		return "Nothing: gatewayd takes it up by itself."
	}
	return "Nothing: gatewayd tries it with a platform, then takes it up."
}

func encode(chain []*x509.Certificate) []byte {
	var b bytes.Buffer
	for _, c := range chain {
		_ = pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}) // a buffer takes all
	}
	return b.Bytes()
}
