package tlspolicy

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bedside-gateway/gatewayd/tlsoverlay"
)

// dial shakes hands under the policy and has the peer, which reverses lines,
// show that it took us too.
func dial(t *testing.T, config *tls.Config, address string) (*tls.Conn, error) {
	t.Helper()
	conn, err := tls.DialWithDialer(&net.Dialer{Timeout: 10 * time.Second}, "tcp", address, config)
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(conn, "MLLP\n"); err != nil {
		return nil, err
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err == nil && line != "PLLM\n" {
		t.Errorf("the peer answered %q", line)
	}
	return conn, err
}

func (h *hospital) client(c *chain) *tls.Config {
	h.t.Helper()
	config, err := Client{ServerName: h.name, Roots: pool(h.trust(c)...), Identity: device(h.t), Now: func() time.Time { return h.at }}.Config()
	if err != nil {
		h.t.Fatal(err)
	}
	return config
}

// serve is a platform of package tls, to look at what we sent.
func (h *hospital) serve(c *chain, change func(*tls.Config)) (address string, states chan tls.ConnectionState) {
	t := h.t
	t.Helper()
	id := tls.Certificate{PrivateKey: h.key}
	for _, c := range h.send(c) {
		id.Certificate = append(id.Certificate, c.Raw)
	}
	if err := tlsoverlay.SetStaples(&id, h.staples(c)); err != nil {
		t.Fatal(err)
	}
	config := &tls.Config{
		Certificates: []tls.Certificate{id}, ClientAuth: tls.RequireAnyClientCert, Time: func() time.Time { return now },
		// A list of CA names that ours is not in: we have to send it all the same.
		ClientCAs: pool(c.leaf),
	}
	if change != nil {
		change(config)
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", config)
	if err != nil {
		t.Fatal(err)
	}
	states = make(chan tls.ConnectionState, 8)
	done := make(chan struct{})
	t.Cleanup(func() { l.Close(); <-done })
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			reverse(conn.(*tls.Conn), states)
		}
	}()
	return l.Addr().String(), states
}

func reverse(conn *tls.Conn, states chan tls.ConnectionState) {
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	if conn.Handshake() != nil {
		return
	}
	states <- conn.ConnectionState()
	if line, err := bufio.NewReader(conn).ReadString('\n'); err == nil && line == "MLLP\n" {
		io.WriteString(conn, "PLLM\n")
	}
	io.Copy(io.Discard, conn)
}

func TestB13_B16_HandshakeSendsTheIssuingCAInEveryVersion(t *testing.T) {
	h := newHospital(t)
	c := h.chain()
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		t.Run(tls.VersionName(version), func(t *testing.T) {
			address, states := h.serve(c, func(s *tls.Config) { s.MinVersion, s.MaxVersion = version, version })
			config := h.client(c)
			config.ClientSessionCache = nil
			for range 2 { // the second would resume, if it could
				conn, err := dial(t, config, address)
				if err != nil {
					t.Fatal(err)
				}
				conn.Close()
				s := <-states
				if s.Version != version || s.DidResume || len(s.PeerCertificates) != 2 {
					t.Fatalf("version %x, resumed %v, %d certificates of ours", s.Version, s.DidResume, len(s.PeerCertificates))
				}
				if ca := s.PeerCertificates[1]; ca.Subject.CommonName != "Issuing" {
					t.Errorf("the second certificate is that of %s", ca.Subject)
				}
			}
		})
	}
}

func TestB13_PeerOfTLS11IsRefused(t *testing.T) {
	h := newHospital(t)
	c := h.chain()
	address, _ := h.serve(c, func(s *tls.Config) { s.MinVersion, s.MaxVersion = tls.VersionTLS10, tls.VersionTLS11 })
	if _, err := dial(t, h.client(c), address); err == nil || !strings.Contains(err.Error(), "protocol version") {
		t.Errorf("the handshake ended with %v", err)
	}
}

func TestB17_RefusalComesOutOfTheHandshake(t *testing.T) {
	h := newHospital(t)
	c := h.chain()
	address, states := h.serve(c, nil)
	h.name = "elsewhere.test"
	var r *RefusalError
	if _, err := dial(t, h.client(c), address); !errors.As(err, &r) || r.Rule != "B17" {
		t.Errorf("the handshake ended with %v", err)
	}
	if len(states) != 0 {
		t.Error("the platform completed the handshake")
	}
}

