// Package drivers is the contract between the gateway and the protocols of
// bedside devices, and the session that runs a protocol on a port.
//
// A driver is a protocol machine and nothing else. It is handed the bytes that
// arrived and the time; it hands back requests and reports. It never sees a
// file descriptor, a clock, a goroutine or the network, so every driver can be
// tested to the last byte, and none can block, leak or keep a port open.
//
// Drivers are read-only by construction: each request passes the driver's own
// whitelist, Permit, which judges the bytes that would go out and not the code
// that made them, and on a listen-only port nothing goes out at all.
//
// Packages below drivers import observation and mdc, never spool, northbound
// or tunnel.
package drivers

import (
	"errors"
	"time"

	"github.com/bedside-gateway/gatewayd/drivers/port"
	"github.com/bedside-gateway/gatewayd/observation"
)

// A Driver is a device protocol. It is stateless and safe for concurrent use.
type Driver interface {
	Info() Info

	// Identify judges bytes that a device sent, unasked or in answer to this
	// driver's requests: are they this protocol? It is given what a port
	// received so far, noise included.
	Identify(received []byte) Match

	// Permit returns nil if frame, the exact bytes of one write, is a request
	// that this driver may ever transmit, else what is wrong with it. It
	// parses the frame anew: a mistake in the code that built a request must
	// not get past it.
	Permit(frame []byte) error

	// New makes the machine of one session. It fails when an option is wrong,
	// in words that name the option.
	New(Settings, Host) (Machine, error)
}

// Info is what the gateway needs to know of a driver beforehand.
type Info struct {
	Name  string // as in the configuration: small letters and digits
	Title string // for people: maker, protocol
	// Lines are the line settings to try on a serial port, the usual ones first.
	Lines []port.Line
	// UDPPort is the port of the device where the protocol runs over UDP; 0 if it does not.
	UDPPort int
	// Passive is set for protocols in which the device talks unasked, so that a
	// listen-only port gets values.
	Passive bool
	// Silence is after how long without a report a live session counts as silent.
	Silence time.Duration
	Options []Option
}

// An Option is a setting that only this driver has, [port.options] in the configuration.
type Option struct {
	Name, Default, Explain string
}

// Match is how sure Identify is.
type Match uint8

// The matches.
const (
	NoMatch   Match = iota // these bytes are something else
	NeedMore               // too few bytes to tell
	Plausible              // could be: no check value proves it
	Certain                // framed and checked as only this protocol does
)

// Settings are those of one session.
type Settings struct {
	// Datagrams is set where every Receive is one whole datagram (UDP) and not
	// a piece of a stream.
	Datagrams bool
	// ListenOnly is set where Send goes nowhere: the machine must then not wait
	// for answers, and takes what it hears.
	ListenOnly bool
	Options    map[string]string
}

// A Host is what a Machine may do. Its methods return at once.
type Host interface {
	// Send transmits one frame, if Permit and the port's mode let it.
	Send(frame []byte)
	// Report hands over what the device said. The report is only borrowed. Its
	// observations, alerts and samples may be overwritten before Report
	// returns: fill them anew for each report.
	Report(*observation.Report)
	// State tells how far the session is: Associating or Live.
	State(State)
	// Count counts frames for the metrics.
	Count(Frame)
	// Note says something worth a line in the log, once per session and text:
	// a device identity, a period that the device changed, a refusal. No
	// patient data, no device text that a person typed in.
	Note(text string)
}

// A Machine is the state of one session. Its methods are called one at a time.
//
// An error ends the session: the port is closed and opened again after a
// backoff. It is in the words of an operator. Nothing is called after it, so a
// machine that would say goodbye sends it before it returns the error.
//
// The times that it is given carry a monotonic reading. Wake should be made of
// them by Add, so that a step of the wall clock does not matter.
type Machine interface {
	// Start begins: a machine that asks sends its first request.
	Start(now time.Time) error
	// Receive takes what arrived: in a stream any piece, from one byte to many
	// frames, otherwise one datagram. p is only borrowed.
	Receive(now time.Time, p []byte) error
	// Tick is called when the time that Wake gave has come, and may be called
	// earlier. After it Wake is later than now.
	Tick(now time.Time) error
	// Wake is when Tick is wanted next; the zero time is never.
	Wake() time.Time
	// Stop says goodbye where the protocol has a word for it. Nothing is called after it.
	Stop(now time.Time)
}

// A Splitter is a driver that can find the end of a datagram in bytes that were
// stored one behind the other, without the borders that the network gave them.
// Tools use it on recordings; it is not part of a session.
type Splitter interface {
	// Split returns the length of the datagram at the start of p, or 0.
	Split(p []byte) int
}

// ErrDeviceClosed ends a session that the device itself ended in good order.
var ErrDeviceClosed = errors.New("the device ended the session")

// A State is where a session stands.
type State uint8

// The states, in the order in which a session meets them.
const (
	Closed      State = iota // no port; waiting to open it again
	Opening                  // opening the port
	Probing                  // the port is open; listening before anything is sent
	Associating              // talking to the device, no values yet
	Live                     // values arrive
	Silent                   // was live, nothing arrives
)

// String is the state in small letters, as in status and metrics.
func (s State) String() string {
	return [...]string{"closed", "opening", "probing", "associating", "live", "silent"}[s]
}

// A Frame is what became of received bytes, for the metrics.
type Frame uint8

// The fates of frames.
const (
	FrameGood       Frame = iota // understood
	FrameChecksum                // check value wrong
	FrameMalformed               // check value right or none, structure wrong
	FrameNoise                   // bytes before or between frames
	FrameOversize                // longer than the protocol allows
	FrameUnexpected              // well formed, but out of place (an answer to nothing)
	FrameRefused                 // the device said no
	frames
)

// String is the fate in small letters, as in metrics.
func (f Frame) String() string {
	return [frames]string{"good", "checksum", "malformed", "noise", "oversize", "unexpected", "refused"}[f]
}
