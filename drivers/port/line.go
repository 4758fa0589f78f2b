package port

import (
	"fmt"
	"strconv"
	"strings"
)

// ParseLine reads what Line.String writes, such as 115200 8N1.
func ParseLine(s string) (Line, error) {
	wrong := func(what string) (Line, error) {
		return Line{}, fmt.Errorf("line %q: %s: write it like 115200 8N1, or auto to have the settings found", s, what)
	}
	fields := strings.Fields(s)
	if len(fields) != 2 || len(fields[1]) != 3 {
		return wrong("these are no line settings")
	}
	baud, err := strconv.Atoi(fields[0])
	format := strings.ToUpper(fields[1])
	switch {
	case err != nil || baud < 50 || baud > 4_000_000:
		return wrong("the speed is 50 to 4000000 bits a second")
	case format[0] != '7' && format[0] != '8':
		return wrong("there are 7 or 8 data bits")
	case format[1] != 'N' && format[1] != 'E' && format[1] != 'O':
		return wrong("the parity is N, E or O")
	case format[2] != '1' && format[2] != '2':
		return wrong("there are 1 or 2 stop bits")
	}
	return Line{Baud: baud, DataBits: int(format[0] - '0'), Parity: Parity(format[1]), StopBits: int(format[2] - '0')}, nil
}
