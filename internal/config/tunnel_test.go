package config

import (
	"reflect"
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
		"a server name that is an address":   {"trust = \"roots.pem\"\n\x00", "trust = \"roots.pem\"\nserver_names = [\"10.0.0.1\"]", "tunnel.platform.server_names: entry 1 \"10.0.0.1\" is no host name"},
		"an unknown policy":                  {"trust = \"roots.pem\"\n\x00", "trust = \"roots.pem\"\non_revoked = \"ignore\"", "tunnel.platform.on_revoked: \"ignore\" is none of the choices"},
		"a tunnel twice":                     {"\x00", strings.Replace(second, "\"two\"", "\"icu\"", 1), "tunnel.name: \"icu\" is there already"},
		"an address twice":                   {"\x00", strings.Replace(second, ":3000", ":2576", 1), "tunnel.listen: \":2576\" is there already"},
		"a platform twice":                   {"\x00", strings.Replace(second, "\"other\"", "\"hospital\"", 1), "tunnel.platform.name: \"hospital\" is there already"},
		"a name for two platforms":           {"\x00", "[[tunnel.platform]]\nname = \"b\"\naddress = \"platform.example:99\"\ntrust = \"roots.pem\"\n", "tunnel.platform: listener \"icu\" of the tunnel: the server name \"platform.example\" leads to"},
		"a platform that nobody can ask for": {"address = \"platform.example\"\ntrust", "address = \"192.0.2.1\"\ntrust", "no session can take the route"},
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
