package inspect

import (
	"bytes"
	"crypto/tls"

	"golang.org/x/crypto/cryptobyte"
)

// retryRandom marks a HelloRetryRequest (RFC 8446, section 4.1.3).
var retryRandom = [32]byte{
	0xcf, 0x21, 0xad, 0x74, 0xe5, 0x9a, 0x61, 0x11, 0xbe, 0x1d, 0x8c, 0x02, 0x1e, 0x65, 0xb8, 0x91,
	0xc2, 0xa2, 0x11, 0x16, 0x7a, 0xbb, 0x8c, 0x5e, 0x07, 0x9e, 0x09, 0xe2, 0xc8, 0xa8, 0x33, 0x9c,
}

// downgraded is how a server that could do TLS 1.3 marks the random of an older
// session (RFC 8446, section 4.1.3).
var downgraded = []byte("DOWNGRD\x01")

// A serverHello is a ServerHello or a HelloRetryRequest.
type serverHello struct {
	body            []byte
	version         uint16 // that is chosen
	legacy          uint16
	random, session []byte
	suite           uint16
	form            byte // of the server's certificate, 0 is X.509
	cached, psk     bool
}

func (h *serverHello) isRetry() bool { return bytes.Equal(h.random, retryRandom[:]) }

// parseServerHello reads RFC 8446, section 4.1.3, and RFC 5246, section 7.4.1.3.
// The second result says what is wrong, "" if nothing is.
func parseServerHello(body []byte) (h *serverHello, wrong string) {
	h = new(serverHello)
	s := cryptobyte.String(body)
	var session cryptobyte.String
	var compression uint8
	if !s.ReadUint16(&h.legacy) || !s.ReadBytes(&h.random, 32) || !s.ReadUint8LengthPrefixed(&session) || len(session) > 32 ||
		!s.ReadUint16(&h.suite) || !s.ReadUint8(&compression) {
		return h, "its fixed part does not parse"
	}
	if compression != 0 {
		return h, "it compresses"
	}
	h.body, h.session, h.version = body, session, h.legacy
	return h, extensions(s, h.extension)
}

func (h *serverHello) extension(id uint16, s cryptobyte.String) bool {
	switch id {
	case extSupportedVersions:
		// Only a TLS 1.3 server sends it (RFC 8446, section 4.2.1).
		return s.ReadUint16(&h.version) && s.Empty() && h.version == tls.VersionTLS13 && h.legacy == tls.VersionTLS12
	case extServerCertificate:
		return s.ReadUint8(&h.form) && s.Empty()
	case extCachedInfo:
		h.cached = true
	case extPreSharedKey:
		h.psk = true
	}
	return true
}

// answer judges the platform's ServerHello.
func (i *Inspector) answer(u unit) error {
	s := &i.platform
	if u.content != typeHandshake || u.message != messageServerHello {
		return s.malformed(alertUnexpectedMessage, "%v in place of its ServerHello", u)
	}
	h, wrong := parseServerHello(u.body)
	if wrong != "" {
		return s.malformed(alertDecode, "a ServerHello that is refused: %s", wrong)
	}
	if err := i.judgeVersion(h); err != nil {
		return err
	}
	if !i.client.offersSuite(h.suite) {
		return s.malformed(alertIllegalParameter, "a ServerHello with the suite %s, which the device does not offer", tls.CipherSuiteName(h.suite))
	}
	i.verdict.Version, i.verdict.Suite = h.version, h.suite
	if h.version == tls.VersionTLS13 {
		return i.answer13(u, h)
	}
	return i.answer12(h)
}

