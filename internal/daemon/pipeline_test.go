package daemon

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/bedside-gateway/gatewayd/drivers"
	"github.com/bedside-gateway/gatewayd/drivers/intellivue"
	"github.com/bedside-gateway/gatewayd/drivers/intellivue/sim"
	"github.com/bedside-gateway/gatewayd/drivers/port"
	"github.com/bedside-gateway/gatewayd/internal/sim/platform"
)

// Marks in everything that identifies a patient, for the search afterwards.
const mark = "MARK"

// ward is two simulated monitors, one on a line and one on the network, and a platform.
type ward struct {
	*house
	platform *platform.Platform
	line     *sim.Monitor
	lan      *sim.Monitor
	network  net.PacketConn
	serve    context.Context
}

func newWard(t *testing.T) *ward {
	t.Helper()
	w := &ward{house: newHouse(t)}
	known, err := drivers.NewRegistry(intellivue.New())
	if err != nil {
		t.Fatal(err)
	}
	w.options.Drivers, w.options.Open = known, w.open
	w.options.Timing.Linger = time.Millisecond
	w.line = w.monitor(1)
	w.lan = w.monitor(2)
	ctx, stop := context.WithCancel(context.Background())
	w.serve = ctx
	if w.network, err = net.ListenPacket("udp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- w.lan.ServePacket(ctx, w.network) }()
	t.Cleanup(func() {
		stop()
		<-served
	})
	w.openPlatform()
	return w
}

func (w *ward) monitor(n byte) *sim.Monitor {
	w.t.Helper()
	m, err := sim.New(sim.Options{Seed: uint64(n), Tick: 64 * time.Millisecond, AcceptDelay: time.Millisecond, Latency: time.Millisecond,
		MAC: [6]byte{0, 9, 0xFB, 0, 0, n}, BedLabel: mark + "BED", NBPEvery: 700 * time.Millisecond, RebootTime: 10 * time.Millisecond,
		EventRetry: 50 * time.Millisecond,
		Patient:    &sim.Patient{ID: mark + "ID", Given: mark + "GIVEN", Family: mark + "FAMILY"}})
	if err != nil {
		w.t.Fatal(err)
	}
	return m
}

// open gives the line monitor a new cable each time; the network is the real one.
func (w *ward) open(ctx context.Context, s port.Spec, l port.Line) (port.Port, error) {
	if s.Kind != port.Serial {
		return s.Open(ctx, l)
	}
	p, err := w.bedside.open(ctx, s, l)
	if err != nil {
		return nil, err
	}
	w.bedside.mu.Lock()
	far := w.bedside.ends[s.String()]
	w.bedside.mu.Unlock()
	go w.line.ServeStream(w.serve, far)
	return p, nil
}

func (w *ward) openPlatform() {
	w.t.Helper()
	identity, err := w.pki.Identity("platform")
	if err != nil {
		w.t.Fatal(err)
	}
	w.platform, err = platform.New(platform.Options{Certificates: []tls.Certificate{identity}, Roots: w.pki.Roots(), Hospital: w.pki, Strict: true})
	if err != nil {
		w.t.Fatal(err)
	}
	if err := w.platform.Listen("127.0.0.1:0"); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { w.platform.Close() })
	w.configure(fmt.Sprintf("[[destination]]\nname = \"platform\"\naddress = \"platform.test:2575\"\nconnect = %q\ntrust = \"pki/roots.pem\"\ninterval = \"0s\"\n"+
		"ack_timeout = \"2s\"\nconnect_timeout = \"2s\"\n", w.platform.Address()),
		"name = \"bed-1\"\ndevice = \"/dev/bed1\"\ndriver = \"intellivue\"\nlocation.bed = \"1\"",
		fmt.Sprintf("name = \"bed-2\"\ndevice = \"udp://%s\"\ndriver = \"intellivue\"\nlocation.bed = \"2\"", w.network.LocalAddr()))
}

// more waits until the platform has stored n messages more than now.
func (w *ward) more(n int) {
	w.t.Helper()
	want := w.platform.Counts().Stored + n
	ctx, cancel := context.WithTimeout(w.t.Context(), time.Minute)
	defer cancel()
	if err := w.platform.Wait(ctx, func(c platform.Counts) bool { return c.Stored >= want }); err != nil {
		w.t.Fatalf("%d messages more: %v; %+v\n%s", n, err, w.platform.Counts(), w.log)
	}
}

