package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/bedside-gateway/gatewayd/drivers"
	"github.com/bedside-gateway/gatewayd/drivers/port"
	"github.com/bedside-gateway/gatewayd/internal/replay"
	"github.com/bedside-gateway/gatewayd/observation"
)

// recording is the flags of the commands that read one.
type recording struct {
	driver, format, framing, begin string
	udpPort                        int
	options                        []string
}

func (r *recording) flags(a *app, c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&r.driver, "driver", "", "`name` of the driver (required)")
	f.StringVar(&r.format, "input", "auto", "`format` of the recording: auto, raw, hex or pcap")
	f.StringVar(&r.framing, "framing", "auto", "whether a raw recording is a `stream` of a serial line or datagrams: auto, stream or datagrams")
	f.StringVar(&r.begin, "begin", "", "`time` of the first byte where the recording has no dates (RFC 3339; default now)")
	f.IntVar(&r.udpPort, "udp-port", 0, "UDP `port` of the device in a network capture (default: that of the driver)")
	f.StringArrayVar(&r.options, "option", nil, "option of the driver, `NAME=VALUE`; may be repeated")
	_ = c.RegisterFlagCompletionFunc("driver", func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return a.driverNames(), cobra.ShellCompDirectiveNoFileComp
	})
}

func (a *app) driverNames() (names []string) {
	for _, d := range a.drivers.All() {
		names = append(names, d.Info().Name)
	}
	return names
}

// replayOptions turns the flags into options, or says which is wrong.
func (r *recording) replayOptions(a *app) (o replay.Options, err error) {
	if r.driver == "" {
		return o, usage("--driver is missing; there are %s", strings.Join(a.driverNames(), ", "))
	}
	if o.Driver, err = a.drivers.Lookup(r.driver); err != nil {
		return o, usage("--driver: %w", err)
	}
	if o.Format, err = port.ParseFormat(r.format); err != nil {
		return o, usage("--input: %w", err)
	}
	if o.Framing, err = replay.ParseFraming(r.framing); err != nil {
		return o, usage("--framing: %w", err)
	}
	o.Begin = time.Now()
	if r.begin != "" {
		if o.Begin, err = time.Parse(time.RFC3339, r.begin); err != nil {
			return o, usage("--begin: %q is no time; write it like 2026-01-02T15:04:05Z", r.begin)
		}
	}
	o.UDPPort = r.udpPort
	o.Options, err = pairs(r.options)
	return o, err
}

func (a *app) decodeCommand() *cobra.Command {
	var in recording
	var patient bool
	c := &cobra.Command{
		Use: "decode --driver NAME FILE", Short: "Show what a recording holds, as observations", Args: one("FILE"),
		Long: "Run a driver over a recording and print what it observes, one JSON object a line: patients, observations, alerts.\n" +
			"Patient identifiers are left out unless --show-patient is given. FILE - is the standard input.\n" +
			"The exit code is 65 when something in the recording is damaged; all that could be read is printed.",
		Example: "  gatewayd decode --driver intellivue session.bin | jq -c '{name,value}'",
		RunE: func(_ *cobra.Command, args []string) error {
			o, err := in.replayOptions(a)
			if err != nil {
				return err
			}
			out := bufio.NewWriter(a.out)
			lines := replay.NewLines(out, patient)
			result, err := a.replay(args[0], o, lines.Report)
			return a.judge(result, o, errors.Join(err, out.Flush()))
		},
	}
	in.flags(a, c)
	c.Flags().BoolVar(&patient, "show-patient", false, "print patient identifiers and typed-in texts as well")
	return c
}

// replay runs the driver over a file.
func (a *app) replay(name string, o replay.Options, sink func(*observation.Report) error) (replay.Result, error) {
	f, err := a.open(name)
	if err != nil {
		return replay.Result{}, err
	}
	defer f.Close()
	return replay.Run(f, o, sink)
}

// judge prints the counts of a replay and makes its exit code.
func (a *app) judge(r replay.Result, o replay.Options, err error) error {
	if errors.Is(err, os.ErrClosed) || errors.Is(err, io.ErrClosedPipe) {
		return nil
	}
	if err != nil {
		return coded(err)
	}
	for _, note := range r.Notes {
		fmt.Fprintln(a.err, "note:", note)
	}
	fmt.Fprintln(a.err, r.String())
	switch {
	case r.Bytes == 0:
		return &exit{exitData, errors.New("the recording holds nothing from the device; check --input, and --udp-port for a capture")}
	case r.Reports == 0 && r.Frames[drivers.FrameGood] == 0:
		return &exit{exitData, fmt.Errorf("nothing in it is of the protocol %s; check --driver, --input and --framing", o.Driver.Info().Name)}
	case r.Damaged():
		return &exit{exitData, errors.New("part of the recording is damaged; what could be read was printed")}
	}
	return nil
}
