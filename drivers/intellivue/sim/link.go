package sim

import (
	"errors"
	"log/slog"
	"math/rand/v2"
	"slices"
	"time"
)

// A linkState is where one interface stands with its client.
type linkState uint8

const (
	linkIdle      linkState = iota
	linkAccepting           // a request came; the accept is not out yet
	linkCreating            // accepted; the MDS create event waits for its result
	linkOpen                // associated
	linkReleasing           // the monitor itself asked for the end
)

// A link is one interface of a monitor with at most one client. It is a pure
// machine: it is told the time and what arrived, and asked what to send.
type link struct {
	m        *Monitor
	rng      *rand.Rand
	state    linkState
	boots    int // m's when this link looked last
	released int

	granted  proposal
	acceptAt time.Time
	eventAt  time.Time // when the create event is repeated
	heard    time.Time
	nextTick time.Time

	held    [][]byte // requests before the result of the create event
	polls   []*poll  // extended
	singles []*poll
	out     []outgoing
}

// mostHeld bounds what a client can make a monitor keep.
const (
	mostHeld  = 16
	mostPolls = 32
)

func newLink(m *Monitor) *link {
	m.mu.Lock()
	defer m.mu.Unlock()
	return &link{m: m, boots: m.boots, released: m.release, rng: rand.New(rand.NewPCG(m.rng.Uint64(), 1))}
}

// idle reports whether the interface is free for another client.
func (l *link) idle() bool {
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	return l.state == linkIdle && len(l.out) == 0
}

// receive takes one PDU.
func (l *link) receive(now time.Time, pdu []byte) {
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	l.step(now)
	if now.Before(l.m.quiet) || len(pdu) == 0 {
		return
	}
	switch pdu[0] {
	case spduConnect:
		l.connect(now, pdu)
	case spduFinish:
		l.finish(now)
	case spduDisconnect:
		if l.state == linkReleasing {
			l.close()
		}
	case spduAbort:
		l.close()
	case spduData:
		l.heard = now
		l.data(now, pdu)
	default:
		l.m.counts.BadRequests++
	}
}

// advance does what is due and returns when it wants to be called again.
func (l *link) advance(now time.Time) time.Time {
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	l.step(now)
	wake := l.nextTick
	for _, o := range l.out {
		if o.due.Before(wake) {
			wake = o.due
		}
	}
	if l.state == linkAccepting && l.acceptAt.Before(wake) {
		wake = l.acceptAt
	}
	return wake
}

// take hands over what is to be sent now.
func (l *link) take(now time.Time) []outgoing {
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	slices.SortStableFunc(l.out, func(a, b outgoing) int { return a.due.Compare(b.due) })
	n := 0
	for n < len(l.out) && !l.out[n].due.After(now) {
		n++
	}
	due := slices.Clone(l.out[:n])
	l.out = slices.Delete(l.out, 0, n)
	return due
}

// note counts what became of a PDU.
func (l *link) note(o outgoing, f fate) {
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	c := &l.m.counts
	switch f {
	case fateDamaged:
		c.Damaged++
	case fateLost:
		c.Lost++
	case fateSent:
		c.sent(o)
	}
}

// told hands the values of a PDU that was sent to the one who counts.
func (l *link) told(o outgoing) {
	o.tell(l.m.o.OnNumeric)
}

// badFrames counts what the deframer threw away.
func (l *link) badFrames(n int) {
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	l.m.counts.BadFrames += uint64(n)
}

// close forgets the association.
func (l *link) close() {
	l.state, l.polls, l.singles, l.held, l.out = linkIdle, nil, nil, nil, nil
}

// send queues a PDU.
func (l *link) send(due time.Time, pdu []byte) {
	l.out = append(l.out, outgoing{due: due.Add(l.m.o.Slow), pdu: pdu})
}

// soon is when an answer is out that waits for no tick.
func (l *link) soon(now time.Time) time.Time { return now.Add(l.m.o.Latency) }

// step does what the clock demands.
func (l *link) step(now time.Time) {
	m := l.m
	if l.boots != m.boots {
		l.close()
		l.boots, l.nextTick = m.boots, time.Time{}
	}
	if l.nextTick.IsZero() {
		l.nextTick = m.tickAfter(now)
	}
	if l.released != m.release {
		l.released = m.release
		l.beginRelease(now)
	}
	if l.state == linkAccepting && !now.Before(l.acceptAt) {
		l.accept(l.acceptAt)
	}
	if l.state == linkCreating && !now.Before(l.eventAt) {
		l.sendEvent(now)
	}
	if l.state != linkIdle && l.state != linkAccepting && now.Sub(l.heard) >= l.timeout() {
		m.counts.Timeouts++
		m.o.Log.Info("association timed out: the client is silent")
		l.close()
		l.send(now, abortPDU)
	}
	if late := now.Sub(l.nextTick); late > 16*m.o.Tick {
		l.nextTick = m.tickAfter(now.Add(-m.o.Tick))
	}
	for ; !l.nextTick.After(now); l.nextTick = l.nextTick.Add(m.o.Tick) {
		l.tick(l.nextTick)
	}
}

