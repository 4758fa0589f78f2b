package port

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/creack/pty"
	"go.uber.org/goleak"
)

var line8N1 = Line{Baud: 115200, DataBits: 8, Parity: None, StopBits: 1}

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func openPTY(t *testing.T) (master *os.File, name string) {
	t.Helper()
	master, slave, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	name = slave.Name()
	t.Cleanup(func() { master.Close(); slave.Close() })
	return master, name
}

func mustOpen(t *testing.T, s string, line Line) Port {
	t.Helper()
	spec, err := ParseSpec(s)
	if err != nil {
		t.Fatal(err)
	}
	p, err := spec.Open(context.Background(), line)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

func soon() time.Time { return time.Now().Add(10 * time.Second) }

func TestASerialPortMovesBytesUnchangedBothWays(t *testing.T) {
	master, name := openPTY(t)
	p := mustOpen(t, name, line8N1)
	all := make([]byte, 256) // control characters, too: the line is raw
	for i := range all {
		all[i] = byte(i)
	}
	if n, err := p.Write(all); n != 256 || err != nil {
		t.Fatal(n, err)
	}
	got := make([]byte, 256)
	if _, err := io.ReadFull(master, got); err != nil || string(got) != string(all) {
		t.Fatalf("%v: the device got %x", err, got)
	}
	if _, err := master.Write(all); err != nil {
		t.Fatal(err)
	}
	for n := 0; n < 256; {
		m, err := p.ReadBefore(got[n:], soon())
		if err != nil {
			t.Fatal(err)
		}
		n += m
	}
	if string(got) != string(all) {
		t.Fatalf("the gateway got %x", got)
	}
}

func TestAReadEndsAtItsDeadline(t *testing.T) {
	_, name := openPTY(t)
	p := mustOpen(t, name, line8N1)
	for _, deadline := range []time.Time{time.Now().Add(5 * time.Millisecond), time.Now().Add(-time.Hour)} {
		if n, err := p.ReadBefore(make([]byte, 8), deadline); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("read %d, %v", n, err)
		}
	}
}

func TestCloseEndsAReadAndAWriteThatWait(t *testing.T) {
	_, name := openPTY(t)
	p := mustOpen(t, name, line8N1)
	errs := make(chan error, 2)
	go func() { _, err := p.ReadBefore(make([]byte, 8), time.Now().Add(time.Hour)); errs <- err }()
	go func() {
		var err error
		for err == nil { // nobody reads: the buffer of the line fills
			_, err = p.Write(make([]byte, 1<<20))
		}
		errs <- err
	}()
	time.AfterFunc(20*time.Millisecond, func() { p.Close() })
	for range 2 {
		select {
		case err := <-errs:
			if !errors.Is(err, os.ErrClosed) {
				t.Errorf("ended with %v", err)
			}
		case <-time.After(writeTimeout / 2):
			t.Fatal("Close ended not both")
		}
	}
}

func TestStopReadingLeavesWriting(t *testing.T) {
	master, name := openPTY(t)
	p := mustOpen(t, name, line8N1)
	time.AfterFunc(5*time.Millisecond, p.(ReadStopper).StopReading)
	for range 2 {
		if _, err := p.ReadBefore(make([]byte, 8), time.Now().Add(time.Hour)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal(err)
		}
	}
	if _, err := p.Write([]byte("bye")); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 3)
	if _, err := io.ReadFull(master, got); err != nil || string(got) != "bye" {
		t.Fatal(string(got), err)
	}
}

func TestASerialPortIsForOneProgram(t *testing.T) {
	_, name := openPTY(t)
	p := mustOpen(t, name, line8N1)
	spec := Spec{Path: name}
	_, err := spec.Open(context.Background(), line8N1)
	if err == nil || !strings.Contains(err.Error(), "in use by another program") || !strings.Contains(err.Error(), name) {
		t.Fatalf("opened twice: %v", err)
	}
	p.Close()
	again, err := spec.Open(context.Background(), line8N1)
	if err != nil {
		t.Fatal("a closed port cannot be opened again:", err)
	}
	again.Close()
}

func TestAPulledCableEndsTheRead(t *testing.T) {
	master, slave, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	p := mustOpen(t, slave.Name(), line8N1)
	slave.Close()
	master.Close()
	_, err = p.ReadBefore(make([]byte, 8), soon())
	if err == nil || errors.Is(err, os.ErrDeadlineExceeded) || !strings.Contains(err.Error(), slave.Name()) {
		t.Fatalf("read gave %v", err)
	}
}

