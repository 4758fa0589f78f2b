package pcd

import (
	"slices"
	"time"

	"github.com/bedside-gateway/gatewayd/mdc"
	"github.com/bedside-gateway/gatewayd/observation"
)

// A Snapshot gathers the reports of one port and makes messages of them for one
// destination. Three kinds of messages leave it: periodic ones with the latest
// value of everything that was reported in the interval, episodic ones at once
// for each measurement that stands until the next (a cuff pressure), and
// waveforms.
//
// A value is sent once. What was not reported again within an interval is not
// in its message: no value is held beyond its time.
//
// When the patient, the device or the course of the device's clock changes,
// what was gathered until then goes into messages of its own, with the patient
// of that time. Nothing is attached to a patient afterwards.
//
// A Snapshot is not safe for concurrent use.
type Snapshot struct {
	o         Options
	head      header
	authority []byte // PID-3.4
	facility  []byte // PV1-3.4
	counts    Counts
	problem   error

	device  *device
	patient *patient
	// patientSince is when the device last changed its mind about the patient;
	// zero while it never did.
	patientSince time.Time
	heard        bool          // the device has reported before
	clockSkew    time.Duration // of the device's clock against ours
	clockKnown   bool
	latest       time.Time // arrival of the latest report

	open, waves *batch
	end         time.Time // of the last periodic interval
	pending     []*batch  // closed, in the order in which they go out
	free        []*batch
	measured    map[key]measurement
	streams     map[key]time.Time // when the next sample of a waveform is due

	buf   []byte
	retry time.Time // not before, after a failed emit
}

// A measurement is an episodic value that was taken already.
type measurement struct {
	time, device time.Time
	number       observation.Decimal
	kind         observation.Kind
	code         mdc.Code
	text         uint64
	status       observation.Status
}

const (
	// clockStep is how much the device's clock may stray against ours between
	// two reports, by transport and by reading it in whole seconds. More is a step.
	clockStep = 5 * time.Second
	// sameMeasurement is how far two tellings of one measurement's time may be
	// apart, where the gateway had to work it out.
	sameMeasurement = 2 * time.Second
	// maxPending is how many closed messages wait for an emit that fails.
	maxPending = 64
	// retryAfter a failed emit.
	retryAfter = time.Second
)

// NewSnapshot checks the options and begins. Its errors name the option.
func NewSnapshot(o Options) (*Snapshot, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	s := &Snapshot{o: o, head: o.header(), measured: map[key]measurement{}, streams: map[key]time.Time{}}
	s.authority, _ = appendDesignator(nil, o.AssigningAuthority, '&') // checked
	s.facility, _ = appendDesignator(nil, o.Location.Facility, '&')
	return s, nil
}

// Counts say what became of the reports so far.
func (s *Snapshot) Counts() Counts { return s.counts }

// Problem is why data of the device at hand are not sent at all, in words for
// the operator; nil where they are.
func (s *Snapshot) Problem() error { return s.problem }

// Add takes what a device said. It keeps nothing of r.
func (s *Snapshot) Add(r *observation.Report) {
	s.counts.Reports++
	if !s.follow(r) {
		s.counts.Unidentified += uint64(len(r.Observations))
		return
	}
	if r.Received.After(s.latest) {
		s.latest = r.Received
	}
	var episodic *batch
	for i := range r.Observations {
		o := &r.Observations[i]
		switch k, ok := s.admit(o); {
		case !ok:
		case o.Value.Kind == observation.KindSamples:
			s.addSamples(r, o, k)
		case o.Episodic:
			s.addEpisodic(r, o, k, &episodic)
		default:
			s.put(s.periodic(r), r, o, k)
		}
	}
	s.addPatientSize(r)
	if episodic != nil {
		s.close(&episodic, time.Time{})
	}
	if s.o.Interval == 0 {
		s.close(&s.open, time.Time{})
		s.close(&s.waves, time.Time{})
	}
}

// follow notices what separates the data before from those after r. It reports
// whether the device can be sent at all.
func (s *Snapshot) follow(r *observation.Report) bool {
	if d := r.Device; s.device == nil || d == nil || s.device.said != *d {
		s.changeDevice(r)
	}
	if s.problem != nil {
		return false
	}
	if !s.patient.is(r.Patient) {
		if s.heard {
			s.patientSince = r.Received
		}
		s.Cut(r.Received)
		s.patient = newPatient(r.Patient)
	}
	s.heard = true
	if s.clockStepped(r) {
		s.Cut(r.Received)
	}
	return true
}

