package port

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

const devicePort = 24105

func newIn(s string) *bufio.Reader { return bufio.NewReader(strings.NewReader(s)) }

var (
	monitorMAC = net.HardwareAddr{0, 9, 0xFB, 1, 2, 3}
	hostMAC    = net.HardwareAddr{2, 0, 0, 1, 2, 3}
	monitorIP  = net.IP{10, 0, 42, 9}
	hostIP     = net.IP{10, 0, 42, 69}
)

// ether makes a packet with an encoder that knows nothing of the reader.
func ether(tb testing.TB, vlan bool, from, to net.IP, sport, dport uint16, payload string) []byte {
	tb.Helper()
	eth := &layers.Ethernet{SrcMAC: monitorMAC, DstMAC: hostMAC, EthernetType: layers.EthernetTypeIPv4}
	if to[len(to)-1] == 255 {
		eth.DstMAC = net.HardwareAddr{0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF}
	}
	udp := &layers.UDP{SrcPort: layers.UDPPort(sport), DstPort: layers.UDPPort(dport)}
	stack := []gopacket.SerializableLayer{eth}
	var network gopacket.SerializableLayer
	if from.To4() != nil {
		ip := &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolUDP, SrcIP: from, DstIP: to}
		udp.SetNetworkLayerForChecksum(ip)
		network = ip
	} else {
		ip := &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: layers.IPProtocolUDP, SrcIP: from, DstIP: to}
		udp.SetNetworkLayerForChecksum(ip)
		network, eth.EthernetType = ip, layers.EthernetTypeIPv6
	}
	if vlan {
		stack = append(stack, &layers.Dot1Q{VLANIdentifier: 7, Type: eth.EthernetType})
		eth.EthernetType = layers.EthernetTypeDot1Q
	}
	stack = append(stack, network, udp, gopacket.Payload(payload))
	b := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, stack...); err != nil {
		tb.Fatal(err)
	}
	p := bytes.Clone(b.Bytes())
	for len(p) < 60 { // as Ethernet pads
		p = append(p, 0xEE)
	}
	return p
}

// pcapFile writes packets a second apart in the older format.
func pcapFile(order binary.AppendByteOrder, magic, link uint32, packets ...[]byte) []byte {
	b := order.AppendUint32(nil, magic)
	b = order.AppendUint16(b, 2)
	b = order.AppendUint16(b, 4)
	b = order.AppendUint32(b, 0)
	b = order.AppendUint32(b, 0)
	b = order.AppendUint32(b, 1<<18)
	b = order.AppendUint32(b, link)
	for i, p := range packets {
		b = order.AppendUint32(b, uint32(1000+i))
		b = order.AppendUint32(b, 500)
		b = order.AppendUint32(b, uint32(len(p)))
		b = order.AppendUint32(b, uint32(len(p)))
		b = append(b, p...)
	}
	return b
}

func block(order binary.AppendByteOrder, kind uint32, body []byte) []byte {
	for len(body)%4 != 0 {
		body = append(body, 0)
	}
	b := order.AppendUint32(nil, kind)
	b = order.AppendUint32(b, uint32(len(body)+12))
	b = append(b, body...)
	return order.AppendUint32(b, uint32(len(body)+12))
}

// ngFile writes packets a second apart as pcapng, with time units of 2^-20 s.
func ngFile(order binary.AppendByteOrder, link uint16, packets ...[]byte) []byte {
	section := order.AppendUint32(nil, ngMagic)
	section = append(order.AppendUint16(section, 1), 0, 0, 255, 255, 255, 255, 255, 255, 255, 255)
	b := block(order, ngSection, section)
	face := order.AppendUint16(nil, link)
	face = order.AppendUint32(append(face, 0, 0), 0)
	face = order.AppendUint16(face, 9)
	face = order.AppendUint16(face, 1)
	face = append(face, 0x80|20, 0, 0, 0)
	b = append(b, block(order, ngInterface, face)...)
	b = append(b, block(order, 5, make([]byte, 40))...) // statistics
	for i, p := range packets {
		units := uint64(1000+i)<<20 + 1<<19
		body := order.AppendUint32(nil, 0)
		body = order.AppendUint32(body, uint32(units>>32))
		body = order.AppendUint32(body, uint32(units))
		body = order.AppendUint32(body, uint32(len(p)))
		body = order.AppendUint32(body, uint32(len(p)))
		b = append(b, block(order, ngPacket, append(body, p...))...)
	}
	return b
}