func TestAnErrorOfOpeningSaysWhatToDo(t *testing.T) {
	dir := t.TempDir()
	byPath := filepath.Join(dir, "serial", "by-path")
	if err := os.MkdirAll(byPath, 0o755); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	missing := filepath.Join(byPath, "pci-usb-0:2:1.0-port0")
	open := func(path string, line Line) string {
		t.Helper()
		_, err := Spec{Path: path, dev: dir}.Open(context.Background(), line)
		if err == nil {
			t.Fatalf("%s was opened", path)
		}
		return err.Error()
	}
	check := func(err string, words ...string) {
		t.Helper()
		for _, w := range words {
			if !strings.Contains(err, w) {
				t.Errorf("%q does not say %q", err, w)
			}
		}
	}
	check(open(missing, line8N1), missing, "not there", "no USB serial adapter is plugged in")
	for _, n := range []string{"a-0:9:1.0", "pci-usb-0:3:1.0-port0", "b", "c", "d"} {
		if err := os.Symlink("../../file", filepath.Join(byPath, n)); err != nil {
			t.Fatal(err)
		}
	}
	check(open(missing, line8N1), "name one that is there: "+filepath.Join(byPath, "pci-usb-0:3:1.0-port0")+",", "…")
	check(open(file, line8N1), file, "is no serial port")
	check(open(file, Line{Baud: 9600, DataBits: 9, Parity: None, StopBits: 1}), "7 or 8 data bits")
	check(Spec{Path: "/dev/ttyUSB0"}.explain(fs.ErrPermission).Error(), "/dev/ttyUSB0", "group dialout")
}

func TestAnUnstableNameIsWarnedOf(t *testing.T) {
	dir := t.TempDir()
	byPath := filepath.Join(dir, "serial", "by-path")
	if err := os.MkdirAll(byPath, 0o755); err != nil {
		t.Fatal(err)
	}
	tty, stable := filepath.Join(dir, "ttyUSB0"), filepath.Join(byPath, "pci-usb-0:2:1.0-port0")
	for _, f := range []string{tty, filepath.Join(dir, "ttyS0")} {
		if err := os.WriteFile(f, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("../../ttyUSB0", stable); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ path, want string }{
		{tty, "use " + stable},
		{filepath.Join(dir, "ttyS0"), "no name below /dev/serial leads to it"},
		{filepath.Join(dir, "ttyUSB7"), "use a name below /dev/serial/by-path"},
		{stable, ""},
	} {
		got := Spec{Path: c.path, dev: dir}.Warning()
		if c.want == "" && got != "" || !strings.Contains(got, c.want) {
			t.Errorf("%s: %q, want %q", c.path, got, c.want)
		}
	}
}

func TestASerialServerIsAStream(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	p := mustOpen(t, "tcp://"+l.Addr().String(), Line{})
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if p.Datagrams() {
		t.Error("TCP has no datagrams")
	}
	if _, err := p.Write([]byte("ask")); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 16)
	if _, err := io.ReadFull(server, got[:3]); err != nil || string(got[:3]) != "ask" {
		t.Fatal(string(got[:3]), err)
	}
	io.WriteString(server, "answer")
	server.Close()
	var text string
	for err == nil {
		var n int
		n, err = p.ReadBefore(got, soon())
		text += string(got[:n])
	}
	if text != "answer" || !errors.Is(err, io.EOF) || !strings.Contains(err.Error(), "the other end closed the connection") {
		t.Errorf("got %q, %v", text, err)
	}
}

func TestUDPGivesOnlyDatagramsOfItsPeer(t *testing.T) {
	device, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer device.Close()
	stranger, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close()
	spec, err := ParseSpec("udp://127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	p, err := spec.DefaultPort(device.LocalAddr().(*net.UDPAddr).Port).Open(context.Background(), Line{})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if !p.Datagrams() {
		t.Error("UDP is datagrams")
	}
	if _, err := p.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 64)
	n, gateway, err := device.ReadFrom(buf)
	if err != nil || string(buf[:n]) != "hello" {
		t.Fatal(string(buf[:n]), err)
	}
	stranger.WriteTo([]byte("forged"), gateway)
	device.WriteTo(nil, gateway)
	device.WriteTo([]byte("one"), gateway)
	device.WriteTo([]byte("two"), gateway)
	for _, want := range []string{"one", "two"} {
		n, err := p.ReadBefore(buf, soon())
		if err != nil || string(buf[:n]) != want {
			t.Errorf("got %q, %v, want %q", buf[:n], err, want)
		}
	}
}

func TestAHostThatIsNotThereIsNamed(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	spec, err := ParseSpec("tcp://" + addr)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := spec.Open(context.Background(), Line{}); err == nil || !strings.Contains(err.Error(), "tcp://"+addr+" cannot be reached") {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := spec.Open(ctx, Line{}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if _, err := (Spec{Kind: UDP, Host: "monitor"}).Open(context.Background(), Line{}); err == nil || !strings.Contains(err.Error(), "udp://monitor:PORT") {
		t.Error(err)
	}
}

func BenchmarkSerialRead(b *testing.B) {
	master, slave, err := pty.Open()
	if err != nil {
		b.Fatal(err)
	}
	defer slave.Close()
	p, err := Spec{Path: slave.Name()}.Open(context.Background(), line8N1)
	if err != nil {
		b.Fatal(err)
	}
	block := make([]byte, 256)
	go func() {
		for {
			if _, err := master.Write(block); err != nil {
				return
			}
		}
	}()
	defer master.Close()
	defer p.Close()
	buf := make([]byte, 4096)
	b.ReportAllocs()
	b.ResetTimer()
	total := 0
	for total < b.N {
		n, err := p.ReadBefore(buf, soon())
		if err != nil {
			b.Fatal(err)
		}
		total += n
	}
	b.SetBytes(1)
}
