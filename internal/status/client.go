package status

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"time"
)

// A Client asks the daemon on its socket.
type Client struct {
	socket string
	http   http.Client
}

// A NotRunningError is that nothing answers on the socket.
type NotRunningError struct{ Socket string }

// Error says what to look at.
func (e *NotRunningError) Error() string {
	return fmt.Sprintf("no gatewayd answers at %s; see systemctl status gatewayd, or name its configuration with -c FILE", e.Socket)
}

// NewClient makes a client of the socket at path. It connects only when it is asked.
func NewClient(path string) *Client {
	var d net.Dialer
	return &Client{socket: path, http: http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return d.DialContext(ctx, "unix", path) },
	}}}
}

// Report asks for the state of the daemon.
func (c *Client) Report(ctx context.Context) (Report, error) {
	var r Report
	return r, c.ask(ctx, http.MethodGet, "/status", func(b io.Reader) error { return json.NewDecoder(b).Decode(&r) })
}

// List hands over the entries of a queue, of all queues where it is empty.
func (c *Client) List(ctx context.Context, queue string, f func(Entry) error) error {
	return c.ask(ctx, http.MethodGet, "/spool?queue="+url.QueryEscape(queue), func(b io.Reader) error {
		for d := json.NewDecoder(bufio.NewReader(b)); ; {
			var e Entry
			if err := d.Decode(&e); errors.Is(err, io.EOF) {
				return nil
			} else if err != nil {
				return fmt.Errorf("the list broke off: %w", err)
			}
			if err := f(e); err != nil {
				return err
			}
		}
	})
}

// Show is one entry with its message, without patient identifiers unless patient is set.
func (c *Client) Show(ctx context.Context, id uint64, patient bool) (Entry, error) {
	var e Entry
	path := fmt.Sprintf("/spool/%d", id)
	if patient {
		path += "?patient=show"
	}
	return e, c.ask(ctx, http.MethodGet, path, func(b io.Reader) error { return json.NewDecoder(b).Decode(&e) })
}

// Release takes an entry out of quarantine.
func (c *Client) Release(ctx context.Context, id uint64) error {
	return c.ask(ctx, http.MethodPost, fmt.Sprintf("/spool/%d/release", id), nil)
}

// Drop gives an entry up.
func (c *Client) Drop(ctx context.Context, id uint64) error {
	return c.ask(ctx, http.MethodPost, fmt.Sprintf("/spool/%d/drop", id), nil)
}

func (c *Client) ask(ctx context.Context, method, path string, read func(io.Reader) error) error {
	request, err := http.NewRequestWithContext(ctx, method, "http://gatewayd"+path, nil)
	if err != nil {
		return err
	}
	response, err := c.http.Do(request)
	if err != nil {
		return c.unanswered(err)
	}
	defer response.Body.Close()
	if response.StatusCode >= 300 {
		return refusal(response)
	}
	if read == nil {
		return nil
	}
	return read(response.Body)
}

// unanswered is the error for a request that got no answer.
func (c *Client) unanswered(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED):
		return &NotRunningError{c.socket}
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%s: %w; run it as root or as a member of the socket's group", c.socket, fs.ErrPermission)
	}
	return fmt.Errorf("%s: gatewayd does not answer: %w; see journalctl -u gatewayd", c.socket, err)
}

// refusal is the error that an answer is, with the store's errors found by errors.Is.
func refusal(response *http.Response) error {
	text, _ := io.ReadAll(io.LimitReader(response.Body, 4<<10))
	said := strings.TrimSpace(string(text))
	switch response.StatusCode {
	case http.StatusNotFound:
		return wrap(ErrNotFound, said)
	case http.StatusConflict:
		return wrap(ErrInFlight, said)
	}
	return errors.New(said)
}

// wrap is kind in the words that the daemon said.
func wrap(kind error, said string) error {
	if said == "" || said == kind.Error() {
		return kind
	}
	return fmt.Errorf("%w (%s)", kind, strings.TrimPrefix(said, kind.Error()))
}
