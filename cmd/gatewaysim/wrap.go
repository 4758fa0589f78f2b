package main

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/bedside-gateway/gatewayd/internal/enroll"
	"github.com/bedside-gateway/gatewayd/keystore/tpm"
)

func (a *app) wrapCommand() *cobra.Command {
	var parent, out string
	c := &cobra.Command{
		Use: "wrap --parent FILE KEY", Short: "Wrap a key that a PKI made to the TPM of a gateway",
		Long: "Wrap a private key (PEM; - is the standard input) to the TPM of one gateway, so that it travels encrypted and is in\n" +
			"the clear on no box: nothing but that TPM can open it. --parent is what gatewayd enroll import --parent prints\n" +
			"there. It prints a key for gatewayd enroll import, and behind it the certificates that stand beside KEY.",
		Example: "  gatewaysim ca wrap --parent gateway.pem key-and-chain.pem >wrapped.pem\n  gatewayd enroll import wrapped.pem",
		RunE: func(c *cobra.Command, args []string) error {
			if err := required(c, "parent"); err != nil {
				return err
			}
			if len(args) != 1 {
				return usage("ca wrap takes one file, the private key")
			}
			return a.wrapKey(parent, args[0], out)
		},
	}
	c.Flags().StringVar(&parent, "parent", "", "`file` with what gatewayd enroll import --parent prints")
	c.Flags().StringVar(&out, "out", "", "`file` to write into (default: the standard output)")
	return c
}

func (a *app) wrapKey(parent, key, out string) error {
	to, err := readSmall(parent)
	if err != nil {
		return err
	}
	text, err := readSmall(key)
	if err != nil {
		return err
	}
	defer clear(text)
	wrapped, err := enroll.Wrap(to, text)
	if err != nil {
		return fmt.Errorf("wrapping %s to %s: %w", key, parent, err)
	}
	return a.write(out, wrapped)
}

// write writes into a file, or to the standard output.
func (a *app) write(out string, text []byte) error {
	if out == "" {
		_, err := a.out.Write(text)
		return err
	}
	return os.WriteFile(out, text, 0o644)
}

// readSmall reads a file of keys and certificates; - is the standard input.
func readSmall(file string) ([]byte, error) {
	in, name := io.Reader(os.Stdin), "the standard input"
	if file != "-" {
		opened, err := os.Open(filepath.Clean(file))
		if err != nil {
			return nil, err
		}
		defer opened.Close()
		in, name = opened, file
	}
	text, err := io.ReadAll(io.LimitReader(in, maxRequestFile+1))
	if err == nil && len(text) > maxRequestFile {
		err = fmt.Errorf("%s has more than %d bytes: it is something else", name, maxRequestFile)
	}
	return text, err
}

type approvalFlags struct {
	key, add, read string
	pcrs           []string
}

func (a *app) approveCommand() *cobra.Command {
	var f approvalFlags
	c := &cobra.Command{
		Use: "approve --key FILE {--pcr N=HEX... | --pcrs FILE}", Short: "Approve a state of the platform for keys that are bound to it", Args: none,
		Long: "Sign the state of the platform in which PCRs of the SHA-256 bank have certain values, as the maker of the firmware\n" +
			"does for each version, and print what policy_approvals in [identity] takes. The public key of --key is the\n" +
			"policy_signer of the gateways. The values are those that the maker computes of the firmware, or those of a box\n" +
			"that booted it: tpm2_pcrread sha256:4,7 prints them there, and --pcrs takes that as it is.\n" +
			"Name only registers that the firmware alone decides: of an approval each of them has to hold.",
		Example: "  openssl ecparam -name prime256v1 -genkey -noout -out maker.key; openssl pkey -in maker.key -pubout -out policy_signer.pem\n" +
			"  tpm2_pcrread sha256:4,7 | gatewaysim ca approve --key maker.key --pcrs - --add approvals.json",
		RunE: func(c *cobra.Command, _ []string) error {
			if err := required(c, "key"); err != nil {
				return err
			}
			return a.approve(f)
		},
	}
	c.Flags().StringVar(&f.key, "key", "", "private key `file` of the maker, on P-256 (PEM)")
	c.Flags().StringArrayVar(&f.pcrs, "pcr", nil, "`N=HEX`, a register and the value of its SHA-256 bank; once for each")
	c.Flags().StringVar(&f.read, "pcrs", "", "`file` with the output of tpm2_pcrread, - for the standard input")
	c.Flags().StringVar(&f.add, "add", "", "`file` of approvals to add this one to, made where it is missing (default: print it)")
	return c
}

