package demo

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/bedside-gateway/gatewayd/hl7"
	"github.com/bedside-gateway/gatewayd/internal/sim/platform"
	"github.com/bedside-gateway/gatewayd/mdc"
)

// A sent value is one that a monitor put on its line.
type sent struct {
	code     mdc.Code
	unit     mdc.Code
	value    string    // its digits
	of       time.Time // when the monitor had it
	at       time.Time // when it was written; later than of where the machine is busy
	measured time.Time // of a cuff measurement: when, by the monitor's clock
	episodic bool
}

// A received value is a row of a message that the platform stored.
type received struct {
	code     mdc.Code
	unit     string // reference identifier
	value    string
	from, to time.Time // when it was measured, as far as the message says
	since    time.Time // when the interval of the message began
}

// A gap is a time in which a line led nowhere. What was sent in it, or right
// before it, may be lost: a serial line has no memory.
type gap struct{ from, to time.Time }

// tolerance is how far the two ends may differ about when something was: the
// time in which a value travels from the monitor's write into a report.
const tolerance = time.Second

// cuffTolerance is the same for cuff measurements, whose time is that of the
// monitor's clock. They are at least three seconds apart.
const cuffTolerance = 1400 * time.Millisecond

// margin is how long before a gap a value may have been sent and still be lost:
// gatewayd gathers for a second before it makes a message, and until then only
// its memory has the values.
const margin = 1500 * time.Millisecond

// An account is what both ends of one bed say, and what of it does not agree.
type account struct {
	// Each value that was sent is one of these.
	values   int // arrived
	standing int // repeats of a cuff measurement that stands
	replaced int // a newer one of the same second replaced it
	unheard  int // nobody listened: the line led nowhere, or it was at the very end

	cuffs int // cuff measurements that arrived
	again int // of these, how many a restarted gateway sent once more
	wrong []string
}

func (a *account) differ(format string, args ...any) {
	a.wrong = append(a.wrong, fmt.Sprintf(format, args...))
}

// vendorTerms are the terms of values that the monitor codes otherwise than by
// the code within partition 2: the pulse of the oximeter and that of the cuff.
var vendorTerms = [...]struct {
	physio uint16
	term   mdc.Code
}{
	{0x4822, 149530}, // MDC_PULS_OXIM_PULS_RATE
	{0xF0E5, 149546}, // MDC_PULS_RATE_NON_INV
}

// termOf is the term of a physio id of the protocol.
func termOf(physio uint16) mdc.Code {
	for _, v := range vendorTerms {
		if v.physio == physio {
			return v.term
		}
	}
	return mdc.Code(2<<16 | uint32(physio)).Current()
}

// unitOf is the unit of a unit code of the protocol: within partition 4.
func unitOf(unit uint16) mdc.Code { return mdc.Code(4<<16 | uint32(unit)) }

// rowsOf are the numbers of a message.
func rowsOf(d *platform.Document) ([]received, error) {
	var rows []received
	since, err := hl7.ParseTime(d.Start)
	if err != nil {
		return nil, fmt.Errorf("message %s, OBR-7: %w", d.ControlID, err)
	}
	for _, r := range d.Rows {
		var code uint32
		if _, err := fmt.Sscan(r.Code, &code); err != nil || r.Type != "NM" || mdc.Code(code).Partition() != 2 {
			continue
		}
		from, to := r.Time, r.Time
		if !r.Episodic && d.End != "" {
			to = d.End
		}
		v := received{code: mdc.Code(code), unit: r.Unit, value: r.Value, since: since}
		if v.from, err = hl7.ParseTime(from); err == nil {
			v.to, err = hl7.ParseTime(to)
		}
		if err != nil {
			return nil, fmt.Errorf("message %s, row %s: %w", d.ControlID, r.Path, err)
		}
		rows = append(rows, v)
	}
	return rows, nil
}

// latest is when the newest of the rows was measured.
func latest(rows []received) (t time.Time) {
	for _, r := range rows {
		if r.from.After(t) {
			t = r.from
		}
	}
	return t
}

