package config

import "path/filepath"

// Places are the parts of a file that find a gateway and its spool.
type Places struct {
	StateDir, StatusSocket string
	Spool                  Spool
	Identity               Identity
}

// PlacesOf reads them from a file, whatever else is wrong with it: a gateway is
// running whose file was broken after its start. What cannot be read has its default.
func PlacesOf(path string) Places {
	var g Gateway
	var s Spool
	var i Identity
	l := &loader{path: path, dir: filepath.Dir(path), lines: []int{0}}
	root := newTable(0)
	if text, err := readLimited(path); err == nil {
		if parsed := l.parse(text); parsed != nil {
			root = parsed
		}
	}
	read(l, l.table(root, "gateway", ""), "gateway.", gatewayKeys, &g)
	read(l, l.table(root, "spool", ""), "spool.", spoolKeys, &s)
	read(l, l.table(root, "identity", ""), "identity.", identityKeys, &i)
	return Places{g.StateDir, g.StatusSocket, s, i}
}
