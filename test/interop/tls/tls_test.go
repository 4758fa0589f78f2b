// Package tlsinterop holds the gateway's TLS against implementations that
// share nothing with Go's: OpenSSL, GnuTLS, Java's JSSE and wolfSSL, as
// platforms and as devices, over real sockets, with an HL7 message delivered and
// acknowledged on each connection that is to be good.
//
// make interop installs them and runs these tests; without GATEWAY_INTEROP=1 a
// missing peer is a skip. tunnel_test.go has them speak with each other through the
// tunnel, which sees no key. What each can do is not the same: only JSSE and
// wolfSSL speak RFC 6961, only JSSE and GnuTLS staple for intermediates in TLS
// 1.3. Where a peer falls short as a platform, the test is that it is refused.
package tlsinterop

import (
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/bedside-gateway/gatewayd/internal/sim/pki"
	"github.com/bedside-gateway/gatewayd/internal/sim/responder"
	"github.com/bedside-gateway/gatewayd/tlspolicy"
)

var schemes = []pki.Scheme{pki.ECC, pki.RSA}

var versions = []struct {
	name string
	id   uint16
}{{"1.2", tls.VersionTLS12}, {"1.3", tls.VersionTLS13}}

// ---- devices of other makes at our server

func TestForeignDevicesDeliverWithEverySuite_A3(t *testing.T) {
	w := needWard(t)
	for _, p := range callers {
		t.Run(p.name, func(t *testing.T) {
			p.need(t)
			port, sessions := w.listen(t, serving{})
			for _, s := range suites {
				for _, scheme := range schemes {
					t.Run(s.openssl+" with a device certificate of "+string(scheme), func(t *testing.T) {
						device := named(scheme, "device")
						said := p.call(t, w, job{name: device, version: "1.2", suites: []suite{s}, port: port})
						got := <-sessions
						if !strings.HasPrefix(said, "done") || !strings.Contains(said, "MSA|CA|"+controlID) {
							t.Errorf("the peer says: %s", said)
						}
						wantDelivered(t, got, device)
						if got.state.Version != tls.VersionTLS12 || got.state.CipherSuite != s.id {
							t.Errorf("%s, %s", tls.VersionName(got.state.Version), tls.CipherSuiteName(got.state.CipherSuite))
						}
					})
				}
			}
		})
	}
}

func TestTheOrderOfSuitesIsOurs_A3(t *testing.T) {
	w := needWard(t)
	for _, p := range callers {
		t.Run(p.name, func(t *testing.T) {
			p.need(t)
			if !p.wholeSuites {
				t.Skip("it offers all combinations of what it is told")
			}
			port, sessions := w.listen(t, serving{})
			for i, want := range suites {
				offer := slices.Clone(suites[i:])
				slices.Reverse(offer)
				said := p.call(t, w, job{name: "device", version: "1.2", suites: offer, port: port})
				got := <-sessions
				if !strings.HasPrefix(said, "done") || got.err != nil {
					t.Errorf("from %s on: %v; %s", want.openssl, got.err, said)
				}
				if got.state.CipherSuite != want.id {
					t.Errorf("of %d suites offered in reverse order, %s is taken, want %s", len(offer), tls.CipherSuiteName(got.state.CipherSuite), want.openssl)
				}
			}
		})
	}
}

func TestForeignDevicesDeliverInTLS13(t *testing.T) {
	w := needWard(t)
	for _, p := range callers {
		t.Run(p.name, func(t *testing.T) {
			p.need(t)
			// wolfSSL takes one response only: see the test below.
			port, sessions := w.listen(t, serving{leafOnly13: p.name == "wolfSSL"})
			for _, scheme := range schemes {
				t.Run(string(scheme), func(t *testing.T) {
					device := named(scheme, "device")
					said := p.call(t, w, job{name: device, version: "1.3", port: port})
					got := <-sessions
					if !strings.HasPrefix(said, "done") || !strings.Contains(said, "MSA|CA|"+controlID) {
						t.Errorf("the peer says: %s", said)
					}
					wantDelivered(t, got, device)
					if got.state.Version != tls.VersionTLS13 {
						t.Errorf("%s", tls.VersionName(got.state.Version))
					}
				})
			}
		})
	}
}

func TestWolfSSLFailsOnMoreThanOneResponseInTLS13(t *testing.T) {
	w := needWard(t)
	needWolf(t)
	port, sessions := w.listen(t, serving{})
	said := wolfCall(t, w, job{name: "device", version: "1.3", port: port})
	<-sessions
	if !strings.HasPrefix(said, "failed handshake") {
		t.Errorf("it manages more than one now, and needs no leaf-only switch: %s", said)
	}
}

