// Package bench measures the whole gateway: its real binary between simulated
// monitors on serial lines and a platform on mutual TLS. make bench runs it.
package bench

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bedside-gateway/gatewayd/drivers/intellivue/sim"
	"github.com/bedside-gateway/gatewayd/internal/sim/pki"
	"github.com/bedside-gateway/gatewayd/internal/sim/platform"
)

// A rig is a platform, a gateway as its own process, and monitors on serial lines.
type rig struct {
	dir      string
	gateway  *exec.Cmd
	platform *platform.Platform
}

func build(b *testing.B, dir string) string {
	b.Helper()
	path := filepath.Join(dir, "gatewayd")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", path, "../../cmd/gatewayd")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		b.Fatalf("%v\n%s", err, out)
	}
	return path
}

// start brings up the rig with a monitor for each of the options, all on
// serial lines, and a destination with the given lines in its configuration.
func start(b *testing.B, destination, portOptions string, monitors []sim.Options, events func(platform.Event)) *rig {
	b.Helper()
	r := &rig{dir: b.TempDir()}
	hospital, err := pki.New(pki.Options{})
	if err != nil {
		b.Fatal(err)
	}
	if err := hospital.Write(r.dir); err != nil {
		b.Fatal(err)
	}
	identity, err := hospital.Identity("platform")
	if err != nil {
		b.Fatal(err)
	}
	if r.platform, err = platform.New(platform.Options{Certificates: []tls.Certificate{identity}, Roots: hospital.Roots(), Hospital: hospital, Events: events}); err != nil {
		b.Fatal(err)
	}
	if err := r.platform.Listen("127.0.0.1:0"); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { r.platform.Close() })

	var config strings.Builder
	fmt.Fprintf(&config, "[gateway]\nname = \"GW_BENCH\"\neui64 = \"0123456789ABCDEF\"\nstate_dir = %q\nstatus_socket = %q\nlog_level = \"error\"\n",
		filepath.Join(r.dir, "state"), filepath.Join(r.dir, "status.sock"))
	fmt.Fprintf(&config, "[identity]\ncertificate = \"device.pem\"\nkey = \"device.key\"\ninsecure_file_key = true\n")
	fmt.Fprintf(&config, "[[destination]]\nname = \"platform\"\naddress = \"platform.test:2575\"\nconnect = %q\ntrust = \"roots.pem\"\n%s\n", r.platform.Address(), destination)
	ctx, cancel := context.WithCancel(context.Background())
	var serving sync.WaitGroup
	b.Cleanup(func() { cancel(); serving.Wait() })
	for i, o := range monitors {
		link := filepath.Join(r.dir, "tty"+strconv.Itoa(i))
		line, err := sim.OpenPTY(link)
		if err != nil {
			b.Fatal(err)
		}
		monitor, err := sim.New(o)
		if err != nil {
			b.Fatal(err)
		}
		serving.Go(func() {
			defer line.Close()
			_ = monitor.ServeStream(ctx, line)
		})
		fmt.Fprintf(&config, "[[port]]\nname = \"bed-%d\"\ndevice = %q\ndriver = \"intellivue\"\n%s\n", i, link, portOptions)
	}
	file := filepath.Join(r.dir, "gatewayd.toml")
	if err := os.WriteFile(file, []byte(config.String()), 0o600); err != nil {
		b.Fatal(err)
	}
	r.gateway = exec.Command(build(b, r.dir), "run", "-c", file)
	var stderr bytes.Buffer
	r.gateway.Stderr = &stderr
	if err := r.gateway.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = r.gateway.Process.Signal(os.Interrupt)
		_ = r.gateway.Wait()
		if b.Failed() {
			b.Logf("gatewayd says:\n%s", stderr.String())
		}
	})
	return r
}

// memory is a figure of /proc/PID/status in bytes, such as VmRSS.
func (r *rig) memory(b *testing.B, name string) float64 {
	b.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", r.gateway.Process.Pid))
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == name+":" {
			kib, err := strconv.ParseFloat(f[1], 64)
			if err != nil {
				b.Fatal(err)
			}
			return kib * 1024
		}
	}
	b.Fatalf("no %s in the status of the process", name)
	return 0
}

// BenchmarkByteToAcknowledgement is the time from the last byte of a heart rate
// on the serial line to the platform's acknowledgement of the message with it:
// decode, translate, make durable, deliver over TLS, acknowledge.
func BenchmarkByteToAcknowledgement(b *testing.B) {
	const heartRate = 0x4182
	var mu sync.Mutex
	sent, acknowledged := []time.Time{}, []time.Time{}
	count := func(list *[]time.Time) {
		mu.Lock()
		*list = append(*list, time.Now())
		mu.Unlock()
	}
	monitor := sim.Options{Seed: 1, Tick: 40 * time.Millisecond, AcceptDelay: time.Millisecond, NBPEvery: -1, OnNumeric: func(n sim.Numeric) {
		if n.Physio == heartRate {
			count(&sent)
		}
	}}
	r := start(b, "interval = \"0s\"\ninclude = [\"MDC_ECG_CARD_BEAT_RATE\"]", "", []sim.Options{monitor}, func(e platform.Event) {
		if e.Kind == platform.Stored {
			count(&acknowledged)
		}
	})
	const warm = 20
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute+time.Duration(b.N)*time.Second)
	defer cancel()
	if err := r.platform.Wait(ctx, func(c platform.Counts) bool { return c.Stored >= warm+b.N }); err != nil {
		b.Fatal(err)
	}
	mu.Lock()
	defer mu.Unlock()
	latencies := make([]time.Duration, b.N)
	for i := range latencies {
		latencies[i] = acknowledged[warm+i].Sub(sent[warm+i])
	}
	slices.Sort(latencies)
	at := func(share float64) float64 {
		return float64(latencies[int(share*float64(len(latencies)-1))].Microseconds()) / 1000
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(at(0.50), "ms-p50")
	b.ReportMetric(at(0.99), "ms-p99")
}

// BenchmarkEightPorts is the memory of the daemon with eight monitors live,
// their waves delivered as well.
func BenchmarkEightPorts(b *testing.B) {
	monitors := make([]sim.Options, 8)
	for i := range monitors {
		monitors[i] = sim.Options{Seed: uint64(i), AcceptDelay: time.Millisecond, NBPEvery: 5 * time.Second, MAC: [6]byte{0, 9, 0xfb, 0, 0, byte(i + 1)}}
	}
	r := start(b, "interval = \"1s\"\nwaveforms = true", "[port.options]\nwaves = \"on\"", monitors, nil)
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	if err := r.platform.Wait(ctx, func(c platform.Counts) bool { return c.Stored >= 8*20 }); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(r.memory(b, "VmRSS")/(1<<20), "MiB-RSS")
	b.ReportMetric(r.memory(b, "VmHWM")/(1<<20), "MiB-peak")
}
