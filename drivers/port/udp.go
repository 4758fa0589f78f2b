package port

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"
)

// A flow picks the datagrams of one device out of a capture.
type flow struct {
	port   uint16
	device netip.Addr // zero until it is known
	yield  func(Record, error) bool

	first   time.Time
	began   bool
	waiting []announcement // sent to a group before the device was known
	others  map[netip.Addr]bool
}

type announcement struct {
	from netip.Addr
	time time.Time
	data []byte
}

// maxWaiting bounds the datagrams that wait; a capture of a busy network has many.
const maxWaiting = 256

// add takes a packet. It is false when no more is wanted.
func (f *flow) add(p packet) bool {
	d, err := datagramOf(p)
	if err != nil {
		// Only what is of our port is missed.
		return d.source.Port() != f.port && d.destination.Port() != f.port || f.yield(Record{}, err)
	}
	from, to := d.source.Port() == f.port, d.destination.Port() == f.port && !d.group
	if from && to { // both use it: by the address
		from = f.device != d.destination.Addr()
		to = !from
	}
	switch {
	case from && f.is(d.source.Addr()):
		return f.known() && f.pass(p.time, FromDevice, d.data)
	case to && f.is(d.destination.Addr()):
		return f.known() && f.pass(p.time, ToDevice, d.data)
	case from:
		return f.other(d.source.Addr())
	case to:
		return f.other(d.destination.Addr())
	case d.group && d.announces():
		return f.announce(d, p.time)
	}
	return true
}

// is reports whether a is the device; the first that is asked for is.
func (f *flow) is(a netip.Addr) bool {
	if !f.device.IsValid() {
		f.device = a
	}
	return a == f.device
}

func (f *flow) announce(d datagram, t time.Time) bool {
	switch {
	case d.source.Addr() == f.device:
		return f.known() && f.pass(t, FromDevice, d.data)
	case f.device.IsValid():
		return true
	}
	if len(f.waiting) == maxWaiting {
		f.waiting = f.waiting[1:]
	}
	f.waiting = append(f.waiting, announcement{d.source.Addr(), t, bytes.Clone(d.data)})
	return true
}

// known passes on what the device sent to groups before it was known.
func (f *flow) known() bool {
	waiting := f.waiting
	f.waiting = nil
	for _, a := range waiting {
		if a.from == f.device && !f.pass(a.time, FromDevice, a.data) {
			return false
		}
	}
	return true
}

// end passes on what waits where nothing else showed which is the device.
func (f *flow) end() bool {
	if len(f.waiting) > 0 && !f.device.IsValid() {
		f.device = f.waiting[0].from
	}
	return f.known()
}

func (f *flow) pass(t time.Time, d Direction, data []byte) bool {
	if !f.began {
		f.began, f.first = true, t
	}
	return f.yield(Record{Time: t, Offset: t.Sub(f.first), Direction: d, Data: data}, nil)
}

// other tells once that there is another device.
func (f *flow) other(a netip.Addr) bool {
	if f.others[a] || len(f.others) == maxWaiting {
		return true
	}
	if f.others == nil {
		f.others = make(map[netip.Addr]bool)
	}
	f.others[a] = true
	return f.yield(Record{}, fmt.Errorf("%w: device %s is left out, only %s is read; cut one device out of the capture to read it", ErrTorn, a, f.device))
}

type datagram struct {
	source, destination netip.AddrPort
	group               bool // to many: broadcast or multicast
	data                []byte
}

// announces reports whether a datagram to a group may be of a device protocol.
// Well-known ports, multicast DNS and service discovery are not.
func (d datagram) announces() bool {
	switch p := d.destination.Port(); p {
	case 1900, 5353, 5355:
		return false
	default:
		return p >= 1024
	}
}

// Numbers of protocols (IANA).
const (
	etherIPv4 = 0x0800
	etherIPv6 = 0x86DD
	protoUDP  = 17
)

