// Command gatewaysim is a hospital to try the gateway on: its certificates, a
// reference platform, simulated and recorded monitors, and a demonstration of
// all of them together with gatewayd. It ships in no firmware.
//
// Each command is a file of this folder and holds no logic but that of its
// flags, its output and its exit code.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/bedside-gateway/gatewayd/internal/sim/demo"
	"github.com/bedside-gateway/gatewayd/tlsoverlay"
)

// Exit codes.
const (
	exitOK          = 0
	exitRuntime     = 1
	exitUsage       = 2
	exitInterrupted = 130 // as a shell says it of SIGINT
)

func main() { os.Exit(start()) }

func start() int {
	if err := tlsoverlay.Check(); err != nil {
		fmt.Fprintln(os.Stderr, "gatewaysim:", err)
		return exitRuntime
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt, syscall.SIGHUP)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	a := &app{out: os.Stdout, err: os.Stderr}
	return a.run(ctx, os.Args[1:])
}

// app is what the commands share.
type app struct{ out, err io.Writer }

// A usageError is a mistake in the call.
type usageError struct{ error }

func usage(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

func (a *app) run(ctx context.Context, args []string) int {
	root := a.root()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	switch _, wrong := errors.AsType[usageError](err); {
	case err == nil:
		return exitOK
	case wrong:
		fmt.Fprintf(a.err, "gatewaysim: %v; see gatewaysim --help\n", err)
		return exitUsage
	case errors.Is(err, demo.ErrDiffer): // it was said how
		return exitRuntime
	case errors.Is(err, context.Canceled):
		fmt.Fprintln(a.err, "gatewaysim: interrupted")
		return exitInterrupted
	}
	fmt.Fprintln(a.err, "gatewaysim:", err)
	return exitRuntime
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "gatewaysim",
		Short: "A simulated hospital to try the gateway on",
		Long: "gatewaysim makes the certificates of a simulated hospital, runs its platform and its monitors, and shows all\n" +
			"of them together with gatewayd.\n\nExit codes: 0 well, 1 runtime fault or a demo that does not add up, 2 wrong call, 130 interrupted.",
		SilenceErrors: true, SilenceUsage: true, Args: cobra.ArbitraryArgs,
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) == 0 {
				return c.Help()
			}
			return usage("there is no command %q%s", args[0], suggestion(c, args[0]))
		},
	}
	root.SetOut(a.out)
	root.SetErr(a.err)
	root.SuggestionsMinimumDistance = 2
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.AddCommand(a.pkiCommand(), a.ocspCommand(), a.crlCommand(), a.caCommand(), a.platformCommand(), a.tellCommand(), a.deviceCommand(), a.replayCommand(), a.demoCommand())
	root.InitDefaultCompletionCmd("completion")
	return root
}

func suggestion(c *cobra.Command, typed string) string {
	if near := c.SuggestionsFor(typed); len(near) > 0 {
		return "; did you mean " + strings.Join(near, " or ") + "?"
	}
	return ""
}

func none(_ *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usage("%q is one argument too many", args[0])
	}
	return nil
}

// required says which flag is missing and what it is.
func required(c *cobra.Command, names ...string) error {
	for _, name := range names {
		if !c.Flags().Changed(name) {
			return usage("%s needs --%s: %s", c.CommandPath(), name, strings.ReplaceAll(c.Flags().Lookup(name).Usage, "`", ""))
		}
	}
	return nil
}
