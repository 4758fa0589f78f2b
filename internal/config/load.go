package config

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// A loader is one run over one file.
type loader struct {
	path, dir string
	options   Options
	lines     []int // offsets of the line starts
	problems  Problems
	listeners []listener // of all sections
	dialled   []dialled  // likewise
}

// fault notes a problem at an offset. text is what is wrong and, behind the
// first semicolon, what to do.
func (l *loader) fault(at int, key, text string) {
	line, column := l.place(at)
	what, next, _ := strings.Cut(text, "; ")
	l.problems = append(l.problems, Problem{File: l.path, Line: line, Column: column, Key: key, What: what, Next: next})
}

func (l *loader) warn(at int, key, text string) {
	l.fault(at, key, text)
	l.problems[len(l.problems)-1].Warning = true
}

func (l *loader) failed() bool {
	return slices.ContainsFunc(l.problems, func(p Problem) bool { return !p.Warning })
}

// sorted is the warnings, or all problems, in the order of the file.
func (l *loader) sorted(warningsOnly bool) Problems {
	out := slices.Clone(l.problems)
	if warningsOnly {
		out = slices.DeleteFunc(out, func(p Problem) bool { return !p.Warning })
	}
	slices.SortStableFunc(out, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	return out
}

// found remembers where the keys of a section stand, for the checks that look
// at several of them.
type found struct {
	l      *loader
	prefix string
	node   *node
}

// at is the offset of a key, or of the section where the key is left out.
func (f found) at(name string) int {
	if n := f.node.table[name]; n != nil {
		return n.value
	}
	return f.node.at
}

func (f found) has(name string) bool { return f.node.table[name] != nil }

func (f found) fault(name, text string) { f.l.fault(f.at(name), f.prefix+name, text) }
func (f found) warn(name, text string)  { f.l.warn(f.at(name), f.prefix+name, text) }

// read fills the struct of a section from its table: defaults first, then what
// is there. below names the keys that are sections of their own.
func read[T any](l *loader, n *node, prefix string, keys section[T], into *T, below ...string) found {
	f := found{l, prefix, n}
	names := slices.Clone(below)
	for _, k := range keys {
		names = append(names, k.name)
		setKey(f, k, into)
	}
	for _, name := range n.keys {
		if !slices.Contains(names, name) {
			l.fault(n.table[name].at, prefix+name, unknown(name, names))
		}
	}
	return f
}

func unknown(name string, names []string) string {
	if near := nearest(name, names); near != "" {
		return fmt.Sprintf("there is no such key; did you mean %s?", near)
	}
	return "there is no such key; here are possible: " + strings.Join(names, ", ")
}

func setKey[T any](f found, k key[T], into *T) {
	kind := k.into(into)
	if k.def != nil {
		if err := kind.set(f.l, k.def); err != nil {
			panic("default of " + f.prefix + k.name + ": " + err.Error()) // the table is wrong: a test reads all of it
		}
	}
	v := f.node.table[k.name]
	if v == nil {
		if k.required {
			f.fault(k.name, "is missing; add "+k.name+" = … ("+kind.name+")")
		}
		return
	}
	plain := v.plain
	if v.table != nil {
		plain = nil
	}
	if err := kind.set(f.l, plain); err != nil {
		for _, e := range split(err) {
			f.fault(k.name, e.Error())
		}
	}
}

// split is the errors that errors.Join joined.
func split(err error) []error {
	if joined, ok := errors.AsType[interface {
		error
		Unwrap() []error
	}](err); ok {
		return joined.Unwrap()
	}
	return []error{err}
}

// table is the section called name, empty where it is left out.
func (l *loader) table(n *node, name, prefix string) *node {
	t := n.table[name]
	switch {
	case t == nil:
		return newTable(n.at)
	case len(t.list) > 0 || t.table == nil:
		l.fault(t.at, prefix+name, fmt.Sprintf("is a section that is there once; write [%s%s]", prefix, name))
		return newTable(t.at)
	}
	return t
}

// tables is the sections called name.
func (l *loader) tables(n *node, name string) []*node { return l.nested(n, name, "") }

// nested is tables below a section.
func (l *loader) nested(n *node, name, prefix string) []*node {
	t := n.table[name]
	if t == nil {
		return nil
	}
	if list, ok := t.plain.([]any); len(t.list) == 0 && !(ok && len(list) == 0) || len(t.list) > 0 && ok && len(list) != len(t.list) {
		l.fault(t.at, prefix+name, fmt.Sprintf("is a section that may be there several times; write [[%s%s]]", prefix, name))
	}
	return t.list
}

func (l *loader) config(root *node) *Config {
	c := &Config{Path: l.path}
	read(l, root, "", rootKeys, c, "gateway", "identity", "spool", "destination", "port", "southbound", "tunnel")
	read(l, l.table(root, "gateway", ""), "gateway.", gatewayKeys, &c.Gateway)
	identity := read(l, l.table(root, "identity", ""), "identity.", identityKeys, &c.Identity)
	read(l, l.table(root, "spool", ""), "spool.", spoolKeys, &c.Spool)
	l.destinations(c, root)
	l.ports(c, root)
	l.southbound(c, root)
	l.tunnels(c, root)
	l.loops()
	l.checkDescriptors(c, root)
	l.checkIdentity(c, identity)
	return c
}

func (l *loader) destinations(c *Config, root *node) {
	seen := names{}
	for _, n := range l.tables(root, "destination") {
		var d Destination
		f := read(l, n, "destination.", destinationKeys, &d)
		seen.unique(f, "name", d.Name)
		l.checkDestination(f, &d)
		c.Destinations = append(c.Destinations, d)
	}
	if len(seen) == 0 && root.table["tunnel"] == nil && !l.failed() {
		l.warn(root.at, "destination", "there is none, so nothing is kept or sent; add a [[destination]] section")
	}
}

func (l *loader) ports(c *Config, root *node) {
	seen, devices := names{}, names{}
	for _, n := range l.tables(root, "port") {
		var p Port
		f := read(l, n, "port.", portKeys, &p, "location", "options")
		read(l, l.table(n, "location", "port."), "port.location.", locationKeys, &p.Location)
		seen.unique(f, "name", p.Name)
		devices.unique(f, "device", p.Device)
		l.checkPort(f, &p)
		c.Ports = append(c.Ports, p)
	}
	if len(seen) == 0 && root.table["southbound"] == nil && root.table["tunnel"] == nil && !l.failed() {
		l.warn(root.at, "port", "there is none, so nothing is read; add a [[port]] section")
	}
}

// names are those that are taken, with the line where.
type names map[string]int

func (s names) unique(f found, key, name string) {
	if name == "" {
		return
	}
	if first, ok := s[name]; ok {
		f.fault(key, fmt.Sprintf("%q is there already, in line %d; each needs a %s of its own", name, first, key))
		return
	}
	s[name], _ = f.l.place(f.at(key))
}
