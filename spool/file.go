package spool

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"syscall"
	"time"

	"go.etcd.io/bbolt"
)

// The parts of the file. records: ID → record. marks: ID → mark. about: what the file is
// and the counts; it is small enough to live within the root page, which every commit
// writes anyway.
var (
	recordsBucket = []byte("records")
	marksBucket   = []byte("marks")
	aboutBucket   = []byte("about")
	keyKey        = []byte("key")
	formatKey     = []byte("format")
	countsKey     = []byte("counts/")
	rateKey       = []byte("rate")
	generationKey = []byte("generation") // of the journal that follows the tree
)

const fileFormat = "1"

// A store is the open file.
type store struct {
	file *os.File
	db   *bbolt.DB
	size int64 // of the file, as far as it is known to be filled
	used int64 // of it by the tree and its free pages
}

// lockFile opens a file and locks it, waiting as long as limit. The lock goes with the
// file, so that nobody comes in between here and bbolt.
func lockFile(path string, readOnly bool, limit time.Duration) (*os.File, error) {
	flag, how := os.O_RDWR, syscall.LOCK_EX
	if readOnly {
		flag, how = os.O_RDONLY, syscall.LOCK_SH
	}
	f, err := os.OpenFile(path, flag, 0)
	if err != nil {
		return nil, err
	}
	for start := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		err = syscall.Flock(int(f.Fd()), how|syscall.LOCK_NB)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			f.Close()
			return nil, fmt.Errorf("the spool %s cannot be locked: %w", path, err)
		}
		if time.Since(start) >= limit {
			f.Close()
			return nil, fmt.Errorf("%w: %s; stop the other gatewayd, or ask it by its status socket", ErrLocked, path)
		}
	}
}

// openStore lets bbolt have a file that was checked.
//
// The free list is written with each transaction, as bbolt does by default: without it,
// bbolt looks for the free pages after a failed one in a goroutine of its own, where a
// damaged page is a panic that nobody can recover from.
func openStore(f *os.File, readOnly bool, room int64) (st *store, err error) {
	st = &store{file: f}
	defer contain(&err)
	st.db, err = bbolt.Open(f.Name(), 0o600, &bbolt.Options{
		Timeout:         time.Second,
		ReadOnly:        readOnly,
		FreelistType:    bbolt.FreelistArrayType, // gives the lowest page first: the file stays short
		PageSize:        pageSize,
		InitialMmapSize: int(room), // so that the map is never moved, which would wait for readers
		NoStatistics:    true,
		OpenFile:        func(string, int, os.FileMode) (*os.File, error) { return f, nil },
	})
	if err != nil {
		return nil, fmt.Errorf("the spool %s cannot be opened: %w", f.Name(), err)
	}
	st.db.AllocSize = growLeast
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	st.size = info.Size()
	return st, st.measure()
}

