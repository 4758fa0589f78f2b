package inspect

import (
	"crypto/tls"
	"fmt"
	"slices"
	"strings"
)

// A Rule is why a session is cut. There are few, as for a metric's label.
type Rule string

// The rules.
const (
	RuleFormat      Rule = "format"       // not TLS as its RFCs describe it, or beyond a limit
	RuleServerName  Rule = "server name"  // the device asks for another name
	RuleVersion     Rule = "version"      // below the floor, or TLS 1.3 where it may not pass
	RuleEarlyData   Rule = "early data"   // data before anything is judged
	RuleResumption  Rule = "resumption"   // no certificate is shown
	RuleKeyExchange Rule = "key exchange" // one that does not show that the key is there
	RuleCertificate Rule = "certificate"  // not one that was judged good
	RuleSignature   Rule = "signature"    // the key of the certificate is not there
)

// Alerts (RFC 8446, section 6; RFC 6066, section 8).
const (
	alertUnexpectedMessage tls.AlertError = 10
	alertRecordOverflow    tls.AlertError = 22
	alertHandshakeFailure  tls.AlertError = 40
	alertBadCertificate    tls.AlertError = 42
	alertIllegalParameter  tls.AlertError = 47
	alertDecode            tls.AlertError = 50
	alertDecrypt           tls.AlertError = 51
	alertProtocolVersion   tls.AlertError = 70
	alertUnrecognizedName  tls.AlertError = 112
)

const (
	alertWarning = 1
	alertFatal   = 2
)

// A CutError is a session that a rule cuts.
type CutError struct {
	Rule        Rule
	Certificate string // the platform's leaf, "" where it is not about it
	Reason      string
	Next        string // what the operator can do
	Err         error  // the cause, where there is one beside Reason
	// Alert is what the device is to be told; Record has it as bytes.
	Alert   tls.AlertError
	version uint16
	before  []byte
}

func cut(rule Rule, alert tls.AlertError, next, format string, args ...any) *CutError {
	return &CutError{Rule: rule, Alert: alert, Next: next, Reason: fmt.Sprintf(format, args...)}
}

func (e *CutError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "cut by the tunnel's rule %q: ", string(e.Rule))
	if e.Certificate != "" {
		fmt.Fprintf(&b, "%s: ", e.Certificate)
	}
	fmt.Fprintf(&b, "%s; %s", e.Reason, e.Next)
	return b.String()
}

func (e *CutError) Unwrap() error { return e.Err }

// Record is the alert for the device, as bytes, behind what it needs to make sense
// of it. The platform is told nothing: it sees the connection close.
func (e *CutError) Record() []byte { return slices.Concat(e.before, Alert(e.version, e.Alert)) }

// An EndError is a handshake that one side gave up with an alert of its own.
// The alert is passed on, then nothing more.
type EndError struct {
	By    string // "device" or "platform"
	Alert tls.AlertError
}

func (e *EndError) Error() string {
	return fmt.Sprintf("the %s ended the handshake: %s (alert %d); see its log for what it has against the other", e.By, strings.TrimPrefix(e.Alert.Error(), "tls: "), uint8(e.Alert))
}

// Alert is a fatal alert in the clear, as a record of a version (RFC 5246,
// section 7.2). 0 and what is above TLS 1.2 are written as TLS 1.2, as RFC 8446
// asks for.
func Alert(version uint16, description tls.AlertError) []byte {
	if version == 0 || version > tls.VersionTLS12 {
		version = tls.VersionTLS12
	}
	return []byte{typeAlert, byte(version >> 8), byte(version), 0, 2, alertFatal, byte(description)}
}
