package tlspolicy

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"net"
	"slices"
	"strings"
	"testing"
	"time"
)

// Each row breaks a good chain in one place. Its twin is as near to it as a
// good one can be, so that the refusal is known to be for that place.
func TestB17_PlatformIsRefused(t *testing.T) {
	extended := func(c *x509.Certificate, u ...x509.ExtKeyUsage) { c.ExtKeyUsage = u }
	unknown := pkix.Extension{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 99999, 1}, Value: []byte{5, 0}}
	for _, c := range []struct {
		name, reason, about string
		rule                string // default B17
		fault, mended       func(*hospital)
	}{
		{name: "expired", about: "platform certificate", reason: "it expired on 2026-11-21 13:00:00Z, and it is 2026-11-21 13:00:01Z",
			fault:  func(h *hospital) { h.at = now.Add(time.Hour + time.Second) },
			mended: func(h *hospital) { h.at = now.Add(time.Hour) }},
		{name: "not yet valid", about: "platform certificate", reason: "it is not valid before 2026-11-21 11:00:00Z, and it is 2026-11-21 10:59:59Z",
			fault:  func(h *hospital) { h.at = now.Add(-time.Hour - time.Second) },
			mended: func(h *hospital) { h.at = now.Add(-time.Hour) }},
		{name: "issuing CA expired", about: `certificate 2 of 2 sent, "CN=Issuing"`, reason: "it expired",
			fault:  func(h *hospital) { h.issuing.NotAfter = now.Add(-time.Minute) },
			mended: func(h *hospital) { h.issuing.NotAfter = now.Add(time.Minute) }},
		{name: "root expired", about: `installed root "CN=Root"`, reason: "it expired",
			fault:  func(h *hospital) { h.root.NotAfter = now.Add(-time.Minute) },
			mended: func(h *hospital) { h.root.NotAfter = now.Add(time.Minute) }},
		{name: "another name", about: "platform certificate", reason: `it is not for "platform.test" but for "elsewhere.test"`,
			fault: func(h *hospital) {
				h.leaf.Subject.CommonName, h.leaf.DNSNames = "elsewhere.test", []string{"elsewhere.test"}
			}},
		{name: "common name only, another", reason: "it is not for",
			fault:  func(h *hospital) { h.leaf.Subject.CommonName, h.leaf.DNSNames = "platform.test.evil.test", nil },
			mended: func(h *hospital) { h.leaf.Subject.CommonName, h.leaf.DNSNames = host, nil }},
		{name: "common name right only to Unicode", reason: "it is not for",
			fault: func(h *hospital) {
				h.name, h.leaf.DNSNames, h.leaf.Subject.CommonName = "kilo.test", nil, "\u212Ailo.test"
			},
			mended: func(h *hospital) { h.name, h.leaf.DNSNames, h.leaf.Subject.CommonName = "kilo.test", nil, "KILO.test" }},
		{name: "common name with a zero byte", reason: `\x00`,
			fault:  func(h *hospital) { h.leaf.Subject.CommonName, h.leaf.DNSNames = host+"\x00.evil.test", nil },
			mended: func(h *hospital) { h.leaf.Subject.CommonName, h.leaf.DNSNames = host+".", nil }},
		{name: "wildcard", reason: "it is not for",
			fault: func(h *hospital) {
				h.leaf.Subject.CommonName, h.leaf.DNSNames = "*.test", []string{"*.test", "*"}
			},
			mended: func(h *hospital) {
				h.leaf.Subject.CommonName, h.leaf.DNSNames = "*.test", []string{"*.test", "PLATFORM.Test"}
			}},
		{name: "no name at all", reason: "it is not for",
			fault: func(h *hospital) { h.leaf.Subject, h.leaf.DNSNames = pkix.Name{Organization: []string{host}}, nil }},
		{name: "intermediate missing", about: "platform certificate", reason: `its issuer "CN=Issuing" was not sent`,
			fault: func(h *hospital) { h.send = func(c *chain) []*x509.Certificate { return []*x509.Certificate{c.leaf} } },
			mended: func(h *hospital) {
				h.send = func(c *chain) []*x509.Certificate { return []*x509.Certificate{c.leaf, c.issuing} }
			}},
		{name: "middle of the chain missing", about: "platform certificate", reason: `its issuer "CN=Between" was not sent`,
			fault: func(h *hospital) {
				h.between = authority("Between")
				h.send = func(c *chain) []*x509.Certificate { return []*x509.Certificate{c.leaf, c.issuing} }
			},
			mended: func(h *hospital) {
				h.between = authority("Between") // in any order (RFC 8446, 4.4.2)
				h.send = func(c *chain) []*x509.Certificate { return []*x509.Certificate{c.leaf, c.root, c.issuing, c.between} }
			}},
		{name: "another root of the same name", about: `certificate 2 of 2 sent, "CN=Issuing"`, reason: "no installed root of that name signed it",
			fault: func(h *hospital) {
				other := h.sign(authority("Root"), authority("Root"), h.betweenKey, h.betweenKey)
				h.trust = func(*chain) []*x509.Certificate { return []*x509.Certificate{other} }
			},
			mended: func(h *hospital) {
				other := h.sign(authority("Root"), authority("Root"), h.betweenKey, h.betweenKey)
				h.trust = func(c *chain) []*x509.Certificate { return []*x509.Certificate{other, c.root} }
			}},
		{name: "a root that is sent but not installed", about: `certificate 3 of 3 sent, "CN=Root"`, reason: "not installed here",
			fault: func(h *hospital) {
				other := h.sign(authority("Other"), authority("Other"), h.betweenKey, h.betweenKey)
				h.trust = func(*chain) []*x509.Certificate { return []*x509.Certificate{other} }
				h.send = func(c *chain) []*x509.Certificate { return []*x509.Certificate{c.leaf, c.issuing, c.root} }
			},
			mended: func(h *hospital) {
				h.send = func(c *chain) []*x509.Certificate { return []*x509.Certificate{c.leaf, c.issuing, c.root} }
			}},
		{name: "signed by itself", about: "platform certificate", reason: "signed by itself",
			fault: func(h *hospital) {
				h.send = func(*chain) []*x509.Certificate { return []*x509.Certificate{h.sign(h.leaf, h.leaf, h.key, h.key)} }
			}},
		{name: "signed by itself and installed", about: "platform certificate", reason: "installed as a root",
			fault: func(h *hospital) {
				self := h.sign(h.leaf, h.leaf, h.key, h.key)
				h.send = func(*chain) []*x509.Certificate { return []*x509.Certificate{self} }
				h.trust = func(c *chain) []*x509.Certificate { return []*x509.Certificate{self, c.root} }
			}},
		{name: "a signature that is another's", about: "platform certificate", reason: "its signature is not that of the issuer it names",
			fault: func(h *hospital) {
				h.send = func(c *chain) []*x509.Certificate {
					return []*x509.Certificate{h.sign(h.leaf, h.issuing, h.key, h.betweenKey), c.issuing}
				}
			},
			mended: func(h *hospital) {
				h.send = func(c *chain) []*x509.Certificate {
					return []*x509.Certificate{h.sign(h.leaf, h.issuing, h.key, h.issuingKey), c.issuing}
				}
			}},
		{name: "extended key usage of a client", about: "platform certificate", reason: "extended key usage",
			fault:  func(h *hospital) { extended(h.leaf, x509.ExtKeyUsageClientAuth) },
			mended: func(h *hospital) { extended(h.leaf, x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth) }},
		{name: "a CA that may issue to clients only", reason: "extended key usage",
			fault:  func(h *hospital) { extended(h.issuing, x509.ExtKeyUsageClientAuth) },
			mended: func(h *hospital) { extended(h.issuing, x509.ExtKeyUsageServerAuth) }},
		{name: "key usage without signatures", about: "platform certificate", reason: "does not allow signatures",
			fault:  func(h *hospital) { h.leaf.KeyUsage = x509.KeyUsageKeyEncipherment },
			mended: func(h *hospital) { h.leaf.KeyUsage = 0 }},
		{name: "issuer is no CA", about: `certificate 2 of 2 sent, "CN=Issuing"`, reason: "without being a CA",
			fault:  func(h *hospital) { h.issuing.IsCA, h.issuing.KeyUsage = false, x509.KeyUsageDigitalSignature },
			mended: func(h *hospital) { h.issuing.KeyUsage |= x509.KeyUsageDigitalSignature }},
		{name: "issuer is a CA without the right to sign certificates", about: `certificate 2 of 2 sent, "CN=Issuing"`, reason: "without being a CA",
			fault:  func(h *hospital) { h.issuing.KeyUsage = x509.KeyUsageCRLSign },
			mended: func(h *hospital) { h.issuing.KeyUsage = x509.KeyUsageCertSign }},
		{name: "path too long", about: `"CN=Issuing"`, reason: "path length",
			fault:  func(h *hospital) { h.between, h.issuing.MaxPathLenZero = authority("Between"), true },
			mended: func(h *hospital) { h.between, h.issuing.MaxPathLen = authority("Between"), 1 }},
		{name: "name that a CA may not give", reason: "name constraints",
			fault:  func(h *hospital) { h.issuing.PermittedDNSDomains = []string{"elsewhere.test"} },
			mended: func(h *hospital) { h.issuing.PermittedDNSDomains = []string{"elsewhere.test", "test"} }},
		{name: "name that a CA is forbidden to give", reason: "name constraints",
			fault:  func(h *hospital) { h.issuing.ExcludedDNSDomains = []string{"test"} },
			mended: func(h *hospital) { h.issuing.ExcludedDNSDomains = []string{"est", "m.test"} }},
		{name: "name constraints evaded by the subject", about: `certificate 2 of 2 sent, "CN=Issuing"`, reason: "name constraints",
			fault: func(h *hospital) {
				h.leaf.DNSNames, h.issuing.PermittedDNSDomains = nil, []string{"elsewhere.test"}
			},
			mended: func(h *hospital) { h.leaf.DNSNames, h.issuing.PermittedDNSDomains = nil, []string{host} }},
		{name: "address constraints evaded by the subject", reason: "name constraints",
			fault: func(h *hospital) {
				h.name, h.leaf.Subject.CommonName, h.leaf.DNSNames = "192.0.2.7", "192.0.2.7", nil
				h.issuing.PermittedIPRanges = []*net.IPNet{{IP: net.IPv4(198, 51, 100, 0).To4(), Mask: net.CIDRMask(24, 32)}}
			},
			mended: func(h *hospital) {
				h.name, h.leaf.Subject.CommonName, h.leaf.DNSNames = "192.0.2.7", "192.0.2.7", nil
				h.issuing.PermittedIPRanges = []*net.IPNet{{IP: net.IPv4(192, 0, 2, 0).To4(), Mask: net.CIDRMask(24, 32)}}
			}},
		{name: "critical extension that nobody knows", about: "platform certificate", reason: "critical extension",
			fault: func(h *hospital) {
				e := unknown
				e.Critical = true
				h.leaf.ExtraExtensions = []pkix.Extension{e}
			},
			mended: func(h *hospital) { h.leaf.ExtraExtensions = []pkix.Extension{unknown} }},
		{name: "RSA key of 1024 bits", about: "platform certificate", reason: "its RSA key has 1024 bits; 2048 are the least",
			fault:  func(h *hospital) { h.key = rsaKey(h.t, 1024) },
			mended: func(h *hospital) { h.key = rsaKey(h.t, 2048) }},
		{name: "CA key of 1024 bits", about: "certificate 2 of 2 sent", reason: "its RSA key has 1024 bits",
			fault:  func(h *hospital) { h.issuingKey = rsaKey(h.t, 1024) },
			mended: func(h *hospital) { h.issuingKey = rsaKey(h.t, 2048) }},
		{name: "root key of 1024 bits", about: "installed root", reason: "its RSA key has 1024 bits",
			fault:  func(h *hospital) { h.rootKey = rsaKey(h.t, 1024) },
			mended: func(h *hospital) { h.rootKey = rsaKey(h.t, 2048) }},
		{name: "signed with SHA-1", about: "platform certificate", reason: "it is signed with ECDSA-SHA1",
			fault:  func(h *hospital) { h.leaf.SignatureAlgorithm = x509.ECDSAWithSHA1 },
			mended: func(h *hospital) { h.root.SignatureAlgorithm = x509.ECDSAWithSHA1 }}, // a root's signature proves nothing
		{name: "CA signed with SHA-1", about: "certificate 2 of 2 sent", reason: "it is signed with ECDSA-SHA1",
			fault:  func(h *hospital) { h.issuing.SignatureAlgorithm = x509.ECDSAWithSHA1 },
			mended: func(h *hospital) { h.issuing.SignatureAlgorithm = x509.ECDSAWithSHA384 }},
		{name: "time unknown", reason: "the time is not known", fault: func(h *hospital) { h.at = time.Time{} }},
		{name: "TLS 1.1", rule: "B13", reason: "the platform chose TLS 1.1",
			fault:  func(h *hospital) { h.state = func(s *tls.ConnectionState) { s.Version = tls.VersionTLS11 } },
			mended: func(h *hospital) { h.state = func(s *tls.ConnectionState) { s.Version = tls.VersionTLS12 } }},
		{name: "resumed", reason: "resumed an earlier session",
			fault: func(h *hospital) { h.state = func(s *tls.ConnectionState) { s.DidResume = true } }},
		{name: "no certificate", reason: "showed no certificate",
			fault: func(h *hospital) { h.state = func(s *tls.ConnectionState) { s.PeerCertificates = nil } }},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newHospital(t)
			c.fault(h)
			err := h.verdict()
			var r *RefusalError
			if !errors.As(err, &r) {
				t.Fatalf("the verdict is %v", err)
			}
			if want := c.rule; r.Rule != want && (want != "" || r.Rule != "B17") {
				t.Errorf("refused by rule %s", r.Rule)
			}
			if !strings.Contains(r.Reason, c.reason) || !strings.Contains(r.Certificate, c.about) {
				t.Errorf("refused %s because %s; that is not %s because %s", r.Certificate, r.Reason, c.about, c.reason)
			}
			if r.Next == "" || strings.ContainsAny(err.Error(), "\n\x00") {
				t.Errorf("no next step, or no single line: %q", err)
			}
			twin := newHospital(t)
			if c.mended != nil {
				c.mended(twin)
			}
			if err := twin.verdict(); err != nil {
				t.Errorf("mended, it is refused too: %v", err)
			}
		})
	}
}

