package tpm

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"encoding/base64"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/bedside-gateway/gatewayd/internal/sim/swtpm"
)

func TestATPMThatIsAbsentIsUsedWhenItComes(t *testing.T) {
	for name, address := range map[string]string{"device": "/dev/no-tpm", "port": "tcp:127.0.0.1:1", "socket": "unix:/no/tpm.sock"} {
		t.Run(name, func(t *testing.T) {
			wantFault(t, Open(address, Options{}).Check(t.Context()), Absent)
		})
	}
	dir := folder(t)
	e := started(t, dir, swtpm.Start)
	e.Stop()
	d := open(t, e, Options{})
	wantFault(t, d.Check(t.Context()), Absent)
	started(t, dir, swtpm.Start)
	if err := d.Check(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestWhatIsNoTPMIsNotOpened(t *testing.T) {
	file := filepath.Join(t.TempDir(), "tpm0")
	write(t, file, nil)
	for _, address := range []string{file, "/dev", "tpm0", "", "unix:relative", "tcp:host", "tcp:", "http://x"} {
		if err := Open(address, Options{}).Check(t.Context()); err == nil {
			t.Errorf("%q is taken for a TPM", address)
		}
	}
	if os.Getuid() != 0 { // whom nothing is forbidden
		if err := os.Chmod(file, 0); err != nil {
			t.Fatal(err)
		}
		wantFault(t, Open(file, Options{}).Check(t.Context()), Forbidden)
	}
	for err, want := range map[error]Fault{fs.ErrPermission: Forbidden, syscall.EBUSY: Busy, syscall.ENXIO: Absent, syscall.EIO: Failing, syscall.ENOMEM: Failing} {
		d := Open("/dev/tpm0", Options{Dial: func(context.Context, string) (Conn, error) { return nil, err }})
		wantFault(t, d.Check(t.Context()), want)
	}
}

// A gateway that is enrolled while it runs holds to that TPM from then on.
func TestATPMThatIsExpectedFromNowOnIsHeldTo(t *testing.T) {
	e, other := emulator(t), open(t, emulator(t), Options{})
	d := open(t, e, Options{})
	k := load(t, d, P256)
	mine, foreign := must(d.Fingerprint(t.Context()))(t), must(other.Fingerprint(t.Context()))(t)
	d.Expect(&mine)
	if err := k.Try(t.Context()); err != nil {
		t.Error(err)
	}
	d.Expect(&foreign)
	wantFault(t, k.Try(t.Context()), Replaced)
	d.Expect(nil)
	if err := k.Try(t.Context()); err != nil {
		t.Error(err)
	}
	d.Expect(&mine)
	if err := d.use(t.Context(), "clear it", func(l *link) error {
		_, err := tpm2.Clear{AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHLockout, Auth: tpm2.PasswordAuth(nil)}}.Execute(l)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	wantFault(t, k.Try(t.Context()), Cleared)
}

func TestAClearedAndAReplacedTPMAreToldApart(t *testing.T) {
	e, another := emulator(t), emulator(t)
	d := open(t, e, Options{})
	expected := must(d.Fingerprint(t.Context()))(t)
	file, sealed := create(t, d, P256), must(d.Seal(t.Context(), []byte("x"), nil))(t)
	d.Close()

	replaced := open(t, another, Options{Expect: &expected})
	wantFault(t, replaced.Check(t.Context()), Replaced)
	_, err := replaced.Load(t.Context(), file)
	wantFault(t, err, Replaced)
	d = open(t, e, Options{Expect: &expected}) // it is put back
	k := must(d.Load(t.Context(), file))(t)
	d.Close()

	tool(t, e, "", "tpm2_clear", "-c", "p")
	cleared := open(t, e, Options{Expect: &expected})
	k.tpm = cleared
	for _, err := range []error{cleared.Check(t.Context()), sign(k)} {
		wantFault(t, err, Cleared)
	}
	_, err = cleared.Unseal(t.Context(), sealed)
	wantFault(t, err, Cleared)
	cleared.Close()
	anew := open(t, e, Options{})
	_, err = anew.Load(t.Context(), file)
	wantFault(t, err, Foreign)
	_, err = anew.Unseal(t.Context(), sealed)
	wantFault(t, err, Foreign)
	if err := sign(load(t, anew, P256)); err != nil {
		t.Error("it is not as good as new: ", err)
	}
	if now := must(anew.Fingerprint(t.Context()))(t); bytes.Equal(now.Storage, expected.Storage) || !bytes.Equal(now.Endorsement, expected.Endorsement) {
		t.Errorf("before %x and after %x", expected, now)
	}
}

func TestAClearingUnderOurHandsIsNoticed(t *testing.T) {
	e := emulator(t)
	for name, o := range map[string]Options{"a known one": {Expect: new(Fingerprint)}, "any": {}} {
		t.Run(name, func(t *testing.T) {
			d := open(t, e, Options{})
			if o.Expect != nil {
				*o.Expect = must(d.Fingerprint(t.Context()))(t)
			}
			d.Close()
			d = open(t, e, o)
			k := load(t, d, P256)
			platform := tpm2.AuthHandle{Handle: tpm2.TPMRHPlatform, Auth: tpm2.PasswordAuth(nil)}
			if _, err := (tpm2.Clear{AuthHandle: platform}).Execute(d.inHand()); err != nil {
				t.Fatal(err)
			}
			err := sign(k)
			if o.Expect != nil {
				wantFault(t, err, Cleared)
			} else {
				wantFault(t, err, Foreign)
			}
		})
	}
}

func TestOurKeyGoesOnInALockout(t *testing.T) {
	e, dir := emulator(t), t.TempDir()
	d := open(t, e, Options{})
	file, sealed := create(t, d, P256), must(d.Seal(t.Context(), []byte("x"), nil))(t)
	d.Close()
	tool(t, e, dir, "tpm2_dictionarylockout", "--setup-parameters", "--max-tries=2", "--recovery-time=1000", "--lockout-recovery-time=1000")
	tool(t, e, dir, "tpm2_createprimary", "-C", "o", "-c", "p.ctx", "-p", "secret", "-a", "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|restricted|decrypt")
	for range 3 {
		if _, err := tryTool(t, e, dir, "tpm2_create", "-C", "p.ctx", "-P", "wrong", "-u", "pub", "-r", "priv"); err == nil {
			t.Fatal("the wrong password is taken")
		}
	}
	d = open(t, e, Options{})
	if got := must(d.Describe(t.Context()))(t); !got.Lockout {
		t.Fatalf("no lockout: %+v", got)
	}
	if err := sign(must(d.Load(t.Context(), file))(t)); err != nil {
		t.Error(err)
	}
	if _, err := d.Unseal(t.Context(), sealed); err != nil {
		t.Error(err)
	}
	if err := sign(load(t, d, P256)); err != nil {
		t.Error(err)
	}
	d.Close()
	tool(t, e, dir, "tpm2_dictionarylockout", "--clear-lockout")
	d = open(t, e, Options{})
	if got := must(d.Describe(t.Context()))(t); got.Lockout || got.Manufacturer == "" || !got.P384 || got.Firmware == "" {
		t.Errorf("%+v", got)
	}
	wantFault(t, d.fault("x", tpm2.TPMRCLockout), LockedOut)
}

func TestATPMThatAnotherProgramHoldsIsUsedAfterIt(t *testing.T) {
	e := emulator(t)
	d := open(t, e, Options{Command: 200 * time.Millisecond})
	other, conn := raw(t, e)
	handlesOf(t, other)
	wantFault(t, d.Check(t.Context()), Busy)
	conn.Close()
	d.o.Command = 20 * time.Second
	if err := d.Check(t.Context()); err != nil {
		t.Error(err)
	}
}

// A wire is a Conn that somebody has a hand in.
type wire struct {
	Conn
	write func(b []byte) (int, error)
	read  func(b []byte) (int, error)
}

func (w *wire) Write(b []byte) (int, error) {
	if w.write == nil {
		return w.Conn.Write(b)
	}
	return w.write(b)
}

func (w *wire) Read(b []byte) (int, error) {
	if w.read == nil {
		return w.Conn.Read(b)
	}
	return w.read(b)
}

// wired puts a hand into each connection that is dialled.
func wired(hand func(n int, w *wire)) func(context.Context, string) (Conn, error) {
	n := 0
	return func(ctx context.Context, address string) (Conn, error) {
		c, err := Dial(ctx, address)
		if err != nil {
			return nil, err
		}
		w := &wire{Conn: c}
		hand(n, w)
		n++
		return w, nil
	}
}

func answer(rc tpm2.TPMRC) []byte {
	b := binary.BigEndian.AppendUint16(nil, uint16(tpm2.TPMSTNoSessions))
	b = binary.BigEndian.AppendUint32(b, headerSize)
	return binary.BigEndian.AppendUint32(b, uint32(rc))
}

// later lets the TPM ask for patience so many times before each command.
func asksForPatience(times int, rc tpm2.TPMRC) func(context.Context, string) (Conn, error) {
	return wired(func(_ int, w *wire) {
		left, due := times, false
		w.write = func(b []byte) (int, error) {
			if left--; left >= 0 {
				due = true
				return len(b), nil
			}
			left = times
			return w.Conn.Write(b)
		}
		w.read = func(b []byte) (int, error) {
			if due {
				due = false
				return copy(b, answer(rc)), nil
			}
			return w.Conn.Read(b)
		}
	})
}

func TestATPMThatAsksForPatienceGetsIt(t *testing.T) {
	e := emulator(t)
	for _, rc := range []tpm2.TPMRC{tpm2.TPMRCRetry, tpm2.TPMRCYielded, tpm2.TPMRCTesting, tpm2.TPMRCNVRate} {
		d := open(t, e, Options{Dial: asksForPatience(2, rc)})
		if err := sign(load(t, d, P256)); err != nil {
			t.Error(err)
		}
		d.Close()
		never := open(t, e, Options{Dial: asksForPatience(1<<30, rc), Command: 20 * time.Millisecond})
		wantFault(t, never.Check(t.Context()), Busy)
	}
	if err := open(t, e, Options{}).Check(t.Context()); err != nil {
		t.Error("it does not recover: ", err)
	}
}

// Whatever byte is the last one: the TPM is opened again, and all ends well.
func TestALinkThatBreaksIsMadeAnew(t *testing.T) {
	t.Parallel()
	e := emulator(t)
	d := open(t, e, Options{})
	file, sealed := create(t, d, P256), must(d.Seal(t.Context(), []byte("x"), nil))(t)
	d.Close()
	cuts := 0
	for n := 1; ; n += 61 {
		broken := false
		d := open(t, e, Options{Dial: wired(func(i int, w *wire) {
			left := n
			if i > 0 {
				return
			}
			cut := func(b []byte, do func([]byte) (int, error)) (int, error) {
				if len(b) > left { // the rest of it gets lost
					b, broken = b[:left], true
				}
				m, err := do(b)
				if left -= m; broken && err == nil {
					err = syscall.ECONNRESET
					w.Conn.Close()
				}
				return m, err
			}
			w.write = func(b []byte) (int, error) { return cut(b, w.Conn.Write) }
			w.read = func(b []byte) (int, error) {
				m, err := w.Conn.Read(b)
				if left -= m; left < 0 && err == nil {
					broken, left = true, 0
					w.Conn.Close()
					return m / 2, syscall.ECONNRESET
				}
				return m, err
			}
		})})
		k, err := d.Load(t.Context(), file)
		if err == nil {
			err = sign(k)
		}
		if err == nil {
			_, err = d.Unseal(t.Context(), sealed)
		}
		if err != nil {
			t.Fatalf("cut after %d bytes: %v", n, err)
		}
		_ = d.Close() // a second time, where it was cut
		if !broken {
			break
		}
		cuts++
	}
	if cuts < 25 {
		t.Errorf("only %d cuts were tried", cuts)
	}
}

// A command that is under way in a TPM which hangs is not waited for twice, and
// its answer is not taken for that of another.
func TestATPMThatHangsIsGivenUpAndOpenedAgain(t *testing.T) {
	e := emulator(t)
	var hang atomic.Bool
	var writes atomic.Int32
	d := open(t, e, Options{Dial: wired(func(_ int, w *wire) {
		w.write = func(b []byte) (int, error) {
			cc := tpm2.TPMCC(binary.BigEndian.Uint32(b[6:]))
			if hang.Load() && cc != tpm2.TPMCCCreatePrimary {
				writes.Add(1)
				return len(b), nil
			}
			return w.Conn.Write(b)
		}
	})})
	k, sealed := load(t, d, P256), must(d.Seal(t.Context(), []byte("x"), nil))(t)
	d.o.Command = 50 * time.Millisecond
	hang.Store(true)
	wantFault(t, sign(k), Failing)
	if n := writes.Load(); n != 1 {
		t.Errorf("%d commands were sent after the first got no answer", n-1)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	err := d.Check(ctx)
	if f := FaultOf(err); f != Busy && f != Failing {
		t.Error(err)
	}
	hang.Store(false)
	d.o.Command = 20 * time.Second
	if err := sign(k); err != nil {
		t.Error(err)
	}
	d.o.Command = 50 * time.Millisecond
	writes.Store(0)
	hang.Store(true)
	_, err = d.Unseal(t.Context(), sealed) // in which something would be to flush
	wantFault(t, err, Failing)
	if n := writes.Load(); n != 1 {
		t.Errorf("%d commands were sent after the first got no answer", n-1)
	}
	hang.Store(false)
	d.o.Command = 20 * time.Second
	if err := sign(k); err != nil {
		t.Error(err)
	}
	hang.Store(true)
	ctx, stop := context.WithCancel(t.Context())
	time.AfterFunc(10*time.Millisecond, stop)
	if err := d.Check(ctx); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	hang.Store(false)
	if err := sign(k); err != nil {
		t.Error(err)
	}
}

func TestAPowerCutIsSurvivedBetweenAnyTwoCommands(t *testing.T) {
	dir := folder(t)
	e := started(t, dir, swtpm.Start)
	d := open(t, e, Options{})
	expected := must(d.Fingerprint(t.Context()))(t)
	d.Close()
	d = open(t, e, Options{Expect: &expected})
	k, sealed := load(t, d, P256), must(d.Seal(t.Context(), []byte("x"), nil))(t)
	for range 3 {
		lost := create(t, d, P256) // made, and never stored
		e.Stop()
		e = started(t, dir, swtpm.Start)
		if err := sign(k); err != nil {
			t.Fatal(err)
		}
		if objects, _ := handlesOf(t, d.inHand()); objects != 1 {
			t.Errorf("%d objects are in the TPM after the cut", objects)
		}
		e.Stop()
		wantFault(t, sign(k), Absent)
		e = started(t, dir, swtpm.Start)
		if _, err := d.Unseal(t.Context(), sealed); err != nil {
			t.Fatal(err)
		}
		again := create(t, d, P256)
		if bytes.Equal(again, lost) {
			t.Error("the same key twice")
		}
	}
}

// The TPM is started anew, or emptied by somebody, while the connection stays.
func TestWhatIsGoneFromTheTPMIsLoadedAgain(t *testing.T) {
	e := emulator(t)
	for name, do := range map[string]func(d *TPM, k *Key){
		"the key":      func(d *TPM, k *Key) { d.inHand().flush(k.handle) },
		"the session":  func(d *TPM, k *Key) { d.inHand().flush(d.link.session.Handle()) },
		"all":          func(d *TPM, k *Key) { must(0, d.inHand().flushAll())(t) },
		"with a reset": func(d *TPM, k *Key) { tool(t, e, "", "swtpm_ioctl", "-i", "--unix", string(e.Address()[5:])+".ctrl") },
	} {
		t.Run(name, func(t *testing.T) {
			d := open(t, e, Options{})
			k := load(t, d, P256)
			do(d, k)
			if err := sign(k); err != nil {
				t.Error(err)
			}
			d.Close()
		})
	}
}

func TestATPMThatAnotherLeftFullIsEmptied(t *testing.T) {
	e := emulator(t)
	d := open(t, e, Options{})
	file := create(t, d, P256)
	d.Close()
	other, conn := raw(t, e)
	for range 3 {
		must(tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(tpm2.ECCSRKTemplate)}.Execute(other))(t)
		if _, _, err := tpm2.PolicySession(other, tpm2.TPMAlgSHA256, 16); err != nil {
			t.Fatal(err)
		}
	}
	s, _, err := tpm2.PolicySession(other, tpm2.TPMAlgSHA256, 16)
	if err == nil || s != nil {
		t.Fatal("there is room for more than three sessions")
	}
	list := must(tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: uint32(loadedSessions) << 24, PropertyCount: 1}.Execute(other))(t)
	must(tpm2.ContextSave{SaveHandle: must(list.CapabilityData.Data.Handles())(t).Handle[0]}.Execute(other))(t)
	if objects, sessions := handlesOf(t, other); objects != 3 || sessions != 3 {
		t.Fatalf("%d objects, %d sessions", objects, sessions)
	}
	conn.Close()
	d = open(t, e, Options{})
	k := must(d.Load(t.Context(), file))(t)
	if objects, sessions := handlesOf(t, d.inHand()); objects != 1 || sessions != 1 {
		t.Errorf("%d objects, %d sessions", objects, sessions)
	}
	// And once more while it is in use, which a device of its own allows.
	for range 3 {
		_, _, _ = tpm2.PolicySession(d.inHand(), tpm2.TPMAlgSHA256, 16)
		_, _ = tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(tpm2.ECCSRKTemplate)}.Execute(d.inHand())
	}
	k.Release(t.Context())
	_, _ = tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(tpm2.ECCSRKTemplate)}.Execute(d.inHand())
	if err := sign(k); err != nil {
		t.Error(err)
	}
	sealed := must(d.Seal(t.Context(), []byte("x"), nil))(t)
	if got, err := d.Unseal(t.Context(), sealed); err != nil || string(got) != "x" {
		t.Error(err)
	}
}

