// Package mdc is the nomenclature of IEEE 11073-10101: terms, units, the units
// that a term allows, and where a metric stands in the containment tree of its
// device.
//
// The tables are generated from mdc/table by go generate. A name that is not in
// a table is never written on the wire: receivers compare names as well as
// codes, and a plausible name that is in no table is an error there. Deprecated
// codes are understood and mapped to their successors, never emitted.
//
// The package holds facts only. Drivers use it to say what a value is, pcd to
// write it down.
package mdc

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
)

//go:generate go run ./gen

// A Code is a context-free 11073-10101 code: partition × 65536 + code within
// the partition (10101, section on context-free codes). 0 is no code.
type Code uint32

// Partition is the partition number: 1 objects, 2 metrics, 3 events, 4 units,
// 7 body sites, 8 infrastructure, 258 settings.
func (c Code) Partition() uint16 { return uint16(c >> 16) }

// String is the reference identifier where the tables have one, else the number.
func (c Code) String() string {
	if t, ok := Lookup(c); ok {
		return t.RefID
	}
	if u, ok := LookupUnit(c); ok {
		return u.RefID
	}
	return strconv.FormatUint(uint64(c), 10)
}

// Current is the code to emit for c: its successor where c is deprecated, else c.
func (c Code) Current() Code {
	if t, ok := Lookup(c); ok && t.replacedBy != 0 {
		return t.replacedBy
	}
	return c
}

// A Group is the kind of thing a term names.
type Group uint8

// The groups of terms.
const (
	GroupATTR     Group = iota + 1 // an attribute of an object
	GroupMDS                       // a medical device system
	GroupVMD                       // a virtual medical device: a subsystem
	GroupCHAN                      // a channel of a subsystem
	GroupMETRIC                    // a measurement, setting, calculation or enumeration
	GroupEVENT                     // an event or alert condition
	GroupBODYSITE                  // a body site
)

// A Term is a row of the nomenclature.
type Term struct {
	Code    Code
	RefID   string // reference identifier, MDC_…
	Display string // English text for people
	Group   Group
	Unit    Code // the usual unit; 0 where the term has none

	replacedBy Code
}

// Deprecated reports whether the term is understood but not to be emitted.
func (t *Term) Deprecated() bool { return t.replacedBy != 0 }

// A Unit is a unit of measure.
type Unit struct {
	Code  Code
	RefID string // MDC_DIM_…
	UCUM  string // the UCUM code to emit; empty where UCUM has none

	otherUCUM string
}

// HasUCUM reports whether s is one of the UCUM codes of the unit.
func (u *Unit) HasUCUM(s string) bool {
	if s == "" {
		return false
	}
	if s == u.UCUM {
		return true
	}
	for other := range strings.SplitSeq(u.otherUCUM, "|") {
		if s == other {
			return true
		}
	}
	return false
}

// A Place is where a metric stands in the containment tree of its device: the
// VMD and channel terms and the numbers that these have in OBX-4. The numbers
// are rows of a table that only grows, so they are the same over restarts and
// releases. VMD and Channel are 0 for attributes of the device itself.
type Place struct {
	VMD, Channel                           Code
	VMDNumber, ChannelNumber, MetricNumber uint16
}

type (
	nameIndex struct {
		name  string
		index uint16
	}
	allowedUnit struct{ term, unit Code }
	placeOf     struct {
		metric Code
		place  Place
	}
)

// Lookup finds a term by its code, deprecated ones included.
func Lookup(c Code) (*Term, bool) {
	i, ok := slices.BinarySearchFunc(terms[:], c, func(t Term, c Code) int { return cmp.Compare(t.Code, c) })
	if !ok {
		return nil, false
	}
	return &terms[i], true
}

// LookupName finds a term by its reference identifier or a synonym of it.
func LookupName(refID string) (*Term, bool) {
	i, ok := findName(termNames[:], refID)
	if !ok {
		return nil, false
	}
	return &terms[i], true
}

// LookupUnit finds a unit by its code.
func LookupUnit(c Code) (*Unit, bool) {
	i, ok := slices.BinarySearchFunc(units[:], c, func(u Unit, c Code) int { return cmp.Compare(u.Code, c) })
	if !ok {
		return nil, false
	}
	return &units[i], true
}

// LookupUnitName finds a unit by its reference identifier or a synonym of it.
func LookupUnitName(refID string) (*Unit, bool) {
	i, ok := findName(unitNames[:], refID)
	if !ok {
		return nil, false
	}
	return &units[i], true
}

// UnitAllowed reports whether the nomenclature allows the unit for the term.
// listed is false where it lists no units for that term, and then says nothing.
func UnitAllowed(term, unit Code) (allowed, listed bool) {
	i, ok := slices.BinarySearchFunc(allowedUnits[:], allowedUnit{term, unit}, func(a, b allowedUnit) int {
		return cmp.Or(cmp.Compare(a.term, b.term), cmp.Compare(a.unit, b.unit))
	})
	if ok {
		return true, true
	}
	listed = i < len(allowedUnits) && allowedUnits[i].term == term || i > 0 && allowedUnits[i-1].term == term
	return false, listed
}

// PlaceOf finds the place of a metric in the containment tree.
func PlaceOf(metric Code) (Place, bool) {
	i, ok := slices.BinarySearchFunc(containment[:], metric, func(p placeOf, c Code) int { return cmp.Compare(p.metric, c) })
	if !ok {
		return Place{}, false
	}
	return containment[i].place, true
}

func findName(names []nameIndex, name string) (int, bool) {
	i, ok := slices.BinarySearchFunc(names, name, func(n nameIndex, s string) int { return strings.Compare(n.name, s) })
	if !ok {
		return 0, false
	}
	return int(names[i].index), true
}
