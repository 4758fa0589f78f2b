package keystore

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/bedside-gateway/gatewayd/keystore/tpm"
)

// The names of the slots.
const (
	Current  = "current"
	Next     = "next"
	Previous = "previous"
)

// The files of a slot.
const (
	keyFile     = "key.pem"
	requestFile = "request.pem"
	chainFile   = "chain.pem"
)

// A Slot is a key in the TPM with the certificate for it.
type Slot struct {
	// KeyFile is the key's file in the TSS2 form.
	KeyFile []byte
	Public  crypto.PublicKey
	// Request is the certificate request (PEM) that was made with the key. It is
	// kept, as a CA that has to think wants to see the very same one again
	// (RFC 7030, section 4.2.3). Nil where there is none.
	Request []byte
	// Chain is the certificate with its issuers behind it; nil while none was issued.
	Chain []*x509.Certificate
	// Damage is why there is no Chain although there should be one: it cannot be
	// read, or is for another key, which is ErrOtherKey.
	Damage error
	// Fault is why KeyFile is none that a TPM could load; Public is nil then.
	Fault error

	folder string
}

// Slots are those of a store; nil where there is none.
type Slots struct{ Current, Next, Previous *Slot }

// A Store is a folder of slots. Several processes may use it at once.
//
// Each slot is a link to a numbered folder, which is written whole before a link
// points to it. So a change of slots is a rename of links.
type Store struct {
	dir string
	// step is called before each change of the disk, and stops there where it
	// fails: what a power cut does, for tests.
	step func(what string) error
}

// Open gives the store in a folder, which need not be there yet. It reads nothing.
func Open(dir string) *Store { return &Store{dir: dir, step: func(string) error { return nil }} }

// Dir is the folder.
func (s *Store) Dir() string { return s.dir }

// Read reads the slots. A change that comes in between is waited for: what is
// read belongs together.
func (s *Store) Read() (Slots, error) {
	for {
		stamp := s.Stamp()
		all, err := s.slots()
		if s.Stamp() == stamp {
			return all, err
		}
	}
}

func (s *Store) slots() (Slots, error) {
	var all Slots
	for name, slot := range map[string]**Slot{Current: &all.Current, Next: &all.Next, Previous: &all.Previous} {
		var err error
		if *slot, err = s.read(name); err != nil {
			return Slots{}, err
		}
	}
	if all.Previous != nil && all.Current != nil && all.Previous.folder == all.Current.folder {
		all.Previous = nil // a change that a power cut stopped half way
	}
	return all, nil
}

