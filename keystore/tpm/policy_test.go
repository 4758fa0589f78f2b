package tpm

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
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
	const signature = "of 1 approvals none by its signer is in order: its signature does not hold"
	for name, c := range map[string]struct {
		a    Approval
		want string
	}{
		"another signer's":                {forged, "of 1 approvals none is by the signer that it is bound to"},
		"another's in the signer's name":  {change(func(a *Approval) { a.Signature = forged.Signature }), signature},
		"a signature that was changed":    {change(func(a *Approval) { a.Signature[len(a.Signature)-1] ^= 1 }), signature},
		"no signature":                    {change(func(a *Approval) { a.Signature = nil }), signature},
		"a policy that was changed":       {change(func(a *Approval) { a.Policy[0] ^= 1 }), signature},
		"other registers":                 {change(func(a *Approval) { a.PCRs = []uint{4} }), "of 1 approvals by its signer none is of the state"},
		"no registers":                    {change(func(a *Approval) { a.PCRs = nil }), "its registers are none"},
		"a register that there is not":    {change(func(a *Approval) { a.PCRs = []uint{7, 24} }), "its registers are none"},
		"a register that there cannot be": {change(func(a *Approval) { a.PCRs = []uint{1 << 40} }), "its registers are none"},
		"a signer that is no point":       {change(func(a *Approval) { a.Signer[5] ^= 1 }), "its signer is no point"},
		"no signer":                       {change(func(a *Approval) { a.Signer = nil }), "its signer is no point"},
	} {
		t.Run(name, func(t *testing.T) {
			d.SetApprovals([]Approval{c.a})
			_, err := d.Load(t.Context(), file)
			wantFault(t, err, Refused)
			if !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, without %q", err, c.want)
			}
			d.SetApprovals([]Approval{c.a, good})
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
	long := must(ecdsa.GenerateKey(elliptic.P521(), rand.Reader))(t)
	for kind, key := range map[string]crypto.PublicKey{"on P-384": k.Public(), "on P-521": long.Public(), "of RSA": load(t, d, RSA2048).Public(), "of another kind": nil} {
		_, err := d.Create(t.Context(), P256, &Binding{Signer: key})
		wantFault(t, err, Unable)
		wantAdvice(t, err, "make the signer a key on P-256")
		if !strings.Contains(err.Error(), "the signer's key is "+kind) || strings.Contains(err.Error(), "key_type") {
			t.Error(err)
		}
		_, err = d.Seal(t.Context(), []byte("x"), &Binding{Signer: key})
		wantFault(t, err, Unable)
		wantAdvice(t, err, "make the signer a key on P-256")
	}
}

func TestThePolicyFilesAreJudgedWithoutATPM(t *testing.T) {
	boss, other := signer(t), signer(t)
	long := must(ecdsa.GenerateKey(elliptic.P521(), rand.Reader))(t)
	file := func(key crypto.PublicKey) string {
		path := filepath.Join(t.TempDir(), "signer.pem")
		writePublic(t, path, key)
		return string(read(t, path))
	}
	for name, c := range map[string]struct{ text, want string }{
		"a key on P-256":   {file(boss.Public()), ""},
		"a key on P-521":   {file(long.Public()), "the signer's key is on P-521"},
		"a key of RSA":     {file(must(rsa.GenerateKey(rand.Reader, 2048))(t).Public()), "the signer's key is of RSA"},
		"a key of Ed25519": {file(ed25519.NewKeyFromSeed(make([]byte, 32)).Public()), "the signer's key is of another kind"},
		"nothing":          {"", `it has to hold one PEM block "PUBLIC KEY"`},
		"two keys":         {file(boss.Public()) + file(other.Public()), `one PEM block "PUBLIC KEY" and nothing else`},
		"a private key":    {"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", `it has to hold one PEM block "PUBLIC KEY"`},
		"a damaged key":    {"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "cannot be read"},
	} {
		key, err := ParseSigner([]byte(c.text))
		if c.want == "" && (err != nil || !boss.Public().(*ecdsa.PublicKey).Equal(key)) || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, %v", name, key, err)
		}
	}
	values := map[uint][]byte{7: make([]byte, 32)}
	ours, theirs := must(Approve(boss, values))(t), must(Approve(other, values))(t)
	forged, registers := ours, ours
	forged.Signature, registers.PCRs = theirs.Signature, []uint{24}
	list := func(all ...Approval) string { return string(must(json.Marshal(all))(t)) }
	for name, c := range map[string]struct{ text, want string }{
		"ours":                                 {list(ours), ""},
		"ours beside one of the signer before": {list(theirs, ours), ""},
		"another signer's alone":               {list(theirs, theirs), "of its 2 approvals none is by policy_signer"},
		"none":                                 {"[]", "of its 0 approvals none is by policy_signer"},
		"a forged one beside a good one":       {list(ours, forged), "approval 2: its signature does not hold"},
		"one of register 24":                   {list(registers), "approval 1: its registers are none from 0 to 23"},
		"no JSON":                              {"approved", "it holds no approvals"},
	} {
		all, err := ParseApprovals([]byte(c.text), boss.Public())
		if c.want == "" && (err != nil || len(all) == 0) || c.want != "" && (all != nil || err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %d, %v", name, len(all), err)
		}
	}
	if all, err := ParseApprovals([]byte(list(ours)), long.Public()); err == nil {
		t.Errorf("%d approvals by a signer that there cannot be", len(all))
	}
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
