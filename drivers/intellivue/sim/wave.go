package sim

import (
	"math"
	"math/rand/v2"
	"time"
)

// A block of waves is 256 ms long. The fastest samples are 2 ms apart.
const (
	blockTime    = relativePerBlock * relativeUnit
	fastSamples  = 128 // 500 Hz: single ECG leads
	ecgSamples   = 64  // 250 Hz: leads of a compound ECG
	pressSamples = 32  // 125 Hz: pressures, pleth
	respSamples  = 16  // 62.5 Hz: respiration, CO2

	labelECG   = 0x00020100
	labelLeadI = 0x00020101
	labelLead2 = 0x00020102
	labelPleth = 0x00024BB4
	labelABP   = 0x00024A14
	labelART   = 0x00024A10
	labelCVP   = 0x00024A44
	labelResp  = 0x00025000
	labelCO2   = 0x000250AC

	// Sample markers of an ECG: bits above its 14 significant ones, with the
	// low bits that the recorded monitor's own masks have.
	markerSaturation = 0x8008
	markerDefib      = 0x4001
	markerPacer      = 0x8004

	maxECGWaves   = 3 // of one priority list
	maxOtherWaves = 8
)

// A bump is one deflection of a beat: a Gaussian about a phase of the beat.
type bump struct{ at, width, height float64 }

func sum(bumps []bump, phase float64) float64 {
	v := 0.0
	for _, b := range bumps {
		d := phase - b.at
		d -= math.Round(d) // the nearest beat
		v += b.height * math.Exp(-d*d/(2*b.width*b.width))
	}
	return v
}

// The beats of leads I, II and a V lead in mV: P, Q, R, S, T. The other limb
// leads follow from I and II (Einthoven, Goldberger).
var (
	beatI   = []bump{{0.12, 0.020, 0.08}, {0.235, 0.008, -0.04}, {0.25, 0.009, 0.70}, {0.265, 0.008, -0.10}, {0.50, 0.040, 0.18}}
	beatII  = []bump{{0.12, 0.020, 0.14}, {0.235, 0.008, -0.08}, {0.25, 0.009, 1.15}, {0.266, 0.008, -0.20}, {0.50, 0.040, 0.30}}
	beatV   = []bump{{0.12, 0.020, 0.06}, {0.245, 0.010, 0.45}, {0.268, 0.011, -1.10}, {0.50, 0.045, 0.40}}
	pulse   = []bump{{0.42, 0.075, 1.00}, {0.56, 0.080, 0.45}, {0.68, 0.100, 0.30}} // upstroke, dicrotic wave
	venous  = []bump{{0.15, 0.050, 1.00}, {0.32, 0.040, 0.60}, {0.60, 0.070, 0.75}} // a, c, v
	pulseHi = 1.12                                                                  // peak of sum(pulse)
)

// A waveBlock is what all waves did in 256 ms, in physical units.
type waveBlock struct {
	index       int64
	i, ii, v    [fastSamples]float64 // mV
	pacer       [fastSamples]bool
	press, cvp  [pressSamples]float64 // mmHg
	pleth       [pressSamples]float64 // 0 to 1
	breath, co2 [respSamples]float64  // Ω, mmHg
}

// waveSource makes one block after the other. It keeps the last few, so that
// two interfaces see the same patient.
type waveSource struct {
	vitals *vitals
	rng    *rand.Rand
	next   int64
	beat   float64 // phase of the heart beat
	breath float64 // phase of the breath
	kept   [16]waveBlock
}

func newWaveSource(v *vitals, rng *rand.Rand) *waveSource {
	w := &waveSource{vitals: v, rng: rng}
	for i := range w.kept {
		w.kept[i].index = -1
	}
	return w
}

// block is the block with an index. A gap longer than what is kept is skipped.
func (w *waveSource) block(index int64) *waveBlock {
	n := int64(len(w.kept))
	if w.next < index-n || w.next > index+n {
		w.next = index
	}
	for ; w.next <= index; w.next++ {
		w.generate(&w.kept[w.next&(n-1)], w.next)
	}
	return &w.kept[index&(n-1)]
}

