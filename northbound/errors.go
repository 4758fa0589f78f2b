package northbound

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/bedside-gateway/gatewayd/tlspolicy"
)

// An UnreachableError is a connection that did not come about, and nobody
// refused it: exit code 69 in one-shot tools.
type UnreachableError struct {
	Address      string
	Reason, Next string
	Err          error
}

func (e *UnreachableError) Error() string {
	return fmt.Sprintf("platform at %s is unreachable: %s; %s", e.Address, e.Reason, e.Next)
}
func (e *UnreachableError) Unwrap() error { return e.Err }

// A RefusedError is the platform's refusal to talk to us, by a TLS alert or by
// hanging up each time. Our own refusals are *tlspolicy.RefusalError.
type RefusedError struct {
	Alert        tls.AlertError // 0 where it hung up without one
	Reason, Next string
	Err          error
}

func (e *RefusedError) Error() string { return e.Reason + "; " + e.Next }
func (e *RefusedError) Unwrap() error { return e.Err }

// A Fault is why an exchange ended without an acknowledgement to go by.
type Fault uint8

// The faults of exchanges.
const (
	NoAnswer   Fault = iota // nothing came in time
	Lost                    // the connection ended first
	Unfinished              // the answer began and did not end
	Unframed                // bytes came, without an MLLP frame
	Oversize                // the answer went over the limit
	Garbage                 // a frame came that holds no acknowledgement
	WrongMode               // strict: an answer of the mode that was not asked for
	faults
)

// String is the fault in a word or two.
func (f Fault) String() string {
	return [faults]string{"no answer", "connection lost", "unfinished answer", "unframed answer", "oversize answer", "garbage", "wrong mode"}[f]
}

// An AckError is a message that was sent, or partly, and whose fate is not
// known: it has to be sent again with the same control ID.
type AckError struct {
	Fault        Fault
	Reason, Next string
	Err          error
}

func (e *AckError) Error() string { return e.Reason + "; " + e.Next }
func (e *AckError) Unwrap() error { return e.Err }

// ErrNotSent is for a connection that was closed before the message was
// written: it needs another connection, and nothing else happened.
var ErrNotSent = errors.New("the connection was closed before the message was sent")

// unreachable puts an error of dialling in an operator's terms.
func (d *Destination) unreachable(err error) error {
	e := &UnreachableError{Address: d.Connect, Err: err, Reason: err.Error(), Next: "check the network between the gateway and the platform"}
	dns, isDNS := errors.AsType[*net.DNSError](err)
	switch {
	case isDNS && dns.IsNotFound:
		e.Reason, e.Next = fmt.Sprintf("the name %q is not known", dns.Name), "correct its address in the configuration, or have the name entered in DNS"
	case isDNS:
		e.Reason, e.Next = fmt.Sprintf("no name server answers for %q", dns.Name), "check the gateway's network and its name servers"
	case errors.Is(err, syscall.ECONNREFUSED):
		e.Reason, e.Next = "nothing listens there", "start the platform's listener, or correct the port"
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		e.Reason, e.Next = "there is no route to it", "check cable, VLAN and default gateway"
	case isTimeout(err):
		e.Reason, e.Next = fmt.Sprintf("no connection within %v", d.ConnectTimeout), "check cable and VLAN, and that the firewall lets this port through"
	}
	return e
}

func isTimeout(err error) bool {
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, syscall.ETIMEDOUT)
}

// handshakeError tells our key's faults, our refusals, the platform's, and
// accidents apart.
func (d *Destination) handshakeError(err error) error {
	if k, ok := errors.AsType[*tlspolicy.KeyError](err); ok {
		return k
	}
	if r, ok := errors.AsType[*tlspolicy.RefusalError](err); ok {
		return r
	}
	if alert, ok := remoteAlert(err); ok {
		return d.refused(alert, err)
	}
	e := &UnreachableError{Address: d.Connect, Err: err, Next: "look in the platform's log, and whether a proxy or firewall is in between"}
	switch {
	case isTimeout(err):
		e.Reason = fmt.Sprintf("it did not finish the TLS handshake within %v", d.ConnectTimeout)
		return e
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed), errors.Is(err, io.ErrClosedPipe),
		errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		e.Reason = "it closed the connection during the TLS handshake without a word"
		return e
	}
	return ownRefusal(err)
}

