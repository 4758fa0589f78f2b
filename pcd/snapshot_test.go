package pcd_test

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/bedside-gateway/gatewayd/mdc"
	"github.com/bedside-gateway/gatewayd/observation"
	"github.com/bedside-gateway/gatewayd/pcd"
)

func TestAnIntervalBecomesOneMessageWithTheWholeTree(t *testing.T) {
	o := options(t)
	o.Zone, o.DeviceZone, o.TimeSync = time.UTC, time.FixedZone("", 3600), 532226
	s := snapshot(t, o)
	p := admitted("MRN0001", "O'Test")
	p.Weight = observation.Quantity{Number: observation.NewDecimal(805, -1), Unit: kilogram}
	hr := number(heartRate, 72, 0, perMinute)
	hr.Limits = observation.Limits{Low: observation.NewDecimal(50, 0), High: observation.NewDecimal(120, 0)}
	sat := number(spo2, 970, -1, percent)
	sat.Site = 460500
	r := report(start, p, sat, hr, number(pulseRate, 71, 0, perMinute))
	r.DeviceClock = time.Date(2026, 1, 2, 4, 3, 58, 0, time.UTC)
	s.Add(r)
	if next := s.Next(); !next.Equal(after(30 * time.Second)) {
		t.Fatalf("the message is due at %v", next)
	}
	if early := flush(t, s, after(29*time.Second)); len(early) != 0 {
		t.Fatalf("emitted early: %s", readable(early))
	}
	m := one(t, s, after(30*time.Second))
	clean(t, m)
	const want = `MSH|^~\&|GW_TEST^0123456789ABCDEF^EUI-64|HOSPITAL_A|||20260102030430+0000||ORU^R01^ORU_R01|32CHJ6GQJCDPO0000001|P|2.6|||AL|NE||UNICODE UTF-8|||IHE_PCD_001^IHE PCD^1.3.6.1.4.1.19376.1.6.1.1.1^ISO
PID|||MRN0001^^^HOSPITAL_A^PI||O'Test^Ann^^^^^L||19700101|F
PV1||U|ICU^Room 1^Bed 2^HOSPITAL_A
OBR|1||32CHJ6GQJCDPO0000001^GW_TEST^0123456789ABCDEF^EUI-64|69965^MDC_DEV_MON_PHYSIO_MULTI_PARAM_MDS^MDC|||20260102030400+0000|20260102030430+0000
OBX|1|CWE|68220^MDC_TIME_SYNC_PROTOCOL^MDC|0.0.0.1|532226^MDC_TIME_SYNC_NTPV4^MDC||||||R
OBX|2||69965^MDC_DEV_MON_PHYSIO_MULTI_PARAM_MDS^MDC|1.0.0.0|||||||X|||||||FEDCBA9876543210^^FEDCBA9876543210^EUI-64
OBX|3|CWE|68220^MDC_TIME_SYNC_PROTOCOL^MDC|1.0.0.2|532224^MDC_TIME_SYNC_NONE^MDC||||||R
OBX|4|DTM|67975^MDC_ATTR_TIME_ABS^MDC|1.0.0.4|20260102040358+0100||||||R|||20260102030400+0000
OBX|5|ST|67880^MDC_ATTR_ID_MODEL^MDC|1.0.0.5|manufacturer="ACME" model="M1"||||||R
OBX|6|ST|67885^MDC_ATTR_ID_PROD_SPECN^MDC|1.0.0.6|serial-number="S/N 7" sw-revision="A.01.02"||||||R
OBX|7|NM|68063^MDC_ATTR_PT_WEIGHT^MDC|1.0.0.26|80.5|263875^MDC_DIM_KILO_G^MDC^kg^kg^UCUM|||||R
OBX|8||69798^MDC_DEV_ECG_VMD^MDC|1.1.0.0|||||||X
OBX|9||69799^MDC_DEV_ECG_CHAN^MDC|1.1.1.0|||||||X
OBX|10|NM|147842^MDC_ECG_CARD_BEAT_RATE^MDC|1.1.1.49|72|264864^MDC_DIM_BEAT_PER_MIN^MDC^{beat}/min^{beat}/min^UCUM|50-120||||R
OBX|11||69642^MDC_DEV_ANALY_SAT_O2_VMD^MDC|1.2.0.0|||||||X
OBX|12||69643^MDC_DEV_ANALY_SAT_O2_CHAN^MDC|1.2.1.0|||||||X
OBX|13|NM|149530^MDC_PULS_OXIM_PULS_RATE^MDC|1.2.1.1|71|264864^MDC_DIM_BEAT_PER_MIN^MDC^{beat}/min^{beat}/min^UCUM|||||R
OBX|14|NM|150456^MDC_PULS_OXIM_SAT_O2^MDC|1.2.1.5|97.0|262688^MDC_DIM_PERCENT^MDC^%^%^UCUM|||||R|||||||||460500^MDC_UPEXT_FINGER^MDC
`
	if got := strings.ReplaceAll(m.text, "\r", "\n"); got != want {
		t.Errorf("emitted\n%s\nwant\n%s", got, want)
	}
	if m.class != pcd.Periodic || m.id != "32CHJ6GQJCDPO0000001" || !m.made.Equal(after(30*time.Second)) {
		t.Errorf("class %v, control ID %s, made %v", m.class, m.id, m.made)
	}
	if !s.Next().IsZero() || len(flush(t, s, after(time.Hour))) != 0 {
		t.Error("something is left when all is sent")
	}
}

