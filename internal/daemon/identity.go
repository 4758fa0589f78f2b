package daemon

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/bedside-gateway/gatewayd/internal/config"
	"github.com/bedside-gateway/gatewayd/internal/enroll"
	"github.com/bedside-gateway/gatewayd/internal/status"
	"github.com/bedside-gateway/gatewayd/keystore"
	"github.com/bedside-gateway/gatewayd/keystore/est"
	"github.com/bedside-gateway/gatewayd/keystore/tpm"
	"github.com/bedside-gateway/gatewayd/northbound"
	"github.com/bedside-gateway/gatewayd/tlspolicy"
)

// An identity is the gateway's certificate with its key, or why there is none.
type identity struct {
	certificate tls.Certificate
	unready     *tlspolicy.RefusalError
}

func (i identity) same(j identity) bool {
	return slices.EqualFunc(i.certificate.Certificate, j.certificate.Certificate, bytes.Equal) && (i.unready == nil) == (j.unready == nil)
}

func (i identity) notAfter() time.Time {
	if i.certificate.Leaf == nil {
		return time.Time{}
	}
	return i.certificate.Leaf.NotAfter
}

// loadIdentity reads what platforms are to see. A gateway that is not enrolled,
// or whose key file is damaged, runs all the same: it says so, and keeps what the
// devices say. It never waits for the TPM.
func (d *Daemon) loadIdentity(c *config.Config) (identity, error) {
	if c.Identity.InsecureFileKey {
		if c.Identity.Certificate == "" {
			return identity{}, nil
		}
		pair, err := d.options.fileKey(c.Identity.Certificate, c.Identity.Key)
		return identity{certificate: pair}, err
	}
	pair, err := d.stored(c, enroll.Device)
	if err != nil {
		reason, next := err.Error(), "gatewayd enroll status says what to do"
		if errors.Is(err, enroll.ErrNotEnrolled) {
			reason, next = "the gateway has no certificate yet", "run gatewayd enroll init, and follow its next steps"
		}
		return identity{unready: &tlspolicy.RefusalError{Rule: "B16", Reason: reason, Next: next, Err: err}}, nil
	}
	return identity{certificate: pair}, nil
}

// stored is the current slot of a store of keys in the TPM.
func (d *Daemon) stored(c *config.Config, store string) (tls.Certificate, error) {
	if d.tpm == nil {
		return tls.Certificate{}, errors.New("the key has moved into the TPM, and gatewayd has to be started again")
	}
	a, err := enroll.New(c, store, d.tpm, d.options.Now)
	if err != nil {
		return tls.Certificate{}, err
	}
	slots, err := a.Store.Read()
	if err != nil {
		return tls.Certificate{}, err
	}
	pair, err := a.Identity(slots.Current)
	if err == nil {
		pair.PrivateKey = heeded{pair.PrivateKey.(*tpm.Key), store, d.watch.health}
	}
	return pair, err
}

// An identityUnit looks after the TPM and the slots: it notices what gatewayd
// enroll changed, tries a new certificate before it is used, lets go of the old
// one after the first good session, and has the certificate renewed in time.
type identityUnit struct {
	d         *Daemon
	applicant *enroll.Applicant
	health    *health

	mu       sync.Mutex
	slots    keystore.Slots
	broken   error // why the slots cannot be read
	stamp    string
	swapped  time.Time // since when the current slot is in use
	unused   error     // why it could not be put to use: what platforms answer is not about it
	trial    attempt   // of the next slot
	renewal  attempt
	reverted bool // the platforms refused the current slot, and the previous one is back

	cancel context.CancelFunc
	done   chan struct{}
}

// An attempt is something that is done again until it works.
type attempt struct {
	fault error
	since time.Time
	again time.Time // not before
	tries int
}

func (a *attempt) failed(now time.Time, err error, pause time.Duration) {
	if a.fault == nil {
		a.since = now
	}
	a.fault, a.again = err, now.Add(pause)
	a.tries++
}

func newIdentityUnit(d *Daemon) *identityUnit {
	return &identityUnit{d: d, health: newHealth(d.options.Now), done: make(chan struct{})}
}

// openTPM prepares for the TPM of a configuration whose key is in one.
func (d *Daemon) openTPM(c *config.Config) (err error) {
	if c.Identity.InsecureFileKey {
		return nil
	}
	d.watch = newIdentityUnit(d)
	o := d.options.TPM
	o.Log, o.Signed = d.log, d.watch.health.took
	if d.tpm, err = enroll.OpenTPM(c, o); err != nil {
		return &ConfigError{err}
	}
	if d.watch.applicant, err = enroll.New(c, enroll.Device, d.tpm, d.options.Now); err != nil {
		return &ConfigError{err}
	}
	d.watch.read()
	d.watch.stamp = d.watch.stampsOf(c)
	return nil
}

