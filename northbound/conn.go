package northbound

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/bedside-gateway/gatewayd/mllp"
	"github.com/bedside-gateway/gatewayd/pcd"
)

// counters go on over connections.
type counters struct {
	other       atomic.Uint64 // answers for another message than the one that waits
	unsolicited atomic.Uint64 // answers while none waits: late or twice
	skipped     atomic.Uint64 // bytes outside of blocks
}

// A Conn is a verified connection to a platform. One exchange at a time goes
// over it. A goroutine of its own reads at all times: so answers, an end by the
// peer and what comes unasked are all seen at once, and in order.
type Conn struct {
	d    *Destination
	raw  net.Conn
	tls  *tls.Conn
	mllp *mllp.Conn
	n    *counters

	answers chan answer   // room for one: the one that is waited for
	done    chan struct{} // closed when the reader has ended
	timer   *time.Timer   // of the exchange
	idle    *time.Timer   // closes an unused connection

	mu      sync.Mutex
	waiting string // control ID of the message that waits for its answer
	busy    bool
	used    bool // an exchange was completed
	closed  bool // by us: the reader's error is of our own making
	ended   time.Time
	err     error // why it ended, nil in good order
	notify  func()
}

type answer struct {
	ack pcd.Ack
	at  time.Time
}

func newConn(d *Destination, raw net.Conn, secure *tls.Conn, n *counters) *Conn {
	c := &Conn{d: d, raw: raw, tls: secure, mllp: mllp.NewConn(secure, d.MaxAckBytes), n: n,
		answers: make(chan answer, 1), done: make(chan struct{}), timer: time.NewTimer(time.Hour)}
	c.timer.Stop()
	c.idle = time.AfterFunc(d.IdleTimeout, c.closeIdle)
	go c.watch()
	return c
}

// State is what was negotiated and presented.
func (c *Conn) State() tls.ConnectionState { return c.tls.ConnectionState() }

// errNoID is for a message whose answer could not be told from others.
var errNoID = errors.New("message has no control ID")

// Exchange sends a message and waits for its acknowledgement: the one whose
// MSA-2 is the message's MSH-10. Codes of all kinds are results. Errors are
// *AckError or *RefusedError where the message was sent and its fate is not
// known, ErrNotSent where it was not; the connection is then closed. A message
// that cannot be sent at all gives a *mllp.PayloadError or the like, and leaves
// the connection as it was.
func (c *Conn) Exchange(ctx context.Context, message []byte) (pcd.Ack, error) {
	id, err := pcd.ControlID(message)
	if err != nil {
		return pcd.Ack{}, err
	}
	a, _, err := c.exchange(ctx, id, message)
	return a, err
}

// exchange also tells how long the answer took, from the first byte sent.
func (c *Conn) exchange(ctx context.Context, id string, message []byte) (pcd.Ack, time.Duration, error) {
	if id == "" {
		return pcd.Ack{}, 0, errNoID
	}
	if err := mllp.Check(message); err != nil {
		return pcd.Ack{}, 0, err
	}
	if err := c.begin(id); err != nil {
		return pcd.Ack{}, 0, err
	}
	defer context.AfterFunc(ctx, c.abort)() // ends a write that is stuck
	began := time.Now()
	if err := c.mllp.WriteBlock(message, began.Add(c.d.AckTimeout)); err != nil {
		return pcd.Ack{}, 0, cmp.Or(ctx.Err(), c.writeFailed(err))
	}
	a, err := c.await(ctx)
	if err != nil {
		return pcd.Ack{}, 0, err
	}
	c.finish()
	if c.d.StrictAck && a.ack.Enhanced() != wantsEnhanced(message) {
		c.abort()
		return pcd.Ack{}, 0, &AckError{Fault: WrongMode, Reason: "the platform answered with " + a.ack.Code + ", which is not of the mode that the message asks for",
			Next: "correct its acknowledgement mode, or set strict_ack = false"}
	}
	return a.ack, a.at.Sub(began), nil
}

