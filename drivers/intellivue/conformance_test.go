package intellivue

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"slices"
	"testing"

	"github.com/bedside-gateway/gatewayd/drivers/drivertest"
	"github.com/bedside-gateway/gatewayd/drivers/intellivue/sim"
	"github.com/bedside-gateway/gatewayd/drivers/port"
	"github.com/bedside-gateway/gatewayd/observation"
)

func monitor(t *testing.T) *sim.Monitor {
	m, err := sim.New(sim.Options{Seed: 7, Patient: &sim.Patient{}})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// TestConformance is what every driver passes, with a simulated monitor that
// shares no code with the driver.
func TestConformance(t *testing.T) {
	k := drivertest.Kit{
		Stream:  func() drivertest.StreamDevice { return monitor(t) },
		Packet:  func() drivertest.PacketDevice { return monitor(t) },
		Options: map[string]string{"waves": "II,ABP,Pleth,Resp"},
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
		k.Hostile[name+" as a datagram"] = user
	}
	k.Recordings = recordings(t)
	drivertest.Run(t, Driver{}, k)
}

// hostile are messages whose lengths and counts lie.
func hostile() map[string][]byte {
	m := map[string][]byte{}
	for i, s := range seeds() {
		for at := 0; at+2 <= len(s) && at < 60; at += 2 {
			for _, v := range []uint16{0, 1, 0x7FFF, 0xFFFF} {
				p := bytes.Clone(s)
				binary.BigEndian.PutUint16(p[at:], v)
				if v == 0xFFFF || at%8 == 0 {
					m[fmt.Sprintf("message %d with %04X at %d", i, v, at)] = p
				}
			}
		}
	}
	return m
}

// recordings are the recorded session as a stream and as datagrams; none where
// it is not at hand.
func recordings(t *testing.T) []drivertest.Recording {
	if os.Getenv("GATEWAY_SHARED") == "" {
		return nil
	}
	wantNumbers, _ := onWire(t)
	lan := drivertest.Recording{Name: "M8003A on the LAN", Datagrams: true, Expect: func(list []observation.Report) error {
		var numbers []string
		for _, r := range list {
			for _, o := range r.Observations {
				if o.Value.Kind != observation.KindSamples {
					numbers = append(numbers, reported(&o))
				}
			}
		}
		if !slices.Equal(numbers, wantNumbers) {
			return fmt.Errorf("%s", firstDifference(numbers, wantNumbers))
		}
		return nil
	}}
	line := drivertest.Recording{Name: "M8003A on the line", Expect: lan.Expect}
	for _, c := range recordedSession(t) {
		if !c.monitor || c.data[0] == 0 {
			continue
		}
		r := port.Record{Time: c.at, Offset: c.at.Sub(sessionStart), Direction: port.FromDevice, Data: c.data}
		lan.Records = append(lan.Records, r)
		r.Data = appendFrame(nil, c.data)
		line.Records = append(line.Records, r)
	}
	return []drivertest.Recording{lan, line}
}
