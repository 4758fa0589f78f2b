package config

import (
	"fmt"
	"net"
	"strconv"
	"strings"
)

// DefaultPort is the port of MLLP with TLS when an address has none (IANA hl7).
const DefaultPort = "2575"

// Address completes and checks the address of a platform: host or host:port,
// where the host is a name, an IPv4 address or an IPv6 address in brackets.
func Address(s string) (string, error) {
	host, service, err := net.SplitHostPort(s)
	if err != nil {
		host, service, err = net.SplitHostPort(strings.TrimSuffix(s, ":") + ":" + DefaultPort)
	}
	if err != nil || !validHost(host) {
		return "", fmt.Errorf(`%.80q is no address; write host:port, such as "platform.example:2575"`, s)
	}
	if n, err := strconv.Atoi(service); err != nil || n < 1 || n > 65535 {
		return "", fmt.Errorf("%.80q has no valid port; write host:port with a port from 1 to 65535", s)
	}
	return net.JoinHostPort(host, service), nil
}

// validHost reports whether host is an address or looks like a host name
// (RFC 1123, section 2.1).
func validHost(host string) bool {
	if net.ParseIP(host) != nil {
		return true
	}
	if host == "" || len(host) > 253 {
		return false
	}
	for label := range strings.SplitSeq(strings.TrimSuffix(host, "."), ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for _, c := range []byte(label) {
			if !(c == '-' || c == '_' || '0' <= c && c <= '9' || 'a' <= c|0x20 && c|0x20 <= 'z') {
				return false
			}
		}
	}
	return true
}
