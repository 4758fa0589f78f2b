package pcd_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/bedside-gateway/gatewayd/hl7"
	"github.com/bedside-gateway/gatewayd/mdc"
	"github.com/bedside-gateway/gatewayd/observation"
	"github.com/bedside-gateway/gatewayd/pcd"
)

// start is when the tests happen.
var start = time.Date(2026, 1, 2, 3, 4, 0, 0, time.UTC)

func after(d time.Duration) time.Time { return start.Add(d) }

const (
	gateway observation.EUI64 = 0x0123456789ABCDEF
	monitor observation.EUI64 = 0xFEDCBA9876543210
)

// Terms that the tests use.
const (
	heartRate  mdc.Code = 147842
	spo2       mdc.Code = 150456
	pulseRate  mdc.Code = 149530
	systolic   mdc.Code = 150021
	diastolic  mdc.Code = 150022
	artMean    mdc.Code = 150035
	pleth      mdc.Code = 150452
	ecgII      mdc.Code = 131330
	ventMode   mdc.Code = 184352
	etCO2Old   mdc.Code = 151728
	etCO2      mdc.Code = 151708
	perMinute  mdc.Code = 264864
	percent    mdc.Code = 262688
	mmHg       mdc.Code = 266016
	millivolt  mdc.Code = 266418
	celsius    mdc.Code = 268192
	kilogram   mdc.Code = 263875
	centimetre mdc.Code = 263441
)

func ids(t testing.TB) *pcd.ControlIDs {
	t.Helper()
	c, err := pcd.NewControlIDs(strings.NewReader("12345678"))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// options are those of a well-configured port.
func options(t testing.TB) pcd.Options {
	return pcd.Options{
		Sender:   pcd.Sender{Application: "GW_TEST", EUI64: gateway, Facility: "HOSPITAL_A"},
		Location: pcd.Location{PointOfCare: "ICU", Room: "Room 1", Bed: "Bed 2", Facility: "HOSPITAL_A"},
		Interval: 30 * time.Second, IDs: ids(t), AssigningAuthority: "HOSPITAL_A",
	}
}

func snapshot(t testing.TB, o pcd.Options) *pcd.Snapshot {
	t.Helper()
	s, err := pcd.NewSnapshot(o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func device() *observation.Device {
	return &observation.Device{Type: 69965, ID: monitor, Manufacturer: "ACME", Model: "M1", Serial: "S/N 7", Software: "A.01.02"}
}

func admitted(id, family string) *observation.Patient {
	return &observation.Patient{
		ID: observation.NewPHI(id), Family: observation.NewPHI(family), Given: observation.NewPHI("Ann"),
		Born: observation.NewPHI("19700101"), Sex: observation.SexFemale, Admission: observation.Admitted,
	}
}

func report(at time.Time, p *observation.Patient, list ...observation.Observation) *observation.Report {
	return &observation.Report{Device: device(), Patient: p, Received: at, Observations: list}
}

func number(code mdc.Code, mantissa int32, exponent int8, unit mdc.Code) observation.Observation {
	return observation.Observation{Code: code, Unit: unit, Value: observation.Value{
		Kind: observation.KindNumber, Number: observation.NewDecimal(mantissa, exponent),
	}}
}

func episodic(o observation.Observation, at time.Time) observation.Observation {
	o.Episodic, o.Time = true, at
	return o
}

func samples(code, unit mdc.Code, at time.Time, values ...uint16) observation.Observation {
	return observation.Observation{Code: code, Unit: unit, Time: at, Value: observation.Value{
		Kind: observation.KindSamples, Samples: &observation.Samples{Period: 4 * time.Millisecond, Values: values, Mask: 0x3FFF},
	}}
}

// A sent is a copy of a message.
type sent struct {
	class pcd.Class
	id    string
	made  time.Time
	text  string
	m     *hl7.Message
}

// flush collects what is emitted.
func flush(t testing.TB, s *pcd.Snapshot, now time.Time) []sent {
	t.Helper()
	var list []sent
	err := s.Flush(now, func(m pcd.Message) error {
		parsed, err := hl7.Parse(bytes.Clone(m.Bytes))
		if err != nil {
			t.Fatalf("an emitted message cannot be read: %v", err)
		}
		list = append(list, sent{m.Class, string(m.ControlID), m.Made, string(m.Bytes), parsed})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// one is flush where exactly one message is expected.
func one(t testing.TB, s *pcd.Snapshot, now time.Time) sent {
	t.Helper()
	list := flush(t, s, now)
	if len(list) != 1 {
		t.Fatalf("%d messages, want 1:\n%v", len(list), readable(list))
	}
	return list[0]
}

func readable(list []sent) string {
	var b strings.Builder
	for _, m := range list {
		b.WriteString(m.class.String() + "\n" + strings.ReplaceAll(m.text, "\r", "\n"))
	}
	return b.String()
}

// row finds the OBX with a term's name, or a place, in OBX-3.2 or OBX-4.
func (m sent) row(what string) hl7.Segment {
	for s := range m.m.Segments() {
		if s.Is("OBX") && (s.Field(3).Component(2).Is(what) || s.Field(4).Is(what)) {
			return s
		}
	}
	return hl7.Segment{}
}

// clean fails where Validate finds anything.
func clean(t testing.TB, list ...sent) {
	t.Helper()
	for _, m := range list {
		for _, f := range pcd.Validate([]byte(m.text)) {
			t.Errorf("%v in\n%s", f, strings.ReplaceAll(m.text, "\r", "\n"))
		}
	}
}

func published(t testing.TB, name string) []byte {
	t.Helper()
	shared := os.Getenv("GATEWAY_SHARED")
	if shared == "" {
		t.Skip("GATEWAY_SHARED is not set: the published samples are not part of the project")
	}
	b, err := os.ReadFile(filepath.Join(shared, "reference/ihe-pcd/samples", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}
