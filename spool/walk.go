package spool

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
)

// The file is read page by page before bbolt maps it, because bbolt trusts its pages: a
// wrong length makes it read beyond a page, a cycle makes it recurse until the stack
// ends, a page that is both free and in use gets overwritten, and none of it can be
// recovered from. Reading by pread also turns a bad block into an error where the map
// would give a SIGBUS. The layout is bbolt's version 2, in the byte order of the machine;
// its page size is fixed here to pageSize, whatever the machine's is.
const (
	pageSize     = 4096
	pageHead     = 16
	boltMagic    = 0xED0CDAED
	boltVersion  = 2
	flagBranch   = 0x01
	flagLeaf     = 0x02
	flagFreelist = 0x10
	noFreelist   = ^uint64(0)
	bucketFlag   = 0x01
	maxDepth     = 24
	maxOverflow  = 4096 // pages of one page, where nothing is known of it
)

var native = binary.NativeEndian

// A tree is what one of the two meta pages points to.
type tree struct {
	root, sequence, freelist, pages, txid uint64
}

// A walker visits what can be reached in a file, and notes what is damaged.
type walker struct {
	file     io.ReaderAt
	pages    uint64 // of the tree, never more than the file has
	seen     []uint64
	sequence uint64  // of the records
	damage   []error // the first few
	visit    func(bucket string, key, value []byte) error
}

// broken notes damage.
func (w *walker) broken(format string, a ...any) {
	if len(w.damage) < 8 {
		w.damage = append(w.damage, fmt.Errorf(format, a...))
	}
}

// readMeta gives the newest tree whose meta page is whole.
func readMeta(f io.ReaderAt) (tree, error) {
	var best tree
	found := false
	for page := range int64(2) {
		var b [pageHead + 64]byte
		if _, err := f.ReadAt(b[:], page*pageSize); err != nil {
			if errors.Is(err, io.EOF) {
				continue
			}
			return best, err
		}
		if t, ok := parseMeta(b[pageHead:]); ok && (!found || t.txid > best.txid) {
			best, found = t, true
		}
	}
	if !found {
		return best, errNoMeta
	}
	return best, nil
}

var errNoMeta = errors.New("both of its header pages are damaged, or it never was a spool")

func parseMeta(m []byte) (tree, bool) {
	sum := fnv.New64a()
	sum.Write(m[:56])
	ok := native.Uint32(m) == boltMagic && native.Uint32(m[4:]) == boltVersion &&
		native.Uint32(m[8:]) == pageSize && native.Uint64(m[56:]) == sum.Sum64()
	return tree{root: native.Uint64(m[16:]), sequence: native.Uint64(m[24:]), freelist: native.Uint64(m[32:]),
		pages: native.Uint64(m[40:]), txid: native.Uint64(m[48:])}, ok
}

// walk visits every key of every bucket of the tree, in order, as far as it can be
// reached; what cannot is in w.damage. An error is one that visit gave.
func (w *walker) walk(t tree, size int64) error {
	w.pages = t.pages
	if have := uint64(size / pageSize); have < t.pages {
		w.broken("it is cut short: %d pages of %d are there", have, t.pages)
		w.pages = have
	}
	w.seen = make([]uint64, w.pages/64+1)
	var buckets []bucketRef
	err := w.page(t.root, 0, span{}, func(flags uint32, k, v []byte) error {
		if flags&bucketFlag == 0 || len(v) < 16 {
			w.broken("the list of its parts has a stranger")
			return nil
		}
		buckets = append(buckets, bucketRef{string(k), native.Uint64(v), native.Uint64(v[8:]), bytes.Clone(v[16:])})
		return nil
	})
	w.complete(buckets)
	for _, b := range buckets {
		if err == nil {
			err = w.bucket(b)
		}
	}
	if t.freelist != noFreelist {
		w.free(t.freelist)
	}
	return err
}

// complete checks that the parts of a spool are there, and nothing else.
func (w *walker) complete(buckets []bucketRef) {
	want := map[string]bool{string(recordsBucket): true, string(marksBucket): true, string(aboutBucket): true}
	for _, b := range buckets {
		if !want[b.name] {
			w.broken("it has a part that no spool has")
		}
		delete(want, b.name)
		if b.sequence >= 1<<62 {
			w.broken("a sequence number is out of range")
		}
	}
	for name := range want {
		w.broken("its part %q is missing", name)
	}
}

