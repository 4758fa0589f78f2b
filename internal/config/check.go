package config

import (
	"crypto"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/bedside-gateway/gatewayd/drivers"
	"github.com/bedside-gateway/gatewayd/drivers/port"
	"github.com/bedside-gateway/gatewayd/keystore/tpm"
	"github.com/bedside-gateway/gatewayd/observation"
)

// checkIdentity wants the key in the TPM, or in a file where that is admitted:
// then with its certificate, if there is a platform to show it to.
func (l *loader) checkIdentity(c *Config, f found) {
	i := &c.Identity
	l.checkEST(i, f)
	l.checkPolicy(i, f)
	if !i.InsecureFileKey {
		l.tpmOnly(i, f)
		return
	}
	switch {
	case i.Certificate == "" && i.Key == "" && len(c.Destinations)+len(c.Tunnels) == 0:
	case i.Certificate == "":
		f.fault("certificate", "is missing; a platform takes no connection without one: name the PEM file of the gateway's certificate")
	case i.Key == "":
		f.fault("key", "is missing; name the PEM file of the certificate's private key")
	default:
		l.fileKey(f, i.Certificate, i.Key)
	}
}

// tpmOnly refuses a file key that is not admitted.
func (l *loader) tpmOnly(i *Identity, f found) {
	const next = "on a development machine write insecure_file_key = true"
	switch {
	case i.Key != "":
		f.fault("key", "a private key in a file can be copied by anyone who gets hold of it; "+next)
	case i.Certificate != "":
		f.fault("certificate", "the certificate of a key in the TPM is installed with gatewayd enroll install; take the key out, or "+next)
	}
}

// fileKey warns of a development key, and looks whether it fits its certificate.
func (l *loader) fileKey(f found, certificate, key string) bool {
	if l.options.Identity != nil {
		if err := l.options.Identity(certificate, key); err != nil {
			f.fault("certificate", err.Error())
			return false
		}
	}
	f.warn("insecure_file_key", "DEVELOPMENT KEY IN USE: the private key is a file that can be copied; never use this gateway on patients")
	return true
}

func (l *loader) checkEST(i *Identity, f found) {
	switch {
	case i.ESTURL != "" && i.ESTTrust == "":
		f.fault("est_trust", "is missing; name the PEM file of the roots that the EST server's chain ends in: no server is trusted unseen")
	case i.ESTURL != "":
		if text, ok := l.file(f, "est_trust", i.ESTTrust); !ok {
			return
		} else if _, _, err := Roots(text); err != nil {
			f.fault("est_trust", i.ESTTrust+" "+err.Error())
		}
	}
}

// checkPolicy reads what keys are bound to as the start and the TPM will.
func (l *loader) checkPolicy(i *Identity, f found) {
	if i.PolicySigner == "" {
		if i.PolicyApprovals != "" {
			f.fault("policy_approvals", "without policy_signer approves nothing; name the signer's public key, or take it out")
		}
		return
	}
	var signer crypto.PublicKey
	if text, ok := l.file(f, "policy_signer", i.PolicySigner); ok {
		var err error
		if signer, err = tpm.ParseSigner(text); err != nil {
			f.fault("policy_signer", i.PolicySigner+": "+orNext(err, "name the file with the public key of who approves"))
		}
	}
	if i.PolicyApprovals == "" {
		return // the firmware brings its own
	}
	if text, ok := l.file(f, "policy_approvals", i.PolicyApprovals); ok && signer != nil {
		if _, err := tpm.ParseApprovals(text, signer); err != nil {
			f.fault("policy_approvals", i.PolicyApprovals+": "+orNext(err, "name the file as who approves has made it"))
		}
	}
}

// orNext is an error with its own next step, or with one where it has none.
func orNext(err error, next string) string {
	if s := err.Error(); strings.Contains(s, "; ") {
		return s
	}
	return err.Error() + "; " + next
}

// file is the text of a file that the configuration names; without ok it is noted why it cannot be read.
func (l *loader) file(f found, key, file string) (text []byte, ok bool) {
	text, err := l.options.ReadFile(file)
	if err != nil {
		f.fault(key, fileFault(file, err))
	}
	return text, err == nil
}

func (l *loader) checkDestination(f found, d *Destination) {
	if !answered(d.AcceptAck, d.ApplicationAck) {
		f.fault(ackKey(f), fmt.Sprintf("with accept_ack %q and application_ack %q the platform never says that it has a message; write AL for one of them", d.AcceptAck, d.ApplicationAck))
	}
	for _, c := range d.Include {
		if slices.Contains(d.Exclude, c) {
			f.fault("exclude", fmt.Sprintf("%v is in include as well; take it out of one of them", c))
		}
	}
	if d.Trust != "" {
		l.checkTrust(f, d.Trust)
	}
	if d.Address != "" {
		l.dials(f, d.Address, d.Connect)
	}
}

