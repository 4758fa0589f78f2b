package tunnel

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
)

// A MAC is the hardware address of a network card.
type MAC [6]byte

// ParseMAC reads the usual forms, such as 00:00:5e:00:53:01.
func ParseMAC(s string) (MAC, error) {
	hw, err := net.ParseMAC(s)
	if err != nil || len(hw) != len(MAC{}) {
		return MAC{}, fmt.Errorf("%q is no MAC address; write it as 00:00:5e:00:53:01", s)
	}
	return MAC(hw), nil
}

func (m MAC) String() string { return net.HardwareAddr(m[:]).String() }

// errNoNeighbour is for a device behind a router, or one with IPv6: the
// kernel's table in /proc has IPv4 only.
var errNoNeighbour = errors.New("its MAC address is not known: it is behind a router, or speaks IPv6")

// neighbourTable is where the kernel shows which MAC address has an IP address.
const neighbourTable = "/proc/net/arp"

// ReadNeighbours looks an address up in the kernel's table of neighbours. Who
// has just connected is in it, as the kernel had to ask before it could answer.
func ReadNeighbours(ip netip.Addr) (MAC, error) {
	table, err := os.ReadFile(neighbourTable)
	if err != nil {
		return MAC{}, fmt.Errorf("the table of neighbours cannot be read: %w", err)
	}
	return neighbour(table, ip)
}

// neighbour finds the address in a text as proc(5) describes it: a head, then
// lines of IP address, hardware type, flags, MAC address, mask and device.
func neighbour(table []byte, ip netip.Addr) (MAC, error) {
	const complete = 0x2 // ATF_COM of if_arp.h: the MAC address is valid
	var found MAC
	for lines := bufio.NewScanner(bytes.NewReader(table)); lines.Scan(); {
		f := strings.Fields(lines.Text())
		if len(f) < 6 {
			continue
		}
		at, err := netip.ParseAddr(f[0])
		if err != nil || at != ip.Unmap() {
			continue
		}
		flags, err := strconv.ParseUint(f[2], 0, 16)
		if err != nil || flags&complete == 0 {
			continue
		}
		mac, err := ParseMAC(f[3])
		if err != nil {
			continue
		}
		if found != (MAC{}) && found != mac {
			// On two interfaces: which of them the device is at cannot be said.
			return MAC{}, fmt.Errorf("its address belongs to %v and to %v; give one of them another address", found, mac)
		}
		found = mac
	}
	if found == (MAC{}) {
		return MAC{}, errNoNeighbour
	}
	return found, nil
}
