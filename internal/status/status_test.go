package status

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write the golden files anew")

var now = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func sample() Report {
	r := Report{
		Gateway: "GW_DEMO", Now: now, Started: now.Add(-75 * time.Hour), Ready: true,
		Build:       Build{"1.2.3", "abcdef0", "go1.26", "virt", "go1.26+ext.0123456789abcdef"},
		Certificate: now.Add(24 * time.Hour),
		Conditions: []Condition{
			{Name: "port-silent", Subject: "bed-1", Since: now.Add(-90 * time.Second), Verdict: Degraded,
				Text: "The device has sent nothing for 90 s.", Next: "Look whether the monitor is on and its cable is in."},
			{Name: "spool-failing", Verdict: Down, Text: "The disk takes nothing.", Next: "Make room on it."},
		},
		Ports: []Port{{Name: "bed-1", Driver: "intellivue", Device: "/dev/ttyS0", State: "silent", Since: now.Add(-90 * time.Second),
			LastReport: now.Add(-2 * time.Minute), Received: 12345, Frames: map[string]uint64{"good": 100, "checksum": 2, "noise": 3},
			Reports: 50, Observations: 2000, Simulated: 7, Unmapped: 1, Opened: 2, Panics: 1, Pending: 3, Messages: 40}},
		Destinations: []Destination{{Name: "platform", Address: "platform.test:2575", State: "connected", Since: now.Add(-time.Hour), Connected: true,
			LastAck: now.Add(-time.Second), Acks: map[string]uint64{"CA": 30, "CE": 1}, Handshakes: map[string]uint64{"ok": 1},
			TLS: "TLS 1.2 TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384", CBC: 3, Verdicts: map[string]uint64{"good": 2, "stale": 1},
			Staples:  []time.Time{now.Add(12 * time.Hour), now.Add(7 * time.Hour)},
			Messages: 9, Bytes: 9000, Oldest: now.Add(-30 * time.Second), Quarantined: 1, Delivered: 30,
			Durations: Durations{[]float64{0.01, 0.1}, []uint64{20, 9, 1}, 1.5}}},
		Southbound: &Southbound{Listen: ":2575", Address: "[::]:2575", Since: now.Add(-time.Hour), Authorised: []string{"0123456789ABCDEF", "pump 7"}, Connections: 1,
			Devices:  []Device{{Name: "pump 7", Remote: "10.0.0.8:40000", Since: now.Add(-10 * time.Minute), Messages: 12, LastMessage: now.Add(-5 * time.Second)}},
			Accepted: 3, Refused: map[string]uint64{"A9": 2, "TLS": 1}, Messages: 12, Bytes: 12000, Failed: 1, Rejected: 4, CBC: 1,
			Staples:      []Staple{{Identity: 0, Position: 0, Certificate: "platform.test", Says: "good", Until: now.Add(3 * time.Hour)}, {Identity: 0, Position: 1, Certificate: "Issuing CA", Problem: "no answer"}},
			Certificates: []time.Time{now.Add(48 * time.Hour)}},
		Tunnel: &Tunnel{
			Listeners: []TunnelListener{{Name: "icu", Listen: ":2576", Address: "[::]:2576", Since: now.Add(-time.Hour), Sessions: 1, Handshakes: 2,
				Refused: map[string]uint64{"B18": 2, "network": 3}, Unlogged: map[string]uint64{"network": 1}}, {Name: "or", Listen: "10.9.9.9:2576", Fault: "no such address"}},
			Platforms: []TunnelPlatform{{Name: "hospital", ServerName: "platform.test", Address: "10.1.0.1:2575", Sessions: 1, Gate: "good", Judged: now.Add(-time.Minute), LastGood: now.Add(-time.Minute), Until: now.Add(time.Hour)},
				{Name: "other", Gate: "refused", Closed: true, Judged: now.Add(-time.Hour), Fault: "revoked"}, {Name: "third", ServerName: "third.test", Gate: "unjudged"}},
			Sessions: []TunnelSession{{Tunnel: "icu", Device: "10.20.0.5:40000", Since: now.Add(-time.Hour), Platform: "hospital", Address: "10.1.0.1:2575", ServerName: "platform.test", TLS: "TLS 1.2", Enforced: true,
				ToPlatform: 5000, ToDevice: 2000, Last: now.Add(-3 * time.Second)}},
			Accepted: 12, Probes: 2, Opened: 5, Enforced: 3, GateOnly: 2,
			Refusals: []TunnelRefusal{{Time: now.Add(-time.Minute), Tunnel: "icu", Device: "10.20.0.9:40001", Platform: "hospital", Rule: "B18", Reason: "revoked"}},
			Ended:    map[string]uint64{"closed": 4}, Gate: map[string]uint64{"good": 5, "refused": 2}, ToPlatform: 50000, ToDevice: 20000},
		Spool: Spool{Messages: 9, Bytes: 9000, MaxBytes: 64 << 20, Oldest: now.Add(-30 * time.Second), Capacity: 7.5 * 3600,
			Dropped: map[string]uint64{"age": 4}, Refused: 2},
		Findings: map[string]uint64{"error": 0, "warning": 2}, Shapes: 3, Reloads: map[string]uint64{"ok": 1, "refused": 0},
	}
	r.Judge()
	return r
}

