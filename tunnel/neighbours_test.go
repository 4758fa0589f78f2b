package tunnel

import (
	"net/netip"
	"os"
	"strings"
	"testing"
)

const arp = `IP address       HW type     Flags       HW address            Mask     Device
192.0.2.10       0x1         0x2         00:00:5e:00:53:0a     *        eth0
192.0.2.11       0x1         0x0         00:00:5e:00:53:0b     *        eth0
192.0.2.12       0x1         0x6         00:00:5e:00:53:0c     *        eth0
192.0.2.13       0x1         0x2         00:00:00:00:00:00     *        eth0
192.0.2.14       0x1         0x2         00:00:5e:00:53:0d     *        eth0
192.0.2.14       0x1         0x2         00:00:5e:00:53:0e     *        eth1
192.0.2.15       0x1         0x0         00:00:00:00:00:00     *        eth0
192.0.2.15       0x1         0x2         00:00:5e:00:53:0f     *        eth1
192.0.2.16       0x1         0x2         nonsense              *        eth0
192.0.2.17       0x1         0x2
`

func TestTheTableOfNeighbours(t *testing.T) {
	for _, test := range []struct{ ip, mac, word string }{
		{"192.0.2.10", "00:00:5e:00:53:0a", ""},
		{"::ffff:192.0.2.10", "00:00:5e:00:53:0a", ""},
		{"192.0.2.11", "", "not known"}, // asked for, and not answered
		{"192.0.2.12", "00:00:5e:00:53:0c", ""},
		{"192.0.2.13", "", "not known"},
		{"192.0.2.14", "", "belongs to"},
		{"192.0.2.15", "00:00:5e:00:53:0f", ""},
		{"192.0.2.16", "", "not known"},
		{"192.0.2.17", "", "not known"},
		{"192.0.2.99", "", "not known"},
		{"2001:db8::1", "", "not known"},
	} {
		mac, err := neighbour([]byte(arp), netip.MustParseAddr(test.ip))
		if test.word != "" {
			if err == nil || !strings.Contains(err.Error(), test.word) {
				t.Errorf("%s: %v, %v", test.ip, mac, err)
			}
			continue
		}
		if err != nil || mac.String() != test.mac {
			t.Errorf("%s: %v, %v", test.ip, mac, err)
		}
	}
}

func TestTheKernelsOwnTableIsRead(t *testing.T) {
	table, err := os.ReadFile(neighbourTable)
	must(t, err)
	for i, line := range strings.Split(strings.TrimSpace(string(table)), "\n") {
		f := strings.Fields(line)
		if i == 0 || f[2] == "0x0" {
			continue
		}
		if mac, err := ReadNeighbours(netip.MustParseAddr(f[0])); err != nil || mac.String() != f[3] {
			t.Errorf("%q: %v, %v", line, mac, err)
		}
	}
	if _, err := ReadNeighbours(netip.MustParseAddr("192.0.2.250")); err == nil {
		t.Error("it knows an address that is for documentation only")
	}
}

func TestParseMAC(t *testing.T) {
	for text, good := range map[string]bool{"00:00:5e:00:53:01": true, "00-00-5E-00-53-01": true, "0000.5e00.5301": true, "": false, "00:00:5e:00:53": false,
		"02:00:5e:10:00:00:00:01": false, "x": false} {
		if mac, err := ParseMAC(text); (err == nil) != good || good && mac != (MAC{0, 0, 0x5e, 0, 0x53, 1}) {
			t.Errorf("%q: %v, %v", text, mac, err)
		}
	}
}

func FuzzNeighbour(f *testing.F) {
	f.Add(arp, "192.0.2.10")
	f.Add("", "::1")
	f.Add("192.0.2.1 0x1 0x2 00:00:5e:00:53:01 * eth0", "192.0.2.1")
	f.Fuzz(func(t *testing.T, table, ip string) {
		at, err := netip.ParseAddr(ip)
		if err != nil {
			return
		}
		mac, err := neighbour([]byte(table), at)
		if (err == nil) == (mac == MAC{}) {
			t.Errorf("%v, %v", mac, err)
		}
		if err == nil && !strings.Contains(strings.ToLower(table), ":") && !strings.ContainsAny(table, "-.") {
			t.Errorf("%v is not in the table", mac)
		}
	})
}
