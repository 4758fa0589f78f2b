package status

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
)

// Write writes the report for people, in at most 100 columns where names allow.
func (r *Report) Write(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s\n", r.Gateway, r.headline())
	fmt.Fprintf(&b, "gatewayd %s, up %s\n", r.Build.Version, age(r.Now, r.Started))
	for _, c := range r.Conditions {
		c.write(&b, r.Now)
	}
	r.writeIdentity(&b)
	r.writePorts(&b)
	r.writeDestinations(&b)
	r.writeSouthbound(&b)
	r.writeTunnel(&b)
	r.writeSpool(&b)
	_, err := io.WriteString(w, b.String())
	return err
}

// headline is the state in one line, as systemd shows it as well.
func (r *Report) headline() string {
	switch {
	case len(r.Conditions) > 0:
		c := r.Conditions[0]
		more := ""
		if n := len(r.Conditions) - 1; n > 0 {
			more = fmt.Sprintf(" and %d more", n)
		}
		return fmt.Sprintf("%s (%s%s)", r.Verdict, c.title(), more)
	case !r.Ready:
		return "starting"
	}
	return r.Verdict.String()
}

// Line is the state in one line without the gateway's name.
func (r *Report) Line() string {
	live, up := 0, 0
	for _, p := range r.Ports {
		live += int(number(p.State == "live"))
	}
	for _, d := range r.Destinations {
		up += int(number(d.Connected))
	}
	return fmt.Sprintf("%s; %d of %d ports live, %d of %d platforms connected, %d messages waiting",
		r.headline(), live, len(r.Ports), up, len(r.Destinations), r.Spool.Messages)
}

func (c *Condition) title() string {
	if c.Subject == "" {
		return c.Name
	}
	return c.Name + " " + c.Subject
}

func (c *Condition) write(b *strings.Builder, now time.Time) {
	since := ""
	if !c.Since.IsZero() {
		since = ", for " + age(now, c.Since)
	}
	fmt.Fprintf(b, "\n! %s (%s%s)\n  %s\n  Next: %s\n", c.title(), c.Verdict, since, c.Text, c.Next)
}

func (r *Report) writeIdentity(b *strings.Builder) {
	i := r.Identity
	if i == nil {
		return
	}
	fmt.Fprintf(b, "\nKey in the TPM %s", i.Address)
	if i.Manufacturer != "" {
		fmt.Fprintf(b, " (%s %s)", i.Manufacturer, i.Firmware)
	}
	b.WriteByte('\n')
	t := tabwriter.NewWriter(b, 0, 8, 2, ' ', 0)
	for _, s := range i.Slots {
		until := "no certificate yet"
		if !s.NotAfter.IsZero() {
			until = "until " + s.NotAfter.UTC().Format(time.DateOnly)
		}
		fmt.Fprintf(t, "  %s\t%s\t%s\t%s\t%s\n", s.Slot, s.Kind, s.Key, until, s.Issuer)
	}
	t.Flush()
}

func (r *Report) writePorts(b *strings.Builder) {
	if len(r.Ports) == 0 {
		return
	}
	b.WriteByte('\n')
	t := tabwriter.NewWriter(b, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "PORT\tDRIVER\tSTATE\tFOR\tLAST REPORT\tVALUES\tBAD FRAMES\tMESSAGES")
	for _, p := range r.Ports {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%d\t%d\t%d\n", p.Name, p.Driver, p.State, age(r.Now, p.Since),
			ago(r.Now, p.LastReport), p.Observations, p.bad(), p.Messages)
	}
	t.Flush()
}

// bad is the number of frames that were no good.
func (p *Port) bad() (n uint64) {
	for fate, count := range p.Frames {
		if fate != "good" {
			n += count
		}
	}
	return n
}

