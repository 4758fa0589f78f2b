package tlsinterop

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bedside-gateway/gatewayd/internal/sim/pki"
	"github.com/bedside-gateway/gatewayd/internal/sim/responder"
	"github.com/bedside-gateway/gatewayd/mllp"
	"github.com/bedside-gateway/gatewayd/northbound"
	"github.com/bedside-gateway/gatewayd/pcd"
	"github.com/bedside-gateway/gatewayd/revocation/fetch"
	"github.com/bedside-gateway/gatewayd/tlsoverlay"
	"github.com/bedside-gateway/gatewayd/tlspolicy"
)

const controlID = "INTEROP1"

// message is what is delivered over every connection.
const message = "MSH|^~\\&|GW_DEMO^0123456789ABCDEF^EUI-64|HOSPITAL_A|||20260101120000+0000||ORU^R01^ORU_R01|" + controlID +
	"|P|2.6|||AL|NE||UNICODE UTF-8|||IHE_PCD_001^IHE PCD^1.3.6.1.4.1.19376.1.6.1.1.1^ISO\rPID|||SIM-1^^^HOSPITAL_A^PI||Nobody^Nora^^^^^L\r" +
	"OBR|1|1^GW_DEMO^0123456789ABCDEF^EUI-64|1^GW_DEMO^0123456789ABCDEF^EUI-64|69965^MDC_DEV_MON_PHYSIO_MULTI_PARAM_MDS^MDC|||20260101120000+0000\r" +
	"OBX|1|NM|147842^MDC_ECG_HEART_RATE^MDC|1.1.1.1|72|264864^MDC_DIM_BEAT_PER_MIN^MDC|||||R\r"

// A ward is a hospital whose certificates name a running OCSP responder.
type ward struct {
	pki       *pki.PKI
	responder *responder.Server
	dir       string
	fetcher   *fetch.Fetcher
}

var hospital = sync.OnceValues(newWard)

func newWard() (*ward, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	w := &ward{dir: filepath.Join(scratch, "pki")}
	w.pki, err = pki.New(pki.Options{Schemes: []pki.Scheme{pki.ECC, pki.RSA}, OCSPURL: "http://" + l.Addr().String() + "/{ca}"})
	if err != nil {
		return nil, err
	}
	if err := w.pki.Write(w.dir); err != nil {
		return nil, err
	}
	if w.responder, err = responder.New(responder.Options{PKI: w.pki}); err != nil {
		return nil, err
	}
	go http.Serve(l, w.responder) // ends with the test binary
	w.fetcher = fetch.New(fetch.Options{})
	return w, errors.Join(w.writeExtras(), os.WriteFile(w.file("message.hl7"), []byte(message), 0o600))
}

// writeExtras writes what single peers want: chains that end with the root, and
// the roots with the issuing CAs.
func (w *ward) writeExtras() error {
	roots, err := os.ReadFile(w.file(pki.RootsFile))
	if err != nil {
		return err
	}
	for _, scheme := range []pki.Scheme{pki.ECC, pki.RSA} {
		read := func(name string) []byte {
			b, readErr := os.ReadFile(w.file(name))
			err = errors.Join(err, readErr)
			return b
		}
		whole := append(read(named(scheme, "platform")+".pem"), read(string(scheme)+"-root.pem")...)
		cas := append(read(string(scheme)+"-issuing.pem"), roots...)
		err = errors.Join(err, os.WriteFile(w.file(named(scheme, "platform")+"-root.pem"), whole, 0o600),
			os.WriteFile(w.file(string(scheme)+"-cas.pem"), cas, 0o600))
	}
	return err
}

func (w *ward) file(name string) string { return filepath.Join(w.dir, name) }

// named is the name of an entry of the PKI in a scheme.
func named(scheme pki.Scheme, role string) string {
	if scheme == pki.RSA {
		return "rsa-" + role
	}
	return role
}

