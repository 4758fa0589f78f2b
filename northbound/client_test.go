package northbound

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/bedside-gateway/gatewayd/pcd"
	"github.com/bedside-gateway/gatewayd/spool"
)

// A rig is a client between a real spool and a scripted platform, in virtual time.
type rig struct {
	t      *testing.T
	f      *platform
	spool  *spool.Spool
	log    journal
	client *Client
	end    func() // stops Run and waits for it
}

func newRig(t *testing.T, serve func(n int, p *peer), change func(*Destination, *Options)) *rig {
	t.Helper()
	r := &rig{t: t, f: newPlatform(t, serve)}
	s, err := spool.Open(filepath.Join(t.TempDir(), "spool.db"), spool.Options{Key: [32]byte{1}, MaxBytes: 64 << 20, MaxAge: 72 * time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	r.spool = s
	r.client = r.newClient(s.Queue("platform"), change)
	return r
}

func (r *rig) newClient(q Queue, change func(*Destination, *Options)) *Client {
	d := destination(r.t)
	o := Options{Log: r.log.log(), Rand: func() float64 { return 1 }, Dial: r.f.dial}
	if change != nil {
		change(&d, &o)
	}
	return NewClient(d, q, o)
}

func (r *rig) enqueue(ids ...string) {
	r.t.Helper()
	for _, id := range ids {
		if _, err := r.spool.Enqueue(r.t.Context(), spool.Entry{Queue: "platform", Device: "bed-1", ControlID: id, Payload: message(id)}); err != nil {
			r.t.Fatal(err)
		}
	}
}

func (r *rig) start() {
	ctx, cancel := context.WithCancel(r.t.Context())
	ended := make(chan error, 1)
	go func() { ended <- r.client.Run(ctx) }()
	var once sync.Once
	r.end = func() {
		once.Do(func() {
			cancel()
			if err := <-ended; err != nil {
				r.t.Errorf("Run ended with %v", err)
			}
		})
	}
	r.t.Cleanup(r.end)
}

// state is a queue of the spool as text: control ID, state and reason of each entry.
func (r *rig) state() string {
	r.t.Helper()
	var b strings.Builder
	if err := r.spool.List("", func(e spool.Entry) error {
		fmt.Fprintf(&b, "%s %s", e.ControlID, [...]string{"queued", "sent", "accepted", "quarantined"}[e.State])
		if e.Reason != "" {
			fmt.Fprintf(&b, " (%s)", e.Reason)
		}
		b.WriteString("; ")
		return nil
	}); err != nil {
		r.t.Fatal(err)
	}
	return b.String()
}

// inBubble runs f in virtual time, and looks for what a platform said where it must not be.
func inBubble(t *testing.T, serve func(n int, p *peer), change func(*Destination, *Options), f func(t *testing.T, r *rig)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, serve, change)
		f(t, r)
		for where, text := range map[string]string{"log": r.log.String(), "status": fmt.Sprintf("%+v", r.client.Status()), "spool": r.state()} {
			if strings.Contains(text, "CANARY") {
				t.Errorf("the %s holds what the platform or the message said: %s", where, text)
			}
		}
	})
}

// script answers message after message with the next code, over all
// connections; at its end it accepts.
func script(answers ...string) func(int, *peer) {
	var mu sync.Mutex
	next := func() string {
		mu.Lock()
		defer mu.Unlock()
		if len(answers) == 0 {
			return "CA"
		}
		a := answers[0]
		answers = answers[1:]
		return a
	}
	return func(_ int, p *peer) {
		for p.read() {
			switch a := next(); a {
			case "silence":
			case "hangup":
				p.goodbye()
				return
			case "CA", "AA":
				p.ack(a)
			default:
				p.ack(a, withERR)
			}
		}
	}
}

func TestMessagesAreDeliveredInOrderOverOneConnection(t *testing.T) {
	inBubble(t, takeAll, nil, func(t *testing.T, r *rig) {
		r.start()
		var want []string
		for i := range 50 {
			want = append(want, fmt.Sprintf("M%02d", i))
			r.enqueue(want[i])
			if i%10 == 0 {
				time.Sleep(time.Second)
			}
		}
		synctest.Wait()
		if got := r.f.received(); !slices.Equal(got, want) {
			t.Errorf("delivered %v", got)
		}
		s := r.client.Status()
		if s.State != Connected || !s.Connected || s.Delivered != 50 || s.Acks["CA"] != 50 || s.Handshakes["ok"] != 1 || s.Fault != "" || r.state() != "" {
			t.Errorf("%+v, spool %s", s, r.state())
		}
		var counted uint64
		for _, n := range s.RoundTrips.Counts {
			counted += n
		}
		if counted != 50 || s.LastAck.IsZero() || !strings.HasPrefix(s.TLS, "TLS 1.3 TLS_AES") || s.PlatformNotAfter.IsZero() {
			t.Errorf("%d round trips, last at %v, %s", counted, s.LastAck, s.TLS)
		}
		r.end()
		if s := r.client.Status(); s.State != Stopped || s.Connected {
			t.Errorf("after the end: %+v", s)
		}
	})
}

