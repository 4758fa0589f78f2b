// Package platform is a reference platform: the far end that a gateway delivers
// to. It takes PCD messages with the server of package southbound, stores them and
// acknowledges them by the rules, and it can be told to do what real platforms
// do on bad days: refuse, answer late, twice, for another message or not at
// all, hang up, and die.
//
// Tests and gatewaysim use it; the firmware never does. It counts what it got
// by control ID, so that both ends of a run can be held against each other.
package platform

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/bedside-gateway/gatewayd/internal/sim/pki"
	"github.com/bedside-gateway/gatewayd/internal/sim/responder"
	"github.com/bedside-gateway/gatewayd/observation"
	"github.com/bedside-gateway/gatewayd/pcd"
	"github.com/bedside-gateway/gatewayd/revocation"
	"github.com/bedside-gateway/gatewayd/revocation/fetch"
	"github.com/bedside-gateway/gatewayd/southbound"
)

// Options say how the platform is set up. Certificates and Roots are required.
type Options struct {
	Certificates []tls.Certificate // ECC, RSA or both, each with its issuing CA (A4, A5)
	Roots        *x509.CertPool    // what device certificates must chain to (A6)
	// Authorised are the devices that may connect (A8); empty: every device
	// with a good certificate.
	Authorised []observation.EUI64

	// Hospital is the PKI of the certificates: the platform then staples
	// responses for its own chain, and judges devices by the hospital's CRLs. Without
	// it a gateway refuses the platform, and a revoked device gets in.
	Hospital *pki.PKI
	Staple   []responder.Answer // for its own chain, leaf first; default the truth
	// Fetcher asks the responders that the certificates name, in place of what
	// Hospital does. It stays the caller's to close.
	Fetcher *fetch.Fetcher
	// Staples and Judge take the place of either, see tlspolicy.Server.
	Staples    func(i int) [][]byte
	Judge      func(ctx context.Context, chain []*x509.Certificate, stapled [][]byte) []revocation.Verdict
	LeafOnly13 bool // staple for the leaf alone in TLS 1.3

	Dir    string // of the store; empty: in memory only
	Strict bool   // refuse messages that break the profile, with CE or AE
	Answer []Answer

	MaxConnections   int           // default 64
	MaxMessage       int           // bytes; default 1 MiB
	HandshakeTimeout time.Duration // default 10 s
	IdleTimeout      time.Duration // without a message; default 5 min
	MessageTimeout   time.Duration // from its first byte to its last; default 30 s
	Keep             int           // how many messages Messages gives; default 10000

	Now func() time.Time
	// Events is called, one call at a time, with what happens. It must not
	// call the platform.
	Events func(Event)
}

// An Event is something that happened at the platform.
type Event struct {
	Kind   EventKind
	Remote string   // address of the peer
	Peer   string   // common name of its certificate, once it is known
	Stored *Message // of Stored and Again: borrowed
	Text   string   // of Refused, Rejected, Closed: what and why
}

// An EventKind is the kind of an Event.
type EventKind uint8

// The kinds of events.
const (
	Listening EventKind = iota
	Killed
	Connected
	Refused  // a connection: no certificate, a bad one, too many connections
	Stored   // a message for the first time
	Again    // a message that was stored before, under the same control ID
	Rejected // a message that was not stored
	Closed   // a connection
)

// A Message is a stored message.
type Message struct {
	Record   // of its first copy, but Copy counts all
	Bytes    []byte
	Document *Document
	Findings []pcd.Finding
}

// Counts are what the platform counted since it was made, stored messages of
// earlier runs included.
type Counts struct {
	Stored      int `json:"stored"`      // distinct messages
	Again       int `json:"again"`       // further copies under the same control ID
	Repeated    int `json:"repeated"`    // messages that say what a stored one said under another control ID
	Conflicts   int `json:"conflicts"`   // a control ID used again for another content
	Rejected    int `json:"rejected"`    // not stored, conflicts included
	Findings    int `json:"findings"`    // breaches of the profile in stored messages
	Connections int `json:"connections"` // accepted handshakes
	Refused     int `json:"refused"`     // connections refused
	Skipped     int `json:"skipped"`     // bytes outside of frames
	Acks        int `json:"acks"`        // positive acknowledgements sent
}

// A Platform takes messages. Its methods are safe for concurrent use.
type Platform struct {
	o      Options
	south  southbound.Options
	ids    *pcd.ControlIDs // of the acknowledgements
	events sync.Mutex

	mu       sync.Mutex
	store    *store
	script   script
	known    map[string]*Record // by sender and control ID
	digests  map[string]string  // of contents: the control ID that said it first
	messages []*Message         // the last o.Keep
	counts   Counts
	address  string
	life     *life // nil while dead
	closed   bool
}

