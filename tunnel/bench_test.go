package tunnel

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/bedside-gateway/gatewayd/internal/sim/pki"
)

// benchServer makes this test binary a tunnel: a process of its own, as its
// peer is. The value is the directory of the PKI, the platform's address and the
// age of verdicts.
const benchServer = "GATEWAY_BENCH_TUNNEL"

// serveForBench runs a tunnel until its input ends. It prints its address.
func serveForBench(settings string, in io.Reader, out io.Writer) error {
	f := strings.Split(settings, ",")
	p, err := pki.Read(f[0])
	if err != nil {
		return err
	}
	device, err := p.Identity("device")
	if err != nil {
		return err
	}
	age, err := time.ParseDuration(f[2])
	if err != nil {
		return err
	}
	s, err := New(Options{Config: Config{
		Platforms: []Platform{{Name: "hospital", Address: pki.DefaultPlatform + ":2575", Connect: f[1], Roots: p.Roots(), Identity: device, VerdictAge: age}},
		Listeners: []Listener{{Name: "icu", Address: "127.0.0.1:0", Networks: []netip.Prefix{loopback}, Allow13: true, MaxSessions: 4000, MaxPerDevice: 4000, Rate: 1e9, Burst: 1e9,
			Routes: []Route{{Platform: "hospital"}}}},
	}})
	if err != nil {
		return err
	}
	if err := s.Listen(); err != nil {
		return err
	}
	fmt.Fprintln(out, s.Status().Listeners[0].Bound)
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		_, _ = io.Copy(io.Discard, in) // whatever ends it, the parent is gone
		cancel()
	}()
	return s.Run(ctx)
}

// A tape is the beginning of a session as it was once: the same bytes pass the
// tunnel again, and cost those who play it nothing.
type tape struct{ hello, answer []byte }

// record has a device and the platform shake hands, and keeps what each says first.
func record(b *testing.B, f *far, version uint16) tape {
	b.Helper()
	id, err := f.Identity("device")
	must(b, err)
	device, gatewayA := net.Pipe()
	gatewayB, platform := net.Pipe()
	var running sync.WaitGroup
	defer running.Wait()
	for _, c := range []net.Conn{device, gatewayA, gatewayB, platform} {
		defer c.Close()
	}
	running.Go(func() {
		_ = tls.Client(device, &tls.Config{ServerName: pki.DefaultPlatform, RootCAs: f.Roots(), Certificates: []tls.Certificate{id}, MinVersion: version, MaxVersion: version}).Handshake()
	})
	running.Go(func() { _ = tls.Server(platform, f.config(face{version: version})).Handshake() })
	t := tape{hello: read(b, gatewayA)}
	_, err = gatewayB.Write(t.hello)
	must(b, err)
	t.answer = read(b, gatewayB)
	return t
}

func read(b *testing.B, c net.Conn) []byte {
	b.Helper()
	buffer := make([]byte, 64<<10)
	n, err := c.Read(buffer)
	must(b, err)
	return buffer[:n]
}

// A hall is the platform of the benchmark: it plays the tapes, does real
// handshakes with the gate, and otherwise swallows what it is sent, which the
// kernel throws away uncopied (tcp(7), MSG_TRUNC).
type hall struct {
	*far
	tapes    []tape
	listener net.Listener
	running  sync.WaitGroup
	swallows atomic.Int64 // bytes
}

func newHall(b *testing.B, f *far, tapes ...tape) *hall {
	b.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(b, err)
	h := &hall{far: f, tapes: tapes, listener: l}
	h.running.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			h.running.Go(func() { h.serve(c.(*net.TCPConn)) })
		}
	})
	b.Cleanup(func() {
		l.Close()
		h.running.Wait()
	})
	return h
}

