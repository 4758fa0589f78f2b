package config

import (
	"cmp"
	"crypto/tls"
	"fmt"
	"net/netip"
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
		"Whether sessions of TLS 1.3 pass. In them the gateway cannot see the platform's certificate: what it has judged before is all there is."},
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
	{"trust", nil, true, func(p *TunnelPlatform) kind { return path(&p.Trust) },
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
	seen, listens, platforms := names{}, names{}, names{}
	for _, n := range l.tables(root, "tunnel") {
		var t Tunnel
		f := read(l, n, "tunnel.", tunnelKeys, &t, "platform")
		seen.unique(f, "name", t.Name)
		listens.unique(f, "listen", t.Listen)
		if len(t.Networks)+len(t.MACs) == 0 {
			f.fault("networks", "is empty, and so is macs, so that nobody could connect; write the networks of the devices")
		}
		if n.table["platform"] == nil {
			l.fault(n.at, "tunnel.platform", "is missing, so that the tunnel leads nowhere; add a [[tunnel.platform]] section below it")
		}
		for _, below := range l.nested(n, "platform", "tunnel.") {
			var p TunnelPlatform
			f := read(l, below, "tunnel.platform.", tunnelPlatformKeys, &p)
			platforms.unique(f, "name", p.Name)
			if p.Trust != "" {
				l.checkTrust(f, p.Trust)
			}
			t.Platforms = append(t.Platforms, p)
		}
		c.Tunnels = append(c.Tunnels, t)
		if l.failed() {
			continue
		}
		// What is left are names that lead to two platforms, or to none.
		if _, err := TunnelSettings([]Tunnel{t}, func(*TunnelPlatform, *tunnel.Platform) error { return nil }); err != nil {
			l.fault(n.at, "tunnel.platform", err.Error())
		}
	}
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
