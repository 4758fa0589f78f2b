// Package northbound is the client of Interface B: it dials the platform,
// holds it to the TLS policy, sends one message at a time, judges the
// acknowledgement, and keeps at it.
//
// It never sends to a platform that it has not verified, never gives a message
// up on its own account, and never reads on a connection on which it has waited
// in vain. What a platform answers in words goes nowhere, as it may quote a
// patient's data: only codes do. The daemon runs a Client for each destination;
// Send is for one-shot tools.
//
// # Rules
//
// A message goes out with the same control ID until its fate is known, so the
// platform can see that it is the same. One message is on its way at a time,
// and the queue's order is kept: while the first one is not accepted, rejected
// or set aside, those behind it wait.
//
//   - CA, AA: the message is the platform's and leaves the queue.
//   - CE, AE: the platform could not take it now. It is tried again with backoff,
//     ErrorTries times in all; then it is set aside (quarantined), so that one
//     message does not stop a ward. But only one is set aside in this way until
//     the platform has accepted another: a platform in trouble, which answers
//     every message so, does not empty the queue into quarantine.
//   - CR, AR: the platform will not take it. After RejectTries it is set aside and
//     the next one sent, or, where OnReject is Halt, it stays first and nothing
//     passes it until the platform takes it or an operator drops it.
//   - No answer, half an answer, one that is none: the connection is closed, and
//     the message sent again on a new one, without end.
//   - An answer for another message is counted and not taken; the wait goes on.
package northbound

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/bedside-gateway/gatewayd/mllp"
	"github.com/bedside-gateway/gatewayd/tlspolicy"
)

// Reject is what to do about a message that the platform rejects.
type Reject uint8

// What can be done about a rejected message.
const (
	Continue Reject = iota // set it aside and go on
	Halt                   // keep it first until it is accepted or dropped
)

// Defaults of a Destination.
const (
	DefaultConnectTimeout = 10 * time.Second
	DefaultAckTimeout     = 10 * time.Second
	DefaultIdleTimeout    = 5 * time.Minute
	DefaultMaxAckBytes    = 64 << 10
	DefaultRejectTries    = 1
	DefaultErrorTries     = 15 // about seven minutes
)

// A Destination is a platform and how to deal with it. Zero values are the defaults.
type Destination struct {
	Name    string // in logs and status
	Address string // host and port of the platform's URL; the port defaults to 2575 (B12)
	Connect string // what to dial in its place; the name to verify stays
	// TLS is a policy of package tlspolicy. There is no other way: without one
	// that verifies the platform, nothing is sent.
	TLS *tls.Config
	// Unready is why there can be no TLS yet, such as that the gateway has no
	// certificate. It shows as a refusal. Nil where TLS says all.
	Unready error

	ConnectTimeout time.Duration // for TCP and TLS together
	AckTimeout     time.Duration // from the message written to its answer read
	IdleTimeout    time.Duration // after which an unused connection is closed
	Pacing         time.Duration // least time between an answer and the next message
	MaxAckBytes    int
	RejectTries    int // before a message that is answered CR or AR is set aside
	ErrorTries     int // before a message that is answered CE or AE is set aside
	// StrictAck takes only the kind of answer that MSH-15 and MSH-16 ask for:
	// otherwise CA and AA count alike, as platforms mix them.
	StrictAck bool
	OnReject  Reject
}

// A DialFunc opens a connection, as net.Dialer.DialContext does.
type DialFunc func(ctx context.Context, network, address string) (net.Conn, error)

// dialTCP tries the addresses of a name side by side (RFC 8305), and has the
// kernel ask after the peer of an idle connection: half a minute, since
// firewalls forget idle connections after minutes.
func dialTCP() DialFunc {
	d := net.Dialer{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 30 * time.Second, Interval: 10 * time.Second, Count: 3}}
	return d.DialContext
}

// Check says what is wrong with a destination: a *tlspolicy.RefusalError where
// a connection would break a rule.
func (d Destination) Check() error {
	_, err := d.complete()
	return err
}

// complete fills in the defaults.
func (d Destination) complete() (Destination, error) {
	host, port, err := splitAddress(d.Address)
	if err != nil {
		return d, fmt.Errorf("destination %s: address: %w", d.Name, err)
	}
	d.Address = net.JoinHostPort(host, port)
	if d.Connect == "" {
		d.Connect = d.Address
	} else if host, port, err := splitAddress(d.Connect); err != nil {
		return d, fmt.Errorf("destination %s: connect: %w", d.Name, err)
	} else {
		d.Connect = net.JoinHostPort(host, port)
	}
	orDefault(&d.ConnectTimeout, DefaultConnectTimeout)
	orDefault(&d.AckTimeout, DefaultAckTimeout)
	orDefault(&d.IdleTimeout, DefaultIdleTimeout)
	orDefault(&d.MaxAckBytes, DefaultMaxAckBytes)
	orDefault(&d.RejectTries, DefaultRejectTries)
	orDefault(&d.ErrorTries, DefaultErrorTries)
	if d.Unready != nil {
		return d, d.Unready
	}
	return d, checkTLS(d.TLS, host)
}

func orDefault[T int | time.Duration](v *T, standard T) {
	if *v <= 0 {
		*v = standard
	}
}

func splitAddress(s string) (host, port string, err error) {
	host, port, err = net.SplitHostPort(s)
	if e, ok := err.(*net.AddrError); ok && e.Err == "missing port in address" {
		host, port, err = strings.Trim(s, "[]"), mllp.DefaultPort, nil
	}
	if err == nil && host == "" {
		err = fmt.Errorf("%q names no host", s)
	}
	return host, port, err
}

// checkTLS refuses configurations that would let an unverified platform pass,
// whatever made them.
func checkTLS(c *tls.Config, host string) error {
	const next = "make it with tlspolicy.Client"
	switch {
	case c == nil:
		return &tlspolicy.RefusalError{Rule: "B12", Reason: "there is no TLS policy, and nothing is sent without TLS", Next: next}
	case c.VerifyConnection == nil:
		return &tlspolicy.RefusalError{Rule: "B17", Reason: "the TLS policy does not verify the platform", Next: next}
	case c.MinVersion < tls.VersionTLS12:
		return &tlspolicy.RefusalError{Rule: "B13", Reason: "the TLS policy allows versions below 1.2", Next: next}
	case !strings.EqualFold(c.ServerName, strings.TrimSuffix(host, ".")):
		return &tlspolicy.RefusalError{Rule: "B17", Reason: fmt.Sprintf("the TLS policy verifies the name %q, and the address has %q", c.ServerName, host), Next: next}
	}
	return nil
}
