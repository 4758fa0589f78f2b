package drivers

import (
	"fmt"
	"slices"
	"strings"
)

// A Registry is the table of the drivers that a binary has. The binary lists
// them: no driver enters itself.
type Registry struct{ drivers []Driver }

// NewRegistry makes the table. Two drivers of one name are an error, and so is
// a name that a configuration could not hold.
func NewRegistry(drivers ...Driver) (*Registry, error) {
	r := &Registry{drivers: slices.Clone(drivers)}
	slices.SortStableFunc(r.drivers, func(a, b Driver) int { return strings.Compare(a.Info().Name, b.Info().Name) })
	for i, d := range r.drivers {
		name := d.Info().Name
		if name == "" || strings.ContainsFunc(name, func(c rune) bool { return (c < 'a' || c > 'z') && (c < '0' || c > '9') }) {
			return nil, fmt.Errorf("driver name %q: a name has small letters and digits", name)
		}
		if i > 0 && name == r.drivers[i-1].Info().Name {
			return nil, fmt.Errorf("two drivers are named %s", name)
		}
	}
	return r, nil
}

// All are the drivers, by name. The caller may change the slice.
func (r *Registry) All() []Driver { return slices.Clone(r.drivers) }

// Lookup finds a driver by its name. The error names the nearest one, or all.
func (r *Registry) Lookup(name string) (Driver, error) {
	names := make([]string, len(r.drivers))
	for i, d := range r.drivers {
		if names[i] = d.Info().Name; names[i] == name {
			return d, nil
		}
	}
	if near := nearest(name, names); near != "" {
		return nil, fmt.Errorf("there is no driver %q: did you mean %s?", name, near)
	}
	return nil, fmt.Errorf("there is no driver %q: there are %s", name, strings.Join(names, ", "))
}

// Identify finds the driver that is surest that the received bytes are its
// protocol, NoMatch and nil if none holds them for its own.
func (r *Registry) Identify(received []byte) (Driver, Match) {
	var best Driver
	sure := NeedMore
	for _, d := range r.drivers {
		if m := d.Identify(received); m > sure {
			best, sure = d, m
		}
	}
	if best == nil {
		return nil, NoMatch
	}
	return best, sure
}

// nearest is the name that a typing mistake of a third of its letters or less
// could have made of it, or none.
func nearest(word string, names []string) string {
	best, least := "", len(word)
	for _, name := range names {
		if d := distance(strings.ToLower(word), name); d < least && d <= max(1, len(name)/3) {
			best, least = name, d
		}
	}
	return best
}

// distance is how many letters to insert, remove or replace to make b of a (Levenshtein).
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
