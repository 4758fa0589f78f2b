package sim

import (
	"encoding/binary"
	"errors"
	"slices"
	"time"
)

// A reply is a recorded poll result, or one part of it, taken apart as far as
// it takes to give it to another poll.
type reply struct {
	op       uint16 // opResult or opLinked
	link     [2]byte
	extended bool
	relative uint32
	head     []byte // absolute time and partition, as recorded
	class    uint16
	group    uint16
	list     []byte // the contexts with their objects, as recorded

	numerics []Numeric
	waves    []uint32
}

// errNoPoll says that a PDU is no poll result.
var errNoPoll = errors.New("no poll result")

// parseReply takes a poll result apart.
func parseReply(pdu []byte) (reply, error) {
	c := cursor{b: pdu}
	var r reply
	if c.u32() != 0xE1000002 {
		return r, errNoPoll
	}
	r.op = c.u16()
	c = c.sized()
	switch r.op {
	case opLinked:
		copy(r.link[:], c.take(2))
	case opResult:
	default:
		return r, errNoPoll
	}
	c.u16() // invoke id
	command := c.u16()
	c = c.sized()
	c.take(6) // the MDS
	action := c.u16()
	c = c.sized()
	if c.bad || command != cmdConfirmedAction || action != actionPoll && action != actionPollExt {
		return r, errNoPoll
	}
	r.extended = action == actionPollExt
	c.u16() // poll number
	if r.extended {
		c.u16() // sequence number
	}
	r.relative = c.u32()
	r.head = slices.Clone(c.take(10))
	r.class, r.group = c.u16(), c.u16()
	r.list = slices.Clone(c.b)
	if c.bad || len(r.list) < 4 {
		return r, errNoPoll
	}
	return r, nil
}

// encode is the reply to another poll.
func (r *reply) encode(p *poll) []byte {
	return dataExport(nil, r.op, func(b []byte) []byte {
		if r.op == opLinked {
			b = append(b, r.link[:]...)
		}
		return operation(b, p.invoke, cmdConfirmedAction, func(b []byte) []byte {
			action := uint16(actionPoll)
			if p.extended {
				action = actionPollExt
			}
			return sized(u16(managedMDS(b), action), func(b []byte) []byte {
				b = u16(b, p.number)
				if p.extended {
					b = u16(b, p.sequence)
				}
				b = append(u32(b, r.relative), r.head...)
				return append(u16(u16(b, r.class), p.group), r.list...)
			})
		})
	})
}

// A dictionary knows which label a handle had when its statics came by.
type dictionary map[[2]uint16]uint32

// scan notes the values in a reply. Waves of one handle are told apart by
// their physio id, which is the label's low word in all single waves.
func (r *reply) scan(known dictionary, clock func(uint32) time.Time) {
	c := cursor{b: r.list}
	n := int(c.u16())
	c = c.sized()
	for range n {
		context := c.u16()
		objects := int(c.u16())
		list := c.sized()
		for range objects {
			handle := list.u16()
			if list.bad {
				return
			}
			r.scanObject(&list, known, context, handle, clock)
		}
	}
}

func (r *reply) scanObject(list *cursor, known dictionary, context, handle uint16, clock func(uint32) time.Time) {
	key := [2]uint16{context, handle}
	at, episodic := clock(r.relative), false
	list.attributes(func(id uint16, v []byte) {
		switch {
		case id == attrLabel && len(v) == 4:
			known[key] = binary.BigEndian.Uint32(v)
		case id == attrStampAbs:
			if t, ok := parseBCD(v); ok {
				at, episodic = t, true
			}
		case id == attrNumeric && len(v) == 10:
			r.numerics = append(r.numerics, numericOf(v))
		case id == attrCompoundNumeric && len(v) > 4:
			for v = v[4:]; len(v) >= 10; v = v[10:] {
				r.numerics = append(r.numerics, numericOf(v))
			}
		case id == attrWave && len(v) > 2:
			r.waves = append(r.waves, 0x00020000|uint32(binary.BigEndian.Uint16(v)))
		case id == attrCompoundWave:
			r.waves = append(r.waves, labelECG)
		}
	})
	for i := range r.numerics {
		n := &r.numerics[i]
		if n.Handle != 0 {
			continue // of an object before
		}
		n.Context, n.Handle, n.Label, n.Relative = context, handle, known[key], r.relative
		n.Time, n.Episodic = at, episodic
	}
}

// numericOf reads an observed value of 10 bytes.
func numericOf(v []byte) Numeric {
	bits := binary.BigEndian.Uint32(v[6:])
	f := float{mantissa: int32(bits<<8) >> 8, exponent: int8(bits >> 24)}
	n := Numeric{Physio: binary.BigEndian.Uint16(v), State: binary.BigEndian.Uint16(v[2:]), Unit: binary.BigEndian.Uint16(v[4:])}
	if f.mantissa > -0x7FFFFE && f.mantissa < 0x7FFFFE { // the others are no numbers
		n.Value = f.digits()
	}
	return n
}

// parseBCD reads an AbsoluteTime.
func parseBCD(v []byte) (time.Time, bool) {
	if len(v) != 8 {
		return time.Time{}, false
	}
	var d [8]int
	for i, c := range v {
		if c>>4 > 9 || c&15 > 9 {
			return time.Time{}, false
		}
		d[i] = int(c>>4)*10 + int(c&15)
	}
	if d[2] < 1 || d[2] > 12 || d[3] < 1 {
		return time.Time{}, false
	}
	return time.Date(d[0]*100+d[1], time.Month(d[2]), d[3], d[4], d[5], d[6], d[7]*1e7, time.UTC), true
}
