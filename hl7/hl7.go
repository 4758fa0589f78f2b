// Package hl7 is the syntax of HL7 version 2 (the "ER7" encoding, HL7 v2.6
// chapter 2): segments, fields, repetitions, components, subcomponents and
// escape sequences, read from bytes and written to bytes.
//
// It knows no message type, no profile and no meaning of a field, and it never
// opens a connection or a file. Package pcd builds and judges messages with it;
// northbound and the reference platform read acknowledgements and messages
// through pcd.
//
// A Message indexes the bytes that it was parsed from and copies none of them;
// parsing again into the same Message allocates nothing. All numbers count
// from 1, as HL7 does: the first segment, PID-3, repetition 1, component 1.
//
// No error text quotes the message: it may be a patient's.
package hl7

import (
	"bytes"
	"fmt"
	"iter"
)

// Delimiters are the five separators that a message declares in MSH-1 and
// MSH-2. A zero one is not declared, and then nothing is separated by it.
type Delimiters struct{ Field, Component, Repetition, Escape, Subcomponent byte }

// Standard are the separators that everybody uses and IHE demands: |^~\&
var Standard = Delimiters{'|', '^', '~', '\\', '&'}

// Limits bound what Parse takes from a peer. A zero limit is the default one.
type Limits struct {
	Bytes    int // of the whole message
	Segments int // in the message
	Fields   int // in one segment
}

// The default limits. A monitor's numerics are 2 to 20 kB, a second of twelve
// leads some 30 kB.
const (
	MaxBytes    = 4 << 20
	MaxSegments = 20_000
	MaxFields   = 1_000
)

func (l Limits) orDefault() Limits {
	if l.Bytes <= 0 {
		l.Bytes = MaxBytes
	}
	l.Bytes = min(l.Bytes, 1<<30) // offsets are of 32 bits
	if l.Segments <= 0 {
		l.Segments = MaxSegments
	}
	if l.Fields <= 0 {
		l.Fields = MaxFields
	}
	return l
}

// A SyntaxError says where a message breaks off being one. It quotes nothing
// of the message but segment names.
type SyntaxError struct {
	Segment string // name, empty where there is none
	Number  int    // of the segment in the message, from 1; 0: the message as a whole
	Field   int    // 0: the segment as a whole
	Offset  int    // in bytes
	Reason  string
}

func (e *SyntaxError) Error() string {
	where := "the message"
	switch {
	case e.Segment != "" && e.Field > 0:
		where = fmt.Sprintf("segment %d, %s-%d", e.Number, e.Segment, e.Field)
	case e.Segment != "":
		where = fmt.Sprintf("segment %d, %s", e.Number, e.Segment)
	case e.Number > 0:
		where = fmt.Sprintf("segment %d", e.Number)
	}
	return fmt.Sprintf("HL7 syntax: %s (byte %d): %s", where, e.Offset, e.Reason)
}

// A Message is the index of a message's bytes. The zero Message is empty and
// ready for Parse. It and all that is taken from it are valid as long as those
// bytes stay as they are.
type Message struct {
	text     []byte
	delims   Delimiters
	segments []segment
	starts   []int32 // of fields, for all segments; field 0 is the segment's name
}

type segment struct {
	end    int32 // of its text
	first  int32 // index in starts
	fields int32 // with the name
}

// Parse indexes a message with the default limits.
func Parse(b []byte) (*Message, error) {
	m := new(Message)
	if err := m.Parse(b, Limits{}); err != nil {
		return nil, err
	}
	return m, nil
}

// Parse indexes b, replacing what m held and reusing its memory. Segments end
// with CR, LF or CRLF; the last one may lack its end; empty lines are passed
// over. After an error m is empty.
func (m *Message) Parse(b []byte, l Limits) error {
	err := m.parse(b, l.orDefault())
	if err != nil {
		*m = Message{segments: m.segments[:0], starts: m.starts[:0]}
	}
	return err
}

func (m *Message) parse(b []byte, l Limits) error {
	m.text, m.segments, m.starts = b, m.segments[:0], m.starts[:0]
	if len(b) > l.Bytes {
		return &SyntaxError{Reason: fmt.Sprintf("it is %d bytes long; the limit is %d", len(b), l.Bytes)}
	}
	for at, cr := 0, -1; at < len(b); {
		if cr < at {
			cr = indexFrom(b, at, '\r')
		}
		// LF is looked for before the next CR only, and CR once, so that any
		// mixture of line ends is read in linear time.
		end := min(cr, indexFrom(b[:cr], at, '\n'))
		next := end + 1
		if end == at {
			at = next
			continue
		}
		if len(m.segments) == l.Segments {
			return &SyntaxError{Number: l.Segments + 1, Offset: at, Reason: fmt.Sprintf("the limit is %d segments", l.Segments)}
		}
		if err := m.index(at, end, l); err != nil {
			return err
		}
		at = next
	}
	if len(m.segments) == 0 {
		return &SyntaxError{Reason: "it is empty"}
	}
	return nil
}

