package replay

import (
	"encoding/json"
	"io"
	"time"

	"github.com/bedside-gateway/gatewayd/mdc"
	"github.com/bedside-gateway/gatewayd/observation"
)

// A Lines writes reports as JSON, one observation, alert or patient a line.
type Lines struct {
	out     *json.Encoder
	patient bool
	last    observation.Patient
}

// NewLines makes a writer. Patient identifiers, and texts that somebody may have
// typed in at the device, are left out unless patient is set.
func NewLines(w io.Writer, patient bool) *Lines {
	out := json.NewEncoder(w)
	out.SetEscapeHTML(false)
	return &Lines{out: out, patient: patient}
}

type line struct {
	Kind       string              `json:"kind"` // observation, alert or patient
	Received   time.Time           `json:"received,omitzero"`
	Time       time.Time           `json:"time,omitzero"`
	DeviceTime string              `json:"device_time,omitempty"`
	Device     string              `json:"device,omitempty"`
	Code       uint32              `json:"code,omitempty"`
	Name       string              `json:"name,omitempty"`
	Private    string              `json:"private,omitempty"`
	Instance   uint16              `json:"instance,omitempty"`
	Value      any                 `json:"value,omitempty"`
	Text       string              `json:"text,omitempty"`
	Unit       string              `json:"unit,omitempty"`
	Status     []string            `json:"status,omitempty"`
	Method     string              `json:"method,omitempty"`
	Site       string              `json:"site,omitempty"`
	Low        observation.Decimal `json:"low,omitzero"`
	High       observation.Decimal `json:"high,omitzero"`
	Episodic   bool                `json:"episodic,omitempty"`
	Wave       *wave               `json:"wave,omitempty"`
	Priority   string              `json:"priority,omitempty"`
	Technical  bool                `json:"technical,omitempty"`
	Patient    *person             `json:"patient,omitempty"`
}

type wave struct {
	PeriodMS float64   `json:"period_ms"`
	Samples  []float64 `json:"samples"`
	Raw      bool      `json:"raw,omitempty"` // no physical scale is known
}

type person struct {
	ID     string `json:"id,omitempty"`
	Given  string `json:"given,omitempty"`
	Family string `json:"family,omitempty"`
	Born   string `json:"born,omitempty"`
}

// Report writes the lines of a report.
func (l *Lines) Report(r *observation.Report) error {
	if r.Patient != nil && *r.Patient != l.last {
		l.last = *r.Patient
		if err := l.out.Encode(line{Kind: "patient", Received: r.Received, Patient: l.person(r.Patient)}); err != nil {
			return err
		}
	}
	for i := range r.Observations {
		if err := l.out.Encode(l.observation(r, &r.Observations[i])); err != nil {
			return err
		}
	}
	for i := range r.Alerts {
		if err := l.out.Encode(alertLine(r, &r.Alerts[i])); err != nil {
			return err
		}
	}
	return nil
}

func (l *Lines) person(p *observation.Patient) *person {
	text := observation.PHI.String
	if l.patient {
		text = observation.PHI.Reveal
	}
	return &person{text(p.ID), text(p.Given), text(p.Family), text(p.Born)}
}

func (l *Lines) observation(r *observation.Report, o *observation.Observation) line {
	out := line{Kind: "observation", Received: r.Received, Time: o.Time, DeviceTime: wall(o.DeviceTime), Device: device(r.Device),
		Code: uint32(o.Code), Instance: uint16(o.Instance), Status: flags(o.Status), Method: methods[o.Method],
		Site: name(o.Site), Unit: unit(o.Unit), Low: o.Limits.Low, High: o.Limits.High, Episodic: o.Episodic}
	out.Name, out.Private = term(o.Code, o.Private)
	switch v := &o.Value; v.Kind {
	case observation.KindNumber:
		out.Value = v.Number
	case observation.KindCode:
		out.Value, out.Text = name(v.Code), v.Text
	case observation.KindText:
		out.Text = l.typed(v.Text)
	case observation.KindSamples:
		out.Wave = samples(v.Samples)
	}
	return out
}

// typed is a text that somebody may have typed in.
func (l *Lines) typed(s string) string {
	if l.patient {
		return s
	}
	return observation.NewPHI(s).String()
}

func alertLine(r *observation.Report, a *observation.Alert) line {
	out := line{Kind: "alert", Received: r.Received, Device: device(r.Device), Code: uint32(a.Code), Instance: a.Instance,
		Text: a.Text, Status: flags(a.Status), Priority: priorities[a.Priority], Technical: a.Technical}
	out.Name, out.Private = term(a.Code, a.Private)
	return out
}

func term(c mdc.Code, p observation.Private) (string, string) {
	if c != 0 {
		return c.String(), ""
	}
	private, _ := json.Marshal(p.Code)
	return p.Name, p.Vendor + ":" + string(private)
}

func device(d *observation.Device) string {
	if d == nil || d.ID == 0 {
		return ""
	}
	return d.ID.String()
}

func name(c mdc.Code) string {
	if c == 0 {
		return ""
	}
	return c.String()
}

func unit(c mdc.Code) string {
	if u, ok := mdc.LookupUnit(c); ok && u.UCUM != "" {
		return u.UCUM
	}
	return name(c)
}

// wall is a time of the device without a zone, for it knows none.
func wall(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.Format("2006-01-02T15:04:05.999")
}

func samples(s *observation.Samples) *wave {
	out := &wave{PeriodMS: float64(s.Period) / float64(time.Millisecond), Samples: make([]float64, len(s.Values)), Raw: !s.Scaled()}
	for i, v := range s.Values {
		if out.Samples[i] = float64(v & s.Mask); s.Scaled() {
			out.Samples[i] = s.Physical(i)
		}
	}
	return out
}

var methods = map[observation.Method]string{observation.MethodManual: "manual", observation.MethodCalculated: "calculated",
	observation.MethodSetting: "setting", observation.MethodAutoSetting: "automatic setting"}

var priorities = map[observation.Priority]string{observation.PriorityLow: "low", observation.PriorityMedium: "medium", observation.PriorityHigh: "high"}

var flagNames = []string{"invalid", "questionable", "not available", "calibrating", "test", "demo", "validated", "early", "ongoing", "alarm", "alarm off"}

func flags(s observation.Status) (out []string) {
	for i, n := range flagNames {
		if s&(1<<i) != 0 {
			out = append(out, n)
		}
	}
	return out
}
