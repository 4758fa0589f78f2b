package fetch

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
)

// A store is a directory of files that are DER and nothing else: they carry
// their own signature, so nothing has to be said about them.
type store struct {
	mu    sync.Mutex
	root  *os.Root // a link in the directory leads nowhere else
	files int
	most  int
}

const unfinished = ".new"

func openStore(dir string, most int) (*store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	s := &store{root: root, most: most}
	if err := s.prune(); err != nil {
		return nil, errors.Join(err, root.Close())
	}
	return s, nil
}

func (s *store) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	_ = s.root.Close() // nothing is open in it
}

// prune removes what a power cut left, and the oldest files over the limit.
func (s *store) prune() error {
	entries, err := fs.ReadDir(s.root.FS(), ".")
	if err != nil {
		return err
	}
	type file struct {
		name string
		age  int64
	}
	var files []file
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), unfinished) {
			_ = s.root.Remove(e.Name()) // tried again at the next start
		} else if info, err := e.Info(); err == nil && info.Mode().IsRegular() {
			files = append(files, file{e.Name(), info.ModTime().UnixNano()})
		}
	}
	slices.SortFunc(files, func(a, b file) int { return cmp.Compare(a.age, b.age) })
	for len(files) > s.most {
		if err := s.root.Remove(files[0].name); err != nil {
			return err
		}
		files = files[1:]
	}
	s.files = len(files)
	return nil
}

func (s *store) read(name string, limit int64) ([]byte, error) {
	file, err := s.root.Open(name)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	b, err := io.ReadAll(io.LimitReader(file, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("it is larger than the limit of %d bytes", limit)
	}
	return b, err
}

// names are the files that begin with a prefix.
func (s *store) names(prefix string) []string {
	list, err := fs.Glob(s.root.FS(), prefix+"*")
	if err != nil {
		return nil // only a bad pattern is an error, and prefixes are hexadecimal
	}
	return list
}

// write replaces a file whole: after a power cut there is the old or the new one.
func (s *store) write(name string, b []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.files > s.most {
		if err := s.prune(); err != nil {
			return err
		}
	}
	file, err := s.root.OpenFile(name+unfinished, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = file.Write(b)
	if err = errors.Join(err, file.Sync(), file.Close()); err != nil {
		return errors.Join(err, s.root.Remove(name+unfinished))
	}
	if _, err := s.root.Stat(name); err != nil {
		s.files++
	}
	return s.root.Rename(name+unfinished, name)
}

func (f *Fetcher) read(name string, limit int64) ([]byte, error) {
	if f.disk == nil {
		return nil, fs.ErrNotExist
	}
	return f.disk.read(name, limit)
}

func (f *Fetcher) save(name string, b []byte) {
	if f.disk == nil {
		return
	}
	if err := f.disk.write(name, b); err != nil {
		f.o.Log.Warn("revocation cache: a file could not be written; it is fetched again after a restart", "file", path.Join(f.o.Dir, name), "error", err)
	}
}

func (f *Fetcher) damaged(name string, why error) {
	f.count(func(n *Counts) { n.Damaged++ })
	f.o.Log.Warn("revocation cache: a file is not what was written there and is ignored",
		"file", path.Join(f.o.Dir, name), "reason", why.Error(), "next", "nothing for one file; for many, see to the storage, and to who can write there")
}
