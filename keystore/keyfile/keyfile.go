// Package keyfile reads private keys in files, for development and for
// simulated peers: whoever can read the file is the gateway. So a file that
// others could read or write is refused, and Warning says what it means.
//
// No release of the firmware contains this package: cmd/gatewayd imports it
// only where it is built with the tag development. The package never writes or
// hands out a key.
package keyfile

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"

	"github.com/bedside-gateway/gatewayd/keystore"
)

// Warning goes with every key that Load gives.
const Warning = "DEVELOPMENT KEY IN USE: the private key is a file that can be copied; never use this gateway on patients"

// maxFile bounds both files: a chain of four RSA certificates has some 8 kB.
const maxFile = 256 << 10

// minRSA is the least length of an RSA key (NIST SP 800-57, 112 bits of security).
const minRSA = 2048

// Load reads a chain, ours first and each certificate's issuer behind it, and
// the key to the first one, both PEM. The key file must be a regular file of
// the user we run as, or of root, that nobody else can read or write: mode 0600
// or 0400.
func Load(certFile, keyFile string) (tls.Certificate, error) {
	none := tls.Certificate{}
	text, err := readFile(certFile, nil)
	if err != nil {
		return none, fmt.Errorf("certificate file: %w", err)
	}
	chain, err := keystore.Chain(text)
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
	if !keystore.Matches(key.Public(), chain[0]) {
		return none, fmt.Errorf("the key in %s is not that of the first certificate in %s: use the key that the certificate was requested with", keyFile, certFile)
	}
	return keystore.Pair(chain, key)
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

// parseKey reads the one key in text. Its errors quote nothing of it.
func parseKey(text []byte) (crypto.Signer, error) {
	all, err := keystore.Blocks(text)
	if err != nil {
		return nil, err
	}
	var found crypto.Signer
	for _, b := range all {
		if b.Type == "EC PARAMETERS" { // openssl ecparam -genkey writes it in front
			continue
		}
		key, err := decodeKey(b)
		if err != nil {
			return nil, err
		}
		if found != nil {
			return nil, errors.New("it holds more than one key: leave only the certificate's")
		}
		if found, err = usable(key); err != nil {
			return nil, err
		}
	}
	if found == nil {
		return nil, errors.New("it holds no key")
	}
	return found, nil
}

func decodeKey(b *pem.Block) (key any, err error) {
	switch {
	case b.Type == "ENCRYPTED PRIVATE KEY" || b.Headers["DEK-Info"] != "":
		return nil, errors.New("its key is encrypted, and nobody is there to type a passphrase: keep it unencrypted with mode 0600")
	case b.Type == "TSS2 PRIVATE KEY":
		return nil, errors.New("its key is one of a TPM, not one in a file")
	case b.Type == "PRIVATE KEY":
		key, err = x509.ParsePKCS8PrivateKey(b.Bytes)
	case b.Type == "EC PRIVATE KEY":
		key, err = x509.ParseECPrivateKey(b.Bytes)
	case b.Type == "RSA PRIVATE KEY":
		key, err = x509.ParsePKCS1PrivateKey(b.Bytes)
	default:
		return nil, fmt.Errorf("it holds a %q, which is no private key", b.Type)
	}
	if err != nil {
		return nil, errors.New("its key is damaged: copy it anew")
	}
	return key, nil
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
