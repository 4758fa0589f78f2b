package enroll

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/bedside-gateway/gatewayd/internal/config"
	"github.com/bedside-gateway/gatewayd/keystore"
	"github.com/bedside-gateway/gatewayd/keystore/est"
	"github.com/bedside-gateway/gatewayd/keystore/tpm"
)

// Home is the folder of the stores of a configuration.
func Home(c *config.Config) string { return filepath.Join(c.Gateway.StateDir, Dir) }

// OpenTPM prepares for the TPM of a configuration: it has to be the one that the
// keys were made in, and bound keys are used by its approvals. It does not touch
// the TPM.
func OpenTPM(c *config.Config, o tpm.Options) (*tpm.TPM, error) {
	var err error
	if o.Expect, err = keystore.ReadFingerprint(Home(c)); err != nil {
		return nil, err
	}
	return OpenAnyTPM(c, o)
}

// OpenAnyTPM is OpenTPM for who gives the keys up, whichever TPM they are in: it
// reads nothing below Home, where any file may be damaged.
func OpenAnyTPM(c *config.Config, o tpm.Options) (*tpm.TPM, error) {
	approvals, err := Approvals(c)
	if err != nil {
		return nil, err
	}
	o.Approvals = approvals
	return tpm.Open(c.Identity.TPM, o), nil
}

// Approvals are those that a configuration names, for keys that are bound. A file
// by which no key could be used is refused, as gatewayd check refuses it.
func Approvals(c *config.Config) (all []tpm.Approval, err error) {
	file := c.Identity.PolicyApprovals
	if file == "" {
		return nil, nil
	}
	by, err := Binding(c)
	if err != nil {
		return nil, err
	}
	if by == nil {
		return nil, errors.New("policy_approvals: without policy_signer nobody approves anything")
	}
	text, err := keystore.ReadFile(file, keystore.MaxFile)
	if err == nil {
		all, err = tpm.ParseApprovals(text, by.Signer)
	}
	if err != nil {
		return nil, fmt.Errorf("policy_approvals: %s: %w", file, err)
	}
	return all, nil
}

// New is the applicant with a store of a configuration: Device, or one that a
// [[southbound.identity]] names.
func New(c *config.Config, store string, t *tpm.TPM, now func() time.Time) (*Applicant, error) {
	a := &Applicant{Home: Home(c), Store: keystore.Open(filepath.Join(Home(c), store)), TPM: t,
		Subject: keystore.Subject{Device: c.Gateway.EUI64}, Kind: tpm.Kind(c.Identity.KeyType), Now: now}
	if store != Device {
		i, err := server(c, store)
		if err != nil {
			return nil, err
		}
		a.Subject, a.Kind = keystore.Subject{Server: i.Name}, tpm.Kind(i.KeyType)
	}
	var err error
	a.Binding, err = Binding(c)
	a.Answers = c.Identity.ESTURL != ""
	return a, err
}

// server is the identity of the server for devices that has a store.
func server(c *config.Config, store string) (config.ServerIdentity, error) {
	if c.Southbound != nil {
		for _, i := range c.Southbound.Identities {
			if i.Store == store {
				return i, nil
			}
		}
	}
	return config.ServerIdentity{}, fmt.Errorf("there is no store %q: add a [[southbound.identity]] with store = %q to the configuration", store, store)
}

// Binding is what new keys and secrets are bound to; nil is nothing.
func Binding(c *config.Config) (*tpm.Binding, error) {
	file := c.Identity.PolicySigner
	if file == "" {
		return nil, nil
	}
	text, err := keystore.ReadFile(file, keystore.MaxFile)
	if err != nil {
		return nil, fmt.Errorf("policy_signer: %w", err)
	}
	block, _ := pem.Decode(text)
	if block == nil || block.Type != "PUBLIC KEY" {
		return nil, fmt.Errorf(`policy_signer: %s holds no PEM block "PUBLIC KEY"`, file)
	}
	key, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("policy_signer: %s: %w", file, err)
	}
	return &tpm.Binding{Signer: key}, nil
}

// Authority is the CA that renews, as a configuration names it.
func Authority(c *config.Config) (CA, error) {
	if c.Identity.ESTURL == "" {
		return CA{}, errors.New("no CA is configured: set est_url and est_trust in [identity], or renew by hand with gatewayd enroll csr and gatewayd enroll install")
	}
	text, err := keystore.ReadFile(c.Identity.ESTTrust, keystore.MaxFile)
	if err != nil {
		return CA{}, fmt.Errorf("roots of the CA: %w", err)
	}
	roots, _, err := config.Roots(text)
	if err != nil {
		return CA{}, fmt.Errorf("roots of the CA: %s %w", c.Identity.ESTTrust, err)
	}
	client, err := est.New(est.Options{URL: c.Identity.ESTURL, Roots: roots})
	if err != nil {
		return CA{}, err
	}
	client.Close() // another one is made for each request, with what it has to show
	return CA{URL: c.Identity.ESTURL, Roots: roots}, nil
}
