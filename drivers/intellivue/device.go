package intellivue

import (
	"time"

	"github.com/bedside-gateway/gatewayd/mdc"
	"github.com/bedside-gateway/gatewayd/observation"
)

// deviceMultiParameter is what a monitor is that does not say what it is.
const deviceMultiParameter mdc.Code = 69965 // MDC_DEV_MON_PHYSIO_MULTI_PARAM_MDS

// mds takes what the monitor says of itself.
func (m *machine) mds(now time.Time, at ticks, a attributes) {
	d := &m.device
	if shown, ok := timePair(a); ok {
		if rel, ok := a.find(attrTimeRel); ok {
			v, _ := parseU32(rel)
			at = m.see(now, relativeTime(v))
		}
		m.clock.pair(at, shown)
	}
	for {
		id, value, ok := a.next()
		if !ok {
			return
		}
		switch id {
		case attrSystemID:
			if id, ok := parseSystemID(value); ok {
				d.ID = id
			}
		case attrSystemType:
			if v, ok := parseU32(value); ok {
				if t, ok := mdc.Lookup(mdc.Code(v)); ok && t.Group == mdc.GroupMDS {
					d.Type = t.Code
				}
			}
		case attrModel:
			if maker, model, ok := parseModel(value); ok && (maker != d.Manufacturer || model != d.Model) {
				d.Manufacturer, d.Model = maker, model
			}
		case attrProduction:
			if s, ok := production(value, productionSerial); ok {
				d.Serial = s
			}
			if s, ok := production(value, productionSoftware); ok {
				d.Software = s
			}
		case attrBedLabel:
			if s, ok := parseText(value); ok {
				d.BedLabel = s
			}
		case attrOperatingMode:
			if v, ok := parseU16(value); ok {
				m.setMode(v)
			}
		}
	}
}

func timePair(a attributes) (time.Time, bool) {
	value, ok := a.find(attrTimeAbs)
	if !ok || len(value) != len(absoluteTime{}) {
		return time.Time{}, false
	}
	return absoluteTime(value).time()
}

func (m *machine) setMode(v uint16) {
	m.mode = v
	if m.demo() {
		m.note("the monitor is in demonstration mode: its values are no patient's")
	}
	if v&modeService != 0 {
		m.note("the monitor is in service mode: its values are no patient's")
	}
}

// patientState is what the monitor said of its patient.
type patientState struct {
	known   bool
	patient observation.Patient
}

// demographics takes what the monitor says of its patient. An object says all
// of it each time, so what is missing is not known any more.
func (m *machine) demographics(a attributes) {
	p := observation.Patient{}
	text := func(value []byte) observation.PHI {
		s, _ := parseText(value)
		return observation.NewPHI(s)
	}
	for {
		id, value, ok := a.next()
		if !ok {
			break
		}
		v, _ := parseU16(value)
		switch id {
		case attrPatientState:
			p.Admission = admission(v)
		case attrPatientType:
			p.Category = category(v)
		case attrSex:
			p.Sex = sex(v)
		case attrPatientID:
			p.ID = text(value)
		case attrGivenName:
			p.Given = text(value)
		case attrMiddleName:
			p.Middle = text(value)
		case attrFamilyName:
			p.Family = text(value)
		case attrBirth:
			p.Born = birth(value)
		case attrHeight:
			p.Height = m.quantity(value)
		case attrWeight:
			p.Weight = m.quantity(value)
		}
	}
	m.patient = patientState{true, p}
}

func (m *machine) quantity(value []byte) observation.Quantity {
	v, ok := parseMeasure(value)
	d := v.value.decimal()
	if !ok || !d.Valid() {
		return observation.Quantity{}
	}
	unit, ok := m.unit(v.unit)
	if !ok {
		return observation.Quantity{}
	}
	return observation.Quantity{Number: d, Unit: unit}
}

func birth(value []byte) observation.PHI {
	if len(value) != len(absoluteTime{}) {
		return observation.PHI{}
	}
	t, ok := absoluteTime(value).time()
	if !ok {
		return observation.PHI{}
	}
	return observation.NewPHI(t.Format("20060102"))
}

func admission(v uint16) observation.Admission {
	switch v {
	case 0:
		return observation.NotAdmitted
	case 1:
		return observation.PreAdmitted
	case 2:
		return observation.Admitted
	case 8:
		return observation.Discharged
	}
	return observation.AdmissionUnknown
}

func category(v uint16) observation.Category {
	switch v {
	case 1:
		return observation.Adult
	case 2:
		return observation.Pediatric
	case 3:
		return observation.Neonatal
	}
	return observation.CategoryUnknown
}

func sex(v uint16) observation.Sex {
	switch v {
	case 1:
		return observation.SexMale
	case 2:
		return observation.SexFemale
	}
	return observation.SexUnknown
}
