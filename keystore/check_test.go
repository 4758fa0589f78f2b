package keystore

import (
	"crypto/x509"
	"testing"
	"time"
)

func TestExpiryHasItsStages(t *testing.T) {
	begin := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	year := &x509.Certificate{NotBefore: begin, NotAfter: begin.Add(365 * day)}
	week := &x509.Certificate{NotBefore: begin, NotAfter: begin.Add(7 * day)}
	for _, c := range []struct {
		name string
		of   *x509.Certificate
		left time.Duration
		want Expiry
	}{
		{"a month and an hour before the end", year, 30*day + time.Hour, ""},
		{"a month", year, 30*day - time.Hour, In30Days},
		{"a week", year, 7*day - time.Hour, In7Days},
		{"a day", year, day - time.Hour, In1Day},
		{"over", year, -time.Second, Expired},
		{"not begun", year, 366 * day, NotYet},
		{"a certificate of a week in its middle", week, 3 * day, ""},
		{"a certificate of a week in its last third", week, 2 * day, In7Days},
		{"a certificate of a week on its last day", week, 23 * time.Hour, In1Day},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := Expires(c.of, c.of.NotAfter.Add(-c.left)); got != c.want {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
}

func TestRenewalIsSpreadAfterTwoThirds(t *testing.T) {
	begin := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	c := &x509.Certificate{NotBefore: begin, NotAfter: begin.Add(90 * day)}
	if got := RenewAt(c, 0); !got.Equal(begin.Add(60 * day)) {
		t.Error(got)
	}
	if got := RenewAt(c, 1); !got.Equal(begin.Add(69 * day)) {
		t.Error(got)
	}
}
