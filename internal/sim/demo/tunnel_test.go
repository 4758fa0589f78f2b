package demo

import (
	"bytes"
	"regexp"
	"strings"
	"testing"
	"time"
)

func TestTheTunnelCarriesClosesAndOpens(t *testing.T) {
	var out bytes.Buffer
	if err := RunTunnel(t.Context(), Options{Gatewayd: gatewayd(t), Duration: MinDuration, TPM: TPMNone, Out: &out}); err != nil {
		t.Fatalf("%v\n%s", err, &out)
	}
	text := out.String()
	for _, want := range []string{"(enforced)", "(gate only)", "THE GATE IS CLOSED", "key compromise", "turned away by a TLS alert", "the gate is open again"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not told:\n%s", want, text)
		}
	}
	if !regexp.MustCompile(`\ndemo: [1-9][0-9]* messages acknowledged, 0 lost, 0 duplicated\n$`).MatchString(text) {
		t.Error(text)
	}
}

func TestATunnelDemoTakesItsTime(t *testing.T) {
	if err := RunTunnel(t.Context(), Options{Duration: time.Second}); err == nil {
		t.Error("it began")
	}
}
