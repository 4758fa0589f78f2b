// Package tpm keeps the gateway's secrets in a TPM 2.0: keys that are made
// there and sign there, and data that only this TPM gives back.
//
// Nothing it makes can leave the TPM in the clear. What is stored outside are
// files in the TSS2 form, which tpm2-openssl and tpm2-tools read as well: a
// public area, and a private one that only the TPM which made it can open. A
// file of another TPM, or of this one before it was cleared, is recognised and
// named as such.
//
// A TPM does one thing at a time and is slow at it. So a TPM value gives it to
// one user after the other, bounds each command by a deadline, keeps the keys
// in use loaded, and opens the device again when it failed. All sessions are
// salted with the storage key and encrypt what they carry, so that the wires
// between processor and TPM tell nothing. Packages keystore and internal/daemon
// call it.
package tpm

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

// DefaultAddress is the device of the kernel's resource manager: several
// programs may use the TPM through it side by side.
const DefaultAddress = "/dev/tpmrm0"

// Options are how a TPM is used. All of them may be left out.
type Options struct {
	// Expect is the TPM that the keys at hand were made in; another one is
	// refused. Nil takes any.
	Expect *Fingerprint
	// Approvals are the states of the platform that a signed policy allows, for
	// keys that are bound to one.
	Approvals []Approval
	// Patience is how long to wait for other users of this TPM; 0: 2 minutes.
	// A storm of a hundred handshakes on a TPM of 200 ms a signature needs 20 s.
	Patience time.Duration
	// Command is how long the TPM may take for a command; 0: 20 s. To make a
	// key it may take fifteen times as long.
	Command time.Duration
	Log     *slog.Logger // nil: none
	// Signed is called after each signature with the time that the TPM took.
	Signed func(took time.Duration)
	// Dial reaches the TPM; nil: by the address.
	Dial func(ctx context.Context, address string) (Conn, error)
}

// A TPM is a TPM 2.0 that is used by one goroutine after the other. It is
// opened when it is needed first, and again after a failure.
type TPM struct {
	address string
	o       Options
	turn    chan struct{} // holds one token: the right to use the rest
	link    *link         // nil: closed
	gone    chan struct{} // closed when the link before is
	loaded  []*Key        // in the present link, the least recently used one first
	waiting atomic.Int32
	life    context.Context // ends when it is closed
	end     context.CancelFunc

	approvals atomic.Pointer[[]Approval]
	expected  atomic.Pointer[Fingerprint] // nil: any
}

// A link is an open TPM with what is loaded in it.
type link struct {
	conn      Conn
	ctx       context.Context // of the present user
	o         *Options
	raw       bool // no resource manager: what is loaded stays until it is flushed
	session   tpm2.Session
	approvals *atomic.Pointer[[]Approval]
	expected  *atomic.Pointer[Fingerprint]
	broken    bool   // an answer is due that would be taken for that of another command
	storage   []byte // name of the storage key; nil: not known yet
}