func session(tb testing.TB) [][]byte {
	all := net.IP{10, 0, 42, 255}
	return [][]byte{
		ether(tb, false, monitorIP, all, 24005, 24005, "announced"),
		ether(tb, false, net.IP{10, 0, 42, 7}, all, 24005, 24005, "of another"),
		ether(tb, false, monitorIP, all, 68, 67, "dhcp"),
		ether(tb, true, hostIP, monitorIP, 40000, devicePort, "ask"),
		ether(tb, true, monitorIP, hostIP, devicePort, 40000, "answer"),
		ether(tb, false, hostIP, monitorIP, 40000, 53, "something else"),
		ether(tb, false, net.IP{10, 0, 42, 7}, hostIP, devicePort, 40000, "second monitor"),
		ether(tb, false, net.IP{10, 0, 42, 7}, hostIP, devicePort, 40000, "second monitor"),
		ether(tb, false, monitorIP, all, 24005, 24005, "again"),
	}
}

func captures(tb testing.TB) map[string][]byte {
	s := session(tb)
	return map[string][]byte{
		"pcap, little endian, microseconds": pcapFile(binary.LittleEndian, 0xA1B2C3D4, 1, s...),
		"pcap, big endian, nanoseconds":     pcapFile(binary.BigEndian, 0xA1B23C4D, 1, s...),
		"pcapng, little endian":             ngFile(binary.LittleEndian, 1, s...),
		"pcapng, big endian":                ngFile(binary.BigEndian, 1, s...),
	}
}

func TestACaptureGivesTheDatagramsOfItsDevice(t *testing.T) {
	for name, file := range captures(t) {
		t.Run(name, func(t *testing.T) {
			got, err := readAll(bytes.NewReader(file), ReadOptions{UDPPort: devicePort})
			if !errors.Is(err, ErrTorn) || strings.Count(err.Error(), "10.0.42.7") != 1 {
				t.Error("the other device is not told of once:", err)
			}
			var text []string
			for _, r := range got {
				text = append(text, r.Offset.String()+string(r.Direction)+string(r.Data))
			}
			if want := "0s<announced 3s>ask 4s<answer 8s<again"; strings.Join(text, " ") != want {
				t.Errorf("got %v, want %s", text, want)
			}
			fraction := map[bool]time.Duration{true: 500 * time.Millisecond, false: 500 * time.Microsecond}[strings.Contains(name, "ng")]
			if strings.Contains(name, "nano") {
				fraction = 500
			}
			if want := time.Unix(1000, 0).Add(fraction).UTC(); !got[0].Time.Equal(want) {
				t.Errorf("the first is of %v, want %v", got[0].Time, want)
			}
		})
	}
}

func TestACaptureOfAnnouncementsOnlyIsRead(t *testing.T) {
	got, err := readAll(bytes.NewReader(pcapFile(binary.LittleEndian, 0xA1B2C3D4, 1, session(t)[:3]...)), ReadOptions{UDPPort: devicePort})
	if err != nil || len(got) != 1 || string(got[0].Data) != "announced" {
		t.Error(got, err)
	}
}

func TestCapturesOfOtherLinksAreRead(t *testing.T) {
	plain := ether(t, false, monitorIP, hostIP, devicePort, 4000, "v4")[14:]
	six := ether(t, false, net.ParseIP("fd00::9"), net.ParseIP("fd00::69"), devicePort, 4000, "v6")
	options := bytes.Clone(six[14:])
	options[6] = 0 // hop-by-hop options of eight bytes before the UDP header
	binary.BigEndian.PutUint16(options[4:], binary.BigEndian.Uint16(options[4:])+8)
	options = append(options[:40:40], append([]byte{17, 0, 1, 4, 0, 0, 0, 0}, options[40:]...)...)
	for _, c := range []struct {
		name string
		link uint32
		p    []byte
		want string
	}{
		{"raw IPv4", 101, plain, "v4"},
		{"raw IPv6 with options", 101, options, "v6"},
		{"Ethernet with IPv6", 1, six, "v6"},
		{"loopback", 0, append([]byte{2, 0, 0, 0}, plain...), "v4"},
		{"Linux cooked", 113, append(make([]byte, 16), plain...), "v4"},
		{"Linux cooked 2", 276, append(make([]byte, 20), plain...), "v4"},
	} {
		got, err := readAll(bytes.NewReader(pcapFile(binary.BigEndian, 0xA1B2C3D4, c.link, c.p)), ReadOptions{UDPPort: devicePort})
		if err != nil || len(got) != 1 || string(got[0].Data) != c.want {
			t.Errorf("%s: %v, %v", c.name, got, err)
		}
	}
}