// A life is the time from Listen to Kill or Close.
type life struct {
	server *southbound.Server
	over   chan struct{}
	end    context.CancelFunc
	ended  chan struct{}
}

// New makes a platform and opens its store. Listen starts it.
func New(o Options) (*Platform, error) {
	if len(o.Certificates) == 0 || o.Roots == nil {
		return nil, errors.New("the platform needs a certificate with its key, and roots to judge devices by")
	}
	o.MaxConnections, o.MaxMessage = or(o.MaxConnections, 64), or(o.MaxMessage, 1<<20)
	o.HandshakeTimeout, o.IdleTimeout = or(o.HandshakeTimeout, 10*time.Second), or(o.IdleTimeout, 5*time.Minute)
	o.MessageTimeout, o.Keep = or(o.MessageTimeout, 30*time.Second), or(o.Keep, 10_000)
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Events == nil {
		o.Events = func(Event) {}
	}
	ids, err := pcd.NewControlIDs(rand.Reader)
	if err != nil {
		return nil, err
	}
	p := &Platform{o: o, ids: ids, known: map[string]*Record{}, digests: map[string]string{}}
	p.script.rest = slices.Clone(o.Answer)
	if err := p.configure(); err != nil {
		return nil, err
	}
	if o.Dir == "" {
		return p, nil
	}
	var records []Record
	if p.store, records, err = openStore(o.Dir); err != nil {
		return nil, err
	}
	for i := range records {
		p.remember(&records[i])
	}
	return p, nil
}

func or[T comparable](v, otherwise T) T {
	var zero T
	if v == zero {
		return otherwise
	}
	return v
}

// remember counts a row of the index: one of now or of an earlier run.
func (p *Platform) remember(r *Record) {
	if first := p.known[key(r.Sender, r.ControlID)]; first != nil {
		first.Copy = r.Copy
		p.counts.Again++
		return
	}
	p.known[key(r.Sender, r.ControlID)] = r
	p.counts.Stored++
	p.counts.Findings += r.Findings
	if _, said := p.digests[r.Digest]; said {
		p.counts.Repeated++
		return
	}
	p.digests[r.Digest] = r.ControlID
}

// key is what a receiver knows a message by: MSH-3 and MSH-10.
func key(sender, controlID string) string { return sender + "|" + controlID }

// configure makes the settings of the server of Interface A, with what the
// platform is told to do, and tries them.
func (p *Platform) configure() error {
	p.south = southbound.Options{
		Identities: p.o.Certificates, Roots: p.o.Roots, Authorised: p.authorised,
		Fetcher: p.o.Fetcher, Judge: p.o.Judge, Staples: p.o.Staples, LeafOnly13: p.o.LeafOnly13,
		MaxConnections: p.o.MaxConnections, MaxHandshakes: p.o.MaxConnections, MaxPerDevice: p.o.MaxConnections, MaxMessage: p.o.MaxMessage,
		HandshakeTimeout: p.o.HandshakeTimeout, IdleTimeout: p.o.IdleTimeout, MessageTimeout: p.o.MessageTimeout,
		Now: p.o.Now, Events: p.connection,
	}
	if err := p.simulate(); err != nil {
		return err
	}
	s, err := p.server(&life{})
	if err != nil {
		return err
	}
	s.Close()
	return nil
}

// simulate fills in what the platform makes up itself, because there is nobody to ask.
func (p *Platform) simulate() (err error) {
	o := &p.south
	if o.Staples == nil && p.o.Fetcher == nil {
		o.Staples = func(int) [][]byte { return nil }
		if p.o.Hospital != nil {
			s, err := newStapler(p.o.Hospital, p.o.Certificates, p.o.Staple, p.o.Now)
			if err != nil {
				return err
			}
			o.Staples = s.staples
		}
	}
	if o.Judge == nil && p.o.Fetcher == nil {
		o.Judge = unjudged
		if p.o.Hospital != nil {
			o.Judge, err = byCRL(p.o.Hospital, p.o.Now)
		}
	}
	return err
}

// server makes the server of a life.
func (p *Platform) server(l *life) (*southbound.Server, error) {
	o := p.south
	o.Answer = func(_ context.Context, m southbound.Message) ([]byte, error) {
		return (&session{p, l, m.Remote, m.Device}).message(m.Bytes)
	}
	return southbound.New(o)
}

