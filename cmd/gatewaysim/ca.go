package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/bedside-gateway/gatewayd/internal/sim/ca"
	"github.com/bedside-gateway/gatewayd/internal/sim/pki"
	"github.com/bedside-gateway/gatewayd/observation"
)

type caFlags struct {
	pki, issuer, listen, addressFile string
	bootstrap, ekRoots               string
	names, authorised, allowEK       []string
	days, pending                    int
	retryAfter                       time.Duration
	attestation                      bool
}

func (a *app) caCommand() *cobra.Command {
	var f caFlags
	c := &cobra.Command{
		Use: "ca --pki DIR", Short: "Run the CA of a simulated hospital", Args: none,
		Long: "Issue certificates to gateways, with the issuing CAs that gatewaysim pki made in DIR, over HTTPS:\n" +
			"by EST (RFC 7030: cacerts, csrattrs, simpleenroll, simplereenroll below /.well-known/est), and by attestation of\n" +
			"the TPM (gatewayd enroll attest, below /attest). A first certificate by EST takes a user and a password from\n" +
			"--bootstrap, a renewal the current certificate. Attestation takes a TPM whose endorsement key is certified by\n" +
			"--ek-roots, or allowed by its name. What is issued is kept in DIR/" + pki.IssuedDir + ". It prints a line for each decision.",
		Example: "  gatewaysim ca --pki pki --bootstrap users.txt\n  gatewaysim ca --pki pki --require-attestation --ek-roots makers.pem\n" +
			"  gatewaysim ca sign --pki pki gateway.csr",
		RunE: func(c *cobra.Command, _ []string) error {
			if err := required(c, "pki"); err != nil {
				return err
			}
			return a.runCA(c.Context(), f)
		},
	}
	f.policy(c)
	c.Flags().StringVar(&f.listen, "listen", "127.0.0.1:2562", "`address` to listen on")
	c.Flags().StringVar(&f.addressFile, "address-file", "", "`file` to write the address into, once it listens")
	c.Flags().StringSliceVar(&f.names, "name", nil, "DNS `names` and IP addresses of this server, beside localhost")
	c.Flags().StringVar(&f.bootstrap, "bootstrap", "", "`file` of users who may enrol devices by EST, a line user:password each")
	c.Flags().BoolVar(&f.attestation, "require-attestation", false, "issue no first certificate by EST: the key has to be shown to be in a TPM")
	c.Flags().StringVar(&f.ekRoots, "ek-roots", "", "`file` of the roots and intermediate CAs of TPM makers (PEM)")
	c.Flags().StringSliceVar(&f.allowEK, "allow-ek", nil, "`names` of endorsement keys that need no certificate (hexadecimal, 000b...)")
	c.Flags().IntVar(&f.pending, "pending", 0, "`number` of requests by EST that are put off (202) before one is decided")
	c.Flags().DurationVar(&f.retryAfter, "retry-after", ca.DefaultRetryAfter, "`time` after which those are to ask again")
	c.AddCommand(a.signCommand(), a.wrapCommand(), a.approveCommand())
	return c
}

// policy are the flags of every way to a certificate.
func (f *caFlags) policy(c *cobra.Command) {
	c.Flags().StringVar(&f.pki, "pki", "", "`folder` that gatewaysim pki made")
	c.Flags().StringVar(&f.issuer, "issuer", "", "`name` of the issuing CA in DIR/index.json (default: that of the key's scheme)")
	c.Flags().IntVar(&f.days, "days", int(ca.DefaultLifetime/(24*time.Hour)), "validity of certificates in `days`")
	c.Flags().StringSliceVar(&f.authorised, "authorised", nil, "`EUI-64` of devices that get a certificate (default: all)")
}

func (a *app) signCommand() *cobra.Command {
	var f caFlags
	var out string
	c := &cobra.Command{
		Use: "sign --pki DIR FILE", Short: "Sign a certificate request that was brought by hand",
		Long: "Sign a certificate request (PEM or DER; - is the standard input), and print the certificate and its issuing CA in PEM.",
		RunE: func(c *cobra.Command, args []string) error {
			if err := required(c, "pki"); err != nil {
				return err
			}
			if len(args) != 1 {
				return usage("ca sign takes one file, the certificate request")
			}
			return a.signRequest(f, args[0], out)
		},
	}
	f.policy(c)
	c.Flags().StringVar(&out, "out", "", "`file` to write the chain into (default: the standard output)")
	return c
}

