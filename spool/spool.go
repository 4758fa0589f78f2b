// Package spool is the durable store and forward between the translation and the
// destinations. A message is ours once Enqueue has returned, and theirs once Accepted
// has. Between the two it survives a power cut and a kill at any instant; it is sent
// again with the same control ID when it is not known to have arrived, and never again
// once it was accepted.
//
// Each destination has its queue, in which entries keep their order. What is stored is
// encrypted. The spool is bounded by bytes and by age; when it is full a stated rule says
// what is given up: waveforms first, then periodic data, then episodic data, alerts last;
// within a class what the platform refused goes before what it has not seen, then the
// oldest; never the entry that is being sent, and never for an entry of a lower class.
// Every drop is counted by its reason and reported. The file grows to what it needs, at
// most about twice MaxBytes, and stays there: its pages are used again, and room that an
// outage once took is there for the next one.
//
// There are two files: the tree at the path that Open is given, which is a bbolt database,
// and its journal at path.journal, which makes a group of messages durable with one sync
// of the disk. One of them that is damaged is moved aside and what is whole in it carried
// over; the daemon goes on.
//
// The daemon enqueues, package northbound takes from the queues. The spool never looks
// into a message, and never tells its content but to Next and Get.
package spool

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"
)

// A Class says how soon an entry is given up when the spool is full.
type Class uint8

// The classes, in the order of package pcd.
const (
	Periodic Class = iota
	Episodic
	Waveform
	Alert
)

// String is the name of the class.
func (c Class) String() string {
	return text(int(c), "periodic", "episodic", "waveform", "alert")
}

// A State is how far an entry has come.
type State uint8

// The states. An accepted entry is removed; only its count stays.
const (
	Queued State = iota
	Sent
	Accepted
	Quarantined
)

// String is the name of the state.
func (s State) String() string {
	return text(int(s), "queued", "sent", "accepted", "quarantined")
}

func text(i int, names ...string) string {
	if i < len(names) {
		return names[i]
	}
	return fmt.Sprintf("unknown(%d)", i)
}

// An Entry is one message on its way to one destination.
type Entry struct {
	ID        uint64 // given by Enqueue: ascending, never given again
	Queue     string // name of the destination, at most 255 bytes
	Device    string // label of the device, at most 255 bytes, no patient data
	ControlID string // MSH-10, unique within the queue, at most 255 bytes
	Class     Class
	Made      time.Time // when the message was made, to the microsecond; zero: at Enqueue
	Payload   []byte    // Enqueue only borrows it; Next and Get give a copy; List gives none
	State     State     // Enqueue ignores it and what follows
	Attempts  int       // how often it was sent
	Reason    string    // of the last Retry or Quarantine
}

// Options is what a spool needs to know.
type Options struct {
	Key           [32]byte         // of the encryption at rest
	MaxBytes      int64            // of all entries with what it takes to store them; 0: 64 MiB
	MaxAge        time.Duration    // after which an entry is given up; 0: 72 hours
	MaxQuarantine int64            // bytes of quarantined entries, part of MaxBytes; 0: an eighth of it
	LockTimeout   time.Duration    // how long to wait for another process to let the file go; 0: 2 seconds
	Now           func() time.Time // nil: time.Now
	Random        io.Reader        // nil: crypto/rand
	Log           *slog.Logger     // nil: none
	Dropped       func(Drop)       // is told of each drop when it is durable; must not call the spool; nil: nobody

	journal int64 // bytes; 0: journalSize
}

