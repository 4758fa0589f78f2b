package tunnel

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/bedside-gateway/gatewayd/tunnel/inspect"
	"github.com/bedside-gateway/gatewayd/tunnel/relay"
)

// A session is one connection of a device, and the one to its platform.
type session struct {
	s        *Server
	listener *listener
	settings Listener     // of its listener when it came
	device   *net.TCPConn // nil once it flows
	from     netip.AddrPort
	mac      MAC // where its listener asks for it
	since    time.Time
	moved    relay.Counter

	// Guarded by Server.mu.
	phase      phase
	gate       *gate // once the hello has said which
	verdict    inspect.Verdict
	judged     Verdict
	draining   bool
	cutAlready bool // to make room
	counted    bool // its bytes are in Counts

	mu       sync.Mutex
	platform *net.TCPConn       // once it is dialled; nil once it flows
	flowing  *relay.Flow        // once it does
	cancel   context.CancelFunc // ends what it waits for
	why      error              // it was cut by us
	over     bool
}

// A phase is how far a session has come.
type phase uint8

const (
	greeting phase = iota // no ClientHello yet
	judging               // platform and handshake are being judged
	open
)

// morePlaces is the next step where there are too few: the daemon may have lowered
// max_sessions to what the descriptors suffice for.
const morePlaces = "raise max_sessions in [[tunnel]], or LimitNOFILE where the condition descriptors-short says so"

var (
	errStopping = errors.New("the gateway is shutting down")
	errRemoved  = errors.New("the configuration leads it nowhere any more")
	errNewer    = errors.New("the device has newer connections; see why it does not close the old ones, or raise max_per_device in [[tunnel]]")
	errSlow     = errors.New("it sent no ClientHello, and others needed the place; see what it is, or " + morePlaces)
	errFull     = errors.New("too many sessions are open; " + morePlaces)
	errRate     = errors.New("the device connects too often; see why it does, or raise max_rate in [[tunnel]]")
	errNetwork  = errors.New("it is not of the networks that may connect; if it is a device of this place, add its network to networks in [[tunnel]]")
	errCard     = errors.New("it has not one of the MAC addresses that may connect")
	errProbe    = errors.New("it was closed again without a byte")
	errSilent   = errors.New("it sent no whole ClientHello in time; see whether it speaks TLS")
	errGone     = errors.New("the device ended the connection during the TLS handshake")
	errPlatform = errors.New("the platform ended the connection during the TLS handshake; look in its log")
)

// errLate is a side, "device" or "platform", that let the session wait for too long.
type errLate struct{ who string }

func (e errLate) Error() string {
	return "the " + e.who + " did not go on with the TLS handshake in time; see whether it is overloaded, or the network loses packets"
}

// errGateClosed is a session that may not be, for what the gate found out.
type errGateClosed struct{ err error }

func (e errGateClosed) Error() string { return "the gate is closed: " + e.err.Error() }
func (e errGateClosed) Unwrap() error { return e.err }

// Alerts that the tunnel itself gives (RFC 8446, section 6).
const (
	alertAccessDenied tls.AlertError = 49
	alertInternal     tls.AlertError = 80
	alertCanceled     tls.AlertError = 90
)

// begin runs a session from its first byte to where it may flow, and reports
// whether it got there.
func (x *session) begin(ctx context.Context) bool {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	x.mu.Lock()
	x.cancel = cancel
	x.mu.Unlock()
	err := x.establish(ctx)
	if err == nil {
		x.s.opened(x)
		return true
	}
	defer x.finish()
	if err = x.cause(err); errors.Is(err, errProbe) {
		x.s.probed(x)
		return false
	}
	x.s.refused(x, err)
	x.turnAway(err)
	return false
}

// flow hands it to the relay from there to its end. Nothing of ours runs for it
// meanwhile.
func (x *session) flow() {
	x.s.running.Add(1)
	x.mu.Lock()
	device, platform, err := x.device, x.platform, x.why
	x.cancel = nil
	x.device, x.platform = nil, nil
	if err == nil {
		x.flowing, err = x.s.relay.Begin(device, platform, x.settings.IdleTimeout, &x.moved, x.flowed)
	} else {
		device.Close()
		platform.Close()
	}
	x.mu.Unlock()
	if err != nil {
		x.flowed(err)
	}
}

// flowed is the end.
func (x *session) flowed(err error) {
	defer x.s.running.Done()
	x.s.contain(x, func() {
		defer x.finish()
		x.s.closed(x, x.cause(err))
	})
}

