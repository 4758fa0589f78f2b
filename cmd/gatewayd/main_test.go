package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/bedside-gateway/gatewayd/drivers/intellivue/sim"
	"github.com/bedside-gateway/gatewayd/internal/sim/ca"
	"github.com/bedside-gateway/gatewayd/internal/sim/pki"
	"github.com/bedside-gateway/gatewayd/internal/sim/platform"
	"github.com/bedside-gateway/gatewayd/internal/sim/swtpm"
	"github.com/bedside-gateway/gatewayd/internal/status"
	"github.com/bedside-gateway/gatewayd/keystore/attest/attesttest"
	"github.com/bedside-gateway/gatewayd/observation"
	"github.com/bedside-gateway/gatewayd/tlsoverlay/overlaytest"
)

func TestMain(m *testing.M) {
	overlaytest.Require()
	testscript.Main(m, map[string]func(){"gatewayd": func() { os.Exit(start()) }})
}

// TestCommandLine runs the conversations in testdata/script. Beside the usual
// commands they have
//
//	exits CODE COMMAND...    the command ends with this exit code
//	ready SOCKET             wait until a daemon answers there
//	condition SOCKET NAME    wait until its report has the condition
//	waiting SOCKET N         wait until N messages are in its spool, =N exactly
//	platform NAME [ANSWERS]  a platform whose address is then in $NAME, with the certificates in pki/
//	signal HUP|TERM          send a signal to what runs in the background
//	answers NAME ANSWERS     what the platform answers from now on
//	monitor NAME             a simulated monitor on the network, whose address is then in $NAME
//	envsubst FILE            put the values of variables into a file
//	first NAME               the first number of the last output's second line into $NAME
//	swtpm NAME               an emulated TPM whose address is then in $NAME
//	manufactured NAME        the same with the certificates of its maker
//	authority NAME           a CA for that TPM, whose URL is then in $NAME
//	authority NAME strangers a CA that knows no maker of TPMs
//	issue CSR FILE EUI-64    the PKI's certificate for a request, with its issuing CA's
//	leaf FILE FILE           the first certificate of a file
//	reverse FILE FILE        the certificates of a file in reverse order
//	both FILE FILE FILE      two files in one
//	stored NAME N            wait until it has stored N messages
func TestCommandLine(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Condition: func(c string) (bool, error) {
			if c == "swtpm" || c == "swtpm_setup" {
				_, err := exec.LookPath(c)
				return err == nil || os.Getenv("NEED_SWTPM") != "", nil
			}
			return c == "shared" && os.Getenv("GATEWAY_SHARED") != "", nil
		},
		Setup: func(e *testscript.Env) error {
			e.Setenv("SHARED", os.Getenv("GATEWAY_SHARED"))
			e.Setenv("GORACE", "atexit_sleep_ms=5") // the race detector's default is a second for each command
			e.Values[makers{}] = map[string]*attesttest.TPM{}
			e.Values[platforms{}] = map[string]*platform.Platform{}
			keys, err := pki.New(pki.Options{})
			if err != nil {
				return err
			}
			e.Values[certificates{}] = keys
			return keys.Write(filepath.Join(e.WorkDir, "pki"))
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits": exits, "ready": ready, "condition": condition, "waiting": waiting, "platform": startPlatform, "stored": stored, "signal": signals, "answers": answers, "monitor": monitor, "envsubst": envsubst, "first": first,
			"swtpm": startTPM, "manufactured": manufactured, "authority": certifier, "issue": issue, "leaf": leafOf, "reverse": reverse, "both": both,
		},
	})
}

// Keys of what the commands of a script share.
type (
	platforms    struct{}
	certificates struct{}
)

