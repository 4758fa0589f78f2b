package daemon

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bedside-gateway/gatewayd/internal/sim/pki"
	"github.com/bedside-gateway/gatewayd/internal/sim/platform"
	"github.com/bedside-gateway/gatewayd/internal/sim/responder"
	"github.com/bedside-gateway/gatewayd/mllp"
	"github.com/bedside-gateway/gatewayd/northbound"
	"github.com/bedside-gateway/gatewayd/pcd"
	"github.com/bedside-gateway/gatewayd/southbound"
	"github.com/bedside-gateway/gatewayd/spool"
	"github.com/bedside-gateway/gatewayd/tlspolicy"
)

// The certificates of this hospital name responders.
var online = sync.OnceValues(func() (*pki.PKI, error) {
	return pki.New(pki.Options{OCSPURL: "http://ocsp.test/{ca}", CRLURL: "http://crl.test/{ca}.crl"})
})

// A unit is a gateway for devices that speak IHE PCD themselves, with the
// responders of its hospital and a platform that is not there yet.
type unit struct {
	*house
	ocsp     *responder.Server
	platform *platform.Platform
	address  string // where devices connect
}

const southSection = `[southbound]
listen = "127.0.0.1:2575"
trust = "pki/roots.pem"
authorised = ["01-23-45-67-89-ab-cd-ef"]
crls = ["pki/ecc-root.crl", "pki/ecc-issuing.crl"]
[[southbound.identity]]
certificate = "pki/platform.pem"
key = "pki/platform.key"
insecure_file_key = true
`

func newUnit(t *testing.T) *unit {
	t.Helper()
	u := &unit{house: newHouseOf(t, online)}
	var err error
	if u.ocsp, err = responder.New(responder.Options{PKI: u.pki}); err != nil {
		t.Fatal(err)
	}
	crl, err := responder.NewCRL(responder.Options{PKI: u.pki})
	if err != nil {
		t.Fatal(err)
	}
	served := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Host == "crl.test" {
			crl.ServeHTTP(w, r)
			return
		}
		u.ocsp.ServeHTTP(w, r)
	}))
	t.Cleanup(served.Close)
	u.options.Responders = &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "tcp", served.Listener.Addr().String())
	}}}
	u.options.Listen = func(string) (net.Listener, error) { return net.Listen("tcp", "127.0.0.1:0") }
	identity, err := u.pki.Identity("platform")
	if err != nil {
		t.Fatal(err)
	}
	if u.platform, err = platform.New(platform.Options{Certificates: []tls.Certificate{identity}, Roots: u.pki.Roots(), Hospital: u.pki}); err != nil {
		t.Fatal(err)
	}
	if err := u.platform.Listen("127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { u.platform.Close() })
	return u
}

func (u *unit) destination() string {
	return fmt.Sprintf("[[destination]]\nname = \"platform\"\naddress = \"platform.test:2575\"\nconnect = %q\ntrust = \"pki/roots.pem\"\ninterval = \"0s\"\n", u.platform.Address())
}

// open runs the gateway until devices can connect and our staples are there.
func (u *unit) open() {
	u.t.Helper()
	u.start()
	u.opened()
}

func (u *unit) opened() {
	u.t.Helper()
	eventually(u.t, "devices can connect", func() bool {
		s := u.daemon.Report().Southbound
		return s != nil && s.Address != "" && len(s.Staples) == 2 && s.Staples[0].Says == "good" && s.Staples[1].Says == "good"
	})
	u.address = u.daemon.Report().Southbound.Address
}

// device connects by the rules of Interface B, which want the staples of the gateway.
func (u *unit) device(name string) (*northbound.Conn, error) {
	u.t.Helper()
	id, err := u.pki.Identity(name)
	if err != nil {
		u.t.Fatal(err)
	}
	c, err := tlspolicy.Client{ServerName: pki.DefaultPlatform, Roots: u.pki.Roots(), Identity: id}.Config()
	if err != nil {
		u.t.Fatal(err)
	}
	return northbound.Dial(u.t.Context(), northbound.Destination{Name: "gateway", Address: "platform.test:2575", Connect: u.address, TLS: c, AckTimeout: 10 * time.Second, ConnectTimeout: 10 * time.Second})
}

func (u *unit) connect(name string) *northbound.Conn {
	u.t.Helper()
	c, err := u.device(name)
	if err != nil {
		u.t.Fatal(err, "\n", u.log)
	}
	u.t.Cleanup(func() { c.Close() })
	return c
}

