package port

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"go.bug.st/serial"
	"golang.org/x/sys/unix"
)

// openSerial opens a serial line for this process alone.
//
// The serial package sets the line; the bytes then go through a file of our
// own, because its ports have no deadline for writes, and closing one does not
// end a write that waits. The settings are of the device and outlive the
// descriptor that made them for as long as another one is open.
func (s Spec) openSerial(line Line) (_ Port, err error) {
	mode, err := line.mode()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", s, err)
	}
	f, err := os.OpenFile(s.Path, os.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, s.explain(cause(err))
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	// The lock keeps out programs that ask, even those of root; TIOCEXCL below
	// keeps out all others.
	if err := control(f, func(fd int) error { return unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) }); err != nil {
		return nil, s.explain(err)
	}
	p, err := serial.Open(s.Path, mode)
	if err != nil {
		return nil, s.explainMode(line, err)
	}
	if err := p.Close(); err != nil {
		return nil, fmt.Errorf("%s: cannot set the line: %w", s, err)
	}
	if err := control(f, func(fd int) error { return unix.IoctlSetInt(fd, unix.TIOCEXCL, 0) }); err != nil {
		return nil, fmt.Errorf("%s: cannot have the port alone: %w", s, err)
	}
	if err := f.SetDeadline(time.Time{}); err != nil {
		return nil, fmt.Errorf("%s: %w", s, err)
	}
	flush := func() {
		// Else close(2) waits up to 30 s for bytes that nobody takes.
		_ = control(f, func(fd int) error { return unix.IoctlSetInt(fd, unix.TCFLSH, unix.TCOFLUSH) })
	}
	return &conn{stream: f, name: s.Path, perByte: line.perByte(), stuck: flush}, nil
}

// control calls f with the descriptor of a file, which stays with the poller.
func control(file *os.File, f func(fd int) error) error {
	c, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var ferr error
	if err := c.Control(func(fd uintptr) { ferr = f(int(fd)) }); err != nil {
		return err
	}
	return ferr
}

func (l Line) mode() (*serial.Mode, error) {
	if _, err := ParseLine(l.String()); err != nil {
		return nil, err
	}
	m := &serial.Mode{BaudRate: l.Baud, DataBits: l.DataBits}
	switch l.Parity {
	case Even:
		m.Parity = serial.EvenParity
	case Odd:
		m.Parity = serial.OddParity
	}
	if l.StopBits == 2 {
		m.StopBits = serial.TwoStopBits
	}
	return m, nil
}

// perByte is how long a byte takes: start bit, data, parity, stop bits.
func (l Line) perByte() time.Duration {
	bits := 1 + l.DataBits + l.StopBits
	if l.Parity != None {
		bits++
	}
	return time.Duration(bits) * time.Second / time.Duration(l.Baud)
}

// explain puts an error of opening in the words of who stands at the box.
func (s Spec) explain(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ENODEV):
		return fmt.Errorf("serial port %s is not there (%w): %s", s, err, s.whatIsThere())
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("no permission to open %s (%w): add the user of gatewayd to the group dialout "+
			"(SupplementaryGroups=dialout in the unit), or see whose the file is with ls -l", s, err)
	case errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EWOULDBLOCK):
		return fmt.Errorf("%s is in use by another program (%w): end it, or see which with fuser %s", s, err, s.Path)
	}
	return fmt.Errorf("cannot open %s: %w", s, err)
}

func (s Spec) explainMode(line Line, err error) error {
	var perr *serial.PortError
	if !errors.As(err, &perr) {
		return s.explain(err)
	}
	switch perr.Code() {
	case serial.PortBusy:
		return s.explain(unix.EBUSY)
	case serial.PermissionDenied:
		return s.explain(fs.ErrPermission)
	case serial.InvalidSerialPort:
		return fmt.Errorf("%s is no serial port (%w)", s, err)
	}
	return fmt.Errorf("%s cannot do %s: %w", s, line, err)
}

// whatIsThere says which serial ports there are instead, the likeliest first.
func (s Spec) whatIsThere() string {
	names := s.stableNames()
	if len(names) == 0 {
		return "no USB serial adapter is plugged in"
	}
	// Another socket, or another adapter, has a name that begins alike.
	slices.SortStableFunc(names, func(a, b string) int { return alike(b, s.Path) - alike(a, s.Path) })
	if len(names) > 4 {
		names = append(names[:4], "…")
	}
	return "plug in the adapter, or name one that is there: " + strings.Join(names, ", ")
}

func alike(a, b string) (n int) {
	for n < len(a) && n < len(b) && a[n] == b[n] {
		n++
	}
	return n
}

// stableNames are the names of serial ports that stay when adapters are replugged.
func (s Spec) stableNames() []string {
	dev := s.dev
	if dev == "" {
		dev = "/dev"
	}
	names, _ := filepath.Glob(dev + "/serial/by-*/*") // fails only for a bad pattern
	return names
}

// Warning says what is wrong with a name that can be used all the same, or
// nothing: /dev/ttyUSB0 can be another adapter after a restart.
func (s Spec) Warning() string {
	if s.Kind != Serial || strings.Contains(s.Path, "/serial/by-") {
		return ""
	}
	text := fmt.Sprintf("%s may be another adapter after a restart or a replug", s.Path)
	file, err := filepath.EvalSymlinks(s.Path)
	if err != nil {
		return text + ": use a name below /dev/serial/by-path"
	}
	for _, name := range s.stableNames() {
		if target, err := filepath.EvalSymlinks(name); err == nil && target == file {
			return text + ": use " + name
		}
	}
	return text + ", and no name below /dev/serial leads to it"
}
