package config

import (
	"cmp"
	"crypto/tls"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/bedside-gateway/gatewayd/tunnel"
)

// A Tunnel is where devices connect whose TLS ends at the platform.
type Tunnel struct {
	Name            string
	Listen          string   // host:port; no host: all addresses
	Networks        []string // as netip.Prefix writes them
	MACs            []string // as tunnel.MAC writes them
	MinTLS          string   // 1.2 or 1.3
	AllowTLS13      bool
	AllowResumption bool
	MaxSessions     int64
	MaxPerDevice    int64
	MaxRate         int64 // new connections of a device in a second
	IdleTimeout     time.Duration
	Platforms       []TunnelPlatform
}

// A TunnelPlatform is a platform that the devices of a tunnel are led to.
type TunnelPlatform struct {
	Name            string
	Address         string // host:port; the host is the name that the certificate must have
	Connect         string // host:port to dial instead; empty: Address
	Trust           string // PEM file of trust anchors
	ServerNames     []string
	Default         bool
	TwoCertificates bool
	StapleMaxAge    time.Duration // 0: no limit but the responses' own
	VerdictAge      time.Duration // 0: each session has the platform judged
	Recheck         time.Duration
	OnRevoked       string // cut or keep
	ProxyProtocol   bool
}

var tunnelKeys = section[Tunnel]{
	{"name", nil, true, func(t *Tunnel) kind { return label(&t.Name) },
		"The name of the tunnel in status, log and metrics."},
	{"listen", ":2576", false, func(t *Tunnel) kind { return listenAddress(&t.Listen) },
		"host:port to listen on for devices whose own TLS goes through to a platform. Without a host: on all addresses. Where there is no such section, nothing listens."},
	{"networks", []any{}, false, func(t *Tunnel) kind { return networks(&t.Networks) },
		"The networks whose devices may connect. Without networks and macs nobody may; where both are there, a device has to be in both."},
	{"macs", []any{}, false, func(t *Tunnel) kind { return macs(&t.MACs) },
		"The MAC addresses of the devices that may connect, as the kernel's table of neighbours has them: IPv4 devices of the same network segment. They keep mistakes out, not attackers."},
	{"min_tls", "1.2", false, func(t *Tunnel) kind { return choice(&t.MinTLS, "1.2", "1.3") },
		"The lowest version of TLS that a session may have. Below 1.2 nothing passes."},
	{"allow_tls13", true, false, func(t *Tunnel) kind { return yesNo(&t.AllowTLS13) },
		"Whether sessions of TLS 1.3 pass. In them the gateway cannot see the platform's certificate: what it has judged before is all there is. Without it no session comes about where both ends speak 1.3, for none of them falls back: it has to be off at one of them."},
	{"allow_resumption", false, false, func(t *Tunnel) kind { return yesNo(&t.AllowResumption) },
		"Whether sessions of TLS 1.2 may be resumed. No certificate is shown in them: what the gateway has judged before is all there is."},
	{"max_sessions", int64(512), false, func(t *Tunnel) kind { return number(&t.MaxSessions, 1, 4096) },
		"How many sessions may be open at a time. Each takes up to six descriptors."},
	{"max_per_device", int64(8), false, func(t *Tunnel) kind { return number(&t.MaxPerDevice, 1, 4096) },
		"How many connections one IP address may have. A further one ends its oldest."},
	{"max_rate", int64(5), false, func(t *Tunnel) kind { return number(&t.MaxRate, 1, 10_000) },
		"How many connections one IP address may open in a second, on average; four times as many at once."},
	{"idle_timeout", "1h", false, func(t *Tunnel) kind { return duration(&t.IdleTimeout, time.Second, 7*day) },
		"After how long without a byte either way a session is ended."},
}

var tunnelPlatformKeys = section[TunnelPlatform]{
	{"name", nil, true, func(p *TunnelPlatform) kind { return label(&p.Name) },
		"The name of the platform in status, log and metrics; each platform of all tunnels has its own."},
	{"address", nil, true, func(p *TunnelPlatform) kind { return address(&p.Address) },
		"The host and port of the platform. The certificate must name this host. The port is 2575 if it is left out."},
	{"connect", "", false, func(p *TunnelPlatform) kind { return optional(address(&p.Connect)) },
		"host:port to connect to in place of address, which stays the name to verify."},
	{"trust", nil, true, func(p *TunnelPlatform) kind { return file(&p.Trust) },
		"The PEM file of the root certificates that the platform's chain must end in. No other root is trusted."},
	{"server_names", []any{}, false, func(p *TunnelPlatform) kind { return serverNames(&p.ServerNames) },
		"Names by which devices ask for this platform in their ClientHello, beside the host of address."},
	{"default", false, false, func(p *TunnelPlatform) kind { return yesNo(&p.Default) },
		"Whether devices that ask for no name are led here: those that were given an IP address in place of a name."},
	{"two_certificates", false, false, func(p *TunnelPlatform) kind { return yesNo(&p.TwoCertificates) },
		"Whether the platform has an RSA certificate beside its ECC one; then both are judged before a session."},
	{"staple_max_age", "0s", false, func(p *TunnelPlatform) kind { return duration(&p.StapleMaxAge, 0, 90*day) },
		"How old the OCSP responses may be that the platform staples. 0s: as long as they say themselves."},
	{"verdict_age", "0s", false, func(p *TunnelPlatform) kind { return duration(&p.VerdictAge, 0, day) },
		"For how long a good verdict on the platform lets further sessions pass. 0s: for each session the platform is judged after the device asked for it."},
	{"recheck", "5m", false, func(p *TunnelPlatform) kind { return duration(&p.Recheck, time.Second, day) },
		"How often the platform is judged while sessions are open."},
	{"on_revoked", "cut", false, func(p *TunnelPlatform) kind { return choice(&p.OnRevoked, "cut", "keep") },
		"What happens to open sessions when the platform is refused: they are cut, or kept. New ones are refused in any case."},
	{"proxy_protocol", false, false, func(p *TunnelPlatform) kind { return yesNo(&p.ProxyProtocol) },
		"Whether the platform is told the device's address by a header of the PROXY protocol, version 2, ahead of each session."},
}

