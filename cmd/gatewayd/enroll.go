package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"rsc.io/qr"

	"github.com/bedside-gateway/gatewayd/internal/config"
	"github.com/bedside-gateway/gatewayd/internal/daemon"
	"github.com/bedside-gateway/gatewayd/internal/enroll"
	"github.com/bedside-gateway/gatewayd/internal/status"
	"github.com/bedside-gateway/gatewayd/keystore/est"
	"github.com/bedside-gateway/gatewayd/keystore/tpm"
)

// enrolling is what the commands of enroll share.
type enrolling struct {
	app    *app
	path   string
	store  string
	asJSON bool
}

func (a *app) enrollCommand() *cobra.Command {
	e := &enrolling{app: a}
	c := &cobra.Command{
		Use: "enroll", Short: "Get the gateway its key and certificate, and keep them",
		Long: "Make the gateway's key in its TPM, have a certificate issued for it, and keep both.\n\n" +
			"The way of a new gateway: init, csr, then install what the CA issues; or init, then renew or attest with a CA\n" +
			"that answers by itself. Each command can be repeated: what is done already stays as it is.",
		Args: cobra.ArbitraryArgs,
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usage("gatewayd enroll needs one of init, status, csr, install, renew, import, attest and reset")
			}
			return usage("there is no command enroll %q%s", args[0], suggestion(c, args[0]))
		},
	}
	c.SuggestionsMinimumDistance = 2
	f := c.PersistentFlags()
	f.StringVarP(&e.path, "config", "c", config.DefaultPath, "configuration `file`")
	f.StringVar(&e.store, "store", enroll.Device, "`name` of the key: that of the gateway, or of a store in [[southbound.identity]]")
	f.BoolVar(&e.asJSON, "json", false, "print the outcome as JSON")
	c.AddCommand(e.initCommand(), e.statusCommand(), e.csrCommand(), e.installCommand(), e.renewCommand(), e.importCommand(), e.attestCommand(), e.resetCommand())
	return c
}

// An office is an applicant with its configuration and its TPM open.
type office struct {
	*enroll.Applicant
	config *config.Config
	tpm    *tpm.TPM
}

func (o *office) close() { _ = o.tpm.Close() }

// office opens what enrolment needs. A configuration that admits a file key has
// no use for it.
func (a *app) office(path, store string) (*office, error) {
	c, err := config.Load(path, a.configOptions())
	if err != nil {
		return nil, configured(err)
	}
	if c.Identity.InsecureFileKey {
		return nil, configured(errors.New("the configuration has its key in a file: take certificate, key and insecure_file_key out of [identity] to enrol the TPM"))
	}
	t, err := enroll.OpenTPM(c, tpm.Options{})
	if err != nil {
		return nil, configured(err)
	}
	n, err := enroll.New(c, store, t, time.Now)
	if err != nil {
		return nil, configured(err)
	}
	return &office{n, c, t}, nil
}

// step is a command that ends with an outcome.
func (e *enrolling) step(c *cobra.Command, f func(context.Context, *office) (enroll.Outcome, error)) error {
	o, err := e.app.office(e.path, e.store)
	if err != nil {
		return err
	}
	defer o.close()
	done, err := f(c.Context(), o)
	if err != nil {
		return enrolFault(err)
	}
	return e.print(done)
}

func (e *enrolling) print(done enroll.Outcome) error {
	if e.asJSON {
		return coded(json.NewEncoder(e.app.out).Encode(done))
	}
	fmt.Fprintf(e.app.out, "%s\nNext: %s\n", done.Done, done.Next)
	return nil
}

// enrolFault gives an error of enrolment its exit code.
func enrolFault(err error) error {
	if _, ok := errors.AsType[*est.Pending](err); ok || tpm.FaultOf(err) == tpm.Busy {
		return &exit{exitTryLater, err}
	}
	if _, ok := errors.AsType[*est.Refused](err); ok {
		return &exit{exitProtocol, err}
	}
	if tpm.FaultOf(err) == tpm.Absent {
		return &exit{exitUnavailable, err}
	}
	return coded(err)
}

