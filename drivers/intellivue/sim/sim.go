// Package sim is a simulated Philips IntelliVue monitor, and a recorded one
// that plays its session again, for tests and demonstrations: each answers a
// live client over RS-232 framing or UDP as the real one would, with its
// timing, its linked results, its quirks and, when told to, its faults.
//
// It has its own encoder and decoder, written from the protocol and not shared
// with the driver, so that the two check each other. It never imports the
// driver, and nothing of a recording is built in: a Monitor generates what it
// says. Its users are tests and cmd/gatewaysim; it is no part of the firmware.
package sim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"time"
)

// Options are what a monitor is and how it behaves. The zero value is a sound
// monitor without a patient.
type Options struct {
	// Seed makes the values, and everything else that is random, repeatable.
	Seed uint64
	// Now is the clock of the world, time.Now by default.
	Now func() time.Time
	// Log gets associations, refusals and releases; nil is silent.
	Log *slog.Logger
	// OnNumeric is called for each value of a numeric that was sent undamaged,
	// right after it was written, from the goroutine that serves. Values that
	// are not numbers are told, too, with an empty Value, but not counted.
	OnNumeric func(Numeric)

	Tick     time.Duration // between two poll results; 0: 1.024 s
	Clock    time.Time     // what the monitor's own clock shows at New; zero: Now
	Relative uint32        // relative time at New, 1/8 ms: to see it wrap

	Model    string   // 0: M8000
	Product  string   // 0: M8003A
	Serial   string   // 0: SIM0000001
	Software string   // 0: G.01.80
	MAC      [6]byte  // 0: 00:09:FB:00:00:01
	BedLabel string   // at most 16 characters
	Patient  *Patient // nil: none admitted
	Baseline Baseline // where the vital signs start from

	Demo     bool          // demonstration mode: state bit 0400, operating mode 2000
	Paced    bool          // a paced patient: pacer markers in the ECG
	ART      bool          // the arterial line is labelled ART and not ABP
	NBPEvery time.Duration // between two cuff measurements; 0: 5 min, negative: only MeasureNBP
	// States sets bits in the measurement state of values by physio id; with
	// bit 8000 (invalid) or 2000 (unavailable) the value is not a number.
	States map[uint16]uint16
	// AlarmEvery raises an alarm of a small repertoire each such time, for a
	// third of it; 0: only RaiseAlarm.
	AlarmEvery time.Duration

	MTU           int    // largest PDU to send and to take; 0: 1456
	Part          int    // largest part of a linked result; 0: 960, as recorded of an M8003A
	MinPeriod     uint32 // shortest poll period to grant, 1/8 ms; 0: 1000 (125 ms)
	PollOptions   uint32 // extended poll options to grant at most; 0: 1 s numerics, waves, enumerations, lists
	CreateInvoke  uint16 // invoke id of the MDS create event; 0: 1
	RepeatStatics bool   // numerics repeat their static attributes at each tick, as recorded of an M8003A
	ClosingData   bool   // the closing message of a linked result carries its last part, else it is empty
	TimedResults  bool   // poll results carry the absolute time, else FF…FF
	WavesTaken    bool   // another client owns the waves: setting their list is denied

	Refuse             bool          // refuse every association
	Busy               int           // refuse so many associations first
	AcceptDelay        time.Duration // from request to accept; 0: 1.1 to 2.2 s
	Latency            time.Duration // of answers that do not wait for a tick; 0: 80 ms or an eighth of a tick
	AssociationTimeout time.Duration // without a word of the client; 0: by the poll period, 10 s at least
	EventRetry         time.Duration // until the create event is repeated; 0: 3 s
	RebootTime         time.Duration // silence after Reboot; 0: 5 s

	GarbleRate float64       // share of messages that noise damages
	HalfFrame  float64       // share of messages that break off half way
	Slow       time.Duration // added to each answer; a stream then comes in small pieces

	// Indicate is where ServePacket announces the monitor (connect indication,
	// UDP port 24005), every IndicateEvery, 61 s by default.
	Indicate      net.Addr
	IndicateEvery time.Duration
}

