package spool

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"slices"
	"strings"
	"time"

	"go.etcd.io/bbolt"
)

// Opened tells what Open found.
type Opened struct {
	Entries    int    // that are in the spool now
	MovedAside string // where the damaged file is now, "" where it was whole
	Damage     string // what was wrong with it
	Salvaged   int    // entries that were carried over from it
	Unsure     int    // of these: quarantined, as they may have been delivered before
	Lost       int    // records that do not authenticate; they are only in the file moved aside
}

// A survey is what a file holds, as far as it can be read and is authentic.
type survey struct {
	keyOK    bool
	marks    map[uint64]mark
	counts   map[string][]byte
	rate     []byte
	lost     int
	sequence uint64
	damage   []error
}

// look surveys a file and gives each authentic record to each, in the order of IDs.
func look(f *os.File, c *sealer, each func(id uint64, h header, v []byte) error) (*survey, *walker, error) {
	s := &survey{marks: map[uint64]mark{}, counts: map[string][]byte{}}
	w := &walker{file: f}
	info, err := f.Stat()
	if err != nil {
		return s, w, err
	}
	t, err := readMeta(f)
	if err != nil {
		s.damage = append(s.damage, err)
		return s, w, nil
	}
	var payload []byte
	format := ""
	var wrongKey error
	w.visit = func(bucket string, k, v []byte) error {
		switch bucket {
		default: // records, or what once was called so
			id, h, p, err := openKeyed(c, payload[:0], k, v)
			if payload = p; err != nil {
				s.lost++
				w.broken("a record %w", err)
				return nil
			}
			return each(id, h, v)
		case string(marksBucket):
			return s.mark(c, w, k, v)
		case string(aboutBucket):
			switch {
			case bytes.Equal(k, keyKey):
				wrongKey = checkKey(v, c.key)
				s.keyOK = wrongKey == nil
			case bytes.Equal(k, formatKey):
				format = string(v)
			case bytes.Equal(k, rateKey):
				s.rate = bytes.Clone(v)
			case bytes.HasPrefix(k, countsKey):
				s.counts[string(k[len(countsKey):])] = bytes.Clone(v)
			}
		}
		return nil
	}
	err = w.walk(t, info.Size())
	if errors.Is(wrongKey, ErrWrongKey) {
		return s, w, wrongKey
	}
	switch {
	case err != nil:
		return s, w, err
	case !s.keyOK:
		w.broken("the name of its key is damaged, or it never was a spool")
	case format != fileFormat:
		w.broken("its format is %q, not %q: a newer gatewayd wrote it", format, fileFormat)
	}
	s.damage, s.sequence = w.damage, w.sequence
	return s, w, nil
}

// openKeyed opens the record at a key of the tree.
func openKeyed(c *sealer, dst, k, v []byte) (uint64, header, []byte, error) {
	if len(k) != 8 {
		return 0, header{}, dst, errUnauthentic
	}
	id := binary.BigEndian.Uint64(k)
	h, p, err := c.openRecord(dst, id, v)
	if err != nil {
		return id, h, dst, err
	}
	return id, h, p, nil
}

// mark notes a mark. One that is damaged is forgotten: its entry is queued then.
func (s *survey) mark(c *sealer, w *walker, k, v []byte) error {
	if len(k) != 8 {
		w.broken("a mark has no ID")
		return nil
	}
	id := binary.BigEndian.Uint64(k)
	m, err := c.openMark(id, v)
	if err != nil {
		w.broken("a mark %w", err)
		return nil
	}
	s.marks[id] = m
	return nil
}

// load opens the file at path, makes one where there is none, and salvages what a
// damaged one holds into a new one.
func (s *Spool) load() (*store, *index, Opened, error) {
	f, err := lockFile(s.path, false, s.o.LockTimeout)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return s.fresh()
	case err != nil && isDir(s.path):
		return s.replace(nil, nil, []error{errors.New("it is a folder")})
	case err != nil:
		return nil, nil, Opened{}, fmt.Errorf("the spool cannot be opened: %w", err)
	}
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		f.Close()
		return nil, nil, Opened{}, fmt.Errorf("the spool %s is no file: name another path in the configuration", s.path)
	}
	os.Remove(s.path + ".new") // of an Open that did not come to its end
	st, x, opened, err := s.adopt(f)
	if err != nil {
		f.Close()
	}
	return st, x, opened, err
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// fresh makes a new file where there is none. A new file that got its content and not yet
// its name, as the power failed between moving the damaged one aside and that, gets it.
func (s *Spool) fresh() (*store, *index, Opened, error) {
	if f, err := lockFile(s.path+".new", false, 0); err == nil {
		if sv, _, err := look(f, s.seal, func(uint64, header, []byte) error { return nil }); err == nil && len(sv.damage) == 0 {
			if err := place(s.path, ""); err != nil {
				f.Close()
				return nil, nil, Opened{}, err
			}
			return s.adopt(f)
		}
		f.Close()
	}
	st, err := createStore(s.path, s.o.Key, s.room(), func(*store) error { return nil })
	if err != nil {
		return nil, nil, Opened{}, err
	}
	if err := place(s.path, ""); err != nil {
		return nil, nil, Opened{}, errors.Join(err, st.close())
	}
	return st, newIndex(s.o.Now()), Opened{}, nil
}