// The resource manager of the kernel answers with ENOMEM where it has no room,
// and nobody but us may flush.
func TestAResourceManagerWithoutRoomIsNamed(t *testing.T) {
	e := emulator(t)
	d := open(t, e, Options{})
	k := load(t, d, P256)
	var full, evicts atomic.Bool
	dial := func(ctx context.Context, _ string) (Conn, error) {
		c, err := Dial(ctx, e.Address())
		if err != nil {
			return nil, err
		}
		w := &wire{Conn: c}
		w.write = func(b []byte) (int, error) {
			switch tpm2.TPMCC(binary.BigEndian.Uint32(b[6:])) {
			case tpm2.TPMCCFlushContext:
				if evicts.Load() {
					full.Store(false)
				}
			case tpm2.TPMCCLoad:
				if full.Load() {
					return 0, syscall.ENOMEM
				}
			}
			return c.Write(b)
		}
		return w, nil
	}
	d.Close()
	d = Open("/dev/tpmrm0", Options{Dial: dial})
	t.Cleanup(func() { d.Close() })
	k.tpm = d
	other := load(t, d, P256)
	full.Store(true)
	wantFault(t, sign(k), Full)
	if err := sign(other); err != nil { // it was the victim
		wantFault(t, err, Full)
	}
	full.Store(false)
	if err := sign(other); err != nil {
		t.Fatal(err)
	}
	evicts.Store(true)
	full.Store(true)
	if err := sign(k); err != nil {
		t.Error(err)
	}
}

