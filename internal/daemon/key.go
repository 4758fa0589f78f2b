package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/bedside-gateway/gatewayd/keystore"
	"github.com/bedside-gateway/gatewayd/keystore/tpm"
)

// The names in the state folder of the spool and of its key: sealed by the TPM,
// or in the clear beside a development key.
const (
	SpoolFile    = "spool.db"
	KeyFile      = "spool.key"
	SealedFile   = "spool.key.tpm"
	unreadable   = ".unreadable"
	spoolJournal = ".journal"
)

// A SpoolKey keeps the key that the spool in a state folder is encrypted with.
type SpoolKey struct {
	Dir string
	// TPM seals it; nil keeps it in the clear, which goes with a development key.
	TPM     *tpm.TPM
	Binding *tpm.Binding
}

// ErrNoSpoolKey is a state folder without a key of a spool. A TPM that is not
// there is another error, which also is fs.ErrNotExist.
var ErrNoSpoolKey = errors.New("there is no key of a spool")

// Read reads the key. Errors of the TPM are *tpm.Error; without a key it is
// ErrNoSpoolKey.
func (k SpoolKey) Read(ctx context.Context) (key [32]byte, err error) {
	if k.TPM == nil {
		return k.readClear()
	}
	text, err := keystore.ReadFile(filepath.Join(k.Dir, SealedFile), keystore.MaxFile)
	if err != nil {
		return key, k.unread(err)
	}
	secret, err := k.TPM.Unseal(ctx, text)
	if err != nil {
		return key, fmt.Errorf("key of the spool: %w", err)
	}
	defer clear(secret)
	if len(secret) != len(key) {
		return key, fmt.Errorf("key of the spool: %w: %s holds %d bytes and not %d; %s", errNotKey, SealedFile, len(secret), len(key), nextNotKey)
	}
	return [32]byte(secret), nil
}

// errNotKey is something else in the place of a sealed key.
var errNotKey = errors.New("it is something else")

const nextNotKey = "bring it back from a copy, or begin a new spool, without the messages that wait: " + tpm.AnewWithout

func (k SpoolKey) unread(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w in %s", ErrNoSpoolKey, k.Dir)
	}
	if _, disk := errors.AsType[*fs.PathError](err); !disk && k.TPM != nil {
		return fmt.Errorf("key of the spool: %w: %w; %s", errNotKey, err, nextNotKey)
	}
	return fmt.Errorf("key of the spool: %w", err)
}