func TestB17_OneGoodPathOfTwoIsEnough(t *testing.T) {
	h := newHospital(t)
	weakKey := rsaKey(t, 1024)
	weak := h.sign(authority("Weak root"), authority("Weak root"), weakKey, weakKey)
	cross := h.sign(authority("Issuing"), authority("Weak root"), h.issuingKey, weakKey)
	h.trust = func(c *chain) []*x509.Certificate { return []*x509.Certificate{weak, c.root} }
	h.send = func(c *chain) []*x509.Certificate { return []*x509.Certificate{c.leaf, cross, c.issuing} }
	if err := h.verdict(); err != nil {
		t.Error(err)
	}
	h.send = func(c *chain) []*x509.Certificate { return []*x509.Certificate{c.leaf, cross} }
	if err := h.verdict(); err == nil {
		t.Error("the weak path alone was accepted")
	}
}

func TestOnlyTheSignaturesListedCount(t *testing.T) {
	for a := range x509.SignatureAlgorithm(64) {
		known := strings.Contains(a.String(), "SHA256") || strings.Contains(a.String(), "SHA384") ||
			strings.Contains(a.String(), "SHA512") || a == x509.PureEd25519
		if strings.Contains(a.String(), "DSA-SHA256") && !strings.Contains(a.String(), "EC") {
			known = false
		}
		if strong := weakSignature(&x509.Certificate{SignatureAlgorithm: a}) == ""; strong != known {
			t.Errorf("%v counts: %v", a, strong)
		}
	}
}

