package tunnel

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// The bytes as sections 2.2 and 2.2.x of the specification lay them out.
func TestTheHeaderOfTheProxyProtocol(t *testing.T) {
	const signature = "0d0a0d0a000d0a515549540a"
	for _, test := range []struct{ name, from, to, want string }{
		{"IPv4", "192.0.2.1:56324", "198.51.100.7:2575", signature + "21" + "11" + "000c" + "c0000201" + "c6336407" + "dc04" + "0a0f"},
		{"IPv6", "[2001:db8::1]:1", "[2001:db8::2]:65535", signature + "21" + "21" + "0024" +
			"20010db8000000000000000000000001" + "20010db8000000000000000000000002" + "0001" + "ffff"},
		{"IPv4 in IPv6", "[::ffff:192.0.2.1]:1", "[::ffff:192.0.2.2]:2", signature + "21" + "11" + "000c" + "c0000201" + "c0000202" + "0001" + "0002"},
		{"a zone", "[fe80::1%eth0]:1", "[fe80::2%eth0]:2", signature + "21" + "21" + "0024" +
			"fe800000000000000000000000000001" + "fe800000000000000000000000000002" + "0001" + "0002"},
	} {
		if got := hex.EncodeToString(proxyHeader(netip.MustParseAddrPort(test.from), netip.MustParseAddrPort(test.to))); got != test.want {
			t.Errorf("%s:\n%s, want\n%s", test.name, got, test.want)
		}
	}
	if got := hex.EncodeToString(proxyOwn()); got != signature+"20"+"00"+"0000" {
		t.Error(got)
	}
}

// HAProxy reads the header, of sessions and of the gate, and hands the
// connection on with one of version 1, which tells what it read.
func TestHAProxyReadsOurHeader(t *testing.T) {
	program, err := exec.LookPath("haproxy")
	if err != nil {
		t.Skip("haproxy is not installed: ", err)
	}
	f := newFar(t)
	behind, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	lines := make(chan string, 10)
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := behind.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer c.Close()
				in := bufio.NewReader(c)
				line, err := in.ReadString('\n')
				if err != nil {
					return
				}
				lines <- line
				f.serve(buffered{c, in}, face{})
			})
		}
	})
	t.Cleanup(func() { behind.Close(); serving.Wait() })
	address, _ := startHAProxy(t, program, "mode tcp", "127.0.0.1:%d accept-proxy", "server s "+behind.Addr().String()+" send-proxy")
	w := newWard(t, f, func(o *Options) {
		o.Config.Platforms[0].Connect, o.Config.Platforms[0].ProxyHeader = address, true
	})
	c := w.device(tls.VersionTLS12)
	w.echo(c, "ping")
	gate, session := <-lines, <-lines
	from, to := c.NetConn().LocalAddr().(*net.TCPAddr), c.NetConn().RemoteAddr().(*net.TCPAddr)
	if want := fmt.Sprintf("PROXY TCP4 %s %s %d %d\r\n", from.IP, to.IP, from.Port, to.Port); session != want {
		t.Errorf("it read %q, want %q", session, want)
	}
	// Our own connection has no other behind it: HAProxy tells the real ends.
	if strings.Contains(gate, fmt.Sprint(from.Port)) || !strings.HasPrefix(gate, "PROXY TCP4 127.0.0.1 127.0.0.1 ") {
		t.Errorf("of the gate it read %q", gate)
	}
	c.Close()
}

type buffered struct {
	net.Conn
	in io.Reader
}

func (b buffered) Read(p []byte) (int, error) { return b.in.Read(p) }

// startHAProxy runs it on a free port, and gives the address when it takes connections.
func startHAProxy(t testing.TB, program, mode, bind string, lines ...string) (address string, pid int) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	port := l.Addr().(*net.TCPAddr).Port
	l.Close()
	text := fmt.Sprintf("global\n  maxconn 4000\ndefaults\n  %s\n  timeout connect 10s\n  timeout client 1m\n  timeout server 1m\nlisten l\n  bind "+bind+"\n  %s\n", mode, port, strings.Join(lines, "\n  "))
	file := filepath.Join(t.TempDir(), "haproxy.cfg")
	must(t, os.WriteFile(file, []byte(text), 0o600))
	cmd := exec.Command(program, "-db", "-f", file)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	must(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	address = fmt.Sprintf("127.0.0.1:%d", port)
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if c, err := net.Dial("tcp", address); err == nil {
			c.Close()
			return address, cmd.Process.Pid
		}
		if time.Now().After(end) {
			t.Fatalf("haproxy does not start: %s", &said)
		}
	}
}
