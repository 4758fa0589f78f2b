package daemon

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/bedside-gateway/gatewayd/internal/enroll"
	"github.com/bedside-gateway/gatewayd/internal/sim/ca"
	"github.com/bedside-gateway/gatewayd/internal/sim/pki"
	"github.com/bedside-gateway/gatewayd/internal/sim/platform"
	"github.com/bedside-gateway/gatewayd/internal/sim/swtpm"
	"github.com/bedside-gateway/gatewayd/internal/status"
	"github.com/bedside-gateway/gatewayd/keystore"
	"github.com/bedside-gateway/gatewayd/keystore/tpm"
	"github.com/bedside-gateway/gatewayd/observation"
)

// A sealedHouse is a gateway with its key in a TPM, and a platform.
type sealedHouse struct {
	*house
	tpmDir   string
	emulator *swtpm.Emulator
	platform *platform.Platform
	// lifetime and age of the certificates that certify has issued; 0 is the usual.
	lifetime, age time.Duration
	more          string // of the configuration
}

func newSealedHouse(t *testing.T) *sealedHouse {
	t.Helper()
	h := &sealedHouse{house: newHouse(t)}
	dir, err := os.MkdirTemp("", "tpm") // the path of a socket is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	h.tpmDir = dir
	h.power()
	t.Cleanup(func() { h.emulator.Stop() })
	identity, err := h.pki.Identity("platform")
	if err != nil {
		t.Fatal(err)
	}
	if h.platform, err = platform.New(platform.Options{Certificates: []tls.Certificate{identity}, Roots: h.pki.Roots(), Hospital: h.pki, Keep: 100}); err != nil {
		t.Fatal(err)
	}
	if err := h.platform.Listen("127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.platform.Close() })
	h.options.IdentityPeriod, h.options.HoldPeriod = 20*time.Millisecond, 50*time.Millisecond
	h.options.TPM = tpm.Options{Command: 2 * time.Second}
	h.write("")
	return h
}

// power switches the TPM on.
func (h *sealedHouse) power() {
	h.t.Helper()
	var err error
	h.emulator, err = swtpm.Start(h.t.Context(), h.tpmDir)
	if errors.Is(err, swtpm.ErrMissing) && os.Getenv("NEED_SWTPM") == "" {
		h.t.Skip(err)
	}
	if err != nil {
		h.t.Fatal(err)
	}
}

// write writes the configuration, with more lines in [identity].
func (h *sealedHouse) write(identity string) {
	h.t.Helper()
	text := fmt.Sprintf("[gateway]\nname = \"GW\"\neui64 = %q\nstate_dir = \"state\"\nstatus_socket = \"s.sock\"\n[identity]\ntpm = \"unix:%s/tpm.sock\"\n%s\n"+
		"[[destination]]\nname = \"platform\"\naddress = \"platform.test:2575\"\nconnect = %q\ntrust = \"pki/roots.pem\"\ninterval = \"0s\"\nconnect_timeout = \"2s\"\n[[port]]\n%s\n",
		pki.DefaultDevice.String(), h.tpmDir, identity, h.platform.Address(), onePort(1)) + h.more
	if err := os.WriteFile(filepath.Join(h.dir, "g.toml"), []byte(text), 0o600); err != nil {
		h.t.Fatal(err)
	}
}

// applicant enrols through the TPM that the running gateway has open: the
// emulator serves one user, where the kernel's resource manager serves many.
func (h *sealedHouse) applicant() *enroll.Applicant {
	h.t.Helper()
	c, err := h.load()
	if err != nil {
		h.t.Fatal(err)
	}
	a, err := enroll.New(c, enroll.Device, h.daemon.tpm, time.Now)
	if err != nil {
		h.t.Fatal(err)
	}
	return a
}

// certify has a CA issue the certificate that is wanted next, and installs it.
func (h *sealedHouse) certify(ca string) {
	h.t.Helper()
	a := h.applicant()
	text, err := a.Request(h.t.Context())
	if err != nil {
		h.t.Fatal(err)
	}
	block, _ := pem.Decode(text)
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		h.t.Fatal(err)
	}
	chain, err := h.pki.IssueDevice(ca, csr.PublicKey, pki.DefaultDevice, time.Now().Add(-h.age), cmp.Or(h.lifetime, pki.DefaultLifetime))
	if err != nil {
		h.t.Fatal(err)
	}
	if _, err := a.Install(inPEM(chain)); err != nil {
		h.t.Fatal(err)
	}
}

