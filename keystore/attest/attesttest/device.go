package attesttest

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"io"
	"math/big"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/bedside-gateway/gatewayd/keystore/attest"
)

// An EK is one of the endorsement keys of the TPM.
type EK struct {
	Name        string
	Handle      tpm2.TPMHandle // persistent, or 0
	Certificate uint32         // NV index, or 0
	Auth        func(*Device) tpm2.Session
}

// EKs are those that Start made, and one that nobody certified.
func EKs() []EK {
	policy := func(d *Device) tpm2.Session {
		return tpm2.Policy(tpm2.TPMAlgSHA256, 16, func(_ transport.TPM, session tpm2.TPMISHPolicy, _ tpm2.TPM2BNonce) error {
			_, err := tpm2.PolicySecret{AuthHandle: tpm2.TPMRHEndorsement, PolicySession: session, NonceTPM: tpm2.TPM2BNonce{}}.Execute(d.tpm)
			return err
		})
	}
	password := func(*Device) tpm2.Session { return tpm2.PasswordAuth(nil) }
	return []EK{
		{"RSA-2048 with a certificate", 0x81010001, 0x01c00002, policy},
		{"P-384 with a certificate", 0x81010016, 0x01c00016, password},
		{"P-256 without a certificate", 0, 0, policy},
	}
}

// A Device has a key and an attestation key in a TPM. It is an attest.Device
// and the crypto.Signer of its key.
type Device struct {
	tpm       *TPM
	ek        EK
	csr       []byte
	ekHandle  tpm2.TPMHandle
	ekPublic  tpm2.TPM2BPublic
	ak, key   loaded
	publicKey crypto.PublicKey
	flush     []tpm2.TPMHandle
}

type loaded struct {
	handle tpm2.TPMHandle
	name   tpm2.TPM2BName
	public tpm2.TPM2BPublic
}

// NewDevice makes the keys, and a certificate request with the common name.
func NewDevice(t *TPM, ek EK, commonName string) (d *Device, err error) {
	d = &Device{tpm: t, ek: ek}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.Close())
		}
	}()
	if err := d.endorsement(); err != nil {
		return d, fmt.Errorf("endorsement key: %w", err)
	}
	// Primary keys with a unique part of their own: made anew they are the same.
	if d.ak, err = d.primary(tpm2.TPMRHOwner, signing(true, commonName)); err != nil {
		return d, fmt.Errorf("attestation key: %w", err)
	}
	if d.key, err = d.primary(tpm2.TPMRHOwner, signing(false, commonName)); err != nil {
		return d, fmt.Errorf("device key: %w", err)
	}
	area, err := d.key.public.Contents()
	if err != nil {
		return d, err
	}
	if d.publicKey, err = tpm2.Pub(*area); err != nil {
		return d, err
	}
	d.csr, err = x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: commonName}}, d)
	return d, err
}

func (d *Device) endorsement() error {
	if d.ek.Handle == 0 {
		made, err := d.primary(tpm2.TPMRHEndorsement, tpm2.ECCEKTemplate)
		d.ekHandle, d.ekPublic = made.handle, made.public
		return err
	}
	read, err := tpm2.ReadPublic{ObjectHandle: d.ek.Handle}.Execute(d.tpm)
	if err != nil {
		return err
	}
	d.ekHandle, d.ekPublic = d.ek.Handle, read.OutPublic
	return nil
}

func signing(restricted bool, unique string) tpm2.TPMTPublic {
	x := make([]byte, 32)
	copy(x, unique)
	return tpm2.TPMTPublic{
		Type: tpm2.TPMAlgECC, NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true,
			NoDA: true, SignEncrypt: true, Restricted: restricted},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
			CurveID: tpm2.TPMECCNistP256,
			Scheme: tpm2.TPMTECCScheme{Scheme: tpm2.TPMAlgECDSA,
				Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256})},
		}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{X: tpm2.TPM2BECCParameter{Buffer: x}, Y: tpm2.TPM2BECCParameter{Buffer: make([]byte, 32)}}),
	}
}

func (d *Device) primary(hierarchy tpm2.TPMHandle, template tpm2.TPMTPublic) (loaded, error) {
	made, err := tpm2.CreatePrimary{PrimaryHandle: hierarchy, InPublic: tpm2.New2B(template)}.Execute(d.tpm)
	if err != nil {
		return loaded{}, err
	}
	d.flush = append(d.flush, made.ObjectHandle)
	return loaded{made.ObjectHandle, made.Name, made.OutPublic}, nil
}

