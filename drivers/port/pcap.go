package port

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"time"
)

// The capture formats are read here and not by a library, because a capture is
// an outside file: no length in it may make us allocate more than maxPacket.
// References: draft-ietf-opsawg-pcap, draft-ietf-opsawg-pcapng.

const (
	maxPacket     = 1<<18 + 1<<10 // the largest snap length in use, and headers
	maxInterfaces = 256
)

// A packet is a captured packet; data is valid until the next.
type packet struct {
	number int
	time   time.Time
	link   uint32
	data   []byte
	whole  int // its length on the wire
}

var errNoCapture = errors.New("this is no pcap or pcapng file")

// readCapture yields the datagrams of one device.
func readCapture(in *bufio.Reader, o ReadOptions, yield func(Record, error) bool) {
	if o.UDPPort == 0 {
		yield(Record{}, errors.New("a network capture needs the UDP port of the device, and this driver has none: give the bytes as raw or hex"))
		return
	}
	next := packetsOf(in)
	f := flow{port: uint16(o.UDPPort), device: o.Device, yield: yield}
	for {
		p, err := next()
		switch {
		case err == io.EOF:
			f.end()
			return
		case errors.Is(err, io.ErrUnexpectedEOF):
			if f.end() {
				yield(Record{}, fmt.Errorf("%w: the capture ends in the middle of a packet", ErrTorn))
			}
			return
		case err != nil:
			yield(Record{}, fmt.Errorf("capture: %w", err))
			return
		}
		if !f.add(p) {
			return
		}
	}
}

// packetsOf gives the function that reads the next packet: io.EOF after the
// last, io.ErrUnexpectedEOF where one is cut off.
func packetsOf(in *bufio.Reader) func() (packet, error) {
	head, err := in.Peek(4)
	if err == nil && binary.BigEndian.Uint32(head) == ngSection {
		return (&ngReader{in: in}).next
	}
	p := &pcapReader{in: in}
	if err == nil {
		err = p.header()
	}
	if err != nil {
		return func() (packet, error) { return packet{}, errNoCapture }
	}
	return p.next
}

// pcapReader reads the older format.
type pcapReader struct {
	in     *bufio.Reader
	order  binary.ByteOrder
	nanos  uint32 // of a unit of the fraction
	link   uint32
	number int
	buf    []byte
}

func pcapMagic(b []byte) (order binary.ByteOrder, nanos uint32, ok bool) {
	for _, order := range []binary.ByteOrder{binary.LittleEndian, binary.BigEndian} {
		switch order.Uint32(b) {
		case 0xA1B2C3D4:
			return order, 1000, true
		case 0xA1B23C4D:
			return order, 1, true
		}
	}
	return nil, 0, false
}

func (r *pcapReader) header() error {
	var h [24]byte
	if _, err := io.ReadFull(r.in, h[:]); err != nil {
		return err
	}
	order, nanos, ok := pcapMagic(h[:])
	if !ok {
		return errNoCapture
	}
	r.order, r.nanos, r.link = order, nanos, order.Uint32(h[20:])&0xFFFF
	return nil
}

func (r *pcapReader) next() (packet, error) {
	var h [16]byte
	if _, err := io.ReadFull(r.in, h[:]); err != nil {
		return packet{}, err
	}
	r.number++
	seconds, fraction := r.order.Uint32(h[:]), r.order.Uint32(h[4:])
	length, whole := r.order.Uint32(h[8:]), r.order.Uint32(h[12:])
	data, err := readPacket(r.in, &r.buf, length, r.number)
	when := time.Unix(int64(seconds), int64(fraction)*int64(r.nanos)).UTC()
	return packet{number: r.number, time: when, link: r.link, data: data, whole: int(whole)}, err
}

// readPacket reads length bytes into buf.
func readPacket(in *bufio.Reader, buf *[]byte, length uint32, number int) ([]byte, error) {
	if length > maxPacket {
		return nil, fmt.Errorf("packet %d says that it is %d bytes long: the file is damaged", number, length)
	}
	if uint32(cap(*buf)) < length {
		*buf = make([]byte, length)
	}
	data := (*buf)[:length]
	if _, err := io.ReadFull(in, data); err != nil {
		return nil, io.ErrUnexpectedEOF
	}
	return data, nil
}

// The blocks of pcapng that matter.
const (
	ngSection   = 0x0A0D0D0A
	ngInterface = 1
	ngPacketOld = 2
	ngSimple    = 3
	ngPacket    = 6
	ngMagic     = 0x1A2B3C4D
)

// ngReader reads pcapng.
type ngReader struct {
	in     *bufio.Reader
	order  binary.ByteOrder
	links  []ngLink
	number int
	buf    []byte
}

type ngLink struct {
	link   uint32
	snap   uint32
	units  uint64 // of time in a second
	offset int64  // seconds
}

func (r *ngReader) next() (packet, error) {
	for {
		kind, body, err := r.block()
		if err != nil {
			return packet{}, err
		}
		var p packet
		found := false
		switch kind {
		case ngSection:
			r.links = r.links[:0]
		case ngInterface:
			err = r.addLink(body)
		case ngPacket, ngPacketOld:
			found = true
			p, err = r.packet(kind, body)
		case ngSimple:
			found = true
			p, err = r.simple(body)
		}
		if err != nil || found {
			return p, err
		}
	}
}

