package daemon

import (
	"errors"

	"github.com/bedside-gateway/gatewayd/internal/status"
	"github.com/bedside-gateway/gatewayd/spool"
)

// spoolStore is the spool as the status socket shows it.
type spoolStore struct{ *spool.Spool }

func (s spoolStore) List(queue string, f func(status.Entry) error) error {
	return ListSpool(s.Spool, queue, f)
}

func (s spoolStore) Show(id uint64) (status.Entry, error) { return ShowSpool(s.Spool, id) }
func (s spoolStore) Release(id uint64) error              { return Translate(s.Spool.Release(id)) }
func (s spoolStore) Drop(id uint64, reason string) error  { return Translate(s.Spool.Drop(id, reason)) }

// ListSpool lists the entries of an open spool as the status socket would.
func ListSpool(s *spool.Spool, queue string, f func(status.Entry) error) error {
	return s.List(queue, func(e spool.Entry) error { return f(entry(e)) })
}

// ShowSpool is an entry of an open spool as the status socket would show it,
// patient identifiers included.
func ShowSpool(s *spool.Spool, id uint64) (status.Entry, error) {
	e, err := s.Get(id)
	return entry(e), Translate(err)
}

func entry(e spool.Entry) status.Entry {
	return status.Entry{ID: e.ID, Queue: e.Queue, Device: e.Device, ControlID: e.ControlID, Class: e.Class.String(),
		State: e.State.String(), Made: e.Made, Attempts: e.Attempts, Reason: e.Reason, Size: len(e.Payload), Message: e.Payload}
}

// Translate gives the errors of the spool that an operator's request can meet
// their names on the socket.
func Translate(err error) error {
	switch {
	case errors.Is(err, spool.ErrNotFound):
		return status.ErrNotFound
	case errors.Is(err, spool.ErrInFlight):
		return status.ErrInFlight
	}
	return err
}
