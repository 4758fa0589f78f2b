package bench

import (
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"os"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"golang.org/x/sync/errgroup"

	"github.com/bedside-gateway/gatewayd/internal/sim/pki"
	"github.com/bedside-gateway/gatewayd/internal/sim/swtpm"
	"github.com/bedside-gateway/gatewayd/keystore/tpm"
	"github.com/bedside-gateway/gatewayd/tlsoverlay"
	"github.com/bedside-gateway/gatewayd/tlsoverlay/overlaytest"
	"github.com/bedside-gateway/gatewayd/tlspolicy"
)

// deviceKey is a key on P-256 in an emulated TPM.
func deviceKey(b *testing.B, o tpm.Options) *tpm.Key {
	b.Helper()
	dir, err := os.MkdirTemp("", "tpm") // a socket's path is short
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { os.RemoveAll(dir) })
	e, err := swtpm.Start(b.Context(), dir)
	if errors.Is(err, swtpm.ErrMissing) {
		b.Skip(err)
	}
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(e.Stop)
	t := tpm.Open(e.Address(), o)
	b.Cleanup(func() { t.Close() })
	text, err := t.Create(b.Context(), tpm.P256, nil)
	if err != nil {
		b.Fatal(err)
	}
	key, err := t.Load(b.Context(), text)
	if err != nil {
		b.Fatal(err)
	}
	return key
}

// BenchmarkTPMSignature is signatures on P-256 through keystore/tpm beside
// package tpm2 by itself, with a salted session that encrypts as ours does, and
// with a password: the same emulator over the same connection, in turns. x-session
// is the time of ours to that with a session, x-password to that without.
func BenchmarkTPMSignature(b *testing.B) {
	var conn tpm.Conn
	key := deviceKey(b, tpm.Options{Dial: func(ctx context.Context, address string) (_ tpm.Conn, err error) {
		conn, err = tpm.Dial(ctx, address)
		return conn, err
	}})
	bare := newBare(b, conn)
	digest := sha256.Sum256([]byte("a handshake"))
	users := []struct {
		name  string
		sign  func() error
		spent time.Duration
	}{
		{name: "ours", sign: func() error { _, err := key.Sign(nil, digest[:], crypto.SHA256); return err }},
		{name: "session", sign: func() error { return bare.sign(bare.session, digest[:]) }},
		{name: "password", sign: func() error { return bare.sign(tpm2.PasswordAuth(nil), digest[:]) }},
	}
	n := 0
	for b.Loop() {
		for i := range users {
			if err := conn.SetDeadline(time.Time{}); err != nil { // ours leaves its own behind
				b.Fatal(err)
			}
			began := time.Now()
			for range batch {
				if err := users[i].sign(); err != nil {
					b.Fatalf("%s: %v", users[i].name, err)
				}
			}
			users[i].spent += time.Since(began)
		}
		n += batch
	}
	b.ReportMetric(0, "ns/op")
	for i, u := range users {
		b.ReportMetric(float64(n)/u.spent.Seconds(), "/s-"+u.name)
		if i > 0 {
			b.ReportMetric(float64(users[0].spent)/float64(u.spent), "x-"+u.name)
		}
	}
}

// bare is package tpm2 with the same key and a session of its own.
type bare struct {
	tpm     transport.TPM
	session tpm2.Session
	key     tpm2.NamedHandle
}

func newBare(b *testing.B, conn tpm.Conn) *bare {
	b.Helper()
	t := transport.FromReadWriter(conn)
	if err := conn.SetDeadline(time.Time{}); err != nil {
		b.Fatal(err)
	}
	capability, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: uint32(tpm2.TPMHTTransient) << 24, PropertyCount: 1}.Execute(t)
	if err != nil {
		b.Fatal(err)
	}
	loaded, err := capability.CapabilityData.Data.Handles()
	if err != nil || len(loaded.Handle) != 1 {
		b.Fatalf("%v, %v are loaded", err, loaded)
	}
	key, err := tpm2.ReadPublic{ObjectHandle: loaded.Handle[0]}.Execute(t)
	if err != nil {
		b.Fatal(err)
	}
	parent, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(tpm2.ECCSRKTemplate)}.Execute(t)
	if err != nil {
		b.Fatal(err)
	}
	public, err := parent.OutPublic.Contents()
	if err != nil {
		b.Fatal(err)
	}
	x := &bare{tpm: t, key: tpm2.NamedHandle{Handle: loaded.Handle[0], Name: key.Name}}
	x.session, _, err = tpm2.HMACSession(t, tpm2.TPMAlgSHA256, 16, tpm2.Salted(parent.ObjectHandle, *public), tpm2.AESEncryption(128, tpm2.EncryptIn))
	if err != nil {
		b.Fatal(err)
	}
	if _, err := (tpm2.FlushContext{FlushHandle: parent.ObjectHandle}).Execute(t); err != nil {
		b.Fatal(err)
	}
	return x
}

func (x *bare) sign(s tpm2.Session, digest []byte) error {
	_, err := tpm2.Sign{KeyHandle: tpm2.AuthHandle{Handle: x.key.Handle, Name: x.key.Name, Auth: s}, Digest: tpm2.TPM2BDigest{Buffer: digest},
		InScheme:   tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgECDSA, Details: tpm2.NewTPMUSigScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSchemeHash{HashAlg: tpm2.TPMAlgSHA256})},
		Validation: tpm2.TPMTTKHashCheck{Tag: tpm2.TPMSTHashCheck, Hierarchy: tpm2.TPMRHNull}}.Execute(x.tpm)
	return err
}

// A pair is the gateway towards a platform twice: its key in the TPM, and its
// key in a file.
type pair struct {
	address   string
	tpm, file *tls.Config
}

