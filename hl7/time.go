package hl7

import (
	"fmt"
	"time"
)

// A Precision is how far a date and time of HL7 is given.
type Precision uint8

// The precisions, from coarse to fine.
const (
	Year Precision = iota + 1
	Month
	Day
	Hour
	Minute
	Second
	Fraction // of a second
)

// A DTM is a date and time (HL7 v2.6, 2.A.22): YYYY[MM[DD[HH[MM[SS[.S[S[S[S]]]]]]]]][+/-ZZZZ].
type DTM struct {
	Time      time.Time // in UTC where no offset is given
	Precision Precision
	Offset    bool // an offset is given
	// LocalUnknown is set by the offset -0000: the instant is UTC and nothing
	// is said of the local time (RFC 3339, section 4.3).
	LocalUnknown bool
}

// ParseTime reads a date and time. One without an offset is read as UTC; use
// ParseDTM where that matters.
func ParseTime(s string) (time.Time, error) {
	d, err := ParseDTM(s)
	return d.Time, err
}

// ParseDTM reads a date and time and tells what was given. It does not quote s
// in its errors: a date may be of birth.
func ParseDTM[T ~string | ~[]byte](s T) (DTM, error) {
	var d DTM
	digits := leadingDigits(s)
	switch digits {
	case 4, 6, 8, 10, 12, 14:
		d.Precision = Precision(digits/2 - 1)
	default:
		return DTM{}, fmt.Errorf("an HL7 time begins with 4, 6, 8, 10, 12 or 14 digits, not %d", digits)
	}
	part := func(from int, none int) int {
		if from >= digits {
			return none
		}
		return number(s[from : from+2])
	}
	year, month, day := number(s[:4]), part(4, 1), part(6, 1)
	hour, minute, second := part(8, 0), part(10, 0), part(12, 0)
	rest := s[digits:]
	nanos, n := 0, 0
	if len(rest) > 0 && rest[0] == '.' {
		n = leadingDigits(rest[1:])
		if digits != 14 || n < 1 || n > 9 {
			return DTM{}, fmt.Errorf("an HL7 time has a fraction of one to four digits, after the seconds")
		}
		nanos = number(rest[1 : 1+n])
		for range 9 - n {
			nanos *= 10
		}
		d.Precision, rest = Fraction, rest[1+n:]
	}
	zone := time.UTC
	if len(rest) > 0 {
		offset, err := parseOffset(rest)
		if err != nil {
			return DTM{}, err
		}
		d.Offset, d.LocalUnknown = true, rest[0] == '-' && offset == 0
		if offset != 0 {
			zone = time.FixedZone("", offset)
		}
	}
	d.Time = time.Date(year, time.Month(month), day, hour, minute, second, nanos, zone)
	if t := d.Time; t.Month() != time.Month(month) || t.Day() != day || hour > 23 || minute > 59 || second > 59 {
		return DTM{}, fmt.Errorf("an HL7 time names a date or time of day that does not exist")
	}
	return d, nil
}

// parseOffset reads +HHMM or -HHMM in seconds east of UTC.
func parseOffset[T ~string | ~[]byte](s T) (int, error) {
	if len(s) != 5 || s[0] != '+' && s[0] != '-' || leadingDigits(s[1:]) != 4 {
		return 0, fmt.Errorf("an HL7 time ends with an offset such as +0000")
	}
	hours, minutes := number(s[1:3]), number(s[3:5])
	if hours > 14 || minutes > 59 {
		return 0, fmt.Errorf("an HL7 time has an offset of at most 14 hours")
	}
	offset := hours*3600 + minutes*60
	if s[0] == '-' {
		offset = -offset
	}
	return offset, nil
}

func leadingDigits[T ~string | ~[]byte](s T) int {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return i
		}
	}
	return len(s)
}

func number[T ~string | ~[]byte](s T) int {
	n := 0
	for i := range len(s) {
		n = n*10 + int(s[i]-'0')
	}
	return n
}

// AppendTime appends t with its seconds, its milliseconds where it has any, and
// the offset of its location: 20260102030405.678+0100. An offset that is no
// whole minute, or a year that is not of four digits after it, cannot be
// written; such a time is written in UTC, and a year beyond 9999 or before 0
// as the nearest one that can be.
func AppendTime(dst []byte, t time.Time) []byte {
	_, offset := t.Zone()
	if offset%60 != 0 || offset > 14*3600 || offset < -14*3600 || t.Year() < 0 || t.Year() > 9999 {
		t, offset = t.UTC(), 0
	}
	year, month, day := t.Date()
	hour, minute, second := t.Clock()
	dst = appendDigits(dst, min(max(year, 0), 9999), 4)
	for _, n := range [...]int{int(month), day, hour, minute, second} {
		dst = appendDigits(dst, n, 2)
	}
	if ms := t.Nanosecond() / int(time.Millisecond); ms != 0 {
		dst = appendDigits(append(dst, '.'), ms, 3)
	}
	sign := byte('+')
	if offset < 0 {
		sign, offset = '-', -offset
	}
	return appendDigits(append(dst, sign), offset/3600*100+offset/60%60, 4)
}

// appendDigits appends the last width digits of n.
func appendDigits(dst []byte, n, width int) []byte {
	at := len(dst)
	dst = append(dst, "0000"[:width]...)
	for i := at + width - 1; i >= at; i-- {
		dst[i] = byte('0' + n%10)
		n /= 10
	}
	return dst
}
