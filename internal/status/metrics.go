package status

import (
	"slices"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// states are the values of the label state of gatewayd_port_state; the metric is
// 1 for the one that holds, so that a query needs no table of numbers.
var states = []string{"closed", "opening", "probing", "associating", "live", "silent"}

// collector makes the metrics of the report at the time of the scrape. All
// labels are names of the configuration or of fixed lists.
type collector struct{ source Source }

func describeMetric(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("gatewayd_"+name, help, labels, nil)
}

var (
	descBuild        = describeMetric("build_info", "Which program this is; always 1.", "version", "commit", "go", "board", "tls")
	descStart        = describeMetric("start_timestamp_seconds", "When the daemon started.")
	descVerdict      = describeMetric("verdict", "How the gateway is: 0 ok, 1 degraded, 2 down.")
	descCondition    = describeMetric("condition", "A named condition that needs attention; present while it holds.", "name", "subject")
	descPortState    = describeMetric("port_state", "1 for the state that the port is in, else 0.", "port", "driver", "state")
	descPortBytes    = describeMetric("port_bytes_total", "Bytes received from the device.", "port")
	descPortOpened   = describeMetric("port_opened_total", "Times that the port was opened.", "port")
	descPortPanics   = describeMetric("port_panics_total", "Faults of the program that were contained to this port.", "port")
	descFrames       = describeMetric("frames_total", "Frames received, by what became of them.", "port", "result")
	descObservations = describeMetric("observations_total", "Observations received.", "port")
	descSimulated    = describeMetric("simulated_refused_total", "Values refused because the device marks them as demonstration or test.", "port")
	descUnmapped     = describeMetric("unmapped_total", "Values that the nomenclature has no term for.", "port")
	descLast         = describeMetric("last_observation_timestamp_seconds", "When the device last reported.", "port")
	descMessages     = describeMetric("messages_total", "Messages made and stored.", "port")
	descPending      = describeMetric("pending_messages", "Messages made that wait for the disk.", "port")
	descFindings     = describeMetric("message_findings_total", "Faults found in a sample of the messages made: one of each shape.", "severity")
	descShapes       = describeMetric("message_shapes", "Distinct shapes of messages that were checked.")
	descReloads      = describeMetric("reloads_total", "Reloads of the configuration.", "result")
	descSpoolMsgs    = describeMetric("spool_messages", "Messages that wait for delivery.", "destination")
	descSpoolQuar    = describeMetric("spool_quarantined_messages", "Messages that the platform refused and an operator has to look at.", "destination")
	descSpoolBytes   = describeMetric("spool_bytes", "Bytes of the messages in the spool.")
	descSpoolMax     = describeMetric("spool_max_bytes", "Bytes that the spool may hold.")
	descSpoolOldest  = describeMetric("spool_oldest_seconds", "Age of the oldest message that waits for delivery.")
	descSpoolCap     = describeMetric("spool_capacity_seconds", "How long until the spool is full at the present rate; absent while there is no rate.")
	descSpoolDropped = describeMetric("spool_dropped_total", "Messages given up, by the rule that did.", "reason")
	descSpoolRefused = describeMetric("spool_write_failures_total", "Writes to the spool that failed and were tried again.")
	descAcks         = describeMetric("acks_total", "Acknowledgements received.", "destination", "code")
	descHandshakes   = describeMetric("tls_handshakes_total", "Attempts to connect, by result.", "destination", "result")
	descCBC          = describeMetric("tls_cbc_sessions_total", "Sessions with a CBC suite, which the platform chose.", "destination")
	descVerdicts     = describeMetric("revocation_verdicts_total", "Verdicts on certificates of platforms, by their stapled responses.", "destination", "verdict")
	descStaple       = describeMetric("staple_next_update_timestamp_seconds", "Until when the response that the platform stapled last holds.", "destination", "position")
	descDelivered    = describeMetric("delivered_messages_total", "Messages that the platform acknowledged.", "destination")
	descConnected    = describeMetric("destination_connected", "Whether a connection to the platform is open.", "destination")
	descSend         = describeMetric("send_duration_seconds", "From the first byte of a message sent to its acknowledgement.", "destination")
	descSouth        = describeMetric("southbound_listening", "Whether devices that speak IHE PCD themselves can connect.")
	descSouthConns   = describeMetric("southbound_connections", "Open connections of an authorised device.", "device")
	descSouthIn      = describeMetric("southbound_accepted_total", "Connections of devices that got in.")
	descSouthOut     = describeMetric("southbound_refused_total", "Connections refused, by rule.", "rule")
	descSouthMsgs    = describeMetric("southbound_messages_total", "Messages of devices: stored, failed (told to try again) or rejected.", "result")
	descSouthBytes   = describeMetric("southbound_bytes_total", "Bytes of the messages of devices that were stored.")
	descSouthCBC     = describeMetric("southbound_cbc_sessions_total", "Sessions of devices with a CBC suite.")
	descSouthStaple  = describeMetric("southbound_staple_next_update_timestamp_seconds", "Until when the response that is stapled for our own certificate holds.", "slot", "position")
	descSign         = describeMetric("tpm_sign_duration_seconds", "How long the TPM took for a signature.")
	descTPMErrors    = describeMetric("tpm_errors_total", "Signatures that the TPM did not make, by fault.", "fault")
	descTPMInfo      = describeMetric("tpm_info", "Which TPM holds the key; always 1.", "manufacturer", "firmware")
	descNotAfter     = describeMetric("certificate_not_after_timestamp_seconds", "When the certificate of the gateway ends.", "slot")
)

var descriptions = []*prometheus.Desc{descBuild, descStart, descVerdict, descCondition, descPortState, descPortBytes, descPortOpened,
	descPortPanics, descFrames, descObservations, descSimulated, descUnmapped, descLast, descMessages, descPending, descFindings,
	descShapes, descReloads, descSpoolMsgs, descSpoolQuar, descSpoolBytes, descSpoolMax, descSpoolOldest, descSpoolCap,
	descSpoolDropped, descSpoolRefused, descAcks, descHandshakes, descCBC, descVerdicts, descStaple, descDelivered, descConnected, descSend, descNotAfter, descSign, descTPMErrors, descTPMInfo,
	descSouth, descSouthConns, descSouthIn, descSouthOut, descSouthMsgs, descSouthBytes, descSouthCBC, descSouthStaple}

// Describe names all metrics.
func (c collector) Describe(out chan<- *prometheus.Desc) {
	for _, d := range slices.Concat(descriptions, tunnelDescriptions) {
		out <- d
	}
}

// Collect writes the metrics of the report now.
func (c collector) Collect(out chan<- prometheus.Metric) {
	r := c.source.Report()
	m := metrics{out: out}
	m.gauge(descBuild, 1, r.Build.Version, r.Build.Commit, r.Build.Go, r.Build.Board, r.Build.TLS)
	m.time(descStart, r.Started)
	m.gauge(descVerdict, float64(r.Verdict))
	for titled := range r.titles() {
		m.gauge(descCondition, 1, titled.Name, titled.Subject)
	}
	m.gauge(descShapes, float64(r.Shapes))
	m.counters(descFindings, r.Findings)
	m.counters(descReloads, r.Reloads)
	m.identity(&r)
	for i := range r.Ports {
		m.port(&r.Ports[i])
	}
	for i := range r.Destinations {
		m.destination(&r.Destinations[i])
	}
	if r.Southbound != nil {
		m.southbound(r.Southbound)
	}
	if r.Tunnel != nil {
		m.tunnel(r.Tunnel)
	}
	m.spool(&r)
}

// titles are the conditions by what tells them apart in a metric: two with one
// name and subject, such as those of two certificates with one common name,
// would spoil the whole scrape.
func (r *Report) titles() map[Condition]bool {
	all := map[Condition]bool{}
	for _, c := range r.Conditions {
		all[Condition{Name: c.Name, Subject: c.Subject}] = true
	}
	return all
}

func (m metrics) identity(r *Report) {
	i := r.Identity
	if i == nil {
		m.time(descNotAfter, r.Certificate, "current")
		return
	}
	for _, s := range i.Slots {
		m.time(descNotAfter, s.NotAfter, s.Slot)
	}
	m.counters(descTPMErrors, i.Errors)
	if len(i.Signatures.Counts) == len(i.Signatures.Bounds)+1 {
		m.histogram(descSign, i.Signatures)
	}
	if i.Manufacturer != "" {
		m.gauge(descTPMInfo, 1, i.Manufacturer, i.Firmware)
	}
}

// metrics writes values to a scrape.
type metrics struct{ out chan<- prometheus.Metric }

func (m metrics) gauge(d *prometheus.Desc, v float64, labels ...string) {
	m.out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
}

func (m metrics) counter(d *prometheus.Desc, v uint64, labels ...string) {
	m.out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
}

func (m metrics) counters(d *prometheus.Desc, by map[string]uint64, labels ...string) {
	for key, v := range by {
		m.counter(d, v, append(labels[:len(labels):len(labels)], key)...)
	}
}

// time writes a time, and nothing for one that has not come.
func (m metrics) time(d *prometheus.Desc, t time.Time, labels ...string) {
	if !t.IsZero() {
		m.gauge(d, float64(t.UnixMilli())/1e3, labels...)
	}
}

func (m metrics) port(p *Port) {
	for _, s := range states {
		m.gauge(descPortState, number(s == p.State), p.Name, p.Driver, s)
	}
	m.counter(descPortBytes, p.Received, p.Name)
	m.counter(descPortOpened, p.Opened, p.Name)
	m.counter(descPortPanics, p.Panics, p.Name)
	m.counters(descFrames, p.Frames, p.Name)
	m.counter(descObservations, p.Observations, p.Name)
	m.counter(descSimulated, p.Simulated, p.Name)
	m.counter(descUnmapped, p.Unmapped, p.Name)
	m.time(descLast, p.LastReport, p.Name)
	m.counter(descMessages, p.Messages, p.Name)
	m.gauge(descPending, float64(p.Pending), p.Name)
}

func (m metrics) southbound(s *Southbound) {
	m.gauge(descSouth, number(s.Address != ""))
	for _, device := range s.Authorised {
		m.gauge(descSouthConns, float64(s.connections(device)), device)
	}
	m.counter(descSouthIn, s.Accepted)
	m.counters(descSouthOut, s.Refused)
	m.counter(descSouthMsgs, s.Messages, "stored")
	m.counter(descSouthMsgs, s.Failed, "failed")
	m.counter(descSouthMsgs, s.Rejected, "rejected")
	m.counter(descSouthBytes, s.Bytes)
	m.counter(descSouthCBC, s.CBC)
	for _, staple := range s.Staples {
		m.time(descSouthStaple, staple.Until, slot(staple.Identity), strconv.Itoa(staple.Position))
	}
	for i, until := range s.Certificates {
		m.time(descNotAfter, until, slot(i))
	}
}

// slot is the name of a certificate that devices see.
func slot(i int) string { return "southbound-" + strconv.Itoa(i+1) }

func (m metrics) destination(d *Destination) {
	m.gauge(descSpoolMsgs, float64(d.Messages), d.Name)
	m.gauge(descSpoolQuar, float64(d.Quarantined), d.Name)
	m.counters(descAcks, d.Acks, d.Name)
	m.counters(descHandshakes, d.Handshakes, d.Name)
	m.counter(descCBC, d.CBC, d.Name)
	m.counters(descVerdicts, d.Verdicts, d.Name)
	for position, until := range d.Staples {
		m.time(descStaple, until, d.Name, strconv.Itoa(position))
	}
	m.counter(descDelivered, d.Delivered, d.Name)
	m.gauge(descConnected, number(d.Connected), d.Name)
	if len(d.Durations.Counts) == len(d.Durations.Bounds)+1 {
		m.histogram(descSend, d.Durations, d.Name)
	}
}

func (m metrics) histogram(d *prometheus.Desc, h Durations, labels ...string) {
	total, buckets := uint64(0), make(map[float64]uint64, len(h.Bounds))
	for i, n := range h.Counts {
		total += n
		if i < len(h.Bounds) {
			buckets[h.Bounds[i]] = total
		}
	}
	m.out <- prometheus.MustNewConstHistogram(d, total, h.Sum, buckets, labels...)
}

func (m metrics) spool(r *Report) {
	s := &r.Spool
	m.gauge(descSpoolBytes, float64(s.Bytes))
	m.gauge(descSpoolMax, float64(s.MaxBytes))
	if !s.Oldest.IsZero() {
		m.gauge(descSpoolOldest, max(0, r.Now.Sub(s.Oldest).Seconds()))
	} else {
		m.gauge(descSpoolOldest, 0)
	}
	if s.Capacity > 0 {
		m.gauge(descSpoolCap, s.Capacity)
	}
	m.counters(descSpoolDropped, s.Dropped)
	m.counter(descSpoolRefused, s.Refused)
}

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
