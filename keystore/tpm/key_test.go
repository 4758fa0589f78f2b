package tpm

import (
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/tls"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/bedside-gateway/gatewayd/internal/sim/swtpm"
)

var kinds = []Kind{P256, P384, RSA2048}

func TestEachKindOfKeySignsWhatItSays(t *testing.T) {
	t.Parallel()
	want := map[Kind][]tls.SignatureScheme{
		P256: {tls.ECDSAWithP256AndSHA256}, P384: {tls.ECDSAWithP384AndSHA384}, RSA2048: {tls.PSSWithSHA256, tls.PKCS1WithSHA256}}
	for name, start := range map[string]func(context.Context, string) (*swtpm.Emulator, error){"unix": swtpm.Start, "tcp": swtpm.StartTCP} {
		t.Run(name, func(t *testing.T) {
			d := open(t, started(t, folder(t), start), Options{})
			for _, kind := range kinds {
				t.Run(string(kind), func(t *testing.T) {
					k := load(t, d, kind)
					if !slices.Equal(k.Algorithms(), want[kind]) {
						t.Errorf("it does %v, want %v", k.Algorithms(), want[kind])
					}
					if err := sign(k); err != nil {
						t.Error(err)
					}
					k.Release(t.Context())
					if err := sign(k); err != nil {
						t.Error("after it was released: ", err)
					}
				})
			}
		})
	}
}

func TestAKeySignsNothingElse(t *testing.T) {
	t.Parallel()
	d := open(t, emulator(t), Options{})
	pss := func(salt int) crypto.SignerOpts {
		return &rsa.PSSOptions{SaltLength: salt, Hash: crypto.SHA256}
	}
	for _, kind := range kinds {
		k := load(t, d, kind)
		for name, c := range map[string]struct {
			size int
			o    crypto.SignerOpts
		}{
			"SHA-1":                    {20, crypto.SHA1},
			"SHA-512":                  {64, crypto.SHA512},
			"a digest of another hash": {20, crypto.SHA256},
			"no digest":                {0, crypto.SHA256},
			"no hash":                  {32, crypto.Hash(0)},
			"no options":               {32, nil},
			"an auto salt":             {32, pss(rsa.PSSSaltLengthAuto)},
			"a salt of 20 bytes":       {32, pss(20)},
		} {
			if _, ok := c.o.(*rsa.PSSOptions); ok && kind != RSA2048 {
				continue
			}
			if s, err := k.Sign(nil, make([]byte, c.size), c.o); FaultOf(err) != Unable {
				t.Errorf("%s signs %s: %x %v", kind, name, s, err)
			}
		}
		k.Release(t.Context())
	}
	if _, err := d.Create(t.Context(), "ecc-p521", nil); FaultOf(err) != Unable {
		t.Error(err)
	}
}

func TestMoreKeysThanTheTPMHasRoomForTakeTurns(t *testing.T) {
	e := emulator(t)
	d := open(t, e, Options{})
	keys := make([]*Key, 5)
	for i := range keys {
		keys[i] = load(t, d, P256)
	}
	for range 3 {
		for i, k := range keys {
			if err := sign(k); err != nil {
				t.Fatalf("key %d: %v", i, err)
			}
		}
	}
	if n := len(d.loaded); n == 0 || n > 3 {
		t.Errorf("%d keys are loaded", n)
	}
	used := keys[4]
	for _, k := range keys[:2] { // the one in use is not the one to go
		for _, k := range []*Key{used, k} {
			if err := sign(k); err != nil {
				t.Fatal(err)
			}
		}
	}
	if !slices.Contains(d.loaded, used) {
		t.Error("the key that is used all the time was flushed")
	}
}

