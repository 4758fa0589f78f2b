package spool

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"
)

// A record is one value of the records bucket, written once and never changed:
//
//	version 1 | class 1 | stored 8 | made 8 | session 16 | counter 8 |
//	queue, device and control ID, each with one byte of length | sealed payload
//
// The sealed payload is AES-256-GCM. Everything before it, and the entry's ID, is
// associated data: a record that is moved to another ID, queue or device does not open.
//
// The key of a record is derived from the spool's key and a random session number
// that is drawn whenever a spool is opened; its nonce counts up within the session.
// So a nonce never comes twice under one key (SP 800-38D section 8.2.1), also where a
// commit failed, an ID was given again, or the file was begun anew with the same key.
const (
	recordVersion = 1
	sessionSize   = 16
	recordFixed   = 1 + 1 + 8 + 8 + sessionSize + 8
	tagSize       = 16
	nameLimit     = 255
	markVersion   = 1
)

// errUnauthentic is all that is said of a record that does not open: which bit of it is
// wrong cannot be known.
var errUnauthentic = errors.New("does not authenticate")

// A header is what a record says in clear.
type header struct {
	class                  Class
	stored, made           int64 // Unix time in microseconds
	queue, device, control []byte
}

// A sealer seals and opens records with keys derived from one key, for one goroutine at
// a time.
type sealer struct {
	key     [32]byte
	session [sessionSize]byte
	counter uint64
	current cipher.AEAD
	opened  map[[sessionSize]byte]cipher.AEAD
	data    []byte // the associated data of the last value
}

// newSealer begins a session with a number from random.
func newSealer(key [32]byte, random io.Reader) (*sealer, error) {
	c := &sealer{key: key, opened: map[[sessionSize]byte]cipher.AEAD{}}
	if _, err := io.ReadFull(random, c.session[:]); err != nil {
		return nil, fmt.Errorf("the spool's session number cannot be drawn: %w", err)
	}
	var err error
	c.current, err = c.aead(c.session)
	return c, err
}

// reader is another sealer of the same session for another goroutine. It only opens.
func (c *sealer) reader() *sealer {
	return &sealer{key: c.key, opened: map[[sessionSize]byte]cipher.AEAD{}}
}

// aead is the cipher of a session. A damaged file names sessions that never were: the
// few that are kept are forgotten when there are too many.
func (c *sealer) aead(session [sessionSize]byte) (cipher.AEAD, error) {
	if a, ok := c.opened[session]; ok {
		return a, nil
	}
	key, err := hkdf.Key(sha256.New, c.key[:], session[:], "gatewayd spool record 1", 32)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	a, err := cipher.NewGCM(block)
	if err != nil {
		return nil, err
	}
	if len(c.opened) >= 64 {
		clear(c.opened)
	}
	c.opened[session] = a
	return a, nil
}

// keyID names a key without telling anything of it.
func keyID(key [32]byte) []byte {
	id, err := hkdf.Key(sha256.New, key[:], nil, "gatewayd spool key id 1", 16)
	if err != nil {
		panic(err) // only for a length or a hash that cannot be, and both are constants
	}
	return id
}

// next is the nonce of the next seal and its counter.
func (c *sealer) next() (nonce [12]byte, counter uint64) {
	c.counter++
	binary.BigEndian.PutUint64(nonce[4:], c.counter)
	return nonce, c.counter
}

// recordSize is the length of what sealRecord appends.
func recordSize(e *Entry) int {
	return recordFixed + 3 + len(e.Queue) + len(e.Device) + len(e.ControlID) + len(e.Payload) + tagSize
}

// sealRecord appends the record of e.
func (c *sealer) sealRecord(dst []byte, id uint64, e *Entry, stored time.Time) []byte {
	start := len(dst)
	nonce, counter := c.next()
	dst = append(dst, recordVersion, byte(e.Class))
	dst = binary.BigEndian.AppendUint64(dst, uint64(stored.UnixMicro()))
	dst = binary.BigEndian.AppendUint64(dst, uint64(e.Made.UnixMicro()))
	dst = append(dst, c.session[:]...)
	dst = binary.BigEndian.AppendUint64(dst, counter)
	for _, name := range [...]string{e.Queue, e.Device, e.ControlID} {
		dst = append(append(dst, byte(len(name))), name...)
	}
	return c.current.Seal(dst, nonce[:], e.Payload, c.associated("record", id, dst[start:]))
}

