package replay

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/bedside-gateway/gatewayd/drivers"
	"github.com/bedside-gateway/gatewayd/drivers/intellivue"
	"github.com/bedside-gateway/gatewayd/drivers/port"
	"github.com/bedside-gateway/gatewayd/observation"
)

// beats is a driver whose datagrams are B, the length of what follows, and a
// text: a number, bye, lie (an error) or wait (a tick in a second).
type beats struct{ drivers.Driver }

func (beats) Info() drivers.Info { return drivers.Info{Name: "beats", UDPPort: 9} }

func (beats) Split(p []byte) int {
	if len(p) < 2 || p[0] != 'B' || len(p) < 2+int(p[1]) {
		return 0
	}
	return 2 + int(p[1])
}

func (beats) New(s drivers.Settings, h drivers.Host) (drivers.Machine, error) {
	if s.Options["refuse"] != "" {
		return nil, errors.New("option refuse: no")
	}
	if !s.ListenOnly {
		return nil, errors.New("a recording is only listened to")
	}
	return &beatMachine{host: h, datagrams: s.Datagrams}, nil
}

type beatMachine struct {
	host      drivers.Host
	datagrams bool
	rest      []byte
	wake      time.Time
	clock     time.Time
}

func (m *beatMachine) Start(time.Time) error { return nil }
func (m *beatMachine) Stop(time.Time)        {}
func (m *beatMachine) Wake() time.Time       { return m.wake }

func (m *beatMachine) Tick(now time.Time) error {
	m.wake = time.Time{}
	m.report(now, 0)
	return nil
}

func (m *beatMachine) report(now time.Time, n int32) {
	o := observation.Observation{Code: 147842, Time: now, Value: observation.Value{Kind: observation.KindNumber, Number: observation.NewDecimal(n, 0)}}
	m.host.Report(&observation.Report{Received: now, DeviceClock: m.clock, Observations: []observation.Observation{o}})
}

func (m *beatMachine) Receive(now time.Time, p []byte) error {
	if m.datagrams {
		return m.datagram(now, p)
	}
	m.rest = append(m.rest, p...)
	for len(m.rest) > 0 {
		n := beats{}.Split(m.rest)
		if n == 0 {
			if m.rest[0] == 'B' {
				return nil
			}
			m.host.Count(drivers.FrameNoise)
			n = 1
		} else if err := m.datagram(now, m.rest[:n]); err != nil {
			return err
		}
		m.rest = m.rest[n:]
	}
	return nil
}

func (m *beatMachine) datagram(now time.Time, p []byte) error {
	text := string(p[2:])
	var n int32
	switch {
	case text == "bye":
		return drivers.ErrDeviceClosed
	case text == "lie":
		return errors.New("the device lies")
	case text == "wait":
		m.wake = now.Add(time.Second)
		return nil
	}
	if _, err := fmt.Sscan(text, &n); err != nil {
		m.host.Count(drivers.FrameMalformed)
		return nil
	}
	m.host.Count(drivers.FrameGood)
	m.clock = time.Date(2020, 1, 1, 0, 0, int(n), 0, time.UTC)
	m.report(now, n)
	return nil
}

func beat(texts ...string) (b []byte) {
	for _, s := range texts {
		b = append(append(b, 'B', byte(len(s))), s...)
	}
	return b
}

