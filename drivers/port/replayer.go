package port

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"sync"
	"time"
)

// ReplayOptions say how a recording is played back.
type ReplayOptions struct {
	// Speed is how many times faster than it was recorded: 1 is as it was, 0
	// as fast as it is read.
	Speed     float64
	Datagrams bool
	// Lockstep has the device answer only when it was asked: what follows a
	// request in the recording comes only after a write.
	Lockstep bool
}

// A Replayer is a Port that plays a device back from a recording. It swallows
// what is written, and compares it with what was written then. At the end of
// the recording its reads give io.EOF.
type Replayer struct {
	o     ReplayOptions
	next  func() (Record, error, bool)
	stop  func()
	start time.Time

	reading  sync.Mutex // one read at a time; Close waits for it
	record   Record     // what is left of the one at hand
	at       bool       // there is one
	end      error
	closed   chan struct{}
	stopped  chan struct{}
	wrote    chan struct{} // holds one when there are writes that were not seen
	closing  sync.Once
	stopping sync.Once

	mu          sync.Mutex
	writes      [][]byte
	differences int
	torn        error
}

// maxWrites bounds the writes that wait to be compared.
const maxWrites = 1024

var errEndOfRecording = fmt.Errorf("the recording is at its end: %w", io.EOF)

// NewReplayer plays records back; the time runs from the first read on.
func NewReplayer(records iter.Seq2[Record, error], o ReplayOptions) *Replayer {
	r := &Replayer{o: o, closed: make(chan struct{}), stopped: make(chan struct{}), wrote: make(chan struct{}, 1)}
	r.next, r.stop = iter.Pull2(records)
	return r
}

// Datagrams is as the options say.
func (r *Replayer) Datagrams() bool { return r.o.Datagrams }

// Differences is how many writes were not what was written in the recording at
// that place, missing ones included.
func (r *Replayer) Differences() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.differences
}

// Torn is the last warning of the recording (see ErrTorn), or nil.
func (r *Replayer) Torn() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.torn
}

// Write swallows p.
func (r *Replayer) Write(p []byte) (int, error) {
	select {
	case <-r.closed:
		return 0, os.ErrClosed
	default:
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.writes) == maxWrites {
		r.writes = r.writes[1:]
		r.differences++
	}
	r.writes = append(r.writes, bytes.Clone(p))
	select {
	case r.wrote <- struct{}{}:
	default:
	}
	return len(p), nil
}

// Close ends the playing.
func (r *Replayer) Close() error {
	r.closing.Do(func() {
		close(r.closed)
		r.reading.Lock()
		defer r.reading.Unlock()
		r.stop()
	})
	return nil
}

// StopReading is as ReadStopper says.
func (r *Replayer) StopReading() { r.stopping.Do(func() { close(r.stopped) }) }

// ReadBefore gives what the device sent.
func (r *Replayer) ReadBefore(p []byte, deadline time.Time) (int, error) {
	r.reading.Lock()
	defer r.reading.Unlock()
	if r.start.IsZero() {
		r.start = time.Now()
	}
	for {
		select {
		case <-r.closed:
			return 0, os.ErrClosed
		default:
		}
		if !r.at && !r.advance() {
			return 0, r.end
		}
		due, ready := r.due()
		if !ready || time.Now().Before(due) {
			if err := r.wait(due, ready, deadline); err != nil {
				return 0, err
			}
			continue
		}
		if r.record.Direction == ToDevice {
			r.at = false
			continue
		}
		return r.deliver(p), nil
	}
}

// advance takes the next record. It is false at the end.
func (r *Replayer) advance() bool {
	for r.end == nil {
		record, err, ok := r.next()
		switch {
		case !ok:
			r.end = errEndOfRecording
		case errors.Is(err, ErrTorn):
			r.mu.Lock()
			r.torn = err
			r.mu.Unlock()
		case err != nil:
			r.end = err
		default:
			r.record, r.at = record, true
			return true
		}
	}
	return false
}

// due is when the record at hand comes; ready is false where a write must come first.
func (r *Replayer) due() (due time.Time, ready bool) {
	if r.record.Direction == ToDevice {
		return time.Time{}, r.compare()
	}
	if r.o.Speed <= 0 {
		return time.Time{}, true
	}
	return r.start.Add(time.Duration(float64(r.record.Offset) / r.o.Speed)), true
}

// compare compares the oldest write with the one at hand. It is false where
// there is none yet and the device waits for it.
func (r *Replayer) compare() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.writes) == 0 {
		if !r.o.Lockstep {
			r.differences++
		}
		return !r.o.Lockstep
	}
	if !bytes.Equal(r.writes[0], r.record.Data) {
		r.differences++
	}
	r.writes = r.writes[1:]
	return true
}

// wait waits until due, where ready is set, else for a write; not longer than
// until the deadline.
func (r *Replayer) wait(due time.Time, ready bool, deadline time.Time) error {
	until := deadline
	if ready && due.Before(deadline) {
		until = due
	}
	timer := time.NewTimer(time.Until(until))
	defer timer.Stop()
	select {
	case <-r.closed:
		return os.ErrClosed
	case <-r.stopped:
		return os.ErrDeadlineExceeded
	case <-r.wrote:
		return nil
	case <-timer.C:
		if until.Equal(deadline) {
			return os.ErrDeadlineExceeded
		}
		return nil
	}
}

// deliver hands over a datagram, cut where p is too short as a socket does, or
// a piece of the stream.
func (r *Replayer) deliver(p []byte) int {
	n := copy(p, r.record.Data)
	r.record.Data = r.record.Data[n:]
	r.at = !r.o.Datagrams && len(r.record.Data) > 0
	return n
}
