package tpm

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/binary"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"slices"

	"github.com/google/go-tpm/tpm2"
)

// An Approval is a state of the platform in which bound keys may be used,
// signed by the manufacturer. Each firmware brings those of itself, so that an
// update does not strand the box: the key is bound to the signer
// (TPM2_PolicyAuthorize) and not to one state.
type Approval struct {
	PCRs      []uint `json:"pcrs"`      // registers of the SHA-256 bank, ascending
	Policy    []byte `json:"policy"`    // digest of TPM2_PolicyPCR over their values
	Signer    []byte `json:"signer"`    // public key, uncompressed point of P-256
	Signature []byte `json:"signature"` // ECDSA in ASN.1 over the digest of Policy
}

// registers is how many there are (PC Client Platform TPM Profile).
const registers = 24

// Approve signs the state in which the registers have these values.
func Approve(key crypto.Signer, values map[uint][]byte) (a Approval, err error) {
	public, err := signerKey(key.Public())
	if err != nil {
		return a, err
	}
	a.PCRs = slices.Sorted(maps.Keys(values))
	if len(a.PCRs) == 0 || a.PCRs[len(a.PCRs)-1] >= registers {
		return a, errors.New("an approval is of registers from 0 to 23, and of one at least")
	}
	all := sha256.New()
	for _, n := range a.PCRs {
		if len(values[n]) != sha256.Size {
			return a, fmt.Errorf("register %d has %d bytes: a SHA-256 bank has %d", n, len(values[n]), sha256.Size)
		}
		all.Write(values[n])
	}
	if a.Signer, err = public.Bytes(); err != nil {
		return a, err
	}
	a.Policy = policyPCR(selection(a.PCRs...), all.Sum(nil))
	digest := approvedDigest(a.Policy)
	a.Signature, err = key.Sign(rand.Reader, digest[:], crypto.SHA256)
	return a, err
}

const nextSigner = "make the signer a key on P-256 (openssl ecparam -name prime256v1 -genkey -noout), and name its public key in policy_signer"

// signerKey is a key that approvals may be signed with: every TPM verifies P-256.
func signerKey(key crypto.PublicKey) (*ecdsa.PublicKey, error) {
	kind := "of another kind"
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		if k.Curve == elliptic.P256() {
			return k, nil
		}
		kind = "on " + k.Curve.Params().Name
	case *rsa.PublicKey:
		kind = "of RSA"
	}
	return nil, fmt.Errorf("the signer's key is %s: approvals are signed with ECDSA on P-256 and by no other key", kind)
}

// ParseSigner reads what policy_signer names: the public key (PEM) of the signer
// of approvals.
func ParseSigner(text []byte) (crypto.PublicKey, error) {
	block, rest := pem.Decode(text)
	if block == nil || block.Type != "PUBLIC KEY" || len(bytes.TrimSpace(rest)) > 0 {
		return nil, errors.New(`it has to hold one PEM block "PUBLIC KEY" and nothing else: openssl pkey -pubout writes it`)
	}
	key, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("its public key cannot be read: %w", err)
	}
	p, err := signerKey(key)
	if err != nil {
		return nil, fmt.Errorf("%w; %s", err, nextSigner)
	}
	return p, nil
}

// ParseApprovals reads what policy_approvals names: approvals in JSON, each of
// registers that there are and with a signature that holds, and one at least by
// the signer. Others may be by other signers, to which older keys are bound. No
// TPM is needed, so that it is known beforehand what no TPM would take.
func ParseApprovals(text []byte, signer crypto.PublicKey) (all []Approval, err error) {
	if err := json.Unmarshal(text, &all); err != nil {
		return nil, fmt.Errorf("it holds no approvals: %w", err)
	}
	public, err := signerKey(signer)
	if err != nil {
		return nil, err
	}
	ours := false
	for i, a := range all {
		by, err := a.key()
		if err != nil {
			return nil, fmt.Errorf("approval %d: %w; take the file as gatewaysim ca approve or the manufacturer made it", i+1, err)
		}
		ours = ours || by.Equal(public)
	}
	if !ours {
		return nil, fmt.Errorf("of its %d approvals none is by policy_signer, so that no key can be used by them: bring the approvals that this signer made", len(all))
	}
	return all, nil
}

func selection(registers ...uint) tpm2.TPMLPCRSelection {
	return tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{Hash: tpm2.TPMAlgSHA256, PCRSelect: tpm2.PCClientCompatible.PCRs(registers...)}}}
}

