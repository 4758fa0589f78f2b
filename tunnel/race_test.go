//go:build race

package tunnel

// sessions are fewer where handshakes take twenty times as long.
const (
	sessions     = 60
	raceDetector = true
)
