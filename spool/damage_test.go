package spool

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const imageEntries = 60

// image makes a spool, the same each time, whose tree has several levels of pages and whose journal goes on
// from it, and gives both files: of the entries 1 to imageEntries the first three were
// accepted, and the last ones are in the journal only.
func image(t testing.TB) (tree, log []byte) {
	t.Helper()
	path := newPath(t)
	o := Options{journal: 64 << 10, Random: rand.NewChaCha8([32]byte{}), Now: func() time.Time { return time.Date(2026, 5, 1, 8, 0, 0, 0, time.UTC) }}
	s := open(t, path, o)
	for i := range imageEntries {
		if i == imageEntries-8 {
			must(t, s.Close())
			s = open(t, path, o)
		}
		control := fmt.Sprint("c", i)
		_, err := s.Enqueue(context.Background(), Entry{Queue: "q", Device: "bed", ControlID: control, Payload: childPayload(control)[:min(900, len(childPayload(control)))]})
		must(t, err)
	}
	q := s.Queue("q")
	for range 3 {
		must(t, q.Accepted(next(t, q).ID))
	}
	tree, err := os.ReadFile(path)
	must(t, err)
	log, err = os.ReadFile(path + journalSuffix)
	must(t, err)
	must(t, s.Close())
	return tree, log
}

// lay puts the files at a new path.
func lay(t testing.TB, tree, log []byte) string {
	t.Helper()
	path := newPath(t)
	must(t, os.WriteFile(path, tree, 0o600))
	must(t, os.WriteFile(path+journalSuffix, log, 0o600))
	return path
}

// works shows that the spool at path takes and gives messages, and is whole when it is
// opened the next time.
func works(t testing.TB, s *Spool, path string) {
	t.Helper()
	put(t, s, path, "after the damage", Alert)
	e := next(t, s.Queue(path))
	if e.ControlID != "after the damage" {
		t.Fatalf("got %q", e.ControlID)
	}
	must(t, s.Queue(path).Accepted(e.ID))
	n := len(s.list(""))
	must(t, s.Close())
	s = open(t, path, Options{})
	defer s.Close()
	if o := s.Opened(); o.Damage != "" || o.Entries != n || o.Lost > 0 {
		t.Fatalf("opened again, it has %+v, want %d entries", o, n)
	}
}

// each gives all places where the record of a control ID lies: the tree keeps old copies
// in its free pages.
func each(b []byte, control string, f func(at int)) {
	what := append([]byte{byte(len(control))}, control...)
	for from := 0; ; {
		at := bytes.Index(b[from:], what)
		if at < 0 {
			return
		}
		f(from + at)
		from += at + 1
	}
}

