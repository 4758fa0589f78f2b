package ca

import (
	"bytes"
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/bedside-gateway/gatewayd/keystore/attest"
	"github.com/bedside-gateway/gatewayd/keystore/attest/attesttest"
	"github.com/bedside-gateway/gatewayd/keystore/est"
	"github.com/bedside-gateway/gatewayd/keystore/tpm"
	"github.com/bedside-gateway/gatewayd/observation"
)

var (
	sharedTPM  = sync.OnceValues(attesttest.Start)
	startedTPM bool
)

func TestMain(m *testing.M) {
	code := m.Run()
	if startedTPM {
		if tpm, err := sharedTPM(); err == nil {
			_ = tpm.Close()
		}
	}
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// theTPM is one for all tests, and makers that know it.
func theTPM(t testing.TB) (*attesttest.TPM, Options) {
	t.Helper()
	attesttest.Need(t)
	startedTPM = true
	tpm, err := sharedTPM()
	if err != nil {
		t.Fatal(err)
	}
	between := x509.NewCertPool()
	between.AddCert(tpm.Issuer)
	return tpm, Options{RequireAttestation: true, EKRoots: tpm.Roots, EKIntermediates: between}
}

func newDevice(t testing.TB, tpm *attesttest.TPM, ek attesttest.EK) *attesttest.Device {
	t.Helper()
	d, err := attesttest.NewDevice(tpm, ek, device)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

func (r *running) enroll(d attest.Device) ([][]byte, error) {
	return attest.Enroll(r.t.Context(), r.client(nil).HTTP(), r.URL, d)
}

func TestAnAttestedKeyGetsACertificate(t *testing.T) {
	tpm, policy := theTPM(t)
	for _, ek := range attesttest.EKs() {
		t.Run(ek.Name, func(t *testing.T) {
			d := newDevice(t, tpm, ek)
			if ek.Certificate == 0 {
				r := run(t, policy)
				_, err := r.enroll(d)
				if err == nil || !strings.Contains(err.Error(), "allow it if the TPM is known") {
					t.Fatalf("an EK that nobody knows: %v", err)
				}
				_, name, _ := strings.Cut(err.Error(), "its name ")
				name, _, _ = strings.Cut(name, " ")
				policy.AllowEK = []string{strings.ToUpper(name)}
			}
			r := run(t, policy)
			chain, err := r.enroll(d)
			if err != nil {
				t.Fatal(err)
			}
			leaf, err := x509.ParseCertificate(chain[0])
			if err != nil || len(chain) != 2 || leaf.Subject.CommonName != device {
				t.Fatalf("%v, %d certificates", err, len(chain))
			}
			if !leaf.PublicKey.(interface{ Equal(crypto.PublicKey) bool }).Equal(d.Public()) {
				t.Error("it is for another key")
			}
			if e := r.last(); e.Way != "attest" || e.Device != device || e.Serial != leaf.SerialNumber.Text(16) || !strings.Contains(e.Detail, "TPM ") {
				t.Errorf("%+v", e)
			}
		})
	}
}

// The gateway's own keystore as the device.
type gateway struct {
	tpm          *tpm.TPM
	key, ak, csr []byte
}

func (g gateway) Evidence(ctx context.Context, nonce []byte) (attest.Evidence, error) {
	return g.tpm.Attest(ctx, g.key, g.ak, g.csr, nonce)
}

func (g gateway) Activate(ctx context.Context, blob, encrypted []byte) ([]byte, error) {
	return g.tpm.Activate(ctx, g.ak, blob, encrypted)
}

func TestTheGatewaysKeystoreEnrolsAndRenews(t *testing.T) {
	emulator, policy := theTPM(t)
	keystore := tpm.Open("unix:"+emulator.Socket, tpm.Options{})
	defer func() {
		if err := keystore.Close(); err != nil {
			t.Error(err)
		}
	}()
	for _, kind := range []tpm.Kind{tpm.P256, tpm.RSA2048} {
		t.Run(string(kind), func(t *testing.T) {
			key, signer := inTPM(t, keystore, kind)
			ak, err := keystore.AttestationKey(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			r := run(t, policy)
			chain, err := r.enroll(gateway{keystore, key, ak, request(t, signer, device)})
			if err != nil {
				t.Fatal(err)
			}
			if e := r.last(); !strings.Contains(e.Detail, `TPM "id:00001014" "swtpm"`) {
				t.Errorf("%+v", e)
			}
			// What the TPM's key signs in the handshake, a renewal is granted for.
			id := tls.Certificate{Certificate: chain, PrivateKey: signer, SupportedSignatureAlgorithms: signer.Algorithms()}
			_, next := inTPM(t, keystore, tpm.P256)
			if _, err := r.client(func(o *est.Options) { o.Identity = &id }).SimpleReenroll(t.Context(), request(t, next, device)); err != nil {
				t.Error(err)
			}
		})
	}
}

func inTPM(t *testing.T, keystore *tpm.TPM, kind tpm.Kind) ([]byte, *tpm.Key) {
	t.Helper()
	text, err := keystore.Create(t.Context(), kind, nil)
	if err != nil {
		t.Fatal(err)
	}
	key, err := keystore.Load(t.Context(), text)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { key.Release(context.Background()) })
	return text, key
}

// A liar is a device that changes what its TPM says.
type liar struct {
	attest.Device
	evidence func(*attest.Evidence)
	nonce    []byte // of another exchange
	claims   bool   // that it is the CA's
	secret   func([]byte) []byte
}

func (l *liar) Evidence(ctx context.Context, nonce []byte) (attest.Evidence, error) {
	used := nonce
	if l.nonce != nil {
		used = l.nonce
	}
	e, err := l.Device.Evidence(ctx, used)
	if l.claims {
		e.Nonce = nonce
	}
	if err == nil && l.evidence != nil {
		l.evidence(&e)
	}
	return e, err
}

func (l *liar) Activate(ctx context.Context, blob, encrypted []byte) ([]byte, error) {
	secret, err := l.Device.Activate(ctx, blob, encrypted)
	if l.secret != nil {
		return l.secret(secret), nil
	}
	return secret, err
}

func TestALiarGetsNoCertificate(t *testing.T) {
	tpm, policy := theTPM(t)
	honest := newDevice(t, tpm, attesttest.EKs()[0])
	for _, c := range []struct {
		name, want string
		liar       liar
		policy     func(*Options)
	}{
		{name: "who repeats old evidence", want: "for another nonce", liar: liar{nonce: bytes.Repeat([]byte{1}, 32)}},
		{name: "who says that it is new", want: "attestation: it was made for another nonce", liar: liar{nonce: bytes.Repeat([]byte{1}, 32), claims: true}},
		{name: "who asks for a certificate of another key", want: "another key than the one that the TPM certified",
			liar: liar{evidence: func(e *attest.Evidence) { e.CSR = request(t, ecKey(t), device) }}},
		{name: "who guesses the secret", want: "not shown to be in one TPM", liar: liar{secret: func([]byte) []byte { return make([]byte, 32) }}},
		{name: "who gives no secret", want: "not shown to be in one TPM", liar: liar{secret: func([]byte) []byte { return nil }}},
		{name: "who is not authorised", want: "not authorised here", policy: func(o *Options) { o.Authorised = []observation.EUI64{1} }},
		{name: "whose maker nobody knows", want: "no path leads to the roots", policy: func(o *Options) { o.EKRoots = hospital().Roots() }},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := policy
			if c.policy != nil {
				c.policy(&p)
			}
			r := run(t, p)
			c.liar.Device = honest
			if _, err := r.enroll(&c.liar); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, without %q", err, c.want)
			}
			if e := r.last(); e.Err == nil || e.Serial != "" {
				t.Errorf("%+v", e)
			}
		})
	}
}

