// Package daemon is the supervisor: it makes the ports, the spool and the
// destinations of a configuration, runs them side by side, swaps what a reload
// changes, and ends them in an order that loses nothing.
//
// It looks into no message and speaks no protocol. A monitor or platform that
// is not there never keeps it from starting; a configuration with a fault
// always does. cmd/gatewayd calls it for "gatewayd run".
package daemon

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bedside-gateway/gatewayd/drivers"
	"github.com/bedside-gateway/gatewayd/drivers/port"
	"github.com/bedside-gateway/gatewayd/internal/config"
	"github.com/bedside-gateway/gatewayd/internal/enroll"
	"github.com/bedside-gateway/gatewayd/internal/status"
	"github.com/bedside-gateway/gatewayd/keystore/tpm"
	"github.com/bedside-gateway/gatewayd/pcd"
	"github.com/bedside-gateway/gatewayd/spool"
)

// Options are what the daemon needs beside its configuration. Only Drivers is required.
type Options struct {
	Drivers *drivers.Registry
	// Load reads the configuration again, for Reload.
	Load  func() (*config.Config, error)
	Log   *slog.Logger   // nil: none
	Level *slog.LevelVar // follows log_level; nil: nothing follows
	Build status.Build
	// Notify tells systemd, as sd_notify(3); nil: nobody is told.
	Notify func(state string)
	// Period is how often the supervisor looks after everything; 0: 2 s. The
	// watchdog of systemd is fed once a period.
	Period time.Duration
	// Grace is how long the end may take; 0: 10 s.
	Grace time.Duration

	// Floor is a time that is past for certain: a clock before it is wrong.
	Floor  time.Time
	Random io.Reader        // nil: crypto/rand
	Now    func() time.Time // nil: time.Now
	// LockTimeout is how long to wait for another process to let the spool go; 0: 2 s.
	LockTimeout time.Duration
	// Open opens a port; nil: the port itself.
	Open func(context.Context, port.Spec, port.Line) (port.Port, error)
	// Listen listens for devices; nil: on TCP. Responders asks OCSP and CRL
	// servers; nil: the network.
	Listen     func(address string) (net.Listener, error)
	Responders *http.Client
	Timing     drivers.Timing
	// FileKey reads a development key; nil: this program takes none.
	FileKey func(certificate, key string) (tls.Certificate, error)
	// TPM is how the TPM is used, where something else than the usual is wanted.
	TPM tpm.Options
	// IdentityPeriod is how often the TPM and the slots are looked after; 0: 30 s.
	IdentityPeriod time.Duration
	// HoldPeriod is how often Start tries again while the TPM is away; 0: 10 s.
	HoldPeriod time.Duration
}

func (o *Options) fileKey(certificate, key string) (tls.Certificate, error) {
	if o.FileKey == nil {
		return tls.Certificate{}, errors.New("this is a release: it takes no private key from a file; take certificate, key and insecure_file_key out, and run gatewayd enroll init")
	}
	return o.FileKey(certificate, key)
}

// A Daemon is a gateway with a configuration.
type Daemon struct {
	options Options
	log     *slog.Logger
	spool   *spool.Spool
	ids     *pcd.ControlIDs
	sampler *sampler
	server  *status.Server
	started time.Time
	tpm     *tpm.TPM      // nil: the key is in a file
	watch   *identityUnit // of the TPM; nil likewise

	beat     atomic.Pointer[time.Time] // of the supervisor
	lastDrop atomic.Int64              // Unix nanoseconds; the spool tells of drops under its own lock
	// last ends when the grace time is over: then nothing may go on.
	last   context.Context
	giveUp context.CancelFunc

	reloading sync.Mutex // held by Reload and by the end

	mu            sync.Mutex
	config        *config.Config
	identity      identity
	ports         []*portUnit
	destinations  []*destinationUnit
	southbound    *southUnit  // nil: none
	southMissing  error       // why there is none although there should be
	tunnel        *tunnelUnit // nil: none yet
	tunnelMissing error       // as southMissing
	leaving       []*lane     // that a reload took off, and that may not have ended yet
	ready, ended  bool
	reloads       map[string]uint64
	reloadFault   string
	reloadedAt    time.Time
	restart       []string // keys that changed and need one
	simulated     map[string]change
	conditions    map[string]bool // that are logged
	line          string          // that systemd shows
}

// New opens the spool and the status socket and makes everything that the
// configuration names. Nothing runs yet.
func New(c *config.Config, o Options) (*Daemon, error) {
	d, err := prepare(context.Background(), c, o)
	if err != nil {
		return nil, err
	}
	return d.complete()
}

