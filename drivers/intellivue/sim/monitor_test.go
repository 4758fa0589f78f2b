package sim

import (
	"bytes"
	"encoding/binary"
	"math"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf16"
)

func TestAnAssociationIsAcceptedWithItsTermsAndTheCreateEvent(t *testing.T) {
	m := newMonitor(t, Options{CreateInvoke: 0x1234, MTU: 1000, PollOptions: optNumerics | optWaves, BedLabel: "Bed 7"})
	c := &client{tb: t, dev: newLink(m), now: start}
	for range 3 { // a client repeats its request until the accept is there
		c.send(connectPDU(t))
		c.wait(time.Second)
	}
	got := c.taken()
	if len(got) < 2 {
		t.Fatalf("%d messages, want accept and create event", len(got))
	}
	accept := got[0].pdu
	mark := bytes.Index(accept, userInfoHead)
	if body, err := spduBody(accept); accept[0] != spduAccept || err != nil || mark < 0 || len(body) < 100 {
		t.Fatalf("accept %x: %v", accept, err)
	}
	info, err := berSized(accept[mark+len(userInfoHead):])
	if err != nil {
		t.Fatal(err)
	}
	// Period as asked (1 s), MTU the monitor's, the enumerations not granted.
	want := `80000000 40000000 00000000 00800000 80000000 00000000
		0001002c 00010028 80000000 00001f40 000003e8 000003e8 ffffffff 60000000 0001000c f0010008 88000000 00000000`
	if !bytes.Equal(info, unhex(t, want)) {
		t.Errorf("user information\n%x, want\n%x", info, unhex(t, want))
	}
	event := got[1].pdu
	if !isCreateEvent(event) || binary.BigEndian.Uint16(event[8:]) != 0x1234 {
		t.Errorf("create event %x", event)
	}
	if !bytes.Contains(event, appendString(nil, "Bed 7"+zeros(11), 0)) {
		t.Error("the create event does not tell the bed label")
	}
}

func TestAnAcceptHasTheFormOfARealOne(t *testing.T) {
	want := `0ece 0508130100160102800014020002 c1be 3180a0808001010000a280a003000001 a5803080800100810251010000 308080010081 0c
		2a8648ce1402010000000201 00000000 61803080020101a0806180a180060c 2a8648ce1402010000000301 0000 a203020100 a305a103020100
		be8028800201028148 80000000 40000000 00000000 00800000 80000000 00000000 0001002c 00010028 80000000 0004e200 000005b0 000005b0
		ffffffff 60000000 0001000c f0010008 8c000000 00000000 00000000000000000000000000000000`
	got := acceptPDU(proposal{period: 40 * 8000, mtuRx: 1456, mtuTx: 1456, extended: true, pollExt: 0x8C000000})
	if !bytes.Equal(got, unhex(t, want)) {
		t.Errorf("%x", got)
	}
}

func TestTheCreateEventIsRepeatedUntilItsResultAndNothingElseIsAnswered(t *testing.T) {
	m := newMonitor(t, Options{})
	c := &client{tb: t, dev: newLink(m), now: start}
	c.send(connectPDU(t))
	c.wait(2500 * time.Millisecond)
	c.send(pollPDU(0x77, 5, classMDS, groupAll))
	c.send(eventResult(99)) // another invoke id
	c.wait(7 * time.Second)
	got := c.taken()
	events := 0
	for _, o := range got[1:] {
		if !isCreateEvent(o.pdu) {
			t.Errorf("answered before the result of the create event: %x", o.pdu)
		}
		events++
	}
	if events != 3 {
		t.Errorf("%d create events in 9.5 s, want 3", events)
	}
	c.send(eventResult(1))
	c.wait(2 * time.Second)
	if got := c.results(); len(got) != 1 || got[0].invoke != 0x77 || got[0].number != 5 || got[0].class != classMDS {
		t.Errorf("the poll that came early is not answered: %+v", got)
	}
}

func TestARequestIsRefused(t *testing.T) {
	for _, x := range []struct {
		name     string
		o        Options
		before   func(*client)
		accepted bool
		refusals uint64
	}{
		{"always when told to", Options{Refuse: true}, func(c *client) { c.send(connectPDU(t)); c.wait(3 * time.Second) }, false, 2},
		{"as long as it is busy", Options{Busy: 1}, func(c *client) { c.send(connectPDU(t)); c.wait(3 * time.Second) }, true, 1},
		{"while another association stands", Options{}, func(c *client) { c.associate(1) }, false, 1},
	} {
		m := newMonitor(t, x.o)
		c := &client{tb: t, dev: newLink(m), now: start}
		x.before(c)
		c.taken()
		c.send(connectPDU(t))
		c.wait(3 * time.Second)
		got := c.taken()
		if len(got) == 0 || (got[0].pdu[0] == spduAccept) != x.accepted || (got[0].pdu[0] == spduRefuse) == x.accepted {
			t.Errorf("%s: %d messages, first %x", x.name, len(got), got[0].pdu[:2])
		}
		if m.Counts().Refusals != x.refusals {
			t.Errorf("%s: %d refusals", x.name, m.Counts().Refusals)
		}
	}
	if body, err := spduBody(refusePDU()); err != nil || !bytes.HasPrefix(body, sessionData) {
		t.Errorf("refusal does not add up: %v", err)
	}
}