// A message whose fate is not known goes out again, as the same.
func TestLostAnswerRepeatsTheMessageWithItsControlID(t *testing.T) {
	for _, c := range []struct {
		fault string
		pause time.Duration
	}{
		{"silence", DefaultAckTimeout + time.Second},
		{"hangup", time.Second},
	} {
		t.Run(c.fault, func(t *testing.T) {
			inBubble(t, script(c.fault), nil, func(t *testing.T, r *rig) {
				began := time.Now()
				r.start()
				r.enqueue("M1", "M2")
				time.Sleep(c.pause - time.Millisecond)
				synctest.Wait()
				if s := r.client.Status(); s.Attempts != 1 || s.Unanswered != 1 || s.Fault == "" || s.Connected || !s.NextAttempt.Equal(began.Add(c.pause)) {
					t.Errorf("while it waits: %+v", s)
				}
				if got := r.state(); !strings.HasPrefix(got, "M1 queued (") {
					t.Errorf("while it waits, the spool has %s", got)
				}
				time.Sleep(time.Millisecond)
				synctest.Wait()
				if got := r.f.received(); !slices.Equal(got, []string{"M1", "M1", "M2"}) || r.f.connections() != 2 {
					t.Errorf("the platform got %v over %d connections", got, r.f.connections())
				}
				if s := r.client.Status(); s.State != Connected || s.Attempts != 0 || s.Fault != "" || s.Delivered != 2 {
					t.Errorf("afterwards: %+v", s)
				}
			})
		})
	}
}

func TestErrorAnswersAreTriedAgainWithBackoff(t *testing.T) {
	inBubble(t, script("CE", "AE", "CE"), nil, func(t *testing.T, r *rig) {
		r.start()
		r.enqueue("M1", "M2")
		time.Sleep(1500 * time.Millisecond)
		synctest.Wait()
		s := r.client.Status()
		if s.State != Held || s.Attempts != 2 || !s.Connected || !strings.Contains(s.Fault, "answered AE: 102 (data type error) at OBX^6^5") {
			t.Errorf("%+v", s)
		}
		time.Sleep((1+2+4)*time.Second - 1500*time.Millisecond)
		synctest.Wait()
		if got := r.f.received(); !slices.Equal(got, []string{"M1", "M1", "M1", "M1", "M2"}) || r.f.connections() != 1 {
			t.Errorf("the platform got %v over %d connections", got, r.f.connections())
		}
		if s := r.client.Status(); s.Quarantined != 0 || s.Acks["CE"] != 2 || s.Acks["AE"] != 1 || s.State != Connected {
			t.Errorf("%+v", s)
		}
	})
}

// One message that the platform chokes on does not stop a ward; but a platform
// that chokes on all does not empty the queue into quarantine.
func TestOnlyOneMessageIsSetAsideForErrorsUntilAnotherIsAccepted(t *testing.T) {
	poison := func(bad ...string) func(int, *peer) {
		return func(_ int, p *peer) {
			for p.read() {
				if id, _ := pcd.ControlID(p.last); slices.Contains(bad, id) {
					p.ack("AE", withERR)
				} else {
					p.ack("AA")
				}
			}
		}
	}
	few := func(d *Destination, _ *Options) { d.ErrorTries = 3 }
	t.Run("two bad ones among good ones", func(t *testing.T) {
		inBubble(t, poison("M1", "M3"), few, func(t *testing.T, r *rig) {
			r.start()
			r.enqueue("M1", "M2", "M3", "M4")
			time.Sleep(time.Minute)
			const reason = "(the platform answered AE 3 times: 102 (data type error) at OBX^6^5)"
			if got := r.state(); got != "M1 quarantined "+reason+"; M3 quarantined "+reason+"; " {
				t.Errorf("the spool has %s", got)
			}
			if s := r.client.Status(); s.Quarantined != 2 || s.Delivered != 2 || s.State != Connected {
				t.Errorf("%+v", s)
			}
			if n := strings.Count(r.log.String(), "set aside in quarantine"); n != 2 {
				t.Errorf("the log tells of %d:\n%s", n, &r.log)
			}
		})
	})
	t.Run("all bad", func(t *testing.T) {
		inBubble(t, poison("M1", "M2", "M3"), few, func(t *testing.T, r *rig) {
			r.start()
			r.enqueue("M1", "M2", "M3")
			time.Sleep(2 * time.Hour)
			if got := r.state(); !strings.HasPrefix(got, "M1 quarantined") || strings.Count(got, "quarantined") != 1 {
				t.Errorf("the spool has %s", got)
			}
			if s := r.client.Status(); s.State != Held {
				t.Errorf("%+v", s)
			}
		})
	})
}

