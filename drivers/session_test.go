package drivers_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/bedside-gateway/gatewayd/drivers"
	"github.com/bedside-gateway/gatewayd/drivers/drivertest"
	"github.com/bedside-gateway/gatewayd/drivers/port"
	"github.com/bedside-gateway/gatewayd/observation"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fake is a driver whose parts a test sets.
type fake struct {
	info     drivers.Info
	identify func([]byte) drivers.Match
	permit   func([]byte) error
	machine  func(drivers.Settings, drivers.Host) (drivers.Machine, error)
}

func (f *fake) Info() drivers.Info { return f.info }

func (f *fake) Identify(b []byte) drivers.Match {
	if f.identify == nil {
		return drivers.NeedMore
	}
	return f.identify(b)
}

func (f *fake) Permit(frame []byte) error {
	if f.permit == nil {
		return nil
	}
	return f.permit(frame)
}

func (f *fake) New(s drivers.Settings, h drivers.Host) (drivers.Machine, error) {
	if f.machine == nil {
		return &script{}, nil
	}
	return f.machine(s, h)
}

// script is a machine whose parts a test sets.
type script struct {
	start   func(time.Time) error
	receive func(time.Time, []byte) error
	tick    func(time.Time) error
	wake    func() time.Time
	stop    func(time.Time)
}

func (m *script) Start(now time.Time) error {
	if m.start == nil {
		return nil
	}
	return m.start(now)
}

func (m *script) Receive(now time.Time, p []byte) error {
	if m.receive == nil {
		return nil
	}
	return m.receive(now, p)
}

func (m *script) Tick(now time.Time) error {
	if m.tick == nil {
		return nil
	}
	return m.tick(now)
}

func (m *script) Wake() time.Time {
	if m.wake == nil {
		return time.Time{}
	}
	return m.wake()
}

func (m *script) Stop(now time.Time) {
	if m.stop != nil {
		m.stop(now)
	}
}

// bench is a session on links in memory, in a bubble of its own.
type bench struct {
	t       *testing.T
	began   time.Time
	session *drivers.Session
	log     bytes.Buffer
	reports int
	mu      sync.Mutex
	opened  []string // when, and at which line
	ends    []*drivertest.DeviceEnd
	open    func(line port.Line) (port.Port, error)
	cancel  context.CancelFunc
	done    chan error
}

// run runs a session of d; change changes what it is made of.
func run(t *testing.T, d *fake, change func(*bench, *drivers.SessionConfig), then func(*bench)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		b := &bench{t: t, began: time.Now(), done: make(chan error, 1)}
		d.info.Name, d.info.Title = "fake", "a fake device"
		cfg := drivers.SessionConfig{
			Name: "bed-1", Driver: d,
			Open: func(_ context.Context, line port.Line) (port.Port, error) {
				b.mu.Lock()
				b.opened = append(b.opened, fmt.Sprintf("%v %v", time.Since(b.began), line))
				b.mu.Unlock()
				if b.open != nil {
					return b.open(line)
				}
				return b.plug(false), nil
			},
			Sink: func(*observation.Report) { b.reports++ },
			Log:  slog.New(slog.NewTextHandler(&b.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
			Rand: func() float64 { return 1 },
		}
		if change != nil {
			change(b, &cfg)
		}
		var err error
		if b.session, err = drivers.NewSession(cfg); err != nil {
			t.Fatal(err)
		}
		var ctx context.Context
		ctx, b.cancel = context.WithCancel(context.Background())
		go func() { b.done <- b.session.Run(ctx) }()
		then(b)
		b.end()
	})
}

// plug connects a new device.
func (b *bench) plug(datagrams bool) port.Port {
	p, end := drivertest.NewLink(datagrams)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ends = append(b.ends, end)
	return p
}

// device is the end of the newest link, once the session has done what it can now.
func (b *bench) device() *drivertest.DeviceEnd {
	synctest.Wait()
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.ends[len(b.ends)-1]
}

// openings are when the port was opened.
func (b *bench) openings() []string {
	synctest.Wait()
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.opened
}

