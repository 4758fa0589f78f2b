package bench

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/bedside-gateway/gatewayd/internal/sim/pki"
	"github.com/bedside-gateway/gatewayd/internal/sim/responder"
	"github.com/bedside-gateway/gatewayd/revocation/fetch"
	"github.com/bedside-gateway/gatewayd/southbound"
	"github.com/bedside-gateway/gatewayd/tlsoverlay"
	"github.com/bedside-gateway/gatewayd/tlsoverlay/overlaytest"
	"github.com/bedside-gateway/gatewayd/tlspolicy"
)

// hospitalDir makes this test binary a server of Interface A with the PKI of a
// directory: a process of its own, as its peer is.
const hospitalDir = "GATEWAY_BENCH_HOSPITAL"

func TestMain(m *testing.M) {
	dir := os.Getenv(hospitalDir)
	if dir == "" {
		os.Exit(m.Run())
	}
	if err := serveInterfaceA(dir, os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// within is a client of an HTTP server in the same process.
type within struct{ http.Handler }

func (w within) RoundTrip(r *http.Request) (*http.Response, error) {
	recorder := httptest.NewRecorder()
	w.ServeHTTP(recorder, r)
	return recorder.Result(), nil
}

// serveInterfaceA serves until its input ends. It prints its address, and at
// the end how many verdicts came from memory.
func serveInterfaceA(dir string, in io.Reader, out io.Writer) error {
	hospital, err := pki.Read(dir)
	if err != nil {
		return err
	}
	ocsp, err := responder.New(responder.Options{PKI: hospital})
	if err != nil {
		return err
	}
	fetcher := fetch.New(fetch.Options{Client: &http.Client{Transport: within{ocsp}}})
	defer fetcher.Close()
	o := southbound.Options{
		Roots: hospital.Roots(), Fetcher: fetcher, MaxPerDevice: 256,
		Authorised: func(cn string) bool { return cn == pki.DefaultDevice.String() },
		Sink:       func(context.Context, string, []byte) error { return errors.New("no message is expected") },
	}
	for _, name := range []string{"platform", "rsa-platform"} {
		id, err := hospital.Identity(name)
		if err != nil {
			return err
		}
		o.Identities = append(o.Identities, id)
	}
	server, err := southbound.New(o)
	if err != nil {
		return err
	}
	defer server.Close()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if err := server.FetchStaples(ctx); err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Fprintln(out, l.Addr())
	go func() {
		_, _ = io.Copy(io.Discard, in) // whatever ends it, the parent is gone
		cancel()
	}()
	err = server.Serve(ctx, l)
	fmt.Fprintln(out, fetcher.Counts().Remembered)
	return err
}

// A peer is a server of Interface A in a process of its own.
type peer struct {
	cmd     *exec.Cmd
	in      io.Closer
	out     *bufio.Reader
	address string
	stderr  strings.Builder
	spent   time.Duration // by the client, waiting for it
	began   time.Duration // CPU time when the loop began
}

func startPeer(b *testing.B, cmd *exec.Cmd) *peer {
	b.Helper()
	p := &peer{cmd: cmd}
	in, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	p.in, p.out, cmd.Stderr = in, bufio.NewReader(out), &p.stderr
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = p.in.Close()
		_ = cmd.Process.Kill() // where it has not ended by itself
		_ = cmd.Wait()
		if b.Failed() {
			b.Logf("%s says: %s", cmd.Path, p.stderr.String())
		}
	})
	return p
}

func startOurs(b *testing.B, dir string) *peer {
	b.Helper()
	self, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), hospitalDir+"="+dir)
	p := startPeer(b, cmd)
	line, err := p.out.ReadString('\n')
	if err != nil {
		b.Fatalf("our server did not start: %v\n%s", err, p.stderr.String())
	}
	p.address = strings.TrimSpace(line)
	return p
}

// remembered ends our server and says how many verdicts it had in its memory.
func (p *peer) remembered(b *testing.B) int {
	b.Helper()
	if err := p.in.Close(); err != nil {
		b.Fatal(err)
	}
	line, err := p.out.ReadString('\n')
	if err != nil {
		b.Fatal(err)
	}
	n, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		b.Fatal(err)
	}
	return n
}

