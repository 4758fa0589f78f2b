package responder

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"

	"golang.org/x/crypto/ocsp"
)

const (
	typeResponse = "application/ocsp-response"
	typeCRL      = "application/pkix-crl"
	followed     = "followed" // query of those who come by a redirect
)

// fixed are the answers that are the same whoever asks about what.
var fixed = map[Answer]struct {
	status int
	kind   string // content type, "" is that of the server
	body   []byte
}{
	Garbage: {http.StatusOK, "", []byte("neither a response nor a list\n")},
	Portal:  {http.StatusOK, "text/html; charset=utf-8", []byte("<!DOCTYPE html><title>Ward network</title><p>Please sign in.\n")},
	HTTP500: {http.StatusInternalServerError, "text/plain; charset=utf-8", []byte("the database is away\n")},
	None:    {http.StatusOK, "", nil},
}

// ocsp answers an OCSP request.
func (s *Server) ocsp(w http.ResponseWriter, r *http.Request) {
	ids, err := readRequest(w, r)
	if err != nil {
		s.refuse(w, r, ocsp.Malformed, err)
		return
	}
	ca := s.authorityOf(ids[0])
	if ca == nil {
		s.refuse(w, r, ocsp.Unauthorized, fmt.Errorf("serial number %x is of no CA here", ids[0].SerialNum))
		return
	}
	var mine []certID
	var names []string
	for _, id := range ids {
		if ca.of(id) { // one CA signs a response, it says nothing of another's
			mine, names = append(mine, id), append(names, ca.nameOf(id))
		}
	}
	answers := s.planned(r, names...)
	s.events(Event{Method: r.Method, Names: names, Answer: answers[0]})
	s.send(w, r, typeResponse, answers[0], func() ([]byte, error) { return s.respond(ca, mine, answers) })
}

func (ca *authority) nameOf(id certID) string {
	if e := ca.entry(id.SerialNum); e != nil {
		return e.Name
	}
	return id.SerialNum.Text(16)
}

// refuse answers a request that was not understood. The status is 200: it is
// OCSP that refuses (RFC 6960, section 2.3).
func (s *Server) refuse(w http.ResponseWriter, r *http.Request, status ocsp.ResponseStatus, reason error) {
	s.misunderstood()
	s.events(Event{Method: r.Method, Err: reason})
	der, err := failure(status)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	write(w, typeResponse, der)
}

// send writes an answer with the faults that are of HTTP.
func (s *Server) send(w http.ResponseWriter, r *http.Request, kind string, a Answer, body func() ([]byte, error)) {
	word, delay, _ := a.split() // it was checked when it was set
	if f, is := fixed[word]; is {
		if f.kind != "" {
			kind = f.kind
		}
		w.Header().Set("Content-Type", kind)
		w.WriteHeader(f.status)
		_, _ = w.Write(f.body) // fails where the asker is gone
		return
	}
	switch word {
	case Slow:
		if !wait(r.Context(), delay) {
			return
		}
	case Redirect:
		w.Header().Set("Location", elsewhere(r))
		w.WriteHeader(http.StatusTemporaryRedirect)
		return
	}
	der, err := body()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	if word == Truncated {
		w.Header().Set("Content-Type", kind)
		w.Header().Set("Content-Length", strconv.Itoa(2*len(der)))
		_, _ = w.Write(der)
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler) // the way of net/http to break off
	}
	write(w, kind, der)
}

func write(w http.ResponseWriter, kind string, body []byte) {
	w.Header().Set("Content-Type", kind)
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	_, _ = w.Write(body) // fails where the asker is gone
}

// wait reports whether the asker was still there after the delay.
func wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// elsewhere is the same question under another name of this machine.
func elsewhere(r *http.Request) string {
	host, port, err := net.SplitHostPort(r.Host)
	if err != nil {
		host, port = r.Host, "80"
	}
	other := "localhost"
	if host == other {
		other = "127.0.0.1"
	}
	u := *r.URL
	u.Scheme, u.Host = "http", net.JoinHostPort(other, port)
	u.RawQuery = followed
	return u.String()
}

// Control is an HTTP interface to a running server, for a unix socket. It is
// that of the simulated platform where both have the same:
//
//	GET  /status    State as JSON
//	POST /answer    a script, see Server.Script
func (s *Server) Control() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) { s.tell(w, nil) })
	mux.HandleFunc("POST /answer", func(w http.ResponseWriter, r *http.Request) {
		text, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxRequest))
		if err == nil {
			err = s.Script(string(text))
		}
		s.tell(w, err)
	})
	return mux
}

func (s *Server) tell(w http.ResponseWriter, err error) {
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(s.State()) // fails where the asker is gone
}
