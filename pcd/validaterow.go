package pcd

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/bedside-gateway/gatewayd/hl7"
	"github.com/bedside-gateway/gatewayd/mdc"
)

// row checks one OBX by itself and within its interval.
func (c *checker) row(g *orderGroup, r *row) {
	s := r.s
	if !s.Field(1).Is(strconv.Itoa(r.n)) {
		c.report(ruleOBX1, r.path(1))
	}
	c.empty(ruleOBXForbidden, s, r.n, 9, 12, 13)
	c.what(r)
	r.place = parsePlace(s.Field(4).Raw())
	if r.place == nil {
		c.report(ruleOBX4, r.path(4))
	}
	r.device = r.isDevice()
	c.level(r)
	status := s.Field(11).String()
	if len(status) != 1 || !strings.Contains("RFPCDSUWX", status) {
		c.report(ruleOBX11, r.path(11))
	}
	if r.device {
		c.deviceRow(r, status)
	} else {
		c.valueRow(r, status)
	}
	c.when(g, r)
	c.who(r)
}

// what checks OBX-3.
func (c *checker) what(r *row) {
	f := r.s.Field(3)
	_, err := strconv.ParseUint(f.Component(1).String(), 10, 32)
	if err != nil || f.Component(2).Empty() || f.Component(3).Empty() {
		c.report(ruleOBX3, r.path(3))
		return
	}
	c.coded(f, r.path(3), 40)
	if f.Component(3).Is("MDC") {
		r.code = codeOf(f.Component(1)).Current()
		r.term, _ = mdc.Lookup(r.code)
	}
	switch r.code {
	case attrTimeAbs, syncProtocol, 68219, 68221, 67983, 68072:
		c.synced = true
	}
}

func codeOf(f hl7.Field) mdc.Code {
	n, _ := strconv.ParseUint(f.String(), 10, 32)
	return mdc.Code(n)
}

// parsePlace reads four to six numbers; nil where they are none.
func parsePlace(s []byte) []uint64 {
	parts := strings.Split(string(s), ".")
	if len(parts) < 4 || len(parts) > 6 || len(s) > 20 {
		return nil
	}
	place := make([]uint64, len(parts))
	for i, p := range parts {
		n, err := strconv.ParseUint(p, 10, 64)
		if err != nil || strconv.FormatUint(n, 10) != p {
			return nil
		}
		place[i] = n
	}
	return place
}

// isDevice tells device rows by their place, or by their term where that is no help.
func (r *row) isDevice() bool {
	if r.place != nil {
		return len(r.place) == 4 && r.place[3] == 0
	}
	return deviceLevel(r.term) > 0
}

// deviceLevel is the level of OBX-4 at which a device term belongs; 0 for all
// other terms.
func deviceLevel(t *mdc.Term) int {
	if t != nil {
		switch t.Group {
		case mdc.GroupMDS:
			return 1
		case mdc.GroupVMD:
			return 2
		case mdc.GroupCHAN:
			return 3
		}
	}
	return 0
}

// level compares the term with the level of its place.
func (c *checker) level(r *row) {
	if r.place == nil || r.term == nil {
		return
	}
	at := 0
	if r.device {
		for at = 3; at > 0 && r.place[at-1] == 0; {
			at--
		}
	}
	if want := deviceLevel(r.term); want != at && (want != 0 || r.term.Group == mdc.GroupMETRIC) {
		c.report(ruleOBX4Level, r.path(4))
	}
}

func (c *checker) deviceRow(r *row, status string) {
	s := r.s
	if !s.Field(2).Empty() || !s.Field(5).Empty() || !s.Field(6).Empty() || !s.Field(8).Empty() || status != "X" {
		c.report(ruleDeviceRow, r.path(11))
	}
	if isMDS := r.place != nil && r.place[0] != 0 && r.place[1] == 0 && r.place[2] == 0; isMDS && !s.Field(18).Component(4).Is("EUI-64") {
		c.report(ruleOBX18, r.path(18))
	}
}

// dataTypes are those of OBX-2 (TF B.8). NR is that of a waveform's facets.
var dataTypes = []string{"NM", "ST", "SN", "CWE", "CNE", "CF", "DTM", "TM", "FT", "ED", "DR", "NA", "NR", "PN", "XCN", "XPN"}

func (c *checker) valueRow(r *row, status string) {
	s := r.s
	kind, value := s.Field(2).String(), s.Field(5)
	known := slices.Contains(dataTypes, kind)
	if !known && !(kind == "" && status == "X") {
		c.report(ruleOBX2, r.path(2))
	}
	c.presence(r, status)
	if known && !value.Empty() {
		c.value(r, kind)
	}
	if known || kind == "" {
		c.unit(r, kind)
	}
	if f := s.Field(7).String(); f != "" && kind == "NM" && !isLimits(f) {
		c.report(ruleOBX7, r.path(7))
	}
	c.method(r)
	if f := s.Field(20); !f.Empty() {
		for i := 1; i <= f.Repetitions(); i++ {
			c.coded(f.Repetition(i), r.path(20), 20)
		}
	}
}

