package pcd

import (
	"slices"
	"strconv"
	"time"

	"github.com/bedside-gateway/gatewayd/mdc"
	"github.com/bedside-gateway/gatewayd/observation"
)

// A strip is a stretch of one waveform without a gap: one OBR.
type strip struct {
	place   place
	key     key
	term    *mdc.Term
	ref     slot // the names of a private waveform
	unit    *mdc.Unit
	from    time.Time
	period  time.Duration
	values  []uint16
	mask    uint16
	lower   observation.Decimal
	upper   observation.Decimal
	rawFrom uint16
	rawTo   uint16
	scaled  bool
	status  observation.Status
	id      []byte // OBR-3, for all but the first strip of a message
}

const (
	// waveInterval bounds a waveform message: seconds, not minutes.
	waveInterval = 6 * time.Second
	// maxSamples bounds it too, to some 300 kB.
	maxSamples = 60_000
)

// addSamples takes a block of samples. Its time is that of its first sample;
// where the driver does not tell it, the block ended when it arrived.
func (s *Snapshot) addSamples(r *observation.Report, o *observation.Observation, k key) {
	w := o.Value.Samples
	if w == nil || len(w.Values) == 0 || w.Period <= 0 || !o.Status.Usable() {
		return
	}
	unit, ok := s.unitOf(o, k.code)
	if !ok {
		s.counts.UnitRefused++
		return
	}
	length := time.Duration(len(w.Values)) * w.Period
	from := o.Time
	if from.IsZero() || from.After(r.Received) {
		from = r.Received.Add(-length)
	}
	// Blocks follow on each other unless half of one is missing: their times
	// jitter, the samples do not.
	if due, ok := s.streams[k]; ok && from.Sub(due).Abs() <= max(length/2, 2*w.Period) {
		from = due
	} else if ok && from.Before(due) {
		from = due // never twice the same instant
	}
	b := s.wave(r, from)
	t := b.strip(k, w, from)
	if t == nil {
		t = b.newStrip(placeFor(o, k), k, unit, w, from)
		t.describe(o, k)
	}
	t.status |= o.Status
	for _, v := range w.Values {
		t.values = append(t.values, v&w.Mask)
	}
	if len(s.streams) < 256 || !s.streams[k].IsZero() {
		s.streams[k] = t.end()
	}
	s.counts.Observations++
	if b.samples() > maxSamples {
		s.close(&s.waves, time.Time{})
	}
}

func (s *Snapshot) wave(r *observation.Report, from time.Time) *batch {
	if s.waves == nil {
		s.waves = s.batch(Waveform, from)
		s.waves.due = r.Received.Add(min(s.o.Interval, waveInterval))
	}
	s.waves.seen(r)
	return s.waves
}

// strip finds the strip that a block goes on with.
func (b *batch) strip(k key, w *observation.Samples, from time.Time) *strip {
	for i := len(b.strips) - 1; i >= 0; i-- {
		t := &b.strips[i]
		if t.key != k {
			continue
		}
		if t.period == w.Period && t.end().Equal(from) && t.mask == w.Mask && t.scaled == w.Scaled() && t.lower == w.Lower && t.upper == w.Upper &&
			t.rawFrom == w.RawLower && t.rawTo == w.RawUpper {
			return t
		}
		break
	}
	return nil
}

func (b *batch) newStrip(p place, k key, unit *mdc.Unit, w *observation.Samples, from time.Time) *strip {
	n := len(b.strips)
	if n < cap(b.strips) {
		b.strips = b.strips[:n+1]
	} else {
		b.strips = append(b.strips, strip{})
	}
	t := &b.strips[n]
	*t = strip{
		place: p, key: k, unit: unit, from: from, period: w.Period, values: t.values[:0], mask: w.Mask,
		lower: w.Lower, upper: w.Upper, rawFrom: w.RawLower, rawTo: w.RawUpper, scaled: w.Scaled(), id: t.id[:0],
		ref: slot{ref: t.ref.ref[:0], name: t.ref.name[:0]},
	}
	return t
}

