package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/bedside-gateway/gatewayd/observation"
	"github.com/bedside-gateway/gatewayd/pcd"
	"github.com/bedside-gateway/gatewayd/spool"
)

// A lane is the way from one port to one destination: a snapshot that gathers
// the reports, and a goroutine that puts the messages into the spool.
//
// The session's goroutine only ever adds to the snapshot; the disk is waited for
// outside the lock, so that a slow disk never holds up a serial line. While the
// disk takes nothing, made messages wait in the lane and no new ones are made:
// the snapshot, which is bounded, goes on gathering.
type lane struct {
	port, destination string
	options           pcd.Options
	store             store
	check             func([]byte)
	now               func() time.Time
	log               *slog.Logger

	wake   chan struct{} // something was added
	quit   context.Context
	cancel context.CancelFunc
	done   chan struct{} // it has ended

	mu       sync.Mutex
	snapshot *pcd.Snapshot
	pending  []message // made, and stored up to at
	at       int
	stored   uint64
	refused  uint64 // failed writes
	givenUp  uint64 // by the rule of a full spool
	fault    error  // of the last write; nil when it succeeded
	since    time.Time
}

// store is the part of the spool that a lane needs.
type store interface {
	Enqueue(context.Context, spool.Entry) (uint64, error)
}

// message is a copy of a pcd.Message, kept until it is durable.
type message struct {
	class     pcd.Class
	controlID string
	made      time.Time
	bytes     []byte
}

func newLane(port, destination string, o pcd.Options, d *Daemon) (*lane, error) {
	s, err := pcd.NewSnapshot(o)
	if err != nil {
		return nil, fmt.Errorf("port %s to destination %s: %w", port, destination, err)
	}
	l := &lane{port: port, destination: destination, options: o, snapshot: s, store: d.spool, now: d.options.Now,
		check: func(b []byte) { d.sampler.check(port, b) }, log: d.log.With("port", port, "destination", destination),
		wake: make(chan struct{}, 1), done: make(chan struct{})}
	l.quit, l.cancel = context.WithCancel(context.Background())
	return l, nil
}

func (l *lane) stop()                  { l.cancel() }
func (l *lane) ended() <-chan struct{} { return l.done }

// add takes a report over into the snapshot. It never waits for the disk.
func (l *lane) add(r *observation.Report) {
	l.mu.Lock()
	l.snapshot.Add(r)
	l.mu.Unlock()
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// run makes messages when they are due and stores them, until stop. Then it
// stores what there is; last bounds that.
func (l *lane) run(last context.Context) {
	ctx := l.quit
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for ctx.Err() == nil {
		l.take(l.now())
		if !l.save(ctx) {
			break
		}
		timer.Reset(l.wait())
		select {
		case <-ctx.Done():
		case <-l.wake:
		case <-timer.C:
		}
	}
	l.finish(last)
}

// idle is how long a lane sleeps that has nothing to do.
const idle = time.Hour

// wait is how long until a message is due.
func (l *lane) wait() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	next := l.snapshot.Next()
	if next.IsZero() {
		return idle
	}
	return min(max(0, next.Sub(l.now())), idle)
}

// take makes the messages that are due, if those made before are all stored.
func (l *lane) take(now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.at < len(l.pending) {
		return
	}
	l.pending, l.at = l.pending[:0], 0
	// emit cannot fail: it copies.
	_ = l.snapshot.Flush(now, func(m pcd.Message) error {
		l.pending = append(l.pending, l.copied(m))
		return nil
	})
}

// copied is a copy of a borrowed message, in a buffer of an earlier round where
// there is one.
func (l *lane) copied(m pcd.Message) message {
	var buffer []byte
	if n := len(l.pending); n < cap(l.pending) {
		buffer = l.pending[:n+1][n].bytes[:0]
	}
	return message{m.Class, string(m.ControlID), m.Made, append(buffer, m.Bytes...)}
}

// Between two attempts to write.
const (
	retryFirst = 500 * time.Millisecond
	retryMost  = 15 * time.Second
)

