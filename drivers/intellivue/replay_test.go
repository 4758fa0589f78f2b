package intellivue

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bedside-gateway/gatewayd/drivers"
	"github.com/bedside-gateway/gatewayd/mdc"
	"github.com/bedside-gateway/gatewayd/observation"
)

// onWire lists every number and every block of samples that the monitor sent,
// read from the wire without the machine.
func onWire(t *testing.T) (numbers, blocks []string) {
	for _, c := range recordedSession(t) {
		if !c.monitor || c.data[0] != 0xE1 {
			continue
		}
		d, err := parsePDU(c.data)
		if err != nil {
			t.Fatal(err)
		}
		if d.command != cmdConfirmedAction {
			continue
		}
		a, _ := parseAction(d.body, false)
		p, _ := parsePollResult(a.info, a.kind == actionPollExt)
		eachAttribute(p, func(id uint16, value []byte) {
			switch id {
			case attrNumeric:
				n, _ := parseNumeric(value)
				numbers = append(numbers, wireNumber(n))
			case attrCompoundNumeric:
				l, _ := parseCompoundNumeric(value)
				for i := range l.count {
					n, _ := parseNumeric(l.at(i, numericSize))
					numbers = append(numbers, wireNumber(n))
				}
			case attrWave:
				w, _ := parseWave(value)
				blocks = append(blocks, wireBlock(w))
			case attrCompoundWave:
				for l, _ := parseCompoundWave(value); ; {
					w, ok := l.nextWave()
					if !ok {
						break
					}
					blocks = append(blocks, wireBlock(w))
				}
			}
		})
	}
	return numbers, blocks
}

func eachAttribute(p pollResult, f func(id uint16, value []byte)) {
	for c := p.contexts; ; {
		_, o, ok := c.next()
		if !ok {
			return
		}
		for {
			_, a, ok := o.next()
			if !ok {
				break
			}
			for {
				id, value, ok := a.next()
				if !ok {
					break
				}
				f(id, value)
			}
		}
	}
}

func wireNumber(n numericValue) string {
	k := metricTerm(n.physio)
	unit, _ := unitCode(n.unit)
	return fmt.Sprintf("%d %v %s %d %d", k.code, k.private, n.value.decimal(), unit, statusOf(n.state)|observation.Demo)
}

func wireBlock(w waveValue) string {
	k := metricTerm(w.physio)
	return fmt.Sprintf("%d %v %x %d", k.code, k.private, w.samples, statusOf(w.state)|observation.Demo)
}

func reported(o *observation.Observation) string {
	if s := o.Value.Samples; s != nil {
		var b []byte
		for _, v := range s.Values {
			b = append(b, byte(v>>8), byte(v))
		}
		return fmt.Sprintf("%d %v %x %d", o.Code, o.Private, b, o.Status)
	}
	return fmt.Sprintf("%d %v %s %d %d", o.Code, o.Private, o.Value.Number, o.Unit, o.Status)
}

// replay feeds the monitor's side of the recorded session to a listening rig.
func replay(t *testing.T, datagrams bool) *rig {
	r := newRig(t, drivers.Settings{Datagrams: datagrams, ListenOnly: true})
	if err := r.m.Start(r.now); err != nil {
		t.Fatal(err)
	}
	random := rand.New(rand.NewPCG(1, 2))
	for _, c := range recordedSession(t) {
		if !c.monitor {
			continue
		}
		r.now = c.at
		if datagrams {
			r.receive(c.data)
			continue
		}
		if c.data[0] == 0x00 {
			continue // the connect indication is of the LAN
		}
		for p := appendFrame(nil, c.data); len(p) > 0; {
			n := 1 + random.IntN(min(len(p), 200))
			if err := r.m.Receive(r.now, p[:n]); err != nil {
				t.Fatal(err)
			}
			p = p[n:]
		}
	}
	return r
}

