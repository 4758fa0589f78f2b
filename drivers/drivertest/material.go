package drivertest

import (
	"bytes"
	"hash/maphash"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/bedside-gateway/gatewayd/drivers"
	"github.com/bedside-gateway/gatewayd/drivers/port"
	"github.com/bedside-gateway/gatewayd/mdc"
	"github.com/bedside-gateway/gatewayd/observation"
)

// A material is a recorded session, with what the machine makes of it when
// nothing goes wrong.
type material struct {
	name     string
	settings drivers.Settings
	records  []port.Record // of the device
	baseline *outcome
	expect   func([]observation.Report) error
}

// gather is called by each check that works on material. The sessions with the
// simulated device are recorded the first time.
func (c *checker) gather() []*material {
	if c.materials != nil {
		return c.materials
	}
	for _, datagrams := range c.kinds() {
		c.live(datagrams, drivers.Settings{}, nil, func(l *live) {
			l.awaitReports(5)
			l.sleep(5 * time.Second)
			l.mu.Lock()
			defer l.mu.Unlock()
			c.addMaterial("simulated "+kindName(datagrams), drivers.Settings{Datagrams: datagrams}, slices.Clone(l.records), nil)
		})
	}
	for _, r := range c.k.Recordings {
		settings := drivers.Settings{Datagrams: r.Datagrams, ListenOnly: !c.d.Info().Passive}
		c.addMaterial(r.Name, settings, r.Records, r.Expect)
	}
	if c.materials == nil {
		c.failf("the kit has neither a simulated device nor a recording")
		c.fatal = true
	}
	return c.materials
}

func (c *checker) addMaterial(name string, s drivers.Settings, records []port.Record, expect func([]observation.Report) error) {
	m := &material{name: name, settings: s, expect: expect}
	for _, r := range records {
		if r.Direction == port.FromDevice {
			m.records = append(m.records, r)
		}
	}
	m.baseline = c.play(m.play())
	if why := m.baseline.broken(); why != "" {
		c.failf("%s: %s", name, why)
		c.fatal = true
	}
	c.materials = append(c.materials, m)
}

func (m *material) play() play { return play{settings: m.settings, records: m.records} }

// streams are the materials that are streams.
func (c *checker) streams() (s []*material) {
	for _, m := range c.gather() {
		if !m.settings.Datagrams {
			s = append(s, m)
		}
	}
	return s
}

// bytes is all that the device sent.
func (m *material) bytes() []byte {
	var all []byte
	for _, r := range m.records {
		all = append(all, r.Data...)
	}
	return all
}

// seeded is a generator that gives the same each time, and other numbers for each purpose.
func seeded(purpose string) *rand.Rand {
	var seed [32]byte
	copy(seed[:], purpose)
	return rand.New(rand.NewChaCha8(seed))
}

func randomBytes(r *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// budget is how many bytes a check plays in all, so that kits stay quick.
const budget = 2 << 20

// tries is how often m can be played for the budget.
func (m *material) tries() int { return min(max(budget/(len(m.bytes())+1), 40), 1000) }

// points are up to n different numbers below limit, the first ones among them.
func points(r *rand.Rand, limit, n int) []int {
	if limit <= n {
		all := make([]int, limit)
		for i := range all {
			all[i] = i
		}
		return all
	}
	all := r.Perm(limit)[:n]
	for i := range n / 4 {
		all[i] = i
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// A value is what a report says of one thing, without the times.
type value struct {
	code, unit, is mdc.Code
	private        observation.Private
	instance       uint8
	kind           observation.Kind
	number         observation.Decimal
	text           string
	samples        uint64
}

var sampleSeed = maphash.MakeSeed()

func valueOf(o *observation.Observation) value {
	v := value{code: o.Code, unit: o.Unit, is: o.Value.Code, private: o.Private, instance: o.Instance,
		kind: o.Value.Kind, number: o.Value.Number, text: o.Value.Text}
	if s := o.Value.Samples; s != nil {
		var h maphash.Hash
		h.SetSeed(sampleSeed)
		for _, sample := range s.Values {
			maphash.WriteComparable(&h, sample)
		}
		v.samples = h.Sum64()
	}
	return v
}

// values are what reports say.
func values(reports []observation.Report) map[value]bool {
	set := make(map[value]bool)
	for i := range reports {
		for j := range reports[i].Observations {
			set[valueOf(&reports[i].Observations[j])] = true
		}
	}
	return set
}

// strange is a value of the reports that is not known, or nothing.
func strange(reports []observation.Report, known map[value]bool) string {
	for i := range reports {
		for j := range reports[i].Observations {
			if o := &reports[i].Observations[j]; o.Value.Kind != observation.KindNone && !known[valueOf(o)] {
				return describe(*o)
			}
		}
	}
	return ""
}

// altered are the records with one of them changed by f.
func altered(records []port.Record, i int, f func([]byte) []byte) []port.Record {
	changed := slices.Clone(records)
	changed[i].Data = f(bytes.Clone(changed[i].Data))
	return changed
}

// locate finds the record and the place in it of byte n of the stream.
func locate(records []port.Record, n int) (record, place int) {
	for i, r := range records {
		if n < len(r.Data) {
			return i, n
		}
		n -= len(r.Data)
	}
	return len(records) - 1, 0
}