// cause is why we cut it, or else what happened.
func (x *session) cause(err error) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.why != nil {
		return x.why
	}
	return err
}

// cut ends the session now. Before it flows, that only wakes what it waits for:
// the device is still to be told.
func (x *session) cut(why error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.why == nil {
		x.why = why
	}
	if x.flowing != nil {
		x.flowing.Cut(net.ErrClosed)
		return
	}
	if x.cancel != nil {
		x.cancel()
	}
	_ = x.setDeadline(time.Unix(1, 0)) // fails where they are closed, which wakes too
}

// within gives both sides until then, unless the session was cut.
func (x *session) within(end time.Time) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.why != nil {
		return x.why
	}
	return x.setDeadline(end)
}

// setDeadline is for what is open, under the lock.
func (x *session) setDeadline(t time.Time) error {
	var errs []error
	for _, c := range []*net.TCPConn{x.device, x.platform} {
		if c != nil {
			errs = append(errs, c.SetDeadline(t))
		}
	}
	return errors.Join(errs...)
}

// silent reports whether nothing moved for a time, and nothing waits for a
// receiver that is slow.
func (x *session) silent(now time.Time, d time.Duration) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.flowing != nil && now.Sub(x.moved.Last()) >= d && !x.flowing.Pending()
}

// close closes what is open, under the lock.
func (x *session) close() {
	if x.flowing != nil {
		x.flowing.Cut(net.ErrClosed)
	}
	for _, c := range []*net.TCPConn{x.device, x.platform} {
		if c != nil {
			c.Close()
		}
	}
}

// finish closes what is open and takes the session off the lists.
func (x *session) finish() {
	x.mu.Lock()
	x.over = true
	x.close()
	x.mu.Unlock()
	x.s.leave(x)
}

func (x *session) isOver() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.over
}

// turnAway tells the device in TLS that its session will not be.
func (x *session) turnAway(err error) {
	if _, passed := errors.AsType[*inspect.EndError](err); passed {
		if x.platform != nil {
			_ = x.platform.CloseWrite() // the alert was for it, or from it
		}
		linger(x.device)
		return
	}
	record := alertFor(err)
	if record == nil || x.device.SetWriteDeadline(time.Now().Add(lingerTime)) != nil {
		return
	}
	if _, err := x.device.Write(record); err == nil {
		linger(x.device)
	}
}

// alertFor is what the device is told; nil is nothing.
func alertFor(err error) []byte {
	if cut, ok := errors.AsType[*inspect.CutError](err); ok {
		return cut.Record()
	}
	switch {
	case errors.Is(err, errSilent), errors.Is(err, errSlow), errors.Is(err, errGone):
		return nil // it does not speak TLS, or not any more
	case errors.Is(err, errStopping), errors.Is(err, errRemoved):
		return inspect.Alert(0, alertCanceled)
	}
	_, unreachable := errors.AsType[*ReachError](err)
	if _, late := errors.AsType[errLate](err); late || unreachable || errors.Is(err, errPlatform) {
		return inspect.Alert(0, alertInternal)
	}
	return inspect.Alert(0, alertAccessDenied)
}

// establish brings the session to where it may flow unseen.
func (x *session) establish(ctx context.Context) error {
	var v Verdict
	names, nameless := x.settings.names()
	in := inspect.New(inspect.Rules{MinVersion: x.settings.MinVersion, Allow13: x.settings.Allow13, Resumption: x.settings.AllowResumption,
		ServerNames: names, Nameless: nameless, JudgeStapled: func(chain []*x509.Certificate, responses [][]byte, known bool) error {
			return x.gate.stapled(v, chain, responses, known)
		}})
	hello, err := x.greeting(in)
	if err != nil {
		return err
	}
	end := time.Now().Add(x.s.o.HandshakeTimeout)
	ctx, cancel := context.WithDeadline(ctx, end)
	defer cancel()
	if err := x.s.route(x, in.Hello().ServerName); err != nil {
		return err
	}
	if v, err = x.gate.pass(ctx); err != nil {
		return fmt.Errorf("the platform was not judged: %w", errLate{"platform"})
	}
	x.s.mu.Lock()
	x.judged = v
	x.s.mu.Unlock()
	if v.Result != Good {
		return errGateClosed{v.Err}
	}
	in.Expect(v.leaves)
	if err := x.dial(ctx, v); err != nil {
		return err
	}
	if err := x.shake(in, hello, end); err != nil {
		return err
	}
	return x.s.admit(x, in.Verdict())
}

