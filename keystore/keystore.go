// Package keystore holds the identity of the gateway: keys that are in its TPM,
// and the certificate chains to them, in slots.
//
// A store is a folder with up to three slots. Next is what is being enrolled: a
// key, and the certificate for it when it was issued. Current is what platforms
// see. Previous is what they saw before, kept until the first good session.
// Every change is one rename, so that after a power cut a slot is as it was
// before or as it is after.
//
// The package never sees a private key, and never says that a certificate is
// good: platforms and package tlspolicy do. Key files for development are in
// package keystore/keyfile, which no release has. The daemon and gatewayd enroll
// call it.
package keystore

import (
	"bytes"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
)

// maxFile bounds the files: a chain of four RSA certificates has some 8 kB.
const maxFile = 256 << 10

// Chain reads a chain in PEM: ours first, and each certificate's issuer behind
// it. Package pem skips what it cannot decode; here that is an error, lest half
// a chain pass for a whole one.
func Chain(text []byte) ([]*x509.Certificate, error) {
	all, err := Blocks(text)
	if err != nil {
		return nil, err
	}
	var chain []*x509.Certificate
	for i, b := range all {
		if b.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("PEM block %d is a %q: only certificates belong in it", i+1, b.Type)
		}
		c, err := x509.ParseCertificate(b.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d cannot be read: %w", i+1, err)
		}
		if i > 0 {
			if err := chain[i-1].CheckSignatureFrom(c); err != nil {
				return nil, fmt.Errorf("certificate %d, %q, is not the issuer of certificate %d, %q: put ours first and each issuer behind what it issued",
					i+1, c.Subject, i, chain[i-1].Subject)
			}
		}
		chain = append(chain, c)
	}
	return chain, nil
}

// Blocks takes all PEM blocks out of text, and refuses text with a damaged one.
func Blocks(text []byte) ([]*pem.Block, error) {
	text = bytes.TrimPrefix(text, []byte("\ufeff")) // as Windows writes it
	var all []*pem.Block
	for rest := text; ; {
		var b *pem.Block
		if b, rest = pem.Decode(rest); b == nil {
			break
		}
		all = append(all, b)
	}
	switch begun := bytes.Count(text, []byte("-----BEGIN ")); {
	case begun == 0:
		return nil, errors.New("it holds no PEM block: convert it with openssl")
	case begun != len(all):
		return nil, fmt.Errorf("%d of its %d PEM blocks are damaged, or not at the beginning of a line: copy it anew", begun-len(all), begun)
	}
	return all, nil
}

// Pair makes a TLS certificate of a chain and the key to its first certificate.
// A key that lists its Algorithms signs with no other: a TPM cannot do all that
// TLS might ask of a key of its kind.
func Pair(chain []*x509.Certificate, key crypto.Signer) (tls.Certificate, error) {
	if len(chain) == 0 {
		return tls.Certificate{}, errors.New("there is no certificate")
	}
	if !Matches(key.Public(), chain[0]) {
		return tls.Certificate{}, fmt.Errorf("the certificate %q is for another key: use the key that it was requested with", chain[0].Subject)
	}
	id := tls.Certificate{PrivateKey: key, Leaf: chain[0]}
	for _, c := range chain {
		id.Certificate = append(id.Certificate, c.Raw)
	}
	if k, ok := key.(interface{ Algorithms() []tls.SignatureScheme }); ok {
		id.SupportedSignatureAlgorithms = k.Algorithms()
	}
	return id, nil
}

// Matches reports whether a certificate is for a public key.
func Matches(key crypto.PublicKey, c *x509.Certificate) bool {
	public, ok := key.(interface{ Equal(crypto.PublicKey) bool })
	return ok && public.Equal(c.PublicKey)
}
