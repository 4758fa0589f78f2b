package keyfile

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/bedside-gateway/gatewayd/internal/sim/pki"
	"github.com/bedside-gateway/gatewayd/keystore"
)

var hospital = sync.OnceValue(func() *pki.PKI {
	p, err := pki.New(pki.Options{})
	if err != nil {
		panic(err)
	}
	return p
})

func encode(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

// files are the certificates and the key of an identity, as PEM.
func files(t *testing.T, name string) (chain []string, key string) {
	t.Helper()
	id, err := hospital().Identity(name)
	if err != nil {
		t.Fatal(err)
	}
	for _, der := range id.Certificate {
		chain = append(chain, encode("CERTIFICATE", der))
	}
	return chain, pkcs8(t, id.PrivateKey)
}

func pkcs8(t *testing.T, key crypto.PrivateKey) string {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return encode("PRIVATE KEY", der)
}

func write(t *testing.T, name, text string, mode os.FileMode) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
	return path
}

// rsaDevice is the device's certificate for an RSA key, made here: a whole
// hospital of RSA keys takes seconds.
func rsaDevice(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	device, err := hospital().Find("device")
	if err != nil {
		t.Fatal(err)
	}
	ca, err := hospital().Find("ecc-issuing")
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, device.Certificate, ca.Certificate, key.Public(), ca.Key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der, ca.Certificate.Raw}, PrivateKey: key, Leaf: leaf}
}

func TestLoadTakesEveryKindOfKeyFile(t *testing.T) {
	ecc, err := hospital().Identity("device")
	if err != nil {
		t.Fatal(err)
	}
	for name, id := range map[string]tls.Certificate{"ECC": ecc, "RSA": rsaDevice(t)} {
		forms := map[string]string{"PKCS 8": pkcs8(t, id.PrivateKey)}
		switch k := id.PrivateKey.(type) {
		case *ecdsa.PrivateKey:
			der, err := x509.MarshalECPrivateKey(k)
			if err != nil {
				t.Fatal(err)
			}
			forms["SEC 1 behind parameters"] = encode("EC PARAMETERS", []byte{6, 8, 42, 134, 72, 206, 61, 3, 1, 7}) + encode("EC PRIVATE KEY", der)
		case *rsa.PrivateKey:
			forms["PKCS 1"] = encode("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(k))
		}
		chain := encode("CERTIFICATE", id.Certificate[0]) + "and between\n" + encode("CERTIFICATE", id.Certificate[1])
		for form, key := range forms {
			for _, mode := range []os.FileMode{0o600, 0o400} {
				t.Run(name+" "+form+" "+mode.String(), func(t *testing.T) {
					got, err := Load(write(t, "cert.pem", "some text that openssl writes\n"+chain, 0o644), write(t, "key.pem", key, mode))
					if err != nil {
						t.Fatal(err)
					}
					if len(got.Certificate) != 2 || got.Leaf == nil || !got.Leaf.Equal(id.Leaf) {
						t.Errorf("%d certificates, leaf %v", len(got.Certificate), got.Leaf)
					}
					if !keystore.Matches(got.PrivateKey.(crypto.Signer).Public(), id.Leaf) {
						t.Error("another key")
					}
				})
			}
		}
	}
}

func TestLoadRefuses(t *testing.T) {
	chain, key := files(t, "device")
	_, otherKey := files(t, "device-expired")
	both := chain[0] + chain[1]
	p521, _ := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	_, ed, _ := ed25519.GenerateKey(rand.Reader)
	t.Setenv("GODEBUG", "rsa1024min=0")
	small, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, cert, key string
		mode            os.FileMode
		want            string
	}{
		{"a key that the group can read", both, key, 0o640, "has the mode 0640"},
		{"a key that all can read", both, key, 0o644, "has the mode 0644"},
		{"a key that others can write", both, key, 0o602, "has the mode 0602"},
		{"a key that can be run", both, key, 0o700, "has the mode 0700"},
		{"the key of another certificate", both, otherKey, 0o600, "is not that of the first certificate"},
		{"the chain upside down", chain[1] + chain[0], key, 0o600, "is not the issuer of certificate 1"},
		{"no certificate", "", key, 0o600, "no PEM block"},
		{"a key among the certificates", both + key, key, 0o600, `PEM block 3 is a "PRIVATE KEY"`},
		{"a damaged second certificate", chain[0] + strings.Replace(chain[1], "\n", "\n!", 1), key, 0o600, "1 of its 2 PEM blocks are damaged"},
		{"a certificate that is none", encode("CERTIFICATE", []byte("x")), key, 0o600, "certificate 1 cannot be read"},
		{"no key", both, "", 0o600, "no PEM block"},
		{"a certificate in place of the key", both, both, 0o600, `it holds a "CERTIFICATE"`},
		{"parameters alone", both, encode("EC PARAMETERS", []byte{5, 0}), 0o600, "it holds no key"},
		{"two keys", both, key + otherKey, 0o600, "more than one key"},
		{"an encrypted key", both, encode("ENCRYPTED PRIVATE KEY", []byte("x")), 0o600, "encrypted"},
		{"a key encrypted the old way", both, "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\neA==\n-----END RSA PRIVATE KEY-----\n", 0o600, "encrypted"},
		{"a key of a TPM", both, encode("TSS2 PRIVATE KEY", []byte("x")), 0o600, "TPM"},
		{"a damaged key", both, encode("PRIVATE KEY", []byte("secret")), 0o600, "damaged"},
		{"a curve of 521 bits", both, pkcs8(t, p521), 0o600, "P-521"},
		{"an Ed25519 key", both, pkcs8(t, ed), 0o600, "another kind"},
		{"an RSA key of 1024 bits", both, pkcs8(t, small), 0o600, "1024 bits"},
		{"a huge file", both, key + strings.Repeat("x", maxFile), 0o600, "more than"},
	} {
		t.Run(c.name, func(t *testing.T) {
			certFile, keyFile := write(t, "cert.pem", c.cert, 0o644), write(t, "key.pem", c.key, c.mode)
			_, err := Load(certFile, keyFile)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("the error is %v, without %q", err, c.want)
			}
			if !strings.Contains(err.Error(), certFile) && !strings.Contains(err.Error(), keyFile) {
				t.Errorf("%v names no file", err)
			}
			if strings.Contains(err.Error(), "secret") {
				t.Errorf("%v quotes the key", err)
			}
		})
	}
}

