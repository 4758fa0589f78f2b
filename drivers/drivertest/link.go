package drivertest

import (
	"bytes"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bedside-gateway/gatewayd/drivers/port"
)

// What a link holds before a write waits (a stream) or is lost (datagrams).
const (
	linkBytes     = 64 << 10
	linkDatagrams = 256
)

// NewLink makes a line in memory: the port of the gateway and the end of the
// device. Closing one end ends the reads of the other, after what was sent
// before. It tells the time by package time, so it runs in a bubble of
// testing/synctest.
func NewLink(datagrams bool) (port.Port, *DeviceEnd) {
	up, down := newQueue(datagrams), newQueue(datagrams)
	return &gatewayEnd{end{in: up, out: down}}, &DeviceEnd{end: end{in: down, out: up}}
}

// end is one end of a link.
type end struct {
	in, out *queue

	mu       sync.Mutex
	deadline time.Time // of reads of a DeviceEnd
}

func (e *end) Write(p []byte) (int, error) { return e.out.put(p, time.Now().Add(2*time.Second)) }

func (e *end) Close() error {
	e.in.close(os.ErrClosed)
	e.out.close(io.EOF)
	return nil
}

type gatewayEnd struct{ end }

func (g *gatewayEnd) Datagrams() bool { return g.in.datagrams }
func (g *gatewayEnd) StopReading()    { g.in.close(os.ErrDeadlineExceeded) }

func (g *gatewayEnd) ReadBefore(p []byte, deadline time.Time) (int, error) {
	return g.in.take(p, func() (time.Time, error) { return deadline, nil })
}

// A DeviceEnd is the end of the device: a stream, and a net.PacketConn for a
// device on a network.
type DeviceEnd struct{ end }

var _ net.PacketConn = (*DeviceEnd)(nil)

// Read reads what the gateway sent.
func (d *DeviceEnd) Read(p []byte) (int, error) { return d.in.take(p, d.until) }

// ReadFrom reads a datagram of the gateway.
func (d *DeviceEnd) ReadFrom(p []byte) (int, net.Addr, error) {
	n, err := d.Read(p)
	return n, gatewayAddr(), err
}

// WriteTo sends a datagram to the gateway, the only one there is.
func (d *DeviceEnd) WriteTo(p []byte, _ net.Addr) (int, error) { return d.Write(p) }

// LocalAddr is the address of the device.
func (d *DeviceEnd) LocalAddr() net.Addr { return deviceAddr() }

// SetDeadline is SetReadDeadline: writes have a bound of their own.
func (d *DeviceEnd) SetDeadline(t time.Time) error { return d.SetReadDeadline(t) }

// SetReadDeadline ends a Read that waits, at t; the zero time is never.
func (d *DeviceEnd) SetReadDeadline(t time.Time) error {
	d.mu.Lock()
	d.deadline = t
	d.mu.Unlock()
	d.in.wake()
	return nil
}

// SetWriteDeadline does nothing: a write waits for two seconds at most.
func (d *DeviceEnd) SetWriteDeadline(time.Time) error { return nil }

func (d *DeviceEnd) until() (time.Time, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.deadline, nil
}

// A life is what a device has of the link from one power-on to the next: when
// it is over, its reads and writes fail, and the link is left as it is.
type life struct {
	*DeviceEnd
	over     atomic.Bool
	deadline atomic.Pointer[time.Time]
}

func (l *life) end() {
	l.over.Store(true)
	l.in.wake()
}

func (l *life) SetDeadline(t time.Time) error { return l.SetReadDeadline(t) }

func (l *life) SetReadDeadline(t time.Time) error {
	l.deadline.Store(&t)
	l.in.wake()
	return nil
}

// Close ends this life: a device that closes its line does not cut the cable.
func (l *life) Close() error {
	l.end()
	return nil
}

func (l *life) until() (time.Time, error) {
	if l.over.Load() {
		return time.Time{}, io.ErrClosedPipe
	}
	if t := l.deadline.Load(); t != nil {
		return *t, nil
	}
	return time.Time{}, nil
}