// ask gets a page of the status socket.
func (w *ward) ask(path string) string {
	w.t.Helper()
	c := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(w.dir, "s.sock"))
	}}}
	r, err := c.Get("http://gatewayd" + path)
	if err != nil {
		w.t.Fatal(err)
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	return string(b)
}

// messages is how many messages the ports of the running gateway have stored,
// and how many the platform has accepted over all starts.
func (w *ward) messages() (stored, delivered uint64) {
	r := w.daemon.Report()
	for _, p := range r.Ports {
		stored += p.Messages
	}
	return stored, r.Destinations[0].Delivered
}

// TestB12_FromTheMonitorsToThePlatformAndBack: what the ports made is what the
// platform has, each message once, whatever happened on the way (G1, B12, B13, B16, B18).
func TestB12_FromTheMonitorsToThePlatform(t *testing.T) {
	w := newWard(t)
	w.start()
	w.more(20)
	if d := w.daemon.Report().Destinations[0]; d.TLS == "" || d.Verdicts["good"] < 2 || len(d.Verdicts) != 1 || len(d.Staples) != 2 || !d.Staples[1].After(time.Now()) {
		t.Errorf("of the session it says %q, %v, staples until %v", d.TLS, d.Verdicts, d.Staples) // B18
	}
	var seen strings.Builder // everything that must not name a patient
	look := func() {
		for _, path := range []string{"/status", "/metrics", "/readyz", "/livez", "/spool"} {
			seen.WriteString(w.ask(path))
		}
	}
	look()

	// The platform dies; what is said meanwhile waits and arrives later.
	w.platform.Kill()
	w.waiting(20)
	look()
	if err := w.platform.Restart(); err != nil {
		t.Fatal(err)
	}
	w.more(30)

	// The cable comes out and goes in again; the monitor reboots; SIGHUP.
	w.bedside.unplug("/dev/bed1")
	w.raises("port-fault", "bed-1")
	look()
	w.bedside.plug("/dev/bed1")
	w.lan.Reboot()
	if err := w.daemon.Reload(); err != nil {
		t.Fatal(err)
	}
	w.more(30)

	// The gateway ends with messages waiting and starts again.
	w.platform.Kill()
	w.waiting(5)
	w.end()
	first, _ := w.messages()
	if err := w.platform.Restart(); err != nil {
		t.Fatal(err)
	}
	w.start()
	eventually(t, "both monitors are heard again", func() bool {
		r := w.daemon.Report()
		return r.Ports[0].Messages >= 5 && r.Ports[1].Messages >= 5
	})
	look()

	// The cables come out, and what is there is delivered.
	w.bedside.unplug("/dev/bed1")
	w.lan.Unplug()
	eventually(t, "the spool is empty", func() bool { return w.daemon.Report().Spool.Messages == 0 })
	w.end()
	second, delivered := w.messages()
	left := len(w.stored()) // what the end itself has stored
	c := w.platform.Counts()
	t.Logf("made %d messages, then %d; the platform: %+v", first, second, c)
	if made := first + second; made != delivered+uint64(left) || delivered != uint64(c.Stored) {
		t.Errorf("made %d messages, delivered %d, left %d, the platform has %d", made, delivered, left, c.Stored)
	}
	if c.Repeated+c.Conflicts+c.Rejected+c.Findings+c.Skipped != 0 {
		t.Errorf("the platform complains: %+v", c)
	}
	w.nobodyIsNamed(&seen)
}

// nobodyIsNamed searches everything that is not a message for the marks.
func (w *ward) nobodyIsNamed(seen *strings.Builder) {
	named := false
	for _, m := range w.platform.Messages() {
		named = named || strings.Contains(string(m.Bytes), mark+"FAMILY")
	}
	if !named {
		w.t.Error("the marks did not go through the gateway, so that the search finds nothing in any case")
	}
	seen.WriteString(w.log.String())
	seen.WriteString(w.told.String())
	if i := strings.Index(seen.String(), mark); i >= 0 {
		w.t.Errorf("a patient is named: %q", seen.String()[max(0, i-200):i+50])
	}
}