// networks is a list of networks by their prefix; an address alone is one of its own.
func networks(p *[]string) kind {
	return list("list of networks", `["10.20.0.0/24"]`, p, func(_ *loader, s string) (string, error) {
		if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
			return netip.PrefixFrom(a.Unmap(), a.Unmap().BitLen()).String(), nil
		}
		n, err := netip.ParsePrefix(s)
		if err != nil {
			return "", fmt.Errorf("%.60q is no network; write it as 10.20.0.0/24, or an address", s)
		}
		if n.Addr().Is4In6() { // it would match no IPv4 device
			return "", fmt.Errorf("%.60q is a network of IPv4 in the form of IPv6; write it as 10.20.0.0/24", s)
		}
		if n.Masked() != n {
			return "", fmt.Errorf("%.60q has bits behind its length; write %v", s, n.Masked())
		}
		return n.String(), nil
	})
}

func macs(p *[]string) kind {
	return list("list of MAC addresses", `["00:00:5e:00:53:01"]`, p, func(_ *loader, s string) (string, error) {
		m, err := tunnel.ParseMAC(s)
		if err != nil {
			return "", fmt.Errorf("%.40q is no MAC address; write it as 00:00:5e:00:53:01", s)
		}
		return m.String(), nil
	})
}

func serverNames(p *[]string) kind {
	return list("list of host names", `["platform.example"]`, p, func(_ *loader, s string) (string, error) {
		if _, err := netip.ParseAddr(s); err == nil || !validHost(s) {
			return "", fmt.Errorf("%.80q is no host name; write one such as platform.example", s)
		}
		return s, nil
	})
}

// tunnels reads the [[tunnel]] sections.
func (l *loader) tunnels(c *Config, root *node) {
	seen, platforms := names{}, names{}
	for _, n := range l.tables(root, "tunnel") {
		var t Tunnel
		f := read(l, n, "tunnel.", tunnelKeys, &t, "platform")
		seen.unique(f, "name", t.Name)
		l.listens(f, fmt.Sprintf("the tunnel %q", t.Name), t.Listen)
		t.check(f)
		taken := names{}
		for _, below := range l.nested(n, "platform", "tunnel.") {
			var p TunnelPlatform
			f := read(l, below, "tunnel.platform.", tunnelPlatformKeys, &p)
			platforms.unique(f, "name", p.Name)
			l.checkTunnelPlatform(f, &p, taken)
			t.Platforms = append(t.Platforms, p)
		}
		c.Tunnels = append(c.Tunnels, t)
	}
	if l.failed() {
		return
	}
	// Nothing is left for package tunnel to refuse; if it does, better here than at the start.
	if _, err := TunnelSettings(c.Tunnels, func(*TunnelPlatform, *tunnel.Platform) error { return nil }); err != nil {
		l.fault(root.table["tunnel"].at, "tunnel", err.Error())
	}
}

// check looks whether any device could use the tunnel.
func (t *Tunnel) check(f found) {
	if len(t.Networks)+len(t.MACs) == 0 {
		f.fault("networks", "is empty, and so is macs, so that nobody could connect; write the networks of the devices")
	}
	if f.node.table["platform"] == nil {
		f.l.fault(f.node.at, "tunnel.platform", "is missing, so that the tunnel leads nowhere; add a [[tunnel.platform]] section below it")
	}
	if t.MinTLS == "1.3" && !t.AllowTLS13 {
		f.fault("allow_tls13", `is false, and min_tls is "1.3", so that no session could pass; take one of them out`)
	}
	t.checkFamilies(f)
}