func TestASilentClientTimesOut(t *testing.T) {
	m, c := open(t, Options{})
	for range 4 {
		c.send(pollPDU(1, 1, classMDS, groupProduct))
		c.wait(9 * time.Second)
	}
	if m.Counts().Timeouts != 0 {
		t.Fatal("timed out although keepalives came")
	}
	c.taken()
	c.wait(2 * time.Second)
	if got := c.taken(); len(got) != 1 || !bytes.Equal(got[0].pdu, abortPDU) || m.Counts().Timeouts != 1 {
		t.Errorf("no abort after 11 s of silence")
	}
	c.associate(1) // and it can come back
}

func TestReleaseAndAbortEndAnAssociation(t *testing.T) {
	_, c := open(t, Options{})
	c.send(pollExtPDU(2, 1, classNumeric, groupAll, time.Minute))
	c.wait(2 * time.Second)
	c.taken()
	c.send(unhexMust("0918c11661803080020101a08062808001000000000000000000"))
	c.wait(5 * time.Second)
	if got := c.taken(); len(got) != 1 || !bytes.Equal(got[0].pdu, unhexMust("0a18c11661803080020101a08063808001000000000000000000")) {
		t.Errorf("release is not answered by one disconnect: %d messages", len(got))
	}
	c.send(finishPDU)
	c.wait(2 * time.Second)
	if got := c.taken(); len(got) != 0 {
		t.Error("a release without an association is answered")
	}
	c.associate(1)
	c.send(abortPDU)
	c.wait(20 * time.Second)
	if got := c.taken(); len(got) != 0 {
		t.Errorf("after an abort the monitor says %x", got[0].pdu)
	}
}

func TestTheMonitorCanReleaseAndReboot(t *testing.T) {
	now := start
	m, c := open(t, Options{Now: func() time.Time { return now }})
	first, _ := decodeOne(t, c, pollPDU(1, 1, classNumeric, groupAll))
	m.Release()
	c.wait(2 * time.Second)
	if got := c.taken(); len(got) == 0 || !bytes.Equal(got[0].pdu, finishPDU) {
		t.Fatal("no release request")
	}
	c.send(disconnectPDU)
	c.associate(1)
	now = c.now
	m.Reboot()
	c.send(pollPDU(1, 1, classNumeric, groupAll))
	c.wait(4 * time.Second)
	c.send(connectPDU(t))
	if got := c.taken(); len(got) != 0 {
		t.Errorf("a rebooting monitor says %x", got[0].pdu)
	}
	c.wait(2 * time.Second)
	c.associate(1)
	again, _ := decodeOne(t, c, pollPDU(1, 1, classNumeric, groupAll))
	if again.relative > 8*8000 {
		t.Errorf("relative time %d after a reboot", again.relative)
	}
	if again.objects[0].handle == first.objects[0].handle {
		t.Error("handles outlived a reboot")
	}
}

// decodeOne sends a poll and returns its first result.
func decodeOne(t *testing.T, c *client, pdu []byte) (decoded, []decoded) {
	t.Helper()
	c.taken()
	c.send(pdu)
	c.wait(1100 * time.Millisecond)
	got := c.results()
	if len(got) == 0 {
		t.Fatal("no result")
	}
	return got[0], got
}

func TestAnExtendedPollLivesAsLongAsItSays(t *testing.T) {
	for _, x := range []struct {
		life time.Duration
		want int // results, as recorded of a real monitor
	}{{2 * time.Second, 3}, {7500 * time.Millisecond, 8}, {1500 * time.Millisecond, 2}, {0, 1}} {
		_, c := open(t, Options{})
		c.wait(c.dev.(*link).nextTick.Sub(c.now) + 60*time.Millisecond) // a request shortly after a tick, as recorded
		c.taken()
		c.send(pollExtPDU(9, 1, classNumeric, groupValue, x.life))
		for range 12 {
			c.wait(time.Second)
			c.send(pollPDU(1, 1, classMDS, groupProduct))
		}
		var sequence []uint16
		var relative []uint32
		for _, d := range c.results() {
			if d.class == classNumeric {
				sequence, relative = append(sequence, d.sequence), append(relative, d.relative)
			}
		}
		if len(sequence) != x.want {
			t.Errorf("lifetime %v: %d results, want %d", x.life, len(sequence), x.want)
		}
		for i := range sequence {
			if sequence[i] != uint16(i) || i > 0 && relative[i]-relative[i-1] != relativePerTick {
				t.Errorf("lifetime %v: sequence %v relative %v", x.life, sequence, relative)
			}
		}
	}
}

