package port

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/netip"
	"time"
)

// A Direction is which way bytes went.
type Direction byte

// The directions, by the signs that recordings have for them.
const (
	FromDevice Direction = '<'
	ToDevice   Direction = '>'
)

// A Record is bytes that went over a port at one time: a piece of a stream, or
// one datagram.
type Record struct {
	// Time is when, by the clock of the recorder; zero where the recording has no dates.
	Time time.Time
	// Offset is how long after the first record; 0 throughout where the recording has no times.
	Offset    time.Duration
	Direction Direction
	Data      []byte
}

// A Format is how a recording is written down.
type Format uint8

// The formats.
const (
	FormatAuto Format = iota // told by how the recording begins
	FormatRaw                // the bytes of the device, nothing else
	FormatHex                // text: what a Recorder writes, or columns with hex, or hex alone
	FormatPcap               // a network capture: pcap or pcapng
)

// ParseFormat reads auto, raw, hex or pcap.
func ParseFormat(s string) (Format, error) {
	switch s {
	case "auto", "":
		return FormatAuto, nil
	case "raw":
		return FormatRaw, nil
	case "hex", "text":
		return FormatHex, nil
	case "pcap", "pcapng":
		return FormatPcap, nil
	}
	return 0, fmt.Errorf("input %q: it is auto, raw, hex or pcap", s)
}

// ReadOptions say how to read a recording.
type ReadOptions struct {
	Format Format
	// UDPPort is the port of the device in a network capture: what comes from
	// it is of the device, what goes to it is to the device. What a device
	// sends to a group or to all is its own, too, from whatever port.
	UDPPort int
	// Device is the address of the device in a network capture of several;
	// zero is the first that has UDPPort.
	Device netip.Addr
}

// ErrTorn is the error of a recording from which something is missing: the end,
// as a power cut leaves it, or a packet that was not captured whole. What was
// read before is right, and reading goes on behind it.
var ErrTorn = errors.New("a part of the recording is missing")

// The bounds of what a recording may ask for. The largest UDP payload is 65507 bytes.
const (
	maxRecord = 1 << 16
	maxLine   = 1 << 20
	rawPiece  = 1 << 12
)

// ReadRecording reads a recording record by record.
//
// Recordings in text have one record a line, and comments that begin with #.
// There are three kinds of lines:
//
//	2026-11-24T21:08:25.678901234Z < 3 C00111    as a Recorder writes it: time, direction, length, bytes
//	17 125.443 M->H 3 C00111                     number, seconds, direction (M monitor, H host), length, bytes
//	C0 01 11                                     the bytes of the device, spaces where one likes
//
// The data of a record is
// valid until the next. An error that is ErrTorn (see errors.Is) is a warning
// and more may follow; any other error is the end.
func ReadRecording(r io.Reader, o ReadOptions) iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		in := bufio.NewReaderSize(r, maxLine)
		format := o.Format
		if format == FormatAuto {
			format = detect(in)
		}
		switch format {
		case FormatPcap:
			readCapture(in, o, yield)
		case FormatHex:
			readText(in, yield)
		default:
			readRaw(in, yield)
		}
	}
}

// detect tells the format by the first bytes.
func detect(in *bufio.Reader) Format {
	head, _ := in.Peek(rawPiece) // less is there in a short recording, and enough
	if len(head) >= 4 {
		if _, _, ok := pcapMagic(head); ok || binary.BigEndian.Uint32(head) == ngSection {
			return FormatPcap
		}
	}
	if bytes.HasPrefix(head, []byte(recordingHeader)) {
		return FormatHex
	}
	whole, found := len(head) < rawPiece, false
	for line := range bytes.Lines(head) {
		if !whole && !bytes.HasSuffix(line, []byte{'\n'}) {
			break
		}
		var t textReader
		switch _, kind, err := t.parse(line, false); {
		case err != nil:
			return FormatRaw
		case kind != lineEmpty:
			found = true
		}
	}
	if found {
		return FormatHex
	}
	return FormatRaw
}

func readRaw(in io.Reader, yield func(Record, error) bool) {
	buf := make([]byte, rawPiece)
	for {
		n, err := io.ReadFull(in, buf)
		if n > 0 && !yield(Record{Direction: FromDevice, Data: buf[:n]}, nil) {
			return
		}
		switch {
		case err == io.EOF || err == io.ErrUnexpectedEOF:
			return
		case err != nil:
			yield(Record{}, fmt.Errorf("cannot read the recording: %w", err))
			return
		}
	}
}
