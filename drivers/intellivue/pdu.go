package intellivue

import "errors"

// A data-export message is a presentation header and a remote operation
// (ISO 9072-2) with a command of the common management information protocol
// (ISO 9596-1) in it.
const (
	dataSession = 0xE100 // not a session PDU, so that the two can be told apart
	dataContext = 2      // the presentation context that the association request proposes

	roInvoke = 1 // ROIV
	roResult = 2 // RORS
	roError  = 3 // ROER
	roLinked = 5 // ROLRS

	linkFirst = 1
	linkLast  = 3

	cmdEvent           = 0
	cmdConfirmedEvent  = 1
	cmdGet             = 3
	cmdSet             = 4
	cmdConfirmedSet    = 5
	cmdConfirmedAction = 7
)

// The classes, groups, attributes, events and actions that the driver speaks of
// by number; the tables of the maker's name the others.
const (
	partitionOfClasses = 1

	classEnumeration = 0x0005
	classNumeric     = 0x0006
	classWave        = 0x0009
	classMDS         = 0x0021
	classPatient     = 0x002A
	classAlarms      = 0x0036

	groupAll     = 0x0000
	groupAlarms  = 0x0801
	groupValues  = 0x0803
	groupPatient = 0x0807

	eventMDSCreate  = 0x0D06
	eventConnection = 0x0D17
	actionPoll      = 0x0C16
	actionPollExt   = 0xF13B
)

// A pdu is a data-export message. Its body is only borrowed.
type pdu struct {
	context   uint16
	kind      uint16
	linkState uint8 // of a linked result
	linkCount uint8
	invoke    uint16
	command   uint16 // of an error: its number
	body      []byte
}

var errPDU = errors.New("data message with wrong lengths")

// parsePDU reads a data-export message that fills p.
func parsePDU(p []byte) (d pdu, err error) {
	r := reader{b: p}
	if r.u16() != dataSession {
		return d, errPDU
	}
	d.context, d.kind = r.u16(), r.u16()
	in := reader{b: r.sized()}
	if d.kind == roLinked {
		d.linkState, d.linkCount = in.u8(), in.u8()
	}
	d.invoke, d.command = in.u16(), in.u16()
	d.body = in.sized()
	if !r.done() || !in.done() {
		return d, errPDU
	}
	switch d.kind {
	case roInvoke, roResult, roError, roLinked:
		return d, nil
	}
	return d, errors.New("data message of unknown kind")
}

// append writes the message around what body appends.
func (d *pdu) append(b []byte, body func([]byte) []byte) []byte {
	b = appendU16(appendU16(appendU16(b, dataSession), d.context), d.kind)
	b, all := open(b)
	if d.kind == roLinked {
		b = append(b, d.linkState, d.linkCount)
	}
	b, in := open(appendU16(appendU16(b, d.invoke), d.command))
	return shut(shut(body(b), in), all)
}

// An objectID names an object: class, context and handle.
type objectID struct{ class, context, handle uint16 }

func readObjectID(r *reader) objectID { return objectID{r.u16(), r.u16(), r.u16()} }

func (o objectID) append(b []byte) []byte {
	return appendU16(appendU16(appendU16(b, o.class), o.context), o.handle)
}

// An event is an event report or, without attributes, its result.
type event struct {
	object objectID
	time   relativeTime
	kind   uint16
	info   []byte
}

func parseEvent(body []byte) (e event, ok bool) {
	r := reader{b: body}
	e.object, e.time, e.kind = readObjectID(&r), relativeTime(r.u32()), r.u16()
	e.info = r.sized()
	return e, r.done()
}

func (e *event) append(b []byte, info func([]byte) []byte) []byte {
	b, at := open(appendU16(appendU32(e.object.append(b), uint32(e.time)), e.kind))
	return shut(info(b), at)
}

// mdsCreate reads what a monitor says of itself when an association begins:
// the object again, and its attributes.
func (e *event) mdsCreate() (o objectID, a attributes, ok bool) {
	r := reader{b: e.info}
	o = readObjectID(&r)
	l := r.list()
	if !r.done() {
		return o, a, false
	}
	a, ok = newAttributes(l)
	return o, a, ok
}

// An action is a confirmed action: a poll request, or with scope left out its
// result.
type action struct {
	object objectID
	scope  uint32 // of a request
	kind   uint16
	info   []byte
}

func parseAction(body []byte, request bool) (a action, ok bool) {
	r := reader{b: body}
	a.object = readObjectID(&r)
	if request {
		a.scope = r.u32()
	}
	a.kind, a.info = r.u16(), r.sized()
	return a, r.done()
}

