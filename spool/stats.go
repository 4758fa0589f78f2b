package spool

import (
	"log/slog"
	"math"
	"time"
)

// Stats is the state of the spool.
type Stats struct {
	Messages    int // in all queues, without the quarantined ones
	Quarantined int
	Bytes       int64 // of all entries
	MaxBytes    int64
	FileBytes   int64   // that the file takes on the disk
	Rate        float64 // bytes per second that come in, over about the last half hour
	// Capacity is how long from now it takes at this rate, with nothing going out, until
	// something must be given up: the spool is full, or its oldest entry too old. It is
	// MaxAge where nothing is known of the rate and nothing is in the spool.
	Capacity time.Duration
	Failing  error // why the last commit failed, nil where it did not
	Queues   map[string]QueueStats
}

// QueueStats is the state of one queue. Enqueued, Accepted and Dropped are kept in the
// file: Enqueued = Accepted + all of Dropped + Messages + Quarantined, at any time.
type QueueStats struct {
	Messages         int
	Bytes            int64
	Oldest           time.Time // Made of the first entry; zero: none
	Quarantined      int
	QuarantinedBytes int64
	Enqueued         uint64
	Accepted         uint64
	Dropped          map[string]uint64 // by cause: full, expired, quarantine_full, operator
	Refused          uint64            // ErrFull since the start
}

// Stats gives the state of the spool.
func (s *Spool) Stats() Stats {
	st := s.fileStats()
	s.mu.Lock()
	defer s.mu.Unlock()
	x := s.index
	now := x.since(s.o.Now())
	st.Bytes, st.MaxBytes, st.Failing = x.bytes, s.o.MaxBytes, s.failing
	st.Rate = x.rate.perSecond(now)
	st.Capacity = x.capacity(now, st.Rate, s.o)
	st.Queues = make(map[string]QueueStats, len(x.queues))
	for name, q := range x.queues {
		st.Queues[name] = q.stats()
		st.Messages += q.messages
		st.Quarantined += q.refused
	}
	return st
}

func (s *Spool) fileStats() (st Stats) {
	s.access.RLock()
	defer s.access.RUnlock()
	if s.store != nil {
		if info, err := s.store.file.Stat(); err == nil {
			st.FileBytes = info.Size()
		}
		if s.journal != nil {
			st.FileBytes += s.journal.size
		}
	}
	return st
}

func (q *queueIndex) stats() QueueStats {
	st := QueueStats{Messages: q.messages, Bytes: q.bytes, Quarantined: q.refused, QuarantinedBytes: q.refusedB,
		Enqueued: q.counts.enqueued, Accepted: q.counts.accepted, Refused: q.noRoom, Dropped: make(map[string]uint64, len(causes))}
	if it := q.live.first(nil); it != nil {
		st.Oldest = time.UnixMicro(it.made).UTC()
	}
	for i, name := range causes {
		st.Dropped[name] = q.counts.dropped[i]
	}
	return st
}

// capacity is the time until something must be given up.
func (x *index) capacity(now time.Duration, rate float64, o Options) time.Duration {
	left := o.MaxAge
	for c := range x.live {
		if it := x.live[c].first(nil); it != nil {
			left = min(left, o.MaxAge-(now-it.born))
		}
	}
	if rate > 0 {
		seconds := float64(o.MaxBytes-x.bytes) / rate
		if seconds < math.MaxInt64/float64(time.Second) {
			left = min(left, time.Duration(seconds*float64(time.Second)))
		}
	}
	return max(left, 0)
}

// A said is what a line of the log says: repeats of it within repeatSpan are counted,
// and told with the next one.
type said struct {
	queue, cause string
	class        Class
}

type repeat struct {
	next  time.Time
	count int
	last  uint64
}

const repeatSpan = time.Minute

// report tells of drops: each to the callback, and a line a minute to the log.
func (s *Spool) report(drops []Drop) {
	for _, d := range drops {
		k := said{d.Queue, d.Cause, d.Class}
		if s.said[k] == nil {
			s.said[k] = &repeat{}
		}
		s.said[k].count++
		s.said[k].last = d.ID
		if s.o.Dropped != nil {
			s.o.Dropped(d)
		}
	}
	for k, r := range s.said {
		if now := s.o.Now(); r.count > 0 && !now.Before(r.next) {
			s.o.Log.Warn("spool gave up messages", slog.String("queue", k.queue), slog.String("cause", k.cause),
				slog.String("class", k.class.String()), slog.Int("count", r.count), slog.Uint64("last", r.last))
			*r = repeat{next: now.Add(repeatSpan)}
		}
	}
}

// reportDamage tells of a file that was moved aside.
func (s *Spool) reportDamage(o Opened) {
	if o.Damage == "" {
		return
	}
	s.o.Log.Error("spool file was damaged, what is whole was carried over to a new one; keep the old one for support, or delete it",
		slog.String("moved_aside", o.MovedAside), slog.String("damage", o.Damage),
		slog.Int("salvaged", o.Salvaged), slog.Int("of_these_quarantined", o.Unsure), slog.Int("lost_records", o.Lost))
}