// associated is the associated data of a value: what it is, its ID, its clear part. It is
// valid until the next one.
func (c *sealer) associated(kind string, id uint64, clear []byte) []byte {
	c.data = append(c.data[:0], kind...)
	c.data = binary.BigEndian.AppendUint64(c.data, id)
	c.data = append(c.data, clear...)
	return c.data
}

// parseRecord splits a record into its header and the offset of the sealed payload.
// The header is not to be believed before openRecord.
func parseRecord(v []byte) (h header, sealed int, err error) {
	if len(v) < recordFixed+3+tagSize || v[0] != recordVersion || Class(v[1]) > Alert {
		return h, 0, errUnauthentic
	}
	h.class = Class(v[1])
	h.stored = int64(binary.BigEndian.Uint64(v[2:]))
	h.made = int64(binary.BigEndian.Uint64(v[10:]))
	at := recordFixed
	for _, name := range [...]*[]byte{&h.queue, &h.device, &h.control} {
		if at >= len(v) || at+1+int(v[at]) > len(v) {
			return h, 0, errUnauthentic
		}
		*name = v[at+1 : at+1+int(v[at])]
		at += 1 + len(*name)
	}
	if len(v)-at < tagSize {
		return h, 0, errUnauthentic
	}
	return h, at, nil
}

// openRecord appends the payload of a record to dst.
func (c *sealer) openRecord(dst []byte, id uint64, v []byte) (header, []byte, error) {
	h, sealed, err := parseRecord(v)
	if err != nil {
		return h, nil, err
	}
	payload, err := c.open(dst, v[18:], v[sealed:], c.associated("record", id, v[:sealed]))
	return h, payload, err
}

// open opens what was sealed with the session and counter at the head of from.
func (c *sealer) open(dst, from, sealed, data []byte) ([]byte, error) {
	a, err := c.aead([sessionSize]byte(from))
	if err != nil {
		return nil, err
	}
	var nonce [12]byte
	copy(nonce[4:], from[sessionSize:sessionSize+8])
	plain, err := a.Open(dst, nonce[:], sealed, data)
	if err != nil {
		return nil, errUnauthentic
	}
	return plain, nil
}

// A mark is what became of an entry: its value changes, so it is apart from the record.
//
//	version 1 | session 16 | counter 8 | sealed (state 1 | attempts 4 | reason)
type mark struct {
	state    State
	attempts uint32
	reason   string
}

func (c *sealer) sealMark(dst []byte, id uint64, m mark) []byte {
	start := len(dst)
	nonce, counter := c.next()
	dst = append(append(dst, markVersion), c.session[:]...)
	dst = binary.BigEndian.AppendUint64(dst, counter)
	plain := append([]byte{byte(m.state)}, binary.BigEndian.AppendUint32(nil, m.attempts)...)
	plain = append(plain, m.reason...)
	return c.current.Seal(dst, nonce[:], plain, c.associated("mark", id, dst[start:]))
}

func (c *sealer) openMark(id uint64, v []byte) (mark, error) {
	const clear = 1 + sessionSize + 8
	if len(v) < clear+5+tagSize || v[0] != markVersion {
		return mark{}, errUnauthentic
	}
	plain, err := c.open(nil, v[1:], v[clear:], c.associated("mark", id, v[:clear]))
	if err != nil || State(plain[0]) > Quarantined {
		return mark{}, errUnauthentic
	}
	return mark{State(plain[0]), binary.BigEndian.Uint32(plain[1:]), string(plain[5:])}, nil
}

// keyMark is the value that names the key of a file; its checksum tells another key
// from a damaged name.
func keyMark(key [32]byte) []byte {
	id := keyID(key)
	sum := sha256.Sum256(id)
	return append(id, sum[:8]...)
}

// checkKey judges a key mark: ErrWrongKey, or errUnauthentic where it is damaged.
func checkKey(v []byte, key [32]byte) error {
	if len(v) != 24 {
		return errUnauthentic
	}
	if sum := sha256.Sum256(v[:16]); !bytes.Equal(sum[:8], v[16:]) {
		return errUnauthentic
	}
	if id := keyID(key); !bytes.Equal(id, v[:16]) {
		return fmt.Errorf("%w: the file names key %x, the key given is %x; give the right key, or move the file away to begin a new one", ErrWrongKey, v[:4], id[:4])
	}
	return nil
}
