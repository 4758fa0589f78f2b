package pcd_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bedside-gateway/gatewayd/hl7"
	"github.com/bedside-gateway/gatewayd/pcd"
)

const ackHeader = `MSH|^~\&|PLATFORM||GW|H|20260102030405+0000||ACK^R01^ACK|R1|P|2.6` + "\r"

func TestAnswersAreReadAsReceiversWriteThem(t *testing.T) {
	for _, c := range []struct {
		name, text string
		want       pcd.Ack
	}{
		{"accepted", ackHeader + "MSA|CA|42\r", pcd.Ack{Code: "CA", ControlID: "42"}},
		{"accepted by an application", ackHeader + "MSA|AA|42|\r", pcd.Ack{Code: "AA", ControlID: "42"}},
		{"with LF and without a last end", strings.ReplaceAll(ackHeader, "\r", "\n") + "MSA|CA|42", pcd.Ack{Code: "CA", ControlID: "42"}},
		{"with other separators", "MSH*:+!%*P\rMSA*CE*42\rERR***102:Data type error*E\r",
			pcd.Ack{Code: "CE", ControlID: "42", Errors: []pcd.AckError{{Code: "102", Text: "Data type error", Severity: "E"}}}},
		{"with an empty tail", ackHeader + "MSA|CE|42\rERR|||100|E|||Missing segment\r",
			pcd.Ack{Code: "CE", ControlID: "42", Errors: []pcd.AckError{{Code: "100", Severity: "E", Diagnostic: "Missing segment"}}}},
		{"with a location", ackHeader + "MSA|AE|42\rERR||OBX^6^23^1^1^|102^Data type error|E|9001^x||d|u\r",
			pcd.Ack{Code: "AE", ControlID: "42", Errors: []pcd.AckError{{Location: "OBX^6^23^1^1^", Code: "102", Text: "Data type error", Severity: "E", Application: "9001", Diagnostic: "d", User: "u"}}}},
		{"in the old form of ERR", ackHeader + "MSA|AR|42\rERR|PID^1^3^204&Unknown key\r",
			pcd.Ack{Code: "AR", ControlID: "42", Errors: []pcd.AckError{{Code: "204", Text: "Unknown key"}}}},
		{"two errors", ackHeader + "MSA|CR|42\rERR|||202|E\rERR|||203|E\r",
			pcd.Ack{Code: "CR", ControlID: "42", Errors: []pcd.AckError{{Code: "202", Severity: "E"}, {Code: "203", Severity: "E"}}}},
		{"without a control ID", ackHeader + "MSA|CA\r", pcd.Ack{Code: "CA"}},
	} {
		got, err := pcd.ParseAck([]byte(c.text))
		if err != nil || got.Code != c.want.Code || got.ControlID != c.want.ControlID || !slices.Equal(got.Errors, c.want.Errors) {
			t.Errorf("%s: %+v, %v", c.name, got, err)
		}
	}
}

func TestWhatIsNoAnswerIsRefusedWithoutQuotingIt(t *testing.T) {
	for name, text := range map[string]string{
		"nothing": "", "noise": "SECRET", "a message": ackHeader + "PID|||SECRET\r", "an unknown code": ackHeader + "MSA|SECRET|42\r",
		"a small code": ackHeader + "MSA|aa|SECRET\r", "too long": ackHeader + "MSA|CA|42\r" + strings.Repeat("ERR|SECRET\r", 200_000),
	} {
		if a, err := pcd.ParseAck([]byte(text)); err == nil || strings.Contains(err.Error(), "SECRET") {
			t.Errorf("%s: %+v, %v", name, a, err)
		}
	}
}

func TestPublishedAnswersAreUnderstood(t *testing.T) {
	a, err := pcd.ParseAck(published(t, "ipf_ack_aa.hl7"))
	if err != nil || !a.Accepted() || a.ControlID != "MSGID1234" {
		t.Errorf("%+v, %v", a, err)
	}
	a, err = pcd.ParseAck(published(t, "ipf_ack_ce_err.hl7"))
	if err != nil || !a.Retry() || len(a.Errors) != 1 || a.Reason() != "100 (segment sequence error)" {
		t.Errorf("%+v, %v, %s", a, err, a.Reason())
	}
}

