package refusal

import (
	"crypto/fips140"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/bedside-gateway/gatewayd/internal/sim/responder"
	"github.com/bedside-gateway/gatewayd/tlsoverlay"
)

// A fault is one way to fall short. What about and reason are parts of what the
// gateway says; alert is what the platform hears, "" where it is the platform
// that refuses. mended is what is nearest without the fault; nil is the stage as it is.
type fault struct {
	name, rule, about, reason, alert string
	only                             uint16 // version, both where it is 0
	fault, mended                    func(*stage)
}

const (
	platform  = "platform certificate, 1 of 2 sent"
	issuing   = "certificate 2 of 2 sent"
	bad       = "bad certificate"
	badStatus = "bad certificate status response"
)

func shows(name string) func(*stage) { return func(s *stage) { s.show(name) } }

func leaf(change func(*x509.Certificate)) func(*stage) { return func(s *stage) { s.leaf(change) } }

func named(cn string, dns ...string) func(*stage) {
	return leaf(func(c *x509.Certificate) { c.Subject.CommonName, c.DNSNames = cn, dns })
}

func ca(change func(*x509.Certificate)) func(*stage) {
	return func(s *stage) { s.under(newKey(s.t), change) }
}

func answers(a ...responder.Answer) func(*stage) { return func(s *stage) { s.answers = a } }

func staples(change func([][]byte) [][]byte) func(*stage) {
	return func(s *stage) { s.staple = change }
}

func suites(ids ...uint16) func(*stage) { return func(s *stage) { s.server.CipherSuites = ids } }

func curves(ids ...tls.CurveID) func(*stage) {
	return func(s *stage) { s.server.CurvePreferences = ids }
}

func at(d time.Duration) func(*stage) {
	return func(s *stage) { s.client.Now = func() time.Time { return today.Add(d) } }
}

func clock(d time.Duration) string { return today.Add(d).Format(time.RFC3339) }

var unknown = pkix.Extension{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 99999, 1}, Value: []byte{5, 0}}

func faults() []fault {
	return slices.Concat(chainFaults(), nameFaults(), keyFaults(), staplePresence(), stapleFaults(), signerFaults(), timeFaults(), sessionFaults())
}

