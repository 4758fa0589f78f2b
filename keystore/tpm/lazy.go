package tpm

import (
	keyfile "github.com/foxboron/go-tpm-keyfiles"
)

// Key reads a key file (PEM) without touching the TPM, so that a gateway whose
// TPM is away starts and says so. The key is loaded when it signs first. Its
// Algorithms are those that its kind does; Load tries them, as enrolment did.
func (t *TPM) Key(text []byte) (*Key, error) {
	const what = "read the key file"
	f, err := parse(text, keyfile.OIDLoadableKey)
	if err != nil {
		return nil, t.fault(what, err)
	}
	k := &Key{tpm: t, file: f}
	if k.public, err = publicKey(&f.public); err != nil {
		return nil, t.fault(what, err)
	}
	for _, a := range candidates(k.public) {
		k.algorithms = append(k.algorithms, a.scheme)
	}
	return k, nil
}
