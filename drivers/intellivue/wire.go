package intellivue

import "encoding/binary"

// A reader takes big-endian fields from the front of bytes that it only
// borrows. A field that is not there leaves it bad and reads as zero, so that a
// structure is read in one go and judged once.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) take(n int) []byte {
	if n < 0 || n > len(r.b) {
		r.bad, r.b = true, nil
		return nil
	}
	p := r.b[:n:n]
	r.b = r.b[n:]
	return p
}

func (r *reader) u8() uint8 {
	if p := r.take(1); p != nil {
		return p[0]
	}
	return 0
}

func (r *reader) u16() uint16 {
	if p := r.take(2); p != nil {
		return binary.BigEndian.Uint16(p)
	}
	return 0
}

func (r *reader) u32() uint32 {
	if p := r.take(4); p != nil {
		return binary.BigEndian.Uint32(p)
	}
	return 0
}

// sized reads a length and as many bytes.
func (r *reader) sized() []byte { return r.take(int(r.u16())) }

// list reads a count, a length and as many bytes.
func (r *reader) list() list {
	n := int(r.u16())
	return list{n, r.sized()}
}

// done reports whether all was there and nothing is left.
func (r *reader) done() bool { return !r.bad && len(r.b) == 0 }

// A list is a number of elements in bytes. Count is what the sender says; it
// counts only once the elements were found to fill the bytes exactly.
type list struct {
	count int
	b     []byte
}

// fixed reports whether the list is elements of size bytes each.
func (l list) fixed(size int) bool { return len(l.b) == l.count*size }

// at is element i of a list of elements of size bytes.
func (l list) at(i, size int) []byte { return l.b[i*size : (i+1)*size : (i+1)*size] }

func appendU16(b []byte, v uint16) []byte { return binary.BigEndian.AppendUint16(b, v) }
func appendU32(b []byte, v uint32) []byte { return binary.BigEndian.AppendUint32(b, v) }

// open leaves room for a 16-bit length and tells where it is; shut writes the
// length of what was appended since.
func open(b []byte) (grown []byte, at int) { return append(b, 0, 0), len(b) }

func shut(b []byte, at int) []byte {
	binary.BigEndian.PutUint16(b[at:], uint16(len(b)-at-2))
	return b
}
