package spool

import (
	"hash/maphash"
	"math"
	"slices"
	"time"
)

// An item is what is kept in memory of an entry, so that a spool of 64 MiB of backlog
// costs a few megabytes of memory.
type item struct {
	id    uint64
	made  int64         // Unix time in microseconds
	born  time.Duration // when it was stored, since the index was begun; negative: before
	hash  uint64        // of queue and control ID
	size  int64         // of its record, with what the tree needs for it
	queue *queueIndex
	note  *note // nil until something happened to it
	class Class
	state State
	held  bool // a transaction that is under way removes or changes it
	dead  bool // it is out, lists only have not noticed
}

// A note is what became of an entry.
type note struct {
	attempts uint32
	reason   string
	unsaved  bool
}

// recordExtra is what bbolt needs for a record: its key and its place in the page.
const recordExtra = 8 + 16

// A list is a list of items by ID. Items that are dead stay until they come first, or are
// too many.
type list struct {
	items []*item
	dead  int
}

func (l *list) push(it *item) {
	if n := len(l.items); n > 0 && l.items[n-1].id > it.id {
		at, _ := slices.BinarySearchFunc(l.items, it.id, func(i *item, id uint64) int {
			if i.id < id {
				return -1
			}
			return 1
		})
		l.items = slices.Insert(l.items, at, it)
		return
	}
	l.items = append(l.items, it)
}

// died tells that one of the items is dead.
func (l *list) died() {
	l.dead++
	for len(l.items) > 0 && l.items[0].dead {
		l.items[0] = nil
		l.items, l.dead = l.items[1:], l.dead-1
	}
	if l.dead > 32 && l.dead > len(l.items)/2 {
		l.items = slices.DeleteFunc(l.items, func(i *item) bool { return i.dead })
		l.dead = 0
	}
	if len(l.items) == 0 {
		l.items, l.dead = nil, 0
	}
}

// first is the oldest item that is neither dead nor kept.
func (l *list) first(keep func(*item) bool) *item {
	for _, it := range l.items {
		if !it.dead && (keep == nil || !keep(it)) {
			return it
		}
	}
	return nil
}

// An index is what the spool holds. The spool's mutex guards it.
type index struct {
	items   map[uint64]*item
	control map[uint64]uint64 // hash → ID
	queues  map[string]*queueIndex
	live    [Alert + 1]list // by class, oldest first
	refused [Alert + 1]list
	seed    maphash.Seed
	begun   time.Time
	bytes   int64 // of all entries
	held    int64 // of those that the transaction under way removes
	refuse  int64 // bytes of the quarantined ones
	last    uint64
	rate    rate
	unsaved []*item // with notes to be written with the next commit
}

// A queueIndex is the part of one destination.
type queueIndex struct {
	name     string
	live     list
	messages int
	bytes    int64
	refused  int
	refusedB int64
	claimed  *item // what Next gave last, until it is settled
	counts   counts
	noRoom   uint64        // entries that were not taken, as the rule gave up nothing for them
	wake     chan struct{} // closed when there may be something new; nil: nobody waits
}

func newIndex(now time.Time) *index {
	return &index{items: map[uint64]*item{}, control: map[uint64]uint64{}, queues: map[string]*queueIndex{},
		seed: maphash.MakeSeed(), begun: now}
}

// queue is the part of the named destination, made where it is new.
func (x *index) queue(name string) *queueIndex {
	q := x.queues[name]
	if q == nil {
		q = &queueIndex{name: name}
		x.queues[name] = q
	}
	return q
}

// wakeUp lets everybody look who waits for the queue.
func (q *queueIndex) wakeUp() {
	if q.wake != nil {
		close(q.wake)
		q.wake = nil
	}
}

// hash is that of a control ID within its queue.
func (x *index) hash(queue, control string) uint64 {
	var h maphash.Hash
	h.SetSeed(x.seed)
	h.WriteString(queue)
	h.WriteByte(0)
	h.WriteString(control)
	return h.Sum64()
}

// since is the time on the spool's own clock, which no step of the wall clock moves while
// the process lives.
func (x *index) since(now time.Time) time.Duration { return now.Sub(x.begun) }

// earliest is before any message can have been made: an older time is from a clock that
// was not set.
var earliest = time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)

// bornAt is when an entry of an earlier process was stored. A time that cannot be, of a
// clock that was wrong then or is wrong now, counts as now: an entry may grow older than
// it should, but is not given up for a clock.
func (x *index) bornAt(stored int64) time.Duration {
	t := time.UnixMicro(stored)
	if t.Before(earliest) || t.After(x.begun) {
		return 0
	}
	return t.Sub(x.begun.Round(0))
}