// prepare is the part of New that needs the TPM: it opens the spool with its
// key. Errors of the TPM are *tpm.Error.
func prepare(ctx context.Context, c *config.Config, o Options) (*Daemon, error) {
	d := &Daemon{options: o.filled(), config: c, reloads: map[string]uint64{"ok": 0, "refused": 0},
		simulated: map[string]change{}, conditions: map[string]bool{}}
	d.log, d.started = d.options.Log, d.options.Now()
	d.beats()
	d.sampler = newSampler(d.log)
	d.last, d.giveUp = context.WithCancel(context.Background())
	if err := d.open(ctx, c); err != nil {
		d.close()
		return nil, err
	}
	return d, nil
}

// complete is the rest of New. With an error everything is closed.
func (d *Daemon) complete() (*Daemon, error) {
	if err := d.furnish(d.config); err != nil {
		d.close()
		return nil, err
	}
	return d, nil
}

func (o Options) filled() Options {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Level == nil {
		o.Level = new(slog.LevelVar)
	}
	if o.Notify == nil {
		o.Notify = func(string) {}
	}
	if o.IdentityPeriod == 0 {
		o.IdentityPeriod = 30 * time.Second
	}
	if o.HoldPeriod == 0 {
		o.HoldPeriod = 10 * time.Second
	}
	if o.Period == 0 {
		o.Period = 2 * time.Second
	}
	if o.Grace == 0 {
		o.Grace = 10 * time.Second
	}
	if o.Random == nil {
		o.Random = rand.Reader
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Open == nil {
		o.Open = func(ctx context.Context, s port.Spec, l port.Line) (port.Port, error) { return s.Open(ctx, l) }
	}
	if o.Listen == nil {
		o.Listen = func(address string) (net.Listener, error) { return net.Listen("tcp", address) }
	}
	return o
}

func (d *Daemon) open(ctx context.Context, c *config.Config) error {
	d.options.Level.Set(c.Gateway.LogLevel)
	for _, w := range c.Warnings {
		d.log.Warn(w.String())
	}
	if err := os.MkdirAll(c.Gateway.StateDir, 0o700); err != nil {
		return fmt.Errorf("state folder: %w; create it for the user of gatewayd, or set state_dir", err)
	}
	if err := d.openTPM(c); err != nil {
		return err
	}
	if d.tpm != nil { // package tls gives a signature no context: one in a TPM that hangs would hold up the end
		context.AfterFunc(d.last, func() { _ = d.tpm.Close() }) // close tells of it
	}
	return d.openSpool(ctx, c)
}

// furnish makes what the configuration names, and opens the status socket.
func (d *Daemon) furnish(c *config.Config) (err error) {
	if d.ids, err = pcd.NewControlIDs(d.options.Random); err != nil {
		return err
	}
	p, err := d.plan(c)
	if err != nil {
		return &ConfigError{err}
	}
	d.identity, d.ports, d.destinations, d.southbound = p.identity, p.ports, p.destinations, p.southbound
	d.adoptTunnel(p.tunnel, false)
	for _, u := range p.ports {
		u.lanes.Store(ref(p.lanes[u]))
	}
	d.server, err = status.Listen(c.Gateway.StatusSocket, d, spoolStore{d.spool}, d.log)
	if err != nil {
		if d.southbound != nil {
			d.southbound.release()
		}
		return err
	}
	return nil
}

// openSpool opens the spool with its key. A key that has grown old is exchanged
// while the spool is empty.
func (d *Daemon) openSpool(ctx context.Context, c *config.Config) error {
	binding, err := enroll.Binding(c)
	if err != nil {
		return &ConfigError{err}
	}
	keeper := SpoolKey{Dir: c.Gateway.StateDir, TPM: d.tpm, Binding: binding}
	key, err := keeper.open(ctx, d.options.Random)
	if err != nil {
		return err
	}
	open := func() (err error) {
		d.spool, err = spool.Open(filepath.Join(c.Gateway.StateDir, SpoolFile), spool.Options{Key: key, MaxBytes: c.Spool.MaxBytes,
			MaxAge: c.Spool.MaxAge, LockTimeout: d.options.LockTimeout, Now: d.options.Now, Log: d.log, Dropped: d.dropped})
		if err != nil {
			return fmt.Errorf("spool: %w", err)
		}
		return nil
	}
	if err := open(); err != nil || !keeper.due(d.options.Now()) || !d.empty() {
		return err
	}
	if err := d.spool.Close(); err != nil {
		return fmt.Errorf("spool: %w", err)
	}
	d.spool = nil
	if key, err = keeper.rotate(ctx, d.options.Random); err != nil {
		return err
	}
	d.log.Info("the key of the spool was exchanged")
	return open()
}

// empty reports whether the spool holds no message at all.
func (d *Daemon) empty() bool {
	for _, q := range d.spool.Stats().Queues {
		if q.Messages+q.Quarantined > 0 {
			return false
		}
	}
	return true
}

// A ConfigError is that a configuration cannot be put to work, although each of
// its keys is right.
type ConfigError struct{ Err error }

func (e *ConfigError) Error() string { return e.Err.Error() }
func (e *ConfigError) Unwrap() error { return e.Err }

// begin starts all parts.
func (d *Daemon) begin() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, t := range d.destinations {
		t.start(d.last)
	}
	for _, p := range d.ports {
		for _, l := range *p.lanes.Load() {
			p.startLane(l, d.last)
		}
		p.start(d.last)
	}
	if d.southbound != nil {
		d.southbound.start(d.last)
	}
	if d.tunnel != nil {
		d.tunnel.start(d.last)
	}
	if d.watch != nil {
		d.watch.start(d.last)
	}
	d.ready = true
}

