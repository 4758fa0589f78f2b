package inspect

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/crypto/cryptobyte"
)

// Extensions (IANA, TLS ExtensionType Values).
const (
	extServerName        = 0
	extStatusRequest     = 5
	extALPN              = 16
	extStatusRequestV2   = 17
	extServerCertificate = 20 // RFC 7250: the form of the server's certificate
	extCachedInfo        = 25
	extSessionTicket     = 35
	extPreSharedKey      = 41
	extEarlyData         = 42
	extSupportedVersions = 43
	extEncryptedHello    = 0xfe0d
	extRenegotiation     = 0xff01
)

const (
	scsvRenegotiation = 0x00ff
	maxName           = 253
)

// A Hello is what a device asks for.
type Hello struct {
	ServerName string   // in small letters, as it was sent otherwise; "" is none
	Versions   []uint16 // those offered that have a name, the highest first
	ALPN       []string
	// Staples and StaplesAll say that it asks for the leaf's staple, and for
	// those of the whole chain (RFC 6961).
	Staples, StaplesAll bool
	// LegacySession, Ticket, PSK and EarlyData are offers to resume. A session ID
	// is also sent for the sake of middleboxes (RFC 8446, appendix D.4).
	LegacySession, Ticket, PSK, EarlyData bool
	SecureRenegotiation                   bool // RFC 5746
}

// A clientHello is a Hello and what the answer is held against.
type clientHello struct {
	Hello
	version         uint16 // of the record of an alert that it understands
	random, session []byte
	suites          []byte
	encryptedName   bool
}

func (h *clientHello) offers(version uint16) bool { return slices.Contains(h.Versions, version) }

func (h *clientHello) offersSuite(suite uint16) bool {
	for s := h.suites; len(s) > 1; s = s[2:] {
		if binary.BigEndian.Uint16(s) == suite {
			return true
		}
	}
	return false
}

// parseHello reads a ClientHello (RFC 8446, section 4.1.2; RFC 5246, section
// 7.4.1.2). The second result says what is wrong with it, "" if nothing is.
func parseHello(body []byte) (h *clientHello, wrong string) {
	h = new(clientHello)
	s := cryptobyte.String(body)
	var session, suites, compression cryptobyte.String
	if !s.ReadUint16(&h.version) || h.version>>8 != 3 || !s.ReadBytes(&h.random, 32) || !s.ReadUint8LengthPrefixed(&session) || len(session) > 32 ||
		!s.ReadUint16LengthPrefixed(&suites) || len(suites) < 2 || len(suites)%2 != 0 || !s.ReadUint8LengthPrefixed(&compression) {
		return h, "its fixed part does not parse"
	}
	if bytes.IndexByte(compression, 0) < 0 {
		return h, "it does not offer to do without compression"
	}
	h.session, h.suites, h.LegacySession = session, suites, len(session) > 0
	h.SecureRenegotiation = h.offersSuite(scsvRenegotiation)
	if wrong := extensions(s, h.extension); wrong != "" {
		return h, wrong
	}
	if h.Versions == nil {
		// There is no list: all up to this one (RFC 8446, appendix D.2).
		h.Versions = []uint16{min(h.version, tls.VersionTLS12)}
	}
	return h, ""
}

// extensions hands each extension to read. One that comes twice could be read
// in two ways, and ends it.
func extensions(s cryptobyte.String, read func(id uint16, s cryptobyte.String) bool) (wrong string) {
	if s.Empty() {
		return ""
	}
	var all cryptobyte.String
	if !s.ReadUint16LengthPrefixed(&all) || !s.Empty() {
		return "its extensions do not parse"
	}
	var seen [1 << 16 / 64]uint64
	for !all.Empty() {
		var id uint16
		var data cryptobyte.String
		if !all.ReadUint16(&id) || !all.ReadUint16LengthPrefixed(&data) {
			return "its extensions do not parse"
		}
		if bit := uint64(1) << (id % 64); seen[id/64]&bit != 0 {
			return "it has the extension " + strconv.Itoa(int(id)) + " twice"
		} else {
			seen[id/64] |= bit
		}
		if !read(id, data) {
			return "its " + extensionName(id) + " does not parse"
		}
	}
	return ""
}

