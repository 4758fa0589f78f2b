// Package port opens the places where devices are plugged in: serial and USB
// lines by stable path, serial servers over TCP, devices on a LAN over UDP; and
// records and replays what came through them.
//
// A port moves bytes and knows no protocol. It is closed at once on any error,
// so that a replugged USB adapter gets its old name back.
package port

import (
	"fmt"
	"time"
)

// A Port is an open connection to a device. Read and Write may run at the same
// time, and Close ends both.
type Port interface {
	// ReadBefore reads what is there, at least one byte or one datagram, and
	// returns os.ErrDeadlineExceeded when nothing came before the deadline.
	ReadBefore(p []byte, deadline time.Time) (int, error)
	// Write writes all of p or fails.
	Write(p []byte) (int, error)
	Close() error
	// Datagrams reports whether each read is a whole datagram.
	Datagrams() bool
}

// A Liner is a port that knows whether it has line settings: a serial server
// keeps its own.
type Liner interface{ HasLine() bool }

// HasLine reports whether the line that p was opened with counts. It does for
// a stream that does not say otherwise.
func HasLine(p Port) bool {
	if l, ok := p.(Liner); ok {
		return l.HasLine()
	}
	return !p.Datagrams()
}

// Line is the settings of a serial line.
type Line struct {
	Baud     int
	DataBits int    // 7 or 8
	Parity   Parity // None, Even or Odd
	StopBits int    // 1 or 2
}

// Parity of a serial line.
type Parity byte

// The parities, by their usual letters.
const (
	None Parity = 'N'
	Even Parity = 'E'
	Odd  Parity = 'O'
)

// String is the line in the usual notation, such as 115200 8N1.
func (l Line) String() string {
	return fmt.Sprintf("%d %d%c%d", l.Baud, l.DataBits, l.Parity, l.StopBits)
}
