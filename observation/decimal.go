package observation

import (
	"fmt"
	"math"
	"strconv"
)

// A Decimal is a number with the digits that the device gave: Mantissa × 10^Exponent.
// 97, 97.0 and 97.00 are different: their exponents say how precise they are.
// The zero value is no number.
type Decimal struct {
	Mantissa int32
	Exponent int8
	valid    bool
}

// NewDecimal is mantissa × 10^exponent.
func NewDecimal(mantissa int32, exponent int8) Decimal {
	return Decimal{mantissa, exponent, true}
}

// Valid reports whether d is a number.
func (d Decimal) Valid() bool { return d.valid }

// Float is the number as a float, NaN where d is not valid.
func (d Decimal) Float() float64 {
	if !d.valid {
		return math.NaN()
	}
	return float64(d.Mantissa) * math.Pow10(int(d.Exponent))
}

// Append writes the number with exactly the digits that it has: trailing zeros
// stay, no digit is added, no exponent is used. It writes nothing where d is
// not valid.
func (d Decimal) Append(b []byte) []byte {
	if !d.valid {
		return b
	}
	m := int64(d.Mantissa)
	if m < 0 {
		b, m = append(b, '-'), -m
	}
	var digits [20]byte
	text := strconv.AppendInt(digits[:0], m, 10)
	switch e := int(d.Exponent); {
	case e >= 0:
		b = append(b, text...)
		if m != 0 {
			for range e {
				b = append(b, '0')
			}
		}
	case len(text) > -e:
		point := len(text) + e
		b = append(b, text[:point]...)
		b = append(b, '.')
		b = append(b, text[point:]...)
	default:
		b = append(b, '0', '.')
		for range -e - len(text) {
			b = append(b, '0')
		}
		b = append(b, text...)
	}
	return b
}

// String is the number as Append writes it, or "none".
func (d Decimal) String() string {
	if !d.valid {
		return "none"
	}
	return string(d.Append(nil))
}

// ParseDecimal reads what Append writes: digits with at most one point among
// them and a sign before them. The digits without the point fit 32 bits.
func ParseDecimal(s string) (Decimal, error) {
	text, point, e := make([]byte, 0, 24), false, 0
	for i := range len(s) {
		switch c := s[i]; {
		case c == '.' && !point:
			point = true
		case c >= '0' && c <= '9' || i == 0 && (c == '-' || c == '+'):
			text = append(text, c)
			if point {
				e--
			}
		default:
			return Decimal{}, fmt.Errorf("%q is no decimal number", s)
		}
	}
	m, err := strconv.ParseInt(string(text), 10, 32)
	if err != nil || e < math.MinInt8 {
		return Decimal{}, fmt.Errorf("%q is no decimal number that fits 32 bits", s)
	}
	return NewDecimal(int32(m), int8(e)), nil
}

// MarshalJSON writes the number with its digits, or null.
func (d Decimal) MarshalJSON() ([]byte, error) {
	if !d.valid {
		return []byte("null"), nil
	}
	return d.Append(nil), nil
}
