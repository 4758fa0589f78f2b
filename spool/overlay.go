package spool

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"

	"go.etcd.io/bbolt"
)

// An overlay is what the journal says and the tree does not yet.
type overlay struct {
	records map[uint64][]byte   // added
	removed map[uint64]struct{} // from the tree
	marks   map[uint64][]byte   // set
	bytes   int64               // of records
}

func newOverlay() *overlay {
	return &overlay{records: map[uint64][]byte{}, removed: map[uint64]struct{}{}, marks: map[uint64][]byte{}}
}

func (o *overlay) add(id uint64, record []byte) {
	o.records[id] = record
	o.bytes += int64(len(record) + recordExtra)
}

func (o *overlay) remove(id uint64) {
	delete(o.marks, id)
	if r, ok := o.records[id]; ok {
		delete(o.records, id)
		o.bytes -= int64(len(r) + recordExtra)
		return
	}
	o.removed[id] = struct{}{}
}

// write brings an overlay into the tree.
func (o *overlay) write(tx *bbolt.Tx) error {
	records, marks := tx.Bucket(recordsBucket), tx.Bucket(marksBucket)
	records.FillPercent = 1 // keys only ever come at the end
	for id := range o.removed {
		if err := errors.Join(records.Delete(idKey(id)), marks.Delete(idKey(id))); err != nil {
			return err
		}
	}
	for _, id := range slices.Sorted(maps.Keys(o.records)) {
		if err := records.Put(idKey(id), o.records[id]); err != nil {
			return err
		}
	}
	for id, v := range o.marks {
		if err := marks.Put(idKey(id), v); err != nil {
			return err
		}
	}
	return nil
}

// totals are the numbers that the tree keeps.
type totals struct {
	last   uint64
	counts map[string]counts
	rate   rate
}

// totals gives the numbers as they are, or will be with the planned counts.
func (x *index) totals(planned map[*queueIndex]counts) totals {
	t := totals{last: x.last, counts: map[string]counts{}, rate: x.rate}
	for name, q := range x.queues {
		c, ok := planned[q]
		if !ok {
			c = q.counts
		}
		if c != (counts{}) {
			t.counts[name] = c
		}
	}
	return t
}

func (t totals) write(tx *bbolt.Tx) error {
	about := tx.Bucket(aboutBucket)
	for name, c := range t.counts {
		if err := about.Put(append(bytes.Clone(countsKey), name...), c.append(nil)); err != nil {
			return err
		}
	}
	b := native.AppendUint64(nil, math.Float64bits(t.rate.bytes))
	b = native.AppendUint64(b, math.Float64bits(t.rate.seconds))
	return errors.Join(about.Put(rateKey, b), tx.Bucket(recordsBucket).SetSequence(t.last))
}

// absorb is the transaction that brings an overlay into the tree. It gives the generation
// of the journal that follows, and the number of the transaction.
func (st *store) absorb(o *overlay, t totals, random io.Reader) (generation uint64, id int, err error) {
	var g [8]byte
	if _, err := io.ReadFull(random, g[:]); err != nil {
		return 0, 0, fmt.Errorf("the journal's generation cannot be drawn: %w", err)
	}
	err = st.update(func(tx *bbolt.Tx) error {
		id = tx.ID()
		return errors.Join(o.write(tx), t.write(tx), tx.Bucket(aboutBucket).Put(generationKey, g[:]))
	})
	return little.Uint64(g[:]), id, err
}

// A replayer applies what the journal says to an index and an overlay.
type replayer struct {
	seal  *sealer
	index *index
	over  *overlay
	lost  int
	// unsure: whether the journal follows the tree is not known. What it adds is
	// quarantined, as it may have been delivered, and what it removes is not believed.
	unsure bool
	found  int
}

func (r *replayer) apply(changes []byte, torn bool) {
	eachChange(changes, func(kind byte, id uint64, v []byte) {
		switch {
		case kind == changeAdd:
			r.add(id, v, torn)
		case torn || r.unsure:
		case kind == changeRemove:
			r.remove(id, v)
		case kind == changeMark:
			r.mark(id, v)
		}
	})
}

func (r *replayer) add(id uint64, v []byte, torn bool) {
	x := r.index
	h, _, err := r.seal.openRecord(nil, id, v)
	if err != nil || x.items[id] != nil {
		if err != nil && !torn {
			r.lost++
		}
		return
	}
	x.load(id, h, v)
	r.over.add(id, v)
	x.items[id].queue.counts.enqueued++
	r.found++
	if r.unsure {
		m := mark{state: Quarantined, reason: unsureReason}
		x.items[id].annotate(m.reason)
		x.move(x.items[id], Quarantined)
		r.over.marks[id] = r.seal.sealMark(nil, id, m)
	}
}

func (r *replayer) remove(id uint64, v []byte) {
	it := r.index.items[id]
	if it == nil || len(v) != 1 || int(v[0]) > len(causes) {
		return
	}
	if c := &it.queue.counts; v[0] == 0 {
		c.accepted++
	} else {
		c.dropped[v[0]-1]++
	}
	r.index.remove(it)
	r.over.remove(id)
}

func (r *replayer) mark(id uint64, v []byte) {
	it := r.index.items[id]
	m, err := r.seal.openMark(id, v)
	if it == nil || err != nil {
		return
	}
	r.over.marks[id] = v
	r.index.marked(it, m)
}