func TestCodesSayWhatBecomesOfTheMessage(t *testing.T) {
	for code, want := range map[string]string{
		"AA": "accepted application", "CA": "accepted accept", "AE": "retry application", "CE": "retry accept", "AR": "rejected application", "CR": "rejected accept", "": " application", "XX": " application",
	} {
		a := pcd.Ack{Code: code}
		got := ""
		if a.Accepted() {
			got += "accepted"
		}
		if a.Retry() {
			got += "retry"
		}
		if a.Rejected() {
			got += "rejected"
		}
		if a.Enhanced() {
			got += " accept"
		} else {
			got += " application"
		}
		if got != want {
			t.Errorf("%s is %q, want %q", code, got, want)
		}
	}
}

func TestAnAnswerBelongsToItsControlID(t *testing.T) {
	const long = "0123456789012345678901234567"
	for _, c := range []struct {
		ack, id string
		cut     bool
		want    bool
	}{
		{"42", "42", false, true}, {"42", "43", true, false}, {"", "", true, false}, {"", "42", true, false},
		{long[:20], long, false, false}, {long[:20], long, true, true}, {long[:19], long, true, false}, {long, long, false, true},
		{long[:20], long[:20], false, true},
	} {
		if got := (pcd.Ack{ControlID: c.ack}).Answers(c.id, c.cut); got != c.want {
			t.Errorf("an answer to %q counts for %q (cut %v): %v", c.ack, c.id, c.cut, got)
		}
	}
}

func TestAReasonHoldsNoTextOfTheReceiver(t *testing.T) {
	a := pcd.Ack{Errors: []pcd.AckError{
		{Code: "101", Text: "SECRET", Location: "PID^1^3", Diagnostic: "SECRET"}, {Code: "SECRET"}, {User: "SECRET", Location: "secret"},
	}}
	if got := a.Reason(); got != "101 (required field missing) at PID^1^3; an error code that HL7 table 0357 does not have; no error code" {
		t.Errorf("reason %q", got)
	}
}

func TestAnAnswerIsBuiltFromTheMessageItAnswers(t *testing.T) {
	o := pcd.AckOptions{ControlID: "R1", Now: start}
	b, err := pcd.AppendAck(nil, wire(golden), "CA", o)
	if err != nil {
		t.Fatal(err)
	}
	want := `MSH|^~\&|||GW_TEST^0123456789ABCDEF^EUI-64|HOSPITAL_A|20260102030400+0000||ACK^R01^ACK|R1|P|2.6|||NE|NE||UNICODE UTF-8` + "\r" + "MSA|CA|a1b2c3d4-0001\r"
	if string(b) != want {
		t.Errorf("built\n%q\nwant\n%q", b, want)
	}
	o.Application, o.EUI64 = "PLATFORM", 0x1122334455667788
	o.Errors = []pcd.AckError{{Location: "OBX^1^5", Code: "102", User: "a|b"}, {Location: "SECRET!", Code: "207", Severity: "F", Text: "x"}}
	b, err = pcd.AppendAck([]byte("before"), []byte("MSH*:+!%*GW:!S!*H*RA%x*RF*20260102030405+0000**ORU:R40*4!F!2*T*2.6\r"), "CR", o)
	if err != nil {
		t.Fatal(err)
	}
	want = `beforeMSH|^~\&|PLATFORM^1122334455667788^EUI-64|RF|GW^:|H|20260102030400+0000||ACK^R40^ACK|R1|T|2.6|||NE|NE` + "\r" +
		"MSA|CR|4*2\r" + `ERR||OBX^1^5|102^data type error^HL70357|E||||a\F\b` + "\r" + "ERR|||207^x^HL70357|F\r"
	if string(b) != want {
		t.Errorf("built\n%q\nwant\n%q", b, want)
	}
	a, err := pcd.ParseAck(b[len("before"):])
	if err != nil || a.ControlID != "4*2" || len(a.Errors) != 2 || a.Errors[0].User != "a|b" || !a.Rejected() {
		t.Errorf("read back %+v, %v", a, err)
	}
}

func TestAnAnswerThatCouldNotBeMatchedIsNotBuilt(t *testing.T) {
	for name, c := range map[string][3]string{
		"no message":               {"garbage", "AA", "R1"},
		"no control ID":            {"MSH|^~\\&|a\r", "AA", "R1"},
		"an unknown code":          {golden, "OK", "R1"},
		"no control ID of its own": {golden, "AA", ""},
		"the incoming control ID":  {golden, "AA", "a1b2c3d4-0001"},
	} {
		if b, err := pcd.AppendAck([]byte("x"), wire(c[0]), c[1], pcd.AckOptions{ControlID: c[2], Now: start}); err == nil || string(b) != "x" {
			t.Errorf("%s: %q, %v", name, b, err)
		}
	}
}