type bucketRef struct {
	name           string
	root, sequence uint64
	inline         []byte
}

func (w *walker) bucket(b bucketRef) error {
	if b.name == string(recordsBucket) && b.sequence < 1<<62 {
		w.sequence = b.sequence
	}
	visit := func(flags uint32, k, v []byte) error {
		if flags != 0 {
			w.broken("part %q has a part of its own", b.name)
			return nil
		}
		return w.visit(b.name, k, v)
	}
	if b.root != 0 {
		return w.page(b.root, 0, span{}, visit)
	}
	if len(b.inline) < pageHead || native.Uint16(b.inline[8:]) != flagLeaf {
		w.broken("part %q is no page", b.name)
		return nil
	}
	return w.leaf(0, b.inline, span{}, visit)
}

// A span is the range of keys that a page may hold: from low, below high.
type span struct{ low, high []byte }

func (s span) holds(k []byte) bool {
	return bytes.Compare(k, s.low) >= 0 && (s.high == nil || bytes.Compare(k, s.high) < 0)
}

type visitor = func(flags uint32, key, value []byte) error

// page visits the page id and all below it.
func (w *walker) page(id uint64, depth int, keys span, visit visitor) error {
	p := w.read(id)
	if p == nil {
		return nil
	}
	switch flags := native.Uint16(p[8:]); {
	case flags == flagLeaf:
		return w.leaf(id, p, keys, visit)
	case flags == flagBranch && depth < maxDepth:
		return w.branch(id, p, depth, keys, visit)
	default:
		w.broken("page %d is of unknown kind %#x at depth %d", id, flags, depth)
		return nil
	}
}

// read reads a page with its overflow, nil where it is damaged.
func (w *walker) read(id uint64) []byte {
	if id < 2 || id >= w.pages {
		w.broken("page %d is outside of the file", id)
		return nil
	}
	p, err := readPage(w.file, id, w.pages)
	if err != nil {
		w.broken("page %d: %w", id, err)
		return nil
	}
	if !w.take(id, uint64(len(p)/pageSize)) {
		w.broken("page %d is used twice", id)
		return nil
	}
	return p
}

// readPage reads page id of a file of so many pages. A page that the disk cannot give is
// as damaged as one that is wrong.
func readPage(f io.ReaderAt, id, pages uint64) ([]byte, error) {
	p := make([]byte, pageSize)
	if _, err := f.ReadAt(p, int64(id)*pageSize); err != nil {
		return nil, fmt.Errorf("it cannot be read: %w", err)
	}
	more := uint64(native.Uint32(p[12:]))
	if native.Uint64(p) != id || more >= pages-id {
		return nil, fmt.Errorf("it names itself %d, with %d more", native.Uint64(p), more)
	}
	return overflow(f, id, p, more)
}

// overflow reads the pages that belong to a page.
func overflow(f io.ReaderAt, id uint64, p []byte, more uint64) ([]byte, error) {
	if more == 0 {
		return p, nil
	}
	p = append(p, make([]byte, more*pageSize)...)
	if _, err := f.ReadAt(p[pageSize:], int64(id+1)*pageSize); err != nil {
		return nil, fmt.Errorf("it cannot be read: %w", err)
	}
	return p, nil
}

// take marks pages as seen, false where one was before.
func (w *walker) take(id, n uint64) bool {
	for i := id; i < id+n; i++ {
		if w.seen[i/64]&(1<<(i%64)) != 0 {
			return false
		}
	}
	for i := id; i < id+n; i++ {
		w.seen[i/64] |= 1 << (i % 64)
	}
	return true
}

func (w *walker) branch(id uint64, p []byte, depth int, keys span, visit visitor) error {
	count := int(native.Uint16(p[10:]))
	if count == 0 {
		w.broken("page %d leads nowhere", id)
		return nil
	}
	if !w.countFits(id, p, count, 0) {
		return nil
	}
	type child struct {
		key []byte
		id  uint64
	}
	children := make([]child, 0, count)
	for i := range count {
		k, ok := w.branchKey(p, i)
		if !ok || !keys.holds(k) {
			w.broken("page %d, branch %d: its key is out of place", id, i)
			continue
		}
		children = append(children, child{k, native.Uint64(p[pageHead+16*i+8:])})
		keys.low = k
	}
	for i, c := range children {
		below := span{c.key, keys.high}
		if i+1 < len(children) {
			below.high = children[i+1].key
		}
		if err := w.page(c.id, depth+1, below, visit); err != nil {
			return err
		}
	}
	return nil
}

