package tpm

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/google/go-tpm/tpm2"
)

// A Conn carries commands and responses: a device or a socket.
type Conn interface {
	io.ReadWriteCloser
	SetDeadline(time.Time) error
}

// The sizes of TPM 2.0 Part 2 and Part 3: a header is tag, size and code.
const (
	headerSize  = 10
	maxResponse = 4096
)

// ParseAddress says what is wrong with an address of a TPM, or nothing.
func ParseAddress(address string) error {
	kind, rest, _ := strings.Cut(address, ":")
	switch {
	case strings.HasPrefix(address, "/"):
		return nil
	case kind == "unix" && strings.HasPrefix(rest, "/"):
		return nil
	case kind == "tcp":
		if _, port, err := net.SplitHostPort(rest); err == nil && port != "" {
			return nil
		}
	}
	return fmt.Errorf("%q is no address of a TPM: write a device such as %s, unix:/PATH or tcp:HOST:PORT", address, DefaultAddress)
}

// isRaw reports whether nobody manages what is loaded in the TPM for us.
func isRaw(address string) bool { return !strings.Contains(address, "tpmrm") }

// Dial reaches the TPM at an address. The device is opened so that a deadline
// works: the kernel has poll for it since 4.20.
func Dial(ctx context.Context, address string) (Conn, error) {
	if err := ParseAddress(address); err != nil {
		return nil, err
	}
	if kind, rest, ok := strings.Cut(address, ":"); ok && !strings.HasPrefix(address, "/") {
		var d net.Dialer
		c, err := d.DialContext(ctx, kind, rest)
		return c, err
	}
	f, err := os.OpenFile(address, os.O_RDWR|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if info, err := f.Stat(); err != nil || info.Mode()&os.ModeCharDevice == 0 {
		return nil, errors.Join(&faultError{Absent, fmt.Sprintf("%s is no TPM device", address)}, err, f.Close())
	}
	return f, nil
}

// A transportError is a TPM that does not answer as the specification has it:
// what it is doing is not known.
type transportError struct{ err error }

func (e *transportError) Error() string { return e.err.Error() }
func (e *transportError) Unwrap() error { return e.err }

func isDead(err error) bool {
	_, dead := errors.AsType[*transportError](err)
	return dead
}

// Send is a command and its response, for package tpm2. A TPM that asks to try
// again is asked again until the deadline: it has not begun the command
// (TPM 2.0 Part 2, 6.6.3, warnings).
func (l *link) Send(command []byte) ([]byte, error) {
	limit := l.o.Command
	if slow(command) {
		limit *= 15
	}
	if d, ok := l.ctx.Deadline(); ok {
		limit = min(limit, time.Until(d).Round(time.Millisecond))
	}
	deadline := time.Now().Add(limit)
	for wait := 2 * time.Millisecond; ; wait = min(2*wait, 500*time.Millisecond) {
		response, err := l.exchange(deadline, command)
		if errors.Is(err, syscall.ENOMEM) { // the resource manager has no room, and says it in its own way
			return nil, tpm2.TPMRCMemory
		}
		if err != nil {
			l.broken = true
			return nil, &transportError{l.silence(limit, err)}
		}
		if !later(response) || time.Until(deadline) < wait {
			return response, nil // which may say that it is busy
		}
		select {
		case <-time.After(wait):
		case <-l.ctx.Done():
			return response, nil
		}
	}
}

// errSilent is a TPM that does not answer in time.
var errSilent = errors.New("it does not answer")

// silence is the error of an exchange that ended because its time did.
func (l *link) silence(limit time.Duration, err error) error {
	switch {
	case errors.Is(l.ctx.Err(), context.Canceled):
		return context.Cause(l.ctx)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("%w within %v", errSilent, limit)
	}
	return err
}

// slow are the commands that make a key.
func slow(command []byte) bool {
	if len(command) < headerSize {
		return false
	}
	cc := tpm2.TPMCC(binary.BigEndian.Uint32(command[6:]))
	return cc == tpm2.TPMCCCreate || cc == tpm2.TPMCCCreatePrimary
}

func later(response []byte) bool {
	switch tpm2.TPMRC(binary.BigEndian.Uint32(response[6:])) {
	case tpm2.TPMRCRetry, tpm2.TPMRCYielded, tpm2.TPMRCTesting, tpm2.TPMRCNVRate:
		return true
	}
	return false
}

// exchange waits for the answer no longer than until the deadline or the end of
// the context. What comes after that is nobody's, and the link is of no use any
// more.
func (l *link) exchange(deadline time.Time, command []byte) ([]byte, error) {
	if l.broken {
		return nil, io.ErrClosedPipe
	}
	if err := l.conn.SetDeadline(deadline); err != nil {
		return nil, &faultError{Absent, fmt.Sprintf("nobody can wait for it (%v): it is no TPM, or the kernel is older than 4.20", err)}
	}
	if _, socket := l.conn.(net.Conn); socket {
		defer cutOff(l.ctx, l.conn)()
		return transfer(l.conn, command)
	}
	return l.delegate(deadline, command)
}

// delegate has somebody else read the answer: the kernel has a reader of a device
// wait for the command that is under way, deadline or not.
func (l *link) delegate(deadline time.Time, command []byte) ([]byte, error) {
	var response []byte
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		response, err = transfer(l.conn, command)
	}()
	timer := time.NewTimer(time.Until(deadline))
	defer timer.Stop()
	select {
	case <-done:
		return response, err
	case <-timer.C:
	case <-l.ctx.Done():
	}
	_ = l.conn.SetDeadline(time.Unix(1, 0))
	return nil, os.ErrDeadlineExceeded
}

// cutOff ends what is under way on the connection when the context ends. When
// the function that it gives has returned, that will not happen any more.
func cutOff(ctx context.Context, c Conn) (stop func()) {
	done := make(chan struct{})
	cancel := context.AfterFunc(ctx, func() {
		_ = c.SetDeadline(time.Unix(1, 0))
		close(done)
	})
	return func() {
		if !cancel() {
			<-done
		}
	}
}

func transfer(c Conn, command []byte) ([]byte, error) {
	if _, err := c.Write(command); err != nil {
		return nil, err
	}
	response := make([]byte, maxResponse)
	n, err := io.ReadAtLeast(c, response, headerSize)
	if err != nil {
		return nil, unexpected(err)
	}
	size := int(binary.BigEndian.Uint32(response[2:]))
	if size < headerSize || size > maxResponse || n > size {
		return nil, fmt.Errorf("its response claims %d bytes and has %d", size, n)
	}
	if _, err := io.ReadFull(c, response[n:size]); err != nil {
		return nil, unexpected(err)
	}
	return response[:size], nil
}

func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