func exits(ts *testscript.TestScript, _ bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		e, ok := errors.AsType[*exec.ExitError](err)
		if !ok {
			ts.Fatalf("%v", err)
		}
		got = e.ExitCode()
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

// until asks a daemon for its report until holds is true.
func until(ts *testscript.TestScript, socket, what string, holds func(status.Report) bool) {
	client := status.NewClient(ts.MkAbs(socket))
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for tick := time.NewTicker(10 * time.Millisecond); ; {
		r, err := client.Report(ctx)
		if err == nil && holds(r) {
			return
		}
		select {
		case <-ctx.Done():
			ts.Fatalf("%s: not within a minute (%v)", what, err)
		case <-tick.C:
		}
	}
}

func signals(ts *testscript.TestScript, _ bool, args []string) {
	known := map[string]os.Signal{"HUP": syscall.SIGHUP, "TERM": syscall.SIGTERM}
	for _, c := range ts.BackgroundCmds() {
		ts.Check(c.Process.Signal(known[args[0]]))
	}
}

func ready(ts *testscript.TestScript, _ bool, args []string) {
	until(ts, args[0], "a daemon is ready", func(r status.Report) bool { return r.Ready })
}

func condition(ts *testscript.TestScript, _ bool, args []string) {
	until(ts, args[0], args[1], func(r status.Report) bool {
		for _, c := range r.Conditions {
			if c.Name == args[1] {
				return true
			}
		}
		return false
	})
}

func waiting(ts *testscript.TestScript, _ bool, args []string) {
	digits, exact := strings.CutPrefix(args[1], "=")
	want, err := strconv.Atoi(digits)
	ts.Check(err)
	until(ts, args[0], digits+" messages", func(r status.Report) bool {
		return r.Spool.Messages == want || !exact && r.Spool.Messages > want
	})
}

func startPlatform(ts *testscript.TestScript, _ bool, args []string) {
	keys := ts.Value(certificates{}).(*pki.PKI)
	identity, err := keys.Identity("platform")
	ts.Check(err)
	var script []platform.Answer
	if len(args) > 1 {
		script, err = platform.ParseAnswers(args[1])
		ts.Check(err)
	}
	p, err := platform.New(platform.Options{Certificates: []tls.Certificate{identity}, Roots: keys.Roots(), Hospital: keys, Answer: script})
	ts.Check(err)
	ts.Check(p.Listen("127.0.0.1:0"))
	ts.Defer(func() { p.Close() })
	ts.Value(platforms{}).(map[string]*platform.Platform)[args[0]] = p
	ts.Setenv(args[0], p.Address())
}

func answers(ts *testscript.TestScript, _ bool, args []string) {
	list, err := platform.ParseAnswers(args[1])
	ts.Check(err)
	ts.Value(platforms{}).(map[string]*platform.Platform)[args[0]].SetAnswer(list...)
}

func monitor(ts *testscript.TestScript, _ bool, args []string) {
	m, err := sim.New(sim.Options{Seed: 1, Tick: 100 * time.Millisecond, AcceptDelay: time.Millisecond, Latency: time.Millisecond,
		Patient: &sim.Patient{ID: "MARKID", Family: "MARKNAME"}})
	ts.Check(err)
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	ts.Check(err)
	ts.Setenv(args[0], c.LocalAddr().String())
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- m.ServePacket(ctx, c) }()
	ts.Defer(func() {
		stop()
		<-done
	})
}

func envsubst(ts *testscript.TestScript, _ bool, args []string) {
	text := os.Expand(ts.ReadFile(args[0]), ts.Getenv)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(text), 0o600))
}

func first(ts *testscript.TestScript, _ bool, args []string) {
	lines := strings.Split(ts.ReadFile("stdout"), "\n")
	if len(lines) < 2 {
		ts.Fatalf("the output has no second line")
	}
	id, _, _ := strings.Cut(lines[1], " ")
	ts.Setenv(args[0], id)
}

