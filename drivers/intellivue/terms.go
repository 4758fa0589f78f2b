package intellivue

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/bedside-gateway/gatewayd/mdc"
	"github.com/bedside-gateway/gatewayd/observation"
)

//go:generate go run ./gen

// The partitions of the nomenclature that the protocol's 16-bit codes belong to.
const (
	partitionObject = 1 << 16
	partitionMetric = 2 << 16
	partitionEvent  = 3 << 16
	partitionUnit   = 4 << 16
)

// private is the first code of a partition that is the maker's own.
const private = 0xF000

const vendor = "PHILIPS"

type (
	// A name is a row of a table: an id of the maker's, its name there, and the
	// code of the nomenclature where that is not partition × 65536 + id.
	name struct {
		id   uint16
		name string
		code mdc.Code
	}
	label struct {
		id   uint32
		text string
	}
	// A term is what an id of the maker's means.
	term struct {
		code    mdc.Code
		private observation.Private
	}
)

// metricTerm is the term of a physiological identifier. Where the nomenclature
// has none it goes through under the maker's number, so that nothing is lost.
func metricTerm(id uint16) term { return termOf(physioNames[:], partitionMetric, mdc.GroupMETRIC, id) }

// eventTerm is the term of an alarm code.
func eventTerm(id uint16) term { return termOf(eventNames[:], partitionEvent, mdc.GroupEVENT, id) }

func termOf(table []name, partition mdc.Code, group mdc.Group, id uint16) term {
	row, listed := findName(table, id)
	code := row.code
	if code == 0 && id < private {
		code = partition + mdc.Code(id)
	}
	if t, ok := mdc.Lookup(code.Current()); ok && t.Group == group {
		return term{code: t.Code}
	}
	p := observation.Private{Vendor: vendor, Code: uint32(id)}
	if listed {
		p.Name = row.name
	}
	return term{private: p}
}

// unitCode is the code of a unit. known is false where the nomenclature lacks
// it: then the code is only the number that came, and nobody can name it.
func unitCode(id uint16) (code mdc.Code, known bool) {
	if row, ok := findName(unitNames[:], id); ok && row.code != 0 {
		return row.code, true
	}
	code = partitionUnit + mdc.Code(id)
	_, known = mdc.LookupUnit(code)
	return code, known
}

// sourceCode is the code of the metric or the device part that an alarm is
// about; 0 where the nomenclature has none.
func sourceCode(id uint16, object bool) mdc.Code {
	if !object {
		return metricTerm(id).code
	}
	if _, ok := mdc.Lookup(partitionObject + mdc.Code(id)); ok {
		return partitionObject + mdc.Code(id)
	}
	return 0
}

func findName(table []name, id uint16) (name, bool) {
	i, ok := slices.BinarySearchFunc(table, id, func(n name, id uint16) int { return cmp.Compare(n.id, id) })
	if !ok {
		return name{}, false
	}
	return table[i], true
}

// labelOf is the text id of a metric whose label is its own identifier.
func labelOf(physio uint16) uint32 { return partitionMetric | uint32(physio) }

// parseLabel reads a label of an option: eight hexadecimal digits, or the label
// as an English monitor shows it, such as II, ABP or Pleth.
func parseLabel(s string) (uint32, error) {
	if len(s) == 8 {
		if n, err := strconv.ParseUint(s, 16, 32); err == nil {
			return uint32(n), nil
		}
	}
	var found []uint32
	for _, l := range labelNames {
		if strings.EqualFold(l.text, s) {
			found = append(found, l.id)
		}
	}
	switch len(found) {
	case 0:
		return 0, fmt.Errorf("no label of the monitor is called %q; write its text id, eight hexadecimal digits", s)
	case 1:
		return found[0], nil
	}
	return 0, fmt.Errorf("%q is the label of %d text ids (%08X, %08X, ...); write the one that is meant", s, len(found), found[0], found[1])
}

// isECG and isEEG tell the labels of ECG and EEG waves, of which a monitor
// exports only so many.
func isECG(label uint32) bool { return label >= 0x00020100 && label <= 0x000201FF }

func isEEG(label uint32) bool {
	return label >= 0x0002592C && label <= 0x0002593B || label>>16 == 0x800F
}
