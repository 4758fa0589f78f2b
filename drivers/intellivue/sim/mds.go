package sim

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"time"
)

// A Patient is what the monitor knows of its patient. Make names up.
type Patient struct {
	ID, Given, Middle, Family string
	Born                      string // YYYYMMDD; empty: unknown
	Sex                       Sex
	Type                      PatientType
	State                     PatientState // 0: Admitted
	Height                    float64      // cm; 0: unknown
	Weight                    float64      // kg; 0: unknown
}

// Sex is coded as in the protocol.
type Sex uint16

// The sexes.
const (
	SexUnknown Sex = 0
	Male       Sex = 1
	Female     Sex = 2
)

// PatientType is coded as in the protocol.
type PatientType uint16

// The types.
const (
	TypeUnspecified PatientType = 0
	Adult           PatientType = 1
	Pediatric       PatientType = 2
	Neonatal        PatientType = 3
)

// PatientState is coded as in the protocol.
type PatientState uint16

// The states.
const (
	Empty       PatientState = 0
	PreAdmitted PatientState = 1
	Admitted    PatientState = 2
	Discharged  PatientState = 8
)

func (p *Patient) clone() *Patient {
	if p == nil {
		return nil
	}
	c := *p
	or(&c.State, Admitted)
	return &c
}

func (p *Patient) check() error {
	if p == nil {
		return nil
	}
	if _, err := time.Parse("20060102", p.Born); p.Born != "" && err != nil {
		return errors.New("the patient's date of birth is not YYYYMMDD")
	}
	for _, s := range []string{p.ID, p.Given, p.Middle, p.Family} {
		if len(s) > 64 {
			return fmt.Errorf("a text of %d bytes about the patient: 64 are allowed", len(s))
		}
	}
	return nil
}

// quantity is a number with its unit, NaN where v is 0.
func quantity(v float64, decimals int8, unit uint16) []byte {
	f := nan
	if v != 0 {
		f = toFloat(v, decimals)
	}
	return u16(u32(nil, f.bits()), unit)
}

// patientResult is the one object of class patient demographics.
func (m *Monitor) patientResult() []object {
	p := m.patient
	if p == nil {
		p = &Patient{State: Discharged}
	}
	text := func(id uint16, s string) attribute { return attribute{groupPatient, id, appendString(nil, s, 0)} }
	handle := m.handle(0x0050)
	born := make([]byte, 8)
	if t, err := time.Parse("20060102", p.Born); err == nil {
		born = appendBCD(nil, t)
	}
	bsa := 0.0
	if p.Height > 0 && p.Weight > 0 { // DuBois, as formula 2 says
		bsa = 0.007184 * math.Pow(p.Height, 0.725) * math.Pow(p.Weight, 0.425)
	}
	paced := uint16(0)
	if m.o.Paced {
		paced = 1
	}
	return []object{{handle: handle, attributes: []attribute{
		attr16(groupPatient, attrHandle, handle),
		attr16(groupPatient, attrPatientState, uint16(p.State)),
		attr16(groupPatient, attrADTState, 0),
		attr16(groupPatient, attrPatientType, uint16(p.Type)),
		attr16(groupPatient, attrPaced, paced),
		text(attrGiven, p.Given), text(attrFamily, p.Family), text(attrPatientID, p.ID), text(attrMiddle, p.Middle),
		text(attrNotes1, ""), text(attrNotes2, ""),
		attr16(groupPatient, attrSex, uint16(p.Sex)),
		{groupPatient, attrBorn, born},
		{groupPatient, attrAge, quantity(p.age(m.clock(m.o.Now())), 0, unitYear)},
		{groupPatient, attrHeight, quantity(p.Height, 1, unitCentimetre)},
		{groupPatient, attrWeight, quantity(p.Weight, 1, unitKilogram)},
		{groupPatient, attrBSA, quantity(bsa, 2, unitSquareM)},
		attr16(groupPatient, attrBSAFormula, 2),
	}}}
}

// age is in whole years, 0 where it is not known.
func (p *Patient) age(now time.Time) float64 {
	born, err := time.Parse("20060102", p.Born)
	if err != nil {
		return 0
	}
	years := now.Year() - born.Year()
	if now.Month() < born.Month() || now.Month() == born.Month() && now.Day() < born.Day() {
		years--
	}
	return float64(years)
}

