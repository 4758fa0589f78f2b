package daemon

import (
	"bytes"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/bedside-gateway/gatewayd/internal/status"
	"github.com/bedside-gateway/gatewayd/tunnel"
)

func TestEachRefusalAndEachCutIsOneRecordOfTheAuditTrail(t *testing.T) {
	device, platform := netip.MustParseAddrPort("10.20.0.5:40000"), netip.MustParseAddrPort("10.1.0.1:2575")
	refused := tunnel.Event{Kind: tunnel.RefusedOne, Listener: "icu", Device: device, Rule: "network", Severity: tunnel.Access, Loud: true, Err: errors.New("it is not of the networks")}
	quiet := refused
	quiet.Loud = false
	foreign := tunnel.Event{Kind: tunnel.RefusedOne, Listener: "icu", Device: device, Platform: "hospital", ServerName: "hl7.example", Address: platform, Rule: "certificate", Severity: tunnel.Foreign, Loud: true, Err: errors.New("another certificate")}
	cut := tunnel.Event{Kind: tunnel.Closed, Listener: "icu", Device: device, Platform: "hospital", ServerName: "hl7.example", Address: platform, Rule: "B18", Severity: tunnel.GateRule, Result: "gate",
		ToPlatform: 7, ToDevice: 8, Err: errors.New("the gate is closed: revoked")}
	drained := cut
	drained.Rule, drained.Severity, drained.Result, drained.Err = "shutdown", tunnel.Passing, "drained", errors.New("the gateway is shutting down")
	for name, row := range map[string]struct {
		event tunnel.Event
		want  string // empty: no record
	}{
		"a device that may not connect":  {refused, `{"level":"WARN","msg":"tunnel: a device was refused","event":"refused","tunnel":"icu","rule":"network","device":"10.20.0.5:40000","reason":"it is not of the networks"}`},
		"one of too many for a log":      {quiet, ``},
		"another platform than judged":   {foreign, `{"level":"ERROR","msg":"tunnel: a device was refused","event":"refused","tunnel":"icu","rule":"certificate","device":"10.20.0.5:40000","platform":"hospital","server_name":"hl7.example","address":"10.1.0.1:2575","reason":"another certificate"}`},
		"a session that the gate cut":    {cut, `{"level":"ERROR","msg":"tunnel: a device was cut","event":"cut","tunnel":"icu","rule":"B18","device":"10.20.0.5:40000","platform":"hospital","server_name":"hl7.example","address":"10.1.0.1:2575","to_platform":7,"to_device":8,"reason":"the gate is closed: revoked"}`},
		"a session that a stop has cut":  {drained, `{"level":"INFO","msg":"tunnel: a device was cut","event":"cut","tunnel":"icu","rule":"shutdown","device":"10.20.0.5:40000","platform":"hospital","server_name":"hl7.example","address":"10.1.0.1:2575","to_platform":7,"to_device":8,"reason":"the gateway is shutting down"}`},
		"a session that ended by itself": {tunnel.Event{Kind: tunnel.Closed, Listener: "icu", Device: device, Result: "closed"}, ``},
		"a session that flows":           {tunnel.Event{Kind: tunnel.Opened, Listener: "icu", Device: device}, ``},
		"a gate":                         {tunnel.Event{Kind: tunnel.GateClosed, Platform: "hospital", Err: errors.New("revoked")}, ``},
	} {
		t.Run(name, func(t *testing.T) {
			var log bytes.Buffer
			a := newAudit(slog.New(slog.NewJSONHandler(&log, nil)), time.Now)
			a.note(row.event)
			if row.want == "" {
				if log.Len() > 0 {
					t.Errorf("it is recorded: %s", &log)
				}
				return
			}
			var got, want map[string]any
			if err := json.Unmarshal(log.Bytes(), &got); err != nil { // one record, or it fails
				t.Fatalf("%v: %s", err, &log)
			}
			if delete(got, "time"); json.Unmarshal([]byte(row.want), &want) != nil || !reflect.DeepEqual(got, want) {
				t.Errorf("got  %s\nwant %s", &log, row.want)
			}
		})
	}
}

