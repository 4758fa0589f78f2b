package daemon

import (
	"context"
	"errors"
	"path/filepath"
	"sync"
	"time"

	"github.com/bedside-gateway/gatewayd/internal/config"
	"github.com/bedside-gateway/gatewayd/internal/status"
	"github.com/bedside-gateway/gatewayd/keystore/tpm"
)

// Start is New, for a TPM that may be away: without it the key of the spool
// cannot be had, and what the devices say could not be kept. Until the TPM is
// back, the gateway says on its status socket what is wrong and what to do, and
// tries again. Other errors are those of New.
func Start(ctx context.Context, c *config.Config, o Options) (*Daemon, error) {
	h := newHeld(o.filled(), c)
	defer h.end()
	slow := time.AfterFunc(h.options.HoldPeriod, h.begin)
	defer slow.Stop()
	for {
		d, err := prepare(ctx, h.config(), o)
		e, ok := errors.AsType[*tpm.Error](err)
		switch {
		case ctx.Err() != nil && err != nil:
			return nil, ctx.Err()
		case !ok && err != nil:
			return nil, err
		case !ok:
			slow.Stop()
			h.end() // its socket is needed
			return d.complete()
		}
		if err := h.wait(ctx, e); err != nil {
			return nil, err
		}
	}
}

// held is a gateway that cannot begin. It answers on the status socket.
type held struct {
	options Options
	since   time.Time

	mu     sync.Mutex
	c      *config.Config
	fault  *tpm.Error
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
func (h *held) wait(ctx context.Context, fault *tpm.Error) error {
	h.mu.Lock()
	told := h.fault.Error() == fault.Error()
	h.fault = fault
	h.mu.Unlock()
	h.begin()
	if !told {
		h.options.Log.Error("the key of the spool cannot be had; gatewayd waits for the TPM", "error", fault)
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
	c := conditions{report: &r}
	c.tpm(h.fault, whole, h.since)
	c.raise(status.Down, "spool-sealed", "", h.since, "The spool cannot be opened, for the TPM does not give its key ("+filepath.Join(h.c.Gateway.StateDir, SealedFile)+"): nothing is read from the devices until it does.",
		"Mend what is said about the TPM. If its secrets are gone for good, begin anew, with a new spool; the old one is put aside unread: "+tpm.AnewWithout+".")
	r.Judge()
	return r
}

// nothing is the spool of a gateway that cannot open it.
type nothing struct{}

func (nothing) List(string, func(status.Entry) error) error { return errSealed }
func (nothing) Show(uint64) (status.Entry, error)           { return status.Entry{}, errSealed }
func (nothing) Release(uint64) error                        { return errSealed }
func (nothing) Drop(uint64, string) error                   { return errSealed }

var errSealed = errors.New("the spool is sealed by the TPM and cannot be opened; gatewayd status says why")
