package fetch

import (
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// An Error is a responder or CRL server that gave nothing acceptable.
type Error struct {
	URL    string // as the certificate has it
	Reason string
	Next   string
	Err    error // the cause, where there is one beside Reason
	down   bool  // the host, and not only this answer, is of no use now
}

func (e *Error) Error() string {
	return fmt.Sprintf("%s: %s; %s", quote(e.URL), e.Reason, e.Next)
}

func (e *Error) Unwrap() error { return e.Err }

const (
	askNetwork = "check that the gateway may reach it, and that it runs"
	askServer  = "the CA's operator must mend the server"
	askIssue   = "the CA's operator must issue certificates that name an http URL"

	maxGet       = 255 // of the request in a GET's path (RFC 6960, appendix A.1)
	maxRedirects = 2
	maxQuoted    = 200
)

// quote makes a text of others fit for a log line.
func quote(s string) string {
	if len(s) > maxQuoted {
		s = s[:maxQuoted] + "…"
	}
	return fmt.Sprintf("%+q", s)
}

// What is wanted of a server.
type want struct {
	types []string // of the content; "" allows none to be given
	max   int64
}

func (f *Fetcher) wantResponse() want {
	return want{types: []string{"application/ocsp-response"}, max: f.o.MaxResponse}
}

// CRL servers are often plain file servers: RFC 5280, section 4.2.1.13, has
// application/pkix-crl, the others are met in the field.
func (f *Fetcher) wantCRL() want {
	return want{types: []string{"application/pkix-crl", "application/x-pkcs7-crl", "application/octet-stream", ""}, max: f.o.MaxCRL}
}

var errElsewhere = errors.New("it redirects elsewhere, which is not followed")

// stayHere is the redirect policy: the certificate's issuer vouched for one host.
func stayHere(r *http.Request, via []*http.Request) error {
	first := via[0].URL
	if len(via) > maxRedirects || r.URL.Scheme != first.Scheme || r.URL.Host != first.Host {
		return errElsewhere
	}
	return nil
}

// usable holds the URL of a certificate to plain http. With https the
// responder's own certificate would have to be judged first (RFC 5280, section 8).
func usable(raw string) (*url.URL, error) {
	u, err := url.Parse(raw)
	if err != nil || u.Scheme != "http" || u.Host == "" || u.User != nil || u.Opaque != "" {
		return nil, &Error{URL: raw, Reason: "it is no http URL", Next: askIssue}
	}
	u.Fragment, u.RawFragment = "", ""
	return u, nil
}

// withRequest is the URL for a GET, where the request is short enough.
func withRequest(u *url.URL, request []byte) (*url.URL, bool) {
	text := url.QueryEscape(base64.StdEncoding.EncodeToString(request))
	if len(text) >= maxGet || u.RawQuery != "" {
		return nil, false
	}
	long, err := url.Parse(strings.TrimSuffix(u.String(), "/") + "/" + text)
	return long, err == nil
}

// do makes one request, unless its host is to be left alone. A nil body is a GET.
func (f *Fetcher) do(ctx context.Context, u *url.URL, body []byte, w want, named string) ([]byte, error) {
	if err := f.admit(ctx, u.Host, named); err != nil {
		return nil, err
	}
	got, err := f.request(ctx, u, body, w)
	if err == nil {
		f.tried(u.Host, nil)
		return got, nil
	}
	err.URL = named
	if err.down && f.life.Err() == nil { // else it was we who hung up
		f.tried(u.Host, err)
	} else {
		f.tried(u.Host, nil)
	}
	return nil, err
}

func (f *Fetcher) request(ctx context.Context, u *url.URL, body []byte, w want) ([]byte, *Error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, &Error{Reason: "it cannot be asked", Next: askIssue, Err: err}
	}
	if body != nil {
		r.Method, r.ContentLength = http.MethodPost, int64(len(body))
		r.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil }
		r.Body, _ = r.GetBody() // it cannot fail
		r.Header.Set("Content-Type", "application/ocsp-request")
	}
	r.Header.Set("Accept", w.types[0])
	r.Header.Set("User-Agent", "gatewayd")
	answer, err := f.client.Do(r)
	if err != nil {
		return nil, f.unreachable(ctx, err)
	}
	defer answer.Body.Close()
	return w.read(answer, body == nil)
}

func (f *Fetcher) unreachable(ctx context.Context, err error) *Error {
	if errors.Is(err, errElsewhere) {
		return &Error{Reason: errElsewhere.Error(), Next: askServer, Err: errElsewhere}
	}
	if ctx.Err() != nil {
		return &Error{Reason: fmt.Sprintf("no answer within %v", f.o.Timeout), Next: askNetwork, Err: err, down: true}
	}
	if long, ok := errors.AsType[*url.Error](err); ok { // it repeats the whole request
		err = long.Err
	}
	return &Error{Reason: "no answer: " + quote(err.Error()), Next: askNetwork, Err: err, down: true}
}

