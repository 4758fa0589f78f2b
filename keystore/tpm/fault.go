package tpm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"slices"
	"syscall"

	"github.com/google/go-tpm/tpm2"
)

// A Fault is a kind of trouble with the TPM that an operator can tell from the
// others. Its text is the name of the condition in status and metrics.
type Fault string

// The faults. Each has its test with its recovery.
const (
	Absent      Fault = "tpm-absent"       // there is none at the address
	Forbidden   Fault = "tpm-forbidden"    // it may not be opened by our user
	Cleared     Fault = "tpm-cleared"      // the same TPM, whose owner was cleared: its keys are gone
	Replaced    Fault = "tpm-replaced"     // another TPM than the keys were made in
	LockedOut   Fault = "tpm-lockout"      // it refuses after too many wrong authorisations
	Busy        Fault = "tpm-busy"         // somebody else holds it, or it never gets to us
	Failing     Fault = "tpm-failing"      // it does not answer, or tells of its own failure
	Full        Fault = "tpm-full"         // no room for a key or a session, with ours flushed
	Foreign     Fault = "key-foreign"      // the key file is of another TPM or parent
	Astray      Fault = "not-for-this-tpm" // what a PKI or a CA handed over is for another TPM; nothing of ours is wrong
	Tampered    Fault = "key-damaged"      // the key file is damaged or was changed
	Refused     Fault = "tpm-policy"       // the key's policy does not allow its use in this state
	OwnerLocked Fault = "tpm-owner-locked" // the owner hierarchy has a password
	Unable      Fault = "tpm-unable"       // it lacks what was asked for
	Other       Fault = "tpm-error"
)

// Anew is what to type where the identity has to begin anew, and AnewWithout
// where the spool's key is gone as well, and with it what waits in the spool.
const (
	Anew        = "systemctl stop gatewayd && gatewayd enroll reset --yes && gatewayd enroll init && systemctl start gatewayd"
	AnewWithout = "systemctl stop gatewayd && gatewayd enroll reset --yes --abandon-spool && gatewayd enroll init && systemctl start gatewayd"
)

const (
	thenCertificate = ", and have a new certificate issued"
	spoolIsLost     = "the messages that wait in the spool are lost with them, for nobody can read them any more"
)

var next = map[Fault]string{
	Absent:      "look whether the TPM is fitted and enabled, and at tpm in [identity]",
	Forbidden:   "give the user of gatewayd access to the device: usermod -aG tss gatewayd, then restart it",
	Cleared:     "its keys are gone for good, and " + spoolIsLost + ": " + AnewWithout + thenCertificate,
	Replaced:    "put the TPM or the board back that the gateway was enrolled with; if it is gone for good its keys are, and " + spoolIsLost + ": " + AnewWithout + thenCertificate,
	LockedOut:   "wait until it recovers by itself, or run tpm2_dictionarylockout --clear-lockout; the gateway's own key is exempt and goes on",
	Busy:        "find the program that holds it (fuser /dev/tpm0), and use /dev/tpmrm0",
	Failing:     "look at tpm in [identity]; if that is right, switch the box off and on again; if it stays, the TPM is broken: exchange the board and enrol it anew",
	Full:        "find the program that leaves keys or sessions in it, or flush them: tpm2_flushcontext -t -l -s",
	Foreign:     "the file was copied from another box, was changed, or is older than the last clearing of this TPM: bring the right one back, or begin anew (the spool stays): " + Anew + thenCertificate,
	Tampered:    "bring the file back from a copy, or begin anew (the spool stays): " + Anew + thenCertificate,
	Astray:      "have it made for this TPM: what the gateway has itself is in order",
	Refused:     "boot a firmware that the manufacturer approved for this key, or install its approvals; the key itself is unharmed",
	OwnerLocked: "take the password off the owner and the endorsement hierarchy (tpm2_changeauth -c owner -p PASSWORD, -c endorsement -p PASSWORD), or give the gateway a TPM of its own; its keys are unharmed",
	Unable:      "where it is the kind of key that it lacks, choose another key_type in [identity]",
	Other:       "report it with the log: journalctl -u gatewayd",
}

// An Error is a TPM that did not do what it was asked for.
type Error struct {
	Fault   Fault
	What    string // that was asked for
	Address string // "": the TPM was not needed to tell
	Err     error
	advice  string // "": what is to do about any such fault
}

func (e *Error) Error() string {
	return fmt.Sprintf("%scould not %s: %s: %v; %s", e.where(), e.What, e.Fault, e.Err, e.Next())
}

// Reason is the error without the fault's name and the next step, for those who
// show these apart.
func (e *Error) Reason() string { return fmt.Sprintf("%scould not %s: %v", e.where(), e.What, e.Err) }

func (e *Error) where() string {
	if e.Address == "" {
		return ""
	}
	return "TPM " + e.Address + ": "
}

func (e *Error) Unwrap() error { return e.Err }

// Next is what to do.
func (e *Error) Next() string {
	if e.advice != "" {
		return e.advice
	}
	return next[e.Fault]
}

