package hl7

import (
	"bytes"
	"unicode/utf8"
)

// appendUnescaped resolves the escape sequences of HL7 v2.6, 2.7. \F\ \S\ \T\
// \R\ \E\ stand for the separators of the message; \Xhh…\ for bytes; \.br\,
// \.sp\ and \.ce\ for a new line. Highlighting (\H\ \N\) and the other
// formatting commands stand for nothing that a value could hold and vanish.
// What is no known sequence is taken as it stands, a lone escape character
// too: senders forget to escape it.
func appendUnescaped(dst, raw []byte, d Delimiters) []byte {
	if d.Escape == 0 {
		return append(dst, raw...)
	}
	for {
		i := bytes.IndexByte(raw, d.Escape)
		if i < 0 {
			return append(dst, raw...)
		}
		dst = append(dst, raw[:i]...)
		raw = raw[i:]
		sequence, n := escapeAt(raw, d)
		if n == 0 {
			dst = append(dst, raw[0])
			raw = raw[1:]
			continue
		}
		dst = appendMeaning(dst, sequence, d)
		raw = raw[n:]
	}
}

// escapeAt returns what stands between the escape characters at the start of
// raw and the length with both of them; 0 where no known sequence is there.
func escapeAt(raw []byte, d Delimiters) (sequence []byte, n int) {
	i := bytes.IndexByte(raw[1:], d.Escape)
	if i <= 0 {
		return nil, 0
	}
	sequence = raw[1 : 1+i]
	known := false
	switch sequence[0] {
	case 'F', 'S', 'T', 'R', 'E', 'H', 'N', 'P':
		known = i == 1
	case 'X':
		known = i > 1 && i%2 == 1 && allHex(sequence[1:])
	case 'C':
		known = i == 5 && allHex(sequence[1:])
	case 'M':
		known = (i == 5 || i == 7) && allHex(sequence[1:])
	case '.':
		known = formatCommand(sequence[1:])
	}
	if !known || bytes.ContainsFunc(sequence, d.separates) {
		return nil, 0
	}
	return sequence, i + 2
}

// separates reports whether a character is a separator, which it is before
// anything else: a message may declare one that escape sequences have in them.
func (d Delimiters) separates(r rune) bool {
	return r != 0 && (r == rune(d.Field) || r == rune(d.Component) || r == rune(d.Repetition) || r == rune(d.Subcomponent))
}

func appendMeaning(dst, sequence []byte, d Delimiters) []byte {
	separator := byte(0)
	switch sequence[0] {
	case 'F':
		separator = d.Field
	case 'S':
		separator = d.Component
	case 'T':
		separator = d.Subcomponent
	case 'R':
		separator = d.Repetition
	case 'E':
		separator = d.Escape
	case 'X':
		for digits := hexBytes(sequence[1:]); len(digits) > 0; digits = digits[2:] {
			dst = append(dst, nibble(digits[0])<<4|nibble(digits[1]))
		}
		return dst
	case '.':
		if c := string(sequence[1:3]); c == "br" || c == "sp" || c == "ce" {
			return append(dst, '\n')
		}
		return dst
	}
	if separator != 0 {
		dst = append(dst, separator)
	}
	return dst
}

// hexBytes passes over the leading zeros of \X000D\, which laboratories write
// for \X0D\.
func hexBytes(digits []byte) []byte {
	if len(digits) == 4 && digits[0] == '0' && digits[1] == '0' {
		return digits[2:]
	}
	return digits
}

// formatCommand knows .br .ce .sk .fi .nf .sp .in .ti with their numbers.
func formatCommand(c []byte) bool {
	if len(c) < 2 {
		return false
	}
	switch string(c[:2]) {
	case "br", "ce", "fi", "nf":
		return len(c) == 2
	case "sp", "sk", "in", "ti":
		for _, digit := range c[2:] {
			if (digit < '0' || digit > '9') && digit != '+' && digit != '-' && digit != ' ' {
				return false
			}
		}
		return true
	}
	return false
}

