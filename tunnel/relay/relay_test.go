package relay

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// pair is a connection on the loopback.
func pair(t testing.TB) (far, near *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	a, err := net.Dial("tcp", l.Addr().String())
	must(t, err)
	b, err := l.Accept()
	must(t, err)
	for _, c := range []net.Conn{a, b} {
		t.Cleanup(func() { c.Close() })
		must(t, c.SetDeadline(time.Now().Add(20*time.Second)))
	}
	return a.(*net.TCPConn), b.(*net.TCPConn)
}

// A session is joined connections, seen from both ends.
type session struct {
	*Relay
	device, platform *net.TCPConn
	near             [2]*net.TCPConn
	flow             *Flow
	moved            Counter
	ended            chan error
}

func join(t testing.TB, idle time.Duration) *session {
	t.Helper()
	s := &session{Relay: New(), ended: make(chan error, 1)}
	s.device, s.near[0] = pair(t)
	s.platform, s.near[1] = pair(t)
	var err error
	s.flow, err = s.Begin(s.near[0], s.near[1], idle, &s.moved, func(err error) {
		s.ended <- err
		close(s.ended)
	})
	must(t, err)
	t.Cleanup(func() {
		s.flow.Cut(net.ErrClosed)
		for range s.ended { // until it is over
		}
		s.Close()
	})
	return s
}

func TestBytesArriveUnchangedBothWays(t *testing.T) {
	s := join(t, time.Minute)
	const size = 9<<20 + 12345
	var all sync.WaitGroup
	for _, ends := range [][2]*net.TCPConn{{s.device, s.platform}, {s.platform, s.device}} {
		data := make([]byte, size)
		_, err := rand.Read(data)
		must(t, err)
		all.Go(func() {
			for part := data; len(part) > 0; {
				n := min(1+len(part)/3, len(part))
				if _, err := ends[0].Write(part[:n]); err != nil {
					t.Error(err)
					return
				}
				part = part[n:]
			}
			if err := ends[0].CloseWrite(); err != nil {
				t.Error(err)
			}
		})
		all.Go(func() {
			got, err := io.ReadAll(ends[1])
			if err != nil || sha256.Sum256(got) != sha256.Sum256(data) {
				t.Errorf("%d bytes of %d, %v", len(got), len(data), err)
			}
		})
	}
	all.Wait()
	must(t, <-s.ended)
	if up, down := s.moved.ToPlatform.Load(), s.moved.ToDevice.Load(); up != size || down != size {
		t.Errorf("%d and %d bytes are counted, of %d", up, down, size)
	}
}

func TestEachWayEndsByItself(t *testing.T) {
	s := join(t, time.Minute)
	must(t, s.device.CloseWrite())
	if _, err := s.platform.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("%v", err)
	}
	if _, err := s.platform.Write([]byte("still")); err != nil {
		t.Error(err)
	}
	must(t, s.platform.CloseWrite())
	if got, err := io.ReadAll(s.device); err != nil || string(got) != "still" {
		t.Errorf("%q, %v", got, err)
	}
	must(t, <-s.ended)
}

func TestAResetEndsBothSides(t *testing.T) {
	s := join(t, time.Minute)
	must(t, s.platform.SetLinger(0))
	must(t, s.platform.Close())
	if _, err := s.device.Read(make([]byte, 1)); err == nil {
		t.Error("the device is not told")
	}
	if err := <-s.ended; !errors.Is(err, syscall.ECONNRESET) || !strings.Contains(err.Error(), "platform") {
		t.Errorf("%v", err)
	}
}