func TestRejectedMessageIsSetAsideAndTheNextOneSent(t *testing.T) {
	inBubble(t, script("CR"), nil, func(t *testing.T, r *rig) {
		r.start()
		r.enqueue("M1", "M2")
		synctest.Wait()
		if got := r.state(); got != "M1 quarantined (the platform rejected it with CR: 102 (data type error) at OBX^6^5); " {
			t.Errorf("the spool has %s", got)
		}
		s := r.client.Status()
		if s.Delivered != 1 || s.Quarantined != 1 || s.State != Connected || s.Attempts != 0 {
			t.Errorf("%+v", s)
		}
		if log := r.log.String(); !strings.Contains(log, "level=ERROR") || !strings.Contains(log, "control_id=M1") {
			t.Errorf("the log says %s", log)
		}
		// Released, it goes out again.
		var id uint64
		r.spool.List("", func(e spool.Entry) error { id = e.ID; return nil })
		if err := r.spool.Release(id); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if got := r.f.received(); !slices.Equal(got, []string{"M1", "M2", "M1"}) || r.state() != "" {
			t.Errorf("the platform got %v, the spool has %s", got, r.state())
		}
	})
}

func TestRejectedMessageIsTriedAsOftenAsConfigured(t *testing.T) {
	three := func(d *Destination, _ *Options) { d.RejectTries = 3 }
	inBubble(t, script("AR", "AR"), three, func(t *testing.T, r *rig) {
		r.start()
		r.enqueue("M1")
		time.Sleep(time.Minute)
		if got := r.f.received(); len(got) != 3 || r.state() != "" {
			t.Errorf("the platform got %v, the spool has %s", got, r.state())
		}
	})
}

func TestHaltKeepsARejectedMessageFirst(t *testing.T) {
	halt := func(d *Destination, _ *Options) { d.OnReject = Halt }
	inBubble(t, script("CR", "CR", "CR", "CR"), halt, func(t *testing.T, r *rig) {
		r.start()
		r.enqueue("M1", "M2")
		time.Sleep(150 * time.Second)
		synctest.Wait()
		if got := r.f.received(); !slices.Equal(got, []string{"M1", "M1", "M1"}) {
			t.Errorf("in 150 s the platform got %v", got)
		}
		if s := r.client.Status(); s.State != Halted || !strings.Contains(s.Fault, "gatewayd spool drop") || s.Quarantined != 0 {
			t.Errorf("%+v", s)
		}
		// The operator drops it and has the client look again.
		var first uint64
		r.spool.List("", func(e spool.Entry) error {
			if e.ControlID == "M1" {
				first = e.ID
			}
			return nil
		})
		if err := r.spool.Drop(first, "operator"); err != nil {
			t.Fatal(err)
		}
		r.client.Resume()
		synctest.Wait()
		if got := r.f.received(); got[len(got)-1] != "M2" {
			t.Errorf("after the drop the platform got %v", got)
		}
	})
}

// Medplum #9346, Mirth #637: nothing is forgotten and nothing overtaken in an outage.
func TestOutageOfADayThenDrainInOrder(t *testing.T) {
	inBubble(t, takeAll, nil, func(t *testing.T, r *rig) {
		r.f.setDown(errDown)
		r.start()
		var want []string
		for i := range 24 * 6 {
			want = append(want, fmt.Sprintf("M%03d", i))
			r.enqueue(want[i])
			time.Sleep(10 * time.Minute)
		}
		synctest.Wait()
		s := r.client.Status()
		if s.State != Unreachable || s.Attempts < 1300 || s.Attempts > 1500 || !strings.Contains(s.Fault, "nothing listens there") {
			t.Errorf("after a day: %+v", s)
		}
		log := r.log.String()
		if n := strings.Count(log, "\n"); n > 24*12+2 {
			t.Errorf("a day of outage filled %d lines of log", n)
		}
		if !strings.Contains(log, "the platform still does not take messages") || !strings.Contains(log, "oldest_message=23:5") {
			t.Errorf("the log ends with %s", log[max(0, len(log)-300):])
		}
		r.f.setDown(nil)
		time.Sleep(lastPause)
		synctest.Wait()
		if got := r.f.received(); !slices.Equal(got, want) {
			t.Errorf("the platform got %d messages, in the order %v", len(got), got)
		}
		if log := r.log.String(); !strings.Contains(log, "takes messages again") || !strings.Contains(log, "down_for=24:00:") {
			t.Errorf("the log ends with %s", log[max(0, len(log)-300):])
		}
	})
}

