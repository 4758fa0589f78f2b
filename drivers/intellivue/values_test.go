package intellivue

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bedside-gateway/gatewayd/drivers"
	"github.com/bedside-gateway/gatewayd/mdc"
	"github.com/bedside-gateway/gatewayd/observation"
)

// live is a rig that has asked for a class, with the invocation to answer.
func live(t *testing.T, options map[string]string, class uint16) (*rig, reply) {
	r := datagramRig(t, options)
	r.associate(usualProfile(), 80_000)
	q := r.polled(class, true)
	r.reports = nil
	return r, reply{invoke: q.invoke, extended: true, class: class, group: groupValues, rel: r.relNow(80_000)}
}

func (p reply) with(items ...item) reply { p.items = items; return p }

func (p reply) linked(state, count uint8) reply { p.link = [2]uint8{state, count}; return p }

func heartRate(handle uint16, v uint32) item {
	return item{1, handle, attrs(numericAttr(0x4182, 0, 0x0AA0, v))}
}

func numbers(r *rig) (s []string) {
	for _, o := range r.observations() {
		s = append(s, fmt.Sprintf("%v %s", o.Code, o.Value.Number))
	}
	return s
}

func TestLinkedResultsAreOneReportOnceTheyAreWhole(t *testing.T) {
	r, p := live(t, nil, classNumeric)
	r.receive(p.with(heartRate(1, 61)).linked(1, 1).bytes())
	// Another answer comes in between.
	other := r.m.tasks[0]
	r.receive(reply{invoke: other.invoke, class: classMDS, rel: p.rel, items: []item{{0, 0, mdsAttributes(0x4000, p.rel, shownAtCreate)}}}.bytes())
	// The context goes on in the next part, and so does the object of handle 1.
	r.receive(p.with(item{1, 1, attrs(specAttr(5, 0, 0))}, item{1, 2, attrs(numericAttr(0x4BB8, 0, 0x0220, 0xFF0003B6))}).linked(2, 2).bytes())
	r.receive(p.with(item{0, 1, attrs(numericAttr(0x4A17, 0, 0x0F20, 91))}).linked(3, 3).bytes())
	if n := len(r.observations()); n != 0 {
		t.Fatalf("%d values before the answer is whole", n)
	}
	r.receive(p.bytes()) // the closing result, here an empty one
	want := []string{"MDC_ECG_CARD_BEAT_RATE 61", "MDC_PULS_OXIM_SAT_O2 95.0", "MDC_PRESS_BLD_ART_ABP_MEAN 91"}
	if got := numbers(r); !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if o := r.observations(); len(o) == 3 && (o[0].Method != observation.MethodCalculated || o[1].Method != observation.MethodMeasured) {
		t.Error("what a later part says of an object does not count for it, or for others too")
	}
	r.reports = nil
	r.receive(p.with(heartRate(1, 62)).linked(1, 1).bytes())
	r.receive(p.with(heartRate(2, 63)).linked(3, 2).bytes())
	r.receive(p.with(heartRate(3, 64)).bytes()) // the closing one may carry values
	if got := len(numbers(r)); got != 3 || len(r.reports) != 1 {
		t.Errorf("%d values in %d reports, want 3 in 1", got, len(r.reports))
	}
}