func allHex(s []byte) bool {
	for _, c := range s {
		if (c < '0' || c > '9') && (c < 'A' || c > 'F') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

func nibble(c byte) byte {
	if c <= '9' {
		return c - '0'
	}
	return c&^0x20 - 'A' + 10
}

// AppendEscaped appends s as a value between the standard separators: those
// become \F\ \S\ \T\ \R\ \E\; control characters, and bytes that are no UTF-8,
// become \Xhh\. So no text can end a segment, a field or a block of MLLP.
func AppendEscaped(dst []byte, s string) []byte { return appendEscaped(dst, s, Standard) }

// AppendEscapedBytes is AppendEscaped for bytes.
func AppendEscapedBytes(dst, s []byte) []byte { return appendEscaped(dst, s, Standard) }

func appendEscaped[T ~string | ~[]byte](dst []byte, s T, d Delimiters) []byte {
	clean := 0
	for i := 0; i < len(s); {
		c, size := s[i], 1
		letter := byte(0)
		switch {
		case c == d.Field:
			letter = 'F'
		case c == d.Component:
			letter = 'S'
		case c == d.Subcomponent:
			letter = 'T'
		case c == d.Repetition:
			letter = 'R'
		case c == d.Escape:
			letter = 'E'
		case c < ' ' || c == 0x7F:
			letter = 'X'
		case c >= utf8.RuneSelf:
			if size = runeSize(s[i:]); size == 0 {
				letter, size = 'X', 1
			} else if size == 2 && c == 0xC2 && s[i+1] < 0xA0 { // a C1 control
				letter = 'X'
			}
		}
		if letter != 0 {
			dst = append(dst, s[clean:i]...)
			dst = appendSequence(dst, letter, s[i:i+size], d.Escape)
			clean = i + size
		}
		i += size
	}
	return append(dst, s[clean:]...)
}

func appendSequence[T ~string | ~[]byte](dst []byte, letter byte, s T, escape byte) []byte {
	const digits = "0123456789ABCDEF"
	dst = append(dst, escape, letter)
	if letter == 'X' {
		for i := range len(s) {
			dst = append(dst, digits[s[i]>>4], digits[s[i]&15])
		}
	}
	return append(dst, escape)
}

// runeSize is the length of the valid UTF-8 sequence at the start of s, else 0.
func runeSize[T ~string | ~[]byte](s T) int {
	var b [utf8.UTFMax]byte
	n := copy(b[:], s)
	if r, size := utf8.DecodeRune(b[:n]); r != utf8.RuneError || size == 3 {
		return size
	}
	return 0
}

// Append prints the message with the given separators: each segment ends with
// CR, empty fields at the end of a segment are left out, every value keeps its
// meaning. With its own separators the message comes out as it went in; others
// must be declared all five.
func (m *Message) Append(dst []byte, to Delimiters) []byte {
	for s := range m.Segments() {
		dst = s.append(dst, to)
		dst = append(dst, '\r')
	}
	return dst
}

func (s Segment) append(dst []byte, to Delimiters) []byte {
	dst = append(dst, s.Raw()[:3]...)
	first := 1
	if s.Is("MSH") {
		first, dst = 3, append(dst, to.Field)
		if to == s.m.delims {
			dst = append(dst, s.Field(2).Raw()...)
		} else {
			dst = append(dst, to.Component, to.Repetition, to.Escape, to.Subcomponent)
		}
	}
	last := s.Fields()
	for last >= first && s.Field(last).Empty() {
		last--
	}
	for i := first; i <= last; i++ {
		dst = append(dst, to.Field)
		dst = s.Field(i).AppendTo(dst, to)
	}
	return dst
}

// AppendTo appends the value as it would stand in a message with other
// separators: its structure and its meaning stay.
func (f Field) AppendTo(dst []byte, to Delimiters) []byte {
	if f.d == to {
		return append(dst, f.raw...)
	}
	raw := f.raw
	for len(raw) > 0 {
		c := raw[0]
		if c == f.d.Escape && c != 0 {
			if sequence, n := escapeAt(raw, f.d); n > 0 {
				dst = appendSequenceTo(dst, sequence, f.d, to)
				raw = raw[n:]
				continue
			}
		}
		if t := translate(c, f.d, to); t != 0 {
			dst = append(dst, t)
		} else {
			dst = appendOrdinary(dst, c, to)
		}
		raw = raw[1:]
	}
	return dst
}

// appendSequenceTo appends an escape sequence. One that stands for a separator
// stands for that character, which may be an ordinary one there.
func appendSequenceTo(dst, sequence []byte, from, to Delimiters) []byte {
	switch sequence[0] {
	case 'F', 'S', 'T', 'R', 'E':
		var c [1]byte
		for _, separator := range appendMeaning(c[:0], sequence, from) {
			dst = appendOrdinary(dst, separator, to)
		}
		return dst
	}
	return append(append(append(dst, to.Escape), sequence...), to.Escape)
}

func translate(c byte, from, to Delimiters) byte {
	switch c {
	case 0, from.Escape:
		return 0
	case from.Component:
		return to.Component
	case from.Repetition:
		return to.Repetition
	case from.Subcomponent:
		return to.Subcomponent
	}
	return 0
}

func appendOrdinary(dst []byte, c byte, to Delimiters) []byte {
	if c == 0 || to.Escape == 0 {
		return append(dst, c)
	}
	for i, s := range [...]byte{to.Field, to.Component, to.Subcomponent, to.Repetition, to.Escape} {
		if c == s {
			return append(dst, to.Escape, "FSTRE"[i], to.Escape)
		}
	}
	return append(dst, c)
}
