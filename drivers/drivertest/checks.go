package drivertest

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"runtime"
	"runtime/metrics"
	"slices"
	"time"

	"go.uber.org/goleak"

	"github.com/bedside-gateway/gatewayd/drivers"
	"github.com/bedside-gateway/gatewayd/drivers/port"
	"github.com/bedside-gateway/gatewayd/mdc"
	"github.com/bedside-gateway/gatewayd/observation"
)

// checkInfo: what the gateway is told beforehand holds.
func (c *checker) checkInfo() {
	info := c.d.Info()
	if _, err := drivers.NewRegistry(c.d); err != nil {
		c.failf("%v", err)
	}
	if info.Title == "" || info.Silence <= 0 {
		c.failf("Info has no Title, or no Silence: it is needed to tell a silent device")
	}
	if len(info.Lines) == 0 && info.UDPPort == 0 {
		c.failf("Info has neither Lines nor a UDPPort: how is the device reached?")
	}
	for _, l := range info.Lines {
		if _, err := port.ParseLine(l.String()); err != nil {
			c.failf("%v", err)
		}
	}
	for _, o := range info.Options {
		if o.Name == "" || o.Explain == "" {
			c.failf("option %q has no name or is not explained", o.Name)
		}
	}
	if m, err := c.d.New(drivers.Settings{Options: c.options()}, nobody{}); err != nil || m == nil {
		c.failf("New refuses the options of the kit: %v", err)
		c.fatal = true
	}
}

// nobody is a Host that takes no notice.
type nobody struct{}

func (nobody) Send([]byte)                {}
func (nobody) Report(*observation.Report) {}
func (nobody) State(drivers.State)        {}
func (nobody) Count(drivers.Frame)        {}
func (nobody) Note(string)                {}

// checkGoroutines: a machine has none. It comes before all that runs in a
// bubble, which a goroutine that is left would break.
func (c *checker) checkGoroutines() {
	before := goleak.IgnoreCurrent()
	for _, r := range append([]Recording{{}}, c.k.Recordings...) {
		o := c.play(play{settings: drivers.Settings{Datagrams: r.Datagrams}, records: r.Records, quiet: time.Minute})
		if why := o.broken(); why != "" {
			c.failf("%s: %s", r.Name, why)
			c.fatal = true
			return
		}
	}
	if err := goleak.Find(before); err != nil {
		c.failf("%v", err)
		c.fatal = true
	}
}

// checkLive: in the ordinary case all is well.
func (c *checker) checkLive() {
	for _, m := range c.gather() {
		b := m.baseline
		switch {
		case c.fatal:
			return
		case b.err != nil && m.settings.ListenOnly:
			c.failf("%s: heard in listen-only mode, it ends with: %v", m.name, b.err)
		case b.err != nil:
			c.failf("%s: %v", m.name, b.err)
		}
		if len(b.reports) == 0 {
			c.failf("%s: no report", m.name)
		}
		if !b.live {
			c.failf("%s: the machine never said that it is live", m.name)
		}
		if b.good == 0 {
			c.failf("%s: no good frame was counted", m.name)
		}
	}
}

// checkReports: reports are as package observation wants them.
func (c *checker) checkReports() {
	for _, m := range c.gather() {
		if m.expect != nil {
			if err := m.expect(m.baseline.reports); err != nil {
				c.failf("%s: %v", m.name, err)
			}
		}
		for i := range m.baseline.reports {
			c.checkReport(fmt.Sprintf("%s: report %d", m.name, i+1), &m.baseline.reports[i])
		}
	}
}

