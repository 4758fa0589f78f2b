package keystore

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
)

// blocks takes all PEM blocks out of text. Package pem skips what it cannot
// decode; here that is an error, lest half a chain pass for a whole one.
func blocks(text []byte) ([]*pem.Block, error) {
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
		return nil, fmt.Errorf("%d of its %d PEM blocks are damaged: copy it anew", begun-len(all), begun)
	}
	return all, nil
}

func parseChain(text []byte) ([]*x509.Certificate, error) {
	all, err := blocks(text)
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

// parseKey reads the one key in text. Its errors quote nothing of it.
func parseKey(text []byte) (crypto.Signer, error) {
	all, err := blocks(text)
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
