// Package intellivue speaks Data Export with Philips IntelliVue monitors, over
// the MIB/RS-232 interface and over the LAN.
//
// The codec is the same for both: on the line a message stands in a frame with a
// check value, on the LAN it is a datagram. It reads bytes in place and
// allocates nothing for a value. The machine makes an association, has the
// monitor send its values by itself, renews that in time, and turns what comes
// into observations. It asks for values and says which waves it wants; it has no
// word for anything that changes what a monitor does at the bedside, and Permit
// finds each request in its bytes anew before it goes out.
//
// References are to the IntelliVue Data Export Programming Guide (Philips 4535
// 642 59271) and to ISO/IEEE 11073, whose object model and codes it uses.
//
// The session of package drivers is the only caller.
package intellivue

import (
	"time"

	"github.com/bedside-gateway/gatewayd/drivers"
	"github.com/bedside-gateway/gatewayd/drivers/port"
)

// Driver is the protocol of Philips IntelliVue monitors.
type Driver struct{}

var (
	_ drivers.Driver   = Driver{}
	_ drivers.Splitter = Driver{}
)

// New is the driver.
func New() drivers.Driver { return Driver{} }

// Info tells how to reach a monitor.
func (Driver) Info() drivers.Info {
	return drivers.Info{
		Name:  "intellivue",
		Title: "Philips IntelliVue, Data Export (MIB/RS-232 and LAN)",
		Lines: []port.Line{
			{Baud: 115200, DataBits: 8, Parity: port.None, StopBits: 1},
			{Baud: 19200, DataBits: 8, Parity: port.None, StopBits: 1},
		},
		UDPPort: 24105,
		Silence: 15 * time.Second,
		Options: optionList,
	}
}

// New makes the machine of a session.
func (Driver) New(s drivers.Settings, h drivers.Host) (drivers.Machine, error) {
	return newMachine(s, h)
}

// Permit lets pass what the driver may ask: association, release and abort, the
// result of the MDS create event, polls, and the priority lists of waves and
// numerics. A frame is one on the line or one datagram.
func (Driver) Permit(frame []byte) error {
	if len(frame) > 0 && frame[0] == frameBegin {
		user, err := unframe(frame)
		if err != nil {
			return err
		}
		return permit(user)
	}
	return permit(frame)
}

// Identify is certain of a frame with the right check value and a message in
// it, and of a datagram that is a whole message.
func (Driver) Identify(received []byte) drivers.Match {
	if len(received) == 0 {
		return drivers.NeedMore
	}
	if certain(received) {
		return drivers.Certain
	}
	var d deframer
	for p := received; ; {
		rest, user, fate, ok := d.next(p)
		if !ok {
			break
		}
		if fate == drivers.FrameGood && certain(user) {
			return drivers.Certain
		}
		p = rest
	}
	if d.inside && d.begins() || len(received) < enough {
		return drivers.NeedMore
	}
	return drivers.NoMatch
}

// enough bytes without a frame are no monitor's.
const enough = 256

// certain reports whether p is a whole message.
func certain(p []byte) bool {
	if len(p) < 2 {
		return false
	}
	if isSession(p[0]) {
		s, err := parseSPDU(p)
		return err == nil && s.known()
	}
	if _, err := parsePDU(p); err == nil {
		return true
	}
	return isConnectIndication(p)
}

// Split finds the end of the message at the start of p, which is stored without
// its border.
func (Driver) Split(p []byte) int {
	n := messageLength(p)
	if n == 0 || n > len(p) || !certain(p[:n]) {
		return 0
	}
	return n
}

func messageLength(p []byte) int {
	if len(p) < 2 {
		return 0
	}
	r := reader{b: p}
	if isSession(p[0]) {
		r.u8()
		n := readLI(&r)
		return len(p) - len(r.b) + n
	}
	r.take(6)
	return 8 + int(r.u16())
}
