package daemon

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"path/filepath"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/bedside-gateway/gatewayd/internal/config"
	"github.com/bedside-gateway/gatewayd/internal/enroll"
	"github.com/bedside-gateway/gatewayd/internal/status"
	"github.com/bedside-gateway/gatewayd/keystore"
	"github.com/bedside-gateway/gatewayd/revocation"
	"github.com/bedside-gateway/gatewayd/revocation/fetch"
	"github.com/bedside-gateway/gatewayd/southbound"
)

// CacheDir is the folder below the state folder for OCSP responses and CRLs
// that were fetched.
const CacheDir = "revocation"

// A southUnit is the running server of Interface A.
type southUnit struct {
	config  config.Southbound
	files   southFiles
	queues  []string
	log     *slog.Logger
	fetcher *fetch.Fetcher
	options southbound.Options
	listen  func(address string) (net.Listener, error)
	intake  *intake
	now     func() time.Time

	mu      sync.Mutex
	server  *southbound.Server
	gone    southbound.Counts // of servers before, so that no counter falls
	address string            // where it listens; "" while it does not
	since   time.Time         // of that
	fault   error             // why it does not
	seen    change            // of the messages that were rejected

	cancel context.CancelFunc
	done   chan struct{}
}

// southFiles are the files that the configuration names, as they were read.
type southFiles struct {
	identities []tls.Certificate
	trust      []byte
	crls       [][]byte
}

func (d *Daemon) readSouthFiles(all *config.Config) (f southFiles, err error) {
	c := all.Southbound
	if f.identities, err = d.serverIdentities(all); err != nil {
		return f, err
	}
	if f.trust, err = keystore.ReadFile(c.Trust, keystore.MaxFile); err != nil {
		return f, fmt.Errorf("southbound: trust: %w", err)
	}
	for _, name := range c.CRLs {
		text, err := keystore.ReadFile(name, keystore.MaxFile)
		if err != nil {
			return f, fmt.Errorf("southbound: crls: %w", err)
		}
		f.crls = append(f.crls, text)
	}
	return f, nil
}

// serverIdentities are those that devices see. A store that is not enrolled yet
// is left out, as long as one is.
func (d *Daemon) serverIdentities(c *config.Config) (all []tls.Certificate, err error) {
	var missing error
	for _, i := range c.Southbound.Identities {
		var pair tls.Certificate
		if i.Store == "" {
			pair, err = d.options.fileKey(i.Certificate, i.Key)
		} else if pair, err = d.stored(c, i.Store); errors.Is(err, enroll.ErrNotEnrolled) {
			missing = fmt.Errorf("southbound: identity %s: there is no certificate yet: run gatewayd enroll init --store %s, and follow its next steps: %w", i.Store, i.Store, err)
			continue
		}
		if err != nil {
			return nil, err
		}
		all = append(all, pair)
	}
	if len(all) == 0 {
		return nil, missing
	}
	return all, nil
}

func (f southFiles) same(g southFiles) bool {
	chain := func(a, b tls.Certificate) bool {
		return slices.EqualFunc(a.Certificate, b.Certificate, bytes.Equal)
	}
	return slices.EqualFunc(f.identities, g.identities, chain) && bytes.Equal(f.trust, g.trust) && slices.EqualFunc(f.crls, g.crls, bytes.Equal)
}

