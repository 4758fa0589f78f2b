package ca

import (
	"crypto/subtle"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strconv"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/bedside-gateway/gatewayd/internal/sim/pki"
	"github.com/bedside-gateway/gatewayd/observation"
)

// A Pending is the reason of a request that was put off.
type Pending struct{ After time.Duration }

func (p *Pending) Error() string { return fmt.Sprintf("waits for approval: ask again in %v", p.After) }

// A denial is a refusal with its HTTP status.
type denial struct {
	status int
	error
}

func (d denial) Unwrap() error { return d.error }

func (s *Server) routeEST() {
	for _, base := range []string{"/.well-known/est", "/.well-known/est/{label}"} {
		s.mux.HandleFunc("GET "+base+"/cacerts", s.cacerts)
		s.mux.HandleFunc("GET "+base+"/csrattrs", s.csrattrs)
		s.mux.HandleFunc("POST "+base+"/simpleenroll", s.enrolling("simpleenroll", s.mayEnroll))
		s.mux.HandleFunc("POST "+base+"/simplereenroll", s.enrolling("simplereenroll", s.mayRenew))
	}
}

// cacerts are the roots and what they issued to CAs (RFC 7030, section 4.1.3).
func (s *Server) cacerts(w http.ResponseWriter, _ *http.Request) {
	var all []*x509.Certificate
	for _, e := range s.o.PKI.Entries {
		if e.Trusted || e.Role == pki.Issuing && e.IssuedBy().Trusted && e.Verdict == "good" {
			all = append(all, e.Certificate)
		}
	}
	writeCerts(w, all)
}

var (
	oidECDSAWithSHA256 = asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}
	oidECPublicKey     = asn1.ObjectIdentifier{1, 2, 840, 10045, 2, 1}
	oidP256            = asn1.ObjectIdentifier{1, 2, 840, 10045, 3, 1, 7}
)

// csrattrs says which keys it likes best (RFC 7030, section 4.5.2).
func (s *Server) csrattrs(w http.ResponseWriter, _ *http.Request) {
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(oidECDSAWithSHA256)
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1ObjectIdentifier(oidECPublicKey)
			b.AddASN1(cbasn1.SET, func(b *cryptobyte.Builder) { b.AddASN1ObjectIdentifier(oidP256) })
		})
	})
	writeBase64(w, "application/csrattrs", b.BytesOrPanic())
}

// enrolling is both operations: they differ in who may.
func (s *Server) enrolling(way string, may func(*http.Request, observation.EUI64) (string, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		request, id, err := s.body(w, r)
		if err != nil {
			s.refuse(w, Event{Way: way, Err: denial{http.StatusBadRequest, err}})
			return
		}
		detail, err := may(r, id)
		if err == nil {
			err = s.putOff()
		}
		if err != nil {
			s.refuse(w, Event{Way: way, Device: id.String(), Err: err})
			return
		}
		chain, err := s.issue(way, detail, request, id)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		writeCerts(w, chain)
	}
}

func (s *Server) body(w http.ResponseWriter, r *http.Request) (*x509.CertificateRequest, observation.EUI64, error) {
	if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != "application/pkcs10" {
		return nil, 0, errors.New("the content type has to be application/pkcs10")
	}
	text, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 2*maxCSR))
	if err != nil {
		return nil, 0, err
	}
	der, err := base64.StdEncoding.DecodeString(string(text)) // it skips line breaks
	if err != nil {
		return nil, 0, fmt.Errorf("the body is not base64: %w", err)
	}
	return s.read(der)
}

// mayEnroll takes a user with a password, or a device with a certificate.
func (s *Server) mayEnroll(r *http.Request, id observation.EUI64) (string, error) {
	if s.o.RequireAttestation {
		return "", denial{http.StatusForbidden, errors.New("a first certificate is issued to attested keys only: use gatewayd enroll attest")}
	}
	user, password, given := r.BasicAuth()
	if given {
		want, known := s.o.Credentials[user]
		if subtle.ConstantTimeCompare([]byte(password), []byte(want)) != 1 || !known {
			return "", denial{http.StatusUnauthorized, errors.New("wrong user or password")}
		}
		return "user " + strconv.Quote(user), nil
	}
	detail, err := s.mayRenew(r, id)
	if err == nil {
		return detail, nil
	}
	if len(s.o.Credentials) > 0 {
		return "", denial{http.StatusUnauthorized, errors.New("a user and a password are needed")}
	}
	return "", err
}

// mayRenew takes the device's own certificate (RFC 7030, section 4.2.2).
func (s *Server) mayRenew(r *http.Request, id observation.EUI64) (string, error) {
	held, err := s.holder(r)
	if err != nil {
		return "", denial{http.StatusForbidden, err}
	}
	if holder, err := observation.ParseEUI64(held.Subject.CommonName); err != nil || holder != id {
		return "", denial{http.StatusForbidden, fmt.Errorf("the client certificate is that of %.60q, the request is for %s", held.Subject.CommonName, id)}
	}
	return fmt.Sprintf("certificate %x", held.SerialNumber), nil
}

// putOff is for the first requests that would have been granted.
func (s *Server) putOff() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pending == 0 {
		return nil
	}
	s.pending--
	return &Pending{s.o.RetryAfter}
}

// refuse answers with the reason as text (RFC 7030, section 4.2.3).
func (s *Server) refuse(w http.ResponseWriter, e Event) {
	s.o.Events(e)
	status := http.StatusForbidden
	if d, is := errors.AsType[denial](e.Err); is {
		status = d.status
	}
	if p, is := errors.AsType[*Pending](e.Err); is {
		status = http.StatusAccepted
		w.Header().Set("Retry-After", strconv.Itoa(int((p.After+time.Second-1)/time.Second)))
	}
	if status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", `Basic realm="simulated CA"`)
	}
	http.Error(w, e.Err.Error(), status)
}

var (
	oidSignedData = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 2}
	oidData       = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 1}
)

// writeCerts writes a certs-only message (RFC 5272, section 4.1).
func writeCerts(w http.ResponseWriter, all []*x509.Certificate) {
	context0 := cbasn1.Tag(0).ContextSpecific().Constructed()
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(oidSignedData)
		b.AddASN1(context0, func(b *cryptobyte.Builder) {
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1Int64(1)
				b.AddASN1(cbasn1.SET, func(*cryptobyte.Builder) {})
				b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) { b.AddASN1ObjectIdentifier(oidData) })
				b.AddASN1(context0, func(b *cryptobyte.Builder) {
					for _, c := range all {
						b.AddBytes(c.Raw)
					}
				})
				b.AddASN1(cbasn1.SET, func(*cryptobyte.Builder) {})
			})
		})
	})
	writeBase64(w, "application/pkcs7-mime; smime-type=certs-only", b.BytesOrPanic())
}

func writeBase64(w http.ResponseWriter, kind string, der []byte) {
	w.Header().Set("Content-Type", kind)
	w.Header().Set("Content-Transfer-Encoding", "base64")
	for text := base64.StdEncoding.EncodeToString(der); text != ""; {
		n := min(76, len(text))
		_, _ = io.WriteString(w, text[:n]+"\r\n") // fails where the asker is gone
		text = text[n:]
	}
}
