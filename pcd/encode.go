package pcd

import (
	"bytes"
	"strconv"
	"time"

	"github.com/bedside-gateway/gatewayd/hl7"
	"github.com/bedside-gateway/gatewayd/mdc"
	"github.com/bedside-gateway/gatewayd/observation"
)

// Terms of the rows that a device has of itself (TF B.8.7 to B.8.9), and of
// the facets of a waveform.
const (
	attrModel      = 67880
	attrProduction = 67885
	attrTimeAbs    = 67975
	syncProtocol   = 68220
	syncNone       = 532224
	waveContinuous = 69121
	attrSampleRate = 68320
	attrSamples    = 68321
	attrDataRange  = 68323
	attrPhysRange  = 68328
	unitHertz      = 264640
)

// Metric numbers of these rows, 1.0.0.n.
const (
	rowSync       = 2
	rowClock      = 4
	rowModel      = 5
	rowProduction = 6
)

// A writer appends OBX segments and numbers them.
type writer struct {
	s    *Snapshot
	b    *batch
	dst  []byte
	rows int // OBX-1
	sets int // OBR-1
}

func (s *Snapshot) appendMessage(dst []byte, b *batch) []byte {
	dst = append(dst, s.head.before...)
	dst = s.appendTime(dst, b.made)
	dst = append(dst, "||ORU^R01^ORU_R01|"...)
	dst = append(dst, b.id...)
	dst = append(dst, s.head.after...)
	dst = s.appendPatient(dst, b.patient, b.device.said.BedLabel)
	w := writer{s: s, b: b, dst: dst}
	if b.class == Waveform {
		w.strips()
	} else {
		w.values()
	}
	return w.dst
}

func (s *Snapshot) appendTime(dst []byte, t time.Time) []byte {
	return hl7.AppendTime(dst, t.In(s.o.Zone))
}

// values writes one OBR with the tree of the device.
func (w *writer) values() {
	w.obr(w.b.id, w.b.device.mds, w.b.from, w.b.to)
	w.system(true)
	var at place
	for i := range w.b.slots {
		v := &w.b.slots[i]
		if !v.fresh {
			continue
		}
		w.parents(at, v.place)
		w.value(v)
		at = v.place
	}
}

// obr opens a group. Its filler number, OBR-3, is the control ID of the
// message, or of its own for the further groups of a message.
func (w *writer) obr(id []byte, what *mdc.Term, from, to time.Time) {
	w.sets++
	w.dst = strconv.AppendInt(append(w.dst, "OBR|"...), int64(w.sets), 10)
	w.dst = append(append(w.dst, "||"...), id...)
	w.dst = hl7.AppendEscaped(append(w.dst, '^'), w.s.o.Sender.Application)
	w.dst = append(w.s.o.Sender.EUI64.Append(append(w.dst, '^')), "^EUI-64|"...)
	w.dst = appendTerm(w.dst, what)
	w.dst = w.s.appendTime(append(w.dst, "|||"...), from)
	if !to.IsZero() {
		w.dst = w.s.appendTime(append(w.dst, '|'), to)
	}
	w.dst = append(w.dst, '\r')
}

// system writes the device's own rows: the MDS with its identity, how its clock
// stands, and what it is.
func (w *writer) system(all bool) {
	d := w.b.device
	if all && w.s.o.TimeSync != 0 {
		w.ownTerm(mdcTerm(syncProtocol), "0.0.0.1", mdcTerm(w.s.o.TimeSync))
	}
	w.deviceRow(d.mds, place{})
	w.dst = d.id.Append(append(w.dst, "|||||||"...))
	w.dst = d.id.Append(append(w.dst, "^^"...))
	w.dst = append(w.dst, "^EUI-64\r"...)
	if !all {
		return
	}
	// Nothing tells how the device's clock is kept: it counts as not synchronised.
	w.ownTerm(mdcTerm(syncProtocol), "1.0.0.2", mdcTerm(syncNone))
	w.clock()
	w.quoted(attrModel, rowModel, `manufacturer="`, d.said.Manufacturer, `model="`, d.said.Model)
	w.quoted(attrProduction, rowProduction, `serial-number="`, d.said.Serial, `sw-revision="`, d.said.Software)
}

func mdcTerm(c mdc.Code) *mdc.Term {
	t, _ := mdc.Lookup(c)
	return t
}

// ownTerm writes a row of the device or the gateway whose value is a term.
func (w *writer) ownTerm(what *mdc.Term, at string, value *mdc.Term) {
	w.begin("CWE")
	w.dst = append(appendTerm(w.dst, what), '|')
	w.dst = append(append(w.dst, at...), '|')
	w.dst = append(appendTerm(w.dst, value), "||||||R\r"...)
}

// clock writes the pair of clocks: what the device's showed, and ours then.
func (w *writer) clock() {
	if w.b.clock.IsZero() {
		return
	}
	w.begin("DTM")
	w.dst = append(appendTerm(w.dst, mdcTerm(attrTimeAbs)), '|')
	w.dst = append(appendPlace(w.dst, place{metric: rowClock}), '|')
	w.dst = hl7.AppendTime(w.dst, inZone(w.b.clock, w.s.o.DeviceZone))
	w.dst = w.s.appendTime(append(w.dst, "||||||R|||"...), w.b.clockAt)
	w.dst = append(w.dst, '\r')
}

