package spool

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"syscall"
)

// The journal is what makes a group durable with one sync of the disk, where a bbolt
// transaction takes two: a file of fixed size, filled with zeros when it is made, to
// which each group is written as one block. When it is full, what is left of it goes to
// the tree in one transaction, and it begins anew. In normal operation that is little:
// most messages are accepted before, and never get into the tree at all.
//
//	block: magic 4 | checksum 4 | generation 8 | number 8 | length 4 | 0 4 | changes
//
// A block begins at a multiple of the page size, so that none which is durable is ever
// written again while it counts. The generation is drawn anew each time, and the tree
// says which one follows it: the blocks of another one are ignored, and so the step from
// journal to tree is as atomic as the transaction. The numbers count from 0. The first
// block that is not whole ends the journal: the power failed while it was written, and
// nobody was told that it is durable. One that is whole after that one means damage.
const (
	journalSize   = 1 << 20
	journalSuffix = ".journal"
	journalMagic  = 0x4a575347
	blockHead     = 32
)

var (
	little  = binary.LittleEndian
	crcTab  = crc32.MakeTable(crc32.Castagnoli)
	errTorn = errors.New("torn")
)

// A journal is the open journal.
type journal struct {
	file       *os.File
	size       int64
	generation uint64
	number     uint64 // of the next block
	at         int64  // where the next block goes
	buf        []byte
}

// The changes of a block: kind 1 | ID 8 | length 4 | value.
const (
	changeAdd    = 1 // value: the record
	changeRemove = 2 // value: 0 accepted, else the cause + 1
	changeMark   = 3 // value: the mark
	changeHead   = 13
)

// openJournal opens the journal of a spool, nil where there is none.
func openJournal(path string, readOnly bool) (*journal, error) {
	flag := os.O_RDWR
	if readOnly {
		flag = os.O_RDONLY
	}
	f, err := os.OpenFile(path, flag, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("the journal of the spool cannot be opened: %w", err)
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("the journal of the spool %s is no file", path)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return &journal{file: f, size: info.Size()}, nil
}

// createJournal makes a journal, durable but for its name.
func createJournal(path string, size int64) (*journal, error) {
	f, err := os.OpenFile(path+".new", os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("%w: its journal cannot be made: %w", ErrDisk, err)
	}
	_, err = io.CopyN(f, zeroReader{}, size)
	if err = errors.Join(err, f.Sync()); err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		os.Remove(path + ".new")
		f.Close()
		return nil, fmt.Errorf("%w: its journal cannot be made: %w", ErrDisk, err)
	}
	return &journal{file: f, size: size}, nil
}

// follows is the generation that a tree names; where the tree does not know it, that of the
// first block.
func (j *journal) follows(named []byte) uint64 {
	if named != nil {
		return little.Uint64(named)
	}
	g, _, _, _ := j.block(0)
	return g
}

// extend makes a journal longer that was cut, or made for less.
func (j *journal) extend(size int64) error {
	if _, err := io.CopyN(io.NewOffsetWriter(j.file, j.size), zeroReader{}, size-j.size); err != nil {
		return errors.Join(err, j.file.Truncate(j.size))
	}
	if err := j.file.Sync(); err != nil {
		return err
	}
	j.size = size
	return nil
}

// close closes the journal, nil too.
func (j *journal) close() error {
	if j == nil {
		return nil
	}
	return j.file.Close()
}

// begin starts a block.
func (j *journal) begin() { j.buf = append(j.buf[:0], make([]byte, blockHead)...) }

func (j *journal) change(kind byte, id uint64, value []byte) {
	j.buf = append(j.buf, kind)
	j.buf = little.AppendUint64(j.buf, id)
	j.buf = little.AppendUint32(j.buf, uint32(len(value)))
	j.buf = append(j.buf, value...)
}

// fits reports whether the block has room.
func (j *journal) fits() bool { return j.at+pages(int64(len(j.buf))) <= j.size }

// pages rounds up to whole pages.
func pages(n int64) int64 { return (n + pageSize - 1) / pageSize * pageSize }

// commit makes the block durable. Where it fails, the next one goes to its place.
func (j *journal) commit() error {
	n := len(j.buf)
	j.buf = append(j.buf, make([]byte, pages(int64(n))-int64(n))...)
	little.PutUint32(j.buf, journalMagic)
	little.PutUint64(j.buf[8:], j.generation)
	little.PutUint64(j.buf[16:], j.number)
	little.PutUint32(j.buf[24:], uint32(n-blockHead))
	little.PutUint32(j.buf[4:], crc32.Checksum(j.buf[8:n], crcTab))
	if _, err := j.file.WriteAt(j.buf, j.at); err != nil {
		return fmt.Errorf("the journal cannot be written: %w", err)
	}
	if err := syscall.Fdatasync(int(j.file.Fd())); err != nil {
		return fmt.Errorf("the journal cannot be synced: %w", err)
	}
	j.at += int64(len(j.buf))
	j.number++
	return nil
}

// restart begins a new generation at the start of the file.
func (j *journal) restart(generation uint64) { j.generation, j.number, j.at = generation, 0, 0 }

// block reads the changes of the block at a place, and gives errTorn with what is there
// of them where it is not whole.
func (j *journal) block(at int64) (generation, number uint64, changes []byte, err error) {
	var h [blockHead]byte
	if _, err := j.file.ReadAt(h[:], at); err != nil || little.Uint32(h[:]) != journalMagic {
		return 0, 0, nil, errTorn
	}
	generation, number = little.Uint64(h[8:]), little.Uint64(h[16:])
	n := int64(little.Uint32(h[24:]))
	if n > j.size-at-blockHead {
		return generation, number, nil, errTorn
	}
	changes = make([]byte, n)
	if _, err := j.file.ReadAt(changes, at+blockHead); err != nil {
		return generation, number, nil, errTorn
	}
	if crc32.Update(crc32.Checksum(h[8:], crcTab), crcTab, changes) != little.Uint32(h[4:]) {
		return generation, number, changes, errTorn
	}
	return generation, number, changes, nil
}

// replay gives the changes of all blocks of a generation to apply, and stands after them
// then. Of a torn block only what was added is given, with torn set: the records are
// authentic each for itself, and nothing is wrong with one that nobody was told of. It
// reports whether the journal is damaged: whether whole blocks come after a torn one.
func (j *journal) replay(generation uint64, apply func(changes []byte, torn bool)) (torn, damaged bool) {
	j.restart(generation)
	for at := int64(0); at < j.size; {
		g, n, changes, err := j.block(at)
		whole := err == nil && g == generation && n >= j.number
		if !whole {
			if g == generation && n == j.number && changes != nil {
				apply(changes, true)
				torn = true
			}
			at += pageSize
			continue
		}
		damaged = damaged || n != j.number
		apply(changes, false)
		at += pages(int64(blockHead + len(changes)))
		j.number, j.at = n+1, at
	}
	return torn, damaged
}

// eachChange takes a block apart, as far as it goes.
func eachChange(changes []byte, f func(kind byte, id uint64, value []byte)) {
	for len(changes) >= changeHead {
		n := little.Uint32(changes[9:])
		if uint64(n) > uint64(len(changes)-changeHead) {
			return
		}
		f(changes[0], little.Uint64(changes[1:]), changes[changeHead:changeHead+int(n)])
		changes = changes[changeHead+int(n):]
	}
}