func TestAnOwnerWithAPasswordIsNamed(t *testing.T) {
	e := emulator(t)
	d := open(t, e, Options{})
	file := create(t, d, P256)
	d.Close()
	tool(t, e, "", "tpm2_changeauth", "-c", "owner", "secret")
	wantFault(t, open(t, e, Options{}).Check(t.Context()), OwnerLocked)
	tool(t, e, "", "tpm2_changeauth", "-c", "owner", "-p", "secret")
	if err := sign(must(open(t, e, Options{}).Load(t.Context(), file))(t)); err != nil {
		t.Error(err)
	}
}

func TestATPMInFailureModeIsNamed(t *testing.T) {
	e := emulator(t)
	failing := true
	d := open(t, e, Options{Dial: wired(func(_ int, w *wire) {
		w.read = func(b []byte) (int, error) {
			n, err := w.Conn.Read(b)
			if failing {
				n = copy(b, answer(tpm2.TPMRCFailure))
			}
			return n, err
		}
	})})
	wantFault(t, d.Check(t.Context()), Failing)
	failing = false
	if err := d.Check(t.Context()); err != nil {
		t.Error(err)
	}
}

// Each byte of a key file is changed: it is the same key, or none with a name
// for what is wrong.
func TestAKeyFileThatWasChangedIsRefused(t *testing.T) {
	t.Parallel()
	d := open(t, emulator(t), Options{})
	text := create(t, d, P256)
	public := must(PublicKey(text))(t).(*ecdsa.PublicKey)
	block, _ := pem.Decode(text)
	faults := map[Fault]int{}
	try := func(where string, changed []byte) {
		t.Helper()
		k, err := d.Load(t.Context(), changed)
		if err == nil {
			if !public.Equal(k.Public()) {
				t.Errorf("%s: another key", where)
			}
			if err := sign(k); err != nil {
				t.Errorf("%s: %v", where, err)
			}
			k.Release(t.Context())
			return
		}
		switch f := FaultOf(err); f {
		case Foreign, Tampered, Unable:
			faults[f]++
		default:
			t.Errorf("%s: %v", where, err)
		}
	}
	for i := range block.Bytes {
		for _, bit := range []byte{1, 0x80} {
			der := bytes.Clone(block.Bytes)
			der[i] ^= bit
			try(fmt.Sprintf("byte %d", i), pem.EncodeToMemory(&pem.Block{Type: FileType, Bytes: der}))
		}
	}
	for i := range text {
		changed := bytes.Clone(text)
		changed[i] ^= 0x10
		try(fmt.Sprintf("character %d", i), changed)
	}
	for name, changed := range map[string][]byte{
		"nothing": nil, "half": text[:len(text)/2], "twice": append(bytes.Clone(text), text...), "too long": append(bytes.Clone(text), make([]byte, maxFile)...),
		"another kind":      pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: block.Bytes}),
		"a sealed secret":   must(d.Seal(t.Context(), []byte("x"), nil))(t),
		"base64 of nothing": []byte("-----BEGIN " + FileType + "-----\n" + base64.StdEncoding.EncodeToString(make([]byte, 99)) + "\n-----END " + FileType + "-----\n"),
	} {
		_, err := d.Load(t.Context(), changed)
		t.Run(name, func(t *testing.T) { wantFault(t, err, Tampered) })
	}
	t.Logf("%v", faults)
	if faults[Foreign] < 100 || faults[Tampered] < 100 {
		t.Errorf("%v", faults)
	}
}