// at waits until d after the beginning.
func (b *bench) at(d time.Duration) {
	b.t.Helper()
	time.Sleep(d - time.Since(b.began))
	synctest.Wait()
}

// got is what the device got so far.
func (b *bench) got() string {
	end := b.device()
	if err := end.SetReadDeadline(time.Now()); err != nil {
		b.t.Fatal(err)
	}
	var all []byte
	buf := make([]byte, 1024)
	for {
		n, err := end.Read(buf)
		all = append(all, buf[:n]...)
		if err != nil {
			return string(all)
		}
	}
}

func (b *bench) send(text string) {
	if _, err := b.device().Write([]byte(text)); err != nil {
		b.t.Error("the device cannot send:", err)
	}
	synctest.Wait()
}

func (b *bench) state(want drivers.State) {
	b.t.Helper()
	if st := b.session.Status(); st.State != want {
		b.t.Errorf("after %v the session is %v, not %v (%s)", time.Since(b.began), st.State, want, st.LastError)
	}
}

func (b *bench) lastError(words ...string) {
	b.t.Helper()
	st := b.session.Status()
	for _, w := range words {
		if !strings.Contains(st.LastError, w) {
			b.t.Errorf("the last error is %q, which does not say %q", st.LastError, w)
		}
	}
}

func (b *bench) end() {
	b.t.Helper()
	synctest.Wait()
	began := time.Now()
	b.cancel()
	if err := <-b.done; !errors.Is(err, context.Canceled) {
		b.t.Errorf("Run ended with %v", err)
	}
	if d := time.Since(began); d > time.Second {
		b.t.Errorf("Run ended %v after its context", d)
	}
	if st := b.session.Status(); st.State != drivers.Closed {
		b.t.Errorf("it left the session %v", st.State)
	}
}

// asker asks "?" at the start, is live with the first "!", and says "bye".
func asker() *fake {
	return &fake{
		info: drivers.Info{Silence: 10 * time.Second, Lines: []port.Line{{Baud: 9600, DataBits: 8, Parity: port.None, StopBits: 1}}},
		identify: func(b []byte) drivers.Match {
			switch {
			case bytes.ContainsRune(b, '!'):
				return drivers.Certain
			case bytes.ContainsRune(b, 'x'):
				return drivers.NoMatch
			}
			return drivers.NeedMore
		},
		permit: func(b []byte) error {
			if s := string(b); s != "?" && s != "bye" {
				return fmt.Errorf("%q is no question", s)
			}
			return nil
		},
		machine: func(_ drivers.Settings, h drivers.Host) (drivers.Machine, error) {
			return &script{
				start: func(time.Time) error { h.Send([]byte("?")); return nil },
				receive: func(_ time.Time, p []byte) error {
					for _, c := range p {
						switch c {
						case '!':
							h.Count(drivers.FrameGood)
							h.State(drivers.Live)
							h.Report(&observation.Report{Observations: make([]observation.Observation, 3)})
						case 'e':
							return drivers.ErrDeviceClosed
						default:
							h.Count(drivers.FrameNoise)
						}
					}
					return nil
				},
				stop: func(time.Time) { h.Send([]byte("bye")) },
			}, nil
		},
	}
}

func TestASessionListensAsksIsLiveAndFallsSilent(t *testing.T) {
	run(t, asker(), nil, func(b *bench) {
		b.at(1999 * time.Millisecond)
		b.state(drivers.Probing)
		if got := b.got(); got != "" {
			t.Errorf("%q was sent before the quiet time was over", got)
		}
		b.at(2 * time.Second)
		b.state(drivers.Associating)
		if got := b.got(); got != "?" {
			t.Errorf("sent %q", got)
		}
		b.send("!..!")
		b.state(drivers.Live)
		st := b.session.Status()
		want := drivers.Frames{drivers.FrameGood: 2, drivers.FrameNoise: 2}
		if st.Reports != 2 || st.Observations != 6 || b.reports != 2 || st.Frames != want || st.BytesReceived != 4 ||
			st.BytesSent != 1 || st.Requests != 1 || st.Line != "9600 8N1" || !st.LastReport.Equal(time.Now()) {
			t.Errorf("%+v", st)
		}
		b.at(12 * time.Second)
		b.state(drivers.Silent)
		b.send("!")
		b.state(drivers.Live)
		b.cancel()
		synctest.Wait()
		if got := b.got(); got != "bye" {
			t.Errorf("the goodbye is %q", got)
		}
	})
}

