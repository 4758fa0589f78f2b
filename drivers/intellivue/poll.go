package intellivue

// attrPollPeriod of an extended poll is for how long it lasts, not how often
// results come: those come in the monitor's own beat of 1.024 s.
const attrPollPeriod = 0xF13E

// A pollRequest asks for a group of attributes of all objects of a class, once
// or, extended, again and again for a time.
type pollRequest struct {
	number, partition, class, group uint16
	list                            attributes // of an extended one
}

func parsePollRequest(info []byte, extended bool) (p pollRequest, ok bool) {
	r := reader{b: info}
	p.number, p.partition, p.class, p.group = r.u16(), r.u16(), r.u16(), r.u16()
	if !extended {
		return p, r.done()
	}
	l := r.list()
	if !r.done() {
		return p, false
	}
	p.list, ok = newAttributes(l)
	return p, ok
}

func (p *pollRequest) append(b []byte, extended bool) []byte {
	b = appendU16(appendU16(appendU16(appendU16(b, p.number), p.partition), p.class), p.group)
	if extended {
		b = p.list.append(b)
	}
	return b
}

// A pollResult is the answer, or one part of it.
type pollResult struct {
	number   uint16
	sequence uint16 // of an extended one
	rel      relativeTime
	abs      absoluteTime

	partition, class, group uint16
	contexts                contexts
}

// parsePollResult reads a result and checks the lengths of everything in it, so
// that what goes over it afterwards finds all of it or nothing.
func parsePollResult(info []byte, extended bool) (p pollResult, ok bool) {
	r := reader{b: info}
	p.number = r.u16()
	if extended {
		p.sequence = r.u16()
	}
	p.rel = relativeTime(r.u32())
	copy(p.abs[:], r.take(len(p.abs)))
	p.partition, p.class, p.group = r.u16(), r.u16(), r.u16()
	l := r.list()
	if !r.done() {
		return p, false
	}
	p.contexts = contexts{l}
	return p, p.contexts.check()
}

func (p *pollResult) append(b []byte, extended bool) []byte {
	b = appendU16(b, p.number)
	if extended {
		b = appendU16(b, p.sequence)
	}
	b = append(appendU32(b, uint32(p.rel)), p.abs[:]...)
	b = appendU16(appendU16(appendU16(b, p.partition), p.class), p.group)
	return p.contexts.append(b)
}

// Contexts are the naming contexts of a result: handles are unique in each.
type contexts struct{ list }

func (c *contexts) next() (id uint16, o objects, ok bool) {
	if len(c.b) == 0 {
		return 0, objects{}, false
	}
	r := reader{b: c.b}
	id, o = r.u16(), objects{r.list()}
	c.b = r.b
	return id, o, !r.bad
}

func (c contexts) check() bool {
	n := 0
	for r := (reader{b: c.b}); len(r.b) > 0; n++ {
		r.u16()
		if o := (objects{r.list()}); r.bad || !o.check() {
			return false
		}
	}
	return n == c.count
}

func (c contexts) append(b []byte) []byte {
	b, at := open(appendU16(b, uint16(c.count)))
	for {
		id, o, ok := c.next()
		if !ok {
			return shut(b, at)
		}
		b = o.append(appendU16(b, id))
	}
}

// Objects are those of one context.
type objects struct{ list }

func (o *objects) next() (handle uint16, a attributes, ok bool) {
	if len(o.b) == 0 {
		return 0, attributes{}, false
	}
	r := reader{b: o.b}
	handle = r.u16()
	l := r.list()
	o.b = r.b
	return handle, attributes(l), !r.bad
}

func (o objects) check() bool {
	n := 0
	for r := (reader{b: o.b}); len(r.b) > 0; n++ {
		r.u16()
		l := r.list()
		if _, ok := newAttributes(l); r.bad || !ok {
			return false
		}
	}
	return n == o.count
}

func (o objects) append(b []byte) []byte {
	b, at := open(appendU16(b, uint16(o.count)))
	for {
		handle, a, ok := o.next()
		if !ok {
			return shut(b, at)
		}
		b = a.append(appendU16(b, handle))
	}
}

// Attributes are a list of attribute values.
type attributes list

// newAttributes checks that count and lengths fill the list exactly.
func newAttributes(l list) (attributes, bool) {
	n := 0
	for r := (reader{b: l.b}); len(r.b) > 0; n++ {
		r.u16()
		r.sized()
		if r.bad {
			return attributes{}, false
		}
	}
	return attributes(l), n == l.count
}

func (a *attributes) next() (id uint16, value []byte, ok bool) {
	if len(a.b) == 0 {
		return 0, nil, false
	}
	r := reader{b: a.b}
	id, value = r.u16(), r.sized()
	a.b = r.b
	return id, value, !r.bad
}

func (a attributes) append(b []byte) []byte {
	b, at := open(appendU16(b, uint16(a.count)))
	for {
		id, value, ok := a.next()
		if !ok {
			return shut(b, at)
		}
		b = appendAttribute(b, id, value)
	}
}

func appendAttribute(b []byte, id uint16, value []byte) []byte {
	b, at := open(appendU16(b, id))
	return shut(append(b, value...), at)
}
