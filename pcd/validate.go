package pcd

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/bedside-gateway/gatewayd/hl7"
	"github.com/bedside-gateway/gatewayd/mdc"
)

// maxFindings bounds what a hostile message can make of Validate.
const maxFindings = 1000

// Validate checks a PCD-01 message against all Rules. It returns nothing for a
// message that keeps them, and the first thousand findings for one that breaks
// more.
func Validate(b []byte) []Finding {
	c := &checker{raw: b}
	if err := c.m.Parse(b, hl7.Limits{}); err != nil {
		c.reportText(ruleSyntax, "", err.Error())
		return c.findings
	}
	c.bytes()
	c.header()
	c.structure()
	for _, g := range c.groups {
		c.group(g)
	}
	return c.findings
}

type checker struct {
	raw      []byte
	m        hl7.Message
	findings []Finding
	groups   []*orderGroup
	sent     time.Time // MSH-7, zero where it cannot be used
	rows     int       // OBX segments so far
	synced   bool      // a time row was seen
	mds      []uint64  // the first numbers of OBX-4
}

// An orderGroup is an OBR with its OBX segments.
type orderGroup struct {
	obr  hl7.Segment
	n    int // of the OBR
	rows []*row
	from time.Time
	to   time.Time
}

// A row is an OBX.
type row struct {
	s      hl7.Segment
	n      int // of the OBX in the message
	place  []uint64
	device bool
	code   mdc.Code
	term   *mdc.Term
}

func (c *checker) report(r ruleID, path string) { c.reportText(r, path, rules[r].Text) }

func (c *checker) reportText(r ruleID, path, text string) {
	if len(c.findings) == maxFindings {
		return
	}
	c.findings = append(c.findings, Finding{rules[r].Severity, path, rules[r].Name, text})
}

func path(segment string, n, field int) string {
	if n == 0 {
		return fmt.Sprintf("%s-%d", segment, field)
	}
	return fmt.Sprintf("%s[%d]-%d", segment, n, field)
}

func (r *row) path(field int) string { return path("OBX", r.n, field) }

// bytes checks what stands below the syntax.
func (c *checker) bytes() {
	if bytes.IndexByte(c.raw, '\n') >= 0 || c.raw[len(c.raw)-1] != '\r' {
		c.report(ruleSegmentEnd, "")
	}
	ascii := bytes.IndexFunc(c.raw, func(r rune) bool { return r > 0x7E || r < ' ' && r != '\r' && r != '\n' }) < 0
	switch set := c.m.Field("MSH", 18).String(); {
	case ascii:
	case set == "UNICODE UTF-8" || set == "UNICODE":
		if !utf8.Valid(c.raw) || bytes.IndexFunc(c.raw, control) >= 0 {
			c.report(ruleCharset, "MSH-18")
		}
	case strings.HasPrefix(set, "8859/"):
		if bytes.ContainsFunc(c.raw, control) {
			c.report(ruleCharset, "MSH-18")
		}
	default:
		c.report(ruleCharset, "MSH-18")
	}
}

func control(r rune) bool { return r < ' ' && r != '\r' && r != '\n' || r == 0x7F }

// structure walks the grammar of ORU_R01 as the TF restricts it (3.1.4.1.1) and
// gathers the groups.
func (c *checker) structure() {
	pid, pv1, notes := 0, 0, 0
	var g *orderGroup
	for s := range c.m.Segments() {
		if !s.Is("NTE") && !s.Is("PRT") {
			notes = 0
		}
		switch s.Name() {
		case "MSH":
		case "UAC":
			if s.Number() != 2 {
				c.segment(ruleSegment, s)
			}
		case "PID":
			pid++
			c.patientSegment(s, pid, g)
		case "PV1":
			pv1++
			c.visitSegment(s, pid, pv1, g)
		case "NK1":
			if pid == 0 || pv1 > 0 || g != nil {
				c.segment(ruleSegment, s)
			}
		case "ORC":
			c.segment(ruleORC, s)
		case "OBR":
			g = &orderGroup{obr: s, n: len(c.groups) + 1}
			c.groups = append(c.groups, g)
		case "OBX":
			c.rows++
			if g == nil {
				c.segment(ruleSegment, s)
				continue
			}
			g.rows = append(g.rows, &row{s: s, n: c.rows})
		case "NTE":
			if notes++; notes == 2 {
				c.segment(ruleNTE, s)
			}
			if g == nil {
				c.segment(ruleSegment, s)
			}
		case "PRT":
			if g == nil && pid == 0 {
				c.segment(ruleSegment, s)
			}
		case "TQ1":
			if g == nil || len(g.rows) > 0 {
				c.segment(ruleSegment, s)
			}
		default:
			c.segment(ruleSegment, s)
		}
	}
	if len(c.groups) == 0 {
		c.report(ruleOBRMissing, "")
	}
}

