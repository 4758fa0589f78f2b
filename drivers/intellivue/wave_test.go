package intellivue

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bedside-gateway/gatewayd/observation"
)

func waveAttr(physio, state uint16, samples ...uint16) attr {
	var b []byte
	for _, s := range samples {
		b = appendU16(b, s)
	}
	w := waveValue{physio, state, b}
	return attr{attrWave, w.append(nil)}
}

func staticsOf(label uint32, spec waveSpec, scale waveScale, compound uint8) []attr {
	return []attr{
		specAttr(1, 0x4280, compound), {attrWaveSpec, spec.append(nil)}, {attrSamplePeriod, u32(64)}, {attrLabel, u32(label)},
		{attrUnit, u16(0x0F20)}, {attrScale, scale.append(nil)},
		{attrFixedValues, count([]byte{0, 4, 0x80, 0x08}, []byte{0, 1, 0x90, 0x00}, []byte{0, 2, 0x80, 0x04}, []byte{0, 99, 1, 1})},
	}
}

var (
	spec2  = waveSpec{size: 2, bits: 16, significant: 12, flags: waveMarkers}
	scale1 = waveScale{0, 100, 0, 1000}
)

// wavesAt is a rig that has subscribed to waves.
func wavesAt(t *testing.T, options map[string]string) (*rig, reply) {
	r := datagramRig(t, options)
	r.associate(usualProfile(), 80_000)
	for range 60 {
		r.run(pacing)
		r.m.lastIn = r.now
		for _, p := range r.sent {
			q, ok := readRequest(t, p)
			if !ok {
				continue
			}
			switch {
			case q.command == cmdConfirmedAction && q.poll.class == classWave:
				r.take()
				r.reports = nil
				return r, reply{invoke: q.invoke, extended: true, class: classWave, rel: r.relNow(80_000)}
			case q.command == cmdConfirmedSet:
				r.receive(listReply(q, q.labels))
			case q.command == cmdGet:
				r.receive(listReply(q, []uint32{0x20102, 0x24A14}))
			}
		}
		r.take()
	}
	t.Fatalf("waves were not asked for; %q", r.notes)
	return nil, reply{}
}

func listReply(q request, labels []uint32) []byte {
	d := pdu{context: dataContext, kind: roResult, invoke: q.invoke, command: q.command}
	a := attributeResult{object: theMDS, list: attrs(attr{attrWaveList, appendTextIDs(nil, labels)})}
	return d.append(nil, a.append)
}

func TestWavesAreAskedForOnceTheMonitorHasTheList(t *testing.T) {
	r := datagramRig(t, map[string]string{"waves": "II,ABP"})
	r.associate(usualProfile(), 80_000)
	var set request
	for range 40 {
		r.run(pacing)
		r.m.lastIn = r.now
		for _, q := range r.requests() {
			if q.command == cmdConfirmedSet {
				set = q
			}
			if q.command == cmdConfirmedAction && q.poll.class == classWave {
				t.Fatal("waves were asked for before the monitor had the list")
			}
		}
	}
	if !slices.Equal(set.labels, []uint32{0x20102, 0x24A14}) {
		t.Fatalf("the list is %X", set.labels)
	}
	r.receive(listReply(set, []uint32{0x20102}))
	r.polled(classWave, true)
	if !r.noted("exports 1 of 2 waves") {
		t.Errorf("notes %q", r.notes)
	}
}

func TestOfTheWavesThatTheMonitorOffersOnlySoManyAreTaken(t *testing.T) {
	r := datagramRig(t, map[string]string{"waves": "on"})
	r.associate(usualProfile(), 80_000)
	offered := []uint32{0x20100, 0x20101, 0x20102, 0x2013D, 0x2592C, 0x24BB4, 0x24A14, 0x25000}
	var set request
	for range 60 {
		r.run(pacing)
		r.m.lastIn = r.now
		for _, q := range r.requests() {
			switch q.command {
			case cmdGet:
				r.receive(listReply(q, offered))
			case cmdConfirmedSet:
				set = q
			}
		}
	}
	if want := []uint32{0x20100, 0x20101, 0x20102, 0x24BB4, 0x24A14, 0x25000}; !slices.Equal(set.labels, want) {
		t.Errorf("the list is %X, want %X", set.labels, want)
	}
	if !r.noted("offers 8 waves and exports 6") {
		t.Errorf("notes %q", r.notes)
	}
}

