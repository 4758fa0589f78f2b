package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/bedside-gateway/gatewayd/internal/config"
	"github.com/bedside-gateway/gatewayd/internal/daemon"
	"github.com/bedside-gateway/gatewayd/internal/enroll"
	"github.com/bedside-gateway/gatewayd/northbound"
	"github.com/bedside-gateway/gatewayd/pcd"
	"github.com/bedside-gateway/gatewayd/tlspolicy"
)

func (a *app) sendCommand() *cobra.Command {
	t := config.Destination{Name: "platform", IdleTimeout: time.Minute}
	var id sender
	c := &cobra.Command{
		Use: "send --platform HOST:PORT --trust FILE FILE...", Short: "Send messages once, as the gateway would", Args: some("FILE"),
		Long: "Send the messages in files to a platform, through the same code that the gateway delivers with, and print each\n" +
			"acknowledgement. What the messages break of the rules is printed as a warning first. FILE - is the standard input.\n" +
			"The exit code is 0 when all were accepted, 69 when the platform is unreachable, 75 when it asked to try later, 76 when\n" +
			"our rules refuse the platform, or the platform refuses a message.",
		RunE: func(c *cobra.Command, args []string) error {
			to, done, err := a.sendTarget(t, id)
			if err != nil {
				return err
			}
			defer done()
			return a.send(c.Context(), to, args)
		},
	}
	f := c.Flags()
	f.StringVar(&t.Address, "platform", "", "`HOST:PORT` of the platform; its certificate must have this name (required)")
	f.StringVar(&t.Connect, "connect", "", "dial `ADDR` instead, under the same name")
	f.StringVarP(&id.config, "config", "c", config.DefaultPath, "configuration `file`, for the certificate that gatewayd enroll installed")
	f.StringVar(&id.certificate, "cert", "", "in place of it, PEM `file` of our certificate and its issuing ones; only in a development build")
	f.StringVar(&id.key, "key", "", "PEM `file` of the private key to --cert")
	f.StringVar(&t.Trust, "trust", "", "PEM `file` of the platform's root certificates (required)")
	if fileKey == nil {
		_ = f.MarkHidden("cert") // they are defined just above
		_ = f.MarkHidden("key")
	}
	f.DurationVar(&t.AckTimeout, "ack-timeout", 10*time.Second, "how long an acknowledgement may take")
	f.DurationVar(&t.ConnectTimeout, "connect-timeout", 10*time.Second, "how long connecting may take")
	f.BoolVar(&t.StrictAck, "strict-ack", false, "take only acknowledgements of the mode that the message asks for")
	return c
}

// A sender is where our own certificate and key are.
type sender struct{ config, certificate, key string }

// sendTarget checks the flags and makes a destination of them. done gives the
// TPM back.
func (a *app) sendTarget(t config.Destination, id sender) (to northbound.Destination, done func(), err error) {
	done = func() {}
	for _, f := range []struct{ name, value string }{{"--platform", t.Address}, {"--trust", t.Trust}} {
		if f.value == "" {
			return to, done, usage("%s is missing", f.name)
		}
	}
	if t.Address, err = config.Address(t.Address); err != nil {
		return to, done, usage("--platform: %w", err)
	}
	if t.Connect != "" {
		if t.Connect, err = config.Address(t.Connect); err != nil {
			return to, done, usage("--connect: %w", err)
		}
	}
	trust, err := os.ReadFile(t.Trust)
	if err != nil {
		return to, done, configured(fmt.Errorf("--trust: %w", err))
	}
	pair, done, err := a.identity(id)
	if err != nil {
		return to, done, err
	}
	to, err = daemon.Destination(t, trust, tlspolicy.Client{Identity: pair, Now: time.Now, Floor: a.made})
	return to, done, configured(err)
}

