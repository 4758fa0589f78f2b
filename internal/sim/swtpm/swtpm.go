// Package swtpm runs swtpm, the emulator of a whole TPM 2.0, for demos and
// tests. It is a program of the distribution (Debian package swtpm); nothing of
// it is in the firmware.
package swtpm

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// ErrMissing is that swtpm is not installed.
var ErrMissing = errors.New("swtpm is not installed: apt-get install swtpm")

// An Emulator is a TPM that runs. What it holds is in its folder, and another
// one that is started there is the same TPM after a power cycle. It has one user
// at a time; the next one waits until the connection is closed.
type Emulator struct {
	dir     string
	address string
	process *exec.Cmd
	done    chan struct{}
	stop    sync.Once
}

const (
	socket  = "tpm.sock"
	control = socket + ".ctrl" // where libtss2 looks for the control channel
)

// Start starts a TPM whose state is in dir, which is made where it is missing,
// on a unix socket in it. A path that is too long for a socket is an error.
func Start(ctx context.Context, dir string) (*Emulator, error) {
	path := func(name string) string { return filepath.Join(dir, name) }
	e := &Emulator{dir: dir, address: "unix:" + path(socket)}
	return e.start(ctx, "type=unixio,path="+path(socket), "type=unixio,path="+path(control), "unix", path(control))
}

// StartTCP is Start on a free port of the loopback address.
func StartTCP(ctx context.Context, dir string) (*Emulator, error) {
	port, err := freePorts()
	if err != nil {
		return nil, err
	}
	const host = "127.0.0.1"
	server := func(port int) string { return fmt.Sprintf("type=tcp,bindaddr=%s,port=%d", host, port) }
	e := &Emulator{dir: dir, address: fmt.Sprintf("tcp:%s:%d", host, port)}
	return e.start(ctx, server(port), server(port+1), "tcp", fmt.Sprintf("%s:%d", host, port+1))
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

func (e *Emulator) start(ctx context.Context, server, ctrl, network, address string) (*Emulator, error) {
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
		"--ctrl", ctrl, "--flags", "not-need-init,startup-clear", "--log", "file="+log)
	e.process.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := e.process.Start(); err != nil {
		return nil, fmt.Errorf("swtpm: %w", err)
	}
	go func() { _ = e.process.Wait(); close(e.done) }()
	if err := e.await(ctx, network, address); err != nil {
		e.Stop()
		text, _ := os.ReadFile(log)
		return nil, fmt.Errorf("swtpm does not come up: %w: %s", err, text)
	}
	return e, nil
}

// await waits until the control channel answers; the other one serves a single
// user, whose place a trial would take.
func (e *Emulator) await(ctx context.Context, network, address string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for {
		err := ask(ctx, network, address)
		if err == nil {
			return nil
		}
		select {
		case <-e.done:
			return errors.New("it ended at once")
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// ask has the emulator tell its capabilities, which it does when both channels
// are open and the state is read.
func ask(ctx context.Context, network, address string) error {
	var d net.Dialer
	c, err := d.DialContext(ctx, network, address)
	if err != nil {
		return err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })()
	const getCapability = 1 // CMD_GET_CAPABILITY, swtpm_ioctls(3)
	if _, err := c.Write(binary.BigEndian.AppendUint32(nil, getCapability)); err != nil {
		return err
	}
	_, err = io.ReadFull(c, make([]byte, 4))
	return err
}

// Address is what gatewayd takes as tpm in [identity].
func (e *Emulator) Address() string { return e.address }

// Pid is the emulator's process.
func (e *Emulator) Pid() int { return e.process.Process.Pid }

// Stop cuts the power. What is not in the TPM's lasting memory is gone. A second
// time it does nothing to another emulator in the same folder.
func (e *Emulator) Stop() {
	e.stop.Do(func() {
		_ = e.process.Process.Kill()
		<-e.done
		for _, name := range []string{socket, control, ".lock"} {
			_ = os.Remove(filepath.Join(e.dir, name))
		}
	})
}