func (i *Inspector) judgeVersion(h *serverHello) error {
	const next = "have the same versions enabled at the device and at the platform"
	switch {
	case h.version < i.rules.floor():
		return cut(RuleVersion, alertProtocolVersion, "have at least "+tls.VersionName(i.rules.floor())+" enabled at the platform"+i.rules.nextFloor(),
			"the platform chose %s, and %s is the least here", tls.VersionName(h.version), tls.VersionName(i.rules.floor()))
	case !i.client.offers(h.version):
		return cut(RuleVersion, alertProtocolVersion, next, "the platform chose %s, which the device does not offer", tls.VersionName(h.version))
	case h.version == tls.VersionTLS13 && !i.rules.Allow13:
		// The downgrade protection keeps two ends that can do TLS 1.3 from anything else (RFC 8446, section 4.1.3).
		return cut(RuleVersion, alertProtocolVersion, "switch TLS 1.3 off at the device or at the platform, since two ends that can do it take nothing else, or"+nextAllow13,
			"the platform chose TLS 1.3, which may not pass here")
	case h.version != tls.VersionTLS13 && (i.retried || h.isRetry()):
		return i.platform.malformed(alertIllegalParameter, "a HelloRetryRequest, and then %s", tls.VersionName(h.version))
	case h.version != tls.VersionTLS13 && i.client.offers(tls.VersionTLS13) && bytes.HasSuffix(h.random, downgraded):
		return cut(RuleVersion, alertIllegalParameter, "find out who changes what the device and the platform send each other",
			"device and platform both speak TLS 1.3, and something between them made it %s", tls.VersionName(h.version))
	}
	return nil
}

// answer13 ends the inspection: what follows is encrypted. Keys change behind a
// ServerHello, so nothing may follow it in its record (RFC 8446, section 5.1).
func (i *Inspector) answer13(u unit, h *serverHello) error {
	s := &i.platform
	switch {
	case !u.last:
		return s.malformed(alertUnexpectedMessage, "more behind its ServerHello in one record")
	case !h.isRetry():
		i.verdict.Resumed, i.done = h.psk, true
	case i.retried:
		return s.malformed(alertUnexpectedMessage, "a second HelloRetryRequest")
	default:
		i.retried, i.state, s.passes = true, awaitHello, s.at
	}
	return nil
}

// answer12 begins a flight of TLS 1.2.
func (i *Inspector) answer12(h *serverHello) error {
	switch {
	case kindOf(h.suite) == 0:
		return cut(RuleKeyExchange, alertHandshakeFailure, "have ECDHE or DHE suites with AES enabled at the device and at the platform",
			"the platform chose the suite %s; only those of ECDHE_ECDSA, ECDHE_RSA and DHE_RSA with AES or ChaCha20 show that the key of a certificate is there, and keep the session secret", tls.CipherSuiteName(h.suite))
	case h.form != 0:
		return cut(RuleCertificate, alertBadCertificate, nextPlain, "the platform shows something else in place of an X.509 certificate (RFC 7250)")
	case h.cached:
		return cut(RuleCertificate, alertBadCertificate, nextPlain, "the platform leaves its certificate out, as one that the device has already (RFC 7924)")
	}
	i.flight.server = h
	i.state = awaitCertificate
	if len(h.session) > 0 && bytes.Equal(h.session, i.client.session) {
		i.state = awaitResumed
		return i.judgeResumption()
	}
	return nil
}

const nextPlain = "switch that off at the device or at the platform"

// judgeResumption: a platform that resumes a session shows no certificate. It
// echoes the session ID, or it leaves its flight short (RFC 5246, section 7.3;
// RFC 5077, section 3.4).
//
// With the refusal the device gets that ServerHello, which is worth nothing
// without the Finished that would follow: only a session that it has seen
// resumed does it forget at a fatal alert (RFC 5246, section 7.2.2), and comes
// again without. JSSE would try the old one for ever.
func (i *Inspector) judgeResumption() error {
	if i.rules.Resumption {
		return nil
	}
	e := cut(RuleResumption, alertHandshakeFailure, "switch off session resumption (session IDs and tickets) at the device or at the platform, or set allow_resumption = true in [[tunnel]], which leaves the judgement of the platform to the gate alone",
		"the platform resumes an earlier session and shows no certificate that could be judged")
	e.before = recordOf(messageServerHello, i.flight.server.body)
	return e
}

// isShort: what can follow a ServerHello at once in a flight that resumes.
func isShort(u unit) bool {
	return u.content == typeChangeCipherSpec || u.content == typeHandshake && u.message == messageNewSessionTicket
}

// resumed takes the rest of such a flight: a new ticket perhaps, then the
// ChangeCipherSpec behind which all is encrypted. A certificate after an echo is
// what no client takes, and so is not judged.
func (i *Inspector) resumed(u unit) error {
	if err := i.judgeResumption(); err != nil {
		return err
	}
	i.state = awaitResumed
	switch {
	case !isShort(u):
		return i.platform.malformed(alertUnexpectedMessage, "%v in a session that it resumes", u)
	case u.content == typeChangeCipherSpec:
		i.verdict.Resumed, i.done = true, true
	}
	return nil
}
