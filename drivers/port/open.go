package port

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync/atomic"
	"time"
)

// The bounds of what may block.
const (
	dialTimeout  = 10 * time.Second
	writeTimeout = 2 * time.Second // plus, on a serial line, the time that the bytes take
)

// A ReadStopper is a port whose reading can be ended while writing goes on, so
// that a session which ends can still say goodbye. Those that Spec.Open gives are.
type ReadStopper interface {
	// StopReading ends the ReadBefore that waits and all later ones with
	// os.ErrDeadlineExceeded. It may be called from anywhere.
	StopReading()
}

// stream is what files and sockets of the operating system have in common.
type stream interface {
	io.ReadWriteCloser
	SetReadDeadline(time.Time) error
	SetWriteDeadline(time.Time) error
}

// conn is a port on a file or socket that the runtime polls: deadlines hold for
// both ways, and Close ends both at once.
type conn struct {
	stream
	name      string
	datagrams bool
	perByte   time.Duration // how long a byte takes on the line
	stuck     func()        // forgets what a failed write left behind
	stopped   atomic.Bool
}

func (c *conn) Datagrams() bool { return c.datagrams }

// HasLine is as Liner says.
func (c *conn) HasLine() bool { return c.perByte != 0 }

// ReadBefore is as Port says. A datagram without bytes is passed over.
func (c *conn) ReadBefore(p []byte, deadline time.Time) (int, error) {
	for {
		if err := c.SetReadDeadline(deadline); err != nil {
			return 0, c.wrap("read", err)
		}
		// Only now: StopReading may have come before the deadline was set.
		if c.stopped.Load() {
			return 0, os.ErrDeadlineExceeded
		}
		n, err := c.Read(p)
		switch {
		case n > 0:
			return n, nil
		case errors.Is(err, os.ErrDeadlineExceeded):
			return 0, os.ErrDeadlineExceeded
		case err != nil:
			return 0, c.wrap("read", err)
		case !c.datagrams:
			return 0, c.wrap("read", io.EOF)
		}
	}
}

// StopReading is as ReadStopper says.
func (c *conn) StopReading() {
	c.stopped.Store(true)
	_ = c.SetReadDeadline(time.Unix(1, 0)) // fails only on a closed port, whose reads fail anyway
}

// Write writes all of p, or fails within two seconds and the time that p takes
// on the line.
func (c *conn) Write(p []byte) (int, error) {
	if err := c.SetWriteDeadline(time.Now().Add(writeTimeout + time.Duration(len(p))*c.perByte)); err != nil {
		return 0, c.wrap("write", err)
	}
	n, err := c.stream.Write(p)
	if err != nil {
		if c.stuck != nil {
			c.stuck()
		}
		return n, c.wrap("write", err)
	}
	return n, nil
}

func (c *conn) wrap(what string, err error) error {
	switch {
	case errors.Is(err, io.EOF) && c.perByte != 0:
		return fmt.Errorf("%s: the line was hung up; is the adapter still plugged in? (%w)", c.name, err)
	case errors.Is(err, io.EOF):
		return fmt.Errorf("%s: the other end closed the connection (%w)", c.name, err)
	case errors.Is(err, os.ErrClosed) || errors.Is(err, net.ErrClosed):
		return fmt.Errorf("%s: %w", c.name, os.ErrClosed)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("%s: the other end takes no bytes: %w", c.name, err)
	}
	return fmt.Errorf("%s: cannot %s: %w", c.name, what, cause(err))
}

// cause leaves out the layers that repeat the name of the port.
func cause(err error) error {
	var file *os.PathError
	var sock *net.OpError
	switch {
	case errors.As(err, &file):
		return file.Err
	case errors.As(err, &sock):
		return sock.Err
	}
	return err
}

// dial connects to a serial server, or a UDP socket to one device: the kernel
// then passes on only what comes from there.
func (s Spec) dial(ctx context.Context, network string) (Port, error) {
	d := net.Dialer{
		Timeout: dialTimeout,
		// A serial server that lost power is noticed within 30 s.
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 3},
	}
	c, err := d.DialContext(ctx, network, s.address())
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, fmt.Errorf("%s cannot be reached: %w; check the address, the cable and the VLAN of the port", s, cause(err))
	}
	return &conn{stream: c, name: s.String(), datagrams: s.Kind == UDP}, nil
}
