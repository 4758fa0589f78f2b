package pcd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
)

// ControlIDs makes control IDs (MSH-10) of 20 characters, the most that an
// acknowledgement is sure to give back (MSA-2, HL7 v2.6 table 2.15.8): 13 for
// the start of the process, drawn at random, and 7 that count. It is safe for
// concurrent use.
type ControlIDs struct {
	boot [13]byte
	next atomic.Uint64
}

// ControlIDLength is the length of every control ID.
const ControlIDLength = 20

// base32 in the order of ASCII (RFC 4648, section 7), so that the IDs of one
// start sort as they were made.
const base32 = "0123456789ABCDEFGHIJKLMNOPQRSTUV"

// NewControlIDs draws the part that tells this start from all others.
func NewControlIDs(random io.Reader) (*ControlIDs, error) {
	if random == nil {
		return nil, errors.New("control IDs need a source of randomness")
	}
	var b [8]byte
	if _, err := io.ReadFull(random, b[:]); err != nil {
		return nil, fmt.Errorf("draw the random part of control IDs: %w", err)
	}
	c := new(ControlIDs)
	put32(c.boot[:], binary.BigEndian.Uint64(b[:]))
	return c, nil
}

// Append appends the next control ID. The 2^35 of one start last for centuries.
func (c *ControlIDs) Append(dst []byte) []byte {
	var counter [7]byte
	put32(counter[:], c.next.Add(1))
	return append(append(dst, c.boot[:]...), counter[:]...)
}

// put32 writes the last digits of n that fit.
func put32(dst []byte, n uint64) {
	for i := len(dst) - 1; i >= 0; i-- {
		dst[i] = base32[n&31]
		n >>= 5
	}
}
