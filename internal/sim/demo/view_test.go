package demo

import (
	"bytes"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/bedside-gateway/gatewayd/internal/sim/platform"
	"github.com/bedside-gateway/gatewayd/internal/status"
)

func TestAFrameIsOneWriteThatFitsTheScreen(t *testing.T) {
	var writes [][]byte
	s := screen{writer(func(p []byte) (int, error) {
		writes = append(writes, bytes.Clone(p))
		return len(p), nil
	})}
	long := strings.Repeat("wide ", 40)
	lines := make([]string, 40)
	for i := range lines {
		lines[i] = long
	}
	s.draw(lines)
	if len(writes) != 1 {
		t.Fatalf("%d writes", len(writes))
	}
	frame := string(writes[0])
	if !strings.HasPrefix(frame, "\x1b[H") || strings.Contains(frame, "\x1b[2J") {
		t.Error("it does not overwrite in place")
	}
	rows := strings.Split(strings.TrimPrefix(frame, "\x1b[H"), "\x1b[K\r\n")
	if len(rows) != screenHeight {
		t.Errorf("%d rows", len(rows))
	}
	for _, r := range rows[:screenHeight-1] {
		if utf8.RuneCountInString(r) > screenWidth {
			t.Errorf("row of %d characters", utf8.RuneCountInString(r))
		}
	}
}

type writer func([]byte) (int, error)

func (w writer) Write(p []byte) (int, error) { return w(p) }

func TestThePageShowsBothBedsTheGatewayAndThePlatform(t *testing.T) {
	now := time.Now()
	row := func(code, value, ucum string) platform.Row {
		return platform.Row{Code: code, Type: "NM", Value: value, UCUM: ucum, Time: "20260102030405+0000"}
	}
	first := &vitals{}
	fresh := first.take(&platform.Document{Rows: []platform.Row{
		row("147842", "72", "{beat}/min"), row("150037", "120", "mm[Hg]"), row("150038", "74", "mm[Hg]"), row("150039", "89", "mm[Hg]"),
		{Code: "69965", Type: ""}, {Code: "68220", Type: "CWE", Value: "x"},
	}}, now.Add(-time.Second))
	if len(fresh) != 4 {
		t.Errorf("new rows: %v", fresh)
	}
	d := &demo{o: Options{Duration: 30 * time.Second}, began: now.Add(-12 * time.Second), platform: &platform.Platform{},
		beds:   []*bed{{name: "bed-1", label: "Bed 1", line: "RS-232"}, {name: "bed-2", label: "Bed 2", line: "LAN", dead: true}},
		vitals: map[string]*vitals{"Bed 1": first, "Bed 2": {}}, events: []string{"an event"},
		report: &status.Report{Verdict: status.Degraded, Spool: status.Spool{Messages: 7},
			Ports:        []status.Port{{Name: "bed-1", State: "live"}, {Name: "bed-2", State: "live", Simulated: 31}},
			Destinations: []status.Destination{{State: "unreachable", Delivered: 40, Attempts: 2}}}}
	page := strings.Join(d.page(now), "\n")
	for _, want := range []string{"12 s of 30 s", "Bed 1  RS-232", "HR     72 /min", "ABP    120/74 (89) mmHg", "received 1.0 s ago",
		"port live, 31 values refused", "degraded, spool 7, unreachable, delivered 40, attempts 2", "DEAD, stored 0", "an event"} {
		if !strings.Contains(page, want) {
			t.Errorf("%q is not on the page:\n%s", want, page)
		}
	}
	if n := strings.Count(page, "\n") + 1; n >= screenHeight {
		t.Errorf("the page has %d lines", n)
	}
	if got := first.short(); got != "HR 72 /min, ABP 120/74 (89) mmHg" {
		t.Errorf("short: %q", got)
	}
}