func TestStaticsComeOnceAndValuesAlways(t *testing.T) {
	for _, repeat := range []bool{false, true} {
		_, c := open(t, Options{RepeatStatics: repeat})
		c.send(pollExtPDU(9, 1, classNumeric, groupAll, time.Minute))
		c.wait(3200 * time.Millisecond)
		statics := map[uint16]int{}
		for _, d := range c.results() {
			for _, o := range d.objects {
				if o.attrs[attrLabel] != nil {
					statics[d.sequence]++
				}
			}
		}
		if n := len(numericObjects(false)); statics[0] != n || repeat != (statics[1] == n) {
			t.Errorf("repeat %v: objects with statics by sequence %v", repeat, statics)
		}
	}
}

func TestNumericsAreWhatTheMonitorSaysItSent(t *testing.T) {
	var told []Numeric
	m, c := open(t, Options{Seed: 7, OnNumeric: func(n Numeric) { told = append(told, n) }})
	c.send(pollExtPDU(9, 1, classNumeric, groupValue, time.Minute))
	c.wait(6 * time.Second)
	type value struct {
		physio, state, unit uint16
		text                string
	}
	var seen []value
	for _, d := range c.results() {
		for _, o := range d.objects {
			v := o.attrs[attrNumeric]
			if all := o.attrs[attrCompoundNumeric]; all != nil {
				v = all[4:]
			}
			for ; len(v) >= 10; v = v[10:] {
				bits := binary.BigEndian.Uint32(v[6:])
				f := float{int32(bits<<8) >> 8, int8(bits >> 24)}
				seen = append(seen, value{binary.BigEndian.Uint16(v), binary.BigEndian.Uint16(v[2:]), binary.BigEndian.Uint16(v[4:]), f.digits()})
			}
		}
	}
	if len(seen) != len(told) || len(seen) < 5*20 {
		t.Fatalf("%d values on the wire, %d told", len(seen), len(told))
	}
	counts := map[uint16]uint64{}
	for i, n := range told {
		if seen[i] != (value{n.Physio, n.State, n.Unit, n.Value}) {
			t.Errorf("value %d: wire %+v, told %+v", i, seen[i], n)
		}
		counts[n.Physio]++
	}
	for id, n := range counts {
		if got := m.Counts().Numerics[id]; got != n {
			t.Errorf("physio %04X: counted %d, told %d", id, got, n)
		}
	}
	for _, id := range []uint16{0x4182, 0x4BB8, 0x4822, 0x4A05, 0x4A15, 0x4A47, 0x500A, 0x4B48, 0x50B0, 0x5012} {
		if counts[id] == 0 {
			t.Errorf("no value of %04X", id)
		}
	}
}

func TestTheStateSaysWhatAValueIsWorth(t *testing.T) {
	m, c := open(t, Options{Demo: true, States: map[uint16]uint16{0x4BB8: 0x8000, 0x500A: 0x4000}})
	m.RaiseAlarm(Alarm{Source: 0x4182, Code: 0x0028, Priority: High})
	all := map[uint16][]byte{}
	c.send(pollPDU(1, 1, classNumeric, groupAll))
	c.wait(1100 * time.Millisecond)
	for _, d := range c.results() {
		for _, o := range d.objects {
			if v := o.attrs[attrNumeric]; v != nil {
				all[binary.BigEndian.Uint16(v)] = v
			}
		}
	}
	for id, want := range map[uint16]string{
		0x4BB8: "4bb8 8400 0220 007fffff", // invalid, demo: not a number
		0x500A: "500a 4400 0ae0",          // questionable
		0x4182: "4182 0402 0aa0",          // in alarm
	} {
		if !bytes.HasPrefix(all[id], unhex(t, want)) {
			t.Errorf("%04X: %x, want %s", id, all[id], want)
		}
	}
	mds, _ := decodeOne(t, c, pollPDU(1, 1, classMDS, groupSystem))
	if !bytes.Equal(mds.objects[0].attrs[attrOperatingMode], []byte{0x20, 0}) {
		t.Errorf("operating mode %x in demonstration mode", mds.objects[0].attrs[attrOperatingMode])
	}
}

