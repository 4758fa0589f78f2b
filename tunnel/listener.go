package tunnel

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// A listener takes the connections of one address. Its settings may change
// while it is open.
type listener struct {
	s       *Server
	address string // as configured

	mu       sync.Mutex
	settings Listener
	raw      net.Listener // nil while it is not open
	fault    error        // why
	since    time.Time    // of either
	closed   bool         // for good
	gone     chan struct{}
	rates    map[netip.Addr]*rate.Limiter
}

func newListener(s *Server, settings Listener) *listener {
	return &listener{s: s, address: settings.Address, settings: settings, since: s.o.Now(), gone: make(chan struct{}), rates: map[netip.Addr]*rate.Limiter{}}
}

func (l *listener) configure(settings Listener) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.settings.Rate != settings.Rate || l.settings.Burst != settings.Burst {
		clear(l.rates)
	}
	l.settings = settings
}

func (l *listener) now() Listener {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.settings
}

// open listens, if it does not yet.
func (l *listener) open() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.raw != nil || l.closed {
		return nil
	}
	raw, err := l.s.o.Listen(l.address)
	if err != nil {
		err = fmt.Errorf("listener %q of the tunnel cannot listen on %s: %w; see whether the address is one of this machine and no other program has the port", l.settings.Name, l.address, err)
	}
	if (err == nil) != (l.fault == nil) || err == nil {
		l.since = l.s.o.Now()
	}
	l.raw, l.fault = raw, err
	return err
}

// close takes no more connections for good. Those that are open go on.
func (l *listener) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return
	}
	l.closed = true
	close(l.gone)
	if l.raw != nil {
		_ = l.raw.Close()
	}
}

const (
	firstPause = 5 * time.Millisecond
	lastPause  = time.Second
)

// run takes connections until close. Where it cannot listen, it tries again:
// the rest of the gateway goes on meanwhile.
func (l *listener) run(ctx context.Context) {
	told := false
	for !l.isClosed() {
		err := l.open()
		if err == nil {
			told = false
			l.s.o.Log.Info("tunnel: devices can connect", "listener", l.now().Name, "address", l.bound())
			err = l.accept(ctx)
		}
		if err != nil && !told {
			told = true
			l.s.o.Log.Error("tunnel: devices cannot connect; it is tried again", "listener", l.now().Name, "error", err)
		}
		if !l.pause(lastPause) {
			return
		}
	}
}

func (l *listener) isClosed() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.closed
}

// pause reports false where it was closed meanwhile.
func (l *listener) pause(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-l.gone:
		return false
	case <-t.C:
		return true
	}
}

// bound is where it listens, "" where it does not.
func (l *listener) bound() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.raw == nil {
		return ""
	}
	return l.raw.Addr().String()
}

// accept takes connections. Where the system has no more descriptors it waits
// for some to come back.
func (l *listener) accept(ctx context.Context) error {
	l.mu.Lock()
	raw := l.raw
	l.mu.Unlock()
	pause := firstPause
	for {
		conn, err := raw.Accept()
		switch {
		case l.isClosed():
			if err == nil {
				conn.Close()
			}
			return nil
		case errors.Is(err, net.ErrClosed):
			return l.lost(err)
		case err != nil:
			l.s.o.Log.Warn("tunnel: no connection can be taken; trying again", "listener", l.now().Name, "error", err, "in", pause)
			if !l.pause(pause) {
				return nil
			}
			pause = min(2*pause, lastPause)
			continue
		}
		pause = firstPause
		l.take(ctx, conn)
	}
}

func (l *listener) lost(err error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.raw, l.since = nil, l.s.o.Now()
	l.fault = fmt.Errorf("listener %q of the tunnel is gone: %w", l.settings.Name, err)
	return l.fault
}

// take lets a connection in, or closes it: a flood gets no more attention than that.
func (l *listener) take(ctx context.Context, conn net.Conn) {
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		conn.Close()
		l.s.o.Log.Error("tunnel: a listener gave something that is no TCP connection", "listener", l.now().Name, "next", "report this")
		return
	}
	x := &session{s: l.s, listener: l, settings: l.now(), device: tcp, from: addrPort(tcp.RemoteAddr()), since: l.s.o.Now()}
	err := l.mayConnect(x)
	if err == nil {
		err = l.s.enter(x)
	}
	if err != nil {
		l.s.refused(x, err)
		tcp.Close()
		return
	}
	// A device that lost power says nothing; it fails only where the connection is gone already.
	_ = tcp.SetKeepAliveConfig(keepAlive)
	l.s.running.Go(func() { l.s.serve(ctx, x) })
}

// maxRates bounds how many devices' rates are known at a time.
const maxRates = 4096

// mayConnect holds a device to the listener's networks, cards and rate.
func (l *listener) mayConnect(x *session) error {
	if err := x.settings.permits(x, l.s.o.Neighbours); err != nil {
		return err
	}
	ip := x.from.Addr()
	l.mu.Lock()
	defer l.mu.Unlock()
	limit := l.rates[ip]
	if limit == nil {
		if len(l.rates) >= maxRates {
			l.forget()
		}
		limit = rate.NewLimiter(rate.Limit(x.settings.Rate), x.settings.Burst)
		l.rates[ip] = limit
	}
	if !limit.Allow() {
		return errRate
	}
	return nil
}

// forget makes room: first the devices whose allowance is whole again, else all.
func (l *listener) forget() {
	for ip, limit := range l.rates {
		if limit.Tokens() >= float64(limit.Burst()) {
			delete(l.rates, ip)
		}
	}
	if len(l.rates) >= maxRates {
		clear(l.rates)
	}
}

// permits reports whether a device may connect here. The card of an open session
// is known: the kernel's table forgets who is silent.
func (l *Listener) permits(x *session, neighbours func(netip.Addr) (MAC, error)) error {
	ip := x.from.Addr().WithZone("")
	if len(l.Networks) > 0 && !slices.ContainsFunc(l.Networks, func(n netip.Prefix) bool { return n.Contains(ip) }) {
		return errNetwork
	}
	if len(l.MACs) == 0 {
		return nil
	}
	if x.mac == (MAC{}) {
		mac, err := neighbours(ip)
		if err != nil {
			return fmt.Errorf("%w: %w", errCard, err)
		}
		x.mac = mac
	}
	if !slices.Contains(l.MACs, x.mac) {
		return fmt.Errorf("%w: it is %v; if it is a device of this place, add that to macs in [[tunnel]]", errCard, x.mac)
	}
	return nil
}
