package main

import (
	"fmt"
	"math"
	"net"
	"net/netip"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/bedside-gateway/gatewayd/internal/config"
)

func (a *app) checkCommand() *cobra.Command {
	var key string
	c := &cobra.Command{
		Use: "check [FILE]", Short: "Check a configuration, or explain its keys", Args: atMostOne,
		Long: "Check a configuration file and everything that it names. All problems come out at once, each with its line.\n" +
			"--explain KEY tells what a key means; --explain all tells it of every key.",
		Example: "  gatewayd check\n  gatewayd check --explain destination.interval",
		RunE: func(_ *cobra.Command, args []string) error {
			if key != "" {
				return a.explain(key)
			}
			return a.check(append(args, config.DefaultPath)[0])
		},
	}
	c.Flags().StringVar(&key, "explain", "", "explain a `key` and check nothing")
	_ = c.RegisterFlagCompletionFunc("explain", func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		keys := []string{"all"}
		for _, e := range config.Entries() {
			keys = append(keys, e.Key)
		}
		return keys, cobra.ShellCompDirectiveNoFileComp
	})
	return c
}

func (a *app) explain(key string) error {
	text, err := config.ExplainAll(a.drivers), error(nil)
	if key != "all" {
		text, err = config.Explain(key, a.drivers)
	}
	if err != nil {
		return usage("%w", err)
	}
	fmt.Fprint(a.out, text)
	return nil
}

func (a *app) check(path string) error {
	c, err := config.Load(path, a.configOptions())
	if err != nil {
		return configured(err)
	}
	for _, w := range c.Warnings {
		fmt.Fprintln(a.err, w)
	}
	fmt.Fprintf(a.out, "%s is in order: %s, %s", path, count(len(c.Ports), "port"), count(len(c.Destinations), "destination"))
	if n := len(c.Tunnels); n > 0 {
		fmt.Fprintf(a.out, ", %s", count(n, "tunnel"))
	}
	if s := c.Southbound; s != nil {
		fmt.Fprintf(a.out, ", %s at %s", count(len(s.Authorised), "device"), s.Listen)
	}
	fmt.Fprintln(a.out)
	return nil
}

// ownAddresses are those of the network cards; none where the system does not
// tell, for then a check less is made.
func ownAddresses() (all []netip.Addr) {
	cards, _ := net.InterfaceAddrs()
	for _, c := range cards {
		if n, err := netip.ParsePrefix(c.String()); err == nil {
			all = append(all, n.Addr().Unmap())
		}
	}
	return all
}

// maxDescriptors is how many descriptors this process may have; package os has
// raised the soft limit to the hard one at its start. 0: not known.
func maxDescriptors() int {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return 0
	}
	return int(min(limit.Cur, math.MaxInt32))
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