func TestASilentPortIsOpenedAnew(t *testing.T) {
	run(t, asker(), nil, func(b *bench) {
		b.at(2 * time.Second)
		b.send("!")
		b.at(5*time.Minute + 13*time.Second)
		if st := b.session.Status(); st.Reopens != 1 || len(b.openings()) != 2 {
			t.Errorf("opened %v, %d reopens", b.opened, st.Reopens)
		}
		b.lastError("no report for 5m10s")
	})
}

func TestAnUnpluggedDeviceIsFoundAgain(t *testing.T) {
	var gone atomic.Bool
	gone.Store(true)
	run(t, asker(), func(b *bench, _ *drivers.SessionConfig) {
		b.open = func(port.Line) (port.Port, error) {
			if len(b.opened) > 1 && gone.Load() {
				return nil, fs.ErrNotExist
			}
			return b.plug(false), nil
		}
	}, func(b *bench) {
		b.at(2 * time.Second)
		b.send("!")
		b.device().Close()
		b.at(20 * time.Second)
		b.state(drivers.Closed)
		b.lastError("file does not exist")
		if st := b.session.Status(); st.NextOpen.Before(time.Now()) || time.Until(st.NextOpen) > 5*time.Second || st.Line != "" {
			t.Errorf("%+v", st)
		}
		gone.Store(false)
		b.at(27 * time.Second)
		b.send("!")
		b.state(drivers.Live)
		if st := b.session.Status(); st.Reopens != 1 || st.Sessions != 2 || st.Failures != 0 {
			t.Errorf("%+v", st)
		}
	})
}

// closing is a port that notes its closing.
type closing struct {
	port.Port
	open *int
}

func (c closing) Close() error { *c.open = 0; return c.Port.Close() }

func TestAPortIsClosedBeforeItIsOpenedAgain(t *testing.T) {
	open := 0
	run(t, asker(), func(b *bench, _ *drivers.SessionConfig) {
		b.open = func(port.Line) (port.Port, error) {
			if open++; open != 1 {
				t.Error("two ports are open")
			}
			return closing{b.plug(false), &open}, nil
		}
	}, func(b *bench) {
		b.at(2 * time.Second)
		for range 5 {
			b.send("e")
			time.Sleep(time.Minute)
			synctest.Wait()
		}
		if len(b.openings()) != 6 {
			t.Error(b.opened)
		}
		b.lastError("the device ended the session")
	})
	if open != 0 {
		t.Error("the port was left open")
	}
}

func TestTheBackoffGrowsAndBeginsAnewAfterASettledSession(t *testing.T) {
	run(t, asker(), func(_ *bench, cfg *drivers.SessionConfig) { cfg.Timing.Quiet = -1 }, func(b *bench) {
		var waits []time.Duration
		fail := func(after time.Duration) {
			b.send("!")
			time.Sleep(after)
			n, from := len(b.openings()), time.Now()
			b.send("e")
			for len(b.openings()) == n {
				time.Sleep(100 * time.Millisecond)
			}
			synctest.Wait()
			waits = append(waits, time.Since(from).Round(time.Second))
		}
		synctest.Wait()
		for range 8 {
			fail(0)
		}
		fail(31 * time.Second)
		want := "[1s 2s 4s 8s 16s 32s 1m0s 1m0s 1s]"
		if got := fmt.Sprint(waits); got != want {
			t.Errorf("waited %s, want %s", got, want)
		}
		// Each line is news at first, then ever more rarely.
		if n := strings.Count(b.log.String(), "session ended"); n != 9 {
			t.Errorf("%d lines in the log; a session that was live makes an error news", n)
		}
	})
}

