package northbound

import (
	"crypto/tls"
	"maps"
	"slices"
	"time"

	"github.com/bedside-gateway/gatewayd/tlspolicy"
)

// The states of a client.
const (
	Stopped     = "stopped"     // Run is not running
	Connecting  = "connecting"  // for the first time
	Connected   = "connected"   // and waiting for messages, or sending
	Idle        = "idle"        // closed for want of messages; the next one opens it
	Unreachable = "unreachable" // no connection, or none that lasts; tried again
	Unanswered  = "unanswered"  // connected, and no answer to go by comes; tried again
	Refused     = "refused"     // by a rule of ours or by the platform; tried again
	Held        = "held"        // the platform answers CE or AE; tried again
	Halted      = "halted"      // the platform rejects the first message, and OnReject is Halt
	KeyFault    = "key fault"   // our own key does not sign; tried again
	StoreFault  = "store fault" // the spool does not take what became of a message
)

// Status is the state of a client. It holds nothing that a platform said in
// words, and nothing of a message but its control ID.
type Status struct {
	Destination string
	State       string
	Since       time.Time // of the state
	Connected   bool
	Declined    bool      // Refused: by the platform, and not by a rule of ours
	Attempts    uint64    // failed in a row
	Fault       string    // why the last one failed and what to do; "" after a success
	NextAttempt time.Time // zero where none is waited for

	LastAck    time.Time
	RoundTrip  time.Duration     // of the last answer
	Acks       map[string]uint64 // answers by code
	RoundTrips Histogram
	Handshakes map[string]uint64 // by result: ok, refused, unreachable, key

	Delivered   uint64
	Quarantined uint64
	Unanswered  uint64 // messages sent whose fate was not known: they go out again
	OtherAcks   uint64 // answers that were for another message
	Unsolicited uint64 // answers that came late or twice
	Stray       uint64 // bytes outside of MLLP blocks

	TLS              string // version and suite of the present or last connection
	CBC              uint64 // connections with a CBC suite
	PlatformNotAfter time.Time
}

// A Histogram counts round trips by their length in seconds.
type Histogram struct {
	Bounds []float64
	Counts []uint64 // one more than Bounds: the last is of those above
	Sum    float64
}

var bounds = [...]float64{0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10}

// NewHistogram counts nothing yet.
func NewHistogram() Histogram {
	return Histogram{Bounds: bounds[:], Counts: make([]uint64, len(bounds)+1)}
}

// Add counts one.
func (h *Histogram) Add(d time.Duration) {
	at, _ := slices.BinarySearch(h.Bounds, d.Seconds())
	h.Counts[at]++
	h.Sum += d.Seconds()
}

// Clone is the histogram as it is now.
func (h *Histogram) Clone() Histogram {
	return Histogram{h.Bounds, slices.Clone(h.Counts), h.Sum}
}

// Status tells how the client is doing.
func (c *Client) Status() Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.status
	s.Acks, s.Handshakes = maps.Clone(s.Acks), maps.Clone(s.Handshakes)
	s.RoundTrips = s.RoundTrips.Clone()
	s.OtherAcks, s.Unsolicited, s.Stray = c.counters.other.Load(), c.counters.unsolicited.Load(), c.counters.skipped.Load()
	if c.conn == nil {
		return s
	}
	s.Connected = c.conn.alive()
	if ended := c.conn.endedAt(); !s.Connected && s.State == Connected {
		s.State = Idle
		if !ended.IsZero() {
			s.Since = ended
		}
	}
	return s
}

// to changes the state, under the lock.
func (c *Client) to(state string) {
	if c.status.State != state {
		c.status.State, c.status.Since = state, c.o.Now()
	}
}

// opened notes a connection that came about.
func (c *Client) opened(conn *Conn) {
	state := conn.State()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.conn = conn
	c.status.Handshakes["ok"]++
	c.status.TLS = tls.VersionName(state.Version) + " " + tls.CipherSuiteName(state.CipherSuite)
	if tlspolicy.IsCBC(state.CipherSuite) {
		c.status.CBC++
	}
	if len(state.PeerCertificates) > 0 {
		c.status.PlatformNotAfter = state.PeerCertificates[0].NotAfter
	}
	// After a failure a connection is no success yet: an answer is, or that it lasts.
	if c.status.Attempts == 0 {
		c.to(Connected)
	}
}

// succeeded notes an answer that shows a working platform.
func (c *Client) succeeded() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.status.Attempts, c.status.Fault, c.status.NextAttempt, c.status.Declined = 0, "", time.Time{}, false
	c.to(Connected)
}

// proved notes that a connection without messages has lasted.
func (c *Client) proved(conn *Conn) {
	if conn.alive() {
		c.succeeded()
	}
}

// answered counts an answer of any code.
func (c *Client) answered(code string, roundTrip time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.status.Acks[code]++
	c.status.LastAck, c.status.RoundTrip = c.o.Now(), roundTrip
	c.status.RoundTrips.Add(roundTrip)
}
