package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/bedside-gateway/gatewayd/internal/sim/pki"
	"github.com/bedside-gateway/gatewayd/internal/sim/platform"
	"github.com/bedside-gateway/gatewayd/internal/sim/responder"
	"github.com/bedside-gateway/gatewayd/keystore/keyfile"
	"github.com/bedside-gateway/gatewayd/observation"
	"github.com/bedside-gateway/gatewayd/revocation/fetch"
)

type platformFlags struct {
	listen, trust, store, answer, control string
	pki, staple                           string
	certificates, keys, authorised        []string
	strict, show                          bool
	connections                           int
}

func (a *app) platformCommand() *cobra.Command {
	var f platformFlags
	c := &cobra.Command{
		Use: "platform --cert FILE --key FILE --trust FILE", Short: "Run the reference platform", Args: none,
		Long: "Run a platform that takes IHE PCD messages over MLLP inside mutual TLS, stores them and acknowledges them by the\n" +
			"rules, or as it is told: " + platform.AnswersHelp + ".\n" +
			"It staples an OCSP response for every certificate of its chain. Where the certificates name a responder\n" +
			"(gatewaysim pki --ocsp-url, gatewaysim ocsp) that one is asked, about devices as well. Otherwise the responses\n" +
			"are made from the folder that gatewaysim pki wrote, and so they are with --staple, by position: " + responder.Help(responder.OCSPAnswers()) + ".\n" +
			"It prints a line for each message. SIGTERM or Ctrl-C ends it after the answers that are due.",
		Example: "  gatewaysim platform --cert pki/platform.pem --key pki/platform.key --trust pki/roots.pem --store received",
		RunE: func(c *cobra.Command, _ []string) error {
			if err := required(c, "cert", "key", "trust"); err != nil {
				return err
			}
			return a.runPlatform(c.Context(), f)
		},
	}
	c.Flags().StringVar(&f.listen, "listen", "127.0.0.1:2575", "`address` to listen on")
	c.Flags().StringArrayVar(&f.certificates, "cert", nil, "certificate `file`, the issuing CA behind the leaf; once for each key scheme")
	c.Flags().StringArrayVar(&f.keys, "key", nil, "key `file` of each certificate")
	c.Flags().StringVar(&f.trust, "trust", "", "`file` of the roots of device certificates")
	c.Flags().StringSliceVar(&f.authorised, "authorised", nil, "`EUI-64` of devices that may connect (default: all with a good certificate)")
	c.Flags().StringVar(&f.store, "store", "", "`folder` for what is received (default: memory only)")
	c.Flags().StringVar(&f.answer, "answer", "auto", "how to answer, a `script`")
	c.Flags().StringVar(&f.pki, "pki", "", "`folder` of the PKI that staples for the certificates (default: that of the first --cert, if it is one)")
	c.Flags().StringVar(&f.staple, "staple", "", "the stapled `answers`, leaf first, with commas between; none staples nothing (default: auto, or what the responders say)")
	c.Flags().StringVar(&f.control, "control", "", "unix `socket` to change the answers on, see gatewaysim tell")
	c.Flags().BoolVar(&f.strict, "strict", false, "refuse messages that break the profile")
	c.Flags().BoolVar(&f.show, "show", false, "print the values of each message")
	c.Flags().IntVar(&f.connections, "max-connections", 64, "`number` of connections at a time")
	return c
}

func (f *platformFlags) options() (o platform.Options, err error) {
	if len(f.certificates) != len(f.keys) {
		return o, usage("%d --cert and %d --key: each certificate has its key", len(f.certificates), len(f.keys))
	}
	for i, file := range f.certificates {
		c, err := keyfile.Load(file, f.keys[i])
		if err != nil {
			return o, err
		}
		o.Certificates = append(o.Certificates, c)
	}
	if o.Roots, err = roots(f.trust); err != nil {
		return o, err
	}
	if err := f.hospital(&o); err != nil {
		return o, err
	}
	for _, s := range f.authorised {
		id, err := observation.ParseEUI64(s)
		if err != nil {
			return o, usage("--authorised: %w", err)
		}
		o.Authorised = append(o.Authorised, id)
	}
	if o.Answer, err = platform.ParseAnswers(f.answer); err != nil {
		return o, usageError{err}
	}
	o.Dir, o.Strict, o.MaxConnections, o.Keep = f.store, f.strict, f.connections, 1
	return o, nil
}

// hospital finds the PKI of the certificates, and what is to be stapled.
func (f *platformFlags) hospital(o *platform.Options) (err error) {
	dir := f.pki
	if dir == "" {
		dir = filepath.Dir(f.certificates[0])
		if _, err := os.Stat(filepath.Join(dir, pki.IndexFile)); err != nil {
			return nil // certificates of another making: the platform has nothing to staple
		}
	}
	if o.Hospital, err = pki.Read(dir); err != nil {
		return err
	}
	if f.staple == "" {
		return nil
	}
	for answer := range strings.SplitSeq(f.staple, ",") {
		answer = strings.TrimSpace(answer)
		if !slices.Contains(responder.OCSPAnswers(), responder.Answer(answer)) {
			return usage("--staple: there is no answer %q; there are %s", answer, responder.Help(responder.OCSPAnswers()))
		}
		o.Staple = append(o.Staple, responder.Answer(answer))
	}
	if len(o.Staple) == 1 && o.Staple[0] == responder.None {
		o.Staple = slices.Repeat(o.Staple, 8)
	}
	return nil
}

