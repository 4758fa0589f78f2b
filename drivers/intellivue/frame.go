package intellivue

import (
	"bytes"

	"github.com/bedside-gateway/gatewayd/drivers"
)

// On the RS-232 line a message stands between a begin and an end of frame, with
// a header, a check value and an escape for the three bytes that mean something
// (Data Export Programming Guide, transport protocol of the MIB/RS232
// interface):
//
//	C0 | 11 01 length length | user data | FCS FCS | C1
const (
	frameBegin  = 0xC0
	frameEnd    = 0xC1
	frameEscape = 0x7D
	escapeMask  = 0x20

	protocolDataExport = 0x11
	messageTypeData    = 0x01
	frameHeader        = 4
	frameTrailer       = 2

	// maxUserData is more than any monitor sends in one frame: they agree on at
	// most 1456 bytes in the association.
	maxUserData = 4096
	maxFrame    = frameHeader + maxUserData + frameTrailer
)

// fcsTable is the table of CRC-16/X.25, polynomial 1021 with its bits in
// reverse.
var fcsTable = func() (t [256]uint16) {
	for i := range t {
		c := uint16(i)
		for range 8 {
			if c&1 != 0 {
				c = c>>1 ^ 0x8408
			} else {
				c >>= 1
			}
		}
		t[i] = c
	}
	return t
}()

// fcs is the check value of p: CRC-16/X.25, sent low byte first.
func fcs(p []byte) uint16 { return ^fcsRun(p) }

// fcsResidue is what fcsRun gives over data and their right check value.
const fcsResidue = 0xF0B8

func fcsRun(p []byte) uint16 {
	c := uint16(0xFFFF)
	for _, b := range p {
		c = c>>8 ^ fcsTable[byte(c)^b]
	}
	return c
}

// appendFrame appends the frame of user data.
func appendFrame(dst, user []byte) []byte {
	header := [frameHeader]byte{protocolDataExport, messageTypeData, byte(len(user) >> 8), byte(len(user))}
	c := uint16(0xFFFF)
	dst = append(dst, frameBegin)
	for _, part := range [...][]byte{header[:], user} {
		for _, b := range part {
			c = c>>8 ^ fcsTable[byte(c)^b]
			dst = appendEscaped(dst, b)
		}
	}
	dst = appendEscaped(dst, byte(^c))
	dst = appendEscaped(dst, byte(^c>>8))
	return append(dst, frameEnd)
}

func appendEscaped(dst []byte, b byte) []byte {
	if b == frameBegin || b == frameEnd || b == frameEscape {
		return append(dst, frameEscape, b^escapeMask)
	}
	return append(dst, b)
}

// A deframer finds frames in a stream that comes in pieces of any size. After
// anything wrong it begins anew at the next begin of frame, which never occurs
// inside of one.
type deframer struct {
	buf     []byte
	inside  bool
	escaped bool
	noise   bool // in a run of bytes outside of frames that was told already
}

// next takes bytes of p until something is complete. It returns the rest of p
// and, if ok, the fate of a frame or that noise begins; user is the data of a
// good frame, valid until the next call.
func (d *deframer) next(p []byte) (rest, user []byte, fate drivers.Frame, ok bool) {
	for len(p) > 0 {
		if d.inside {
			if p, user, fate, ok = d.fill(p); ok {
				return p, user, fate, true
			}
			continue
		}
		i := bytes.IndexByte(p, frameBegin)
		if i < 0 {
			i = len(p)
		}
		if i > 0 && !d.noise {
			d.noise = true
			return p[i:], nil, drivers.FrameNoise, true
		}
		if p = p[i:]; len(p) > 0 {
			d.begin()
			p = p[1:]
		}
	}
	return nil, nil, 0, false
}

func (d *deframer) begin() {
	if d.buf == nil {
		d.buf = make([]byte, 0, maxFrame)
	}
	d.buf, d.inside, d.escaped, d.noise = d.buf[:0], true, false, false
}

func (d *deframer) fill(p []byte) (rest, user []byte, fate drivers.Frame, ok bool) {
	for i, b := range p {
		switch {
		case b == frameEnd:
			d.inside = false
			if d.escaped { // escape and end of frame: the sender gave it up
				return p[i+1:], nil, drivers.FrameMalformed, true
			}
			user, fate = d.judge()
			return p[i+1:], user, fate, true
		case b == frameBegin: // the end of the frame before was lost
			lost := len(d.buf) > 0
			d.begin()
			if lost {
				return p[i+1:], nil, drivers.FrameMalformed, true
			}
		case b == frameEscape && !d.escaped:
			d.escaped = true
		case len(d.buf) == maxFrame:
			d.inside, d.noise = false, true // the rest of it is no news
			return p[i+1:], nil, drivers.FrameOversize, true
		case d.escaped:
			d.escaped = false
			d.buf = append(d.buf, b^escapeMask)
		default:
			d.buf = append(d.buf, b)
		}
	}
	return nil, nil, 0, false
}

func (d *deframer) judge() ([]byte, drivers.Frame) {
	b := d.buf
	if len(b) < frameHeader+frameTrailer {
		return nil, drivers.FrameMalformed
	}
	if fcsRun(b) != fcsResidue {
		return nil, drivers.FrameChecksum
	}
	user := b[frameHeader : len(b)-frameTrailer]
	if b[0] != protocolDataExport || b[1] != messageTypeData || int(b[2])<<8|int(b[3]) != len(user) {
		return nil, drivers.FrameMalformed
	}
	return user, drivers.FrameGood
}

// begins reports whether the frame at hand has the header of this protocol, as
// far as it came.
func (d *deframer) begins() bool {
	header := []byte{protocolDataExport, messageTypeData}
	return bytes.HasPrefix(d.buf, header) || bytes.HasPrefix(header, d.buf)
}
