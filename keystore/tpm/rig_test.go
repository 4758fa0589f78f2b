package tpm

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"go.uber.org/goleak"

	"github.com/bedside-gateway/gatewayd/internal/sim/swtpm"
)

func TestMain(m *testing.M) {
	if os.Getenv(remembers) != "" {
		os.Exit(remember())
	}
	goleak.VerifyTestMain(m)
}

// emulator starts a TPM for a test.
func emulator(t testing.TB) *swtpm.Emulator {
	t.Helper()
	return started(t, folder(t), swtpm.Start)
}

// folder is one whose path leaves room for a socket's name.
func folder(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "tpm")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func started(t testing.TB, dir string, start func(context.Context, string) (*swtpm.Emulator, error)) *swtpm.Emulator {
	t.Helper()
	e, err := start(t.Context(), dir)
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

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func create(t testing.TB, d *TPM, kind Kind) []byte {
	t.Helper()
	return must(d.Create(t.Context(), kind, nil))(t)
}

func load(t testing.TB, d *TPM, kind Kind) *Key {
	t.Helper()
	return must(d.Load(t.Context(), create(t, d, kind)))(t)
}

// sign makes a signature as TLS has it made, and verifies it.
func sign(k *Key) error {
	for _, a := range candidates(k.public) {
		if err := k.try(context.Background(), a); err != nil {
			return err
		}
	}
	return nil
}

func wantFault(t testing.TB, err error, want Fault) {
	t.Helper()
	e, ok := errors.AsType[*Error](err)
	if !ok || e.Fault != want {
		t.Fatalf("want the fault %s, got %v", want, err)
	}
	if e.Next() == "" || !strings.HasSuffix(err.Error(), "; "+e.Next()) {
		t.Fatalf("no next step in %v", err)
	}
}

// wantAdvice wants a next step, and none that gives up what is in order.
func wantAdvice(t testing.TB, err error, want string) {
	t.Helper()
	e, ok := errors.AsType[*Error](err)
	if !ok || !strings.Contains(e.Next(), want) {
		t.Fatalf("no %q in %v", want, err)
	}
	if want != Anew && want != AnewWithout && strings.Contains(err.Error(), "enroll reset") {
		t.Fatalf("it gives up what is in order: %v", err)
	}
}

// raw is the TPM in the hands of somebody else: package tpm2 and nothing of ours.
func raw(t testing.TB, e *swtpm.Emulator) (transport.TPM, net.Conn) {
	t.Helper()
	network, address, _ := strings.Cut(e.Address(), ":")
	c, err := net.Dial(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return transport.FromReadWriter(c), c
}

// inHand is the link of a TPM that has no user, for one of the tests.
func (t *TPM) inHand() *link {
	t.link.ctx = context.Background()
	return t.link
}

// handlesOf lists what is loaded: transient objects and sessions.
func handlesOf(t testing.TB, of transport.TPM) (objects, sessions int) {
	t.Helper()
	count := func(kind tpm2.TPMHT) int {
		r := must(tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: uint32(kind) << 24, PropertyCount: 64}.Execute(of))(t)
		return len(must(r.CapabilityData.Data.Handles())(t).Handle)
	}
	return count(tpm2.TPMHTTransient), count(loadedSessions) + count(savedSessions)
}

// tool runs a program of tpm2-tools or OpenSSL at the TPM, which must have no other user.
func tool(t testing.TB, e *swtpm.Emulator, dir, name string, args ...string) []byte {
	t.Helper()
	out, err := tryTool(t, e, dir, name, args...)
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return out
}

func tryTool(t testing.TB, e *swtpm.Emulator, dir, name string, args ...string) ([]byte, error) {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil && os.Getenv("NEED_SWTPM") == "" {
		t.Skip(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "TPM2TOOLS_TCTI="+tcti(e), "TPM2OPENSSL_TCTI="+tcti(e), "TSS2_LOG=all+none")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		out = append(out, stderr.Bytes()...)
	}
	return out, err
}

func tcti(e *swtpm.Emulator) string {
	if path, ok := strings.CutPrefix(e.Address(), "unix:"); ok {
		return "swtpm:path=" + path
	}
	host, port, _ := net.SplitHostPort(strings.TrimPrefix(e.Address(), "tcp:"))
	return "swtpm:host=" + host + ",port=" + port
}

func signer(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	return must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
}

func read(t testing.TB, name string) []byte {
	t.Helper()
	return must(os.ReadFile(name))(t)
}

func write(t testing.TB, name string, text []byte) {
	t.Helper()
	if err := os.WriteFile(name, text, 0o600); err != nil {
		t.Fatal(err)
	}
}

func writePublic(t testing.TB, name string, key crypto.PublicKey) {
	t.Helper()
	der := must(x509.MarshalPKIXPublicKey(key))(t)
	write(t, name, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
}

func nameOf(t testing.TB, p *tpm2.TPMTPublic) []byte {
	t.Helper()
	return must(tpm2.ObjectName(p))(t).Buffer
}