func TestTheJitterTakesUpToHalfOfTheWait(t *testing.T) {
	for _, c := range []struct {
		chance float64
		want   string
	}{{0, "500ms"}, {0.5, "750ms"}} {
		run(t, asker(), func(b *bench, cfg *drivers.SessionConfig) {
			cfg.Rand = func() float64 { return c.chance }
			b.open = func(port.Line) (port.Port, error) { return nil, fs.ErrNotExist }
		}, func(b *bench) {
			b.at(time.Second)
			if len(b.openings()) < 2 || !strings.HasPrefix(b.opened[1], c.want) {
				t.Errorf("opened at %v, want %s", b.opened, c.want)
			}
		})
	}
}

func TestAnErrorThatRepeatsIsLoggedEverMoreRarely(t *testing.T) {
	run(t, asker(), func(b *bench, _ *drivers.SessionConfig) {
		b.open = func(port.Line) (port.Port, error) { return nil, fs.ErrNotExist }
	}, func(b *bench) {
		b.at(time.Hour)
		if n := strings.Count(b.log.String(), "session ended"); len(b.openings()) < 700 || n != 10 {
			t.Errorf("%d attempts made %d lines", len(b.opened), n)
		}
		if !strings.Contains(b.log.String(), "attempts=512") {
			t.Error(b.log.String())
		}
	})
}

func TestAnotherMasterOnTheLineKeepsTheSessionOff(t *testing.T) {
	run(t, asker(), nil, func(b *bench) {
		for b.session.Status().LastError == "" && time.Since(b.began) < time.Minute {
			b.send("!")
			time.Sleep(time.Second)
		}
		b.lastError("another master is on the line", "listen_only = true")
		if st := b.session.Status(); st.BytesSent != 0 || st.Sessions != 0 {
			t.Errorf("%+v", st)
		}
	})
}

func TestTrafficThatEndsIsWaitedFor(t *testing.T) {
	run(t, asker(), nil, func(b *bench) {
		for range 10 {
			b.send("!")
			time.Sleep(time.Second)
		}
		b.state(drivers.Probing)
		b.at(12 * time.Second)
		if got := b.got(); got != "?" || len(b.openings()) != 1 {
			t.Errorf("sent %q, opened %v", got, b.opened)
		}
	})
}

func TestWhatADeviceStillSendsAfterOurOwnSessionIsNoOtherMaster(t *testing.T) {
	run(t, asker(), nil, func(b *bench) {
		b.at(2 * time.Second)
		b.send("!")
		b.device().Close()
		b.at(3 * time.Second)
		for range 3 {
			b.send("!")
			time.Sleep(time.Second)
		}
		synctest.Wait()
		if got := b.got(); got != "?" {
			t.Errorf("sent %q", got)
		}
	})
}

func TestAForeignProtocolIsNamedAndNothingIsSent(t *testing.T) {
	other := named("medibus", drivers.Certain)
	known, err := drivers.NewRegistry(other)
	if err != nil {
		t.Fatal(err)
	}
	run(t, asker(), func(_ *bench, cfg *drivers.SessionConfig) { cfg.Known = known }, func(b *bench) {
		b.at(time.Second)
		b.send(strings.Repeat("x", 31))
		b.state(drivers.Probing) // as little may be noise
		b.send("x")
		b.state(drivers.Closed)
		b.lastError("another protocol", "at 9600 8N1", "not a fake device, it is MEDIBUS")
		if st := b.session.Status(); st.BytesSent != 0 {
			t.Errorf("%+v", st)
		}
	})
}

func TestNoiseOfPluggingInIsPassedOver(t *testing.T) {
	run(t, asker(), nil, func(b *bench) {
		b.send("xxxx")
		b.at(2 * time.Second)
		if got := b.got(); got != "?" {
			t.Errorf("sent %q", got)
		}
	})
}