func (w *walker) branchKey(p []byte, i int) ([]byte, bool) {
	at := pageHead + 16*i
	if at+16 > len(p) {
		return nil, false
	}
	return part(p, at, native.Uint32(p[at:]), native.Uint32(p[at+4:]))
}

// countFits checks how many entries a page says it has: bbolt writes the first key right
// behind the table of entries, so that a wrong number shows. The position of the key is
// field bytes into its entry. Without this, a page that says it has less would lose the
// rest, and nothing would look damaged.
func (w *walker) countFits(id uint64, p []byte, count, field int) bool {
	at := pageHead + field
	if count == 0 && at+4 > len(p) {
		return true // an empty part, kept in its parent's page
	}
	// bbolt clears a page before it fills it: one that is empty has no position at all.
	if at+4 > len(p) || uint64(native.Uint32(p[at:])) != 16*uint64(count) {
		w.broken("page %d: its number of entries is wrong", id)
		return false
	}
	return true
}

// part is n bytes at pos after at, where they are within p.
func part(p []byte, at int, pos, n uint32) ([]byte, bool) {
	from := uint64(at) + uint64(pos)
	if n == 0 || from+uint64(n) > uint64(len(p)) {
		return nil, false
	}
	return p[from : from+uint64(n)], true
}

func (w *walker) leaf(id uint64, p []byte, keys span, visit visitor) error {
	var last []byte
	count := int(native.Uint16(p[10:]))
	if !w.countFits(id, p, count, 4) {
		return nil
	}
	for i := range count {
		at := pageHead + 16*i
		if at+16 > len(p) {
			w.broken("page %d has no room for its entry %d", id, i)
			return nil
		}
		flags, pos, ksize, vsize := native.Uint32(p[at:]), native.Uint32(p[at+4:]), native.Uint32(p[at+8:]), native.Uint32(p[at+12:])
		k, ok := part(p, at, pos, ksize)
		v, ok2 := part(p, at, pos+ksize, vsize)
		if !ok || !ok2 || flags > bucketFlag || !keys.holds(k) || bytes.Equal(k, last) {
			w.broken("page %d, entry %d is out of place", id, i)
			continue
		}
		keys.low, last = k, k
		if err := visit(flags, k, v); err != nil {
			return err
		}
	}
	return nil
}

// free checks the list of free pages: bbolt writes over every page that is in it.
func (w *walker) free(id uint64) {
	p := w.read(id)
	if p == nil {
		return
	}
	count, at := uint64(native.Uint16(p[10:])), pageHead
	if native.Uint16(p[8:]) != flagFreelist {
		w.broken("page %d is no list of free pages", id)
		return
	}
	if count == 0xFFFF {
		count, at = native.Uint64(p[at:]), at+8
	}
	if count > uint64(len(p)-at)/8 {
		w.broken("page %d: its list of free pages is longer than itself", id)
		return
	}
	for i := range count {
		if free := native.Uint64(p[uint64(at)+8*i:]); free < 2 || free >= w.pages || !w.take(free, 1) {
			w.broken("page %d is called free and is not", free)
		}
	}
}

// orphans visits the leaf entries of all pages that walk has not reached: what lies
// behind a damaged page, but also what was removed long ago.
func (w *walker) orphans(size int64, visit func(key, value []byte)) {
	pages := uint64(size / pageSize)
	for id := uint64(2); id < pages; id++ {
		if id < w.pages && w.seen[id/64]&(1<<(id%64)) != 0 {
			continue
		}
		p := make([]byte, pageSize)
		_, err := w.file.ReadAt(p, int64(id)*pageSize)
		// Half of what it says of itself may be wrong: each record is judged for itself.
		if err != nil || native.Uint64(p) != id && native.Uint16(p[8:]) != flagLeaf {
			continue
		}
		if p, err = overflow(w.file, id, p, min(uint64(native.Uint32(p[12:])), pages-id-1, maxOverflow)); err != nil {
			continue
		}
		lost := &walker{}
		lost.leaf(id, p, span{}, func(flags uint32, k, v []byte) error {
			if flags == 0 {
				visit(k, v)
			}
			return nil
		})
	}
}
