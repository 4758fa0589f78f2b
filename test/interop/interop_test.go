// Package interop holds what the gateway writes against parsers and platforms
// that this project did not write: python3-hl7 on Python's ssl, and Medplum's
// packages on Node's tls. make interop installs them and runs these tests;
// without GATEWAY_INTEROP=1 a missing peer is a skip.
//
// Neither can staple for the issuing CA, and Python's ssl not at all: as
// platforms of their own they are refused (B18). So they take messages behind a
// front that staples, as a hospital would put one before them, and Node also
// where the issuing CA is the anchor, so that its leaf is all there is to staple
// for. Peers that staple whole chains are in folder tls.
package interop

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bedside-gateway/gatewayd/drivers"
	"github.com/bedside-gateway/gatewayd/drivers/intellivue"
	"github.com/bedside-gateway/gatewayd/drivers/intellivue/sim"
	"github.com/bedside-gateway/gatewayd/drivers/port"
	"github.com/bedside-gateway/gatewayd/hl7"
	"github.com/bedside-gateway/gatewayd/internal/sim/pki"
	"github.com/bedside-gateway/gatewayd/internal/sim/responder"
	"github.com/bedside-gateway/gatewayd/observation"
	"github.com/bedside-gateway/gatewayd/pcd"
	"github.com/bedside-gateway/gatewayd/revocation"
	"github.com/bedside-gateway/gatewayd/tlsoverlay/overlaytest"
	"github.com/bedside-gateway/gatewayd/tlspolicy"
)

var gatewayd string