// adopt opens a file that is there.
func (s *Spool) adopt(f *os.File) (*store, *index, Opened, error) {
	x := newIndex(s.o.Now())
	sv, w, err := look(f, s.seal, x.load)
	if err != nil {
		return nil, nil, Opened{}, err
	}
	if len(sv.damage) > 0 {
		return s.replace(f, w, sv.damage)
	}
	x.finish(sv)
	st, err := openStore(f, s.readOnly, s.room())
	return st, x, Opened{Entries: len(x.items)}, err
}

// load adds an authentic record to the index.
func (x *index) load(id uint64, h header, v []byte) error {
	queue := string(h.queue)
	x.add(&item{id: id, made: h.made, born: x.bornAt(h.stored), hash: x.hash(queue, string(h.control)),
		size: int64(len(v) + recordExtra), queue: x.queue(queue), class: h.class})
	return nil
}

// finish adds what the survey found beside the records.
func (x *index) finish(sv *survey) {
	x.last = max(x.last, sv.sequence)
	for id, m := range sv.marks {
		if it := x.items[id]; it != nil {
			it.note = &note{attempts: m.attempts, reason: m.reason}
			if m.state == Quarantined {
				x.move(it, Quarantined)
			}
		}
	}
	for name, v := range sv.counts {
		x.queue(name).counts = parseCounts(v)
	}
	if len(sv.rate) == 16 {
		x.rate.bytes = math.Float64frombits(native.Uint64(sv.rate))
		x.rate.seconds = math.Float64frombits(native.Uint64(sv.rate[8:]))
	}
	if r := x.rate; !(r.bytes >= 0 && r.bytes < 1e18 && r.seconds >= 0 && r.seconds <= rateSpan.Seconds()) {
		x.rate = rate{}
	}
}

func (c counts) append(b []byte) []byte {
	b = binary.AppendUvarint(binary.AppendUvarint(b, c.enqueued), c.accepted)
	for _, n := range c.dropped {
		b = binary.AppendUvarint(b, n)
	}
	return b
}

// parseCounts reads what append wrote, as far as it goes.
func parseCounts(b []byte) (c counts) {
	fields := []*uint64{&c.enqueued, &c.accepted}
	for i := range c.dropped {
		fields = append(fields, &c.dropped[i])
	}
	for _, f := range fields {
		v, n := binary.Uvarint(b)
		if n <= 0 {
			break
		}
		*f, b = v, b[n:]
	}
	return c
}

// replace makes a new file with what is authentic in the damaged one, and moves that
// aside. f is nil where nothing can be read.
func (s *Spool) replace(f *os.File, w *walker, damage []error) (*store, *index, Opened, error) {
	x := newIndex(s.o.Now())
	opened := Opened{Damage: describeDamage(damage)}
	st, err := createStore(s.path, s.o.Key, s.room(), func(st *store) error {
		if f == nil {
			return nil
		}
		return s.salvage(st, f, x, &opened)
	})
	if err != nil {
		return nil, nil, opened, fmt.Errorf("the spool is damaged (%s) and cannot be replaced: %w", opened.Damage, err)
	}
	opened.MovedAside = asideName(s.path, s.o.Now())
	if err := place(s.path, opened.MovedAside); err != nil {
		return nil, nil, opened, errors.Join(err, st.close())
	}
	if f != nil {
		f.Close()
	}
	opened.Entries, opened.Salvaged = len(x.items), len(x.items)
	return st, x, opened, nil
}

func describeDamage(damage []error) string {
	var b strings.Builder
	for i, err := range damage {
		if i > 0 {
			b.WriteString("; ")
		}
		b.WriteString(err.Error())
	}
	return b.String()
}

// A rescue writes records to a new file in transactions of a few megabytes.
type rescue struct {
	st      *store
	records []found
	bytes   int
}

type found struct {
	id    uint64
	value []byte
	mark  []byte
}

func (r *rescue) put(f found) error {
	r.records = append(r.records, f)
	if r.bytes += len(f.value); r.bytes < growMost {
		return nil
	}
	return r.flush()
}