func (w *waveSource) generate(b *waveBlock, index int64) {
	*b = waveBlock{index: index}
	step := (blockTime / fastSamples).Seconds()
	hr, rr := w.vitals.heartRate()/60, w.vitals.respRate()/60
	sys, dia := w.vitals.systolic(), w.vitals.diastolic()
	for k := range fastSamples {
		// Sinus arrhythmia: the beat is faster while air goes in.
		before := w.beat
		w.beat = math.Mod(w.beat+step*hr*(1+0.03*math.Sin(2*math.Pi*w.breath)), 1)
		w.breath = math.Mod(w.breath+step*rr, 1)
		w.ecg(b, k, before)
		if k%4 == 3 {
			w.pressures(b, k/4, sys, dia)
		}
		if k%8 == 7 {
			b.breath[k/8] = 0.65 + 0.5*math.Sin(2*math.Pi*w.breath)
			b.co2[k/8] = w.vitals.endTidal() * capnogram(w.breath)
		}
	}
}

func (w *waveSource) ecg(b *waveBlock, k int, before float64) {
	noise := func() float64 { return 0.006 * w.rng.NormFloat64() }
	b.i[k] = sum(beatI, w.beat) + noise()
	b.ii[k] = sum(beatII, w.beat) + noise()
	b.v[k] = sum(beatV, w.beat) + noise()
	b.pacer[k] = w.vitals.paced && before < 0.09 && w.beat >= 0.09
}

func (w *waveSource) pressures(b *waveBlock, k int, sys, dia float64) {
	p := sum(pulse, w.beat) / pulseHi
	b.press[k] = dia + (sys-dia)*p + 2*math.Sin(2*math.Pi*w.breath)
	b.pleth[k] = min(max(sum(pulse, w.beat-0.08)/pulseHi, 0), 1)
	b.cvp[k] = w.vitals.cvp() - 2 + 4*sum(venous, w.beat)
}

// capnogram is CO2 over a breath as a share of its end-tidal value: nothing
// while air goes in, then a steep rise and a plateau.
func capnogram(phase float64) float64 {
	if phase < 0.5 {
		return math.Exp(-phase * 60)
	}
	return min(1/(1+math.Exp(-(phase-0.57)*60)), 1) * (0.94 + 0.12*(phase-0.5))
}

// A waveObject is a wave of the MDIB.
type waveObject struct {
	context, handle uint16
	label           uint32
	name            string
	leads           []uint16 // physio ids: more than one in a compound
	period          uint32   // 1/8 ms
	significant     byte
	flags           uint16
	unit            uint16
	colour          uint16
	scale           scale
	ecg             bool
	sample          func(b *waveBlock, lead uint16, k int) float64
}

// A scale is the line between physical and raw values.
type scale struct {
	lower, upper       float
	rawLower, rawUpper uint16
}

func (s scale) append(b []byte) []byte {
	return u16(u16(u32(u32(b, s.lower.bits()), s.upper.bits()), s.rawLower), s.rawUpper)
}

// raw is the raw value of v; without absolute values v is a share of the range.
func (s scale) raw(v float64) uint16 {
	if !s.lower.isNaN() {
		lo, hi := s.lower.number(), s.upper.number()
		v = (v - lo) / (hi - lo)
	}
	span := float64(s.rawUpper) - float64(s.rawLower)
	return uint16(math.Round(float64(s.rawLower) + min(max(v, 0), 1)*span))
}

func (f float) number() float64 { return float64(f.mantissa) * math.Pow10(int(f.exponent)) }

var (
	scaleECG   = scale{float{-4096, -2}, float{40955, -3}, 0, 0x3FFF}
	scalePress = scale{float{-40, 0}, float{520, 0}, 160, 9120}
	scalePleth = scale{nan, nan, 0, 0x0FFF}
	scaleResp  = scale{float{-6, -1}, float{19, -1}, 0, 0x0FFF}
	scaleCO2   = scale{float{-4, 0}, float{150, 0}, 0, 0x0FFF}
)