func TestAValueThatIsNotReportedAgainIsNotHeld(t *testing.T) {
	s := snapshot(t, options(t))
	s.Add(report(start, nil, number(heartRate, 72, 0, perMinute), number(spo2, 97, 0, percent)))
	first := one(t, s, after(30*time.Second))
	s.Add(report(after(31*time.Second), nil, number(spo2, 96, 0, percent)))
	s.Add(report(after(32*time.Second), nil, number(spo2, 95, 0, percent)))
	second := one(t, s, after(60*time.Second))
	clean(t, first, second)
	if first.row("MDC_ECG_CARD_BEAT_RATE").Field(5).String() != "72" {
		t.Errorf("the first message lacks the heart rate:\n%s", readable([]sent{first}))
	}
	if v := second.row("MDC_ECG_CARD_BEAT_RATE"); v.Name() != "" || second.row("MDC_DEV_ECG_VMD").Name() != "" {
		t.Errorf("a heart rate that the device did not repeat is sent again:\n%s", readable([]sent{second}))
	}
	if got := second.row("MDC_PULS_OXIM_SAT_O2").Field(5).String(); got != "95" {
		t.Errorf("SpO2 is %s, not the latest of the interval", got)
	}
	if from, to := second.m.Field("OBR", 7).String(), second.m.Field("OBR", 8).String(); from != "20260102030430+0000" || to != "20260102030500+0000" {
		t.Errorf("the interval is [%s, %s)", from, to)
	}
}

func TestAfterASilenceTheIntervalBeginsWithTheFirstReport(t *testing.T) {
	s := snapshot(t, options(t))
	s.Add(report(start, nil, number(heartRate, 72, 0, perMinute)))
	flush(t, s, after(30*time.Second))
	s.Add(report(after(time.Hour), nil, number(heartRate, 73, 0, perMinute)))
	if next := s.Next(); !next.Equal(after(time.Hour + 30*time.Second)) {
		t.Errorf("due at %v", next)
	}
	if m := one(t, s, after(time.Hour+30*time.Second)); m.m.Field("OBR", 7).String() != "20260102040400+0000" {
		t.Errorf("the interval begins at %s", m.m.Field("OBR", 7))
	}
}

func TestWithoutAnIntervalEveryReportIsAMessageOfOneInstant(t *testing.T) {
	o := options(t)
	o.Interval = 0
	s := snapshot(t, o)
	for i := range 3 {
		s.Add(report(after(time.Duration(i)*time.Second), nil, number(heartRate, int32(70+i), 0, perMinute)))
	}
	if s.Next().After(after(2 * time.Second)) {
		t.Errorf("due only at %v", s.Next())
	}
	list := flush(t, s, after(2*time.Second))
	clean(t, list...)
	if len(list) != 3 || list[1].m.Field("OBR", 7).String() != "20260102030401+0000" || !list[1].m.Field("OBR", 8).Empty() ||
		list[2].row("MDC_ECG_CARD_BEAT_RATE").Field(5).String() != "72" {
		t.Errorf("%d messages\n%s", len(list), readable(list))
	}
}

func TestAMeasurementIsSentOnceAndAtOnceWithItsOwnTime(t *testing.T) {
	s := snapshot(t, options(t))
	sys, dia := number(systolic, 121, 0, mmHg), number(diastolic, 80, 0, mmHg)
	measured := after(-5 * time.Minute)
	tell := func(at time.Time, list ...observation.Observation) []sent {
		s.Add(report(at, nil, append(list, number(heartRate, 72, 0, perMinute))...))
		return flush(t, s, at)
	}
	list := tell(start, episodic(sys, measured), episodic(dia, measured))
	clean(t, list...)
	if len(list) != 1 || list[0].class != pcd.Episodic {
		t.Fatalf("emitted %s", readable(list))
	}
	if v := list[0].row("MDC_PRESS_BLD_NONINV_SYS"); v.Field(14).String() != "20260102025900+0000" || v.Field(5).String() != "121" {
		t.Errorf("the row is %s", v.Raw())
	}
	if list[0].row("MDC_ECG_CARD_BEAT_RATE").Name() != "" {
		t.Error("a continuous value stands in the episodic message")
	}
	// The device repeats it with every report; the gateway's idea of its time jitters.
	for i := range 5 {
		at := after(time.Duration(i) * time.Second)
		if again := tell(at, episodic(sys, measured.Add(time.Duration(i)*100*time.Millisecond)), episodic(dia, measured)); len(again) != 0 {
			t.Fatalf("repeated: %s", readable(again))
		}
	}
	if n := s.Counts().Repeated; n != 10 {
		t.Errorf("%d values counted as repeated, want 10", n)
	}
	// The next measurement, with the same value.
	if next := tell(after(10*time.Second), episodic(sys, after(9*time.Second)), episodic(dia, after(9*time.Second))); len(next) != 1 {
		t.Fatalf("the next measurement: %s", readable(next))
	}
	// A person confirms it: the same instant, another status.
	confirmed := episodic(sys, after(9*time.Second))
	confirmed.Status = observation.Validated
	list = tell(after(11*time.Second), confirmed)
	if len(list) != 1 || list[0].row("MDC_PRESS_BLD_NONINV_SYS").Field(11).String() != "F" {
		t.Fatalf("the confirmation: %s", readable(list))
	}
}

func TestAMeasurementIsKnownByTheDevicesClockWhereItTells(t *testing.T) {
	s := snapshot(t, options(t))
	sys := episodic(number(systolic, 121, 0, mmHg), after(-time.Minute))
	sys.DeviceTime = after(time.Hour)
	s.Add(report(start, nil, sys))
	one(t, s, start)
	sys.Time = after(-30 * time.Second) // the same measurement, reckoned anew
	s.Add(report(after(time.Second), nil, sys))
	if list := flush(t, s, after(time.Second)); len(list) != 0 {
		t.Errorf("repeated: %s", readable(list))
	}
	sys.DeviceTime = sys.DeviceTime.Add(time.Minute)
	s.Add(report(after(2*time.Second), nil, sys))
	one(t, s, after(2*time.Second))
}