func (s *Store) read(name string) (*Slot, error) {
	folder, err := os.Readlink(filepath.Join(s.dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, unreadable(name, err)
	}
	slot := &Slot{folder: folder}
	if slot.KeyFile, err = s.file(folder, keyFile); err != nil {
		return nil, unreadable(name, err)
	}
	slot.Public, slot.Fault = tpm.PublicKey(slot.KeyFile)
	slot.Request, _ = s.file(folder, requestFile) // one that cannot be read is made anew
	text, err := s.file(folder, chainFile)
	if errors.Is(err, fs.ErrNotExist) {
		return slot, nil
	}
	if err == nil {
		slot.Chain, err = Chain(text)
	}
	if err != nil {
		slot.Chain, slot.Damage = nil, fmt.Errorf("slot %s: certificate: %w; install it again: gatewayd enroll install FILE", name, err)
	}
	slot.pair(name)
	return slot, nil
}

// unreadable is the error of a slot of which not even the key can be read.
func unreadable(slot string, err error) error {
	if errors.Is(err, fs.ErrPermission) { // no reason to give anything up
		return fmt.Errorf("slot %s: %w", slot, hint(err))
	}
	return fmt.Errorf("slot %s: %w; bring it back, or begin anew with %s", slot, hint(err), tpm.Anew)
}

// ErrOtherKey is a certificate beside a key that it is not for.
var ErrOtherKey = errors.New("it is for another key than the one beside it")

// pair gives a chain up that is for another key: with it no handshake could be had.
func (s *Slot) pair(name string) {
	if s.Chain == nil || s.Public == nil || Matches(s.Public, s.Chain[0]) {
		return
	}
	s.Damage = fmt.Errorf("slot %s: the certificate of %q: %w; bring back the file that was exchanged (%s or %s), or have a certificate issued for this key: gatewayd enroll csr, then gatewayd enroll install FILE",
		name, s.Chain[0].Subject.CommonName, ErrOtherKey, keyFile, chainFile)
	s.Chain = nil
}

func (s *Store) file(folder, name string) ([]byte, error) {
	return ReadFile(filepath.Join(s.dir, folder, name), maxFile)
}

// Stamp changes whenever a slot does, and is cheap to ask for.
func (s *Store) Stamp() string {
	var b strings.Builder
	for _, name := range []string{Current, Next, Previous} {
		folder, _ := os.Readlink(filepath.Join(s.dir, name))
		fmt.Fprintf(&b, "%s;", folder)
		if info, err := os.Stat(filepath.Join(s.dir, folder, chainFile)); folder != "" && err == nil {
			fmt.Fprintf(&b, "%d.%d;", info.ModTime().UnixNano(), info.Size())
		}
	}
	return b.String()
}

// AddKey puts a key file, and the request that was made with it where there is
// one, into the next slot, which then waits for a certificate. Another key that
// waited there is given up.
func (s *Store) AddKey(text, request []byte) error {
	if _, err := tpm.PublicKey(text); err != nil {
		return err
	}
	return s.change(func() error { return s.add(Next, map[string][]byte{keyFile: text, requestFile: request}) })
}

// ErrNoKey is a certificate for a key that the store does not have.
var ErrNoKey = errors.New("it is for a key that this gateway does not have")

// Install puts a certificate chain (PEM) into the slot whose key it is for, and
// says which that is. One for the key that is in use goes into the next slot,
// with the same key. One that is there already changes nothing.
//
// The first certificate of a store becomes the current one at once: there is
// nothing that it could break.
func (s *Store) Install(text []byte) (slot string, err error) {
	chain, err := Chain(text)
	if err != nil {
		return "", err
	}
	err = s.change(func() error {
		all, err := s.Read()
		if err != nil {
			return err
		}
		slot, err = s.install(&all, chain)
		return err
	})
	return slot, err
}

func (s *Store) install(all *Slots, chain []*x509.Certificate) (string, error) {
	text := encodeChain(chain)
	has := func(slot *Slot) bool { return slot != nil && slot.Public != nil && Matches(slot.Public, chain[0]) }
	same := func(slot *Slot) bool {
		return has(slot) && slices.EqualFunc(slot.Chain, chain, (*x509.Certificate).Equal)
	}
	switch {
	case same(all.Current):
		return Current, nil
	case has(all.Next):
		if !same(all.Next) {
			if err := s.add(Next, map[string][]byte{keyFile: all.Next.KeyFile, requestFile: all.Next.Request, chainFile: text}); err != nil {
				return "", err
			}
		}
		if all.Current == nil {
			return Current, s.promote()
		}
		return Next, nil
	case has(all.Current) && all.Current.Chain == nil: // it was damaged
		return Current, s.add(Current, map[string][]byte{keyFile: all.Current.KeyFile, requestFile: all.Current.Request, chainFile: text})
	case has(all.Current):
		return Next, s.add(Next, map[string][]byte{keyFile: all.Current.KeyFile, chainFile: text})
	}
	return "", fmt.Errorf("the certificate %q: %w: have it issued for a request of gatewayd enroll csr", chain[0].Subject, ErrNoKey)
}

func encodeChain(chain []*x509.Certificate) []byte {
	var b bytes.Buffer
	for _, c := range chain {
		_ = pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}) // a buffer takes all
	}
	return b.Bytes()
}

// Promote makes the next slot the current one, and the current one the previous.
func (s *Store) Promote() error {
	return s.change(func() error {
		all, err := s.Read()
		if err != nil {
			return err
		}
		if all.Next == nil || all.Next.Chain == nil {
			return errors.New("the next slot has no certificate")
		}
		return s.promote()
	})
}

func (s *Store) promote() error {
	if folder, err := os.Readlink(filepath.Join(s.dir, Current)); err == nil {
		if err := s.link(Previous, folder); err != nil {
			return err
		}
	}
	return s.rename(Next, Current)
}

