// Package enroll gets the gateway its identity, keeps it, and gets a broken one
// going again: a key in the TPM, a request, a certificate for it by hand, over
// EST or by attestation, its renewal, and the way back after a reset.
//
// Each step can be repeated: what is done already stays, and the outcome says
// so and names the next step. The package prints nothing and decides nothing
// that a CA or a platform has to. gatewayd enroll and the daemon call it.
package enroll

import (
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/bedside-gateway/gatewayd/keystore"
	"github.com/bedside-gateway/gatewayd/keystore/tpm"
)

// Dir is the folder of the stores below the state folder.
const Dir = "identity"

// Device is the name of the store of the gateway's own identity, which platforms
// see. Other stores are those of the server for devices (Interface A).
const Device = "device"

// An Applicant is a gateway before its CA, with one store.
type Applicant struct {
	Home    string // folder of the stores
	Store   *keystore.Store
	TPM     *tpm.TPM
	Subject keystore.Subject // whom certificates are requested for
	Kind    tpm.Kind
	Binding *tpm.Binding // nil: keys are bound to no state of the platform
	Answers bool         // a CA that answers by itself is configured
	Now     func() time.Time
}

// An Outcome is what a step did.
type Outcome struct {
	Changed bool   `json:"changed"`
	Done    string `json:"done"`
	Next    string `json:"next"`
}

// command is one of gatewayd enroll, for the store at hand.
func (a *Applicant) command(words string) string {
	if store := filepath.Base(a.Store.Dir()); store != Device {
		words += " --store " + store
	}
	return "gatewayd enroll " + words
}

// byHand is the way to a certificate that every CA has.
func (a *Applicant) byHand() string {
	return fmt.Sprintf("give the request (%s) to a CA, then install what it issues (%s)", a.command("csr"), a.command("install FILE"))
}

// nextCSR is the step after a key was made.
func (a *Applicant) nextCSR() string {
	if a.Answers {
		return fmt.Sprintf("Run %s or %s, for a certificate of the CA that is configured; or %s.", a.command("renew"), a.command("attest"), a.byHand())
	}
	return upper(a.byHand()) + "."
}

// NextInstall is the step after a request was printed.
func (a *Applicant) NextInstall() string {
	return fmt.Sprintf("Give this request to a CA, then install what it issues: %s.", a.command("install FILE"))
}

// NextWrap is the step after the storage key was printed (tpm.TPM.Parent).
func (a *Applicant) NextWrap() string {
	return fmt.Sprintf("Have the PKI wrap the key to this, then import what it gives, with its certificates: %s.", a.command("import FILE"))
}

// nextRenewal is the step to another certificate.
func (a *Applicant) nextRenewal() string {
	if a.Answers {
		return fmt.Sprintf("For another certificate run %s; or %s.", a.command("renew"), a.byHand())
	}
	return "For another certificate " + a.byHand() + "."
}

func upper(s string) string { return strings.ToUpper(s[:1]) + s[1:] }

// Init makes a key in the TPM and a request for it, where there is neither a
// key that waits for its certificate nor one that has it.
func (a *Applicant) Init(ctx context.Context) (Outcome, error) {
	all, err := a.Store.Read()
	if err != nil {
		return Outcome{}, err
	}
	switch {
	case waits(all.Next):
		return Outcome{Done: "A key waits for its certificate already.", Next: a.nextCSR()}, a.try(ctx, all.Next)
	case waits(all.Current) && all.Current.Damage != nil:
		return Outcome{Done: "The key is there, and its certificate is of no use: " + all.Current.Damage.Error() + ".", Next: a.next(all)}, a.try(ctx, all.Current)
	case waits(all.Current): // its certificate was lost
		return Outcome{Done: "The key is there, and its certificate is not.", Next: a.nextCSR()}, a.try(ctx, all.Current)
	case all.Current != nil:
		return Outcome{Done: "The gateway is enrolled already.", Next: "Nothing. " + a.nextRenewal()}, a.try(ctx, all.Current)
	}
	return a.NewKey(ctx)
}

// try sees whether the TPM still has the key of a slot.
func (a *Applicant) try(ctx context.Context, s *keystore.Slot) error {
	key, err := a.TPM.Load(ctx, s.KeyFile)
	if err == nil {
		key.Release(ctx)
	}
	return err
}

// NewKey makes a key in the TPM for the next certificate, beside the one in use,
// and a request for it.
func (a *Applicant) NewKey(ctx context.Context) (Outcome, error) {
	if err := a.Recognise(ctx); err != nil {
		return Outcome{}, err
	}
	text, err := a.TPM.Create(ctx, a.Kind, a.Binding)
	if err != nil {
		return Outcome{}, err
	}
	key, err := a.TPM.Load(ctx, text)
	if err != nil {
		return Outcome{}, err
	}
	defer key.Release(ctx)
	if _, ok := key.Public().(*rsa.PublicKey); ok && !slices.Contains(key.Algorithms(), tls.PSSWithSHA256) {
		return Outcome{}, errors.New("this TPM salts RSA-PSS otherwise than TLS 1.3 wants it: set key_type to ecc-p256 in [identity]")
	}
	return a.keep(key, text)
}

