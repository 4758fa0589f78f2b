package tpm

import (
	"context"
	"errors"
	"io"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// A stuck device holds its reader and whoever closes it until it is let go, as
// the kernel does while a command is under way; a deadline does not help.
type stuck struct {
	letGo chan struct{}
}

func (s *stuck) Write(b []byte) (int, error)   { return len(b), nil }
func (s *stuck) Read([]byte) (int, error)      { <-s.letGo; return 0, io.EOF }
func (s *stuck) SetDeadline(t time.Time) error { return nil }
func (s *stuck) Close() error                  { <-s.letGo; return nil }

func TestNobodyWaitsForATPMThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var dials atomic.Int32
		s := &stuck{letGo: make(chan struct{})}
		d := Open("/dev/tpmrm0", Options{Dial: func(context.Context, string) (Conn, error) { dials.Add(1); return s, nil }})
		began := time.Now()
		took := func(want time.Duration) {
			t.Helper()
			if got := time.Since(began); got != want {
				t.Errorf("it took %v, want %v", got, want)
			}
			began = time.Now()
		}
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		err := d.Check(ctx)
		if !errors.Is(err, context.Canceled) || FaultOf(err) != Other {
			t.Error(err)
		}
		wantAdvice(t, err, "given up from our side")
		took(time.Second)
		ctx, cancel = context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		if err := d.Check(ctx); !errors.Is(err, context.Canceled) {
			t.Error("while the device is not given back: ", err)
		}
		took(time.Second)
		wantFault(t, d.Check(t.Context()), Failing)
		took(20 * time.Second)
		if n := dials.Load(); n != 1 {
			t.Errorf("it was opened %d times while it hangs", n)
		}
		close(s.letGo) // it is one that says nothing then
		wantFault(t, d.Check(t.Context()), Failing)
		if n := dials.Load(); n < 2 {
			t.Error("it is not opened again")
		}
		began = time.Now()
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		took(0)
	})
}

func TestACommandHasItsDeadlineWhateverTheDeviceDoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &stuck{letGo: make(chan struct{})}
		d := Open("/dev/tpmrm0", Options{Command: 7 * time.Second, Dial: func(context.Context, string) (Conn, error) { return s, nil }})
		began := time.Now()
		wantFault(t, d.Check(t.Context()), Failing)
		if got := time.Since(began); got != 7*time.Second {
			t.Errorf("it took %v", got)
		}
		began = time.Now()
		if err := d.Close(); FaultOf(err) != Failing {
			t.Error("it says that the TPM was given back: ", err)
		}
		if got := time.Since(began); got != farewell {
			t.Errorf("to close it took %v", got)
		}
		close(s.letGo)
	})
}

// A handshake gives its signature no context: Close is what ends it.
func TestCloseEndsASignatureInATPMThatHangs(t *testing.T) {
	var hang atomic.Bool
	hangs := make(chan struct{})
	d := open(t, emulator(t), Options{Dial: wired(func(_ int, w *wire) {
		w.write = func(b []byte) (int, error) {
			if hang.Load() {
				close(hangs)
				return len(b), nil
			}
			return w.Conn.Write(b)
		}
	})})
	k := load(t, d, P256)
	hang.Store(true)
	ended := make(chan error, 2)
	go func() { ended <- sign(k) }()
	<-hangs
	go func() { ended <- d.Check(context.Background()) }() // and who waits behind it
	began := time.Now()
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	for range 2 {
		if err := <-ended; !errors.Is(err, errClosed) || FaultOf(err) != Other {
			t.Error(err)
		}
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("it took %v", took)
	}
}

// An idle link is flushed before it is closed, unless that takes too long.
func TestATPMThatHangsIsClosedInSeconds(t *testing.T) {
	t.Parallel()
	var hang atomic.Bool
	d := open(t, emulator(t), Options{Dial: wired(func(_ int, w *wire) {
		w.write = func(b []byte) (int, error) {
			if hang.Load() {
				return len(b), nil
			}
			return w.Conn.Write(b)
		}
	})})
	k := load(t, d, P256)
	hang.Store(true)
	began := time.Now()
	k.Release(t.Context())
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took < farewell || took > 10*time.Second {
		t.Errorf("it took %v", took)
	}
}