// Package x509 refuses SHA-1 by itself, today; the step does not count on it.
func TestStrongStepRefusesAWeakSignatureByItself(t *testing.T) {
	h := newHospital(t)
	c := h.chain()
	path := []*x509.Certificate{c.leaf, c.issuing, c.root}
	state := tls.ConnectionState{PeerCertificates: path[:2]}
	v := &verifier{side: platformSide}
	if err := v.strong(path, state, now); err != nil {
		t.Fatal(err)
	}
	h.issuing.SignatureAlgorithm = x509.ECDSAWithSHA1
	path[1] = h.sign(h.issuing, h.root, h.issuingKey, h.rootKey)
	if err := v.strong(path, state, now); err == nil || !strings.Contains(err.Error(), "ECDSA-SHA1") {
		t.Errorf("%v", err)
	}
}

func TestB16_OurOwnCertificateIsRefused(t *testing.T) {
	h := newHospital(t)
	c := h.chain()
	good := device(t)
	weakCA := rsaKey(t, 1024)
	for _, row := range []struct {
		name, rule, reason string
		client             Client
	}{
		{"the zero value", "B17", "is no host name", Client{}},
		{"no roots", "B15", "no root certificate", Client{ServerName: host, Identity: good}},
		{"an empty set of roots", "B15", "no root certificate", Client{ServerName: host, Identity: good, Roots: x509.NewCertPool()}},
		{"a wildcard for a host", "B17", "is no host name", Client{ServerName: "*.test", Identity: good, Roots: pool(c.root)}},
		{"no certificate", "B16", "no certificate and key", Client{ServerName: host, Roots: pool(c.root)}},
		{"no key", "B16", "no certificate and key", identity(c, func(id *tls.Certificate) { id.PrivateKey = nil }, good)},
		{"the issuing CA missing", "B16", `its issuer "CN=Issuing" is missing`, identity(c, func(id *tls.Certificate) { id.Certificate = id.Certificate[:1] }, good)},
		{"another CA behind it", "B16", "is not its issuer", identity(c, func(id *tls.Certificate) { id.Certificate[1] = c.root.Raw }, good)},
		{"the wrong order", "B16", "is not its issuer", identity(c, func(id *tls.Certificate) { slices.Reverse(id.Certificate) }, good)},
		{"another key", "B16", "its key is another one", identity(c, func(id *tls.Certificate) { id.PrivateKey = keys()[0] }, good)},
		{"a key that cannot sign", "B16", "cannot sign", identity(c, func(id *tls.Certificate) { id.PrivateKey = struct{}{} }, good)},
		{"bytes that are no certificate", "B16", "cannot be read", identity(c, func(id *tls.Certificate) { id.Certificate[1] = []byte("x") }, good)},
		{"a platform's certificate", "B16", "not that of a TLS client", identity(c, func(id *tls.Certificate) { id.Certificate = [][]byte{c.leaf.Raw, c.issuing.Raw} }, good)},
		{"a weak issuing CA", "B16", "has 1024 bits", identity(c, func(id *tls.Certificate) {
			ca := h.sign(authority("Issuing"), authority("Issuing"), weakCA, weakCA)
			leaf := h.sign(h.leaf, authority("Issuing"), h.key, weakCA)
			id.Certificate = [][]byte{leaf.Raw, ca.Raw}
		}, good)},
	} {
		t.Run(row.name, func(t *testing.T) {
			config, err := row.client.Config()
			var r *RefusalError
			if !errors.As(err, &r) || config != nil {
				t.Fatalf("%v, %v", config, err)
			}
			if r.Rule != row.rule || !strings.Contains(r.Reason, row.reason) || r.Next == "" {
				t.Errorf("refused by %s because %s, next %q", r.Rule, r.Reason, r.Next)
			}
		})
	}
	if _, err := (Client{ServerName: host, Roots: pool(c.root), Identity: good}).Config(); err != nil {
		t.Errorf("the good twin: %v", err)
	}
}

