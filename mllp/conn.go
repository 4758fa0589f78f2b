package mllp

import (
	"net"
	"time"
)

// A Conn moves blocks over a connection. One goroutine may read while another
// one writes. After an error it can only be closed.
type Conn struct {
	conn net.Conn
	in   *Reader
	out  []byte
}

// NewConn reads blocks of up to max bytes from conn.
func NewConn(conn net.Conn, max int) *Conn { return &Conn{conn: conn, in: NewReader(conn, max)} }

// Reader is the reading half, for its counts and options.
func (c *Conn) Reader() *Reader { return c.in }

// Wait returns when the peer has begun to send or has closed. The zero
// deadline is never.
func (c *Conn) Wait(deadline time.Time) error {
	if err := c.conn.SetReadDeadline(deadline); err != nil {
		return err
	}
	return c.in.Wait()
}

// ReadBlock reads one block, all of it before the deadline: a peer that sends
// a byte now and then gets no more time. The message is only borrowed.
func (c *Conn) ReadBlock(deadline time.Time) ([]byte, error) {
	if err := c.conn.SetReadDeadline(deadline); err != nil {
		return nil, err
	}
	return c.in.ReadBlock()
}

// WriteBlock writes message in its frame by a single write: peers are known
// that cannot read a start byte in a packet of its own. A message that Check
// refuses is not written.
func (c *Conn) WriteBlock(message []byte, deadline time.Time) error {
	block, err := AppendBlock(c.out[:0], message)
	if err != nil {
		return err
	}
	c.out = block
	if err := c.conn.SetWriteDeadline(deadline); err != nil {
		return err
	}
	_, err = c.conn.Write(block)
	return err
}

// Close closes the connection; a read or write that is under way ends.
func (c *Conn) Close() error { return c.conn.Close() }
