package status

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"
)

// A Source is the daemon, as far as its status goes. Its methods are safe for
// concurrent use.
type Source interface {
	// Report is the state now.
	Report() Report
	// Live returns why the process should be killed and started again, or nil.
	Live() error
}

// A Store is the spool, as far as an operator may touch it.
type Store interface {
	// List hands over the entries of a queue, or of all where it is empty,
	// without their messages.
	List(queue string, f func(Entry) error) error
	// Show is one entry with its message, patient identifiers included.
	Show(id uint64) (Entry, error)
	Release(id uint64) error
	Drop(id uint64, reason string) error
}

// An Entry is one message in the spool.
type Entry struct {
	ID        uint64    `json:"id"`
	Queue     string    `json:"queue"`
	Device    string    `json:"device"`
	ControlID string    `json:"control_id"`
	Class     string    `json:"class"`
	State     string    `json:"state"`
	Made      time.Time `json:"made"`
	Attempts  int       `json:"attempts"`
	Reason    string    `json:"reason,omitempty"`
	Size      int       `json:"size"`
	Message   []byte    `json:"message,omitempty"`
}

// The errors of a Store that the answer tells apart.
var (
	ErrNotFound = errors.New("there is no such message in the spool")
	ErrInFlight = errors.New("the message is being sent at this moment; try again")
)

// A Server answers on the status socket.
type Server struct {
	listener net.Listener
	http     *http.Server
	log      *slog.Logger
}

// maxConnections bounds what a broken scraper can cost.
const maxConnections = 16

// Listen opens the socket at path, for its user and group only. A socket that a
// dead process left behind is replaced; one that answers is an error.
func Listen(path string, source Source, store Store, log *slog.Logger) (*Server, error) {
	if err := clear(path); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return nil, fmt.Errorf("folder of the status socket: %w; create it or set status_socket", err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("status socket: %w; check the rights on its folder or set status_socket", err)
	}
	if err := os.Chmod(path, 0o660); err != nil {
		l.Close()
		return nil, fmt.Errorf("status socket: %w", err)
	}
	s := &Server{listener: &limited{Listener: l, free: make(chan struct{}, maxConnections)}, log: log}
	s.http = &http.Server{
		Handler:           handler(source, store),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      time.Minute,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    8 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	return s, nil
}

// clear removes the socket of a dead process.
func clear(path string) error {
	info, err := os.Lstat(path)
	if err != nil {
		return nil
	}
	if info.Mode()&os.ModeSocket == 0 {
		return fmt.Errorf("%s is there and no socket; move it away or set status_socket", path)
	}
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		c.Close()
		return fmt.Errorf("%s is answered by another gatewayd; stop that one, or set status_socket and state_dir", path)
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("old status socket: %w", err)
	}
	return nil
}

// Serve answers until the context ends.
func (s *Server) Serve(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { s.http.Close() })
	defer stop()
	if err := s.http.Serve(s.listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("status socket: %w", err)
	}
	return nil
}

// Close closes the socket.
func (s *Server) Close() error {
	if err := s.http.Close(); err != nil {
		return err
	}
	if err := s.listener.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

func handler(source Source, store Store) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { probe(w, source.Live()) })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) { probe(w, ready(source.Report())) })
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, source.Report()) })
	registry := prometheus.NewRegistry()
	registry.MustRegister(collector{source})
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, _ *http.Request) { scrape(w, registry) })
	mux.HandleFunc("GET /spool", func(w http.ResponseWriter, r *http.Request) { list(w, store, r.FormValue("queue")) })
	mux.HandleFunc("GET /spool/{id}", func(w http.ResponseWriter, r *http.Request) { show(w, r, store) })
	mux.HandleFunc("POST /spool/{id}/release", func(w http.ResponseWriter, r *http.Request) {
		change(w, r, store.Release)
	})
	mux.HandleFunc("POST /spool/{id}/drop", func(w http.ResponseWriter, r *http.Request) {
		change(w, r, func(id uint64) error { return store.Drop(id, "operator") })
	})
	return mux
}

func ready(r Report) error {
	if !r.Ready {
		return errors.New("starting")
	}
	return nil
}

func probe(w http.ResponseWriter, err error) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	if err != nil {
		w.WriteHeader(http.StatusServiceUnavailable)
		fmt.Fprintln(w, err)
		return
	}
	fmt.Fprintln(w, "ok")
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(v) // an error is that of a caller who went away
}

// scrape writes the metrics as text. The library's own handler would bring three
// compressors into the firmware for a local socket.
func scrape(w http.ResponseWriter, registry prometheus.Gatherer) {
	families, err := registry.Gather()
	if err != nil {
		fail(w, err)
		return
	}
	format := expfmt.NewFormat(expfmt.TypeTextPlain)
	w.Header().Set("Content-Type", string(format))
	out := expfmt.NewEncoder(w, format)
	for _, f := range families {
		if out.Encode(f) != nil {
			return // the scraper went away
		}
	}
}

// list writes one entry a line, as it comes: a full spool is not held in memory.
func list(w http.ResponseWriter, store Store, queue string) {
	w.Header().Set("Content-Type", "application/jsonl")
	out, n := json.NewEncoder(w), 0
	err := store.List(queue, func(e Entry) error {
		e.Message = nil
		n++
		return out.Encode(e)
	})
	if err != nil && n == 0 {
		fail(w, err)
	} else if err != nil {
		panic(http.ErrAbortHandler) // the client must not take a part for the whole
	}
}

func show(w http.ResponseWriter, r *http.Request, store Store) {
	id, err := entryID(r)
	if err != nil {
		fail(w, err)
		return
	}
	e, err := store.Show(id)
	if err != nil {
		fail(w, err)
		return
	}
	if r.FormValue("patient") != "show" {
		e.Message = Redact(e.Message)
	}
	writeJSON(w, e)
}

func change(w http.ResponseWriter, r *http.Request, do func(uint64) error) {
	id, err := entryID(r)
	if err == nil {
		err = do(id)
	}
	if err != nil {
		fail(w, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

var errID = errors.New("an entry is named by its number, see gatewayd spool ls")

func entryID(r *http.Request) (uint64, error) {
	id, err := strconv.ParseUint(r.PathValue("id"), 10, 64)
	if err != nil {
		return 0, errID
	}
	return id, nil
}

func fail(w http.ResponseWriter, err error) {
	code := http.StatusInternalServerError
	switch {
	case errors.Is(err, errID):
		code = http.StatusBadRequest
	case errors.Is(err, ErrNotFound):
		code = http.StatusNotFound
	case errors.Is(err, ErrInFlight):
		code = http.StatusConflict
	}
	http.Error(w, err.Error(), code)
}

// limited is a listener of which only so many connections are open at a time.
type limited struct {
	net.Listener
	free chan struct{}
}

func (l *limited) Accept() (net.Conn, error) {
	l.free <- struct{}{}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.free
		return nil, err
	}
	return &limitedConn{Conn: c, free: l.free}, nil
}