func (a *Applicant) keep(key crypto.Signer, text []byte) (Outcome, error) {
	request, err := keystore.Request(key, a.Subject)
	if err == nil {
		err = a.Store.AddKey(text, request)
	}
	if err != nil {
		return Outcome{}, err
	}
	return Outcome{Changed: true, Done: fmt.Sprintf("A key was made in the TPM: %s.", keystore.Mark(key.Public())), Next: a.nextCSR()}, nil
}

// Recognise notes which TPM it is, before the first key is made in it.
func (a *Applicant) Recognise(ctx context.Context) error {
	known, err := keystore.ReadFingerprint(a.Home)
	if err != nil || known != nil {
		return err
	}
	f, err := a.TPM.Fingerprint(ctx)
	if err != nil {
		return err
	}
	return keystore.WriteFingerprint(a.Home, f)
}

// ErrNotBegun is that there is no key to do something with.
var ErrNotBegun = errors.New("there is no key yet: run gatewayd enroll init")

// Request is the request (PEM) for the certificate that is wanted next: for the
// key that waits for one, or else for the key in use. There is none for a key that
// the TPM will never use again; a TPM that cannot be had now is no obstacle.
func (a *Applicant) Request(ctx context.Context) ([]byte, error) {
	all, err := a.Store.Read()
	if err != nil {
		return nil, err
	}
	slot := wanted(all)
	if slot == nil {
		return nil, ErrNotBegun
	}
	if err := a.try(ctx, slot); slices.Contains(lost, tpm.FaultOf(err)) {
		return nil, err
	}
	return a.request(ctx, all)
}

// lost are the faults of a key that has to be made anew.
var lost = []tpm.Fault{tpm.Cleared, tpm.Replaced, tpm.Foreign, tpm.Tampered}

// wanted is the slot that a certificate is wanted for.
func wanted(all keystore.Slots) *keystore.Slot {
	if all.Next != nil {
		return all.Next
	}
	return all.Current
}

// request is the one that is kept, if it is for the key and has the name that the
// gateway has now. Else a new one is, for a key that waits.
func (a *Applicant) request(ctx context.Context, all keystore.Slots) ([]byte, error) {
	slot := wanted(all)
	csr, err := parseRequest(slot.Request)
	had := err == nil
	if had && csr.Subject.CommonName == a.Subject.CommonName() && keystore.Mark(csr.PublicKey) == keystore.Mark(slot.Public) {
		return slot.Request, nil
	}
	key, err := a.TPM.Load(ctx, slot.KeyFile)
	if err != nil {
		return nil, err
	}
	defer key.Release(ctx)
	text, err := keystore.Request(key, a.Subject)
	if err == nil && had && waits(all.Next) {
		err = a.Store.AddKey(slot.KeyFile, text)
	}
	return text, err
}

// waits reports whether a slot is a key without a certificate.
func waits(s *keystore.Slot) bool { return s != nil && s.Chain == nil }

// holds reports whether a slot is a key with its certificate.
func holds(s *keystore.Slot) bool { return s != nil && s.Chain != nil && s.Fault == nil }

// known reports whether a key is in use, or waits to be.
func known(slots keystore.Slots, key crypto.PublicKey) bool {
	return slices.ContainsFunc([]*keystore.Slot{slots.Current, slots.Next}, func(s *keystore.Slot) bool {
		return s != nil && s.Public != nil && keystore.Mark(s.Public) == keystore.Mark(key)
	})
}

func parseRequest(text []byte) (*x509.CertificateRequest, error) {
	b, _ := pem.Decode(text)
	if b == nil {
		return nil, errors.New("there is no request")
	}
	return x509.ParseCertificateRequest(b.Bytes)
}

// ErrNotEnrolled is that there is no certificate yet.
var ErrNotEnrolled = errors.New("the gateway has no certificate yet: run gatewayd enroll init, and follow its next steps")

// Identity is what a slot shows to platforms: its chain with the key in the TPM.
// It does not touch the TPM. Without a certificate it is ErrNotEnrolled.
func (a *Applicant) Identity(slot *keystore.Slot) (tls.Certificate, error) {
	switch {
	case slot == nil:
		return tls.Certificate{}, ErrNotEnrolled
	case slot.Damage != nil:
		return tls.Certificate{}, slot.Damage
	case slot.Chain == nil:
		return tls.Certificate{}, ErrNotEnrolled
	}
	key, err := a.TPM.Key(slot.KeyFile)
	if err != nil {
		return tls.Certificate{}, err
	}
	return keystore.Pair(slot.Chain, key)
}
