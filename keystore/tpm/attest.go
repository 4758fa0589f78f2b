package tpm

import (
	"bytes"
	"context"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"

	keyfile "github.com/foxboron/go-tpm-keyfiles"
	"github.com/google/go-tpm/tpm2"

	"github.com/bedside-gateway/gatewayd/keystore/attest"
)

// The NV indices of TCG EK Credential Profile for TPM Family 2.0, section 2.2.1.4:
// certificates of the endorsement keys, and the chain above them.
const (
	indexRSA   tpm2.TPMHandle = 0x01c00002
	indexECC   tpm2.TPMHandle = 0x01c0000a
	indexChain tpm2.TPMHandle = 0x01c00100
	chainSize                 = 0x100 // indices
)

const (
	maxIndex = 16 << 10 // bytes that are read of an index
	maxChain = 8        // certificates above the endorsement key's, as package attest takes
	maxNonce = 64       // TPM2B_DATA holds a digest of the longest hash
)

// An endorsement is an endorsement key with its maker's certificate.
type endorsement struct {
	index    tpm2.TPMHandle
	template tpm2.TPMTPublic
}

// endorsements are in the order of preference: a TPM makes the one on a curve
// in no time, and the other in up to a minute.
func endorsements() []endorsement {
	return []endorsement{{indexECC, tpm2.ECCEKTemplate}, {indexRSA, tpm2.RSAEKTemplate}}
}

// attestationTemplate is a key that signs only what the TPM itself says.
func attestationTemplate() tpm2.TPMTPublic {
	p, _ := P256.template()
	p.ObjectAttributes.Restricted = true
	return p
}

// AttestationKey makes an attestation key and gives its file (PEM). It is for
// Attest and Activate; a device key it cannot be.
func (t *TPM) AttestationKey(ctx context.Context) (file []byte, err error) {
	err = t.use(ctx, "make an attestation key", func(l *link) error {
		file, err = l.create(attestationTemplate(), nil, keyfile.OIDLoadableKey)
		return err
	})
	return file, err
}

// KeepAttestationKey gives the file of an attestation key back where this TPM
// still loads it, or else that of a new one: whoever lost it lost nothing, for CAs
// know it for one exchange only.
func (t *TPM) KeepAttestationKey(ctx context.Context, file []byte) ([]byte, error) {
	f, err := parseAttestation(file)
	if err != nil {
		return t.AttestationKey(ctx)
	}
	err = t.use(ctx, "load the attestation key", func(l *link) error {
		parent, err := l.parent()
		if err != nil {
			return err
		}
		defer l.flush(parent.handle)
		key, err := l.loadAttestation(parent, f)
		if err == nil {
			l.flush(key.handle)
		}
		return err
	})
	switch {
	case FaultOf(err) == Foreign:
		return t.AttestationKey(ctx)
	case err != nil:
		return nil, err
	}
	return file, nil
}

const nextAttestation = "try again with a new attestation key, which is made where the file of the old one is removed; the gateway's own keys are in order"

// parseAttestation reads the file of an attestation key.
func parseAttestation(text []byte) (*file, error) {
	f, err := parse(text, keyfile.OIDLoadableKey)
	if err == nil && !(f.public.ObjectAttributes.SignEncrypt && f.public.ObjectAttributes.Restricted) {
		err = damaged("is of no attestation key")
	}
	if err != nil {
		return nil, advised(fmt.Errorf("attestation key: %w", err), nextAttestation, Foreign, Tampered)
	}
	return f, nil
}

// loadAttestation loads an attestation key. The caller flushes it.
func (l *link) loadAttestation(parent *object, f *file) (*object, error) {
	o, err := l.load(parent, f)
	if err != nil {
		return nil, advised(fmt.Errorf("attestation key: %w", err), nextAttestation, Foreign)
	}
	return o, nil
}

// Attest makes evidence that the key of a file is in this TPM, with the CA's
// nonce of 1 to 64 bytes and the certificate request (DER) in it. Where the
// TPM's maker left no certificate in it, the evidence has none.
func (t *TPM) Attest(ctx context.Context, deviceKeyFile, attestationKeyFile, csr, nonce []byte) (e attest.Evidence, err error) {
	const what = "attest the key"
	key, err := parse(deviceKeyFile, keyfile.OIDLoadableKey)
	if err != nil {
		return e, faultOf(what, "", err)
	}
	by, err := parseAttestation(attestationKeyFile)
	if err != nil {
		return e, faultOf(what, "", err)
	}
	if len(nonce) == 0 || len(nonce) > maxNonce {
		return e, faultOf(what, "", advised(&faultError{Unable, fmt.Sprintf("the CA's nonce has %d bytes: 1 to %d are possible", len(nonce), maxNonce)}, nextChallenge, Unable))
	}
	err = t.use(ctx, what, func(l *link) error {
		e = attest.Evidence{Version: attest.Version, AK: tpm2.Marshal(by.public), Key: tpm2.Marshal(key.public),
			CSR: bytes.Clone(csr), Nonce: bytes.Clone(nonce)}
		if err := l.certify(key, by, &e); err != nil {
			return err
		}
		return l.endorse(&e)
	})
	if err != nil {
		return attest.Evidence{}, err
	}
	return e, nil
}