func lines(bauds ...int) (l []port.Line) {
	for _, b := range bauds {
		l = append(l, port.Line{Baud: b, DataBits: 8, Parity: port.None, StopBits: 1})
	}
	return l
}

func TestTheLineIsFoundAndKept(t *testing.T) {
	for _, passive := range []bool{false, true} {
		d := asker()
		d.info.Lines, d.info.Passive = lines(115200, 19200, 9600), passive
		run(t, d, func(b *bench, _ *drivers.SessionConfig) {
			b.open = func(line port.Line) (port.Port, error) {
				p := b.plug(false)
				if end := b.device(); line.Baud == 19200 {
					time.AfterFunc(1500*time.Millisecond, func() { end.Write([]byte("!")) })
					time.AfterFunc(3*time.Second, func() { end.Write([]byte("!")) })
				}
				return p, nil
			}
		}, func(b *bench) {
			b.at(20 * time.Second)
			if b.session.Status().Line != "19200 8N1" || len(b.openings()) != 2 {
				t.Error(b.session.Status(), b.opened)
			}
			b.device().Close()
			time.Sleep(10 * time.Second)
			if len(b.openings()) != 3 || !strings.HasSuffix(b.opened[2], "19200 8N1") {
				t.Error("the line was not kept:", b.opened)
			}
		})
	}
}

func TestLinesThatAllFailAreNamed(t *testing.T) {
	d := asker()
	d.info.Lines = lines(115200, 19200)
	run(t, d, nil, func(b *bench) {
		b.at(24 * time.Second)
		b.lastError("none of the lines fits (115200 8N1, 19200 8N1)", "nothing was understood at 19200 8N1 for 10s")
		b.state(drivers.Closed)
		if st := b.session.Status(); st.Failures != 1 {
			t.Errorf("%+v", st)
		}
		// The second round is a whole one, too: no backoff between its lines.
		for i, at := range []time.Duration{40 * time.Second, 50 * time.Second} {
			b.at(at)
			if st := b.session.Status(); st.Failures != uint64(i+1) || len(b.openings()) != 4 {
				t.Errorf("after %v: %+v %v", at, st, b.openings())
			}
		}
	})
	d.info.Passive = true
	run(t, d, nil, func(b *bench) {
		b.at(4 * time.Second)
		b.lastError("nothing was heard at 19200 8N1 for 2s")
	})
}

func TestANetworkPortHasNoLinesToTry(t *testing.T) {
	d := asker()
	d.info.Lines = lines(115200, 19200)
	run(t, d, func(b *bench, _ *drivers.SessionConfig) {
		b.open = func(port.Line) (port.Port, error) { return b.plug(true), nil }
	}, func(b *bench) {
		synctest.Wait()
		if got := b.got(); got != "?" {
			t.Errorf("sent %q: a datagram port needs no quiet time", got)
		}
		b.at(time.Minute)
		b.state(drivers.Associating)
		if st := b.session.Status(); st.Line != "" || len(b.openings()) != 1 {
			t.Errorf("%+v %v", st, b.opened)
		}
	})
}

func TestAListenOnlySessionSendsNothingAndHearsAll(t *testing.T) {
	run(t, asker(), func(_ *bench, cfg *drivers.SessionConfig) { cfg.Settings.ListenOnly = true }, func(b *bench) {
		synctest.Wait()
		b.send("!") // while probing: it is not lost
		b.state(drivers.Live)
		b.at(9 * time.Second)
		b.send("!")
		b.cancel()
		synctest.Wait()
		st := b.session.Status()
		if got := b.got(); got != "" || st.BytesSent != 0 || st.Requests != 0 || st.Withheld != 2 || b.reports != 2 || !st.ListenOnly {
			t.Errorf("sent %q, %d reports, %+v", got, b.reports, st)
		}
	})
}

