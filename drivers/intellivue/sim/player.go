package sim

import (
	"errors"
	"log/slog"
	"slices"
	"time"
)

// A player is one interface of a Replay.
type player struct {
	r        *Replay
	state    linkState
	acceptAt time.Time
	heard    time.Time
	next     int       // of the track
	began    time.Time // of the recording; zero until the first poll
	polls    []*poll
	singles  []*poll // that wait for a take of the track
	used     map[uint16]int
	held     [][]byte
	out      []outgoing
	relative uint32 // of what was played last
}

// idleWake is how often a player that has nothing to do looks at the clock.
const idleWake = time.Second

func (p *player) idle() bool { return p.state == linkIdle && len(p.out) == 0 }

func (p *player) badFrames(n int) {
	p.r.mu.Lock()
	defer p.r.mu.Unlock()
	p.r.counts.BadFrames += uint64(n)
}

func (p *player) note(o outgoing, f fate) {
	p.r.mu.Lock()
	defer p.r.mu.Unlock()
	c := &p.r.counts
	if f != fateSent {
		c.Lost++
		return
	}
	c.sent(o)
}

func (p *player) told(o outgoing) {
	o.tell(p.r.o.OnNumeric)
}

func (p *player) count(f func(*Counts)) {
	p.r.mu.Lock()
	defer p.r.mu.Unlock()
	f(&p.r.counts)
}

func (p *player) close() {
	*p = player{r: p.r}
}

func (p *player) send(due time.Time, pdu []byte) { p.out = append(p.out, outgoing{due: due, pdu: pdu}) }

func (p *player) soon(now time.Time) time.Time { return now.Add(p.r.o.Latency) }

func (p *player) receive(now time.Time, pdu []byte) {
	if len(pdu) == 0 {
		return
	}
	switch pdu[0] {
	case spduConnect:
		p.connect(now, pdu)
	case spduFinish:
		if p.state != linkIdle {
			p.close()
			p.send(p.soon(now), disconnectPDU)
		}
	case spduAbort, spduDisconnect:
		p.close()
	case spduData:
		p.heard = now
		p.data(now, pdu)
	}
}

func (p *player) connect(now time.Time, pdu []byte) {
	switch _, err := parseConnect(pdu); {
	case err != nil:
		p.count(func(c *Counts) { c.BadRequests++ })
	case p.state == linkAccepting, p.state == linkCreating: // repeated until the accept is there
	case p.state != linkIdle:
		p.count(func(c *Counts) { c.Refusals++ })
		p.send(p.soon(now), refusePDU())
	default:
		p.state, p.acceptAt = linkAccepting, now.Add(p.r.o.AcceptDelay)
	}
}

func (p *player) advance(now time.Time) time.Time {
	if p.state == linkAccepting && !now.Before(p.acceptAt) {
		p.count(func(c *Counts) { c.Associations++ })
		p.r.o.Log.Info("associated with a recording")
		p.state, p.heard = linkCreating, now
		p.send(now, p.r.accept)
		p.send(now, p.r.create)
	}
	if p.state > linkAccepting && now.Sub(p.heard) >= p.r.granted.timeout() {
		p.count(func(c *Counts) { c.Timeouts++ })
		p.close()
		p.send(now, abortPDU)
	}
	p.play(now)
	return p.wake(now)
}

func (p *player) wake(now time.Time) time.Time {
	wake := now.Add(idleWake)
	sooner := func(t time.Time) {
		if t.Before(wake) {
			wake = t
		}
	}
	for _, o := range p.out {
		sooner(o.due)
	}
	if p.state == linkAccepting {
		sooner(p.acceptAt)
	}
	if !p.began.IsZero() && p.next < len(p.r.track) {
		sooner(p.due(p.next))
	}
	return wake
}

func (p *player) due(i int) time.Time {
	return p.began.Add(time.Duration(float64(p.r.track[i].at) / p.r.o.Speed))
}

func (p *player) take(now time.Time) []outgoing {
	slices.SortStableFunc(p.out, func(a, b outgoing) int { return a.due.Compare(b.due) })
	n := 0
	for n < len(p.out) && !p.out[n].due.After(now) {
		n++
	}
	due := slices.Clone(p.out[:n])
	p.out = slices.Delete(p.out, 0, n)
	return due
}

func (p *player) data(now time.Time, pdu []byte) {
	if p.state != linkCreating && p.state != linkOpen {
		return
	}
	r, err := parseRequest(pdu)
	switch {
	case err == nil && r.op == opResult:
		p.created(now, r)
	case p.state == linkCreating:
		if len(p.held) < mostHeld {
			p.held = append(p.held, slices.Clone(pdu))
		}
	case err != nil:
		p.refuse(now, err)
	default:
		p.count(func(c *Counts) { c.Requests++ })
		p.request(now, r)
	}
}

func (p *player) created(now time.Time, r request) {
	if p.state != linkCreating || r.event != eventCreate || r.invoke != p.r.invoke {
		return
	}
	held := p.held
	p.state, p.held, p.used = linkOpen, nil, map[uint16]int{}
	for _, pdu := range held {
		p.data(now, pdu)
	}
}

func (p *player) refuse(now time.Time, err error) {
	var e *requestError
	if !errors.As(err, &e) {
		p.count(func(c *Counts) { c.BadRequests++ })
		return
	}
	p.count(func(c *Counts) { c.Errors++ })
	p.r.o.Log.Info("request refused", slog.Any("error", err))
	p.send(p.soon(now), dataExport(nil, opError, func(b []byte) []byte {
		return operation(b, e.invoke, e.code, func(b []byte) []byte { return append(b, e.list...) })
	}))
}