func (c *checker) checkReport(name string, r *observation.Report) {
	if r.Device == nil || r.Device.Type == 0 {
		c.failf("%s: it names no device", name)
	}
	if r.Received.Before(began) || r.Received.After(began.AddDate(0, 0, 30)) {
		c.failf("%s: Received is %v, and that is not when it was received", name, r.Received)
	}
	for i := range r.Observations {
		o := &r.Observations[i]
		what := fmt.Sprintf("%s, %s", name, describe(*o))
		switch {
		case o.Code == 0 && o.Private == observation.Private{}:
			c.failf("%s: it has neither a Code nor a Private number", what)
		case o.Code != 0 && o.Code.Current() != o.Code:
			c.failf("%s: the code is deprecated", what)
		case !o.Status.Usable() && o.Value.Kind != observation.KindNone:
			c.failf("%s: the device says that there is no value (status %b)", what, o.Status)
		case o.Value.Kind == observation.KindNumber && !o.Value.Number.Valid():
			c.failf("%s: a number without a number", what)
		case o.Value.Kind == observation.KindSamples && (o.Value.Samples == nil || o.Value.Samples.Period <= 0):
			c.failf("%s: samples without samples or period", what)
		case o.Time.IsZero() || o.Time.After(r.Received) || !o.Episodic && r.Received.Sub(o.Time) > 10*time.Minute:
			c.failf("%s: measured at %v and received at %v", what, o.Time, r.Received)
		}
		if o.Unit != 0 {
			if _, ok := mdc.LookupUnit(o.Unit); !ok {
				c.failf("%s: unit %d is not in the nomenclature", what, uint32(o.Unit))
			}
		}
		if c.full() {
			return
		}
	}
}

// checkBorrowed: a machine that keeps a piece of the buffer that it was given,
// or counts on its last report, makes other reports when both are overwritten.
func (c *checker) checkBorrowed() {
	for _, m := range c.gather() {
		p := m.play()
		p.gentle = true
		o := c.play(p)
		if d := differ(m.baseline.reports, o.reports); d != "" {
			c.failf("%s: when the receive buffer and the report are overwritten after use, %s", m.name, d)
		}
	}
}

// checkPieces: where a read begins and ends says nothing.
func (c *checker) checkPieces() {
	for _, m := range c.streams() {
		single := func(b []byte) [][]byte { return slices.Collect(slices.Chunk(b, 1)) }
		c.samePieces(m, "read byte by byte", m.play(), single, m.baseline)
		for i := range 3 {
			r := seeded(fmt.Sprint("pieces", i))
			c.samePieces(m, "read in pieces", m.play(), func(b []byte) (pieces [][]byte) {
				for len(b) > 0 {
					n := min(1+r.IntN(1<<r.IntN(10)), len(b))
					pieces, b = append(pieces, b[:n]), b[n:]
				}
				return pieces
			}, m.baseline)
		}
		// All at once, against the same at one time but one after the other.
		p := m.play()
		p.still = true
		apart := c.play(p)
		p.records = []port.Record{{Direction: port.FromDevice, Data: m.bytes()}}
		c.samePieces(m, "all in one read", p, nil, apart)
	}
}

func (c *checker) samePieces(m *material, how string, p play, pieces func([]byte) [][]byte, want *outcome) {
	p.pieces = pieces
	o := c.play(p)
	switch {
	case o.broken() != "":
		c.failf("%s, %s: %s", m.name, how, o.broken())
	case fmt.Sprint(o.err) != fmt.Sprint(want.err):
		c.failf("%s, %s: it ends with %v, not %v", m.name, how, o.err, want.err)
	default:
		if d := differ(o.reports, want.reports); d != "" {
			c.failf("%s, %s: %s", m.name, how, d)
		}
	}
}

// checkTicks: a machine sleeps when nothing is to be done, and a tick that
// comes early changes nothing.
func (c *checker) checkTicks() {
	limit := c.k.TicksPerHour
	if limit == 0 {
		limit = 36000
	}
	for _, m := range c.gather() {
		for name, records := range map[string][]port.Record{"unanswered": nil, "live and then alone": m.records} {
			c.hour(m.name+", "+name, m, records, limit)
		}
		p := m.play()
		p.early = true
		o := c.play(p)
		if o.broken() != "" {
			c.failf("%s, with early ticks: %s", m.name, o.broken())
		}
		if d := differ(o.reports, m.baseline.reports); d != "" {
			c.failf("%s, with early ticks: %s", m.name, d)
		}
		if !slices.Equal(o.sends, m.baseline.sends) {
			c.failf("%s, with early ticks: it makes %d requests, not the %d of before", m.name, len(o.sends), len(m.baseline.sends))
		}
	}
}

