// Package inspect reads the TLS bytes that pass between a device and a platform
// and says what may go on.
//
// The tunnel never terminates TLS: it has no key, and after the judgement it
// carries bytes that nobody here can read. What is in the clear before that is
// looked at. The device's ClientHello passes when its version and the name it
// asks for are allowed. In TLS 1.2 the platform's first flight is held back
// whole until its certificate is one that the gate has judged good, or comes
// with staples that are, and the signature over both randoms shows that the far
// end of this very connection holds the certificate's key; the device sends
// nothing that matters before it has seen that flight. In TLS 1.3 the
// certificate is encrypted: there the gate alone decides, and only the versions
// and the name are held to a rule here. Renegotiation happens inside the
// encrypted session and cannot be seen.
//
// It is pure: bytes in, a decision out, in bounded memory, without a socket, a
// clock or a goroutine. What it does not understand it cuts. Package tunnel
// calls it, one Inspector for each session; deadlines are the tunnel's.
package inspect

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"fmt"
)

// Rules are what a session is held to. The zero value lets nothing pass.
type Rules struct {
	// MinVersion is the lowest version that may be spoken. Below TLS 1.2 there
	// is nothing: 0 and all that is lower are TLS 1.2.
	MinVersion uint16
	// Allow13 lets TLS 1.3 pass on the word of the gate alone.
	Allow13 bool
	// Resumption lets a TLS 1.2 session be resumed, which shows no certificate:
	// what the gate said is all there is then. In TLS 1.3 a resumed session shows
	// as much as any other, nothing, and Allow13 speaks for both.
	Resumption bool
	// Leaves are the leaf certificates in DER that the gate judged good.
	Leaves [][]byte
	// JudgeStapled judges a flight by its own staples: chain as it was sent,
	// leaf first, and responses in the same order, fewer where some are missing,
	// an entry nil where there is none. A leaf of Leaves is known: what is there
	// must not speak against it. Of any other it has to verify the path and the
	// name too, and a response for every certificate. nil lets none of those
	// pass, and looks at no staple.
	JudgeStapled func(chain []*x509.Certificate, responses [][]byte, known bool) error
	// ServerNames are the names a device may ask for, in any case of letters.
	ServerNames []string
	// Nameless lets a device ask for no name.
	Nameless bool
	// MaxHello and MaxFlight are what is held at most, in bytes with the heads of
	// the records; 0 is DefaultMaxHello and DefaultMaxFlight.
	MaxHello, MaxFlight int
}

// Limits that leave room for session tickets of many kilobytes in a hello, and
// for a dozen staples and a long list of CAs in a flight.
const (
	DefaultMaxHello  = 32 << 10
	DefaultMaxFlight = 128 << 10
)

func (r *Rules) floor() uint16 { return max(r.MinVersion, tls.VersionTLS12) }

// A Verdict is what was found out about a session that passes.
type Verdict struct {
	Version, Suite uint16
	ServerName     string // that the device asks for, "" is none
	// Enforced says that the certificate of this very session was judged and its
	// key was shown to be there; false, that the gate alone decided.
	Enforced bool
	Stapled  bool // by its own staples, not as one that the gate has seen
	Resumed  bool
	Leaf     *x509.Certificate // nil unless Enforced
}

// String is the verdict for a status line, without a name in it.
func (v Verdict) String() string {
	how := "not judged"
	switch {
	case v.Enforced && v.Stapled:
		how = "judged in passing by its own staples"
	case v.Enforced:
		how = "judged in passing"
	case v.Version == tls.VersionTLS13:
		how = "gate only"
	case v.Resumed:
		how = "resumed, gate only"
	}
	return versionName(v.Version) + ": " + how
}

// A state is what is awaited. The device speaks first, then the platform, and
// after a HelloRetryRequest each once more.
type state uint8

const (
	awaitHello state = iota
	awaitAnswer
	// The flight of TLS 1.2.
	awaitCertificate
	awaitStatus   // or the exchange
	awaitExchange //
	awaitRequest  // or the end
	awaitEnd
	awaitResumed // the end of a flight that is short
)

// An Inspector looks at one session. Its methods are not for concurrent use.
type Inspector struct {
	rules            Rules
	device, platform stream
	state            state
	retried          bool    // the platform has sent a HelloRetryRequest
	spacers          [2]bool // a ChangeCipherSpec has passed from the device, from the platform
	client           *clientHello
	flight           flight
	verdict          Verdict
	done             bool
	err              error
}

// New is an Inspector for one session.
func New(rules Rules) *Inspector {
	return &Inspector{rules: rules,
		device:   stream{from: "device", limit: cmp.Or(rules.MaxHello, DefaultMaxHello)},
		platform: stream{from: "platform", limit: cmp.Or(rules.MaxFlight, DefaultMaxFlight)},
	}
}

// Device takes what the device sent next and gives what may go on to the
// platform now; that is valid until the next call. Before the hello is complete
// that is nothing, after Done it is p itself. An error is a *CutError, and
// nothing passes; or an *EndError, with the alert that is still to be passed
// on. It stays: the session is over.
func (i *Inspector) Device(p []byte) (pass []byte, err error) {
	return i.take(&i.device, p, i.fromDevice)
}

// Platform is Device for the other direction. Nothing of a TLS 1.2 flight
// passes before all of it was judged; of one that resumes and is cut for it, the
// ServerHello comes with CutError.Record.
func (i *Inspector) Platform(p []byte) (pass []byte, err error) {
	return i.take(&i.platform, p, i.fromPlatform)
}

