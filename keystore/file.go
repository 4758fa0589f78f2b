package keystore

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// MaxFile is enough for any file that a configuration names: a large CRL has
// some megabytes.
const MaxFile = 16 << 20

// ReadFile reads a regular file of at most max bytes. A pipe or a device in its
// place is refused: it could hold us up, or never end.
func ReadFile(name string, max int64) ([]byte, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is no regular file", name)
	}
	b, err := io.ReadAll(io.LimitReader(f, max+1))
	if err == nil && int64(len(b)) > max {
		err = fmt.Errorf("%s has more than %d bytes: it is something else", name, max)
	}
	return b, err
}

// WriteFile writes a file for us alone so that after a power cut it is there
// whole or not at all.
func WriteFile(path string, text []byte) error {
	part := path + ".part"
	err := writeFile(part, text)
	if err == nil {
		err = os.Rename(part, path)
	}
	if err != nil {
		_ = os.Remove(part)
		return hint(err)
	}
	return syncDir(filepath.Dir(path))
}

// hint adds what to do about a disk or a user that is in the way.
func hint(err error) error {
	switch {
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w; run it as the user of gatewayd, or as root", err)
	case errors.Is(err, syscall.EROFS), errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT), errors.Is(err, syscall.EIO):
		return fmt.Errorf("%w; look at the disk of state_dir: is it full, read-only or broken?", err)
	}
	return err
}
