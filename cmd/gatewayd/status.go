package main

import (
	"context"
	"encoding/json"
	"errors"

	"github.com/spf13/cobra"

	"github.com/bedside-gateway/gatewayd/internal/config"
	"github.com/bedside-gateway/gatewayd/internal/status"
)

func (a *app) statusCommand() *cobra.Command {
	var path, socket string
	var asJSON bool
	c := &cobra.Command{
		Use: "status", Short: "Tell how the running gateway is", Args: none,
		Long: "Tell how the running gateway is: what needs attention and the next step, each port, each platform, the spool.\n" +
			"The exit code is 0 for ok, 1 for degraded, 2 for down or not running.",
		RunE: func(c *cobra.Command, _ []string) error {
			return a.status(c.Context(), socketOf(path, socket), asJSON)
		},
	}
	socketFlags(c, &path, &socket)
	c.Flags().BoolVar(&asJSON, "json", false, "print the whole report as JSON")
	return c
}

// socketFlags are the flags of commands that ask the running daemon.
func socketFlags(c *cobra.Command, path, socket *string) {
	c.Flags().StringVarP(path, "config", "c", config.DefaultPath, "configuration `file` of the gateway")
	c.Flags().StringVar(socket, "socket", "", "status `socket`, if it is not that of the configuration")
}

// socketOf is the socket that the flags name. A configuration with faults still
// tells it: a gateway that was started before it was broken is running.
func socketOf(path, socket string) string {
	if socket != "" {
		return socket
	}
	return config.PlacesOf(path).StatusSocket
}

func (a *app) status(ctx context.Context, socket string, asJSON bool) error {
	r, err := status.NewClient(socket).Report(ctx)
	if _, absent := errors.AsType[*status.NotRunningError](err); absent {
		return &exit{int(status.Down), err}
	}
	if err != nil {
		return coded(err)
	}
	if asJSON {
		out := json.NewEncoder(a.out)
		out.SetIndent("", "  ")
		err = out.Encode(r)
	} else {
		err = r.Write(a.out)
	}
	if err != nil {
		return coded(err)
	}
	if r.Verdict != status.OK {
		return &exit{int(r.Verdict), nil}
	}
	return nil
}
