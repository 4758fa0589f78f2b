package tlspolicy

import (
	"crypto/fips140"
	"crypto/tls"
	"errors"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/bedside-gateway/gatewayd/tlsoverlay"
	"github.com/bedside-gateway/gatewayd/tlsoverlay/overlaytest"
)

// The list is written out here a second time, from the specification (6.1, 3).
var specified = []string{
	"TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
	"TLS_DHE_RSA_WITH_AES_256_GCM_SHA384",
	"TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256",
	"TLS_DHE_RSA_WITH_AES_128_CBC_SHA256",
	"TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA",
	"TLS_DHE_RSA_WITH_AES_256_CBC_SHA256",
}

const optional = "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384"

func names(ids []uint16) (all []string) {
	for _, id := range ids {
		all = append(all, tls.CipherSuiteName(id))
	}
	return all
}

func TestA3_B14_SuitesAreThoseOfTheSpecificationInItsOrder(t *testing.T) {
	overlaytest.Need(t) // the names of the DHE suites are from there
	got := names(CMIIST().Suites)
	if before, first := slices.Index(got, optional), slices.Index(got, specified[2]); before < 0 || before > first {
		t.Errorf("%s stands at %d, the first CBC suite at %d", optional, before, first)
	}
	got = slices.DeleteFunc(got, func(s string) bool { return s == optional })
	if !slices.Equal(got, specified) {
		t.Errorf("suites\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(specified, "\n"))
	}
	for _, id := range CMIIST().Suites {
		if IsCBC(id) != strings.Contains(tls.CipherSuiteName(id), "CBC") {
			t.Errorf("%s", tls.CipherSuiteName(id))
		}
	}
}

// complete skips a test of suites that the FIPS 140-3 mode removes.
func complete(t *testing.T) {
	t.Helper()
	if fips140.Enabled() {
		t.Skip("the FIPS 140-3 mode removes suites: TestFIPSModeSaysWhatItRemoved says which")
	}
}

func TestB14_TheClientOffersThemAllAndNoOthers(t *testing.T) {
	complete(t)
	h := newHospital(t)
	config := h.client(h.chain())
	config.MaxVersion = tls.VersionTLS12
	offered, err := hello(config)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(offered, CMIIST().Suites) {
		t.Errorf("offered %v", names(offered))
	}
}

func TestThePolicyCannotBeChangedFromOutside(t *testing.T) {
	p := CMIIST()
	p.Suites[0], p.Curves[0] = 0, 0
	if CMIIST().Suites[0] == 0 || CMIIST().Curves[0] == 0 {
		t.Error("the policy can be changed from outside")
	}
}

// The mode is that of a process, so the test runs itself again in it.
func TestFIPSModeSaysWhatItRemoved(t *testing.T) {
	overlaytest.Need(t)
	if os.Getenv("TELL_FIPS") == "1" {
		removed, err := RemovedByFIPS()
		if err != nil {
			t.Fatal(err)
		}
		os.Stdout.WriteString("removed " + strings.Join(removed, " ") + "\n")
		return
	}
	for mode, want := range map[string]string{
		"off": "removed \n",
		"on": "removed TLS_DHE_RSA_WITH_AES_256_GCM_SHA384 TLS_DHE_RSA_WITH_AES_128_CBC_SHA256 " +
			"TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA TLS_DHE_RSA_WITH_AES_256_CBC_SHA256\n",
	} {
		cmd := exec.Command(os.Args[0], "-test.run=^TestFIPSModeSaysWhatItRemoved$")
		cmd.Env = append(os.Environ(), "TELL_FIPS=1", "GODEBUG=fips140="+mode)
		out, err := cmd.Output()
		if err != nil || !strings.HasPrefix(string(out), want) {
			t.Errorf("fips140=%s: %v, %q, want %q", mode, err, out, want)
		}
	}
}

func TestWithoutTheOverlayThereIsNoConfiguration(t *testing.T) {
	if tlsoverlay.Check() == nil {
		t.Skip("this build has the overlay; plain go test shows it")
	}
	h := &hospital{t: t, name: host, at: now}
	root := h.sign(authority("Root"), authority("Root"), keys()[0], keys()[0])
	c, err := Client{ServerName: host, Roots: pool(root), Identity: device(t)}.Config()
	if c != nil || !errors.Is(err, tlsoverlay.ErrMissing) {
		t.Errorf("%v, %v", c, err)
	}
	if _, err := RemovedByFIPS(); !errors.Is(err, tlsoverlay.ErrMissing) {
		t.Error(err)
	}
}
