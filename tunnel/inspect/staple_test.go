package inspect

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bedside-gateway/gatewayd/revocation"
	"github.com/bedside-gateway/gatewayd/tlsoverlay"
	"github.com/bedside-gateway/gatewayd/tlsoverlay/overlaytest"
	"golang.org/x/crypto/ocsp"
)

// respond makes a response for a certificate, signed by an entry.
func respond(t testing.TB, about *x509.Certificate, issuer, by *entry, status int, age time.Duration) []byte {
	t.Helper()
	template := ocsp.Response{Status: status, SerialNumber: about.SerialNumber, ThisUpdate: time.Now().Add(-age - time.Minute), NextUpdate: time.Now().Add(time.Hour - age)}
	if status == ocsp.Revoked {
		template.RevokedAt = time.Now().Add(-time.Hour)
	}
	if by != issuer {
		template.Certificate = by.cert
	}
	der, err := ocsp.CreateResponse(issuer.cert, by.cert, template, by.key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// judge is a judge as the gate would set it: path and name, then a good response
// for every certificate but the root; of a known leaf, no other than good ones.
func (w *ward) judge(chain []*x509.Certificate, responses [][]byte, known bool) error {
	paths, err := chain[0].Verify(x509.VerifyOptions{Roots: w.root.pool(), DNSName: host})
	if err != nil {
		return err
	}
	err = revocation.Refusal(revocation.Judge(paths[0], revocation.Stapled(responses), time.Now(), revocation.Rules{}))
	if v, ok := errors.AsType[revocation.Verdict](err); ok && known && v.Kind == revocation.Missing {
		return nil
	}
	return err
}

// swapped is a flight whose leaf the gate has not seen, with its key.
func swapped(t testing.TB) *tape {
	w, tp := theWard(), theTape(t)
	tp.certificates(w.other.cert.Raw, w.root.cert.Raw)
	tp.resign(w.other.key, 0x0403, tp.params(), tp.hello.random)
	return tp
}

func TestALeafThatTheGateHasNotSeenPassesByItsOwnStaplesOnly(t *testing.T) {
	w := theWard()
	good := respond(t, w.other.cert, w.root, w.root, ocsp.Good, 0)
	with := func(kind byte, ders ...[]byte) func(*tape, *Rules) {
		return func(tp *tape, r *Rules) {
			r.JudgeStapled = w.judge
			if kind == statusOCSP {
				tp.staple(kind, list24(ders)[3:])
			} else {
				tp.staple(kind, list24(ders))
			}
		}
	}
	mended := with(statusOCSPMulti, good, nil)
	wantFlaws(t, swapped, []flaw{
		{"nothing stapled", func(_ *tape, r *Rules) { r.JudgeStapled = w.judge }, mended, RuleCertificate, "nothing is stapled"},
		{"nobody to judge it", func(tp *tape, r *Rules) { mended(tp, r); r.JudgeStapled = nil }, mended, RuleCertificate, "nothing is stapled"},
		{"none for the leaf", with(statusOCSPMulti, nil, good), mended, RuleCertificate, "no response for it was stapled"},
		{"revoked", with(statusOCSPMulti, respond(t, w.other.cert, w.root, w.root, ocsp.Revoked, 0), nil), mended, RuleCertificate, "revoked"},
		{"expired", with(statusOCSPMulti, respond(t, w.other.cert, w.root, w.root, ocsp.Good, 2*time.Hour), nil), mended, RuleCertificate, "expired"},
		{"about another", with(statusOCSPMulti, respond(t, w.ecc.cert, w.root, w.root, ocsp.Good, 0), nil), mended, RuleCertificate, "another certificate"},
		{"forged by a sibling", with(statusOCSPMulti, respond(t, w.other.cert, w.root, w.device, ocsp.Good, 0), nil), mended, RuleCertificate, "OCSPSigning"},
		{"forged by itself", with(statusOCSPMulti, respond(t, w.other.cert, w.root, w.other, ocsp.Good, 0), nil), mended, RuleCertificate, "OCSPSigning"},
		{"no response at all", with(statusOCSPMulti, []byte("good")), with(statusOCSPMulti, good), RuleCertificate, "no OCSP response"},
		{"that of the leaf alone, revoked", with(statusOCSP, respond(t, w.other.cert, w.root, w.root, ocsp.Revoked, 0)), with(statusOCSP, good), RuleCertificate, "revoked"},
		{"good, with the key of another", func(tp *tape, r *Rules) {
			mended(tp, r)
			tp.resign(w.ecc.key, 0x0403, tp.params(), tp.hello.random)
		}, mended, RuleSignature, "not signed with its key"},
		{"a chain with what is no certificate", func(tp *tape, r *Rules) {
			mended(tp, r)
			tp.certificates(w.other.cert.Raw, []byte("certificate"))
		}, mended, RuleCertificate, "certificate 2 of those sent"},
	})
}

// The gate has judged the leaf good; what comes in the session itself may be younger.
func TestAStapleSpeaksAgainstALeafThatTheGateHasSeen(t *testing.T) {
	w := theWard()
	response := func(status int, age time.Duration) []byte { return respond(t, w.ecc.cert, w.root, w.root, status, age) }
	good := response(ocsp.Good, 0)
	with := func(kind byte, body []byte) func(*tape, *Rules) {
		return func(tp *tape, r *Rules) {
			r.JudgeStapled = w.judge
			tp.staple(kind, body)
		}
	}
	one, all := func(der []byte) []byte { return list24([][]byte{der})[3:] }, func(ders ...[]byte) []byte { return list24(ders) }
	mended := with(statusOCSP, one(good))
	wantFlaws(t, theTape, []flaw{
		{"that of the leaf alone, revoked", with(statusOCSP, one(response(ocsp.Revoked, 0))), mended, RuleCertificate, "speaks against it"},
		{"that of the leaf in the list, revoked", with(statusOCSPMulti, all(response(ocsp.Revoked, 0))), with(statusOCSPMulti, all(good)), RuleCertificate, "revoked"},
		{"expired", with(statusOCSP, one(response(ocsp.Good, 2*time.Hour))), mended, RuleCertificate, "expired"},
		{"unknown", with(statusOCSP, one(response(ocsp.Unknown, 0))), mended, RuleCertificate, "does not know it"},
		{"about another", with(statusOCSP, one(respond(t, w.other.cert, w.root, w.root, ocsp.Good, 0))), mended, RuleCertificate, "another certificate"},
		{"none for the leaf, which the gate has vouched for", with(statusOCSPMulti, all(response(ocsp.Revoked, 0))), with(statusOCSPMulti, all(nil)), RuleCertificate, "revoked"},
	})
	tp, rules := theTape(t), w.rules()
	mended(tp, &rules)
	if f := tp.run(rules, shapes[0]); f.err != nil || f.i.Verdict().Stapled || !f.i.Verdict().Enforced {
		t.Errorf("%v: %+v", f.err, f.i.Verdict())
	}
}

func TestTheVerdictSaysThatStaplesDecided(t *testing.T) {
	w := theWard()
	tp, rules := swapped(t), w.rules()
	rules.JudgeStapled = w.judge
	tp.staple(statusOCSPMulti, list24([][]byte{respond(t, w.other.cert, w.root, w.root, ocsp.Good, 0)}))
	f := tp.run(rules, shapes[0])
	wantWhole(t, tp, f, shapes[0])
	if v := f.i.Verdict(); !v.Enforced || !v.Stapled || !v.Leaf.Equal(w.other.cert) || v.String() != "TLS 1.2: judged in passing by its own staples" {
		t.Errorf("%v: %+v", v, v)
	}
}

func TestTheJudgeGetsWhatWasSentInItsOrder(t *testing.T) {
	w := theWard()
	tp, rules, refusal := swapped(t), w.rules(), errors.New("refused")
	tp.staple(statusOCSPMulti, list24([][]byte{nil, []byte("second")}))
	called := 0
	rules.JudgeStapled = func(chain []*x509.Certificate, responses [][]byte, known bool) error {
		called++
		if known || len(chain) != 2 || !chain[0].Equal(w.other.cert) || !chain[1].Equal(w.root.cert) || len(responses) != 2 || responses[0] != nil || string(responses[1]) != "second" {
			t.Errorf("%d certificates, %q", len(chain), responses)
		}
		return refusal
	}
	f := tp.run(rules, shapes[0])
	if cut := wantCut(t, f.err, RuleCertificate); !errors.Is(cut, refusal) || called != 1 {
		t.Errorf("%v; called %d times", cut, called)
	}
}

// A key so large that to check a signature with it is work enough to hurt.
func TestHugeKeysAreNotWorkedWith(t *testing.T) {
	w := theWard()
	n := new(big.Int).SetBit(big.NewInt(1), maxRSA, 1)
	huge := certify(t, w, &rsa.PublicKey{N: n, E: 65537})
	for _, leaf := range []bool{true, false} {
		tp, rules := swapped(t), w.rules()
		rules.JudgeStapled = func([]*x509.Certificate, [][]byte, bool) error { t.Error("it was put to the judge"); return nil }
		if leaf {
			tp = record(t, firstOf(w.ends(w.rsa)), secondOf(w.ends(w.rsa)))
			tp.certificates(huge)
		} else {
			tp.certificates(w.other.cert.Raw, huge)
		}
		tp.staple(statusOCSPMulti, list24([][]byte{[]byte("x")}))
		if cut := wantCut(t, tp.run(rules, shapes[0]).err, RuleCertificate); !strings.Contains(cut.Reason, "8192 bits") {
			t.Error(cut)
		}
	}
}

func certify(t testing.TB, w *ward, key any) []byte {
	t.Helper()
	template := &x509.Certificate{SerialNumber: big.NewInt(7), NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, w.root.cert, key, w.root.key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// RFC 6961 as it is spoken, between two real ends.
func TestRealStaplesReachTheJudge(t *testing.T) {
	overlaytest.Need(t)
	w := theWard()
	for _, forged := range []bool{false, true} {
		for _, s := range shapes {
			device, platform := w.ends(w.other)
			if err := tlsoverlay.RequestStaples(device); err != nil {
				t.Fatal(err)
			}
			by := w.root
			if forged {
				by = w.device
			}
			c := w.other.tls(w.root)
			if err := tlsoverlay.SetStaples(&c, [][]byte{respond(t, w.other.cert, w.root, by, ocsp.Good, 0)}); err != nil {
				t.Fatal(err)
			}
			platform.Certificates = []tls.Certificate{c}
			rules := w.rules()
			rules.JudgeStapled = w.judge
			r := relay(t, rules, device, platform, s)
			if forged {
				wantCut(t, r.inspected, RuleCertificate)
				if r.device == nil || r.platformState.HandshakeComplete || r.beforeDone != 0 {
					t.Errorf("device: %v", r.device)
				}
				continue
			}
			wantPassed(t, w, r, w.other)
			seen, err := tlsoverlay.Staples(&r.deviceState)
			if err != nil || len(seen) == 0 || !slices.Equal(seen[0], c.OCSPStaple) || !r.verdict.Stapled {
				t.Errorf("%v, %d staples; %+v", err, len(seen), r.verdict)
			}
		}
	}
}
