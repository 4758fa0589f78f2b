package fetch

import (
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/bedside-gateway/gatewayd/internal/sim/responder"
	"github.com/bedside-gateway/gatewayd/revocation"
)

// filled is a cache directory with the responses for a device and both CRLs.
func filled(t *testing.T, w *ward) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "revocation")
	f := w.fetcher(t, func(o *Options) { o.Dir = dir })
	c := w.chain(t, "device")
	if v := f.Judge(t.Context(), c, nil); revocation.Refusal(v) != nil {
		t.Fatal(v)
	}
	if len(f.CRLs(t.Context(), c)) != 2 {
		t.Fatal("no CRLs")
	}
	f.Close()
	return dir
}

var dead = &http.Client{Transport: deadNetwork{}}

type deadNetwork struct{}

func (deadNetwork) RoundTrip(*http.Request) (*http.Response, error) {
	return nil, errors.New("network is unreachable")
}

func TestWhatWasFetchedOutlivesARestart(t *testing.T) {
	w := newWard(t, nil)
	dir := filled(t, w)
	files, err := os.ReadDir(dir)
	must(t, err)
	if len(files) != 4 {
		t.Errorf("%d files", len(files))
	}
	for _, e := range files {
		info, err := e.Info()
		must(t, err)
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s is %v", e.Name(), info.Mode())
		}
	}
	f := w.fetcher(t, func(o *Options) { o.Dir, o.Client = dir, dead })
	c := w.chain(t, "device")
	if v := f.Judge(t.Context(), c, nil); revocation.Refusal(v) != nil || v[0].Source != fetchedResponse {
		t.Errorf("%v", v)
	}
	if len(f.CRLs(t.Context(), c)) != 2 || f.Counts().Loaded != 4 || f.Counts().Damaged != 0 {
		t.Errorf("%+v", f.Counts())
	}
}

func TestWhatIsOnTheDiskIsJudgedAgain(t *testing.T) {
	w := newWard(t, nil)
	for name, test := range map[string]struct {
		harm    func(dir, file string)
		damaged bool
	}{
		"a flipped bit": {func(_, file string) {
			b, err := os.ReadFile(file)
			must(t, err)
			b[len(b)-1] ^= 1
			must(t, os.WriteFile(file, b, 0o600))
		}, true},
		"cut short": {func(_, file string) { must(t, os.Truncate(file, 100)) }, true},
		"empty":     {func(_, file string) { must(t, os.Truncate(file, 0)) }, true},
		"huge":      {func(_, file string) { must(t, os.Truncate(file, 1<<30)) }, true},
		"a good response for another certificate": {func(_, file string) {
			c := w.chain(t, "platform")
			must(t, os.WriteFile(file, responder.Staples(w.PKI, c, []responder.Answer{responder.Good})[0], 0o600))
		}, true},
		"a link out of the directory": {func(_, file string) {
			outside := filepath.Join(t.TempDir(), "outside")
			must(t, os.Rename(file, outside))
			must(t, os.Symlink(outside, file))
		}, true},
		"a directory": {func(_, file string) {
			must(t, os.Remove(file))
			must(t, os.Mkdir(file, 0o700))
		}, true},
		"gone": {func(_, file string) { must(t, os.Remove(file)) }, false},
	} {
		t.Run(name, func(t *testing.T) {
			for _, suffix := range []string{".ocsp", ".crl"} {
				dir := filled(t, w)
				files, err := filepath.Glob(filepath.Join(dir, "*"+suffix))
				must(t, err)
				for _, file := range files {
					test.harm(dir, file)
				}
				log := &journal{}
				f := w.fetcher(t, func(o *Options) { o.Dir, o.Client, o.Log = dir, dead, log.log() })
				c := w.chain(t, "device")
				if suffix == ".crl" {
					if n := len(f.CRLs(t.Context(), c)); n != 0 {
						t.Errorf("%d CRLs", n)
					}
				} else if _, err := f.OCSP(t.Context(), c[0], c[1]); err == nil {
					t.Error("it passes")
				}
				if got := f.Counts().Damaged > 0 && strings.Contains(log.String(), "is ignored"); got != test.damaged {
					t.Errorf("reported: %v; %s", got, log)
				}
			}
		})
	}
}

func TestAStaleFileIsNoDamage(t *testing.T) {
	w := newWard(t, nil)
	dir := filled(t, w)
	w.move(100 * 24 * time.Hour)
	f := w.fetcher(t, func(o *Options) { o.Dir, o.Client = dir, dead })
	c := w.chain(t, "device")
	if _, err := f.OCSP(t.Context(), c[0], c[1]); err == nil || len(f.CRLs(t.Context(), c)) != 0 || f.Counts().Damaged != 0 {
		t.Errorf("%v, %+v", err, f.Counts())
	}
}

func TestTheDirectoryIsBoundedAndTidiedUp(t *testing.T) {
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "x"+unfinished), nil, 0o600))
	const most = 20
	for i := range most + 10 {
		must(t, os.WriteFile(filepath.Join(dir, fmt.Sprintf("%05d", i)), nil, 0o600))
	}
	must(t, os.Chtimes(filepath.Join(dir, "00007"), epoch, epoch))
	s, err := openStore(dir, most)
	must(t, err)
	defer s.close()
	if s.files != most {
		t.Errorf("%d files", s.files)
	}
	for _, name := range []string{"00007", "x" + unfinished} {
		if _, err := os.Stat(filepath.Join(dir, name)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", name, err)
		}
	}
	must(t, s.write("more", []byte{1}))
	must(t, s.write("more", []byte{2}))
	for i := range 5 {
		must(t, s.write(fmt.Sprint("new", i), []byte{1}))
	}
	if files, err := os.ReadDir(dir); err != nil || len(files) > most+1 {
		t.Errorf("%d files, %v", len(files), err)
	}
	if b, err := s.read("more", 10); err != nil || b[0] != 2 {
		t.Errorf("%v, %v", b, err)
	}
}

func TestADirectoryThatCannotBeUsedIsReported(t *testing.T) {
	w := newWard(t, nil)
	file := filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(file, nil, 0o600))
	log := &journal{}
	f := w.fetcher(t, func(o *Options) { o.Dir, o.Log = filepath.Join(file, "cache"), log.log() })
	c := w.chain(t, "device")
	if _, err := f.OCSP(t.Context(), c[0], c[1]); err != nil || !strings.Contains(log.String(), "not kept on disk") {
		t.Errorf("%v; %s", err, log)
	}
}