func (c *checker) segment(r ruleID, s hl7.Segment) {
	c.report(r, fmt.Sprintf("segment %d (%s)", s.Number(), s.Name()))
}

func (c *checker) patientSegment(s hl7.Segment, n int, g *orderGroup) {
	switch {
	case n > 1:
		c.segment(ruleSeveralPatients, s)
	case g != nil:
		c.segment(ruleSegment, s)
	default:
		c.pid(s)
	}
}

func (c *checker) visitSegment(s hl7.Segment, pid, n int, g *orderGroup) {
	switch {
	case n > 1:
		c.segment(ruleSeveralPatients, s)
	case pid == 0:
		c.segment(rulePV1WithoutPID, s)
	case g != nil:
		c.segment(ruleSegment, s)
	default:
		c.pv1(s)
	}
}

func (c *checker) header() {
	h := c.m.At(1)
	if c.m.Delimiters() != hl7.Standard || len(h.Field(2).Raw()) != 4 {
		c.report(ruleDelimiters, "MSH-2")
	}
	c.empty(ruleMSHForbidden, h, 0, 8, 14, 20, 22, 23, 24, 25)
	if f := h.Field(3); f.Component(1).Empty() || f.Component(2).Empty() || f.Component(3).Empty() {
		c.report(ruleMSH3, "MSH-3")
	}
	for i := 3; i <= 6; i++ {
		c.designator(h.Field(i), path("MSH", 0, i))
	}
	c.sent = c.time(h.Field(7), "MSH-7", true)
	if f := h.Field(9); !f.Is("ORU^R01^ORU_R01") || f.Components() != 3 {
		c.report(ruleMSH9, "MSH-9")
	}
	c.controlID(h.Field(10).String())
	c.oneOf(ruleMSH11, h.Field(11).Component(1), "MSH-11", "P", "D", "T")
	c.oneOf(ruleMSH12, h.Field(12).Component(1), "MSH-12", "2.6")
	if !h.Field(13).Empty() {
		c.report(ruleMSH13, "MSH-13")
	}
	c.conditions(h.Field(15).String(), h.Field(16).String())
	if f := h.Field(17).String(); f != "" && (len(f) != 3 || strings.Trim(f, "ABCDEFGHIJKLMNOPQRSTUVWXYZ") != "") {
		c.report(ruleMSH17, "MSH-17")
	}
	if f := h.Field(18); !f.Empty() && !slices.Contains(charsets, f.String()) {
		c.report(ruleMSH18, "MSH-18")
	}
	if f := h.Field(21); !f.Component(3).Is("1.3.6.1.4.1.19376.1.6.1.1.1") || !f.Component(4).Is("ISO") {
		c.report(ruleMSH21, "MSH-21")
	}
}

var charsets = []string{
	"ASCII", "UNICODE", "UNICODE UTF-8", "8859/1", "8859/2", "8859/3", "8859/4", "8859/5", "8859/6", "8859/7", "8859/8", "8859/9", "8859/15",
}

func (c *checker) controlID(id string) {
	switch {
	case id == "" || len(id) > 199:
		c.report(ruleMSH10, "MSH-10")
	case len(id) > ControlIDLength:
		c.report(ruleMSH10Length, "MSH-10")
	}
}

func (c *checker) conditions(accept, application string) {
	known := func(s string) bool { return s == "AL" || s == "NE" || s == "ER" || s == "SU" }
	switch {
	case !known(accept) || !known(application) || accept == "NE" && application == "NE":
		c.report(ruleMSHAckNone, "MSH-15")
	case accept != "AL" || application != "NE":
		c.report(ruleMSHAck, "MSH-15")
	}
}

func (c *checker) pid(s hl7.Segment) {
	c.empty(rulePIDForbidden, s, 0, 1, 2, 4, 9, 19)
	if s.Field(3).Empty() {
		c.report(rulePID3, "PID-3")
	}
	for i := 1; i <= s.Field(3).Repetitions(); i++ {
		c.identifier(s.Field(3).Repetition(i))
	}
	if f := s.Field(5); f.Component(7).Empty() || f.Component(7).Is("U") && !f.Is("^^^^^^U") {
		c.report(rulePID5, "PID-5")
	}
	if f := s.Field(7); !f.Empty() && !f.Null() {
		if _, err := hl7.ParseDTM(f.Raw()); err != nil {
			c.report(ruleTimeForm, "PID-7")
		}
	}
	if f := s.Field(8); !f.Empty() {
		c.oneOf(rulePID8, f, "PID-8", "F", "M", "O", "A", "N", "U")
	}
	if f := s.Field(31); !f.Empty() {
		c.oneOf(rulePID31, f, "PID-31", "Y", "N")
	}
}