// settle holds what a bed sent against what the platform has of it.
type settle struct {
	sent     []sent     // in the order of sending
	received []received // in the order of the messages
	gaps     []gap
	end      time.Time // when the monitor stopped
	restarts int       // of the gateway
	recorded bool      // the bed plays a recording: its clock is that of the recording, and it starts over and over
}

// account compares the ends, term by term.
func (s *settle) account() account {
	var a account
	unitless := map[mdc.Code]bool{}
	codes := []mdc.Code{}
	episodic := map[mdc.Code]bool{}
	for _, v := range s.sent {
		if !unitless[v.code] {
			unitless[v.code] = true
			codes = append(codes, v.code)
		}
		episodic[v.code] = episodic[v.code] || v.episodic
	}
	slices.Sort(codes)
	for _, r := range s.received {
		if !unitless[r.code] {
			a.differ("a value of %s arrived, and the monitor sent none", r.code)
			unitless[r.code] = true // said once
		}
	}
	measurements := map[time.Time]bool{}
	for _, code := range codes {
		out := slices.DeleteFunc(slices.Clone(s.sent), func(v sent) bool { return v.code != code })
		in := slices.DeleteFunc(slices.Clone(s.received), func(v received) bool { return v.code != code })
		if episodic[code] {
			s.episodic(&a, out, in, measurements)
		} else {
			s.periodic(&a, out, in)
		}
	}
	a.cuffs = len(measurements)
	return a
}

// periodic matches each received value with a sent one, in order: every value
// must have been sent, with these digits and this unit, at the time that its
// message says, and none may come twice. Of what was sent none may be missing
// but what a newer value of the same interval replaced.
func (s *settle) periodic(a *account, out []sent, in []received) {
	arrived := make([]*received, len(out))
	next := 0
	for k := range in {
		r, i := &in[k], next
		for i < len(out) && !r.is(out[i], s.recorded) {
			i++
		}
		if i == len(out) {
			a.differ("%s %s of %s was never sent at that time, or came twice or out of order", r.code, r.value, r.from.Format(time.TimeOnly))
			continue
		}
		arrived[i], next = r, i+1
		a.values++
	}
	if !s.recorded {
		s.missing(a, out, arrived)
	}
}

// is reports whether r can be the value v. The clock of a recording runs faster
// than ours where a silence in it is cut short, so its times say nothing.
func (r received) is(v sent, recorded bool) bool {
	return r.same(v) && (recorded || !v.at.Before(r.from.Add(-tolerance)) && !v.of.After(r.to.Add(tolerance)))
}

// same reports whether digits and unit are those of v.
func (r received) same(v sent) bool {
	unit, ok := mdc.LookupUnit(v.unit)
	return ok && r.value == v.value && r.unit == unit.RefID
}

func (s *settle) missing(a *account, out []sent, arrived []*received) {
	first := slices.IndexFunc(arrived, func(r *received) bool { return r != nil })
	var newer *received // the next of them that arrived
	for i, v := range slices.Backward(out) {
		switch {
		case arrived[i] != nil:
			newer = arrived[i]
		case first < 0 || i < first || s.deaf(v.at):
			a.unheard++
		case newer != nil && !v.at.Before(newer.since.Add(-tolerance)):
			a.replaced++
		default:
			a.differ("%s %s, sent at %s, did not arrive", v.code, v.value, v.at.Format(time.TimeOnly))
		}
	}
}

// deaf reports whether a value sent at t may be lost: right before or in a gap,
// or at the very end.
func (s *settle) deaf(t time.Time) bool {
	return slices.ContainsFunc(s.gaps, func(g gap) bool { return t.After(g.from.Add(-margin)) && t.Before(g.to.Add(tolerance)) }) ||
		t.After(s.end.Add(-margin))
}

