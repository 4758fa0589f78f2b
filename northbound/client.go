package northbound

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/bedside-gateway/gatewayd/mllp"
	"github.com/bedside-gateway/gatewayd/pcd"
	"github.com/bedside-gateway/gatewayd/spool"
	"github.com/bedside-gateway/gatewayd/tlspolicy"
)

// A Queue is where a Client takes messages from; *spool.Queue is one.
type Queue interface {
	Next(context.Context) (spool.Entry, error)
	Sent(id uint64) error
	Accepted(id uint64) error
	Retry(id uint64, reason string) error
	Quarantine(id uint64, reason string) error
}

// Options are what a Client works with. The zero value is the system's own.
type Options struct {
	Log   *slog.Logger     // nil: no log
	Now   func() time.Time // for what Status says; timers are the runtime's
	Rand  func() float64   // in [0, 1), for jitter
	Dial  DialFunc
	Grace time.Duration // how long an exchange may go on after Run is told to stop
}

// DefaultGrace is the Grace of Options where it is zero.
const DefaultGrace = 5 * time.Second

// A Client delivers the messages of a queue to a destination. It has no state
// that matters beyond its queue: to change a destination, end Run and run
// another Client on the same queue.
type Client struct {
	d        Destination
	fault    error // of d
	queue    Queue
	o        Options
	backoff  backoff
	notices  notices
	counters counters
	resume   chan struct{}

	// Of the goroutine in Run.
	eager    bool      // connect now, without waiting for a message
	attempts uint64    // failed in a row
	entry    uint64    // the first message of the queue, as tried last
	errs     int       // how often it was answered CE or AE
	rejects  int       // how often it was answered CR or AR
	setAside bool      // a message was set aside for CE or AE since the last success
	oldest   time.Time // when the first message was made
	downAt   time.Time // the first failure of those in a row
	paced    time.Time // not before this is the next message sent
	other    uint64    // counters.other as logged last

	mu      sync.Mutex
	running bool
	conn    *Conn
	status  Status
}

// NewClient makes a client. What is wrong with d shows when it runs, as a
// refusal that is tried again.
func NewClient(d Destination, q Queue, o Options) *Client {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Rand == nil {
		o.Rand = rand.Float64
	}
	if o.Dial == nil {
		o.Dial = dialTCP()
	}
	o.Grace = cmp.Or(o.Grace, DefaultGrace)
	o.Log = o.Log.With("destination", d.Name)
	c := &Client{queue: q, o: o, backoff: backoff{rand: o.Rand}, resume: make(chan struct{}, 1)}
	c.d, c.fault = d.complete()
	c.status = Status{Destination: d.Name, State: Stopped, Since: o.Now(), Acks: map[string]uint64{}, Handshakes: map[string]uint64{}, RoundTrips: NewHistogram()}
	return c
}

// Run delivers until ctx ends. Then an exchange that is under way may still
// finish, for as long as Options.Grace; a message whose answer did not come
// stays in the queue. It returns nil, or the queue's error that ended it. It
// connects at once, so that what is wrong shows before the first message.
func (c *Client) Run(ctx context.Context) error {
	c.mu.Lock()
	if c.running {
		c.mu.Unlock()
		return fmt.Errorf("the client of destination %s runs already", c.d.Name)
	}
	c.running = true
	c.to(Connecting)
	c.mu.Unlock()
	defer c.stopped()
	c.eager = true
	exchanges, cancel := c.withGrace(ctx)
	defer cancel()
	for ctx.Err() == nil {
		if err := c.step(ctx, exchanges); err != nil && ctx.Err() == nil {
			return fmt.Errorf("queue of destination %s: %w", c.d.Name, err)
		}
	}
	return nil
}

// withGrace is a context for exchanges that ends some time after ctx does.
func (c *Client) withGrace(ctx context.Context) (context.Context, context.CancelFunc) {
	longer, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		timer := time.AfterFunc(c.o.Grace, cancel)
		context.AfterFunc(longer, func() { timer.Stop() })
	})
	return longer, func() { stop(); cancel() }
}

func (c *Client) stopped() {
	c.hangUp()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.running = false
	c.status.NextAttempt = time.Time{}
	c.to(Stopped)
}

// Resume ends the present pause: the next attempt is made now.
func (c *Client) Resume() {
	select {
	case c.resume <- struct{}{}:
	default:
	}
}