// Close flushes the keys.
func (d *Device) Close() (err error) {
	for _, h := range d.flush {
		_, failed := tpm2.FlushContext{FlushHandle: h}.Execute(d.tpm)
		err = errors.Join(err, failed)
	}
	d.flush = nil
	return err
}

// Evidence is that of attest.Device.
func (d *Device) Evidence(_ context.Context, nonce []byte) (attest.Evidence, error) {
	certified, err := tpm2.Certify{
		ObjectHandle:   tpm2.AuthHandle{Handle: d.key.handle, Name: d.key.name, Auth: tpm2.PasswordAuth(nil)},
		SignHandle:     tpm2.AuthHandle{Handle: d.ak.handle, Name: d.ak.name, Auth: tpm2.PasswordAuth(nil)},
		QualifyingData: tpm2.TPM2BData{Buffer: nonce},
		InScheme:       tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull},
	}.Execute(d.tpm)
	if err != nil {
		return attest.Evidence{}, fmt.Errorf("certify: %w", err)
	}
	e := attest.Evidence{
		Version: attest.Version, EK: d.ekPublic.Bytes(), AK: d.ak.public.Bytes(), Key: d.key.public.Bytes(),
		Attestation: certified.CertifyInfo.Bytes(), Signature: tpm2.Marshal(certified.Signature), CSR: d.csr, Nonce: nonce,
	}
	if d.ek.Certificate != 0 {
		if e.EKCertificate, err = d.readNV(tpm2.TPMHandle(d.ek.Certificate)); err != nil {
			return attest.Evidence{}, fmt.Errorf("certificate of the endorsement key: %w", err)
		}
		e.EKIntermediates = [][]byte{d.tpm.Issuer.Raw}
	}
	return e, nil
}

func (d *Device) readNV(index tpm2.TPMHandle) (all []byte, err error) {
	read, err := tpm2.NVReadPublic{NVIndex: index}.Execute(d.tpm)
	if err != nil {
		return nil, err
	}
	public, err := read.NVPublic.Contents()
	if err != nil {
		return nil, err
	}
	for left := public.DataSize; left > 0; {
		part, err := tpm2.NVRead{
			AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)},
			NVIndex:    tpm2.NamedHandle{Handle: index, Name: read.NVName}, Size: min(left, 512), Offset: uint16(len(all)),
		}.Execute(d.tpm)
		if err != nil {
			return nil, err
		}
		all, left = append(all, part.Data.Buffer...), left-uint16(len(part.Data.Buffer))
	}
	return all, nil
}

// Activate is that of attest.Device.
func (d *Device) Activate(_ context.Context, credentialBlob, encryptedSecret []byte) ([]byte, error) {
	area, err := d.ekPublic.Contents()
	if err != nil {
		return nil, err
	}
	name, err := tpm2.ObjectName(area)
	if err != nil {
		return nil, err
	}
	opened, err := tpm2.ActivateCredential{
		ActivateHandle: tpm2.AuthHandle{Handle: d.ak.handle, Name: d.ak.name, Auth: tpm2.PasswordAuth(nil)},
		KeyHandle:      tpm2.AuthHandle{Handle: d.ekHandle, Name: *name, Auth: d.ek.Auth(d)},
		CredentialBlob: tpm2.TPM2BIDObject{Buffer: credentialBlob},
		Secret:         tpm2.TPM2BEncryptedSecret{Buffer: encryptedSecret},
	}.Execute(d.tpm)
	if err != nil {
		return nil, fmt.Errorf("activate: %w", err)
	}
	return opened.CertInfo.Buffer, nil
}

// Public is that of crypto.Signer.
func (d *Device) Public() crypto.PublicKey { return d.publicKey }

// Sign is that of crypto.Signer, for SHA-256.
func (d *Device) Sign(_ io.Reader, digest []byte, _ crypto.SignerOpts) ([]byte, error) {
	signed, err := tpm2.Sign{
		KeyHandle:  tpm2.AuthHandle{Handle: d.key.handle, Name: d.key.name, Auth: tpm2.PasswordAuth(nil)},
		Digest:     tpm2.TPM2BDigest{Buffer: digest},
		InScheme:   tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull},
		Validation: tpm2.TPMTTKHashCheck{Tag: tpm2.TPMSTHashCheck, Hierarchy: tpm2.TPMRHNull},
	}.Execute(d.tpm)
	if err != nil {
		return nil, err
	}
	s, err := signed.Signature.Signature.ECDSA()
	if err != nil {
		return nil, err
	}
	return asn1.Marshal(struct{ R, S *big.Int }{new(big.Int).SetBytes(s.SignatureR.Buffer), new(big.Int).SetBytes(s.SignatureS.Buffer)})
}
