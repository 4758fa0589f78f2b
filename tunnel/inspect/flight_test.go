package inspect

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"github.com/bedside-gateway/gatewayd/tlsoverlay"
	"github.com/bedside-gateway/gatewayd/tlsoverlay/overlaytest"
)

// A flaw is one thing that is wrong with a tape, and the word by which an
// operator knows it. The twin is the same tape, mended in that one thing.
type flaw struct {
	name         string
	broken, twin func(*tape, *Rules)
	rule         Rule
	word         string
}

func asRecorded(*tape, *Rules) {}

// wantFlaws: each flaw is refused in every shape, and nothing of the flight
// passes; its twin passes, in the bytes in which it came.
func wantFlaws(t *testing.T, make func(testing.TB) *tape, flaws []flaw) {
	for _, flaw := range flaws {
		for _, s := range shapes {
			t.Run(flaw.name+", "+s.name, func(t *testing.T) {
				tp, rules := make(t), theWard().rules()
				flaw.broken(tp, &rules)
				f := tp.run(rules, s)
				if cut := wantCut(t, f.err, flaw.rule); !strings.Contains(cut.Error(), flaw.word) {
					t.Errorf("it does not say %q: %v", flaw.word, cut)
				}
				wantOver(t, f)
				tp, rules = make(t), theWard().rules()
				flaw.twin(tp, &rules)
				wantWhole(t, tp, tp.run(rules, s), s)
			})
		}
	}
}

// wantOver: nothing went to the device, nothing goes any more, and nothing is held.
func wantOver(t *testing.T, f *fed) {
	t.Helper()
	if len(f.device) > 0 || f.i.Done() {
		t.Errorf("%d bytes passed to the device; done: %v", len(f.device), f.i.Done())
	}
	for _, take := range []func([]byte) ([]byte, error){f.i.Device, f.i.Platform} {
		if pass, err := take([]byte("more")); len(pass) > 0 || !errors.Is(err, f.err) {
			t.Errorf("afterwards %d bytes pass: %v", len(pass), err)
		}
	}
	if held := cap(f.i.device.raw) + cap(f.i.platform.raw) + cap(f.i.platform.pending); held > 0 {
		t.Errorf("%d bytes are still held", held)
	}
}

// wantWhole: all that came has passed, as it came, and more passes without a copy.
func wantWhole(t *testing.T, tp *tape, f *fed, s shape) {
	t.Helper()
	size := 1 << 14
	if s.records {
		size = 1
	}
	if f.err != nil || !f.i.Done() {
		t.Fatalf("the mended twin: done %v, %v", f.i.Done(), f.err)
	}
	if !bytes.Equal(f.toPlatform, tp.helloBytes(size)) || !bytes.Equal(f.device, tp.flightBytes(size)) {
		t.Error("it passed, changed")
	}
	more := []byte("unseen")
	for _, take := range []func([]byte) ([]byte, error){f.i.Device, f.i.Platform} {
		if pass, err := take(more); err != nil || len(pass) != len(more) || unsafe.SliceData(pass) != unsafe.SliceData(more) {
			t.Errorf("afterwards: %q, %v", pass, err)
		}
	}
}

func TestFlightsOutOfOrderAreCut(t *testing.T) {
	double := func(kind byte) func(*tape, *Rules) {
		return func(tp *tape, _ *Rules) { tp.insert(kind, *tp.message(kind)) }
	}
	without := func(kind byte) func(*tape, *Rules) { return func(tp *tape, _ *Rules) { tp.remove(kind) } }
	add := func(kind byte, body ...byte) func(*tape, *Rules) {
		return func(tp *tape, _ *Rules) { tp.insert(messageServerHelloDone, msg{kind, body}) }
	}
	var flaws []flaw
	for name, broken := range map[string]func(*tape, *Rules){
		"exchange before certificate":     func(tp *tape, _ *Rules) { tp.swap(messageCertificate, messageServerKeyExchange) },
		"request before exchange":         func(tp *tape, _ *Rules) { tp.swap(messageRequest, messageServerKeyExchange) },
		"hello behind the certificate":    func(tp *tape, _ *Rules) { tp.swap(messageServerHello, messageCertificate) },
		"two hellos":                      double(messageServerHello),
		"two chains":                      double(messageCertificate),
		"two exchanges":                   double(messageServerKeyExchange),
		"two requests":                    double(messageRequest),
		"no certificate":                  without(messageCertificate),
		"no exchange":                     without(messageServerKeyExchange),
		"a HelloRequest":                  add(0),
		"a compressed certificate":        func(tp *tape, _ *Rules) { tp.message(messageCertificate).kind = 25 },
		"supplemental data":               add(23, 0, 0, 0),
		"a Finished":                      add(20, make([]byte, 12)...),
		"a ClientHello from the platform": add(messageClientHello, 3, 3),
		"a ticket that nobody asked for":  func(tp *tape, _ *Rules) { tp.insert(messageCertificate, msg{messageNewSessionTicket, nil}) },
		"a message that does not exist":   add(99, 1, 2, 3),
		"a status before the certificate": func(tp *tape, _ *Rules) { tp.insert(messageCertificate, msg{messageStatus, []byte{1, 0, 0, 1, 0}}) },
		"a status behind the exchange":    add(messageStatus, 1, 0, 0, 1, 0),
		"a ServerHello with another's tag": func(tp *tape, _ *Rules) {
			tp.flight[0].kind = messageServerHello
			tp.insert(messageServerHello, msg{6, nil})
		},
	} {
		flaws = append(flaws, flaw{name, broken, asRecorded, RuleFormat, "the platform sent the handshake message"})
	}
	wantFlaws(t, theTape, flaws)
}