// stamps change when any of the stores does, or the approvals.
func (u *identityUnit) stamps() string { return u.stampsOf(u.d.configuration()) }

func (u *identityUnit) stampsOf(c *config.Config) string {
	all := u.applicant.Store.Stamp() + stampOf(c.Identity.PolicyApprovals)
	if c.Southbound == nil {
		return all
	}
	for _, i := range c.Southbound.Identities {
		if i.Store != "" {
			all += i.Store + keystore.Open(filepath.Join(enroll.Home(c), i.Store)).Stamp()
		}
	}
	return all
}

// stampOf changes when a file does.
func stampOf(file string) string {
	info, err := os.Stat(file)
	if err != nil {
		return ";"
	}
	return fmt.Sprintf("%d.%d;", info.ModTime().UnixNano(), info.Size())
}

func (u *identityUnit) stop()                  { u.cancel() }
func (u *identityUnit) ended() <-chan struct{} { return u.done }

func (u *identityUnit) start(ctx context.Context) {
	ctx, u.cancel = context.WithCancel(ctx)
	go func() {
		defer close(u.done)
		for ctx.Err() == nil {
			u.tick(ctx)
			u.wait(ctx)
		}
	}()
}

// wait waits for the next look. A TPM in trouble is looked at again sooner, and
// once it is well, the platforms are tried at once.
func (u *identityUnit) wait(ctx context.Context) {
	period := u.d.options.IdentityPeriod
	next := time.NewTimer(period)
	defer next.Stop()
	for {
		if !u.health.well() {
			next.Reset(min(period, askAgain))
		}
		select {
		case <-u.health.turned:
			if u.health.well() {
				u.recovered()
			}
			continue
		case <-next.C:
		case <-ctx.Done():
		}
		return
	}
}

// recovered has everything tried now that the TPM kept from coming about.
func (u *identityUnit) recovered() {
	u.mu.Lock()
	for _, a := range []*attempt{&u.trial, &u.renewal} {
		if tpm.FaultOf(a.fault) != "" {
			a.again = time.Time{}
		}
	}
	u.mu.Unlock()
	u.d.resume()
}

// tick is one look at everything. What is new comes first, so that no key is tried
// by approvals that have been replaced.
func (u *identityUnit) tick(ctx context.Context) {
	u.adopt(u.unused != nil)
	u.examine(ctx)
	slots := u.read()
	switch {
	case ctx.Err() != nil || slots.Current == nil:
	case u.stamps() != u.stamp: // another hand was quicker: these slots are not in use yet
	case slots.Next != nil && slots.Next.Chain != nil:
		u.try(ctx, slots)
	default:
		u.settle(slots)
		u.renew(ctx, slots)
	}
}

// read reads the slots for all to see.
func (u *identityUnit) read() keystore.Slots {
	slots, err := u.applicant.Store.Read()
	u.mu.Lock()
	defer u.mu.Unlock()
	u.slots, u.broken = slots, err
	return slots
}

// adopt goes over to the certificate in the current slot, if the slots changed
// or if it is sure. What fails is tried again at the next look, and told once.
func (u *identityUnit) adopt(sure bool) {
	stamp := u.stamps()
	u.mu.Lock()
	changed := stamp != u.stamp
	u.stamp = stamp
	if changed {
		u.trial = attempt{}
	}
	u.mu.Unlock()
	if !changed && !sure {
		return
	}
	u.read()
	err := u.d.replan()
	u.mu.Lock()
	told := u.unused != nil && !changed
	u.swapped, u.unused = u.d.options.Now(), err
	u.mu.Unlock()
	if err != nil && !told {
		u.d.log.Error("what the slots and the approvals hold now cannot be used; what was in use goes on", "error", err, "next", "look with gatewayd enroll status")
	}
}

// replan puts the present configuration to work again, with what its files and
// slots hold now.
func (d *Daemon) replan() error {
	d.reloading.Lock()
	defer d.reloading.Unlock()
	return d.apply(d.configuration())
}

// hearOut is how long a platform may take to refuse a certificate after a TLS
// 1.3 handshake; retryTrial is when one that was refused is tried again.
const (
	hearOut    = 2 * time.Second
	retryTrial = 5 * time.Minute
)

