package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/bedside-gateway/gatewayd/drivers"
	"github.com/bedside-gateway/gatewayd/internal/config"
	"github.com/bedside-gateway/gatewayd/internal/sim/pki"
	"github.com/bedside-gateway/gatewayd/internal/status"
	"github.com/bedside-gateway/gatewayd/keystore/keyfile"
	"github.com/bedside-gateway/gatewayd/spool"
	"github.com/bedside-gateway/gatewayd/tlsoverlay/overlaytest"
)

func TestMain(m *testing.M) {
	overlaytest.Require()
	goleak.VerifyTestMain(m)
}

// A house is a gateway of a test with everything around it.
type house struct {
	t       *testing.T
	dir     string
	bedside *bedside
	log     *record
	told    *record // what systemd is told
	pki     *pki.PKI
	options Options

	daemon *Daemon
	stop   context.CancelFunc
	ended  chan error
}

// record is a writer that can be read while it is written.
type record struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (r *record) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.b.Write(p)
}

func (r *record) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.b.String()
}

var keys = sync.OnceValues(func() (*pki.PKI, error) { return pki.New(pki.Options{}) })

func newHouse(t *testing.T) *house {
	t.Helper()
	return newHouseOf(t, keys)
}

func newHouseOf(t *testing.T, keys func() (*pki.PKI, error)) *house {
	t.Helper()
	t.Parallel()
	known, err := drivers.NewRegistry(words{})
	if err != nil {
		t.Fatal(err)
	}
	h := &house{t: t, dir: t.TempDir(), bedside: newBedside(), log: &record{}, told: &record{}}
	if h.pki, err = keys(); err != nil {
		t.Fatal(err)
	}
	if err := h.pki.Write(filepath.Join(h.dir, "pki")); err != nil {
		t.Fatal(err)
	}
	h.options = Options{Drivers: known, Load: h.load, Log: slog.New(slog.NewTextHandler(h.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		FileKey: keyfile.Load,
		Build:   status.Build{Version: "test"}, Period: 20 * time.Millisecond, Grace: 5 * time.Second, Open: h.bedside.open,
		Notify: func(s string) { fmt.Fprintln(h.told, s) },
		Timing: drivers.Timing{Quiet: -1, BackoffMin: time.Millisecond, BackoffMax: 10 * time.Millisecond, OpenMax: 10 * time.Millisecond}}
	return h
}

// configure writes the configuration: two ports unless more is given instead.
func (h *house) configure(destination string, ports ...string) {
	h.t.Helper()
	text := fmt.Sprintf("[gateway]\nname = \"GW\"\neui64 = \"0123456789ABCDEF\"\nstate_dir = \"state\"\nstatus_socket = \"s.sock\"\n"+
		"[identity]\ncertificate = \"pki/device.pem\"\nkey = \"pki/device.key\"\ninsecure_file_key = true\n%s", destination)
	for _, p := range ports {
		text += "[[port]]\n" + p + "\n"
	}
	if err := os.WriteFile(filepath.Join(h.dir, "g.toml"), []byte(text), 0o600); err != nil {
		h.t.Fatal(err)
	}
}

const nowhere = "[[destination]]\nname = \"platform\"\naddress = \"platform.test:2575\"\nconnect = \"127.0.0.1:1\"\ntrust = \"pki/roots.pem\"\ninterval = \"0s\"\nconnect_timeout = \"1s\"\n"

func onePort(n int) string {
	return fmt.Sprintf("name = \"bed-%d\"\ndevice = \"/dev/bed%d\"\ndriver = \"words\"\nlocation.bed = \"%d\"", n, n, n)
}

func (h *house) load() (*config.Config, error) {
	return config.Load(filepath.Join(h.dir, "g.toml"), config.Options{Drivers: h.options.Drivers, Identity: func(c, k string) error {
		_, err := keyfile.Load(c, k)
		return err
	}})
}

// start runs the gateway until end or the end of the test.
func (h *house) start() {
	h.t.Helper()
	c, err := h.load()
	if err != nil {
		h.t.Fatal(err)
	}
	if h.daemon, err = New(c, h.options); err != nil {
		h.t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	h.stop, h.ended = stop, make(chan error, 1)
	go func() { h.ended <- h.daemon.Run(ctx) }()
	h.t.Cleanup(h.end)
}

func (h *house) end() {
	if h.stop == nil {
		return
	}
	h.stop()
	h.stop = nil
	select {
	case err := <-h.ended:
		if err != nil {
			h.t.Error(err)
		}
	case <-time.After(time.Minute):
		h.t.Fatal("the gateway does not end")
	}
}

// stored opens the spool of a gateway that has ended and gives its messages.
func (h *house) stored() (out []status.Entry) {
	h.t.Helper()
	key, err := SpoolKey{Dir: filepath.Join(h.dir, "state")}.Read(h.t.Context())
	if err != nil {
		h.t.Fatal(err)
	}
	s, err := spool.ReadOnly(filepath.Join(h.dir, "state", SpoolFile), key)
	if err != nil {
		h.t.Fatal(err)
	}
	defer s.Close()
	if err := ListSpool(s, "", func(e status.Entry) error {
		full, err := ShowSpool(s, e.ID)
		out = append(out, full)
		return err
	}); err != nil {
		h.t.Fatal(err)
	}
	return out
}

func (h *house) waiting(n int) {
	h.t.Helper()
	eventually(h.t, fmt.Sprint(n, " messages in the spool"), func() bool { return h.daemon.Report().Spool.Messages >= n })
}

func (h *house) raised(name, subject string) bool {
	return slices.ContainsFunc(h.daemon.Report().Conditions, func(c status.Condition) bool {
		return c.Name == name && c.Subject == subject && c.Text != "" && c.Next != ""
	})
}

func (h *house) raises(name, subject string) {
	h.t.Helper()
	eventually(h.t, "condition "+name+" "+subject, func() bool { return h.raised(name, subject) })
}

func TestWhatEachDeviceSaysComesIntoTheSpoolInOrder(t *testing.T) {
	h := newHouse(t)
	h.configure(nowhere, onePort(1), onePort(2))
	h.start()
	for i := range 20 {
		h.bedside.say(t, "/dev/bed1", "HR %d", 100+i)
		h.bedside.say(t, "/dev/bed2", "HR %d", 200+i)
	}
	h.waiting(40)
	h.end()
	got := map[string][]string{}
	for _, e := range h.stored() {
		got[e.Device] = append(got[e.Device], valueOf(t, e.Message))
	}
	for port, first := range map[string]int{"bed-1": 100, "bed-2": 200} {
		for i := range 20 {
			if want := fmt.Sprint(first + i); len(got[port]) != 20 || got[port][i] != want {
				t.Fatalf("%s: %v, want 20 from %s", port, got[port], want)
			}
		}
	}
}

// valueOf is OBX-5 of the first number of a message.
func valueOf(t *testing.T, message []byte) string {
	t.Helper()
	for segment := range strings.SplitSeq(string(message), "\r") {
		if f := strings.Split(segment, "|"); len(f) > 5 && f[0] == "OBX" && f[2] == "NM" {
			return f[5]
		}
	}
	t.Fatalf("no number in %q", message)
	return ""
}

func TestTheEndStoresWhatIsGatheredAndNotDue(t *testing.T) {
	h := newHouse(t)
	h.configure(strings.Replace(nowhere, `"0s"`, `"1h"`, 1), onePort(1))
	h.start()
	h.bedside.say(t, "/dev/bed1", "HR 71")
	h.bedside.say(t, "/dev/bed1", "HR 72")
	eventually(t, "both values are taken", func() bool { return h.daemon.Report().Ports[0].Observations == 2 })
	h.end()
	got := h.stored()
	if len(got) != 1 || valueOf(t, got[0].Message) != "72" {
		t.Errorf("stored %d messages, want one with the latest value", len(got))
	}
}

func TestTheGatewayStartsWithoutItsMonitorAndFindsItAfterAReplug(t *testing.T) {
	h := newHouse(t)
	h.configure(nowhere, onePort(1), onePort(2))
	h.bedside.unplug("/dev/bed1")
	h.start()
	h.raises("port-fault", "bed-1")
	h.bedside.say(t, "/dev/bed2", "HR 60") // the other port does not care
	h.bedside.plug("/dev/bed1")
	h.bedside.say(t, "/dev/bed1", "HR 70")
	h.waiting(2)
	eventually(t, "the condition goes", func() bool { return !h.raised("port-fault", "bed-1") })
	h.bedside.unplug("/dev/bed1")
	h.raises("port-fault", "bed-1")
	h.bedside.plug("/dev/bed1")
	h.bedside.say(t, "/dev/bed1", "HR 71")
	h.waiting(3)
}

func TestAPanicOfADriverStaysAtItsPort(t *testing.T) {
	h := newHouse(t)
	h.configure(nowhere, onePort(1), onePort(2))
	h.start()
	h.bedside.say(t, "/dev/bed1", "PANIC")
	h.raises("program-fault", "bed-1")
	h.bedside.say(t, "/dev/bed2", "HR 60")
	h.bedside.say(t, "/dev/bed1", "HR 61")
	h.waiting(2)
	if h.raised("program-fault", "bed-2") {
		t.Error("the fault is told of the other port as well")
	}
}

func TestDemonstrationDataAreRefusedUnlessThePortAllowsThem(t *testing.T) {
	h := newHouse(t)
	h.configure(nowhere, onePort(1), onePort(2)+"\nallow_simulated = true")
	h.start()
	h.bedside.say(t, "/dev/bed1", "DEMO 60")
	h.bedside.say(t, "/dev/bed2", "DEMO 61")
	h.waiting(1)
	h.raises("simulated-data-refused", "bed-1")
	h.raises("simulated-data-allowed", "bed-2")
	h.end()
	if got := h.stored(); len(got) != 1 || got[0].Device != "bed-2" {
		t.Errorf("stored %d messages, want one of bed-2", len(got))
	}
}

func TestADeviceWithoutAnIdentityIsACondition(t *testing.T) {
	h := newHouse(t)
	h.options.Drivers, _ = drivers.NewRegistry(nameless{})
	h.configure(nowhere, strings.Replace(onePort(1), "words", "nameless", 1))
	h.start()
	h.bedside.say(t, "/dev/bed1", "HR 60")
	h.raises("device-unidentified", "bed-1")
}

// nameless is words without an EUI-64.
type nameless struct{ words }

func (nameless) Info() drivers.Info {
	i := words{}.Info()
	i.Name = "nameless"
	return i
}

func (nameless) New(s drivers.Settings, h drivers.Host) (drivers.Machine, error) {
	m, err := words{}.New(s, h)
	m.(*wordMachine).device.ID = 0
	return m, err
}

func TestTheKeyIsShoutedAndTheExitCodeTellsIt(t *testing.T) {
	h := newHouse(t)
	h.configure(nowhere, onePort(1))
	h.start()
	h.raises("development-key", "")
	client := status.NewClient(filepath.Join(h.dir, "s.sock"))
	r, err := client.Report(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if r.Verdict == status.OK || r.Certificate.IsZero() {
		t.Errorf("verdict %v, certificate until %v", r.Verdict, r.Certificate)
	}
	if !strings.Contains(h.log.String(), "DEVELOPMENT KEY IN USE") {
		t.Error("the log does not say it")
	}
}

func TestSystemdIsToldWhenItIsReadyAliveAndEnding(t *testing.T) {
	h := newHouse(t)
	h.configure(nowhere, onePort(1))
	h.start()
	h.bedside.say(t, "/dev/bed1", "HR 60")
	eventually(t, "the state is told", func() bool { return strings.Contains(h.told.String(), "1 of 1 ports live") })
	h.end()
	told := h.told.String()
	if !strings.HasPrefix(told, "READY=1\n") || strings.Count(told, "WATCHDOG=1\n") < 2 || !strings.Contains(told, "STOPPING=1\n") {
		t.Errorf("told %q", told)
	}
}

func TestTheWatchdogStarvesWhenALockIsNeverLetGo(t *testing.T) {
	h := newHouse(t)
	h.configure(nowhere, onePort(1))
	h.start()
	beats := func() int { return strings.Count(h.told.String(), "WATCHDOG=1") }
	eventually(t, "it is alive", func() bool { return beats() > 0 && h.daemon.Live() == nil })
	l := (*h.daemon.ports[0].lanes.Load())[0]
	l.mu.Lock()
	eventually(t, "it is known not to be alive", func() bool { return h.daemon.Live() != nil })
	before := beats()
	time.Sleep(5 * h.options.Period) // that nothing happens shows only in time
	if after := beats(); after != before {
		t.Errorf("%d beats without a look at the lane", after-before)
	}
	l.mu.Unlock()
	eventually(t, "it is alive again", func() bool { return beats() > before && h.daemon.Live() == nil })
}

func TestReloadChangesWhatChangedAndLeavesTheRestRunning(t *testing.T) {
	h := newHouse(t)
	h.configure(nowhere, onePort(1), onePort(2))
	h.start()
	h.bedside.say(t, "/dev/bed1", "HR 60")
	h.bedside.say(t, "/dev/bed2", "HR 61")
	h.waiting(2)
	opened := func(port string) (n uint64) {
		for _, p := range h.daemon.Report().Ports {
			if p.Name == port {
				n = p.Opened
			}
		}
		return n
	}

	h.configure(nowhere+strings.Replace(nowhere, `"platform"`, `"second"`, 1), onePort(1)+"\nlocation.room = \"7\"", onePort(3))
	if err := h.daemon.Reload(); err != nil {
		t.Fatal(err)
	}
	h.bedside.say(t, "/dev/bed3", "HR 63")
	h.bedside.say(t, "/dev/bed1", "HR 64")
	h.waiting(6) // two destinations now
	if n := opened("bed-1"); n != 1 {
		t.Errorf("a port whose session did not change was opened %d times", n)
	}
	r := h.daemon.Report()
	if len(r.Ports) != 2 || len(r.Destinations) != 2 || r.Reloads["ok"] != 1 {
		t.Errorf("%d ports, %d destinations, reloads %v", len(r.Ports), len(r.Destinations), r.Reloads)
	}
	eventually(t, "bed-1 counts its three messages", func() bool { return h.daemon.Report().Ports[0].Messages == 3 })
	h.end()
	for _, e := range h.stored() {
		if room := strings.Contains(string(e.Message), "^7^1"); room != (valueOf(t, e.Message) == "64") {
			t.Errorf("value %s, new room %v", valueOf(t, e.Message), room)
		}
	}
}

func TestAReloadWithAFaultChangesNothingAndIsACondition(t *testing.T) {
	h := newHouse(t)
	h.configure(nowhere, onePort(1))
	h.start()
	h.configure(nowhere, onePort(1)+"\nnonsense = 1")
	if err := h.daemon.Reload(); err == nil || !strings.Contains(err.Error(), "nonsense") {
		t.Fatalf("%v", err)
	}
	h.raises("reload-refused", "")
	h.bedside.say(t, "/dev/bed1", "HR 60")
	h.waiting(1)
	h.configure(strings.Replace(nowhere, "[[dest", "[spool]\nmax_age = \"1h\"\n[[dest", 1), onePort(1))
	if err := h.daemon.Reload(); err != nil {
		t.Fatal(err)
	}
	h.raises("restart-needed", "spool.max_age")
	if h.raised("reload-refused", "") {
		t.Error("the condition stays after a good reload")
	}
}

func TestMessagesOfADestinationThatWentAreKeptAndNamed(t *testing.T) {
	h := newHouse(t)
	h.configure(nowhere, onePort(1))
	h.start()
	h.bedside.say(t, "/dev/bed1", "HR 60")
	h.waiting(1)
	h.configure(strings.Replace(nowhere, `"platform"`, `"other"`, 1), onePort(1))
	if err := h.daemon.Reload(); err != nil {
		t.Fatal(err)
	}
	h.raises("queue-without-destination", "platform")
}

func TestADamagedSpoolIsMovedAsideAndTheGatewayGoesOn(t *testing.T) {
	h := newHouse(t)
	h.configure(nowhere, onePort(1))
	h.start()
	h.bedside.say(t, "/dev/bed1", "HR 60")
	h.waiting(1)
	h.end()
	file := filepath.Join(h.dir, "state", SpoolFile)
	if err := os.WriteFile(file, bytes.Repeat([]byte("no spool"), 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	h.start()
	h.raises("spool-moved-aside", "")
	h.bedside.say(t, "/dev/bed1", "HR 61")
	h.waiting(1)
	if err := os.Remove(h.daemon.Report().Spool.MovedAside); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the condition goes with the file", func() bool { return !h.raised("spool-moved-aside", "") })
}

func TestTheKeyOfTheSpoolIsMadeOnceAndGuarded(t *testing.T) {
	dir := t.TempDir()
	keeper, random := SpoolKey{Dir: dir}, bytes.NewReader(bytes.Repeat([]byte{7}, 32))
	key, err := keeper.open(t.Context(), random)
	if err != nil || key[0] != 7 {
		t.Fatalf("%v %v", key, err)
	}
	if again, err := keeper.open(t.Context(), random); err != nil || again != key {
		t.Errorf("a second start has another key: %v", err)
	}
	path := filepath.Join(dir, KeyFile)
	if info, _ := os.Stat(path); info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", info.Mode())
	}
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := keeper.open(t.Context(), random); !errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("a key that others may read: %v", err)
	}
	if err := os.WriteFile(path, []byte("short"), 0o600); err != nil {
		t.Fatal(err)
	}
	os.Chmod(path, 0o600)
	if _, err := keeper.open(t.Context(), random); err == nil || !strings.Contains(err.Error(), "has 5 bytes and not 32") {
		t.Errorf("a short key: %v", err)
	}
	os.Remove(path)
	os.WriteFile(filepath.Join(dir, SpoolFile), nil, 0o600)
	if _, err := keeper.open(t.Context(), random); err == nil || !strings.Contains(err.Error(), "bring the key back, or") {
		t.Errorf("a spool without its key: %v", err)
	}
}

func TestTwoGatewaysOnOneSpoolAreRefused(t *testing.T) {
	h := newHouse(t)
	h.configure(nowhere, onePort(1))
	h.start()
	c, err := h.load()
	if err != nil {
		t.Fatal(err)
	}
	second := h.options
	second.LockTimeout = 20 * time.Millisecond
	if _, err := New(c, second); !errors.Is(err, spool.ErrLocked) {
		t.Errorf("%v", err)
	}
	if _, err := status.NewClient(c.Gateway.StatusSocket).Report(t.Context()); err != nil {
		t.Errorf("the first one is gone: %v", err)
	}
}

// broken is a spool on a bad disk.
type broken struct {
	mu     sync.Mutex
	err    error
	stored []spool.Entry
}

func (b *broken) Enqueue(_ context.Context, e spool.Entry) (uint64, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err != nil {
		return 0, b.err
	}
	e.Payload = bytes.Clone(e.Payload)
	b.stored = append(b.stored, e)
	return uint64(len(b.stored)), nil
}

func (b *broken) becomes(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.err = err
}

func TestADiskThatTakesNothingLosesNothingAndNeverHoldsUpTheDevice(t *testing.T) {
	h := newHouse(t)
	h.configure(nowhere, onePort(1))
	h.start()
	disk := &broken{err: fmt.Errorf("%w: no space left on device", spool.ErrDisk)}
	l := (*h.daemon.ports[0].lanes.Load())[0]
	l.mu.Lock()
	l.store = disk
	l.mu.Unlock()
	for i := range 30 {
		h.bedside.say(t, "/dev/bed1", "HR %d", 100+i)
	}
	eventually(t, "all values are taken from the device", func() bool { return h.daemon.Report().Ports[0].Observations == 30 })
	h.raises("spool-failing", "bed-1")
	if r := h.daemon.Report(); r.Verdict != status.Down || r.Spool.Refused == 0 {
		t.Errorf("verdict %v, %d refused writes", r.Verdict, r.Spool.Refused)
	}
	disk.becomes(nil)
	eventually(t, "all messages are stored", func() bool { return h.daemon.Report().Ports[0].Messages == 30 })
	for i, e := range disk.stored {
		if got := valueOf(t, e.Payload); got != fmt.Sprint(100+i) {
			t.Fatalf("message %d has the value %s", i, got)
		}
	}
	if h.raised("spool-failing", "bed-1") {
		t.Error("the condition stays")
	}
}

func TestAMessageThatTheFullSpoolRefusesIsCountedAndDoesNotHoldUpOthers(t *testing.T) {
	h := newHouse(t)
	h.configure(nowhere, onePort(1))
	h.start()
	disk := &broken{err: spool.ErrFull}
	l := (*h.daemon.ports[0].lanes.Load())[0]
	l.mu.Lock()
	l.store = disk
	l.mu.Unlock()
	h.bedside.say(t, "/dev/bed1", "HR 60")
	h.raises("spool-full", "bed-1")
	disk.becomes(nil)
	h.bedside.say(t, "/dev/bed1", "HR 61")
	eventually(t, "the next message is stored", func() bool { return h.daemon.Report().Ports[0].Messages == 1 })
}

func TestMessagesOfEachShapeAreCheckedOnce(t *testing.T) {
	s := newSampler(slog.New(slog.DiscardHandler))
	message := func(value, name string) []byte {
		return []byte("MSH|^~\\&|GW\rPID|\rOBX|1|NM|" + name + "|1.1.1.1|" + value + "|x\r")
	}
	for _, m := range [][]byte{message("1", "a"), message("2", "a"), message("1", "b")} {
		s.check("bed-1", m)
	}
	findings, shapes := s.counts()
	if shapes != 2 || findings["error"] == 0 {
		t.Errorf("%d shapes, findings %v", shapes, findings)
	}
	once := findings["error"]
	s.check("bed-1", message("3", "b"))
	if again, _ := s.counts(); again["error"] != once {
		t.Error("a known shape was checked again")
	}
}