func TestARefusedRequestIsNeverWritten(t *testing.T) {
	d := asker()
	d.machine = func(_ drivers.Settings, h drivers.Host) (drivers.Machine, error) {
		return &script{start: func(time.Time) error {
			h.Send([]byte("set the alarm off"))
			h.Send([]byte("?"))
			return errors.New("not this one")
		}}, nil
	}
	run(t, d, nil, func(b *bench) {
		b.at(2 * time.Second)
		b.lastError("not on its list of permitted ones", `"set the alarm off" is no question`)
		if st := b.session.Status(); b.got() != "" || st.Refused != 1 || st.BytesSent != 0 {
			t.Errorf("%+v", st)
		}
	})
}

func TestAFloodOfRequestsIsBounded(t *testing.T) {
	d := asker()
	d.machine = func(_ drivers.Settings, h drivers.Host) (drivers.Machine, error) {
		return &script{start: func(time.Time) error {
			for range 100_000 {
				h.Send([]byte("?"))
			}
			return nil
		}}, nil
	}
	run(t, d, nil, func(b *bench) {
		b.at(2 * time.Second)
		b.lastError("more than 100 requests a second")
		if st := b.session.Status(); st.Requests != 200 || st.Flooded != 1 || len(b.got()) != 200 {
			t.Errorf("%+v", st)
		}
	})
}

func TestAPanicOfADriverStaysInItsSession(t *testing.T) {
	const secret = "Doe^John"
	for name, do := range map[string]func(*fake, *script, drivers.Host){
		"Start": func(_ *fake, m *script, _ drivers.Host) { m.start = func(time.Time) error { panic(secret) } },
		"Receive": func(_ *fake, m *script, _ drivers.Host) {
			m.receive = func(_ time.Time, p []byte) error { _ = p[len(p)]; return nil }
		},
		"Wake":   func(_ *fake, m *script, _ drivers.Host) { m.wake = func() time.Time { panic(secret) } },
		"Stop":   func(_ *fake, m *script, _ drivers.Host) { m.stop = func(time.Time) { panic(secret) } },
		"Permit": func(d *fake, _ *script, _ drivers.Host) { d.permit = func([]byte) error { panic(secret) } },
		"Identify": func(d *fake, _ *script, _ drivers.Host) {
			d.identify = func([]byte) drivers.Match { panic(errors.New(secret)) }
		},
		"Tick": func(_ *fake, m *script, _ drivers.Host) {
			m.wake, m.tick = func() time.Time { return time.Now() }, func(time.Time) error { panic(secret) }
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := asker()
			plain := d.machine
			d.machine = func(s drivers.Settings, h drivers.Host) (drivers.Machine, error) {
				m, err := plain(s, h)
				do(d, m.(*script), h)
				return m, err
			}
			run(t, d, nil, func(b *bench) {
				b.at(1 * time.Second)
				b.device().Write([]byte("."))
				b.at(2 * time.Second)
				synctest.Wait()
				if b.device() != nil {
					b.device().Write([]byte("."))
				}
				b.at(20 * time.Second)
				if name == "Stop" {
					b.cancel()
					synctest.Wait()
				}
				st := b.session.Status()
				if st.Panics == 0 {
					t.Error("no panic was counted")
				}
				if name != "Stop" {
					b.lastError("driver fake made a mistake at drivers_test.")
				}
				if name == "Receive" {
					b.lastError("index out of range")
				}
				if all := b.log.String() + st.LastError; strings.Contains(all, secret) {
					t.Errorf("what the driver panicked with is told: %s", all)
				}
			})
		})
	}
}

func TestANoteIsLoggedOnceASession(t *testing.T) {
	d := asker()
	d.machine = func(_ drivers.Settings, h drivers.Host) (drivers.Machine, error) {
		return &script{receive: func(_ time.Time, p []byte) error {
			for i := range 1000 {
				h.Note("period changed to 2 s")
				h.Note(fmt.Sprint("note ", i))
			}
			return nil
		}}, nil
	}
	run(t, d, nil, func(b *bench) {
		b.at(2 * time.Second)
		b.send("..")
		b.send("..")
		if n, m := strings.Count(b.log.String(), "period changed"), strings.Count(b.log.String(), "note "); n != 1 || m != 63 {
			t.Errorf("%d and %d lines", n, m)
		}
		if !strings.Contains(b.log.String(), "port=bed-1 driver=fake") {
			t.Error(b.log.String())
		}
	})
}

