package sim

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/bedside-gateway/gatewayd/drivers/port"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// start is the world's time at which the monitors of these tests are switched on.
var start = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func unhex(tb testing.TB, s string) []byte {
	tb.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

// connectHex is an association request written out by hand after the protocol:
// session data, presentation, ACSE, and user information with a poll period of
// 1 s, 1456 bytes both ways, and 1 s numerics, waves and enumerations.
const connectHex = `0dec 0508130100160102800014020002 c1dc
	3180 a080 800101 0000 a280 a003000001 a480 3080 020101 0604 52010001 3080 0602 5101 0000 0000
	3080 020102 060c 2a8648ce1402010000000101 3080 060c 2a8648ce1402010000000201 0000 0000 0000
	6180 3080 020101 a080 6080 a180 060c 2a8648ce1402010000000301 0000 be80 2880 060c 2a8648ce1402010000000101 020102 8148
	80000000 40000000 00000000 80000000 20000000 00000000
	0001002c 00010028 80000000 00001f40 000005b0 000005b0 ffffffff 60000000 0001000c f0010008 8c000000 00000000
	00000000000000000000000000000000`

func connectPDU(tb testing.TB) []byte { return unhex(tb, connectHex) }

func pollPDU(invoke, number, class, group uint16) []byte {
	b := unhexMust("e1000002 0001 001c 0000 0007 0016 0021 0000 0000 00000000 0c16 0008")
	binary.BigEndian.PutUint16(b[8:], invoke)
	return u16(u16(u16(u16(b, number), 1), class), group)
}

func pollExtPDU(invoke, number, class, group uint16, life time.Duration) []byte {
	b := unhexMust("e1000002 0001 0028 0000 0007 0022 0021 0000 0000 00000000 f13b 0014")
	binary.BigEndian.PutUint16(b[8:], invoke)
	b = u16(u16(u16(u16(b, number), 1), class), group)
	b = append(b, unhexMust("0001 0008 f13e 0004")...)
	return u32(b, uint32(life/relativeUnit))
}

func unhexMust(s string) []byte {
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		panic(err)
	}
	return b
}

func eventResult(invoke uint16) []byte {
	b := unhexMust("e1000002 0002 0014 0000 0001 000e 0021 0000 0000 00000000 0d06 0000")
	binary.BigEndian.PutUint16(b[8:], invoke)
	return b
}

func setPDU(command, invoke, attr uint16, labels ...uint32) []byte {
	return dataExport(nil, opInvoke, func(b []byte) []byte {
		return operation(b, invoke, command, func(b []byte) []byte {
			return counted(u32(managedMDS(b), 0), 1, func(b []byte) []byte {
				return sized(u16(u16(b, 0), attr), func(b []byte) []byte { return appendLabels(b, labels) })
			})
		})
	})
}

func getPDU(invoke, attr uint16) []byte {
	b := unhexMust("e1000002 0001 0016 0000 0003 0010 0021 0000 0000 00000000 0001 0002")
	binary.BigEndian.PutUint16(b[8:], invoke)
	return u16(b, attr)
}

// A client talks to a machine in its own time.
type client struct {
	tb  testing.TB
	dev machine
	now time.Time
	got []outgoing
	at  []time.Time
}

// wait lets time go by, stopping whenever the device has something to do.
func (c *client) wait(d time.Duration) {
	c.tb.Helper()
	for end := c.now.Add(d); ; {
		wake := c.dev.advance(c.now)
		for _, o := range c.dev.take(c.now) {
			c.dev.note(o, fateSent)
			c.dev.told(o)
			c.got, c.at = append(c.got, o), append(c.at, c.now)
		}
		if !c.now.Before(end) {
			return
		}
		if !wake.After(c.now) {
			wake = c.now.Add(time.Microsecond)
		}
		if wake.After(end) {
			wake = end
		}
		c.now = wake
	}
}

func (c *client) send(pdu []byte) { c.dev.receive(c.now, pdu) }

// taken is what came since the last call.
func (c *client) taken() []outgoing {
	got := c.got
	c.got, c.at = nil, nil
	return got
}

// results are the poll results that came since the last call.
func (c *client) results() []decoded {
	c.tb.Helper()
	var list []decoded
	for _, o := range c.taken() {
		if d, ok := decodePoll(c.tb, o.pdu); ok {
			list = append(list, d)
		}
	}
	return list
}

// associate brings the client to an open association.
func (c *client) associate(invoke uint16) {
	c.tb.Helper()
	c.send(connectPDU(c.tb))
	c.wait(3 * time.Second)
	c.send(eventResult(invoke))
	got := c.taken()
	if len(got) == 0 || got[0].pdu[0] != spduAccept {
		c.tb.Fatalf("no accept but %d messages", len(got))
	}
}

func newMonitor(tb testing.TB, o Options) *Monitor {
	tb.Helper()
	if o.Now == nil {
		o.Now = func() time.Time { return start }
	}
	m, err := New(o)
	if err != nil {
		tb.Fatal(err)
	}
	return m
}