// quoted writes a text of named parts, those that are there, in the form of the
// TF's examples (M.1.2.2): model="X".
func (w *writer) quoted(what mdc.Code, row uint64, names ...string) {
	start, any := len(w.dst), false
	rows := w.rows
	w.begin("ST")
	w.dst = append(appendTerm(w.dst, mdcTerm(what)), '|')
	w.dst = append(appendPlace(w.dst, place{metric: row}), '|')
	for i := 0; i < len(names); i += 2 {
		if names[i+1] == "" {
			continue
		}
		if any {
			w.dst = append(w.dst, ' ')
		}
		any = true
		w.dst = append(w.dst, names[i]...)
		from := len(w.dst)
		w.dst = hl7.AppendEscaped(w.dst, names[i+1])
		for j := from; j < len(w.dst); j++ {
			if w.dst[j] == '"' {
				w.dst[j] = '\''
			}
		}
		w.dst = append(w.dst, '"')
	}
	if !any {
		w.dst, w.rows = w.dst[:start], rows
		return
	}
	w.dst = append(w.dst, "||||||R\r"...)
}

// parents writes the rows of the VMD and the channel of the next value, where
// they are not those of the last one.
func (w *writer) parents(last, next place) {
	if next.vmd != last.vmd && next.vmd != 0 {
		w.deviceRow(next.vmdTerm, place{vmd: next.vmd})
		w.dst = append(w.dst, '\r')
	}
	if (next.vmd != last.vmd || next.channel != last.channel) && next.channel != 0 {
		w.deviceRow(next.chanTerm, place{vmd: next.vmd, channel: next.channel})
		w.dst = append(w.dst, '\r')
	}
}

// deviceRow writes a row that has no value, up to OBX-11.
func (w *writer) deviceRow(t *mdc.Term, at place) {
	w.begin("")
	w.dst = append(appendTerm(w.dst, t), '|')
	w.dst = append(appendPlace(w.dst, at), "|||||||X"...)
}

func (w *writer) begin(kind string) {
	w.rows++
	w.dst = strconv.AppendInt(append(w.dst, "OBX|"...), int64(w.rows), 10)
	w.dst = append(append(append(w.dst, '|'), kind...), '|')
}

// value writes the row of one value.
func (w *writer) value(v *slot) {
	w.begin(v.dataType())
	w.dst = append(v.appendWhat(w.dst), '|')
	w.dst = append(appendPlace(w.dst, v.place), '|')
	start := len(w.dst)
	if v.status.Usable() {
		w.dst = v.appendValue(w.dst)
	}
	present := len(w.dst) > start
	w.dst = append(w.dst, '|')
	if v.unit != nil && v.dataType() == "NM" {
		w.dst = appendUnit(w.dst, v.unit)
	}
	w.dst = appendLimits(append(w.dst, '|'), v.limits)
	var result byte
	w.dst, result = appendFlags(append(w.dst, '|'), v.status, present)
	w.dst = append(w.dst, '|', '|', '|', result, '|', '|', '|')
	if v.own || w.apart(v.time) {
		w.dst = w.s.appendTime(w.dst, v.time)
	}
	w.dst = append(append(w.dst, "|||"...), methods[v.method]...)
	w.dst = append(w.dst, "|||"...)
	if v.site != nil {
		w.dst = appendTerm(w.dst, v.site)
	}
	w.dst = append(trimFields(w.dst), '\r')
}

// apart reports whether a time must be told, since the interval does not.
func (w *writer) apart(t time.Time) bool {
	if w.b.to.IsZero() {
		return !t.Truncate(time.Millisecond).Equal(w.b.from.Truncate(time.Millisecond))
	}
	return t.Before(w.b.from) || !t.Before(w.b.to)
}

// methods are the texts of OBX-17 (TF B.8). A measurement is the default.
var methods = [...]string{
	observation.MethodMeasured:    "",
	observation.MethodManual:      "MMEAS^manual-measurement^MDC",
	observation.MethodCalculated:  "ACALC^auto-calculation^MDC",
	observation.MethodSetting:     "MSET^manual-setting^MDC",
	observation.MethodAutoSetting: "ASET^auto-setting^MDC",
}

// dataType is OBX-2. It stays where the value is missing.
func (v *slot) dataType() string {
	switch {
	case v.kind == observation.KindNumber:
		return "NM"
	case v.kind == observation.KindCode && v.value != nil:
		return "CWE"
	case v.kind == observation.KindNone && v.unit != nil:
		return "NM"
	}
	return "ST"
}

func (v *slot) appendValue(dst []byte) []byte {
	switch {
	case v.kind == observation.KindNumber:
		return v.number.Append(dst)
	case v.kind == observation.KindCode && v.value != nil:
		dst = appendTerm(dst, v.value)
		if text := plain(v.text); len(text) > 0 {
			dst = append(dst, "^^^^^^"...)
			dst = hl7.AppendEscapedBytes(dst, text)
		}
		return dst
	case v.kind == observation.KindNone:
		return dst
	}
	return hl7.AppendEscapedBytes(dst, plain(v.text))
}