// A side that has said its last word closes, and the other still sends: what the
// one has said arrives, and nothing was broken.
func TestASideThatHasEndedMayCloseAltogether(t *testing.T) {
	for _, late := range []bool{false, true} { // whether it has closed before the relay looks at it
		s := &session{Relay: New(), ended: make(chan error, 1)}
		s.device, s.near[0] = pair(t)
		s.platform, s.near[1] = pair(t)
		begin := func() {
			_, err := s.Begin(s.near[0], s.near[1], time.Minute, &s.moved, func(err error) { s.ended <- err })
			must(t, err)
		}
		if !late {
			begin()
		}
		_, err := s.device.Write([]byte("last word"))
		must(t, err)
		must(t, s.device.Close())
		if late {
			_, err = s.near[0].Write([]byte("x")) // which is answered with a reset
			must(t, err)
			time.Sleep(10 * time.Millisecond) // the kernel's answer
		}
		_, err = s.platform.Write([]byte("late word"))
		must(t, err)
		if late {
			begin()
		}
		got, err := io.ReadAll(s.platform)
		if len(got) != len("last word") || err != nil && !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the platform gets %q, %v", got, err)
		}
		_, _ = s.platform.Write([]byte("and more"))
		_ = s.platform.Close()
		if err := <-s.ended; err != nil {
			t.Errorf("it has closed before: %v: %v", late, err)
		}
		s.Close()
	}
}

// A receiver that does not read is no silence.
func TestBytesThatWaitForASlowReceiverArePending(t *testing.T) {
	s := join(t, time.Minute)
	if s.flow.Pending() {
		t.Error("nothing was sent")
	}
	must(t, s.device.SetWriteDeadline(time.Now().Add(200*time.Millisecond)))
	if sent, err := io.Copy(s.device, endless{}); err == nil || sent == 0 {
		t.Fatalf("%d bytes, %v", sent, err)
	}
	if !s.flow.Pending() {
		t.Error("what waits is not seen")
	}
	must(t, s.device.CloseWrite())
	_, err := io.Copy(io.Discard, s.platform)
	must(t, err)
	for end := time.Now().Add(10 * time.Second); s.flow.Pending(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("all has arrived, and still something waits")
		}
	}
}

func TestAnIdleSessionEndsAndABusyOneDoesNot(t *testing.T) {
	const idle = 150 * time.Millisecond
	s := join(t, idle)
	last := time.Now()
	for range 8 { // one way only, and for longer than the idle time
		time.Sleep(idle / 3) // the device's pace
		last = time.Now()
		_, err := s.device.Write([]byte("x"))
		must(t, err)
		_, err = io.ReadFull(s.platform, make([]byte, 1))
		must(t, err)
	}
	if err := <-s.ended; !errors.Is(err, ErrIdle) {
		t.Errorf("%v", err)
	}
	if after := time.Since(last); after < idle {
		t.Errorf("it ended %v after the last byte", after)
	}
}

// A receiver that does not read holds back its sender, and the idle time ends both.
func TestAReceiverThatDoesNotReadHoldsBackTheSender(t *testing.T) {
	s := join(t, 300*time.Millisecond)
	sent, err := io.Copy(s.device, endless{})
	if err == nil || sent == 0 {
		t.Errorf("%d, %v", sent, err)
	}
	if err := <-s.ended; !errors.Is(err, ErrIdle) {
		t.Errorf("%v", err)
	}
	if sent > 64<<20 {
		t.Errorf("%d bytes are on their way", sent)
	}
}

type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

func TestACutEndsIt(t *testing.T) {
	s := join(t, time.Minute)
	_, err := s.device.Write([]byte("x"))
	must(t, err)
	_, err = io.ReadFull(s.platform, make([]byte, 1))
	must(t, err)
	s.flow.Cut(errCut)
	s.flow.Cut(net.ErrClosed)
	if err := <-s.ended; !errors.Is(err, errCut) {
		t.Errorf("%v", err)
	}
	if _, err := s.platform.Read(make([]byte, 1)); err == nil {
		t.Error("the platform is not told")
	}
}

var errCut = errors.New("cut")

func descriptors(t testing.TB) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(all)
}

