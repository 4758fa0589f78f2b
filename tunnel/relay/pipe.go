package relay

import (
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

// A pipe is where bytes are between two sockets.
type pipe struct {
	in, out int
	size    int // bytes that are asked for at once
}

const (
	// pipeSize bounds what a receiver that does not read keeps in the kernel
	// beside the buffers of its sockets.
	pipeSize = 256 << 10
	maxFree  = 16
)

// pipes are those that are empty and not in use.
type pipes struct {
	mu     sync.Mutex
	free   []*pipe
	closed bool
}

func (p *pipes) get() (*pipe, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n := len(p.free); n > 0 {
		one := p.free[n-1]
		p.free = p.free[:n-1]
		return one, nil
	}
	return newPipe()
}

func newPipe() (*pipe, error) {
	var fd [2]int
	if err := unix.Pipe2(fd[:], unix.O_NONBLOCK|unix.O_CLOEXEC); err != nil {
		return nil, fmt.Errorf("no pipe for the bytes of a session: %w; raise the limit of open files, or lower the one of connections", err)
	}
	// Where it fails the kernel's own size does: users without privilege have a
	// limit (pipe(7), /proc/sys/fs/pipe-user-pages-soft).
	_, _ = unix.FcntlInt(uintptr(fd[1]), unix.F_SETPIPE_SZ, pipeSize)
	return &pipe{in: fd[1], out: fd[0], size: pipeSize}, nil
}

// put takes an empty pipe back.
func (p *pipes) put(one *pipe) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || len(p.free) >= maxFree {
		one.close()
		return
	}
	p.free = append(p.free, one)
}

func (p *pipes) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	for _, one := range p.free {
		one.close()
	}
	p.free = nil
}

func (p *pipe) close() {
	// They are not waited on by anybody, and nothing is written back: close cannot fail for a reason.
	_ = unix.Close(p.in)
	_ = unix.Close(p.out)
}
