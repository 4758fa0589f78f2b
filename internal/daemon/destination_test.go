package daemon

import (
	"crypto/tls"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/bedside-gateway/gatewayd/internal/config"
	"github.com/bedside-gateway/gatewayd/internal/sim/pki"
	"github.com/bedside-gateway/gatewayd/internal/sim/platform"
	"github.com/bedside-gateway/gatewayd/internal/sim/responder"
	"github.com/bedside-gateway/gatewayd/northbound"
	"github.com/bedside-gateway/gatewayd/tlspolicy"
)

// staple_max_age is the one knob of the revocation rule, and it only tightens.
func TestB18_TheAgeOfStaplesIsLimitedAsConfigured(t *testing.T) {
	hospital, err := pki.New(pki.Options{})
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "pki")
	if err := hospital.Write(dir); err != nil {
		t.Fatal(err)
	}
	trust, err := os.ReadFile(filepath.Join(dir, pki.RootsFile))
	if err != nil {
		t.Fatal(err)
	}
	device, err := hospital.Identity("device")
	if err != nil {
		t.Fatal(err)
	}
	shown, err := hospital.Identity("platform")
	if err != nil {
		t.Fatal(err)
	}
	p, err := platform.New(platform.Options{Certificates: []tls.Certificate{shown}, Roots: hospital.Roots(), Hospital: hospital,
		Staple: []responder.Answer{responder.Auto, responder.Old}}) // thirty days, and good until tomorrow
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Listen("127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	for age, refusal := range map[time.Duration]string{0: "", 31 * day: "", day: "certificate 2 of 2 sent, "} {
		to, err := Destination(config.Destination{Name: "platform", Address: "platform.test:2575", Connect: p.Address(), StapleMaxAge: age},
			trust, tlspolicy.Client{Identity: device})
		if err != nil {
			t.Fatal(err)
		}
		conn, err := northbound.Dial(t.Context(), to)
		if err == nil {
			conn.Close()
		}
		if refusal == "" && err != nil || refusal != "" && (err == nil || !strings.Contains(err.Error(), refusal) || !strings.Contains(err.Error(), "older than the 24h0m0s")) {
			t.Errorf("staple_max_age %v: %v", age, err)
		}
	}
}

const day = 24 * time.Hour