// step takes the first message of the queue one step on. The queue is asked
// anew each time: meanwhile its oldest messages may have been given up for
// want of room, or an operator may have dropped the one that was first.
func (c *Client) step(ctx, exchanges context.Context) error {
	if c.eager {
		if err := c.connect(ctx); err != nil {
			c.failed(ctx, err)
			return nil
		}
		c.eager = false
	}
	e, err := c.next(ctx)
	if errors.Is(err, errEnded) {
		c.connEnded(ctx)
		return nil
	}
	if err != nil {
		return err
	}
	c.turnTo(e)
	if err := c.connect(ctx); err != nil {
		c.failed(ctx, err)
		return nil
	}
	if !c.pause(ctx, time.Until(c.paced)) {
		return nil
	}
	if err := c.queue.Sent(e.ID); err != nil {
		return c.unlessGone(err)
	}
	// The platform answers to MSH-10. The entry's control ID is that of the
	// queue, in which messages of several senders have to be told apart.
	id, err := pcd.ControlID(e.Payload)
	if err != nil {
		return c.setApart(ctx, e, "cannot be sent: "+err.Error())
	}
	ack, took, err := c.conn.exchange(exchanges, id, e.Payload)
	c.paced = time.Now().Add(c.d.Pacing)
	c.noteOthers()
	if err != nil {
		return c.unanswered(ctx, e, err)
	}
	c.answered(ack.Code, took)
	return c.settle(ctx, e, ack)
}

// unlessGone passes over an entry that was given up meanwhile.
func (c *Client) unlessGone(err error) error {
	if errors.Is(err, spool.ErrNotFound) {
		return nil
	}
	return err
}

// probation is how long a connection has to last after a failure, where there
// is no message to try it with, before it counts as a good one: in TLS 1.3 the
// platform refuses our certificate after the handshake.
const probation = 2 * time.Second

var errEnded = errors.New("the connection ended")

// next waits for a message, or for the end of the connection.
func (c *Client) next(ctx context.Context) (spool.Entry, error) {
	conn := c.conn
	if conn == nil {
		return c.queue.Next(ctx)
	}
	if c.attempts > 0 {
		defer time.AfterFunc(probation, func() { c.proved(conn) }).Stop()
	}
	waiting, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	conn.whenEnded(func() { cancel(errEnded) })
	defer conn.whenEnded(nil)
	e, err := c.queue.Next(waiting)
	if err != nil && context.Cause(waiting) == errEnded && ctx.Err() == nil {
		return e, errEnded
	}
	return e, err
}

// turnTo begins to count for a message that was not first before.
func (c *Client) turnTo(e spool.Entry) {
	c.oldest = e.Made
	if e.ID != c.entry {
		c.entry, c.errs, c.rejects = e.ID, 0, 0
	}
}

// connect sees to it that there is a connection.
func (c *Client) connect(ctx context.Context) error {
	if c.conn != nil && c.conn.alive() {
		return nil
	}
	c.hangUp()
	if c.fault != nil {
		return c.fault
	}
	conn, err := c.d.open(ctx, c.o.Dial, &c.counters)
	if err != nil {
		return err
	}
	c.opened(conn)
	c.o.Log.Debug("connected to the platform", "address", c.d.Connect, "tls", c.status.TLS)
	if tlspolicy.IsCBC(conn.State().CipherSuite) && c.notices.due("cbc") {
		c.o.Log.Warn("the platform chose a cipher suite of the CBC mode", "tls", c.status.TLS, "next", "have a suite with GCM enabled at the platform, or TLS 1.3")
	}
	return nil
}

// hangUp closes the connection, if there is one.
func (c *Client) hangUp() {
	c.mu.Lock()
	conn := c.conn
	c.conn = nil
	c.mu.Unlock()
	if conn != nil {
		conn.Close()
	}
}

// connEnded looks at why a connection ended while no message waited. In good
// order, it is opened again for the next one; else it is tried again now, so
// that a platform which refuses us does not look well until then.
func (c *Client) connEnded(ctx context.Context) {
	err := c.conn.cause()
	if err == nil {
		c.o.Log.Debug("the connection was closed for want of messages")
		c.mu.Lock()
		c.to(Idle)
		c.mu.Unlock()
		c.hangUp()
		return
	}
	c.eager = true
	c.hangUp()
	c.failed(ctx, err)
}