// episodic looks for each measurement: the monitor repeats a standing value at
// each poll, the platform must have it once.
func (s *settle) episodic(a *account, out []sent, in []received, measurements map[time.Time]bool) {
	if s.recorded {
		return
	}
	times := make([]int, 0, len(out))
	last := time.Time{}
	for i, v := range out {
		if i == 0 || !v.measured.Equal(last) {
			times = append(times, i)
			last = v.measured
		}
	}
	taken := make([]bool, len(in))
	for n, i := range times {
		v := out[i]
		copies := 0
		for k, r := range in {
			if !taken[k] && r.measures(v) {
				taken[k] = true
				copies++
			}
		}
		until := len(out)
		if n+1 < len(times) {
			until = times[n+1]
		}
		heard := slices.ContainsFunc(out[i:until], func(v sent) bool { return !s.deaf(v.at) })
		a.standing += until - i - 1
		switch {
		case copies == 0 && !heard:
			a.unheard++
		case copies == 0:
			a.differ("%s %s, measured at %s, did not arrive", v.code, v.value, v.measured.Format(time.TimeOnly))
		case copies > 1+s.restarts:
			a.differ("%s %s, measured at %s, arrived %d times", v.code, v.value, v.measured.Format(time.TimeOnly), copies)
		default:
			a.values++
			if !measurements[v.measured] {
				a.again += copies - 1
			}
			measurements[v.measured] = true
		}
	}
	if k := slices.Index(taken, false); k >= 0 {
		a.differ("%s %s of %s was never measured", in[k].code, in[k].value, in[k].from.Format(time.TimeOnly))
	}
}

func (r received) measures(v sent) bool {
	return r.same(v) && r.from.Sub(v.measured).Abs() <= cuffTolerance
}

// A balance is what both ends say of the messages.
type balance struct {
	made      uint64   // by the gateway, durable
	delivered uint64   // acknowledged, by the gateway's count
	left      int      // in the spool
	seen      []string // control IDs that were in the spool at some time
	restarts  int      // then the count of made ones begins anew, and only the control IDs tell

	stored   map[string]bool // control IDs at the platform
	findings []string        // the distinct ones, at the platform
	counts   platform.Counts
}

// madeText is what the gateway made, as far as its counts go.
func (b *balance) madeText() string {
	if b.restarts > 0 {
		return fmt.Sprintf("%d messages made durable since its restart", b.made)
	}
	return fmt.Sprintf("%d messages made durable", b.made)
}

// result is the last line's three figures, and what is wrong.
func (b *balance) result() (acknowledged, lost, duplicated int, wrong []string) {
	acknowledged = b.counts.Stored
	duplicated = b.counts.Repeated + b.counts.Conflicts
	var missing []string
	for _, id := range b.seen {
		if !b.stored[id] {
			missing = append(missing, id)
		}
	}
	lost = len(missing)
	if lost > 0 {
		wrong = append(wrong, "durable at the gateway, never stored by the platform: "+strings.Join(missing, " "))
	}
	if b.left > 0 {
		wrong = append(wrong, fmt.Sprintf("%d messages are still in the spool", b.left))
		lost = max(lost, b.left)
	}
	if b.restarts == 0 {
		if n := int(b.made) - b.counts.Stored; n > 0 {
			lost = max(lost, n)
		}
		if int(b.made) != b.counts.Stored {
			wrong = append(wrong, fmt.Sprintf("the gateway made %d messages; the platform stored %d", b.made, b.counts.Stored))
		}
	}
	if int(b.delivered) != b.counts.Stored {
		wrong = append(wrong, fmt.Sprintf("the gateway had %d messages acknowledged; the platform stored %d", b.delivered, b.counts.Stored))
	}
	if b.counts.Rejected > 0 {
		wrong = append(wrong, fmt.Sprintf("the platform rejected %d messages", b.counts.Rejected))
	}
	for _, f := range b.findings {
		wrong = append(wrong, "a message breaks a rule of the profile: "+f)
	}
	if b.counts.Stored == 0 {
		wrong = append(wrong, "no message arrived")
	}
	return acknowledged, lost, duplicated, wrong
}
