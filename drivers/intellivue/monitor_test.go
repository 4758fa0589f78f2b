package intellivue

import (
	"bytes"
	"testing"
	"time"
	"unicode/utf16"

	"github.com/bedside-gateway/gatewayd/drivers"
)

// What follows makes the messages of a monitor by hand.

// acceptHeader stands before the user information of an association response.
var acceptHeader = []byte("" +
	"\x31\x80\xA0\x80\x80\x01\x01\x00\x00\xA2\x80\xA0\x03\x00\x00\x01\xA5\x80\x30\x80\x80\x01\x00\x81\x02\x51\x01\x00\x00\x30\x80" +
	"\x80\x01\x00\x81\x0C\x2A\x86\x48\xCE\x14\x02\x01\x00\x00\x00\x02\x01\x00\x00\x00\x00\x61\x80\x30\x80\x02\x01\x01\xA0\x80" +
	"\x61\x80\xA1\x80\x06\x0C\x2A\x86\x48\xCE\x14\x02\x01\x00\x00\x00\x03\x01\x00\x00\xA2\x03\x02\x01\x00\xA3\x05\xA1\x03\x02\x01\x00" +
	"\xBE\x80\x28\x80\x02\x01\x02\x81")

var refusal = []byte("\x0C\x20" + "\xC1\x1E\x61\x80\x30\x80\x02\x01\x01\xA0\x80\x61\x80\xA2\x03\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00")

func usualProfile() pollProfile {
	return pollProfile{
		revision: pollRevision1, minPeriod: 0x04E2, maxReceive: 1456, maxSend: 1456, bandwidth: 0xFFFFFFFF,
		options: dynamicObjects, extended: true, extOptions: extNumerics | extWaves | extEnumerations,
	}
}

func acceptOf(f pollProfile) []byte {
	profiles := appendAttribute(nil, profilePoll, f.append(nil))
	s := spdu{
		kind: spduAccept, items: connectItems, header: acceptHeader, hasInfo: true, trailer: associationTrailer,
		info: userInfo{
			protocol: protocolVersion1, nomenclature: nomenclatureVersion1, system: 0x00800000, startup: 0x80000000,
			profiles: attributes{1, profiles},
		},
	}
	return s.append(nil)
}

// An attr is an attribute to be sent.
type attr struct {
	id    uint16
	value []byte
}

func attrs(list ...attr) attributes {
	var b []byte
	for _, a := range list {
		b = appendAttribute(b, a.id, a.value)
	}
	return attributes{len(list), b}
}

func u16(v uint16) []byte { return appendU16(nil, v) }
func u32(v uint32) []byte { return appendU32(nil, v) }

// text is a string as monitors send it.
func text(s string) []byte {
	b, at := open(nil)
	for _, u := range utf16.Encode([]rune(s)) {
		b = appendU16(b, u)
	}
	return shut(append(b, 0, 0, 0, 0), at)
}

// count makes a list of elements.
func count(elements ...[]byte) []byte {
	b, at := open(u16(uint16(len(elements))))
	for _, e := range elements {
		b = append(b, e...)
	}
	return shut(b, at)
}

func bcd(t time.Time) []byte {
	n := func(v int) byte { return byte(v/10<<4 | v%10) }
	return []byte{n(t.Year() / 100), n(t.Year() % 100), n(int(t.Month())), n(t.Day()), n(t.Hour()), n(t.Minute()), n(t.Second()), 0}
}

// shownAtCreate is what the monitor's clock shows when it says what it is.
var shownAtCreate = time.Date(2026, 5, 6, 7, 8, 9, 0, time.UTC)

func mdsAttributes(mode uint16, rel relativeTime, shown time.Time) attributes {
	return attrs(
		attr{attrSystemID, []byte{0, 6, 0x00, 0x09, 0xFB, 1, 2, 3}},
		attr{attrSystemType, u32(0x0001114D)},
		attr{attrAssociation, u16(7)},
		attr{attrModel, []byte("\x00\x08Philips\x00\x00\x06M8000\x00")},
		attr{attrOperatingMode, u16(mode)},
		attr{attrBedLabel, text("BED 4")},
		attr{attrTimeAbs, bcd(shown)},
		attr{attrTimeRel, u32(uint32(rel))},
	)
}

func createEvent(invoke uint16, rel relativeTime, list attributes) []byte {
	e := event{object: theMDS, time: rel, kind: eventMDSCreate}
	d := pdu{context: dataContext, kind: roInvoke, invoke: invoke, command: cmdConfirmedEvent}
	return d.append(nil, func(b []byte) []byte {
		return e.append(b, func(b []byte) []byte { return list.append(theMDS.append(b)) })
	})
}

// An item is an object of a poll result.
type item struct {
	context, handle uint16
	list            attributes
}

// A reply is a poll result to be sent.
type reply struct {
	invoke   uint16
	extended bool
	sequence uint16
	class    uint16
	group    uint16
	rel      relativeTime
	link     [2]uint8 // state and count of a linked result
	items    []item
}

