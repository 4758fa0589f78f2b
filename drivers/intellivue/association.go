package intellivue

import (
	"bytes"
	"errors"
	"fmt"
)

// The messages that make and end an association are ISO session PDUs with
// presentation and ACSE content in them (ISO 8327-1, 8823-1, 8650-1), all of it
// fixed bytes but for the user information (Data Export Programming Guide,
// association control protocol).
const (
	spduConnect    = 0x0D // CN, association request
	spduAccept     = 0x0E // AC
	spduRefuse     = 0x0C // RF
	spduFinish     = 0x09 // FN, release request
	spduDisconnect = 0x0A // DN, release response
	spduAbort      = 0x19 // AB
)

// isSession reports whether a message of this first byte is a session PDU.
func isSession(first byte) bool {
	switch first {
	case spduConnect, spduAccept, spduRefuse, spduFinish, spduDisconnect, spduAbort:
		return true
	}
	return false
}

var (
	// connectItems are the session parameters of request and response:
	// protocol options, version, user requirements.
	connectItems = []byte("\x05\x08\x13\x01\x00\x16\x01\x02\x80\x00\x14\x02\x00\x02")
	// requestHeader is what stands before the user information of a request:
	// presentation contexts for ACSE and MDSE, and an ACSE AARQ.
	requestHeader = []byte("" +
		"\x31\x80\xA0\x80\x80\x01\x01\x00\x00\xA2\x80\xA0\x03\x00\x00\x01\xA4\x80\x30\x80\x02\x01\x01\x06\x04\x52\x01\x00\x01\x30\x80" +
		"\x06\x02\x51\x01\x00\x00\x00\x00\x30\x80\x02\x01\x02\x06\x0C\x2A\x86\x48\xCE\x14\x02\x01\x00\x00\x00\x01\x01\x30\x80\x06\x0C" +
		"\x2A\x86\x48\xCE\x14\x02\x01\x00\x00\x00\x02\x01\x00\x00\x00\x00\x00\x00\x61\x80\x30\x80\x02\x01\x01\xA0\x80\x60\x80\xA1\x80" +
		"\x06\x0C\x2A\x86\x48\xCE\x14\x02\x01\x00\x00\x00\x03\x01\x00\x00\xBE\x80\x28\x80\x06\x0C\x2A\x86\x48\xCE\x14\x02\x01\x00\x00" +
		"\x00\x01\x01\x02\x01\x02\x81")
	// userInfoMarks are the ends of the headers that are seen before the user
	// information, in requests and in both forms of the response.
	userInfoMarks = [][]byte{
		[]byte("\x00\x01\x01\x02\x01\x02\x81"),
		[]byte("\xBE\x80\x28\x80\x02\x01\x02\x81"),
		[]byte("\xBE\x80\x28\x80\x81"),
	}
	// associationTrailer closes what the header opened.
	associationTrailer = make([]byte, 16)

	releaseRequest  = []byte("\x09\x18\xC1\x16\x61\x80\x30\x80\x02\x01\x01\xA0\x80\x62\x80\x80\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00")
	releaseResponse = []byte("\x0A\x18\xC1\x16\x61\x80\x30\x80\x02\x01\x01\xA0\x80\x63\x80\x80\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00")
	abortRequest    = []byte("\x19\x2E\x11\x01\x03\xC1\x29\xA0\x80\xA0\x80\x30\x80\x02\x01\x01\x06\x02\x51\x01\x00\x00\x00\x00" +
		"\x61\x80\x30\x80\x02\x01\x01\xA0\x80\x64\x80\x80\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00")
)

// A session PDU: its parameters are bytes to the codec, but those of a request
// or a response are split around the user information.
type spdu struct {
	kind byte
	// items are the parameters before the user data (C1), header what stands in
	// the user data before the user information, trailer what stands after it.
	items, header []byte
	hasInfo       bool
	info          userInfo
	trailer       []byte
}

var errSession = errors.New("session message with wrong lengths")

