package responder

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"maps"
	"math/big"
	"net/http"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/ocsp"
)

var oidDelta = asn1.ObjectIdentifier{2, 5, 29, 27}

// crl answers with the list of the CA that the last part of the path names.
func (s *Server) crl(w http.ResponseWriter, r *http.Request) {
	name := strings.TrimSuffix(path.Base(r.URL.Path), ".crl")
	ca := s.named(name)
	switch {
	case ca == nil:
		s.reject(w, r, http.StatusNotFound, fmt.Errorf("there is no CA named %q", name))
		return
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		s.reject(w, r, http.StatusMethodNotAllowed, fmt.Errorf("method %s: CRLs are got", r.Method))
		return
	}
	a := s.planned(r, name)[0]
	s.events(Event{Method: r.Method, Names: []string{name}, Answer: a})
	s.send(w, r, typeCRL, a, func() ([]byte, error) { return s.list(ca, a) })
}

func (s *Server) named(name string) *authority {
	for _, ca := range s.cas {
		if ca.Name == name {
			return ca
		}
	}
	return nil
}

func (s *Server) reject(w http.ResponseWriter, r *http.Request, status int, reason error) {
	s.misunderstood()
	s.events(Event{Method: r.Method, Err: reason})
	http.Error(w, reason.Error(), status)
}

// list makes a CRL (RFC 5280, section 5).
func (s *Server) list(ca *authority, a Answer) ([]byte, error) {
	now := s.now().UTC().Truncate(time.Second)
	entries, err := s.listed(ca, a, now)
	if err != nil {
		return nil, err
	}
	l := &x509.RevocationList{Number: big.NewInt(now.Unix()), RevokedCertificateEntries: entries}
	l.ThisUpdate, l.NextUpdate = s.times(a, now)
	issuer, key := ca.Certificate, ca.Key
	switch a {
	case WrongSigner, Mismatched:
		other := s.other(ca)
		if other == nil {
			return nil, fmt.Errorf("there is no other CA to sign the list of %s", ca.Name)
		}
		key = other.Key
		if a == Mismatched {
			issuer = other.Certificate
		}
	case SHA1:
		l.SignatureAlgorithm = sha1Of(key.Public())
	case Delta:
		base, err := asn1.Marshal(big.NewInt(now.Unix() - 1))
		if err != nil {
			return nil, err
		}
		l.ExtraExtensions = []pkix.Extension{{Id: oidDelta, Critical: true, Value: base}}
	case Huge:
		l.ExtraExtensions = []pkix.Extension{{Id: oidPadding, Value: make([]byte, HugeSize)}}
	}
	der, err := x509.CreateRevocationList(rand.Reader, l, issuer, key)
	if err != nil {
		return nil, err
	}
	switch a {
	case BadSignature:
		der[len(der)-1] ^= 1 // the signature is the last element
	case Truncated:
		der = der[:len(der)/2]
	}
	return der, nil
}

// listed is what is on a CRL: the truth, or nothing, or everything. What was
// issued after the PKI was made is on it where the script revoked it.
func (s *Server) listed(ca *authority, a Answer, now time.Time) ([]x509.RevocationListEntry, error) {
	said := s.said()
	var entries []x509.RevocationListEntry
	for _, e := range ca.issued {
		entry, is := ca.revoked[e.Certificate.SerialNumber.String()]
		if !is {
			entry = compromised(e.Certificate.SerialNumber, now)
		}
		if one, set := said[e.Name]; set && !e.IsCA() {
			is = one == Revoked
		}
		if a == Revoked || is && a != Good {
			entries = append(entries, x509.RevocationListEntry{SerialNumber: entry.SerialNumber, RevocationTime: entry.RevocationTime, ReasonCode: entry.ReasonCode})
		}
	}
	for _, name := range slices.Sorted(maps.Keys(said)) {
		serial, later := later(name)
		if !later || said[name] != Revoked || a == Good {
			continue
		}
		mine, err := s.knows(ca, serial)
		if err != nil {
			return nil, err
		}
		if mine && ca.entry(serial) == nil {
			entries = append(entries, compromised(serial, now))
		}
	}
	return entries, nil
}

func compromised(serial *big.Int, now time.Time) x509.RevocationListEntry {
	return x509.RevocationListEntry{SerialNumber: serial, RevocationTime: now.Add(-time.Hour), ReasonCode: ocsp.KeyCompromise}
}

// later is the serial number that a name of find is.
func later(name string) (*big.Int, bool) { return new(big.Int).SetString(name, 16) }

// said are the answers about one certificate or CA.
func (s *Server) said() map[string]Answer {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.plan.one)
}

// other is another CA with the same kind of key.
func (s *Server) other(ca *authority) *authority {
	for _, o := range s.cas {
		if o != ca && o.Scheme == ca.Scheme {
			return o
		}
	}
	return nil
}

func sha1Of(key crypto.PublicKey) x509.SignatureAlgorithm {
	if _, ecc := key.(*ecdsa.PublicKey); ecc {
		return x509.ECDSAWithSHA1
	}
	return x509.SHA1WithRSA
}

// List is the CRL of a CA in DER, as the server with this answer sends it.
func (s *Server) List(ca string, a Answer) ([]byte, error) {
	if err := a.check(crlAnswers); err != nil {
		return nil, err
	}
	c := s.named(ca)
	if c == nil {
		return nil, fmt.Errorf("there is no CA named %q", ca)
	}
	return s.list(c, a)
}