// readSize is of the buffers that are there until the session flows.
const readSize = 4 << 10

// greeting reads the device's ClientHello, and gives what is to be sent on of it.
func (x *session) greeting(in *inspect.Inspector) (hello []byte, err error) {
	if err := x.within(time.Now().Add(x.s.o.HelloTimeout)); err != nil {
		return nil, err
	}
	buffer := make([]byte, readSize)
	for gone := errProbe; in.Hello() == nil; gone = errGone {
		n, err := x.device.Read(buffer)
		if n > 0 {
			pass, err := in.Device(buffer[:n])
			hello = append(hello, pass...)
			if err != nil {
				return nil, err
			}
			continue
		}
		if isTimeout(err) {
			return nil, errSilent
		}
		return nil, gone
	}
	return hello, nil
}

// dial connects to the address that was judged, and has the gate know of the session.
func (x *session) dial(ctx context.Context, v Verdict) error {
	conn, err := x.s.dial(ctx, v.Address.String())
	if err != nil {
		e := unreachable(v.Address.String(), err, x.s.o.HandshakeTimeout)
		e.Judged = true
		return e
	}
	x.mu.Lock()
	x.platform = conn
	why := x.why
	x.mu.Unlock()
	if why != nil {
		return why
	}
	return x.gate.enter(x, v)
}

// shake carries the handshake under the eyes of the inspector until it needs to
// see no more.
func (x *session) shake(in *inspect.Inspector, hello []byte, end time.Time) error {
	if err := x.within(end); err != nil {
		return err
	}
	if x.gate.header() {
		hello = append(proxyHeader(x.from, addrPort(x.device.LocalAddr())), hello...)
	}
	if _, err := x.platform.Write(hello); err != nil {
		return fmt.Errorf("%w: %w", errPlatform, err)
	}
	w := &watcher{in: in}
	w.ways = [2]way{{"device", x.device, x.platform, in.Device, errGone}, {"platform", x.platform, x.device, in.Platform, errPlatform}}
	other := make(chan error, 1)
	go func() { other <- w.carry(0) }()
	err := w.carry(1)
	if theirs := <-other; theirs != nil && (err == nil || errors.Is(err, errStopped)) {
		err = theirs
	}
	if err != nil {
		return err
	}
	return x.within(time.Time{})
}

// A watcher carries both ways of a handshake past an inspector.
type watcher struct {
	ways [2]way

	mu sync.Mutex // around the inspector and stopped
	in *inspect.Inspector
	// stopped says that the other way has seen the end, good or bad.
	stopped bool
}

type way struct {
	by       string // who sends
	from, to *net.TCPConn
	inspect  func([]byte) ([]byte, error)
	ended    error // what it is when from ends
}

// errStopped is a way that ended because the other did.
var errStopped = errors.New("the other way ended")

// carry takes one way until the judgement is made. What was read is always
// written: from there on the bytes are the relay's.
func (w *watcher) carry(i int) error {
	one := w.ways[i]
	buffer := make([]byte, readSize)
	for {
		n, err := one.from.Read(buffer)
		if n > 0 {
			err = w.step(one, buffer[:n])
		} else if err = w.endOf(one, err); err == nil {
			return nil
		}
		if err != nil {
			w.stop(1 - i)
			return err
		}
		if w.done() {
			w.stop(1 - i)
			return nil
		}
	}
}

func (w *watcher) step(one way, p []byte) error {
	w.mu.Lock()
	pass, err := one.inspect(p)
	pass = slices.Clone(pass) // it holds only until the other way's next call
	w.mu.Unlock()
	if len(pass) == 0 {
		return err
	}
	if _, failed := one.to.Write(pass); failed != nil && err == nil {
		return fmt.Errorf("what the %s sent in the TLS handshake could not be passed on: %w", one.by, failed)
	}
	return err
}

// endOf is what the end of reading means; nil where the judgement is made.
func (w *watcher) endOf(one way, err error) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.in.Done():
		return nil
	case w.stopped:
		return errStopped
	case isTimeout(err):
		return errLate{w.in.Awaits()}
	}
	return one.ended
}

func (w *watcher) done() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.in.Done()
}

// stop wakes a way that waits for bytes.
func (w *watcher) stop(i int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stopped = true
	_ = w.ways[i].from.SetReadDeadline(time.Unix(1, 0)) // fails where it is closed, which wakes too
}
