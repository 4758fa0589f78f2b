package enroll

import (
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bedside-gateway/gatewayd/internal/sim/ca"
	"github.com/bedside-gateway/gatewayd/internal/sim/pki"
	"github.com/bedside-gateway/gatewayd/keystore"
	"github.com/bedside-gateway/gatewayd/keystore/attest/attesttest"
	"github.com/bedside-gateway/gatewayd/keystore/est"
	"github.com/bedside-gateway/gatewayd/keystore/tpm"
)

// authority runs a CA with the hospital's PKI.
func (b *box) authority(o ca.Options) CA {
	b.t.Helper()
	o.PKI, o.Credentials = b.pki, map[string]string{"ward": "bed side"}
	s := must(ca.New(o))(b.t)
	server := httptest.NewUnstartedServer(s)
	server.TLS = must(s.TLS())(b.t)
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	b.t.Cleanup(server.Close)
	return CA{URL: server.URL, Roots: b.pki.Roots()}
}

func (c CA) with(user, password string) CA {
	c.Credential = func() (string, string, error) { return user, password, nil }
	return c
}

// kinds are those of keys.
func kinds() []tpm.Kind {
	if raced {
		return []tpm.Kind{tpm.P256}
	}
	return []tpm.Kind{tpm.P256, tpm.P384, tpm.RSA2048}
}

var names = map[tpm.Kind]string{tpm.P256: "ECC P-256", tpm.P384: "ECC P-384", tpm.RSA2048: "RSA 2048"}

// has makes sure that a slot has a whole chain for a key of the kind.
func (b *box) has(slot *keystore.Slot, kind tpm.Kind) {
	b.t.Helper()
	if slot == nil || slot.Chain == nil {
		b.t.Fatalf("the slots are %+v", b.slots())
	}
	if got := Table(keystore.Slots{Current: slot}, b.now)[0].Kind; got != names[kind] || len(slot.Chain) != 2 {
		b.t.Errorf("a key of the kind %s, %d certificates", got, len(slot.Chain))
	}
	b.signs(slot)
}

// The key signs the request, and in TLS: RSA by PSS with the salt that TLS 1.3 wants.
func TestTheFirstCertificateAndTheNextComeOverEST(t *testing.T) {
	for _, kind := range kinds() {
		t.Run(string(kind), func(t *testing.T) {
			b := newBox(t, kind)
			ca := b.authority(ca.Options{})
			_, err := b.Renew(b.ctx(), ca)
			wantError(t, err, "--user and --password-file")
			_, err = b.Renew(b.ctx(), ca.with("ward", "wrong"))
			if _, ok := errors.AsType[*est.Refused](err); !ok {
				t.Errorf("a wrong password: %v", err)
			}
			waiting := b.key()
			if o := must(b.Renew(b.ctx(), ca.with("ward", "bed side")))(t); !o.Changed || !strings.Contains(o.Done, "current slot") {
				t.Errorf("%+v", o)
			}
			first := b.slots().Current
			b.has(first, kind)
			if !keystore.Matches(waiting, first.Chain[0]) {
				t.Error("a refusal cost the key that waited")
			}
			if o := must(b.Renew(b.ctx(), ca))(t); !o.Changed || !strings.Contains(o.Done, "next slot") {
				t.Errorf("%+v", o)
			}
			s := b.slots()
			b.has(s.Next, kind)
			if !s.Current.Chain[0].Equal(first.Chain[0]) || keystore.Mark(s.Next.Public) == keystore.Mark(first.Public) {
				t.Error("the renewed certificate is for the same key, or took the place of the first")
			}
		})
	}
}

