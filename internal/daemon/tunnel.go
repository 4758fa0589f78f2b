package daemon

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"time"

	"github.com/bedside-gateway/gatewayd/internal/config"
	"github.com/bedside-gateway/gatewayd/internal/status"
	"github.com/bedside-gateway/gatewayd/keystore"
	"github.com/bedside-gateway/gatewayd/tunnel"
)

// A tunnelUnit is what carries the sessions of devices whose TLS ends at the
// platform. Once made it stays: a reload changes what it does.
type tunnelUnit struct {
	server *tunnel.Server
	cancel context.CancelFunc
	done   chan struct{}
}

// A tunnelPlan is what the tunnels of a configuration become.
type tunnelPlan struct {
	settings tunnel.Config
	missing  error       // why there is none although there should be
	fresh    *tunnelUnit // nil: there is none, and none is wanted
}

// planTunnel makes a server of the tunnels, which shows whether the
// configuration can be put to work. Where one runs already, that takes it over.
func (d *Daemon) planTunnel(c *config.Config, i identity) (tunnelPlan, error) {
	var p tunnelPlan
	if len(c.Tunnels) == 0 {
		return p, nil
	}
	switch {
	case i.unready != nil:
		p.missing = i.unready
		return p, nil
	case len(i.certificate.Certificate) == 0:
		p.missing = errors.New("the gateway has no certificate; put it and its key into [identity]")
		return p, nil
	}
	var err error
	p.settings, err = config.TunnelSettings(c.Tunnels, func(from *config.TunnelPlatform, to *tunnel.Platform) error {
		trust, err := keystore.ReadFile(from.Trust, keystore.MaxFile)
		if err != nil {
			return fmt.Errorf("trust: %w", err)
		}
		if to.Roots, _, err = config.Roots(bytes.TrimSpace(trust)); err != nil {
			return fmt.Errorf("%s %w", from.Trust, err)
		}
		to.Identity = i.certificate
		return nil
	})
	if err != nil {
		return p, err
	}
	server, err := tunnel.New(tunnel.Options{Config: p.settings, Floor: d.options.Floor, Listen: d.options.Listen,
		Grace: d.options.Grace / 2, Now: d.options.Now, Log: d.log})
	p.fresh = &tunnelUnit{server: server, done: make(chan struct{})}
	return p, err
}

// adoptTunnel goes over to a plan. It needs Daemon.mu.
func (d *Daemon) adoptTunnel(p tunnelPlan, run bool) {
	d.tunnelMissing = p.missing
	switch {
	case d.tunnel != nil && p.missing != nil:
		// The sessions that are open go on as they were.
	case d.tunnel != nil:
		// It was tried by planTunnel; at the very end it takes nothing any more.
		if err := d.tunnel.server.Update(p.settings); err != nil {
			d.log.Error("tunnel: the new configuration is not taken", "error", err, "next", "report this")
		}
	case p.fresh != nil:
		d.tunnel = p.fresh
		if run {
			d.tunnel.start(d.last)
		}
	}
}

func (u *tunnelUnit) stop()                  { u.cancel() }
func (u *tunnelUnit) ended() <-chan struct{} { return u.done }

func (u *tunnelUnit) start(ctx context.Context) {
	ctx, u.cancel = context.WithCancel(ctx)
	go func() {
		defer close(u.done)
		_ = u.server.Run(ctx) // it fails only where it was run before
	}()
}

// report is the state of the tunnels.
func (u *tunnelUnit) report() *status.Tunnel {
	s := u.server.Status()
	r := &status.Tunnel{Listeners: []status.TunnelListener{}, Sessions: []status.TunnelSession{}, Platforms: []status.TunnelPlatform{},
		Accepted: s.Accepted, Opened: s.Opened, Enforced: s.Enforced, GateOnly: s.GateOnly, Refused: s.Refused, Ended: s.Ended, Gate: map[string]uint64{},
		ToPlatform: s.ToPlatform, ToDevice: s.ToDevice, Panics: s.Panics}
	for result, n := range s.Gate {
		r.Gate[result.String()] = n
	}
	for _, l := range s.Listeners {
		r.Listeners = append(r.Listeners, status.TunnelListener{Name: l.Name, Listen: l.Address, Address: l.Bound, Since: l.Since, Fault: text(l.Fault), Sessions: l.Sessions, Handshakes: l.Handshakes})
	}
	for _, p := range s.Platforms {
		one := status.TunnelPlatform{Name: p.Platform, ServerName: p.ServerName, Sessions: p.Sessions, Gate: p.Result.String(), Judged: p.At, Fault: text(p.Err), LastGood: p.LastGood, Until: p.Until}
		if p.Address.IsValid() {
			one.Address = p.Address.String()
		}
		r.Platforms = append(r.Platforms, one)
	}
	for _, x := range s.Sessions {
		r.Sessions = append(r.Sessions, status.TunnelSession{Tunnel: x.Listener, Device: x.Device.String(), Since: x.Since, Platform: x.Platform, Address: x.Address.String(),
			ServerName: x.ServerName, TLS: tls.VersionName(x.Version), Enforced: x.Enforced, ToPlatform: x.ToPlatform, ToDevice: x.ToDevice, Last: x.Last})
	}
	for _, f := range s.Refusals {
		r.Refusals = append(r.Refusals, status.Refusal{Time: f.Time, Remote: f.Device.String(), Rule: f.Rule, Reason: f.Reason})
	}
	return r
}

// tunnel raises the conditions of the tunnels.
func (c *conditions) tunnel(s *status.Tunnel) {
	for _, l := range s.Listeners {
		if l.Address == "" && l.Fault != "" {
			c.raise(status.Degraded, "tunnel-closed", l.Name, l.Since, "Devices cannot connect to the tunnel: "+l.Fault+".",
				"Look at listen in [[tunnel]]: is the address one of this machine, and the port free? gatewayd tries again by itself.")
		}
	}
	for _, p := range s.Platforms {
		if p.Fault != "" {
			c.raise(status.Degraded, "tunnel-gate-closed", p.Name, p.Judged, "No session passes to the platform: "+p.Fault+".",
				"Do what it says; the next device that connects has the platform judged anew.")
		}
	}
	if latest := lastTunnelRefusal(s.Refusals); c.report.Now.Sub(latest.Time) < recently {
		c.raise(status.Degraded, "tunnel-refused", "", latest.Time, "The session of a device at "+latest.Remote+" was refused: "+latest.Reason+".",
			"If it is a device of this place, correct what it says; the log has all refusals: journalctl -u gatewayd.")
	}
	if s.Panics > 0 {
		c.raise(status.Degraded, "program-fault", "tunnel", time.Time{}, "A fault of the program was contained to a session of the tunnel.",
			"Report it with the log: journalctl -u gatewayd; the condition ends with a restart.")
	}
}

// lastTunnelRefusal is the latest one that an operator can do something about:
// not that of a closed gate, which is a condition of its own, and not a
// connection that broke off or was never used.
func lastTunnelRefusal(all []status.Refusal) (latest status.Refusal) {
	for _, r := range all {
		switch r.Rule {
		case "network", "rate", "limit", "server name", "version", "early data", "resumption", "key exchange", "certificate", "signature":
			if r.Time.After(latest.Time) {
				latest = r
			}
		}
	}
	return latest
}
