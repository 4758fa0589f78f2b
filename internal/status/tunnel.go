package status

import (
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Tunnel is the state of the tunnels: devices whose TLS ends at the platform.
type Tunnel struct {
	Listeners  []TunnelListener  `json:"listeners"`
	Platforms  []TunnelPlatform  `json:"platforms"`
	Sessions   []TunnelSession   `json:"sessions"`
	Accepted   uint64            `json:"accepted"`                // connections
	Probes     uint64            `json:"probes"`                  // of those: closed again without a byte
	Opened     uint64            `json:"opened"`                  // sessions that flowed
	Enforced   uint64            `json:"enforced"`                // of those: the platform's certificate in them was judged
	GateOnly   uint64            `json:"gate_only"`               // of those: on the word of the gate alone
	Refusals   []TunnelRefusal   `json:"last_refusals,omitempty"` // the latest of each tunnel by each rule
	Ended      map[string]uint64 `json:"ended"`                   // sessions, by how
	Gate       map[string]uint64 `json:"gate"`                    // handshakes of the gate, by verdict
	ToPlatform uint64            `json:"bytes_to_platform"`
	ToDevice   uint64            `json:"bytes_to_device"`
	Panics     uint64            `json:"panics"`
}

// A TunnelListener is where devices connect.
type TunnelListener struct {
	Name       string    `json:"name"`
	Listen     string    `json:"listen"`
	Address    string    `json:"address,omitempty"` // where it listens; empty while it does not
	Since      time.Time `json:"since,omitzero"`
	Fault      string    `json:"fault,omitempty"`
	Sessions   int       `json:"sessions"`
	Handshakes int       `json:"handshakes"` // devices that connected and are not through yet

	Refused  map[string]uint64 `json:"refused"`            // connections, by rule
	Unlogged map[string]uint64 `json:"unlogged,omitempty"` // of those: that are not in the log, for there were too many
}

// A TunnelRefusal is a connection of a device that did not get through.
type TunnelRefusal struct {
	Time     time.Time `json:"time"`
	Tunnel   string    `json:"tunnel"`
	Device   string    `json:"device"`             // its address
	Platform string    `json:"platform,omitempty"` // empty where it was not known yet
	Rule     string    `json:"rule"`
	Gate     bool      `json:"gate"` // for what the gate found out about the platform
	Reason   string    `json:"reason"`
}

// A TunnelPlatform is what the gate knows of a platform at one address by one name.
type TunnelPlatform struct {
	Name       string    `json:"name"`
	ServerName string    `json:"server_name,omitempty"` // that sessions ask for
	Address    string    `json:"address,omitempty"`     // empty where it was not reached
	Sessions   int       `json:"sessions"`
	Gate       string    `json:"gate"` // unjudged, good, refused, unreachable or declined
	Closed     bool      `json:"closed"`
	Since      time.Time `json:"since,omitzero"` // from when on it was closed, or was not
	Judged     time.Time `json:"judged,omitzero"`
	Fault      string    `json:"fault,omitempty"`
	LastGood   time.Time `json:"last_good,omitzero"`
	Until      time.Time `json:"until,omitzero"` // of a good verdict: when its responses end
}

// A TunnelSession is a session that flows.
type TunnelSession struct {
	Tunnel     string    `json:"tunnel"`
	Device     string    `json:"device"` // its address
	Since      time.Time `json:"since"`
	Platform   string    `json:"platform"`
	Address    string    `json:"address"`
	ServerName string    `json:"server_name,omitempty"`
	TLS        string    `json:"tls"`
	Enforced   bool      `json:"enforced"`
	ToPlatform uint64    `json:"bytes_to_platform"`
	ToDevice   uint64    `json:"bytes_to_device"`
	Last       time.Time `json:"last,omitzero"`
}

func (r *Report) writeTunnel(b *strings.Builder) {
	s := r.Tunnel
	if s == nil {
		return
	}
	if len(s.Sessions) > 0 {
		b.WriteByte('\n')
		t := tabwriter.NewWriter(b, 0, 8, 2, ' ', 0)
		fmt.Fprintln(t, "TUNNEL\tDEVICE\tPLATFORM\tCONNECTED FOR\tTLS\tPLATFORM IS\tKiB OUT\tKiB IN\tLAST")
		for _, x := range s.Sessions {
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%d\t%d\t%s\n", x.Tunnel, x.Device, x.Platform, age(r.Now, x.Since), strings.TrimPrefix(x.TLS, "TLS "), x.standing(),
				(x.ToPlatform+1023)>>10, (x.ToDevice+1023)>>10, ago(r.Now, x.Last))
		}
		t.Flush()
	}
	b.WriteByte('\n')
	for i := range s.Platforms {
		s.Platforms[i].write(b, r.Now)
	}
	for i := range s.Listeners {
		s.Listeners[i].write(b)
	}
	refused, unlogged := s.refused()
	fmt.Fprintf(b, "tunnel: %d sessions carried, %d of them enforced, %d connections refused", s.Opened, s.Enforced, refused)
	if unlogged > 0 {
		fmt.Fprintf(b, ", %d of them too many for the log", unlogged)
	}
	b.WriteByte('\n')
}

