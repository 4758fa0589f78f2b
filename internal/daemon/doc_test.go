package daemon

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

func TestEveryConditionIsExplained(t *testing.T) {
	page, err := os.ReadFile("../../doc/conditions.md")
	if err != nil {
		t.Fatal(err)
	}
	raised := map[string]string{}
	for _, file := range []string{"report.go", "destination.go", "southbound.go", "intake.go"} {
		source, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`c\.raise\(status\.(\w+), "([a-z-]+)"`).FindAllStringSubmatch(string(source), -1) {
			raised[m[2]] = strings.ToLower(m[1])
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
