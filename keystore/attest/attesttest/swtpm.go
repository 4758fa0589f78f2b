// Package attesttest is a TPM for tests: swtpm, started as a process of its own
// with endorsement keys that a maker of its own certified, and a device that
// makes evidence with it by the plainest means. Nothing of it is in the
// firmware, which has keystore/tpm.
package attesttest

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2/transport"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"
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
	Socket string         // for other clients, its control socket is Socket.ctrl
	Roots  *x509.CertPool // of its maker
	Issuer *x509.Certificate
	dir    string
	cmd    *exec.Cmd
}

// Start manufactures a TPM, with a maker of its own, and runs it. It takes a second.
func Start() (t *TPM, err error) {
	dir, err := os.MkdirTemp("", "tpm") // a short path: sockets have room for 107 bytes
	if err != nil {
		return nil, err
	}
	t = &TPM{dir: dir, Socket: filepath.Join(dir, "s")}
	if err := errors.Join(t.manufacture(), t.run()); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	t.TPMCloser, err = linuxudstpm.Open(t.Socket)
	if err != nil {
		return nil, errors.Join(err, t.Close())
	}
	return t, nil
}

// manufacture makes endorsement keys (RSA-2048, P-384) and their certificates.
func (t *TPM) manufacture() error {
	files := map[string]string{
		"localca.conf": "statedir = {}\nsigningkey = {}/sign.pem\nissuercert = {}/issuer.pem\ncertserial = {}/serial\n",
		"options":      "--platform-manufacturer Test\n--platform-version 1\n--platform-model test\n",
		"setup.conf": "create_certs_tool = swtpm_localca\ncreate_certs_tool_config = {}/localca.conf\n" +
			"create_certs_tool_options = {}/options\nactive_pcr_banks = sha256\n",
	}
	for name, text := range files {
		text = string(bytes.ReplaceAll([]byte(text), []byte("{}"), []byte(t.dir)))
		if err := os.WriteFile(filepath.Join(t.dir, name), []byte(text), 0o600); err != nil {
			return err
		}
	}
	state := filepath.Join(t.dir, "state")
	if err := os.Mkdir(state, 0o700); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, "swtpm_setup", "--tpm2", "--tpmstate", state, "--create-ek-cert",
		"--config", filepath.Join(t.dir, "setup.conf")).CombinedOutput()
	if err != nil {
		return fmt.Errorf("swtpm_setup: %w\n%s", err, out)
	}
	return t.readMaker()
}

func (t *TPM) readMaker() (err error) {
	t.Roots = x509.NewCertPool()
	text, err := os.ReadFile(filepath.Join(t.dir, "swtpm-localca-rootca-cert.pem"))
	if err != nil {
		return err
	}
	if !t.Roots.AppendCertsFromPEM(text) {
		return errors.New("swtpm's maker has no root certificate")
	}
	if text, err = os.ReadFile(filepath.Join(t.dir, "issuer.pem")); err != nil {
		return err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return errors.New("swtpm's maker has no certificate")
	}
	t.Issuer, err = x509.ParseCertificate(block.Bytes)
	return err
}

// MakerFiles are the root and the issuing certificate of the maker, in PEM.
func (t *TPM) MakerFiles() (root, issuer string) {
	return filepath.Join(t.dir, "swtpm-localca-rootca-cert.pem"), filepath.Join(t.dir, "issuer.pem")
}

// run hands swtpm sockets that listen already, so that nobody has to wait for it.
func (t *TPM) run() error {
	data, err := listen(t.Socket)
	if err != nil {
		return err
	}
	defer data.Close()
	control, err := listen(t.Socket + ".ctrl")
	if err != nil {
		return err
	}
	defer control.Close()
	t.cmd = exec.Command("swtpm", "socket", "--tpm2", "--tpmstate", "dir="+filepath.Join(t.dir, "state"),
		"--server", "type=unixio,fd=3", "--ctrl", "type=unixio,fd=4", "--flags", "not-need-init,startup-clear")
	t.cmd.ExtraFiles = []*os.File{data, control}
	return t.cmd.Start()
}

func listen(path string) (*os.File, error) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	file, err := l.File()
	return file, errors.Join(err, l.Close())
}

// Close ends the process and removes its state.
func (t *TPM) Close() error {
	var err error
	if t.TPMCloser != nil {
		err = t.TPMCloser.Close()
	}
	if t.cmd != nil && t.cmd.Process != nil {
		err = errors.Join(err, t.cmd.Process.Kill())
		_ = t.cmd.Wait() // it says that it was killed
	}
	return errors.Join(err, os.RemoveAll(t.dir))
}
