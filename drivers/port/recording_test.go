package port

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"
)

// memory is a port whose reads are given beforehand.
type memory struct {
	reads  [][]byte
	writes bytes.Buffer
	closed bool
}

func (m *memory) ReadBefore(p []byte, _ time.Time) (int, error) {
	if len(m.reads) == 0 {
		return 0, os.ErrDeadlineExceeded
	}
	n := copy(p, m.reads[0])
	m.reads = m.reads[1:]
	return n, nil
}
func (m *memory) Write(p []byte) (int, error) { return m.writes.Write(p) }
func (m *memory) Close() error                { m.closed = true; return nil }
func (m *memory) Datagrams() bool             { return false }

// readAll reads a recording; warnings and errors are put into one.
func readAll(r io.Reader, o ReadOptions) (records []Record, errs error) {
	for record, err := range ReadRecording(r, o) {
		if err != nil {
			errs = errors.Join(errs, err)
			continue
		}
		record.Data = bytes.Clone(record.Data)
		records = append(records, record)
	}
	return records, errs
}

// stepping is a clock that goes a second with each look.
func stepping() func() time.Time {
	now := time.Date(2026, 11, 24, 8, 0, 0, 0, time.FixedZone("", 3600))
	return func() time.Time { now = now.Add(time.Second); return now }
}

func TestARecordingIsReadBackAsItHappened(t *testing.T) {
	path := filepath.Join(t.TempDir(), "bed-1.rec")
	for range 2 { // the second time it is continued
		rec, err := OpenRecording(path, 0, stepping())
		if err != nil {
			t.Fatal(err)
		}
		inner := &memory{reads: [][]byte{{0xC0, 0xFF}, {0}}}
		p := rec.Wrap(inner)
		buf := make([]byte, 16)
		p.ReadBefore(buf, time.Time{})
		p.Write([]byte{1, 2, 3})
		p.ReadBefore(buf, time.Time{})
		if _, err := p.ReadBefore(buf, time.Time{}); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error(err)
		}
		p.Close()
		if err := rec.Close(); err != nil || !inner.closed || inner.writes.String() != "\x01\x02\x03" {
			t.Fatal(err, inner)
		}
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Error(info.Mode(), err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	got, err := readAll(f, ReadOptions{})
	begin := time.Date(2026, 11, 24, 7, 0, 1, 0, time.UTC)
	once := []Record{
		{begin, 0, FromDevice, []byte{0xC0, 0xFF}},
		{begin.Add(time.Second), time.Second, ToDevice, []byte{1, 2, 3}},
		{begin.Add(2 * time.Second), 2 * time.Second, FromDevice, []byte{0}},
	}
	if want := append(once, once...); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%v\n got %v\nwant %v", err, got, want)
	}
}

func TestATornEndIsSaidAndAllBeforeItIsRead(t *testing.T) {
	var file bytes.Buffer
	rec := NewRecorder(&file, stepping())
	p := rec.Wrap(&memory{})
	p.Write([]byte("first"))
	whole := file.Len()
	p.Write([]byte("second"))
	for cut := whole + 1; cut < file.Len()-1; cut++ {
		for _, tail := range []string{"", "\x00\x00\x00"} {
			torn := file.String()[:cut] + tail
			got, err := readAll(strings.NewReader(torn), ReadOptions{})
			if len(got) != 1 || string(got[0].Data) != "first" || !errors.Is(err, ErrTorn) {
				t.Fatalf("cut at %d: %v, %v", cut, got, err)
			}
			// Continued after the power cut:
			path := filepath.Join(t.TempDir(), "rec")
			if err := os.WriteFile(path, []byte(torn), 0o600); err != nil {
				t.Fatal(err)
			}
			rec, err := OpenRecording(path, 0, stepping())
			if err != nil {
				t.Fatal(err)
			}
			rec.Wrap(&memory{}).Write([]byte("third"))
			rec.Close()
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			got, err = readAll(bytes.NewReader(b), ReadOptions{})
			if len(got) != 2 || string(got[1].Data) != "third" || !errors.Is(err, ErrTorn) {
				t.Fatalf("cut at %d and continued: %v, %v", cut, got, err)
			}
		}
	}
}

func TestADamagedLineInTheMiddleIsAnError(t *testing.T) {
	var file bytes.Buffer
	p := NewRecorder(&file, stepping()).Wrap(&memory{})
	for range 3 {
		p.Write([]byte("x"))
	}
	damaged := strings.Replace(file.String(), " 1 78", " 2 78", 1)
	got, err := readAll(strings.NewReader(damaged), ReadOptions{})
	if len(got) != 0 || err == nil || errors.Is(err, ErrTorn) || !strings.Contains(err.Error(), "line 3: it says 2 bytes and has 1") {
		t.Error(got, err)
	}
}

