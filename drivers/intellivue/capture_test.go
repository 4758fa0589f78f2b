package intellivue

import (
	"bufio"
	"encoding/hex"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// A captured message is one UDP datagram of the recorded session of an M8003A.
type captured struct {
	frame   int
	at      time.Time
	monitor bool // sent by the monitor, to us
	data    []byte
}

// sessionStart is an arbitrary date for a recording that has only seconds.
var sessionStart = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func sharedFile(t testing.TB, elem ...string) string {
	t.Helper()
	root := os.Getenv("GATEWAY_SHARED")
	if root == "" {
		t.Skip("GATEWAY_SHARED is not set: the recorded sessions are not part of the project")
	}
	return filepath.Join(append([]string{root, "reference", "protocols", "captures", "philips"}, elem...)...)
}

func recordedSession(t testing.TB) (list []captured) {
	t.Helper()
	f, err := os.Open(sharedFile(t, "m8000-or-session", "session.txt"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	in := bufio.NewScanner(f)
	in.Buffer(nil, 1<<20)
	for in.Scan() {
		row := strings.Fields(in.Text())
		if len(row) != 5 || strings.HasPrefix(row[0], "#") {
			continue
		}
		frame, err1 := strconv.Atoi(row[0])
		seconds, err2 := strconv.ParseFloat(row[1], 64)
		data, err3 := hex.DecodeString(row[4])
		length, err4 := strconv.Atoi(row[3])
		if err1 != nil || err2 != nil || err3 != nil || err4 != nil || length != len(data) {
			t.Fatalf("session.txt: cannot read %.60q", in.Text())
		}
		at := sessionStart.Add(time.Duration(seconds*1000) * time.Millisecond)
		list = append(list, captured{frame, at, strings.HasPrefix(row[2], "M"), data})
	}
	if err := in.Err(); err != nil || len(list) < 180 {
		t.Fatalf("session.txt: %d messages, %v", len(list), err)
	}
	return list
}

// fieldRequests are the requests of a client in the field.
func fieldRequests(t testing.TB, file string) map[string][]byte {
	t.Helper()
	b, err := os.ReadFile(sharedFile(t, file))
	if err != nil {
		t.Fatal(err)
	}
	m := map[string][]byte{}
	for line := range strings.Lines(string(b)) {
		name, text, ok := strings.Cut(strings.TrimSpace(line), ": ")
		if !ok || strings.HasPrefix(line, "#") {
			continue
		}
		data, err := hex.DecodeString(strings.ReplaceAll(text, " ", ""))
		if err != nil {
			t.Fatalf("%s: %s: %v", file, name, err)
		}
		name, _, _ = strings.Cut(name, " ")
		m[name] = data
	}
	return m
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}