func TestManySignAtOnce(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	count := 0
	e := emulator(t)
	d := open(t, e, Options{Signed: func(took time.Duration) {
		mu.Lock()
		defer mu.Unlock()
		count++
		if took <= 0 {
			t.Error("a signature took no time")
		}
	}})
	keys := []*Key{load(t, d, P256), load(t, d, P384), load(t, d, RSA2048)}
	before := count
	var all sync.WaitGroup
	for i := range 32 {
		all.Go(func() {
			for j := range 4 {
				if err := sign(keys[(i+j)%len(keys)]); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	if want := 32*4 + 32*4/3; count-before < want { // RSA signs twice
		t.Errorf("%d signatures were told of, want %d at least", count-before, want)
	}
}

func TestWhoWaitsMayStopWaiting(t *testing.T) {
	d := open(t, emulator(t), Options{Patience: 20 * time.Millisecond})
	k := load(t, d, P256)
	<-d.turn // somebody uses it
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := d.Check(ctx); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	wantFault(t, sign(k), Busy)
	d.turn <- struct{}{}
	link := d.link
	if err := d.Check(ctx); !errors.Is(err, context.Canceled) {
		t.Error("free, and who does not want it any more takes it: ", err)
	}
	k.Release(ctx)
	if len(d.loaded) != 0 {
		t.Error("what is released stays loaded")
	}
	if err := sign(k); err != nil {
		t.Error(err)
	}
	if d.link != link {
		t.Error("who went away cost the link")
	}
}

func TestUsersComeInTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := Open("unix:/nowhere", Options{})
		<-d.turn
		var order []int
		for i := range 8 {
			go func() {
				if err := d.await(t.Context()); err != nil {
					t.Error(err)
				}
				order = append(order, i)
				d.turn <- struct{}{}
			}()
			synctest.Wait()
		}
		if n := d.waiting.Load(); n != 8 {
			t.Errorf("%d wait", n)
		}
		d.turn <- struct{}{}
		synctest.Wait()
		if !slices.IsSorted(order) || len(order) != 8 {
			t.Errorf("they come in the order %v", order)
		}
	})
}

func TestAClosedTPMSignsNoMore(t *testing.T) {
	d := open(t, emulator(t), Options{})
	k := load(t, d, P256)
	for range 2 {
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := sign(k); !errors.Is(err, errClosed) {
		t.Error(err)
	}
	k.Release(t.Context())
}

// Nothing that is done leaves anything in the TPM but the keys in use and the
// one session, and after Close it is empty.
func TestNothingIsLeftInTheTPM(t *testing.T) {
	t.Parallel()
	boss := signer(t)
	e := emulator(t)
	setup := open(t, e, Options{})
	approval := approve(t, setup, boss)
	setup.Close()
	d := open(t, e, Options{Approvals: []Approval{approval}})
	bound := &Binding{Signer: boss.Public()}
	file, ak := create(t, d, P256), must(d.AttestationKey(t.Context()))(t)
	sealed, tied := must(d.Seal(t.Context(), []byte("x"), nil))(t), must(d.Seal(t.Context(), []byte("x"), bound))(t)
	boundFile := must(d.Create(t.Context(), P256, bound))(t)
	wrapped := must(Wrap(must(d.Parent(t.Context()))(t), boss))(t)
	other := must(Wrap(must(open(t, emulator(t), Options{}).Parent(t.Context()))(t), boss))(t)
	stranger := create(t, open(t, emulator(t), Options{}), P256)
	var k *Key
	ctx := t.Context()
	second := func(_ any, err error) error { return err }
	for _, step := range []struct {
		name  string
		do    func() error
		fails bool
		keys  int
	}{
		{"check", func() error { return d.Check(ctx) }, false, 0},
		{"describe", func() error { return second(d.Describe(ctx)) }, false, 0},
		{"fingerprint", func() error { return second(d.Fingerprint(ctx)) }, false, 0},
		{"parent", func() error { return second(d.Parent(ctx)) }, false, 0},
		{"create", func() error { return second(d.Create(ctx, P384, nil)) }, false, 0},
		{"create bound", func() error { return second(d.Create(ctx, P256, bound)) }, false, 0},
		{"create what there is not", func() error { return second(d.Create(ctx, "x", nil)) }, true, 0},
		{"seal", func() error { return second(d.Seal(ctx, []byte("x"), nil)) }, false, 0},
		{"unseal", func() error { return second(d.Unseal(ctx, sealed)) }, false, 0},
		{"unseal bound", func() error { return second(d.Unseal(ctx, tied)) }, false, 0},
		{"import", func() error { return second(d.Import(ctx, wrapped)) }, false, 0},
		{"import another's", func() error { return second(d.Import(ctx, other)) }, true, 0},
		{"load another's", func() error { return second(d.Load(ctx, stranger)) }, true, 0},
		{"attestation key", func() error { return second(d.AttestationKey(ctx)) }, false, 0},
		{"attest", func() error { return second(d.Attest(ctx, file, ak, nil, []byte("0123456789abcdef"))) }, false, 0},
		{"activate nonsense", func() error { return second(d.Activate(ctx, ak, []byte("x"), []byte("y"))) }, true, 0},
		{"load", func() (err error) { k, err = d.Load(ctx, file); return err }, false, 1},
		{"sign", func() error { return sign(k) }, false, 1},
		{"load bound", func() error { return second(d.Load(ctx, boundFile)) }, false, 2},
		{"release", func() error { k.Release(ctx); return nil }, false, 1},
		{"without approvals", func() error {
			d.SetApprovals(nil)
			defer d.SetApprovals([]Approval{approval})
			return second(d.Unseal(ctx, tied))
		}, true, 1},
	} {
		if err := step.do(); (err != nil) != step.fails {
			t.Fatalf("%s: %v", step.name, err)
		}
		objects, sessions := handlesOf(t, d.inHand())
		if objects != step.keys || objects != len(d.loaded) || sessions != 1 {
			t.Errorf("after %q there are %d objects and %d sessions in the TPM, and %d keys are taken as loaded; want %d, 1", step.name, objects, sessions, len(d.loaded), step.keys)
		}
	}
	d.Close()
	other2, _ := raw(t, e)
	if objects, sessions := handlesOf(t, other2); objects+sessions != 0 {
		t.Errorf("%d objects and %d sessions are left", objects, sessions)
	}
}
