package spool

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"testing"
)

// The tests of kills and power cuts need a process to cut: the test binary starts itself
// with childEnv set to what it is to do.
const childEnv = "GATEWAY_SPOOL_CHILD"

func TestMain(m *testing.M) {
	if job := os.Getenv(childEnv); job != "" {
		if err := runChild(job); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// childOptions are small, so that the journal is full often.
func childOptions() Options {
	return Options{Key: testKey, MaxBytes: 64 << 20, journal: 32 << 10}
}

// runChild enqueues and delivers, and writes down at file 3 what it was promised, each
// with one write: "begin CONTROL" before an Enqueue, "stored CONTROL" after it, "taking
// CONTROL" before Accepted, "taken CONTROL" after it, likewise for the quarantine.
func runChild(job string) error {
	var path, label string
	var each int
	if _, err := fmt.Sscanf(job, "%s %s %d", &path, &label, &each); err != nil {
		return err
	}
	log := os.NewFile(3, "promises")
	s, err := Open(path, childOptions())
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	consumer := make(chan error, 1)
	go func() { consumer <- deliverAll(ctx, s, log, label) }()
	var wg sync.WaitGroup
	errs := make(chan error, childWriters)
	for w := range childWriters {
		wg.Go(func() { errs <- enqueueAll(s, log, label, w, each) })
	}
	wg.Wait()
	for range childWriters {
		err = errors.Join(err, <-errs)
	}
	cancel()
	return errors.Join(err, <-consumer, s.Close())
}

const childWriters = 4

func promise(log io.Writer, what, control string) error {
	_, err := log.Write(fmt.Appendf(nil, "%s %s\n", what, control))
	return err
}

func enqueueAll(s *Spool, log io.Writer, label string, writer, each int) error {
	for i := range each {
		control := fmt.Sprintf("%s-%d-%05d", label, writer, i)
		if err := promise(log, "begin", control); err != nil {
			return err
		}
		e := Entry{Queue: "q", Device: fmt.Sprint("bed-", writer), ControlID: control, Class: Class(writer), Payload: childPayload(control)}
		if _, err := s.Enqueue(context.Background(), e); err != nil {
			return err
		}
		if err := promise(log, "stored", control); err != nil {
			return err
		}
	}
	return nil
}

// childPayload is the message of a control ID, of a length that only it tells.
func childPayload(control string) []byte {
	n := uint(0)
	for _, c := range control {
		n = n*31 + uint(c)
	}
	return bytes.Repeat([]byte(control+"|"), 1+int(n%120))
}

// deliverAll takes two of three messages, repeats and refuses some, and leaves some.
func deliverAll(ctx context.Context, s *Spool, log io.Writer, label string) error {
	r := rand.New(rand.NewPCG(1, uint64(len(label))))
	for q := s.Queue("q"); ; {
		e, err := q.Next(ctx)
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		if !bytes.Equal(e.Payload, childPayload(e.ControlID)) {
			return fmt.Errorf("the payload of %s is wrong", e.ControlID)
		}
		switch n := r.IntN(12); {
		case n < 2:
			err = errors.Join(q.Sent(e.ID), q.Retry(e.ID, "no answer"))
		case n < 3:
			err = errors.Join(promise(log, "refusing", e.ControlID), q.Quarantine(e.ID, "AR"), promise(log, "refused", e.ControlID))
		case n < 5:
			err = q.Sent(e.ID)
		default:
			err = errors.Join(q.Sent(e.ID), promise(log, "taking", e.ControlID), q.Accepted(e.ID), promise(log, "taken", e.ControlID))
		}
		if err != nil {
			return err
		}
	}
}

// A ledger is what was promised so far.
type ledger struct {
	begun, stored, taking, taken, refusing, refused map[string]bool
}

func newLedger() *ledger {
	return &ledger{map[string]bool{}, map[string]bool{}, map[string]bool{}, map[string]bool{}, map[string]bool{}, map[string]bool{}}
}

// clone is the ledger as it goes on from here in one of several ways.
func (l *ledger) clone() *ledger {
	return &ledger{maps.Clone(l.begun), maps.Clone(l.stored), maps.Clone(l.taking), maps.Clone(l.taken), maps.Clone(l.refusing), maps.Clone(l.refused)}
}

func (l *ledger) note(line string) {
	what, control, _ := strings.Cut(strings.TrimSpace(line), " ")
	for name, set := range map[string]map[string]bool{"begin": l.begun, "stored": l.stored, "taking": l.taking, "taken": l.taken, "refusing": l.refusing, "refused": l.refused} {
		if name == what {
			set[control] = true
		}
	}
}

func (l *ledger) read(r io.Reader) error {
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		l.note(lines.Text())
	}
	return lines.Err()
}

// check opens the spool and holds it against what was promised: nothing that was stored
// is missing unless its acceptance had begun; nothing that was accepted is there; nothing
// is there twice, nobody knows of, in the wrong order or with another content.
func (l *ledger) check(path string) error {
	s, err := Open(path, childOptions())
	if err != nil {
		return err
	}
	defer s.Close()
	if o := s.Opened(); o.Damage != "" || o.Lost > 0 {
		return fmt.Errorf("it takes the cut for damage: %+v", o)
	}
	there := map[string]bool{}
	last := map[string]string{}
	err = s.List("", func(e Entry) error {
		full, err := s.Get(e.ID)
		switch {
		case err != nil:
			return err
		case !l.begun[e.ControlID]:
			return fmt.Errorf("%s is there and was never enqueued", e.ControlID)
		case there[e.ControlID]:
			return fmt.Errorf("%s is there twice", e.ControlID)
		case l.taken[e.ControlID]:
			return fmt.Errorf("%s is there and was accepted", e.ControlID)
		case l.refused[e.ControlID] && e.State != Quarantined, !l.refusing[e.ControlID] && e.State == Quarantined:
			return fmt.Errorf("%s is %v", e.ControlID, e.State)
		case !bytes.Equal(full.Payload, childPayload(e.ControlID)):
			return fmt.Errorf("%s has another content", e.ControlID)
		case e.ControlID <= last[e.Device]:
			return fmt.Errorf("%s comes after %s", e.ControlID, last[e.Device])
		}
		there[e.ControlID], last[e.Device] = true, e.ControlID
		return nil
	})
	if err != nil {
		return err
	}
	for control := range l.stored {
		if !there[control] && !l.taking[control] {
			return fmt.Errorf("%s is lost", control)
		}
	}
	q := s.Stats().Queues["q"]
	if s.Stats().Bytes > childOptions().MaxBytes/2 {
		return errors.New("it is nearly full, and entries that are given up look like lost ones")
	}
	if q.Enqueued != q.Accepted+uint64(q.Messages+q.Quarantined) {
		return fmt.Errorf("the counts do not add up: %+v", q)
	}
	return s.Close()
}