func TestBackoffGrowsToAMinuteWithJitterAndBeginsAnewAfterASuccess(t *testing.T) {
	var mu sync.Mutex
	var at []time.Time
	dials := func() []time.Time {
		mu.Lock()
		defer mu.Unlock()
		was := at
		at = nil
		return was
	}
	half := func(_ *Destination, o *Options) {
		o.Rand = func() float64 { return 0.5 }
		dial := o.Dial
		o.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			mu.Lock()
			at = append(at, time.Now())
			mu.Unlock()
			return dial(ctx, network, address)
		}
	}
	inBubble(t, script("hangup", "CA", "hangup", "CA", "CE"), half, func(t *testing.T, r *rig) {
		r.f.setDown(errDown)
		r.start()
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		var pauses []float64
		at := dials()
		for i := 1; i < len(at); i++ {
			pauses = append(pauses, at[i].Sub(at[i-1]).Seconds())
		}
		if want := []float64{0.75, 1.5, 3, 6, 12, 24, 45, 45, 45, 45, 45}; !slices.Equal(pauses, want) {
			t.Errorf("pauses are %v, not %v", pauses, want)
		}
		r.f.setDown(nil)
		r.enqueue("M1")
		time.Sleep(3 * time.Minute) // connected, hung up, pause, delivered
		dials()
		before := time.Now()
		r.enqueue("M2") // hung up on a connection that worked: at once again
		synctest.Wait()
		if at := dials(); len(at) != 1 || !at[0].Equal(before) || r.state() != "" {
			t.Errorf("dialled at %v, now is %v, spool %s", at, before, r.state())
		}
		r.enqueue("M3")
		synctest.Wait()
		if s := r.client.Status(); time.Until(s.NextAttempt) != 750*time.Millisecond {
			t.Errorf("after a success the pause is %v", time.Until(s.NextAttempt))
		}
	})
}

// ITI TF-2 C.2.1: either side may close an idle connection.
func TestConnectionClosedWhileIdleIsOpenedForTheNextMessage(t *testing.T) {
	oneEach := func(_ int, p *peer) {
		if p.read() {
			p.ack("CA")
			p.goodbye()
		}
	}
	inBubble(t, oneEach, nil, func(t *testing.T, r *rig) {
		r.start()
		for i := range 5 {
			r.enqueue(fmt.Sprintf("M%d", i))
			synctest.Wait()
			if s := r.client.Status(); s.State != Idle || s.Connected || s.Attempts != 0 || s.Delivered != uint64(i+1) {
				t.Errorf("after message %d: %+v", i, s)
			}
			time.Sleep(time.Minute)
		}
		if got := r.f.received(); len(got) != 5 {
			t.Errorf("the platform got %v", got)
		}
		if n := r.f.connections(); n != 5 {
			t.Errorf("it took %d connections", n)
		}
	})
}

// A platform that hangs up on each new connection is tried with backoff, not in a loop.
func TestPlatformThatHangsUpAtOnceIsTriedWithBackoff(t *testing.T) {
	inBubble(t, func(_ int, p *peer) { p.goodbye() }, nil, func(t *testing.T, r *rig) {
		r.start()
		r.enqueue("M1")
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if n := r.f.connections(); n < 10 || n > 30 {
			t.Errorf("%d connections in ten minutes", n)
		}
		if s := r.client.Status(); s.State != Unreachable || !strings.Contains(s.Fault, "; see the platform's log") || s.Delivered != 0 {
			t.Errorf("%+v", s)
		}
		if got := r.state(); !strings.HasPrefix(got, "M1 queued") {
			t.Errorf("the spool has %s", got)
		}
	})
}

// A deaf connection is one that the kernel resets once the message is sent:
// what the platform has sent by then is lost, its alert among it.
type deaf struct {
	net.Conn
	sent atomic.Bool
}

func (d *deaf) Write(b []byte) (int, error) {
	if len(b) > 4<<10 { // more than any part of the handshake
		d.sent.Store(true)
		return len(b), nil
	}
	return d.Conn.Write(b)
}

func (d *deaf) Read(b []byte) (int, error) {
	n, err := d.Conn.Read(b)
	time.Sleep(100 * time.Millisecond)
	if d.sent.Load() {
		return 0, &net.OpError{Op: "read", Net: "tcp", Err: os.NewSyscallError("read", syscall.ECONNRESET)}
	}
	return n, err
}

