package daemon

import (
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/bedside-gateway/gatewayd/internal/config"
	"github.com/bedside-gateway/gatewayd/internal/sim/pki"
	"github.com/bedside-gateway/gatewayd/internal/sim/platform"
	"github.com/bedside-gateway/gatewayd/internal/sim/responder"
	"github.com/bedside-gateway/gatewayd/internal/status"
	"github.com/bedside-gateway/gatewayd/northbound"
	"github.com/bedside-gateway/gatewayd/pcd"
	"github.com/bedside-gateway/gatewayd/tlspolicy"
)

// A hall is a gateway with a tunnel to a simulated platform.
type hall struct {
	*house
	platform *platform.Platform
}

func newHall(t *testing.T, staples ...responder.Answer) *hall {
	t.Helper()
	h := &hall{house: newHouse(t)}
	h.options.Listen = func(string) (net.Listener, error) { return net.Listen("tcp", "127.0.0.1:0") }
	h.platform = h.newPlatform(staples...)
	return h
}

func (h *hall) newPlatform(staples ...responder.Answer) *platform.Platform {
	h.t.Helper()
	identity, err := h.pki.Identity("platform")
	if err != nil {
		h.t.Fatal(err)
	}
	p, err := platform.New(platform.Options{Certificates: []tls.Certificate{identity}, Roots: h.pki.Roots(), Hospital: h.pki, Staple: staples})
	if err != nil {
		h.t.Fatal(err)
	}
	if err := p.Listen("127.0.0.1:0"); err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { p.Close() })
	return p
}

func (h *hall) section(more string) string {
	return fmt.Sprintf("[[tunnel]]\nname = \"icu\"\nnetworks = [\"127.0.0.0/8\"]\n%s\n[[tunnel.platform]]\nname = \"hospital\"\naddress = \"platform.test:2575\"\nconnect = %q\ntrust = \"pki/roots.pem\"\nrecheck = \"1s\"\n", more, h.platform.Address())
}

func (h *hall) open(section string) {
	h.t.Helper()
	h.configure(section)
	h.start()
	eventually(h.t, "devices can connect", func() bool {
		s := h.daemon.Report().Tunnel
		return s != nil && s.Listeners[0].Address != ""
	})
}

// device speaks IHE PCD over its own TLS, end to end with the platform.
func (h *hall) device() (*northbound.Conn, error) {
	h.t.Helper()
	id, err := h.pki.Identity("device")
	if err != nil {
		h.t.Fatal(err)
	}
	c, err := tlspolicy.Client{ServerName: pki.DefaultPlatform, Roots: h.pki.Roots(), Identity: id}.Config()
	if err != nil {
		h.t.Fatal(err)
	}
	return northbound.Dial(h.t.Context(), northbound.Destination{Name: "tunnel", Address: "platform.test:2575", Connect: h.daemon.Report().Tunnel.Listeners[0].Address, TLS: c,
		AckTimeout: 10 * time.Second, ConnectTimeout: 10 * time.Second})
}

func (h *hall) connect() *northbound.Conn {
	h.t.Helper()
	c, err := h.device()
	if err != nil {
		h.t.Fatal(err, "\n", h.log)
	}
	h.t.Cleanup(c.Close)
	return c
}

func (h *hall) send(c *northbound.Conn, id string) pcd.Ack {
	h.t.Helper()
	a, err := c.Exchange(h.t.Context(), []byte(pump(id, "1")))
	if err != nil {
		h.t.Fatal(err, "\n", h.log)
	}
	return a
}

