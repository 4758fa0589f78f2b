//go:build linux

package spool

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// TestNothingIsLostWhenThePowerFailsAtAnyInstant records every write, sync and rename of a
// process that enqueues and delivers, and every promise that it was given. Then it cuts
// the power at random places of that record: what was synced is there; of what was
// written since, any part may be, in any order, torn at sectors of 512 bytes. The spool
// must open, and keep every promise made before the cut. GATEWAY_SPOOL_CUTS is the number
// of cuts.
func TestNothingIsLostWhenThePowerFailsAtAnyInstant(t *testing.T) {
	cuts := 250 / slow
	if n, err := strconv.Atoi(os.Getenv("GATEWAY_SPOOL_CUTS")); err == nil {
		cuts = n
	} else if testing.Short() {
		cuts = 100 / slow
	}
	dir, err := filepath.EvalSymlinks(t.TempDir())
	must(t, err)
	d := newDisk()
	events := record(t, d, filepath.Join(dir, "spool.db"), 120/slow)
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 3))
	at := instants(r, cuts, len(events))
	done, torn := 0, 0
	for i, cut := range at {
		for ; done < cut; done++ {
			d.apply(events[done])
		}
		into := filepath.Join(t.TempDir(), "after")
		lost := d.cut(t, r, into, dir)
		if lost {
			torn++
		}
		if err := d.promised.check(filepath.Join(into, "spool.db")); err != nil {
			t.Fatalf("seed %d, cut %d before event %d of %d (%v), %d promises: %v", seed, i, cut, len(events), kinds(events, cut), len(d.promised.stored), err)
		}
		os.RemoveAll(into)
	}
	t.Logf("%d cuts in a record of %d events, %d with writes under way; %d messages stored, %d accepted", cuts, len(events), torn, len(d.promised.stored), len(d.promised.taken))
	if torn < cuts/4 {
		t.Errorf("only %d cuts had writes under way: they tell too little", torn)
	}
}

// TestNothingIsLostWhenThePowerFailsAgainWhileTheSpoolIsOpenedAfterIt cuts the power in
// what a process does that finds the files as a power cut left them.
func TestNothingIsLostWhenThePowerFailsAgainWhileTheSpoolIsOpenedAfterIt(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	must(t, err)
	first := newDisk()
	events := record(t, first, filepath.Join(dir, "spool.db"), 60/slow)
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 5))
	done := 0
	for _, cut := range instants(r, 4/slow, len(events)) {
		for ; done < cut; done++ {
			first.apply(events[done])
		}
		left := filepath.Join(dir, fmt.Sprint("left", cut))
		first.cut(t, r, left, dir)
		second := readDisk(t, left, first.promised.clone())
		opening := record(t, second, filepath.Join(left, "spool.db"), 0)
		next := 0
		for _, again := range instants(r, 25, len(opening)) {
			for ; next < again; next++ {
				second.apply(opening[next])
			}
			into := filepath.Join(t.TempDir(), "after")
			second.cut(t, r, into, left)
			if err := second.promised.check(filepath.Join(into, "spool.db")); err != nil {
				t.Fatalf("seed %d, cut before event %d, and again before %d of %d: %v", seed, cut, again, len(opening), err)
			}
			os.RemoveAll(into)
		}
	}
}

// instants are n places in a record of so many events, in their order.
func instants(r *rand.Rand, n, events int) []int {
	at := make([]int, n)
	for i := range at {
		at[i] = r.IntN(events + 1)
	}
	slices.Sort(at)
	return at
}

// readDisk is a disk that holds what is in a folder.
func readDisk(t *testing.T, dir string, promised *ledger) *disk {
	t.Helper()
	d := newDisk()
	d.promised = promised
	names, err := os.ReadDir(dir)
	must(t, err)
	for i, name := range names {
		path := filepath.Join(dir, name.Name())
		b, err := os.ReadFile(path)
		must(t, err)
		d.names[path], d.files[i+1] = i+1, &diskFile{synced: b}
	}
	return d
}

