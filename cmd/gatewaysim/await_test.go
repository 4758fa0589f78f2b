package main

import (
	"os"
	"regexp"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// await waits until a file matches a pattern, such as the output of a program
// that runs beside: await FILE PATTERN.
func await(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: await FILE PATTERN")
	}
	pattern := regexp.MustCompile("(?m)" + args[1])
	var text []byte
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		text, _ = os.ReadFile(ts.MkAbs(args[0])) // it may not be there yet
		if pattern.Match(text) {
			return
		}
	}
	ts.Fatalf("%s does not match %q: %s", args[0], args[1], text)
}

// send sends a signal that testscript's kill does not know to the program that
// was started last: signal USR1.
func send(ts *testscript.TestScript, neg bool, args []string) {
	known := map[string]os.Signal{"USR1": syscall.SIGUSR1, "USR2": syscall.SIGUSR2}
	running := ts.BackgroundCmds()
	if neg || len(args) != 1 || known[args[0]] == nil || len(running) == 0 {
		ts.Fatalf("usage: signal USR1|USR2, while a program runs")
	}
	ts.Check(running[len(running)-1].Process.Signal(known[args[0]]))
}
