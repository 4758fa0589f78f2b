package inspect

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"errors"
	"io"
	"math/big"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/bedside-gateway/gatewayd/tlsoverlay"
	"github.com/bedside-gateway/gatewayd/tlsoverlay/overlaytest"
)

const host = "platform.test"

// An entry is a certificate with its key.
type entry struct {
	cert *x509.Certificate
	key  crypto.Signer
}

func (e *entry) tls(above ...*entry) tls.Certificate {
	c := tls.Certificate{Certificate: [][]byte{e.cert.Raw}, PrivateKey: e.key}
	for _, a := range above {
		c.Certificate = append(c.Certificate, a.cert.Raw)
	}
	return c
}

func (e *entry) pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(e.cert)
	return p
}

// A ward has the certificates of all tests: a platform with three kinds of key,
// another of the same CA, and a device.
type ward struct {
	root, ecc, rsa, ed, other, device *entry
}

var theWard = sync.OnceValue(func() *ward {
	w := &ward{root: issue(nil, newECC(), "Root", x509.ExtKeyUsageAny)}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	_, edKey, err2 := ed25519.GenerateKey(rand.Reader)
	if err := errors.Join(err, err2); err != nil {
		panic(err)
	}
	w.ecc = issue(w.root, newECC(), host, x509.ExtKeyUsageServerAuth)
	w.rsa = issue(w.root, rsaKey, host, x509.ExtKeyUsageServerAuth)
	w.ed = issue(w.root, edKey, host, x509.ExtKeyUsageServerAuth)
	w.other = issue(w.root, newECC(), host, x509.ExtKeyUsageServerAuth)
	w.device = issue(w.root, newECC(), "device", x509.ExtKeyUsageClientAuth)
	return w
})

func newECC() crypto.Signer {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	return k
}

func issue(by *entry, key crypto.Signer, name string, usage x509.ExtKeyUsage) *entry {
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{usage},
	}
	parent, signer := template, key
	if by == nil {
		template.IsCA, template.BasicConstraintsValid, template.KeyUsage = true, true, x509.KeyUsageCertSign|x509.KeyUsageDigitalSignature
	} else {
		parent, signer = by.cert, by.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		panic(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		panic(err)
	}
	return &entry{cert, key}
}

// rules let the platform of the ward pass.
func (w *ward) rules() Rules {
	return Rules{Allow13: true, ServerNames: []string{"Platform.Test."}, Leaves: [][]byte{w.ecc.cert.Raw, w.rsa.cert.Raw, w.ed.cert.Raw}}
}

// ends are a device and a platform with mutual TLS.
func (w *ward) ends(leaf *entry) (device, platform *tls.Config) {
	device = &tls.Config{RootCAs: w.root.pool(), ServerName: host, Certificates: []tls.Certificate{w.device.tls()}, MaxVersion: tls.VersionTLS12}
	platform = &tls.Config{Certificates: []tls.Certificate{leaf.tls()}, ClientCAs: w.root.pool(), ClientAuth: tls.RequireAndVerifyClientCert}
	return device, platform
}

// withSuite is a pair that speaks one suite of TLS 1.2.
func (w *ward) withSuite(t testing.TB, suite uint16, leaf *entry) (device, platform *tls.Config) {
	device, platform = w.ends(leaf)
	if suite == tlsoverlay.DHE_RSA_AES_256_GCM_SHA384 || suite == tlsoverlay.DHE_RSA_AES_128_CBC_SHA256 {
		overlaytest.Need(t)
		for _, c := range []*tls.Config{device, platform} {
			if err := tlsoverlay.SetCipherSuites(c, []uint16{suite}); err != nil {
				t.Fatal(err)
			}
		}
		return device, platform
	}
	device.CipherSuites, platform.CipherSuites = []uint16{suite}, []uint16{suite}
	return device, platform
}

// ---- a relay between two ends

// A shape is how bytes come in.
type shape struct {
	name    string
	segment int  // bytes of each read, 0 is as they come
	records bool // each byte of a handshake in a record of its own
}

var shapes = []shape{{"as they come", 0, false}, {"byte by byte", 1, false}, {"in records of one byte", 0, true}, {"in records of one byte, byte by byte", 1, true}}

// A result is how a session went, for those at each end and between them.
type result struct {
	device, platform             error
	deviceState, platformState   tls.ConnectionState
	verdict                      Verdict
	hello                        *Hello
	done                         bool
	inspected                    error
	beforeDone, toPlatformBefore int // bytes that passed to the device and to the platform before Done
}

