package tpm

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/big"
	"slices"
	"time"

	keyfile "github.com/foxboron/go-tpm-keyfiles"
	"github.com/google/go-tpm/tpm2"
	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
)

// A Kind is an algorithm of a device key, as key_type in [identity] names it.
type Kind string

// The kinds. P256 is what every TPM 2.0 has.
const (
	P256    Kind = "ecc-p256"
	P384    Kind = "ecc-p384"
	RSA2048 Kind = "rsa-2048"
)

// template is a signing key that was made in the TPM and stays in it, exempt
// from the dictionary attack lockout: somebody who types wrong passwords for
// other keys must not silence the gateway.
func (k Kind) template() (tpm2.TPMTPublic, error) {
	p := tpm2.TPMTPublic{NameAlg: tpm2.TPMAlgSHA256, ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true,
		SensitiveDataOrigin: true, UserWithAuth: true, NoDA: true, SignEncrypt: true}}
	return p, k.parameters(&p)
}

// parameters ties an ECC key to its one hash. An RSA key has the open scheme:
// one that is tied to a scheme could do either TLS 1.2 or TLS 1.3.
func (k Kind) parameters(p *tpm2.TPMTPublic) error {
	switch k {
	case P256, P384:
		curve, hash := tpm2.TPMECCNistP256, tpm2.TPMAlgSHA256
		if k == P384 {
			curve, hash = tpm2.TPMECCNistP384, tpm2.TPMAlgSHA384
		}
		p.Type = tpm2.TPMAlgECC
		p.Parameters = tpm2.NewTPMUPublicParms(p.Type, &tpm2.TPMSECCParms{CurveID: curve, Scheme: tpm2.TPMTECCScheme{
			Scheme: tpm2.TPMAlgECDSA, Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: hash})}})
	case RSA2048:
		p.Type = tpm2.TPMAlgRSA
		p.Parameters = tpm2.NewTPMUPublicParms(p.Type, &tpm2.TPMSRSAParms{KeyBits: 2048, Scheme: tpm2.TPMTRSAScheme{Scheme: tpm2.TPMAlgNull}})
	default:
		return &faultError{Unable, fmt.Sprintf("%q is no kind of key: %s, %s and %s are", k, P256, P384, RSA2048)}
	}
	return nil
}

// A Binding ties a key or a secret to a policy; nil is none.
type Binding struct {
	// Signer is the public key whose approvals the policy takes.
	Signer crypto.PublicKey
}

// Create makes a key in the TPM and gives its file (PEM). Nothing of it stays
// in the TPM, so that a power cut before the file is stored loses nothing but
// the key.
func (t *TPM) Create(ctx context.Context, kind Kind, b *Binding) (text []byte, err error) {
	err = t.use(ctx, "make a key", func(l *link) error {
		template, err := kind.template()
		if err == nil {
			err = b.apply(&template)
		}
		if err != nil {
			return err
		}
		text, err = l.create(template, nil, keyfile.OIDLoadableKey)
		return err
	})
	return text, err
}

func (l *link) create(template tpm2.TPMTPublic, data []byte, kind []int) ([]byte, error) {
	parent, err := l.parent()
	if err != nil {
		return nil, err
	}
	defer l.flush(parent.handle)
	c := tpm2.Create{ParentHandle: parent.auth(l.session), InPublic: tpm2.New2B(template)}
	if data != nil {
		c.InSensitive = tpm2.TPM2BSensitiveCreate{Sensitive: &tpm2.TPMSSensitiveCreate{
			Data: tpm2.NewTPMUSensitiveCreate(&tpm2.TPM2BSensitiveData{Buffer: data})}}
	}
	r, err := c.Execute(l)
	if err != nil {
		return nil, err
	}
	return encode(kind, r.OutPublic, r.OutPrivate), nil
}

// A Key is a key in the TPM: a crypto.Signer for exactly the algorithms that
// Algorithms lists. It is safe for concurrent use; signatures are made one
// after the other.
type Key struct {
	tpm        *TPM
	file       *file
	public     crypto.PublicKey
	algorithms []tls.SignatureScheme
	handle     tpm2.TPMHandle // while it is among the TPM's loaded ones
}

