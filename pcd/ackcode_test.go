package pcd

import "testing"

// HL7 v2.6, table 0155 for MSH-15 and MSH-16, and the original mode.
func TestTheCodeIsWhatTheMessageAsksFor(t *testing.T) {
	for _, test := range []struct{ accept, application, a, e, r string }{
		{"AL", "NE", "CA", "CE", "CR"},
		{"AL", "AL", "CA", "CE", "CR"},
		{"NE", "AL", "AA", "AE", "AR"},
		{"", "", "AA", "AE", "AR"},
		{"", "AL", "AA", "AE", "AR"},
		{"SU", "NE", "CA", "", ""},
		{"ER", "NE", "", "CE", "CR"},
		{"ER", "SU", "AA", "CE", "CR"},
		{"NE", "ER", "", "AE", "AR"},
		{"NE", "NE", "", "", ""},
		{"NE", "", "", "", ""},
		{"what", "ever", "", "", ""},
	} {
		for verdict, want := range map[byte]string{'A': test.a, 'E': test.e, 'R': test.r} {
			if got := AckCode(test.accept, test.application, verdict); got != want {
				t.Errorf("MSH-15 %q, MSH-16 %q, %c: %q, want %q", test.accept, test.application, verdict, got, want)
			}
		}
	}
}
