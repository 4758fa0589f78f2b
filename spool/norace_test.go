//go:build !race

package spool

const slow = 1