func (c *Conn) await(ctx context.Context) (answer, error) {
	c.timer.Reset(c.d.AckTimeout)
	defer c.timer.Stop()
	select {
	case a := <-c.answers:
		return a, nil
	case <-c.done:
		select {
		case a := <-c.answers: // it closed right after the answer
			return a, nil
		default:
			return answer{}, c.lost()
		}
	case <-c.timer.C:
		return answer{}, c.timedOut()
	case <-ctx.Done():
		c.abort()
		return answer{}, ctx.Err()
	}
}

// begin takes the connection for an exchange.
func (c *Conn) begin(id string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case <-c.done:
		return c.notSent()
	default:
	}
	if c.closed {
		return c.notSent()
	}
	if c.busy {
		return errors.New("an exchange is under way on this connection")
	}
	c.busy, c.waiting = true, id
	return nil
}

func (c *Conn) notSent() error {
	if c.err != nil {
		return fmt.Errorf("%w: %w", ErrNotSent, c.err)
	}
	return ErrNotSent
}

func (c *Conn) finish() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.busy, c.used = false, true
	select {
	case <-c.done:
	default:
		c.idle.Reset(c.d.IdleTimeout)
	}
}

// watch reads until the connection ends.
func (c *Conn) watch() {
	skipped := 0
	for {
		b, err := c.mllp.ReadBlock(time.Time{})
		now := c.mllp.Reader().Skipped()
		c.n.skipped.Add(uint64(now - skipped))
		skipped = now
		if err == nil {
			err = c.receive(b)
		}
		if err != nil {
			c.end(err)
			return
		}
	}
}

// receive judges a block: the answer that is waited for, or one to be counted.
func (c *Conn) receive(b []byte) error {
	ack, err := pcd.ParseAck(b)
	if err != nil {
		return &AckError{Fault: Garbage, Reason: fmt.Sprintf("a block of %d bytes came that is no acknowledgement: %v", len(b), err),
			Next: "have the platform answer with ACK messages, and send its own over a connection of its own", Err: err}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.waiting == "":
		c.n.unsolicited.Add(1)
	case !ack.Answers(c.waiting, false):
		c.n.other.Add(1)
	default:
		c.waiting = ""
		c.answers <- answer{ack, time.Now()}
	}
	return nil
}

// end closes the connection for the reader's error.
func (c *Conn) end(err error) {
	c.raw.Close()
	c.mu.Lock()
	c.ended, c.err = time.Now(), c.explain(err)
	notify := c.notify
	c.idle.Stop()
	close(c.done)
	c.mu.Unlock()
	if notify != nil {
		notify()
	}
}

// explain puts the end of a connection in an operator's terms; nil is an end
// in good order, by the peer or by us.
func (c *Conn) explain(err error) error {
	if _, ok := err.(*AckError); ok {
		return err
	}
	if alert, ok := remoteAlert(err); ok {
		return c.d.refused(alert, err)
	}
	cut, isCut := errors.AsType[*mllp.CutError](err)
	switch {
	case errors.Is(err, mllp.ErrTooLarge):
		return &AckError{Fault: Oversize, Reason: fmt.Sprintf("the platform's answer is larger than %d bytes", c.d.MaxAckBytes), Next: "see what it sends there: an acknowledgement has some hundred bytes", Err: err}
	case errors.Is(err, mllp.ErrNoFinalCR):
		return &AckError{Fault: Unfinished, Reason: "the platform's answer ends in 0x1C without the 0x0D that MLLP asks for", Next: "correct the platform's MLLP framing", Err: err}
	case isCut && cut.Begun:
		return &AckError{Fault: Unfinished, Reason: fmt.Sprintf("the platform's answer broke off after %d bytes", cut.Inside), Next: "see the platform's log", Err: err}
	case errors.Is(err, mllp.ErrNoFrame) && c.strayText():
		return &AckError{Fault: Unframed, Reason: "the platform sent bytes without an MLLP frame" + c.strayKind(), Next: "switch MLLP framing on at the platform, release 1", Err: err}
	case c.closed, errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed), errors.Is(err, io.ErrClosedPipe):
		return nil
	}
	reason := "the connection broke: " + err.Error()
	if errors.Is(err, syscall.ECONNRESET) {
		reason = "the platform reset the connection"
	}
	return &AckError{Fault: Lost, Reason: reason, Next: "see the platform's log, and whether a firewall is in between", Err: err}
}

