package pcd_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/bedside-gateway/gatewayd/pcd"
)

// golden keeps every rule. Its tree, its clocks and its episodic pressure are
// those of an ordinary monitor.
const golden = `MSH|^~\&|GW_TEST^0123456789ABCDEF^EUI-64|HOSPITAL_A|||20260102030405.678+0000||ORU^R01^ORU_R01|a1b2c3d4-0001|P|2.6|||AL|NE||UNICODE UTF-8|en^English^ISO639||IHE_PCD_001^IHE PCD^1.3.6.1.4.1.19376.1.6.1.1.1^ISO
PID|||MRN0001^^^HOSPITAL_A^MR||Test^Patient^^^^^L||19700101|F
PV1||I|ICU^Room 1^Bed 2^HOSPITAL_A
OBR|1||20260102030400-0001^GW_TEST^0123456789ABCDEF^EUI-64|69965^MDC_DEV_MON_PHYSIO_MULTI_PARAM_MDS^MDC|||20260102030400+0000|20260102030430+0000
OBX|1||69965^MDC_DEV_MON_PHYSIO_MULTI_PARAM_MDS^MDC|1.0.0.0|||||||X|||||||FEDCBA9876543210^^FEDCBA9876543210^EUI-64
OBX|2|CWE|68220^MDC_TIME_SYNC_PROTOCOL^MDC|1.0.0.2|532226^MDC_TIME_SYNC_NTPV4^MDC||||||R
OBX|3|DTM|67975^MDC_ATTR_TIME_ABS^MDC|1.0.0.4|20260102040400+0100||||||R|||20260102030400+0000
OBX|4||69798^MDC_DEV_ECG_VMD^MDC|1.1.0.0|||||||X
OBX|5||69799^MDC_DEV_ECG_CHAN^MDC|1.1.1.0|||||||X
OBX|6|NM|147842^MDC_ECG_CARD_BEAT_RATE^MDC|1.1.1.1|72|264864^MDC_DIM_BEAT_PER_MIN^MDC|50-120||||R||||||AMEAS^auto-measurement^MDC
OBX|7||69642^MDC_DEV_ANALY_SAT_O2_VMD^MDC|1.2.0.0|||||||X
OBX|8||69643^MDC_DEV_ANALY_SAT_O2_CHAN^MDC|1.2.1.0|||||||X
OBX|9|NM|150456^MDC_PULS_OXIM_SAT_O2^MDC|1.2.1.1|97|262688^MDC_DIM_PERCENT^MDC^%^%^UCUM|90-100||||R
OBX|10|NM|149530^MDC_PULS_OXIM_PULS_RATE^MDC|1.2.1.2|71|264864^MDC_DIM_BEAT_PER_MIN^MDC|||||R
OBX|11||70686^MDC_DEV_PRESS_BLD_NONINV_VMD^MDC|1.3.0.0|||||||X
OBX|12||70687^MDC_DEV_PRESS_BLD_NONINV_CHAN^MDC|1.3.1.0|||||||X
OBX|13|NM|150021^MDC_PRESS_BLD_NONINV_SYS^MDC|1.3.1.1|121|266016^MDC_DIM_MMHG^MDC|||||R|||20260102025900+0000
`

func wire(text string) []byte { return []byte(strings.ReplaceAll(text, "\n", "\r")) }

func found(b []byte) map[string]int {
	rules := map[string]int{}
	for _, f := range pcd.Validate(b) {
		rules[f.Rule]++
	}
	return rules
}

func TestTheGoldenMessageKeepsEveryRule(t *testing.T) {
	for _, f := range pcd.Validate(wire(golden)) {
		t.Error(f)
	}
}

// A change is an edit of the golden message that breaks one rule and no other.
type change struct{ rule, path, old, new string }

const (
	hr   = "OBX|6|NM|147842^MDC_ECG_CARD_BEAT_RATE^MDC|1.1.1.1|72|264864^MDC_DIM_BEAT_PER_MIN^MDC|50-120||||R||||||AMEAS^auto-measurement^MDC\n"
	sat  = "OBX|9|NM|150456^MDC_PULS_OXIM_SAT_O2^MDC|1.2.1.1|97|262688^MDC_DIM_PERCENT^MDC^%^%^UCUM|90-100||||R\n"
	last = "OBX|13|NM|150021^MDC_PRESS_BLD_NONINV_SYS^MDC|1.3.1.1|121|266016^MDC_DIM_MMHG^MDC|||||R|||20260102025900+0000\n"
	mds  = "OBX|1||69965^MDC_DEV_MON_PHYSIO_MULTI_PARAM_MDS^MDC|1.0.0.0|||||||X|||||||FEDCBA9876543210^^FEDCBA9876543210^EUI-64\n"
)