func identity(c *chain, change func(*tls.Certificate), good tls.Certificate) Client {
	good.Certificate = slices.Clone(good.Certificate)
	change(&good)
	return Client{ServerName: host, Roots: pool(c.root), Identity: good}
}

func TestAVerifierWithoutRulesRefuses(t *testing.T) {
	h := newHospital(t)
	c := h.chain()
	v := &verifier{side: platformSide, host: host, roots: pool(c.root), clock: clock{now: func() time.Time { return now }}}
	if err := v.connection(tls.ConnectionState{Version: tls.VersionTLS13, PeerCertificates: h.send(c)}); err == nil {
		t.Error("accepted")
	}
}

// Whatever a certificate holds, a name is only taken for the host where they
// differ in nothing but the case of ASCII letters.
func FuzzSameHost(f *testing.F) {
	for _, s := range []string{host, "PLATFORM.TEST", host + ".", host + "..", "*.test", "platform.te\u017Ft", ""} {
		f.Add(s, host)
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		within(a, b)
		if !sameHost(a, b) {
			return
		}
		a = strings.TrimSuffix(a, ".")
		for i := range len(a) {
			if letter := a[i] | 0x20; a[i] != b[i] && (a[i]^b[i] != 0x20 || letter < 'a' || letter > 'z') {
				t.Fatalf("%q for %q", a, b)
			}
		}
	})
}
