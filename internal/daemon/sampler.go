package daemon

import (
	"bytes"
	"hash/maphash"
	"log/slog"
	"sync"

	"github.com/bedside-gateway/gatewayd/pcd"
)

// maxShapes bounds what the sampler remembers. A monitor has some dozens of
// shapes; whatever is beyond the bound is not checked.
const maxShapes = 4096

// A sampler checks one message of each shape with pcd.Validate before it goes
// to the spool: the shape is which segments there are and, of each observation,
// its term, type and place. Findings are counted and logged once for a shape;
// they never hold a message back, for an imperfect message is better than none.
type sampler struct {
	log  *slog.Logger
	seed maphash.Seed

	mu       sync.Mutex
	seen     map[uint64]struct{}
	findings map[pcd.Severity]uint64
}

func newSampler(log *slog.Logger) *sampler {
	return &sampler{log: log, seed: maphash.MakeSeed(), seen: map[uint64]struct{}{},
		findings: map[pcd.Severity]uint64{pcd.Warning: 0, pcd.Error: 0}}
}

// check looks at a message if its shape is new.
func (s *sampler) check(port string, message []byte) {
	if !s.first(s.shape(message)) {
		return
	}
	found := pcd.Validate(message)
	s.mu.Lock()
	for _, f := range found {
		s.findings[f.Severity]++
	}
	s.mu.Unlock()
	for _, f := range found[:min(len(found), 5)] {
		s.log.Warn("a message breaks a rule of the profile; it is sent all the same", "port", port,
			"severity", f.Severity.String(), "rule", f.Rule, "path", f.Path, "finding", f.Text)
	}
}

func (s *sampler) first(shape uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, known := s.seen[shape]; known || len(s.seen) >= maxShapes {
		return false
	}
	s.seen[shape] = struct{}{}
	return true
}

// shape is a hash over the first five fields of each OBX, OBX-1 left out, and
// over the names of the other segments.
func (s *sampler) shape(message []byte) uint64 {
	var h maphash.Hash
	h.SetSeed(s.seed)
	for segment := range bytes.SplitSeq(message, []byte{'\r'}) {
		if !bytes.HasPrefix(segment, []byte("OBX|")) {
			h.Write(segment[:min(3, len(segment))])
			continue
		}
		rest := segment[4:]
		if i := bytes.IndexByte(rest, '|'); i >= 0 {
			rest = rest[i+1:]
		}
		h.Write(rest[:fieldsEnd(rest, 3)])
	}
	return h.Sum64()
}

// fieldsEnd is where the first n fields of b end.
func fieldsEnd(b []byte, n int) int {
	for i, c := range b {
		if c == '|' {
			if n--; n == 0 {
				return i
			}
		}
	}
	return len(b)
}

// counts are the findings by severity, and how many shapes were checked.
func (s *sampler) counts() (map[string]uint64, int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make(map[string]uint64, len(s.findings))
	for severity, n := range s.findings {
		out[severity.String()] = n
	}
	return out, len(s.seen)
}