var changes = []change{
	{"syntax", "", golden, "MSH|^~\\&|x\nno segment\n"},
	{"syntax", "", golden, ""},
	{"segment-end", "", "25900+0000\n", "25900+0000"},
	{"charset", "MSH-18", "|UNICODE UTF-8|", "|ASCII|\u00fc"},
	{"charset", "MSH-18", "Test^Patient", "Te\xfft^Patient"},
	{"charset", "MSH-18", "Test^Patient", "Te\x0bt^Patient"},
	{"charset", "MSH-18", "|UNICODE UTF-8|en^English^ISO639||", "||en^Espa\u00f1ol^ISO639||"},
	{"segment", "segment 4 (PV2)", "OBR|1", "PV2||x\nOBR|1"},
	{"segment", "segment 2 (SFT)", "PID|||", "SFT|x\nPID|||"},
	{"segment", "segment 3 (UAC)", "PV1||", "UAC|x\nPV1||"},
	{"segment", "segment 3 (NTE)", "PV1||", "NTE|1||x\nPV1||"},
	{"segment", "segment 6 (TQ1)", "OBX|2|", "TQ1|1\nOBX|2|"},
	{"segment", "segment 2 (PRT)", "PID|||", "PRT|x\nPID|||"},
	{"segment", "segment 4 (NK1)", "OBR|1", "NK1|1\nOBR|1"},
	{"orc", "segment 4 (ORC)", "OBR|1", "ORC|RE\nOBR|1"},
	{"several-patients", "segment 4 (PID)", "OBR|1", "PID|||MRN0002^^^HOSPITAL_A^MR||Other^^^^^^L\nOBR|1"},
	{"several-patients", "segment 4 (PV1)", "OBR|1", "PV1||I|B\nOBR|1"},
	{"pv1-without-pid", "segment 2 (PV1)", "PID|||MRN0001^^^HOSPITAL_A^MR||Test^Patient^^^^^L||19700101|F\n", ""},
	{"obr-missing", "", golden[strings.Index(golden, "OBR|"):], ""},
	{"nte-count", "segment 12 (NTE)", "OBX|7|", "NTE|1||a\nNTE|2||b\nOBX|7|"},
	{"delimiters", "MSH-2", `MSH|^~\&|`, `MSH|^~\&#|`},
	{"msh-forbidden", "MSH-8", "+0000||ORU", "+0000|x|ORU"},
	{"msh-forbidden", "MSH-22", "^ISO\nPID", "^ISO|x\nPID"},
	{"msh-3", "MSH-3", "GW_TEST^0123456789ABCDEF^EUI-64|HOSPITAL_A|||", "GW_TEST|HOSPITAL_A|||"},
	{"hd", "MSH-5", "|HOSPITAL_A|||2026", "|HOSPITAL_A|AM^1.2.3||2026"},
	{"hd", "MSH-4", "|HOSPITAL_A|||2026", "|THE HOSPITAL OF ST. ANNE|||2026"},
	{"eui-64", "MSH-3", "MSH|^~\\&|GW_TEST^0123456789ABCDEF^EUI-64", "MSH|^~\\&|GW_TEST^0123456789ABCDE^EUI-64"},
	{"eui-64", "OBX[1]-18", "FEDCBA9876543210^EUI-64", "fedcba9876543210^EUI-64"},
	{"eui-64-zero", "OBX[1]-18", "FEDCBA9876543210^^FEDCBA9876543210^EUI-64", "0^^0000000000000000^EUI-64"},
	{"time-missing", "MSH-7", "|20260102030405.678+0000|", "||"},
	{"time-missing", "OBR[1]-7", "|20260102030400+0000|20260102030430+0000", "||20260102030430+0000"},
	{"time-form", "MSH-7", "|20260102030405.678+0000|", "|202601020304+0000|"},
	{"time-form", "PID-7", "|19700101|", "|19701301|"},
	{"time-form", "OBX[3]-5", "|20260102040400+0100|", "|20260102+0100|"},
	{"time-zone", "MSH-7", "|20260102030405.678+0000|", "|20260102030405|"},
	{"time-zone", "OBR[1]-8", "|20260102030430+0000\n", "|20260102030430\n"},
	{"time-zone", "OBX[3]-5", "|20260102040400+0100|", "|20260102040400|"},
	{"time-zone", "OBX[13]-14", "|20260102025900+0000", "|20260102025900"},
	{"msh-9", "MSH-9", "ORU^R01^ORU_R01", "ORU^R01"},
	{"msh-9", "MSH-9", "ORU^R01^ORU_R01", "ORU^R40^ORU_R40"},
	{"msh-10", "MSH-10", "|a1b2c3d4-0001|", "||"},
	{"msh-10", "MSH-10", "|a1b2c3d4-0001|", "|" + strings.Repeat("x", 200) + "|"},
	{"msh-10-length", "MSH-10", "|a1b2c3d4-0001|", "|a1b2c3d4-0001-0001-0001|"},
	{"msh-11", "MSH-11", "|P|2.6|", "|X|2.6|"},
	{"msh-12", "MSH-12", "|P|2.6|", "|P|2.5.1|"},
	{"msh-13", "MSH-13", "|2.6|||AL", "|2.6|7||AL"},
	{"msh-ack", "MSH-15", "|AL|NE|", "|NE|AL|"},
	{"msh-ack-none", "MSH-15", "|AL|NE|", "|NE|NE|"},
	{"msh-ack-none", "MSH-15", "|AL|NE|", "|||"},
	{"msh-17", "MSH-17", "|NE||UNICODE", "|NE|Germany|UNICODE"},
	{"msh-18", "MSH-18", "|UNICODE UTF-8|", "|UTF-8|"},
	{"msh-18", "MSH-18", "|UNICODE UTF-8|", "|UNICODE UTF-8~ASCII|"},
	{"msh-21", "MSH-21", "1.3.6.1.4.1.19376.1.6.1.1.1", "2.16.840.1.113883.9.n.m"},
	{"pid-forbidden", "PID-1", "PID|||", "PID|1||"},
	{"pid-3", "PID-3", "|MRN0001^^^HOSPITAL_A^MR|", "||"},
	{"pid-3", "PID-3", "|MRN0001^^^HOSPITAL_A^MR|", "|^^^HOSPITAL_A^MR|"},
	{"pid-3-length", "PID-3", "MRN0001", "MRN0001000200030004"},
	{"pid-3-type", "PID-3", "^HOSPITAL_A^MR|", "^HOSPITAL_A|"},
	{"pid-5", "PID-5", "Test^Patient^^^^^L", "Test^Patient"},
	{"pid-5", "PID-5", "Test^Patient^^^^^L", "Test^Patient^^^^^U"},
	{"pid-8", "PID-8", "|19700101|F", "|19700101|female"},
	{"pid-31", "PID-31", "|19700101|F", "|19700101|F|||||||||||||||||||||||yes"},
	{"pv1-forbidden", "PV1-1", "PV1||I", "PV1|1|I"},
	{"pv1-2", "PV1-2", "PV1||I", "PV1||"},
	{"pv1-51", "PV1-51", "Bed 2^HOSPITAL_A\n", "Bed 2^HOSPITAL_A" + strings.Repeat("|", 48) + "X\n"},
	{"obr-1", "OBR[1]-1", "OBR|1|", "OBR|2|"},
	{"obr-3", "OBR[1]-3", "20260102030400-0001^GW_TEST^0123456789ABCDEF^EUI-64", "20260102030400-0001"},
	{"obr-4", "OBR[1]-4", "|69965^MDC_DEV_MON_PHYSIO_MULTI_PARAM_MDS^MDC|||", "|69965|||"},
	{"obr-forbidden", "OBR[1]-5", "MDS^MDC|||20260102030400", "MDS^MDC|S||20260102030400"},
	{"obr-interval", "OBR[1]-8", "|20260102030430+0000\n", "|20260102030400+0000\n"},
	{"ei", "OBX[13]-18", last, strings.TrimSuffix(last, "\n") + "||||7^^1.2.3\n"},
	{"cwe", "OBX[13]-20", last, strings.TrimSuffix(last, "\n") + "||||||460500\n"},
	{"cwe", "OBX[2]-5", "|532226^MDC_TIME_SYNC_NTPV4^MDC|", "|532226^^MDC|"},
	{"cwe", "OBX[2]-5", "|532226^MDC_TIME_SYNC_NTPV4^MDC|", "|NTP^NTP^MDC|"},
	{"code-unknown", "OBX[9]-3", "150456^MDC_PULS_OXIM_SAT_O2^MDC", "150459^MDC_SOMETHING^MDC"},
	{"code-deprecated", "OBX[13]-3", last, strings.ReplaceAll(strings.ReplaceAll(last, "150021^MDC_PRESS_BLD_NONINV_SYS", "151728^MDC_AWAY_CO2_ET"), "|||20260102025900+0000", "")},
	{"code-synonym", "OBX[6]-3", "MDC_ECG_CARD_BEAT_RATE", "MDC_ECG_HEART_RATE"},
	{"code-name", "OBX[9]-3", "150456^MDC_PULS_OXIM_SAT_O2^", "150456^MDC_PULS_OXIM_SATO2^"},
	{"code-name", "OBX[2]-5", "532226^MDC_TIME_SYNC_NTPV4^", "532226^MDC_TIME_SYNC_NTPV3^"},
	{"code-name", "OBX[9]-6", "262688^MDC_DIM_PERCENT^", "262688^MDC_DIM_PRECENT^"},
	{"code-name", "OBX[4]-3", "69798^MDC_DEV_ECG_VMD", "4262^MDC_DEV_ECG_VMD"},
	{"private-code", "OBX[9]-3", "150456^MDC_PULS_OXIM_SAT_O2^MDC", "123455^MDCX_ACME_THING^MDC"},
	{"private-code", "OBX[9]-3", "150456^MDC_PULS_OXIM_SAT_O2^MDC", "192512^ACME_THING^MDC"},
	{"private-code", "OBX[9]-3", "150456^MDC_PULS_OXIM_SAT_O2^MDC", "0^ACME_THING^MDC"},
	{"obx-1", "OBX[13]-1", "OBX|13|", "OBX|14|"},
	{"obx-2", "OBX[13]-2", "OBX|13|NM|", "OBX|13|ZZ|"},
	{"obx-2", "OBX[13]-2", "OBX|13|NM|", "OBX|13||"},
	{"obx-3", "OBX[13]-3", "|150021^MDC_PRESS_BLD_NONINV_SYS^MDC|", "|SYS^systolic^MDC|"},
	{"obx-4", "OBX[13]-4", "|1.3.1.1|", "|1.3.1|"},
	{"obx-4", "OBX[13]-4", "|1.3.1.1|", "|1.3.1.x|"},
	{"obx-4", "OBX[13]-4", "|1.3.1.1|", "|1.3.1.01|"},
	{"obx-4", "OBX[13]-4", "|1.3.1.1|", "|1.3.1.123456789012345678|"},
	{"obx-4-unique", "OBX[10]-4", "|1.2.1.2|", "|1.2.1.1|"},
	{"obx-4-order", "OBX[10]-4", sat, strings.Replace(sat, "|1.2.1.1|", "|1.2.1.7|", 1)},
	{"obx-4-parent", "OBX[13]-4", "|1.3.1.1|", "|1.3.2.1|"},
	{"obx-4-parent", "OBX[13]-4", "|1.3.1.1|", "|1.3.1.1.1|"},
	{"obx-4-level", "OBX[8]-4", "69643^MDC_DEV_ANALY_SAT_O2_CHAN^MDC", "69642^MDC_DEV_ANALY_SAT_O2_VMD^MDC"},
	{"obx-4-level", "OBX[8]-4", "69643^MDC_DEV_ANALY_SAT_O2_CHAN^MDC", "150456^MDC_PULS_OXIM_SAT_O2^MDC"},
	{"several-mds", "", last, last + strings.Replace(strings.Replace(mds, "OBX|1|", "OBX|14|", 1), "1.0.0.0", "2.0.0.0", 1)},
	{"device-row", "OBX[7]-11", "OBX|7||69642", "OBX|7|ST|69642"},
	{"device-row", "OBX[7]-11", "|1.2.0.0|||||||X", "|1.2.0.0|||||||R"},
	{"device-row", "OBX[7]-11", "|1.2.0.0|||||||X", "|1.2.0.0|5||||||X"},
	{"obx-5-missing", "OBX[9]-5", "|97|", "||"},
	{"obx-5-missing", "OBX[9]-5", sat, strings.Replace(sat, "|97|262688^MDC_DIM_PERCENT^MDC^%^%^UCUM|90-100||||R", "||262688^MDC_DIM_PERCENT^MDC^%^%^UCUM|90-100||||X", 1)},
	{"obx-5-forbidden", "OBX[9]-5", sat, strings.Replace(sat, "||||R", "||||X", 1)},
	{"datatype", "OBX[9]-5", "|97|", "|97%|"},
	{"datatype", "OBX[9]-5", "|97|", "|9.7e1|"},
	{"datatype", "OBX[9]-5", sat, strings.Replace(sat, "|97|", "|>97|", 1)},
	{"datatype", "OBX[9]-5", sat, strings.NewReplacer("|NM|", "|SN|", "|97|", "|about^97|").Replace(sat)},
	{"datatype", "OBX[9]-5", sat, strings.NewReplacer("|NM|", "|ST|", "|97|", "|a^b|").Replace(sat)},
	{"datatype", "OBX[9]-5", sat, strings.NewReplacer("|NM|", "|NA|", "|97|", "|1^x|").Replace(sat)},
	{"datatype", "OBX[9]-5", sat, strings.NewReplacer("|NM|", "|NR|", "|97|", "|1^2^3|").Replace(sat)},
	{"datatype", "OBX[9]-5", sat, strings.NewReplacer("|NM|", "|TM|", "|97|", "|2560|").Replace(sat)},
	{"obx-6-missing", "OBX[9]-6", "|262688^MDC_DIM_PERCENT^MDC^%^%^UCUM|", "||"},
	{"unit-ucum-only", "OBX[9]-6", "|262688^MDC_DIM_PERCENT^MDC^%^%^UCUM|", "|%^%^UCUM|"},
	{"unit-system", "OBX[9]-6", "|262688^MDC_DIM_PERCENT^MDC^%^%^UCUM|", "|%|"},
	{"unit-system", "OBX[9]-6", "|262688^MDC_DIM_PERCENT^MDC^%^%^UCUM|", "|%^%^UCUM^262688^MDC_DIM_PERCENT^MDC|"},
	{"unit-allowed", "OBX[9]-6", "|262688^MDC_DIM_PERCENT^MDC^%^%^UCUM|", "|266016^MDC_DIM_MMHG^MDC|"},
	{"unit-ucum", "OBX[9]-6", "^MDC^%^%^UCUM|", "^MDC^pct^pct^UCUM|"},
	{"obx-7", "OBX[9]-7", "|90-100|", "|90 - 100|"},
	{"obx-8", "OBX[9]-8", "|90-100|||", "|90-100|WRONG||"},
	{"obx-11", "OBX[9]-11", sat, strings.Replace(sat, "||||R", "||||", 1)},
	{"obx-11-flags", "OBX[9]-11", sat, strings.Replace(sat, "|97|262688^MDC_DIM_PERCENT^MDC^%^%^UCUM|90-100||||R", "||262688^MDC_DIM_PERCENT^MDC^%^%^UCUM|90-100|INV|||R", 1)},
	{"obx-11-flags", "OBX[9]-11", sat, strings.Replace(sat, "|97|262688^MDC_DIM_PERCENT^MDC^%^%^UCUM|90-100||||R", "||262688^MDC_DIM_PERCENT^MDC^%^%^UCUM|90-100|QUES|||X", 1)},
	{"obx-14-future", "OBX[13]-14", "|20260102025900+0000", "|20260102030431+0000"},
	{"obx-14-early", "OBX[9]-14", sat, strings.TrimSuffix(sat, "\n") + "|||20260102025900+0000\n"},
	{"obx-17", "OBX[6]-17", "AMEAS^auto-measurement^MDC", "AMEAS^auto measurement^MDC"},
	{"obx-17", "OBX[6]-17", "AMEAS^auto-measurement^MDC", "AMEAS^MDC"},
	{"obx-18", "OBX[1]-18", "|FEDCBA9876543210^^FEDCBA9876543210^EUI-64", ""},
	{"obx-18", "OBX[1]-18", "|FEDCBA9876543210^^FEDCBA9876543210^EUI-64", "|FEDCBA9876543210^^FEDCBA9876543210^EUI-64~7^^1.2.3^ISO"},
	{"obx-19", "OBX[13]-19", last, strings.TrimSuffix(last, "\n") + "|||||20260102025901+0000\n"},
	{"obx-forbidden", "OBX[9]-13", sat, strings.TrimSuffix(sat, "\n") + "||x\n"},
	{"time-sync", "", golden, strings.NewReplacer("68220^MDC_TIME_SYNC_PROTOCOL", "67880^MDC_ATTR_ID_MODEL", "67975^MDC_ATTR_TIME_ABS", "67886^MDC_ATTR_ID_SOFT").Replace(golden)},
}

