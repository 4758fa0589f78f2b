package intellivue

import (
	"time"

	"github.com/bedside-gateway/gatewayd/mdc"
	"github.com/bedside-gateway/gatewayd/observation"
)

// An object is what an association has taught of a metric: a monitor says what
// a metric is once, and from then on only its values.
type object struct {
	class     uint16
	described bool
	valued    uint32 // the answer in which it had a value last
	spec      metricSpec
	waves     []waveStatics // one handle may carry several
	metrics   []metric
}

// A metric is one kind of value of an object.
type metric struct {
	physio   uint16
	compound bool
	term     term
	instance uint8
	unitID   uint16 // the unit that came last, and what it is
	unit     mdc.Code
	unitOK   bool

	// What was measured last, of values that are not measured all the time.
	seen    bool
	last    numericValue
	stamp   stamp
	time    time.Time
	shown   time.Time
	present bool // the last result had a value
}

// What a table holds at most: far more than the objects of any monitor.
const (
	maxObjects   = 1024
	maxMetrics   = 32
	maxWaveKinds = 32
)

// object finds an object, or begins to know it.
func (m *machine) object(key uint32, class uint16) *object {
	o, ok := m.objects[key]
	switch {
	case ok && o.class == class:
		return o
	case ok:
		*o = object{class: class}
	case len(m.objects) < maxObjects:
		o = &object{class: class}
		m.objects[key] = o
	default:
		m.note("the monitor has more objects than it says: what some of them are is not kept")
		m.spare = object{class: class}
		o = &m.spare
	}
	return o
}

// learn takes what the attributes say of what the values mean.
func (o *object) learn(a attributes) {
	var w waveStatics
	for {
		id, value, ok := a.next()
		if !ok {
			break
		}
		if id == attrMetricSpec {
			if s, ok := parseMetricSpec(value); ok {
				o.spec, o.described = s, true
				w.compound = s.structure == structureCompound
			}
		}
		if o.class == classWave {
			w.learn(id, value)
		}
	}
	if w.complete() {
		o.addWave(w)
	}
}

// metric finds a kind of value, or begins to know it.
func (m *machine) metric(o *object, physio uint16, compound bool) *metric {
	for i := range o.metrics {
		if k := &o.metrics[i]; k.physio == physio && k.compound == compound {
			return k
		}
	}
	k := metric{physio: physio, compound: compound, term: metricTerm(physio)}
	if len(o.metrics) == maxMetrics {
		o.metrics = o.metrics[:maxMetrics-1]
	}
	k.instance = m.counts[k.term]
	if len(m.counts) < 2*maxObjects && k.instance < 255 {
		m.counts[k.term]++
	}
	o.metrics = append(o.metrics, k)
	return &o.metrics[len(o.metrics)-1]
}

// The operating modes in which values are no patient's.
const (
	modeDemo    = 0x2000
	modeService = 0x1000
)

func (m *machine) demo() bool { return m.mode&modeDemo != 0 }

// status is that of a value, with what the monitor says of itself.
func (m *machine) status(state uint16) observation.Status {
	s := statusOf(state)
	if m.demo() {
		s |= observation.Demo
	}
	if m.mode&modeService != 0 {
		s |= observation.Test
	}
	return s
}

// observe appends an observation.
func (m *machine) observe(k *metric, status observation.Status, at, shown time.Time) *observation.Observation {
	m.out.list = append(m.out.list, observation.Observation{
		Code: k.term.code, Private: k.term.private, Instance: k.instance, Status: status, Time: at, DeviceTime: shown,
	})
	return &m.out.list[len(m.out.list)-1]
}

// unit is the code of a unit; not ok where the nomenclature lacks it.
func (m *machine) unit(id uint16) (code mdc.Code, ok bool) {
	if code, ok = unitCode(id); !ok {
		m.noteUnit(id)
	}
	return code, ok
}
