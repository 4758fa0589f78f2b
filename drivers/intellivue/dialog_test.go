package intellivue

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bedside-gateway/gatewayd/drivers"
)

func isConnect(p []byte) bool { return len(p) > 0 && p[0] == spduConnect }

func TestAnAssociationBeginsWithAReleaseAndIsAskedForUntilThereIsAnAnswer(t *testing.T) {
	for _, datagrams := range []bool{true, false} {
		r := newRig(t, drivers.Settings{Datagrams: datagrams})
		if err := r.m.Start(r.now); err != nil {
			t.Fatal(err)
		}
		r.run(9 * time.Second)
		sent := r.take()
		if len(sent) != 6 || !bytes.Equal(sent[0], releaseRequest) {
			t.Fatalf("sent %d messages in 9 s, the first %x; want a release and 5 association requests", len(sent), sent[0])
		}
		for _, p := range sent[1:] {
			if !isConnect(p) {
				t.Errorf("sent %x, want an association request", p)
			}
		}
		if r.state != drivers.Associating {
			t.Errorf("state %v", r.state)
		}
	}
}

func TestTheAnswerToTheReleaseBringsTheAssociationRequestAtOnce(t *testing.T) {
	r := datagramRig(t, nil)
	if err := r.m.Start(r.now); err != nil {
		t.Fatal(err)
	}
	r.take()
	r.receive(releaseResponse)
	r.run(0)
	if sent := r.take(); len(sent) != 1 || !isConnect(sent[0]) {
		t.Errorf("sent %x", sent)
	}
}

func TestTheRequestIsThatOfAClientInTheFieldButForTheProposal(t *testing.T) {
	want := fieldRequests(t, "requests-vscapturemp.txt")["aarq_msg_wave_ext_poll2"]
	got := appendConnect(nil, pollProfile{
		revision: pollRevision1, minPeriod: 0x0FA0, maxReceive: 0x05B0, maxSend: 0x05B0, bandwidth: 0xFFFFFFFF,
		options: dynamicObjects, extended: true, extOptions: 0x8E000000,
	})
	// They list the classes in another order.
	w, err1 := parseSPDU(want)
	g, err2 := parseSPDU(got)
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	if len(got) != len(want) || !bytes.Equal(g.header, w.header) || !bytes.Equal(g.items, w.items) || !bytes.Equal(g.trailer, w.trailer) {
		t.Errorf("\n%x, want\n%x", got, want)
	}
	a, _ := g.info.profiles.find(profilePoll)
	b, _ := w.info.profiles.find(profilePoll)
	if !bytes.Equal(a, b) {
		t.Errorf("poll profile %x, want %x", a, b)
	}
}

func TestTheMonitorsWordOfItselfIsAnsweredAndPollsFollow(t *testing.T) {
	r := datagramRig(t, map[string]string{"waves": "off"})
	if err := r.m.Start(r.now); err != nil {
		t.Fatal(err)
	}
	r.run(time.Second)
	r.take()
	r.receive(acceptOf(usualProfile()))
	r.run(time.Second)
	if sent := r.take(); len(sent) > 0 {
		t.Fatalf("sent %x before the monitor said what it is", sent)
	}
	r.receive(createEvent(0x1234, 80_000, mdsAttributes(0x4000, 80_000, shownAtCreate)))
	sent := r.take()
	want := unhex(t, "e1000002 0002 0014 1234 0001 000e 0021 0000 0000 00013880 0d06 0000")
	if len(sent) == 0 || !bytes.Equal(sent[0], want) {
		t.Fatalf("sent %x, want first %x", sent, want)
	}
	last := time.Time{}
	var list []request
	const step = 5 * time.Millisecond
	for range 500 {
		r.run(step)
		for _, q := range r.requests() {
			if r.now.Sub(last) < pacing-step {
				t.Errorf("two requests within %v", r.now.Sub(last))
			}
			last = r.now
			list = append(list, q)
		}
	}
	for _, w := range []struct {
		class    uint16
		extended bool
	}{{classMDS, false}, {classNumeric, false}, {classPatient, false}, {classNumeric, true}, {classAlarms, true}, {classEnumeration, true}} {
		q, ok := asked(list, w.class, w.extended)
		if !ok {
			t.Errorf("class %04X was not asked for", w.class)
		}
		if period, ok := q.poll.list.find(attrPollPeriod); w.extended && (!ok || !bytes.Equal(period, u32(10*60*8000))) {
			t.Errorf("class %04X: lifetime %x, want ten minutes", w.class, period)
		}
	}
	if _, ok := asked(list, classWave, true); ok {
		t.Error("waves were asked for though they are off")
	}
	if !r.noted("156.25ms") || !r.noted("1456 bytes") {
		t.Errorf("what was agreed is not noted: %q", r.notes)
	}
	if r.m.device.ID != 0x0009FBFFFE010203 || r.m.device.BedLabel != "BED 4" {
		t.Errorf("device %+v", r.m.device)
	}
}