func TestTheControlIDIsReadFromTheFirstSegmentAlone(t *testing.T) {
	for _, end := range []string{"\r", "\n", "\r\n"} {
		id, err := pcd.ControlID([]byte(strings.ReplaceAll(golden, "\n", end) + "no segment"))
		if err != nil || id != "a1b2c3d4-0001" {
			t.Errorf("%q, %v", id, err)
		}
	}
	if _, err := pcd.ControlID([]byte("MSH|^~\\&|x")); err == nil {
		t.Error("a message without a control ID has one")
	}
	if _, err := pcd.ControlID(nil); err == nil {
		t.Error("nothing has a control ID")
	}
}

func FuzzAck(f *testing.F) {
	f.Add([]byte(ackHeader+"MSA|CA|42\rERR||OBX^1|102^x|E|9001\r"), "CA")
	f.Add(wire(golden), "AR")
	f.Add([]byte("MSH*:+!%*GW:!S!***RF*x**ORU:R40*4!F!2*T*2.6\r"), "CE")
	f.Fuzz(func(t *testing.T, b []byte, code string) {
		if a, err := pcd.ParseAck(b); err == nil && a.Accepted() == (a.Retry() || a.Rejected()) {
			t.Fatalf("%+v is no class or two", a)
		}
		answer, err := pcd.AppendAck(nil, b, code, pcd.AckOptions{ControlID: "R1", Now: start})
		if err != nil {
			return
		}
		id, err := pcd.ControlID(b)
		if err != nil {
			t.Fatalf("answered a message without a control ID: %v", err)
		}
		a, err := pcd.ParseAck(answer)
		if err != nil || a.Code != code || a.ControlID != id {
			t.Fatalf("answer %q to %q: %+v, %v", answer, id, a, err)
		}
	})
}

func TestControlIDsNeverRepeatAndHaveTwentyCharacters(t *testing.T) {
	c := ids(t)
	seen, last := map[string]bool{}, ""
	for range 3000 {
		id := string(c.Append(nil))
		if len(id) != pcd.ControlIDLength || seen[id] || id <= last || strings.Trim(id, "0123456789ABCDEFGHIJKLMNOPQRSTUV") != "" {
			t.Fatalf("control ID %q after %q", id, last)
		}
		seen[id], last = true, id
	}
	other, err := pcd.NewControlIDs(strings.NewReader("87654321"))
	if err != nil {
		t.Fatal(err)
	}
	if a, b := string(c.Append(nil))[:13], string(other.Append(nil))[:13]; a == b {
		t.Error("two starts share the part that tells them apart")
	}
	if _, err := pcd.NewControlIDs(strings.NewReader("1234567")); err == nil {
		t.Error("seven random bytes suffice")
	}
	if _, err := pcd.NewControlIDs(nil); err == nil {
		t.Error("no randomness suffices")
	}
}

func TestControlIDsAreSafeForConcurrentUse(t *testing.T) {
	c := ids(t)
	lists := make(chan []string)
	for range 4 {
		go func() {
			var list []string
			for range 500 {
				list = append(list, string(c.Append(nil)))
			}
			lists <- list
		}()
	}
	seen := map[string]bool{}
	for range 4 {
		for _, id := range <-lists {
			if seen[id] {
				t.Fatalf("%s twice", id)
			}
			seen[id] = true
		}
	}
}

func ExampleParseAck() {
	answer, err := pcd.ParseAck([]byte(ackHeader + "MSA|CE|42\rERR|||207|E\r"))
	fmt.Println(answer.Accepted(), answer.Retry(), answer.Reason(), err)
	// Output: false true 207 (application internal error) <nil>
}

func ExampleAppendAck() {
	message := []byte("MSH|^~\\&|GW|||||| ORU^R01^ORU_R01|42|P|2.6\r")
	answer, err := pcd.AppendAck(nil, message, "CA", pcd.AckOptions{ControlID: "A-1", Now: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)})
	m, _ := hl7.Parse(answer)
	fmt.Println(m.Field("MSA", 1), m.Field("MSA", 2), errors.Is(err, nil))
	// Output: CA 42 true
}
