// Package drivertest is the conformance kit that every driver passes.
//
// Run runs a driver against a simulated device over a link in memory, against
// recorded sessions, and against everything that goes wrong on a bedside line.
package drivertest

import (
	"context"
	"io"
	"net"
	"testing"

	"github.com/bedside-gateway/gatewayd/drivers"
	"github.com/bedside-gateway/gatewayd/drivers/port"
	"github.com/bedside-gateway/gatewayd/observation"
)

// A StreamDevice is a simulated device on a serial line. ServeStream serves
// one connection until ctx ends or rw fails.
type StreamDevice interface {
	ServeStream(ctx context.Context, rw io.ReadWriter) error
}

// A PacketDevice is a simulated device on a network. ServePacket serves until
// ctx ends or c fails.
type PacketDevice interface {
	ServePacket(ctx context.Context, c net.PacketConn) error
}

// A Kit is what the checks need to know of a driver.
type Kit struct {
	// Stream and Packet make a new device, as it is just after power-on. At
	// least one of them, or a recording, is needed. A device must be the same
	// each time: its randomness is seeded. It tells the time by package time
	// and waits by it: the kit runs it in a bubble of testing/synctest.
	Stream func() StreamDevice
	Packet func() PacketDevice
	// Options are those of the driver.
	Options map[string]string
	// Recordings are sessions of real devices.
	Recordings []Recording
	// Foreign are bytes of other protocols.
	Foreign map[string][]byte
	// Dangerous are well-formed frames that Permit must refuse: settings,
	// remote control, whatever changes what a device does.
	Dangerous map[string][]byte
	// Hostile are well-formed frames, with right check values, that lie about
	// lengths, counts and the like.
	Hostile map[string][]byte
	// Checked is set where a stream has check values that catch each change
	// of a single bit.
	Checked bool
	// TicksPerHour bounds how often the machine may want Tick in an hour in
	// which nothing arrives; 0 is 36000.
	TicksPerHour int
}

// A Recording is a recorded session.
type Recording struct {
	Name      string
	Datagrams bool
	Records   []port.Record
	// Expect judges the reports that the driver makes of it, in order; they
	// are copies. nil expects at least one.
	Expect func([]observation.Report) error
}

// Run checks that d keeps the contract of package drivers.
func Run(t *testing.T, d drivers.Driver, k Kit) { t.Helper() }