func (t *strip) describe(o *observation.Observation, k key) {
	t.term, _ = mdc.Lookup(k.code)
	t.ref.term, t.ref.key = t.term, k
	if t.term == nil {
		t.ref.setPrivate(o.Private)
	}
}

// end is when the sample after the last one is due.
func (t *strip) end() time.Time { return t.from.Add(time.Duration(len(t.values)) * t.period) }

func (b *batch) samples() int {
	n := 0
	for i := range b.strips {
		n += len(b.strips[i].values)
	}
	return n
}

// strips writes one OBR for each strip, in the order of their waveforms.
func (w *writer) strips() {
	slices.SortStableFunc(w.b.strips, func(x, y strip) int { return x.place.compare(y.place) })
	for i := range w.b.strips {
		t := &w.b.strips[i]
		id := w.b.id
		if i > 0 {
			if len(t.id) == 0 {
				t.id = w.s.o.IDs.Append(t.id)
			}
			id = t.id
		}
		w.obr(id, mdcTerm(waveContinuous), t.from, t.end())
		w.system(i == 0)
		w.parents(place{}, t.place)
		w.strip(t)
	}
}

// strip writes the samples and their facets. The pair of ranges is the scale:
// a sample at an end of the data range has the value at that end of the other.
func (w *writer) strip(t *strip) {
	w.begin("NA")
	w.dst = append(t.ref.appendWhat(w.dst), '|')
	w.dst = append(appendPlace(w.dst, t.place), '|')
	for i, v := range t.values {
		if i > 0 {
			w.dst = append(w.dst, '^')
		}
		w.dst = strconv.AppendUint(w.dst, uint64(v), 10)
	}
	w.dst = append(appendUnit(append(w.dst, '|'), t.unit), '|', '|')
	var result byte
	w.dst, result = appendFlags(w.dst, t.status, true)
	w.dst = append(w.dst, '|', '|', '|', result, '\r')

	hertz, _ := mdc.LookupUnit(unitHertz)
	one, _ := mdc.LookupUnit(dimensionless)
	w.facet("NM", attrSampleRate, t.place, 1)
	w.dst = appendRate(w.dst, t.period)
	w.endFacet(hertz)
	w.facet("NM", attrSamples, t.place, 2)
	w.dst = strconv.AppendInt(w.dst, int64(len(t.values)), 10)
	w.endFacet(one)
	if !t.scaled {
		return
	}
	w.facet("NR", attrDataRange, t.place, 3)
	w.dst = strconv.AppendUint(w.dst, uint64(t.rawFrom), 10)
	w.dst = strconv.AppendUint(append(w.dst, '^'), uint64(t.rawTo), 10)
	w.endFacet(one)
	w.facet("NR", attrPhysRange, t.place, 4)
	w.dst = t.lower.Append(w.dst)
	w.dst = t.upper.Append(append(w.dst, '^'))
	w.endFacet(t.unit)
}

func (w *writer) facet(kind string, what mdc.Code, at place, number int64) {
	w.begin(kind)
	w.dst = append(appendTerm(w.dst, mdcTerm(what)), '|')
	w.dst = append(appendPlace(w.dst, at), '.')
	w.dst = append(strconv.AppendInt(w.dst, number, 10), '|')
}

func (w *writer) endFacet(u *mdc.Unit) {
	w.dst = append(appendUnit(append(w.dst, '|'), u), "|||||R\r"...)
}

// appendRate appends 1/period in hertz, to the thousandth, without trailing zeros.
func appendRate(dst []byte, period time.Duration) []byte {
	milli := (1000*int64(time.Second) + int64(period)/2) / int64(period)
	dst = strconv.AppendInt(dst, milli/1000, 10)
	if rest := milli % 1000; rest != 0 {
		dst = append(dst, '.', byte('0'+rest/100), byte('0'+rest/10%10), byte('0'+rest%10))
		for dst[len(dst)-1] == '0' {
			dst = dst[:len(dst)-1]
		}
	}
	return dst
}
