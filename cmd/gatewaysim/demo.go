package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/bedside-gateway/gatewayd/internal/sim/demo"
)

func (a *app) demoCommand() *cobra.Command {
	var o demo.Options
	var seconds float64
	var plain bool
	scenario := "monitors"
	c := &cobra.Command{
		Use: "demo", Short: "Show monitors, gateway and platform together", Args: none,
		Long: "Run two simulated monitors, the real gatewayd as a process of its own, and the reference platform. On the way a\n" +
			"cable is pulled and the platform killed. In the end both ends are counted against each other; the last line is\n" +
			"\"demo: N messages acknowledged, 0 lost, 0 duplicated\", and the exit code 1 if that is not so.\n\n" +
			"--scenario tunnel shows devices whose own TLS goes through the gateway to the platform, and the gate that closes\n" +
			"when the platform's certificate is revoked.",
		RunE: func(c *cobra.Command, _ []string) (err error) {
			o.Duration = time.Duration(seconds * float64(time.Second))
			if o.Duration < demo.MinDuration {
				return usage("--seconds %g: a demo takes at least %g", seconds, demo.MinDuration.Seconds())
			}
			if scenario != "monitors" && scenario != "tunnel" {
				return usage("--scenario %q: write monitors or tunnel", scenario)
			}
			if o.TPM != demo.TPMAuto && o.TPM != demo.TPMSwtpm && o.TPM != demo.TPMNone {
				return usage("--tpm %q: write %s, %s or %s", o.TPM, demo.TPMAuto, demo.TPMSwtpm, demo.TPMNone)
			}
			if o.Gatewayd, err = findGatewayd(o.Gatewayd); err != nil {
				return err
			}
			o.Out, o.Live = a.out, !plain && terminal(a.out)
			if scenario == "tunnel" {
				return demo.RunTunnel(c.Context(), o)
			}
			return demo.Run(c.Context(), o)
		},
	}
	c.Flags().StringVar(&o.Gatewayd, "gatewayd", "", "`file` of gatewayd (default: beside this program, else in PATH)")
	c.Flags().Float64Var(&seconds, "seconds", 30, "`time` until the monitors stop")
	c.Flags().StringVar(&scenario, "scenario", scenario, "what is shown: monitors or tunnel")
	c.Flags().StringVar(&o.Capture, "capture", "", "recorded `file` to play in place of the simulated monitors")
	c.Flags().StringVar(&o.Dir, "dir", "", "`folder` to work in and to keep (default: a temporary one)")
	c.Flags().BoolVar(&plain, "plain", false, "a log of lines, even on a terminal")
	c.Flags().BoolVar(&o.PowerCut, "power-cut", false, "also kill gatewayd with SIGKILL and start it again")
	c.Flags().StringVar(&o.TPM, "tpm", demo.TPMAuto, "where the gateway's key is: swtpm, none, or auto for swtpm `where` it is installed")
	c.Flags().Uint64Var(&o.Seed, "seed", 1, "`number` that the values are made from")
	return c
}

// terminal reports whether out is a terminal that the live view fits on.
func terminal(out any) bool {
	f, ok := out.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) || os.Getenv("TERM") == "dumb" {
		return false
	}
	width, height, err := term.GetSize(int(f.Fd()))
	return err == nil && width >= 80 && height >= 24
}

func findGatewayd(named string) (string, error) {
	if named != "" {
		return filepath.Abs(named)
	}
	if self, err := os.Executable(); err == nil {
		beside := filepath.Join(filepath.Dir(self), "gatewayd")
		if info, err := os.Stat(beside); err == nil && info.Mode().IsRegular() {
			return beside, nil
		}
	}
	if found, err := exec.LookPath("gatewayd"); err == nil {
		return found, nil
	}
	return "", errors.New("gatewayd is neither beside gatewaysim nor in PATH; build it with make build, or name it with --gatewayd")
}
