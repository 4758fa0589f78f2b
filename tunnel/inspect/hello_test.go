package inspect

import (
	"bytes"
	"crypto/tls"
	"errors"
	"slices"
	"strings"
	"testing"
)

func serverName(kind byte, names ...string) []byte {
	var list []byte
	for _, n := range names {
		list = append(list, kind, byte(len(n)>>8), byte(len(n)))
		list = append(list, n...)
	}
	return append([]byte{byte(len(list) >> 8), byte(len(list))}, list...)
}

func TestHellosThatAreRefused(t *testing.T) {
	set := func(id uint16, data ...byte) func(*tape, *Rules) {
		return func(tp *tape, _ *Rules) { tp.hello.set(id, data) }
	}
	wantFlaws(t, theTape, []flaw{
		{"an extension twice", func(tp *tape, _ *Rules) {
			tp.hello.extensions = append(tp.hello.extensions, extension{0x5a5a, nil}, extension{0x5a5a, nil})
		}, func(tp *tape, _ *Rules) {
			tp.hello.extensions = append(tp.hello.extensions, extension{0x5a5a, nil}, extension{0x6a6a, nil})
		}, RuleFormat, "twice"},
		{"two extensions with a name", func(tp *tape, _ *Rules) {
			tp.hello.extensions = append(tp.hello.extensions, extension{extServerName, serverName(0, "other.test")})
		}, asRecorded, RuleFormat, "twice"},
		{"a tail", func(tp *tape, _ *Rules) { tp.hello.tail = []byte{0} }, asRecorded, RuleFormat, "extensions do not parse"},
		{"cut short", func(tp *tape, _ *Rules) { tp.hello.random = tp.hello.random[:3] }, asRecorded, RuleFormat, "does not parse"},
		{"no suites", func(tp *tape, _ *Rules) { tp.hello.suites = nil }, asRecorded, RuleFormat, "fixed part"},
		{"only with compression", func(tp *tape, _ *Rules) { tp.hello.compression = []byte{1} }, func(tp *tape, _ *Rules) { tp.hello.compression = []byte{1, 0} }, RuleFormat, "without compression"},
		{"a session ID of 33 bytes", func(tp *tape, _ *Rules) { tp.hello.session = make([]byte, 33) }, func(tp *tape, _ *Rules) { tp.hello.session = make([]byte, 32) }, RuleFormat, "fixed part"},
		{"a version that is none", func(tp *tape, _ *Rules) { tp.hello.version = 0x0203 }, asRecorded, RuleFormat, "fixed part"},
		{"a continued session", set(extRenegotiation, 2, 1, 2), set(extRenegotiation, 0), RuleFormat, "extension 65281"},
		{"TLS 1.1", func(tp *tape, _ *Rules) {
			tp.hello.version = tls.VersionTLS11
			tp.hello.drop(extSupportedVersions)
		}, func(tp *tape, _ *Rules) { tp.hello.drop(extSupportedVersions) }, RuleVersion, "TLS 1.1 at most"},
		{"TLS 1.1 in a list", set(extSupportedVersions, 4, 3, 2, 3, 1), set(extSupportedVersions, 4, 3, 2, 3, 3), RuleVersion, "TLS 1.1 at most"},
		{"versions that nobody knows", set(extSupportedVersions, 4, 0x7a, 0x7a, 0x7f, 28), set(extSupportedVersions, 6, 0x7a, 0x7a, 0x7f, 28, 3, 3), RuleVersion, "no version that is known"},
		{"TLS 1.3 outside a list, below the floor", func(tp *tape, r *Rules) {
			tp.hello.version, r.MinVersion = tls.VersionTLS13, tls.VersionTLS13
			tp.hello.drop(extSupportedVersions)
		}, func(tp *tape, _ *Rules) {
			tp.hello.version = tls.VersionTLS13
			tp.hello.drop(extSupportedVersions)
		}, RuleVersion, "TLS 1.2 at most"},
		{"a list of no versions", set(extSupportedVersions, 0), asRecorded, RuleFormat, "extension 43"},
		{"a list of a version and a half", set(extSupportedVersions, 3, 3, 3, 3), asRecorded, RuleFormat, "extension 43"},
		{"TLS 1.2 below the floor", func(_ *tape, r *Rules) { r.MinVersion = tls.VersionTLS13 }, func(_ *tape, r *Rules) { r.MinVersion = tls.VersionTLS10 }, RuleVersion, "TLS 1.2 at most"},
		{"early data", set(extEarlyData), asRecorded, RuleEarlyData, "before anything is judged"},
		{"an encrypted hello", set(extEncryptedHello, 0), asRecorded, RuleServerName, "hides the name"},
		{"no name", func(tp *tape, _ *Rules) { tp.hello.drop(extServerName) }, func(tp *tape, r *Rules) { tp.hello.drop(extServerName); r.Nameless = true }, RuleServerName, "no server name"},
		{"another name", set(extServerName, serverName(0, "other.test")...), set(extServerName, serverName(0, "PLATFORM.test")...), RuleServerName, `"other.test"`},
		{"a name below", set(extServerName, serverName(0, "a.platform.test")...), asRecorded, RuleServerName, `"a.platform.test"`},
		{"a name with a dot at its end", set(extServerName, serverName(0, "platform.test.")...), asRecorded, RuleServerName, "dot at its end"},
		{"an IPv4 address for a name", set(extServerName, serverName(0, "192.0.2.1")...), asRecorded, RuleServerName, "an IP address"},
		{"an IPv6 address for a name", set(extServerName, serverName(0, "2001:db8::1")...), asRecorded, RuleServerName, "set the platform's name at the device in place of its address"},
		{"a dot for a name", set(extServerName, serverName(0, ".")...), asRecorded, RuleServerName, "dot at its end"},
		{"two names", set(extServerName, serverName(0, host, "other.test")...), asRecorded, RuleFormat, "the server name (SNI)"},
		{"an empty name", set(extServerName, serverName(0, "")...), asRecorded, RuleFormat, "the server name (SNI)"},
		{"a list of no names", set(extServerName, serverName(0)...), asRecorded, RuleFormat, "the server name (SNI)"},
		{"an extension for a name with nothing in it", set(extServerName), asRecorded, RuleFormat, "the server name (SNI)"},
		{"a name of another kind", set(extServerName, serverName(1, host)...), asRecorded, RuleFormat, "the server name (SNI)"},
		{"a name with a nought", set(extServerName, serverName(0, host+"\x00.other.test")...), asRecorded, RuleFormat, "the server name (SNI)"},
		{"a name with a line break", set(extServerName, serverName(0, "a\nb")...), asRecorded, RuleFormat, "the server name (SNI)"},
		{"a name of 254 bytes", set(extServerName, serverName(0, strings.Repeat("a", 254))...), asRecorded, RuleFormat, "the server name (SNI)"},
		{"a name with a tail", set(extServerName, append(serverName(0, host), 0)...), asRecorded, RuleFormat, "the server name (SNI)"},
		{"protocols that are none", set(extALPN, 0, 1, 0), set(extALPN, 0, 2, 1, 'x'), RuleFormat, "extension 16 "},
		{"a request for staples that is empty", set(extStatusRequest), set(extStatusRequest, 1, 0, 0, 0, 0), RuleFormat, "extension 5 "},
		{"a request for all staples that is cut short", set(extStatusRequestV2, 0, 7, 2, 0, 4, 0), set(extStatusRequestV2, 0, 7, 2, 0, 4, 0, 0, 0, 0), RuleFormat, "extension 17 "},
	})
}

