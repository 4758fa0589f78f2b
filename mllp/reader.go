package mllp

import (
	"bytes"
	"errors"
	"fmt"
	"io"
)

// Errors of a Reader, besides those of the stream below it. After any error
// the stream is of no use: where the next block begins is not known.
var (
	// ErrTooLarge is for a block over the limit.
	ErrTooLarge = errors.New("MLLP block is larger than the limit")
	// ErrNoFrame is for bytes that are in no block: more of them than the limit, or nothing else before the stream ended.
	ErrNoFrame = errors.New("no MLLP start byte")
	// ErrNoFinalCR is joined to the stream's error where all of a block is there but its last byte 0x0D.
	ErrNoFinalCR = errors.New("block ends in 0x1C without 0x0D")
)

// A CutError is the stream's error where it struck within a block or after
// bytes that are in no block. Unwrap gives the stream's error.
type CutError struct {
	Outside int  // bytes before a start byte, skipped
	Begun   bool // a block had begun
	Inside  int  // bytes of it
	NoCR    bool // only the last 0x0D was missing
	Err     error
}

func (e *CutError) Error() string {
	switch {
	case e.NoCR:
		return fmt.Sprintf("%v after a block of %d bytes: %v", ErrNoFinalCR, e.Inside, e.Err)
	case e.Begun:
		return fmt.Sprintf("MLLP block unfinished after %d bytes: %v", e.Inside, e.Err)
	}
	return fmt.Sprintf("%v in %d bytes: %v", ErrNoFrame, e.Outside, e.Err)
}

// Unwrap gives the stream's error, and what is wrong with the framing.
func (e *CutError) Unwrap() []error {
	switch {
	case e.NoCR:
		return []error{e.Err, ErrNoFinalCR}
	case e.Begun:
		return []error{e.Err}
	}
	return []error{e.Err, ErrNoFrame}
}

const (
	firstBuffer = 4096
	minRead     = 512
	strayBytes  = 8
	emptyReads  = 100 // in a row, as in bufio
)

// A Reader takes blocks from a stream as real peers write them: with bytes
// before the start byte, start and end bytes doubled, several blocks in one
// piece or one block byte by byte.
type Reader struct {
	// FinalCROptional takes 0x1C alone as the end of a block, for peers known
	// to leave the 0x0D out.
	FinalCROptional bool

	src        io.Reader
	max        int
	buf        []byte // buf[r:w] is not yet consumed
	r, w       int
	scanned    int  // up to here in buf[r:w] there is no end of the block
	inside     bool // buf[r] is the first byte of a message
	afterBlock bool // a 0x0D that belongs to the last block may follow
	outside    int  // bytes skipped since the last block
	skipped    int
	cut        int
	stray      [strayBytes]byte
	err        error
}

// NewReader reads blocks whose message has up to max bytes. Its buffer grows
// with the messages met, not to max at once.
func NewReader(src io.Reader, max int) *Reader { return &Reader{src: src, max: max} }

// Skipped counts the bytes that were in no block, since the beginning.
func (r *Reader) Skipped() int { return r.skipped }

// Cut counts blocks that a new start byte cut off; they were not returned.
func (r *Reader) Cut() int { return r.cut }

// Stray is the first few bytes skipped since the last block, to recognise a
// peer that sends without frames. It is only borrowed, and it is what a peer
// sent: not for the log.
func (r *Reader) Stray() []byte { return r.stray[:min(r.outside, strayBytes)] }

// Wait returns when a block has begun, or can no more. With it a server can
// give the peer a long time to begin and a short one to finish.
func (r *Reader) Wait() error {
	for !r.inside && !r.start() {
		if err := r.more(); err != nil {
			return err
		}
	}
	return nil
}

// ReadBlock returns the next message without its frame. It is only borrowed:
// the next call overwrites it. Errors are final.
func (r *Reader) ReadBlock() ([]byte, error) {
	for {
		if message, ok := r.take(); ok {
			return message, nil
		}
		if err := r.more(); err != nil {
			return nil, err
		}
	}
}

// more reads on, within the limit.
func (r *Reader) more() error {
	if r.err == nil {
		r.limit()
	}
	if r.err != nil {
		return r.explain()
	}
	r.fill()
	return nil
}

