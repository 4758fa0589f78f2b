package observation_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"unsafe"

	"github.com/bedside-gateway/gatewayd/observation"
)

func TestEUI64sAreReadAndWrittenInSixteenDigits(t *testing.T) {
	const want observation.EUI64 = 0x00095CFFFE741952
	for _, text := range []string{"00095CFFFE741952", "00095cfffe741952", "00-09-5C-FF-FE-74-19-52", "00:09:5c:ff:fe:74:19:52"} {
		got, err := observation.ParseEUI64(text)
		if err != nil || got != want || got.String() != "00095CFFFE741952" {
			t.Errorf("%q is %v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "0", "00095CFFFE74195", "00095CFFFE7419520", "00095CFFFE74195G", "0000000000000000", "00 09 5C FF FE 74 19 52"} {
		if got, err := observation.ParseEUI64(text); err == nil {
			t.Errorf("%q is taken for %v", text, got)
		}
	}
	var e struct{ ID observation.EUI64 }
	if err := json.Unmarshal([]byte(`{"ID":"00095CFFFE741952"}`), &e); err != nil || e.ID != want {
		t.Errorf("from JSON %v, %v", e.ID, err)
	}
	if b, err := json.Marshal(e); err != nil || string(b) != `{"ID":"00095CFFFE741952"}` {
		t.Errorf("as JSON %s, %v", b, err)
	}
	if err := json.Unmarshal([]byte(`{"ID":"x"}`), &e); err == nil {
		t.Error("x is an EUI-64")
	}
}

func TestAMACAddressBecomesAnEUI64WithFFFEInTheMiddle(t *testing.T) {
	if got := observation.MAC48([6]byte{0x00, 0x09, 0x5C, 0x74, 0x19, 0x52}); got.String() != "00095CFFFE741952" {
		t.Errorf("it is %v", got)
	}
}

// secret is what must not be seen.
const secret = "CANARY-4711"

type hidden struct {
	Shown  observation.PHI
	inner  observation.PHI
	nested observation.Patient
	list   []observation.PHI
	byName map[string]observation.Patient
}

func TestNothingPrintsAPatientIdentifier(t *testing.T) {
	p := observation.NewPHI(secret)
	patient := observation.Patient{ID: p, Given: p, Family: p, Middle: p, Born: p}
	report := observation.Report{Patient: &patient}
	values := map[string]any{
		"the text": p, "a pointer to it": &p, "a patient": patient, "a pointer to a patient": &patient, "a report": report,
		"a list": []observation.PHI{p}, "a map": map[string]observation.PHI{"x": p}, "a map of keys": map[observation.PHI]int{p: 1},
		"unexported fields": hidden{p, p, patient, []observation.PHI{p}, map[string]observation.Patient{"x": patient}},
		"an interface":      any(p), "an error": fmt.Errorf("patient %v: %w", p, fmt.Errorf("%s", p)),
	}
	for name, v := range values {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "% x", "%#x", "%T", "%p", "%t", "%c", "%U", "%e", "%20s", "%-5v", "%!"} {
			text := fmt.Sprintf(verb, v)
			if strings.Contains(text, secret) || strings.Contains(strings.ToLower(text), fmt.Sprintf("%x", secret)) {
				t.Errorf("%s with %s prints %s", name, verb, text)
			}
		}
		if b, err := json.Marshal(v); err == nil && bytes.Contains(b, []byte(secret)) {
			t.Errorf("%s as JSON is %s", name, b)
		}
		var log bytes.Buffer
		for _, h := range []slog.Handler{slog.NewTextHandler(&log, nil), slog.NewJSONHandler(&log, nil)} {
			slog.New(h).Info("a line", "value", v, slog.Any("again", v), slog.Group("group", "value", v))
		}
		if strings.Contains(log.String(), secret) || log.Len() == 0 {
			t.Errorf("%s is logged as %s", name, log.String())
		}
	}
	if text := fmt.Sprint(p, &p); text != "REDACTED REDACTED" {
		t.Errorf("printed %q", text)
	}
}

func TestRevealGivesTheTextAndAnEmptyOneIsEmpty(t *testing.T) {
	p, none := observation.NewPHI(secret), observation.NewPHI("")
	if p.Reveal() != secret || p.Empty() || none.Reveal() != "" || !none.Empty() || none != (observation.PHI{}) || none.String() != "" {
		t.Errorf("%q, %q", p.Reveal(), none.Reveal())
	}
	if p != observation.NewPHI(strings.Clone(secret)) || p == observation.NewPHI("other") {
		t.Error("equal texts are not equal")
	}
}

func TestPHIKeepsACopy(t *testing.T) {
	b := []byte(secret)
	p := observation.NewPHI(unsafe.String(&b[0], len(b)))
	copy(b, "overwritten")
	if p.Reveal() != secret {
		t.Errorf("the text changed to %q with the memory that it was made of", p.Reveal())
	}
}

func FuzzEUI64(f *testing.F) {
	f.Add("00-09-5C-FF-FE-74-19-52")
	f.Add("0")
	f.Fuzz(func(t *testing.T, s string) {
		e, err := observation.ParseEUI64(s)
		if err != nil {
			return
		}
		if again, err := observation.ParseEUI64(e.String()); err != nil || again != e || e == 0 {
			t.Fatalf("%q is %v, came back as %v, %v", s, e, again, err)
		}
	})
}
