package sim

import (
	"slices"
	"time"
)

// An object is one object of a poll result.
type object struct {
	context, handle uint16
	attributes      []attribute
	numerics        []Numeric // the values in it
	wave            uint32    // label of the wave that it has a block of
}

// A result is the content of a poll result before it is split.
type result struct {
	relative uint32
	objects  []object
}

// An outgoing PDU.
type outgoing struct {
	due      time.Time
	pdu      []byte
	numerics []Numeric
	waves    []uint32
}

// sent counts a PDU that went out undamaged.
func (c *Counts) sent(o outgoing) {
	c.Sent++
	c.SentBytes += uint64(len(o.pdu))
	for _, n := range o.numerics {
		if n.Value != "" {
			c.Numerics[n.Physio]++
		}
	}
	for _, w := range o.waves {
		c.WaveBlocks[w]++
	}
}

// tell hands its values to the one who counts, if there is one.
func (o outgoing) tell(f func(Numeric)) {
	if f == nil {
		return
	}
	for _, n := range o.numerics {
		f(n)
	}
}

// order in which the polls of one tick are answered, as recorded: numerics,
// alarms, waves last.
var classOrder = []uint16{classMDS, classPatient, classNumeric, classEnum, classAlarms, classWave}

func known(class uint16) bool { return slices.Contains(classOrder, class) }

// contexts are the MDS contexts that a result of a class lists, even empty.
func contexts(class uint16) []uint16 {
	switch class {
	case classNumeric, classWave, classEnum:
		return []uint16{0, 1}
	}
	return []uint16{0}
}

// results are what a poll gets at t.
func (m *Monitor) results(p *poll, t time.Time, granted proposal) []result {
	if p.class == classWave {
		return m.waveResults(p, t, granted.pollExt&optWaves != 0)
	}
	var objects []object
	switch p.class {
	case classMDS:
		objects = []object{{attributes: m.mdsAttributes(t)}}
	case classNumeric:
		objects = m.numericResult(p, t)
	case classEnum:
		objects = m.enumResult()
	case classAlarms:
		objects = m.alarmResult()
	case classPatient:
		objects = m.patientResult()
	}
	once := p.extended && p.sent && !(p.class == classNumeric && m.o.RepeatStatics)
	for i := range objects {
		objects[i].attributes = filter(objects[i].attributes, p, once)
	}
	return []result{{uint32(m.units(t)), objects}}
}

// filter keeps the attributes of the group that was asked for. Of all groups
// the later results of an extended poll have only what changes.
func filter(list []attribute, p *poll, once bool) []attribute {
	return slices.DeleteFunc(list, func(a attribute) bool {
		if p.group != groupAll {
			// The monitor's dynamic alarm data goes by either name.
			return a.group != p.group && !(p.class == classAlarms && p.group == groupDynamic && a.group == groupAlarms)
		}
		return once && (a.group == groupStatic || a.group == groupDynamic || a.group == groupIdent || a.group == groupProduct)
	})
}

// An encoded object is ready to be put into a part.
type encoded struct {
	context  uint16
	bytes    []byte
	numerics []Numeric
	wave     uint32
}

func encode(objects []object) []encoded {
	list := make([]encoded, 0, len(objects))
	for _, o := range objects {
		list = append(list, encoded{o.context, appendAttributes(u16(nil, o.handle), o.attributes), o.numerics, o.wave})
	}
	return list
}

// A pollHead is what each part of a poll result begins with.
type pollHead struct {
	invoke, number, sequence uint16
	extended                 bool
	relative                 uint32
	absolute                 time.Time
	class, group             uint16
	contexts                 []uint16
}

// Sizes of a poll result without objects, and of one more context in it.
const (
	resultOverhead  = 52
	contextOverhead = 6
)

// append writes a result or one part of it. The contexts of h are listed even
// if they have no objects, unless this is a part of several.
func (h *pollHead) append(link uint16, count int, part []encoded) []byte {
	op := uint16(opResult)
	if link != 0 {
		op = opLinked
	}
	return dataExport(nil, op, func(b []byte) []byte {
		if link != 0 {
			b = append(b, byte(link), byte(count))
		}
		return operation(b, h.invoke, cmdConfirmedAction, func(b []byte) []byte {
			action := uint16(actionPoll)
			if h.extended {
				action = actionPollExt
			}
			return sized(u16(managedMDS(b), action), func(b []byte) []byte { return h.appendResult(b, part) })
		})
	})
}

func (h *pollHead) appendResult(b []byte, part []encoded) []byte {
	b = u16(b, h.number)
	if h.extended {
		b = u16(b, h.sequence)
	}
	b = appendBCD(u32(b, h.relative), h.absolute)
	b = u16(u16(u16(b, 1), h.class), h.group)
	return counted(b, len(h.contexts), func(b []byte) []byte {
		for _, context := range h.contexts {
			n := 0
			for _, o := range part {
				if o.context == context {
					n++
				}
			}
			b = counted(u16(b, context), n, func(b []byte) []byte {
				for _, o := range part {
					if o.context == context {
						b = append(b, o.bytes...)
					}
				}
				return b
			})
		}
		return b
	})
}

// split puts objects into parts of at most limit bytes. An object that is
// longer than that alone has a part for itself.
func split(objects []encoded, limit int) [][]encoded {
	var parts [][]encoded
	size := limit + 1
	for _, o := range objects {
		if size+len(o.bytes) > limit {
			parts, size = append(parts, nil), resultOverhead+2*contextOverhead
		}
		last := len(parts) - 1
		parts[last] = append(parts[last], o)
		size += len(o.bytes)
	}
	return parts
}

// messages are the PDUs of a result: one, or linked ones and the closing one.
func (h *pollHead) messages(objects []encoded, mtu, part int, closingData bool) []outgoing {
	whole := resultOverhead + contextOverhead*len(h.contexts)
	for _, o := range objects {
		whole += len(o.bytes)
	}
	limit := min(mtu, part)
	if h.class == classWave {
		limit = mtu // recorded wave results are longer than any linked part
	}
	if whole <= limit || len(objects) < 2 {
		return []outgoing{outgoingOf(h.append(0, 0, objects), objects)}
	}
	parts := split(objects, limit)
	var closing []encoded
	if closingData {
		closing, parts = parts[len(parts)-1], parts[:len(parts)-1]
	}
	var list []outgoing
	for i, p := range parts {
		link := uint16(linkMiddle)
		switch {
		case i == 0:
			link = linkFirst
		case i == len(parts)-1:
			link = linkLast
		}
		list = append(list, outgoingOf(h.only(p).append(link, i+1, p), p))
	}
	return append(list, outgoingOf(h.only(closing).append(0, 0, closing), closing))
}

// only is the head with the contexts that part has.
func (h *pollHead) only(part []encoded) *pollHead {
	c := *h
	c.contexts = slices.DeleteFunc(slices.Clone(h.contexts), func(context uint16) bool {
		return !slices.ContainsFunc(part, func(o encoded) bool { return o.context == context })
	})
	return &c
}

func outgoingOf(pdu []byte, part []encoded) outgoing {
	o := outgoing{pdu: pdu}
	for _, e := range part {
		o.numerics = append(o.numerics, e.numerics...)
		if e.wave != 0 {
			o.waves = append(o.waves, e.wave)
		}
	}
	return o
}