// strayText reports whether bytes outside of a frame are more than the end of
// one: some peers write that twice.
func (c *Conn) strayText() bool {
	return len(bytes.Trim(c.mllp.Reader().Stray(), "\x1c\r\n")) > 0
}

func (c *Conn) strayKind() string {
	switch stray := c.mllp.Reader().Stray(); {
	case bytes.HasPrefix(stray, []byte("MSH")):
		return ": they begin as an HL7 message does"
	case bytes.HasPrefix(stray, []byte("HTTP/")):
		return ": a web server is there"
	}
	return ""
}

// lost is the error of an exchange whose connection ended.
func (c *Conn) lost() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return c.err
	}
	return &AckError{Fault: Lost, Reason: "the platform closed the connection before it acknowledged", Next: "see the platform's log: it may have refused the message or be restarting", Err: io.ErrUnexpectedEOF}
}

// timedOut closes the connection, so that a late answer finds nobody, and looks
// at what came in place of an answer.
func (c *Conn) timedOut() error {
	c.abort()
	<-c.done
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return c.err
	}
	return &AckError{Fault: NoAnswer, Reason: fmt.Sprintf("no acknowledgement came within %v", c.d.AckTimeout),
		Next: "see whether the platform received the message, or give it longer with ack_timeout", Err: context.DeadlineExceeded}
}

// writeFailed hears the peer out: it may have said why it does not listen.
func (c *Conn) writeFailed(err error) error {
	c.timer.Reset(lingerTime)
	select {
	case <-c.done:
	case <-c.timer.C:
	}
	c.timer.Stop()
	c.abort()
	<-c.done
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, refused := c.err.(*RefusedError); refused {
		return c.err
	}
	if isTimeout(err) {
		return &AckError{Fault: NoAnswer, Reason: fmt.Sprintf("the platform did not read the message within %v", c.d.AckTimeout), Next: "see the platform's log: it is stuck or overloaded", Err: err}
	}
	return &AckError{Fault: Lost, Reason: "the connection ended while the message was sent", Next: "see the platform's log, and whether a firewall is in between", Err: err}
}

// alive reports whether the connection can still be used, as far as is known.
func (c *Conn) alive() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case <-c.done:
		return false
	default:
		return !c.closed
	}
}

// whenEnded has f called once the connection has ended; at once if it has.
func (c *Conn) whenEnded(f func()) {
	c.mu.Lock()
	c.notify = f
	c.mu.Unlock()
	select {
	case <-c.done:
		if f != nil {
			f()
		}
	default:
	}
}

func (c *Conn) markClosed() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed, c.waiting = true, ""
	c.idle.Stop()
}

// abort closes at once: nothing more is said, and nothing more is read.
func (c *Conn) abort() {
	c.markClosed()
	c.raw.Close()
}

// closeIdle closes an unused connection. It leaves one alone that is in use.
func (c *Conn) closeIdle() {
	c.mu.Lock()
	idle := !c.busy && !c.closed
	c.closed = c.closed || idle
	c.mu.Unlock()
	if idle {
		c.tls.Close()
	}
}

// Close says goodbye and closes the connection. An exchange that is under way fails.
func (c *Conn) Close() {
	c.markClosed()
	c.tls.Close()
	<-c.done
}

// wantsEnhanced reports whether a message asks for an accept acknowledgement
// (MSH-15), so that the answer has a code with C. With MSH-15 empty or NE it is
// the application's, with A.
func wantsEnhanced(message []byte) bool {
	if len(message) < 4 {
		return false
	}
	header, _, _ := bytes.Cut(message, []byte{'\r'})
	fields := bytes.Split(header, header[3:4])
	return len(fields) > 14 && len(fields[14]) > 0 && !bytes.Equal(fields[14], []byte("NE"))
}

func (c *Conn) endedAt() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ended
}

// cause is why the connection ended, nil in good order.
func (c *Conn) cause() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

func (c *Conn) wasUsed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.used
}
