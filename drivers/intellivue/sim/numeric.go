package sim

import (
	"strconv"
	"time"
)

// Measurement state.
const (
	stateInvalid     = 0x8000
	stateUnavailable = 0x2000
	stateDemo        = 0x0400
	stateInAlarm     = 0x0002
)

// Units.
const (
	unitNone       = 0x0200
	unitPercent    = 0x0220
	unitCentimetre = 0x0511
	unitMillimetre = 0x0512
	unitSquareM    = 0x05C0
	unitKilogram   = 0x06C3
	unitYear       = 0x0940
	unitBeats      = 0x0AA0
	unitBreaths    = 0x0AE0
	unitMMHg       = 0x0F20
	unitOhm        = 0x10C0
	unitMillivolt  = 0x10B2
	unitCelsius    = 0x17A0
)

// A reading is one value of a numeric object.
type reading struct {
	physio, unit uint16
	value        float
}

// A numericObject is a numeric of the MDIB. Objects without values appear
// with their handle only, as derived ones do whose inputs are missing.
type numericObject struct {
	context, handle uint16
	label           uint32
	name            string
	compound        bool
	episodic        bool
	colour          uint16
	values          func(v *vitals, c cuff) []reading
}

func one(physio, unit uint16, decimals int8, of func(*vitals) float64) func(*vitals, cuff) []reading {
	return func(v *vitals, _ cuff) []reading {
		return []reading{{physio, unit, toFloat(of(v), decimals)}}
	}
}

func none(*vitals, cuff) []reading { return nil }

// numericObjects are the numerics in the order of their results. Context 0 is
// the monitor itself with its calculations, context 1 the measurement server.
func numericObjects(art bool) []numericObject {
	line := numericObject{handle: 0x8901, label: 0x00024A14, name: "ABP", compound: true, colour: 1,
		values: arterial(0x4A15, 0x4A16, 0x4A17)}
	pulse := numericObject{handle: 0x8908, label: 0x80035402, name: "Pulse", colour: 1,
		values: one(0x480A, unitBeats, 0, (*vitals).heartRate)}
	if art {
		line.label, line.name, line.values = 0x00024A10, "ART", arterial(0x4A11, 0x4A12, 0x4A13)
		pulse.label = 0x80035403
	}
	return []numericObject{
		{handle: 0x8611, label: 0x00025804, name: "CPP", colour: 5, values: none},
		{handle: 0x8622, label: 0x00024B28, name: "SVR", colour: 2, values: none},
		line, pulse,
		{handle: 0x8A01, label: 0x00024A44, name: "CVP", colour: 6, values: one(0x4A47, unitMMHg, 0, (*vitals).cvp)},
		{context: 1, handle: 0x8241, label: 0x00024A04, name: "NBP", compound: true, episodic: true, colour: 5, values: noninvasive},
		{context: 1, handle: 0x8244, label: 0x0002F0E5, name: "Pulse", episodic: true, colour: 5, values: cuffPulse},
		{context: 1, handle: 0x8281, label: 0x00024182, name: "HR", colour: 2, values: one(0x4182, unitBeats, 0, (*vitals).heartRate)},
		{context: 1, handle: 0x8288, label: 0x0002500A, name: "RR", colour: 7, values: one(0x500A, unitBreaths, 0, (*vitals).respRate)},
		{context: 1, handle: 0x828F, label: 0x00020300, name: "ST", compound: true, colour: 2, values: none},
		{context: 1, handle: 0x8296, label: 0x00024261, name: "PVC", colour: 2, values: one(0x4261, unitBeats, 0, func(v *vitals) float64 { return v.base.PVCsPerMin })},
		{context: 1, handle: 0x83C1, label: 0x00024BB8, name: "SpO2", colour: 6, values: one(0x4BB8, unitPercent, 1, (*vitals).spo2)},
		{context: 1, handle: 0x83C8, label: 0x00024822, name: "Pulse", colour: 6, values: one(0x4822, unitBeats, 0, (*vitals).heartRate)},
		{context: 1, handle: 0x83CF, label: 0x00024BB0, name: "Perf", colour: 6, values: one(0x4BB0, unitNone, 1, (*vitals).perfusion)},
		{context: 1, handle: 0x8501, label: 0x00024B48, name: "Temp", colour: 2, values: one(0x4B48, unitCelsius, 1, (*vitals).temperature)},
		{context: 1, handle: 0x8541, label: 0x000250AC, name: "CO2", compound: true, colour: 3, values: capnometry},
		{context: 1, handle: 0x8548, label: 0x00025012, name: "awRR", colour: 3, values: one(0x5012, unitBreaths, 0, (*vitals).respRate)},
	}
}

func arterial(sys, dia, mean uint16) func(*vitals, cuff) []reading {
	return func(v *vitals, _ cuff) []reading {
		return []reading{{mean, unitMMHg, toFloat(v.mean(), 0)}, {sys, unitMMHg, toFloat(v.systolic(), 0)},
			{dia, unitMMHg, toFloat(v.diastolic(), 0)}}
	}
}