// Key reads a key file (PEM) without touching the TPM, so that a gateway whose
// TPM is away starts and says so. The key is loaded when it signs first. Its
// Algorithms are those that its kind does; Load tries them, as enrolment does.
func (t *TPM) Key(text []byte) (*Key, error) {
	k, err := t.key(text)
	if err != nil {
		return nil, faultOf(readFile, "", err)
	}
	for _, a := range candidates(k.public) {
		k.algorithms = append(k.algorithms, a.scheme)
	}
	return k, nil
}

func (t *TPM) key(text []byte) (*Key, error) {
	f, err := parse(text, keyfile.OIDLoadableKey)
	if err != nil {
		return nil, err
	}
	if err := f.mayBeDevice(); err != nil {
		return nil, err
	}
	public, err := publicKey(&f.public)
	if err != nil {
		return nil, err
	}
	return &Key{tpm: t, file: f, public: public}, nil
}

// Load reads a key file (PEM) and tries the key: it signs something with each
// algorithm that it might do, and does not list those that come out wrong.
func (t *TPM) Load(ctx context.Context, text []byte) (*Key, error) {
	k, err := t.key(text)
	if err == nil {
		if err = k.learn(ctx); err == nil {
			return k, nil
		}
		k.Release(ctx)
	}
	return nil, t.fault("load the key", err)
}

// learn tries the algorithms.
func (k *Key) learn(ctx context.Context) error {
	for _, a := range candidates(k.public) {
		err := k.try(ctx, a)
		if err == nil {
			k.algorithms = append(k.algorithms, a.scheme)
		} else if !errors.Is(err, errWrong) && FaultOf(err) != Unable {
			return err
		}
	}
	if len(k.algorithms) == 0 {
		return &faultError{Unable, "the key signs with no algorithm that TLS has"}
	}
	return nil
}

// An algorithm is a signature as TLS names it.
type algorithm struct {
	scheme  tls.SignatureScheme
	options crypto.SignerOpts
}

var pss256 = &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: crypto.SHA256}

func candidates(public crypto.PublicKey) []algorithm {
	switch p := public.(type) {
	case *ecdsa.PublicKey:
		if p.Curve == elliptic.P384() {
			return []algorithm{{tls.ECDSAWithP384AndSHA384, crypto.SHA384}}
		}
		return []algorithm{{tls.ECDSAWithP256AndSHA256, crypto.SHA256}}
	case *rsa.PublicKey:
		return []algorithm{{tls.PSSWithSHA256, pss256}, {tls.PKCS1WithSHA256, crypto.SHA256}}
	}
	return nil
}

var errWrong = errors.New("the signature is wrong")

// try makes a signature and verifies it. A TPM of an early revision salts PSS
// with as much as fits, which TLS 1.3 does not take.
func (k *Key) try(ctx context.Context, a algorithm) error {
	digest := a.digest()
	signature, err := k.sign(ctx, digest, a.options)
	if err == nil && !a.holds(k.public, digest, signature) {
		err = errWrong
	}
	return err
}

// digest is of a text that nothing else is signed for.
func (a algorithm) digest() []byte {
	h := a.options.HashFunc().New()
	h.Write([]byte("gatewayd tries the key"))
	return h.Sum(nil)
}

func (a algorithm) holds(public crypto.PublicKey, digest, signature []byte) bool {
	switch p := public.(type) {
	case *ecdsa.PublicKey:
		return ecdsa.VerifyASN1(p, digest, signature)
	case *rsa.PublicKey:
		if o, ok := a.options.(*rsa.PSSOptions); ok {
			return rsa.VerifyPSS(p, o.Hash, digest, signature, o) == nil
		}
		return rsa.VerifyPKCS1v15(p, a.options.HashFunc(), digest, signature) == nil
	}
	return false
}

// Public is the public key.
func (k *Key) Public() crypto.PublicKey { return k.public }