// hour plays records and then nothing for an hour, with a new machine each time
// one gives up.
func (c *checker) hour(name string, m *material, records []port.Record, limit int) {
	ticks, sends := 0, 0
	for left := time.Hour; left > 0 && !c.full(); left -= time.Second {
		o := c.play(play{settings: m.settings, records: records, quiet: left})
		if why := o.broken(); why != "" {
			c.failf("%s: %s", name, why)
			return
		}
		if o.hasty > 0 {
			c.failf("%s: %d times Wake was not later than the tick before it", name, o.hasty)
			return
		}
		ticks, sends = ticks+o.ticks, sends+len(o.sends)
		if ticks > limit || sends > limit {
			c.failf("%s: more than %d ticks or requests in an hour in which nothing arrives", name, limit)
			return
		}
		if o.err == nil {
			return
		}
		records = nil // it gave up: the session backs off and begins anew
		left -= o.lasted
	}
}

// checkTruncation: the line may be cut at any byte.
func (c *checker) checkTruncation() {
	for _, m := range c.gather() {
		r := seeded("truncation")
		for _, n := range points(r, len(m.bytes()), m.tries()) {
			i, at := locate(m.records, n)
			cut := func(b []byte) []byte { return b[:at] }
			p := m.play()
			if m.settings.Datagrams { // one datagram is short, the others are not
				p.records = altered(m.records, i, cut)
			} else {
				p.records = altered(m.records[:i+1], i, cut)
			}
			o := c.play(p)
			if why := o.broken(); why != "" {
				c.failf("%s, cut off after byte %d: %s", m.name, n, why)
			} else if !m.settings.Datagrams && len(o.reports) > len(m.baseline.reports) {
				c.failf("%s, cut off after byte %d: %d reports, more than of the whole", m.name, n, len(o.reports))
			} else if !m.settings.Datagrams {
				if d := differ(o.reports, m.baseline.reports[:len(o.reports)]); d != "" {
					c.failf("%s, cut off after byte %d: %s", m.name, n, d)
				}
			}
			if c.full() {
				return
			}
		}
	}
}

// checkFlips: a bit that a bad cable changed makes no value where check values
// show it, and no harm elsewhere.
func (c *checker) checkFlips() {
	for _, m := range c.gather() {
		r, known := seeded("flips"), values(m.baseline.reports)
		for _, n := range points(r, len(m.bytes()), m.tries()) {
			i, at := locate(m.records, n)
			bit := byte(1) << r.IntN(8)
			p := m.play()
			p.records = altered(m.records, i, func(b []byte) []byte { b[at] ^= bit; return b })
			o := c.play(p)
			if why := o.broken(); why != "" {
				c.failf("%s, bit %#02x of byte %d flipped: %s", m.name, bit, n, why)
			} else if c.k.Checked && !m.settings.Datagrams {
				if v := strange(o.reports, known); v != "" {
					c.failf("%s, bit %#02x of byte %d flipped: it reports %s, which the device never said", m.name, bit, n, v)
				}
			}
			if c.full() {
				return
			}
		}
	}
}

// checkNoise: a line has noise before the first frame, and between frames.
func (c *checker) checkNoise() {
	noises := map[string][]byte{
		"zeros": make([]byte, 64), "ones": bytes.Repeat([]byte{0xFF}, 64), "one byte": {0x55},
		"random bytes": randomBytes(seeded("noise"), 200), "printable text": []byte("login: \r\n\x1b[0m# "),
	}
	for name, noise := range noises {
		if c.k.Stream != nil {
			c.live(false, drivers.Settings{}, func(l *live) { l.greeting = noise }, func(l *live) {
				if !l.awaitReports(2) {
					c.failf("%s before the first frame: no reports within %v: %s", name, patience, l.session.Status().LastError)
				}
				if _, err := l.end.Write(noise); err != nil {
					c.failf("the line took no noise: %v", err)
				}
				if !l.awaitReports(5) {
					c.failf("%s between frames: no more reports within %v: %s", name, patience, l.session.Status().LastError)
				}
			})
		}
		for _, m := range c.streams() {
			if !m.settings.ListenOnly && !c.d.Info().Passive {
				continue // the noise may hide an answer that is not given again
			}
			p := m.play()
			p.records = append([]port.Record{{Direction: port.FromDevice, Data: noise}}, m.records...)
			if o := c.play(p); o.broken() != "" || o.err != nil || 2*len(o.reports) < len(m.baseline.reports) {
				c.failf("%s, %s before the first frame: %d of %d reports are left (%v) %s", m.name, name, len(o.reports), len(m.baseline.reports), o.err, o.broken())
			}
		}
	}
}