func TestARecordingThatCannotGoOnLeavesThePortWorking(t *testing.T) {
	path := filepath.Join(t.TempDir(), "rec")
	rec, err := OpenRecording(path, 200, stepping())
	if err != nil {
		t.Fatal(err)
	}
	defer rec.Close()
	inner := &memory{}
	p := rec.Wrap(inner)
	for range 10 {
		if _, err := p.Write([]byte("abcdefgh")); err != nil {
			t.Fatal(err)
		}
	}
	if info, err := os.Stat(path); err != nil || info.Size() > 200 || info.Size() < 100 {
		t.Error(info.Size(), err)
	}
	if !errors.Is(rec.Err(), ErrRecordingFull) || inner.writes.Len() != 80 {
		t.Error(rec.Err(), inner.writes.Len())
	}
	broken := NewRecorder(brokenWriter{}, stepping())
	inner = &memory{}
	broken.Wrap(inner).Write([]byte("x"))
	if !errors.Is(broken.Err(), os.ErrInvalid) || inner.writes.Len() != 1 {
		t.Error(broken.Err())
	}
}

type brokenWriter struct{}

func (brokenWriter) Write([]byte) (int, error) { return 0, os.ErrInvalid }

func TestARecordingThatOthersMayReadIsRefused(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "rec")
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{path, dir, filepath.Join(dir, "no", "rec"), "/dev/null"} {
		if _, err := OpenRecording(p, 0, stepping()); err == nil || !strings.Contains(err.Error(), p) {
			t.Errorf("%s: %v", p, err)
		}
	}
}

func TestTextRecordingsOfAllKinds(t *testing.T) {
	for _, c := range []struct {
		name, text string
		want       []Record
		err        string
	}{
		{"columns with seconds", "# columns\n1 0.5 M->*(24005) 2 C0FF\n2 122.062 H->M(24105) 1 0d\n",
			[]Record{{Direction: FromDevice, Data: []byte{0xC0, 0xFF}}, {Offset: 121562 * time.Millisecond, Direction: ToDevice, Data: []byte{13}}}, ""},
		{"hex alone", "# a record\n88 02 e3\n\n08d1\n", []Record{{Direction: FromDevice, Data: []byte{0x88, 2, 0xE3}}, {Direction: FromDevice, Data: []byte{8, 0xD1}}}, ""},
		{"no newline at the end", "01 02", []Record{{Direction: FromDevice, Data: []byte{1, 2}}}, ""},
		{"a wrong direction", "1 0.5 X 1 00\n1 0.5 M 1 00\n", nil, `line 1: direction "X"`},
		{"a wrong length", "1 0.5 M 3 0011\n1 0.5 M 1 00\n", nil, "line 1: it says 3 bytes and has 2"},
		{"an immense length", "1 0.5 M 99999999999999999999 00\n# end\n", nil, "no length"},
		{"a wrong time", "1 1.e999 M 1 00\n# end\n", nil, "no number of seconds"},
		{"an odd digit", "001\n00\n", nil, "line 1: it is no hexadecimal text"},
		{"no text", "what is this\n00\n", nil, "no hexadecimal text"},
		{"a line without end", strings.Repeat("00", maxLine), nil, "longer than"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := readAll(strings.NewReader(c.text), ReadOptions{Format: FormatHex})
			if !reflect.DeepEqual(got, c.want) {
				t.Errorf("got %v, want %v", got, c.want)
			}
			if c.err == "" && err != nil || c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
				t.Errorf("error %v, want %q", err, c.err)
			}
		})
	}
}

func TestTheFormatIsFound(t *testing.T) {
	long := strings.Repeat("00 11 22\n", 1000)
	for text, want := range map[string]Format{
		"":                                FormatRaw,
		"\xC0\x11\x01":                    FormatRaw,
		"03/14/26 12:00:00 SPO2=098%\r\n": FormatRaw,
		"C0 11\n":                         FormatHex,
		"C0 11":                           FormatHex,
		"# note\n\n1 0.000 M->H 1 00\n":   FormatHex,
		"# gatewayd recording 1\n":        FormatHex,
		"# only a note\n":                 FormatRaw,
		long:                              FormatHex,
		"\xD4\xC3\xB2\xA1":                FormatPcap,
		"\xA1\xB2\x3C\x4D":                FormatPcap,
		"\x0A\x0D\x0D\x0A":                FormatPcap,
	} {
		if got := detect(newIn(text)); got != want {
			t.Errorf("%.20q: %d, want %d", text, got, want)
		}
	}
	for text, want := range map[string]Format{"": FormatAuto, "raw": FormatRaw, "hex": FormatHex, "pcap": FormatPcap} {
		if got, err := ParseFormat(text); got != want || err != nil {
			t.Error(text, got, err)
		}
	}
	if _, err := ParseFormat("wav"); err == nil || !strings.Contains(err.Error(), `"wav"`) {
		t.Error(err)
	}
}

func TestRawBytesAreOfTheDevice(t *testing.T) {
	raw := bytes.Repeat([]byte("0123456789"), 1000)
	got, err := readAll(iotest.OneByteReader(bytes.NewReader(raw)), ReadOptions{Format: FormatRaw})
	var joined []byte
	for _, r := range got {
		joined = append(joined, r.Data...)
	}
	if err != nil || !bytes.Equal(joined, raw) {
		t.Error(err, len(joined))
	}
	_, err = readAll(iotest.ErrReader(os.ErrInvalid), ReadOptions{Format: FormatRaw})
	if !errors.Is(err, os.ErrInvalid) {
		t.Error(err)
	}
}

