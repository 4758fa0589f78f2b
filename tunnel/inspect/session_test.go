package inspect

import (
	"crypto/tls"
	"errors"
	"strings"
	"testing"

	"github.com/bedside-gateway/gatewayd/tlsoverlay"
	"github.com/bedside-gateway/gatewayd/tlsoverlay/overlaytest"
)

// wantPassed: both ends shook hands with each other and not with us.
func wantPassed(t *testing.T, w *ward, r *result, leaf *entry) {
	t.Helper()
	if r.device != nil || r.platform != nil || r.inspected != nil && !isEnd(r.inspected) {
		t.Fatalf("device: %v; platform: %v; between: %v", r.device, r.platform, r.inspected)
	}
	if !r.done {
		t.Fatal("not done")
	}
	if !r.deviceState.PeerCertificates[0].Equal(leaf.cert) || !r.platformState.PeerCertificates[0].Equal(w.device.cert) {
		t.Error("an end sees another certificate than the other's")
	}
	if r.verdict.Version != r.deviceState.Version || r.verdict.Suite != r.deviceState.CipherSuite || r.verdict.ServerName != host {
		t.Errorf("%+v, and the device has %x %x", r.verdict, r.deviceState.Version, r.deviceState.CipherSuite)
	}
}

func isEnd(err error) bool { _, ok := errors.AsType[*EndError](err); return ok }

func TestRealHandshakesPassInEveryShape(t *testing.T) {
	w := theWard()
	for _, test := range []struct {
		name  string
		suite uint16
		leaf  *entry
	}{
		{"ECDHE_ECDSA GCM", tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, w.ecc},
		{"ECDHE_ECDSA ChaCha20", tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, w.ecc},
		{"ECDHE_ECDSA CBC with SHA-256", tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256, w.ecc},
		{"ECDHE_ECDSA CBC with SHA-1", tls.TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA, w.ecc},
		{"ECDHE_ECDSA with Ed25519", tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, w.ed},
		{"ECDHE_RSA GCM", tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384, w.rsa},
		{"ECDHE_RSA CBC", tls.TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA256, w.rsa},
		{"DHE_RSA GCM", tlsoverlay.DHE_RSA_AES_256_GCM_SHA384, w.rsa},
		{"DHE_RSA CBC", tlsoverlay.DHE_RSA_AES_128_CBC_SHA256, w.rsa},
	} {
		for _, s := range shapes {
			t.Run(test.name+" "+s.name, func(t *testing.T) {
				device, platform := w.withSuite(t, test.suite, test.leaf)
				r := relay(t, w.rules(), device, platform, s)
				wantPassed(t, w, r, test.leaf)
				if v := r.verdict; !v.Enforced || v.Stapled || v.Resumed || !v.Leaf.Equal(test.leaf.cert) || v.String() != "TLS 1.2: judged in passing" {
					t.Errorf("%v: %+v", v, v)
				}
				if r.beforeDone != 0 {
					t.Errorf("%d bytes passed to the device before the flight was judged", r.beforeDone)
				}
			})
		}
	}
}

func TestPKCS1SignaturesPassToo(t *testing.T) {
	w := theWard()
	device, platform := w.ends(w.rsa)
	c := w.rsa.tls()
	c.SupportedSignatureAlgorithms = []tls.SignatureScheme{tls.PKCS1WithSHA384}
	platform.Certificates = []tls.Certificate{c}
	wantPassed(t, w, relay(t, w.rules(), device, platform, shapes[0]), w.rsa)
}

func TestTLS13PassesByTheGateAlone(t *testing.T) {
	w := theWard()
	for _, s := range shapes {
		for _, retry := range []bool{false, true} {
			name := s.name
			device, platform := w.ends(w.ecc)
			device.MaxVersion = tls.VersionTLS13
			if retry { // P-384 has no share in the first hello
				name += " with a HelloRetryRequest"
				device.CurvePreferences, platform.CurvePreferences = []tls.CurveID{tls.X25519, tls.CurveP384}, []tls.CurveID{tls.CurveP384}
			}
			t.Run(name, func(t *testing.T) {
				r := relay(t, w.rules(), device, platform, s)
				wantPassed(t, w, r, w.ecc)
				if r.deviceState.HelloRetryRequest != retry {
					t.Error("not the handshake that this test is about")
				}
				if v := r.verdict; v.Enforced || v.Leaf != nil || v.String() != "TLS 1.3: gate only" {
					t.Errorf("%v: %+v", v, v)
				}
			})
		}
	}
}

