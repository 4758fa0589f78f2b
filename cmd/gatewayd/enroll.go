package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"text/tabwriter"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"rsc.io/qr"

	"github.com/bedside-gateway/gatewayd/internal/config"
	"github.com/bedside-gateway/gatewayd/internal/daemon"
	"github.com/bedside-gateway/gatewayd/internal/enroll"
	"github.com/bedside-gateway/gatewayd/internal/status"
	"github.com/bedside-gateway/gatewayd/keystore"
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
	e.tellsErrors(c)
	return c
}

// An office is an applicant with its configuration and its TPM open.
type office struct {
	*enroll.Applicant
	config *config.Config
	tpm    *tpm.TPM
}

func (o *office) close() { _ = o.tpm.Close() }

// An opener is a way to the TPM of a configuration: enroll.OpenTPM or enroll.OpenAnyTPM.
type opener func(*config.Config, tpm.Options) (*tpm.TPM, error)

// office opens what enrolment needs. A configuration that admits a file key has
// no use for it.
func (a *app) office(path, store string) (*office, error) {
	return a.officeBy(enroll.OpenTPM, path, store)
}

// office is that of the commands that may write, as who owns what is there.
func (e *enrolling) office() (*office, error) {
	o, err := e.app.office(e.path, e.store)
	if err != nil {
		return nil, err
	}
	if err := become(o.config.Gateway.StateDir); err != nil {
		return nil, &exit{exitPermission, errors.Join(err, o.tpm.Close())}
	}
	return o, nil
}

func (a *app) officeBy(open opener, path, store string) (*office, error) {
	c, err := config.Load(path, a.configOptions())
	if err != nil {
		return nil, configured(err)
	}
	if c.Identity.InsecureFileKey {
		return nil, configured(errors.New("the configuration has its key in a file: take certificate, key and insecure_file_key out of [identity] to enrol the TPM"))
	}
	t, err := open(c, tpm.Options{})
	if errors.Is(err, keystore.ErrFingerprint) {
		return nil, coded(err)
	}
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
	o, err := e.office()
	if err != nil {
		return err
	}
	return e.at(c, o, f)
}

// at is a step in an office, which it closes.
func (e *enrolling) at(c *cobra.Command, o *office, f func(context.Context, *office) (enroll.Outcome, error)) error {
	defer o.close()
	done, err := f(c.Context(), o)
	if err != nil {
		return enrolFault(err)
	}
	return e.print(done)
}

func (e *enrolling) print(done enroll.Outcome) error {
	if e.asJSON {
		return coded(e.encode(done))
	}
	_, err := fmt.Fprintf(e.app.out, "%s\n%s\n", folded(e.app.out, done.Done), folded(e.app.out, "Next: "+done.Next))
	return coded(err)
}

// columns are those of a serial console; not every one of them breaks a line.
const columns = 80

// folded breaks a line at spaces for people. Programs get it whole.
func folded(to io.Writer, line string) string {
	if !isTerminal(to) {
		return line
	}
	return fold(line, columns-1)
}

func fold(line string, width int) string {
	var b strings.Builder
	at := 0
	for i, word := range strings.Fields(line) {
		switch n := utf8.RuneCountInString(word); {
		case i == 0:
			at = n
		case at+1+n > width:
			b.WriteString("\n  ")
			at = 2 + n
		default:
			b.WriteByte(' ')
			at += 1 + n
		}
		b.WriteString(word)
	}
	return b.String()
}

// isTerminal reports whether a stream is a console or another such device.
func isTerminal(stream any) bool { return mode(stream)&os.ModeCharDevice != 0 }

// mode is what kind of file a stream is; a pipe where it is none.
func mode(stream any) fs.FileMode {
	f, ok := stream.(*os.File)
	if !ok {
		return fs.ModeNamedPipe
	}
	info, err := f.Stat()
	if err != nil {
		return fs.ModeNamedPipe
	}
	return info.Mode()
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
			o, err := e.office()
			if err != nil {
				return err
			}
			defer o.close()
			s, err := o.Status(c.Context())
			if err != nil {
				return coded(err)
			}
			if e.asJSON {
				err = e.encode(s)
			} else {
				err = e.writeStatus(o, s)
			}
			if err == nil && !healthy(s) {
				return &exit{exitRuntime, nil}
			}
			return coded(err)
		},
	}
}