// Algorithms are those that the key was seen to do, for
// tls.Certificate.SupportedSignatureAlgorithms: the peer is offered no other.
func (k *Key) Algorithms() []tls.SignatureScheme { return slices.Clone(k.algorithms) }

// Sign signs a digest in the TPM. The TPM has the randomness; the reader is not used.
func (k *Key) Sign(_ io.Reader, digest []byte, o crypto.SignerOpts) ([]byte, error) {
	return k.sign(context.Background(), digest, o)
}

func (k *Key) sign(ctx context.Context, digest []byte, o crypto.SignerOpts) (signature []byte, err error) {
	scheme, err := k.scheme(digest, o)
	if err != nil {
		return nil, k.tpm.fault("sign", err)
	}
	err = k.tpm.use(ctx, "sign", func(l *link) error {
		if err := k.ensure(l); err != nil {
			return err
		}
		begin := time.Now()
		signature, err = k.signature(l, k.object(), digest, scheme)
		if err == nil {
			l.o.Signed(time.Since(begin))
		}
		return err
	})
	return signature, err
}

// signature has the key sign, which is loaded as an object. A password that is
// missing is the key's here, unless the session is not what it was; so it is
// asked on a new link as well.
func (k *Key) signature(l *link, o *object, digest []byte, scheme tpm2.TPMTSigScheme) (signature []byte, err error) {
	err = l.with(l.session, k.file, func(auth tpm2.Session, more ...tpm2.Session) error {
		r, err := tpm2.Sign{KeyHandle: o.auth(auth), Digest: tpm2.TPM2BDigest{Buffer: digest}, InScheme: scheme,
			Validation: tpm2.TPMTTKHashCheck{Tag: tpm2.TPMSTHashCheck, Hierarchy: tpm2.TPMRHNull}}.Execute(l, more...)
		if isPassword(err) {
			return fmt.Errorf("%w: %w", &faultError{Foreign, "the key has a password, and nobody is there to type it"}, err)
		}
		if err != nil {
			return err
		}
		signature, err = encodeSignature(r.Signature)
		return err
	})
	return signature, err
}

// Try makes sure that the next handshake will have its signature: the TPM is
// there and is the expected one with the storage key that all hangs on, the key
// loads under it, the state of the platform fulfils its policy, and what it signs
// holds. What was loaded before stays loaded, where there is room.
//
// It is one more user of the TPM: it waits for its turn, and has it for the time
// of two or three signatures (2 ms in swtpm). The context bounds both; a deadline
// that passes while others have the TPM is Busy. Errors are *Error.
func (k *Key) Try(ctx context.Context) error {
	all := candidates(k.public)
	a := all[len(all)-1] // a TPM may salt PSS in a way of its own
	digest := a.digest()
	scheme, err := k.scheme(digest, a.options)
	if err != nil {
		return k.tpm.fault(tryKey, err)
	}
	var signature []byte
	err = k.tpm.use(ctx, tryKey, func(l *link) error {
		o, end, err := k.borrow(l)
		if err != nil {
			return err
		}
		defer end()
		signature, err = k.signature(l, o, digest, scheme)
		return err
	})
	if err == nil && !a.holds(k.public, digest, signature) {
		err = k.tpm.fault(tryKey, &faultError{Failing, errWrong.Error()})
	}
	return err
}

const tryKey = "try the key"

// borrow is the key as an object: that of a Key of the same file where it is
// loaded already, or one that is flushed in the end. The storage key is made in
// any case, so that a TPM that was cleared is recognised as such.
func (k *Key) borrow(l *link) (o *object, end func(), err error) {
	parent, err := l.parent()
	if err != nil {
		return nil, nil, err
	}
	defer l.flush(parent.handle)
	if i := slices.IndexFunc(k.tpm.loaded, func(other *Key) bool { return other.file.same(k.file) }); i >= 0 {
		return k.tpm.loaded[i].object(), func() {}, nil
	}
	if o, err = l.load(parent, k.file); err != nil {
		return nil, nil, err
	}
	return o, func() { l.flush(o.handle) }, nil
}