func TestOnlyAHelloAloneIsPassedOn(t *testing.T) {
	tp := theTape(t)
	hello := tp.helloBytes(1 << 14)
	one := msg{messageClientHello, tp.hello.bytes()}
	for name, b := range map[string][]byte{
		"two in one record":        encode([]msg{one, one}, 1<<14),
		"two in two records":       slices.Concat(hello, hello),
		"a piece in its record":    records(append(hello[recordHead:len(hello):len(hello)], 1), 1<<14),
		"another message":          encode([]msg{{messageServerHello, one.body}}, 1<<14),
		"a piece of another":       append(encode([]msg{one}, 1<<14), records([]byte{1}, 1)...),
		"early data behind it":     slices.Concat(hello, []byte{typeApplicationData, 3, 3, 0, 1, 0}),
		"a change of cipher":       slices.Concat(hello, []byte{typeChangeCipherSpec, 3, 3, 0, 1, 1}),
		"an alert in its place":    {typeAlert, 3, 3, 0, 2, 2, 40},
		"a change of cipher first": slices.Concat([]byte{typeChangeCipherSpec, 3, 3, 0, 1, 1}, hello),
	} {
		t.Run(name, func(t *testing.T) {
			f := &fed{i: New(theWard().rules())}
			f.feed(t, f.i.Device, &f.toPlatform, b, 0)
			if name != "a piece of another" { // which is no message yet
				wantCut(t, f.err, RuleFormat)
				wantOver(t, f)
			} else if f.feed(t, f.i.Platform, &f.device, tp.flightBytes(1<<14), 0); f.err != nil {
				wantCut(t, f.err, RuleFormat)
				wantOver(t, f)
			} else {
				t.Error("a piece of a message was lost")
			}
			if name != "a piece of another" && len(f.toPlatform) > 0 {
				t.Errorf("%d bytes passed", len(f.toPlatform))
			}
		})
	}
	for n := range len(hello) {
		i := New(theWard().rules())
		if pass, err := i.Device(hello[:n]); err != nil || len(pass) > 0 || i.Hello() != nil {
			t.Fatalf("%d of %d bytes: %d pass, %v", n, len(hello), len(pass), err)
		}
	}
}

