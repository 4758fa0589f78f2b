package northbound

import (
	"context"
	"errors"
	"time"

	"github.com/bedside-gateway/gatewayd/pcd"
)

// A Result is what became of one message of Send.
type Result struct {
	Ack       pcd.Ack // where Err is nil
	RoundTrip time.Duration
	Err       error
}

// Send sends messages once each, over one connection as long as it lasts, and
// reports what became of each as soon as that is known. It stops at a message
// for which no connection can be had, or at which the platform turns out not to
// take us, and returns why: *UnreachableError, *RefusedError or
// *tlspolicy.RefusalError. Nothing is sent twice.
func Send(ctx context.Context, d Destination, messages [][]byte, report func(i int, r Result)) error {
	d, err := d.complete()
	if err != nil {
		return err
	}
	var conn *Conn
	defer func() {
		if conn != nil {
			conn.Close()
		}
	}()
	for i, m := range messages {
		if conn != nil && !conn.alive() {
			conn = nil
		}
		if conn == nil {
			conn, err = d.open(ctx, dialTCP(), new(counters))
			if err != nil {
				return err
			}
		}
		r := conn.send(ctx, m)
		if r.Err != nil && conn.mayBeRefused(r.Err) {
			if why := d.why(ctx, dialTCP()); why != nil {
				r.Err = why
			}
		}
		report(i, r)
		if refused, ok := errors.AsType[*RefusedError](r.Err); ok {
			return refused
		}
	}
	return nil
}

// send says of an unsent message why it was not sent: a refusal, if it was one.
func (c *Conn) send(ctx context.Context, message []byte) (r Result) {
	id, err := pcd.ControlID(message)
	if err != nil {
		return Result{Err: err}
	}
	r.Ack, r.RoundTrip, r.Err = c.exchange(ctx, id, message)
	return r
}
