package tpm

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/pem"
	"path/filepath"
	"testing"

	keyfile "github.com/foxboron/go-tpm-keyfiles"
	"github.com/google/go-tpm/tpm2"
)

func clearKeys(t testing.TB) map[Kind]crypto.Signer {
	t.Helper()
	return map[Kind]crypto.Signer{P256: signer(t), P384: must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))(t), RSA2048: must(rsa.GenerateKey(rand.Reader, 2048))(t)}
}

func TestAWrappedKeyIsImportedAndSigns(t *testing.T) {
	t.Parallel()
	d, another := open(t, emulator(t), Options{}), open(t, emulator(t), Options{})
	parent := must(d.Parent(t.Context()))(t)
	for kind, clear := range clearKeys(t) {
		t.Run(string(kind), func(t *testing.T) {
			wrapped := must(Wrap(parent, clear))(t)
			k := must(d.Load(t.Context(), must(d.Import(t.Context(), wrapped))(t)))(t)
			if !k.Public().(interface{ Equal(crypto.PublicKey) bool }).Equal(clear.Public()) {
				t.Error("it is another key")
			}
			if err := sign(k); err != nil {
				t.Error(err)
			}
			k.Release(t.Context())
			_, err := another.Import(t.Context(), wrapped)
			wantFault(t, err, Astray)
			wantAdvice(t, err, "gatewayd enroll import --parent")
			_, err = d.Load(t.Context(), wrapped)
			wantFault(t, err, Tampered) // it is still to be imported
		})
	}
}

func TestAWrappedFileThatWasChangedIsRefused(t *testing.T) {
	t.Parallel()
	d, clear := open(t, emulator(t), Options{}), signer(t)
	block, _ := pem.Decode(must(Wrap(must(d.Parent(t.Context()))(t), clear))(t))
	refused := 0
	for i := range block.Bytes {
		der := bytes.Clone(block.Bytes)
		der[i] ^= 4
		text, err := d.Import(t.Context(), pem.EncodeToMemory(&pem.Block{Type: FileType, Bytes: der}))
		if err == nil {
			public, err := PublicKey(text)
			if err != nil || !public.(*ecdsa.PublicKey).Equal(clear.Public()) {
				t.Errorf("byte %d: another key, %v", i, err)
			}
			continue
		}
		switch FaultOf(err) {
		case Astray, Foreign, Tampered:
			wantAdvice(t, err, "gatewayd enroll import --parent")
		case Unable:
		default:
			t.Errorf("byte %d: %v", i, err)
		}
		refused++
	}
	if refused < len(block.Bytes)*8/10 {
		t.Errorf("only %d of %d changes were noticed", refused, len(block.Bytes))
	}
}

func TestWhatCannotBeWrapped(t *testing.T) {
	d := open(t, emulator(t), Options{})
	parent := must(d.Parent(t.Context()))(t)
	device := must(parse(create(t, d, P256), keyfile.OIDLoadableKey))(t)
	short := must(rsa.GenerateKey(rand.Reader, 3072))(t)
	long := must(ecdsa.GenerateKey(elliptic.P521(), rand.Reader))(t)
	for name, c := range map[string]struct {
		parent []byte
		key    crypto.Signer
	}{
		"a key on P-521":        {parent, long},
		"RSA of 3072 bits":      {parent, short},
		"a key in the TPM":      {parent, load(t, d, P256)},
		"to nothing":            {nil, signer(t)},
		"to a signing key":      {pem.EncodeToMemory(&pem.Block{Type: ParentType, Bytes: tpm2.Marshal(device.public)}), signer(t)},
		"to half a storage key": {pem.EncodeToMemory(&pem.Block{Type: ParentType, Bytes: []byte{0, 0x23, 0}}), signer(t)},
	} {
		if _, err := Wrap(c.parent, c.key); err == nil {
			t.Errorf("%s is wrapped", name)
		}
	}
}

// What tpm2_duplicate wraps on one TPM for the storage key of another is an
// importable key file as well.
func TestAKeyThatToolsWrappedIsImported(t *testing.T) {
	source, target := emulator(t), emulator(t)
	d := open(t, target, Options{})
	block, _ := pem.Decode(must(d.Parent(t.Context()))(t))
	dir := t.TempDir()
	area := must(tpm2.Unmarshal[tpm2.TPMTPublic](block.Bytes))(t)
	write(t, filepath.Join(dir, "target.pub"), tpm2.Marshal(tpm2.New2B(*area)))
	parentByTools(t, source, dir)
	tools := func(name string, args ...string) { tool(t, source, dir, name, args...) }
	tools("tpm2_startauthsession", "-S", "trial.ctx")
	tools("tpm2_policycommandcode", "-S", "trial.ctx", "-L", "duplicate.policy", "TPM2_CC_Duplicate")
	tools("tpm2_flushcontext", "trial.ctx")
	tools("tpm2_create", "-C", "parent.ctx", "-G", "ecc256:ecdsa-sha256:null", "-L", "duplicate.policy", "-u", "pub", "-r", "priv",
		"-a", "sensitivedataorigin|userwithauth|noda|sign")
	tools("tpm2_flushcontext", "-t")
	tools("tpm2_load", "-C", "parent.ctx", "-u", "pub", "-r", "priv", "-c", "key.ctx")
	tools("tpm2_flushcontext", "-t")
	tools("tpm2_loadexternal", "-C", "n", "-u", "target.pub", "-c", "target.ctx")
	tools("tpm2_flushcontext", "-t")
	tools("tpm2_startauthsession", "--policy-session", "-S", "session.ctx")
	tools("tpm2_policycommandcode", "-S", "session.ctx", "TPM2_CC_Duplicate")
	tools("tpm2_duplicate", "-C", "target.ctx", "-c", "key.ctx", "-G", "null", "-p", "session:session.ctx", "-r", "dup.priv", "-s", "dup.seed")
	public := must(tpm2.Unmarshal[tpm2.TPM2BPublic](read(t, filepath.Join(dir, "pub"))))(t)
	private := must(tpm2.Unmarshal[tpm2.TPM2BPrivate](read(t, filepath.Join(dir, "dup.priv"))))(t)
	secret := must(tpm2.Unmarshal[tpm2.TPM2BEncryptedSecret](read(t, filepath.Join(dir, "dup.seed"))))(t)
	loadable, err := d.Import(t.Context(), encode(keyfile.OIDImportableKey, *public, *private, keyfile.WithSecret(*secret)))
	if err != nil {
		t.Fatal(err)
	}
	k, err := d.Load(t.Context(), loadable) // its policy is for duplication; it is used without a password
	if err != nil {
		t.Fatal(err)
	}
	if err := sign(k); err != nil {
		t.Error(err)
	}
}
