package tpm

import (
	"context"

	keyfile "github.com/foxboron/go-tpm-keyfiles"
	"github.com/google/go-tpm/tpm2"
)

// MaxSecret is how many bytes Seal takes (TPM 2.0, MAX_SYM_DATA).
const MaxSecret = 128

// Seal gives a file (PEM) that holds a secret which only this TPM, and while
// its owner is not cleared, gives back.
func (t *TPM) Seal(ctx context.Context, secret []byte, b *Binding) (text []byte, err error) {
	err = t.use(ctx, "seal a secret", func(l *link) error {
		template := tpm2.TPMTPublic{Type: tpm2.TPMAlgKeyedHash, NameAlg: tpm2.TPMAlgSHA256,
			ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, UserWithAuth: true, NoDA: true},
			Parameters:       tpm2.NewTPMUPublicParms(tpm2.TPMAlgKeyedHash, &tpm2.TPMSKeyedHashParms{Scheme: tpm2.TPMTKeyedHashScheme{Scheme: tpm2.TPMAlgNull}})}
		if len(secret) == 0 || len(secret) > MaxSecret {
			return &faultError{Unable, "a secret has 1 to 128 bytes"}
		}
		err := b.apply(&template)
		if err == nil {
			text, err = l.create(template, secret, keyfile.OIDSealedKey)
		}
		return err
	})
	return text, err
}

const nextSealed = "bring the file back from a copy; if there is none, begin anew, and " + spoolIsLost + ": " + AnewWithout + thenCertificate

// Unseal gives a secret back that Seal took. On the way from the TPM it is
// encrypted. The caller clears it after use; copies stay in the memory of the process
// until it is used for something else, in buffers of package tpm2.
func (t *TPM) Unseal(ctx context.Context, text []byte) (secret []byte, err error) {
	const what = "unseal a secret"
	f, err := parse(text, keyfile.OIDSealedKey)
	if err != nil {
		return nil, faultOf(what, "", advised(err, nextSealed, Foreign, Tampered))
	}
	err = t.use(ctx, what, func(l *link) error {
		parent, err := l.parent()
		if err != nil {
			return err
		}
		defer l.flush(parent.handle)
		o, err := l.load(parent, f)
		if err != nil {
			return advised(err, nextSealed, Foreign)
		}
		defer l.flush(o.handle)
		return l.with(answering(parent), f, func(auth tpm2.Session, more ...tpm2.Session) error {
			r, err := tpm2.Unseal{ItemHandle: o.auth(auth)}.Execute(l, more...)
			if err == nil {
				secret = r.OutData.Buffer
			}
			return err
		})
	})
	return secret, err
}
