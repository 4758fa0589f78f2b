package tlsoverlay

import (
	"crypto/tls"
	"errors"
	"os"
	"regexp"
	"testing"
)

// In a build without the overlay every function fails by itself; in one with
// it every function works. NEED_TLS_OVERLAY says which this must be.
func TestEveryFunctionFailsClosedWithoutTheOverlay(t *testing.T) {
	results := map[string]error{
		"Check":           Check(),
		"RequestStaples":  RequestStaples(&tls.Config{}),
		"SetCipherSuites": SetCipherSuites(&tls.Config{}, []uint16{DHE_RSA_AES_256_GCM_SHA384, tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384}),
		"SetGroups":       SetGroups(&tls.Config{}, []uint16{FFDHE3072, FFDHE2048}),
		"SetStaples":      SetStaples(&tls.Certificate{}, [][]byte{{1}, nil}),
	}
	_, results["Staples"] = Staples(&tls.ConnectionState{})
	version, err := Version()
	results["Version"] = err
	for name, err := range results {
		switch {
		case os.Getenv("NEED_TLS_OVERLAY") == "1" && err != nil:
			t.Errorf("%s: %v", name, err)
		case !errors.Is(err, results["Check"]):
			t.Errorf("%s does not agree with Check: %v", name, err)
		case err != nil && !errors.Is(err, ErrMissing):
			t.Errorf("%s: %v", name, err)
		}
	}
	if err == nil && !regexp.MustCompile(`^go1\.\d+(\.\d+)?\+ext\.[0-9a-f]{16}$`).MatchString(version) {
		t.Errorf("the mark %q is none", version)
	}
}
