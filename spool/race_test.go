//go:build race

package spool

// slow is how many times slower the race detector makes what is done thousands of times.
const slow = 4