func TestAPatientChangeSendsTheEarlierDataUnderTheEarlierPatient(t *testing.T) {
	s := snapshot(t, options(t))
	s.Add(report(start, admitted("A1", "First"), number(heartRate, 61, 0, perMinute)))
	s.Add(report(after(10*time.Second), admitted("B2", "Second"), number(heartRate, 82, 0, perMinute)))
	if s.Next().After(after(10 * time.Second)) {
		t.Errorf("the earlier patient's data wait until %v", s.Next())
	}
	first := one(t, s, after(10*time.Second))
	second := one(t, s, after(40*time.Second))
	clean(t, first, second)
	for _, c := range []struct {
		m              sent
		id, rate, from string
	}{{first, "A1", "61", "20260102030400+0000"}, {second, "B2", "82", "20260102030410+0000"}} {
		if c.m.m.Field("PID", 3).Component(1).String() != c.id || c.m.row("MDC_ECG_CARD_BEAT_RATE").Field(5).String() != c.rate ||
			c.m.m.Field("OBR", 7).String() != c.from {
			t.Errorf("want patient %s with %s from %s:\n%s", c.id, c.rate, c.from, readable([]sent{c.m}))
		}
	}
	if got := first.m.Field("OBR", 8).String(); got != "20260102030410+0000" {
		t.Errorf("the earlier patient's interval ends at %s", got)
	}
}

func TestNothingIsAttachedToAPatientBackwards(t *testing.T) {
	s := snapshot(t, options(t))
	sys := episodic(number(systolic, 121, 0, mmHg), after(-time.Minute))
	// The device tells of a patient only later: what came before stays unknown.
	s.Add(report(start, nil, number(heartRate, 61, 0, perMinute)))
	s.Add(report(after(5*time.Second), admitted("A1", "First"), number(heartRate, 62, 0, perMinute), sys))
	m := one(t, s, after(5*time.Second))
	if m.m.Field("PID", 31).String() != "Y" || strings.Contains(m.text, "A1") {
		t.Errorf("data from before the admission:\n%s", readable([]sent{m}))
	}
	if n := s.Counts().Backdated; n != 1 {
		t.Errorf("%d values counted as backdated, want 1: the pressure is older than the patient", n)
	}
	// A device that forgets its patient has none.
	s.Add(report(after(8*time.Second), nil, number(heartRate, 63, 0, perMinute)))
	list := flush(t, s, after(40*time.Second))
	if len(list) != 2 || list[0].m.Field("PID", 3).Component(1).String() != "A1" || list[1].m.Field("PID", 31).String() != "Y" {
		t.Errorf("after the patient was forgotten:\n%s", readable(list))
	}
	clean(t, list...)
	for _, m := range list {
		if m.row("MDC_PRESS_BLD_NONINV_SYS").Name() != "" {
			t.Error("the pressure of the earlier patient is sent after all")
		}
	}
}

func TestAMeasurementOfNobodyKnownIsSentThoughTheDeviceToldOfNobodyBefore(t *testing.T) {
	s := snapshot(t, options(t))
	s.Add(report(start, nil, number(heartRate, 61, 0, perMinute)))
	nobody := &observation.Patient{Admission: observation.NotAdmitted}
	s.Add(report(after(time.Second), nobody, episodic(number(systolic, 121, 0, mmHg), after(-time.Minute))))
	list := flush(t, s, after(time.Second))
	clean(t, list...)
	if len(list) != 2 || list[1].class != pcd.Episodic || list[1].m.Field("PID", 31).String() != "Y" {
		t.Errorf("emitted\n%s", readable(list))
	}
}

func TestPIDSaysWhoItIsOnlyWhereTheDeviceAdmittedAPatientWithAnIdentifier(t *testing.T) {
	unknown := "PID|||UNKNOWN^^^^U||^^^^^^U||||||||||||||||||||||||||Y\r"
	place := "PV1||U|ICU^Room 1^Bed 2^HOSPITAL_A\r"
	with := func(change func(*observation.Patient)) *observation.Patient {
		p := admitted("A1", "Test")
		change(p)
		return p
	}
	for _, c := range []struct {
		name   string
		policy pcd.PatientPolicy
		p      *observation.Patient
		want   string
	}{
		{"admitted", pcd.PatientDevice, admitted("A1", "Test"), "PID|||A1^^^HOSPITAL_A^PI||Test^Ann^^^^^L||19700101|F\r" + place},
		{"no patient told", pcd.PatientDevice, nil, unknown + place},
		{"a name without an identifier", pcd.PatientDevice, with(func(p *observation.Patient) { p.ID = observation.NewPHI(" ") }), unknown + place},
		{"discharged", pcd.PatientDevice, with(func(p *observation.Patient) { p.Admission = observation.Discharged }), unknown + place},
		{"pre-admitted", pcd.PatientDevice, with(func(p *observation.Patient) { p.Admission = observation.PreAdmitted }), unknown + place},
		{"admission not told", pcd.PatientDevice, with(func(p *observation.Patient) { p.Admission = observation.AdmissionUnknown }), unknown + place},
		{"no name", pcd.PatientDevice, with(func(p *observation.Patient) {
			p.Family, p.Given, p.Sex, p.Born = observation.PHI{}, observation.PHI{}, observation.SexUnknown, observation.PHI{}
		}), "PID|||A1^^^HOSPITAL_A^PI||^^^^^^U\r" + place},
		{"a date that is none", pcd.PatientDevice, with(func(p *observation.Patient) { p.Born = observation.NewPHI("1970-01-01") }),
			"PID|||A1^^^HOSPITAL_A^PI||Test^Ann^^^^^L|||F\r" + place},
		{"separators in a name", pcd.PatientDevice, with(func(p *observation.Patient) { p.Family = observation.NewPHI("T|e^s\rt") }),
			`PID|||A1^^^HOSPITAL_A^PI||T\F\e\S\s\X0D\t^Ann^^^^^L||19700101|F` + "\r" + place},
		{"policy unknown", pcd.PatientUnknown, admitted("A1", "Test"), unknown + place},
		{"policy omit", pcd.PatientOmit, admitted("A1", "Test"), ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := options(t)
			o.Patient = c.policy
			s := snapshot(t, o)
			s.Add(report(start, c.p, number(heartRate, 61, 0, perMinute)))
			m := one(t, s, after(30*time.Second))
			clean(t, m)
			_, rest, _ := strings.Cut(m.text, "\r")
			if group, _, _ := strings.Cut(rest, "OBR|"); group != c.want {
				t.Errorf("the patient group is\n%q\nwant\n%q", group, c.want)
			}
		})
	}
}