func (a *app) approve(f approvalFlags) error {
	values, err := f.values()
	if err != nil {
		return err
	}
	key, err := signerIn(f.key)
	if err != nil {
		return err
	}
	approval, err := tpm.Approve(key, values)
	if err != nil {
		return err
	}
	if f.add == "" {
		text, err := encodeApprovals([]tpm.Approval{approval})
		if err != nil {
			return err
		}
		return a.write("", text)
	}
	return a.addApproval(f.add, approval)
}

// addApproval leaves a file that has the approval already as it is.
func (a *app) addApproval(file string, approval tpm.Approval) error {
	all, err := readApprovals(file)
	if err != nil {
		return err
	}
	same := func(b tpm.Approval) bool {
		return slices.Equal(b.PCRs, approval.PCRs) && bytes.Equal(b.Policy, approval.Policy) && bytes.Equal(b.Signer, approval.Signer)
	}
	if slices.ContainsFunc(all, same) {
		fmt.Fprintf(a.out, "%s has this approval already, among %d\n", file, len(all))
		return nil
	}
	all = append(all, approval)
	text, err := encodeApprovals(all)
	if err != nil {
		return err
	}
	part := file + ".part" // nobody reads half of it
	if err := os.WriteFile(part, text, 0o644); err != nil {
		return err
	}
	if err := os.Rename(part, file); err != nil {
		return err
	}
	fmt.Fprintf(a.out, "%s has %d approvals\n", file, len(all))
	return nil
}

func readApprovals(file string) (all []tpm.Approval, err error) {
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(text, &all); err != nil {
		return nil, fmt.Errorf("%s holds no approvals: %w", file, err)
	}
	return all, nil
}

func encodeApprovals(all []tpm.Approval) ([]byte, error) {
	text, err := json.MarshalIndent(all, "", "  ")
	return append(text, '\n'), err
}

func signerIn(file string) (crypto.Signer, error) {
	text, err := readSmall(file)
	if err != nil {
		return nil, err
	}
	defer clear(text)
	key, err := enroll.ClearKey(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return key, nil
}

// values are those of the flags.
func (f *approvalFlags) values() (map[uint][]byte, error) {
	if (f.read == "") == (len(f.pcrs) == 0) {
		return nil, usage("ca approve needs the values: --pcr N=HEX for each register, or --pcrs with the output of tpm2_pcrread")
	}
	if f.read != "" {
		text, err := readSmall(f.read)
		if err != nil {
			return nil, err
		}
		values, err := parsePCRs(string(text))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f.read, err)
		}
		return values, nil
	}
	values := map[uint][]byte{}
	for _, s := range f.pcrs {
		n, digits, ok := strings.Cut(s, "=")
		if !ok {
			return nil, usage("--pcr %q: it is N=HEX, such as 7=ab12...", s)
		}
		if err := putPCR(values, n, digits); err != nil {
			return nil, usage("--pcr: %w", err)
		}
	}
	return values, nil
}

// parsePCRs reads what tpm2_pcrread prints: the name of a bank, and below it a
// line "N : 0xHEX" for each register. Other banks are passed over.
func parsePCRs(text string) (map[uint][]byte, error) {
	values, bank := map[uint][]byte{}, ""
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		n, digits, ok := strings.Cut(line, ":")
		switch n, digits = strings.TrimSpace(n), strings.TrimSpace(digits); {
		case line == "":
		case !ok:
			return nil, fmt.Errorf("%.40q is no line of tpm2_pcrread", line)
		case digits == "":
			bank = n
		case bank == "":
			return nil, fmt.Errorf("%.40q stands below no bank: give the whole output of tpm2_pcrread sha256:N,N", line)
		case bank == "sha256":
			if err := putPCR(values, n, digits); err != nil {
				return nil, err
			}
		}
	}
	if len(values) == 0 {
		return nil, errors.New("it has no register of a SHA-256 bank: give the output of tpm2_pcrread sha256:N,N")
	}
	return values, nil
}

func putPCR(values map[uint][]byte, number, digits string) error {
	n, err := strconv.ParseUint(number, 10, 8)
	if err != nil {
		return fmt.Errorf("%.20q is no number of a register", number)
	}
	value, err := hex.DecodeString(strings.TrimPrefix(strings.ToLower(digits), "0x"))
	if err != nil || len(value) != sha256.Size {
		return fmt.Errorf("register %d: %.80q is no value of a SHA-256 bank, which has %d hexadecimal digits", n, digits, 2*sha256.Size)
	}
	if old, again := values[uint(n)]; again && !bytes.Equal(old, value) {
		return fmt.Errorf("register %d has two values", n)
	}
	values[uint(n)] = value
	return nil
}