func (r *rescue) flush() error {
	defer func() { r.records, r.bytes = r.records[:0], 0 }()
	return r.st.update(func(tx *bbolt.Tx) error {
		for _, f := range r.records {
			if err := tx.Bucket(recordsBucket).Put(idKey(f.id), f.value); err != nil {
				return err
			}
			if f.mark == nil {
				continue
			}
			if err := tx.Bucket(marksBucket).Put(idKey(f.id), f.mark); err != nil {
				return err
			}
		}
		return nil
	})
}

// salvage carries over what is authentic in f: what can be reached stays what it was.
// Where pages are damaged, records are also looked for in all pages that cannot be
// reached. Those may be old copies of what was delivered, so they are quarantined.
func (s *Spool) salvage(st *store, f *os.File, x *index, opened *Opened) error {
	r := &rescue{st: st}
	sv, w, err := look(f, s.seal, func(id uint64, h header, v []byte) error {
		if x.items[id] != nil {
			return nil
		}
		x.load(id, h, v)
		return r.put(found{id: id, value: bytes.Clone(v)})
	})
	if err != nil {
		return err
	}
	x.finish(sv)
	if err := s.salvageOrphans(r, f, w, x, opened); err != nil {
		return err
	}
	opened.Lost = sv.lost
	if err := r.flush(); err != nil {
		return err
	}
	return st.update(func(tx *bbolt.Tx) error { return s.carry(tx, x, sv) })
}

// salvageOrphans quarantines the records of pages that cannot be reached, the newest
// ones, as many as the quarantine takes.
func (s *Spool) salvageOrphans(r *rescue, f *os.File, w *walker, x *index, opened *Opened) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	var orphans []found
	size, byID := int64(0), func(f found, id uint64) int { return int(int64(f.id - id)) }
	w.orphans(info.Size(), func(k, v []byte) {
		id, _, _, err := openKeyed(s.seal, nil, k, v)
		at, known := slices.BinarySearchFunc(orphans, id, byID)
		if err != nil || known || x.items[id] != nil {
			return
		}
		orphans = slices.Insert(orphans, at, found{id: id, value: bytes.Clone(v)})
		for size += int64(len(v)); size > s.o.MaxQuarantine && len(orphans) > 1; orphans = orphans[1:] {
			size -= int64(len(orphans[0].value))
		}
	})
	for _, o := range orphans {
		h, _, _ := parseRecord(o.value)
		x.load(o.id, h, o.value)
		n := &note{reason: "found in a damaged file, it may have been delivered before"}
		x.items[o.id].note = n
		x.move(x.items[o.id], Quarantined)
		o.mark = s.seal.sealMark(nil, o.id, mark{state: Quarantined, reason: n.reason})
		if err := r.put(o); err != nil {
			return err
		}
	}
	opened.Unsure = len(orphans)
	return nil
}

// carry writes marks, counts and the sequence of the damaged file to the new one.
func (s *Spool) carry(tx *bbolt.Tx, x *index, sv *survey) error {
	for id, m := range sv.marks {
		if x.items[id] == nil {
			continue
		}
		if err := tx.Bucket(marksBucket).Put(idKey(id), s.seal.sealMark(nil, id, m)); err != nil {
			return err
		}
	}
	about := tx.Bucket(aboutBucket)
	for name, v := range sv.counts {
		if err := about.Put(append(bytes.Clone(countsKey), name...), v); err != nil {
			return err
		}
	}
	return tx.Bucket(recordsBucket).SetSequence(x.last)
}

// room is how large the file may become: what MaxBytes is, with half filled pages.
func (s *Spool) room() int64 { return 2*s.o.MaxBytes + 32<<20 }

// ReadOnly opens the spool of a daemon that is stopped, for List, Get and Stats. It
// changes nothing; a damaged file is an error.
func ReadOnly(path string, key [32]byte) (*Spool, error) {
	s := &Spool{path: path, readOnly: true, o: Options{Key: key}.withDefaults()}
	f, err := lockFile(path, true, time.Second)
	if err != nil {
		return nil, fmt.Errorf("the spool cannot be opened: %w", err)
	}
	if s.seal, err = newSealer(key, s.o.Random); err == nil {
		err = s.readOnlyLoad(f)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return s, nil
}

func (s *Spool) readOnlyLoad(f *os.File) error {
	x := newIndex(s.o.Now())
	sv, _, err := look(f, s.seal, x.load)
	if err != nil {
		return err
	}
	if len(sv.damage) > 0 {
		return fmt.Errorf("%w: the spool %s: %s; start gatewayd, which salvages what is whole", ErrDamaged, s.path, describeDamage(sv.damage))
	}
	x.finish(sv)
	s.index, s.opened = x, Opened{Entries: len(x.items)}
	s.store, err = openStore(f, true, 0)
	s.reader = s.seal.reader()
	return err
}
