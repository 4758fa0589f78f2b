package tlspolicy

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"
)

// hostName is a host of a URL as it is compared: without the dot that ends a
// full name.
func hostName(s string) (string, error) {
	host := strings.TrimSuffix(s, ".")
	if host == "" || strings.ContainsAny(host, "* \t\r\n\x00/") {
		return "", &RefusalError{Rule: "B17", Reason: fmt.Sprintf("%q is no host name", s), Next: "write the platform's name in the destination's address"}
	}
	return host, nil
}

// named is the step of the name rule (B17): the host equals the subject's
// common name or a domain name of the subject alternative name. Letters count
// alike in both cases, ASCII only. There are no wildcards: the rule speaks of
// matching names, the platform has one, and a wildcard would let every host of
// a domain stand in for it.
func (v *verifier) named(chain []*x509.Certificate, state tls.ConnectionState, _ time.Time) error {
	leaf := chain[0]
	if slices.ContainsFunc(leaf.DNSNames, v.isHost) {
		return nil
	}
	if !v.isHost(leaf.Subject.CommonName) {
		r := v.refuse(state.PeerCertificates, leaf, v.otherNames(leaf), "correct its address in the configuration if the platform has another name; if it is right, this is not the platform")
		r.Alert = alertUnknown
		return r
	}
	// Name constraints cover alternative names only (RFC 5280, 4.2.1.10), so a
	// constrained CA could evade them by the subject.
	for _, ca := range chain[1:] {
		if !mayName(ca, v.host) {
			return v.refuse(state.PeerCertificates, ca, fmt.Sprintf("its name constraints do not allow the name %q, which the platform's certificate has in its subject", v.host), v.nextIssue())
		}
	}
	return nil
}

func (v *verifier) isHost(name string) bool { return sameHost(name, v.host) }

func (v *verifier) otherNames(leaf *x509.Certificate) string {
	names := leaf.DNSNames
	if cn := leaf.Subject.CommonName; cn != "" && !slices.Contains(names, cn) {
		names = append([]string{cn}, names...)
	}
	return fmt.Sprintf("it is not for %q but for %s", v.host, subject(strings.Join(names, ", ")))
}

// sameHost compares names as DNS does (RFC 4343), not as Unicode does: there
// the Kelvin sign is a k.
func sameHost(a, b string) bool {
	a = strings.TrimSuffix(a, ".")
	return len(a) == len(b) && lower(a) == lower(b)
}

// lower goes by bytes: strings.Map would make all that is not UTF-8 alike.
func lower(s string) string {
	b := []byte(s)
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			b[i] = c + 'a' - 'A'
		}
	}
	return string(b)
}

// mayName applies the constraints of a CA to a host.
func mayName(ca *x509.Certificate, host string) bool {
	if ip := net.ParseIP(host); ip != nil {
		holds := func(n *net.IPNet) bool { return n.Contains(ip) }
		return !slices.ContainsFunc(ca.ExcludedIPRanges, holds) &&
			(len(ca.PermittedIPRanges) == 0 || slices.ContainsFunc(ca.PermittedIPRanges, holds))
	}
	holds := func(domain string) bool { return within(host, domain) }
	return !slices.ContainsFunc(ca.ExcludedDNSDomains, holds) &&
		(len(ca.PermittedDNSDomains) == 0 || slices.ContainsFunc(ca.PermittedDNSDomains, holds))
}

// within reports whether a host is in the domain of a name constraint: the
// domain itself and all below it; with a dot in front, those below it only.
func within(host, domain string) bool {
	host, domain = lower(host), lower(domain)
	if below, ok := strings.CutPrefix(domain, "."); ok {
		return below != "" && strings.HasSuffix(host, domain)
	}
	return domain == "" || host == domain || strings.HasSuffix(host, "."+domain)
}
