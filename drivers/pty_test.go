package drivers_test

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	"github.com/bedside-gateway/gatewayd/drivers"
	"github.com/bedside-gateway/gatewayd/drivers/port"
	"github.com/bedside-gateway/gatewayd/observation"
)

// adapter is a serial adapter with a device on it, plugged in at a stable path.
type adapter struct{ master, slave *os.File }

func plugIn(t *testing.T, path string) adapter {
	t.Helper()
	master, slave, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	master = polled(t, master)
	if err := os.Symlink(slave.Name(), path+".new"); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
	go func() {
		buf := make([]byte, 64)
		for {
			n, err := master.Read(buf)
			if err != nil {
				return
			}
			for _, c := range buf[:n] {
				if c == '?' {
					master.Write([]byte("!"))
				}
			}
		}
	}()
	return adapter{master, slave}
}

// polled is the same file with reads that its Close ends: package pty leaves
// them blocking, and the terminal would outlive its Close.
func polled(t *testing.T, f *os.File) *os.File {
	t.Helper()
	defer f.Close()
	fd, err := unix.Dup(int(f.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(fd), f.Name())
}

func (a adapter) pullOut() {
	a.master.Close()
	a.slave.Close()
}

// The whole way on real terminals: the cable is pulled, the path is gone, and
// then leads to another terminal, as when an adapter is plugged in again.
func TestAReplugOnARealTerminalIsFoundByItsPath(t *testing.T) {
	path := filepath.Join(t.TempDir(), "port0")
	spec, err := port.ParseSpec(path)
	if err != nil {
		t.Fatal(err)
	}
	d := asker()
	d.info.Name, d.info.Title = "fake", "a fake device"
	reports := make(chan struct{}, 16)
	s, err := drivers.NewSession(drivers.SessionConfig{
		Name: "bed-1", Driver: d, Open: spec.Open, Log: slog.New(slog.DiscardHandler),
		Sink:   func(*observation.Report) { reports <- struct{}{} },
		Timing: drivers.Timing{Quiet: -1, BackoffMin: time.Millisecond, OpenMax: 5 * time.Millisecond},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	for range 3 {
		a := plugIn(t, path)
		select {
		case <-reports:
		case <-time.After(10 * time.Second):
			t.Fatalf("no report: %+v", s.Status())
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		a.pullOut()
	}
	a := plugIn(t, path)
	defer a.pullOut()
	<-reports
	cancel()
	select {
	case err := <-done:
		if !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("Run does not end with its context")
	}
	if st := s.Status(); st.Reopens != 3 || st.Sessions != 4 {
		t.Errorf("%+v", st)
	}
}
