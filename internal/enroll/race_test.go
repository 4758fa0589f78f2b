//go:build race

package enroll

// raced is whether the race detector watches. It keeps memory of its own, and
// makes keys of each kind slow without seeing more.
const raced = true