func (h *hall) serve(c *net.TCPConn) {
	defer c.Close()
	hello := make([]byte, 4<<10)
	n, err := c.Read(hello)
	if err != nil {
		return
	}
	for _, t := range h.tapes {
		if bytes.Equal(hello[:n], t.hello) {
			if _, err := c.Write(t.answer); err == nil {
				h.swallow(c)
			}
			return
		}
	}
	secure := tls.Server(buffered{c, io.MultiReader(bytes.NewReader(hello[:n]), c)}, h.config(face{}))
	_, _ = io.Copy(secure, secure)
}

func (h *hall) swallow(c *net.TCPConn) {
	raw, err := c.SyscallConn()
	if err != nil {
		return
	}
	room := make([]byte, 1<<20)
	for {
		var n int
		failed := raw.Read(func(fd uintptr) bool {
			n, _, err = unix.Recvfrom(int(fd), room, unix.MSG_TRUNC|unix.MSG_DONTWAIT)
			return err != unix.EAGAIN
		})
		if failed != nil || err != nil || n == 0 {
			return
		}
		h.swallows.Add(int64(n))
	}
}

// A peer is one that carries sessions, in a process of its own.
type peer struct {
	name    string
	pid     int
	address string
	spent   time.Duration // by the load, waiting for it
	began   time.Duration // CPU time when the loop began
}

// startTunnel sets the garbage collector as the firmware does.
func startTunnel(b *testing.B, name, dir, platform string, age time.Duration) *peer {
	b.Helper()
	self, err := os.Executable()
	must(b, err)
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), "GOGC=50", fmt.Sprintf("%s=%s,%s,%v", benchServer, dir, platform, age))
	var said strings.Builder
	cmd.Stderr = &said
	in, err := cmd.StdinPipe()
	must(b, err)
	out, err := cmd.StdoutPipe()
	must(b, err)
	must(b, cmd.Start())
	b.Cleanup(func() {
		_ = in.Close()
		_ = cmd.Wait()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		b.Fatalf("the tunnel did not start: %v\n%s", err, &said)
	}
	return &peer{name: name, pid: cmd.Process.Pid, address: strings.TrimSpace(line)}
}

func startPeerHAProxy(b *testing.B, name, platform string, lines ...string) *peer {
	b.Helper()
	program, err := exec.LookPath("haproxy")
	if err != nil {
		b.Skip("there is nothing to compare with, install haproxy: ", err)
	}
	p := &peer{name: name}
	p.address, p.pid = startHAProxy(b, program, "mode tcp", "127.0.0.1:%d", append(lines, "server s "+platform)...)
	return p
}

// cpu is what the process has used, user and system (proc(5), /proc/PID/stat).
func (p *peer) cpu(b *testing.B) time.Duration {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.pid))
	must(b, err)
	_, rest, _ := strings.Cut(string(text), ") ") // behind the name, from field 3 on
	var ticks int64
	for _, f := range strings.Fields(rest)[11:13] {
		n, err := strconv.ParseInt(f, 10, 64)
		must(b, err)
		ticks += n
	}
	const perSecond = 100 // USER_HZ is this on every platform of Linux
	return time.Duration(ticks) * time.Second / perSecond
}

// rss is the memory of the process in bytes.
func (p *peer) rss(b *testing.B) float64 {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.pid))
	must(b, err)
	_, rest, _ := strings.Cut(string(text), "VmRSS:")
	n, err := strconv.ParseFloat(strings.Fields(rest)[0], 64)
	must(b, err)
	return n * 1024
}

// play begins a session from a tape.
func play(address string, t tape) (*net.TCPConn, error) {
	raw, err := net.Dial("tcp", address)
	if err != nil {
		return nil, err
	}
	c := raw.(*net.TCPConn)
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return nil, err
	}
	if _, err := c.Write(t.hello); err != nil {
		return nil, err
	}
	got := make([]byte, len(t.answer))
	if _, err := io.ReadFull(c, got); err != nil {
		return nil, fmt.Errorf("%s after %d bytes", err, len(got))
	}
	if !bytes.Equal(got, t.answer) {
		return nil, errors.New("something else came back")
	}
	return c, nil
}

