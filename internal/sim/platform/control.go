package platform

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"
)

// State is what Control says of a platform.
type State struct {
	Address string `json:"address"`
	Alive   bool   `json:"alive"`
	Counts  Counts `json:"counts"`
}

// State is the state of now.
func (p *Platform) State() State {
	p.mu.Lock()
	defer p.mu.Unlock()
	return State{p.address, p.life != nil, p.counts}
}

// Control is an HTTP interface to a running platform, for a unix socket:
//
//	GET  /status            State as JSON
//	POST /answer            a script of answers, see ParseAnswers
//	POST /kill[?for=3s]     Kill, and Restart after the time where one is given
//	POST /restart
func (p *Platform) Control() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) { p.reply(w, nil) })
	mux.HandleFunc("POST /answer", func(w http.ResponseWriter, r *http.Request) {
		text, err := io.ReadAll(io.LimitReader(r.Body, 1024))
		if err != nil {
			p.reply(w, err)
			return
		}
		answers, err := ParseAnswers(string(text))
		if err == nil {
			p.SetAnswer(answers...)
		}
		p.reply(w, err)
	})
	mux.HandleFunc("POST /kill", func(w http.ResponseWriter, r *http.Request) { p.reply(w, p.killFor(r.FormValue("for"))) })
	mux.HandleFunc("POST /restart", func(w http.ResponseWriter, _ *http.Request) { p.reply(w, p.Restart()) })
	return mux
}

func (p *Platform) killFor(text string) error {
	if text == "" {
		p.Kill()
		return nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d <= 0 {
		return fmt.Errorf("for=%q is no duration such as 3s", text)
	}
	p.Kill()
	time.AfterFunc(d, func() {
		if err := p.Restart(); err != nil {
			p.event(Event{Kind: Killed, Text: err.Error()})
		}
	})
	return nil
}

func (p *Platform) reply(w http.ResponseWriter, err error) {
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(p.State()) // fails where the asker is gone
}