func TestForeignDevicesWithoutAGoodCertificateAreRefused(t *testing.T) {
	w := needWard(t)
	for _, p := range callers {
		for device, rule := range map[string]string{
			"device-foreign": "A8", "device-expired": "A8", "device-wrong-eku": "A8", "device-wrong-name": "A8",
			"device-revoked": "A9", "device-issuing-revoked": "A9", "rsa-device-revoked": "A9",
		} {
			t.Run(p.name+" as "+device, func(t *testing.T) {
				p.need(t)
				port, sessions := w.listen(t, serving{})
				said := p.call(t, w, job{name: device, version: "1.2", port: port})
				got := <-sessions
				r, refused := errors.AsType[*tlspolicy.RefusalError](got.err)
				if p.name == "JSSE" && device == "device-foreign" {
					// It shows no certificate of a CA that we do not name.
					if got.err == nil || !strings.Contains(got.err.Error(), "didn't provide a certificate") {
						t.Errorf("%v; the peer says: %s", got.err, said)
					}
					return
				}
				if strings.HasPrefix(said, "done") || got.message != "" || !refused || r.Rule != rule {
					t.Errorf("want a refusal by rule %s, got %v; the peer says: %s", rule, got.err, said)
				}
			})
		}
	}
}

// The staples of our server are judged by those peers that can. None of them
// asks the responder: JSSE checks by staples alone where it gets them, and the
// others have no way to.
func TestForeignDevicesVerifyWhatWeStaple_A10(t *testing.T) {
	w := needWard(t)
	for _, version := range versions {
		t.Run("JSSE "+version.name, func(t *testing.T) {
			needJSSE(t)
			port, sessions := w.listen(t, serving{})
			before := w.responder.State().Asked["platform"]
			said := jsseCall(t, w, job{name: "device", version: version.name, port: port})
			if got := <-sessions; got.err != nil || !strings.HasPrefix(said, "done") {
				t.Errorf("%v; %s", got.err, said)
			}
			if after := w.responder.State().Asked["platform"]; after != before {
				t.Errorf("it asked the responder %d times: the staples were not enough for it", after-before)
			}
		})
		t.Run("OpenSSL "+version.name, func(t *testing.T) {
			needOpenSSL(t)
			port, sessions := w.listen(t, serving{})
			said := openSSLCall(t, w, job{name: "device", version: version.name, port: port, tells: true})
			<-sessions
			if !strings.HasPrefix(said, "done") || !strings.Contains(said, "OCSP Response Status: successful") || !strings.Contains(said, "Cert Status: good") {
				t.Errorf("it says: %s", said)
			}
		})
		t.Run("GnuTLS "+version.name, func(t *testing.T) {
			needGnuTLS(t)
			port, sessions := w.listen(t, serving{})
			file := filepath.Join(t.TempDir(), "responses.pem")
			said := gnuTLSCall(t, w, job{name: "device", version: version.name, port: port, save: file})
			<-sessions
			want := 1 // TLS 1.2 without RFC 6961 has room for that of the leaf
			if version.id == tls.VersionTLS13 {
				want = 2
			}
			got := strings.Count(string(must(os.ReadFile(file))(t)), "BEGIN OCSP RESPONSE")
			if !strings.HasPrefix(said, "done") || got != want {
				t.Errorf("it saved %d responses, want %d, and says: %s", got, want, said)
			}
		})
	}
}

// The other way round: a staple that should not pass is refused by them, so
// what they accept above they have looked at.
func TestForeignDevicesRefuseWhatIsWrongInOurStaples(t *testing.T) {
	w := needWard(t)
	good := responder.Good
	for _, test := range []struct {
		peer    int // of callers
		version string
		answers []responder.Answer
		word    string // of what the peer says
		ours    string // of what our server says
	}{
		{gnutls, "1.2", []responder.Answer{responder.Revoked, good}, "revoked", "tls: "},
		{gnutls, "1.3", []responder.Answer{responder.Revoked, good}, "revoked", ""},
		{jsse, "1.2", []responder.Answer{responder.Revoked, good}, "revoked", "bad certificate status response"},
		{jsse, "1.2", []responder.Answer{good, responder.Revoked}, "revoked", "bad certificate status response"},
		{jsse, "1.3", []responder.Answer{responder.Revoked, good}, "revoked", "bad certificate status response"},
		{jsse, "1.3", []responder.Answer{good, responder.Revoked}, "revoked", "bad certificate status response"},
		{jsse, "1.2", []responder.Answer{responder.WrongSigner, good}, "not valid for signing", "unknown certificate"},
		{jsse, "1.2", []responder.Answer{responder.Stale, good}, "validity interval", ""},
		{wolfssl, "1.2", []responder.Answer{responder.Revoked, good}, "failed handshake", "bad certificate status response"},
		{wolfssl, "1.2", []responder.Answer{good, responder.Revoked}, "failed handshake", "bad certificate status response"},
		{wolfssl, "1.2", []responder.Answer{responder.BadSignature, good}, "failed handshake", "bad certificate status response"},
		{wolfssl, "1.2", []responder.Answer{responder.None, responder.None}, "failed handshake", ""},
	} {
		p := callers[test.peer]
		t.Run(fmt.Sprintf("%s %s %v", p.name, test.version, test.answers), func(t *testing.T) {
			p.need(t)
			port, sessions := w.listen(t, serving{answers: test.answers})
			said := p.call(t, w, job{name: "device", version: test.version, port: port})
			got := <-sessions
			if strings.HasPrefix(said, "done") || !strings.Contains(said, test.word) || got.err == nil || !strings.Contains(got.err.Error(), test.ours) {
				t.Errorf("our side: %v; the peer says: %s", got.err, said)
			}
		})
	}
}

