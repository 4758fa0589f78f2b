package tpm

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"encoding/pem"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	keyfile "github.com/foxboron/go-tpm-keyfiles"
	"github.com/google/go-tpm/tpm2"

	"github.com/bedside-gateway/gatewayd/internal/sim/swtpm"
)

// aKeyFile is one without a TPM: what its private area holds only a TPM sees.
func aKeyFile(kind Kind) []byte {
	clear := clearTestKey()
	of, _, err := clearKey(clear)
	if err != nil {
		panic(err)
	}
	of.ObjectAttributes.FixedTPM = kind == P256
	return encode(keyfile.OIDLoadableKey, tpm2.New2B(*of), tpm2.TPM2BPrivate{Buffer: make([]byte, 100)})
}

func FuzzKeyFile(f *testing.F) {
	block, _ := pem.Decode(aKeyFile(P256))
	f.Add(block.Bytes)
	f.Add(block.Bytes[:50])
	f.Add([]byte{0x30, 0})
	sealed, _ := pem.Decode(encode(keyfile.OIDSealedKey, tpm2.New2B(storageTemplate()), tpm2.TPM2BPrivate{Buffer: []byte{1}},
		keyfile.WithSecret(tpm2.TPM2BEncryptedSecret{Buffer: []byte{2}})))
	f.Add(sealed.Bytes)
	f.Fuzz(func(t *testing.T, der []byte) {
		text := pem.EncodeToMemory(&pem.Block{Type: FileType, Bytes: der})
		for _, kind := range [][]int{keyfile.OIDLoadableKey, keyfile.OIDSealedKey, keyfile.OIDImportableKey} {
			read, err := parse(text, kind)
			if err != nil {
				if _, ok := err.(*faultError); !ok {
					t.Fatalf("an error without a fault: %v", err)
				}
				continue
			}
			_ = read.mayBeDevice()
			if _, err := publicKey(&read.public); err != nil && classify(err) == Other {
				t.Fatal(err)
			}
			again, err := parse(encode(kind, tpm2.New2B(read.public), read.private, keyfile.WithSecret(read.secret)), kind)
			if err != nil || !bytes.Equal(again.name.Buffer, read.name.Buffer) || !bytes.Equal(again.private.Buffer, read.private.Buffer) {
				t.Fatalf("written again it is another: %v", err)
			}
		}
		if _, err := parse(der, keyfile.OIDLoadableKey); err == nil && pemless(der) {
			t.Fatal("a file without PEM is taken")
		}
	})
}

func pemless(b []byte) bool { return !bytes.Contains(b, []byte("-----BEGIN "+FileType)) }

// FuzzParent is the storage key that comes from outside to who wraps a key.
func FuzzParent(f *testing.F) {
	storage := storageTemplate()
	key := clearTestKey()
	of, _, err := clearKey(key)
	if err != nil {
		f.Fatal(err)
	}
	storage.Unique = of.Unique
	f.Add(tpm2.Marshal(storage))
	f.Add(tpm2.Marshal(*of))
	rsa := tpm2.RSASRKTemplate
	rsa.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: bytes.Repeat([]byte{0xff}, 256)})
	f.Add(tpm2.Marshal(rsa))
	f.Fuzz(func(t *testing.T, area []byte) {
		text, err := Wrap(pem.EncodeToMemory(&pem.Block{Type: ParentType, Bytes: area}), key)
		if err != nil {
			return
		}
		if _, err := parse(text, keyfile.OIDImportableKey); err != nil {
			t.Fatal(err)
		}
	})
}

// A liar is a TPM that says whatever it was told to say, in answers of two
// bytes of length each. An even length is one without an error.
type liar struct {
	script []byte
	due    bytes.Buffer
}

func (l *liar) Write(b []byte) (int, error) {
	if len(l.script) < 2 {
		return len(b), nil
	}
	n := int(binary.BigEndian.Uint16(l.script)) % 1024
	l.script = l.script[2:]
	body := l.script[:min(n, len(l.script))]
	l.script = l.script[len(body):]
	tag, rc := tpm2.TPMSTNoSessions, uint32(0)
	if tpm2.TPMST(binary.BigEndian.Uint16(b)) == tpm2.TPMSTSessions {
		tag = tpm2.TPMSTSessions
	}
	if n%2 == 1 && len(body) >= 4 {
		rc, body = binary.BigEndian.Uint32(body), body[4:]
	}
	l.due.Write(binary.BigEndian.AppendUint16(nil, uint16(tag)))
	l.due.Write(binary.BigEndian.AppendUint32(nil, uint32(headerSize+len(body))))
	l.due.Write(binary.BigEndian.AppendUint32(nil, rc))
	l.due.Write(body)
	return len(b), nil
}

func (l *liar) Read(b []byte) (int, error) {
	if l.due.Len() == 0 {
		return 0, io.EOF
	}
	return l.due.Read(b)
}

func (l *liar) Close() error                { return nil }
func (l *liar) SetDeadline(time.Time) error { return nil }

