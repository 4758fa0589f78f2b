package est

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/bedside-gateway/gatewayd/tlspolicy"
)

const (
	maxBody      = 256 << 10 // of an answer: /cacerts of a large PKI has some 20 kB
	maxText      = 200       // characters of a server's explanation that we repeat
	maxRedirects = 3
)

// Bounds of Retry-After. RFC 7030, section 4.2.3 wants the header with 202, and
// RFC 9110, section 15.6.4 has it with 503; a server that leaves it out is asked
// again after defaultRetry.
const (
	defaultRetry = time.Minute
	maxRetry     = 24 * time.Hour
)

// Pending is the error of a request that the CA took and has not decided
// (202): somebody may have to approve it by hand.
type Pending struct {
	After time.Duration // when to ask again, at least a second
	Text  string        // the server's, escaped
}

func (p *Pending) Error() string {
	return fmt.Sprintf("the CA has not decided yet%s: ask again in %v, with the same request", said(p.Text), p.After)
}

// Unavailable is the error of a server that answers nobody now (503), or not us
// so often (429): nothing is decided.
type Unavailable struct {
	Status int
	Text   string        // the server's, escaped and cut
	After  time.Duration // when to ask again, at least a second
}

func (u *Unavailable) Error() string {
	return fmt.Sprintf("the server cannot answer now (%d %s)%s: ask again in %v", u.Status, http.StatusText(u.Status), said(u.Text), u.After)
}

// Refused is the error of a request that the server turned down.
type Refused struct {
	Status int
	Text   string // the server's, escaped and cut
}

func (r *Refused) Error() string {
	return fmt.Sprintf("the server refused with %d %s%s; %s", r.Status, http.StatusText(r.Status), said(r.Text), r.next())
}

func (r *Refused) next() string {
	switch {
	case r.Status == http.StatusUnauthorized:
		return "check the user and password, or enrol with a current certificate"
	case r.Status == http.StatusForbidden:
		return "have the CA's operator authorise this device"
	case r.Status == http.StatusNotFound:
		return "check the path and the CA's label"
	case r.Status >= 500:
		return "try again later, or ask the CA's operator"
	}
	return "ask the CA's operator"
}

func said(text string) string {
	if text == "" {
		return ""
	}
	return ", saying " + text
}

func newHTTP(o Options) *http.Client {
	config := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: o.Roots, Time: o.Now}
	if o.Identity != nil {
		// Sent even where the server's list of CAs leaves ours out: it is for
		// the server to refuse a certificate, with a reason.
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return o.Identity, nil }
	}
	return &http.Client{
		Timeout:       o.Timeout,
		CheckRedirect: redirect,
		Transport: &http.Transport{
			DialTLSContext:        dialTLS(o, config),
			ResponseHeaderTimeout: o.Timeout, IdleConnTimeout: o.Timeout,
			MaxResponseHeaderBytes: 32 << 10, MaxConnsPerHost: 2, DisableCompression: true,
		},
	}
}

// dialTLS makes the connection so that a key of ours that does not sign is told
// from a server that is in the way (tlspolicy.KeyError).
func dialTLS(o Options, config *tls.Config) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		ctx, cancel := context.WithTimeout(ctx, o.Timeout)
		defer cancel()
		raw, err := o.Dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		own := config.Clone()
		if own.ServerName, _, err = net.SplitHostPort(address); err == nil {
			var conn *tls.Conn
			if conn, err = tlspolicy.Handshake(ctx, raw, own); err == nil {
				return conn, nil
			}
		}
		_ = raw.Close()
		return nil, err
	}
}

// redirect follows within the host (RFC 7030, section 3.2.1): another one has
// to be configured, so that credentials and requests go where somebody meant
// them to.
func redirect(to *http.Request, via []*http.Request) error {
	from := via[0]
	switch {
	case to.URL.Scheme != from.URL.Scheme || to.URL.Host != from.URL.Host:
		return fmt.Errorf("it redirects to %.100q: configure that address if it is right", to.URL.Redacted())
	case to.Method != from.Method:
		return errors.New("its redirect would lose the request (301 to 303 in answer to POST): configure the address it moved to")
	case len(via) > maxRedirects:
		return fmt.Errorf("it redirects more than %d times", maxRedirects)
	}
	return nil
}

// An answer is a response that was read.
type answer struct {
	status int
	header http.Header
	body   []byte
}

// ask sends a request, and sends it again with the credential where the server
// asks for one.
func (c *Client) ask(ctx context.Context, method, operation string, body []byte) (answer, error) {
	a, err := c.send(ctx, method, operation, body, nil)
	if err != nil || a.status != http.StatusUnauthorized || c.o.Credential == nil {
		return a, err
	}
	if !offersBasic(a.header) {
		return a, fmt.Errorf("the server wants the authentication %.60q: the gateway knows Basic and client certificates", a.header.Get("WWW-Authenticate"))
	}
	return c.send(ctx, method, operation, body, c.o.Credential)
}

