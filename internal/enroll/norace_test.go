//go:build !race

package enroll

const raced = false
