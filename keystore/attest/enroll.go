package attest

import (
	"context"
	"errors"
	"net/http"
)

// A Device makes evidence of its key and opens challenges: keystore/tpm is one.
type Device interface {
	// Evidence is about the device's key, with the CA's nonce in it.
	Evidence(ctx context.Context, nonce []byte) (Evidence, error)
	// Activate opens a challenge by TPM2_ActivateCredential.
	Activate(ctx context.Context, credentialBlob, encryptedSecret []byte) ([]byte, error)
}

// Enroll has a certificate issued by the CA at the URL, and gives its chain in
// DER, leaf first.
func Enroll(ctx context.Context, client *http.Client, url string, device Device) (chain [][]byte, err error) {
	return nil, errors.ErrUnsupported
}