func TestLoadRefusesWhatIsNoFile(t *testing.T) {
	chain, key := files(t, "device")
	certFile := write(t, "cert.pem", strings.Join(chain, ""), 0o644)
	pipe := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ name, path, want string }{
		{"a pipe", pipe, "no regular file"},
		{"a directory", t.TempDir(), "no regular file"},
		{"nothing", filepath.Join(t.TempDir(), "none"), "no such file"},
	} {
		if _, err := Load(certFile, c.path); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	// A link to a good file is as good as the file.
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(write(t, "key.pem", key, 0o600), link); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(certFile, link); err != nil {
		t.Error(err)
	}
}

func TestAnotherUsersKeyIsRefused(t *testing.T) {
	if err := ownedBy(1000, 0); err == nil || !strings.Contains(err.Error(), "1000") {
		t.Error(err)
	}
	for _, owner := range []uint32{0, 1000} {
		if err := ownedBy(owner, 1000); err != nil {
			t.Errorf("owner %d: %v", owner, err)
		}
	}
}

// What openssl makes is loaded.
func TestLoadTakesWhatOpenSSLMakes(t *testing.T) {
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Skip("openssl is not installed")
	}
	dir := t.TempDir()
	for _, args := range [][]string{
		{"ecparam", "-name", "prime256v1", "-genkey", "-out", "key.pem"},
		{"req", "-new", "-x509", "-key", "key.pem", "-subj", "/CN=0123456789ABCDEF", "-days", "1", "-out", "cert.pem"},
	} {
		cmd := exec.Command("openssl", args...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	if _, err := Load(filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")); err != nil {
		t.Error(err)
	}
}

// No text makes the parsers panic, and what they take can be used.
func FuzzPEM(f *testing.F) {
	id, err := hospital().Identity("device")
	if err != nil {
		f.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(id.PrivateKey)
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(encode("CERTIFICATE", id.Certificate[0]) + encode("CERTIFICATE", id.Certificate[1])))
	f.Add([]byte(encode("PRIVATE KEY", der)))
	f.Add([]byte(encode("EC PARAMETERS", []byte{5, 0})))
	f.Add([]byte("-----BEGIN -----BEGIN CERTIFICATE-----\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		if chain, err := keystore.Chain(text); err == nil && len(chain) == 0 {
			t.Fatal("a chain of nothing")
		}
		if key, err := parseKey(text); err == nil {
			if _, err := usable(key); err != nil {
				t.Fatal(err)
			}
		}
	})
}
