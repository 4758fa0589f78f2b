package tlspolicy

import (
	"context"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bedside-gateway/gatewayd/revocation"
	"github.com/bedside-gateway/gatewayd/tlsoverlay"
)

// A ward is an ECC and an RSA platform of one hospital, and what it thinks of devices.
type ward struct {
	*hospital
	server  Server
	staples [2][][]byte
	ecc     *chain
}

func newWard(t *testing.T) *ward {
	w := &ward{hospital: newHospital(t)}
	w.ecc = w.chain()
	second := newHospital(t)
	second.key = rsaKey(t, 2048)
	for i, h := range []*hospital{w.hospital, second} {
		c := h.chain()
		id := tls.Certificate{PrivateKey: h.key, Certificate: [][]byte{c.leaf.Raw, c.issuing.Raw}}
		w.staples[i] = h.staples(c)
		w.server.Identities = append(w.server.Identities, id)
	}
	w.server.Roots, w.server.Now = pool(w.ecc.root), func() time.Time { return now }
	w.server.Authorised = func(cn string) bool { return cn == "0123456789ABCDEF" }
	w.server.Judge = func(_ context.Context, chain []*x509.Certificate, _ [][]byte) []revocation.Verdict {
		return verdicts(chain, revocation.Good)
	}
	w.server.Staples = func(i int) [][]byte { return w.staples[i] }
	return w
}

func verdicts(chain []*x509.Certificate, kind revocation.Kind) []revocation.Verdict {
	all := make([]revocation.Verdict, len(chain)-1)
	for i := range all {
		all[i] = revocation.Verdict{Kind: kind, Position: i, Subject: chain[i], Reason: kind.String(), Next: "mend it"}
	}
	return all
}

// shake is a handshake with a client over a pipe, and what both ends made of it.
func (w *ward) shake(client *tls.Config) (state tls.ConnectionState, clientSaw, serverSaw error) {
	w.t.Helper()
	config, err := w.server.Config()
	if err != nil {
		w.t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	defer l.Close()
	saw := make(chan error, 1)
	go func() {
		raw, err := l.Accept()
		if err != nil {
			saw <- err
			return
		}
		defer raw.Close()
		conn := tls.Server(raw, config)
		raw.SetDeadline(time.Now().Add(10 * time.Second))
		err = conn.Handshake()
		saw <- err
		if err == nil {
			io.WriteString(conn, "!")
		}
		io.Copy(io.Discard, raw)
	}()
	raw, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		w.t.Fatal(err)
	}
	defer raw.Close()
	raw.SetDeadline(time.Now().Add(10 * time.Second))
	conn := tls.Client(raw, client)
	if clientSaw = conn.Handshake(); clientSaw == nil {
		_, clientSaw = io.ReadFull(conn, make([]byte, 1)) // in TLS 1.3 it is judged after that
	}
	state = conn.ConnectionState()
	raw.Close()
	return state, clientSaw, <-saw
}

// gateway is our own client.
func (w *ward) gateway() *tls.Config { w.t.Helper(); return w.client(w.ecc) }

func TestA3_A5_TheSuiteIsTheFirstOfOursAndPicksTheCertificate(t *testing.T) {
	complete(t)
	w := newWard(t)
	all := CMIIST().Suites
	for i, want := range all {
		t.Run(tls.CipherSuiteName(want), func(t *testing.T) {
			client := w.gateway()
			client.MaxVersion = tls.VersionTLS12
			offer := slices.Clone(all[i:])
			slices.Reverse(offer)
			if err := tlsoverlay.SetCipherSuites(client, offer); err != nil {
				t.Fatal(err)
			}
			state, err, _ := w.shake(client)
			if err != nil || state.CipherSuite != want {
				t.Fatalf("chose %s: %v", tls.CipherSuiteName(state.CipherSuite), err)
			}
			isRSA := state.PeerCertificates[0].PublicKeyAlgorithm == x509.RSA
			if isRSA != strings.Contains(tls.CipherSuiteName(want), "_RSA_") || len(state.PeerCertificates) != 2 {
				t.Errorf("RSA %v, %d certificates", isRSA, len(state.PeerCertificates)) // A4, A7
			}
		})
	}
}

func TestA10_TheStaplesOfNowAreSent(t *testing.T) {
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		t.Run(tls.VersionName(version), func(t *testing.T) {
			w := newWard(t)
			client := w.gateway()
			client.MaxVersion = version
			good := w.staples[0]
			w.staples[0] = nil
			if _, err, _ := w.shake(client); err == nil || !strings.Contains(err.Error(), "B18") {
				t.Errorf("without staples: %v", err)
			}
			w.staples[0] = good // the same Server would now send them
			if _, err, _ := w.shake(client); err != nil {
				t.Errorf("with staples: %v", err)
			}
			w.server.LeafOnly13 = true
			_, err, _ := w.shake(client)
			if version == tls.VersionTLS12 && err != nil || version == tls.VersionTLS13 && (err == nil || !strings.Contains(err.Error(), "certificate 2 of 2 sent")) {
				t.Errorf("with the leaf's alone in TLS 1.3: %v", err)
			}
		})
	}
}

