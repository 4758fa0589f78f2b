package intellivue

import (
	"fmt"
	"slices"
	"time"

	"github.com/bedside-gateway/gatewayd/drivers"
)

// A task is something that the monitor is asked for, once or again and again.
type task struct {
	what    string // for notes
	kind    taskKind
	class   uint16
	group   uint16
	number  uint16 // poll number, which comes back in the answer
	statics bool   // asked for what values mean, though it brings values too
	every   time.Duration

	due      time.Time // zero: not wanted
	invoke   uint16    // of the last request; 0: none
	former   uint16    // of the one before, which may go on for a while
	sent     time.Time
	tries    int
	answered bool // in this association
	running  bool // the last request is answered
	refusals int
}

type taskKind uint8

const (
	pollOnce taskKind = iota
	pollOn            // extended
	getWaves
	setWaves
)

func (k taskKind) command() uint16 {
	switch k {
	case getWaves:
		return cmdGet
	case setWaves:
		return cmdConfirmedSet
	}
	return cmdConfirmedAction
}

func (t *task) action() uint16 {
	if t.kind == pollOn {
		return actionPollExt
	}
	return actionPoll
}

// soon has the task done at the next occasion.
func (t *task) soon(now time.Time) {
	if t.due.IsZero() || t.due.After(now) {
		t.due, t.tries = now, 0
	}
}

// The intervals of the tasks.
const (
	// pollSpacing is between two polls of one class: a monitor ignores more than
	// one a second.
	pollSpacing = 1100 * time.Millisecond
	// stale is when a subscription without results is asked for again: they
	// come in each beat, empty if there is nothing to say.
	stale        = 5 * time.Second
	staticsEvery = 10 * time.Minute
	singleEvery  = 2 * time.Second
	wordsEvery   = 5 * time.Second
	rarely       = 30 * time.Second // what was asked three times in vain
	staticsLeast = 10 * time.Second // between two looks at what is new
	maxTries     = 3
)

// plan lists what is asked for in this association.
func (m *machine) plan(now time.Time) {
	m.tasks = m.tasks[:0]
	add := func(wait time.Duration, t task) {
		t.number, t.due = uint16(len(m.tasks)+1), now.Add(wait)
		m.tasks = append(m.tasks, &t)
	}
	values, words := pollOn, pollOn
	if !m.granted.extended || m.granted.extOptions&(extNumerics|extAverages) == 0 {
		values, words = pollOnce, pollOnce
	}
	if m.granted.extOptions&extEnumerations == 0 {
		words = pollOnce
	}
	add(0, task{what: "itself", kind: pollOnce, class: classMDS, every: keepAlive})
	add(0, task{what: "the meaning of numbers", kind: pollOnce, class: classNumeric, statics: true, every: staticsEvery})
	if m.opts.patient > 0 {
		add(0, task{what: "the patient", kind: pollOnce, class: classPatient, group: groupPatient, every: m.opts.patient})
	}
	add(pollSpacing, task{what: "numbers", kind: values, class: classNumeric, group: groupValues, every: singleEvery})
	if m.opts.alarms {
		add(pollSpacing, task{what: "alarms", kind: values, class: classAlarms, group: groupAlarms, every: singleEvery})
	}
	if m.opts.enumerations {
		add(pollSpacing/2, task{what: "the meaning of words", kind: pollOnce, class: classEnumeration, statics: words == pollOn, every: wordsEvery})
		if words == pollOn {
			m.tasks[len(m.tasks)-1].every = staticsEvery
			add(2*pollSpacing, task{what: "words", kind: pollOn, class: classEnumeration, group: groupValues})
		}
	}
	if m.opts.waves && m.granted.extOptions&extWaves != 0 {
		m.planWaves(add)
	}
	m.next = now
}

