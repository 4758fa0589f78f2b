package tunnel

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/bedside-gateway/gatewayd/internal/sim/pki"
	"github.com/bedside-gateway/gatewayd/internal/sim/responder"
)

var versions = []uint16{tls.VersionTLS12, tls.VersionTLS13}

func TestASessionIsCarriedUnopened(t *testing.T) {
	for _, version := range versions {
		t.Run(tls.VersionName(version), func(t *testing.T) {
			f := newFar(t)
			w := newWard(t, f, nil)
			c := w.device(version)
			leaf, err := f.Find("platform")
			must(t, err)
			if got := c.ConnectionState().PeerCertificates[0]; !got.Equal(leaf.Certificate) {
				t.Errorf("the device sees %v, not the platform", got.Subject)
			}
			w.echo(c, "ping")
			w.echo(c, strings.Repeat("large ", 20000))
			w.until("session with bytes both ways", func(s Status) bool {
				return len(s.Sessions) == 1 && s.Sessions[0].ToDevice > 120000 && s.Sessions[0].ToPlatform > 120000
			})
			one := w.Status().Sessions[0]
			if one.Platform != "hospital" || one.Address.String() != f.address() || one.Version != version || one.ServerName != pki.DefaultPlatform || one.Enforced != (version == tls.VersionTLS12) {
				t.Errorf("%+v", one)
			}
			must(t, c.CloseWrite())
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
				t.Errorf("after the end: %v", err)
			}
			c.Close()
			if e := w.event(Closed); e.Err != nil {
				t.Errorf("%+v", e)
			}
			s := w.Status()
			if s.Opened != 1 || s.Ended["closed"] != 1 || s.Gate[Good] != 1 || s.ToDevice < one.ToDevice {
				t.Errorf("%+v", s)
			}
			// The gate's, ended in good order, and the session.
			w.until("two handshakes that ended in good order", func(Status) bool { return f.shaken.Load() == 2 && f.silent.Load() == 2 })
		})
	}
}

// Each row is a platform that the gate must find out. The device would let
// every one of them pass that has a path to the root.
func TestNoDeviceReachesAPlatformThatIsRefused(t *testing.T) {
	a := func(answers ...responder.Answer) []responder.Answer { return answers }
	for _, test := range []struct {
		name string
		face face
		rule string
		word string
	}{
		{"the leaf is revoked", face{identity: "platform-revoked"}, "B18", "revoked"},
		{"the intermediate is revoked", face{identity: "platform-issuing-revoked"}, "B18", "revoked"},
		{"no staple at all", face{staples: a(responder.None, responder.None)}, "B18", "no response"},
		{"no staple for the intermediate", face{staples: a(responder.Auto, responder.None)}, "B18", "no response"},
		{"the leaf's staple has expired", face{staples: a(responder.Stale)}, "B18", ""},
		{"the intermediate's staple has expired", face{staples: a(responder.Auto, responder.Stale)}, "B18", ""},
		{"the staple is signed by a sibling", face{identity: "platform-revoked", staples: a(responder.WrongSigner)}, "B18", "sign"},
		{"the staple is of another certificate", face{staples: a(responder.Mismatched)}, "B18", ""},
		{"the staple is garbage", face{staples: a(responder.Garbage)}, "B18", ""},
		{"the certificate has expired", face{identity: "platform-expired"}, "B17", "expired"},
		{"the certificate names another", face{identity: "platform-wrong-name"}, "B17", "not for"},
		{"the root is foreign", face{identity: "platform-foreign"}, "B17", ""},
	} {
		for _, version := range versions {
			t.Run(test.name+" "+tls.VersionName(version), func(t *testing.T) {
				f := newFar(t, test.face)
				w := newWard(t, f, nil)
				config := w.deviceConfig(version)
				config.InsecureSkipVerify = true
				_, err := w.connect(config)
				if err == nil {
					t.Fatal("the device got through")
				}
				if alert, ok := errors.AsType[tls.AlertError](err); (!ok || alert != alertAccessDenied) && !strings.Contains(err.Error(), "access denied") {
					t.Errorf("the device is told %v", err)
				}
				e := w.event(RefusedOne)
				if e.Rule != test.rule || !strings.Contains(e.Err.Error(), test.word) {
					t.Errorf("%s: %v", e.Rule, e.Err)
				}
				if e.Severity != GateRule || e.Listener != "icu" || e.Platform != "hospital" || e.ServerName != pki.DefaultPlatform || e.Address.String() != f.address() {
					t.Errorf("the audit is told %+v", e)
				}
				if f.received.Load() != 0 || f.connections.Load() != 1 {
					t.Errorf("the platform got %d bytes over %d connections", f.received.Load(), f.connections.Load())
				}
				s := w.Status()
				if s.Refused[test.rule] != 1 || s.Gate[Refused] != 1 || s.Platforms[0].Result != Refused || s.Platforms[0].Err == nil || len(s.Sessions) != 0 {
					t.Errorf("%+v", s)
				}
			})
		}
	}
}