// In TLS 1.3 a platform refuses our certificate after our handshake, and its
// alert is lost where our message is in its way. From the second attempt on the
// status has it all the same.
func TestRefusalThatIsLostOnTheWayIsFoundOut(t *testing.T) {
	change := func(d *Destination, o *Options) {
		d.TLS = policy(t, "device-foreign")
		dial := o.Dial
		o.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := dial(ctx, network, address)
			return &deaf{Conn: conn}, err
		}
	}
	inBubble(t, takeAll, change, func(t *testing.T, r *rig) {
		long := append(message("M1"), bytes.Repeat([]byte("NTE|1||"+secret+"\r"), 500)...)
		if _, err := r.spool.Enqueue(t.Context(), spool.Entry{Queue: "platform", ControlID: "M1", Payload: long}); err != nil {
			t.Fatal(err)
		}
		r.start()
		time.Sleep(800 * time.Millisecond)
		synctest.Wait()
		if s := r.client.Status(); s.State != Unreachable || !strings.Contains(s.Fault, "reset the connection") || s.Attempts != 1 {
			t.Errorf("after the first attempt: %+v", s)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if s := r.client.Status(); s.State != Refused || !strings.Contains(s.Fault, "TLS alert 48") {
			t.Errorf("later: %+v", s)
		}
		if n := r.f.received(); len(n) != 0 {
			t.Errorf("the platform got %v", n)
		}
	})
}

// A platform may choose one of the CBC suites that the specification lists; it
// is counted, and told once.
func TestASessionWithACBCSuiteIsCountedAndWarnedOf(t *testing.T) {
	for suite, counted := range map[uint16]bool{tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384: false, tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256: true} {
		serve := func(_ int, p *peer) {
			if p.read() {
				p.ack("CA")
				p.goodbye()
			}
		}
		inBubble(t, serve, nil, func(t *testing.T, r *rig) {
			r.f.tls.MaxVersion, r.f.tls.CipherSuites = tls.VersionTLS12, []uint16{suite}
			r.start()
			for i := range 2 {
				r.enqueue(fmt.Sprintf("M%d", i))
				time.Sleep(time.Second)
				synctest.Wait()
			}
			s := r.client.Status()
			want := uint64(0)
			if counted {
				want = 2
			}
			if s.CBC != want || s.Delivered != 2 || s.TLS != "TLS 1.2 "+tls.CipherSuiteName(suite) {
				t.Errorf("%+v", s)
			}
			if n := strings.Count(r.log.String(), "cipher suite of the CBC mode"); n != int(want/2) {
				t.Errorf("%d warnings in %s", n, &r.log)
			}
		})
	}
}

func TestOwnIdleTimeoutEndsInTheStateIdle(t *testing.T) {
	inBubble(t, takeAll, nil, func(t *testing.T, r *rig) {
		r.start()
		r.enqueue("M1")
		time.Sleep(DefaultIdleTimeout + time.Second)
		synctest.Wait()
		if s := r.client.Status(); s.State != Idle || s.Connected || time.Since(s.Since) != time.Second {
			t.Errorf("%+v", s)
		}
		r.enqueue("M2")
		synctest.Wait()
		if s := r.client.Status(); s.State != Connected || s.Delivered != 2 || r.f.connections() != 2 {
			t.Errorf("%+v", s)
		}
	})
}

// B17, B18: reject, log an error, retry later. It shows before the first message.
func TestB17_RefusalIsLoggedAsAnErrorAndTriedAgain(t *testing.T) {
	for _, c := range []struct {
		name, certificate, device, text string
	}{
		{"ours", "platform-wrong-name", "device", "refused by rule B17"},
		{"theirs, after the handshake", "platform", "device-foreign", "TLS alert 48"},
	} {
		t.Run(c.name, func(t *testing.T) {
			change := func(d *Destination, _ *Options) { d.TLS = policy(t, c.device) }
			inBubble(t, takeAll, change, func(t *testing.T, r *rig) {
				r.f.present(c.certificate)
				r.start()
				time.Sleep(10 * time.Minute)
				synctest.Wait()
				s := r.client.Status()
				if s.State != Refused || !strings.Contains(s.Fault, c.text) || s.Attempts < 10 || s.Handshakes["refused"] != s.Attempts || time.Since(s.Since) < 9*time.Minute {
					t.Errorf("%+v", s)
				}
				if s.Declined != (c.device != "device") {
					t.Errorf("declined by the platform: %v", s.Declined)
				}
				if log := r.log.String(); !strings.Contains(log, "level=ERROR") || strings.Count(log, "level=ERROR") > 3 {
					t.Errorf("the log says %s", log)
				}
				if len(r.f.received()) != 0 {
					t.Error("it was sent to")
				}
			})
		})
	}
}

