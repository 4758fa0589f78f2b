package swtpm

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Manufacture makes the TPM in dir anew before it is started there first, with
// endorsement keys (RSA-2048 and P-384) that a maker of its own certified, as
// swtpm_setup does it. What the maker has is in the folder too. It takes a second.
func Manufacture(ctx context.Context, dir string) (m Maker, err error) {
	for _, name := range []string{"swtpm_setup", "swtpm_localca"} {
		if _, err := exec.LookPath(name); err != nil {
			return m, fmt.Errorf("%s is not installed: apt-get install swtpm-tools", name)
		}
	}
	maker := filepath.Join(dir, "maker")
	if err := os.MkdirAll(maker, 0o700); err != nil {
		return m, err
	}
	file := func(name string) string { return filepath.Join(maker, name) }
	for name, text := range map[string]string{
		"localca.conf": "statedir = {}\nsigningkey = {}/signing.key\nissuercert = {}/issuing.pem\ncertserial = {}/serial\n",
		"options":      "--platform-manufacturer gatewaysim\n--platform-version 1\n--platform-model bedside\n",
		"setup.conf": "create_certs_tool = swtpm_localca\ncreate_certs_tool_config = {}/localca.conf\n" +
			"create_certs_tool_options = {}/options\nactive_pcr_banks = sha256\n",
	} {
		if err := os.WriteFile(file(name), []byte(strings.ReplaceAll(text, "{}", maker)), 0o600); err != nil {
			return m, err
		}
	}
	out, err := exec.CommandContext(ctx, "swtpm_setup", "--tpm2", "--tpmstate", dir, "--create-ek-cert", "--overwrite", "--config", file("setup.conf")).CombinedOutput()
	if err != nil {
		return m, fmt.Errorf("swtpm_setup: %w: %s", err, out)
	}
	return Maker{Root: file("swtpm-localca-rootca-cert.pem"), Issuing: file("issuing.pem")}, nil
}

// A Maker is who certified endorsement keys: two files in PEM.
type Maker struct{ Root, Issuing string }

// Roots and Intermediates are what a CA trusts that believes this maker.
func (m Maker) Roots() (*x509.CertPool, error) { return pool(m.Root) }

// Intermediates are the CAs between root and endorsement key.
func (m Maker) Intermediates() (*x509.CertPool, error) { return pool(m.Issuing) }

func pool(name string) (*x509.CertPool, error) {
	text, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	p := x509.NewCertPool()
	if !p.AppendCertsFromPEM(text) {
		return nil, errors.New(name + " holds no certificate")
	}
	return p, nil
}
