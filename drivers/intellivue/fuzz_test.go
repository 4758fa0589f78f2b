package intellivue

import (
	"bytes"
	"testing"
	"time"

	"github.com/bedside-gateway/gatewayd/drivers"
	"github.com/bedside-gateway/gatewayd/observation"
)

// seeds are messages of each kind, made by hand.
func seeds() [][]byte {
	alarms := item{0, 9, attrs(attr{attrPatientAlarms, count(alarmEntry(0x4BB8, 0x0028, alarmPatientMedium, 0, alarmInfoText, alarmText(3, "high")))},
		attr{attrTechnicalAlarms, count()})}
	enum := enumerationValue{physio: 0xD007, choice: choiceCodeNumber, code: 0x4182, number: 60, unit: 0x0AA0}
	wave := append(staticsOf(0x24A14, spec2, scale1, 0), waveAttr(0x4A14, 0, 3, 4))
	poll := pollRequest{number: 1, partition: 1, class: 6}
	a := action{object: theMDS, kind: actionPoll}
	d := pdu{context: dataContext, kind: roInvoke, invoke: 1, command: cmdConfirmedAction}
	return [][]byte{
		releaseRequest, releaseResponse, abortRequest, refusal, acceptOf(usualProfile()), appendConnect(nil, usualProfile()),
		createEvent(1, 80_000, mdsAttributes(0x4000, 80_000, shownAtCreate)),
		reply{invoke: 1, class: classNumeric, items: []item{heartRate(1, 60), {1, 2, attrs(compoundAttr(numericValue{0x4A15, 0, 0x0F20, 120}, numericValue{}))}}}.bytes(),
		reply{invoke: 4, extended: true, class: classNumeric, items: []item{heartRate(1, 60)}}.linked(1, 1).bytes(),
		reply{invoke: 4, extended: true, class: classNumeric, items: []item{heartRate(2, 60)}}.linked(3, 2).bytes(),
		reply{invoke: 4, extended: true, class: classWave, items: []item{{0, 5, attrs(wave...)}}}.bytes(),
		reply{invoke: 5, extended: true, class: classAlarms, items: []item{alarms}}.bytes(),
		reply{invoke: 6, extended: true, class: classEnumeration, items: []item{{1, 3, attrs(attr{attrEnumeration, enum.append(nil)})}}}.bytes(),
		reply{invoke: 3, class: classPatient, items: []item{{0, 80, attrs(attr{attrFamilyName, text("x")}, attr{attrBirth, bcd(shownAtCreate)})}}}.bytes(),
		listReply(request{invoke: 7, command: cmdGet}, []uint32{0x20102, 0x24A14}),
		errorReply(4, errSetList, append(theMDS.append(nil), count([]byte{0, 5, 0, 0, 0xF2, 0x3A})...)),
		set(theMDS, operatorReplace, attrWaveList, appendTextIDs(nil, []uint32{0x20102})),
		d.append(nil, func(b []byte) []byte {
			return a.append(b, true, func(b []byte) []byte { return poll.append(b, false) })
		}),
	}
}

func addSeeds(f *testing.F, wrap func([]byte) []byte) {
	for _, s := range seeds() {
		f.Add(wrap(s))
	}
}

// FuzzDeframer holds that the pieces in which a stream comes do not matter, and
// that what is read can be framed to be read again.
func FuzzDeframer(f *testing.F) {
	addSeeds(f, func(p []byte) []byte { return appendFrame(nil, p) })
	f.Add([]byte{frameBegin, 0x3A, 0x91, 0x95, frameEscape, 0xE1, frameEnd})
	f.Fuzz(func(t *testing.T, stream []byte) {
		whole := deframe(stream)
		var pieces [][]byte
		for i := range stream {
			pieces = append(pieces, stream[i:i+1])
		}
		if bytewise := deframe(pieces...); len(bytewise.fates) != len(whole.fates) || len(bytewise.users) != len(whole.users) {
			t.Fatalf("%v in one, %v in bytes", whole.fates, bytewise.fates)
		}
		for _, user := range whole.users {
			if again := deframe(appendFrame(nil, user)); len(again.users) != 1 || !bytes.Equal(again.users[0], user) {
				t.Fatalf("%x does not come through", user)
			}
		}
	})
}

// FuzzPDU holds that a data message that decodes encodes to the same bytes.
func FuzzPDU(f *testing.F) {
	addSeeds(f, func(p []byte) []byte { return p })
	f.Fuzz(func(t *testing.T, p []byte) {
		if len(p) > 0 && isSession(p[0]) {
			return
		}
		got, err := reencode(p, nil)
		if err == nil && !bytes.Equal(got, p) {
			t.Fatalf("%x became %x", p, got)
		}
	})
}