// ---- platforms of other makes at our client

func TestJSSEPlatformsStapleForEveryCertificate_B18(t *testing.T) {
	w := needWard(t)
	for _, version := range versions {
		for _, scheme := range schemes {
			t.Run(version.name+" "+string(scheme), func(t *testing.T) {
				w.answer(t, "auto")
				p := needJSSE(t)
				addr := p.serve(t, w, job{name: named(scheme, "platform"), chain: named(scheme, "platform") + "-root.pem", version: version.name})
				state, ack, err := w.deliver(t, addr, named(scheme, "device"), version.id)
				said := p.line(t)
				if err != nil || !ack.Accepted() || ack.ControlID != controlID {
					t.Fatalf("%v, %+v; the platform says: %s", err, ack, said)
				}
				if state.Version != version.id || !strings.HasPrefix(said, "done") || !strings.Contains(said, "|"+controlID+"|") {
					t.Errorf("%s; the platform says: %s", tls.VersionName(state.Version), said)
				}
			})
		}
	}
}

// What the responder says wrong is passed on by JSSE as it is. Position 1 is
// the issuing CA.
func TestJSSEPlatformsWithAFaultAreRefusedWithTheRightAlert_B18(t *testing.T) {
	w := needWard(t)
	const status, revoked = "bad_certificate_status_response", "certificate_revoked"
	for _, test := range []struct {
		answers  string
		position int
		word     string
		alert    string
	}{
		{"platform=revoked", 0, "revoked", revoked},
		{"ecc-issuing=revoked", 1, "revoked", revoked},
		{"platform=unknown", 0, "does not know it", status},
		{"platform=stale", 0, "expired", status},
		{"ecc-issuing=stale", 1, "expired", status},
		{"platform=future", 0, "begins to hold", status},
		{"platform=no-next-update", 0, "no nextUpdate", status},
		{"platform=wrong-signer", 0, "OCSPSigning", status},
		{"ecc-issuing=delegated-no-eku", 1, "OCSPSigning", status},
		{"platform=delegated-expired", 0, "is valid from", status},
		{"platform=delegated-unchecked", 0, "nothing says whether its signer", status},
		{"platform=sha1", 0, "SHA-1", status},
		{"platform=bad-signature", 0, "signature is wrong", status},
		{"ecc-issuing=http-500", 1, "no response for it", status},
		{"platform=try-later", 0, "no response for it", status},
	} {
		for _, version := range versions {
			t.Run(version.name+" "+test.answers, func(t *testing.T) {
				w.answer(t, test.answers)
				p := needJSSE(t)
				addr := p.serve(t, w, job{name: "platform", chain: "platform-root.pem", version: version.name})
				_, ack, err := w.deliver(t, addr, "device", version.id)
				said := p.line(t)
				wantRefusal(t, err, test.position, test.word)
				if ack.Code != "" || !strings.HasPrefix(said, "failed") || !strings.Contains(said, test.alert) {
					t.Errorf("the platform says: %s", said)
				}
			})
		}
	}
}

func TestDelegatedResponsesThroughAJSSEPlatformAreAccepted_B18(t *testing.T) {
	w := needWard(t)
	for _, answers := range []string{"delegated", "several"} {
		for _, version := range versions {
			t.Run(answers+" "+version.name, func(t *testing.T) {
				w.answer(t, answers)
				p := needJSSE(t)
				addr := p.serve(t, w, job{name: "platform", chain: "platform-root.pem", version: version.name})
				_, ack, err := w.deliver(t, addr, "device", version.id)
				if said := p.line(t); err != nil || !ack.Accepted() {
					t.Errorf("%v; the platform says: %s", err, said)
				}
			})
		}
	}
}