// block reads a block; the body of those that do not matter is passed over.
func (r *ngReader) block() (kind uint32, body []byte, err error) {
	var h [12]byte
	if _, err := io.ReadFull(r.in, h[:8]); err != nil {
		return 0, nil, err
	}
	rest := uint32(8)
	if binary.BigEndian.Uint32(h[:]) == ngSection { // the same from both ends
		if _, err := io.ReadFull(r.in, h[8:]); err != nil {
			return 0, nil, io.ErrUnexpectedEOF
		}
		switch {
		case binary.LittleEndian.Uint32(h[8:]) == ngMagic:
			r.order = binary.LittleEndian
		case binary.BigEndian.Uint32(h[8:]) == ngMagic:
			r.order = binary.BigEndian
		default:
			return 0, nil, errNoCapture
		}
		rest = 12
	}
	kind = r.order.Uint32(h[:])
	total := r.order.Uint32(h[4:])
	if total < rest+4 || total%4 != 0 {
		return 0, nil, fmt.Errorf("a block behind packet %d says that it is %d bytes long: the file is damaged", r.number, total)
	}
	switch kind {
	case ngInterface, ngPacket, ngPacketOld, ngSimple:
		body, err = readPacket(r.in, &r.buf, total-rest, r.number+1)
		if err == nil {
			body = body[:len(body)-4] // the length again
		}
		return kind, body, err
	}
	if _, err := io.CopyN(io.Discard, r.in, int64(total-rest)); err != nil {
		return 0, nil, io.ErrUnexpectedEOF
	}
	return kind, nil, nil
}

func (r *ngReader) addLink(body []byte) error {
	if len(body) < 8 || len(r.links) == maxInterfaces {
		return errors.New("an interface has no description, or there are too many: the file is damaged")
	}
	l := ngLink{link: uint32(r.order.Uint16(body)), snap: r.order.Uint32(body[4:]), units: 1_000_000}
	for o := body[8:]; len(o) >= 4; {
		code, length := r.order.Uint16(o), int(r.order.Uint16(o[2:]))
		if code == 0 || len(o) < 4+length {
			break
		}
		switch value := o[4 : 4+length]; {
		case code == 9 && length == 1: // if_tsresol
			units, err := resolution(value[0])
			if err != nil {
				return err
			}
			l.units = units
		case code == 14 && length == 8: // if_tsoffset
			l.offset = int64(r.order.Uint64(value))
		}
		o = o[min(len(o), 4+(length+3)&^3):]
	}
	r.links = append(r.links, l)
	return nil
}

// resolution is the units in a second: a negative power of 10, or of 2.
func resolution(v byte) (uint64, error) {
	if v&0x80 != 0 && v&0x7F < 64 {
		return 1 << (v & 0x7F), nil
	}
	if v >= 20 {
		return 0, fmt.Errorf("an interface has time units of 10^-%d s: the file is damaged", v)
	}
	units := uint64(1)
	for range v {
		units *= 10
	}
	return units, nil
}

func (l ngLink) time(high, low uint32) time.Time {
	t := uint64(high)<<32 | uint64(low)
	// fraction is less than units, so the quotient fits.
	hi, lo := bits.Mul64(t%l.units, 1_000_000_000)
	nanos, _ := bits.Div64(hi, lo, l.units)
	return time.Unix(int64(t/l.units)+l.offset, int64(nanos)).UTC()
}

func (r *ngReader) packet(kind uint32, body []byte) (packet, error) {
	r.number++
	if len(body) < 20 {
		return packet{}, fmt.Errorf("packet %d has no header: the file is damaged", r.number)
	}
	index := r.order.Uint32(body)
	if kind == ngPacketOld { // 16 bits, then a drop count
		index = uint32(r.order.Uint16(body))
	}
	length, whole := r.order.Uint32(body[12:]), r.order.Uint32(body[16:])
	if int64(index) >= int64(len(r.links)) || int64(length) > int64(len(body)-20) {
		return packet{}, fmt.Errorf("packet %d is of an interface that is not described, or longer than its block: the file is damaged", r.number)
	}
	l := r.links[index]
	return packet{number: r.number, time: l.time(r.order.Uint32(body[4:]), r.order.Uint32(body[8:])),
		link: l.link, data: body[20 : 20+length], whole: int(whole)}, nil
}

func (r *ngReader) simple(body []byte) (packet, error) {
	r.number++
	if len(body) < 4 || len(r.links) == 0 {
		return packet{}, fmt.Errorf("packet %d has no header or interface: the file is damaged", r.number)
	}
	whole := r.order.Uint32(body)
	length := min(whole, uint32(len(body)-4))
	if snap := r.links[0].snap; snap != 0 {
		length = min(length, snap)
	}
	return packet{number: r.number, link: r.links[0].link, data: body[4 : 4+length], whole: int(whole)}, nil
}
