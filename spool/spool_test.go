package spool

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

var testKey = [32]byte{1, 2, 3}

func open(t testing.TB, path string, o Options) *Spool {
	t.Helper()
	o.Key = testKey
	if o.MaxAge == 0 {
		o.MaxAge = 1_000_000 * time.Hour
	}
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

func TestWhatIsGivenUpWhenItIsFullFollowsTheRule(t *testing.T) {
	const size = 1000
	entry := func(control string, class Class) Entry {
		return Entry{Queue: "q", Device: "bed", ControlID: control, Class: class, Payload: make([]byte, size)}
	}
	one := entry("p1", 0)
	each := int64(recordSize(&one) + recordExtra)
	var drops []string
	s := open(t, newPath(t), Options{MaxBytes: 5 * each, Dropped: func(d Drop) { drops = append(drops, d.ControlID+" "+d.Cause) }})
	ctx := context.Background()
	enqueue := func(control string, class Class, want error) {
		t.Helper()
		_, err := s.Enqueue(ctx, entry(control, class))
		wantErr(t, err, want)
	}
	enqueue("p1", Periodic, nil)
	q := s.Queue("q")
	must(t, q.Sent(next(t, q).ID)) // on its way: never dropped
	enqueue("p2", Periodic, nil)
	enqueue("e1", Episodic, nil)
	enqueue("w1", Waveform, nil)
	enqueue("a1", Alert, nil)
	enqueue("p3", Periodic, nil) // w1 goes
	enqueue("w2", Waveform, ErrFull)
	enqueue("p4", Periodic, nil) // p2 goes, not p1
	enqueue("a2", Alert, nil)    // p3
	enqueue("a3", Alert, nil)    // p4
	enqueue("a4", Alert, nil)    // e1
	enqueue("e2", Episodic, ErrFull)
	enqueue("a5", Alert, nil) // a1
	want := []string{"w1 full", "p2 full", "p3 full", "p4 full", "e1 full", "a1 full"}
	if !slices.Equal(drops, want) {
		t.Errorf("dropped %q, want %q", drops, want)
	}
	st := s.Stats().Queues["q"]
	if st.Dropped["full"] != 6 || st.Refused != 2 || st.Messages != 5 || next(t, q).ControlID != "p1" {
		t.Errorf("got %+v", st)
	}
	enqueue("big", Alert, nil)
	_, err := s.Enqueue(ctx, Entry{Queue: "q", ControlID: "huge", Class: Alert, Payload: make([]byte, 6*size)})
	wantErr(t, err, ErrTooLarge)
}

func TestAControlIDIsTakenOnceInItsQueue(t *testing.T) {
	path := newPath(t)
	s := open(t, path, Options{})
	id := put(t, s, "a", "1", Periodic)
	put(t, s, "b", "1", Periodic)
	_, err := s.Enqueue(context.Background(), Entry{Queue: "a", ControlID: "1", Payload: []byte("other")})
	wantErr(t, err, ErrDuplicate)
	must(t, s.Close())
	s = open(t, path, Options{})
	_, err = s.Enqueue(context.Background(), Entry{Queue: "a", ControlID: "1", Payload: []byte("other")})
	wantErr(t, err, ErrDuplicate)
	must(t, s.Queue("a").Accepted(id))
	if again := put(t, s, "a", "1", Periodic); again <= id {
		t.Errorf("the ID %d comes after %d", again, id)
	}
}

func TestOfManyWhoEnqueueOneControlIDAtOnceOneSucceeds(t *testing.T) {
	s := open(t, newPath(t), Options{})
	var wg sync.WaitGroup
	var stored atomic.Int32
	for range 16 {
		wg.Go(func() {
			_, err := s.Enqueue(context.Background(), Entry{Queue: "a", ControlID: "1", Payload: []byte("x")})
			if err == nil {
				stored.Add(1)
			} else if !errors.Is(err, ErrDuplicate) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if stored.Load() != 1 || s.Stats().Messages != 1 {
		t.Errorf("%d succeeded", stored.Load())
	}
}

func TestEntriesThatAreNoneAreRefusedByName(t *testing.T) {
	s := open(t, newPath(t), Options{})
	long := strings.Repeat("x", 256)
	for _, c := range []struct {
		e    Entry
		want string
	}{
		{Entry{ControlID: "1", Payload: []byte("x")}, "queue"},
		{Entry{Queue: long, ControlID: "1", Payload: []byte("x")}, "queue"},
		{Entry{Queue: "q", Payload: []byte("x")}, "control ID"},
		{Entry{Queue: "q", ControlID: long, Payload: []byte("x")}, "control ID"},
		{Entry{Queue: "q", ControlID: "1", Device: long, Payload: []byte("x")}, "device"},
		{Entry{Queue: "q", ControlID: "1"}, "no message"},
		{Entry{Queue: "q", ControlID: "1", Payload: []byte("x"), Class: 4}, "class 4"},
	} {
		if _, err := s.Enqueue(context.Background(), c.e); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("got %v, want something of %q", err, c.want)
		}
	}
}

func TestNextWaitsForAnEntryItsContextOrTheEnd(t *testing.T) {
	s := open(t, newPath(t), Options{})
	ctx, cancel := context.WithCancel(context.Background())
	got := make(chan error, 1)
	q := s.Queue("q")
	go func() { _, err := q.Next(ctx); got <- err }()
	put(t, s, "other", "1", Periodic)
	cancel()
	wantErr(t, <-got, context.Canceled)
	go func() { _, err := q.Next(context.Background()); got <- err }()
	put(t, s, "q", "1", Periodic)
	must(t, <-got)
	must(t, q.Accepted(next(t, q).ID))
	go func() { _, err := q.Next(context.Background()); got <- err }()
	must(t, s.Close())
	wantErr(t, <-got, ErrClosed)
	_, err := s.Enqueue(context.Background(), Entry{Queue: "q", ControlID: "2", Payload: []byte("x")})
	wantErr(t, err, ErrClosed)
	wantErr(t, q.Accepted(1), ErrClosed)
	wantErr(t, q.Sent(1), ErrClosed)
	must(t, s.Close())
}

func TestAQuarantinedEntryKeepsItsPlaceAndItsReason(t *testing.T) {
	path := newPath(t)
	s := open(t, path, Options{})
	for i := range 3 {
		put(t, s, "q", fmt.Sprint(i), Periodic)
	}
	q := s.Queue("q")
	e := next(t, q)
	must(t, q.Sent(e.ID))
	must(t, q.Quarantine(e.ID, "AR: unknown device"))
	if got := next(t, q); got.ControlID != "1" {
		t.Fatalf("got %s", got.ControlID)
	}
	must(t, s.Close())
	s = open(t, path, Options{})
	q = s.Queue("q")
	shown, err := s.Get(e.ID)
	must(t, err)
	if shown.State != Quarantined || shown.Reason != "AR: unknown device" || shown.Attempts != 1 || string(shown.Payload) != "MSH|q|0" {
		t.Fatalf("got %+v", shown)
	}
	wantErr(t, q.Accepted(e.ID), ErrNotFound)
	wantErr(t, q.Quarantine(e.ID, "again"), ErrNotFound)
	wantErr(t, q.Sent(e.ID), ErrNotFound)
	must(t, s.Release(e.ID))
	if err := s.Release(e.ID); err == nil {
		t.Error("it was released twice")
	}
	if got := next(t, q); got.ControlID != "0" {
		t.Fatalf("got %s", got.ControlID)
	}
	must(t, s.Drop(e.ID, "by hand"))
	wantErr(t, s.Drop(e.ID, "again"), ErrNotFound)
	wantErr(t, s.Queue("other").Accepted(e.ID+1), ErrNotFound)
}

func TestTheClockOfTheWallDropsNothing(t *testing.T) {
	path := newPath(t)
	now := time.Date(1970, 1, 1, 0, 1, 0, 0, time.UTC) // no clock yet
	o := Options{Now: func() time.Time { return now }, MaxAge: time.Hour}
	s := open(t, path, o)
	put(t, s, "q", "1", Periodic)
	must(t, s.Close())
	now = time.Date(2026, 5, 1, 8, 0, 0, 0, time.UTC)
	s = open(t, path, o)
	put(t, s, "q", "2", Periodic)
	if n := s.Stats().Messages; n != 2 {
		t.Fatalf("there are %d", n)
	}
	must(t, s.Close())
	now = now.Add(-30 * 24 * time.Hour)
	s = open(t, path, o)
	put(t, s, "q", "3", Periodic)
	if n := s.Stats().Messages; n != 3 {
		t.Fatalf("there are %d", n)
	}
	must(t, s.Close())
}

func TestEntriesThatAreTooOldGoByThemselves(t *testing.T) {
	path := newPath(t)
	synctest.Test(t, func(t *testing.T) {
		s, err := Open(path, Options{Key: testKey, MaxAge: time.Hour})
		must(t, err)
		put(t, s, "q", "1", Alert)
		put(t, s, "q", "2", Periodic)
		must(t, s.Queue("q").Sent(next(t, s.Queue("q")).ID))
		time.Sleep(time.Hour + 2*time.Minute)
		synctest.Wait()
		if st := s.Stats().Queues["q"]; st.Messages != 1 || st.Dropped["expired"] != 1 {
			t.Errorf("got %+v", st)
		}
		must(t, s.Close())
	})
}

func TestCapacityIsTheTimeUntilSomethingMustGo(t *testing.T) {
	path := newPath(t)
	now := time.Date(2026, 5, 1, 8, 0, 0, 0, time.UTC)
	o := Options{Now: func() time.Time { return now }, MaxBytes: 10 << 20, MaxAge: 1000 * time.Hour}
	s := open(t, path, o)
	if c := s.Stats().Capacity; c != o.MaxAge {
		t.Errorf("with nothing known it is %v", c)
	}
	e := Entry{Queue: "q", Payload: make([]byte, 900)}
	for i := range 120 { // an hour, two a minute
		e.ControlID = fmt.Sprintf("%04d", i)
		_, err := s.Enqueue(context.Background(), e)
		must(t, err)
		now = now.Add(30 * time.Second)
	}
	size := float64(recordSize(&e) + recordExtra)
	st := s.Stats()
	rate := size / 30
	if st.Rate < rate*0.95 || st.Rate > rate*1.05 {
		t.Errorf("the rate is %.2f bytes/s, want about %.2f", st.Rate, rate)
	}
	want := time.Duration((float64(o.MaxBytes) - 120*size) / st.Rate * float64(time.Second))
	if diff := st.Capacity - want; diff < -time.Second || diff > time.Second {
		t.Errorf("the capacity is %v, want %v", st.Capacity, want)
	}
	must(t, s.Close())
	s = open(t, path, o)
	if again := s.Stats(); again.Rate < st.Rate*0.95 || again.Rate > st.Rate*1.05 {
		t.Errorf("opened again the rate is %.2f, was %.2f", again.Rate, st.Rate)
	}
	o.MaxAge = 2 * time.Hour
	must(t, s.Close())
	s = open(t, path, o)
	if c := s.Stats().Capacity; c != time.Hour {
		t.Errorf("with an hour left of its age the first entry gives %v", c)
	}
	must(t, s.Close())
}

func TestNothingOfAMessageIsReadableInTheFilesOrTheLog(t *testing.T) {
	path := newPath(t)
	var log strings.Builder
	canary := "CANARY^PATIENT"
	s := open(t, path, Options{MaxBytes: 4 << 10, Log: slog.New(slog.NewTextHandler(&log, nil))})
	for i := range 20 {
		_, err := s.Enqueue(context.Background(), Entry{Queue: "q", Device: "bed", ControlID: fmt.Sprint(i), Payload: []byte(strings.Repeat(canary, 40))})
		must(t, err)
	}
	q := s.Queue("q")
	must(t, q.Quarantine(next(t, q).ID, canary))
	must(t, s.Close())
	if !strings.Contains(log.String(), "gave up") {
		t.Error("the log does not tell of the drops")
	}
	for _, name := range []string{path, path + journalSuffix} {
		b, err := os.ReadFile(name)
		must(t, err)
		log.Write(b)
	}
	if strings.Contains(log.String(), canary) {
		t.Error("the message is readable")
	}
}

func TestANonceNeverComesTwice(t *testing.T) {
	path := newPath(t)
	seen := map[string]bool{}
	check := func(v []byte) {
		nonce := string(v[18 : 18+sessionSize+8])
		if seen[nonce] {
			t.Error("a nonce comes twice")
		}
		seen[nonce] = true
	}
	for round := range 4 {
		s := open(t, path, Options{})
		for i := range 5 {
			id := put(t, s, "q", fmt.Sprint(round, i), Periodic)
			v, err := s.fetch(id)
			must(t, err)
			check(v)
		}
		must(t, s.Close())
		if round == 1 { // begun anew with the same key
			must(t, os.Remove(path))
		}
	}
	if len(seen) != 20 {
		t.Errorf("%d nonces", len(seen))
	}
}

func TestTheFileStaysWithinItsBoundHoweverLongItIsUsed(t *testing.T) {
	o := Options{MaxBytes: 1 << 20}
	s := open(t, newPath(t), o)
	r := rand.New(rand.NewPCG(1, 2))
	n := 0
	for round := range 4 {
		var wg sync.WaitGroup
		for range 8 {
			from := n
			n += 60
			sizes := make([]int, 60)
			for i := range sizes {
				sizes[i] = 200 + r.IntN(6000)
			}
			wg.Go(func() {
				for i, size := range sizes {
					_, err := s.Enqueue(context.Background(), Entry{Queue: "q", ControlID: fmt.Sprint(from + i), Class: Class((from + i) % 4), Payload: make([]byte, size)})
					if err != nil && !errors.Is(err, ErrFull) {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		if round%2 == 1 {
			for q := s.Queue("q"); s.Stats().Messages > 50; {
				must(t, q.Accepted(next(t, q).ID))
			}
		}
	}
	if st := s.Stats(); st.FileBytes > 2*o.MaxBytes+8<<20 {
		t.Errorf("the files have %d bytes for %d", st.FileBytes, o.MaxBytes)
	} else {
		t.Logf("the files have %d bytes for at most %d", st.FileBytes, o.MaxBytes)
	}
}

func TestAContextThatEndsTakesTheEntryBackOrItIsStored(t *testing.T) {
	s := open(t, newPath(t), Options{})
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	stored := 0
	for i := range 200 {
		_, err := s.Enqueue(ctx, Entry{Queue: "q", ControlID: fmt.Sprint(i), Payload: []byte("x")})
		switch {
		case err == nil:
			stored++
		case !errors.Is(err, context.Canceled):
			t.Fatal(err)
		}
	}
	if n := s.Stats().Messages; n != stored {
		t.Errorf("%d are there, %d were stored", n, stored)
	}
}