func TestTheCuffMeasuresNowAndThen(t *testing.T) {
	clock := time.Date(2026, 7, 1, 8, 30, 0, 0, time.UTC)
	_, c := open(t, Options{NBPEvery: 20 * time.Second, Clock: clock})
	c.send(pollExtPDU(9, 1, classNumeric, groupAll, time.Hour))
	stamps := map[string]int{}
	for range 50 {
		c.wait(1024 * time.Millisecond)
		c.send(pollPDU(1, 1, classMDS, groupProduct))
	}
	for _, d := range c.results() {
		for _, o := range d.objects {
			if v := o.attrs[attrStampAbs]; v != nil && o.attrs[attrCompoundNumeric] != nil {
				stamps[string(v)]++
			}
		}
	}
	if len(stamps) != 3 {
		t.Errorf("%d measurements in 50 s, want 3: %x", len(stamps), stamps)
	}
	for s := range stamps {
		if at, ok := parseBCD([]byte(s)); !ok || at.Before(clock) || at.After(clock.Add(time.Minute)) {
			t.Errorf("measured at %x", s)
		}
	}
}

func TestTheRelativeTimeWraps(t *testing.T) {
	_, c := open(t, Options{Relative: math.MaxUint32 - 8*8000})
	c.send(pollExtPDU(9, 1, classNumeric, groupValue, time.Hour))
	c.send(setPDU(cmdConfirmedSet, 3, attrWaveList, labelLead2))
	c.send(pollExtPDU(8, 2, classWave, groupAll, time.Hour))
	c.wait(9 * time.Second)
	wrapped, before := map[uint16]bool{}, map[uint16]uint32{}
	for _, d := range c.results() {
		if last, ok := before[d.class]; ok && d.relative < last && last > math.MaxUint32/2 {
			wrapped[d.class] = true
			if step := d.relative - last; d.class == classNumeric && step != relativePerTick {
				t.Errorf("a step of %d at the wrap", step)
			}
		}
		before[d.class] = d.relative
	}
	if !wrapped[classNumeric] || !wrapped[classWave] {
		t.Errorf("no wrap seen: %v", wrapped)
	}
}

// waves collects the raw samples of each lead, by physio id.
func waves(t *testing.T, list []decoded) map[uint16][]uint16 {
	t.Helper()
	all := map[uint16][]uint16{}
	for _, d := range list {
		for _, o := range d.objects {
			v := o.attrs[attrWave]
			if c := o.attrs[attrCompoundWave]; c != nil {
				v = c[4:]
			}
			for len(v) > 0 {
				id, n := binary.BigEndian.Uint16(v), int(binary.BigEndian.Uint16(v[4:]))
				for i := 6; i < 6+n; i += 2 {
					all[id] = append(all[id], binary.BigEndian.Uint16(v[i:]))
				}
				v = v[6+n:]
			}
		}
	}
	return all
}

func TestWavesComeInBlocksBeforeTheirStatics(t *testing.T) {
	m, c := open(t, Options{Baseline: Baseline{HeartRate: 60}})
	c.send(setPDU(cmdConfirmedSet, 3, attrWaveList, labelECG, labelLeadI, 0x0002013D, labelPleth, labelABP, labelResp))
	c.wait(200 * time.Millisecond)
	c.taken()
	c.send(pollExtPDU(8, 2, classWave, groupAll, time.Minute))
	c.wait(8 * time.Second)
	list := c.results()
	statics, values := map[uint32]uint16{}, map[uint16]uint16{}
	for i, d := range list {
		if d.class != classWave || int(d.sequence) != i || !slices.Equal(d.contexts, []uint16{0, 1}) {
			t.Fatalf("result %d: class %04X sequence %d contexts %v", i, d.class, d.sequence, d.contexts)
		}
		if i > 1 && d.relative-list[i-1].relative != relativePerBlock {
			t.Fatalf("result %d: block at %d after %d", i, d.relative, list[i-1].relative)
		}
		for _, o := range d.objects {
			if v := o.attrs[attrLabel]; v != nil {
				statics[binary.BigEndian.Uint32(v)] = d.sequence
			}
			if v := o.attrs[attrWave]; v != nil && values[binary.BigEndian.Uint16(v)] == 0 {
				values[binary.BigEndian.Uint16(v)] = d.sequence
			}
		}
		if d.size > maxTransferUnit {
			t.Errorf("result %d has %d bytes", i, d.size)
		}
	}
	if statics[labelECG] != 0 || statics[labelLeadI] != 1 || statics[labelABP] != 13 || values[0x4A14] != 1 {
		t.Errorf("statics in %v, values from %v", statics, values)
	}
	got := waves(t, list)
	blocks := len(list) - 1
	for id, n := range map[uint16]int{0x0101: 128, 0x013D: 128, 0x0102: 64, 0x0143: 64, 0x013E: 64, 0x4BB4: 32, 0x4A14: 32, 0x5000: 16} {
		if len(got[id]) != n*blocks {
			t.Errorf("%04X: %d samples in %d blocks of %d", id, len(got[id]), blocks, n)
		}
	}
	if m.Counts().WaveBlocks[labelPleth] != uint64(blocks) {
		t.Errorf("%d blocks counted, %d sent", m.Counts().WaveBlocks[labelPleth], blocks)
	}
	// Einthoven: II = I + III, within noise-free rounding of half a step each.
	for k := range got[0x0102] {
		i, ii, iii := int(got[0x0101][2*k])-8192, int(got[0x0102][k])-8192, int(got[0x013D][2*k])-8192
		if d := ii - i - iii; d < -2 || d > 2 {
			t.Fatalf("sample %d: I %d, II %d, III %d", k, i, ii, iii)
		}
	}
	// About one R wave a second, and pressures between the numerics' extremes.
	beats := 0
	for k := 1; k < len(got[0x0101]); k++ {
		if got[0x0101][k] > 8192+80 && got[0x0101][k-1] <= 8192+80 {
			beats++
		}
	}
	if seconds := float64(blocks) * 0.256; math.Abs(float64(beats)-seconds) > 3 {
		t.Errorf("%d beats in %.1f s at about 60/min", beats, seconds)
	}
	for _, raw := range got[0x4A14] {
		if p := float64(raw-160)/16 - 40; p < 40 || p > 180 {
			t.Fatalf("arterial pressure %.1f mmHg", p)
		}
	}
}

