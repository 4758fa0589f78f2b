package main

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/bedside-gateway/gatewayd/internal/enroll"
	"github.com/bedside-gateway/gatewayd/keystore"
	"github.com/bedside-gateway/gatewayd/keystore/attest"
	"github.com/bedside-gateway/gatewayd/keystore/est"
	"github.com/bedside-gateway/gatewayd/keystore/tpm"
	"github.com/bedside-gateway/gatewayd/observation"
)

// picture draws half blocks as a terminal with light letters on dark ground does.
func picture(text string, scale int) image.Image {
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	m := image.NewGray(image.Rect(0, 0, utf8.RuneCountInString(lines[0])*scale, 2*len(lines)*scale))
	light := map[rune][2]bool{'█': {true, true}, '▀': {true, false}, '▄': {false, true}, ' ': {}}
	for row, line := range lines {
		for column, r := range []rune(line) {
			for half, is := range light[r] {
				if !is {
					continue
				}
				for i := range scale * scale {
					m.SetGray(column*scale+i%scale, (2*row+half)*scale+i/scale, color.Gray{Y: 255})
				}
			}
		}
	}
	return m
}

// What a telephone reads off the console is the request.
func TestTheCodeReadsBackAsTheRequest(t *testing.T) {
	zbar, err := exec.LookPath("zbarimg")
	if err != nil {
		t.Skip("zbarimg is not installed: apt-get install zbar-tools")
	}
	p256, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsa2048, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		key  crypto.Signer
		most int // columns
	}{"P-256": {p256, columns}, "P-384": {p384, 100}, "RSA 2048": {rsa2048, 140}} {
		t.Run(name, func(t *testing.T) {
			request, err := keystore.Request(c.key, keystore.Subject{Device: observation.EUI64(0x0123456789ABCDEF)})
			if err != nil {
				t.Fatal(err)
			}
			var text bytes.Buffer
			width, err := writeQR(&text, request)
			if err != nil {
				t.Fatal(err)
			}
			first, _, _ := strings.Cut(text.String(), "\n")
			if got := utf8.RuneCountInString(first); got != width || width > c.most {
				t.Errorf("%d columns, said are %d, and %d are there", got, width, c.most)
			}
			file := filepath.Join(t.TempDir(), "code.png")
			f, err := os.Create(file)
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(png.Encode(f, picture(text.String(), 4)), f.Close()); err != nil {
				t.Fatal(err)
			}
			out, err := exec.CommandContext(t.Context(), zbar, "--quiet", "--raw", "-Sdisable", "-Sqrcode.enable", file).Output()
			if err != nil {
				t.Fatalf("zbarimg: %v", err)
			}
			if got := strings.TrimSpace(string(out)); got != strings.TrimSpace(string(request)) {
				t.Errorf("it reads\n%s\nand the request is\n%s", got, request)
			}
		})
	}
}

func TestACodeThatIsTooWideForAConsoleSaysSo(t *testing.T) {
	for n, warned := range map[int]bool{300: false, 900: true} {
		var out, errs bytes.Buffer
		e := &enrolling{app: &app{out: &out, err: &errs}}
		if err := e.printQR(bytes.Repeat([]byte("A"), n), "Install it."); err != nil {
			t.Fatal(err)
		}
		if got := strings.Contains(errs.String(), "columns wide"); got != warned || !strings.HasSuffix(errs.String(), "Next: Install it.\n") {
			t.Errorf("%d bytes: %q", n, errs.String())
		}
	}
	e := &enrolling{app: &app{out: new(bytes.Buffer), err: new(bytes.Buffer)}}
	if err := e.printQR(bytes.Repeat([]byte("a"), 4000), ""); err == nil || !strings.Contains(err.Error(), "print it without --qr") {
		t.Errorf("%v", err)
	}
}