// healthy reports whether the gateway is enrolled and nothing is wrong.
func healthy(s enroll.Status) bool {
	if s.Fault != "" || len(s.Slots) == 0 {
		return false
	}
	current := s.Slots[0]
	return current.Slot == keystore.Current && current.Subject != "" && current.Expiry == "" && current.Fault == ""
}

func (e *enrolling) writeStatus(o *office, s enroll.Status) error {
	w := e.app.out
	fmt.Fprintf(w, "%s, TPM %s", o.Subject.CommonName(), o.tpm.Address())
	if s.TPM != nil {
		fmt.Fprintf(w, " (%s %s)", s.TPM.Manufacturer, s.TPM.Firmware)
	}
	fmt.Fprintln(w)
	if err := writeSlots(w, s.Slots); err != nil {
		return err
	}
	if s.Fault != "" {
		fmt.Fprintln(w, folded(w, "! "+s.Fault+": "+s.Text))
	}
	_, err := fmt.Fprintln(w, folded(w, "Next: "+s.Next))
	return err
}

// writeSlots keeps within 80 columns for a gateway.
func writeSlots(w io.Writer, slots []enroll.SlotStatus) error {
	if len(slots) == 0 {
		return nil
	}
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "SLOT\tCERTIFICATE\tUNTIL\tRENEW FROM\tKEY\tKIND")
	for _, s := range slots {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\n", s.Slot, orDash(s.Subject), date(s.NotAfter), date(s.RenewAt), orDash(s.Key), orDash(s.Kind))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, s := range slots {
		if s.Issuer != "" {
			fmt.Fprintf(w, "%s: issued by %s\n", s.Slot, s.Issuer)
		}
		for _, wrong := range []string{s.Expiry, s.Fault} {
			if wrong != "" {
				fmt.Fprintf(w, "! %s: %s\n", s.Slot, wrong)
			}
		}
		if s.Damage != "" {
			fmt.Fprintln(w, folded(w, "! "+s.Damage))
		}
	}
	return nil
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
			"same text, to be read off a console by a telephone: that of an ECC key needs 80 columns and some 40 lines of\n" +
			"a terminal that shows UTF-8.",
		RunE: func(c *cobra.Command, _ []string) error {
			if asQR && e.asJSON {
				return usage("gatewayd enroll csr prints a QR code or JSON: leave --qr or --json out")
			}
			o, err := e.office()
			if err != nil {
				return err
			}
			defer o.close()
			text, err := o.Request(c.Context())
			if err != nil {
				return enrolFault(err)
			}
			if asQR {
				return coded(e.printQR(text, o.NextInstall()))
			}
			return e.printText("request", text, o.NextInstall())
		},
	}
	c.Flags().BoolVar(&asQR, "qr", false, "print it as a QR code")
	return c
}

// printText prints what other programs read: as it is, with the next step for
// people beside it, or both as members of JSON.
func (e *enrolling) printText(name string, text []byte, next string) error {
	if e.asJSON {
		return coded(e.encode(map[string]string{name: string(text), "next": next}))
	}
	if _, err := e.app.out.Write(text); err != nil {
		return coded(err)
	}
	e.hint(next)
	return nil
}

// hint prints the next step where the output is for a program.
func (e *enrolling) hint(next string) {
	fmt.Fprintln(e.app.err, folded(e.app.err, "Next: "+next))
}

// printQR says how large the code is where a usual console is too small for it.
func (e *enrolling) printQR(text []byte, next string) error {
	width, err := writeQR(e.app.out, text)
	if err != nil {
		return err
	}
	if width > columns {
		fmt.Fprintf(e.app.err, "gatewayd: the code is %d columns wide and %d lines high: make the window and its font so, or take it without --qr\n", width, (width+1)/2)
	}
	e.hint(next)
	return nil
}

