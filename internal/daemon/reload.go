package daemon

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"slices"

	"github.com/bedside-gateway/gatewayd/internal/config"
	"github.com/bedside-gateway/gatewayd/internal/enroll"
	"github.com/bedside-gateway/gatewayd/keystore"
	"github.com/bedside-gateway/gatewayd/keystore/tpm"
)

// A plan is what a configuration becomes: parts that go on as they are, and new
// ones, made and not started. To make one changes nothing.
type plan struct {
	identity     identity
	approvals    []tpm.Approval
	expected     *tpm.Fingerprint // nil: as before
	destinations []*destinationUnit
	ports        []*portUnit
	lanes        map[*portUnit][]*lane
	southbound   *southUnit // nil: none
	tunnel       tunnelPlan
}

// plan makes the parts of a configuration, and takes those over that do not change.
func (d *Daemon) plan(c *config.Config) (*plan, error) {
	p := &plan{lanes: map[*portUnit][]*lane{}}
	var err error
	if p.identity, err = d.loadIdentity(c); err != nil {
		return nil, err
	}
	if p.approvals, err = enroll.Approvals(c); err != nil {
		return nil, err
	}
	if p.expected, err = d.expected(c); err != nil {
		return nil, err
	}
	for _, t := range c.Destinations {
		u, err := d.planDestination(t, p.identity)
		if err != nil {
			return nil, err
		}
		p.destinations = append(p.destinations, u)
	}
	for _, t := range c.Ports {
		u, err := d.planPort(t)
		if err != nil {
			return nil, err
		}
		p.ports = append(p.ports, u)
		if p.lanes[u], err = d.planLanes(c, u, t); err != nil {
			return nil, err
		}
	}
	if p.tunnel, err = d.planTunnel(c, p.identity); err != nil {
		return nil, err
	}
	// The last, for it holds files: nothing can fail after it.
	if p.southbound, err = d.planSouthbound(c); err != nil {
		return nil, err
	}
	return p, nil
}

func (d *Daemon) planDestination(t config.Destination, i identity) (*destinationUnit, error) {
	trust, err := keystore.ReadFile(t.Trust, keystore.MaxFile)
	if err != nil {
		return nil, fmt.Errorf("destination %s: trust: %w", t.Name, err)
	}
	for _, u := range d.destinations {
		if reflect.DeepEqual(clientConfig(u.config), clientConfig(t)) && bytes.Equal(u.trust, trust) && i.same(d.identity) {
			return u, nil
		}
	}
	return d.newDestination(t, trust, i)
}

// clientConfig is the part of a destination that its client depends on: the rest
// is about how messages are made.
func clientConfig(t config.Destination) config.Destination {
	return config.Destination{Name: t.Name, Address: t.Address, Connect: t.Connect, Trust: t.Trust, AckTimeout: t.AckTimeout,
		ConnectTimeout: t.ConnectTimeout, IdleTimeout: t.IdleTimeout, StapleMaxAge: t.StapleMaxAge, Pacing: t.Pacing, OnReject: t.OnReject, StrictAck: t.StrictAck}
}

func (d *Daemon) planPort(p config.Port) (*portUnit, error) {
	for _, u := range d.ports {
		if reflect.DeepEqual(sessionConfig(u.config), sessionConfig(p)) {
			return u, nil
		}
	}
	return d.newPort(p)
}

// sessionConfig is the part of a port that its session depends on.
func sessionConfig(p config.Port) config.Port {
	return config.Port{Name: p.Name, Device: p.Device, Driver: p.Driver, Line: p.Line, ListenOnly: p.ListenOnly, Record: p.Record, Options: p.Options}
}

func (d *Daemon) planLanes(c *config.Config, u *portUnit, p config.Port) ([]*lane, error) {
	var lanes []*lane
	for i := range c.Destinations {
		t := &c.Destinations[i]
		o := snapshotOptions(&c.Gateway, &p, t)
		o.IDs = d.ids
		l, err := u.lane(t.Name), error(nil)
		if l == nil || !sameOptions(l.options, o) {
			l, err = newLane(p.Name, t.Name, o, d)
		}
		if err != nil {
			return nil, err
		}
		lanes = append(lanes, l)
	}
	return lanes, nil
}

// lane is the lane to a destination, or nil.
func (u *portUnit) lane(destination string) *lane {
	for _, l := range *u.lanes.Load() {
		if l.destination == destination {
			return l
		}
	}
	return nil
}

// Reload reads the configuration again and goes over to it if it is without
// fault. Otherwise everything goes on as it was, and the error says why.
// The spool is not touched, and a part that does not change is not interrupted.
func (d *Daemon) Reload() error {
	d.reloading.Lock()
	defer d.reloading.Unlock()
	err := d.reload()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.reloadedAt, d.reloadFault = d.options.Now(), ""
	if err != nil {
		d.reloads["refused"]++
		d.reloadFault = err.Error()
		return err
	}
	d.reloads["ok"]++
	return nil
}

