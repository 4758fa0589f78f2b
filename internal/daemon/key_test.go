package daemon

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/bedside-gateway/gatewayd/internal/enroll"
	"github.com/bedside-gateway/gatewayd/internal/status"
	"github.com/bedside-gateway/gatewayd/keystore"
	"github.com/bedside-gateway/gatewayd/keystore/tpm"
)

// What is no sealed key is lost, so that reset leads back from it; a TPM that is
// away, or a disk that gives nothing, may be mended.
func TestWhatIsNoKeyOfASpoolIsLostAndWhatCannotBeReadIsNot(t *testing.T) {
	for name, test := range map[string]struct {
		make func(path string) error
		lost bool
		says string
	}{
		"a folder":    {func(path string) error { return os.Mkdir(path, 0o700) }, true, "no regular file"},
		"a long file": {func(path string) error { return os.WriteFile(path, make([]byte, keystore.MaxFile+1), 0o600) }, true, "more than"},
		"other text":  {func(path string) error { return os.WriteFile(path, []byte("a letter"), 0o600) }, true, "key-damaged"},
		"nothing":     {func(string) error { return nil }, false, ""},
		"a loop":      {func(path string) error { return os.Symlink(filepath.Base(path), path) }, false, "too many levels"},
	} {
		t.Run(name, func(t *testing.T) {
			k := SpoolKey{Dir: t.TempDir(), TPM: tpm.Open("unix:/nowhere/tpm.sock", tpm.Options{})}
			if err := test.make(filepath.Join(k.Dir, SealedFile)); err != nil {
				t.Fatal(err)
			}
			lost, err := k.Lost(t.Context())
			if lost != test.lost || (err != nil) != (!test.lost && test.says != "") {
				t.Errorf("lost: %v %v", lost, err)
			}
			_, err = k.Read(t.Context())
			if test.says != "" && !strings.Contains(err.Error(), test.says) || test.lost && !strings.Contains(err.Error(), "--abandon-spool") && tpm.FaultOf(err) == "" {
				t.Errorf("it says %v", err)
			}
			if !test.lost {
				return
			}
			if _, err := k.Abandon(); err != nil {
				t.Fatal(err)
			}
			if lost, err := k.Lost(t.Context()); lost || err != nil {
				t.Errorf("after it was given up: %v %v", lost, err)
			}
		})
	}
}

// A spool whose key's file was removed is lost, and reset leads back from it; a key
// in the clear beside it is one that will be sealed.
func TestASpoolWithoutItsKeyIsLostAndResetLeadsBackFromIt(t *testing.T) {
	k := SpoolKey{Dir: t.TempDir(), TPM: tpm.Open("unix:/nowhere/tpm.sock", tpm.Options{})}
	put := func(name string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(k.Dir, name), make([]byte, 32), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put(SpoolFile)
	put(SpoolFile + spoolJournal)
	if _, err := k.open(t.Context(), nil); err == nil || !strings.Contains(err.Error(), SealedFile) || !strings.Contains(err.Error(), tpm.AnewWithout) {
		t.Errorf("opened: %v", err)
	}
	if lost, err := k.Lost(t.Context()); !lost || err != nil {
		t.Errorf("lost: %v %v", lost, err)
	}
	put(KeyFile)
	if lost, err := k.Lost(t.Context()); lost || err != nil {
		t.Errorf("with a key in the clear: %v %v", lost, err)
	}
	if err := os.Remove(filepath.Join(k.Dir, KeyFile)); err != nil {
		t.Fatal(err)
	}
	if moved, err := k.Abandon(); err != nil || filepath.Base(moved) != SpoolFile+unreadable {
		t.Errorf("moved to %q: %v", moved, err)
	}
	if lost, err := k.Lost(t.Context()); lost || err != nil {
		t.Errorf("after it was given up: %v %v", lost, err)
	}
}

// Whoever stands before a gateway with a damaged file sees on it what is wrong,
// and once the file is back, it goes on by itself with all that it kept.
func TestAGatewayWaitsForAFileThatIsDamagedAndLosesNothing(t *testing.T) {
	for name, test := range map[string]struct {
		file      string
		damage    func(path string) error
		condition string
	}{
		"the note of the TPM": {filepath.Join(enroll.Dir, keystore.FingerprintFile), func(path string) error { return os.WriteFile(path, []byte("{"), 0o600) }, "identity-unreadable"},
		"a folder as the key": {SealedFile, func(path string) error { return os.Mkdir(path, 0o700) }, "spool-sealed"},
		"the key is gone":     {SealedFile, func(string) error { return nil }, "spool-sealed"},
	} {
		t.Run(name, func(t *testing.T) {
			h := newSealedHouse(t)
			h.start()
			h.enroll()
			h.platform.Kill()
			h.bedside.say(t, "/dev/bed1", "HR 65")
			h.waiting(1)
			h.house.end()
			path := filepath.Join(h.dir, "state", test.file)
			if err := os.Rename(path, path+".away"); err != nil {
				t.Fatal(err)
			}
			if err := test.damage(path); err != nil {
				t.Fatal(err)
			}
			h.restart()
			started := h.begin()
			if r := h.answers(test.condition); r.Verdict != status.Down || r.Ready {
				t.Errorf("%+v", r)
			}
			h.answers("spool-sealed")
			if err := os.RemoveAll(path); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(path+".away", path); err != nil {
				t.Fatal(err)
			}
			if err := <-started; err != nil {
				t.Fatal(err)
			}
			h.has(65)
		})
	}
}