// ---- TLS 1.3

// A step13 is what one side sends in a test of TLS 1.3.
type step13 struct {
	device bool
	b      []byte
	passes bool
}

var spacer = []byte{typeChangeCipherSpec, 3, 3, 0, 1, 1}

// tape13 is one whose platform asks for another hello, and its parts.
func tape13(t testing.TB) (tp *tape, retry, answer *fields) {
	w := theWard()
	device, platform := w.ends(w.ecc)
	device.MaxVersion, device.MinVersion = tls.VersionTLS13, tls.VersionTLS12
	device.CurvePreferences, platform.CurvePreferences = []tls.CurveID{tls.X25519, tls.CurveP384}, []tls.CurveID{tls.CurveP384}
	tp = record(t, device, platform)
	retry = tp.server
	if !bytes.Equal(retry.random, retryRandom[:]) {
		t.Fatal("the platform asks for no other hello")
	}
	answer = fieldsOf(t, false, retry.bytes())
	answer.random = bytes.Repeat([]byte{5}, 32)
	return tp, retry, answer
}

func TestHelloRetryRequest(t *testing.T) {
	one := func(kind byte, f *fields) []byte { return encode([]msg{{kind, f.bytes()}}, 1<<14) }
	changed := func(f *fields, change func(*fields)) *fields {
		g := *f
		g.extensions, g.suites, g.random = slices.Clone(f.extensions), slices.Clone(f.suites), slices.Clone(f.random)
		change(&g)
		return &g
	}
	tp, retryFields, answerFields := tape13(t)
	first, again := one(messageClientHello, tp.hello), one(messageClientHello, changed(tp.hello, func(f *fields) { f.set(44, []byte{0, 1, 7}) }))
	retry, answer := one(messageServerHello, retryFields), one(messageServerHello, answerFields)
	hello := func(change func(*fields)) []byte { return one(messageClientHello, changed(tp.hello, change)) }
	begun := []step13{{true, first, true}, {false, retry, true}}
	for _, test := range []struct {
		name  string
		steps []step13
		rule  Rule // "" is done
	}{
		{"as it should be", append(begun, step13{true, again, true}, step13{false, answer, true}), ""},
		{"with a spacer from each", append(begun, step13{false, spacer, true}, step13{true, spacer, true}, step13{true, again, true}, step13{false, answer, true}), ""},
		{"with a spacer from the platform after the second hello", append(begun, step13{true, again, true}, step13{false, spacer, true}, step13{false, answer, true}), ""},
		{"two spacers from the device", append(begun, step13{true, spacer, true}, step13{true, spacer, false}), RuleFormat},
		{"two spacers from the platform", append(begun, step13{false, spacer, true}, step13{false, spacer, false}), RuleFormat},
		{"a spacer that is none", append(begun, step13{true, []byte{typeChangeCipherSpec, 3, 3, 0, 1, 2}, false}), RuleFormat},
		{"a spacer before it", []step13{{true, first, true}, {false, spacer, false}}, RuleFormat},
		{"asked for twice", append(begun, step13{true, again, true}, step13{false, retry, false}), RuleFormat},
		{"an answer before the second hello", append(begun, step13{false, answer, false}), RuleFormat},
		{"more in its record", []step13{{true, first, true}, {false, encode([]msg{{messageServerHello, retryFields.bytes()}, {8, []byte{0, 0}}}, 1<<14), false}}, RuleFormat},
		{"then TLS 1.2", append(begun, step13{true, again, true}, step13{false, one(messageServerHello, changed(answerFields, func(f *fields) { f.drop(extSupportedVersions) })), false}), RuleFormat},
		{"then a suite that was not offered", append(begun, step13{true, again, true}, step13{false, one(messageServerHello, changed(answerFields, func(f *fields) { f.suites[0] = 0x1304 })), false}), RuleFormat},
		{"another name in the second hello", append(begun, step13{true, hello(func(f *fields) { f.set(0, serverName(0, "other.test")) }), false}), RuleFormat},
		{"no name in the second hello", append(begun, step13{true, hello(func(f *fields) { f.drop(0) }), false}), RuleFormat},
		{"another random in the second hello", append(begun, step13{true, hello(func(f *fields) { f.random[0] ^= 1 }), false}), RuleFormat},
		{"other versions in the second hello", append(begun, step13{true, hello(func(f *fields) { f.set(extSupportedVersions, []byte{2, 3, 3}) }), false}), RuleFormat},
		{"another session in the second hello", append(begun, step13{true, hello(func(f *fields) { f.session = make([]byte, 32) }), false}), RuleFormat},
		{"other protocols in the second hello", append(begun, step13{true, hello(func(f *fields) { f.set(extALPN, []byte{0, 2, 1, 'x'}) }), false}), RuleFormat},
		{"other suites in the second hello", append(begun, step13{true, hello(func(f *fields) { f.suites = append(f.suites, 0x2f) }), false}), RuleFormat},
		{"early data in the second hello", append(begun, step13{true, hello(func(f *fields) { f.set(extEarlyData, nil) }), false}), RuleEarlyData},
		{"application data in place of the second hello", append(begun, step13{true, []byte{typeApplicationData, 3, 3, 0, 1, 0}, false}), RuleFormat},
	} {
		for _, segment := range []int{0, 1} {
			i := New(theWard().rules())
			for n, step := range test.steps {
				f := &fed{i: i}
				take := i.Platform
				if step.device {
					take = i.Device
				}
				f.feed(t, take, &f.device, step.b, segment)
				if step.passes && (f.err != nil || !bytes.Equal(f.device, step.b)) {
					t.Fatalf("%s: step %d: %v, %d of %d bytes pass", test.name, n, f.err, len(f.device), len(step.b))
				}
				if !step.passes {
					wantCut(t, f.err, test.rule)
					wantOver(t, f)
				}
			}
			if v := i.Verdict(); i.Done() != (test.rule == "") || i.Done() && (v.Version != tls.VersionTLS13 || v.Enforced) {
				t.Errorf("%s: done %v: %+v", test.name, i.Done(), v)
			}
		}
	}
}

