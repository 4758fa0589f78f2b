package port

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"sync"
	"time"
)

// A Recorder writes down all bytes that go through the ports it wraps, with
// time and direction: a line of text for each, in one write to the file. The
// format is that of ReadRecording, FormatHex.
//
// A recording holds what the device said, names of patients included: it is
// patient data, for as long as it is kept and wherever it is copied. The file
// is for its owner only, mode 0600.
//
// A power cut may tear the last line, or lose the last seconds; what is there
// can be read. A recording that cannot be written, or is full, ends; the port
// goes on, and Err says why.
type Recorder struct {
	now func() time.Time

	mu   sync.Mutex
	w    io.Writer
	room int64 // bytes that may still be written
	line []byte
	err  error
}

// ErrRecordingFull ends a recording that has reached its size.
var ErrRecordingFull = errors.New("the recording has reached its size")

// OpenRecording opens a recording to be continued, or begins one. It is ended
// when the file has max bytes; 0 is no limit.
func OpenRecording(path string, max int64, now func() time.Time) (*Recorder, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("recording: %w", err)
	}
	r, err := continueRecording(f, max, now)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("recording %s: %w", path, err)
	}
	return r, nil
}

func continueRecording(f *os.File, max int64, now func() time.Time) (*Recorder, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New("this is no file")
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("others may read it (mode %04o), and it holds patient data: chmod 600 it or move it away", info.Mode().Perm())
	}
	var last [1]byte
	torn := false
	if size := info.Size(); size > 0 {
		if _, err := f.ReadAt(last[:], size-1); err != nil {
			return nil, err
		}
		torn = last[0] != '\n'
	}
	r := newRecorder(f, now)
	if max > 0 {
		r.room = max - info.Size()
	}
	if torn {
		r.write([]byte{'\n'})
	}
	r.header()
	return r, r.err
}

// NewRecorder begins a recording on w. If w is an io.Closer, Close closes it.
func NewRecorder(w io.Writer, now func() time.Time) *Recorder {
	r := newRecorder(w, now)
	r.header()
	return r
}

func newRecorder(w io.Writer, now func() time.Time) *Recorder {
	return &Recorder{w: w, now: now, room: 1<<63 - 1}
}

func (r *Recorder) header() {
	r.write([]byte(recordingHeader + " 1: patient data. time, < from or > to the device, length, bytes\n"))
}

// Wrap is p, recorded.
func (r *Recorder) Wrap(p Port) Port {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.write([]byte("# opened\n"))
	return &recordedPort{Port: p, recorder: r}
}

// Err is why the recording ended, or nil.
func (r *Recorder) Err() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}

// Close ends the recording and has it written to the disk.
func (r *Recorder) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	var errs []error
	if f, ok := r.w.(interface{ Sync() error }); ok {
		errs = append(errs, f.Sync())
	}
	if c, ok := r.w.(io.Closer); ok {
		errs = append(errs, c.Close())
	}
	if r.err == nil {
		r.err = fs.ErrClosed
	}
	return errors.Join(errs...)
}

func (r *Recorder) record(d Direction, p []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil || len(p) == 0 {
		return
	}
	for len(p) > 0 { // a record has a bound, a write has none
		piece := p[:min(len(p), maxRecord)]
		p = p[len(piece):]
		b := r.now().UTC().AppendFormat(r.line[:0], time.RFC3339Nano)
		b = append(b, ' ', byte(d), ' ')
		b = strconv.AppendInt(b, int64(len(piece)), 10)
		b = append(b, ' ')
		b = hex.AppendEncode(b, piece)
		r.line = append(b, '\n')
		r.write(r.line)
	}
}

// write writes a whole line or nothing.
func (r *Recorder) write(line []byte) {
	if r.err != nil {
		return
	}
	if int64(len(line)) > r.room {
		r.err = ErrRecordingFull
		return
	}
	n, err := r.w.Write(line)
	r.room -= int64(n)
	r.err = err
}

type recordedPort struct {
	Port
	recorder *Recorder
}

func (p *recordedPort) ReadBefore(b []byte, deadline time.Time) (int, error) {
	n, err := p.Port.ReadBefore(b, deadline)
	if n > 0 {
		p.recorder.record(FromDevice, b[:n])
	}
	return n, err
}

// Write records first, so that the answer cannot stand before its request.
func (p *recordedPort) Write(b []byte) (int, error) {
	p.recorder.record(ToDevice, b)
	return p.Port.Write(b)
}

// HasLine passes on, as Liner.
func (p *recordedPort) HasLine() bool { return HasLine(p.Port) }

// StopReading passes on, as ReadStopper.
func (p *recordedPort) StopReading() {
	if s, ok := p.Port.(ReadStopper); ok {
		s.StopReading()
	}
}
