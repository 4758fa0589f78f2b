package tunnel

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// A Config is who may connect where, and to what. It is not changed after it
// was handed over.
type Config struct {
	Platforms []Platform
	Listeners []Listener
}

// A Platform is the far end of sessions and what it is held to.
type Platform struct {
	Name    string // in logs and status
	Address string // host:port; the host is what its certificate has to name (B17)
	Connect string // host:port to dial in its place; "" is Address
	Roots   *x509.CertPool
	// Identity is the gateway's certificate: platforms ask for one (B16).
	Identity tls.Certificate
	// StapleMaxAge refuses responses that are older; 0 is no limit but their own.
	StapleMaxAge time.Duration

	// TwoCertificates says that it has an RSA certificate beside its ECC one, and
	// shows either as the device can take it: then both are judged.
	TwoCertificates bool
	// VerdictAge is for how long a good verdict of the gate lets further
	// sessions pass; 0: each session has the platform judged after it arrived.
	VerdictAge time.Duration
	// Recheck is how often the platform is judged while sessions are open; 0 is
	// 5 minutes.
	Recheck time.Duration
	// OnRefused is what happens to open sessions when the platform is refused.
	OnRefused OnRefused
	// ProxyHeader sends a header of the PROXY protocol, version 2, ahead of each
	// session, so that the platform learns the device's address.
	ProxyHeader bool
}

// OnRefused is what to do with open sessions of a platform that is refused.
type OnRefused uint8

// What can be done.
const (
	Cut OnRefused = iota
	Keep
)

// DefaultRecheck is how often a platform with open sessions is judged.
const DefaultRecheck = 5 * time.Minute

// A Listener is where devices of a network connect.
type Listener struct {
	Name    string // in logs and status
	Address string // host:port to listen on
	// Networks and MACs are the devices that may connect. Where both are given,
	// a device has to be in both. Without either nobody gets in.
	Networks []netip.Prefix
	MACs     []MAC
	Routes   []Route

	MinVersion uint16 // of TLS; 0 is 1.2, and nothing is below
	// Allow13 lets TLS 1.3 pass, where the gate alone decides.
	Allow13 bool
	// AllowResumption lets sessions of TLS 1.2 be resumed, where no certificate
	// is shown and the gate alone decides.
	AllowResumption bool

	MaxSessions  int           // at once; 0 is 512
	MaxPerDevice int           // of one IP address; 0 is 8. A further one ends its oldest
	Rate         float64       // new connections of one IP address per second; 0 is 5
	Burst        int           // of those; 0 is 20
	IdleTimeout  time.Duration // without a byte either way; 0 is an hour
}

// A Route leads sessions to a platform.
type Route struct {
	Platform string // name of a Platform
	// ServerNames are what a device may ask for in its ClientHello to be led
	// here. The host of the platform's address is always one of them.
	ServerNames []string
	// Default takes the sessions that ask for no name.
	Default bool
}

// Check says what is wrong with a configuration, but for the certificates: New
// and Update judge those too.
func (c Config) Check() error {
	_, err := c.complete()
	return err
}

func (c Config) complete() (Config, error) {
	c.Platforms, c.Listeners = slices.Clone(c.Platforms), slices.Clone(c.Listeners)
	hosts := map[string]string{}
	for i := range c.Platforms {
		p := &c.Platforms[i]
		host, err := p.complete()
		if err != nil {
			return c, fmt.Errorf("platform %q of the tunnel: %w", p.Name, err)
		}
		if _, twice := hosts[p.Name]; twice {
			return c, fmt.Errorf("platform %q of the tunnel is there twice; give each a name of its own", p.Name)
		}
		hosts[p.Name] = host
	}
	seen := map[string]bool{}
	for i := range c.Listeners {
		l := &c.Listeners[i]
		if err := l.complete(hosts); err != nil {
			return c, fmt.Errorf("listener %q of the tunnel: %w", l.Name, err)
		}
		if seen[l.Address] {
			return c, fmt.Errorf("listener %q of the tunnel: another one listens on %s; give it another address, or one listener both routes", l.Name, l.Address)
		}
		seen[l.Address] = true
	}
	return c, nil
}

