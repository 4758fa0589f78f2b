package revocation

import (
	"crypto/sha256"
	"crypto/x509"
	"sync"
	"time"
)

// A Memory remembers the good verdicts on responses until they expire, so that
// a reconnect with the same responses costs no signature check (B18 asks for a
// check at every session; the memory answers only for the very same bytes
// about the very same certificates, and the time is judged anew each time).
// The zero value is ready. It is safe for concurrent use.
type Memory struct {
	mu   sync.Mutex
	good map[[sha256.Size]byte]Verdict
}

// memorySize bounds a Memory: a gateway has few platforms, each with few certificates.
const memorySize = 256

// Judge is the function Judge for stapled responses, with what it remembers.
func (m *Memory) Judge(chain []*x509.Certificate, staples [][]byte, now time.Time, rules Rules) []Verdict {
	if len(chain) < 2 {
		return Judge(chain, Evidence{}, now, rules)
	}
	verdicts := make([]Verdict, len(chain)-1)
	for i := range verdicts {
		if i >= len(staples) || len(staples[i]) == 0 {
			verdicts[i] = judgeOne(chain[i], chain[i+1], Evidence{}, i, now, rules)
			continue
		}
		k := key(chain[i], chain[i+1], staples[i])
		if v, known := m.recall(k, i, now, rules); known {
			verdicts[i] = v
			continue
		}
		verdicts[i] = judgeOne(chain[i], chain[i+1], Stapled(staples), i, now, rules)
		if verdicts[i].Good() {
			m.keep(k, verdicts[i], now)
		}
	}
	return verdicts
}

func key(cert, issuer *x509.Certificate, staple []byte) [sha256.Size]byte {
	h := sha256.New()
	for _, b := range [][]byte{cert.Raw, issuer.Raw, staple} {
		h.Write([]byte{byte(len(b) >> 24), byte(len(b) >> 16), byte(len(b) >> 8), byte(len(b))})
		h.Write(b)
	}
	return [sha256.Size]byte(h.Sum(nil))
}

func (m *Memory) recall(k [sha256.Size]byte, position int, now time.Time, rules Rules) (Verdict, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	v, ok := m.good[k]
	if !ok {
		return v, false
	}
	if now.After(v.signerNotAfter) || checkTimes(time.Time{}, v.ThisUpdate, v.NextUpdate, now, rules) != nil {
		delete(m.good, k)
		return Verdict{}, false
	}
	v.Position = position
	return v, true
}

func (m *Memory) keep(k [sha256.Size]byte, v Verdict, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.good == nil {
		m.good = map[[sha256.Size]byte]Verdict{}
	}
	if len(m.good) >= memorySize {
		m.forget(now)
	}
	m.good[k] = v
}

// forget makes room: what has expired first, else everything.
func (m *Memory) forget(now time.Time) {
	for k, v := range m.good {
		if !now.Before(v.NextUpdate) {
			delete(m.good, k)
		}
	}
	if len(m.good) >= memorySize {
		clear(m.good)
	}
}
