package hl7_test

import (
	"strings"
	"testing"
	"time"

	"github.com/bedside-gateway/gatewayd/hl7"
)

func TestTimesAreWrittenWithSecondsAndOffset(t *testing.T) {
	berlin := time.FixedZone("", 3600)
	for _, c := range []struct {
		t    time.Time
		want string
	}{
		{time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), "20260102030405+0000"},
		{time.Date(2026, 1, 2, 3, 4, 5, 678e6, time.UTC), "20260102030405.678+0000"},
		{time.Date(2026, 1, 2, 3, 4, 5, 999, time.UTC), "20260102030405+0000"},
		{time.Date(2026, 1, 2, 3, 4, 5, 1e6, berlin), "20260102030405.001+0100"},
		{time.Date(2026, 1, 2, 3, 4, 5, 0, time.FixedZone("", -(3*3600+1800))), "20260102030405-0330"},
		{time.Date(2026, 1, 2, 3, 4, 5, 0, time.FixedZone("", 53*60+28)), "20260102021037+0000"}, // an offset with seconds
		{time.Date(2026, 1, 2, 3, 4, 5, 0, time.FixedZone("", 15*3600)), "20260101120405+0000"},
		{time.Date(12026, 1, 2, 3, 4, 5, 0, time.UTC), "99990102030405+0000"},
		{time.Time{}, "00010101000000+0000"},
	} {
		if got := string(hl7.AppendTime([]byte("x"), c.t)); got != "x"+c.want {
			t.Errorf("%v is written %s, want %s", c.t, got[1:], c.want)
		}
	}
}

func TestTimesAreReadAsFarAsTheyAreGiven(t *testing.T) {
	for _, c := range []struct {
		text      string
		want      string
		precision hl7.Precision
		offset    bool
		unknown   bool
	}{
		{"2026", "2026-01-01T00:00:00Z", hl7.Year, false, false},
		{"202603", "2026-03-01T00:00:00Z", hl7.Month, false, false},
		{"19610101", "1961-01-01T00:00:00Z", hl7.Day, false, false},
		{"2026010203", "2026-01-02T03:00:00Z", hl7.Hour, false, false},
		{"202601020304", "2026-01-02T03:04:00Z", hl7.Minute, false, false},
		{"20260102030405", "2026-01-02T03:04:05Z", hl7.Second, false, false},
		{"20260102030405+0100", "2026-01-02T03:04:05+01:00", hl7.Second, true, false},
		{"20260102030405.6-0330", "2026-01-02T03:04:05.6-03:30", hl7.Fraction, true, false},
		{"20260102030405.6789+0000", "2026-01-02T03:04:05.6789Z", hl7.Fraction, true, false},
		{"20260102030405-0000", "2026-01-02T03:04:05Z", hl7.Second, true, true},
		{"20240229", "2024-02-29T00:00:00Z", hl7.Day, false, false},
		{"2026+0100", "2026-01-01T00:00:00+01:00", hl7.Year, true, false},
	} {
		d, err := hl7.ParseDTM(c.text)
		if err != nil {
			t.Errorf("%s: %v", c.text, err)
			continue
		}
		if got := d.Time.Format(time.RFC3339Nano); got != c.want || d.Precision != c.precision || d.Offset != c.offset || d.LocalUnknown != c.unknown {
			t.Errorf("%s is %s %+v", c.text, got, d)
		}
		if one, err := hl7.ParseTime(c.text); err != nil || !one.Equal(d.Time) {
			t.Errorf("%s: ParseTime says %v, %v", c.text, one, err)
		}
	}
}

func TestWhatIsNoTimeIsRefusedWithoutQuotingIt(t *testing.T) {
	for _, s := range []string{
		"", "202", "20261", "20261301", "20260230", "20260102250000", "20260102036000", "20260102030460", "202601020304051", "2026-01-02",
		"20260102030405.", "20260102030405.1234567890", "2026.5", "20260102030405+01", "20260102030405+1500", "20260102030405+0160",
		"20260102030405Z", "20260102030405+01000", "x20260102", "20260102030405+0100 ", "20250229", "00000000",
	} {
		_, err := hl7.ParseTime(s)
		if err == nil {
			t.Errorf("%q is taken for a time", s)
		} else if len(s) > 4 && strings.Contains(err.Error(), s) {
			t.Errorf("the error quotes %q: %v", s, err)
		}
	}
}

func TestWritingATimeAllocatesNothing(t *testing.T) {
	dst, at := make([]byte, 0, 64), time.Date(2026, 1, 2, 3, 4, 5, 678e6, time.FixedZone("", 3600))
	if n := testing.AllocsPerRun(100, func() { dst = hl7.AppendTime(dst[:0], at) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func FuzzTime(f *testing.F) {
	for _, s := range []string{"20260102030405.678+0100", "2026", "20260102030405-0000", "19610101000000-0600", "x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		at, err := hl7.ParseTime(s)
		if err != nil {
			return
		}
		again, err := hl7.ParseTime(string(hl7.AppendTime(nil, at)))
		if err != nil || !again.Equal(at.Truncate(time.Millisecond)) && at.Year() >= 0 && at.UTC().Year() <= 9999 && at.UTC().Year() >= 0 {
			t.Fatalf("%q is %v, came back as %v, %v", s, at, again, err)
		}
	})
}
