package relay

import (
	"errors"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A loop serves flows. It waits in the runtime's poller for its own epoll
// descriptor, so that it holds no thread while nothing happens.
type loop struct {
	epoll int
	file  *os.File
	raw   syscall.RawConn
	ended chan struct{}

	events [64]unix.EpollEvent
	found  int
	fault  error
	poll   func(fd uintptr) bool // the method, bound once
	again  []*Flow               // that have more to move
	turn   []*Flow               // of those, the ones whose turn it is

	mu    sync.Mutex
	flows map[uint64]*Flow
	look  time.Time // when the next flow may have been idle for too long; zero: never
}

func newLoop() (*loop, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, err
	}
	if err := unix.SetNonblock(fd, true); err != nil { // for os.NewFile: only such files wait in the poller
		return nil, errors.Join(err, unix.Close(fd))
	}
	l := &loop{epoll: fd, file: os.NewFile(uintptr(fd), "epoll"), ended: make(chan struct{}), flows: map[uint64]*Flow{}}
	l.poll = l.tryPoll
	if l.raw, err = l.file.SyscallConn(); err == nil {
		err = l.file.SetReadDeadline(time.Time{}) // fails where it is not in the poller
	}
	if err != nil {
		return nil, errors.Join(err, l.file.Close())
	}
	go l.run()
	return l, nil
}

func (l *loop) close() {
	l.file.Close()
	<-l.ended
}

// add has the loop serve a flow. Events come for each change of a descriptor's
// state (EPOLLET), the present one included.
func (l *loop) add(f *Flow) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.flows[f.number] = f
	for side, fd := range f.fd {
		e := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLRDHUP | unix.EPOLLET}
		tag(&e, f.number<<1|uint64(side))
		if err := unix.EpollCtl(l.epoll, unix.EPOLL_CTL_ADD, fd, &e); err != nil {
			delete(l.flows, f.number)
			return err
		}
	}
	l.lookAt(time.Now().Add(f.idle))
	return nil
}

// An event carries 64 bits of ours, in two halves.
func tag(e *unix.EpollEvent, v uint64) { e.Fd, e.Pad = int32(v), int32(v>>32) }

func tagOf(e *unix.EpollEvent) uint64 { return uint64(uint32(e.Fd)) | uint64(uint32(e.Pad))<<32 }

// lookAt brings the next look for idle flows forward, under the lock.
func (l *loop) lookAt(t time.Time) {
	if l.look.IsZero() || t.Before(l.look) {
		l.look = t
		_ = l.file.SetReadDeadline(t) // fails where the loop has ended
	}
}

func (l *loop) run() {
	defer close(l.ended)
	for {
		err := l.wait()
		switch {
		case err == nil:
		case errors.Is(err, os.ErrDeadlineExceeded):
			l.sweep(time.Now())
		default:
			return
		}
		for i := range l.found {
			l.handle(&l.events[i])
		}
		l.found = 0
		l.turn, l.again = l.again, l.turn[:0]
		for _, f := range l.turn {
			l.pump(f)
		}
		clear(l.turn) // what has ended is not held on to
	}
}

// wait waits for events; while flows have more to move it only looks for some.
func (l *loop) wait() error {
	l.found, l.fault = 0, nil
	if len(l.again) > 0 {
		l.tryPoll(uintptr(l.epoll))
		return l.fault
	}
	if err := l.raw.Read(l.poll); err != nil {
		return err
	}
	return l.fault
}

func (l *loop) tryPoll(fd uintptr) bool {
	for {
		n, err := unix.EpollWait(int(fd), l.events[:], 0)
		if err == unix.EINTR {
			continue
		}
		l.found, l.fault = max(n, 0), err
		return n > 0 || err != nil
	}
}

// handle notes what an event says, and moves what can be moved.
func (l *loop) handle(e *unix.EpollEvent) {
	number, side := tagOf(e)>>1, int(tagOf(e)&1)
	l.mu.Lock()
	f := l.flows[number]
	l.mu.Unlock()
	if f == nil {
		return // it ended meanwhile
	}
	f.mu.Lock()
	if !f.over {
		if e.Events&(unix.EPOLLIN|unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
			f.ways[side].readable = true
		}
		if e.Events&(unix.EPOLLOUT|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
			f.ways[side].writable = true
		}
		// A connection that fails after its side has ended is read no more.
		if e.Events&unix.EPOLLERR != 0 && f.ways[side].ended {
			f.fail(side)
		}
	}
	f.mu.Unlock()
	l.pump(f)
}

// fail asks what has happened to a side that has ended its direction: it may
// have closed altogether.
func (f *Flow) fail(side int) {
	code, err := unix.GetsockoptInt(f.fd[side], unix.SOL_SOCKET, unix.SO_ERROR)
	switch {
	case err != nil || code == 0:
	case syscall.Errno(code) == unix.EPIPE || syscall.Errno(code) == unix.ECONNRESET:
		f.gone(side)
	case f.cut == nil:
		f.cut = describe("to", side, syscall.Errno(code))
	}
}

func (l *loop) pump(f *Flow) {
	more, over, err := f.pump()
	switch {
	case over:
		l.forget(f)
		f.done(err)
	case more:
		l.again = append(l.again, f)
	}
}

func (l *loop) forget(f *Flow) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.flows, f.number)
}

// sweep ends the flows that were idle for too long, and sees when the next may be.
func (l *loop) sweep(now time.Time) {
	l.mu.Lock()
	var late []*Flow
	next := time.Time{}
	for _, f := range l.flows {
		until := f.moved.Last().Add(f.idle)
		if !now.Before(until) {
			late = append(late, f)
		} else if next.IsZero() || until.Before(next) {
			next = until
		}
	}
	l.look = time.Time{}
	_ = l.file.SetReadDeadline(time.Time{})
	if !next.IsZero() {
		l.lookAt(next)
	}
	l.mu.Unlock()
	for _, f := range late {
		f.Cut(ErrIdle)
		l.pump(f)
	}
}
