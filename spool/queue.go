package spool

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// A Queue is the part of the spool that goes to one destination. One client takes from
// it, one entry at a time: Next, Sent, then Accepted, Retry or Quarantine.
type Queue struct {
	s    *Spool
	name string
}

// Queue gives the queue of a destination.
func (s *Spool) Queue(name string) *Queue { return &Queue{s, name} }

// Next waits for the oldest entry that is not quarantined and gives it, without removing
// it. It gives the same entry until that is accepted, quarantined or dropped: so the
// order holds, for each device and for all of them. State is Sent where it was sent and
// the answer is not known; it is then sent again with its control ID. No rule drops
// what Next gave last. An entry that does not authenticate is quarantined, and the next
// one given.
func (q *Queue) Next(ctx context.Context) (Entry, error) {
	checked := false
	for {
		it, err := q.await(ctx)
		if err != nil {
			return Entry{}, err
		}
		e, err := q.s.read(it, true)
		switch {
		case err == nil:
			return e, nil
		case errors.Is(err, ErrDamaged):
			err = q.Quarantine(it.id, "damaged: it does not authenticate")
			if errors.Is(err, ErrNotFound) {
				err = nil // somebody else was faster
			}
		case errors.Is(err, ErrNotFound) && q.s.gone(it):
			err = nil // dropped by the operator meanwhile
		case !checked && !errors.Is(err, ErrClosed):
			checked = true
			err = q.s.do(&op{kind: opCheck})
		}
		if err != nil {
			return Entry{}, err
		}
	}
}

// gone reports whether an item is out of the spool.
func (s *Spool) gone(it *item) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return it.dead
}

// await waits for the first item of the queue and claims it.
func (q *Queue) await(ctx context.Context) (*item, error) {
	for {
		it, wake, err := q.claim()
		if it != nil || err != nil {
			return it, err
		}
		select {
		case <-wake:
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-q.s.stop:
			return nil, ErrClosed
		}
	}
}

// claim gives the first item of the queue. One that a transaction is about to remove or
// to set aside is waited for, as that may fail: nothing overtakes it.
func (q *Queue) claim() (*item, chan struct{}, error) {
	s := q.s
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.readOnly:
		return nil, nil, ErrReadOnly
	case s.closing:
		return nil, nil, ErrClosed
	}
	x := s.index.queue(q.name)
	it := x.live.first(nil)
	if it == nil || it.held {
		if x.wake == nil {
			x.wake = make(chan struct{})
		}
		return nil, x.wake, nil
	}
	x.claimed = it
	return it, nil, nil
}

// read reads the entry of an item, with its payload or without.
func (s *Spool) read(it *item, payload bool) (Entry, error) {
	v, err := s.fetch(it.id)
	if err != nil {
		return Entry{}, err
	}
	h, p, err := s.unseal(it.id, v)
	if err != nil {
		return s.entry(it, header{}), fmt.Errorf("entry %d is %w: it %w", it.id, ErrDamaged, err)
	}
	e := s.entry(it, h)
	if payload {
		e.Payload = p
	}
	return e, nil
}

// fetch reads a record.
func (s *Spool) fetch(id uint64) ([]byte, error) {
	s.access.RLock()
	defer s.access.RUnlock()
	s.mu.Lock()
	v, inJournal := s.over.records[id]
	closing, failing := s.closing, s.failing
	s.mu.Unlock()
	switch {
	case s.store == nil && closing:
		return nil, ErrClosed
	case s.store == nil:
		return nil, failing
	case inJournal:
		return v, nil
	}
	return s.store.get(nil, id)
}

func (s *Spool) unseal(id uint64, v []byte) (header, []byte, error) {
	s.reading.Lock()
	defer s.reading.Unlock()
	return s.reader.openRecord(nil, id, v)
}

// entry is what is known of an item beside its payload.
func (s *Spool) entry(it *item, h header) Entry {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := Entry{ID: it.id, Queue: it.queue.name, Device: string(h.device), ControlID: string(h.control),
		Class: it.class, Made: time.UnixMicro(it.made).UTC(), State: it.state}
	if it.note != nil {
		e.Attempts, e.Reason = int(it.note.attempts), it.note.reason
	}
	return e
}

// Sent tells that the entry is about to be on its way. It is not committed for itself,
// but with the next commit that comes: what was sent and what was not are treated alike
// after a power cut, both go out (again) with their control ID, so that all that can be
// lost is the number of attempts. ErrNotFound says that the entry was dropped since Next:
// it must not be sent.
func (q *Queue) Sent(id uint64) error {
	return q.change(id, func(it *item) {
		it.state = Sent
		it.queue.claimed = it
		it.note.attempts++
	})
}

// Retry tells that the entry was not accepted, or may not have been: it stays the first
// of its queue. It is saved as Sent is.
func (q *Queue) Retry(id uint64, reason string) error {
	return q.change(id, func(it *item) {
		it.state = Queued
		it.queue.claimed = nil
		it.note.reason = reason
	})
}

// change changes what is known of an entry, to be saved later.
func (q *Queue) change(id uint64, f func(*item)) error {
	s := q.s
	s.mu.Lock()
	defer s.mu.Unlock()
	it := s.index.items[id]
	switch {
	case s.readOnly:
		return ErrReadOnly
	case s.closing:
		return ErrClosed
	case it == nil || it.held || it.queue.name != q.name || it.state == Quarantined:
		return fmt.Errorf("%w: %d", ErrNotFound, id)
	}
	n := note{unsaved: true}
	if it.note != nil {
		n = *it.note
	}
	it.note = &n // a transaction may be reading the old one
	f(it)
	n.unsaved = true
	s.index.unsaved = append(s.index.unsaved, it)
	return nil
}

// Accepted removes an entry that the destination has taken, and returns when that is
// durable: it is never sent again. Where it fails, the entry stays and is repeated.
func (q *Queue) Accepted(id uint64) error {
	return q.s.do(&op{kind: opAccepted, queue: q.name, id: id})
}

// Quarantine sets an entry aside that the destination will not take, until Release or
// Drop, and returns when that is durable. A full quarantine gives up others for it.
func (q *Queue) Quarantine(id uint64, reason string) error {
	return q.s.do(&op{kind: opQuarantine, queue: q.name, id: id, reason: reason})
}

// List gives the entries of a queue, of all where the name is "", by ID, without their
// payload. An error of f ends it and is returned.
func (s *Spool) List(queue string, f func(Entry) error) error {
	for _, it := range s.list(queue) {
		e, err := s.read(it, false)
		switch {
		case errors.Is(err, ErrNotFound):
			continue // gone meanwhile
		case errors.Is(err, ErrDamaged):
		case err != nil:
			return err
		}
		if err := f(e); err != nil {
			return err
		}
	}
	return nil
}

func (s *Spool) list(queue string) []*item {
	s.mu.Lock()
	defer s.mu.Unlock()
	var items []*item
	for _, it := range s.index.items {
		if queue == "" || it.queue.name == queue {
			items = append(items, it)
		}
	}
	slices.SortFunc(items, func(a, b *item) int { return cmp.Compare(a.id, b.id) })
	return items
}

// Get gives an entry with its payload: for the operator who looks at what was refused.
func (s *Spool) Get(id uint64) (Entry, error) {
	s.mu.Lock()
	it := s.index.items[id]
	s.mu.Unlock()
	if it == nil {
		return Entry{}, fmt.Errorf("%w: %d", ErrNotFound, id)
	}
	return s.read(it, true)
}