// A11: our own key's fault is nobody's refusal.
func TestAKeyThatDoesNotSignIsAStateOfItsOwn_A11(t *testing.T) {
	inBubble(t, takeAll, func(d *Destination, _ *Options) { dumb(d) }, func(t *testing.T, r *rig) {
		r.start()
		r.enqueue("M1")
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		s := r.client.Status()
		if s.State != KeyFault || s.Declined || !strings.Contains(s.Fault, "the TPM is away") || s.Handshakes["key"] != s.Attempts || s.Handshakes["refused"] != 0 {
			t.Errorf("%+v", s)
		}
		if log := r.log.String(); !strings.Contains(log, "level=ERROR") || !strings.Contains(log, "own key does not sign") {
			t.Errorf("the log says %s", log)
		}
	})
}

// How long a platform has declined our certificate does not count from when a rule
// of ours refused it.
func TestARefusalByThePlatformBeginsWhereOursEnds(t *testing.T) {
	change := func(d *Destination, _ *Options) {
		d.TLS = policy(t, "device-foreign")
		d.TLS.MaxVersion = tls.VersionTLS12 // the platform's word is in the handshake
	}
	inBubble(t, takeAll, change, func(t *testing.T, r *rig) {
		r.f.present("platform-wrong-name")
		r.start()
		time.Sleep(time.Hour)
		synctest.Wait()
		if s := r.client.Status(); s.State != Refused || s.Declined || time.Since(s.Since) < 59*time.Minute {
			t.Errorf("ours: %+v", s)
		}
		r.f.present("platform")
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if s := r.client.Status(); s.State != Refused || !s.Declined || time.Since(s.Since) > 10*time.Minute {
			t.Errorf("the platform's: %+v", s)
		}
	})
}

func TestRefusedPlatformThatMendsItselfGetsItsMessages(t *testing.T) {
	inBubble(t, takeAll, nil, func(t *testing.T, r *rig) {
		r.f.present("platform-expired")
		r.start()
		r.enqueue("M1")
		time.Sleep(time.Minute)
		synctest.Wait()
		r.f.present("platform")
		time.Sleep(lastPause)
		synctest.Wait()
		if s := r.client.Status(); s.State != Connected || s.Delivered != 1 || s.Attempts != 0 {
			t.Errorf("%+v", s)
		}
	})
}

// Without messages, a connection that lasts ends the trouble; one that the
// platform cuts in TLS 1.3 right after the handshake does not.
func TestConnectionThatLastsIsGoodWithoutAMessage(t *testing.T) {
	inBubble(t, takeAll, nil, func(t *testing.T, r *rig) {
		r.f.setDown(errDown)
		r.start()
		time.Sleep(500 * time.Millisecond)
		r.f.setDown(nil)
		time.Sleep(600 * time.Millisecond)
		synctest.Wait()
		if s := r.client.Status(); s.State != Unreachable || !s.Connected {
			t.Errorf("just connected: %+v", s)
		}
		time.Sleep(probation)
		synctest.Wait()
		if s := r.client.Status(); s.State != Connected || s.Fault != "" || s.Attempts != 0 {
			t.Errorf("after a while: %+v", s)
		}
	})
}

// Architecture, decision 1: two destinations, one dead, and the other does not stall.
func TestDeadDestinationDoesNotHoldUpAnother(t *testing.T) {
	inBubble(t, takeAll, nil, func(t *testing.T, r *rig) {
		dead := newPlatform(t, func(_ int, p *peer) { io.Copy(io.Discard, p.tls) })
		d := destination(t)
		d.Name = "dead"
		other := NewClient(d, r.spool.Queue("dead"), Options{Dial: dead.dial})
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { other.Run(ctx) })
		r.start()
		began := time.Now()
		for i := range 20 {
			id := fmt.Sprintf("M%02d", i)
			if _, err := r.spool.Enqueue(t.Context(), spool.Entry{Queue: "dead", Device: "bed-1", ControlID: id, Payload: message(id)}); err != nil {
				t.Fatal(err)
			}
			r.enqueue(id)
		}
		synctest.Wait()
		if s := r.client.Status(); s.Delivered != 20 || time.Since(began) != 0 {
			t.Errorf("after %v: %+v", time.Since(began), s)
		}
		time.Sleep(time.Minute)
		if s := other.Status(); s.State != Unanswered || s.Delivered != 0 {
			t.Errorf("the dead one: %+v", s)
		}
		cancel()
		running.Wait()
	})
}

