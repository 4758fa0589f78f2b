// Package tpminterop holds keys in a TPM against peers that share nothing with
// Go's TLS: OpenSSL and Java's JSSE, with mutual TLS in both directions. The TPM
// is an emulator.
//
// make interop installs them and runs these tests; without GATEWAY_INTEROP=1 a
// missing peer is a skip.
package tpminterop

import (
	"bufio"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/bedside-gateway/gatewayd/internal/sim/swtpm"
	"github.com/bedside-gateway/gatewayd/keystore/tpm"
)

const patience = 30 * time.Second

func need(t *testing.T, peer string, err error) {
	t.Helper()
	switch {
	case err == nil:
	case os.Getenv("GATEWAY_INTEROP") == "1":
		t.Fatalf("%s is not installed (make interop installs it): %v", peer, err)
	default:
		t.Skipf("%s is not installed (%v); make interop installs it and runs this test", peer, err)
	}
}

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// A ward is a CA, the peer's files, and the gateway's keys in a TPM.
type ward struct {
	dir   string
	root  *x509.Certificate
	key   *ecdsa.PrivateKey
	roots *x509.CertPool
	tpm   *tpm.TPM
}

func newWard(t *testing.T) *ward {
	t.Helper()
	folder := must(os.MkdirTemp("", "tpm"))(t) // a socket's path is short
	t.Cleanup(func() { os.RemoveAll(folder) })
	e, err := swtpm.Start(t.Context(), folder)
	need(t, "swtpm", err)
	t.Cleanup(e.Stop)
	w := &ward{dir: t.TempDir(), tpm: tpm.Open(e.Address(), tpm.Options{}), roots: x509.NewCertPool(), key: newKey(t)}
	t.Cleanup(func() { w.tpm.Close() })
	root := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "root"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(24 * time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	w.root = must(x509.ParseCertificate(must(x509.CreateCertificate(rand.Reader, root, root, w.key.Public(), w.key))(t)))(t)
	w.roots.AddCert(w.root)
	w.write(t, "root.pem", "CERTIFICATE", w.root.Raw)
	peer := newKey(t)
	w.write(t, "peer.pem", "CERTIFICATE", w.issue(t, "peer", peer.Public()))
	w.write(t, "peer.key", "PRIVATE KEY", must(x509.MarshalPKCS8PrivateKey(peer))(t))
	return w
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	return must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
}

func (w *ward) issue(t *testing.T, name string, key crypto.PublicKey) []byte {
	t.Helper()
	return must(x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: must(rand.Int(rand.Reader, big.NewInt(1<<60)))(t),
		Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}, w.root, key, w.key))(t)
}

func (w *ward) file(name string) string { return filepath.Join(w.dir, name) }