func chainFaults() []fault {
	return []fault{
		{name: "its certificate expired", rule: "B17", about: platform, reason: "it expired on", alert: "expired certificate", fault: shows("platform-expired")},
		{name: "its certificate is not valid yet", rule: "B17", about: platform, reason: "it is not valid before", alert: "expired certificate", fault: shows("platform-not-yet-valid")},
		{name: "its root is of another hospital", rule: "B17", about: issuing, reason: "no installed root of that name signed it", alert: "unknown certificate authority", fault: shows("platform-foreign")},
		{name: "its certificate is signed by itself", rule: "B17", reason: "it is signed by itself", alert: "unknown certificate authority",
			fault: (*stage).alone},
		{name: "it does not send its issuing CA", rule: "B17", reason: "was not sent", alert: "unknown certificate authority",
			fault: func(s *stage) { s.sent = func(c []*x509.Certificate) []*x509.Certificate { return c[:1] } }},
		{name: "its own certificate is the only root", rule: "B17", reason: "installed as a root", alert: bad,
			fault: func(s *stage) { s.client.Roots = x509.NewCertPool(); s.client.Roots.AddCert(s.chain[0]) },
			mended: func(s *stage) {
				s.client.Roots = x509.NewCertPool()
				s.client.Roots.AddCert(s.chain[2])
			}},
		{name: "its certificate is a device's", rule: "B17", about: platform, reason: "extended key usage", alert: bad, fault: shows("platform-wrong-eku")},
		{name: "its key may not sign", rule: "B17", about: platform, reason: "does not allow signatures", alert: bad,
			fault:  leaf(func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyAgreement }),
			mended: leaf(func(c *x509.Certificate) { c.KeyUsage = 0 })},
		{name: "a device has issued it", rule: "B17", about: "certificate 2 of 3 sent", reason: "without being a CA", alert: bad,
			fault: func(s *stage) {
				s.issue(1, newKey(s.t), func(c *x509.Certificate) { c.Subject.CommonName = "a device" })
				s.issue(0, newKey(s.t), nil)
			}},
		{name: "its issuing CA expired", rule: "B17", about: issuing, reason: "it expired on", alert: "expired certificate",
			fault:  ca(func(c *x509.Certificate) { c.NotAfter = today.Add(-time.Minute) }),
			mended: ca(func(c *x509.Certificate) { c.NotAfter = today.Add(time.Minute) })},
		{name: "its issuing CA may not sign certificates", rule: "B17", about: issuing, reason: "without being a CA", alert: bad,
			fault:  ca(func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageCRLSign }),
			mended: ca(nil)},
		{name: "a CA below one that allows none", rule: "B17", reason: "path length", alert: bad,
			fault: func(s *stage) {
				s.under(newKey(s.t), func(c *x509.Certificate) { c.MaxPathLenZero = true })
				s.issue(1, newKey(s.t), func(c *x509.Certificate) { asCA(c); c.Subject.CommonName = "Third CA" })
				s.issue(0, newKey(s.t), nil)
			},
			mended: func(s *stage) {
				s.under(newKey(s.t), func(c *x509.Certificate) { c.MaxPathLen = 1 })
				s.issue(1, newKey(s.t), func(c *x509.Certificate) { asCA(c); c.Subject.CommonName = "Third CA" })
				s.issue(0, newKey(s.t), nil)
			}},
		{name: "its issuing CA is for other names", rule: "B17", reason: "name constraints", alert: bad,
			fault:  ca(func(c *x509.Certificate) { c.PermittedDNSDomains = []string{"elsewhere.test"} }),
			mended: ca(func(c *x509.Certificate) { c.PermittedDNSDomains = []string{"elsewhere.test", "test"} })},
		{name: "its certificate has a critical extension that nobody knows", rule: "B17", about: platform, reason: "critical extension", alert: bad,
			fault: leaf(func(c *x509.Certificate) {
				e := unknown
				e.Critical = true
				c.ExtraExtensions = []pkix.Extension{e}
			}),
			mended: leaf(func(c *x509.Certificate) { c.ExtraExtensions = []pkix.Extension{unknown} })},
		{name: "the signature on its certificate is of another key", rule: "B17", about: platform, reason: "signature", alert: bad,
			fault: func(s *stage) {
				good := s.keys[1]
				s.keys[1] = newKey(s.t)
				pretend := *s.chain[1]
				pretend.PublicKey = s.keys[1].Public()
				real := s.chain[1]
				s.chain[1] = &pretend
				s.leaf(nil)
				s.chain[1], s.keys[1] = real, good
			},
			mended: leaf(nil)},
	}
}

func nameFaults() []fault {
	const other = "it is not for"
	return []fault{
		{name: "it has another name", rule: "B17", about: platform, reason: `it is not for "platform.test" but for "elsewhere.test`, alert: "unknown certificate", fault: shows("platform-wrong-name")},
		{name: "it has a wildcard", rule: "B17", about: platform, reason: other, alert: "unknown certificate", fault: named("*.test", "*.test"), mended: named("*.test", "platform.test")},
		{name: "its name goes on", rule: "B17", about: platform, reason: other, alert: "unknown certificate", fault: named("platform.test.evil.test"), mended: named("platform.test")},
		{name: "its name is part of ours", rule: "B17", about: platform, reason: other, alert: "unknown certificate", fault: named("test", "test"), mended: named("test", "PLATFORM.TEST")},
		{name: "its name has a zero byte", rule: "B17", about: platform, reason: other, alert: "unknown certificate", fault: named("platform.test\x00.evil.test"), mended: named("platform.test.")},
		{name: "it has no name", rule: "B17", about: platform, reason: other, alert: "unknown certificate", fault: named(""), mended: named("", "platform.test")},
		{name: "its name is in its organisation alone", rule: "B17", about: platform, reason: other, alert: "unknown certificate",
			fault: leaf(func(c *x509.Certificate) {
				c.Subject, c.DNSNames = pkix.Name{Organization: []string{"platform.test"}}, nil
			}), mended: shows("platform-cn-only")},
		{name: "its subject evades the constraints of its CA", rule: "B17", reason: "name constraints", alert: bad,
			fault: func(s *stage) {
				s.under(newKey(s.t), func(c *x509.Certificate) { c.PermittedDNSDomains = []string{"elsewhere.test"} })
				s.issue(1, s.keys[0], func(c *x509.Certificate) { c.DNSNames = nil })
			},
			mended: func(s *stage) {
				s.under(newKey(s.t), func(c *x509.Certificate) { c.PermittedDNSDomains = []string{"test"} })
				s.issue(1, s.keys[0], func(c *x509.Certificate) { c.DNSNames = nil })
			}},
	}
}

