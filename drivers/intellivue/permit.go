package intellivue

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/bedside-gateway/gatewayd/drivers"
)

// permit judges a message that would go out, by its bytes alone.
func permit(user []byte) error {
	if len(user) > 0 && isSession(user[0]) {
		return permitSession(user)
	}
	d, err := parsePDU(user)
	if err != nil {
		return err
	}
	if d.context != dataContext {
		return errors.New("wrong presentation context")
	}
	switch {
	case d.kind == roResult && d.command == cmdConfirmedEvent:
		return permitCreateResult(&d)
	case d.kind == roInvoke && d.command == cmdConfirmedAction:
		return permitPoll(&d)
	case d.kind == roInvoke && d.command == cmdGet:
		return permitGet(&d)
	case d.kind == roInvoke && d.command == cmdConfirmedSet:
		return permitSet(&d)
	}
	return fmt.Errorf("remote operation %d with command %d is none of the gateway's requests", d.kind, d.command)
}

func permitSession(user []byte) error {
	for _, fixed := range [...][]byte{releaseRequest, releaseResponse, abortRequest} {
		if bytes.Equal(user, fixed) {
			return nil
		}
	}
	s, err := parseSPDU(user)
	if err != nil {
		return err
	}
	if s.kind != spduConnect || !bytes.Equal(s.items, connectItems) || !bytes.Equal(s.header, requestHeader) ||
		!bytes.Equal(s.trailer, associationTrailer) || s.info.system != systemClient {
		return errors.New("a session message that is none of the gateway's")
	}
	if f, ok := s.info.pollProfile(); !ok || f.revision != pollRevision1 {
		return errors.New("an association request without a poll profile")
	}
	return nil
}

// theMDS is the only object that requests go to.
var theMDS = objectID{class: classMDS}

func permitCreateResult(d *pdu) error {
	e, ok := parseEvent(d.body)
	if !ok || e.object.class != classMDS || e.kind != eventMDSCreate || len(e.info) != 0 {
		return errors.New("the result of an event that is not the MDS create event")
	}
	return nil
}

func permitPoll(d *pdu) error {
	a, ok := parseAction(d.body, true)
	if !ok || a.object != theMDS || a.scope != 0 || a.kind != actionPoll && a.kind != actionPollExt {
		return errors.New("an action that is no poll")
	}
	p, ok := parsePollRequest(a.info, a.kind == actionPollExt)
	if !ok || p.partition != partitionOfClasses {
		return errors.New("a poll with wrong lengths")
	}
	switch p.class {
	case classMDS, classNumeric, classWave, classEnumeration, classPatient, classAlarms:
	default:
		return fmt.Errorf("a poll of class %04X", p.class)
	}
	for {
		id, value, more := p.list.next()
		if !more {
			return nil
		}
		if id != attrPollPeriod || len(value) != 4 {
			return fmt.Errorf("a poll with attribute %04X", id)
		}
	}
}

func permitGet(d *pdu) error {
	g, ok := parseGet(d.body)
	if !ok || g.object != theMDS || g.scope != 0 || g.ids.count == 0 {
		return errors.New("a get with wrong lengths or of another object")
	}
	for i := range g.ids.count {
		r := reader{b: g.ids.at(i, 2)}
		if err := permitAttribute("get", r.u16()); err != nil {
			return err
		}
	}
	return nil
}

// permitSet lets the lists pass that say which values are sent, and nothing that
// changes what a monitor does at the bedside.
func permitSet(d *pdu) error {
	s, ok := parseSet(d.body)
	if !ok || s.object != theMDS || s.scope != 0 || s.list.count == 0 {
		return errors.New("a set with wrong lengths or of another object")
	}
	for l := s.list; ; {
		operator, id, value, more := l.modification()
		if !more {
			return nil
		}
		if err := permitAttribute("set", id); err != nil {
			return err
		}
		if _, ok := parseTextIDs(value); !ok || operator != operatorReplace {
			return errors.New("a set of a priority list that is no list of labels")
		}
	}
}

func permitAttribute(verb string, id uint16) error {
	if id != attrWaveList && id != attrNumericList {
		return fmt.Errorf("a %s of attribute %04X, which is no priority list", verb, id)
	}
	return nil
}

// unframe is the user data of exactly one RS-232 frame, as this driver writes
// it: what a receiver would pass over is not let through either.
func unframe(frame []byte) ([]byte, error) {
	var d deframer
	_, user, fate, ok := d.next(frame)
	if !ok || fate != drivers.FrameGood {
		return nil, errors.New("no RS-232 frame with the right check value")
	}
	if !bytes.Equal(appendFrame(nil, user), frame) {
		return nil, errors.New("something before, behind or within the RS-232 frame")
	}
	return user, nil
}

// isConnectIndication recognises what a monitor tells everyone on its LAN.
func isConnectIndication(p []byte) bool {
	i, ok := parseIndication(p)
	return ok && i.event.kind == eventConnection
}

// A connectIndication is an event with a nomenclature before it and no session
// header.
type connectIndication struct {
	nomenclature uint32
	kind, invoke uint16
	command      uint16
	event        event
	list         attributes
}

func parseIndication(p []byte) (c connectIndication, ok bool) {
	r := reader{b: p}
	c.nomenclature, c.kind = r.u32(), r.u16()
	in := reader{b: r.sized()}
	c.invoke, c.command = in.u16(), in.u16()
	body := in.sized()
	if !r.done() || !in.done() || c.kind != roInvoke || c.command != cmdEvent {
		return c, false
	}
	if c.event, ok = parseEvent(body); !ok {
		return c, false
	}
	ir := reader{b: c.event.info}
	l := ir.list()
	if !ir.done() {
		return c, false
	}
	c.list, ok = newAttributes(l)
	return c, ok
}

func (c *connectIndication) append(b []byte) []byte {
	b, all := open(appendU16(appendU32(b, c.nomenclature), c.kind))
	b, in := open(appendU16(appendU16(b, c.invoke), c.command))
	b = c.event.append(b, c.list.append)
	return shut(shut(b, in), all)
}