// add puts an item into the lists of its state.
func (x *index) add(it *item) {
	x.items[it.id] = it
	x.control[it.hash] = it.id
	x.last = max(x.last, it.id)
	x.bytes += it.size
	q := it.queue
	if it.state == Quarantined {
		x.refused[it.class].push(it)
		x.refuse += it.size
		q.refused++
		q.refusedB += it.size
		return
	}
	x.live[it.class].push(it)
	q.live.push(it)
	q.messages++
	q.bytes += it.size
}

// remove takes an item out of all lists.
func (x *index) remove(it *item) {
	it.dead = true
	delete(x.items, it.id)
	if x.control[it.hash] == it.id {
		delete(x.control, it.hash)
	}
	x.bytes -= it.size
	q := it.queue
	if q.claimed == it {
		q.claimed = nil
	}
	if it.state == Quarantined {
		x.refused[it.class].died()
		x.refuse -= it.size
		q.refused--
		q.refusedB -= it.size
		return
	}
	x.live[it.class].died()
	q.live.died()
	q.messages--
	q.bytes -= it.size
}

// move changes an item between live and quarantined. The lists get a copy: the old one
// is dead in the lists that it was in.
func (x *index) move(it *item, state State) *item {
	moved := *it
	moved.state, moved.held, moved.dead = state, false, false
	x.remove(it)
	x.add(&moved)
	return &moved
}

// hold keeps an item for the transaction under way.
func (x *index) hold(it *item, removed bool) {
	it.held = true
	if removed {
		x.held += it.size
	}
}

// kept reports whether no rule may drop the item: it is on its way, or it is held.
func kept(it *item) bool { return it.held || it.state == Sent || it.queue.claimed == it }

// dropOrder is the order in which classes are given up.
var dropOrder = [...]Class{Waveform, Periodic, Episodic, Alert}

// victim is what the drop rule gives up next for an entry of class for: the first class
// of dropOrder that has one, up to its own; within it what the platform refused goes
// before what it has not seen, and the oldest first.
func (x *index) victim(incoming Class) *item {
	for _, c := range dropOrder {
		if it := x.refused[c].first(kept); it != nil {
			return it
		}
		if it := x.live[c].first(kept); it != nil {
			return it
		}
		if c == incoming {
			return nil
		}
	}
	return nil
}

// refusedVictim is the quarantined item that goes first.
func (x *index) refusedVictim() *item {
	for _, c := range dropOrder {
		if it := x.refused[c].first(kept); it != nil {
			return it
		}
	}
	return nil
}

// expired gives the items that are older than limit.
func (x *index) expired(now, limit time.Duration, f func(*item)) {
	for c := range x.live {
		for _, l := range [...]*list{&x.live[c], &x.refused[c]} {
			for _, it := range l.items {
				if it.dead || kept(it) {
					continue
				}
				if now-it.born <= limit {
					break
				}
				f(it)
			}
		}
	}
}

// A dropCause is why an entry was given up. The texts are labels of a metric.
type dropCause uint8

const (
	causeFull dropCause = iota
	causeExpired
	causeQuarantine
	causeOperator
	causeCount
)

var causes = [causeCount]string{"full", "expired", "quarantine_full", "operator"}

// counts are kept in the file, so that at any time, also after a power cut,
// enqueued = accepted + dropped + held.
type counts struct {
	enqueued, accepted uint64
	dropped            [causeCount]uint64
}

// rateSpan is how far back the rate looks.
const rateSpan = 30 * time.Minute

// A rate is a mean of bytes per second in which what is long ago counts less and less.
type rate struct {
	bytes, seconds float64 // both decayed
	at             time.Duration
}

// add counts bytes that came now.
func (r *rate) add(now time.Duration, bytes int64) {
	r.decay(now)
	r.bytes += float64(bytes)
}

func (r *rate) decay(now time.Duration) {
	past := (now - r.at).Seconds()
	if past <= 0 {
		return
	}
	f := math.Exp(-past / rateSpan.Seconds())
	r.bytes *= f
	r.seconds = r.seconds*f + rateSpan.Seconds()*(1-f)
	r.at = now
}

// perSecond is the mean, 0 where less than a second was seen.
func (r rate) perSecond(now time.Duration) float64 {
	r.decay(now)
	if r.seconds < 1 {
		return 0
	}
	return r.bytes / r.seconds
}