// parseSPDU reads a session PDU that fills p.
func parseSPDU(p []byte) (s spdu, err error) {
	r := reader{b: p}
	s.kind = r.u8()
	body := r.take(readLI(&r))
	if !r.done() || !isSession(s.kind) {
		return s, errSession
	}
	s.items, s.header = splitItems(body)
	if s.kind != spduConnect && s.kind != spduAccept {
		return s, nil
	}
	if err := s.splitInfo(); err != nil {
		return s, err
	}
	return s, nil
}

// readLI reads a length indicator: one byte, or FF and two bytes.
func readLI(r *reader) int {
	if n := r.u8(); n != 0xFF {
		return int(n)
	}
	return int(r.u16())
}

func appendLI(b []byte, n int) []byte {
	if n < 0xFF {
		return append(b, byte(n))
	}
	return append(b, 0xFF, byte(n>>8), byte(n))
}

// splitItems finds the user data parameter (C1) that runs to the end of body.
func splitItems(body []byte) (items, data []byte) {
	for i := range body {
		if body[i] != 0xC1 {
			continue
		}
		r := reader{b: body[i+1:]}
		if data := r.take(readLI(&r)); r.done() {
			return body[:i:i], data
		}
	}
	return body, nil
}

// known reports whether the message has what only an association of this
// protocol has in it, and not just lengths that happen to fit.
func (s *spdu) known() bool {
	switch s.kind {
	case spduConnect, spduAccept:
		return s.hasInfo
	}
	return len(s.header) >= 8 && (s.header[0] == 0x61 || bytes.Contains(s.header, []byte("\x30\x80")))
}

func (s *spdu) splitInfo() error {
	for _, mark := range userInfoMarks {
		i := bytes.Index(s.header, mark)
		if i < 0 {
			continue
		}
		data := s.header
		r := reader{b: data[i+len(mark):]}
		info := r.take(readASN1Length(&r))
		if r.bad {
			return errSession
		}
		var err error
		if s.info, err = parseUserInfo(info); err != nil {
			return err
		}
		s.hasInfo, s.header, s.trailer = true, data[:i+len(mark):i+len(mark)], r.b
		return nil
	}
	return errors.New("association message without user information")
}

// readASN1Length reads one byte below 80, or 81 and one, or 82 and two bytes.
func readASN1Length(r *reader) int {
	switch n := r.u8(); {
	case n < 0x80:
		return int(n)
	case n == 0x81:
		return int(r.u8())
	case n == 0x82:
		return int(r.u16())
	}
	r.bad = true
	return 0
}

func appendASN1Length(b []byte, n int) []byte {
	if n < 0x80 {
		return append(b, byte(n))
	}
	return append(b, 0x82, byte(n>>8), byte(n))
}

func (s *spdu) append(b []byte) []byte {
	data := append([]byte(nil), s.header...)
	if s.hasInfo {
		info := s.info.append(nil)
		data = appendASN1Length(data, len(info))
		data = append(append(data, info...), s.trailer...)
	}
	body := append([]byte(nil), s.items...)
	if s.header != nil {
		body = append(appendLI(append(body, 0xC1), len(data)), data...)
	}
	return append(appendLI(append(b, s.kind), len(body)), body...)
}

// userInfo is MDSEUserInfoStd.
type userInfo struct {
	protocol, nomenclature, functions, system, startup uint32
	options, profiles                                  attributes
}

// The constants of the user information.
const (
	protocolVersion1     = 0x80000000
	nomenclatureVersion1 = 0x40000000
	systemClient         = 0x80000000
	startupCold          = 0x20000000

	profilePoll     = 0x0001 // POLL_PROFILE_SUPPORT
	profileObjects  = 0x0102 // MDIB_OBJ_SUPPORT
	profilePollExt  = 0xF001 // POLL_PROFILE_EXT
	pollRevision1   = 0x80000000
	dynamicObjects  = 0x60000000
	extNumerics     = 0x80000000 // numerics of each second
	extAverages     = 0x70000000 // averaged numerics, 12 s, 60 s, 300 s
	extWaves        = 0x08000000
	extEnumerations = 0x04000000
)

