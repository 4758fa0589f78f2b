package attest

import (
	"crypto"
	"crypto/x509"
	"errors"
	"time"
)

// Options are what a CA knows before it sees the evidence.
type Options struct {
	EKRoots       *x509.CertPool // of the makers of TPMs; nil: no certificate is believed
	Intermediates *x509.CertPool // beside those in the evidence
	// AllowBareEK says yes to the name of an endorsement key (hexadecimal,
	// 000b and the hash for SHA-256) that the CA knows by itself, so that it
	// needs no certificate. nil says yes to none.
	AllowBareEK func(name string) bool
	Nonce       []byte // that this CA gave for this evidence
	Now         time.Time
}

// A Result is what good evidence says.
type Result struct {
	Key           crypto.PublicKey // the device's
	CSR           *x509.CertificateRequest
	EKName        string            // hexadecimal
	AKName        string            // hexadecimal
	EKCertificate *x509.Certificate // nil where the EK was allowed by its name
	TPM           Maker             // as the EK certificate has it
	Firmware      uint64            // as the TPM attests it
}

// A Maker is whom and what the EK certificate names (TCG EK Credential
// Profile, section 3.2.9).
type Maker struct{ Manufacturer, Model, Version string }

// Verify checks all of the evidence but one thing: that AK and EK are in the
// same TPM, which the device shows by opening a Challenge.
func Verify(e Evidence, o Options) (Result, error) {
	return Result{}, errors.ErrUnsupported
}

// Challenge wraps a secret of 16 to 32 bytes so that only the TPM with the EK
// of the evidence opens it, and only for the AK of the evidence
// (TPM2_MakeCredential). The results are the contents of a TPM2B_ID_OBJECT and
// of a TPM2B_ENCRYPTED_SECRET, for TPM2_ActivateCredential.
func Challenge(e Evidence, secret []byte) (credentialBlob, encryptedSecret []byte, err error) {
	return nil, nil, errors.ErrUnsupported
}
