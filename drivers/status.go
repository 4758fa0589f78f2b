package drivers

import (
	"encoding/json"
	"sync"
	"sync/atomic"
	"time"
)

// Status is what a session knows of itself. It holds no patient data.
type Status struct {
	Name       string    `json:"name"`
	Driver     string    `json:"driver"`
	State      State     `json:"state"`
	Since      time.Time `json:"since"`          // of State
	Line       string    `json:"line,omitempty"` // of a serial port that is open
	ListenOnly bool      `json:"listen_only"`

	BytesReceived uint64 `json:"bytes_received"`
	BytesSent     uint64 `json:"bytes_sent"`
	Frames        Frames `json:"frames"`
	Reports       uint64 `json:"reports"`
	Observations  uint64 `json:"observations"`
	Requests      uint64 `json:"requests"`          // frames sent
	Withheld      uint64 `json:"requests_withheld"` // not sent: listen-only
	Refused       uint64 `json:"requests_refused"`  // not sent: Permit refused them
	Flooded       uint64 `json:"requests_flooded"`  // not sent: too many
	Sessions      uint64 `json:"sessions"`          // times that a machine was started
	Reopens       uint64 `json:"reopens"`           // times that the port was opened again
	Failures      uint64 `json:"failures"`          // attempts in vain since a session was last settled
	Panics        uint64 `json:"panics"`            // mistakes in the driver that were contained

	LastReport  time.Time `json:"last_report,omitzero"`
	LastError   string    `json:"last_error,omitempty"`
	LastErrorAt time.Time `json:"last_error_at,omitzero"`
	NextOpen    time.Time `json:"next_open,omitzero"` // while Closed
}

// Frames are how many frames met which fate.
type Frames [frames]uint64

// MarshalJSON writes an object with the fates as names.
func (f Frames) MarshalJSON() ([]byte, error) {
	m := make(map[string]uint64, len(f))
	for i, n := range f {
		m[Frame(i).String()] = n
	}
	return json.Marshal(m)
}

// MarshalText is String.
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// ledger is what Status reads while the session writes. The counters that each
// byte and frame touches are single words; the rest changes rarely.
type ledger struct {
	received, sent, reports, observations atomic.Uint64
	requests, withheld, refused, flooded  atomic.Uint64
	sessions, reopens, panics             atomic.Uint64
	frames                                [frames]atomic.Uint64
	lastReport                            atomic.Int64 // Unix nanoseconds, 0 for none

	mu       sync.Mutex
	state    State
	since    time.Time
	line     string
	failures int
	err      string
	errAt    time.Time
	nextOpen time.Time
}

func (l *ledger) init(now time.Time) { l.since = now }

func (l *ledger) enter(state State, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.state == state {
		return
	}
	l.state, l.since = state, now
	if state == Closed || state == Opening {
		l.line, l.nextOpen = "", time.Time{}
	}
	if state == Live {
		l.failures = 0
	}
}

func (l *ledger) setLine(line string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.line = line
}

func (l *ledger) setNextOpen(t time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.nextOpen = t
}

func (l *ledger) fail(err error, failures int, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.err, l.errAt, l.failures = err.Error(), now, failures
}

func (l *ledger) report(observations int, now time.Time) {
	l.reports.Add(1)
	l.observations.Add(uint64(observations))
	l.lastReport.Store(now.UnixNano())
}

// Status is how the session is now. It may be called at any time from anywhere.
func (s *Session) Status() Status {
	l := &s.ledger
	st := Status{
		Name: s.cfg.Name, Driver: s.info.Name, ListenOnly: s.cfg.Settings.ListenOnly,
		BytesReceived: l.received.Load(), BytesSent: l.sent.Load(),
		Reports: l.reports.Load(), Observations: l.observations.Load(),
		Requests: l.requests.Load(), Withheld: l.withheld.Load(), Refused: l.refused.Load(), Flooded: l.flooded.Load(),
		Sessions: l.sessions.Load(), Reopens: l.reopens.Load(), Panics: l.panics.Load(),
	}
	for i := range st.Frames {
		st.Frames[i] = l.frames[i].Load()
	}
	if n := l.lastReport.Load(); n != 0 {
		st.LastReport = time.Unix(0, n)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	st.State, st.Since, st.Line, st.Failures = l.state, l.since, l.line, uint64(l.failures)
	st.LastError, st.LastErrorAt, st.NextOpen = l.err, l.errAt, l.nextOpen
	return st
}
