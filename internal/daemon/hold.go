package daemon

import (
	"context"
	"errors"
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
	began := o.filled().Now()
	for {
		d, err := New(c, o)
		if e, ok := errors.AsType[*tpm.Error](err); ok {
			h := &held{options: o.filled(), gateway: c.Gateway.Name, fault: e, since: began}
			if err := h.wait(ctx, c); err != nil {
				return nil, err
			}
			if o.Load != nil { // the file may have been mended
				if again, err := o.Load(); err == nil {
					c = again
				}
			}
			continue
		}
		return d, err
	}
}

// held is a gateway that cannot begin.
type held struct {
	options Options
	gateway string
	fault   *tpm.Error
	since   time.Time
}

// wait answers on the status socket for a while.
func (h *held) wait(ctx context.Context, c *config.Config) error {
	h.options.Log.Error("the key of the spool cannot be had; gatewayd waits for the TPM", "error", h.fault)
	server, err := status.Listen(c.Gateway.StatusSocket, h, nothing{}, h.options.Log)
	if err != nil {
		return err
	}
	defer server.Close()
	h.options.Notify("READY=1\nSTATUS=" + h.line() + "\nWATCHDOG=1")
	limited, cancel := context.WithTimeout(ctx, h.options.HoldPeriod)
	defer cancel()
	err = server.Serve(limited)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

func (h *held) line() string {
	r := h.Report()
	return r.Line()
}

// Live is nil: to start anew would change nothing.
func (h *held) Live() error { return nil }

// Report says what is wrong and nothing else.
func (h *held) Report() status.Report {
	r := status.Report{Gateway: h.gateway, Now: h.options.Now(), Started: h.since, Build: h.options.Build,
		Ports: []status.Port{}, Destinations: []status.Destination{}, Reloads: map[string]uint64{}}
	c := conditions{report: &r}
	c.tpm(h.fault, h.since)
	c.raise(status.Down, "spool-sealed", "", h.since, "The spool is sealed by the TPM and cannot be opened: nothing is read from the devices until it can.",
		"Mend what is said about the TPM. If its secrets are gone for good, gatewayd enroll reset --abandon-spool begins a new spool.")
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
