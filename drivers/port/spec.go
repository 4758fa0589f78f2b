package port

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path"
	"strconv"
	"strings"
)

// A Kind is the way to a device.
type Kind uint8

// The kinds of ports.
const (
	Serial Kind = iota // a serial line of this machine, USB adapters included
	TCP                // a serial server: the bytes of a line over TCP
	UDP                // a device on the network, one datagram at a time
)

// A Spec says where a device is plugged in, as the configuration has it:
// an absolute path, tcp://host:port or udp://host[:port]. The zero value is
// no port.
type Spec struct {
	Kind Kind
	Path string // Serial: the device file
	Host string // TCP, UDP: a name or an address
	Port int    // TCP, UDP; 0 in UDP: the port that the protocol has

	dev string // where the device files are: /dev unless a test says otherwise
}

// ParseSpec reads a place as the configuration has it. It looks at nothing but
// the text: a device that is not plugged in now is no error.
func ParseSpec(s string) (Spec, error) {
	scheme, rest, ok := strings.Cut(s, "://")
	switch {
	case s == "":
		return Spec{}, errors.New("no device is named: give a path such as /dev/serial/by-path/…, tcp://host:port or udp://host")
	case !ok:
		return parsePath(s)
	case scheme == "tcp" || scheme == "udp":
		return parseHost(s, scheme, rest)
	}
	return Spec{}, fmt.Errorf("device %q: %s:// is no kind of port: it is tcp:// for a serial server, udp:// for a device on the network, or a path", s, scheme)
}

func parsePath(s string) (Spec, error) {
	switch {
	case strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7F }):
		return Spec{}, fmt.Errorf("device %q: a path has no control characters", s)
	case !strings.HasPrefix(s, "/"):
		return Spec{}, fmt.Errorf("device %q: write the whole path of a serial port, such as /dev/serial/by-path/…, or tcp://host:port or udp://host", s)
	case path.Clean(s) != s || s == "/":
		return Spec{}, fmt.Errorf("device %q: this is no file name; write it without //, .. and a slash at the end", s)
	}
	return Spec{Kind: Serial, Path: s}, nil
}

func parseHost(s, scheme, rest string) (Spec, error) {
	spec := Spec{Kind: TCP}
	if scheme == "udp" {
		spec.Kind = UDP
	}
	host, number, err := splitHostPort(rest)
	switch {
	case err != nil:
		return Spec{}, fmt.Errorf("device %q: %w", s, err)
	case number == "" && spec.Kind == TCP:
		return Spec{}, fmt.Errorf("device %q: the TCP port of the serial server is missing: write tcp://%s:PORT", s, rest)
	}
	if number != "" {
		n, err := strconv.ParseUint(number, 10, 16)
		if err != nil || n == 0 {
			return Spec{}, fmt.Errorf("device %q: %q is no port number: it is 1 to 65535", s, number)
		}
		spec.Port = int(n)
	}
	spec.Host = host
	return spec, nil
}

// splitHostPort takes apart host, host:port, an IPv6 address, [address] and
// [address]:port.
func splitHostPort(s string) (host, number string, err error) {
	switch {
	case strings.HasPrefix(s, "[") && strings.HasSuffix(s, "]"):
		host = s[1 : len(s)-1]
	case strings.Count(s, ":") > 1 && !strings.HasPrefix(s, "["):
		host = s
	case strings.Contains(s, ":"):
		if host, number, err = net.SplitHostPort(s); err != nil {
			return "", "", fmt.Errorf("%q is no host and port", s)
		}
		if number == "" {
			return "", "", errors.New("nothing follows the colon: write a port number or leave the colon out")
		}
	default:
		host = s
	}
	return host, number, checkHost(host)
}

func checkHost(host string) error {
	if host == "" {
		return errors.New("the host is missing")
	}
	if strings.Contains(host, ":") {
		if _, err := netip.ParseAddr(host); err != nil {
			return fmt.Errorf("%q is no IPv6 address", host)
		}
		return nil
	}
	for _, r := range host {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '.' || r == '_' {
			continue
		}
		return fmt.Errorf("%q is no host name: a name has letters, digits, dots and hyphens", host)
	}
	return nil
}

// String is the text that ParseSpec reads.
func (s Spec) String() string {
	switch {
	case s.Kind == Serial:
		return s.Path
	case s.Port == 0:
		return s.scheme() + hostText(s.Host)
	}
	return s.scheme() + s.address()
}

func (s Spec) scheme() string {
	if s.Kind == UDP {
		return "udp://"
	}
	return "tcp://"
}

func (s Spec) address() string { return net.JoinHostPort(s.Host, strconv.Itoa(s.Port)) }

func hostText(host string) string {
	if strings.Contains(host, ":") {
		return "[" + host + "]"
	}
	return host
}

// Datagrams reports whether the port will give whole datagrams.
func (s Spec) Datagrams() bool { return s.Kind == UDP }

// DefaultPort is s with the port of a protocol, where s names none.
func (s Spec) DefaultPort(n int) Spec {
	if s.Kind == UDP && s.Port == 0 {
		s.Port = n
	}
	return s
}

// Open opens the port; line counts for serial lines only. It looks for the
// device file, and asks for the address of a host, anew each time. It returns
// when ctx ends, and never later than the dial timeout of ten seconds.
func (s Spec) Open(ctx context.Context, line Line) (Port, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	switch {
	case s.Kind == Serial && s.Path != "":
		return s.openSerial(line)
	case s.Kind == TCP && s.Port != 0:
		return s.dial(ctx, "tcp")
	case s.Kind == UDP && s.Port != 0:
		return s.dial(ctx, "udp")
	case s.Kind == UDP && s.Host != "":
		return nil, fmt.Errorf("device %s: no UDP port is named, and the driver has no usual one: write udp://%s:PORT", s, hostText(s.Host))
	}
	return nil, errors.New("no device is named")
}
