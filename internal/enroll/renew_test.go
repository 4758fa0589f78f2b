package enroll

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path"
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
	return b.behind(o, func(ca http.Handler) http.Handler { return ca })
}

// behind runs a CA with something in front of it.
func (b *box) behind(o ca.Options, front func(ca http.Handler) http.Handler) CA {
	b.t.Helper()
	o.PKI, o.Credentials = b.pki, map[string]string{"ward": "bed side"}
	s := must(ca.New(o))(b.t)
	server := httptest.NewUnstartedServer(front(s))
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

// manufactured is a box with a TPM that its maker certified, and a CA's options
// that know the maker.
func manufactured(t *testing.T, kind tpm.Kind) (*box, ca.Options) {
	t.Helper()
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
	return b, ca.Options{EKRoots: maker.Roots, EKIntermediates: between, RequireAttestation: true}
}

func TestAnAttestedKeyGetsItsCertificate(t *testing.T) {
	for _, kind := range kinds() {
		t.Run(string(kind), func(t *testing.T) {
			b, policy := manufactured(t, kind)
			authority := b.authority(policy)
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

// answering answers in place of a CA, where the path ends so.
func answering(suffix string, status int, header ...string) func(http.Handler) http.Handler {
	return func(ca http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if !strings.HasSuffix(r.URL.Path, suffix) {
				ca.ServeHTTP(w, r)
				return
			}
			for i := 0; i+1 < len(header); i += 2 {
				w.Header().Set(header[i], header[i+1])
			}
			w.WriteHeader(status)
		})
	}
}

// A certificate that waits to be taken up is given up for one that is there, and
// for no promise of one: whatever the CA does, and whichever way it is asked.
func TestACertificateThatWaitsStaysUntilAnotherIsThere(t *testing.T) {
	b, policy := manufactured(t, tpm.P256)
	good := b.authority(policy)
	must(b.Attest(b.ctx(), good))(t)
	must(b.Renew(b.ctx(), good))(t)
	waiting := b.slots().Next
	away := good
	away.URL = "https://127.0.0.1:1"
	lifeless := policy
	lifeless.Lifetime, lifeless.Now = time.Hour, func() time.Time { return time.Now().Add(-2 * time.Hour) }
	type way = func(*Applicant, context.Context, CA) (Outcome, error)
	for name, ask := range map[string]way{"renew": (*Applicant).Renew, "attest": (*Applicant).Attest} {
		var requests []string
		for state, c := range map[string]struct {
			ca        CA
			temporary bool
			word      string
		}{
			"is away":                       {away, true, "look at the network"},
			"has no time":                   {b.behind(policy, answering("", http.StatusServiceUnavailable)), true, "run the same command again later"},
			"says no":                       {b.behind(policy, answering("", http.StatusForbidden)), false, "have the CA's operator admit this gateway"},
			"is something else":             {b.behind(policy, answering("", http.StatusNotFound)), false, "check est_url"},
			"gives nothing":                 {b.behind(policy, answering("", http.StatusOK)), false, "look in its log"},
			"is not the one that we trust":  {CA{URL: good.URL, Roots: newSmallCA(t).roots()}, false, "est_trust"},
			"gives what does not last":      {b.authority(lifeless), false, "expired"},
			"does not know the certificate": {b.behind(policy, answering("reenroll", http.StatusUnauthorized)), false, "--user USER --password-file FILE"},
		} {
			if name == "attest" && strings.HasPrefix(state, "does not know") {
				continue
			}
			t.Run(name+", the CA "+state, func(t *testing.T) {
				_, err := ask(b.Applicant, b.ctx(), c.ca)
				wantError(t, err, c.word)
				e, ok := errors.AsType[*CAError](err)
				if ok && (e.Temporary() != c.temporary || !strings.HasSuffix(err.Error(), e.Next())) || !ok && state != "gives what does not last" {
					t.Errorf("%+v", err)
				}
				s := b.slots()
				if s.Next == nil || !s.Next.Chain[0].Equal(waiting.Chain[0]) || !bytes.Equal(s.Next.KeyFile, waiting.KeyFile) {
					t.Errorf("the slots are %+v", s)
				}
				beside := must(must(b.asking(s))(t).Store.Read())(t)
				if beside.Next == nil || beside.Next.Chain != nil {
					t.Fatalf("beside them are %+v", beside)
				}
				requests = append(requests, string(beside.Next.Request))
			})
		}
		if slices.Sort(requests); len(slices.Compact(requests)) != 1 {
			t.Errorf("%s: another key each time", name)
		}
		t.Run(name+", in the end", func(t *testing.T) {
			if o := must(ask(b.Applicant, b.ctx(), good))(t); !o.Changed || !strings.Contains(o.Done, "next slot") {
				t.Errorf("%+v", o)
			}
			s := b.slots()
			b.has(s.Next, tpm.P256)
			if s.Next.Chain[0].Equal(waiting.Chain[0]) || string(s.Next.Request) != requests[0] {
				t.Error("the one before is still there, or another request was made")
			}
			if _, err := os.Stat(must(b.asking(s))(t).Store.Dir()); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("a key is left beside the slots: %v", err)
			}
			waiting = s.Next
		})
	}
}

// A power cut in the midst of that leaves a key beside the slots, which may be in
// them by then, or damaged.
func TestWhatAPowerCutLeftBesideTheSlotsIsInNobodysWay(t *testing.T) {
	b := newBox(t, tpm.P256)
	good := b.authority(ca.Options{})
	must(b.Renew(b.ctx(), good.with("ward", "bed side")))(t)
	must(b.Renew(b.ctx(), good))(t)
	for name, leave := range map[string]func(keystore.Slots, *Applicant) error{
		"the key that is in a slot": func(s keystore.Slots, beside *Applicant) error {
			return beside.Store.AddKey(s.Next.KeyFile, s.Next.Request)
		},
		"a damaged key": func(s keystore.Slots, beside *Applicant) error {
			return errors.Join(beside.Store.AddKey(s.Next.KeyFile, nil), os.Truncate(filepath.Join(beside.Store.Dir(), keystore.Next, "key.pem"), 9))
		},
		"no key at all": func(s keystore.Slots, beside *Applicant) error {
			return errors.Join(beside.Store.AddKey(s.Next.KeyFile, nil), os.Remove(filepath.Join(beside.Store.Dir(), keystore.Next, "key.pem")))
		},
		"a file": func(_ keystore.Slots, beside *Applicant) error { return os.WriteFile(beside.Store.Dir(), nil, 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			before := b.slots()
			if err := leave(before, must(b.asking(before))(t)); err != nil {
				t.Fatal(err)
			}
			must(b.Renew(b.ctx(), good))(t)
			after := b.slots()
			b.has(after.Next, tpm.P256)
			if keystore.Mark(after.Next.Public) == keystore.Mark(before.Next.Public) {
				t.Error("the certificate is for the key of the one before")
			}
		})
	}
}

// A CA that has to think sees the same request again, and what waits stays.
func TestARequestBesideACertificateThatWaitsIsTheSameWhenItComesAgain(t *testing.T) {
	b := newBox(t, tpm.P256)
	must(b.Renew(b.ctx(), b.authority(ca.Options{}).with("ward", "bed side")))(t)
	must(b.Renew(b.ctx(), b.authority(ca.Options{})))(t)
	waiting := b.slots().Next
	slow := b.authority(ca.Options{Pending: 2})
	for range 2 {
		_, err := b.Renew(b.ctx(), slow)
		if e, ok := errors.AsType[*CAError](err); !ok || !e.Temporary() {
			t.Fatalf("%v", err)
		}
		if s := b.slots(); !s.Next.Chain[0].Equal(waiting.Chain[0]) {
			t.Error("the certificate that waits is gone")
		}
	}
	request := string(must(must(b.asking(b.slots()))(t).Store.Read())(t).Next.Request)
	if err := b.Store.Promote(); err != nil { // while the CA thinks
		t.Fatal(err)
	}
	must(b.Renew(b.ctx(), slow))(t)
	if s := b.slots(); string(s.Next.Request) != request || !s.Current.Chain[0].Equal(waiting.Chain[0]) {
		t.Errorf("the slots are %+v", s)
	}
	must(b.Renew(b.ctx(), b.authority(ca.Options{})))(t)
	if s := b.slots(); string(s.Next.Request) == request {
		t.Error("the key was used for another certificate")
	}
}

// Who names a user wants that user to count: the CA may not take the present
// certificate, although it has not ended.
func TestACredentialThatIsGivenIsUsedInPlaceOfAGoodCertificate(t *testing.T) {
	b := newBox(t, tpm.P256)
	type request struct {
		operation, user string
		shown           int // certificates in TLS
	}
	var seen []request
	authority := b.behind(ca.Options{}, func(ca http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if user, _, ok := r.BasicAuth(); ok || r.Method == http.MethodPost {
				seen = append(seen, request{path.Base(r.URL.Path), user, len(r.TLS.PeerCertificates)})
			}
			ca.ServeHTTP(w, r)
		})
	})
	b.enroll()
	_, err := b.Renew(b.ctx(), authority.with("ward", "wrong"))
	wantError(t, err, "check user and password with the CA's operator")
	must(b.Renew(b.ctx(), authority.with("ward", "bed side")))(t)
	b.has(b.slots().Next, tpm.P256)
	once := []request{{"simpleenroll", "", 0}, {"simpleenroll", "ward", 0}} // asked for, then given
	if want := append(once, once...); !slices.Equal(seen, want) {
		t.Errorf("the CA saw %+v", seen)
	}
	seen = nil
	must(b.Renew(b.ctx(), authority))(t)
	if want := []request{{"simplereenroll", "", 2}}; !slices.Equal(seen, want) {
		t.Errorf("without a credential the CA saw %+v", seen)
	}
}