// policyPCR is the digest of a policy of nothing but TPM2_PolicyPCR (Part 3, 23.7).
func policyPCR(s tpm2.TPMLPCRSelection, values []byte) []byte {
	h := sha256.New()
	h.Write(make([]byte, sha256.Size))
	h.Write(binary.BigEndian.AppendUint32(nil, uint32(tpm2.TPMCCPolicyPCR)))
	h.Write(tpm2.Marshal(s))
	h.Write(values)
	return h.Sum(nil)
}

// approvedDigest is what the signer signs: the policy and an empty reference
// (Part 3, 23.16).
func approvedDigest(policy []byte) [sha256.Size]byte { return sha256.Sum256(policy) }

// apply binds a template to the policy. Where a policy is, nothing else
// authorises.
func (b *Binding) apply(p *tpm2.TPMTPublic) error {
	if b == nil {
		return nil
	}
	signer, err := signerPublic(b.Signer)
	if err != nil {
		return advised(&faultError{Unable, err.Error()}, nextSigner, Unable)
	}
	name, err := tpm2.ObjectName(signer)
	if err != nil {
		return err
	}
	p.ObjectAttributes.UserWithAuth = false
	p.AuthPolicy = tpm2.TPM2BDigest{Buffer: policyAuthorize(name.Buffer)}
	return nil
}

// policyAuthorize is the digest of TPM2_PolicyAuthorize: what was before does
// not count, the signer's name and the reference do (Part 3, 23.16).
func policyAuthorize(signer []byte) []byte {
	h := sha256.New()
	h.Write(make([]byte, sha256.Size))
	h.Write(binary.BigEndian.AppendUint32(nil, uint32(tpm2.TPMCCPolicyAuthorize)))
	h.Write(signer)
	first := h.Sum(nil)
	again := sha256.Sum256(first) // PolicyUpdate hashes the reference, which is empty, in a second round
	return again[:]
}

// signerPublic is the signer's key as a TPM names it.
func signerPublic(key crypto.PublicKey) (*tpm2.TPMTPublic, error) {
	p, err := signerKey(key)
	if err != nil {
		return nil, err
	}
	point, err := p.Bytes()
	if err != nil {
		return nil, err
	}
	return &tpm2.TPMTPublic{Type: tpm2.TPMAlgECC, NameAlg: tpm2.TPMAlgSHA256, ObjectAttributes: tpm2.TPMAObject{SignEncrypt: true, UserWithAuth: true},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{CurveID: tpm2.TPMECCNistP256, Scheme: tpm2.TPMTECCScheme{
			Scheme: tpm2.TPMAlgECDSA, Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256})}}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{X: tpm2.TPM2BECCParameter{Buffer: point[1:33]}, Y: tpm2.TPM2BECCParameter{Buffer: point[33:]}})}, nil
}

// with hands over the sessions that an object is used with: the given one, and
// where a policy binds the object one before it that fulfils the policy.
func (l *link) with(s tpm2.Session, f *file, use func(auth tpm2.Session, more ...tpm2.Session) error) error {
	if !f.bound {
		return use(s)
	}
	p, end, err := l.policySession()
	if err != nil {
		return err
	}
	defer end()
	if err := l.fulfil(p.Handle(), f.public.AuthPolicy.Buffer); err != nil {
		return err
	}
	return use(p, s)
}

// policySession starts a session that the caller ends. One that package tpm2
// starts by itself stays in the TPM when its policy is not fulfilled.
func (l *link) policySession() (s tpm2.Session, end func(), err error) {
	s, _, err = tpm2.PolicySession(l, tpm2.TPMAlgSHA256, nonceSize)
	if err != nil {
		return nil, nil, err
	}
	handle := s.Handle()
	return s, func() { l.flush(handle) }, nil
}

// fulfil finds the approval of the platform's state, and has the TPM check it.
func (l *link) fulfil(s tpm2.TPMISHPolicy, policy []byte) error {
	all, ours := *l.approvals.Load(), 0
	var wrong error
	for _, a := range all {
		signer, err := a.signer()
		if err != nil {
			wrong = err
			continue
		}
		name, err := tpm2.ObjectName(signer)
		if err != nil {
			return err
		}
		if !bytes.Equal(policyAuthorize(name.Buffer), policy) {
			continue
		}
		ours++
		if ok, err := l.matches(&a); err != nil {
			return err
		} else if ok {
			return l.show(s, &a, signer)
		}
	}
	return &faultError{Refused, unfulfilled(len(all), ours, wrong)}
}