func TestADeviceSpeaksWithThePlatformThroughTheTunnel(t *testing.T) {
	h := newHall(t)
	h.open(h.section(""))
	c := h.connect()
	leaf, err := h.pki.Find("platform")
	if err != nil {
		t.Fatal(err)
	}
	if got := c.State().PeerCertificates[0]; !got.Equal(leaf.Certificate) {
		t.Errorf("the device sees %v", got.Subject)
	}
	if a := h.send(c, "T1"); a.Code != "CA" || a.ControlID != "T1" {
		t.Errorf("%+v", a)
	}
	if n := h.platform.Counts(); n.Stored != 1 {
		t.Errorf("%+v", n)
	}
	eventually(t, "the session's bytes are counted", func() bool {
		s := h.daemon.Report().Tunnel
		return len(s.Sessions) == 1 && s.Sessions[0].ToPlatform > 0
	})
	s := h.daemon.Report().Tunnel
	if s.Opened != 1 || len(s.Sessions) != 1 || s.Sessions[0].Platform != "hospital" || s.Platforms[0].Gate != "good" {
		t.Errorf("%+v", s)
	}
	if strings.Contains(h.log.String(), "MARKFAMILY") {
		t.Error("a name is in the log")
	}

	// A reload that changes a limit keeps the session; one that takes the tunnel out ends it.
	h.configure(h.section("max_sessions = 3"))
	if err := h.daemon.Reload(); err != nil {
		t.Fatal(err)
	}
	if a := h.send(c, "T2"); a.Code != "CA" {
		t.Errorf("%+v", a)
	}
	h.configure(nowhere)
	if err := h.daemon.Reload(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the end of the session", func() bool { return h.daemon.Report().Tunnel.Ended["drained"] == 1 })
	h.configure(h.section(""))
	if err := h.daemon.Reload(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the tunnel is back", func() bool {
		s := h.daemon.Report().Tunnel
		return len(s.Listeners) == 1 && s.Listeners[0].Address != ""
	})
	h.send(h.connect(), "T3")
}

func TestAPlatformWithoutStaplesClosesTheGateAndSaysWhy(t *testing.T) {
	h := newHall(t, responder.None, responder.None)
	h.open(h.section(""))
	if _, err := h.device(); err == nil {
		t.Fatal("the device got through")
	}
	eventually(t, "the condition", func() bool {
		for _, c := range h.daemon.Report().Conditions {
			if c.Name == "tunnel-gate-closed" && c.Subject == "hospital" && strings.Contains(c.Text, "no response for it was stapled") {
				return true
			}
		}
		return false
	})
}

