package tlspolicy

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bedside-gateway/gatewayd/revocation"
)

// Folder test/refusal has the faults of responses over real handshakes. Here is what
// becomes of them: which certificate a response is taken for, and which alert
// is sent.
func TestB18_ResponsesAreFoundByTheirCertificate(t *testing.T) {
	leafGone := func(r *reply) { r.Good, r.Revoked = false, revoked{now.Add(-time.Hour)} }
	stale := func(r *reply) { r.Next = now.Add(-time.Minute) }
	for _, c := range []struct {
		name, refused, reason string // refused: "" is good
		alert                 tls.AlertError
		change                func(h *hospital)
	}{
		{name: "a response for every certificate but the root"},
		{name: "the certificates in another order", change: func(h *hospital) {
			h.between = authority("Between")
			h.send = func(c *chain) []*x509.Certificate { return []*x509.Certificate{c.leaf, c.issuing, c.between} }
		}},
		{name: "the root sent too, and without a response", change: func(h *hospital) {
			h.send = func(c *chain) []*x509.Certificate { return []*x509.Certificate{c.leaf, c.root, c.issuing} }
		}},
		{name: "a certificate that has nothing to do with it", change: func(h *hospital) {
			other := h.sign(authority("Other"), authority("Other"), keys()[2], keys()[2])
			h.send = func(c *chain) []*x509.Certificate { return []*x509.Certificate{c.leaf, other, c.issuing} }
		}},
		{name: "the CA sent twice, its response with the second", change: func(h *hospital) {
			h.send = func(c *chain) []*x509.Certificate { return []*x509.Certificate{c.leaf, c.issuing, c.issuing} }
			h.staple = func(_ *chain, good [][]byte) [][]byte { good[1] = nil; return good }
		}},
		{name: "another path for whose CA there is no response", change: func(h *hospital) {
			second := h.sign(authority("Second root"), authority("Second root"), keys()[2], keys()[2])
			cross := h.sign(authority("Issuing"), authority("Second root"), h.issuingKey, keys()[2])
			h.trust = func(c *chain) []*x509.Certificate { return []*x509.Certificate{second, c.root} }
			h.send = func(c *chain) []*x509.Certificate { return []*x509.Certificate{c.leaf, cross, c.issuing} }
		}},
		{name: "none at all", refused: "platform certificate, 1 of 2 sent", reason: "no response for it was stapled", alert: alertBadStatus,
			change: func(h *hospital) { h.staple = func(*chain, [][]byte) [][]byte { return nil } }},
		{name: "the leaf's alone", refused: `certificate 2 of 2 sent, "CN=Issuing"`, reason: "no response for it was stapled", alert: alertBadStatus,
			change: func(h *hospital) { h.staple = func(_ *chain, good [][]byte) [][]byte { return good[:1] } }},
		{name: "the CA's alone", refused: "platform certificate, 1 of 2 sent", reason: "no response for it was stapled", alert: alertBadStatus,
			change: func(h *hospital) {
				h.staple = func(_ *chain, good [][]byte) [][]byte { return [][]byte{nil, good[1]} }
			}},
		{name: "swapped", refused: "platform certificate, 1 of 2 sent", reason: "", alert: alertBadStatus,
			change: func(h *hospital) {
				h.staple = func(_ *chain, good [][]byte) [][]byte { slices.Reverse(good); return good }
			}},
		{name: "revoked", refused: "platform certificate, 1 of 2 sent", reason: "it was revoked at 2026-11-21T11:00:00Z", alert: alertRevoked,
			change: func(h *hospital) {
				h.staple = func(c *chain, good [][]byte) [][]byte {
					good[0] = respond(h.t, c.leaf, c.issuing, h.issuingKey, leafGone)
					return good
				}
			}},
		{name: "the CA revoked", refused: "certificate 2 of 2 sent", reason: "it was revoked at", alert: alertRevoked,
			change: func(h *hospital) {
				h.staple = func(c *chain, good [][]byte) [][]byte {
					good[1] = respond(h.t, c.issuing, c.root, h.rootKey, leafGone)
					return good
				}
			}},
		{name: "expired", refused: "certificate 2 of 2 sent", reason: "it expired at", alert: alertBadStatus,
			change: func(h *hospital) {
				h.staple = func(c *chain, good [][]byte) [][]byte {
					good[1] = respond(h.t, c.issuing, c.root, h.rootKey, stale)
					return good
				}
			}},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newHospital(t)
			if c.change != nil {
				c.change(h)
			}
			err := h.verdict()
			if c.refused == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			var r *RefusalError
			var v revocation.Verdict
			var alert tls.AlertError
			if !errors.As(err, &r) || r.Rule != "B18" || !errors.As(err, &v) || !errors.As(err, &alert) {
				t.Fatalf("%v", err)
			}
			if alert != c.alert || !strings.HasPrefix(r.Certificate, c.refused) || !strings.Contains(r.Reason, c.reason) || r.Next == "" {
				t.Errorf("alert %d, %s", alert, r)
			}
		})
	}
}