func TestPacingKeepsAGapBetweenMessages(t *testing.T) {
	pacing := func(d *Destination, _ *Options) { d.Pacing = 2 * time.Second }
	inBubble(t, takeAll, pacing, func(t *testing.T, r *rig) {
		r.start()
		r.enqueue("M1", "M2", "M3")
		synctest.Wait()
		for want := 1; want <= 3; want++ {
			if got := len(r.f.received()); got != want {
				t.Errorf("%d messages after %d gaps", got, want-1)
			}
			time.Sleep(2 * time.Second)
			synctest.Wait()
		}
	})
}

func TestShutdownFinishesTheExchangeOrLeavesTheMessage(t *testing.T) {
	for _, c := range []struct {
		name  string
		takes time.Duration
		ends  time.Duration
		spool string
	}{
		{"answered within the grace", 4 * time.Second, 4 * time.Second, "M2 queued; "},
		{"not answered within it", 9 * time.Second, DefaultGrace, "M1 queued (the gateway stopped before the acknowledgement came); M2 queued; "},
	} {
		t.Run(c.name, func(t *testing.T) {
			slow := func(_ int, p *peer) {
				for p.read() {
					time.Sleep(c.takes)
					p.ack("CA")
				}
			}
			inBubble(t, slow, nil, func(t *testing.T, r *rig) {
				r.start()
				r.enqueue("M1", "M2")
				synctest.Wait()
				began := time.Now()
				r.end()
				if took := time.Since(began); took != c.ends {
					t.Errorf("it took %v", took)
				}
				if got := r.state(); got != c.spool {
					t.Errorf("the spool has %s", got)
				}
			})
		})
	}
}

func TestShutdownDoesNotWaitWhileThereIsNothingToFinish(t *testing.T) {
	for name, down := range map[string]error{"idle": nil, "in a pause": errDown} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, takeAll, nil, func(t *testing.T, r *rig) {
				r.f.setDown(down)
				r.start()
				time.Sleep(100 * time.Second)
				began := time.Now()
				r.end()
				if took := time.Since(began); took != 0 {
					t.Errorf("it took %v", took)
				}
			})
		})
	}
}

// thingsboard-gateway #2124: a reload never touches what is stored.
func TestAnotherClientGoesOnWhereTheLastOneStopped(t *testing.T) {
	inBubble(t, script("silence"), nil, func(t *testing.T, r *rig) {
		r.start()
		r.enqueue("M1", "M2")
		synctest.Wait()
		r.end()
		r.client = r.newClient(r.spool.Queue("platform"), func(d *Destination, _ *Options) { d.AckTimeout = time.Second })
		r.start()
		synctest.Wait()
		if got := r.f.received(); !slices.Equal(got, []string{"M1", "M1", "M2"}) || r.state() != "" {
			t.Errorf("the platform got %v, the spool has %s", got, r.state())
		}
	})
}

func TestClientRunsOnceAtATimeAndAgainAfterwards(t *testing.T) {
	inBubble(t, takeAll, nil, func(t *testing.T, r *rig) {
		r.start()
		synctest.Wait()
		if err := r.client.Run(t.Context()); err == nil {
			t.Error("it ran twice")
		}
		r.end()
		r.start()
		r.enqueue("M1")
		synctest.Wait()
		if s := r.client.Status(); s.Delivered != 1 {
			t.Errorf("%+v", s)
		}
	})
}

// A message of another hand, with a frame byte in it, must not stop the queue.
func TestMessageThatCannotBeFramedIsSetAside(t *testing.T) {
	inBubble(t, takeAll, nil, func(t *testing.T, r *rig) {
		bad := spool.Entry{Queue: "platform", Device: "bed-1", ControlID: "BAD", Payload: append(message("BAD"), "NTE|||\x0b\r"...)}
		if _, err := r.spool.Enqueue(t.Context(), bad); err != nil {
			t.Fatal(err)
		}
		r.enqueue("M1")
		r.start()
		synctest.Wait()
		got := r.state()
		if !strings.HasPrefix(got, "BAD quarantined (cannot be sent: ") || !strings.Contains(got, "0x0B at position") || !slices.Equal(r.f.received(), []string{"M1"}) {
			t.Errorf("the spool has %s, the platform got %v", got, r.f.received())
		}
	})
}