// What stands behind the end in the same piece is cut. What comes later cannot
// be told from what a platform may say then, and passes unseen.
func TestWhatStandsBehindTheFlight(t *testing.T) {
	for _, s := range shapes[:3] {
		tp := theTape(t)
		tp.flight = append(tp.flight, msg{0, nil})
		f := tp.run(theWard().rules(), s)
		wantCut(t, f.err, RuleFormat)
		wantOver(t, f)
	}
	for _, behind := range [][]byte{{typeAlert, 3, 3, 0, 2, 1, 0}, {typeApplicationData, 3, 3, 0, 1, 0}, {22}} {
		tp, rules := theTape(t), theWard().rules()
		tp.behindFlight = behind
		f := tp.run(rules, shapes[0])
		if cut := wantCut(t, f.err, RuleFormat); !strings.Contains(cut.Reason, "behind its ServerHelloDone") {
			t.Error(cut)
		}
		wantOver(t, f)
		tp.behindFlight = nil
		f = tp.run(rules, shapes[0])
		wantWhole(t, tp, f, shapes[0])
		if pass, err := f.i.Platform(behind); err != nil || !bytes.Equal(pass, behind) {
			t.Errorf("later: %x, %v", pass, err)
		}
	}
}

func TestOtherRecordsInAFlightAreCut(t *testing.T) {
	// Each stands between two messages, behind the ServerHello and behind the chain.
	for _, content := range []byte{typeChangeCipherSpec, typeApplicationData} {
		for _, behind := range []int{0, 1, 2, 3, 4} {
			for _, s := range shapes[:2] {
				tp, w := theTape(t), theWard()
				other := []byte{content, 3, 3, 0, 1, 1}
				tp.flightBytes(1 << 14)
				b := slices.Concat(encode(tp.flight[:behind], 1<<14), other, encode(tp.flight[behind:], 1<<14))
				f := &fed{i: New(w.rules())}
				f.feed(t, f.i.Device, &f.toPlatform, tp.helloBytes(1<<14), 0)
				f.feed(t, f.i.Platform, &f.device, b, s.segment)
				wantCut(t, f.err, RuleFormat)
				wantOver(t, f)
			}
		}
	}
}

func TestRecordsThatAreNoneAreCut(t *testing.T) {
	long := slices.Concat([]byte{typeHandshake, 3, 3, 0x40, 1}, make([]byte, maxFragment+1))
	for _, test := range []struct {
		name string
		b    []byte
		rule Rule
		word string
	}{
		{"of no length", []byte{typeHandshake, 3, 3, 0, 0}, RuleFormat, "0 bytes"},
		{"longer than 2^14", long, RuleFormat, "16385 bytes"},
		{"the longest that can be declared", []byte{typeHandshake, 3, 3, 0xff, 0xff}, RuleFormat, "65535 bytes"},
		{"of a version that is none", []byte{typeHandshake, 3, 4, 0, 1, 2}, RuleFormat, "no TLS record"},
		{"of another protocol's version", []byte{typeHandshake, 254, 253, 0, 1, 2}, RuleFormat, "no TLS record"},
		{"heartbeat", []byte{24, 3, 3, 0, 1, 2}, RuleFormat, "no TLS record"},
		{"an answer of HTTP", []byte("HTTP/1.1 400 Bad Request\r\n"), RuleFormat, "plain HTTP"},
		{"a request of HTTP", []byte("GET / HTTP/1.1\r\n"), RuleFormat, "plain HTTP"},
		{"MLLP in the clear", []byte("\x0bMSH|^~\\&|"), RuleFormat, "an HL7 message without TLS"},
		{"HL7 in the clear", []byte("MSH|^~\\&|"), RuleFormat, "an HL7 message without TLS"},
		{"another block of MLLP in the clear", []byte("\x0bhello"), RuleFormat, "an MLLP block without TLS"},
		{"a load balancer's header", []byte("PROXY TCP4 192.0.2.1"), RuleFormat, "PROXY protocol"},
		{"SSH", []byte("SSH-2.0-x"), RuleFormat, "SSH"},
		{"a name", []byte("Doe^Jane"), RuleFormat, "no TLS record"},
		{"SSL 2", []byte{0x80, 0x2e, 1, 0, 2, 0}, RuleVersion, "SSL 2"},
		{"an alert of three bytes", []byte{typeAlert, 3, 3, 0, 3, 2, 40, 0}, RuleFormat, ""},
		{"an alert of no level", []byte{typeAlert, 3, 3, 0, 2, 3, 40}, RuleFormat, ""},
		{"an encrypted alert", slices.Concat([]byte{typeAlert, 3, 3, 0, 26}, make([]byte, 26)), RuleFormat, ""},
		{"application data", []byte{typeApplicationData, 3, 3, 0, 1, 2}, RuleFormat, ""},
		{"ChangeCipherSpec", []byte{typeChangeCipherSpec, 3, 3, 0, 1, 1}, RuleFormat, ""},
		{"a message of 16 MB", []byte{typeHandshake, 3, 3, 0, 4, 2, 0xff, 0xff, 0xff}, RuleFormat, "sent a handshake message of 16777219 bytes"},
	} {
		for _, s := range shapes[:2] {
			t.Run(test.name+" "+s.name, func(t *testing.T) {
				tp := theTape(t)
				f := &fed{i: New(theWard().rules())}
				f.feed(t, f.i.Device, &f.toPlatform, test.b, s.segment)
				if cut := wantCut(t, f.err, test.rule); !strings.Contains(cut.Reason, test.word) || !strings.Contains(cut.Reason, "the device sent") {
					t.Errorf("from a device: %v", cut)
				}
				wantOver(t, f)
				if len(f.toPlatform) > 0 {
					t.Error("it passed to the platform")
				}
				f = &fed{i: New(theWard().rules())}
				f.feed(t, f.i.Device, &f.toPlatform, tp.helloBytes(1<<14), 0)
				f.feed(t, f.i.Platform, &f.device, test.b, s.segment)
				if cut := wantCut(t, f.err, test.rule); !strings.Contains(cut.Reason, test.word) || !strings.Contains(cut.Reason, "the platform sent") {
					t.Errorf("from a platform: %v", cut)
				}
				wantOver(t, f)
			})
		}
	}
}

