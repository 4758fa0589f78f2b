package daemon

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/bedside-gateway/gatewayd/hl7"
	"github.com/bedside-gateway/gatewayd/internal/config"
	"github.com/bedside-gateway/gatewayd/internal/status"
	"github.com/bedside-gateway/gatewayd/pcd"
	"github.com/bedside-gateway/gatewayd/southbound"
	"github.com/bedside-gateway/gatewayd/spool"
)

// An intake puts the messages of devices that speak IHE PCD themselves into the
// spool, as they came, once for each destination. It is the sink of southbound.
//
// A device that gets no acknowledgement sends its message again. In the spool
// it is then known by device, control ID and content, and acknowledged. What
// was delivered meanwhile goes out a second time under the same control ID,
// which tells the platform. A device that uses a control ID again for something
// else loses nothing.
type intake struct {
	store  store
	queues []string
	log    *slog.Logger
	now    func() time.Time

	mu    sync.Mutex
	fault error // of the last write; nil when it succeeded
	since time.Time
}

func newIntake(s store, queues []string, log *slog.Logger, now func() time.Time) *intake {
	return &intake{store: s, queues: queues, log: log, now: now}
}

// take is southbound.Sink.
func (i *intake) take(ctx context.Context, device string, message []byte) error {
	e, err := received(config.AuthorisedName(device), message)
	if err != nil {
		return err
	}
	for _, q := range i.queues {
		e.Queue = q
		_, err := i.store.Enqueue(ctx, e)
		switch {
		case errors.Is(err, spool.ErrDuplicate):
		case errors.Is(err, spool.ErrTooLarge):
			return &southbound.RejectError{Reason: fmt.Sprintf("it has %d bytes, more than the spool takes", len(message))}
		case err != nil:
			i.failed(err)
			return err
		}
	}
	i.succeeded()
	return nil
}

func (i *intake) failed(err error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.fault == nil {
		i.since = i.now()
	}
	i.fault = err
}

func (i *intake) succeeded() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.fault = nil
}

// maxControlID is what fits into the spool's name of a message beside the
// device and the digest. HL7 v2.6 has 20 characters.
const maxControlID = 160

// received is the entry of a message of a device, without its queue.
func received(device string, message []byte) (spool.Entry, error) {
	header := message
	if n := bytes.IndexAny(message, "\r\n"); n >= 0 {
		header = message[:n]
	}
	var m hl7.Message
	if err := m.Parse(header, hl7.Limits{}); err != nil {
		return spool.Entry{}, &southbound.RejectError{Code: "100", Reason: "its header cannot be parsed"}
	}
	msh := m.At(1)
	id := msh.Field(10).String()
	switch {
	case !msh.Field(9).Component(1).Is("ORU"):
		return spool.Entry{}, &southbound.RejectError{Code: "200", Reason: "MSH-9 is not ORU: only observations and alerts are passed on"}
	case id == "" || len(id) > maxControlID:
		return spool.Entry{}, &southbound.RejectError{Code: "102", Reason: fmt.Sprintf("MSH-10, the control ID, has %d bytes: it takes 1 to %d", len(id), maxControlID)}
	case pcd.AckCode(msh.Field(15).String(), msh.Field(16).String(), 'A') == "":
		return spool.Entry{}, &southbound.RejectError{Code: "103", Reason: "MSH-15 and MSH-16 ask for no acknowledgement of success: the platform would never say that it has the message"}
	}
	return spool.Entry{Device: device, ControlID: storedID(device, id, message), Class: receivedClass(msh.Field(9)), Payload: message}, nil
}

// storedID is what the spool knows a message by, since control IDs are unique
// for one sender only. Our own messages have no | in theirs.
func storedID(device, id string, message []byte) string {
	digest := sha256.Sum256(message)
	return fmt.Sprintf("%s|%s|%x", device, id, digest[:8])
}

// receivedClass goes by the trigger event: R40 is an alert, R01 the periodic
// report of PCD-01; whatever else there is, such as the R42 of an infusion
// pump's events, is not said twice.
func receivedClass(messageType hl7.Field) spool.Class {
	switch event := messageType.Component(2); {
	case event.Is("R40"):
		return spool.Alert
	case event.Is("R01"):
		return spool.Periodic
	}
	return spool.Episodic
}

// intake raises the conditions of a spool that takes nothing from devices.
func (c *conditions) intake(i *intake) {
	i.mu.Lock()
	fault, since := i.fault, i.since
	i.mu.Unlock()
	switch {
	case fault == nil:
	case errors.Is(fault, spool.ErrFull):
		c.raise(status.Down, "spool-full", "southbound", since, "The spool is full of messages that count for more, and takes none from devices; they are told to try again.",
			"Bring the platform back, or raise max_bytes in [spool].")
	default:
		c.raise(status.Down, "spool-failing", "southbound", since, "Messages of devices cannot be stored: "+fault.Error()+". The devices are told to try again.",
			"Look at the disk of state_dir: is it full, read-only or broken?")
	}
}
