package pcd

import (
	"bytes"
	"errors"
	"fmt"
	"time"

	"github.com/bedside-gateway/gatewayd/hl7"
	"github.com/bedside-gateway/gatewayd/observation"
)

// An Ack is what a receiver answered: MSA, and ERR where there is one.
type Ack struct {
	Code      string // MSA-1: AA, AE, AR, CA, CE or CR
	ControlID string // MSA-2: the control ID of the message that is answered, perhaps cut to 20 characters
	Errors    []AckError
}

// An AckError is one ERR segment, or one code of an old ERR-1. Its texts are
// the receiver's and may quote a patient's data: do not log them.
type AckError struct {
	Location    string // ERR-2 as it stands, such as OBX^6^5
	Code        string // ERR-3.1, HL7 table 0357: 101 required field missing…
	Text        string // ERR-3.2
	Severity    string // ERR-4: E, F, I or W
	Application string // ERR-5.1
	Diagnostic  string // ERR-7
	User        string // ERR-8
}

// Accepted reports whether the message is the receiver's now. CA and AA count
// alike, whatever MSH-15 and MSH-16 asked for: receivers in the field mix them.
func (a Ack) Accepted() bool { return a.Code == "CA" || a.Code == "AA" }

// Retry reports whether the receiver could not take the message now.
func (a Ack) Retry() bool { return a.Code == "CE" || a.Code == "AE" }

// Rejected reports whether the receiver will never take the message.
func (a Ack) Rejected() bool { return a.Code == "CR" || a.Code == "AR" }

// Enhanced reports whether the answer is an accept acknowledgement of HL7's
// enhanced mode, as MSH-15 AL asks for, and not an application's.
func (a Ack) Enhanced() bool { return len(a.Code) == 2 && a.Code[0] == 'C' }

// Answers reports whether the answer is to the message with this control ID.
// MSA-2 has room for 20 characters only (HL7 v2.6): where cut is set, an answer
// that repeats the first 20 of a longer one counts.
func (a Ack) Answers(controlID string, cut bool) bool {
	if a.ControlID == controlID {
		return a.ControlID != ""
	}
	return cut && len(controlID) > ControlIDLength && a.ControlID == controlID[:ControlIDLength]
}

// Reason is a summary of the errors in codes, without the receiver's texts:
// "101 (required field missing)". It is empty where there are none.
func (a Ack) Reason() string {
	var b []byte
	for i, e := range a.Errors {
		if i > 0 {
			b = append(b, "; "...)
		}
		b = e.appendReason(b)
	}
	return string(b)
}

func (e AckError) appendReason(b []byte) []byte {
	code := e.Code
	name, known := errorNames[code]
	switch {
	case known:
		b = fmt.Appendf(b, "%s (%s)", code, name)
	case code == "":
		b = append(b, "no error code"...)
	default:
		b = append(b, "an error code that HL7 table 0357 does not have"...)
	}
	if location, ok := plainLocation(e.Location); ok {
		b = fmt.Appendf(b, " at %s", location)
	}
	return b
}

// plainLocation lets through what can only be a location.
func plainLocation(s string) (string, bool) {
	for _, c := range []byte(s) {
		if (c < '0' || c > '9') && (c < 'A' || c > 'Z') && c != '^' {
			return "", false
		}
	}
	return s, s != "" && len(s) <= 24
}

// HL7 table 0357.
var errorNames = map[string]string{
	"0": "message accepted", "100": "segment sequence error", "101": "required field missing",
	"102": "data type error", "103": "table value not found", "200": "unsupported message type",
	"201": "unsupported event code", "202": "unsupported processing id", "203": "unsupported version id",
	"204": "unknown key identifier", "205": "duplicate key identifier", "206": "application record locked",
	"207": "application internal error",
}

// maxAck bounds an answer: one with a thousand errors is some 100 kB.
var ackLimits = hl7.Limits{Bytes: 1 << 20, Segments: 2000, Fields: 100}

// ParseAck reads an answer. It is an error if there is no MSA segment, or one
// whose code is none of the six; the error quotes nothing of the answer.
func ParseAck(b []byte) (Ack, error) {
	var m hl7.Message
	if err := m.Parse(b, ackLimits); err != nil {
		return Ack{}, fmt.Errorf("the answer is no acknowledgement: %w", err)
	}
	msa, ok := m.Segment("MSA", 1)
	if !ok {
		return Ack{}, errors.New("the answer is no acknowledgement: it has no MSA segment")
	}
	a := Ack{Code: msa.Field(1).String(), ControlID: msa.Field(2).String()}
	if !a.Accepted() && !a.Retry() && !a.Rejected() {
		return Ack{}, errors.New("the acknowledgement has none of the codes AA, AE, AR, CA, CE and CR in MSA-1")
	}
	for s := range m.Segments() {
		if s.Is("ERR") {
			a.Errors = append(a.Errors, parseERR(s))
		}
	}
	return a, nil
}

func parseERR(s hl7.Segment) AckError {
	e := AckError{
		Location:    string(s.Field(2).Repetition(1).Raw()),
		Code:        s.Field(3).Component(1).String(),
		Text:        s.Field(3).Component(2).String(),
		Severity:    s.Field(4).String(),
		Application: s.Field(5).Component(1).String(),
		Diagnostic:  s.Field(7).String(),
		User:        s.Field(8).String(),
	}
	if e.Code == "" { // before HL7 2.5: ERR-1 segment^sequence^field^code&text
		old := s.Field(1).Component(4)
		e.Code, e.Text = old.Subcomponent(1).String(), old.Subcomponent(2).String()
	}
	return e
}