func TestWhatATunnelCannotBePutToWorkWith(t *testing.T) {
	h := newHall(t)
	h.open(h.section(""))
	c := h.connect()
	if err := os.WriteFile(filepath.Join(h.dir, "empty.pem"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	h.configure(strings.Replace(h.section(""), "pki/roots.pem", "empty.pem", 1))
	if err := h.daemon.Reload(); err == nil || !strings.Contains(err.Error(), "holds no PEM certificate") {
		t.Errorf("%v", err)
	}
	h.send(c, "T1")
}

// conditionsOf are those that a state of the tunnels raises.
func conditionsOf(now time.Time, s status.Tunnel) []status.Condition {
	r := status.Report{Now: now}
	(&conditions{report: &r}).tunnel(&s)
	r.Judge()
	return r.Conditions
}

func TestAClosedGateIsOneConditionOfItsPlatformThatNamesWhatDevicesAskFor(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	row := func(name, result string, ago time.Duration) status.TunnelPlatform {
		return status.TunnelPlatform{Name: "hospital", ServerName: name, Gate: result, Closed: result == "refused", Fault: "fault of " + name, Judged: now.Add(-ago), Since: now.Add(-ago - time.Hour)}
	}
	for name, s := range map[string]struct {
		rows []status.TunnelPlatform
		want string // of the text; empty: no condition
	}{
		"a name":                            {[]status.TunnelPlatform{row("a.example", "refused", time.Minute)}, "No new session by the name a.example passes to the platform: fault of a.example."},
		"no name":                           {[]status.TunnelPlatform{row("", "refused", time.Minute)}, "No new session without a name passes to the platform: fault of ."},
		"one name of two":                   {[]status.TunnelPlatform{row("a.example", "refused", time.Minute), row("b.example", "good", time.Second)}, "No new session by the name a.example passes"},
		"two names, the latest fault":       {[]status.TunnelPlatform{row("a.example", "refused", time.Minute), row("b.example", "refused", time.Second)}, "No new session by the name a.example or by the name b.example passes to the platform: fault of b.example."},
		"a name at two addresses":           {[]status.TunnelPlatform{row("a.example", "refused", time.Minute), row("a.example", "refused", time.Second)}, "No new session by the name a.example passes"},
		"a platform that was not asked yet": {[]status.TunnelPlatform{row("a.example", "unjudged", 0)}, ""},
		"a good one":                        {[]status.TunnelPlatform{row("a.example", "good", time.Second)}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			got := conditionsOf(now, status.Tunnel{Platforms: s.rows})
			if s.want == "" && len(got) == 0 {
				return
			}
			if len(got) != 1 || s.want == "" || got[0].Name != "tunnel-gate-closed" || got[0].Subject != "hospital" || !strings.Contains(got[0].Text, s.want) {
				t.Errorf("%+v, want %q", got, s.want)
			}
			if want := now.Add(-time.Minute - time.Hour); len(got) == 1 && !got[0].Since.Equal(want) {
				t.Errorf("since %v, want %v: it does not begin anew with each look", got[0].Since, want)
			}
		})
	}
}

func TestOfTheRefusalsOfATunnelTheGravestIsToldAndWhatTheLogLacks(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	refusal := func(rule string, ago time.Duration) status.TunnelRefusal {
		return status.TunnelRefusal{Time: now.Add(-ago), Tunnel: "icu", Device: "10.20.0.5:4000", Platform: "hospital", Rule: rule, Reason: "reason of " + rule}
	}
	gate := func(rule string) status.TunnelRefusal {
		r := refusal(rule, time.Minute)
		r.Gate = true
		return r
	}
	for name, s := range map[string]struct {
		all  []status.TunnelRefusal
		want []string // name, subject and text of each
	}{
		"a stranger":                             {[]status.TunnelRefusal{refusal("network", time.Minute)}, []string{"tunnel-refused icu A device at 10.20.0.5:4000 did not get through: reason of network."}},
		"long ago":                               {[]status.TunnelRefusal{refusal("network", recently)}, nil},
		"a device that speaks the wrong version": {[]status.TunnelRefusal{refusal("version", time.Minute), refusal("network", time.Second)}, []string{"tunnel-refused icu A device at 10.20.0.5:4000 did not get through: reason of version."}},
		"two of a kind, the later":               {[]status.TunnelRefusal{refusal("rate", time.Minute), refusal("network", time.Second)}, []string{"tunnel-refused icu A device at 10.20.0.5:4000 did not get through: reason of network."}},
		"another platform, and a stranger":       {[]status.TunnelRefusal{refusal("network", time.Second), refusal("certificate", time.Minute)}, []string{"tunnel-platform-unproved hospital A device at 10.20.0.5:4000 met a platform that did not show that it is the one that was judged: reason of certificate.", "tunnel-refused icu A device"}},
		"a signature":                            {[]status.TunnelRefusal{refusal("signature", time.Minute)}, []string{"tunnel-platform-unproved hospital"}},
		"a platform that turns devices away":     {[]status.TunnelRefusal{refusal("ended by platform", time.Minute)}, []string{"tunnel-refused icu A device at 10.20.0.5:4000 did not get through: reason of ended by platform."}},
		"a device that turns the platform away":  {[]status.TunnelRefusal{refusal("ended by device", time.Minute)}, []string{"tunnel-refused icu"}},
		"a platform that is slow":                {[]status.TunnelRefusal{refusal("platform late", time.Minute)}, []string{"tunnel-refused icu"}},
		"a device that is slow":                  {[]status.TunnelRefusal{refusal("device late", time.Minute)}, []string{"tunnel-refused icu"}},
		"bytes that are no TLS":                  {[]status.TunnelRefusal{refusal("format", time.Minute)}, []string{"tunnel-refused icu"}},
		"a handshake that broke off":             {[]status.TunnelRefusal{refusal("broken", time.Minute)}, []string{"tunnel-refused icu"}},
		"a session that is not to be reached":    {[]status.TunnelRefusal{refusal("unreachable", time.Minute)}, []string{"tunnel-refused icu"}},
		"what the gate says, the gate tells":     {[]status.TunnelRefusal{gate("B18"), gate("unreachable")}, nil},
		"a stop":                                 {[]status.TunnelRefusal{refusal("shutdown", time.Minute)}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			for unlogged, tail := range map[uint64]string{0: "The log has all refusals by this rule: journalctl -u gatewayd.", 4: "Of the 9 refusals by this rule 4 were too many for the log; it has the others: journalctl -u gatewayd."} {
				l := status.TunnelListener{Name: "icu", Address: "x", Refused: map[string]uint64{}, Unlogged: map[string]uint64{}}
				for _, r := range s.all {
					l.Refused[r.Rule], l.Unlogged[r.Rule] = 9, unlogged
				}
				got := conditionsOf(now, status.Tunnel{Listeners: []status.TunnelListener{l, {Name: "or", Address: "y"}}, Refusals: s.all})
				if len(got) != len(s.want) {
					t.Fatalf("%+v, want %q", got, s.want)
				}
				for i, c := range got {
					if !strings.HasPrefix(c.Name+" "+c.Subject+" "+c.Text, s.want[i]) || !strings.HasSuffix(c.Next, tail) {
						t.Errorf("%+v, want %q and %q", c, s.want[i], tail)
					}
				}
			}
		})
	}
}