func newPair(b *testing.B, key *tpm.Key, version uint16) pair {
	b.Helper()
	p, _ := hospital(b)
	platform, err := p.Identity("platform")
	if err != nil {
		b.Fatal(err)
	}
	if err := tlsoverlay.SetStaples(&platform, staples(b, p, "platform")); err != nil {
		b.Fatal(err)
	}
	file, err := p.Identity("device")
	if err != nil {
		b.Fatal(err)
	}
	chain, err := p.IssueDevice("ecc-issuing", key.Public(), pki.DefaultDevice, time.Now(), 24*time.Hour)
	if err != nil {
		b.Fatal(err)
	}
	inTPM := tls.Certificate{PrivateKey: key, SupportedSignatureAlgorithms: key.Algorithms()}
	for _, c := range chain {
		inTPM.Certificate = append(inTPM.Certificate, c.Raw)
	}
	curves := []tls.CurveID{tls.CurveP256}
	config := func(id tls.Certificate) *tls.Config {
		c, err := tlspolicy.Client{ServerName: pki.DefaultPlatform, Roots: p.Roots(), Identity: id}.Config()
		if err != nil {
			b.Fatal(err)
		}
		c.CurvePreferences = curves
		return c
	}
	server := &tls.Config{Certificates: []tls.Certificate{platform}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: p.Roots(),
		MinVersion: version, MaxVersion: version, SessionTicketsDisabled: true, CurvePreferences: curves}
	return pair{listen(b, server), config(inTPM), config(file)}
}

// BenchmarkTPMHandshake is the gateway's full handshake with a platform, the key
// in the TPM, beside the same with the key in a file, in turns. %-tpm is the
// share of the TPM's own time.
func BenchmarkTPMHandshake(b *testing.B) {
	overlaytest.Need(b)
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		b.Run(tls.VersionName(version)[4:], func(b *testing.B) {
			var inTPM atomic.Int64
			key := deviceKey(b, tpm.Options{Signed: func(took time.Duration) { inTPM.Add(int64(took)) }})
			p := newPair(b, key, version)
			var spent [2]time.Duration
			shake := func(i int, c *tls.Config) {
				began := time.Now()
				if err := connect(p.address, c); err != nil {
					b.Fatal(err)
				}
				spent[i] += time.Since(began)
			}
			shake(0, p.tpm)
			shake(1, p.file)
			spent = [2]time.Duration{}
			inTPM.Store(0)
			for b.Loop() {
				shake(0, p.tpm)
				shake(1, p.file)
			}
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(float64(spent[0].Microseconds())/float64(b.N), "µs-tpm-key")
			b.ReportMetric(float64(spent[1].Microseconds())/float64(b.N), "µs-file-key")
			b.ReportMetric(float64(spent[0])/float64(spent[1]), "x-file-key")
			b.ReportMetric(100*float64(inTPM.Load())/float64(spent[0]), "%-tpm")
		})
	}
}

// slow is a TPM that takes as long for a signature as one of hardware does.
func slow(by time.Duration) func(context.Context, string) (tpm.Conn, error) {
	return func(ctx context.Context, address string) (tpm.Conn, error) {
		c, err := tpm.Dial(ctx, address)
		return &slowConn{c, by}, err
	}
}

type slowConn struct {
	tpm.Conn
	by time.Duration
}

func (c *slowConn) Write(command []byte) (int, error) {
	if tpm2.TPMCC(binary.BigEndian.Uint32(command[6:])) == tpm2.TPMCCSign {
		time.Sleep(c.by)
	}
	return c.Conn.Write(command)
}

const storm = 100 // sessions at once

// BenchmarkTPMReconnectStorm is the time until a hundred sessions that begin at
// once all are connected, with one TPM, beside the same with the key in a file.
// 50ms is a TPM as slow as one of hardware; x-tpm is the time to what the TPM
// itself needs for a hundred signatures.
func BenchmarkTPMReconnectStorm(b *testing.B) {
	overlaytest.Need(b)
	for _, c := range []struct {
		name string
		by   time.Duration
	}{{"swtpm", 0}, {"50ms", 50 * time.Millisecond}} {
		b.Run(c.name, func(b *testing.B) {
			var inTPM atomic.Int64
			key := deviceKey(b, tpm.Options{Dial: slow(c.by), Signed: func(took time.Duration) { inTPM.Add(int64(took)) }})
			p := newPair(b, key, tls.VersionTLS12)
			inTPM.Store(0)
			var spent [2]time.Duration
			var waits []time.Duration
			for b.Loop() {
				for i, config := range []*tls.Config{p.tpm, p.file} {
					all := allConnect(b, p.address, config)
					spent[i] += all[len(all)-1]
					if i == 0 {
						waits = append(waits, all...)
					}
				}
			}
			slices.Sort(waits)
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(float64(spent[0].Microseconds())/1000/float64(b.N), "ms-all-tpm-key")
			b.ReportMetric(float64(spent[1].Microseconds())/1000/float64(b.N), "ms-all-file-key")
			b.ReportMetric(float64(waits[len(waits)/2].Microseconds())/1000, "ms-wait-p50")
			b.ReportMetric(float64(waits[len(waits)-1].Microseconds())/1000, "ms-wait-max")
			b.ReportMetric(float64(spent[0])/float64(inTPM.Load()), "x-tpm")
		})
	}
}

// allConnect gives how long each of the sessions took, in order.
func allConnect(b *testing.B, address string, c *tls.Config) []time.Duration {
	b.Helper()
	took := make([]time.Duration, storm)
	var g errgroup.Group
	began := time.Now()
	for i := range took {
		g.Go(func() error {
			err := connect(address, c)
			took[i] = time.Since(began)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		b.Fatal(err)
	}
	slices.Sort(took)
	return took
}
