package pki

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"time"
)

// A spec is a row of the table below: one certificate that New makes in each
// scheme.
type spec struct {
	name    string
	role    Role
	issuer  string // name of another row
	key     string // name of the row whose key it has, where not its own
	why     string
	refuse  bool // a peer must refuse it
	trusted bool
	revoked bool
	alter   func(*x509.Certificate, Options)
}

// specs are the rows, issuers first. Every faulty leaf has exactly one fault,
// so that a test that sees it refused knows why.
func specs() []spec {
	rows := []spec{
		{name: "root", role: Root, issuer: "root", trusted: true, why: "trust anchor"},
		{name: "issuing", role: Issuing, issuer: "root", why: "issues platform and device certificates"},
		{name: "issuing-revoked", role: Issuing, issuer: "root", refuse: true, revoked: true, why: "revoked by the root"},
		{name: "foreign-root", role: Root, issuer: "foreign-root", refuse: true, why: "a root that nobody here trusts"},
		{name: "foreign-issuing", role: Issuing, issuer: "foreign-root", refuse: true, why: "issued by a root that nobody here trusts"},
	}
	for _, role := range []Role{Platform, Device} {
		rows = append(rows, leaves(role)...)
	}
	rows = append(rows, responders("issuing", "")...)
	rows = append(rows, responders("root", "root-")...)
	return append(rows,
		spec{name: "platform-cn-only", role: Platform, issuer: "issuing", why: "its name is in the subject only, which B17 allows",
			alter: func(c *x509.Certificate, _ Options) { c.DNSNames = nil }},
	)
}

func leaves(role Role) []spec {
	name := string(role)
	return []spec{
		{name: name, role: role, issuer: "issuing", why: "good in every way"},
		{name: name + "-revoked", role: role, issuer: "issuing", refuse: true, revoked: true, why: "revoked by its issuing CA"},
		{name: name + "-expired", role: role, issuer: "issuing", refuse: true, why: "its time is over", alter: expired},
		{name: name + "-not-yet-valid", role: role, issuer: "issuing", refuse: true, why: "its time has not come", alter: notYetValid},
		{name: name + "-wrong-name", role: role, issuer: "issuing", refuse: true, why: "it names somebody else", alter: wrongName},
		{name: name + "-wrong-eku", role: role, issuer: "issuing", refuse: true, why: "its extended key usage is that of the other side", alter: wrongEKU},
		{name: name + "-issuing-revoked", role: role, issuer: "issuing-revoked", refuse: true, why: "its issuing CA is revoked"},
		{name: name + "-foreign", role: role, issuer: "foreign-issuing", refuse: true, why: "its root is not trusted"},
	}
}

// responders are certificates that sign OCSP responses for a CA. All have one
// key: what makes them good or bad is what the certificate says.
func responders(issuer, prefix string) []spec {
	rows := []spec{
		{name: "responder", why: "signs OCSP responses for its CA"},
		{name: "responder-unchecked", why: "a responder that a CRL has to vouch for: it has no id-pkix-ocsp-nocheck",
			alter: func(c *x509.Certificate, _ Options) { c.ExtraExtensions = nil }},
		{name: "responder-expired", refuse: true, why: "a responder whose time is over", alter: expired},
		{name: "responder-no-eku", refuse: true, why: "a responder without OCSPSigning in its extended key usage",
			alter: func(c *x509.Certificate, _ Options) { c.ExtKeyUsage = nil }},
	}
	for i := range rows {
		rows[i].name, rows[i].role, rows[i].issuer = prefix+rows[i].name, Responder, issuer
		if rows[i].name != "responder" {
			rows[i].key = "responder"
		}
	}
	return rows
}

// noCheck is id-pkix-ocsp-nocheck (RFC 6960, section 4.2.2.2.1).
var noCheck = pkix.Extension{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 5}, Value: asn1.NullBytes}

func expired(c *x509.Certificate, o Options) {
	c.NotBefore, c.NotAfter = o.Now.Add(-60*24*time.Hour), o.Now.Add(-24*time.Hour)
}

func notYetValid(c *x509.Certificate, o Options) {
	c.NotBefore, c.NotAfter = o.Now.Add(24*time.Hour), o.Now.Add(24*time.Hour+o.Lifetime)
}

// wrongName gives a platform another host's name, and a device a name that is
// no device identifier (A8).
func wrongName(c *x509.Certificate, _ Options) {
	if c.DNSNames == nil {
		c.Subject.CommonName = "not-a-device"
		return
	}
	c.Subject.CommonName, c.DNSNames = "elsewhere.test", []string{"elsewhere.test"}
}

func wrongEKU(c *x509.Certificate, _ Options) {
	if c.ExtKeyUsage[0] == x509.ExtKeyUsageServerAuth {
		c.ExtKeyUsage[0] = x509.ExtKeyUsageClientAuth
		return
	}
	c.ExtKeyUsage[0] = x509.ExtKeyUsageServerAuth
}

// plan lists the entries of a scheme. CAs always carry its name; of the leaves
// only the RSA ones do: platform.pem and device.pem are the usual, ECC, ones.
func (p *PKI) plan(scheme Scheme) {
	made := map[string]*Entry{}
	for _, s := range specs() {
		e := &Entry{Name: s.name, Scheme: scheme, Role: s.role, Trusted: s.trusted, Why: s.why, Verdict: "good", spec: s}
		if scheme != ECC || e.isCA() {
			e.Name = string(scheme) + "-" + s.name
		}
		if s.refuse {
			e.Verdict = "refuse"
		}
		e.File, e.KeyFile = e.Name+".pem", e.Name+".key"
		if e.isCA() {
			e.CRLFile = e.Name + ".crl"
		}
		made[s.name] = e
		e.issuer, e.shares = made[s.issuer], made[s.key]
		p.Entries = append(p.Entries, e)
	}
}