// Run runs everything until ctx ends, then ends it: the devices are told
// goodbye, what they said last goes into the spool, and the exchange that is
// under way is finished, all within the grace time.
func (d *Daemon) Run(ctx context.Context) error {
	defer d.close()
	served := make(chan error, 1)
	serve, stopServing := context.WithCancel(context.Background())
	defer stopServing()
	go func() { served <- d.server.Serve(serve) }()
	d.begin()
	d.removedByFIPS()
	d.log.Info("gatewayd runs", "version", d.options.Build.Version, "tls", d.options.Build.TLS, "ports", len(d.ports), "destinations", len(d.destinations), "tunnels", len(d.configuration().Tunnels))
	d.options.Notify("READY=1")
	err := d.supervise(ctx, served)
	d.options.Notify("STOPPING=1\nSTATUS=stopping")
	d.shutdown()
	return err
}

// supervise looks after everything once a period until ctx ends. The watchdog is
// fed only after a whole look: a lock that is never let go, or a part that does
// not answer, starves it.
func (d *Daemon) supervise(ctx context.Context, served <-chan error) error {
	t := time.NewTicker(d.options.Period)
	defer t.Stop()
	for {
		d.look()
		select {
		case <-ctx.Done():
			return nil
		case err := <-served:
			return errors.Join(errors.New("the status socket broke"), err)
		case <-t.C:
		}
	}
}

// shutdown ends the parts in the direction of the data, each within what is left
// of the grace time.
func (d *Daemon) shutdown() {
	if d.watch != nil {
		end(d.watch) // it may be reloading
	}
	d.reloading.Lock() // a reload that is under way comes to its end first
	defer d.reloading.Unlock()
	stop := time.AfterFunc(d.options.Grace, d.giveUp)
	defer stop.Stop()
	d.mu.Lock()
	d.ready, d.ended = false, true
	ports, destinations, leaving, south, carrier := d.ports, d.destinations, d.leaving, d.southbound, d.tunnel
	d.mu.Unlock()
	if south != nil {
		south.stop()
	}
	if carrier != nil {
		carrier.stop()
	}
	end(leaving...)
	end(ports...)
	for _, p := range ports {
		end(*p.lanes.Load()...)
	}
	if south != nil {
		end(south)
	}
	if carrier != nil {
		end(carrier)
	}
	end(destinations...)
	d.log.Info("gatewayd ends", "waiting", d.waiting())
}

// A part is something that runs until it is told to end.
type part interface {
	stop()                  // tells it
	ended() <-chan struct{} // is closed when it has
}

// end ends parts side by side.
func end[P part](parts ...P) {
	for _, p := range parts {
		p.stop()
	}
	for _, p := range parts {
		<-p.ended()
	}
}

// waiting is how many messages are in the spool.
func (d *Daemon) waiting() (n int) {
	for _, q := range d.spool.Stats().Queues {
		n += q.Messages
	}
	return n
}

// close lets go of what New took.
func (d *Daemon) close() {
	d.giveUp()
	if d.server != nil {
		d.server.Close()
	}
	if d.tpm != nil {
		if err := d.tpm.Close(); err != nil {
			d.log.Debug("the TPM does not close", "error", err)
		}
	}
	if d.spool != nil {
		if err := d.spool.Close(); err != nil {
			d.log.Error("the spool does not close", "error", err)
		}
	}
}
