package intellivue

import (
	"unicode/utf16"

	"github.com/bedside-gateway/gatewayd/observation"
)

// The attributes that the driver reads.
const (
	attrPatientAlarms   = 0x0902
	attrTechnicalAlarms = 0x0904
	attrBedLabel        = 0x091E
	attrAssociation     = 0x091D
	attrLabel           = 0x0924
	attrLabelText       = 0x0927
	attrModel           = 0x0928
	attrProduction      = 0x092D
	attrMetricSpec      = 0x093F
	attrOperatingMode   = 0x0946
	attrCompoundNumeric = 0x094B
	attrNumeric         = 0x0950
	attrPatientState    = 0x0957
	attrBirth           = 0x0958
	attrPatientID       = 0x095A
	attrFamilyName      = 0x095C
	attrGivenName       = 0x095D
	attrMiddleName      = 0x095F
	attrSex             = 0x0961
	attrPatientType     = 0x0962
	attrCompoundWave    = 0x0967
	attrWaveSpec        = 0x096D
	attrWave            = 0x096E
	attrScale           = 0x096F
	attrSystemID        = 0x0984
	attrSystemType      = 0x0986
	attrTimeAbs         = 0x0987
	attrSamplePeriod    = 0x098D
	attrTimeRel         = 0x098F
	attrStampAbs        = 0x0990
	attrStampRel        = 0x0991
	attrUnit            = 0x0996
	attrEnumeration     = 0x099E
	attrHeight          = 0x09DC
	attrWeight          = 0x09DF
	attrFixedValues     = 0x0A16
	attrNumericList     = 0xF239
	attrWaveList        = 0xF23A
)

// MeasurementState, the state of a value.
const (
	stateInvalid      = 0x8000
	stateQuestionable = 0x4000
	stateUnavailable  = 0x2000
	stateCalibrating  = 0x1000
	stateTest         = 0x0800
	stateDemo         = 0x0400
	stateValidated    = 0x0080
	stateEarly        = 0x0040
	stateOngoing      = 0x0020
	stateInAlarm      = 0x0002
	stateAlarmOff     = 0x0001
)

// statusOf is the model's form of a MeasurementState.
func statusOf(state uint16) (s observation.Status) {
	for _, f := range [...]struct {
		bit  uint16
		flag observation.Status
	}{
		{stateInvalid, observation.Invalid}, {stateQuestionable, observation.Questionable},
		{stateUnavailable, observation.NotAvailable}, {stateCalibrating, observation.Calibrating},
		{stateTest, observation.Test}, {stateDemo, observation.Demo},
		{stateValidated, observation.Validated}, {stateEarly, observation.Early}, {stateOngoing, observation.Ongoing},
		{stateInAlarm, observation.AlarmActive}, {stateAlarmOff, observation.AlarmInhibit},
	} {
		if state&f.bit != 0 {
			s |= f.flag
		}
	}
	return s
}

// A float is a FLOAT of ISO/IEEE 11073: exponent of 8 bits, mantissa of 24, both
// signed, to the base of ten.
type float uint32

// The mantissas that are no numbers, whatever the exponent.
const (
	mantissaNaN         = 0x7FFFFF
	mantissaNotAtRes    = 0x800000
	mantissaReserved    = 0x800001
	mantissaNegInfinity = 0x800002
	mantissaPosInfinity = 0x7FFFFE
)

// decimal is the number with its digits, and not valid where it is none.
func (f float) decimal() observation.Decimal {
	switch m := uint32(f) & 0xFFFFFF; m {
	case mantissaNaN, mantissaNotAtRes, mantissaReserved, mantissaNegInfinity, mantissaPosInfinity:
		return observation.Decimal{}
	default:
		return observation.NewDecimal(int32(m<<8)>>8, int8(f>>24))
	}
}

// status says why there is no number: none is there, or none that fits.
func (f float) status() observation.Status {
	switch uint32(f) & 0xFFFFFF {
	case mantissaNaN:
		return observation.NotAvailable
	case mantissaNotAtRes, mantissaReserved, mantissaNegInfinity, mantissaPosInfinity:
		return observation.Invalid
	}
	return 0
}

