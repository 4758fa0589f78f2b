package hl7_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/bedside-gateway/gatewayd/hl7"
)

const header = `MSH|^~\&|GW^0123456789ABCDEF^EUI-64|H|||20260102030405+0000||ORU^R01^ORU_R01|42|P|2.6`

func parse(t *testing.T, text string) *hl7.Message {
	t.Helper()
	m, err := hl7.Parse([]byte(text))
	if err != nil {
		t.Fatalf("Parse: %v", err)
	}
	return m
}

func TestFieldsAreNumberedAsHL7DoesWithMSHOneBeingTheSeparator(t *testing.T) {
	m := parse(t, header+"\rPID|||a^b&c^d~e^f||\r")
	msh, pid := m.At(1), m.At(2)
	for _, c := range []struct {
		name string
		got  hl7.Field
		want string
	}{
		{"MSH-1", msh.Field(1), "|"},
		{"MSH-2", msh.Field(2), `^~\&`},
		{"MSH-3", msh.Field(3), "GW^0123456789ABCDEF^EUI-64"},
		{"MSH-3.2", msh.Field(3).Component(2), "0123456789ABCDEF"},
		{"MSH-12", msh.Field(12), "2.6"},
		{"MSH-13, beyond the end", msh.Field(13), ""},
		{"PID-3 whole", pid.Field(3), "a^b&c^d~e^f"},
		{"PID-3 repetition 2", pid.Field(3).Repetition(2), "e^f"},
		{"PID-3 component 1", pid.Field(3).Component(1), "a"},
		{"PID-3 component 2", pid.Field(3).Component(2), "b&c"},
		{"PID-3 component 2 subcomponent 2", pid.Field(3).Component(2).Subcomponent(2), "c"},
		{"PID-3 repetition 2 component 2", pid.Field(3).Repetition(2).Component(2), "f"},
		{"a component that is not there", pid.Field(3).Component(9), ""},
		{"a repetition that is not there", pid.Field(3).Repetition(3), ""},
		{"number 0", pid.Field(0), ""},
		{"component 0", pid.Field(3).Component(0), ""},
		{"by name", m.Field("PID", 3).Component(1), "a"},
		{"a segment that is not there", m.Field("PV1", 3), ""},
	} {
		if got := c.got.String(); got != c.want {
			t.Errorf("%s is %q, want %q", c.name, got, c.want)
		}
		if c.got.Empty() != (c.want == "") {
			t.Errorf("%s: Empty is %v", c.name, c.got.Empty())
		}
	}
	if n := pid.Field(3).Repetitions(); n != 2 {
		t.Errorf("PID-3 has %d repetitions, want 2", n)
	}
	if n := pid.Field(3).Components(); n != 3 {
		t.Errorf("PID-3 has %d components, want 3", n)
	}
	if n := pid.Field(3).Component(2).Subcomponents(); n != 2 {
		t.Errorf("PID-3.2 has %d subcomponents, want 2", n)
	}
	if n := pid.Field(4).Repetitions() + pid.Field(4).Components() + pid.Field(4).Subcomponents(); n != 0 {
		t.Errorf("an empty field has %d parts", n)
	}
	if msh.Fields() != 12 || pid.Fields() != 5 {
		t.Errorf("MSH has %d fields and PID %d, want 12 and 5", msh.Fields(), pid.Fields())
	}
	if msh.Name() != "MSH" || !pid.Is("PID") || pid.Number() != 2 {
		t.Error("the segments do not know who they are")
	}
}

func TestSegmentsEndWithCROrLFOrBothAndEmptyLinesArePassedOver(t *testing.T) {
	for name, end := range map[string]string{"CR": "\r", "LF": "\n", "CRLF": "\r\n", "CR CR": "\r\r", "LF CR": "\n\r"} {
		for _, last := range []string{end, ""} {
			m := parse(t, end+header+end+"PID|1"+end+"OBX|2"+last)
			if m.Len() != 3 || m.At(3).Field(1).String() != "2" || string(m.At(2).Raw()) != "PID|1" {
				t.Errorf("%s, last %q: %d segments", name, last, m.Len())
			}
		}
	}
}

