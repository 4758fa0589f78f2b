package pcd

import (
	"time"

	"github.com/bedside-gateway/gatewayd/observation"
)

// A Snapshot gathers reports and makes messages of them.
type Snapshot struct{ counts Counts }

func NewSnapshot(o Options) (*Snapshot, error) { return &Snapshot{}, nil }
func (s *Snapshot) Add(r *observation.Report)  {}
func (s *Snapshot) Next() time.Time            { return time.Time{} }
func (s *Snapshot) Flush(now time.Time, emit func(Message) error) error {
	return nil
}
func (s *Snapshot) Counts() Counts { return s.counts }
func (s *Snapshot) Problem() error { return nil }