func (p reply) bytes() []byte {
	var b []byte
	n := 0
	for i := 0; i < len(p.items); {
		j := i
		var o []byte
		for ; j < len(p.items) && p.items[j].context == p.items[i].context; j++ {
			o = p.items[j].list.append(appendU16(o, p.items[j].handle))
		}
		b = objects{list{j - i, o}}.append(appendU16(b, p.items[i].context))
		n++
		i = j
	}
	r := pollResult{number: 1, sequence: p.sequence, rel: p.rel, partition: partitionOfClasses, class: p.class, group: p.group, contexts: contexts{list{n, b}}}
	copy(r.abs[:], bytes.Repeat([]byte{0xFF}, 8))
	a := action{object: theMDS, kind: actionPoll}
	if p.extended {
		a.kind = actionPollExt
	}
	d := pdu{context: dataContext, kind: roResult, invoke: p.invoke, command: cmdConfirmedAction}
	if p.link != [2]uint8{} {
		d.kind, d.linkState, d.linkCount = roLinked, p.link[0], p.link[1]
	}
	return d.append(nil, func(b []byte) []byte {
		return a.append(b, false, func(b []byte) []byte { return r.append(b, p.extended) })
	})
}

func numericAttr(physio, state, unit uint16, value uint32) attr {
	n := numericValue{physio, state, unit, float(value)}
	return attr{attrNumeric, n.append(nil)}
}

func compoundAttr(values ...numericValue) attr {
	var list [][]byte
	for _, v := range values {
		list = append(list, v.append(nil))
	}
	return attr{attrCompoundNumeric, count(list...)}
}

func specAttr(category, access uint16, compound uint8) attr {
	s := metricSpec{period: 8192, category: category, access: access, structure: compound}
	return attr{attrMetricSpec, s.append(nil)}
}

func errorReply(invoke, number uint16, body []byte) []byte {
	d := pdu{context: dataContext, kind: roError, invoke: invoke, command: number}
	return d.append(nil, func(b []byte) []byte { return append(b, body...) })
}

// A request is what a machine sent, as the monitor reads it.
type request struct {
	invoke   uint16
	command  uint16
	extended bool
	poll     pollRequest
	labels   []uint32
}

func readRequest(t testing.TB, p []byte) (r request, ok bool) {
	t.Helper()
	d, err := parsePDU(p)
	if err != nil || d.kind != roInvoke {
		return r, false
	}
	r.invoke, r.command = d.invoke, d.command
	switch d.command {
	case cmdConfirmedAction:
		a, _ := parseAction(d.body, true)
		r.extended = a.kind == actionPollExt
		r.poll, ok = parsePollRequest(a.info, r.extended)
	case cmdConfirmedSet:
		var s setRequest
		s, ok = parseSet(d.body)
		_, _, value, _ := s.list.modification()
		l, _ := parseTextIDs(value)
		for i := range l.count {
			r.labels = append(r.labels, l.textID(i))
		}
	case cmdGet:
		_, ok = parseGet(d.body)
	}
	if !ok {
		t.Fatalf("a request that cannot be read: %x", p)
	}
	return r, true
}

// requests are those of what was sent.
func (r *rig) requests() (list []request) {
	for _, p := range r.take() {
		if q, ok := readRequest(r.t, p); ok {
			list = append(list, q)
		}
	}
	return list
}

// asked finds the last request for a class.
func asked(list []request, class uint16, extended bool) (found request, ok bool) {
	for _, q := range list {
		if q.command == cmdConfirmedAction && q.poll.class == class && q.extended == extended {
			found, ok = q, true
		}
	}
	return found, ok
}

// associate brings a rig to where polls are answered, at relative time rel.
func (r *rig) associate(f pollProfile, rel relativeTime) {
	r.t.Helper()
	if err := r.m.Start(r.now); err != nil {
		r.t.Fatal(err)
	}
	r.run(time.Second)
	r.receive(acceptOf(f))
	r.receive(createEvent(1, rel, mdsAttributes(0x4000, rel, shownAtCreate)))
	if r.m.phase != associated {
		r.t.Fatalf("phase %d after the association; %v", r.m.phase, r.notes)
	}
	r.take()
}

// polled runs a rig until it has asked for a class, and returns the request.
func (r *rig) polled(class uint16, extended bool) request {
	r.t.Helper()
	for range 60 {
		if q, ok := asked(r.requests(), class, extended); ok {
			return q
		}
		r.run(pacing)
		// The monitor says something, so that it is not given up.
		r.m.lastIn = r.now
	}
	r.t.Fatalf("class %04X was not asked for; %v", class, r.notes)
	return request{}
}

// relNow is the relative time of now, when it was rel at the association.
func (r *rig) relNow(rel relativeTime) relativeTime {
	return rel + relativeOf(r.now.Sub(sessionStart.Add(time.Second)))
}

var _ drivers.Host = (*testHost)(nil)
