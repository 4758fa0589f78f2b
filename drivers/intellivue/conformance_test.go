package intellivue

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/bedside-gateway/gatewayd/drivers/drivertest"
	"github.com/bedside-gateway/gatewayd/drivers/intellivue/sim"
	"github.com/bedside-gateway/gatewayd/drivers/port"
)

func monitor(t *testing.T) *sim.Monitor {
	m, err := sim.New(sim.Options{Seed: 7, Patient: &sim.Patient{}})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// A switchedOn monitor ends with its power and leaves the line as it is: the
// simulated one would close it.
type switchedOn struct{ *sim.Monitor }

func (m switchedOn) ServeStream(ctx context.Context, rw io.ReadWriter) error {
	return m.Monitor.ServeStream(ctx, struct{ io.ReadWriter }{rw})
}

func (m switchedOn) ServePacket(ctx context.Context, c net.PacketConn) error {
	return m.Monitor.ServePacket(ctx, openConn{c})
}

type openConn struct{ net.PacketConn }

func (openConn) Close() error { return nil }

// TestConformance is what every driver passes, with a simulated monitor that
// shares no code with the driver.
func TestConformance(t *testing.T) {
	k := drivertest.Kit{
		Stream:  func() drivertest.StreamDevice { return switchedOn{monitor(t)} },
		Packet:  func() drivertest.PacketDevice { return switchedOn{monitor(t)} },
		Options: map[string]string{"waves": "Resp"},
		Checked: true,
		Foreign: map[string][]byte{
			"an oximeter's lines":   bytes.Repeat([]byte("SPO2=097% BPM=060 PI=10.02\r\n"), 30),
			"a ventilator's answer": bytes.Repeat([]byte("\x1b\x02$01 0.0 12.5 0.0\x03\r\n"), 30),
			"a login prompt":        []byte("login: "),
		},
		Dangerous: map[string][]byte{},
		Hostile:   map[string][]byte{},
	}
	for name, user := range dangerous() {
		k.Dangerous[name] = appendFrame(nil, user)
	}
	for name, user := range hostile() {
		k.Hostile[name] = appendFrame(nil, user)
	}
	k.Recordings = recordings(t)
	drivertest.Run(t, Driver{}, k)
}

// hostile are messages of each kind of which one length or count lies.
func hostile() map[string][]byte {
	m := map[string][]byte{}
	for i, s := range seeds()[6:14] {
		p := bytes.Clone(s)
		at := []int{6, 12, 14, 22, 24, 42, 46, 48, 50}[i%9]
		if at+2 <= len(p) {
			binary.BigEndian.PutUint16(p[at:], 0xFFFF)
			m[fmt.Sprintf("message %d with all ones at %d", i, at)] = p
		}
	}
	return m
}

// recordings are an excerpt of the recorded session, of each kind of message
// one; the whole of it has tests of its own. There are none where the session is
// not at hand.
func recordings(t *testing.T) []drivertest.Recording {
	if os.Getenv("GATEWAY_SHARED") == "" {
		return nil
	}
	excerpt := drivertest.Recording{Name: "M8003A on the line"}
	for _, c := range recordedSession(t) {
		if c.monitor && slices.Contains([]int{48, 49, 52, 54, 56, 57, 58, 68, 70, 72, 73, 74, 81, 142, 149, 150, 151}, c.frame) {
			excerpt.Records = append(excerpt.Records, port.Record{
				Time: c.at, Offset: c.at.Sub(sessionStart) - 191*time.Second, Direction: port.FromDevice, Data: appendFrame(nil, c.data),
			})
		}
	}
	return []drivertest.Recording{excerpt}
}
