// Package attest is factory attestation as the CA sees it, and the words in
// which device and CA speak of it: evidence that the key in a certificate
// request lives in a TPM, and in the very TPM whose maker certified its
// endorsement key.
//
// Three links make the proof. The maker's certificate vouches for the
// endorsement key (EK). A credential that only that TPM can open, and only for
// the attestation key (AK) that is in it, ties the AK to the EK. The AK, which
// signs nothing but what the TPM itself says, certifies the device's key. Each
// link by itself proves nothing, and Verify refuses with the link that broke.
//
// The package never talks to a TPM: keystore/tpm makes the evidence. Verify and
// Challenge are called by a CA, Enroll by the daemon.
package attest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// Version is that of the Evidence that this package reads and writes.
const Version = 1

// Limits of what a device sends.
const (
	maxEvidence      = 64 << 10 // bytes of JSON
	maxIntermediates = 8
)

// Evidence is what a device sends of its key. Binary fields are the TPM's own
// structures (TPM 2.0 Library, Part 2), without the two bytes of length that a
// TPM2B would put before them; in JSON they are base64.
type Evidence struct {
	Version         int      `json:"version"`
	EKCertificate   []byte   `json:"ek_certificate,omitempty"` // DER; empty where the TPM has none
	EKIntermediates [][]byte `json:"ek_intermediates,omitempty"`
	EK              []byte   `json:"ek"`          // TPMT_PUBLIC
	AK              []byte   `json:"ak"`          // TPMT_PUBLIC
	Key             []byte   `json:"key"`         // TPMT_PUBLIC of the device's key
	Attestation     []byte   `json:"attestation"` // TPMS_ATTEST of TPM2_Certify, its qualifying data are Nonce
	Signature       []byte   `json:"signature"`   // TPMT_SIGNATURE by the AK over Attestation
	CSR             []byte   `json:"csr"`         // PKCS #10, DER
	Nonce           []byte   `json:"nonce"`       // the CA's
}

// Marshal is the JSON form, with the version filled in.
func (e Evidence) Marshal() ([]byte, error) {
	e.Version = Version
	return json.Marshal(e)
}

// Parse reads the JSON form of at most 64 KiB, and says nothing of whether the
// evidence is any good. A field that it does not know is refused: it might be
// one that limits what the others say.
func Parse(text []byte) (Evidence, error) {
	var e Evidence
	if len(text) > maxEvidence {
		return Evidence{}, fmt.Errorf("evidence of %d bytes: %d are the most", len(text), maxEvidence)
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&e); err != nil {
		return Evidence{}, fmt.Errorf("evidence cannot be read: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return Evidence{}, errors.New("evidence is followed by something else")
	}
	return e, e.check()
}

// check is about the form alone.
func (e *Evidence) check() error {
	if e.Version != Version {
		return fmt.Errorf("evidence has the version %d, this CA reads %d: update the older side", e.Version, Version)
	}
	if len(e.EKIntermediates) > maxIntermediates {
		return fmt.Errorf("evidence has %d intermediate certificates: %d are the most", len(e.EKIntermediates), maxIntermediates)
	}
	return nil
}