func TestEveryRuleIsBrokenByAMessageThatBreaksNoOther(t *testing.T) {
	tried := map[string]bool{}
	for _, c := range changes {
		tried[c.rule] = true
		name := c.rule + " " + c.path
		text := strings.Replace(golden, c.old, c.new, 1)
		if text == golden {
			t.Errorf("%s: the change changes nothing", name)
			continue
		}
		list := pcd.Validate(wire(text))
		if len(list) == 0 {
			t.Errorf("%s: nothing found in the change\n%q to\n%q", name, c.old, c.new)
		}
		for _, f := range list {
			if f.Rule != c.rule || f.Path != c.path {
				t.Errorf("%s: found %v", name, f)
			}
		}
	}
	for _, r := range pcd.Rules() {
		if !tried[r.Name] {
			t.Errorf("no message breaks the rule %s", r.Name)
		}
		if r.Name == "" || r.Text == "" {
			t.Errorf("a rule has no name or text: %+v", r)
		}
	}
}

func TestFormsThatTheProfileAllowsAreNotFound(t *testing.T) {
	for name, c := range map[string][2]string{
		"no patient group": {"PID|||MRN0001^^^HOSPITAL_A^MR||Test^Patient^^^^^L||19700101|F\nPV1||I|ICU^Room 1^Bed 2^HOSPITAL_A\n", ""},
		"unknown patient": {"PID|||MRN0001^^^HOSPITAL_A^MR||Test^Patient^^^^^L||19700101|F",
			"PID|||UNKNOWN^^^^U||^^^^^^U||||||||||||||||||||||||||Y"},
		"a validated value":      {"|||||R|||20260102025900+0000", "|||||F|||20260102025900+0000"},
		"a questionable value":   {"|90-100||||R", "|90-100|QUES|||R"},
		"two flags":              {"|90-100||||R", "|90-100|H~ALACT|||R"},
		"an invalid value":       {"|97|262688^MDC_DIM_PERCENT^MDC^%^%^UCUM|90-100||||R", "||262688^MDC_DIM_PERCENT^MDC^%^%^UCUM|90-100|INV|||X"},
		"a calibrating one":      {"|97|262688^MDC_DIM_PERCENT^MDC^%^%^UCUM|90-100||||R", "||262688^MDC_DIM_PERCENT^MDC^%^%^UCUM|90-100|CAL|||R"},
		"a private value":        {"150456^MDC_PULS_OXIM_SAT_O2^MDC", "0^MDCX_ACME_THING^MDC^123^THING^L"},
		"a vendor's system":      {"150456^MDC_PULS_OXIM_SAT_O2^MDC", "123455^MDCX_ACME_THING^L"},
		"a SNOMED group":         {"|69965^MDC_DEV_MON_PHYSIO_MULTI_PARAM_MDS^MDC|||2026", "|182777000^monitoring of patient^SCT|||2026"},
		"negative limits":        {"|90-100|", "|-5--1.5|"},
		"an upper limit":         {"|90-100|", "|<100|"},
		"an inequality":          {"OBX|13|NM|150021^MDC_PRESS_BLD_NONINV_SYS^MDC|1.3.1.1|121|", "OBX|13|SN|150021^MDC_PRESS_BLD_NONINV_SYS^MDC|1.3.1.1|>^300|"},
		"OBX-19 as OBX-14":       {"|20260102025900+0000", "|20260102025900+0000|||||20260102025900+0000"},
		"a body site":            {"|20260102025900+0000", "|20260102025900+0000||||||460500^MDC_UPEXT_FINGER^MDC"},
		"an offset of -0000":     {"|20260102030405.678+0000|", "|20260102030405.678-0000|"},
		"facets of a value":      {"|1.3.1.1|", "|1.3.1.1|121|266016^MDC_DIM_MMHG^MDC|||||R\nOBX|14|NM|150021^MDC_PRESS_BLD_NONINV_SYS^MDC|1.3.1.1.1|"},
		"an NTE after an OBX":    {"OBX|7|", "NTE|1||note\nOBX|7|"},
		"a point in time":        {"|20260102030400+0000|20260102030430+0000", "|20260102030400+0000"},
		"ISO-8859-1 in its name": {"|UNICODE UTF-8|", "|8859/1|"},
	} {
		t.Run(name, func(t *testing.T) {
			text := strings.Replace(golden, c[0], c[1], 1)
			if text == golden {
				t.Fatal("the change changes nothing")
			}
			for _, f := range pcd.Validate(wire(text)) {
				t.Error(f)
			}
		})
	}
}