func TestADamagedFileIsMovedAsideAndWhatIsWholeStaysDeliverable(t *testing.T) {
	tree, log := image(t)
	newest, err := readMeta(bytes.NewReader(tree))
	must(t, err)
	for _, c := range []struct {
		name   string
		damage func(tree, log []byte) ([]byte, []byte)
		live   int // at least so many are queued
		unsure int // so many are quarantined, at least
		lost   int
		whole  bool // nothing is moved aside
	}{
		{"nothing is wrong", func(b, j []byte) ([]byte, []byte) { return b, j }, imageEntries - 3, 0, 0, true},
		{"it is empty", func(b, j []byte) ([]byte, []byte) { return nil, j }, 0, 8, 0, false},
		{"it is a text", func(b, j []byte) ([]byte, []byte) { return []byte("remember the milk\n"), make([]byte, len(j)) }, 0, 0, 0, false},
		{"it is noise", func(b, j []byte) ([]byte, []byte) { return noise(len(b)), noise(len(j)) }, 0, 0, 0, false},
		{"its second half is missing", func(b, j []byte) ([]byte, []byte) { return b[:int(newest.pages)*pageSize/2], j }, 0, 40, 0, false},
		{"both header pages are gone", func(b, j []byte) ([]byte, []byte) { clear(b[:2*pageSize]); return b, j }, 0, imageEntries / 2, 0, false},
		{"the newest header page is gone", func(b, j []byte) ([]byte, []byte) {
			clear(b[newest.txid%2*pageSize:][:pageSize])
			return b, j
		}, 0, 0, 0, true},
		{"one record has a wrong bit", func(b, j []byte) ([]byte, []byte) {
			each(b, "c20", func(at int) { b[at+10] ^= 4 })
			return b, j
		}, imageEntries - 4, 0, 1, false},
		{"a record says another queue", func(b, j []byte) ([]byte, []byte) {
			each(b, "c21", func(at int) { b[at-5] = 'Q' })
			return b, j
		}, imageEntries - 4, 0, 1, false},
		{"the root page is gone", func(b, j []byte) ([]byte, []byte) {
			clear(b[newest.root*pageSize:][:pageSize])
			return b, j
		}, 0, imageEntries / 2, 0, false},
		{"a page of records names itself wrong", func(b, j []byte) ([]byte, []byte) {
			each(b, "c30", func(at int) { b[at/pageSize*pageSize] ^= 0xFF })
			return b, j
		}, imageEntries - 30, 1, 0, false},
		{"a page of records has a wrong length", func(b, j []byte) ([]byte, []byte) {
			each(b, "c30", func(at int) { b[at/pageSize*pageSize+pageHead+14] = 0xFF })
			return b, j
		}, imageEntries - 30, 0, 0, false},
		{"the journal is missing its middle", func(b, j []byte) ([]byte, []byte) {
			clear(j[2*pageSize : 3*pageSize])
			return b, j
		}, imageEntries - 4, 0, 0, false},
		{"a record in the journal has a wrong bit", func(b, j []byte) ([]byte, []byte) {
			each(j, fmt.Sprint("c", imageEntries-3), func(at int) { j[at+10] ^= 1 })
			return b, j
		}, imageEntries - 4, 0, 0, false},
		{"the journal is cut", func(b, j []byte) ([]byte, []byte) { return b, j[:3*pageSize] }, imageEntries - 8, 0, 0, true},
		{"the journal is empty", func(b, j []byte) ([]byte, []byte) { return b, nil }, imageEntries - 8, 0, 0, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			b, j := c.damage(bytes.Clone(tree), bytes.Clone(log))
			path := lay(t, b, j)
			s := open(t, path, Options{})
			o, st := s.Opened(), s.Stats()
			if (o.MovedAside == "") != c.whole || !c.whole && o.Damage == "" {
				t.Errorf("it opened with %+v", o)
			}
			if st.Messages < c.live || o.Unsure < c.unsure || o.Lost != c.lost {
				t.Errorf("%d are queued, %d unsure, %d lost; want %d, %d, %d (%s)", st.Messages, o.Unsure, o.Lost, c.live, c.unsure, c.lost, o.Damage)
			}
			isAuthentic(t, s)
			if !c.whole {
				keptAside(t, o.MovedAside, b, j)
			}
			works(t, s, path)
		})
	}
}

// keptAside shows that the damaged file is there as it was.
func keptAside(t *testing.T, aside string, files ...[]byte) {
	t.Helper()
	got, err := os.ReadFile(aside)
	must(t, err)
	for _, f := range files {
		if bytes.Equal(got, f) {
			return
		}
	}
	t.Error("the file moved aside is not what it was")
}

// isAuthentic shows that every entry has the content that was enqueued for it.
func isAuthentic(t testing.TB, s *Spool) {
	t.Helper()
	must(t, s.List("", func(e Entry) error {
		full, err := s.Get(e.ID)
		if err != nil {
			return err
		}
		if want := childPayload(e.ControlID); !bytes.HasPrefix(want, full.Payload) {
			return fmt.Errorf("%s has another content", e.ControlID)
		}
		if e.State == Quarantined && e.Reason != unsureReason {
			return fmt.Errorf("%s is quarantined: %q", e.ControlID, e.Reason)
		}
		return nil
	}))
}

func noise(n int) []byte {
	b := make([]byte, n)
	state := uint32(1)
	for i := range b {
		state = state*1664525 + 1013904223
		b[i] = byte(state >> 24)
	}
	return b
}