func TestAPacedBeatIsMarkedAboveTheSignificantBits(t *testing.T) {
	_, c := open(t, Options{Paced: true})
	c.send(setPDU(cmdConfirmedSet, 3, attrWaveList, labelECG, labelLead2))
	c.send(pollExtPDU(8, 2, classWave, groupAll, time.Minute))
	c.wait(8 * time.Second)
	list := c.results()
	for _, lead := range []uint16{0x0102, 0x0143} {
		marks := 0
		for _, raw := range waves(t, list)[lead] {
			if raw&markerPacer == markerPacer {
				marks++
			}
		}
		if marks < 5 || marks > 30 {
			t.Errorf("lead %04X: %d pacer markers in 7 s at 70/min", lead, marks)
		}
	}
}

func TestWavesFollowThePriorityList(t *testing.T) {
	m, c := open(t, Options{})
	answer := func(pdu []byte) []byte {
		c.taken()
		c.send(pdu)
		c.wait(200 * time.Millisecond)
		for _, o := range c.taken() {
			if o.pdu[0] == spduData {
				return o.pdu
			}
		}
		return nil
	}
	// Only three of the ECG are granted, unknown ones not at all, and the answer says so.
	got := answer(setPDU(cmdConfirmedSet, 0x55, attrWaveList, labelLeadI, labelLead2, 0x0002013D, 0x00020140, 0x0002FFFF, labelPleth))
	want := listAnswer(0x55, cmdConfirmedSet, []attribute{{id: attrWaveList, value: appendLabels(nil, []uint32{labelLeadI, labelLead2, 0x0002013D, labelPleth})}})
	if !bytes.Equal(got, want) {
		t.Errorf("set: %x", got)
	}
	if got := answer(getPDU(0x56, attrWaveList)); !bytes.Contains(got, appendLabels(nil, m.waveList)) {
		t.Errorf("get: %x", got)
	}
	if got := answer(setPDU(cmdSet, 0x57, attrWaveList)); got != nil {
		t.Errorf("unconfirmed set is answered: %x", got)
	}
	c.send(pollExtPDU(8, 2, classWave, groupValue, time.Minute))
	c.wait(3200 * time.Millisecond)
	list := c.results()
	if len(list) != 3 {
		t.Errorf("%d results of a wave poll in three ticks without waves, want 3 empty ones", len(list))
	}
	for _, d := range list {
		if len(d.objects) != 0 || d.size != 62 || !slices.Equal(d.contexts, []uint16{0, 1}) {
			t.Errorf("empty wave result of %d bytes: %+v", d.size, d)
		}
	}
}

