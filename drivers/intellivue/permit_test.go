package intellivue

import (
	"bytes"
	"testing"

	"github.com/bedside-gateway/gatewayd/drivers"
)

// set is a confirmed set of one attribute.
func set(object objectID, operator, id uint16, value []byte) []byte {
	s := setRequest{object: object, list: list{1, appendAttribute(u16(operator), id, value)}}
	d := pdu{context: dataContext, kind: roInvoke, invoke: 1, command: cmdConfirmedSet}
	return d.append(nil, s.append)
}

// dangerous are messages that must never go out.
func dangerous() map[string][]byte {
	labels := appendTextIDs(nil, []uint32{0x20102})
	invoke := func(command uint16, body []byte) []byte {
		d := pdu{context: dataContext, kind: roInvoke, invoke: 1, command: command}
		return d.append(nil, func(b []byte) []byte { return append(b, body...) })
	}
	act := func(object objectID, kind uint16, info []byte) []byte {
		a := action{object: object, kind: kind}
		return invoke(cmdConfirmedAction, a.append(nil, true, func(b []byte) []byte { return append(b, info...) }))
	}
	poll := pollRequest{number: 1, partition: 1, class: 6}
	good := act(theMDS, actionPoll, poll.append(nil, false))
	otherClass := pollRequest{number: 1, partition: 1, class: 0x0029}
	otherList := pollRequest{number: 1, partition: 1, class: 6, list: attrs(attr{0xF13D, u32(1)})}
	g := getRequest{object: theMDS, ids: list{1, u16(attrBedLabel)}}
	wrongContext := bytes.Clone(good)
	wrongContext[3] = 9
	return map[string][]byte{
		"a set of the bed label":               set(theMDS, operatorReplace, attrBedLabel, text("x")),
		"a set of the patient's name":          set(objectID{classPatient, 0, 80}, operatorReplace, attrFamilyName, text("x")),
		"a set of the clock":                   set(theMDS, operatorReplace, attrTimeAbs, make([]byte, 8)),
		"a wave list for another object":       set(objectID{classNumeric, 1, 7}, operatorReplace, attrWaveList, labels),
		"a wave list with another operator":    set(theMDS, 3, attrWaveList, labels),
		"a wave list that is none":             set(theMDS, operatorReplace, attrWaveList, labels[:3]),
		"an unconfirmed set":                   invoke(cmdSet, set(theMDS, operatorReplace, attrWaveList, labels)[14:]),
		"another action":                       act(theMDS, 0x0C17, poll.append(nil, false)),
		"an action on another object":          act(objectID{classNumeric, 1, 7}, actionPoll, poll.append(nil, false)),
		"a poll of another class":              act(theMDS, actionPoll, otherClass.append(nil, false)),
		"a poll with another attribute":        act(theMDS, actionPollExt, otherList.append(nil, true)),
		"a get of another attribute":           invoke(cmdGet, g.append(nil)),
		"an event":                             createEvent(1, 0, attrs()),
		"an error":                             errorReply(1, 2, nil),
		"a poll result":                        reply{invoke: 1, class: 6}.bytes(),
		"another presentation context":         wrongContext,
		"a poll with bytes behind it":          append(bytes.Clone(good), 0),
		"an association response":              acceptOf(usualProfile()),
		"a refusal":                            refusal,
		"a release with another byte":          append(bytes.Clone(releaseRequest[:len(releaseRequest)-1]), 1),
		"an association request as the server": bytes.Replace(appendConnect(nil, usualProfile()), u32(systemClient), u32(0x00800000), 2),
		"nothing":                              nil,
		"a line of text":                       []byte("\r\nREMOTE ON\r\n"),
	}
}

func TestNothingDangerousIsPermitted(t *testing.T) {
	for name, user := range dangerous() {
		if (Driver{}).Permit(user) == nil {
			t.Errorf("%s is permitted as a datagram", name)
		}
		if (Driver{}).Permit(appendFrame(nil, user)) == nil {
			t.Errorf("%s is permitted on the line", name)
		}
	}
	good := appendFrame(nil, releaseRequest)
	for name, frame := range map[string][]byte{
		"two frames in one":     append(bytes.Clone(good), good...),
		"bytes behind a frame":  append(bytes.Clone(good), 0),
		"bytes before a frame":  append([]byte{0}, good...),
		"a wrong check value":   append(bytes.Clone(good[:len(good)-2]), 0, frameEnd),
		"half a frame":          good[:10],
		"a frame within noise":  append([]byte("xx"), good...),
		"begins in a row":       append([]byte{frameBegin}, good...),
		"a needless escape":     append([]byte{frameBegin, frameEscape, 0x11 ^ escapeMask}, good[2:]...),
		"a frame in a datagram": appendFrame(nil, good),
	} {
		if (Driver{}).Permit(frame) == nil {
			t.Errorf("%s: permitted", name)
		}
	}
}

func TestTheRequestsOfAClientInTheFieldArePermittedOrNot(t *testing.T) {
	refused := map[string]bool{
		"poll_request_msg4":     true, // lengths that do not fit
		"ext_poll_request_msg2": true, // likewise
	}
	for name, user := range fieldRequests(t, "requests-vscapturemp.txt") {
		if err := (Driver{}).Permit(user); (err != nil) != refused[name] {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestIdentifyIsCertainOnlyOfWholeCheckedMessages(t *testing.T) {
	message := createEvent(1, 80_000, mdsAttributes(0x4000, 80_000, shownAtCreate))
	frame := appendFrame(nil, message)
	wrong := bytes.Clone(frame)
	wrong[20] ^= 1
	foreign := bytes.Repeat([]byte("SPO2=097% BPM=060\r\n"), 40)
	for name, c := range map[string]struct {
		received []byte
		want     drivers.Match
	}{
		"nothing":                  {nil, drivers.NeedMore},
		"a datagram":               {message, drivers.Certain},
		"an accept":                {acceptOf(usualProfile()), drivers.Certain},
		"a release response":       {releaseResponse, drivers.Certain},
		"an abort":                 {abortRequest, drivers.Certain},
		"a refusal":                {refusal, drivers.Certain},
		"a frame":                  {frame, drivers.Certain},
		"a frame in noise":         {append([]byte("\x00\xff~~"), append(bytes.Clone(frame), "xx"...)...), drivers.Certain},
		"half a frame":             {frame[:100], drivers.NeedMore},
		"a begin":                  {[]byte{frameBegin}, drivers.NeedMore},
		"a frame with a wrong FCS": {wrong, drivers.NeedMore},
		"text":                     {foreign, drivers.NoMatch},
		"a little text":            {foreign[:20], drivers.NeedMore},
		"zeros":                    {make([]byte, 1000), drivers.NoMatch},
	} {
		if got := (Driver{}).Identify(c.received); got != c.want {
			t.Errorf("%s: %d, want %d", name, got, c.want)
		}
	}
}

func TestSplitFindsTheEndsOfDatagramsStoredInARow(t *testing.T) {
	var row []byte
	var want []int
	for _, c := range recordedSession(t) {
		row = append(row, c.data...)
		want = append(want, len(c.data))
	}
	row = append(row, refusal...)
	for i, n := range append(want, len(refusal)) {
		if got := (Driver{}).Split(row); got != n {
			t.Fatalf("datagram %d: %d bytes, want %d", i, got, n)
		}
		row = row[n:]
	}
	for _, p := range [][]byte{nil, {1}, []byte("text"), releaseRequest[:20], make([]byte, 40)} {
		if got := (Driver{}).Split(p); got != 0 {
			t.Errorf("%x: %d", p, got)
		}
	}
}