// AckCode is the acknowledgement that a message asks for in MSH-15 and MSH-16
// (HL7 v2.6, section 2.9): an accept acknowledgement where it wants one, else
// an application acknowledgement, which in the original mode, both empty, is
// the only one. verdict is A, E or R. It is empty where the message wants none.
func AckCode(accept, application string, verdict byte) string {
	wants := func(condition string) bool {
		return condition == "AL" || condition == "SU" && verdict == 'A' || condition == "ER" && verdict != 'A'
	}
	switch {
	case wants(accept):
		return "C" + string(rune(verdict))
	case wants(application), accept == "" && application == "":
		return "A" + string(rune(verdict))
	}
	return ""
}

// AckOptions say what AppendAck cannot take from the message that it answers.
type AckOptions struct {
	// ControlID is the answer's own, MSH-10; it must not be the incoming one.
	ControlID string
	Now       time.Time
	// Application and EUI64 replace the receiver's name as the sender wrote it
	// in MSH-5, where Application is not empty.
	Application string
	EUI64       observation.EUI64
	Errors      []AckError
}

// AppendAck appends the answer to an incoming message: sender and receiver
// swapped, MSH-9 ACK with the trigger event of the message, its processing ID,
// version and character set, MSA, and an ERR for each error. It fails where
// incoming is no message or has no control ID, so that no answer could be
// matched.
func AppendAck(dst, incoming []byte, code string, o AckOptions) ([]byte, error) {
	var m hl7.Message
	if err := m.Parse(incoming, hl7.Limits{}); err != nil {
		return dst, err
	}
	msh := m.At(1)
	a := Ack{Code: code}
	switch {
	case !a.Accepted() && !a.Retry() && !a.Rejected():
		return dst, fmt.Errorf("%q is no acknowledgement code", code)
	case msh.Field(10).Empty():
		return dst, errors.New("the message has no control ID (MSH-10): an answer could not be matched")
	case o.ControlID == "" || msh.Field(10).Is(o.ControlID):
		return dst, errors.New("an answer needs a control ID of its own")
	}
	dst = appendAckHeader(dst, msh, o)
	dst = append(dst, "MSA|"...)
	dst = append(dst, code...)
	dst = append(dst, '|')
	dst = append(appendID(dst, m.Delimiters(), msh.Field(10)), '\r')
	for _, e := range o.Errors {
		dst = appendERR(dst, e)
	}
	return dst, nil
}

// appendID repeats a control ID: byte for byte where that is possible, since
// senders compare bytes, else as the text that it is.
func appendID(dst []byte, d hl7.Delimiters, id hl7.Field) []byte {
	if d == hl7.Standard {
		return append(dst, id.Raw()...)
	}
	return hl7.AppendEscaped(dst, id.String())
}

func appendAckHeader(dst []byte, msh hl7.Segment, o AckOptions) []byte {
	field := func(i int) {
		dst = msh.Field(i).AppendTo(append(dst, '|'), hl7.Standard)
	}
	dst = append(dst, `MSH|^~\&`...)
	if o.Application != "" {
		dst = hl7.AppendEscaped(append(dst, '|'), o.Application)
		if o.EUI64 != 0 {
			dst = append(o.EUI64.Append(append(dst, '^')), "^EUI-64"...)
		}
	} else {
		field(5)
	}
	field(6)
	field(3)
	field(4)
	dst = hl7.AppendTime(append(dst, '|'), o.Now)
	dst = append(dst, "||ACK"...)
	if event := msh.Field(9).Component(2); !event.Empty() {
		dst = event.AppendTo(append(dst, '^'), hl7.Standard)
		dst = append(dst, "^ACK"...)
	}
	dst = hl7.AppendEscaped(append(dst, '|'), o.ControlID)
	field(11)
	field(12)
	dst = append(dst, "|||NE|NE|"...)
	dst = msh.Field(18).AppendTo(append(dst, '|'), hl7.Standard)
	return append(bytes.TrimRight(dst, "|"), '\r')
}

func appendERR(dst []byte, e AckError) []byte {
	dst = append(dst, "ERR||"...)
	dst = append(dst, locationOnly(e.Location)...)
	dst = hl7.AppendEscaped(append(dst, '|'), e.Code)
	text := e.Text
	if text == "" {
		text = errorNames[e.Code]
	}
	if text != "" {
		dst = hl7.AppendEscaped(append(dst, '^'), text)
		dst = append(dst, "^HL70357"...)
	}
	severity := e.Severity
	if severity == "" {
		severity = "E"
	}
	dst = hl7.AppendEscaped(append(dst, '|'), severity)
	dst = hl7.AppendEscaped(append(dst, '|'), e.Application)
	dst = append(dst, '|')
	dst = hl7.AppendEscaped(append(dst, '|'), e.Diagnostic)
	dst = hl7.AppendEscaped(append(dst, '|'), e.User)
	return append(bytes.TrimRight(dst, "|"), '\r')
}

func locationOnly(s string) string {
	s, _ = plainLocation(s)
	return s
}

// ControlID reads MSH-10 of a message.
func ControlID(b []byte) (string, error) {
	// Only the first segment matters; the rest is not looked at.
	if i := bytes.IndexAny(b, "\r\n"); i > 0 {
		b = b[:i]
	}
	var m hl7.Message
	if err := m.Parse(b, hl7.Limits{}); err != nil {
		return "", err
	}
	id := m.At(1).Field(10)
	if id.Empty() {
		return "", errors.New("the message has no control ID (MSH-10)")
	}
	return id.String(), nil
}
