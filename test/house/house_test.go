// Package house holds the tests of the structure itself: who may import whom,
// and which modules are in the firmware. A change of either is a decision, made
// visible here.
package house

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the golden files anew")

const module = "github.com/bedside-gateway/gatewayd"

// allowed is what each folder may import of ours. What is not listed may import nothing.
var allowed = map[string][]string{
	"mdc":                        {},
	"mdc/gen":                    {},
	"observation":                {"mdc"},
	"hl7":                        {},
	"pcd":                        {"hl7", "mdc", "observation"},
	"mllp":                       {},
	"spool":                      {},
	"tlspolicy":                  {"revocation", "tlsoverlay"},
	"keystore":                   {"keystore/tpm", "observation"},
	"keystore/tpm":               {"keystore/attest"},
	"keystore/attest":            {},
	"keystore/attest/attesttest": {"internal/sim/swtpm", "keystore/attest"},
	"keystore/est":               {"tlspolicy"},
	"revocation":                 {},
	"revocation/fetch":           {"revocation"},
	"southbound":                 {"hl7", "mllp", "pcd", "revocation", "revocation/fetch", "spool", "tlsoverlay", "tlspolicy"},
	"tunnel/inspect":             {},
	"tlsoverlay":                 {},
	"tlsoverlay/gen":             {},
	"tlsoverlay/overlaytest":     {"tlsoverlay"},
	"northbound":                 {"mllp", "pcd", "spool", "tlspolicy"},
	"drivers":                    {"drivers/port", "observation"},
	"drivers/port":               {},
	"drivers/drivertest":         {"drivers", "drivers/port", "mdc", "observation"},
	"drivers/intellivue":         {"drivers", "drivers/port", "mdc", "observation"},
	"drivers/intellivue/gen":     {"mdc"},
	"drivers/intellivue/sim":     {"drivers/port"},
	"keystore/keyfile":           {"keystore"},
	"tunnel":                     {"revocation", "tlsoverlay", "tlspolicy", "tunnel/inspect", "tunnel/relay"},
	"tunnel/relay":               {},
}

// wiring may import every folder, and no folder above may import it.
var wiring = []string{"cmd/", "internal/", "test/"}

type listed struct {
	ImportPath string
	Imports    []string
}

func TestImportsPointOneWay(t *testing.T) {
	for _, p := range list(t) {
		from := strings.TrimPrefix(p.ImportPath, module+"/")
		if slices.ContainsFunc(wiring, func(w string) bool { return strings.HasPrefix(from, w) }) {
			continue
		}
		may, known := allowed[from]
		if !known {
			t.Errorf("%s is a new folder: say in test/house what it may import, and in doc/architecture.md what it is", from)
			continue
		}
		for _, to := range p.Imports {
			to, ours := strings.CutPrefix(to, module+"/")
			if ours && !slices.Contains(may, to) {
				t.Errorf("%s imports %s; it may import only %v", from, to, may)
			}
		}
	}
}

// release is how the firmware is built: without the tag that admits file keys.
var release = []string{"GOOS=linux", "GOARCH=arm64", "CGO_ENABLED=0", "GOFLAGS="}

// A11, B19: what a release cannot do nobody can switch on.
func TestAReleaseHasNoCodeForKeysInFiles(t *testing.T) {
	packages := func(flags ...string) string {
		cmd := exec.Command("go", append(append([]string{"list", "-deps"}, flags...), "./cmd/gatewayd")...)
		cmd.Dir = "../.."
		cmd.Env = append(os.Environ(), release...)
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("go list: %v", err)
		}
		return string(out)
	}
	const keyfile = module + "/keystore/keyfile"
	if slices.Contains(strings.Fields(packages()), keyfile) {
		t.Errorf("the release has %s", keyfile)
	}
	if !slices.Contains(strings.Fields(packages("-tags=development")), keyfile) {
		t.Errorf("a development build lacks %s: this test looks for the wrong name", keyfile)
	}
}

func TestModulesOfTheFirmware(t *testing.T) {
	cmd := exec.Command("go", "list", "-deps", "-f", "{{with .Module}}{{.Path}}{{end}}", "./cmd/gatewayd")
	cmd.Dir = "../.."
	cmd.Env = append(os.Environ(), release...)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	lines := strings.Fields(string(out))
	slices.Sort(lines)
	got := strings.Join(slices.Compact(lines), "\n") + "\n"
	golden := filepath.Join("testdata", "modules.txt")
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("the firmware's modules changed: give the reason in doc/dependencies.md, then run this test with -update\ngot:\n%swant:\n%s", got, want)
	}
	reasons, err := os.ReadFile("../../doc/dependencies.md")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(got) {
		if m := strings.TrimSpace(line); m != module && !bytes.Contains(reasons, []byte("`"+m+"`")) {
			t.Errorf("doc/dependencies.md gives no reason for %s", m)
		}
	}
}

func list(t *testing.T) []listed {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports", "./...")
	cmd.Dir = "../.."
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var all []listed
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p listed
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

// A row of doc/conformance.md that names a test which is not there proves nothing.
func TestConformanceNamesTestsThatExist(t *testing.T) {
	page, err := os.ReadFile("../../doc/conformance.md")
	if err != nil {
		t.Fatal(err)
	}
	exists := map[string]bool{}
	err = filepath.WalkDir("../..", func(path string, d os.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		source, err := os.ReadFile(path)
		for _, m := range testFunc.FindAllSubmatch(source, -1) {
			exists[string(m[1])] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range testName.FindAllSubmatch(page, -1) {
		if !exists[string(m[1])] {
			t.Errorf("doc/conformance.md names %s, and no such test exists", m[1])
		}
	}
	for _, id := range strings.Fields("G1 G2 A1 A2 A3 A4 A5 A6 A7 A8 A9 A10 A11 B12 B13 B14 B15 B16 B17 B18 B19 C1 C2 N1 N2") {
		if !regexp.MustCompile(`(?m)^\| [^|]*\b` + id + `\b[^|]* \|`).Match(page) {
			t.Errorf("doc/conformance.md has no row %s", id)
		}
	}
}

var (
	testFunc = regexp.MustCompile(`(?m)^func (Test\w+)\(`)
	testName = regexp.MustCompile("`(Test\\w+)`")
)
