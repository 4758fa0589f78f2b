package enroll

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io/fs"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"go.uber.org/goleak"

	"github.com/bedside-gateway/gatewayd/internal/config"
	"github.com/bedside-gateway/gatewayd/internal/sim/pki"
	"github.com/bedside-gateway/gatewayd/internal/sim/swtpm"
	"github.com/bedside-gateway/gatewayd/keystore"
	"github.com/bedside-gateway/gatewayd/keystore/tpm"
)

func TestMain(m *testing.M) {
	if os.Getenv(remembers) != "" {
		os.Exit(remember())
	}
	goleak.VerifyTestMain(m)
}

var hospital = sync.OnceValues(func() (*pki.PKI, error) { return pki.New(pki.Options{}) })

// A box is a gateway with a TPM, before it is enrolled.
type box struct {
	*Applicant
	t        *testing.T
	config   *config.Config
	emulator *swtpm.Emulator // nil where somebody else runs it
	pki      *pki.PKI
	now      time.Time // of its clock
}

func newBox(t *testing.T, kind tpm.Kind) *box {
	t.Helper()
	b := bare(t, kind)
	b.power()
	b.open()
	return b
}

// bare is a box without its TPM.
func bare(t *testing.T, kind tpm.Kind) *box {
	t.Helper()
	b := &box{t: t, now: time.Now(), config: &config.Config{}}
	b.config.Gateway.StateDir, b.config.Gateway.EUI64 = filepath.Join(t.TempDir(), "state"), pki.DefaultDevice
	b.config.Identity.KeyType = string(kind)
	b.pki = must(hospital())(t)
	t.Cleanup(b.shut)
	return b
}

// power gives the box a TPM that is new.
func (b *box) power() {
	b.t.Helper()
	dir, err := os.MkdirTemp("", "tpm") // the path of a socket is short
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { os.RemoveAll(dir) })
	b.emulator, err = swtpm.Start(b.t.Context(), dir)
	if errors.Is(err, swtpm.ErrMissing) && os.Getenv("NEED_SWTPM") == "" {
		b.t.Skip(err)
	}
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(b.emulator.Stop)
	b.config.Identity.TPM = b.emulator.Address()
}

// open is what each command does first.
func (b *box) open() {
	b.t.Helper()
	b.openBy(OpenTPM)
}

func (b *box) openBy(way func(*config.Config, tpm.Options) (*tpm.TPM, error)) {
	b.t.Helper()
	b.shut()
	d, err := way(b.config, tpm.Options{Command: 10 * time.Second})
	if err != nil {
		b.t.Fatal(err)
	}
	if b.Applicant, err = New(b.config, Device, d, func() time.Time { return b.now }); err != nil {
		b.t.Fatal(err)
	}
}

func (b *box) shut() {
	if b.Applicant != nil {
		_ = b.TPM.Close()
	}
}

// clearTPM is what the owner of the platform can do at any time.
func (b *box) clearTPM() {
	b.t.Helper()
	b.shut()
	c, err := net.Dial("unix", strings.TrimPrefix(b.emulator.Address(), "unix:"))
	if err != nil {
		b.t.Fatal(err)
	}
	defer c.Close()
	if _, err := (tpm2.Clear{AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHLockout, Auth: tpm2.PasswordAuth(nil)}}).Execute(transport.FromReadWriter(c)); err != nil {
		b.t.Fatal(err)
	}
	b.open()
}

// exchangeTPM solders another one in.
func (b *box) exchangeTPM() {
	b.t.Helper()
	b.shut()
	b.emulator.Stop()
	b.power()
	b.open()
}

// tool runs a program at the TPM, which has no other user meanwhile.
func (b *box) tool(name string, args ...string) []byte {
	b.t.Helper()
	if _, err := exec.LookPath(name); err != nil && os.Getenv("NEED_SWTPM") == "" {
		b.t.Skip(err)
	}
	b.shut()
	defer b.open()
	ctx, cancel := context.WithTimeout(b.t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "TPM2TOOLS_TCTI=swtpm:path="+strings.TrimPrefix(b.emulator.Address(), "unix:"), "TSS2_LOG=all+none")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		b.t.Fatalf("%s %v: %v\n%s", name, args, err, stderr.Bytes())
	}
	return out
}

func (b *box) ctx() context.Context { return b.t.Context() }

// init runs Init.
func (b *box) init() Outcome {
	b.t.Helper()
	return must(b.Init(b.ctx()))(b.t)
}

// key is the one that a certificate is wanted for next.
func (b *box) key() crypto.PublicKey {
	b.t.Helper()
	csr, err := parseRequest(must(b.Request(b.ctx()))(b.t))
	if err != nil {
		b.t.Fatal(err)
	}
	return csr.PublicKey
}

// issue has the hospital's CA issue a certificate for the next key.
func (b *box) issue() []*x509.Certificate {
	b.t.Helper()
	return must(b.pki.IssueDevice("ecc-issuing", b.key(), pki.DefaultDevice, b.now, pki.DefaultLifetime))(b.t)
}

func (b *box) enroll() []*x509.Certificate {
	b.t.Helper()
	b.init()
	chain := b.issue()
	if o := must(b.Install(encode(chain)))(b.t); !o.Changed {
		b.t.Fatalf("%+v", o)
	}
	return chain
}

func (b *box) slots() keystore.Slots {
	b.t.Helper()
	return must(b.Store.Read())(b.t)
}

// unchanged runs a step that must leave every file as it is.
func (b *box) unchanged(step func() (Outcome, error)) error {
	b.t.Helper()
	before := b.files()
	o, err := step()
	if after := b.files(); o.Changed || !maps.Equal(before, after) {
		b.t.Errorf("the store was changed: %+v %v\n%v\n%v", o, err, slices.Sorted(maps.Keys(before)), slices.Sorted(maps.Keys(after)))
	}
	return err
}

// files are what is below the folder of the stores, byte for byte.
func (b *box) files() map[string]string {
	b.t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(b.Home, func(path string, d fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil:
			return err
		case d.Type() == fs.ModeSymlink:
			all[path], err = os.Readlink(path)
		case d.IsDir():
			all[path] = "a folder"
		default:
			var text []byte
			text, err = os.ReadFile(path)
			all[path] = string(text)
		}
		return err
	})
	if err != nil {
		b.t.Fatal(err)
	}
	return all
}

// signs makes sure that a slot works in TLS: its key signs for its certificate.
func (b *box) signs(s *keystore.Slot) {
	b.t.Helper()
	if _, err := b.Identity(s); err != nil {
		b.t.Fatal(err)
	}
	if err := b.try(b.ctx(), s); err != nil {
		b.t.Fatal(err)
	}
}

// entry is a certificate of the PKI.
func (b *box) entry(name string) *x509.Certificate {
	b.t.Helper()
	return must(b.pki.Find(name))(b.t).Certificate
}

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func wantFault(t *testing.T, err error, want tpm.Fault) {
	t.Helper()
	if tpm.FaultOf(err) != want {
		t.Fatalf("want the fault %s, got %v", want, err)
	}
}

func wantError(t *testing.T, err error, word string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), word) {
		t.Errorf("want an error with %q, got %v", word, err)
	}
}

func inPEM(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

func write(t *testing.T, name string, text []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func reversed(chain []*x509.Certificate) []*x509.Certificate {
	r := slices.Clone(chain)
	slices.Reverse(r)
	return r
}
