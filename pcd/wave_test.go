package pcd_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/bedside-gateway/gatewayd/observation"
	"github.com/bedside-gateway/gatewayd/pcd"
)

func waves(t testing.TB) *pcd.Snapshot {
	o := options(t)
	o.Waves = true
	return snapshot(t, o)
}

// ramp is n samples from first on.
func ramp(first, n int) []uint16 {
	list := make([]uint16, n)
	for i := range list {
		list[i] = uint16(first + i)
	}
	return list
}

// groups are the OBR segments with the samples of each.
func groups(m sent) []string {
	var list []string
	for s := range m.m.Segments() {
		switch {
		case s.Is("OBR"):
			list = append(list, s.Field(7).String()+" "+s.Field(8).String())
		case s.Field(2).Is("NA"):
			list[len(list)-1] += fmt.Sprintf(" %s %d", s.Field(3).Component(2), s.Field(5).Components())
		}
	}
	return list
}

func TestAWaveformIsAMessageOfItsOwnWithItsScale(t *testing.T) {
	s := waves(t)
	scaled := samples(ecgII, millivolt, start, 0x8001, 2, 3, 0x3FFF)
	w := scaled.Value.Samples
	w.Lower, w.Upper, w.RawLower, w.RawUpper = observation.NewDecimal(-20, -1), observation.NewDecimal(20, -1), 0, 4095
	s.Add(report(after(16*time.Millisecond), nil, number(heartRate, 72, 0, perMinute), scaled))
	if next := s.Next(); !next.Equal(after(6*time.Second + 16*time.Millisecond)) {
		t.Errorf("due at %v", next)
	}
	m := one(t, s, after(7*time.Second))
	clean(t, m)
	if m.class != pcd.Waveform {
		t.Fatalf("class %v", m.class)
	}
	_, text, _ := strings.Cut(m.text, "OBR|")
	_, rows, _ := strings.Cut(text, "1.1.1.0|||||||X\r")
	const want = `NA|131330^MDC_ECG_ELEC_POTL_II^MDC|1.1.1.3|1^2^3^16383|266418^MDC_DIM_MILLI_VOLT^MDC^mV^mV^UCUM|||||R
NM|68320^MDC_ATTR_SAMPLE_RATE^MDC|1.1.1.3.1|250|264640^MDC_DIM_HZ^MDC^Hz^Hz^UCUM|||||R
NM|68321^MDC_ATTR_SAMPLE_COUNT^MDC|1.1.1.3.2|4|262656^MDC_DIM_DIMLESS^MDC^1^1^UCUM|||||R
NR|68323^MDC_ATTR_DATA_RANGE^MDC|1.1.1.3.3|0^4095|262656^MDC_DIM_DIMLESS^MDC^1^1^UCUM|||||R
NR|68328^MDC_ATTR_PHYS_RANGE^MDC|1.1.1.3.4|-2.0^2.0|266418^MDC_DIM_MILLI_VOLT^MDC^mV^mV^UCUM|||||R
`
	var got string
	for line := range strings.SplitSeq(strings.TrimSuffix(rows, "\r"), "\r") {
		_, line, _ = strings.Cut(strings.TrimPrefix(line, "OBX|"), "|")
		got += line + "\n"
	}
	if got != want {
		t.Errorf("the rows are\n%s\nwant\n%s", got, want)
	}
	if obr := m.m.Field("OBR", 4).String(); obr != "69121^MDC_OBS_WAVE_CTS^MDC" {
		t.Errorf("OBR-4 is %s", obr)
	}
	if m.row("MDC_ECG_CARD_BEAT_RATE").Name() != "" {
		t.Error("numbers stand in the message of the waveform")
	}
}

func TestBlocksThatFollowOnEachOtherAreOneStripThoughTheirTimesJitter(t *testing.T) {
	s := waves(t)
	block := 64 * 4 * time.Millisecond
	for i := range 10 {
		jitter := time.Duration(i%3-1) * 20 * time.Millisecond
		at := after(time.Duration(i)*block + jitter)
		if i == 0 {
			at = start
		}
		s.Add(report(at.Add(block), nil, samples(pleth, 0, at, ramp(i*64, 64)...)))
	}
	first := one(t, s, after(7*time.Second))
	s.Add(report(after(11*block), nil, samples(pleth, 0, after(10*block+5*time.Millisecond), ramp(0, 64)...)))
	second := one(t, s, after(20*time.Second))
	clean(t, first, second)
	if got := fmt.Sprint(groups(first), groups(second)); got !=
		"[20260102030400+0000 20260102030402.560+0000 MDC_PULS_OXIM_PLETH 640] [20260102030402.560+0000 20260102030402.816+0000 MDC_PULS_OXIM_PLETH 64]" {
		t.Errorf("strips %s", got)
	}
	samples := first.row("MDC_PULS_OXIM_PLETH").Field(5)
	if samples.Component(1).String() != "0" || samples.Component(640).String() != "639" {
		t.Error("the samples are not in order")
	}
}