// Open prepares for the TPM at address: a device such as /dev/tpmrm0,
// unix:PATH or tcp:HOST:PORT, the last two for emulators. It does not touch it
// yet; Check does.
func Open(address string, o Options) *TPM {
	if o.Patience == 0 {
		o.Patience = 2 * time.Minute
	}
	if o.Command == 0 {
		o.Command = 20 * time.Second
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Signed == nil {
		o.Signed = func(time.Duration) {}
	}
	if o.Dial == nil {
		o.Dial = Dial
	}
	t := &TPM{address: address, o: o, turn: make(chan struct{}, 1), gone: make(chan struct{})}
	close(t.gone)
	t.life, t.end = context.WithCancel(context.Background())
	t.turn <- struct{}{}
	t.SetApprovals(o.Approvals)
	t.Expect(o.Expect)
	return t
}

// Expect replaces the TPM of the Options that is taken: a gateway that is enrolled
// while it runs holds to this TPM from then on. Nil takes any.
func (t *TPM) Expect(f *Fingerprint) { t.expected.Store(f) }

// SetApprovals replaces those of the Options, as after an update that brought new
// ones. What is used from then on is used by them; nothing is loaded anew.
func (t *TPM) SetApprovals(all []Approval) {
	all = slices.Clone(all)
	t.approvals.Store(&all)
}

// Address is where the TPM is.
func (t *TPM) Address() string { return t.address }

// Check opens the TPM if it is not open, and makes sure that it answers and is
// the expected one. Errors are *Error.
func (t *TPM) Check(ctx context.Context) error {
	return t.use(ctx, "look at the TPM", func(l *link) error {
		_, err := l.property(tpm2.TPMPTManufacturer)
		return err
	})
}

// farewell is how long a TPM may take to be given back.
const farewell = 2 * time.Second

// Close gives the TPM back: keys and sessions are flushed. What is under way in
// it or waits for it returns at once, a signature in a TPM that hangs too, and
// keys cannot sign any more. It may be called at any time, and takes a few
// seconds at most.
func (t *TPM) Close() error {
	t.end()
	<-t.turn
	defer func() { t.turn <- struct{}{} }()
	if l := t.link; l != nil && l.raw {
		var cancel context.CancelFunc
		l.ctx, cancel = context.WithTimeout(context.Background(), farewell)
		defer cancel()
		_ = l.flushAll()
	}
	t.hangUp()
	select {
	case <-t.gone:
		return nil
	case <-time.After(farewell):
		return t.fault("give the TPM back", &transportError{errSilent})
	}
}

// use hands the open TPM to f. It waits for its turn, opens the TPM, and tries
// once more on a new link where the link broke or what was loaded is gone. What
// f does leaves nothing in the TPM, so that twice is as good as once. A TPM that
// hangs is not tried again before the next use: the caller has waited enough.
func (t *TPM) use(ctx context.Context, what string, f func(*link) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(t.life, func() { cancel(errClosed) })()
	if err := t.await(ctx); err != nil {
		return t.fault(what, err)
	}
	defer func() { t.turn <- struct{}{} }()
	if t.life.Err() != nil {
		return t.fault(what, errClosed)
	}
	stood := t.link != nil
	reached, err := t.try(ctx, f)
	if reached && isLost(err) && !errors.Is(err, errSilent) && ctx.Err() == nil {
		if stood { // else the caller is told, each time that it asks
			t.o.Log.Warn("the TPM broke off and is opened again", "error", err)
		}
		_, err = t.try(ctx, f)
	}
	return t.fault(what, err)
}

func (t *TPM) await(ctx context.Context) error {
	if ctx.Err() != nil { // a command that is cut off costs the link
		return tooLate(ctx)
	}
	select {
	case <-t.turn:
		return nil
	default:
	}
	t.waiting.Add(1)
	defer t.waiting.Add(-1)
	timer := time.NewTimer(t.o.Patience)
	defer timer.Stop()
	select {
	case <-t.turn:
		return nil
	case <-ctx.Done():
		return tooLate(ctx)
	case <-timer.C:
		return errImpatient
	}
}

// tooLate is why somebody waits for his turn no more. That his time is over says
// nothing about the TPM.
func tooLate(ctx context.Context) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return fmt.Errorf("%w: %w", errImpatient, ctx.Err())
	}
	return context.Cause(ctx)
}

// try runs f on the link, which it opens where there is none. A link that is
// lost is given up: nobody knows what is under way or loaded in it.
func (t *TPM) try(ctx context.Context, f func(*link) error) (reached bool, err error) {
	if reached, err = t.open(ctx); err != nil {
		return reached, err
	}
	t.link.ctx = ctx
	err = t.link.run(f)
	for keys := len(t.loaded); full(err) && keys > 0; keys-- {
		t.evict()
		err = t.link.run(f)
	}
	if full(err) && t.link.raw {
		t.o.Log.Warn("the TPM has no room for another key or session; all that is loaded is flushed")
		if err = t.link.run(t.reset); err == nil {
			err = t.link.run(f)
		}
	}
	if isLost(err) {
		t.hangUp()
	}
	return true, err
}

// run is f on the link, guarded: an answer that package tpm2 refuses is that of
// a TPM which is broken, or of somebody between. Should it panic on one, which
// fuzzing has not found, that must not end the gateway.
func (l *link) run(f func(*link) error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = &transportError{fmt.Errorf("its answer makes no sense: %v", r)}
		}
	}()
	if err = f(l); err != nil && !isAnswer(err) && !isDead(err) {
		return &transportError{fmt.Errorf("its answer cannot be trusted: %w", err)}
	}
	return err
}