func TestARepeatedWordIsAnsweredAgainAndChangesNothing(t *testing.T) {
	r := datagramRig(t, nil)
	r.associate(usualProfile(), 80_000)
	r.polled(classNumeric, true)
	tasks := r.m.tasks
	r.receive(createEvent(9, 80_000, mdsAttributes(0x4000, 80_000, shownAtCreate)))
	if sent := r.take(); len(sent) != 1 || sent[0][8] != 0 || sent[0][9] != 9 {
		t.Errorf("sent %x, want the result for invocation 9", sent)
	}
	if !slices.Equal(tasks, r.m.tasks) {
		t.Error("the polls began anew")
	}
}

func TestAnEventOfAnotherObjectIsNotAnswered(t *testing.T) {
	r := datagramRig(t, nil)
	r.associate(usualProfile(), 80_000)
	p := createEvent(9, 80_000, mdsAttributes(0x4000, 80_000, shownAtCreate))
	p[14] = 0x57 // the object that the event is of
	r.receive(p)
	if sent := r.take(); len(sent) > 0 || r.counts[drivers.FrameMalformed] != 1 {
		t.Errorf("sent %x, counted %v", sent, r.counts)
	}
}

func TestALostAcceptIsMadeUpForByTheMonitorsWordOfItself(t *testing.T) {
	r := datagramRig(t, nil)
	if err := r.m.Start(r.now); err != nil {
		t.Fatal(err)
	}
	r.run(time.Second)
	r.receive(createEvent(1, 80_000, mdsAttributes(0x4000, 80_000, shownAtCreate)))
	r.polled(classNumeric, true)
}

func TestARefusedAssociationIsAskedForSlowly(t *testing.T) {
	r := datagramRig(t, nil)
	if err := r.m.Start(r.now); err != nil {
		t.Fatal(err)
	}
	r.run(time.Second)
	for i := range 10 {
		r.take()
		r.receive(refusal)
		r.run(9900 * time.Millisecond)
		if sent := r.take(); len(sent) > 0 {
			t.Fatalf("refusal %d: asked again within 10 s", i+1)
		}
		r.run(21 * time.Second)
		if sent := r.take(); len(sent) == 0 || !isConnect(sent[0]) {
			t.Fatalf("refusal %d: not asked again within 31 s", i+1)
		}
	}
	if !r.noted("refuses the association") {
		t.Errorf("notes %q", r.notes)
	}
	if len(r.notes) != 1 {
		t.Errorf("%d notes, want one: %q", len(r.notes), r.notes)
	}
	if r.counts[drivers.FrameRefused] != 10 {
		t.Errorf("counted %v", r.counts)
	}
}

func TestASilentMonitorIsProbedThenGivenUpAndAskedAnew(t *testing.T) {
	r := datagramRig(t, nil)
	r.associate(usualProfile(), 80_000)
	r.m.lastIn = r.now
	r.run(9900 * time.Millisecond)
	polls := 0
	for _, q := range r.requests() {
		if q.poll.class == classMDS {
			polls++
		}
	}
	if polls < 2 {
		t.Errorf("%d polls of the monitor itself while it was silent", polls)
	}
	r.run(200 * time.Millisecond)
	if sent := r.take(); len(sent) == 0 || !bytes.Equal(sent[len(sent)-1], abortRequest) {
		t.Fatalf("after 10 s of silence sent %x, want an abort", sent)
	}
	r.run(2 * time.Second)
	if sent := r.take(); len(sent) != 1 || !isConnect(sent[0]) {
		t.Fatalf("then sent %x, want an association request", sent)
	}
	// The monitor was switched off and on: its time and its handles begin anew.
	r.receive(acceptOf(usualProfile()))
	r.receive(createEvent(1, 400, mdsAttributes(0x4000, 400, shownAtCreate)))
	if len(r.m.objects) != 0 || r.m.phase != associated {
		t.Errorf("phase %d, %d objects", r.m.phase, len(r.m.objects))
	}
}