// indexFrom is the place of c in b at or after at, or len(b).
func indexFrom(b []byte, at int, c byte) int {
	if i := bytes.IndexByte(b[at:], c); i >= 0 {
		return at + i
	}
	return len(b)
}

// index takes the segment in text[at:end].
func (m *Message) index(at, end int, l Limits) error {
	number, line := len(m.segments)+1, m.text[at:end]
	fault := func(field int, offset int, reason string) error {
		e := &SyntaxError{Number: number, Field: field, Offset: at + offset, Reason: reason}
		if segmentName(line) && (number == 1 || len(line) == 3 || line[3] == m.delims.Field) { // else it may be a text
			e.Segment = string(line[:3])
		}
		return e
	}
	if number == 1 {
		d, field, reason := delimiters(line)
		if reason != "" {
			return fault(field, 3, reason)
		}
		m.delims = d
	}
	switch {
	case !segmentName(line):
		return fault(0, 0, "it begins with no segment name (a line end inside a field?)")
	case len(line) > 3 && line[3] != m.delims.Field:
		return fault(0, 3, "its name is not followed by the field separator")
	case number > 1 && string(line[:3]) == "MSH":
		return fault(0, 0, "a second MSH: two messages run into each other")
	}
	first := len(m.starts)
	m.starts = append(m.starts, int32(at))
	for i := 3; i < len(line); {
		if len(m.starts)-first > l.Fields {
			return fault(l.Fields+1, i, fmt.Sprintf("the limit is %d fields in a segment", l.Fields))
		}
		m.starts = append(m.starts, int32(at+i+1))
		n := bytes.IndexByte(line[i+1:], m.delims.Field)
		if n < 0 {
			break
		}
		i += 1 + n
	}
	m.segments = append(m.segments, segment{int32(end), int32(first), int32(len(m.starts) - first)})
	return nil
}

func segmentName(line []byte) bool {
	if len(line) < 3 || line[0] < 'A' || line[0] > 'Z' {
		return false
	}
	for _, c := range line[1:3] {
		if (c < 'A' || c > 'Z') && (c < '0' || c > '9') {
			return false
		}
	}
	return true
}

// delimiters reads MSH-1 and MSH-2 (HL7 v2.6, 2.5.4). It returns the number of
// the field that is wrong and why.
func delimiters(msh []byte) (d Delimiters, field int, reason string) {
	if len(msh) < 3 || string(msh[:3]) != "MSH" {
		return d, 0, "it is not MSH, with which every message begins"
	}
	if len(msh) < 5 {
		return d, 1, "the message ends before its separators are declared"
	}
	d.Field = msh[3]
	codes := msh[4:]
	if i := bytes.IndexByte(codes, d.Field); i >= 0 {
		codes = codes[:i]
	}
	// A fifth character, the truncation mark, is HL7 2.7; it separates nothing.
	if len(codes) == 0 || len(codes) > 5 {
		return d, 2, fmt.Sprintf("it declares %d encoding characters; there are one to five", len(codes))
	}
	for i, to := range []*byte{&d.Component, &d.Repetition, &d.Escape, &d.Subcomponent} {
		if i < len(codes) {
			*to = codes[i]
		}
	}
	if !separator(d.Field) {
		return d, 1, "the field separator is no punctuation character"
	}
	for i, c := range codes {
		if !separator(c) {
			return d, 2, fmt.Sprintf("encoding character %d is no punctuation character", i+1)
		}
		if c == d.Field || bytes.IndexByte(codes[:i], c) >= 0 {
			return d, 2, fmt.Sprintf("encoding character %d is declared twice", i+1)
		}
	}
	return d, 0, ""
}

func separator(c byte) bool {
	alnum := c >= '0' && c <= '9' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z'
	return c > ' ' && c < 0x7F && !alnum
}

// Delimiters are the separators that the message declares.
func (m *Message) Delimiters() Delimiters { return m.delims }

// Len is the number of segments.
func (m *Message) Len() int { return len(m.segments) }

// At is segment n, from 1. A segment that is not there is empty.
func (m *Message) At(n int) Segment {
	if n < 1 || n > len(m.segments) {
		return Segment{}
	}
	return Segment{m, n}
}

// Segments are all segments in order.
func (m *Message) Segments() iter.Seq[Segment] {
	return func(yield func(Segment) bool) {
		for n := range m.segments {
			if !yield(Segment{m, n + 1}) {
				return
			}
		}
	}
}

// Segment finds the nth segment with the given name, from 1.
func (m *Message) Segment(name string, n int) (Segment, bool) {
	for s := range m.Segments() {
		if s.Is(name) {
			if n--; n == 0 {
				return s, true
			}
		}
	}
	return Segment{}, false
}

