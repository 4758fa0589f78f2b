package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/bedside-gateway/gatewayd/drivers/intellivue/sim"
	"github.com/bedside-gateway/gatewayd/drivers/port"
)

// dataPort is the UDP port of an IntelliVue monitor.
const dataPort = 24105

type deviceFlags struct {
	driver, pty, udp, mac string
	patient               string
	speed                 float64
	o                     sim.Options
}

func (a *app) deviceCommand() *cobra.Command {
	var f deviceFlags
	c := &cobra.Command{
		Use: "device --pty LINK | --udp ADDRESS", Short: "Run a simulated monitor", Args: none,
		Long: "Run a simulated Philips IntelliVue monitor on a pseudo terminal, which LINK points to, or on UDP.\n" +
			"SIGUSR1 pulls the cable, and plugs it in again the next time. SIGUSR2 switches the monitor off and on.",
		Example: "  gatewaysim device --pty /tmp/monitor --alarms 20s\n  gatewaysim device --udp 127.0.0.1:24105 --demo",
		RunE: func(c *cobra.Command, _ []string) error {
			return a.runDevice(c.Context(), f)
		},
	}
	c.Flags().StringVar(&f.driver, "driver", "intellivue", "`name` of the protocol")
	place(c, &f.pty, &f.udp)
	c.Flags().BoolVar(&f.o.Demo, "demo", false, "demonstration mode: every value is marked as no patient's")
	c.Flags().DurationVar(&f.o.AlarmEvery, "alarms", 0, "raise an alarm each such `time`")
	c.Flags().DurationVar(&f.o.NBPEvery, "cuff", time.Minute, "`time` between cuff measurements")
	c.Flags().StringVar(&f.patient, "patient", "", "made-up patient to admit, `ID^FAMILY^GIVEN`")
	c.Flags().StringVar(&f.o.BedLabel, "bed-label", "", "bed `label` that is set at the monitor, at most 16 characters")
	c.Flags().StringVar(&f.mac, "mac", "00:09:FB:00:00:01", "MAC `address` of the monitor")
	c.Flags().Uint64Var(&f.o.Seed, "seed", 1, "`number` that the values are made from")
	c.Flags().Float64Var(&f.speed, "speed", 1, "how many `times` as fast as a real monitor it sends")
	c.Flags().Float64Var(&f.o.GarbleRate, "garble", 0, "`share` of messages that noise damages")
	return c
}

func place(c *cobra.Command, pty, udp *string) {
	c.Flags().StringVar(pty, "pty", "", "symbolic `link` to make to a pseudo terminal")
	c.Flags().StringVar(udp, "udp", "", "UDP `address` to listen on, as host:port")
}

func (f *deviceFlags) complete() error {
	if f.driver != "intellivue" {
		return usage("--driver %q: there is a simulated device of intellivue only", f.driver)
	}
	if f.speed <= 0 {
		return usage("--speed %g: it is more than 0", f.speed)
	}
	f.o.Tick = time.Duration(float64(1024*time.Millisecond) / f.speed)
	mac, err := net.ParseMAC(f.mac)
	if err != nil || len(mac) != 6 {
		return usage("--mac %q: it has six bytes in hexadecimal", f.mac)
	}
	f.o.MAC = [6]byte(mac)
	if f.patient == "" {
		return nil
	}
	parts := strings.Split(f.patient, "^")
	if len(parts) != 3 {
		return usage("--patient: it is ID^FAMILY^GIVEN")
	}
	f.o.Patient = &sim.Patient{ID: parts[0], Family: parts[1], Given: parts[2], Type: sim.Adult}
	return nil
}

// A device is what serve runs.
type device interface {
	ServeStream(context.Context, io.ReadWriter) error
	ServePacket(context.Context, net.PacketConn) error
}

func (a *app) runDevice(ctx context.Context, f deviceFlags) error {
	if err := f.complete(); err != nil {
		return err
	}
	f.o.Log = slog.New(slog.NewTextHandler(a.err, nil))
	m, err := sim.New(f.o)
	if err != nil {
		return err
	}
	l, err := a.open(f.pty, f.udp)
	if err != nil {
		return err
	}
	l.reboot, l.unplug, l.plug = m.Reboot, m.Unplug, m.Plug
	err = l.serve(ctx, m)
	c := m.Counts()
	fmt.Fprintf(a.out, "associations %d, requests %d, messages sent %d, lost %d, damaged %d\n", c.Associations, c.Requests, c.Sent, c.Lost, c.Damaged)
	return err
}

