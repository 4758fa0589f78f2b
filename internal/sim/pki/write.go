package pki

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// IndexFile says what each file of a directory is, for people and for tests.
const IndexFile = "index.json"

// RootsFile holds all trusted roots.
const RootsFile = "roots.pem"

type index struct {
	Platform string   `json:"platform"`
	Device   string   `json:"device"`
	Entries  []*Entry `json:"certificates"`
}

// Write puts everything into a directory, which it makes where it is not there:
// NAME.pem (a leaf is followed by its issuing CA), NAME.key (PKCS #8, readable
// by the owner only), NAME.crl of each CA, roots.pem and index.json. It refuses
// a directory that holds a PKI already, since keys that something uses would be
// lost.
func (p *PKI) Write(dir string) error {
	if _, err := os.Stat(filepath.Join(dir, IndexFile)); !errors.Is(err, fs.ErrNotExist) {
		if err != nil {
			return err
		}
		return fmt.Errorf("%s holds a PKI already (%s): name another directory or remove this one", dir, IndexFile)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, e := range p.Entries {
		if err := e.write(dir); err != nil {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(dir, RootsFile), p.rootsPEM(), 0o644); err != nil {
		return err
	}
	return p.writeIndex(dir)
}

// writeIndex comes last: a directory with an index is complete.
func (p *PKI) writeIndex(dir string) error {
	text, err := json.MarshalIndent(index{p.Options.Platform, p.Options.Device.String(), p.Entries}, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, IndexFile), append(text, '\n'), 0o644)
}

func (p *PKI) rootsPEM() []byte {
	var b bytes.Buffer
	for _, e := range p.Entries {
		if e.Trusted {
			b.Write(pemBlock("CERTIFICATE", e.Certificate.Raw))
		}
	}
	return b.Bytes()
}

func (e *Entry) write(dir string) error {
	var chain bytes.Buffer
	for _, link := range e.chain() {
		chain.Write(pemBlock("CERTIFICATE", link.Certificate.Raw))
	}
	if err := os.WriteFile(filepath.Join(dir, e.File), chain.Bytes(), 0o644); err != nil {
		return err
	}
	key, err := x509.MarshalPKCS8PrivateKey(e.Key)
	if err != nil {
		return fmt.Errorf("key of %s: %w", e.Name, err)
	}
	if err := writeKey(filepath.Join(dir, e.KeyFile), pemBlock("PRIVATE KEY", key)); err != nil {
		return err
	}
	if e.CRL == nil {
		return nil
	}
	return os.WriteFile(filepath.Join(dir, e.CRLFile), pemBlock("X509 CRL", e.CRL), 0o644)
}

// writeKey never writes a key through a link or into a file that others may
// have opened: the file must be new.
func writeKey(path string, text []byte) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	return errors.Join(err, f.Close())
}

func pemBlock(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}