// The memory that a machine may hold, and use, in any hostile play.
const (
	maxHeld = 256 << 10
	maxUsed = 128 << 20
)

// checkHostile: what the peer sends is not even of good will.
func (c *checker) checkHostile() {
	for _, m := range c.gather() {
		r := seeded("hostile")
		whole := m.records
		c.weigh(m, "random bytes", randomRecords(r, m.settings.Datagrams))
		c.weigh(m, "random bytes in mid-session", append(slices.Clone(whole), randomRecords(r, m.settings.Datagrams)...))
		for range 5 {
			shuffled := slices.Clone(whole)
			r.Shuffle(len(shuffled), func(i, j int) { shuffled[i].Data, shuffled[j].Data = shuffled[j].Data, shuffled[i].Data })
			c.hostile(m, "frames out of order", shuffled)
		}
		c.hostile(m, "each frame twice", slices.Concat(whole, whole))
		begun := whole[:min(m.baseline.first+2, len(whole))] // enough to be live
		for name, frame := range c.k.Hostile {
			evil := port.Record{Offset: lastOffset(begun), Direction: port.FromDevice, Data: frame}
			c.hostile(m, name, append(slices.Clone(begun), evil, evil, evil))
			c.hostile(m, name+" first", []port.Record{{Direction: port.FromDevice, Data: frame}})
		}
		for _, i := range kinds(whole, 12) {
			c.giant(m, i)
		}
		for _, e := range []struct {
			keep int
			fill byte
		}{{1, 0}, {12, 0}, {4, 'A'}, {1, 0xFF}, {12, 0xFF}} {
			c.endless(m, e.keep, e.fill)
		}
	}
}

func lastOffset(records []port.Record) time.Duration {
	if len(records) == 0 {
		return 0
	}
	return records[len(records)-1].Offset
}

func randomRecords(r *rand.Rand, datagrams bool) []port.Record {
	var records []port.Record
	for n := 0; n < maxHeld/2; {
		size := r.IntN(1500)
		if !datagrams {
			size++
		}
		b := randomBytes(r, size)
		n += size + 1
		records = append(records, port.Record{Direction: port.FromDevice, Data: b})
	}
	return records
}

// kinds are up to n records that look different: of other lengths.
func kinds(records []port.Record, n int) (picked []int) {
	seen := make(map[int]bool)
	for i, r := range records {
		if !seen[len(r.Data)] && len(picked) < n {
			picked = append(picked, i)
		}
		seen[len(r.Data)] = true
	}
	return picked
}

// giant makes each field of a frame that could be a length immense.
func (c *checker) giant(m *material, i int) {
	for at := range min(len(m.records[i].Data)-1, 24) {
		for _, width := range []int{2, 4} {
			c.hostile(m, fmt.Sprintf("bytes %d to %d of read %d all ones", at, at+width-1, i+1), altered(m.records, i, func(b []byte) []byte {
				for j := at; j < min(at+width, len(b)); j++ {
					b[j] = 0xFF
				}
				return b
			})[:min(i+20, len(m.records))])
		}
		if c.full() {
			return
		}
	}
}

// endless begins a frame as the device does, and never ends it.
func (c *checker) endless(m *material, keep int, fill byte) {
	filler := bytes.Repeat([]byte{fill}, 1<<12)
	records := slices.Clone(m.records[:len(m.records)/2])
	head := m.records[len(m.records)/2].Data
	records = append(records, port.Record{Offset: lastOffset(records), Direction: port.FromDevice, Data: head[:min(keep, len(head))]})
	for range 3 * maxHeld / 2 >> 12 {
		records = append(records, port.Record{Offset: lastOffset(records), Direction: port.FromDevice, Data: filler})
	}
	c.weigh(m, fmt.Sprintf("%d bytes of a frame and then %#02x without end", keep, fill), records)
}