// try makes a session with the certificate in the next slot. If a platform takes
// it, or if there is nothing to lose, it becomes the current one.
func (u *identityUnit) try(ctx context.Context, slots keystore.Slots) {
	now := u.d.options.Now()
	if now.Before(u.trial.again) {
		return
	}
	err := u.session(ctx, slots.Next)
	if ctx.Err() != nil {
		return
	}
	if err != nil && now.Before(slots.Current.NotAfter()) {
		pause := retryTrial
		if unreached(err) { // which says nothing about the certificate
			pause = 0
		}
		u.mu.Lock()
		u.trial.failed(now, err, pause)
		u.mu.Unlock()
		return
	}
	if err := u.applicant.Store.Promote(); err != nil {
		u.d.log.Error("the new certificate cannot be put in its place", "error", err, "next", "look at the disk of state_dir")
		return
	}
	u.mu.Lock()
	u.trial, u.reverted = attempt{}, false
	u.mu.Unlock()
	u.d.log.Info("a new certificate is in use", "until", slots.Next.NotAfter())
	u.adopt(true)
}

// session tries a slot with one platform after the other.
func (u *identityUnit) session(ctx context.Context, slot *keystore.Slot) error {
	pair, err := u.applicant.Identity(slot)
	if err != nil {
		return err
	}
	var failed error
	for _, t := range u.d.targets() {
		to, err := Destination(t.config, t.trust, tlspolicy.Client{Identity: pair, Now: u.d.options.Now, Floor: u.d.options.Floor})
		if err == nil {
			err = northbound.Try(ctx, to, hearOut)
		}
		if err == nil {
			return nil
		}
		failed = errors.Join(failed, err)
	}
	return failed
}

// unreached reports whether a trial failed for no platform was there to judge.
func unreached(err error) bool {
	_, away := errors.AsType[*northbound.UnreachableError](err)
	_, refused := errors.AsType[*northbound.RefusedError](err)
	return away && !refused
}

// A target is a destination as it is configured.
type target struct {
	config config.Destination
	trust  []byte
}

func (d *Daemon) targets() (all []target) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, u := range d.destinations {
		all = append(all, target{u.config, u.trust})
	}
	return all
}

// doubt is how long every platform has to refuse a new certificate, without a
// break, before the one before comes back.
const doubt = 10 * time.Minute

// settle lets go of the previous certificate after the first acknowledgement with
// the current one, or brings it back when all platforms refuse the current one.
func (u *identityUnit) settle(slots keystore.Slots) {
	if slots.Previous == nil {
		return
	}
	now := u.d.options.Now()
	u.mu.Lock()
	if u.swapped.IsZero() {
		u.swapped = u.d.started
	}
	since, unused := u.swapped, u.unused
	u.mu.Unlock()
	if unused != nil {
		return
	}
	good, refused := u.d.heard(since)
	switch {
	case good:
		if err := u.applicant.Store.Confirm(); err != nil {
			u.d.log.Error("the certificate before cannot be removed", "error", err)
		}
		u.adopt(false)
	case refused > doubt && now.Before(slots.Previous.NotAfter()):
		if err := u.applicant.Store.Revert(); err != nil {
			u.d.log.Error("the certificate before cannot be brought back", "error", err)
			return
		}
		u.mu.Lock()
		u.reverted = true
		u.mu.Unlock()
		u.adopt(true)
	}
}

// heard reports whether a platform acknowledged a message since then, and for how
// long all of them have refused our certificate, one and the same time after
// another: what a rule of ours refuses, or our own key, says nothing about it.
func (d *Daemon) heard(since time.Time) (good bool, refused time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	refused = d.options.Now().Sub(since)
	if len(d.destinations) == 0 {
		refused = 0
	}
	for _, u := range d.destinations {
		s := u.client.Status()
		good = good || s.LastAck.After(since)
		if s.State != northbound.Refused || !s.Declined {
			refused = 0
		}
		refused = min(refused, d.options.Now().Sub(s.Since))
	}
	return good, refused
}

// The pauses between attempts to renew.
const (
	renewFirst = 10 * time.Minute
	renewMost  = 6 * time.Hour
)