func TestLinkedResultsThatAreNotWholeAreDropped(t *testing.T) {
	for name, parts := range map[string][][2]uint8{
		"a middle part lost":  {{1, 1}, {3, 3}, {}},
		"the first part lost": {{2, 2}, {3, 3}, {}},
		"the last part lost":  {{1, 1}, {2, 2}, {}},
		"a part twice":        {{1, 1}, {2, 2}, {2, 2}, {3, 3}, {}},
		"parts out of order":  {{1, 1}, {2, 3}, {2, 2}, {3, 4}, {}},
		"unknown state":       {{1, 1}, {7, 2}, {3, 3}, {}},
	} {
		r, p := live(t, nil, classNumeric)
		for i, link := range parts {
			r.receive(p.with(heartRate(uint16(i), 60)).linked(link[0], link[1]).bytes())
		}
		if n := len(r.observations()); n != 0 {
			t.Errorf("%s: %d values", name, n)
		}
		if r.counts[drivers.FrameUnexpected] == 0 {
			t.Errorf("%s: not counted: %v", name, r.counts)
		}
		r.receive(p.with(heartRate(1, 60)).bytes())
		if n := len(r.observations()); n != 1 {
			t.Errorf("%s: the next answer gave %d values", name, n)
		}
	}
	r, p := live(t, nil, classNumeric)
	r.receive(p.with(heartRate(1, 1)).linked(1, 1).bytes())
	r.receive(p.with(heartRate(1, 2)).linked(1, 1).bytes()) // a new first
	r.receive(p.with(heartRate(2, 3)).linked(3, 2).bytes())
	r.receive(p.bytes())
	if got := numbers(r); !slices.Equal(got, []string{"MDC_ECG_CARD_BEAT_RATE 2", "MDC_ECG_CARD_BEAT_RATE 3"}) {
		t.Errorf("after a new first: %q", got)
	}
}

func TestLinkedResultsWithoutEndTakeNoMoreMemoryThanTheyMay(t *testing.T) {
	r, p := live(t, nil, classNumeric)
	big := make([]item, 60)
	for i := range big {
		big[i] = heartRate(uint16(i), 60)
	}
	for round := range 300 {
		q := p.with(big...)
		q.invoke = p.invoke
		state := uint8(2)
		if round%250 == 0 {
			state = 1
		}
		r.receive(q.linked(state, uint8(round%250+1)).bytes())
	}
	for i := range r.m.sets {
		if n := len(r.m.sets[i].buf); n > maxLinked {
			t.Errorf("set %d holds %d bytes", i, n)
		}
	}
}

func TestStatesAndSpecialNumbersBecomeFlagsAndNoNumber(t *testing.T) {
	for _, c := range []struct {
		state  uint16
		value  uint32
		status observation.Status
		number string
	}{
		{0, 60, 0, "60"},
		{0x8000, 60, observation.Invalid, "none"},
		{0x4000, 60, observation.Questionable, "60"},
		{0x2000, 60, observation.NotAvailable, "none"},
		{0x1000, 60, observation.Calibrating, "none"},
		{0x0800, 60, observation.Test, "60"},
		{0x0400, 60, observation.Demo, "60"},
		{0x0080, 60, observation.Validated, "60"},
		{0x0040, 60, observation.Early, "60"},
		{0x0020, 60, observation.Ongoing, "60"},
		{0x0003, 60, observation.AlarmActive | observation.AlarmInhibit, "60"},
		{0, 0x007FFFFF, observation.NotAvailable, "none"},
		{0, 0x00800000, observation.Invalid, "none"},
		{0, 0xFE800002, observation.Invalid, "none"},
		{0, 0x057FFFFE, observation.Invalid, "none"},
		{0x2000, 0x007FFFFF, observation.NotAvailable, "none"},
	} {
		r, p := live(t, nil, classNumeric)
		r.receive(p.with(item{1, 7, attrs(numericAttr(0x4182, c.state, 0x0AA0, c.value))}).bytes())
		o := r.observations()
		if len(o) != 1 || o[0].Status != c.status || o[0].Value.Number.String() != c.number {
			t.Errorf("state %04X, FLOAT %08X: %+v", c.state, c.value, o)
		}
		if (o[0].Value.Kind == observation.KindNone) != (c.number == "none") {
			t.Errorf("state %04X, FLOAT %08X: kind %d", c.state, c.value, o[0].Value.Kind)
		}
	}
}

func TestAValueThatGoesAwayIsSaidToBeAwayAndOneThatNeverWasIsNot(t *testing.T) {
	r, p := live(t, nil, classNumeric)
	r.receive(p.with(heartRate(1, 60), item{1, 2, attrs()}).bytes())
	r.receive(p.with(item{1, 1, attrs()}, item{1, 2, attrs()}).bytes())
	o := r.observations()
	if len(o) != 2 || o[1].Code != 147842 || o[1].Status != observation.NotAvailable || o[1].Value.Kind != observation.KindNone {
		t.Errorf("%+v", o)
	}
}

