package pcd

import (
	"strings"

	"github.com/bedside-gateway/gatewayd/hl7"
	"github.com/bedside-gateway/gatewayd/mdc"
	"github.com/bedside-gateway/gatewayd/observation"
)

// A device is a copy of what a report says of its device. It is never changed:
// batches share it.
type device struct {
	said observation.Device // as the report had it
	id   observation.EUI64  // its own, or the configured one
	mds  *mdc.Term
}

func newDevice(d *observation.Device, configured observation.EUI64) (*device, error) {
	n := &device{said: observation.Device{
		Type: d.Type, ID: d.ID,
		Manufacturer: strings.Clone(d.Manufacturer),
		Model:        strings.Clone(d.Model),
		Serial:       strings.Clone(d.Serial),
		Software:     strings.Clone(d.Software),
		BedLabel:     strings.Clone(d.BedLabel),
	}, id: d.ID}
	if n.id == 0 {
		n.id = configured
	}
	t, ok := mdc.Lookup(d.Type.Current())
	switch {
	case n.id == 0:
		return n, ErrNoDeviceID
	case !ok || t.Group != mdc.GroupMDS:
		return n, ErrNoDeviceType
	}
	n.mds = t
	return n, nil
}

// A patient is a copy of what a report says of the patient. It is never
// changed: batches share it.
type patient struct {
	said observation.Patient
	born string // as PID-7 takes it
}

func newPatient(p *observation.Patient) *patient {
	if p == nil {
		return nil
	}
	n := &patient{said: *p}
	if born := p.Born.Reveal(); dateOfBirth(born) {
		n.born = born
	}
	return n
}

// is reports whether p still is whom the device tells of. A device that no
// longer tells of a patient has none: what it measures then is nobody's.
func (p *patient) is(r *observation.Patient) bool {
	if p == nil || r == nil {
		return p == nil && r == nil
	}
	a := &p.said
	return a.ID == r.ID && a.Family == r.Family && a.Given == r.Given && a.Middle == r.Middle &&
		a.Born == r.Born && a.Sex == r.Sex && a.Admission == r.Admission
}

// known reports whether the patient may be named: the device has admitted him
// or her, under an identifier. A name alone identifies nobody.
func (p *patient) known() bool {
	return p != nil && p.said.Admission == observation.Admitted && strings.TrimSpace(p.said.ID.Reveal()) != ""
}

// appendPatient appends the PATIENT group: PID, and PV1 where a location is known.
func (s *Snapshot) appendPatient(dst []byte, p *patient, bedLabel string) []byte {
	switch {
	case s.o.Patient == PatientOmit:
		return dst
	case s.o.Patient == PatientDevice && p.known():
		dst = s.appendKnown(dst, p)
	default: // DEC-ID-4: known nowhere; PV1 may not stand without PID
		dst = append(dst, "PID|||UNKNOWN^^^^U||^^^^^^U||||||||||||||||||||||||||Y\r"...)
	}
	return s.appendVisit(dst, bedLabel)
}

func (s *Snapshot) appendKnown(dst []byte, known *patient) []byte {
	p := &known.said
	dst = append(dst, "PID|||"...)
	dst = hl7.AppendEscaped(dst, strings.TrimSpace(p.ID.Reveal()))
	dst = append(append(append(dst, "^^^"...), s.authority...), "^PI||"...)
	if p.Family.Empty() && p.Given.Empty() && p.Middle.Empty() {
		dst = append(dst, "^^^^^^U"...)
	} else {
		dst = appendName(dst, p)
	}
	dst = append(append(dst, "||"...), known.born...)
	switch p.Sex {
	case observation.SexMale:
		dst = append(dst, "|M"...)
	case observation.SexFemale:
		dst = append(dst, "|F"...)
	}
	return append(trimFields(dst), '\r')
}

func appendName(dst []byte, p *observation.Patient) []byte {
	dst = hl7.AppendEscaped(dst, strings.TrimSpace(p.Family.Reveal()))
	dst = hl7.AppendEscaped(append(dst, '^'), strings.TrimSpace(p.Given.Reveal()))
	dst = hl7.AppendEscaped(append(dst, '^'), strings.TrimSpace(p.Middle.Reveal()))
	return append(dst, "^^^^L"...)
}

// dateOfBirth reports whether s is a date in HL7's form, as far as it is known.
func dateOfBirth(s string) bool {
	if len(s) != 4 && len(s) != 6 && len(s) != 8 {
		return false
	}
	_, err := hl7.ParseDTM(s)
	return err == nil
}

// appendVisit appends PV1. The patient's class is not for a device to know: U.
func (s *Snapshot) appendVisit(dst []byte, bedLabel string) []byte {
	l := &s.o.Location
	bed := l.Bed
	if bed == "" {
		bed = strings.TrimSpace(bedLabel)
	}
	if l.PointOfCare == "" && l.Room == "" && bed == "" && l.Facility == "" {
		return dst
	}
	dst = append(dst, "PV1||U|"...)
	dst = hl7.AppendEscaped(dst, l.PointOfCare)
	dst = hl7.AppendEscaped(append(dst, '^'), l.Room)
	dst = hl7.AppendEscaped(append(dst, '^'), bed)
	dst = append(append(dst, '^'), s.facility...)
	for dst[len(dst)-1] == '^' {
		dst = dst[:len(dst)-1]
	}
	return append(dst, '\r')
}

// trimFields takes away the field separators at the end of a segment.
func trimFields(dst []byte) []byte {
	for dst[len(dst)-1] == '|' {
		dst = dst[:len(dst)-1]
	}
	return dst
}
