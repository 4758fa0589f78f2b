package sim

import "encoding/binary"

// The transparency layer of MIB/RS-232: C0, header, user data, FCS, C1, where
// every C0, C1 and 7D in between is sent as 7D and the byte XOR 20.
const (
	frameBegin  = 0xC0
	frameEnd    = 0xC1
	frameEscape = 0x7D
	frameFlip   = 0x20

	frameProtocol = 0x11 // protocol id: data export
	frameType     = 0x01 // message type: association or data export

	// maxFrame is the longest content that the deframer collects: more than
	// any client can send within the largest transfer unit of 1456 bytes.
	maxFrame = 4096
)

// fcsTable is CRC-16/X.25 (polynomial 1021 reflected) by byte.
var fcsTable = func() (t [256]uint16) {
	for i := range t {
		crc := uint16(i)
		for range 8 {
			if crc&1 != 0 {
				crc = crc>>1 ^ 0x8408
			} else {
				crc >>= 1
			}
		}
		t[i] = crc
	}
	return t
}()

// fcs is the frame check sequence of b, to be sent low byte first.
func fcs(b []byte) uint16 {
	crc := uint16(0xFFFF)
	for _, c := range b {
		crc = crc>>8 ^ fcsTable[byte(crc)^c]
	}
	return ^crc
}

// appendFrame appends pdu in an RS-232 frame.
func appendFrame(dst, pdu []byte) []byte {
	content := make([]byte, 0, len(pdu)+6)
	content = append(content, frameProtocol, frameType)
	content = binary.BigEndian.AppendUint16(content, uint16(len(pdu)))
	content = append(content, pdu...)
	content = binary.LittleEndian.AppendUint16(content, fcs(content))

	dst = append(dst, frameBegin)
	for _, c := range content {
		if c == frameBegin || c == frameEnd || c == frameEscape {
			dst = append(dst, frameEscape)
			c ^= frameFlip
		}
		dst = append(dst, c)
	}
	return append(dst, frameEnd)
}

// A deframer finds the PDUs in what a client writes to the line.
type deframer struct {
	content []byte
	inside  bool
	escaped bool
	bad     int // frames thrown away: check wrong, aborted, too long, unknown header
}

// feed takes the next bytes and calls pdu for each whole frame. The argument
// of pdu is only borrowed.
func (d *deframer) feed(p []byte, pdu func([]byte)) {
	for _, c := range p {
		switch {
		case c == frameBegin:
			if d.inside && len(d.content) > 0 {
				d.bad++ // a new beginning cuts off the frame before it
			}
			d.inside, d.escaped, d.content = true, false, d.content[:0]
		case !d.inside: // noise between frames
		case c == frameEnd:
			d.end(pdu)
		case d.escaped:
			d.content, d.escaped = append(d.content, c^frameFlip), false
		case c == frameEscape:
			d.escaped = true
		default:
			d.content = append(d.content, c)
		}
		if len(d.content) > maxFrame {
			d.inside, d.content, d.bad = false, d.content[:0], d.bad+1
		}
	}
}

// end judges the collected frame. An escape right before the end aborts it.
func (d *deframer) end(pdu func([]byte)) {
	c, aborted := d.content, d.escaped
	d.inside, d.escaped, d.content = false, false, d.content[:0]
	if aborted || len(c) < 6 || !frameSound(c) {
		d.bad++
		return
	}
	pdu(c[4 : len(c)-2])
}

// frameSound checks header, length and FCS of the unescaped content.
func frameSound(c []byte) bool {
	n := len(c) - 2
	return c[0] == frameProtocol && c[1] == frameType &&
		int(binary.BigEndian.Uint16(c[2:])) == n-4 &&
		binary.LittleEndian.Uint16(c[n:]) == fcs(c[:n])
}
