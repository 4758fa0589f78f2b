package mdc_test

import (
	"encoding/csv"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/bedside-gateway/gatewayd/mdc"
)

var update = flag.Bool("update", false, "add new places to the golden file")

func TestTermsAreFoundByCodeAndByName(t *testing.T) {
	for _, c := range []struct {
		code  mdc.Code
		ref   string
		group mdc.Group
		unit  mdc.Code
	}{
		{147842, "MDC_ECG_CARD_BEAT_RATE", mdc.GroupMETRIC, 264864},
		{150456, "MDC_PULS_OXIM_SAT_O2", mdc.GroupMETRIC, 262688},
		{150021, "MDC_PRESS_BLD_NONINV_SYS", mdc.GroupMETRIC, 266016},
		{151562, "MDC_RESP_RATE", mdc.GroupMETRIC, 264928},
		{69965, "MDC_DEV_MON_PHYSIO_MULTI_PARAM_MDS", mdc.GroupMDS, 0},
		{69798, "MDC_DEV_ECG_VMD", mdc.GroupVMD, 0},
		{69643, "MDC_DEV_ANALY_SAT_O2_CHAN", mdc.GroupCHAN, 0},
		{196648, "MDC_EVT_HI", mdc.GroupEVENT, 0},
		{460500, "MDC_UPEXT_FINGER", mdc.GroupBODYSITE, 0},
		{67975, "MDC_ATTR_TIME_ABS", mdc.GroupATTR, 0},
		{532226, "MDC_TIME_SYNC_NTPV4", mdc.GroupATTR, 0},
	} {
		got, ok := mdc.Lookup(c.code)
		if !ok || got.RefID != c.ref || got.Group != c.group || got.Unit != c.unit || got.Deprecated() || c.code.String() != c.ref {
			t.Errorf("%d is %+v", c.code, got)
		}
		if named, ok := mdc.LookupName(c.ref); !ok || named != got {
			t.Errorf("%s is %+v", c.ref, named)
		}
	}
	if _, ok := mdc.Lookup(0); ok {
		t.Error("0 is a term")
	}
	if _, ok := mdc.LookupName("MDC_RESP_BREATH_RATE"); ok {
		t.Error("a made-up name is a term")
	}
	if got := mdc.Code(4262).String(); got != "4262" {
		t.Errorf("an unknown code is printed as %s", got)
	}
	if got := mdc.Code(266016).String(); got != "MDC_DIM_MMHG" {
		t.Errorf("a unit is printed as %s", got)
	}
	if p := mdc.Code(147842).Partition(); p != 2 {
		t.Errorf("147842 is of partition %d", p)
	}
}

func TestOlderNamesAreUnderstood(t *testing.T) {
	for name, code := range map[string]mdc.Code{
		"MDC_ECG_HEART_RATE": 147842, "MDC_ECG_TIME_PD_QTc": 147236, "MDC_AWAY_CO2_ET": 151728, "MDC_ATTR_EVENT_PHASE": 68481,
	} {
		if got, ok := mdc.LookupName(name); !ok || got.Code != code {
			t.Errorf("%s is %+v, want %d", name, got, code)
		}
	}
	for name, code := range map[string]mdc.Code{"MDC_DIM_X_SEC": 264320, "MDC_DIM_SEC": 264320, "MDC_DIM_X_L_PER_SEC": 265184} {
		if got, ok := mdc.LookupUnitName(name); !ok || got.Code != code {
			t.Errorf("%s is %+v, want %d", name, got, code)
		}
	}
}

func TestDeprecatedCodesAreUnderstoodAndNeverEmitted(t *testing.T) {
	for old, now := range map[mdc.Code]mdc.Code{
		151728: 151708, 151724: 151700, 151920: 152196, 131907: 131927, 68164: 68480, 68169: 68485, 147842: 147842, 7: 7, 0: 0,
	} {
		if got := old.Current(); got != now {
			t.Errorf("the current code of %d is %d, want %d", old, got, now)
		}
	}
	n := 0
	for _, term := range everyTerm() {
		current, ok := mdc.Lookup(term.Code.Current())
		if !ok || current.Deprecated() {
			t.Errorf("%s is emitted as %d, which is deprecated or unknown", term.RefID, term.Code.Current())
		}
		if term.Deprecated() {
			n++
		} else if term.Code.Current() != term.Code {
			t.Errorf("%s is current and emitted as something else", term.RefID)
		}
	}
	if n < 10 {
		t.Errorf("only %d deprecated terms", n)
	}
}

// everyTerm asks for every code that 11073 could have given.
func everyTerm() []*mdc.Term {
	var list []*mdc.Term
	for _, partition := range []mdc.Code{1, 2, 3, 4, 7, 8, 128, 129, 130, 258, 514} {
		for code := range mdc.Code(65536) {
			if t, ok := mdc.Lookup(partition<<16 | code); ok {
				list = append(list, t)
			}
		}
	}
	return list
}