func noninvasive(_ *vitals, c cuff) []reading {
	if c.at.IsZero() {
		return nil
	}
	return []reading{{0x4A05, unitMMHg, toFloat(c.systolic, 0)}, {0x4A06, unitMMHg, toFloat(c.diastolic, 0)},
		{0x4A07, unitMMHg, toFloat(c.mean, 0)}}
}

func cuffPulse(_ *vitals, c cuff) []reading {
	if c.at.IsZero() {
		return nil
	}
	return []reading{{0xF0E5, unitBeats, toFloat(c.beat, 0)}}
}

func capnometry(v *vitals, _ cuff) []reading {
	return []reading{{0x50B0, unitMMHg, toFloat(v.endTidal(), 0)}, {0x50BA, unitMMHg, float{}}}
}

// statics are the attributes that do not change while the object exists.
func (n *numericObject) statics(handle uint16) []attribute {
	spec := u32(nil, relativePerTick)
	spec = u16(u16(spec, 1), 0x4228)
	structure := uint16(0)
	if n.compound {
		structure = 0x0103
	}
	spec = u16(u16(spec, structure), 0)
	return []attribute{
		attr16(groupStatic, attrHandle, handle),
		{groupStatic, attrType, u16(u16(nil, 1), classNumeric)},
		{groupStatic, attrMetricSpec, spec},
		attr32(groupDynamic, attrLabel, n.label),
		{groupDynamic, attrLabelString, appendString(nil, n.name, 6)},
		{groupDynamic, attrResolution, []byte{3, 0}},
		attr16(groupDynamic, attrColour, n.colour),
	}
}

// numericResult is the numerics at t.
func (m *Monitor) numericResult(p *poll, t time.Time) []object {
	var objects []object
	for _, n := range m.listedNumerics(p.most) {
		o := object{context: n.context, handle: m.handle(n.handle)}
		o.attributes = append(n.statics(o.handle), m.numericValues(&n, &o, t)...)
		objects = append(objects, o)
	}
	return objects
}

// listedNumerics are all, or the first of the priority list where the poll
// asks for so many of it.
func (m *Monitor) listedNumerics(most int) []numericObject {
	all := numericObjects(m.o.ART)
	if most == 0 || len(m.numericList) == 0 {
		return all
	}
	var listed []numericObject
	for _, n := range all {
		for _, label := range m.numericList[:min(most, len(m.numericList))] {
			if n.label == label {
				listed = append(listed, n)
			}
		}
	}
	return listed
}

// numericValues are the changing attributes; the values are noted in o.
func (m *Monitor) numericValues(n *numericObject, o *object, t time.Time) []attribute {
	readings := n.values(m.vitals, m.cuff)
	if len(readings) == 0 {
		return nil
	}
	at := m.clock(t)
	var list []attribute
	if n.episodic {
		at = m.cuff.at
		list = append(list, attribute{groupValue, attrStampAbs, appendBCD(nil, at)})
	}
	if n.episodic && n.compound {
		list = append(list, attr32(groupValue, attrCuffTimer, 0xFFFFFFFF))
	}
	var value []byte
	for _, r := range readings {
		state := m.measurementState(r.physio)
		if state&(stateInvalid|stateUnavailable) != 0 {
			r.value = nan
		}
		value = u32(u16(u16(u16(value, r.physio), state), r.unit), r.value.bits())
		o.numerics = append(o.numerics, Numeric{Label: n.label, Physio: r.physio, Unit: r.unit, State: state,
			Handle: o.handle, Context: o.context, Value: r.value.digits(), Time: at, Relative: uint32(m.units(t)), Episodic: n.episodic})
	}
	if !n.compound {
		return append(list, attribute{groupValue, attrNumeric, value})
	}
	all := counted(nil, len(readings), func(b []byte) []byte { return append(b, value...) })
	return append(list, attribute{groupValue, attrCompoundNumeric, all})
}

// measurementState is the state of a value by its physio id.
func (m *Monitor) measurementState(physio uint16) uint16 {
	s := m.states[physio]
	if m.o.Demo {
		s |= stateDemo
	}
	if m.alarms.concern(physio) {
		s |= stateInAlarm
	}
	return s
}

// handle is a handle of this boot: handles are not for ever.
func (m *Monitor) handle(h uint16) uint16 { return h + uint16(m.boots%16)*2 }

// digits is the number with as many decimals as its exponent says.
func (f float) digits() string {
	if f.isNaN() {
		return ""
	}
	v := float64(f.mantissa)
	if f.exponent >= 0 {
		for range f.exponent {
			v *= 10
		}
		return strconv.FormatFloat(v, 'f', 0, 64)
	}
	for range -f.exponent {
		v /= 10
	}
	return strconv.FormatFloat(v, 'f', int(-f.exponent), 64)
}