// A numericValue is NuObsValue.
type numericValue struct {
	physio, state, unit uint16
	value               float
}

const numericSize = 10

func parseNumeric(value []byte) (n numericValue, ok bool) {
	r := reader{b: value}
	n.physio, n.state, n.unit, n.value = r.u16(), r.u16(), r.u16(), float(r.u32())
	return n, r.done()
}

func (n *numericValue) append(b []byte) []byte {
	return appendU32(appendU16(appendU16(appendU16(b, n.physio), n.state), n.unit), uint32(n.value))
}

// parseCompoundNumeric reads a list of values of numericSize bytes.
func parseCompoundNumeric(value []byte) (list, bool) {
	r := reader{b: value}
	l := r.list()
	return l, r.done() && l.fixed(numericSize)
}

// An enumerationValue is EnumObsVal: a code, or a code with a number.
type enumerationValue struct {
	physio, state uint16
	choice        uint16
	code          uint16
	number        float
	unit          uint16
}

const (
	choiceCode       = 1
	choiceCodeNumber = 4
)

func parseEnumeration(value []byte) (e enumerationValue, ok bool) {
	r := reader{b: value}
	e.physio, e.state, e.choice = r.u16(), r.u16(), r.u16()
	in := reader{b: r.sized()}
	e.code = in.u16()
	if e.choice == choiceCodeNumber {
		e.number, e.unit = float(in.u32()), in.u16()
	}
	return e, r.done() && in.done() && (e.choice == choiceCode || e.choice == choiceCodeNumber)
}

func (e *enumerationValue) append(b []byte) []byte {
	b, at := open(appendU16(appendU16(appendU16(b, e.physio), e.state), e.choice))
	b = appendU16(b, e.code)
	if e.choice == choiceCodeNumber {
		b = appendU16(appendU32(b, uint32(e.number)), e.unit)
	}
	return shut(b, at)
}

// A waveValue is SaObsValue: a block of samples.
type waveValue struct {
	physio, state uint16
	samples       []byte
}

func readWave(r *reader) waveValue { return waveValue{r.u16(), r.u16(), r.sized()} }

func parseWave(value []byte) (w waveValue, ok bool) {
	r := reader{b: value}
	w = readWave(&r)
	return w, r.done()
}

func (w *waveValue) append(b []byte) []byte {
	b, at := open(appendU16(appendU16(b, w.physio), w.state))
	return shut(append(b, w.samples...), at)
}

// parseCompoundWave checks a list of waves; nextWave goes over it.
func parseCompoundWave(value []byte) (l list, ok bool) {
	r := reader{b: value}
	l = r.list()
	n := 0
	for in := (reader{b: l.b}); len(in.b) > 0; n++ {
		if readWave(&in); in.bad {
			return l, false
		}
	}
	return l, r.done() && n == l.count
}

func (l *list) nextWave() (waveValue, bool) {
	if len(l.b) == 0 {
		return waveValue{}, false
	}
	r := reader{b: l.b}
	w := readWave(&r)
	l.b = r.b
	return w, !r.bad
}

// A waveSpec is SaSpec.
type waveSpec struct {
	size              uint16 // samples in a block
	bits, significant uint8
	flags             uint16
}

// waveMarkers is set where the bits above the significant ones are markers.
// Without it they belong to the value: an arterial wave of 13 significant bits
// goes up to 9120.
const waveMarkers = 0x1000

func parseWaveSpec(value []byte) (s waveSpec, ok bool) {
	r := reader{b: value}
	s.size, s.bits, s.significant, s.flags = r.u16(), r.u8(), r.u8(), r.u16()
	return s, r.done() && (s.bits == 8 || s.bits == 16) && s.significant > 0 && s.significant <= s.bits
}

func (s *waveSpec) append(b []byte) []byte {
	return appendU16(append(appendU16(b, s.size), s.bits, s.significant), s.flags)
}

func (s *waveSpec) mask() uint16 {
	if s.flags&waveMarkers != 0 {
		return 1<<s.significant - 1
	}
	return 1<<s.bits - 1
}

// A waveScale is ScaleRangeSpec16.
type waveScale struct {
	lower, upper       float
	rawLower, rawUpper uint16
}