// Each way a device is refused says so at both ends.
func TestA8_A9_DevicesAreRefusedWithTheReason(t *testing.T) {
	for _, c := range []struct {
		name, rule, reason, alert string
		change                    func(w *ward, client *tls.Config)
	}{
		{name: "good"},
		{name: "not authorised", rule: "A8", reason: `"0123456789ABCDEF" is not authorised`, alert: "access denied",
			change: func(w *ward, _ *tls.Config) { w.server.Authorised = func(string) bool { return false } }},
		{name: "revoked", rule: "A9", reason: "revoked", alert: "revoked certificate",
			change: func(w *ward, _ *tls.Config) { w.judge(revocation.Revoked) }},
		{name: "nothing known of it", rule: "A9", reason: "missing", alert: "bad certificate status response",
			change: func(w *ward, _ *tls.Config) { w.judge(revocation.Missing) }},
		{name: "not judged", rule: "A9", reason: "not every certificate", alert: "bad certificate status response",
			change: func(w *ward, _ *tls.Config) {
				w.server.Judge = func(context.Context, []*x509.Certificate, [][]byte) []revocation.Verdict { return nil }
			}},
		{name: "the leaf's verdict alone", rule: "A9", reason: "not every certificate", alert: "bad certificate status response",
			change: func(w *ward, _ *tls.Config) {
				w.server.Judge = func(_ context.Context, chain []*x509.Certificate, _ [][]byte) []revocation.Verdict {
					return verdicts(chain, revocation.Good)[:1]
				}
			}},
		{name: "another root", rule: "A8", reason: "no installed root", alert: "unknown certificate authority",
			change: func(w *ward, _ *tls.Config) { w.server.Roots = pool(w.ecc.leaf) }},
		{name: "expired", rule: "A8", reason: "it expired on", alert: "expired certificate",
			change: func(w *ward, _ *tls.Config) { w.server.Now = func() time.Time { return now.Add(90 * time.Minute) } }},
		{name: "a platform's certificate", rule: "A8", reason: "not that of a TLS client", alert: "bad certificate",
			change: func(w *ward, client *tls.Config) { client.GetClientCertificate = showing(w.server.Identities[0]) }},
		{name: "no certificate", alert: "remote error", rule: "-", // its name differs between the versions
			change: func(_ *ward, client *tls.Config) { client.GetClientCertificate = showing(tls.Certificate{}) }},
		{name: "a clock before the build", rule: "A8", reason: "before this software was made", alert: "internal error",
			change: func(w *ward, _ *tls.Config) { w.server.Floor = now.Add(time.Hour) }},
		{name: "TLS 1.1", rule: "-", alert: "protocol version",
			change: func(_ *ward, client *tls.Config) {
				client.MinVersion, client.MaxVersion = tls.VersionTLS11, tls.VersionTLS11
			}},
	} {
		for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			t.Run(c.name+", "+tls.VersionName(version), func(t *testing.T) {
				w := newWard(t)
				client := w.gateway()
				client.MaxVersion = version
				if c.change != nil {
					c.change(w, client)
				}
				if client.MinVersion < tls.VersionTLS12 {
					complete(t) // the mode offers no such version
				}
				_, clientSaw, serverSaw := w.shake(client)
				if c.rule == "" {
					if clientSaw != nil || serverSaw != nil {
						t.Errorf("%v, %v", clientSaw, serverSaw)
					}
					return
				}
				if clientSaw == nil || !strings.Contains(clientSaw.Error(), c.alert) {
					t.Errorf("the device saw %v", clientSaw)
				}
				var r *RefusalError
				if serverSaw == nil || c.rule != "-" && (!errors.As(serverSaw, &r) || r.Rule != c.rule || !strings.Contains(r.Reason, c.reason) || r.Next == "") {
					t.Errorf("we say %v", serverSaw)
				}
			})
		}
	}
}

func (w *ward) judge(kind revocation.Kind) {
	w.server.Judge = func(_ context.Context, chain []*x509.Certificate, _ [][]byte) []revocation.Verdict {
		return verdicts(chain, kind)
	}
}

func showing(id tls.Certificate) func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
	return func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &id, nil }
}

