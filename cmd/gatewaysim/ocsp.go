package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/bedside-gateway/gatewayd/internal/sim/pki"
	"github.com/bedside-gateway/gatewayd/internal/sim/responder"
)

func (a *app) ocspCommand() *cobra.Command {
	s := statusServer{app: a, name: "ocsp", address: "127.0.0.1:2560", known: responder.OCSPAnswers(), make: responder.New}
	c := s.command()
	c.Use, c.Short = "ocsp --dir DIR", "Run the OCSP responder of a simulated hospital"
	c.Long = "Answer OCSP requests (RFC 6960, GET and POST) about the certificates that gatewaysim pki made in DIR, and those that\n" +
		"gatewaysim ca issued with it. They are told where to ask with pki --ocsp-url http://127.0.0.1:2560/{ca}.\n\n" + s.help("a certificate's name in DIR/index.json or its serial number")
	c.Example = "  gatewaysim ocsp --dir pki\n  gatewaysim ocsp --dir pki --answer platform=revoked,ecc-issuing=stale --control ocsp.sock\n" +
		"  gatewaysim tell --control ocsp.sock answer wrong-signer"
	return c
}

// A statusServer is one of the two commands that serve the status of certificates.
type statusServer struct {
	*app
	name    string
	address string // default of --listen
	known   []responder.Answer
	make    func(responder.Options) (*responder.Server, error)
}

func (s statusServer) help(who string) string {
	return "--answer is a list, separated by commas: an answer for all and WHO=ANSWER for one, WHO being " + who + ".\n" +
		"The answers are " + wrapped(responder.Help(s.known), 100) + ".\n" +
		"slow:3s is slow by that time. gatewaysim tell changes them while it runs. It prints a line for each request."
}

// wrapped breaks a list at spaces.
func wrapped(text string, width int) string {
	var b strings.Builder
	line := 0
	for i, word := range strings.Fields(text) {
		switch {
		case i == 0:
		case line+len(word) >= width:
			b.WriteByte('\n')
			line = 0
		default:
			b.WriteByte(' ')
			line++
		}
		b.WriteString(word)
		line += len(word)
	}
	return b.String()
}

func (s statusServer) command() *cobra.Command {
	var dir, listen, control string
	var o responder.Options
	c := &cobra.Command{Args: none, RunE: func(c *cobra.Command, _ []string) (err error) {
		if err := required(c, "dir"); err != nil {
			return err
		}
		if o.PKI, err = pki.Read(dir); err != nil {
			return err
		}
		o.Issued = func(serial *big.Int) (*x509.Certificate, error) { return pki.Issued(dir, serial) }
		return s.run(c.Context(), o, listen, control)
	}}
	c.Flags().StringVar(&dir, "dir", "", "`folder` that gatewaysim pki made")
	c.Flags().StringVar(&listen, "listen", s.address, "`address` to listen on")
	c.Flags().StringVar(&o.Answers, "answer", string(responder.Auto), "how to answer, a `script`")
	c.Flags().DurationVar(&o.Lifetime, "lifetime", responder.DefaultLifetime, "`time` from thisUpdate to nextUpdate")
	c.Flags().StringVar(&control, "control", "", "unix `socket` to change the answers on, see gatewaysim tell")
	return c
}

func (s statusServer) run(ctx context.Context, o responder.Options, listen, control string) error {
	var mu sync.Mutex // requests come side by side, lines do not
	o.Events = func(e responder.Event) {
		mu.Lock()
		defer mu.Unlock()
		if e.Err != nil {
			fmt.Fprintf(s.out, "%s %s refused: %v\n", s.name, e.Method, e.Err)
			return
		}
		fmt.Fprintf(s.out, "%s %s %s: %s\n", s.name, e.Method, strings.Join(e.Names, " "), e.Answer)
	}
	server, err := s.make(o)
	if err != nil {
		return usageError{err}
	}
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	endControl, err := serveControl(control, server.Control())
	if err != nil {
		return errors.Join(err, l.Close())
	}
	fmt.Fprintf(s.out, "%s listening on %s\n", s.name, l.Addr())
	err = errors.Join(serve(ctx, l, server), endControl())
	state := server.State()
	fmt.Fprintf(s.out, "%s requests %d, refused %d\n", s.name, state.Requests, state.Refused)
	return err
}

// serve ends with the context; whoever still waits for an answer is cut off.
func serve(ctx context.Context, l net.Listener, h http.Handler) error {
	s := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, MaxHeaderBytes: 32 << 10}
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(l) }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	err := s.Close()
	if served := <-ended; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, served)
	}
	return err
}