// planSouthbound takes the server over if nothing about it changes, or makes a new one.
func (d *Daemon) planSouthbound(c *config.Config) (*southUnit, error) {
	if c.Southbound == nil {
		return nil, nil
	}
	files, err := d.readSouthFiles(c)
	d.southMissing = nil
	if errors.Is(err, enroll.ErrNotEnrolled) {
		d.southMissing = err
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	queues := c.Southbound.Queues(c.Destinations)
	if u := d.southbound; u != nil && reflect.DeepEqual(u.config, *c.Southbound) && u.files.same(files) && slices.Equal(u.queues, queues) {
		return u, nil
	}
	return d.newSouthbound(c, files, queues)
}

func (d *Daemon) newSouthbound(c *config.Config, files southFiles, queues []string) (*southUnit, error) {
	roots, anchors, err := config.Roots(files.trust)
	if err != nil {
		return nil, fmt.Errorf("southbound: %s %w", c.Southbound.Trust, err)
	}
	u := &southUnit{config: *c.Southbound, files: files, queues: queues, log: d.log, listen: d.options.Listen, now: d.options.Now, done: make(chan struct{})}
	u.intake = newIntake(d.spool, queues, d.log, d.options.Now)
	u.fetcher = fetch.New(fetch.Options{Client: d.options.Responders, Now: d.options.Now, Dir: filepath.Join(c.Gateway.StateDir, CacheDir), Log: d.log})
	u.options = u.serverOptions(roots, d.options.Grace/2)
	if err := u.install(anchors); err != nil {
		u.fetcher.Close()
		return nil, err
	}
	if u.server, err = southbound.New(u.options); err != nil {
		u.fetcher.Close()
		return nil, fmt.Errorf("southbound: %w", err)
	}
	return u, nil
}

func (u *southUnit) serverOptions(roots *x509.CertPool, drain time.Duration) southbound.Options {
	c := &u.config
	least := uint16(tls.VersionTLS12)
	if c.MinTLS == "1.3" {
		least = tls.VersionTLS13
	}
	return southbound.Options{
		Identities: u.files.identities, Roots: roots, Fetcher: u.fetcher, Sink: u.intake.take, Log: u.log, Now: u.now,
		Authorised: func(name string) bool { return slices.Contains(c.Authorised, config.AuthorisedName(name)) },
		LeafOnly13: c.LeafOnly13, MinVersion: least,
		MaxConnections: int(c.MaxConnections), MaxPerDevice: int(c.MaxPerDevice), MaxMessage: int(c.MaxMessage),
		HandshakeTimeout: c.HandshakeTimeout, IdleTimeout: c.IdleTimeout, MessageTimeout: c.MessageTimeout, DrainTimeout: drain,
	}
}

// install hands the CRLs of the setup to the fetcher (A9). One that is too old
// is no fault: it was right when it was installed, and its successor is fetched.
func (u *southUnit) install(issuers []*x509.Certificate) error {
	for _, id := range u.files.identities {
		for _, der := range id.Certificate {
			if c, err := x509.ParseCertificate(der); err == nil && c.IsCA {
				issuers = append(issuers, c)
			}
		}
	}
	for i, text := range u.files.crls {
		lists, more, err := config.CRLs(text)
		if err != nil {
			return fmt.Errorf("southbound: %s %w", u.config.CRLs[i], err)
		}
		for _, l := range lists {
			if err := u.installOne(l, append(more, issuers...), u.config.CRLs[i]); err != nil {
				return err
			}
		}
	}
	return nil
}

func (u *southUnit) installOne(l *x509.RevocationList, issuers []*x509.Certificate, file string) error {
	var wrong error
	for _, c := range issuers {
		if !bytes.Equal(c.RawSubject, l.RawIssuer) {
			continue
		}
		// Judged at its own time: what speaks against it then is more than age.
		if wrong = revocation.CheckCRL(l, c, l.ThisUpdate, revocation.Rules{}); wrong != nil {
			continue
		}
		if err := u.fetcher.AddCRL(l.Raw, c); err != nil {
			u.log.Warn("southbound: an installed CRL is of no use any more", "file", file, "error", err, "next", "it is fetched anew where it or the certificates name a URL; else install a new one")
		}
		return nil
	}
	if wrong != nil {
		return fmt.Errorf("southbound: crls: %s: %w", file, wrong)
	}
	return fmt.Errorf("southbound: crls: %s: the certificate of its issuer %q is not known; put that certificate into the same file, in PEM form", file, l.Issuer.String())
}

func (u *southUnit) stop()                  { u.cancel() }
func (u *southUnit) ended() <-chan struct{} { return u.done }

// start listens and serves until stop, or the end of ctx. Where it cannot
// listen, it tries again: the rest of the gateway goes on meanwhile.
func (u *southUnit) start(ctx context.Context) {
	ctx, u.cancel = context.WithCancel(ctx)
	u.stands("", nil)
	go func() {
		defer close(u.done)
		defer u.release()
		for ctx.Err() == nil {
			err := u.run(ctx)
			if err == nil || ctx.Err() != nil {
				continue
			}
			if u.stands("", err) {
				u.log.Error("southbound: devices cannot connect; it is tried again", "error", err, "next", "look at listen in [southbound]: is the address one of this machine, and the port free?")
			}
			pause(ctx, time.Second)
		}
	}()
}

// release gives up what the unit holds. Nothing of it runs any more.
func (u *southUnit) release() {
	u.stands("", nil)
	u.mu.Lock()
	u.server.Close()
	u.mu.Unlock()
	u.fetcher.Close()
}

func (u *southUnit) run(ctx context.Context) error {
	l, err := u.listen(u.config.Listen)
	if err != nil {
		return err
	}
	u.stands(l.Addr().String(), nil)
	u.log.Info("southbound: devices can connect", "address", l.Addr().String())
	if err := u.server.Serve(ctx, l); err != nil {
		return errors.Join(err, u.renew())
	}
	return nil
}

// renew makes a new server, for one serves only once.
func (u *southUnit) renew() error {
	s, err := southbound.New(u.options)
	if err != nil {
		return err
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.gone = sum(u.gone, u.server.Status().Counts)
	u.server.Close()
	u.server = s
	return nil
}

// stands notes where it listens, or why it does not, and reports whether that is new.
func (u *southUnit) stands(address string, fault error) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	changed := u.since.IsZero() || address != u.address || (fault == nil) != (u.fault == nil)
	u.address, u.fault = address, fault
	if changed {
		u.since = u.now()
	}
	return changed
}

// sum adds the counts of two servers.
func sum(a, b southbound.Counts) southbound.Counts {
	refused := maps.Clone(b.Refused)
	for rule, n := range a.Refused {
		refused[rule] += n
	}
	return southbound.Counts{Accepted: a.Accepted + b.Accepted, Refused: refused, Unlogged: a.Unlogged + b.Unlogged, Messages: a.Messages + b.Messages,
		Bytes: a.Bytes + b.Bytes, Failed: a.Failed + b.Failed, Rejected: a.Rejected + b.Rejected, CutHandshake: a.CutHandshake + b.CutHandshake,
		CBC: a.CBC + b.CBC, Skipped: a.Skipped + b.Skipped, Panics: a.Panics + b.Panics}
}

// counts are those of this unit and of the servers before it.
func (u *southUnit) counts() southbound.Counts {
	u.mu.Lock()
	defer u.mu.Unlock()
	return sum(u.gone, u.server.Status().Counts)
}

// report is the state of the server.
func (u *southUnit) report() *status.Southbound {
	u.mu.Lock()
	defer u.mu.Unlock()
	s := u.server.Status()
	n := sum(u.gone, s.Counts)
	r := &status.Southbound{Listen: u.config.Listen, Address: u.address, Since: u.since, Fault: text(u.fault), Authorised: u.config.Authorised,
		Connections: s.Connections, Handshakes: s.Handshakes, Devices: []status.Device{}, Accepted: n.Accepted, Refused: n.Refused,
		Messages: n.Messages, Bytes: n.Bytes, Failed: n.Failed, Rejected: n.Rejected, CBC: n.CBC, Skipped: n.Skipped, Panics: n.Panics}
	for _, d := range s.Devices {
		r.Devices = append(r.Devices, status.Device{Name: config.AuthorisedName(d.CommonName), Remote: d.Remote, Since: d.Since, Messages: d.Messages, LastMessage: d.Last})
	}
	slices.SortStableFunc(r.Devices, func(a, b status.Device) int { return cmp.Compare(a.Name, b.Name) })
	for _, f := range s.Refusals {
		r.Refusals = append(r.Refusals, status.Refusal(f))
	}
	for i, chain := range s.Staples {
		for position, staple := range chain {
			r.Staples = append(r.Staples, status.Staple{Identity: i, Position: position, Certificate: staple.Certificate, Says: staple.Says, Until: staple.Until, Problem: staple.Problem})
		}
	}
	for _, down := range u.fetcher.Down() {
		r.Responders = append(r.Responders, status.Responder(down))
	}
	for _, id := range u.files.identities {
		r.Certificates = append(r.Certificates, id.Leaf.NotAfter)
	}
	return r
}

// rejected is when the last message was rejected for good.
func (u *southUnit) rejected(n uint64, now time.Time) time.Time {
	u.mu.Lock()
	defer u.mu.Unlock()
	if n != u.seen.count {
		u.seen = change{n, now}
	}
	return u.seen.at
}

// southbound raises the conditions of the server of Interface A.
func (c *conditions) southbound(u *southUnit, s *status.Southbound) {
	now := c.report.Now
	if s.Address == "" && s.Fault != "" {
		c.raise(status.Degraded, "southbound-closed", "", s.Since, "Devices cannot connect: "+s.Fault+".",
			"Look at listen in [southbound]: is the address one of this machine, and the port free? gatewayd tries again by itself.")
	}
	if latest := lastRefusal(s.Refusals); now.Sub(latest.Time) < recently {
		c.raise(status.Degraded, "devices-refused", "", latest.Time, "Somebody at "+latest.Remote+" was not let in: "+latest.Reason+".",
			"If it is a device of this place, have its certificate mended or enter it in authorised in [southbound]; the log has the refusals, of each rule those that it had room for.")
	}
	for _, r := range s.Responders {
		if now.Sub(r.Retry) < recently {
			c.raise(status.Degraded, "responder-unreachable", r.Host, time.Time{}, fmt.Sprintf("It gave no OCSP response or CRL, %d times: %s.", r.Failures, r.Reason),
				"Look at the network and the server of the CA. Until then CRLs decide; where there is none, devices are refused.")
		}
	}
	if at := u.rejected(s.Rejected, now); s.Rejected > 0 && now.Sub(at) < recently {
		c.raise(status.Degraded, "device-messages-rejected", "", at, "A device sent a message that cannot be delivered, and was told so.",
			"Look for the device and the reason in the log: journalctl -u gatewayd; have the device mended.")
	}
	if s.Panics > 0 {
		c.raise(status.Degraded, "program-fault", "southbound", time.Time{}, "A fault of the program was contained to a connection of a device.",
			"Report it with the log: journalctl -u gatewayd; the condition ends with a restart.")
	}
	c.staples(s)
	c.intake(u.intake)
}

// lastRefusal is the latest one that is about a certificate. Handshakes that
// break off are left out: whoever only looks whether the port is open makes one.
func lastRefusal(all []status.Refusal) (latest status.Refusal) {
	for _, r := range all {
		if r.Rule != "TLS" && r.Time.After(latest.Time) {
			latest = r
		}
	}
	return latest
}

// staples raises what is wrong with our own certificates (A10).
func (c *conditions) staples(s *status.Southbound) {
	const soon = 30 * 24 * time.Hour // to renew in
	for i, until := range s.Certificates {
		if until.Sub(c.report.Now) < soon {
			c.raise(status.Degraded, "server-certificate-expiring", fmt.Sprint(i+1), time.Time{}, "A certificate that devices see ends on "+until.UTC().Format("2006-01-02")+"; then they refuse it.",
				"Install a new certificate in [[southbound.identity]] and reload.")
		}
	}
	for _, staple := range s.Staples {
		switch {
		case staple.Says == "revoked":
			c.raise(status.Degraded, "server-certificate-revoked", staple.Certificate, time.Time{}, "The CA says that the certificate is revoked, and devices are shown that: they refuse it.", "Install a new certificate in [[southbound.identity]] and reload.")
		case staple.Says == "" && s.Address != "" && c.report.Now.Sub(s.Since) > unreachable:
			c.raise(status.Degraded, "staples-missing", staple.Certificate, time.Time{}, "There is no OCSP response to staple for it, so devices that ask for one refuse the gateway: "+cmp.Or(staple.Problem, "it is being fetched")+".",
				"Look at the OCSP responder that the certificate names; gatewayd tries again by itself.")
		case staple.Says != "" && staple.Problem != "":
			c.raise(status.Degraded, "staples-expiring", staple.Certificate, time.Time{}, "The OCSP response to staple for it cannot be renewed and ends at "+staple.Until.UTC().Format(time.RFC3339)+": "+staple.Problem+".",
				"Look at the OCSP responder that the certificate names; gatewayd tries again by itself.")
		}
	}
}
