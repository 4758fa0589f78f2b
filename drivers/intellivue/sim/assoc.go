package sim

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

// Types of session protocol data units (ISO 8327, reduced).
const (
	spduConnect    = 0x0D
	spduAccept     = 0x0E
	spduRefuse     = 0x0C
	spduFinish     = 0x09
	spduDisconnect = 0x0A
	spduAbort      = 0x19
	spduData       = 0xE1
)

// The fixed parts of the association messages. They are the presentation and
// ACSE layers in BER with indefinite lengths, which the protocol treats as
// opaque strings.
var (
	sessionData = []byte{0x05, 0x08, 0x13, 0x01, 0x00, 0x16, 0x01, 0x02, 0x80, 0x00, 0x14, 0x02, 0x00, 0x02}

	// acceptHead is the presentation CPA up to the transfer syntaxes, then ACSE AARE: A1 context name,
	// A2 result 0 (accepted), A3 diagnostic 0.
	acceptHead = slices.Concat(
		[]byte{0x31, 0x80, 0xA0, 0x80, 0x80, 0x01, 0x01, 0x00, 0x00, 0xA2, 0x80, 0xA0, 0x03, 0x00, 0x00, 0x01},
		[]byte{0xA5, 0x80, 0x30, 0x80, 0x80, 0x01, 0x00, 0x81, 0x02, 0x51, 0x01, 0x00, 0x00},
		[]byte{0x30, 0x80, 0x80, 0x01, 0x00, 0x81, 0x0C}, philipsOID(2, 1), []byte{0x00, 0x00, 0x00, 0x00},
		[]byte{0x61, 0x80, 0x30, 0x80, 0x02, 0x01, 0x01, 0xA0, 0x80, 0x61, 0x80, 0xA1, 0x80, 0x06, 0x0C}, philipsOID(3, 1),
		[]byte{0x00, 0x00})
	acceptResult = []byte{0xA2, 0x03, 0x02, 0x01, 0x00, 0xA3, 0x05, 0xA1, 0x03, 0x02, 0x01, 0x00}
	refuseResult = []byte{0xA2, 0x03, 0x02, 0x01, 0x01, 0xA3, 0x05, 0xA1, 0x03, 0x02, 0x01, 0x01}
	userInfoHead = []byte{0xBE, 0x80, 0x28, 0x80, 0x02, 0x01, 0x02, 0x81}

	// requestMark ends the fixed part of a request, right before the length of the user information.
	requestMark = slices.Concat([]byte{0xBE, 0x80, 0x28, 0x80, 0x06, 0x0C}, philipsOID(1, 1), []byte{0x02, 0x01, 0x02, 0x81})

	finishPDU = []byte{spduFinish, 0x18, 0xC1, 0x16, 0x61, 0x80, 0x30, 0x80, 0x02, 0x01, 0x01, 0xA0, 0x80,
		0x62, 0x80, 0x80, 0x01, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	disconnectPDU = []byte{spduDisconnect, 0x18, 0xC1, 0x16, 0x61, 0x80, 0x30, 0x80, 0x02, 0x01, 0x01, 0xA0, 0x80,
		0x63, 0x80, 0x80, 0x01, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	abortPDU = []byte{spduAbort, 0x2E, 0x11, 0x01, 0x03, 0xC1, 0x29, 0xA0, 0x80, 0xA0, 0x80, 0x30, 0x80, 0x02, 0x01, 0x01,
		0x06, 0x02, 0x51, 0x01, 0, 0, 0, 0, 0x61, 0x80, 0x30, 0x80, 0x02, 0x01, 0x01, 0xA0, 0x80, 0x64, 0x80, 0x80, 0x01, 0x01,
		0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
)

// philipsOID is the object identifier 1.2.840.10004.1.… in BER.
func philipsOID(kind, arc byte) []byte {
	return []byte{0x2A, 0x86, 0x48, 0xCE, 0x14, 0x02, 0x01, 0x00, 0x00, 0x00, kind, arc}
}

// User information of both sides (MDSEUserInfoStd).
const (
	protocolVersion1    = 0x80000000
	nomenclatureV1      = 0x40000000
	systemClient        = 0x80000000
	systemServer        = 0x00800000
	startHot            = 0x80000000
	profilePoll         = 0x0001
	profileMDIB         = 0x0102
	profilePollExt      = 0xF001
	pollRevision1       = 0x80000000
	optDynamicObjects   = 0x60000000
	optNumerics         = 0x80000000
	optWaves            = 0x08000000
	optEnums            = 0x04000000
	optNumericList      = 0x02000000
	optWaveList         = 0x01000000
	unlimitedBandwidth  = 0xFFFFFFFF
	minTransferUnit     = 300  // the least that the protocol allows
	maxTransferUnit     = 1456 // what a monitor offers
	trailingZeroOctets  = 16   // the ends of the indefinite lengths
	defaultPollExtFlags = optNumerics | optWaves | optEnums | optNumericList | optWaveList
)

// A proposal is what a client asks for in its association request, or what
// the monitor grants.
type proposal struct {
	period         uint32 // least time between two polls, RelativeTime
	mtuRx, mtuTx   uint32 // as seen by whoever says it
	extended       bool   // the extended poll profile is there
	pollExt        uint32
	objectSupport  bool
	unknownProfile int
}

// parseConnect reads an association request.
func parseConnect(p []byte) (proposal, error) {
	body, err := spduBody(p)
	if err != nil {
		return proposal{}, err
	}
	if !bytes.HasPrefix(body, sessionData) {
		return proposal{}, errors.New("association request without the session data of data export")
	}
	at := bytes.Index(body, requestMark)
	if at < 0 {
		return proposal{}, errors.New("association request without user information")
	}
	info, err := berSized(body[at+len(requestMark):])
	if err != nil {
		return proposal{}, err
	}
	return parseUserInfo(info)
}

// parseAccept reads what an accept grants.
func parseAccept(p []byte) (proposal, error) {
	body, err := spduBody(p)
	if err != nil || p[0] != spduAccept {
		return proposal{}, errors.New("no accept")
	}
	at := bytes.Index(body, userInfoHead)
	if at < 0 {
		return proposal{}, errors.New("accept without user information")
	}
	info, err := berSized(body[at+len(userInfoHead):])
	if err != nil {
		return proposal{}, err
	}
	c := cursor{b: info}
	c.take(20) // versions, functional units, system type, startup mode
	return c.profiles()
}

// spduBody checks the length indicator of a session PDU and returns what it covers.
func spduBody(p []byte) ([]byte, error) {
	if len(p) < 2 {
		return nil, errors.New("session PDU shorter than its length")
	}
	n, head := int(p[1]), 2
	if p[1] == 0xFF {
		if len(p) < 4 {
			return nil, errors.New("session PDU shorter than its length")
		}
		n, head = int(binary.BigEndian.Uint16(p[2:])), 4
	}
	if len(p) != head+n {
		return nil, fmt.Errorf("session PDU says %d bytes and has %d", n, len(p)-head)
	}
	return p[head:], nil
}

// berSized returns what a BER definite length covers.
func berSized(p []byte) ([]byte, error) {
	if len(p) == 0 {
		return nil, errors.New("user information has no length")
	}
	n, head := int(p[0]), 1
	if p[0] >= 0x80 {
		size := int(p[0] & 0x7F)
		if size == 0 || size > 2 || len(p) < 1+size {
			return nil, errors.New("length of the user information is none of 1 to 3 bytes")
		}
		n, head = 0, 1+size
		for _, c := range p[1:head] {
			n = n<<8 | int(c)
		}
	}
	if len(p) < head+n {
		return nil, fmt.Errorf("user information says %d bytes and has %d", n, len(p)-head)
	}
	return p[head : head+n], nil
}

func parseUserInfo(info []byte) (proposal, error) {
	c := cursor{b: info}
	protocol, nomenclature := c.u32(), c.u32()
	c.u32() // functional units
	system := c.u32()
	c.u32() // startup mode
	p, err := c.profiles()
	switch {
	case err != nil:
		return p, err
	case protocol&protocolVersion1 == 0 || nomenclature&nomenclatureV1 == 0:
		return p, errors.New("client knows neither version 1 of the protocol nor of the nomenclature")
	case system != systemClient:
		return p, fmt.Errorf("system type %08X is no client", system)
	}
	return p, nil
}

// profiles reads the rest of the user information: options and profiles.
func (c *cursor) profiles() (p proposal, err error) {
	c.attributes(nil)
	var inner error
	polls := false
	c.attributes(func(id uint16, v []byte) {
		switch id {
		case profilePoll:
			polls, inner = true, p.pollProfile(v)
		case profileMDIB:
			p.objectSupport = true
		default:
			p.unknownProfile++
		}
	})
	switch {
	case c.bad || len(c.b) > 0:
		return p, errors.New("user information does not add up")
	case inner != nil:
		return p, inner
	case !polls:
		return p, errors.New("user information without a poll profile")
	}
	return p, nil
}

// pollProfile reads the value of POLL_PROFILE_SUPPORT.
func (p *proposal) pollProfile(v []byte) error {
	c := cursor{b: v}
	c.u32() // revision
	p.period, p.mtuRx, p.mtuTx = c.u32(), c.u32(), c.u32()
	c.u32() // bandwidth
	c.u32() // options
	c.attributes(func(id uint16, v []byte) {
		if id == profilePollExt && len(v) >= 4 {
			p.extended, p.pollExt = true, binary.BigEndian.Uint32(v)
		}
	})
	if c.bad || len(c.b) > 0 {
		return errors.New("poll profile does not add up")
	}
	return nil
}

// appendSPDU appends a session PDU with its length indicator.
func appendSPDU(dst []byte, kind byte, body []byte) []byte {
	return append(appendIndicator(append(dst, kind), len(body)), body...)
}

// appendIndicator appends a session length: one byte, or FF and two.
func appendIndicator(b []byte, n int) []byte {
	if n < 0xFF {
		return append(b, byte(n))
	}
	return u16(append(b, 0xFF), uint16(n))
}

// acceptPDU is the answer that grants g.
func acceptPDU(g proposal) []byte {
	info := appendUserInfo(nil, g)
	user := slices.Concat(acceptHead, acceptResult, userInfoHead)
	if n := len(info); n < 0x80 {
		user = append(user, byte(n))
	} else {
		user = u16(append(user, 0x82), uint16(n))
	}
	user = append(append(user, info...), make([]byte, trailingZeroOctets)...)
	return associationPDU(spduAccept, user)
}

// refusePDU is the answer that grants nothing. No refusal of a real monitor is
// public; this one is an accept in form, with ACSE result 1 (rejected).
func refusePDU() []byte {
	user := slices.Concat(acceptHead, refuseResult, make([]byte, trailingZeroOctets-4))
	return associationPDU(spduRefuse, user)
}

// associationPDU puts user data behind the session data.
func associationPDU(kind byte, user []byte) []byte {
	body := append(appendIndicator(append(slices.Clone(sessionData), 0xC1), len(user)), user...)
	return appendSPDU(nil, kind, body)
}

func appendUserInfo(b []byte, g proposal) []byte {
	b = u32(u32(u32(b, protocolVersion1), nomenclatureV1), 0)
	b = u32(u32(u32(b, systemServer), startHot), 0)
	profiles := []attribute{{id: profilePoll, value: pollProfileValue(g)}}
	if g.objectSupport {
		profiles = append(profiles, attribute{id: profileMDIB, value: objectSupport()})
	}
	return appendAttributes(b, profiles)
}

func pollProfileValue(g proposal) []byte {
	b := u32(u32(nil, pollRevision1), g.period)
	b = u32(u32(u32(b, g.mtuRx), g.mtuTx), unlimitedBandwidth)
	b = u32(b, optDynamicObjects)
	var ext []attribute
	if g.extended {
		ext = append(ext, attribute{id: profilePollExt, value: u32(u32(nil, g.pollExt), 0)})
	}
	return appendAttributes(b, ext)
}

// objectSupport lists the object classes with the most objects that there may be of each.
func objectSupport() []byte {
	classes := [][2]uint16{{classMDS, 1}, {classNumeric, 201}, {classWave, 60},
		{classPatient, 1}, {classAlarms, 1}, {classEnum, 60}}
	return counted(nil, len(classes), func(b []byte) []byte {
		for _, c := range classes {
			b = u32(u16(u16(b, 1), c[0]), uint32(c[1]))
		}
		return b
	})
}
