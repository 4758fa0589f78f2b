package intellivue

import "time"

// A relativeTime counts eighths of a millisecond since the monitor was switched
// on. It begins anew after 149 hours.
type relativeTime uint32

const ticksPerSecond = 8000

// ticks are eighths of a millisecond on a scale that does not begin anew.
type ticks int64

func (t ticks) duration() time.Duration { return time.Duration(t) * (time.Second / ticksPerSecond) }

// relativeOf is the time on the wire of a duration.
func relativeOf(d time.Duration) relativeTime {
	return relativeTime(d / (time.Second / ticksPerSecond))
}

func (t relativeTime) duration() time.Duration { return ticks(t).duration() }

// An absoluteTime is what the clock of the monitor shows: century, year, month,
// day, hour, minute, second and hundredths in binary coded decimal.
type absoluteTime [8]byte

// time is the date and the time of day, in no zone but written as UTC. It is
// not ok where the monitor says nothing (all bits or none) or what it says is
// no date.
func (a absoluteTime) time() (time.Time, bool) {
	var n [8]int
	for i, b := range a {
		n[i] = int(b>>4)*10 + int(b&15)
		if b>>4 > 9 || b&15 > 9 {
			if i < 7 {
				return time.Time{}, false
			}
			n[i] = 0 // seconds are as fine as it gets
		}
	}
	year, month, day := n[0]*100+n[1], time.Month(n[2]), n[3]
	t := time.Date(year, month, day, n[4], n[5], n[6], n[7]*10e6, time.UTC)
	if year == 0 || t.Month() != month || t.Day() != day || n[4] > 23 || n[5] > 59 || n[6] > 59 {
		return time.Time{}, false
	}
	return t, true
}

// A clock puts the monitor's times beside the gateway's. It learns from what
// comes: the relative time of each message against the time of its arrival,
// and now and then what the monitor's clock shows at a relative time.
type clock struct {
	known bool
	last  relativeTime
	at    ticks // of last

	// lag is the least that an arrival came after its relative time, on a scale
	// that begins with the first: the true distance of the two clocks and the
	// shortest way. It may grow a little, for the clocks drift.
	base     time.Time
	lag      time.Duration
	lastSeen time.Time

	// shown is what the monitor's clock showed at ticks 0, for as much as its
	// whole seconds tell.
	shownKnown bool
	shown      time.Time
}

const (
	clockDrift   = 2000 // 1/2000: half a second in 1000 s
	clockRestart = -10 * time.Minute
)

// see takes the relative time of a message that arrived now. restarted is set
// where it is so far back that the monitor must have been switched off and on.
func (c *clock) see(now time.Time, rel relativeTime) (t ticks, restarted bool) {
	if !c.known {
		c.known, c.last, c.base, c.lastSeen = true, rel, now, now
		return 0, false
	}
	step := ticks(int32(rel - c.last)) // right over the wrap, for steps below 74 h
	if step.duration() < clockRestart {
		*c = clock{}
		t, _ := c.see(now, rel)
		return t, true
	}
	t = c.at + step
	if step > 0 {
		c.last, c.at = rel, t
	}
	lag := now.Sub(c.base) - t.duration()
	c.lag += now.Sub(c.lastSeen) / clockDrift
	c.lastSeen = now
	c.lag = min(c.lag, lag)
	return t, false
}

// gateway is t by the gateway's clock.
func (c *clock) gateway(now time.Time, t ticks) time.Time {
	age := now.Sub(c.base) - t.duration() - c.lag
	return now.Add(-max(age, 0))
}

// pair takes what the monitor's clock showed at t. It shows whole seconds, so
// the latest of what it says within a second is the truest; what is further off
// is a clock that was set.
func (c *clock) pair(t ticks, shown time.Time) {
	zero := shown.Add(-t.duration())
	if d := zero.Sub(c.shown); !c.shownKnown || d > 0 || d < -1100*time.Millisecond {
		c.shown, c.shownKnown = zero, true
	}
}

// device is what the monitor's clock showed at t; zero where it is not known.
func (c *clock) device(t ticks) time.Time {
	if !c.shownKnown {
		return time.Time{}
	}
	return c.shown.Add(t.duration())
}

// deviceNow is what the monitor's clock shows now.
func (c *clock) deviceNow(now time.Time) time.Time {
	if !c.shownKnown {
		return time.Time{}
	}
	return c.shown.Add(now.Sub(c.base) - c.lag)
}

// fromDevice is the time by the gateway's clock of a time that the monitor's
// clock showed.
func (c *clock) fromDevice(now, shown time.Time) (time.Time, bool) {
	if !c.shownKnown {
		return time.Time{}, false
	}
	return now.Add(shown.Sub(c.deviceNow(now))), true
}