// hostile plays what may come, and counts what the machine allocates.
func (c *checker) hostile(m *material, what string, records []port.Record) *outcome {
	if c.full() {
		return nil
	}
	before := allocated()
	o := c.play(play{settings: m.settings, records: records, noStop: true})
	if why := o.broken(); why != "" {
		c.failf("%s, %s: %s", m.name, what, why)
		return nil
	}
	if used := allocated() - before; used > maxUsed {
		c.failf("%s, %s: %d bytes were allocated", m.name, what, used)
	}
	return o
}

// allocated is how many bytes were allocated since the program began. Unlike
// runtime.ReadMemStats it does not stop the world, thousands of times.
func allocated() uint64 {
	sample := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(sample)
	return sample[0].Value.Uint64()
}

// weigh is hostile, and looks at what the machine then holds.
func (c *checker) weigh(m *material, what string, records []port.Record) {
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	o := c.hostile(m, what, records)
	if o == nil {
		return
	}
	machine := o.machine
	o.reports, o.sends = nil, nil
	runtime.GC()
	runtime.ReadMemStats(&after)
	if held := int64(after.HeapAlloc) - int64(before.HeapAlloc); held > maxHeld {
		c.failf("%s, %s: the machine holds %d bytes", m.name, what, held)
	}
	runtime.KeepAlive(machine)
}

// checkReplug: the adapter is pulled and plugged in again, and again.
func (c *checker) checkReplug() {
	for _, datagrams := range c.kinds() {
		c.live(datagrams, drivers.Settings{}, nil, func(l *live) {
			for range 3 {
				if !l.awaitReports(2) {
					c.failf("%s: no reports within %v: %s", kindName(datagrams), patience, l.session.Status().LastError)
					return
				}
				l.unplug()
				l.sleep(7 * time.Second)
				l.powerOff() // the connection, not the device: it goes on as it was
				l.plug()
				l.serve()
			}
			if !l.awaitReports(2) {
				c.failf("%s: no reports within %v of the last replug: %s", kindName(datagrams), patience, l.session.Status().LastError)
			}
			if st := l.session.Status(); st.Reopens < 3 {
				c.failf("%s: the port was opened again %d times", kindName(datagrams), st.Reopens)
			}
		})
	}
}

// checkReboot: the device forgets everything, at each step of the way.
func (c *checker) checkReboot() {
	for _, datagrams := range c.kinds() {
		for step := 1; step <= 8 && !c.full(); step++ {
			c.live(datagrams, drivers.Settings{}, func(l *live) {
				l.onWrite = func(n int) {
					if n == step {
						l.devices.Go(l.reboot)
					}
				}
			}, func(l *live) {
				// First whatever was on the way when it happened, then more.
				if !l.awaitReports(3) || !l.awaitReports(20) {
					c.failf("%s: rebooted after request %d, the device is not live within %v: %s", kindName(datagrams), step, patience, l.session.Status().LastError)
				}
			})
		}
	}
}

// checkListenOnly: not a byte goes out, and what is heard is taken.
func (c *checker) checkListenOnly() {
	for _, datagrams := range c.kinds() {
		c.live(datagrams, drivers.Settings{ListenOnly: true}, nil, func(l *live) {
			l.sleep(10 * time.Minute)
			if st := l.session.Status(); st.BytesSent != 0 || l.writes != 0 {
				c.failf("%s: %d bytes went out", kindName(datagrams), st.BytesSent)
			}
		})
	}
	for _, m := range c.gather() {
		p := m.play()
		p.settings.ListenOnly = true
		p.quiet = 10 * time.Minute
		o := c.play(p)
		switch {
		case o.broken() != "":
			c.failf("%s: %s", m.name, o.broken())
		case len(o.reports) == 0 && len(m.baseline.reports) > 0:
			c.failf("%s: nothing is reported of the answers to another master (%v)", m.name, o.err)
		}
	}
}

// identify is Identify of the driver, its panics contained.
func (c *checker) identify(b []byte) (m drivers.Match) {
	defer func() {
		if v := recover(); v != nil {
			c.failf("Identify of % X: panic: %v\n%s", b[:min(len(b), 32)], v, firstFrames())
		}
	}()
	return c.d.Identify(b)
}

// permit is Permit of the driver, its panics contained.
func (c *checker) permit(frame []byte) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("panic: %v", v)
			c.failf("Permit of % X: panic: %v\n%s", frame[:min(len(frame), 32)], v, firstFrames())
		}
	}()
	return c.d.Permit(frame)
}

