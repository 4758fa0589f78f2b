package enroll

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"

	"github.com/bedside-gateway/gatewayd/keystore/attest"
	"github.com/bedside-gateway/gatewayd/keystore/est"
	"github.com/bedside-gateway/gatewayd/keystore/tpm"
)

// A CA is one that issues by itself.
type CA struct {
	URL   string // https://HOST[:PORT]; for EST with the label of a CA behind it where there is one
	Roots *x509.CertPool
	// Credential gives user and password, for the first certificate or in place of
	// one that the CA does not take; nil: there is none.
	Credential func() (user, password string, err error)
}

// A CAError is a CA that issued nothing. Among what it wraps are the errors of
// packages est and attest that say so: Pending, Unavailable and Refused.
type CAError struct {
	URL  string
	Err  error
	next string
}

func (e *CAError) Error() string {
	text := e.Err.Error()
	if r := refusalIn(e.Err); r != nil { // whose own next step knows less
		text = fmt.Sprintf("it refused with %d %s%s", r.status, http.StatusText(r.status), r.said)
	} else if u, ok := errors.AsType[*url.Error](e.Err); ok { // what was asked for is of no help where nothing answers
		text = u.Err.Error()
	}
	return fmt.Sprintf("the CA at %s: %s; %s", e.URL, text, e.next)
}

func (e *CAError) Unwrap() error { return e.Err }

// Next is what to do.
func (e *CAError) Next() string { return e.next }

// Temporary reports whether to ask again later may be all that is needed: the CA
// has to think, is not there, or has no time.
func (e *CAError) Temporary() bool {
	_, pending := errors.AsType[*est.Pending](e.Err)
	return pending || unavailable(e.Err) || unreachable(e.Err)
}

// unavailable reports whether the CA, or what stands in front of it, said that it
// cannot answer now.
func unavailable(err error) bool {
	if r := refusalIn(err); r != nil {
		return r.status == http.StatusBadGateway || r.status == http.StatusGatewayTimeout
	}
	_, there := errors.AsType[*est.Unavailable](err)
	_, here := errors.AsType[*attest.Unavailable](err)
	return there || here
}

// unreachable reports whether the CA could not be reached, or said nothing. One
// that we do not trust, or that does not trust us, was reached.
func unreachable(err error) bool {
	if timed, ok := errors.AsType[net.Error](err); ok && timed.Timeout() {
		return true
	}
	if o, ok := errors.AsType[*net.OpError](err); ok {
		return !isAlert(o)
	}
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
}

// isAlert reports whether the CA ended TLS.
func isAlert(o *net.OpError) bool { return o.Op == "remote error" }

// A refusal is the no of a CA, whatever it was asked by.
type refusal struct {
	status int
	said   string
	path   string // of a step of an attestation; "" over EST
}

// refusalIn is nil where there is none.
func refusalIn(err error) *refusal {
	r := &refusal{}
	var text string
	if e, ok := errors.AsType[*est.Refused](err); ok {
		r.status, text = e.Status, e.Text
	} else if a, ok := errors.AsType[*attest.Refused](err); ok {
		r.status, text, r.path = a.Status, a.Text, a.Path
	} else {
		return nil
	}
	if text != "" {
		r.said = ", saying " + text
	}
	return r
}

// fault says what to do about a CA that issued nothing. A TPM that failed on the
// way is another matter, unless it was given what is for another one, and so is
// who did not wait.
func (a *Applicant) fault(ca CA, err error) error {
	f := tpm.FaultOf(err)
	if err == nil || f != "" && f != tpm.Astray || errors.Is(err, context.Canceled) {
		return err
	}
	return &CAError{ca.URL, err, a.nextAt(ca, err)}
}

func (a *Applicant) nextAt(ca CA, err error) string {
	if r := refusalIn(err); r != nil && !unavailable(err) {
		return a.nextRefused(ca, r)
	}
	_, untrusted := errors.AsType[*tls.CertificateVerificationError](err)
	broken, _ := errors.AsType[*net.OpError](err)
	_, pending := errors.AsType[*est.Pending](err)
	switch {
	case pending:
		return "have the request approved there, then run the same command again"
	case untrusted:
		return "see that est_trust, or --trust, is the root of this server, and that the gateway's clock is right"
	case broken != nil && isAlert(broken) && ca.Credential == nil:
		return fmt.Sprintf("see that the gateway's certificate is of this CA and has not expired; else run %s --user USER --password-file FILE with the CA's bootstrap credential", a.command("renew"))
	case unavailable(err):
		return "run the same command again later"
	case unreachable(err):
		return "look at the network, at est_url or --url, and whether the CA runs; then run the same command again"
	}
	return "look in its log, and whether it answers such requests there"
}

// nextRefused is the step after a no.
func (a *Applicant) nextRefused(ca CA, r *refusal) string {
	switch {
	case r.status == http.StatusUnauthorized && r.path == "" && ca.Credential == nil:
		return fmt.Sprintf("it does not take the gateway's certificate for this: run %s --user USER --password-file FILE with the CA's bootstrap credential", a.command("renew"))
	case r.status == http.StatusUnauthorized && r.path == "":
		return "check user and password with the CA's operator"
	case r.status == http.StatusUnauthorized, r.status == http.StatusForbidden:
		return "have the CA's operator admit this gateway"
	case r.status == http.StatusNotFound && (r.path == "" || r.path == attest.PathBegin):
		return "check est_url, or --url: what answers there has no such service, or no CA of this label"
	case r.status == http.StatusNotFound, r.status == http.StatusConflict:
		return "run the same command again, which begins anew"
	}
	return "ask the CA's operator, and look in its log"
}
