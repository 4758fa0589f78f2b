package sim

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// A PTY is a serial line on a pseudo terminal with a stable name: the device
// reads and writes here, the gateway opens the name. Pulling the plug takes the
// name away and hangs the line up; plugging in again brings another terminal
// under the same name, as a USB adapter would.
type PTY struct {
	link string

	mu     sync.Mutex
	pair   *pair         // nil while unplugged
	change chan struct{} // closed at each change of pair
	closed bool
}

// A pair is one pseudo terminal. The device end keeps the other end open as
// well, so that its own reads do not fail while no gateway has it open.
type pair struct{ device, gateway *os.File }

// OpenPTY makes a pseudo terminal in raw mode and a symbolic link to it. An
// older symbolic link is replaced; anything else of that name is an error.
func OpenPTY(link string) (*PTY, error) {
	p := &PTY{link: link, change: make(chan struct{})}
	if err := p.Plug(); err != nil {
		return nil, err
	}
	return p, nil
}

// Name is the name for the gateway to open.
func (p *PTY) Name() string { return p.link }

// Plug makes a new terminal under the old name. It does nothing while plugged in.
func (p *PTY) Plug() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return fs.ErrClosed
	}
	if p.pair != nil {
		return nil
	}
	pair, name, err := openPair()
	if err != nil {
		return fmt.Errorf("pseudo terminal: %w", err)
	}
	if err := replaceLink(name, p.link); err != nil {
		pair.close()
		return err
	}
	p.set(pair)
	return nil
}

// Unplug takes the name away and hangs up. It does nothing while unplugged.
func (p *PTY) Unplug() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.unplug()
}

func (p *PTY) unplug() error {
	if p.pair == nil {
		return nil
	}
	err := os.Remove(p.link)
	p.pair.close()
	p.set(nil)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// set changes the pair and wakes whoever waits for that.
func (p *PTY) set(pair *pair) {
	p.pair = pair
	close(p.change)
	p.change = make(chan struct{})
}

// Close unplugs for good.
func (p *PTY) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil
	}
	p.closed = true
	if p.pair == nil {
		p.set(nil)
		return nil
	}
	return p.unplug()
}

func (p *PTY) state() (*pair, <-chan struct{}, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.pair, p.change, p.closed
}

// Read reads what the gateway wrote. While unplugged it waits; after Close it
// gives io.EOF.
func (p *PTY) Read(b []byte) (int, error) {
	for {
		pair, change, closed := p.state()
		if closed {
			return 0, io.EOF
		}
		if pair == nil {
			<-change
			continue
		}
		n, err := pair.device.Read(b)
		if n > 0 || err == nil {
			return n, nil
		}
		if now, _, _ := p.state(); now == pair {
			return 0, err // not because of Unplug
		}
	}
}

// writePatience is for how long the device waits for a line that nobody reads.
// A serial line has no memory: what is not taken is lost.
const writePatience = 200 * time.Millisecond

// ErrLost is the error of a Write to a line that is unplugged or that nobody
// reads. The line goes on, as a wire does.
var ErrLost = errors.New("nobody takes what the device sends")

// Write writes to the gateway. What is not taken is lost, with ErrLost.
func (p *PTY) Write(b []byte) (int, error) {
	pair, _, closed := p.state()
	switch {
	case closed:
		return 0, io.ErrClosedPipe
	case pair == nil:
		return 0, ErrLost
	}
	if err := pair.device.SetWriteDeadline(time.Now().Add(writePatience)); err != nil {
		return 0, ErrLost // closed by Unplug right now
	}
	n, err := pair.device.Write(b)
	if err == nil {
		return n, nil
	}
	if now, _, _ := p.state(); now != pair || errors.Is(err, os.ErrDeadlineExceeded) {
		return n, ErrLost
	}
	return n, err
}

func (p *pair) close() {
	p.gateway.Close()
	p.device.Close()
}

// openPair opens a pseudo terminal in raw mode and returns its name. The
// device end is not blocking, so that closing it ends a read.
func openPair() (*pair, string, error) {
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, "", &os.PathError{Op: "open", Path: "/dev/ptmx", Err: err}
	}
	device := os.NewFile(uintptr(fd), "/dev/ptmx")
	name, err := unlock(fd)
	if err != nil {
		device.Close()
		return nil, "", err
	}
	gateway, err := os.OpenFile(name, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		device.Close()
		return nil, "", err
	}
	p := &pair{device, gateway}
	if err := makeRaw(fd); err != nil {
		p.close()
		return nil, "", err
	}
	return p, name, nil
}

// unlock makes the other end of a terminal available and returns its name.
func unlock(fd int) (string, error) {
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		return "", fmt.Errorf("unlocking: %w", err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		return "", fmt.Errorf("number: %w", err)
	}
	return fmt.Sprintf("/dev/pts/%d", n), nil
}

// makeRaw turns off all that a terminal does with bytes: echo, lines, signals,
// translations (cfmakeraw of termios(3)).
func makeRaw(fd int) error {
	t, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return fmt.Errorf("terminal settings: %w", err)
	}
	t.Iflag &^= unix.IGNBRK | unix.BRKINT | unix.PARMRK | unix.ISTRIP | unix.INLCR | unix.IGNCR | unix.ICRNL | unix.IXON
	t.Oflag &^= unix.OPOST
	t.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
	t.Cflag = t.Cflag&^(unix.CSIZE|unix.PARENB|unix.CBAUD) | unix.CS8 | unix.B115200
	t.Cc[unix.VMIN], t.Cc[unix.VTIME] = 1, 0
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, t); err != nil {
		return fmt.Errorf("terminal settings: %w", err)
	}
	return nil
}

// replaceLink points link to name at once, so that nobody sees it missing.
func replaceLink(name, link string) error {
	if info, err := os.Lstat(link); err == nil && info.Mode()&fs.ModeSymlink == 0 {
		return fmt.Errorf("pseudo terminal %s: there is something of that name that is no symbolic link; move it away", link)
	}
	dir, err := os.MkdirTemp(filepath.Dir(link), ".pty-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	fresh := filepath.Join(dir, "link")
	if err := os.Symlink(name, fresh); err != nil {
		return err
	}
	return os.Rename(fresh, link)
}