// What is not TLS may be a patient's: the text has the kind, and no byte of it.
func TestNoByteOfWhatIsNoTLSIsTold(t *testing.T) {
	for _, b := range []string{"Doe^Jane", "\x0bDoe^Jane", "GET /Doe^Jane"} {
		_, err := New(theWard().rules()).Device([]byte(b))
		text := wantCut(t, err, RuleFormat).Error()
		for _, form := range []string{"%s", "%x", "% x", "%X"} {
			for _, part := range []string{"Doe^J", "Doe^", "Doe", "oe^"} {
				if strings.Contains(text, fmt.Sprintf(form, part)) {
					t.Errorf("%q: %s", b, text)
				}
			}
		}
	}
}

func TestARecordOfAnotherTypeInTheMiddleOfAMessageIsCut(t *testing.T) {
	for _, other := range [][]byte{{typeAlert, 3, 3, 0, 2, 1, 112}, {typeAlert, 3, 3, 0, 2, 2, 40}, {typeChangeCipherSpec, 3, 3, 0, 1, 1}} {
		tp := theTape(t)
		flight, hello := tp.flightBytes(100), tp.helloBytes(100)
		for _, b := range []struct{ device, platform []byte }{
			{slices.Concat(hello[:105], other, hello[105:]), nil},
			{hello, slices.Concat(flight[:105], other, flight[105:])},
		} {
			f := &fed{i: New(theWard().rules())}
			f.feed(t, f.i.Device, &f.toPlatform, b.device, 0)
			f.feed(t, f.i.Platform, &f.device, b.platform, 0)
			if cut := wantCut(t, f.err, RuleFormat); !strings.Contains(cut.Reason, "in the middle of a handshake message") {
				t.Error(cut)
			}
			wantOver(t, f)
		}
		f := &fed{i: New(theWard().rules())}
		f.feed(t, f.i.Device, &f.toPlatform, hello, 0)
		f.feed(t, f.i.Platform, &f.device, flight, 0)
		if f.err != nil || !f.i.Done() {
			t.Errorf("without it: %v", f.err)
		}
	}
}

