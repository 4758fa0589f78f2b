package drivers

import (
	"context"
	"encoding/json"
	"log/slog"
	"time"

	"github.com/bedside-gateway/gatewayd/drivers/port"
	"github.com/bedside-gateway/gatewayd/observation"
)

// A SessionConfig is what a session is made of. Name, Driver, Open, Sink and Log are needed.
type SessionConfig struct {
	Name   string // of the port, for the log and errors
	Driver Driver
	// Settings are those of the machine; Datagrams is set by the session, from the port.
	Settings Settings
	// Lines is the line to use. Leave it empty to have the lines of the driver tried in turn.
	Lines []port.Line
	// Open opens the port, such as port.Spec.Open.
	Open func(context.Context, port.Line) (port.Port, error)
	// Sink takes the reports, one at a time. A report is only borrowed.
	Sink func(*observation.Report)
	Log  *slog.Logger

	// Clock is the time; nil is the system's.
	Clock Clock
	// Rand gives numbers from 0 up to 1 for the jitter; nil is math/rand/v2.
	Rand func() float64
	// Known, where given, names a foreign protocol that is heard on the line.
	Known  *Registry
	Timing Timing
}

// A Clock is the time. Its readings go forward only by the monotonic clock:
// a step of the wall clock must not stop a session.
type Clock interface {
	Now() time.Time
	// Wait returns after d, or earlier with the error of ctx when that ends.
	Wait(ctx context.Context, d time.Duration) error
}

// Timing are the times of a session. Zero values are the usual ones.
type Timing struct {
	// Quiet is how long a session listens on a stream before it sends
	// anything (2 s); negative: not at all.
	Quiet time.Duration
	// Contention is how long it waits for traffic that it did not ask for to
	// end, before it says that there is another master (15 s).
	Contention time.Duration
	// Linger is how long after a live session its device may still send (3 min).
	Linger time.Duration
	// LineWait is how long one of several lines is given to show a good frame (10 s).
	LineWait time.Duration
	// SilentLimit is how long a session may be silent before the port is
	// opened anew (5 min).
	SilentLimit time.Duration
	// BackoffMin and BackoffMax bound the wait after a failed session (1 s, 1 min);
	// OpenMax bounds it while the port cannot be opened, so that a replugged
	// adapter is found soon (5 s).
	BackoffMin, BackoffMax, OpenMax time.Duration
	// Settled is how long a session must have been live for the backoff to
	// begin anew (30 s).
	Settled time.Duration
}

// Session runs a driver on a port: it opens, listens, starts the machine, feeds
// it, and begins anew after an error, until its context ends.
type Session struct{ cfg SessionConfig }

// NewSession checks the configuration, the driver's options included.
func NewSession(cfg SessionConfig) (*Session, error) { return &Session{cfg: cfg}, nil }

// Run runs the session until ctx ends, and returns the error of ctx.
func (s *Session) Run(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }

// Status is how the session is now. It may be called at any time from anywhere.
func (s *Session) Status() Status { return Status{Name: s.cfg.Name} }

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
	Failures      uint64 `json:"failures"`          // failed attempts since the session was last settled
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
