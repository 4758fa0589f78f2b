package demo

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/bedside-gateway/gatewayd/tlsoverlay/overlaytest"
)

func TestMain(m *testing.M) {
	overlaytest.Require()
	code := m.Run()
	if binary.dir != "" {
		os.RemoveAll(binary.dir)
	}
	if err := goleak.Find(); err != nil && code == 0 {
		println(err.Error())
		code = 1
	}
	os.Exit(code)
}

// binary is gatewayd, built once for all tests.
var binary struct {
	once      sync.Once
	dir, file string
	err       error
}

func gatewayd(t *testing.T) string {
	t.Helper()
	if testing.Short() {
		t.Skip("it builds gatewayd and runs for some seconds")
	}
	binary.once.Do(func() {
		if binary.dir, binary.err = os.MkdirTemp("", "gatewayd-test-"); binary.err != nil {
			return
		}
		binary.file = filepath.Join(binary.dir, "gatewayd")
		out, err := exec.Command("go", "build", "-o", binary.file, "../../../cmd/gatewayd").CombinedOutput()
		if err != nil {
			binary.err = errors.New(string(out))
		}
	})
	if binary.err != nil {
		t.Fatalf("gatewayd does not build: %v", binary.err)
	}
	return binary.file
}

// output is a buffer to write to from several goroutines.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

func lastLine(s string) string {
	lines := strings.Split(strings.TrimRight(s, "\n"), "\n")
	return lines[len(lines)-1]
}

var result = regexp.MustCompile(`^demo: [1-9][0-9]* messages acknowledged, 0 lost, 0 duplicated$`)

func TestADemoLosesNothing(t *testing.T) {
	t.Parallel()
	var out output
	err := Run(t.Context(), Options{Gatewayd: gatewayd(t), Duration: MinDuration, PowerCut: true, Out: &out})
	if err != nil || !result.MatchString(lastLine(out.String())) {
		t.Fatalf("%v\n%s", err, out.String())
	}
	for _, step := range []string{"CABLE PULLED at bed-1", "PLATFORM KILLED", "knows it by its control ID", "POWER CUT", "bed-2:     "} {
		if !strings.Contains(out.String(), step) {
			t.Errorf("%q is missing:\n%s", step, out.String())
		}
	}
}

func TestARecordingInDemonstrationModeIsRefusedUnlessThePortAllowsIt(t *testing.T) {
	shared := os.Getenv("GATEWAY_SHARED")
	if shared == "" {
		t.Skip("GATEWAY_SHARED does not name the folder with the recorded sessions")
	}
	t.Parallel()
	var out output
	err := Run(t.Context(), Options{Gatewayd: gatewayd(t), Duration: MinDuration, Out: &out,
		Capture: filepath.Join(shared, "reference/protocols/captures/philips/m8000-or-session/intellivue_enumeration.pcapng")})
	if err != nil || !result.MatchString(lastLine(out.String())) {
		t.Fatalf("%v\n%s", err, out.String())
	}
	refused := regexp.MustCompile(`bed-2: +[1-9][0-9]* values sent, [1-9][0-9]* refused as simulated, 0 arrived`)
	if !refused.MatchString(out.String()) || !strings.Contains(out.String(), "at the platform: bed-1 MDC_PULS_OXIM_SAT_O2 95.0 % [DEMO]") {
		t.Errorf("output:\n%s", out.String())
	}
}

func TestADemoThatIsInterruptedLeavesNothing(t *testing.T) {
	t.Parallel()
	file, dir := gatewayd(t), t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var out output
	ended := make(chan error, 1)
	go func() {
		ended <- Run(ctx, Options{Gatewayd: file, Duration: time.Minute, Dir: filepath.Join(dir, "demo"), Out: &out})
	}()
	for deadline := time.Now().Add(20 * time.Second); !strings.Contains(out.String(), "gatewayd runs as process"); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("it does not start:\n%s", out.String())
		}
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("it ended with %v", err)
	}
	for _, name := range []string{"bed-1", socketFile} {
		if _, err := os.Lstat(filepath.Join(dir, "demo", name)); err == nil {
			t.Errorf("%s is still there", name)
		}
	}
	if err := Run(t.Context(), Options{Gatewayd: "x", Duration: time.Minute, Dir: filepath.Join(dir, "demo"), Out: &out}); err == nil || !strings.Contains(err.Error(), "holds a demo already") {
		t.Errorf("a second demo in the same folder: %v", err)
	}
}

func TestAGatewayThatDoesNotRunIsReportedWithItsOwnWords(t *testing.T) {
	script := filepath.Join(t.TempDir(), "gatewayd")
	if err := os.WriteFile(script, []byte("#!/bin/sh\necho the configuration is wrong >&2\nexit 78\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, row := range map[string]struct{ file, want string }{
		"it ends at once":    {script, "the configuration is wrong"},
		"there is no binary": {script + "x", "build it, or name it with --gatewayd"},
	} {
		t.Run(name, func(t *testing.T) {
			var out output
			err := Run(t.Context(), Options{Gatewayd: row.file, Duration: MinDuration, Out: &out})
			if err == nil || !strings.Contains(err.Error(), row.want) {
				t.Errorf("got %v", err)
			}
		})
	}
	if err := Run(t.Context(), Options{Gatewayd: script, Duration: time.Second}); err == nil || !strings.Contains(err.Error(), "at least") {
		t.Errorf("a demo of a second: %v", err)
	}
	if err := Run(t.Context(), Options{Gatewayd: script, Duration: MinDuration, Capture: script, Out: new(output)}); err == nil || !strings.Contains(err.Error(), "create event") {
		t.Errorf("a capture that is none: %v", err)
	}
}
