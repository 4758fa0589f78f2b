package pki

import (
	"crypto"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/bedside-gateway/gatewayd/observation"
)

// Read is what Write wrote into a directory, keys and CRLs included.
func Read(dir string) (*PKI, error) {
	text, err := os.ReadFile(filepath.Join(dir, IndexFile))
	if err != nil {
		return nil, fmt.Errorf("no PKI is in %s: %w; make one with gatewaysim pki --dir %s", dir, err, dir)
	}
	var x index
	if err := json.Unmarshal(text, &x); err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, IndexFile), err)
	}
	p := &PKI{Options: Options{Platform: x.Platform}, Entries: x.Entries}
	if p.Options.Device, err = observation.ParseEUI64(x.Device); err != nil {
		return nil, fmt.Errorf("%s: device: %w", filepath.Join(dir, IndexFile), err)
	}
	for _, e := range p.Entries {
		if err := e.read(dir); err != nil {
			return nil, err
		}
		if e.issuer, err = p.Find(e.Issuer); err != nil {
			return nil, fmt.Errorf("issuer of %s: %w", e.Name, err)
		}
		if !e.issuer.isCA() {
			return nil, fmt.Errorf("issuer of %s: %s is no CA", e.Name, e.issuer.Name)
		}
	}
	return p, nil
}

func (e *Entry) read(dir string) (err error) {
	der, err := readPEM(dir, e.File)
	if err != nil {
		return err
	}
	if e.Certificate, err = x509.ParseCertificate(der); err != nil {
		return fmt.Errorf("%s: %w", e.File, err)
	}
	if got := e.Certificate.SerialNumber.Text(16); got != e.Serial {
		return fmt.Errorf("%s begins with the certificate of serial number %s, the index says %s", e.File, got, e.Serial)
	}
	if der, err = readPEM(dir, e.KeyFile); err != nil {
		return err
	}
	key, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return fmt.Errorf("%s: %w", e.KeyFile, err)
	}
	var signs bool
	if e.Key, signs = key.(crypto.Signer); !signs {
		return fmt.Errorf("%s holds a key that cannot sign", e.KeyFile)
	}
	if public, ok := e.Key.Public().(interface{ Equal(crypto.PublicKey) bool }); !ok || !public.Equal(e.Certificate.PublicKey) {
		return fmt.Errorf("%s is not the key of %s", e.KeyFile, e.File)
	}
	if e.isCA() {
		e.CRL, err = readPEM(dir, e.CRLFile)
	}
	return err
}

// readPEM is the first block of a file of the directory. A name in the index
// that leads out of it is refused.
func readPEM(dir, name string) ([]byte, error) {
	if !filepath.IsLocal(name) {
		return nil, fmt.Errorf("the index names %q, which is no file of %s", name, dir)
	}
	text, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, errors.New(name + " is not in PEM form")
	}
	return block.Bytes, nil
}
