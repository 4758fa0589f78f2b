package sim

import (
	"bytes"
	"context"
	"maps"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/bedside-gateway/gatewayd/drivers/port"
)

// recordOwn is a session of a simulated monitor as a recording, and what its
// numerics were.
func recordOwn(tb testing.TB) (records []port.Record, numerics map[uint16]uint64) {
	tb.Helper()
	m := newMonitor(tb, Options{Seed: 11, Part: 700})
	c := &client{tb: tb, dev: newLink(m), now: start}
	c.associate(1)
	c = &client{tb: tb, dev: c.dev, now: c.now}
	c.send(abortPDU)
	c.send(connectPDU(tb))
	c.wait(3 * time.Second)
	c.send(eventResult(1))
	c.send(pollPDU(3, 1, classPatient, groupPatient))
	before := m.Counts().Numerics
	c.send(pollExtPDU(4, 1, classNumeric, groupAll, time.Minute))
	c.send(setPDU(cmdConfirmedSet, 3, attrWaveList, labelLead2, labelPleth))
	c.send(getPDU(3, attrWaveList))
	c.send(pollExtPDU(5, 2, classWave, groupAll, time.Minute))
	c.wait(9 * time.Second)
	for i, o := range c.got {
		records = append(records, port.Record{Offset: c.at[i].Sub(start), Direction: port.FromDevice, Data: o.pdu})
	}
	numerics = m.Counts().Numerics
	for id, n := range before {
		numerics[id] -= n
	}
	return records, numerics
}

func newReplay(tb testing.TB, o ReplayOptions) *Replay {
	tb.Helper()
	r, err := NewReplay(o)
	if err != nil {
		tb.Fatal(err)
	}
	return r
}

// playTo associates a client that asks for everything with other numbers than
// the recorded client's, and returns all that it got.
func playTo(tb testing.TB, r *Replay) ([]decoded, *client) {
	tb.Helper()
	c := &client{tb: tb, dev: &player{r: r}, now: start}
	c.send(connectPDU(tb))
	c.wait(time.Second)
	got := c.taken()
	if len(got) != 2 || got[0].pdu[0] != spduAccept || !isCreateEvent(got[1].pdu) {
		tb.Fatalf("%d messages for an association", len(got))
	}
	c.send(pollPDU(0x0700, 70, classPatient, groupPatient)) // before the result: waits for it
	c.send(eventResult(r.invoke))
	c.send(pollExtPDU(0x0701, 71, classNumeric, groupValue, time.Hour))
	c.send(pollExtPDU(0x0702, 72, classWave, groupAll, time.Hour))
	c.send(pollExtPDU(0x0703, 73, classAlarms, groupAlarms, time.Hour))
	length, _ := r.Length()
	for end := c.now.Add(r.o.LeadIn + length + time.Second); c.now.Before(end); {
		c.wait(2 * time.Second)
		c.send(pollPDU(0x0704, 74, classMDS, groupProduct)) // keepalive
	}
	return c.results(), c
}

func TestARecordingIsPlayedWithTheNumbersOfTheLiveClient(t *testing.T) {
	records, want := recordOwn(t)
	told := map[uint16]uint64{}
	r := newReplay(t, ReplayOptions{Records: records, OnNumeric: func(n Numeric) { told[n.Physio]++ }})
	list, _ := playTo(t, r)
	sequence := map[uint16]uint16{}
	for _, d := range list {
		number := map[uint16][2]uint16{0x0700: {classPatient, 70}, 0x0701: {classNumeric, 71}, 0x0702: {classWave, 72}, 0x0704: {classMDS, 74}}[d.invoke]
		if number != [2]uint16{d.class, d.number} {
			t.Fatalf("invoke %04X class %04X number %d", d.invoke, d.class, d.number)
		}
		if d.action != actionPollExt {
			continue
		}
		if d.sequence != sequence[d.class] {
			t.Errorf("class %04X: sequence %d, want %d", d.class, d.sequence, sequence[d.class])
		}
		if d.op == opResult {
			sequence[d.class]++
		}
	}
	if !maps.Equal(told, want) || !maps.Equal(r.Counts().Numerics, want) || !maps.Equal(r.Recorded(), want) || len(want) < 10 {
		t.Errorf("played %v, recorded %v", told, want)
	}
	if r.Counts().WaveBlocks[labelPleth] == 0 || sequence[classNumeric] < 7 {
		t.Errorf("%+v, sequences %v", r.Counts(), sequence)
	}
	select {
	case <-r.Done():
	default:
		t.Error("not done although all was played")
	}
}

func TestAFramedRecordingIsTheSame(t *testing.T) {
	records, want := recordOwn(t)
	var framed []port.Record
	for _, rec := range records {
		frame := appendFrame(nil, rec.Data)
		half := len(frame) / 2
		framed = append(framed, port.Record{Offset: rec.Offset, Direction: port.FromDevice, Data: frame[:half]},
			port.Record{Offset: rec.Offset, Direction: port.FromDevice, Data: frame[half:]})
	}
	if r := newReplay(t, ReplayOptions{Records: framed}); !maps.Equal(r.Recorded(), want) {
		t.Errorf("%v, want %v", r.Recorded(), want)
	}
}

