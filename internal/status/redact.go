package status

import (
	"bytes"
	"net"
	"sync"
)

// limitedConn gives its place back once, when it is closed.
type limitedConn struct {
	net.Conn
	once sync.Once
	free chan struct{}
}

func (c *limitedConn) Close() error {
	c.once.Do(func() { <-c.free })
	return c.Conn.Close()
}

// patientSegments are the segments that say who somebody is.
var patientSegments = [][]byte{[]byte("PID"), []byte("PD1"), []byte("NK1"), []byte("PV1"), []byte("PV2"), []byte("NTE"), []byte("IN1"), []byte("MRG")}

// Redact is the message without what says who the patient is: of the segments
// about persons only the names stay, and of observations that are texts, which
// somebody may have typed, everything but the text. It works on segments and
// field separators alone, so that a damaged message gets no way around it:
// whatever follows an unknown start of a segment stays out as well.
func Redact(message []byte) []byte {
	out := make([]byte, 0, len(message))
	separator := byte('|')
	if len(message) > 3 && bytes.HasPrefix(message, []byte("MSH")) {
		separator = message[3]
	}
	for segment := range bytes.FieldsFuncSeq(message, func(r rune) bool { return r == '\r' || r == '\n' }) {
		out = append(redactSegment(out, segment, separator), '\r')
	}
	return out
}

func redactSegment(out, segment []byte, separator byte) []byte {
	name, _, _ := bytes.Cut(segment, []byte{separator})
	switch {
	case string(name) == "OBX":
		return redactOBX(out, segment, separator)
	case string(name) == "MSH" || string(name) == "OBR" || string(name) == "MSA" || string(name) == "ERR":
		return append(out, segment...)
	}
	for _, known := range patientSegments {
		if bytes.Equal(name, known) {
			return append(append(append(out, name...), separator), "REDACTED"...)
		}
	}
	return append(out, "REDACTED"...)
}

// redactOBX takes OBX-5 out where OBX-2 is a type of text.
func redactOBX(out, segment []byte, separator byte) []byte {
	fields := bytes.Split(segment, []byte{separator})
	if len(fields) > 5 && len(fields[5]) > 0 {
		switch string(fields[2]) {
		case "NM", "SN", "NA", "CWE", "CE", "CF", "DTM", "TM", "DT":
		default:
			fields[5] = []byte("REDACTED")
		}
	}
	return append(out, bytes.Join(fields, []byte{separator})...)
}