func parseWaveScale(value []byte) (s waveScale, ok bool) {
	r := reader{b: value}
	s.lower, s.upper, s.rawLower, s.rawUpper = float(r.u32()), float(r.u32()), r.u16(), r.u16()
	return s, r.done()
}

func (s *waveScale) append(b []byte) []byte {
	return appendU16(appendU16(appendU32(appendU32(b, uint32(s.lower)), uint32(s.upper)), s.rawLower), s.rawUpper)
}

// The meanings of the masks of attrFixedValues. A sample has a meaning when it
// has all bits of the mask.
const (
	fixedInvalid    = 1
	fixedPacer      = 2
	fixedDefib      = 3
	fixedSaturation = 4
)

// parseFixedValues reads a list of meaning and mask, two bytes each.
func parseFixedValues(value []byte) (list, bool) {
	r := reader{b: value}
	l := r.list()
	return l, r.done() && l.fixed(4)
}

// A metricSpec is MetricSpec.
type metricSpec struct {
	period               relativeTime
	category, access     uint16
	structure, component uint8
	relevance            uint16
}

// MetricAccess and MetricStructure.
const (
	accessEpisodic      = 0x2000 // updated when there is something new
	accessNoncontinuous = 0x1000 // measured now and then
	structureCompound   = 1
)

func parseMetricSpec(value []byte) (s metricSpec, ok bool) {
	r := reader{b: value}
	s.period, s.category, s.access = relativeTime(r.u32()), r.u16(), r.u16()
	s.structure, s.component, s.relevance = r.u8(), r.u8(), r.u16()
	return s, r.done()
}

func (s *metricSpec) append(b []byte) []byte {
	b = appendU16(appendU16(appendU32(b, uint32(s.period)), s.category), s.access)
	return appendU16(append(b, s.structure, s.component), s.relevance)
}

// method is how the values come to be (MetricCategory).
func (s *metricSpec) method() observation.Method {
	switch s.category {
	case 2:
		return observation.MethodManual
	case 3, 130:
		return observation.MethodAutoSetting
	case 4:
		return observation.MethodSetting
	case 5, 6:
		return observation.MethodCalculated
	}
	return observation.MethodMeasured
}

// maxText bounds a string in characters: more than fits on a monitor's screen.
const maxText = 256

// parseText reads a string: its length in bytes, then UTF-16, filled up with
// zeros.
func parseText(value []byte) (string, bool) {
	r := reader{b: value}
	b := r.sized()
	if !r.done() || len(b)%2 != 0 {
		return "", false
	}
	units := make([]uint16, 0, min(len(b)/2, maxText))
	for i := 0; i < len(b) && len(units) < maxText; i += 2 {
		u := uint16(b[i])<<8 | uint16(b[i+1])
		if u == 0 {
			break
		}
		units = append(units, u)
	}
	return string(utf16.Decode(units)), true
}

// parseModel reads the maker and the model, in ASCII.
func parseModel(value []byte) (maker, model string, ok bool) {
	r := reader{b: value}
	m, n := r.sized(), r.sized()
	return ascii(m), ascii(n), r.done()
}

// ascii is the printable part of an ASCII string up to its first zero.
func ascii(b []byte) string {
	p := make([]byte, 0, min(len(b), maxText))
	for _, c := range b[:min(len(b), maxText)] {
		if c == 0 {
			break
		}
		if c >= ' ' && c < 0x7F {
			p = append(p, c)
		}
	}
	for len(p) > 0 && p[len(p)-1] == ' ' {
		p = p[:len(p)-1]
	}
	return string(p)
}

// The parts of a production specification.
const (
	productionSerial   = 1
	productionSoftware = 4
)

// production reads the first entry of a kind in a production specification, a
// list of kind, component and string. The first is that of the whole device.
func production(value []byte, kind uint16) (string, bool) {
	r := reader{b: value}
	l := r.list()
	in := reader{b: l.b}
	for range l.count {
		k := in.u16()
		in.u16()
		s := in.sized()
		if in.bad {
			return "", false
		}
		if k == kind {
			return ascii(s), r.done()
		}
	}
	return "", false
}