// renew has the CA issue the next certificate, from two thirds of the life of the
// current one on. After its end it is still tried, for some CAs take an expired
// certificate for its own renewal.
func (u *identityUnit) renew(ctx context.Context, slots keystore.Slots) {
	now, c := u.d.options.Now(), u.d.configuration()
	if c.Identity.ESTURL == "" || slots.Current.Chain == nil || now.Before(u.renewAt(slots)) {
		u.mu.Lock()
		u.renewal = attempt{} // another hand was quicker
		u.mu.Unlock()
		return
	}
	if now.Before(u.renewal.again) {
		return
	}
	ca, err := enroll.Authority(c)
	if err == nil {
		_, err = u.applicant.Renew(ctx, ca)
	}
	if ctx.Err() != nil {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if err == nil {
		u.renewal = attempt{}
		return
	}
	wait := min(renewFirst<<min(u.renewal.tries, 10), renewMost)
	if p, ok := errors.AsType[*est.Pending](err); ok {
		wait = p.After
	}
	u.renewal.failed(now, err, wait)
}

// renewAt is spread over a tenth of the life by the certificate's own number, so
// that it is the same after a restart.
func (u *identityUnit) renewAt(slots keystore.Slots) time.Time {
	leaf := slots.Current.Chain[0]
	h := fnv.New32a()
	h.Write(leaf.Raw)
	return keystore.RenewAt(leaf, float64(h.Sum32())/float64(1<<32))
}

func (d *Daemon) configuration() *config.Config {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.config
}

// report is the identity in a report.
func (u *identityUnit) report(r *status.Report) {
	u.mu.Lock()
	defer u.mu.Unlock()
	i := &status.Identity{Place: "tpm", Address: u.d.tpm.Address(), Slots: []status.Slot{}}
	u.health.report(i)
	for _, s := range enroll.Table(u.slots, r.Now) {
		i.Slots = append(i.Slots, status.Slot{Slot: s.Slot, Key: s.Key, Kind: s.Kind, Issuer: s.Issuer, NotAfter: s.NotAfter})
	}
	r.Identity = i
}

// raise raises the conditions of the identity.
func (u *identityUnit) raise(c *conditions) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.health.raise(c)
	if u.broken != nil {
		c.raise(status.Down, "identity-unreadable", "", time.Time{}, "The slots of the identity cannot be read: "+u.broken.Error()+".", "Run gatewayd enroll status.")
	}
	if s := u.slots.Current; s != nil && s.Damage != nil {
		c.raise(status.Down, "identity-unreadable", "", time.Time{}, "The certificate in use is damaged: "+s.Damage.Error()+".", "Install it again: gatewayd enroll install FILE.")
	}
	if s := u.slots.Current; s != nil && s.Fault != nil {
		if e, ok := errors.AsType[*tpm.Error](s.Fault); ok {
			c.tpm(e, enroll.Device, time.Time{})
		}
	}
	if s := u.slots.Current; u.broken == nil && (s == nil || s.Chain == nil && s.Damage == nil && s.Fault == nil) {
		c.raise(status.Degraded, "not-enrolled", "", time.Time{}, "The gateway has no certificate, so that no platform takes it; messages are kept.",
			"Run gatewayd enroll init, and follow its next steps.")
	}
	if u.unused != nil {
		c.raise(status.Degraded, "identity-unused", "", time.Time{}, "What the slots and the approvals hold now cannot be used: "+u.unused.Error()+". What was in use goes on.",
			"Correct what the text names, before gatewayd is started again; gatewayd check and gatewayd enroll status look at it. gatewayd tries again by itself.")
	}
	u.raiseRenewal(c)
}

func (u *identityUnit) raiseRenewal(c *conditions) {
	if u.trial.fault != nil {
		next := "See the platform's log: does it know the CA of the new certificate?"
		switch {
		case tpm.FaultOf(u.trial.fault) != "":
			next = "See the condition of the TPM or of the key: no platform has been asked."
		case unreached(u.trial.fault):
			next = "Bring the platform back: none has been asked."
		}
		c.raise(status.Degraded, "certificate-untried", "", u.trial.since, "A new certificate waits, and no platform has taken it: "+u.trial.fault.Error()+". The one before goes on.",
			next+" gatewayd tries again by itself.")
	}
	if _, pending := errors.AsType[*est.Pending](u.renewal.fault); pending {
		c.raise(status.Degraded, "renewal-pending", "", u.renewal.since, "The CA has the request for a new certificate and has not decided.", "Have the request approved at the CA; gatewayd asks again by itself.")
	} else if u.renewal.fault != nil {
		c.raise(status.Degraded, "renewal-failing", "", u.renewal.since, "The certificate cannot be renewed: "+u.renewal.fault.Error()+".",
			"Look at the CA and at est_url in [identity]; gatewayd tries again by itself, or run gatewayd enroll renew.")
	}
	if u.reverted {
		c.raise(status.Degraded, "certificate-reverted", "", time.Time{}, "All platforms refused the new certificate; the one before is in use again.",
			"See the platforms' logs, and have another certificate issued.")
	}
}

// sentence begins with a capital and ends with a full stop.
func sentence(s string) string {
	if s == "" {
		return s
	}
	return string(bytes.ToUpper([]byte(s[:1]))) + s[1:] + "."
}