func TestADamagedCaptureIsSaid(t *testing.T) {
	good := session(t)[4]
	fragment := bytes.Clone(good)
	fragment[14+4+6] |= 0x20
	short := bytes.Clone(good)[:14+4+20+8+2]
	huge := pcapFile(binary.LittleEndian, 0xA1B2C3D4, 1, good)
	binary.LittleEndian.PutUint32(huge[24+8:], 1<<31)
	hugeNG := ngFile(binary.LittleEndian, 1, good)
	binary.LittleEndian.PutUint32(hugeNG[28+28+52+4:], 1<<31)
	whole := pcapFile(binary.LittleEndian, 0xA1B2C3D4, 1, good, good)
	for _, c := range []struct {
		name string
		file []byte
		n    int
		torn bool
		want string
	}{
		{"a fragment", pcapFile(binary.LittleEndian, 0xA1B2C3D4, 1, fragment, good), 1, true, "packet 1 is a fragment"},
		{"a packet cut by the snap length", pcapFile(binary.LittleEndian, 0xA1B2C3D4, 1, short, good), 1, true, "packet 1 was not captured whole"},
		{"a file cut off", whole[:len(whole)-1], 1, true, "ends in the middle of a packet"},
		{"an immense packet", huge, 0, false, "packet 1 says that it is 2147483648 bytes long"},
		{"an immense block", hugeNG, 0, false, "2147483640 bytes long"},
		{"no capture", []byte("\xD4\xC3\xB2\xA1 nor this"), 0, false, "no pcap or pcapng file"},
		{"an empty file", nil, 0, false, "no pcap or pcapng file"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := readAll(bytes.NewReader(c.file), ReadOptions{Format: FormatPcap, UDPPort: devicePort})
			if len(got) != c.n || err == nil || errors.Is(err, ErrTorn) != c.torn || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%d records, %v", len(got), err)
			}
		})
	}
	if _, err := readAll(bytes.NewReader(whole), ReadOptions{}); err == nil || !strings.Contains(err.Error(), "needs the UDP port") {
		t.Error(err)
	}
}

// The recorded session is kept as a capture and as text: both give the same.
func TestTheRecordedMonitorSessionIsTheSameInBothFormats(t *testing.T) {
	shared := os.Getenv("GATEWAY_SHARED")
	if shared == "" {
		t.Skip("GATEWAY_SHARED names no folder with recorded sessions")
	}
	read := func(name string) []Record {
		f, err := os.Open(filepath.Join(shared, "reference/protocols/captures/philips/m8000-or-session", name))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		records, err := readAll(f, ReadOptions{UDPPort: devicePort})
		if err != nil {
			t.Fatal(err)
		}
		for i := range records {
			records[i].Time, records[i].Offset = time.Time{}, records[i].Offset.Round(10*time.Millisecond)
		}
		return records
	}
	text, capture := read("session.txt"), read("intellivue_enumeration.pcapng")
	if len(text) < 160 || len(text) != len(capture) {
		t.Fatalf("%d records in text, %d in the capture", len(text), len(capture))
	}
	for i := range text {
		if d := text[i].Offset - capture[i].Offset; d > 10*time.Millisecond || d < -10*time.Millisecond {
			t.Errorf("record %d: offsets %v and %v", i, text[i].Offset, capture[i].Offset)
		}
		text[i].Offset, capture[i].Offset = 0, 0
		if !reflect.DeepEqual(text[i], capture[i]) {
			t.Fatalf("record %d: %v and %v", i, text[i], capture[i])
		}
	}
}