// changeDevice begins with another device, or with more knowledge of the same one.
func (s *Snapshot) changeDevice(r *observation.Report) {
	s.Cut(r.Received)
	said := r.Device
	if said == nil {
		said = new(observation.Device)
	}
	d, problem := newDevice(said, s.o.DeviceID)
	if s.device == nil || s.device.id != d.id {
		clear(s.measured)
		s.clockKnown, s.heard, s.patient, s.patientSince, s.end = false, false, nil, time.Time{}, time.Time{}
	}
	s.device, s.problem = d, problem
}

// clockStepped reports whether the device's clock was set since the last report,
// or ours was: from then on it is another timeline (TF, OBR-7).
func (s *Snapshot) clockStepped(r *observation.Report) bool {
	if r.DeviceClock.IsZero() {
		return false
	}
	skew := inZone(r.DeviceClock, time.UTC).Sub(r.Received)
	stepped := s.clockKnown && (skew-s.clockSkew).Abs() > clockStep
	s.clockSkew, s.clockKnown = skew, true
	return stepped
}

// inZone is the date and time of day of t, read in another zone.
func inZone(t time.Time, zone *time.Location) time.Time {
	year, month, day := t.Date()
	hour, minute, second := t.Clock()
	return time.Date(year, month, day, hour, minute, second, t.Nanosecond(), zone)
}

// Cut ends the present interval at the given time: the next Flush emits what
// was gathered, due or not. A daemon does so when a session ends and before it
// stops.
func (s *Snapshot) Cut(at time.Time) {
	s.close(&s.open, at)
	s.close(&s.waves, at)
	clear(s.streams)
}

// admit judges an observation by the options and works out its key.
func (s *Snapshot) admit(o *observation.Observation) (key, bool) {
	k := key{code: o.Code.Current(), instance: o.Instance}
	switch {
	case o.Status.Simulated() && !s.o.AllowSimulated:
		s.counts.Simulated++
	case o.Value.Kind == observation.KindSamples && !s.o.Waves, s.filtered(k.code):
		s.counts.Filtered++
	case !k.identify(o):
		s.counts.Unmapped++
	default:
		return k, true
	}
	return k, false
}

func (s *Snapshot) filtered(code mdc.Code) bool {
	if _, ok := slices.BinarySearch(s.o.Include, code); !ok && len(s.o.Include) > 0 {
		return true
	}
	_, ok := slices.BinarySearch(s.o.Exclude, code)
	return ok
}

// identify completes the key. It fails where nothing says what the value is.
func (k *key) identify(o *observation.Observation) bool {
	if k.code == 0 {
		k.private = o.Private.Code
		if k.private == 0 {
			k.name = privateName(o.Private.Vendor, o.Private.Name)
		}
		return o.Private.Vendor != "" && (o.Private.Code != 0 || o.Private.Name != "")
	}
	if t, ok := mdc.Lookup(k.code); !ok || t.Group != mdc.GroupMETRIC && t.Group != mdc.GroupATTR {
		return false
	}
	if o.Method == observation.MethodSetting || o.Method == observation.MethodAutoSetting {
		k.set()
	}
	return true
}

// settings is the distance from a measurement's code to the code of its
// setting: partition 258 has the twins of partition 2.
const settings = 256 << 16

// set makes the key that of a setting: its twin where the nomenclature has one.
func (k *key) set() {
	if k.code.Partition() == 2 {
		if t, ok := mdc.Lookup(k.code + settings); ok && !t.Deprecated() {
			k.code += settings
			return
		}
		k.setting = true
	}
}

// periodic is the batch of the present interval.
func (s *Snapshot) periodic(r *observation.Report) *batch {
	if s.open == nil {
		from := r.Received
		if gap := from.Sub(s.end); s.o.Interval > 0 && gap >= 0 && gap <= s.o.Interval {
			from = s.end // the interval follows on the last one
		}
		s.open = s.batch(Periodic, from)
		s.open.due = from.Add(s.o.Interval)
	}
	s.open.seen(r)
	return s.open
}

func (s *Snapshot) batch(c Class, from time.Time) *batch {
	var b *batch
	if n := len(s.free); n > 0 {
		b, s.free = s.free[n-1], s.free[:n-1]
	} else {
		b = new(batch)
	}
	b.reset(c, s.device)
	b.patient, b.from = s.patient, from
	return b
}