func TestTLS13PassesFromTheServerHelloOn(t *testing.T) {
	tp, _, answer := tape13(t)
	first, hello := encode([]msg{{messageServerHello, answer.bytes()}}, 1<<14), tp.helloBytes(1<<14)
	encrypted := slices.Concat(spacer, []byte{typeApplicationData, 3, 3, 0x40, 0}, make([]byte, 200<<10))
	rules := theWard().rules()
	for _, s := range shapes[:2] {
		f := &fed{i: New(rules)}
		f.feed(t, f.i.Device, &f.toPlatform, hello, 0)
		f.feed(t, f.i.Platform, &f.device, slices.Concat(first, encrypted), s.segment*97)
		// More than the limit of a flight: it is not held.
		if f.err != nil || !f.i.Done() || !bytes.Equal(f.device, slices.Concat(first, encrypted)) {
			t.Errorf("%s: %v, %d bytes", s.name, f.err, len(f.device))
		}
	}
	for name, b := range map[string][]byte{
		"more in its record": encode([]msg{{messageServerHello, answer.bytes()}, {8, []byte{0, 0}}}, 1<<14),
		"encrypted first":    encrypted,
	} {
		f := &fed{i: New(rules)}
		f.feed(t, f.i.Device, &f.toPlatform, hello, 0)
		f.feed(t, f.i.Platform, &f.device, b, 0)
		if f.err == nil {
			t.Errorf("%s passes", name)
			continue
		}
		wantCut(t, f.err, RuleFormat)
		wantOver(t, f)
	}
	rules.Allow13 = false
	for _, asks := range []bool{false, true} {
		f := &fed{i: New(rules)}
		f.feed(t, f.i.Device, &f.toPlatform, hello, 0)
		if asks {
			first = tp.flightBytes(1 << 14)
		}
		f.feed(t, f.i.Platform, &f.device, first, 0)
		wantCut(t, f.err, RuleVersion)
		wantOver(t, f)
	}
}

func TestAnAlertSpeaksTheDevicesVersion(t *testing.T) {
	for version, want := range map[uint16][2]byte{tls.VersionTLS10: {3, 1}, tls.VersionTLS12: {3, 3}, tls.VersionTLS13: {3, 3}, 0: {3, 3}} {
		if b := Alert(version, alertHandshakeFailure); !bytes.Equal(b, []byte{typeAlert, want[0], want[1], 0, 2, 2, 40}) {
			t.Errorf("%x: % x", version, b)
		}
	}
	tp := theTape(t)
	tp.hello.version = tls.VersionTLS10
	tp.hello.drop(extSupportedVersions)
	c := wantCut(t, tp.run(theWard().rules(), shapes[0]).err, RuleVersion)
	if c.Record()[2] != 1 {
		t.Errorf("% x", c.Record())
	}
	if cause := errors.New("cause"); !errors.Is((&CutError{}).because(cause), cause) {
		t.Error("the cause is lost")
	}
}
