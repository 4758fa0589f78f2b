package enroll

import (
	"bytes"
	"crypto/x509"
	"testing"

	"github.com/bedside-gateway/gatewayd/keystore"
	"github.com/bedside-gateway/gatewayd/keystore/tpm"
)

// FuzzImport shows that what comes through the pipe is one key with readable
// certificates or an error, whatever it is, and that both looks at it agree on
// whether a key is in the clear.
func FuzzImport(f *testing.F) {
	key := p256(f)
	clear := pkcs8(f, key)
	sec1, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		f.Fatal(err)
	}
	p, err := hospital()
	if err != nil {
		f.Fatal(err)
	}
	chain, err := p.Chain("device")
	if err != nil {
		f.Fatal(err)
	}
	for _, seed := range [][]byte{nil, clear, join(encode(chain), clear), inPEM("EC PRIVATE KEY", sec1), inPEM("RSA PRIVATE KEY", nil), inPEM(tpm.FileType, []byte{0x30, 0}),
		join(clear, clear), encode(chain), inPEM("PKCS7", []byte{0x30, 0x80}), inPEM("ENCRYPTED PRIVATE KEY", []byte{1}), clear[:40]} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		isClear, err := holdsClearKey(text)
		p, err2 := split(text)
		if err != nil && err2 == nil {
			t.Fatalf("read in one way, and not in the other: %v", err)
		}
		if err2 != nil {
			return
		}
		if isClear != (p.clear != nil) || (p.clear == nil) == (p.wrapped == nil) {
			t.Fatalf("clear %v, and %T beside %d bytes that are wrapped", isClear, p.clear, len(p.wrapped))
		}
		for _, c := range p.certificates {
			if len(c.Raw) == 0 || bytes.Count(c.Raw, []byte{0}) == len(c.Raw) {
				t.Fatal("a certificate was wiped")
			}
		}
		if all, err := certificates(encode(p.certificates)); len(p.certificates) > 0 && (err != nil || len(all) != len(p.certificates)) {
			t.Fatalf("%d of %d certificates, %v", len(all), len(p.certificates), err)
		}
		p.wipe()
	})
}

// FuzzInstall shows that an installed chain is one that a store takes: whatever
// order it came in, ours is first and each issuer is behind what it issued.
func FuzzInstall(f *testing.F) {
	p, err := hospital()
	if err != nil {
		f.Fatal(err)
	}
	chain, err := p.Chain("device")
	if err != nil {
		f.Fatal(err)
	}
	for _, seed := range [][]byte{nil, encode(chain), encode(reversed(chain)), inPEM("PKCS7", chain[0].Raw), inPEM("CERTIFICATE", chain[0].Raw[:90]), []byte("-----BEGIN CERTIFICATE-----\n")} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		all, err := certificates(text)
		if err != nil {
			return
		}
		for _, leaf := range all {
			slots := keystore.Slots{Current: &keystore.Slot{Public: leaf.PublicKey}}
			got, err := order(&slots, all)
			if err != nil {
				continue // a key of a kind that no slot has
			}
			if !keystore.Matches(leaf.PublicKey, got[0]) {
				t.Fatal("the first certificate is for another key")
			}
			if _, err := keystore.Chain(encode(got)); err != nil {
				t.Fatal(err)
			}
		}
	})
}
