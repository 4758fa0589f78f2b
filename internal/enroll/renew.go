package enroll

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/bedside-gateway/gatewayd/keystore"
	"github.com/bedside-gateway/gatewayd/keystore/attest"
	"github.com/bedside-gateway/gatewayd/keystore/est"
)

// Renew has a certificate issued over EST (RFC 7030) for a new key, or for the
// one that waits for its certificate: by the credential where one is given, else
// by the current certificate.
func (a *Applicant) Renew(ctx context.Context, ca CA) (Outcome, error) {
	return a.ask(ctx, func(current, wanted *keystore.Slot, request []byte) ([]*x509.Certificate, error) {
		c, ask, err := a.client(ca, current)
		if err != nil {
			return nil, err
		}
		defer c.Close()
		chain, err := ask(c, ctx, request)
		if err == nil && len(chain) == 1 { // the issuing CA is a root, which est leaves out, and B16 wants it shown
			var cas []*x509.Certificate
			cas, err = c.CACerts(ctx)
			chain = append(chain, cas...)
		}
		return chain, a.fault(ca, err)
	})
}

// client is the way to the CA, and what to ask it for. With a credential no
// certificate is shown in TLS, although there may be one: a CA that takes it does
// not ask for the password (RFC 7030, section 3.3.2), and one that refuses it
// ends the handshake before it could (section 3.2.3: HTTP authentication as the
// fallback where certificates cannot be used). An expired certificate is shown
// where there is nothing else: few CAs take one, and to try costs nothing.
func (a *Applicant) client(ca CA, current *keystore.Slot) (c *est.Client, ask func(*est.Client, context.Context, []byte) ([]*x509.Certificate, error), err error) {
	o := est.Options{URL: ca.URL, Roots: ca.Roots, Credential: ca.Credential, Now: a.Now}
	ask = (*est.Client).SimpleEnroll
	if ca.Credential == nil {
		if current == nil || current.Chain == nil {
			return nil, nil, errors.New("there is no certificate to authenticate with: give the bootstrap credential of the CA with --user and --password-file")
		}
		id, err := a.Identity(current)
		if err != nil {
			return nil, nil, err
		}
		o.Identity, ask = &id, (*est.Client).SimpleReenroll
	}
	c, err = est.New(o)
	return c, ask, err
}

// ask has a certificate issued for the key that waits for one, or for a new one.
// A certificate that waits to be taken up stays until the answer is in and good:
// the other key waits beside it meanwhile, as a CA that has to think wants to see
// its request again (RFC 7030, section 4.2.3).
func (a *Applicant) ask(ctx context.Context, issue func(current, wanted *keystore.Slot, request []byte) ([]*x509.Certificate, error)) (Outcome, error) {
	slots, err := a.Store.Read()
	if err != nil {
		return Outcome{}, err
	}
	asking, err := a.asking(slots)
	if err != nil {
		return Outcome{}, err
	}
	wanted, request, err := asking.waiting(ctx)
	if err != nil {
		return Outcome{}, err
	}
	chain, err := issue(slots.Current, wanted, request)
	if err != nil {
		return Outcome{}, err
	}
	o, err := a.answered(wanted, chain)
	if err == nil && asking != a {
		err = os.RemoveAll(asking.Store.Dir())
	}
	return o, err
}

// answered installs what a CA gave for a key.
func (a *Applicant) answered(wanted *keystore.Slot, all []*x509.Certificate) (Outcome, error) {
	chain, err := order(&keystore.Slots{Next: wanted}, all)
	if err != nil {
		return Outcome{}, err
	}
	return a.put(chain, func(text []byte) (string, error) { return a.Store.InstallPair(wanted.KeyFile, wanted.Request, text) })
}

// asking is whose next slot has the key that a certificate is asked for: ours, or
// that of a store beside it while a certificate has ours, and for as long as a
// key waits there. What cannot be read there, or is of a key that came into a slot
// before a power cut, is of no use.
func (a *Applicant) asking(slots keystore.Slots) (*Applicant, error) {
	if waits(slots.Next) {
		return a, nil
	}
	beside := *a
	beside.Store = keystore.Open(filepath.Join(a.Store.Dir(), "again"))
	left, err := beside.Store.Read()
	if err != nil || left.Next != nil && known(slots, left.Next.Public) {
		left.Next, err = nil, os.RemoveAll(beside.Store.Dir())
	}
	if left.Next == nil && !holds(slots.Next) {
		return a, err
	}
	return &beside, err
}

// waiting is a key in the next slot that has no certificate yet, and its request
// in DER.
func (a *Applicant) waiting(ctx context.Context) (slot *keystore.Slot, request []byte, err error) {
	slots, err := a.Store.Read()
	if err == nil && (slots.Next == nil || slots.Next.Chain != nil || slots.Next.Fault != nil) {
		if _, err = a.NewKey(ctx); err == nil {
			slots, err = a.Store.Read()
		}
	}
	if err != nil {
		return nil, nil, err
	}
	text, err := a.request(ctx, slots)
	if err != nil {
		return nil, nil, err
	}
	csr, err := parseRequest(text)
	if err != nil {
		return nil, nil, err
	}
	return slots.Next, csr.Raw, nil
}

// Attest has a certificate issued by a CA that wants proof that the key is in
// this TPM.
func (a *Applicant) Attest(ctx context.Context, ca CA) (Outcome, error) {
	return a.ask(ctx, func(_, wanted *keystore.Slot, request []byte) ([]*x509.Certificate, error) {
		ak, err := a.attestationKey(ctx)
		if err != nil {
			return nil, err
		}
		client, err := est.New(est.Options{URL: ca.URL, Roots: ca.Roots, Now: a.Now})
		if err != nil {
			return nil, err
		}
		defer client.Close()
		raw, err := attest.Enroll(ctx, client.HTTP(), ca.URL, &device{a, wanted, ak, request})
		var chain []*x509.Certificate
		for i := 0; err == nil && i < len(raw); i++ {
			var c *x509.Certificate
			c, err = x509.ParseCertificate(raw[i])
			chain = append(chain, c)
		}
		return chain, a.fault(ca, err)
	})
}

// attestationKey is the key file of the attestation key, which is made once, and
// again where it is damaged.
func (a *Applicant) attestationKey(ctx context.Context) ([]byte, error) {
	path := filepath.Join(a.Home, "attestation.pem")
	kept, err := keystore.ReadFile(path, keystore.MaxFile)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	text, err := a.TPM.KeepAttestationKey(ctx, kept)
	if err != nil || bytes.Equal(text, kept) {
		return text, err
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