func (u *unit) send(c *northbound.Conn, message, code string) pcd.Ack {
	u.t.Helper()
	a, err := c.Exchange(u.t.Context(), []byte(message))
	if err != nil {
		u.t.Fatal(err, "\n", u.log)
	}
	if a.Code != code {
		u.t.Fatalf("%s is answered with %+v, want %s\n%s", message[:60], a, code, u.log)
	}
	return a
}

// pump is a message as no part of this project would write it: other line
// ends, an unknown segment, escapes, empty fields at the end.
func pump(id, value string) string {
	return "MSH|^~\\&|PUMP^0123456789ABCDEF^EUI-64|WARD|||20260102030405+0000||ORU^R01^ORU_R01|" + id + "|P|2.6|||AL|NE||UNICODE UTF-8|||IHE_PCD_001^IHE PCD^1.3.6.1.4.1.19376.1.6.1.1.1^ISO||\r\n" +
		"PID|||MARK42^^^H^PI||MARKFAMILY^J\\T\\J^^^^^L||||\r\nZPX|own|\xc3\xa4\r\n" +
		"OBR|1|" + id + "^PUMP^0123456789ABCDEF^EUI-64|" + id + "^PUMP^0123456789ABCDEF^EUI-64|69985^MDC_DEV_PUMP_INFUS_MDS^MDC|||20260102030405+0000\r\n" +
		"OBX|1|NM|157784^MDC_FLOW_FLUID_PUMP^MDC|1.1.1.1|" + value + "|265266^MDC_DIM_MILLI_L_PER_HR^MDC|||||R\r\n"
}

func (u *unit) delivered(n int) []platform.Message {
	u.t.Helper()
	ctx, cancel := context.WithTimeout(u.t.Context(), time.Minute)
	defer cancel()
	if err := u.platform.Wait(ctx, func(c platform.Counts) bool { return c.Stored+c.Rejected >= n }); err != nil {
		u.t.Fatal(err, "\n", u.log)
	}
	eventually(u.t, "the spool is empty", func() bool { return u.daemon.Report().Spool.Messages == 0 })
	return u.platform.Messages()
}

// TestA1_ADeviceThatSpeaksPCDReachesThePlatform: what the device sent is what
// the platform has, byte for byte (A1 to A10, B12 to B18).
func TestA1_ADeviceThatSpeaksPCDReachesThePlatform(t *testing.T) {
	u := newUnit(t)
	u.configure(u.destination() + southSection)
	u.open()
	c := u.connect("device")
	var want []string
	for i := range 5 {
		m := pump(fmt.Sprint("P", i), fmt.Sprint(i))
		if a := u.send(c, m, "CA"); a.ControlID != fmt.Sprint("P", i) {
			t.Errorf("answered for %s", a.ControlID)
		}
		want = append(want, m)
	}
	got := u.delivered(5)
	for i, m := range got {
		if string(m.Bytes) != want[i] {
			t.Errorf("the platform has %q, the device sent %q", m.Bytes, want[i])
		}
	}
	s := u.daemon.Report().Southbound
	if len(got) != 5 || s.Messages != 5 || s.Connections != 1 || len(s.Devices) != 1 || s.Present() != 1 || s.Devices[0].Messages != 5 || s.Devices[0].Since.IsZero() {
		t.Errorf("%d messages; %+v", len(got), s)
	}
	for name, text := range map[string]string{"log": u.log.String(), "systemd": u.told.String(), "status": fmt.Sprintf("%+v", u.daemon.Report())} {
		if strings.Contains(text, "MARK") {
			t.Errorf("the %s names a patient", name)
		}
	}
}

func TestWhatTheDeviceWasToldIsStoredSurvivesTheGateway(t *testing.T) {
	u := newUnit(t)
	u.configure(u.destination() + southSection)
	u.platform.Kill()
	u.open()
	c := u.connect("device")
	u.send(c, pump("P1", "1"), "CA")
	u.send(c, pump("P1", "1"), "CA") // the acknowledgement was lost, so it comes again
	u.send(c, pump("P1", "2"), "CA") // the device was switched off, and counts from the beginning
	u.send(c, strings.Replace(pump("P2", "3"), "R01^ORU_R01", "R40^ORU_R40", 1), "CA")
	u.send(c, strings.Replace(pump("P3", "4"), "R01^ORU_R01", "R42^ORU_R01", 1), "CA")
	u.end()
	entries := u.stored()
	var classes []string
	for _, e := range entries {
		classes = append(classes, e.Class)
		if e.Device != "0123456789ABCDEF" || e.Queue != "platform" || !strings.HasPrefix(e.ControlID, "0123456789ABCDEF|P") {
			t.Errorf("stored as %s, %s, %s", e.Queue, e.Device, e.ControlID)
		}
	}
	if !slices.Equal(classes, []string{"periodic", "periodic", "alert", "episodic"}) || string(entries[1].Message) != pump("P1", "2") {
		t.Errorf("stored %v", classes)
	}
	if err := u.platform.Restart(); err != nil {
		t.Fatal(err)
	}
	u.start()
	// The platform takes no R42, and no control ID for two contents: that is its
	// affair, and the operator's.
	u.delivered(4)
	if n := u.platform.Counts(); n.Stored != 2 || n.Again != 0 {
		t.Errorf("%+v", n)
	}
	u.raises("messages-quarantined", "platform")
}