func TestTheBedLabelOfTheDeviceStandsInForAnUnconfiguredBed(t *testing.T) {
	o := options(t)
	o.Location = pcd.Location{}
	s := snapshot(t, o)
	r := report(start, nil, number(heartRate, 61, 0, perMinute))
	r.Device.BedLabel = "BED7"
	s.Add(r)
	if m := one(t, s, after(30*time.Second)); m.m.Field("PV1", 3).Component(3).String() != "BED7" {
		t.Error("the bed label is not in PV1-3.3")
	}
	s.Add(report(after(31*time.Second), nil, number(heartRate, 61, 0, perMinute)))
	m := one(t, s, after(70*time.Second))
	if _, ok := m.m.Segment("PV1", 1); ok {
		t.Error("PV1 without any location")
	}
	clean(t, m)
}

func TestAStepOfTheDevicesClockBeginsAnotherTimeline(t *testing.T) {
	s := snapshot(t, options(t))
	tell := func(at, clock time.Duration, rate int32) {
		r := report(after(at), nil, number(heartRate, rate, 0, perMinute))
		r.DeviceClock = after(clock)
		s.Add(r)
	}
	tell(0, time.Hour, 61)
	tell(time.Second, time.Hour+2*time.Second, 62) // jitter
	if n := len(flush(t, s, after(time.Second))); n != 0 {
		t.Fatalf("%d messages for a clock that jitters", n)
	}
	tell(2*time.Second, 2*time.Hour+2*time.Second, 63) // daylight saving
	first := one(t, s, after(2*time.Second))
	second := one(t, s, after(60*time.Second))
	clean(t, first, second)
	if a, b := first.row("MDC_ATTR_TIME_ABS").Field(5).String(), second.row("MDC_ATTR_TIME_ABS").Field(5).String(); a != "20260102040402+0000" || b != "20260102050402+0000" {
		t.Errorf("the device's clock showed %s and %s", a, b)
	}
	if got := first.row("MDC_ECG_CARD_BEAT_RATE").Field(5).String(); got != "62" {
		t.Errorf("before the step the rate was %s", got)
	}
}

func TestStatusBecomesFlagsAndResultStatus(t *testing.T) {
	for _, c := range []struct {
		name         string
		status       observation.Status
		value        observation.Value
		want5, want8 string
		want11       string
	}{
		{"a plain value", 0, observation.Value{Kind: observation.KindNumber, Number: observation.NewDecimal(97, 0)}, "97", "", "R"},
		{"confirmed", observation.Validated, observation.Value{Kind: observation.KindNumber, Number: observation.NewDecimal(97, 0)}, "97", "", "F"},
		{"confirmed but questionable", observation.Validated | observation.Questionable, observation.Value{Kind: observation.KindNumber, Number: observation.NewDecimal(97, 0)}, "97", "QUES", "R"},
		{"questionable and in alarm", observation.Questionable | observation.AlarmActive, observation.Value{Kind: observation.KindNumber, Number: observation.NewDecimal(97, 0)}, "97", "QUES~ALACT", "R"},
		{"early, alarms off", observation.Early | observation.AlarmInhibit, observation.Value{Kind: observation.KindNumber, Number: observation.NewDecimal(97, 0)}, "97", "EARLY~ALINH", "R"},
		{"invalid, with a number all the same", observation.Invalid, observation.Value{Kind: observation.KindNumber, Number: observation.NewDecimal(97, 0)}, "", "INV", "X"},
		{"not available", observation.NotAvailable, observation.Value{Kind: observation.KindNumber}, "", "NAV", "X"},
		{"calibrating", observation.Calibrating, observation.Value{Kind: observation.KindNumber}, "", "CAL", "R"},
		{"no number and no reason", 0, observation.Value{Kind: observation.KindNumber}, "", "NAV", "X"},
		{"being measured", observation.Ongoing, observation.Value{Kind: observation.KindNumber}, "", "BUSY", "X"},
		{"no value at all", 0, observation.Value{}, "", "NAV", "X"},
		{"no value, in alarm", observation.AlarmActive | observation.Questionable, observation.Value{}, "", "NAV~ALACT", "X"},
		{"precision", 0, observation.Value{Kind: observation.KindNumber, Number: observation.NewDecimal(9700, -2)}, "97.00", "", "R"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := snapshot(t, options(t))
			s.Add(report(start, nil, observation.Observation{Code: spo2, Unit: percent, Status: c.status, Value: c.value}))
			m := one(t, s, after(30*time.Second))
			clean(t, m)
			v := m.row("MDC_PULS_OXIM_SAT_O2")
			if v.Field(2).String() != "NM" || v.Field(6).Component(1).String() != "262688" {
				t.Errorf("type or unit is gone: %s", v.Raw())
			}
			if a, b, r := v.Field(5).String(), v.Field(8).String(), v.Field(11).String(); a != c.want5 || b != c.want8 || r != c.want11 {
				t.Errorf("OBX-5 %q, OBX-8 %q, OBX-11 %q in %s", a, b, r, v.Raw())
			}
		})
	}
}