func TestRowsMayStandInTwoBlocksDevicesFirst(t *testing.T) {
	lines := strings.SplitAfter(strings.TrimSuffix(golden, "\n"), "\n")
	head, rows := lines[:4], lines[4:]
	rows[len(rows)-1] += "\n"
	var devices, values []string
	for _, r := range rows {
		if strings.Contains(r, "|||||||X") {
			devices = append(devices, r)
		} else {
			values = append(values, r)
		}
	}
	text := strings.Join(head, "")
	for i, r := range slices.Concat(devices, values) {
		_, rest, _ := strings.Cut(strings.TrimPrefix(r, "OBX|"), "|")
		text += fmt.Sprintf("OBX|%d|%s", i+1, rest)
	}
	for _, f := range pcd.Validate(wire(text)) {
		t.Error(f)
	}
}

func TestPublishedSamplesBreakTheRulesTheyAreKnownFor(t *testing.T) {
	for name, want := range map[string][]string{
		"tf2r11_E1.1_pcd01_physio_monitor.hl7":    {"code-name", "code-synonym", "device-row", "msh-10-length", "msh-3", "obr-3", "obx-18", "obx-5-forbidden", "time-sync", "time-zone"},
		"tf2r11_E1.2_pcd01_episodic_nibp.hl7":     {"obx-18", "time-sync", "time-zone", "unit-ucum-only"},
		"tf2r11_J2_pcd01_ws_bp.hl7":               {"msh-21", "msh-ack", "obx-11", "obx-2", "obx-4", "obx-4-parent", "obx-5-missing", "obx-forbidden", "time-sync"},
		"ipf_pcd01_request2_aware_gateway.hl7":    {"msh-13", "obx-4-parent", "time-zone", "unit-ucum-only", "obx-4-order", "code-synonym"},
		"ipf_pcd01_maximum_request.hl7":           {"msh-13", "msh-ack", "nte-count", "obx-1", "obx-17", "unit-system"},
		"ipf_pcd01_request.hl7":                   {"msh-ack", "obx-2", "obx-4"},
		"ipf_wan_bp.hl7":                          {"msh-21", "msh-ack", "obx-11", "obx-14-future", "obx-4", "time-zone"},
		"ipf_wan_oximeter.hl7":                    {"obx-14-early", "obx-4", "obx-4-parent"},
		"ipf_wan_scale.hl7":                       {"several-mds", "time-zone"},
		"ipf_wan_fitness-and-activity.hl7":        {"obx-1", "obx-4"},
		"ipf_wan_fitness.hl7":                     {"obx-4", "msh-21"},
		"ipf_wan_glucose.hl7":                     {"obx-4", "msh-21"},
		"ipf_wan_thermometer.hl7":                 {"obx-4", "msh-21"},
		"tf2r11_E3.1_pcd04_spo2_low_start.hl7":    {"msh-9", "msh-21", "eui-64"},
		"tf2r11_E3.2_pcd04_advisory_livedata.hl7": {"msh-9", "obx-forbidden", "cwe"},
		"tf2r11_E3.2_pcd04_occlusion_start.hl7":   {"msh-9", "eui-64"},
		"tf2r11_E3.2_pcd04_occlusion_end.hl7":     {"msh-9"},
		"tf2r11_E2.3_pcd03_dopamine_order.hl7":    {"msh-9", "msh-12", "orc", "segment", "obr-missing"},
		"tf2r11_M1.2.2_pcd10_delivery_start.hl7":  {"msh-9", "datatype", "obr-4"},
		"ipf_ack_aa.hl7":                          {"msh-9", "segment", "obr-missing"},
		"ipf_ack_ce_err.hl7":                      {"msh-9", "segment", "obr-missing"},
	} {
		t.Run(name, func(t *testing.T) {
			got := found(published(t, name))
			for _, rule := range want {
				if got[rule] == 0 {
					t.Errorf("%s not found, only %v", rule, slices.Sorted(maps.Keys(got)))
				}
			}
		})
	}
}