func (r *Report) writeDestinations(b *strings.Builder) {
	if len(r.Destinations) == 0 {
		return
	}
	b.WriteByte('\n')
	t := tabwriter.NewWriter(b, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "PLATFORM\tADDRESS\tSTATE\tFOR\tLAST ACK\tDELIVERED\tWAITING\tQUARANTINED")
	for _, d := range r.Destinations {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%d\t%d\t%d\n", d.Name, d.Address, d.State, age(r.Now, d.Since),
			ago(r.Now, d.LastAck), d.Delivered, d.Messages, d.Quarantined)
	}
	t.Flush()
	for _, d := range r.Destinations {
		if d.TLS != "" {
			fmt.Fprintf(b, "%s: %s%s\n", d.Name, d.TLS, d.staples(r.Now))
		}
	}
}

func (r *Report) writeSouthbound(b *strings.Builder) {
	s := r.Southbound
	if s == nil {
		return
	}
	if len(s.Devices) > 0 {
		b.WriteByte('\n')
		t := tabwriter.NewWriter(b, 0, 8, 2, ' ', 0)
		fmt.Fprintln(t, "DEVICE\tREMOTE\tCONNECTED FOR\tMESSAGES\tLAST MESSAGE")
		for _, d := range s.Devices {
			fmt.Fprintf(t, "%s\t%s\t%s\t%d\t%s\n", d.Name, d.Remote, age(r.Now, d.Since), d.Messages, ago(r.Now, d.LastMessage))
		}
		t.Flush()
	}
	state := "closed, " + s.Listen
	if s.Address != "" {
		state = "listening on " + s.Address
	}
	fmt.Fprintf(b, "\ndevices: %s, %d of %d authorised connected, %d messages stored, %d connections refused\n",
		state, s.Present(), len(s.Authorised), s.Messages, s.refused())
}

// Present is how many of the authorised devices are connected.
func (s *Southbound) Present() (n int) {
	for _, name := range s.Authorised {
		n += int(number(s.connections(name) > 0))
	}
	return n
}

func (s *Southbound) connections(device string) (n int) {
	for _, d := range s.Devices {
		n += int(number(d.Name == device))
	}
	return n
}

func (s *Southbound) refused() (sum uint64) {
	for _, n := range s.Refused {
		sum += n
	}
	return sum
}

// staples says how long the platform's responses hold: the one that ends first.
func (d *Destination) staples(now time.Time) string {
	var first time.Time
	for _, until := range d.Staples {
		if !until.IsZero() && (first.IsZero() || until.Before(first)) {
			first = until
		}
	}
	if first.IsZero() {
		return ""
	}
	return fmt.Sprintf(", its %d staples hold for %s", len(d.Staples), short(first.Sub(now)))
}

func (r *Report) writeSpool(b *strings.Builder) {
	s := &r.Spool
	fmt.Fprintf(b, "\nspool: %d messages, %d of %d KiB", s.Messages, (s.Bytes+1023)>>10, s.MaxBytes>>10)
	if s.Capacity > 0 {
		fmt.Fprintf(b, ", full in %s at the present rate if nothing is delivered", short(time.Duration(s.Capacity*float64(time.Second))))
	}
	dropped := uint64(0)
	for _, n := range s.Dropped {
		dropped += n
	}
	if dropped > 0 {
		fmt.Fprintf(b, ", %d given up", dropped)
	}
	b.WriteByte('\n')
}

// age is how long ago t was, "-" for never.
func age(now, t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return short(now.Sub(t))
}

func ago(now, t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return age(now, t) + " ago"
}

// short is a duration in its two largest units.
func short(d time.Duration) string {
	switch d = max(d, 0); {
	case d >= 1000*time.Hour:
		return fmt.Sprintf("%dd", d/(24*time.Hour))
	case d >= 48*time.Hour:
		return fmt.Sprintf("%dd%02dh", d/(24*time.Hour), d/time.Hour%24)
	case d >= time.Hour:
		return fmt.Sprintf("%dh%02dm", d/time.Hour, d/time.Minute%60)
	case d >= time.Minute:
		return fmt.Sprintf("%dm%02ds", d/time.Minute, d/time.Second%60)
	}
	return fmt.Sprintf("%ds", d/time.Second)
}
