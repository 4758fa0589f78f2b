package hl7_test

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/bedside-gateway/gatewayd/hl7"
)

func value(t testing.TB, escaped string) string {
	t.Helper()
	m, err := hl7.Parse([]byte("MSH|^~\\&\rZZZ|" + escaped + "\r"))
	if err != nil {
		t.Fatal(err)
	}
	return m.Field("ZZZ", 1).String()
}

func TestEscapeSequencesAreResolved(t *testing.T) {
	for _, c := range []struct{ escaped, want string }{
		{`a\F\b\S\c\T\d\R\e\E\f`, `a|b^c&d~e\f`},
		{`\F\\F\`, `||`},
		{`\X0D0A\`, "\r\n"},
		{`\X0d\`, "\r"},
		{`\X000D\`, "\r"}, // as laboratories write it
		{`\X41424344\`, "ABCD"},
		{`one\.br\two`, "one\ntwo"},
		{`one\.sp+2\two`, "one\ntwo"},
		{`\H\bold\N\ plain`, "bold plain"},
		{`\C2842\\M244A41\x`, "x"},
		{`\.in+4\x`, "x"},
		{`\P\`, ""},
		// What is no sequence stands for itself.
		{`C:\temp`, `C:\temp`},
		{`\`, `\`},
		{`\\`, `\\`},
		{`a\b\c`, `a\b\c`},
		{`\X\`, `\X\`},
		{`\X0\`, `\X0\`},
		{`\X0G\`, `\X0G\`},
		{`\.zz\`, `\.zz\`},
		{`\f\`, `\f\`},
		{`\FF\`, `\FF\`},
		{`5\F`, `5\F`},
		{`tail\`, `tail\`},
		{`dos\E\X09\E\`, `dos\X09\`}, // escaped twice by two engines: once is undone
		{`ä\X C3\`, `ä\X C3\`},
		{`Grüße °C`, `Grüße °C`},
	} {
		if got := value(t, c.escaped); got != c.want {
			t.Errorf("%s is %q, want %q", c.escaped, got, c.want)
		}
	}
}

func TestAppendEscapedLeavesNothingThatSeparates(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{`a|b^c&d~e\f`, `a\F\b\S\c\T\d\R\e\E\f`},
		{"line\r\nend\x0b\x1c", `line\X0D\\X0A\end\X0B\\X1C\`},
		{"\x00\x7f", `\X00\\X7F\`},
		{"Grüße °C µ", "Grüße °C µ"},
		{"latin \xe4", `latin \XE4\`},
		{"cut \xe2\x82", `cut \XE2\\X82\`},
		{"next line \u0085", `next line \XC285\`},
		{"\ufffd stays", "\ufffd stays"},
		{"", ""},
	} {
		if got := string(hl7.AppendEscaped(nil, c.text)); got != c.want {
			t.Errorf("%q is escaped as %q, want %q", c.text, got, c.want)
		}
		if got := string(hl7.AppendEscapedBytes([]byte("x"), []byte(c.text))); got != "x"+c.want {
			t.Errorf("%q as bytes is escaped as %q", c.text, got)
		}
	}
}

func TestIsResolvesEscapes(t *testing.T) {
	m := parse(t, "MSH|^~\\&\rZZZ|a\\T\\b|\"\"|ab\r")
	if !m.Field("ZZZ", 1).Is("a&b") || m.Field("ZZZ", 1).Is(`a\T\b`) || !m.Field("ZZZ", 3).Is("ab") {
		t.Error("Is compares what stands there, not what it means")
	}
	if !m.Field("ZZZ", 2).Null() || m.Field("ZZZ", 3).Null() {
		t.Error(`Null does not know ""`)
	}
}

func FuzzEscape(f *testing.F) {
	for _, s := range []string{`a|b^c&d~e\f`, "\r\n\x0b\x1c", "ü\xff", `\X0D\`, "\\", `""`, "\u0085"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		e := hl7.AppendEscaped(nil, s)
		if i := bytes.IndexAny(e, "|^~&\r\n\x0b\x1c"); i >= 0 || !utf8.Valid(e) {
			t.Fatalf("%q is escaped as %q", s, e)
		}
		if got := value(t, string(e)); got != s {
			t.Fatalf("%q came back as %q through %q", s, got, e)
		}
	})
}

func ExampleParse() {
	m, err := hl7.Parse([]byte("MSH|^~\\&|GW\rOBX|1|ST|67880^MDC_ATTR_ID_MODEL^MDC||Bed 2 \\T\\ 3\r"))
	if err != nil {
		fmt.Println(err)
		return
	}
	obx, _ := m.Segment("OBX", 1)
	fmt.Println(obx.Field(3).Component(2))
	fmt.Println(obx.Field(5))
	// Output:
	// MDC_ATTR_ID_MODEL
	// Bed 2 & 3
}

func BenchmarkAppendEscaped(b *testing.B) {
	s := strings.Repeat("Grüße | ", 16)
	var dst []byte
	b.SetBytes(int64(len(s)))
	b.ReportAllocs()
	for b.Loop() {
		dst = hl7.AppendEscaped(dst[:0], s)
	}
}
