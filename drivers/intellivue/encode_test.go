package intellivue

import (
	"bytes"
	"errors"
	"fmt"
	"testing"
)

// reencode decodes a message into its structures, down to the fields of every
// attribute that the driver reads, and encodes it from them. attributes counts
// by number how often each attribute was decoded; the rest keeps its bytes.
func reencode(p []byte, seen map[uint16]int) ([]byte, error) {
	if len(p) > 0 && isSession(p[0]) {
		s, err := parseSPDU(p)
		if err != nil {
			return nil, err
		}
		if f, ok := s.info.pollProfile(); ok {
			value, _ := s.info.profiles.find(profilePoll)
			if got := f.append(nil); !bytes.Equal(got, value) {
				return nil, fmt.Errorf("poll profile %x became %x", value, got)
			}
		}
		return s.append(nil), nil
	}
	if c, ok := parseIndication(p); ok {
		return c.append(nil), nil
	}
	d, err := parsePDU(p)
	if err != nil {
		return nil, err
	}
	body, err := bodyOf(&d, seen)
	if err != nil {
		return nil, err
	}
	return d.append(nil, func(b []byte) []byte { return append(b, body...) }), nil
}

var errBody = errors.New("a body that is not understood")

func bodyOf(d *pdu, seen map[uint16]int) ([]byte, error) {
	switch {
	case d.kind == roError:
		e, ok := parseListError(d.command, d.body)
		if !ok {
			return d.body, nil // errors of other kinds have no known body
		}
		b := appendU16(e.object.append(nil), uint16(e.list.count))
		b, at := open(b)
		return shut(append(b, e.list.b...), at), nil
	case d.command == cmdConfirmedEvent || d.command == cmdEvent:
		return eventBody(d, seen)
	case d.command == cmdConfirmedAction:
		return actionBody(d, seen)
	case d.kind == roInvoke && d.command == cmdGet:
		g, ok := parseGet(d.body)
		if !ok {
			return nil, errBody
		}
		return g.append(nil), nil
	case d.kind == roInvoke && (d.command == cmdSet || d.command == cmdConfirmedSet):
		s, ok := parseSet(d.body)
		if !ok {
			return nil, errBody
		}
		return s.append(nil), nil
	case d.command == cmdGet || d.command == cmdConfirmedSet:
		r, ok := parseAttributeResult(d.body)
		if !ok {
			return nil, errBody
		}
		r.list = deep(r.list, seen)
		return r.append(nil), nil
	}
	return nil, errBody
}

func eventBody(d *pdu, seen map[uint16]int) ([]byte, error) {
	e, ok := parseEvent(d.body)
	if !ok {
		return nil, errBody
	}
	if d.kind == roResult && len(e.info) == 0 {
		return e.append(nil, func(b []byte) []byte { return b }), nil
	}
	o, list, ok := e.mdsCreate()
	if !ok {
		return nil, errBody
	}
	list = deep(list, seen)
	return e.append(nil, func(b []byte) []byte { return list.append(o.append(b)) }), nil
}

func actionBody(d *pdu, seen map[uint16]int) ([]byte, error) {
	request := d.kind == roInvoke
	a, ok := parseAction(d.body, request)
	if !ok {
		return nil, errBody
	}
	ext := a.kind == actionPollExt
	if request {
		p, ok := parsePollRequest(a.info, ext)
		if !ok {
			return nil, errBody
		}
		return a.append(nil, true, func(b []byte) []byte { return p.append(b, ext) }), nil
	}
	p, ok := parsePollResult(a.info, ext)
	if !ok {
		return nil, errBody
	}
	p.contexts = deepContexts(p.contexts, seen)
	return a.append(nil, false, func(b []byte) []byte { return p.append(b, ext) }), nil
}

func deepContexts(c contexts, seen map[uint16]int) contexts {
	var b []byte
	for in := c; ; {
		id, o, ok := in.next()
		if !ok {
			return contexts{list{c.count, b}}
		}
		b = deepObjects(o, seen).append(appendU16(b, id))
	}
}

func deepObjects(o objects, seen map[uint16]int) objects {
	var b []byte
	for in := o; ; {
		handle, a, ok := in.next()
		if !ok {
			return objects{list{o.count, b}}
		}
		b = deep(a, seen).append(appendU16(b, handle))
	}
}

// deep decodes and encodes each attribute by itself.
func deep(a attributes, seen map[uint16]int) attributes {
	var b []byte
	for in := a; ; {
		id, value, ok := in.next()
		if !ok {
			return attributes{a.count, b}
		}
		encoded, ok := reencodeValue(id, value)
		if !ok {
			encoded = value
		} else if seen != nil {
			seen[id]++
		}
		b = appendAttribute(b, id, encoded)
	}
}