func TestTheTablesAgreeWithEachOther(t *testing.T) {
	list := everyTerm()
	if len(list) < 2900 {
		t.Fatalf("only %d terms", len(list))
	}
	codes := map[string]mdc.Code{}
	for _, term := range list {
		named, ok := mdc.LookupName(term.RefID)
		if !ok || named.Code != term.Code && !term.Deprecated() {
			t.Errorf("%s (%d) is found by name as %+v", term.RefID, term.Code, named)
		}
		if other := codes[term.RefID]; other != 0 && !term.Deprecated() && !mustLookup(other).Deprecated() {
			t.Errorf("%s is the current name of %d and %d", term.RefID, other, term.Code)
		}
		codes[term.RefID] = term.Code
		if term.Display == "" || strings.Trim(term.RefID, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_") != "" {
			t.Errorf("%d has the name %q and the text %q", term.Code, term.RefID, term.Display)
		}
		if term.Unit == 0 {
			continue
		}
		if _, ok := mdc.LookupUnit(term.Unit); !ok {
			t.Errorf("%s has unit %d, which is unknown", term.RefID, term.Unit)
		}
		if allowed, listed := mdc.UnitAllowed(term.Code, term.Unit); listed && !allowed {
			t.Errorf("%s has the unit %s, which it does not allow", term.RefID, term.Unit)
		}
		if p, ok := mdc.PlaceOf(term.Code); ok && p.VMD != 0 && mustLookup(p.VMD).Group != mdc.GroupVMD {
			t.Errorf("%s stands in %s, which is no VMD", term.RefID, p.VMD)
		}
	}
}

func mustLookup(c mdc.Code) *mdc.Term {
	t, ok := mdc.Lookup(c)
	if !ok {
		panic(fmt.Sprintf("no term %d", c))
	}
	return t
}

func TestEveryCurrentMetricHasAPlace(t *testing.T) {
	for _, term := range everyTerm() {
		if _, ok := mdc.PlaceOf(term.Code); !ok && term.Group == mdc.GroupMETRIC && !term.Deprecated() {
			t.Errorf("%s (%d) has no place in the containment tree", term.RefID, term.Code)
		}
	}
	if _, ok := mdc.PlaceOf(0); ok {
		t.Error("nothing has a place")
	}
}

