package tlsinterop

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bedside-gateway/gatewayd/mllp"
)

// scratch is a folder of this run.
var scratch string

func TestMain(m *testing.M) {
	var err error
	if scratch, err = os.MkdirTemp("", "tlsinterop"); err != nil {
		panic(err)
	}
	code := m.Run()
	stopJSSE()
	os.RemoveAll(scratch)
	os.Exit(code)
}

// need skips a test whose peer is not there. GATEWAY_INTEROP=1 says that it
// has to be.
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

// patience is how long any one conversation may take.
const patience = 30 * time.Second

// A job is one connection of a peer. Files are of the ward.
type job struct {
	name    string // entry whose certificate and key it shows
	chain   string // its file, where not name.pem
	trust   string // its file, where not roots.pem
	version string // 1.2 or 1.3
	suites  []suite
	port    string   // to call
	tells   bool     // OpenSSL and GnuTLS: it prints certificates, OpenSSL the stapled response too
	save    string   // GnuTLS: a file for the stapled responses
	silent  int      // JSSE as a platform: connections that say nothing, before the one
	times   int      // JSSE as a device: connections with one memory for sessions, 0 is one
	more    []string // OpenSSL as a device: further arguments
	message string   // OpenSSL as a device: in place of the usual one
}

func (j job) files(w *ward) (cert, key, trust string) {
	cert, trust = j.name+".pem", "roots.pem"
	if j.chain != "" {
		cert = j.chain
	}
	if j.trust != "" {
		trust = j.trust
	}
	return w.file(cert), w.file(j.name + ".key"), w.file(trust)
}

func names(s []suite, of func(suite) string, sep string) string {
	words := make([]string, len(s))
	for i := range s {
		words[i] = of(s[i])
	}
	return strings.Join(words, sep)
}

// A peer connects to us and delivers the message. What it says begins with
// "done" where it was acknowledged, else with "failed".
type peer struct {
	name string
	need func(*testing.T)
	call func(*testing.T, *ward, job) string
	// wholeSuites: it can be told suites, and not just their parts.
	wholeSuites bool
}

const (
	openssl = iota
	gnutls
	jsse
	wolfssl
)

var callers = [...]peer{
	openssl: {"OpenSSL", needOpenSSL, openSSLCall, true},
	gnutls:  {"GnuTLS", needGnuTLS, gnuTLSCall, false},
	jsse:    {"JSSE", func(t *testing.T) { needJSSE(t) }, jsseCall, true},
	wolfssl: {"wolfSSL", func(t *testing.T) { needWolf(t) }, wolfCall, true},
}

// ---- programs that copy between their connection and stdin and stdout

// piped delivers the message through such a program, and reads the answer.
func piped(t *testing.T, text, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	in := must(cmd.StdinPipe())(t)
	out := must(cmd.StdoutPipe())(t)
	var log bytes.Buffer
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	block := must(mllp.AppendBlock(nil, []byte(text)))(t)
	_, writeErr := in.Write(block)
	var all bytes.Buffer // what stands around the answer as well
	r := mllp.NewReader(io.TeeReader(out, &all), 1<<16)
	answer, err := r.ReadBlock()
	said := "done " + string(answer)
	if err != nil {
		said = fmt.Sprintf("failed: %v, %v", err, writeErr)
	}
	in.Close()
	_, _ = all.ReadFrom(out)
	_ = cmd.Wait() // the exit code says nothing more
	return said + "\n" + all.String() + log.String()
}

func needOpenSSL(t *testing.T) {
	t.Helper()
	_, err := exec.LookPath("openssl")
	need(t, "OpenSSL", err)
}