// identity is our own certificate: from files, or from the TPM.
func (a *app) identity(id sender) (pair tls.Certificate, done func(), err error) {
	done = func() {}
	switch {
	case id.certificate == "" && id.key == "":
		return a.enrolled(id.config)
	case id.certificate == "":
		return pair, done, usage("--cert is missing")
	case id.key == "":
		return pair, done, usage("--key is missing")
	case fileKey == nil:
		return pair, done, configured(errors.New(noFileKey))
	}
	pair, err = fileKey(id.certificate, id.key)
	return pair, done, configured(err)
}

// noFileKey is what a release says to a key in a file.
const noFileKey = "this is a release: it takes no private key from a file; take certificate, key and insecure_file_key out, and run gatewayd enroll init"

// enrolled is the certificate in use of a configuration.
func (a *app) enrolled(path string) (pair tls.Certificate, done func(), err error) {
	office, err := a.office(path, enroll.Device)
	if err != nil {
		return pair, func() {}, err
	}
	slots, err := office.Store.Read()
	if err == nil {
		pair, err = office.Identity(slots.Current)
	}
	return pair, office.close, configured(err)
}

func (a *app) send(ctx context.Context, to northbound.Destination, names []string) error {
	var all [][]byte
	for _, name := range names {
		list, err := a.messages(name)
		if err != nil {
			return err
		}
		for i, m := range list {
			printFindings(a.err, fmt.Sprintf("%s: message %d", name, i+1), pcd.Validate(m))
		}
		all = append(all, list...)
	}
	var worst error
	err := northbound.Send(ctx, to, all, func(i int, r northbound.Result) {
		if r.Err != nil {
			worst = worse(worst, sendFault(fmt.Errorf("message %d of %d: %w", i+1, len(all), r.Err)))
			return
		}
		fmt.Fprintln(a.out, strings.TrimSpace(fmt.Sprint(r.Ack.Code, " ", r.Ack.ControlID, " ", r.Ack.Reason())))
		worst = worse(worst, answerFault(r.Ack))
	})
	return worse(worst, sendFault(err))
}

// worse is the more final of two errors: refused before unreachable before later.
func worse(a, b error) error {
	rank := func(err error) int {
		e, ok := errors.AsType[*exit](err)
		if !ok {
			return -1
		}
		return slices.Index([]int{exitTryLater, exitRuntime, exitUnavailable, exitProtocol}, e.code)
	}
	if rank(b) > rank(a) {
		return b
	}
	return a
}

// answerFault is what an acknowledgement that is no success means.
func answerFault(ack pcd.Ack) error {
	switch {
	case ack.Rejected():
		return &exit{exitProtocol, fmt.Errorf("the platform rejected message %s with %s %s; correct the message", ack.ControlID, ack.Code, ack.Reason())}
	case ack.Retry():
		return &exit{exitTryLater, fmt.Errorf("the platform could not take message %s now: %s %s; send it again later", ack.ControlID, ack.Code, ack.Reason())}
	}
	return nil
}

// sendFault gives an error of northbound its exit code.
func sendFault(err error) error {
	if _, ok := errors.AsType[*tlspolicy.RefusalError](err); ok {
		return &exit{exitProtocol, err}
	}
	if _, ok := errors.AsType[*northbound.RefusedError](err); ok {
		return &exit{exitProtocol, err}
	}
	if _, ok := errors.AsType[*tlspolicy.KeyError](err); ok {
		return &exit{exitTryLater, err}
	}
	if _, ok := errors.AsType[*northbound.UnreachableError](err); ok {
		return &exit{exitUnavailable, err}
	}
	if e, ok := errors.AsType[*northbound.AckError](err); ok {
		return &exit{ackFault(e.Fault), err}
	}
	return coded(err)
}

// ackFault tells an answer that never came, whose message may be sent again,
// from an answer that breaks the rules.
func ackFault(f northbound.Fault) int {
	switch f {
	case northbound.NoAnswer, northbound.Lost, northbound.Unfinished:
		return exitTryLater
	}
	return exitProtocol
}
