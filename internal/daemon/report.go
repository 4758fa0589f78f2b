package daemon

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/bedside-gateway/gatewayd/drivers"
	"github.com/bedside-gateway/gatewayd/internal/config"
	"github.com/bedside-gateway/gatewayd/internal/status"
	"github.com/bedside-gateway/gatewayd/keystore"
	"github.com/bedside-gateway/gatewayd/spool"
)

// Report is the state of everything now.
func (d *Daemon) Report() status.Report {
	d.mu.Lock()
	defer d.mu.Unlock()
	r := status.Report{Gateway: d.config.Gateway.Name, Now: d.options.Now(), Started: d.started, Ready: d.ready,
		Build: d.options.Build, Certificate: d.identity.notAfter(), Conditions: []status.Condition{},
		Ports: []status.Port{}, Destinations: []status.Destination{}, Reloads: map[string]uint64{}}
	for result, n := range d.reloads {
		r.Reloads[result] = n
	}
	r.Findings, r.Shapes = d.sampler.counts()
	s := d.spool.Stats()
	d.reportSpool(&r, s)
	c := conditions{report: &r, daemon: d}
	for _, u := range d.ports {
		p, lanes := u.report()
		r.Spool.Refused += lanes.refused
		r.Ports = append(r.Ports, p)
		c.port(u, &p, &lanes)
	}
	for _, u := range d.destinations {
		t := u.report(s.Queues[u.config.Name])
		r.Destinations = append(r.Destinations, t)
		c.destination(u, &t)
	}
	if u := d.southbound; u != nil {
		r.Southbound = u.report()
		c.southbound(u, r.Southbound)
	}
	if u := d.tunnel; u != nil {
		r.Tunnel = u.report()
		c.tunnel(r.Tunnel)
	}
	if d.watch != nil {
		d.watch.report(&r)
		d.watch.raise(&c)
	}
	c.whole(s)
	r.Judge()
	return r
}