// planWaves asks for waves once the monitor has its list of them.
func (m *machine) planWaves(add func(time.Duration, task)) {
	first := getWaves
	if len(m.opts.waveLabels) > 0 {
		first = setWaves
	}
	add(pollSpacing, task{what: "the list of waves", kind: first})
	add(pollSpacing, task{what: "waves", kind: pollOn, class: classWave, group: groupAll})
	m.tasks[len(m.tasks)-1].due = time.Time{}
}

// nextTask is when the next request goes out; zero if none is wanted.
func (m *machine) nextTask() time.Time {
	var first time.Time
	for _, t := range m.tasks {
		if !t.due.IsZero() && (first.IsZero() || t.due.Before(first)) {
			first = t.due
		}
	}
	if !first.IsZero() && first.Before(m.next) {
		return m.next
	}
	return first
}

// poll sends the request that waits longest.
func (m *machine) poll(now time.Time) {
	if now.Before(m.next) {
		return
	}
	var first *task
	for _, t := range m.tasks {
		if !t.due.IsZero() && !t.due.After(now) && (first == nil || t.due.Before(first.due)) {
			first = t
		}
	}
	if first == nil {
		return
	}
	m.next = now.Add(pacing)
	m.request(now, first)
}

func (m *machine) request(now time.Time, t *task) {
	if m.invoke++; m.invoke == 0 {
		m.invoke = 1
	}
	if t.running {
		t.former = t.invoke
	}
	t.invoke, t.sent, t.running = m.invoke, now, false
	t.due = now.Add(replyLimit)
	if t.tries++; t.tries > maxTries {
		m.note("the monitor does not answer when asked for " + t.what)
		t.due = now.Add(rarely)
	}
	m.send(now, m.appendRequest(nil, t))
}

func (m *machine) appendRequest(b []byte, t *task) []byte {
	mds := objectID{class: classMDS}
	d := pdu{context: dataContext, kind: roInvoke, invoke: t.invoke, command: t.kind.command()}
	return d.append(b, func(b []byte) []byte {
		switch t.kind {
		case getWaves:
			g := getRequest{object: mds, ids: list{1, appendU16(nil, attrWaveList)}}
			return g.append(b)
		case setWaves:
			value := appendTextIDs(nil, m.opts.waveLabels)
			s := setRequest{object: mds, list: list{1, appendAttribute(appendU16(nil, operatorReplace), attrWaveList, value)}}
			return s.append(b)
		}
		a := action{object: mds, kind: t.action()}
		p := pollRequest{number: t.number, partition: partitionOfClasses, class: t.class, group: t.group}
		if t.kind == pollOn {
			p.list = attributes{1, appendAttribute(nil, attrPollPeriod, appendU32(nil, uint32(relativeOf(m.opts.pollLifetime))))}
		}
		return a.append(b, true, func(b []byte) []byte { return p.append(b, t.kind == pollOn) })
	})
}

// answered notes that a task has an answer, and when it is next due.
func (m *machine) answered(now time.Time, t *task) {
	t.answered, t.running, t.tries, t.refusals = true, true, 0, 0
	switch {
	case t.kind == pollOn:
		renew := t.sent.Add(m.opts.pollLifetime - min(max(m.opts.pollLifetime/10, replyLimit), time.Minute))
		t.due = now.Add(stale)
		if renew.Before(t.due) {
			t.due = renew
		}
	case t.every > 0:
		t.due = t.sent.Add(t.every)
	default:
		t.due = time.Time{}
	}
}

// taskOf finds the task that a poll result answers.
func (m *machine) taskOf(invoke, class, kind uint16) *task {
	for _, t := range m.tasks {
		if t.kind <= pollOn && t.class == class && t.action() == kind && invoke != 0 && (t.invoke == invoke || t.former == invoke) {
			return t
		}
	}
	return nil
}

// known reports whether one of the class's own polls was answered: then results
// that belong to none of them are another client's.
func (m *machine) known(class uint16) bool {
	return slices.ContainsFunc(m.tasks, func(t *task) bool { return t.kind <= pollOn && t.class == class && t.answered })
}

