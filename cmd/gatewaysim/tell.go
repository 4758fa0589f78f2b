package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

func (a *app) tellCommand() *cobra.Command {
	var control string
	c := &cobra.Command{
		Use: "tell --control SOCKET answer SCRIPT | kill [DURATION] | restart | status", Short: "Change how a running platform behaves",
		Long: "Change how a running gatewaysim platform --control SOCKET behaves. kill resets its connections and stops\n" +
			"listening, for a time or until restart. The state of the platform is printed as JSON.",
		Example: "  gatewaysim tell --control platform.sock answer never*1,auto\n  gatewaysim tell --control platform.sock kill 3s",
		RunE: func(c *cobra.Command, args []string) error {
			if err := required(c, "control"); err != nil {
				return err
			}
			method, path, body, err := order(args)
			if err != nil {
				return err
			}
			return a.tell(c.Context(), control, method, path, body)
		},
	}
	c.Flags().StringVar(&control, "control", "", "unix `socket` of the platform")
	return c
}

// order is the request that the words are.
func order(args []string) (method, path, body string, err error) {
	switch words := strings.Join(args, " "); {
	case words == "status":
		return http.MethodGet, "/status", "", nil
	case words == "restart":
		return http.MethodPost, "/restart", "", nil
	case words == "kill":
		return http.MethodPost, "/kill", "", nil
	case len(args) == 2 && args[0] == "kill":
		if _, err := time.ParseDuration(args[1]); err != nil {
			return "", "", "", usage("kill %q: it takes a duration such as 3s", args[1])
		}
		return http.MethodPost, "/kill?for=" + args[1], "", nil
	case len(args) == 2 && args[0] == "answer":
		return http.MethodPost, "/answer", args[1], nil
	}
	return "", "", "", usage("tell %q: say answer SCRIPT, kill [DURATION], restart or status", strings.Join(args, " "))
}

func (a *app) tell(ctx context.Context, socket, method, path, body string) error {
	client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}}
	defer client.CloseIdleConnections()
	request, err := http.NewRequestWithContext(ctx, method, "http://platform"+path, strings.NewReader(body))
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		return fmt.Errorf("no platform answers at %s: %w; start it with --control %s", socket, err, socket)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(io.LimitReader(response.Body, 64<<10))
	if err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		return errors.New(strings.TrimSpace(string(text)))
	}
	fmt.Fprint(a.out, string(text))
	return nil
}