func (a *action) append(b []byte, request bool, info func([]byte) []byte) []byte {
	b = a.object.append(b)
	if request {
		b = appendU32(b, a.scope)
	}
	b, at := open(appendU16(b, a.kind))
	return shut(info(b), at)
}

// A getRequest asks for attributes of an object.
type getRequest struct {
	object objectID
	scope  uint32
	ids    list // two bytes each
}

func parseGet(body []byte) (g getRequest, ok bool) {
	r := reader{b: body}
	g.object, g.scope, g.ids = readObjectID(&r), r.u32(), r.list()
	return g, r.done() && g.ids.fixed(2)
}

func (g *getRequest) append(b []byte) []byte {
	b = appendU32(g.object.append(b), g.scope)
	b = appendU16(b, uint16(g.ids.count))
	b, at := open(b)
	return shut(append(b, g.ids.b...), at)
}

// An attributeResult answers a get or a set.
type attributeResult struct {
	object objectID
	list   attributes
}

func parseAttributeResult(body []byte) (g attributeResult, ok bool) {
	r := reader{b: body}
	g.object = readObjectID(&r)
	l := r.list()
	if !r.done() {
		return g, false
	}
	g.list, ok = newAttributes(l)
	return g, ok
}

func (g *attributeResult) append(b []byte) []byte { return g.list.append(g.object.append(b)) }

// A setRequest changes attributes: a list of operators with an attribute each.
type setRequest struct {
	object objectID
	scope  uint32
	list   list
}

const operatorReplace = 0

func parseSet(body []byte) (s setRequest, ok bool) {
	r := reader{b: body}
	s.object, s.scope, s.list = readObjectID(&r), r.u32(), r.list()
	n := 0
	for in := (reader{b: s.list.b}); len(in.b) > 0; n++ {
		in.u16()
		in.u16()
		in.sized()
		if in.bad {
			return s, false
		}
	}
	return s, r.done() && n == s.list.count
}

// modification reads the next operator and attribute.
func (l *list) modification() (operator, id uint16, value []byte, ok bool) {
	if len(l.b) == 0 {
		return 0, 0, nil, false
	}
	r := reader{b: l.b}
	operator, id, value = r.u16(), r.u16(), r.sized()
	l.b = r.b
	return operator, id, value, !r.bad
}

func (s *setRequest) append(b []byte) []byte {
	b = appendU32(s.object.append(b), s.scope)
	b, at := open(appendU16(b, uint16(s.list.count)))
	for l := s.list; ; {
		operator, id, value, ok := l.modification()
		if !ok {
			return shut(b, at)
		}
		b = appendAttribute(appendU16(b, operator), id, value)
	}
}

// The numbers of errors, and of errors with single attributes.
const (
	errNoSuchClass    = 0
	errNoSuchInstance = 1
	errAccessDenied   = 2
	errGetList        = 7
	errSetList        = 8
	errNoSuchAction   = 9

	statusAccessDenied    = 2
	statusNoSuchAttribute = 5
	statusInvalidValue    = 6
)

// errorText is what an operator reads of an error.
func errorText(n uint16) string {
	switch n {
	case errNoSuchClass:
		return "it has no such objects"
	case errNoSuchInstance:
		return "it has no such object"
	case errAccessDenied:
		return "access denied (data export is switched off, or another client has it)"
	case errGetList, errSetList:
		return "it lacks the attribute or does not let it be changed"
	case errNoSuchAction:
		return "it does not know this kind of poll"
	case 10:
		return "it failed to process it"
	case 15:
		return "invalid argument"
	case 16:
		return "invalid scope"
	case 17:
		return "invalid object"
	}
	return "unknown error"
}

// A listError is the detail of a get or set list error.
type listError struct {
	object objectID
	list   list // get: status, attribute; set: status, operator, attribute
	size   int
}

func parseListError(number uint16, body []byte) (e listError, ok bool) {
	r := reader{b: body}
	e.object, e.list, e.size = readObjectID(&r), r.list(), 4
	if number == errSetList {
		e.size = 6
	}
	return e, r.done() && e.list.fixed(e.size)
}

// at is the status and the attribute of entry i.
func (e *listError) at(i int) (status, attribute uint16) {
	r := reader{b: e.list.at(i, e.size)}
	status = r.u16()
	if e.size == 6 {
		r.u16()
	}
	return status, r.u16()
}