// mdsAttributes are those of the medical device system, at t.
func (m *Monitor) mdsAttributes(t time.Time) []attribute {
	mode := uint16(0)
	if m.o.Demo {
		mode = 0x2000
	}
	return []attribute{
		attr16(groupSystem, attrOperatingMode, mode),
		attr16(groupSystem, attrArea, 2), // intensive care
		attr16(groupSystem, attrLineFrequency, 1),
		attr16(groupSystem, attrSafety, 0),
		attr16(groupSystem, attrAltitude, 100),
		{groupSystem, attrGeneralInfo, m.pulseInfo()},
		attr16(groupSystem, attrMDSStatus, 6), // operating
		{groupSystem, attrBedLabel, appendString(nil, m.o.BedLabel+zeros(16-len(m.o.BedLabel)), 0)},
		{groupSystem, attrTimeAbs, appendBCD(nil, m.clock(t).Truncate(time.Second))},
		attr32(groupSystem, attrTimeRel, uint32(m.units(t))),
		{groupSystem, attrSystemSpec, m.systemSpec()},
		{groupIdent, attrSystemID, sized(nil, func(b []byte) []byte { return append(b, m.o.MAC[:]...) })},
		{groupIdent, attrSystemType, u16(u16(nil, 1), 0x114D)},
		attr16(groupIdent, attrAssociation, m.assoc),
		attr16(groupIdent, attrHandle, 0),
		{groupIdent, attrModel, appendText(appendText(nil, "Philips"), m.o.Model)},
		attr32(groupIdent, attrNomenclature, 0x00010000),
		{groupIdent, attrLocalization, u16(u16(u32(nil, 0x06320632), 1), 11)}, // English, Unicode
		{groupProduct, attrProduct, m.product()},
	}
}

func zeros(n int) string { return string(make([]byte, max(n, 0))) }

// pulseInfo names the objects that the system pulse and its alarms come from.
func (m *Monitor) pulseInfo() []byte {
	return counted(nil, 1, func(b []byte) []byte {
		return sized(u16(b, 1), func(b []byte) []byte {
			b = u16(u16(u16(b, classNumeric), 1), m.handle(0x83C8))
			return u16(u16(u16(b, classNumeric), 1), m.handle(0x8281))
		})
	})
}

func (m *Monitor) systemSpec() []byte {
	support := objectSupport()
	return counted(nil, 1, func(b []byte) []byte { return attribute{id: profileMDIB, value: support}.append(b) })
}

// product is the production specification: serial number, part number and
// software revision of the system.
func (m *Monitor) product() []byte {
	entries := []struct {
		kind, component uint16
		text            string
	}{{1, 0, m.o.Serial}, {2, 0, m.o.Product}, {4, 0x58, m.o.Software}}
	return counted(nil, len(entries), func(b []byte) []byte {
		for _, e := range entries {
			b = appendText(u16(u16(b, e.kind), e.component), e.text)
		}
		return b
	})
}

// createEvent is the PDU that tells a new client which device this is.
func (m *Monitor) createEvent(t time.Time) []byte {
	order := []uint16{attrSystemID, attrSystemType, attrAssociation, attrModel, attrNomenclature, attrLocalization,
		attrOperatingMode, attrArea, attrLineFrequency, attrSafety, attrAltitude, attrGeneralInfo, attrMDSStatus,
		attrBedLabel, attrTimeAbs, attrTimeRel, attrSystemSpec}
	all := m.mdsAttributes(t)
	var list []attribute
	for _, id := range order {
		i := slices.IndexFunc(all, func(a attribute) bool { return a.id == id })
		list = append(list, all[i])
	}
	return dataExport(nil, opInvoke, func(b []byte) []byte {
		return operation(b, m.o.CreateInvoke, cmdConfirmedEvent, func(b []byte) []byte {
			b = u16(u32(managedMDS(b), uint32(m.units(t))), eventCreate)
			return sized(b, func(b []byte) []byte { return appendAttributes(managedMDS(b), list) })
		})
	})
}

// indication is the connect indication that a monitor on a LAN broadcasts.
func (m *Monitor) indication() []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	protocols := [][2]uint16{{1, 24105}, {5, 24105}, {8, 24005}}
	list := []attribute{
		{id: attrSystemType, value: u16(u16(nil, 1), 0x114D)},
		{id: attrLocalization, value: u16(u16(u32(nil, 0x06320632), 1), 11)},
		{id: attrNetAddress, value: append(append([]byte{}, m.o.MAC[:]...), 192, 0, 2, 1, 255, 255, 255, 0)},
		{id: attrProtocols, value: counted(nil, len(protocols), func(b []byte) []byte {
			for _, p := range protocols {
				b = u32(u16(u16(b, p[0]), p[1]), 0)
			}
			return b
		})},
		{id: attrProduct, value: m.product()},
		{id: attrModel, value: appendText(appendText(nil, "Philips"), m.o.Model)},
	}
	b := u16(u32(nil, 0x00000100), opInvoke)
	return sized(b, func(b []byte) []byte {
		return operation(b, 0, 0, func(b []byte) []byte {
			b = u32(u16(b, classBed), 0)
			b = u16(u32(b, uint32(m.units(m.o.Now()))), eventConnect)
			return sized(b, func(b []byte) []byte { return appendAttributes(b, list) })
		})
	})
}
