package tpm

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	keyfile "github.com/foxboron/go-tpm-keyfiles"
	"github.com/google/go-tpm/tpm2"

	"github.com/bedside-gateway/gatewayd/internal/sim/swtpm"
)

// parentByTools makes the storage key by tpm2-tools, from what the
// specification of TSS2 key files says of it.
func parentByTools(t testing.TB, e *swtpm.Emulator, dir string) {
	t.Helper()
	write(t, filepath.Join(dir, "unique"), make([]byte, 4)) // two sizes of nothing
	tool(t, e, dir, "tpm2_createprimary", "-C", "o", "-g", "sha256", "-G", "ecc256:aes128cfb", "-c", "parent.ctx", "-u", "unique",
		"-a", "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|decrypt")
	tool(t, e, dir, "tpm2_flushcontext", "-t")
}

var attributes = regexp.MustCompile(`(?m)^attributes:\n  value: (\S+)`)

func TestToolsReadTheKeyAndSeeWhatWasPromised(t *testing.T) {
	t.Parallel()
	for _, start := range []struct {
		name  string
		kinds []Kind
		on    func() *swtpm.Emulator
	}{
		{"unix", kinds, func() *swtpm.Emulator { return emulator(t) }},
		{"tcp", nil, func() *swtpm.Emulator { return started(t, folder(t), swtpm.StartTCP) }},
	} {
		t.Run(start.name, func(t *testing.T) {
			e, dir := start.on(), t.TempDir()
			d := open(t, e, Options{})
			files := map[string][]byte{"attestation key": must(d.AttestationKey(t.Context()))(t),
				"bound": must(d.Create(t.Context(), P256, &Binding{Signer: signer(t).Public()}))(t)}
			for _, kind := range start.kinds {
				files[string(kind)] = create(t, d, kind)
			}
			d.Close()
			parentByTools(t, e, dir)
			for name, text := range files {
				f := must(parse(text, keyfile.OIDLoadableKey))(t)
				write(t, filepath.Join(dir, "pub"), tpm2.Marshal(tpm2.New2B(f.public)))
				write(t, filepath.Join(dir, "priv"), tpm2.Marshal(f.private))
				tool(t, e, dir, "tpm2_load", "-C", "parent.ctx", "-u", "pub", "-r", "priv", "-c", "key.ctx")
				out := tool(t, e, dir, "tpm2_readpublic", "-c", "key.ctx", "-f", "pem", "-o", "key.pem")
				tool(t, e, dir, "tpm2_flushcontext", "-t")
				want := map[string]string{"attestation key": "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|sign",
					"bound": "fixedtpm|fixedparent|sensitivedataorigin|noda|sign"}[name]
				if want == "" {
					want = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|sign"
				}
				if m := attributes.FindSubmatch(out); m == nil || string(m[1]) != want {
					t.Errorf("%s: want %s, tpm2_readpublic says\n%s", name, want, out)
				}
				write(t, filepath.Join(dir, "key.tss"), text) // as it is: the program makes the storage key by itself
				tool(t, e, dir, "tpm2_load", "-r", "key.tss", "-c", "key.ctx", "-n", "name")
				tool(t, e, dir, "tpm2_flushcontext", "-t")
				if got := read(t, filepath.Join(dir, "name")); !bytes.Equal(got, f.name.Buffer) {
					t.Errorf("%s: tpm2_load loads %x", name, got)
				}
				block, _ := pem.Decode(read(t, filepath.Join(dir, "key.pem")))
				if ours := must(x509.MarshalPKIXPublicKey(must(publicKey(&f.public))(t)))(t); !bytes.Equal(ours, block.Bytes) {
					t.Errorf("%s: another public key", name)
				}
			}
		})
	}
}

// tpm2-openssl reads our files as they are.
func TestOpenSSLSignsWithOurKeyFile(t *testing.T) {
	t.Parallel()
	e, dir := emulator(t), t.TempDir()
	d := open(t, e, Options{})
	hash := map[Kind]string{P256: "-sha256", P384: "-sha384", RSA2048: "-sha256"}
	files := map[Kind][]byte{}
	for _, kind := range kinds {
		files[kind] = create(t, d, kind)
	}
	d.Close()
	write(t, filepath.Join(dir, "message"), []byte("a message"))
	for _, kind := range kinds {
		t.Run(string(kind), func(t *testing.T) {
			write(t, filepath.Join(dir, "key.pem"), files[kind])
			public := tool(t, e, dir, "openssl", "pkey", "-provider", "tpm2", "-provider", "default", "-in", "key.pem", "-pubout")
			block, _ := pem.Decode(public)
			if block == nil {
				t.Fatalf("%s", public)
			}
			ours := must(x509.MarshalPKIXPublicKey(must(PublicKey(files[kind]))(t)))(t)
			if !bytes.Equal(ours, block.Bytes) {
				t.Errorf("it has the public key\n%s", public)
			}
			write(t, filepath.Join(dir, "public.pem"), public)
			tool(t, e, dir, "openssl", "dgst", "-provider", "tpm2", "-provider", "default", "-propquery", "?provider=tpm2", hash[kind], "-sign", "key.pem", "-out", "signature", "message")
			tool(t, e, dir, "openssl", "dgst", hash[kind], "-verify", "public.pem", "-signature", "signature", "message")
		})
	}
}

