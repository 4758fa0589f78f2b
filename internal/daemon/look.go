package daemon

import (
	"fmt"
	"strings"
	"time"

	"github.com/bedside-gateway/gatewayd/internal/status"
	"github.com/bedside-gateway/gatewayd/spool"
)

// A change is a counter with the time when it last rose.
type change struct {
	count uint64
	at    time.Time
}

// recently is how long after the last drop or refusal its condition stands.
const recently = 15 * time.Minute

// look is one round of the supervisor: it takes the whole report, which asks
// every part, logs the conditions that came and went, and tells systemd.
func (d *Daemon) look() {
	r := d.Report()
	d.beats()
	d.mu.Lock()
	raised, cleared := d.differ(&r)
	line := r.Line()
	told := d.line == line
	d.line = line
	d.mu.Unlock()
	for _, c := range raised {
		log := d.log.With("condition", c.Name)
		if c.Subject != "" {
			log = log.With("subject", c.Subject)
		}
		log.Warn(c.Text, "next", c.Next)
	}
	for _, name := range cleared {
		d.log.Info("a condition is over", "condition", name)
	}
	if !told {
		d.options.Notify("STATUS=" + line)
	}
	d.options.Notify("WATCHDOG=1")
}

// differ notes the conditions of the report, and gives those that are new and
// the names of those that are over.
func (d *Daemon) differ(r *status.Report) (raised []status.Condition, cleared []string) {
	now := map[string]bool{}
	for _, c := range r.Conditions {
		key := strings.TrimSpace(c.Name + " " + c.Subject)
		now[key] = true
		if !d.conditions[key] {
			raised = append(raised, c)
		}
	}
	for key := range d.conditions {
		if !now[key] {
			cleared = append(cleared, key)
		}
	}
	d.conditions = now
	return raised, cleared
}

// beats notes that the supervisor is alive.
func (d *Daemon) beats() {
	now := d.options.Now()
	d.beat.Store(&now)
}

// Live returns why the process should be started again, or nil. It takes no
// lock, for a lock that is never let go is one of the reasons.
func (d *Daemon) Live() error {
	if age := d.options.Now().Sub(*d.beat.Load()); age > 10*d.options.Period {
		return fmt.Errorf("the supervisor stands still for %v", age.Round(time.Second))
	}
	return nil
}

// dropped is told by the spool of each message that it gave up.
func (d *Daemon) dropped(drop spool.Drop) {
	if drop.Cause == "operator" {
		d.log.Info("a message was dropped by the operator", "destination", drop.Queue, "port", drop.Device, "control_id", drop.ControlID)
		return
	}
	d.lastDrop.Store(d.options.Now().UnixNano())
}
