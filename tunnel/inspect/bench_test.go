package inspect

import (
	"crypto/tls"
	"testing"

	"github.com/bedside-gateway/gatewayd/tlsoverlay"
	"github.com/bedside-gateway/gatewayd/tlsoverlay/overlaytest"
)

// A session's whole inspection, as it comes: hello in one piece, flight in another.
func BenchmarkSession(b *testing.B) {
	w := theWard()
	for _, bench := range []struct {
		name  string
		suite uint16
		leaf  *entry
	}{
		{"ECDHE_ECDSA", tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, w.ecc},
		{"ECDHE_RSA", tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384, w.rsa},
		{"DHE_RSA", tlsoverlay.DHE_RSA_AES_256_GCM_SHA384, w.rsa},
	} {
		b.Run(bench.name, func(b *testing.B) {
			if bench.suite == dheSuite {
				overlaytest.Need(b)
			}
			device, platform := w.withSuite(b, bench.suite, bench.leaf)
			run(b, record(b, device, platform), 1<<14)
		})
	}
	b.Run("in records of one byte", func(b *testing.B) { run(b, theTape(b), 1) })
	b.Run("TLS 1.3", func(b *testing.B) {
		tp, _, answer := tape13(b)
		tp.server = answer
		run(b, tp, 1<<14)
	})
}

func run(b *testing.B, tp *tape, size int) {
	rules, hello, flight := theWard().rules(), tp.helloBytes(size), tp.flightBytes(size)
	b.ReportAllocs()
	b.SetBytes(int64(len(hello) + len(flight)))
	for b.Loop() {
		i := New(rules)
		_, err := i.Device(hello)
		_, err2 := i.Platform(flight)
		if err != nil || err2 != nil || !i.Done() {
			b.Fatal(err, err2)
		}
	}
}

// After the judgement a piece passes as it is.
func BenchmarkUnseen(b *testing.B) {
	tp := theTape(b)
	f := tp.run(theWard().rules(), shapes[0])
	p := make([]byte, 1<<14)
	b.ReportAllocs()
	b.SetBytes(int64(len(p)))
	for b.Loop() {
		if pass, err := f.i.Platform(p); err != nil || len(pass) != len(p) {
			b.Fatal(err)
		}
	}
}
