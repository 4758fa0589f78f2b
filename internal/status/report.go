// Package status tells how the gateway is: as JSON, as metrics, as a table for
// people and as an exit code, all made of one Report, so that they cannot
// disagree. It serves them on a unix socket, and is the client of that socket
// for the command line.
//
// It never holds patient data: ports, destinations, control IDs and counts
// only, and the messages of the spool are shown with their patient identifiers
// taken out. It decides nothing about the data path: the daemon fills the
// report and does what the spool requests ask for.
package status

import (
	"cmp"
	"slices"
	"time"
)

// A Verdict is how the gateway is as a whole. Its number is the exit code of
// gatewayd status.
type Verdict int

// The verdicts.
const (
	OK       Verdict = iota // everything works
	Degraded                // data flow, or are kept, and something needs attention
	Down                    // data are not kept, or nothing can be delivered
)

// String is the verdict in small letters.
func (v Verdict) String() string { return [...]string{"ok", "degraded", "down"}[v] }

// MarshalText is String.
func (v Verdict) MarshalText() ([]byte, error) { return []byte(v.String()), nil }

// UnmarshalText reads what MarshalText writes; anything else is Down.
func (v *Verdict) UnmarshalText(b []byte) error {
	*v = Down
	for _, known := range []Verdict{OK, Degraded} {
		if string(b) == known.String() {
			*v = known
		}
	}
	return nil
}

// A Condition is something that needs attention, by name.
type Condition struct {
	Name    string    `json:"name"`              // such as port-silent; the list is in doc/conditions.md
	Subject string    `json:"subject,omitempty"` // the port or destination
	Since   time.Time `json:"since,omitzero"`
	Verdict Verdict   `json:"verdict"` // what it makes of the gateway
	Text    string    `json:"text"`    // what is the matter
	Next    string    `json:"next"`    // what to do
}

// A Report is the state of the gateway at one time.
type Report struct {
	Gateway      string            `json:"gateway"`
	Verdict      Verdict           `json:"verdict"`
	Now          time.Time         `json:"now"`
	Started      time.Time         `json:"started"`
	Ready        bool              `json:"ready"`
	Build        Build             `json:"build"`
	Certificate  time.Time         `json:"certificate_not_after,omitzero"`
	Identity     *Identity         `json:"identity,omitempty"` // nil: the key is in a file
	Conditions   []Condition       `json:"conditions"`
	Ports        []Port            `json:"ports"`
	Destinations []Destination     `json:"destinations"`
	Southbound   *Southbound       `json:"southbound,omitempty"` // nil: not configured
	Tunnel       *Tunnel           `json:"tunnel,omitempty"`     // nil: not configured
	Spool        Spool             `json:"spool"`
	Findings     map[string]uint64 `json:"message_findings"` // by severity
	Shapes       int               `json:"message_shapes"`   // distinct shapes of messages that were checked
	Reloads      map[string]uint64 `json:"reloads"`          // by result: ok, refused
}

// Build is which program this is.
type Build struct {
	Version string `json:"version"`
	Commit  string `json:"commit"`
	Go      string `json:"go"`
	Board   string `json:"board"`
	TLS     string `json:"tls"` // mark of the overlay of crypto/tls
}

// An Identity is the key of the gateway in its TPM, and its certificates.
type Identity struct {
	Place        string            `json:"place"` // tpm
	Address      string            `json:"address"`
	Manufacturer string            `json:"manufacturer,omitempty"`
	Firmware     string            `json:"firmware,omitempty"`
	Slots        []Slot            `json:"slots"`
	Signatures   Durations         `json:"sign_duration"`
	Errors       map[string]uint64 `json:"errors"` // of signatures, by fault
}

// A Slot is a key with its certificate.
type Slot struct {
	Slot     string    `json:"slot"` // current, next or previous
	Key      string    `json:"key"`  // the first bytes of its digest
	Kind     string    `json:"kind"`
	Issuer   string    `json:"issuer,omitempty"`
	NotAfter time.Time `json:"not_after,omitzero"` // zero: no certificate yet
}

// A Port is the state of one port.
type Port struct {
	Name         string            `json:"name"`
	Driver       string            `json:"driver"`
	Device       string            `json:"device"`
	State        string            `json:"state"` // drivers.State
	Since        time.Time         `json:"since,omitzero"`
	LastReport   time.Time         `json:"last_report,omitzero"`
	Received     uint64            `json:"bytes_received"`
	Sent         uint64            `json:"bytes_sent"`
	Frames       map[string]uint64 `json:"frames"` // by drivers.Frame
	Reports      uint64            `json:"reports"`
	Observations uint64            `json:"observations"`
	Simulated    uint64            `json:"simulated_refused"`
	Unmapped     uint64            `json:"unmapped"`
	Opened       uint64            `json:"opened"`
	Panics       uint64            `json:"panics"`
	Pending      int               `json:"pending"` // messages made and not yet durable
	Messages     uint64            `json:"messages"`
	Fault        string            `json:"fault,omitempty"`
}

