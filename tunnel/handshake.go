package tunnel

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/bedside-gateway/gatewayd/tlsoverlay"
	"github.com/bedside-gateway/gatewayd/tlspolicy"
)

// A ReachError is a platform that could not be asked, or that turned the
// gateway away: nothing was found out about it.
type ReachError struct {
	Address string // that was dialled
	Reason  string
	Next    string // what the operator can do
	Judged  bool   // it was found good, and then could not be reached for the session
	Err     error
}

func (e *ReachError) Error() string {
	what := "could not be judged"
	if e.Judged {
		what = "was found good, and then could not be reached for the session"
	}
	return fmt.Sprintf("the platform at %s %s: %s; %s", e.Address, what, e.Reason, e.Next)
}

func (e *ReachError) Unwrap() error { return e.Err }

// contained is judge; a fault of the program closes the gate.
func (g *gate) contained(ctx context.Context, at netip.AddrPort) (v Verdict) {
	defer func() {
		if r := recover(); r != nil {
			g.s.panicked(r)
			v = Verdict{Address: at, At: g.s.o.Now(), Result: Unreachable, Err: &ReachError{Address: g.key.connect, Reason: "a fault of the program", Next: "report it with the log"}}
		}
	}()
	return g.judge(ctx, at)
}

// judge looks at the platform: at an address, or where that is the zero value,
// at what the name leads to.
func (g *gate) judge(ctx context.Context, at netip.AddrPort) Verdict {
	g.mu.Lock()
	p, config := g.platform, g.tls
	g.mu.Unlock()
	v := g.look(ctx, at, p, config.Clone())
	if v.Result != Good || !p.TwoCertificates {
		return v
	}
	other, err := onlyRSA(config)
	if err != nil {
		v.Result, v.Err = Refused, err
		return v
	}
	second := g.look(ctx, v.Address, p, other)
	second.At = v.At
	switch second.Result {
	case Good:
		second.leaves, second.proofs = append(v.leaves, second.leaves...), append(v.proofs, second.proofs...)
		second.Version, second.Until = v.Version, earlier(v.Until, second.Until)
	case Declined: // it has taken our certificate a moment ago
		second.Err = &ReachError{Address: v.Address.String(), Err: second.Err, Reason: "it has a good ECC certificate, and shows no RSA certificate",
			Next: "install one at the platform, or take two_certificates out of its [[tunnel.platform]]"}
	}
	return second
}

// onlyRSA offers what makes a platform show its RSA certificate.
func onlyRSA(config *tls.Config) (*tls.Config, error) {
	c := config.Clone()
	c.MaxVersion = tls.VersionTLS12
	suites := slices.DeleteFunc(tlspolicy.CMIIST().Suites, func(id uint16) bool { return !strings.Contains(tls.CipherSuiteName(id), "_RSA_") })
	return c, tlsoverlay.SetCipherSuites(c, suites)
}

// look makes one handshake. Nothing is sent over the session.
func (g *gate) look(ctx context.Context, at netip.AddrPort, p Platform, config *tls.Config) Verdict {
	ctx, cancel := context.WithTimeout(ctx, g.s.o.GateTimeout)
	defer cancel()
	v := Verdict{Address: at, At: g.s.o.Now(), Result: Unreachable}
	target := p.Connect
	if at.IsValid() {
		target = at.String()
	}
	raw, err := g.s.dial(ctx, target)
	if err != nil {
		v.Err = unreachable(target, err, g.s.o.GateTimeout)
		return v
	}
	v.Address = addrPort(raw.RemoteAddr())
	config.VerifyConnection = g.noting(config.VerifyConnection, p.StapleMaxAge, &v)
	var conn *tls.Conn
	if err = g.introduce(ctx, raw, p); err == nil {
		// In TLS 1.3 too it returns only after the platform's Finished was
		// verified: who has answered has the certificate's key. Our own
		// certificate may be refused later, which is no matter of the verdict.
		conn, err = tlspolicy.Handshake(ctx, raw, config)
	}
	if err != nil {
		v.Result, v.Err = g.failed(v.Address.String(), err)
		g.s.running.Go(func() { linger(raw) })
		return v
	}
	state := conn.ConnectionState()
	v.Result, v.Version, v.leaves = Good, state.Version, [][]byte{state.PeerCertificates[0].Raw}
	g.s.running.Go(func() { goodbye(conn, raw) })
	return v
}

// introduce sends what a platform behind a load balancer waits for.
func (g *gate) introduce(ctx context.Context, raw net.Conn, p Platform) error {
	if !p.ProxyHeader {
		return nil
	}
	if end, ok := ctx.Deadline(); ok {
		if err := raw.SetWriteDeadline(end); err != nil {
			return err
		}
	}
	_, err := raw.Write(proxyOwn())
	return err
}

