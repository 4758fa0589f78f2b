package sim

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/bedside-gateway/gatewayd/drivers/port"
)

// ReplayOptions say what is played and how.
type ReplayOptions struct {
	// Records are the recorded session in the order in which it happened:
	// datagrams, or pieces of an RS-232 stream. They are copied.
	Records []port.Record
	// Speed is how fast time goes: 2 is twice as fast; 0 is 1.
	Speed float64
	// MaxGap shortens longer silences in the recording; 0: 3 s.
	MaxGap time.Duration
	// LeadIn is how long after the first poll for values the recording begins,
	// at any speed, because a client spaces its polls; 0: 3 s.
	LeadIn time.Duration
	// Loop begins again when all was played: the association is aborted, and
	// whoever associates then sees the session from its beginning.
	Loop bool

	OnNumeric func(Numeric)    // as in Options
	Now       func() time.Time // time.Now by default
	Log       *slog.Logger     // nil is silent

	AcceptDelay, Latency time.Duration // as in Options; 0: 200 ms and 80 ms
}

// A Replay is a recorded monitor that talks to a live client. It answers the
// client's own association request and polls, which need not be those of the
// recording: it gives each poll the recorded results of its class, with the
// client's invoke id and poll number, in the recording's order and pace.
//
// It prefers results of the very group that is asked for. A recorded result
// goes to one poll; a result that no poll asks for is not sent. All values and
// relative times are those of the recording.
type Replay struct {
	o    ReplayOptions
	line *line

	accept  []byte
	granted proposal // of accept
	create  []byte
	invoke  uint16 // of the create event
	lists   map[uint16][]byte
	track   []take
	singles map[uint16][]take // by class

	mu       sync.Mutex
	counts   Counts
	finished chan struct{}
	once     sync.Once
}

// A take is one recorded poll result: one part, or linked ones.
type take struct {
	at    time.Duration
	parts []reply
}

// NewReplay reads a recording. It fails if the recording has no session that
// could be played.
func NewReplay(o ReplayOptions) (*Replay, error) {
	if o.Speed < 0 {
		return nil, fmt.Errorf("replay: speed %g is negative", o.Speed)
	}
	or(&o.Speed, 1)
	or(&o.MaxGap, 3*time.Second)
	or(&o.LeadIn, 3*time.Second)
	or(&o.AcceptDelay, 200*time.Millisecond)
	or(&o.Latency, 80*time.Millisecond)
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	r := &Replay{
		o: o, line: newLine(0, 0, false, 0), finished: make(chan struct{}),
		counts: Counts{Numerics: map[uint16]uint64{}, WaveBlocks: map[uint32]uint64{}},
	}
	if err := r.load(sessions(recordedPDUs(o.Records))); err != nil {
		return nil, fmt.Errorf("replay: %w", err)
	}
	r.o.Records = nil
	return r, nil
}

// ServeStream plays the session as a device on an RS-232 line; see Monitor.
func (r *Replay) ServeStream(ctx context.Context, rw io.ReadWriter) error {
	return serveStream(ctx, rw, &player{r: r}, r.o.Now, r.line)
}

// ServePacket plays the session as a device on a LAN; see Monitor.
func (r *Replay) ServePacket(ctx context.Context, conn net.PacketConn) error {
	return servePacket(ctx, conn, &player{r: r}, r.o.Now, r.line, announcement{})
}

// Done is closed when all was played once.
func (r *Replay) Done() <-chan struct{} { return r.finished }

// Length is how long it takes to play all, from the first result on, and of how
// many poll results that is.
func (r *Replay) Length() (length time.Duration, results int) {
	if n := len(r.track); n > 0 {
		length = time.Duration(float64(r.track[n-1].at) / r.o.Speed)
	}
	return length, len(r.track)
}

// Recorded is the values of numerics in the results that are played, with how
// often each physio id has a value: what a client gets that asks for everything.
func (r *Replay) Recorded() map[uint16]uint64 {
	n := map[uint16]uint64{}
	for _, t := range r.track {
		for _, p := range t.parts {
			for _, v := range p.numerics {
				if v.Value != "" {
					n[v.Physio]++
				}
			}
		}
	}
	return n
}

// Counts is what was done so far.
func (r *Replay) Counts() Counts {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.counts
	c.Numerics, c.WaveBlocks = maps.Clone(c.Numerics), maps.Clone(c.WaveBlocks)
	return c
}

// A recorded PDU of the device.
type recorded struct {
	at  time.Duration
	pdu []byte
}

// recordedPDUs are what the device said, without RS-232 framing.
func recordedPDUs(records []port.Record) []recorded {
	var list []recorded
	var d deframer
	stream := framed(records)
	for _, rec := range records {
		if rec.Direction != port.FromDevice {
			continue
		}
		keep := func(pdu []byte) { list = append(list, recorded{rec.Offset, slices.Clone(pdu)}) }
		if stream {
			d.feed(rec.Data, keep)
		} else {
			keep(rec.Data)
		}
	}
	return list
}

// framed reports whether the records are an RS-232 stream: no datagram begins
// like a frame, and some piece of a stream does.
func framed(records []port.Record) bool {
	return slices.ContainsFunc(records, func(r port.Record) bool {
		return r.Direction == port.FromDevice && len(r.Data) > 2 && r.Data[0] == frameBegin && r.Data[1] == frameProtocol
	})
}

// sessions cuts a recording where the device accepted an association.
func sessions(list []recorded) [][]recorded {
	var cut [][]recorded
	for _, rec := range list {
		if len(rec.pdu) == 0 {
			continue
		}
		if rec.pdu[0] == spduAccept || len(cut) == 0 {
			cut = append(cut, nil)
		}
		cut[len(cut)-1] = append(cut[len(cut)-1], rec)
	}
	return cut
}