func TestALineIsFoldedAtSpacesForAConsole(t *testing.T) {
	for line, want := range map[string]string{
		"":                               "",
		"one":                            "one",
		"one two three":                  "one two\n  three",
		"onetwothreefour five":           "onetwothreefour\n  five",
		"é é é é é é":                    "é é é é é\n  é",
		"Next: gatewayd enroll csr then": "Next:\n  gatewayd\n  enroll\n  csr then",
	} {
		if got := fold(line, 10); got != want {
			t.Errorf("%q: %q", line, got)
		}
	}
	if folded(new(bytes.Buffer), strings.Repeat("a ", 100)) != strings.Repeat("a ", 100) {
		t.Error("a program gets a folded line")
	}
}

func TestAFileIsNoPipeAndNoConsole(t *testing.T) {
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	for name, c := range map[string]struct {
		stream           any
		regular, console bool
	}{"a file": {f, true, false}, "a pipe": {r, false, false}, "a device": {null, false, true}, "a buffer": {new(bytes.Buffer), false, false}} {
		if mode(c.stream).IsRegular() != c.regular || isTerminal(c.stream) != c.console {
			t.Errorf("%s has the mode %v", name, mode(c.stream))
		}
	}
}

// A script can tell a CA that is away from one that says no.
func TestErrorsOfEnrolmentHaveTheirExitCodes(t *testing.T) {
	ca := func(err error) error { return &enroll.CAError{URL: "https://ca.test", Err: fmt.Errorf("EST: %w", err)} }
	faulty := func(f tpm.Fault) error { return &tpm.Error{Fault: f, What: "sign", Err: errors.New("it did not")} }
	for name, c := range map[string]struct {
		err  error
		want int
	}{
		"nobody listens":                 {ca(&net.OpError{Op: "dial", Err: errors.New("connection refused")}), exitTryLater},
		"it does not answer":             {ca(os.ErrDeadlineExceeded), exitTryLater},
		"it breaks off":                  {ca(io.ErrUnexpectedEOF), exitTryLater},
		"it has to think":                {ca(&est.Pending{After: time.Second}), exitTryLater},
		"it has no time":                 {ca(&est.Unavailable{Status: http.StatusServiceUnavailable}), exitTryLater},
		"it has no time for attestation": {ca(&attest.Unavailable{Status: http.StatusTooManyRequests}), exitTryLater},
		"what is in front of it is lost": {ca(&est.Refused{Status: http.StatusBadGateway}), exitTryLater},
		"it says no":                     {ca(&est.Refused{Status: http.StatusForbidden}), exitProtocol},
		"it says no to an attestation":   {ca(&attest.Refused{Status: http.StatusForbidden}), exitProtocol},
		"it does not take our TLS":       {ca(&net.OpError{Op: "remote error", Err: tls.AlertError(42)}), exitProtocol},
		"we do not trust it":             {ca(&tls.CertificateVerificationError{Err: x509.UnknownAuthorityError{}}), exitProtocol},
		"it gives what is none":          {ca(errors.New("the answer is not base64")), exitProtocol},
		"a TPM that is away":             {faulty(tpm.Absent), exitUnavailable},
		"a TPM that is busy":             {faulty(tpm.Busy), exitTryLater},
		"a key for another TPM":          {faulty(tpm.Astray), exitData},
		"a TPM that was cleared":         {faulty(tpm.Cleared), exitRuntime},
		"a file that may not be read":    {fmt.Errorf("open: %w", fs.ErrPermission), exitPermission},
		"no CA":                          {&exit{exitConfig, errors.New("no CA is configured")}, exitConfig},
		"anything else":                  {errors.New("anything"), exitRuntime},
	} {
		e, ok := errors.AsType[*exit](enrolFault(c.err))
		if !ok || e.code != c.want {
			t.Errorf("%s: %+v, want %d", name, e, c.want)
		}
		if next := nextOf(&exit{c.want, c.err}); !strings.HasSuffix(next, ".") {
			t.Errorf("%s: the next step is %q", name, next)
		}
	}
}

func TestAProcessThatMayHaveAClearKeyIsNotDumped(t *testing.T) {
	before, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Prctl(unix.PR_SET_DUMPABLE, uintptr(before), 0, 0, 0); err != nil {
			t.Error(err)
		}
	}()
	undumped()
	if after, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0); err != nil || after != 0 {
		t.Errorf("dumpable is %d, %v", after, err)
	}
}