func TestTheRecordingPacesTheReplay(t *testing.T) {
	records, _ := recordOwn(t)
	normal, n := newReplay(t, ReplayOptions{Records: records}).Length()
	fast, _ := newReplay(t, ReplayOptions{Records: records, Speed: 10}).Length()
	if normal < 7*time.Second || normal > 10*time.Second || fast != normal/10 || n < 30 {
		t.Errorf("%v for %d results, ten times as fast %v", normal, n, fast)
	}
	for i := range records {
		records[i].Offset = 0 // a recording without times
	}
	if bare, _ := newReplay(t, ReplayOptions{Records: records}).Length(); bare < 7*time.Second || bare > 10*time.Second {
		t.Errorf("by relative times %v", bare)
	}
}

func TestALoopBeginsAgainWithAnotherAssociation(t *testing.T) {
	records, want := recordOwn(t)
	r := newReplay(t, ReplayOptions{Records: records, Loop: true, Speed: 5})
	_, c := playTo(t, r)
	first := r.Counts()
	if first.Associations != 1 || !maps.Equal(first.Numerics, want) {
		t.Fatalf("%+v", first)
	}
	c.dev.receive(c.now, connectPDU(t))
	c.wait(time.Second)
	c.send(eventResult(r.invoke))
	c.send(pollExtPDU(0x0701, 71, classNumeric, groupValue, time.Hour))
	c.wait(6 * time.Second)
	if n := r.Counts(); n.Associations != 2 || n.Numerics[0x4182] != 2*want[0x4182] {
		t.Errorf("%+v", n)
	}
}

func TestOnlyWhatIsAskedForIsPlayed(t *testing.T) {
	records, _ := recordOwn(t)
	r := newReplay(t, ReplayOptions{Records: records})
	c := &client{tb: t, dev: &player{r: r}, now: start}
	c.send(connectPDU(t))
	c.wait(time.Second)
	c.send(eventResult(r.invoke))
	c.taken()
	c.send(pollPDU(5, 9, classNumeric, groupAll)) // once
	for range 8 {
		c.wait(time.Second)
		c.send(pollPDU(1, 1, classAlarms, groupStatic)) // the recording has no alarms: empty results
	}
	sets := 0
	for _, d := range c.results() {
		switch {
		case d.class == classNumeric && d.op == opResult:
			sets++
		case d.class == classAlarms && (len(d.objects) != 0 || d.group != groupStatic):
			t.Errorf("made-up alarms: %+v", d)
		case d.class != classNumeric && d.class != classAlarms:
			t.Errorf("class %04X, which was not asked for", d.class)
		}
	}
	if sets != 1 {
		t.Errorf("%d results of one single poll", sets)
	}
	c.send(getPDU(6, attrWaveList))
	c.send(setPDU(cmdConfirmedSet, 7, attrWaveList, labelPleth))
	c.send(getPDU(8, 0x0921))
	c.wait(time.Second)
	got := c.taken()
	lists := [][]byte{
		listAnswer(6, cmdGet, []attribute{{id: attrWaveList, value: appendLabels(nil, []uint32{labelLead2, labelPleth})}}),
		listAnswer(7, cmdConfirmedSet, []attribute{{id: attrWaveList, value: appendLabels(nil, []uint32{labelPleth})}}),
	}
	if len(got) < 4 || !slices.ContainsFunc(got, func(o outgoing) bool { return bytes.Equal(o.pdu, lists[0]) }) ||
		!slices.ContainsFunc(got, func(o outgoing) bool { return bytes.Equal(o.pdu, lists[1]) }) || r.Counts().Errors != 1 {
		t.Errorf("priority lists: %d answers", len(got))
	}
}

