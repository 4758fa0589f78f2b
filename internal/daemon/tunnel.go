package daemon

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"slices"
	"strings"
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
	audit  *audit
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
	for i := range c.Tunnels {
		p.settings.Listeners[i].MaxSessions = c.Sessions(&c.Tunnels[i])
	}
	trail := newAudit(d.log, d.options.Now)
	server, err := tunnel.New(tunnel.Options{Config: p.settings, Floor: d.options.Floor, Listen: d.options.Listen, Events: trail.note,
		Grace: d.options.Grace / 2, Now: d.options.Now, Log: d.log})
	p.fresh = &tunnelUnit{server: server, audit: trail, done: make(chan struct{})}
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
		Accepted: s.Accepted, Probes: s.Probes, Opened: s.Opened, Enforced: s.Enforced, GateOnly: s.GateOnly, Ended: s.Ended, Gate: map[string]uint64{},
		ToPlatform: s.ToPlatform, ToDevice: s.ToDevice, Panics: s.Panics}
	for result, n := range s.Gate {
		r.Gate[result.String()] = n
	}
	for _, l := range s.Listeners {
		r.Listeners = append(r.Listeners, status.TunnelListener{Name: l.Name, Listen: l.Address, Address: l.Bound, Since: l.Since, Fault: text(l.Fault), Sessions: l.Sessions, Handshakes: l.Handshakes})
	}
	for _, p := range s.Platforms {
		r.Platforms = append(r.Platforms, gateRow(p))
	}
	for _, x := range s.Sessions {
		r.Sessions = append(r.Sessions, status.TunnelSession{Tunnel: x.Listener, Device: x.Device.String(), Since: x.Since, Platform: x.Platform, Address: x.Address.String(),
			ServerName: x.ServerName, TLS: tls.VersionName(x.Version), Enforced: x.Enforced, ToPlatform: x.ToPlatform, ToDevice: x.ToDevice, Last: x.Last})
	}
	u.audit.report(r)
	return r
}

func gateRow(p tunnel.PlatformStatus) status.TunnelPlatform {
	row := status.TunnelPlatform{Name: p.Platform, ServerName: p.ServerName, Sessions: p.Sessions, Gate: p.Result.String(), Closed: p.Result.Closed(),
		Since: p.Since, Judged: p.At, LastGood: p.LastGood, Until: p.Until}
	if row.Closed {
		row.Fault = text(p.Err)
	}
	if p.Address.IsValid() {
		row.Address = p.Address.String()
	}
	return row
}

// tunnel raises the conditions of the tunnels.
func (c *conditions) tunnel(s *status.Tunnel) {
	c.gates(s.Platforms)
	for i := range s.Listeners {
		l := &s.Listeners[i]
		if l.Address == "" && l.Fault != "" {
			c.raise(status.Degraded, "tunnel-closed", l.Name, l.Since, "Devices cannot connect to the tunnel: "+l.Fault+".",
				"Look at listen in [[tunnel]]: is the address one of this machine, and the port free? gatewayd tries again by itself.")
		}
		c.refusals(l, s)
	}
	if s.Panics > 0 {
		c.raise(status.Degraded, "program-fault", "tunnel", time.Time{}, "A fault of the program was contained to a session of the tunnel.",
			"Report it with the log: journalctl -u gatewayd; the condition ends with a restart.")
	}
}

// gates raises what is wrong with platforms, once for each: what keeps one name
// from it mostly keeps them all.
func (c *conditions) gates(rows []status.TunnelPlatform) {
	closed := map[string][]status.TunnelPlatform{}
	for _, row := range rows {
		if row.Closed {
			closed[row.Name] = append(closed[row.Name], row)
		}
	}
	for name, all := range closed {
		latest := slices.MaxFunc(all, func(a, b status.TunnelPlatform) int { return a.Judged.Compare(b.Judged) })
		first := slices.MinFunc(all, func(a, b status.TunnelPlatform) int { return a.Since.Compare(b.Since) })
		c.raise(status.Degraded, "tunnel-gate-closed", name, first.Since, "No new session "+asked(all)+" passes to the platform: "+latest.Fault+".",
			"Do what it says; the next device that connects has the platform judged anew.")
	}
}

// asked says which sessions rows are about, by what these ask for.
func asked(rows []status.TunnelPlatform) string {
	var ways []string
	for _, row := range rows {
		if row.ServerName == "" {
			ways = append(ways, "without a name")
		} else {
			ways = append(ways, "by the name "+row.ServerName)
		}
	}
	slices.Sort(ways)
	return strings.Join(slices.Compact(ways), " or ")
}

// refusals raises the gravest of the latest refusals of a tunnel. Those that
// speak against a platform have a condition of their own, for who is merely not
// let in is no reason to overlook them; a closed gate has one as well.
func (c *conditions) refusals(l *status.TunnelListener, s *status.Tunnel) {
	var gravest, foreign *status.TunnelRefusal
	for i := range s.Refusals {
		r := &s.Refusals[i]
		if r.Tunnel != l.Name || r.Gate || c.report.Now.Sub(r.Time) >= recently {
			continue
		}
		switch tunnel.SeverityOf(r.Rule) {
		case tunnel.Passing:
		case tunnel.Foreign:
			foreign = graver(foreign, r)
		default:
			gravest = graver(gravest, r)
		}
	}
	if r := foreign; r != nil {
		c.raise(status.Degraded, "tunnel-platform-unproved", r.Platform, r.Time, "A device at "+r.Device+" met a platform that did not show that it is the one that was judged: "+r.Reason+".",
			"If the platform has several machines or certificates, see two_certificates and Limits in doc/tunnel.md; if not, somebody else may answer in its place: look who. "+logged(l, r.Rule))
	}
	if r := gravest; r != nil {
		c.raise(status.Degraded, "tunnel-refused", l.Name, r.Time, "A device at "+r.Device+" did not get through: "+r.Reason+".", "If it is a device of this place, correct what it says. "+logged(l, r.Rule))
	}
}

// graver is the one that matters more; of equals the later.
func graver(a, b *status.TunnelRefusal) *status.TunnelRefusal {
	if a == nil {
		return b
	}
	if order := cmp.Compare(tunnel.SeverityOf(a.Rule), tunnel.SeverityOf(b.Rule)); order > 0 || order == 0 && a.Time.After(b.Time) {
		return a
	}
	return b
}

// logged says how much of the refusals by a rule is in the log.
func logged(l *status.TunnelListener, rule string) string {
	if n := l.Unlogged[rule]; n > 0 {
		return fmt.Sprintf("Of the %d refusals by this rule %d were too many for the log; it has the others: journalctl -u gatewayd.", l.Refused[rule], n)
	}
	return "The log has all refusals by this rule: journalctl -u gatewayd."
}