func (d *Daemon) reportSpool(r *status.Report, s spool.Stats) {
	opened := d.spool.Opened()
	r.Spool = status.Spool{Bytes: s.Bytes, MaxBytes: s.MaxBytes, FileBytes: s.FileBytes, Capacity: s.Capacity.Seconds(),
		Dropped: map[string]uint64{}, Fault: text(s.Failing)}
	if _, err := os.Stat(opened.MovedAside); err == nil {
		r.Spool.MovedAside = opened.MovedAside
	}
	for _, q := range s.Queues {
		r.Spool.Messages += q.Messages
		if !q.Oldest.IsZero() && (r.Spool.Oldest.IsZero() || q.Oldest.Before(r.Spool.Oldest)) {
			r.Spool.Oldest = q.Oldest
		}
		for cause, n := range q.Dropped {
			r.Spool.Dropped[cause] += n
		}
		r.Spool.Dropped["refused"] += q.Refused
	}
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// report is the state of a port, and the sum of its lanes.
func (u *portUnit) report() (status.Port, laneCounts) {
	s := u.session.Status()
	sum := u.gone
	for _, l := range *u.lanes.Load() {
		sum.add(l.counts())
	}
	p := status.Port{Name: u.config.Name, Driver: u.config.Driver, Device: u.config.Device, State: s.State.String(), Since: s.Since,
		LastReport: s.LastReport, Received: s.BytesReceived, Sent: s.BytesSent, Frames: map[string]uint64{}, Reports: s.Reports,
		Observations: s.Observations, Simulated: sum.pcd.Simulated, Unmapped: sum.pcd.Unmapped, Opened: s.Sessions,
		Panics: s.Panics + u.panics.Load(), Pending: sum.pending, Messages: sum.stored}
	for f, n := range s.Frames {
		p.Frames[drivers.Frame(f).String()] = n
	}
	if s.State != drivers.Live {
		p.Fault = s.LastError
	}
	return p, sum
}

// add adds the figures of another lane, and keeps the first fault.
func (c *laneCounts) add(l laneCounts) {
	c.pcd.Simulated += l.pcd.Simulated
	c.pcd.Unmapped += l.pcd.Unmapped
	c.pcd.Unidentified += l.pcd.Unidentified
	c.pcd.Dropped += l.pcd.Dropped
	c.pending += l.pending
	c.stored += l.stored
	c.refused += l.refused
	c.givenUp += l.givenUp
	if c.fault == nil {
		c.fault, c.since = l.fault, l.since
	}
	if c.problem == nil {
		c.problem = l.problem
	}
}

// Limits of the conditions.
const (
	capacityShort = 8 * time.Hour    // to bring a platform back in
	unreachable   = 30 * time.Second // before a connection that is away is worth a word
	unanswered    = time.Minute      // likewise for a device
)

// conditions fills the conditions of a report.
type conditions struct {
	report *status.Report
	daemon *Daemon
	down   int // destinations that take nothing
}

func (c *conditions) raise(v status.Verdict, name, subject string, since time.Time, text, next string) {
	c.report.Conditions = append(c.report.Conditions, status.Condition{Name: name, Subject: subject, Since: since, Verdict: v, Text: text, Next: next})
}

func (c *conditions) port(u *portUnit, p *status.Port, lanes *laneCounts) {
	age := c.report.Now.Sub(p.Since)
	switch {
	case p.State == "silent":
		c.raise(status.Degraded, "port-silent", p.Name, p.Since, "The device was live and sends nothing now.",
			"Look whether it is on, and whether its cable is in at both ends.")
	case p.State == "closed" && p.Fault != "":
		c.raise(status.Degraded, "port-fault", p.Name, p.Since, "The session does not stand: "+p.Fault+".",
			"Look at the cable and at device in [[port]]; gatewayd tries again by itself.")
	case p.State != "live" && !p.Since.IsZero() && age > unanswered:
		c.raise(status.Degraded, "port-unanswered", p.Name, p.Since, "The port is open, and no device has answered.",
			"Look whether the device is on, whether its data export is enabled, and at driver and line in [[port]].")
	}
	c.portData(u, p, lanes)
}

func (c *conditions) portData(u *portUnit, p *status.Port, lanes *laneCounts) {
	seen := c.daemon.simulated[p.Name]
	if p.Simulated != seen.count {
		seen = change{p.Simulated, c.report.Now}
		c.daemon.simulated[p.Name] = seen
	}
	if p.Simulated > 0 && c.report.Now.Sub(seen.at) < recently {
		c.raise(status.Degraded, "simulated-data-refused", p.Name, time.Time{}, "The device marks its values as demonstration or test; they are not sent.",
			"Take the device out of its demonstration mode; for a demonstration without patients write allow_simulated = true in [[port]].")
	}
	if u.config.AllowSimulated {
		c.raise(status.Degraded, "simulated-data-allowed", p.Name, time.Time{}, "Demonstration and test values of this port are sent as if they were a patient's.",
			"Take allow_simulated out of [[port]] before the port is used on a patient.")
	}
	if u.config.Record != "" {
		c.raise(status.Degraded, "port-recorded", p.Name, time.Time{}, "Everything the device sends is written to a file, patient identifiers included.",
			"Take record out of [[port]] when support has the recording.")
	}
	if lanes.pcd.Unidentified > 0 && u.config.DeviceEUI64 == 0 {
		c.raise(status.Degraded, "device-unidentified", p.Name, time.Time{}, "The device tells no EUI-64, and without one its values cannot be sent.",
			"Write device_eui64 in [[port]].")
	}
	if lanes.problem != nil {
		c.raise(status.Degraded, "messages-impossible", p.Name, time.Time{}, "No message can be made: "+lanes.problem.Error()+".", "Correct the configuration, or report it.")
	}
	if lanes.pcd.Dropped > 0 {
		c.raise(status.Degraded, "values-given-up", p.Name, time.Time{}, "Values were given up because the spool took nothing for too long.",
			"Look at the disk of state_dir; the condition ends with a restart.")
	}
	if p.Panics > 0 {
		c.raise(status.Degraded, "program-fault", p.Name, time.Time{}, "A fault of the program was contained to this port.",
			"Report it with the log: journalctl -u gatewayd; the condition ends with a restart.")
	}
	c.storing(p, lanes)
}

func (c *conditions) storing(p *status.Port, lanes *laneCounts) {
	switch {
	case lanes.fault == nil:
	case errors.Is(lanes.fault, spool.ErrFull) || errors.Is(lanes.fault, spool.ErrTooLarge):
		c.raise(status.Down, "spool-full", p.Name, lanes.since, "The spool is full of messages that count for more, and gives up what this port says.",
			"Bring the platform back, or raise max_bytes in [spool].")
	default:
		c.raise(status.Down, "spool-failing", p.Name, lanes.since, "Messages cannot be stored: "+lanes.fault.Error()+".",
			"Look at the disk of state_dir: is it full, read-only or broken? What was said meanwhile is kept in memory as far as it goes.")
	}
}

// whole raises what is of no port and no destination.
func (c *conditions) whole(s spool.Stats) {
	d, r := c.daemon, c.report
	if n := len(r.Destinations); n > 0 && c.down == n {
		c.raise(status.Down, "no-platform", "", time.Time{}, "No platform takes messages; they are kept.", "See the conditions of the platforms.")
	}
	c.spool(s)
	c.certificate()
	c.descriptors()
	if fileKeys(d.config) {
		c.raise(status.Degraded, "development-key", "", time.Time{}, "DEVELOPMENT KEY IN USE: the private key is a file that can be copied.",
			"Never use this gateway on patients; make a key in its TPM.")
	}
	if d.reloadFault != "" {
		c.raise(status.Degraded, "reload-refused", "", d.reloadedAt, "The configuration was read again and refused; the one before is in force.",
			"Run gatewayd check "+d.config.Path+", correct the file and reload.")
	}
	for _, key := range d.restart {
		c.raise(status.Degraded, "restart-needed", key, d.reloadedAt, "The key changed, and is read at the start only.", "Run systemctl restart gatewayd.")
	}
	if n := r.Findings["error"]; n > 0 {
		c.raise(status.Degraded, "messages-imperfect", "", time.Time{}, "Messages break a rule of the profile; they are sent all the same.",
			"Report the findings in the log: journalctl -u gatewayd; the condition ends with a restart.")
	}
}

func (c *conditions) descriptors() {
	conf := c.daemon.config
	need, limit := conf.Descriptors(), conf.MaxDescriptors
	if limit == 0 || need <= limit {
		return
	}
	text, sessions := fmt.Sprintf("All connections that are allowed take %d descriptors together, and the process may have %d.", need, limit), 0
	for i := range conf.Tunnels {
		sessions += conf.Sessions(&conf.Tunnels[i])
	}
	if sessions > 0 {
		text += fmt.Sprintf(" So the tunnels take only %d sessions at a time.", sessions)
	}
	c.raise(status.Degraded, "descriptors-short", "", time.Time{}, text,
		fmt.Sprintf("Write LimitNOFILE=%d into the unit with systemctl edit gatewayd and restart it, or lower max_sessions in [[tunnel]] or max_connections in [southbound].", need))
}

// fileKeys reports whether a private key is a file.
func fileKeys(c *config.Config) bool {
	return c.Identity.InsecureFileKey || c.Southbound != nil && slices.ContainsFunc(c.Southbound.Identities, func(i config.ServerIdentity) bool { return i.InsecureFileKey })
}

func (c *conditions) spool(s spool.Stats) {
	r := c.report
	if s.Failing != nil && !slices.ContainsFunc(r.Conditions, func(c status.Condition) bool { return c.Name == "spool-failing" }) {
		c.raise(status.Down, "spool-failing", "", time.Time{}, "The spool cannot be written: "+s.Failing.Error()+".", "Look at the disk of state_dir: is it full, read-only or broken?")
	}
	full := s.MaxBytes > 0 && s.Bytes > s.MaxBytes/2
	if full || r.Spool.Messages > 0 && c.down > 0 && s.Capacity > 0 && s.Capacity < capacityShort {
		c.raise(status.Degraded, "spool-filling", "", r.Spool.Oldest, "At the present rate the spool is full in "+left(s.Capacity)+".",
			"Bring the platform back, or raise max_bytes in [spool]. When it is full, waveforms go first, alerts last.")
	}
	if at := c.daemon.lastDrop.Load(); at != 0 && r.Now.Sub(time.Unix(0, at)) < recently {
		c.raise(status.Degraded, "messages-given-up", "", time.Unix(0, at), "Messages were given up: the spool is full, or they were older than max_age.",
			"Bring the platform back; gatewayd_spool_dropped_total counts them by reason.")
	}
	if r.Spool.MovedAside != "" {
		c.raise(status.Degraded, "spool-moved-aside", "", time.Time{}, "The spool was damaged; it is now "+r.Spool.MovedAside+", and a new one was begun with what was whole.",
			"Give the file to support, then move it away: the condition ends with that.")
	}
	for name, q := range s.Queues {
		if q.Messages+q.Quarantined > 0 && !slices.ContainsFunc(r.Destinations, func(t status.Destination) bool { return t.Name == name }) {
			c.raise(status.Degraded, "queue-without-destination", name, q.Oldest, "Messages wait for a destination that is no longer configured.",
				"Bring the [[destination]] back, or drop them: gatewayd spool ls --queue "+name+".")
		}
	}
}

// left is a capacity in words.
func left(d time.Duration) string {
	switch {
	case d <= 0:
		return "a time that is not known yet"
	case d < 2*time.Hour:
		return d.Round(time.Minute).String()
	}
	return d.Round(time.Hour).String()
}

func (c *conditions) certificate() {
	if err := c.daemon.tunnelMissing; err != nil {
		c.raise(status.Degraded, "tunnel-not-enrolled", "", time.Time{}, "The gateway has no certificate to judge platforms with, so that no session passes the tunnel.", sentence(err.Error()))
	}
	if err := c.daemon.southMissing; err != nil {
		c.raise(status.Degraded, "southbound-not-enrolled", "", time.Time{}, "The server for devices has no certificate, so that none can connect.", sentence(err.Error()))
	}
	leaf := c.daemon.identity.certificate.Leaf
	if leaf == nil {
		return
	}
	until := "The certificate of the gateway ends on " + leaf.NotAfter.UTC().Format("2006-01-02") + "."
	const renew = "Have it renewed: gatewayd enroll renew, or gatewayd enroll csr and gatewayd enroll install FILE."
	switch e := keystore.Expires(leaf, c.report.Now); e {
	case "":
	case keystore.NotYet:
		c.raise(status.Down, string(e), "", time.Time{}, "The certificate of the gateway is valid only from "+leaf.NotBefore.UTC().Format("2006-01-02")+" on.", "Look at the clock of the gateway.")
	case keystore.Expired:
		c.raise(status.Down, string(e), "", leaf.NotAfter, "The certificate of the gateway is no longer valid, and platforms refuse it.",
			"If the clock is right: gatewayd enroll renew with the bootstrap credential of the CA, or gatewayd enroll csr and gatewayd enroll install FILE.")
	default:
		c.raise(status.Degraded, string(e), "", time.Time{}, until, renew)
	}
}