// Its chain without the root leaves JSSE without an issuer to ask about the
// intermediate: what an operator has to know.
func TestAJSSEPlatformWithoutItsRootStaplesTheLeafOnly_B18(t *testing.T) {
	w := needWard(t)
	w.answer(t, "auto")
	p := needJSSE(t)
	addr := p.serve(t, w, job{name: "platform", version: "1.2"})
	_, _, err := w.deliver(t, addr, "device", tls.VersionTLS12)
	p.line(t)
	wantRefusal(t, err, 1, "no response for it")
}

func TestWolfSSLPlatforms_B18(t *testing.T) {
	w := needWard(t)
	program := needWolf(t)
	serve := func(t *testing.T, scheme pki.Scheme, version string) (string, func() string) {
		j := job{name: named(scheme, "platform"), trust: string(scheme) + "-cas.pem", version: version}
		return start(t, "port ", program, j.wolf(w, "serve")...)
	}
	for _, scheme := range schemes {
		t.Run("1.2 "+string(scheme)+" staples for every certificate", func(t *testing.T) {
			w.answer(t, "auto")
			addr, said := serve(t, scheme, "1.2")
			_, ack, err := w.deliver(t, addr, named(scheme, "device"), tls.VersionTLS12)
			if err != nil || !ack.Accepted() || ack.ControlID != controlID {
				t.Errorf("%v, %+v; the platform says: %s", err, ack, said())
			}
		})
	}
	t.Run("1.3 staples for the leaf alone and is refused", func(t *testing.T) {
		w.answer(t, "auto")
		addr, _ := serve(t, pki.ECC, "1.3")
		_, _, err := w.deliver(t, addr, "device", tls.VersionTLS13)
		wantRefusal(t, err, 1, "no response for it")
	})
}

func TestGnuTLSPlatforms_B18(t *testing.T) {
	w := needWard(t)
	program := needGnuTLSPlatform(t)
	for _, test := range []struct {
		name     string
		version  string
		id       uint16
		staples  func([]string) []string
		refusal  string // "" where it is good
		position int
	}{
		{"1.3 with both responses", "1.3", tls.VersionTLS13, func(s []string) []string { return s }, "", 0},
		{"1.3 with that of the leaf alone", "1.3", tls.VersionTLS13, func(s []string) []string { return s[:1] }, "no response for it", 1},
		{"1.3 with that of the issuing CA alone", "1.3", tls.VersionTLS13, func(s []string) []string { return s[1:] }, "no response for it", 0},
		{"1.2, which has no RFC 6961 here", "1.2", tls.VersionTLS12, func(s []string) []string { return s }, "no response for it", 1},
	} {
		for _, scheme := range schemes {
			t.Run(test.name+", "+string(scheme), func(t *testing.T) {
				name := named(scheme, "platform")
				args := append([]string{"serve", w.file(name + ".pem"), w.file(name + ".key"), w.file(pki.RootsFile), test.version}, test.staples(w.staples(t, name))...)
				addr, said := start(t, "port ", program, args...)
				_, ack, err := w.deliver(t, addr, named(scheme, "device"), test.id)
				if test.refusal == "" {
					if err != nil || !ack.Accepted() || ack.ControlID != controlID {
						t.Errorf("%v, %+v; the platform says: %s", err, ack, said())
					}
					return
				}
				wantRefusal(t, err, test.position, test.refusal)
			})
		}
	}
}

func TestOpenSSLPlatformsCannotStapleForTheIssuingCA_B18(t *testing.T) {
	w := needWard(t)
	needOpenSSL(t)
	for _, version := range versions {
		for _, scheme := range schemes {
			t.Run(version.name+" "+string(scheme), func(t *testing.T) {
				name := named(scheme, "platform")
				addr, _ := start(t, "ACCEPT 127.0.0.1:", "openssl", "s_server", "-accept", "127.0.0.1:0", "-Verify", "2", "-verify_return_error", "-CAfile", w.file(pki.RootsFile),
					"-cert", w.file(name+".pem"), "-cert_chain", w.file(string(scheme)+"-issuing.pem"), "-key", w.file(name+".key"), "-status_file", w.staples(t, name)[0])
				_, _, err := w.deliver(t, addr, named(scheme, "device"), version.id)
				wantRefusal(t, err, 1, "no response for it")
			})
		}
	}
}

// answer sets the responder's script, and the truth again after the test.
func (w *ward) answer(t *testing.T, script string) {
	t.Helper()
	if err := w.responder.Script(script); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.responder.Script(string(responder.Auto)) })
}

// serve starts a job and gives its address.
func (p *javaPeer) serve(t *testing.T, w *ward, j job) string {
	t.Helper()
	p.do(t, w, "serve", j)
	line := p.line(t)
	port, ok := strings.CutPrefix(line, "port ")
	if !ok {
		t.Fatal(line)
	}
	return "127.0.0.1:" + port
}