func (p *Platform) complete() (host string, err error) {
	if p.Name == "" {
		return "", errors.New("it has no name; give it one")
	}
	if host, err = splitAddress(p.Address); err != nil {
		return "", fmt.Errorf("address: %w", err)
	}
	if p.Connect == "" {
		p.Connect = p.Address
	} else if _, err := splitAddress(p.Connect); err != nil {
		return "", fmt.Errorf("connect: %w", err)
	}
	if p.VerdictAge < 0 || p.Recheck < 0 || p.StapleMaxAge < 0 {
		return "", errors.New("a time is negative; correct it")
	}
	if p.Recheck == 0 {
		p.Recheck = DefaultRecheck
	}
	return host, nil
}

func splitAddress(s string) (host string, err error) {
	host, port, err := net.SplitHostPort(s)
	if err == nil && (host == "" || port == "") {
		err = fmt.Errorf("%q lacks a host or a port; write host:port", s)
	}
	return canonical(host), err
}

// canonical is a server name as it is compared: package inspect gives small letters.
func canonical(name string) string { return strings.ToLower(strings.TrimSuffix(name, ".")) }

func (l *Listener) complete(hosts map[string]string) error {
	if _, _, err := net.SplitHostPort(l.Address); err != nil {
		return fmt.Errorf("address: %w", err)
	}
	if len(l.Networks) == 0 && len(l.MACs) == 0 {
		return errors.New("nothing says which devices may connect; list their networks or MAC addresses")
	}
	if len(l.Routes) == 0 {
		return errors.New("it leads nowhere; name a platform")
	}
	if l.MaxSessions < 0 || l.MaxPerDevice < 0 || l.Rate < 0 || l.Burst < 0 || l.IdleTimeout < 0 {
		return errors.New("a limit is negative; correct it")
	}
	l.MinVersion = max(l.MinVersion, tls.VersionTLS12)
	orDefault(&l.MaxSessions, 512)
	orDefault(&l.MaxPerDevice, 8)
	orDefault(&l.Rate, 5)
	orDefault(&l.Burst, 20)
	orDefault(&l.IdleTimeout, time.Hour)
	l.Routes = slices.Clone(l.Routes)
	return l.checkRoutes(hosts)
}

func orDefault[T int | float64 | time.Duration](v *T, standard T) {
	if *v == 0 {
		*v = standard
	}
}

func (l *Listener) checkRoutes(hosts map[string]string) error {
	taken := map[string]string{}
	for i := range l.Routes {
		r := &l.Routes[i]
		host, known := hosts[r.Platform]
		if !known {
			return fmt.Errorf("there is no platform %q; name one of the tunnel's", r.Platform)
		}
		names := []string{}
		if net.ParseIP(host) == nil { // no device asks for an address by name (RFC 6066, section 3)
			names = append(names, host)
		}
		for _, n := range r.ServerNames {
			names = append(names, canonical(n))
		}
		if r.Default {
			names = append(names, "")
		} else if slices.Contains(names, "") {
			return fmt.Errorf("route to %q: a server name is empty; leave it out, or make the route the default", r.Platform)
		}
		slices.Sort(names)
		r.ServerNames = slices.Compact(names)
		for _, n := range r.ServerNames {
			if other, twice := taken[n]; twice {
				return fmt.Errorf("the server name %q leads to %q and to %q; leave it to one", n, other, r.Platform)
			}
			taken[n] = r.Platform
		}
		if len(r.ServerNames) == 0 {
			return fmt.Errorf("no session can take the route to %q; make it the default, or give it server names", r.Platform)
		}
	}
	return nil
}

// route is where a session that asks for a name goes; "" is no name.
func (l *Listener) route(serverName string) (platform string, ok bool) {
	for _, r := range l.Routes {
		if slices.Contains(r.ServerNames, serverName) {
			return r.Platform, true
		}
	}
	return "", false
}

// names are what may be asked for here, and whether no name is among them.
func (l *Listener) names() (all []string, nameless bool) {
	for _, r := range l.Routes {
		for _, n := range r.ServerNames {
			if n == "" {
				nameless = true
			} else {
				all = append(all, n)
			}
		}
	}
	return all, nameless
}

func (c Config) platform(name string) *Platform {
	for i := range c.Platforms {
		if c.Platforms[i].Name == name {
			return &c.Platforms[i]
		}
	}
	return nil
}