func TestResumptionIsCutInTLS12UnlessItMayPass(t *testing.T) {
	w := theWard()
	for _, allowed := range []bool{false, true} {
		for _, s := range shapes {
			device, platform := w.ends(w.ecc)
			device.ClientSessionCache = tls.NewLRUClientSessionCache(1)
			rules := w.rules()
			rules.Resumption = allowed
			wantPassed(t, w, relay(t, rules, device, platform, s), w.ecc)
			r := relay(t, rules, device, platform, s)
			if !r.hello.Ticket || !r.hello.LegacySession {
				t.Fatal("the device does not resume: this test shows nothing")
			}
			if !allowed {
				wantCut(t, r.inspected, RuleResumption)
				if r.device == nil || !strings.Contains(r.device.Error(), "handshake failure") || r.platform == nil {
					t.Errorf("device: %v; platform: %v", r.device, r.platform)
				}
				continue
			}
			wantPassed(t, w, r, w.ecc)
			if v := r.verdict; !r.deviceState.DidResume || v.Enforced || !v.Resumed || v.String() != "TLS 1.2: resumed, gate only" {
				t.Errorf("%v: %+v", v, v)
			}
		}
	}
}

func TestResumptionInTLS13ShowsAsMuchAsAnyOther(t *testing.T) {
	w := theWard()
	device, platform := w.ends(w.ecc)
	device.MaxVersion, device.ClientSessionCache = tls.VersionTLS13, tls.NewLRUClientSessionCache(1)
	wantPassed(t, w, relay(t, w.rules(), device, platform, shapes[0]), w.ecc)
	r := relay(t, w.rules(), device, platform, shapes[0])
	wantPassed(t, w, r, w.ecc)
	if !r.hello.PSK || !r.deviceState.DidResume || !r.verdict.Resumed || r.verdict.Enforced {
		t.Errorf("%+v", r.verdict)
	}
}

func TestTheDeviceIsToldWhyItIsCut(t *testing.T) {
	w := theWard()
	for _, test := range []struct {
		name     string
		change   func(*Rules, *tls.Config, *tls.Config)
		rule     Rule
		told     string
		reaches  bool // the platform sees a hello
		platform *entry
	}{
		{"another leaf than that of the gate", func(r *Rules, _, _ *tls.Config) { r.Leaves = [][]byte{w.other.cert.Raw} }, RuleCertificate, "bad certificate", true, w.ecc},
		{"another platform behind the address", func(*Rules, *tls.Config, *tls.Config) {}, RuleCertificate, "bad certificate", true, w.other},
		{"no leaf known", func(r *Rules, _, _ *tls.Config) { r.Leaves = nil }, RuleCertificate, "bad certificate", true, w.ecc},
		{"another name", func(r *Rules, _, _ *tls.Config) { r.ServerNames = []string{"other.test"} }, RuleServerName, "unrecognized name", false, w.ecc},
		{"no name", func(_ *Rules, d, _ *tls.Config) { d.ServerName, d.InsecureSkipVerify = "", true }, RuleServerName, "handshake failure", false, w.ecc},
		{"TLS 1.1", func(_ *Rules, d, _ *tls.Config) { d.MinVersion, d.MaxVersion = tls.VersionTLS10, tls.VersionTLS11 }, RuleVersion, "protocol version", false, w.ecc},
		{"a platform of TLS 1.1", func(_ *Rules, d, p *tls.Config) {
			d.MinVersion, p.MinVersion, p.MaxVersion = tls.VersionTLS10, tls.VersionTLS10, tls.VersionTLS11
		}, RuleVersion, "protocol version", true, w.ecc},
		{"TLS 1.2 below the floor", func(r *Rules, _, _ *tls.Config) { r.MinVersion = tls.VersionTLS13 }, RuleVersion, "protocol version", false, w.ecc},
		{"TLS 1.3 chosen where it may not pass", func(r *Rules, d, _ *tls.Config) { r.Allow13, d.MaxVersion = false, tls.VersionTLS13 }, RuleVersion, "protocol version", true, w.ecc},
		{"TLS 1.3 alone where it may not pass", func(r *Rules, d, _ *tls.Config) {
			r.Allow13, d.MinVersion, d.MaxVersion = false, tls.VersionTLS13, tls.VersionTLS13
		}, RuleVersion, "protocol version", false, w.ecc},
		{"static RSA", func(_ *Rules, d, p *tls.Config) {
			d.CipherSuites = []uint16{tls.TLS_RSA_WITH_AES_128_GCM_SHA256}
			p.CipherSuites = d.CipherSuites
		}, RuleKeyExchange, "handshake failure", true, w.rsa},
	} {
		t.Run(test.name, func(t *testing.T) {
			device, platform := w.ends(test.platform)
			rules := w.rules()
			test.change(&rules, device, platform)
			r := relay(t, rules, device, platform, shapes[0])
			wantCut(t, r.inspected, test.rule)
			if r.device == nil || !strings.Contains(r.device.Error(), "remote error: tls: "+strings.ReplaceAll(test.told, "_", " ")) && !strings.Contains(r.device.Error(), test.told) {
				t.Errorf("the device is told: %v", r.device)
			}
			if r.platform == nil || r.platformState.HandshakeComplete || r.beforeDone != 0 || (r.toPlatformBefore > 0) != test.reaches {
				t.Errorf("platform: %v; %d bytes passed to it, %d to the device", r.platform, r.toPlatformBefore, r.beforeDone)
			}
		})
	}
}

