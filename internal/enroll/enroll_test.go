package enroll

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/bedside-gateway/gatewayd/internal/config"
	"github.com/bedside-gateway/gatewayd/internal/sim/pki"
	"github.com/bedside-gateway/gatewayd/keystore"
	"github.com/bedside-gateway/gatewayd/keystore/tpm"
)

func TestInitMakesOneKey(t *testing.T) {
	b := newBox(t, tpm.P256)
	if _, err := b.Request(b.ctx()); !errors.Is(err, ErrNotBegun) {
		t.Errorf("a request before there is a key: %v", err)
	}
	if o := b.init(); !o.Changed || !strings.Contains(o.Done, keystore.Mark(b.key())) {
		t.Errorf("the first time: %+v", o)
	}
	key := b.key()
	if err := b.unchanged(func() (Outcome, error) { return b.Init(b.ctx()) }); err != nil {
		t.Fatal(err)
	}
	if keystore.Mark(b.key()) != keystore.Mark(key) {
		t.Error("there is another key")
	}
	if _, err := b.Install(encode(b.issue())); err != nil {
		t.Fatal(err)
	}
	var o Outcome
	if err := b.unchanged(func() (_ Outcome, err error) { o, err = b.Init(b.ctx()); return o, err }); err != nil || !strings.Contains(o.Done, "enrolled already") {
		t.Errorf("with a certificate: %+v %v", o, err)
	}
}

// What was made in a TPM that is gone is told, kept, and given up by reset only.
func TestInitTellsATPMThatLostItsKeys(t *testing.T) {
	for fault, happens := range map[tpm.Fault]func(*box){tpm.Cleared: (*box).clearTPM, tpm.Replaced: (*box).exchangeTPM} {
		for name, ready := range map[string]func(*box){
			"a key waits":             func(b *box) { b.init() },
			"a certificate is in use": func(b *box) { b.enroll() },
		} {
			t.Run(string(fault)+", "+name, func(t *testing.T) {
				b := newBox(t, tpm.P256)
				ready(b)
				happens(b)
				wantFault(t, b.unchanged(func() (Outcome, error) { return b.Init(b.ctx()) }), fault)
				wantFault(t, b.unchanged(func() (Outcome, error) { return b.NewKey(b.ctx()) }), fault)
				_, err := b.Request(b.ctx()) // it would be carried to a CA in vain
				wantFault(t, err, fault)
				s := must(b.Status(b.ctx()))(t)
				if s.Fault != string(fault) || len(s.Slots) != 1 || !strings.Contains(s.Next, "gatewayd enroll reset") || strings.Contains(s.Text, s.Next) {
					t.Errorf("the status is %+v", s)
				}
				if changed, err := b.Reset(); err != nil || !changed {
					t.Fatalf("%v %v", changed, err)
				}
				b.open()
				if o := b.init(); !o.Changed {
					t.Errorf("after the reset: %+v", o)
				}
				if changed, err := b.Reset(); err != nil || !changed {
					t.Fatalf("a second reset: %v %v", changed, err)
				}
				if changed, err := b.Reset(); err != nil || changed {
					t.Fatalf("a reset of nothing: %v %v", changed, err)
				}
			})
		}
	}
}

// A CA that has to think compares bytes (RFC 7030, section 4.2.3).
func TestTheRequestStaysTheSameUntilACertificateIsInstalled(t *testing.T) {
	for _, kind := range kinds() {
		t.Run(string(kind), func(t *testing.T) {
			b := newBox(t, kind)
			b.init()
			first := must(b.Request(b.ctx()))(t)
			csr := must(parseRequest(first))(t)
			if err := csr.CheckSignature(); err != nil || csr.Subject.String() != "CN="+pki.DefaultDevice.String() {
				t.Errorf("%s: %v", csr.Subject, err)
			}
			b.init()
			b.open()
			if again := must(b.Request(b.ctx()))(t); !bytes.Equal(first, again) {
				t.Error("it is another one after a restart")
			}
			b.config.Gateway.EUI64 = 0xFEDCBA9876543210
			b.open()
			renamed := must(b.Request(b.ctx()))(t)
			if csr := must(parseRequest(renamed))(t); csr.Subject.CommonName != "FEDCBA9876543210" {
				t.Errorf("for a gateway with another name it is for %s", csr.Subject)
			}
			if again := must(b.Request(b.ctx()))(t); !bytes.Equal(renamed, again) {
				t.Error("for a gateway with another name it is another one each time")
			}
			b.config.Gateway.EUI64 = pki.DefaultDevice
			b.open()
			if _, err := b.Install(encode(b.issue())); err != nil {
				t.Fatal(err)
			}
			if _, err := b.NewKey(b.ctx()); err != nil {
				t.Fatal(err)
			}
			if next := must(b.Request(b.ctx()))(t); bytes.Equal(first, next) {
				t.Error("the request of the next key is that of the first one")
			}
		})
	}
}