func TestSimulatedDataAreRefusedAndCountedUnlessAllowed(t *testing.T) {
	list := []observation.Observation{number(heartRate, 60, 0, perMinute), number(spo2, 98, 0, percent), samples(ecgII, millivolt, start, 1, 2)}
	list[0].Status, list[1].Status, list[2].Status = observation.Demo, observation.Test|observation.Questionable, observation.Demo
	o := options(t)
	o.Waves = true
	s := snapshot(t, o)
	p := admitted("A1", "Demo")
	p.Weight = observation.Quantity{Number: observation.NewDecimal(70, 0), Unit: kilogram}
	s.Add(report(start, p, list...))
	if sent := flush(t, s, after(time.Hour)); len(sent) != 0 || !s.Next().IsZero() || s.Counts().Simulated != 3 {
		t.Fatalf("%d refused, emitted\n%s", s.Counts().Simulated, readable(sent))
	}
	o.AllowSimulated = true
	s = snapshot(t, o)
	s.Add(report(start, p, list...))
	sent := flush(t, s, after(time.Hour))
	clean(t, sent...)
	if len(sent) != 2 || sent[0].row("MDC_ECG_CARD_BEAT_RATE").Field(8).String() != "DEMO" || sent[0].row("MDC_PULS_OXIM_SAT_O2").Field(8).String() != "QUES~TEST" ||
		sent[1].row("MDC_ECG_ELEC_POTL_II").Field(8).String() != "DEMO" {
		t.Errorf("allowed, and not marked:\n%s", readable(sent))
	}
}

func TestAUnitThatTheNomenclatureDoesNotAllowIsRefusedWithItsValue(t *testing.T) {
	s := snapshot(t, options(t))
	unknownUnit := number(heartRate, 72, 0, 999)
	wrong := number(spo2, 97, 0, mmHg)
	missing := number(systolic, 120, 0, 0)
	right := number(pulseRate, 71, 0, perMinute)
	s.Add(report(start, nil, unknownUnit, wrong, missing, right))
	m := one(t, s, after(30*time.Second))
	clean(t, m)
	if n := s.Counts().UnitRefused; n != 3 || s.Counts().Observations != 1 {
		t.Errorf("counts %+v\n%s", s.Counts(), readable([]sent{m}))
	}
}

func TestDeprecatedCodesAreSentAsTheirSuccessors(t *testing.T) {
	s := snapshot(t, options(t))
	s.Add(report(start, nil, number(etCO2Old, 38, 0, mmHg)))
	m := one(t, s, after(30*time.Second))
	clean(t, m)
	if v := m.row("MDC_CONC_AWAY_CO2_ET"); v.Field(3).Component(1).String() != fmt.Sprint(uint32(etCO2)) || v.Field(5).String() != "38" {
		t.Errorf("sent as\n%s", readable([]sent{m}))
	}
}

