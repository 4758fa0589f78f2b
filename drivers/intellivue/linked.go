package intellivue

import (
	"time"

	"github.com/bedside-gateway/gatewayd/drivers"
)

// An answer that does not fit into one message comes as linked results: a
// first, more, a last, and then a plain result of the same invocation, which
// may be empty. It is whole only then. Other answers may come in between.

// maxLinked bounds what one answer may hold: more than the objects that we say
// we take.
const (
	maxLinked      = 64 << 10
	maxLinkedParts = 32
)

// A linkedSet collects the parts of one answer.
type linkedSet struct {
	open   bool
	broken bool // a part is missing
	last   bool // the last part is there
	invoke uint16
	kind   uint16 // of the action
	count  uint8
	since  time.Time
	buf    []byte
	ends   []int
}

func (s *linkedSet) drop() {
	s.open, s.buf, s.ends = false, s.buf[:0], s.ends[:0]
}

// part adds a linked result. It is false where the part does not fit what came
// before: then the whole answer is worth nothing.
func (s *linkedSet) part(d *pdu, info []byte) bool {
	s.count++
	if s.broken || s.last || d.linkCount != s.count || (d.linkState == linkFirst) != (s.count == 1) ||
		d.linkState == 0 || d.linkState > linkLast || !s.add(info) {
		s.broken = true
		return false
	}
	s.last = d.linkState == linkLast
	return true
}

func (s *linkedSet) add(info []byte) bool {
	if len(s.buf)+len(info) > maxLinked || len(s.ends) == maxLinkedParts {
		return false
	}
	s.buf = append(s.buf, info...)
	s.ends = append(s.ends, len(s.buf))
	return true
}

// each calls f with each part.
func (s *linkedSet) each(f func(info []byte)) {
	start := 0
	for _, end := range s.ends {
		f(s.buf[start:end])
		start = end
	}
}

// linkedSetOf finds the open set of an invocation.
func (m *machine) linkedSetOf(invoke, kind uint16) *linkedSet {
	for i := range m.sets {
		if s := &m.sets[i]; s.open && s.invoke == invoke && s.kind == kind {
			return s
		}
	}
	return nil
}

// openSet begins a set. One of the same invocation that was not finished is
// dropped, and so is the oldest where there are too many at a time.
func (m *machine) openSet(now time.Time, invoke, kind uint16) *linkedSet {
	s := m.linkedSetOf(invoke, kind)
	for i := range m.sets {
		if s != nil {
			break
		}
		if !m.sets[i].open {
			s = &m.sets[i]
		}
	}
	if s == nil {
		s = &m.sets[0]
		for i := range m.sets {
			if m.sets[i].since.Before(s.since) {
				s = &m.sets[i]
			}
		}
	}
	if s.open {
		m.host.Count(drivers.FrameUnexpected)
	}
	*s = linkedSet{open: true, invoke: invoke, kind: kind, since: now, buf: s.buf[:0], ends: s.ends[:0]}
	return s
}

// pollAnswer takes a poll result or a part of one.
func (m *machine) pollAnswer(now time.Time, d *pdu) drivers.Frame {
	a, ok := parseAction(d.body, false)
	if !ok || a.kind != actionPoll && a.kind != actionPollExt {
		return drivers.FrameMalformed
	}
	p, ok := parsePollResult(a.info, a.kind == actionPollExt)
	if !ok {
		return drivers.FrameMalformed
	}
	t := m.taskOf(d.invoke, p.class, a.kind)
	if t == nil && !m.listenOnly && m.known(p.class) {
		return drivers.FrameUnexpected // another client's, or of a poll that is no more
	}
	if t != nil && d.invoke != t.invoke && t.running {
		return drivers.FrameGood // the poll before the renewal goes on for a while
	}
	if d.kind == roLinked {
		return m.linked(now, d, a.kind, a.info)
	}
	return m.whole(now, d, a.kind, t, &p)
}

func (m *machine) linked(now time.Time, d *pdu, kind uint16, info []byte) drivers.Frame {
	s := m.linkedSetOf(d.invoke, kind)
	if s == nil || d.linkState == linkFirst {
		s = m.openSet(now, d.invoke, kind)
	}
	if !s.part(d, info) {
		return drivers.FrameUnexpected
	}
	return drivers.FrameGood
}

// whole takes a plain result, which completes the parts before it.
func (m *machine) whole(now time.Time, d *pdu, kind uint16, t *task, p *pollResult) drivers.Frame {
	m.parts = m.parts[:0]
	if s := m.linkedSetOf(d.invoke, kind); s != nil {
		defer s.drop()
		if s.broken || !s.last {
			return drivers.FrameUnexpected
		}
		s.each(func(info []byte) {
			part, _ := parsePollResult(info, kind == actionPollExt) // checked when it came
			m.parts = append(m.parts, part)
		})
	}
	m.parts = append(m.parts, *p)
	if t != nil && d.invoke == t.invoke {
		m.answered(now, t)
	}
	return m.results(now)
}