// learn asks for what values mean when one comes that is new.
func (m *machine) learn(now time.Time, class uint16) {
	for _, t := range m.tasks {
		if t.statics && t.class == class && t.answered && now.Sub(t.sent) >= staticsLeast {
			t.soon(now)
		}
	}
}

// refused takes an error in answer to a request.
func (m *machine) refused(now time.Time, d *pdu) drivers.Frame {
	for _, t := range m.tasks {
		if t.invoke == d.invoke && d.invoke != 0 {
			return m.refusedTask(now, t, d)
		}
	}
	return drivers.FrameUnexpected
}

func (m *machine) refusedTask(now time.Time, t *task, d *pdu) drivers.Frame {
	m.note(fmt.Sprintf("the monitor refuses to send %s: %s", t.what, m.reason(d)))
	t.tries = 0
	t.refusals++
	switch {
	case t.kind == getWaves || t.kind == setWaves:
		m.wavesReady(now, t) // it sends those that it has on its screen
	case t.class == classMDS: // asked all the same: it keeps the association
		t.due = now.Add(keepAlive)
	case d.command == errNoSuchAction && t.kind == pollOn && t.class != classWave:
		t.kind, t.every, t.due = pollOnce, singleEvery, now.Add(pollSpacing)
	case d.command == errNoSuchClass || d.command == errNoSuchInstance || d.command == errNoSuchAction:
		t.due = time.Time{}
	default:
		t.due = now.Add(refusedRetry)
		if t.refusals > maxTries {
			t.due = now.Add(rarely)
		}
	}
	return drivers.FrameRefused
}

func (m *machine) reason(d *pdu) string {
	text := errorText(d.command)
	if d.command != errGetList && d.command != errSetList {
		return text
	}
	if e, ok := parseListError(d.command, d.body); ok && e.list.count > 0 {
		status, attribute := e.at(0)
		return fmt.Sprintf("%s (attribute %04X, status %d)", text, attribute, status)
	}
	return text
}

// listAnswer takes the list of waves that the monitor has, or what it made of
// ours.
func (m *machine) listAnswer(now time.Time, d *pdu) drivers.Frame {
	i := slices.IndexFunc(m.tasks, func(t *task) bool {
		return t.invoke == d.invoke && d.invoke != 0 && t.kind > pollOn && t.kind.command() == d.command
	})
	r, ok := parseAttributeResult(d.body)
	if !ok {
		return drivers.FrameMalformed
	}
	if i < 0 && m.listenOnly {
		return drivers.FrameGood
	}
	if i < 0 {
		return drivers.FrameUnexpected
	}
	t := m.tasks[i]
	value, _ := r.list.find(attrWaveList)
	ids, ok := parseTextIDs(value)
	if !ok {
		return drivers.FrameMalformed
	}
	m.answered(now, t)
	if t.kind == setWaves {
		if ids.count < len(m.opts.waveLabels) {
			m.note(fmt.Sprintf("the monitor exports %d of %d waves", ids.count, len(m.opts.waveLabels)))
		}
		m.wavesReady(now, t)
		return drivers.FrameGood
	}
	m.chooseWaves(now, t, ids)
	return drivers.FrameGood
}

// chooseWaves takes of the waves that the monitor offers those that it may
// export, and tells it where that is not all of them.
func (m *machine) chooseWaves(now time.Time, t *task, ids list) {
	all := make([]uint32, ids.count)
	for i := range all {
		all[i] = ids.textID(i)
	}
	kept := exportable(all)
	if len(kept) == len(all) {
		m.wavesReady(now, t)
		return
	}
	m.note(fmt.Sprintf("the monitor offers %d waves and exports %d of them", len(all), len(kept)))
	m.opts.waveLabels = kept
	t.kind, t.due, t.answered = setWaves, now, false
}

func (m *machine) wavesReady(now time.Time, t *task) {
	t.due = time.Time{}
	for _, w := range m.tasks {
		if w.class == classWave && w.kind == pollOn {
			w.due = now
		}
	}
}
