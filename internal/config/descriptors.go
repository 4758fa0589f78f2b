package config

import "fmt"

// Descriptors that each part takes at most. The first are those of the program
// itself: spool, status, log, TPM, OCSP responders.
const (
	ownDescriptors      = 64
	portDescriptors     = 2 // and a recording
	platformDescriptors = 2
	sessionDescriptors  = 6 // of a tunnel, both ways busy: package relay
)

// Descriptors is how many the gateway takes when all connections are open that
// the configuration allows.
func (c *Config) Descriptors() int {
	n := ownDescriptors + portDescriptors*len(c.Ports) + platformDescriptors*len(c.Destinations)
	if c.Southbound != nil {
		n += int(c.Southbound.MaxConnections)
	}
	for _, t := range c.Tunnels {
		n += platformDescriptors * len(t.Platforms)
	}
	return n + c.sessionDescriptors()
}

func (c *Config) sessionDescriptors() (n int) {
	for _, t := range c.Tunnels {
		n += sessionDescriptors * int(t.MaxSessions)
	}
	return n
}

// Sessions is how many sessions of a tunnel are to be open at a time: as many as
// it allows, or what its share of the descriptors is enough for. When they run
// out no connection can be taken or made, that of gatewayd status included.
func (c *Config) Sessions(t *Tunnel) int {
	need, all := c.Descriptors(), c.sessionDescriptors()
	if c.MaxDescriptors == 0 || need <= c.MaxDescriptors {
		return int(t.MaxSessions)
	}
	left := max(0, c.MaxDescriptors-(need-all))
	return max(1, left*int(t.MaxSessions)/all)
}

// checkDescriptors warns where not all connections can be open that are allowed.
func (l *loader) checkDescriptors(c *Config, root *node) {
	c.MaxDescriptors = l.options.MaxDescriptors
	need := c.Descriptors()
	if c.MaxDescriptors == 0 || need <= c.MaxDescriptors {
		return
	}
	at, key, lower := root.at, "port", "have fewer ports"
	if n := root.table["southbound"]; n != nil {
		at, key, lower = n.at, "southbound.max_connections", "lower max_connections"
	}
	if n := root.table["tunnel"]; n != nil {
		at, key, lower = n.at, "tunnel.max_sessions", "lower max_sessions"
	}
	l.warn(at, key, fmt.Sprintf("all connections that are allowed take %d descriptors together, and a process may have only %d here; write LimitNOFILE=%d into the unit (systemctl edit gatewayd), or %s", need, c.MaxDescriptors, need, lower))
}