// script writes down what a real TPM answers.
func script(f *testing.F, file []byte) []byte {
	dir := folder(f)
	e, err := swtpm.Start(f.Context(), dir)
	if err != nil {
		f.Log("no seeds of a real TPM: ", err)
		return nil
	}
	f.Cleanup(e.Stop)
	var tape bytes.Buffer
	d := open(f, e, Options{Dial: wired(func(_ int, w *wire) {
		w.read = func(b []byte) (int, error) {
			n, err := w.Conn.Read(b)
			body := bytes.Clone(b[headerSize:n])
			if len(body)%2 == 1 {
				body = append(body, 0)
			}
			tape.Write(binary.BigEndian.AppendUint16(nil, uint16(len(body))))
			tape.Write(body)
			return n, err
		}
	})})
	use(f.Context(), d, file)
	return tape.Bytes()
}

// use does everything, and gives what went wrong.
func use(ctx context.Context, d *TPM, file []byte) (errs []error) {
	note := func(_ any, err error) { errs = append(errs, err) }
	k, err := d.Key(file)
	if err != nil {
		return []error{err}
	}
	note(nil, d.Check(ctx))
	note(d.Describe(ctx))
	note(d.Fingerprint(ctx))
	note(nil, sign(k))
	note(d.Create(ctx, P256, nil))
	note(d.Seal(ctx, []byte("x"), nil))
	note(d.Parent(ctx))
	note(d.Attest(ctx, file, file, nil, nonce))
	note(d.Activate(ctx, file, []byte("x"), []byte("y")))
	note(nil, d.Close())
	return errs
}

func FuzzResponse(f *testing.F) {
	file := aKeyFile(P256)
	f.Add(script(f, file))
	f.Add([]byte{0, 5, 0, 0, 9, 0x22, 1, 0, 5, 0, 0, 1, 0x44, 1})
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, text []byte) {
		if len(text) > 8<<10 {
			t.Skip("longer than all that a TPM says here")
		}
		d := Open("unix:/liar", Options{Command: time.Millisecond, Dial: func(context.Context, string) (Conn, error) {
			return &liar{script: text}, nil
		}})
		done := make(chan []error, 1)
		go func() { done <- use(context.Background(), d, file) }()
		select {
		case errs := <-done:
			for _, err := range errs {
				if err != nil && FaultOf(err) == "" {
					t.Errorf("an error without a fault: %v", err)
				}
			}
		case <-time.After(20 * time.Second):
			t.Fatal("it hangs")
		}
	})
}

// Should package tpm2 panic on an answer, it costs the link and no more.
func TestAPanicOverAnAnswerIsAFailingTPM(t *testing.T) {
	d := open(t, emulator(t), Options{})
	first := true
	err := d.use(t.Context(), "do something", func(l *link) error {
		if first {
			first = false
			panic("index out of range")
		}
		return nil
	})
	if err != nil {
		t.Error("once is made good: ", err)
	}
	err = d.use(t.Context(), "do something", func(l *link) error { panic("index out of range") })
	wantFault(t, err, Failing)
	if !strings.Contains(err.Error(), "index out of range") {
		t.Error(err)
	}
	if err := d.Check(t.Context()); err != nil {
		t.Error(err)
	}
}

// A key that is the same in all processes of the fuzzer.
var clearTestKey = sync.OnceValue(func() *ecdsa.PrivateKey {
	d := sha256.Sum256([]byte("a key for tests"))
	k, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), d[:])
	if err != nil {
		panic(err)
	}
	return k
})

// FuzzApproval is a file of the firmware, which the TPM has to judge only where
// the signature holds.
func FuzzApproval(f *testing.F) {
	good, err := Approve(clearTestKey(), map[uint][]byte{4: make([]byte, 32), 7: make([]byte, 32)})
	if err != nil {
		f.Fatal(err)
	}
	text, err := json.Marshal(good)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte(`{"pcrs":[99999999999],"signer":"BA=="}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		if all, err := ParseApprovals(slices.Concat([]byte("["), text, []byte("]")), clearTestKey().Public()); err == nil {
			for _, a := range all {
				if _, err := a.key(); err != nil {
					t.Error("what a file is taken for, no key is used by: ", err)
				}
			}
		}
		var a Approval
		if json.Unmarshal(text, &a) != nil {
			return
		}
		area, err := a.signer()
		if err != nil {
			return
		}
		if _, err := a.signature(); err != nil {
			t.Error("verified, and cannot be read: ", err)
		}
		key, err := tpm2.Pub(*area)
		if digest := sha256.Sum256(a.Policy); err != nil || !ecdsa.VerifyASN1(key.(*ecdsa.PublicKey), digest[:], a.Signature) {
			t.Error("the signer did not sign: ", err)
		}
		_ = selection(a.PCRs...)
	})
}

// FuzzCertificates is what a maker left in the TPM.
func FuzzCertificates(f *testing.F) {
	f.Add([]byte("\x30\x03abc\x30\x00\xff\xff"))
	f.Add([]byte{0x30, 0x84, 0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, der []byte) {
		if all := bytes.Join(elements(der), nil); !bytes.HasPrefix(der, all) {
			t.Error("what was read is not what is there")
		}
	})
}