// answered reports whether success is acknowledged in some way (HL7 2.6, section 2.9.2).
func answered(accept, application string) bool {
	success := func(s string) bool { return s == "AL" || s == "SU" }
	return success(accept) || success(application)
}

func ackKey(f found) string {
	if f.has("application_ack") && !f.has("accept_ack") {
		return "application_ack"
	}
	return "accept_ack"
}

func (l *loader) checkTrust(f found, file string) {
	text, ok := l.file(f, "trust", file)
	if !ok {
		return
	}
	_, roots, err := Roots(text)
	if err != nil {
		f.fault("trust", file+" "+err.Error())
		return
	}
	for _, c := range roots {
		if now := l.options.Now; !now.IsZero() && now.After(c.NotAfter) {
			f.warn("trust", fmt.Sprintf("the root %q expired on %s; chains that end in it are refused", c.Subject.CommonName, c.NotAfter.UTC().Format("2006-01-02")))
		}
	}
}

// fileFault says in short why a file cannot be read.
func fileFault(name string, err error) string {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return name + " does not exist; relative names start at the folder of the configuration file"
	case errors.Is(err, fs.ErrPermission):
		return name + " may not be read; give the user of gatewayd the right to"
	}
	var path *fs.PathError
	if errors.As(err, &path) {
		err = path.Err
	}
	return fmt.Sprintf("%s cannot be read: %v; check the name", name, err)
}

func (l *loader) checkPort(f found, p *Port) {
	if p.Driver == "" {
		return
	}
	d, err := l.options.Drivers.Lookup(p.Driver)
	if err != nil {
		f.fault("driver", withNext(err).Error())
		return
	}
	p.Options = l.portOptions(f, d.Info())
	spec, err := port.ParseSpec(p.Device)
	if err != nil || p.Device == "" {
		return // a fault already
	}
	info := d.Info()
	if p.ListenOnly && !info.Passive {
		f.fault("listen_only", fmt.Sprintf("devices of the driver %s answer only when asked, so that nothing would ever be heard; take listen_only out", info.Name))
	}
	if spec.Datagrams() && info.UDPPort == 0 {
		f.fault("device", fmt.Sprintf("the driver %s does not run over UDP; write a serial path or tcp://host:port", info.Name))
	}
	if spec.Kind != port.Serial && p.Line != (port.Line{}) {
		f.fault("line", "only a serial line has settings; take line out")
	}
	if p.Record != "" {
		f.warn("record", "everything the device sends is written to "+p.Record+", patient identifiers included; take it out when support has the recording")
	}
	if p.AllowSimulated {
		f.warn("allow_simulated", "demonstration and test values of this port are sent as if they were a patient's; never use this on a ward")
	}
	l.tryDriver(f, d, p, spec)
}

// portOptions reads [port.options], whose keys are the driver's.
func (l *loader) portOptions(f found, info drivers.Info) map[string]string {
	n := l.table(f.node, "options", "port.")
	known := make([]string, len(info.Options))
	for i, o := range info.Options {
		known[i] = o.Name
	}
	out := map[string]string{}
	for _, name := range n.keys {
		v := n.table[name]
		if !slices.Contains(known, name) {
			l.fault(v.at, "port.options."+name, unknownOption(name, info.Name, known))
			continue
		}
		s, ok := optionText(v)
		if !ok {
			l.fault(v.value, "port.options."+name, "is "+describe(v.plain)+"; write a text in quotes, a number, true or false")
			continue
		}
		out[name] = s
	}
	return out
}

func unknownOption(name, driver string, known []string) string {
	if len(known) == 0 {
		return fmt.Sprintf("the driver %s has no options; take it out", driver)
	}
	if near := nearest(name, known); near != "" {
		return fmt.Sprintf("the driver %s has no such option; did you mean %s?", driver, near)
	}
	return fmt.Sprintf("the driver %s has no such option; it has %s", driver, strings.Join(known, ", "))
}

func optionText(n *node) (string, bool) {
	switch v := n.plain.(type) {
	case string:
		return v, n.table == nil
	case bool, int64:
		return fmt.Sprint(v), true
	}
	return "", false
}

// tryDriver lets the driver itself judge its options, by making a machine that
// is never started.
func (l *loader) tryDriver(f found, d drivers.Driver, p *Port, spec port.Spec) {
	settings := drivers.Settings{Datagrams: spec.Datagrams(), ListenOnly: p.ListenOnly, Options: p.Options}
	if _, err := d.New(settings, noHost{}); err != nil {
		f.fault("options", err.Error()+"; gatewayd check --explain port.options tells the choices")
	}
}

// noHost is the host of a machine that is only made.
type noHost struct{}

func (noHost) Send([]byte)                {}
func (noHost) Report(*observation.Report) {}
func (noHost) State(drivers.State)        {}
func (noHost) Count(drivers.Frame)        {}
func (noHost) Note(string)                {}
