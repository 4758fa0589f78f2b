package spool

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"testing"
	"time"
)

var testKey = [32]byte{1, 2, 3}

func open(t testing.TB, path string, o Options) *Spool {
	t.Helper()
	o.Key = testKey
	s, err := Open(path, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func newPath(t testing.TB) string { return filepath.Join(t.TempDir(), "spool.db") }

func put(t testing.TB, s *Spool, queue, control string, class Class) uint64 {
	t.Helper()
	id, err := s.Enqueue(context.Background(), Entry{Queue: queue, Device: "bed-1", ControlID: control, Class: class,
		Payload: fmt.Appendf(nil, "MSH|%s|%s", queue, control)})
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func next(t testing.TB, q *Queue) Entry {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	e, err := q.Next(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantErr(t testing.TB, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("got error %v, want %v", err, want)
	}
}

func TestWhatWasAcceptedNeverComesBackAndWhatWasSentDoes(t *testing.T) {
	path := newPath(t)
	s := open(t, path, Options{})
	put(t, s, "a", "1", Periodic)
	put(t, s, "a", "2", Periodic)
	q := s.Queue("a")
	e := next(t, q)
	must(t, q.Sent(e.ID))
	must(t, q.Accepted(e.ID))
	e = next(t, q)
	if e.ControlID != "2" || string(e.Payload) != "MSH|a|2" {
		t.Fatalf("got %+v", e)
	}
	must(t, q.Sent(e.ID))
	must(t, s.Close())
	s = open(t, path, Options{})
	again := next(t, s.Queue("a"))
	if again.ControlID != "2" || again.State != Queued || again.Attempts != 1 || again.ID != e.ID {
		t.Fatalf("got %+v", again)
	}
	must(t, s.Queue("a").Accepted(again.ID))
	if st := s.Stats(); st.Queues["a"].Enqueued != 2 || st.Queues["a"].Accepted != 2 || st.Messages != 0 || st.Bytes != 0 {
		t.Fatalf("got %+v", st)
	}
}