// createStore makes a new file beside path, ready and durable but not in its place yet.
func createStore(path string, key [32]byte, room int64, fill func(*store) error) (*store, error) {
	f, err := os.OpenFile(path+".new", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("%w: a new spool cannot be made: %w", ErrDisk, err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("%w: %s.new", ErrLocked, path)
	}
	st, err := begin(f, key, room, fill)
	if err != nil {
		os.Remove(f.Name())
		f.Close()
		return nil, fmt.Errorf("%w: a new spool cannot be made: %w", ErrDisk, err)
	}
	return st, nil
}

// begin makes f a spool. It is synced once, at the end: before it is put in its place
// nobody depends on it.
func begin(f *os.File, key [32]byte, room int64, fill func(*store) error) (*store, error) {
	if err := f.Truncate(0); err != nil {
		return nil, err
	}
	st, err := openStore(f, false, room)
	if err != nil {
		return nil, err
	}
	st.db.NoSync = true
	if err = st.update(func(tx *bbolt.Tx) error { return describe(tx, key) }); err == nil {
		err = fill(st)
	}
	if err == nil {
		err = st.extend(growLeast)
	}
	if err == nil {
		err = f.Sync()
	}
	if err != nil {
		return nil, errors.Join(err, st.close())
	}
	st.db.NoSync = false
	return st, nil
}

// describe makes the parts of a new file.
func describe(tx *bbolt.Tx, key [32]byte) error {
	for _, name := range [...][]byte{recordsBucket, marksBucket} {
		if _, err := tx.CreateBucket(name); err != nil {
			return err
		}
	}
	about, err := tx.CreateBucket(aboutBucket)
	if err != nil {
		return err
	}
	return errors.Join(about.Put(keyKey, keyMark(key)), about.Put(formatKey, []byte(fileFormat)),
		about.Put(generationKey, make([]byte, 8)))
}

// place gives the new file its name, after the old one, if any, got the name aside.
func place(path, aside string) error {
	if aside != "" {
		if err := os.Rename(path, aside); err != nil {
			return fmt.Errorf("the damaged spool cannot be moved aside: %w", err)
		}
	}
	if err := os.Rename(path+".new", path); err != nil {
		return fmt.Errorf("the new spool cannot be put in its place: %w", err)
	}
	return syncDir(path)
}

// syncDir makes the names in the folder of path durable.
func syncDir(path string) error {
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil && !errors.Is(err, errors.ErrUnsupported) && !errors.Is(err, syscall.EINVAL) {
		return fmt.Errorf("the folder of the spool cannot be synced: %w", err)
	}
	return nil
}

// asideName is a free name for a damaged file.
func asideName(path string, now time.Time) string {
	base := path + ".corrupt-" + now.UTC().Format("20060102T150405Z")
	name := base
	for n := 2; ; n++ {
		if _, err := os.Lstat(name); errors.Is(err, fs.ErrNotExist) {
			return name
		}
		name = fmt.Sprintf("%s-%d", base, n)
	}
}

// errPanic is a page that turned bad after it was checked, or a bad block under the map.
var errPanic = errors.New("its pages are damaged")

// contain turns a panic into an error. bbolt panics on a page that is not what it
// expects, and the map gives a fault on a bad block, which SetPanicOnFault makes a panic.
func contain(err *error) {
	if p := recover(); p != nil {
		*err = fmt.Errorf("%w: %v", errPanic, p)
	}
}

func (st *store) update(f func(*bbolt.Tx) error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer contain(&err)
	tx, err := st.db.Begin(true)
	if err != nil {
		return err
	}
	defer tx.Rollback() // after a commit it does nothing; after a panic it reads no page
	if err := f(tx); err != nil {
		return err
	}
	if err := tx.Commit(); err != nil {
		return err
	}
	return st.measure()
}

// measure notes how far the file is used.
func (st *store) measure() error {
	return st.view(func(tx *bbolt.Tx) error { st.used = tx.Size(); return nil })
}

func (st *store) view(f func(*bbolt.Tx) error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer contain(&err)
	return st.db.View(f)
}

// txid is the number of the newest transaction, 0 where it cannot be known.
func (st *store) txid() (id int) {
	if st.view(func(tx *bbolt.Tx) error { id = tx.ID(); return nil }) != nil {
		return 0
	}
	return id
}

// close closes the file. After a panic bbolt may hold its own locks for ever: then only
// the file is closed, which gives the lock on it back, and the map is left behind.
func (st *store) close() error {
	done := make(chan error, 1)
	go func() {
		var err error
		defer func() { done <- err }()
		defer contain(&err)
		err = st.db.Close()
	}()
	select {
	case err := <-done:
		return err
	case <-time.After(time.Second):
		return st.file.Close()
	}
}

// The file grows by whole steps of zeros that are durable before bbolt uses them. So a
// full disk is met here, where nothing is half done; what is in the file can still be
// delivered and removed, as the pages for it are there; and a commit overwrites blocks
// that the file already has, which is about half as costly to sync as new ones.
const (
	growLeast = 256 << 10
	growMost  = 4 << 20
	spareRoom = 64 * pageSize
)

// reserve makes sure that a transaction which writes so many records has room.
func (st *store) reserve(records int, bytes int64) error {
	need := st.used + 2*bytes + int64(records)*pageSize + spareRoom
	if st.size >= need {
		return nil
	}
	return st.extend(max(min(max(need/4, growLeast), growMost), need-st.size))
}

// extend appends at least n zero bytes. What was begun is taken back where it fails.
func (st *store) extend(n int64) error {
	info, err := st.file.Stat()
	if err != nil {
		return err
	}
	old := info.Size()
	size := (old + n + pageSize - 1) / pageSize * pageSize
	if _, err = io.CopyN(io.NewOffsetWriter(st.file, old), zeroReader{}, size-old); err == nil {
		err = syscall.Fdatasync(int(st.file.Fd()))
	}
	if err != nil {
		return errors.Join(fmt.Errorf("the file cannot grow: %w", err), st.file.Truncate(old))
	}
	st.size = size
	return nil
}

type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// idKey is the key of an entry: big endian, so that the order of keys is that of IDs.
func idKey(id uint64) []byte { return binary.BigEndian.AppendUint64(nil, id) }

// get appends the record of an entry to dst.
func (st *store) get(dst []byte, id uint64) ([]byte, error) {
	err := st.view(func(tx *bbolt.Tx) error {
		v := tx.Bucket(recordsBucket).Get(idKey(id))
		if v == nil {
			return ErrNotFound
		}
		dst = append(dst, v...)
		return nil
	})
	return dst, err
}
