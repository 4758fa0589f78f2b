package pcd_test

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/bedside-gateway/gatewayd/mdc"
	"github.com/bedside-gateway/gatewayd/observation"
	"github.com/bedside-gateway/gatewayd/pcd"
)

// A chance is a source of choices: a random generator, or the bytes of a fuzzer.
type chance func(n int) int

// terms are codes of all kinds, known and unknown, right and wrong for a value.
var terms = func() []mdc.Code {
	list := []mdc.Code{0, 99, heartRate, spo2, pulseRate, systolic, diastolic, artMean, pleth, ecgII, ventMode, etCO2Old, 69965, 69798, 460500, 68063, 67975, 532224, 196648}
	for c := mdc.Code(131072); c < 196608; c += 7 {
		if _, ok := mdc.Lookup(c); ok {
			list = append(list, c)
		}
	}
	return list
}()

var texts = []string{"", "SIMV", " a|b^c&d~e\\f ", "\x0b\x1c\r\n\x00", "\xff\xfe", `""`, `"`, "Grüße °C", "\u0085\ufffd", "PID|||X"}

func randomObservation(pick chance, at time.Time) observation.Observation {
	text := texts[pick(len(texts))]
	o := observation.Observation{
		Code: terms[pick(len(terms))], Instance: uint8(pick(4) / 3 * pick(256)), Status: observation.Status(pick(2) * pick(1<<11)),
		Method: observation.Method(pick(5)), Site: []mdc.Code{0, 0, 460500, spo2, 99}[pick(5)], Episodic: pick(4) == 0,
	}
	o.Value.Kind = observation.Kind(pick(5))
	o.Value.Text = text
	o.Value.Code = terms[pick(len(terms))]
	if pick(5) > 0 {
		o.Value.Number = observation.NewDecimal(int32(pick(100000)-50000), int8(pick(12)-6))
	}
	switch t, ok := mdc.Lookup(o.Code.Current()); {
	case ok && pick(8) > 0:
		o.Unit = t.Unit
	case pick(2) == 0:
		o.Unit = []mdc.Code{perMinute, percent, mmHg, millivolt, celsius, 999}[pick(6)]
	}
	if pick(3) == 0 {
		o.Private = observation.Private{Vendor: []string{"ACME", "ac|me", ""}[pick(3)], Code: uint32(pick(3) * pick(1<<20)), Name: text}
	}
	if pick(6) == 0 {
		o.Place = mdc.Place{
			VMD: []mdc.Code{69798, 69642, 0, spo2}[pick(4)], Channel: []mdc.Code{69799, 69643, 0}[pick(3)],
			VMDNumber: uint16(pick(4)), ChannelNumber: uint16(pick(3)), MetricNumber: uint16(pick(8)),
		}
	}
	if pick(3) == 0 {
		o.Limits = observation.Limits{Low: observation.NewDecimal(int32(pick(100)-50), int8(-pick(2)))}
	}
	if pick(3) == 0 {
		o.Limits.High = observation.NewDecimal(int32(pick(200)-50), 0)
	}
	if pick(2) == 0 {
		o.Time = at.Add(time.Duration(pick(20_000)-15_000) * time.Millisecond)
	}
	if o.Value.Kind == observation.KindSamples {
		o.Value.Samples = &observation.Samples{
			Period: time.Duration(pick(20)) * time.Millisecond, Values: ramp(pick(1000), pick(40)), Mask: uint16(pick(1 << 16)),
			RawLower: uint16(pick(100)), RawUpper: uint16(pick(5000)),
		}
		if pick(2) == 0 {
			o.Value.Samples.Lower, o.Value.Samples.Upper = observation.NewDecimal(-5, -1), observation.NewDecimal(int32(pick(1000)), -2)
		}
	}
	return o
}

func randomReport(pick chance, at time.Time) *observation.Report {
	r := &observation.Report{Device: device(), Received: at}
	r.Device.BedLabel = texts[pick(len(texts))]
	if pick(10) == 0 {
		r.Device.ID = observation.EUI64(pick(3))
	}
	if pick(10) == 0 {
		r.Device.Model, r.Device.Serial, r.Device.Software = texts[pick(len(texts))], texts[pick(len(texts))], ""
	}
	if pick(3) > 0 {
		r.Patient = admitted([]string{"A1", "B2", "", "|^~"}[pick(4)], texts[pick(len(texts))])
		r.Patient.Admission = observation.Admission(pick(5))
		r.Patient.Born = observation.NewPHI([]string{"19700101", "1970", "x", ""}[pick(4)])
		r.Patient.Height = observation.Quantity{Number: observation.NewDecimal(180, 0), Unit: []mdc.Code{centimetre, kilogram}[pick(2)]}
	}
	if pick(2) == 0 {
		r.DeviceClock = at.Add(time.Duration(pick(3)) * time.Hour)
	}
	for range pick(12) {
		r.Observations = append(r.Observations, randomObservation(pick, at))
	}
	return r
}

