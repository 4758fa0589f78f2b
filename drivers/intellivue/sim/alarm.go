package sim

import (
	"slices"
	"time"
)

// A Priority is how urgent an alarm is.
type Priority uint8

// The priorities.
const (
	Low Priority = iota
	Medium
	High
)

// An Alarm is a condition that the monitor alarms for.
type Alarm struct {
	Source    uint16 // physio id or device part that it is about
	Code      uint16 // event, such as 3076 for an asystole
	Priority  Priority
	Technical bool // of the device or a sensor (INOP), not of the patient
	Text      string
	Silenced  bool
	Latched   bool
}

// The repertoire that Options.AlarmEvery goes through.
var repertoire = []Alarm{
	{Source: 0x4182, Code: 0x0028, Priority: Medium, Text: "* HR HIGH"},
	{Source: 0x4BB8, Code: 0x0CAE, Priority: High, Text: "***DESAT"},
	{Source: 0x4BB8, Code: 0x0134, Priority: Low, Technical: true, Text: "SpO2 SENSOR OFF"},
	{Source: 0x4182, Code: 0x0112, Priority: Medium, Technical: true, Text: "!!ECG LEADS OFF"},
	{Source: 0x500A, Code: 0x0C00, Priority: High, Text: "***APNEA"},
}

// alarmList is what is present now.
type alarmList struct {
	present []presentAlarm
	next    uint16 // instance number
	changes uint16
	cycled  int // how many of the repertoire were raised
	current *Alarm
}

type presentAlarm struct {
	Alarm
	instance uint16
	fresh    bool // not yet in a result
}

// RaiseAlarm puts a into the list, or changes the one with its source and code.
func (m *Monitor) RaiseAlarm(a Alarm) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.alarms.raise(a)
}

// ClearAlarm takes the alarm with a's source and code out of the list, and
// reports whether it was there.
func (m *Monitor) ClearAlarm(a Alarm) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.alarms.clear(a)
}

// Alarms are those present now.
func (m *Monitor) Alarms() []Alarm {
	m.mu.Lock()
	defer m.mu.Unlock()
	var list []Alarm
	for _, p := range m.alarms.present {
		list = append(list, p.Alarm)
	}
	return list
}

func (l *alarmList) find(a Alarm) int {
	return slices.IndexFunc(l.present, func(p presentAlarm) bool {
		return p.Source == a.Source && p.Code == a.Code && p.Technical == a.Technical
	})
}

func (l *alarmList) raise(a Alarm) {
	l.changes++
	if i := l.find(a); i >= 0 {
		l.present[i].Alarm = a
		return
	}
	l.next++
	l.present = append(l.present, presentAlarm{a, l.next, true})
}

func (l *alarmList) clear(a Alarm) bool {
	i := l.find(a)
	if i < 0 {
		return false
	}
	l.changes++
	l.present = slices.Delete(l.present, i, i+1)
	return true
}

// concern reports whether a patient alarm is about the value with this physio id.
func (l *alarmList) concern(physio uint16) bool {
	return slices.ContainsFunc(l.present, func(p presentAlarm) bool { return !p.Technical && p.Source == physio })
}

// cycle lets alarms come and go: one at each period's end, for a third of it.
func (l *alarmList) cycle(since, every time.Duration) {
	if every <= 0 {
		return
	}
	n, phase := int(since/every), since%every
	if l.current != nil && (phase > every/3 || n != l.cycled) {
		l.clear(*l.current)
		l.current = nil
	}
	if n > l.cycled && phase <= every/3 {
		a := repertoire[(n-1)%len(repertoire)]
		l.raise(a)
		l.current = &a
	}
	l.cycled = n
}

// kind is the AlertType of an alarm: a bit for each class and urgency.
func (a *Alarm) kind() uint16 {
	bit := uint16(1) << a.Priority
	if a.Technical {
		return bit
	}
	return bit << 8
}

// Alert states.
const (
	alertLatched  = 0x2000
	alertSilenced = 0x1000
	alertDemo     = 0x0100
	alertNew      = 0x0008

	alertInfoGeneral = 513
	alertInfoString  = 516
	alertFlags       = 0x6000 // audible at the bedside and at the central station
)

func (m *Monitor) alertState(p *presentAlarm) uint16 {
	s := uint16(0)
	for _, f := range []struct {
		set bool
		bit uint16
	}{{p.Latched, alertLatched}, {p.Silenced, alertSilenced}, {m.o.Demo, alertDemo}, {p.fresh, alertNew}} {
		if f.set {
			s |= f.bit
		}
	}
	return s
}

