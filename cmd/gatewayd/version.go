package main

import (
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"
)

func (a *app) versionCommand() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use: "version", Short: "Print version, commit, Go and board", Args: none,
		RunE: func(*cobra.Command, []string) error {
			if asJSON {
				return coded(json.NewEncoder(a.out).Encode(a.build))
			}
			_, err := fmt.Fprintf(a.out, "gatewayd %s\ncommit %s\n%s\nboard %s\n", a.build.Version, a.build.Commit, a.build.Go, a.build.Board)
			return coded(err)
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print it as JSON")
	return c
}
