package demo

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/bedside-gateway/gatewayd/internal/sim/platform"
	"github.com/bedside-gateway/gatewayd/mdc"
)

const (
	heartRate = mdc.Code(147842)
	beats     = mdc.Code(264864)
	systolic  = mdc.Code(150021)
	mmHg      = mdc.Code(266016)
)

var start = time.Date(2026, 1, 2, 3, 4, 0, 0, time.UTC)

func at(seconds float64) time.Time { return start.Add(time.Duration(seconds * float64(time.Second))) }

// run is a bed that sent heart rates of 60, 61, 62… each second from 0 to 19,
// all of which arrived, and a cuff measurement at 5 that stood from then on.
func run() settle {
	s := settle{end: at(20)}
	for i := range 20 {
		t := at(float64(i))
		value := fmt.Sprint(60 + i)
		s.sent = append(s.sent, sent{code: heartRate, unit: beats, value: value, of: t, at: t})
		s.received = append(s.received, received{heartRate, "MDC_DIM_BEAT_PER_MIN", value, t, t.Add(time.Second), t})
		if i >= 5 {
			s.sent = append(s.sent, sent{code: systolic, unit: mmHg, value: "120", of: t, at: t, measured: at(5), episodic: true})
		}
		if i == 5 {
			s.received = append(s.received, received{systolic, "MDC_DIM_MMHG", "120", at(5.2), at(5.2), at(5)})
		}
	}
	return s
}

// drop is the run without what keep does not want.
func drop(list []received, out func(received) bool) []received {
	var kept []received
	for _, r := range list {
		if !out(r) {
			kept = append(kept, r)
		}
	}
	return kept
}

func heart(value string) func(received) bool {
	return func(r received) bool { return r.code == heartRate && r.value == value }
}

func TestARunThatAgreesHasNoDifference(t *testing.T) {
	s := run()
	if a := s.account(); len(a.wrong) > 0 || a.values != 21 || a.standing != 14 || a.cuffs != 1 || a.replaced != 0 {
		t.Errorf("%+v", a)
	}
}

func TestEachWayToDifferIsFound(t *testing.T) {
	for name, row := range map[string]struct {
		change func(*settle)
		want   string
	}{
		"a value that came twice":     {func(s *settle) { s.received = append(s.received[:5:5], s.received[4:]...) }, "came twice"},
		"a value that was never sent": {func(s *settle) { s.received[3].value = "99" }, "never sent"},
		"a value with a digit more":   {func(s *settle) { s.received[3].value = "63.0" }, "never sent"},
		"a value in another unit":     {func(s *settle) { s.received[3].unit = "MDC_DIM_HZ" }, "never sent"},
		"a value of another time": {func(s *settle) {
			s.received[3].from, s.received[3].to = at(6), at(7)
		}, "never sent at that time"},
		"two values out of order": {func(s *settle) {
			s.sent[3].value, s.sent[4].value = s.sent[4].value, s.sent[3].value
		}, "out of order"},
		"two values in a row that are missing": {func(s *settle) {
			s.received = drop(drop(s.received, heart("63")), heart("64"))
		}, "did not arrive"},
		"a cuff measurement that is missing": {func(s *settle) {
			s.received = drop(s.received, func(r received) bool { return r.code == systolic })
		}, "MDC_PRESS_BLD_NONINV_SYS 120, measured at 03:04:05, did not arrive"},
		"a cuff measurement that came twice": {func(s *settle) {
			s.received = append(s.received, received{systolic, "MDC_DIM_MMHG", "120", at(5.2), at(5.2), at(5)})
		}, "arrived 2 times"},
		"a cuff measurement that never was": {func(s *settle) {
			s.received = append(s.received, received{systolic, "MDC_DIM_MMHG", "120", at(12), at(12), at(12)})
		}, "was never measured"},
		"a term that the monitor does not send": {func(s *settle) {
			s.received = append(s.received, received{mdc.Code(150456), "MDC_DIM_PERCENT", "97", at(3), at(3), at(3)})
		}, "the monitor sent none"},
	} {
		t.Run(name, func(t *testing.T) {
			s := run()
			row.change(&s)
			if got := strings.Join(s.account().wrong, "; "); !strings.Contains(got, row.want) {
				t.Errorf("differences %q, want %q", got, row.want)
			}
		})
	}
}