func TestB18_VerdictsAreToldAndOldResponsesRefused(t *testing.T) {
	h := newHospital(t)
	c := h.chain()
	var kinds []string
	verdict := func(maxAge time.Duration) error {
		config, err := Client{ServerName: h.name, Roots: pool(c.root), Identity: device(t), Now: func() time.Time { return now }, MaxAge: maxAge,
			Judged: func(all []revocation.Verdict) {
				for _, v := range all {
					kinds = append(kinds, v.Kind.String())
				}
			}}.Config()
		if err != nil {
			t.Fatal(err)
		}
		state := tls.ConnectionState{Version: tls.VersionTLS13, PeerCertificates: h.send(c)}
		stapled(&state, h.staples(c))
		return config.VerifyConnection(state)
	}
	if err := verdict(3 * time.Hour); err != nil { // they are two hours old
		t.Error(err)
	}
	if err := verdict(time.Hour); err == nil || !strings.Contains(err.Error(), "older than") {
		t.Errorf("%v", err)
	}
	if want := []string{"good", "good", "too old", "too old"}; !slices.Equal(kinds, want) {
		t.Errorf("told %v", kinds)
	}
}

// What is remembered of responses does not outlive them, nor the certificates.
func TestB18_RememberedResponsesExpire(t *testing.T) {
	h := newHospital(t)
	h.leaf.NotAfter, h.issuing.NotAfter, h.root.NotAfter = now.Add(48*time.Hour), now.Add(48*time.Hour), now.Add(48*time.Hour)
	c := h.chain()
	at := now
	config, err := Client{ServerName: h.name, Roots: pool(c.root), Identity: device(t), Now: func() time.Time { return at }}.Config()
	if err != nil {
		t.Fatal(err)
	}
	state := tls.ConnectionState{Version: tls.VersionTLS13, PeerCertificates: h.send(c)}
	stapled(&state, h.staples(c))
	for range 2 {
		if err := config.VerifyConnection(state); err != nil {
			t.Fatal(err)
		}
	}
	at = now.Add(12 * time.Hour)
	if err := config.VerifyConnection(state); err == nil || !strings.Contains(err.Error(), "it expired at") {
		t.Errorf("at the end of the responses: %v", err)
	}
}

func TestAClockThatIsWrongForCertainJudgesNothing(t *testing.T) {
	h := newHospital(t)
	c := h.chain()
	for floor, reason := range map[time.Time]string{
		now:                  "",
		now.Add(time.Second): "the gateway's clock shows 2026-11-21 12:00:00Z, which is before this software was made (2026-11-21 12:00:01Z)",
	} {
		config, err := Client{ServerName: h.name, Roots: pool(c.root), Identity: device(t), Now: func() time.Time { return now }, Floor: floor}.Config()
		if err != nil {
			t.Fatal(err)
		}
		state := tls.ConnectionState{Version: tls.VersionTLS13, PeerCertificates: h.send(c)}
		stapled(&state, h.staples(c))
		err = config.VerifyConnection(state)
		var r *RefusalError
		switch {
		case reason == "" && err != nil:
			t.Error(err)
		case reason != "" && (!errors.As(err, &r) || !strings.Contains(r.Reason, reason) || !strings.Contains(r.Next, "clock")):
			t.Errorf("%v", err)
		}
	}
}