func (p *TunnelPlatform) write(b *strings.Builder, now time.Time) {
	fmt.Fprintf(b, "gate of %s", p.Name)
	if p.ServerName != "" {
		fmt.Fprintf(b, " as %s", p.ServerName)
	}
	if p.Address != "" {
		fmt.Fprintf(b, " at %s", p.Address)
	}
	state := "not asked of late"
	if !p.unjudged() {
		state = p.Gate + " " + ago(now, p.Judged)
	}
	fmt.Fprintf(b, ": %s, %d sessions\n", state, p.Sessions)
}

// unjudged reports whether nothing is known of it now.
func (p *TunnelPlatform) unjudged() bool { return p.Gate != "good" && !p.Closed }

func (l *TunnelListener) write(b *strings.Builder) {
	state := "closed, " + l.Listen
	if l.Address != "" {
		state = "listening on " + l.Address
	}
	fmt.Fprintf(b, "tunnel %s: %s, %d sessions", l.Name, state, l.Sessions)
	if l.Handshakes > 0 {
		fmt.Fprintf(b, ", %d connected and not through yet", l.Handshakes)
	}
	if n := sum(l.Refused); n > 0 {
		fmt.Fprintf(b, ", %d refused", n)
	}
	b.WriteByte('\n')
}

// refused is how many connections did not get through, and how many of those
// are not in the log.
func (s *Tunnel) refused() (all, unlogged uint64) {
	for _, l := range s.Listeners {
		all += sum(l.Refused)
		unlogged += sum(l.Unlogged)
	}
	return all, unlogged
}

func sum(counts map[string]uint64) (n uint64) {
	for _, c := range counts {
		n += c
	}
	return n
}

// standing is how the platform of a session is known.
func (x *TunnelSession) standing() string {
	if x.Enforced {
		return "enforced"
	}
	return "gate only"
}

var (
	descTunnelUp       = describeMetric("tunnel_listening", "1 while devices can connect to the tunnel.", "tunnel")
	descTunnelSessions = describeMetric("tunnel_sessions", "Sessions that flow.", "tunnel")
	descTunnelGate     = describeMetric("tunnel_gate_open", "1 while the gate has found the platform good, 0 while nothing passes, by the name that sessions ask for; absent while nothing is known.", "platform", "server_name")
	descTunnelJudged   = describeMetric("tunnel_gate_timestamp_seconds", "When the gate last judged the platform.", "platform", "server_name")
	descTunnelIn       = describeMetric("tunnel_connections_total", "Connections that were taken.")
	descTunnelProbes   = describeMetric("tunnel_probes_total", "Connections that were closed again without a byte.")
	descTunnelOpened   = describeMetric("tunnel_sessions_total", "Sessions that flowed, by whether the platform's certificate in them was judged.", "standing")
	descTunnelRefused  = describeMetric("tunnel_refused_total", "Connections that did not get through, by rule.", "tunnel", "rule")
	descTunnelUnlogged = describeMetric("tunnel_refused_unlogged_total", "Connections that did not get through and are not in the log, for there were too many.", "tunnel", "rule")
	descTunnelWaiting  = describeMetric("tunnel_handshakes", "Devices that connected and are not through yet.", "tunnel")
	descTunnelEnded    = describeMetric("tunnel_ended_total", "Sessions that flowed and ended, by how.", "result")
	descTunnelLooks    = describeMetric("tunnel_gate_handshakes_total", "Handshakes of the gate, by verdict.", "verdict")
	descTunnelBytes    = describeMetric("tunnel_bytes_total", "Bytes carried.", "direction")
)

var tunnelDescriptions = []*prometheus.Desc{descTunnelUp, descTunnelSessions, descTunnelGate, descTunnelJudged, descTunnelIn, descTunnelProbes, descTunnelOpened, descTunnelRefused,
	descTunnelUnlogged, descTunnelWaiting, descTunnelEnded, descTunnelLooks, descTunnelBytes}

// latest is one row for each platform and name, whatever address it led to:
// addresses are no labels, as they may come and go without end.
func (s *Tunnel) latest() map[[2]string]TunnelPlatform {
	rows := map[[2]string]TunnelPlatform{}
	for _, p := range s.Platforms {
		key := [2]string{p.Name, p.ServerName}
		if was, there := rows[key]; !there || p.Judged.After(was.Judged) {
			rows[key] = p
		}
	}
	return rows
}

func (m metrics) tunnel(s *Tunnel) {
	for _, l := range s.Listeners {
		m.gauge(descTunnelUp, number(l.Address != ""), l.Name)
		m.gauge(descTunnelSessions, float64(l.Sessions), l.Name)
		m.gauge(descTunnelWaiting, float64(l.Handshakes), l.Name)
		m.counters(descTunnelRefused, l.Refused, l.Name)
		m.counters(descTunnelUnlogged, l.Unlogged, l.Name)
	}
	for _, p := range s.latest() {
		if !p.unjudged() {
			m.gauge(descTunnelGate, number(!p.Closed), p.Name, p.ServerName)
		}
		m.time(descTunnelJudged, p.Judged, p.Name, p.ServerName)
	}
	m.counter(descTunnelIn, s.Accepted)
	m.counter(descTunnelProbes, s.Probes)
	m.counter(descTunnelOpened, s.Enforced, "enforced")
	m.counter(descTunnelOpened, s.GateOnly, "gate only")
	m.counters(descTunnelEnded, s.Ended)
	m.counters(descTunnelLooks, s.Gate)
	m.counter(descTunnelBytes, s.ToPlatform, "to platform")
	m.counter(descTunnelBytes, s.ToDevice, "to device")
}