func TestEveryValueOfTheRecordedSessionIsReported(t *testing.T) {
	wantNumbers, wantBlocks := onWire(t)
	if len(wantNumbers) != 126+36*3 || len(wantBlocks) != 149+27*3 {
		t.Fatalf("%d numbers and %d blocks on the wire", len(wantNumbers), len(wantBlocks))
	}
	for _, datagrams := range []bool{true, false} {
		r := replay(t, datagrams)
		var numbers, blocks []string
		for _, o := range r.observations() {
			if o.Value.Kind == observation.KindSamples {
				blocks = append(blocks, reported(&o))
			} else {
				numbers = append(numbers, reported(&o))
			}
		}
		if !slices.Equal(numbers, wantNumbers) {
			t.Errorf("datagrams %v: %d numbers reported, %d on the wire, or others:\n%s", datagrams, len(numbers), len(wantNumbers), firstDifference(numbers, wantNumbers))
		}
		slices.Sort(blocks)
		slices.Sort(wantBlocks)
		if !slices.Equal(blocks, wantBlocks) {
			t.Errorf("datagrams %v: %d blocks reported, %d on the wire, or others:\n%.300s", datagrams, len(blocks), len(wantBlocks), firstDifference(blocks, wantBlocks))
		}
		for fate, n := range r.counts {
			if fate != drivers.FrameGood {
				t.Errorf("datagrams %v: %d frames counted as %v", datagrams, n, fate)
			}
		}
		if len(r.sent) > 0 {
			t.Errorf("a listening machine sent %x", r.sent[0])
		}
		if r.state != drivers.Live {
			t.Errorf("the session is %v", r.state)
		}
	}
}

func firstDifference(got, want []string) string {
	for i := range want {
		if i >= len(got) || got[i] != want[i] {
			return fmt.Sprintf("at %d: want %s\n got %s", i, want[i], strings.Join(got[i:min(i+1, len(got))], ""))
		}
	}
	return "more than wanted"
}

func TestTheRecordedSessionHasItsDeviceItsTimesAndItsScales(t *testing.T) {
	r := replay(t, true)
	last := r.reports[len(r.reports)-1]
	want := observation.Device{
		Type: 69965, ID: 0x0009FBFFFE70D80B, Manufacturer: "Philips", Model: "M8000",
		Serial: "DE82021892", Software: "G.01.80", BedLabel: "LeTemple_1",
	}
	if *last.Device != want {
		t.Errorf("device %+v, want %+v", *last.Device, want)
	}
	if p := last.Patient; p == nil || p.Admission != observation.Discharged || p.Category != observation.Adult || !p.Family.Empty() || p.Height.Number.Valid() {
		t.Errorf("patient %+v, want a discharged adult of whom nothing is known", last.Patient)
	}
	// The clock of the monitor showed 14:45:59 at 191.999 s and the last message came at 232.857 s.
	clock := time.Date(2017, 11, 4, 14, 46, 39, 0, time.UTC)
	if d := last.DeviceClock.Sub(clock); d < 0 || d > 2*time.Second {
		t.Errorf("the monitor's clock shows %v at the end, want about %v", last.DeviceClock, clock)
	}
	hasAlerts, labels := 0, map[mdc.Code]*observation.Observation{}
	for _, p := range r.reports {
		if p.HasAlerts {
			hasAlerts++
		}
		for i, o := range p.Observations {
			if !o.Status.Simulated() {
				t.Errorf("%v of a monitor in demonstration mode is not marked", o.Code)
			}
			if o.Instance != 0 && o.Value.Kind != observation.KindSamples {
				t.Errorf("%v has instance %d", o.Code, o.Instance)
			}
			if age := p.Received.Sub(o.Time); !o.Episodic && (age < 0 || age > 12*time.Second) {
				t.Errorf("%v is %v old", o.Code, age)
			}
			if labels[o.Code] == nil {
				labels[o.Code] = &p.Observations[i]
			}
		}
	}
	if hasAlerts != 15 {
		t.Errorf("%d complete lists of alarms, want 15", hasAlerts)
	}
	checkWaves(t, r)
	nbp := labels[150021]
	if nbp == nil || !nbp.Episodic || !nbp.DeviceTime.Equal(time.Date(2017, 11, 4, 14, 45, 0, 0, time.UTC)) {
		t.Fatalf("systolic cuff pressure %+v", nbp)
	}
	// 14:45:00 by the monitor was 59 s before its word at 191.999 s.
	if at := sessionStart.Add(191999*time.Millisecond - 59*time.Second); nbp.Time.Sub(at).Abs() > time.Second {
		t.Errorf("cuff pressure measured at %v, want about %v", nbp.Time, at)
	}
	if puls := labels[149546]; puls == nil || !puls.Episodic {
		t.Error("the pulse of the cuff is missing, or not episodic")
	}
	if hr := labels[147842]; hr == nil || hr.Episodic || hr.Value.Number.String() != "60" {
		t.Errorf("heart rate %+v", hr)
	}
	if puls := labels[149530]; puls == nil {
		t.Error("the pulse of the oximeter is missing")
	}
	times := map[time.Time]bool{}
	for _, o := range r.observations() {
		if o.Code == 150021 {
			times[o.Time] = true
		}
	}
	if len(times) != 1 {
		t.Errorf("one cuff measurement has %d times", len(times))
	}
}