func keyFaults() []fault {
	weak := func(bits int) func(*stage) { return func(s *stage) { s.issue(1, rsaKey(s.t, bits), nil) } }
	weakCA := func(bits int) func(*stage) { return func(s *stage) { s.under(rsaKey(s.t, bits), nil) } }
	return []fault{
		{name: "its RSA key is short", rule: "B17", about: platform, reason: "has 1024 bits", alert: "unsupported certificate", fault: weak(1024), mended: weak(2048)},
		{name: "the RSA key of its CA is short", rule: "B17", about: issuing, reason: "has 1024 bits", alert: "unsupported certificate", fault: weakCA(1024), mended: weakCA(2048)},
		{name: "its certificate is signed with SHA-1", rule: "B17", about: platform, reason: "ECDSA-SHA1", alert: "certificate",
			fault:  leaf(func(c *x509.Certificate) { c.SignatureAlgorithm = x509.ECDSAWithSHA1 }),
			mended: leaf(func(c *x509.Certificate) { c.SignatureAlgorithm = x509.ECDSAWithSHA512 })},
		{name: "it has a copy of the certificate and not its key", rule: "B14", reason: "invalid signature by the server certificate", alert: "remote error",
			fault: func(s *stage) { s.keys[0] = newKey(s.t) }},
	}
}

func staplePresence() []fault {
	const none = "no response for it was stapled"
	return []fault{
		{name: "it staples nothing", rule: "B18", about: platform, reason: none, alert: badStatus, fault: answers(responder.None, responder.None)},
		{name: "it staples for its own certificate alone", rule: "B18", about: issuing, reason: none, alert: badStatus, fault: answers(responder.Auto, responder.None)},
		{name: "it staples for its issuing CA alone", rule: "B18", about: platform, reason: none, alert: badStatus, fault: answers(responder.None, responder.Auto)},
		{name: "its responses are swapped", rule: "B18", about: platform, reason: "neither the issuing CA", alert: badStatus,
			fault: staples(func(s [][]byte) [][]byte { slices.Reverse(s); return s })},
		{name: "it staples one response twice", rule: "B18", about: issuing, reason: "neither the issuing CA", alert: badStatus,
			fault: staples(func(s [][]byte) [][]byte { return [][]byte{s[0], s[0]} })},
		{name: "a CA between has no response", rule: "B18", about: "certificate 2 of 3 sent", reason: none, alert: badStatus,
			fault: func(s *stage) {
				deep(s)
				s.staple = func(all [][]byte) [][]byte { all[1] = nil; return all }
			}, mended: deep},
	}
}

// deep is a chain of four.
func deep(s *stage) {
	s.t.Helper()
	s.under(newKey(s.t), nil)
	s.issue(1, newKey(s.t), func(c *x509.Certificate) { asCA(c); c.Subject.CommonName = "Third CA" })
	s.issue(0, newKey(s.t), nil)
}