func needWard(t *testing.T) *ward {
	t.Helper()
	if err := tlsoverlay.Check(); err != nil {
		if os.Getenv("NEED_TLS_OVERLAY") == "1" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	w, err := hospital()
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// staples writes the responses for a chain into files, by position.
func (w *ward) staples(t *testing.T, name string) []string {
	t.Helper()
	chain, err := w.pki.Chain(name)
	if err != nil {
		t.Fatal(err)
	}
	var files []string
	for i, der := range responder.Staples(w.pki, chain, nil) {
		file := filepath.Join(t.TempDir(), fmt.Sprintf("staple%d.der", i))
		if err := os.WriteFile(file, der, 0o600); err != nil {
			t.Fatal(err)
		}
		files = append(files, file)
	}
	return files
}

func must[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// ---- the gateway as a client, Interface B

// deliver sends the message as the gateway does, and gives what became of it.
func (w *ward) deliver(t *testing.T, addr, device string, version uint16) (tls.ConnectionState, pcd.Ack, error) {
	t.Helper()
	cfg := must(tlspolicy.Client{ServerName: w.pki.Options.Platform, Roots: w.pki.Roots(), Identity: must(w.pki.Identity(device))(t)}.Config())(t)
	cfg.MinVersion, cfg.MaxVersion = version, version
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	c, err := northbound.Dial(ctx, northbound.Destination{Name: "peer", Address: w.pki.Options.Platform, Connect: addr, TLS: cfg})
	if err != nil {
		return tls.ConnectionState{}, pcd.Ack{}, err
	}
	defer c.Close()
	ack, err := c.Exchange(ctx, []byte(message))
	return c.State(), ack, err
}

// wantRefusal checks that the staple of that position was refused, for a
// reason with the word.
func wantRefusal(t *testing.T, err error, position int, word string) {
	t.Helper()
	r, ok := errors.AsType[*tlspolicy.RefusalError](err)
	if !ok {
		t.Errorf("want a refusal of the platform, got %v", err)
		return
	}
	place := [...]string{"platform certificate, 1 of ", "certificate 2 of "}[position]
	if r.Rule != "B18" || !strings.HasPrefix(r.Certificate, place) || !strings.Contains(r.Reason, word) {
		t.Errorf("it was refused with %q, want rule B18, position %d and %q", err, position, word)
	}
}

// ---- the gateway as a server, Interface A

// suites are those of row A3, in its order.
var suites = []suite{
	{tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, pki.ECC, "ECDHE-ECDSA-AES256-GCM-SHA384", "+ECDHE-ECDSA:+AES-256-GCM:+AEAD", "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384"},
	{tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384, pki.RSA, "ECDHE-RSA-AES256-GCM-SHA384", "+ECDHE-RSA:+AES-256-GCM:+AEAD", "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384"},
	{tlsoverlay.DHE_RSA_AES_256_GCM_SHA384, pki.RSA, "DHE-RSA-AES256-GCM-SHA384", "+DHE-RSA:+AES-256-GCM:+AEAD", "TLS_DHE_RSA_WITH_AES_256_GCM_SHA384"},
	{tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256, pki.ECC, "ECDHE-ECDSA-AES128-SHA256", "+ECDHE-ECDSA:+AES-128-CBC:+SHA256", "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256"},
	{tlsoverlay.DHE_RSA_AES_128_CBC_SHA256, pki.RSA, "DHE-RSA-AES128-SHA256", "+DHE-RSA:+AES-128-CBC:+SHA256", "TLS_DHE_RSA_WITH_AES_128_CBC_SHA256"},
	{tls.TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA, pki.ECC, "ECDHE-ECDSA-AES256-SHA", "+ECDHE-ECDSA:+AES-256-CBC:+SHA1", "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA"},
	{tlsoverlay.DHE_RSA_AES_256_CBC_SHA256, pki.RSA, "DHE-RSA-AES256-SHA256", "+DHE-RSA:+AES-256-CBC:+SHA256", "TLS_DHE_RSA_WITH_AES_256_CBC_SHA256"},
}

// A suite has a name with each peer; wolfSSL takes those of OpenSSL.
type suite struct {
	id                    uint16
	scheme                pki.Scheme
	openssl, gnutls, jsse string
}

// A session is what our server saw of a connection.
type session struct {
	state   tls.ConnectionState
	staples [][]byte // of the client
	message string
	err     error
}

// serving is how our server differs from the usual.
type serving struct {
	leafOnly13 bool
	// answers are those of which the staples are made, by position; nil has
	// them fetched from the responder that the certificates name.
	answers []responder.Answer
}

// listen takes one connection after the other, as the gateway does on Interface
// A, acknowledges one message on each and tells what it saw.
func (w *ward) listen(t *testing.T, o serving) (port string, sessions <-chan session) {
	t.Helper()
	cfg := w.serverConfig(t, o)
	l := must(net.Listen("tcp", "127.0.0.1:0"))(t)
	out := make(chan session, 16)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			out <- attend(tls.Server(c, cfg))
		}
	}()
	t.Cleanup(func() { l.Close(); <-ended })
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port, out
}

// serverConfig is the policy of Interface A with both identities.
func (w *ward) serverConfig(t *testing.T, o serving) *tls.Config {
	t.Helper()
	server := tlspolicy.Server{Identities: w.identities(t), Roots: w.pki.Roots(), LeafOnly13: o.leafOnly13, Judge: w.fetcher.Judge,
		Authorised: func(name string) bool { return name == w.pki.Options.Device.String() }}
	var staples []func() [][]byte
	for _, name := range platforms {
		staples = append(staples, w.keep(t, must(w.pki.Chain(name))(t), o.answers))
	}
	server.Staples = func(i int) [][]byte { return staples[i]() }
	return must(server.Config())(t)
}

// platforms are the two identities of our server (A5).
var platforms = [...]string{"platform", "rsa-platform"}

func (w *ward) identities(t *testing.T) (both []tls.Certificate) {
	t.Helper()
	for _, name := range platforms {
		both = append(both, must(w.pki.Identity(name))(t))
	}
	return both
}

func (w *ward) keep(t *testing.T, chain []*x509.Certificate, answers []responder.Answer) func() [][]byte {
	t.Helper()
	if answers != nil {
		made := responder.Staples(w.pki, chain, answers)
		return func() [][]byte { return made }
	}
	k := must(fetch.NewKeeper(w.fetcher, chain))(t)
	t.Cleanup(k.Close)
	if err := k.Fetch(t.Context()); err != nil {
		t.Fatal(err)
	}
	return k.Staples
}

func attend(c *tls.Conn) (s session) {
	defer c.Close()
	deadline := time.Now().Add(20 * time.Second)
	if s.err = c.SetDeadline(deadline); s.err != nil {
		return s
	}
	if s.err = c.Handshake(); s.err != nil {
		return s
	}
	s.state = c.ConnectionState()
	if s.staples, s.err = tlsoverlay.Staples(&s.state); s.err != nil {
		return s
	}
	conn := mllp.NewConn(c, 1<<16)
	block, err := conn.ReadBlock(deadline)
	if err != nil {
		s.err = err
		return s
	}
	s.message = string(block)
	ack, err := pcd.AppendAck(nil, block, "CA", pcd.AckOptions{ControlID: "ACK1", Now: time.Now()})
	if err != nil {
		s.err = err
		return s
	}
	s.err = conn.WriteBlock(ack, deadline)
	return s
}

// wantDelivered checks one whole conversation with our server.
func wantDelivered(t *testing.T, s session, device string) {
	t.Helper()
	if s.err != nil {
		t.Fatalf("our side: %v", s.err)
	}
	if s.message != message {
		t.Errorf("the message arrived as %q", s.message)
	}
	entry := must(must(hospital())(t).pki.Find(device))(t)
	if len(s.state.PeerCertificates) < 2 || !s.state.PeerCertificates[0].Equal(entry.Certificate) {
		t.Errorf("the peer showed %d certificates, not those of %s with its issuing CA", len(s.state.PeerCertificates), device)
	}
}
