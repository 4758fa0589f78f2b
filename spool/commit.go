package spool

import (
	"bytes"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"time"

	"go.etcd.io/bbolt"
)

// An op is one change that somebody waits for.
type op struct {
	kind   opKind
	entry  *Entry
	owned  Entry  // what entry points to, where the op is used again
	queue  string // of the queue that asks, "" for the operator
	id     uint64
	reason string
	err    error
	done   chan struct{}
}

type opKind uint8

const (
	opEnqueue opKind = iota
	opAccepted
	opQuarantine
	opRelease
	opDrop
	opCheck // the file is opened anew, which salvages what is damaged
)

// The most that one transaction takes: it is all in memory until it is written.
const (
	batchOps   = 256
	batchBytes = 4 << 20
)

// A plan is what one transaction will do. Nothing of the index changes before the
// transaction is durable, but that items are held.
type plan struct {
	index   *index
	ops     []*op // that succeed with it
	refused []*op // that fail whatever becomes of it
	adds    []add
	removes []removal
	moves   []marked // that change between live and quarantined
	notes   []marked
	counts  map[*queueIndex]counts
	rate    rate
	bytes   int64 // that are added
	now     time.Duration
	stored  time.Time
	drops   []Drop
	inTree  bool // it did not go by the journal
}

type add struct {
	it     *item
	entry  *Entry
	record []byte
}

// marked is an item with the mark that it gets.
type marked struct {
	it     *item
	mark   mark
	sealed []byte
}

type removal struct {
	it      *item
	cause   dropCause
	dropped bool // not accepted
	why     string
}

// submit hands an op to the committer.
func (s *Spool) submit(o *op) error {
	if s.readOnly {
		return ErrReadOnly
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		return ErrClosed
	}
	s.waiting = append(s.waiting, o)
	select {
	case s.wake <- struct{}{}:
	default:
	}
	return nil
}

// do hands in an op and waits until it is durable.
func (s *Spool) do(o *op) error {
	o.done = make(chan struct{}, 1)
	if err := s.submit(o); err != nil {
		return err
	}
	<-o.done
	return o.err
}

// withdraw takes an op back that the committer has not begun.
func (s *Spool) withdraw(o *op) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	at := slices.Index(s.waiting, o)
	if at < 0 {
		return false
	}
	s.waiting = slices.Delete(s.waiting, at, at+1)
	return true
}

// expiryCheck is how often entries are looked at for their age when nothing else happens.
const expiryCheck = time.Minute

// run is the committer: the only one who writes.
func (s *Spool) run() {
	defer close(s.stopped)
	tick := time.NewTicker(expiryCheck)
	defer tick.Stop()
	for {
		select {
		case <-s.wake:
			s.drain()
		case <-tick.C:
			s.tidy()
		case <-s.stop:
			s.drain()
			s.tidy()
			if s.store != nil && s.journal.at > 0 {
				s.checkpoint() // where it fails the journal is durable as it is
			}
			return
		}
	}
}

// drain commits group after group until nobody waits.
func (s *Spool) drain() {
	for {
		batch := s.gather()
		if len(batch) == 0 {
			return
		}
		s.commit(batch)
	}
}

