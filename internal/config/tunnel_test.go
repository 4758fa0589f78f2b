package config

import (
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

const tunnelSection = good + `
[[tunnel]]
name = "icu"
networks = ["10.20.0.0/24", "::ffff:192.0.2.7"]

[[tunnel.platform]]
name = "hospital"
address = "platform.example"
trust = "roots.pem"
`

func TestATunnelHasItsDefaultsAndTakesEveryKey(t *testing.T) {
	c, err := Parse("/etc/g/gatewayd.toml", []byte(tunnelSection), options(t))
	if err != nil {
		t.Fatal(err)
	}
	want := []Tunnel{{Name: "icu", Listen: ":2576", Networks: []string{"10.20.0.0/24", "192.0.2.7/32"}, MACs: []string{}, MinTLS: "1.2", AllowTLS13: true,
		MaxSessions: 512, MaxPerDevice: 8, MaxRate: 5, IdleTimeout: time.Hour,
		Platforms: []TunnelPlatform{{Name: "hospital", Address: "platform.example:2575", Trust: "/etc/g/roots.pem", ServerNames: []string{}, Recheck: 5 * time.Minute, OnRevoked: "cut"}}}}
	if !reflect.DeepEqual(c.Tunnels, want) {
		t.Errorf("got  %+v\nwant %+v", c.Tunnels, want)
	}
	text := strings.Replace(tunnelSection, "name = \"icu\"", "name = \"icu\"\nlisten = \"10.0.0.1:4000\"\nmacs = [\"00-00-5E-00-53-01\"]\nmin_tls = \"1.3\"\nallow_tls13 = true\nallow_resumption = true\n"+
		"max_sessions = 10\nmax_per_device = 1\nmax_rate = 1\nidle_timeout = \"10m\"", 1) +
		"connect = \"192.0.2.1\"\nserver_names = [\"hl7.example\"]\ndefault = true\ntwo_certificates = true\nstaple_max_age = \"24h\"\nverdict_age = \"1m\"\nrecheck = \"1m\"\non_revoked = \"keep\"\nproxy_protocol = true\n"
	if c, err = Parse("/etc/g/gatewayd.toml", []byte(text), options(t)); err != nil {
		t.Fatal(err)
	}
	want = []Tunnel{{Name: "icu", Listen: "10.0.0.1:4000", Networks: want[0].Networks, MACs: []string{"00:00:5e:00:53:01"}, MinTLS: "1.3", AllowTLS13: true, AllowResumption: true,
		MaxSessions: 10, MaxPerDevice: 1, MaxRate: 1, IdleTimeout: 10 * time.Minute,
		Platforms: []TunnelPlatform{{Name: "hospital", Address: "platform.example:2575", Connect: "192.0.2.1:2575", Trust: "/etc/g/roots.pem", ServerNames: []string{"hl7.example"}, Default: true,
			TwoCertificates: true, StapleMaxAge: 24 * time.Hour, VerdictAge: time.Minute, Recheck: time.Minute, OnRevoked: "keep", ProxyProtocol: true}}}}
	if !reflect.DeepEqual(c.Tunnels, want) {
		t.Errorf("got  %+v\nwant %+v", c.Tunnels, want)
	}
}

func TestFaultsOfTunnels(t *testing.T) {
	second := "\n[[tunnel]]\nname = \"two\"\nlisten = \":3000\"\nnetworks = [\"10.0.0.0/8\"]\n[[tunnel.platform]]\nname = \"other\"\naddress = \"other.example\"\ntrust = \"roots.pem\"\n"
	for name, row := range map[string]struct{ old, new, want string }{
		"a section once":                     {"[[tunnel]]", "[tunnel]", "tunnel: is a section that may be there several times; write [[tunnel]]"},
		"no name":                            {"name = \"icu\"\n", "", "tunnel.name: is missing"},
		"nobody may connect":                 {"networks = [\"10.20.0.0/24\", \"::ffff:192.0.2.7\"]", "", "tunnel.networks: is empty, and so is macs"},
		"a network that is none":             {"10.20.0.0/24", "10.20.0.0/33", "tunnel.networks: entry 1 \"10.20.0.0/33\" is no network"},
		"bits behind the length":             {"10.20.0.0/24", "10.20.0.1/24", "tunnel.networks: entry 1 \"10.20.0.1/24\" has bits behind its length; write 10.20.0.0/24"},
		"a card that is none":                {"name = \"icu\"", "name = \"icu\"\nmacs = [\"x\"]", "tunnel.macs: entry 1 \"x\" is no MAC address"},
		"no platform":                        {"[[tunnel.platform]]", "[[other]]", "tunnel.platform: is missing, so that the tunnel leads nowhere"},
		"TLS 1.1":                            {"name = \"icu\"", "name = \"icu\"\nmin_tls = \"1.1\"", "tunnel.min_tls: \"1.1\" is none of the choices"},
		"a misspelt key":                     {"address = \"platform.example\"\ntrust", "adress = \"platform.example\"\ntrust", "tunnel.platform.adress: there is no such key; did you mean address?"},
		"a trust file that is none":          {"trust = \"roots.pem\"\n\x00", "trust = \"leaf.pem\"", "tunnel.platform.trust: /etc/g/leaf.pem certificate 1 in it"},
		"an empty name of a trust file":      {"trust = \"roots.pem\"\n\x00", "trust = \"\"", "tunnel.platform.trust: is empty; write a file name"},
		"a server name that is an address":   {"trust = \"roots.pem\"\n\x00", "trust = \"roots.pem\"\nserver_names = [\"10.0.0.1\"]", "tunnel.platform.server_names: entry 1 \"10.0.0.1\" is no host name"},
		"an unknown policy":                  {"trust = \"roots.pem\"\n\x00", "trust = \"roots.pem\"\non_revoked = \"ignore\"", "tunnel.platform.on_revoked: \"ignore\" is none of the choices"},
		"a tunnel twice":                     {"\x00", strings.Replace(second, "\"two\"", "\"icu\"", 1), "tunnel.name: \"icu\" is there already"},
		"an address twice":                   {"\x00", strings.Replace(second, ":3000", ":2576", 1), "tunnel.listen: \":2576\" is an address where the tunnel \"icu\" listens already, line 21; write another port"},
		"a platform twice":                   {"\x00", strings.Replace(second, "\"other\"", "\"hospital\"", 1), "tunnel.platform.name: \"hospital\" is there already"},
		"a name for two platforms":           {"\x00", "[[tunnel.platform]]\nname = \"b\"\naddress = \"platform.example:99\"\ntrust = \"roots.pem\"\n", ":31:11: tunnel.platform.address: who asks for \"platform.example\" is led to the platform of line 27; leave the name to one"},
		"a platform that nobody can ask for": {"address = \"platform.example\"\ntrust", "address = \"192.0.2.1\"\ntrust", "tunnel.platform.default: is false, address has no name in it and server_names is empty, so that no device could ask for the platform; write default = true"},
	} {
		t.Run(name, func(t *testing.T) {
			// \x00 is the end of the text.
			text := strings.ReplaceAll(strings.Replace(tunnelSection+"\x00", row.old, row.new, 1), "\x00", "")
			_, err := Parse("/etc/g/gatewayd.toml", []byte(text), options(t))
			if err == nil || !strings.Contains(err.Error(), row.want) {
				t.Fatalf("got\n%v\nwant %s", err, row.want)
			}
			for _, p := range err.(Problems) {
				if p.Line == 0 || p.Column == 0 || p.Next == "" {
					t.Errorf("%v: place or next step is missing", p)
				}
			}
		})
	}
}

// Each of these is made of keys that are right by themselves. The last two
// columns are what mends it.
func TestATunnelThatNobodyCanUseOrThatIsInItsOwnWayIsRefused(t *testing.T) {
	const networks = `networks = ["10.20.0.0/24", "::ffff:192.0.2.7"]`
	second := func(listen, network string) string {
		return fmt.Sprintf("\n[[tunnel]]\nname = \"two\"\nlisten = %q\nnetworks = [%q]\n[[tunnel.platform]]\nname = \"other\"\naddress = \"other.example\"\ntrust = \"roots.pem\"\n", listen, network)
	}
	const beside = "[[tunnel.platform]]\nname = \"b\"\ntrust = \"roots.pem\"\n"
	southbound := strings.TrimPrefix(south, good)
	for name, row := range map[string]struct{ old, new, more, want, wrong, right string }{
		"no version of TLS is left":                {networks, "min_tls = \"1.3\"\nallow_tls13 = false\n" + networks, "", `:24:15: tunnel.allow_tls13: is false, and min_tls is "1.3", so that no session could pass; take one of them out`, "1.3", "1.2"},
		"cards at an IPv6 address":                 {networks, "listen = \"[fd00::1]:2576\"\nmacs = [\"00:00:5e:00:53:01\"]", "", `:24:1: tunnel.macs: are known of IPv4 devices only, and listen is an IPv6 address, so that nobody could connect; write networks`, "[fd00::1]:2576", "10.20.0.1:2576"},
		"cards in IPv6 networks":                   {networks, "networks = [\"fd00::/64\"]\nmacs = [\"00:00:5e:00:53:01\"]", "", `:24:1: tunnel.macs: are known of IPv4 devices only, and networks has none of IPv4, so that nobody could connect; take macs out`, `"fd00::/64"`, `"fd00::/64", "10.20.0.0/24"`},
		"IPv6 networks at an IPv4 address":         {networks, "listen = \"10.20.0.1:2576\"\nnetworks = [\"fd00::/64\"]", "", `:24:1: tunnel.networks: has none of IPv4, and listen is an IPv4 address, so that nobody could connect; write networks of IPv4`, "10.20.0.1", "0.0.0.0"},
		"IPv6 networks at localhost":               {networks, "listen = \"localhost:2576\"\nnetworks = [\"fd00::/64\"]", "", `:24:1: tunnel.networks: has none of IPv4, and listen is an IPv4 address`, "localhost", "[::1]"},
		"IPv4 networks at an IPv6 address":         {networks, "listen = \"[fd00::1]:2576\"\n" + networks, "", `:24:1: tunnel.networks: has none of IPv6, and listen is an IPv6 address, so that nobody could connect; write networks of IPv6`, "[fd00::1]", "[::]"},
		"an IPv4 network that no address is in":    {`"10.20.0.0/24"`, `"::ffff:10.20.0.0/120"`, "", `:23:1: tunnel.networks: entry 1 "::ffff:10.20.0.0/120" is a network of IPv4 in the form of IPv6; write it as`, "::ffff:10.20.0.0/120", "10.20.0.0/24"},
		"an address of all that are taken":         {"", "", second("127.0.0.1:2576", "127.0.0.0/8"), `:32:10: tunnel.listen: "127.0.0.1:2576" is an address where the tunnel "icu" listens already, line 21; write another port, or`, ":2576\"\nnet", ":2577\"\nnet"},
		"all addresses twice":                      {"", "", second("0.0.0.0:2576", "10.0.0.0/8"), `:32:10: tunnel.listen: "0.0.0.0:2576" is an address where the tunnel "icu" listens already, line 21`, ":2576\"\nnet", ":2577\"\nnet"},
		"all addresses, of which one is taken":     {networks, "listen = \"127.0.0.1:2576\"\n" + networks, second(":2576", "10.0.0.0/8"), `:33:10: tunnel.listen: ":2576" is an address where the tunnel "icu" listens already, line 23`, `":2576"`, `"10.0.0.1:2576"`},
		"one address in two spellings":             {networks, "listen = \"[fd00::1]:2576\"\nnetworks = [\"fd00::/64\"]", second("[FD00:0::1]:2576", "fd00::/64"), `:33:10: tunnel.listen: "[FD00:0::1]:2576" is an address where the tunnel "icu" listens already, line 23`, "FD00:0::1", "fd00::2"},
		"an address of the server for devices":     {"", "", second("10.0.0.1:2575", "10.0.0.0/8") + southbound, `:32:10: tunnel.listen: "10.0.0.1:2575" is an address where [southbound] listens already, line 39`, "10.0.0.1:2575", "10.0.0.1:2577"},
		"a way back to all addresses":              {"", "", "connect = \"127.0.0.1:2576\"\n", `:29:11: tunnel.platform.connect: "127.0.0.1:2576" is this gateway itself: the tunnel "icu" listens there, line 21; write where the platform is`, "127.0.0.1:2576", "127.0.0.1:2577"},
		"a way back by localhost":                  {`"platform.example"`, `"localhost:2576"`, "", `:27:11: tunnel.platform.address: "localhost:2576" is this gateway itself`, "localhost", "platform.example"},
		"a way back by a network card":             {"", "", "connect = \"192.0.2.99:2576\"\n", `:29:11: tunnel.platform.connect: "192.0.2.99:2576" is this gateway itself`, "192.0.2.99", "192.0.2.98"},
		"a way to another tunnel":                  {"", "", "connect = \"10.0.0.1:3000\"\n" + second("10.0.0.1:3000", "10.0.0.0/8"), `:29:11: tunnel.platform.connect: "10.0.0.1:3000" is this gateway itself: the tunnel "two" listens there, line 33`, "connect = \"10.0.0.1", "connect = \"10.0.0.2"},
		"a way to the server for devices":          {"", "", "connect = \"[::1]:2575\"\n" + southbound, `:29:11: tunnel.platform.connect: "[::1]:2575" is this gateway itself: [southbound] listens there, line 31`, "[::1]", "[fd00::1]"},
		"a destination that is its own server":     {`"platform.test:2575"`, `"127.0.0.1:2575"`, southbound, `:13:11: destination.address: "127.0.0.1:2575" is this gateway itself: [southbound] listens there, line 30`, "127.0.0.1:2575", "127.0.0.1:3575"},
		"two platforms for devices without a name": {"", "", "default = true\n" + beside + "address = \"b.example\"\ndefault = true\n", `:34:11: tunnel.platform.default: is true in line 29 as well, and who asks for no name can be led to one platform only; leave it to one of them`, "default = true\n[", "default = false\n["},
		"a server name for two platforms":          {"", "", "server_names = [\"hl7.example\"]\n" + beside + "address = \"b.example\"\nserver_names = [\"HL7.example\"]\n", `:34:1: tunnel.platform.server_names: who asks for "hl7.example" is led to the platform of line 29; leave the name to one of them`, "HL7", "hl8"},
		"a server name that is another's host":     {"", "", "server_names = [\"b.example\"]\n" + beside + "address = \"B.example\"\n", `:33:11: tunnel.platform.address: who asks for "b.example" is led to the platform of line 29`, "B.example", "c.example"},
	} {
		t.Run(name, func(t *testing.T) {
			o := options(t)
			o.Addresses = []netip.Addr{netip.MustParseAddr("192.0.2.99")}
			text := strings.Replace(tunnelSection, row.old, row.new, 1) + row.more
			_, err := Parse("/etc/g/gatewayd.toml", []byte(text), o)
			problems, _ := errors.AsType[Problems](err)
			faults := slices.DeleteFunc(problems, func(p Problem) bool { return p.Warning })
			if len(faults) != 1 || !strings.Contains(faults[0].String(), row.want) || faults[0].Next == "" {
				t.Errorf("got\n%v\nwant %s alone", faults, row.want)
			}
			if text = strings.Replace(text, row.wrong, row.right, 1); row.wrong == "" {
				t.Fatal("nothing mends it")
			}
			if _, err := Parse("/etc/g/gatewayd.toml", []byte(text), o); err != nil {
				t.Errorf("with %s in place of %s:\n%v", row.right, row.wrong, err)
			}
		})
	}
}

func TestTooFewDescriptorsForAllConnectionsAreAWarning(t *testing.T) {
	all := tunnelSection + "\n[[tunnel]]\nname = \"two\"\nlisten = \":3000\"\nmax_sessions = 10\nnetworks = [\"10.0.0.0/8\"]\n[[tunnel.platform]]\nname = \"other\"\naddress = \"other.example\"\ntrust = \"roots.pem\"\n" +
		strings.TrimPrefix(south, good)
	for name, row := range map[string]struct {
		text string
		need int
		want string
	}{
		"ports and destinations":                       {good, 64 + 2 + 2, ":1:1: warning: port: all connections that are allowed take 68 descriptors together, and a process may have only 67 here; write LimitNOFILE=68 into the unit (systemctl edit gatewayd), or have fewer ports"},
		"with the server for devices":                  {south, 68 + 256, "warning: southbound.max_connections: all connections that are allowed take 324 descriptors together, and a process may have only 323 here; write LimitNOFILE=324 into the unit (systemctl edit gatewayd), or lower max_connections"},
		"with a tunnel":                                {tunnelSection, 68 + 6*512 + 2, ":21:3: warning: tunnel.max_sessions: all connections that are allowed take 3142 descriptors together"},
		"with two tunnels, and the server for devices": {all, 68 + 256 + 6*512 + 2 + 6*10 + 2, "warning: tunnel.max_sessions: all connections that are allowed take 3460 descriptors together"},
	} {
		t.Run(name, func(t *testing.T) {
			for _, allowed := range []int{0, row.need, row.need - 1} {
				o := options(t)
				o.MaxDescriptors = allowed
				c, err := Parse("/etc/g/gatewayd.toml", []byte(row.text), o)
				if err != nil {
					t.Fatal(err)
				}
				for i := range c.Tunnels {
					if t1 := &c.Tunnels[i]; allowed != row.need-1 && c.Sessions(t1) != int(t1.MaxSessions) {
						t.Errorf("with %d descriptors %d of %d sessions", allowed, c.Sessions(t1), t1.MaxSessions)
					}
				}
				if c.Descriptors() != row.need || c.MaxDescriptors != allowed {
					t.Errorf("%d of %d descriptors, want %d of %d", c.Descriptors(), c.MaxDescriptors, row.need, allowed)
				}
				got := Problems(c.Warnings).Error()
				if short := allowed == row.need-1; strings.Contains(got, "LimitNOFILE") != short || short && !strings.Contains(got, row.want) {
					t.Errorf("with %d allowed the warnings are\n%s", allowed, got)
				}
			}
		})
	}
}

func TestTheTunnelsShareTheDescriptorsThatAreLeft(t *testing.T) {
	c := Config{Tunnels: []Tunnel{{MaxSessions: 300, Platforms: make([]TunnelPlatform, 2)}, {MaxSessions: 100}}, Southbound: &Southbound{MaxConnections: 20}}
	const others = 64 + 2*2 + 20
	for limit, want := range map[int][2]int{0: {300, 100}, others + 6*400: {300, 100}, others + 6*200: {150, 50}, others + 6*4: {3, 1}, others + 6*2: {1, 1}, others: {1, 1}, 1: {1, 1}} {
		c.MaxDescriptors = limit
		if got := [2]int{c.Sessions(&c.Tunnels[0]), c.Sessions(&c.Tunnels[1])}; got != want {
			t.Errorf("with %d descriptors %v sessions, want %v", limit, got, want)
		}
	}
}
