//go:build linux

package spool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// smallDisk mounts a file system of so many bytes, which takes root.
func smallDisk(t *testing.T, size int) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "tmpfs", 0, fmt.Sprintf("size=%d", size)); err != nil {
		t.Skipf("a small file system cannot be mounted: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

// fillDisk takes all the room that is left.
func fillDisk(t *testing.T, dir string) (name string) {
	t.Helper()
	f, err := os.Create(filepath.Join(dir, "filler"))
	must(t, err)
	defer f.Close()
	for b := make([]byte, 4096); err == nil; {
		_, err = f.Write(b)
	}
	wantErr(t, err, unix.ENOSPC)
	return f.Name()
}

func TestAFullDiskFailsEnqueueKeepsWhatWasPromisedAndIsGotOver(t *testing.T) {
	dir := smallDisk(t, 4<<20)
	path := filepath.Join(dir, "spool.db")
	s := open(t, path, Options{journal: 128 << 10})
	promised := 0
	var err error
	enqueue := func(i int) error {
		_, err := s.Enqueue(context.Background(), Entry{Queue: "q", ControlID: fmt.Sprint(i), Payload: make([]byte, 3000)})
		return err
	}
	filler := ""
	for err == nil {
		if err = enqueue(promised); err == nil {
			promised++
		}
		if promised == 300 {
			filler = fillDisk(t, dir)
		}
	}
	wantErr(t, err, ErrDisk)
	wantErr(t, err, unix.ENOSPC)
	if st := s.Stats(); st.Failing == nil || st.Messages != promised || promised < 300 {
		t.Fatalf("%d were promised, there are %+v", promised, st)
	}
	q := s.Queue("q")
	const taken = 200 // and the journal is full several times
	for i := range taken {
		e := next(t, q)
		if e.ControlID != fmt.Sprint(i) {
			t.Fatalf("got %s, want %d", e.ControlID, i)
		}
		must(t, q.Sent(e.ID))
		must(t, q.Accepted(e.ID))
	}
	must(t, s.Close()) // the disk is still full
	s = open(t, path, Options{journal: 128 << 10})
	if n := s.Stats().Messages; n != promised-taken {
		t.Fatalf("opened on a full disk it has %d, want %d", n, promised-taken)
	}
	must(t, os.Remove(filler))
	for i := range 100 {
		must(t, enqueue(promised+i))
	}
	if st := s.Stats(); st.Failing != nil || st.Messages != promised-taken+100 {
		t.Errorf("with room again it is %+v", st)
	}
	works(t, s, path)
}

func TestADiskThatIsReadOnlyIsToldWhenTheSpoolIsOpened(t *testing.T) {
	dir := smallDisk(t, 1<<20)
	must(t, unix.Mount("none", dir, "tmpfs", unix.MS_REMOUNT|unix.MS_RDONLY, "size=1048576"))
	_, err := Open(filepath.Join(dir, "spool.db"), Options{Key: testKey})
	wantErr(t, err, ErrDisk)
	wantErr(t, err, unix.EROFS)
}

// broken makes every write to an open file fail with ENOSPC, and gives what ends that.
func broken(t *testing.T, f *os.File) (mend func()) {
	t.Helper()
	full, err := os.OpenFile("/dev/full", os.O_RDWR, 0)
	must(t, err)
	defer full.Close()
	saved, err := unix.Dup(int(f.Fd()))
	must(t, err)
	must(t, unix.Dup3(int(full.Fd()), int(f.Fd()), unix.O_CLOEXEC))
	return func() {
		must(t, unix.Dup3(saved, int(f.Fd()), unix.O_CLOEXEC))
		must(t, unix.Close(saved))
	}
}

func TestWritesThatFailAreToldAndTheNextOneMayWork(t *testing.T) {
	for _, c := range []struct {
		name string
		file func(*Spool) *os.File
	}{
		{"of the journal", func(s *Spool) *os.File { return s.journal.file }},
		{"of the tree", func(s *Spool) *os.File { return s.store.file }},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := newPath(t)
			s := open(t, path, Options{journal: 16 << 10})
			stored := map[string]bool{}
			enqueue := func(control string) error {
				_, err := s.Enqueue(context.Background(), Entry{Queue: "q", ControlID: control, Payload: make([]byte, 3000)})
				if err == nil {
					stored[control] = true
				}
				return err
			}
			for i := range 6 {
				must(t, enqueue(fmt.Sprint(i)))
			}
			first := next(t, s.Queue("q"))
			mend := broken(t, c.file(s))
			var err error
			for i := 0; err == nil && i < 20; i++ {
				err = enqueue(fmt.Sprint("broken ", i))
			}
			wantErr(t, err, ErrDisk)
			if again := next(t, s.Queue("q")); again.ID != first.ID {
				t.Errorf("the first is %d now, and was %d", again.ID, first.ID)
			}
			mend()
			must(t, s.Queue("q").Accepted(first.ID))
			delete(stored, first.ControlID)
			for i := range 6 {
				must(t, enqueue(fmt.Sprint("mended ", i)))
			}
			must(t, s.Close())
			s = open(t, path, Options{})
			if o := s.Opened(); o.Damage != "" || o.Entries != len(stored) {
				t.Errorf("opened with %+v, want %d entries", o, len(stored))
			}
			must(t, s.List("", func(e Entry) error {
				if !stored[e.ControlID] {
					return errors.New(e.ControlID + " was refused, and is there")
				}
				return nil
			}))
		})
	}
}