// FaultOf is the fault of an error, or "" where it is none of a TPM.
func FaultOf(err error) Fault {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Fault
	}
	return ""
}

var (
	errImpatient = errors.New("others of this gateway used it all the time")
	errClosed    = errors.New("it was closed")
)

// A faultError has its fault already.
type faultError struct {
	fault Fault
	text  string
}

func (e *faultError) Error() string { return e.text }

// An advisedError has its next step already.
type advisedError struct {
	error
	next string
}

func (e *advisedError) Unwrap() error { return e.error }

// advised gives an error a next step of its own, where it is of one of the faults.
func advised(err error, next string, of ...Fault) error {
	if err == nil || !slices.Contains(of, classify(err)) {
		return err
	}
	return &advisedError{err, next}
}

func (t *TPM) fault(what string, err error) error { return faultOf(what, t.address, err) }

func faultOf(what, address string, err error) error {
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	e := &Error{Fault: classify(err), What: what, Address: address, Err: err}
	if a, ok := errors.AsType[*advisedError](err); ok {
		e.advice = a.next
	} else if isGivenUp(err) {
		e.advice = "it was given up from our side, and can be done again"
	}
	return e
}

// classify names the fault of an error.
func classify(err error) Fault {
	if e, ok := errors.AsType[*faultError](err); ok {
		return e.fault
	}
	switch {
	case errors.Is(err, errImpatient), errors.Is(err, syscall.EBUSY), errors.Is(err, syscall.EAGAIN):
		return Busy
	case isGivenUp(err):
		return Other
	case errors.Is(err, fs.ErrPermission):
		return Forbidden
	case isNoHost(err), errors.Is(err, syscall.EISDIR), errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ENXIO), errors.Is(err, syscall.ENODEV),
		errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return Absent
	case isDead(err), errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		return Failing
	case full(err):
		return Full
	}
	return classifyResponse(err)
}

// isGivenUp reports whether nobody wants to know any more.
func isGivenUp(err error) bool { return errors.Is(err, context.Canceled) || errors.Is(err, errClosed) }

// isNoHost reports whether a name leads nowhere.
func isNoHost(err error) bool {
	_, is := errors.AsType[*net.DNSError](err)
	return is
}

// classifyResponse names the fault of a response code (TPM 2.0 Part 2, 6.6.3).
func classifyResponse(err error) Fault {
	switch {
	case errors.Is(err, tpm2.TPMRCLockout):
		return LockedOut
	case errors.Is(err, tpm2.TPMRCRetry), errors.Is(err, tpm2.TPMRCYielded), errors.Is(err, tpm2.TPMRCTesting), errors.Is(err, tpm2.TPMRCNVRate):
		return Busy
	case errors.Is(err, tpm2.TPMRCFailure), errors.Is(err, tpm2.TPMRCInitialize), errors.Is(err, tpm2.TPMRCNeedsTest):
		return Failing
	case errors.Is(err, tpm2.TPMRCPolicyFail), errors.Is(err, tpm2.TPMRCPolicy), errors.Is(err, tpm2.TPMRCPCRChanged):
		return Refused
	case isPassword(err):
		return OwnerLocked
	case errors.Is(err, tpm2.TPMRCCurve), errors.Is(err, tpm2.TPMRCScheme), errors.Is(err, tpm2.TPMRCCommandCode), errors.Is(err, tpm2.TPMRCAsymmetric),
		errors.Is(err, tpm2.TPMRCHierarchy), errors.Is(err, tpm2.TPMRCHash), errors.Is(err, tpm2.TPMRCKeySize):
		return Unable
	}
	return Other
}

func isPassword(err error) bool {
	return errors.Is(err, tpm2.TPMRCBadAuth) || errors.Is(err, tpm2.TPMRCAuthFail) || errors.Is(err, tpm2.TPMRCAuthMissing)
}

// isAnswer reports whether an error says what the TPM said, or what we make of it.
func isAnswer(err error) bool {
	_, code := errors.AsType[tpm2.TPMRC](err)
	_, judged := errors.AsType[*faultError](err)
	return code || judged
}

// isLost reports whether what was loaded through a link is not there any more,
// or not as we think it is: the transport broke, the TPM was started anew or
// emptied by somebody else, or the two ends of the session have different keys,
// which looks like a wrong password.
func isLost(err error) bool {
	if isDead(err) || isPassword(err) || errors.Is(err, tpm2.TPMRCInitialize) || errors.Is(err, tpm2.TPMRCHandle) || errors.Is(err, tpm2.TPMRCContextGap) {
		return true
	}
	rc, _ := errors.AsType[tpm2.TPMRC](err)
	return rc >= tpm2.TPMRCReferenceH0 && rc <= tpm2.TPMRCReferenceS6
}

// full reports whether the TPM has no room for another object or session.
func full(err error) bool {
	return errors.Is(err, tpm2.TPMRCObjectMemory) || errors.Is(err, tpm2.TPMRCSessionMemory) ||
		errors.Is(err, tpm2.TPMRCObjectHandles) || errors.Is(err, tpm2.TPMRCSessionHandles) || errors.Is(err, tpm2.TPMRCMemory)
}