// waveObjects are the waves that the monitor has. All ECG waves have one
// handle, single leads and the compound alike.
func waveObjects(art bool) []waveObject {
	ecg := func(label uint32, name string, period uint32, leads ...uint16) waveObject {
		return waveObject{context: 1, handle: 0x02AE, label: label, name: name, leads: leads, period: period,
			significant: 14, flags: 0x3000, unit: unitMillivolt, colour: 2, scale: scaleECG, ecg: true, sample: ecgSample}
	}
	press := waveObject{handle: 0x091C, label: labelABP, name: "ABP", leads: []uint16{0x4A14}, period: 64,
		significant: 13, flags: 0xA000, unit: unitMMHg, colour: 1, scale: scalePress,
		sample: func(b *waveBlock, _ uint16, k int) float64 { return b.press[k] }}
	if art {
		press.label, press.name, press.leads = labelART, "ART", []uint16{0x4A10}
	}
	return []waveObject{
		ecg(labelECG, "ECG", 32, 0x0102, 0x0143, 0x013E),
		ecg(labelLeadI, "I", 16, 0x0101), ecg(labelLead2, "II", 16, 0x0102), ecg(0x0002013D, "III", 16, 0x013D),
		ecg(0x0002013E, "aVR", 16, 0x013E), ecg(0x0002013F, "aVL", 16, 0x013F), ecg(0x00020140, "aVF", 16, 0x0140),
		ecg(0x00020143, "V", 16, 0x0143), ecg(0x0002014B, "MCL", 16, 0x014B),
		{context: 1, handle: 0x03DA, label: labelPleth, name: "Pleth", leads: []uint16{0x4BB4}, period: 64,
			significant: 12, flags: 0x8000, unit: unitNone, colour: 6, scale: scalePleth,
			sample: func(b *waveBlock, _ uint16, k int) float64 { return 0.15 + 0.7*b.pleth[k] }},
		press,
		{context: 1, handle: 0x02B8, label: labelResp, name: "Resp", leads: []uint16{0x5000}, period: 128,
			significant: 12, flags: 0x8000, unit: unitOhm, colour: 7, scale: scaleResp,
			sample: func(b *waveBlock, _ uint16, k int) float64 { return b.breath[k] }},
		{handle: 0x0924, label: labelCVP, name: "CVP", leads: []uint16{0x4A44}, period: 64,
			significant: 13, flags: 0xA000, unit: unitMMHg, colour: 6, scale: scalePress,
			sample: func(b *waveBlock, _ uint16, k int) float64 { return b.cvp[k] }},
		{context: 1, handle: 0x0541, label: labelCO2, name: "CO2", leads: []uint16{0x50AC}, period: 128,
			significant: 12, flags: 0x8000, unit: unitMMHg, colour: 3, scale: scaleCO2,
			sample: func(b *waveBlock, _ uint16, k int) float64 { return b.co2[k] }},
	}
}

// ecgSample is a lead by its physio id at a 500 Hz sample.
func ecgSample(b *waveBlock, lead uint16, k int) float64 {
	i, ii := b.i[k], b.ii[k]
	switch lead {
	case 0x0101:
		return i
	case 0x0102:
		return ii
	case 0x013D: // III
		return ii - i
	case 0x013E: // aVR
		return -(i + ii) / 2
	case 0x013F: // aVL
		return i - ii/2
	case 0x0140: // aVF
		return ii - i/2
	}
	return b.v[k]
}

// count is how many samples a block has.
func (w *waveObject) count() int { return relativePerBlock / int(w.period) }

// statics are what a client needs to make sense of the samples.
func (w *waveObject) statics(handle uint16, paced bool) []attribute {
	structure, mode := uint16(0), uint16(0x0120)
	if len(w.leads) > 1 {
		structure = 0x0103
	}
	switch {
	case !w.ecg:
		mode = 0
	case paced:
		mode = 0x0220
	}
	list := []attribute{
		attr16(groupStatic, attrHandle, handle),
		{groupStatic, attrType, u16(u16(nil, 1), classWave)},
		{groupStatic, attrMetricSpec, u16(u16(u32(u32(nil, relativePerBlock), 0x00014280), structure), 0)},
		{groupStatic, attrSampleSpec, u16(append(u16(nil, uint16(w.count())), 16, w.significant), w.flags)},
	}
	if w.ecg {
		list = append(list, attribute{groupStatic, attrFixedValues, counted(nil, 3, func(b []byte) []byte {
			return u16(u16(u16(u16(u16(u16(b, 4), markerSaturation), 3), markerDefib), 2), markerPacer)
		})})
	}
	list = append(list, attr32(groupStatic, attrSamplePeriod, w.period),
		attr32(groupDynamic, attrLabel, w.label),
		attribute{groupDynamic, attrLabelString, appendString(nil, w.name, 6)},
		attr16(groupDynamic, attrUnit, w.unit))
	if w.ecg || w.label == labelResp {
		list = append(list, attr16(groupDynamic, attrMeasureMode, mode))
	}
	return append(list, attr16(groupDynamic, attrColour, w.colour), attr16(groupDynamic, attrMetricState, 0),
		attribute{groupDynamic, attrScale, w.scale.append(nil)})
}

