package main

import (
	"flag"
	"os"
	"testing"

	"github.com/bedside-gateway/gatewayd/drivers"
	"github.com/bedside-gateway/gatewayd/drivers/intellivue"
	"github.com/bedside-gateway/gatewayd/internal/config"
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