func TestCompoundsDuplicatesPrivateIdsAndUnknownUnits(t *testing.T) {
	r, p := live(t, nil, classNumeric)
	temp := func(handle uint16) item {
		return item{1, handle, attrs(numericAttr(0x4B48, 0, 0x17A0, 0xFF000172))}
	}
	r.receive(p.with(
		item{0, 1, attrs(compoundAttr(numericValue{0x4A15, 0, 0x0F20, 120}, numericValue{0x4A16, 0, 0x0F20, 70}))},
		temp(2), temp(3), item{2, 3, temp(3).list},
		item{2, 4, attrs(numericAttr(0xF0E5, 0, 0x0AA0, 61))},
		item{2, 5, attrs(numericAttr(0xF03D, 0, 0x0512, 0xFF00000C))},
		item{2, 6, attrs(numericAttr(0xF999, 0, 0xF009, 5))},
		item{2, 7, attrs(numericAttr(0x50B0, 0, 0x0F20, 38))},
		item{2, 8, attrs(numericAttr(0x4822, 0, 0x0AA0, 62))},
	).bytes())
	var got []string
	for _, o := range r.observations() {
		got = append(got, fmt.Sprintf("%v#%d %s%04X:%s %s%s %d", o.Code, o.Instance, o.Private.Vendor, o.Private.Code, o.Private.Name, o.Value.Number, o.Value.Text, o.Unit))
	}
	want := []string{
		"MDC_PRESS_BLD_ART_ABP_SYS#0 0000: 120 266016",
		"MDC_PRESS_BLD_ART_ABP_DIA#0 0000: 70 266016",
		"MDC_TEMP#0 0000: 37.0 268192",
		"MDC_TEMP#1 0000: 37.0 268192",
		"MDC_TEMP#2 0000: 37.0 268192",
		"MDC_PULS_RATE_NON_INV#0 0000: 61 264864",
		"0#0 PHILIPSF03D:NOM_ECG_AMPL_ST_INDEX 1.2 263442",
		"0#0 PHILIPSF999: none5 MM_HG_PER_SEC 0",
		"MDC_CONC_AWAY_CO2_ET#0 0000: 38 266016", // etCO2 under its current term
		"MDC_PULS_OXIM_PULS_RATE#0 0000: 62 264864",
	}
	for i := range want {
		if i >= len(got) || got[i] != want[i] {
			t.Fatalf("at %d: want %q, got\n%s", i, want[i], strings.Join(got, "\n"))
		}
	}
	if !r.noted("a unit that the nomenclature lacks: NOM_DIM_MM_HG_PER_SEC") {
		t.Errorf("notes %q", r.notes)
	}
}

func TestNewObjectsHaveTheMonitorAskedWhatTheyAre(t *testing.T) {
	r := datagramRig(t, nil)
	r.associate(usualProfile(), 80_000)
	s := r.polled(classNumeric, false)
	r.receive(reply{invoke: s.invoke, class: classNumeric, rel: 90_000, items: []item{{1, 1, attrs(specAttr(2, 0x4228, 0), numericAttr(0x4182, 0, 0x0AA0, 60))}}}.bytes())
	q := r.polled(classNumeric, true)
	beat := func(items ...item) {
		r.run(time.Second)
		r.receive(reply{invoke: q.invoke, extended: true, class: classNumeric, rel: r.relNow(80_000), items: items}.bytes())
	}
	for range 30 {
		beat(heartRate(1, 60))
	}
	if _, ok := asked(r.requests(), classNumeric, false); ok {
		t.Error("asked again though all is known")
	}
	beat(heartRate(1, 60), heartRate(9, 60))
	beat(heartRate(1, 60), heartRate(9, 60))
	if _, ok := asked(r.requests(), classNumeric, false); !ok {
		t.Error("not asked what the new object is")
	}
	if o := r.observations(); o[0].Method != observation.MethodManual {
		t.Errorf("method %v", o[0].Method)
	}
}