// relay carries a session of two real ends through an Inspector: a handshake,
// then a word there and back.
func relay(t testing.TB, rules Rules, device, platform *tls.Config, s shape) *result {
	t.Helper()
	deviceSide, gatewayNorth := net.Pipe()
	gatewaySouth, platformSide := net.Pipe()
	deadline := time.Now().Add(20 * time.Second)
	for _, c := range []net.Conn{deviceSide, gatewayNorth, gatewaySouth, platformSide} {
		_ = c.SetDeadline(deadline)
	}
	r, i := &result{}, New(rules)
	var mu sync.Mutex
	var pumps, ends sync.WaitGroup
	pump := func(from, to net.Conn, take func([]byte) ([]byte, error), count *int) {
		defer from.Close()
		defer to.Close()
		in := &reshaper{shape: s, from: from}
		for {
			p, err := in.read()
			if err != nil {
				return
			}
			mu.Lock()
			was := i.Done()
			pass, err := take(p)
			if !was && !i.Done() {
				*count += len(pass)
			}
			pass = slices.Clone(pass)
			if err != nil && r.inspected == nil {
				r.inspected = err
			}
			mu.Unlock()
			if len(pass) > 0 {
				if _, failed := to.Write(pass); failed != nil {
					return
				}
			}
			if err != nil {
				if cut, ok := errors.AsType[*CutError](err); ok {
					_, _ = gatewayNorth.Write(cut.Record())
				}
				return
			}
		}
	}
	pumps.Go(func() { pump(gatewayNorth, gatewaySouth, i.Device, &r.toPlatformBefore) })
	pumps.Go(func() { pump(gatewaySouth, gatewayNorth, i.Platform, &r.beforeDone) })
	ends.Go(func() { r.deviceState, r.device = talk(tls.Client(deviceSide, device), true) })
	ends.Go(func() { r.platformState, r.platform = talk(tls.Server(platformSide, platform), false) })
	ends.Wait()
	pumps.Wait()
	r.verdict, r.done, r.hello = i.Verdict(), i.Done(), i.Hello()
	return r
}

// talk shakes hands and exchanges a word.
func talk(c *tls.Conn, first bool) (tls.ConnectionState, error) {
	defer c.NetConn().Close()
	if err := c.Handshake(); err != nil {
		return c.ConnectionState(), err
	}
	word := make([]byte, 4)
	if first {
		if _, err := c.Write([]byte("ping")); err != nil {
			return c.ConnectionState(), err
		}
	}
	if _, err := io.ReadFull(c, word); err != nil {
		return c.ConnectionState(), err
	}
	if !first {
		if _, err := c.Write([]byte("pong")); err != nil {
			return c.ConnectionState(), err
		}
		// The device hangs up.
		_, _ = io.Copy(io.Discard, c.NetConn())
	}
	return c.ConnectionState(), nil
}

// A reshaper reads in another shape than what was written.
type reshaper struct {
	shape
	from      net.Conn
	ready     []byte
	encrypted bool
}

func (r *reshaper) read() ([]byte, error) {
	if len(r.ready) == 0 {
		if err := r.fill(); err != nil {
			return nil, err
		}
	}
	n := len(r.ready)
	if r.segment > 0 {
		n = min(n, r.segment)
	}
	p := r.ready[:n]
	r.ready = r.ready[n:]
	return p, nil
}

func (r *reshaper) fill() error {
	if !r.records {
		b := make([]byte, 1<<16)
		n, err := r.from.Read(b)
		r.ready = b[:n]
		return err
	}
	head := make([]byte, recordHead)
	if _, err := io.ReadFull(r.from, head); err != nil {
		return err
	}
	body := make([]byte, binary.BigEndian.Uint16(head[3:]))
	if _, err := io.ReadFull(r.from, body); err != nil {
		return err
	}
	r.encrypted = r.encrypted || head[0] == typeChangeCipherSpec
	if head[0] == typeHandshake && !r.encrypted {
		r.ready = records(body, 1)
	} else {
		r.ready = append(head, body...)
	}
	return nil
}

// records puts a handshake into records of so many bytes.
func records(handshake []byte, size int) []byte {
	var out []byte
	for part := range slices.Chunk(handshake, size) {
		out = append(out, typeHandshake, 3, 3)
		out = binary.BigEndian.AppendUint16(out, uint16(len(part)))
		out = append(out, part...)
	}
	return out
}