func TestWhatMayBeMissingIsNoDifference(t *testing.T) {
	t.Run("a value that a newer one of the same interval replaced", func(t *testing.T) {
		s := run()
		s.received = drop(s.received, heart("63"))
		if a := s.account(); len(a.wrong) > 0 || a.replaced != 1 {
			t.Errorf("%+v", a)
		}
	})
	t.Run("values of one long interval, when the gateway was held up", func(t *testing.T) {
		s := run()
		s.received = drop(drop(s.received, heart("63")), heart("64"))
		for i := range s.received {
			if s.received[i].value == "65" {
				s.received[i].since = at(2.5)
			}
		}
		if a := s.account(); len(a.wrong) > 0 || a.replaced != 2 {
			t.Errorf("%+v", a)
		}
	})
	t.Run("values that the monitor wrote late", func(t *testing.T) {
		s := run()
		for i := range s.sent {
			s.sent[i].at = s.sent[i].at.Add(3 * time.Second)
		}
		s.end = at(30)
		if a := s.account(); len(a.wrong) > 0 || a.values != 21 {
			t.Errorf("%+v", a)
		}
	})
	t.Run("values right before and in a gap", func(t *testing.T) {
		s := run()
		s.gaps = []gap{{at(8.9), at(12)}}
		s.received = drop(s.received, func(r received) bool {
			return r.code == heartRate && !r.from.Before(at(8)) && r.from.Before(at(12))
		})
		if a := s.account(); len(a.wrong) > 0 || a.unheard != 4 {
			t.Errorf("%+v", a)
		}
	})
	t.Run("values before the session and after its end", func(t *testing.T) {
		s := run()
		s.received = drop(drop(drop(s.received, heart("60")), heart("61")), heart("79"))
		if a := s.account(); len(a.wrong) > 0 || a.unheard != 3 {
			t.Errorf("%+v", a)
		}
	})
	t.Run("a cuff measurement of a gap, that did not stand until the line was back", func(t *testing.T) {
		s := run()
		s.gaps = []gap{{at(4.5), at(30)}}
		s.received = drop(s.received, func(r received) bool { return !r.from.Before(at(4)) })
		if a := s.account(); len(a.wrong) > 0 || a.cuffs != 0 {
			t.Errorf("%+v", a)
		}
	})
	t.Run("a standing cuff measurement that a restarted gateway sends once more", func(t *testing.T) {
		s := run()
		s.restarts = 1
		s.received = append(s.received, received{systolic, "MDC_DIM_MMHG", "120", at(5.2), at(5.2), at(5)})
		if a := s.account(); len(a.wrong) > 0 || a.cuffs != 1 || a.again != 1 {
			t.Errorf("%+v", a)
		}
	})
	t.Run("the times of a recording", func(t *testing.T) {
		s := run()
		s.recorded = true
		for i := range s.received {
			s.received[i].from, s.received[i].to = at(-1000), at(-1000)
		}
		if a := s.account(); len(a.wrong) > 0 {
			t.Errorf("%+v", a)
		}
		s.received[3].value = "99"
		if a := s.account(); len(a.wrong) != 1 {
			t.Errorf("a value that was never recorded: %+v", a)
		}
	})
}