func TestTheMessageWithSeededErrorsShowsThem(t *testing.T) {
	const seeded = `MSH|^~\&|MINDRAY_A7^00A037002A01E240^EUI-64|MINDRAY|||20180115171714-0500||ORU^R01^ORU_R01|375|P|2.6|||AL|NE||UNICODE UTF-8|||IHE_PCD_001^IHE PCD^1.3.6.1.4.1.19376.1.6.1.1.1^ISO
PID|||HO2009001^^^AA1^PI||Hon^Albert^^^^^L|Adams^^^^^^L|19610101000000-0600|M|||15 N Saguaro^^Tucson^AZ^85701^^M
PV1||I|HO Surgery^OR^1^MINDRAY
OBR|1|375^MINDRAY_A7^00A037002A01E240^EUI-64|375^MINDRAY_A7^00A037002A01E240^EUI-64|182777000^monitoring of patient^SCT|||20180115171714-0500
OBX|1||69965^MDC_DEV_MON_PHYSIO_MULTI_PARAM_MDS^MDC|1.0.0.0|||||||X
OBX|2||69854^MDC_DEV_METER_PRESS_BLD_VMD^MDC|1.13.0.0|||||||X
OBX|3||69855^MDC_DEV_METER_PRESS_BLD_CHAN^MDC|1.13.1.0|||||||X
OBX|4|NM|150033^MDC_PRESS_BLD_ART_SYS^MDC|1.13.1.1|108|266016^MDC_DIM_MMHG^MDC|||||R
OBX|5|NM|150034^MDC_PREeSS_BLD_ART_DIA^MDC|1.13.1.2|73|266016^MDC_DIM_MMHG^MDC|||||R
OBX|6|NM|150035^MDC_PRESS_BLD_ART_MEAN^MDC|1.13.1.3|91|266016^MDC_DdIM_MMHG^MDC|||||R
OBX|13|NM|157872^MDC_VOL_FLUID_TBI_REMAIN^MDC|1.1.2.7|0|263762^MDC_DIM_MILLI_L^MDC^ml^ml^UCUM|||||R|||20180115165814-0500|||||20180115165814-0500
OBR|2|375^MINDRAY_A7^00A037002A01E240^EUI-64|375^MINDRAY_A7^00A037002A01E240^EUI-64|182777000^monitoring of patient^SCT|||20180115171714-0500
OBX|1||69965^MDC_DEV_MON_PHYSIO_MULTI_PARAM_MDS^MDC|1.0.0.0|||||||X
`
	got := found(wire(seeded))
	want := map[string]int{"code-name": 2, "obx-1": 2, "obx-4-order": 1, "obx-4-parent": 1, "unit-ucum": 1, "obx-18": 2, "time-sync": 1}
	if !maps.Equal(got, want) {
		t.Errorf("found %v, want %v", got, want)
	}
}

