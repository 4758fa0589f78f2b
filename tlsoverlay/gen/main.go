// Command gen makes the overlay of crypto/tls: edited copies of a few stock
// files, the files of tlsoverlay/_tls beside them, and overlay.json for the
// -overlay flag of the go command.
//
// It fails loudly when the stock package is not the one that was reviewed: an
// anchor that is not there, or there twice; a file whose hash is not in
// reviewed.txt; a toolchain in the module cache, whose files the go command
// does not let an overlay replace.
package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"go/format"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("tlsoverlay/gen: ")
	g := generator{}
	flag.StringVar(&g.added, "added", "tlsoverlay/_tls", "folder of the files to add")
	flag.StringVar(&g.reviewed, "reviewed", "tlsoverlay/reviewed.txt", "hashes of the stock files that were reviewed")
	flag.StringVar(&g.out, "out", "_build/tls", "folder for the result")
	flag.BoolVar(&g.tests, "tests", false, "add the white-box tests, and teach the stock tests the new field")
	flag.BoolVar(&g.accept, "accept", false, "write the hashes of the stock files as reviewed")
	flag.Parse()
	if err := g.run(); err != nil {
		log.Fatal(err)
	}
}

type generator struct {
	added, reviewed, out string
	tests, accept        bool

	version, dir string            // of the stock package
	stock        map[string][]byte // by file name
	edited       map[string][]byte
}

func (g *generator) run() error {
	steps := []func() error{g.find, g.read, g.review, g.edit, g.write}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// find asks the go command for the stock package.
func (g *generator) find() error {
	var err error
	if g.version, err = goCommand("env", "GOVERSION"); err != nil {
		return err
	}
	if g.dir, err = goCommand("list", "-f", "{{.Dir}}", "crypto/tls"); err != nil {
		return err
	}
	cache, err := goCommand("env", "GOMODCACHE")
	if err != nil {
		return err
	}
	return checkToolchain(g.dir, cache)
}

func checkToolchain(dir, cache string) error {
	if rel, err := filepath.Rel(cache, dir); err == nil && !strings.HasPrefix(rel, "..") {
		return fmt.Errorf("the go command downloaded its toolchain into the module cache (%s), whose files no overlay may replace: "+
			"install Go from its archive and set GOTOOLCHAIN=local", dir)
	}
	return nil
}

func (g *generator) edits() []edit {
	if g.tests {
		return slices.Concat(edits, testEdits)
	}
	return edits
}

func (g *generator) read() error {
	g.stock = map[string][]byte{}
	for _, e := range g.edits() {
		if _, ok := g.stock[e.file]; ok {
			continue
		}
		b, err := os.ReadFile(filepath.Join(g.dir, e.file))
		if err != nil {
			return err
		}
		g.stock[e.file] = b
	}
	return nil
}

// review compares the stock files with those that somebody read: an anchor
// alone would let a changed surrounding pass.
func (g *generator) review() error {
	known, err := os.ReadFile(g.reviewed)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	var fresh []string
	for _, name := range g.names() {
		sum := sha256.Sum256(g.stock[name])
		file := name + " " + hex.EncodeToString(sum[:]) + " "
		// The version behind it is for readers: the same text needs no second review.
		if !slices.ContainsFunc(strings.Split(string(known), "\n"), func(line string) bool { return strings.HasPrefix(line, file) }) {
			fresh = append(fresh, file+g.version)
		}
	}
	if len(fresh) == 0 {
		return nil
	}
	if !g.accept {
		return fmt.Errorf("not in %s:\n  %s\nread what changed in these files since the reviewed version, run make test-tls and make interop, then run this with -accept",
			g.reviewed, strings.Join(fresh, "\n  "))
	}
	all := strings.Split(strings.TrimSpace(string(known)), "\n")
	all = slices.DeleteFunc(append(all, fresh...), func(s string) bool { return s == "" })
	slices.Sort(all)
	return os.WriteFile(g.reviewed, []byte(strings.Join(slices.Compact(all), "\n")+"\n"), 0o644)
}

func (g *generator) names() []string {
	names := make([]string, 0, len(g.stock))
	for name := range g.stock {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

func (g *generator) edit() error {
	out, err := apply(g.stock, g.edits())
	g.edited = out
	return err
}

// apply makes every edit, or lists all that do not fit.
func apply(stock map[string][]byte, edits []edit) (map[string][]byte, error) {
	out := map[string][]byte{}
	for name, b := range stock {
		out[name] = bytes.Clone(b)
	}
	var misfits []error
	for _, e := range edits {
		want := max(e.count, 1)
		if n := bytes.Count(out[e.file], []byte(e.anchor)); n != want {
			misfits = append(misfits, fmt.Errorf("%s: %s: the anchor %q is there %d times, expected %d", e.file, e.why, e.anchor, n, want))
			continue
		}
		text := e.text
		switch e.where {
		case before:
			text = e.text + e.anchor
		case after:
			text = e.anchor + e.text
		}
		out[e.file] = bytes.ReplaceAll(out[e.file], []byte(e.anchor), []byte(text))
	}
	for name, b := range out {
		formatted, err := format.Source(b)
		if err != nil {
			misfits = append(misfits, fmt.Errorf("%s: the edited file does not parse: %w", name, err))
			continue
		}
		out[name] = formatted
	}
	return out, errors.Join(misfits...)
}

// write lays out the result. It is written only where it differs, so that the
// build cache stays valid.
func (g *generator) write() error {
	out, err := filepath.Abs(g.out)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	files := map[string][]byte{}
	for name, b := range g.edited {
		files[name] = b
	}
	if err := g.addFiles(files); err != nil {
		return err
	}
	files["ext_version.go"] = fmt.Appendf(nil, "package tls\n\nconst extVersion = %q\n", g.mark(files))

	overlay := map[string]map[string]string{"Replace": {}}
	for name, b := range files {
		path := filepath.Join(out, name)
		overlay["Replace"][filepath.Join(g.dir, name)] = path
		if err := writeIfChanged(path, b); err != nil {
			return err
		}
	}
	b, err := json.MarshalIndent(overlay, "", "\t")
	if err != nil {
		return err
	}
	return writeIfChanged(filepath.Join(out, "overlay.json"), b)
}

func (g *generator) addFiles(files map[string][]byte) error {
	entries, err := os.ReadDir(g.added)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), "_test.go") && !g.tests {
			continue
		}
		if _, err := os.Stat(filepath.Join(g.dir, e.Name())); err == nil {
			return fmt.Errorf("the stock package has a %s of its own by now: rename ours", e.Name())
		}
		b, err := os.ReadFile(filepath.Join(g.added, e.Name()))
		if err != nil {
			return err
		}
		files[e.Name()] = b
	}
	return nil
}

// mark names the Go version and a hash over everything that was added or changed.
func (g *generator) mark(files map[string][]byte) string {
	h := sha256.New()
	fmt.Fprintln(h, g.version)
	names := make([]string, 0, len(files))
	for name := range files {
		if !strings.HasSuffix(name, "_test.go") {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		fmt.Fprintf(h, "%s %d\n", name, len(files[name]))
		h.Write(files[name])
	}
	return g.version + "+ext." + hex.EncodeToString(h.Sum(nil)[:8])
}

func writeIfChanged(path string, b []byte) error {
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, b) {
		return nil
	}
	return os.WriteFile(path, b, 0o644)
}

func goCommand(args ...string) (string, error) {
	cmd := exec.Command("go", args...)
	cmd.Env = append(os.Environ(), "GOFLAGS=")
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("go %s: %w", strings.Join(args, " "), err)
	}
	return strings.TrimSpace(string(out)), nil
}