func TestWithoutANameWhereThatIsAllowed(t *testing.T) {
	w := theWard()
	device, platform := w.ends(w.ecc)
	device.ServerName, device.InsecureSkipVerify = "", true
	rules := w.rules()
	rules.Nameless = true
	r := relay(t, rules, device, platform, shapes[0])
	if r.device != nil || r.platform != nil || !r.verdict.Enforced || r.verdict.ServerName != "" {
		t.Errorf("device: %v; platform: %v; %+v", r.device, r.platform, r.verdict)
	}
}

func TestTheZeroRulesLetNothingPass(t *testing.T) {
	w := theWard()
	for _, named := range []bool{false, true} {
		device, platform := w.ends(w.ecc)
		device.InsecureSkipVerify = true
		if !named {
			device.ServerName = ""
		}
		wantCut(t, relay(t, Rules{}, device, platform, shapes[0]).inspected, RuleServerName)
	}
}

func TestAnAlertOfThePlatformIsPassedOnAndEndsIt(t *testing.T) {
	w := theWard()
	device, platform := w.ends(w.ecc)
	platform.MinVersion = tls.VersionTLS13
	r := relay(t, w.rules(), device, platform, shapes[1])
	end, ok := errors.AsType[*EndError](r.inspected)
	if !ok || end.By != "platform" || end.Alert != alertProtocolVersion || r.done {
		t.Fatalf("%v", r.inspected)
	}
	if r.device == nil || !strings.Contains(r.device.Error(), "protocol version") {
		t.Errorf("the device is told: %v", r.device)
	}
}

func TestTheHelloSaysWhatTheDeviceWants(t *testing.T) {
	overlaytest.Need(t)
	w := theWard()
	device, platform := w.ends(w.ecc)
	device.NextProtos, platform.NextProtos = []string{"mllp", "x"}, []string{"mllp"}
	device.MaxVersion = tls.VersionTLS13
	if err := tlsoverlay.RequestStaples(device); err != nil {
		t.Fatal(err)
	}
	r := relay(t, w.rules(), device, platform, shapes[0])
	wantPassed(t, w, r, w.ecc)
	h := r.hello
	if h.ServerName != host || strings.Join(h.ALPN, " ") != "mllp x" || !h.Staples || !h.StaplesAll || !h.SecureRenegotiation ||
		h.PSK || h.EarlyData || h.Ticket || len(h.Versions) != 2 || h.Versions[0] != tls.VersionTLS13 || h.Versions[1] != tls.VersionTLS12 {
		t.Errorf("%+v", h)
	}
}

func wantCut(t *testing.T, err error, rule Rule) *CutError {
	t.Helper()
	c, ok := errors.AsType[*CutError](err)
	if !ok || c.Rule != rule {
		t.Fatalf("want it cut by the rule %q, got %v", rule, err)
	}
	if c.Reason == "" || c.Next == "" || c.Alert == 0 || !strings.Contains(c.Error(), c.Reason) || !strings.Contains(c.Error(), c.Next) || !strings.Contains(c.Error(), string(rule)) {
		t.Errorf("it does not say what an operator needs: %v", c)
	}
	record := c.Record()
	alert := record[len(record)-recordHead-alertSize:]
	if alert[0] != typeAlert || alert[1] != 3 || alert[4] != alertSize || alert[5] != alertFatal || alert[6] != byte(c.Alert) || len(alert) < len(record) && rule != RuleResumption {
		t.Errorf("its alert is % x", record)
	}
	return c
}