func TestTooFewDescriptorsForTheSessionsAreACondition(t *testing.T) {
	h := newHall(t)
	limit := 0
	h.options.Load = func() (*config.Config, error) {
		c, err := h.load()
		if err == nil {
			c.MaxDescriptors = limit
		}
		return c, err
	}
	h.open(h.section("max_sessions = 3"))
	for _, row := range []struct {
		limit int
		short bool
	}{{0, false}, {64 + 2 + 6*3, false}, {64 + 2 + 6*3 - 1, true}} {
		limit = row.limit
		if err := h.daemon.Reload(); err != nil {
			t.Fatal(err)
		}
		if h.raised("descriptors-short", "") != row.short {
			t.Errorf("with %d descriptors: %+v", limit, h.daemon.Report().Conditions)
		}
	}
	h.connect()
	h.connect() // two have room, though three are allowed
	if _, err := h.device(); err == nil {
		t.Error("a third device got through")
	}
	if n := h.daemon.Report().Tunnel.Listeners[0].Refused["limit"]; n == 0 {
		t.Errorf("%+v", h.daemon.Report().Tunnel)
	}
}

// A gateway that is not enrolled has nothing to judge a platform with.
func TestATunnelWithoutACertificateOfTheGateway(t *testing.T) {
	h := newHall(t)
	h.configure(h.section(""))
	text, err := os.ReadFile(filepath.Join(h.dir, "g.toml"))
	if err != nil {
		t.Fatal(err)
	}
	c, err := h.load()
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	d := &Daemon{options: h.options.filled()}
	p, err := d.planTunnel(c, identity{unready: &tlspolicy.RefusalError{Rule: "B16", Reason: "not enrolled", Next: "enrol"}})
	if err != nil || p.missing == nil || p.fresh != nil || len(p.settings.Listeners) != 0 {
		t.Errorf("%+v, %v", p, err)
	}
	if p, err = d.planTunnel(c, identity{}); err != nil || p.missing == nil {
		t.Errorf("%+v, %v", p, err)
	}
}
