package tpm

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
)

func TestAKeyThatWorksIsTriedAndStaysAsItWas(t *testing.T) {
	t.Parallel()
	e := emulator(t)
	signed := 0
	d := open(t, e, Options{Signed: func(time.Duration) { signed++ }})
	for _, kind := range kinds {
		t.Run(string(kind), func(t *testing.T) {
			text := create(t, d, kind)
			k := must(d.Key(text))(t)
			if err := k.Try(t.Context()); err != nil {
				t.Fatal("not loaded: ", err)
			}
			if len(d.loaded) != 0 {
				t.Error("it is loaded afterwards")
			}
			if err := sign(k); err != nil {
				t.Fatal(err)
			}
			before := signed
			again := must(d.Key(text))(t) // as from a file that was read once more
			for _, k := range []*Key{k, again} {
				if err := k.Try(t.Context()); err != nil {
					t.Fatal("loaded: ", err)
				}
			}
			if objects, sessions := handlesOf(t, d.inHand()); objects != 1 || sessions != 1 || len(d.loaded) != 1 || d.loaded[0] != k {
				t.Errorf("%d objects, %d sessions, %d keys are loaded", objects, sessions, len(d.loaded))
			}
			if signed != before {
				t.Error("it is counted among the signatures")
			}
			k.Release(t.Context())
		})
	}
}

func TestATrialMakesRoomAndKeysAreLoadedAgain(t *testing.T) {
	d := open(t, emulator(t), Options{})
	a, b, c := load(t, d, P256), load(t, d, P256), must(d.Key(create(t, d, P256)))(t)
	if err := c.Try(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, k := range []*Key{a, b} {
		if err := sign(k); err != nil {
			t.Error(err)
		}
	}
}

// The link is open, the key is loaded, and it signs: all the same it is told.
func TestATrialNoticesWhatTheNextHandshakeWould(t *testing.T) {
	t.Parallel()
	boss := signer(t)
	bound := &Binding{Signer: boss.Public()}
	type box struct {
		d        *TPM
		k        *Key
		stranger []byte
	}
	for _, c := range []struct {
		name string
		do   func(t *testing.T, b *box)
		want Fault
		next string
	}{
		{"a clearing", func(t *testing.T, b *box) {
			platform := tpm2.AuthHandle{Handle: tpm2.TPMRHPlatform, Auth: tpm2.PasswordAuth(nil)}
			must(tpm2.Clear{AuthHandle: platform}.Execute(b.d.inHand()))(t)
		}, Cleared, AnewWithout},
		{"a state that nobody approved", func(t *testing.T, b *box) { extend(t, b.d) }, Refused, "boot a firmware"},
		{"approvals that are gone", func(t *testing.T, b *box) { b.d.SetApprovals(nil) }, Refused, "install its approvals"},
		{"the key file of another TPM", func(t *testing.T, b *box) { b.k = must(b.d.Key(b.stranger))(t) }, Foreign, Anew},
		{"a password on the owner", func(t *testing.T, b *box) { lockOwner(t, b.d) }, OwnerLocked, "tpm2_changeauth"},
		{"a TPM that is away", func(t *testing.T, b *box) { b.d.hangUpForTest(); b.d.address = "unix:/no/tpm.sock" }, Absent, "tpm in [identity]"},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := emulator(t)
			d := open(t, e, Options{})
			expected, now := must(d.Fingerprint(t.Context()))(t), approve(t, d, boss)
			d.Close()
			b := &box{d: open(t, e, Options{Expect: &expected, Approvals: []Approval{now}}), stranger: create(t, open(t, emulator(t), Options{}), P256)}
			b.k = must(b.d.Load(t.Context(), must(b.d.Create(t.Context(), P256, bound))(t)))(t)
			if err := b.k.Try(t.Context()); err != nil {
				t.Fatal(err)
			}
			c.do(t, b)
			for range 2 { // it is no state that comes and goes
				err := b.k.Try(t.Context())
				wantFault(t, err, c.want)
				wantAdvice(t, err, c.next)
			}
		})
	}
}

