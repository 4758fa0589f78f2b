package enroll

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/bedside-gateway/gatewayd/keystore"
	"github.com/bedside-gateway/gatewayd/keystore/attest"
	"github.com/bedside-gateway/gatewayd/keystore/est"
	"github.com/bedside-gateway/gatewayd/keystore/tpm"
)

// A CA is one that issues by itself.
type CA struct {
	URL   string // https://HOST[:PORT]; for EST with the label of a CA behind it where there is one
	Roots *x509.CertPool
	// Credential gives user and password for the first certificate, or for one
	// after the last has expired; nil: there is none.
	Credential func() (user, password string, err error)
}

// Renew has a certificate issued over EST (RFC 7030) for a new key, or for the
// one that waits for its certificate: with the current certificate where that is
// valid, else with the credential.
func (a *Applicant) Renew(ctx context.Context, ca CA) (Outcome, error) {
	slots, request, err := a.waiting(ctx)
	if err != nil {
		return Outcome{}, err
	}
	chain, err := a.issue(ctx, ca, slots.Current, request)
	if err != nil {
		return Outcome{}, err
	}
	return a.install(chain)
}

// waiting are the slots, with a key in the next one that has no certificate yet,
// and its request in DER.
func (a *Applicant) waiting(ctx context.Context) (slots keystore.Slots, request []byte, err error) {
	slots, err = a.Store.Read()
	if err == nil && (slots.Next == nil || slots.Next.Chain != nil || slots.Next.Fault != nil) {
		if _, err = a.NewKey(ctx); err == nil {
			slots, err = a.Store.Read()
		}
	}
	if err != nil {
		return slots, nil, err
	}
	text, err := a.request(ctx, slots.Next)
	if err != nil {
		return slots, nil, err
	}
	csr, err := parseRequest(text)
	if err != nil {
		return slots, nil, err
	}
	return slots, csr.Raw, nil
}

// issue asks the CA. An expired certificate is shown only where there is no
// credential: few CAs take one, and to try costs nothing.
func (a *Applicant) issue(ctx context.Context, ca CA, current *keystore.Slot, request []byte) ([]*x509.Certificate, error) {
	o := est.Options{URL: ca.URL, Roots: ca.Roots, Credential: ca.Credential, Now: a.Now}
	again := current != nil && current.Chain != nil && (ca.Credential == nil || a.Now().Before(current.NotAfter()))
	switch {
	case again:
		id, err := a.Identity(current)
		if err != nil {
			return nil, err
		}
		o.Identity, o.Credential = &id, nil
	case ca.Credential == nil:
		return nil, errors.New("there is no certificate yet to authenticate with: give the bootstrap credential of the CA with --user and --password-file")
	}
	c, err := est.New(o)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	ask := c.SimpleEnroll
	if again {
		ask = c.SimpleReenroll
	}
	chain, err := ask(ctx, request)
	if err != nil {
		return nil, caFault(ca.URL, err)
	}
	if len(chain) > 1 {
		return chain, nil
	}
	// The issuing CA is a root, which est leaves out, and B16 wants it shown.
	cas, err := c.CACerts(ctx)
	return append(chain, cas...), err
}

// caFault says what to do about a CA that gives no answer to go by.
func caFault(url string, err error) error {
	if _, ok := errors.AsType[*est.Pending](err); ok {
		return err
	}
	if _, ok := errors.AsType[*est.Refused](err); ok {
		return err
	}
	if tpm.FaultOf(err) != "" {
		return err
	}
	return fmt.Errorf("the CA at %s: %w; look in its log, and whether it speaks EST there", url, err)
}

// Attest has a certificate issued by a CA that wants proof that the key is in
// this TPM.
func (a *Applicant) Attest(ctx context.Context, ca CA) (Outcome, error) {
	slots, request, err := a.waiting(ctx)
	if err != nil {
		return Outcome{}, err
	}
	ak, err := a.attestationKey(ctx)
	if err != nil {
		return Outcome{}, err
	}
	client, err := est.New(est.Options{URL: ca.URL, Roots: ca.Roots, Now: a.Now})
	if err != nil {
		return Outcome{}, err
	}
	defer client.Close()
	raw, err := attest.Enroll(ctx, client.HTTP(), ca.URL, &device{a, slots.Next, ak, request})
	if err != nil {
		return Outcome{}, err
	}
	var chain []*x509.Certificate
	for i, der := range raw {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return Outcome{}, fmt.Errorf("certificate %d of the CA's answer cannot be read: %w", i+1, err)
		}
		chain = append(chain, c)
	}
	return a.install(chain)
}

// attestationKey is the key file of the attestation key, which is made once.
func (a *Applicant) attestationKey(ctx context.Context) ([]byte, error) {
	path := filepath.Join(a.Home, "attestation.pem")
	text, err := keystore.ReadFile(path, keystore.MaxFile)
	if !errors.Is(err, fs.ErrNotExist) {
		return text, err
	}
	if text, err = a.TPM.AttestationKey(ctx); err != nil {
		return nil, err
	}
	return text, keystore.WriteFile(path, text)
}

// A device is our side of the attestation.
type device struct {
	*Applicant
	slot        *keystore.Slot
	ak, request []byte
}

func (d *device) Evidence(ctx context.Context, nonce []byte) (attest.Evidence, error) {
	return d.TPM.Attest(ctx, d.slot.KeyFile, d.ak, d.request, nonce)
}

func (d *device) Activate(ctx context.Context, credentialBlob, encryptedSecret []byte) ([]byte, error) {
	return d.TPM.Activate(ctx, d.ak, credentialBlob, encryptedSecret)
}