func TestEachStateHasItsNextStep(t *testing.T) {
	b := newBox(t, tpm.P256)
	next := func(want string, never ...string) {
		t.Helper()
		s := must(b.Status(b.ctx()))(t)
		if !strings.Contains(s.Next, want) {
			t.Errorf("want %q, got %q", want, s.Next)
		}
		for _, word := range never {
			if strings.Contains(s.Next, word) {
				t.Errorf("%q has %q", s.Next, word)
			}
		}
	}
	configured := func(url string) {
		t.Helper()
		b.config.Identity.ESTURL = url
		b.open()
	}
	next("Run gatewayd enroll init.")
	b.init()
	next("Give the request (gatewayd enroll csr) to a CA", "enroll renew")
	configured("https://ca.test")
	next("Run gatewayd enroll renew or gatewayd enroll attest")
	configured("")
	leaf := must(b.Install(encode(b.issue())))(t)
	if !strings.Contains(leaf.Next, "takes it up") {
		t.Errorf("%+v", leaf)
	}
	next("Nothing: the gateway is enrolled.")
	b.now = b.slots().Current.NotAfter().AddDate(0, 0, -5)
	next("The certificate ends soon. For another certificate give the request", "enroll renew")
	configured("https://ca.test")
	next("The certificate ends soon. For another certificate run gatewayd enroll renew")
	b.now = b.slots().Current.NotAfter().AddDate(0, 0, 5)
	next("The certificate has expired. Run gatewayd enroll renew --user USER --password-file FILE")
	configured("")
	next("The certificate has expired: give the request", "enroll renew")
	if _, err := b.NewKey(b.ctx()); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Install(encode(b.issue())); err != nil {
		t.Fatal(err)
	}
	next("Nothing: gatewayd tries it with a platform")
	b.now = b.slots().Current.Chain[0].NotBefore.AddDate(-10, 0, 0)
	next("Look at the clock")

	b.emulator.Stop() // after a restart of the box the TPM is not there
	b.open()
	s := must(b.Status(b.ctx()))(t)
	if s.Fault != string(tpm.Absent) || s.TPM != nil || len(s.Slots) != 2 || !strings.HasPrefix(s.Next, "Look whether the TPM is fitted") {
		t.Errorf("without its TPM: %+v", s)
	}
	_, err := b.Init(b.ctx())
	wantFault(t, err, tpm.Absent)
	if again := must(b.Request(b.ctx()))(t); !bytes.Equal(again, b.slots().Next.Request) {
		t.Error("without its TPM the request is another one")
	}
}

// What the daemon cannot use, nobody calls enrolled (B16).
func TestACertificateThatIsOfNoUseIsNamedWithTheWayBack(t *testing.T) {
	for name, c := range map[string]struct {
		happens func(b *box, current string) error
		damage  string
		next    string
	}{
		"the key beside it was exchanged": {func(b *box, current string) error {
			other := must(b.TPM.Create(b.ctx(), tpm.P256, nil))(b.t)
			return os.WriteFile(filepath.Join(current, "key.pem"), other, 0o600)
		}, "for another key than the one beside it", "Bring back the file that was exchanged"},
		"another one was put in its place": {func(b *box, current string) error {
			return os.WriteFile(filepath.Join(current, "chain.pem"), encode(b.certify(p256(b.t))), 0o600)
		}, "for another key than the one beside it", "or have another certificate issued: Give the request (gatewayd enroll csr)"},
		"it was cut off": {func(_ *box, current string) error { return os.Truncate(filepath.Join(current, "chain.pem"), 100) },
			"are damaged", "install it again, with gatewayd enroll install FILE"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBox(t, tpm.P256)
			b.enroll()
			if err := c.happens(b, filepath.Join(b.Store.Dir(), keystore.Current)); err != nil {
				t.Fatal(err)
			}
			if _, err := b.Identity(b.slots().Current); err == nil {
				t.Error("the daemon would show it")
			}
			s := must(b.Status(b.ctx()))(t)
			if row := s.Slots[0]; row.Subject != "" || !strings.Contains(row.Damage, c.damage) || !strings.Contains(s.Next, c.next) {
				t.Errorf("the status is %+v", s)
			}
			var o Outcome
			if err := b.unchanged(func() (_ Outcome, err error) { o, err = b.Init(b.ctx()); return o, err }); err != nil || !strings.Contains(o.Done, c.damage) || !strings.Contains(o.Next, c.next) {
				t.Errorf("init says %+v, %v", o, err)
			}
			b.signs(b.enrolled())
			if s := must(b.Status(b.ctx()))(t); s.Slots[0].Damage != "" || !strings.HasPrefix(s.Next, "Nothing") {
				t.Errorf("with another certificate the status is %+v", s)
			}
		})
	}
}

// The next step is for the store that was asked about.
func TestANextStepNamesTheStore(t *testing.T) {
	b := newBox(t, tpm.P256)
	b.config.Southbound = &config.Southbound{Identities: []config.ServerIdentity{{Store: "server-ecc", KeyType: string(tpm.P256), Name: "gateway.test"}}}
	a := must(New(b.config, "server-ecc", b.TPM, b.Now))(t)
	if o := must(a.Init(b.ctx()))(t); !strings.Contains(o.Next, "gatewayd enroll csr --store server-ecc") || !strings.Contains(o.Next, "gatewayd enroll install FILE --store server-ecc") {
		t.Errorf("%+v", o)
	}
	if csr := must(parseRequest(must(a.Request(b.ctx()))(t)))(t); csr.Subject.CommonName != "gateway.test" {
		t.Errorf("the request is for %s", csr.Subject)
	}
	if o := b.init(); strings.Contains(o.Next, "--store") {
		t.Errorf("%+v", o)
	}
	_, err := New(b.config, "server-rsa", b.TPM, b.Now)
	wantError(t, err, `add a [[southbound.identity]] with store = "server-rsa"`)
}