func (p *player) request(now time.Time, r request) {
	switch r.command {
	case cmdGet:
		p.get(now, r)
	case cmdSet:
	case cmdConfirmedSet:
		p.send(p.soon(now), listAnswer(r.invoke, cmdConfirmedSet, []attribute{{id: r.list, value: slices.Clone(r.value)}}))
	default:
		p.poll(now, r)
	}
}

func (p *player) get(now time.Time, r request) {
	var list []attribute
	for _, id := range r.ids {
		v, ok := p.r.lists[id]
		if !ok && (id == attrWaveList || id == attrNumericList) {
			v, ok = appendLabels(nil, nil), true
		}
		if !ok {
			p.refuse(now, listError(r.invoke, errGetList, id))
			return
		}
		list = append(list, attribute{id: id, value: v})
	}
	p.send(p.soon(now), listAnswer(r.invoke, cmdGet, list))
}

// poll begins to play at the first poll for values: those of the device
// itself, which are asked for beforehand, do not count.
func (p *player) poll(now time.Time, r request) {
	q := r.poll
	switch {
	case !known(q.class):
		p.refuse(now, &requestError{invoke: r.invoke, code: errNoClass, reason: "poll of a class that the recording has not"})
		return
	case len(p.polls)+len(p.singles) >= mostPolls:
		p.refuse(now, &requestError{invoke: r.invoke, code: errAccessDenied, reason: "too many polls at once"})
		return
	case q.extended:
		q.expires = now.Add(r.life + relativePerTick*relativeUnit)
		p.polls = slices.DeleteFunc(p.polls, func(o *poll) bool { return o.class == q.class && o.group == q.group })
		p.polls = append(p.polls, &q)
	case len(p.r.singles[q.class]) > 0:
		p.answer(p.soon(now), &q, p.single(q))
	case p.next < len(p.r.track) && p.r.plays(q.class, p.next):
		p.singles = append(p.singles, &q)
	default:
		p.answer(p.soon(now), &q, p.nothing(q))
	}
	if p.began.IsZero() && q.class != classMDS && q.class != classPatient {
		p.began = now.Add(p.r.o.LeadIn)
	}
}

// plays reports whether the track has a result of a class from i on.
func (r *Replay) plays(class uint16, i int) bool {
	return slices.ContainsFunc(r.track[i:], func(t take) bool { return t.parts[0].class == class })
}

// single is the next recorded result of a single poll of q's class, of its
// group if there is one; the last again and again.
func (p *player) single(q poll) take {
	all := p.r.singles[q.class]
	list := slices.DeleteFunc(slices.Clone(all), func(t take) bool { return t.parts[0].group != q.group })
	if len(list) == 0 {
		list = all
	}
	i := min(p.used[q.class], len(list)-1)
	p.used[q.class]++
	return list[i]
}

// nothing is the answer to a poll that the recording has no result for.
func (p *player) nothing(q poll) take {
	head := append(appendBCD(nil, time.Time{}), 0, 1)
	return take{parts: []reply{{op: opResult, class: q.class, relative: p.relative, head: head, list: make([]byte, 4)}}}
}

// answer gives a take to a poll.
func (p *player) answer(due time.Time, q *poll, t take) {
	for i := range t.parts {
		part := &t.parts[i]
		p.out = append(p.out, outgoing{due: due, pdu: part.encode(q), numerics: part.numerics, waves: part.waves})
	}
	p.relative = t.parts[0].relative
	q.sequence++
}

// play gives out the takes whose time has come.
func (p *player) play(now time.Time) {
	if p.state != linkOpen || p.began.IsZero() {
		return
	}
	for p.next < len(p.r.track) && !p.due(p.next).After(now) {
		t := p.r.track[p.next]
		due := p.due(p.next)
		p.next++
		p.polls = slices.DeleteFunc(p.polls, func(q *poll) bool { return now.After(q.expires) })
		if q := p.wants(t.parts[0]); q != nil {
			p.answer(due, q, t)
		}
	}
	if p.next == len(p.r.track) {
		p.end(now)
	}
}

// wants finds the poll for a recorded result: a single one for its group that
// waits, else the extended one for its group, else any for its class. So each
// result is sent once, and a client that first asks what the numbers mean gets
// a result with that.
func (p *player) wants(part reply) *poll {
	exact := func(q *poll) bool { return q.class == part.class && q.group == part.group }
	same := func(q *poll) bool { return q.class == part.class }
	for _, try := range []struct {
		list *[]*poll
		want func(*poll) bool
	}{{&p.singles, exact}, {&p.polls, exact}, {&p.polls, same}, {&p.singles, same}} {
		i := slices.IndexFunc(*try.list, try.want)
		if i < 0 {
			continue
		}
		q := (*try.list)[i]
		if !q.extended {
			p.singles = slices.Delete(p.singles, i, i+1)
		}
		return q
	}
	return nil
}

// end is when all was played: single polls that still wait get nothing, and a
// loop begins again with another association.
func (p *player) end(now time.Time) {
	for _, q := range p.singles {
		p.answer(now, q, p.nothing(*q))
	}
	p.singles = nil
	p.r.once.Do(func() { close(p.r.finished) })
	if !p.r.o.Loop {
		return
	}
	out := p.out
	p.close()
	p.out = out
	p.send(now.Add(p.r.o.Latency), abortPDU)
}
