package spool

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// A model is the spool as its documentation tells it, in a few lines and slowly.
type model struct {
	max, quarantine int64
	age             time.Duration
	now             time.Time
	entries         []*modelEntry // by ID
	last            uint64
	enqueued        map[string]uint64
	accepted        map[string]uint64
	dropped         map[string]map[string]uint64
	claimed         map[string]uint64
}

type modelEntry struct {
	Entry
	stored time.Time
	size   int64
}

func newModel(o Options, now time.Time) *model {
	return &model{max: o.MaxBytes, quarantine: o.MaxQuarantine, age: o.MaxAge, now: now,
		enqueued: map[string]uint64{}, accepted: map[string]uint64{}, dropped: map[string]map[string]uint64{}, claimed: map[string]uint64{}}
}

func (m *model) bytes(f func(*modelEntry) bool) (n int64) {
	for _, e := range m.entries {
		if f == nil || f(e) {
			n += e.size
		}
	}
	return n
}

func (m *model) remove(id uint64) {
	m.entries = slices.DeleteFunc(m.entries, func(e *modelEntry) bool { return e.ID == id })
	for q, c := range m.claimed {
		if c == id {
			delete(m.claimed, q)
		}
	}
}

func (m *model) drop(e *modelEntry, cause string) {
	m.remove(e.ID)
	if m.dropped[e.Queue] == nil {
		m.dropped[e.Queue] = map[string]uint64{}
	}
	m.dropped[e.Queue][cause]++
}

func (m *model) protected(e *modelEntry) bool { return e.State == Sent || m.claimed[e.Queue] == e.ID }

// expire gives up what is too old, as every commit does first.
func (m *model) expire(but uint64) {
	for _, e := range slices.Clone(m.entries) {
		if m.now.Sub(e.stored) > m.age && !m.protected(e) && e.ID != but {
			m.drop(e, "expired")
		}
	}
}

func (m *model) victim(class Class, refusedOnly bool) *modelEntry {
	for _, c := range []Class{Waveform, Periodic, Episodic, Alert} {
		for _, state := range []State{Quarantined, Queued} {
			for _, e := range m.entries {
				if e.Class == c && e.State == state && !m.protected(e) && (state == Quarantined || !refusedOnly) {
					return e
				}
			}
		}
		if c == class && !refusedOnly {
			return nil
		}
	}
	return nil
}

func (m *model) enqueue(e Entry) (uint64, error) {
	m.expire(0)
	for _, have := range m.entries {
		if have.Queue == e.Queue && have.ControlID == e.ControlID {
			return 0, ErrDuplicate
		}
	}
	size := int64(recordSize(&e) + recordExtra)
	before := slices.Clone(m.entries)
	var gone []*modelEntry
	for m.bytes(nil)+size > m.max {
		v := m.victim(e.Class, false)
		if v == nil {
			m.entries = before
			return 0, ErrFull
		}
		gone = append(gone, v)
		m.entries = slices.DeleteFunc(m.entries, func(x *modelEntry) bool { return x == v })
	}
	for _, v := range gone {
		m.drop(v, "full")
	}
	m.last++
	e.ID, e.State = m.last, Queued
	m.entries = append(m.entries, &modelEntry{e, m.now, size})
	m.enqueued[e.Queue]++
	return e.ID, nil
}

func (m *model) next(queue string) *modelEntry {
	for _, e := range m.entries {
		if e.Queue == queue && e.State != Quarantined {
			return e
		}
	}
	return nil
}

// reopen is what a restart changes: what was sent is queued again.
func (m *model) reopen() {
	for _, e := range m.entries {
		if e.State == Sent {
			e.State = Queued
		}
	}
	clear(m.claimed)
}

func TestTheSpoolDoesWhatTheModelDoes(t *testing.T) {
	rounds := 12 / (1 + slow/3)
	if testing.Short() {
		rounds = 3
	}
	for seed := range uint64(rounds) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			runModel(t, seed, 500/(1+slow/3))
		})
	}
}

// A modelRun holds the spool against the model.
type modelRun struct {
	t     *testing.T
	r     *rand.Rand
	o     Options
	path  string
	s     *Spool
	m     *model
	drops map[string]uint64
	step  int
}

func runModel(t *testing.T, seed uint64, steps int) {
	x := &modelRun{t: t, r: rand.New(rand.NewPCG(seed, 1)), path: filepath.Join(t.TempDir(), "spool.db"), drops: map[string]uint64{}}
	now := time.Date(2026, 5, 1, 8, 0, 0, 0, time.UTC)
	x.o = Options{Key: testKey, MaxBytes: 12 << 10, MaxQuarantine: 3 << 10, MaxAge: time.Hour, journal: 8 << 10 << (seed % 3)}
	x.m = newModel(x.o, now)
	x.o.Now = func() time.Time { return x.m.now }
	x.o.Dropped = func(d Drop) { x.drops[d.Cause]++ }
	x.s = open(t, x.path, x.o)
	for x.step = range steps {
		x.act()
		x.compare()
		if t.Failed() {
			t.Fatalf("after step %d", x.step)
		}
	}
	must(t, x.s.Close())
	want := map[string]uint64{}
	for _, byCause := range x.m.dropped {
		for cause, n := range byCause {
			want[cause] += n
		}
	}
	if !maps.Equal(want, x.drops) {
		t.Errorf("drops told %v, want %v", x.drops, want)
	}
}

var modelQueues = []string{"a", "b"}