// tickAfter is the first tick of the monitor after t.
func (m *Monitor) tickAfter(t time.Time) time.Time {
	since := t.Sub(m.booted)
	if since < 0 {
		return m.booted.Add(m.o.Tick)
	}
	return m.booted.Add((since/m.o.Tick + 1) * m.o.Tick)
}

// timeout is for how long the client may be silent.
func (l *link) timeout() time.Duration {
	if t := l.m.o.AssociationTimeout; t > 0 {
		return t
	}
	return l.granted.timeout()
}

// timeout is for how long a client with this poll period may be silent.
func (p proposal) timeout() time.Duration {
	period := time.Duration(p.period) * relativeUnit
	switch {
	case period <= 3300*time.Millisecond:
		return 10 * time.Second
	case period <= 43*time.Second:
		return 3 * period
	}
	return 130 * time.Second
}

// connect judges an association request. While one association stands,
// another is refused, whoever asks.
func (l *link) connect(now time.Time, pdu []byte) {
	m := l.m
	asked, err := parseConnect(pdu)
	switch {
	case err != nil:
		m.counts.BadRequests++
		m.o.Log.Info("association request not understood", slog.Any("error", err))
	case l.state == linkAccepting, l.state == linkCreating:
		// The client repeats itself until the accept is there, and may cross it.
	case m.refuse, m.busy > 0, l.state != linkIdle:
		m.busy = max(m.busy-1, 0)
		m.counts.Refusals++
		m.o.Log.Info("association refused")
		l.send(l.soon(now), refusePDU())
	default:
		m.counts.Requests++
		l.granted = m.grant(asked)
		l.state, l.acceptAt = linkAccepting, now.Add(l.acceptDelay())
	}
}

func (l *link) acceptDelay() time.Duration {
	if d := l.m.o.AcceptDelay; d > 0 {
		return d
	}
	return 1100*time.Millisecond + time.Duration(l.rng.Int64N(int64(1100*time.Millisecond)))
}

// grant is what the client gets of what it asked for.
func (m *Monitor) grant(asked proposal) proposal {
	g := asked
	g.period = max(asked.period, m.o.MinPeriod)
	g.pollExt &= m.o.PollOptions
	// What the client takes bounds what the monitor sends, and the other way round.
	g.mtuTx = min(max(asked.mtuRx, minTransferUnit), uint32(m.o.MTU))
	g.mtuRx = min(max(asked.mtuTx, minTransferUnit), uint32(m.o.MTU))
	return g
}

func (l *link) accept(now time.Time) {
	l.m.assoc++
	l.m.counts.Associations++
	l.m.o.Log.Info("associated", slog.Int("association", int(l.m.assoc)))
	l.state, l.heard = linkCreating, now
	l.send(now, acceptPDU(l.granted))
	l.sendEvent(now)
}

func (l *link) sendEvent(now time.Time) {
	l.eventAt = now.Add(l.m.o.EventRetry)
	l.send(now, l.m.createEvent(now))
}

// finish answers a release request. Without an association there is no answer.
func (l *link) finish(now time.Time) {
	if l.state == linkIdle {
		return
	}
	l.close()
	l.m.o.Log.Info("released by the client")
	l.send(l.soon(now), disconnectPDU)
}

func (l *link) beginRelease(now time.Time) {
	if l.state != linkOpen {
		return
	}
	l.close()
	l.state = linkReleasing
	l.send(now, finishPDU)
}

// data takes a data-export PDU. Before the result of the create event nothing
// is answered; what is asked until then waits.
func (l *link) data(now time.Time, pdu []byte) {
	if l.state != linkCreating && l.state != linkOpen {
		return
	}
	r, err := parseRequest(pdu)
	switch {
	case err == nil && r.op == opResult:
		l.eventResult(now, r)
	case l.state == linkCreating:
		if len(l.held) < mostHeld {
			l.held = append(l.held, slices.Clone(pdu))
		}
	case err != nil:
		l.refuse(now, err)
	default:
		l.m.counts.Requests++
		l.request(now, r)
	}
}

func (l *link) eventResult(now time.Time, r request) {
	if l.state != linkCreating || r.event != eventCreate || r.invoke != l.m.o.CreateInvoke {
		return
	}
	held := l.held
	l.state, l.held = linkOpen, nil
	for _, pdu := range held {
		l.data(now, pdu)
	}
}

// refuse answers a request that cannot be done, or counts one that has no answer.
func (l *link) refuse(now time.Time, err error) {
	var e *requestError
	if !errors.As(err, &e) {
		l.m.counts.BadRequests++
		return
	}
	l.m.counts.Errors++
	l.m.o.Log.Info("request refused", slog.Any("error", err))
	l.send(l.soon(now), dataExport(nil, opError, func(b []byte) []byte {
		return operation(b, e.invoke, e.code, func(b []byte) []byte { return append(b, e.list...) })
	}))
}

func (l *link) request(now time.Time, r request) {
	var err error
	switch r.command {
	case cmdGet:
		err = l.get(now, r)
	case cmdSet, cmdConfirmedSet:
		err = l.set(now, r)
	default:
		err = l.poll(now, r)
	}
	if err != nil {
		l.refuse(now, err)
	}
}