// openssl is a TLS server that this project did not write.
func (h *hospital) openssl(c *chain, more ...string) string {
	t := h.t
	t.Helper()
	tool, err := exec.LookPath("openssl")
	if err != nil {
		t.Skip("openssl is not installed")
	}
	dir := t.TempDir()
	key, err := x509.MarshalPKCS8PrivateKey(h.key)
	if err != nil {
		t.Fatal(err)
	}
	file := func(name string, blocks ...*pem.Block) string {
		path := filepath.Join(dir, name)
		var b strings.Builder
		for _, block := range blocks {
			pem.Encode(&b, block)
		}
		if err := os.WriteFile(path, []byte(b.String()), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	certificate := func(c *x509.Certificate) *pem.Block { return &pem.Block{Type: "CERTIFICATE", Bytes: c.Raw} }
	var sent []*pem.Block
	for _, c := range h.send(c)[1:] {
		sent = append(sent, certificate(c))
	}
	args := append([]string{"s_server", "-accept", "127.0.0.1:0", "-rev", "-Verify", "4", "-verify_return_error", "-attime", "1795262400",
		"-cert", file("leaf.pem", certificate(c.leaf)), "-key", file("leaf.key", &pem.Block{Type: "PRIVATE KEY", Bytes: key}),
		"-CAfile", file("root.pem", &pem.Block{Type: "CERTIFICATE", Bytes: deviceRoot(t)})}, more...)
	if len(sent) > 0 {
		args = append(args, "-cert_chain", file("chain.pem", sent...))
	}
	if staple := h.staples(c)[0]; len(staple) > 0 { // s_server has no way to staple for another one
		path := filepath.Join(dir, "leaf.ocsp")
		if err := os.WriteFile(path, staple, 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, "-status_file", path)
	}
	cmd := exec.Command(tool, args...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = &strings.Builder{}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	drained := make(chan struct{})
	t.Cleanup(func() {
		cmd.Process.Kill()
		<-drained
		cmd.Wait()
		if t.Failed() {
			t.Logf("openssl: %s", cmd.Stderr)
		}
	})
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if address, ok := strings.CutPrefix(lines.Text(), "ACCEPT "); ok {
			go func() { io.Copy(io.Discard, out); close(drained) }()
			return address
		}
	}
	close(drained)
	cmd.Wait()
	t.Fatalf("openssl did not listen: %s", cmd.Stderr)
	return ""
}

// deviceRoot is the root of the hospital's devices, made from the same key as device uses.
func deviceRoot(t testing.TB) []byte {
	h := &hospital{t: t}
	return h.sign(authority("Root"), authority("Root"), keys()[0], keys()[0]).Raw
}

func TestB17_B18_OpenSSLAsThePlatform(t *testing.T) {
	// s_server staples for the leaf alone. With the issuing CA as the anchor
	// that is all there is to staple for.
	whole := func(h *hospital) {
		h.trust = func(c *chain) []*x509.Certificate { return []*x509.Certificate{c.root} }
	}
	for _, c := range []struct {
		name, refusal string
		fault         func(*hospital)
		more          []string
	}{
		{name: "TLS 1.3", more: []string{"-tls1_3"}},
		{name: "TLS 1.2", more: []string{"-tls1_2"}},
		{name: "the first suite of A3", more: []string{"-tls1_2", "-cipher", "ECDHE-ECDSA-AES256-GCM-SHA384"}},
		{name: "the fourth suite of A3", more: []string{"-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-SHA256"}},
		{name: "the sixth suite of A3", more: []string{"-tls1_2", "-cipher", "ECDHE-ECDSA-AES256-SHA"}},
		{name: "a suite that A3 does not list", more: []string{"-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-GCM-SHA256"}, refusal: "handshake failure"},
		{name: "RSA with the suite that A3 allows", more: []string{"-tls1_2", "-cipher", "ECDHE-RSA-AES256-GCM-SHA384"},
			fault: func(h *hospital) { h.key = rsaKey(h.t, 2048) }},
		{name: "RSA with DHE", more: []string{"-tls1_2", "-cipher", "DHE-RSA-AES256-GCM-SHA384"},
			fault: func(h *hospital) { h.key = rsaKey(h.t, 2048) }},
		{name: "RSA with DHE and CBC", more: []string{"-tls1_2", "-cipher", "DHE-RSA-AES128-SHA256"},
			fault: func(h *hospital) { h.key = rsaKey(h.t, 2048) }},
		{name: "static RSA", more: []string{"-tls1_2", "-cipher", "AES256-GCM-SHA384"}, refusal: "handshake failure",
			fault: func(h *hospital) { h.key = rsaKey(h.t, 2048) }},
		{name: "a common name only", fault: func(h *hospital) { h.leaf.DNSNames = nil }},
		{name: "TLS 1.1", more: []string{"-tls1_1", "-cipher", "ALL@SECLEVEL=0"}, refusal: "protocol version"},
		{name: "another name", fault: func(h *hospital) { h.name = "elsewhere.test" }, refusal: "B17"},
		{name: "an expired certificate", fault: func(h *hospital) { h.leaf.NotAfter = now.Add(-time.Minute) }, refusal: "it expired"},
		{name: "no intermediate", refusal: "was not sent",
			fault: func(h *hospital) {
				whole(h)
				h.send = func(c *chain) []*x509.Certificate { return []*x509.Certificate{c.leaf} }
			}},
		{name: "no response for the intermediate, TLS 1.3", more: []string{"-tls1_3"}, fault: whole, refusal: `rule B18: certificate 2 of 2 sent, "CN=Issuing": no response`},
		{name: "no response for the intermediate, TLS 1.2", more: []string{"-tls1_2"}, fault: whole, refusal: `rule B18: certificate 2 of 2 sent, "CN=Issuing": no response`},
		{name: "no response", refusal: "rule B18: platform certificate, 1 of 2 sent",
			fault: func(h *hospital) { h.staple = func(*chain, [][]byte) [][]byte { return [][]byte{nil} } }},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newHospital(t)
			h.trust = func(c *chain) []*x509.Certificate { return []*x509.Certificate{c.issuing} }
			if slices.Contains(c.more, "-cipher") {
				complete(t)
			}
			if c.fault != nil {
				c.fault(h)
			}
			made := h.chain()
			_, err := dial(t, h.client(made), h.openssl(made, c.more...))
			switch {
			case c.refusal == "" && err != nil:
				t.Error(err)
			case c.refusal != "" && (err == nil || !strings.Contains(err.Error(), c.refusal)):
				t.Errorf("the handshake ended with %v", err)
			}
		})
	}
}