func TestTheLastLineCountsWhatTheEndsSay(t *testing.T) {
	good := func() *balance {
		return &balance{made: 3, delivered: 3, seen: []string{"A", "C"}, stored: map[string]bool{"A": true, "B": true, "C": true},
			counts: platform.Counts{Stored: 3, Again: 1}}
	}
	for name, row := range map[string]struct {
		change           func(*balance)
		acknowledged     int
		lost, duplicated int
		want             string
	}{
		"both ends agree":                                      {func(*balance) {}, 3, 0, 0, ""},
		"a message was kept and never stored":                  {func(b *balance) { b.seen = append(b.seen, "D") }, 3, 1, 0, "never stored by the platform: D"},
		"a message is still in the spool":                      {func(b *balance) { b.left = 1; b.made = 4 }, 3, 1, 0, "still in the spool"},
		"a message was made and is nowhere":                    {func(b *balance) { b.made = 4 }, 3, 1, 0, "made 4 messages; the platform stored 3"},
		"one was acknowledged and not stored":                  {func(b *balance) { b.delivered = 4 }, 3, 0, 0, "4 messages acknowledged"},
		"one content under two control IDs":                    {func(b *balance) { b.counts.Repeated = 1 }, 3, 0, 1, ""},
		"a control ID for two contents":                        {func(b *balance) { b.counts.Conflicts = 1 }, 3, 0, 1, ""},
		"the platform rejected one":                            {func(b *balance) { b.counts.Rejected = 1 }, 3, 0, 0, "rejected 1"},
		"a message breaks the profile":                         {func(b *balance) { b.findings = []string{"OBR[1]-8: x"} }, 3, 0, 0, "OBR[1]-8"},
		"nothing arrived":                                      {func(b *balance) { *b = balance{} }, 0, 0, 0, "no message arrived"},
		"after a restart the gateway's own count says nothing": {func(b *balance) { b.made = 1; b.restarts = 1 }, 3, 0, 0, ""},
	} {
		t.Run(name, func(t *testing.T) {
			b := good()
			row.change(b)
			acknowledged, lost, duplicated, wrong := b.result()
			if acknowledged != row.acknowledged || lost != row.lost || duplicated != row.duplicated {
				t.Errorf("%d acknowledged, %d lost, %d duplicated", acknowledged, lost, duplicated)
			}
			if got := strings.Join(wrong, "; "); !strings.Contains(got, row.want) || row.want == "" && got != "" {
				t.Errorf("wrong: %q, want %q", got, row.want)
			}
		})
	}
}

func TestOnlyTheNumbersOfAMessageAreCompared(t *testing.T) {
	d, err := platform.Read([]byte(strings.Join([]string{
		`MSH|^~\&|GW^0123456789ABCDEF^EUI-64|H|||20260102030405+0000||ORU^R01^ORU_R01|ID1|P|2.6|||AL|NE`,
		`OBR|1||O1|69965^MDS^MDC|||20260102030400+0000|20260102030401.5+0000`,
		`OBX|1|DTM|67975^MDC_ATTR_TIME_ABS^MDC|1.0.0.1|20260102030400+0000||||||R`,
		`OBX|2|NM|147842^MDC_ECG_CARD_BEAT_RATE^MDC|1.1.1.1|72|264864^MDC_DIM_BEAT_PER_MIN^MDC^{beat}/min^{beat}/min^UCUM|||||R`,
		`OBX|3|NM|150021^MDC_PRESS_BLD_NONINV_SYS^MDC|1.1.1.2|120|266016^MDC_DIM_MMHG^MDC^mm[Hg]^mm[Hg]^UCUM|||||R|||20260102030000+0000`,
	}, "\r")))
	if err != nil {
		t.Fatal(err)
	}
	rows, err := rowsOf(d)
	if err != nil {
		t.Fatal(err)
	}
	want := []received{
		{heartRate, "MDC_DIM_BEAT_PER_MIN", "72", start, start.Add(1500 * time.Millisecond), start},
		{systolic, "MDC_DIM_MMHG", "120", start.Add(-4 * time.Minute), start.Add(-4 * time.Minute), start},
	}
	if len(rows) != 2 || !same(rows[0], want[0]) || !same(rows[1], want[1]) {
		t.Errorf("got %+v", rows)
	}
	if newest := latest(rows); !newest.Equal(start) {
		t.Errorf("the newest is of %v", newest)
	}
}

func same(a, b received) bool {
	return a.code == b.code && a.unit == b.unit && a.value == b.value && a.from.Equal(b.from) && a.to.Equal(b.to) && a.since.Equal(b.since)
}