// Each with the whole chain's other response good, for the leaf and for the CA.
func stapleFaults() []fault {
	both := []struct {
		answer responder.Answer
		reason string
		alert  string
		mended responder.Answer
	}{
		{responder.Revoked, "it was revoked at " + clock(-time.Hour) + " (key compromise)", "revoked certificate", responder.Good},
		{responder.Unknown, "the responder does not know it", badStatus, responder.Good},
		{responder.Stale, "it expired at " + clock(-24*time.Hour), badStatus, responder.Old},
		{responder.Future, "it begins to hold at " + clock(time.Hour), badStatus, responder.Good},
		{responder.NoNextUpdate, "no nextUpdate", badStatus, responder.Good},
		{responder.Garbage, "no OCSP response", badStatus, responder.Several},
		{responder.Portal, "no OCSP response", badStatus, responder.Auto},
		{responder.Truncated, "no OCSP response", badStatus, responder.Auto},
		{responder.TryLater, "try later", badStatus, responder.Auto},
		{responder.Mismatched, "about another certificate or issuer", badStatus, responder.Several},
	}
	var all []fault
	for _, c := range both {
		all = append(all,
			fault{name: fmt.Sprintf("the response for its certificate is %s", c.answer), rule: "B18", about: platform, reason: c.reason, alert: c.alert,
				fault: answers(c.answer), mended: answers(c.mended)},
			fault{name: fmt.Sprintf("the response for its issuing CA is %s", c.answer), rule: "B18", about: issuing, reason: c.reason, alert: c.alert,
				fault: answers(responder.Auto, c.answer), mended: answers(responder.Auto, c.mended)})
	}
	return append(all,
		fault{name: "its certificate is revoked", rule: "B18", about: platform, reason: "it was revoked at", alert: "revoked certificate", fault: shows("platform-revoked")},
		fault{name: "its issuing CA is revoked", rule: "B18", about: issuing, reason: "it was revoked at", alert: "revoked certificate", fault: shows("platform-issuing-revoked")},
		fault{name: "the response is older than the policy allows", rule: "B18", about: platform, reason: "older than the 24h0m0s that the policy allows", alert: badStatus,
			fault:  func(s *stage) { s.client.MaxAge, s.answers = 24*time.Hour, []responder.Answer{responder.Old} },
			mended: func(s *stage) { s.client.MaxAge = 24 * time.Hour }})
}

func signerFaults() []fault {
	rows := []fault{
		{name: "a device of the same CA signed the response", about: platform, reason: "no OCSPSigning", fault: answers(responder.WrongSigner)},
		{name: "a sibling of the issuing CA signed its response", about: issuing, fault: answers(responder.Auto, responder.WrongSigner)},
		{name: "the responder's certificate expired", about: platform, reason: "is valid from", fault: answers(responder.DelegatedExpired), mended: answers(responder.Delegated)},
		{name: "the responder may not sign responses", about: platform, reason: "no OCSPSigning", fault: answers(responder.DelegatedNoEKU), mended: answers(responder.Delegated)},
		{name: "the responder itself may be revoked", about: platform, reason: "whether its signer", fault: answers(responder.DelegatedUnchecked), mended: answers(responder.Delegated)},
		{name: "the responder of the root may not sign responses", about: issuing, reason: "no OCSPSigning", fault: answers(responder.Auto, responder.DelegatedNoEKU), mended: answers(responder.Auto, responder.Delegated)},
		{name: "the response is signed with SHA-1", about: platform, reason: "signed with SHA-1", fault: answers(responder.SHA1)},
		{name: "the signature of the response is wrong", about: platform, reason: "its signature is wrong", fault: answers(responder.BadSignature)},
		{name: "the signature of the response for its issuing CA is wrong", about: issuing, reason: "its signature is wrong", fault: answers(responder.Auto, responder.BadSignature)},
		{name: "a CA of the same name elsewhere signed the response", about: platform, reason: "its signature is wrong",
			fault: func(s *stage) {
				real := s.chain[1]
				other, err := elsewhere.Find("ecc-issuing")
				s.check(err)
				s.chain[1] = other.Certificate
				forged := s.ask(elsewhere, 0, responder.Good)
				s.chain[1] = real
				s.staple = func(all [][]byte) [][]byte { all[0] = forged; return all }
			}},
	}
	for i := range rows {
		rows[i].rule, rows[i].alert = "B18", badStatus
	}
	return rows
}

func timeFaults() []fault {
	return []fault{
		{name: "our clock is not set", rule: "B17", reason: "the time is not known", alert: "internal error",
			fault: func(s *stage) { s.client.Now = func() time.Time { return time.Time{} } }},
		{name: "our clock shows a time before the build", rule: "B17", reason: "before this software was made", alert: "internal error", fault: at(-61 * time.Minute), mended: at(-4 * time.Minute)},
		{name: "the responses have just ended", rule: "B18", about: platform, reason: "it expired at", alert: badStatus, fault: at(responder.DefaultLifetime), mended: at(responder.DefaultLifetime - time.Second)},
		{name: "the responses are from beyond the tolerance of clocks", rule: "B18", about: platform, reason: "our clock shows", alert: badStatus, fault: at(-6 * time.Minute), mended: at(-4 * time.Minute)},
	}
}

