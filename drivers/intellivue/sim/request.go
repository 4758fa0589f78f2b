package sim

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"
)

// A cursor reads big-endian fields. Once it ran out of bytes it is bad and
// gives zeros.
type cursor struct {
	b   []byte
	bad bool
}

func (c *cursor) take(n int) []byte {
	if n > len(c.b) {
		c.bad, c.b = true, nil
		return nil
	}
	v := c.b[:n]
	c.b = c.b[n:]
	return v
}

func (c *cursor) u16() uint16 {
	if v := c.take(2); v != nil {
		return binary.BigEndian.Uint16(v)
	}
	return 0
}

func (c *cursor) u32() uint32 {
	if v := c.take(4); v != nil {
		return binary.BigEndian.Uint32(v)
	}
	return 0
}

// sized reads a length and returns a cursor over what it covers.
func (c *cursor) sized() cursor {
	return cursor{b: c.take(int(c.u16())), bad: c.bad}
}

// attributes reads an attribute list and calls f for each.
func (c *cursor) attributes(f func(id uint16, value []byte)) {
	n := int(c.u16())
	list := c.sized()
	for range n {
		id := list.u16()
		v := list.sized()
		if v.bad {
			c.bad = true
			return
		}
		if f != nil {
			f(id, v.b)
		}
	}
	c.bad = c.bad || list.bad || len(list.b) > 0
}

// A request is what a client asked in a data-export PDU.
type request struct {
	op      uint16 // opInvoke, or opResult for the answer to the create event
	invoke  uint16
	command uint16
	action  uint16

	poll   poll          // of a poll action
	ids    []uint16      // of a get
	list   uint16        // of a set: which attribute
	labels []uint32      // of a set: the list
	value  []byte        // of a set: the value as it came
	setLen int           // of a set: how many attributes
	event  uint16        // of an event result
	life   time.Duration // of an extended poll
}

// A poll is a question that the monitor answers at its ticks.
type poll struct {
	invoke, number uint16
	class, group   uint16
	extended       bool
	expires        time.Time
	sequence       uint16
	most           int // objects by priority list; 0: all

	nextBlock int64
	sent      bool
}

// A requestError is a request that gets an error as its answer.
type requestError struct {
	invoke uint16
	code   uint16
	list   []byte // of list errors: the entries
	reason string
}

func (e *requestError) Error() string { return e.reason }

// parseRequest reads a data-export PDU of a client. The error is a
// *requestError where the PDU is sound enough for an answer.
func parseRequest(p []byte) (request, error) {
	c := cursor{b: p}
	if c.u32() != 0xE1000002 || c.bad {
		return request{}, errors.New("no data-export PDU in presentation context 2")
	}
	r := request{op: c.u16()}
	body := c.sized()
	if body.bad {
		return r, errors.New("PDU shorter than its length")
	}
	r.invoke, r.command = body.u16(), body.u16()
	arg := body.sized()
	if arg.bad || len(body.b) > 0 || len(c.b) > 0 {
		return r, errors.New("lengths of the PDU do not add up")
	}
	switch r.op {
	case opResult:
		return r, r.parseEventResult(&arg)
	case opInvoke:
		return r, r.parseInvoke(&arg)
	}
	return r, fmt.Errorf("operation %d is none that a client sends", r.op)
}

func (r *request) parseEventResult(c *cursor) error {
	class := c.u16()
	c.u32() // instance
	c.u32() // event time: clients copy it or not
	r.event = c.u16()
	c.sized()
	if c.bad || r.command != cmdConfirmedEvent || class != classMDS {
		return errors.New("result of no event of the MDS")
	}
	return nil
}

func (r *request) refuse(code uint16, format string, args ...any) error {
	return &requestError{invoke: r.invoke, code: code, reason: fmt.Sprintf(format, args...)}
}

func (r *request) parseInvoke(c *cursor) error {
	class, context, handle := c.u16(), c.u16(), c.u16()
	scope := c.u32()
	switch {
	case c.bad:
		return r.refuse(errInvalidArg, "request without an object and a scope")
	case class != classMDS:
		return r.refuse(errNoClass, "request to class %04X", class)
	case context != 0 || handle != 0:
		return r.refuse(errNoInstance, "request to MDS instance %d/%d", context, handle)
	case scope != 0:
		return r.refuse(errInvalidScope, "scope %d", scope)
	}
	switch r.command {
	case cmdConfirmedAction:
		return r.parseAction(c)
	case cmdGet:
		return r.parseGet(c)
	case cmdSet, cmdConfirmedSet:
		return r.parseSet(c)
	}
	return r.refuse(errInvalidArg, "command %d", r.command)
}

func (r *request) parseAction(c *cursor) error {
	r.action = c.u16()
	arg := c.sized()
	if r.action != actionPoll && r.action != actionPollExt {
		return r.refuse(errNoAction, "action %04X", r.action)
	}
	p := poll{invoke: r.invoke, number: arg.u16(), extended: r.action == actionPollExt}
	partition := arg.u16()
	p.class, p.group = arg.u16(), arg.u16()
	if p.extended {
		arg.attributes(func(id uint16, v []byte) { r.pollAttribute(&p, id, v) })
	}
	if arg.bad || len(arg.b) > 0 || len(c.b) > 0 || partition != 1 {
		return r.refuse(errInvalidArg, "poll does not add up")
	}
	r.poll = p
	return nil
}

func (r *request) pollAttribute(p *poll, id uint16, v []byte) {
	switch {
	case id == attrPollLifetime && len(v) == 4:
		r.life = time.Duration(binary.BigEndian.Uint32(v)) * relativeUnit
	case id == attrPollCount && len(v) == 2:
		p.most = int(binary.BigEndian.Uint16(v))
	}
}

func (r *request) parseGet(c *cursor) error {
	n := int(c.u16())
	list := c.sized()
	for range n {
		r.ids = append(r.ids, list.u16())
		if list.bad {
			break
		}
	}
	if list.bad || len(list.b) > 0 || len(c.b) > 0 {
		return r.refuse(errInvalidArg, "get does not add up")
	}
	return nil
}

// parseSet reads a set. Only the last attribute of several is kept; the
// monitor refuses all but one anyway.
func (r *request) parseSet(c *cursor) error {
	r.setLen = int(c.u16())
	list := c.sized()
	for range r.setLen {
		modify := list.u16()
		r.list = list.u16()
		v := list.sized()
		if v.bad || modify != 0 {
			return r.refuse(errInvalidArg, "set does not add up or does not replace")
		}
		r.value = v.b
	}
	if list.bad || len(list.b) > 0 || len(c.b) > 0 || r.setLen != 1 {
		return r.refuse(errInvalidArg, "set does not add up or sets not one attribute")
	}
	return r.parseLabels()
}

// parseLabels reads the value of a set as a list of text ids.
func (r *request) parseLabels() error {
	if r.list != attrWaveList && r.list != attrNumericList {
		return nil // refused later as no such attribute
	}
	v := cursor{b: r.value}
	n := int(v.u16())
	ids := v.sized()
	if v.bad || len(v.b) > 0 || len(ids.b) != 4*n {
		return r.refuse(errInvalidArg, "priority list does not add up")
	}
	for range n {
		r.labels = append(r.labels, ids.u32())
	}
	return nil
}
