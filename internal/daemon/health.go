package daemon

import (
	"context"
	"crypto"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/bedside-gateway/gatewayd/internal/enroll"
	"github.com/bedside-gateway/gatewayd/internal/status"
	"github.com/bedside-gateway/gatewayd/keystore/tpm"
	"github.com/bedside-gateway/gatewayd/northbound"
)

// A health is how the TPM and the keys in it are doing, as their last use has
// shown: the signature of a session, or the trial of a look.
type health struct {
	now    func() time.Time
	turned chan struct{} // holds a token once a trouble began or the last one ended

	mu          sync.Mutex
	description tpm.Description
	troubles    map[string]trouble // by the store whose key it is, or whole
	errors      map[string]uint64  // signatures that failed, by fault
	signed      northbound.Histogram
}

// whole is the TPM itself: no store has this name.
const whole = ""

// askAgain is how long a TPM in trouble is left alone at most.
const askAgain = 5 * time.Second

// A trouble is a fault that has not ended.
type trouble struct {
	*tpm.Error
	since time.Time
}

func newHealth(now func() time.Time) *health {
	return &health{now: now, turned: make(chan struct{}, 1), troubles: map[string]trouble{}, errors: map[string]uint64{}, signed: northbound.NewHistogram()}
}

// A heeded key tells at each signature how it is doing.
type heeded struct {
	*tpm.Key
	store  string
	health *health
}

// Sign signs as the key does.
func (k heeded) Sign(random io.Reader, digest []byte, o crypto.SignerOpts) ([]byte, error) {
	signature, err := k.Key.Sign(random, digest, o)
	if err != nil {
		k.health.failed(err)
	}
	k.health.saw(k.store, err)
	return signature, err
}

// took is told of each signature.
func (h *health) took(t time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.signed.Add(t)
}

func (h *health) failed(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.errors[string(tpm.FaultOf(err))]++
}

// ofTheKey are the faults that one key has while others may be well.
var ofTheKey = []tpm.Fault{tpm.Foreign, tpm.Tampered, tpm.Refused, tpm.Unable}

// saw is told how the use of a store's key, or of the TPM as a whole, ended. A
// key that works has a TPM that is well.
func (h *health) saw(store string, err error) {
	e, failed := errors.AsType[*tpm.Error](err)
	h.mu.Lock()
	defer h.mu.Unlock()
	before := len(h.troubles)
	switch {
	case err != nil && !failed: // nothing that the TPM said
	case err == nil:
		delete(h.troubles, store)
		delete(h.troubles, whole)
	case slices.Contains(ofTheKey, e.Fault):
		h.begin(store, e)
	default:
		h.begin(whole, e)
	}
	if (before == 0) != (len(h.troubles) == 0) {
		select {
		case h.turned <- struct{}{}:
		default:
		}
	}
}

func (h *health) begin(of string, e *tpm.Error) {
	since := h.now()
	if was, ok := h.troubles[of]; ok && was.Fault == e.Fault {
		since = was.since
	}
	h.troubles[of] = trouble{e, since}
}

// well reports whether nothing is in trouble.
func (h *health) well() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.troubles) == 0
}

// forget lets go of troubles with keys that are in use no more.
func (h *health) forget(keys []heeded) {
	h.mu.Lock()
	defer h.mu.Unlock()
	maps.DeleteFunc(h.troubles, func(of string, _ trouble) bool {
		return of != whole && !slices.ContainsFunc(keys, func(k heeded) bool { return k.store == of })
	})
}

func (h *health) described(d tpm.Description) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.description = d
}

// examine asks the TPM how it is, and tries the keys in use: a session that
// stands needs no signature, and would not tell for hours that there will not be
// another one.
func (u *identityUnit) examine(ctx context.Context) {
	description, err := u.d.tpm.Describe(ctx)
	if ctx.Err() != nil {
		return
	}
	if err != nil {
		u.health.saw(whole, err)
		return
	}
	u.health.described(description)
	keys := u.d.keys()
	u.health.forget(keys)
	if len(keys) == 0 {
		_, err := u.d.tpm.Fingerprint(ctx)
		u.sawUnless(ctx, whole, err)
	}
	for _, k := range keys {
		u.sawUnless(ctx, k.store, k.Try(ctx))
	}
}

// sawUnless passes over what only the end of the gateway cut off.
func (u *identityUnit) sawUnless(ctx context.Context, of string, err error) {
	if ctx.Err() == nil {
		u.health.saw(of, err)
	}
}

// keys are those in the TPM that are in use.
func (d *Daemon) keys() (all []heeded) {
	d.mu.Lock()
	defer d.mu.Unlock()
	pairs := []tls.Certificate{d.identity.certificate}
	if d.southbound != nil {
		pairs = append(pairs, d.southbound.files.identities...)
	}
	for _, p := range pairs {
		if k, ok := p.PrivateKey.(heeded); ok {
			all = append(all, k)
		}
	}
	return all
}

// resume has all platforms tried now.
func (d *Daemon) resume() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, t := range d.destinations {
		t.client.Resume()
	}
}

// report is the TPM in a report.
func (h *health) report(i *status.Identity) {
	h.mu.Lock()
	defer h.mu.Unlock()
	i.Manufacturer, i.Firmware = h.description.Manufacturer, h.description.Firmware
	i.Errors, i.Signatures = maps.Clone(h.errors), status.Durations(h.signed.Clone())
}

// severe are the faults with which no new session can be had.
var severe = []tpm.Fault{tpm.Absent, tpm.Forbidden, tpm.Cleared, tpm.Replaced, tpm.Failing, tpm.Foreign, tpm.Tampered, tpm.Refused}

// lasting are the faults that do not end by themselves.
var lasting = []tpm.Fault{tpm.Cleared, tpm.Replaced, tpm.Foreign, tpm.Tampered, tpm.Unable, tpm.Other}

// raise raises the conditions of the TPM and of the keys in it.
func (h *health) raise(c *conditions) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, of := range slices.Sorted(maps.Keys(h.troubles)) {
		c.tpm(h.troubles[of].Error, of, h.troubles[of].since)
	}
	if _, in := h.troubles[whole]; !in && h.description.Lockout {
		c.raise(status.Degraded, string(tpm.LockedOut), "", time.Time{}, "The TPM is in lockout after too many wrong authorisations; the gateway's own keys are exempt from it and go on.",
			"Find out who tries passwords at the TPM; it recovers by itself, or with tpm2_dictionarylockout --clear-lockout.")
	}
}

// tpm raises the condition of a fault. The gateway's own store goes without saying.
func (c *conditions) tpm(e *tpm.Error, store string, since time.Time) {
	verdict := status.Degraded
	if slices.Contains(severe, e.Fault) {
		verdict = status.Down
	}
	if store == enroll.Device {
		store = ""
	}
	text := sentence(e.Err.Error())
	if e.Address != "" {
		text = fmt.Sprintf("The TPM at %s: %v.", e.Address, e.Err)
	}
	next := sentence(e.Next())
	if !slices.Contains(lasting, e.Fault) {
		next += " gatewayd tries again by itself."
	}
	c.raise(verdict, string(e.Fault), store, since, text, next)
}