func TestWrongRequestsGetErrors(t *testing.T) {
	m, c := open(t, Options{WavesTaken: true})
	modify := func(pdu []byte, at int, to byte) []byte { pdu[at] = to; return pdu }
	for _, x := range []struct {
		name string
		pdu  []byte
		want string // from the error code on; empty: no answer
	}{
		{"class that is not there", pollPDU(0x99, 1, 0x0025, 0), "0000 0000"},
		{"object that is not the MDS", modify(pollPDU(0x99, 1, classMDS, 0), 15, 0x22), "0000 0000"},
		{"instance that is not there", modify(pollPDU(0x99, 1, classMDS, 0), 17, 1), "0001 0000"},
		{"scope", modify(pollPDU(0x99, 1, classMDS, 0), 23, 1), "0010 0000"},
		{"action", modify(pollPDU(0x99, 1, classMDS, 0), 25, 0x17), "0009 0000"},
		{"command", modify(pollPDU(0x99, 1, classMDS, 0), 11, 6), "000f 0000"},
		{"poll that does not add up", modify(pollPDU(0x99, 1, classMDS, 0), 27, 6), "000f 0000"},
		{"attribute to get", getPDU(0x99, 0xF12A), "0007 000e 0021 0000 0000 0001 0004 0005 f12a"},
		{"attribute to set", setPDU(cmdConfirmedSet, 0x99, 0x0921), "0008 0010 0021 0000 0000 0001 0006 0005 0000 0921"},
		{"waves of another client", setPDU(cmdConfirmedSet, 0x99, attrWaveList, labelLead2), "0002 0000"},
		{"length that does not add up", modify(pollPDU(0x99, 1, classMDS, 0), 7, 9), ""},
		{"no presentation context", modify(pollPDU(0x99, 1, classMDS, 0), 3, 9), ""},
		{"linked result from a client", modify(pollPDU(0x99, 1, classMDS, 0), 5, 5), ""},
	} {
		before := m.Counts()
		c.taken()
		c.send(x.pdu)
		c.wait(1100 * time.Millisecond)
		got := c.taken()
		if x.want == "" {
			if len(got) != 0 || m.Counts().BadRequests != before.BadRequests+1 {
				t.Errorf("%s: %d answers, %d bad requests", x.name, len(got), m.Counts().BadRequests-before.BadRequests)
			}
			continue
		}
		body := unhex(t, "0099"+x.want)
		want := append(u16(unhexMust("e1000002 0003"), uint16(len(body))), body...)
		if len(got) != 1 || !bytes.Equal(got[0].pdu, want) || m.Counts().Errors != before.Errors+1 {
			t.Errorf("%s: %d answers, want %x", x.name, len(got), want)
			for _, o := range got {
				t.Logf("%x", o.pdu)
			}
		}
	}
}

// alarmTexts are the alarms in an alarm list attribute, decoded strictly.
func alarmTexts(t *testing.T, v []byte) (list []string) {
	t.Helper()
	n, size := binary.BigEndian.Uint16(v), int(binary.BigEndian.Uint16(v[2:]))
	if v = v[4:]; size != len(v) {
		t.Fatalf("alarm list says %d bytes and has %d", size, len(v))
	}
	for range n {
		size := int(binary.BigEndian.Uint16(v[16:]))
		info := v[18 : 18+size]
		text := ""
		if binary.BigEndian.Uint16(v[14:]) == alertInfoString {
			var units []uint16
			for s := info[12:]; len(s) > 0; s = s[2:] {
				units = append(units, binary.BigEndian.Uint16(s))
			}
			text = strings.TrimRight(string(utf16.Decode(units)), "\x00")
		}
		list = append(list, text)
		v = v[18+size:]
	}
	if len(v) != 0 {
		t.Fatalf("%d bytes after the alarms", len(v))
	}
	return list
}

func TestAlarmsComeAndGo(t *testing.T) {
	m, c := open(t, Options{})
	hr := Alarm{Source: 0x4182, Code: 3076, Priority: High, Text: "***ASYSTOLE"}
	off := Alarm{Source: 0x4BB8, Code: 0x0134, Priority: Low, Technical: true}
	lists := func() (patient, technical []byte) {
		d, _ := decodeOne(t, c, pollPDU(1, 1, classAlarms, groupAlarms))
		return d.objects[0].attrs[attrPatientAlarms], d.objects[0].attrs[attrTechnicalAlarms]
	}
	if p, tech := lists(); !bytes.Equal(p, make([]byte, 4)) || !bytes.Equal(tech, make([]byte, 4)) {
		t.Errorf("lists without alarms: %x and %x", p, tech)
	}
	m.RaiseAlarm(hr)
	m.RaiseAlarm(off)
	p, tech := lists()
	// Source, code, red alarm, new; object numeric in context 1; string info.
	if !bytes.HasPrefix(p[4:], unhexMust("4182 0c04 0400 0008 0006 0001 8281 0204")) || !slices.Equal(alarmTexts(t, p), []string{hr.Text}) {
		t.Errorf("patient alarm: %x", p)
	}
	if !bytes.HasPrefix(tech[4:], unhexMust("4bb8 0134 0001 0008 0006 0001 83c1 0201 000a")) || !slices.Equal(alarmTexts(t, tech), []string{""}) {
		t.Errorf("technical alarm: %x", tech)
	}
	hr.Silenced = true
	m.RaiseAlarm(hr)
	if p, _ := lists(); !bytes.HasPrefix(p[4:], unhexMust("4182 0c04 0400 1000")) || len(m.Alarms()) != 2 {
		t.Errorf("silenced alarm: %x", p)
	}
	if !m.ClearAlarm(hr) || m.ClearAlarm(hr) {
		t.Error("an alarm is cleared once")
	}
	if p, tech := lists(); len(alarmTexts(t, p)) != 0 || len(alarmTexts(t, tech)) != 1 {
		t.Errorf("after the end of one: %x and %x", p, tech)
	}
}