// startOpenSSL is s_server with the same certificates, the same suite, the
// response for its leaf, and no resumption; it verifies the client's chain.
func startOpenSSL(b *testing.B, dir string, s suite) *peer {
	b.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	address := l.Addr().String() // s_server tells its own only among much else
	l.Close()
	file := func(name string) string { return filepath.Join(dir, name) }
	args := []string{"s_server", "-accept", address, "-quiet", "-no_ticket", "-no_cache", "-num_tickets", "0",
		"-CAfile", file(pki.RootsFile), "-Verify", "3", "-verify_return_error", "-verify_quiet",
		"-cert", file(s.prefix + "platform.pem"), "-key", file(s.prefix + "platform.key"), "-cert_chain", file(s.scheme + "-issuing.pem"),
		"-status_file", file(s.prefix + "platform.ocsp"), "-groups", "P-256"}
	p := startPeer(b, exec.Command("openssl", append(args, s.openssl(b, dir)...)...))
	p.address = address
	return p
}

// cpu is what the process has used, user and system (proc(5), /proc/PID/stat).
func (p *peer) cpu(b *testing.B) time.Duration {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	if err != nil {
		b.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), ") ") // behind the name, from field 3 on
	fields := strings.Fields(rest)
	if len(fields) < 13 {
		b.Fatalf("/proc/PID/stat is %q", text)
	}
	var ticks int64
	for _, f := range fields[11:13] {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			b.Fatal(err)
		}
		ticks += n
	}
	const perSecond = 100 // USER_HZ is this on every platform of Linux
	return time.Duration(ticks) * time.Second / perSecond
}

// connect does a full handshake and waits until the server has closed it in
// good order: in TLS 1.3 a client does not see before that whether it got in.
func connect(address string, config *tls.Config) error {
	conn, err := tls.Dial("tcp", address, config)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return err
	}
	if err := conn.CloseWrite(); err != nil {
		return err
	}
	if n, err := conn.Read(make([]byte, 1)); n > 0 || !errors.Is(err, io.EOF) {
		return fmt.Errorf("not closed in good order: %d bytes, %w", n, err)
	}
	return nil
}

// connectOnceUp retries while nothing listens yet.
func connectOnceUp(b *testing.B, address string, config *tls.Config) {
	b.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		err := connect(address, config)
		if err == nil {
			return
		}
		if !errors.Is(err, syscall.ECONNREFUSED) || time.Now().After(end) {
			b.Fatal(err)
		}
	}
}

// A suite is a row of the benchmark.
type suite struct {
	name, scheme, prefix string
	version, id          uint16
	group                uint16 // of DHE
	args                 []string
}

var suites = []suite{
	{name: "TLS12_ECDHE_ECDSA_AES_256_GCM", scheme: "ecc", version: tls.VersionTLS12, id: tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
		args: []string{"-tls1_2", "-cipher", "ECDHE-ECDSA-AES256-GCM-SHA384"}},
	{name: "TLS13_ECDSA_AES_128_GCM", scheme: "ecc", version: tls.VersionTLS13, id: tls.TLS_AES_128_GCM_SHA256,
		args: []string{"-tls1_3", "-ciphersuites", "TLS_AES_128_GCM_SHA256"}},
	{name: "TLS12_DHE_2048_RSA_AES_256_GCM", scheme: "rsa", prefix: "rsa-", version: tls.VersionTLS12, id: tlsoverlay.DHE_RSA_AES_256_GCM_SHA384,
		group: tlsoverlay.FFDHE2048, args: []string{"-tls1_2", "-cipher", "DHE-RSA-AES256-GCM-SHA384"}},
	{name: "TLS12_DHE_3072_RSA_AES_256_GCM", scheme: "rsa", prefix: "rsa-", version: tls.VersionTLS12, id: tlsoverlay.DHE_RSA_AES_256_GCM_SHA384,
		group: tlsoverlay.FFDHE3072, args: []string{"-tls1_2", "-cipher", "DHE-RSA-AES256-GCM-SHA384"}},
}

// openssl are the arguments of s_server for the suite.
func (s suite) openssl(b *testing.B, dir string) []string {
	b.Helper()
	name, ok := map[uint16]string{tlsoverlay.FFDHE2048: "ffdhe2048", tlsoverlay.FFDHE3072: "ffdhe3072"}[s.group]
	if !ok {
		return s.args
	}
	file := filepath.Join(dir, name+".pem")
	if out, err := exec.Command("openssl", "genpkey", "-genparam", "-algorithm", "DH", "-pkeyopt", "group:"+name, "-out", file).CombinedOutput(); err != nil {
		b.Fatalf("%v\n%s", err, out)
	}
	return append([]string{"-dhparam", file}, s.args...)
}