// Hello is what the device asks for, nil before its hello is complete. A route
// and the gate may depend on it. The caller must not change it.
func (i *Inspector) Hello() *Hello {
	if i.client == nil {
		return nil
	}
	return &i.client.Hello
}

// Awaits is who has to send next before the judgement, "device" or "platform".
func (i *Inspector) Awaits() string {
	if i.state == awaitHello {
		return "device"
	}
	return "platform"
}

// Expect sets what the gate has said meanwhile in place of Rules.Leaves. It has
// to be called before anything of the platform is given to Platform.
func (i *Inspector) Expect(leaves [][]byte) { i.rules.Leaves = leaves }

// Done reports whether the judgement is made and good: both directions may be
// relayed unseen from here on.
func (i *Inspector) Done() bool { return i.done }

// Verdict is what was found out. It is complete once Done.
func (i *Inspector) Verdict() Verdict { return i.verdict }

func (i *Inspector) take(s *stream, p []byte, judge func(unit) error) (pass []byte, err error) {
	if i.err != nil {
		return nil, i.err
	}
	if i.done {
		return p, nil
	}
	s.raw = append(s.raw, p...)
	for !i.done {
		u, ok, err := s.next()
		if ok {
			err = judge(u)
		}
		if err != nil {
			return i.stop(s, err)
		}
		if !ok {
			return s.pass(), nil
		}
	}
	if len(i.device.raw) > 0 {
		return i.stop(s, i.device.malformed(alertUnexpectedMessage, "something before the platform's answer was judged"))
	}
	pass = s.raw
	i.release()
	return pass, nil
}

// stop ends the session. Of what is held, only the alert of an EndError passes.
func (i *Inspector) stop(s *stream, err error) (pass []byte, _ error) {
	switch e := err.(type) {
	case *EndError:
		pass = s.raw[s.at-recordHead-alertSize : s.at]
	case *CutError:
		if i.client != nil {
			e.version = i.client.version
		}
	}
	i.err, i.done = err, false
	i.release()
	return pass, err
}

// release lets go of what was held. What the device asked for stays.
func (i *Inspector) release() {
	i.device, i.platform, i.flight, i.rules = stream{}, stream{}, flight{}, Rules{}
	if i.client != nil {
		i.client = &clientHello{Hello: i.client.Hello}
	}
}

// fromDevice takes a hello; behind it, until the platform has answered, only
// that the device gives up.
func (i *Inspector) fromDevice(u unit) error {
	s := &i.device
	switch {
	case u.content == typeAlert && i.client != nil:
		return s.end(u)
	case i.state != awaitHello:
		return s.malformed(alertUnexpectedMessage, "%v before the platform's answer was judged", u)
	case u.content == typeChangeCipherSpec && i.retried:
		return i.spacer(s, &i.spacers[0], u)
	case u.content != typeHandshake || u.message != messageClientHello || !u.last:
		return s.malformed(alertUnexpectedMessage, "%v in place of a ClientHello alone", u)
	}
	return i.hear(u)
}

func (i *Inspector) hear(u unit) error {
	s := &i.device
	h, wrong := parseHello(u.body)
	if wrong != "" {
		return s.malformed(alertDecode, "a ClientHello that is refused: %s", wrong)
	}
	if i.retried && !sameHello(i.client, h) {
		return s.malformed(alertIllegalParameter, "another ClientHello after the platform's HelloRetryRequest, not the first again (RFC 8446, section 4.1.2)")
	}
	i.client, i.verdict.ServerName = h, h.ServerName
	if err := i.rules.judgeHello(h); err != nil {
		return err
	}
	i.state, s.passes = awaitAnswer, s.at
	return nil
}

// fromPlatform takes its answer to the hello, and in TLS 1.2 all of its flight.
func (i *Inspector) fromPlatform(u unit) error {
	s := &i.platform
	switch {
	case u.content == typeAlert && i.state >= awaitAnswer && isRemark(u):
		return nil // held with the rest
	case u.content == typeAlert:
		return s.end(u)
	case u.content == typeChangeCipherSpec && i.retried:
		return i.spacer(s, &i.spacers[1], u)
	case i.state == awaitHello:
		return s.malformed(alertUnexpectedMessage, "%v before the device has said what it wants", u)
	case i.state == awaitAnswer:
		return i.answer(u)
	case i.state == awaitResumed || i.state == awaitCertificate && i.client.Ticket && isShort(u):
		return i.resumed(u)
	}
	return i.flightMessage(u)
}

// isRemark: the one warning that a handshake goes on after (RFC 6066, section 3).
func isRemark(u unit) bool {
	return len(u.body) == alertSize && u.body[0] == alertWarning && u.body[1] == byte(alertUnrecognizedName)
}

const alertSize = 2

// end is that a side gave up.
func (s *stream) end(u unit) error {
	if len(u.body) != alertSize || u.body[0] != alertWarning && u.body[0] != alertFatal {
		return s.malformed(alertDecode, "an alert that does not parse")
	}
	return &EndError{By: s.from, Alert: tls.AlertError(u.body[1])}
}

// spacer passes the one ChangeCipherSpec that each side may send after a
// HelloRetryRequest for the sake of middleboxes; it says nothing (RFC 8446,
// appendix D.4).
func (i *Inspector) spacer(s *stream, seen *bool, u unit) error {
	if *seen || len(u.body) != 1 || u.body[0] != 1 {
		return s.malformed(alertUnexpectedMessage, "%v, which does not belong there", u)
	}
	*seen, s.passes = true, s.at
	return nil
}

func (u unit) String() string {
	if u.content == typeHandshake {
		return fmt.Sprintf("the handshake message %d", u.message)
	}
	return fmt.Sprintf("a record of type %d", u.content)
}
