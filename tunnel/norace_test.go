//go:build !race

package tunnel

const (
	sessions     = 500
	raceDetector = false
)
