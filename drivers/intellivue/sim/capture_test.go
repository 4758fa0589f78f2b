package sim

import (
	"bytes"
	"encoding/binary"
	"slices"
	"testing"
	"time"

	"github.com/bedside-gateway/gatewayd/drivers/port"
)

func TestTheStrictDecoderTakesAllResultsOfTheRealMonitor(t *testing.T) {
	n := 0
	for _, r := range recordedSession(t) {
		if r.Direction != port.FromDevice || r.Data[0] != spduData {
			continue
		}
		d, ok := decodePoll(t, r.Data)
		if !ok {
			continue
		}
		n++
		part, err := parseReply(r.Data)
		if err != nil {
			t.Fatalf("%x: %v", r.Data, err)
		}
		p := poll{invoke: d.invoke, number: d.number, sequence: d.sequence, group: d.group, extended: d.action == actionPollExt}
		if got := part.encode(&p); !bytes.Equal(got, r.Data) {
			t.Errorf("taken apart and put together\n%x, recorded\n%x", got, r.Data)
		}
	}
	if n < 120 {
		t.Errorf("only %d results", n)
	}
}

// TestTheRecordedClientGetsWhatItGotFromTheRealMonitor lets the simulated
// monitor answer what a real client said to a real one, at the same times.
// The values are others; kind, order and form of the answers are the same.
func TestTheRecordedClientGetsWhatItGotFromTheRealMonitor(t *testing.T) {
	m := newMonitor(t, Options{RepeatStatics: true, Demo: true, AcceptDelay: 1050 * time.Millisecond})
	l := newLink(m)
	c := &client{tb: t, dev: l, now: start}
	var real, simulated []outgoing
	for _, r := range recordedSession(t) {
		if at := start.Add(r.Offset); at.After(c.now) {
			c.wait(at.Sub(c.now))
		}
		switch {
		case r.Direction == port.ToDevice:
			c.send(r.Data)
		case r.Data[0] != 0:
			real = append(real, outgoing{pdu: r.Data})
		}
	}
	simulated = c.taken()
	a, b := signatures(t, real), signatures(t, simulated)
	for sig, n := range a {
		if m := b[sig]; m < n-n/8-1 || m > n+n/8+1 {
			t.Errorf("%s: %d from the real monitor, %d from the simulated one", sig, n, m)
		}
	}
	for sig, n := range b {
		if a[sig] == 0 {
			t.Errorf("%s: %d from the simulated monitor, none from the real one", sig, n)
		}
	}
	if m.Counts().Associations != 4 || m.Counts().BadRequests != 0 || m.Counts().Errors != 0 {
		t.Errorf("%+v", m.Counts())
	}
}

// signatures counts messages by what they are, apart from values and sizes.
func signatures(t *testing.T, list []outgoing) map[string]int {
	t.Helper()
	n := map[string]int{}
	for _, o := range list {
		d, ok := decodePoll(t, o.pdu)
		switch {
		case o.pdu[0] != spduData:
			n["session "+string("0123456789ABCDEF"[o.pdu[0]>>4])+string("0123456789ABCDEF"[o.pdu[0]&15])]++
		case ok:
			kind := "single"
			if d.action == actionPollExt {
				kind = "extended"
			}
			if d.op == opLinked {
				kind += " linked"
			}
			n[kind+" of "+hex16(d.class)+"/"+hex16(d.group)+" to "+hex16(d.invoke)]++
		default:
			n["operation "+hex16(binary.BigEndian.Uint16(o.pdu[4:]))+" command "+hex16(binary.BigEndian.Uint16(o.pdu[10:]))]++
		}
	}
	return n
}

func hex16(v uint16) string {
	const digits = "0123456789ABCDEF"
	return string([]byte{digits[v>>12], digits[v>>8&15], digits[v>>4&15], digits[v&15]})
}