// seen notes the arrival of a report and what the device's clock showed then.
func (b *batch) seen(r *observation.Report) {
	if r.Received.After(b.latest) {
		b.latest = r.Received
	}
	if !r.DeviceClock.IsZero() {
		b.clock, b.clockAt = r.DeviceClock, r.Received
	}
}

// measuredAt is when a value was measured: not after it arrived.
func measuredAt(r *observation.Report, o *observation.Observation) time.Time {
	if o.Time.IsZero() || o.Time.After(r.Received) {
		return r.Received
	}
	return o.Time
}

// addEpisodic takes a measurement, once however often the device repeats it.
func (s *Snapshot) addEpisodic(r *observation.Report, o *observation.Observation, k key, b **batch) {
	m := measurement{
		time: o.Time, device: o.DeviceTime, number: o.Value.Number, kind: o.Value.Kind, code: o.Value.Code,
		text:   privateName("", o.Value.Text),
		status: o.Status & (observation.Invalid | observation.Questionable | observation.NotAvailable | observation.Calibrating | observation.Validated),
	}
	if old, ok := s.measured[k]; ok && old.same(m) {
		s.counts.Repeated++
		return
	}
	if len(s.measured) < 4096 { // a bound, far above what any device measures
		s.measured[k] = m
	}
	at := measuredAt(r, o)
	if at.Before(s.patientSince) && s.patient.known() { // it may be somebody else's
		s.counts.Backdated++
		return
	}
	if *b == nil {
		*b = s.batch(Episodic, at)
	}
	if at.Before((*b).from) {
		(*b).from = at
	}
	(*b).seen(r)
	s.put(*b, r, o, k)
}

// same reports whether n tells of the same measurement as m. The time by the
// device's clock is the surest sign: it does not move between two tellings.
func (m measurement) same(n measurement) bool {
	a, b := m, n
	a.time, a.device, b.time, b.device = time.Time{}, time.Time{}, time.Time{}, time.Time{}
	if a != b {
		return false
	}
	if !m.device.IsZero() && !n.device.IsZero() {
		return m.device.Equal(n.device)
	}
	if !m.time.IsZero() && !n.time.IsZero() {
		return n.time.Sub(m.time).Abs() < sameMeasurement
	}
	return true
}

// addPatientSize adds height and weight as the device has them, beside other
// data of a known patient.
func (s *Snapshot) addPatientSize(r *observation.Report) {
	if s.open == nil || s.open.fresh == 0 || s.o.Patient != PatientDevice || !s.patient.known() {
		return
	}
	for _, q := range [...]struct {
		code mdc.Code
		observation.Quantity
	}{{68060, r.Patient.Height}, {68063, r.Patient.Weight}} {
		if !q.Number.Valid() {
			continue
		}
		o := observation.Observation{Code: q.code, Unit: q.Unit, Value: observation.Value{Kind: observation.KindNumber, Number: q.Number}}
		if k, ok := s.admit(&o); ok {
			s.put(s.open, r, &o, k)
		}
	}
}

// put writes an observation into its slot, over an earlier value of the interval.
func (s *Snapshot) put(b *batch, r *observation.Report, o *observation.Observation, k key) {
	term, _ := mdc.Lookup(k.code) // nil for a private value
	unit, ok := s.unitOf(o, k.code)
	if !ok {
		s.counts.UnitRefused++
		return
	}
	value, ok := valueTerm(o)
	if !ok {
		s.counts.Unmapped++
		return
	}
	site, ok := siteTerm(o.Site)
	if !ok {
		s.counts.Unmapped++ // the value goes without its site
	}
	v := b.slot(placeFor(o, k), k)
	if !v.fresh {
		b.fresh++
	}
	v.fresh, v.term, v.unit, v.value, v.site = true, term, unit, value, site
	v.kind, v.number, v.status, v.method, v.limits = o.Value.Kind, o.Value.Number, o.Status, o.Method, o.Limits
	v.text = append(v.text[:0], o.Value.Text...)
	if term == nil {
		v.setPrivate(o.Private)
	}
	v.time, v.own = measuredAt(r, o), o.Episodic
	s.counts.Observations++
}

// dimensionless is the unit of a number that has none.
const dimensionless = 262656

