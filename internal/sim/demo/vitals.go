package demo

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/bedside-gateway/gatewayd/hl7"
	"github.com/bedside-gateway/gatewayd/internal/sim/platform"
	"github.com/bedside-gateway/gatewayd/mdc"
)

// vitals is what the platform knows of a bed: the latest value of each term.
type vitals struct {
	rows map[mdc.Code]platform.Row
	at   time.Time // of the latest message
}

// take takes a message in and returns the rows of terms that are new.
func (v *vitals) take(d *platform.Document, at time.Time) (fresh []platform.Row) {
	if v.rows == nil {
		v.rows = map[mdc.Code]platform.Row{}
	}
	v.at = at
	for _, r := range d.Rows {
		code, err := strconv.ParseUint(r.Code, 10, 32)
		if err != nil || r.Type != "NM" || mdc.Code(code).Partition() != 2 {
			continue
		}
		c := mdc.Code(code)
		if _, known := v.rows[c]; !known {
			fresh = append(fresh, r)
		}
		v.rows[c] = r
	}
	return fresh
}

// A sign is a line of the display: one value, or a pressure of three.
type sign struct {
	label string
	codes []mdc.Code
}

// signs are what a monitor shows first, in its order and by its short names.
var signs = [...]sign{
	{"HR", []mdc.Code{147842}},
	{"ABP", []mdc.Code{150037, 150038, 150039}},
	{"ART", []mdc.Code{150033, 150034, 150035}},
	{"SpO2", []mdc.Code{150456}},
	{"Pulse", []mdc.Code{149530}},
	{"RR", []mdc.Code{151562}},
	{"etCO2", []mdc.Code{151708}},
	{"Temp", []mdc.Code{150344}},
	{"CVP", []mdc.Code{150087}},
	{"NIBP", []mdc.Code{150021, 150022, 150023}},
}

// units writes UCUM codes as monitors do.
var units = strings.NewReplacer("{beat}", "", "{breath}", "", "mm[Hg]", "mmHg", "Cel", "°C")

// line is a sign's value with its unit: 72 /min, 120/74 (89) mmHg.
func (v *vitals) line(s sign) (string, bool) {
	first, ok := v.rows[s.codes[0]]
	if !ok {
		return "", false
	}
	text := first.Value
	if len(s.codes) == 3 {
		text = fmt.Sprintf("%s/%s (%s)", first.Value, v.rows[s.codes[1]].Value, v.rows[s.codes[2]].Value)
	}
	text += " " + units.Replace(first.UCUM)
	if s.label == "NIBP" {
		if t, err := hl7.ParseTime(first.Time); err == nil {
			text += " " + t.Local().Format(time.TimeOnly)
		}
	}
	if first.Flags != "" {
		text += " " + first.Flags
	}
	return text, true
}

// short is the values on one line, for the log.
func (v *vitals) short() string {
	var parts []string
	for _, s := range signs {
		if value, ok := v.line(s); ok {
			parts = append(parts, s.label+" "+value)
		}
	}
	if len(parts) == 0 {
		return "no values"
	}
	return strings.Join(parts, ", ")
}
