// Package keystore holds the gateway's own key and certificate chain, as a
// tls.Certificate whose PrivateKey is a crypto.Signer and may be anything that
// signs.
//
// Here the key is in a file, for development: whoever can read the file is the
// gateway. So a file that others could read or write is refused, and Check
// warns of the file itself. The package never writes or hands out a key.
// The daemon and the one-shot tools call it.
package keystore

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"
)

// maxFile bounds both files: a chain of four RSA certificates has some 8 kB.
const maxFile = 256 << 10

// minRSA is the least length of an RSA key (NIST SP 800-57, 112 bits of security).
const minRSA = 2048

// LoadFile reads a chain, ours first and each certificate's issuer behind it,
// and the key to the first one, both PEM. The key file must be a regular file
// of the user we run as, or of root, that nobody else can read or write: mode
// 0600 or 0400.
func LoadFile(certFile, keyFile string) (tls.Certificate, error) {
	none := tls.Certificate{}
	text, err := readFile(certFile, nil)
	if err != nil {
		return none, fmt.Errorf("certificate file: %w", err)
	}
	chain, err := parseChain(text)
	if err != nil {
		return none, fmt.Errorf("certificate file %s: %w", certFile, err)
	}
	text, err = readFile(keyFile, private)
	if err != nil {
		return none, fmt.Errorf("key file: %w", err)
	}
	defer clear(text)
	key, err := parseKey(text)
	if err != nil {
		return none, fmt.Errorf("key file %s: %w", keyFile, err)
	}
	if !matches(key, chain[0]) {
		return none, fmt.Errorf("the key in %s is not that of the first certificate in %s: use the key that the certificate was requested with", keyFile, certFile)
	}
	id := tls.Certificate{PrivateKey: key, Leaf: chain[0]}
	for _, c := range chain {
		id.Certificate = append(id.Certificate, c.Raw)
	}
	return id, nil
}

// readFile judges the file that it then reads, not its name: a file put in its
// place meanwhile is not read. O_NONBLOCK keeps a pipe from holding us up.
func readFile(name string, judge func(fs.FileInfo) error) ([]byte, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is no regular file", name)
	}
	if judge != nil {
		if err := judge(info); err != nil {
			return nil, fmt.Errorf("%s %w", name, err)
		}
	}
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(b) > maxFile {
		err = fmt.Errorf("%s has more than %d bytes: it is something else", name, maxFile)
	}
	return b, err
}

// private refuses a file that another user could read or change.
func private(info fs.FileInfo) error {
	if mode := info.Mode().Perm(); mode&^0o600 != 0 {
		return fmt.Errorf("has the mode %04o, so that others can get at it: chmod 0600 it, and have a new key made if others may have read it", mode)
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return errors.New("has an owner that cannot be told")
	}
	return ownedBy(stat.Uid, uint32(os.Geteuid()))
}

func ownedBy(owner, user uint32) error {
	if owner != user && owner != 0 {
		return fmt.Errorf("belongs to the user %d, who can change it: chown it to the user %d", owner, user)
	}
	return nil
}

func matches(key crypto.Signer, c *x509.Certificate) bool {
	public, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool })
	return ok && public.Equal(c.PublicKey)
}

// usable says why a key is not one that the gateway works with.
func usable(key any) (crypto.Signer, error) {
	switch k := key.(type) {
	case *ecdsa.PrivateKey:
		if k.Curve != elliptic.P256() && k.Curve != elliptic.P384() {
			return nil, fmt.Errorf("its curve is %s: P-256 and P-384 are used", k.Params().Name)
		}
		return k, nil
	case *rsa.PrivateKey:
		if n := k.N.BitLen(); n < minRSA {
			return nil, fmt.Errorf("its RSA key has %d bits: %d are the least", n, minRSA)
		}
		return k, nil
	}
	return nil, errors.New("its key is of another kind: elliptic curves P-256 and P-384 and RSA are used")
}