// Receivers compare OBX-4 from message to message: a place once given stays.
func TestPlacesNeverChange(t *testing.T) {
	const file = "testdata/places.golden"
	golden := map[string]string{}
	text, err := os.ReadFile(file)
	if err != nil && !*update {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		name, at, _ := strings.Cut(strings.TrimSpace(line), " ")
		golden[name] = at
	}
	var lines []string
	for _, term := range everyTerm() {
		p, ok := mdc.PlaceOf(term.Code)
		if !ok {
			continue
		}
		at := fmt.Sprintf("%d.%d.%d", p.VMDNumber, p.ChannelNumber, p.MetricNumber)
		if was := golden[term.RefID]; was == "" && !*update {
			t.Errorf("%s has the new place %s: add it with -update", term.RefID, at)
		} else if was != "" && was != at {
			t.Errorf("%s moved from %s to %s", term.RefID, was, at)
		}
		delete(golden, term.RefID)
		lines = append(lines, term.RefID+" "+at+"\n")
	}
	for name, at := range golden {
		t.Errorf("%s lost its place %s", name, at)
	}
	if *update && !t.Failed() {
		if err := os.WriteFile(file, []byte(strings.Join(lines, "")), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func TestUnitsAreAllowedAsTheNomenclatureSays(t *testing.T) {
	for _, c := range []struct {
		term, unit      mdc.Code
		allowed, listed bool
	}{
		{150456, 262688, true, true},    // SpO2 in percent
		{150456, 266016, false, true},   // in mmHg
		{151708, 266016, true, true},    // etCO2 in mmHg
		{151708, 262688, true, true},    // in percent
		{150021, 265987, true, true},    // a pressure in kPa
		{131330, 266418, false, false},  // an ECG wave: nothing is listed
		{99, 262688, false, false},      // no term
		{1 << 30, 262688, false, false}, // beyond all terms
		{0, 0, false, false},
	} {
		if allowed, listed := mdc.UnitAllowed(c.term, c.unit); allowed != c.allowed || listed != c.listed {
			t.Errorf("%s in %s: allowed %v, listed %v", c.term, c.unit, allowed, listed)
		}
	}
}

func TestUCUMCodesBelongToTheirUnits(t *testing.T) {
	for _, c := range []struct {
		unit mdc.Code
		ucum string
		want bool
	}{{266016, "mm[Hg]", true}, {266016, "mmHg", false}, {262656, "1", true}, {262656, "{unitless}", true}, {262688, "%", true}, {262688, "", false}, {264864, "{beat}/min", true}} {
		u, ok := mdc.LookupUnit(c.unit)
		if !ok || u.HasUCUM(c.ucum) != c.want {
			t.Errorf("%s as %q: %v", c.unit, c.ucum, !c.want)
		}
	}
	if _, ok := mdc.LookupUnit(1); ok {
		t.Error("1 is a unit")
	}
}

func TestLookupsAllocateNothing(t *testing.T) {
	if n := testing.AllocsPerRun(100, func() {
		mdc.Lookup(150456)
		mdc.LookupUnit(262688)
		mdc.LookupName("MDC_PULS_OXIM_SAT_O2")
		mdc.UnitAllowed(150456, 262688)
		mdc.PlaceOf(150456)
		mdc.Code(151728).Current()
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// reference reads a table of the reference, which is not part of the project.
func reference(t *testing.T, name string) []map[string]string {
	t.Helper()
	shared := os.Getenv("GATEWAY_SHARED")
	if shared == "" {
		t.Skip("GATEWAY_SHARED is not set: the reference tables are not part of the project")
	}
	f, err := os.Open(filepath.Join(shared, "reference/ihe-pcd", name))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	rows, err := csv.NewReader(f).ReadAll()
	if err != nil || len(rows) < 100 {
		t.Fatalf("%s: %d rows, %v", name, len(rows), err)
	}
	var list []map[string]string
	for _, r := range rows[1:] {
		row := map[string]string{}
		for i, cell := range r {
			row[rows[0][i]] = cell
		}
		list = append(list, row)
	}
	return list
}

func code(t *testing.T, s string) mdc.Code {
	t.Helper()
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil {
		t.Fatal(err)
	}
	return mdc.Code(n)
}

func TestEveryRowOfTheReferenceIsKnown(t *testing.T) {
	for _, file := range []string{"nomenclature.csv", "events_all.csv"} {
		for _, r := range reference(t, file) {
			ref, c := r["ref_id"], code(t, r["cf_code10"])
			if r["group"] == "UNIT" {
				if u, ok := mdc.LookupUnitName(ref); !ok || u.Code != c {
					t.Errorf("unit %s (%d) is %+v", ref, c, u)
				}
				continue
			}
			term, ok := mdc.Lookup(c)
			if !ok {
				t.Errorf("%s (%d) is unknown", ref, c)
				continue
			}
			named, ok := mdc.LookupName(ref)
			if !ok || named.Code != c && !term.Deprecated() {
				t.Errorf("%s is %+v, want %d", ref, named, c)
			}
			if u := r["unit_mdc_code"]; u != "" {
				if _, ok := mdc.LookupUnit(code(t, u)); !ok {
					t.Errorf("%s has the unit %s, which is unknown", ref, u)
				}
			}
		}
	}
}

func TestEveryAllowedUnitOfTheReferenceIsAllowed(t *testing.T) {
	for _, r := range reference(t, "units_allowed.csv") {
		if r["cf_code10"] == "" {
			continue // a unit that is listed for no term
		}
		term, unit := code(t, r["cf_code10"]), code(t, r["unit_cf_code10"])
		if allowed, _ := mdc.UnitAllowed(term, unit); !allowed {
			t.Errorf("%s in %s is not allowed", r["ref_id"], r["unit_ref_id"])
		}
		u, ok := mdc.LookupUnit(unit)
		if !ok {
			t.Errorf("unit %s is unknown", r["unit_ref_id"])
			continue
		}
		if list := strings.Split(r["unit_ucum_list"], "|"); u.UCUM != "" && list[0] != "" && !slices.ContainsFunc(list, u.HasUCUM) {
			t.Errorf("%s has the UCUM codes %v, of which %s is none", r["unit_ref_id"], list, u.UCUM)
		}
	}
}

func TestNamesThatOnlyLookRightAreAbsent(t *testing.T) {
	shared := os.Getenv("GATEWAY_SHARED")
	if shared == "" {
		t.Skip("GATEWAY_SHARED is not set: the reference notes are not part of the project")
	}
	text, err := os.ReadFile(filepath.Join(shared, "reference/ihe-pcd/nomenclature-notes.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, list, _ := strings.Cut(string(text), "(do not emit)")
	list, _, found := strings.Cut(list, "Working replacements")
	_, list, begun := strings.Cut(list, "superseded):")
	names := strings.FieldsFunc(list, func(r rune) bool { return r == ',' || r == ' ' || r == '\n' })
	if !found || !begun || len(names) < 100 {
		t.Fatalf("the list has %d names", len(names))
	}
	for _, name := range names {
		if term, ok := mdc.LookupName(strings.TrimSuffix(name, ".")); ok {
			t.Errorf("%s is in the table as %d", name, term.Code)
		}
	}
}

func ExampleLookup() {
	term, _ := mdc.Lookup(150456)
	unit, _ := mdc.LookupUnit(term.Unit)
	place, _ := mdc.PlaceOf(term.Code)
	fmt.Println(term.RefID, unit.UCUM, place.VMD, place.Channel)
	fmt.Println(mdc.Code(151728).Current())
	// Output:
	// MDC_PULS_OXIM_SAT_O2 % MDC_DEV_ANALY_SAT_O2_VMD MDC_DEV_ANALY_SAT_O2_CHAN
	// MDC_CONC_AWAY_CO2_ET
}

func BenchmarkLookup(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		mdc.Lookup(150456)
	}
}