type source struct {
	Report_ Report
	dead    error
}

func (s *source) Report() Report { return s.Report_ }
func (s *source) Live() error    { return s.dead }

// store is a spool of two messages in memory.
type store struct{ did []string }

const message = "MSH|^~\\&|GW^0123456789ABCDEF^EUI-64||||20260102||ORU^R01^ORU_R01|CID1|P|2.6\rPID|||MARK1^^^H^PI||MARK2^MARK3^^^^^L\r" +
	"PV1||I|ICU^1^MARK4\rOBR|1||X|182777000^monitoring of patient^SCT\rOBX|1|NM|150456^MDC_PULS_OXIM_SAT_O2^MDC|1.7.4.150456|97|262688^MDC_DIM_PERCENT^MDC\r" +
	"OBX|2|ST|1^X^MDC|1.7.4.1|MARK5\rZZZ|MARK6\rMARK7\r"

func (s *store) List(queue string, f func(Entry) error) error {
	for id := range uint64(2) {
		e, _ := s.Show(id)
		if queue == "" || queue == e.Queue {
			if err := f(e); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *store) Show(id uint64) (Entry, error) {
	if id > 1 {
		return Entry{}, ErrNotFound
	}
	return Entry{ID: id, Queue: []string{"a", "b"}[id], ControlID: "CID1", Class: "periodic", State: "queued", Made: now, Size: len(message), Message: []byte(message)}, nil
}

func (s *store) Release(id uint64) error {
	if id == 1 {
		return ErrInFlight
	}
	s.did = append(s.did, "release")
	return nil
}

func (s *store) Drop(id uint64, reason string) error {
	s.did = append(s.did, "drop "+reason)
	return nil
}

func serve(t *testing.T, s Source, st Store) (*Client, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "run", "status.sock")
	server, err := Listen(path, s, st, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- server.Serve(ctx) }()
	c := NewClient(path)
	t.Cleanup(func() {
		c.http.CloseIdleConnections()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return c, path
}

func get(t *testing.T, c *Client, path string) (int, string) {
	t.Helper()
	r, err := c.http.Get("http://gatewayd" + path)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return r.StatusCode, string(b)
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs (write it anew with -update):\n%s", path, got)
	}
}

func TestMetricsPage(t *testing.T) {
	c, _ := serve(t, &source{Report_: sample()}, &store{})
	code, page := get(t, c, "/metrics")
	if code != http.StatusOK {
		t.Fatalf("%d: %s", code, page)
	}
	golden(t, "metrics.txt", page)
}

func TestTwoConditionsWithOneNameAndSubjectDoNotSpoilTheScrape(t *testing.T) {
	r := sample()
	r.Conditions = append(r.Conditions, Condition{Name: "staples-missing", Subject: "gateway.test", Text: "of the ECC certificate"}, Condition{Name: "staples-missing", Subject: "gateway.test", Text: "of the RSA certificate"})
	c, _ := serve(t, &source{Report_: r}, &store{})
	if code, page := get(t, c, "/metrics"); code != http.StatusOK || strings.Count(page, `gatewayd_condition{name="staples-missing",subject="gateway.test"} 1`) != 1 {
		t.Errorf("%d: %s", code, page)
	}
}

func TestMetricNamesFollowTheConvention(t *testing.T) {
	c, _ := serve(t, &source{Report_: sample()}, &store{})
	_, page := get(t, c, "/metrics")
	kind := map[string]string{}
	for line := range strings.Lines(page) {
		if f := strings.Fields(line); len(f) == 4 && f[1] == "TYPE" {
			kind[f[2]] = f[3]
		}
	}
	for name, k := range kind {
		if !regexp.MustCompile(`^gatewayd_[a-z][a-z_]*$`).MatchString(name) {
			t.Errorf("%s: not lower case with the prefix", name)
		}
		if counter := strings.HasSuffix(name, "_total"); counter != (k == "counter") {
			t.Errorf("%s is a %s", name, k)
		}
	}
	if len(kind) < 25 {
		t.Errorf("only %d metrics", len(kind))
	}
}

func TestTextForPeople(t *testing.T) {
	r := sample()
	var b bytes.Buffer
	if err := r.Write(&b); err != nil {
		t.Fatal(err)
	}
	golden(t, "status.txt", b.String())
}

func TestTheVerdictIsThatOfTheWorstCondition(t *testing.T) {
	r := sample()
	if r.Verdict != Down || r.Conditions[0].Name != "spool-failing" {
		t.Errorf("verdict %v, first %s", r.Verdict, r.Conditions[0].Name)
	}
	r.Conditions = r.Conditions[1:]
	if r.Judge(); r.Verdict != Degraded {
		t.Errorf("verdict %v without the worst", r.Verdict)
	}
	r.Conditions = nil
	if r.Judge(); r.Verdict != OK || r.Line() != "ok; 0 of 1 ports live, 1 of 1 platforms connected, 9 messages waiting" {
		t.Errorf("verdict %v without conditions: %s", r.Verdict, r.Line())
	}
}

func TestAnUnknownVerdictIsDown(t *testing.T) {
	var v Verdict
	if err := json.Unmarshal([]byte(`"splendid"`), &v); err != nil || v != Down {
		t.Errorf("%v %v", v, err)
	}
}

func TestTheReportComesBackAsItWasSent(t *testing.T) {
	want := sample()
	c, _ := serve(t, &source{Report_: want}, &store{})
	got, err := c.Report(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	a, _ := json.Marshal(got)
	b, _ := json.Marshal(want)
	if !bytes.Equal(a, b) {
		t.Errorf("got  %s\nwant %s", a, b)
	}
}

func TestProbes(t *testing.T) {
	s := &source{Report_: sample()}
	c, _ := serve(t, s, &store{})
	for _, path := range []string{"/livez", "/readyz"} {
		if code, text := get(t, c, path); code != 200 || text != "ok\n" {
			t.Errorf("%s: %d %s", path, code, text)
		}
	}
	s.dead = errors.New("the supervisor stands still")
	s.Report_.Ready = false
	for path, want := range map[string]string{"/livez": "stands still", "/readyz": "starting"} {
		if code, text := get(t, c, path); code != 503 || !strings.Contains(text, want) {
			t.Errorf("%s: %d %s", path, code, text)
		}
	}
	if code, _ := get(t, c, "/debug/pprof/"); code != 404 {
		t.Errorf("something is served that nobody named: %d", code)
	}
}

func TestTheSocketIsForUserAndGroup(t *testing.T) {
	_, path := serve(t, &source{}, &store{})
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o660 {
		t.Errorf("mode %v", info.Mode())
	}
}

func TestASocketLeftBehindIsReplacedAndOneInUseIsNot(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	quiet := slog.New(slog.DiscardHandler)
	if _, err := Listen(path, &source{}, &store{}, quiet); err == nil || !strings.Contains(err.Error(), "another gatewayd") {
		t.Errorf("a socket in use: %v", err)
	}
	l.Close()
	s, err := Listen(path, &source{}, &store{}, quiet)
	if err != nil {
		t.Fatalf("a dead socket: %v", err)
	}
	s.Close()
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(path, &source{}, &store{}, quiet); err == nil || !strings.Contains(err.Error(), "no socket") {
		t.Errorf("a file: %v", err)
	}
	if b, _ := os.ReadFile(path); string(b) != "precious" {
		t.Error("the file was overwritten")
	}
}

func TestSpoolRequests(t *testing.T) {
	st := &store{}
	c, _ := serve(t, &source{}, st)
	var queues string
	for _, queue := range []string{"", "b"} {
		if err := c.List(t.Context(), queue, func(e Entry) error {
			queues += e.Queue
			if e.Message != nil {
				t.Error("the list holds messages")
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	if queues != "abb" {
		t.Errorf("listed %s", queues)
	}
	if err := c.Release(t.Context(), 0); err != nil {
		t.Error(err)
	}
	if err := c.Release(t.Context(), 1); !errors.Is(err, ErrInFlight) {
		t.Errorf("in flight: %v", err)
	}
	if err := c.Drop(t.Context(), 0); err != nil {
		t.Error(err)
	}
	if _, err := c.Show(t.Context(), 7, false); !errors.Is(err, ErrNotFound) {
		t.Errorf("unknown: %v", err)
	}
	if got := strings.Join(st.did, ", "); got != "release, drop operator" {
		t.Errorf("the store was asked to %s", got)
	}
	if code, text := get(t, c, "/spool/x"); code != 400 || !strings.Contains(text, "gatewayd spool ls") {
		t.Errorf("no number: %d %s", code, text)
	}
	if code, _ := get(t, c, "/spool/0/drop"); code != 405 {
		t.Errorf("a drop by GET: %d", code)
	}
}

func TestAShownMessageNamesNoPatientUnlessItIsAskedFor(t *testing.T) {
	c, _ := serve(t, &source{}, &store{})
	e, err := c.Show(t.Context(), 0, false)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(e.Message, []byte("MARK")) {
		t.Errorf("not redacted:\n%q", e.Message)
	}
	for _, want := range []string{"PID|REDACTED\r", "|97|", "CID1", "OBX|2|ST|1^X^MDC|1.7.4.1|REDACTED\r"} {
		if !bytes.Contains(e.Message, []byte(want)) {
			t.Errorf("%q is missing:\n%q", want, e.Message)
		}
	}
	if e, err = c.Show(t.Context(), 0, true); err != nil || string(e.Message) != message {
		t.Errorf("%v: %q", err, e.Message)
	}
}

func TestNobodyAnswers(t *testing.T) {
	c := NewClient(filepath.Join(t.TempDir(), "none.sock"))
	_, err := c.Report(t.Context())
	if _, ok := errors.AsType[*NotRunningError](err); !ok || !strings.Contains(err.Error(), "systemctl status") {
		t.Errorf("%v", err)
	}
}

func TestALockedSocketIsAPermissionError(t *testing.T) {
	err := NewClient("/s.sock").unanswered(&fs.PathError{Op: "dial", Path: "/s.sock", Err: fs.ErrPermission})
	if !errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), "group") {
		t.Errorf("%v", err)
	}
}

func TestConnectionsAreBounded(t *testing.T) {
	c, path := serve(t, &source{Report_: sample()}, &store{})
	var open []net.Conn
	for range maxConnections {
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, conn)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := c.Report(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("one connection too many was served: %v", err)
	}
	for _, conn := range open {
		conn.Close()
	}
	if _, err := c.Report(t.Context()); err != nil {
		t.Errorf("places were not given back: %v", err)
	}
}

func FuzzRedact(f *testing.F) {
	f.Add([]byte(message))
	f.Add([]byte("MSH#^~\\&#\nPID#SECRET"))
	f.Add([]byte("OBX|1|ST|x|y|SECRET|"))
	f.Fuzz(func(t *testing.T, b []byte) {
		// A segment about a person keeps nothing but its name, wherever it stands.
		in := append(append([]byte("MSH|^~\\&|\r"), bytes.ReplaceAll(b, []byte("SECRET"), nil)...), "\rPID|SECRET\rSECRET\rOBX|1|ST|a|b|SECRET"...)
		if out := Redact(in); bytes.Contains(out, []byte("SECRET")) {
			t.Fatalf("%q became %q", in, out)
		}
	})
}