// Confirm lets go of the previous slot, after the first good session with the
// current one.
func (s *Store) Confirm() error {
	return s.change(func() error { return s.remove(Previous) })
}

// Revert makes the previous slot the current one again, and gives the one up
// that took its place.
func (s *Store) Revert() error {
	return s.change(func() error {
		if _, err := os.Readlink(filepath.Join(s.dir, Previous)); err != nil {
			return errors.New("there is no previous certificate to go back to")
		}
		return s.rename(Previous, Current)
	})
}

// Abandon gives the next slot up, with its key.
func (s *Store) Abandon() error { return s.change(func() error { return s.remove(Next) }) }

// change runs f while no other process changes the store, and sweeps up folders
// that no slot needs.
func (s *Store) change(f func() error) error {
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return fmt.Errorf("folder of the identity: %w", hint(err))
	}
	lock, err := os.OpenFile(filepath.Join(s.dir, "lock"), os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("folder of the identity: %w", hint(err))
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return fmt.Errorf("folder of the identity: lock: %w", err)
	}
	if err := s.sweep(); err != nil { // what a power cut or a full disk left
		return err
	}
	if err := f(); err != nil {
		return err
	}
	return s.sweep()
}

// add writes a folder and links a slot to it.
func (s *Store) add(slot string, files map[string][]byte) error {
	folder, err := s.free()
	if err != nil {
		return err
	}
	path := filepath.Join(s.dir, folder)
	if err := s.do("make the folder", func() error { return os.Mkdir(path, 0o700) }); err != nil {
		return err
	}
	for _, name := range []string{keyFile, requestFile, chainFile} {
		if text := files[name]; text != nil {
			if err := s.do("write "+name, func() error { return writeFile(filepath.Join(path, name), text) }); err != nil {
				return err
			}
		}
	}
	if err := s.do("sync", func() error { return errors.Join(syncDir(path), syncDir(s.dir)) }); err != nil {
		return err
	}
	return s.link(slot, folder)
}

// free is the name of a folder that is not there: the next number.
func (s *Store) free() (string, error) {
	entries, err := os.ReadDir(s.dir)
	last := 0
	for _, e := range entries {
		if n, err := strconv.Atoi(e.Name()); err == nil {
			last = max(last, n)
		}
	}
	return strconv.Itoa(last + 1), err
}

func (s *Store) link(slot, folder string) error {
	part := filepath.Join(s.dir, slot+".part")
	_ = os.Remove(part)
	if err := s.do("link", func() error { return os.Symlink(folder, part) }); err != nil {
		return err
	}
	return s.rename(slot+".part", slot)
}

func (s *Store) rename(from, to string) error {
	return s.do("rename", func() error {
		return errors.Join(os.Rename(filepath.Join(s.dir, from), filepath.Join(s.dir, to)), syncDir(s.dir))
	})
}

func (s *Store) remove(slot string) error {
	return s.do("remove", func() error {
		if err := os.Remove(filepath.Join(s.dir, slot)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return syncDir(s.dir)
	})
}

func (s *Store) do(what string, f func() error) error {
	err := s.step(what)
	if err == nil {
		err = f()
	}
	if err != nil {
		return fmt.Errorf("folder of the identity: %s: %w", what, hint(err))
	}
	return nil
}

// sweep removes what no slot links to.
func (s *Store) sweep() error {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return err
	}
	used := map[string]bool{}
	for _, name := range []string{Current, Next, Previous} {
		if folder, err := os.Readlink(filepath.Join(s.dir, name)); err == nil {
			used[folder] = true
		}
	}
	for _, e := range entries {
		if _, err := strconv.Atoi(e.Name()); err == nil && !used[e.Name()] {
			if err := os.RemoveAll(filepath.Join(s.dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

func writeFile(path string, text []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	return errors.Join(err, f.Sync(), f.Close())
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// NotAfter is when the slot's certificate ends; zero where there is none.
func (s *Slot) NotAfter() time.Time {
	if s == nil || s.Chain == nil {
		return time.Time{}
	}
	return s.Chain[0].NotAfter
}
