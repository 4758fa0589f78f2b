package config

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"slices"
)

// southbound reads [southbound], if it is there.
func (l *loader) southbound(c *Config, root *node) {
	if root.table["southbound"] == nil {
		return
	}
	n := l.table(root, "southbound", "")
	s := &Southbound{}
	f := read(l, n, "southbound.", southboundKeys, s, "identity")
	l.listens(f, "[southbound]", s.Listen)
	l.southIdentities(n, s)
	l.checkSouthbound(c, f, s)
	c.Southbound = s
}

func (l *loader) southIdentities(n *node, s *Southbound) {
	if n.table["identity"] == nil {
		l.fault(n.at, "southbound.identity", "is missing; devices connect to nobody without a certificate: add [[southbound.identity]] sections for an ECC and an RSA certificate")
		return
	}
	schemes := map[x509.PublicKeyAlgorithm]bool{}
	for _, t := range l.nested(n, "identity", "southbound.") {
		var i ServerIdentity
		f := read(l, t, "southbound.identity.", southIdentityKeys, &i)
		if l.southIdentity(f, &i) {
			schemes[l.scheme(&i)] = true
		}
		s.Identities = append(s.Identities, i)
	}
	for scheme, name := range map[x509.PublicKeyAlgorithm]string{x509.ECDSA: "an ECC", x509.RSA: "an RSA"} {
		if len(schemes) > 0 && !schemes[x509.UnknownPublicKeyAlgorithm] && !schemes[scheme] {
			l.warn(n.table["identity"].at, "southbound.identity", "there is none with "+name+" certificate, so devices that speak only that scheme cannot connect; add a section for it")
		}
	}
}

// southIdentity reports whether an identity can be used.
func (l *loader) southIdentity(f found, i *ServerIdentity) bool {
	const next = "name the store of a key in the TPM, or on a development machine certificate, key and insecure_file_key = true"
	switch {
	case i.Store != "" && (i.Certificate != "" || i.Key != "" || i.InsecureFileKey):
		f.fault("store", "is there beside a key in a file; take one of them out")
	case i.Store == "device":
		f.fault("store", `"device" is the gateway's own identity, which platforms see; give the server a store of its own`)
	case i.Store != "" && i.Name == "":
		f.fault("name", "is missing; name the host that devices find this server by: its certificate is requested for that")
	case i.Store != "":
		return true
	case i.Certificate == "":
		f.fault("certificate", "is missing; "+next)
	case i.Key == "":
		f.fault("key", "is missing; "+next)
	case !i.InsecureFileKey:
		f.fault("key", "a private key in a file can be copied by anyone who gets hold of it; on a development machine write insecure_file_key = true")
	default:
		return l.fileKey(f, i.Certificate, i.Key)
	}
	return false
}

// scheme is the key scheme of the first certificate in a file, unknown where it cannot be told.
func (l *loader) scheme(i *ServerIdentity) x509.PublicKeyAlgorithm {
	text, err := l.options.ReadFile(i.Certificate)
	if i.Store != "" || err != nil {
		return x509.UnknownPublicKeyAlgorithm
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return x509.UnknownPublicKeyAlgorithm
	}
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return x509.UnknownPublicKeyAlgorithm
	}
	return c.PublicKeyAlgorithm
}

func (l *loader) checkSouthbound(c *Config, f found, s *Southbound) {
	if f.has("authorised") && len(s.Authorised) == 0 && !l.failed() {
		f.fault("authorised", "is empty, so that no device could connect; list their EUI-64, or take the section out")
	}
	for _, name := range s.Destinations {
		if !slices.ContainsFunc(c.Destinations, func(d Destination) bool { return d.Name == name }) {
			f.fault("destination", fmt.Sprintf("there is no destination %q; name a [[destination]]", name))
		}
	}
	if len(c.Destinations) == 0 {
		f.fault("destination", "there is none that messages could go to; add a [[destination]] section")
	}
	if s.MaxMessage > c.Spool.MaxBytes/2 {
		f.fault("max_message", "such a message would take more than half of the spool; raise max_bytes in [spool], or lower it")
	}
	if s.Trust != "" {
		l.checkTrust(f, s.Trust)
	}
	for _, file := range s.CRLs {
		if text, ok := l.file(f, "crls", file); !ok {
			continue
		} else if _, _, err := CRLs(text); err != nil {
			f.fault("crls", file+" "+err.Error())
		}
	}
	if len(s.CRLs) == 0 {
		f.warn("crls", "no CRL is installed, so that devices are refused while no OCSP responder answers; name the CRL files of their CAs")
	}
}
