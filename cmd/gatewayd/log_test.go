package main

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
)

func TestTheJournalGetsPrioritiesAndNoTime(t *testing.T) {
	var out bytes.Buffer
	log := logger(&out, slog.LevelDebug, true)
	log.With("port", "bed-1").WithGroup("g").Error("broken", "n", 1)
	log.Warn("odd")
	log.Info("fine")
	log.Debug("more")
	want := "<3>msg=broken port=bed-1 g.n=1\n<4>msg=odd\n<6>msg=fine\n<7>msg=more\n"
	if out.String() != want {
		t.Errorf("got %q, want %q", out.String(), want)
	}
}

func TestATerminalGetsTimeAndLevel(t *testing.T) {
	var out bytes.Buffer
	level := new(slog.LevelVar)
	log := logger(&out, level, false)
	log.Debug("hidden")
	level.Set(slog.LevelDebug)
	log.Debug("shown")
	if s := out.String(); strings.Contains(s, "hidden") || !strings.HasPrefix(s, "time=") || !strings.HasSuffix(s, " level=DEBUG msg=shown\n") {
		t.Errorf("%q", s)
	}
}