// certify has one key certify the other (TPM2_Certify).
func (l *link) certify(key, by *file, e *attest.Evidence) error {
	signer, object, err := l.loadBoth(by, key)
	if err != nil {
		return err
	}
	defer l.flush(signer.handle)
	defer l.flush(object.handle)
	r, err := tpm2.Certify{ObjectHandle: object.auth(l.session), SignHandle: signer.auth(tpm2.PasswordAuth(nil)),
		QualifyingData: tpm2.TPM2BData{Buffer: e.Nonce}, InScheme: tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull}}.Execute(l)
	if err != nil {
		return err
	}
	e.Attestation, e.Signature = r.CertifyInfo.Bytes(), tpm2.Marshal(r.Signature)
	return nil
}

// loadBoth loads an attestation key and a device key. The caller flushes them.
func (l *link) loadBoth(a, b *file) (x, y *object, err error) {
	parent, err := l.parent()
	if err != nil {
		return nil, nil, err
	}
	defer l.flush(parent.handle)
	if x, err = l.loadAttestation(parent, a); err != nil {
		return nil, nil, err
	}
	if y, err = l.load(parent, b); err != nil {
		l.flush(x.handle)
		return nil, nil, err
	}
	return x, y, nil
}

// endorse adds the endorsement key that has a certificate, or the one on a
// curve where none has.
func (l *link) endorse(e *attest.Evidence) error {
	for _, k := range endorsements() {
		der, err := l.nvRead(k.index)
		if err != nil {
			return err
		}
		certificates := elements(der)
		if len(certificates) == 0 {
			continue
		}
		public, err := l.endorsementKey(k.template)
		if err != nil {
			return err
		}
		if !certifies(certificates[0], public) { // the maker used a template of its own
			continue
		}
		e.EK, e.EKCertificate = tpm2.Marshal(*public), certificates[0]
		e.EKIntermediates, err = l.chain()
		return err
	}
	public, err := l.endorsementKey(tpm2.ECCEKTemplate)
	if err == nil {
		e.EK = tpm2.Marshal(*public)
	}
	return err
}

func (l *link) endorsementKey(template tpm2.TPMTPublic) (*tpm2.TPMTPublic, error) {
	ek, err := l.primary(tpm2.TPMRHEndorsement, template)
	if err != nil {
		return nil, err
	}
	l.flush(ek.handle)
	return &ek.public, nil
}

// certifies reports whether a certificate has this key in it. It is for the CA
// to judge it, which knows encodings of keys that package x509 does not.
func certifies(certificate []byte, public *tpm2.TPMTPublic) bool {
	if n, err := public.Unique.RSA(); err == nil {
		return bytes.Contains(certificate, n.Buffer)
	}
	p, err := public.Unique.ECC()
	return err == nil && bytes.Contains(certificate, slices.Concat(p.X.Buffer, p.Y.Buffer))
}

// chain reads the certificates above that of the endorsement key. An index may
// hold several, and one may go on in the next index.
func (l *link) chain() ([][]byte, error) {
	indices, err := l.handles(uint32(indexChain))
	if err != nil {
		return nil, err
	}
	var all []byte
	for _, index := range indices {
		if index < indexChain || index >= indexChain+chainSize || len(all) > maxIndex {
			break
		}
		part, err := l.nvRead(index)
		if err != nil {
			return nil, err
		}
		all = append(all, part...)
	}
	list := elements(all)
	return list[:min(len(list), maxChain)], nil
}

// elements splits DER into what stands in it one behind the other. What is
// behind them is what fills the index up.
func elements(der []byte) (list [][]byte) {
	for {
		var e asn1.RawValue
		rest, err := asn1.Unmarshal(der, &e)
		if err != nil || e.Tag != asn1.TagSequence || e.Class != asn1.ClassUniversal {
			return list
		}
		list, der = append(list, e.FullBytes), rest
	}
}

