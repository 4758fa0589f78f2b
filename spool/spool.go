// Package spool is the durable store and forward between the translation and
// the destinations: a message is ours once Enqueue has returned, and theirs once
// Accepted has. Between the two it survives a power cut.
package spool

import (
	"context"
	"errors"
	"log/slog"
	"time"
)

// A Class says how soon an entry is given up when the spool is full: waveforms
// first, alerts last.
type Class uint8

// The classes, in the order of package pcd.
const (
	Periodic Class = iota
	Episodic
	Waveform
	Alert
)

// A State is how far an entry has come.
type State uint8

// The states. An accepted entry is removed; only its count stays.
const (
	Queued State = iota
	Sent
	Accepted
	Quarantined
)

// An Entry is one message on its way to one destination.
type Entry struct {
	ID        uint64 // given by Enqueue, ascending, never given again
	Queue     string // name of the destination
	Device    string // label whose entries keep their order, no patient data
	ControlID string // MSH-10, unique within the queue
	Class     Class
	Made      time.Time // zero: the time of Enqueue
	Payload   []byte
	State     State
	Attempts  int
	Reason    string // of the last Retry or Quarantine
}

// Options is what a spool needs to know.
type Options struct {
	Key           [32]byte
	MaxBytes      int64
	MaxAge        time.Duration
	MaxQuarantine int64
	LockTimeout   time.Duration
	Now           func() time.Time
	Log           *slog.Logger
	Dropped       func(Drop)
}

// A Drop tells of one entry that was given up. It holds no payload.
type Drop struct {
	ID        uint64
	Queue     string
	Device    string
	ControlID string
	Class     Class
	Made      time.Time
	Reason    string
}

// Opened tells what Open found.
type Opened struct {
	MovedAside string // where the damaged file is now, "" where there was none
	Damage     string
	Entries    int
	Salvaged   int
}

// Errors that callers branch on.
var (
	ErrFull      = errors.New("spool is full")
	ErrClosed    = errors.New("spool is closed")
	ErrNotFound  = errors.New("no such entry in the spool")
	ErrDuplicate = errors.New("control ID is already in the spool")
	ErrWrongKey  = errors.New("spool was written with another key")
	ErrLocked    = errors.New("spool is in use by another process")
	ErrDamaged   = errors.New("entry is damaged")
	ErrDisk      = errors.New("spool cannot write to its disk")
	ErrInFlight  = errors.New("entry is being sent")
)

// A Spool is an open store.
type Spool struct{}

// A Queue is the part of the spool that goes to one destination.
type Queue struct{}

// Stats is the state of the spool.
type Stats struct {
	Bytes, MaxBytes int64
	FileBytes       int64
	Capacity        time.Duration // until the spool is full at the present rate
	Queues          map[string]QueueStats
	Failing         string // why the last commit failed, "" where it did not
}

// QueueStats is the state of one queue.
type QueueStats struct {
	Messages         int
	Bytes            int64
	Oldest           time.Time // zero: none
	Quarantined      int
	QuarantinedBytes int64
	Enqueued         uint64
	Accepted         uint64
	Dropped          map[string]uint64 // by reason
	Rate             float64           // bytes per second
	Capacity         time.Duration
}

var errNotYet = errors.New("not yet")

// Open opens the spool at path, or begins one.
func Open(path string, o Options) (*Spool, error) { return nil, errNotYet }

// ReadOnly opens the spool of a stopped daemon for List and Get.
func ReadOnly(path string, key [32]byte) (*Spool, error) { return nil, errNotYet }

func (s *Spool) Opened() Opened                                       { return Opened{} }
func (s *Spool) Enqueue(ctx context.Context, e Entry) (uint64, error) { return 0, errNotYet }
func (s *Spool) Queue(name string) *Queue                             { return nil }
func (s *Spool) List(queue string, f func(Entry) error) error         { return errNotYet }
func (s *Spool) Get(id uint64) (Entry, error)                         { return Entry{}, errNotYet }
func (s *Spool) Release(id uint64) error                              { return errNotYet }
func (s *Spool) Drop(id uint64, reason string) error                  { return errNotYet }
func (s *Spool) Stats() Stats                                         { return Stats{} }
func (s *Spool) Close() error                                         { return errNotYet }
func (q *Queue) Next(ctx context.Context) (Entry, error)              { return Entry{}, errNotYet }
func (q *Queue) Sent(id uint64) error                                 { return errNotYet }
func (q *Queue) Accepted(id uint64) error                             { return errNotYet }
func (q *Queue) Retry(id uint64, reason string) error                 { return errNotYet }
func (q *Queue) Quarantine(id uint64, reason string) error            { return errNotYet }
