package daemon

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"encoding/pem"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/bedside-gateway/gatewayd/internal/status"
	"github.com/bedside-gateway/gatewayd/keystore/tpm"
	"github.com/bedside-gateway/gatewayd/northbound"
)

// A bus is the gateway's way to the TPM, which others use as well: between two
// commands of the gateway, as through the kernel's resource manager. It can hang.
type bus struct {
	turn  sync.Mutex // from a command to the end of its response
	hangs atomic.Bool
	// swallowed are the commands that never reached it.
	swallowed atomic.Int64
	present   tpm.Conn
}

func (b *bus) dial(ctx context.Context, address string) (tpm.Conn, error) {
	c, err := tpm.Dial(ctx, address)
	if err != nil {
		return nil, err
	}
	b.present = c
	return &rider{Conn: c, bus: b}, nil
}

// Send is a command of somebody else.
func (b *bus) Send(command []byte) ([]byte, error) {
	b.turn.Lock()
	defer b.turn.Unlock()
	_ = b.present.SetDeadline(time.Time{})
	return transport.FromReadWriter(b.present).Send(command)
}

// A rider is the gateway on the bus.
type rider struct {
	tpm.Conn
	bus  *bus
	mute bool // its command was swallowed
	owed int  // bytes of the response that it has not read yet; 0: it has not the turn
}

func (r *rider) Write(b []byte) (int, error) {
	if r.mute = r.bus.hangs.Load(); r.mute {
		r.bus.swallowed.Add(1)
		return len(b), nil
	}
	r.bus.turn.Lock()
	n, err := r.Conn.Write(b)
	if r.owed = -1; err != nil {
		r.free()
	}
	return n, err
}

func (r *rider) Read(b []byte) (int, error) {
	n, err := r.Conn.Read(b) // nothing comes for a command that was swallowed
	if r.mute {
		return n, err
	}
	if r.owed < 0 && n >= 10 {
		r.owed = int(binary.BigEndian.Uint32(b[2:]))
	}
	if r.owed -= n; r.owed <= 0 || err != nil {
		r.free()
	}
	return n, err
}

func (r *rider) free() {
	r.owed = 0
	r.bus.turn.Unlock()
}

// onABus is a sealed house whose TPM has other users.
func onABus(t *testing.T) (*sealedHouse, *bus) {
	h, b := newSealedHouse(t), new(bus)
	h.options.TPM.Dial = b.dial
	return h, b
}

// extend changes the state of the platform, as another firmware would.
func (b *bus) extend(t *testing.T, digest [32]byte) {
	t.Helper()
	_, err := tpm2.PCRExtend{PCRHandle: tpm2.AuthHandle{Handle: tpm2.TPMHandle(16), Auth: tpm2.PasswordAuth(nil)},
		Digests: tpm2.TPMLDigestValues{Digests: []tpm2.TPMTHA{{HashAlg: tpm2.TPMAlgSHA256, Digest: digest[:]}}}}.Execute(b)
	if err != nil {
		t.Fatal(err)
	}
}

// A maker approves states of the platform.
type maker struct {
	t   *testing.T
	key *ecdsa.PrivateKey
	h   *sealedHouse
}

func newMaker(t *testing.T, h *sealedHouse) maker {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	h.put("maker.pem", pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	return maker{t, key, h}
}

func (h *sealedHouse) put(name string, text []byte) {
	h.t.Helper()
	if err := os.WriteFile(filepath.Join(h.dir, name), text, 0o600); err != nil {
		h.t.Fatal(err)
	}
}

// approves writes the approvals of values of the register.
func (m maker) approves(values ...[32]byte) {
	m.t.Helper()
	var all []tpm.Approval
	for _, v := range values {
		a, err := tpm.Approve(m.key, map[uint][]byte{16: v[:]})
		if err != nil {
			m.t.Fatal(err)
		}
		all = append(all, a)
	}
	text, err := json.Marshal(all)
	if err != nil {
		m.t.Fatal(err)
	}
	m.h.put("approvals.json", text)
}

// A11, B19: a state of the platform that nobody approved is told while a session
// stands that needs no signature, and approvals that come are taken up at once.
func TestAKeyThatMayNotBeUsedIsToldAndNewApprovalsAreTakenUp_A11(t *testing.T) {
	h, b := onABus(t)
	m := newMaker(t, h)
	var before [32]byte
	change := sha256.Sum256([]byte("another firmware"))
	after := sha256.Sum256(append(before[:], change[:]...))
	m.approves(before)
	h.write("policy_signer = \"maker.pem\"\npolicy_approvals = \"approvals.json\"")
	h.start()
	h.enroll()
	h.delivers(61)

	b.extend(t, change)
	h.raises(string(tpm.Refused), "")
	h.delivers(62) // over the session that stands
	h.platform.Kill()
	h.bedside.say(t, "/dev/bed1", "HR 63")
	h.restart()
	h.raises("key-unusable", "platform")
	h.lacks("platform-refused")
	if h.platform.Counts().Stored != 2 {
		t.Fatal("a session came about with a key that may not be used")
	}

	for _, wrong := range []string{`[{"pcrs":`, `[]`} { // copied by half, and of nobody
		h.put("approvals.json", []byte(wrong))
		h.raises("identity-unused", "")
	}
	m.approves(before, after)
	h.lacks("identity-unused")
	h.lacks(string(tpm.Refused))
	h.has(63)
	h.lacks("key-unusable")
}

// Approvals that came before the state that they are of leave no doubt about the
// key, not even until the next look.
func TestApprovalsAreTakenUpBeforeTheKeyIsTried(t *testing.T) {
	h, b := onABus(t)
	m := newMaker(t, h)
	var before [32]byte
	change := sha256.Sum256([]byte("another firmware"))
	m.approves(before)
	h.write("policy_signer = \"maker.pem\"\npolicy_approvals = \"approvals.json\"")
	h.start()
	h.enroll()
	h.delivers(61)
	look := h.daemon.watch
	look.stop()
	<-look.ended()
	if err := h.daemon.tpm.Check(t.Context()); err != nil { // what was cut off with the look
		t.Fatal(err)
	}
	m.approves(before, sha256.Sum256(append(before[:], change[:]...)))
	b.extend(t, change)
	look.tick(t.Context())
	if h.raised(string(tpm.Refused), "") {
		t.Error("the key was tried by the approvals before")
	}
}

// B19: the TPM of a standing session loses its keys.
func TestATPMThatIsClearedUnderASessionIsTold_B19(t *testing.T) {
	h, b := onABus(t)
	h.start()
	h.enroll()
	h.delivers(61)
	if _, err := (tpm2.Clear{AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHLockout, Auth: tpm2.PasswordAuth(nil)}}).Execute(b); err != nil {
		t.Fatal(err)
	}
	h.raises(string(tpm.Cleared), "")
	h.delivers(62)
}