// writeQR draws a code with two modules a character, dark on light whatever the
// terminal's colours are: a space is as dark as the background, so that light
// modules are drawn. It says how many columns the code has.
func writeQR(w io.Writer, text []byte) (width int, err error) {
	code, err := qr.Encode(strings.TrimSpace(string(text)), qr.L)
	if err != nil {
		return 0, fmt.Errorf("the request does not fit into a QR code: %w; print it without --qr", err)
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
	return code.Size + 2*quiet, err
}

// readAll reads a file of the command line, - being the standard input. The text
// is in one place, which the caller may wipe: io.ReadAll leaves copies behind.
func (a *app) readAll(name string) ([]byte, error) {
	f, err := a.open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if name == "-" && isTerminal(a.in) {
		fmt.Fprintln(a.err, "Paste it here, then press Enter and Ctrl-D.")
	}
	name = called(name)
	const most = 256 << 10
	text := make([]byte, most+1)
	n, err := io.ReadFull(f, text)
	switch {
	case err == nil:
		return nil, fmt.Errorf("%s has more than %d bytes: it is something else", name, most)
	case !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF):
		return nil, err
	case n == 0:
		return nil, fmt.Errorf("%s is empty", name)
	}
	return text[:n], nil
}

// called is how errors call a file of the command line.
func called(name string) string {
	if name == "-" {
		return "the standard input"
	}
	return name
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
					err = fmt.Errorf("%s: %w", called(args[0]), err)
				}
				return done, err
			})
		},
	}
}

// An authority is the CA of the flags, or that of the configuration.
type authority struct {
	url, trust, user, passwordFile string
	again                          bool
}

func (u *authority) flags(c *cobra.Command) {
	c.Flags().StringVar(&u.url, "url", "", "https `URL` of the CA (default: est_url in [identity])")
	c.Flags().StringVar(&u.trust, "trust", "", "PEM `file` of the roots of the CA's server (default: est_trust in [identity])")
	c.Flags().BoolVar(&u.again, "again", false, "have one issued though another one waits to be taken up")
}

// ask has a CA issue a certificate, in one of two ways.
func (e *enrolling) ask(c *cobra.Command, u *authority, way func(*enroll.Applicant, context.Context, enroll.CA) (enroll.Outcome, error)) error {
	credential, err := e.app.credential(*u)
	if err != nil {
		return err
	}
	return e.step(c, func(ctx context.Context, o *office) (enroll.Outcome, error) {
		ca, err := u.of(o.config)
		if err != nil {
			return enroll.Outcome{}, err
		}
		ca.Credential = credential
		if waiting, is, err := o.Pending(); err != nil || is && !u.again {
			waiting.Next += " To have another one issued all the same, add --again."
			return waiting, err
		}
		return way(o.Applicant, ctx, ca)
	})
}

// credential reads the password, as long as we may: see become.
func (a *app) credential(u authority) (func() (string, string, error), error) {
	switch {
	case u.user == "" && u.passwordFile == "":
		return nil, nil
	case u.user == "":
		return nil, usage("--user is missing: whose password is in --password-file?")
	case u.passwordFile == "":
		return nil, usage("--password-file is missing")
	}
	text, err := a.readAll(u.passwordFile)
	if err != nil {
		return nil, coded(err)
	}
	return func() (string, string, error) { return u.user, strings.TrimRight(string(text), "\r\n"), nil }, nil
}

// of is the CA for a configuration.
func (u *authority) of(c *config.Config) (enroll.CA, error) {
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
	return ca, configured(err)
}

func (e *enrolling) renewCommand() *cobra.Command {
	var u authority
	c := &cobra.Command{
		Use: "renew", Short: "Have a CA issue the next certificate now, over EST", Args: none,
		Long: "Have a CA issue the next certificate for a new key, over EST (RFC 7030). The gateway shows its present certificate;\n" +
			"for the first one, or after the present one has expired, give the bootstrap credential of the CA. The running\n" +
			"gateway renews by itself where est_url is set in [identity]. A certificate that waits to be taken up is enough:\n" +
			"--again has another one issued in its place.",
		RunE: func(c *cobra.Command, _ []string) error { return e.ask(c, &u, (*enroll.Applicant).Renew) },
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
			"certificate, a certification of the key by an attestation key, and the activation of a credential. A certificate that\n" +
			"waits to be taken up is enough: --again has another one issued in its place.",
		RunE: func(c *cobra.Command, _ []string) error { return e.ask(c, &u, (*enroll.Applicant).Attest) },
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
			switch {
			case parent && len(args) > 0:
				return usage("gatewayd enroll import takes a FILE or --parent, and not both")
			case parent:
				return e.printParent(c.Context())
			case len(args) == 0:
				return usage("gatewayd enroll import needs a FILE, or --parent")
			}
			undumped()
			text, err := e.app.readAll(args[0])
			if err != nil {
				return coded(err)
			}
			defer clear(text)
			return e.step(c, func(ctx context.Context, o *office) (enroll.Outcome, error) {
				done, err := o.Import(ctx, text, args[0] == "-" && !mode(e.app.in).IsRegular())
				if err != nil {
					err = fmt.Errorf("%s: %w", called(args[0]), err)
				}
				return done, err
			})
		},
	}
	c.Flags().BoolVar(&parent, "parent", false, "print the public key of this TPM that a PKI wraps keys to")
	return c
}

