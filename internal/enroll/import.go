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
	"math/big"
	"strings"

	"github.com/bedside-gateway/gatewayd/keystore"
	"github.com/bedside-gateway/gatewayd/keystore/tpm"
)

// Import takes a key that a PKI made together with its certificate: wrapped to
// the TPM of this gateway (a TSS2 file that Wrap or another tool made), or in the
// clear where piped is true, so that it comes from no file. The certificates may
// be in the same text; where they are, they have to be for the key.
//
// Of a clear key it wipes what it can reach, text included. Packages x509,
// crypto/ecdsa, crypto/rsa and tpm2 make copies that nobody can reach, and the
// collector frees memory without wiping it; only a build with package
// runtime/secret (GOEXPERIMENT=runtimesecret) wipes those as well. So import a
// clear key in a process that ends then, as gatewayd enroll import does, and
// never in the daemon.
func (a *Applicant) Import(ctx context.Context, text []byte, piped bool) (Outcome, error) {
	isClear, err := holdsClearKey(text)
	if err != nil {
		return Outcome{}, err
	}
	if isClear {
		defer clear(text)
		if !piped {
			return Outcome{}, errors.New("the key is in the clear, in a file on this box: remove the file, and pipe the key in (gatewayd enroll import -) or have the PKI wrap it (gatewayd enroll import --parent)")
		}
		if text, err = a.wrap(ctx, text); err != nil {
			return Outcome{}, err
		}
	}
	p, err := split(text)
	if err != nil {
		return Outcome{}, err
	}
	return a.take(ctx, p.wrapped, p.certificates)
}

// holdsClearKey goes by the names of the PEM blocks.
func holdsClearKey(text []byte) (is bool, err error) {
	blocks, err := keystore.Blocks(text)
	for _, b := range blocks {
		is = is || strings.HasSuffix(b.Type, "PRIVATE KEY") && b.Type != tpm.FileType && !isEncrypted(b)
		clear(b.Bytes)
	}
	return is, err
}

func isEncrypted(b *pem.Block) bool {
	return b.Type == "ENCRYPTED PRIVATE KEY" || b.Headers["DEK-Info"] != ""
}

func (a *Applicant) wrap(ctx context.Context, text []byte) ([]byte, error) {
	parent, err := a.TPM.Parent(ctx)
	if err != nil {
		return nil, err
	}
	return Wrap(parent, text)
}

// take imports a wrapped key and installs its certificates. All is judged before
// anything is kept: what waits is given up for a key that will do and no other.
// The same key again changes nothing.
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
	slots, err := a.Store.Read()
	switch {
	case err != nil:
		return Outcome{}, err
	case len(certs) > 0:
		return a.takePair(ctx, slots, key, loadable, certs)
	case known(slots, key.Public()):
		return Outcome{Done: "The key was imported already.", Next: a.nextCSR()}, nil
	}
	return a.takeKey(ctx, key, loadable)
}

func (a *Applicant) takeKey(ctx context.Context, key crypto.Signer, loadable []byte) (Outcome, error) {
	if err := a.Recognise(ctx); err != nil {
		return Outcome{}, err
	}
	o, err := a.keep(key, loadable)
	if err == nil {
		o.Done = fmt.Sprintf("The key was imported into the TPM: %s.", keystore.Mark(key.Public()))
	}
	return o, err
}

func (a *Applicant) takePair(ctx context.Context, slots keystore.Slots, key crypto.Signer, loadable []byte, certs []*x509.Certificate) (Outcome, error) {
	chain := chainFor(key.Public(), certs)
	switch {
	case chain == nil:
		return Outcome{}, errForeign
	case known(slots, key.Public()):
		return a.install(certs)
	}
	request, err := keystore.Request(key, a.Subject)
	if err != nil {
		return Outcome{}, err
	}
	return a.put(chain, func(text []byte) (string, error) {
		if err := a.Recognise(ctx); err != nil {
			return "", err
		}
		return a.Store.InstallPair(loadable, request, text)
	})
}

var errForeign = errors.New("the certificates are for another key than the one beside them")

