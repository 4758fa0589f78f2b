package spool

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"slices"
	"strings"

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
	journal  []byte // its generation, nil where it is not known
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
			case bytes.Equal(k, generationKey):
				s.journal = bytes.Clone(v)
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
	if len(s.journal) != 8 {
		w.broken("it does not say which journal follows")
		s.journal = nil
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

// A loaded spool is what load gives.
type loaded struct {
	store   *store
	journal *journal
	index   *index
	over    *overlay
	opened  Opened
	// generation of the journal that follows the tree, nil where it is not known.
	generation []byte
}

// close closes what is open, where load does not come to its end.
func (l *loaded) close() {
	if l.store != nil {
		l.store.close()
	}
	l.journal.close()
}

// load opens the files at path, makes them where there are none, and salvages what
// damaged ones hold into new ones.
func (s *Spool) load() (*loaded, error) {
	l := &loaded{index: newIndex(s.o.Now()), over: newOverlay()}
	err := s.loadTree(l)
	if err == nil {
		err = s.loadJournal(l)
	}
	if err != nil {
		l.close()
		return nil, err
	}
	l.opened.Entries = len(l.index.items)
	return l, nil
}

func (s *Spool) loadTree(l *loaded) error {
	f, err := lockFile(s.path, s.readOnly, s.o.LockTimeout)
	switch {
	case errors.Is(err, fs.ErrNotExist) && !s.readOnly:
		return s.fresh(l)
	case err != nil && isDir(s.path) && !s.readOnly:
		return s.replace(l, nil, []error{errors.New("it is a folder")})
	case err != nil:
		return fmt.Errorf("the spool cannot be opened: %w", err)
	}
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		f.Close()
		return fmt.Errorf("the spool %s is no file: name another path in the configuration", s.path)
	}
	if !s.readOnly {
		os.Remove(s.path + ".new") // of an Open that did not come to its end
	}
	err = s.adopt(l, f)
	if err != nil && l.store == nil {
		f.Close()
	}
	return err
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// fresh makes a new file where there is none. A new file that got its content and not yet
// its name, as the power failed between moving the damaged one aside and that, gets it.
func (s *Spool) fresh(l *loaded) error {
	if f, err := lockFile(s.path+".new", false, 0); err == nil {
		holds := false
		sv, _, err := look(f, s.seal, func(uint64, header, []byte) error { holds = true; return nil })
		if err == nil && len(sv.damage) == 0 && (holds || len(sv.counts) > 0) {
			if err = place(s.path, ""); err == nil {
				return s.adopt(l, f)
			}
		}
		f.Close()
		if errors.Is(err, ErrWrongKey) {
			return err
		}
	}
	var err error
	if l.store, err = createStore(s.path, s.o.Key, s.room(), func(*store) error { return nil }); err != nil {
		return err
	}
	g, _, err := l.store.absorb(l.over, l.index.totals(nil), s.o.Random)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrDisk, err)
	}
	l.generation = little.AppendUint64(nil, g)
	if l.journal, err = createJournal(s.path+journalSuffix, s.o.journal); err != nil {
		return err
	}
	return place(s.path, "")
}

// adopt opens a file that is there.
func (s *Spool) adopt(l *loaded, f *os.File) error {
	sv, _, err := look(f, s.seal, l.index.load)
	if err != nil {
		return err
	}
	if len(sv.damage) > 0 && s.readOnly {
		return fmt.Errorf("the spool %s is %w: %s; start gatewayd, which salvages what is whole", s.path, ErrDamaged, describeDamage(sv.damage))
	}
	if len(sv.damage) > 0 {
		return s.replace(l, f, sv.damage)
	}
	l.index.finish(sv)
	l.generation = sv.journal
	l.store, err = openStore(f, s.readOnly, s.room())
	return err
}

// loadJournal applies what the journal says beyond the tree.
func (s *Spool) loadJournal(l *loaded) (err error) {
	path := s.path + journalSuffix
	if l.journal == nil && isDir(path) && !s.readOnly {
		l.opened.note("a folder is in the place of its journal")
		l.opened.MovedAside = asideName(path, s.o.Now())
		if err := os.Rename(path, l.opened.MovedAside); err != nil {
			return fmt.Errorf("the folder in the place of the journal cannot be moved aside: %w", err)
		}
	}
	if l.journal == nil {
		if l.journal, err = openJournal(path, s.readOnly); err != nil {
			return err
		}
	}
	if l.journal == nil && !s.readOnly {
		l.opened.note("its journal is missing")
		if l.journal, err = createJournal(path, s.o.journal); err == nil {
			err = syncDir(path)
		}
	}
	if err != nil || l.journal == nil {
		return err
	}
	r := &replayer{seal: s.seal, index: l.index, over: l.over, unsure: l.generation == nil}
	torn, damaged := l.journal.replay(l.journal.follows(l.generation), r.apply)
	l.opened.Lost += r.lost
	if r.unsure {
		l.opened.Unsure += r.found
	}
	if damaged {
		l.opened.note("its journal has a damaged block")
	}
	if torn || damaged || r.unsure {
		err = s.absorbJournal(l, path, damaged)
	}
	if err == nil && !s.readOnly && l.journal.size < s.o.journal {
		if err := l.journal.extend(s.o.journal); err != nil {
			s.o.Log.Warn("spool journal stays short, which makes it slower", slog.Any("error", err))
		}
	}
	return err
}

