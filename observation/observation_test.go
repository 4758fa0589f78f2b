package observation_test

import (
	"testing"

	"github.com/bedside-gateway/gatewayd/observation"
)

func TestStatusSaysWhatAValueMayBeUsedFor(t *testing.T) {
	for _, c := range []struct {
		status            observation.Status
		usable, simulated bool
	}{
		{0, true, false}, {observation.Invalid, false, false}, {observation.NotAvailable, false, false}, {observation.Calibrating, false, false},
		{observation.Questionable | observation.AlarmActive, true, false}, {observation.Demo, true, true}, {observation.Test | observation.Invalid, false, true},
		{observation.Validated | observation.Early | observation.Ongoing | observation.AlarmInhibit, true, false},
	} {
		if c.status.Usable() != c.usable || c.status.Simulated() != c.simulated {
			t.Errorf("status %b: usable %v, simulated %v", c.status, c.status.Usable(), c.status.Simulated())
		}
	}
}

func TestSamplesHaveAPhysicalScaleOnlyWhereBothEndsAreKnown(t *testing.T) {
	s := observation.Samples{
		Values: []uint16{0x8000, 0x8000 | 2048, 4096}, Mask: 0x1FFF, RawLower: 0, RawUpper: 4096,
		Lower: observation.NewDecimal(-40, 0), Upper: observation.NewDecimal(40, 0),
	}
	if !s.Scaled() {
		t.Fatal("a scale with both ends is none")
	}
	for i, want := range []float64{-40, 0, 40} {
		if got := s.Physical(i); got != want {
			t.Errorf("sample %d is %v, want %v", i, got, want)
		}
	}
	for _, broken := range []observation.Samples{
		{Upper: s.Upper, RawUpper: 1}, {Lower: s.Lower, RawUpper: 1}, {Lower: s.Lower, Upper: s.Upper, RawLower: 7, RawUpper: 7},
	} {
		if broken.Scaled() {
			t.Errorf("%+v has a scale", broken)
		}
	}
}
