package port

import (
	"strings"
	"testing"
)

func TestASpecIsReadAndWrittenBack(t *testing.T) {
	for _, c := range []struct {
		text string
		want Spec
		back string
	}{
		{"/dev/serial/by-path/pci-0000:00:14.0-usb-0:2:1.0-port0", Spec{Kind: Serial, Path: "/dev/serial/by-path/pci-0000:00:14.0-usb-0:2:1.0-port0"}, ""},
		{"/dev/pts/3", Spec{Kind: Serial, Path: "/dev/pts/3"}, ""},
		{"tcp://moxa-3.icu.example:4001", Spec{Kind: TCP, Host: "moxa-3.icu.example", Port: 4001}, ""},
		{"tcp://[fe80::1]:4001", Spec{Kind: TCP, Host: "fe80::1", Port: 4001}, ""},
		{"udp://10.0.42.9", Spec{Kind: UDP, Host: "10.0.42.9"}, ""},
		{"udp://10.0.42.9:24105", Spec{Kind: UDP, Host: "10.0.42.9", Port: 24105}, ""},
		{"udp://[fe80::1]", Spec{Kind: UDP, Host: "fe80::1"}, ""},
		{"udp://fe80::1", Spec{Kind: UDP, Host: "fe80::1"}, "udp://[fe80::1]"},
	} {
		got, err := ParseSpec(c.text)
		if err != nil || got != c.want {
			t.Errorf("%s: %+v, %v", c.text, got, err)
		}
		if c.back == "" {
			c.back = c.text
		}
		if got.String() != c.back {
			t.Errorf("%s is written back as %s", c.text, got)
		}
	}
}

func TestAWrongSpecSaysWhatIsWrong(t *testing.T) {
	for text, want := range map[string]string{
		"":                     "no device is named",
		"ttyUSB0":              "write the whole path",
		"/dev/":                "no file name",
		"/dev/../etc":          "no file name",
		"/":                    "no file name",
		"/dev/tty\n":           "control characters",
		"usb://1-2":            "usb:// is no kind of port",
		"tcp://moxa":           "tcp://moxa:PORT",
		"tcp://moxa:":          "nothing follows the colon",
		"tcp://moxa:0":         "1 to 65535",
		"tcp://moxa:70000":     "1 to 65535",
		"tcp://moxa:+1":        "1 to 65535",
		"tcp://:4001":          "host is missing",
		"udp://":               "host is missing",
		"udp://bed 1":          "no host name",
		"udp://[fe80::zz]":     "no IPv6 address",
		"udp://[fe80::1":       "no host and port",
		"tcp://user@moxa:4001": "no host name",
	} {
		if _, err := ParseSpec(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}

func TestTheDefaultPortIsForUDPWithoutOne(t *testing.T) {
	for text, want := range map[string]int{"udp://a": 24105, "udp://a:1": 1, "tcp://a:2": 2, "/dev/ttyS0": 0} {
		s, err := ParseSpec(text)
		if err != nil {
			t.Fatal(err)
		}
		if got := s.DefaultPort(24105).Port; got != want {
			t.Errorf("%s: port %d, want %d", text, got, want)
		}
	}
}

func TestALineIsReadAndWrittenBack(t *testing.T) {
	for _, text := range []string{"115200 8N1", "19200 8E1", "1200 7O2"} {
		l, err := ParseLine(text)
		if err != nil || l.String() != text {
			t.Errorf("%s: %v, %v", text, l, err)
		}
	}
	for text, want := range map[string]string{
		"":            "no line settings",
		"9600":        "no line settings",
		"9600 8N":     "no line settings",
		"9600 8N1 x":  "no line settings",
		"fast 8N1":    "speed",
		"5000000 8N1": "speed",
		"9600 5N1":    "data bits",
		"9600 8M1":    "parity",
		"9600 8N3":    "stop bits",
	} {
		if _, err := ParseLine(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}

func FuzzParseSpec(f *testing.F) {
	for _, s := range []string{"/dev/ttyS0", "tcp://a:1", "udp://[::1]", "udp://::1", "tcp://[::1]:2"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		s, err := ParseSpec(text)
		if err != nil {
			return
		}
		if again, err := ParseSpec(s.String()); err != nil || again != s {
			t.Errorf("%q became %+v, written %q, read %+v, %v", text, s, s, again, err)
		}
	})
}