func TestAnAcceptOutOfTheBlueBeginsAnew(t *testing.T) {
	r := datagramRig(t, nil)
	r.associate(usualProfile(), 80_000)
	q := r.polled(classNumeric, true)
	r.receive(reply{invoke: q.invoke, extended: true, class: classNumeric, rel: 90_000, items: []item{{1, 7, attrs(numericAttr(0x4182, 0, 0x0AA0, 60))}}}.bytes())
	r.run(3 * time.Second)
	r.receive(acceptOf(usualProfile()))
	if r.m.phase != accepted || len(r.m.objects) != 0 {
		t.Errorf("phase %d, %d objects", r.m.phase, len(r.m.objects))
	}
	r.receive(acceptOf(usualProfile())) // the answer to a repeated request
	if r.counts[drivers.FrameUnexpected] != 1 {
		t.Errorf("counted %v", r.counts)
	}
}

func TestResultsBeforeTheMonitorSaidWhatItIsAreOfAnEarlierAssociation(t *testing.T) {
	r := datagramRig(t, nil)
	if err := r.m.Start(r.now); err != nil {
		t.Fatal(err)
	}
	p := reply{invoke: 1, extended: true, class: classNumeric, items: []item{heartRate(1, 60)}}.bytes()
	r.receive(p)
	r.run(time.Second)
	r.receive(p)
	r.receive(acceptOf(usualProfile()))
	r.receive(p)
	if len(r.reports) != 0 || r.counts[drivers.FrameUnexpected] != 3 {
		t.Errorf("%d reports, counted %v", len(r.reports), r.counts)
	}
}

func TestAnAcceptThatWasNotAskedForIsIgnored(t *testing.T) {
	r := datagramRig(t, nil)
	if err := r.m.Start(r.now); err != nil {
		t.Fatal(err)
	}
	r.receive(acceptOf(usualProfile()))
	if r.m.phase != idle || r.counts[drivers.FrameUnexpected] != 1 {
		t.Errorf("phase %d, counted %v", r.m.phase, r.counts)
	}
}

func TestAnAssociationOfAnotherVersionIsAborted(t *testing.T) {
	r := datagramRig(t, nil)
	if err := r.m.Start(r.now); err != nil {
		t.Fatal(err)
	}
	r.run(time.Second)
	r.take()
	p := acceptOf(usualProfile())
	i := bytes.Index(p, []byte{0x80, 0, 0, 0, 0x40, 0, 0, 0})
	p[i] = 0x40
	r.receive(p)
	if sent := r.take(); len(sent) != 1 || !bytes.Equal(sent[0], abortRequest) || r.m.phase != idle {
		t.Errorf("sent %x, phase %d", sent, r.m.phase)
	}
}

func TestBothSidesMayRelease(t *testing.T) {
	r := datagramRig(t, nil)
	r.associate(usualProfile(), 80_000)
	r.m.Stop(r.now)
	if sent := r.take(); len(sent) != 1 || !bytes.Equal(sent[0], releaseRequest) {
		t.Errorf("Stop sent %x, want a release", sent)
	}

	r = datagramRig(t, nil)
	r.associate(usualProfile(), 80_000)
	if err := r.m.Receive(r.now, releaseRequest); !errors.Is(err, drivers.ErrDeviceClosed) {
		t.Errorf("the monitor's release gave %v", err)
	}
	if sent := r.take(); len(sent) != 1 || !bytes.Equal(sent[0], releaseResponse) {
		t.Errorf("the monitor's release was answered by %x", sent)
	}
}