func TestOnlyTheKeyOfAJudgedCertificatePasses(t *testing.T) {
	w := theWard()
	stranger := newECC()
	wantFlaws(t, theTape, []flaw{
		{"a certificate that was not judged, with its key", func(tp *tape, _ *Rules) {
			tp.certificates(w.other.cert.Raw)
			tp.resign(w.other.key, 0x0403, tp.params(), tp.hello.random)
		}, func(tp *tape, r *Rules) {
			tp.certificates(w.other.cert.Raw)
			tp.resign(w.other.key, 0x0403, tp.params(), tp.hello.random)
			r.Leaves = append(r.Leaves, w.other.cert.Raw)
		}, RuleCertificate, "not the certificate that the gate has judged"},
		{"a judged certificate behind one that was not", func(tp *tape, _ *Rules) {
			tp.certificates(w.other.cert.Raw, w.ecc.cert.Raw)
			tp.resign(w.other.key, 0x0403, tp.params(), tp.hello.random)
		}, func(tp *tape, _ *Rules) { tp.certificates(w.ecc.cert.Raw, w.other.cert.Raw) }, RuleCertificate, "1 of 2 sent"},
		{"a copy of the certificate without its key", func(tp *tape, _ *Rules) { tp.resign(stranger, 0x0403, tp.params(), tp.hello.random) },
			func(tp *tape, _ *Rules) { tp.resign(w.ecc.key, 0x0403, tp.params(), tp.hello.random) }, RuleSignature, "not signed with its key"},
		{"a signature over another device's random", func(tp *tape, _ *Rules) { tp.resign(w.ecc.key, 0x0403, tp.params(), make([]byte, 32)) }, asRecorded, RuleSignature, "not signed with its key"},
		{"a signature of an earlier session", func(tp *tape, _ *Rules) {
			tp.message(messageServerKeyExchange).body = theTape(tp.t).message(messageServerKeyExchange).body
		}, asRecorded, RuleSignature, "not signed with its key"},
		{"another random of the platform than that signed", func(tp *tape, _ *Rules) { tp.server.random = bytes.Repeat([]byte{7}, 32) }, asRecorded, RuleSignature, "not signed with its key"},
		{"another point than that signed", func(tp *tape, _ *Rules) { tp.message(messageServerKeyExchange).body[10] ^= 1 }, asRecorded, RuleSignature, "not signed with its key"},
		{"no signature", func(tp *tape, _ *Rules) {
			tp.message(messageServerKeyExchange).body = append(tp.params(), 4, 3, 0, 0)
		}, asRecorded, RuleSignature, "not signed with its key"},
		{"SHA-1", func(tp *tape, _ *Rules) { tp.resign(w.ecc.key, 0x0203, tp.params(), tp.hello.random) },
			func(tp *tape, _ *Rules) { tp.resign(w.ecc.key, 0x0503, tp.params(), tp.hello.random) }, RuleSignature, "can be forged"},
		{"a scheme that does not exist", func(tp *tape, _ *Rules) { tp.resign(w.ecc.key, 0x0909, tp.params(), tp.hello.random) }, asRecorded, RuleSignature, "not understood"},
		{"the scheme of another kind of key", func(tp *tape, _ *Rules) { tp.resign(w.ecc.key, 0x0401, tp.params(), tp.hello.random) }, asRecorded, RuleSignature, "does not go with the suite"},
		{"a curve that is too small", func(tp *tape, _ *Rules) {
			p := tp.params()
			p[1], p[2] = 0, 19 // secp192r1
			tp.resign(w.ecc.key, 0x0403, p, tp.hello.random)
		}, func(tp *tape, _ *Rules) {
			p := tp.params()
			p[1], p[2] = 0, 23
			tp.resign(w.ecc.key, 0x0403, p, tp.hello.random)
		}, RuleKeyExchange, "the curve 19"},
		{"a certificate that is none", func(tp *tape, _ *Rules) { tp.certificates([]byte("certificate")) }, asRecorded, RuleCertificate, "does not parse"},
		{"a certificate that is none, and is known", func(tp *tape, r *Rules) {
			tp.certificates([]byte("certificate"))
			r.Leaves = [][]byte{[]byte("certificate")}
		}, asRecorded, RuleCertificate, "does not parse"},
	})
}

func TestSignaturesByRSA(t *testing.T) {
	w := theWard()
	wantFlaws(t, rsaTape, []flaw{
		{"a copy of the certificate without its key", func(tp *tape, _ *Rules) { tp.resign(newRSA(tp.t), 0x0804, tp.params(), tp.hello.random) },
			func(tp *tape, _ *Rules) { tp.resign(w.rsa.key, 0x0804, tp.params(), tp.hello.random) }, RuleSignature, "not signed with its key"},
		{"PSS told as PKCS 1", func(tp *tape, _ *Rules) {
			tp.resign(w.rsa.key, 0x0804, tp.params(), tp.hello.random)
			b := tp.message(messageServerKeyExchange).body
			copy(b[len(tp.params()):], []byte{4, 1})
		}, func(tp *tape, _ *Rules) { tp.resign(w.rsa.key, 0x0401, tp.params(), tp.hello.random) }, RuleSignature, "not signed with its key"},
		{"SHA-1", func(tp *tape, _ *Rules) { tp.resign(w.rsa.key, 0x0201, tp.params(), tp.hello.random) },
			func(tp *tape, _ *Rules) { tp.resign(w.rsa.key, 0x0501, tp.params(), tp.hello.random) }, RuleSignature, "can be forged"},
		{"MD5", func(tp *tape, _ *Rules) { tp.resign(w.rsa.key, 0x0101, tp.params(), tp.hello.random) }, asRecorded, RuleSignature, "can be forged"},
	})
}

