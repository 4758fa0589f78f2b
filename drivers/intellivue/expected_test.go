package intellivue

import (
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// The expected values of the recorded session were written by another decoder.
// describe writes what ours finds in the same words, without the names that the
// driver has no use for.
func describe(p []byte) (lines []string) {
	say := func(format string, args ...any) { lines = append(lines, fmt.Sprintf(format, args...)) }
	d, err := parsePDU(p)
	if err != nil {
		return []string{err.Error()}
	}
	switch d.kind {
	case roInvoke:
		say("ROIV  invoke %04x cmd %d len %d", d.invoke, d.command, len(d.body))
	case roResult:
		say("RORS  invoke %04x cmd %d len %d", d.invoke, d.command, len(d.body))
	case roLinked:
		say("ROLRS  link state %d count %d invoke %04x cmd %d len %d", d.linkState, d.linkCount, d.invoke, d.command, len(d.body))
	}
	switch {
	case d.command == cmdConfirmedEvent && d.kind == roInvoke:
		e, _ := parseEvent(d.body)
		_, list, _ := e.mdsCreate()
		say("event %04x time %d", e.kind, e.time)
		describeAttributes(list, say)
	case d.command == cmdConfirmedEvent:
		say("event result %x", d.body)
	case d.command == cmdConfirmedAction && d.kind == roInvoke:
		say("action req %x", d.body)
	case d.command == cmdConfirmedAction:
		describePoll(&d, say)
	default:
		say("raw %x", d.body)
	}
	return lines
}

func describePoll(d *pdu, say func(string, ...any)) {
	a, _ := parseAction(d.body, false)
	p, _ := parsePollResult(a.info, a.kind == actionPollExt)
	sequence := "None"
	if a.kind == actionPollExt {
		sequence = strconv.Itoa(int(p.sequence))
	}
	say("poll#%d seq %s rel %d abs %x class %04x group %04x", p.number, sequence, p.rel, p.abs[:], p.class, p.group)
	for c := p.contexts; ; {
		id, o, ok := c.next()
		if !ok {
			return
		}
		say("context %d objs %d", id, o.count)
		for {
			handle, a, ok := o.next()
			if !ok {
				break
			}
			say("obj handle %d", handle)
			describeAttributes(a, say)
		}
	}
}

func describeAttributes(a attributes, say func(string, ...any)) {
	for {
		id, value, ok := a.next()
		if !ok {
			return
		}
		say("%04x (%d): %s", id, len(value), describeValue(id, value))
	}
}

func physioName(id uint16) string { n, _ := findName(physioNames[:], id); return n.name }
func unitName(id uint16) string   { n, _ := findName(unitNames[:], id); return n.name }

func describeValue(id uint16, value []byte) string {
	switch id {
	case 0x0921:
		v, _ := parseU16(value)
		return fmt.Sprintf("HANDLE %d", v)
	case 0x0911:
		v, _ := parseU16(value)
		return fmt.Sprintf("COLOR %d", v)
	case 0x0940:
		return fmt.Sprintf("METRIC_STAT %x", value)
	case 0x0964:
		return fmt.Sprintf("SCALE_RANGE?? %x", value)
	case 0x092F:
		v, _ := parseU32(value)
		return fmt.Sprintf("TYPE %d:%04x", v>>16, v&0xFFFF)
	case attrStampAbs:
		return fmt.Sprintf("ABSTIME %x", value)
	case attrLabel:
		v, _ := parseU32(value)
		text := "?"
		for _, l := range labelNames {
			if l.id == v {
				text = l.text
			}
		}
		return fmt.Sprintf("LABEL %08x %s", v, text)
	case attrLabelText:
		s, _ := parseText(value)
		return fmt.Sprintf("LABELSTR '%s'", s)
	case attrUnit:
		v, _ := parseU16(value)
		return "UNIT " + unitName(v)
	case attrSamplePeriod:
		v, _ := parseU32(value)
		return fmt.Sprintf("SAMPLE_PERIOD %d (1/8 ms)", v)
	case attrMetricSpec:
		s, _ := parseMetricSpec(value)
		return fmt.Sprintf("METRIC_SPEC upd %d cat %04x acc %04x struct %02x%02x rel %04x", s.period, s.category, s.access, s.structure, s.component, s.relevance)
	case attrWaveSpec:
		s, _ := parseWaveSpec(value)
		return fmt.Sprintf("SA_SPEC arr %d sample %d sig %d flags %04x", s.size, s.bits, s.significant, s.flags)
	case attrNumeric:
		n, _ := parseNumeric(value)
		return fmt.Sprintf("NU_OBS %s(%04x) state %04x unit %s = %s", physioName(n.physio), n.physio, n.state, unitName(n.unit), n.value.decimal())
	case attrCompoundNumeric:
		l, _ := parseCompoundNumeric(value)
		parts := make([]string, l.count)
		for i := range parts {
			n, _ := parseNumeric(l.at(i, numericSize))
			parts[i] = fmt.Sprintf("%s(%04x) st %04x %s=%s", physioName(n.physio), n.physio, n.state, unitName(n.unit), n.value.decimal())
		}
		return "CMPD " + strings.Join(parts, "; ")
	case attrWave:
		w, _ := parseWave(value)
		return fmt.Sprintf("SA_OBS %s(%04x) st %04x len %d first %x", physioName(w.physio), w.physio, w.state, len(w.samples), w.samples[:min(16, len(w.samples))])
	case attrCompoundWave:
		var parts []string
		for l, _ := parseCompoundWave(value); ; {
			w, ok := l.nextWave()
			if !ok {
				return "CMPDSA " + strings.Join(parts, "; ")
			}
			parts = append(parts, fmt.Sprintf("%s(%04x) st %04x n=%d %x..", physioName(w.physio), w.physio, w.state, len(w.samples), w.samples[:8]))
		}
	}
	return fmt.Sprintf("%x", value)
}

// nameless takes the names of attributes, classes and groups out of a line.
var nameless = regexp.MustCompile(`^(\s*[0-9a-f]{4}) \S+ (\(\d+\):)|( class [0-9a-f]{4}) \S+|( group [0-9a-f]{4}) \S+|^(\s*event [0-9a-f]{4}) NOM\S+|(TYPE 1:[0-9a-f]{4}) \S+`)

func TestDecodedValuesAreTheExpectedOnes(t *testing.T) {
	b, err := os.ReadFile(sharedFile(t, "m8000-or-session", "decoded-expected.txt"))
	if err != nil {
		t.Fatal(err)
	}
	want := map[int][]string{}
	frame := 0
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "# "); ok {
			n, _, _ := strings.Cut(rest, " ")
			if frame, err = strconv.Atoi(n); err != nil {
				t.Fatal(err)
			}
			continue
		}
		line = nameless.ReplaceAllString(strings.TrimRight(line, "\n"), "$1$3$4$5$6 $2")
		want[frame] = append(want[frame], squeeze(line))
	}
	compared := 0
	for _, c := range recordedSession(t) {
		if c.data[0] != 0xE1 {
			continue
		}
		got := describe(c.data)
		for i, line := range want[c.frame] {
			if i >= len(got) || !strings.EqualFold(squeeze(got[i]), line) {
				t.Fatalf("frame %d, line %d: want %q, got\n%s", c.frame, i+1, line, strings.Join(got, "\n"))
			}
			compared++
		}
		if len(got) != len(want[c.frame]) {
			t.Errorf("frame %d: %d lines, want %d", c.frame, len(got), len(want[c.frame]))
		}
	}
	if compared < 2400 {
		t.Errorf("only %d lines were compared", compared)
	}
}

// squeeze makes one space of several, but keeps those of label texts.
func squeeze(s string) string {
	before, quoted, ok := strings.Cut(s, "'")
	s = strings.Join(strings.Fields(before), " ")
	if ok {
		s += " '" + quoted
	}
	return s
}

func TestFloatsKeepTheirDigitsAndSpecialValuesAreNone(t *testing.T) {
	for bits, want := range map[float]string{
		0xFD007D00: "32.000", 0x02000020: "3200", 0xFEFE7960: "-1000.00", 0xFF000140: "32.0", 0x01000140: "3200",
		0x00FFFFFF: "-1", 0xFF00000F: "1.5", 0x007FFFFF: "none", 0xFF7FFFFF: "none", 0x00800000: "none",
		0x00800001: "none", 0x00800002: "none", 0x007FFFFE: "none", 0x00800003: "-8388605",
	} {
		if got := bits.decimal().String(); got != want {
			t.Errorf("FLOAT %08X is %s, want %s", uint32(bits), got, want)
		}
	}
}
