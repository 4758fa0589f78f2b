// Package refusal shows every way in which a platform falls short, and that the
// gateway refuses it for that very reason before it has sent a byte of any
// message; and beside each the nearest platform without the fault, which gets
// its message. The gateway's side is the whole client: package northbound with
// the policy of package tlspolicy.
package refusal

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/crypto/ocsp"

	"github.com/bedside-gateway/gatewayd/internal/sim/pki"
	"github.com/bedside-gateway/gatewayd/internal/sim/responder"
	"github.com/bedside-gateway/gatewayd/mllp"
	"github.com/bedside-gateway/gatewayd/northbound"
	"github.com/bedside-gateway/gatewayd/pcd"
	"github.com/bedside-gateway/gatewayd/tlsoverlay"
	"github.com/bedside-gateway/gatewayd/tlsoverlay/overlaytest"
	"github.com/bedside-gateway/gatewayd/tlspolicy"
)

var (
	// today is the present, for the responses of package ocsp are made by the
	// system's clock.
	today    = time.Now().UTC().Truncate(time.Second)
	hospital *pki.PKI
	// elsewhere is another hospital with the same names.
	elsewhere *pki.PKI
)

func TestMain(m *testing.M) {
	overlaytest.Require()
	for _, p := range []**pki.PKI{&hospital, &elsewhere} {
		made, err := pki.New(pki.Options{Now: today})
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		*p = made
	}
	goleak.VerifyTestMain(m)
}

// A stage is a platform and a gateway, good until a test changes them.
type stage struct {
	t *testing.T

	// The platform: certificates leaf first, the root being the last, which is
	// not sent; the key; what is told of each certificate; its TLS settings.
	chain   []*x509.Certificate
	keys    []crypto.Signer // of chain
	sent    func([]*x509.Certificate) []*x509.Certificate
	answers []responder.Answer
	staple  func([][]byte) [][]byte
	server  tls.Config
	suites  []uint16 // of TLS 1.2, those of the overlay among them
	plain   bool     // no TLS at all

	client tlspolicy.Client
}

func newStage(t *testing.T, version uint16) *stage {
	t.Helper()
	s := &stage{t: t, server: tls.Config{MinVersion: version, MaxVersion: version, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: hospital.Roots()}}
	s.show("platform")
	device, err := hospital.Identity("device")
	s.check(err)
	s.client = tlspolicy.Client{ServerName: pki.DefaultPlatform, Roots: hospital.Roots(), Identity: device,
		Now: func() time.Time { return today }, Floor: today.Add(-time.Hour)}
	return s
}

