package platform

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/bedside-gateway/gatewayd/pcd"
)

// An Answer is how the platform treats a message that it could read.
type Answer struct {
	kind  kind
	code  string        // of kind fixed
	delay time.Duration // of kind late
	times int           // how many messages get it; 0: all that follow
}

type kind uint8

const (
	byRule   kind = iota
	fixed         // a given acknowledgement code
	late          // by rule, after a delay
	never         // stored, never acknowledged
	hangup        // stored, then the connection is closed
	garbage       // stored, answered with bytes that are no MLLP and no HL7
	wrongID       // stored, acknowledged under another control ID
	unframed      // stored, acknowledged without the MLLP frame
	twice         // stored, acknowledged twice
)

var kindNames = map[string]kind{
	"auto": byRule, "never": never, "hangup": hangup, "garbage": garbage, "wrong-id": wrongID, "unframed": unframed, "dup": twice,
}

// AnswersHelp is what ParseAnswers takes, for usage texts.
const AnswersHelp = "auto, AA, CA, AE, CE, AR, CR, late=DURATION, never, hangup, garbage, wrong-id, unframed or dup; " +
	"*N after one limits it to N messages, and a comma begins the next (never*1,auto)"

// ParseAnswers reads a script of answers such as "AE*3,never*1,auto". An answer
// without *N stays for good, so only the last may be without; after the last
// one is used up the platform answers by the rules.
func ParseAnswers(s string) ([]Answer, error) {
	parts := strings.Split(s, ",")
	answers := make([]Answer, 0, len(parts))
	for i, part := range parts {
		a, err := parseAnswer(strings.TrimSpace(part))
		if err != nil {
			return nil, err
		}
		if a.times == 0 && i < len(parts)-1 {
			return nil, fmt.Errorf("answer %q: it stays for ever, so nothing may follow it; limit it by *N", part)
		}
		answers = append(answers, a)
	}
	return answers, nil
}

func parseAnswer(s string) (a Answer, err error) {
	name, count, limited := strings.Cut(s, "*")
	if limited {
		if a.times, err = strconv.Atoi(count); err != nil || a.times < 1 {
			return a, fmt.Errorf("answer %q: *N takes a number from 1 on", s)
		}
	}
	if d, ok := strings.CutPrefix(name, "late="); ok {
		a.kind = late
		if a.delay, err = time.ParseDuration(d); err != nil || a.delay <= 0 {
			return a, fmt.Errorf("answer %q: late= takes a duration such as 500ms", s)
		}
		return a, nil
	}
	switch code := strings.ToUpper(name); code {
	case "AA", "CA", "AE", "CE", "AR", "CR":
		a.kind, a.code = fixed, code
		return a, nil
	}
	k, ok := kindNames[name]
	if !ok {
		return a, fmt.Errorf("answer %q is none: it is %s", s, AnswersHelp)
	}
	a.kind = k
	return a, nil
}

// stores reports whether the message is kept: all but the refusals.
func (a Answer) stores() bool {
	return a.kind != fixed || a.code[1] == 'A'
}

// script hands out answers one by one.
type script struct{ rest []Answer }

func (s *script) next() Answer {
	if len(s.rest) == 0 {
		return Answer{}
	}
	a := s.rest[0]
	if a.times == 0 {
		return a
	}
	if s.rest[0].times--; s.rest[0].times == 0 {
		s.rest = s.rest[1:]
	}
	return a
}

// codeFor is the acknowledgement that a message asks for.
func codeFor(d *Document, verdict byte) string {
	return pcd.AckCode(d.AcceptAck, d.AppAck, verdict)
}
