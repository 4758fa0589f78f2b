package config

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
)

// An endpoint is where something listens or is dialled, in a form that can be
// compared.
type endpoint struct {
	host string // an IP address or a name; empty: all addresses of the machine
	port int
}

// endpointOf takes what the kinds address and listenAddress let pass.
func endpointOf(s string) endpoint {
	host, service, _ := net.SplitHostPort(s)
	port, _ := strconv.Atoi(service)
	if host = askedFor(host); host == "localhost" { // RFC 6761, section 6.3; package net takes IPv4 first
		host = "127.0.0.1"
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		if host = ip.Unmap().String(); ip.IsUnspecified() { // package net listens on both families then
			host = ""
		}
	}
	return endpoint{host, port}
}

// overlaps reports whether only one of two can listen.
func (e endpoint) overlaps(other endpoint) bool {
	return e.port == other.port && (e.host == "" || other.host == "" || e.host == other.host)
}

// ip is the address of the host, invalid for a name and for all addresses.
func (e endpoint) ip() netip.Addr {
	ip, _ := netip.ParseAddr(e.host)
	return ip
}

// A listener is an endpoint of the gateway's own.
type listener struct {
	endpoint
	what string // in words
	line int
}

// listens notes where a section listens, which has to be free of the others.
func (l *loader) listens(f found, what, address string) {
	if address == "" {
		return // a fault already
	}
	own := listener{endpoint: endpointOf(address), what: what}
	own.line, _ = l.place(f.at("listen"))
	for _, other := range l.listeners {
		if own.overlaps(other.endpoint) {
			f.fault("listen", fmt.Sprintf("%q is an address where %s listens already, line %d; write another port, or for each of them a host of its own", address, other.what, other.line))
			return
		}
	}
	l.listeners = append(l.listeners, own)
}

// A dialled is an address that sessions are led to.
type dialled struct {
	f       found
	address string
	key     string
}

// dials notes where a section leads.
func (l *loader) dials(f found, address, connect string) {
	d := dialled{f, address, "address"}
	if connect != "" {
		d.address, d.key = connect, "connect"
	}
	l.dialled = append(l.dialled, d)
}

// loops refuses what leads back to the gateway itself.
func (l *loader) loops() {
	for _, d := range l.dialled {
		if own := l.ownListener(endpointOf(d.address)); own != nil {
			d.f.fault(d.key, fmt.Sprintf("%q is this gateway itself: %s listens there, line %d; write where the platform is", d.address, own.what, own.line))
		}
	}
}

// ownListener is who of the gateway answers there, nil where it is not known to be one.
func (l *loader) ownListener(to endpoint) *listener {
	for i := range l.listeners {
		own := &l.listeners[i]
		if to.port == own.port && (to.host == own.host || to.host == "" || own.host == "" && l.ownHost(to)) {
			return own
		}
	}
	return nil
}

// ownHost reports whether a host is known to be this machine.
func (l *loader) ownHost(e endpoint) bool {
	return e.ip().IsLoopback() || slices.Contains(l.options.Addresses, e.ip()) ||
		slices.ContainsFunc(l.listeners, func(own listener) bool { return own.host == e.host })
}