// exercise feeds a snapshot with whatever pick picks and holds everything that
// it emits to the rules.
func exercise(t *testing.T, pick chance) {
	o := options(t)
	o.Interval = time.Duration(pick(3)) * 10 * time.Second
	o.Waves, o.AllowSimulated = pick(2) == 0, pick(2) == 0
	o.Patient = pcd.PatientPolicy(pick(3))
	o.DeviceID = observation.EUI64(pick(2)) * 0x00095CFFFE000001
	o.Zone = []*time.Location{nil, time.FixedZone("", 3600), time.FixedZone("", -3*3600-1800)}[pick(3)]
	if pick(3) == 0 {
		o.Location = pcd.Location{}
	}
	s := snapshot(t, o)
	at, ids := start, map[string]bool{}
	for range 2 + pick(20) {
		at = at.Add(time.Duration(pick(8000)-200) * time.Millisecond)
		s.Add(randomReport(pick, at))
		if pick(3) > 0 {
			continue
		}
		for _, m := range flush(t, s, at) {
			for _, f := range pcd.Validate([]byte(m.text)) {
				t.Errorf("%v in\n%s", f, readable([]sent{m}))
			}
			if ids[m.id] {
				t.Errorf("control ID %s twice", m.id)
			}
			ids[m.id] = true
		}
		if t.Failed() {
			t.FailNow()
		}
	}
	c := s.Counts()
	if c.Messages != uint64(len(ids)) {
		t.Errorf("counts %+v for %d messages", c, len(ids))
	}
}

func TestWhateverDevicesReportTheMessagesKeepTheRules(t *testing.T) {
	for seed := range uint64(150) {
		random := rand.New(rand.NewPCG(seed, 7))
		exercise(t, random.IntN)
		if t.Failed() {
			t.Fatalf("with seed %d", seed)
		}
	}
}

func FuzzSnapshot(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte("\x01\x01\x01\x01\x00\x05\x07\x21\x05\x09\x02\x00\x03\x04\x01\x05\x09\x01"))
	for seed := range uint64(20) {
		random, b := rand.New(rand.NewPCG(seed, 1)), make([]byte, 400)
		for i := range b {
			b[i] = byte(random.Uint32())
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		exercise(t, func(n int) int {
			v := 0
			for m := n - 1; m > 0 && len(b) > 0; m >>= 8 {
				v, b = v<<8|int(b[0]), b[1:]
			}
			return v % n
		})
	})
}

// busy is a report as a monitor with all modules makes it every second.
func busy() *observation.Report {
	r := report(start, admitted("MRN0001", "Test"))
	r.DeviceClock = start
	for _, code := range terms {
		t, ok := mdc.Lookup(code)
		if !ok || t.Group != mdc.GroupMETRIC || t.Unit == 0 || t.Deprecated() {
			continue
		}
		o := number(code, 1234, -1, t.Unit)
		o.Limits = observation.Limits{Low: observation.NewDecimal(50, 0), High: observation.NewDecimal(120, 0)}
		if r.Observations = append(r.Observations, o); len(r.Observations) == 40 {
			break
		}
	}
	r.Observations = append(r.Observations,
		observation.Observation{Code: ventMode, Value: observation.Value{Kind: observation.KindText, Text: "SIMV|PS"}},
		observation.Observation{Private: observation.Private{Vendor: "PHILIPS", Code: 61441, Name: "X"}, Unit: percent, Value: observation.Value{Kind: observation.KindNumber, Number: observation.NewDecimal(5, 0)}},
		episodic(number(systolic, 121, 0, mmHg), start),
		samples(ecgII, millivolt, start, ramp(0, 250)...), samples(pleth, 0, start, ramp(0, 125)...),
	)
	return r
}

// tick is a second of a port's life.
func tick(s *pcd.Snapshot, r *observation.Report, n int, emit func(pcd.Message) error) error {
	at := after(time.Duration(n) * time.Second)
	r.Received, r.DeviceClock = at, at
	for i := range r.Observations {
		o := &r.Observations[i]
		switch {
		case o.Episodic && n%15 == 0:
			o.Time = at
		case o.Value.Kind == observation.KindSamples:
			o.Time = at.Add(-time.Second)
		}
	}
	s.Add(r)
	return s.Flush(at, emit)
}

func TestTheSteadyStateAllocatesNothing(t *testing.T) {
	o := options(t)
	o.Waves = true
	o.Interval = 10 * time.Second
	s, r, n, classes := snapshot(t, o), busy(), 0, map[pcd.Class]int{}
	emit := func(m pcd.Message) error { classes[m.Class]++; return nil }
	run := func() {
		for range 60 {
			if err := tick(s, r, n, emit); err != nil {
				t.Fatal(err)
			}
			n++
		}
	}
	for range 3 {
		run()
	}
	clear(classes)
	if allocs := testing.AllocsPerRun(5, run); allocs != 0 {
		t.Errorf("%v allocations in a minute of Add and Flush", allocs)
	}
	for _, c := range []pcd.Class{pcd.Waveform, pcd.Periodic, pcd.Episodic} {
		if classes[c] < 6 {
			t.Errorf("only %d messages of class %v", classes[c], c)
		}
	}
}

func BenchmarkSnapshotAdd(b *testing.B) {
	s, r := snapshot(b, options(b)), busy()
	b.ReportAllocs()
	b.ReportMetric(float64(len(r.Observations)), "observations/op")
	for b.Loop() {
		s.Add(r)
	}
}

func BenchmarkSnapshotMessage(b *testing.B) {
	o := options(b)
	o.Interval = 0
	s, r, n := snapshot(b, o), busy(), 0
	var size int
	emit := func(m pcd.Message) error { size = len(m.Bytes); return nil }
	b.ReportAllocs()
	for b.Loop() {
		if err := tick(s, r, n, emit); err != nil {
			b.Fatal(err)
		}
		n++
	}
	b.SetBytes(int64(size))
}