// checkIdentify: a driver knows its own protocol and claims no other.
func (c *checker) checkIdentify() {
	noise := randomBytes(seeded("identify"), 16)
	for _, m := range c.gather() {
		own := m.bytes()
		if m.settings.Datagrams {
			own = m.records[0].Data
		}
		own = own[:min(len(own), 64<<10)]
		want := drivers.Plausible
		if c.k.Checked && !m.settings.Datagrams {
			want = drivers.Certain
		}
		if got := c.identify(own); got < want {
			c.failf("%s: its own bytes are match %d, not %d", m.name, got, want)
		}
		if m.settings.Datagrams {
			continue
		}
		if got := c.identify(append(slices.Clone(noise), own...)); got < want {
			c.failf("%s: its own bytes behind noise are match %d, not %d", m.name, got, want)
		}
		for _, n := range points(seeded("prefix"), len(own), 500) {
			if c.identify(own[:n]) == drivers.NoMatch {
				c.failf("%s: its own first %d bytes are NoMatch", m.name, n)
				break
			}
		}
	}
	foreign := map[string][]byte{"random bytes": randomBytes(seeded("foreign"), 4096), "zeros": make([]byte, 4096), "text": bytes.Repeat([]byte("12:00:00 SpO2 98 PR 72\r\n"), 100)}
	for name, b := range c.k.Foreign {
		foreign[name] = b
	}
	for name, b := range foreign {
		for _, n := range append(points(seeded(name), len(b), 500), len(b)) {
			if c.identify(b[:n]) == drivers.Certain {
				c.failf("%s: the first %d bytes of another protocol are Certain", name, n)
				break
			}
		}
	}
}

// checkPermit: the list of permitted requests is short and strict.
func (c *checker) checkPermit() {
	c.gather()
	for _, datagrams := range c.kinds() {
		c.live(datagrams, drivers.Settings{}, nil, func(l *live) { l.awaitReports(30) })
	}
	if len(c.sent) > 0 && len(c.k.Dangerous) == 0 {
		c.failf("the driver sends requests, and the kit names no dangerous ones that Permit refuses")
	}
	refuse := func(what string, frame []byte) {
		if c.permit(frame) == nil && c.sent[string(frame)] == 0 {
			c.failf("Permit lets pass %s: % X", what, frame[:min(len(frame), 64)])
		}
	}
	for name, frame := range c.k.Dangerous {
		if c.permit(frame) == nil {
			c.failf("Permit lets pass the dangerous frame %q: % X", name, frame)
		}
	}
	for name, frame := range c.k.Foreign {
		refuse("bytes of another protocol, "+name, frame)
	}
	refuse("nothing", nil)
	r := seeded("permit")
	for range 2000 {
		refuse("random bytes", randomBytes(r, 1+r.IntN(64)))
	}
	for frame := range c.sent {
		c.mutate([]byte(frame), refuse)
		if c.full() {
			return
		}
	}
}

// mutate makes what is almost a request of a request.
func (c *checker) mutate(frame []byte, refuse func(string, []byte)) {
	if err := c.permit(frame); err != nil {
		c.failf("the machine sent % X: %v", frame, err)
	}
	for n := range len(frame) {
		refuse("the beginning of a request", frame[:n])
		refuse("the end of a request", frame[n+1:])
	}
	for _, b := range []byte{0, frame[0], frame[len(frame)-1], 0xFF} {
		refuse("a request and a byte more", append(slices.Clone(frame), b))
		refuse("a request behind a byte", append([]byte{b}, frame...))
	}
	refuse("two requests in one", append(slices.Clone(frame), frame...))
	if !c.k.Checked || c.k.Stream == nil || c.datagramRequest(frame) {
		return
	}
	for i := range frame {
		for bit := range 8 {
			flipped := slices.Clone(frame)
			flipped[i] ^= 1 << bit
			refuse(fmt.Sprintf("a request with bit %d of byte %d flipped", bit, i), flipped)
		}
	}
}

// datagramRequest reports whether a request went out as a datagram: those have
// no check value of their own.
func (c *checker) datagramRequest(frame []byte) bool {
	return c.sent[string(frame)] == asDatagram
}