// After its end the certificate is a credential for few CAs; the bootstrap
// credential is one again.
func TestAGatewayThatExpiredOnTheShelfIsEnrolledByItsCredential(t *testing.T) {
	b := newBox(t, tpm.P256)
	b.enroll()
	authority := b.authority(ca.Options{})
	b.now = b.now.Add(-2 * pki.DefaultLifetime)
	old := must(b.pki.IssueDevice("ecc-issuing", b.slots().Current.Public, pki.DefaultDevice, b.now, pki.DefaultLifetime))(t)
	if _, err := b.Install(encode(old)); err != nil {
		t.Fatal(err)
	}
	if err := b.Store.Promote(); err != nil {
		t.Fatal(err)
	}
	b.now = time.Now()
	if s := must(b.Status(b.ctx()))(t); s.Slots[0].Expiry != string(keystore.Expired) || !strings.Contains(s.Next, "has expired") {
		t.Errorf("%+v", s)
	}
	_, err := b.Renew(b.ctx(), authority)
	wantError(t, err, "expired")
	if o := must(b.Renew(b.ctx(), authority.with("ward", "bed side")))(t); !o.Changed {
		t.Errorf("%+v", o)
	}
	b.has(b.slots().Next, tpm.P256)
}

func TestARequestThatIsPutOffIsTheSameWhenItComesAgain(t *testing.T) {
	b := newBox(t, tpm.P256)
	authority := b.authority(ca.Options{Pending: 2, RetryAfter: 3 * time.Second}).with("ward", "bed side")
	_, err := b.Renew(b.ctx(), authority)
	p, ok := errors.AsType[*est.Pending](err)
	if !ok || p.After != 3*time.Second {
		t.Fatalf("%v", err)
	}
	request := string(must(b.Request(b.ctx()))(t))
	if _, err = b.Renew(b.ctx(), authority); err == nil || string(must(b.Request(b.ctx()))(t)) != request {
		t.Fatalf("another request, or none was needed: %v", err)
	}
	if _, err := b.Renew(b.ctx(), authority); err != nil {
		t.Fatal(err)
	}
	if got := string(b.slots().Current.Request); got != request {
		t.Error("the certificate is for another request")
	}
}

func TestAnAttestedKeyGetsItsCertificate(t *testing.T) {
	for _, kind := range kinds() {
		t.Run(string(kind), func(t *testing.T) {
			maker, err := attesttest.Start()
			if err != nil {
				if os.Getenv("NEED_SWTPM") == "" {
					t.Skip(err)
				}
				t.Fatal(err)
			}
			t.Cleanup(func() { maker.Close() })
			b := bare(t, kind)
			b.config.Identity.TPM = "unix:" + maker.Socket
			b.open()
			between := x509.NewCertPool()
			between.AddCert(maker.Issuer)
			authority := b.authority(ca.Options{EKRoots: maker.Roots, EKIntermediates: between, RequireAttestation: true})
			if _, err := b.Renew(b.ctx(), authority.with("ward", "bed side")); err == nil {
				t.Error("the CA takes a first key that was not attested")
			}
			if o := must(b.Attest(b.ctx(), authority))(t); !o.Changed || !strings.Contains(o.Done, "current slot") {
				t.Errorf("%+v", o)
			}
			b.has(b.slots().Current, kind)
			ak := must(os.ReadFile(filepath.Join(b.Home, "attestation.pem")))(t)
			b.open()
			if o := must(b.Attest(b.ctx(), authority))(t); !o.Changed || !strings.Contains(o.Done, "next slot") {
				t.Errorf("%+v", o)
			}
			b.has(b.slots().Next, kind)
			if again := must(os.ReadFile(filepath.Join(b.Home, "attestation.pem")))(t); !slices.Equal(ak, again) {
				t.Error("another attestation key was made")
			}
			stranger := b.authority(ca.Options{EKRoots: x509.NewCertPool()})
			if err := b.refusedBy(stranger); err == nil || !strings.Contains(err.Error(), "endorsement") {
				t.Errorf("a CA that does not know the maker: %v", err)
			}
		})
	}
}

// refusedBy attests, and the slots with certificates stay.
func (b *box) refusedBy(c CA) error {
	b.t.Helper()
	before := b.slots().Current.Chain[0]
	_, err := b.Attest(b.ctx(), c)
	if !b.slots().Current.Chain[0].Equal(before) {
		b.t.Error("the certificate in use was changed")
	}
	return err
}

