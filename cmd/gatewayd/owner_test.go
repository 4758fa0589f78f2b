package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/bedside-gateway/gatewayd/internal/sim/swtpm"
)

// Root enrols a gateway that runs as another user: it can read all that was made,
// and a password that only root may read counts all the same.
func TestWhatRootMakesBelongsToTheUserOfGatewayd(t *testing.T) {
	nobody, err := user.Lookup("nobody")
	if err != nil || os.Geteuid() != 0 {
		t.Skip("this needs root, and a user nobody")
	}
	uid, err := strconv.Atoi(nobody.Uid)
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "tpm") // a folder of t has parents that nobody may enter
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	emulator, err := swtpm.Start(t.Context(), filepath.Join(dir, "tpm"))
	if errors.Is(err, swtpm.ErrMissing) && os.Getenv("NEED_SWTPM") == "" {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(emulator.Stop)
	state, config, password := filepath.Join(dir, "state"), filepath.Join(dir, "g.toml"), filepath.Join(dir, "password.txt")
	text := fmt.Sprintf("[gateway]\nname = \"GW\"\neui64 = \"0123456789ABCDEF\"\nstate_dir = %q\nstatus_socket = %q\n[identity]\ntpm = %q\n", state, filepath.Join(dir, "s.sock"), emulator.Address())
	err = errors.Join(os.Chmod(dir, 0o755), os.Chmod(filepath.Join(dir, "tpm"), 0o755), os.Chmod(strings.TrimPrefix(emulator.Address(), "unix:"), 0o777),
		os.Mkdir(state, 0o700), os.Chown(state, uid, -1), os.WriteFile(config, []byte(text), 0o644), os.WriteFile(password, []byte("bed side"), 0o600))
	if err != nil {
		t.Fatal(err)
	}
	gatewayd := func(code int, args ...string) string {
		t.Helper()
		out, err := exec.CommandContext(t.Context(), "gatewayd", append([]string{"enroll", "-c", config}, args...)...).CombinedOutput()
		if e, ok := errors.AsType[*exec.ExitError](err); ok && e.ExitCode() != code || !ok && (err != nil || code != exitOK) {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
		return string(out)
	}
	for _, old := range []string{"identity", "identity.reset"} { // that root made when it still could
		if err := errors.Join(os.Mkdir(filepath.Join(state, old), 0o700), os.Mkdir(filepath.Join(state, old, "device"), 0o700)); err != nil {
			t.Fatal(err)
		}
	}
	gatewayd(exitOK, "reset", "--yes")
	gatewayd(exitOK, "init")
	roots := filepath.Join(dir, "roots.pem")
	if err := os.WriteFile(roots, []byte("none"), 0o644); err != nil {
		t.Fatal(err)
	}
	if out := gatewayd(exitConfig, "renew", "--url", "https://127.0.0.1:1", "--trust", roots, "--user", "ward", "--password-file", password); !strings.Contains(out, roots) {
		t.Errorf("the password was not read, or more than that was wrong: %s", out)
	}
	made := 0
	err = filepath.WalkDir(filepath.Join(state, "identity"), func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err == nil && int(info.Sys().(*syscall.Stat_t).Uid) != uid {
			t.Errorf("%s belongs to %d", path, info.Sys().(*syscall.Stat_t).Uid)
		}
		made++
		return err
	})
	if err != nil || made < 5 {
		t.Errorf("%d files, %v", made, err)
	}
}
