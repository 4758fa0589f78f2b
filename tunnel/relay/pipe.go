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

// Few pipes are large, for throughput; the others are small, so that many
// receivers that do not read keep little in the kernel beside the buffers of
// their sockets: 16 MiB, and 64 KiB for each beyond the first sixteen.
const (
	largePipe = 1 << 20
	smallPipe = 64 << 10
	maxLarge  = 16
	maxFree   = 16
)

// pipes are those that are empty and not in use.
type pipes struct {
	mu     sync.Mutex
	free   []*pipe
	large  int // of all that are open
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
	size := smallPipe
	if p.large < maxLarge {
		size = largePipe
	}
	one, err := newPipe(size)
	if err == nil && size == largePipe {
		p.large++
	}
	return one, err
}

func newPipe(size int) (*pipe, error) {
	var fd [2]int
	if err := unix.Pipe2(fd[:], unix.O_NONBLOCK|unix.O_CLOEXEC); err != nil {
		return nil, fmt.Errorf("no pipe for the bytes of a session: %w; raise the limit of open files (LimitNOFILE), or lower the one of sessions (max_sessions)", err)
	}
	// Where it fails the kernel's own size does: users without privilege have a
	// limit (pipe(7), /proc/sys/fs/pipe-user-pages-soft).
	_, _ = unix.FcntlInt(uintptr(fd[1]), unix.F_SETPIPE_SZ, size)
	return &pipe{in: fd[1], out: fd[0], size: size}, nil
}

// put takes an empty pipe back. A large one is always kept.
func (p *pipes) put(one *pipe) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || len(p.free) >= maxFree && one.size != largePipe {
		p.shut(one)
		return
	}
	p.free = append(p.free, one)
}

// drop closes a pipe with bytes in it that nobody will have.
func (p *pipes) drop(one *pipe) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.shut(one)
}

func (p *pipes) shut(one *pipe) {
	if one.size == largePipe {
		p.large--
	}
	// Nobody waits on them and nothing is written back: it cannot fail for a reason.
	_ = unix.Close(one.in)
	_ = unix.Close(one.out)
}

func (p *pipes) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	for _, one := range p.free {
		p.shut(one)
	}
	p.free = nil
}
