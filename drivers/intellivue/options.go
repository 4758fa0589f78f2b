package intellivue

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/bedside-gateway/gatewayd/drivers"
)

// A monitor exports only so many waves at a time (Data Export Programming
// Guide, wave export): three of the ECG, eight others, none of the EEG.
const (
	maxECGWaves   = 3
	maxOtherWaves = 8
)

var optionList = []drivers.Option{
	{Name: "waves", Default: "off", Explain: "off, on (those that the monitor offers), or up to 3 ECG and 8 other labels such as II,V,ABP,Pleth,Resp"},
	{Name: "alarms", Default: "on", Explain: "on or off"},
	{Name: "enumerations", Default: "on", Explain: "on or off: rhythm status and other values that are words"},
	{Name: "patient", Default: "30s", Explain: "how often to ask for the patient's demographics; off: never"},
	{Name: "poll_period", Default: "500ms", Explain: "the shortest poll period to propose to the monitor, 125ms to 3s"},
	{Name: "poll_lifetime", Default: "10m", Explain: "for how long to subscribe to values at a time, 10s to 24h"},
}

type options struct {
	waves        bool
	waveLabels   []uint32 // empty: those that the monitor offers
	alarms       bool
	enumerations bool
	patient      time.Duration // 0: never
	pollPeriod   time.Duration
	pollLifetime time.Duration
}

func parseOptions(set map[string]string) (o options, err error) {
	values := map[string]string{}
	for _, d := range optionList {
		values[d.Name] = d.Default
	}
	for _, key := range slices.Sorted(maps.Keys(set)) {
		if _, ok := values[key]; !ok {
			return o, fmt.Errorf("option %q is unknown; there are %s", key, strings.Join(slices.Sorted(maps.Keys(values)), ", "))
		}
		values[key] = set[key]
	}
	if err := o.setWaves(values["waves"]); err != nil {
		return o, fmt.Errorf("option waves: %w", err)
	}
	for key, to := range map[string]*bool{"alarms": &o.alarms, "enumerations": &o.enumerations} {
		if *to, err = onOff(values[key]); err != nil {
			return o, fmt.Errorf("option %s: %w", key, err)
		}
	}
	if s := values["patient"]; s != "off" {
		if o.patient, err = duration(s, 5*time.Second, time.Hour); err != nil {
			return o, fmt.Errorf("option patient: %w, or off", err)
		}
	}
	if o.pollPeriod, err = duration(values["poll_period"], 125*time.Millisecond, 3*time.Second); err != nil {
		return o, fmt.Errorf("option poll_period: %w", err)
	}
	if o.pollLifetime, err = duration(values["poll_lifetime"], 10*time.Second, 24*time.Hour); err != nil {
		return o, fmt.Errorf("option poll_lifetime: %w", err)
	}
	return o, nil
}

func onOff(s string) (bool, error) {
	switch s {
	case "on":
		return true, nil
	case "off":
		return false, nil
	}
	return false, fmt.Errorf("%q is neither on nor off", s)
}

func duration(s string, least, most time.Duration) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	if err != nil || d < least || d > most {
		return 0, fmt.Errorf("%q is no duration from %v to %v", s, least, most)
	}
	return d, nil
}

func (o *options) setWaves(s string) error {
	if s == "on" || s == "off" {
		o.waves = s == "on"
		return nil
	}
	for part := range strings.SplitSeq(s, ",") {
		id, err := parseLabel(strings.TrimSpace(part))
		if err != nil {
			return err
		}
		if slices.Contains(o.waveLabels, id) {
			return fmt.Errorf("%s comes twice", part)
		}
		o.waveLabels = append(o.waveLabels, id)
	}
	if kept := exportable(o.waveLabels); len(kept) < len(o.waveLabels) {
		return fmt.Errorf("a monitor exports at most %d ECG waves and %d others, and no EEG", maxECGWaves, maxOtherWaves)
	}
	o.waves = true
	return nil
}

// exportable keeps the labels, in their order, that a monitor exports at a time.
func exportable(labels []uint32) (kept []uint32) {
	ecg, others := 0, 0
	for _, l := range labels {
		switch {
		case isEEG(l):
			continue
		case isECG(l):
			ecg++
			if ecg > maxECGWaves {
				continue
			}
		default:
			others++
			if others > maxOtherWaves {
				continue
			}
		}
		kept = append(kept, l)
	}
	return kept
}