// flags are those of OBX-8: HL7 table 0078 with what the TF adds (B.8.5), and
// what each says of OBX-11: X, or one that has a value, or nothing.
var flags = map[string]byte{
	"N": 'R', "L": 'R', "LL": 'R', "H": 'R', "HH": 'R', "A": 'R',
	"INV": 'X', "NAV": 'X', "BUSY": 'X',
	"QUES": 'R', "EARLY": 'R', "CAL": 'r', "TEST": 0, "DEMO": 0, "ALACT": 0, "ALINH": 0,
	"NI": 0, "NA": 0, "OFF": 0, "MSK": 0, "OTH": 0, "NAN": 0, "PINF": 0, "NINF": 0,
	"PI": 0, "PU": 0, "PN": 0, "PL": 0, "PM": 0, "PH": 0, "SP": 0, "ST": 0, "SA": 0,
}

// presence compares value, flags and result status.
func (c *checker) presence(r *row, status string) {
	f, value := r.s.Field(8), r.s.Field(5)
	var wantX, wantValue, reason bool
	for i := 1; i <= f.Repetitions(); i++ {
		want, known := flags[f.Repetition(i).String()]
		if !known {
			c.report(ruleOBX8, r.path(8))
			return
		}
		wantX = wantX || want == 'X'
		wantValue = wantValue || want == 'R'
		reason = reason || want != 'R'
	}
	switch {
	case wantX && (status != "X" || wantValue), status == "X" && wantValue:
		c.report(ruleOBX11Flags, r.path(11))
	case !value.Empty() && status == "X":
		c.report(ruleOBX5Forbidden, r.path(5))
	case value.Empty() && !reason && status != "D" && status != "W":
		c.report(ruleOBX5Missing, r.path(5))
	}
}

// value checks OBX-5 against OBX-2.
func (c *checker) value(r *row, kind string) {
	f, ok := r.s.Field(5), true
	switch kind {
	case "NM":
		ok = isNumber(string(f.Raw()))
	case "SN":
		ok = isStructured(f)
	case "ST":
		ok = f.Components() <= 1 && f.Subcomponents() <= 1
	case "CWE", "CNE", "CF":
		for i := 1; i <= f.Repetitions(); i++ {
			c.coded(f.Repetition(i), r.path(5), 20)
		}
	case "DTM":
		c.time(f, r.path(5), false)
	case "TM":
		ok = isTime(f)
	case "NA":
		ok = isArray(f)
	case "NR":
		ok = f.Components() <= 2 && isArray(f)
	}
	if !ok {
		c.report(ruleDatatype, r.path(5))
	}
}

func isNumber(s string) bool {
	s = strings.TrimLeft(s, " ")
	if s != "" && (s[0] == '-' || s[0] == '+') {
		s = s[1:]
	}
	whole, part, _ := strings.Cut(s, ".")
	return whole+part != "" && strings.Trim(whole+part, "0123456789") == ""
}

func isStructured(f hl7.Field) bool {
	comparator, first, sep, second := f.Component(1).String(), f.Component(2).String(), f.Component(3).String(), f.Component(4).String()
	return slices.Contains([]string{"", ">", "<", ">=", "<=", "=", "<>"}, comparator) &&
		slices.Contains([]string{"", "-", "+", "/", ".", ":"}, sep) &&
		(first == "" || isNumber(first)) && (second == "" || isNumber(second)) && first+second != "" && f.Components() <= 4
}

func isTime(f hl7.Field) bool {
	_, err := hl7.ParseDTM("20000101" + string(f.Raw()))
	return err == nil && len(f.Raw()) >= 4
}

func isArray(f hl7.Field) bool {
	for sample := range strings.SplitSeq(strings.ReplaceAll(string(f.Raw()), "~", "^"), "^") {
		if sample != "" && !isNumber(sample) {
			return false
		}
	}
	return true
}

func isLimits(s string) bool {
	if s[0] == '<' || s[0] == '>' {
		return isNumber(s[1:])
	}
	// The first number may have a sign, so its minus is not the one between.
	at := strings.IndexByte(s[1:], '-') + 1
	return at > 0 && isNumber(s[:at]) && isNumber(s[at+1:]) && !strings.Contains(s, " ")
}