// Who does not wait for the answer is told nothing about the CA.
func TestACAIsNotBlamedForWhoDidNotWait(t *testing.T) {
	b := newBox(t, tpm.P256)
	ctx, cancel := context.WithCancel(b.ctx())
	authority := b.behind(ca.Options{}, func(http.Handler) http.Handler {
		return http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			cancel()
			<-r.Context().Done()
		})
	})
	_, err := b.Renew(ctx, authority.with("ward", "bed side"))
	if _, blamed := errors.AsType[*CAError](err); blamed || !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

// A TPM that is gone when it has to sign in TLS is none of the CA's doing.
func TestACAIsNotBlamedForATPMThatIsAway(t *testing.T) {
	b := newBox(t, tpm.P256)
	b.enroll()
	authority := b.authority(ca.Options{Pending: 1})
	if _, err := b.Renew(b.ctx(), authority); err == nil {
		t.Fatal("the CA decides at once")
	}
	b.emulator.Stop()
	_, err := b.Renew(b.ctx(), authority) // with the request that waits
	if _, blamed := errors.AsType[*CAError](err); blamed || tpm.FaultOf(err) != tpm.Absent {
		t.Errorf("%v", err)
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
	approvals := []tpm.Approval{must(tpm.Approve(signer, map[uint][]byte{16: bytes.Repeat([]byte{1}, 32)}))(t)} // of another state
	b.config.Identity.PolicyApprovals = write(t, "approvals.json", must(json.Marshal(approvals))(t))
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
	for _, text := range []string{"", "{}", "[]", "[1]", `[{"pcrs":"16"}]`} {
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
