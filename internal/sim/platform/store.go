package platform

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// A Record is a row of the store's index: a message that was stored, or another
// copy of one.
type Record struct {
	Number    int       `json:"number"` // of the stored message, from 1
	Copy      int       `json:"copy"`   // 1 is the first; more came again under the same control ID
	ControlID string    `json:"control_id"`
	Sender    string    `json:"sender"`
	Peer      string    `json:"peer"` // common name of the peer's certificate
	Device    string    `json:"device,omitempty"`
	Made      string    `json:"made"`
	Received  time.Time `json:"received"`
	Offset    int64     `json:"offset"`
	Length    int       `json:"length"`
	Digest    string    `json:"digest"`
	Findings  int       `json:"findings"`
	Answer    string    `json:"answer"`
}

// The files of a store. Messages lie one behind the other as they came, each
// followed by an empty line; the index says where each begins.
const (
	messagesFile = "messages.hl7"
	indexFile    = "index.jsonl"
)

// store keeps messages in a directory. Both files only grow, and a message is
// on the disk before its row is, so that a cut leaves at most a tail that no
// row names; it is cut off at the next start.
type store struct {
	messages, index *os.File
	offset, rows    int64 // the good lengths of both files
}

func openStore(dir string) (*store, []Record, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, nil, err
	}
	s := &store{}
	var err error
	if s.messages, err = openLocked(filepath.Join(dir, messagesFile)); err != nil {
		return nil, nil, err
	}
	if s.index, err = os.OpenFile(filepath.Join(dir, indexFile), os.O_CREATE|os.O_RDWR, 0o600); err != nil {
		return nil, nil, errors.Join(err, s.messages.Close())
	}
	records, err := s.recover()
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("store %s: %w", dir, err), s.close())
	}
	return s, records, nil
}

// openLocked keeps a second platform from writing into the same files.
func openLocked(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("%s is in use by another platform: %w", path, err), f.Close())
	}
	return f, nil
}

// recover reads the index up to a torn last row and cuts both files to what
// is whole.
func (s *store) recover() ([]Record, error) {
	size, err := s.messages.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, err
	}
	var records []Record
	for r := bufio.NewReader(s.index); ; {
		line, err := r.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			break // what is left has no end: a torn row
		}
		if err != nil {
			return nil, err
		}
		var rec Record
		if err := json.Unmarshal(line, &rec); err != nil {
			return nil, fmt.Errorf("%s, row %d: %w", indexFile, len(records)+1, err)
		}
		if rec.Offset+int64(rec.Length) > size {
			return nil, fmt.Errorf("%s, row %d: names bytes that %s does not have", indexFile, len(records)+1, messagesFile)
		}
		records = append(records, rec)
		s.rows += int64(len(line))
		s.offset = max(s.offset, rec.Offset+int64(rec.Length)+1)
	}
	return records, s.cut()
}

// cut takes both files back to their good lengths.
func (s *store) cut() error {
	return errors.Join(cut(s.messages, s.offset), cut(s.index, s.rows))
}

func cut(f *os.File, size int64) error {
	if err := f.Truncate(size); err != nil {
		return err
	}
	_, err := f.Seek(size, io.SeekStart)
	return err
}

// add makes a message and its row durable, or neither: after a failure the
// files are as before and the message was not taken.
func (s *store) add(r *Record, message []byte) error {
	r.Offset, r.Length = s.offset, len(message)
	if err := write(s.messages, append(bytes.Clone(message), '\n')); err != nil {
		return errors.Join(err, s.cut())
	}
	if err := s.row(r); err != nil {
		return err
	}
	s.offset += int64(r.Length) + 1
	return nil
}

// row makes a row of the index durable.
func (s *store) row(r *Record) error {
	line, err := json.Marshal(r)
	if err != nil {
		return err
	}
	line = append(line, '\n')
	if err := write(s.index, line); err != nil {
		return errors.Join(err, s.cut())
	}
	s.rows += int64(len(line))
	return nil
}

func write(f *os.File, b []byte) error {
	if _, err := f.Write(b); err != nil {
		return err
	}
	return f.Sync()
}

func (s *store) close() error {
	return errors.Join(s.messages.Close(), s.index.Close())
}
