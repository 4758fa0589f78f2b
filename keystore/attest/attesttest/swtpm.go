// Package attesttest is a TPM for tests: swtpm, started as a process of its own
// with endorsement keys that a maker of its own certified, and a device that
// makes evidence with it by the plainest means. Nothing of it is in the
// firmware, which has keystore/tpm.
package attesttest

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2/transport"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"

	"github.com/bedside-gateway/gatewayd/internal/sim/swtpm"
)

// Need skips a test on a machine without swtpm, and fails it where NEED_SWTPM
// says that it has to be there.
func Need(t testing.TB, more ...string) {
	t.Helper()
	for _, program := range append([]string{"swtpm", "swtpm_setup", "swtpm_localca"}, more...) {
		if _, err := exec.LookPath(program); err == nil {
			continue
		}
		if os.Getenv("NEED_SWTPM") != "" {
			t.Fatalf("%s is not installed, and NEED_SWTPM wants it", program)
		}
		t.Skipf("%s is not installed", program)
	}
}

// A TPM is a running swtpm. Start makes it; Close ends it.
type TPM struct {
	transport.TPMCloser
	Socket   string         // for other clients, its control socket is Socket.ctrl
	Roots    *x509.CertPool // of its maker
	Issuer   *x509.Certificate
	maker    swtpm.Maker
	emulator *swtpm.Emulator
	dir      string
}

// Start manufactures a TPM, with a maker of its own, and runs it. It takes a second.
func Start() (t *TPM, err error) {
	dir, err := os.MkdirTemp("", "tpm") // a short path: sockets have room for 107 bytes
	if err != nil {
		return nil, err
	}
	t = &TPM{dir: dir}
	if err := t.start(); err != nil {
		return nil, errors.Join(err, t.Close())
	}
	return t, nil
}

func (t *TPM) start() (err error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if t.maker, err = swtpm.Manufacture(ctx, t.dir); err != nil {
		return err
	}
	if t.Roots, err = t.maker.Roots(); err != nil {
		return err
	}
	text, err := os.ReadFile(t.maker.Issuing)
	if err != nil {
		return err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return errors.New("swtpm's maker has no certificate")
	}
	if t.Issuer, err = x509.ParseCertificate(block.Bytes); err != nil {
		return err
	}
	if t.emulator, err = swtpm.Start(ctx, t.dir); err != nil {
		return err
	}
	t.Socket = strings.TrimPrefix(t.emulator.Address(), "unix:")
	t.TPMCloser, err = linuxudstpm.Open(t.Socket)
	return err
}

// MakerFiles are the root and the issuing certificate of the maker, in PEM.
func (t *TPM) MakerFiles() (root, issuer string) { return t.maker.Root, t.maker.Issuing }

// Close ends the process and removes its state.
func (t *TPM) Close() error {
	var err error
	if t.TPMCloser != nil {
		err = t.TPMCloser.Close()
	}
	if t.emulator != nil {
		t.emulator.Stop()
	}
	return errors.Join(err, os.RemoveAll(t.dir))
}
