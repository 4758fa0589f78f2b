package port

import (
	"io"
	"time"
)

// A Recorder is a Port that writes down what goes through another.
type Recorder struct {
	Port
	w   io.Writer
	now func() time.Time
}

// NewRecorder wraps p.
func NewRecorder(p Port, w io.Writer, now func() time.Time) *Recorder {
	return &Recorder{Port: p, w: w, now: now}
}