// Field is the first field with this number in the first segment with this
// name; empty where there is none.
func (m *Message) Field(name string, i int) Field {
	s, _ := m.Segment(name, 1)
	return s.Field(i)
}

// A Segment is one segment of a Message. The zero Segment is empty.
type Segment struct {
	m *Message
	n int
}

// Number is the position in the message, from 1.
func (s Segment) Number() int { return s.n }

// Raw is the whole segment as it stands in the message, without its end.
func (s Segment) Raw() []byte {
	if s.m == nil {
		return nil
	}
	g := s.m.segments[s.n-1]
	return s.m.text[s.m.starts[g.first]:g.end]
}

// Name is the three-letter name.
func (s Segment) Name() string {
	if s.m == nil {
		return ""
	}
	return string(s.Raw()[:3])
}

// Is reports whether the segment has this name.
func (s Segment) Is(name string) bool { return s.m != nil && string(s.Raw()[:3]) == name }

// Fields is the number of the last field that is there, empty ones included.
func (s Segment) Fields() int {
	if s.m == nil {
		return 0
	}
	n := int(s.m.segments[s.n-1].fields) - 1
	if s.Is("MSH") {
		n++ // MSH-1 is the separator itself
	}
	return n
}

// Field is field i, from 1; empty where it is not there. MSH-1 and MSH-2 are
// the separators as they stand.
func (s Segment) Field(i int) Field {
	if s.m == nil || i < 1 {
		return Field{}
	}
	g := s.m.segments[s.n-1]
	if s.Is("MSH") {
		if i == 1 {
			return Field{raw: s.Raw()[3:4]}
		}
		i--
	}
	if i >= int(g.fields) {
		return Field{}
	}
	start, end := s.m.starts[int(g.first)+i], g.end
	if i+1 < int(g.fields) {
		end = s.m.starts[int(g.first)+i+1] - 1
	}
	f := Field{raw: s.m.text[start:end:end], d: s.m.delims}
	if i == 1 && s.Is("MSH") {
		f.d = Delimiters{}
	}
	return f
}

// A Field is a field, or a repetition, component or subcomponent of one. The
// zero Field is empty.
type Field struct {
	raw []byte
	d   Delimiters
}

// Raw is the value as it stands in the message, escapes included. It is not a copy.
func (f Field) Raw() []byte { return f.raw }

// Empty reports whether nothing stands there.
func (f Field) Empty() bool { return len(f.raw) == 0 }

// Null reports whether "" stands there, HL7's word for "delete what you have".
func (f Field) Null() bool { return string(f.raw) == `""` }

// Is reports whether the value is s. It allocates nothing where the value has
// no escapes.
func (f Field) Is(s string) bool {
	if f.d.Escape == 0 || bytes.IndexByte(f.raw, f.d.Escape) < 0 {
		return string(f.raw) == s
	}
	return f.String() == s
}

// String is the value with its escapes resolved.
func (f Field) String() string {
	if f.d.Escape == 0 || bytes.IndexByte(f.raw, f.d.Escape) < 0 {
		return string(f.raw)
	}
	return string(f.Append(nil))
}

// Append appends what String gives.
func (f Field) Append(dst []byte) []byte { return appendUnescaped(dst, f.raw, f.d) }

// Repetitions is the number of repetitions: 1 where none is separated, 0 where
// the field is empty.
func (f Field) Repetitions() int { return f.count(f.d.Repetition) }

// Repetition is repetition i, from 1.
func (f Field) Repetition(i int) Field { return f.part(f.d.Repetition, i) }

// Components is the number of components of the first repetition.
func (f Field) Components() int { return f.Repetition(1).count(f.d.Component) }

// Component is component j, from 1, of the first repetition.
func (f Field) Component(j int) Field { return f.Repetition(1).part(f.d.Component, j) }

// Subcomponents is the number of subcomponents of the first component.
func (f Field) Subcomponents() int { return f.Component(1).count(f.d.Subcomponent) }

// Subcomponent is subcomponent k, from 1, of the first component.
func (f Field) Subcomponent(k int) Field { return f.Component(1).part(f.d.Subcomponent, k) }

func (f Field) count(sep byte) int {
	if len(f.raw) == 0 {
		return 0
	}
	if sep == 0 {
		return 1
	}
	return 1 + bytes.Count(f.raw, []byte{sep})
}

func (f Field) part(sep byte, n int) Field {
	rest := f.raw
	for ; n > 1; n-- {
		i := -1
		if sep != 0 {
			i = bytes.IndexByte(rest, sep)
		}
		if i < 0 {
			return Field{d: f.d}
		}
		rest = rest[i+1:]
	}
	if n < 1 {
		return Field{d: f.d}
	}
	if sep != 0 {
		if i := bytes.IndexByte(rest, sep); i >= 0 {
			rest = rest[:i:i]
		}
	}
	return Field{rest, f.d}
}