func kinds(events []event, cut int) []eventKind {
	var k []eventKind
	for _, e := range events[max(cut-6, 0):min(cut+2, len(events))] {
		k = append(k, e.kind)
	}
	return k
}

// record runs the child to its end under the tracer, on what is on a disk.
func record(t *testing.T, d *disk, path string, each int) []event {
	t.Helper()
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), fmt.Sprintf("%s=%s %s %d", childEnv, path, "0000", each))
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	must(t, err)
	defer null.Close()
	child.ExtraFiles, child.Stderr = []*os.File{null}, os.Stderr
	events, err := trace(child, filepath.Dir(path), d.names)
	if errors.Is(err, errNoTrace) {
		t.Skip(err)
	}
	must(t, err)
	return events
}

const sector = 512

// A disk is what the disk holds for certain, and what was written and not synced.
type disk struct {
	files    map[int]*diskFile
	names    map[string]int // that are durable
	renames  []event        // of names that are not, in their order
	promised *ledger
}

type diskFile struct {
	synced  []byte
	pending []event
}

func newDisk() *disk {
	return &disk{files: map[int]*diskFile{}, names: map[string]int{}, promised: newLedger()}
}

func (d *disk) apply(e event) {
	switch e.kind {
	case eventPromise:
		d.promised.note(string(e.data))
	case eventWrite, eventTruncate:
		d.files[e.file].pending = append(d.files[e.file].pending, e)
	case eventSync:
		f := d.files[e.file]
		for _, w := range f.pending {
			f.synced = perform(f.synced, w, nil)
		}
		f.pending = nil
	case eventCreate:
		d.files[e.file] = &diskFile{}
		d.renames = append(d.renames, e)
	case eventRename, eventUnlink:
		d.renames = append(d.renames, e)
	case eventSyncDir:
		rename(d.names, d.renames)
		d.renames = nil
	}
}

func rename(names map[string]int, events []event) {
	for _, e := range events {
		switch e.kind {
		case eventCreate:
			names[e.name] = e.file
		case eventRename:
			names[e.to] = names[e.name]
			delete(names, e.name)
		case eventUnlink:
			delete(names, e.name)
		}
	}
}

// perform does a write or truncation to b, sector by sector where keep says so.
func perform(b []byte, e event, keep func() bool) []byte {
	if e.kind == eventTruncate {
		if keep != nil && !keep() {
			return b
		}
		if int(e.offset) <= len(b) {
			return b[:e.offset:e.offset]
		}
		return append(b[:len(b):len(b)], make([]byte, int(e.offset)-len(b))...)
	}
	for from := 0; from < len(e.data); {
		at := int(e.offset) + from
		to := min(from+sector-at%sector, len(e.data))
		if keep == nil || keep() {
			if end := at + to - from; end > len(b) {
				b = append(b, make([]byte, end-len(b))...)
			}
			copy(b[at:], e.data[from:to])
		}
		from = to
	}
	return b
}

// cut writes what is on the disk when the power fails now, and reports whether something
// was under way.
func (d *disk) cut(t *testing.T, r *rand.Rand, into, from string) (underWay bool) {
	t.Helper()
	must(t, os.MkdirAll(into, 0o700))
	names := maps.Clone(d.names)
	rename(names, d.renames[:r.IntN(len(d.renames)+1)]) // the journal of names keeps their order
	for name, file := range names {
		f := d.files[file]
		underWay = underWay || len(f.pending) > 0
		b := slices.Clone(f.synced)
		odds := []float64{0, 1, 0.5, 0.1, 0.9}[r.IntN(5)]
		for _, w := range f.pending {
			b = perform(b, w, func() bool { return r.Float64() < odds })
		}
		must(t, os.WriteFile(filepath.Join(into, strings.TrimPrefix(name, from)), b, 0o600))
	}
	return underWay
}
