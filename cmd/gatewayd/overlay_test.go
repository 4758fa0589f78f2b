package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Whoever builds without the overlay gets a program that says so and does nothing.
func TestABinaryWithoutTheOverlayRefusesToStart(t *testing.T) {
	if testing.Short() {
		t.Skip("it builds both commands anew")
	}
	dir := t.TempDir()
	build := exec.Command("go", "build", "-o", dir+"/", "../gatewayd", "../gatewaysim")
	build.Env = append(os.Environ(), "GOFLAGS=")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, name := range []string{"gatewayd", "gatewaysim"} {
		for _, args := range [][]string{{"version"}, {"run"}, {"--help"}, {}} {
			out, err := exec.Command(filepath.Join(dir, name), args...).CombinedOutput()
			exit, ok := errors.AsType[*exec.ExitError](err)
			if !ok || exit.ExitCode() != exitRuntime || !strings.HasPrefix(string(out), name+": this binary was built without the crypto/tls overlay") || !strings.Contains(string(out), "make build") {
				t.Errorf("%s %v: %v\n%s", name, args, err, out)
			}
		}
	}
}