// A device may staple for itself; the judge gets that by position, and a
// context that ends with the handshake.
func TestA9_TheJudgeGetsWhatTheDeviceStapled(t *testing.T) {
	w := newWard(t)
	id := device(t)
	if err := tlsoverlay.SetStaples(&id, [][]byte{{1}, {2}}); err != nil {
		t.Fatal(err)
	}
	client := w.gateway()
	client.GetClientCertificate = showing(id)
	var during context.Context
	w.server.Judge = func(ctx context.Context, chain []*x509.Certificate, stapled [][]byte) []revocation.Verdict {
		during = ctx
		if ctx.Err() != nil || len(chain) != 3 || len(stapled) != 2 || string(stapled[0]) != "\x01" || string(stapled[1]) != "\x02" {
			t.Errorf("chain of %d, stapled %v, %v", len(chain), stapled, ctx.Err())
		}
		return verdicts(chain, revocation.Good)
	}
	if _, err, _ := w.shake(client); err != nil {
		t.Fatal(err)
	}
	select {
	case <-during.Done():
	case <-time.After(5 * time.Second):
		t.Error("the context goes on after the handshake")
	}
}

func TestNothingIsResumed(t *testing.T) {
	w := newWard(t)
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		client := w.gateway()
		client.MaxVersion, client.SessionTicketsDisabled, client.ClientSessionCache = version, false, tls.NewLRUClientSessionCache(1)
		for range 2 {
			if state, err, _ := w.shake(client); err != nil || state.DidResume {
				t.Errorf("%s: resumed %v, %v", tls.VersionName(version), state.DidResume, err)
			}
		}
	}
}

func TestA2_A5_A6_SettingsThatBreakARuleAreRefused(t *testing.T) {
	for _, c := range []struct {
		rule, reason string
		change       func(*Server)
	}{
		{"A5", "no certificate and key", func(s *Server) { s.Identities = nil }},
		{"A5", "is missing", func(s *Server) { s.Identities[1].Certificate = s.Identities[1].Certificate[:1] }},
		{"A5", "not that of a TLS server", func(s *Server) { s.Identities[0] = device(t) }},
		{"A5", "another one", func(s *Server) { s.Identities[0].PrivateKey = s.Identities[1].PrivateKey }},
		{"A6", "no root certificate", func(s *Server) { s.Roots = nil }},
		{"A6", "no root certificate", func(s *Server) { s.Roots = x509.NewCertPool() }},
		{"A8", "which devices are authorised", func(s *Server) { s.Authorised = nil }},
		{"A9", "nothing judges", func(s *Server) { s.Judge = nil }},
		{"A2", "TLS 1.1", func(s *Server) { s.MinVersion = tls.VersionTLS11 }},
		{"A2", "to TLS 1.2", func(s *Server) { s.MinVersion, s.MaxVersion = tls.VersionTLS13, tls.VersionTLS12 }},
	} {
		w := newWard(t)
		c.change(&w.server)
		config, err := w.server.Config()
		var r *RefusalError
		if config != nil || !errors.As(err, &r) || r.Rule != c.rule || !strings.Contains(r.Reason, c.reason) || r.Next == "" {
			t.Errorf("%s: %v, %v", c.reason, config != nil, err)
		}
	}
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} { // A2: what is configured is what there is
		w := newWard(t)
		w.server.MinVersion, w.server.MaxVersion = version, version
		if state, err, _ := w.shake(w.gateway()); err != nil || state.Version != version {
			t.Errorf("%s: %s, %v", tls.VersionName(version), tls.VersionName(state.Version), err)
		}
	}
}

// Finding a key of this length takes seconds, so this one lies in a file.
func TestA6_KeysOfDevicesAndTheirCAsMayHave4096Bits(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("testdata", "rsa4096.pem"))
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(text)
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	key := parsed.(*rsa.PrivateKey)
	w := newWard(t)
	root := w.sign(authority("RSA root"), authority("RSA root"), key, key)
	issuing := w.sign(authority("RSA issuing"), root, key, key)
	leaf := w.sign(&x509.Certificate{Subject: pkix.Name{CommonName: "0123456789ABCDEF"}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, issuing, key, key)
	w.server.Roots = pool(w.ecc.root, root) // ECC and RSA
	client := w.gateway()
	if _, err, _ := w.shake(client); err != nil {
		t.Errorf("the ECC device: %v", err)
	}
	client.GetClientCertificate = showing(tls.Certificate{PrivateKey: key, Certificate: [][]byte{leaf.Raw, issuing.Raw}})
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		client.MaxVersion = version
		if _, err, why := w.shake(client); err != nil {
			t.Errorf("%s: %v, %v", tls.VersionName(version), err, why)
		}
	}
}
