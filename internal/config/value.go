package config

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/bedside-gateway/gatewayd/drivers/port"
	"github.com/bedside-gateway/gatewayd/keystore/tpm"
	"github.com/bedside-gateway/gatewayd/mdc"
	"github.com/bedside-gateway/gatewayd/observation"
)

// A kind is the kind of value that a key takes: how it is called for people and
// how it gets from the file into the configuration. set returns what is wrong
// and, behind a semicolon where there is one, what to write instead.
type kind struct {
	name string
	set  func(l *loader, v any) error
}

// wrongKind says that a value of another kind was expected.
func wrongKind(v any, want string) error {
	return fmt.Errorf("is %s; write %s", describe(v), want)
}

func describe(v any) string {
	switch v := v.(type) {
	case string:
		return "a text"
	case bool:
		return "true or false"
	case int64:
		return "a number"
	case []any:
		return "a list"
	case other:
		return "a value of kind " + v.kind
	}
	return "a section"
}

// ofText is a kind that is written as a text.
func ofText(name, example string, set func(l *loader, s string) error) kind {
	return kind{name, func(l *loader, v any) error {
		s, ok := v.(string)
		if !ok {
			return wrongKind(v, "it in quotes, such as "+example)
		}
		return set(l, s)
	}}
}

// text is a text of at most limit characters without control characters.
func text(p *string, limit int) kind {
	return ofText(fmt.Sprintf("text of at most %d characters", limit), `"ICU"`, func(_ *loader, s string) error {
		if n := len([]rune(s)); n > limit {
			return fmt.Errorf("has %d characters; write at most %d", n, limit)
		}
		if strings.ContainsFunc(s, unicode.IsControl) {
			return errors.New("holds a control character; write printable text")
		}
		*p = s
		return nil
	})
}

// assigner is a hierarchic designator (HD): a name of at most 20 characters, or
// name^id^type.
func assigner(p *string) kind {
	return ofText("name of at most 20 characters, or name^id^type", `"HOSPITAL_A"`, func(_ *loader, s string) error {
		parts := strings.Split(s, "^")
		if n := len([]rune(parts[0])); n > 20 {
			return fmt.Errorf("has a name of %d characters; write at most 20", n)
		}
		if len(parts) != 1 && len(parts) != 3 || strings.ContainsFunc(s, unicode.IsControl) || strings.ContainsAny(s, `|~\&`) || len(s) > 227 {
			return fmt.Errorf("%.60q is no designator; write a name, or name^id^type such as HOSPITAL_A^1.2.3^ISO", s)
		}
		*p = s
		return nil
	})
}

// label is a name that goes into metrics, logs and file names.
func label(p *string) kind {
	return ofText("name", `"bed-1"`, func(_ *loader, s string) error {
		bad := func(r rune) bool {
			return !strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.", r)
		}
		if s == "" || len(s) > 32 || strings.ContainsFunc(s, bad) {
			return fmt.Errorf("%.40q is no name; write 1 to 32 letters, digits, dots, - or _", s)
		}
		*p = s
		return nil
	})
}

// choice is one of a few words.
func choice(p *string, words ...string) kind {
	return ofText(oneOf(words), strconv.Quote(words[0]), func(_ *loader, s string) error {
		if !slices.Contains(words, s) {
			return fmt.Errorf("%.40q is none of the choices; write %s", s, meant(s, words))
		}
		*p = s
		return nil
	})
}

// meant is the nearest of the names, or all of them.
func meant(word string, names []string) string {
	if n := nearest(word, names); n != "" {
		return strconv.Quote(n)
	}
	return oneOf(names)
}

// optional is a kind whose empty text stands for none.
func optional(k kind) kind {
	return kind{k.name, func(l *loader, v any) error {
		if v == "" {
			return nil
		}
		return k.set(l, v)
	}}
}

func yesNo(p *bool) kind {
	return kind{"true or false", func(_ *loader, v any) error {
		b, ok := v.(bool)
		if !ok {
			return wrongKind(v, "true or false, without quotes")
		}
		*p = b
		return nil
	}}
}

func number(p *int64, low, high int64) kind {
	return kind{fmt.Sprintf("number from %d to %d", low, high), func(_ *loader, v any) error {
		n, ok := v.(int64)
		if !ok {
			return wrongKind(v, "a number, without quotes")
		}
		if n < low || n > high {
			return fmt.Errorf("%d is out of range; write %d to %d", n, low, high)
		}
		*p = n
		return nil
	}}
}

// duration is a time span with its unit. Zero is always told apart by the key:
// it is allowed only where low is 0.
func duration(p *time.Duration, low, high time.Duration) kind {
	return ofText("duration from "+span(low)+" to "+span(high), `"60s"`, func(_ *loader, s string) error {
		d, err := time.ParseDuration(s)
		if err != nil {
			return fmt.Errorf(`%.40q is no duration; write a number with its unit: "500ms", "60s", "5m", "72h"`, s)
		}
		if d < low || d > high {
			return fmt.Errorf("%s is out of range; write %s to %s", span(d), span(low), span(high))
		}
		*p = d
		return nil
	})
}

