package main

import (
	"bufio"
	"crypto/rand"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/bedside-gateway/gatewayd/internal/replay"
	"github.com/bedside-gateway/gatewayd/observation"
	"github.com/bedside-gateway/gatewayd/pcd"
)

// translation is the flags of translate that make the messages.
type translation struct {
	sender, eui64, device, facility, zone, patient, location string
	interval                                                 time.Duration
	simulated, waves, validate                               bool
}

func (a *app) translateCommand() *cobra.Command {
	var in recording
	var t translation
	c := &cobra.Command{
		Use: "translate --driver NAME FILE", Short: "Turn a recording into IHE PCD-01 messages", Args: one("FILE"),
		Long: "Run a driver over a recording and print the messages that the gateway would send, patient identifiers included:\n" +
			"segments end with CR, a blank line stands between messages. FILE - is the standard input.\n" +
			"The exit code is 65 when something in the recording is damaged, or with --validate when a message breaks a rule.",
		Example: "  gatewayd translate --driver intellivue --validate session.bin > messages.hl7",
		RunE: func(_ *cobra.Command, args []string) error {
			o, err := in.replayOptions(a)
			if err != nil {
				return err
			}
			return a.translate(args[0], o, &t)
		},
	}
	in.flags(a, c)
	f := c.Flags()
	f.StringVar(&t.sender, "sender", "GATEWAY", "sending application, MSH-3.1, a `name`")
	f.StringVar(&t.eui64, "eui64", "0123456789ABCDEF", "`EUI-64` of the gateway, MSH-3.2")
	f.StringVar(&t.device, "device-eui64", "", "`EUI-64` of the device, if it tells none")
	f.StringVar(&t.facility, "facility", "", "sending facility, MSH-4, a `name`")
	f.StringVar(&t.location, "location", "", "`POINT^ROOM^BED` of the device, PV1-3")
	f.StringVar(&t.patient, "patient", "device", "patient `policy`: device, unknown or omit")
	f.StringVar(&t.zone, "timezone", "UTC", "time `zone` of the times in the messages")
	f.DurationVar(&t.interval, "interval", 0, "`time` between messages; 0: each report becomes one")
	f.BoolVar(&t.simulated, "allow-simulated", false, "send what the device marks as demonstration or test")
	f.BoolVar(&t.waves, "waveforms", false, "send waveforms")
	f.BoolVar(&t.validate, "validate", false, "print what the messages break of the rules")
	return c
}

// options turns the flags into those of a snapshot.
func (t *translation) options() (o pcd.Options, err error) {
	if o.Sender.EUI64, err = observation.ParseEUI64(t.eui64); err != nil {
		return o, usage("--eui64: %w", err)
	}
	if t.device != "" {
		if o.DeviceID, err = observation.ParseEUI64(t.device); err != nil {
			return o, usage("--device-eui64: %w", err)
		}
	}
	if o.Zone, err = time.LoadLocation(t.zone); err != nil {
		return o, usage("--timezone: %q is not known; write a name such as Europe/Berlin", t.zone)
	}
	switch t.patient {
	case "device":
	case "unknown":
		o.Patient = pcd.PatientUnknown
	case "omit":
		o.Patient = pcd.PatientOmit
	default:
		return o, usage("--patient: %q is none of device, unknown and omit", t.patient)
	}
	if t.interval < 0 {
		return o, usage("--interval: it is not negative")
	}
	place := append(strings.Split(t.location, "^"), "", "")
	o.Location = pcd.Location{PointOfCare: place[0], Room: place[1], Bed: place[2]}
	o.Sender.Application, o.Sender.Facility = t.sender, t.facility
	o.Interval, o.AllowSimulated, o.Waves = t.interval, t.simulated, t.waves
	o.IDs, err = pcd.NewControlIDs(rand.Reader)
	return o, err
}

func (a *app) translate(name string, o replay.Options, t *translation) error {
	options, err := t.options()
	if err != nil {
		return err
	}
	snapshot, err := pcd.NewSnapshot(options)
	if err != nil {
		return usage("%w", err)
	}
	w := &writer{app: a, out: bufio.NewWriter(a.out), validate: t.validate}
	var last time.Time
	result, err := a.replay(name, o, func(r *observation.Report) error {
		// What was due before this report goes out before it is taken.
		if next := snapshot.Next(); !next.IsZero() && !next.After(r.Received) {
			if err := snapshot.Flush(r.Received, w.message); err != nil {
				return err
			}
		}
		snapshot.Add(r)
		last = r.Received
		return nil
	})
	if err == nil {
		snapshot.Cut(last)
		err = snapshot.Flush(last, w.message)
	}
	if err == nil {
		err = w.out.Flush()
	}
	a.tellRefused(snapshot)
	if err := a.judge(result, o, err); err != nil {
		return err
	}
	if w.findings > 0 {
		return &exit{exitData, fmt.Errorf("the messages break %s; they are printed above", count(w.findings, "rule"))}
	}
	return nil
}

// tellRefused says what is not in the messages, and how to get it there.
func (a *app) tellRefused(s *pcd.Snapshot) {
	c := s.Counts()
	if c.Simulated > 0 {
		fmt.Fprintf(a.err, "%d values are marked as demonstration or test and were refused; --allow-simulated lets them through\n", c.Simulated)
	}
	if c.Filtered > 0 {
		fmt.Fprintf(a.err, "%d waveform pieces were left out; --waveforms sends them\n", c.Filtered)
	}
	if c.Unmapped > 0 {
		fmt.Fprintf(a.err, "%d values have no term in the nomenclature and were left out\n", c.Unmapped)
	}
	if c.UnitRefused > 0 {
		fmt.Fprintf(a.err, "%d values have a unit that the nomenclature does not allow and were left out\n", c.UnitRefused)
	}
	if err := s.Problem(); err != nil {
		fmt.Fprintf(a.err, "the device cannot be named: %v; --device-eui64 gives it an identity\n", err)
	}
}

// writer prints messages with a blank line between.
type writer struct {
	app      *app
	out      *bufio.Writer
	messages int
	validate bool
	findings int // errors
}

func (w *writer) message(m pcd.Message) error {
	w.messages++
	if w.validate {
		w.findings += printFindings(w.app.err, fmt.Sprintf("message %d", w.messages), pcd.Validate(m.Bytes))
	}
	if w.messages > 1 {
		if _, err := w.out.WriteString("\n\n"); err != nil {
			return err
		}
	}
	_, err := w.out.Write(m.Bytes)
	return err
}

// printFindings prints what pcd.Validate found, and counts the errors.
func printFindings(w io.Writer, where string, found []pcd.Finding) (wrong int) {
	for _, f := range found {
		fmt.Fprintf(w, "%s: %s: %s: %s (%s)\n", where, f.Severity, f.Path, f.Text, f.Rule)
		if f.Severity == pcd.Error {
			wrong++
		}
	}
	return wrong
}