var begin = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// run replays and gives "seconds since begin:value" of each report.
func run(t *testing.T, b []byte, o Options) (Result, string) {
	t.Helper()
	o.Driver, o.Begin = beats{}, begin
	var got []string
	r, err := Run(bytes.NewReader(b), o, func(r *observation.Report) error {
		got = append(got, fmt.Sprintf("%v:%v", r.Received.Sub(begin).Seconds(), r.Observations[0].Value.Number))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return r, strings.Join(got, " ")
}

func TestDatagramsStoredOneBehindTheOtherAreFoundAndTimedByTheDevice(t *testing.T) {
	r, got := run(t, beat("1", "3", "4", "4"), Options{Format: port.FormatRaw})
	if got != "0:1 0:3 2:4 3:4" || r.Damaged() || r.Sessions != 1 || r.Observations != 4 {
		t.Errorf("%s, %v", got, r)
	}
}

func TestStrayBytesBetweenDatagramsAreCountedAndPassedOver(t *testing.T) {
	b := append(append(beat("1"), "xyz"...), beat("2")...)
	b = append(b, 'B', 9, '1') // cut off
	r, got := run(t, b, Options{Format: port.FormatRaw})
	if got != "0:1 0:2" || r.Stray != 6 || !r.Damaged() {
		t.Errorf("%s, %d stray", got, r.Stray)
	}
}

func TestAStreamIsFedAsItComes(t *testing.T) {
	r, got := run(t, append([]byte("#"), beat("1", "x", "2")...), Options{Format: port.FormatRaw})
	if got != "0:1 0:2" || r.Frames[drivers.FrameNoise] != 1 || r.Frames[drivers.FrameMalformed] != 1 || !r.Damaged() {
		t.Errorf("%s, %v", got, &r)
	}
	if want := "10 bytes, 2 reports, 2 observations, 2 frames good, 1 frames malformed, 1 frames noise"; r.String() != want {
		t.Errorf("%s", &r)
	}
}

func TestTheFramingCanBeForced(t *testing.T) {
	if r, got := run(t, beat("1", "2"), Options{Format: port.FormatRaw, Framing: FramingStream}); got != "0:1 0:2" || r.Stray != 0 {
		t.Errorf("as a stream: %s", got)
	}
	if r, _ := run(t, append([]byte("#"), beat("1")...), Options{Format: port.FormatRaw, Framing: FramingDatagrams}); r.Stray != 1 {
		t.Errorf("as datagrams: %d stray", r.Stray)
	}
}

func TestAFaultOrAGoodbyeBeginsANewSession(t *testing.T) {
	r, got := run(t, beat("1", "bye", "2", "lie", "3"), Options{Format: port.FormatRaw})
	if got != "0:1 0:2 1:3" || r.Sessions != 3 || r.Fault == nil || r.Fault.Error() != "the device lies" {
		t.Errorf("%s, %d sessions, fault %v", got, r.Sessions, r.Fault)
	}
}

func TestARecordingWithTimesIsPlayedAtThem(t *testing.T) {
	text := fmt.Sprintf("# recorded\n%s < 6 %x\n%s > 1 00\n%s < 3 %x\n", "2026-01-02T03:04:05Z", beat("wait"), "2026-01-02T03:04:07Z", "2026-01-02T03:04:09Z", beat("7"))
	r, got := run(t, []byte(text), Options{Format: port.FormatHex, Framing: FramingDatagrams})
	if got != "1:0 4:7" || r.Bytes != 9 {
		t.Errorf("%s, %d bytes", got, r.Bytes)
	}
}

func TestErrorsOfTheOptionsAndTheSinkEndTheRun(t *testing.T) {
	_, err := Run(bytes.NewReader(beat("1")), Options{Driver: beats{}, Format: port.FormatRaw, Options: map[string]string{"refuse": "1"}}, nil)
	if err == nil || err.Error() != "option refuse: no" {
		t.Errorf("%v", err)
	}
	full := errors.New("no room")
	_, err = Run(bytes.NewReader(beat("1", "2")), Options{Driver: beats{}, Format: port.FormatRaw}, func(*observation.Report) error { return full })
	if !errors.Is(err, full) {
		t.Errorf("%v", err)
	}
}

func TestLinesNameNoPatientUnlessAsked(t *testing.T) {
	report := &observation.Report{
		Device:  &observation.Device{ID: 1, BedLabel: "MARK"},
		Patient: &observation.Patient{ID: observation.NewPHI("MARK"), Family: observation.NewPHI("MARK"), Born: observation.NewPHI("MARK")},
		Observations: []observation.Observation{
			{Code: 150456, Unit: 262688, Status: observation.Questionable | observation.Demo, Value: observation.Value{Kind: observation.KindNumber, Number: observation.NewDecimal(970, -1)}},
			{Private: observation.Private{Vendor: "ACME", Code: 7}, Value: observation.Value{Kind: observation.KindText, Text: "MARK"}},
			{Code: 131328, Value: observation.Value{Kind: observation.KindSamples, Samples: &observation.Samples{Period: 4 * time.Millisecond, Values: []uint16{0, 0x8001, 4095}, Mask: 4095,
				Lower: observation.NewDecimal(-1, 0), Upper: observation.NewDecimal(1, 0), RawUpper: 4095}}},
		},
		Alerts: []observation.Alert{{Code: 196616, Text: "** HR high", Priority: observation.PriorityMedium}},
	}
	var hidden, shown bytes.Buffer
	for _, l := range []*Lines{NewLines(&hidden, false), NewLines(&shown, true)} {
		for range 2 { // the patient is told once
			if err := l.Report(report); err != nil {
				t.Fatal(err)
			}
		}
	}
	if strings.Contains(hidden.String(), "MARK") {
		t.Errorf("a patient is named:\n%s", &hidden)
	}
	if n := strings.Count(shown.String(), "MARK"); n != 5 {
		t.Errorf("%d marks are shown, want 5", n)
	}
	lines := strings.Split(strings.TrimSpace(hidden.String()), "\n")
	if len(lines) != 9 {
		t.Fatalf("%d lines", len(lines))
	}
	for i, want := range []string{
		`{"kind":"patient","patient":{"id":"REDACTED","family":"REDACTED","born":"REDACTED"}}`,
		`"name":"MDC_PULS_OXIM_SAT_O2","value":97.0,"unit":"%","status":["questionable","demo"]}`,
		`"private":"ACME:7","text":"REDACTED"}`,
		`"wave":{"period_ms":4,"samples":[-1,-0.9995`,
		`"text":"** HR high","priority":"medium"}`,
	} {
		if !json.Valid([]byte(lines[i])) || !strings.Contains(lines[i], want) {
			t.Errorf("line %d is %s\nwant %s", i, lines[i], want)
		}
	}
}

func TestARecordedSessionGivesTheSameAsACaptureAsTextAndAsRawDatagrams(t *testing.T) {
	shared := os.Getenv("GATEWAY_SHARED")
	if shared == "" {
		t.Skip("GATEWAY_SHARED names no recordings")
	}
	dir := filepath.Join(shared, "reference/protocols/captures/philips/m8000-or-session")
	capture, err := os.ReadFile(filepath.Join(dir, "intellivue_enumeration.pcapng"))
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(dir, "session.txt"))
	if err != nil {
		t.Fatal(err)
	}
	var raw []byte
	for r, err := range port.ReadRecording(bytes.NewReader(capture), port.ReadOptions{Format: port.FormatPcap, UDPPort: 24105}) {
		if err != nil {
			t.Fatal(err)
		}
		if r.Direction != port.ToDevice {
			raw = append(raw, r.Data...)
		}
	}
	values := func(b []byte, f port.Format) (out []string) {
		r, err := Run(bytes.NewReader(b), Options{Driver: intellivue.New(), Format: f, Begin: begin}, func(r *observation.Report) error {
			for _, o := range r.Observations {
				if o.Value.Kind == observation.KindNumber { // how waves are cut depends on the times, which raw bytes have not
					out = append(out, fmt.Sprint(o.Code, o.Value.Number, o.Status, o.DeviceTime))
				}
			}
			return nil
		})
		if err != nil || r.Damaged() || r.Sessions != 1 {
			t.Errorf("%v: %v, %v", f, err, &r)
		}
		return out
	}
	want := values(capture, port.FormatPcap)
	if len(want) < 200 {
		t.Fatalf("only %d values", len(want))
	}
	for name, got := range map[string][]string{"text": values(text, port.FormatHex), "raw": values(raw, port.FormatRaw)} {
		if strings.Join(got, "\n") != strings.Join(want, "\n") {
			t.Errorf("%s: %d values differ from the %d of the capture", name, len(got), len(want))
		}
	}
}