func TestARefusedListStillBringsTheWavesOfTheScreen(t *testing.T) {
	r := datagramRig(t, map[string]string{"waves": "II"})
	r.associate(usualProfile(), 80_000)
	for range 40 {
		r.run(pacing)
		r.m.lastIn = r.now
		for _, q := range r.requests() {
			if q.command == cmdConfirmedSet {
				body := append(theMDS.append(nil), count(append(append(u16(statusNoSuchAttribute), u16(0)...), u16(attrWaveList)...))...)
				r.receive(errorReply(q.invoke, errSetList, body))
				r.polled(classWave, true)
				if !r.noted("attribute F23A, status 5") {
					t.Errorf("notes %q", r.notes)
				}
				return
			}
		}
	}
	t.Error("the list was not sent")
}

func TestAMonitorWithoutWavesIsNotAskedForThem(t *testing.T) {
	r := datagramRig(t, map[string]string{"waves": "II"})
	f := usualProfile()
	f.extOptions &^= extWaves
	r.associate(f, 80_000)
	for range 60 {
		r.run(pacing)
		r.m.lastIn = r.now
		for _, q := range r.requests() {
			if q.command == cmdConfirmedSet || q.command == cmdConfirmedAction && q.poll.class == classWave {
				t.Fatalf("sent %+v", q)
			}
		}
	}
	if !r.noted("does not export waves") {
		t.Errorf("notes %q", r.notes)
	}
}

func TestBlocksHaveTheirScaleMarkersAndTime(t *testing.T) {
	r, p := wavesAt(t, map[string]string{"waves": "ABP"})
	p.rel -= 8000 // the block is a second older than its message
	list := append(staticsOf(0x24A14, spec2, scale1, 0), waveAttr(0x4A14, 0, 500, 0x8004|100))
	r.receive(p.with(item{0, 5, attrs(list...)}).bytes())
	r.receive(p.with(item{0, 5, attrs(waveAttr(0x4A14, 0, 0x9001, 0x0FFF))}).bytes())
	r.receive(p.with(item{0, 5, attrs(waveAttr(0x4A14, stateInvalid, 1, 2))}).bytes())
	o := r.observations()
	if len(o) != 3 {
		t.Fatalf("%d blocks", len(o))
	}
	s := o[0].Value.Samples
	if o[0].Code != 150036 || o[0].Unit != 266016 || s.Period != 8*time.Millisecond || s.Mask != 0x0FFF || !slices.Equal(s.Values, []uint16{500, 0x8064}) {
		t.Errorf("%+v %+v", o[0], s)
	}
	if s.Physical(0) != 50 || s.Physical(1) != 10 {
		t.Errorf("values %v and %v, want 50 and 10: the pacer marker is none of the value", s.Physical(0), s.Physical(1))
	}
	if age := r.now.Sub(o[0].Time); (age - time.Second).Abs() > 30*time.Millisecond {
		t.Errorf("the block is %v old, want 1 s", age)
	}
	if o[0].Status != 0 || o[1].Status != observation.Questionable || o[2].Status != observation.Invalid || o[2].Value.Kind != observation.KindNone {
		t.Errorf("states %v, %v, %v", o[0].Status, o[1].Status, o[2].Status)
	}
}

func TestSamplesOfOneByteAndWavesWithoutScale(t *testing.T) {
	r, p := wavesAt(t, map[string]string{"waves": "Pleth"})
	spec := waveSpec{size: 3, bits: 8, significant: 8}
	noScale := waveScale{0x007FFFFF, 0x007FFFFF, 0, 255}
	w := waveValue{0x4BB4, 0, []byte{1, 2, 255}}
	r.receive(p.with(item{0, 5, attrs(append(staticsOf(0x24BB4, spec, noScale, 0), attr{attrWave, w.append(nil)})...)}).bytes())
	o := r.observations()
	if len(o) != 1 || !slices.Equal(o[0].Value.Samples.Values, []uint16{1, 2, 255}) || o[0].Value.Samples.Scaled() || o[0].Unit != 0 || o[0].Value.Samples.Mask != 0xFF {
		t.Fatalf("%+v", o)
	}
}