// checkFamilies wants listen, networks and macs to have a version of IP in common.
func (t *Tunnel) checkFamilies(f found) {
	at := endpointOf(t.Listen).ip() // invalid: of both versions, or a name
	is4 := func(n string) bool { return !strings.Contains(n, ":") }
	is6 := func(n string) bool { return !is4(n) }
	none := func(of func(string) bool) bool { return len(t.Networks) > 0 && !slices.ContainsFunc(t.Networks, of) }
	switch {
	case at.Is4() && none(is4):
		f.fault("networks", "has none of IPv4, and listen is an IPv4 address, so that nobody could connect; write networks of IPv4, or listen on an IPv6 address")
	case at.Is6() && none(is6):
		f.fault("networks", "has none of IPv6, and listen is an IPv6 address, so that nobody could connect; write networks of IPv6, or listen on an IPv4 address")
	case len(t.MACs) > 0 && at.Is6():
		f.fault("macs", "are known of IPv4 devices only, and listen is an IPv6 address, so that nobody could connect; write networks in their place, or listen on an IPv4 address")
	case len(t.MACs) > 0 && none(is4):
		f.fault("macs", "are known of IPv4 devices only, and networks has none of IPv4, so that nobody could connect; take macs out, or write networks of IPv4")
	}
}

// checkTunnelPlatform notes the names that devices ask for it by in taken, which
// has those of the platforms before it.
func (l *loader) checkTunnelPlatform(f found, p *TunnelPlatform, taken names) {
	if p.Trust != "" {
		l.checkTrust(f, p.Trust)
	}
	if p.Address == "" {
		return // a fault already
	}
	l.dials(f, p.Address, p.Connect)
	keys := p.asked()
	if len(keys) == 0 {
		f.fault("default", "is false, address has no name in it and server_names is empty, so that no device could ask for the platform; write default = true, or the names that devices ask for")
	}
	for _, name := range slices.Sorted(maps.Keys(keys)) {
		switch line, there := taken[name]; {
		case there && name == "":
			f.fault("default", fmt.Sprintf("is true in line %d as well, and who asks for no name can be led to one platform only; leave it to one of them", line))
		case there:
			f.fault(keys[name], fmt.Sprintf("who asks for %q is led to the platform of line %d; leave the name to one of them", name, line))
		default:
			taken[name], _ = l.place(f.at(keys[name]))
		}
	}
}

// askedFor is a name in the form that is compared.
func askedFor(name string) string { return strings.ToLower(strings.TrimSuffix(name, ".")) }

// asked is the names that devices ask for the platform by, "" for none at all,
// and the key that each is from.
func (p *TunnelPlatform) asked() map[string]string {
	keys := map[string]string{}
	if p.Default {
		keys[""] = "default"
	}
	for _, name := range p.ServerNames {
		keys[askedFor(name)] = "server_names"
	}
	// No device asks for an address by name (RFC 6066, section 3).
	if host, _, err := net.SplitHostPort(p.Address); err == nil && net.ParseIP(host) == nil {
		keys[askedFor(host)] = "address"
	}
	return keys
}

// TunnelSettings is what package tunnel takes of the sections. complete adds to
// each platform what is in files.
func TunnelSettings(all []Tunnel, complete func(*TunnelPlatform, *tunnel.Platform) error) (tunnel.Config, error) {
	var c tunnel.Config
	for i := range all {
		t := &all[i]
		l := tunnel.Listener{Name: t.Name, Address: t.Listen, MinVersion: tls.VersionTLS12, Allow13: t.AllowTLS13, AllowResumption: t.AllowResumption,
			MaxSessions: int(t.MaxSessions), MaxPerDevice: int(t.MaxPerDevice), Rate: float64(t.MaxRate), Burst: 4 * int(t.MaxRate), IdleTimeout: t.IdleTimeout}
		if t.MinTLS == "1.3" {
			l.MinVersion = tls.VersionTLS13
		}
		for _, s := range t.Networks {
			n, err := netip.ParsePrefix(s)
			if err != nil {
				return c, err
			}
			l.Networks = append(l.Networks, n)
		}
		for _, s := range t.MACs {
			m, err := tunnel.ParseMAC(s)
			if err != nil {
				return c, err
			}
			l.MACs = append(l.MACs, m)
		}
		for j := range t.Platforms {
			p := &t.Platforms[j]
			out := tunnel.Platform{Name: p.Name, Address: p.Address, Connect: cmp.Or(p.Connect, p.Address), TwoCertificates: p.TwoCertificates,
				StapleMaxAge: p.StapleMaxAge, VerdictAge: p.VerdictAge, Recheck: p.Recheck, ProxyHeader: p.ProxyProtocol}
			if p.OnRevoked == "keep" {
				out.OnRefused = tunnel.Keep
			}
			if err := complete(p, &out); err != nil {
				return c, fmt.Errorf("platform %s of the tunnel %s: %w", p.Name, t.Name, err)
			}
			c.Platforms = append(c.Platforms, out)
			l.Routes = append(l.Routes, tunnel.Route{Platform: p.Name, ServerNames: p.ServerNames, Default: p.Default})
		}
		c.Listeners = append(c.Listeners, l)
	}
	return c, c.Check()
}