// plain is a device's text without the blanks around it, and without HL7's
// word for "delete".
func plain(text []byte) []byte {
	text = bytes.TrimSpace(text)
	if string(text) == `""` {
		return nil
	}
	return text
}

// appendFlags appends OBX-8 (HL7 table 0078 as the TF extends it, B.8.5) and
// gives OBX-11.
func appendFlags(dst []byte, status observation.Status, present bool) ([]byte, byte) {
	start := len(dst)
	flag := func(s string) {
		if len(dst) > start {
			dst = append(dst, '~')
		}
		dst = append(dst, s...)
	}
	result := byte('R')
	switch {
	case status&observation.Invalid != 0:
		flag("INV")
		result = 'X'
	case status&observation.NotAvailable != 0:
		flag("NAV")
		result = 'X'
	case status&observation.Calibrating != 0:
		flag("CAL")
	case !present && status&observation.Ongoing != 0:
		flag("BUSY")
		result = 'X'
	case !present:
		flag("NAV")
		result = 'X'
	case status&(observation.Validated|observation.Questionable) == observation.Validated:
		result = 'F'
	}
	for _, q := range [...]struct {
		is   observation.Status
		text string
	}{
		{observation.Questionable, "QUES"}, {observation.Early, "EARLY"}, {observation.Test, "TEST"}, {observation.Demo, "DEMO"},
		{observation.AlarmActive, "ALACT"}, {observation.AlarmInhibit, "ALINH"},
	} {
		if status&q.is != 0 && (present || q.is&(observation.Questionable|observation.Early) == 0) {
			flag(q.text)
		}
	}
	return dst, result
}

// appendLimits appends OBX-7: lo-hi, >lo or <hi.
func appendLimits(dst []byte, l observation.Limits) []byte {
	switch low, high := l.Low.Valid(), l.High.Valid(); {
	case low && high:
		return l.High.Append(append(l.Low.Append(dst), '-'))
	case low:
		return l.Low.Append(append(dst, '>'))
	case high:
		return l.High.Append(append(dst, '<'))
	}
	return dst
}

// appendWhat appends OBX-3.
func (v *slot) appendWhat(dst []byte) []byte {
	if v.term != nil {
		return appendTerm(dst, v.term)
	}
	dst = append(append(dst, "0^"...), v.ref...)
	dst = append(dst, "^MDC^"...)
	dst = strconv.AppendUint(dst, uint64(v.key.private), 10)
	dst = append(append(dst, '^'), v.name...)
	return append(dst, "^L"...)
}

// setPrivate makes the names of a value that has no term: code 0 and a
// reference identifier MDCX_… under MDC, which say "not assigned yet", and the
// vendor's own number as the alternate.
func (v *slot) setPrivate(p observation.Private) {
	v.ref = append(v.ref[:0], "MDCX_"...)
	v.ref = append(appendName64(v.ref, p.Vendor), '_')
	v.name = v.name[:0]
	if p.Name != "" {
		v.name = appendName64(v.name, p.Name)
	} else {
		v.name = strconv.AppendUint(v.name, uint64(p.Code), 10)
	}
	v.ref = append(v.ref, v.name...)
}

// appendName64 appends at most 64 characters of a name in the alphabet of
// reference identifiers.
func appendName64(dst []byte, name string) []byte {
	for i := range min(len(name), 64) {
		c := name[i]
		switch {
		case c >= 'a' && c <= 'z':
			c &^= 0x20
		case c >= 'A' && c <= 'Z' || c >= '0' && c <= '9':
		default:
			c = '_'
		}
		dst = append(dst, c)
	}
	return dst
}

// appendTerm appends a term as code^REFID^MDC. The alphabet of reference
// identifiers has no separator.
func appendTerm(dst []byte, t *mdc.Term) []byte {
	dst = strconv.AppendUint(dst, uint64(t.Code), 10)
	dst = append(append(dst, '^'), t.RefID...)
	return append(dst, "^MDC"...)
}

// appendUnit appends OBX-6: the unit in MDC, then in UCUM where it has a code there.
func appendUnit(dst []byte, u *mdc.Unit) []byte {
	dst = strconv.AppendUint(dst, uint64(u.Code), 10)
	dst = append(append(dst, '^'), u.RefID...)
	dst = append(dst, "^MDC"...)
	if u.UCUM == "" {
		return dst
	}
	dst = hl7.AppendEscaped(append(dst, '^'), u.UCUM)
	dst = hl7.AppendEscaped(append(dst, '^'), u.UCUM)
	return append(dst, "^UCUM"...)
}

func appendPlace(dst []byte, p place) []byte {
	dst = append(dst, "1."...)
	dst = strconv.AppendUint(dst, uint64(p.vmd), 10)
	dst = strconv.AppendUint(append(dst, '.'), uint64(p.channel), 10)
	return strconv.AppendUint(append(dst, '.'), p.metric, 10)
}