func TestSecretsComeBackWhole(t *testing.T) {
	d := open(t, emulator(t), Options{})
	for _, n := range []int{1, 2, 32, MaxSecret} {
		secret := bytes.Repeat([]byte{0xa5}, n)
		got, err := d.Unseal(t.Context(), must(d.Seal(t.Context(), secret, nil))(t))
		if err != nil || !bytes.Equal(got, secret) {
			t.Errorf("%d bytes: %x %v", n, got, err)
		}
	}
	for _, n := range []int{0, MaxSecret + 1} {
		_, err := d.Seal(t.Context(), make([]byte, n), nil)
		wantFault(t, err, Unable)
	}
	_, err := d.Unseal(t.Context(), create(t, d, P256))
	wantFault(t, err, Tampered)
	_, err = open(t, emulator(t), Options{}).Unseal(t.Context(), must(d.Seal(t.Context(), []byte("x"), nil))(t))
	wantFault(t, err, Foreign)
}

func TestWhatTheTPMAnswersHasAName(t *testing.T) {
	d := Open("/dev/tpmrm0", Options{})
	const parameter1, session1 = 0x140, 0x900 // Part 2, 6.6.2
	for rc, want := range map[tpm2.TPMRC]Fault{
		tpm2.TPMRCLockout: LockedOut, tpm2.TPMRCRetry: Busy, tpm2.TPMRCNVRate: Busy, tpm2.TPMRCFailure: Failing, tpm2.TPMRCInitialize: Failing,
		tpm2.TPMRCPolicyFail | session1: Refused, tpm2.TPMRCPCRChanged: Refused, tpm2.TPMRCBadAuth | session1: OwnerLocked, tpm2.TPMRCAuthFail | session1: OwnerLocked,
		tpm2.TPMRCCurve | parameter1: Unable, tpm2.TPMRCHash | parameter1: Unable, tpm2.TPMRCCommandCode: Unable, tpm2.TPMRCHierarchy: Unable,
		tpm2.TPMRCObjectMemory: Full, tpm2.TPMRCSessionHandles: Full, tpm2.TPMRCMemory: Full, tpm2.TPMRCSize | parameter1: Other,
	} {
		if err := d.fault("do it", fmt.Errorf("in the middle of it: %w", rc)); FaultOf(err) != want {
			t.Errorf("want %s: %v", want, err)
		}
	}
}