const conversation = "1 0.0 M 2 6162\n2 1.0 H 1 3F\n3 3.0 M 1 63\n4 9.0 M 3 646566\n"

func replay(text string, o ReplayOptions) *Replayer {
	return NewReplayer(ReadRecording(strings.NewReader(text), ReadOptions{Format: FormatHex}), o)
}

func TestAReplayKeepsTheTimesAtAnySpeed(t *testing.T) {
	for _, c := range []struct {
		speed float64
		want  string
	}{
		{1, "0s ab,3s c,9s def,"},
		{3, "0s ab,1s c,3s def,"},
		{0, "0s ab,0s c,0s def,"},
	} {
		synctest.Test(t, func(t *testing.T) {
			r := replay(conversation, ReplayOptions{Speed: c.speed})
			defer r.Close()
			var got string
			start, buf := time.Now(), make([]byte, 16)
			for {
				n, err := r.ReadBefore(buf, time.Now().Add(time.Second))
				if errors.Is(err, os.ErrDeadlineExceeded) {
					continue
				}
				if err != nil {
					if !errors.Is(err, io.EOF) {
						t.Error(err)
					}
					break
				}
				got += fmt.Sprintf("%v %s,", time.Since(start), buf[:n])
			}
			if got != c.want || r.Differences() != 1 {
				t.Errorf("speed %v: %s, want %s; %d differences", c.speed, got, c.want, r.Differences())
			}
		})
	}
}

func TestAReplayInLockstepWaitsForTheRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := replay(conversation, ReplayOptions{Lockstep: true})
		defer r.Close()
		buf := make([]byte, 1)
		for _, want := range "ab" {
			if n, err := r.ReadBefore(buf, time.Now()); n != 1 || buf[0] != byte(want) || err != nil {
				t.Fatal(n, buf, err)
			}
		}
		if _, err := r.ReadBefore(buf, time.Now().Add(time.Hour)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal("the device answered unasked:", err)
		}
		time.AfterFunc(time.Minute, func() { r.Write([]byte("!")) })
		if n, err := r.ReadBefore(buf, time.Now().Add(time.Hour)); n != 1 || buf[0] != 'c' || err != nil {
			t.Fatal(n, buf, err)
		}
		if r.Differences() != 1 {
			t.Error("? and ! are different")
		}
	})
}

func TestAReplayCanBeEndedWhileItWaits(t *testing.T) {
	for _, end := range []struct {
		how  func(*Replayer)
		want error
	}{{func(r *Replayer) { r.Close() }, os.ErrClosed}, {(*Replayer).StopReading, os.ErrDeadlineExceeded}} {
		synctest.Test(t, func(t *testing.T) {
			r := replay(conversation, ReplayOptions{Speed: 1})
			defer r.Close()
			buf := make([]byte, 16)
			r.ReadBefore(buf, time.Now())
			start := time.Now()
			time.AfterFunc(time.Second, func() { end.how(r) })
			if _, err := r.ReadBefore(buf, start.Add(time.Hour)); !errors.Is(err, end.want) || time.Since(start) != time.Second {
				t.Errorf("ended after %v with %v", time.Since(start), err)
			}
		})
	}
}

func TestAReplayOfDatagramsKeepsTheirBorders(t *testing.T) {
	r := replay(conversation, ReplayOptions{Datagrams: true})
	defer r.Close()
	buf := make([]byte, 1)
	var got string
	for {
		n, err := r.ReadBefore(buf, time.Now().Add(time.Second))
		if err != nil {
			break
		}
		got += string(buf[:n]) + ","
	}
	if got != "a,c,d," {
		t.Error(got)
	}
}

func FuzzReadRecording(f *testing.F) {
	var file bytes.Buffer
	NewRecorder(&file, stepping()).Wrap(&memory{}).Write([]byte("x"))
	f.Add(file.Bytes(), byte(FormatAuto))
	f.Add([]byte(conversation), byte(FormatHex))
	f.Add([]byte("C0 11 01\n"), byte(FormatHex))
	for _, c := range captures(f) {
		f.Add(c, byte(FormatPcap))
	}
	f.Fuzz(func(t *testing.T, b []byte, format byte) {
		total, after := 0, 0
		for r, err := range ReadRecording(bytes.NewReader(b), ReadOptions{Format: Format(format % 4), UDPPort: devicePort}) {
			if after > 0 {
				t.Fatal("records follow an error that is no warning")
			}
			if err != nil {
				if !errors.Is(err, ErrTorn) {
					after++
				}
				continue
			}
			if len(r.Data) > maxPacket || r.Direction != FromDevice && r.Direction != ToDevice {
				t.Fatalf("%d bytes, direction %q", len(r.Data), r.Direction)
			}
			total += len(r.Data)
		}
		if total > len(b) {
			t.Errorf("%d bytes were read of %d", total, len(b))
		}
	})
}
