package intellivue

import (
	"testing"
	"time"

	"github.com/bedside-gateway/gatewayd/drivers"
	"github.com/bedside-gateway/gatewayd/observation"
)

// beats are results as they come each second: numbers in linked parts, and
// blocks of waves.
func beats() (numeric, waves [][]byte, n int) {
	p := reply{invoke: 100, extended: true, class: classNumeric, group: groupValues, rel: 80_000}
	var items []item
	for i := range uint16(20) {
		items = append(items, item{1, 100 + i, attrs(numericAttr(0x4182+i, 0, 0x0AA0, 60))})
	}
	items = append(items, item{1, 200, attrs(compoundAttr(numericValue{0x4A15, 0, 0x0F20, 120}, numericValue{0x4A16, 0, 0x0F20, 80}, numericValue{0x4A17, 0, 0x0F20, 91}))})
	numeric = [][]byte{p.with(items[:10]...).linked(1, 1).bytes(), p.with(items[10:]...).linked(3, 2).bytes(), p.bytes()}
	w := reply{invoke: 101, extended: true, class: classWave, rel: 80_000}
	samples := make([]uint16, 128)
	for i := range samples {
		samples[i] = uint16(i * 37 & 0x3FFF)
	}
	spec := waveSpec{size: 128, bits: 16, significant: 14, flags: waveMarkers}
	waves = [][]byte{
		w.with(item{1, 5, attrs(append(staticsOf(0x20102, spec, scale1, 0), waveAttr(0x0102, 0, samples...))...)}).bytes(),
		w.with(item{1, 5, attrs(waveAttr(0x0102, 0, samples...))}).bytes(),
	}
	return numeric, waves, 23
}

// A quietHost does nothing but count.
type quietHost struct{ values int }

func (h *quietHost) Send([]byte)                  {}
func (h *quietHost) Report(r *observation.Report) { h.values += len(r.Observations) }
func (h *quietHost) State(drivers.State)          {}
func (h *quietHost) Count(drivers.Frame)          {}
func (h *quietHost) Note(string)                  {}

func listening(t testing.TB, h drivers.Host) *machine {
	m, err := newMachine(drivers.Settings{ListenOnly: true}, h)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Start(sessionStart); err != nil {
		t.Fatal(err)
	}
	return m
}

func TestAValueIsDecodedWithoutAllocation(t *testing.T) {
	numeric, waves, perBeat := beats()
	for name, c := range map[string]struct {
		messages [][]byte
		values   int
	}{"numbers": {numeric, perBeat}, "waves": {waves[1:], 1}} {
		h := &quietHost{}
		m := listening(t, h)
		now := sessionStart
		var frames []byte
		for _, p := range append(waves[:1:1], c.messages...) {
			frames = appendFrame(frames, p)
		}
		if err := m.Receive(now, frames); err != nil { // so that it knows all objects
			t.Fatal(err)
		}
		frames = frames[:0]
		for _, p := range c.messages {
			frames = appendFrame(frames, p)
		}
		h.values = 0
		const rounds = 100
		allocs := testing.AllocsPerRun(rounds, func() {
			now = now.Add(time.Second)
			if err := m.Receive(now, frames); err != nil {
				t.Fatal(err)
			}
		})
		if allocs != 0 {
			t.Errorf("%s: %v allocations", name, allocs)
		}
		if h.values != (rounds+1)*c.values {
			t.Errorf("%s: %d values in %d rounds", name, h.values, rounds+1)
		}
	}
}

// BenchmarkDecode is from the bytes of the line to the report.
func BenchmarkDecode(b *testing.B) {
	numeric, waves, perBeat := beats()
	for _, c := range []struct {
		name     string
		messages [][]byte
		values   int
	}{{"Numerics", numeric, perBeat}, {"Waves", waves[1:], 1}} {
		b.Run(c.name, func(b *testing.B) {
			h := &quietHost{}
			m := listening(b, h)
			if err := m.Receive(sessionStart, appendFrame(nil, waves[0])); err != nil {
				b.Fatal(err)
			}
			var frames []byte
			for _, p := range c.messages {
				frames = appendFrame(frames, p)
			}
			now := sessionStart
			b.SetBytes(int64(len(frames)))
			b.ReportAllocs()
			for b.Loop() {
				now = now.Add(time.Second)
				if err := m.Receive(now, frames); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(c.values), "ns/value")
		})
	}
}

// BenchmarkDeframe is the frame alone.
func BenchmarkDeframe(b *testing.B) {
	numeric, _, _ := beats()
	var frames []byte
	for range 20 {
		for _, p := range numeric {
			frames = appendFrame(frames, p)
		}
	}
	var d deframer
	b.SetBytes(int64(len(frames)))
	b.ReportAllocs()
	for b.Loop() {
		for p := frames; ; {
			rest, _, _, ok := d.next(p)
			if !ok {
				break
			}
			p = rest
		}
	}
}

// BenchmarkSession is the whole recorded session of a real monitor.
func BenchmarkSession(b *testing.B) {
	var list []captured
	size := 0
	for _, c := range recordedSession(b) {
		if c.monitor {
			list = append(list, c)
			size += len(c.data)
		}
	}
	b.SetBytes(int64(size))
	b.ReportAllocs()
	for b.Loop() {
		m, err := newMachine(drivers.Settings{Datagrams: true, ListenOnly: true}, &quietHost{})
		if err != nil {
			b.Fatal(err)
		}
		for _, c := range list {
			if err := m.Receive(c.at, c.data); err != nil {
				b.Fatal(err)
			}
		}
	}
}