func openSSLCall(t *testing.T, w *ward, j job) string {
	t.Helper()
	cert, key, trust := j.files(w)
	args := []string{"s_client", "-status", "-connect", "127.0.0.1:" + j.port, "-servername", w.pki.Options.Platform,
		"-verify_hostname", w.pki.Options.Platform, "-verify_return_error", "-CAfile", trust, "-cert", cert, "-cert_chain", cert, "-key", key}
	if j.version == "1.3" {
		args = append(args, "-tls1_3")
	} else {
		args = append(args, "-tls1_2")
	}
	if !j.tells {
		args = append(args, "-quiet", "-no_ign_eof")
	}
	if j.suites != nil {
		args = append(args, "-cipher", names(j.suites, func(s suite) string { return s.openssl }, ":"))
	}
	return piped(t, cmp.Or(j.message, message), "openssl", append(args, j.more...)...)
}

func needGnuTLS(t *testing.T) {
	t.Helper()
	_, err := exec.LookPath("gnutls-cli")
	need(t, "GnuTLS", err)
}

func needGnuTLSPlatform(t *testing.T) string {
	t.Helper()
	_, err := os.Stat("/usr/include/gnutls/gnutls.h")
	need(t, "GnuTLS", err)
	return must(buildGnuTLS())(t)
}

func gnuTLSCall(t *testing.T, w *ward, j job) string {
	t.Helper()
	cert, key, trust := j.files(w)
	priority := "NORMAL:-VERS-ALL:+VERS-TLS" + j.version
	if j.suites != nil {
		priority = "NONE:+VERS-TLS1.2:+COMP-NULL:+SIGN-ALL:+GROUP-ALL:" + names(j.suites, func(s suite) string { return s.gnutls }, ":")
	}
	log := filepath.Join(t.TempDir(), "log") // with all that is not the platform's
	args := []string{"--logfile", log, "--priority", priority, "--x509cafile", trust, "--x509certfile", cert, "--x509keyfile", key,
		"--verify-hostname", w.pki.Options.Platform, "--sni-hostname", w.pki.Options.Platform, "--port", j.port}
	if j.save != "" {
		args = append(args, "--save-ocsp-multi", j.save)
	}
	if j.tells {
		args = append(args, "--print-cert")
	}
	said := piped(t, message, "gnutls-cli", append(args, "127.0.0.1")...)
	return said + string(must(os.ReadFile(log))(t))
}

// start starts a program that takes one connection, and waits for the line
// that says on which port. It gives all that the program says.
func start(t *testing.T, prefix string, name string, args ...string) (addr string, said func() string) {
	t.Helper()
	cmd := exec.Command(name, args...)
	in := must(cmd.StdinPipe())(t)
	r, w := must2(t, os.Pipe)
	cmd.Stdout, cmd.Stderr = w, w
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	var mu sync.Mutex
	var log strings.Builder
	found, ended := make(chan string, 1), make(chan struct{})
	go func() {
		defer close(ended)
		for s := bufio.NewScanner(r); s.Scan(); {
			mu.Lock()
			fmt.Fprintln(&log, s.Text())
			mu.Unlock()
			if port, ok := strings.CutPrefix(s.Text(), prefix); ok {
				found <- "127.0.0.1:" + port
			}
		}
	}()
	stop := sync.OnceFunc(func() {
		in.Close()
		cmd.Process.Kill()
		cmd.Wait()
		<-ended
		r.Close()
	})
	t.Cleanup(stop)
	said = func() string {
		mu.Lock()
		defer mu.Unlock()
		return log.String()
	}
	select {
	case addr = <-found:
	case <-ended:
		t.Fatalf("%s ended: %s", name, said())
	case <-time.After(patience):
		t.Fatalf("%s does not say %q: %s", name, prefix, said())
	}
	return addr, said
}

func must2[A, B any](t *testing.T, f func() (A, B, error)) (A, B) {
	t.Helper()
	a, b, err := f()
	if err != nil {
		t.Fatal(err)
	}
	return a, b
}

// ---- JSSE: one virtual machine for all jobs, since each start takes a second

type javaPeer struct {
	cmd   *exec.Cmd
	in    io.WriteCloser
	lines chan string
}

