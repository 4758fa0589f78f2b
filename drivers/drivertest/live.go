package drivertest

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/bedside-gateway/gatewayd/drivers"
	"github.com/bedside-gateway/gatewayd/drivers/port"
	"github.com/bedside-gateway/gatewayd/observation"
)

// patience is how long a session may take to be live, in simulated time. Some
// devices hold on to a session that was cut off for two minutes.
const patience = 5 * time.Minute

// A live run is a session with the simulated device, in a bubble.
type live struct {
	c         *checker
	datagrams bool
	session   *drivers.Session
	began     time.Time
	reports   atomic.Int64
	devices   sync.WaitGroup

	mu      sync.Mutex
	end     *DeviceEnd // nil while unplugged
	serving *life
	stop    context.CancelFunc // of the device
	device  any
	open    int // ports that are open now
	most    int
	records []port.Record
	writes  int
	onWrite func(n int)
	// greeting is on the line when the port is opened.
	greeting []byte
}

// kinds are the ways to the device that the kit has: as datagrams or not.
func (c *checker) kinds() (kinds []bool) {
	if c.k.Stream != nil {
		kinds = append(kinds, false)
	}
	if c.k.Packet != nil {
		kinds = append(kinds, true)
	}
	return kinds
}

func kindName(datagrams bool) string {
	if datagrams {
		return "datagrams"
	}
	return "stream"
}

// live runs a session; begin may change it before it starts.
func (c *checker) live(datagrams bool, settings drivers.Settings, begin func(*live), then func(*live)) {
	synctest.Test(c.t, func(t *testing.T) {
		l := &live{c: c, datagrams: datagrams, began: time.Now()}
		settings.Options = c.options()
		cfg := drivers.SessionConfig{Name: "kit", Driver: c.d, Settings: settings, Open: l.openPort,
			Sink: func(r *observation.Report) { l.reports.Add(1); scribble(r) },
			Log:  slog.New(slog.DiscardHandler), Timing: drivers.Timing{Quiet: -1}}
		if lines := c.d.Info().Lines; len(lines) > 0 {
			cfg.Lines = lines[:1]
		}
		var err error
		if l.session, err = drivers.NewSession(cfg); err != nil {
			c.failf("no session can be made: %v", err)
			return
		}
		l.plug()
		l.powerOn()
		if begin != nil {
			begin(l)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- l.session.Run(ctx) }()
		then(l)
		cancel()
		<-done
		l.powerOff()
		l.unplug()
		l.devices.Wait()
		l.judge()
	})
}

// judge looks at what no run may do.
func (l *live) judge() {
	st := l.session.Status()
	if st.Panics > 0 || st.Refused > 0 || st.Flooded > 0 {
		l.c.failf("%s: %d panics, %d refused requests, %d above the rate: %s", kindName(l.datagrams), st.Panics, st.Refused, st.Flooded, st.LastError)
	}
	for _, r := range l.records {
		if r.Direction == port.ToDevice {
			l.c.noteSent(string(r.Data), l.datagrams)
		}
	}
	if l.most > 1 {
		l.c.failf("%d ports were open at once", l.most)
	}
}

// plug makes a new line to the device.
func (l *live) plug() {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, l.end = NewLink(l.datagrams)
}

func (l *live) unplug() {
	l.mu.Lock()
	end := l.end
	l.end = nil
	l.mu.Unlock()
	if end != nil {
		end.Close()
	}
}

// openPort is a port at the line that is plugged in. The link outlives it, as a
// cable does; the device is served on what is written.
func (l *live) openPort(context.Context, port.Line) (port.Port, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.end == nil {
		return nil, errors.New("nothing is plugged in")
	}
	l.open++
	l.most = max(l.most, l.open)
	l.end.out.listen(true)
	if len(l.greeting) > 0 {
		if _, err := l.end.Write(l.greeting); err != nil {
			return nil, err
		}
	}
	return &tap{live: l, end: l.end}, nil
}

// tap is a port that notes what goes through it.
type tap struct {
	live    *live
	end     *DeviceEnd
	closed  atomic.Bool
	stopped atomic.Bool
}

func (t *tap) Datagrams() bool { return t.live.datagrams }

func (t *tap) ReadBefore(p []byte, deadline time.Time) (int, error) {
	n, err := t.end.out.take(p, func() (time.Time, error) {
		switch {
		case t.closed.Load():
			return deadline, os.ErrClosed
		case t.stopped.Load():
			return deadline, os.ErrDeadlineExceeded
		}
		return deadline, nil
	})
	if n > 0 {
		t.live.note(port.FromDevice, p[:n])
	}
	return n, err
}

func (t *tap) Write(p []byte) (int, error) {
	if t.closed.Load() {
		return 0, os.ErrClosed
	}
	n, err := t.end.in.put(p, time.Now().Add(2*time.Second))
	if err == nil {
		t.live.note(port.ToDevice, p)
	}
	return n, err
}

func (t *tap) StopReading() { t.stopped.Store(true); t.end.out.wake() }

func (t *tap) Close() error {
	if !t.closed.Swap(true) {
		t.live.mu.Lock()
		t.live.open--
		t.live.mu.Unlock()
		t.end.out.listen(false)
	}
	return nil
}

func (l *live) note(d port.Direction, p []byte) {
	l.mu.Lock()
	l.records = append(l.records, port.Record{Offset: time.Since(l.began), Direction: d, Data: bytes.Clone(p)})
	var f func(int)
	if d == port.ToDevice {
		l.writes++
		f = l.onWrite
	}
	n := l.writes
	l.mu.Unlock()
	if f != nil {
		f(n)
	}
}

// powerOn starts a new device.
func (l *live) powerOn() {
	if l.datagrams {
		l.device = l.c.k.Packet()
	} else {
		l.device = l.c.k.Stream()
	}
	l.serve()
}

// serve lets the device serve the line that is plugged in.
func (l *live) serve() {
	ctx, stop := context.WithCancel(context.Background())
	l.mu.Lock()
	serving := &life{DeviceEnd: l.end}
	l.serving, l.stop = serving, stop
	l.mu.Unlock()
	device := l.device
	l.devices.Go(func() {
		if d, ok := device.(PacketDevice); ok && l.datagrams {
			d.ServePacket(ctx, serving)
			return
		}
		device.(StreamDevice).ServeStream(ctx, serving)
	})
}

// powerOff stops the device; the line stays.
func (l *live) powerOff() {
	l.mu.Lock()
	serving, stop := l.serving, l.stop
	l.mu.Unlock()
	stop()
	serving.end()
}

// reboot is powerOff and powerOn, and the device has forgotten everything.
func (l *live) reboot() {
	l.powerOff()
	l.powerOn()
}

// awaitReports waits until the session is live and has n more reports.
func (l *live) awaitReports(n int64) bool {
	want := l.reports.Load() + n
	for until := time.Now().Add(patience); time.Now().Before(until); time.Sleep(50 * time.Millisecond) {
		if l.reports.Load() >= want && l.session.Status().State == drivers.Live {
			return true
		}
	}
	return false
}

// sleep lets simulated time pass, and then all that is due happen.
func (l *live) sleep(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}