// What the maker of the firmware approved is what the key and the secret are
// used in, through the files that the configuration names.
func TestABoundIdentityFollowsTheFilesOfItsConfiguration(t *testing.T) {
	b := newBox(t, tpm.P256)
	signer := p256(t)
	b.config.Identity.PolicySigner = write(t, "signer.pem", inPEM("PUBLIC KEY", must(x509.MarshalPKIXPublicKey(signer.Public()))(t)))
	b.config.Identity.PolicyApprovals = write(t, "approvals.json", []byte("[]"))
	var approvals []tpm.Approval
	approve := func() {
		t.Helper()
		file := filepath.Join(t.TempDir(), "pcr")
		b.tool("tpm2_pcrread", "sha256:16", "-o", file)
		approvals = append(approvals, must(tpm.Approve(signer, map[uint][]byte{16: must(os.ReadFile(file))(t)}))(t))
		if err := os.WriteFile(b.config.Identity.PolicyApprovals, must(json.Marshal(approvals))(t), 0o600); err != nil {
			t.Fatal(err)
		}
		b.open()
	}
	b.open()
	_, err := b.Init(b.ctx())
	wantFault(t, err, tpm.Refused)
	approve()
	b.enroll()
	b.signs(b.slots().Current)
	sealed := must(b.TPM.Seal(b.ctx(), []byte("the key of the spool"), b.Binding))(t)
	unsealed := func() error {
		t.Helper()
		got, err := b.TPM.Unseal(b.ctx(), sealed)
		if err == nil && string(got) != "the key of the spool" {
			t.Errorf("it gives %q", got)
		}
		return err
	}
	if err := unsealed(); err != nil {
		t.Fatal(err)
	}

	b.tool("tpm2_pcrextend", "16:sha256="+strings.Repeat("ab", 32))
	s := must(b.Status(b.ctx()))(t)
	if s.Fault != string(tpm.Refused) || !strings.Contains(s.Next, "approvals") {
		t.Errorf("in a state that nobody approved: %+v", s)
	}
	wantFault(t, unsealed(), tpm.Refused)
	wantFault(t, b.unchanged(func() (Outcome, error) { return b.NewKey(b.ctx()) }), tpm.Refused)
	wantFault(t, b.unchanged(func() (Outcome, error) { return b.Init(b.ctx()) }), tpm.Refused)

	approve()
	if s := must(b.Status(b.ctx()))(t); s.Fault != "" {
		t.Errorf("in the state that was approved now: %+v", s)
	}
	b.signs(b.slots().Current)
	if err := unsealed(); err != nil {
		t.Error(err)
	}
	for _, text := range []string{"", "{}", "[1]", `[{"pcrs":"16"}]`} {
		if err := os.WriteFile(b.config.Identity.PolicyApprovals, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := OpenTPM(b.config, tpm.Options{})
		wantError(t, err, "policy_approvals: "+b.config.Identity.PolicyApprovals)
	}
	for _, text := range [][]byte{nil, pkcs8(t, signer), inPEM("PUBLIC KEY", []byte("none"))} {
		if err := os.WriteFile(b.config.Identity.PolicySigner, text, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := Binding(b.config)
		wantError(t, err, "policy_signer: "+b.config.Identity.PolicySigner)
	}
}

func TestTheCAOfAConfigurationIsReadOrSaidToBeMissing(t *testing.T) {
	b := bare(t, tpm.P256)
	_, err := Authority(b.config)
	wantError(t, err, "set est_url and est_trust in [identity], or renew by hand")
	b.config.Identity.ESTURL = "https://ca.test"
	for name, c := range map[string]struct{ file, word string }{
		"a file that is not there":   {filepath.Join(t.TempDir(), "none.pem"), "none.pem"},
		"a file without certificate": {write(t, "empty.pem", []byte("nothing")), "empty.pem"},
	} {
		b.config.Identity.ESTTrust = c.file
		_, err := Authority(b.config)
		if err == nil || !strings.Contains(err.Error(), "roots of the CA") || !strings.Contains(err.Error(), c.word) {
			t.Errorf("%s: %v", name, err)
		}
	}
	b.config.Identity.ESTTrust = write(t, "roots.pem", encode([]*x509.Certificate{b.entry("ecc-root")}))
	if c := must(Authority(b.config))(t); c.URL != "https://ca.test" || c.Roots == nil {
		t.Errorf("%+v", c)
	}
}
