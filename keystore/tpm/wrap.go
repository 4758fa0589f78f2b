package tpm

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/pem"
	"errors"
	"fmt"

	keyfile "github.com/foxboron/go-tpm-keyfiles"
	"github.com/google/go-tpm/tpm2"
)

// ParentType is the PEM type of the storage key's public area, for a PKI that
// wraps a key to this TPM.
const ParentType = "TPM2 STORAGE KEY"

// Parent gives the public area of the storage key (PEM): what a PKI wraps a key
// to with Wrap, so that the clear key is never on this box.
func (t *TPM) Parent(ctx context.Context) (text []byte, err error) {
	err = t.use(ctx, "read the storage key", func(l *link) error {
		parent, err := l.parent()
		if err != nil {
			return err
		}
		l.flush(parent.handle)
		text = pem.EncodeToMemory(&pem.Block{Type: ParentType, Bytes: tpm2.Marshal(parent.public)})
		return nil
	})
	return text, err
}

// Wrap encrypts a key to the TPM whose Parent this is (TPM 2.0 Part 1, 23.3,
// outer wrapper), as an importable key file (PEM). It needs no TPM.
func Wrap(parent []byte, key crypto.Signer) ([]byte, error) {
	block, _ := pem.Decode(parent)
	if block == nil || block.Type != ParentType {
		return nil, fmt.Errorf("there is no PEM block %q: take what gatewayd enroll import --parent prints", ParentType)
	}
	public, err := tpm2.Unmarshal[tpm2.TPMTPublic](block.Bytes)
	if err != nil || !public.ObjectAttributes.Restricted || !public.ObjectAttributes.Decrypt {
		return nil, errors.New("this is no storage key of a TPM: take what gatewayd enroll import --parent prints")
	}
	to, err := tpm2.ImportEncapsulationKey(public)
	if err != nil {
		return nil, fmt.Errorf("the storage key: %w", err)
	}
	of, sensitive, err := clearKey(key)
	if err != nil {
		return nil, err
	}
	name, err := tpm2.ObjectName(of)
	if err != nil {
		return nil, err
	}
	plain := tpm2.Marshal(*sensitive)
	defer clear(plain) // the key itself is the caller's, and package tpm2 has a copy in a buffer of its own
	private, secret, err := tpm2.CreateDuplicate(rand.Reader, to, name.Buffer, plain)
	if err != nil {
		return nil, fmt.Errorf("wrapping the key: %w", err)
	}
	return encode(keyfile.OIDImportableKey, tpm2.New2B(*of), tpm2.TPM2BPrivate{Buffer: private},
		keyfile.WithSecret(tpm2.TPM2BEncryptedSecret{Buffer: secret})), nil
}

// clearKey is a key as a TPM has it: not fixed to one, for it was made outside.
func clearKey(key crypto.Signer) (*tpm2.TPMTPublic, *tpm2.TPMTSensitive, error) {
	p := &tpm2.TPMTPublic{NameAlg: tpm2.TPMAlgSHA256, ObjectAttributes: tpm2.TPMAObject{UserWithAuth: true, NoDA: true, SignEncrypt: true}}
	switch k := key.(type) {
	case *ecdsa.PrivateKey:
		return eccKey(p, k)
	case *rsa.PrivateKey:
		if k.N.BitLen() != 2048 || k.E != 65537 || len(k.Primes) != 2 {
			return nil, nil, errors.New("an RSA key has to have 2048 bits and the exponent 65537")
		}
		p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: k.N.Bytes()})
		s := &tpm2.TPMTSensitive{SensitiveType: tpm2.TPMAlgRSA,
			Sensitive: tpm2.NewTPMUSensitiveComposite(tpm2.TPMAlgRSA, &tpm2.TPM2BPrivateKeyRSA{Buffer: k.Primes[0].Bytes()})}
		return p, s, RSA2048.parameters(p)
	}
	return nil, nil, errors.New("a key on P-256 or P-384, or an RSA key of 2048 bits, can be wrapped")
}

func eccKey(p *tpm2.TPMTPublic, k *ecdsa.PrivateKey) (*tpm2.TPMTPublic, *tpm2.TPMTSensitive, error) {
	kind := P256
	switch k.Curve {
	case elliptic.P256():
	case elliptic.P384():
		kind = P384
	default:
		return nil, nil, errors.New("a key on P-256 or P-384, or an RSA key of 2048 bits, can be wrapped")
	}
	point, err := k.PublicKey.Bytes()
	if err != nil {
		return nil, nil, err
	}
	d, err := k.Bytes()
	if err != nil {
		return nil, nil, err
	}
	n := len(point) / 2
	p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{X: tpm2.TPM2BECCParameter{Buffer: point[1 : 1+n]}, Y: tpm2.TPM2BECCParameter{Buffer: point[1+n:]}})
	s := &tpm2.TPMTSensitive{SensitiveType: tpm2.TPMAlgECC,
		Sensitive: tpm2.NewTPMUSensitiveComposite(tpm2.TPMAlgECC, &tpm2.TPM2BECCParameter{Buffer: d})}
	return p, s, kind.parameters(p)
}

const nextWrap = "print this TPM's storage key (gatewayd enroll import --parent), have the PKI wrap the key to that, and import what it gives; the gateway's own keys are in order"

// Import makes a key file for this TPM of an importable one (TPM2_Import). One
// that was wrapped to another TPM has the fault Astray.
func (t *TPM) Import(ctx context.Context, text []byte) (loadable []byte, err error) {
	const what = "import the key"
	f, err := parse(text, keyfile.OIDImportableKey)
	if err == nil && !f.public.ObjectAttributes.SignEncrypt {
		err = damaged("is of a key that does not sign")
	}
	if err != nil {
		return nil, faultOf(what, "", advised(err, nextWrap, Foreign, Tampered))
	}
	err = t.use(ctx, what, func(l *link) error {
		parent, err := l.parent()
		if err != nil {
			return err
		}
		defer l.flush(parent.handle)
		r, err := tpm2.Import{ParentHandle: parent.auth(l.session), ObjectPublic: tpm2.New2B(f.public), Duplicate: f.private, InSymSeed: f.secret,
			Symmetric: tpm2.TPMTSymDef{Algorithm: tpm2.TPMAlgNull}}.Execute(l)
		if isOfFile(err) {
			return advised(&faultError{Astray, "the key is wrapped to another TPM, or to this one before it was cleared, or was changed: " + err.Error()}, nextWrap, Astray)
		}
		if err != nil {
			return err
		}
		loadable = encode(keyfile.OIDLoadableKey, tpm2.New2B(f.public), r.OutPrivate)
		return nil
	})
	return loadable, err
}
