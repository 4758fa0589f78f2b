package demo

import (
	"fmt"
	"strconv"
	"time"

	"github.com/bedside-gateway/gatewayd/hl7"
	"github.com/bedside-gateway/gatewayd/internal/sim/platform"
	"github.com/bedside-gateway/gatewayd/mdc"
)

// vitals is what the platform knows of a bed: the latest value of each term.
type vitals struct {
	rows  map[mdc.Code]platform.Row
	order []mdc.Code // as they first came
	at    time.Time  // of the latest message
}

func (v *vitals) take(d *platform.Document, at time.Time) {
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
			v.order = append(v.order, c)
		}
		v.rows[c] = r
	}
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

// line is a sign's value with its unit: 72 {beat}/min, 120/74 (89) mm[Hg].
func (v *vitals) line(s sign) (string, bool) {
	first, ok := v.rows[s.codes[0]]
	if !ok {
		return "", false
	}
	text := first.Value
	if len(s.codes) == 3 {
		text = fmt.Sprintf("%s/%s (%s)", first.Value, v.rows[s.codes[1]].Value, v.rows[s.codes[2]].Value)
	}
	text += " " + first.UCUM
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

// short is the first values on one line, for the log.
func (v *vitals) short() string {
	text := ""
	for _, s := range signs {
		if value, ok := v.line(s); ok {
			if text != "" {
				text += ", "
			}
			text += s.label + " " + value
		}
	}
	if text == "" {
		return "no values"
	}
	return text
}