func offersBasic(h http.Header) bool {
	for _, line := range h.Values("WWW-Authenticate") {
		for challenge := range strings.SplitSeq(line, ",") {
			scheme, _, _ := strings.Cut(strings.TrimSpace(challenge), " ")
			if strings.EqualFold(scheme, "Basic") {
				return true
			}
		}
	}
	return false
}

func (c *Client) send(ctx context.Context, method, operation string, body []byte, credential func() (string, string, error)) (answer, error) {
	r, err := http.NewRequestWithContext(ctx, method, c.base+"/"+operation, bytes.NewReader(body))
	if err != nil {
		return answer{}, err
	}
	if body != nil {
		r.Header.Set("Content-Type", "application/pkcs10")
		r.Header.Set("Content-Transfer-Encoding", "base64") // RFC 8951 ignores it, servers of RFC 7030 may not
	}
	if credential != nil {
		user, password, err := credential()
		if err != nil {
			return answer{}, fmt.Errorf("user and password of the first enrolment: %w", err)
		}
		r.SetBasicAuth(user, password)
	}
	response, err := c.http.Do(r)
	if err != nil {
		return answer{}, explain(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(io.LimitReader(response.Body, maxBody+1))
	if err != nil {
		return answer{}, fmt.Errorf("the answer broke off: %w", err)
	}
	if len(text) > maxBody {
		return answer{}, fmt.Errorf("the answer has more than %d bytes: that is no EST server", maxBody)
	}
	return answer{response.StatusCode, response.Header, text}, nil
}

// explain adds the next step to a failure before any answer.
func explain(err error) error {
	if _, is := errors.AsType[x509.UnknownAuthorityError](err); is {
		return fmt.Errorf("%w: check that the configured root is that of this server", err)
	}
	if _, is := errors.AsType[x509.HostnameError](err); is {
		return fmt.Errorf("%w: use the name that is in its certificate", err)
	}
	if invalid, is := errors.AsType[x509.CertificateInvalidError](err); is && invalid.Reason == x509.Expired {
		return fmt.Errorf("%w: check the gateway's clock, then the server's certificate", err)
	}
	if remote, is := errors.AsType[*net.OpError](err); is && remote.Op == "remote error" { // a TLS alert
		return fmt.Errorf("%w: the server does not take our side of TLS; where it asks for a certificate, see that ours is of its CA and has not expired", err)
	}
	return err
}

// refusal is the error of any status but 200.
func (a answer) refusal(now time.Time) error {
	text := a.text()
	switch a.status {
	case http.StatusAccepted:
		return &Pending{After: a.retryAfter(now), Text: text}
	case http.StatusServiceUnavailable, http.StatusTooManyRequests:
		return &Unavailable{Status: a.status, Text: text, After: a.retryAfter(now)}
	}
	return &Refused{Status: a.status, Text: text}
}

// text is the server's explanation, safe to print: it may hold anything.
func (a answer) text() string {
	words := strings.Join(strings.Fields(string(a.body[:min(len(a.body), 8*maxText)])), " ")
	if words == "" {
		return ""
	}
	if r := []rune(words); len(r) > maxText {
		words = string(r[:maxText]) + "..."
	}
	return strconv.QuoteToASCII(words)
}

// retryAfter reads seconds or a date (RFC 9110, section 10.2.3).
func (a answer) retryAfter(now time.Time) time.Duration {
	text := strings.TrimSpace(a.header.Get("Retry-After"))
	var d time.Duration
	if n, err := strconv.ParseUint(text, 10, 64); err == nil || errors.Is(err, strconv.ErrRange) {
		d = time.Duration(min(n, uint64(maxRetry/time.Second))) * time.Second
	} else if t, err := http.ParseTime(text); err == nil {
		d = t.Sub(now)
	} else {
		return defaultRetry
	}
	return min(max(d.Round(time.Second), time.Second), maxRetry)
}

// isCertsOnly judges the media type (RFC 7030, section 4.1.3). What follows it
// is read strictly, so that a server without the parameter is good enough.
func (a answer) isCertsOnly() error {
	kind, parameters, err := mime.ParseMediaType(a.header.Get("Content-Type"))
	if err != nil || kind != "application/pkcs7-mime" && kind != "application/x-pkcs7-mime" {
		return fmt.Errorf("the answer is of the type %.60q, not application/pkcs7-mime: that is no EST server, or something stands between", a.header.Get("Content-Type"))
	}
	if p := parameters["smime-type"]; p != "" && !strings.EqualFold(p, "certs-only") {
		return fmt.Errorf("the answer is a %.40q: only certs-only is read", p)
	}
	return nil
}
