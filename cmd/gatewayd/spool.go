package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/bedside-gateway/gatewayd/internal/config"
	"github.com/bedside-gateway/gatewayd/internal/daemon"
	"github.com/bedside-gateway/gatewayd/internal/enroll"
	"github.com/bedside-gateway/gatewayd/internal/status"
	"github.com/bedside-gateway/gatewayd/keystore/tpm"
	"github.com/bedside-gateway/gatewayd/spool"
)

// desk is where an operator looks at the spool: the running daemon, or the file
// of one that is stopped.
type desk interface {
	List(ctx context.Context, queue string, f func(status.Entry) error) error
	Show(ctx context.Context, id uint64, patient bool) (status.Entry, error)
	Release(ctx context.Context, id uint64) error
	Drop(ctx context.Context, id uint64) error
}

func (a *app) spoolCommand() *cobra.Command {
	var path, socket string
	c := &cobra.Command{
		Use: "spool", Short: "Look at the messages that wait, and at those in quarantine",
		Long: "Look at the spool of the running gateway, or of one that is stopped.",
		Args: cobra.ArbitraryArgs,
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usage("gatewayd spool needs one of ls, show, release and drop")
			}
			return usage("there is no command spool %q%s", args[0], suggestion(c, args[0]))
		},
	}
	c.SuggestionsMinimumDistance = 2
	open := func() (desk, error) { return openDesk(path, socket) }
	for _, sub := range []*cobra.Command{a.spoolList(open), a.spoolShow(open),
		a.spoolChange(open, "release", "Give a message in quarantine back to its queue", desk.Release),
		a.spoolChange(open, "drop", "Give a message up for good", desk.Drop)} {
		socketFlags(sub, &path, &socket)
		c.AddCommand(sub)
	}
	return c
}

func (a *app) spoolList(open func() (desk, error)) *cobra.Command {
	var queue string
	c := &cobra.Command{
		Use: "ls", Short: "List the messages in the spool", Args: none,
		RunE: func(c *cobra.Command, _ []string) error {
			d, err := open()
			if err != nil {
				return err
			}
			t := tabwriter.NewWriter(a.out, 0, 8, 2, ' ', 0)
			fmt.Fprintln(t, "ID\tDESTINATION\tPORT\tCLASS\tSTATE\tMADE\tSENT\tBYTES\tCONTROL ID\tREASON")
			err = d.List(c.Context(), queue, func(e status.Entry) error {
				_, err := fmt.Fprintf(t, "%d\t%s\t%s\t%s\t%s\t%s\t%d\t%d\t%s\t%s\n", e.ID, e.Queue, e.Device, e.Class, e.State,
					e.Made.UTC().Format(time.DateTime), e.Attempts, e.Size, e.ControlID, e.Reason)
				return err
			})
			return coded(errors.Join(err, t.Flush()))
		},
	}
	c.Flags().StringVar(&queue, "queue", "", "only those for this `destination`")
	return c
}

func (a *app) spoolShow(open func() (desk, error)) *cobra.Command {
	var patient bool
	c := &cobra.Command{
		Use: "show ID", Short: "Print a message, without patient identifiers unless asked for", Args: one("number, see gatewayd spool ls"),
		RunE: func(c *cobra.Command, args []string) error {
			id, err := number(args[0])
			if err != nil {
				return err
			}
			d, err := open()
			if err != nil {
				return err
			}
			e, err := d.Show(c.Context(), id, patient)
			if err != nil {
				return coded(err)
			}
			_, err = a.out.Write(bytes.ReplaceAll(e.Message, []byte("\r"), []byte("\n")))
			return coded(err)
		},
	}
	c.Flags().BoolVar(&patient, "show-patient", false, "print patient identifiers as well")
	return c
}

func (a *app) spoolChange(open func() (desk, error), name, short string, do func(desk, context.Context, uint64) error) *cobra.Command {
	return &cobra.Command{
		Use: name + " ID...", Short: short, Args: some("number, see gatewayd spool ls"),
		RunE: func(c *cobra.Command, args []string) error {
			d, err := open()
			if err != nil {
				return err
			}
			for _, arg := range args {
				id, err := number(arg)
				if err != nil {
					return err
				}
				switch err := do(d, c.Context(), id); {
				case errors.Is(err, status.ErrInFlight):
					return &exit{exitTryLater, fmt.Errorf("%d: %w", id, err)}
				case err != nil:
					return coded(fmt.Errorf("%d: %w", id, err))
				}
			}
			return nil
		},
	}
}

func number(s string) (uint64, error) {
	id, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return 0, usage("%q is no number of a message; gatewayd spool ls shows them", s)
	}
	return id, nil
}

// openDesk asks the daemon if one runs, else opens the file.
func openDesk(path, socket string) (desk, error) {
	client := status.NewClient(socketOf(path, socket))
	_, err := client.Report(context.Background())
	if _, absent := errors.AsType[*status.NotRunningError](err); !absent {
		return client, coded(err)
	}
	places := config.PlacesOf(path)
	key, err := spoolKey(places)
	if errors.Is(err, daemon.ErrNoSpoolKey) {
		return nil, coded(fmt.Errorf("no gatewayd runs, and there is no spool in %s; name its configuration with -c FILE", places.StateDir))
	}
	if err != nil {
		return nil, coded(err)
	}
	return &stopped{filepath.Join(places.StateDir, daemon.SpoolFile), key, places.Spool}, nil
}

// spoolKey is the key of the spool, from the TPM where it is sealed.
func spoolKey(p config.Places) (key [32]byte, err error) {
	k := daemon.SpoolKey{Dir: p.StateDir}
	if k.Sealed() {
		c := &config.Config{Gateway: config.Gateway{StateDir: p.StateDir}, Identity: p.Identity}
		if k.TPM, err = enroll.OpenTPM(c, tpm.Options{}); err != nil {
			return key, err
		}
		defer k.TPM.Close()
	}
	return k.Read(context.Background())
}

// stopped is the spool of a daemon that does not run. It is open only while
// something is done with it.
type stopped struct {
	path   string
	key    [32]byte
	limits config.Spool
}

func (s *stopped) read(f func(*spool.Spool) error) error {
	sp, err := spool.ReadOnly(s.path, s.key)
	if err != nil {
		return err
	}
	return errors.Join(f(sp), sp.Close())
}

func (s *stopped) write(f func(*spool.Spool) error) error {
	sp, err := spool.Open(s.path, spool.Options{Key: s.key, MaxBytes: s.limits.MaxBytes, MaxAge: s.limits.MaxAge})
	if err != nil {
		return err
	}
	return errors.Join(f(sp), sp.Close())
}

func (s *stopped) List(_ context.Context, queue string, f func(status.Entry) error) error {
	return s.read(func(sp *spool.Spool) error { return daemon.ListSpool(sp, queue, f) })
}

func (s *stopped) Show(_ context.Context, id uint64, patient bool) (e status.Entry, err error) {
	err = s.read(func(sp *spool.Spool) error {
		e, err = daemon.ShowSpool(sp, id)
		return err
	})
	if !patient {
		e.Message = status.Redact(e.Message)
	}
	return e, err
}

func (s *stopped) Release(_ context.Context, id uint64) error {
	return s.write(func(sp *spool.Spool) error { return daemon.Translate(sp.Release(id)) })
}

func (s *stopped) Drop(_ context.Context, id uint64) error {
	return s.write(func(sp *spool.Spool) error { return daemon.Translate(sp.Drop(id, "operator")) })
}
