package tlspolicy

import (
	"context"
	"crypto/tls"
	"net"
	"testing"
	"time"

	"github.com/bedside-gateway/gatewayd/tlsoverlay"
	"github.com/bedside-gateway/gatewayd/tlsoverlay/overlaytest"
)

// BenchmarkHandshake is a full mutual handshake, both ends, in three ways that
// take turns: package tls as it is, which looks at no response; Interface B at
// first contact; and Interface B with responses that it remembers. The chain of
// the platform has three certificates below the root, and all have a response.
// The ratios are to the first way, of the same run.
func BenchmarkHandshake(b *testing.B) {
	overlaytest.Need(b)
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		b.Run(tls.VersionName(version), func(b *testing.B) { handshakes(b, version) })
	}
}

func handshakes(b *testing.B, version uint16) {
	h := newHospital(b)
	h.between = authority("Between")
	c := h.chain()
	id := tls.Certificate{PrivateKey: h.key}
	for _, cert := range h.send(c) {
		id.Certificate = append(id.Certificate, cert.Raw)
	}
	plain := &tls.Config{Certificates: []tls.Certificate{id}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool(c.root),
		Time: func() time.Time { return now }, MinVersion: version, MaxVersion: version, SessionTicketsDisabled: true,
		CurvePreferences: CMIIST().Curves}
	stapling := plain.Clone()
	if err := tlsoverlay.SetStaples(&id, h.staples(c)); err != nil {
		b.Fatal(err)
	}
	stapling.Certificates = []tls.Certificate{id}
	bare := &tls.Config{ServerName: host, RootCAs: pool(c.root), Certificates: []tls.Certificate{device(b)}, CurvePreferences: CMIIST().Curves,
		Time: func() time.Time { return now }, MinVersion: tls.VersionTLS12}
	client := Client{ServerName: host, Roots: pool(c.root), Identity: device(b), Now: func() time.Time { return now }}
	policy := func() *tls.Config {
		config, err := client.Config()
		if err != nil {
			b.Fatal(err)
		}
		return config
	}
	remembering := policy()
	shake(b, remembering, stapling)
	var spent [3]time.Duration
	n := 0
	for b.Loop() {
		first := policy() // its memory is empty
		began := time.Now()
		shake(b, bare, plain)
		spent[0] += time.Since(began)
		began = time.Now()
		shake(b, first, stapling)
		spent[1] += time.Since(began)
		began = time.Now()
		shake(b, remembering, stapling)
		spent[2] += time.Since(began)
		n++
	}
	b.ReportMetric(0, "ns/op")
	for i, name := range []string{"bare", "first", "remembered"} {
		b.ReportMetric(float64(spent[i].Microseconds())/float64(n), "µs-"+name)
		if i > 0 {
			b.ReportMetric(float64(spent[i])/float64(spent[0]), "x-"+name)
		}
	}
}

func shake(b *testing.B, client, server *tls.Config) {
	near, far := net.Pipe()
	done := make(chan error, 1)
	go func() { done <- tls.Server(far, server).HandshakeContext(context.Background()) }()
	if err := tls.Client(near, client).Handshake(); err != nil {
		b.Fatal(err)
	}
	if err := <-done; err != nil {
		b.Fatal(err)
	}
	near.Close()
	far.Close()
}
