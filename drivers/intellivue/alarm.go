package intellivue

import "github.com/bedside-gateway/gatewayd/observation"

// alarmState is the two lists of alarms as they were last told.
type alarmState struct {
	known              bool
	patient, technical []observation.Alert
}

// maxAlarms bounds a list.
const maxAlarms = 256

// alarmResult takes the lists of alarms. Each list that comes is complete: what
// is missing from it has ended.
func (m *machine) alarmResult() {
	p, t := m.alarms.patient[:0], m.alarms.technical[:0]
	hasPatient, hasTechnical := false, false
	m.eachObject(func(_ uint32, a attributes) {
		for {
			id, value, ok := a.next()
			if !ok {
				return
			}
			switch id {
			case attrPatientAlarms:
				p, hasPatient = m.alarmList(p, value, false), true
			case attrTechnicalAlarms:
				t, hasTechnical = m.alarmList(t, value, true), true
			}
		}
	})
	if hasPatient {
		m.alarms.patient = p
	}
	if hasTechnical {
		m.alarms.technical = t
	}
	m.alarms.known = m.alarms.known || hasPatient || hasTechnical
	m.out.alerts = append(append(m.out.alerts, m.alarms.patient...), m.alarms.technical...)
	m.out.HasAlerts = m.alarms.known
}

func (m *machine) alarmList(list []observation.Alert, value []byte, technical bool) []observation.Alert {
	l, ok := parseAlarms(value)
	if !ok {
		m.note("the monitor sends lists of alarms that cannot be read")
		return list
	}
	for len(list) < maxAlarms {
		a, ok := l.nextAlarm()
		if !ok {
			break
		}
		if alert, ok := m.alert(&a, technical); ok {
			list = append(list, alert)
		}
	}
	return list
}

// alert is the model's form of an alarm; not ok where the entry says that there
// is none.
func (m *machine) alert(a *alarm, technical bool) (observation.Alert, bool) {
	priority := alarmPriority(a.kind)
	if priority == observation.PriorityNone {
		return observation.Alert{}, false
	}
	event := eventTerm(eventOf(a.code))
	alert := observation.Alert{
		Code: event.code, Private: event.private,
		Source:   sourceCode(a.source, a.code&1 != 0),
		Priority: priority, Technical: technical,
		Silenced:  a.state&alarmSilenced != 0,
		Latched:   a.state&alarmLatched != 0,
		Inhibited: a.state&(alarmInhibited|alarmSuspended) != 0,
		Status:    m.status(0),
	}
	if a.state&alarmTest != 0 {
		alert.Status |= observation.Test
	}
	if a.state&alarmDemo != 0 {
		alert.Status |= observation.Demo
	}
	if info, ok := a.parseInfo(); ok {
		alert.Instance = info.instance
		alert.Text, _ = parseText(info.words)
	}
	return alert, true
}

// eventOf is the code of the event. The last bit of an alarm code tells the
// partition of the source (set: object oriented, else metric); but the maker has
// some odd codes of its own.
func eventOf(code uint16) uint16 {
	if _, ok := findName(eventNames[:], code); ok {
		return code
	}
	return code &^ 1
}

func alarmPriority(kind uint16) observation.Priority {
	switch {
	case kind&(alarmPatientHigh|alarmTechnicalHigh) != 0:
		return observation.PriorityHigh
	case kind&(alarmPatientMedium|alarmTechnicalMedium) != 0:
		return observation.PriorityMedium
	case kind&(alarmPatientLow|alarmTechnicalLow) != 0:
		return observation.PriorityLow
	}
	return observation.PriorityNone
}