// ownRefusal is for what package tls itself refused.
func ownRefusal(err error) error {
	r := &tlspolicy.RefusalError{Rule: "B14", Reason: "the TLS handshake failed: " + err.Error(), Next: "compare the platform's TLS settings with the specification's", Err: err}
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		r.Rule, r.Reason, r.Next = "B12", "the platform does not speak TLS on this port", "correct the port, or have TLS switched on at the platform"
	} else if strings.Contains(err.Error(), "protocol version") {
		r.Rule, r.Reason, r.Next = "B13", "the platform speaks only TLS versions below 1.2", "have TLS 1.2 or higher enabled at the platform"
	}
	return r
}

// remoteAlert finds an alert that the peer sent. Package tls keeps its type to
// itself; the texts are those of tls.AlertError.
func remoteAlert(err error) (tls.AlertError, bool) {
	op, ok := errors.AsType[*net.OpError](err)
	if !ok || op.Op != "remote error" {
		return 0, false
	}
	for n := range 256 {
		if alert := tls.AlertError(n); alert.Error() == op.Err.Error() {
			return alert, true
		}
	}
	return 0, false
}

const (
	alertHandshakeFailure   tls.AlertError = 40
	alertBadCertificate     tls.AlertError = 42
	alertRevoked            tls.AlertError = 44
	alertExpired            tls.AlertError = 45
	alertUnknownCertificate tls.AlertError = 46
	alertUnknownCA          tls.AlertError = 48
	alertAccessDenied       tls.AlertError = 49
	alertProtocolVersion    tls.AlertError = 70
	alertInsufficient       tls.AlertError = 71
	alertCertificateMissing tls.AlertError = 116
)

func (d *Destination) refused(alert tls.AlertError, err error) error {
	text := strings.TrimPrefix(alert.Error(), "tls: ")
	e := &RefusedError{Alert: alert, Err: err, Reason: fmt.Sprintf("the platform refused us with the TLS alert %d (%s)", alert, text)}
	switch alert {
	case alertHandshakeFailure, alertInsufficient:
		e.Next = "no cipher suite or signature is common to both: compare the platform's with the specification's"
	case alertProtocolVersion:
		e.Next = "have TLS 1.2 or higher enabled at the platform"
	case alertBadCertificate, alertUnknownCertificate, alertAccessDenied:
		e.Next = "have this gateway's certificate name entered at the platform, and see its log for what it has against the certificate"
	case alertRevoked:
		e.Next = "our certificate is revoked: have a new one issued, and find out why"
	case alertExpired:
		e.Next = "have a new certificate issued for this gateway; if ours is still valid, have the platform's clock checked"
	case alertUnknownCA:
		e.Next = "have the root of this gateway's certificate installed at the platform"
	case alertCertificateMissing:
		e.Next = "the platform wants a certificate of ours and took none: see its list of accepted CAs"
	default:
		e.Next = "see the platform's log"
	}
	if end, over := d.ourExpiry(); over {
		e.Next = fmt.Sprintf("our certificate expired on %s: have a new one issued", end.UTC().Format(time.RFC3339))
	}
	return e
}

// ourExpiry reports whether our own certificate has expired: platforms often
// say no more than that it is bad.
func (d *Destination) ourExpiry() (time.Time, bool) {
	if d.TLS == nil || d.TLS.GetClientCertificate == nil || d.TLS.Time == nil {
		return time.Time{}, false
	}
	id, err := d.TLS.GetClientCertificate(&tls.CertificateRequestInfo{})
	if err != nil || id.Leaf == nil {
		return time.Time{}, false
	}
	return id.Leaf.NotAfter, d.TLS.Time().After(id.Leaf.NotAfter)
}
