package enroll

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"

	"github.com/bedside-gateway/gatewayd/keystore"
	"github.com/bedside-gateway/gatewayd/keystore/tpm"
)

// Import takes a key that a PKI made together with its certificate: wrapped to
// the TPM of this gateway (a TSS2 file that tpm.Wrap or another tool made), or
// in the clear where piped is true, so that it comes from no file. The
// certificates may be in the same text; where they are, they have to be for the key.
func (a *Applicant) Import(ctx context.Context, text []byte, piped bool) (Outcome, error) {
	p, err := split(text)
	if err != nil {
		return Outcome{}, err
	}
	if p.clear != nil && !piped {
		return Outcome{}, errors.New("the key is in the clear, in a file on this box: remove the file, and pipe the key in (gatewayd enroll import -) or have the PKI wrap it (gatewayd enroll import --parent)")
	}
	if err := a.Recognise(ctx); err != nil {
		return Outcome{}, err
	}
	if p.clear != nil {
		if p.wrapped, err = a.wrap(ctx, p.clear); err != nil {
			return Outcome{}, err
		}
	}
	return a.take(ctx, p.wrapped, p.certificates)
}

func (a *Applicant) wrap(ctx context.Context, key crypto.Signer) ([]byte, error) {
	parent, err := a.TPM.Parent(ctx)
	if err != nil {
		return nil, err
	}
	return tpm.Wrap(parent, key)
}

// take imports a wrapped key and installs its certificates. The same key again
// changes nothing.
func (a *Applicant) take(ctx context.Context, wrapped []byte, certs []*x509.Certificate) (Outcome, error) {
	loadable, err := a.TPM.Import(ctx, wrapped)
	if err != nil {
		return Outcome{}, err
	}
	key, err := a.TPM.Load(ctx, loadable) // which tries it
	if err != nil {
		return Outcome{}, err
	}
	defer key.Release(ctx)
	if len(certs) > 0 && !slices.ContainsFunc(certs, func(c *x509.Certificate) bool { return keystore.Matches(key.Public(), c) }) {
		return Outcome{}, errors.New("the certificates are for another key than the one beside them")
	}
	o, err := a.keepImported(key, loadable)
	if err != nil || len(certs) == 0 {
		return o, err
	}
	i, err := a.install(certs)
	i.Changed = i.Changed || o.Changed
	return i, err
}

func (a *Applicant) keepImported(key crypto.Signer, loadable []byte) (Outcome, error) {
	slots, err := a.Store.Read()
	if err != nil {
		return Outcome{}, err
	}
	for _, s := range []*keystore.Slot{slots.Current, slots.Next} {
		if s != nil && s.Public != nil && keystore.Mark(s.Public) == keystore.Mark(key.Public()) {
			return Outcome{Done: "The key was imported already.", Next: nextCSR}, nil
		}
	}
	o, err := a.keep(key, loadable)
	if err == nil {
		o.Done = fmt.Sprintf("The key was imported into the TPM: %s.", keystore.Mark(key.Public()))
	}
	return o, err
}

// parts are what Import was given.
type parts struct {
	wrapped      []byte
	clear        crypto.Signer
	certificates []*x509.Certificate
}

func split(text []byte) (p parts, err error) {
	blocks, err := keystore.Blocks(text)
	if err != nil {
		return p, err
	}
	keys := 0
	for i, b := range blocks {
		switch b.Type {
		case "EC PARAMETERS": // openssl writes it in front of a key
		case "CERTIFICATE", "PKCS7":
			list, err := certificatesIn(b)
			if err != nil {
				return p, fmt.Errorf("PEM block %d: %w", i+1, err)
			}
			p.certificates = append(p.certificates, list...)
		case tpm.FileType:
			p.wrapped = pem.EncodeToMemory(b)
			keys++
		default:
			p.clear, err = clearKey(b)
			clear(b.Bytes)
			if err != nil {
				return p, err
			}
			keys++
		}
	}
	if keys != 1 {
		return p, fmt.Errorf("it holds %d keys, and has to hold one", keys)
	}
	return p, nil
}

// clearKey reads a key; its errors quote nothing of it.
func clearKey(b *pem.Block) (crypto.Signer, error) {
	var key any
	var err error
	switch b.Type {
	case "PRIVATE KEY":
		key, err = x509.ParsePKCS8PrivateKey(b.Bytes)
	case "EC PRIVATE KEY":
		key, err = x509.ParseECPrivateKey(b.Bytes)
	case "RSA PRIVATE KEY":
		key, err = x509.ParsePKCS1PrivateKey(b.Bytes)
	case "ENCRYPTED PRIVATE KEY":
		return nil, errors.New("the key is encrypted: decrypt it into the pipe, openssl pkey -in FILE | gatewayd enroll import -")
	default:
		return nil, fmt.Errorf("it holds a %.40q, which is no key and no certificate", b.Type)
	}
	if err != nil {
		return nil, errors.New("its key is damaged: copy it anew")
	}
	switch k := key.(type) {
	case *ecdsa.PrivateKey:
		return k, nil
	case *rsa.PrivateKey:
		return k, nil
	}
	return nil, errors.New("its key is of another kind: P-256, P-384 and RSA of 2048 bits are used")
}
