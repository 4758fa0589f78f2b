// Package mllp frames HL7 messages on a byte stream, both directions: the
// Minimal Lower Layer Protocol, release 1.
//
// A block is 0x0B, the message, 0x1C 0x0D. The package never reads what is in
// a message and never makes an acknowledgement: packages northbound and the
// platform side do. It copes with what peers are known to send, counts it, and
// refuses to write what a peer could misread.
package mllp

import (
	"bytes"
	"errors"
	"fmt"
)

// DefaultPort is the port registered for HL7 and the default of Interface B (B12).
const DefaultPort = "2575"

// The frame bytes.
const (
	startBlock     = 0x0B
	endBlock       = 0x1C
	carriageReturn = 0x0D
)

// A PayloadError refuses a message that holds a frame byte: a peer would take
// it for the end or the start of a block. The position tells where to look
// without showing what is there.
type PayloadError struct {
	Byte    byte
	Offset  int // in the message, from 0
	Segment int // from 1
}

func (e *PayloadError) Error() string {
	return fmt.Sprintf("message holds the MLLP frame byte 0x%02X at position %d, in segment %d: write it as the escape \\X%02X\\ or leave it out",
		e.Byte, e.Offset, e.Segment, e.Byte)
}

// ErrEmpty refuses to write a block with nothing in it: there is no heartbeat in MLLP.
var ErrEmpty = errors.New("message is empty")

// Check returns a *PayloadError where message cannot be framed, and ErrEmpty
// where there is nothing to frame.
func Check(message []byte) error {
	if len(message) == 0 {
		return ErrEmpty
	}
	at := bytes.IndexByte(message, startBlock)
	if end := bytes.IndexByte(message, endBlock); end >= 0 && (at < 0 || end < at) {
		at = end
	}
	if at < 0 {
		return nil
	}
	return &PayloadError{Byte: message[at], Offset: at, Segment: 1 + bytes.Count(message[:at], []byte{carriageReturn})}
}

// AppendBlock appends message in its frame. It returns dst and the error of
// Check where message cannot be framed.
func AppendBlock(dst, message []byte) ([]byte, error) {
	if err := Check(message); err != nil {
		return dst, err
	}
	dst = append(dst, startBlock)
	dst = append(dst, message...)
	return append(dst, endBlock, carriageReturn), nil
}
