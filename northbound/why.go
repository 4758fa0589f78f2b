package northbound

import (
	"context"
	"crypto/tls"
	"errors"
	"time"
)

// hearTime is how long a platform is listened to that may have something
// against us.
const hearTime = 3 * time.Second

// mayBeRefused reports whether an exchange that failed may have failed because
// the platform does not take our certificate. In TLS 1.3 our handshake is over
// before the platform has judged us: then its alert meets our first message,
// and where that was not read, the kernel resets the connection and the alert
// is lost on the way. So a connection over which nothing ever came back is
// suspicious.
func (c *Conn) mayBeRefused(err error) bool {
	if _, known := errors.AsType[*RefusedError](err); known {
		return false
	}
	return !c.wasUsed() && c.State().Version == tls.VersionTLS13 && (isLost(err) || errors.Is(err, ErrNotSent))
}

// why connects once more and sends nothing, so that nothing of ours is in the
// way of the platform's alert. A platform that hangs up again, with nothing to
// read and nothing to complain of, refuses us as well: some have no alert for
// that, Node.js among them. It returns nil where neither happens.
func (d *Destination) why(ctx context.Context, dial DialFunc) error {
	conn, err := d.open(ctx, dial, new(counters))
	if err == nil {
		defer conn.Close()
		timer := time.NewTimer(hearTime)
		defer timer.Stop()
		select {
		case <-conn.done:
			err = hungUp(conn.cause())
		case <-timer.C:
		case <-ctx.Done():
		}
	}
	if refused, ok := errors.AsType[*RefusedError](err); ok {
		return refused
	}
	return nil
}

// hungUp is the end of a connection over which nothing was sent.
func hungUp(cause error) error {
	if cause != nil && !isLost(cause) {
		return cause
	}
	return &RefusedError{Err: cause, Reason: "the platform ends each connection right after the TLS handshake, without a word",
		Next: "see its log: it may not take this gateway's certificate, or have no room for another connection"}
}