// scheme is the signature scheme for a digest, and refuses what the key is not for.
func (k *Key) scheme(digest []byte, o crypto.SignerOpts) (s tpm2.TPMTSigScheme, err error) {
	hash, err := k.hash(digest, o)
	if err != nil {
		return s, err
	}
	s.Scheme = tpm2.TPMAlgECDSA
	if _, ok := k.public.(*rsa.PublicKey); ok {
		s.Scheme = tpm2.TPMAlgRSASSA
		if p, ok := o.(*rsa.PSSOptions); ok {
			if p.SaltLength != rsa.PSSSaltLengthEqualsHash && p.SaltLength != hashSize(o) {
				return s, &faultError{Unable, "the TPM salts PSS with as many bytes as the hash has, and no other number"}
			}
			s.Scheme = tpm2.TPMAlgRSAPSS
		}
	}
	s.Details = tpm2.NewTPMUSigScheme(s.Scheme, &tpm2.TPMSSchemeHash{HashAlg: hash})
	return s, nil
}

func hashSize(o crypto.SignerOpts) int { return o.HashFunc().Size() }

func (k *Key) hash(digest []byte, o crypto.SignerOpts) (tpm2.TPMIAlgHash, error) {
	want := candidates(k.public)[0].options.HashFunc()
	if o == nil || o.HashFunc() != want || len(digest) != want.Size() {
		return 0, &faultError{Unable, fmt.Sprintf("the key signs digests of %v only", want)}
	}
	if want == crypto.SHA384 {
		return tpm2.TPMAlgSHA384, nil
	}
	return tpm2.TPMAlgSHA256, nil
}

func (k *Key) object() *object { return &object{k.handle, k.file.name, k.file.public} }

// ensure loads the key where it is not: the storage key is made for that and
// flushed again, for room in a TPM is for three.
func (k *Key) ensure(l *link) error {
	if i := slices.Index(k.tpm.loaded, k); i >= 0 {
		k.tpm.loaded = append(slices.Delete(k.tpm.loaded, i, i+1), k)
		return nil
	}
	parent, err := l.parent()
	if err != nil {
		return err
	}
	defer l.flush(parent.handle)
	o, err := l.load(parent, k.file)
	if err != nil {
		return err
	}
	k.handle = o.handle
	k.tpm.loaded = append(k.tpm.loaded, k)
	return nil
}

// Release takes the key out of the TPM, where it takes room, unless the TPM is
// too busy for it. It is loaded again when it signs next.
func (k *Key) Release(ctx context.Context) {
	t := k.tpm
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), farewell)
	defer cancel()
	if t.await(ctx) != nil {
		return
	}
	defer func() { t.turn <- struct{}{} }()
	if i := slices.Index(t.loaded, k); i >= 0 {
		t.link.ctx = ctx
		t.link.flush(k.handle)
		t.loaded = slices.Delete(t.loaded, i, i+1)
	}
}

// encodeSignature gives a signature the form that TLS has for it: r and s in
// ASN.1 (RFC 3279 section 2.2.3), or the bytes of RSA.
func encodeSignature(s tpm2.TPMTSignature) ([]byte, error) {
	switch s.SigAlg {
	case tpm2.TPMAlgECDSA:
		e, err := s.Signature.ECDSA()
		if err != nil {
			return nil, err
		}
		var b cryptobyte.Builder
		b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1BigInt(new(big.Int).SetBytes(e.SignatureR.Buffer))
			b.AddASN1BigInt(new(big.Int).SetBytes(e.SignatureS.Buffer))
		})
		return b.Bytes()
	case tpm2.TPMAlgRSASSA:
		r, err := s.Signature.RSASSA()
		if err != nil {
			return nil, err
		}
		return r.Sig.Buffer, nil
	case tpm2.TPMAlgRSAPSS:
		r, err := s.Signature.RSAPSS()
		if err != nil {
			return nil, err
		}
		return r.Sig.Buffer, nil
	}
	return nil, fmt.Errorf("it signs with the algorithm %#x, which was not asked for", uint16(s.SigAlg))
}
