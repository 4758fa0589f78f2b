package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/bedside-gateway/gatewayd/internal/sim/swtpm"
	"github.com/bedside-gateway/gatewayd/keystore/tpm"
)

// What tpm2_pcrread says of a box is approved, and a key that is bound to the
// signer is used there, and not any more when a register has another value.
func TestWhatTpm2PcrreadPrintsIsApproved(t *testing.T) {
	dir, err := os.MkdirTemp("", "tpm") // the path of a socket is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	e, err := swtpm.Start(t.Context(), dir)
	if errors.Is(err, swtpm.ErrMissing) && os.Getenv("NEED_SWTPM") == "" {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Stop)
	tool := func(name string, args ...string) []byte {
		t.Helper()
		if _, err := exec.LookPath(name); err != nil && os.Getenv("NEED_SWTPM") == "" {
			t.Skip(err)
		}
		cmd := exec.CommandContext(t.Context(), name, args...)
		cmd.Env = append(os.Environ(), "TPM2TOOLS_TCTI=swtpm:path="+strings.TrimPrefix(e.Address(), "unix:"), "TSS2_LOG=all+none")
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		return out
	}
	file := func(name string, text []byte) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	f := approvalFlags{key: file("maker.key", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})), add: filepath.Join(dir, "approvals.json")}
	approve := func() {
		t.Helper()
		f.read = file("pcrs.txt", tool("tpm2_pcrread", "sha1:7+sha256:4,7,16"))
		if err := (&app{out: new(bytes.Buffer)}).approve(f); err != nil {
			t.Fatal(err)
		}
	}
	use := func(text []byte) ([]byte, error) {
		t.Helper()
		var o tpm.Options
		if o.Approvals, err = readApprovals(f.add); err != nil {
			t.Fatal(err)
		}
		d := tpm.Open(e.Address(), o)
		defer d.Close()
		if text == nil {
			if text, err = d.Create(t.Context(), tpm.P256, &tpm.Binding{Signer: key.Public()}); err != nil {
				t.Fatal(err)
			}
		}
		_, err := d.Load(t.Context(), text) // which signs
		return text, err
	}
	approve()
	bound, err := use(nil)
	if err != nil {
		t.Fatal(err)
	}
	tool("tpm2_pcrextend", "16:sha256="+strings.Repeat("ab", 32))
	if _, err := use(bound); tpm.FaultOf(err) != tpm.Refused {
		t.Fatalf("in another state: %v", err)
	}
	approve()
	if _, err := use(bound); err != nil {
		t.Fatal("in the state that was approved now: ", err)
	}
	all, err := readApprovals(f.add)
	if err != nil || len(all) != 2 {
		t.Fatalf("%d approvals, %v", len(all), err)
	}
}

// FuzzPCRs shows that whatever is read has only registers with values of their
// length, and that an approval of it is read back as it was written.
func FuzzPCRs(f *testing.F) {
	const value = "0xABABABABABABABABABABABABABABABABABABABABABABABABABABABABABABABAB"
	for _, seed := range []string{"", "sha256:\n", "  sha256:\n    7 : " + value + "\n", "sha1:\n 7 : 0x00\nsha256:\n 0: " + value, "7 : " + value, "sha256:\n 7 : " + value + "\n 7 : 0x" + strings.Repeat("0", 64), "sha256:\n -1 : " + value, "sha256:\n 300 : " + value} {
		f.Add(seed)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, text string) {
		values, err := parsePCRs(text)
		if err != nil {
			if values != nil {
				t.Fatal("values beside an error")
			}
			return
		}
		for n, v := range values {
			if n > 255 || len(v) != 32 {
				t.Fatalf("register %d has %d bytes", n, len(v))
			}
		}
		approval, err := tpm.Approve(key, values)
		if err != nil {
			return
		}
		encoded, err := encodeApprovals([]tpm.Approval{approval})
		if err != nil {
			t.Fatal(err)
		}
		var back []tpm.Approval
		if err := json.Unmarshal(encoded, &back); err != nil || len(back) != 1 || !bytes.Equal(back[0].Policy, approval.Policy) || len(back[0].PCRs) != len(values) {
			t.Fatalf("%+v %v", back, err)
		}
	})
}