func TestObjectsHaveTheAttributesOfTheRealMonitor(t *testing.T) {
	// By label, the attributes that a real monitor's object had in one result,
	// without values and those that mean nothing to a client: display grid, tone, ranges.
	ignored := []uint16{0x091A, 0xF008, attrResolution, attrCalibration, attrPhysioRange, attrWave, attrCompoundWave}
	known := func(list []decoded) map[uint32][]uint16 {
		all := map[uint32][]uint16{}
		for _, d := range list {
			for _, o := range d.objects {
				if v := o.attrs[attrLabel]; v != nil && d.group == groupAll {
					label := binary.BigEndian.Uint32(v)
					ids := slices.DeleteFunc(slices.Clone(o.ids), func(id uint16) bool { return slices.Contains(ignored, id) })
					if len(ids) > len(all[label]) {
						all[label] = ids
					}
				}
			}
		}
		return all
	}
	var list []decoded
	for _, r := range recordedSession(t) {
		if d, ok := decodePoll(t, r.Data); ok && r.Direction == port.FromDevice {
			list = append(list, d)
		}
	}
	real := known(list)

	_, c := open(t, Options{})
	c.send(setPDU(cmdConfirmedSet, 3, attrWaveList, labelECG, labelLeadI, labelPleth, labelABP, labelResp))
	c.send(pollExtPDU(9, 1, classNumeric, groupAll, time.Minute))
	c.send(pollExtPDU(7, 1, classEnum, groupAll, time.Minute))
	c.send(pollExtPDU(8, 2, classWave, groupAll, time.Minute))
	c.wait(7 * time.Second)
	simulated := known(c.results())
	compared := 0
	for label, want := range real {
		got, ok := simulated[label]
		if !ok {
			continue
		}
		compared++
		for _, id := range want {
			if !slices.Contains(got, id) {
				t.Errorf("label %08X: attribute %04X is missing; it has %04X", label, id, got)
			}
		}
	}
	if compared < 15 {
		t.Errorf("only %d objects compared", compared)
	}
}

func TestTheRequestsOfAnotherClientAreUnderstood(t *testing.T) {
	for name, pdu := range clientRequests(t) {
		switch pdu[0] {
		case spduConnect:
			p, err := parseConnect(pdu)
			if err != nil || !p.extended || p.pollExt&optNumerics == 0 {
				t.Errorf("%s: %+v, %v", name, p, err)
			}
		case spduData:
			r, err := parseRequest(pdu)
			// These two have lengths that do not add up, in the field as well.
			wrong := name == "poll_request_msg4" || name == "ext_poll_request_msg2"
			if (err != nil) != wrong {
				t.Errorf("%s: %+v, %v", name, r, err)
			}
		}
	}
	_, c := open(t, Options{})
	all := clientRequests(t)
	for name, class := range map[string]uint16{"poll_mds_request_msg": classMDS, "poll_request_msg": classNumeric, "poll_request_msg3": classPatient,
		"keep_alive_msg": classMDS, "keep_alive_msg2": classAlarms, "ext_poll_request_msg5": classNumeric, "ext_poll_request_wave_msg3": classWave,
		"ext_poll_request_alert_msg": classAlarms} {
		d, _ := decodeOne(t, c, all[name])
		if d.invoke != binary.BigEndian.Uint16(all[name][8:]) || d.class != class {
			t.Errorf("%s: answer to %04X about class %04X", name, d.invoke, d.class)
		}
		c.send(abortPDU)
		c.wait(time.Second)
		c.associate(1)
	}
}

func TestTheFramedExamplesAreUnderstood(t *testing.T) {
	n := 0
	for line := range bytes.Lines(shared(t, "rs232-framed-examples.txt")) {
		name, text, ok := bytes.Cut(line, []byte(": "))
		if !ok || bytes.HasPrefix(line, []byte("#")) || bytes.Contains(name, []byte("vector")) {
			continue
		}
		n++
		frame := unhex(t, string(text))
		var d deframer
		got := deframe(&d, frame)
		if len(got) != 1 || d.bad != 0 || !bytes.Equal(appendFrame(nil, got[0]), frame) {
			t.Errorf("%s: %d frames, %d bad", name, len(got), d.bad)
		}
	}
	if n < 6 {
		t.Errorf("only %d examples", n)
	}
}

func TestTheAcceptIsThatOfTheRealMonitor(t *testing.T) {
	var request []byte
	for _, r := range recordedSession(t) {
		switch {
		case r.Data[0] == spduConnect:
			request = r.Data
		case r.Data[0] == spduAccept:
			asked, err := parseConnect(request)
			if err != nil {
				t.Fatal(err)
			}
			m := newMonitor(t, Options{})
			if got := acceptPDU(m.grant(asked)); !bytes.Equal(got, r.Data) {
				t.Errorf("accept\n%x, recorded\n%x", got, r.Data)
			}
			granted, err := parseAccept(r.Data)
			if err != nil || granted != m.grant(asked) || granted.period != 40*8000 || granted.mtuTx != 1456 {
				t.Errorf("granted %+v, %v", granted, err)
			}
		}
	}
}
