package daemon

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/bedside-gateway/gatewayd/keystore"
	"github.com/bedside-gateway/gatewayd/keystore/tpm"
)

func TestEveryConditionIsExplained(t *testing.T) {
	page, err := os.ReadFile("../../doc/conditions.md")
	if err != nil {
		t.Fatal(err)
	}
	raised := map[string]string{}
	for _, file := range []string{"report.go", "destination.go", "southbound.go", "tunnel.go", "intake.go", "identity.go", "health.go", "hold.go"} {
		source, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`c\.raise\(status\.(\w+), "([a-z-]+)"`).FindAllStringSubmatch(string(source), -1) {
			raised[m[2]] = strings.ToLower(m[1])
		}
	}
	for fault := range constants(t, "../../keystore/tpm/fault.go", `Fault = "([a-z-]+)"`) {
		raised[fault] = "degraded"
		if slices.Contains(severe, tpm.Fault(fault)) {
			raised[fault] = "down"
		}
	}
	for stage := range constants(t, "../../keystore/check.go", `Expiry = "([a-z0-9-]+)"`) {
		raised[stage] = "degraded"
		if stage == string(keystore.Expired) || stage == string(keystore.NotYet) {
			raised[stage] = "down"
		}
	}
	if len(raised) < 15 {
		t.Fatalf("only %d conditions found in the source", len(raised))
	}
	for name, verdict := range raised {
		if !strings.Contains(string(page), "| `"+name+"` | "+verdict+" |") {
			t.Errorf("doc/conditions.md has no row for %s (%s)", name, verdict)
		}
	}
	if rows := strings.Count(string(page), "\n| `"); rows != len(raised) {
		t.Errorf("doc/conditions.md has %d rows for %d conditions", rows, len(raised))
	}
}

// constants are the texts that a pattern finds in a source.
func constants(t *testing.T, file, pattern string) map[string]bool {
	source, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]bool{}
	for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(string(source), -1) {
		found[m[1]] = true
	}
	if len(found) < 4 {
		t.Fatalf("%s: only %d names found", file, len(found))
	}
	return found
}