func TestAnAbortOfTheMonitorIsFollowedByASlowNewRequest(t *testing.T) {
	r := datagramRig(t, nil)
	r.associate(usualProfile(), 80_000)
	r.receive(abortRequest)
	r.run(9900 * time.Millisecond)
	if sent := r.take(); len(sent) > 0 {
		t.Errorf("sent %x within 10 s of an abort", sent)
	}
	r.run(200 * time.Millisecond)
	if sent := r.take(); len(sent) != 1 || !isConnect(sent[0]) {
		t.Errorf("sent %x", sent)
	}
	if r.state != drivers.Associating || !r.noted("aborted") {
		t.Errorf("state %v, notes %q", r.state, r.notes)
	}
}

func TestASubscriptionIsRenewedInTimeAndHandsOverWithoutDoubles(t *testing.T) {
	r := datagramRig(t, map[string]string{"poll_lifetime": "20s"})
	r.associate(usualProfile(), 80_000)
	first := r.polled(classNumeric, true)
	began := r.now
	beat := func(invoke uint16) {
		r.receive(reply{invoke: invoke, extended: true, class: classNumeric, rel: r.relNow(80_000), items: []item{{1, 7, attrs(numericAttr(0x4182, 0, 0x0AA0, 60))}}}.bytes())
	}
	var second request
	for second.invoke == 0 {
		r.run(time.Second)
		beat(first.invoke)
		if q, ok := asked(r.requests(), classNumeric, true); ok {
			second = q
		}
		if r.now.Sub(began) > 19*time.Second {
			t.Fatal("not renewed within its 20 s")
		}
	}
	if r.now.Sub(began) < 12*time.Second {
		t.Errorf("renewed after %v of 20 s", r.now.Sub(began))
	}
	r.reports = nil
	beat(first.invoke) // before the new one is answered the old one counts
	beat(second.invoke)
	beat(first.invoke) // and then no longer
	if n := len(r.observations()); n != 2 {
		t.Errorf("%d values of two polls that overlap, want 2", n)
	}
}

func TestASubscriptionWithoutResultsIsAskedForAgainAndInTheEndRarely(t *testing.T) {
	r := datagramRig(t, nil)
	r.associate(usualProfile(), 80_000)
	n := 0
	for range 100 {
		r.run(time.Second)
		r.m.lastIn = r.now
		for _, q := range r.requests() {
			if q.extended && q.poll.class == classNumeric {
				n++
			}
		}
	}
	if n < 4 || n > 9 {
		t.Errorf("asked %d times in 100 s", n)
	}
	if !r.noted("does not answer when asked for numbers") {
		t.Errorf("notes %q", r.notes)
	}
}

func TestErrorsAreNotedByNameAndHandled(t *testing.T) {
	t.Run("access denied is asked again slowly", func(t *testing.T) {
		r := datagramRig(t, nil)
		r.associate(usualProfile(), 80_000)
		q := r.polled(classNumeric, true)
		r.receive(errorReply(q.invoke, errAccessDenied, nil))
		for range 9 {
			r.run(time.Second)
			r.m.lastIn = r.now
		}
		if _, ok := asked(r.requests(), classNumeric, true); ok {
			t.Error("asked again within 9 s")
		}
		r.polled(classNumeric, true)
		if !r.noted("access denied") || r.counts[drivers.FrameRefused] != 1 {
			t.Errorf("notes %q, counted %v", r.notes, r.counts)
		}
	})
	t.Run("a class that is not there is not asked for any more", func(t *testing.T) {
		r := datagramRig(t, nil)
		r.associate(usualProfile(), 80_000)
		q := r.polled(classAlarms, true)
		r.receive(errorReply(q.invoke, errNoSuchClass, nil))
		for range 60 {
			r.run(time.Second)
			r.m.lastIn = r.now
		}
		if _, ok := asked(r.requests(), classAlarms, true); ok {
			t.Error("asked again")
		}
	})
	t.Run("without extended polls each value is asked for", func(t *testing.T) {
		r := datagramRig(t, nil)
		r.associate(usualProfile(), 80_000)
		q := r.polled(classAlarms, true)
		r.receive(errorReply(q.invoke, errNoSuchAction, nil))
		r.polled(classAlarms, false)
	})
	t.Run("the monitor itself is asked all the same, for that keeps the association", func(t *testing.T) {
		r := datagramRig(t, nil)
		r.associate(usualProfile(), 80_000)
		q := r.polled(classMDS, false)
		r.receive(errorReply(q.invoke, errNoSuchInstance, nil))
		r.polled(classMDS, false)
	})
	t.Run("an error for nothing is unexpected", func(t *testing.T) {
		r := datagramRig(t, nil)
		r.associate(usualProfile(), 80_000)
		r.receive(errorReply(0x7777, errAccessDenied, nil))
		if r.counts[drivers.FrameUnexpected] != 1 {
			t.Errorf("counted %v", r.counts)
		}
	})
}