// take looks for a block in what is buffered.
func (r *Reader) take() ([]byte, bool) {
	if !r.inside && !r.start() {
		return nil, false
	}
	for {
		from := r.r + r.scanned
		end := bytes.IndexByte(r.buf[from:r.w], endBlock)
		limit := r.w
		if end >= 0 {
			limit = from + end
		}
		// A start byte within a block: the peer gave up that block and began
		// another, or it writes the start byte twice.
		if again := bytes.IndexByte(r.buf[from:limit], startBlock); again >= 0 {
			if !r.restart(from + again) {
				return nil, false
			}
			continue
		}
		if end < 0 {
			r.scanned = r.w - r.r
			return nil, false
		}
		size, final := r.finish(limit)
		switch {
		case final:
			return r.block(limit, size)
		case size == 0: // the byte that tells is not here yet
			r.scanned = limit - r.r
			return nil, false
		}
		r.scanned = limit + 1 - r.r // 0x1C in the text
	}
}

// start moves to the first byte after a start byte.
func (r *Reader) start() bool {
	if r.afterBlock && r.r < r.w { // the 0x0D that FinalCROptional did not wait for
		if r.buf[r.r] == carriageReturn {
			r.r++
		}
		r.afterBlock = false
	}
	at := bytes.IndexByte(r.buf[r.r:r.w], startBlock)
	if at < 0 {
		r.skip(r.w)
		return false
	}
	r.skip(r.r + at)
	r.r++
	r.inside, r.scanned = true, 0
	return true
}

func (r *Reader) skip(to int) {
	if r.outside < strayBytes {
		copy(r.stray[r.outside:], r.buf[r.r:to])
	}
	r.outside += to - r.r
	r.skipped += to - r.r
	r.r = to
}

// restart begins a block anew behind the start byte at buf[at]. A block over the
// limit is an error here too: whether it was seen in time must not depend on
// how the stream came in pieces.
func (r *Reader) restart(at int) bool {
	if at-r.r > r.max {
		r.err = ErrTooLarge
		return false
	}
	if at > r.r {
		r.cut++
	}
	r.skipped += at + 1 - r.r
	r.r, r.scanned = at+1, 0
	return true
}

// finish judges the 0x1C at buf[end]: how many bytes the end of the block has,
// if it is one. A size of 0 without final means that one more byte is needed.
func (r *Reader) finish(end int) (size int, final bool) {
	switch {
	case end+1 < r.w && r.buf[end+1] == carriageReturn:
		return 2, true
	case r.FinalCROptional:
		return 1, true
	case end+1 == r.w:
		return 0, false
	case r.buf[end+1] == startBlock: // the next block has begun: no 0x0D will come
		return 1, true
	}
	return 1, false
}

func (r *Reader) block(end, size int) ([]byte, bool) {
	message := r.buf[r.r:end:end]
	if len(message) > r.max {
		r.err = ErrTooLarge
		return nil, false
	}
	r.r = end + size
	r.inside, r.scanned, r.outside = false, 0, 0
	r.afterBlock = size == 1
	return message, true
}

// limit ends a stream whose block, or whose noise, is over the limit.
func (r *Reader) limit() {
	switch {
	case r.inside && r.w-r.r > r.max && (r.w-r.r > r.max+1 || r.buf[r.w-1] != endBlock):
		r.err = ErrTooLarge
	case !r.inside && r.outside > max(r.max, firstBuffer):
		r.err = ErrNoFrame
	}
}

// fill reads once from the stream, after making room.
func (r *Reader) fill() {
	if r.r == r.w {
		r.r, r.w = 0, 0
	}
	if len(r.buf)-r.w < minRead {
		r.room()
	}
	for range emptyReads {
		n, err := r.src.Read(r.buf[r.w:])
		r.w += n
		r.err = err
		if n > 0 || err != nil {
			return
		}
	}
	r.err = io.ErrNoProgress
}

// room moves what is left to the front of the buffer, or doubles it.
func (r *Reader) room() {
	buf := r.buf
	if 2*(r.w-r.r) >= len(buf) {
		buf = make([]byte, max(firstBuffer, 2*len(buf)))
	}
	r.w = copy(buf, r.buf[r.r:r.w])
	r.r, r.buf = 0, buf
}

// explain adds to the stream's error where in a block it struck.
func (r *Reader) explain() error {
	switch r.err {
	case ErrTooLarge:
		return fmt.Errorf("%w of %d bytes", r.err, r.max)
	case ErrNoFrame:
		return fmt.Errorf("%w in the first %d bytes", r.err, r.outside)
	}
	cut := &CutError{Outside: r.outside, Err: r.err}
	if r.inside {
		cut.Begun, cut.Inside = true, r.w-r.r
		cut.NoCR = cut.Inside > 0 && r.buf[r.w-1] == endBlock
	}
	if r.inside || r.outside > 0 {
		if r.err == io.EOF {
			cut.Err = io.ErrUnexpectedEOF
		}
		return cut
	}
	return r.err
}