func TestEachFaultSaysWhatToDo(t *testing.T) {
	for _, f := range []Fault{Absent, Forbidden, Cleared, Replaced, LockedOut, Busy, Failing, Full, Foreign, Astray, Tampered, Refused, OwnerLocked, Unable, Other} {
		if next[f] == "" {
			t.Errorf("%s says nothing", f)
		}
		if strings.Contains(next[f], "by itself") && f != LockedOut { // where no daemon runs, nobody tries again
			t.Errorf("%s promises what a command does not do: %s", f, next[f])
		}
		if line := next[f]; strings.Contains(line, "enroll reset") && !strings.Contains(line, Anew) && !strings.Contains(line, AnewWithout) {
			t.Errorf("%s has no whole line to type: %s", f, line)
		}
	}
	for _, f := range []Fault{Cleared, Replaced} {
		if !strings.Contains(next[f], "lost") || !strings.Contains(next[f], AnewWithout) {
			t.Errorf("%s does not say what is lost: %s", f, next[f])
		}
	}
	if FaultOf(errors.New("x")) != "" || FaultOf(nil) != "" {
		t.Error("a fault of nothing")
	}
}

// A path that is no TPM is a mistake in the configuration, and no broken board.
func TestWhatIsNoTPMIsNotTakenForABrokenOne(t *testing.T) {
	for _, address := range []string{"/dev/null", "/dev/zero", t.TempDir(), "/etc/passwd", "tcp:nowhere.invalid:1"} {
		d := Open(address, Options{Command: 5 * time.Second, Dial: func(ctx context.Context, address string) (Conn, error) {
			if strings.HasPrefix(address, "tcp:") { // no name is asked for outside of this machine
				return nil, &net.OpError{Op: "dial", Err: &net.DNSError{Name: "nowhere.invalid", IsNotFound: true}}
			}
			return Dial(ctx, address)
		}})
		err := d.Check(t.Context())
		if e, ok := errors.AsType[*Error](err); !ok || e.Fault != Absent || !strings.Contains(e.Next(), "tpm in [identity]") {
			t.Errorf("%s: %v", address, err)
		}
		d.Close()
	}
}