// A gateway that is not enrolled has no key to try, and tells all the same.
func TestATPMThatIsClearedBeforeThereIsAKeyIsTold(t *testing.T) {
	h, b := onABus(t)
	h.start()
	if _, err := h.applicant().Init(t.Context()); err != nil { // which makes the fingerprint
		t.Fatal(err)
	}
	h.house.end()
	h.start()
	if _, err := (tpm2.Clear{AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHLockout, Auth: tpm2.PasswordAuth(nil)}}).Execute(b); err != nil {
		t.Fatal(err)
	}
	h.raises(string(tpm.Cleared), "")
}

// B16: that the TPM is away says nothing about a certificate: the new one stays,
// however long that lasts, and platforms get their time to refuse it afterwards.
func TestATPMThatIsAwayIsNoRefusalOfTheNewCertificate_B16(t *testing.T) {
	h := newSealedHouse(t)
	ahead := h.clock()
	h.start()
	h.enroll()
	h.delivers(61)
	h.untried("ecc-issuing")
	if err := h.applicant().Store.Promote(); err != nil { // nobody could be tried
		t.Fatal(err)
	}
	fresh := h.slots().Current.Chain[0]
	eventually(t, "the new certificate is in use", func() bool {
		h.daemon.mu.Lock()
		defer h.daemon.mu.Unlock()
		return slices.Equal(h.daemon.identity.certificate.Certificate[0], fresh.Raw)
	})
	h.emulator.Stop()
	h.restart()
	h.bedside.say(t, "/dev/bed1", "HR 62")
	h.raises("key-unusable", "platform")
	h.raises(string(tpm.Absent), "")
	ahead.Store(int64(2 * doubt))
	looks := h.daemon.client().Status().Handshakes["key"]
	eventually(t, "the key is tried again, long after", func() bool { return h.daemon.client().Status().Handshakes["key"] > looks })
	if s := h.slots(); !s.Current.Chain[0].Equal(fresh) || s.Previous == nil {
		t.Fatal("the new certificate is given up for a TPM that is away")
	}
	h.power()
	h.has(62)
	eventually(t, "the certificate before is gone", func() bool { return h.slots().Previous == nil })
	h.lacks(string(tpm.Absent))
	h.lacks("key-unusable")
}

// clock gives the gateway a clock that is put ahead by nanoseconds.
func (h *sealedHouse) clock() *atomic.Int64 {
	var ahead atomic.Int64
	h.options.Now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	return &ahead
}

func (d *Daemon) client() *northbound.Client {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.destinations[0].client
}

// While the TPM hangs the status socket answers at all times, and the gateway can
// be ended at once.
func TestAGatewayWhoseTPMHangsAtTheStartAnswersAllTheTime(t *testing.T) {
	h, b := onABus(t)
	h.start()
	h.enroll()
	h.house.end()
	b.hangs.Store(true)
	h.options.TPM.Command = time.Second
	started := h.begin()
	h.answers("spool-sealed")
	client := status.NewClient(filepath.Join(h.dir, "s.sock"))
	for end := time.Now().Add(3 * time.Second); time.Now().Before(end); { // three attempts
		r, err := client.Report(t.Context())
		if err != nil || !slices.ContainsFunc(r.Conditions, func(c status.Condition) bool { return strings.HasPrefix(c.Name, "tpm-") }) {
			t.Fatalf("%v: %+v", err, r.Conditions)
		}
	}
	b.hangs.Store(false)
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	h.delivers(61)
}

// A signature that hangs does not hold up the end for longer than its grace.
func TestAGatewayWhoseTPMHangsEndsInTime(t *testing.T) {
	h, b := onABus(t)
	h.options.TPM.Command = 10 * time.Minute
	h.start()
	h.enroll()
	h.house.end()
	h.options.IdentityPeriod = time.Hour // so that it is the signature that hangs, and no look
	h.start()
	h.delivers(61)
	h.platform.Kill()
	b.hangs.Store(true)
	h.bedside.say(t, "/dev/bed1", "HR 62")
	h.restart()
	eventually(t, "a signature hangs", func() bool { return b.swallowed.Load() > 0 })
	h.stop()
	select {
	case err := <-h.ended:
		h.ended <- nil
		if err != nil {
			t.Error(err)
		}
	case <-time.After(time.Minute):
		t.Fatal("it does not end")
	}
}