// undumped has the kernel write no memory of this process to a disk when it
// crashes, and show it to no other program of the same user, for a clear key may
// be in it. It cannot fail with these arguments (prctl(2)).
func undumped() { _ = unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0) }

func (e *enrolling) printParent(ctx context.Context) error {
	o, err := e.office()
	if err != nil {
		return err
	}
	defer o.close()
	text, err := o.tpm.Parent(ctx)
	if err != nil {
		return enrolFault(err)
	}
	return e.printText("parent", text, o.NextWrap())
}

func (e *enrolling) resetCommand() *cobra.Command {
	var yes, abandon bool
	c := &cobra.Command{
		Use: "reset", Short: "Give key and certificate up, to enrol the gateway anew", Args: none,
		Long: "Give up all keys and certificates of the gateway, for a TPM that was cleared or exchanged, or a box that changes\n" +
			"hands. They are moved aside, and are of no use without the TPM. The messages in the spool stay, unless the TPM\n" +
			"gives their key no more: then nobody can read them, and --abandon-spool moves them aside as well.",
		RunE: func(c *cobra.Command, _ []string) error {
			switch {
			case c.Flags().Changed("store"):
				return usage("gatewayd enroll reset gives up all keys of the gateway: leave --store out")
			case !yes:
				return &exit{exitUsage, &advised{"gatewayd enroll reset gives the keys and certificates of the gateway up for good", "if you mean it, " + anew(abandon)}}
			}
			o, err := e.app.officeBy(enroll.OpenAnyTPM, e.path, e.store) // root moves what root alone may
			if err != nil {
				return err
			}
			return e.at(c, o, func(ctx context.Context, o *office) (enroll.Outcome, error) { return e.reset(ctx, o, abandon) })
		},
	}
	c.Flags().BoolVar(&yes, "yes", false, "do it")
	c.Flags().BoolVar(&abandon, "abandon-spool", false, "give up messages that nobody can read any more")
	return c
}

// anew is what to type where the identity is to begin anew.
func anew(abandon bool) string {
	if abandon {
		return "run " + tpm.AnewWithout
	}
	return "run " + tpm.Anew
}

func (e *enrolling) reset(ctx context.Context, o *office, abandon bool) (enroll.Outcome, error) {
	if err := idle(ctx, o, abandon); err != nil {
		return enroll.Outcome{}, err
	}
	key := daemon.SpoolKey{Dir: o.config.Gateway.StateDir, TPM: o.tpm}
	moved := ""
	if lost, err := key.Lost(ctx); err != nil {
		return enroll.Outcome{}, err
	} else if lost {
		if !abandon {
			return enroll.Outcome{}, &exit{exitData, &advised{"the key of the spool cannot be had any more: nobody will ever read the messages that wait in it, and to go on is to give them up", anew(true)}}
		}
		if moved, err = key.Abandon(); err != nil {
			return enroll.Outcome{}, err
		}
	}
	changed, err := o.Reset()
	if err != nil {
		return enroll.Outcome{}, err
	}
	done := enroll.Outcome{Changed: changed || moved != "", Done: "The gateway has no key and no certificate any more.", Next: "Run gatewayd enroll init, then start gatewayd."}
	if moved != "" {
		done.Done += " What nobody can read was moved to " + moved + "."
	}
	return done, nil
}

// idle refuses while a gateway runs, one too that waits for its TPM: it would
// find its files gone between two looks.
func idle(ctx context.Context, o *office, abandon bool) error {
	_, err := status.NewClient(o.config.Gateway.StatusSocket).Report(ctx)
	if _, away := errors.AsType[*status.NotRunningError](err); away {
		return nil
	}
	if err != nil {
		return fmt.Errorf("whether gatewayd runs cannot be told: %w", err)
	}
	return &exit{exitTryLater, &advised{"gatewayd runs, and would lose its keys under way", anew(abandon)}}
}
