package attest_test

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/bedside-gateway/gatewayd/keystore/attest"
	"github.com/bedside-gateway/gatewayd/keystore/attest/attesttest"
)

const device = "0123456789ABCDEF"

var (
	sharedTPM  = sync.OnceValues(attesttest.Start)
	startedTPM bool
)

// theTPM is one for all tests: making one takes a second.
func theTPM(t testing.TB, programs ...string) *attesttest.TPM {
	t.Helper()
	attesttest.Need(t, programs...)
	startedTPM = true
	tpm, err := sharedTPM()
	if err != nil {
		t.Fatal(err)
	}
	return tpm
}

func TestMain(m *testing.M) {
	code := m.Run()
	if startedTPM {
		if tpm, err := sharedTPM(); err == nil {
			_ = tpm.Close()
		}
	}
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func random(t testing.TB, n int) []byte {
	t.Helper()
	b := make([]byte, n)
	if _, err := rand.Read(b); err != nil {
		t.Fatal(err)
	}
	return b
}

func newDevice(t testing.TB, tpm *attesttest.TPM, ek attesttest.EK) *attesttest.Device {
	t.Helper()
	d, err := attesttest.NewDevice(tpm, ek, device)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

func TestATPMProvesItsKey(t *testing.T) {
	tpm := theTPM(t)
	for _, ek := range attesttest.EKs() {
		t.Run(ek.Name, func(t *testing.T) {
			d, nonce := newDevice(t, tpm, ek), random(t, 32)
			e, err := d.Evidence(t.Context(), nonce)
			if err != nil {
				t.Fatal(err)
			}
			text, err := e.Marshal()
			if err != nil {
				t.Fatal(err)
			}
			if e, err = attest.Parse(text); err != nil {
				t.Fatal(err)
			}
			var asked string
			o := attest.Options{EKRoots: tpm.Roots, Nonce: nonce, Now: time.Now(), AllowBareEK: func(name string) bool {
				asked = name
				return len(e.EKCertificate) == 0
			}}
			r, err := attest.Verify(e, o)
			if err != nil {
				t.Fatal(err)
			}
			if r.EKName != asked || r.CSR.Subject.CommonName != device {
				t.Errorf("%+v", r)
			}
			if ek.Certificate != 0 && (r.TPM.Manufacturer != "id:00001014" || r.TPM.Model != "swtpm" || r.EKCertificate == nil) {
				t.Errorf("the TPM is %+v", r.TPM)
			}
			secret := random(t, 32)
			blob, encrypted, err := attest.Challenge(e, secret)
			if err != nil {
				t.Fatal(err)
			}
			opened, err := d.Activate(t.Context(), blob, encrypted)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(opened, secret) {
				t.Error("the TPM found another secret in the challenge")
			}
		})
	}
}

// The challenge for an attestation key that is not in the TPM does not open:
// that is what it is for.
func TestAChallengeForAnotherKeyDoesNotOpen(t *testing.T) {
	tpm := theTPM(t)
	for _, ek := range attesttest.EKs() {
		t.Run(ek.Name, func(t *testing.T) {
			d := newDevice(t, tpm, ek)
			e, err := d.Evidence(t.Context(), random(t, 32))
			if err != nil {
				t.Fatal(err)
			}
			e.AK = newRig(t).evidence().AK
			blob, encrypted, err := attest.Challenge(e, random(t, 32))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := d.Activate(t.Context(), blob, encrypted); err == nil {
				t.Error("it opened")
			}
		})
	}
}

func TestAnEKWithoutACertificateHasToBeAllowed(t *testing.T) {
	tpm := theTPM(t)
	d, nonce := newDevice(t, tpm, attesttest.EKs()[2]), random(t, 32)
	e, err := d.Evidence(t.Context(), nonce)
	if err != nil {
		t.Fatal(err)
	}
	_, err = attest.Verify(e, attest.Options{EKRoots: tpm.Roots, Nonce: nonce, Now: time.Now()})
	if err == nil || !strings.Contains(err.Error(), "has no certificate, and its name 000b") {
		t.Errorf("%v", err)
	}
}