// gather takes those who wait. The writers of the group before were told just now, and
// most come back at once with the next message: they are let run first, as long as more
// come, so that they make one group and not two that wait for each other. It takes
// microseconds, no timer.
func (s *Spool) gather() []*op {
	for idle, seen := 0, 0; idle < 2; {
		s.mu.Lock()
		n := len(s.waiting)
		s.mu.Unlock()
		if n >= s.group || n >= batchOps {
			break
		}
		if n > seen {
			idle, seen = 0, n
		} else {
			idle++
		}
		runtime.Gosched()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	n, size := 0, 0
	for n < len(s.waiting) && n < batchOps && (n == 0 || size < batchBytes) {
		if e := s.waiting[n].entry; e != nil {
			size += len(e.Payload)
		}
		n++
	}
	batch := append(s.batch[:0], s.waiting[:n]...)
	s.waiting = slices.Delete(s.waiting, 0, n)
	s.batch, s.group = batch, n
	return batch
}

// tidy drops what is too old and saves notes, where no commit did so on its way.
func (s *Spool) tidy() {
	s.mu.Lock()
	x, now := s.index, s.o.Now()
	need := len(x.unsaved) > 0
	x.expired(x.since(now), s.o.MaxAge, func(*item) { need = true })
	s.mu.Unlock()
	if need {
		s.commit(nil)
	}
}

// commit makes a group durable, then tells everybody in it.
func (s *Spool) commit(batch []*op) {
	check := slices.ContainsFunc(batch, func(o *op) bool { return o.kind == opCheck })
	if (check || s.store == nil) && !s.reopen() {
		s.fail(batch)
		return
	}
	s.mu.Lock()
	p := s.plan(batch, true)
	s.mu.Unlock()
	err := s.perform(p)
	switch {
	case err == nil || s.store == nil:
	case p.index != s.index: // the file was damaged, and is another one now
		p, err = s.again(p, err, func(*op) bool { return true })
	case len(p.adds) > 0 && len(p.ops) > len(p.adds): // what only removes needs no room
		p, err = s.again(p, err, func(o *op) bool { return o.kind != opEnqueue })
	}
	s.settle(p, err)
	s.tell(p)
}

// again tries once more, with the ops that keep says; the others fail with err.
func (s *Spool) again(p *plan, err error, keep func(*op) bool) (*plan, error) {
	s.mu.Lock()
	s.letGo(p)
	var ops []*op
	for _, o := range p.ops {
		if keep(o) {
			ops = append(ops, o)
		} else {
			o.err = err
			p.refused = append(p.refused, o)
		}
	}
	again := s.plan(ops, true)
	again.refused = append(again.refused, p.refused...)
	s.mu.Unlock()
	return again, s.perform(again)
}

func (s *Spool) fail(ops []*op) {
	for _, o := range ops {
		o.err = s.failing
		o.done <- struct{}{}
	}
}

// plan decides what the transaction does. An op that meets an item which the
// transaction holds already goes back, to come after it; where only its age holds the
// item, the op goes first.
func (s *Spool) plan(batch []*op, expire bool) *plan {
	now := s.o.Now()
	x := s.index
	p := &plan{index: x, now: x.since(now), stored: now, counts: map[*queueIndex]counts{}, rate: x.rate}
	if expire {
		x.expired(p.now, s.o.MaxAge, func(it *item) { p.drop(x, it, causeExpired, "") })
	}
	for i, o := range batch {
		done := false
		switch o.kind {
		case opEnqueue:
			done = s.planAdd(p, o)
		case opCheck:
			done = p.accept(o)
		default:
			done = s.planChange(p, o)
		}
		if !done && i == 0 && expire {
			s.letGo(p)
			return s.plan(batch, false)
		}
		if !done {
			s.waiting = slices.Insert(s.waiting, 0, batch[i:]...)
			break
		}
	}
	for _, it := range x.unsaved {
		if !it.dead && !it.held && it.note.unsaved {
			p.notes = append(p.notes, marked{it: it, mark: it.mark(it.state)})
			it.note.unsaved = false
		}
	}
	x.unsaved = nil
	return p
}

// count gives the counts of a queue as they will be.
func (p *plan) count(q *queueIndex, f func(*counts)) {
	c, ok := p.counts[q]
	if !ok {
		c = q.counts
	}
	f(&c)
	p.counts[q] = c
}

// drop plans to give an item up.
func (p *plan) drop(x *index, it *item, cause dropCause, why string) {
	x.hold(it, true)
	p.removes = append(p.removes, removal{it: it, cause: cause, dropped: true, why: why})
	p.count(it.queue, func(c *counts) { c.dropped[cause]++ })
}

func (p *plan) accept(o *op) bool {
	p.ops = append(p.ops, o)
	return true
}

func (p *plan) refuse(o *op, err error) bool {
	o.err = err
	p.refused = append(p.refused, o)
	return true
}

// planAdd plans a new entry, and what must go for it.
func (s *Spool) planAdd(p *plan, o *op) bool {
	x, e := s.index, o.entry
	hash := x.hash(e.Queue, e.ControlID)
	for _, a := range p.adds {
		if a.it.hash == hash {
			return false // judged when that one is in
		}
	}
	if id, ok := x.control[hash]; ok {
		if x.items[id].held {
			return false
		}
		if s.sameControl(id, e) {
			return p.refuse(o, fmt.Errorf("%w: %q is entry %d of queue %q", ErrDuplicate, e.ControlID, id, e.Queue))
		}
	}
	size := int64(recordSize(e) + recordExtra)
	victims, ok := s.makeRoom(p, e.Class, size)
	if !ok && len(p.adds) > 0 {
		return false // when those are in, the rule may give them up
	}
	if !ok {
		x.queue(e.Queue).noRoom++
		return p.refuse(o, fmt.Errorf("%w: %d of %d bytes are used, and the rule (waveforms first, then periodic, episodic, alerts; the oldest first) gives up nothing for this entry", ErrFull, x.bytes, s.o.MaxBytes))
	}
	for _, it := range victims {
		p.drop(x, it, causeFull, "")
	}
	x.last++
	it := &item{id: x.last, made: e.Made.UnixMicro(), born: p.now, hash: hash, size: size, queue: x.queue(e.Queue), class: e.Class}
	p.adds = append(p.adds, add{it: it, entry: e})
	p.bytes += size
	p.rate.add(p.now, size)
	p.count(it.queue, func(c *counts) { c.enqueued++ })
	o.id = it.id
	return p.accept(o)
}

// makeRoom finds what must go for size bytes, false where the rule gives not enough.
func (s *Spool) makeRoom(p *plan, class Class, size int64) ([]*item, bool) {
	x := s.index
	var victims []*item
	for x.bytes-x.held+p.bytes+size > s.o.MaxBytes {
		it := x.victim(class)
		if it == nil {
			for _, v := range victims {
				v.held = false
				x.held -= v.size
			}
			return nil, false
		}
		x.hold(it, true)
		victims = append(victims, it)
	}
	for _, v := range victims { // held again by drop
		x.held -= v.size
	}
	return victims, true
}

// sameControl tells a control ID that is there from one that has the same hash.
func (s *Spool) sameControl(id uint64, e *Entry) bool {
	v, err := s.record(id)
	if err != nil {
		return true
	}
	h, _, err := parseRecord(v)
	return err != nil || string(h.queue) == e.Queue && string(h.control) == e.ControlID
}

// planChange plans a change of an entry that is there.
func (s *Spool) planChange(p *plan, o *op) bool {
	x := s.index
	it := x.items[o.id]
	if it == nil || o.queue != "" && it.queue.name != o.queue {
		return p.refuse(o, fmt.Errorf("%w: %d", ErrNotFound, o.id))
	}
	if it.held {
		return false
	}
	if it.state == Quarantined && (o.kind == opAccepted || o.kind == opQuarantine) {
		return p.refuse(o, fmt.Errorf("%w: %d is quarantined", ErrNotFound, o.id))
	}
	switch o.kind {
	case opAccepted:
		x.hold(it, true)
		p.removes = append(p.removes, removal{it: it})
		p.count(it.queue, func(c *counts) { c.accepted++ })
	case opQuarantine:
		it.annotate(o.reason)
		s.planQuarantine(p, it)
	case opRelease:
		if it.state != Quarantined {
			return p.refuse(o, fmt.Errorf("entry %d is not quarantined", o.id))
		}
		x.hold(it, false)
		p.moves = append(p.moves, marked{it: it, mark: it.mark(Queued)})
	case opDrop:
		if it.state == Sent {
			return p.refuse(o, fmt.Errorf("%w: %d; try again when it is settled", ErrInFlight, o.id))
		}
		p.drop(x, it, causeOperator, o.reason)
	}
	return p.accept(o)
}

// planQuarantine plans to set an entry aside, and gives up others where the quarantine
// is full.
func (s *Spool) planQuarantine(p *plan, it *item) {
	x := s.index
	x.hold(it, false)
	left := x.refuse + it.size
	for _, r := range p.removes {
		if r.it.state == Quarantined {
			left -= r.it.size
		}
	}
	for _, m := range p.moves {
		if m.mark.state == Quarantined {
			left += m.it.size
		}
	}
	for left > s.o.MaxQuarantine {
		v := x.refusedVictim()
		if v == nil {
			break
		}
		left -= v.size
		p.drop(x, v, causeQuarantine, "")
	}
	p.moves = append(p.moves, marked{it: it, mark: it.mark(Quarantined)})
}

// annotate notes a reason on an item.
func (it *item) annotate(reason string) {
	n := note{}
	if it.note != nil {
		n = *it.note
	}
	n.reason = reason
	it.note = &n
}

// mark is what the file is to say of the item.
func (it *item) mark(state State) mark {
	if it.note == nil {
		return mark{state: state}
	}
	return mark{state, it.note.attempts, it.note.reason}
}

// letGo undoes what a plan holds.
func (s *Spool) letGo(p *plan) {
	x := p.index
	for _, r := range p.removes {
		r.it.held = false
	}
	for _, m := range p.moves {
		m.it.held = false
	}
	x.held = 0
	for _, m := range p.notes {
		m.it.note.unsaved = true
		x.unsaved = append(x.unsaved, m.it)
	}
}

// perform makes the plan durable. After an error the files are as they were, or reopened.
func (s *Spool) perform(p *plan) error {
	if len(p.adds)+len(p.removes)+len(p.moves)+len(p.notes) == 0 {
		return nil
	}
	s.describeDrops(p)
	s.build(p)
	if len(p.adds) > 0 {
		if err := s.reserve(len(p.adds), p.bytes); err != nil {
			return s.failed(err, 0)
		}
	}
	if !s.journal.fits() {
		if err := s.checkpoint(); err != nil {
			return err
		}
		if !s.journal.fits() {
			return s.direct(p)
		}
	}
	return s.failed(s.journal.commit(), 0)
}

// build makes the block of the plan.
func (s *Spool) build(p *plan) {
	j := s.journal
	j.begin()
	for _, r := range p.removes {
		how := byte(0)
		if r.dropped {
			how = byte(r.cause) + 1
		}
		j.change(changeRemove, r.it.id, []byte{how})
	}
	slab := make([]byte, 0, p.bytes) // what next reads until the journal is full
	for i := range p.adds {
		a := &p.adds[i]
		from := len(slab)
		slab = s.seal.sealRecord(slab, a.it.id, a.entry, p.stored)
		a.record = slab[from:len(slab):len(slab)]
		j.change(changeAdd, a.it.id, a.record)
	}
	for _, list := range [...][]marked{p.moves, p.notes} {
		for i := range list {
			m := &list[i]
			m.sealed = s.seal.sealMark(nil, m.it.id, m.mark)
			j.change(changeMark, m.it.id, m.sealed)
		}
	}
}

// overlay puts what the plan did into the overlay.
func (p *plan) overlay(o *overlay) {
	for _, r := range p.removes {
		o.remove(r.it.id)
	}
	for _, a := range p.adds {
		o.add(a.it.id, a.record)
	}
	for _, list := range [...][]marked{p.moves, p.notes} {
		for _, m := range list {
			o.marks[m.it.id] = m.sealed
		}
	}
}

// reserve makes sure that the tree can take what is in the journal, and the plan: so
// that a full disk is met before anything is promised, and not after.
func (s *Spool) reserve(records int, bytes int64) error {
	return s.store.reserve(records+len(s.over.records), bytes+s.over.bytes)
}

// checkpoint brings what the journal holds into the tree, and begins the journal anew.
func (s *Spool) checkpoint() error {
	if err := s.transact(s.over, nil); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.over = newOverlay()
	return nil
}

// direct brings a plan that is larger than the journal into the tree. The journal is
// empty.
func (s *Spool) direct(p *plan) error {
	o := newOverlay()
	p.overlay(o)
	p.inTree = true
	return s.transact(o, p.counts)
}

// transact brings an overlay into the tree, with the counts as they are then, and begins
// the generation of the journal that follows.
func (s *Spool) transact(o *overlay, planned map[*queueIndex]counts) error {
	s.mu.Lock()
	t := s.index.totals(planned)
	s.mu.Unlock()
	g, id, err := s.store.absorb(o, t, s.o.Random)
	if err = s.failed(err, id); err != nil {
		return err
	}
	s.journal.restart(g)
	return nil
}

// failed judges why a transaction failed. Where the pages turn out damaged, or the
// header may have come to the disk all the same, what is in the file decides: it is
// opened anew.
func (s *Spool) failed(err error, id int) error {
	if err != nil {
		err = fmt.Errorf("%w: %w", ErrDisk, err)
	}
	s.mu.Lock()
	s.failing = err
	s.mu.Unlock()
	if err == nil {
		return nil
	}
	if errors.Is(err, errPanic) || id != 0 && s.store.txid() != id-1 {
		s.reopen()
	}
	return err
}

// describeDrops reads what is told of the dropped entries, while it is there. Where it
// cannot be read they are dropped all the same, and told without it.
func (s *Spool) describeDrops(p *plan) {
	p.drops = p.drops[:0]
	if !slices.ContainsFunc(p.removes, func(r removal) bool { return r.dropped }) {
		return
	}
	heads := map[uint64]header{}
	s.store.view(func(tx *bbolt.Tx) error {
		records := tx.Bucket(recordsBucket)
		for _, r := range p.removes {
			v, ok := s.over.records[r.it.id]
			if !ok {
				v = records.Get(idKey(r.it.id))
			}
			if h, _, err := parseRecord(v); err == nil && r.dropped {
				h.device, h.control = bytes.Clone(h.device), bytes.Clone(h.control)
				heads[r.it.id] = h
			}
		}
		return nil
	})
	for _, r := range p.removes {
		if r.dropped {
			p.drops = append(p.drops, describeDrop(r, heads[r.it.id]))
		}
	}
}

// record reads a record from the journal or the tree. It is for those who hold access,
// or are the committer.
func (s *Spool) record(id uint64) ([]byte, error) {
	if v, ok := s.over.records[id]; ok {
		return v, nil
	}
	return s.store.get(nil, id)
}

// describeDrop is what is told of a dropped entry.
func describeDrop(r removal, h header) Drop {
	return Drop{ID: r.it.id, Queue: r.it.queue.name, Device: string(h.device), ControlID: string(h.control), Class: r.it.class,
		Made: time.UnixMicro(r.it.made).UTC(), Cause: causes[r.cause], Reason: r.why}
}

// settle makes the index what the file is now.
func (s *Spool) settle(p *plan, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer p.wakeUp()
	if err != nil {
		s.letGo(p)
		p.drops = nil
		for _, o := range p.ops {
			o.err, o.id = err, 0
		}
		return
	}
	x := p.index
	if !p.inTree {
		p.overlay(s.over)
	}
	x.held, x.rate = 0, p.rate
	for _, r := range p.removes {
		x.remove(r.it)
	}
	for _, m := range p.moves {
		x.move(m.it, m.mark.state)
	}
	for q, c := range p.counts {
		q.counts = c
	}
	for _, a := range p.adds {
		x.add(a.it)
	}
}

// wakeUp lets everybody look whose queue has changed, or stayed as it was although an
// item of it was held.
func (p *plan) wakeUp() {
	for _, r := range p.removes {
		r.it.queue.wakeUp()
	}
	for _, m := range p.moves {
		m.it.queue.wakeUp()
	}
	for _, a := range p.adds {
		a.it.queue.wakeUp()
	}
}

// tell tells of what was dropped, and everybody in the group what became of their op.
func (s *Spool) tell(p *plan) {
	s.report(p.drops)
	for _, list := range [...][]*op{p.ops, p.refused} {
		for _, o := range list {
			o.done <- struct{}{}
		}
	}
}