func (e *enrolling) initCommand() *cobra.Command {
	return &cobra.Command{
		Use: "init", Short: "Make a key in the TPM, and a request for its certificate", Args: none,
		RunE: func(c *cobra.Command, _ []string) error {
			return e.step(c, func(ctx context.Context, o *office) (enroll.Outcome, error) { return o.Init(ctx) })
		},
	}
}

func (e *enrolling) statusCommand() *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "Tell how TPM, keys and certificates stand", Args: none,
		Long: "Tell how TPM, keys and certificates stand, and the next step. The exit code is 0 where the gateway is enrolled\n" +
			"and nothing is wrong, else 1.",
		RunE: func(c *cobra.Command, _ []string) error {
			o, err := e.app.office(e.path, e.store)
			if err != nil {
				return err
			}
			defer o.close()
			s, err := o.Status(c.Context())
			if err != nil {
				return coded(err)
			}
			if e.asJSON {
				err = json.NewEncoder(e.app.out).Encode(s)
			} else {
				err = writeStatus(e.app.out, o, s)
			}
			if err == nil && (s.Fault != "" || len(s.Slots) == 0 || s.Slots[0].Subject == "" || s.Slots[0].Expiry != "") {
				return &exit{exitRuntime, nil}
			}
			return coded(err)
		},
	}
}

