package intellivue

import (
	"time"

	"github.com/bedside-gateway/gatewayd/drivers"
	"github.com/bedside-gateway/gatewayd/observation"
)

// A report is what is handed to the host, with the memory that is used for it
// again and again. Nothing of the session's own state is in it but by copy.
type report struct {
	observation.Report
	device  observation.Device
	patient observation.Patient

	list    []observation.Observation
	alerts  []observation.Alert
	samples []*observation.Samples
	used    int // of samples
	values  []uint16
}

// begin empties the report.
func (r *report) begin() {
	r.list, r.alerts, r.used, r.values = r.list[:0], r.alerts[:0], 0, r.values[:0]
	r.Report = observation.Report{}
}

// block is room for a block of n samples. It is valid until begin.
func (r *report) block(n int) *observation.Samples {
	if r.used == len(r.samples) {
		r.samples = append(r.samples, new(observation.Samples))
	}
	s := r.samples[r.used]
	r.used++
	if len(r.values)+n > cap(r.values) { // blocks before keep the old memory
		r.values = make([]uint16, 0, max(2*cap(r.values), n, 4096))
	}
	start := len(r.values)
	r.values = r.values[:start+n]
	*s = observation.Samples{Values: r.values[start : start+n : start+n]}
	return s
}

// hand gives the report to the host.
func (m *machine) hand(now time.Time) {
	r := &m.out
	r.device, r.patient = m.device, m.patient.patient
	r.Device, r.Received, r.DeviceClock = &r.device, now, m.clock.deviceNow(now)
	if m.patient.known {
		r.Patient = &r.patient
	}
	r.Observations, r.Alerts = r.list, r.alerts
	if !m.live {
		m.live = true
		m.host.State(drivers.Live)
	}
	m.host.Report(&r.Report)
}

// results goes over the parts of an answer: first for what values mean, then
// for the values, so that their order does not matter.
func (m *machine) results(now time.Time) drivers.Frame {
	p := &m.parts[0]
	at := m.see(now, p.rel)
	if shown, ok := p.abs.time(); ok && p.class != classWave { // waves are older than their message
		m.clock.pair(at, shown)
	}
	m.out.begin()
	m.turn++
	switch p.class {
	case classNumeric, classEnumeration, classWave:
		m.metrics(now, at, p.class)
	case classMDS:
		m.eachObject(func(_ uint32, a attributes) { m.mds(now, at, a) })
	case classPatient:
		m.eachObject(func(_ uint32, a attributes) { m.demographics(a) })
	case classAlarms:
		m.alarmResult()
	default:
		return drivers.FrameUnexpected
	}
	m.hand(now)
	return drivers.FrameGood
}

// eachObject calls f for the objects of all parts. A context may go on in the
// next part, so an object is known by context and handle together.
func (m *machine) eachObject(f func(key uint32, a attributes)) {
	for i := range m.parts {
		for c := m.parts[i].contexts; ; {
			context, list, ok := c.next()
			if !ok {
				break
			}
			for {
				handle, a, ok := list.next()
				if !ok {
					break
				}
				f(uint32(context)<<16|uint32(handle), a)
			}
		}
	}
}

func (m *machine) metrics(now time.Time, at ticks, class uint16) {
	m.eachObject(func(key uint32, a attributes) { m.object(key, class).learn(a) })
	if class == classWave {
		m.deliverWaiting(now)
	}
	m.eachObject(func(key uint32, a attributes) {
		o := m.object(key, class)
		if !o.described && class != classWave {
			m.learn(now, class)
		}
		switch class {
		case classNumeric:
			m.numeric(now, at, o, a)
		case classEnumeration:
			m.enumeration(now, at, o, a)
		case classWave:
			m.wave(now, at, key, o, a)
		}
	})
	if class != classWave { // a wave comes in blocks, and not in each answer
		m.eachObject(func(key uint32, _ attributes) { m.absent(now, at, m.object(key, class)) })
	}
}
