package inspect

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"slices"
)

// Content types of records and the messages of a handshake (RFC 5246, RFC 8446).
const (
	typeChangeCipherSpec = 20
	typeAlert            = 21
	typeHandshake        = 22
	typeApplicationData  = 23

	messageClientHello       = 1
	messageServerHello       = 2
	messageNewSessionTicket  = 4
	messageCertificate       = 11
	messageServerKeyExchange = 12
	messageRequest           = 13
	messageServerHelloDone   = 14
	messageStatus            = 22
)

const (
	recordHead  = 5
	maxFragment = 1 << 14
	messageHead = 4
)

// A stream takes one direction apart: bytes into records, records into messages.
// It holds what came and has not passed.
type stream struct {
	from  string // who sends, in texts
	limit int    // of what is held, in bytes

	raw    []byte // what came and has not passed
	at     int    // raw[:at] was taken apart
	passes int    // raw[:passes] may go on

	pending []byte // of handshake records, not yet a message
}

// A unit is one message of a handshake, or the content of another record.
type unit struct {
	content byte   // type of the record
	message byte   // type of the message, in a handshake; else 0, which nothing here accepts
	body    []byte // of the message without its head, or of the record; it stays
	last    bool   // the record ends with it
}

// pass gives what may go on, and forgets it.
func (s *stream) pass() []byte {
	out := s.raw[:s.passes:s.passes]
	s.raw, s.at, s.passes = s.raw[s.passes:], s.at-s.passes, 0
	return out
}

// next is the next unit; ok is false where more bytes are needed.
func (s *stream) next() (u unit, ok bool, err error) {
	for {
		if u, ok, err = s.message(); ok || err != nil {
			return u, ok, err
		}
		content, body, ok, err := s.record()
		if !ok || err != nil {
			return unit{}, false, err
		}
		if content != typeHandshake {
			if len(s.pending) > 0 {
				return unit{}, false, s.malformed(alertUnexpectedMessage, "a record of type %d in the middle of a handshake message", content)
			}
			return unit{content: content, body: body, last: true}, true, nil
		}
		if s.pending == nil {
			s.pending = body // no copy where no message goes over records
		} else {
			s.pending = append(s.pending, body...)
		}
	}
}

// message takes a message off what is pending. A declared length is believed
// only within the limit, and nothing is allocated for it.
func (s *stream) message() (u unit, ok bool, err error) {
	if len(s.pending) < messageHead {
		return unit{}, false, nil
	}
	head := binary.BigEndian.Uint32(s.pending)
	n := messageHead + int(head&0xffffff)
	if n > s.limit {
		return unit{}, false, s.malformed(alertDecode, "a handshake message of %d bytes; %d are the limit", n, s.limit)
	}
	if len(s.pending) < n {
		return unit{}, false, nil
	}
	u = unit{content: typeHandshake, message: byte(head >> 24), body: s.pending[messageHead:n:n], last: len(s.pending) == n}
	if s.pending = s.pending[n:]; u.last {
		s.pending = nil
	}
	return u, true, nil
}

// record takes a record off what came. The limits are those of RFC 5246,
// section 6.2.1, which also forbids handshake records of no length, and ours of
// what is held, which does not depend on how the bytes came in.
func (s *stream) record() (content byte, body []byte, ok bool, err error) {
	b := s.raw[s.at:]
	if len(b) < recordHead {
		return 0, nil, false, nil
	}
	n := int(binary.BigEndian.Uint16(b[3:]))
	switch {
	case b[0]&0x80 != 0 && b[2] == messageClientHello:
		return 0, nil, false, s.cut(RuleVersion, alertProtocolVersion, "a hello of SSL 2")
	case b[0] < typeChangeCipherSpec || b[0] > typeApplicationData || b[1] != 3 || b[2] > 3:
		return 0, nil, false, s.foreign(b[:recordHead])
	case n == 0 || n > maxFragment:
		alert := alertRecordOverflow
		if n == 0 {
			alert = alertUnexpectedMessage // RFC 8446, section 5.1
		}
		return 0, nil, false, s.malformed(alert, "a record of %d bytes; 1 to %d are allowed", n, maxFragment)
	case s.at+recordHead+n > s.limit:
		return 0, nil, false, s.malformed(alertRecordOverflow, "more than %d bytes without a decision", s.limit)
	case len(b) < recordHead+n:
		return 0, nil, false, nil
	}
	s.at += recordHead + n
	return b[0], b[recordHead : recordHead+n : recordHead+n], true, nil
}

// recordOf is a message as a record; nil where it does not fit into one.
func recordOf(message byte, body []byte) []byte {
	n := messageHead + len(body)
	if n > maxFragment {
		return nil
	}
	head := []byte{typeHandshake, 3, 3, byte(n >> 8), byte(n), message, 0, byte(len(body) >> 8), byte(len(body))}
	return slices.Concat(head, body)
}

// protocols are what comes in place of TLS, by how it begins.
var protocols = []struct {
	name   string
	begins []string
}{
	{"an HL7 message without TLS", []string{"\x0bMSH", "\x0bFHS", "\x0bBHS", "MSH|", "FHS|", "BHS|"}},
	{"an MLLP block without TLS", []string{"\x0b"}},
	{"plain HTTP", []string{"GET ", "PUT ", "POST ", "HEAD ", "PATCH", "DELET", "OPTIO", "CONNE", "TRACE", "PRI *", "HTTP/"}},
	{"SSH", []string{"SSH-"}},
	{"a header of the PROXY protocol, which is not understood here", []string{"PROXY", "\r\n\r\n\x00"}},
}

// foreign is a refusal of what is no TLS. It tells the kind, and no byte of it:
// that may be a patient's.
func (s *stream) foreign(b []byte) *CutError {
	for _, p := range protocols {
		if slices.ContainsFunc(p.begins, func(begin string) bool { return bytes.HasPrefix(b, []byte(begin)) }) {
			e := s.malformed(alertUnexpectedMessage, "%s", p.name)
			e.Next = "have TLS switched on at the " + s.from + ", or see what else is there"
			return e
		}
	}
	return s.malformed(alertUnexpectedMessage, "something that is no TLS record")
}

func (s *stream) malformed(alert tls.AlertError, format string, args ...any) *CutError {
	return s.cut(RuleFormat, alert, format, args...)
}

// cut is a refusal of what this side sent.
func (s *stream) cut(rule Rule, alert tls.AlertError, format string, args ...any) *CutError {
	return cut(rule, alert, "see what the "+s.from+" speaks there: TLS 1.2 or 1.3 as their RFCs describe them", "the "+s.from+" sent "+format, args...)
}
