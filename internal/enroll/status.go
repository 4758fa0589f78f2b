package enroll

import (
	"context"
	"crypto/ecdsa"
	"crypto/rsa"
	"errors"
	"fmt"
	"time"

	"github.com/bedside-gateway/gatewayd/keystore"
	"github.com/bedside-gateway/gatewayd/keystore/tpm"
)

// A Status is how the identity stands.
type Status struct {
	TPM   *tpm.Description `json:"tpm,omitempty"`
	Fault string           `json:"fault,omitempty"` // of the TPM or the key, as a condition's name
	Text  string           `json:"text,omitempty"`  // of the fault
	Slots []SlotStatus     `json:"slots"`
	Next  string           `json:"next"`
}

// A SlotStatus is a slot for people.
type SlotStatus struct {
	Slot     string    `json:"slot"`
	Key      string    `json:"key"`     // its mark
	Kind     string    `json:"kind"`    // of key
	Subject  string    `json:"subject"` // common name; empty: no certificate yet
	Issuer   string    `json:"issuer"`  // common name
	NotAfter time.Time `json:"not_after,omitzero"`
	RenewAt  time.Time `json:"renew_at,omitzero"`
	Expiry   string    `json:"expiry,omitempty"` // as a condition's name
	Fault    string    `json:"fault,omitempty"`  // of the key file, as a condition's name
	Damage   string    `json:"damage,omitempty"` // why the certificate is of no use
}

// Status tells how the identity stands. A TPM that is away is part of it, not an error.
func (a *Applicant) Status(ctx context.Context) (s Status, err error) {
	slots, err := a.Store.Read()
	if err != nil {
		return s, err
	}
	s.Slots, s.Next = Table(slots, a.Now()), a.next(slots)
	d, err := a.TPM.Describe(ctx)
	if err == nil {
		s.TPM = &d
		if slots.Current != nil {
			err = a.try(ctx, slots.Current)
		}
	}
	if e, ok := errors.AsType[*tpm.Error](err); ok {
		s.Fault, s.Text, s.Next = string(e.Fault), fmt.Sprintf("could not %s: %v", e.What, e.Err), upper(e.Next())+"."
		return s, nil
	}
	return s, err
}

// Table are the slots for people.
func Table(slots keystore.Slots, now time.Time) []SlotStatus {
	all := []SlotStatus{}
	for _, s := range []struct {
		name string
		slot *keystore.Slot
	}{{keystore.Current, slots.Current}, {keystore.Next, slots.Next}, {keystore.Previous, slots.Previous}} {
		if s.slot != nil {
			all = append(all, row(s.name, s.slot, now))
		}
	}
	return all
}

func row(name string, s *keystore.Slot, now time.Time) SlotStatus {
	r := SlotStatus{Slot: name, Fault: string(tpm.FaultOf(s.Fault))}
	if s.Public != nil {
		r.Key, r.Kind = keystore.Mark(s.Public), kind(s.Public)
	}
	if s.Damage != nil {
		r.Damage = s.Damage.Error()
	}
	if s.Chain != nil {
		c := s.Chain[0]
		r.Subject, r.Issuer, r.NotAfter, r.RenewAt = c.Subject.CommonName, c.Issuer.CommonName, c.NotAfter, keystore.RenewAt(c, 0)
		r.Expiry = string(keystore.Expires(c, now))
	}
	return r
}

func kind(public any) string {
	switch p := public.(type) {
	case *ecdsa.PublicKey:
		return "ECC " + p.Params().Name
	case *rsa.PublicKey:
		return fmt.Sprintf("RSA %d", p.N.BitLen())
	}
	return "unknown"
}

// next is what to do.
func (a *Applicant) next(slots keystore.Slots) string {
	switch {
	case slots.Current == nil && slots.Next == nil:
		return "Run " + a.command("init") + "."
	case slots.Current != nil && errors.Is(slots.Current.Damage, keystore.ErrOtherKey):
		return "Bring back the file that was exchanged, the key's or the certificate's; or have another certificate issued: " + a.nextCSR()
	case slots.Current != nil && slots.Current.Damage != nil:
		return "The certificate in use is damaged: install it again, with " + a.command("install FILE") + "."
	case slots.Current == nil || waits(slots.Current):
		return a.nextCSR()
	}
	switch state := keystore.Expires(slots.Current.Chain[0], a.Now()); {
	case state == keystore.NotYet:
		return "Look at the clock of the gateway: the certificate is not valid yet."
	case slots.Next != nil && slots.Next.Chain != nil:
		return a.nextTrial()
	case state == keystore.Expired && a.Answers:
		return fmt.Sprintf("The certificate has expired. Run %s --user USER --password-file FILE with the bootstrap credential of the CA; or %s.", a.command("renew"), a.byHand())
	case state == keystore.Expired:
		return "The certificate has expired: " + a.byHand() + "."
	case waits(slots.Next):
		return "A key waits for its certificate. " + a.nextCSR()
	case state == "":
		return "Nothing: the gateway is enrolled."
	}
	return "The certificate ends soon. " + a.nextRenewal()
}

// Pending tells of a certificate in the next slot that gatewayd has not taken up
// yet, so that nobody need ask for another one.
func (a *Applicant) Pending() (o Outcome, is bool, err error) {
	slots, err := a.Store.Read()
	if err != nil || !holds(slots.Next) || keystore.Expires(slots.Next.Chain[0], a.Now()) == keystore.Expired {
		return o, false, err
	}
	return a.installed(slots.Next.Chain[0], keystore.Next, false), true, nil
}
