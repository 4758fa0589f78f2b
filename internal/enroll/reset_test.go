package enroll

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/bedside-gateway/gatewayd/keystore"
	"github.com/bedside-gateway/gatewayd/keystore/tpm"
)

// damages are what a bad disk or a curious hand makes of a file.
func damages() map[string]func(path string) error {
	return map[string]func(string) error{
		"is cut off": func(path string) error { return os.Truncate(path, 20) },
		"is empty":   func(path string) error { return os.Truncate(path, 0) },
		"is gone":    os.RemoveAll,
		"is another": func(path string) error { return os.WriteFile(path, []byte("{}\n-----BEGIN"), 0o600) },
		"is a folder": func(path string) error {
			return errors.Join(os.RemoveAll(path), os.MkdirAll(filepath.Join(path, "folder"), 0o700))
		},
		"leads nowhere": func(path string) error { return errors.Join(os.RemoveAll(path), os.Symlink("nowhere", path)) },
		"leads to itself": func(path string) error {
			return errors.Join(os.RemoveAll(path), os.Symlink(filepath.Base(path), path))
		},
	}
}

// Whatever is damaged, a reset can be had, and a gateway that works after it.
func TestAResetLeadsBackFromAnyDamage(t *testing.T) {
	b := newBox(t, tpm.P256)
	ours := func(name ...string) string { return filepath.Join(append([]string{Home(b.config)}, name...)...) }
	for _, c := range []struct {
		file string
		have func() string // a folder has no ends to cut off
	}{
		{"the note of the TPM", func() string { return ours(keystore.FingerprintFile) }},
		{"the key in use", func() string { return ours(Device, keystore.Current, "key.pem") }},
		{"its request", func() string { return ours(Device, keystore.Current, "request.pem") }},
		{"its certificate", func() string { return ours(Device, keystore.Current, "chain.pem") }},
		{"the key that waits", func() string { return ours(Device, keystore.Next, "key.pem") }},
		{"the attestation key", func() string { return ours("attestation.pem") }},
		{"the lock", func() string { return ours(Device, "lock") }},
		{"the slot", func() string { return ours(Device, keystore.Current) }},
		{"the store", func() string { return ours(Device) }},
		{"the folder of the stores", func() string { return ours() }},
	} {
		for damage, do := range damages() {
			t.Run(c.file+" "+damage, func(t *testing.T) {
				b.t = t
				b.enroll()
				if _, err := b.NewKey(b.ctx()); err != nil {
					t.Fatal(err)
				}
				write := os.WriteFile(ours("attestation.pem"), must(b.TPM.AttestationKey(b.ctx()))(t), 0o600)
				path := c.have()
				if info := must(os.Stat(path))(t); info.IsDir() {
					write = errors.Join(write, os.RemoveAll(path), os.WriteFile(path, []byte("a file, and no folder of ours"), 0o600))
				}
				if err := errors.Join(write, do(path)); err != nil {
					t.Fatal(err)
				}
				b.openBy(OpenAnyTPM)
				if _, err := b.Reset(); err != nil {
					t.Fatal("reset: ", err)
				}
				b.open()
				if o := b.init(); !o.Changed {
					t.Errorf("after the reset: %+v", o)
				}
				if err := b.unchanged(func() (Outcome, error) { return b.Init(b.ctx()) }); err != nil {
					t.Error("once more: ", err)
				}
				b.has(b.enrolled(), tpm.P256)
				if _, err := b.Reset(); err != nil {
					t.Fatal(err)
				}
				b.open()
			})
		}
	}
}

// enrolled is the current slot after the certificate for the key that waits came.
func (b *box) enrolled() *keystore.Slot {
	b.t.Helper()
	if _, err := b.Install(encode(b.issue())); err != nil {
		b.t.Fatal(err)
	}
	return b.slots().Current
}