func parseUserInfo(p []byte) (u userInfo, err error) {
	r := reader{b: p}
	u.protocol, u.nomenclature, u.functions = r.u32(), r.u32(), r.u32()
	u.system, u.startup = r.u32(), r.u32()
	options, profiles := r.list(), r.list()
	if !r.done() {
		return u, fmt.Errorf("user information of %d bytes: %w", len(p), errSession)
	}
	var ok1, ok2 bool
	u.options, ok1 = newAttributes(options)
	u.profiles, ok2 = newAttributes(profiles)
	if !ok1 || !ok2 {
		return u, errors.New("association message with a wrong list of profiles")
	}
	return u, nil
}

func (u *userInfo) append(b []byte) []byte {
	for _, v := range [...]uint32{u.protocol, u.nomenclature, u.functions, u.system, u.startup} {
		b = appendU32(b, v)
	}
	return u.profiles.append(u.options.append(b))
}

// A pollProfile is what the two sides agree on for polls.
type pollProfile struct {
	revision            uint32
	minPeriod           relativeTime
	maxReceive, maxSend uint32 // bytes in one message
	bandwidth           uint32
	options             uint32
	extended            bool // POLL_PROFILE_EXT is there
	extOptions          uint32
	extendedAttributes  attributes
}

func parsePollProfile(p []byte) (f pollProfile, ok bool) {
	r := reader{b: p}
	f.revision, f.minPeriod = r.u32(), relativeTime(r.u32())
	f.maxReceive, f.maxSend, f.bandwidth, f.options = r.u32(), r.u32(), r.u32(), r.u32()
	packages := r.list()
	if !r.done() {
		return f, false
	}
	a, ok := newAttributes(packages)
	if !ok {
		return f, false
	}
	for {
		id, value, more := a.next()
		if !more {
			return f, true
		}
		if id != profilePollExt {
			continue
		}
		r := reader{b: value}
		f.extOptions = r.u32()
		list := r.list()
		if f.extendedAttributes, f.extended = newAttributes(list); !f.extended || !r.done() {
			return f, false
		}
	}
}

// append writes the profile with its extension as the only package.
func (f *pollProfile) append(b []byte) []byte {
	for _, v := range [...]uint32{f.revision, uint32(f.minPeriod), f.maxReceive, f.maxSend, f.bandwidth, f.options} {
		b = appendU32(b, v)
	}
	if !f.extended {
		return appendU32(b, 0)
	}
	b = appendU16(b, 1)
	b, list := open(b)
	b, value := open(appendU16(b, profilePollExt))
	b = f.extendedAttributes.append(appendU32(b, f.extOptions))
	return shut(shut(b, value), list)
}

// pollProfile finds the poll profile among the profiles.
func (u *userInfo) pollProfile() (pollProfile, bool) {
	for a := u.profiles; ; {
		id, value, ok := a.next()
		if !ok {
			return pollProfile{}, false
		}
		if id == profilePoll {
			return parsePollProfile(value)
		}
	}
}

// objectSupport says how many objects of each class we take.
var objectSupport = [...]struct {
	class uint16
	max   uint32
}{{classMDS, 1}, {classNumeric, 201}, {classWave, 60}, {classEnumeration, 16}, {classPatient, 1}, {classAlarms, 1}}

// appendConnect appends an association request.
func appendConnect(b []byte, f pollProfile) []byte {
	profiles := appendU16(nil, profilePoll)
	profiles, value := open(profiles)
	profiles = shut(f.append(profiles), value)

	profiles, value = open(appendU16(profiles, profileObjects))
	profiles = appendU16(profiles, uint16(len(objectSupport)))
	profiles, entries := open(profiles)
	for _, o := range objectSupport {
		profiles = appendU32(appendU16(appendU16(profiles, partitionOfClasses), o.class), o.max)
	}
	profiles = shut(shut(profiles, entries), value)

	s := spdu{
		kind: spduConnect, items: connectItems, header: requestHeader, hasInfo: true, trailer: associationTrailer,
		info: userInfo{
			protocol: protocolVersion1, nomenclature: nomenclatureVersion1, system: systemClient, startup: startupCold,
			profiles: attributes{2, profiles},
		},
	}
	return s.append(b)
}