func (s *stage) check(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// show has the platform present a certificate of the PKI.
func (s *stage) show(name string) {
	s.t.Helper()
	e, err := hospital.Find(name)
	s.check(err)
	s.chain, s.keys = nil, nil
	for {
		s.chain, s.keys = append(s.chain, e.Certificate), append(s.keys, e.Key)
		if e.IssuedBy() == e {
			return
		}
		e = e.IssuedBy()
	}
}

// issue puts a new certificate under what is at a position of the chain; those
// before it are gone. It is a platform's unless change makes something else of it.
func (s *stage) issue(under int, key crypto.Signer, change func(*x509.Certificate)) {
	s.t.Helper()
	template := &x509.Certificate{SerialNumber: serial(s.t), NotBefore: today.Add(-time.Hour), NotAfter: today.Add(48 * time.Hour),
		Subject: pkix.Name{CommonName: pki.DefaultPlatform}, DNSNames: []string{pki.DefaultPlatform}, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	if change != nil {
		change(template)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, s.chain[under], key.Public(), s.keys[under])
	s.check(err)
	cert, err := x509.ParseCertificate(der)
	s.check(err)
	s.chain = append([]*x509.Certificate{cert}, s.chain[under:]...)
	s.keys = append([]crypto.Signer{key}, s.keys[under:]...)
}

// alone has the platform present a certificate that nobody else signed.
func (s *stage) alone() {
	s.t.Helper()
	key := newKey(s.t)
	template := &x509.Certificate{SerialNumber: serial(s.t), NotBefore: today.Add(-time.Hour), NotAfter: today.Add(time.Hour),
		Subject: pkix.Name{CommonName: pki.DefaultPlatform}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	s.check(err)
	cert, err := x509.ParseCertificate(der)
	s.check(err)
	s.chain, s.keys = []*x509.Certificate{cert, cert}, []crypto.Signer{key, key}
}

// leaf issues a platform's certificate with a change.
func (s *stage) leaf(change func(*x509.Certificate)) { s.t.Helper(); s.issue(1, newKey(s.t), change) }

// under issues a CA with a change in place of the issuing one, and a platform's certificate under it.
func (s *stage) under(key crypto.Signer, change func(*x509.Certificate)) {
	s.t.Helper()
	s.issue(len(s.chain)-1, key, func(c *x509.Certificate) {
		asCA(c)
		if change != nil {
			change(c)
		}
	})
	s.issue(0, newKey(s.t), nil)
}

func asCA(c *x509.Certificate) {
	c.Subject, c.DNSNames, c.ExtKeyUsage = pkix.Name{CommonName: "Second CA"}, nil, nil
	c.IsCA, c.KeyUsage = true, x509.KeyUsageCertSign|x509.KeyUsageCRLSign
}

func serial(t *testing.T) *big.Int {
	t.Helper()
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		t.Fatal(err)
	}
	return n.Add(n, big.NewInt(1))
}

func newKey(t *testing.T) crypto.Signer {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

var rsaKeys sync.Map // by length: they are slow to find

func rsaKey(t *testing.T, bits int) crypto.Signer {
	t.Helper()
	if k, ok := rsaKeys.Load(bits); ok {
		return k.(crypto.Signer)
	}
	k, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	rsaKeys.Store(bits, k)
	return k
}

// staples asks the responder of the hospital about each certificate. What a CA
// of this test has issued is answered for by that CA.
func (s *stage) staples() [][]byte {
	s.t.Helper()
	all := make([][]byte, len(s.chain)-1)
	for i := range all {
		answer := responder.Auto
		if i < len(s.answers) {
			answer = s.answers[i]
		}
		if answer != responder.None {
			all[i] = s.ask(hospital, i, answer)
		}
	}
	if s.staple != nil {
		all = s.staple(all)
	}
	return all
}

func (s *stage) ask(p *pki.PKI, i int, answer responder.Answer) []byte {
	s.t.Helper()
	cert, issuer := s.chain[i], s.chain[i+1]
	if !known(p, issuer) {
		der, err := ocsp.CreateResponse(issuer, issuer, ocsp.Response{Status: ocsp.Good, SerialNumber: cert.SerialNumber, ThisUpdate: today, NextUpdate: today.Add(time.Hour)}, s.keys[i+1])
		s.check(err)
		return der
	}
	if answer == responder.Truncated { // the server would break the connection off
		whole := s.ask(p, i, responder.Auto)
		return whole[:len(whole)/2]
	}
	if answer == responder.Auto && !known(p, cert) {
		answer = responder.Good
	}
	server, err := responder.New(responder.Options{PKI: p, Answers: string(answer), Now: func() time.Time { return today }})
	s.check(err)
	request, err := ocsp.CreateRequest(cert, issuer, nil)
	s.check(err)
	w := httptest.NewRecorder()
	question := httptest.NewRequest("POST", "/", bytes.NewReader(request))
	question.Header.Set("Content-Type", "application/ocsp-request")
	server.ServeHTTP(w, question)
	return w.Body.Bytes()
}

func known(p *pki.PKI, c *x509.Certificate) bool {
	for _, e := range p.Entries {
		if e.Certificate.Equal(c) {
			return true
		}
	}
	return false
}

// What became of a message.
type outcome struct {
	err      error // at the gateway
	ack      string
	alert    error // at the platform: why the handshake failed
	received int   // bytes of application data at the platform
}

// run has the gateway send a message to the platform.
func (s *stage) run() outcome {
	s.t.Helper()
	config := s.platform()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	s.check(err)
	far := make(chan outcome, 8)
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			raw, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() { far <- s.serve(raw, config) })
		}
	})
	out := s.send(l.Addr().String())
	l.Close()
	serving.Wait()
	close(far)
	for o := range far {
		out.received += o.received
		if out.alert == nil {
			out.alert = o.alert
		}
	}
	return out
}

