// Package southbound is the server of Interface A: it takes the messages of
// devices on the ward that speak IHE PCD over MLLP and TLS themselves.
//
// A device gets in by policy cmi-ist (A1 to A10, package tlspolicy): with a
// chain to an installed root, an authorised identifier in its common name, and
// a good verdict on every certificate from what it stapled, what is cached,
// what its responders say, or the CRLs (package revocation/fetch). Its messages
// go unchanged to Options.Sink, and are acknowledged after the sink has them,
// never before. The package keeps no message, reads no clinical content and
// logs none. The daemon and the simulated platform run it.
package southbound

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"time"

	"github.com/bedside-gateway/gatewayd/pcd"
	"github.com/bedside-gateway/gatewayd/revocation"
	"github.com/bedside-gateway/gatewayd/revocation/fetch"
	"github.com/bedside-gateway/gatewayd/tlspolicy"
)

// A Sink takes a message for good: nil means that it is durable, and only then
// is it acknowledged. The message is borrowed. A *RejectError says that sending
// it again would not help; any other error asks the device to do so.
type Sink func(ctx context.Context, deviceCN string, message []byte) error

// A RejectError is a Sink's verdict that it will never take a message.
type RejectError struct {
	Code   string // HL7 table 0357; "" is 207
	Reason string // without anything of the message: it is logged and sent
}

func (e *RejectError) Error() string { return "rejected: " + e.Reason }

// A Message is what a device sent, borrowed, and where it came from.
type Message struct {
	Device, Remote string
	Bytes          []byte
}

// An Event is something that happened to a connection.
type Event struct {
	Kind    EventKind
	Device  string // common name; "" of Refused
	Remote  string
	Err     error // of Refused and Disconnected: why
	Skipped int   // of Disconnected: bytes that were in no MLLP frame
}

// An EventKind is the kind of an Event.
type EventKind uint8

// The kinds of events.
const (
	Connected EventKind = iota
	Refused
	Disconnected
)

// Options of a Server. Those without a default are needed.
type Options struct {
	Identities []tls.Certificate // ECC and RSA, each with its issuing CA (A4, A5, A7)
	Roots      *x509.CertPool    // ECC and RSA (A6); ours are among them, for the staples
	Authorised func(commonName string) bool
	Fetcher    *fetch.Fetcher // Serve runs it
	Sink       Sink

	// Judge and Staples take the place of the Fetcher, as in tlspolicy.Server;
	// where both are set, no Fetcher is needed. They are for simulations.
	Judge   func(ctx context.Context, chain []*x509.Certificate, stapled [][]byte) []revocation.Verdict
	Staples func(i int) [][]byte
	// Answer takes the place of Sink, for a simulation that does not always
	// answer by the rules: it says what goes back, MLLP frame included. Its
	// error ends the connection.
	Answer func(ctx context.Context, m Message) (wire []byte, err error)
	// Events is told of the connections, from their own goroutines; nil: nobody is.
	Events func(Event)

	LeafOnly13             bool   // staple for the leaf alone in TLS 1.3, for clients that fail on more
	MinVersion, MaxVersion uint16 // of TLS (A2); 0 is 1.2 and 1.3

	MaxConnections int // 0 is 256
	MaxHandshakes  int // at once; 0 is 64. A further one cuts off the oldest
	MaxPerDevice   int // 0 is 4. A further one ends the oldest
	MaxMessage     int // bytes; 0 is 1 MiB

	HandshakeTimeout time.Duration // 0 is 15 s: two fetches may be in it
	IdleTimeout      time.Duration // from one message to the next; 0 is 10 minutes
	MessageTimeout   time.Duration // from its first byte to its last; 0 is 30 s
	SinkTimeout      time.Duration // 0 is 10 s
	DrainTimeout     time.Duration // for what is under way at the end; 0 is 10 s

	Now    func() time.Time // nil is the system's clock
	Random io.Reader        // nil is the system's; of the acknowledgements' control IDs
	Log    *slog.Logger     // nil logs nothing
}

