package pcd

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/bedside-gateway/gatewayd/hl7"
	"github.com/bedside-gateway/gatewayd/mdc"
)

// ErrNoDeviceID is the standing problem of a device whose data cannot be sent
// because nothing identifies it (CP-PCD-101: an EUI-64 is mandatory).
var ErrNoDeviceID = errors.New("the device tells no EUI-64 and none is configured for its port: its data are not sent; set device_eui64")

// ErrNoDeviceType is the standing problem of a device whose driver names no MDS
// term of the nomenclature.
var ErrNoDeviceType = errors.New("the driver names no device type (MDS term) for this device: its data are not sent")

// check completes the options and refuses those that no message could be made with.
func (o *Options) check() error {
	defaults(&o.Sender.AcceptAck, "AL")
	defaults(&o.Sender.ApplicationAck, "NE")
	defaults(&o.Sender.ProcessingID, "P")
	if o.Zone == nil {
		o.Zone = time.UTC
	}
	if o.DeviceZone == nil {
		o.DeviceZone = o.Zone
	}
	o.Include, o.Exclude = currentCodes(o.Include), currentCodes(o.Exclude)
	switch {
	case o.Sender.EUI64 == 0:
		return errors.New("the gateway has no EUI-64 (gateway.eui64): MSH-3 and OBR-3 need one")
	case o.Sender.Application == "" || len(o.Sender.Application) > 20:
		return fmt.Errorf("the gateway's name has %d bytes (gateway.name); MSH-3 takes 1 to 20", len(o.Sender.Application))
	case o.IDs == nil:
		return errors.New("there is no source of control IDs")
	case o.Interval < 0:
		return fmt.Errorf("the interval %v is negative", o.Interval)
	case o.Patient > PatientOmit:
		return fmt.Errorf("patient policy %d does not exist", o.Patient)
	case !slices.Contains([]string{"P", "D", "T"}, o.Sender.ProcessingID):
		return fmt.Errorf("processing ID %q is none of P, D and T", o.Sender.ProcessingID)
	}
	if t, ok := mdc.Lookup(o.TimeSync); o.TimeSync != 0 && (!ok || !strings.HasPrefix(t.RefID, "MDC_TIME_SYNC_")) {
		return fmt.Errorf("%d is no term for a way to keep a clock (MDC_TIME_SYNC_…)", o.TimeSync)
	}
	for _, a := range []string{o.Sender.AcceptAck, o.Sender.ApplicationAck} {
		if !slices.Contains([]string{"AL", "NE", "ER", "SU"}, a) {
			return fmt.Errorf("acknowledgement condition %q is none of AL, NE, ER and SU (HL7 table 0155)", a)
		}
	}
	if o.Sender.AcceptAck == "NE" && o.Sender.ApplicationAck == "NE" {
		return errors.New("accept_ack NE with application_ack NE asks for no acknowledgement at all: delivery could not be known")
	}
	return o.checkDesignators()
}

func (o *Options) checkDesignators() error {
	for _, d := range []struct{ name, text string }{
		{"the facility (MSH-4)", o.Sender.Facility},
		{"the receiving application (MSH-5)", o.Sender.ReceivingApplication},
		{"the receiving facility (MSH-6)", o.Sender.ReceivingFacility},
		{"the location's facility (PV1-3.4)", o.Location.Facility},
		{"the assigning authority (PID-3.4)", o.AssigningAuthority},
	} {
		if _, err := appendDesignator(nil, d.text, '^'); err != nil {
			return fmt.Errorf("%s: %w", d.name, err)
		}
	}
	return nil
}

func defaults(s *string, value string) {
	if *s == "" {
		*s = value
	}
}

// currentCodes is the sorted list of the codes to emit for codes.
func currentCodes(codes []mdc.Code) []mdc.Code {
	list := make([]mdc.Code, len(codes))
	for i, c := range codes {
		list[i] = c.Current()
	}
	slices.Sort(list)
	return list
}

// appendDesignator appends an HD: a name, or name^id^type, in which & may
// stand for ^. Its parts are separated by separator in the message.
func appendDesignator(dst []byte, text string, separator byte) ([]byte, error) {
	parts := strings.FieldsFunc(text, func(r rune) bool { return r == '^' || r == '&' })
	if n := strings.Count(text, "^") + strings.Count(text, "&"); text != "" && (n != len(parts)-1 || n == 1 || n > 2) {
		return dst, fmt.Errorf("%q is neither a name nor name^id^type", text)
	}
	if len(parts) > 0 && len(parts[0]) > 20 {
		return dst, fmt.Errorf("%q is longer than 20 bytes", parts[0])
	}
	for i, p := range parts {
		if i > 0 {
			dst = append(dst, separator)
		}
		dst = hl7.AppendEscaped(dst, p)
	}
	return dst, nil
}

// profile is MSH-21 of PCD-01. Receivers key on the object identifier.
const profile = "IHE_PCD_001^IHE PCD^1.3.6.1.4.1.19376.1.6.1.1.1^ISO"

// header is what stands before MSH-7, between MSH-7 and MSH-10, and behind it.
type header struct{ before, after []byte }

func (o *Options) header() header {
	var h header
	h.before = append(h.before, `MSH|^~\&|`...)
	h.before = hl7.AppendEscaped(h.before, o.Sender.Application)
	h.before = append(o.Sender.EUI64.Append(append(h.before, '^')), "^EUI-64"...)
	for _, d := range []string{o.Sender.Facility, o.Sender.ReceivingApplication, o.Sender.ReceivingFacility} {
		h.before, _ = appendDesignator(append(h.before, '|'), d, '^') // checked
	}
	h.before = append(h.before, '|')
	h.after = fmt.Appendf(h.after, "|%s|2.6|||%s|%s||UNICODE UTF-8|||%s\r",
		o.Sender.ProcessingID, o.Sender.AcceptAck, o.Sender.ApplicationAck, profile)
	return h
}