func (l *link) poll(now time.Time, r request) error {
	p := r.poll
	switch {
	case !known(p.class):
		return &requestError{invoke: r.invoke, code: errNoClass, reason: "poll of a class that the monitor has not"}
	case p.extended && !l.granted.extended:
		return &requestError{invoke: r.invoke, code: errNoAction, reason: "extended poll, which was not negotiated"}
	case len(l.polls)+len(l.singles) >= mostPolls:
		return &requestError{invoke: r.invoke, code: errAccessDenied, reason: "too many polls at once"}
	case !p.extended:
		l.singles = append(l.singles, &p)
		return nil
	}
	// Recorded: results come until the first tick past the lifetime.
	p.expires = now.Add(r.life + l.m.o.Tick)
	l.polls = slices.DeleteFunc(l.polls, func(q *poll) bool { return q.class == p.class && q.group == p.group })
	l.polls = append(l.polls, &p)
	slices.SortStableFunc(l.polls, func(a, b *poll) int {
		return slices.Index(classOrder, a.class) - slices.Index(classOrder, b.class)
	})
	return nil
}

// tick answers the polls.
func (l *link) tick(t time.Time) {
	if l.state != linkOpen || t.Before(l.m.quiet) {
		return
	}
	l.m.advance(t)
	for _, p := range l.singles {
		l.answer(p, t)
	}
	l.singles = nil
	l.polls = slices.DeleteFunc(l.polls, func(p *poll) bool { return t.After(p.expires) })
	for _, p := range l.polls {
		l.answer(p, t)
	}
}

func (l *link) answer(p *poll, t time.Time) {
	m := l.m
	for _, r := range m.results(p, t, l.granted) {
		h := pollHead{invoke: p.invoke, number: p.number, sequence: p.sequence, extended: p.extended,
			relative: r.relative, class: p.class, group: p.group, contexts: contexts(p.class)}
		if m.o.TimedResults {
			h.absolute = m.clock(t)
		}
		for _, o := range h.messages(encode(r.objects), int(l.granted.mtuTx), m.o.Part, m.o.ClosingData) {
			o.due = t.Add(m.o.Slow)
			l.out = append(l.out, o)
		}
		p.sequence++
		p.sent = true
	}
}

// get answers what the priority lists are.
func (l *link) get(now time.Time, r request) error {
	m := l.m
	var list []attribute
	for _, id := range r.ids {
		labels, ok := m.priorityList(id)
		if !ok {
			return listError(r.invoke, errGetList, id)
		}
		list = append(list, attribute{id: id, value: appendLabels(nil, labels)})
	}
	l.send(l.soon(now), listAnswer(r.invoke, cmdGet, list))
	return nil
}

// priorityList is the value of F239 or F23A. As long as no client set the
// waves it has all that there are, as recorded.
func (m *Monitor) priorityList(id uint16) ([]uint32, bool) {
	switch {
	case id == attrNumericList:
		return m.numericList, true
	case id != attrWaveList:
		return nil, false
	case m.waveListSet:
		return m.waveList, true
	}
	var all []uint32
	for _, w := range waveObjects(m.o.ART) {
		all = append(all, w.label)
	}
	return all, true
}

// set changes a priority list and, if the set was confirmed, answers with
// what the list now is: it can be shorter than what was asked for.
func (l *link) set(now time.Time, r request) error {
	m := l.m
	switch {
	case r.list == attrWaveList && m.o.WavesTaken:
		if r.command == cmdSet {
			return nil
		}
		return &requestError{invoke: r.invoke, code: errAccessDenied, reason: "another client owns the waves"}
	case r.list == attrWaveList:
		m.setWaves(r.labels)
	case r.list == attrNumericList:
		m.numericList = slices.Clone(r.labels)
	default:
		return listError(r.invoke, errSetList, r.list)
	}
	if r.command == cmdConfirmedSet {
		labels, _ := m.priorityList(r.list)
		l.send(l.soon(now), listAnswer(r.invoke, cmdConfirmedSet, []attribute{{id: r.list, value: appendLabels(nil, labels)}}))
	}
	return nil
}

func appendLabels(b []byte, labels []uint32) []byte {
	return counted(b, len(labels), func(b []byte) []byte {
		for _, label := range labels {
			b = u32(b, label)
		}
		return b
	})
}

func listAnswer(invoke, command uint16, list []attribute) []byte {
	return dataExport(nil, opResult, func(b []byte) []byte {
		return operation(b, invoke, command, func(b []byte) []byte { return appendAttributes(managedMDS(b), list) })
	})
}

// listError says which attribute of a get or set there is not.
func listError(invoke, code, id uint16) error {
	list := counted(managedMDS(nil), 1, func(b []byte) []byte {
		b = u16(b, statusNoAttr)
		if code == errSetList {
			b = u16(b, 0) // modify operator: replace
		}
		return u16(b, id)
	})
	return &requestError{invoke: invoke, code: code, list: list, reason: "no such attribute to get or set"}
}