func newRSA(t testing.TB) *rsa.PrivateKey {
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestGroupsOfLessThan2048BitsAreCut(t *testing.T) {
	overlaytest.Need(t)
	w := theWard()
	dhe := func(t testing.TB) *tape {
		return record(t, firstOf(w.withSuite(t, dheSuite, w.rsa)), secondOf(w.withSuite(t, dheSuite, w.rsa)))
	}
	group := func(p []byte) func(*tape, *Rules) {
		return func(tp *tape, _ *Rules) {
			params := slices.Concat([]byte{byte(len(p) >> 8), byte(len(p))}, p, []byte{0, 1, 2, 0, 1, 9})
			tp.resign(w.rsa.key, 0x0804, params, tp.hello.random)
		}
	}
	exact := append([]byte{0x80}, make([]byte, 255)...)
	wantFlaws(t, dhe, []flaw{
		{"1024 bits", group(exact[:128]), group(exact), RuleKeyExchange, "less than 2048 bits"},
		{"2047 bits", group(append([]byte{0x7f}, exact[1:]...)), group(exact), RuleKeyExchange, "less than 2048 bits"},
		{"1024 bits behind noughts", group(append(make([]byte, 200), exact[:128]...)), group(append([]byte{0, 0}, exact...)), RuleKeyExchange, "less than 2048 bits"},
		{"nothing", group(nil), asRecorded, RuleKeyExchange, "less than 2048 bits"},
	})
}

const dheSuite = tlsoverlay.DHE_RSA_AES_256_GCM_SHA384

// The twin offers and gets the suite that was recorded.
func TestKeyExchangesThatShowNoKeyAreCut(t *testing.T) {
	var flaws []flaw
	for suite, name := range map[uint16]string{
		0x002f: "static RSA", 0x009d: "static RSA GCM", 0x0034: "anonymous DH", 0xc018: "anonymous ECDH", 0x00a8: "PSK", 0xc035: "ECDHE_PSK", 0x00aa: "DHE_PSK",
		0xc005: "static ECDH", 0xc01d: "SRP", 0x0038: "DHE_DSS", 0xc006: "NULL", 0xc007: "RC4", 0xc008: "3DES", 0x0014: "export", 0x00ff: "the renegotiation signal",
		0x1301: "one of TLS 1.3", 0x0a0a: "a random one",
	} {
		flaws = append(flaws, flaw{name, func(tp *tape, _ *Rules) {
			tp.hello.suites = append(tp.hello.suites, suite)
			tp.server.suites[0] = suite
		}, func(tp *tape, _ *Rules) { tp.hello.suites = append(tp.hello.suites, suite) }, RuleKeyExchange, "the platform chose the suite"})
	}
	wantFlaws(t, theTape, flaws)
}

func TestServerHellosThatAreRefused(t *testing.T) {
	wantFlaws(t, theTape, []flaw{
		{"a suite that was not offered", func(tp *tape, _ *Rules) { tp.hello.suites = []uint16{0xc02c} }, asRecorded, RuleFormat, "which the device does not offer"},
		{"compression", func(tp *tape, _ *Rules) { tp.server.compression = []byte{1} }, asRecorded, RuleFormat, "it compresses"},
		{"a raw public key", func(tp *tape, _ *Rules) { tp.server.set(20, []byte{2}) }, func(tp *tape, _ *Rules) { tp.server.set(20, []byte{0}) }, RuleCertificate, "RFC 7250"},
		{"an OpenPGP key", func(tp *tape, _ *Rules) { tp.server.set(20, []byte{1}) }, func(tp *tape, _ *Rules) { tp.server.set(19, []byte{1}) }, RuleCertificate, "RFC 7250"},
		{"a cached certificate", func(tp *tape, _ *Rules) { tp.server.set(25, []byte{1}) }, func(tp *tape, _ *Rules) { tp.server.set(24, []byte{1}) }, RuleCertificate, "RFC 7924"},
		{"an extension twice", func(tp *tape, _ *Rules) {
			tp.server.extensions = append(tp.server.extensions, extension{9, nil}, extension{9, nil})
		}, func(tp *tape, _ *Rules) {
			tp.server.extensions = append(tp.server.extensions, extension{9, nil}, extension{10, nil})
		}, RuleFormat, "twice"},
		{"a tail", func(tp *tape, _ *Rules) { tp.server.tail = []byte{0} }, asRecorded, RuleFormat, "do not parse"},
		{"a session ID of 33 bytes", func(tp *tape, _ *Rules) { tp.server.session = make([]byte, 33) }, func(tp *tape, _ *Rules) { tp.server.session = make([]byte, 32) }, RuleFormat, "fixed part"},
		{"TLS 1.2 told as TLS 1.3 would", func(tp *tape, _ *Rules) { tp.server.set(43, []byte{3, 3}) }, asRecorded, RuleFormat, "extension 43"},
		{"TLS 1.3 that was not offered", func(tp *tape, _ *Rules) { tp.server.set(43, []byte{3, 4}) }, asRecorded, RuleVersion, "does not offer"},
		{"TLS 1.1", func(tp *tape, _ *Rules) { tp.server.version = tls.VersionTLS11 }, asRecorded, RuleVersion, "TLS 1.1"},
		{"a version to come", func(tp *tape, _ *Rules) { tp.server.version = 0x0305 }, asRecorded, RuleVersion, "0x0305"},
		{"TLS 1.2 to a device of TLS 1.3", func(tp *tape, _ *Rules) { tp.hello.set(43, []byte{2, 3, 4}) }, func(tp *tape, _ *Rules) {
			tp.both()
			clear(tp.server.random[24:]) // the mark of a platform that could do better
			tp.resign(tp.key, 0x0403, tp.params(), tp.hello.random)
		}, RuleVersion, "does not offer"},
		{"TLS 1.2 as a HelloRetryRequest", func(tp *tape, _ *Rules) { tp.server.random = retryRandom[:] }, asRecorded, RuleFormat, "HelloRetryRequest"},
		{"a downgrade", func(tp *tape, _ *Rules) {
			tp.both()
			copy(tp.server.random[24:], downgraded)
			tp.resign(tp.key, 0x0403, tp.params(), tp.hello.random)
		}, func(tp *tape, _ *Rules) {
			copy(tp.server.random[24:], downgraded) // the device does not speak TLS 1.3
			tp.resign(tp.key, 0x0403, tp.params(), tp.hello.random)
		}, RuleVersion, "something between them"},
	})
}

func TestMessagesThatDoNotParseAreCut(t *testing.T) {
	w := theWard()
	body := func(kind byte, change func([]byte) []byte) func(*tape, *Rules) {
		return func(tp *tape, _ *Rules) { m := tp.message(kind); m.body = change(bytes.Clone(m.body)) }
	}
	tail := func(b []byte) []byte { return append(b, 0) }
	short := func(b []byte) []byte { return b[:len(b)-1] }
	none := func([]byte) []byte { return nil }
	var flaws []flaw
	for name, broken := range map[string]func(*tape, *Rules){
		"a chain with a tail":             body(messageCertificate, tail),
		"a chain that is cut short":       body(messageCertificate, short),
		"a chain that is not there":       body(messageCertificate, none),
		"a chain of none":                 func(tp *tape, _ *Rules) { tp.certificates() },
		"a chain with an empty one":       func(tp *tape, _ *Rules) { tp.certificates(w.ecc.cert.Raw, nil) },
		"a chain of seventeen":            func(tp *tape, _ *Rules) { tp.certificates(slices.Repeat([][]byte{w.ecc.cert.Raw}, 17)...) },
		"an exchange with a tail":         body(messageServerKeyExchange, tail),
		"an exchange that is cut short":   body(messageServerKeyExchange, short),
		"an exchange that is not there":   body(messageServerKeyExchange, none),
		"an explicit curve":               body(messageServerKeyExchange, func(b []byte) []byte { b[0] = 1; return b }),
		"a point of no length":            body(messageServerKeyExchange, func(b []byte) []byte { return slices.Concat(b[:3], []byte{0}, b[69:]) }),
		"a request with a tail":           body(messageRequest, tail),
		"a request that is cut short":     body(messageRequest, short),
		"an end with something in it":     body(messageServerHelloDone, tail),
		"a status that is not there":      func(tp *tape, _ *Rules) { tp.insert(messageServerKeyExchange, msg{messageStatus, nil}) },
		"a status of no kind":             func(tp *tape, _ *Rules) { tp.staple(3, []byte{0, 0, 1, 5}) },
		"a status of no length":           func(tp *tape, _ *Rules) { tp.staple(1, []byte{0, 0, 0}) },
		"a status with a tail":            func(tp *tape, _ *Rules) { tp.staple(1, []byte{0, 0, 1, 5, 6}) },
		"statuses of no length":           func(tp *tape, _ *Rules) { tp.staple(2, []byte{0, 0, 0}) },
		"statuses that are cut short":     func(tp *tape, _ *Rules) { tp.staple(2, []byte{0, 0, 5, 0, 0, 3, 1, 2}) },
		"more statuses than certificates": func(tp *tape, _ *Rules) { tp.staple(2, list24([][]byte{{1}, {2}})) },
	} {
		flaws = append(flaws, flaw{name, broken, asRecorded, RuleFormat, "which does not parse"})
	}
	wantFlaws(t, theTape, append(flaws,
		flaw{"two statuses", func(tp *tape, _ *Rules) {
			tp.staple(1, []byte{0, 0, 1, 5})
			tp.staple(1, []byte{0, 0, 1, 5})
		}, func(tp *tape, _ *Rules) { tp.staple(1, []byte{0, 0, 1, 5}) }, RuleFormat, "does not belong there"},
		flaw{"seventeen in a chain that is good", func(tp *tape, _ *Rules) { tp.certificates(slices.Repeat([][]byte{w.ecc.cert.Raw}, 17)...) },
			func(tp *tape, _ *Rules) { tp.certificates(slices.Repeat([][]byte{w.ecc.cert.Raw}, 16)...) }, RuleFormat, "does not parse"},
		flaw{"as many statuses as certificates", func(tp *tape, _ *Rules) { tp.staple(2, list24([][]byte{{1}, nil})) },
			func(tp *tape, _ *Rules) { tp.staple(2, list24([][]byte{nil})) }, RuleFormat, "does not parse"}))
}

func TestAPlatformThatResumesIsCutUnlessItMay(t *testing.T) {
	session := bytes.Repeat([]byte{9}, 32)
	echo := func(tp *tape) {
		tp.hello.session, tp.server.session = session, session
		tp.flight, tp.behindFlight = tp.flight[:1], []byte{typeChangeCipherSpec, 3, 3, 0, 1, 1}
	}
	ticket := func(tp *tape) {
		tp.hello.set(extSessionTicket, []byte("ticket"))
		tp.hello.session, tp.server.session = nil, nil
		tp.flight, tp.behindFlight = tp.flight[:1], []byte{typeChangeCipherSpec, 3, 3, 0, 1, 1}
	}
	renewed := func(tp *tape) {
		ticket(tp)
		tp.flight = append(tp.flight, msg{messageNewSessionTicket, []byte{0, 0, 0, 9, 0, 1, 7}})
	}
	may := func(change func(*tape)) func(*tape, *Rules) {
		return func(tp *tape, r *Rules) { change(tp); r.Resumption = true }
	}
	not := func(change func(*tape)) func(*tape, *Rules) { return func(tp *tape, _ *Rules) { change(tp) } }
	const word = "resumes an earlier session"
	wantFlaws(t, theTape, []flaw{
		{"by its ID", not(echo), may(echo), RuleResumption, word},
		{"by a ticket, with an ID", not(func(tp *tape) { tp.hello.set(extSessionTicket, []byte("ticket")); echo(tp) }), may(echo), RuleResumption, word},
		{"by a ticket without an ID", not(ticket), may(ticket), RuleResumption, word},
		{"by a ticket that is renewed", not(renewed), may(renewed), RuleResumption, word},
		{"by an echo with a whole flight behind it", not(func(tp *tape) { tp.hello.session, tp.server.session = session, session }),
			not(func(tp *tape) { tp.hello.session, tp.server.session = session, bytes.Repeat([]byte{8}, 32) }), RuleResumption, word},
		{"by an echo that may, with a whole flight behind it", may(func(tp *tape) { tp.hello.session, tp.server.session = session, session }), may(echo), RuleFormat, "in a session that it resumes"},
		{"by a ticket that was not there", may(func(tp *tape) { ticket(tp); tp.hello.drop(extSessionTicket) }), may(ticket), RuleFormat, "record of type 20"},
		{"by an empty ticket", may(func(tp *tape) { ticket(tp); tp.hello.set(extSessionTicket, nil) }), may(ticket), RuleFormat, "record of type 20"},
		{"by static RSA", may(func(tp *tape) { echo(tp); tp.hello.suites = append(tp.hello.suites, 0x2f); tp.server.suites[0] = 0x2f }), may(echo), RuleKeyExchange, "suite"},
		{"with application data", may(func(tp *tape) { echo(tp); tp.behindFlight[0] = typeApplicationData }), may(echo), RuleFormat, "record of type 23"},
	})
}

// A device forgets a session at a fatal alert only once it has seen it resumed.
func TestARefusedResumptionComesWithItsServerHelloAndNoMore(t *testing.T) {
	session := bytes.Repeat([]byte{9}, 32)
	for _, s := range shapes {
		tp := theTape(t)
		tp.hello.session, tp.server.session = session, session
		f := tp.run(theWard().rules(), s)
		c := wantCut(t, f.err, RuleResumption)
		want := append(encode(tp.flight[:1], 1<<14), Alert(tls.VersionTLS12, alertHandshakeFailure)...)
		if !bytes.Equal(c.Record(), want) {
			t.Errorf("the device is told % x", c.Record())
		}
	}
	// One that fits into no record is left out.
	tp, rules := theTape(t), theWard().rules()
	tp.hello.session, tp.server.session = session, session
	tp.server.set(0x5a5a, make([]byte, maxFragment))
	if c := wantCut(t, tp.run(rules, shapes[0]).err, RuleResumption); len(c.Record()) != recordHead+alertSize {
		t.Errorf("%d bytes", len(c.Record()))
	}
}

func TestAlertsOfThePlatform(t *testing.T) {
	fatal, closing, remark := []byte{typeAlert, 3, 3, 0, 2, 2, 40}, []byte{typeAlert, 3, 3, 0, 2, 1, 0}, []byte{typeAlert, 3, 3, 0, 2, 1, 112}
	known := []byte{typeAlert, 3, 3, 0, 2, 2, 112} // not as a warning
	for _, s := range shapes[:2] {
		for _, alert := range [][]byte{fatal, closing, known} {
			for behind := range 5 {
				t.Run(fmt.Sprintf("alert %d behind %d messages, %s", alert[6], behind, s.name), func(t *testing.T) {
					tp := theTape(t)
					tp.flightBytes(1 << 14)
					tp.flight, tp.behindFlight = tp.flight[:behind], alert
					f := &fed{i: New(theWard().rules())}
					f.feed(t, f.i.Device, &f.toPlatform, tp.helloBytes(1<<14), 0)
					f.feed(t, f.i.Platform, &f.device, append(encode(tp.flight, 1<<14), alert...), s.segment)
					end, ok := errors.AsType[*EndError](f.err)
					if !ok || end.By != "platform" || byte(end.Alert) != alert[6] || !strings.Contains(end.Error(), "the platform ended the handshake") {
						t.Fatal(f.err)
					}
					// The alert alone: what was held was not judged.
					if !bytes.Equal(f.device, alert) {
						t.Errorf("% x passed", f.device)
					}
					f.device = nil
					wantOver(t, f)
				})
			}
		}
		// RFC 6066, section 3: a warning that the handshake goes on after.
		tp := theTape(t)
		tp.beforeFlight = remark
		wantWhole(t, tp, tp.run(theWard().rules(), s), s)
	}
	i := New(theWard().rules())
	if pass, err := i.Platform(remark); !bytes.Equal(pass, remark) || !isEnd(err) {
		t.Errorf("before the hello: % x, %v", pass, err)
	}
}

func TestAPlatformThatSpeaksFirstIsCut(t *testing.T) {
	tp := theTape(t)
	i := New(theWard().rules())
	pass, err := i.Platform(tp.flightBytes(1 << 14))
	if cut := wantCut(t, err, RuleFormat); len(pass) > 0 || !strings.Contains(cut.Reason, "before the device has said") {
		t.Error(cut)
	}
}

func TestNothingOfTheDevicePassesBeforeTheFlightIsJudged(t *testing.T) {
	alert := []byte{typeAlert, 3, 3, 0, 2, 2, 42}
	for _, early := range [][]byte{{typeApplicationData, 3, 3, 0, 1, 9}, {typeChangeCipherSpec, 3, 3, 0, 1, 1}, {typeHandshake, 3, 3, 0, 5, 16, 0, 0, 1, 0}, theTape(t).helloBytes(1 << 14), alert} {
		for cut := range 3 { // how much of the flight has come
			tp := theTape(t)
			flight := tp.flightBytes(1 << 14)
			f := &fed{i: New(theWard().rules())}
			f.feed(t, f.i.Device, &f.toPlatform, tp.helloBytes(1<<14), 0)
			f.feed(t, f.i.Platform, &f.device, flight[:cut*len(flight)/3], 1)
			hello := len(f.toPlatform)
			f.feed(t, f.i.Device, &f.toPlatform, early, 0)
			passed := f.toPlatform[hello:]
			if end, ok := errors.AsType[*EndError](f.err); ok && bytes.Equal(early, alert) {
				if end.By != "device" || !bytes.Equal(passed, alert) {
					t.Errorf("%v, % x", end, passed)
				}
			} else if wantCut(t, f.err, RuleFormat); len(passed) > 0 {
				t.Errorf("% x passed", passed)
			}
			wantOver(t, f)
		}
	}
}

// A part of a record that waits may not be lost, nor pass: the session is cut.
func TestAPieceFromTheDeviceBeforeTheJudgementIsNotLost(t *testing.T) {
	tp := theTape(t)
	f := &fed{i: New(theWard().rules())}
	f.feed(t, f.i.Device, &f.toPlatform, tp.helloBytes(1<<14), 0)
	f.feed(t, f.i.Device, &f.toPlatform, []byte{typeApplicationData, 3}, 0)
	f.feed(t, f.i.Platform, &f.device, tp.flightBytes(1<<14), 0)
	wantCut(t, f.err, RuleFormat)
	wantOver(t, f)
}

func TestTheGateMaySpeakBetweenHelloAndAnswer(t *testing.T) {
	w := theWard()
	tp := theTape(t)
	rules := w.rules()
	rules.Leaves = nil
	f := &fed{i: New(rules)}
	if f.i.Hello() != nil {
		t.Error("a hello before there is one")
	}
	f.feed(t, f.i.Device, &f.toPlatform, tp.helloBytes(1<<14), 0)
	if h := f.i.Hello(); h == nil || h.ServerName != host {
		t.Fatalf("%+v", h)
	}
	f.i.Expect([][]byte{w.ecc.cert.Raw})
	f.feed(t, f.i.Platform, &f.device, tp.flightBytes(1<<14), 0)
	wantWhole(t, tp, f, shapes[0])
}

func TestWhatIsHeldHasALimit(t *testing.T) {
	for _, s := range shapes {
		size := 1 << 14
		if s.records {
			size = 1
		}
		tp, rules := theTape(t), theWard().rules()
		rules.MaxHello, rules.MaxFlight = len(tp.helloBytes(size)), len(tp.flightBytes(size))
		wantWhole(t, tp, tp.run(rules, s), s)
		rules.MaxFlight--
		f := tp.run(rules, s)
		wantCut(t, f.err, RuleFormat)
		wantOver(t, f)
		rules.MaxHello--
		f = tp.run(rules, s)
		wantCut(t, f.err, RuleFormat)
		if len(f.toPlatform) > 0 {
			t.Error("a hello beyond the limit passed")
		}
	}
}

// A flood of what is well formed and never ends: no more is held than the limit
// and what came in last.
func TestMemoryStaysBoundedUnderAFlood(t *testing.T) {
	const limit = 64 << 10
	for name, b := range map[string][]byte{
		"one message in records of one byte": records(append([]byte{messageServerHello, 0, 0xff, 0}, make([]byte, 1<<16)...), 1),
		"one message in large records":       records(append([]byte{messageServerHello, 0, 0xff, 0}, make([]byte, 1<<16)...), 1<<14),
		"remarks without end":                bytes.Repeat([]byte{typeAlert, 3, 3, 0, 2, 1, 112}, 1<<15),
	} {
		for _, segment := range []int{1, 1000, 1 << 14} {
			tp, rules := theTape(t), theWard().rules()
			rules.MaxFlight = limit
			f, held := &fed{i: New(rules)}, 0
			f.feed(t, f.i.Device, &f.toPlatform, tp.helloBytes(1<<14), 0)
			f.feed(t, func(p []byte) ([]byte, error) {
				pass, err := f.i.Platform(p)
				held = max(held, cap(f.i.platform.raw)+cap(f.i.platform.pending))
				return pass, err
			}, &f.device, b, segment)
			wantCut(t, f.err, RuleFormat)
			wantOver(t, f)
			if held > 3*(limit+segment) {
				t.Errorf("%s: %d bytes held, the limit is %d", name, held, limit)
			}
		}
	}
}

func TestADeclaredLengthAllocatesNothing(t *testing.T) {
	tp := theTape(t)
	hello := tp.helloBytes(1 << 14)
	declared := []byte{typeHandshake, 3, 3, 0x40, 0, messageServerHello, 1, 0xff, 0}
	i := New(theWard().rules())
	if _, err := i.Device(hello); err != nil {
		t.Fatal(err)
	}
	if _, err := i.Platform(declared); err != nil {
		t.Fatal(err)
	}
	if held := cap(i.platform.raw) + cap(i.platform.pending); held > 64 {
		t.Errorf("%d bytes for the 9 that came", held)
	}
}
