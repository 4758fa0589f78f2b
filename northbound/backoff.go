package northbound

import "time"

const (
	firstPause = time.Second
	lastPause  = time.Minute
)

// A backoff doubles the pause between attempts, from a second to a minute. Half
// of each is drawn by lot: gateways that lost the same platform do not come
// back as one.
type backoff struct {
	pause time.Duration
	rand  func() float64
}

func (b *backoff) next() time.Duration {
	b.pause = min(max(firstPause, 2*b.pause), lastPause)
	return b.jitter(b.pause)
}

func (b *backoff) jitter(d time.Duration) time.Duration {
	return d/2 + time.Duration(b.rand()*float64(d/2))
}

func (b *backoff) reset() { b.pause = 0 }