func TestSeveralWavesOfOneHandleAreToldApartByLabel(t *testing.T) {
	r, p := wavesAt(t, map[string]string{"waves": "I,II"})
	double := waveScale{0, 200, 0, 1000}
	compound := waveSpec{size: 1, bits: 16, significant: 16}
	w1, w2 := waveValue{0x0101, 0, []byte{0, 1}}, waveValue{0x0102, 0, []byte{0, 2}}
	list := [][]byte{w1.append(nil), w2.append(nil)}
	r.receive(p.with(
		item{1, 5, attrs(staticsOf(0x20101, spec2, scale1, 0)...)},
		item{1, 5, attrs(staticsOf(0x20102, spec2, double, 0)...)},
		item{1, 5, attrs(staticsOf(0x20100, compound, waveScale{0, 1000, 0, 1000}, structureCompound)...)},
	).bytes())
	r.receive(p.with(
		item{1, 5, attrs(waveAttr(0x0102, 0, 500, 500))}, item{1, 5, attrs(waveAttr(0x0101, 0, 500, 500))},
		item{1, 5, attrs(attr{attrCompoundWave, count(list...)})},
	).bytes())
	o := r.observations()
	if len(o) != 4 {
		t.Fatalf("%d blocks: %+v", len(o), o)
	}
	for i, want := range []struct {
		code     int
		value    float64
		instance uint8
	}{{131330, 100, 0}, {131329, 50, 0}, {131329, 1, 1}, {131330, 2, 1}} {
		if int(o[i].Code) != want.code || o[i].Value.Samples.Physical(0) != want.value || o[i].Instance != want.instance {
			t.Errorf("%d: %v#%d %v, want %+v", i, o[i].Code, o[i].Instance, o[i].Value.Samples.Physical(0), want)
		}
	}
}

func TestBlocksBeforeTheirMeaningWaitButNotForEver(t *testing.T) {
	r, p := wavesAt(t, map[string]string{"waves": "ABP"})
	r.receive(p.with(item{0, 5, attrs(waveAttr(0x4A14, 0, 1, 2))}).bytes())
	r.run(time.Second)
	if len(r.observations()) != 0 {
		t.Fatal("a block without scale was reported")
	}
	p.rel = r.relNow(80_000)
	r.receive(p.with(item{0, 5, attrs(append(staticsOf(0x24A14, spec2, scale1, 0), waveAttr(0x4A14, 0, 3, 4))...)}).bytes())
	o := r.observations()
	if len(o) != 2 || o[0].Value.Samples.Values[0] != 1 || o[1].Value.Samples.Values[0] != 3 || o[1].Time.Sub(o[0].Time).Round(10*time.Millisecond) != time.Second {
		t.Fatalf("%+v", o)
	}

	r, p = wavesAt(t, map[string]string{"waves": "ABP"})
	for range 3 * maxWaiting {
		r.receive(p.with(item{0, 5, attrs(waveAttr(0x4A14, 0, 1, 2))}).bytes())
	}
	if len(r.m.waiting) != maxWaiting || !r.noted("some were lost") {
		t.Errorf("%d blocks wait, notes %q", len(r.m.waiting), r.notes)
	}
	r.now = r.now.Add(maxWaitingBy + time.Second)
	r.receive(p.with(item{0, 6, attrs(staticsOf(0x24BB4, spec2, scale1, 0)...)}).bytes())
	if len(r.m.waiting) != 0 || len(r.observations()) != 0 {
		t.Errorf("%d blocks wait for too long", len(r.m.waiting))
	}
}

func TestWaveSpecificationsThatCannotBeAreNone(t *testing.T) {
	for _, s := range []string{"0080 000e 3000", "0080 100e", "0080 2010 3000", "0080 1011 3000", "0080 1000 3000"} {
		if _, ok := parseWaveSpec(unhex(t, s)); ok {
			t.Errorf("%s was accepted", s)
		}
	}
	if s := (waveSpec{bits: 16, significant: 13}); s.mask() != 0xFFFF {
		t.Errorf("mask %04X of a wave without markers", s.mask())
	}
}

func TestLabelsAreFoundByNameOrNumber(t *testing.T) {
	for in, want := range map[string]uint32{"II": 0x20102, "avr": 0x2013E, "00024BB4": 0x24BB4, "Resp": 0x25000, "ART": 0x24A10} {
		if got, err := parseLabel(in); err != nil || got != want {
			t.Errorf("%s is %08X, %v; want %08X", in, got, err, want)
		}
	}
	if _, err := parseLabel("Wave"); err == nil || !strings.Contains(err.Error(), "write the one that is meant") {
		t.Errorf("an ambiguous label: %v", err)
	}
}

func TestTheNamesOfTheTablesAreInOrder(t *testing.T) {
	for _, table := range [][]name{physioNames[:], unitNames[:], eventNames[:]} {
		if !slices.IsSortedFunc(table, func(a, b name) int { return int(a.id) - int(b.id) }) {
			t.Errorf("the table of %s is not in order", table[0].name)
		}
	}
}
