package inspect

import (
	"bytes"
	"crypto/x509"
	"errors"
	"slices"
	"testing"
)

const fuzzLimit = 8 << 10

func fuzzRules() Rules {
	r := theWard().rules()
	r.MaxHello, r.MaxFlight, r.Resumption, r.Nameless = fuzzLimit, fuzzLimit, true, true
	r.JudgeStapled = func([]*x509.Certificate, [][]byte, bool) error { return errors.New("none is good") }
	return r
}

// pieces hands b to take in pieces whose lengths are bytes of cuts.
func pieces(b, cuts []byte, take func([]byte)) {
	for n := 0; len(b) > 0; n++ {
		size := len(b)
		if n < len(cuts) {
			size = min(size, 1+int(cuts[n]))
		}
		take(bytes.Clone(b[:size]))
		b = b[size:]
	}
}

// held fails where more is kept than the limit and the piece that came last, or
// anything after the end.
func held(t *testing.T, i *Inspector, piece int) {
	t.Helper()
	for _, s := range []stream{i.device, i.platform} {
		if n := cap(s.raw) + cap(s.pending); n > 4*(fuzzLimit+piece) || n > 0 && (i.err != nil || i.done) {
			t.Fatalf("%d bytes are held, done %v, %v", n, i.done, i.err)
		}
	}
}

func FuzzDevice(f *testing.F) {
	tp := theTape(f)
	f.Add(tp.helloBytes(1<<14), []byte{})
	f.Add(tp.helloBytes(1), []byte{0, 0, 3, 250})
	tp.both()
	tp.hello.set(extServerName, serverName(0, "other.test"))
	f.Add(tp.helloBytes(100), []byte{7})
	tp.hello.set(extServerName, serverName(0, host))
	tp.hello.set(extStatusRequestV2, []byte{0, 7, 2, 0, 4, 0, 0, 0, 0})
	tp.hello.set(extALPN, []byte{0, 2, 1, 'x'})
	tp.behindHello = []byte{typeAlert, 3, 3, 0, 2, 2, 40}
	f.Add(tp.helloBytes(1<<14), []byte{255})
	flight := tp.flightBytes(1 << 14)
	f.Fuzz(func(t *testing.T, b, cuts []byte) {
		i := New(fuzzRules())
		var passed, came []byte
		pieces(b, cuts, func(p []byte) {
			pass, err := i.Device(p)
			came = append(came, p...)
			if passed = append(passed, pass...); i.Done() {
				t.Fatal("done, and the platform has said nothing")
			}
			if _, over := errors.AsType[*EndError](err); !over && len(passed) > 0 && !bytes.HasPrefix(came, passed) {
				t.Fatal("what passes is not what came")
			}
			if len(passed) > 0 && (i.Hello() == nil || i.Hello().EarlyData || i.Hello().ServerName != "" && i.Hello().ServerName != host) {
				t.Fatalf("it passes: %+v", i.Hello())
			}
			held(t, i, len(p))
		})
		// Whatever the device has said, only a flight that is judged passes.
		if pass, _ := i.Platform(flight); len(pass) > 0 && !i.Verdict().Enforced {
			t.Fatalf("%+v", i.Verdict())
		}
		held(t, i, len(flight))
	})
}

func FuzzPlatform(f *testing.F) {
	tp, w := theTape(f), theWard()
	tp.hello.set(extSessionTicket, []byte("ticket"))
	tp.both()
	hello := tp.helloBytes(1 << 14)
	clear(tp.server.random[24:])
	tp.resign(w.ecc.key, 0x0403, tp.params(), tp.hello.random)
	whole := tp.flightBytes(1 << 14)
	f.Add(whole, []byte{})
	f.Add(tp.flightBytes(1), []byte{0, 1, 2, 3, 0, 200})
	f.Add(tp.flightBytes(300), []byte{77, 0})
	tp.staple(statusOCSPMulti, list24([][]byte{[]byte("x")}))
	tp.certificates(w.other.cert.Raw)
	f.Add(tp.flightBytes(1<<14), []byte{9})
	f.Add(slices.Concat([]byte{typeAlert, 3, 3, 0, 2, 1, 112}, whole), []byte{3})
	tp.flight, tp.behindFlight = append(tp.flight[:1], msg{messageNewSessionTicket, []byte{0, 0}}), spacer
	f.Add(tp.flightBytes(1<<14), []byte{})
	tp.server.set(extSupportedVersions, []byte{3, 4})
	tp.server.suites[0] = tp.hello.suites[0]
	tp.flight = tp.flight[:1]
	f.Add(tp.flightBytes(1<<14), []byte{})
	tp.server.random = retryRandom[:]
	f.Add(tp.flightBytes(1<<14), []byte{})
	f.Fuzz(func(t *testing.T, b, cuts []byte) {
		i := New(fuzzRules())
		if pass, err := i.Device(hello); err != nil || len(pass) != len(hello) {
			t.Fatal(err)
		}
		var passed, came []byte
		pieces(b, cuts, func(p []byte) {
			pass, err := i.Platform(p)
			came, passed = append(came, p...), append(passed, pass...)
			_, over := errors.AsType[*EndError](err)
			switch {
			case over && len(pass) != recordHead+alertSize && len(pass) != 0:
				t.Fatalf("%d bytes pass with the alert", len(pass))
			case !over && !bytes.HasPrefix(came, passed):
				t.Fatal("what passes is not what came")
			case len(passed) > 0 && !over && !i.Done() && !i.retried:
				t.Fatalf("%d bytes pass before the judgement", len(passed))
			}
			held(t, i, len(p))
		})
		if v := i.Verdict(); i.Done() && !v.Enforced && !v.Resumed && v.Version != 0x0304 || v.Enforced && i.Done() && !v.Leaf.Equal(w.ecc.cert) {
			t.Fatalf("%+v", v)
		}
	})
}
