// Command gatewayd is the gateway and its tools: one binary with subcommands.
//
// Each command is a file of this folder and holds no logic but that of its
// flags, its output and its exit code.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/bedside-gateway/gatewayd/drivers"
	"github.com/bedside-gateway/gatewayd/drivers/intellivue"
	"github.com/bedside-gateway/gatewayd/internal/config"
	"github.com/bedside-gateway/gatewayd/internal/status"
	"github.com/bedside-gateway/gatewayd/spool"
	"github.com/bedside-gateway/gatewayd/tlsoverlay"
)

// Exit codes, those of sysexits.h where there is one.
const (
	exitOK          = 0
	exitRuntime     = 1
	exitUsage       = 2
	exitData        = 65 // the input is damaged or breaks the rules
	exitUnavailable = 69 // the platform is unreachable
	exitTryLater    = 75
	exitProtocol    = 76 // refused, by our rules or by the platform's
	exitPermission  = 77
	exitConfig      = 78
)

func main() { os.Exit(start()) }

func start() int {
	// A gateway that cannot check a platform's staples does not start.
	mark, err := tlsoverlay.Version()
	if err != nil {
		fmt.Fprintln(os.Stderr, "gatewayd:", err)
		return exitRuntime
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	known, err := drivers.NewRegistry(intellivue.New())
	if err != nil {
		fmt.Fprintln(os.Stderr, "gatewayd:", err)
		return exitRuntime
	}
	a := &app{drivers: known, in: os.Stdin, out: os.Stdout, err: os.Stderr}
	a.build, a.made = build()
	a.build.TLS = mark
	return a.run(ctx, os.Args[1:])
}

// version is set by the linker at a release.
var version = "dev"

// build says what this program is, and of when its sources are.
func build() (b status.Build, made time.Time) {
	b = status.Build{Version: version, Go: runtime.Version(), Board: "generic " + runtime.GOARCH, Commit: "unknown"}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return b, made
	}
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			b.Commit = s.Value
		case s.Key == "vcs.modified" && s.Value == "true":
			defer func() { b.Commit += "+changes" }()
		case s.Key == "vcs.time":
			if t, err := time.Parse(time.RFC3339, s.Value); err == nil {
				made = t
			}
		}
	}
	return b, made
}

// app is what the commands share.
type app struct {
	drivers *drivers.Registry
	in      io.Reader
	out     io.Writer
	err     io.Writer
	build   status.Build
	made    time.Time // a clock that shows less is wrong; zero where it is not known
}

// An exit is an error with its exit code. A nil err prints nothing.
type exit struct {
	code int
	err  error
}

// A usageError is a mistake in the call, for which the help is a help.
type usageError struct{ error }

func (e *exit) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit %d", e.code)
	}
	return e.err.Error()
}

func (e *exit) Unwrap() error { return e.err }

// usage is a mistake in the call.
func usage(format string, args ...any) error {
	return &exit{exitUsage, usageError{fmt.Errorf(format, args...)}}
}

// coded gives an error the exit code of its kind.
func coded(err error) error {
	var known *exit
	switch {
	case err == nil || errors.As(err, &known):
		return err
	case errors.Is(err, fs.ErrPermission):
		return &exit{exitPermission, err}
	case errors.Is(err, spool.ErrLocked):
		return &exit{exitTryLater, err}
	}
	return &exit{exitRuntime, err}
}

// configured gives an error of the configuration its exit code.
func configured(err error) error {
	if err == nil || errors.Is(err, fs.ErrPermission) {
		return coded(err)
	}
	return &exit{exitConfig, err}
}

func (a *app) run(ctx context.Context, args []string) int {
	root := a.root()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	var e *exit
	if !errors.As(err, &e) { // cobra's own: an unknown command or flag
		e = &exit{exitUsage, usageError{err}}
	}
	if e.err != nil {
		a.complain(e)
	}
	return e.code
}

// complain prints an error, the problems of a configuration on a line each.
func (a *app) complain(e *exit) {
	if problems, ok := errors.AsType[config.Problems](e.err); ok {
		fmt.Fprintln(a.err, problems)
		return
	}
	text := strings.Join(strings.Fields(e.err.Error()), " ")
	if _, ok := e.err.(usageError); ok {
		text += "; see gatewayd --help"
	}
	fmt.Fprintln(a.err, "gatewayd:", text)
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "gatewayd",
		Short: "Bedside gateway: device data as IHE PCD messages, delivered over mutual TLS",
		Long: "gatewayd reads bedside devices, turns what they say into IHE PCD-01 messages and delivers these to the\n" +
			"hospital's platform over MLLP inside mutual TLS.\n\n" +
			"Exit codes: 0 well, 1 runtime fault, 2 wrong call, 65 bad data, 69 platform unreachable, 75 try later,\n" +
			"76 refused, 77 no permission, 78 configuration. gatewayd status: 0 ok, 1 degraded, 2 down.",
		SilenceErrors: true, SilenceUsage: true, Version: a.build.Version,
		Args: cobra.ArbitraryArgs,
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) == 0 {
				return c.Help()
			}
			return usage("there is no command %q%s", args[0], suggestion(c, args[0]))
		},
	}
	root.SetOut(a.out)
	root.SetErr(a.err)
	root.SetIn(a.in)
	root.SuggestionsMinimumDistance = 2
	root.SetVersionTemplate("gatewayd {{.Version}}\n")
	root.AddCommand(a.runCommand(), a.checkCommand(), a.statusCommand(), a.decodeCommand(), a.translateCommand(),
		a.sendCommand(), a.spoolCommand(), a.validateCommand(), a.enrollCommand(), a.versionCommand())
	root.InitDefaultCompletionCmd("completion")
	return root
}

func suggestion(c *cobra.Command, typed string) string {
	if near := c.SuggestionsFor(typed); len(near) > 0 {
		return "; did you mean " + strings.Join(near, " or ") + "?"
	}
	return ""
}