func TestACuffPressureHasTheTimeOfItsMeasurement(t *testing.T) {
	cuff := func(v uint32, more ...attr) item {
		return item{1, 7, attrs(append(more, numericAttr(0x4A05, 0, 0x0F20, v))...)}
	}
	t.Run("by the monitor's clock", func(t *testing.T) {
		r, p := live(t, nil, classNumeric)
		at := shownAtCreate.Add(-90 * time.Second)
		r.receive(p.with(cuff(120, attr{attrStampAbs, bcd(at)})).bytes())
		r.run(30 * time.Second / 10)
		p.rel = r.relNow(80_000)
		r.receive(p.with(cuff(120, attr{attrStampAbs, bcd(at)})).bytes())
		o := r.observations()
		want := sessionStart.Add(time.Second - 90*time.Second)
		if !o[0].Episodic || !o[0].DeviceTime.Equal(at) || o[0].Time.Sub(want).Abs() > 20*time.Millisecond {
			t.Errorf("time %v, device time %v; want %v and %v", o[0].Time, o[0].DeviceTime, want, at)
		}
		if !o[1].Time.Equal(o[0].Time) {
			t.Error("the time of one measurement moved")
		}
	})
	t.Run("by relative time", func(t *testing.T) {
		r, p := live(t, nil, classNumeric)
		r.receive(p.with(cuff(120, attr{attrStampRel, u32(uint32(p.rel - 60*8000))})).bytes())
		o := r.observations()
		if want := r.now.Add(-time.Minute); !o[0].Episodic || o[0].Time.Sub(want).Abs() > 20*time.Millisecond {
			t.Errorf("time %v, want %v", o[0].Time, want)
		}
	})
	t.Run("when it changes, if it has no time stamp", func(t *testing.T) {
		r, p := live(t, nil, classNumeric)
		one := func(v uint32) observation.Observation {
			r.reports = nil
			p.rel = r.relNow(80_000)
			r.receive(p.with(cuff(v, specAttr(1, 0x5228, 0))).bytes())
			return r.observations()[0]
		}
		first := one(120)
		r.run(3 * time.Second)
		same := one(120)
		r.run(3 * time.Second)
		next := one(130)
		if !first.Episodic || !same.Time.Equal(first.Time) || next.Time.Sub(first.Time).Round(time.Second) != 6*time.Second {
			t.Errorf("times %v, %v, %v", first.Time, same.Time, next.Time)
		}
	})
	t.Run("a time stamp that is not set is none", func(t *testing.T) {
		r, p := live(t, nil, classNumeric)
		r.receive(p.with(cuff(120, attr{attrStampAbs, []byte{255, 255, 255, 255, 255, 255, 255, 255}})).bytes())
		if o := r.observations(); o[0].Episodic {
			t.Errorf("%+v", o[0])
		}
	})
}

func TestEnumerationsAreCodesOrTheMakersWords(t *testing.T) {
	r, p := live(t, nil, classEnumeration)
	enum := func(handle, state, choice, code uint16) item {
		e := enumerationValue{physio: 0xD007, state: state, choice: choice, code: code, number: 61, unit: 0x0AA0}
		return item{1, handle, attrs(attr{attrEnumeration, e.append(nil)})}
	}
	r.receive(p.with(
		enum(1, 0, choiceCode, 0xF04B), enum(2, 0, choiceCode, 0xABCD), enum(3, stateInvalid, choiceCode, 0xABCD),
		enum(4, 0, choiceCodeNumber, 0x4182), item{1, 5, attrs()},
	).bytes())
	o := r.observations()
	if len(o) != 5 {
		t.Fatalf("%d observations: %+v", len(o), o)
	}
	if o[0].Value.Kind != observation.KindText || o[0].Value.Text != "NOM_ELECTRODE_IMPED" {
		t.Errorf("%+v", o[0].Value)
	}
	if o[1].Value.Text != "PHILIPS_ABCD" || o[1].Instance != 1 {
		t.Errorf("%+v", o[1])
	}
	if o[2].Value.Kind != observation.KindNone || o[2].Status != observation.Invalid {
		t.Errorf("%+v", o[2])
	}
	if o[3].Value.Kind != observation.KindCode || o[3].Value.Code != 147842 {
		t.Errorf("%+v", o[3].Value)
	}
	if o[4].Value.Number.String() != "61" || o[4].Code != 147842 {
		t.Errorf("%+v", o[4])
	}
}