func (c *checker) identifier(id hl7.Field) {
	switch n := utf8.RuneCountInString(id.Component(1).String()); {
	case n == 0:
		c.report(rulePID3, "PID-3")
	case n > 15:
		c.report(rulePID3Length, "PID-3")
	}
	if id.Component(5).Empty() {
		c.report(rulePID3Type, "PID-3")
	}
}

func (c *checker) pv1(s hl7.Segment) {
	for i := 1; i <= s.Fields(); i++ {
		switch i {
		case 2, 3, 19, 44, 51:
		default:
			c.empty(rulePV1Forbidden, s, 0, i)
		}
	}
	c.oneOf(rulePV12, s.Field(2), "PV1-2", "E", "I", "O", "P", "R", "B", "U", "C", "N")
	if f := s.Field(51); !f.Empty() {
		c.oneOf(rulePV151, f, "PV1-51", "A", "V")
	}
	if f := s.Field(44); !f.Empty() {
		c.time(f, "PV1-44", false)
	}
}

// empty reports the fields that are there and must not be.
func (c *checker) empty(r ruleID, s hl7.Segment, n int, fields ...int) {
	for _, i := range fields {
		if !s.Field(i).Empty() {
			c.report(r, path(s.Name(), n, i))
		}
	}
}

func (c *checker) oneOf(r ruleID, f hl7.Field, path string, values ...string) {
	if !slices.Contains(values, f.String()) {
		c.report(r, path)
	}
}

// designator checks an HD.
func (c *checker) designator(f hl7.Field, path string) {
	name, id, kind := f.Component(1), f.Component(2), f.Component(3)
	if utf8.RuneCountInString(name.String()) > 20 || id.Empty() != kind.Empty() {
		c.report(ruleHD, path)
	}
	c.eui64(id, kind, path)
}

// entity checks an EI: who gave the identifier, components 3 and 4.
func (c *checker) entity(f hl7.Field, path string) {
	if f.Component(1).Empty() || f.Component(3).Empty() != f.Component(4).Empty() {
		c.report(ruleEI, path)
	}
	c.eui64(f.Component(3), f.Component(4), path)
}

// eui64 checks an identifier whose type says that it is an EUI-64.
func (c *checker) eui64(id, kind hl7.Field, path string) {
	if k := kind.String(); k != "EUI-64" && k != "EUI64" {
		return
	}
	s := id.String()
	switch {
	case len(s) == 16 && strings.Trim(s, "0") == "":
		c.report(ruleEUI64Zero, path)
	case len(s) != 16 || strings.Trim(s, "0123456789ABCDEF") != "" || !kind.Is("EUI-64"):
		c.report(ruleEUI64, path)
	}
}

// time checks a DTM. It returns the zero time where it cannot be compared.
func (c *checker) time(f hl7.Field, path string, required bool) time.Time {
	if f.Empty() {
		if required {
			c.report(ruleTimeMissing, path)
		}
		return time.Time{}
	}
	d, err := hl7.ParseDTM(f.Raw())
	switch {
	case err != nil || d.Precision < hl7.Second:
		c.report(ruleTimeForm, path)
		return time.Time{}
	case !d.Offset:
		c.report(ruleTimeZone, path)
		return time.Time{}
	}
	return d.Time
}

// group checks an OBR and its rows.
func (c *checker) group(g *orderGroup) {
	p := func(i int) string { return path("OBR", g.n, i) }
	if !g.obr.Field(1).Is(strconv.Itoa(g.n)) {
		c.report(ruleOBR1, p(1))
	}
	c.empty(ruleOBRForbidden, g.obr, g.n, 5, 6, 9)
	if f := g.obr.Field(2); !f.Empty() {
		c.entity(f, p(2))
	}
	if f := g.obr.Field(3); f.Component(1).Empty() || f.Component(3).Empty() || f.Component(4).Empty() {
		c.report(ruleOBR3, p(3))
	} else {
		c.entity(f, p(3))
	}
	if f := g.obr.Field(4); f.Component(1).Empty() || f.Component(2).Empty() || f.Component(3).Empty() {
		c.report(ruleOBR4, p(4))
	} else {
		c.coded(f, p(4), 20)
	}
	g.from, g.to = c.time(g.obr.Field(7), p(7), true), c.time(g.obr.Field(8), p(8), false)
	if !g.from.IsZero() && !g.to.IsZero() && !g.to.After(g.from) {
		c.report(ruleInterval, p(8))
	}
	for _, r := range g.rows {
		c.row(g, r)
	}
	c.tree(g)
	if g == c.groups[len(c.groups)-1] {
		c.whole()
	}
}

// whole checks what counts once in a message.
func (c *checker) whole() {
	slices.Sort(c.mds)
	if len(slices.Compact(c.mds)) > 1 {
		c.report(ruleSeveralMDS, "")
	}
	if c.rows > 0 && !c.synced {
		c.report(ruleTimeSync, "")
	}
}