func (l *life) Read(p []byte) (int, error) { return l.in.take(p, l.until) }

func (l *life) ReadFrom(p []byte) (int, net.Addr, error) {
	n, err := l.Read(p)
	return n, gatewayAddr(), err
}

func (l *life) Write(p []byte) (int, error) {
	if l.over.Load() {
		return 0, io.ErrClosedPipe
	}
	return l.DeviceEnd.Write(p)
}

func (l *life) WriteTo(p []byte, _ net.Addr) (int, error) { return l.Write(p) }

// The addresses of the ends: those that RFC 5737 keeps for examples.
func gatewayAddr() net.Addr { return &net.UDPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 40000} }
func deviceAddr() net.Addr  { return &net.UDPAddr{IP: net.IPv4(192, 0, 2, 2), Port: 1024} }

// queue is one direction of a link.
type queue struct {
	datagrams bool

	mu      sync.Mutex
	items   [][]byte
	size    int
	discard bool          // nobody has the other end open
	err     error         // what a read gives when nothing is left
	changed chan struct{} // closed, and replaced, with each change
}

func newQueue(datagrams bool) *queue {
	return &queue{datagrams: datagrams, changed: make(chan struct{})}
}

// wake is called without the lock.
func (q *queue) wake() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.change()
}

func (q *queue) change() {
	close(q.changed)
	q.changed = make(chan struct{})
}

func (q *queue) close(err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.err != os.ErrClosed { // the reader's own Close is the last word
		q.err = err
	}
	q.change()
}

// listen says whether anybody has the other end open. What nobody reads is lost.
func (q *queue) listen(open bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.discard = !open
	q.items, q.size = nil, 0
	q.change()
}

func (q *queue) put(p []byte, deadline time.Time) (int, error) {
	for {
		q.mu.Lock()
		switch {
		case q.err != nil:
			q.mu.Unlock()
			return 0, io.ErrClosedPipe
		case q.discard || q.datagrams && len(q.items) >= linkDatagrams:
			q.mu.Unlock()
			return len(p), nil // as a line or a network does
		case q.datagrams || q.size < linkBytes:
			q.items, q.size = append(q.items, bytes.Clone(p)), q.size+len(p)
			q.change()
			q.mu.Unlock()
			return len(p), nil
		}
		changed := q.changed
		q.mu.Unlock()
		if !await(changed, deadline) {
			return 0, os.ErrDeadlineExceeded
		}
	}
}

func (q *queue) take(p []byte, until func() (time.Time, error)) (int, error) {
	for {
		q.mu.Lock()
		changed := q.changed
		q.mu.Unlock()
		deadline, err := until() // a later change of it closes changed
		if err != nil {
			return 0, err
		}
		q.mu.Lock()
		switch {
		case q.err == os.ErrClosed || q.err == os.ErrDeadlineExceeded:
			q.mu.Unlock()
			return 0, q.err
		case len(q.items) > 0:
			n := q.pop(p)
			q.mu.Unlock()
			return n, nil
		case q.err != nil:
			q.mu.Unlock()
			return 0, q.err
		}
		q.mu.Unlock()
		if !await(changed, deadline) {
			return 0, os.ErrDeadlineExceeded
		}
	}
}

func (q *queue) pop(p []byte) int {
	n := copy(p, q.items[0])
	if q.datagrams || n == len(q.items[0]) {
		q.size -= len(q.items[0])
		q.items = q.items[1:]
	} else {
		q.size -= n
		q.items[0] = q.items[0][n:]
	}
	q.change()
	return n
}

// await waits for a change; it is false when the deadline came first.
func await(changed <-chan struct{}, deadline time.Time) bool {
	if deadline.IsZero() {
		<-changed
		return true
	}
	t := time.NewTimer(time.Until(deadline))
	defer t.Stop()
	select {
	case <-changed:
		return true
	case <-t.C:
		return false
	}
}