// A machine does one job after the other: a device and a platform that speak
// with each other need two.
var (
	buildJSSE = sync.OnceValues(func() (classes string, err error) {
		classes = filepath.Join(scratch, "java")
		if out, err := exec.Command("javac", "-d", classes, "peers/JssePeer.java").CombinedOutput(); err != nil {
			return "", fmt.Errorf("javac: %w\n%s", err, out)
		}
		return classes, nil
	})
	startJSSE  = sync.OnceValues(newJSSE)
	secondJSSE = sync.OnceValues(newJSSE)
)

func newJSSE() (*javaPeer, error) {
	classes, err := buildJSSE()
	if err != nil {
		return nil, err
	}
	p := &javaPeer{cmd: exec.Command("java", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-cp", classes, "JssePeer"), lines: make(chan string, 16)}
	p.cmd.Stderr = os.Stderr
	in, err := p.cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	p.in, jsseStarted = in, append(jsseStarted, p)
	go func() {
		defer close(p.lines)
		for s := bufio.NewScanner(out); s.Scan(); {
			p.lines <- s.Text()
		}
	}()
	return p, p.cmd.Start()
}

var jsseStarted []*javaPeer

func stopJSSE() {
	for _, p := range jsseStarted {
		p.in.Close() // it ends with its last job
		_ = p.cmd.Wait()
	}
}

func needJSSE(t *testing.T) *javaPeer {
	t.Helper()
	_, err := exec.LookPath("javac")
	need(t, "Java", err)
	return must(startJSSE())(t)
}

func (p *javaPeer) do(t *testing.T, w *ward, what string, j job) {
	t.Helper()
	cert, key, trust := j.files(w)
	words := []string{"do=" + what, "cert=" + cert, "key=" + key, "trust=" + trust, "version=TLSv" + j.version}
	if j.suites != nil {
		words = append(words, "suites="+names(j.suites, func(s suite) string { return s.jsse }, ","))
	}
	if j.times > 0 {
		words = append(words, fmt.Sprint("times=", j.times))
	}
	if j.silent > 0 {
		words = append(words, fmt.Sprint("silent=", j.silent))
	}
	if what == "call" {
		words = append(words, "port="+j.port, "host="+w.pki.Options.Platform, "message="+w.file("message.hl7"))
	}
	if _, err := fmt.Fprintln(p.in, strings.Join(words, "\t")); err != nil {
		t.Fatal(err)
	}
}

func (p *javaPeer) line(t *testing.T) string {
	t.Helper()
	select {
	case line, ok := <-p.lines:
		if !ok {
			t.Fatal("the virtual machine has ended")
		}
		return line
	case <-time.After(patience):
		t.Fatal("JSSE says nothing")
	}
	return ""
}

func jsseCall(t *testing.T, w *ward, j job) string {
	t.Helper()
	p := needJSSE(t)
	p.do(t, w, "call", j)
	return p.line(t)
}

// ---- wolfSSL, and GnuTLS as a platform: programs of ours, built here

var (
	buildWolf   = sync.OnceValues(func() (string, error) { return build("wolfssl") })
	buildGnuTLS = sync.OnceValues(func() (string, error) { return build("gnutls") })
)

func build(library string) (program string, err error) {
	program = filepath.Join(scratch, library+"_peer")
	out, err := exec.Command("cc", "-O1", "-Wall", "-Werror", "-o", program, "peers/"+library+"_peer.c", "-l"+library).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("cc: %w\n%s", err, out)
	}
	return program, nil
}

func needWolf(t *testing.T) string {
	t.Helper()
	_, err := os.Stat("/usr/include/wolfssl/ssl.h")
	need(t, "wolfSSL", err)
	return must(buildWolf())(t)
}

func (j job) wolf(w *ward, what string) []string {
	cert, key, trust := j.files(w)
	list := "-"
	if j.suites != nil {
		list = names(j.suites, func(s suite) string { return s.openssl }, ":")
	}
	return []string{what, cert, key, trust, j.version, list}
}

func wolfCall(t *testing.T, w *ward, j job) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	args := append(j.wolf(w, "call"), j.port, w.pki.Options.Platform, w.file("message.hl7"))
	out, _ := exec.CommandContext(ctx, needWolf(t), args...).CombinedOutput() // it says itself what failed
	return string(out)
}
