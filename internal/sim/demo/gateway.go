package demo

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/bedside-gateway/gatewayd/internal/sim/pki"
	"github.com/bedside-gateway/gatewayd/internal/status"
)

// A gateway is a gatewayd process of its own, with its own configuration and
// state, as on a box.
type gateway struct {
	binary, dir string
	log         *os.File

	mu      sync.Mutex
	process *process
}

// A process is one start of gatewayd.
type process struct {
	*os.Process
	done chan struct{}
	err  error // once done is closed
}

const (
	configFile = "gatewayd.toml"
	socketFile = "status.sock"
	logFile    = "gatewayd.log"
)

// configure writes the configuration of a gateway.
func configure(dir, identity, platform string, beds []*bed) error {
	var b strings.Builder
	fmt.Fprintf(&b, `[gateway]
name = "GW_DEMO"
eui64 = %q
facility = "HOSPITAL_A"
state_dir = "state"
status_socket = %q

[identity]
%s
[[destination]]
name = "platform"
address = %q
connect = %q
trust = "pki/roots.pem"
interval = "1s"
ack_timeout = "2s"
`, pki.DefaultDevice.String(), filepath.Join(dir, socketFile), identity, pki.DefaultPlatform+":2575", platform)
	for _, bed := range beds {
		fmt.Fprintf(&b, `
[[port]]
name = %q
device = %q
driver = "intellivue"
allow_simulated = %v
`, bed.name, bed.device, bed.simulate)
		if bed.pty != nil {
			b.WriteString("line = \"115200 8N1\"\n")
		}
		fmt.Fprintf(&b, "[port.location]\npoint_of_care = \"ICU\"\nroom = \"Room 1\"\nbed = %q\nfacility = \"HOSPITAL_A\"\n", bed.label)
	}
	return os.WriteFile(filepath.Join(dir, configFile), []byte(b.String()), 0o600)
}

func newGateway(binary, dir string) (*gateway, error) {
	log, err := os.OpenFile(filepath.Join(dir, logFile), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	return &gateway{binary: binary, dir: dir, log: log}, nil
}

// start runs gatewayd. The kernel ends it when this process ends, however it
// does (PR_SET_PDEATHSIG); for that the thread that started it has to live as
// long. A group of its own keeps Ctrl-C from reaching it before us.
func (g *gateway) start() error {
	cmd := exec.Command(g.binary, "run", "-c", filepath.Join(g.dir, configFile))
	cmd.Stdout, cmd.Stderr = g.log, g.log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	p := &process{done: make(chan struct{})}
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with this goroutine
		err := cmd.Start()
		started <- err
		if err != nil {
			return
		}
		p.err = cmd.Wait()
		close(p.done)
	}()
	if err := <-started; err != nil {
		return fmt.Errorf("gatewayd does not start: %w; build it, or name it with --gatewayd", err)
	}
	p.Process = cmd.Process
	g.mu.Lock()
	defer g.mu.Unlock()
	g.process = p
	return nil
}

func (g *gateway) running() *process {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.process
}

// end sends a signal and waits for the end, which SIGKILL brings about in the
// end. After it the process is no longer watched.
func (g *gateway) end(signal syscall.Signal, patience time.Duration) {
	g.mu.Lock()
	p := g.process
	g.process = nil
	g.mu.Unlock()
	if p == nil {
		return
	}
	_ = p.Signal(signal) // fails only where it has ended
	select {
	case <-p.done:
	case <-time.After(patience):
		_ = p.Kill()
		<-p.done
	}
}

// close ends what runs.
func (g *gateway) close() {
	g.end(syscall.SIGTERM, 15*time.Second)
	_ = g.log.Close() // written by the process, not by us
}

// ready waits until gatewayd answers on its socket.
func (g *gateway) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	client := status.NewClient(filepath.Join(g.dir, socketFile))
	for p := g.running(); ; {
		r, err := client.Report(ctx)
		if err == nil && r.Ready {
			return nil
		}
		select {
		case <-p.done:
			return fmt.Errorf("gatewayd ended at its start (%v)", p.err)
		case <-ctx.Done():
			return errors.Join(errors.New("gatewayd does not answer on its socket"), err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// tail is the end of gatewayd's log, for an error.
func (g *gateway) tail() string {
	text, err := os.ReadFile(filepath.Join(g.dir, logFile))
	if err != nil || len(text) == 0 {
		return ""
	}
	lines := strings.Split(strings.TrimRight(string(text), "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-10):], "\n")
}