// nvRead reads an index; one that is not there or not written is empty.
func (l *link) nvRead(index tpm2.TPMHandle) (data []byte, err error) {
	r, err := tpm2.NVReadPublic{NVIndex: index}.Execute(l)
	if errors.Is(err, tpm2.TPMRCHandle) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	public, err := r.NVPublic.Contents()
	if err != nil {
		return nil, err
	}
	if !public.Attributes.Written {
		return nil, nil
	}
	auth := tpm2.AuthHandle{Handle: index, Name: r.NVName, Auth: tpm2.PasswordAuth(nil)}
	if !public.Attributes.AuthRead {
		auth.Handle, auth.Name = tpm2.TPMRHOwner, tpm2.HandleName(tpm2.TPMRHOwner)
	}
	const part = 512 // the least of TPM_PT_NV_BUFFER_MAX (PC Client Platform TPM Profile)
	for size := min(int(public.DataSize), maxIndex); len(data) < size; {
		r, err := tpm2.NVRead{AuthHandle: auth, NVIndex: tpm2.NamedHandle{Handle: index, Name: r.NVName},
			Size: uint16(min(part, size-len(data))), Offset: uint16(len(data))}.Execute(l)
		if err != nil {
			return nil, err
		}
		if len(r.Data.Buffer) == 0 {
			return nil, fmt.Errorf("it gives nothing of index %08x, which has %d bytes", uint32(index), size)
		}
		data = append(data, r.Data.Buffer...)
	}
	return data, nil
}

// Activate opens a CA's challenge (TPM2_ActivateCredential): the contents of a
// TPM2B_ID_OBJECT and of a TPM2B_ENCRYPTED_SECRET. A challenge for another TPM
// or another attestation key, or one that was changed, has the fault Astray.
func (t *TPM) Activate(ctx context.Context, attestationKeyFile, credentialBlob, encryptedSecret []byte) (secret []byte, err error) {
	const what = "open the challenge"
	f, err := parseAttestation(attestationKeyFile)
	if err != nil {
		return nil, faultOf(what, "", err)
	}
	err = t.use(ctx, what, func(l *link) error {
		parent, err := l.parent()
		if err != nil {
			return err
		}
		defer l.flush(parent.handle)
		key, err := l.loadAttestation(parent, f)
		if err != nil {
			return err
		}
		defer l.flush(key.handle)
		ek, err := l.primary(tpm2.TPMRHEndorsement, challenged(encryptedSecret))
		if err != nil {
			return err
		}
		defer l.flush(ek.handle)
		s, end, err := l.endorsementSession()
		if err != nil {
			return err
		}
		defer end()
		r, err := tpm2.ActivateCredential{ActivateHandle: key.auth(answering(parent)), KeyHandle: ek.auth(s),
			CredentialBlob: tpm2.TPM2BIDObject{Buffer: credentialBlob}, Secret: tpm2.TPM2BEncryptedSecret{Buffer: encryptedSecret}}.Execute(l)
		if err != nil {
			return challengeFault(err)
		}
		secret = r.CertInfo.Buffer
		return nil
	})
	return secret, err
}

// challenged is the template of the key that a secret was encrypted to: by RSA
// it is as long as the modulus.
func challenged(encryptedSecret []byte) tpm2.TPMTPublic {
	if len(encryptedSecret) == 256 {
		return tpm2.RSAEKTemplate
	}
	return tpm2.ECCEKTemplate
}

// endorsementSession fulfils what both templates of endorsement keys ask for:
// TPM2_PolicySecret of the hierarchy, which has no password.
func (l *link) endorsementSession() (s tpm2.Session, end func(), err error) {
	s, end, err = l.policySession()
	if err != nil {
		return nil, nil, err
	}
	_, err = tpm2.PolicySecret{AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHEndorsement, Name: tpm2.HandleName(tpm2.TPMRHEndorsement), Auth: tpm2.PasswordAuth(nil)},
		PolicySession: s.Handle(), NonceTPM: s.NonceTPM()}.Execute(l)
	if err != nil {
		end()
		return nil, nil, err
	}
	return s, end, nil
}

const nextChallenge = "run gatewayd enroll attest again, which has the CA make a new challenge, and ask its operator where it stays; the gateway's own keys are in order"

// challengeFault names a challenge that is for another: its integrity value is
// over a secret that only the endorsement key opens, and the attestation key's name.
func challengeFault(err error) error {
	if isParameter(err) || errors.Is(err, tpm2.TPMRCNoResult) {
		return advised(&faultError{Astray, "the challenge is for another TPM or another attestation key, or was changed or shown before: " + err.Error()}, nextChallenge, Astray)
	}
	return err
}