// extensionName is what an operator knows an extension by.
func extensionName(id uint16) string {
	if id == extServerName {
		return "extension 0, the server name (SNI),"
	}
	return "extension " + strconv.Itoa(int(id))
}

func (h *clientHello) extension(id uint16, s cryptobyte.String) bool {
	switch id {
	case extServerName:
		return h.readName(s)
	case extSupportedVersions:
		return h.readVersions(s)
	case extALPN:
		return h.readALPN(s)
	case extStatusRequest:
		return h.readStatusRequest(s)
	case extStatusRequestV2:
		return h.readStatusRequestV2(s)
	case extSessionTicket:
		h.Ticket = len(s) > 0
	case extPreSharedKey:
		h.PSK = true
	case extEarlyData:
		h.EarlyData = true
	case extEncryptedHello:
		h.encryptedName = true
	case extRenegotiation:
		// Not empty, it continues a session, and this is a first hello (RFC 5746, section 3.6).
		h.SecureRenegotiation = true
		return bytes.Equal(s, []byte{0})
	}
	return true
}

// readName reads the one host name (RFC 6066, section 3).
func (h *clientHello) readName(s cryptobyte.String) bool {
	var list, name cryptobyte.String
	var kind uint8
	if !s.ReadUint16LengthPrefixed(&list) || !s.Empty() || !list.ReadUint8(&kind) || kind != 0 ||
		!list.ReadUint16LengthPrefixed(&name) || !list.Empty() || len(name) == 0 || len(name) > maxName {
		return false
	}
	for _, c := range name {
		if c <= ' ' || c > '~' {
			return false
		}
	}
	h.ServerName = strings.ToLower(string(name))
	return true
}

func (h *clientHello) readVersions(s cryptobyte.String) bool {
	var list cryptobyte.String
	if !s.ReadUint8LengthPrefixed(&list) || !s.Empty() || list.Empty() {
		return false
	}
	h.Versions = make([]uint16, 0, 4)
	for !list.Empty() {
		var v uint16
		if !list.ReadUint16(&v) {
			return false
		}
		// The others are drafts, or random so that nobody stumbles over what is new (RFC 8701).
		if v>>8 == 3 && v <= tls.VersionTLS13 && !slices.Contains(h.Versions, v) {
			h.Versions = append(h.Versions, v)
		}
	}
	slices.SortFunc(h.Versions, func(a, b uint16) int { return int(b) - int(a) })
	return true
}

func (h *clientHello) readALPN(s cryptobyte.String) bool {
	var list cryptobyte.String
	if !s.ReadUint16LengthPrefixed(&list) || !s.Empty() || list.Empty() {
		return false
	}
	for !list.Empty() {
		var protocol cryptobyte.String
		if !list.ReadUint8LengthPrefixed(&protocol) || protocol.Empty() {
			return false
		}
		h.ALPN = append(h.ALPN, string(protocol))
	}
	return true
}

const (
	statusOCSP      = 1
	statusOCSPMulti = 2
)

func (h *clientHello) readStatusRequest(s cryptobyte.String) bool {
	var kind uint8
	if !s.ReadUint8(&kind) {
		return false
	}
	h.Staples = kind == statusOCSP
	return true
}

// readStatusRequestV2 reads RFC 6961, section 2.2.
func (h *clientHello) readStatusRequestV2(s cryptobyte.String) bool {
	var list cryptobyte.String
	if !s.ReadUint16LengthPrefixed(&list) || !s.Empty() || list.Empty() {
		return false
	}
	for !list.Empty() {
		var kind uint8
		var request cryptobyte.String
		if !list.ReadUint8(&kind) || !list.ReadUint16LengthPrefixed(&request) {
			return false
		}
		h.Staples = h.Staples || kind == statusOCSP
		h.StaplesAll = h.StaplesAll || kind == statusOCSPMulti
	}
	return true
}

