package config

import (
	"errors"
	"sort"
	"strconv"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// A node is a table, an array of tables or a value of the file, with its place.
// The library's own decoder stops at the first value of a wrong kind and does
// not say where a value is that only a later check finds wrong: hence the tree.
type node struct {
	at    int // offset of its key or header
	value int // offset of the value
	plain any // string, bool, int64, []any, or other for what no key takes
	keys  []string
	table map[string]*node // a table where not nil
	list  []*node          // an array of tables where not nil
}

// other stands for values of kinds that no key has: floats, dates.
type other struct{ kind string }

func newTable(at int) *node { return &node{at: at, value: at, table: map[string]*node{}} }

// child is the table or value called key, made where it is missing.
func (n *node) child(key string, at int) *node {
	if n.table == nil { // a value: the decoder has refused to go on below it
		return newTable(at)
	}
	c, ok := n.table[key]
	if !ok {
		c = newTable(at)
		n.put(key, c)
	}
	return c
}

func (n *node) put(key string, c *node) {
	if _, ok := n.table[key]; !ok {
		n.keys = append(n.keys, key)
	}
	n.table[key] = c
}

// last is the table that a header below n goes on with: of an array the newest.
func (n *node) last() *node {
	if len(n.list) > 0 {
		return n.list[len(n.list)-1]
	}
	return n
}

// parse makes the tree of a text, or nil after it noted what is wrong.
func (l *loader) parse(text []byte) *node {
	l.lines = lineStarts(text)
	// The library's decoder is what says whether the text is TOML: it also sees
	// keys that are there twice and tables that are opened twice.
	var any map[string]any
	if err := toml.Unmarshal(text, &any); err != nil {
		l.syntax(err)
		return nil
	}
	b := &builder{root: newTable(0)}
	b.parser.Reset(text)
	table := b.root
	for b.parser.NextExpression() {
		switch e := b.parser.Expression(); e.Kind {
		case unstable.Table:
			table = b.open(e, false)
		case unstable.ArrayTable:
			table = b.open(e, true)
		case unstable.KeyValue:
			b.keyValue(table, e)
		}
	}
	if err := b.parser.Error(); err != nil {
		l.syntax(err)
		return nil
	}
	return b.root
}

func (l *loader) syntax(err error) {
	p := Problem{File: l.path, What: strings.TrimPrefix(err.Error(), "toml: "), Next: "a text value stands in quotes, a section in [brackets]"}
	var at *toml.DecodeError
	if errors.As(err, &at) {
		p.Line, p.Column = at.Position()
		p.Key = strings.Join(at.Key(), ".")
	}
	l.problems = append(l.problems, p)
}

// A builder makes the tree from the library's syntax tree.
type builder struct {
	parser unstable.Parser
	root   *node
}

func (b *builder) offset(n *unstable.Node) int { return int(n.Raw.Offset) }

func (b *builder) open(e *unstable.Node, array bool) *node {
	t := b.root
	for it := e.Key(); it.Next(); {
		key, at := string(it.Node().Data), b.offset(it.Node())
		t = t.child(key, at)
		if array && it.IsLast() {
			t.list = append(t.list, newTable(at))
		}
		t = t.last()
	}
	return t
}

func (b *builder) keyValue(t *node, e *unstable.Node) {
	for it := e.Key(); it.Next(); {
		key, at := string(it.Node().Data), b.offset(it.Node())
		if !it.IsLast() {
			t = t.child(key, at).last()
			continue
		}
		c := b.valueNode(e.Value(), at)
		c.at = at
		if t.table != nil {
			t.put(key, c)
		}
	}
}

func (b *builder) valueNode(v *unstable.Node, at int) *node {
	if v.Raw.Length > 0 {
		at = b.offset(v)
	}
	n := &node{at: at, value: at}
	switch v.Kind {
	case unstable.InlineTable:
		n = newTable(at)
		for it := v.Children(); it.Next(); {
			b.keyValue(n, it.Node())
		}
	case unstable.Array:
		b.array(n, v)
	case unstable.String:
		n.plain = string(v.Data)
	case unstable.Bool:
		n.plain = string(v.Data) == "true"
	case unstable.Integer:
		n.plain = integer(string(v.Data))
	default:
		n.plain = other{strings.ToLower(v.Kind.String())}
	}
	return n
}

func (b *builder) array(n *node, v *unstable.Node) {
	values := []any{}
	for it := v.Children(); it.Next(); {
		c := b.valueNode(it.Node(), n.at)
		if c.table != nil {
			n.list = append(n.list, c)
		}
		values = append(values, c.plain)
	}
	n.plain = values
}

func integer(s string) any {
	i, err := strconv.ParseInt(strings.ReplaceAll(s, "_", ""), 0, 64)
	if err != nil {
		return other{"integer"}
	}
	return i
}

func lineStarts(text []byte) []int {
	starts := []int{0}
	for i, c := range text {
		if c == '\n' {
			starts = append(starts, i+1)
		}
	}
	return starts
}

// place is the line and column of an offset, both from 1.
func (l *loader) place(offset int) (line, column int) {
	i := sort.SearchInts(l.lines, offset+1) - 1
	return i + 1, offset - l.lines[i] + 1
}