// end closes a session and waits until the other side has.
func end(c *net.TCPConn) error {
	defer c.Close()
	if err := c.CloseWrite(); err != nil {
		return err
	}
	if n, err := c.Read(make([]byte, 1)); n > 0 || !errors.Is(err, io.EOF) {
		return fmt.Errorf("not ended in good order: %d bytes, %w", n, err)
	}
	return nil
}

type bench struct {
	*far
	hall  *hall
	dir   string
	tapes map[uint16]tape
}

func newBench(b *testing.B) *bench {
	b.Helper()
	f := newFar(b)
	dir := b.TempDir()
	must(b, f.Write(dir))
	x := &bench{far: f, dir: dir, tapes: map[uint16]tape{}}
	for _, v := range versions {
		x.tapes[v] = record(b, f, v)
	}
	x.hall = newHall(b, f, x.tapes[tls.VersionTLS12], x.tapes[tls.VersionTLS13])
	return x
}

func (x *bench) peers(b *testing.B) []*peer {
	b.Helper()
	at := x.hall.listener.Addr().String()
	return []*peer{
		startTunnel(b, "tunnel", x.dir, at, time.Hour),
		startPeerHAProxy(b, "haproxy", at),
		startPeerHAProxy(b, "haproxy-splice", at, "option splice-request", "option splice-response"),
	}
}

// BenchmarkThroughput is bytes from devices to the platform beside HAProxy in
// tcp mode, as it comes and told to splice always, in turns. The load is one
// process that writes from memory; what arrives is thrown away by the kernel.
// x-... is ours to theirs.
func BenchmarkThroughput(b *testing.B) {
	x := newBench(b)
	for _, streams := range []int{1, 8} {
		b.Run(fmt.Sprintf("%d_sessions", streams), func(b *testing.B) {
			all := x.peers(b)
			conns := map[*peer][]*net.TCPConn{}
			for _, p := range all {
				for range streams {
					c, err := play(p.address, x.tapes[tls.VersionTLS13])
					must(b, err)
					must(b, c.SetDeadline(time.Time{}))
					conns[p] = append(conns[p], c)
				}
				p.began = p.cpu(b)
			}
			const each = 512 << 20 // bytes in a turn, of all sessions
			data := make([]byte, 256<<10)
			n := 0
			for b.Loop() {
				for _, p := range all {
					before, began := x.hall.swallows.Load(), time.Now()
					var g errgroup.Group
					for _, c := range conns[p] {
						g.Go(func() error {
							for sent := 0; sent < each/streams; sent += len(data) {
								if _, err := c.Write(data); err != nil {
									return err
								}
							}
							return nil
						})
					}
					if err := g.Wait(); err != nil {
						b.Fatalf("%s: %v", p.name, err)
					}
					for x.hall.swallows.Load()-before < each {
						runtime.Gosched()
					}
					p.spent += time.Since(began)
				}
				n++
			}
			gb := float64(n) * each / 1e9
			rate := func(p *peer) float64 { return gb / p.spent.Seconds() }
			cpu := func(p *peer) float64 { return (p.cpu(b) - p.began).Seconds() / gb }
			b.ReportMetric(0, "ns/op")
			for i, p := range all {
				b.ReportMetric(rate(p), "GB/s-"+p.name)
				b.ReportMetric(cpu(p), "cpu-s/GB-"+p.name)
				if i > 0 {
					b.ReportMetric(rate(all[0])/rate(p), "x-rate-"+p.name)
					b.ReportMetric(cpu(all[0])/cpu(p), "x-cpu-"+p.name)
				}
			}
			for _, p := range all {
				for _, c := range conns[p] {
					must(b, end(c))
				}
			}
		})
	}
}