func roots(file string) (*x509.CertPool, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("%s holds no certificate in PEM form", file)
	}
	return pool, nil
}

// asksResponders reports whether a certificate names somebody to ask.
func asksResponders(certificates []tls.Certificate) bool {
	return slices.ContainsFunc(certificates, func(c tls.Certificate) bool { return c.Leaf != nil && len(c.Leaf.OCSPServer) > 0 })
}

// fetcher asks the responders that certificates name, and has the CRLs of the
// PKI as the backup.
func (a *app) fetcher(hospital *pki.PKI) *fetch.Fetcher {
	f := fetch.New(fetch.Options{Log: slog.New(slog.NewTextHandler(a.err, nil))})
	if hospital == nil {
		return f
	}
	for _, e := range hospital.Entries {
		if !e.IsCA() {
			continue
		}
		if err := f.AddCRL(e.CRL, e.Certificate); err != nil {
			fmt.Fprintf(a.err, "gatewaysim: %v; the responders have to do without\n", err)
		}
	}
	return f
}

func (a *app) runPlatform(ctx context.Context, f platformFlags) error {
	o, err := f.options()
	if err != nil {
		return err
	}
	if f.staple == "" && asksResponders(o.Certificates) {
		o.Fetcher = a.fetcher(o.Hospital)
		defer o.Fetcher.Close()
	}
	o.Events = func(e platform.Event) { a.platformLine(e, f.show) }
	p, err := platform.New(o)
	if err != nil {
		return err
	}
	if err := p.FetchStaples(ctx); err != nil && ctx.Err() == nil {
		fmt.Fprintf(a.err, "gatewaysim: gateways refuse the platform until its responders answer: %v\n", err)
	}
	if err := p.Listen(f.listen); err != nil {
		return errors.Join(err, p.Close())
	}
	endControl, err := serveControl(f.control, p.Control())
	if err != nil {
		return errors.Join(err, p.Close())
	}
	<-ctx.Done()
	err = errors.Join(endControl(), p.Close())
	c := p.Counts()
	fmt.Fprintf(a.out, "stored %d, again %d, said twice %d, rejected %d, findings %d, acknowledged %d, connections %d, refused %d\n",
		c.Stored, c.Again, c.Repeated, c.Rejected, c.Findings, c.Acks, c.Connections, c.Refused)
	return err
}

// serveControl serves on a unix socket of its own user, or nowhere.
func serveControl(socket string, h http.Handler) (end func() error, err error) {
	if socket == "" {
		return func() error { return nil }, nil
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(socket, 0o600); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	s := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second}
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(l) }()
	return func() error {
		err := s.Close()
		if served := <-ended; !errors.Is(served, http.ErrServerClosed) {
			err = errors.Join(err, served)
		}
		return err
	}, nil
}

// platformLine prints an event. Values are shown only where that was asked for;
// patients never.
func (a *app) platformLine(e platform.Event, show bool) {
	switch e.Kind {
	case platform.Listening:
		fmt.Fprintf(a.out, "listening on %s\n", e.Text)
	case platform.Killed:
		fmt.Fprintf(a.out, "killed: %s\n", e.Text)
	case platform.Connected:
		fmt.Fprintf(a.out, "connected: %s from %s\n", e.Peer, e.Remote)
	case platform.Refused:
		fmt.Fprintf(a.out, "refused: connection from %s: %s\n", e.Remote, e.Text)
	case platform.Rejected:
		fmt.Fprintf(a.out, "rejected: %s\n", e.Text)
	case platform.Closed:
		fmt.Fprintf(a.out, "closed: %s: %s\n", e.Peer, e.Text)
	case platform.Stored, platform.Again:
		a.messageLine(e, show)
	}
}

func (a *app) messageLine(e platform.Event, show bool) {
	m, word := e.Stored, "stored"
	if e.Kind == platform.Again {
		word = fmt.Sprintf("copy %d", m.Copy)
	}
	fmt.Fprintf(a.out, "%s: #%d %s device %s, %d values, %d bytes, %d findings, answer %s\n",
		word, m.Number, m.ControlID, m.Device, len(m.Document.Values()), m.Length, m.Record.Findings, m.Answer)
	for _, f := range m.Findings {
		fmt.Fprintf(a.out, "  %s\n", f)
	}
	if !show || e.Kind == platform.Again {
		return
	}
	for _, r := range m.Document.Values() {
		fmt.Fprintf(a.out, "  %s\n", r)
	}
}
