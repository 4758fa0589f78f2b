// Package relay carries the bytes of a session between a device and a platform
// inside the kernel, by splice(2): they never come into this process, and
// nobody here can read them.
//
// It counts bytes, ends sessions that are idle, and passes on the end of each
// direction by itself, so that half-closed connections work. It reads no
// protocol and opens no connection. Package tunnel calls it once a session may flow.
//
// Package net would splice too, but with two goroutines and two pipes for each
// session, and it would tell what it moved only at the end. Here a few loops
// serve all sessions (epoll(7)), and a pipe is held only while there are bytes
// in it: an idle session is two descriptors and less than a kilobyte.
package relay

import (
	"errors"
	"fmt"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// ErrIdle is the end of a session over which nothing came for too long.
var ErrIdle = errors.New("nothing was sent by either side for the idle time")

// A Counter is what a session has moved. Its zero value is ready; it is safe
// for concurrent use.
type Counter struct {
	ToPlatform, ToDevice atomic.Uint64 // bytes that the kernel took for the other side
	last                 atomic.Int64  // Unix time in nanoseconds of the last of them
}

// Last is when bytes moved last, the zero time where none did.
func (c *Counter) Last() time.Time {
	if ns := c.last.Load(); ns != 0 {
		return time.Unix(0, ns)
	}
	return time.Time{}
}

// A Relay joins connections. New makes it; it is safe for concurrent use.
type Relay struct {
	pipes pipes
	next  atomic.Uint64 // numbers flows

	mu     sync.Mutex
	loops  []*loop // made for the first flow
	closed bool
}

// New makes a relay. Close ends it.
func New() *Relay { return &Relay{} }

// Close ends the loops and closes the pipes that are kept. No flow may be left.
func (r *Relay) Close() {
	r.mu.Lock()
	r.closed = true
	loops := r.loops
	r.mu.Unlock()
	for _, l := range loops {
		l.close()
	}
	r.pipes.close()
}

// loopFor gives the flows to the loops in turn, one loop for each processor.
func (r *Relay) loopFor(number uint64) (*loop, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, net.ErrClosed
	}
	for len(r.loops) < runtime.GOMAXPROCS(0) {
		l, err := newLoop()
		if err != nil {
			return nil, fmt.Errorf("no descriptor for the sessions: %w; raise the limit of open files (LimitNOFILE), or lower the one of sessions (max_sessions)", err)
		}
		r.loops = append(r.loops, l)
	}
	return r.loops[number%uint64(len(r.loops))], nil
}

// The sides of a flow.
const (
	device = iota
	platform
)

var sides = [2]string{device: "device", platform: "platform"}

// A Flow is two connections that are joined.
type Flow struct {
	number uint64
	relay  *Relay
	loop   *loop
	idle   time.Duration
	moved  *Counter
	done   func(error)

	mu   sync.Mutex
	fd   [2]int
	ways [2]way // by the side that they come from
	cut  error  // Cut was called with it
	over bool
}

// A way is one of the two directions.
type way struct {
	readable, writable bool  // as far as is known; splice tells
	pipe               *pipe // while there are bytes in it
	held               int
	ended              bool // the source has ended and the sink was told, or the sink is gone
}

// Begin takes two connections and carries bytes both ways until both sides have
// ended theirs, one fails, nothing came either way for the idle time, or Cut.
// Then both are closed and done is called, once and from another goroutine, with
// nil where both ended in good order, ErrIdle, what happened at which side, or
// what Cut was given. A side that has ended its direction may close altogether,
// and want nothing of what the other still sends: that is good order too. One
// that breaks off before is syscall.ECONNRESET. The connections are the relay's from here on; also with an
// error, which calls nothing, they are closed.
func (r *Relay) Begin(deviceConn, platformConn *net.TCPConn, idle time.Duration, n *Counter, done func(error)) (*Flow, error) {
	f := &Flow{number: r.next.Add(1), relay: r, idle: idle, moved: n, done: done}
	var err error
	for side, c := range []*net.TCPConn{device: deviceConn, platform: platformConn} {
		taken, failed := take(c)
		f.fd[side], err = taken, errors.Join(err, failed)
	}
	if err == nil {
		f.loop, err = r.loopFor(f.number)
	}
	if err == nil {
		n.last.Store(time.Now().UnixNano())
		err = f.loop.add(f)
	}
	if err != nil {
		f.close()
		return nil, err
	}
	return f, nil
}

// take gives the descriptor of a connection to us alone: package net would watch
// it as well. The copy does not block, as the original did not.
func take(c *net.TCPConn) (fd int, err error) {
	defer c.Close()
	raw, err := c.SyscallConn()
	if err != nil {
		return -1, err
	}
	fd = -1
	var failed error
	if err = raw.Control(func(original uintptr) { fd, failed = unix.FcntlInt(original, unix.F_DUPFD_CLOEXEC, 3) }); err == nil {
		err = failed
	}
	if err != nil {
		return -1, fmt.Errorf("no descriptor for the session: %w; raise the limit of open files (LimitNOFILE), or lower the one of sessions (max_sessions)", err)
	}
	return fd, nil
}