func writeStatus(w io.Writer, o *office, s enroll.Status) error {
	fmt.Fprintf(w, "%s, TPM %s", o.Subject.CommonName(), o.tpm.Address())
	switch {
	case s.TPM != nil:
		fmt.Fprintf(w, " (%s %s)\n", s.TPM.Manufacturer, s.TPM.Firmware)
	default:
		fmt.Fprintln(w)
	}
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	for i, slot := range s.Slots {
		if i == 0 {
			fmt.Fprintln(t, "SLOT\tKEY\tKIND\tCERTIFICATE\tISSUER\tUNTIL\tRENEW FROM")
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", slot.Slot, slot.Key, slot.Kind, orDash(slot.Subject), orDash(slot.Issuer), date(slot.NotAfter), date(slot.RenewAt))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if s.Fault != "" {
		fmt.Fprintf(w, "! %s: %s\n", s.Fault, s.Text)
	}
	_, err := fmt.Fprintf(w, "Next: %s\n", s.Next)
	return err
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func date(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format(time.DateOnly)
}

func (e *enrolling) csrCommand() *cobra.Command {
	var asQR bool
	c := &cobra.Command{
		Use: "csr", Short: "Print the request for the certificate that is wanted next", Args: none,
		Long: "Print the request (PKCS #10, PEM) for the certificate that is wanted next: for the key that waits for one, or else\n" +
			"for the key in use. It is the same each time, until the certificate is installed. With --qr it is a QR code of the\n" +
			"same text for a terminal of 80 columns, to be read off a console by a telephone.",
		RunE: func(c *cobra.Command, _ []string) error {
			o, err := e.app.office(e.path, e.store)
			if err != nil {
				return err
			}
			defer o.close()
			text, err := o.Request(c.Context())
			if err != nil {
				return enrolFault(err)
			}
			if asQR {
				return coded(writeQR(e.app.out, text))
			}
			_, err = e.app.out.Write(text)
			return coded(err)
		},
	}
	c.Flags().BoolVar(&asQR, "qr", false, "print it as a QR code")
	return c
}

// writeQR draws a code with two modules a character, dark on light whatever the
// terminal's colours are: a space is as dark as the background, so that light
// modules are drawn.
func writeQR(w io.Writer, text []byte) error {
	code, err := qr.Encode(strings.TrimSpace(string(text)), qr.L)
	if err != nil {
		return fmt.Errorf("the request does not fit into a QR code: %w; print it without --qr", err)
	}
	const quiet = 4 // modules that have to stay light around it (ISO/IEC 18004)
	var b strings.Builder
	for y := -quiet; y < code.Size+quiet; y += 2 {
		for x := -quiet; x < code.Size+quiet; x++ {
			upper, lower := !code.Black(x, y), !code.Black(x, y+1) && y+1 < code.Size+quiet
			b.WriteString(map[[2]bool]string{{true, true}: "█", {true, false}: "▀", {false, true}: "▄"}[[2]bool{upper, lower}])
			if !upper && !lower {
				b.WriteByte(' ')
			}
		}
		b.WriteByte('\n')
	}
	_, err = io.WriteString(w, b.String())
	return err
}

// readAll reads a file of the command line, - being the standard input.
func (a *app) readAll(name string) ([]byte, error) {
	f, err := a.open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	const most = 1 << 20
	text, err := io.ReadAll(io.LimitReader(f, most+1))
	if err == nil && len(text) > most {
		err = fmt.Errorf("%s has more than %d bytes: it is something else", name, most)
	}
	return text, err
}

func (e *enrolling) installCommand() *cobra.Command {
	return &cobra.Command{
		Use: "install FILE", Short: "Install a certificate that a CA issued", Args: one("FILE"),
		Long: "Install the certificate that a CA issued for gatewayd enroll csr, with its issuing CA's: PEM in any order, or\n" +
			"PKCS #7 in PEM. FILE - is the standard input. The first certificate is in use at once; a later one is put beside\n" +
			"it, tried with a platform by the running gateway, and then taken up.",
		RunE: func(c *cobra.Command, args []string) error {
			text, err := e.app.readAll(args[0])
			if err != nil {
				return coded(err)
			}
			return e.step(c, func(_ context.Context, o *office) (enroll.Outcome, error) {
				done, err := o.Install(text)
				if err != nil {
					err = fmt.Errorf("%s: %w", args[0], err)
				}
				return done, err
			})
		},
	}
}

// An authority is the CA of the flags, or that of the configuration.
type authority struct{ url, trust, user, passwordFile string }

func (u *authority) flags(c *cobra.Command) {
	c.Flags().StringVar(&u.url, "url", "", "https `URL` of the CA (default: est_url in [identity])")
	c.Flags().StringVar(&u.trust, "trust", "", "PEM `file` of the roots of the CA's server (default: est_trust in [identity])")
}

func (a *app) authority(c *config.Config, u authority) (enroll.CA, error) {
	i := *c // a copy: the flags are for this once
	if u.url != "" {
		i.Identity.ESTURL = u.url
	}
	if u.trust != "" {
		i.Identity.ESTTrust = u.trust
	}
	if i.Identity.ESTURL != "" && i.Identity.ESTTrust == "" {
		return enroll.CA{}, usage("--trust is missing: no CA is trusted unseen")
	}
	ca, err := enroll.Authority(&i)
	if err != nil || u.user == "" {
		return ca, configured(err)
	}
	if u.passwordFile == "" {
		return ca, usage("--password-file is missing")
	}
	ca.Credential = func() (string, string, error) {
		text, err := a.readAll(u.passwordFile)
		return u.user, strings.TrimRight(string(text), "\r\n"), err
	}
	return ca, nil
}

func (e *enrolling) renewCommand() *cobra.Command {
	var u authority
	c := &cobra.Command{
		Use: "renew", Short: "Have a CA issue the next certificate now, over EST", Args: none,
		Long: "Have a CA issue the next certificate for a new key, over EST (RFC 7030). The gateway shows its present certificate;\n" +
			"for the first one, or after the present one has expired, give the bootstrap credential of the CA. The running\n" +
			"gateway renews by itself where est_url is set in [identity].",
		RunE: func(c *cobra.Command, _ []string) error {
			return e.step(c, func(ctx context.Context, o *office) (enroll.Outcome, error) {
				ca, err := e.app.authority(o.config, u)
				if err != nil {
					return enroll.Outcome{}, err
				}
				return o.Renew(ctx, ca)
			})
		},
	}
	u.flags(c)
	c.Flags().StringVar(&u.user, "user", "", "`user` of the bootstrap credential")
	c.Flags().StringVar(&u.passwordFile, "password-file", "", "`file` with its password, - for the standard input")
	return c
}

func (e *enrolling) attestCommand() *cobra.Command {
	var u authority
	c := &cobra.Command{
		Use: "attest", Short: "Have a CA issue a certificate that proves the key is in this TPM", Args: none,
		Long: "Have a CA issue a certificate after it has seen proof that the key is in this TPM: the TPM's endorsement\n" +
			"certificate, a certification of the key by an attestation key, and the activation of a credential.",
		RunE: func(c *cobra.Command, _ []string) error {
			return e.step(c, func(ctx context.Context, o *office) (enroll.Outcome, error) {
				ca, err := e.app.authority(o.config, u)
				if err != nil {
					return enroll.Outcome{}, err
				}
				return o.Attest(ctx, ca)
			})
		},
	}
	u.flags(c)
	return c
}

func (e *enrolling) importCommand() *cobra.Command {
	var parent bool
	c := &cobra.Command{
		Use: "import FILE", Short: "Import a key that a PKI made, with its certificate", Args: atMostOne,
		Long: "Import a key that a PKI made together with its certificate: wrapped to this TPM (a TSS2 PRIVATE KEY, see --parent),\n" +
			"or in the clear from a pipe (FILE -), so that it never is in a file here. The certificates may stand beside it.\n" +
			"A key that the TPM made itself is safer: it was never anywhere else.",
		RunE: func(c *cobra.Command, args []string) error {
			if parent {
				return e.printParent(c.Context())
			}
			if len(args) == 0 {
				return usage("gatewayd enroll import needs a FILE, or --parent")
			}
			text, err := e.app.readAll(args[0])
			if err != nil {
				return coded(err)
			}
			defer clear(text)
			return e.step(c, func(ctx context.Context, o *office) (enroll.Outcome, error) {
				done, err := o.Import(ctx, text, args[0] == "-")
				if err != nil {
					err = fmt.Errorf("%s: %w", args[0], err)
				}
				return done, err
			})
		},
	}
	c.Flags().BoolVar(&parent, "parent", false, "print the public key of this TPM that a PKI wraps keys to")
	return c
}

func (e *enrolling) printParent(ctx context.Context) error {
	o, err := e.app.office(e.path, e.store)
	if err != nil {
		return err
	}
	defer o.close()
	text, err := o.tpm.Parent(ctx)
	if err != nil {
		return enrolFault(err)
	}
	_, err = e.app.out.Write(text)
	return coded(err)
}

func (e *enrolling) resetCommand() *cobra.Command {
	var yes, abandon bool
	c := &cobra.Command{
		Use: "reset", Short: "Give key and certificate up, to enrol the gateway anew", Args: none,
		Long: "Give up all keys and certificates of the gateway, for a TPM that was cleared or exchanged, or a box that changes\n" +
			"hands. They are moved aside, and are of no use without the TPM. The messages in the spool stay, unless the TPM\n" +
			"gives their key no more: then nobody can read them, and --abandon-spool moves them aside as well.",
		RunE: func(c *cobra.Command, _ []string) error {
			if !yes {
				return usage("gatewayd enroll reset gives up the gateway's identity: say --yes if you mean it")
			}
			return e.step(c, func(ctx context.Context, o *office) (enroll.Outcome, error) { return e.reset(ctx, o, abandon) })
		},
	}
	c.Flags().BoolVar(&yes, "yes", false, "do it")
	c.Flags().BoolVar(&abandon, "abandon-spool", false, "give up messages that nobody can read any more")
	return c
}

func (e *enrolling) reset(ctx context.Context, o *office, abandon bool) (enroll.Outcome, error) {
	if r, err := status.NewClient(o.config.Gateway.StatusSocket).Report(ctx); err == nil && r.Ready {
		return enroll.Outcome{}, &exit{exitTryLater, errors.New("the gateway runs: stop it first (systemctl stop gatewayd), then reset")}
	}
	key := daemon.SpoolKey{Dir: o.config.Gateway.StateDir, TPM: o.tpm}
	moved := ""
	if lost, err := key.Lost(ctx); err != nil {
		return enroll.Outcome{}, err
	} else if lost {
		if !abandon {
			return enroll.Outcome{}, &exit{exitData, errors.New("the TPM gives the key of the spool no more, so that the messages in it are lost: say --abandon-spool to begin a new one")}
		}
		if moved, err = key.Abandon(); err != nil {
			return enroll.Outcome{}, err
		}
	}
	changed, err := o.Reset()
	if err != nil {
		return enroll.Outcome{}, err
	}
	done := enroll.Outcome{Changed: changed || moved != "", Done: "The gateway has no key and no certificate any more.", Next: "Run gatewayd enroll init."}
	if moved != "" {
		done.Done += " What nobody can read was moved to " + moved + "."
	}
	return done, nil
}
