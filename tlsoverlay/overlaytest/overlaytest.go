// Package overlaytest is for tests that need what the build adds to crypto/tls.
// With plain go test there is nothing to test, so they are left out; where
// NEED_TLS_OVERLAY=1 says that the overlay has to be there, as every target of
// the Makefile does, its absence is a failure. Only tests import it.
package overlaytest

import (
	"fmt"
	"os"
	"testing"

	"github.com/bedside-gateway/gatewayd/tlsoverlay"
)

const needed = "NEED_TLS_OVERLAY"

// Need skips a test, or fails it, in a binary without the overlay.
func Need(t testing.TB) {
	t.Helper()
	err := tlsoverlay.Check()
	switch {
	case err == nil:
	case os.Getenv(needed) == "1":
		t.Fatal(err)
	default:
		t.Skip(err)
	}
}

// Require is Need for a TestMain, where no test of the package can do without.
func Require() {
	err := tlsoverlay.Check()
	switch {
	case err == nil:
	case os.Getenv(needed) == "1":
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	default:
		fmt.Println("all tests skipped:", err)
		os.Exit(0)
	}
}
