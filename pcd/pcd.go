// Package pcd makes and judges the messages of IHE Devices (DEV, formerly
// Patient Care Device, PCD), HL7 version 2.6: PCD-01 Communicate PCD Data as in
// the IHE DEV Technical Framework volume 2, 3.1 and appendix B, and the
// acknowledgements of HL7's enhanced mode.
//
// A Snapshot gathers the reports of one device and makes messages of them for
// one destination; the daemon has one for each pair of port and destination and
// puts what it emits into the spool. Validate checks a message before it
// leaves, and in tests, `gatewayd validate` and the reference platform.
// ParseAck reads what the platform answered, for northbound; AppendAck answers,
// for the reference platform.
//
// The package touches no socket, no file and no clock. It never makes up a
// value, an identity or a name: what cannot be said rightly is counted and left
// out. Patient identifiers appear in messages only, never in an error, a
// finding or a count.
package pcd

import (
	"time"

	"github.com/bedside-gateway/gatewayd/mdc"
	"github.com/bedside-gateway/gatewayd/observation"
)

// A Sender says who sends, to whom, and what acknowledgement is wanted: the
// fields of MSH that are the same in all messages.
type Sender struct {
	Application string            // MSH-3.1, 1 to 20 characters
	EUI64       observation.EUI64 // of the gateway, MSH-3.2
	Facility    string            // MSH-4: a name, or name^id^type

	ReceivingApplication string // MSH-5: empty, a name, or name^id^type
	ReceivingFacility    string // MSH-6, likewise

	AcceptAck      string // MSH-15: AL (default), NE, ER or SU
	ApplicationAck string // MSH-16: NE (default), AL, ER or SU
	ProcessingID   string // MSH-11: P (default), D or T
}

// A Location is where the bed of the port is: PV1-3.
type Location struct{ PointOfCare, Room, Bed, Facility string }

// A Class says how dear a message is. The spool drops in this order when it is
// full: waveforms first, then periodic data, then episodic, alerts last.
type Class uint8

// The classes, from the cheapest to the dearest.
const (
	Waveform Class = iota
	Periodic
	Episodic
	Alert
)

// String is the class in small letters.
func (c Class) String() string {
	if int(c) >= len(classNames) {
		return "unknown"
	}
	return classNames[c]
}

var classNames = [...]string{"waveform", "periodic", "episodic", "alert"}

// A PatientPolicy says what goes into PID.
type PatientPolicy uint8

// The policies.
const (
	// PatientDevice sends the patient whom the device has admitted with an
	// identifier; for all others PID says "unknown" (PID-31 Y).
	PatientDevice PatientPolicy = iota
	// PatientUnknown never sends what the device says of the patient.
	PatientUnknown
	// PatientOmit sends neither PID nor PV1, so no location either.
	PatientOmit
)

// Options are those of a Snapshot.
type Options struct {
	Sender   Sender
	Location Location
	// DeviceID is the EUI-64 of a device that has none of its own.
	DeviceID observation.EUI64
	// Interval is the time between periodic messages; 0 makes a message of every report.
	Interval time.Duration
	// Include, where it is not empty, are the only terms that are sent; Exclude are not sent.
	Include, Exclude []mdc.Code
	// Waves sends waveforms, in messages of their own.
	Waves bool
	// AllowSimulated lets through what the device marks as demonstration or test data.
	AllowSimulated bool

	Patient PatientPolicy
	// AssigningAuthority is who gave the patient's identifier, PID-3.4: a name, or name^id^type.
	AssigningAuthority string

	// Zone is that of all times that are written; nil is UTC.
	Zone *time.Location
	// DeviceZone is that of the device's clock; nil is Zone.
	DeviceZone *time.Location
	// TimeSync says how the gateway's own clock is kept, a term such as
	// MDC_TIME_SYNC_NTPV4; 0 says nothing.
	TimeSync mdc.Code

	// IDs makes the control IDs. One is shared by all snapshots of a process.
	IDs *ControlIDs
}

// A Message is one message, ready for the spool.
type Message struct {
	Class     Class
	ControlID []byte    // MSH-10
	Made      time.Time // MSH-7
	// Bytes are the segments, each ended by CR. They and ControlID are
	// borrowed: they are valid only during the call of emit.
	Bytes []byte
}

// Counts say what became of reports and observations since the start.
type Counts struct {
	Reports      uint64 // taken
	Observations uint64 // taken into a message to be
	Messages     uint64 // emitted

	Simulated    uint64 // observations refused: demonstration or test data
	Filtered     uint64 // left out by Include, Exclude or Waves
	Repeated     uint64 // episodic values that were sent already
	Backdated    uint64 // episodic values from before their patient was told of
	Unmapped     uint64 // terms, values or sites that the nomenclature has no name for
	UnitRefused  uint64 // values in a unit that the nomenclature does not allow for their term
	Unidentified uint64 // observations of a device without an EUI-64
	Dropped      uint64 // observations given up because emit failed for too long
}