func (x *modelRun) act() {
	queue := modelQueues[x.r.IntN(2)]
	q := x.s.Queue(queue)
	switch n := x.r.IntN(100); {
	case n < 50:
		x.enqueue(queue)
	case n < 75:
		x.deliver(q, queue)
	case n < 83:
		x.m.now = x.m.now.Add(time.Duration(x.r.IntN(20)) * time.Minute)
	case n < 95:
		x.operate()
	default:
		must(x.t, x.s.Close())
		x.m.expire(0) // Close commits once more
		x.m.reopen()
		x.s = open(x.t, x.path, x.o)
	}
}

func (x *modelRun) enqueue(queue string) {
	e := Entry{Queue: queue, Device: "bed", ControlID: fmt.Sprint(x.r.IntN(400)), Class: Class(x.r.IntN(4)), Payload: make([]byte, 1+x.r.IntN(1500))}
	if x.r.IntN(20) == 0 {
		e.Payload = make([]byte, 9000) // more than the smallest journal takes
	}
	want, wantErr := x.m.enqueue(e)
	got, err := x.s.Enqueue(context.Background(), e)
	if got != want && wantErr == nil || !errors.Is(err, wantErr) {
		x.t.Errorf("Enqueue gives %d, %v; want %d, %v", got, err, want, wantErr)
	}
}

func (x *modelRun) deliver(q *Queue, queue string) {
	want := x.m.next(queue)
	if want == nil {
		return
	}
	e := next(x.t, q)
	if e.ID != want.ID || e.ControlID != want.ControlID || e.State != want.State || len(e.Payload) != len(want.Payload) {
		x.t.Errorf("Next gives %d %q %v, want %d %q %v", e.ID, e.ControlID, e.State, want.ID, want.ControlID, want.State)
		return
	}
	x.m.claimed[queue] = e.ID
	if x.r.IntN(8) == 0 {
		return
	}
	must(x.t, q.Sent(e.ID))
	want.State = Sent
	switch n := x.r.IntN(10); {
	case n < 6:
		must(x.t, q.Accepted(e.ID))
		x.m.expire(e.ID)
		x.m.remove(e.ID)
		x.m.accepted[queue]++
	case n < 8:
		must(x.t, q.Retry(e.ID, "AE"))
		want.State = Queued
		delete(x.m.claimed, queue)
	case n < 9:
		must(x.t, q.Quarantine(e.ID, "AR"))
		x.m.quarantineEntry(want)
	}
}

func (m *model) quarantineEntry(e *modelEntry) {
	m.expire(e.ID)
	for m.bytes(func(e *modelEntry) bool { return e.State == Quarantined })+e.size > m.quarantine {
		v := m.victim(0, true)
		if v == nil {
			break
		}
		m.drop(v, "quarantine_full")
	}
	e.State = Quarantined
	delete(m.claimed, e.Queue)
}

func (x *modelRun) operate() {
	if len(x.m.entries) == 0 {
		return
	}
	e := x.m.entries[x.r.IntN(len(x.m.entries))]
	old := x.m.now.Sub(e.stored) > x.m.age && !x.m.protected(e)
	if e.State == Quarantined && x.r.IntN(2) == 0 {
		must(x.t, x.s.Release(e.ID))
		if !old {
			x.m.expire(e.ID)
		}
		e.State = Queued
		return
	}
	err := x.s.Drop(e.ID, "by hand")
	if e.State == Sent {
		wantErr(x.t, err, ErrInFlight)
		x.m.expire(0)
		return
	}
	must(x.t, err)
	if !old {
		x.m.expire(e.ID)
	}
	x.m.drop(e, "operator")
}

// compare holds everything that can be seen of the spool against the model.
func (x *modelRun) compare() {
	x.t.Helper()
	var got []Entry
	must(x.t, x.s.List("", func(e Entry) error { got = append(got, e); return nil }))
	if len(got) != len(x.m.entries) {
		x.t.Errorf("it holds %d entries, want %d", len(got), len(x.m.entries))
		return
	}
	for i, want := range x.m.entries {
		if g := got[i]; g.ID != want.ID || g.Queue != want.Queue || g.ControlID != want.ControlID || g.Class != want.Class || g.State != want.State {
			x.t.Errorf("entry %d is %d %q %v %v, want %d %q %v %v", i, g.ID, g.ControlID, g.Class, g.State, want.ID, want.ControlID, want.Class, want.State)
		}
	}
	st := x.s.Stats()
	if st.Bytes != x.m.bytes(nil) || st.Bytes > x.o.MaxBytes {
		x.t.Errorf("it has %d bytes, want %d", st.Bytes, x.m.bytes(nil))
	}
	for _, queue := range modelQueues {
		q := st.Queues[queue]
		if q.Enqueued != x.m.enqueued[queue] || q.Accepted != x.m.accepted[queue] {
			x.t.Errorf("queue %s: enqueued %d, accepted %d; want %d, %d", queue, q.Enqueued, q.Accepted, x.m.enqueued[queue], x.m.accepted[queue])
		}
		sum := q.Accepted + uint64(q.Messages+q.Quarantined)
		for cause, n := range q.Dropped {
			sum += n
			if n != x.m.dropped[queue][cause] {
				x.t.Errorf("queue %s: dropped %d by %s, want %d", queue, n, cause, x.m.dropped[queue][cause])
			}
		}
		if sum != q.Enqueued {
			x.t.Errorf("queue %s: the counts do not add up: %+v", queue, q)
		}
	}
}