// Another certificate behind the same address, once the gate has looked.
func TestAPlatformThatIsSwappedAfterTheGateIsCutInTLS12(t *testing.T) {
	a := func(answers ...responder.Answer) []responder.Answer { return answers }
	for _, test := range []struct {
		name    string
		face    face
		staples bool // that the device asks for them all
		passes  bool
		word    string
	}{
		{"a revoked one", face{identity: "platform-revoked"}, true, false, "revoked"},
		{"a revoked one, and the device asks for no staples", face{identity: "platform-revoked"}, false, false, "certificate"},
		{"one of a revoked CA", face{identity: "platform-issuing-revoked"}, true, false, "revoked"},
		{"one with another name", face{identity: "platform-wrong-name"}, true, false, "not for"},
		{"one of a foreign root", face{identity: "platform-foreign"}, true, false, ""},
		{"one with a staple that a sibling signed", face{identity: "platform-revoked", staples: a(responder.WrongSigner)}, true, false, "sign"},
		{"one without staples", face{identity: "platform-cn-only", staples: a(responder.None, responder.None)}, true, false, ""},
		{"one with an expired staple for its CA", face{identity: "platform-cn-only", staples: a(responder.Auto, responder.Stale)}, true, false, ""},
		{"a good one with its own staples", face{identity: "platform-cn-only"}, true, true, ""},
		{"a good one, and the device asks for no staples", face{identity: "platform-cn-only"}, false, false, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := newFar(t, face{}, test.face)
			w := newWard(t, f, nil)
			config := w.deviceConfig(tls.VersionTLS12)
			config.InsecureSkipVerify = true
			if test.staples {
				must(t, requestAll(config))
			}
			c, err := w.connect(config)
			if test.passes {
				must(t, err)
				w.echo(c, "ping")
				w.until("an enforced session by its staples", func(s Status) bool { return s.Enforced == 1 && s.Stapled == 1 })
				return
			}
			if err == nil {
				t.Fatal("the device got through")
			}
			if e := w.event(RefusedOne); e.Rule != "certificate" || !strings.Contains(e.Err.Error(), test.word) {
				t.Errorf("%s: %v", e.Rule, e.Err)
			}
			if f.received.Load() != 0 || f.shaken.Load() > 1 {
				t.Errorf("the platform got %d bytes, %d handshakes came to their end", f.received.Load(), f.shaken.Load())
			}
		})
	}
}

// The certificate is the one that the gate has seen, and the CA has taken it back
// meanwhile; or what is stapled now is not what the gate would take.
func TestAStapleOfTheSessionIsJudgedToo(t *testing.T) {
	a := func(answers ...responder.Answer) []responder.Answer { return answers }
	for _, test := range []struct {
		name    string
		staples []responder.Answer
		all     bool // that the device asks for them all
		passes  bool
		word    string
	}{
		{"the leaf is revoked", a(responder.Revoked), false, false, "it was revoked at"},
		{"the leaf is revoked, among all", a(responder.Revoked), true, false, "it was revoked at"},
		{"the intermediate is revoked", a(responder.Auto, responder.Revoked), true, false, "it was revoked at"},
		{"the intermediate is revoked, and the device asks for the leaf's only", a(responder.Auto, responder.Revoked), false, true, ""},
		{"unknown", a(responder.Unknown), false, false, "does not know it"},
		{"expired", a(responder.Stale), false, false, "it expired at"},
		{"signed by a sibling", a(responder.WrongSigner), false, false, "sign"},
		{"good", a(responder.Good), false, true, ""},
		{"none", a(responder.None, responder.None), true, true, ""},
		{"none for the intermediate", a(responder.Auto, responder.None), true, true, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := newFar(t, face{}, face{staples: test.staples})
			w := newWard(t, f, nil)
			config := w.deviceConfig(tls.VersionTLS12)
			config.InsecureSkipVerify = true
			if test.all {
				must(t, requestAll(config))
			}
			c, err := w.connect(config)
			if test.passes {
				must(t, err)
				w.echo(c, "ping")
				if s := w.Status(); s.Enforced != 1 || s.Stapled != 0 {
					t.Errorf("%+v", s)
				}
				return
			}
			if err == nil {
				t.Fatal("the device got through")
			}
			if e := w.event(RefusedOne); e.Rule != "certificate" || e.Severity != Foreign || !strings.Contains(e.Err.Error(), test.word) || !strings.Contains(e.Err.Error(), "speaks against it") {
				t.Errorf("%s: %v", e.Rule, e.Err)
			}
			if f.received.Load() != 0 || f.shaken.Load() > 1 {
				t.Errorf("the platform got %d bytes, %d handshakes came to their end", f.received.Load(), f.shaken.Load())
			}
		})
	}
}

func TestTLS13CannotSeeASwapButTheNextLookDoes(t *testing.T) {
	f := newFar(t, face{}, face{identity: "platform-revoked"})
	w := newWard(t, f, nil)
	config := w.deviceConfig(tls.VersionTLS13)
	config.InsecureSkipVerify = true
	c, err := w.connect(config)
	must(t, err)
	w.echo(c, "ping")
	if s := w.Status(); s.GateOnly != 1 || s.Enforced != 0 {
		t.Errorf("%+v", s)
	}
	if _, err := w.connect(config); err == nil { // the gate looks for this one, and sees
		t.Error("the second one got through")
	}
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("the first one lives on")
	}
	if e := w.event(Closed); e.Err == nil || !strings.Contains(e.Err.Error(), "revoked") {
		t.Errorf("%+v", e)
	}
	if s := w.Status(); s.Ended["gate"] != 1 {
		t.Errorf("%+v", s)
	}
}

func TestNothingOfADeviceIsLogged(t *testing.T) {
	w := newWard(t, newFar(t), nil)
	c := w.device(tls.VersionTLS13)
	w.echo(c, "PID|||42||Doe^Jane")
	c.Close()
	w.event(Closed)
	if bytes.Contains([]byte(w.log.String()), []byte("Doe")) {
		t.Error("a name is in the log")
	}
}
