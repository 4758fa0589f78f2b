// Package observation is the one model between the drivers and the messages:
// what was observed, by which device, its value or why there is none, its unit,
// and when, by the clock of the device and by ours.
//
// A driver fills a Report for each thing that its device said; package pcd
// makes messages of reports. The model keeps what the wire gave: the digits of
// a number, the flags of a value, the identifiers of the device. It never holds
// a made-up value: "no value" is a status, not a zero.
package observation

import (
	"time"

	"github.com/bedside-gateway/gatewayd/mdc"
)

// A Report is what a device said at one time.
//
// A driver may use one Report again and again: it, its slices and everything
// they point to are valid only during the call that hands it over. A receiver
// copies what it keeps.
type Report struct {
	Device *Device
	// Patient is whom the device tells of, in every report from when it first
	// did. nil is nobody: what is measured then is no known patient's.
	Patient *Patient
	// Received is the gateway's time of arrival.
	Received time.Time
	// DeviceClock is what the clock of the device showed at Received; zero
	// where the protocol does not tell it. Only its date and time of day
	// count: devices know no zone.
	DeviceClock time.Time

	Observations []Observation
	// Alerts is the complete list of alerts that are present now, when
	// HasAlerts is set: an alert that is missing from it has ended.
	Alerts    []Alert
	HasAlerts bool
}

// A Device is the medical device system (MDS) that a report is about.
type Device struct {
	Type         mdc.Code // the MDS term, such as MDC_DEV_MON_PHYSIO_MULTI_PARAM_MDS
	ID           EUI64    // zero where the device has none
	Manufacturer string
	Model        string
	Serial       string
	Software     string // revision
	BedLabel     string // the bed or monitor label set at the device
}

// An Observation is one value of a device.
type Observation struct {
	// Code is the term of the nomenclature. It is 0 for a value that the
	// nomenclature has no term for: then Private says what it is.
	Code    mdc.Code
	Private Private

	// Instance tells apart several objects with the same Code in one device,
	// such as two probes of a kind: 0, 1, 2…
	Instance uint8
	// Place is where the value stands in the containment tree. Leave it zero
	// for the usual place, mdc.PlaceOf(Code).
	Place mdc.Place

	Value  Value
	Unit   mdc.Code // 0 where the value has none
	Status Status
	Method Method
	Site   mdc.Code // body site; 0 if not told
	Limits Limits   // alarm limits in force, in Unit

	// Time is when the value was measured, by the gateway's clock; of samples,
	// when the first one was. Zero where nothing tells it but the arrival.
	Time time.Time
	// DeviceTime is the same instant as the clock of the device shows it; zero
	// where the device does not tell it.
	DeviceTime time.Time
	// Episodic marks a value that was measured once, at Time, and stands until
	// the next measurement (a cuff pressure), as against a value of now.
	Episodic bool
}

// Private identifies a value by its number in a vendor's own vocabulary.
type Private struct {
	Vendor string // capital letters, such as PHILIPS
	Code   uint32
	Name   string // the vendor's name of it in capital letters, digits and _; may be empty
}

// A Method is how a value came to be (11073-10101 metric category).
type Method uint8

// The methods. The zero value is the usual one.
const (
	MethodMeasured Method = iota // measured by the device
	MethodManual                 // measured by hand and entered
	MethodCalculated
	MethodSetting // set by the operator
	MethodAutoSetting
)

// Limits are alarm limits. Each counts only where it is valid.
type Limits struct{ Low, High Decimal }

// Status is what the device says of a value. It is a set of flags.
type Status uint16

// The flags. Invalid, NotAvailable and Calibrating forbid a value; the others
// qualify it.
const (
	Invalid Status = 1 << iota
	Questionable
	NotAvailable
	Calibrating
	Test         // test data: never a patient's
	Demo         // demonstration data: never a patient's
	Validated    // confirmed by a person
	Early        // an early estimate
	Ongoing      // the measurement is going on
	AlarmActive  // the value is in alarm
	AlarmInhibit // its alarms are off
)

// Simulated reports whether the device says that the value is no patient's.
func (s Status) Simulated() bool { return s&(Test|Demo) != 0 }

// Usable reports whether the value may be shown at all.
func (s Status) Usable() bool { return s&(Invalid|NotAvailable|Calibrating) == 0 }

// A Kind is the form of a value.
type Kind uint8

// The kinds. The zero value is no value.
const (
	KindNone    Kind = iota
	KindNumber       // Number
	KindCode         // Code, with Text as the device's words for it
	KindText         // Text
	KindSamples      // Samples
)

// A Value is the value of an observation.
type Value struct {
	Kind    Kind
	Number  Decimal
	Code    mdc.Code
	Text    string
	Samples *Samples
}

// Samples is a block of a waveform.
type Samples struct {
	// Period is the time between two samples.
	Period time.Duration
	// Values are the samples as the device sends them.
	Values []uint16
	// Mask has the bits that are the value; the others are markers.
	Mask uint16
	// Lower and Upper are the physical values of the raw values RawLower and
	// RawUpper. Where they are not valid the wave has no absolute scale.
	Lower, Upper       Decimal
	RawLower, RawUpper uint16
}

// Scaled reports whether the samples have a physical scale.
func (s *Samples) Scaled() bool {
	return s.Lower.Valid() && s.Upper.Valid() && s.RawUpper != s.RawLower
}

// Physical is the value of sample i in the unit of its observation.
func (s *Samples) Physical(i int) float64 {
	lo, hi := s.Lower.Float(), s.Upper.Float()
	raw := float64(s.Values[i]&s.Mask) - float64(s.RawLower)
	return lo + raw*(hi-lo)/(float64(s.RawUpper)-float64(s.RawLower))
}

// An Alert is an alert condition that is present at the device.
type Alert struct {
	Code     mdc.Code // the event
	Private  Private  // where Code is 0
	Source   mdc.Code // the metric or device part that it is about; 0 if not told
	Priority Priority
	// Technical is set for conditions of the device or its sensors, not of the patient.
	Technical bool
	Text      string // as the device shows it
	Silenced  bool
	Latched   bool
	Inhibited bool
	Status    Status // Test or Demo
	Instance  uint16
}

// A Priority is the urgency of an alert (IEC 60601-1-8).
type Priority uint8

// The priorities.
const (
	PriorityNone Priority = iota
	PriorityLow
	PriorityMedium
	PriorityHigh
)