// readClear refuses a file that others may read.
func (k SpoolKey) readClear() (key [32]byte, err error) {
	path := filepath.Join(k.Dir, KeyFile)
	info, err := os.Stat(path)
	if err != nil {
		return key, k.unread(err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return key, fmt.Errorf("key of the spool: %s may be read by others (%v): whoever did may know what the spool holds; chmod 600 it: %w", path, info.Mode().Perm(), fs.ErrPermission)
	}
	b, err := keystore.ReadFile(path, keystore.MaxFile)
	if err != nil {
		return key, fmt.Errorf("key of the spool: %w", err)
	}
	if len(b) != len(key) {
		return key, fmt.Errorf("key of the spool: %s has %d bytes and not %d: bring the right file back, or move it and %s away to begin a new spool", path, len(b), len(key), SpoolFile)
	}
	return [32]byte(b), nil
}

// open reads the key, or makes one where there is neither a key nor a spool. One
// that was in the clear before is sealed.
func (k SpoolKey) open(ctx context.Context, random io.Reader) ([32]byte, error) {
	key, err := k.Read(ctx)
	if !errors.Is(err, ErrNoSpoolKey) {
		return key, err
	}
	if k.TPM != nil {
		if key, err := k.readClear(); !errors.Is(err, ErrNoSpoolKey) {
			if err == nil {
				err = k.write(ctx, key)
			}
			return key, err
		}
	}
	if k.orphaned() {
		return key, fmt.Errorf("%s: %w (%s): %s", k.Dir, errOrphaned, k.file(), k.nextOrphaned())
	}
	return k.make(ctx, random)
}

// orphaned reports whether there is a spool without any key to it: the file of
// the key was removed, or to give both up was cut off half way.
func (k SpoolKey) orphaned() bool {
	is := func(name string) bool { _, err := os.Stat(filepath.Join(k.Dir, name)); return err == nil }
	return is(SpoolFile) && !is(SealedFile) && !is(KeyFile)
}

var errOrphaned = errors.New("there is a spool and no key to it")

func (k SpoolKey) nextOrphaned() string {
	if k.TPM == nil {
		return "bring the key back, or move " + SpoolFile + " away to begin a new spool"
	}
	return nextNotKey
}

func (k SpoolKey) file() string {
	if k.TPM == nil {
		return KeyFile
	}
	return SealedFile
}

func (k SpoolKey) make(ctx context.Context, random io.Reader) (key [32]byte, err error) {
	if _, err := io.ReadFull(random, key[:]); err != nil {
		return key, fmt.Errorf("key of the spool: no randomness: %w", err)
	}
	return key, k.write(ctx, key)
}

// write keeps the key so that after a power cut it is there whole or not at all.
// In the clear it is nowhere any more once it is sealed.
func (k SpoolKey) write(ctx context.Context, key [32]byte) error {
	text := key[:]
	if k.TPM != nil {
		sealed, err := k.TPM.Seal(ctx, key[:], k.Binding)
		if err != nil {
			return fmt.Errorf("key of the spool: %w", err)
		}
		text = sealed
	}
	if err := keystore.WriteFile(filepath.Join(k.Dir, k.file()), text); err != nil {
		return fmt.Errorf("key of the spool: %w", err)
	}
	if k.TPM == nil {
		return nil
	}
	if err := os.Remove(filepath.Join(k.Dir, KeyFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("key of the spool: %w", err)
	}
	return nil
}

// rotateAfter is how old a sealed key gets. It is exchanged at the next start at
// which the spool is empty, so that nothing has to be encrypted anew.
const rotateAfter = 30 * 24 * time.Hour

// due reports whether the key is to be exchanged.
func (k SpoolKey) due(now time.Time) bool {
	info, err := os.Stat(filepath.Join(k.Dir, SealedFile))
	return k.TPM != nil && err == nil && now.Sub(info.ModTime()) > rotateAfter
}

// rotate exchanges the key of an empty spool, which it begins anew. After a
// power cut there is the old key or the new one, and at most no spool, which is
// an empty one.
func (k SpoolKey) rotate(ctx context.Context, random io.Reader) ([32]byte, error) {
	for _, name := range []string{SpoolFile + spoolJournal, SpoolFile} {
		if err := os.Remove(filepath.Join(k.Dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return [32]byte{}, fmt.Errorf("spool: %w", err)
		}
	}
	return k.make(ctx, random)
}

// Sealed reports whether there is a sealed key.
func (k SpoolKey) Sealed() bool {
	_, err := os.Stat(filepath.Join(k.Dir, SealedFile))
	return err == nil
}

// Lost reports whether there is a spool whose key the TPM will never give again,
// or is not there any more. A TPM that is away may come back: that is an error.
func (k SpoolKey) Lost(ctx context.Context) (bool, error) {
	_, err := k.Read(ctx)
	switch tpm.FaultOf(err) {
	case tpm.Cleared, tpm.Replaced, tpm.Foreign, tpm.Tampered:
		return true, nil
	case "":
		if errors.Is(err, ErrNoSpoolKey) {
			return k.orphaned(), nil
		}
		if errors.Is(err, errNotKey) {
			return true, nil
		}
	}
	return false, err
}

// Abandon moves a spool aside whose key the TPM does not give any more, with the
// key's file, and says where to; "" where there is no spool.
func (k SpoolKey) Abandon() (moved string, err error) {
	for _, name := range []string{SealedFile, SpoolFile + spoolJournal, SpoolFile} {
		path := filepath.Join(k.Dir, name)
		if err := os.Rename(path, path+unreadable); errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return "", err
		}
		if name == SpoolFile {
			moved = path + unreadable
		}
	}
	return moved, nil
}