func TestTwoDevicesWithOneControlIDAndTwoDestinations(t *testing.T) {
	u := newUnit(t)
	second := strings.Replace(nowhere, `"platform"`, `"second"`, 1)
	south := strings.Replace(southSection, `cd-ef"]`, `cd-ef", "0009FBFFFE000002"]`, 1)
	u.configure(second + u.destination() + south)
	u.start()
	u.opened()
	for _, device := range []string{"0123456789ABCDEF", "0009FBFFFE000002"} {
		if err := u.daemon.southbound.intake.take(t.Context(), device, []byte(pump("SAME", device))); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "one destination has both, the other keeps them", func() bool {
		r := u.daemon.Report()
		return r.Destinations[0].Messages == 2 && r.Destinations[1].Messages == 0
	})
}

func TestA8_A9_WhoIsNotWantedIsNotLetIn(t *testing.T) {
	for _, test := range []struct{ device, rule, reason string }{
		{"device-revoked", "A9", "it was revoked"},
		{"device-expired", "A8", "expired"},
		{"device-foreign", "A8", "no installed root"},
		{"device-wrong-name", "A8", "is not authorised here"},
	} {
		t.Run(test.device, func(t *testing.T) {
			u := newUnit(t)
			u.configure(u.destination() + southSection)
			u.open()
			c, err := u.device(test.device)
			if err == nil { // in TLS 1.3 the device learns it with the first answer
				_, err = c.Exchange(t.Context(), []byte(pump("P1", "1")))
				c.Close()
			}
			if err == nil {
				t.Error("it was let in")
			}
			u.raises("devices-refused", "")
			s := u.daemon.Report().Southbound
			if len(s.Refusals) != 1 || s.Refusals[0].Rule != test.rule || !strings.Contains(s.Refusals[0].Reason, test.reason) || s.Refused[test.rule] != 1 || s.Messages != 0 {
				t.Errorf("%+v", s)
			}
			u.send(u.connect("device"), pump("P1", "1"), "CA") // its twin with nothing wrong
		})
	}
}

func TestWhatCannotBeDeliveredIsRejectedAtOnce(t *testing.T) {
	u := newUnit(t)
	u.configure(u.destination() + southSection)
	u.open()
	for name, row := range map[string]struct{ message, ack, code string }{
		"another kind of message":      {strings.Replace(pump("P1", "1"), "ORU^R01^ORU_R01", "ADT^A01^ADT_A01", 1), "CR", "200"},
		"no answer of success":         {strings.Replace(pump("P1", "1"), "|AL|NE|", "|ER|NE|", 1), "CR", "103"},
		"a control ID without end":     {pump(strings.Repeat("9", 161), "1"), "CR", "102"},
		"the longest control ID there": {pump(strings.Repeat("9", 160), "1"), "CA", ""},
	} {
		a, err := raw(t, u, row.message)
		if err != nil || a.Code != row.ack || row.code != "" && (len(a.Errors) != 1 || a.Errors[0].Code != row.code) {
			t.Errorf("%s: %+v, %v", name, a, err)
		}
	}
	u.raises("device-messages-rejected", "")
}