// goneAgain is a TPM that connects and hangs up.
type goneAgain struct{}

func (goneAgain) Write(b []byte) (int, error) { return len(b), nil }
func (goneAgain) Read([]byte) (int, error)    { return 0, io.EOF }
func (goneAgain) SetDeadline(time.Time) error { return nil }
func (goneAgain) Close() error                { return nil }

// A TPM that breaks off is told in the log once: from then on each error tells.
func TestATPMThatBreaksOffAndStaysAwayIsLoggedOnce(t *testing.T) {
	var log bytes.Buffer
	var dead atomic.Bool
	living := wired(func(_ int, w *wire) {
		w.read = func(b []byte) (int, error) {
			if dead.Load() {
				return 0, io.EOF
			}
			return w.Conn.Read(b)
		}
	})
	d := open(t, emulator(t), Options{Log: slog.New(slog.NewTextHandler(&log, nil)), Dial: func(ctx context.Context, address string) (Conn, error) {
		if !dead.Load() {
			return living(ctx, address)
		}
		return goneAgain{}, nil // the emulator itself has no room for many that hang up
	}})
	if err := d.Check(t.Context()); err != nil {
		t.Fatal(err)
	}
	dead.Store(true)
	for range 3 {
		wantFault(t, d.Check(t.Context()), Failing)
	}
	if n := strings.Count(log.String(), "broke off"); n != 1 {
		t.Errorf("it is told %d times:\n%s", n, log.String())
	}
	dead.Store(false)
	if err := d.Check(t.Context()); err != nil {
		t.Error("it is back: ", err)
	}
}
