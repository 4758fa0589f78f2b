// Package interop holds what the gateway writes against parsers and platforms
// that this project did not write: python3-hl7 on Python's ssl, and Medplum's
// packages on Node's tls. make interop installs them and runs these tests;
// without GATEWAY_INTEROP=1 a missing peer is a skip.
package interop

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
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
	"github.com/bedside-gateway/gatewayd/observation"
	"github.com/bedside-gateway/gatewayd/pcd"
)

var gatewayd string

func TestMain(m *testing.M) {
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

func TestForeignPlatformsAcknowledgeOverMutualTLS(t *testing.T) {
	dir := t.TempDir()
	hospital, err := pki.New(pki.Options{Schemes: []pki.Scheme{pki.ECC, pki.RSA}})
	if err != nil {
		t.Fatal(err)
	}
	if err := hospital.Write(dir); err != nil {
		t.Fatal(err)
	}
	in := func(name string) string { return filepath.Join(dir, name) }
	messages := sources(t)["a simulated monitor"]
	file := in("messages.hl7")
	if err := os.WriteFile(file, bytes.Join(messages, []byte("\n\n")), 0o600); err != nil {
		t.Fatal(err)
	}
	send := func(port, cert, key string) ([]byte, error) {
		return exec.Command(gatewayd, "send", "--platform", "platform.test:2575", "--connect", "127.0.0.1:"+port,
			"--cert", in(cert), "--key", in(key), "--trust", in(pki.RootsFile), file).CombinedOutput()
	}
	for _, p := range peers {
		for _, scheme := range []string{"", "rsa-"} {
			t.Run(p.name+" "+scheme+"platform", func(t *testing.T) {
				p.need(t)
				port, lines := p.serve(t, in(scheme+"platform.pem"), in(scheme+"platform.key"), in(pki.RootsFile))
				out, err := send(port, "device.pem", "device.key")
				if err != nil {
					t.Fatalf("send: %v\n%s", err, out)
				}
				got := make([]digest, 0, len(messages))
				for range messages {
					select {
					case line := <-lines:
						got = append(got, digests(t, strings.NewReader(line))...)
					case <-time.After(10 * time.Second):
						t.Fatalf("%d of %d messages arrived", len(got), len(messages))
					}
				}
				compare(t, messages, got)
			})
		}
		t.Run(p.name+" with the certificate of another name is refused", func(t *testing.T) {
			p.need(t)
			port, _ := p.serve(t, in("platform-wrong-name.pem"), in("platform-wrong-name.key"), in(pki.RootsFile))
			out, err := send(port, "device.pem", "device.key")
			wantExit(t, err, 76, out, "B17")
		})
		t.Run(p.name+" refuses a device of an unknown CA", func(t *testing.T) {
			p.need(t)
			port, _ := p.serve(t, in("platform.pem"), in("platform.key"), in("ecc-issuing.pem"))
			out, err := send(port, "rsa-device.pem", "rsa-device.key")
			wantExit(t, err, 76, out, "refused")
		})
	}
}

func wantExit(t *testing.T, err error, code int, out []byte, word string) {
	t.Helper()
	exit, ok := errors.AsType[*exec.ExitError](err)
	if !ok || exit.ExitCode() != code || !bytes.Contains(out, []byte(word)) {
		t.Errorf("want exit code %d and the word %s; got %v\n%s", code, word, err, out)
	}
}

// serve starts the peer as a platform and returns its port and its lines.
func (p peer) serve(t *testing.T, cert, key, trust string) (string, <-chan string) {
	t.Helper()
	cmd := exec.Command(p.command[0], append(p.command[1:], "serve", cert, key, trust)...)
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