func checkWaves(t *testing.T, r *rig) {
	type wave struct {
		code   mdc.Code
		period time.Duration
		n      int
	}
	found := map[wave]*observation.Observation{}
	for _, o := range r.observations() {
		if s := o.Value.Samples; s != nil {
			found[wave{o.Code, s.Period, len(s.Values)}] = &o
		}
	}
	const millivolt, ohm, mmHg = 266418, 266432, 266016
	for w, unit := range map[wave]mdc.Code{
		{131329, 2 * time.Millisecond, 128}: millivolt, // lead I
		{131330, 2 * time.Millisecond, 128}: millivolt, // lead II alone
		{131330, 4 * time.Millisecond, 64}:  millivolt, // lead II in the compound wave of the same handle
		{131389, 2 * time.Millisecond, 128}: millivolt,
		{131403, 2 * time.Millisecond, 128}: millivolt,
		{150036, 8 * time.Millisecond, 32}:  mmHg,
		{150452, 8 * time.Millisecond, 32}:  0, // a plethysmogram has no absolute scale
		{151552, 16 * time.Millisecond, 16}: ohm,
	} {
		o := found[w]
		if o == nil {
			t.Errorf("no wave %v, %v, blocks of %d", w.code, w.period, w.n)
			continue
		}
		if o.Unit != unit || o.Value.Samples.Scaled() != (unit != 0) {
			t.Errorf("wave %v: unit %v, scaled %v", w.code, o.Unit, o.Value.Samples.Scaled())
		}
	}
	for _, o := range r.observations() {
		if s := o.Value.Samples; s != nil && o.Code == 150036 {
			if s.Mask != 0xFFFF {
				t.Errorf("the arterial wave has the mask %04X: its values go above 13 bits", s.Mask)
			}
			for i, v := range s.Values {
				if v == 0x780 && s.Physical(i) != 70 {
					t.Errorf("raw 0780 is %v mmHg, want 70", s.Physical(i))
				}
			}
		}
		if s := o.Value.Samples; s != nil && o.Code == 131330 {
			if s.Mask != 0x3FFF {
				t.Errorf("an ECG wave has the mask %04X", s.Mask)
			}
			for i, v := range s.Values {
				if v == 0x1FF8 && math.Abs(s.Physical(i)+0.04) > 0.0006 {
					t.Errorf("raw 1FF8 is %v mV, want -0.040", s.Physical(i))
				}
			}
		}
	}
}
