package tpm

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	keyfile "github.com/foxboron/go-tpm-keyfiles"
	"github.com/google/go-tpm/tpm2"
)

// taped keeps all that passes. It hands over the commands that start a session.
func taped(tape *bytes.Buffer, started func([]byte)) func(context.Context, string) (Conn, error) {
	return wired(func(_ int, w *wire) {
		w.write = func(b []byte) (int, error) {
			tape.Write(b)
			if tpm2.TPMCC(binary.BigEndian.Uint32(b[6:])) == tpm2.TPMCCStartAuthSession {
				started(b)
			}
			return w.Conn.Write(b)
		}
		w.read = func(b []byte) (int, error) {
			n, err := w.Conn.Read(b)
			tape.Write(b[:n])
			return n, err
		}
	})
}

func TestNoSecretPassesInTheClear(t *testing.T) {
	var tape bytes.Buffer
	sessions := 0
	salted := func(command []byte) { // Part 3, 11.1: without a salt the key of a session is known
		tail := command[len(command)-9:] // kind, AES with 128 bits in CFB, hash; for policies no AES
		if tail[0] == byte(tpm2.TPMSEHMAC) {
			sessions++
			if key := tpm2.TPMHandle(binary.BigEndian.Uint32(command[10:])); key == tpm2.TPMRHNull || len(command) < 18+18+2+68+9 {
				t.Errorf("a session of %d bytes is salted with the key %08x", len(command), uint32(key))
			}
		}
	}
	e, boss := emulator(t), signer(t)
	setup := open(t, e, Options{})
	approval := approve(t, setup, boss)
	setup.Close()
	d := open(t, e, Options{Dial: taped(&tape, salted), Approvals: []Approval{approval}})
	secret := make([]byte, 32)
	_, _ = rand.Read(secret)
	for name, b := range map[string]*Binding{"free": nil, "bound": {Signer: boss.Public()}} {
		text := must(d.Seal(t.Context(), secret, b))(t)
		if got := must(d.Unseal(t.Context(), text))(t); !bytes.Equal(got, secret) {
			t.Fatalf("%x", got)
		}
		k := must(d.Load(t.Context(), must(d.Create(t.Context(), P256, b))(t)))(t)
		digest := sha256.Sum256([]byte("what is signed"))
		must(k.Sign(nil, digest[:], crypto.SHA256))(t)
		if bytes.Contains(tape.Bytes(), secret) || bytes.Contains(tape.Bytes(), digest[:]) {
			t.Errorf("%s: a secret or a digest is on the wire", name)
		}
		k.Release(t.Context())
	}
	v := newDevice(t, d, nil)
	answer := bytes.Repeat([]byte{0x5a, 0xc3}, 16)
	blob, encrypted := challenge(t, v.evidence(t), answer)
	if got := must(d.Activate(t.Context(), v.ak, blob, encrypted))(t); !bytes.Equal(got, answer) || bytes.Contains(tape.Bytes(), answer) {
		t.Errorf("the answer to a challenge is %x, on the wire: %v", got, bytes.Contains(tape.Bytes(), answer))
	}
	if sessions < 4 {
		t.Errorf("only %d sessions were looked at", sessions)
	}
	// The tape would show it: this is how it goes without the session.
	text := must(d.Seal(t.Context(), secret, nil))(t)
	err := d.use(t.Context(), "unseal it in the clear", func(l *link) error {
		parent := must(l.parent())(t)
		defer l.flush(parent.handle)
		o := must(l.load(parent, must(parse(text, keyfile.OIDSealedKey))(t)))(t)
		defer l.flush(o.handle)
		_, err := tpm2.Unseal{ItemHandle: o.auth(tpm2.PasswordAuth(nil))}.Execute(l)
		return err
	})
	if err != nil || !bytes.Contains(tape.Bytes(), secret) {
		t.Error("the tape does not show what passes: ", err)
	}
}

// Somebody between changes a bit of an answer, at any place, once: nothing
// wrong comes of it, and the next use is good.
func TestNoChangedAnswerIsBelieved(t *testing.T) {
	t.Parallel()
	e := emulator(t)
	d := open(t, e, Options{})
	expect := must(d.Fingerprint(t.Context()))(t)
	file, sealed := create(t, d, P256), must(d.Seal(t.Context(), []byte("secret"), nil))(t)
	d.Close()
	var at, seen atomic.Int64
	d = open(t, e, Options{Expect: &expect, Dial: wired(func(_ int, w *wire) {
		w.read = func(b []byte) (int, error) {
			n, err := w.Conn.Read(b)
			if i := at.Load() - seen.Load(); i >= 0 && i < int64(n) {
				b[i] ^= 1 << (at.Load() % 8)
			}
			seen.Add(int64(n))
			return n, err
		}
	})})
	d.o.Command = 250 * time.Millisecond // a changed length is waited for
	tried, refused := 0, 0
	for at.Store(0); seen.Load() >= at.Load(); at.Add(31) {
		d.hangUpForTest()
		seen.Store(0)
		k := must(d.Key(file))(t)
		err := sign(k)
		if errors.Is(err, errWrong) {
			t.Fatalf("a wrong signature, byte %d", at.Load())
		}
		got, err2 := d.Unseal(t.Context(), sealed)
		if err2 == nil && string(got) != "secret" {
			t.Fatalf("a wrong secret, byte %d: %q", at.Load(), got)
		}
		if tried++; err != nil || err2 != nil {
			refused++
		}
		if err := sign(k); err != nil {
			t.Fatalf("after byte %d: %v", at.Load(), err)
		}
	}
	if tried < 40 {
		t.Errorf("only %d places were tried", tried)
	}
	t.Logf("%d places, %d refusals, the others made good", tried, refused)
}

func (t *TPM) hangUpForTest() {
	<-t.turn
	t.hangUp()
	t.turn <- struct{}{}
}

// A storage key of somebody between would give him the salt of all sessions.
func TestAnotherStorageKeyIsNotSaltedTo(t *testing.T) {
	e, mine := emulator(t), emulator(t)
	d := open(t, e, Options{})
	expect := must(d.Fingerprint(t.Context()))(t)
	d.Close()
	d = open(t, e, Options{Expect: &expect, Dial: func(ctx context.Context, _ string) (Conn, error) { return Dial(ctx, mine.Address()) }})
	wantFault(t, d.Check(t.Context()), Replaced)
	if d.link != nil {
		t.Error("it is open")
	}
}