func TestTextsAndCodesAreEscapedAndNamed(t *testing.T) {
	s := snapshot(t, options(t))
	text := func(code mdc.Code, v observation.Value) observation.Observation {
		return observation.Observation{Code: code, Value: v}
	}
	s.Add(report(start, nil,
		text(ventMode, observation.Value{Kind: observation.KindText, Text: " SIMV|PS\x0b\x1c\r\nä\xff "}),
		text(184326, observation.Value{Kind: observation.KindCode, Code: 532224, Text: "a^b"}),
		text(184327, observation.Value{Kind: observation.KindCode, Code: 99, Text: "SINUS RHYTHM"}),
		text(184330, observation.Value{Kind: observation.KindCode, Code: 99}),
		text(184514, observation.Value{Kind: observation.KindText, Text: `""`}),
	))
	m := one(t, s, after(30*time.Second))
	clean(t, m)
	for _, c := range []struct{ name, kind, value, result string }{
		{"MDC_VENT_MODE", "ST", `SIMV\F\PS\X0B\\X1C\\X0D\\X0A\ä\XFF\`, "R"},
		{"MDC_ECG_STAT_ECT", "CWE", `532224^MDC_TIME_SYNC_NONE^MDC^^^^^^a\S\b`, "R"},
		{"MDC_ECG_STAT_RHY", "ST", "SINUS RHYTHM", "R"},
		{"MDC_DRUG_NAME_LABEL", "ST", "", "X"},
	} {
		v := m.row(c.name)
		if v.Field(2).String() != c.kind || string(v.Field(5).Raw()) != c.value || v.Field(11).String() != c.result {
			t.Errorf("%s is %s", c.name, v.Raw())
		}
	}
	if s.Counts().Unmapped != 1 || bytes.ContainsAny([]byte(m.text), "\n\x0b\x1c") {
		t.Errorf("counts %+v in\n%q", s.Counts(), m.text)
	}
}

func TestPrivateValuesGoUnderCodeZeroWithTheVendorsNumberBeside(t *testing.T) {
	s := snapshot(t, options(t))
	private := func(p observation.Private) observation.Observation {
		o := number(0, 5, 0, 0)
		o.Private = p
		return o
	}
	s.Add(report(start, nil,
		private(observation.Private{Vendor: "PHILIPS", Code: 61441, Name: "Perf-Index"}),
		private(observation.Private{Vendor: "PHILIPS", Code: 61442}),
		private(observation.Private{Vendor: "PHILIPS", Name: "BY_NAME"}),
		private(observation.Private{Vendor: "PHILIPS"}),
		private(observation.Private{}),
		number(99, 1, 0, 0),
	))
	m := one(t, s, after(30*time.Second))
	clean(t, m)
	for _, want := range []string{
		"|NM|0^MDCX_PHILIPS_PERF_INDEX^MDC^61441^PERF_INDEX^L|1.0.0.1000061441|5|262656^MDC_DIM_DIMLESS^MDC^",
		"|NM|0^MDCX_PHILIPS_61442^MDC^61442^61442^L|1.0.0.1000061442|5|",
		"|NM|0^MDCX_PHILIPS_BY_NAME^MDC^0^BY_NAME^L|1.0.0.",
	} {
		if !strings.Contains(m.text, want) {
			t.Errorf("no row %s in\n%s", want, readable([]sent{m}))
		}
	}
	if s.Counts().Unmapped != 3 {
		t.Errorf("%d unmapped, want 3", s.Counts().Unmapped)
	}
}

func TestIncludeAndExcludeChooseTerms(t *testing.T) {
	list := []observation.Observation{number(heartRate, 72, 0, perMinute), number(spo2, 97, 0, percent), number(etCO2Old, 38, 0, mmHg), samples(ecgII, millivolt, start, 1)}
	for name, c := range map[string]struct {
		include, exclude []mdc.Code
		rows             string
		filtered         uint64
	}{
		"all":                         {nil, nil, "147842 151708 150456", 1},
		"included":                    {[]mdc.Code{spo2, heartRate}, nil, "147842 150456", 2},
		"excluded":                    {nil, []mdc.Code{heartRate}, "151708 150456", 2},
		"included and excluded":       {[]mdc.Code{spo2, heartRate}, []mdc.Code{spo2}, "147842", 3},
		"by the code that is current": {[]mdc.Code{etCO2}, nil, "151708", 3},
		"by a deprecated code":        {nil, []mdc.Code{etCO2Old}, "147842 150456", 2},
	} {
		t.Run(name, func(t *testing.T) {
			o := options(t)
			o.Include, o.Exclude = c.include, c.exclude
			s := snapshot(t, o)
			s.Add(report(start, nil, list...))
			got := map[string]bool{}
			for v := range one(t, s, after(30*time.Second)).m.Segments() {
				if v.Is("OBX") && v.Field(2).Is("NM") {
					got[v.Field(3).Component(1).String()] = true
				}
			}
			for _, code := range strings.Fields(c.rows) {
				if !got[code] {
					t.Errorf("%s is missing", code)
				}
				delete(got, code)
			}
			if len(got) != 0 || s.Counts().Filtered != c.filtered {
				t.Errorf("too many: %v; counts %+v", got, s.Counts())
			}
		})
	}
}

func TestADeviceWithoutAnIdentityIsNotSentAndSaysWhy(t *testing.T) {
	r := report(start, nil, number(heartRate, 72, 0, perMinute))
	r.Device.ID = 0
	s := snapshot(t, options(t))
	s.Add(r)
	if list := flush(t, s, after(time.Hour)); len(list) != 0 || !errors.Is(s.Problem(), pcd.ErrNoDeviceID) || s.Counts().Unidentified != 1 {
		t.Errorf("problem %v, counts %+v, emitted %s", s.Problem(), s.Counts(), readable(list))
	}
	// It learns its identity: the problem is over.
	s.Add(report(after(time.Hour), nil, number(heartRate, 72, 0, perMinute)))
	if m := one(t, s, after(2*time.Hour)); s.Problem() != nil || m.row("1.0.0.0").Field(18).Component(3).String() != monitor.String() {
		t.Errorf("problem %v", s.Problem())
	}
	// One that never does gets that of its port.
	o := options(t)
	o.DeviceID = 0x00095CFFFE000001
	s = snapshot(t, o)
	s.Add(r)
	m := one(t, s, after(time.Hour))
	clean(t, m)
	if got := m.row("1.0.0.0").Field(18).String(); got != "00095CFFFE000001^^00095CFFFE000001^EUI-64" {
		t.Errorf("OBX-18 is %s", got)
	}
	r.Device.Type = heartRate
	s.Add(r)
	if !errors.Is(s.Problem(), pcd.ErrNoDeviceType) {
		t.Errorf("problem %v", s.Problem())
	}
	s.Add(&observation.Report{Received: start})
	if s.Problem() == nil {
		t.Error("a report of no device is no problem")
	}
}

func TestAnotherDeviceBeginsAnew(t *testing.T) {
	s := snapshot(t, options(t))
	sys := episodic(number(systolic, 121, 0, mmHg), after(-time.Minute))
	s.Add(report(start, admitted("A1", "First"), number(heartRate, 61, 0, perMinute), sys))
	r := report(after(time.Second), nil, number(heartRate, 62, 0, perMinute), sys)
	r.Device.ID++
	s.Add(r)
	list := flush(t, s, after(time.Minute))
	clean(t, list...)
	if len(list) != 4 {
		t.Fatalf("%d messages, want a periodic and an episodic one of each device:\n%s", len(list), readable(list))
	}
	for _, m := range list {
		first := m.row("1.0.0.0").Field(18).Component(1).Is(monitor.String())
		if named := m.m.Field("PID", 3).Component(1).Is("A1"); named != first {
			t.Errorf("the patient of one device is sent with the data of another:\n%s", readable([]sent{m}))
		}
	}
}

func TestMoreKnowledgeOfADeviceIsNotAnotherDevice(t *testing.T) {
	s := snapshot(t, options(t))
	sys := episodic(number(systolic, 121, 0, mmHg), after(-time.Minute))
	r := report(start, admitted("A1", "First"), sys)
	r.Device.Software = ""
	s.Add(r)
	one(t, s, start)
	s.Add(report(after(time.Second), admitted("A1", "First"), sys, number(heartRate, 61, 0, perMinute)))
	m := one(t, s, after(time.Minute))
	if s.Counts().Repeated != 1 || !strings.Contains(m.text, `sw-revision="A.01.02"`) {
		t.Errorf("counts %+v\n%s", s.Counts(), readable([]sent{m}))
	}
}

func TestInstancesAndSettingsHavePlacesOfTheirOwn(t *testing.T) {
	second := number(spo2, 91, 0, percent)
	second.Instance = 1
	measured, set := number(152196, 400, -1, percent), number(152196, 45, 0, percent)
	set.Method = observation.MethodSetting
	manual := number(heartRate, 70, 0, perMinute)
	manual.Method = observation.MethodSetting // no twin in the nomenclature
	s := snapshot(t, options(t))
	s.Add(report(start, nil, number(spo2, 97, 0, percent), second, measured, set, number(heartRate, 72, 0, perMinute), manual))
	m := one(t, s, after(30*time.Second))
	clean(t, m)
	for place, value := range map[string]string{"1.2.1.5": "97", "1.2.101.5": "91", "1.1.1.49": "72", "1.1.1.549": "70"} {
		if got := m.row(place).Field(5).String(); got != value {
			t.Errorf("at %s stands %q, want %s", place, got, value)
		}
	}
	if v := m.row("1.1.1.549"); !v.Field(17).Is("MSET^manual-setting^MDC") {
		t.Errorf("the setting is %s", v.Raw())
	}
	if s.Counts().Observations != 6 {
		t.Errorf("%d observations, want 6", s.Counts().Observations)
	}
}

func TestASettingGoesUnderItsOwnTermWhereThereIsOne(t *testing.T) {
	var code mdc.Code
	for c := mdc.Code(131072); c < 3*65536; c++ {
		if twin, ok := mdc.Lookup(c + 256<<16); ok && twin.Unit != 0 {
			if _, ok := mdc.Lookup(c); ok {
				code = c
				break
			}
		}
	}
	twin, _ := mdc.Lookup(code + 256<<16)
	o := number(code, 5, 0, twin.Unit)
	o.Method = observation.MethodAutoSetting
	s := snapshot(t, options(t))
	s.Add(report(start, nil, o))
	m := one(t, s, after(30*time.Second))
	clean(t, m)
	if v := m.row(twin.RefID); !v.Field(17).Is("ASET^auto-setting^MDC") {
		t.Errorf("%s:\n%s", twin.RefID, readable([]sent{m}))
	}
}

func TestTwoValuesNeverShareAPlace(t *testing.T) {
	at := mdc.Place{VMD: 69642, Channel: 69643, VMDNumber: 2, ChannelNumber: 1, MetricNumber: 5}
	hr := number(heartRate, 72, 0, perMinute)
	hr.Place = at // claims the place of SpO2
	wrongParent := number(pulseRate, 71, 0, perMinute)
	wrongParent.Place = mdc.Place{VMD: 69798, Channel: 69799, VMDNumber: 2, ChannelNumber: 9, MetricNumber: 1} // VMD 2 is the oximeter
	noParent := number(artMean, 90, 0, mmHg)
	noParent.Place = mdc.Place{VMD: 1, Channel: 2, VMDNumber: 7, ChannelNumber: 1, MetricNumber: 1}
	reserved := number(systolic, 120, 0, mmHg)
	reserved.Place = mdc.Place{MetricNumber: 4} // that of the device's clock
	s := snapshot(t, options(t))
	r := report(start, nil, number(spo2, 97, 0, percent), hr, wrongParent, noParent, reserved)
	r.DeviceClock = start
	s.Add(r)
	m := one(t, s, after(30*time.Second))
	clean(t, m)
	for place, value := range map[string]string{
		"1.2.1.5": "97", "1.0.0.147842": "72", "1.0.0.149530": "71", "1.0.0.150035": "90", "1.0.0.150021": "120",
	} {
		if got := m.row(place).Field(5).String(); got != value {
			t.Errorf("at %s stands %q, want %s:\n%s", place, got, value, readable([]sent{m}))
		}
	}
}

func TestOBX4IsTheSameInEveryMessage(t *testing.T) {
	s := snapshot(t, options(t))
	s.Add(report(start, nil, number(spo2, 97, 0, percent)))
	alone := one(t, s, after(30*time.Second))
	s.Add(report(after(31*time.Second), nil, number(heartRate, 72, 0, perMinute), number(spo2, 97, 0, percent), number(systolic, 120, 0, mmHg)))
	among := one(t, s, after(60*time.Second))
	again := snapshot(t, options(t))
	again.Add(report(start, nil, number(pulseRate, 70, 0, perMinute), number(spo2, 97, 0, percent)))
	other := one(t, again, after(30*time.Second))
	for _, m := range []sent{alone, among, other} {
		if got := m.row("MDC_PULS_OXIM_SAT_O2").Field(4).String(); got != "1.2.1.5" {
			t.Errorf("SpO2 stands at %s", got)
		}
	}
}

var errFull = errors.New("disk full")

func TestAFailedEmitKeepsTheMessageUnchangedAndInOrder(t *testing.T) {
	s := snapshot(t, options(t))
	s.Add(report(start, nil, number(heartRate, 61, 0, perMinute)))
	var tried []string
	refuse := func(m pcd.Message) error { tried = append(tried, string(m.Bytes)); return errFull }
	if err := s.Flush(after(30*time.Second), refuse); !errors.Is(err, errFull) {
		t.Fatalf("Flush says %v", err)
	}
	if next := s.Next(); !next.Equal(after(31 * time.Second)) {
		t.Errorf("the next attempt is at %v", next)
	}
	s.Add(report(after(32*time.Second), nil, number(heartRate, 62, 0, perMinute)))
	if err := s.Flush(after(70*time.Second), refuse); !errors.Is(err, errFull) {
		t.Fatalf("Flush says %v", err)
	}
	list := flush(t, s, after(71*time.Second))
	if len(list) != 2 || len(tried) != 2 || tried[0] != tried[1] || tried[0] != list[0].text {
		t.Fatalf("tried %q, then\n%s", tried, readable(list))
	}
	if list[0].id == list[1].id || list[1].row("MDC_ECG_CARD_BEAT_RATE").Field(5).String() != "62" {
		t.Errorf("emitted\n%s", readable(list))
	}
	clean(t, list...)
	if s.Counts().Messages != 2 || s.Counts().Dropped != 0 {
		t.Errorf("counts %+v", s.Counts())
	}
}

func TestWhileEmitFailsForLongTheLeastDearIsGivenUpAndCounted(t *testing.T) {
	o := options(t)
	o.Interval = 0
	s := snapshot(t, o)
	for i := range 100 {
		at := after(time.Duration(i) * time.Minute)
		list := []observation.Observation{number(heartRate, int32(i), 0, perMinute)}
		if i == 0 {
			list = append(list, episodic(number(systolic, 120, 0, mmHg), at))
		}
		s.Add(report(at, nil, list...))
		if err := s.Flush(at, func(pcd.Message) error { return errFull }); err == nil {
			t.Fatal("no error")
		}
	}
	list := flush(t, s, after(100*time.Minute))
	if len(list) != 64 || s.Counts().Dropped != 37 || list[0].class != pcd.Episodic {
		t.Errorf("%d messages, counts %+v, the first is %v", len(list), s.Counts(), list[0].class)
	}
	if got := list[63].row("MDC_ECG_CARD_BEAT_RATE").Field(5).String(); got != "99" {
		t.Errorf("the last value is %s", got)
	}
}

func TestCutEndsTheIntervalForAGoodbye(t *testing.T) {
	s := snapshot(t, options(t))
	s.Add(report(start, nil, number(heartRate, 61, 0, perMinute)))
	s.Cut(after(3 * time.Second))
	m := one(t, s, after(3*time.Second))
	if m.m.Field("OBR", 8).String() != "20260102030403+0000" {
		t.Errorf("the interval ends at %s", m.m.Field("OBR", 8))
	}
}

func TestAnIntervalThatIsShorterThanItsFieldsShowIsAPointInTime(t *testing.T) {
	s := snapshot(t, options(t))
	s.Add(report(start.Add(300*time.Microsecond), nil, number(heartRate, 72, 0, perMinute)))
	s.Cut(start.Add(900 * time.Microsecond))
	m := one(t, s, start.Add(900*time.Microsecond))
	clean(t, m)
	if obr, ok := m.m.Segment("OBR", 1); !ok || obr.Field(8).String() != "" {
		t.Errorf("OBR-8 is %q", obr.Field(8).String())
	}
}

func TestAReportIsOnlyBorrowed(t *testing.T) {
	o := options(t)
	o.Waves = true
	s := snapshot(t, o)
	text := []byte("SIMV")
	p := admitted("A1", "First")
	r := report(start, p, number(heartRate, 61, 0, perMinute),
		observation.Observation{Code: ventMode, Value: observation.Value{Kind: observation.KindText, Text: string(text)}},
		samples(ecgII, millivolt, after(-8*time.Millisecond), 1, 2))
	s.Add(r)
	*p = *admitted("OTHER", "Other")
	*r.Device = observation.Device{Type: 69965, ID: 1, Model: "XX"}
	for i := range r.Observations[2].Value.Samples.Values {
		r.Observations[2].Value.Samples.Values[i] = 0x1111
	}
	clear(r.Observations)
	list := flush(t, s, after(time.Minute))
	if len(list) != 2 || strings.Contains(readable(list), "XX") || list[1].row("MDC_ECG_ELEC_POTL_II").Field(5).String() != "1^2" {
		t.Errorf("emitted\n%s", readable(list))
	}
}

func TestAClockOfOursThatGoesBackMakesNoMessageOlderThanItsData(t *testing.T) {
	s := snapshot(t, options(t))
	s.Add(report(start, nil, number(heartRate, 61, 0, perMinute)))
	s.Cut(after(-time.Hour))
	m := one(t, s, after(-time.Hour))
	clean(t, m)
	if m.m.Field("MSH", 7).String() != "20260102030400+0000" || !m.m.Field("OBR", 8).Empty() {
		t.Errorf("emitted\n%s", readable([]sent{m}))
	}
}

func TestOptionsThatNoMessageCouldBeMadeWithAreRefused(t *testing.T) {
	for says, change := range map[string]func(*pcd.Options){
		"gateway.eui64":      func(o *pcd.Options) { o.Sender.EUI64 = 0 },
		"gateway.name":       func(o *pcd.Options) { o.Sender.Application = "" },
		"has 21 bytes":       func(o *pcd.Options) { o.Sender.Application = strings.Repeat("x", 21) },
		"control IDs":        func(o *pcd.Options) { o.IDs = nil },
		"negative":           func(o *pcd.Options) { o.Interval = -1 },
		"patient policy":     func(o *pcd.Options) { o.Patient = 9 },
		"processing ID":      func(o *pcd.Options) { o.Sender.ProcessingID = "X" },
		"table 0155":         func(o *pcd.Options) { o.Sender.AcceptAck = "XX" },
		"no acknowledgement": func(o *pcd.Options) { o.Sender.AcceptAck = "NE" },
		"MSH-4":              func(o *pcd.Options) { o.Sender.Facility = "a^b" },
		"MSH-5":              func(o *pcd.Options) { o.Sender.ReceivingApplication = "a^b^c^d" },
		"MSH-6":              func(o *pcd.Options) { o.Sender.ReceivingFacility = strings.Repeat("x", 21) },
		"PV1-3.4":            func(o *pcd.Options) { o.Location.Facility = "a^^c" },
		"PID-3.4":            func(o *pcd.Options) { o.AssigningAuthority = "^b^c" },
		"MDC_TIME_SYNC":      func(o *pcd.Options) { o.TimeSync = heartRate },
	} {
		o := options(t)
		change(&o)
		if _, err := pcd.NewSnapshot(o); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: error %v", says, err)
		}
	}
}

func TestDesignatorsMayHaveIdentifiers(t *testing.T) {
	o := options(t)
	o.Sender.ReceivingApplication, o.AssigningAuthority, o.Location.Facility = "AM^1122334455667788^EUI-64", "HOSP&1.2.3&ISO", "H^1.2^ISO"
	o.Sender.AcceptAck, o.Sender.ApplicationAck = "NE", "AL"
	s := snapshot(t, o)
	s.Add(report(start, admitted("A1", "T"), number(heartRate, 61, 0, perMinute)))
	m := one(t, s, after(time.Minute))
	if m.m.Field("MSH", 5).Component(2).String() != "1122334455667788" || m.m.Field("PID", 3).Component(4).Subcomponent(2).String() != "1.2.3" ||
		m.m.Field("PV1", 3).Component(4).Subcomponent(3).String() != "ISO" || m.m.Field("MSH", 15).String() != "NE" {
		t.Errorf("emitted\n%s", readable([]sent{m}))
	}
	for _, f := range pcd.Validate([]byte(m.text)) {
		if f.Rule != "msh-ack" {
			t.Error(f)
		}
	}
}