func TestALostBlockOrAnotherScaleBeginsAnotherStrip(t *testing.T) {
	s := waves(t)
	add := func(ms int, change func(*observation.Samples)) {
		o := samples(ecgII, millivolt, after(time.Duration(ms)*time.Millisecond), ramp(0, 50)...)
		change(o.Value.Samples)
		s.Add(report(after(time.Duration(ms+200)*time.Millisecond), nil, o))
	}
	same := func(*observation.Samples) {}
	add(0, same)
	add(200, same)
	add(600, same) // one is lost
	add(800, func(w *observation.Samples) {
		w.Lower, w.Upper, w.RawUpper = observation.NewDecimal(0, 0), observation.NewDecimal(1, 0), 10
	})
	m := one(t, s, after(7*time.Second))
	clean(t, m)
	want := []string{
		"20260102030400+0000 20260102030400.400+0000 MDC_ECG_ELEC_POTL_II 100",
		"20260102030400.600+0000 20260102030400.800+0000 MDC_ECG_ELEC_POTL_II 50",
		"20260102030400.800+0000 20260102030401+0000 MDC_ECG_ELEC_POTL_II 50",
	}
	if got := groups(m); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("strips\n%v\nwant\n%v", got, want)
	}
	seen := map[string]bool{}
	for g := range m.m.Segments() {
		if id := g.Field(3).Component(1).String(); g.Is("OBR") {
			if seen[id] || id == "" {
				t.Errorf("OBR-3 %q twice", id)
			}
			seen[id] = true
		}
	}
}

func TestSeveralWaveformsStandInTheOrderOfTheTree(t *testing.T) {
	s := waves(t)
	private := samples(0, 0, start, 7)
	private.Private = observation.Private{Vendor: "ACME", Code: 5, Name: "RESP"}
	s.Add(report(after(time.Second), nil, samples(pleth, percent, start, 1, 2), samples(ecgII, millivolt, start, 3), private,
		samples(ecgII, mmHg, start, 3), samples(pleth, percent, start)))
	m := one(t, s, after(7*time.Second))
	clean(t, m)
	if got := fmt.Sprint(groups(m)); strings.Count(got, "+0000 ") < 6 || !strings.Contains(got, "MDCX_ACME_RESP 1 2026") ||
		strings.Index(got, "MDC_ECG_ELEC_POTL_II 1") > strings.Index(got, "MDC_PULS_OXIM_PLETH 2") {
		t.Errorf("strips %s", got)
	}
	if c := s.Counts(); c.Observations != 3 && c.UnitRefused != 0 {
		t.Errorf("counts %+v", c)
	}
}

func TestInvalidSamplesAreNotSent(t *testing.T) {
	s := waves(t)
	bad := samples(ecgII, millivolt, start, 1, 2)
	bad.Status = observation.Invalid
	still := samples(ecgII, millivolt, start, 1, 2)
	still.Value.Samples.Period = 0
	none := samples(ecgII, millivolt, start)
	none.Value.Samples = nil
	s.Add(report(after(time.Second), nil, bad, still, none))
	if list := flush(t, s, after(time.Minute)); len(list) != 0 {
		t.Errorf("emitted\n%s", readable(list))
	}
}

func TestManySamplesDoNotMakeAMessageTooLong(t *testing.T) {
	s := waves(t)
	for i := range 8 {
		s.Add(report(after(time.Duration(i)*80*time.Second), nil, samples(ecgII, millivolt, after(time.Duration(i-1)*80*time.Second), ramp(10_000, 20_000)...)))
	}
	for _, m := range flush(t, s, after(time.Hour)) {
		if len(m.text) > 512<<10 {
			t.Errorf("a message of %d bytes", len(m.text))
		}
		clean(t, m)
	}
}