// read takes a body whole, or not at all.
func (w want) read(answer *http.Response, isGet bool) ([]byte, *Error) {
	if answer.StatusCode != http.StatusOK {
		return nil, w.status(answer.StatusCode, isGet)
	}
	kind, _, err := mime.ParseMediaType(cmp.Or(answer.Header.Get("Content-Type"), ""))
	if err != nil && answer.Header.Get("Content-Type") != "" || !slices.Contains(w.types, kind) {
		return nil, &Error{Reason: fmt.Sprintf("the content type of its answer is %s, not %s", quote(answer.Header.Get("Content-Type")), w.types[0]), Next: askServer}
	}
	if answer.ContentLength > w.max {
		return nil, w.tooLarge()
	}
	body, err := io.ReadAll(io.LimitReader(answer.Body, w.max+1))
	switch {
	case err != nil:
		return nil, &Error{Reason: fmt.Sprintf("its answer broke off after %d bytes", len(body)), Next: askNetwork, Err: err, down: true}
	case int64(len(body)) > w.max:
		return nil, w.tooLarge()
	}
	return body, nil
}

func (w want) tooLarge() *Error {
	return &Error{Reason: fmt.Sprintf("its answer is larger than the limit of %d bytes", w.max), Next: "raise the limit if this size is right"}
}

// status refuses an HTTP status. A GET that a responder does not know about is
// no sign that it is down: it may answer the POST.
func (w want) status(code int, isGet bool) *Error {
	down := code == http.StatusTooManyRequests || code > 501 || code >= 500 && !(isGet && w.types[0] == "application/ocsp-response")
	return &Error{Reason: fmt.Sprintf("it answered with HTTP status %d", code), Next: askServer, down: down}
}

// A host that failed is left alone until a time; then one request tries it.
type host struct {
	failures int
	until    time.Time
	last     *Error
	trial    chan struct{} // closed when the request that tries it is over
}

// admit returns nil where the host may be asked. While another request tries a
// host that failed, it waits for what that one finds.
func (f *Fetcher) admit(ctx context.Context, name, named string) error {
	for {
		trial, err := f.mayAsk(name, named)
		if trial == nil {
			return err
		}
		select {
		case <-trial:
		case <-ctx.Done():
			return &Error{URL: named, Reason: fmt.Sprintf("no answer within %v", f.o.Timeout), Next: askNetwork, Err: ctx.Err()}
		}
	}
}

func (f *Fetcher) mayAsk(name, named string) (trial chan struct{}, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	h, now := f.hosts[name], f.o.Now()
	switch {
	case h == nil:
		return nil, nil
	case h.trial != nil:
		return h.trial, nil
	case now.Before(h.until):
		return nil, &Error{URL: named, Reason: "it is left alone until " + h.until.UTC().Format(time.RFC3339) + ", since it failed: " + h.last.Reason, Next: h.last.Next, Err: h.last}
	}
	h.trial = make(chan struct{})
	return nil, nil
}

// tried notes how a request to a host went; nil is well.
func (f *Fetcher) tried(name string, down *Error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	h := f.hosts[name]
	if h != nil && h.trial != nil {
		close(h.trial)
		h.trial = nil
	}
	if down == nil {
		delete(f.hosts, name)
		return
	}
	if h == nil {
		f.dropHost()
		h = &host{}
		f.hosts[name] = h
	}
	h.failures++
	h.until, h.last = f.o.Now().Add(backoff(h.failures)), down
}

// A Down is a responder or CRL server that is left alone because it failed.
type Down struct {
	Host     string
	Failures int // in a row
	Reason   string
	Retry    time.Time // from when on it is tried again, if it is needed
}

// Down tells which servers failed when they were last needed, by host.
func (f *Fetcher) Down() []Down {
	f.mu.Lock()
	defer f.mu.Unlock()
	var list []Down
	for name, h := range f.hosts {
		if h.last != nil {
			list = append(list, Down{name, h.failures, h.last.Reason, h.until})
		}
	}
	slices.SortFunc(list, func(a, b Down) int { return cmp.Compare(a.Host, b.Host) })
	return list
}

// dropHost makes room where more hosts failed than are ever met.
func (f *Fetcher) dropHost() {
	for name, h := range f.hosts {
		if len(f.hosts) < maxAuthorities*maxURLs {
			return
		}
		if h.trial == nil {
			delete(f.hosts, name)
		}
	}
}