// unit checks OBX-6.
func (c *checker) unit(r *row, kind string) {
	f := r.s.Field(6)
	if f.Empty() {
		if kind == "NM" || kind == "NA" || kind == "SN" && !isRatio(r.s.Field(5)) {
			c.report(ruleOBX6Missing, r.path(6))
		}
		return
	}
	system, other := f.Component(3).String(), f.Component(6).String()
	switch {
	case system != "MDC" && other != "MDC" && (system == "UCUM" || other == "UCUM"):
		c.report(ruleUnitUCUMOnly, r.path(6))
		return
	case system != "MDC":
		c.report(ruleUnitSystem, r.path(6))
		return
	}
	c.coded(f, r.path(6), 20)
	code := codeOf(f.Component(1))
	u, known := mdc.LookupUnit(code)
	if !known {
		return // coded has said so
	}
	if allowed, listed := mdc.UnitAllowed(r.code, code); listed && !allowed && !(kind == "NA" && code == dimensionless) {
		c.report(ruleUnitAllowed, r.path(6))
	}
	if other == "UCUM" && !u.HasUCUM(f.Component(4).String()) {
		c.report(ruleUnitUCUM, r.path(6))
	}
}

func isRatio(f hl7.Field) bool { return !f.Component(3).Empty() }

// coded checks a CWE: its length, its text, and what MDC says of it.
func (c *checker) coded(f hl7.Field, path string, longest int) {
	code, text := f.Component(1), f.Component(2)
	if text.Empty() || len(code.String()) > longest {
		c.report(ruleCWE, path)
		return
	}
	if !f.Component(3).Is("MDC") {
		return
	}
	if n, err := strconv.ParseUint(code.String(), 10, 32); err == nil {
		c.name(mdc.Code(n), text.String(), path)
	} else if !isMethod(f) {
		c.reportText(ruleCWE, path, "a code of MDC is a number")
	}
}

// name compares a code of MDC with its name.
func (c *checker) name(code mdc.Code, name, path string) {
	term, unit, deprecated := refID(code)
	known := term + unit
	switch {
	case code == 0:
		if !strings.HasPrefix(name, "MDCX_") {
			c.report(rulePrivateCode, path)
		}
	case strings.HasPrefix(name, "MDCX_") || known == "" && isPrivate(code):
		c.report(rulePrivateCode, path)
	case known == "" && codeNamed(name) != 0:
		c.reportText(ruleCodeName, path, fmt.Sprintf("the code of %s is %d, not %d", name, codeNamed(name), code))
	case known == "":
		c.reportText(ruleCodeUnknown, path, fmt.Sprintf("code %d is not in the project's table of the nomenclature", code))
	case name != known && !synonym(code, name):
		c.reportText(ruleCodeName, path, fmt.Sprintf("the name of %d is %s", code, known))
	case deprecated:
		c.reportText(ruleCodeDeprecated, path, fmt.Sprintf("%d %s is deprecated; it is %d %s now", code, known, code.Current(), code.Current()))
	case name != known:
		c.reportText(ruleCodeSynonym, path, fmt.Sprintf("the name of %d is %s now", code, known))
	}
}

func refID(code mdc.Code) (term, unit string, deprecated bool) {
	if t, ok := mdc.Lookup(code); ok {
		return t.RefID, "", t.Deprecated()
	}
	if u, ok := mdc.LookupUnit(code); ok {
		return "", u.RefID, false
	}
	return "", "", false
}

// codeNamed is the code that a name of the nomenclature stands for, else 0.
func codeNamed(name string) mdc.Code {
	if t, ok := mdc.LookupName(name); ok {
		return t.Code
	}
	if u, ok := mdc.LookupUnitName(name); ok {
		return u.Code
	}
	return 0
}

func synonym(code mdc.Code, name string) bool {
	return codeNamed(name) == code
}

// isPrivate knows the ranges that 11073-10101 leaves to vendors: the end of
// each partition, and whole partitions from 1024 on.
func isPrivate(c mdc.Code) bool { return c.Partition() >= 1024 || c&0xFFFF >= 0xF000 }

// methodTexts are those of OBX-17 (TF B.8).
var methodTexts = map[string]string{
	"AMEAS": "auto-measurement", "MMEAS": "manual-measurement", "ASET": "auto-setting", "MSET": "manual-setting",
	"ACALC": "auto-calculation", "MCALC": "manual-calculation", "UNSPEC": "mcat-unspec",
	"AUSRFS": "mode-auscultatory-ref", "INVRFS": "mode-invasive-ref", "RSET": "remote-setting",
}

func isMethod(f hl7.Field) bool {
	text, ok := methodTexts[f.Component(1).String()]
	return ok && f.Component(2).Is(text)
}

func (c *checker) method(r *row) {
	f := r.s.Field(17)
	for i := 1; i <= f.Repetitions(); i++ {
		m := f.Repetition(i)
		_, err := strconv.ParseUint(m.Component(1).String(), 10, 32)
		switch {
		case err == nil && m.Component(3).Is("MDC"):
			c.coded(m, r.path(17), 20)
		case !isMethod(m) || !m.Component(3).Is("MDC"):
			c.report(ruleOBX17, r.path(17))
		}
	}
}