// A key that tpm2-openssl 1.1 makes hangs on the same storage key. It is not
// exempt from the lockout, which that program has no option for, and so is
// refused by name, as are those that have a password or too few bits.
func TestAKeyOfOpenSSLIsRefusedByName(t *testing.T) {
	t.Parallel()
	e, dir := emulator(t), t.TempDir()
	made := map[string][]string{
		"p256": {"-algorithm", "EC", "-pkeyopt", "group:P-256"}, "p384": {"-algorithm", "EC", "-pkeyopt", "group:P-384"},
		"rsa": {"-algorithm", "RSA", "-pkeyopt", "bits:2048"}, "password": {"-algorithm", "EC", "-pkeyopt", "group:P-256", "-pkeyopt", "user-auth:secret"}}
	for name, args := range made {
		tool(t, e, dir, "openssl", append([]string{"genpkey", "-provider", "tpm2", "-provider", "default", "-out", name}, args...)...)
	}
	d := open(t, e, Options{})
	for name := range made {
		text := read(t, filepath.Join(dir, name))
		_, err := d.Load(t.Context(), text)
		if name == "password" {
			wantFault(t, err, Foreign)
			continue
		}
		wantFault(t, err, Unable)
		if !strings.Contains(err.Error(), "noDA") {
			t.Error(err)
		}
		f := must(parse(text, keyfile.OIDLoadableKey))(t)
		if err := d.use(t.Context(), "load it", func(l *link) error {
			parent := must(l.parent())(t)
			defer l.flush(parent.handle)
			o, err := l.load(parent, f)
			if err == nil {
				l.flush(o.handle)
			}
			return err
		}); err != nil {
			t.Errorf("%s hangs on another storage key: %v", name, err)
		}
	}
}

// A key of tpm2-tools that is as ours are is as good as ours; the tools' own
// wishes otherwise are refused by name.
func TestAKeyOfToolsIsLoadedOrRefusedByName(t *testing.T) {
	t.Parallel()
	e, dir := emulator(t), t.TempDir()
	parentByTools(t, e, dir)
	make := func(algorithm, attributes string, more ...string) []byte {
		t.Helper()
		tool(t, e, dir, "tpm2_create", append([]string{"-C", "parent.ctx", "-G", algorithm, "-u", "pub", "-r", "priv", "-a", attributes}, more...)...)
		tool(t, e, dir, "tpm2_flushcontext", "-t")
		public := must(tpm2.Unmarshal[tpm2.TPM2BPublic](read(t, filepath.Join(dir, "pub"))))(t)
		private := must(tpm2.Unmarshal[tpm2.TPM2BPrivate](read(t, filepath.Join(dir, "priv"))))(t)
		return encode(keyfile.OIDLoadableKey, *public, *private)
	}
	const good = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|sign"
	files := map[string]struct {
		text []byte
		want Fault
	}{
		"as ours":            {make("ecc256:ecdsa-sha256:null", good), ""},
		"with an open hash":  {make("ecc384:null:null", good), ""},
		"of RSA":             {make("rsa2048:null:null", good), ""},
		"that also decrypts": {make("rsa2048:null:null", good+"|decrypt"), ""},
		"tied to PKCS1":      {make("rsa2048:rsassa-sha256:null", good), ""},
		"of 1024 bits":       {make("rsa1024:null:null", good), Unable},
		"that decrypts only": {make("ecc256:null:null", strings.Replace(good, "sign", "decrypt", 1)), Unable},
		"without noDA":       {make("ecc256:null:null", strings.Replace(good, "|noda", "", 1)), Unable},
		"with a password":    {make("ecc256:null:null", good, "-p", "secret"), Foreign},
		"tied to SHA-1":      {make("ecc256:ecdsa-sha1:null", good), Unable},
	}
	d := open(t, e, Options{})
	for name, c := range files {
		t.Run(name, func(t *testing.T) {
			k, err := d.Load(t.Context(), c.text)
			if c.want != "" {
				wantFault(t, err, c.want)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if name == "tied to PKCS1" {
				if got := k.Algorithms(); len(got) != 1 || got[0] != tls.PKCS1WithSHA256 {
					t.Errorf("it does %v", got)
				}
			} else if err := sign(k); err != nil {
				t.Error(err)
			}
			k.Release(t.Context())
		})
	}
}
