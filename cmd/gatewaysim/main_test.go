package main

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/bedside-gateway/gatewayd/tlsoverlay/overlaytest"
)

func TestMain(m *testing.M) {
	overlaytest.Require()
	testscript.Main(m, map[string]func(){"gatewaysim": main})
}

// TestScripts plays the conversations with the command line in testdata/script.
func TestScripts(t *testing.T) {
	gatewayd := ""
	if !testing.Short() {
		gatewayd = filepath.Join(t.TempDir(), "gatewayd")
		if out, err := exec.Command("go", "build", "-o", gatewayd, "../gatewayd").CombinedOutput(); err != nil {
			t.Fatalf("gatewayd does not build: %v\n%s", err, out)
		}
	}
	testscript.Run(t, testscript.Params{
		Dir: filepath.Join("testdata", "script"),
		Setup: func(e *testscript.Env) error {
			e.Setenv("GATEWAYD", gatewayd)
			e.Setenv("GATEWAY_SHARED", os.Getenv("GATEWAY_SHARED"))
			return addresses(e, "A", "B", "C")
		},
		Condition: func(name string) (bool, error) {
			switch name {
			case "gatewayd":
				return gatewayd != "", nil
			case "captures":
				return os.Getenv("GATEWAY_SHARED") != "", nil
			}
			return false, nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"await": await, "signal": send},
	})
}

// addresses gives names to addresses that nobody listens on.
func addresses(e *testscript.Env, names ...string) error {
	for _, name := range names {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		defer l.Close() // not before all are found: they differ
		e.Setenv(name, l.Addr().String())
	}
	return nil
}