func alarmEntry(source, code, kind, state, infoID uint16, info []byte) []byte {
	a := alarm{source: source, code: code, kind: kind, state: state, object: objectID{6, 1, 7}, infoID: infoID, info: info}
	return a.append(nil)
}

func alarmText(instance uint16, s string) []byte {
	return append(appendU16(appendU16(appendU32(u16(instance), 0x00040001), 2), 0x6000), text(s)...)
}

func TestAlarmsAreTheCompleteListsOfNow(t *testing.T) {
	r, p := live(t, nil, classAlarms)
	patient := func(entries ...[]byte) attr { return attr{attrPatientAlarms, count(entries...)} }
	technical := func(entries ...[]byte) attr { return attr{attrTechnicalAlarms, count(entries...)} }
	high := alarmEntry(0x4BB8, 0x0028, alarmPatientMedium, alarmSilenced|alarmLatched, alarmInfoText, alarmText(3, "** SpO₂ 101>100"))
	apnea := alarmEntry(0x500A, 0x0C06, alarmPatientHigh, alarmDemo, alarmInfoGeneral, alarmText(4, "")[:10])
	leads := alarmEntry(0x10A6, 0xF195, alarmTechnicalLow, alarmSuspended, alarmInfoText, alarmText(5, "ECG LEADS OFF"))
	none := alarmEntry(0x4182, 0x0028, 0, 0, alarmInfoGeneral, alarmText(0, "")[:10])
	r.receive(p.with(item{0, 9, attrs(patient(high, apnea, none), technical(leads))}).bytes())
	last := r.reports[len(r.reports)-1]
	want := []observation.Alert{
		{Code: 196648, Source: 150456, Priority: observation.PriorityMedium, Text: "** SpO₂ 101>100", Silenced: true, Latched: true, Instance: 3},
		{Code: 199686, Source: 151562, Priority: observation.PriorityHigh, Status: observation.Demo, Instance: 4},
		{Private: observation.Private{Vendor: "PHILIPS", Code: 0xF194, Name: "NOM_EVT_LEADS_DISCONN"}, Source: 69798, Priority: observation.PriorityLow,
			Technical: true, Text: "ECG LEADS OFF", Inhibited: true, Instance: 5},
	}
	if !last.HasAlerts || !slices.Equal(last.Alerts, want) {
		for i, a := range last.Alerts {
			t.Errorf("%d: %+v", i, a)
		}
	}
	// A list that does not come stays; one that comes empty has ended its alarms.
	r.receive(p.with(item{0, 9, attrs(patient())}).bytes())
	last = r.reports[len(r.reports)-1]
	if !last.HasAlerts || len(last.Alerts) != 1 || !last.Alerts[0].Technical {
		t.Errorf("%+v", last.Alerts)
	}
	r.receive(p.with(item{0, 9, attrs(technical())}).bytes())
	last = r.reports[len(r.reports)-1]
	if !last.HasAlerts || len(last.Alerts) != 0 {
		t.Errorf("%+v", last.Alerts)
	}
}

func TestAlarmsThatNobodyToldAreNotSaidToHaveEnded(t *testing.T) {
	r, p := live(t, nil, classAlarms)
	r.receive(p.with(item{0, 9, attrs()}).bytes())
	if r.reports[len(r.reports)-1].HasAlerts {
		t.Error("an answer without lists was taken for empty lists")
	}
}