// value is the samples of a block as an attribute.
func (m *Monitor) waveValue(w *waveObject, b *waveBlock) attribute {
	var value []byte
	n := w.count()
	every := 1
	if w.ecg {
		every = fastSamples / n
	}
	for _, lead := range w.leads {
		value = u16(u16(value, lead), m.measurementState(lead))
		value = sized(value, func(v []byte) []byte {
			for k := range n {
				v = u16(v, m.sample(w, b, lead, k*every, every))
			}
			return v
		})
	}
	if len(w.leads) == 1 {
		return attribute{groupValue, attrWave, value}
	}
	all := counted(nil, len(w.leads), func(b []byte) []byte { return append(b, value...) })
	return attribute{groupValue, attrCompoundWave, all}
}

// sample is one raw sample, with the pacer's marker where it fired since the last.
func (m *Monitor) sample(w *waveObject, b *waveBlock, lead uint16, k, every int) uint16 {
	raw := w.scale.raw(w.sample(b, lead, k))
	if !w.ecg {
		return raw
	}
	for _, fired := range b.pacer[k : k+every] {
		if fired {
			raw |= markerPacer
		}
	}
	return raw
}

// listedWaves are the waves that are exported: those of the priority list, or
// those on the screen as long as no client set one.
func (m *Monitor) listedWaves() []waveObject {
	labels := m.waveList
	if !m.waveListSet {
		labels = []uint32{labelLead2, labelPleth, labelABP, labelART, labelResp}
	}
	var listed []waveObject
	for _, label := range labels {
		for _, w := range waveObjects(m.o.ART) {
			if w.label == label {
				listed = append(listed, w)
			}
		}
	}
	return listed
}

// setWaves takes a priority list as far as the monitor can follow it: known
// waves, at most three of the ECG and eight others.
func (m *Monitor) setWaves(labels []uint32) {
	m.waveListSet, m.waveList = true, nil
	ecgs, others := 0, 0
	for _, label := range labels {
		for _, w := range waveObjects(m.o.ART) {
			n, most := &others, maxOtherWaves
			if w.ecg {
				n, most = &ecgs, maxECGWaves
			}
			if w.label == label && *n < most {
				*n++
				m.waveList = append(m.waveList, label)
			}
		}
	}
}

// staticBlock is in which result of a poll the statics of wave i come: the
// first two at once, each other four results later, as recorded. So values
// come before what they mean.
func staticBlock(i int) uint16 {
	if i < 2 {
		return uint16(i)
	}
	return uint16(4*(i-1) + 1)
}

// waveResults are the results of a wave poll at a tick: one for each 256 ms
// that passed, and an empty one where no waves are exported. The first result
// of an extended poll has only statics.
func (m *Monitor) waveResults(p *poll, t time.Time, granted bool) []result {
	var listed []waveObject
	if granted {
		listed = m.listedWaves()
	}
	now := m.units(t)
	last := now / relativePerBlock // the block that is not complete yet
	first := !p.sent || p.nextBlock > last
	switch {
	case !p.extended:
		p.nextBlock = max(last-1, 0)
	case first || len(listed) == 0:
		p.nextBlock = last
		return []result{{uint32(now), m.waveObjects(p, listed, nil, p.sequence)}}
	}
	p.nextBlock = max(p.nextBlock, last-int64(len(m.waves.kept))/2)
	var results []result
	for ; p.nextBlock < last; p.nextBlock++ {
		objects := m.waveObjects(p, listed, m.waves.block(p.nextBlock), p.sequence+uint16(len(results)))
		results = append(results, result{uint32(p.nextBlock * relativePerBlock), objects})
	}
	return results
}

// waveObjects are the waves in the result with a sequence number; without a
// block they are statics only.
func (m *Monitor) waveObjects(p *poll, listed []waveObject, block *waveBlock, sequence uint16) []object {
	var objects []object
	for i := range listed {
		w := &listed[i]
		o := object{context: w.context, handle: m.handle(w.handle)}
		if p.group == groupAll && (!p.extended || sequence == staticBlock(i)) {
			o.attributes = w.statics(o.handle, m.o.Paced)
		}
		if block != nil {
			o.attributes = append(o.attributes, m.waveValue(w, block))
			o.wave = w.label
		}
		if len(o.attributes) > 0 {
			objects = append(objects, o)
		}
	}
	return objects
}