func TestAlarmsOfTheRepertoireComeAndGoByThemselves(t *testing.T) {
	_, c := open(t, Options{AlarmEvery: 6 * time.Second})
	c.send(pollExtPDU(8, 2, classAlarms, groupAlarms, time.Hour))
	seen, changes, last := map[string]bool{}, 0, 0
	for range 40 {
		c.wait(time.Second)
		c.send(pollPDU(1, 1, classMDS, groupProduct))
	}
	for _, d := range c.results() {
		if d.class != classAlarms {
			continue
		}
		all := append(alarmTexts(t, d.objects[0].attrs[attrPatientAlarms]), alarmTexts(t, d.objects[0].attrs[attrTechnicalAlarms])...)
		for _, s := range all {
			seen[s] = true
		}
		if len(all) != last {
			changes, last = changes+1, len(all)
		}
	}
	if len(seen) < len(repertoire) || changes < 10 {
		t.Errorf("%d alarms seen, %d changes", len(seen), changes)
	}
}

func TestThePatientIsTold(t *testing.T) {
	m, c := open(t, Options{})
	patient := func() decodedObject {
		d, _ := decodeOne(t, c, pollPDU(1, 1, classPatient, groupPatient))
		return d.objects[0]
	}
	if o := patient(); !bytes.Equal(o.attrs[attrPatientState], []byte{0, 8}) || !bytes.Equal(o.attrs[attrFamily], []byte{0, 2, 0, 0}) {
		t.Errorf("no patient: %x", o.attrs)
	}
	err := m.SetPatient(&Patient{ID: "T-1", Given: "Ida", Family: "Ånd", Born: "19800229", Sex: Female, Type: Adult, Height: 170, Weight: 65.5})
	if err != nil {
		t.Fatal(err)
	}
	o := patient()
	for id, want := range map[uint16]string{
		attrPatientState: "0002", attrSex: "0002", attrPatientType: "0001", attrBorn: "1980022900000000",
		attrGiven: "0008 0049 0064 0061 0000", attrFamily: "0008 00c5 006e 0064 0000", attrPatientID: "0008 0054 002d 0031 0000",
		attrAge: "0000002e 0940", attrHeight: "ff0006a4 0511", attrWeight: "ff00028f 06c3", attrBSA: "fe0000b0 05c0",
	} {
		if !bytes.Equal(o.attrs[id], unhex(t, want)) {
			t.Errorf("attribute %04X: %x, want %s", id, o.attrs[id], want)
		}
	}
	for name, p := range map[string]Patient{"date": {Born: "1980"}, "length": {Family: strings.Repeat("x", 65)}} {
		if m.SetPatient(&p) == nil {
			t.Errorf("a wrong %s is taken", name)
		}
	}
}

func TestEnumerationsSayTheRhythm(t *testing.T) {
	_, c := open(t, Options{Baseline: Baseline{PVCsPerMin: 6}})
	d, _ := decodeOne(t, c, pollPDU(1, 1, classEnum, groupAll))
	if v := d.object(t, labelRhythm).attrs[attrEnum]; !bytes.Equal(v, unhexMust("d007 0000 0001 0002 4012")) {
		t.Errorf("rhythm %x", v)
	}
	if v := d.object(t, labelEctopic).attrs[attrEnum]; !bytes.Equal(v, unhexMust("d006 0000 0004 0008 4280 00000006 0aa0")) {
		t.Errorf("ectopic status %x", v)
	}
}

func TestTheNumericPriorityListChoosesNumerics(t *testing.T) {
	_, c := open(t, Options{})
	c.send(setPDU(cmdConfirmedSet, 3, attrNumericList, 0x00024BB8, 0x00024182, 0x0002500A))
	p := dataExport(nil, opInvoke, func(b []byte) []byte {
		return operation(b, 4, cmdConfirmedAction, func(b []byte) []byte {
			return sized(u16(u32(managedMDS(b), 0), actionPollExt), func(b []byte) []byte {
				b = u16(u16(u16(u16(b, 1), 1), classNumeric), groupAll)
				return appendAttributes(b, []attribute{{id: attrPollCount, value: []byte{0, 2}}})
			})
		})
	})
	d, _ := decodeOne(t, c, p)
	if len(d.objects) != 2 {
		t.Errorf("%d numerics of a priority list of which two are wanted", len(d.objects))
	}
}

