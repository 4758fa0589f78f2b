package observation_test

import (
	"encoding/json"
	"math"
	"strings"
	"testing"

	"github.com/bedside-gateway/gatewayd/observation"
)

func TestDecimalsKeepTheDigitsOfTheDevice(t *testing.T) {
	for _, c := range []struct {
		mantissa int32
		exponent int8
		want     string
	}{
		{97, 0, "97"}, {970, -1, "97.0"}, {9700, -2, "97.00"}, {-5, -1, "-0.5"}, {5, -3, "0.005"}, {-12345, -2, "-123.45"},
		{0, 0, "0"}, {0, -2, "0.00"}, {0, 3, "0"}, {12, 2, "1200"}, {-12, 2, "-1200"}, {1, -1, "0.1"}, {10, -1, "1.0"},
		{math.MaxInt32, 0, "2147483647"}, {math.MinInt32, 0, "-2147483648"}, {math.MinInt32, -10, "-0.2147483648"},
		{math.MinInt32, -9, "-2.147483648"}, {1, 127, "1" + strings.Repeat("0", 127)}, {1, -128, "0." + strings.Repeat("0", 127) + "1"},
	} {
		d := observation.NewDecimal(c.mantissa, c.exponent)
		if got := d.String(); got != c.want || string(d.Append([]byte("x"))) != "x"+c.want {
			t.Errorf("%d × 10^%d is %s, want %s", c.mantissa, c.exponent, got, c.want)
		}
	}
}

func TestNoNumberIsNotZero(t *testing.T) {
	var none observation.Decimal
	if none.Valid() || none.String() != "none" || len(none.Append(nil)) != 0 || !math.IsNaN(none.Float()) || none == observation.NewDecimal(0, 0) {
		t.Errorf("no number is %v", none)
	}
	b, err := json.Marshal([]observation.Decimal{none, observation.NewDecimal(970, -1)})
	if err != nil || string(b) != "[null,97.0]" {
		t.Errorf("as JSON %s, %v", b, err)
	}
}

func TestFloatsAreTheValue(t *testing.T) {
	if f := observation.NewDecimal(-365, -1).Float(); f != -36.5 {
		t.Errorf("-36.5 is %v", f)
	}
	if f := observation.NewDecimal(3, 2).Float(); f != 300 {
		t.Errorf("300 is %v", f)
	}
}

func TestParseDecimalReadsWhatDevicesWrite(t *testing.T) {
	for text, want := range map[string]observation.Decimal{
		"97": observation.NewDecimal(97, 0), "97.0": observation.NewDecimal(970, -1), "-0.5": observation.NewDecimal(-5, -1), "+3": observation.NewDecimal(3, 0),
		".5": observation.NewDecimal(5, -1), "5.": observation.NewDecimal(5, 0), "007": observation.NewDecimal(7, 0), "0.00": observation.NewDecimal(0, -2),
		"-2147483648": observation.NewDecimal(math.MinInt32, 0),
	} {
		if got, err := observation.ParseDecimal(text); err != nil || got != want {
			t.Errorf("%q is %v, %v, want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "-", "+", ".", "-.", "1.2.3", "1e3", " 1", "1 ", "--1", "1-", "NaN", "0x1", "2147483648", "-2147483649", "१", "0." + strings.Repeat("0", 200), "---"} {
		if got, err := observation.ParseDecimal(text); err == nil || got.Valid() {
			t.Errorf("%q is taken for %v", text, got)
		}
	}
}

func TestWritingADecimalAllocatesNothing(t *testing.T) {
	b, d := make([]byte, 0, 64), observation.NewDecimal(-12345, -2)
	if n := testing.AllocsPerRun(100, func() { b = d.Append(b[:0]) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func FuzzDecimal(f *testing.F) {
	for _, s := range []string{"97.0", "-0.5", ".", "-2147483648", "0.000"} {
		f.Add(s, int32(1), int8(-1))
	}
	f.Add("", int32(math.MinInt32), int8(math.MinInt8))
	f.Fuzz(func(t *testing.T, s string, mantissa int32, exponent int8) {
		if d, err := observation.ParseDecimal(s); err == nil {
			again, err := observation.ParseDecimal(d.String())
			if err != nil || again != d {
				t.Fatalf("%q is %v, came back as %v, %v", s, d, again, err)
			}
		}
		d := observation.NewDecimal(mantissa, exponent)
		if exponent > 0 { // written as digits, which may be more than 32 bits
			return
		}
		again, err := observation.ParseDecimal(d.String())
		if err != nil || again != d {
			t.Fatalf("%d × 10^%d is written %s, came back as %v, %v", mantissa, exponent, d, again, err)
		}
	})
}