// datagramOf finds the UDP datagram in a packet. A packet that is something
// else gives the zero datagram; one that is not whole gives an error that is
// ErrTorn, with the ports where they are known.
func datagramOf(p packet) (datagram, error) {
	ip, group, ok := network(p.link, p.data)
	if !ok || len(ip) == 0 {
		return datagram{}, nil
	}
	var d datagram
	var udp []byte
	var fragment bool
	var from, to netip.Addr
	switch ip[0] >> 4 {
	case 4:
		from, to, udp, fragment = ipv4(ip)
		group = group || ip4Group(to)
	case 6:
		from, to, udp, fragment = ipv6(ip)
	}
	if len(udp) < 8 {
		return datagram{}, nil
	}
	d.source = netip.AddrPortFrom(from, binary.BigEndian.Uint16(udp))
	d.destination = netip.AddrPortFrom(to, binary.BigEndian.Uint16(udp[2:]))
	d.group = group || to.IsMulticast()
	length := int(binary.BigEndian.Uint16(udp[4:]))
	switch {
	case fragment:
		return d, fmt.Errorf("%w: packet %d is a fragment of a datagram", ErrTorn, p.number)
	case length < 8 || length > len(udp):
		return d, fmt.Errorf("%w: packet %d was not captured whole (%d of %d bytes): capture with tcpdump -s 0", ErrTorn, p.number, len(p.data), p.whole)
	}
	d.data = udp[8:length] // what follows is padding of the frame
	return d, nil
}

func ip4Group(a netip.Addr) bool { return a == netip.AddrFrom4([4]byte{255, 255, 255, 255}) }

// network takes off the link layer (tcpdump.org/linktypes.html).
func network(link uint32, b []byte) (ip []byte, group, ok bool) {
	take := func(n int) ([]byte, bool) {
		if len(b) < n {
			return nil, false
		}
		return b[n:], true
	}
	switch link {
	case 1:
		return ethernet(b)
	case 0, 108: // BSD loopback: an address family
		ip, ok = take(4)
	case 12, 14, 101: // IP alone
		ip, ok = take(0)
	case 113: // Linux cooked
		ip, ok = take(16)
		group = ok && (b[1] == 1 || b[1] == 2)
	case 276: // Linux cooked, version 2
		ip, ok = take(20)
		group = ok && (b[10] == 1 || b[10] == 2)
	}
	return ip, group, ok
}

func ethernet(b []byte) (ip []byte, group, ok bool) {
	if len(b) < 14 {
		return nil, false, false
	}
	group = b[0]&1 != 0
	b = b[12:]
	for len(b) >= 2 {
		switch binary.BigEndian.Uint16(b) {
		case 0x8100, 0x88A8, 0x9100: // VLAN tag
			if len(b) < 4 {
				return nil, false, false
			}
			b = b[4:]
		case etherIPv4, etherIPv6:
			return b[2:], group, true
		default:
			return nil, false, false
		}
	}
	return nil, false, false
}

// ipv4 gives the UDP part (RFC 791), nil if there is none.
func ipv4(b []byte) (from, to netip.Addr, udp []byte, fragment bool) {
	if len(b) < 20 {
		return
	}
	header := int(b[0]&15) * 4
	if header < 20 || header > len(b) || b[9] != protoUDP {
		return
	}
	from, to = netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
	if flags := binary.BigEndian.Uint16(b[6:]); flags&0x3FFF != 0 { // more fragments, or not the first
		if flags&0x1FFF != 0 {
			return // it has no ports
		}
		fragment = true
	}
	return from, to, b[header:], fragment
}

// ipv6 gives the UDP part (RFC 8200), nil if there is none.
func ipv6(b []byte) (from, to netip.Addr, udp []byte, fragment bool) {
	if len(b) < 40 {
		return
	}
	from, to = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
	next := b[6]
	b = b[40:]
	for {
		switch next {
		case protoUDP:
			return from, to, b, fragment
		case 0, 43, 60: // hop by hop, routing, destination options
			if len(b) < 2 || len(b) < (int(b[1])+1)*8 {
				return
			}
			next, b = b[0], b[(int(b[1])+1)*8:]
		case 44: // fragment
			if len(b) < 8 || binary.BigEndian.Uint16(b[2:])&^7 != 0 {
				return
			}
			fragment = fragment || b[3]&1 != 0
			next, b = b[0], b[8:]
		default:
			return
		}
	}
}
