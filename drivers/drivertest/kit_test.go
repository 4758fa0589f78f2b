package drivertest

import (
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/bedside-gateway/gatewayd/observation"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestADriverWithoutFaultsPasses(t *testing.T) { Run(t, newDemo(), demoKit()) }

// find runs one check and gives what it found.
func find(t *testing.T, d *demo, k Kit, name string) string {
	t.Helper()
	for _, ch := range checks {
		if ch.name == name {
			c := newChecker(d, k)
			if d.faults["hangs on a zero"] {
				c.watchdog = 100 * time.Millisecond
			}
			return strings.Join(c.run(t, ch), "\n")
		}
	}
	t.Fatalf("there is no check %q", name)
	return ""
}

func TestEachFaultIsFoundByItsCheck(t *testing.T) {
	for _, c := range []struct{ fault, check, words string }{
		{"has no silence", "info and options", "Silence"},
		{"leaves a goroutine", "no goroutine is left", "goroutine"},
		{"crashes at the end", "the device comes live", "at the end"},
		{"never says that it is live", "the device comes live", "never said that it is live"},
		{"sends a setting", "the device comes live", "a request that Permit refuses"},
		{"has no time", "reports keep the rules of the model", "measured at"},
		{"gives a value that is none", "reports keep the rules of the model", "no value"},
		{"keeps the buffer", "what is borrowed is not kept", "overwritten after use"},
		{"patches its last report", "what is borrowed is not kept", "overwritten after use"},
		{"forgets what came before", "split and merged reads give the same reports", "byte by byte"},
		{"takes one frame a read", "split and merged reads give the same reports", "all in one read"},
		{"asks at every tick", "ticks are few and may come early", "early ticks"},
		{"is never content", "ticks are few and may come early", "not later than the tick"},
		{"wakes too often", "ticks are few and may come early", "more than 36000 ticks"},
		{"crashes on a short frame", "truncation at every point", "index out of range"},
		{"ignores the check value", "flipped bits give no wrong value", "the device never said"},
		{"gives up at noise", "noise before sync", "before the first frame"},
		{"loses its place at noise", "noise before sync", "before the first frame"},
		{"believes any length", "noise before sync", "reports"},
		{"hangs on a zero", "a hostile peer", "does not return"},
		{"keeps all that it gets", "a hostile peer", "the machine holds"},
		{"allocates what a length says", "a hostile peer", "bytes were allocated"},
		{"begins only once", "replug in mid-session", "no reports within"},
		{"never gives up", "a device that reboots in mid-association", "not live within"},
		{"waits for answers when it only listens", "nothing is sent in listen-only mode", "another master"},
		{"claims everything", "identification", "of another protocol are Certain"},
		{"knows only clean bytes", "identification", "behind noise"},
		{"permits everything", "only permitted requests", "dangerous frame"},
		{"permits a setting", "only permitted requests", `dangerous frame "setting"`},
		{"permits what follows", "only permitted requests", "two requests in one"},
		{"permits a wrong check value", "only permitted requests", "flipped"},
	} {
		t.Run(c.fault, func(t *testing.T) {
			d := newDemo(c.fault)
			defer close(d.stop)
			if text := find(t, d, demoKit(), c.check); !strings.Contains(text, c.words) {
				t.Errorf("the check %q does not say %q but %q", c.check, c.words, text)
			}
		})
	}
}

func TestAWrongKitIsFound(t *testing.T) {
	for _, c := range []struct {
		name, check, words string
		change             func(*Kit)
	}{
		{"nothing to work on", "the device comes live", "neither a simulated device nor a recording",
			func(k *Kit) { k.Stream, k.Packet, k.Recordings = nil, nil, nil }},
		{"no dangerous frames", "only permitted requests", "names no dangerous ones", func(k *Kit) { k.Dangerous = nil }},
		{"an option that the driver refuses", "info and options", `"hz" is not known`, func(k *Kit) { k.Options = map[string]string{"unit": "hz"} }},
		{"other reports than expected", "reports keep the rules of the model", "not as recorded", func(k *Kit) {
			k.Recordings[0].Expect = func([]observation.Report) error { return errors.New("not as recorded") }
		}},
		{"a device that never answers", "the device comes live", "no report", func(k *Kit) { k.Stream = func() StreamDevice { return mute{} } }},
	} {
		t.Run(c.name, func(t *testing.T) {
			k := demoKit()
			c.change(&k)
			if text := find(t, newDemo(), k, c.check); !strings.Contains(text, c.words) {
				t.Errorf("the check %q does not say %q but %q", c.check, c.words, text)
			}
		})
	}
}

type mute struct{}

func (mute) ServeStream(_ context.Context, rw io.ReadWriter) error {
	_, err := io.Copy(io.Discard, rw)
	return err
}

func TestALinkCarriesStreamsAndDatagrams(t *testing.T) {
	for _, datagrams := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			p, end := NewLink(datagrams)
			if p.Datagrams() != datagrams {
				t.Error("Datagrams")
			}
			p.Write([]byte("ab"))
			p.Write([]byte("c"))
			buf := make([]byte, 16)
			n, from, err := end.ReadFrom(buf)
			if string(buf[:n]) != "ab" || err != nil || from == nil {
				t.Error(string(buf[:n]), err)
			}
			end.SetReadDeadline(time.Now().Add(time.Second))
			if n, err := end.Read(buf[:1]); n != 1 || err != nil {
				t.Error(n, err)
			}
			if _, err := end.Read(buf); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error(err)
			}
			end.SetReadDeadline(time.Time{})
			time.AfterFunc(time.Second, func() { end.SetReadDeadline(time.Now()) })
			if _, err := end.Read(buf); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error("a new deadline did not end the read:", err)
			}
			end.WriteTo([]byte("last"), from)
			end.Close()
			if n, err := p.ReadBefore(buf, time.Now()); n != 4 || err != nil {
				t.Error(n, err)
			}
			if _, err := p.ReadBefore(buf, time.Now().Add(time.Hour)); !errors.Is(err, io.EOF) {
				t.Error(err)
			}
			p.Close()
			if _, err := p.ReadBefore(buf, time.Now()); !errors.Is(err, os.ErrClosed) {
				t.Error(err)
			}
		})
	}
}

func TestAFullLinkEndsTheWriteOrLosesTheDatagram(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, _ := NewLink(false)
		var err error
		began := time.Now()
		for err == nil {
			_, err = p.Write(make([]byte, 1<<12))
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(began) != 2*time.Second {
			t.Error(err, time.Since(began))
		}
		p, _ = NewLink(true)
		for range 2 * linkDatagrams {
			if _, err := p.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
		}
	})
}
