package swtpm

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func dir(t *testing.T) string {
	t.Helper()
	d, err := os.MkdirTemp("", "tpm")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(d) })
	return d
}

func TestAnEmulatorStartsOverAndOverInItsFolder(t *testing.T) {
	for name, start := range map[string]func(context.Context, string) (*Emulator, error){"unix": Start, "tcp": StartTCP} {
		t.Run(name, func(t *testing.T) {
			d := dir(t)
			for range 3 {
				e, err := start(t.Context(), d)
				if errors.Is(err, ErrMissing) && os.Getenv("NEED_SWTPM") == "" {
					t.Skip(err)
				}
				if err != nil {
					t.Fatal(err)
				}
				network, address, _ := strings.Cut(e.Address(), ":")
				c, err := net.Dial(network, address)
				if err != nil {
					t.Error(err)
				} else {
					c.Close()
				}
				e.Stop()
				if _, err := net.Dial(network, address); err == nil {
					t.Error("it listens without power")
				}
			}
		})
	}
}

func TestAnEmulatorThatCannotStartSaysWhy(t *testing.T) {
	d := dir(t)
	if err := os.WriteFile(filepath.Join(d, "tpm2-00.permall"), []byte("no state"), 0o600); err != nil {
		t.Fatal(err)
	}
	e, err := Start(t.Context(), d)
	if errors.Is(err, ErrMissing) && os.Getenv("NEED_SWTPM") == "" {
		t.Skip(err)
	}
	if err == nil {
		e.Stop()
		t.Fatal("it starts with a damaged state")
	}
	if _, err := Start(t.Context(), filepath.Join(d, strings.Repeat("long", 30))); err == nil {
		t.Error(err)
	}
}
