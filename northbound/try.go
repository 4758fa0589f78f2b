package northbound

import (
	"context"
	"time"
)

// Try connects to a destination, verifies it, and sends nothing. With TLS 1.3 a
// platform says only after our handshake whether it takes our certificate
// (RFC 8446, section 4.4.2.4): so Try hears it out for a while. Nil is a platform
// that took it. Errors are those of Dial.
func Try(ctx context.Context, d Destination, hear time.Duration) error {
	c, err := Dial(ctx, d)
	if err != nil {
		return err
	}
	defer c.Close()
	timer := time.NewTimer(hear)
	defer timer.Stop()
	select {
	case <-c.done:
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.err // nil where it closed in good order
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
