package main

import (
	"encoding/json"
	"errors"
	"strings"

	"github.com/spf13/cobra"

	"github.com/bedside-gateway/gatewayd/internal/enroll"
	"github.com/bedside-gateway/gatewayd/keystore/tpm"
)

// An advised error has its next step apart.
type advised struct{ what, next string }

func (a *advised) Error() string { return a.what + ": " + a.next }

// Next is what to do.
func (a *advised) Next() string { return a.next }

// enrolFault gives an error of enrolment its exit code.
func enrolFault(err error) error {
	ca, ok := errors.AsType[*enroll.CAError](err)
	switch fault := tpm.FaultOf(err); {
	case ok && ca.Temporary():
		return &exit{exitTryLater, err}
	case ok:
		return &exit{exitProtocol, err}
	case fault == tpm.Busy:
		return &exit{exitTryLater, err}
	case fault == tpm.Absent, fault == tpm.Failing:
		return &exit{exitUnavailable, err}
	case fault == tpm.Astray:
		return &exit{exitData, err}
	}
	return coded(err)
}

// tellsErrors has the commands print their errors as --json wants it.
func (e *enrolling) tellsErrors(parent *cobra.Command) {
	told := func(f func(*cobra.Command, []string) error) func(*cobra.Command, []string) error {
		return func(c *cobra.Command, args []string) error { return e.tell(f(c, args)) }
	}
	for _, c := range append(parent.Commands(), parent) {
		c.Args, c.RunE = told(c.Args), told(c.RunE)
	}
	parent.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return e.tell(usage("%w", err)) })
}

// A complaint is an error for scripts.
type complaint struct {
	Error string `json:"error"`
	Next  string `json:"next"`
	Code  int    `json:"code"` // that the command ends with
}

// tell prints an error in place of the outcome where that is JSON. Its exit code
// stays.
func (e *enrolling) tell(err error) error {
	failed, ok := errors.AsType[*exit](coded(err))
	if !e.asJSON || !ok || failed.err == nil {
		return err
	}
	if err := e.encode(complaint{failed.Error(), nextOf(failed), failed.code}); err != nil {
		return coded(err)
	}
	return &exit{failed.code, nil}
}

// What to do about an error that knows no more than its kind.
var nextByCode = map[int]string{
	exitUsage:      "See gatewayd enroll --help.",
	exitData:       "Have the file made anew, as the error says.",
	exitTryLater:   "Run the same command again later.",
	exitPermission: "Run it as the user of gatewayd, or as root.",
	exitConfig:     "Correct the configuration or the flags, as the error says; gatewayd check names each mistake.",
}

func nextOf(e *exit) string {
	if a, ok := errors.AsType[interface {
		error
		Next() string
	}](e.err); ok && a.Next() != "" {
		return sentence(a.Next())
	}
	if errors.Is(e.err, enroll.ErrNotBegun) || errors.Is(e.err, enroll.ErrNotEnrolled) {
		return "Run gatewayd enroll init."
	}
	if next := nextByCode[e.code]; next != "" {
		return next
	}
	return "Do what the error says; gatewayd enroll status tells how things stand."
}

// sentence makes one of a step that stands behind an error.
func sentence(s string) string { return strings.ToUpper(s[:1]) + s[1:] + "." }

// encode prints JSON whose commands can be copied as they are.
func (e *enrolling) encode(v any) error {
	out := json.NewEncoder(e.app.out)
	out.SetEscapeHTML(false)
	return out.Encode(v)
}
