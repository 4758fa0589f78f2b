// Package drivertest is the conformance kit that every driver passes.
//
// Run runs a driver against a simulated device over a link in memory, against
// recorded sessions, and against all that goes wrong on a bedside line. The
// time is simulated, so hours pass in an instant, and each run is the same.
//
// The kit judges what a driver does, not how. It knows no protocol: what is
// dangerous in one, and which bytes are hostile, the driver's test tells it in
// a Kit. It is used by the tests of drivers only.
package drivertest

import (
	"context"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"github.com/bedside-gateway/gatewayd/drivers"
	"github.com/bedside-gateway/gatewayd/drivers/port"
	"github.com/bedside-gateway/gatewayd/observation"
)

// A StreamDevice is a simulated device on a serial line. ServeStream serves
// one connection until ctx ends or rw fails, and leaves no goroutine.
type StreamDevice interface {
	ServeStream(ctx context.Context, rw io.ReadWriter) error
}

// A PacketDevice is a simulated device on a network. ServePacket serves until
// ctx ends or c fails, and leaves no goroutine.
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
	// Recordings are sessions of real devices. A driver that is not passive
	// hears them as in listen-only mode: the answers are not to its requests.
	Recordings []Recording
	// Foreign are bytes of other protocols.
	Foreign map[string][]byte
	// Dangerous are well-formed frames that Permit must refuse: settings,
	// remote control, whatever changes what a device does. A driver that sends
	// anything needs some.
	Dangerous map[string][]byte
	// Hostile are well-formed frames, with right check values, that lie about
	// lengths, counts and the like.
	Hostile map[string][]byte
	// Checked is set where a stream has check values that catch each change
	// of a single bit, in both directions.
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

// Run checks that d keeps the contract of package drivers. Each check is a
// subtest.
func Run(t *testing.T, d drivers.Driver, k Kit) {
	t.Helper()
	c := newChecker(d, k)
	for _, check := range checks {
		t.Run(check.name, func(t *testing.T) {
			for _, f := range c.run(t, check) {
				t.Error(f)
			}
		})
		if c.fatal {
			t.Fatal("the other checks are left out: they would not end")
		}
	}
}

// A check finds what is wrong with a driver in one respect.
type check struct {
	name string
	run  func(*checker)
}

// checks in their order: what the later ones could not survive comes first.
var checks = []check{
	{"info and options", (*checker).checkInfo},
	{"no goroutine is left", (*checker).checkGoroutines},
	{"the device comes live", (*checker).checkLive},
	{"reports keep the rules of the model", (*checker).checkReports},
	{"what is borrowed is not kept", (*checker).checkBorrowed},
	{"split and merged reads give the same reports", (*checker).checkPieces},
	{"ticks are few and may come early", (*checker).checkTicks},
	{"truncation at every point", (*checker).checkTruncation},
	{"flipped bits give no wrong value", (*checker).checkFlips},
	{"noise before sync", (*checker).checkNoise},
	{"a hostile peer", (*checker).checkHostile},
	{"replug in mid-session", (*checker).checkReplug},
	{"a device that reboots in mid-association", (*checker).checkReboot},
	{"nothing is sent in listen-only mode", (*checker).checkListenOnly},
	{"identification", (*checker).checkIdentify},
	{"only permitted requests", (*checker).checkPermit},
}

// checker runs checks on one driver.
type checker struct {
	d drivers.Driver
	k Kit
	// watchdog is how long a machine may work on one recording, in real time.
	watchdog time.Duration

	t         *testing.T // for bubbles only: what is found goes to findings
	findings  []string
	fatal     bool
	materials []*material
	sent      map[string]sending // each request that a machine made
}

// sending is how a request went out.
type sending uint8

const (
	inStream sending = 1 + iota
	asDatagram
)

// noteSent takes note of a request. One that went out in a stream has a check
// value, though it may go out as a datagram, too.
func (c *checker) noteSent(frame string, datagrams bool) {
	switch {
	case !datagrams:
		c.sent[frame] = inStream
	case c.sent[frame] == 0:
		c.sent[frame] = asDatagram
	}
}

func newChecker(d drivers.Driver, k Kit) *checker {
	return &checker{d: d, k: k, watchdog: 20 * time.Second, sent: make(map[string]sending)}
}

// maxFindings of one check are enough to work on.
const maxFindings = 10

func (c *checker) run(t *testing.T, ch check) []string {
	c.t, c.findings = t, nil
	ch.run(c)
	return c.findings
}

func (c *checker) failf(format string, args ...any) {
	if len(c.findings) < maxFindings {
		c.findings = append(c.findings, fmt.Sprintf(format, args...))
	}
}

// full reports whether enough was found.
func (c *checker) full() bool { return len(c.findings) >= maxFindings || c.fatal }