// Cut ends the flow, with this for done. It does not wait.
func (f *Flow) Cut(why error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.over || f.cut != nil {
		return
	}
	f.cut = why
	for _, fd := range f.fd {
		_ = unix.Shutdown(fd, unix.SHUT_RDWR) // the loop hears of it, and closes
	}
}

// Pending reports whether bytes are on their way to a receiver that has not
// taken them yet: in the pipes here, or in the buffers of a socket.
func (f *Flow) Pending() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.over {
		return false
	}
	for side, fd := range f.fd {
		unacknowledged, err := unix.IoctlGetInt(fd, unix.SIOCOUTQ)
		if f.ways[side].held > 0 || err == nil && unacknowledged > 0 {
			return true
		}
	}
	return false
}

// turns is how many chunks a flow moves before the next one has its turn.
const turns = 16

// pump moves what can be moved. It reports whether there is more, and whether the
// flow is over with what it ended with.
func (f *Flow) pump() (more, over bool, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.over {
		return false, false, nil
	}
	for range turns {
		if f.cut != nil {
			return f.end(f.cut)
		}
		up, err := f.step(device)
		if err != nil {
			return f.end(err)
		}
		down, err := f.step(platform)
		if err != nil {
			return f.end(err)
		}
		if f.ways[device].ended && f.ways[platform].ended {
			return f.end(nil)
		}
		if !up && !down {
			return false, false, nil
		}
	}
	return true, false, nil
}

func (f *Flow) end(err error) (more, over bool, _ error) {
	f.over = true
	f.close()
	return false, true, err
}

// close closes what is open. Nothing else uses it any more.
func (f *Flow) close() {
	for i := range f.ways {
		if p := f.ways[i].pipe; p != nil {
			f.relay.pipes.drop(p)
			f.ways[i].pipe = nil
		}
	}
	for _, fd := range f.fd {
		if fd >= 0 {
			_ = unix.Close(fd) // it cannot fail for a reason
		}
	}
}

// step moves a chunk from a side, as far as it goes. It reports whether it got
// anywhere.
func (f *Flow) step(from int) (bool, error) {
	w := &f.ways[from]
	progress := false
	if !w.ended && w.held == 0 && w.readable {
		if err := f.fill(from, w); err != nil {
			return false, err
		}
		progress = w.held > 0 || w.ended
	}
	if w.held > 0 && f.ways[1-from].writable {
		moved, err := f.pour(1-from, w)
		if err != nil {
			return false, err
		}
		if moved > 0 {
			f.count(from, moved)
			progress = true
		}
	}
	return progress, nil
}

// fill takes what has come into a pipe. At the end of the source, the sink is told.
func (f *Flow) fill(from int, w *way) (err error) {
	if w.pipe, err = f.relay.pipes.get(); err != nil {
		return describe("from", from, err)
	}
	n, err := splice(f.fd[from], w.pipe.in, w.pipe.size)
	if n > 0 {
		w.held = n
		return nil
	}
	f.relay.pipes.put(w.pipe) // it is empty
	w.pipe = nil
	switch {
	case err == unix.EAGAIN:
		w.readable = false
		return nil
	case err != nil:
		return describe("from", from, err)
	}
	w.ended = true
	if err := unix.Shutdown(f.fd[1-from], unix.SHUT_WR); err != nil && err != unix.ENOTCONN {
		return describe("to", 1-from, err)
	}
	return nil
}

// pour moves what is in the pipe on.
func (f *Flow) pour(to int, w *way) (int, error) {
	n, err := splice(w.pipe.out, f.fd[to], w.held)
	switch err {
	case nil:
	case unix.EAGAIN:
		f.ways[to].writable = false
		return 0, nil
	case unix.EPIPE:
		// It was reset after its FIN had come (tcp_reset of the kernel); without
		// that it is ECONNRESET.
		f.gone(to)
		return 0, nil
	default:
		return 0, describe("to", to, err)
	}
	if w.held -= n; w.held == 0 {
		f.relay.pipes.put(w.pipe)
		w.pipe = nil
	}
	return n, nil
}

// gone is that a side takes nothing any more. What it has sent still goes on.
func (f *Flow) gone(side int) {
	w := &f.ways[1-side]
	if w.pipe != nil {
		f.relay.pipes.drop(w.pipe)
	}
	w.pipe, w.held, w.ended = nil, 0, true
}

func (f *Flow) count(from, n int) {
	f.moved.last.Store(time.Now().UnixNano())
	if from == device {
		f.moved.ToPlatform.Add(uint64(n))
	} else {
		f.moved.ToDevice.Add(uint64(n))
	}
}

func describe(way string, side int, err error) error {
	return fmt.Errorf("%s the %s: %w", way, sides[side], err)
}

func splice(from, to, most int) (int, error) {
	for {
		n, err := unix.Splice(from, nil, to, nil, most, unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
		if err != unix.EINTR {
			return max(int(n), 0), err
		}
	}
}