// absorbJournal brings into the tree what a journal holds that cannot be continued. Where
// the disk does not allow it, it stays where it is until the next time.
func (s *Spool) absorbJournal(l *loaded, path string, damaged bool) error {
	if s.readOnly {
		return nil
	}
	g, _, err := l.store.absorb(l.over, l.index.totals(nil), s.o.Random)
	if err != nil && l.generation == nil {
		return fmt.Errorf("%w: its journal cannot be brought into the tree: %w", ErrDisk, err)
	}
	if err != nil {
		s.o.Log.Warn("spool journal stays as it is, the tree cannot take it", slog.Any("error", err))
		return nil
	}
	l.journal.restart(g)
	l.over = newOverlay()
	if !damaged {
		return nil
	}
	aside := asideName(path, s.o.Now())
	if err := os.Rename(path, aside); err != nil {
		return fmt.Errorf("the damaged journal cannot be moved aside: %w", err)
	}
	if l.opened.MovedAside == "" {
		l.opened.MovedAside = aside
	}
	l.journal.file.Close()
	if l.journal, err = createJournal(path, s.o.journal); err != nil {
		return err
	}
	l.journal.restart(g)
	return syncDir(path)
}

// note adds to what was damaged.
func (o *Opened) note(damage string) {
	if o.Damage != "" {
		o.Damage += "; "
	}
	o.Damage += damage
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
			x.marked(it, m)
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

// marked gives an item what its mark says. What was sent is queued, to go out again.
func (x *index) marked(it *item, m mark) {
	it.note = &note{attempts: m.attempts, reason: m.reason}
	state := Queued
	if m.state == Quarantined {
		state = Quarantined
	}
	if state != it.state {
		x.move(it, state)
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
func (s *Spool) replace(l *loaded, f *os.File, damage []error) (err error) {
	if f != nil {
		defer f.Close()
	}
	l.index, l.opened.Damage = newIndex(s.o.Now()), describeDamage(damage)
	l.store, err = createStore(s.path, s.o.Key, s.room(), func(st *store) error {
		if f == nil {
			return nil
		}
		return s.salvage(l, st, f)
	})
	if err != nil {
		return fmt.Errorf("the spool is damaged (%s) and cannot be replaced: %w", l.opened.Damage, err)
	}
	l.opened.MovedAside = asideName(s.path, s.o.Now())
	if err := place(s.path, l.opened.MovedAside); err != nil {
		return err
	}
	l.opened.Salvaged = len(l.index.items)
	return nil
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
// reached. Those may be old copies of what was delivered, so they are quarantined; but
// where the spool was running, its index knows which of them it held, and how.
func (s *Spool) salvage(l *loaded, st *store, f *os.File) error {
	x, r := l.index, &rescue{st: st}
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
	if sv.journal == nil {
		sv.journal = s.following
	}
	x.finish(sv)
	if err := s.salvageOrphans(r, f, w, l); err != nil {
		return err
	}
	l.opened.Lost, l.generation = sv.lost, sv.journal
	if err := r.flush(); err != nil {
		return err
	}
	return st.update(func(tx *bbolt.Tx) error { return s.carry(tx, x, sv) })
}

// salvageOrphans quarantines the records of pages that cannot be reached, the newest
// ones, as many as the quarantine takes.
func (s *Spool) salvageOrphans(r *rescue, f *os.File, w *walker, l *loaded) error {
	x := l.index
	info, err := f.Stat()
	if err != nil {
		return err
	}
	var orphans []found
	size, byID := int64(0), func(f found, id uint64) int { return int(int64(f.id - id)) }
	w.orphans(info.Size(), func(k, v []byte) {
		id, _, _, err := openKeyed(s.seal, nil, k, v)
		at, known := slices.BinarySearchFunc(orphans, id, byID)
		if err != nil || known || x.items[id] != nil || s.index != nil && s.index.items[id] == nil {
			return
		}
		orphans = slices.Insert(orphans, at, found{id: id, value: bytes.Clone(v)})
		for size += int64(len(v)); s.index == nil && size > s.o.MaxQuarantine && len(orphans) > 1; orphans = orphans[1:] {
			size -= int64(len(orphans[0].value))
		}
	})
	for _, o := range orphans {
		h, _, _ := parseRecord(o.value)
		x.load(o.id, h, o.value)
		m := s.orphanMark(o.id)
		x.marked(x.items[o.id], m)
		o.mark = s.seal.sealMark(nil, o.id, m)
		if err := r.put(o); err != nil {
			return err
		}
	}
	if s.index != nil {
		return nil
	}
	l.opened.Unsure = len(orphans)
	return nil
}

// orphanMark is the mark of a record that was found where it cannot be reached.
func (s *Spool) orphanMark(id uint64) mark {
	if s.index == nil {
		return mark{state: Quarantined, reason: unsureReason}
	}
	it := s.index.items[id]
	return it.mark(it.state)
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
	if sv.journal != nil {
		if err := about.Put(generationKey, sv.journal); err != nil {
			return err
		}
	}
	return tx.Bucket(recordsBucket).SetSequence(x.last)
}

// unsureReason is that of what was found where it may have been left behind.
const unsureReason = "found in a damaged file, it may have been delivered before"

// room is how large the file may become: what MaxBytes is, with half filled pages. More
// than a GiB is mapped when it is needed: a machine of 32 bits has not much more.
func (s *Spool) room() int64 { return min(2*s.o.MaxBytes+32<<20, 1<<30) }

// ReadOnly opens the spool of a daemon that is stopped, for List, Get and Stats. It
// changes nothing; a damaged file is an error.
func ReadOnly(path string, key [32]byte) (*Spool, error) {
	s := &Spool{path: path, readOnly: true, o: Options{Key: key}.withDefaults()}
	var err error
	if s.seal, err = newSealer(key, s.o.Random); err != nil {
		return nil, err
	}
	l, err := s.load()
	if err != nil {
		return nil, err
	}
	s.reader = s.seal.reader()
	s.take(l)
	return s, nil
}