// Wrap wraps the clear key in text to the TPM whose tpm.TPM.Parent it is given,
// for a PKI: what Import takes, with the certificates of text behind the key.
func Wrap(parent, text []byte) (wrapped []byte, err error) {
	secretly(func() { wrapped, err = wrap(parent, text) })
	return wrapped, err
}

func wrap(parent, text []byte) ([]byte, error) {
	p, err := split(text)
	defer p.wipe()
	switch {
	case err != nil:
		return nil, err
	case p.clear == nil:
		return nil, errors.New("the key is in a TPM or wrapped to one already")
	case len(p.certificates) == 0:
		return tpm.Wrap(parent, p.clear)
	}
	chain := chainFor(p.clear.Public(), p.certificates)
	if chain == nil {
		return nil, errForeign
	}
	wrapped, err := tpm.Wrap(parent, p.clear)
	return append(wrapped, encode(chain)...), err
}

// ClearKey is the one key in text (PEM, in the clear).
func ClearKey(text []byte) (crypto.Signer, error) {
	p, err := split(text)
	if err == nil && p.clear == nil {
		err = errors.New("the key is one of a TPM")
	}
	return p.clear, err
}

// parts are what Import or Wrap was given.
type parts struct {
	wrapped      []byte
	clear        crypto.Signer
	certificates []*x509.Certificate
}

// wipe overwrites the numbers that are the private key.
func (p *parts) wipe() {
	switch k := p.clear.(type) {
	case *ecdsa.PrivateKey:
		//lint:ignore SA1019 it is wiped, not used
		clear(k.D.Bits())
	case *rsa.PrivateKey:
		for _, n := range append([]*big.Int{k.D, k.Precomputed.Dp, k.Precomputed.Dq, k.Precomputed.Qinv}, k.Primes...) {
			if n != nil {
				clear(n.Bits())
			}
		}
	}
}

func split(text []byte) (p parts, err error) {
	blocks, err := keystore.Blocks(text)
	if err != nil {
		return p, err
	}
	defer func() {
		for _, b := range blocks {
			if !isCertificates(b) { // those are still in use
				clear(b.Bytes)
			}
		}
	}()
	keys := 0
	for i, b := range blocks {
		switch {
		case b.Type == "EC PARAMETERS": // openssl writes it in front of a key
			continue
		case isCertificates(b):
			var list []*x509.Certificate
			list, err = certificatesIn(b)
			p.certificates = append(p.certificates, list...)
		case b.Type == tpm.FileType:
			p.wrapped = pem.EncodeToMemory(b)
			keys++
		default:
			p.wipe() // another one
			p.clear, err = clearKey(b)
			keys++
		}
		if err != nil {
			return p, fmt.Errorf("PEM block %d: %w", i+1, err)
		}
	}
	if keys != 1 {
		return p, fmt.Errorf("it holds %d keys, and has to hold one", keys)
	}
	return p, nil
}

func isCertificates(b *pem.Block) bool { return b.Type == "CERTIFICATE" || b.Type == "PKCS7" }

// clearKey reads a key; its errors quote nothing of it.
func clearKey(b *pem.Block) (crypto.Signer, error) {
	var key any
	var err error
	switch {
	case isEncrypted(b):
		return nil, errors.New("the key is encrypted: decrypt it into a pipe (openssl pkey -in FILE |), and give the file - here")
	case b.Type == "PRIVATE KEY":
		key, err = x509.ParsePKCS8PrivateKey(b.Bytes)
	case b.Type == "EC PRIVATE KEY":
		key, err = x509.ParseECPrivateKey(b.Bytes)
	case b.Type == "RSA PRIVATE KEY":
		key, err = x509.ParsePKCS1PrivateKey(b.Bytes)
	default:
		return nil, fmt.Errorf("it is a %.40q, which is no key and no certificate", b.Type)
	}
	if err != nil {
		return nil, errors.New("the key is damaged: copy it anew")
	}
	switch k := key.(type) {
	case *ecdsa.PrivateKey:
		return k, nil
	case *rsa.PrivateKey:
		return k, nil
	}
	return nil, errors.New("the key is of another kind: P-256, P-384 and RSA of 2048 bits are used")
}