// save stores the messages that wait, in order. It tries for ever, and returns
// false when ctx ended before all were stored.
func (l *lane) save(ctx context.Context) bool {
	delay := retryFirst
	for l.at < len(l.pending) {
		err := l.enqueue(ctx, &l.pending[l.at])
		if err == nil {
			l.next()
			delay = retryFirst
			continue
		}
		if ctx.Err() != nil {
			return false
		}
		l.failed(err)
		select {
		case <-ctx.Done():
			return false
		case <-time.After(delay):
			delay = min(2*delay, retryMost)
		}
	}
	return true
}

func (l *lane) next() {
	l.mu.Lock()
	l.at++
	l.mu.Unlock()
}

// enqueue stores one message. A message that the spool will never take is given
// up here, as the rule of the full spool says, and counted.
func (l *lane) enqueue(ctx context.Context, m *message) error {
	l.check(m.bytes)
	_, err := l.store.Enqueue(ctx, spool.Entry{Queue: l.destination, Device: l.port, ControlID: m.controlID,
		Class: spoolClass(m.class), Made: m.made, Payload: m.bytes})
	switch {
	case errors.Is(err, spool.ErrDuplicate): // stored by an attempt that failed too late to know
		err = nil
	case errors.Is(err, spool.ErrFull) || errors.Is(err, spool.ErrTooLarge):
		l.giveUp(m, err)
		return nil
	}
	if err == nil {
		l.succeeded()
	}
	return err
}

func (l *lane) giveUp(m *message, err error) {
	l.mu.Lock()
	first := l.fault == nil
	l.givenUp++
	l.fault = err
	if first {
		l.since = l.now()
	}
	l.mu.Unlock()
	if first {
		l.log.Error("a message was given up", "class", m.class.String(), "control_id", m.controlID, "error", err,
			"next", "bring the platform back, or raise max_bytes in [spool]")
	}
}

func (l *lane) succeeded() {
	l.mu.Lock()
	recovered := l.fault != nil
	l.stored++
	l.fault = nil
	l.mu.Unlock()
	if recovered {
		l.log.Info("messages are stored again")
	}
}

// failed notes a write that did not succeed; only the first of a row is logged.
func (l *lane) failed(err error) {
	l.mu.Lock()
	first := l.fault == nil
	l.refused++
	l.fault = err
	if first {
		l.since = l.now()
	}
	l.mu.Unlock()
	if first {
		l.log.Error("a message cannot be stored; it is tried again", "error", err, "next", "look at the disk of state_dir: is it full or read-only?")
	}
}

// finish stores everything that there is, due or not.
func (l *lane) finish(ctx context.Context) {
	if !l.save(ctx) {
		l.log.Error("messages are lost, for the spool took them in no time", "messages", len(l.pending)-l.at)
		return
	}
	l.mu.Lock()
	l.snapshot.Cut(l.now())
	l.mu.Unlock()
	l.take(l.now())
	if !l.save(ctx) {
		l.log.Error("messages are lost, for the spool took them in no time", "messages", len(l.pending)-l.at)
	}
}

// laneCounts are the figures of a lane for the status.
type laneCounts struct {
	pcd              pcd.Counts
	pending          int
	stored           uint64
	refused, givenUp uint64
	fault            error
	since            time.Time
	problem          error // why the snapshot can make no message
}

func (l *lane) counts() laneCounts {
	l.mu.Lock()
	defer l.mu.Unlock()
	return laneCounts{l.snapshot.Counts(), len(l.pending) - l.at, l.stored, l.refused, l.givenUp, l.fault, l.since, l.snapshot.Problem()}
}

// spoolClass is the class in the numbers of the spool, which are stored and
// therefore its own.
func spoolClass(c pcd.Class) spool.Class {
	switch c {
	case pcd.Waveform:
		return spool.Waveform
	case pcd.Episodic:
		return spool.Episodic
	case pcd.Alert:
		return spool.Alert
	}
	return spool.Periodic
}
