package port

import (
	"errors"
	"fmt"
	"io"
	"iter"
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
	// it is of the device, what goes to it is to the device.
	UDPPort int
}

// ErrTorn is the error of a recording whose end is missing, as a power cut
// leaves it. All that came before it was read and is right.
var ErrTorn = errors.New("the end of the recording is cut off")

// ReadRecording reads a recording record by record. The data of a record is
// valid until the next. After an error there is nothing more; ErrTorn (see
// errors.Is) as the last is a warning rather than an error.
func ReadRecording(r io.Reader, o ReadOptions) iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {}
}
