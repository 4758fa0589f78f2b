package daemon

import (
	"crypto/fips140"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/bedside-gateway/gatewayd/revocation"
	"github.com/bedside-gateway/gatewayd/tlspolicy"
)

// verdicts count what was thought of a platform's certificates, handshake by
// handshake, for the status.
type verdicts struct {
	mu     sync.Mutex
	counts map[string]uint64
	next   []time.Time // nextUpdate of the last handshake's responses, by position
}

// add is called inside a handshake.
func (v *verdicts) add(list []revocation.Verdict) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.next = v.next[:0]
	for _, verdict := range list {
		v.counts[verdict.Kind.String()]++
		v.next = append(v.next, verdict.NextUpdate)
	}
}

func (v *verdicts) now() (counts map[string]uint64, next []time.Time) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return maps.Clone(v.counts), slices.Clone(v.next)
}

// removedByFIPS says at the start what the FIPS 140-3 mode costs: a platform
// that has nothing else is not reached, and the reason would be hard to find.
func (d *Daemon) removedByFIPS() {
	if !fips140.Enabled() {
		return
	}
	removed, err := tlspolicy.RemovedByFIPS()
	if err != nil || len(removed) > 0 {
		d.log.Warn("the FIPS 140-3 mode removed cipher suites of the specification", "removed", strings.Join(removed, " "), "error", text(err),
			"next", "have a suite with GCM enabled at the platform, or TLS 1.3")
	}
}
