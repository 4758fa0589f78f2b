package main

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"sync"
)

// logger writes lines of text. For the journal each begins with its priority,
// sd-daemon(3), and has no time, for the journal has its own.
func logger(w io.Writer, level slog.Leveler, journal bool) *slog.Logger {
	if !journal {
		return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: level}))
	}
	line := &journalLine{out: w}
	text := slog.NewTextHandler(&line.text, &slog.HandlerOptions{Level: level, ReplaceAttr: withoutTime})
	return slog.New(&journalHandler{text, line})
}

func withoutTime(groups []string, a slog.Attr) slog.Attr {
	if len(groups) == 0 && (a.Key == slog.TimeKey || a.Key == slog.LevelKey) {
		return slog.Attr{}
	}
	return a
}

// journalLine is where the lines of all handlers of a logger meet.
type journalLine struct {
	mu   sync.Mutex
	text bytes.Buffer
	out  io.Writer
}

type journalHandler struct {
	slog.Handler
	line *journalLine
}

// Handle writes the record behind its priority in one write.
func (h *journalHandler) Handle(ctx context.Context, r slog.Record) error {
	h.line.mu.Lock()
	defer h.line.mu.Unlock()
	h.line.text.Reset()
	h.line.text.WriteString(priority(r.Level))
	if err := h.Handler.Handle(ctx, r); err != nil {
		return err
	}
	_, err := h.line.out.Write(h.line.text.Bytes())
	return err
}

func (h *journalHandler) WithAttrs(a []slog.Attr) slog.Handler {
	return &journalHandler{h.Handler.WithAttrs(a), h.line}
}

func (h *journalHandler) WithGroup(name string) slog.Handler {
	return &journalHandler{h.Handler.WithGroup(name), h.line}
}

// priority is the level as syslog counts.
func priority(l slog.Level) string {
	switch {
	case l >= slog.LevelError:
		return "<3>"
	case l >= slog.LevelWarn:
		return "<4>"
	case l >= slog.LevelInfo:
		return "<6>"
	}
	return "<7>"
}