func TestAMachineThatIsNeverContentDoesNotSpin(t *testing.T) {
	ticks, received := 0, 0
	d := asker()
	d.machine = func(drivers.Settings, drivers.Host) (drivers.Machine, error) {
		return &script{wake: func() time.Time { return time.Unix(1, 0) }, tick: func(time.Time) error { ticks++; return nil },
			receive: func(_ time.Time, p []byte) error { received += len(p); return nil }}, nil
	}
	run(t, d, nil, func(b *bench) {
		b.at(2 * time.Second)
		for range 100 {
			b.send(".")
			time.Sleep(100 * time.Millisecond)
		}
		synctest.Wait()
		if ticks > 1001 || ticks < 900 || received != 100 {
			t.Errorf("%d ticks and %d bytes in 10 s", ticks, received)
		}
	})
}

func TestAHostThatIsKeptIsDeaf(t *testing.T) {
	var kept drivers.Host
	made := 0
	d := asker()
	plain := d.machine
	d.machine = func(s drivers.Settings, h drivers.Host) (drivers.Machine, error) {
		if made++; made == 2 { // the first one only shows that the options are right
			kept = h
		}
		return plain(s, h)
	}
	run(t, d, nil, func(b *bench) {
		b.at(2 * time.Second)
		b.send("e")
		b.at(10 * time.Second)
		before := b.session.Status()
		kept.Send([]byte("?"))
		kept.Report(&observation.Report{})
		kept.Count(drivers.FrameGood)
		kept.State(drivers.Live)
		kept.Note("from the grave")
		if after := b.session.Status(); after != before || strings.Contains(b.log.String(), "grave") {
			t.Errorf("%+v\n%+v", before, after)
		}
	})
}

// deaf is a port whose reading cannot be stopped and whose writes wait until it is closed.
type deaf struct {
	closed chan struct{}
}

func (d deaf) ReadBefore(_ []byte, deadline time.Time) (int, error) {
	select {
	case <-d.closed:
		return 0, os.ErrClosed
	case <-time.After(time.Until(deadline)):
		return 0, os.ErrDeadlineExceeded
	}
}
func (d deaf) Write([]byte) (int, error) { <-d.closed; return 0, os.ErrClosed }
func (d deaf) Datagrams() bool           { return true }
func (d deaf) Close() error {
	select {
	case <-d.closed:
	default:
		close(d.closed)
	}
	return nil
}

func TestASessionEndsThoughItsPortIsStuck(t *testing.T) {
	for name, wait := range map[string]time.Duration{"in a write": 0, "in a read": 3 * time.Second} {
		t.Run(name, func(t *testing.T) {
			d := asker()
			if wait > 0 { // nothing to write
				d.machine = nil
			}
			run(t, d, func(b *bench, _ *drivers.SessionConfig) {
				b.open = func(port.Line) (port.Port, error) { return deaf{make(chan struct{})}, nil }
			}, func(b *bench) { b.at(wait) })
		})
	}
}

