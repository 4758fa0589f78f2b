package attest

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/subtle"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"math/big"
	"time"

	"github.com/google/go-tpm/tpm2"
)

const (
	minNonce     = 16 // bytes
	maxNonce     = 32 // bytes: what qualifying data of every TPM hold
	minSecret    = 16 // bytes
	maxSecret    = 32 // bytes: what the name hash of every EK here holds
	maxAttest    = 1 << 10
	maxSignature = 1 << 10
)

// Options are what a CA knows before it sees the evidence.
type Options struct {
	EKRoots       *x509.CertPool // of the makers of TPMs; nil: no certificate is believed
	Intermediates *x509.CertPool // beside those in the evidence
	// AllowBareEK says yes to the name of an endorsement key (hexadecimal,
	// 000b and the hash for SHA-256) that the CA knows by itself, so that it
	// needs no certificate. nil says yes to none.
	AllowBareEK func(name string) bool
	Nonce       []byte // 16 to 32 bytes that this CA gave for this evidence
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

// Verify checks all of the evidence but one thing: that AK and EK are in the
// same TPM, which the device shows by opening a Challenge. Each refusal names
// the link that broke.
func Verify(e Evidence, o Options) (Result, error) {
	if err := nonce(e, o); err != nil {
		return Result{}, err
	}
	ek, ak, err := endorsed(e)
	if err != nil {
		return Result{}, err
	}
	certificate, maker, err := vouch(ek, e, o)
	if err != nil {
		return Result{}, err
	}
	key, err := parsePublic("device key", e.Key)
	if err != nil {
		return Result{}, err
	}
	firmware, err := certified(e, ak, key, o.Nonce)
	if err != nil {
		return Result{}, err
	}
	if err := key.obeyDevice(); err != nil {
		return Result{}, err
	}
	csr, err := parseCSR(e.CSR, key)
	if err != nil {
		return Result{}, err
	}
	return Result{Key: key.key, CSR: csr, EKName: ek.hexName(), AKName: ak.hexName(),
		EKCertificate: certificate, TPM: maker, Firmware: firmware}, nil
}

func nonce(e Evidence, o Options) error {
	if err := e.check(); err != nil {
		return err
	}
	if n := len(o.Nonce); n < minNonce || n > maxNonce {
		return fmt.Errorf("a nonce of %d bytes: the CA has to give %d to %d", n, minNonce, maxNonce)
	}
	if subtle.ConstantTimeCompare(e.Nonce, o.Nonce) != 1 {
		return errors.New("the evidence is for another nonce: it is old, or of another exchange")
	}
	return nil
}

// endorsed reads the two keys that Challenge ties together.
func endorsed(e Evidence) (ek, ak public, err error) {
	if ek, err = parsePublic("endorsement key", e.EK); err != nil {
		return ek, ak, err
	}
	if err = ek.obeyEK(); err != nil {
		return ek, ak, err
	}
	if ak, err = parsePublic("attestation key", e.AK); err != nil {
		return ek, ak, err
	}
	return ek, ak, ak.obeyAK()
}

// certified checks that the AK says of this key, and in answer to this nonce,
// that it is in the TPM (TPM2_Certify, Part 3, section 18.2).
func certified(e Evidence, ak, key public, nonce []byte) (firmware uint64, err error) {
	a, err := parseAttest(e.Attestation)
	if err != nil {
		return 0, fmt.Errorf("attestation: %w", err)
	}
	if subtle.ConstantTimeCompare(a.ExtraData.Buffer, nonce) != 1 {
		return 0, errors.New("attestation: it was made for another nonce: it is old, or of another exchange")
	}
	info, err := a.Attested.Certify()
	if err != nil {
		return 0, fmt.Errorf("attestation: %w", err)
	}
	if !bytes.Equal(info.Name.Buffer, key.name) {
		return 0, fmt.Errorf("attestation: it certifies the key of the name %x, the device key's name is %x", info.Name.Buffer, key.name)
	}
	if err := signed(e.Attestation, e.Signature, ak); err != nil {
		return 0, fmt.Errorf("signature of the attestation: %w", err)
	}
	return a.FirmwareVersion, nil
}

const generated = 0xff544347 // TPM_GENERATED_VALUE (Part 2, section 6.2)

// parseAttest looks at the first words by itself, to say what is there instead.
func parseAttest(raw []byte) (*tpm2.TPMSAttest, error) {
	if len(raw) < 6 || len(raw) > maxAttest {
		return nil, fmt.Errorf("it has %d bytes: 6 to %d are taken", len(raw), maxAttest)
	}
	if magic := binary.BigEndian.Uint32(raw); magic != generated {
		return nil, fmt.Errorf("it begins with %#08x, not with TPM_GENERATED_VALUE: no TPM made it", magic)
	}
	if kind := tpm2.TPMST(binary.BigEndian.Uint16(raw[4:])); kind != tpm2.TPMSTAttestCertify {
		return nil, fmt.Errorf("it is of the kind %#04x, not TPM_ST_ATTEST_CERTIFY", uint16(kind))
	}
	a, err := tpm2.Unmarshal[tpm2.TPMSAttest](raw)
	if err != nil {
		return nil, fmt.Errorf("it cannot be read: %w", err)
	}
	if !bytes.Equal(tpm2.Marshal(a), raw) {
		return nil, errors.New("it is followed by something")
	}
	return a, nil
}

// signed verifies with the scheme that the AK is bound to: the signature does
// not choose.
func signed(message, signature []byte, ak public) error {
	if len(signature) > maxSignature {
		return fmt.Errorf("it has %d bytes: %d are the most", len(signature), maxSignature)
	}
	s, err := tpm2.Unmarshal[tpm2.TPMTSignature](signature)
	if err != nil {
		return fmt.Errorf("it cannot be read: %w", err)
	}
	alg, hash, err := ak.scheme()
	if err != nil {
		return err
	}
	if s.SigAlg != alg {
		return fmt.Errorf("its scheme is %#04x, that of the attestation key %#04x", uint16(s.SigAlg), uint16(alg))
	}
	if !verifies(s, ak, hash, message) {
		return errors.New("the attestation key did not make it")
	}
	if !bytes.Equal(tpm2.Marshal(s), signature) {
		return errors.New("it is followed by something")
	}
	return nil
}

// scheme is what a restricted signing key is bound to (Part 2, sections 12.2.3.5
// and 12.2.3.6).
func (p *public) scheme() (alg tpm2.TPMAlgID, hash tpm2.TPMIAlgHash, err error) {
	var details *tpm2.TPMUAsymScheme
	if p.area.Type == tpm2.TPMAlgECC {
		parameters, err := p.area.Parameters.ECCDetail()
		if err != nil {
			return 0, 0, err
		}
		alg, details = parameters.Scheme.Scheme, &parameters.Scheme.Details
	} else {
		parameters, err := p.area.Parameters.RSADetail()
		if err != nil {
			return 0, 0, err
		}
		alg, details = parameters.Scheme.Scheme, &parameters.Scheme.Details
	}
	if hash, err = schemeHash(alg, details); err != nil {
		return 0, 0, err
	}
	switch hash {
	case tpm2.TPMAlgSHA256, tpm2.TPMAlgSHA384, tpm2.TPMAlgSHA512:
		return alg, hash, nil
	}
	return 0, 0, fmt.Errorf("the attestation key signs hashes of the kind %#04x: SHA-256, SHA-384 and SHA-512 are taken", uint16(hash))
}

func schemeHash(alg tpm2.TPMAlgID, details *tpm2.TPMUAsymScheme) (tpm2.TPMIAlgHash, error) {
	switch alg {
	case tpm2.TPMAlgECDSA:
		s, err := details.ECDSA()
		if err != nil {
			return 0, err
		}
		return s.HashAlg, nil
	case tpm2.TPMAlgRSASSA:
		s, err := details.RSASSA()
		if err != nil {
			return 0, err
		}
		return s.HashAlg, nil
	case tpm2.TPMAlgRSAPSS:
		s, err := details.RSAPSS()
		if err != nil {
			return 0, err
		}
		return s.HashAlg, nil
	}
	return 0, fmt.Errorf("the attestation key is bound to the scheme %#04x: ECDSA, RSASSA and RSAPSS are taken", uint16(alg))
}

// verifies is false too where the signature is of another hash or kind of key.
func verifies(s *tpm2.TPMTSignature, ak public, hash tpm2.TPMIAlgHash, message []byte) bool {
	h, err := hash.Hash()
	if err != nil {
		return false
	}
	digest := h.New()
	digest.Write(message)
	sum := digest.Sum(nil)
	switch key := ak.key.(type) {
	case *ecdsa.PublicKey:
		sig, err := s.Signature.ECDSA()
		return err == nil && sig.Hash == hash &&
			ecdsa.Verify(key, sum, new(big.Int).SetBytes(sig.SignatureR.Buffer), new(big.Int).SetBytes(sig.SignatureS.Buffer))
	case *rsa.PublicKey:
		if s.SigAlg == tpm2.TPMAlgRSAPSS {
			sig, err := s.Signature.RSAPSS()
			return err == nil && sig.Hash == hash && rsa.VerifyPSS(key, h, sum, sig.Sig.Buffer, nil) == nil
		}
		sig, err := s.Signature.RSASSA()
		return err == nil && sig.Hash == hash && rsa.VerifyPKCS1v15(key, h, sum, sig.Sig.Buffer) == nil
	}
	return false
}

// Challenge wraps a secret of 16 to 32 bytes so that only the TPM with the EK
// of the evidence opens it, and only for the AK of the evidence
// (TPM2_MakeCredential, done in software). The results are the contents of a
// TPM2B_ID_OBJECT and of a TPM2B_ENCRYPTED_SECRET, for TPM2_ActivateCredential.
// Who gives the secret back has shown that both keys are in one TPM.
func Challenge(e Evidence, secret []byte) (credentialBlob, encryptedSecret []byte, err error) {
	if n := len(secret); n < minSecret || n > maxSecret {
		return nil, nil, fmt.Errorf("a secret of %d bytes: %d to %d can be wrapped", n, minSecret, maxSecret)
	}
	ek, ak, err := endorsed(e)
	if err != nil {
		return nil, nil, err
	}
	to, err := tpm2.ImportEncapsulationKey(&ek.area)
	if err != nil {
		return nil, nil, fmt.Errorf("endorsement key: %w", err)
	}
	credentialBlob, encryptedSecret, err = tpm2.CreateCredential(rand.Reader, to, ak.name, secret)
	if err != nil {
		return nil, nil, fmt.Errorf("endorsement key: no challenge can be made for it: %w", err)
	}
	return credentialBlob, encryptedSecret, nil
}