func TestTheSameSeedIsTheSamePatient(t *testing.T) {
	run := func(seed uint64) string {
		_, c := open(t, Options{Seed: seed, AcceptDelay: time.Second})
		c.send(pollExtPDU(9, 1, classNumeric, groupAll, time.Minute))
		c.send(pollExtPDU(8, 2, classWave, groupAll, time.Minute))
		c.wait(8 * time.Second)
		var b strings.Builder
		for _, o := range c.taken() {
			b.Write(o.pdu)
		}
		return b.String()
	}
	if once, again := run(1), run(1); once != again {
		t.Error("two runs of one seed differ")
	}
	if run(1) == run(2) {
		t.Error("two seeds are one patient")
	}
}

func TestVitalSignsStayPlausibleForADay(t *testing.T) {
	_, c := open(t, Options{Seed: 3})
	m := c.dev.(*link).m
	for range 24 * 60 {
		c.now = c.now.Add(time.Minute)
		m.advance(c.now)
		v := m.vitals
		for _, x := range []struct {
			name       string
			v, low, hi float64
		}{
			{"heart rate", v.heartRate(), 40, 110}, {"respiration", v.respRate(), 5, 30}, {"SpO2", v.spo2(), 90, 100},
			{"systolic", v.systolic(), 80, 170}, {"diastolic", v.diastolic(), 50, 110}, {"temperature", v.temperature(), 35.5, 38.5},
			{"etCO2", v.endTidal(), 20, 60}, {"perfusion", v.perfusion(), 0.2, 10},
		} {
			if x.v < x.low || x.v > x.hi {
				t.Fatalf("%s %.1f", x.name, x.v)
			}
		}
		if v.systolic() <= v.mean() || v.mean() <= v.diastolic() {
			t.Fatalf("pressures %.0f %.0f %.0f", v.systolic(), v.mean(), v.diastolic())
		}
	}
}

func TestWrongOptionsAreRefusedByName(t *testing.T) {
	for want, o := range map[string]Options{
		"MTU":       {MTU: 100},
		"share":     {GarbleRate: 2},
		"bed label": {BedLabel: "a label that is too long"},
		"negative":  {Tick: -1},
		"date":      {Patient: &Patient{Born: "yesterday"}},
	} {
		if _, err := New(o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want it to name %q", o, err, want)
		}
	}
}

// FuzzClient sends anything to a monitor in each state of its association.
func FuzzClient(f *testing.F) {
	f.Add(byte(0), unhexMust(connectHex))
	for i, pdu := range [][]byte{pollPDU(1, 2, classNumeric, 0), pollExtPDU(1, 2, classWave, 0, time.Minute), eventResult(1),
		getPDU(3, attrWaveList), setPDU(cmdConfirmedSet, 4, attrWaveList, labelPleth), finishPDU, abortPDU, disconnectPDU} {
		f.Add(byte(i), pdu)
	}
	f.Fuzz(func(t *testing.T, state byte, pdu []byte) {
		m := newMonitor(t, Options{})
		c := &client{tb: t, dev: newLink(m), now: start}
		if state%3 > 0 {
			c.send(connectPDU(t))
			c.wait(3 * time.Second)
		}
		if state%3 == 2 {
			c.send(eventResult(1))
		}
		c.send(pdu)
		c.send(pdu)
		c.wait(3 * time.Second)
		for _, o := range c.taken() {
			if len(o.pdu) > maxTransferUnit+200 {
				t.Errorf("answer of %d bytes", len(o.pdu))
			}
			decodePoll(t, o.pdu)
		}
	})
}

func BenchmarkTickWithAllWaves(b *testing.B) {
	m, err := New(Options{Now: func() time.Time { return start }})
	if err != nil {
		b.Fatal(err)
	}
	c := &client{tb: b, dev: newLink(m), now: start}
	c.associate(1)
	c.send(setPDU(cmdConfirmedSet, 3, attrWaveList, labelLeadI, labelLead2, 0x00020143, labelPleth, labelABP, labelResp, labelCVP, labelCO2))
	c.send(pollExtPDU(9, 1, classNumeric, groupAll, 1<<31*relativeUnit))
	c.send(pollExtPDU(8, 2, classWave, groupAll, 1<<31*relativeUnit))
	b.ReportAllocs()
	for b.Loop() {
		c.wait(1024 * time.Millisecond)
		c.send(pollPDU(1, 1, classMDS, groupProduct))
		c.taken()
	}
}
