package keystore

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	keyfile "github.com/foxboron/go-tpm-keyfiles"
	"github.com/google/go-tpm/tpm2"

	"github.com/bedside-gateway/gatewayd/internal/sim/pki"
	"github.com/bedside-gateway/gatewayd/keystore/tpm"
)

// keyOf is the key file of a key: its private area is of no TPM, which a store
// cannot tell and need not.
func keyOf(t testing.TB, key *ecdsa.PrivateKey) []byte {
	t.Helper()
	point, err := key.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	public := tpm2.New2B(tpm2.TPMTPublic{Type: tpm2.TPMAlgECC, NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, NoDA: true, SignEncrypt: true},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{CurveID: tpm2.TPMECCNistP256, Scheme: tpm2.TPMTECCScheme{
			Scheme: tpm2.TPMAlgECDSA, Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256})}}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{X: tpm2.TPM2BECCParameter{Buffer: point[1:33]}, Y: tpm2.TPM2BECCParameter{Buffer: point[33:]}})})
	return keyfile.NewTPMKey(keyfile.OIDLoadableKey, public, tpm2.TPM2BPrivate{Buffer: bytes.Repeat([]byte{1}, 126)}).Bytes()
}

// A ca issues certificates for the tests.
type ca struct {
	t   testing.TB
	pki *pki.PKI
}

