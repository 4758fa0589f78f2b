package daemon

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// SpoolFile and KeyFile are the names of the spool and its key in the state folder.
const (
	SpoolFile = "spool.db"
	KeyFile   = "spool.key"
)

// ReadSpoolKey reads the key that the spool is encrypted with. It refuses one
// that others may read.
func ReadSpoolKey(dir string) (key [32]byte, err error) {
	path := filepath.Join(dir, KeyFile)
	info, err := os.Stat(path)
	if err != nil {
		return key, fmt.Errorf("key of the spool: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return key, fmt.Errorf("key of the spool: %s may be read by others (%v): whoever did may know what the spool holds; chmod 600 it: %w", path, info.Mode().Perm(), fs.ErrPermission)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return key, fmt.Errorf("key of the spool: %w", err)
	}
	if len(b) != len(key) {
		return key, fmt.Errorf("key of the spool: %s has %d bytes and not %d: bring the right file back, or move it and %s away to begin a new spool", path, len(b), len(key), SpoolFile)
	}
	return [32]byte(b), nil
}

// spoolKey reads the key, or makes one where there is neither a key nor a spool.
func spoolKey(dir string, random io.Reader) ([32]byte, error) {
	key, err := ReadSpoolKey(dir)
	if !errors.Is(err, fs.ErrNotExist) {
		return key, err
	}
	if _, err := os.Stat(filepath.Join(dir, SpoolFile)); err == nil {
		return key, fmt.Errorf("%s has a spool and no %s: bring the key back, or move the spool away to begin a new one", dir, KeyFile)
	}
	if _, err := io.ReadFull(random, key[:]); err != nil {
		return key, fmt.Errorf("key of the spool: no randomness: %w", err)
	}
	return key, writeKey(filepath.Join(dir, KeyFile), key[:])
}

// writeKey writes the file so that after a power cut it is there whole or not at all.
func writeKey(path string, key []byte) error {
	part := path + ".part"
	f, err := os.OpenFile(part, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("key of the spool: %w", err)
	}
	_, err = f.Write(key)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(part, path)
	}
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	if err != nil {
		return fmt.Errorf("key of the spool: %w", err)
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
