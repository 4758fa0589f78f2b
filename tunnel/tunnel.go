// Package tunnel carries the TLS sessions of devices to their platforms
// unopened (G2), after it has judged the platform.
//
// The gateway has no key of these sessions and never ends one in their middle:
// what a device and a platform show each other is theirs. Before a session may
// pass, the gate makes a handshake of its own with the platform, under policy
// cmi-ist with a staple for every certificate (package tlspolicy), at the very
// address and by the very name that the session will use. Package inspect then
// sees to it, where TLS lets it, that the session meets the certificate that was
// judged: in TLS 1.2 it does, in TLS 1.3 the certificate is encrypted and the
// gate alone decides. After that package relay moves the bytes inside the kernel.
// doc/tunnel.md says what is enforced and what is only monitored.
//
// The package decodes nothing of what devices say, keeps none of it, and logs
// addresses, names of platforms and reasons, never content. The daemon runs one
// Server for all listeners.
package tunnel

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/bedside-gateway/gatewayd/revocation"
	"github.com/bedside-gateway/gatewayd/tunnel/relay"
)

// A DialFunc opens a connection, as net.Dialer.DialContext does. It has to give
// a *net.TCPConn: only those can be relayed inside the kernel.
type DialFunc func(ctx context.Context, network, address string) (net.Conn, error)

// Options of a Server. Zero values are the defaults.
type Options struct {
	Config Config // what Update may replace later

	// Memory remembers responses that were verified; nil is one for this server.
	Memory *revocation.Memory
	// Floor is a time that is past for certain, as in tlspolicy.Client.
	Floor time.Time

	Dial   DialFunc                                   // nil is net.Dialer, happy eyeballs and keepalive included
	Listen func(address string) (net.Listener, error) // nil is net.Listen, on TCP
	// Neighbours says which MAC address has an IP address; nil reads the
	// kernel's table, see ReadNeighbours.
	Neighbours func(netip.Addr) (MAC, error)
	// Events is told what happens, from several goroutines, for the audit: who is
	// refused, or cut by a rule, is in no log but that; nil: nobody is told. It
	// must not wait.
	Events func(Event)

	HelloTimeout     time.Duration // for the device's whole ClientHello; 0 is 10 s
	HandshakeTimeout time.Duration // from there until the session may flow; 0 is 30 s
	GateTimeout      time.Duration // for one handshake of the gate; 0 is 10 s
	Grace            time.Duration // for sessions that have to end; 0 is 10 s
	Quiet            time.Duration // silence in which such a session is ended before; 0 is 1 s

	Now func() time.Time // the clock that certificates are judged by; nil is the system's
	Log *slog.Logger     // nil logs nothing
}

func (o *Options) complete() {
	o.HelloTimeout, o.HandshakeTimeout = cmp.Or(o.HelloTimeout, 10*time.Second), cmp.Or(o.HandshakeTimeout, 30*time.Second)
	o.GateTimeout = cmp.Or(o.GateTimeout, 10*time.Second)
	o.Grace, o.Quiet = cmp.Or(o.Grace, 10*time.Second), cmp.Or(o.Quiet, time.Second)
	if o.Memory == nil {
		o.Memory = new(revocation.Memory)
	}
	if o.Dial == nil {
		// RFC 8305 is net.Dialer's own. Firewalls forget idle connections after
		// minutes, and a device that lost power says nothing.
		o.Dial = (&net.Dialer{KeepAliveConfig: keepAlive}).DialContext
	}
	if o.Listen == nil {
		o.Listen = func(address string) (net.Listener, error) { return net.Listen("tcp", address) }
	}
	if o.Neighbours == nil {
		o.Neighbours = ReadNeighbours
	}
	if o.Events == nil {
		o.Events = func(Event) {}
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
}

var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 30 * time.Second, Interval: 10 * time.Second, Count: 3}

// A Server carries sessions. New makes it, Run runs it; its methods are safe
// for concurrent use.
type Server struct {
	o     Options
	relay *relay.Relay

	running sync.WaitGroup // everything that Run waits for
	ctx     context.Context
	cancel  context.CancelFunc

	updating sync.Mutex // one Update or Listen at a time
	started  bool       // guarded by updating

	mu        sync.Mutex
	ended     bool
	listeners map[string]*listener // by address as configured
	gates     map[gateKey]*gate
	sessions  map[*session]struct{}
	counts    Counts
	last      map[string]Refusal       // by rule
	loud      map[string]*rate.Limiter // by rule: those that are logged
}

// New makes a server, and fails where the configuration is wrong: with a
// *tlspolicy.RefusalError where a rule speaks against it.
func New(o Options) (*Server, error) {
	o.complete()
	s := &Server{o: o, relay: relay.New(), listeners: map[string]*listener{}, gates: map[gateKey]*gate{},
		sessions: map[*session]struct{}{}, counts: newCounts(), last: map[string]Refusal{}, loud: map[string]*rate.Limiter{}}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	if err := s.Update(o.Config); err != nil {
		s.cancel()
		return nil, err
	}
	return s, nil
}

// Listen opens all listeners now and says which cannot be opened. Run opens
// them too, but does not wait for one that fails.
func (s *Server) Listen() error {
	s.updating.Lock()
	defer s.updating.Unlock()
	var errs []error
	for _, l := range s.everyListener() {
		errs = append(errs, l.open())
	}
	return errors.Join(errs...)
}

// Run takes connections until ctx ends, once. Then it takes no more, ends each
// session in a moment of silence or at the end of the grace, and returns when
// nothing of it is left. A listener that cannot be opened is tried again.
func (s *Server) Run(ctx context.Context) error {
	s.updating.Lock()
	if s.started {
		s.updating.Unlock()
		return errors.New("the tunnel was run before")
	}
	s.started = true
	for _, l := range s.everyListener() {
		s.start(l)
	}
	s.updating.Unlock()
	<-ctx.Done()
	s.stop()
	return nil
}

func (s *Server) start(l *listener) { s.running.Go(func() { l.run(s.ctx) }) }

// stop drains and waits.
func (s *Server) stop() {
	s.updating.Lock()
	defer s.updating.Unlock()
	for _, l := range s.everyListener() {
		l.close()
	}
	s.mu.Lock()
	s.ended = true
	all := slices.Collect(maps.Keys(s.sessions))
	s.mu.Unlock()
	s.drain(all, errStopping)
	s.cancel() // gates and what watches them
	s.running.Wait()
	s.relay.Close()
}

func (s *Server) everyListener() []*listener {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Values(s.listeners))
}