// noting is a VerifyConnection that keeps until when what it judged holds.
func (g *gate) noting(verify func(tls.ConnectionState) error, maxAge time.Duration, v *Verdict) func(tls.ConnectionState) error {
	return func(state tls.ConnectionState) (err error) {
		v.proofs = []proof{proofOf(state)}
		v.Until, err = g.prove(verify, state, maxAge)
		return err
	}
}

// proofOf is what was shown in a handshake under the overlay, whose responses can be read.
func proofOf(state tls.ConnectionState) proof {
	responses, _ := tlsoverlay.Staples(&state)
	return proof{state.PeerCertificates, responses[:min(len(responses), len(state.PeerCertificates))]}
}

func unreachable(target string, err error, limit time.Duration) *ReachError {
	e := &ReachError{Address: target, Reason: err.Error(), Next: "check cable and VLAN, and address and connect in [[tunnel.platform]]", Err: err}
	if _, dns := errors.AsType[*net.DNSError](err); dns {
		e.Reason, e.Next = "its name cannot be resolved", "check address and connect in [[tunnel.platform]], the gateway's network and its name servers"
		return e
	}
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		e.Reason, e.Next = "nothing listens there", "start the platform's listener, or correct the port of address or connect in [[tunnel.platform]]"
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
		e.Reason, e.Next = "no descriptor is left", "raise the limit of open files (LimitNOFILE), or lower max_sessions in [[tunnel]]"
	case isTimeout(err):
		e.Reason, e.Next = fmt.Sprintf("no connection within %v", limit), "check cable and VLAN, and that the firewall lets this port through"
	}
	return e
}

func isTimeout(err error) bool {
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, syscall.ETIMEDOUT)
}

// failed tells our refusals, the platform's, and accidents apart.
func (g *gate) failed(address string, err error) (Result, error) {
	if r, ok := errors.AsType[*tlspolicy.RefusalError](err); ok {
		return Refused, r
	}
	e := &ReachError{Address: address, Err: err, Next: "look in the platform's log, and whether a proxy or firewall is in between"}
	if _, ok := errors.AsType[*tlspolicy.KeyError](err); ok {
		e.Reason, e.Next = err.Error(), "look at the conditions of the TPM and of the key"
		return Unreachable, e
	}
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "remote error" {
		e.Reason, e.Next = "it turned the gateway away: "+op.Err.Error(), "have this gateway's certificate entered at the platform, and see its log for what it has against it"
		return Declined, e
	}
	switch {
	case isTimeout(err):
		e.Reason = fmt.Sprintf("it did not finish the TLS handshake within %v", g.s.o.GateTimeout)
		return Unreachable, e
	case errors.Is(err, context.Canceled):
		e.Reason = "the gateway is shutting down"
		return Unreachable, e
	case isLost(err):
		e.Reason = "it closed the connection during the TLS handshake without a word"
		return Unreachable, e
	}
	return Refused, ownRefusal(err)
}

func isLost(err error) bool {
	for _, lost := range []error{io.EOF, io.ErrUnexpectedEOF, net.ErrClosed, syscall.ECONNRESET, syscall.EPIPE} {
		if errors.Is(err, lost) {
			return true
		}
	}
	return false
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

// Whoever is refused, or told good-bye, gets this much time and room to hear it.
const (
	lingerTime  = time.Second
	lingerBytes = 64 << 10
)

// goodbye ends a handshake that was made only to look: in good order, so that
// it is no failure in the platform's log.
func goodbye(conn *tls.Conn, raw net.Conn) {
	_ = raw.SetWriteDeadline(time.Now().Add(lingerTime))
	_ = conn.CloseWrite() // close_notify; where it fails there is nobody to tell
	linger(raw)
}

// linger closes a connection so that the peer gets what was written last: where
// unread data is left, the kernel answers with a reset, and an alert on its way is lost.
func linger(raw net.Conn) {
	defer raw.Close()
	half, ok := raw.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil || raw.SetReadDeadline(time.Now().Add(lingerTime)) != nil {
		return
	}
	// Whatever ends it, the connection is closed next.
	_, _ = io.CopyN(io.Discard, raw, lingerBytes)
}

// dial opens a connection that can be relayed.
func (s *Server) dial(ctx context.Context, target string) (*net.TCPConn, error) {
	raw, err := s.o.Dial(ctx, "tcp", target)
	if err != nil {
		return nil, err
	}
	conn, ok := raw.(*net.TCPConn)
	if !ok {
		raw.Close()
		return nil, fmt.Errorf("the dialer gave a %T, which cannot be relayed", raw)
	}
	return conn, nil
}

// addrPort is an address of package net as it is compared.
func addrPort(a net.Addr) netip.AddrPort {
	t, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	at := t.AddrPort()
	return netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
}