func TestRefusalsAreCountedByTunnelAndRuleAndTheLatestOfEachIsKept(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	a := newAudit(slog.New(slog.DiscardHandler), func() time.Time { return at })
	for _, one := range []struct {
		tunnel, rule, device string
		loud                 bool
	}{{"icu", "rate", "10.0.0.1:1", true}, {"icu", "rate", "10.0.0.2:1", false}, {"icu", "network", "10.0.0.3:1", true}, {"or", "rate", "10.0.0.4:1", true}} {
		at = at.Add(time.Second)
		a.note(tunnel.Event{Kind: tunnel.RefusedOne, Listener: one.tunnel, Device: netip.MustParseAddrPort(one.device), Rule: one.rule, Loud: one.loud, Err: errors.New("no")})
	}
	got := status.Tunnel{Listeners: []status.TunnelListener{{Name: "icu"}, {Name: "or"}, {Name: "er"}}}
	a.report(&got)
	second := func(n int) time.Time { return time.Date(2026, 1, 2, 3, 4, 5+n, 0, time.UTC) }
	want := status.Tunnel{
		Listeners: []status.TunnelListener{{Name: "icu", Refused: map[string]uint64{"rate": 2, "network": 1}, Unlogged: map[string]uint64{"rate": 1}},
			{Name: "or", Refused: map[string]uint64{"rate": 1}, Unlogged: map[string]uint64{}}, {Name: "er", Refused: map[string]uint64{}, Unlogged: map[string]uint64{}}},
		Refusals: []status.TunnelRefusal{{Time: second(3), Tunnel: "icu", Device: "10.0.0.3:1", Rule: "network", Reason: "no"}, {Time: second(2), Tunnel: "icu", Device: "10.0.0.2:1", Rule: "rate", Reason: "no"},
			{Time: second(4), Tunnel: "or", Device: "10.0.0.4:1", Rule: "rate", Reason: "no"}},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestARefusalForAClosedGateIsToldFromOneOfTheSession(t *testing.T) {
	for name, row := range map[string]struct {
		rule string
		err  error
		gate bool
	}{
		"a staple of the platform":                {"B18", errors.New("revoked"), true},
		"a platform that could not be asked":      {"unreachable", &tunnel.ReachError{}, true},
		"a platform that was, and then not again": {"unreachable", &tunnel.ReachError{Judged: true}, false},
		"another certificate":                     {"certificate", errors.New("another"), false},
		"a stranger":                              {"network", errors.New("no"), false},
	} {
		a := newAudit(slog.New(slog.DiscardHandler), time.Now)
		a.note(tunnel.Event{Kind: tunnel.RefusedOne, Rule: row.rule, Severity: tunnel.SeverityOf(row.rule), Err: row.err})
		var got status.Tunnel
		if a.report(&got); len(got.Refusals) != 1 || got.Refusals[0].Gate != row.gate {
			t.Errorf("%s: %+v", name, got.Refusals)
		}
	}
}

// lines are those of the log that hold a text.
func (h *hall) lines(text string) (all []string) {
	for line := range strings.Lines(h.log.String()) {
		if strings.Contains(line, text) {
			all = append(all, line)
		}
	}
	return all
}

func TestTheLogHasOneLineForEachDeviceThatWasNotLetInOrWasCut(t *testing.T) {
	h := newHall(t)
	h.open(h.section(""))
	c := h.connect()
	h.send(c, "T1")
	allowed := h.section("")
	h.configure(strings.Replace(allowed, "127.0.0.0/8", "10.0.0.0/8", 1))
	if err := h.daemon.Reload(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the session has no place any more", func() bool { return h.daemon.Report().Tunnel.Ended["drained"] == 1 })
	stranger, err := net.Dial("tcp", h.daemon.Report().Tunnel.Listeners[0].Address)
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close()
	eventually(t, "the refusal", func() bool { return h.daemon.Report().Tunnel.Listeners[0].Refused["network"] == 1 })
	h.raises("tunnel-refused", "icu")
	h.end()
	if got := h.lines("device=" + stranger.LocalAddr().String()); len(got) != 1 || !strings.Contains(got[0], "event=refused tunnel=icu rule=network") {
		t.Errorf("of who was not let in:\n%s", strings.Join(got, ""))
	}
	got := h.lines("rule=shutdown")
	if len(got) != 1 || !strings.Contains(got[0], "event=cut tunnel=icu") || !strings.Contains(got[0], "platform=hospital") {
		t.Fatalf("of who was cut:\n%s", strings.Join(got, ""))
	}
	_, device, _ := strings.Cut(got[0], "device=")
	device, _, _ = strings.Cut(device, " ")
	if got := h.lines("device=" + device); len(got) != 2 { // it was let in before
		t.Errorf("of that session:\n%s", strings.Join(got, ""))
	}
}