// span writes a duration without its zero parts: 72h, not 72h0m0s.
func span(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

var sizeUnits = []struct {
	suffix string
	bytes  int64
}{{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"kB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"B", 1}}

// size is a number of bytes with its unit.
func size(p *int64, low, high int64) kind {
	return ofText("size from "+FormatSize(low)+" to "+FormatSize(high), `"64MiB"`, func(_ *loader, s string) error {
		n, ok := parseSize(s)
		if !ok {
			return fmt.Errorf(`%.40q is no size; write a whole number with its unit: "512KiB", "64MiB", "2GiB"`, s)
		}
		if n < low || n > high {
			return fmt.Errorf("%.40q is out of range; write %s to %s", s, FormatSize(low), FormatSize(high))
		}
		*p = n
		return nil
	})
}

func parseSize(s string) (int64, bool) {
	for _, u := range sizeUnits {
		if digits, ok := strings.CutSuffix(s, u.suffix); ok {
			n, err := strconv.ParseInt(strings.TrimSpace(digits), 10, 64)
			if err != nil || n < 0 || n > math.MaxInt64/u.bytes {
				return 0, false
			}
			return n * u.bytes, true
		}
	}
	return 0, false
}

// FormatSize writes a number of bytes with the largest unit that fits.
func FormatSize(n int64) string {
	for i := 2; i >= 0; i-- {
		if u := sizeUnits[i]; n >= u.bytes {
			return strings.TrimSuffix(strconv.FormatFloat(float64(n)/float64(u.bytes), 'f', 1, 64), ".0") + u.suffix
		}
	}
	return fmt.Sprintf("%dB", n)
}

func eui64(p *observation.EUI64) kind {
	return ofText("EUI-64", `"0123456789ABCDEF"`, func(_ *loader, s string) error {
		e, err := observation.ParseEUI64(s)
		if err != nil {
			return fmt.Errorf("%.40q is no EUI-64; write 16 hexadecimal digits that are not all zero", s)
		}
		*p = e
		return nil
	})
}

func zone(p **time.Location) kind {
	return ofText("time zone", `"Europe/Berlin"`, func(_ *loader, s string) error {
		z, err := time.LoadLocation(s)
		if err != nil || s == "" || s == "Local" {
			return fmt.Errorf(`%.40q is no time zone that is known here; write "UTC" or a name such as "Europe/Berlin"`, s)
		}
		*p = z
		return nil
	})
}

var levels = []string{"debug", "info", "warn", "error"}

func level(p *slog.Level) kind {
	return ofText(oneOf(levels), `"info"`, func(_ *loader, s string) error {
		if !slices.Contains(levels, s) {
			return fmt.Errorf("%.40q is no log level; write %s", s, meant(s, levels))
		}
		return p.UnmarshalText([]byte(s))
	})
}

// path is a file name, relative to the configuration file.
func path(p *string) kind {
	return ofText("file name", `"roots.pem"`, func(l *loader, s string) error {
		if strings.ContainsFunc(s, unicode.IsControl) {
			return errors.New("holds a control character; write a file name")
		}
		if s != "" && !filepath.IsAbs(s) {
			s = filepath.Join(l.dir, s)
		}
		*p = s
		return nil
	})
}

// file is a path that has to be there.
func file(p *string) kind {
	k := path(p)
	set := k.set
	k.set = func(l *loader, v any) error {
		if v == "" {
			return errors.New("is empty; write a file name")
		}
		return set(l, v)
	}
	return k
}

// socketPath is a file name that a unix socket can have: sun_path holds 108
// bytes with the closing zero (unix(7)).
func socketPath(p *string) kind {
	k := path(p)
	set := k.set
	k.set = func(l *loader, v any) error {
		if err := set(l, v); err != nil {
			return err
		}
		if len(*p) > 107 {
			return fmt.Errorf("has %d bytes as a full path; a socket path has at most 107", len(*p))
		}
		return nil
	}
	return k
}

func address(p *string) kind {
	return ofText("host:port", `"platform.example:2575"`, func(_ *loader, s string) error {
		a, err := Address(s)
		if err != nil {
			return err
		}
		*p = a
		return nil
	})
}

// tpmAddress is where a TPM is.
func tpmAddress(p *string) kind {
	return ofText("device, unix:/PATH or tcp:HOST:PORT", `"/dev/tpmrm0"`, func(_ *loader, s string) error {
		*p = s
		if err := tpm.ParseAddress(s); err != nil {
			return fmt.Errorf("%.80q is no address of a TPM; write a device such as /dev/tpmrm0", s)
		}
		return nil
	})
}

// hostName is the name of a machine.
func hostName(p *string) kind {
	return ofText("host name", `"gateway-7.ward.example"`, func(_ *loader, s string) error {
		if !validHost(s) {
			return fmt.Errorf("%.80q is no host name; write one such as gateway-7.ward.example", s)
		}
		*p = s
		return nil
	})
}

// estURL is the address of an EST server (RFC 7030, section 3.2.2).
func estURL(p *string) kind {
	return optional(ofText("https URL", `"https://ca.example"`, func(_ *loader, s string) error {
		u, err := url.Parse(s)
		if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
			return fmt.Errorf("%.80q is no address of an EST server; write https://HOST or https://HOST:PORT", s)
		}
		*p = s
		return nil
	}))
}

// listenAddress is an address of this machine, or none for all of them.
func listenAddress(p *string) kind {
	return ofText("host:port or :port", `":2575"`, func(_ *loader, s string) error {
		if service, ok := strings.CutPrefix(s, ":"); ok {
			if n, err := strconv.Atoi(service); err != nil || n < 1 || n > 65535 {
				return fmt.Errorf("%.80q has no valid port; write :port with a port from 1 to 65535", s)
			}
			*p = s
			return nil
		}
		a, err := Address(s)
		if err != nil {
			return err
		}
		*p = a
		return nil
	})
}

// list is a kind that is written as a list of texts. Each is held to one.
func list(name, example string, p *[]string, one func(l *loader, s string) (string, error)) kind {
	return kind{name, func(l *loader, v any) error {
		items, ok := v.([]any)
		if !ok {
			return wrongKind(v, "a list, such as "+example)
		}
		out, wrong := make([]string, 0, len(items)), []error(nil)
		for i, item := range items {
			s, ok := item.(string)
			if !ok {
				wrong = append(wrong, fmt.Errorf("entry %d %w", i+1, wrongKind(item, "it in quotes")))
				continue
			}
			s, err := one(l, s)
			switch {
			case err != nil:
				wrong = append(wrong, fmt.Errorf("entry %d %w", i+1, err))
			case slices.Contains(out, s):
				wrong = append(wrong, fmt.Errorf("entry %d, %.64q, is there twice; take one out", i+1, s))
			}
			out = append(out, s)
		}
		*p = out
		return errors.Join(wrong...)
	}}
}

// single makes one entry of a list with a kind of one text.
func single(of func(*string) kind) func(*loader, string) (string, error) {
	return func(l *loader, s string) (string, error) {
		var out string
		err := of(&out).set(l, s)
		return out, err
	}
}

func paths(p *[]string) kind {
	return list("list of file names", `["device-ca.crl"]`, p, single(file))
}

func labels(p *[]string) kind { return list("list of names", `["platform"]`, p, single(label)) }

// maxDeviceName is ub-common-name of RFC 5280, appendix A.1, in bytes.
const maxDeviceName = 64

// deviceNames is a list of common names of devices. The separator of HL7 is in
// none: the spool keeps devices apart by it.
func deviceNames(p *[]string) kind {
	return list("list of EUI-64 or common names", `["0123456789ABCDEF"]`, p, func(_ *loader, s string) (string, error) {
		if s == "" || len(s) > maxDeviceName || strings.ContainsFunc(s, unicode.IsControl) || strings.Contains(s, "|") {
			return "", fmt.Errorf("%.70q is no name of a device; write the common name of its certificate, 1 to %d bytes without |", s, maxDeviceName)
		}
		return AuthorisedName(s), nil
	})
}

// withNext sets the last part of an error of package drivers or port, which says
// what to write, apart as the next step.
func withNext(err error) error {
	s := err.Error()
	if i := strings.LastIndex(s, ": "); i >= 0 {
		return errors.New(s[:i] + "; " + s[i+2:])
	}
	return err
}

func device(p *string) kind {
	return ofText("device", `"/dev/serial/by-path/…", "tcp://host:port" or "udp://host"`, func(_ *loader, s string) error {
		if _, err := port.ParseSpec(s); err != nil {
			return withNext(err)
		}
		*p = s
		return nil
	})
}

func line(p *port.Line) kind {
	return ofText("line setting", `"115200 8N1"`, func(_ *loader, s string) error {
		if s == "auto" {
			return nil
		}
		parsed, err := port.ParseLine(s)
		if err != nil {
			return withNext(err)
		}
		*p = parsed
		return nil
	})
}

// codes is a list of terms, by name or number.
func codes(p *[]mdc.Code) kind {
	return kind{"list of terms", func(_ *loader, v any) error {
		list, ok := v.([]any)
		if !ok {
			return wrongKind(v, `a list, such as ["MDC_PULS_OXIM_SAT_O2", 147842]`)
		}
		out, wrong := make([]mdc.Code, 0, len(list)), []error(nil)
		for i, item := range list {
			c, err := term(item)
			if err != nil {
				wrong = append(wrong, fmt.Errorf("entry %d %w", i+1, err))
				continue
			}
			out = append(out, c)
		}
		*p = out
		return errors.Join(wrong...)
	}}
}

func term(v any) (mdc.Code, error) {
	switch v := v.(type) {
	case string:
		t, ok := mdc.LookupName(v)
		if !ok {
			return 0, fmt.Errorf("%.60q is no term of the nomenclature; write its MDC_ name exactly, or its number", v)
		}
		return t.Code, nil
	case int64:
		if v < 1<<16 || v > math.MaxUint32 {
			return 0, fmt.Errorf("%d is no term; write the context-free number: partition × 65536 + code", v)
		}
		return mdc.Code(v), nil
	}
	return 0, wrongKind(v, "an MDC_ name in quotes or a number")
}