// raw is a device that minds nothing.
func raw(t *testing.T, u *unit, message string) (pcd.Ack, error) {
	t.Helper()
	id, err := u.pki.Identity("device")
	if err != nil {
		t.Fatal(err)
	}
	c, err := tls.Dial("tcp", u.address, &tls.Config{ServerName: pki.DefaultPlatform, RootCAs: u.pki.Roots(), Certificates: []tls.Certificate{id}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte("\x0b" + message + "\x1c\r")); err != nil {
		return pcd.Ack{}, err
	}
	b, err := mllp.NewConn(c, 1<<20).ReadBlock(time.Now().Add(10 * time.Second))
	if err != nil {
		return pcd.Ack{}, err
	}
	return pcd.ParseAck(b)
}

func TestADeviceIsToldToTryAgainWhileTheDiskTakesNothing(t *testing.T) {
	u := newUnit(t)
	u.configure(u.destination() + southSection)
	u.open()
	disk := &broken{err: fmt.Errorf("%w: no space left on device", spool.ErrDisk)}
	u.daemon.southbound.intake.store = disk
	c := u.connect("device")
	for condition, err := range map[string]error{"spool-failing": disk.err, "spool-full": spool.ErrFull} {
		disk.becomes(err)
		u.send(c, pump("P1", "1"), "CE")
		u.raises(condition, "southbound")
		if len(disk.stored) != 0 {
			t.Fatal("it was stored")
		}
		disk.becomes(nil)
		u.send(c, pump("P1", "1"), "CA")
		if u.raised(condition, "southbound") {
			t.Error("the condition stays")
		}
		disk.stored = nil
	}
	disk.becomes(spool.ErrTooLarge)
	u.send(c, pump("P1", "1"), "CR")
}

func TestWithoutTheSectionNothingListens(t *testing.T) {
	u := newUnit(t)
	u.options.Listen = func(string) (net.Listener, error) {
		t.Error("it listens")
		return nil, errors.New("no")
	}
	u.configure(u.destination(), onePort(1))
	u.start()
	u.bedside.say(t, "/dev/bed1", "HR 60")
	u.delivered(1)
	if u.daemon.Report().Southbound != nil {
		t.Error("it is in the status")
	}
}

func TestAPortThatIsTakenIsAConditionAndTriedAgain(t *testing.T) {
	u := newUnit(t)
	taken := make(chan struct{})
	u.options.Listen = func(string) (net.Listener, error) {
		select {
		case <-taken:
			return net.Listen("tcp", "127.0.0.1:0")
		default:
			return nil, errors.New("listen tcp 127.0.0.1:2575: bind: address already in use")
		}
	}
	u.configure(u.destination() + southSection)
	u.start()
	u.raises("southbound-closed", "")
	close(taken)
	u.opened()
	if u.raised("southbound-closed", "") {
		t.Error("the condition stays")
	}
}

func TestReloadOfTheServerForDevices(t *testing.T) {
	u := newUnit(t)
	u.configure(u.destination() + southSection)
	u.open()
	c := u.connect("device")
	u.send(c, pump("P1", "1"), "CA")

	// Nothing changes: the connection stays.
	if err := u.daemon.Reload(); err != nil {
		t.Fatal(err)
	}
	u.send(c, pump("P2", "1"), "CA")

	// The device is taken off the list: it is out, and stays out.
	u.configure(u.destination() + strings.Replace(southSection, "cd-ef", "cd-00", 1))
	if err := u.daemon.Reload(); err != nil {
		t.Fatal(err)
	}
	u.opened()
	if _, err := c.Exchange(t.Context(), []byte(pump("P3", "1"))); err == nil {
		t.Error("a device that was taken off the list still delivers")
	}
	if r := u.daemon.Report().Southbound; r.Messages != 2 || r.Accepted != 1 {
		t.Errorf("counters fell: %+v", r)
	}
	if d, err := u.device("device"); err == nil {
		if _, err := d.Exchange(t.Context(), []byte(pump("P3", "1"))); err == nil {
			t.Error("it gets in")
		}
		d.Close()
	}

	// A faulty file changes nothing.
	u.configure(u.destination() + strings.Replace(southSection, "ecc-root.crl", "none.crl", 1))
	if err := u.daemon.Reload(); err == nil || !strings.Contains(err.Error(), "none.crl does not exist") {
		t.Errorf("%v", err)
	}
	u.opened()

	// The section is gone.
	u.configure(u.destination(), onePort(1))
	if err := u.daemon.Reload(); err != nil {
		t.Fatal(err)
	}
	if u.daemon.Report().Southbound != nil {
		t.Error("it is in the status")
	}
	if _, err := net.Dial("tcp", u.address); err == nil {
		t.Error("it still listens")
	}
}

func TestA10_OurOwnStaplesAndTheirTroublesAreShown(t *testing.T) {
	u := newUnit(t)
	if err := u.ocsp.Set("platform", responder.HTTP500); err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	offset := time.Duration(0)
	u.options.Now = func() time.Time {
		mu.Lock()
		defer mu.Unlock()
		return time.Now().Add(offset)
	}
	u.configure(u.destination() + southSection)
	u.start()
	u.raises("responder-unreachable", "ocsp.test")
	mu.Lock()
	offset = time.Minute
	mu.Unlock()
	u.raises("staples-missing", pki.DefaultPlatform)
	if _, err := os.Stat(filepath.Join(u.dir, "state", CacheDir)); err != nil {
		t.Error(err)
	}
}

func TestAnInstalledCRLIsHeldToItsIssuer(t *testing.T) {
	u := newUnit(t)
	foreign, err := u.pki.Find("ecc-foreign-root")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(u.dir, "pki", "foreign.der"), foreign.CRL, 0o600); err != nil {
		t.Fatal(err)
	}
	u.configure(u.destination() + strings.Replace(southSection, "ecc-root.crl", "foreign.der", 1))
	c, err := u.load()
	if err != nil {
		t.Fatal(err)
	}
	wrong := &ConfigError{}
	if _, err := New(c, u.options); !errors.As(err, &wrong) || !strings.Contains(err.Error(), "foreign.der: the certificate of its issuer") {
		t.Errorf("%v", err)
	}
}

