package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"

	"github.com/bedside-gateway/gatewayd/internal/config"
	supervisor "github.com/bedside-gateway/gatewayd/internal/daemon"
)

// A board with 256 MiB of memory runs other things too: where the environment
// says nothing else (GOGC, GOMEMLIMIT), garbage is collected twice as often as
// usual, which costs nothing at this load, and harder near the limit.
const (
	collectAt   = 50       // per cent of growth
	memoryLimit = 32 << 20 // bytes
)

func spareMemory() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(collectAt)
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(memoryLimit)
	}
}

func (a *app) runCommand() *cobra.Command {
	var path string
	c := &cobra.Command{
		Use: "run", Short: "Run the gateway", Args: none,
		Long: "Run the gateway in the foreground until SIGTERM. SIGHUP reads the configuration again.\n" +
			"Under systemd (Type=notify) it tells when it is ready, how it is, and that it is alive.",
		RunE: func(c *cobra.Command, _ []string) error { return a.runDaemon(c.Context(), path) },
	}
	c.Flags().StringVarP(&path, "config", "c", config.DefaultPath, "configuration `file`")
	return c
}

func (a *app) runDaemon(ctx context.Context, path string) error {
	spareMemory()
	load := func() (*config.Config, error) { return config.Load(path, a.configOptions()) }
	c, err := load()
	if err != nil {
		return configured(err)
	}
	level := new(slog.LevelVar)
	log := logger(a.err, level, os.Getenv("JOURNAL_STREAM") != "")
	d, err := supervisor.Start(ctx, c, supervisor.Options{Drivers: a.drivers, FileKey: fileKey, Load: load, Log: log, Level: level, Build: a.build, Floor: a.made, Notify: notify})
	if wrong, ok := errors.AsType[*supervisor.ConfigError](err); ok {
		return configured(wrong)
	}
	if ctx.Err() != nil {
		return nil
	}
	if err != nil {
		return coded(err)
	}
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	defer signal.Stop(hangups)
	go reloads(ctx, d, hangups, log)
	return coded(d.Run(ctx))
}

// reloads reads the configuration again at each SIGHUP.
func reloads(ctx context.Context, d *supervisor.Daemon, hangups <-chan os.Signal, log *slog.Logger) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-hangups:
		}
		notify(daemon.SdNotifyReloading + "\n" + daemon.SdNotifyMonotonicUsec())
		if err := d.Reload(); err != nil {
			log.Error("the configuration is refused; the one before stays in force", "error", err, "next", "correct it and reload")
		} else {
			log.Info("the configuration was read again")
		}
		notify(daemon.SdNotifyReady)
	}
}

// notify tells systemd; where there is none, nobody is told.
func notify(state string) {
	_, _ = daemon.SdNotify(false, state)
}

// configOptions are those that every command reads a configuration with.
func (a *app) configOptions() config.Options {
	return config.Options{Drivers: a.drivers, Now: time.Now(), Addresses: ownAddresses(), MaxDescriptors: maxDescriptors(), Identity: func(certificate, key string) error {
		if fileKey == nil {
			return errors.New(noFileKey)
		}
		_, err := fileKey(certificate, key)
		return err
	}}
}
