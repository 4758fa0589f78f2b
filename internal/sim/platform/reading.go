package platform

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
)

// A Document is what the platform reads out of a message. It is read by this
// file's own few lines and not by package hl7, which writes the messages: a
// mistake there must not cancel itself out here.
type Document struct {
	Sender    string // MSH-3 as it stands
	SenderID  string // MSH-3.2
	Made      string // MSH-7
	Type      string // MSH-9
	ControlID string // MSH-10
	Version   string // MSH-12
	AcceptAck string // MSH-15
	AppAck    string // MSH-16
	Profile   string // MSH-21.3, the identifier of the transaction

	Location string // PV1-3: point of care, room and bed
	Device   string // OBX-18.1 of the first row that has one: the monitor
	Order    string // OBR-3
	Start    string // OBR-7
	End      string // OBR-8
	Rows     []Row

	digest string
}

// A Row is one OBX. Device rows have no Value.
type Row struct {
	Path   string // OBX-4
	Code   string // OBX-3.1
	Name   string // OBX-3.2
	Type   string // OBX-2
	Value  string // OBX-5
	Unit   string // OBX-6.2, the name of the unit
	UCUM   string // OBX-6.5
	Flags  string // OBX-8
	Result string // OBX-11
	Time   string // OBX-14, else that of its OBR
	// Episodic is set where the row has a time of its own (OBX-14).
	Episodic bool
}

// Digest is over what a message says, not over what names the message: two
// messages with the same digest and different control IDs say one thing twice.
func (d *Document) Digest() string { return d.digest }

const (
	maxSegments = 20_000
	encoding    = `^~\&` // fixed by the profile (MSH-2)
)

// Read takes a message apart. The errors are of structure only; what the
// profile says is judged by pcd.Validate.
func Read(b []byte) (*Document, error) {
	lines := strings.FieldsFunc(string(b), func(r rune) bool { return r == '\r' || r == '\n' })
	if len(lines) == 0 || !strings.HasPrefix(lines[0], "MSH|"+encoding+"|") {
		return nil, errors.New("it does not begin with MSH|" + encoding + "|")
	}
	if len(lines) > maxSegments {
		return nil, fmt.Errorf("it has %d segments, the limit is %d", len(lines), maxSegments)
	}
	d := &Document{}
	d.header(fields(lines[0]))
	if d.ControlID == "" {
		return nil, errors.New("MSH-10, the control ID, is empty")
	}
	hash := sha256.New()
	for i, line := range lines[1:] {
		name, _, found := strings.Cut(line, "|")
		if len(name) != 3 || !found {
			return nil, fmt.Errorf("segment %d is no HL7 segment", i+2)
		}
		f := fields(line)
		d.segment(name, f)
		if name == "OBR" {
			f[3] = "" // names the report
		}
		hash.Write([]byte(strings.Join(f, "|") + "\r"))
	}
	d.digest = hex.EncodeToString(hash.Sum(nil))
	return d, nil
}

// fields splits a segment so that f[n] is field n. It is at least 32 long.
func fields(segment string) []string {
	f := strings.Split(segment, "|")
	if f[0] == "MSH" {
		f = append([]string{"MSH", "|"}, f[1:]...)
	}
	for len(f) < 32 {
		f = append(f, "")
	}
	return f
}

func component(field string, n int) string {
	first, _, _ := strings.Cut(field, "~")
	c := strings.Split(first, "^")
	if n > len(c) {
		return ""
	}
	return unescape(c[n-1])
}

func (d *Document) header(f []string) {
	d.Sender, d.SenderID, d.Made, d.Type = f[3], component(f[3], 2), f[7], f[9]
	d.ControlID, d.Version, d.AcceptAck, d.AppAck = unescape(f[10]), component(f[12], 1), f[15], f[16]
	d.Profile = component(f[21], 3)
}

func (d *Document) segment(name string, f []string) {
	switch name {
	case "PV1":
		d.Location = strings.Join(strings.FieldsFunc(
			component(f[3], 1)+"\x00"+component(f[3], 2)+"\x00"+component(f[3], 3), func(r rune) bool { return r == 0 }), " ")
	case "OBR":
		d.Order, d.Start, d.End = f[3], f[7], f[8]
	case "OBX":
		if d.Device == "" {
			d.Device = component(f[18], 1)
		}
		d.Rows = append(d.Rows, d.row(f))
	}
}

func (d *Document) row(f []string) Row {
	r := Row{
		Path: f[4], Code: component(f[3], 1), Name: component(f[3], 2), Type: f[2], Value: unescape(f[5]),
		Unit: component(f[6], 2), UCUM: component(f[6], 5), Flags: f[8], Result: f[11], Time: f[14], Episodic: f[14] != "",
	}
	if r.Type == "CWE" || r.Type == "CNE" {
		r.Value = component(f[5], 2)
	}
	if r.Time == "" {
		r.Time = d.Start
	}
	return r
}

// unescape resolves the escapes that the profile uses: the separators and hex
// bytes. Anything else is taken as it stands.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for {
		before, rest, found := strings.Cut(s, `\`)
		b.WriteString(before)
		if !found {
			return b.String()
		}
		name, after, closed := strings.Cut(rest, `\`)
		text, known := escape(name)
		if !closed || !known {
			b.WriteByte('\\')
			s = rest
			continue
		}
		b.WriteString(text)
		s = after
	}
}

func escape(name string) (string, bool) {
	if separator, ok := map[string]string{"F": "|", "S": "^", "T": "&", "R": "~", "E": `\`}[name]; ok {
		return separator, true
	}
	if digits, ok := strings.CutPrefix(name, "X"); ok {
		raw, err := hex.DecodeString(digits)
		return string(raw), err == nil && len(raw) > 0
	}
	return "", false
}

// Values are the rows that have a value, device rows left out.
func (d *Document) Values() []Row {
	var rows []Row
	for _, r := range d.Rows {
		if r.Value != "" {
			rows = append(rows, r)
		}
	}
	return rows
}

// String is the row as label, value and unit.
func (r Row) String() string {
	text := r.Name + " " + r.Value
	if r.UCUM != "" {
		text += " " + r.UCUM
	}
	if r.Flags != "" {
		text += " [" + r.Flags + "]"
	}
	return text
}
