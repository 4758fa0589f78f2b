package platform

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const sample = `MSH|^~\&|GW^0123456789ABCDEF^EUI-64|H|||20260102030405+0000||ORU^R01^ORU_R01|ID1|P|2.6|||AL|NE||UNICODE UTF-8|||P^I^1.3.6.1.4.1.19376.1.6.1.1.1^ISO
PV1||U|ICU^^Bed 2
OBR|1||O1^GW^0123456789ABCDEF^EUI-64|69965^MDS^MDC|||20260102030400+0000|20260102030405+0000
OBX|1||69965^MDC_DEV_MON_PHYSIO_MULTI_PARAM_MDS^MDC|1.0.0.0|||||||X|||||||0009FBFFFE000001^^0009FBFFFE000001^EUI-64
OBX|2|NM|147842^MDC_ECG_HEART_RATE^MDC|1.1.1.1|72|264864^MDC_DIM_BEAT_PER_MIN^MDC^{beat}/min^{beat}/min^UCUM|||||R
OBX|3|ST|8417^MDC_X^MDC|1.1.1.2|a\T\b\F\c\E\d\X0A\e\Z\f||||||F|||20260102030401+0000
OBX|4|CWE|8418^MDC_Y^MDC|1.1.1.3|1^sinus rhythm^MDC||||||R`

func TestReadTakesOutWhatThePlatformShows(t *testing.T) {
	d, err := Read([]byte(strings.ReplaceAll(sample, "\n", "\r") + "\r"))
	if err != nil {
		t.Fatal(err)
	}
	if d.ControlID != "ID1" || d.SenderID != "0123456789ABCDEF" || d.Location != "ICU Bed 2" || d.Device != "0009FBFFFE000001" ||
		d.AcceptAck != "AL" || d.AppAck != "NE" || d.Profile != "1.3.6.1.4.1.19376.1.6.1.1.1" {
		t.Errorf("%+v", d)
	}
	heart := Row{Path: "1.1.1.1", Code: "147842", Name: "MDC_ECG_HEART_RATE", Type: "NM", Value: "72",
		Unit: "MDC_DIM_BEAT_PER_MIN", UCUM: "{beat}/min", Result: "R", Time: "20260102030400+0000"}
	if len(d.Rows) != 4 || d.Rows[1] != heart {
		t.Errorf("rows %+v", d.Rows)
	}
	if r := d.Rows[2]; r.Value != "a&b|c\\d\ne\\Z\\f" || r.Time != "20260102030401+0000" || !r.Episodic {
		t.Errorf("text row %+v", r)
	}
	if r := d.Rows[3]; r.Value != "sinus rhythm" {
		t.Errorf("coded row %+v", r)
	}
}

func TestTheDigestIsOfWhatIsSaidAndNotOfWhatNamesIt(t *testing.T) {
	digest := func(text string) string {
		d, err := Read([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		return d.Digest()
	}
	was := digest(sample)
	if digest(strings.Replace(strings.Replace(sample, "|ID1|", "|ID2|", 1), "|O1^", "|O2^", 1)) != was {
		t.Error("it depends on the control ID or the order number")
	}
	if digest(strings.Replace(sample, "|72|", "|73|", 1)) == was {
		t.Error("it does not depend on a value")
	}
	if digest(strings.ReplaceAll(sample, "\n", "\r\n")) != was {
		t.Error("it depends on the ends of lines")
	}
}

func TestWhatIsNoMessageIsRefusedWithTheReason(t *testing.T) {
	for text, want := range map[string]string{
		"":                       "MSH",
		"PID|1":                  "MSH",
		`MSH|^~\&|A|B|||T||ORU|`: "control ID",
		sample + "\nnonsense":    "segment 8",
		sample + strings.Repeat("\nOBX|", 20_000): "limit",
	} {
		if _, err := Read([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40q: %v, want %q", text, err, want)
		}
	}
}

func FuzzRead(f *testing.F) {
	f.Add([]byte(sample))
	f.Add([]byte(`MSH|^~\&|\`))
	if dir := os.Getenv("GATEWAY_SHARED"); dir != "" {
		files, err := filepath.Glob(filepath.Join(dir, "reference/ihe-pcd/samples/*.hl7"))
		if err != nil {
			f.Fatal(err)
		}
		for _, file := range files {
			b, err := os.ReadFile(file)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(b)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := Read(b)
		if err != nil {
			return
		}
		if d.ControlID == "" || d.Digest() == "" {
			t.Errorf("read without a control ID or a digest: %+v", d)
		}
		if again, err := Read([]byte(strings.ReplaceAll(string(b), "\n", "\r"))); err != nil || again.Digest() != d.Digest() {
			t.Errorf("LF and CR differ: %v", err)
		}
	})
}
