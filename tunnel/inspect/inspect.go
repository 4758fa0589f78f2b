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

import "crypto/x509"

// Rules are what a session is held to. The zero value lets nothing pass.
type Rules struct {
	// MinVersion is the lowest version that may be spoken. Below TLS 1.2 there
	// is nothing: 0 and all that is lower are TLS 1.2.
	MinVersion uint16
	// Allow13 lets TLS 1.3 pass on the word of the gate alone.
	Allow13 bool
	// Resumption lets a TLS 1.2 session be resumed, which shows no certificate:
	// what the gate said then is all there is. In TLS 1.3 a resumed session shows
	// as much as any other, nothing, and Allow13 speaks for both.
	Resumption bool
	// Leaves are the leaf certificates in DER that the gate judged good.
	Leaves [][]byte
	// JudgeStapled judges a flight whose leaf is none of Leaves by its own
	// staples: chain as it was sent, leaf first, and responses in the same
	// order, fewer where some are missing, an entry nil where there is none. It
	// has to verify the path and the name too. nil lets none pass.
	JudgeStapled func(chain []*x509.Certificate, responses [][]byte) error
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

// A Hello is what a device asks for.
type Hello struct {
	ServerName string   // in small letters; "" is none
	Versions   []uint16 // those offered that are known, the highest first
	ALPN       []string
	// Staples and StaplesAll say that it asks for the leaf's staple, and for
	// those of the whole chain (RFC 6961).
	Staples, StaplesAll bool
	// LegacySession, Ticket, PSK and EarlyData are offers to resume. A session ID
	// is also sent for the sake of middleboxes (RFC 8446, appendix D.4).
	LegacySession, Ticket, PSK, EarlyData bool
	SecureRenegotiation                   bool // RFC 5746
}

// A Verdict is what was found out about a session that passes.
type Verdict struct {
	Version, Suite uint16
	ServerName     string
	// Enforced says that the certificate of this very session was judged and its
	// key was shown to be there; false, that the gate alone decided.
	Enforced bool
	Stapled  bool // by its own staples, not as one that the gate has seen
	Resumed  bool
	Leaf     *x509.Certificate // nil unless Enforced
}

// An Inspector looks at one session. Its methods are not for concurrent use.
type Inspector struct {
	rules   Rules
	hello   *Hello
	verdict Verdict
	done    bool
	err     error
}

// New is an Inspector for one session.
func New(rules Rules) *Inspector { return &Inspector{rules: rules} }

// Device takes what the device sent next and gives what may go on to the
// platform now; that is valid until the next call of Device. Before the hello
// is complete that is nothing, after Done it is p itself. The error is a
// *CutError, or a *EndError together with the alert that is to be passed on; it
// stays.
func (i *Inspector) Device(p []byte) (pass []byte, err error) { return nil, i.err }

// Platform is Device for the other direction. Nothing passes to the device
// before the flight was judged.
func (i *Inspector) Platform(p []byte) (pass []byte, err error) { return nil, i.err }

// Hello is what the device asks for, nil before its hello is complete. A route
// and the gate may depend on it.
func (i *Inspector) Hello() *Hello { return i.hello }

// Expect sets what the gate has said meanwhile in place of Rules.Leaves. It has
// to be called before what the platform sent is given to Platform.
func (i *Inspector) Expect(leaves [][]byte) { i.rules.Leaves = leaves }

// Done reports whether the judgement is made and good: both directions may be
// relayed unseen from here on.
func (i *Inspector) Done() bool { return i.done }

// Verdict is what was found out. It is complete once Done.
func (i *Inspector) Verdict() Verdict { return i.verdict }
