// Package tls: what Interface B of CMI-SP-CDI-IHE-PCD-IST asks for and the
// stock package lacks. Everything is off until one of the methods here turns it
// on, and all of it hangs on one unexported pointer of Config.

package tls

import (
	"errors"
	"fmt"
	"slices"
)

// extConfig is never changed once a Config points to it: the setters put a
// changed copy in its place, so that Clone may share it.
type extConfig struct {
	statusRequestV2 bool
	suites          []uint16  // TLS 1.2 suites in order of preference; nil is the stock order
	groups          []CurveID // FFDHE groups in order of preference
}

// ExtVersion marks a build with this overlay: the Go version and a hash over all that was added.
func (c *Config) ExtVersion() string { return extVersion }

func (c *Config) extChange(change func(*extConfig)) {
	var e extConfig
	if c.ext != nil {
		e = *c.ext
	}
	change(&e)
	c.ext = &e
}

// EnableStatusRequestV2 makes a client offer ocsp_multi (RFC 6961) whenever it offers TLS 1.2.
func (c *Config) EnableStatusRequestV2() {
	c.extChange(func(e *extConfig) { e.statusRequestV2 = true })
}

// SetCipherSuiteOrder sets the TLS 1.2 cipher suites and their order, for both
// roles. It takes the place of CipherSuites.
func (c *Config) SetCipherSuiteOrder(ids []uint16) error {
	for i, id := range ids {
		if cipherSuiteByID(id) == nil {
			return fmt.Errorf("tls: cipher suite 0x%04X is unknown", id)
		}
		if slices.Contains(ids[:i], id) {
			return fmt.Errorf("tls: cipher suite %s is listed twice", CipherSuiteName(id))
		}
	}
	if len(ids) == 0 {
		return errors.New("tls: the list of cipher suites is empty")
	}
	ids = slices.Clone(ids)
	c.extChange(func(e *extConfig) { e.suites = ids })
	return nil
}

// SetFFDHEGroups sets the finite field groups (RFC 7919) and their order for
// DHE suites. The default is ffdhe3072, ffdhe2048.
func (c *Config) SetFFDHEGroups(ids []uint16) error {
	groups := make([]CurveID, 0, len(ids))
	for _, id := range ids {
		if extGroupByID(CurveID(id)) == nil {
			return fmt.Errorf("tls: finite field group %d is unknown", id)
		}
		groups = append(groups, CurveID(id))
	}
	if len(groups) == 0 {
		return errors.New("tls: the list of finite field groups is empty")
	}
	c.extChange(func(e *extConfig) { e.groups = groups })
	return nil
}

// SetOCSPStaples sets the OCSP responses to staple, by index of
// Certificate.Certificate; nil or empty for a certificate that has none.
func (cert *Certificate) SetOCSPStaples(staples [][]byte) {
	cert.OCSPStaple, cert.OCSPStaples = nil, make([][]byte, len(staples))
	for i, s := range staples {
		if len(s) > 0 {
			cert.OCSPStaples[i] = s
		}
	}
	if len(staples) > 0 {
		cert.OCSPStaple = cert.OCSPStaples[0]
	}
}

// StapledOCSPResponses are the responses that the peer stapled, by index of
// PeerCertificates. The list may be shorter; a missing entry and an empty one
// both mean that there was none.
func (s *ConnectionState) StapledOCSPResponses() [][]byte { return s.OCSPResponses }

func (cert *Certificate) extHasStaple() bool {
	return len(cert.OCSPStaple) > 0 || cert.extHasMulti()
}

func (cert *Certificate) extHasMulti() bool {
	return slices.ContainsFunc(cert.OCSPStaples, func(s []byte) bool { return len(s) > 0 })
}

func (cert *Certificate) extStaple(i int) []byte {
	if i < len(cert.OCSPStaples) {
		return cert.OCSPStaples[i]
	}
	return nil
}

// extJoinStaples puts the leaf's response, which the stock package keeps by itself, in its place.
func extJoinStaples(leaf []byte, all [][]byte) [][]byte {
	if len(leaf) == 0 {
		return all
	}
	if len(all) == 0 {
		return [][]byte{leaf}
	}
	all = slices.Clone(all)
	all[0] = leaf
	return all
}

// extVerifyAlert is the alert for an error of VerifyConnection: the one it names, else the stock one.
func extVerifyAlert(err error) alert {
	if a, ok := errors.AsType[AlertError](err); ok {
		return alert(a)
	}
	return alertBadCertificate
}

// extClientHello completes a ClientHello.
func (c *Config) extClientHello(hello *clientHelloMsg, maxVersion, minVersion uint16) {
	if c.ext == nil || minVersion > VersionTLS12 || maxVersion < VersionTLS12 {
		return
	}
	hello.ocspMulti = c.ext.statusRequestV2 && c.EncryptedClientHelloConfigList == nil
	// A TLS 1.3 server could take the groups for key shares that it may ask for.
	if maxVersion == VersionTLS12 && slices.ContainsFunc(hello.cipherSuites, extIsDHE) {
		hello.supportedCurves = append(slices.Clone(hello.supportedCurves), c.extGroups()...)
	}
}

// extCertificateBySuite picks the certificate by the order of the suites: the
// stock package takes the first certificate that fits and thereby lets the
// order of the certificates decide over the suite.
func (c *Config) extCertificateBySuite(chi *ClientHelloInfo) *Certificate {
	if c.ext == nil || c.ext.suites == nil {
		return nil
	}
	if slices.Contains(chi.SupportedVersions, VersionTLS13) && (c.MaxVersion == 0 || c.MaxVersion >= VersionTLS13) {
		return nil
	}
	for _, id := range c.cipherSuites(false) {
		if !slices.Contains(chi.CipherSuites, id) {
			continue
		}
		one := *chi
		one.CipherSuites = []uint16{id}
		for i := range c.Certificates {
			if one.SupportsCertificate(&c.Certificates[i]) == nil {
				return &c.Certificates[i]
			}
		}
	}
	return nil
}
