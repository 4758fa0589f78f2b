package sim

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

// inBubble serves a monitor on a pipe in made-up time and hands the client's
// end to body.
func inBubble(t *testing.T, o Options, body func(m *Monitor, c *streamClient)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		m, err := New(o)
		if err != nil {
			t.Fatal(err)
		}
		ours, theirs := net.Pipe()
		ctx, cancel := context.WithCancel(t.Context())
		served := make(chan error, 1)
		go func() { served <- m.ServeStream(ctx, theirs) }()
		c := newStreamClient(t, ours)
		body(m, c)
		cancel()
		if err := <-served; err != nil {
			t.Errorf("ServeStream: %v", err)
		}
		ours.Close()
		<-c.done
	})
}

// A streamClient collects PDUs from a stream.
type streamClient struct {
	t    *testing.T
	rw   io.ReadWriter
	done chan struct{}

	mu   sync.Mutex
	got  [][]byte
	bad  int
	news chan struct{}
}

func newStreamClient(t *testing.T, rw io.ReadWriter) *streamClient {
	c := &streamClient{t: t, rw: rw, done: make(chan struct{}), news: make(chan struct{}, 1)}
	go c.read()
	return c
}

func (c *streamClient) read() {
	defer close(c.done)
	var d deframer
	buf := make([]byte, 512)
	for {
		n, err := c.rw.Read(buf)
		c.mu.Lock()
		c.got = append(c.got, deframe(&d, buf[:n])...)
		c.bad = d.bad
		c.mu.Unlock()
		select {
		case c.news <- struct{}{}:
		default:
		}
		if err != nil {
			return
		}
	}
}

func (c *streamClient) send(pdu []byte) {
	c.t.Helper()
	if _, err := c.rw.Write(appendFrame(nil, pdu)); err != nil {
		c.t.Errorf("write: %v", err)
	}
}

// taken is what came so far; it is forgotten.
func (c *streamClient) taken() [][]byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	got := c.got
	c.got = nil
	return got
}

// await waits for a PDU that want takes.
func (c *streamClient) await(what string, want func([]byte) bool) []byte {
	c.t.Helper()
	limit := time.NewTimer(20 * time.Second)
	defer limit.Stop()
	for {
		for _, pdu := range c.taken() {
			if want(pdu) {
				return pdu
			}
		}
		select {
		case <-c.news:
		case <-limit.C:
			c.t.Fatalf("no %s came", what)
		}
	}
}

func (c *streamClient) associate() {
	c.t.Helper()
	c.send(connectPDU(c.t))
	event := c.await("create event", isCreateEvent)
	c.send(eventResult(uint16(event[8])<<8 | uint16(event[9])))
}

func isClass(class uint16) func([]byte) bool {
	return func(pdu []byte) bool {
		r, err := parseReply(pdu)
		return err == nil && r.class == class
	}
}

func TestAMonitorServesAStreamInItsOwnTime(t *testing.T) {
	inBubble(t, Options{}, func(m *Monitor, c *streamClient) {
		began := time.Now()
		c.associate()
		if took := time.Since(began); took < 1100*time.Millisecond || took > 2200*time.Millisecond {
			t.Errorf("accepted after %v", took)
		}
		c.send(pollExtPDU(9, 1, classNumeric, groupValue, 5*time.Minute)) // each result is one message
		for range 10 {
			c.await("numerics", isClass(classNumeric))
			c.send(pollPDU(1, 1, classMDS, groupProduct))
		}
		synctest.Wait() // a message is counted when its write has returned
		if n := m.Counts(); n.Numerics[0x4182] != 10 || n.BadFrames != 0 || n.Damaged != 0 {
			t.Errorf("after ten results: %+v", n)
		}
	})
}

