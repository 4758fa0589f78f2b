package port

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"
)

// recordingHeader begins what a Recorder writes. A file that begins with it has
// lines as a Recorder writes them, and no others.
const recordingHeader = "# gatewayd recording"

type lineKind uint8

const (
	lineEmpty lineKind = iota
	lineRecorded
	lineColumns
	lineHex
)

// textReader reads text recordings; it remembers when the first record was.
type textReader struct {
	buf     []byte
	began   bool
	first   time.Time
	seconds float64
}

func readText(in *bufio.Reader, yield func(Record, error) bool) {
	var (
		t      textReader
		own    bool
		broken error // of the line before, which may be a torn one
	)
	for number := 1; ; number++ {
		line, rerr := in.ReadSlice('\n')
		header := bytes.HasPrefix(line, []byte(recordingHeader))
		own = own || header
		if broken != nil {
			// Only the last line of a recorder that was cut off can be torn.
			if !header && (rerr != io.EOF || len(line) > 0) {
				yield(Record{}, broken)
				return
			}
			if !yield(Record{}, fmt.Errorf("%w: the last record before a power cut: %w", ErrTorn, broken)) {
				return
			}
			broken = nil
		}
		if rerr != nil && rerr != io.EOF {
			if errors.Is(rerr, bufio.ErrBufferFull) {
				rerr = fmt.Errorf("it is longer than %d bytes", maxLine)
			}
			yield(Record{}, fmt.Errorf("line %d: %w", number, rerr))
			return
		}
		record, kind, err := t.parse(line, own)
		switch {
		case err != nil:
			broken = fmt.Errorf("line %d: %w", number, err)
		case kind != lineEmpty && !yield(record, nil):
			return
		}
		if rerr == io.EOF {
			if broken != nil {
				yield(Record{}, fmt.Errorf("%w: the last line is cut off: %w", ErrTorn, broken))
			}
			return
		}
	}
}

// parse reads a line. own allows only lines as a Recorder writes them.
func (t *textReader) parse(line []byte, own bool) (Record, lineKind, error) {
	line = bytes.TrimSpace(line)
	if len(line) == 0 || line[0] == '#' {
		return Record{}, lineEmpty, nil
	}
	if own || bytes.Contains(line[:min(len(line), 11)], []byte("T")) {
		r, err := t.recorded(line)
		return r, lineRecorded, err
	}
	if fields := bytes.Fields(line); len(fields) == 5 && bytes.IndexByte(fields[1], '.') > 0 {
		r, err := t.columns(fields)
		return r, lineColumns, err
	}
	data, err := t.bytes(line, -1)
	return Record{Direction: FromDevice, Data: data}, lineHex, err
}

func (t *textReader) recorded(line []byte) (Record, error) {
	fields := bytes.Fields(line)
	if len(fields) != 4 {
		return Record{}, fmt.Errorf("it has %d fields, not time, direction, length and bytes", len(fields))
	}
	when, err := time.Parse(time.RFC3339Nano, string(fields[0]))
	if err != nil {
		return Record{}, fmt.Errorf("%q is no time", clip(fields[0]))
	}
	var direction Direction
	switch string(fields[1]) {
	case "<":
		direction = FromDevice
	case ">":
		direction = ToDevice
	default:
		return Record{}, fmt.Errorf("direction %q is neither < nor >", clip(fields[1]))
	}
	data, err := t.counted(fields[2], fields[3])
	if err != nil {
		return Record{}, err
	}
	if !t.began {
		t.began, t.first = true, when
	}
	return Record{Time: when, Offset: when.Sub(t.first), Direction: direction, Data: data}, nil
}

func (t *textReader) columns(fields [][]byte) (Record, error) {
	seconds, err := strconv.ParseFloat(string(fields[1]), 64)
	if err != nil || !(seconds >= 0 && seconds < 1e9) {
		return Record{}, fmt.Errorf("%q is no number of seconds", clip(fields[1]))
	}
	var direction Direction
	switch fields[2][0] {
	case 'M', 'D', '<':
		direction = FromDevice
	case 'H', 'G', '>':
		direction = ToDevice
	default:
		return Record{}, fmt.Errorf("direction %q begins with neither M for the monitor nor H for the host", clip(fields[2]))
	}
	data, err := t.counted(fields[3], fields[4])
	if err != nil {
		return Record{}, err
	}
	if !t.began {
		t.began, t.seconds = true, seconds
	}
	offset := time.Duration((seconds - t.seconds) * float64(time.Second))
	return Record{Offset: offset.Round(time.Microsecond), Direction: direction, Data: data}, nil
}

// counted reads hex of as many bytes as length says.
func (t *textReader) counted(length, digits []byte) ([]byte, error) {
	n, err := strconv.ParseUint(string(length), 10, 32)
	if err != nil || n > maxRecord {
		return nil, fmt.Errorf("%q is no length up to %d", clip(length), maxRecord)
	}
	return t.bytes(digits, int(n))
}

// bytes reads hex, white space between its digits allowed; want is how many
// bytes there must be, or -1.
func (t *textReader) bytes(digits []byte, want int) ([]byte, error) {
	t.buf = t.buf[:0]
	for _, c := range digits {
		if c != ' ' && c != '\t' {
			t.buf = append(t.buf, c)
		}
	}
	n, err := hex.Decode(t.buf, t.buf)
	switch {
	case err != nil:
		return nil, fmt.Errorf("it is no hexadecimal text: %w", err)
	case want >= 0 && n != want:
		return nil, fmt.Errorf("it says %d bytes and has %d", want, n)
	}
	return t.buf[:n], nil
}

func clip(b []byte) []byte { return b[:min(len(b), 32)] }
