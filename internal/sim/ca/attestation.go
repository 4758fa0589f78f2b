package ca

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/bedside-gateway/gatewayd/keystore/attest"
	"github.com/bedside-gateway/gatewayd/observation"
)

// Limits of exchanges that are under way: anybody may begin one.
const (
	maxExchanges = 64
	maxAge       = 2 * time.Minute // a slow TPM makes an RSA endorsement key in one
	maxBody      = 96 << 10
)

// An exchange is one device's, from its nonce to its certificate.
type exchange struct {
	id      string
	nonce   []byte
	begun   time.Time
	secret  []byte // nil until there was good evidence
	result  attest.Result
	device  observation.EUI64
	claimed bool // evidence came; it may come once
}

// exchanges are those under way, bounded in number and time.
type exchanges struct {
	mu  sync.Mutex
	all map[string]*exchange
}

var errFull = errors.New("too many exchanges are under way: try again in a minute")

func (x *exchanges) begin(now time.Time) (*exchange, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for id, e := range x.all {
		if now.Sub(e.begun) > maxAge {
			delete(x.all, id)
		}
	}
	if len(x.all) >= maxExchanges {
		return nil, denial{http.StatusServiceUnavailable, errFull}
	}
	e := &exchange{id: rand.Text(), nonce: random(), begun: now}
	x.all[e.id] = e
	return e, nil
}

// take hands an exchange to whom knows its id, for its next step only.
func (x *exchanges) take(id string, now time.Time, challenged bool) (*exchange, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	e, known := x.all[id]
	if !known || now.Sub(e.begun) > maxAge {
		delete(x.all, id)
		return nil, denial{http.StatusNotFound, errors.New("no such exchange is under way: begin anew")}
	}
	if challenged {
		delete(x.all, id) // whatever comes of it
		if e.secret == nil {
			return nil, denial{http.StatusConflict, errors.New("there was no good evidence in this exchange: begin anew")}
		}
		return e, nil
	}
	if e.claimed {
		delete(x.all, id)
		return nil, denial{http.StatusConflict, errors.New("the evidence of this exchange came already: begin anew")}
	}
	e.claimed = true
	return e, nil
}

// challenge keeps what was found out, for the last step.
func (x *exchanges) challenge(e *exchange, r attest.Result, device observation.EUI64, secret []byte) {
	x.mu.Lock()
	defer x.mu.Unlock()
	e.result, e.device, e.secret = r, device, secret
}

func random() []byte {
	b := make([]byte, 32)
	_, _ = rand.Read(b) // it never fails
	return b
}

func (s *Server) routeAttestation() {
	s.mux.HandleFunc("POST "+attest.PathBegin, step(s, s.begin))
	s.mux.HandleFunc("POST "+attest.PathEvidence, step(s, s.evidence))
	s.mux.HandleFunc("POST "+attest.PathFinish, step(s, s.finish))
}

// step reads and writes JSON around a step of the exchange.
func step[In, Out any](s *Server, do func(In) (Out, Event)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var in In
		if err := readJSON(http.MaxBytesReader(w, r.Body, maxBody), &in); err != nil {
			s.refuse(w, Event{Way: "attest", Err: denial{http.StatusBadRequest, err}})
			return
		}
		out, e := do(in)
		if e.Err != nil {
			e.Way = "attest"
			s.refuse(w, e)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(out) // fails where the asker is gone
	}
}

func readJSON(r io.Reader, into any) error {
	d := json.NewDecoder(r)
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return fmt.Errorf("the request cannot be read: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("the request is followed by something")
	}
	return nil
}

func (s *Server) begin(struct{}) (attest.Begun, Event) {
	e, err := s.open.begin(s.o.Now())
	if err != nil {
		return attest.Begun{}, Event{Err: err}
	}
	return attest.Begun{ID: e.id, Nonce: e.nonce}, Event{}
}

func (s *Server) evidence(in attest.Presented) (out attest.Challenged, event Event) {
	x, err := s.open.take(in.ID, s.o.Now(), false)
	if err != nil {
		return out, Event{Err: err}
	}
	e, err := attest.Parse(in.Evidence)
	if err != nil {
		return out, Event{Err: denial{http.StatusBadRequest, err}}
	}
	result, err := attest.Verify(e, attest.Options{EKRoots: s.o.EKRoots, Intermediates: s.o.EKIntermediates,
		AllowBareEK: s.allows, Nonce: x.nonce, Now: s.o.Now()})
	if err != nil {
		return out, Event{Err: err}
	}
	_, device, err := s.read(e.CSR)
	if err != nil {
		return out, Event{Device: result.CSR.Subject.CommonName, Err: err}
	}
	secret := random()
	out.CredentialBlob, out.EncryptedSecret, err = attest.Challenge(e, secret)
	if err != nil {
		return out, Event{Device: device.String(), Err: err}
	}
	s.open.challenge(x, result, device, secret)
	return out, Event{}
}

func (s *Server) allows(name string) bool {
	return slices.ContainsFunc(s.o.AllowEK, func(allowed string) bool { return strings.EqualFold(allowed, name) })
}

func (s *Server) finish(in attest.Finished) (out attest.Issued, event Event) {
	x, err := s.open.take(in.ID, s.o.Now(), true)
	if err != nil {
		return out, Event{Err: err}
	}
	if subtle.ConstantTimeCompare(in.Secret, x.secret) != 1 {
		return out, Event{Device: x.device.String(), Err: denial{http.StatusForbidden,
			errors.New("that is not what was in the challenge: attestation key and endorsement key are not shown to be in one TPM")}}
	}
	chain, err := s.issue("attest", how(x.result), x.result.CSR, x.device)
	if err != nil {
		return out, Event{Device: x.device.String(), Err: denial{http.StatusInternalServerError, err}}
	}
	for _, c := range chain {
		out.Chain = append(out.Chain, c.Raw)
	}
	return out, Event{}
}

func how(r attest.Result) string {
	if r.EKCertificate == nil {
		return "TPM allowed as " + r.EKName
	}
	return fmt.Sprintf("TPM %.40q %.40q, certificate %x of %.80q", r.TPM.Manufacturer, r.TPM.Model, r.EKCertificate.SerialNumber, r.EKCertificate.Issuer.String())
}
