package main

import (
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/bedside-gateway/gatewayd/drivers"
	"github.com/bedside-gateway/gatewayd/drivers/intellivue"
	"github.com/bedside-gateway/gatewayd/internal/config"
	"github.com/bedside-gateway/gatewayd/internal/sim/pki"
)

var update = flag.Bool("update", false, "write the golden files anew")

func TestTheConfigurationIsDocumentedAsItIsRead(t *testing.T) {
	const page = "../../doc/configuration.md"
	known, err := drivers.NewRegistry(intellivue.New())
	if err != nil {
		t.Fatal(err)
	}
	got := config.Markdown(known)
	if *update {
		if err := os.WriteFile(page, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s is not what config.Markdown gives; run this test with -update", page)
	}
}

// An example without a [gateway] goes with the one of README.md.
func TestTheExamplesOfTheDocumentationAreInOrder(t *testing.T) {
	hospital, err := pki.New(pki.Options{})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := hospital.Write(dir); err != nil {
		t.Fatal(err)
	}
	known, err := drivers.NewRegistry(intellivue.New())
	if err != nil {
		t.Fatal(err)
	}
	read := func(name string) ([]byte, error) {
		return os.ReadFile(filepath.Join(dir, strings.Replace(filepath.Base(name), "device-roots", "roots", 1)))
	}
	examples := regexp.MustCompile("(?s)```toml\n(.*?)```")
	pages, err := filepath.Glob("../../doc/*.md")
	if err != nil {
		t.Fatal(err)
	}
	whole, checked := "", 0
	for _, page := range append([]string{"../../README.md"}, pages...) {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range examples.FindAllSubmatch(text, -1) {
			example := string(m[1])
			if strings.Contains(example, "[gateway]") {
				whole = example
			} else {
				example = whole + example
			}
			if _, err := config.Parse(page, []byte(example), config.Options{Drivers: known, ReadFile: read}); err != nil {
				t.Errorf("%v", err)
			}
			checked++
		}
	}
	if checked < 3 {
		t.Errorf("only %d examples were found", checked)
	}
}