func TestAFolderInItsPlaceIsMovedAside(t *testing.T) {
	path := newPath(t)
	must(t, os.MkdirAll(filepath.Join(path, "inside"), 0o700))
	s := open(t, path, Options{})
	if o := s.Opened(); !strings.HasPrefix(o.MovedAside, path+".corrupt-") {
		t.Fatalf("got %+v", o)
	}
	if _, err := os.Stat(filepath.Join(s.Opened().MovedAside, "inside")); err != nil {
		t.Error(err)
	}
	works(t, s, path)
	must(t, os.Rename(path+journalSuffix, path+".elsewhere"))
	must(t, os.Mkdir(path+journalSuffix, 0o700))
	s = open(t, path, Options{})
	if o := s.Opened(); !strings.HasPrefix(o.MovedAside, path+journalSuffix+".corrupt-") {
		t.Errorf("got %+v", o)
	}
	works(t, s, path)
}

func TestAnotherKeyIsToldFromDamageAndNothingIsTouched(t *testing.T) {
	tree, log := image(t)
	path := lay(t, tree, log)
	_, err := Open(path, Options{Key: [32]byte{9}})
	wantErr(t, err, ErrWrongKey)
	if !strings.Contains(err.Error(), "give the right key") {
		t.Errorf("the error names no next step: %v", err)
	}
	_, err = ReadOnly(path, [32]byte{9})
	wantErr(t, err, ErrWrongKey)
	names, err := os.ReadDir(filepath.Dir(path))
	must(t, err)
	if len(names) != 2 {
		t.Errorf("there are other files now: %v", names)
	}
	keptAside(t, path, tree)
	keptAside(t, path+journalSuffix, log)
	s := open(t, path, Options{})
	if n := s.Stats().Messages; n != imageEntries-3 {
		t.Errorf("with the right key there are %d", n)
	}
}

func TestASecondProcessIsToldThatTheSpoolIsInUse(t *testing.T) {
	path := newPath(t)
	s := open(t, path, Options{})
	_, err := Open(path, Options{Key: testKey, LockTimeout: 1})
	wantErr(t, err, ErrLocked)
	put(t, s, "q", "1", Periodic)
	must(t, s.Close())
	s = open(t, path, Options{LockTimeout: 1})
	if s.Stats().Messages != 1 {
		t.Error("the message is gone")
	}
}

func TestARecordThatTurnsBadWhileTheSpoolRunsIsQuarantinedAndTheNextOneGiven(t *testing.T) {
	tree, log := image(t)
	path := lay(t, tree, log)
	s := open(t, path, Options{})
	each(tree, "c3", func(at int) { flip(t, path, at+10) })
	q := s.Queue("q")
	e := next(t, q)
	if e.ControlID != "c4" {
		t.Fatalf("got %s", e.ControlID)
	}
	st := s.Stats().Queues["q"]
	if st.Quarantined != 1 || st.Messages != imageEntries-4 {
		t.Fatalf("got %+v", st)
	}
	wantErr(t, s.Release(e.ID-1), ErrDamaged)
	must(t, s.List("q", func(e Entry) error {
		if e.State == Quarantined && !strings.Contains(e.Reason, "damaged") {
			return fmt.Errorf("the reason is %q", e.Reason)
		}
		return nil
	}))
	must(t, s.Close())
}

func flip(t *testing.T, path string, at int) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	var b [1]byte
	_, err = f.ReadAt(b[:], int64(at))
	must(t, err)
	b[0] ^= 0xFF
	_, err = f.WriteAt(b[:], int64(at))
	must(t, err)
}

