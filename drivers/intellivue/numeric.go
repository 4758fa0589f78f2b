package intellivue

import (
	"fmt"
	"strings"
	"time"

	"github.com/bedside-gateway/gatewayd/observation"
)

// A stamp is when a value was measured, where the object says it.
type stamp struct {
	abs    absoluteTime
	rel    relativeTime
	hasAbs bool
	hasRel bool
}

func stampOf(a attributes) (s stamp) {
	if value, ok := a.find(attrStampAbs); ok && len(value) == len(s.abs) {
		s.abs = absoluteTime(value)
		_, s.hasAbs = s.abs.time()
	}
	if value, ok := a.find(attrStampRel); ok {
		var rel uint32
		rel, s.hasRel = parseU32(value)
		s.rel = relativeTime(rel)
	}
	return s
}

// numeric takes the values of a numeric object.
func (m *machine) numeric(now time.Time, at ticks, o *object, a attributes) {
	s := stampOf(a)
	for list := a; ; {
		id, value, ok := list.next()
		if !ok {
			break
		}
		switch id {
		case attrNumeric:
			if n, ok := parseNumeric(value); ok {
				m.number(now, at, o, s, n)
			}
		case attrCompoundNumeric:
			l, ok := parseCompoundNumeric(value)
			for i := 0; ok && i < l.count; i++ {
				n, _ := parseNumeric(l.at(i, numericSize))
				m.number(now, at, o, s, n)
			}
		}
	}
}

// number reports a value.
func (m *machine) number(now time.Time, at ticks, o *object, s stamp, n numericValue) {
	k := m.metric(o, n.physio, false)
	k.present, o.valued = true, m.turn
	episodic := s.hasAbs || s.hasRel || o.spec.access&(accessNoncontinuous|accessEpisodic) != 0
	when, shown := m.clock.gateway(now, at), m.clock.device(at)
	if episodic {
		when, shown = m.measured(now, at, k, s, n)
	}
	status := m.status(n.state) | n.value.status()
	b := m.observe(k, status, when, shown)
	b.Method, b.Episodic = o.spec.method(), episodic
	if k.unit == 0 || k.unitID != n.unit {
		k.unitID = n.unit
		k.unit, k.unitOK = m.unit(n.unit)
	}
	d := n.value.decimal()
	switch {
	case !d.Valid() || !status.Usable():
		if k.unitOK {
			b.Unit = k.unit
		}
	case k.unitOK:
		b.Unit = k.unit
		b.Value = observation.Value{Kind: observation.KindNumber, Number: d}
	default:
		unnamed(b, n, d)
	}
}

// unnamed makes of a number, whose unit the nomenclature lacks, a text with the
// maker's name of the unit: a number would be taken for one of another unit.
func unnamed(b *observation.Observation, n numericValue, d observation.Decimal) {
	physio, _ := findName(physioNames[:], n.physio)
	unit, ok := findName(unitNames[:], n.unit)
	if !ok {
		unit.name = fmt.Sprintf("%s_%04X", vendor, n.unit)
	}
	b.Code, b.Private = 0, observation.Private{Vendor: vendor, Code: uint32(n.physio), Name: physio.name}
	b.Value = observation.Value{Kind: observation.KindText, Text: d.String() + " " + strings.TrimPrefix(unit.name, "NOM_DIM_")}
}

// measured is when a value was measured that is not measured all the time: as
// its time stamp says, else when it was first seen. It stays what it was found
// to be until there is another measurement.
func (m *machine) measured(now time.Time, at ticks, k *metric, s stamp, n numericValue) (byUs, shown time.Time) {
	same := k.seen && k.stamp == s
	if !s.hasAbs && !s.hasRel {
		same = same && k.last == n
	}
	k.last = n
	if same {
		return k.time, k.shown
	}
	k.seen, k.stamp = true, s
	k.time, k.shown = m.clock.gateway(now, at), m.clock.device(at)
	switch {
	case s.hasAbs:
		k.shown, _ = s.abs.time()
		if t, ok := m.clock.fromDevice(now, k.shown); ok && !t.After(now) {
			k.time = t
		}
	case s.hasRel:
		t := at + ticks(int32(s.rel-m.parts[0].rel))
		k.time, k.shown = m.clock.gateway(now, t), m.clock.device(t)
	}
	return k.time, k.shown
}

// absent tells that an object has no value any more: what it was a second ago
// must not stand.
func (m *machine) absent(now time.Time, at ticks, o *object) {
	if o.valued == m.turn {
		return
	}
	o.valued = m.turn
	for i := range o.metrics {
		if k := &o.metrics[i]; k.present {
			k.seen = false
			m.observe(k, m.status(stateUnavailable), m.clock.gateway(now, at), m.clock.device(at)).Method = o.spec.method()
		}
	}
}

// enumeration takes the value of an object whose values are words.
func (m *machine) enumeration(now time.Time, at ticks, o *object, a attributes) {
	value, ok := a.find(attrEnumeration)
	e, ok2 := parseEnumeration(value)
	if !ok || !ok2 {
		return
	}
	k := m.metric(o, e.physio, false)
	k.present, o.valued = true, m.turn
	b := m.observe(k, m.status(e.state), m.clock.gateway(now, at), m.clock.device(at))
	b.Method = o.spec.method()
	if b.Status.Usable() {
		b.Value = word(e.code)
	}
	if e.choice == choiceCodeNumber {
		m.number(now, at, o, stamp{}, numericValue{physio: e.code, state: e.state, unit: e.unit, value: e.number})
	}
}

// word is the value that a code is: a term where the nomenclature has it, else
// the maker's name or number.
func word(code uint16) observation.Value {
	t := metricTerm(code)
	switch {
	case t.code != 0:
		return observation.Value{Kind: observation.KindCode, Code: t.code}
	case t.private.Name != "":
		return observation.Value{Kind: observation.KindText, Text: t.private.Name}
	}
	return observation.Value{Kind: observation.KindText, Text: fmt.Sprintf("%s_%04X", vendor, code)}
}

// find is the value of an attribute.
func (a attributes) find(id uint16) ([]byte, bool) {
	for {
		i, value, ok := a.next()
		if !ok || i == id {
			return value, ok
		}
	}
}

// u16 is the value of an attribute of two bytes.
func (a attributes) u16(id uint16) (uint16, bool) {
	value, ok := a.find(id)
	v, ok2 := parseU16(value)
	return v, ok && ok2
}

func (m *machine) noteUnit(id uint16) {
	if name, ok := findName(unitNames[:], id); ok {
		m.note("values come in a unit that the nomenclature lacks: " + name.name)
		return
	}
	m.note(fmt.Sprintf("values come in an unknown unit, %04X", id))
}
