package tpm

import (
	"crypto"
	"crypto/ecdsa"
	"path/filepath"
	"strings"
	"testing"

	keyfile "github.com/foxboron/go-tpm-keyfiles"
)

// registersOf reads registers by the TPM's own word.
func registersOf(t testing.TB, d *TPM, which ...uint) map[uint][]byte {
	t.Helper()
	values := map[uint][]byte{}
	err := d.use(t.Context(), "read registers", func(l *link) error {
		for _, n := range which {
			v, err := l.register(n)
			if err != nil {
				return err
			}
			values[n] = v
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return values
}

func approve(t testing.TB, d *TPM, by *ecdsa.PrivateKey) Approval {
	t.Helper()
	return must(Approve(by, registersOf(t, d, 4, 7)))(t)
}

// A firmware update does not strand the box: what is bound to the signer works
// in each state that the signer approves, and in no other.
func TestABoundKeyAndSecretFollowTheApprovals(t *testing.T) {
	e, boss := emulator(t), signer(t)
	first := open(t, e, Options{})
	now := approve(t, first, boss)
	bound := &Binding{Signer: boss.Public()}
	file := must(first.Create(t.Context(), P256, bound))(t)
	secret := must(first.Seal(t.Context(), []byte("the spool's key"), bound))(t)
	_, err := first.Load(t.Context(), file)
	wantFault(t, err, Refused) // without any approval
	first.Close()

	good := func(d *TPM) {
		t.Helper()
		k, err := d.Load(t.Context(), file)
		if err != nil {
			t.Fatal(err)
		}
		if err := sign(k); err != nil {
			t.Fatal(err)
		}
		if got, err := d.Unseal(t.Context(), secret); err != nil || string(got) != "the spool's key" {
			t.Fatalf("%q %v", got, err)
		}
	}
	old := open(t, e, Options{Approvals: []Approval{now}})
	good(old)
	before := must(old.Load(t.Context(), file))(t)
	old.Close()
	tool(t, e, "", "tpm2_pcrextend", "7:sha256="+strings.Repeat("ab", 32))

	stale := open(t, e, Options{Approvals: []Approval{now}})
	_, err = stale.Load(t.Context(), file)
	wantFault(t, err, Refused)
	_, err = stale.Unseal(t.Context(), secret)
	wantFault(t, err, Refused)
	before.tpm = stale // as it would be if the state changed while the key is in use
	_, err = before.Sign(nil, make([]byte, 32), crypto.SHA256)
	wantFault(t, err, Refused)
	if before.tpm = nil; len(stale.loaded) != 1 {
		t.Error("a refusal is no reason to unload the key")
	}
	updated := approve(t, stale, boss)
	stale.Close()
	good(open(t, e, Options{Approvals: []Approval{now, updated}}))
}

func TestApprovalsThatTheSignerDidNotMakeAreRefused(t *testing.T) {
	e, boss, other := emulator(t), signer(t), signer(t)
	d := open(t, e, Options{})
	good := approve(t, d, boss)
	file := must(d.Create(t.Context(), P256, &Binding{Signer: boss.Public()}))(t)
	change := func(f func(*Approval)) Approval {
		a := good
		a.Signature, a.Policy, a.Signer = []byte(string(a.Signature)), []byte(string(a.Policy)), []byte(string(a.Signer))
		f(&a)
		return a
	}
	forged := approve(t, d, other)
	for name, a := range map[string]Approval{
		"another signer's":                forged,
		"another's in the signer's name":  change(func(a *Approval) { a.Signature = forged.Signature }),
		"a signature that was changed":    change(func(a *Approval) { a.Signature[len(a.Signature)-1] ^= 1 }),
		"no signature":                    change(func(a *Approval) { a.Signature = nil }),
		"a policy that was changed":       change(func(a *Approval) { a.Policy[0] ^= 1 }),
		"other registers":                 change(func(a *Approval) { a.PCRs = []uint{4} }),
		"no registers":                    change(func(a *Approval) { a.PCRs = nil }),
		"a register that there is not":    change(func(a *Approval) { a.PCRs = []uint{7, 24} }),
		"a register that there cannot be": change(func(a *Approval) { a.PCRs = []uint{1 << 40} }),
		"a signer that is no point":       change(func(a *Approval) { a.Signer[5] ^= 1 }),
		"no signer":                       change(func(a *Approval) { a.Signer = nil }),
	} {
		t.Run(name, func(t *testing.T) {
			d.SetApprovals([]Approval{a})
			_, err := d.Load(t.Context(), file)
			wantFault(t, err, Refused)
			d.SetApprovals([]Approval{a, good})
			k, err := d.Load(t.Context(), file)
			if err != nil {
				t.Fatal("with a good one behind it: ", err)
			}
			k.Release(t.Context())
		})
	}
}

// What package ecdsa says is not what counts: the TPM verifies as well.
func TestTheTPMVerifiesAnApprovalItself(t *testing.T) {
	d, boss := open(t, emulator(t), Options{}), signer(t)
	a := approve(t, d, boss)
	public := must(a.signer())(t)
	a.Signature = approve(t, d, signer(t)).Signature
	err := d.use(t.Context(), "show it", func(l *link) error {
		s, end, err := l.policySession()
		if err != nil {
			return err
		}
		defer end()
		return l.show(s.Handle(), &a, public)
	})
	wantFault(t, err, Refused)
}

func TestWhatCannotBeApprovedOrBound(t *testing.T) {
	boss := signer(t)
	for name, values := range map[string]map[uint][]byte{
		"nothing": {}, "register 24": {24: make([]byte, 32)}, "a SHA-1 value": {7: make([]byte, 20)},
	} {
		if _, err := Approve(boss, values); err == nil {
			t.Errorf("%s is approved", name)
		}
	}
	d := open(t, emulator(t), Options{})
	k := load(t, d, P384)
	if _, err := Approve(k, map[uint][]byte{7: make([]byte, 32)}); err == nil {
		t.Error("approved with a key on P-384")
	}
	_, err := d.Create(t.Context(), P256, &Binding{Signer: k.Public()})
	wantFault(t, err, Unable)
	_, err = d.Seal(t.Context(), []byte("x"), &Binding{})
	wantFault(t, err, Unable)
}

// The tools calculate the same policies.
func TestPoliciesAreThoseOfTheTools(t *testing.T) {
	e, boss := emulator(t), signer(t)
	d := open(t, e, Options{})
	a := approve(t, d, boss)
	file := must(parse(must(d.Create(t.Context(), P256, &Binding{Signer: boss.Public()}))(t), keyfile.OIDLoadableKey))(t)
	d.Close()
	dir := t.TempDir()
	tool(t, e, dir, "tpm2_startauthsession", "-S", "trial.ctx")
	tool(t, e, dir, "tpm2_policypcr", "-S", "trial.ctx", "-l", "sha256:4,7", "-L", "pcr.policy")
	tool(t, e, dir, "tpm2_flushcontext", "trial.ctx")
	if got := read(t, filepath.Join(dir, "pcr.policy")); string(got) != string(a.Policy) {
		t.Errorf("tpm2_policypcr has %x, the approval %x", got, a.Policy)
	}
	writePublic(t, filepath.Join(dir, "boss.pem"), boss.Public())
	tool(t, e, dir, "tpm2_loadexternal", "-C", "o", "-G", "ecc", "-u", "boss.pem", "-c", "boss.ctx", "-n", "boss.name")
	tool(t, e, dir, "tpm2_flushcontext", "-t")
	tool(t, e, dir, "tpm2_startauthsession", "-S", "trial.ctx")
	signerArea := must(signerPublic(boss.Public()))(t)
	write(t, filepath.Join(dir, "ours.name"), nameOf(t, signerArea))
	tool(t, e, dir, "tpm2_policyauthorize", "-S", "trial.ctx", "-n", "ours.name", "-i", "pcr.policy", "-L", "authorize.policy")
	tool(t, e, dir, "tpm2_flushcontext", "trial.ctx")
	if got := read(t, filepath.Join(dir, "authorize.policy")); string(got) != string(file.public.AuthPolicy.Buffer) {
		t.Errorf("tpm2_policyauthorize has %x, the key %x", got, file.public.AuthPolicy.Buffer)
	}
}