// stored counts distinct messages: N is at least so many, =N exactly.
func stored(ts *testscript.TestScript, _ bool, args []string) {
	p := ts.Value(platforms{}).(map[string]*platform.Platform)[args[0]]
	digits, exact := strings.CutPrefix(args[1], "=")
	want, err := strconv.Atoi(digits)
	ts.Check(err)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := p.Wait(ctx, func(c platform.Counts) bool { return c.Stored >= want }); err != nil {
		ts.Fatalf("%d messages stored: %v; counts %+v", want, err, p.Counts())
	}
	if c := p.Counts(); exact && c.Stored != want {
		ts.Fatalf("%d messages stored, want %d", c.Stored, want)
	}
	fmt.Fprintf(ts.Stdout(), "%+v\n", p.Counts())
}

func startTPM(ts *testscript.TestScript, _ bool, args []string) {
	dir, err := os.MkdirTemp("", "tpm") // the path of a socket is short
	ts.Check(err)
	ts.Defer(func() { os.RemoveAll(dir) })
	e, err := swtpm.Start(context.Background(), dir)
	ts.Check(err)
	ts.Defer(e.Stop)
	ts.Setenv(args[0], e.Address())
}

// makers are the roots of the TPM's maker.
type makers struct{}

func manufactured(ts *testscript.TestScript, _ bool, args []string) {
	t, err := attesttest.Start()
	ts.Check(err)
	ts.Defer(func() { t.Close() })
	ts.Setenv(args[0], "unix:"+t.Socket)
	ts.Value(makers{}).(map[string]*attesttest.TPM)["maker"] = t
}

func certifier(ts *testscript.TestScript, _ bool, args []string) {
	maker := ts.Value(makers{}).(map[string]*attesttest.TPM)["maker"]
	between := x509.NewCertPool()
	between.AddCert(maker.Issuer)
	makers := maker.Roots
	if len(args) > 1 {
		makers = x509.NewCertPool()
	}
	s, err := ca.New(ca.Options{PKI: ts.Value(certificates{}).(*pki.PKI), Credentials: map[string]string{"ward": "bed side"}, EKRoots: makers, EKIntermediates: between})
	ts.Check(err)
	server := httptest.NewUnstartedServer(s)
	server.TLS, err = s.TLS()
	ts.Check(err)
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	ts.Defer(server.Close)
	ts.Setenv(args[0], server.URL)
}

func issue(ts *testscript.TestScript, _ bool, args []string) {
	block, _ := pem.Decode([]byte(ts.ReadFile(args[0])))
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	ts.Check(err)
	ts.Check(csr.CheckSignature())
	id, err := observation.ParseEUI64(args[2])
	ts.Check(err)
	chain, err := ts.Value(certificates{}).(*pki.PKI).IssueDevice("ecc-issuing", csr.PublicKey, id, time.Now(), pki.DefaultLifetime)
	ts.Check(err)
	var blocks []*pem.Block
	for _, c := range chain {
		blocks = append(blocks, &pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
	}
	writePEM(ts, args[1], blocks)
}

func writePEM(ts *testscript.TestScript, name string, blocks []*pem.Block) {
	var b bytes.Buffer
	for _, block := range blocks {
		ts.Check(pem.Encode(&b, block))
	}
	ts.Check(os.WriteFile(ts.MkAbs(name), b.Bytes(), 0o600))
}

func readPEM(ts *testscript.TestScript, name string) (all []*pem.Block) {
	for b, rest := pem.Decode([]byte(ts.ReadFile(name))); b != nil; b, rest = pem.Decode(rest) {
		all = append(all, b)
	}
	return all
}

func leafOf(ts *testscript.TestScript, _ bool, args []string) {
	writePEM(ts, args[1], readPEM(ts, args[0])[:1])
}

func reverse(ts *testscript.TestScript, _ bool, args []string) {
	all := readPEM(ts, args[0])
	slices.Reverse(all)
	writePEM(ts, args[1], all)
}

func both(ts *testscript.TestScript, _ bool, args []string) {
	ts.Check(os.WriteFile(ts.MkAbs(args[2]), []byte(ts.ReadFile(args[0])+ts.ReadFile(args[1])), 0o600))
}