// open tells also whether there was anybody at the address.
func (t *TPM) open(ctx context.Context) (reached bool, err error) {
	if t.link != nil {
		return true, nil
	}
	dialling, cancel := context.WithTimeout(ctx, t.o.Command)
	defer cancel()
	select {
	case <-t.gone:
	case <-dialling.Done():
		return false, &transportError{t.unreached(ctx)}
	}
	conn, err := t.o.Dial(dialling, t.address)
	if err != nil {
		return false, &transportError{err}
	}
	l := &link{conn: conn, ctx: ctx, o: &t.o, approvals: &t.approvals, expected: &t.expected, raw: isRaw(t.address)}
	if err := l.run((*link).begin); err != nil {
		t.leave(conn)
		return true, l.held(err)
	}
	t.link = l
	return true, nil
}

// unreached is why a TPM is not opened that has not let go of the link before.
func (t *TPM) unreached(ctx context.Context) error {
	if errors.Is(ctx.Err(), context.Canceled) {
		return context.Cause(ctx)
	}
	return fmt.Errorf("%w, and has not since a command before", errSilent)
}

// held tells a TPM that somebody else holds from one that hangs, as far as that
// can be told: a socket takes a second user and leaves it waiting.
func (l *link) held(err error) error {
	if l.raw && errors.Is(err, errSilent) {
		return &faultError{Busy, "it takes the connection and does not answer: another program holds it, or it hangs"}
	}
	return err
}

// begin makes sure that the TPM is started, empty where nobody manages it, and
// the expected one, and starts the session that signatures go through.
func (l *link) begin() error {
	if err := l.start(); err != nil {
		return err
	}
	if l.raw {
		if err := l.flushAll(); err != nil {
			return err
		}
	}
	parent, err := l.parent()
	if err != nil {
		return err
	}
	defer l.flush(parent.handle)
	l.session, _, err = tpm2.HMACSession(l, tpm2.TPMAlgSHA256, nonceSize, salted(parent), tpm2.AESEncryption(128, tpm2.EncryptIn))
	return err
}

// start starts up a TPM that nobody has: an emulator, or a device of its own
// where no firmware did.
func (l *link) start() error {
	_, err := l.property(tpm2.TPMPTManufacturer)
	if !errors.Is(err, tpm2.TPMRCInitialize) {
		return err
	}
	_, err = tpm2.Startup{StartupType: tpm2.TPMSUClear}.Execute(l)
	return err
}

// hangUp gives the link up, with what is loaded.
func (t *TPM) hangUp() {
	if t.link != nil {
		t.leave(t.link.conn)
	}
	t.link, t.loaded = nil, nil
}

// leave closes a connection, and waits for it no longer than who opens the next
// one: the kernel closes a device when the command that is under way is done. So
// there is one at most that a TPM which hangs holds on to.
func (t *TPM) leave(c Conn) {
	gone := make(chan struct{})
	t.gone = gone
	go func() {
		defer close(gone)
		_ = c.Close()
	}()
}

// evict flushes the least recently used key. It is loaded again when it signs next.
func (t *TPM) evict() {
	t.link.flush(t.loaded[0].handle)
	t.loaded = slices.Delete(t.loaded, 0, 1)
}

// reset flushes all, and begins anew.
func (t *TPM) reset(l *link) error {
	t.loaded = nil
	if err := l.flushAll(); err != nil {
		return err
	}
	return l.begin()
}

// What TPM2_GetCapability lists sessions by (Part 2, 7.2).
const (
	loadedSessions = tpm2.TPMHTHMACSession
	savedSessions  = tpm2.TPMHTPolicySession
)

// flushAll flushes all transient objects and sessions. On a TPM without a
// resource manager there is one user at a time, so that they are ours, or were
// left by one that is gone.
func (l *link) flushAll() error {
	for _, kind := range []tpm2.TPMHT{tpm2.TPMHTTransient, loadedSessions, savedSessions} {
		handles, err := l.handles(uint32(kind) << 24)
		if err != nil {
			return err
		}
		for _, h := range handles {
			l.flush(h)
		}
	}
	return nil
}

// flush takes an object or session out of the TPM. Where that fails the link is
// dead, and the next command tells.
func (l *link) flush(h tpm2.TPMHandle) {
	if _, err := (tpm2.FlushContext{FlushHandle: h}).Execute(l); err != nil {
		l.o.Log.Debug("flushing a handle of the TPM", "error", err)
	}
}

var _ transport.TPM = (*link)(nil)
