package tpm

import (
	"bytes"
	"context"
	"errors"

	"github.com/google/go-tpm/tpm2"
)

// nonceSize is that of the sessions, in bytes.
const nonceSize = 16

// storageTemplate is the storage key that everything hangs on: ECC P-256 under
// the owner hierarchy, as the specification of TSS2 key files has it for the
// parent 40000001 (TCG template H-2 with an empty unique field). The TPM makes
// the same key of it each time, until its owner is cleared.
func storageTemplate() tpm2.TPMTPublic {
	t := tpm2.ECCSRKTemplate
	t.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{})
	return t
}

// An object is one that is loaded in the TPM.
type object struct {
	handle tpm2.TPMHandle
	name   tpm2.TPM2BName
	public tpm2.TPMTPublic
}

func (o *object) auth(s tpm2.Session) tpm2.AuthHandle {
	return tpm2.AuthHandle{Handle: o.handle, Name: o.name, Auth: s}
}

func salted(o *object) tpm2.AuthOption { return tpm2.Salted(o.handle, o.public) }

// answering is a session for one command whose answer is a secret. The storage
// key that salts it is loaded. All else goes through the link's session, which
// encrypts what the commands carry.
func answering(parent *object) tpm2.Session {
	return tpm2.HMAC(tpm2.TPMAlgSHA256, nonceSize, salted(parent), tpm2.AESEncryption(128, tpm2.EncryptOut))
}

// parent loads the storage key. The caller flushes it. No session protects this
// command, for the sessions hang on what it gives; so what it gives is held
// against the name that is known already, or else by somebody between all
// sessions could be salted with a key of his.
func (l *link) parent() (*object, error) {
	p, err := l.primary(tpm2.TPMRHOwner, storageTemplate())
	if err != nil {
		return nil, err
	}
	expected := l.expected.Load()
	if l.storage == nil {
		l.storage = p.name.Buffer
	}
	if bytes.Equal(p.name.Buffer, l.storage) && (expected == nil || bytes.Equal(p.name.Buffer, expected.Storage)) {
		return p, nil
	}
	l.flush(p.handle)
	if expected == nil {
		return nil, errors.New("its storage key is another than before")
	}
	return nil, l.stranger(expected)
}

func (l *link) primary(hierarchy tpm2.TPMHandle, template tpm2.TPMTPublic) (*object, error) {
	r, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.AuthHandle{Handle: hierarchy, Name: tpm2.HandleName(hierarchy), Auth: tpm2.PasswordAuth(nil)},
		InPublic: tpm2.New2B(template)}.Execute(l)
	if isPassword(err) { // no session is in this, so that the link is in order, and what is loaded works
		return nil, &faultError{OwnerLocked, "the " + nameOfHierarchy(hierarchy) + " hierarchy has a password: " + err.Error()}
	}
	if err != nil {
		return nil, err
	}
	public, err := r.OutPublic.Contents()
	if err != nil {
		l.flush(r.ObjectHandle)
		return nil, err
	}
	// The name is computed here, so that the key that sessions are salted with is
	// the one that the name is of.
	name, err := tpm2.ObjectName(public)
	if err != nil || !bytes.Equal(name.Buffer, r.Name.Buffer) {
		l.flush(r.ObjectHandle)
		return nil, errors.New("it gives a key whose name is not its own")
	}
	return &object{r.ObjectHandle, *name, *public}, nil
}

func nameOfHierarchy(h tpm2.TPMHandle) string {
	if h == tpm2.TPMRHEndorsement {
		return "endorsement"
	}
	return "owner"
}

// A Fingerprint tells one TPM from another, and a TPM that was cleared from
// itself before.
type Fingerprint struct {
	// Storage is the name of the storage key. It changes when the owner is cleared.
	Storage []byte `json:"storage"`
	// Endorsement is the name of the endorsement key (ECC P-256). It stays for the
	// life of the TPM.
	Endorsement []byte `json:"endorsement"`
}

// Fingerprint reads that of the TPM.
func (t *TPM) Fingerprint(ctx context.Context) (f Fingerprint, err error) {
	err = t.use(ctx, "recognise the TPM", func(l *link) error {
		parent, err := l.parent()
		if err != nil {
			return err
		}
		l.flush(parent.handle)
		f.Storage = parent.name.Buffer
		f.Endorsement, err = l.endorsement()
		return err
	})
	return f, err
}

// endorsement is the name of the ECC endorsement key (EK Credential Profile,
// template L-2).
func (l *link) endorsement() ([]byte, error) {
	ek, err := l.primary(tpm2.TPMRHEndorsement, tpm2.ECCEKTemplate)
	if err != nil {
		return nil, err
	}
	l.flush(ek.handle)
	return ek.name.Buffer, nil
}

// stranger says why the storage key is not the expected one.
func (l *link) stranger(expected *Fingerprint) error {
	name, err := l.endorsement()
	if err != nil {
		return err
	}
	if bytes.Equal(name, expected.Endorsement) {
		return &faultError{Cleared, "its owner was cleared since the keys were made"}
	}
	return &faultError{Replaced, "it is another TPM than the one that the keys were made in"}
}
