package northbound

import (
	"context"
	"io"
	"net"
	"time"

	"github.com/bedside-gateway/gatewayd/tlspolicy"
)

// lingerTime and lingerBytes bound how long a refused peer is heard out.
const (
	lingerTime  = time.Second
	lingerBytes = 64 << 10
)

// Dial connects to a destination and verifies it. Its errors are
// *UnreachableError, *RefusedError for the platform's refusal,
// *tlspolicy.RefusalError for ours, and *tlspolicy.KeyError where our own key
// does not sign.
func Dial(ctx context.Context, d Destination) (*Conn, error) {
	d, err := d.complete()
	if err != nil {
		return nil, err
	}
	return d.open(ctx, dialTCP(), new(counters))
}

// open expects a complete destination.
func (d *Destination) open(ctx context.Context, dial DialFunc, n *counters) (*Conn, error) {
	limited, cancel := context.WithTimeout(ctx, d.ConnectTimeout)
	defer cancel()
	raw, err := dial(limited, "tcp", d.Connect)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, d.unreachable(err)
	}
	secure, err := tlspolicy.Handshake(limited, raw, d.TLS)
	if err != nil {
		if ctx.Err() != nil {
			raw.Close()
			return nil, ctx.Err()
		}
		linger(raw)
		return nil, d.handshakeError(err)
	}
	return newConn(d, raw, secure, n), nil
}

// linger closes a connection whose handshake failed so that the peer gets our
// alert: with unread bytes of its own the kernel would reset the connection,
// and the peer would log a broken pipe in place of the reason.
func linger(raw net.Conn) {
	defer raw.Close()
	half, ok := raw.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil || raw.SetReadDeadline(time.Now().Add(lingerTime)) != nil {
		return
	}
	// Whatever ends it, the connection is closed next.
	_, _ = io.CopyN(io.Discard, raw, lingerBytes)
}