// extend changes the state of the platform under an open link.
func extend(t testing.TB, d *TPM) {
	t.Helper()
	event := tpm2.PCREvent{PCRHandle: tpm2.AuthHandle{Handle: 7, Auth: tpm2.PasswordAuth(nil)}, EventData: tpm2.TPM2BEvent{Buffer: []byte("another firmware")}}
	must(event.Execute(d.inHand()))(t)
}

// lockOwner sets a password under an open link.
func lockOwner(t testing.TB, d *TPM) {
	t.Helper()
	c := tpm2.HierarchyChangeAuth{AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)}, NewAuth: tpm2.TPM2BAuth{Buffer: []byte("secret")}}
	must(c.Execute(d.inHand()))(t)
}

// The first report is that of a link which broke after the key was loaded.
func TestAPasswordOnTheOwnerIsNeverTakenForOneOnTheKey(t *testing.T) {
	d := open(t, emulator(t), Options{})
	k, sealed := load(t, d, P256), must(d.Seal(t.Context(), []byte("x"), nil))(t)
	lockOwner(t, d)
	wantFault(t, k.Try(t.Context()), OwnerLocked) // and costs nothing
	if err := sign(k); err != nil {
		t.Fatal("a key that is loaded needs no owner: ", err)
	}
	d.inHand().conn.Close() // somebody else used the TPM, and we open it again
	for range 3 {
		err := sign(k)
		wantFault(t, err, OwnerLocked)
		wantAdvice(t, err, "tpm2_changeauth")
		if !strings.Contains(err.Error(), "the owner hierarchy has a password") {
			t.Error(err)
		}
		wantFault(t, k.Try(t.Context()), OwnerLocked)
		_, err = d.Unseal(t.Context(), sealed)
		wantFault(t, err, OwnerLocked)
	}
}

func TestNewApprovalsAreUsedByAKeyInUse(t *testing.T) {
	d, boss := open(t, emulator(t), Options{}), signer(t)
	now := approve(t, d, boss)
	d.SetApprovals([]Approval{now})
	k := must(d.Load(t.Context(), must(d.Create(t.Context(), P256, &Binding{Signer: boss.Public()}))(t)))(t)
	extend(t, d)
	err := sign(k)
	wantFault(t, err, Refused)
	updated := []Approval{now, approve(t, d, boss)}
	var all sync.WaitGroup
	for range 4 { // while others sign, or try to
		all.Go(func() { _ = k.Try(context.Background()) })
		all.Go(func() { d.SetApprovals(updated) })
	}
	all.Wait()
	if err := sign(k); err != nil {
		t.Error(err)
	}
}

// Who tries a key gives way when his time is over, and costs nobody the link.
func TestATrialThatComesTooLateIsBusyAndNoFailure(t *testing.T) {
	d := open(t, emulator(t), Options{})
	k := load(t, d, P256)
	link := d.link
	<-d.turn // a storm of handshakes
	late, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	wantFault(t, k.Try(late), Busy)
	d.turn <- struct{}{}
	wantFault(t, k.Try(late), Busy) // the TPM is free, and there is no time left
	if err := sign(k); err != nil || d.link != link {
		t.Error(err)
	}
}

func TestAFaultNamesTheTPMWhereItWasNeeded(t *testing.T) {
	_, err := PublicKey([]byte("x"))
	e, _ := errors.AsType[*Error](err)
	if got := e.Reason(); got != `could not read the key file: the key file holds no PEM block "TSS2 PRIVATE KEY"` {
		t.Error(got)
	}
	e, _ = errors.AsType[*Error](Open("unix:/no/tpm.sock", Options{}).Check(t.Context()))
	if got := e.Reason(); !strings.HasPrefix(got, "TPM unix:/no/tpm.sock: could not look at the TPM: ") {
		t.Error(got)
	}
	for _, d := range []string{"", "unix:/no/tpm.sock"} {
		if err := faultOf("do it", d, errors.New("x")); strings.Contains(err.Error(), "TPM :") || strings.Contains(err.Error(), "TPM  ") {
			t.Error(err)
		}
	}
}