// client is the load: package tls with the device's certificate, the server's
// chain and name verified, and no rule of ours.
func (s suite) client(b *testing.B, hospital *pki.PKI) *tls.Config {
	b.Helper()
	id, err := hospital.Identity(s.prefix + "device")
	if err != nil {
		b.Fatal(err)
	}
	c := &tls.Config{ServerName: pki.DefaultPlatform, RootCAs: hospital.Roots(), Certificates: []tls.Certificate{id},
		MinVersion: s.version, MaxVersion: s.version, CurvePreferences: []tls.CurveID{tls.CurveP256}}
	c.VerifyConnection = func(state tls.ConnectionState) error {
		if state.CipherSuite != s.id || len(state.OCSPResponse) == 0 {
			return fmt.Errorf("the suite is %s, the response has %d bytes", tls.CipherSuiteName(state.CipherSuite), len(state.OCSPResponse))
		}
		return nil
	}
	if s.version < tls.VersionTLS13 {
		if err := tlsoverlay.SetCipherSuites(c, []uint16{s.id}); err != nil {
			b.Fatal(err)
		}
	}
	if s.group != 0 {
		if err := tlsoverlay.SetGroups(c, []uint16{s.group}); err != nil {
			b.Fatal(err)
		}
	}
	return c
}

// hospital is a PKI of both schemes in a directory, with the responses that
// OpenSSL staples.
func hospital(b *testing.B) (*pki.PKI, string) {
	b.Helper()
	dir := b.TempDir()
	p, err := pki.New(pki.Options{Schemes: []pki.Scheme{pki.ECC, pki.RSA}, OCSPURL: "http://ocsp.test/{ca}"})
	if err != nil {
		b.Fatal(err)
	}
	if err := p.Write(dir); err != nil {
		b.Fatal(err)
	}
	for _, name := range []string{"platform", "rsa-platform"} {
		if err := os.WriteFile(filepath.Join(dir, name+".ocsp"), staples(b, p, name)[0], 0o600); err != nil {
			b.Fatal(err)
		}
	}
	return p, dir
}

// staples are good responses for the leaf and the issuing CA of a name.
func staples(b *testing.B, p *pki.PKI, name string) [][]byte {
	b.Helper()
	chain, err := p.Chain(name)
	if err != nil {
		b.Fatal(err)
	}
	return responder.Staples(p, chain, nil)
}

// BenchmarkInterfaceA is full handshakes with the gateway's server for devices,
// the device's chain verified and judged from remembered responses, beside
// OpenSSL's s_server, which verifies the chain and judges no revocation. The
// client, the certificates and the suite are the same, and the two take turns.
// x-rate is ours to theirs, the client's own work in both; x-cpu is the CPU time
// of the server's process, ours to theirs.
func BenchmarkInterfaceA(b *testing.B) {
	overlaytest.Need(b)
	if _, err := exec.LookPath("openssl"); err != nil {
		b.Skip("there is nothing to compare with, install openssl: ", err)
	}
	p, dir := hospital(b)
	for _, s := range suites {
		b.Run(s.name, func(b *testing.B) { interfaceA(b, p, dir, s) })
	}
}

const (
	clients = 4  // at once
	batch   = 16 // handshakes with the one before it is the turn of the other
)

func interfaceA(b *testing.B, p *pki.PKI, dir string, s suite) {
	client := s.client(b, p)
	ours, theirs := startOurs(b, dir), startOpenSSL(b, dir, s)
	peers := []*peer{ours, theirs}
	for _, p := range peers {
		connectOnceUp(b, p.address, client)
		p.began = p.cpu(b)
	}
	n := 0
	for b.Loop() {
		for _, p := range peers {
			began := time.Now()
			var g errgroup.Group
			g.SetLimit(clients)
			for range batch {
				g.Go(func() error { return connect(p.address, client) })
			}
			if err := g.Wait(); err != nil {
				b.Fatalf("%s: %v", p.cmd.Path, err)
			}
			p.spent += time.Since(began)
		}
		n += batch
	}
	rate := func(p *peer) float64 { return float64(n) / p.spent.Seconds() }
	cpu := func(p *peer) float64 { return float64((p.cpu(b) - p.began).Microseconds()) / float64(n) }
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(rate(ours), "/s-ours")
	b.ReportMetric(rate(theirs), "/s-openssl")
	b.ReportMetric(rate(ours)/rate(theirs), "x-rate")
	b.ReportMetric(cpu(ours), "µs-cpu-ours")
	b.ReportMetric(cpu(theirs), "µs-cpu-openssl")
	b.ReportMetric(cpu(ours)/cpu(theirs), "x-cpu")
	if got, want := ours.remembered(b), 2*n; got < want {
		b.Errorf("%d verdicts were remembered, want %d: leaf and issuing CA of each device", got, want)
	}
}

