package observation

import (
	"encoding/hex"
	"fmt"
	"log/slog"
	"strings"
	"unique"

	"github.com/bedside-gateway/gatewayd/mdc"
)

// An EUI64 is the 64-bit extended unique identifier of a device. The zero value is none.
type EUI64 uint64

// String is the identifier in 16 capital hexadecimal digits.
func (e EUI64) String() string { return string(e.Append(nil)) }

// Append writes what String gives.
func (e EUI64) Append(b []byte) []byte {
	const digits = "0123456789ABCDEF"
	for shift := 60; shift >= 0; shift -= 4 {
		b = append(b, digits[e>>shift&15])
	}
	return b
}

// ParseEUI64 reads 16 hexadecimal digits, with or without the separators - and :.
func ParseEUI64(s string) (EUI64, error) {
	b, err := hex.DecodeString(strings.NewReplacer("-", "", ":", "").Replace(s))
	if err != nil || len(b) != 8 {
		return 0, fmt.Errorf("%q is no EUI-64: it has 16 hexadecimal digits", s)
	}
	var e EUI64
	for _, c := range b {
		e = e<<8 | EUI64(c)
	}
	if e == 0 {
		return 0, fmt.Errorf("%q is no EUI-64: all digits are zero", s)
	}
	return e, nil
}

// UnmarshalText is ParseEUI64.
func (e *EUI64) UnmarshalText(b []byte) error {
	v, err := ParseEUI64(string(b))
	*e = v
	return err
}

// MarshalText is String.
func (e EUI64) MarshalText() ([]byte, error) { return e.Append(nil), nil }

// MAC48 makes the EUI-64 of a device that has only a 48-bit MAC address, by
// FFFE in the middle, as the IHE samples do (no bit is flipped).
func MAC48(mac [6]byte) EUI64 {
	return EUI64(mac[0])<<56 | EUI64(mac[1])<<48 | EUI64(mac[2])<<40 | 0xFFFE<<24 |
		EUI64(mac[3])<<16 | EUI64(mac[4])<<8 | EUI64(mac[5])
}

// PHI is a text that identifies a patient. Whatever prints it, formats it, logs
// it or marshals it gets the word REDACTED; only Reveal gives the text, and the
// only callers of Reveal are those that write it into a message for the platform.
//
// It holds no string but a handle of one: package fmt calls no method of a
// field that it cannot reach, and would print what such a field holds. Equal
// texts are equal PHI.
type PHI struct{ text unique.Handle[string] }

const redacted = "REDACTED"

// NewPHI keeps a copy of s.
func NewPHI(s string) PHI {
	if s == "" {
		return PHI{}
	}
	return PHI{unique.Make(s)}
}

// Empty reports whether there is no text.
func (p PHI) Empty() bool { return p == PHI{} }

// Reveal is the text itself.
func (p PHI) Reveal() string {
	if p.Empty() {
		return ""
	}
	return p.text.Value()
}

// String hides the text.
func (p PHI) String() string {
	if p.Empty() {
		return ""
	}
	return redacted
}

// GoString hides the text from %#v.
func (p PHI) GoString() string { return fmt.Sprintf("observation.PHI(%q)", p.String()) }

// Format hides the text from every verb of package fmt.
func (p PHI) Format(f fmt.State, _ rune) { fmt.Fprint(f, p.String()) }

// LogValue hides the text from package slog.
func (p PHI) LogValue() slog.Value { return slog.StringValue(p.String()) }

// MarshalText hides the text from JSON and the like.
func (p PHI) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// A Patient is what the device says of its patient.
type Patient struct {
	ID        PHI
	Given     PHI
	Family    PHI
	Middle    PHI
	Born      PHI // YYYYMMDD, as far as it is known
	Sex       Sex
	Admission Admission
	Height    Quantity
	Weight    Quantity
	Category  Category
}

// A Quantity is a number with its unit.
type Quantity struct {
	Number Decimal
	Unit   mdc.Code
}

// Sex is the administrative sex.
type Sex uint8

// The sexes that devices tell apart.
const (
	SexUnknown Sex = iota
	SexMale
	SexFemale
)

// Admission is whether the device has a patient admitted.
type Admission uint8

// The states of admission.
const (
	AdmissionUnknown Admission = iota
	NotAdmitted
	PreAdmitted
	Admitted
	Discharged
)

// Category is the age group that the device is set to.
type Category uint8

// The age groups.
const (
	CategoryUnknown Category = iota
	Adult
	Pediatric
	Neonatal
)