// load keeps the session with the most poll results.
func (r *Replay) load(all [][]recorded) error {
	best := -1
	for _, s := range all {
		create, track, singles := takes(s)
		n := len(track)
		for _, list := range singles {
			n += len(list)
		}
		if create == nil || n <= best {
			continue
		}
		best = n
		r.create, r.track, r.singles = create, track, singles
		r.granted = proposal{period: 8000, mtuRx: maxTransferUnit, mtuTx: maxTransferUnit, extended: true, pollExt: defaultPollExtFlags}
		r.accept = acceptPDU(r.granted)
		if g, err := parseAccept(s[0].pdu); err == nil {
			r.accept, r.granted = s[0].pdu, g
		}
		r.lists = recordedLists(s)
	}
	switch {
	case best < 0:
		return errors.New("the recording has no MDS create event, without which no session can begin; record from the start of the association")
	case best == 0:
		return errors.New("the recording has no poll result; record while values are exchanged")
	}
	c := cursor{b: r.create[8:]}
	r.invoke = c.u16()
	r.pace()
	r.scan()
	return nil
}

// takes sorts what a device said in one association: its create event, the
// results of extended polls, and those of single polls by class.
func takes(s []recorded) (create []byte, track []take, singles map[uint16][]take) {
	singles = map[uint16][]take{}
	open := map[[2]uint16][]reply{} // linked parts by invoke id and class
	for _, rec := range s {
		if isCreateEvent(rec.pdu) && create == nil {
			create = rec.pdu
		}
		part, err := parseReply(rec.pdu)
		if err != nil {
			continue
		}
		c := cursor{b: rec.pdu[8:]}
		if part.op == opLinked {
			c.take(2)
		}
		key := [2]uint16{c.u16(), part.class}
		if part.op == opLinked && part.link[0] == linkFirst {
			open[key] = nil
		}
		open[key] = append(open[key], part)
		if part.op == opLinked {
			continue
		}
		t := take{at: rec.at, parts: open[key]}
		delete(open, key)
		if part.extended {
			track = append(track, t)
		} else {
			singles[part.class] = append(singles[part.class], t)
		}
	}
	return create, alsoSingles(track, singles), singles
}

// alsoSingles puts the results of single polls into the track for the classes
// of which there are no others.
func alsoSingles(track []take, singles map[uint16][]take) []take {
	for class, list := range singles {
		if !slices.ContainsFunc(track, func(t take) bool { return t.parts[0].class == class }) {
			track = append(track, list...)
		}
	}
	slices.SortStableFunc(track, func(a, b take) int {
		return cmp.Or(cmp.Compare(a.at, b.at), cmp.Compare(a.parts[0].class, b.parts[0].class))
	})
	return track
}

func isCreateEvent(pdu []byte) bool {
	c := cursor{b: pdu}
	sound := c.u32() == 0xE1000002 && c.u16() == opInvoke
	c.take(4) // length, invoke id
	sound = sound && c.u16() == cmdConfirmedEvent
	c.take(12) // length, MDS, time
	return c.u16() == eventCreate && sound && !c.bad
}

// recordedLists are the priority lists that the device told.
func recordedLists(s []recorded) map[uint16][]byte {
	lists := map[uint16][]byte{}
	for _, rec := range s {
		c := cursor{b: rec.pdu}
		if c.u32() != 0xE1000002 || c.u16() != opResult {
			continue
		}
		c.take(4) // length, invoke id
		if c.u16() != cmdGet {
			continue
		}
		c.take(8) // length, MDS
		c.attributes(func(id uint16, v []byte) { lists[id] = v })
	}
	return lists
}

// pace sets when each take is due after the first poll. A recording without
// times is paced by the relative times in it.
func (r *Replay) pace() {
	timed := slices.ContainsFunc(r.track, func(t take) bool { return t.at != r.track[0].at })
	var at, before time.Duration
	for i := range r.track {
		t := &r.track[i]
		recorded := t.at
		if !timed {
			recorded = time.Duration(t.parts[0].relative-r.track[0].parts[0].relative) * relativeUnit
		}
		switch gap := recorded - before; {
		case i > 0 && gap > 0:
			at += min(gap, r.o.MaxGap)
		}
		before = max(before, recorded)
		t.at = at
	}
}

// scan notes which values are in the takes, dated by the clock of the create event.
func (r *Replay) scan() {
	clock := r.clock()
	known := dictionary{}
	scan := func(list []take) {
		for _, t := range list {
			for i := range t.parts {
				t.parts[i].numerics, t.parts[i].waves = nil, nil
				t.parts[i].scan(known, clock)
			}
		}
	}
	scan(r.track)
	for _, list := range r.singles {
		scan(list)
	}
}

// clock maps relative times to what the recorded clock showed.
func (r *Replay) clock() func(uint32) time.Time {
	var absolute time.Time
	var relative uint32
	c := cursor{b: r.create[8:]}
	c.take(18) // invoke, command, length, MDS, time, event
	c = c.sized()
	c.take(6)
	c.attributes(func(id uint16, v []byte) {
		switch {
		case id == attrTimeAbs:
			absolute, _ = parseBCD(v)
		case id == attrTimeRel && len(v) == 4:
			x := cursor{b: v}
			relative = x.u32()
		}
	})
	return func(at uint32) time.Time {
		if absolute.IsZero() {
			return time.Time{}
		}
		return absolute.Add(time.Duration(int32(at-relative)) * relativeUnit)
	}
}