func TestDemographicsReachTheReportAndNothingElse(t *testing.T) {
	r := datagramRig(t, nil)
	r.associate(usualProfile(), 80_000)
	q := r.polled(classPatient, false)
	fields := map[uint16][]byte{
		attrPatientState: u16(2), attrPatientType: u16(3), attrSex: u16(2), attrPatientID: text("PID-Ä1"),
		attrGivenName: text("Zoë"), attrMiddleName: text("Q"), attrFamilyName: text("Müller😀"),
		attrBirth:  {0x19, 0x84, 0x02, 0x29, 0, 0, 0, 0},
		attrHeight: appendU16(u32(0x000000AA), 0x0511), attrWeight: appendU16(u32(0xFF0002A3), 0x06C3),
	}
	var list []attr
	for id, v := range fields {
		list = append(list, attr{id, v})
	}
	r.receive(reply{invoke: q.invoke, class: classPatient, group: groupPatient, rel: 90_000, items: []item{{0, 80, attrs(list...)}}}.bytes())
	p := r.reports[len(r.reports)-1].Patient
	if p == nil || p.ID.Reveal() != "PID-Ä1" || p.Given.Reveal() != "Zoë" || p.Middle.Reveal() != "Q" || p.Family.Reveal() != "Müller😀" ||
		p.Born.Reveal() != "19840229" || p.Sex != observation.SexFemale || p.Admission != observation.Admitted || p.Category != observation.Neonatal {
		t.Fatalf("%+v", p)
	}
	if p.Height.Number.String() != "170" || p.Height.Unit != 263441 || p.Weight.Number.String() != "67.5" || p.Weight.Unit != 263875 {
		t.Errorf("height %v, weight %v", p.Height, p.Weight)
	}
	if s := fmt.Sprintf("%v %q", r.reports, r.notes); strings.Contains(s, "Zo") || strings.Contains(s, "1984") || strings.Contains(s, "PID-") {
		t.Error("the patient shows in what is printed")
	}
	// The next word of the monitor replaces all of it.
	r.receive(reply{invoke: q.invoke, class: classPatient, group: groupPatient, rel: 90_000, items: []item{{0, 80, attrs(attr{attrPatientState, u16(0)})}}}.bytes())
	if p := r.reports[len(r.reports)-1].Patient; p == nil || !p.Family.Empty() || p.Admission != observation.NotAdmitted {
		t.Errorf("after the discharge: %+v", p)
	}
}

func TestAMonitorInDemonstrationModeMarksEverything(t *testing.T) {
	for mode, want := range map[uint16]observation.Status{0x2000: observation.Demo, 0x6000: observation.Demo, 0x1000: observation.Test, 0x4000: 0} {
		r, p := live(t, nil, classNumeric)
		m := r.m.tasks[0]
		r.receive(reply{invoke: m.invoke, class: classMDS, rel: p.rel, items: []item{{0, 0, mdsAttributes(mode, p.rel, shownAtCreate)}}}.bytes())
		r.receive(p.with(heartRate(1, 60)).bytes())
		q := r.polled(classAlarms, true)
		r.receive(reply{invoke: q.invoke, extended: true, class: classAlarms, rel: p.rel, items: []item{{0, 9, attrs(attr{attrPatientAlarms,
			count(alarmEntry(0x4BB8, 0x0028, alarmPatientMedium, 0, alarmInfoGeneral, alarmText(3, "")[:10]))})}}}.bytes())
		last := r.reports[len(r.reports)-1]
		if o := r.observations(); o[0].Status != want || last.Alerts[0].Status != want {
			t.Errorf("mode %04X: value %v, alarm %v, want %v", mode, o[0].Status, last.Alerts[0].Status, want)
		}
	}
}

func TestRelativeTimeGoesOnOverItsWrap(t *testing.T) {
	var c clock
	now := sessionStart
	const start = relativeTime(0xFFFFFFFF - 3*8000)
	at, _ := c.see(now, start)
	c.pair(at, shownAtCreate)
	for i := range 10 {
		now = now.Add(time.Second)
		at, restarted := c.see(now, start+relativeTime((i+1)*8000))
		if restarted || at.duration() != time.Duration(i+1)*time.Second {
			t.Errorf("after %d s: %v, restarted %v", i+1, at.duration(), restarted)
		}
		if got := c.device(at); !got.Equal(shownAtCreate.Add(time.Duration(i+1) * time.Second)) {
			t.Errorf("after %d s the monitor shows %v", i+1, got)
		}
		if got := c.gateway(now, at); now.Sub(got) > 10*time.Millisecond {
			t.Errorf("after %d s: %v old", i+1, now.Sub(got))
		}
	}
}