// judgeHello holds a hello to the rules that do not depend on the answer.
func (r *Rules) judgeHello(h *clientHello) *CutError {
	top := uint16(0)
	if len(h.Versions) > 0 {
		top = h.Versions[0]
	}
	switch {
	case top < r.floor():
		return cut(RuleVersion, alertProtocolVersion, "have the device updated or set to at least "+tls.VersionName(r.floor())+r.nextFloor(),
			"the device offers %s at most, and %s is the least here", versionName(top), tls.VersionName(r.floor()))
	case !r.Allow13 && !h.offers(tls.VersionTLS12):
		return cut(RuleVersion, alertProtocolVersion, "have TLS 1.2 enabled at the device, or"+nextAllow13, "the device speaks TLS 1.3 only, which may not pass here")
	case h.EarlyData:
		return cut(RuleEarlyData, alertHandshakeFailure, "switch off early data (0-RTT) at the device",
			"the device wants to send data before anything is judged, which could also be repeated by others (RFC 8446, section 8)")
	}
	return r.judgeName(h)
}

const nextAllow13 = " set allow_tls13 = true in [[tunnel]], which leaves the judgement of the platform to the gate alone"

// nextFloor is where the floor can be lowered: nowhere below TLS 1.2.
func (r *Rules) nextFloor() string {
	if r.floor() > tls.VersionTLS12 {
		return ", or lower min_tls in [[tunnel]]"
	}
	return ""
}

func (r *Rules) judgeName(h *clientHello) *CutError {
	const next = "set the platform's name at the device, or add the name that it asks for to server_names in [[tunnel.platform]]"
	switch {
	case h.encryptedName:
		return cut(RuleServerName, alertHandshakeFailure, "switch off encrypted hellos (ECH) at the device", "the device hides the name that it asks for")
	case h.ServerName == "" && r.Nameless:
		return nil
	case h.ServerName == "":
		return cut(RuleServerName, alertHandshakeFailure, "set the platform's name at the device, or default = true in one [[tunnel.platform]]", "the device asks for no server name (SNI)")
	case isAddress(h.ServerName):
		return cut(RuleServerName, alertUnrecognizedName, "set the platform's name at the device in place of its address, or have it send none and set default = true in one [[tunnel.platform]]",
			"the device asks for an IP address as server name, which is none (RFC 6066, section 3)")
	case strings.HasSuffix(h.ServerName, "."):
		// The platform would be asked by the gate for another name than by the session.
		return cut(RuleServerName, alertUnrecognizedName, "take the dot off the platform's name at the device", "the device asks for a server name with a dot at its end (RFC 6066, section 3)")
	case !slices.ContainsFunc(r.ServerNames, func(name string) bool { return strings.ToLower(strings.TrimSuffix(name, ".")) == h.ServerName }):
		return cut(RuleServerName, alertUnrecognizedName, next, "the device asks for the server name %s, which is not that of a platform here", strconv.QuoteToASCII(h.ServerName))
	}
	return nil
}

func isAddress(name string) bool {
	_, err := netip.ParseAddr(name)
	return err == nil
}

// sameHello holds the hello that follows a HelloRetryRequest against the first:
// it asks for the same (RFC 8446, section 4.1.2).
func sameHello(first, second *clientHello) bool {
	return bytes.Equal(first.random, second.random) && bytes.Equal(first.session, second.session) && bytes.Equal(first.suites, second.suites) &&
		first.ServerName == second.ServerName && slices.Equal(first.Versions, second.Versions) && slices.Equal(first.ALPN, second.ALPN)
}

func versionName(v uint16) string {
	if v == 0 {
		return "no version that is known"
	}
	return tls.VersionName(v)
}