func (s *stage) platform() *tls.Config {
	s.t.Helper()
	id := tls.Certificate{PrivateKey: s.keys[0]}
	sent, staples := s.chain[:len(s.chain)-1], s.staples()
	if s.sent != nil {
		sent = s.sent(sent)
	}
	for _, c := range sent {
		id.Certificate = append(id.Certificate, c.Raw)
	}
	s.check(tlsoverlay.SetStaples(&id, staples[:min(len(staples), len(sent))]))
	config := s.server.Clone()
	config.Certificates, config.Time, config.SessionTicketsDisabled = []tls.Certificate{id}, func() time.Time { return today }, true
	if s.suites != nil {
		s.check(tlsoverlay.SetCipherSuites(config, s.suites))
	}
	return config
}

func (s *stage) serve(raw net.Conn, config *tls.Config) (o outcome) {
	defer raw.Close()
	_ = raw.SetDeadline(time.Now().Add(10 * time.Second)) // it is open
	if s.plain {
		o.received = -1
		fmt.Fprint(raw, "220 mail ready\r\n")
		_, _ = io.Copy(io.Discard, raw) // a ClientHello, which is no message
		o.received = 0
		return o
	}
	conn := tls.Server(raw, config)
	if o.alert = conn.Handshake(); o.alert != nil {
		_, _ = io.Copy(io.Discard, raw) // lets the alert be read
		return o
	}
	b, err := mllp.NewConn(conn, 1<<20).ReadBlock(time.Now().Add(10 * time.Second))
	o.received = len(b)
	if err != nil {
		return o
	}
	ack, err := pcd.AppendAck(nil, b, "CA", pcd.AckOptions{ControlID: "A1", Now: today})
	if err == nil {
		ack, err = mllp.AppendBlock(nil, ack)
	}
	if err == nil {
		_, err = conn.Write(ack)
	}
	o.alert = err
	_, _ = io.Copy(io.Discard, conn)
	return o
}

const message = "MSH|^~\\&|GW^0123456789ABCDEF^EUI-64|WARD|||20260102030405+0000||ORU^R01^ORU_R01|M1|P|2.6|||AL|NE||UNICODE UTF-8\r"

func (s *stage) send(address string) (o outcome) {
	config, err := s.client.Config()
	if err != nil {
		return outcome{err: err}
	}
	d := northbound.Destination{Name: "platform", Address: s.client.ServerName, Connect: address, TLS: config}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	o.err = northbound.Send(ctx, d, [][]byte{[]byte(message)}, func(_ int, r northbound.Result) {
		o.ack = r.Ack.Code
		if r.Err != nil {
			s.t.Logf("the message: %v", r.Err)
		}
	})
	return o
}

// refusal is the rule and the text of an error: that of our policy, or of the
// platform's alert.
func refusal(err error) (rule, text string) {
	if r, ok := errors.AsType[*tlspolicy.RefusalError](err); ok && r.Next != "" {
		return r.Rule, r.Certificate + ": " + r.Reason
	}
	if r, ok := errors.AsType[*northbound.RefusedError](err); ok && r.Next != "" {
		return "alert", r.Reason
	}
	return fmt.Sprintf("%T", err), fmt.Sprint(err)
}

func contains(text string, words ...string) bool {
	for _, w := range words {
		if !strings.Contains(text, w) {
			return false
		}
	}
	return true
}