func TestPagesThatTurnBadWhileTheSpoolRunsAreSalvagedAndItGoesOn(t *testing.T) {
	tree, log := image(t)
	newest, err := readMeta(bytes.NewReader(tree))
	must(t, err)
	for _, c := range []struct {
		name   string
		damage func(path string)
		least  int
	}{
		{"a page names itself wrong", func(path string) { each(tree, "c3", func(at int) { flip(t, path, at/pageSize*pageSize) }) }, imageEntries - 3},
		{"the root page is of no kind", func(path string) { flip(t, path, int(newest.root)*pageSize+8) }, imageEntries - 3},
		{"the file is cut short", func(path string) { must(t, os.Truncate(path, 3*pageSize)) }, 8},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := lay(t, tree, log)
			s := open(t, path, Options{})
			c.damage(path)
			must(t, s.Drop(4, "c3 goes from its page with the next transaction"))
			for i := range 40 { // and that comes when the journal is full
				put(t, s, "q", fmt.Sprint("more ", i), Alert)
			}
			put(t, s, "q", "last", Alert)
			for q := s.Queue("q"); ; {
				e := next(t, q)
				must(t, q.Accepted(e.ID))
				if e.ControlID == "last" {
					break
				}
			}
			o := s.Opened()
			if o.MovedAside == "" || o.Entries < c.least {
				t.Errorf("got %+v", o)
			}
			works(t, s, path)
		})
	}
}

