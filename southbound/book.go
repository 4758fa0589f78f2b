package southbound

import (
	"cmp"
	"maps"
	"net"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/bedside-gateway/gatewayd/revocation/fetch"
)

// Status is the state of a server, for the status page and the metrics.
type Status struct {
	Connections int // authenticated
	Handshakes  int // under way
	Devices     []Device
	Staples     [][]fetch.Staple // of each identity (A10)
	Counts
	Refusals []Refusal // the latest by each rule, in the order of the rules
}

// Counts are since New.
type Counts struct {
	Accepted     uint64 // connections that got in
	Refused      map[string]uint64
	Unlogged     uint64 // refusals that were not logged, for there were too many
	Messages     uint64 // taken by the sink
	Bytes        uint64 // of those
	Failed       uint64 // the sink failed: the device sends them again
	Rejected     uint64 // malformed, or rejected by the sink
	CutHandshake uint64 // to make room
	CBC          uint64 // connections with a suite of the CBC mode
	Panics       uint64 // faults of the program that were contained to a connection
	Skipped      uint64 // bytes that were in no MLLP frame
}

// A Device is an open connection.
type Device struct {
	CommonName string
	Remote     string
	Since      time.Time
	Messages   uint64
	Last       time.Time // message
}

// A Refusal is a connection that did not get in.
type Refusal struct {
	Time   time.Time
	Remote string
	Rule   string
	Reason string
}

// book is who is connected, and the counts.
type book struct {
	running sync.WaitGroup

	mu       sync.Mutex
	o        Options
	draining bool
	open     []*conn // in the order of their arrival
	counts   Counts
	last     map[string]Refusal // by rule
	// loud are the refusals that are logged, by rule: whoever can connect can
	// cause some, and must not hide the others with them.
	loud map[string]*rate.Limiter
}

func (b *book) start(o Options) {
	b.o, b.counts.Refused, b.last, b.loud = o, map[string]uint64{}, map[string]Refusal{}, map[string]*rate.Limiter{}
}

// enter takes a connection in, for its handshake. Where too many are at it, the
// oldest has to go: who is slow on purpose has been there the longest.
func (b *book) enter(c *conn) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.draining {
		return errLeave
	}
	var oldest *conn
	shaking := 0
	for _, other := range b.open {
		if !other.admitted {
			oldest = cmp.Or(oldest, other)
			shaking++
		}
	}
	switch {
	case shaking >= b.o.MaxHandshakes || len(b.open) >= b.o.MaxConnections && shaking > 0:
		oldest.cut(errSlow)
		b.counts.CutHandshake++
		b.remove(oldest)
	case len(b.open) >= b.o.MaxConnections:
		return errFull
	}
	b.open = append(b.open, c)
	return nil
}

// admit notes that a device has authenticated. It may have lost its older
// connections without our knowing.
func (b *book) admit(c *conn, device string, cbc bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	c.device, c.admitted = device, true
	b.counts.Accepted++
	if cbc {
		b.counts.CBC++
	}
	if b.draining {
		c.leave(errLeave)
	}
	var same []*conn
	for _, other := range b.open {
		if other.admitted && other.device == device {
			same = append(same, other)
		}
	}
	for _, old := range same[:max(len(same)-b.o.MaxPerDevice, 0)] {
		old.leave(errNewer)
	}
}

func (b *book) leave(c *conn) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.remove(c)
}

func (b *book) remove(c *conn) {
	b.open = slices.DeleteFunc(b.open, func(other *conn) bool { return other == c })
}

// drain lets every connection end by itself, and takes no more.
func (b *book) drain() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.draining = true
	for _, c := range b.open {
		if !c.admitted {
			c.cut(errLeave)
		} else {
			c.leave(errLeave)
		}
	}
}

// cut ends what did not end by itself.
func (b *book) cut() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, c := range b.open {
		c.cut(errLeave)
	}
}

// kill ends everything as the death of the machine would.
func (b *book) kill() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.draining = true
	for _, c := range b.open {
		if t, ok := c.raw.(*net.TCPConn); ok {
			_ = t.SetLinger(0) // close by reset; it fails only where it is closed already
		}
		c.cut(errLeave)
	}
}

func (b *book) panicked() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.counts.Panics++
}

// skip counts bytes that were in no frame, at the end of a connection.
func (b *book) skip(c *conn, n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	c.skipped = n
	b.counts.Skipped += uint64(n)
}

// audible reports whether a refusal is to be logged, and counts it if not.
func (b *book) audible(rule string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.loud[rule] == nil {
		b.loud[rule] = rate.NewLimiter(5, 50)
	}
	ok := b.loud[rule].Allow()
	if !ok {
		b.counts.Unlogged++
	}
	return ok
}

func (b *book) refuse(rule, remote string, err error, now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.counts.Refused[rule]++
	b.last[rule] = Refusal{Time: now, Remote: remote, Rule: rule, Reason: err.Error()}
}

func (b *book) message(c *conn, verdict byte, bytes int, now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch verdict {
	case 'A':
		b.counts.Messages++
		b.counts.Bytes += uint64(bytes)
		c.messages++
		c.last = now
	case 'E':
		b.counts.Failed++
	default:
		b.counts.Rejected++
	}
}

// Status is the state of now.
func (s *Server) Status() Status {
	st := s.book.status()
	for _, k := range s.keepers {
		st.Staples = append(st.Staples, k.Status())
	}
	return st
}

func (b *book) status() Status {
	b.mu.Lock()
	defer b.mu.Unlock()
	st := Status{Counts: b.counts}
	st.Refused = maps.Clone(b.counts.Refused)
	for _, rule := range slices.Sorted(maps.Keys(b.last)) {
		st.Refusals = append(st.Refusals, b.last[rule])
	}
	for _, c := range b.open {
		if !c.admitted {
			st.Handshakes++
			continue
		}
		st.Connections++
		st.Devices = append(st.Devices, Device{c.device, c.remote, c.since, c.messages, c.last})
	}
	return st
}
