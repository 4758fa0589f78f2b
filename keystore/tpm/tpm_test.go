package tpm

import (
	"context"
	"crypto"
	"os"
	"testing"

	"github.com/bedside-gateway/gatewayd/internal/sim/swtpm"
)

// emulator starts a TPM for a test.
func emulator(t testing.TB) *swtpm.Emulator {
	t.Helper()
	dir, err := os.MkdirTemp("", "tpm") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	e, err := swtpm.Start(t.Context(), dir)
	if err == swtpm.ErrMissing && os.Getenv("NEED_SWTPM") == "" {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Stop)
	return e
}

func open(t testing.TB, e *swtpm.Emulator, o Options) *TPM {
	t.Helper()
	d := Open(e.Address(), o)
	t.Cleanup(func() { d.Close() })
	return d
}

func TestEachKindOfKeySignsWhatItSays(t *testing.T) {
	d := open(t, emulator(t), Options{})
	for _, kind := range []Kind{P256, P384, RSA2048} {
		t.Run(string(kind), func(t *testing.T) {
			text, err := d.Create(context.Background(), kind, nil)
			if err != nil {
				t.Fatal(err)
			}
			k, err := d.Load(t.Context(), text)
			if err != nil {
				t.Fatal(err)
			}
			t.Log(k.Algorithms())
			if _, err := k.Sign(nil, make([]byte, 20), crypto.SHA1); FaultOf(err) != Unable {
				t.Errorf("SHA-1: %v", err)
			}
			k.Release(t.Context())
		})
	}
}

func TestSealedSecretComesBack(t *testing.T) {
	d := open(t, emulator(t), Options{})
	text, err := d.Seal(t.Context(), []byte("a secret"), nil)
	if err != nil {
		t.Fatal(err)
	}
	got, err := d.Unseal(t.Context(), text)
	if err != nil || string(got) != "a secret" {
		t.Fatalf("%q %v", got, err)
	}
}