func newCA(t testing.TB) *ca {
	p, err := pki.New(pki.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return &ca{t, p}
}

func (c *ca) chain(key crypto.PublicKey) []byte {
	chain, err := c.pki.IssueDevice("ecc-issuing", key, pki.DefaultDevice, time.Now(), pki.DefaultLifetime)
	if err != nil {
		c.t.Fatal(err)
	}
	return encodeChain(chain)
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func read(t *testing.T, s *Store) Slots {
	t.Helper()
	all, err := s.Read()
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestACertificateGoesFromNextToCurrentAndTheOneBeforeStays(t *testing.T) {
	s, c := Open(filepath.Join(t.TempDir(), "device")), newCA(t)
	if all := read(t, s); all != (Slots{}) {
		t.Fatalf("a store that is not there has %+v", all)
	}
	first, second := newKey(t), newKey(t)
	must(t, s.AddKey(keyOf(t, first), []byte("request")))
	if all := read(t, s); all.Next == nil || !all.Next.Public.(*ecdsa.PublicKey).Equal(first.Public()) || all.Next.Chain != nil || string(all.Next.Request) != "request" || all.Current != nil {
		t.Fatalf("%+v", all.Next)
	}
	one := c.chain(first.Public())
	slot, err := s.Install(one)
	must(t, err)
	if all := read(t, s); slot != Current || all.Current == nil || len(all.Current.Chain) != 2 || all.Next != nil {
		t.Fatalf("the first certificate is in the slot %s: %+v", slot, all)
	}
	stamp := s.Stamp()
	if slot, err = s.Install(one); err != nil || slot != Current || s.Stamp() != stamp {
		t.Errorf("the same again: %s %v", slot, err)
	}

	must(t, s.AddKey(keyOf(t, second), nil))
	if slot, err = s.Install(c.chain(second.Public())); err != nil || slot != Next {
		t.Fatalf("the second certificate: %s %v", slot, err)
	}
	if all := read(t, s); !Matches(first.Public(), all.Current.Chain[0]) || !Matches(second.Public(), all.Next.Chain[0]) {
		t.Fatal("the slots are mixed up")
	}
	must(t, s.Promote())
	if all := read(t, s); !Matches(second.Public(), all.Current.Chain[0]) || !Matches(first.Public(), all.Previous.Chain[0]) || all.Next != nil {
		t.Fatalf("after the change: %+v", all)
	}
	must(t, s.Revert())
	if all := read(t, s); !Matches(first.Public(), all.Current.Chain[0]) || all.Previous != nil {
		t.Fatal("the certificate before is not back")
	}
	if slot, err = s.Install(c.chain(first.Public())); err != nil || slot != Next {
		t.Fatalf("another certificate for the key in use: %s %v", slot, err)
	}
	must(t, s.Promote())
	must(t, s.Confirm())
	if all := read(t, s); all.Previous != nil || all.Current == nil {
		t.Fatal("the certificate before is still there")
	}
	folders, err := filepath.Glob(filepath.Join(s.Dir(), "[0-9]*"))
	if err != nil || len(folders) != 1 {
		t.Errorf("folders that no slot needs: %v", folders)
	}
}

func TestWhatDoesNotBelongIsNotInstalled(t *testing.T) {
	s, c := Open(filepath.Join(t.TempDir(), "device")), newCA(t)
	key := newKey(t)
	chain := c.chain(key.Public())
	if _, err := s.Install(chain); !errors.Is(err, ErrNoKey) {
		t.Errorf("a certificate without a key: %v", err)
	}
	must(t, s.AddKey(keyOf(t, key), nil))
	if _, err := s.Install(c.chain(newKey(t).Public())); !errors.Is(err, ErrNoKey) {
		t.Errorf("a certificate of another key: %v", err)
	}
	block, rest := pem.Decode(chain)
	for name, text := range map[string][]byte{
		"nothing":         nil,
		"the wrong order": append(bytes.Clone(rest), pem.EncodeToMemory(block)...),
		"half a block":    chain[:len(chain)-40],
		"a key":           keyOf(t, key),
	} {
		if _, err := s.Install(text); err == nil {
			t.Errorf("%s is installed", name)
		}
	}
	if all := read(t, s); all.Current != nil || all.Next == nil || all.Next.Chain != nil {
		t.Errorf("what was refused left %+v", all)
	}
	if err := s.AddKey([]byte("no key"), nil); err == nil {
		t.Error("a key file that is none is taken")
	}
	if err := s.Promote(); err == nil || !strings.Contains(err.Error(), "no certificate") {
		t.Errorf("a key without a certificate is put to use: %v", err)
	}
	if err := s.Revert(); err == nil {
		t.Error("there is nothing to go back to")
	}
}

func TestADamagedSlotSaysWhatToDo(t *testing.T) {
	s, c := Open(filepath.Join(t.TempDir(), "device")), newCA(t)
	key := newKey(t)
	must(t, s.AddKey(keyOf(t, key), nil))
	_, err := s.Install(c.chain(key.Public()))
	must(t, err)
	path := filepath.Join(s.Dir(), Current, chainFile)
	must(t, os.WriteFile(path, []byte("-----BEGIN CERTIFICATE-----\n"), 0o600))
	if d := read(t, s).Current.Damage; d == nil || !strings.Contains(d.Error(), "gatewayd enroll install") {
		t.Errorf("a damaged certificate: %v", d)
	}
	if slot, err := s.Install(c.chain(key.Public())); err != nil || slot != Current || read(t, s).Current.Damage != nil {
		t.Errorf("installed again, it is in the slot %s: %v", slot, err)
	}
	must(t, os.WriteFile(filepath.Join(s.Dir(), Current, keyFile), []byte("no key"), 0o600))
	must(t, os.Remove(filepath.Join(s.Dir(), Current, chainFile)))
	if all := read(t, s); all.Current.Fault == nil || all.Current.Public != nil {
		t.Error("a damaged key file has no fault")
	}
	must(t, os.Mkdir(filepath.Join(s.Dir(), Current, requestFile), 0o700))
	if all := read(t, s); all.Current.Request != nil {
		t.Error("a folder is a request")
	}
	must(t, os.Remove(filepath.Join(s.Dir(), Current, keyFile)))
	if _, err := s.Read(); err == nil || !strings.Contains(err.Error(), "gatewayd enroll reset") {
		t.Errorf("a slot without its key: %v", err)
	}
	must(t, os.Remove(filepath.Join(s.Dir(), Current)))
	must(t, os.Mkdir(filepath.Join(s.Dir(), Current), 0o700))
	if _, err := s.Read(); err == nil || !strings.Contains(err.Error(), "gatewayd enroll reset") {
		t.Errorf("a slot that is no link: %v", err)
	}
}

// A key file or a certificate that was copied from elsewhere makes a pair with
// which no handshake can be had: that is said when it is read, and not by a
// platform.
func TestACertificateBesideAnotherKeyIsNoIdentity(t *testing.T) {
	s, c := Open(filepath.Join(t.TempDir(), "device")), newCA(t)
	key, other := newKey(t), newKey(t)
	must(t, s.AddKey(keyOf(t, key), []byte("request")))
	_, err := s.Install(c.chain(key.Public()))
	must(t, err)
	for name, change := range map[string]struct {
		file       string
		text, good []byte
	}{
		"another key":         {keyFile, keyOf(t, other), keyOf(t, key)},
		"another certificate": {chainFile, c.chain(other.Public()), c.chain(key.Public())},
	} {
		path := filepath.Join(s.Dir(), Current, change.file)
		must(t, os.WriteFile(path, change.text, 0o600))
		got := read(t, s).Current
		if !errors.Is(got.Damage, ErrOtherKey) || got.Chain != nil || got.Public == nil || got.Fault != nil {
			t.Errorf("%s: %+v", name, got)
		}
		for _, want := range []string{"slot current", keyFile, chainFile, "gatewayd enroll csr"} {
			if !strings.Contains(got.Damage.Error(), want) {
				t.Errorf("%s: no %q in %v", name, want, got.Damage)
			}
		}
		must(t, os.WriteFile(path, change.good, 0o600))
		if got := read(t, s).Current; got.Damage != nil || got.Chain == nil {
			t.Errorf("%s, brought back: %v", name, got.Damage)
		}
	}
	must(t, os.WriteFile(filepath.Join(s.Dir(), Current, keyFile), keyOf(t, other), 0o600))
	if slot, err := s.Install(c.chain(other.Public())); err != nil || slot != Current || read(t, s).Current.Damage != nil {
		t.Errorf("a certificate for the key that is there: %s, %v", slot, err)
	}
	must(t, os.WriteFile(filepath.Join(s.Dir(), Current, keyFile), []byte("no key"), 0o600))
	if got := read(t, s).Current; got.Damage != nil || got.Fault == nil {
		t.Errorf("a damaged key is no other key: %v", got.Damage)
	}
}

var errPower = errors.New("the power is gone")

// cut stops a store at its nth change of the disk and at all that follow.
func (s *Store) cut(n int) *Store {
	cut := Open(s.dir)
	cut.step = func(string) error {
		if n--; n < 0 {
			return errPower
		}
		return nil
	}
	return cut
}

// After a power cut at any step each slot is as it was or as it was to be, the
// certificate in use is never away, and the same command again completes it.
func TestAPowerCutAtAnyStepLeavesSlotsWhole(t *testing.T) {
	c, first, second := newCA(t), newKey(t), newKey(t)
	firstKey, secondKey, one, two := keyOf(t, first), keyOf(t, second), c.chain(first.Public()), c.chain(second.Public())
	commands := []struct {
		name string
		do   func(*Store) error
		done func(Slots) bool
	}{
		{"a first key", func(s *Store) error { return s.AddKey(firstKey, []byte("r")) }, func(a Slots) bool { return a.Next != nil && a.Current == nil }},
		{"its certificate", func(s *Store) error { _, err := s.Install(one); return err }, func(a Slots) bool { return a.Current != nil && a.Next == nil }},
		{"a second key", func(s *Store) error { return s.AddKey(secondKey, []byte("r")) }, func(a Slots) bool { return a.Current != nil && a.Next != nil }},
		{"its certificate beside", func(s *Store) error { _, err := s.Install(two); return err }, func(a Slots) bool { return a.Next.Chain != nil }},
		{"the change", func(s *Store) error { return s.Promote() }, func(a Slots) bool {
			return a.Previous != nil && Matches(second.Public(), a.Current.Chain[0])
		}},
		{"the end of the one before", func(s *Store) error { return s.Confirm() }, func(a Slots) bool { return a.Previous == nil }},
	}
	for i, last := range commands {
		for n := 0; ; n++ {
			s := Open(filepath.Join(t.TempDir(), "device"))
			for _, c := range commands[:i] {
				must(t, c.do(s))
			}
			before := read(t, s)
			err := last.do(s.cut(n))
			after := read(t, s)
			if before.Current != nil && (after.Current == nil || after.Current.Chain == nil) {
				t.Fatalf("%s, cut at step %d: the certificate in use is gone", last.name, n)
			}
			if err == nil {
				if n == 0 {
					t.Fatalf("%s has no step", last.name)
				}
				break
			}
			if !errors.Is(err, errPower) {
				t.Fatal(err)
			}
			if !last.done(after) {
				must(t, last.do(s))
			}
			if !last.done(read(t, s)) {
				t.Errorf("%s, cut at step %d, is not completed by another try", last.name, n)
			}
		}
	}
}

// A pipe, a device or a huge file in place of a file of ours neither holds anybody
// up nor fills the memory.
func TestOnlyRegularFilesAreRead(t *testing.T) {
	s := Open(filepath.Join(t.TempDir(), "device"))
	must(t, s.AddKey(keyOf(t, newKey(t)), nil))
	path := filepath.Join(s.Dir(), Next, keyFile)
	for name, put := range map[string]func() error{
		"a pipe":      func() error { return syscall.Mkfifo(path, 0o600) },
		"a device":    func() error { return os.Symlink("/dev/zero", path) },
		"a folder":    func() error { return os.Mkdir(path, 0o700) },
		"a huge file": func() error { return errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, 1<<40)) },
	} {
		must(t, os.RemoveAll(path))
		must(t, put())
		if _, err := s.Read(); err == nil || !strings.Contains(err.Error(), path[len(path)-len(keyFile):]) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Rights that are missing are no reason to give an identity up.
func TestMissingRightsAreSaidAndNothingElseIsAdvised(t *testing.T) {
	if os.Geteuid() == 0 {
		err := hint(fs.ErrPermission)
		if err == nil || !strings.Contains(err.Error(), "run it as the user of gatewayd") || strings.Contains(err.Error(), "reset") {
			t.Error(err)
		}
		return // root may read all
	}
	dir := filepath.Join(t.TempDir(), "identity")
	must(t, WriteFingerprint(dir, tpm.Fingerprint{Storage: []byte{1}, Endorsement: []byte{2}}))
	must(t, os.Chmod(filepath.Join(dir, FingerprintFile), 0))
	if _, err := ReadFingerprint(dir); !errors.Is(err, fs.ErrPermission) || strings.Contains(err.Error(), "reset") {
		t.Error(err)
	}
}

// What is read belongs together, whatever another process does meanwhile.
func TestAReaderNeverSeesHalfAChange(t *testing.T) {
	s, c := Open(filepath.Join(t.TempDir(), "device")), newCA(t)
	var files, chains [2][]byte
	for i := range files {
		key := newKey(t)
		files[i], chains[i] = keyOf(t, key), c.chain(key.Public())
	}
	must(t, s.AddKey(files[0], []byte("request")))
	_, err := s.Install(chains[0])
	must(t, err)
	stop, done := make(chan struct{}), make(chan error, 1)
	go func() {
		for i := 1; ; i++ {
			select {
			case <-stop:
				done <- nil
				return
			default:
			}
			err := s.AddKey(files[i%2], []byte("request"))
			if err == nil {
				_, err = s.Install(chains[i%2])
			}
			if err == nil {
				err = errors.Join(s.Promote(), s.Confirm())
			}
			if err != nil {
				done <- err
				return
			}
		}
	}()
	for range 100 {
		all := read(t, s)
		if all.Current == nil || all.Current.Chain == nil || !Matches(all.Current.Public, all.Current.Chain[0]) {
			t.Errorf("a current slot without its certificate: %+v", all.Current)
		}
		if all.Next != nil && string(all.Next.Request) != "request" {
			t.Error("a key without its request")
		}
	}
	close(stop)
	must(t, <-done)
}

func TestARequestHasTheDeviceIdentifierAndNothingElse(t *testing.T) {
	text, err := Request(newKey(t), Subject{Device: pki.DefaultDevice})
	must(t, err)
	block, _ := pem.Decode(text)
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	must(t, err)
	must(t, csr.CheckSignature())
	if got := csr.Subject.String(); got != "CN=0123456789ABCDEF" || len(csr.Extensions) != 0 {
		t.Errorf("subject %s, extensions %v", got, csr.Extensions)
	}
	text, err = Request(newKey(t), Subject{Server: "gateway.test"})
	must(t, err)
	block, _ = pem.Decode(text)
	csr, err = x509.ParseCertificateRequest(block.Bytes)
	must(t, err)
	if got := csr.Subject.String(); got != "CN=gateway.test" || len(csr.DNSNames) != 1 || csr.DNSNames[0] != "gateway.test" {
		t.Errorf("subject %s, names %v", got, csr.DNSNames)
	}
	if _, err := Request(newKey(t), Subject{}); err == nil {
		t.Error("a gateway without an EUI-64 requests a certificate")
	}
}

func TestFingerprintIsReadAsItWasWritten(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "identity")
	if f, err := ReadFingerprint(dir); f != nil || err != nil {
		t.Errorf("%v %v", f, err)
	}
	must(t, WriteFingerprint(dir, tpm.Fingerprint{Storage: []byte{1}, Endorsement: []byte{2}}))
	if f, err := ReadFingerprint(dir); err != nil || f.Storage[0] != 1 || f.Endorsement[0] != 2 {
		t.Errorf("%v %v", f, err)
	}
}

// Who resets the gateway goes on with a damaged note, and with no other error.
func TestADamagedNoteOfTheTPMIsToldFromOneThatCannotBeRead(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "identity")
	path := filepath.Join(dir, FingerprintFile)
	for name, put := range map[string]func() error{
		"nothing in it": func() error { return os.WriteFile(path, nil, 0o600) },
		"garbage":       func() error { return os.WriteFile(path, []byte{0, 1, 2}, 0o600) },
		"no TPM":        func() error { return os.WriteFile(path, []byte("{}"), 0o600) },
		"another type":  func() error { return os.WriteFile(path, []byte(`{"storage": 1}`), 0o600) },
		"a huge file":   func() error { return errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, 1<<40)) },
		"a folder":      func() error { return os.Mkdir(path, 0o700) },
	} {
		must(t, os.RemoveAll(dir))
		must(t, os.Mkdir(dir, 0o700))
		must(t, put())
		f, err := ReadFingerprint(dir)
		if f != nil || !errors.Is(err, ErrFingerprint) || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), tpm.Anew) {
			t.Errorf("%s: %v, %v", name, f, err)
		}
	}
	must(t, os.RemoveAll(dir))
	must(t, os.WriteFile(dir, nil, 0o600)) // the disk itself is in the way
	if _, err := ReadFingerprint(dir); err == nil || errors.Is(err, ErrFingerprint) {
		t.Error(err)
	}
}