// open is a monitor with an associated client.
func open(tb testing.TB, o Options) (*Monitor, *client) {
	tb.Helper()
	m := newMonitor(tb, o)
	c := &client{tb: tb, dev: newLink(m), now: start}
	c.associate(m.o.CreateInvoke)
	return m, c
}

// decoded is a poll result, decoded strictly: every length has to add up.
type decoded struct {
	op, link, count, invoke, action, number, sequence uint16
	relative                                          uint32
	absolute                                          []byte
	class, group                                      uint16
	contexts                                          []uint16
	objects                                           []decodedObject
	size                                              int
}

type decodedObject struct {
	context, handle uint16
	ids             []uint16
	attrs           map[uint16][]byte
}

func (d decoded) object(tb testing.TB, label uint32) decodedObject {
	tb.Helper()
	for _, o := range d.objects {
		if v := o.attrs[attrLabel]; len(v) == 4 && binary.BigEndian.Uint32(v) == label {
			return o
		}
	}
	tb.Fatalf("no object with label %08X", label)
	return decodedObject{}
}

// decodePoll decodes a poll result; ok is false for any other PDU.
func decodePoll(tb testing.TB, pdu []byte) (d decoded, ok bool) {
	tb.Helper()
	if pdu[0] != spduData {
		return d, false
	}
	b := pdu
	next := func(n int) []byte {
		tb.Helper()
		if len(b) < n {
			tb.Fatalf("PDU ends early: %x", pdu)
		}
		v := b[:n]
		b = b[n:]
		return v
	}
	n16 := func() uint16 { return binary.BigEndian.Uint16(next(2)) }
	rest := func(what string) {
		tb.Helper()
		if n := int(n16()); n != len(b) {
			tb.Fatalf("%s says %d bytes and has %d: %x", what, n, len(b), pdu)
		}
	}
	next(4)
	d.op, d.size = n16(), len(pdu)
	if d.op != opResult && d.op != opLinked {
		return d, false
	}
	rest("operation")
	if d.op == opLinked {
		v := next(2)
		d.link, d.count = uint16(v[0]), uint16(v[1])
	}
	d.invoke = n16()
	if n16() != cmdConfirmedAction {
		return d, false
	}
	rest("result")
	if !bytes.Equal(next(6), []byte{0, 0x21, 0, 0, 0, 0}) {
		tb.Fatalf("result not of the MDS: %x", pdu)
	}
	d.action = n16()
	rest("action")
	d.number = n16()
	if d.action == actionPollExt {
		d.sequence = n16()
	}
	d.relative = binary.BigEndian.Uint32(next(4))
	d.absolute = next(8)
	if n16() != 1 {
		tb.Fatalf("partition is not 1: %x", pdu)
	}
	d.class, d.group = n16(), n16()
	contexts := n16()
	rest("contexts")
	for range contexts {
		context, objects := n16(), n16()
		d.contexts = append(d.contexts, context)
		left := len(b) - 2 - int(n16())
		for range objects {
			o := decodedObject{context: context, handle: n16(), attrs: map[uint16][]byte{}}
			attrs := n16()
			end := len(b) - 2 - int(n16())
			for range attrs {
				id := n16()
				o.ids = append(o.ids, id)
				o.attrs[id] = next(int(n16()))
			}
			if len(b) != end {
				tb.Fatalf("attribute list does not add up: %x", pdu)
			}
			d.objects = append(d.objects, o)
		}
		if len(b) != left {
			tb.Fatalf("object list does not add up: %x", pdu)
		}
	}
	if len(b) != 0 {
		tb.Fatalf("%d bytes left over: %x", len(b), pdu)
	}
	return d, true
}

// shared is a file of the reference captures; without them the test is skipped.
func shared(tb testing.TB, name ...string) []byte {
	tb.Helper()
	dir := os.Getenv("GATEWAY_SHARED")
	if dir == "" {
		tb.Skip("GATEWAY_SHARED is not set: no recorded sessions to test against")
	}
	b, err := os.ReadFile(filepath.Join(append([]string{dir, "reference/protocols/captures/philips"}, name...)...))
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

// recordedSession is the recorded session of a real monitor.
func recordedSession(tb testing.TB) []port.Record {
	tb.Helper()
	var list []port.Record
	in := bytes.NewReader(shared(tb, "m8000-or-session/intellivue_enumeration.pcapng"))
	for r, err := range port.ReadRecording(in, port.ReadOptions{Format: port.FormatPcap, UDPPort: 24105}) {
		if err != nil {
			tb.Fatal(err)
		}
		r.Data = bytes.Clone(r.Data)
		list = append(list, r)
	}
	if len(list) < 150 {
		tb.Fatalf("only %d records", len(list))
	}
	return list
}

// clientRequests are the requests of another program, by name.
func clientRequests(tb testing.TB) map[string][]byte {
	tb.Helper()
	list := map[string][]byte{}
	for line := range strings.Lines(string(shared(tb, "requests-vscapturemp.txt"))) {
		if name, text, ok := strings.Cut(line, ": "); ok && !strings.HasPrefix(line, "#") {
			list[name] = unhex(tb, text)
		}
	}
	return list
}