func TestManyLineEndsOfAnyMixtureAreReadInLinearTime(t *testing.T) {
	text := []byte(header + "\n" + strings.Repeat("OBX|1\n", 600_000) + "NTE|1\r")
	var m hl7.Message
	if err := m.Parse(text, hl7.Limits{Segments: 1 << 20}); err != nil || m.Len() != 600_002 {
		t.Fatalf("%d segments, error %v", m.Len(), err)
	}
}

func TestSeparatorsAreThoseOfTheMessage(t *testing.T) {
	m := parse(t, "MSH*:+!%*app:id\rPID*a+b:c%d!S!e\r")
	if d := m.Delimiters(); d != (hl7.Delimiters{'*', ':', '+', '!', '%'}) {
		t.Fatalf("separators %q", d)
	}
	f := m.Field("PID", 1)
	if got := f.Repetition(2).Component(2).Subcomponent(2).String(); got != "d:e" {
		t.Errorf("the subcomponent is %q, want %q", got, "d:e")
	}
	if got := f.Repetition(2).Component(2).Subcomponent(1).String(); got != "c" {
		t.Errorf("the subcomponent is %q", got)
	}
}

func TestSeparatorsThatAreNotDeclaredSeparateNothing(t *testing.T) {
	m := parse(t, "MSH|^|x\rPID|a~b\\F\\c&d^e\r")
	if got := m.Field("PID", 1).Component(1).String(); got != "a~b\\F\\c&d" {
		t.Errorf("PID-1.1 is %q", got)
	}
	m = parse(t, "MSH|^~\\&#|x\r") // HL7 2.7 declares a truncation mark
	if got := string(m.Append(nil, m.Delimiters())); got != "MSH|^~\\&#|x\r" {
		t.Errorf("printed %q", got)
	}
}

func TestErrorsNameSegmentAndFieldAndQuoteNothing(t *testing.T) {
	long := strings.Repeat("|x", hl7.MaxFields+1)
	for _, c := range []struct {
		name, text string
		segment    string
		number     int
		field      int
		says       string
	}{
		{"nothing", "", "", 0, 0, "empty"},
		{"only line ends", "\r\n\r", "", 0, 0, "empty"},
		{"no MSH", "PID|SECRET\r", "PID", 1, 0, "not MSH"},
		{"binary", "\x00\x01\xff\xfeSECRET\r", "", 1, 0, "not MSH"},
		{"a byte order mark", "\ufeff" + header, "", 1, 0, "not MSH"},
		{"a name alone", "MSH", "MSH", 1, 1, "before its separators"},
		{"a name and a separator", "MSH|\r", "MSH", 1, 1, "before its separators"},
		{"no encoding characters", "MSH||SECRET\r", "MSH", 1, 2, "0 encoding characters"},
		{"too many encoding characters", "MSH|^~\\&#$|SECRET\r", "MSH", 1, 2, "6 encoding characters"},
		{"one separator twice", "MSH|^~^&|SECRET\r", "MSH", 1, 2, "character 3 is declared twice"},
		{"the escape character twice", `MSH|^~\\|SECRET` + "\r", "MSH", 1, 2, "character 4 is declared twice"},
		{"a letter as field separator", "MSHA^~\\&ASECRET\r", "MSH", 1, 1, "no punctuation"},
		{"a blank as separator", "MSH|^~\\ |SECRET\r", "MSH", 1, 2, "character 4 is no punctuation"},
		{"a control character as separator", "MSH\x0b^~\\&\x0bSECRET\r", "MSH", 1, 1, "no punctuation"},
		{"a line end in a field", header + "\rPID|SEC\nret SECRET\r", "", 3, 0, "no segment name"},
		{"a line end in a field of capitals", header + "\rPID|SEC\nRET SECRET\r", "", 3, 0, "not followed"},
		{"a small name", header + "\rpid|SECRET\r", "", 2, 0, "no segment name"},
		{"a short name", header + "\rPI\r", "", 2, 0, "no segment name"},
		{"no separator behind a name", header + "\rPIDX|SECRET\r", "", 2, 0, "not followed"},
		{"two messages in one", header + "\r" + header + "\r", "MSH", 2, 0, "second MSH"},
		{"too many fields", header + "\rPID" + long + "\r", "PID", 2, hl7.MaxFields + 1, "limit is 1000 fields"},
		{"too many segments", header + strings.Repeat("\rOBX", hl7.MaxSegments), "", hl7.MaxSegments + 1, 0, "limit is 20000 segments"},
		{"too many bytes", header + strings.Repeat("|", hl7.MaxBytes), "", 0, 0, "the limit is 4194304"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m, err := hl7.Parse([]byte(c.text))
			var e *hl7.SyntaxError
			if m != nil || !errors.As(err, &e) {
				t.Fatalf("got %v, %v", m, err)
			}
			if e.Segment != c.segment || e.Number != c.number || e.Field != c.field || !strings.Contains(e.Error(), c.says) {
				t.Errorf("error %+v: %v", *e, e)
			}
			if strings.Contains(e.Error(), "SECRET") || strings.Contains(e.Error(), "RET") {
				t.Errorf("the error quotes the message: %v", e)
			}
		})
	}
}