// unfulfilled says why no approval helps.
func unfulfilled(all, ours int, wrong error) string {
	switch {
	case all == 0:
		return "there is no approval of any state: policy_approvals in [identity] names none"
	case ours > 0:
		return fmt.Sprintf("of %d approvals by its signer none is of the state that the platform booted into", ours)
	case wrong != nil:
		return fmt.Sprintf("of %d approvals none by its signer is in order: %v", all, wrong)
	}
	return fmt.Sprintf("of %d approvals none is by the signer that it is bound to, which policy_signer in [identity] named when it was made", all)
}

// signer is the key that made the approval, as a TPM names it.
func (a *Approval) signer() (*tpm2.TPMTPublic, error) {
	key, err := a.key()
	if err != nil {
		return nil, err
	}
	return signerPublic(key)
}

// key is the one that made the approval, if it did.
func (a *Approval) key() (*ecdsa.PublicKey, error) {
	if len(a.PCRs) == 0 || slices.Max(a.PCRs) >= registers {
		return nil, errors.New("its registers are none from 0 to 23")
	}
	key, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), a.Signer)
	if err != nil {
		return nil, errors.New("its signer is no point on P-256")
	}
	if digest := approvedDigest(a.Policy); !ecdsa.VerifyASN1(key, digest[:], a.Signature) {
		return nil, errors.New("its signature does not hold")
	}
	return key, nil
}

// matches reports whether the registers have the approved values now. The TPM
// judges again, when the policy is shown to it.
func (l *link) matches(a *Approval) (bool, error) {
	values := sha256.New()
	for _, n := range a.PCRs {
		v, err := l.register(n)
		if err != nil {
			return false, err
		}
		values.Write(v)
	}
	return bytes.Equal(policyPCR(selection(a.PCRs...), values.Sum(nil)), a.Policy), nil
}

// register reads one: the TPM gives a few at a time, and not always as many as asked for.
func (l *link) register(n uint) ([]byte, error) {
	r, err := tpm2.PCRRead{PCRSelectionIn: selection(n)}.Execute(l)
	if err != nil {
		return nil, err
	}
	if len(r.PCRValues.Digests) != 1 {
		return nil, &faultError{Refused, fmt.Sprintf("the TPM has no register %d in a SHA-256 bank", n)}
	}
	return r.PCRValues.Digests[0].Buffer, nil
}

// show has the TPM verify the signer's signature, and gives the policy its ticket.
func (l *link) show(s tpm2.TPMISHPolicy, a *Approval, signer *tpm2.TPMTPublic) error {
	if _, err := (tpm2.PolicyPCR{PolicySession: s, Pcrs: selection(a.PCRs...)}).Execute(l); err != nil {
		return err
	}
	key, err := tpm2.LoadExternal{InPublic: tpm2.New2B(*signer), Hierarchy: tpm2.TPMRHOwner}.Execute(l)
	if err != nil {
		return err
	}
	defer l.flush(key.ObjectHandle)
	signature, err := a.signature()
	if err != nil {
		return err
	}
	digest := approvedDigest(a.Policy)
	v, err := tpm2.VerifySignature{KeyHandle: tpm2.NamedHandle{Handle: key.ObjectHandle, Name: key.Name}, Digest: tpm2.TPM2BDigest{Buffer: digest[:]},
		Signature: signature}.Execute(l)
	if errors.Is(err, tpm2.TPMRCSignature) {
		return &faultError{Refused, "the signature of an approval does not hold"}
	}
	if err != nil {
		return err
	}
	_, err = tpm2.PolicyAuthorize{PolicySession: s, ApprovedPolicy: tpm2.TPM2BDigest{Buffer: a.Policy}, KeySign: key.Name, CheckTicket: v.Validation}.Execute(l)
	if errors.Is(err, tpm2.TPMRCValue) {
		return &faultError{Refused, "the platform's state changed while an approval of it was shown"}
	}
	return err
}

// signature is that of the approval as a TPM has it.
func (a *Approval) signature() (s tpm2.TPMTSignature, err error) {
	var rs struct{ R, S *big.Int }
	if _, err := asn1.Unmarshal(a.Signature, &rs); err != nil || rs.R.BitLen() > 256 || rs.S.BitLen() > 256 {
		return s, &faultError{Refused, "the signature of an approval is damaged"}
	}
	bytes := func(n *big.Int) tpm2.TPM2BECCParameter {
		return tpm2.TPM2BECCParameter{Buffer: n.FillBytes(make([]byte, 32))}
	}
	return tpm2.TPMTSignature{SigAlg: tpm2.TPMAlgECDSA, Signature: tpm2.NewTPMUSignature(tpm2.TPMAlgECDSA,
		&tpm2.TPMSSignatureECC{Hash: tpm2.TPMAlgSHA256, SignatureR: bytes(rs.R), SignatureS: bytes(rs.S)})}, nil
}