func (w *ward) write(t *testing.T, name, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(w.file(name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}

// gateway is our side, with a key of the kind in the TPM.
func (w *ward) gateway(t *testing.T, kind tpm.Kind, version uint16) *tls.Config {
	t.Helper()
	k := must(w.tpm.Load(t.Context(), must(w.tpm.Create(t.Context(), kind, nil))(t)))(t)
	id := tls.Certificate{Certificate: [][]byte{w.issue(t, "gateway", k.Public())}, PrivateKey: k, SupportedSignatureAlgorithms: k.Algorithms()}
	return &tls.Config{RootCAs: w.roots, ClientCAs: w.roots, ClientAuth: tls.RequireAndVerifyClientCert, ServerName: "127.0.0.1",
		Certificates: []tls.Certificate{id}, MinVersion: version, MaxVersion: version}
}

// A peer runs one session in each role. serve gives its port, and what it said
// when it ended; call gives what it said.
type peer struct {
	name  string
	need  func(*testing.T, *ward)
	serve func(*testing.T, *ward, uint16) (port string, said func() string)
	call  func(t *testing.T, w *ward, version uint16, port string) string
}

var peers = []peer{
	{"OpenSSL", func(t *testing.T, _ *ward) { _, err := exec.LookPath("openssl"); need(t, "OpenSSL", err) }, serveOpenSSL, callOpenSSL},
	{"JSSE", needJSSE, serveJSSE, callJSSE},
}

func TestPeersAreSatisfiedWithAKeyInTheTPM(t *testing.T) {
	w := newWard(t)
	for _, p := range peers {
		t.Run(p.name, func(t *testing.T) {
			p.need(t, w)
			for _, kind := range []tpm.Kind{tpm.P256, tpm.P384, tpm.RSA2048} {
				for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
					c := w.gateway(t, kind, version)
					name := string(kind) + " " + tls.VersionName(version)
					t.Run(name+" to its server", func(t *testing.T) {
						port, said := p.serve(t, w, version)
						err := hello(port, c)
						if s := said(); err != nil || !strings.Contains(s, "gateway") {
							t.Errorf("%v; it says: %s", err, s)
						}
					})
					t.Run(name+" from its client", func(t *testing.T) {
						port, session := echo(t, c)
						said := p.call(t, w, version, port)
						if err := <-session; err != nil || !strings.Contains(said, "gateway") {
							t.Errorf("%v; it says: %s", err, said)
						}
					})
				}
			}
		})
	}
}

// hello sends a line as a client and waits for an answer.
func hello(port string, c *tls.Config) error {
	conn, err := tls.DialWithDialer(&net.Dialer{Timeout: patience}, "tcp", "127.0.0.1:"+port, c)
	if err != nil {
		return err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(conn, "hello\n"); err != nil {
		return err
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	if line != "hello\n" && line != "olleh\n" { // OpenSSL's -rev gives it backwards
		return fmt.Errorf("%q came back: %w", line, err)
	}
	return nil
}

// echo serves one session.
func echo(t *testing.T, c *tls.Config) (port string, session <-chan error) {
	t.Helper()
	l := must(tls.Listen("tcp", "127.0.0.1:0", c))(t)
	done := make(chan error, 1)
	go func() {
		defer l.Close()
		conn, err := l.Accept()
		if err != nil {
			done <- err
			return
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(patience))
		line, err := bufio.NewReader(conn).ReadString('\n')
		if err == nil {
			_, err = io.WriteString(conn, line)
		}
		done <- err
	}()
	_, port, _ = net.SplitHostPort(l.Addr().String())
	return port, done
}

func flag(version uint16) string {
	if version == tls.VersionTLS13 {
		return "-tls1_3"
	}
	return "-tls1_2"
}

func (w *ward) openssl(role string, version uint16, more ...string) []string {
	return append([]string{role, flag(version), "-CAfile", w.file("root.pem"), "-cert", w.file("peer.pem"), "-key", w.file("peer.key"),
		"-verify_return_error"}, more...)
}

func serveOpenSSL(t *testing.T, w *ward, version uint16) (string, func() string) {
	cmd, out := begin(t, "openssl", w.openssl("s_server", version, "-Verify", "3", "-accept", "127.0.0.1:0", "-naccept", "1", "-rev")...)
	var all strings.Builder
	for {
		line, err := out.ReadString('\n')
		all.WriteString(line)
		if address, ok := strings.CutPrefix(strings.TrimSpace(line), "ACCEPT "); ok {
			_, port, _ := net.SplitHostPort(address)
			return port, func() string { rest, _ := io.ReadAll(out); _ = cmd.Wait(); return all.String() + string(rest) }
		}
		if err != nil {
			t.Fatalf("%v: %s", err, all.String())
		}
	}
}

func callOpenSSL(t *testing.T, w *ward, version uint16, port string) string {
	cmd := exec.CommandContext(t.Context(), "openssl", w.openssl("s_client", version, "-verify", "3", "-verify_ip", "127.0.0.1", "-quiet", "-connect", "127.0.0.1:"+port)...)
	cmd.Stdin = strings.NewReader("hello\n")
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "hello\n") {
		return fmt.Sprintf("failed: %v: %s", err, strings.ReplaceAll(string(out), "gateway", "g."))
	}
	return string(out)
}

func needJSSE(t *testing.T, w *ward) {
	t.Helper()
	_, err := exec.LookPath("javac")
	need(t, "a JDK", err)
	_, err = exec.LookPath("openssl")
	need(t, "OpenSSL", err)
	if out, err := exec.CommandContext(t.Context(), "javac", "-d", w.dir, "peers/TpmPeer.java").CombinedOutput(); err != nil {
		t.Fatalf("javac: %v\n%s", err, out)
	}
	if out, err := exec.CommandContext(t.Context(), "openssl", "pkcs12", "-export", "-in", w.file("peer.pem"), "-inkey", w.file("peer.key"),
		"-out", w.file("peer.p12"), "-passout", "pass:changeit").CombinedOutput(); err != nil {
		t.Fatalf("openssl pkcs12: %v\n%s", err, out)
	}
}

func (w *ward) jsse(role string, version uint16, port string) []string {
	return []string{"-cp", w.dir, "TpmPeer", role, strings.ReplaceAll(tls.VersionName(version), "TLS 1", "TLSv1"), w.file("peer.p12"), port, w.file("root.pem")}
}

func serveJSSE(t *testing.T, w *ward, version uint16) (string, func() string) {
	cmd, out := begin(t, "java", w.jsse("server", version, "0")...)
	port := must(out.ReadString('\n'))(t)
	return strings.TrimSpace(port), func() string { rest, _ := io.ReadAll(out); _ = cmd.Wait(); return string(rest) }
}

func callJSSE(t *testing.T, w *ward, version uint16, port string) string {
	out, err := exec.CommandContext(t.Context(), "java", w.jsse("client", version, port)...).CombinedOutput()
	if err != nil {
		return fmt.Sprintf("failed: %v: %s", err, strings.ReplaceAll(string(out), "gateway", "g."))
	}
	return string(out)
}

// begin starts a program, which ends with the test at the latest.
func begin(t *testing.T, name string, args ...string) (*exec.Cmd, *bufio.Reader) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, name, args...)
	out := must(cmd.StdoutPipe())(t)
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd, bufio.NewReader(out)
}