func TestAMessageIsEmptyAfterAnErrorAndTakesTheNextOne(t *testing.T) {
	var m hl7.Message
	if err := m.Parse([]byte(header+"\rPID|1\r"), hl7.Limits{}); err != nil {
		t.Fatal(err)
	}
	if err := m.Parse([]byte("MSH|^~\\&|x\rnothing\r"), hl7.Limits{}); err == nil || m.Len() != 0 {
		t.Fatalf("error %v, %d segments", err, m.Len())
	}
	if err := m.Parse([]byte(header), hl7.Limits{}); err != nil || m.Len() != 1 {
		t.Fatalf("error %v, %d segments", err, m.Len())
	}
	if s := m.At(7); !s.Field(1).Empty() || s.Name() != "" || s.Fields() != 0 || s.Raw() != nil {
		t.Error("a segment that is not there is not empty")
	}
	if err := m.Parse([]byte(header), hl7.Limits{Bytes: 10}); err == nil {
		t.Error("a limit of 10 bytes lets a longer message through")
	}
}

func TestParsingAgainAllocatesNothing(t *testing.T) {
	text := []byte(header + strings.Repeat("\rOBX|1|NM|150456^MDC_PULS_OXIM_SAT_O2^MDC|1.2.1.1|97", 100))
	var m hl7.Message
	run := func() {
		if err := m.Parse(text, hl7.Limits{}); err != nil {
			t.Fatal(err)
		}
		for s := range m.Segments() {
			if s.Is("OBX") && !s.Field(3).Component(3).Is("MDC") {
				t.Fatal("OBX-3.3")
			}
		}
	}
	run()
	if n := testing.AllocsPerRun(20, run); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// samples are the published messages, outside of the project.
func samples(t testing.TB) map[string][]byte {
	shared := os.Getenv("GATEWAY_SHARED")
	if shared == "" {
		t.Skip("GATEWAY_SHARED is not set: the published samples are not part of the project")
	}
	files, err := filepath.Glob(filepath.Join(shared, "reference/ihe-pcd/samples/*.hl7"))
	if err != nil || len(files) < 10 {
		t.Fatalf("%d samples, error %v", len(files), err)
	}
	list := map[string][]byte{}
	for _, f := range files {
		if list[filepath.Base(f)], err = os.ReadFile(f); err != nil {
			t.Fatal(err)
		}
	}
	return list
}

// trimmed takes the field separators at the end of each segment away.
func trimmed(b []byte) []byte {
	lines := bytes.Split(b, []byte("\r"))
	for i := range lines {
		lines[i] = bytes.TrimRight(lines[i], "|")
	}
	return bytes.Join(lines, []byte("\r"))
}

func TestPublishedSamplesArePrintedAsTheyWereRead(t *testing.T) {
	for name, text := range samples(t) {
		t.Run(name, func(t *testing.T) {
			m, err := hl7.Parse(text)
			if err != nil {
				t.Fatal(err)
			}
			if got, want := m.Append(nil, m.Delimiters()), trimmed(text); !bytes.Equal(got, want) {
				t.Errorf("printed\n%q\nwant\n%q", got, want)
			}
			other := hl7.Delimiters{Field: '*', Component: ':', Repetition: '+', Escape: '!', Subcomponent: '%'}
			again := parse(t, string(m.Append(nil, other)))
			if got := again.Append(nil, hl7.Standard); !bytes.Equal(got, trimmed(text)) {
				t.Errorf("through other separators\n%q\nwant\n%q", got, trimmed(text))
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	for _, seed := range []string{
		header + "\rPID|||a^b&c~d||\\F\\\\X0D\\\\.br\\\\\r", "MSH*:+!%*app:id\nPID*a+b:c%d!S!e", "MSH|^|x\r\nPID|\\\r", "MSH", "", "\x00",
		"MSH|^~\\&#|\\H\\bold\\N\\\rZZ1|\\C2842\\\\M244A41\\\\Z1\\\r",
		"MSH|!\"\\.|\\.br\\", "MSH|^~\\F|\\F\\", // separators that stand in escape sequences as well
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		before := bytes.Clone(b)
		m, err := hl7.Parse(b)
		if !bytes.Equal(b, before) {
			t.Fatal("Parse changed its input")
		}
		if err != nil {
			var e *hl7.SyntaxError
			if !errors.As(err, &e) {
				t.Fatalf("error %T", err)
			}
			return
		}
		printed := m.Append(nil, m.Delimiters())
		again, err := hl7.Parse(printed)
		if err != nil {
			t.Fatalf("%q is printed as %q, which cannot be read: %v", b, printed, err)
		}
		same(t, m, again)
		if twice := again.Append(nil, m.Delimiters()); !bytes.Equal(twice, printed) {
			t.Fatalf("printed %q, then %q", printed, twice)
		}
		if d := m.Delimiters(); d.Component != 0 && d.Repetition != 0 && d.Escape != 0 && d.Subcomponent != 0 {
			other, err := hl7.Parse(m.Append(nil, hl7.Standard))
			if err != nil {
				t.Fatal(err)
			}
			same(t, m, other)
		}
	})
}

// same compares the values of two messages, to the last subcomponent.
func same(t *testing.T, a, b *hl7.Message) {
	t.Helper()
	if a.Len() != b.Len() {
		t.Fatalf("%d segments became %d", a.Len(), b.Len())
	}
	for n := 1; n <= a.Len(); n++ {
		x, y := a.At(n), b.At(n)
		first := 1
		if x.Is("MSH") {
			first = 3
		}
		for i := first; i <= max(x.Fields(), y.Fields()); i++ {
			sameField(t, x.Field(i), y.Field(i))
		}
	}
}

func sameField(t *testing.T, x, y hl7.Field) {
	t.Helper()
	for r := 1; r <= max(x.Repetitions(), y.Repetitions()); r++ {
		p, q := x.Repetition(r), y.Repetition(r)
		for c := 1; c <= max(p.Components(), q.Components()); c++ {
			v, w := p.Component(c), q.Component(c)
			for s := 1; s <= max(v.Subcomponents(), w.Subcomponents()); s++ {
				if got, want := w.Subcomponent(s).Raw(), v.Subcomponent(s).Raw(); w.Subcomponent(s).String() != v.Subcomponent(s).String() {
					t.Fatalf("%q became %q", want, got)
				}
			}
		}
	}
}

func BenchmarkParse(b *testing.B) {
	text := []byte(header + strings.Repeat("\rOBX|9|NM|150456^MDC_PULS_OXIM_SAT_O2^MDC|1.2.1.1|97|262688^MDC_DIM_PERCENT^MDC^%^%^UCUM|90-100||||R", 40))
	var m hl7.Message
	b.SetBytes(int64(len(text)))
	b.ReportAllocs()
	for b.Loop() {
		if err := m.Parse(text, hl7.Limits{}); err != nil {
			b.Fatal(err)
		}
	}
}