// when checks OBX-14 and OBX-19. The interval is closed at OBR-7 and open at
// OBR-8; an instant at its very end passes, since times are written shortened.
func (c *checker) when(g *orderGroup, r *row) {
	at := c.time(r.s.Field(14), r.path(14), false)
	if f := r.s.Field(19); !f.Empty() && string(f.Raw()) != string(r.s.Field(14).Raw()) {
		c.report(ruleOBX19, r.path(19))
	}
	if at.IsZero() {
		return
	}
	end := g.to
	if end.IsZero() || r.code == attrTimeAbs { // the clocks are read when the message is made
		end = c.sent
	}
	if !end.IsZero() && at.After(end) {
		c.report(ruleOBX14Future, r.path(14))
	}
	long := time.Minute
	if !g.to.IsZero() && g.to.Sub(g.from) > long {
		long = g.to.Sub(g.from)
	}
	if !g.from.IsZero() && at.Before(g.from.Add(-long)) && continuous(r.code) {
		c.report(ruleOBX14Early, r.path(14))
	}
}

// continuous reports whether a metric is one that a monitor measures all the
// time: those of the ECG, the pulse oximeter, the capnograph and invasive pressures.
func continuous(code mdc.Code) bool {
	p, ok := mdc.PlaceOf(code)
	if !ok {
		return false
	}
	switch p.VMD {
	case 69798, 69642, 70682, 69854:
		return true
	}
	return false
}

// who checks OBX-18.
func (c *checker) who(r *row) {
	f := r.s.Field(18)
	for i := 1; i <= f.Repetitions(); i++ {
		c.entity(f.Repetition(i), r.path(18))
	}
	if f.Repetitions() > 1 {
		c.report(ruleOBX18, r.path(18))
	}
}

// tree checks OBX-4 over the rows of a group.
func (c *checker) tree(g *orderGroup) {
	seen := map[string]bool{}
	for _, r := range g.rows {
		if r.place == nil {
			continue
		}
		c.mds = appendMDS(c.mds, r.place[0])
		own := string(r.s.Field(4).Raw())
		if seen[own] {
			c.report(ruleOBX4Unique, r.path(4))
		}
		seen[own] = true
		if parent, ok := missingParent(r, seen); ok {
			c.reportText(ruleOBX4Parent, r.path(4), fmt.Sprintf("there is no row %s before it", parent))
		}
	}
	c.order(g)
}

func appendMDS(list []uint64, n uint64) []uint64 {
	if n == 0 || len(list) > 1 || slices.Contains(list, n) { // 0 is the gateway itself; two are too many
		return list
	}
	return append(list, n)
}

// missingParent is the first row that must stand above r and does not. The
// gateway's own rows, 0.0.0.n, have none.
func missingParent(r *row, seen map[string]bool) (string, bool) {
	p := r.place
	if p[0] == 0 {
		return "", false
	}
	for level := 1; level <= 3; level++ {
		if p[level-1] == 0 || r.device && zero(p[level:]) {
			continue
		}
		parent := make([]uint64, 4)
		copy(parent, p[:level])
		if text := placeText(parent); !seen[text] {
			return text, true
		}
	}
	if len(p) > 4 && !seen[placeText(p[:4])] {
		return placeText(p[:4]), true
	}
	return "", false
}

func zero(list []uint64) bool {
	return !slices.ContainsFunc(list, func(n uint64) bool { return n != 0 })
}

func placeText(p []uint64) string {
	var b []byte
	for i, n := range p {
		if i > 0 {
			b = append(b, '.')
		}
		b = strconv.AppendUint(b, n, 10)
	}
	return string(b)
}

// order checks the order of OBX-4: depth first, or all device rows before all
// values, each in order (TF B.8.4).
func (c *checker) order(g *orderGroup) {
	if first := disorder(g.rows); first != nil && !inBlocks(g.rows) {
		c.report(ruleOBX4Order, first.path(4))
	}
}

// disorder is the first row that stands behind a greater one.
func disorder(rows []*row) *row {
	var last *row
	for _, r := range rows {
		if r.place == nil {
			continue
		}
		if last != nil && slices.Compare(r.place, last.place) < 0 {
			return r
		}
		last = r
	}
	return nil
}

func inBlocks(rows []*row) bool {
	values := 0
	for values < len(rows) && rows[values].device {
		values++
	}
	return !slices.ContainsFunc(rows[values:], func(r *row) bool { return r.device }) &&
		disorder(rows[:values]) == nil && disorder(rows[values:]) == nil
}