// A Numeric is one value that the monitor sent.
type Numeric struct {
	Label    uint32 // text id of the object
	Physio   uint16 // NOM code in partition 2
	Unit     uint16 // NOM code in partition 4
	State    uint16 // measurement state
	Handle   uint16
	Context  uint16
	Value    string    // its digits as sent; empty where it is not a number
	Time     time.Time // of the result by the monitor's own clock; of the measurement where it is episodic
	Relative uint32    // relative time of the result
	Episodic bool
}

// Counts are what a monitor did since New.
type Counts struct {
	Associations, Refusals, Timeouts uint64
	Requests, Errors                 uint64            // requests understood; answered by an error
	BadFrames, BadRequests           uint64            // received damaged; not understood
	Sent, SentBytes                  uint64            // PDUs undamaged, and their bytes without framing
	Damaged                          uint64            // PDUs garbled or cut on purpose
	Lost                             uint64            // PDUs into an unplugged cable, or a line that nobody reads
	Numerics                         map[uint16]uint64 // by physio id: values sent undamaged, times sent
	WaveBlocks                       map[uint32]uint64 // by label: 256 ms blocks sent undamaged
}

// A Monitor is a simulated monitor. Its methods are safe for concurrent use.
// Each Serve call is an interface of its own with one association at a time.
type Monitor struct {
	o    Options
	line *line

	mu       sync.Mutex
	rng      *rand.Rand
	began    time.Time // New: where the monitor's clock stood at Options.Clock
	booted   time.Time
	relative uint32 // at booted
	boots    int
	quiet    time.Time // silent until then, after a reboot
	release  int       // calls of Release
	refuse   bool
	busy     int
	assoc    uint16

	patient *Patient
	alarms  alarmList
	states  map[uint16]uint16
	vitals  *vitals
	waves   *waveSource
	cuff    cuff

	waveList    []uint32
	waveListSet bool
	numericList []uint32
	counts      Counts
}

// New makes a monitor that is switched on now.
func New(o Options) (*Monitor, error) {
	if err := o.check(); err != nil {
		return nil, fmt.Errorf("simulated monitor: %w", err)
	}
	o.fill()
	now := o.Now()
	m := &Monitor{
		o: o, began: now, booted: now, relative: o.Relative, refuse: o.Refuse, busy: o.Busy,
		rng:    rand.New(rand.NewPCG(o.Seed, 0x1E77)),
		states: map[uint16]uint16{},
		counts: Counts{Numerics: map[uint16]uint64{}, WaveBlocks: map[uint32]uint64{}},
	}
	if o.Clock.IsZero() {
		m.o.Clock = now
	}
	for id, s := range o.States {
		m.states[id] = s
	}
	m.patient = o.Patient.clone()
	m.vitals = newVitals(o.Baseline, o.Paced, rand.New(rand.NewPCG(o.Seed, 0x0B)))
	m.waves = newWaveSource(m.vitals, rand.New(rand.NewPCG(o.Seed, 0xECC)))
	m.line = newLine(o.GarbleRate, o.HalfFrame, o.Slow > 0, o.Seed)
	return m, nil
}

func (o *Options) check() error {
	switch {
	case o.Tick < 0 || o.Slow < 0 || o.AcceptDelay < 0 || o.Latency < 0:
		return errors.New("a negative duration")
	case o.MTU != 0 && (o.MTU < minTransferUnit || o.MTU > maxTransferUnit):
		return fmt.Errorf("MTU %d: it is %d to %d", o.MTU, minTransferUnit, maxTransferUnit)
	case o.GarbleRate < 0 || o.GarbleRate > 1 || o.HalfFrame < 0 || o.HalfFrame > 1:
		return errors.New("a share of damaged messages is 0 to 1")
	case len(o.BedLabel) > 16:
		return fmt.Errorf("bed label %q: it has at most 16 characters", o.BedLabel)
	}
	return o.Patient.check()
}

// or is v, or its default.
func or[T comparable](v *T, otherwise T) {
	var zero T
	if *v == zero {
		*v = otherwise
	}
}