// A Destination is the state of one destination and its queue.
type Destination struct {
	Name        string            `json:"name"`
	Address     string            `json:"address"`
	State       string            `json:"state"`
	Since       time.Time         `json:"since,omitzero"`
	Connected   bool              `json:"connected"`
	LastAck     time.Time         `json:"last_ack,omitzero"`
	Acks        map[string]uint64 `json:"acks"`          // by code
	Handshakes  map[string]uint64 `json:"handshakes"`    // by result: ok, refused, unreachable
	TLS         string            `json:"tls,omitempty"` // version and suite of the present or last session
	CBC         uint64            `json:"cbc_sessions"`  // sessions with a CBC suite
	Verdicts    map[string]uint64 `json:"revocation_verdicts"`
	Staples     []time.Time       `json:"staple_next_update,omitempty"` // of the last handshake, by position in the platform's chain
	Attempts    uint64            `json:"attempts"`                     // since the last success
	Fault       string            `json:"fault,omitempty"`
	Messages    int               `json:"messages"`
	Bytes       int64             `json:"bytes"`
	Oldest      time.Time         `json:"oldest,omitzero"`
	Quarantined int               `json:"quarantined"`
	Delivered   uint64            `json:"delivered"`
	Durations   Durations         `json:"send_duration"`
}

// Southbound is the state of the server for devices that speak IHE PCD themselves.
type Southbound struct {
	Listen       string            `json:"listen"`
	Address      string            `json:"address,omitempty"` // where it listens; empty while it does not
	Since        time.Time         `json:"since,omitzero"`
	Fault        string            `json:"fault,omitempty"`
	Authorised   []string          `json:"authorised"`
	Connections  int               `json:"connections"`
	Handshakes   int               `json:"handshakes"` // under way
	Devices      []Device          `json:"devices"`    // one for each connection
	Accepted     uint64            `json:"accepted"`   // connections
	Refused      map[string]uint64 `json:"refused"`    // connections, by rule
	Refusals     []Refusal         `json:"last_refusals,omitempty"`
	Messages     uint64            `json:"messages"` // stored and acknowledged
	Bytes        uint64            `json:"bytes"`
	Failed       uint64            `json:"failed"`   // not stored: the device was told to try again
	Rejected     uint64            `json:"rejected"` // told never to
	Skipped      uint64            `json:"skipped_bytes"`
	CBC          uint64            `json:"cbc_sessions"`
	Panics       uint64            `json:"panics"`
	Staples      []Staple          `json:"staples,omitempty"`
	Responders   []Responder       `json:"failing_responders,omitempty"`
	Certificates []time.Time       `json:"certificates_not_after"` // by identity
}

// A Device is an open connection of a device.
type Device struct {
	Name        string    `json:"name"` // common name of its certificate
	Remote      string    `json:"remote"`
	Since       time.Time `json:"since"`
	Messages    uint64    `json:"messages"`
	LastMessage time.Time `json:"last_message,omitzero"`
}

// A Refusal is the latest connection that was refused by a rule.
type Refusal struct {
	Time   time.Time `json:"time"`
	Remote string    `json:"remote"`
	Rule   string    `json:"rule"`
	Reason string    `json:"reason"`
}

// A Staple is the OCSP response that is stapled for a certificate of our own.
type Staple struct {
	Identity    int       `json:"identity"`
	Position    int       `json:"position"` // in its chain
	Certificate string    `json:"certificate"`
	Says        string    `json:"says,omitempty"` // good or revoked; empty where there is none
	Until       time.Time `json:"until,omitzero"`
	Problem     string    `json:"problem,omitempty"` // why there is no newer one
}

// A Responder is an OCSP or CRL server that failed when it was last needed.
type Responder struct {
	Host     string    `json:"host"`
	Failures int       `json:"failures"`
	Reason   string    `json:"reason"`
	Retry    time.Time `json:"retry"`
}

// Durations are counts of exchanges by how long they took, for a histogram.
type Durations struct {
	Bounds []float64 `json:"bounds_seconds"`
	Counts []uint64  `json:"counts"` // one more than Bounds: the last is of those above
	Sum    float64   `json:"sum_seconds"`
}

// Spool is the state of the store as a whole.
type Spool struct {
	Messages   int               `json:"messages"`
	Bytes      int64             `json:"bytes"`
	MaxBytes   int64             `json:"max_bytes"`
	FileBytes  int64             `json:"file_bytes"`
	Oldest     time.Time         `json:"oldest,omitzero"`
	Capacity   float64           `json:"capacity_seconds"` // until it is full at the present rate; 0: no rate yet
	Dropped    map[string]uint64 `json:"dropped"`          // by reason
	Refused    uint64            `json:"refused"`          // writes that failed and were tried again
	MovedAside string            `json:"moved_aside,omitempty"`
	Fault      string            `json:"fault,omitempty"`
}

// Judge sets the verdict of the report from its conditions, and brings these
// into the order of their weight.
func (r *Report) Judge() {
	r.Verdict = OK
	for _, c := range r.Conditions {
		r.Verdict = max(r.Verdict, c.Verdict)
	}
	slices.SortStableFunc(r.Conditions, func(a, b Condition) int {
		return cmp.Or(cmp.Compare(b.Verdict, a.Verdict), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Subject, b.Subject))
	})
}