// BenchmarkInterfaceB is the gateway's full handshake with a platform on the
// loopback, staples for the leaf and the issuing CA verified, beside one of
// package tls that verifies the chain alone: same certificates, in turns. The
// benchmark of tlspolicy is the same with CAs of P-256; these are slower CAs.
func BenchmarkInterfaceB(b *testing.B) {
	overlaytest.Need(b)
	p, _ := hospital(b)
	for _, chain := range []struct{ name, prefix string }{{"P384_CAs", ""}, {"RSA3072_CAs", "rsa-"}} {
		for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			name := chain.name + "_" + strings.ReplaceAll(tls.VersionName(version), " ", "")
			b.Run(name, func(b *testing.B) { interfaceB(b, p, chain.prefix, version) })
		}
	}
}

func interfaceB(b *testing.B, p *pki.PKI, prefix string, version uint16) {
	ids := [2]tls.Certificate{}
	for i, name := range []string{"platform", "device"} {
		var err error
		if ids[i], err = p.Identity(prefix + name); err != nil {
			b.Fatal(err)
		}
	}
	curves := []tls.CurveID{tls.CurveP256}
	server := &tls.Config{Certificates: ids[:1], ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: p.Roots(),
		MinVersion: version, MaxVersion: version, SessionTicketsDisabled: true, CurvePreferences: curves}
	stapling := server.Clone()
	stapled := ids[0]
	if err := tlsoverlay.SetStaples(&stapled, staples(b, p, prefix+"platform")); err != nil {
		b.Fatal(err)
	}
	stapling.Certificates = []tls.Certificate{stapled}
	bare := &tls.Config{ServerName: pki.DefaultPlatform, RootCAs: p.Roots(), Certificates: ids[1:], CurvePreferences: curves}
	ours := func() *tls.Config {
		c, err := tlspolicy.Client{ServerName: pki.DefaultPlatform, Roots: p.Roots(), Identity: ids[1]}.Config()
		if err != nil {
			b.Fatal(err)
		}
		c.CurvePreferences = curves
		return c
	}
	plainAddress, staplingAddress := listen(b, server), listen(b, stapling)
	remembering := ours()
	var spent [3]time.Duration
	shake := func(i int, address string, c *tls.Config) {
		began := time.Now()
		if err := connect(address, c); err != nil {
			b.Fatal(err)
		}
		spent[i] += time.Since(began)
	}
	shake(2, staplingAddress, remembering)
	spent[2] = 0
	for b.Loop() {
		first := ours() // its memory is empty
		shake(0, plainAddress, bare)
		shake(1, staplingAddress, first)
		shake(2, staplingAddress, remembering)
	}
	b.ReportMetric(0, "ns/op")
	for i, name := range []string{"bare", "first", "remembered"} {
		b.ReportMetric(float64(spent[i].Microseconds())/float64(b.N), "µs-"+name)
		if i > 0 {
			b.ReportMetric(float64(spent[i])/float64(spent[0]), "x-"+name)
		}
	}
}

// listen serves handshakes, and closes each connection after its client did.
func listen(b *testing.B, config *tls.Config) (address string) {
	b.Helper()
	l, err := tls.Listen("tcp", "127.0.0.1:0", config)
	if err != nil {
		b.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return // closed by the cleanup
			}
			serving.Go(func() {
				defer conn.Close()
				_, _ = io.Copy(io.Discard, conn) // the client says what went wrong
			})
		}
	})
	b.Cleanup(func() {
		l.Close()
		serving.Wait()
	})
	return l.Addr().String()
}
