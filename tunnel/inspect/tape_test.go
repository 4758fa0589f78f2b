package inspect

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/tls"
	"encoding/binary"
	"io"
	"net"
	"slices"
	"testing"
	"time"

	"golang.org/x/crypto/cryptobyte"
)

// A msg is a handshake message of a tape.
type msg struct {
	kind byte
	body []byte
}

// A tape is a device's hello and the flight that a platform answered with, both
// real, for a test to change.
type tape struct {
	t      testing.TB
	hello  *fields
	flight []msg
	server *fields // of flight[0], which is made from it
	key    crypto.Signer
	// What comes around the messages.
	behindHello, beforeFlight, behindFlight []byte
}

// fields are those of either hello.
type fields struct {
	client          bool
	version         uint16
	random, session []byte
	suites          []uint16 // one for a ServerHello
	compression     []byte
	extensions      []extension
	tail            []byte
}

type extension struct {
	id   uint16
	data []byte
}

func (f *fields) set(id uint16, data []byte) {
	f.drop(id)
	f.extensions = append(f.extensions, extension{id, data})
}

func (f *fields) drop(id uint16) {
	f.extensions = slices.DeleteFunc(f.extensions, func(e extension) bool { return e.id == id })
}

func (f *fields) bytes() []byte {
	var b cryptobyte.Builder
	b.AddUint16(f.version)
	b.AddBytes(f.random)
	b.AddUint8LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(f.session) })
	if f.client {
		b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
			for _, s := range f.suites {
				b.AddUint16(s)
			}
		})
		b.AddUint8LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(f.compression) })
	} else {
		b.AddUint16(f.suites[0])
		b.AddBytes(f.compression)
	}
	if f.extensions != nil {
		b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
			for _, e := range f.extensions {
				b.AddUint16(e.id)
				b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(e.data) })
			}
		})
	}
	b.AddBytes(f.tail)
	return b.BytesOrPanic()
}

func fieldsOf(t testing.TB, client bool, body []byte) *fields {
	t.Helper()
	f, s := &fields{client: client}, cryptobyte.String(body)
	var session, suites, compression, extensions cryptobyte.String
	ok := s.ReadUint16(&f.version) && s.ReadBytes(&f.random, 32) && s.ReadUint8LengthPrefixed(&session)
	if client {
		ok = ok && s.ReadUint16LengthPrefixed(&suites) && s.ReadUint8LengthPrefixed(&compression)
	} else {
		ok = ok && s.ReadBytes((*[]byte)(&suites), 2) && s.ReadBytes((*[]byte)(&compression), 1)
	}
	if !ok || !s.Empty() && !s.ReadUint16LengthPrefixed(&extensions) {
		t.Fatal("the hello that was recorded does not parse")
	}
	f.session, f.compression = session, compression
	for ; len(suites) > 0; suites = suites[2:] {
		f.suites = append(f.suites, binary.BigEndian.Uint16(suites))
	}
	for !extensions.Empty() {
		var e extension
		var data cryptobyte.String
		if !extensions.ReadUint16(&e.id) || !extensions.ReadUint16LengthPrefixed(&data) {
			t.Fatal("the hello that was recorded does not parse")
		}
		e.data = data
		f.extensions = append(f.extensions, e)
	}
	return f
}

// record makes a tape of two ends.
func record(t testing.TB, device, platform *tls.Config) *tape {
	t.Helper()
	hello := opening(t, func(c net.Conn) *tls.Conn { return tls.Client(c, device) }, nil, messageClientHello)
	end := byte(messageServerHelloDone)
	if device.MaxVersion != tls.VersionTLS12 {
		end = messageServerHello
	}
	flight := opening(t, func(c net.Conn) *tls.Conn { return tls.Server(c, platform) }, encode(hello, 1<<14), end)
	key := platform.Certificates[0].PrivateKey.(crypto.Signer)
	return &tape{t: t, hello: fieldsOf(t, true, hello[0].body), flight: flight, server: fieldsOf(t, false, flight[0].body), key: key}
}

// opening is what an end sends first, in answer to what it is sent.
func opening(t testing.TB, end func(net.Conn) *tls.Conn, send []byte, until byte) []msg {
	t.Helper()
	near, far := net.Pipe()
	_ = far.SetDeadline(time.Now().Add(10 * time.Second))
	ended := make(chan struct{})
	go func() { defer close(ended); _ = end(near).Handshake(); near.Close() }()
	defer func() { far.Close(); <-ended }()
	if len(send) > 0 { // a pipe waits for a reader of nothing, too
		if _, err := far.Write(send); err != nil {
			t.Fatal(err)
		}
	}
	var pending []byte
	var all []msg
	for {
		for len(pending) >= messageHead {
			n := messageHead + int(binary.BigEndian.Uint32(pending)&0xffffff)
			if len(pending) < n {
				break
			}
			all = append(all, msg{pending[0], pending[messageHead:n:n]})
			if pending = pending[n:]; all[len(all)-1].kind == until {
				return all
			}
		}
		head := make([]byte, recordHead)
		if _, err := io.ReadFull(far, head); err != nil {
			t.Fatal(err)
		}
		body := make([]byte, binary.BigEndian.Uint16(head[3:]))
		if _, err := io.ReadFull(far, body); err != nil {
			t.Fatal(err)
		}
		pending = append(pending, body...)
	}
}

func encode(all []msg, size int) []byte {
	var b []byte
	for _, m := range all {
		b = append(b, m.kind, byte(len(m.body)>>16), byte(len(m.body)>>8), byte(len(m.body)))
		b = append(b, m.body...)
	}
	return records(b, size)
}