// What waits holds no pipe; what is left at the end is nothing.
func TestIdleSessionsHoldNoPipes(t *testing.T) {
	before := descriptors(t)
	const sessions = 100
	r := New()
	var running sync.WaitGroup
	var ends []net.Conn
	running.Add(sessions)
	for range sessions {
		device, a := pair(t)
		platform, b := pair(t)
		ends = append(ends, device, platform)
		_, err := r.Begin(a, b, time.Minute, new(Counter), func(error) { running.Done() })
		must(t, err)
		_, err = device.Write([]byte("x"))
		must(t, err)
		_, err = io.ReadFull(platform, make([]byte, 1))
		must(t, err)
	}
	if n := descriptors(t) - before; n > 4*sessions+4*maxFree+2*runtime.GOMAXPROCS(0) {
		t.Errorf("%d descriptors for %d sessions, both ends here", n, sessions)
	}
	for _, c := range ends {
		c.Close()
	}
	running.Wait()
	r.Close()
	for end := time.Now().Add(10 * time.Second); descriptors(t) > before; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d descriptors are left over", descriptors(t)-before)
		}
	}
}

// Without descriptors a session ends and says why; the next one finds them again.
func TestNoDescriptorsLeft(t *testing.T) {
	s := join(t, time.Minute)
	var old syscall.Rlimit
	must(t, syscall.Getrlimit(syscall.RLIMIT_NOFILE, &old))
	must(t, syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: 3, Max: old.Max}))
	_, err := s.device.Write([]byte("x"))
	result := <-s.ended
	must(t, syscall.Setrlimit(syscall.RLIMIT_NOFILE, &old))
	must(t, err)
	if !errors.Is(result, syscall.EMFILE) || !strings.Contains(result.Error(), "limit of open files") {
		t.Errorf("%v", result)
	}
}

// A chunk costs nothing on the heap.
func TestNothingIsAllocatedForAChunk(t *testing.T) {
	s := join(t, time.Minute)
	word := bytes.Repeat([]byte("x"), 1000)
	got := make([]byte, len(word))
	n := testing.AllocsPerRun(200, func() {
		_, err := s.device.Write(word)
		must(t, err)
		_, err = io.ReadFull(s.platform, got)
		must(t, err)
	})
	if n > 0 {
		t.Errorf("%v allocations", n)
	}
	runtime.KeepAlive(s)
}

// A flow whose source has ended, and whose sink takes nothing, hears of a cut.
func TestACutEndsAStuckFlow(t *testing.T) {
	for _, half := range []bool{false, true} {
		s := join(t, time.Minute)
		must(t, s.device.SetWriteDeadline(time.Now().Add(200*time.Millisecond)))
		if sent, err := io.Copy(s.device, endless{}); err == nil || sent == 0 {
			t.Fatalf("%d bytes, %v", sent, err)
		}
		if half {
			must(t, s.device.CloseWrite())
			must(t, s.platform.CloseWrite())
			if _, err := s.device.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
				t.Errorf("%v", err)
			}
		}
		s.flow.Cut(errCut)
		select {
		case err := <-s.ended:
			if !errors.Is(err, errCut) {
				t.Errorf("half-closed %v: %v", half, err)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("half-closed %v: it goes on", half)
		}
	}
}

// What one session moves does not keep the others of its loop waiting.
func TestABusySessionLeavesRoomForOthers(t *testing.T) {
	r := New()
	var over sync.WaitGroup
	begin := func() (*net.TCPConn, *net.TCPConn, *Flow) {
		device, a := pair(t)
		platform, b := pair(t)
		over.Add(1)
		f, err := r.Begin(a, b, time.Minute, new(Counter), func(error) { over.Done() })
		must(t, err)
		return device, platform, f
	}
	var flows []*Flow
	var load sync.WaitGroup
	for range 4 { // more than there are loops
		device, platform, f := begin()
		flows = append(flows, f)
		load.Go(func() { _, _ = io.Copy(device, endless{}) })
		load.Go(func() { _, _ = io.Copy(io.Discard, platform) })
	}
	device, platform, f := begin()
	flows = append(flows, f)
	for range 100 {
		_, err := device.Write([]byte("x"))
		must(t, err)
		_, err = io.ReadFull(platform, make([]byte, 1))
		must(t, err)
	}
	for _, f := range flows {
		f.Cut(errCut)
	}
	over.Wait()
	load.Wait()
	r.Close()
}