func (h *sealedHouse) enroll() {
	h.t.Helper()
	if _, err := h.applicant().Init(h.t.Context()); err != nil {
		h.t.Fatal(err)
	}
	h.certify("ecc-issuing")
}

// delivers sees a value through to the platform.
func (h *sealedHouse) delivers(value int) {
	h.t.Helper()
	h.bedside.say(h.t, "/dev/bed1", "HR %d", value)
	h.has(value)
}

func (h *sealedHouse) has(value int) {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(h.t.Context(), time.Minute)
	defer cancel()
	want := fmt.Sprintf("|%d|", value)
	found := func() bool {
		return slices.ContainsFunc(h.platform.Messages(), func(m platform.Message) bool { return strings.Contains(string(m.Bytes), want) })
	}
	if err := h.platform.Wait(ctx, func(platform.Counts) bool { return found() }); err != nil {
		h.t.Fatalf("the platform does not have %d: %v\n%s", value, err, h.log)
	}
}

func (h *sealedHouse) lacks(name string) {
	h.t.Helper()
	eventually(h.t, "no condition "+name, func() bool { return !h.raised(name, "") })
}

func (h *sealedHouse) slots() keystore.Slots {
	h.t.Helper()
	all, err := keystore.Open(filepath.Join(h.dir, "state", enroll.Dir, enroll.Device)).Read()
	if err != nil {
		h.t.Fatal(err)
	}
	return all
}

