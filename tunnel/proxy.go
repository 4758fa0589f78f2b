package tunnel

import (
	"encoding/binary"
	"net/netip"
)

// Version 2 of the PROXY protocol, as the specification of HAProxy has it
// (proxy-protocol.txt, section 2.2).
const (
	proxySignature = "\r\n\r\n\x00\r\nQUIT\n"
	proxyLocal     = 0x20 // version 2, our own connection: no address
	proxyProxied   = 0x21 // version 2, on behalf of another
	proxyTCP4      = 0x11
	proxyTCP6      = 0x21
)

// proxyHeader tells the platform for whom a connection is: from is the device,
// to is where it connected. Both are of the same family.
func proxyHeader(from, to netip.AddrPort) []byte {
	a, b := from.Addr().Unmap().WithZone(""), to.Addr().Unmap().WithZone("")
	family := byte(proxyTCP4)
	if a.Is6() || b.Is6() {
		family = proxyTCP6
		a, b = netip.AddrFrom16(a.As16()), netip.AddrFrom16(b.As16())
	}
	body := append(a.AsSlice(), b.AsSlice()...)
	body = binary.BigEndian.AppendUint16(body, from.Port())
	body = binary.BigEndian.AppendUint16(body, to.Port())
	head := append([]byte(proxySignature), proxyProxied, family)
	return append(binary.BigEndian.AppendUint16(head, uint16(len(body))), body...)
}

// proxyOwn is the header of the gate's own handshakes.
func proxyOwn() []byte { return append([]byte(proxySignature), proxyLocal, 0, 0, 0) }
