// Package swtpm runs swtpm, the emulator of a whole TPM 2.0, for demos and
// tests. It is a program of the distribution (Debian package swtpm); nothing of
// it is in the firmware.
package swtpm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// ErrMissing is that swtpm is not installed.
var ErrMissing = errors.New("swtpm is not installed: apt-get install swtpm")

// An Emulator is a TPM that runs. What it holds is in its folder, and another
// one that is started there is the same TPM after a power cycle.
type Emulator struct {
	dir     string
	address string
	control string // network and address of the control channel
	process *exec.Cmd
	done    chan struct{}
}

// Start starts a TPM whose state is in dir, which is made where it is missing,
// on a unix socket in it. A path that is too long for a socket is an error.
func Start(ctx context.Context, dir string) (*Emulator, error) {
	socket := filepath.Join(dir, "tpm.sock")
	return start(ctx, &Emulator{dir: dir, address: "unix:" + socket, control: "unix:" + socket + ".ctrl"},
		"type=unixio,path="+socket, "type=unixio,path="+socket+".ctrl")
}

// StartTCP is Start on a free port of the loopback address.
func StartTCP(ctx context.Context, dir string) (*Emulator, error) {
	port, err := freePorts()
	if err != nil {
		return nil, err
	}
	at := func(port int) (address, server string) {
		return fmt.Sprintf("tcp:127.0.0.1:%d", port), fmt.Sprintf("type=tcp,bindaddr=127.0.0.1,port=%d", port)
	}
	address, server := at(port)
	control, ctrl := at(port + 1)
	return start(ctx, &Emulator{dir: dir, address: address, control: control}, server, ctrl)
}

// freePorts finds two in a row: libtss2 looks for the control channel behind
// the other.
func freePorts() (int, error) {
	for range 100 {
		first, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return 0, err
		}
		port := first.Addr().(*net.TCPAddr).Port
		second, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port+1))
		_ = first.Close()
		if err == nil {
			return port, second.Close()
		}
	}
	return 0, errors.New("no two free ports in a row")
}

func start(ctx context.Context, e *Emulator, server, control string) (*Emulator, error) {
	path, err := exec.LookPath("swtpm")
	if err != nil {
		return nil, ErrMissing
	}
	if err := os.MkdirAll(e.dir, 0o700); err != nil {
		return nil, err
	}
	log := filepath.Join(e.dir, "swtpm.log")
	e.done = make(chan struct{})
	e.process = exec.Command(path, "socket", "--tpm2", "--tpmstate", "dir="+e.dir, "--server", server,
		"--ctrl", control, "--flags", "not-need-init,startup-clear", "--log", "file="+log)
	e.process.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := e.process.Start(); err != nil {
		return nil, fmt.Errorf("swtpm: %w", err)
	}
	go func() { _ = e.process.Wait(); close(e.done) }()
	if err := e.await(ctx, log); err != nil {
		e.Stop()
		return nil, err
	}
	return e, nil
}

// await waits until the control socket answers; the other one serves a single
// user, whose place a trial would take.
func (e *Emulator) await(ctx context.Context, log string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for {
		network, address, _ := strings.Cut(e.control, ":")
		if c, err := net.Dial(network, address); err == nil {
			return c.Close()
		}
		select {
		case <-e.done:
			text, _ := os.ReadFile(log)
			return fmt.Errorf("swtpm ended at once: %s", text)
		case <-ctx.Done():
			return fmt.Errorf("swtpm does not come up: %w", ctx.Err())
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// Address is what gatewayd takes as tpm in [identity].
func (e *Emulator) Address() string { return e.address }

// Pid is the emulator's process.
func (e *Emulator) Pid() int { return e.process.Process.Pid }

// Stop cuts the power. What is not in the TPM's lasting memory is gone.
func (e *Emulator) Stop() {
	_ = e.process.Process.Kill()
	<-e.done
	for _, name := range []string{"tpm.sock", "tpm.sock.ctrl", ".lock"} {
		_ = os.Remove(filepath.Join(e.dir, name))
	}
}