func TestMain(m *testing.M) {
	overlaytest.Require()
	dir, err := os.MkdirTemp("", "interop")
	if err != nil {
		panic(err)
	}
	gatewayd = filepath.Join(dir, "gatewayd")
	build := exec.Command("go", "build", "-o", gatewayd, "../../cmd/gatewayd")
	build.Stderr = os.Stderr
	if err := build.Run(); err != nil {
		panic(err)
	}
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// A peer is one of the strangers.
type peer struct {
	name    string
	command []string
	works   []string // must succeed where the peer is installed
}

var peers = []peer{
	{"python3-hl7", []string{"/usr/bin/python3", "hl7_peer.py"}, []string{"/usr/bin/python3", "-c", "import hl7"}},
	{"Medplum", []string{"node", "medplum/peer.cjs"}, []string{"node", "-e", "require('./medplum/node_modules/@medplum/hl7/package.json')"}},
}

func (p peer) need(t *testing.T) {
	t.Helper()
	out, err := exec.Command(p.works[0], p.works[1:]...).CombinedOutput()
	if err == nil {
		return
	}
	if os.Getenv("GATEWAY_INTEROP") == "1" {
		t.Fatalf("%s is not installed (make interop installs it): %v\n%s", p.name, err, out)
	}
	t.Skipf("%s is not installed; make interop installs it and runs this test", p.name)
}

// digest is what a peer says of a message.
type digest struct {
	Control  string      `json:"control"`
	Type     string      `json:"type"`
	Segments int         `json:"segments"`
	OBX      [][8]string `json:"obx"` // OBX-1, 2, 3.1, 3.2, 4, 5.1, 6.1, 11
}

// ours is the digest by this project's own parser.
func ours(t *testing.T, message []byte) digest {
	t.Helper()
	m, err := hl7.Parse(message)
	if err != nil {
		t.Fatal(err)
	}
	var d digest
	for s := range m.Segments() {
		d.Segments++
		at := func(field, component int) string { return s.Field(field).Component(component).String() }
		switch s.Name() {
		case "MSH":
			d.Control, d.Type = at(10, 1), string(s.Field(9).Raw())
		case "OBX":
			d.OBX = append(d.OBX, [8]string{at(1, 1), at(2, 1), at(3, 1), at(3, 2), at(4, 1), at(5, 1), at(6, 1), at(11, 1)})
		}
	}
	return d
}

func TestForeignParsersReadWhatWeWrite(t *testing.T) {
	for name, messages := range sources(t) {
		for _, p := range peers {
			t.Run(p.name+" reads messages of "+name, func(t *testing.T) {
				p.need(t)
				cmd := exec.Command(p.command[0], append(p.command[1:], "parse")...)
				cmd.Stdin = bytes.NewReader(bytes.Join(messages, []byte("\n\n")))
				var stderr bytes.Buffer
				cmd.Stderr = &stderr
				out, err := cmd.Output()
				if err != nil {
					t.Fatalf("%v: %.500s", err, stderr.String())
				}
				compare(t, messages, digests(t, bytes.NewReader(out)))
			})
		}
	}
}

// A hospital is a PKI on disk, and messages to send.
type hospital struct {
	*pki.PKI
	dir      string
	messages [][]byte
}

func newHospital(t *testing.T) *hospital {
	t.Helper()
	made, err := pki.New(pki.Options{Schemes: []pki.Scheme{pki.ECC, pki.RSA}})
	if err != nil {
		t.Fatal(err)
	}
	h := &hospital{made, t.TempDir(), sources(t)["a simulated monitor"]}
	if err := h.Write(h.dir); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(h.in("messages.hl7"), bytes.Join(h.messages, []byte("\n\n")), 0o600); err != nil {
		t.Fatal(err)
	}
	return h
}

func (h *hospital) in(name string) string { return filepath.Join(h.dir, name) }

func (h *hospital) send(port, device, trust string) ([]byte, error) {
	return exec.Command(gatewayd, "send", "--platform", "platform.test:2575", "--connect", "127.0.0.1:"+port,
		"--cert", h.in(device+".pem"), "--key", h.in(device+".key"), "--trust", h.in(trust), h.in("messages.hl7")).CombinedOutput()
}

// staple writes the response for a leaf into a file.
func (h *hospital) staple(t *testing.T, name string) string {
	t.Helper()
	chain, err := h.Chain(name)
	if err != nil {
		t.Fatal(err)
	}
	file := h.in(name + ".ocsp")
	if err := os.WriteFile(file, responder.Staples(h.PKI, chain, nil)[0], 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// front is what a hospital puts before a platform that cannot staple: it ends
// TLS by the policy of Interface A, and passes on what is inside.
func (h *hospital) front(t *testing.T, name, backend string) (port string) {
	t.Helper()
	identity, err := h.Identity(name)
	if err != nil {
		t.Fatal(err)
	}
	chain, err := h.Chain(name)
	if err != nil {
		t.Fatal(err)
	}
	staples := responder.Staples(h.PKI, chain, nil)
	config, err := tlspolicy.Server{Identities: []tls.Certificate{identity}, Roots: h.Roots(), Staples: func(int) [][]byte { return staples },
		Authorised: func(cn string) bool { return cn == pki.DefaultDevice.String() },
		Judge: func(_ context.Context, chain []*x509.Certificate, _ [][]byte) []revocation.Verdict {
			return revocation.Judge(chain, revocation.Stapled(responder.Staples(h.PKI, chain, nil)), time.Now(), revocation.Rules{})
		}}.Config()
	if err != nil {
		t.Fatal(err)
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", config)
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	t.Cleanup(func() { l.Close(); running.Wait() })
	running.Go(func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			running.Go(func() { pass(near, backend) })
		}
	})
	_, port, err = net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

func pass(near net.Conn, backend string) {
	defer near.Close()
	far, err := net.Dial("tcp", backend)
	if err != nil {
		return
	}
	defer far.Close()
	go func() {
		io.Copy(near, far)
		near.Close()
	}()
	io.Copy(far, near)
}

func (h *hospital) arrived(t *testing.T, lines <-chan string) {
	t.Helper()
	got := make([]digest, 0, len(h.messages))
	for range h.messages {
		select {
		case line := <-lines:
			got = append(got, digests(t, strings.NewReader(line))...)
		case <-time.After(10 * time.Second):
			t.Fatalf("%d of %d messages arrived", len(got), len(h.messages))
		}
	}
	compare(t, h.messages, got)
}

func TestForeignPlatformsAcknowledgeBehindAFrontThatStaples(t *testing.T) {
	h := newHospital(t)
	for _, p := range peers {
		for _, scheme := range []string{"", "rsa-"} {
			t.Run(p.name+" behind an "+scheme+"front", func(t *testing.T) {
				p.need(t)
				port, lines := p.serve(t)
				out, err := h.send(h.front(t, scheme+"platform", "127.0.0.1:"+port), "device", pki.RootsFile)
				if err != nil {
					t.Fatalf("send: %v\n%s", err, out)
				}
				h.arrived(t, lines)
			})
		}
	}
}

func TestB18_ForeignPlatformsThatDoNotStapleAreRefused(t *testing.T) {
	h := newHospital(t)
	for _, p := range peers {
		for _, scheme := range []string{"", "rsa-"} {
			t.Run(p.name+" "+scheme+"platform staples nothing", func(t *testing.T) {
				p.need(t)
				port, lines := p.serve(t, h.in(scheme+"platform.pem"), h.in(scheme+"platform.key"), h.in(pki.RootsFile))
				out, err := h.send(port, "device", pki.RootsFile)
				wantExit(t, err, 76, out, "rule B18: platform certificate, 1 of 2 sent")
				select {
				case line := <-lines:
					t.Errorf("the platform got a message: %.200s", line)
				default:
				}
			})
		}
		t.Run(p.name+" with the certificate of another name is refused", func(t *testing.T) {
			p.need(t)
			port, _ := p.serve(t, h.in("platform-wrong-name.pem"), h.in("platform-wrong-name.key"), h.in(pki.RootsFile))
			out, err := h.send(port, "device", pki.RootsFile)
			wantExit(t, err, 76, out, "B17")
		})
	}
}

// Node staples for the leaf.
func TestMedplumOnNodesTLS(t *testing.T) {
	h, p := newHospital(t), peers[1]
	p.need(t)
	serve := func(t *testing.T, scheme, trust string) (string, <-chan string) {
		name := scheme + "platform"
		return p.serve(t, h.in(name+".pem"), h.in(name+".key"), h.in(trust), h.staple(t, name))
	}
	for scheme, anchor := range map[string]string{"": "ecc-issuing.pem", "rsa-": "rsa-issuing.pem"} {
		t.Run(scheme+"platform takes messages where its CA is the anchor", func(t *testing.T) {
			port, lines := serve(t, scheme, pki.RootsFile)
			out, err := h.send(port, "device", anchor)
			if err != nil {
				t.Fatalf("send: %v\n%s", err, out)
			}
			h.arrived(t, lines)
		})
		t.Run(scheme+"platform lacks the response for its CA", func(t *testing.T) {
			port, _ := serve(t, scheme, pki.RootsFile)
			out, err := h.send(port, "device", pki.RootsFile)
			wantExit(t, err, 76, out, "rule B18: certificate 2 of 2 sent")
		})
	}
	t.Run("it refuses a device of an unknown CA", func(t *testing.T) {
		port, _ := serve(t, "", "ecc-issuing.pem")
		out, err := h.send(port, "rsa-device", "ecc-issuing.pem")
		wantExit(t, err, 76, out, "the platform ends each connection right after the TLS handshake") // Node sends no alert
	})
}

func wantExit(t *testing.T, err error, code int, out []byte, word string) {
	t.Helper()
	exit, ok := errors.AsType[*exec.ExitError](err)
	if !ok || exit.ExitCode() != code || !bytes.Contains(out, []byte(word)) {
		t.Errorf("want exit code %d and the word %s; got %v\n%s", code, word, err, out)
	}
}

// serve starts the peer as a platform and returns its port and its lines. With
// no files, which are those of its command line, it speaks MLLP without TLS.
func (p peer) serve(t *testing.T, files ...string) (string, <-chan string) {
	t.Helper()
	cmd := exec.Command(p.command[0], slices.Concat(p.command[1:], []string{"serve"}, files)...)
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := make(chan string, 1000)
	go func() {
		defer close(lines)
		for s := bufio.NewReader(stdout); ; {
			line, err := s.ReadString('\n')
			if err != nil {
				return
			}
			lines <- line
		}
	}()
	t.Cleanup(func() {
		cmd.Process.Kill()
		for range lines {
		}
		cmd.Wait()
		if t.Failed() {
			t.Logf("%s says: %.500s", p.name, stderr.String())
		}
	})
	select {
	case port, ok := <-lines:
		if !ok {
			t.Fatalf("%s did not start: %.500s", p.name, stderr.String())
		}
		return strings.TrimSpace(port), lines
	case <-time.After(20 * time.Second):
		t.Fatalf("%s did not start", p.name)
	}
	return "", nil
}

func digests(t *testing.T, r io.Reader) []digest {
	t.Helper()
	var all []digest
	for dec := json.NewDecoder(r); ; {
		var d digest
		if err := dec.Decode(&d); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, d)
	}
}

func compare(t *testing.T, messages [][]byte, got []digest) {
	t.Helper()
	if len(got) != len(messages) {
		t.Fatalf("%d messages were read, %d were written", len(got), len(messages))
	}
	for i, m := range messages {
		if want := ours(t, m); !reflect.DeepEqual(got[i], want) {
			t.Errorf("message %d is read as\n%v, we read it as\n%v", i, got[i], want)
		}
	}
}

// sources are messages by where their values come from.
func sources(t *testing.T) map[string][][]byte {
	t.Helper()
	all := map[string][][]byte{"a simulated monitor": simulated(t)}
	if shared := os.Getenv("GATEWAY_SHARED"); shared != "" {
		recorded := filepath.Join(shared, "reference/protocols/captures/philips/m8000-or-session/session.txt")
		out, err := exec.Command(gatewayd, "translate", "--driver", "intellivue", "--allow-simulated", "--waveforms", recorded).Output()
		if err != nil {
			t.Fatalf("translate: %v", err)
		}
		for m := range bytes.SplitSeq(bytes.TrimSpace(out), []byte("\r\n\n")) {
			all["a recorded M8003A"] = append(all["a recorded M8003A"], append(bytes.TrimSpace(m), '\r'))
		}
	} else {
		t.Log("GATEWAY_SHARED is not set: the recorded session is left out")
	}
	return all
}

var simulated = func() func(*testing.T) [][]byte {
	var once sync.Once
	var messages [][]byte
	return func(t *testing.T) [][]byte {
		once.Do(func() { messages = record(t) })
		return messages
	}
}()

// record runs the driver against the simulated monitor and makes messages of
// what it says, names with every character that HL7 escapes among them.
func record(t *testing.T) [][]byte {
	ids, err := pcd.NewControlIDs(bytes.NewReader([]byte("interop!")))
	if err != nil {
		t.Fatal(err)
	}
	snapshot, err := pcd.NewSnapshot(pcd.Options{
		Sender:             pcd.Sender{Application: "GW", EUI64: pki.DefaultDevice, Facility: "HÔPITAL Söhne"},
		AssigningAuthority: "HOSPITAL_A", Waves: true, IDs: ids,
	})
	if err != nil {
		t.Fatal(err)
	}
	monitor, err := sim.New(sim.Options{Seed: 1, Tick: 50 * time.Millisecond, AcceptDelay: time.Millisecond, NBPEvery: time.Second,
		BedLabel: "Bett|3^A~B\\C&D", Patient: &sim.Patient{State: 2, ID: "0815", Family: "O'Brien^&~|\\", Given: "Zoë"}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go monitor.ServePacket(ctx, conn)
	spec, err := port.ParseSpec("udp://" + conn.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	var messages [][]byte
	session, err := drivers.NewSession(drivers.SessionConfig{
		Name: "bed", Driver: intellivue.New(), Open: spec.Open, Log: slog.New(slog.DiscardHandler),
		Settings: drivers.Settings{Options: map[string]string{"waves": "on"}},
		Sink: func(r *observation.Report) {
			snapshot.Add(r)
			err := snapshot.Flush(r.Received, func(m pcd.Message) error {
				messages = append(messages, bytes.Clone(m.Bytes))
				return nil
			})
			if err != nil {
				t.Error(err)
			}
			if len(messages) >= 20 {
				cancel()
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := session.Run(ctx); err != nil && !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if len(messages) < 20 {
		t.Fatalf("only %d messages came of the simulated monitor: %+v", len(messages), session.Status())
	}
	return messages
}