// parseSystemID makes the EUI-64 of a system id: a length and a MAC address, or
// an EUI-64 itself.
func parseSystemID(value []byte) (observation.EUI64, bool) {
	r := reader{b: value}
	b := r.sized()
	if !r.done() {
		return 0, false
	}
	switch len(b) {
	case 6:
		if [6]byte(b) == ([6]byte{}) {
			return 0, false
		}
		return observation.MAC48([6]byte(b)), true
	case 8:
		r := reader{b: b}
		return observation.EUI64(uint64(r.u32())<<32 | uint64(r.u32())), true
	}
	return 0, false
}

func parseU16(value []byte) (uint16, bool) {
	r := reader{b: value}
	v := r.u16()
	return v, r.done()
}

func parseU32(value []byte) (uint32, bool) {
	r := reader{b: value}
	v := r.u32()
	return v, r.done()
}

// A measure is PatMeasure: a number with its unit.
type measure struct {
	value float
	unit  uint16
}

func parseMeasure(value []byte) (m measure, ok bool) {
	r := reader{b: value}
	m.value, m.unit = float(r.u32()), r.u16()
	return m, r.done()
}

// parseTextIDs reads a list of labels, as the priority lists are.
func parseTextIDs(value []byte) (list, bool) {
	r := reader{b: value}
	l := r.list()
	return l, r.done() && l.fixed(4)
}

func (l list) textID(i int) uint32 {
	r := reader{b: l.at(i, 4)}
	return r.u32()
}

func appendTextIDs(b []byte, ids []uint32) []byte {
	b, at := open(appendU16(b, uint16(len(ids))))
	for _, id := range ids {
		b = appendU32(b, id)
	}
	return shut(b, at)
}

// An alarm is DevAlarmEntry.
type alarm struct {
	source, code, kind, state uint16
	object                    objectID
	infoID                    uint16
	info                      []byte
}

// AlertType, AlertState and the kinds of information.
const (
	alarmTechnicalLow    = 0x0001
	alarmTechnicalMedium = 0x0002
	alarmTechnicalHigh   = 0x0004
	alarmPatientLow      = 0x0100
	alarmPatientMedium   = 0x0200
	alarmPatientHigh     = 0x0400

	alarmInhibited = 0x8000
	alarmSuspended = 0x4000
	alarmLatched   = 0x2000
	alarmSilenced  = 0x1000
	alarmTest      = 0x0400
	alarmDemo      = 0x0100

	alarmInfoGeneral = 513
	alarmInfoText    = 516
)

func readAlarm(r *reader) (a alarm) {
	a.source, a.code, a.kind, a.state = r.u16(), r.u16(), r.u16(), r.u16()
	a.object, a.infoID, a.info = readObjectID(r), r.u16(), r.sized()
	return a
}

func (a *alarm) append(b []byte) []byte {
	b = appendU16(appendU16(appendU16(appendU16(b, a.source), a.code), a.kind), a.state)
	b, at := open(appendU16(a.object.append(b), a.infoID))
	return shut(append(b, a.info...), at)
}

// parseAlarms checks a list of alarms; nextAlarm goes over it.
func parseAlarms(value []byte) (l list, ok bool) {
	r := reader{b: value}
	l = r.list()
	n := 0
	for in := (reader{b: l.b}); len(in.b) > 0; n++ {
		if readAlarm(&in); in.bad {
			return l, false
		}
	}
	return l, r.done() && n == l.count
}

func (l *list) nextAlarm() (alarm, bool) {
	if len(l.b) == 0 {
		return alarm{}, false
	}
	r := reader{b: l.b}
	a := readAlarm(&r)
	l.b = r.b
	return a, !r.bad
}

// alarmInfo is AlMonGenInfo, or with a text StrAlMonInfo.
type alarmInfo struct {
	instance        uint16
	text            uint32
	priority, flags uint16
	words           []byte // the string with its length
}

func (a *alarm) parseInfo() (i alarmInfo, ok bool) {
	r := reader{b: a.info}
	i.instance, i.text, i.priority, i.flags = r.u16(), r.u32(), r.u16(), r.u16()
	switch a.infoID {
	case alarmInfoGeneral:
		return i, r.done()
	case alarmInfoText:
		i.words = r.b
		r.sized()
		return i, r.done()
	}
	return i, false
}
