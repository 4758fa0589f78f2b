package pcd

import (
	"cmp"
	"slices"
	"time"

	"github.com/bedside-gateway/gatewayd/mdc"
	"github.com/bedside-gateway/gatewayd/observation"
)

// A batch is what becomes one message: the latest value of everything that was
// reported in an interval. Batches and their slots are used again and again.
type batch struct {
	class    Class
	device   *device
	patient  *patient
	from, to time.Time // the interval, open at its end; to zero: the point in time from
	latest   time.Time // arrival of the latest report
	due      time.Time

	// What the clock of the device showed, and when. Zero where it is not told.
	clock, clockAt time.Time

	slots  []slot // in order of place, stale ones between
	fresh  int    // slots with a value of this interval
	strips []strip

	made time.Time
	id   []byte // control ID, drawn once: a repeated emit is the same message
}

// A place is where a value stands in OBX-4, 1.VMD.CHAN.METRIC, with the terms
// of its parents.
type place struct {
	vmd, channel      uint32
	metric            uint64
	vmdTerm, chanTerm *mdc.Term
}

func (p place) compare(q place) int {
	return cmp.Or(cmp.Compare(p.vmd, q.vmd), cmp.Compare(p.channel, q.channel), cmp.Compare(p.metric, q.metric))
}

// agrees reports whether both places can stand in one tree: the same number at
// a level is always the same entity.
func (p place) agrees(q place) bool {
	if p.vmd != q.vmd {
		return true
	}
	return p.vmdTerm == q.vmdTerm && (p.channel != q.channel || p.chanTerm == q.chanTerm)
}

// A key says which value of the device it is.
type key struct {
	code     mdc.Code
	private  uint32
	name     uint64 // hash of a private value's vendor and name
	instance uint8
	setting  bool // set, not measured, where the nomenclature has one term for both
}

// A slot is the latest value under one key.
type slot struct {
	place place
	key   key
	fresh bool

	term *mdc.Term // nil for a private value
	ref  []byte    // MDCX_… of a private value
	name []byte    // what the vendor calls it

	kind   observation.Kind
	number observation.Decimal
	value  *mdc.Term // of KindCode
	text   []byte
	unit   *mdc.Unit
	site   *mdc.Term
	status observation.Status
	method observation.Method
	limits observation.Limits
	time   time.Time
	own    bool // has a time of its own, whatever the interval
}

// The rows of the device itself have the metric numbers up to this one.
const ownRows = 20

// Numbers that keep values without a row in the containment table out of the
// way of those that have one, and further instances out of the way of the first.
// They depend on the value alone, so they are the same over restarts.
const (
	channelsPerInstance = 100
	metricsPerInstance  = 1000
	settingsFrom        = 500
	flatPerInstance     = 20_000_000
	privateFrom         = 1_000_000_000
)

// placeFor finds where a value stands: where its driver puts it, else its usual
// place, else directly below the device under a number made of its code.
func placeFor(o *observation.Observation, k key) place {
	at := o.Place
	if at == (mdc.Place{}) {
		at, _ = mdc.PlaceOf(k.code)
	}
	p, ok := treePlace(at)
	if !ok {
		return flatPlace(k)
	}
	if k.setting {
		p.metric += settingsFrom
	}
	if p.channel != 0 {
		p.channel += channelsPerInstance * uint32(k.instance)
	} else {
		p.metric += metricsPerInstance * uint64(k.instance)
	}
	return p
}

func treePlace(at mdc.Place) (place, bool) {
	p := place{vmd: uint32(at.VMDNumber), channel: uint32(at.ChannelNumber), metric: uint64(at.MetricNumber)}
	if p.metric == 0 || p.vmd == 0 && (p.metric <= ownRows || p.channel != 0) {
		return p, false
	}
	ok := true
	if p.vmd != 0 {
		p.vmdTerm, ok = parent(at.VMD, mdc.GroupVMD)
	}
	if p.channel != 0 && ok {
		p.chanTerm, ok = parent(at.Channel, mdc.GroupCHAN)
	}
	return p, ok
}

func parent(c mdc.Code, g mdc.Group) (*mdc.Term, bool) {
	t, ok := mdc.Lookup(c.Current())
	return t, ok && t.Group == g
}

func flatPlace(k key) place {
	n := uint64(k.code)
	if n == 0 {
		n = privateFrom + uint64(k.private)
	}
	if n == privateFrom {
		n += k.name % privateFrom
	}
	if k.setting {
		n += flatPerInstance / 2 * 1000
	}
	return place{metric: n + flatPerInstance*uint64(k.instance)}
}

// privateName hashes what a vendor calls a value (FNV-1a), without allocating.
func privateName(vendor, name string) uint64 {
	h := uint64(14695981039346656037)
	for _, s := range [...]string{vendor, "\x00", name} {
		for i := range len(s) {
			h = (h ^ uint64(s[i])) * 1099511628211
		}
	}
	return h
}

// slot finds the slot of a key, or makes one. Where two values claim one number,
// or their parents disagree, the later one stands directly below the device.
func (b *batch) slot(p place, k key) *slot {
	for {
		i, found := b.search(p)
		if found && b.slots[i].key == k && b.slots[i].place == p {
			return &b.slots[i]
		}
		if !(found && b.slots[i].fresh) && b.makeRoom(p) {
			return b.take(p, k)
		}
		if flat := flatPlace(k); p.vmd != 0 || p.metric < flat.metric {
			p = flat
		} else {
			p.metric++
		}
	}
}

func (b *batch) search(p place) (int, bool) {
	return slices.BinarySearchFunc(b.slots, p, func(s slot, p place) int { return s.place.compare(p) })
}

// take makes the slot at p that of k.
func (b *batch) take(p place, k key) *slot {
	i, found := b.search(p)
	if !found {
		b.slots = slices.Insert(b.slots, i, slot{})
	}
	s := &b.slots[i]
	*s = slot{place: p, key: k, ref: s.ref[:0], name: s.name[:0], text: s.text[:0]}
	return s
}

// makeRoom reports whether the tree of this interval has room for the parents
// of p. Stale slots that disagree with them give way.
func (b *batch) makeRoom(p place) bool {
	for i := range b.slots {
		if s := &b.slots[i]; s.fresh && !s.place.agrees(p) {
			return false
		}
	}
	b.slots = slices.DeleteFunc(b.slots, func(s slot) bool { return !s.fresh && !s.place.agrees(p) })
	return true
}

// reset makes b ready for another interval of a device.
func (b *batch) reset(class Class, d *device) {
	if b.device != d || len(b.slots) > 64+4*b.fresh {
		b.slots = b.slots[:0]
	}
	for i := range b.slots {
		b.slots[i].fresh = false
	}
	*b = batch{class: class, device: d, slots: b.slots, strips: b.strips[:0], id: b.id[:0]}
}

// empty reports whether there is nothing to send.
func (b *batch) empty() bool { return b.fresh == 0 && len(b.strips) == 0 }

// size is the number of observations, for the counts.
func (b *batch) size() uint64 { return uint64(b.fresh + len(b.strips)) }