// reencodeValue goes through the structure of an attribute.
func reencodeValue(id uint16, value []byte) ([]byte, bool) {
	switch id {
	case attrNumeric:
		v, ok := parseNumeric(value)
		return v.append(nil), ok
	case attrCompoundNumeric:
		l, ok := parseCompoundNumeric(value)
		b, at := open(appendU16(nil, uint16(l.count)))
		for i := 0; ok && i < l.count; i++ {
			v, _ := parseNumeric(l.at(i, numericSize))
			b = v.append(b)
		}
		return shut(b, at), ok
	case attrWave:
		v, ok := parseWave(value)
		return v.append(nil), ok
	case attrCompoundWave:
		l, ok := parseCompoundWave(value)
		b, at := open(appendU16(nil, uint16(l.count)))
		for ok {
			w, more := l.nextWave()
			if !more {
				break
			}
			b = w.append(b)
		}
		return shut(b, at), ok
	case attrEnumeration:
		v, ok := parseEnumeration(value)
		return v.append(nil), ok
	case attrWaveSpec:
		v, ok := parseWaveSpec(value)
		return v.append(nil), ok
	case attrScale:
		v, ok := parseWaveScale(value)
		return v.append(nil), ok
	case attrMetricSpec:
		v, ok := parseMetricSpec(value)
		return v.append(nil), ok
	case attrFixedValues:
		l, ok := parseFixedValues(value)
		b, at := open(appendU16(nil, uint16(l.count)))
		return shut(append(b, l.b...), at), ok
	case attrPatientAlarms, attrTechnicalAlarms:
		l, ok := parseAlarms(value)
		b, at := open(appendU16(nil, uint16(l.count)))
		for ok {
			a, more := l.nextAlarm()
			if !more {
				break
			}
			b = a.append(b)
		}
		return shut(b, at), ok
	case attrWaveList, attrNumericList:
		l, ok := parseTextIDs(value)
		ids := make([]uint32, 0, len(l.b)/4)
		for i := 0; ok && i < l.count; i++ {
			ids = append(ids, l.textID(i))
		}
		return appendTextIDs(nil, ids), ok
	case attrHeight, attrWeight:
		v, ok := parseMeasure(value)
		return appendU16(appendU32(nil, uint32(v.value)), v.unit), ok
	case attrLabel, attrSamplePeriod, attrTimeRel, attrStampRel, attrSystemType:
		v, ok := parseU32(value)
		return appendU32(nil, v), ok
	case attrUnit, attrOperatingMode, attrPatientState, attrPatientType, attrSex, attrAssociation:
		v, ok := parseU16(value)
		return appendU16(nil, v), ok
	}
	return nil, false
}

func TestTheRecordedSessionDecodesWithoutRestAndEncodesToTheSameBytes(t *testing.T) {
	seen := map[uint16]int{}
	data, fromMonitor := 0, 0
	for _, c := range recordedSession(t) {
		got, err := reencode(c.data, seen)
		if err != nil {
			t.Errorf("frame %d: %v", c.frame, err)
			continue
		}
		if !bytes.Equal(got, c.data) {
			t.Errorf("frame %d: encoded\n%x, was\n%x", c.frame, got, c.data)
		}
		if c.data[0] == 0xE1 {
			data++
			if c.monitor {
				fromMonitor++
			}
		}
	}
	if data != 163 || fromMonitor != 132 {
		t.Errorf("%d data messages, %d of them from the monitor, want 163 and 132", data, fromMonitor)
	}
	for id, least := range map[uint16]int{
		attrNumeric: 126, attrCompoundNumeric: 36, attrWave: 149, attrCompoundWave: 27, attrWaveSpec: 19, attrScale: 19,
		attrMetricSpec: 81, attrLabel: 78, attrUnit: 19, attrPatientAlarms: 15, attrTechnicalAlarms: 15, attrFixedValues: 15, attrHeight: 5,
	} {
		if seen[id] != least {
			t.Errorf("attribute %04X went through its structure %d times, want %d", id, seen[id], least)
		}
	}
}

func TestRequestsOfAClientInTheFieldKeepTheirBytes(t *testing.T) {
	// These two were sent by that client with lengths that do not fit: a monitor ignores them.
	wrong := map[string]bool{"poll_request_msg4": true, "ext_poll_request_msg2": true}
	for name, data := range fieldRequests(t, "requests-vscapturemp.txt") {
		got, err := reencode(data, nil)
		switch {
		case wrong[name]:
			if err == nil {
				t.Errorf("%s: wrong lengths were accepted", name)
			}
		case err != nil:
			t.Errorf("%s: %v", name, err)
		case !bytes.Equal(got, data):
			t.Errorf("%s: encoded\n%x, was\n%x", name, got, data)
		}
	}
}
