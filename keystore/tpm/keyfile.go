package tpm

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"

	keyfile "github.com/foxboron/go-tpm-keyfiles"
	"github.com/google/go-tpm/tpm2"
)

// FileType is the PEM type of a key file.
const FileType = "TSS2 PRIVATE KEY"

// maxFile bounds a key file: one of an RSA key has some 700 bytes.
const maxFile = 16 << 10

// A file is a key file that has been read.
type file struct {
	public  tpm2.TPMTPublic
	name    tpm2.TPM2BName
	private tpm2.TPM2BPrivate
	secret  tpm2.TPM2BEncryptedSecret // of a file that is still to be imported
	bound   bool                      // to a policy, and to be used by nothing else
}

// same reports whether two files are of one object.
func (f *file) same(other *file) bool {
	return bytes.Equal(f.name.Buffer, other.name.Buffer) && bytes.Equal(f.private.Buffer, other.private.Buffer)
}

// encode makes a key file of an object under the storage key. It has no
// description, with which tpm2-openssl up to 1.1 cannot read it.
func encode(kind asn1.ObjectIdentifier, public tpm2.TPM2BPublic, private tpm2.TPM2BPrivate, more ...keyfile.TPMKeyOption) []byte {
	return keyfile.NewTPMKey(kind, public, private, more...).Bytes()
}

// damaged is the fault of a file that cannot be what was written.
func damaged(format string, args ...any) error {
	return &faultError{Tampered, "the key file " + fmt.Sprintf(format, args...)}
}

// parse reads a key file of one of our kinds, of which it looks at all that can
// be judged without the TPM.
func parse(text []byte, kind asn1.ObjectIdentifier) (f *file, err error) {
	block, rest := pem.Decode(text)
	switch {
	case len(text) > maxFile:
		return nil, damaged("has more than %d bytes", maxFile)
	case block == nil || block.Type != FileType:
		return nil, damaged("holds no PEM block %q", FileType)
	case len(bytes.TrimSpace(rest)) > 0:
		return nil, damaged("holds something behind its key")
	}
	k, err := keyfile.Parse(block.Bytes)
	if err != nil {
		return nil, damaged("cannot be read: %v", err)
	}
	switch {
	case !k.Keytype.Equal(kind):
		return nil, damaged("is of another kind: %v and not %v", k.Keytype, kind)
	case k.Parent != tpm2.TPMRHOwner:
		return nil, &faultError{Foreign, fmt.Sprintf("the key file is under the parent %08x, and ours is the storage key of the owner", uint32(k.Parent))}
	case !k.EmptyAuth:
		return nil, &faultError{Foreign, "the key file is of a key with a password, and nobody is there to type it"}
	}
	public, err := k.Pubkey.Contents()
	if err != nil {
		return nil, damaged("has no public area that can be read: %v", err)
	}
	name, err := tpm2.ObjectName(public)
	if err != nil {
		return nil, damaged("has no name: %v", err)
	}
	return &file{public: *public, name: *name, private: k.Privkey, secret: k.Secret,
		bound: len(public.AuthPolicy.Buffer) > 0 && !public.ObjectAttributes.UserWithAuth}, nil
}

const readFile = "read the key file" // for which no TPM is needed

// PublicKey reads the public key of a key file, without a TPM. Errors have the
// fault Tampered or Foreign.
func PublicKey(text []byte) (crypto.PublicKey, error) {
	f, err := parse(text, keyfile.OIDLoadableKey)
	if err != nil {
		return nil, faultOf(readFile, "", err)
	}
	key, err := publicKey(&f.public)
	if err != nil {
		return nil, faultOf(readFile, "", err)
	}
	return key, nil
}

// publicKey is that of a kind of ours.
func publicKey(p *tpm2.TPMTPublic) (crypto.PublicKey, error) {
	key, err := tpm2.Pub(*p)
	if err != nil {
		return nil, damaged("has a public key that is none: %v", err)
	}
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		if k.Curve != elliptic.P256() && k.Curve != elliptic.P384() {
			return nil, &faultError{Unable, "the key is on " + k.Curve.Params().Name + ": P-256 and P-384 are possible"}
		}
		if _, err := k.Bytes(); err != nil {
			return nil, damaged("has a public key that is none: %v", err)
		}
	case *rsa.PublicKey:
		if k.N.BitLen() != 2048 || k.E != 65537 {
			return nil, &faultError{Unable, "the RSA key has not 2048 bits and the exponent 65537"}
		}
	}
	return key, nil
}

// mayBeDevice refuses keys that are no device key, whoever made them. One that
// is not exempt from the lockout could be silenced by wrong passwords for others.
func (f *file) mayBeDevice() error {
	switch a := f.public.ObjectAttributes; {
	case !a.SignEncrypt:
		return &faultError{Unable, "the key does not sign"}
	case a.Restricted:
		return &faultError{Unable, "the key signs only what the TPM says, such as an attestation key does"}
	case !a.NoDA:
		return &faultError{Unable, "the key is subject to the dictionary attack lockout: make it with noDA"}
	}
	return nil
}

// load loads an object under the storage key. The caller flushes it.
func (l *link) load(parent *object, f *file) (*object, error) {
	r, err := tpm2.Load{ParentHandle: parent.auth(l.session), InPrivate: f.private, InPublic: tpm2.New2B(f.public)}.Execute(l)
	if err != nil {
		return nil, loadFault(err)
	}
	if !bytes.Equal(r.Name.Buffer, f.name.Buffer) {
		l.flush(r.ObjectHandle)
		return nil, errors.New("it loaded another key than the file's")
	}
	return &object{r.ObjectHandle, f.name, f.public}, nil
}

// loadFault names a file that the TPM takes exception to, which it does by the
// number of a parameter. Foreign or changed cannot be told apart: the integrity
// value of the private area is over a secret of the parent.
func loadFault(err error) error {
	if isOfFile(err) {
		return &faultError{Foreign, "the key file is not one of this TPM, or was changed: " + err.Error()}
	}
	return err
}

// isOfFile reports whether an answer is about the file that was sent, and not
// about a curve that the TPM lacks.
func isOfFile(err error) bool { return isParameter(err) && !errors.Is(err, tpm2.TPMRCCurve) }

// isParameter reports whether an answer is about what was sent (Part 2, 6.6.3).
func isParameter(err error) bool {
	rc, ok := errors.AsType[tpm2.TPMRC](err)
	var f tpm2.TPMFmt1Error
	if !ok || !rc.As(&f) {
		return false
	}
	is, _ := f.Parameter()
	return is
}