func (o *Options) fill() {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	or(&o.Tick, relativePerTick*relativeUnit)
	or(&o.Model, "M8000")
	or(&o.Product, "M8003A")
	or(&o.Serial, "SIM0000001")
	or(&o.Software, "G.01.80")
	or(&o.MAC, [6]byte{0x00, 0x09, 0xFB, 0, 0, 1})
	or(&o.NBPEvery, 5*time.Minute)
	or(&o.MTU, maxTransferUnit)
	or(&o.Part, 960)
	or(&o.MinPeriod, 1000)
	or(&o.PollOptions, defaultPollExtFlags)
	or(&o.CreateInvoke, 1)
	or(&o.Latency, min(80*time.Millisecond, o.Tick/8))
	or(&o.EventRetry, 3*time.Second)
	or(&o.RebootTime, 5*time.Second)
	or(&o.IndicateEvery, 61*time.Second)
}

// ServeStream is the MIB/RS-232 socket: it talks over rw until ctx is done or
// rw fails. If rw is an io.Closer it is closed at the end, which is what ends a
// read that waits. The error is nil when ctx ended it.
func (m *Monitor) ServeStream(ctx context.Context, rw io.ReadWriter) error {
	return serveStream(ctx, rw, newLink(m), m.o.Now, m.line)
}

// ServePacket is the LAN socket. The connection is closed at the end. The
// error is nil when ctx ended it.
func (m *Monitor) ServePacket(ctx context.Context, conn net.PacketConn) error {
	a := announcement{to: m.o.Indicate, every: m.o.IndicateEvery, pdu: m.indication}
	return servePacket(ctx, conn, newLink(m), m.o.Now, m.line, a)
}

// Counts is what was done so far.
func (m *Monitor) Counts() Counts {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := m.counts
	c.Numerics, c.WaveBlocks = make(map[uint16]uint64), make(map[uint32]uint64)
	for k, v := range m.counts.Numerics {
		c.Numerics[k] = v
	}
	for k, v := range m.counts.WaveBlocks {
		c.WaveBlocks[k] = v
	}
	return c
}

// Reboot switches the monitor off and on: it forgets its association without a
// word, is silent for a time, and comes back with a new relative time, new
// handles and no priority list.
func (m *Monitor) Reboot() {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.o.Now()
	m.boots++
	m.quiet = now.Add(m.o.RebootTime)
	m.booted, m.relative = m.quiet, 0
	m.waveList, m.waveListSet, m.numericList = nil, false, nil
}

// Release makes the monitor end its associations in good order, at its next tick.
func (m *Monitor) Release() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.release++
}

// Unplug pulls the network cable or the plug at the monitor: nothing gets
// through in either direction until Plug. For a pulled serial adapter see PTY.
func (m *Monitor) Unplug() { m.line.unplugged.Store(true) }

// Plug undoes Unplug.
func (m *Monitor) Plug() { m.line.unplugged.Store(false) }

// SetRefuse makes the monitor refuse all new associations, or not.
func (m *Monitor) SetRefuse(refuse bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.refuse = refuse
}

// SetPatient admits or changes the patient; nil leaves none.
func (m *Monitor) SetPatient(p *Patient) error {
	if err := p.check(); err != nil {
		return fmt.Errorf("simulated monitor: %w", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.patient = p.clone()
	return nil
}

// SetState sets the bits of the measurement state of the values with a physio
// id; see Options.States.
func (m *Monitor) SetState(physio, state uint16) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.states[physio] = state
}

// MeasureNBP measures the cuff pressure now.
func (m *Monitor) MeasureNBP() {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.o.Now()
	m.vitals.advance(now.Sub(m.began))
	m.cuff = m.vitals.measure(m.clock(now))
	m.cuff.due = now.Add(m.o.NBPEvery)
}

// clock is what the monitor's clock shows at t.
func (m *Monitor) clock(t time.Time) time.Time { return m.o.Clock.Add(t.Sub(m.began)) }

// units is the relative time at t without its wrap.
func (m *Monitor) units(t time.Time) int64 {
	return int64(m.relative) + int64(max(t.Sub(m.booted), 0)/relativeUnit)
}

// advance brings patient and alarms to t.
func (m *Monitor) advance(t time.Time) {
	m.vitals.advance(t.Sub(m.began))
	if m.o.NBPEvery > 0 && !t.Before(m.cuff.due) {
		m.cuff = m.vitals.measure(m.clock(t))
		m.cuff.due = t.Add(m.o.NBPEvery)
	}
	m.alarms.cycle(t.Sub(m.began), m.o.AlarmEvery)
}