func TestOptionsAreCheckedAndCompleted(t *testing.T) {
	d := asker()
	d.info.Name = "fake"
	d.info.Options = []drivers.Option{{Name: "period", Default: "1s"}, {Name: "waves", Default: "no"}}
	var got map[string]string
	d.machine = func(s drivers.Settings, _ drivers.Host) (drivers.Machine, error) {
		if s.Options["period"] == "never" {
			return nil, errors.New(`option period: "never" is no time`)
		}
		got = s.Options
		return &script{}, nil
	}
	make := func(options map[string]string) error {
		_, err := drivers.NewSession(drivers.SessionConfig{Name: "bed-1", Driver: d, Settings: drivers.Settings{Options: options},
			Open: func(context.Context, port.Line) (port.Port, error) { return nil, fs.ErrNotExist },
			Sink: func(*observation.Report) {}, Log: slog.New(slog.DiscardHandler)})
		return err
	}
	if err := make(map[string]string{"waves": "yes"}); err != nil || got["period"] != "1s" || got["waves"] != "yes" {
		t.Error(got, err)
	}
	for name, want := range map[string]string{
		"perod": `port bed-1: driver fake has no option "perod": did you mean period?`,
		"speed": `driver fake has no option "speed"`,
	} {
		if err := make(map[string]string{name: "1"}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := make(map[string]string{"period": "never"}); err == nil || !strings.Contains(err.Error(), `port bed-1: option period: "never"`) {
		t.Error(err)
	}
	if _, err := drivers.NewSession(drivers.SessionConfig{Name: "bed-1"}); err == nil {
		t.Error("a session without a driver was made")
	}
}

func TestASessionIsRunOnce(t *testing.T) {
	run(t, asker(), nil, func(b *bench) {
		synctest.Wait()
		if err := b.session.Run(context.Background()); err == nil || !strings.Contains(err.Error(), "started already") {
			t.Error(err)
		}
	})
}

func TestTheStatusAsJSONHasTheNamesOfStatesAndFrames(t *testing.T) {
	run(t, asker(), nil, func(b *bench) {
		b.at(2 * time.Second)
		b.send("!.")
		got, err := json.Marshal(b.session.Status())
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{`"state":"live"`, `"good":1`, `"noise":1`, `"name":"bed-1"`, `"driver":"fake"`, `"line":"9600 8N1"`} {
			if !strings.Contains(string(got), want) {
				t.Errorf("%s has no %s", got, want)
			}
		}
		if strings.Contains(string(got), "last_error") || strings.Contains(string(got), "next_open") {
			t.Errorf("%s tells errors that there were not", got)
		}
	})
}

// endless is a port that always has the next piece.
type endless struct {
	piece []byte
	left  int
}

func (e *endless) ReadBefore(p []byte, _ time.Time) (int, error) {
	if e.left <= 0 {
		return 0, os.ErrClosed
	}
	n := copy(p, e.piece)
	e.left -= n
	return n, nil
}
func (e *endless) Write(p []byte) (int, error) { return len(p), nil }
func (e *endless) Close() error                { return nil }
func (e *endless) Datagrams() bool             { return false }
func (e *endless) StopReading()                {}

// BenchmarkSession is the way of bytes from the port to the machine, in pieces
// as a serial driver of the kernel gives them, with a report for each piece.
func BenchmarkSession(b *testing.B) {
	d := asker()
	d.info.Name = "fake"
	report := &observation.Report{Observations: make([]observation.Observation, 10)}
	d.machine = func(_ drivers.Settings, h drivers.Host) (drivers.Machine, error) {
		return &script{receive: func(now time.Time, p []byte) error {
			h.Count(drivers.FrameGood)
			h.State(drivers.Live)
			h.Report(report)
			return nil
		}, wake: func() time.Time { return time.Time{} }}, nil
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	p := &endless{piece: make([]byte, 256), left: b.N}
	opens := 0
	s, err := drivers.NewSession(drivers.SessionConfig{Name: "bed-1", Driver: d, Timing: drivers.Timing{Quiet: -1},
		Open: func(context.Context, port.Line) (port.Port, error) {
			if opens++; opens > 1 {
				cancel()
				return nil, fs.ErrNotExist
			}
			b.ResetTimer()
			return p, nil
		},
		Clock: impatient{}, Sink: func(*observation.Report) {}, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(1)
	b.ReportAllocs()
	if err := s.Run(ctx); !errors.Is(err, context.Canceled) {
		b.Fatal(err)
	}
	if got := s.Status().BytesReceived; got < uint64(b.N) {
		b.Fatal(got)
	}
}

// impatient is the system's clock without the waiting.
type impatient struct{}

func (impatient) Now() time.Time                                  { return time.Now() }
func (impatient) Wait(ctx context.Context, _ time.Duration) error { return ctx.Err() }