func (f *caFlags) options() (o ca.Options, err error) {
	if o.PKI, err = pki.Read(f.pki); err != nil {
		return o, err
	}
	if f.days < 1 {
		return o, usage("--days %d: it is at least 1", f.days)
	}
	for _, s := range f.authorised {
		id, err := observation.ParseEUI64(s)
		if err != nil {
			return o, usage("--authorised: %w", err)
		}
		o.Authorised = append(o.Authorised, id)
	}
	if o.EKRoots, o.EKIntermediates, err = makers(f.ekRoots); err != nil {
		return o, err
	}
	if o.Credentials, err = users(f.bootstrap); err != nil {
		return o, err
	}
	o.Issuer, o.Names, o.Lifetime = f.issuer, f.names, time.Duration(f.days)*24*time.Hour
	o.RequireAttestation, o.AllowEK, o.Pending, o.RetryAfter = f.attestation, f.allowEK, f.pending, f.retryAfter
	o.Record = func(c *x509.Certificate) error { return pki.Record(f.pki, c) }
	return o, nil
}

// makers are the self-signed certificates of a file, and the others.
func makers(file string) (roots, between *x509.CertPool, err error) {
	if file == "" {
		return nil, nil, nil
	}
	rest, err := os.ReadFile(file)
	if err != nil {
		return nil, nil, err
	}
	roots, between = x509.NewCertPool(), x509.NewCertPool()
	for n := 0; ; n++ {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			if n == 0 {
				return nil, nil, fmt.Errorf("%s holds no certificate in PEM form", file)
			}
			return roots, between, nil
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, nil, fmt.Errorf("%s: PEM block %d: %w", file, n+1, err)
		}
		if bytes.Equal(c.RawSubject, c.RawIssuer) {
			roots.AddCert(c)
		} else {
			between.AddCert(c)
		}
	}
}

// users reads a line user:password each; # begins a comment.
func users(file string) (map[string]string, error) {
	if file == "" {
		return nil, nil
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	all := map[string]string{}
	n := 0
	for line := range strings.Lines(string(text)) {
		n++
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		user, password, ok := strings.Cut(line, ":")
		if !ok || user == "" || password == "" {
			return nil, fmt.Errorf("%s:%d is no user:password", file, n)
		}
		all[user] = password
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("%s holds no user:password", file)
	}
	return all, nil
}

func (a *app) runCA(ctx context.Context, f caFlags) error {
	o, err := f.options()
	if err != nil {
		return err
	}
	var mu sync.Mutex // decisions come side by side, lines do not
	o.Events = func(e ca.Event) {
		mu.Lock()
		defer mu.Unlock()
		a.caLine(e)
	}
	server, err := ca.New(o)
	if err != nil {
		return usageError{err}
	}
	config, err := server.TLS()
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", f.listen)
	if err != nil {
		return err
	}
	if err := writeAddress(f.addressFile, l.Addr().String()); err != nil {
		return errors.Join(err, l.Close())
	}
	mu.Lock()
	fmt.Fprintf(a.out, "ca listening on %s\n", l.Addr())
	mu.Unlock()
	return serve(ctx, tls.NewListener(l, config), server)
}

// caLine prints a decision.
func (a *app) caLine(e ca.Event) {
	device := e.Device
	if device == "" {
		device = "unknown device"
	}
	if p, is := errors.AsType[*ca.Pending](e.Err); is {
		fmt.Fprintf(a.out, "ca %s %s: put off by %v\n", e.Way, device, p.After)
		return
	}
	if e.Err != nil {
		fmt.Fprintf(a.out, "ca %s %.60q refused: %v\n", e.Way, device, e.Err)
		return
	}
	fmt.Fprintf(a.out, "ca %s %s: issued %s, by %s\n", e.Way, device, e.Serial, e.Detail)
}

// writeAddress puts the file there whole: who waits for it reads all of it.
func writeAddress(file, address string) error {
	if file == "" {
		return nil
	}
	part := file + ".part"
	if err := os.WriteFile(part, []byte(address+"\n"), 0o644); err != nil {
		return err
	}
	return os.Rename(part, file)
}

func (a *app) signRequest(f caFlags, file, out string) error {
	o, err := f.options()
	if err != nil {
		return err
	}
	der, err := readRequest(file)
	if err != nil {
		return err
	}
	server, err := ca.New(o)
	if err != nil {
		return usageError{err}
	}
	chain, err := server.Sign(der)
	if err != nil {
		return err
	}
	var text bytes.Buffer
	for _, c := range chain {
		if err := pem.Encode(&text, &pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}); err != nil {
			return err
		}
	}
	if out == "" {
		_, err = a.out.Write(text.Bytes())
		return err
	}
	return os.WriteFile(out, text.Bytes(), 0o644)
}

const maxRequestFile = 64 << 10

// readRequest takes PEM, with whatever text around it that was copied along, or DER.
func readRequest(file string) ([]byte, error) {
	text, err := readSmall(file)
	if err != nil {
		return nil, err
	}
	for rest := text; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return text, nil
		}
		if strings.HasSuffix(block.Type, "CERTIFICATE REQUEST") {
			return block.Bytes, nil
		}
	}
}
