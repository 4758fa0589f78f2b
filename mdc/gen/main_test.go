package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestTheGeneratedTablesAreUpToDate(t *testing.T) {
	want, err := generate("../table")
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile("../tables.go")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("mdc/tables.go is not what mdc/table makes: run go generate ./mdc")
	}
}

// sound is a small table without a mistake.
var sound = map[string]string{
	"terms.csv": `code,ref_id,group,unit,status,replaced_by,display
1,MDC_A,METRIC,10,current,,A
1,MDC_A_OLD,METRIC,10,synonym,,A
2,MDC_B,METRIC,,deprecated,1,B
3,MDC_VMD,VMD,,current,,V
4,MDC_CHAN,CHAN,,current,,C
5,MDC_D,METRIC,10,current,,D
6,MDC_VMD_2,VMD,,current,,V
`,
	"units.csv":       "code,ref_id,status,ucum\n10,MDC_DIM_X,current,x|y\n10,MDC_DIM_X_OLD,synonym,\n",
	"allowed.csv":     "term,unit\n1,10\n",
	"containment.csv": "vmd_number,vmd,channel_number,channel,metric_number,metric,ref_id\n1,3,1,4,1,1,MDC_A\n1,3,1,4,2,5,MDC_D\n",
}

func TestATableThatContradictsItselfIsRefused(t *testing.T) {
	for _, c := range []struct{ file, old, new, says string }{
		{"terms.csv", "", "", ""},
		{"terms.csv", "1,MDC_A_OLD,METRIC,10,synonym", "1,MDC_A_OLD,METRIC,10,current", "two current names"},
		{"terms.csv", "1,MDC_A,METRIC,10", "1,MDC_A,METRIC,11", "unit 11"},
		{"terms.csv", "1,MDC_A,METRIC", "1,MDC_A^B,METRIC", "no reference identifier"},
		{"terms.csv", "1,MDC_A,METRIC", "1,MDC_A,METRICS", "group"},
		{"terms.csv", "deprecated,1", "deprecated,9", "replacement 9 is not current"},
		{"terms.csv", "deprecated,1", "deprecated,", "replacement 0 is not current"},
		{"terms.csv", "deprecated,1", "current,1", "not deprecated"},
		{"terms.csv", "deprecated,1", "withdrawn,1", `status "withdrawn"`},
		{"terms.csv", "1,MDC_A_OLD,", "9,MDC_A_OLD,", "no current name"},
		{"terms.csv", "1,MDC_A,METRIC", "x,MDC_A,METRIC", `row 2: "x" is no code`},
		{"terms.csv", sound["terms.csv"], "code,ref_id,group,unit,status,replaced_by,display\n", "no rows"},
		{"units.csv", "MDC_DIM_X_OLD,synonym", "MDC_DIM_X_OLD,current", "two current names"},
		{"units.csv", "MDC_DIM_X_OLD,synonym", "MDC_DIM_X,synonym", "twice"},
		{"units.csv", "10,MDC_DIM_X_OLD", "11,MDC_DIM_X_OLD", "no current name"},
		{"units.csv", "MDC_DIM_X_OLD", "DIM", "no reference identifier"},
		{"allowed.csv", "1,10", "1,11", "unit 11 of term 1"},
		{"allowed.csv", "1,10", "9,10", "term 9"},
		{"allowed.csv", "1,10", "1,10\n1,10", "twice"},
		{"allowed.csv", "1,10", "1", "wrong number of fields"},
		{"containment.csv", "1,1,MDC_A", "1,1,MDC_X", "not MDC_X"},
		{"containment.csv", "2,5,MDC_D", "1,5,MDC_D", "share the place 1.1.1"},
		{"containment.csv", "2,5,MDC_D", "2,1,MDC_A", "twice"},
		{"containment.csv", "1,3,1,4,2", "1,6,1,4,2", "VMD 1 stands for"},
		{"containment.csv", "1,3,1,4,2", "1,1,1,4,2", "is no VMD"},
		{"containment.csv", "1,3,1,4,2", "1,3,1,3,2", "is no CHAN"},
		{"containment.csv", "1,3,1,4,2", "0,3,1,4,2", "number without an entity"},
		{"containment.csv", "2,5,MDC_D", "0,5,MDC_D", "number without an entity"},
	} {
		dir := t.TempDir()
		for name, text := range sound {
			if name == c.file {
				text = strings.Replace(text, c.old, c.new, 1)
				if c.says != "" && text == sound[name] {
					t.Fatalf("%s: no change", c.says)
				}
			}
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		_, err := generate(dir)
		if c.says == "" && err != nil || c.says != "" && (err == nil || !strings.Contains(err.Error(), c.says)) {
			t.Errorf("%s with %q: error %v", c.file, c.new, err)
		}
	}
	if _, err := generate(t.TempDir()); err == nil {
		t.Error("no tables at all are no error")
	}
}