func (d *Daemon) reload() error {
	if d.options.Load == nil {
		return errors.New("there is no configuration file to read again")
	}
	c, err := d.options.Load()
	if err != nil {
		return err
	}
	if err := d.apply(c); err != nil {
		return err
	}
	for _, w := range c.Warnings {
		d.log.Warn(w.String())
	}
	return nil
}

// apply goes over to a configuration. With an error everything is as it was.
func (d *Daemon) apply(c *config.Config) error {
	d.mu.Lock()
	p, err := d.plan(c)
	ended := d.ended
	d.mu.Unlock()
	if err != nil {
		return &ConfigError{err}
	}
	switch {
	case !ended:
		d.swap(c, p)
	case p.southbound != nil && p.southbound != d.southbound:
		p.southbound.release()
	}
	return nil
}

// swap ends the parts that the plan does without, in the direction of the data,
// and starts the new ones: a device or a queue has one user at a time.
func (d *Daemon) swap(c *config.Config, p *plan) {
	oldPorts, newPorts := differ(d.ports, p.ports)
	oldDestinations, newDestinations := differ(d.destinations, p.destinations)
	end(oldPorts...)
	for _, u := range oldPorts {
		end(*u.lanes.Load()...)
	}
	d.endSouthbound(p.southbound)
	end(oldDestinations...)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.restart = needRestart(d.config, c)
	d.config, d.identity, d.ports, d.destinations = c, p.identity, p.ports, p.destinations
	d.options.Level.Set(c.Gateway.LogLevel)
	d.adoptTPM(p)
	for i, u := range d.destinations {
		u.config = c.Destinations[i]
	}
	for _, u := range newDestinations {
		u.start(d.last)
	}
	for i, u := range d.ports {
		u.config = c.Ports[i]
		d.swapLanes(u, p.lanes[u])
	}
	for _, u := range newPorts {
		u.start(d.last)
	}
	d.adoptTunnel(p.tunnel, true)
	if was := d.southbound; was != p.southbound {
		d.southbound = p.southbound
		if p.southbound != nil {
			p.southbound.start(d.last)
		}
	}
}

// expected is the TPM that the keys are in, once it is known.
func (d *Daemon) expected(c *config.Config) (*tpm.Fingerprint, error) {
	if d.tpm == nil {
		return nil, nil
	}
	return keystore.ReadFingerprint(enroll.Home(c))
}

// adoptTPM goes over to the approvals, and to the TPM that was enrolled with
// meanwhile. It never goes back to any TPM.
func (d *Daemon) adoptTPM(p *plan) {
	if d.tpm == nil {
		return
	}
	d.tpm.SetApprovals(p.approvals)
	if p.expected != nil {
		d.tpm.Expect(p.expected)
	}
}

// endSouthbound ends the server of devices if another one takes its place, or
// none: there is one address. What it counted goes on with the next one.
func (d *Daemon) endSouthbound(next *southUnit) {
	was := d.southbound
	if was == nil || was == next {
		return
	}
	end(was)
	if next != nil {
		next.gone = was.counts()
	}
}

// swapLanes gives a port its new lanes. Those that go store what they have
// gathered, on their own time.
func (d *Daemon) swapLanes(u *portUnit, lanes []*lane) {
	gone, added := differ(*u.lanes.Load(), lanes)
	for _, l := range added {
		u.startLane(l, d.last)
	}
	u.lanes.Store(&lanes)
	for _, l := range gone {
		l.stop()
		d.leaving = append(d.leaving, l)
		u.gone.add(l.counts())
	}
}

// differ are the elements that are only in a, and those that are only in b.
func differ[T comparable](a, b []T) (onlyA, onlyB []T) {
	for _, x := range a {
		if !slices.Contains(b, x) {
			onlyA = append(onlyA, x)
		}
	}
	for _, x := range b {
		if !slices.Contains(a, x) {
			onlyB = append(onlyB, x)
		}
	}
	return onlyA, onlyB
}

// needRestart are the keys that differ and are read at the start only.
func needRestart(was, is *config.Config) (keys []string) {
	for key, same := range map[string]bool{
		"gateway.state_dir":     was.Gateway.StateDir == is.Gateway.StateDir,
		"gateway.status_socket": was.Gateway.StatusSocket == is.Gateway.StatusSocket,
		"spool.max_bytes":       was.Spool.MaxBytes == is.Spool.MaxBytes,
		"spool.max_age":         was.Spool.MaxAge == is.Spool.MaxAge,
		"identity.tpm": was.Identity.TPM == is.Identity.TPM && was.Identity.InsecureFileKey == is.Identity.InsecureFileKey &&
			was.Identity.PolicySigner == is.Identity.PolicySigner,
	} {
		if !same {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	return keys
}

func ref[T any](v T) *T { return &v }
