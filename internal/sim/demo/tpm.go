package demo

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/bedside-gateway/gatewayd/internal/sim/pki"
	"github.com/bedside-gateway/gatewayd/internal/sim/swtpm"
)

// Where the gateway of a demo has its key.
const (
	TPMAuto  = "auto"  // in swtpm, if that is installed
	TPMSwtpm = "swtpm" // an emulated TPM 2.0
	TPMNone  = "none"  // a development key in a file
)

// A box is the part of the gateway that keeps its key.
type box struct {
	dir      string // of the emulator; empty: the key is in a file
	emulator *swtpm.Emulator
}

// openBox starts the emulated TPM.
func (d *demo) openBox(ctx context.Context) error {
	if d.o.TPM == TPMNone {
		return nil
	}
	dir, err := os.MkdirTemp("", "tpm-") // the path of a socket has to be short
	if err != nil {
		return err
	}
	d.box.dir = dir
	d.box.emulator, err = swtpm.Start(ctx, dir)
	if errors.Is(err, swtpm.ErrMissing) && d.o.TPM != TPMSwtpm {
		d.box.close()
		d.box.dir = ""
		return nil
	}
	return err
}

// identity is the section of the configuration.
func (b *box) identity() string {
	if b.dir == "" {
		return "certificate = \"pki/device.pem\"\nkey = \"pki/device.key\"\ninsecure_file_key = true\n"
	}
	return fmt.Sprintf("tpm = %q\n", b.emulator.Address())
}

// enroll has gatewayd make its key in the TPM, and the hospital's CA issue the
// certificate: what a technician does on the console.
func (d *demo) enroll(ctx context.Context) error {
	if d.box.dir == "" {
		d.say("the gateway has a development key in a file; install swtpm to see it in a TPM")
		return nil
	}
	if _, err := d.gatewayd(ctx, "enroll", "init"); err != nil {
		return err
	}
	text, err := d.gatewayd(ctx, "enroll", "csr")
	if err != nil {
		return err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return errors.New("gatewayd enroll csr prints no request")
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err == nil {
		err = csr.CheckSignature()
	}
	if err != nil {
		return fmt.Errorf("gatewayd's certificate request: %w", err)
	}
	chain, err := d.hospital.IssueDevice("ecc-issuing", csr.PublicKey, pki.DefaultDevice, time.Now(), pki.DefaultLifetime)
	if err != nil {
		return err
	}
	file := filepath.Join(d.dir, "issued.pem")
	var b strings.Builder
	for _, c := range chain {
		_ = pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}) // a builder takes all
	}
	if err := os.WriteFile(file, []byte(b.String()), 0o600); err != nil {
		return err
	}
	if _, err := d.gatewayd(ctx, "enroll", "install", file); err != nil {
		return err
	}
	d.say("the gateway's key is in its TPM (swtpm, process %d); the hospital's CA certified it as %s", d.box.emulator.Pid(), csr.Subject.CommonName)
	return nil
}

// gatewayd runs one of its commands.
func (d *demo) gatewayd(ctx context.Context, args ...string) ([]byte, error) {
	var out, complaint strings.Builder
	cmd := exec.CommandContext(ctx, d.o.Gatewayd, append(args, "-c", filepath.Join(d.dir, configFile))...)
	cmd.Stdout, cmd.Stderr = &out, &complaint
	err := cmd.Run()
	if _, ran := errors.AsType[*exec.ExitError](err); err != nil && !ran && ctx.Err() == nil {
		return nil, fmt.Errorf("gatewayd does not start: %w; build it, or name it with --gatewayd", err)
	}
	if err != nil {
		return nil, fmt.Errorf("gatewayd %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(complaint.String()))
	}
	return []byte(out.String()), nil
}

// powerCut is one for the TPM: what is loaded in it is gone.
func (b *box) powerCut(ctx context.Context) (err error) {
	if b.dir == "" {
		return nil
	}
	b.emulator.Stop()
	b.emulator, err = swtpm.Start(ctx, b.dir)
	return err
}

func (b *box) close() {
	if b.emulator != nil {
		b.emulator.Stop()
	}
	if b.dir != "" {
		_ = os.RemoveAll(b.dir)
	}
}
