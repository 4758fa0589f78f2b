package intellivue

import (
	"fmt"
	"time"

	"github.com/bedside-gateway/gatewayd/drivers"
)

// connect sends an association request and waits for the answer.
func (m *machine) connect(now time.Time) {
	ext := uint32(extNumerics | extEnumerations)
	if m.opts.waves {
		ext |= extWaves
	}
	m.granted = pollProfile{
		revision: pollRevision1, minPeriod: relativeOf(m.opts.pollPeriod),
		maxReceive: maxMessage, maxSend: maxMessage, bandwidth: 0xFFFFFFFF,
		options: dynamicObjects, extended: true, extOptions: ext,
	} // until the monitor answers, and if its answer is lost
	m.send(now, appendConnect(nil, m.granted))
	m.everAsked = true
	m.host.State(drivers.Associating)
	m.enter(now, requested, connectRetry)
}

// maxMessage is what we propose for the longest message: what a monitor sends
// at most, and no Ethernet frame splits.
const maxMessage = 1456

// session takes a message that makes or ends an association.
func (m *machine) session(now time.Time, s *spdu) (drivers.Frame, error) {
	if m.listenOnly {
		return m.overhear(s), nil
	}
	switch s.kind {
	case spduAccept:
		return m.accept(now, s), nil
	case spduRefuse:
		return m.refuse(now), nil
	case spduFinish:
		m.send(now, releaseResponse)
		if m.phase < accepted {
			return drivers.FrameUnexpected, nil
		}
		m.enter(now, idle, connectRetry)
		return drivers.FrameGood, drivers.ErrDeviceClosed
	case spduDisconnect:
		return m.released(now), nil
	case spduAbort:
		return m.aborted(now), nil
	}
	return drivers.FrameUnexpected, nil
}

// overhear takes what a monitor and its other client say of their association.
func (m *machine) overhear(s *spdu) drivers.Frame {
	switch s.kind {
	case spduAccept:
		m.forget()
	case spduConnect:
		return drivers.FrameUnexpected // of the client, not of a monitor
	}
	return drivers.FrameGood
}

// accept begins an association. An answer to a request that was repeated in the
// meantime counts, and so does one that comes when we had given up.
func (m *machine) accept(now time.Time, s *spdu) drivers.Frame {
	if !m.everAsked {
		return drivers.FrameUnexpected
	}
	if m.phase >= accepted && now.Sub(m.since) < connectRetry {
		return drivers.FrameUnexpected // the answer to the repetition
	}
	f, ok := s.info.pollProfile()
	if s.info.protocol&protocolVersion1 == 0 || !ok {
		m.note("the monitor offers no version of the protocol that is known here")
		m.abort(now)
		m.enter(now, idle, connectSlow)
		return drivers.FrameRefused
	}
	m.forget()
	m.refusals = 0
	m.grant(f)
	m.enter(now, accepted, acceptLimit)
	return drivers.FrameGood
}

// grant reads what the monitor made of our proposal.
func (m *machine) grant(f pollProfile) {
	m.granted = f
	m.note(fmt.Sprintf("associated: poll period %v, messages up to %d bytes", f.minPeriod.duration(), f.maxSend))
	if !f.extended || f.extOptions&(extNumerics|extAverages) == 0 {
		m.note("the monitor does not send values by itself: it is asked for each")
	}
	if f.extOptions&extAverages != 0 {
		m.note("the monitor sends averages and not the values of each second, because another client asked it to")
	}
	if m.opts.waves && f.extOptions&extWaves == 0 {
		m.note("the monitor does not export waves on this interface")
	}
}

func (m *machine) refuse(now time.Time) drivers.Frame {
	if m.phase != requested {
		return drivers.FrameUnexpected
	}
	m.note("the monitor refuses the association: it has another client, or data export is switched off; asking again now and then")
	wait := connectSlow
	if m.refusals++; m.refusals > 6 {
		wait = connectSlows
	}
	m.enter(now, idle, wait)
	return drivers.FrameRefused
}

// released takes the answer to a release request. After the one at the start
// nothing has to be waited for any longer.
func (m *machine) released(now time.Time) drivers.Frame {
	if m.phase >= accepted {
		m.enter(now, idle, connectRetry)
		m.live = false
		m.host.State(drivers.Associating)
		return drivers.FrameUnexpected
	}
	if !m.everAsked {
		m.enter(now, idle, 0)
	}
	return drivers.FrameGood
}

func (m *machine) aborted(now time.Time) drivers.Frame {
	if m.phase == idle {
		return drivers.FrameUnexpected
	}
	m.note("the monitor aborted the association: asking for a new one")
	m.lose(now, connectSlow)
	return drivers.FrameGood
}

// abandon gives up an association that the monitor does not keep.
func (m *machine) abandon(now time.Time) {
	m.abort(now)
	m.lose(now, connectRetry)
}

func (m *machine) lose(now time.Time, wait time.Duration) {
	m.live = false
	m.host.State(drivers.Associating)
	m.enter(now, idle, wait)
}

func (m *machine) abort(now time.Time) { m.send(now, abortRequest) }

// event takes an event of the monitor: that it is there and what it is. It
// repeats it until it has the result, and answers nothing else before.
func (m *machine) event(now time.Time, d *pdu) drivers.Frame {
	e, ok := parseEvent(d.body)
	if !ok {
		return drivers.FrameMalformed
	}
	if e.kind != eventMDSCreate {
		return drivers.FrameUnexpected
	}
	object, list, ok := e.mdsCreate()
	if !ok || object.class != classMDS || e.object.class != classMDS {
		return drivers.FrameMalformed
	}
	if !m.listenOnly {
		m.createResult(now, d, &e)
	}
	number, _ := list.u16(attrAssociation)
	if m.phase == associated && number == m.association {
		return drivers.FrameGood // a repetition
	}
	if m.phase != accepted || m.listenOnly { // of a new association; its accept was lost
		m.forget()
	}
	m.association = number
	m.mds(now, m.see(now, e.time), list)
	m.describe()
	if !m.listenOnly {
		m.enter(now, associated, 0)
		m.plan(now)
	}
	return drivers.FrameGood
}

func (m *machine) createResult(now time.Time, d *pdu, e *event) {
	result := pdu{context: dataContext, kind: roResult, invoke: d.invoke, command: cmdConfirmedEvent}
	m.send(now, result.append(nil, func(b []byte) []byte {
		return e.append(b, func(b []byte) []byte { return b })
	}))
}

// describe notes what the monitor is; nothing of it is a patient's.
func (m *machine) describe() {
	m.note(fmt.Sprintf("monitor %s %s, %s", m.device.Manufacturer, m.device.Model, m.device.ID))
	if m.demo() {
		m.note("the monitor is in demonstration mode: its values are no patient's")
	}
}

// see puts the relative time of a message on the scale of the session.
func (m *machine) see(now time.Time, rel relativeTime) ticks {
	t, restarted := m.clock.see(now, rel)
	if restarted {
		m.note("the monitor was switched off and on")
		for _, k := range m.tasks {
			k.soon(now)
		}
	}
	return t
}
