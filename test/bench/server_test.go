package bench

import (
	"crypto/tls"
	"net"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/bedside-gateway/gatewayd/internal/sim/pki"
	"github.com/bedside-gateway/gatewayd/internal/sim/platform"
)

// BenchmarkInterfaceA is full mutual handshakes of a device with our server,
// which verifies, authorises and judges the device's chain and staples its own,
// beside OpenSSL's s_server, which verifies the chain. The same client,
// certificates and suites; one connection after the other, in turn.
func BenchmarkInterfaceA(b *testing.B) {
	if _, err := exec.LookPath("openssl"); err != nil {
		b.Skip("openssl is not installed; make interop installs it")
	}
	dir := b.TempDir()
	hospital, err := pki.New(pki.Options{Schemes: []pki.Scheme{pki.ECC, pki.RSA}})
	if err != nil {
		b.Fatal(err)
	}
	if err := hospital.Write(dir); err != nil {
		b.Fatal(err)
	}
	identity := func(name string) tls.Certificate {
		c, err := hospital.Identity(name)
		if err != nil {
			b.Fatal(err)
		}
		return c
	}
	server, err := platform.New(platform.Options{Hospital: hospital, Roots: hospital.Roots(),
		Certificates: []tls.Certificate{identity("platform"), identity("rsa-platform")}})
	if err != nil {
		b.Fatal(err)
	}
	if err := server.Listen("127.0.0.1:0"); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { server.Close() })

	for _, test := range []struct {
		name, platform string
		version, suite uint16
		openssl        []string
	}{
		{"TLS 1.2 ECDHE_ECDSA", "platform", tls.VersionTLS12, tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, []string{"-tls1_2", "-cipher", "ECDHE-ECDSA-AES256-GCM-SHA384"}},
		{"TLS 1.2 ECDHE_RSA", "rsa-platform", tls.VersionTLS12, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384, []string{"-tls1_2", "-cipher", "ECDHE-RSA-AES256-GCM-SHA384"}},
		{"TLS 1.3", "platform", tls.VersionTLS13, 0, []string{"-tls1_3"}},
	} {
		b.Run(test.name, func(b *testing.B) {
			config := &tls.Config{RootCAs: hospital.Roots(), ServerName: pki.DefaultPlatform, Certificates: []tls.Certificate{identity("device")},
				MinVersion: test.version, MaxVersion: test.version, CurvePreferences: []tls.CurveID{tls.CurveP256}}
			if test.suite != 0 {
				config.CipherSuites = []uint16{test.suite}
			}
			peer := serveOpenSSL(b, dir, test.platform, test.openssl)
			handshake(b, config, server.Address()) // the first one judges, the others remember
			var ours, theirs time.Duration
			for b.Loop() {
				ours += handshake(b, config, server.Address())
				theirs += handshake(b, config, peer)
			}
			per := func(d time.Duration) float64 { return float64(b.N) / d.Seconds() }
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(per(ours), "ours/s")
			b.ReportMetric(per(theirs), "openssl/s")
			b.ReportMetric(per(ours)/per(theirs), "x-openssl")
		})
	}
}

// handshake connects, shakes hands, and waits until the server has closed after our goodbye.
func handshake(b *testing.B, config *tls.Config, address string) time.Duration {
	b.Helper()
	began := time.Now()
	raw, err := net.Dial("tcp", address)
	if err != nil {
		b.Fatal(err)
	}
	defer raw.Close()
	c := tls.Client(raw, config)
	if err := c.Handshake(); err != nil {
		b.Fatalf("%s: %v", address, err)
	}
	took := time.Since(began)
	_ = c.CloseWrite()
	_ = raw.SetReadDeadline(time.Now().Add(time.Second))
	_, _ = c.Read(make([]byte, 1))
	return took
}

func serveOpenSSL(b *testing.B, dir, name string, options []string) string {
	b.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	in := func(file string) string { return filepath.Join(dir, file) }
	cmd := exec.Command("openssl", append([]string{"s_server", "-accept", address, "-quiet", "-no_ticket", "-Verify", "3", "-verify_return_error",
		"-cert", in(name + ".pem"), "-cert_chain", in(name + ".pem"), "-key", in(name + ".key"), "-CAfile", in(pki.RootsFile)}, options...)...)
	stdin, err := cmd.StdinPipe() // s_server ends with its input
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		stdin.Close()
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	for range 100 {
		if c, err := net.Dial("tcp", address); err == nil {
			c.Close()
			return address
		}
		time.Sleep(20 * time.Millisecond)
	}
	b.Fatal("openssl s_server does not listen")
	return ""
}
