package southbound

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime/debug"
	"sync"
	"time"

	"github.com/bedside-gateway/gatewayd/mllp"
	"github.com/bedside-gateway/gatewayd/tlspolicy"
)

// Whoever is refused, or told good-bye, gets this much time and room to hear it.
const (
	lingerTime  = time.Second
	lingerBytes = 256 << 10
	writeTime   = 10 * time.Second
)

// A conn is one connection of a device.
type conn struct {
	s      *Server
	raw    net.Conn
	tls    *tls.Conn
	remote string
	since  time.Time

	// Guarded by book.mu.
	device   string
	admitted bool // the handshake is over
	messages uint64
	skipped  int
	last     time.Time

	mu       sync.Mutex
	idle     bool // waiting for a message to begin
	leaving  bool
	whyLeave error
}

var (
	errLeave   = errors.New("the gateway is shutting down")
	errNewer   = errors.New("the device has newer connections")
	errSlow    = errors.New("too many handshakes were under way and this was the oldest")
	errFull    = errors.New("too many connections")
	past       = time.Unix(1, 0)
	nextLimits = "see why so many connect; raise the limit if they all belong here"
)

// contain serves a connection, and keeps a fault of the program from the
// others. The value of the panic is not logged, for it could hold what the
// device sent.
func (s *Server) contain(ctx context.Context, raw net.Conn) {
	defer func() {
		if v := recover(); v != nil {
			s.book.panicked()
			_ = raw.Close() // the device learns no more than that it was not answered
			s.o.Log.Error("southbound: a fault of the program was contained to this connection", "remote", raw.RemoteAddr().String(),
				"kind", fmt.Sprintf("%T", v), "stack", string(debug.Stack()), "next", "report it with this log entry")
		}
	}()
	s.serve(ctx, raw)
}

// serve runs a connection from its handshake to its end.
func (s *Server) serve(ctx context.Context, raw net.Conn) {
	c := &conn{s: s, raw: raw, remote: raw.RemoteAddr().String(), since: s.o.Now()}
	if err := s.book.enter(c); err != nil {
		s.refused(c, err)
		_ = raw.Close() // a flood gets no more attention than that
		return
	}
	defer s.book.leave(c)
	if err := c.handshake(ctx); err != nil {
		s.refused(c, err)
		c.linger()
		return
	}
	s.o.Events(Event{Kind: Connected, Device: c.device, Remote: c.remote})
	err := c.messagesUntilEnd(ctx)
	s.o.Events(Event{Kind: Disconnected, Device: c.device, Remote: c.remote, Err: err, Skipped: c.skipped})
	_ = c.raw.SetWriteDeadline(time.Now().Add(lingerTime))
	_ = c.tls.CloseWrite() // close_notify; where it fails there is nobody to tell
	c.linger()
	s.o.Log.Info("southbound: device disconnected", "device", c.device, "remote", c.remote, "reason", err.Error())
}

func (c *conn) handshake(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, c.s.o.HandshakeTimeout)
	defer cancel()
	c.tls = tls.Server(c.raw, c.s.tls)
	if err := c.tls.HandshakeContext(ctx); err != nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		switch {
		case c.leaving:
			return c.whyLeave
		case errors.Is(ctx.Err(), context.DeadlineExceeded):
			return fmt.Errorf("no handshake within %v", c.s.o.HandshakeTimeout)
		}
		return err
	}
	state := c.tls.ConnectionState()
	cbc := tlspolicy.IsCBC(state.CipherSuite)
	c.s.book.admit(c, state.PeerCertificates[0].Subject.CommonName, cbc)
	log, next := c.s.o.Log.Info, ""
	if cbc {
		log, next = c.s.o.Log.Warn, "have a suite of the GCM mode enabled at the device: those of the CBC mode are only partly protected against timing"
	}
	log("southbound: device connected", "device", c.device, "remote", c.remote,
		"version", tls.VersionName(state.Version), "suite", tls.CipherSuiteName(state.CipherSuite), "next", next)
	return nil
}

// linger closes so that the peer sees what was written last: where unread data
// is left, the kernel answers with a reset, and an alert or acknowledgement on
// its way is lost.
func (c *conn) linger() {
	defer c.raw.Close()
	half, ok := c.raw.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil || c.raw.SetReadDeadline(time.Now().Add(lingerTime)) != nil {
		return
	}
	// Whatever ends it, the connection is closed next.
	_, _ = io.CopyN(io.Discard, c.raw, lingerBytes)
}

// leave ends the connection at the next moment at which nothing is under way.
func (c *conn) leave(why error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.leaving {
		return
	}
	c.leaving, c.whyLeave = true, why
	if c.idle {
		_ = c.raw.SetReadDeadline(past) // it fails only where it is closed already
	}
}

// cut ends it now.
func (c *conn) cut(why error) {
	c.mu.Lock()
	if !c.leaving {
		c.leaving, c.whyLeave = true, why
	}
	c.mu.Unlock()
	_ = c.raw.Close()
}

// await waits for a message to begin. Only here leave strikes.
func (c *conn) await(in *mllp.Conn) error {
	c.mu.Lock()
	c.idle = true
	c.mu.Unlock()
	err := in.Wait(time.Now().Add(c.s.o.IdleTimeout))
	c.mu.Lock()
	defer c.mu.Unlock()
	c.idle = false
	switch {
	case err != nil && c.leaving:
		return c.whyLeave
	case errors.Is(err, io.EOF):
		return errors.New("the device closed it")
	case isTimeout(err):
		return fmt.Errorf("no message within %v", c.s.o.IdleTimeout)
	}
	return err
}

func isTimeout(err error) bool {
	e, ok := errors.AsType[net.Error](err)
	return ok && e.Timeout()
}

// A patient is a connection whose read deadline stays past once it is told to
// leave while it waits.
type patient struct {
	*tls.Conn
	c *conn
}

func (p patient) SetReadDeadline(t time.Time) error {
	p.c.mu.Lock()
	defer p.c.mu.Unlock()
	if p.c.leaving && p.c.idle {
		t = past
	}
	return p.Conn.SetReadDeadline(t)
}

// refused logs and counts a connection that did not get in.
func (s *Server) refused(c *conn, err error) {
	rule, next := ruleOf(err)
	if s.book.audible(rule) {
		attrs := []any{"remote", c.remote, "rule", rule, "error", err.Error()}
		if next != "" {
			attrs = append(attrs, "next", next)
		}
		s.o.Log.Error("southbound: connection refused", attrs...)
	}
	s.book.refuse(rule, c.remote, err, s.o.Now())
	s.o.Events(Event{Kind: Refused, Remote: c.remote, Err: err})
}

// ruleOf is the rule that a refusal is about; "TLS" where it was the protocol
// itself, "limit" where it was us.
func ruleOf(err error) (rule, next string) {
	if r, ok := errors.AsType[*tlspolicy.RefusalError](err); ok {
		return cmp.Or(r.Rule, "TLS"), ""
	}
	switch {
	case errors.Is(err, errFull), errors.Is(err, errSlow), errors.Is(err, errLeave):
		return "limit", nextLimits
	}
	return "TLS", ""
}