// unanswered deals with a message that was sent, or should have been.
func (c *Client) unanswered(ctx context.Context, e spool.Entry, err error) error {
	if unsendable(err) {
		return c.setApart(ctx, e, "cannot be sent: "+err.Error())
	}
	// A connection that worked and then was found dead is no sign of trouble
	// yet: platforms close those that they have no use for. Another is tried
	// at once; if it is no better, with a pause.
	stale := c.conn.wasUsed() && (isLost(err) || errors.Is(err, ErrNotSent))
	suspicious := c.conn.mayBeRefused(err)
	c.hangUp()
	if !errors.Is(err, ErrNotSent) {
		c.mu.Lock()
		c.status.Unanswered++
		c.mu.Unlock()
	}
	if err := c.unlessGone(c.queue.Retry(e.ID, reasonOf(err))); err != nil {
		return err
	}
	if !stale {
		c.failed(ctx, c.explain(ctx, err, suspicious))
	}
	return nil
}

// explain finds out more about an exchange that failed. The first failure is
// taken as it is: a platform that was only just restarted earns no suspicion.
// Without an alert it is not a refusal yet: a platform may hang up for many reasons.
func (c *Client) explain(ctx context.Context, err error, suspicious bool) error {
	hangsUp := err == ErrNotSent
	if suspicious && c.attempts > 0 {
		refused, _ := c.d.why(ctx, c.o.Dial).(*RefusedError)
		if refused != nil && refused.Alert != 0 {
			return refused
		}
		hangsUp = hangsUp || refused != nil
	}
	if hangsUp {
		return &UnreachableError{Address: c.d.Connect, Err: err, Reason: "it closes the connection as soon as that is open", Next: "see the platform's log: it may not take this gateway's certificate"}
	}
	return err
}

func unsendable(err error) bool {
	_, ok := errors.AsType[*mllp.PayloadError](err)
	return ok || errors.Is(err, mllp.ErrEmpty) || errors.Is(err, errNoID)
}

func isLost(err error) bool {
	e, ok := errors.AsType[*AckError](err)
	return ok && e.Fault == Lost
}

// reasonOf is the error as it is kept with the message.
func reasonOf(err error) string {
	if e, ok := errors.AsType[*AckError](err); ok {
		return e.Reason
	}
	if errors.Is(err, context.Canceled) {
		return "the gateway stopped before the acknowledgement came"
	}
	return err.Error()
}

// settle does what the answer says.
func (c *Client) settle(ctx context.Context, e spool.Entry, ack pcd.Ack) error {
	switch {
	case ack.Accepted():
		c.setAside, c.oldest = false, time.Time{}
		c.worked()
		return c.record(ctx, func() error { return c.queue.Accepted(e.ID) }, func(s *Status) { s.Delivered++ })
	case ack.Rejected():
		return c.rejected(ctx, e, ack)
	}
	return c.held(ctx, e, ack)
}

// held is for CE and AE: see the package comment.
func (c *Client) held(ctx context.Context, e spool.Entry, ack pcd.Ack) error {
	c.errs++
	if c.errs >= c.d.ErrorTries && !c.setAside {
		c.setAside = true
		return c.setApart(ctx, e, fmt.Sprintf("the platform answered %s %d times: %s", ack.Code, c.errs, codes(ack)))
	}
	return c.tryLater(ctx, e, &answerError{Held, ack})
}

// rejected is for CR and AR.
func (c *Client) rejected(ctx context.Context, e spool.Entry, ack pcd.Ack) error {
	c.rejects++
	if c.rejects < c.d.RejectTries {
		return c.tryLater(ctx, e, &answerError{Held, ack})
	}
	if c.d.OnReject == Halt {
		c.backoff.pause = lastPause
		return c.tryLater(ctx, e, &answerError{Halted, ack})
	}
	c.worked()
	return c.setApart(ctx, e, fmt.Sprintf("the platform rejected it with %s: %s", ack.Code, codes(ack)))
}

func (c *Client) tryLater(ctx context.Context, e spool.Entry, err *answerError) error {
	if err := c.unlessGone(c.queue.Retry(e.ID, err.reason())); err != nil {
		return err
	}
	c.failed(ctx, err)
	return nil
}

