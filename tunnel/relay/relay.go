// Package relay carries the bytes of a session between a device and a platform
// inside the kernel, by splice(2): they never come into this process, and
// nobody here can read them.
//
// It counts bytes, ends sessions that are idle, and passes on the end of each
// direction by itself, so that half-closed connections work. It reads no
// protocol and opens no connection. Package tunnel calls it once a session may flow.
//
// Package net would splice too, but each direction would hold a pipe of two
// descriptors while it waits, and tell what it moved only at the end. Here a
// pipe is held only while there are bytes in it: an idle session is two
// sockets and two goroutines.
package relay

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ErrIdle is the end of a session over which nothing came for too long.
var ErrIdle = errors.New("nothing was sent by either side for too long")

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
}

// New makes a relay that keeps its pipes for the next bytes. Close ends it.
func New() *Relay { return &Relay{} }

// Close closes the pipes that are kept. Those in use are closed by their users.
func (r *Relay) Close() { r.pipes.close() }

// Join carries bytes both ways until both sides have ended theirs, one fails,
// or nothing came either way for the idle time; then both connections are
// closed. The result is nil where both ended in good order, ErrIdle, or what
// happened at which side. Closing a connection from outside ends it too.
func (r *Relay) Join(device, platform *net.TCPConn, idle time.Duration, n *Counter) error {
	defer device.Close()
	defer platform.Close()
	now := time.Now()
	n.last.Store(now.UnixNano())
	if err := errors.Join(device.SetDeadline(now.Add(idle)), platform.SetDeadline(now.Add(idle))); err != nil {
		return err
	}
	up, err := r.direction(device, platform, idle, n, &n.ToPlatform, "device", "platform")
	if err != nil {
		return err
	}
	down, err := r.direction(platform, device, idle, n, &n.ToDevice, "platform", "device")
	if err != nil {
		return err
	}
	other := make(chan error, 1)
	go func() { other <- down.run() }()
	err = up.run()
	if theirs := <-other; err == nil || errors.Is(err, net.ErrClosed) && theirs != nil {
		err = theirs // the direction that failed closed the other
	}
	return err
}

// A direction is one of the two ways through a session.
type direction struct {
	pipes      *pipes
	from, to   *net.TCPConn
	read       syscall.RawConn
	write      syscall.RawConn
	source     string // in texts
	sink       string
	idle       time.Duration
	session    *Counter
	moved      *atomic.Uint64
	fill, pour func(fd uintptr) bool // the methods, bound once and not for each chunk

	// Of the chunk under way.
	pipe *pipe
	held int // bytes in the pipe
	err  error
}

func (r *Relay) direction(from, to *net.TCPConn, idle time.Duration, n *Counter, moved *atomic.Uint64, source, sink string) (*direction, error) {
	d := &direction{pipes: &r.pipes, from: from, to: to, source: source, sink: sink, idle: idle, session: n, moved: moved}
	var err error
	if d.read, err = from.SyscallConn(); err != nil {
		return nil, fmt.Errorf("connection of the %s: %w", source, err)
	}
	if d.write, err = to.SyscallConn(); err != nil {
		return nil, fmt.Errorf("connection of the %s: %w", sink, err)
	}
	d.fill, d.pour = d.tryFill, d.tryPour
	return d, nil
}

// run moves chunks until the source ends. Where it fails, it ends the other direction too.
func (d *direction) run() error {
	err := d.chunks()
	if d.pipe != nil {
		d.pipes.drop(d.pipe)
		d.pipe = nil
	}
	if err == nil {
		if err = d.to.CloseWrite(); err != nil && !errors.Is(err, net.ErrClosed) {
			err = fmt.Errorf("to the %s: %w", d.sink, err)
		}
	}
	if err != nil {
		d.from.Close()
		d.to.Close()
	}
	return err
}

func (d *direction) chunks() error {
	for {
		if err := d.wait(d.read.Read, d.fill, d.from.SetReadDeadline); err != nil {
			return describe(err, "from", d.source)
		}
		if d.held == 0 {
			return nil
		}
		for d.held > 0 {
			if err := d.wait(d.write.Write, d.pour, d.to.SetWriteDeadline); err != nil {
				return describe(err, "to", d.sink)
			}
		}
		d.pipes.put(d.pipe)
		d.pipe = nil
	}
}

func describe(err error, way, side string) error {
	if errors.Is(err, ErrIdle) {
		return err
	}
	return fmt.Errorf("%s the %s: %w", way, side, err)
}

// wait runs a step when its descriptor is ready. The deadline is set only once
// in an idle time: when it strikes, it is seen whether anything moved since,
// either way.
func (d *direction) wait(ready func(func(uintptr) bool) error, step func(uintptr) bool, deadline func(time.Time) error) error {
	for {
		d.err = nil
		err := ready(step)
		if err == nil {
			return d.err
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return err
		}
		until := time.Unix(0, d.session.last.Load()).Add(d.idle)
		if !time.Now().Before(until) {
			return ErrIdle
		}
		if err := deadline(until); err != nil {
			return err
		}
	}
}

// tryFill moves what has come into a pipe. It reports false where nothing has,
// and then holds no pipe.
func (d *direction) tryFill(fd uintptr) bool {
	if d.pipe == nil {
		if d.pipe, d.err = d.pipes.get(); d.err != nil {
			return true
		}
	}
	d.held, d.err = splice(int(fd), d.pipe.in, d.pipe.size)
	if d.err != unix.EAGAIN && d.held > 0 {
		return true
	}
	d.pipes.put(d.pipe) // it is empty
	d.pipe = nil
	if d.err == unix.EAGAIN {
		d.err = nil
		return false
	}
	return true
}

// tryPour moves what is in the pipe on.
func (d *direction) tryPour(fd uintptr) bool {
	n, err := splice(d.pipe.out, int(fd), d.held)
	switch {
	case err == unix.EAGAIN:
		return false
	case err == nil && n == 0:
		err = io.ErrShortWrite // the pipe lost bytes: it cannot be
	}
	d.err = err
	d.held -= n
	d.moved.Add(uint64(n))
	d.session.last.Store(time.Now().UnixNano())
	return true
}

func splice(from, to, most int) (int, error) {
	for {
		n, err := unix.Splice(from, nil, to, nil, most, unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
		if err != unix.EINTR {
			return max(int(n), 0), err
		}
	}
}