// FuzzAssociation holds that an association message that decodes encodes to one
// that decodes to the same.
func FuzzAssociation(f *testing.F) {
	addSeeds(f, func(p []byte) []byte { return p })
	f.Fuzz(func(t *testing.T, p []byte) {
		s, err := parseSPDU(p)
		if err != nil {
			return
		}
		profile, ok := s.info.pollProfile()
		b := s.append(nil)
		again, err := parseSPDU(b)
		if err != nil {
			t.Fatalf("%x became %x: %v", p, b, err)
		}
		profile2, ok2 := again.info.pollProfile()
		if ok != ok2 || profile.extOptions != profile2.extOptions || profile.maxSend != profile2.maxSend {
			t.Fatalf("poll profile %+v became %+v", profile, profile2)
		}
		if !bytes.Equal(again.append(nil), b) {
			t.Fatalf("%x is not stable", b)
		}
	})
}

// FuzzMachine feeds a machine with whatever comes, as a stream, as datagrams and
// listening. It must not fail, must not want to be woken in the past for ever,
// must send only what is permitted, and must never make a number of none.
func FuzzMachine(f *testing.F) {
	var session []byte
	for _, s := range seeds() {
		session = append(append(session, byte(len(s)>>8), byte(len(s))), s...)
	}
	f.Add(session, byte(0))
	f.Add(session, byte(1))
	f.Add(session, byte(3))
	f.Fuzz(func(t *testing.T, p []byte, mode byte) {
		h := &judgingHost{t: t}
		m, err := newMachine(drivers.Settings{Datagrams: mode&1 != 0, ListenOnly: mode&2 != 0, Options: map[string]string{"waves": "on"}}, h)
		if err != nil {
			t.Fatal(err)
		}
		now := sessionStart
		if err := m.Start(now); err != nil {
			t.Fatal(err)
		}
		tick := func(until time.Time) {
			for range 100 {
				wake := m.Wake()
				if wake.IsZero() || wake.After(until) {
					return
				}
				if wake.After(now) {
					now = wake
				}
				if err := m.Tick(now); err != nil {
					t.Fatal(err)
				}
			}
			t.Fatal("the machine wants to be woken again and again")
		}
		tick(now.Add(time.Second))
		for n := 0; len(p) > 2 && n < 100; n++ {
			size := min(int(p[0]&0x0F)<<8|int(p[1]), len(p)-2)
			piece := p[2 : 2+size]
			if mode&1 == 0 && mode&4 == 0 {
				piece = appendFrame(nil, piece)
			}
			step := time.Duration(p[0]>>4) * 100 * time.Millisecond
			if err := m.Receive(now, bytes.Clone(piece)); err != nil && err != drivers.ErrDeviceClosed {
				t.Fatal(err)
			}
			tick(now.Add(step))
			now = now.Add(step)
			p = p[2+size:]
		}
		if len(m.objects) > maxObjects || len(m.waiting) > maxWaiting {
			t.Fatalf("%d objects, %d blocks waiting", len(m.objects), len(m.waiting))
		}
		m.Stop(now)
	})
}

// A judgingHost judges what a machine does and keeps nothing.
type judgingHost struct{ t *testing.T }

func (h *judgingHost) Send(frame []byte) {
	if err := (Driver{}).Permit(frame); err != nil {
		h.t.Fatalf("sent %x: %v", frame, err)
	}
}

func (h *judgingHost) Report(r *observation.Report) {
	for _, o := range r.Observations {
		if !o.Status.Usable() && o.Value.Kind != observation.KindNone {
			h.t.Fatalf("a value that must not be shown has one: %+v", o)
		}
		if o.Value.Kind == observation.KindNumber && !o.Value.Number.Valid() {
			h.t.Fatalf("a number that is none: %+v", o)
		}
		if o.Code == 0 && o.Private.Vendor == "" {
			h.t.Fatalf("a value of nothing: %+v", o)
		}
		if s := o.Value.Samples; o.Value.Kind == observation.KindSamples && (s == nil || s.Mask == 0 || s.Period <= 0) {
			h.t.Fatalf("samples that mean nothing: %+v", s)
		}
	}
}

func (h *judgingHost) State(drivers.State) {}
func (h *judgingHost) Count(drivers.Frame) {}
func (h *judgingHost) Note(string)         {}

func FuzzIdentifyAndPermit(f *testing.F) {
	addSeeds(f, func(p []byte) []byte { return p })
	addSeeds(f, func(p []byte) []byte { return appendFrame(nil, p) })
	f.Fuzz(func(t *testing.T, p []byte) {
		match := (Driver{}).Identify(p)
		if n := (Driver{}).Split(p); n < 0 || n > len(p) {
			t.Fatalf("Split gives %d of %d bytes", n, len(p))
		}
		if (Driver{}).Permit(p) == nil && match != drivers.Certain {
			t.Fatalf("%x may be sent and is not recognised", p)
		}
	})
}