func TestARecordingWithoutASessionIsRefused(t *testing.T) {
	records, _ := recordOwn(t)
	without := func(drop func([]byte) bool) []port.Record {
		return slices.DeleteFunc(slices.Clone(records), func(r port.Record) bool { return drop(r.Data) })
	}
	for want, o := range map[string]ReplayOptions{
		"no MDS create event": {Records: without(isCreateEvent)},
		"no poll result":      {Records: without(func(b []byte) bool { _, err := parseReply(b); return err == nil })},
		"negative":            {Records: records, Speed: -1},
	} {
		if _, err := NewReplay(o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

// TestTheSharedSessionArrivesWhole plays the session of the real monitor.
func TestTheSharedSessionArrivesWhole(t *testing.T) {
	records := recordedSession(t)
	var real []decoded
	for _, rec := range records {
		if d, ok := decodePoll(t, rec.Data); ok && rec.Direction == port.FromDevice && d.action == actionPollExt {
			real = append(real, d)
		}
	}
	r := newReplay(t, ReplayOptions{Records: records})
	list, _ := playTo(t, r)
	var played []decoded
	for _, d := range list {
		if d.action == actionPollExt {
			played = append(played, d)
		}
	}
	if len(played) != len(real) {
		t.Fatalf("%d results, recorded %d", len(played), len(real))
	}
	for i, d := range played {
		// All objects of the recorded result, at its relative time.
		if d.class != real[i].class || d.relative != real[i].relative || d.size != real[i].size || len(d.objects) != len(real[i].objects) {
			t.Errorf("result %d: %d objects of class %04X at %d, recorded %d of %04X at %d", i,
				len(d.objects), d.class, d.relative, len(real[i].objects), real[i].class, real[i].relative)
		}
		for k, o := range d.objects {
			if !maps.EqualFunc(o.attrs, real[i].objects[k].attrs, bytes.Equal) {
				t.Errorf("result %d: object %d differs", i, k)
			}
		}
	}
	// Three results of all numerics and fifteen of their values, each with one HR.
	if got := r.Counts().Numerics[0x4182]; got != 18 || !maps.Equal(r.Counts().Numerics, r.Recorded()) {
		t.Errorf("HR %d times of %v", got, r.Recorded())
	}
}

func TestAReplayServesAStream(t *testing.T) {
	records, want := recordOwn(t)
	synctest.Test(t, func(t *testing.T) {
		r := newReplay(t, ReplayOptions{Records: records, Speed: 3})
		ours, theirs := net.Pipe()
		ctx, cancel := context.WithCancel(t.Context())
		served := make(chan error, 1)
		go func() { served <- r.ServeStream(ctx, theirs) }()
		c := newStreamClient(t, ours)
		c.associate()
		c.send(pollExtPDU(0x0701, 71, classNumeric, groupValue, time.Hour))
		<-r.Done()
		synctest.Wait()
		if got := r.Counts().Numerics; !maps.Equal(got, want) {
			t.Errorf("%v, want %v", got, want)
		}
		time.Sleep(11 * time.Second) // made-up time
		if got := c.taken(); !slices.ContainsFunc(got, first(spduAbort)) || r.Counts().Timeouts != 1 {
			t.Error("a silent client does not time out")
		}
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
		ours.Close()
		<-c.done
	})
}

func TestAReplayServesALAN(t *testing.T) {
	records, _ := recordOwn(t)
	r := newReplay(t, ReplayOptions{Records: records, Speed: 50, AcceptDelay: time.Millisecond, LeadIn: time.Millisecond})
	socket := listen(t)
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- r.ServePacket(ctx, socket) }()
	a := &datagrams{t, listen(t), socket.LocalAddr()}
	defer a.conn.Close()
	a.send(connectPDU(t))
	a.await("create event", isCreateEvent)
	a.send(eventResult(r.invoke))
	a.send(pollExtPDU(0x0701, 71, classNumeric, groupValue, time.Hour))
	a.await("numerics", isClass(classNumeric))
	<-r.Done()
	cancel()
	if err := <-served; err != nil {
		t.Error(err)
	}
}

// FuzzReplay plays recordings that are damaged in any way.
func FuzzReplay(f *testing.F) {
	records, _ := recordOwn(f)
	for _, rec := range records[:12] {
		f.Add(rec.Data, uint8(0))
		f.Add(appendFrame(nil, rec.Data), uint8(1))
	}
	head := records[:3]
	f.Fuzz(func(t *testing.T, b []byte, at uint8) {
		list := slices.Insert(slices.Clone(head), int(at)%len(head), port.Record{Direction: port.FromDevice, Data: b})
		list = append(list, records[3:8]...)
		r, err := NewReplay(ReplayOptions{Records: list, MaxGap: time.Second})
		if err != nil {
			return
		}
		c := &client{tb: t, dev: &player{r: r}, now: start}
		c.send(connectPDU(t))
		c.wait(time.Second)
		c.send(eventResult(r.invoke))
		c.send(pollExtPDU(1, 1, classNumeric, groupValue, time.Hour))
		c.send(b)
		c.wait(5 * time.Second)
	})
}

func TestAPollForMeaningTakesOneResultAndNoValueComesTwice(t *testing.T) {
	records, want := recordOwn(t)
	r := newReplay(t, ReplayOptions{Records: records})
	c := &client{tb: t, dev: &player{r: r}, now: start}
	c.send(connectPDU(t))
	c.wait(time.Second)
	c.send(eventResult(r.invoke))
	c.send(pollPDU(0x10, 1, classNumeric, groupAll))
	c.send(pollExtPDU(0x11, 2, classNumeric, groupValue, time.Hour))
	for range 12 {
		c.wait(time.Second)
		c.send(pollPDU(1, 1, classMDS, groupProduct))
	}
	labels, others := 0, 0
	for _, d := range c.results() {
		switch d.invoke {
		case 0x10:
			for _, o := range d.objects {
				if o.attrs[attrLabel] != nil {
					labels++
				}
			}
		case 0x11:
			others++
		}
	}
	if labels != len(numericObjects(false)) || others < 6 || !maps.Equal(r.Counts().Numerics, want) {
		t.Errorf("%d labels, then %d results; %v, recorded %v", labels, others, r.Counts().Numerics, want)
	}
}