func (a *app) replayCommand() *cobra.Command {
	var pty, udp, capture, format string
	var o sim.ReplayOptions
	c := &cobra.Command{
		Use: "replay --capture FILE --pty LINK | --udp ADDRESS", Short: "Play a recorded monitor", Args: none,
		Long: "Play a recorded session of a Philips IntelliVue monitor to a live client: a network capture, a recording of\n" +
			"gatewayd (record in [[port]]), or hexadecimal text. SIGUSR1 pulls the cable, and plugs it in again the next time.",
		Example: "  gatewaysim replay --capture session.pcapng --pty /tmp/monitor",
		RunE: func(c *cobra.Command, _ []string) (err error) {
			if err := required(c, "capture"); err != nil {
				return err
			}
			if o.Records, err = readCapture(capture, format); err != nil {
				return err
			}
			o.Log = slog.New(slog.NewTextHandler(a.err, nil))
			return a.runReplay(c.Context(), pty, udp, o)
		},
	}
	place(c, &pty, &udp)
	c.Flags().StringVar(&capture, "capture", "", "recorded `file`")
	c.Flags().StringVar(&format, "input", "auto", "`format` of the recording: auto, raw, hex or pcap")
	c.Flags().Float64Var(&o.Speed, "speed", 1, "how many `times` as fast as it was recorded")
	c.Flags().BoolVar(&o.Loop, "loop", false, "begin again at the end")
	return c
}

// readCapture reads a recording. What is missing from it is no reason not to
// play the rest.
func readCapture(file, format string) ([]port.Record, error) {
	known, err := port.ParseFormat(format)
	if err != nil {
		return nil, usageError{err}
	}
	in, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	var records []port.Record
	for r, err := range port.ReadRecording(in, port.ReadOptions{Format: known, UDPPort: dataPort}) {
		if err != nil && !errors.Is(err, port.ErrTorn) {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		if err == nil {
			r.Data = bytes.Clone(r.Data)
			records = append(records, r)
		}
	}
	return records, nil
}

func (a *app) runReplay(ctx context.Context, pty, udp string, o sim.ReplayOptions) error {
	r, err := sim.NewReplay(o)
	if err != nil {
		return err
	}
	l, err := a.open(pty, udp)
	if err != nil {
		return err
	}
	if !o.Loop {
		played, cancel := context.WithCancel(ctx)
		defer cancel()
		go func() {
			defer cancel()
			select {
			case <-r.Done():
			case <-played.Done():
			}
		}()
		ctx = played
	}
	err = l.serve(ctx, r)
	c := r.Counts()
	fmt.Fprintf(a.out, "associations %d, requests %d, messages sent %d\n", c.Associations, c.Requests, c.Sent)
	return err
}

// A line is where a device is plugged in.
type line struct {
	app                  *app
	pty                  *sim.PTY
	conn                 net.PacketConn
	signals              chan os.Signal
	reboot, unplug, plug func() // of the device; nil where it cannot
}

func (a *app) open(pty, udp string) (*line, error) {
	if (pty == "") == (udp == "") {
		return nil, usage("name one of --pty and --udp")
	}
	// From here on, so that whoever reads that it serves may send a signal.
	l := &line{app: a, signals: make(chan os.Signal, 4)}
	signal.Notify(l.signals, syscall.SIGUSR1, syscall.SIGUSR2)
	var err error
	if pty != "" {
		if l.pty, err = sim.OpenPTY(pty); err == nil {
			fmt.Fprintf(a.out, "serving on %s\n", pty)
		}
		return l, err
	}
	if l.conn, err = net.ListenPacket("udp", udp); err == nil {
		fmt.Fprintf(a.out, "serving on udp://%s\n", l.conn.LocalAddr())
	}
	return l, err
}

// serve runs the device until ctx ends, and obeys the signals.
func (l *line) serve(ctx context.Context, d device) error {
	defer signal.Stop(l.signals)
	done := make(chan error, 1)
	go func() {
		if l.pty != nil {
			done <- d.ServeStream(ctx, l.pty)
			return
		}
		done <- d.ServePacket(ctx, l.conn)
	}()
	unplugged := false
	for {
		select {
		case err := <-done:
			return err
		case s := <-l.signals:
			if s == syscall.SIGUSR2 {
				l.restart()
				continue
			}
			unplugged = !unplugged
			if err := l.cable(unplugged); err != nil {
				return err
			}
		}
	}
}

func (l *line) restart() {
	if l.reboot == nil {
		fmt.Fprintln(l.app.out, "a recording cannot reboot")
		return
	}
	l.reboot()
	fmt.Fprintln(l.app.out, "rebooting")
}

func (l *line) cable(pull bool) error {
	word := map[bool]string{true: "unplugged", false: "plugged in"}[pull]
	defer fmt.Fprintln(l.app.out, word)
	switch {
	case l.pty != nil && pull:
		return l.pty.Unplug()
	case l.pty != nil:
		return l.pty.Plug()
	case l.unplug == nil:
		word = "a recording on the LAN has no cable to pull"
	case pull:
		l.unplug()
	default:
		l.plug()
	}
	return nil
}