func TestNoiseAndBrokenFramesAreCountedNotAsSent(t *testing.T) {
	told := 0
	inBubble(t, Options{GarbleRate: 0.2, HalfFrame: 0.1, Slow: 20 * time.Millisecond, OnNumeric: func(n Numeric) {
		if n.Physio == 0x4182 {
			told++
		}
	}}, func(m *Monitor, c *streamClient) {
		for m.Counts().Associations == 0 || !associated(c) {
			c.send(connectPDU(t))
			time.Sleep(3 * time.Second) // made-up time
		}
		c.send(pollExtPDU(9, 1, classNumeric, groupValue, 5*time.Minute))
		good := 0
		for range 60 {
			time.Sleep(time.Second)
			c.send(pollPDU(1, 1, classMDS, groupProduct))
		}
		for _, pdu := range c.taken() {
			if isClass(classNumeric)(pdu) {
				good++
			}
		}
		n := m.Counts()
		// A frame that noise joins to its neighbour can cost that one, too, but no
		// damaged frame may count as sent.
		if good > told || told-good > int(n.Damaged) || told < 20 || n.Damaged < 10 || n.Numerics[0x4182] != uint64(told) {
			t.Errorf("%d results arrived, %d told as sent, %+v", good, told, n)
		}
	})
}

// associated answers the create event if it is there.
func associated(c *streamClient) bool {
	for _, pdu := range c.taken() {
		if isCreateEvent(pdu) {
			c.send(eventResult(1))
			return true
		}
	}
	return false
}

func TestAnUnpluggedMonitorSaysAndHearsNothing(t *testing.T) {
	inBubble(t, Options{}, func(m *Monitor, c *streamClient) {
		c.associate()
		c.send(pollExtPDU(9, 1, classNumeric, groupAll, 5*time.Minute))
		c.await("numerics", isClass(classNumeric))
		m.Unplug()
		synctest.Wait() // what is in the cable arrives
		c.taken()
		time.Sleep(30 * time.Second) // made-up time
		if got := c.taken(); len(got) != 0 || m.Counts().Lost == 0 || m.Counts().Timeouts != 1 {
			t.Errorf("%d messages through no cable; %+v", len(got), m.Counts())
		}
		m.Plug()
		c.associate()
	})
}

func TestTheEndOfALineIsAnError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, err := New(Options{})
		if err != nil {
			t.Fatal(err)
		}
		ours, theirs := net.Pipe()
		ours.Close()
		if err := m.ServeStream(t.Context(), theirs); !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("%v", err)
		}
	})
}

// datagrams is a client on a LAN.
type datagrams struct {
	t    *testing.T
	conn net.PacketConn
	to   net.Addr
}

func listen(t *testing.T) net.PacketConn {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

func (d *datagrams) send(pdu []byte) {
	d.t.Helper()
	if _, err := d.conn.WriteTo(pdu, d.to); err != nil {
		d.t.Fatal(err)
	}
}

func (d *datagrams) await(what string, want func([]byte) bool) []byte {
	d.t.Helper()
	buf := make([]byte, 65536)
	if err := d.conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		d.t.Fatal(err)
	}
	for {
		n, _, err := d.conn.ReadFrom(buf)
		if err != nil {
			d.t.Fatalf("no %s: %v", what, err)
		}
		if want(buf[:n]) {
			return bytes.Clone(buf[:n])
		}
	}
}

func first(kind byte) func([]byte) bool {
	return func(pdu []byte) bool { return pdu[0] == kind }
}