// appendAlarm appends an alarm list entry: with its text, or without where it has none.
func (m *Monitor) appendAlarm(b []byte, p *presentAlarm) []byte {
	b = u16(u16(u16(u16(b, p.Source), p.Code), p.kind()), m.alertState(p))
	b = u16(u16(u16(b, classNumeric), 1), m.sourceHandle(p.Source))
	info := uint16(alertInfoGeneral)
	if p.Text != "" {
		info = alertInfoString
	}
	return sized(u16(b, info), func(b []byte) []byte {
		b = u16(u32(u16(b, p.instance), 0x80000000|uint32(p.Code)), uint16(p.Priority)+1)
		b = u16(b, alertFlags)
		if p.Text != "" {
			b = appendString(b, p.Text, 0)
		}
		return b
	})
}

// sourceHandle is the numeric object that has the value, 0 if none.
func (m *Monitor) sourceHandle(physio uint16) uint16 {
	for _, n := range numericObjects(m.o.ART) {
		for _, r := range n.values(m.vitals, m.cuff) {
			if r.physio == physio {
				return m.handle(n.handle)
			}
		}
	}
	return 0
}

// alarmResult is the one object of class alert monitor.
func (m *Monitor) alarmResult() []object {
	condition := uint16(0)
	if m.o.Demo {
		condition = alertDemo
	}
	var most [2]uint16
	lists := [2][]byte{}
	counts := [2]int{}
	for i := range m.alarms.present {
		p := &m.alarms.present[i]
		which := 0
		if p.Technical {
			which = 1
		}
		lists[which] = m.appendAlarm(lists[which], p)
		counts[which]++
		most[which] = max(most[which], p.kind())
		p.fresh = false
	}
	whole := func(which int) []byte {
		return counted(nil, counts[which], func(b []byte) []byte { return append(b, lists[which]...) })
	}
	handle := m.handle(0x8401)
	status := u16(u16(u16(u16(u16(nil, condition), m.alarms.changes), most[0]), most[1]), max(most[0], most[1]))
	return []object{{handle: handle, attributes: []attribute{
		attr16(groupStatic, attrHandle, handle),
		{groupStatic, attrType, u16(u16(nil, 1), classAlarms)},
		{groupAlarms, attrAlarmCondition, status},
		{groupAlarms, attrPatientAlarms, whole(0)},
		{groupAlarms, attrTechnicalAlarms, whole(1)},
	}}}
}

// Enumerations: rhythm and ectopic status.
const (
	labelRhythm   = 0x0002D007
	labelEctopic  = 0x0002D006
	rhythmSinus   = 0x4012
	ectopicPairs  = 0x4280
	enumObjectID  = 1
	enumIDLength  = 2
	enumWithValue = 4
)

// enumResult is the enumerations: the rhythm, and ectopic beats where there are any.
func (m *Monitor) enumResult() []object {
	enum := func(h uint16, label uint32, name string, value []byte) object {
		h = m.handle(h)
		spec := u32(u32(u32(nil, relativePerTick), 0x00014220), 0)
		o := object{context: 1, handle: h, attributes: []attribute{
			attr16(groupStatic, attrHandle, h),
			{groupStatic, attrType, u16(u16(nil, 1), classEnum)},
			{groupStatic, attrMetricSpec, spec},
			attr32(groupDynamic, attrLabel, label),
			{groupDynamic, attrLabelString, appendString(nil, name, 6)},
			attr16(groupDynamic, attrColour, 2),
		}}
		if value != nil {
			head := u16(u16(nil, uint16(label)), m.measurementState(uint16(label)))
			o.attributes = append(o.attributes, attribute{groupValue, attrEnum, append(head, value...)})
		}
		return o
	}
	rhythm := u16(u16(u16(nil, enumObjectID), enumIDLength), rhythmSinus)
	var ectopic []byte
	if rate := m.vitals.base.PVCsPerMin; rate > 0 {
		ectopic = sized(u16(nil, enumWithValue), func(b []byte) []byte {
			return u16(u32(u16(b, ectopicPairs), toFloat(rate, 0).bits()), unitBeats)
		})
	}
	return []object{enum(0x82A4, labelRhythm, "RytSta", rhythm), enum(0x82A6, labelEctopic, "EctSta", ectopic)}
}