func (o Options) withDefaults() Options {
	if o.MaxBytes <= 0 {
		o.MaxBytes = 64 << 20
	}
	if o.MaxAge <= 0 {
		o.MaxAge = 72 * time.Hour
	}
	if o.MaxQuarantine <= 0 {
		o.MaxQuarantine = o.MaxBytes / 8
	}
	if o.LockTimeout <= 0 {
		o.LockTimeout = 2 * time.Second
	}
	if o.journal <= 0 {
		o.journal = journalSize
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Random == nil {
		o.Random = rand.Reader
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return o
}

// A Drop tells of one entry that was given up, without its payload.
type Drop struct {
	ID        uint64
	Queue     string
	Device    string
	ControlID string
	Class     Class
	Made      time.Time
	Cause     string // full, expired, quarantine_full or operator
	Reason    string // what the operator said
}

// Errors that callers branch on.
var (
	ErrFull      = errors.New("the spool is full")
	ErrTooLarge  = errors.New("the message is larger than the spool")
	ErrClosed    = errors.New("the spool is closed")
	ErrReadOnly  = errors.New("the spool is opened for reading only")
	ErrNotFound  = errors.New("no such entry in the spool")
	ErrDuplicate = errors.New("the control ID is in the spool already")
	ErrWrongKey  = errors.New("the spool was written with another key")
	ErrLocked    = errors.New("the spool is in use by another process")
	ErrDamaged   = errors.New("damaged")
	ErrDisk      = errors.New("the spool cannot be written to its disk")
	ErrInFlight  = errors.New("the entry is being sent")
)

// A Spool is an open store. Its methods are safe for concurrent use.
type Spool struct {
	path     string
	o        Options
	readOnly bool

	mu      sync.Mutex // guards what follows, and the index itself
	index   *index
	opened  Opened
	waiting []*op
	closing bool
	failing error // why the last commit failed

	wake, stop, stopped chan struct{}

	over *overlay

	// Of the committer. Others read store with access held.
	access  sync.RWMutex
	store   *store
	journal *journal
	seal    *sealer
	// following is the generation of the journal when the spool is reopened; else nil.
	following []byte
	batch     []*op
	group     int // how many the last group was
	said      map[said]*repeat

	reading sync.Mutex // guards reader
	reader  *sealer
	pool    sync.Pool
}

// Open opens the spool at path, or begins one. A file that is damaged is moved aside, to
// path.corrupt-TIME, what is whole in it is carried over to a new one, and Opened tells
// of it. A file of another key gives ErrWrongKey, one that another process has open
// ErrLocked; neither is touched.
func Open(path string, o Options) (*Spool, error) {
	s := &Spool{path: path, o: o.withDefaults(), said: map[said]*repeat{},
		wake: make(chan struct{}, 1), stop: make(chan struct{}), stopped: make(chan struct{})}
	s.pool.New = func() any { return &op{done: make(chan struct{}, 1)} }
	var err error
	if s.seal, err = newSealer(o.Key, s.o.Random); err != nil {
		return nil, err
	}
	s.reader = s.seal.reader()
	l, err := s.load()
	if err != nil {
		return nil, err
	}
	s.take(l)
	s.reportDamage(s.opened)
	go s.run()
	return s, nil
}

// take makes what was loaded the spool.
func (s *Spool) take(l *loaded) {
	s.store, s.journal, s.index, s.over, s.opened = l.store, l.journal, l.index, l.over, l.opened
}

// Opened tells what Open found, or the last reopening after damage at run time.
func (s *Spool) Opened() Opened {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.opened
}

// reopen opens the file anew after its pages turned out damaged, or a commit ended in
// doubt. What is in the file decides then. It is of the committer.
func (s *Spool) reopen() bool {
	s.access.Lock()
	defer s.access.Unlock()
	if s.store != nil {
		s.following = little.AppendUint64(nil, s.journal.generation)
		(&loaded{store: s.store, journal: s.journal}).close()
		s.store, s.journal = nil, nil
	}
	l, err := s.load()
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		s.failing = fmt.Errorf("%w: %w", ErrDisk, err)
		return false
	}
	l.index.last = max(l.index.last, s.index.last)
	for name, q := range s.index.queues {
		l.index.queue(name).noRoom = q.noRoom
		q.wakeUp()
	}
	if l.opened.Damage == "" {
		l.opened = s.opened
	} else {
		s.reportDamage(l.opened)
	}
	s.take(l)
	return true
}

// Enqueue stores an entry and returns its ID when it is durable: many callers share one
// commit. After an error the entry is not in the spool, with one exception: where the
// disk failed in the very moment of the commit (ErrDisk) it may be, and ErrDuplicate
// then tells that it is. ErrFull says that the drop rule gives up nothing for it. A
// context that ends takes the entry back where its commit has not begun, else the commit
// is waited for.
func (s *Spool) Enqueue(ctx context.Context, e Entry) (uint64, error) {
	if err := s.check(&e); err != nil {
		return 0, err
	}
	o := s.pool.Get().(*op)
	o.kind, o.owned, o.id, o.err = opEnqueue, e, 0, nil
	o.entry = &o.owned
	if err := s.submit(o); err != nil {
		return 0, err
	}
	select {
	case <-o.done:
	case <-ctx.Done():
		if s.withdraw(o) {
			return 0, ctx.Err()
		}
		<-o.done
	}
	id, err := o.id, o.err
	o.owned = Entry{}
	s.pool.Put(o)
	return id, err
}

// check judges an entry, and gives it a time where it has none.
func (s *Spool) check(e *Entry) error {
	switch {
	case s.readOnly:
		return ErrReadOnly
	case e.Queue == "" || len(e.Queue) > nameLimit:
		return fmt.Errorf("the entry's queue has a name of %d bytes: it takes 1 to %d", len(e.Queue), nameLimit)
	case len(e.Device) > nameLimit:
		return fmt.Errorf("the entry's device has a name of %d bytes: it takes at most %d", len(e.Device), nameLimit)
	case e.ControlID == "" || len(e.ControlID) > nameLimit:
		return fmt.Errorf("the entry's control ID has %d bytes: it takes 1 to %d", len(e.ControlID), nameLimit)
	case len(e.Payload) == 0:
		return errors.New("the entry has no message")
	case e.Class > Alert:
		return fmt.Errorf("the entry's class %d is unknown", e.Class)
	case int64(recordSize(e)+recordExtra) > s.o.MaxBytes:
		return fmt.Errorf("%w: it has %d bytes, the spool takes %d", ErrTooLarge, len(e.Payload), s.o.MaxBytes)
	}
	if e.Made.IsZero() {
		e.Made = s.o.Now()
	}
	return nil
}

// Release gives a quarantined entry back to its queue, at its old place in the order.
func (s *Spool) Release(id uint64) error {
	if _, err := s.Get(id); err != nil {
		return err
	}
	return s.do(&op{kind: opRelease, id: id})
}

// Drop removes an entry for the operator. One that is being sent gives ErrInFlight.
func (s *Spool) Drop(id uint64, reason string) error {
	return s.do(&op{kind: opDrop, id: id, reason: reason})
}

// Close ends the spool when everything that waits is durable.
func (s *Spool) Close() error {
	s.mu.Lock()
	first := !s.closing
	s.closing = true
	s.mu.Unlock()
	if !first {
		return nil
	}
	if !s.readOnly {
		close(s.stop)
		<-s.stopped
	}
	s.access.Lock()
	defer s.access.Unlock()
	if s.store == nil {
		return nil
	}
	err := errors.Join(s.store.close(), s.journal.close())
	s.store, s.journal = nil, nil
	if err != nil {
		return fmt.Errorf("the spool %s cannot be closed: %w", s.path, err)
	}
	return nil
}
