package tunnel

import (
	"slices"
	"strings"

	"golang.org/x/time/rate"

	"github.com/bedside-gateway/gatewayd/tunnel/inspect"
)

// A Severity is how much a refusal matters to an operator; more is graver.
type Severity uint8

// The severities.
const (
	Passing  Severity = iota // nothing to mend: the gateway stops, or is configured anew
	Trouble                  // a side was not there, too slow, or hung up
	Access                   // a device that may not connect, or not so often
	Settings                 // what the two ends speak, or ask for, does not go together or with the rules
	GateRule                 // the gate has found the platform not to be good
	Foreign                  // the platform in the session is not the one that was judged, or does not show that it is
)

// ranks has the rules of refusals in the order of what they mean, the gravest
// last. A rule that is not listed is one that the gate has refused a platform by,
// a row of the conformance table.
var ranks = [...]struct {
	severity Severity
	rules    []string
}{
	{Passing, []string{"shutdown"}},
	{Trouble, []string{"broken", "silent", "device late", "platform late", "unreachable"}},
	{Access, []string{"limit", "rate", "network"}},
	{Settings, []string{"ended by device", "ended by platform", string(inspect.RuleFormat), string(inspect.RuleServerName), string(inspect.RuleVersion), string(inspect.RuleEarlyData), string(inspect.RuleResumption)}},
	{GateRule, nil},
	{Foreign, []string{string(inspect.RuleKeyExchange), string(inspect.RuleCertificate), string(inspect.RuleSignature)}},
}

// rank is the place of a rule in that order.
func rank(rule string) (severity Severity, within int) {
	for _, r := range ranks {
		if at := slices.Index(r.rules, rule); at >= 0 {
			return r.severity, at
		}
	}
	return GateRule, 0
}

// SeverityOf is the severity of a refusal by a rule, as in Refusal.Rule.
func SeverityOf(rule string) Severity {
	severity, _ := rank(rule)
	return severity
}

// graver compares for slices.SortFunc, the gravest first.
func graver(a, b Refusal) int {
	as, aw := rank(a.Rule)
	bs, bw := rank(b.Rule)
	if as != bs {
		return int(bs) - int(as)
	}
	if aw != bw {
		return bw - aw
	}
	return strings.Compare(a.Rule, b.Rule)
}

// loudness is how many refusals by a rule are logged: whoever can connect can
// cause some, and none of those may hide the others. What shows an attack on a
// session takes a device and a platform; there may be as many as a log can bear.
func loudness(rule string) *rate.Limiter {
	if SeverityOf(rule) == Foreign {
		return rate.NewLimiter(20, 500)
	}
	return rate.NewLimiter(5, 50)
}