// A disk that fails after the platform has taken a message: nothing else is
// sent, and nothing twice, until the disk works again.
func TestStoreThatFailsIsAskedAgainBeforeAnythingElseIsSent(t *testing.T) {
	inBubble(t, takeAll, nil, func(t *testing.T, r *rig) {
		q := &failing{Queue: r.spool.Queue("platform"), left: 4}
		r.client = r.newClient(q, nil)
		r.start()
		r.enqueue("M1", "M2")
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if s := r.client.Status(); s.State != StoreFault || !strings.Contains(s.Fault, "check the gateway's disk") {
			t.Errorf("%+v", s)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if got := r.f.received(); !slices.Equal(got, []string{"M1", "M2"}) || r.state() != "" {
			t.Errorf("the platform got %v, the spool has %s", got, r.state())
		}
		if s := r.client.Status(); s.State != Connected || s.Delivered != 2 {
			t.Errorf("%+v", s)
		}
	})
}

type failing struct {
	Queue
	left int
}

func (q *failing) Accepted(id uint64) error {
	if q.left--; q.left >= 0 {
		return spool.ErrDisk
	}
	return q.Queue.Accepted(id)
}

func TestClosedSpoolEndsTheClient(t *testing.T) {
	inBubble(t, takeAll, nil, func(t *testing.T, r *rig) {
		ended := make(chan error, 1)
		go func() { ended <- r.client.Run(t.Context()) }()
		synctest.Wait()
		r.spool.Close()
		if err := <-ended; !errors.Is(err, spool.ErrClosed) || !strings.Contains(err.Error(), "destination platform") {
			t.Errorf("Run ended with %v", err)
		}
		r.spool, _ = spool.Open(filepath.Join(t.TempDir(), "other.db"), spool.Options{MaxBytes: 1 << 20})
		t.Cleanup(func() { r.spool.Close() })
	})
}

// An entry that the spool gave up between Next and Sent is not sent.
func TestEntryGivenUpMeanwhileIsNotSent(t *testing.T) {
	inBubble(t, takeAll, nil, func(t *testing.T, r *rig) {
		q := &dropping{Queue: r.spool.Queue("platform"), spool: r.spool}
		r.client = r.newClient(q, nil)
		r.start()
		r.enqueue("M1", "M2")
		synctest.Wait()
		if got := r.f.received(); !slices.Equal(got, []string{"M2"}) {
			t.Errorf("the platform got %v", got)
		}
	})
}

type dropping struct {
	Queue
	spool *spool.Spool
	done  bool
}

func (q *dropping) Sent(id uint64) error {
	if !q.done {
		q.done = true
		q.Queue.Retry(id, "") // no longer claimed
		if err := q.spool.Drop(id, "test"); err != nil {
			return err
		}
	}
	return q.Queue.Sent(id)
}

func TestAnswersForOthersAreLoggedNowAndThen(t *testing.T) {
	chatty := func(_ int, p *peer) {
		for p.read() {
			p.write(block(strings.Replace(p.answer("CR"), "MSA|CR|M", "MSA|CR|"+secret, 1)), block(p.answer("CA")))
		}
	}
	inBubble(t, chatty, nil, func(t *testing.T, r *rig) {
		r.start()
		for i := range 20 {
			r.enqueue(fmt.Sprintf("M%d", i))
			time.Sleep(time.Second)
		}
		if s := r.client.Status(); s.OtherAcks != 20 || s.Delivered != 20 || s.Quarantined != 0 {
			t.Errorf("%+v", s)
		}
		if n := strings.Count(r.log.String(), "answered for another message"); n != 1 {
			t.Errorf("%d lines of log", n)
		}
	})
}

func TestWrongSettingsShowAsARefusal(t *testing.T) {
	inBubble(t, takeAll, func(d *Destination, _ *Options) { d.TLS = nil }, func(t *testing.T, r *rig) {
		r.start()
		r.enqueue("M1")
		time.Sleep(time.Minute)
		synctest.Wait()
		if s := r.client.Status(); s.State != Refused || !strings.Contains(s.Fault, "nothing is sent without TLS") || r.f.connections() != 0 {
			t.Errorf("%+v", s)
		}
	})
}

// A queue tells the messages of several devices apart by more than their
// control ID; the platform knows nothing else.
func TestTheAnswerBelongsToMSH10AndNotToTheNameInTheQueue(t *testing.T) {
	inBubble(t, takeAll, nil, func(t *testing.T, r *rig) {
		for _, device := range []string{"A", "B"} {
			if _, err := r.spool.Enqueue(t.Context(), spool.Entry{Queue: "platform", Device: device, ControlID: device + "|M1", Payload: message("M1")}); err != nil {
				t.Fatal(err)
			}
		}
		r.start()
		time.Sleep(time.Second)
		synctest.Wait()
		if got := r.f.received(); len(got) != 2 || r.state() != "" {
			t.Errorf("the platform got %v; %s", got, r.state())
		}
	})
}
