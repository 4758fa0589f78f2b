package main

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/bedside-gateway/gatewayd/tlspolicy"
)

func (a *app) versionCommand() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use: "version", Short: "Print version, commit, Go, TLS and board", Args: none,
		RunE: func(*cobra.Command, []string) error {
			if asJSON {
				return coded(json.NewEncoder(a.out).Encode(a.build))
			}
			removed, err := tlspolicy.RemovedByFIPS()
			if err != nil {
				return coded(err)
			}
			fmt.Fprintf(a.out, "gatewayd %s\ncommit %s\n%s\ntls %s, policy %s\nboard %s\n", a.build.Version, a.build.Commit, a.build.Go, a.build.TLS, tlspolicy.CMIIST().Name, a.build.Board)
			if fileKey != nil {
				fmt.Fprintln(a.out, "development build: it takes private keys from files; never use it on patients")
			}
			if len(removed) > 0 {
				fmt.Fprintf(a.out, "FIPS 140-3 mode, without %s\n", strings.Join(removed, ", "))
			}
			return nil
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print it as JSON")
	return c
}