// begin runs the gateway as gatewayd run does.
func (h *sealedHouse) begin() <-chan error {
	h.t.Helper()
	c, err := h.load()
	if err != nil {
		h.t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	h.stop, h.ended = stop, make(chan error, 1)
	started := make(chan error, 1)
	go func() {
		d, err := Start(ctx, c, h.options)
		h.daemon = d
		started <- err
		if err == nil {
			err = d.Run(ctx)
		}
		h.ended <- err
	}()
	h.t.Cleanup(h.house.end)
	return started
}

// answers is the report on the status socket.
func (h *sealedHouse) answers(condition string) status.Report {
	h.t.Helper()
	client, last := status.NewClient(filepath.Join(h.dir, "s.sock")), status.Report{}
	eventually(h.t, "the status socket tells "+condition, func() bool {
		r, err := client.Report(h.t.Context())
		last = r
		return err == nil && slices.ContainsFunc(r.Conditions, func(c status.Condition) bool { return c.Name == condition && c.Next != "" })
	})
	return last
}

// untried installs another certificate, of a CA, while no platform is there to try
// it with.
func (h *sealedHouse) untried(ca string) {
	h.t.Helper()
	if _, err := h.applicant().NewKey(h.t.Context()); err != nil {
		h.t.Fatal(err)
	}
	h.platform.Kill()
	h.certify(ca)
}

// settles delivers until one of the messages went out with the new certificate,
// and the one before is gone with that.
func (h *sealedHouse) settles() {
	h.t.Helper()
	value := 100
	eventually(h.t, "the certificate before is gone", func() bool {
		value++
		h.delivers(value)
		return h.slots().Previous == nil
	})
}

// restart has the platform back after a Kill.
func (h *sealedHouse) restart() {
	h.t.Helper()
	if err := h.platform.Restart(); err != nil {
		h.t.Fatal(err)
	}
}

// B19, A11: the key is made in the TPM, the spool's key is sealed by it, and no
// message is lost while there is no certificate yet.
func TestAGatewayKeepsWhatDevicesSayUntilItIsEnrolled(t *testing.T) {
	h := newSealedHouse(t)
	h.start()
	h.raises("not-enrolled", "")
	h.raises("platform-refused", "platform")
	h.bedside.say(t, "/dev/bed1", "HR 60")
	h.waiting(1)
	h.enroll()
	h.has(60)
	h.lacks("not-enrolled")
	h.lacks("development-key")
	r := h.daemon.Report()
	if i := r.Identity; i == nil || len(i.Slots) != 1 || i.Slots[0].Slot != keystore.Current || i.Manufacturer == "" {
		t.Errorf("the report has the identity %+v", r.Identity)
	}
	if n := r.Identity.Signatures.Counts; len(n) == 0 || slices.Max(n) == 0 {
		t.Errorf("no signature was counted: %v", n)
	}
	if _, err := os.Stat(filepath.Join(h.dir, "state", KeyFile)); err == nil {
		t.Error("the key of the spool is in the clear")
	}
	if text, err := os.ReadFile(filepath.Join(h.dir, "state", SealedFile)); err != nil || !strings.Contains(string(text), tpm.FileType) {
		t.Errorf("the key of the spool is not sealed: %v", err)
	}
}

// A certificate that is gone leaves a gateway that is not enrolled, key or no key.
func TestAGatewayThatLostItsCertificateIsNotEnrolled(t *testing.T) {
	h := newSealedHouse(t)
	h.start()
	h.enroll()
	h.delivers(61)
	kept, chain := h.slots().Current, filepath.Join(h.applicant().Store.Dir(), keystore.Current, "chain.pem")
	if err := os.Remove(chain); err != nil {
		t.Fatal(err)
	}
	h.raises("not-enrolled", "")
	if o, err := h.applicant().Init(t.Context()); err != nil || o.Changed {
		t.Errorf("init makes of it %+v, %v", o, err)
	}
	if _, err := h.applicant().Install(inPEM(kept.Chain)); err != nil {
		t.Fatal(err)
	}
	h.lacks("not-enrolled")
	h.delivers(62)
}

func TestANewCertificateIsTriedThenUsedAndTheOneBeforeGoes(t *testing.T) {
	h := newSealedHouse(t)
	h.start()
	h.enroll()
	h.delivers(61)
	before := h.slots().Current
	if _, err := h.applicant().NewKey(t.Context()); err != nil {
		t.Fatal(err)
	}
	h.certify("ecc-issuing")
	eventually(t, "the new certificate is in use", func() bool {
		s := h.slots()
		return s.Next == nil && s.Current != nil && !s.Current.Chain[0].Equal(before.Chain[0])
	})
	h.settles()
	if n := h.platform.Counts().Refused; n != 0 {
		t.Errorf("the platform refused %d sessions", n)
	}
}

// A certificate that the platform does not take never replaces one that it takes.
func TestACertificateThatNoPlatformTakesIsNotUsed(t *testing.T) {
	h := newSealedHouse(t)
	h.start()
	h.enroll()
	h.delivers(61)
	if _, err := h.applicant().NewKey(t.Context()); err != nil {
		t.Fatal(err)
	}
	h.certify("ecc-foreign-issuing")
	h.raises("certificate-untried", "")
	if s := h.slots(); s.Next == nil || s.Current.Chain[0].Issuer.String() == s.Next.Chain[0].Issuer.String() {
		t.Errorf("the slots are %+v", s)
	}
	h.delivers(62)
	if err := h.applicant().Store.Abandon(); err != nil {
		t.Fatal(err)
	}
	h.lacks("certificate-untried")
}

// A platform that is away says nothing about a new certificate, which is taken up
// once the platform is back.
func TestACertificateIsTriedAsSoonAsAPlatformIsBack(t *testing.T) {
	h := newSealedHouse(t)
	h.start()
	h.enroll()
	h.delivers(61)
	h.untried("ecc-issuing")
	h.raises("certificate-untried", "")
	fresh := h.slots().Next.Chain[0]
	h.restart()
	eventually(t, "the new certificate is in use", func() bool { return h.slots().Current.Chain[0].Equal(fresh) })
	h.lacks("certificate-untried")
	h.settles()
}

// The report has a change of the slots at once, and not with the next look.
func TestTheReportHasTheCertificateThatIsInUse(t *testing.T) {
	h := newSealedHouse(t)
	h.start()
	h.enroll()
	h.delivers(61)
	h.untried("ecc-issuing")
	h.house.end()
	h.restart()
	fresh := keystore.Mark(h.slots().Next.Public)
	h.options.IdentityPeriod = time.Hour
	h.start()
	eventually(t, "the new certificate is reported as the current one", func() bool {
		s := h.daemon.Report().Identity.Slots
		return len(s) == 2 && s[0].Slot == keystore.Current && s[0].Key == fresh && s[1].Slot == keystore.Previous
	})
}

// When all platforms refuse the certificate that was taken up, the one before
// comes back.
func TestTheCertificateBeforeComesBackWhenAllRefuseTheNewOne(t *testing.T) {
	h := newSealedHouse(t)
	ahead := h.clock()
	h.start()
	h.enroll()
	h.delivers(61)
	h.untried("ecc-foreign-issuing")
	h.raises("certificate-untried", "")
	store := h.applicant().Store
	good := h.slots().Current.Chain[0]
	if err := store.Promote(); err != nil { // as a hand on the folder would
		t.Fatal(err)
	}
	h.restart()
	h.bedside.say(t, "/dev/bed1", "HR 62")
	h.raises("platform-refused", "platform")
	eventually(t, "the platform declines", func() bool { return h.daemon.client().Status().Declined })
	if h.raised("certificate-reverted", "") {
		t.Fatal("the platform has not had its time to refuse")
	}
	ahead.Store(int64(doubt + time.Minute))
	h.raises("certificate-reverted", "")
	if s := h.slots(); !s.Current.Chain[0].Equal(good) {
		t.Error("another certificate is in use")
	}
	h.has(62)
}

// A certificate that cannot be put to use, here for another file of the
// configuration, leaves the one before alone, and is taken up once it can be.
func TestACertificateThatCannotBePutToUseIsTakenUpLater(t *testing.T) {
	h := newSealedHouse(t)
	h.start()
	h.enroll()
	h.delivers(61)
	h.untried("ecc-issuing")
	h.raises("certificate-untried", "")
	store, roots := h.applicant().Store, filepath.Join(h.dir, "pki", "roots.pem")
	if err := os.Rename(roots, roots+".away"); err != nil {
		t.Fatal(err)
	}
	if err := store.Promote(); err != nil { // as a hand on the folder would
		t.Fatal(err)
	}
	h.restart()
	const fault = "hold now cannot be used"
	eventually(t, "the fault in the log", func() bool { return strings.Contains(h.log.String(), fault) })
	for value := range 5 {
		h.delivers(62 + value)
	}
	if h.slots().Previous == nil {
		t.Error("the certificate before is gone, though the new one was not in use")
	}
	if n := strings.Count(h.log.String(), fault); n > 3 { // Promote is several steps
		t.Errorf("the fault was told %d times", n)
	}
	if err := os.Rename(roots+".away", roots); err != nil {
		t.Fatal(err)
	}
	h.settles()
}

// authority runs a CA that renews, and writes its address into the configuration.
func (h *sealedHouse) authority(o ca.Options) {
	h.t.Helper()
	o.PKI = h.pki
	s, err := ca.New(o)
	if err != nil {
		h.t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(s)
	if server.TLS, err = s.TLS(); err != nil {
		h.t.Fatal(err)
	}
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	h.t.Cleanup(server.Close)
	h.write(fmt.Sprintf("est_url = %q\nest_trust = \"pki/roots.pem\"\n", server.URL))
}

// aged is a certificate that has used up four fifths of its life.
func (h *sealedHouse) aged(life time.Duration) {
	h.t.Helper()
	h.lifetime, h.age = life, life*4/5
	h.enroll()
	h.lifetime, h.age = 0, 0
}

func TestACertificateIsRenewedByItselfInTime(t *testing.T) {
	h := newSealedHouse(t)
	h.authority(ca.Options{})
	h.start()
	h.aged(pki.DefaultLifetime)
	old := h.slots().Current.Chain[0]
	eventually(t, "another certificate is in use", func() bool {
		s := h.slots()
		return s.Next == nil && !s.Current.Chain[0].Equal(old)
	})
	s := h.slots()
	if keystore.Matches(old.PublicKey, s.Current.Chain[0]) {
		t.Error("the renewed certificate is for the same key")
	}
	h.settles()
	h.lacks("renewal-failing")
}

// A CA that has to think is asked again with the very same request.
func TestARenewalThatIsPutOffIsSaidAndAskedForAgain(t *testing.T) {
	h := newSealedHouse(t)
	h.authority(ca.Options{Pending: 2, RetryAfter: time.Second})
	h.start()
	h.aged(pki.DefaultLifetime)
	old := h.slots().Current.Chain[0]
	h.raises("renewal-pending", "")
	request := string(h.slots().Next.Request)
	eventually(t, "another certificate is in use", func() bool {
		s := h.slots()
		if s.Next != nil && s.Next.Chain == nil && string(s.Next.Request) != request {
			t.Fatal("another request is made")
		}
		return !s.Current.Chain[0].Equal(old)
	})
	h.lacks("renewal-pending")
}

func TestARenewalThatFailsIsSaidAndTheCertificateStays(t *testing.T) {
	h := newSealedHouse(t)
	h.authority(ca.Options{Authorised: []observation.EUI64{1}})
	h.start()
	h.aged(30 * 24 * time.Hour)
	h.raises("renewal-failing", "")
	h.raises(string(keystore.In7Days), "")
	h.delivers(61)
	h.certify("ecc-issuing") // by hand, for the key that waits
	h.lacks("renewal-failing")
}

// A5, A11: both keys of the server for devices are in the TPM as well.
func TestTheServerForDevicesHasItsKeysInTheTPM_A5_A11(t *testing.T) {
	h := newSealedHouse(t)
	h.more = `[southbound]
listen = "127.0.0.1:2575"
trust = "pki/roots.pem"
authorised = ["0123456789ABCDEF"]
crls = ["pki/ecc-root.crl", "pki/ecc-issuing.crl"]
[[southbound.identity]]
store = "server-ecc"
name = "gateway.test"
[[southbound.identity]]
store = "server-rsa"
name = "gateway.test"
key_type = "rsa-2048"
`
	address := make(chan string, 4)
	h.options.Listen = func(string) (net.Listener, error) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err == nil {
			address <- l.Addr().String()
		}
		return l, err
	}
	h.write("")
	h.start()
	h.raises("southbound-not-enrolled", "")
	h.enroll()
	c, err := h.load()
	if err != nil {
		t.Fatal(err)
	}
	for _, store := range []string{"server-ecc", "server-rsa"} {
		a, err := enroll.New(c, store, h.daemon.tpm, time.Now)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := a.Init(t.Context()); err != nil {
			t.Fatal(err)
		}
		text, err := a.Request(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		block, _ := pem.Decode(text)
		csr, err := x509.ParseCertificateRequest(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		wrong, err := h.pki.CertifyServer("ecc-issuing", csr.PublicKey, []string{"other.test"}, time.Now(), pki.DefaultLifetime)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := a.Install(inPEM(wrong)); err == nil || !strings.Contains(err.Error(), "devices find this server as gateway.test") {
			t.Errorf("a certificate of another server: %v", err)
		}
		chain, err := h.pki.CertifyServer("ecc-issuing", csr.PublicKey, csr.DNSNames, time.Now(), pki.DefaultLifetime)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := a.Install(inPEM(chain)); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "the server has both certificates", func() bool {
		r := h.daemon.Report()
		return r.Southbound != nil && r.Southbound.Address != "" && len(r.Southbound.Certificates) == 2
	})
	h.lacks("southbound-not-enrolled")
	for suite, scheme := range map[uint16]x509.PublicKeyAlgorithm{tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384: x509.ECDSA, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384: x509.RSA} {
		device, err := h.pki.Identity("device")
		if err != nil {
			t.Fatal(err)
		}
		config := &tls.Config{RootCAs: h.pki.Roots(), ServerName: "gateway.test", Certificates: []tls.Certificate{device}, MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{suite}}
		eventually(t, "a session with "+tls.CipherSuiteName(suite), func() bool {
			for len(address) > 1 {
				<-address
			}
			at := <-address
			address <- at
			session, err := tls.Dial("tcp", at, config)
			if err != nil {
				return false
			}
			defer session.Close()
			return session.ConnectionState().PeerCertificates[0].PublicKeyAlgorithm == scheme
		})
	}
}

func inPEM(chain []*x509.Certificate) []byte {
	var b bytes.Buffer
	for _, c := range chain {
		_ = pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}) // a buffer takes all
	}
	return b.Bytes()
}

func TestATPMThatIsAwayIsSaidAndMissedByNobodyUntilASessionNeedsIt(t *testing.T) {
	h := newSealedHouse(t)
	h.start()
	h.enroll()
	h.delivers(61)
	h.emulator.Stop()
	h.raises(string(tpm.Absent), "")
	h.delivers(62) // over the session that stands
	h.power()
	h.lacks(string(tpm.Absent))
	h.platform.Kill()
	h.bedside.say(t, "/dev/bed1", "HR 63")
	h.waiting(1)
	h.restart()
	h.has(63) // with a signature of the TPM that was away
}

// Without the TPM the spool cannot be opened. The gateway waits and says so, and
// goes on by itself.
func TestAGatewayWaitsForItsTPMAndThenDeliversWhatTheSpoolHeld(t *testing.T) {
	h := newSealedHouse(t)
	h.start()
	h.platform.Kill()
	h.enroll()
	h.bedside.say(t, "/dev/bed1", "HR 64")
	h.waiting(1)
	h.house.end()
	h.emulator.Stop()
	h.restart()

	started := h.begin()
	r := h.answers(string(tpm.Absent))
	if r.Ready || r.Verdict != status.Down || !slices.ContainsFunc(r.Conditions, func(c status.Condition) bool { return c.Name == "spool-sealed" }) {
		t.Errorf("the report is %+v", r)
	}
	if err := status.NewClient(filepath.Join(h.dir, "s.sock")).List(t.Context(), "", func(status.Entry) error { return nil }); err == nil {
		t.Error("a spool that nobody can open is listed")
	}
	h.power()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	h.has(64)
	if told := h.told.String(); !strings.Contains(told, "READY=1") || !strings.Contains(told, "down (spool-sealed and 1 more)") {
		t.Errorf("systemd is told %q", told)
	}
}

func TestAGatewayThatWaitsForItsTPMCanBeEnded(t *testing.T) {
	h := newSealedHouse(t)
	h.start()
	h.house.end()
	h.emulator.Stop()
	started := h.begin()
	h.answers(string(tpm.Absent))
	h.stop()
	if err := <-started; !errors.Is(err, context.Canceled) {
		t.Errorf("the end: %v", err)
	}
	<-h.ended
	h.ended <- nil // for the end of the test
}

// A TPM whose owner was cleared has lost the keys for good: what the spool holds
// cannot be read by anybody, and the gateway does not go on as if nothing were.
func TestAClearedTPMIsNamedAndTheWayBackLosesNothingSilently(t *testing.T) {
	h := newSealedHouse(t)
	h.start()
	h.enroll()
	h.platform.Kill()
	h.bedside.say(t, "/dev/bed1", "HR 65")
	h.waiting(1)
	h.house.end()
	clearTPM(t, h.emulator.Address())
	started := h.begin()
	h.answers(string(tpm.Cleared))
	h.stop()
	<-started
	<-h.ended
	h.ended <- nil

	c, err := h.load()
	if err != nil {
		t.Fatal(err)
	}
	device, err := enroll.OpenTPM(c, tpm.Options{})
	if err != nil {
		t.Fatal(err)
	}
	keeper := SpoolKey{Dir: c.Gateway.StateDir, TPM: device}
	if lost, err := keeper.Lost(t.Context()); !lost || err != nil {
		t.Fatalf("the key is lost: %v %v", lost, err)
	}
	if moved, err := keeper.Abandon(); err != nil || filepath.Base(moved) != SpoolFile+unreadable {
		t.Fatalf("moved to %q: %v", moved, err)
	}
	a, err := enroll.New(c, enroll.Device, device, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	if changed, err := a.Reset(); !changed || err != nil {
		t.Fatalf("reset: %v %v", changed, err)
	}
	device.Close()

	h.restart()
	h.start()
	h.enroll()
	h.delivers(66)
}

func clearTPM(t *testing.T, address string) {
	t.Helper()
	c, err := net.Dial("unix", strings.TrimPrefix(address, "unix:"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, err = tpm2.Clear{AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHLockout, Auth: tpm2.PasswordAuth(nil)}}.Execute(transport.FromReadWriter(c))
	if err != nil {
		t.Fatal(err)
	}
}

// A box that is given another TPM, as a thief's copy of the disk is, is refused.
func TestACopyOfTheDiskWithAnotherTPMIsRefused(t *testing.T) {
	h := newSealedHouse(t)
	h.start()
	h.enroll()
	h.delivers(67)
	h.house.end()
	h.emulator.Stop()
	if err := os.RemoveAll(h.tpmDir); err != nil {
		t.Fatal(err)
	}
	h.power()
	started := h.begin()
	h.answers(string(tpm.Replaced))
	h.stop()
	<-started
	<-h.ended
	h.ended <- nil
}

func TestTheKeyOfTheSpoolIsExchangedWhenItIsOldAndNobodyWaits(t *testing.T) {
	h := newSealedHouse(t)
	h.start()
	h.enroll()
	h.delivers(68)
	eventually(t, "nothing waits", func() bool { return h.daemon.Report().Spool.Messages == 0 })
	h.house.end()
	file := filepath.Join(h.dir, "state", SealedFile)
	read := func() string {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	first := read()
	h.start()
	h.house.end()
	if read() != first {
		t.Error("a young key was exchanged")
	}
	old := time.Now().Add(-rotateAfter - time.Hour)
	if err := os.Chtimes(file, old, old); err != nil {
		t.Fatal(err)
	}
	h.platform.Kill()
	h.start()
	second := read()
	if second == first {
		t.Fatal("an old key was not exchanged")
	}
	h.bedside.say(t, "/dev/bed1", "HR 69")
	h.waiting(1)
	h.house.end()
	if err := os.Chtimes(file, old, old); err != nil {
		t.Fatal(err)
	}
	h.restart()
	h.start()
	if read() != second {
		t.Error("the key was exchanged while a message waits")
	}
	h.has(69)
}

// What a development key left in the clear is sealed at the first start with a TPM.
func TestAKeyInTheClearIsSealedAndGone(t *testing.T) {
	h := newSealedHouse(t)
	state := filepath.Join(h.dir, "state")
	if err := os.MkdirAll(state, 0o700); err != nil {
		t.Fatal(err)
	}
	key, err := SpoolKey{Dir: state}.open(t.Context(), strings.NewReader(strings.Repeat("k", 32)))
	if err != nil {
		t.Fatal(err)
	}
	h.start()
	again, err := SpoolKey{Dir: state, TPM: h.daemon.tpm}.Read(t.Context())
	if err != nil || again != key {
		t.Errorf("the sealed key is another one: %v", err)
	}
	if _, err := os.Stat(filepath.Join(state, KeyFile)); err == nil {
		t.Error("the key in the clear is still there")
	}
}

// A release takes no key from a file, whatever the configuration says.
func TestAReleaseRefusesAKeyInAFile(t *testing.T) {
	h := newHouse(t)
	h.configure(nowhere, onePort(1))
	h.options.FileKey = nil
	c, err := h.load()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := New(c, h.options); err == nil || !strings.Contains(err.Error(), "this is a release") {
		t.Errorf("it starts: %v", err)
	}
}
