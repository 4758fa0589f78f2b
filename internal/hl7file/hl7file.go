// Package hl7file reads files of HL7 messages as people and tools write them:
// one message or many, segments ended by CR, LF or CR LF, blank lines between,
// MLLP framing still around them. It only finds the messages; what they say is
// the business of hl7 and pcd. The command line uses it.
package hl7file

import (
	"bytes"
	"errors"
	"fmt"
	"io"
)

// MaxSize is the largest file in bytes that is read.
const MaxSize = 64 << 20

// ErrNone is that there is no message in a file.
var ErrNone = errors.New("holds no HL7 message: none of its lines begins with MSH")

// Read reads all messages, with each segment ended by CR. Lines before the first
// MSH are an error, for they would be lost.
func Read(r io.Reader) ([][]byte, error) {
	text, err := io.ReadAll(io.LimitReader(r, MaxSize+1))
	if err != nil {
		return nil, err
	}
	if len(text) > MaxSize {
		return nil, fmt.Errorf("is larger than %d bytes; split it", MaxSize)
	}
	return Split(text)
}

// Split is Read for a text at hand.
func Split(text []byte) ([][]byte, error) {
	var messages [][]byte
	number := 0
	for line := range bytes.FieldsFuncSeq(text, lineEnd) {
		number++
		if line = bytes.Trim(line, framing); len(bytes.TrimSpace(line)) == 0 {
			continue
		}
		if number == 1 {
			line = bytes.TrimPrefix(line, []byte("\xEF\xBB\xBF")) // a byte order mark
		}
		if bytes.HasPrefix(line, []byte("MSH")) {
			messages = append(messages, nil)
		}
		if len(messages) == 0 {
			return nil, fmt.Errorf("%w; its text begins with something else", ErrNone)
		}
		last := &messages[len(messages)-1]
		*last = append(append(*last, line...), '\r')
	}
	if len(messages) == 0 {
		return nil, ErrNone
	}
	return messages, nil
}

// framing is the bytes around a message on the wire (MLLP): VT and FS.
const framing = "\x0b\x1c"

func lineEnd(r rune) bool { return r == '\r' || r == '\n' }
