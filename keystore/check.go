package keystore

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"time"
)

// A Warning is something about the identity that works today and needs somebody.
type Warning struct {
	Text, Next string
}

func (w Warning) String() string { return w.Text + "; " + w.Next }

// FileKey is the warning that goes with every key that LoadFile gives.
var FileKey = Warning{
	Text: "the private key is in a file: whoever copies it can pose as this gateway",
	Next: "use it for development only",
}

const day = 24 * time.Hour

// Check warns of certificates in the chain that have expired, are not valid
// yet, or have used up two thirds of their life, which is when to renew them.
func Check(id tls.Certificate, now time.Time) []Warning {
	var all []Warning
	for i, der := range id.Certificate {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			all = append(all, Warning{fmt.Sprintf("certificate %d of our chain cannot be read", i+1), "load it anew"})
			continue
		}
		if w, ok := checkTime(c, now); ok {
			all = append(all, w)
		}
	}
	return all
}

func checkTime(c *x509.Certificate, now time.Time) (Warning, bool) {
	name := fmt.Sprintf("certificate %q", c.Subject)
	left := c.NotAfter.Sub(now)
	switch {
	case now.Before(c.NotBefore):
		return Warning{fmt.Sprintf("%s is not valid before %s", name, c.NotBefore.UTC().Format(time.RFC3339)),
			"check the gateway's clock: platforms will refuse the certificate"}, true
	case left < 0:
		return Warning{fmt.Sprintf("%s expired on %s", name, c.NotAfter.UTC().Format(time.RFC3339)),
			"have a new one issued: platforms will refuse it"}, true
	case left < c.NotAfter.Sub(c.NotBefore)/3:
		return Warning{fmt.Sprintf("%s expires in %d days, on %s", name, left/day, c.NotAfter.UTC().Format(time.RFC3339)),
			"have a new one issued before that"}, true
	}
	return Warning{}, false
}