// connection passes on what happens to connections.
func (p *Platform) connection(e southbound.Event) {
	out := Event{Remote: e.Remote, Peer: e.Device}
	if e.Err != nil {
		out.Text = e.Err.Error()
	}
	p.count(func(n *Counts) {
		n.Skipped += e.Skipped
		switch e.Kind {
		case southbound.Connected:
			n.Connections++
			out.Kind = Connected
		case southbound.Refused:
			n.Refused++
			out.Kind = Refused
		default:
			out.Kind = Closed
		}
	})
	p.event(out)
}

// authorised reports whether a device may connect (A8).
func (p *Platform) authorised(name string) bool {
	id, err := observation.ParseEUI64(name)
	return err == nil && (len(p.o.Authorised) == 0 || slices.Contains(p.o.Authorised, id))
}

// Listen starts taking connections on address, host:port. Port 0 takes a free
// one, which Address tells.
func (p *Platform) Listen(address string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return net.ErrClosed
	}
	if p.life != nil {
		return fmt.Errorf("the platform listens on %s already", p.address)
	}
	l := &life{over: make(chan struct{}), ended: make(chan struct{})}
	var err error
	if l.server, err = p.server(l); err != nil {
		return err
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		l.server.Close()
		return err
	}
	p.address, p.life = listener.Addr().String(), l
	ctx, end := context.WithCancel(context.Background())
	l.end = end
	go func() {
		defer close(l.ended)
		p.event(Event{Kind: Listening, Text: listener.Addr().String()})
		// It ends well: nobody else closes the listener.
		_ = l.server.Serve(ctx, listener)
		l.server.Close()
	}()
	return nil
}

// Address is where the platform listens or, while it is dead, last did.
func (p *Platform) Address() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.address
}

// SetAnswer changes the answers from the next message on. No answers are the rules.
func (p *Platform) SetAnswer(answers ...Answer) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.script.rest = slices.Clone(answers)
}

// FetchStaples gets the responses for the platform's own chain from their
// responders, where it has a Fetcher: before Listen, so that they are there for
// the first gateway. The error says what is missing still; it is tried again later.
func (p *Platform) FetchStaples(ctx context.Context) error {
	s, err := p.server(&life{})
	if err != nil {
		return err
	}
	defer s.Close()
	return s.FetchStaples(ctx)
}

// Kill is the death of the platform's machine as its peers see it: the listener
// is gone and every connection is reset. What is stored stays.
func (p *Platform) Kill() {
	if p.end((*southbound.Server).Kill) {
		p.event(Event{Kind: Killed, Text: p.Address()})
	}
}

// Restart brings a killed platform back to the same address. Meanwhile somebody
// may have the port for a moment: who dials a dead port from this machine can be
// given that very port to dial from.
func (p *Platform) Restart() error {
	for end := time.Now().Add(restartTime); ; time.Sleep(restartTime / 1000) {
		err := p.Listen(p.Address())
		if !errors.Is(err, syscall.EADDRINUSE) || time.Now().After(end) {
			return err
		}
	}
}

const restartTime = 10 * time.Second

// Close ends the platform for good: it takes no more messages, sends the
// answers that are due, and closes the store.
func (p *Platform) Close() error {
	p.end(func(*southbound.Server) {})
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	if p.store == nil {
		return nil
	}
	s := p.store
	p.store = nil
	return s.close()
}

// end ends the present life, if there is one, and waits for its goroutines.
func (p *Platform) end(part func(*southbound.Server)) bool {
	p.mu.Lock()
	l := p.life
	p.life = nil
	p.mu.Unlock()
	if l == nil {
		return false
	}
	close(l.over)
	part(l.server)
	l.end()
	<-l.ended
	return true
}

// Counts are the figures of now.
func (p *Platform) Counts() Counts {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.counts
}

// Messages are the messages of this run in the order of their arrival, the
// last Options.Keep of them.
func (p *Platform) Messages() []Message {
	p.mu.Lock()
	defer p.mu.Unlock()
	list := make([]Message, len(p.messages))
	for i, m := range p.messages {
		list[i] = *m
		list[i].Copy = p.known[key(m.Sender, m.ControlID)].Copy
	}
	return list
}

// Wait returns once condition holds for the counts, or with the error of ctx.
func (p *Platform) Wait(ctx context.Context, condition func(Counts) bool) error {
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !condition(p.Counts()) {
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w; the platform counted %+v", context.Cause(ctx), p.Counts())
		case <-tick.C:
		}
	}
	return nil
}

func (p *Platform) event(e Event) {
	p.events.Lock()
	defer p.events.Unlock()
	p.o.Events(e)
}

// pause waits, but not beyond the end of the life.
func (l *life) pause(d time.Duration) {
	select {
	case <-time.After(d):
	case <-l.over:
	}
}