func sessionFaults() []fault {
	const v12, v13 = tls.VersionTLS12, tls.VersionTLS13
	old := func(version uint16) func(*stage) {
		return func(s *stage) { s.server.MinVersion, s.server.MaxVersion = version, version }
	}
	withRSA := func(ids ...uint16) func(*stage) {
		return func(s *stage) { s.issue(1, rsaKey(s.t, 2048), nil); s.suites = ids }
	}
	return []fault{
		{name: "it speaks TLS 1.1", rule: "alert", reason: "protocol version", only: v12, fault: old(tls.VersionTLS11)},
		{name: "it speaks TLS 1.0", rule: "alert", reason: "protocol version", only: v12, fault: old(tls.VersionTLS10)},
		{name: "it does not speak TLS", rule: "B12", reason: "does not speak TLS", only: v12, fault: func(s *stage) { s.plain = true }},
		{name: "it has GCM with AES-128 alone", rule: "alert", reason: "handshake failure", only: v12, fault: suites(tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256), mended: suites(tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384)},
		{name: "it has ChaCha20 alone", rule: "alert", reason: "handshake failure", only: v12, fault: suites(tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256), mended: suites(tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256)},
		{name: "it has AES-128 with SHA-1 alone", rule: "alert", reason: "handshake failure", only: v12, fault: suites(tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA), mended: suites(tls.TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA)},
		{name: "it has RC4 alone", rule: "alert", reason: "handshake failure", only: v12, fault: suites(tls.TLS_ECDHE_ECDSA_WITH_RC4_128_SHA)},
		{name: "it has static RSA alone", rule: "alert", reason: "handshake failure", only: v12, fault: withRSA(tls.TLS_RSA_WITH_AES_256_GCM_SHA384), mended: withRSA(tlsoverlay.DHE_RSA_AES_256_GCM_SHA384)},
		{name: "it has 3DES alone", rule: "alert", reason: "handshake failure", only: v12, fault: withRSA(tls.TLS_RSA_WITH_3DES_EDE_CBC_SHA), mended: withRSA(tlsoverlay.DHE_RSA_AES_128_CBC_SHA256)},
		{name: "it knows no NIST curve", rule: "alert", reason: "handshake failure", fault: curves(tls.X25519), mended: curves(tls.CurveP521)},
		{name: "it does not take our certificate", rule: "alert", reason: "unknown certificate authority", alert: "-",
			fault: func(s *stage) { s.server.ClientCAs = elsewhere.Roots() }, only: v13},
		{name: "it does not take our certificate in TLS 1.2", rule: "alert", reason: "unknown certificate authority", alert: "-",
			fault: func(s *stage) { s.server.ClientCAs = elsewhere.Roots() }, only: v12},
	}
}

func TestB12_B13_B14_B17_B18_EveryShortcomingIsRefusedAndItsTwinServed(t *testing.T) {
	all := faults()
	if len(all) < 40 {
		t.Errorf("only %d faults", len(all))
	}
	seen := map[string]bool{}
	for _, f := range all {
		if seen[f.name] {
			t.Errorf("%s: twice", f.name)
		}
		seen[f.name] = true
		for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			if f.only == 0 || f.only == version {
				t.Run(f.name+", "+tls.VersionName(version), func(t *testing.T) { f.play(t, version) })
			}
		}
	}
	t.Logf("%d faults", len(all))
}

func (f fault) play(t *testing.T, version uint16) {
	s := newStage(t, version)
	f.fault(s)
	o := s.run()
	rule, text := refusal(o.err)
	if rule != f.rule || !contains(text, f.about, f.reason) {
		t.Errorf("refused by %s: %s", rule, text)
	}
	if o.received != 0 {
		t.Errorf("the platform got %d bytes of the message", o.received)
	}
	if f.alert != "" && f.alert != "-" && (o.alert == nil || !contains(o.alert.Error(), f.alert)) {
		t.Errorf("the platform saw %v", o.alert)
	}
	twin := newStage(t, version)
	if f.mended != nil {
		f.mended(twin)
	}
	if fips140.Enabled() && f.reason == "handshake failure" {
		t.Log("without the twin, whose suite the FIPS 140-3 mode may have removed")
		return
	}
	if o := twin.run(); o.err != nil || o.ack != "CA" || o.received != len(message) {
		t.Errorf("mended: %v, acknowledged %q, %d bytes", o.err, o.ack, o.received)
	}
}