// setApart quarantines a message, and says so.
func (c *Client) setApart(ctx context.Context, e spool.Entry, reason string) error {
	err := c.record(ctx, func() error { return c.queue.Quarantine(e.ID, reason) }, func(s *Status) { s.Quarantined++ })
	if err == nil {
		c.o.Log.Error("a message was set aside in quarantine", "control_id", e.ControlID, "entry", e.ID, "device", e.Device, "reason", reason,
			"next", "look at it with gatewayd spool show, mend the cause, then release or drop it")
	}
	return err
}

// record tells the queue what became of a message. A queue that cannot write
// is asked again before anything else is sent: what the platform has is not to
// be sent twice for a fault of our disk.
func (c *Client) record(ctx context.Context, tell func() error, count func(*Status)) error {
	for tries := 0; ; tries++ {
		err := c.unlessGone(tell())
		if err == nil {
			c.mu.Lock()
			count(&c.status)
			c.mu.Unlock()
			if tries > 0 {
				c.worked()
			}
			return nil
		}
		if errors.Is(err, spool.ErrClosed) || ctx.Err() != nil {
			return err
		}
		c.failed(ctx, &storeError{err})
	}
}

// worked ends a row of failures.
func (c *Client) worked() {
	if c.notices.up() {
		c.o.Log.Info("the platform takes messages again", "attempts", c.attempts, "down_for", clock(time.Since(c.downAt)))
	}
	c.backoff.reset()
	c.attempts, c.downAt = 0, time.Time{}
	c.succeeded()
}

// failed notes a failed attempt, and pauses before the next.
func (c *Client) failed(ctx context.Context, err error) {
	if ctx.Err() != nil {
		return
	}
	if c.downAt.IsZero() {
		c.downAt = time.Now()
	}
	pause := c.backoff.next()
	c.attempts++
	c.noteFailure(err, pause)
	c.logFailure(ctx, err)
	c.pause(ctx, pause)
}

func (c *Client) noteFailure(err error, pause time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	state, handshake := stateOf(err)
	_, declined := errors.AsType[*RefusedError](err)
	if declined != c.status.Declined {
		c.status.State = "" // whose refusal it is makes two of one state
	}
	c.status.Declined = declined
	c.to(state)
	if handshake != "" {
		c.status.Handshakes[handshake]++
	}
	c.status.Attempts = c.attempts
	c.status.Fault, c.status.NextAttempt = err.Error(), c.o.Now().Add(pause)
}

// stateOf is the state that an error leads to, and the result of the handshake
// where it was one.
func stateOf(err error) (state, handshake string) {
	if a, ok := errors.AsType[*answerError](err); ok {
		return a.state, ""
	}
	if _, ok := errors.AsType[*storeError](err); ok {
		return StoreFault, ""
	}
	if _, ok := errors.AsType[*tlspolicy.KeyError](err); ok {
		return KeyFault, "key"
	}
	if _, ok := errors.AsType[*UnreachableError](err); ok {
		return Unreachable, "unreachable"
	}
	if a, ok := errors.AsType[*AckError](err); ok && a.Fault != Lost {
		return Unanswered, ""
	}
	if _, ok := errors.AsType[*tlspolicy.RefusalError](err); ok {
		return Refused, "refused"
	}
	if _, ok := errors.AsType[*RefusedError](err); ok {
		return Refused, "refused"
	}
	return Unreachable, ""
}

// pause waits, and reports whether ctx still goes on.
func (c *Client) pause(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-c.resume:
	case <-ctx.Done():
	}
	return ctx.Err() == nil
}

// An answerError is an answer that keeps a message waiting.
type answerError struct {
	state string
	ack   pcd.Ack
}

func (e *answerError) reason() string {
	return fmt.Sprintf("the platform answered %s: %s", e.ack.Code, codes(e.ack))
}

func (e *answerError) Error() string {
	switch {
	case e.state == Halted:
		return e.reason() + "; nothing else is sent until it takes this message or you drop it with gatewayd spool drop"
	case e.ack.Rejected():
		return e.reason() + "; see the platform's log"
	}
	return e.reason() + "; it is tried again: see the platform's log for what it lacks"
}

// codes are the error codes of an answer, without its words.
func codes(ack pcd.Ack) string { return cmp.Or(ack.Reason(), "no error code given") }

// A storeError is a spool that does not take what became of a message.
type storeError struct{ err error }

func (e *storeError) Error() string {
	return "what became of a message cannot be stored: " + e.err.Error() + "; check the gateway's disk"
}
func (e *storeError) Unwrap() error { return e.err }