func TestTheClockFollowsDriftDelayRestartAndSetting(t *testing.T) {
	var c clock
	now := sessionStart
	base := now
	for i := range 4000 { // 4000 s, the monitor's clock 200 ppm slow, up to 90 ms on the way
		rel := relativeTime(float64(i) * 8000 * 0.9998)
		now = base.Add(time.Duration(i)*time.Second + time.Duration(i*37%90)*time.Millisecond)
		at, _ := c.see(now, rel)
		true_ := base.Add(time.Duration(i) * time.Second)
		if d := c.gateway(now, at).Sub(true_); d < -5*time.Millisecond || d > 95*time.Millisecond {
			t.Fatalf("after %d s the time is %v off", i, d)
		}
	}
	at, _ := c.see(now, c.last)
	c.pair(at, shownAtCreate)
	c.pair(at, shownAtCreate.Add(-time.Hour))
	if got := c.device(at); !got.Equal(shownAtCreate.Add(-time.Hour)) {
		t.Errorf("a clock that was set back shows %v", got)
	}
	if _, restarted := c.see(now.Add(time.Minute), 8000); !restarted {
		t.Error("a restart was not seen")
	}
	if _, ok := c.fromDevice(now, shownAtCreate); ok {
		t.Error("what the clock showed outlived the restart")
	}
}

func TestTextsAreBoundedAndHaveNoControlCharacters(t *testing.T) {
	if s, ok := parseText(text(strings.Repeat("é", 1000))); !ok || s != strings.Repeat("é", maxText) {
		t.Errorf("a text of %d bytes, %v", len(s), ok)
	}
	if _, ok := parseText([]byte{0, 3, 'a', 0, 'b'}); ok {
		t.Error("half a character was accepted")
	}
	if got := ascii([]byte("M8\x1b[0m\n003A  \x00rest")); got != "M8[0m003A" {
		t.Errorf("%q", got)
	}
	if got := ascii([]byte(strings.Repeat("x", 1000))); len(got) != maxText {
		t.Errorf("%d characters", len(got))
	}
}

func TestDatesThatAreNoneAreNone(t *testing.T) {
	for text, want := range map[string]string{
		"2017110414445100": "2017-11-04T14:44:51Z",
		"20171104144451ff": "2017-11-04T14:44:51Z",
		"2016022923595999": "2016-02-29T23:59:59.99Z",
		"ffffffffffffffff": "", "0000000000000000": "", "2017022914445100": "", "2017130114445100": "",
		"2017110424000000": "", "201711041a000000": "",
	} {
		got := ""
		if v, ok := absoluteTime(unhex(t, text)).time(); ok {
			got = v.Format(time.RFC3339Nano)
		}
		if got != want {
			t.Errorf("%s is %q, want %q", text, got, want)
		}
	}
}

func TestPrivateCodesAndUnitsAreTranslatedToWhatTheyMean(t *testing.T) {
	for id, want := range map[uint16]mdc.Code{
		0x4182: 147842, 0x4BB8: 150456, 0x4822: 149530, 0x4A05: 150021, 0x4A11: 150033, 0x4A15: 150037, 0x4A47: 150087,
		0x500A: 151562, 0x5012: 151570, 0x4B48: 150344, 0x50B0: 151708, 0x50BA: 151738, 0x580B: 153611, 0xF0E5: 149546,
		0xE014: 188436, 0xF999: 0, 0x034B: 0,
	} {
		got := metricTerm(id)
		if got.code != want || (want == 0) != (got.private.Vendor == vendor && got.private.Code == uint32(id)) {
			t.Errorf("%04X is %+v, want %d", id, got, want)
		}
	}
	for id, want := range map[uint16]mdc.Code{0x0AA0: 264864, 0x0220: 262688, 0x0F20: 266016, 0x0AE0: 264928, 0x17A0: 268192, 0x0512: 263442, 0xF00A: 265202} {
		if got, known := unitCode(id); got != want || !known {
			t.Errorf("unit %04X is %v, known %v, want %v", id, got, known, want)
		}
	}
	for _, id := range []uint16{0x02A0, 0x02C0, 0xF009, 0xFFFF} {
		if _, known := unitCode(id); known {
			t.Errorf("unit %04X is said to be known", id)
		}
	}
}