func TestFindingsQuoteNoPatient(t *testing.T) {
	text := strings.NewReplacer("MRN0001", "CANARY", "Test^Patient", "CANARY^CANARY", "|F\n", "|CANARY\n", "|19700101|", "|CANARY|",
		"|97|", "|CANARY^CANARY|", "|71|", "|CANARY|", "AMEAS^auto-measurement^MDC", "CANARY^CANARY^MDC", "|1.3.1.1|", "|CANARY|", "150456^MDC", "150456^CANARY").Replace(golden)
	list := pcd.Validate(wire(text))
	if len(list) < 6 {
		t.Fatalf("found only %v", list)
	}
	for _, f := range list {
		if strings.Contains(f.String(), "CANARY") {
			t.Errorf("a finding quotes the message: %v", f)
		}
	}
}

func TestAHostileMessageCostsNoMoreThanItsSize(t *testing.T) {
	text := wire(golden + strings.Repeat("OBX||x|||||||||||||\n", 5_000))
	if n := len(pcd.Validate(text)); n != 1000 {
		t.Errorf("%d findings, want the first 1000", n)
	}
}

func FuzzValidate(f *testing.F) {
	f.Add(wire(golden))
	for _, c := range changes {
		f.Add(wire(strings.Replace(golden, c.old, c.new, 1)))
	}
	known := map[string]pcd.Severity{}
	for _, r := range pcd.Rules() {
		known[r.Name] = r.Severity
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		before := string(b)
		for _, finding := range pcd.Validate(b) {
			if s, ok := known[finding.Rule]; !ok || s != finding.Severity || finding.Text == "" {
				t.Fatalf("finding %+v", finding)
			}
		}
		if string(b) != before {
			t.Fatal("Validate changed the message")
		}
	})
}

func BenchmarkValidate(b *testing.B) {
	text := wire(golden)
	b.SetBytes(int64(len(text)))
	b.ReportAllocs()
	for b.Loop() {
		if len(pcd.Validate(text)) != 0 {
			b.Fatal("findings")
		}
	}
}