// theTape is the tape that most tests change: TLS 1.2, ECDSA, mutual.
func theTape(t testing.TB) *tape {
	w := theWard()
	return record(t, firstOf(w.ends(w.ecc)), secondOf(w.ends(w.ecc)))
}

func firstOf[A, B any](a A, _ B) A  { return a }
func secondOf[A, B any](_ A, b B) B { return b }

func rsaTape(t testing.TB) *tape {
	w := theWard()
	device, platform := w.ends(w.rsa)
	return record(t, device, platform)
}

// both makes the tape one whose device offers TLS 1.3 as well.
func (tp *tape) both() { tp.hello.set(extSupportedVersions, []byte{4, 3, 4, 3, 3}) }

func (tp *tape) helloBytes(size int) []byte {
	return append(encode([]msg{{messageClientHello, tp.hello.bytes()}}, size), tp.behindHello...)
}

func (tp *tape) flightBytes(size int) []byte {
	tp.flight[tp.index(messageServerHello)].body = tp.server.bytes()
	return slices.Concat(tp.beforeFlight, encode(tp.flight, size), tp.behindFlight)
}

func (tp *tape) index(kind byte) int {
	at := slices.IndexFunc(tp.flight, func(m msg) bool { return m.kind == kind })
	if at < 0 {
		tp.t.Fatalf("the flight that was recorded has no message %d", kind)
	}
	return at
}

func (tp *tape) message(kind byte) *msg { return &tp.flight[tp.index(kind)] }

func (tp *tape) insert(before byte, m msg) {
	tp.flight = slices.Insert(tp.flight, tp.index(before), m)
}

func (tp *tape) remove(kind byte) {
	at := tp.index(kind)
	tp.flight = slices.Delete(tp.flight, at, at+1)
}

func (tp *tape) swap(a, b byte) {
	x, y := tp.index(a), tp.index(b)
	tp.flight[x], tp.flight[y] = tp.flight[y], tp.flight[x]
}

// certificates replaces the chain.
func (tp *tape) certificates(ders ...[]byte) {
	tp.message(messageCertificate).body = list24(ders)
}

func list24(items [][]byte) []byte {
	var b cryptobyte.Builder
	b.AddUint24LengthPrefixed(func(b *cryptobyte.Builder) {
		for _, item := range items {
			b.AddUint24LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(item) })
		}
	})
	return b.BytesOrPanic()
}

// staple adds a CertificateStatus behind the chain.
func (tp *tape) staple(kind byte, body []byte) {
	tp.insert(messageServerKeyExchange, msg{messageStatus, append([]byte{kind}, body...)})
}

// resign signs the exchange anew, with what may differ from how it should be.
func (tp *tape) resign(key crypto.Signer, scheme uint16, params []byte, clientRandom []byte) {
	tp.t.Helper()
	signed := slices.Concat(clientRandom, tp.server.random, params)
	var digest []byte
	var opts crypto.SignerOpts
	switch scheme >> 8 {
	case 2:
		d := sha1.Sum(signed)
		digest, opts = d[:], crypto.SHA1
	case 5:
		d := sha512.Sum384(signed)
		digest, opts = d[:], crypto.SHA384
	default:
		d := sha256.Sum256(signed)
		digest, opts = d[:], crypto.SHA256
	}
	switch key.(type) {
	case ed25519.PrivateKey:
		digest, opts = signed, crypto.Hash(0)
	case *rsa.PrivateKey:
		if scheme>>8 == 8 {
			opts = &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: crypto.SHA256}
		}
	}
	signature, err := key.Sign(rand.Reader, digest, opts)
	if err != nil {
		tp.t.Fatal(err)
	}
	body := binary.BigEndian.AppendUint16(bytes.Clone(params), scheme)
	body = binary.BigEndian.AppendUint16(body, uint16(len(signature)))
	tp.message(messageServerKeyExchange).body = append(body, signature...)
}

// params are those of the exchange as it was recorded.
func (tp *tape) params() []byte {
	tp.t.Helper()
	var e exchange
	if !e.read(kindOf(tp.server.suites[0]), tp.message(messageServerKeyExchange).body) {
		tp.t.Fatal("the exchange that was recorded does not parse")
	}
	return bytes.Clone(e.params)
}

// ---- a tape through an Inspector

// fed is what came of a tape.
type fed struct {
	i                  *Inspector
	toPlatform, device []byte
	err                error
}

// feed sends bytes in segments, and holds what passes against what must not.
func (f *fed) feed(t testing.TB, take func([]byte) ([]byte, error), out *[]byte, b []byte, segment int) {
	t.Helper()
	if segment == 0 {
		segment = max(len(b), 1)
	}
	for part := range slices.Chunk(b, segment) {
		if f.err != nil {
			return
		}
		part = bytes.Clone(part)
		var pass []byte
		pass, f.err = take(part)
		*out = append(*out, pass...)
		clear(part) // it is the caller's: what was held may not hang on it
	}
}

func (tp *tape) run(rules Rules, s shape) *fed {
	tp.t.Helper()
	size := 1 << 14
	if s.records {
		size = 1
	}
	f := &fed{i: New(rules)}
	hello, flight := tp.helloBytes(size), tp.flightBytes(size)
	f.feed(tp.t, f.i.Device, &f.toPlatform, hello, s.segment)
	f.feed(tp.t, f.i.Platform, &f.device, flight, s.segment)
	return f
}