// unitOf finds the unit to write. A unit that the nomenclature does not know,
// or does not allow for the term, is refused with its value: the term or the
// unit is wrong then, and nothing here can tell which.
func (s *Snapshot) unitOf(o *observation.Observation, code mdc.Code) (*mdc.Unit, bool) {
	c := o.Unit
	switch {
	case o.Value.Kind == observation.KindSamples && !o.Value.Samples.Scaled():
		return mdc.LookupUnit(dimensionless) // counts of a converter, whatever they measure
	case o.Value.Kind != observation.KindNumber && o.Value.Kind != observation.KindSamples && c == 0:
		return nil, true
	}
	if c == 0 {
		c = dimensionless
	}
	u, known := mdc.LookupUnit(c)
	if allowed, listed := mdc.UnitAllowed(code, c); !known || listed && !allowed && !(o.Value.Kind == observation.KindSamples && c == dimensionless) {
		return nil, false
	}
	return u, true
}

// valueTerm finds the term of a coded value. A code without a name goes as the
// device's text; without a text either it cannot be said.
func valueTerm(o *observation.Observation) (*mdc.Term, bool) {
	if o.Value.Kind != observation.KindCode {
		return nil, true
	}
	if t, ok := mdc.Lookup(o.Value.Code.Current()); ok {
		return t, true
	}
	return nil, o.Value.Text != "" || o.Value.Code == 0
}

func siteTerm(c mdc.Code) (*mdc.Term, bool) {
	if c == 0 {
		return nil, true
	}
	t, ok := mdc.Lookup(c.Current())
	if !ok || t.Group != mdc.GroupBODYSITE {
		return nil, false
	}
	return t, true
}

// close ends a batch and puts it into the queue. An interval that is no
// interval, at or before its beginning, is a point in time.
func (s *Snapshot) close(b **batch, at time.Time) {
	c := *b
	if c == nil {
		return
	}
	*b = nil
	if !at.IsZero() && at.Before(c.latest) {
		at = c.latest // our clock was set back
	}
	if c.class == Periodic && !at.IsZero() {
		s.end = at
	}
	if c.empty() {
		s.recycle(c)
		return
	}
	// An interval that is shorter than what OBR-7 and OBR-8 can show is a point in time.
	if c.class == Periodic && s.o.Interval > 0 && at.Truncate(time.Millisecond).After(c.from.Truncate(time.Millisecond)) {
		c.to = at
	}
	s.pending = append(s.pending, c)
	if len(s.pending) > maxPending {
		s.giveUp()
	}
}

// giveUp drops the least dear of the waiting batches, the oldest first.
func (s *Snapshot) giveUp() {
	worst := 0
	for i, b := range s.pending {
		if b.class < s.pending[worst].class {
			worst = i
		}
	}
	s.counts.Dropped += s.pending[worst].size()
	s.recycle(s.pending[worst])
	s.pending = slices.Delete(s.pending, worst, worst+1)
}

func (s *Snapshot) recycle(b *batch) {
	b.patient = nil // no longer than needed
	if len(s.free) < 4 {
		s.free = append(s.free, b)
	}
}

// Next is when Flush has something to emit. The zero time is never. It may lie
// in the past.
func (s *Snapshot) Next() time.Time {
	if len(s.pending) > 0 {
		if next := s.pending[0].latest; next.After(s.retry) {
			return next
		}
		return s.retry
	}
	var next time.Time
	for _, b := range [...]*batch{s.open, s.waves} {
		if b != nil && !b.empty() && (next.IsZero() || b.due.Before(next)) {
			next = b.due
		}
	}
	return next
}

// Flush emits what is due, the oldest first. When emit fails, Flush returns its
// error and keeps that message and those behind it, unchanged, for the next
// Flush.
func (s *Snapshot) Flush(now time.Time, emit func(Message) error) error {
	if now.Before(s.latest) {
		now = s.latest // our clock was set back: no message is older than its data
	}
	for _, b := range [...]**batch{&s.open, &s.waves} {
		if *b != nil && !now.Before((*b).due) {
			s.close(b, now)
		}
	}
	done := 0
	defer func() {
		n := copy(s.pending, s.pending[done:])
		clear(s.pending[n:])
		s.pending = s.pending[:n]
	}()
	for ; done < len(s.pending); done++ {
		b := s.pending[done]
		if err := emit(s.message(b, now)); err != nil {
			s.retry = now.Add(retryAfter)
			return err
		}
		s.counts.Messages++
		s.recycle(b)
	}
	s.retry = time.Time{}
	return nil
}

// message writes the message of a batch.
func (s *Snapshot) message(b *batch, now time.Time) Message {
	if len(b.id) == 0 {
		b.id, b.made = s.o.IDs.Append(b.id), now
	}
	s.buf = s.appendMessage(s.buf[:0], b)
	return Message{Class: b.class, ControlID: b.id, Made: b.made, Bytes: s.buf}
}
