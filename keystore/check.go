package keystore

import (
	"crypto/x509"
	"time"
)

const day = 24 * time.Hour

// An Expiry is how near the end of a certificate is. Its text is the name of the
// condition; "" is far.
type Expiry string

// The stages, each with a name of its own so that it is told once more.
const (
	NotYet   Expiry = "certificate-not-yet-valid"
	In30Days Expiry = "certificate-expiring-30d"
	In7Days  Expiry = "certificate-expiring-7d"
	In1Day   Expiry = "certificate-expiring-1d"
	Expired  Expiry = "certificate-expired"
)

// Expires judges a certificate. One that lives for less than three months is
// warned of in the last third of its life only: renewal begins there.
func Expires(c *x509.Certificate, now time.Time) Expiry {
	left := c.NotAfter.Sub(now)
	third := c.NotAfter.Sub(c.NotBefore) / 3
	switch {
	case now.Before(c.NotBefore):
		return NotYet
	case left < 0:
		return Expired
	case left < min(day, third):
		return In1Day
	case left < min(7*day, third):
		return In7Days
	case left < min(30*day, third):
		return In30Days
	}
	return ""
}

// RenewAt is when to renew a certificate: at two thirds of its life, and up to a
// tenth of its life later by spread (0 to 1), so that a ward that was enrolled in
// one hour does not renew in one.
func RenewAt(c *x509.Certificate, spread float64) time.Time {
	life := c.NotAfter.Sub(c.NotBefore)
	return c.NotBefore.Add(life*2/3 + time.Duration(spread*float64(life)/10))
}
