package intellivue

import (
	"fmt"
	"time"

	"github.com/bedside-gateway/gatewayd/drivers"
	"github.com/bedside-gateway/gatewayd/observation"
)

// The phases of an association (Data Export Programming Guide, protocol
// dialog).
type phase uint8

const (
	idle       phase = iota // waiting before the next association request
	requested               // asked, no answer yet
	accepted                // agreed, the monitor has not said yet what it is
	associated              // polls are answered
)

// The times of the dialog.
const (
	// A monitor answers in its own beat of 1.024 s, so a request may take that
	// long twice over and then the way.
	connectRetry = 2 * time.Second
	connectSlow  = 10 * time.Second // after a refusal: a loop of requests floods the interface
	connectSlows = 30 * time.Second // after many
	acceptLimit  = 10 * time.Second // from accept to the word of what it is
	releaseWait  = 100 * time.Millisecond
	replyLimit   = 4 * time.Second
	refusedRetry = 10 * time.Second
	// pacing keeps below the four frames in 256 ms that a monitor takes.
	pacing = 100 * time.Millisecond
	// keepAlive is twice in the 10 s after which a monitor gives up a silent
	// client.
	keepAlive = 4 * time.Second
	// silence is when we give up the monitor, as it would us.
	silence = 10 * time.Second
)

// A machine is one session with a monitor.
type machine struct {
	host       drivers.Host
	opts       options
	datagrams  bool
	listenOnly bool

	stream deframer
	frame  []byte // that goes out
	noted  map[string]bool

	phase     phase
	since     time.Time // of the phase
	next      time.Time // request of an association, or of the next poll
	refusals  int
	everAsked bool
	lastIn    time.Time
	lastOut   time.Time
	live      bool

	granted     pollProfile
	association uint16 // number that the monitor gave it
	invoke      uint16
	tasks       []*task
	sets        [4]linkedSet
	parts       []pollResult // of the answer at hand
	turn        uint32       // its number

	clock   clock
	device  observation.Device
	patient patientState
	mode    uint16 // operating mode
	objects map[uint32]*object
	spare   object         // for what is more than the table holds
	counts  map[term]uint8 // instances that were given
	waiting []waitingWave
	alarms  alarmState

	out report
}

var _ drivers.Machine = (*machine)(nil)

func newMachine(s drivers.Settings, h drivers.Host) (*machine, error) {
	opts, err := parseOptions(s.Options)
	if err != nil {
		return nil, err
	}
	m := &machine{host: h, opts: opts, datagrams: s.Datagrams, listenOnly: s.ListenOnly, noted: map[string]bool{}}
	m.forget()
	return m, nil
}

// forget drops what belongs to one association: handles are never the same in
// the next.
func (m *machine) forget() {
	m.clock = clock{}
	m.device = observation.Device{Type: deviceMultiParameter}
	m.patient = patientState{}
	m.mode, m.association = 0, 0
	m.objects, m.counts = map[uint32]*object{}, map[term]uint8{}
	m.waiting, m.alarms = m.waiting[:0], alarmState{}
	for i := range m.sets {
		m.sets[i].drop()
	}
}

// Start asks for an association. It first takes leave of one that an earlier
// session may have left behind: a monitor has one for each client and does not
// say when there is none.
func (m *machine) Start(now time.Time) error {
	m.host.State(drivers.Associating)
	m.lastIn = now
	if !m.listenOnly {
		m.send(now, releaseRequest)
		m.enter(now, idle, releaseWait)
	}
	return nil
}

func (m *machine) enter(now time.Time, p phase, wait time.Duration) {
	m.phase, m.since, m.next = p, now, now.Add(wait)
}

// Receive takes a datagram, or a piece of the stream.
func (m *machine) Receive(now time.Time, p []byte) error {
	if m.datagrams {
		return m.message(now, p)
	}
	for {
		rest, user, fate, ok := m.stream.next(p)
		if !ok {
			return nil
		}
		if fate != drivers.FrameGood {
			m.host.Count(fate)
		} else if err := m.message(now, user); err != nil {
			return err
		}
		p = rest
	}
}

// message takes one message, which fills p.
func (m *machine) message(now time.Time, p []byte) error {
	fate, err := m.judge(now, p)
	if fate == drivers.FrameGood || fate == drivers.FrameRefused || fate == drivers.FrameUnexpected {
		m.lastIn = now
	}
	m.host.Count(fate)
	return err
}

func (m *machine) judge(now time.Time, p []byte) (drivers.Frame, error) {
	switch {
	case len(p) < 2:
		return drivers.FrameMalformed, nil
	case isSession(p[0]):
		s, err := parseSPDU(p)
		if err != nil {
			return drivers.FrameMalformed, nil
		}
		return m.session(now, &s)
	case p[0] == dataSession>>8:
		d, err := parsePDU(p)
		if err != nil {
			return drivers.FrameMalformed, nil
		}
		return m.data(now, &d), nil
	case isConnectIndication(p):
		return drivers.FrameGood, nil
	}
	return drivers.FrameMalformed, nil
}

// data takes a data-export message.
func (m *machine) data(now time.Time, d *pdu) drivers.Frame {
	if !m.listenOnly && m.phase != associated && (m.phase == idle || d.kind != roInvoke) {
		return drivers.FrameUnexpected // of an association that is over
	}
	switch {
	case d.kind == roInvoke && d.command == cmdConfirmedEvent:
		return m.event(now, d)
	case d.kind == roError:
		return m.refused(now, d)
	case (d.kind == roResult || d.kind == roLinked) && d.command == cmdConfirmedAction:
		return m.pollAnswer(now, d)
	case d.kind == roResult && (d.command == cmdGet || d.command == cmdConfirmedSet):
		return m.listAnswer(now, d)
	}
	return drivers.FrameUnexpected
}

// Tick sends what is due.
func (m *machine) Tick(now time.Time) error {
	if m.listenOnly || now.Before(m.Wake()) {
		return nil
	}
	switch m.phase {
	case idle, requested:
		m.connect(now)
	case accepted:
		if now.Sub(m.since) >= acceptLimit {
			m.note("the monitor accepted the association and then said nothing")
			m.abandon(now)
		}
	case associated:
		if now.Sub(m.lastIn) >= silence {
			m.note(fmt.Sprintf("the monitor has been silent for %v: asking for a new association", silence))
			m.abandon(now)
			break
		}
		m.poll(now)
	}
	return nil
}

// Wake is the earliest time at which something is due.
func (m *machine) Wake() time.Time {
	if m.listenOnly {
		return time.Time{}
	}
	switch m.phase {
	case accepted:
		return m.since.Add(acceptLimit)
	case associated:
		wake := m.lastIn.Add(silence)
		if t := m.nextTask(); !t.IsZero() && t.Before(wake) {
			wake = t
		}
		return wake
	}
	return m.next
}

// Stop releases the association.
func (m *machine) Stop(now time.Time) {
	if !m.listenOnly && m.phase >= accepted {
		m.send(now, releaseRequest)
	}
	m.phase = idle
}

// send transmits a message.
func (m *machine) send(now time.Time, user []byte) {
	m.lastOut = now
	if m.datagrams {
		m.host.Send(user)
		return
	}
	m.frame = appendFrame(m.frame[:0], user)
	m.host.Send(m.frame)
}

// note says something once.
func (m *machine) note(text string) {
	if !m.noted[text] && len(m.noted) < 64 {
		m.noted[text] = true
		m.host.Note(text)
	}
}