func (o *Options) complete() error {
	switch {
	case o.Fetcher == nil && (o.Judge == nil || o.Staples == nil):
		return errors.New("the server needs a fetcher for the revocation rule (A9)")
	case o.Sink == nil && o.Answer == nil:
		return errors.New("the server needs somewhere to put the messages")
	}
	o.MaxConnections, o.MaxHandshakes = cmp.Or(o.MaxConnections, 256), cmp.Or(o.MaxHandshakes, 64)
	o.MaxPerDevice, o.MaxMessage = cmp.Or(o.MaxPerDevice, 4), cmp.Or(o.MaxMessage, 1<<20)
	o.HandshakeTimeout, o.IdleTimeout = cmp.Or(o.HandshakeTimeout, 15*time.Second), cmp.Or(o.IdleTimeout, 10*time.Minute)
	o.MessageTimeout, o.SinkTimeout = cmp.Or(o.MessageTimeout, 30*time.Second), cmp.Or(o.SinkTimeout, 10*time.Second)
	o.DrainTimeout = cmp.Or(o.DrainTimeout, 10*time.Second)
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Random == nil {
		o.Random = rand.Reader
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Events == nil {
		o.Events = func(Event) {}
	}
	if o.Judge == nil {
		o.Judge = o.Fetcher.Judge
	}
	return nil
}

// A Server takes connections with Serve. Its methods are safe for concurrent use.
type Server struct {
	o       Options
	tls     *tls.Config
	keepers []*fetch.Keeper
	ids     *pcd.ControlIDs
	book    book
}

// New makes a server, and fails where the settings break a rule. Close ends it.
func New(o Options) (*Server, error) {
	if err := o.complete(); err != nil {
		return nil, err
	}
	s := &Server{o: o}
	s.book.start(o)
	var err error
	if s.ids, err = pcd.NewControlIDs(o.Random); err != nil {
		return nil, err
	}
	policy := tlspolicy.Server{
		Identities: o.Identities, Roots: o.Roots, Authorised: o.Authorised, Judge: o.Judge,
		Staples: s.staples, LeafOnly13: o.LeafOnly13, MinVersion: o.MinVersion, MaxVersion: o.MaxVersion, Now: o.Now,
	}
	if s.tls, err = policy.Config(); err != nil {
		return nil, err
	}
	if o.Staples != nil {
		return s, nil
	}
	for i := range o.Identities {
		if err := s.keep(i); err != nil {
			s.Close()
			return nil, err
		}
	}
	return s, nil
}

// FetchStaples gets the responses for our own chains that are missing, and
// returns when each was tried once: Serve gets them too, but does not wait for
// them. The error says what is missing still.
func (s *Server) FetchStaples(ctx context.Context) error {
	errs := make([]error, len(s.keepers))
	for i, k := range s.keepers {
		errs[i] = k.Fetch(ctx)
	}
	return errors.Join(errs...)
}

// Close gives up what New took: the keeping of our own staples. Serve must have returned.
func (s *Server) Close() {
	for _, k := range s.keepers {
		k.Close()
	}
}

// keep has the responses for an identity fetched. Its root is needed as well:
// it speaks for the issuing CA.
func (s *Server) keep(i int) error {
	chain, err := ownChain(s.o.Identities[i], s.o.Roots, s.o.Now())
	if err != nil {
		return err
	}
	k, err := fetch.NewKeeper(s.o.Fetcher, chain)
	if err != nil {
		return err
	}
	s.keepers = append(s.keepers, k)
	return nil
}

func ownChain(id tls.Certificate, roots *x509.CertPool, now time.Time) ([]*x509.Certificate, error) {
	var sent []*x509.Certificate
	others := x509.NewCertPool()
	for _, der := range id.Certificate {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("our certificate cannot be read: %w", err)
		}
		sent = append(sent, c)
		others.AddCert(c)
	}
	chains, err := sent[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: others, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	if err != nil {
		return nil, &tlspolicy.RefusalError{Rule: "A10", Certificate: fmt.Sprintf("our certificate %+q", sent[0].Subject.CommonName), Err: err,
			Reason: "no installed root vouches for it, so no responses for it can be checked: " + err.Error(), Next: "install its root beside those of the devices, or renew the certificate"}
	}
	// The chain that is sent counts, where there are several.
	at := slices.IndexFunc(chains, func(c []*x509.Certificate) bool { return len(c) > 1 && len(sent) > 1 && c[1].Equal(sent[1]) })
	return chains[max(at, 0)], nil
}

// staples are the responses of now for an identity. It is called in handshakes and waits for nothing.
func (s *Server) staples(i int) [][]byte {
	if s.o.Staples != nil {
		return s.o.Staples(i)
	}
	if i >= len(s.keepers) {
		return nil
	}
	return s.keepers[i].Staples()
}

// Serve takes connections until ctx ends, once. Then it takes no more, lets what is
// under way come to its end, acknowledgement included, and returns nil. Any
// other error is that of the listener.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	inner, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()
	fetching, stop := context.WithCancel(inner)
	if s.o.Fetcher != nil {
		s.book.running.Go(func() { s.o.Fetcher.Run(fetching) })
	}
	closed := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer closed()
	err := s.accept(ctx, inner, l)
	_ = l.Close() // a second time after AfterFunc, and harmless
	s.book.drain()
	stop()
	late := time.AfterFunc(s.o.DrainTimeout, func() {
		cut()
		s.book.cut()
	})
	defer late.Stop()
	s.book.running.Wait()
	return err
}

// Kill ends every connection by a reset and lets no more in, as the death of
// the machine would. Serve goes on until its context ends.
func (s *Server) Kill() { s.book.kill() }

const (
	firstPause = 5 * time.Millisecond
	maxPause   = time.Second
)

// accept takes connections. Where the system has no more descriptors it waits
// for some to come back.
func (s *Server) accept(ctx, inner context.Context, l net.Listener) error {
	pause := firstPause
	for {
		raw, err := l.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				_ = raw.Close() // nothing was said yet
			}
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("the listener of Interface A is gone: %w", err)
		case err != nil:
			s.o.Log.Warn("southbound: no connection can be taken; trying again", "error", err, "in", pause)
			if !sleep(ctx, pause) {
				return nil
			}
			pause = min(2*pause, maxPause)
			continue
		}
		pause = firstPause
		s.book.running.Go(func() { s.contain(inner, raw) })
	}
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