// BenchmarkNewSessions is sessions from their first byte to their end, eight at
// a time, with the gate's verdict reused: what the tunnel does for each, its
// inspector included, beside HAProxy, which only connects.
func BenchmarkNewSessions(b *testing.B) {
	x := newBench(b)
	for _, version := range versions {
		b.Run(strings.ReplaceAll(tls.VersionName(version), " ", ""), func(b *testing.B) {
			all := x.peers(b)
			for _, p := range all {
				c, err := play(p.address, x.tapes[version])
				must(b, err)
				must(b, end(c))
				p.began = p.cpu(b)
			}
			const batch = 200
			n := 0
			for b.Loop() {
				for _, p := range all {
					began := time.Now()
					var g errgroup.Group
					g.SetLimit(8)
					for range batch {
						g.Go(func() error {
							c, err := play(p.address, x.tapes[version])
							if err != nil {
								return err
							}
							return end(c)
						})
					}
					if err := g.Wait(); err != nil {
						b.Fatalf("%s: %v", p.name, err)
					}
					p.spent += time.Since(began)
				}
				n += batch
			}
			rate := func(p *peer) float64 { return float64(n) / p.spent.Seconds() }
			b.ReportMetric(0, "ns/op")
			for i, p := range all {
				b.ReportMetric(rate(p), "/s-"+p.name)
				b.ReportMetric(float64((p.cpu(b)-p.began).Microseconds())/float64(n), "µs-cpu-"+p.name)
				if i > 0 {
					b.ReportMetric(rate(all[0])/rate(p), "x-rate-"+p.name)
				}
			}
		})
	}
}

// BenchmarkMemory is the resident memory with so many open sessions over each
// of which a megabyte has come, after them and before.
func BenchmarkMemory(b *testing.B) {
	x := newBench(b)
	const open = 500
	for b.Loop() {
		all := x.peers(b)
		for _, p := range all {
			before := p.rss(b)
			var conns []*net.TCPConn
			data := make([]byte, 1<<20)
			for range open {
				c, err := play(p.address, x.tapes[tls.VersionTLS13])
				must(b, err)
				_, err = c.Write(data)
				must(b, err)
				conns = append(conns, c)
			}
			b.ReportMetric(before/1e6, "MB-before-"+p.name)
			b.ReportMetric(p.rss(b)/1e6, "MB-"+p.name)
			for _, c := range conns {
				must(b, end(c))
			}
		}
	}
	b.ReportMetric(0, "ns/op")
}

// BenchmarkGate is what judging the platform costs a session: real handshakes
// one after the other, with each session judged, and with a verdict that is reused.
func BenchmarkGate(b *testing.B) {
	x := newBench(b)
	at := x.hall.listener.Addr().String()
	judged, reused := startTunnel(b, "judged", x.dir, at, 0), startTunnel(b, "reused", x.dir, at, time.Hour)
	id, err := x.Identity("device")
	must(b, err)
	for _, version := range versions {
		b.Run(strings.ReplaceAll(tls.VersionName(version), " ", ""), func(b *testing.B) {
			config := &tls.Config{ServerName: pki.DefaultPlatform, RootCAs: x.Roots(), Certificates: []tls.Certificate{id}, MinVersion: version, MaxVersion: version}
			shake := func(p *peer) {
				began := time.Now()
				c, err := tls.Dial("tcp", p.address, config)
				must(b, err)
				must(b, c.CloseWrite())
				_, _ = c.Read(make([]byte, 1))
				c.Close()
				p.spent += time.Since(began)
			}
			for _, p := range []*peer{judged, reused} {
				shake(p)
				p.spent, p.began = 0, p.cpu(b)
			}
			n := 0
			for b.Loop() {
				for range 20 {
					shake(judged)
					shake(reused)
				}
				n += 20
			}
			b.ReportMetric(0, "ns/op")
			for _, p := range []*peer{judged, reused} {
				b.ReportMetric(float64(p.spent.Microseconds())/float64(n), "µs-"+p.name)
				b.ReportMetric(float64((p.cpu(b)-p.began).Microseconds())/float64(n), "µs-cpu-"+p.name)
			}
		})
	}
}
