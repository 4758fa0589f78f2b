package intellivue

import (
	"time"

	"github.com/bedside-gateway/gatewayd/mdc"
	"github.com/bedside-gateway/gatewayd/observation"
)

// waveStatics are what the samples of a wave mean.
type waveStatics struct {
	label    uint32
	compound bool
	hasSpec  bool
	spec     waveSpec
	period   relativeTime
	unit     uint16
	hasScale bool
	scale    waveScale
	masks    [5]uint16 // of the fixed values, by meaning; 0: none
}

func (w *waveStatics) learn(id uint16, value []byte) {
	switch id {
	case attrLabel:
		w.label, _ = parseU32(value)
	case attrWaveSpec:
		w.spec, w.hasSpec = parseWaveSpec(value)
	case attrSamplePeriod:
		v, _ := parseU32(value)
		w.period = relativeTime(v)
	case attrUnit:
		w.unit, _ = parseU16(value)
	case attrScale:
		w.scale, w.hasScale = parseWaveScale(value)
	case attrFixedValues:
		l, ok := parseFixedValues(value)
		for i := 0; ok && i < l.count; i++ {
			r := reader{b: l.at(i, 4)}
			if meaning, mask := r.u16(), r.u16(); int(meaning) < len(w.masks) {
				w.masks[meaning] = mask
			}
		}
	}
}

// complete reports whether samples can be read with what is known.
func (w *waveStatics) complete() bool { return w.hasSpec && w.period > 0 }

func (o *object) addWave(w waveStatics) {
	for i := range o.waves {
		if o.waves[i].label == w.label && o.waves[i].compound == w.compound {
			o.waves[i] = w
			return
		}
	}
	if len(o.waves) == maxWaveKinds {
		o.waves = o.waves[:maxWaveKinds-1]
	}
	o.waves = append(o.waves, w)
}

// statics finds what a block means. One handle carries several waves, so they
// are told apart by label: that of a wave is its identifier in the metric
// partition, that of a compound one names the group. Other labels fit where
// the number of samples does, if only one does.
func (o *object) statics(w waveValue, compound bool) *waveStatics {
	var fits *waveStatics
	n := 0
	for i := range o.waves {
		s := &o.waves[i]
		if s.compound != compound {
			continue
		}
		if s.label == labelOf(w.physio) {
			return s
		}
		size := int(s.spec.size) * int(s.spec.bits) / 8
		if size == len(w.samples) && (compound || s.label>>16 != partitionMetric>>16) {
			fits = s
			n++
		}
	}
	if n != 1 {
		return nil
	}
	return fits
}

// A waitingWave is a block that came before what it means.
type waitingWave struct {
	key      uint32
	compound bool
	value    waveValue
	arrived  time.Time
	at       ticks
}

// Blocks wait for what they mean, which comes some seconds later, but not for
// ever.
const (
	maxWaiting   = 128
	maxWaitingBy = 15 * time.Second
)

// wave takes the blocks of a wave object.
func (m *machine) wave(now time.Time, at ticks, key uint32, o *object, a attributes) {
	for {
		id, value, ok := a.next()
		if !ok {
			return
		}
		switch id {
		case attrWave:
			if w, ok := parseWave(value); ok {
				m.block(now, at, key, o, w, false)
			}
		case attrCompoundWave:
			l, ok := parseCompoundWave(value)
			for ok {
				var w waveValue
				if w, ok = l.nextWave(); ok {
					m.block(now, at, key, o, w, true)
				}
			}
		}
	}
}

func (m *machine) block(now time.Time, at ticks, key uint32, o *object, w waveValue, compound bool) {
	s := o.statics(w, compound)
	if s == nil {
		m.wait(now, waitingWave{key, compound, w, now, at})
		return
	}
	m.samples(now, at, m.metric(o, w.physio, compound), s, w)
}

// samples reports a block.
func (m *machine) samples(now time.Time, at ticks, k *metric, s *waveStatics, w waveValue) {
	size := int(s.spec.bits) / 8
	out := m.out.block(len(w.samples) / size)
	out.Period, out.Mask = s.period.duration(), s.spec.mask()
	status := m.status(w.state)
	for i := range out.Values {
		v := uint16(w.samples[i*size])
		if size == 2 {
			v = v<<8 | uint16(w.samples[i*size+1])
		}
		out.Values[i] = v
		if s.marked(v, fixedInvalid) || s.marked(v, fixedSaturation) {
			status |= observation.Questionable
		}
	}
	b := m.observe(k, status, m.clock.gateway(now, at), m.clock.device(at))
	b.Unit = m.scale(s, out)
	if status.Usable() {
		b.Value = observation.Value{Kind: observation.KindSamples, Samples: out}
	}
}

func (s *waveStatics) marked(sample uint16, meaning int) bool {
	mask := s.masks[meaning]
	return mask != 0 && sample&mask == mask
}

// scale sets the scale of a block and returns its unit: none where the wave has
// no absolute scale, or one in a unit that nobody can name.
func (m *machine) scale(s *waveStatics, out *observation.Samples) mdc.Code {
	lower, upper := s.scale.lower.decimal(), s.scale.upper.decimal()
	if !s.hasScale || !lower.Valid() || !upper.Valid() || s.scale.rawLower == s.scale.rawUpper {
		return 0
	}
	unit, ok := m.unit(s.unit)
	if !ok {
		return 0
	}
	out.Lower, out.Upper, out.RawLower, out.RawUpper = lower, upper, s.scale.rawLower, s.scale.rawUpper
	return unit
}

// wait keeps a block. Where too many wait the oldest is lost, and the monitor is
// asked for its waves anew, so that it says what they are.
func (m *machine) wait(now time.Time, w waitingWave) {
	w.value.samples = append([]byte(nil), w.value.samples...)
	if len(m.waiting) == maxWaiting {
		m.note("waves come and the monitor does not say what they are: some were lost")
		m.waiting = append(m.waiting[:0], m.waiting[1:]...)
		for _, t := range m.tasks {
			if t.class == classWave && t.kind == pollOn && now.Sub(t.sent) > rarely {
				t.soon(now)
			}
		}
	}
	m.waiting = append(m.waiting, w)
}

// deliverWaiting reports the blocks that waited and are understood now.
func (m *machine) deliverWaiting(now time.Time) {
	kept := m.waiting[:0]
	for _, w := range m.waiting {
		if now.Sub(w.arrived) > maxWaitingBy {
			m.note("waves come and the monitor does not say what they are: some were lost")
			continue
		}
		o := m.object(w.key, classWave)
		if s := o.statics(w.value, w.compound); s != nil {
			m.samples(now, w.at, m.metric(o, w.value.physio, w.compound), s, w.value)
			continue
		}
		kept = append(kept, w)
	}
	clear(m.waiting[len(kept):])
	m.waiting = kept
}