func TestAMonitorThatSendsNothingByItselfIsAskedForEachValue(t *testing.T) {
	r := datagramRig(t, nil)
	f := usualProfile()
	f.extended, f.extOptions = false, 0
	r.associate(f, 80_000)
	n := 0
	for range 20 {
		r.run(500 * time.Millisecond)
		for _, q := range r.requests() {
			if q.extended {
				t.Fatal("an extended poll was sent")
			}
			if q.poll.class == classNumeric && q.poll.group == groupValues {
				n++
				r.receive(reply{invoke: q.invoke, class: classNumeric, group: groupValues, rel: r.relNow(80_000), items: []item{{1, 7, attrs(numericAttr(0x4182, 0, 0x0AA0, 60))}}}.bytes())
			}
		}
		r.m.lastIn = r.now
	}
	if n < 3 || len(r.observations()) != n {
		t.Errorf("asked %d times in 10 s, %d values", n, len(r.observations()))
	}
}

func TestResultsOfAnotherClientDoNotCount(t *testing.T) {
	r := datagramRig(t, nil)
	r.associate(usualProfile(), 80_000)
	q := r.polled(classNumeric, true)
	values := []item{{1, 7, attrs(numericAttr(0x4182, 0, 0x0AA0, 60))}}
	r.receive(reply{invoke: q.invoke, extended: true, class: classNumeric, rel: 90_000, items: values}.bytes())
	r.receive(reply{invoke: q.invoke + 99, extended: true, class: classNumeric, rel: 90_000, items: values}.bytes())
	if len(r.observations()) != 1 || r.counts[drivers.FrameUnexpected] != 1 {
		t.Errorf("%d values, counted %v", len(r.observations()), r.counts)
	}
}

func TestAMachineIsNotWokenMoreOftenThanItNeeds(t *testing.T) {
	r := datagramRig(t, nil)
	if err := r.m.Start(r.now); err != nil {
		t.Fatal(err)
	}
	ticks := 0
	for end := r.now.Add(time.Hour); r.now.Before(end); ticks++ {
		r.now = r.m.Wake()
		if err := r.m.Tick(r.now); err != nil {
			t.Fatal(err)
		}
	}
	if ticks > 2000 {
		t.Errorf("%d ticks in an hour without an answer", ticks)
	}
}

func TestOptionsThatAreWrongAreNamed(t *testing.T) {
	for _, c := range []struct{ key, value, part string }{
		{"wave", "on", `option "wave" is unknown; there are alarms, enumerations, patient, poll_lifetime, poll_period, waves`},
		{"waves", "Elbow", `no label of the monitor is called "Elbow"`},
		{"waves", "II, II", "comes twice"},
		{"waves", "I,II,III,V", "at most 3 ECG waves and 8 others"},
		{"waves", "EEG", "no EEG"},
		{"waves", "Wave", "is the label of"},
		{"alarms", "yes", `option alarms: "yes" is neither on nor off`},
		{"patient", "1s", "no duration from 5s to 1h0m0s, or off"},
		{"poll_period", "10ms", "no duration from 125ms to 3s"},
		{"poll_lifetime", "forever", "no duration from 10s to 24h0m0s"},
	} {
		_, err := Driver{}.New(drivers.Settings{Options: map[string]string{c.key: c.value}}, nil)
		if err == nil || !strings.Contains(err.Error(), c.part) || !strings.Contains(err.Error(), c.key) {
			t.Errorf("%s = %q: %v, want it to say %q", c.key, c.value, err, c.part)
		}
	}
	o, err := parseOptions(map[string]string{"waves": "ii, 00024A14 ,Pleth", "patient": "off"})
	if err != nil || !slices.Equal(o.waveLabels, []uint32{0x20102, 0x24A14, 0x24BB4}) || !o.waves || o.patient != 0 {
		t.Errorf("%+v, %v", o, err)
	}
}
