package northbound

import (
	"context"
	"fmt"
	"log/slog"
	"time"
)

// logEvery is how often the log repeats that a kind of trouble goes on.
const logEvery = 5 * time.Minute

// notices keep a platform that is down for a night from filling the log. Each
// kind of trouble is told at once, and then now and then.
type notices struct {
	last map[string]time.Time
	down bool // trouble was logged since the last success
}

// due reports whether a line of a kind may be written, and takes it as written.
func (n *notices) due(kind string) bool {
	now := time.Now()
	if last, known := n.last[kind]; known && now.Sub(last) < logEvery {
		return false
	}
	if n.last == nil {
		n.last = map[string]time.Time{}
	}
	n.last[kind] = now
	return true
}

// up reports whether the end of the trouble is news.
func (n *notices) up() bool {
	was := n.down
	n.down = false
	return was
}

// logFailure writes of a failed attempt. The kind is the state it leads to, so
// there are few of them whatever the errors say.
func (c *Client) logFailure(ctx context.Context, err error) {
	state, _ := stateOf(err)
	if !c.notices.due(state) {
		return
	}
	c.notices.down = true
	level := slog.LevelWarn
	if state == Refused || state == Halted || state == StoreFault || state == KeyFault { // B17, B18: log an error
		level = slog.LevelError
	}
	if c.eager {
		c.peek()
	}
	args := []any{"state", state, "error", err.Error(), "attempts", c.attempts}
	if !c.oldest.IsZero() {
		args = append(args, "oldest_message", clock(c.o.Now().Sub(c.oldest)))
	}
	c.o.Log.Log(ctx, level, trouble(state, c.attempts > 1), args...)
}

// trouble is what goes wrong, and whose trouble it is.
func trouble(state string, still bool) string {
	switch {
	case state == KeyFault && still:
		return "there is still no session with the platform, for the gateway's own key does not sign"
	case state == KeyFault:
		return "there is no session with the platform, for the gateway's own key does not sign"
	case still:
		return "the platform still does not take messages"
	}
	return "the platform does not take messages"
}

// peek looks how old the first message of the queue is, without waiting for one:
// before the first connection nothing else has asked.
func (c *Client) peek() {
	now, cancel := context.WithCancel(context.Background())
	cancel()
	if e, err := c.queue.Next(now); err == nil {
		c.oldest = e.Made
	}
}

// noteOthers logs answers that were for other messages.
func (c *Client) noteOthers() {
	n := c.counters.other.Load()
	if n != c.other && c.notices.due("other") {
		c.o.Log.Warn("the platform answered for another message than the one that was sent; such answers are not taken", "answers", n-c.other)
		c.other = n
	}
}

// clock is a duration as hours, minutes and seconds.
func clock(d time.Duration) string {
	s := int(max(0, d).Seconds())
	return fmt.Sprintf("%02d:%02d:%02d", s/3600, s/60%60, s%60)
}