func TestReadOnlyShowsWhatAStoppedDaemonHolds(t *testing.T) {
	tree, log := image(t)
	path := lay(t, tree, log)
	s, err := ReadOnly(path, testKey)
	must(t, err)
	isAuthentic(t, s)
	if n := s.Stats().Queues["q"].Messages; n != imageEntries-3 {
		t.Errorf("it shows %d", n)
	}
	_, err = s.Enqueue(context.Background(), Entry{Queue: "q", ControlID: "x", Payload: []byte("x")})
	wantErr(t, err, ErrReadOnly)
	wantErr(t, s.Drop(20, ""), ErrReadOnly)
	_, err = s.Queue("q").Next(context.Background())
	wantErr(t, err, ErrReadOnly)
	must(t, s.Close())
	keptAside(t, path, tree)
	keptAside(t, path+journalSuffix, log)
	if _, err := ReadOnly(filepath.Join(t.TempDir(), "none"), testKey); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

// FuzzOpen changes the files of a spool in any way: Open must neither fail, panic nor
// hang, give nothing that was not put in, and leave a spool that works.
func FuzzOpen(f *testing.F) {
	tree, log := image(f)
	f.Add([]byte{})
	f.Add([]byte{0, 0, 0, 1, 0xFF})                       // a header page
	f.Add([]byte{0x20, 0, 0, 1, 0xFF, 0x20, 16, 0, 9, 1}) // a page, and a length in it
	f.Add([]byte{0xF0, 0, 0, 3, 0})                       // cut short
	f.Add([]byte{0x80, 0, 4, 1, 0xFF})                    // the journal
	f.Fuzz(func(t *testing.T, change []byte) {
		b, j := bytes.Clone(tree), bytes.Clone(log)
		for len(change) >= 5 {
			b, j = mutate(b, j, [5]byte(change))
			change = change[5:]
		}
		path := lay(t, b, j)
		s := open(t, path, Options{})
		isAuthentic(t, s)
		works(t, s, path)
	})
}

// mutate does one change: what it is done to, where, how long, and with what.
func mutate(tree, log []byte, c [5]byte) ([]byte, []byte) {
	file := &tree
	if c[0]&0x80 != 0 {
		file = &log
	}
	if len(*file) == 0 {
		return tree, log
	}
	at := (int(c[0]&0x0F)<<16 | int(c[1])<<8 | int(c[2])) % len(*file)
	switch c[0] >> 4 & 7 {
	case 7:
		*file = (*file)[:at]
	case 6:
		copy((*file)[at:], noise(int(c[3])*16))
	case 5: // a page over another one
		from := int(c[3]) * pageSize % len(*file)
		copy((*file)[at/pageSize*pageSize:], (*file)[from:min(from+pageSize, len(*file))])
	default:
		for i := at; i < min(at+1+int(c[3]%8), len(*file)); i++ {
			(*file)[i] ^= c[4]
		}
	}
	return tree, log
}

// FuzzWalk reads any tree without panic, and visits nothing twice.
func FuzzWalk(f *testing.F) {
	tree, log := image(f)
	f.Add([]byte{})
	f.Add([]byte{0x30, 0x30, 12, 3, 0x0F})
	f.Add([]byte{0x50, 0x40, 0, 3, 0, 0x50, 0x50, 0, 3, 0}) // pages over others
	f.Fuzz(func(t *testing.T, change []byte) {
		b := bytes.Clone(tree)
		for len(change) >= 5 {
			c := [5]byte(change)
			c[0] &= 0x7F
			b, _ = mutate(b, log, c)
			change = change[5:]
		}
		r := bytes.NewReader(b)
		top, err := readMeta(r)
		if err != nil {
			return
		}
		seen := map[string]bool{}
		w := &walker{file: r, visit: func(bucket string, k, v []byte) error {
			if seen[bucket+string(k)] {
				return fmt.Errorf("%s %x comes twice", bucket, k)
			}
			seen[bucket+string(k)] = true
			return nil
		}}
		must(t, w.walk(top, int64(len(b))))
		if len(w.damage) == 0 && len(seen) < imageEntries-8-3 {
			t.Errorf("%d keys are missing, and nothing is damaged", imageEntries-8-3-len(seen))
		}
		w.orphans(int64(len(b)), func(k, v []byte) {})
	})
}

// FuzzChanges replays any block: nothing gets in that is not authentic.
func FuzzChanges(f *testing.F) {
	_, log := image(f)
	j := &journal{size: int64(len(log))}
	name := filepath.Join(f.TempDir(), "journal")
	must(f, os.WriteFile(name, log, 0o600))
	var err error
	j.file, err = os.Open(name)
	must(f, err)
	defer j.close()
	for at := range int64(4) {
		_, _, changes, _ := j.block(at * pageSize)
		f.Add(changes)
	}
	f.Add([]byte{changeRemove, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 9})
	f.Fuzz(func(t *testing.T, changes []byte) {
		c, err := newSealer(testKey, rand.NewChaCha8([32]byte{1}))
		must(t, err)
		for _, unsure := range []bool{false, true} {
			x, o := newIndex(time.Now()), newOverlay()
			r := &replayer{seal: c, index: x, over: o, unsure: unsure}
			r.apply(changes, false)
			r.apply(changes, true)
			for id, it := range x.items {
				_, _, err := c.openRecord(nil, id, o.records[id])
				if err != nil || unsure != (it.state == Quarantined) && unsure {
					t.Errorf("entry %d is %v, %v", id, it.state, err)
				}
			}
			if len(x.items) != len(o.records) {
				t.Errorf("%d entries, %d records", len(x.items), len(o.records))
			}
		}
	})
}

func TestARecordOpensOnlyAsWhatItWasSealed(t *testing.T) {
	c, err := newSealer(testKey, rand.NewChaCha8([32]byte{}))
	must(t, err)
	e := Entry{Queue: "queue", Device: "device", ControlID: "control", Class: Alert, Payload: []byte("message")}
	v := c.sealRecord(nil, 7, &e, time.Now())
	h, p, err := c.openRecord(nil, 7, v)
	must(t, err)
	if string(p) != "message" || string(h.queue) != "queue" || string(h.device) != "device" || string(h.control) != "control" || h.class != Alert {
		t.Errorf("got %q %+v", p, h)
	}
	if _, _, err := c.openRecord(nil, 8, v); err == nil {
		t.Error("it opens with another ID")
	}
	for bit := range len(v) * 8 {
		v[bit/8] ^= 1 << (bit % 8)
		if _, _, err := c.openRecord(nil, 7, v); err == nil {
			t.Errorf("it opens with bit %d wrong", bit)
		}
		v[bit/8] ^= 1 << (bit % 8)
	}
	for n := range len(v) {
		if _, _, err := c.openRecord(nil, 7, v[:n]); err == nil {
			t.Errorf("it opens with %d bytes of %d", n, len(v))
		}
	}
	m := c.sealMark(nil, 7, mark{Quarantined, 3, "AR"})
	if got, err := c.openMark(7, m); err != nil || got != (mark{Quarantined, 3, "AR"}) {
		t.Errorf("got %+v, %v", got, err)
	}
	if _, err := c.openMark(8, m); err == nil {
		t.Error("the mark opens with another ID")
	}
}
