package hl7file

import (
	"bytes"
	"errors"
	"strings"
	"testing"
)

func TestMessagesAreFoundHoweverTheyAreWritten(t *testing.T) {
	const want = "MSH|a\rPID|1\r" + "|" + "MSH|b\rOBX|2\r"
	for name, text := range map[string]string{
		"CR and a blank line": "MSH|a\rPID|1\r\n\nMSH|b\rOBX|2\r\n",
		"LF":                  "MSH|a\nPID|1\nMSH|b\nOBX|2",
		"CR LF":               "MSH|a\r\nPID|1\r\n\r\nMSH|b\r\nOBX|2\r\n",
		"MLLP":                "\x0bMSH|a\rPID|1\r\x1c\r\x0bMSH|b\rOBX|2\r\x1c\r",
		"a byte order mark":   "\xEF\xBB\xBFMSH|a\nPID|1\n\n\nMSH|b\nOBX|2\n   \n",
	} {
		got, err := Split([]byte(text))
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if s := string(bytes.Join(got, []byte("|"))); s != want {
			t.Errorf("%s: %q", name, s)
		}
	}
}

func TestAFileWithoutMessagesIsAnError(t *testing.T) {
	for _, text := range []string{"", "\n\n", "hello", "PID|1\rMSH|a\r"} {
		if got, err := Split([]byte(text)); !errors.Is(err, ErrNone) {
			t.Errorf("%q: %q %v", text, got, err)
		}
	}
}

func TestAFileTooLargeIsAnError(t *testing.T) {
	_, err := Read(strings.NewReader("MSH|" + strings.Repeat("x", MaxSize)))
	if err == nil || !strings.Contains(err.Error(), "split it") {
		t.Errorf("%v", err)
	}
}

func FuzzSplit(f *testing.F) {
	f.Add([]byte("MSH|a\rPID|1\r\n\nMSH|b\r"))
	f.Add([]byte("\x0bMSH|a\r\x1c\r"))
	f.Fuzz(func(t *testing.T, text []byte) {
		got, err := Split(text)
		if (err == nil) != (len(got) > 0) {
			t.Fatalf("%d messages with error %v", len(got), err)
		}
		for _, m := range got {
			if !bytes.HasPrefix(m, []byte("MSH")) || m[len(m)-1] != '\r' || bytes.Contains(m, []byte("\n")) || bytes.Count(m, []byte("\rMSH")) > 0 {
				t.Fatalf("%q", m)
			}
			again, err := Split(m)
			if err != nil || len(again) != 1 || !bytes.Equal(again[0], m) {
				t.Fatalf("%q read again is %q, %v", m, again, err)
			}
		}
	})
}