func TestAMonitorServesOneClientOnALANAndAnnouncesItself(t *testing.T) {
	herald := listen(t)
	defer herald.Close()
	m, err := New(Options{Tick: 16 * time.Millisecond, AcceptDelay: time.Millisecond, Indicate: herald.LocalAddr(), IndicateEvery: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	socket := listen(t)
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- m.ServePacket(ctx, socket) }()

	a := &datagrams{t, listen(t), socket.LocalAddr()}
	b := &datagrams{t, listen(t), socket.LocalAddr()}
	defer a.conn.Close()
	defer b.conn.Close()
	a.send(connectPDU(t))
	a.send(eventResult(0xFFFF)) // noise
	event := a.await("create event", isCreateEvent)
	a.send(eventResult(uint16(event[8])<<8 | uint16(event[9])))
	b.send(connectPDU(t))
	b.await("refusal of the second client", first(spduRefuse))
	a.send(pollExtPDU(9, 1, classNumeric, groupAll, time.Minute))
	for range 5 {
		a.await("numerics", isClass(classNumeric))
	}
	a.send(finishPDU)
	a.await("disconnect", first(spduDisconnect))
	b.send(connectPDU(t))
	b.await("create event", isCreateEvent)

	h := &datagrams{t, herald, nil}
	for range 2 {
		pdu := h.await("connect indication", first(0))
		if !bytes.HasPrefix(pdu, []byte{0, 0, 1, 0, 0, 1}) || int(pdu[6])<<8|int(pdu[7]) != len(pdu)-8 || !bytes.Contains(pdu, []byte("M8000")) {
			t.Fatalf("connect indication %x", pdu)
		}
	}
	cancel()
	if err := <-served; err != nil {
		t.Errorf("ServePacket: %v", err)
	}
}

// openLine opens the gateway's end of a PTY.
func openLine(t *testing.T, name string) *os.File {
	t.Helper()
	fd, err := unix.Open(name, unix.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(fd), name)
}

func TestAPTYIsPulledAndPluggedUnderTheSameName(t *testing.T) {
	name := filepath.Join(t.TempDir(), "bed-1")
	if err := os.Symlink("/nowhere", name); err != nil { // left over from a crash
		t.Fatal(err)
	}
	p, err := OpenPTY(name)
	if err != nil {
		t.Fatal(err)
	}
	m, err := New(Options{Tick: 20 * time.Millisecond, AcceptDelay: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- m.ServeStream(ctx, p) }()

	for round := range 2 {
		line := openLine(t, name)
		c := newStreamClient(t, line)
		c.send(finishPDU) // what was before the unplugging is over
		c.associate()
		c.send(pollExtPDU(9, 1, classNumeric, groupAll, time.Minute))
		for range 3 {
			c.await("numerics", isClass(classNumeric))
		}
		if err := p.Unplug(); err != nil {
			t.Fatal(err)
		}
		<-c.done // the read of the gateway ends: hangup
		line.Close()
		if _, err := os.Lstat(name); !os.IsNotExist(err) {
			t.Errorf("round %d: the name is still there: %v", round, err)
		}
		if err := p.Plug(); err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	if err := <-served; err != nil {
		t.Errorf("ServeStream: %v", err)
	}
	if _, err := os.Lstat(name); !os.IsNotExist(err) {
		t.Errorf("after the end the name is still there: %v", err)
	}
	if err := p.Plug(); err == nil {
		t.Error("a closed PTY can be plugged in")
	}
}

func TestAPTYMovesEveryByteUnchanged(t *testing.T) {
	p, err := OpenPTY(filepath.Join(t.TempDir(), "raw"))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	line := openLine(t, p.Name())
	defer line.Close()
	all := make([]byte, 256)
	for i := range all {
		all[i] = byte(i)
	}
	for name, way := range map[string]struct{ from, to io.ReadWriter }{"to the gateway": {p, line}, "to the device": {line, p}} {
		if _, err := way.from.Write(all); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(all))
		if _, err := io.ReadFull(way.to, got); err != nil || !bytes.Equal(got, all) {
			t.Errorf("%s: %x, %v", name, got, err)
		}
	}
}

func TestALineThatNobodyReadsDoesNotStopTheDevice(t *testing.T) {
	p, err := OpenPTY(filepath.Join(t.TempDir(), "deaf"))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	for range 3 {
		if n, err := p.Write(make([]byte, 64<<10)); n == 64<<10 || !errors.Is(err, ErrLost) {
			t.Fatalf("wrote %d, %v", n, err)
		}
	}
	if err := p.Unplug(); err != nil {
		t.Fatal(err)
	}
	if n, err := p.Write([]byte{1}); n != 0 || !errors.Is(err, ErrLost) {
		t.Fatalf("wrote %d into no cable, %v", n, err)
	}
}

func TestAPTYTakesNoNameThatIsSomethingElse(t *testing.T) {
	name := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(name, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenPTY(name); err == nil {
		t.Error("a file was replaced")
	}
	if b, err := os.ReadFile(name); err != nil || string(b) != "precious" {
		t.Errorf("%q, %v", b, err)
	}
}