// openssl s_client is a device that this project did not write.
func TestA1_OpenSSLIsADevice(t *testing.T) {
	path, err := exec.LookPath("openssl")
	if err != nil {
		t.Skip("openssl is not installed: ", err)
	}
	u := newUnit(t)
	u.configure(u.destination() + southSection)
	u.open()
	in := func(name string) string { return filepath.Join(u.dir, "pki", name) }
	talk := func(device, message string) (block, said string) {
		cmd := exec.CommandContext(t.Context(), path, "s_client", "-connect", u.address, "-servername", "platform.test", "-verify_hostname", "platform.test", "-CAfile", in("roots.pem"),
			"-verify_return_error", "-nocommands", "-ign_eof", "-status", "-cert", in(device+".pem"), "-key", in(device+".key"), "-cert_chain", in("ecc-issuing.pem"))
		stdin, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		var stderr, text bytes.Buffer
		cmd.Stderr = &stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(stdin, "\x0b"+message+"\x1c\r") // a refused one may be gone already
		r := bufio.NewReader(io.TeeReader(out, &text))
		if _, err := r.ReadBytes(0x0b); err == nil {
			b, _ := r.ReadBytes(0x1c)
			block = string(bytes.TrimSuffix(b, []byte{0x1c}))
			_ = cmd.Process.Kill() // it would wait for more
		}
		_, _ = io.Copy(io.Discard, r)
		_ = stdin.Close()
		_ = cmd.Wait() // its exit status says less than its words
		return block, text.String() + stderr.String()
	}
	block, said := talk("device", pump("S1", "7"))
	a, err := pcd.ParseAck([]byte(block))
	if err != nil || a.Code != "CA" || a.ControlID != "S1" || !strings.Contains(said, "Cert Status: good") {
		t.Fatalf("%+v, %v\n%s\n%s", a, err, said, u.log)
	}
	if got := u.delivered(1); len(got) != 1 || string(got[0].Bytes) != pump("S1", "7") {
		t.Errorf("the platform has %d messages", len(got))
	}
	if block, said := talk("device-revoked", pump("S2", "7")); block != "" || !strings.Contains(said, "certificate revoked") {
		t.Errorf("%q\n%s", block, said)
	}
	u.raises("devices-refused", "")
}

// FuzzReceived: whatever a device sends, the spool takes the entry or the
// device is told never to send it again, and nothing of it is in the reason.
func FuzzReceived(f *testing.F) {
	for _, m := range []string{pump("P1", "1"), "MSH|^~\\&|||||||ORU^R40|1|P|2.6", "MSH|", "", "MSH#^~\\&#\rPID", pump("a|b", "1"), pump("P\\F\\1", "1")} {
		f.Add([]byte(m))
	}
	s, err := spool.Open(filepath.Join(f.TempDir(), "spool.db"), spool.Options{Key: [32]byte{1}, MaxBytes: 1 << 20, MaxAge: time.Hour})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { s.Close() })
	i := newIntake(s, []string{"platform"}, nil, time.Now)
	f.Fuzz(func(t *testing.T, message []byte) {
		err := i.take(t.Context(), strings.Repeat("N", 64), message)
		var never *southbound.RejectError
		if err != nil && !errors.As(err, &never) && !errors.Is(err, spool.ErrFull) {
			t.Fatalf("%q: %v", message, err)
		}
		if never != nil && strings.Contains(never.Reason, "MARK") {
			t.Error(never.Reason)
		}
	})
}
