package daemon

import (
	"context"
	"errors"
	"path/filepath"
	"sync"
	"time"

	"github.com/bedside-gateway/gatewayd/internal/config"
	"github.com/bedside-gateway/gatewayd/internal/enroll"
	"github.com/bedside-gateway/gatewayd/internal/status"
	"github.com/bedside-gateway/gatewayd/keystore"
	"github.com/bedside-gateway/gatewayd/keystore/tpm"
)

// Start is New, for a gateway that may not have the key of its spool at the
// moment, for its TPM is away or a file is damaged: without it what the devices
// say could not be kept. Until it is there, the gateway says on its status socket
// what is wrong and what to do, and tries again. Other errors are those of New.
func Start(ctx context.Context, c *config.Config, o Options) (*Daemon, error) {
	h := newHeld(o.filled(), c)
	defer h.end()
	slow := time.AfterFunc(min(h.options.HoldPeriod, patience), h.begin)
	defer slow.Stop()
	for {
		d, err := prepare(ctx, h.config(), o)
		switch {
		case err == nil:
			slow.Stop()
			h.end() // its socket is needed
			return d.complete()
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case !mendable(err):
			return nil, err
		}
		if err := h.wait(ctx, err); err != nil {
			return nil, err
		}
	}
}

// patience is how long a start may take before the status socket tells of it.
const patience = 3 * time.Second

// mendable reports whether a gateway waits for the end of what keeps it from
// beginning: to end would leave nobody to say on site what is wrong.
func mendable(err error) bool {
	return tpm.FaultOf(err) != "" || errors.Is(err, keystore.ErrFingerprint) || errors.Is(err, errNotKey) || errors.Is(err, errOrphaned)
}

// held is a gateway that cannot begin. It answers on the status socket.
type held struct {
	options Options
	since   time.Time

	mu     sync.Mutex
	c      *config.Config
	fault  error
	stop   context.CancelFunc // of what serves; nil: nothing does
	served chan error
	over   bool
}

func newHeld(o Options, c *config.Config) *held {
	silent := &tpm.Error{Fault: tpm.Busy, What: "open the spool", Address: c.Identity.TPM, Err: errors.New("it has not given the key of the spool yet")}
	return &held{options: o, since: o.Now(), c: c, fault: silent}
}

func (h *held) config() *config.Config {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.c
}

// begin opens the status socket, unless it is open already.
func (h *held) begin() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.stop != nil || h.over {
		return
	}
	server, err := status.Listen(h.c.Gateway.StatusSocket, h, nothing{}, h.options.Log)
	h.served = make(chan error, 1)
	var ctx context.Context
	ctx, h.stop = context.WithCancel(context.Background())
	if err != nil {
		h.served <- err
		return
	}
	go func() {
		err := server.Serve(ctx)
		server.Close()
		h.served <- err
	}()
	go h.feed(ctx)
}

// feed feeds the watchdog: to start the process anew would change nothing.
func (h *held) feed(ctx context.Context) {
	for ctx.Err() == nil {
		h.options.Notify("WATCHDOG=1")
		pause(ctx, h.options.Period)
	}
}

// end closes it. It is not opened again.
func (h *held) end() {
	h.mu.Lock()
	stop := h.stop
	h.over, h.stop = true, nil
	h.mu.Unlock()
	if stop != nil {
		stop()
		<-h.served
	}
}

// wait tells of a fault, and returns when it is time to try again.
func (h *held) wait(ctx context.Context, fault error) error {
	h.mu.Lock()
	told := h.fault.Error() == fault.Error()
	h.fault = fault
	h.mu.Unlock()
	h.begin()
	if !told {
		h.options.Log.Error("the key of the spool cannot be had; gatewayd waits for it", "error", fault)
		h.options.Notify("READY=1\nSTATUS=" + h.line())
	}
	again := time.NewTimer(h.options.HoldPeriod)
	defer again.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case err := <-h.served:
		h.served <- nil
		return err
	case <-again.C:
	}
	h.reload()
	return nil
}

// reload reads the configuration again: it may have been mended.
func (h *held) reload() {
	if h.options.Load == nil {
		return
	}
	if c, err := h.options.Load(); err == nil {
		h.mu.Lock()
		h.c = c
		h.mu.Unlock()
	}
}

func (h *held) line() string {
	r := h.Report()
	return r.Line()
}

// Live is nil: to start anew would change nothing.
func (h *held) Live() error { return nil }

// Report says what is wrong and nothing else.
func (h *held) Report() status.Report {
	h.mu.Lock()
	defer h.mu.Unlock()
	r := status.Report{Gateway: h.c.Gateway.Name, Now: h.options.Now(), Started: h.since, Build: h.options.Build,
		Ports: []status.Port{}, Destinations: []status.Destination{}, Reloads: map[string]uint64{}}
	h.raise(&conditions{report: &r})
	r.Judge()
	return r
}

func (h *held) raise(c *conditions) {
	text, next := "for the TPM does not give its key", "Mend what is said about the TPM. If its secrets are gone for good, begin anew, with a new spool; the old one is put aside unread: "+tpm.AnewWithout+"."
	if e, ok := errors.AsType[*tpm.Error](h.fault); ok {
		c.tpm(e, whole, h.since)
	} else if errors.Is(h.fault, keystore.ErrFingerprint) {
		c.raise(status.Down, "identity-unreadable", "", h.since, "The note of the TPM that the keys are in ("+filepath.Join(enroll.Home(h.c), keystore.FingerprintFile)+") is damaged.",
			"Bring it back from a copy, or begin anew (the spool stays): "+tpm.Anew+".")
		text, next = "for it is not known by which TPM its key is sealed", "Mend the note of the TPM."
	} else {
		text, next = "for its key is not there or is something else", sentence(nextNotKey)
	}
	c.raise(status.Down, "spool-sealed", "", h.since, "The spool cannot be opened, "+text+" ("+filepath.Join(h.c.Gateway.StateDir, SealedFile)+"): nothing is read from the devices until then.", next)
}

// nothing is the spool of a gateway that cannot open it.
type nothing struct{}

func (nothing) List(string, func(status.Entry) error) error { return errSealed }
func (nothing) Show(uint64) (status.Entry, error)           { return status.Entry{}, errSealed }
func (nothing) Release(uint64) error                        { return errSealed }
func (nothing) Drop(uint64, string) error                   { return errSealed }

var errSealed = errors.New("the spool is sealed by the TPM and cannot be opened; gatewayd status says why")