// post is a step of the exchange without the client.
func (r *running) post(path string, body any) (int, []byte) {
	r.t.Helper()
	text, is := body.(string)
	if !is {
		b, err := json.Marshal(body)
		if err != nil {
			r.t.Fatal(err)
		}
		text = string(b)
	}
	response, err := r.client(nil).HTTP().Post(r.URL+path, "application/json", strings.NewReader(text))
	if err != nil {
		r.t.Fatal(err)
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	return response.StatusCode, answer
}

func (r *running) begin() attest.Begun {
	r.t.Helper()
	var b attest.Begun
	if status, text := r.post(attest.PathBegin, struct{}{}); status != http.StatusOK || json.Unmarshal(text, &b) != nil {
		r.t.Fatalf("%d %s", status, text)
	}
	return b
}

func TestStepsOutOfOrderEndTheExchange(t *testing.T) {
	tpm, policy := theTPM(t)
	d := newDevice(t, tpm, attesttest.EKs()[0])
	r := run(t, policy)
	refused := func(name, path string, body any, want int) {
		t.Helper()
		if status, text := r.post(path, body); status != want {
			t.Errorf("%s: %d %s", name, status, text)
		}
	}
	present := func(b attest.Begun) attest.Presented {
		t.Helper()
		e, err := d.Evidence(t.Context(), b.Nonce)
		if err != nil {
			t.Fatal(err)
		}
		text, err := e.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		return attest.Presented{ID: b.ID, Evidence: text}
	}
	b := r.begin()
	refused("the end before the evidence", attest.PathFinish, attest.Finished{ID: b.ID}, http.StatusConflict)
	refused("evidence after that", attest.PathEvidence, present(b), http.StatusNotFound)
	b = r.begin()
	refused("bad evidence", attest.PathEvidence, attest.Presented{ID: b.ID, Evidence: json.RawMessage(`{"version":1}`)}, http.StatusForbidden)
	refused("a second try", attest.PathEvidence, present(b), http.StatusConflict)
	b = r.begin()
	refused("evidence of another exchange", attest.PathEvidence, attest.Presented{ID: r.begin().ID, Evidence: present(b).Evidence}, http.StatusForbidden)
	status, text := r.post(attest.PathEvidence, present(b))
	var c attest.Challenged
	if status != http.StatusOK || json.Unmarshal(text, &c) != nil {
		t.Fatalf("%d %s", status, text)
	}
	secret, err := d.Activate(t.Context(), c.CredentialBlob, c.EncryptedSecret)
	if err != nil {
		t.Fatal(err)
	}
	refused("a wrong secret", attest.PathFinish, attest.Finished{ID: b.ID, Secret: make([]byte, 32)}, http.StatusForbidden)
	refused("the right one after it", attest.PathFinish, attest.Finished{ID: b.ID, Secret: secret}, http.StatusNotFound)
	refused("no JSON", attest.PathBegin, "x", http.StatusBadRequest)
	refused("more than JSON", attest.PathBegin, "{}{}", http.StatusBadRequest)
	refused("an unknown field", attest.PathBegin, `{"a":1}`, http.StatusBadRequest)
	refused("a huge body", attest.PathEvidence, `{"id":"`+strings.Repeat("a", maxBody)+`"}`, http.StatusBadRequest)
	refused("another method", attest.PathBegin+"/more", "{}", http.StatusNotFound)
}

func TestExchangesAreBoundedAndExpire(t *testing.T) {
	now := time.Now()
	x := exchanges{all: map[string]*exchange{}}
	first, err := x.begin(now)
	if err != nil {
		t.Fatal(err)
	}
	for range maxExchanges - 1 {
		if _, err := x.begin(now.Add(time.Second)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := x.begin(now.Add(time.Minute)); !errors.Is(err, errFull) {
		t.Errorf("one more than there is room for: %v", err)
	}
	late := now.Add(maxAge + time.Millisecond)
	if _, err := x.take(first.id, late, false); err == nil {
		t.Error("an exchange lives for ever")
	}
	if _, err := x.begin(late); err != nil {
		t.Errorf("room again: %v", err)
	}
	if n := len(x.all); n > maxExchanges {
		t.Errorf("%d exchanges", n)
	}
}
