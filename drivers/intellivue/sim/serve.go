package sim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// A machine is a device behind an interface: a link of a Monitor or of a Replay.
type machine interface {
	receive(now time.Time, pdu []byte)
	advance(now time.Time) (wake time.Time)
	take(now time.Time) []outgoing
	note(outgoing, fate)
	told(outgoing)
	badFrames(int)
	idle() bool
}

// A fate is what became of a PDU on its way out.
type fate uint8

const (
	fateSent fate = iota
	fateDamaged
	fateLost
)

// A line is the cable: it can be noisy, cut messages off, or be unplugged.
type line struct {
	garble, half float64
	pieces       bool // a stream comes in small pieces
	unplugged    atomic.Bool

	mu  sync.Mutex
	rng *rand.Rand
}

func newLine(garble, half float64, pieces bool, seed uint64) *line {
	return &line{garble: garble, half: half, pieces: pieces, rng: rand.New(rand.NewPCG(seed, 0x11E))}
}

// carry does to a message what the line does to it. It may change b.
func (l *line) carry(b []byte) ([]byte, fate) {
	if l.unplugged.Load() {
		return nil, fateLost
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.half > 0 && l.rng.Float64() < l.half:
		return b[:len(b)/2], fateDamaged
	case l.garble > 0 && l.rng.Float64() < l.garble:
		b[l.rng.IntN(len(b))] ^= 1 << l.rng.IntN(8)
		return b, fateDamaged
	}
	return b, fateSent
}

// chunk is bytes that a reader got, or why there are no more.
type chunk struct {
	b    []byte
	from net.Addr
	err  error
}

// read passes on what next reads, until it fails or done is closed.
func read(done <-chan struct{}, to chan<- chunk, next func() chunk) {
	for {
		c := next()
		select {
		case to <- c:
		case <-done:
			return
		}
		if c.err != nil {
			return
		}
	}
}

// serve runs a machine: in arrives, out goes, in between it waits for the
// sooner of the next byte and the next thing that is due. It returns when the
// reader or the writer fails.
func serve(ctx context.Context, m machine, now func() time.Time, in <-chan chunk, accept func(chunk), write func(outgoing) error) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		wake := m.advance(now())
		for _, o := range m.take(now()) {
			if err := write(o); err != nil {
				return err
			}
		}
		timer.Reset(max(wake.Sub(now()), 0))
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		case c := <-in:
			if c.err != nil {
				return c.err
			}
			accept(c)
		}
	}
}

// run serves with a reader beside, and closes the connection at the end.
func run(ctx context.Context, c io.Closer, next func() chunk, body func(<-chan chunk) error) error {
	done, in := make(chan struct{}), make(chan chunk)
	var reader sync.WaitGroup
	reader.Go(func() { read(done, in, next) })
	closed := func() {}
	if c != nil {
		var once sync.Once
		closed = func() { once.Do(func() { c.Close() }) }
	}
	stop := context.AfterFunc(ctx, closed) // a write that waits ends, too
	err := body(in)
	stop()
	closed()
	close(done)
	if c != nil {
		reader.Wait()
	}
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func serveStream(ctx context.Context, rw io.ReadWriter, m machine, now func() time.Time, l *line) error {
	var d deframer
	buf := make([]byte, 4096)
	next := func() chunk {
		n, err := rw.Read(buf)
		return chunk{b: append([]byte(nil), buf[:n]...), err: err}
	}
	accept := func(c chunk) {
		if l.unplugged.Load() {
			return
		}
		bad := d.bad
		d.feed(c.b, func(pdu []byte) { m.receive(now(), pdu) })
		if d.bad > bad {
			m.badFrames(d.bad - bad)
		}
	}
	write := func(o outgoing) error {
		frame, f := l.carry(appendFrame(nil, o.pdu))
		switch err := writePieces(rw, frame, l.pieces); {
		case errors.Is(err, ErrLost):
			f = fateLost
		case err != nil:
			return err
		}
		m.note(o, f)
		if f == fateSent {
			m.told(o)
		}
		return nil
	}
	c, _ := rw.(io.Closer)
	err := run(ctx, c, next, func(in <-chan chunk) error { return serve(ctx, m, now, in, accept, write) })
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("simulated device: the line is closed: %w", err)
	}
	return err
}

// pieceSize is how much of a frame a slow device writes at once.
const pieceSize = 29

func writePieces(w io.Writer, b []byte, pieces bool) error {
	for len(b) > 0 {
		n := len(b)
		if pieces {
			n = min(n, pieceSize)
		}
		if _, err := w.Write(b[:n]); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// An announcement is the connect indication of a device on a LAN.
type announcement struct {
	to    net.Addr
	every time.Duration
	pdu   func() []byte
}

// servePacket serves one client at a time: while one is associated, another
// gets a refusal to its request and nothing else.
func servePacket(ctx context.Context, conn net.PacketConn, m machine, now func() time.Time, l *line, a announcement) error {
	buf := make([]byte, 65536)
	next := func() chunk {
		n, from, err := conn.ReadFrom(buf)
		return chunk{b: append([]byte(nil), buf[:n]...), from: from, err: err}
	}
	var client net.Addr
	send := func(b []byte, to net.Addr) fate {
		b, f := l.carry(append([]byte(nil), b...))
		if len(b) > 0 {
			// A datagram that cannot be sent is one that the network lost:
			// its client is gone, or the cable is.
			if _, err := conn.WriteTo(b, to); err != nil {
				return fateLost
			}
		}
		return f
	}
	accept := func(c chunk) {
		switch {
		case l.unplugged.Load() || len(c.b) == 0:
		case client == nil || sameAddr(client, c.from) || m.idle():
			client = c.from
			m.receive(now(), c.b)
		case c.b[0] == spduConnect:
			send(refusePDU(), c.from)
		}
	}
	write := func(o outgoing) error {
		f := fateLost
		if client != nil {
			f = send(o.pdu, client)
		}
		m.note(o, f)
		if f == fateSent {
			m.told(o)
		}
		return nil
	}
	announced := &announcer{machine: m, a: a, send: send}
	return run(ctx, conn, next, func(in <-chan chunk) error { return serve(ctx, announced, now, in, accept, write) })
}

func sameAddr(a, b net.Addr) bool {
	return a.Network() == b.Network() && a.String() == b.String()
}

// An announcer is a machine that also announces itself.
type announcer struct {
	machine
	a    announcement
	send func([]byte, net.Addr) fate
	next time.Time
}

func (a *announcer) advance(now time.Time) time.Time {
	wake := a.machine.advance(now)
	if a.a.to == nil {
		return wake
	}
	if !now.Before(a.next) {
		a.send(a.a.pdu(), a.a.to)
		a.next = now.Add(a.a.every)
	}
	if a.next.Before(wake) {
		return a.next
	}
	return wake
}
