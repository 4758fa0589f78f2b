package platform

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"github.com/bedside-gateway/gatewayd/mllp"
	"github.com/bedside-gateway/gatewayd/pcd"
)

// A session is one message of a gateway, and where it came from.
type session struct {
	p            *Platform
	life         *life
	remote, peer string
}

func (p *Platform) count(f func(*Counts)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f(&p.counts)
}

var errHangup = errors.New("hung up, as told")

// message judges, stores and answers one message. Its error ends the connection.
func (s *session) message(b []byte) (wire []byte, err error) {
	d, err := Read(b)
	if err != nil {
		// Without a header there is nothing to acknowledge: the sender sees the
		// connection close, which it must take as not delivered.
		s.reject("", fmt.Sprintf("a message of %d bytes cannot be read: %v", len(b), err))
		return nil, errors.New("closed after a message that cannot be read")
	}
	answer := s.p.nextAnswer()
	if problem := unsupported(d); problem != nil {
		return s.refuse(b, d, 'R', problem)
	}
	findings := pcd.Validate(b)
	if s.p.o.Strict {
		if i := slices.IndexFunc(findings, isError); i >= 0 {
			f := findings[i]
			return s.refuse(b, d, 'E', &problem{"207", f.Path + " " + f.Text})
		}
	}
	if !answer.stores() {
		return s.answer(b, d, answer, &problem{"207", "told to answer " + answer.code})
	}
	if p := s.p.take(s, d, b, findings, answer); p != nil {
		verdict := byte('E')
		if p.code == duplicateKey {
			verdict = 'R'
		}
		return s.refuse(b, d, verdict, p)
	}
	return s.answer(b, d, answer, nil)
}

func isError(f pcd.Finding) bool { return f.Severity == pcd.Error }

func (p *Platform) nextAnswer() Answer {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.script.next()
}

// A problem is why a message is not taken: a code of HL7 table 0357 and words.
type problem struct{ code, text string }

const duplicateKey = "205"

// unsupported are the reasons for a rejection that sending again cannot mend.
func unsupported(d *Document) *problem {
	switch {
	case component(d.Type, 1) != "ORU":
		return &problem{"200", fmt.Sprintf("MSH-9 is %q: only ORU messages are taken", d.Type)}
	case component(d.Type, 2) != "R01" && component(d.Type, 2) != "R40":
		return &problem{"201", fmt.Sprintf("MSH-9 is %q: only the events R01 and R40 are taken", d.Type)}
	case d.Version != "2.6":
		return &problem{"203", fmt.Sprintf("MSH-12 is %q: only 2.6 is taken", d.Version)}
	}
	return nil
}

// refuse answers a message that was not stored.
func (s *session) refuse(b []byte, d *Document, verdict byte, p *problem) ([]byte, error) {
	return s.answer(b, d, Answer{kind: fixed, code: string([]byte{'?', verdict})}, p)
}

func (s *session) reject(controlID, why string) {
	s.p.count(func(n *Counts) { n.Rejected++ })
	if controlID != "" {
		why = "message " + controlID + ": " + why
	}
	s.p.event(Event{Kind: Rejected, Remote: s.remote, Peer: s.peer, Text: why})
}

// take stores a message, or counts a further copy of one that is stored.
func (p *Platform) take(s *session, d *Document, b []byte, findings []pcd.Finding, a Answer) *problem {
	m, kind, problem := p.record(s, d, b, findings, a)
	if problem == nil {
		p.event(Event{Kind: kind, Remote: s.remote, Peer: s.peer, Stored: m})
	}
	return problem
}

func (p *Platform) record(s *session, d *Document, b []byte, findings []pcd.Finding, a Answer) (*Message, EventKind, *problem) {
	p.mu.Lock()
	defer p.mu.Unlock()
	r := &Record{
		Copy: 1, ControlID: d.ControlID, Sender: d.Sender, Peer: s.peer, Device: d.Device, Made: d.Made,
		Received: p.o.Now().UTC(), Length: len(b), Digest: d.Digest(), Findings: len(findings), Answer: a.word(d),
	}
	first := p.known[key(d.Sender, d.ControlID)]
	if first != nil && first.Digest != r.Digest {
		p.counts.Conflicts++
		return nil, 0, &problem{duplicateKey, "this control ID was used before for another content"}
	}
	if first != nil {
		r.Number, r.Copy, r.Offset = first.Number, first.Copy+1, first.Offset
		if p.store != nil {
			if err := p.store.row(r); err != nil {
				return nil, 0, &problem{"207", "the store failed"}
			}
		}
		p.remember(r)
		return &Message{Record: *r, Bytes: b, Document: d, Findings: findings}, Again, nil
	}
	r.Number = len(p.known) + 1
	if p.store != nil {
		if err := p.store.add(r, b); err != nil {
			return nil, 0, &problem{"207", "the store failed"}
		}
	}
	p.remember(r)
	m := &Message{Record: *r, Bytes: bytes.Clone(b), Document: d, Findings: findings}
	p.messages = append(p.messages, m)
	if len(p.messages) > p.o.Keep {
		p.messages = slices.Delete(p.messages, 0, len(p.messages)-p.o.Keep)
	}
	return m, Stored, nil
}

// word is the answer as the index keeps it.
func (a Answer) word(d *Document) string {
	switch a.kind {
	case fixed:
		return a.code
	case byRule, late, twice:
		return codeFor(d, 'A')
	}
	for name, k := range kindNames {
		if k == a.kind {
			return name
		}
	}
	return ""
}

// answer is what goes back. why is set where the message was refused.
func (s *session) answer(b []byte, d *Document, a Answer, why *problem) ([]byte, error) {
	code := codeFor(d, 'A')
	if a.kind == fixed {
		if code = a.code; code[0] == '?' {
			code = codeFor(d, code[1])
		}
	}
	if why != nil {
		s.reject(d.ControlID, why.text)
	}
	switch a.kind {
	case never:
		return nil, nil
	case hangup:
		return nil, errHangup
	case garbage:
		return []byte("\x16\x03\x01 220 mail ready \x0b\x00\xff\x1c\x0d"), nil
	case late:
		s.life.pause(a.delay)
	}
	if code == "" { // NE and NE: the sender does not want to know
		return nil, nil
	}
	ack, err := s.acknowledge(b, code, a, why)
	if err != nil {
		return nil, fmt.Errorf("message %s: %w", d.ControlID, err)
	}
	if code[1] == 'A' {
		s.p.count(func(n *Counts) { n.Acks++ })
	}
	return ack, nil
}

// acknowledge makes the bytes of an acknowledgement, with the faults that the answer asks for.
func (s *session) acknowledge(b []byte, code string, a Answer, why *problem) ([]byte, error) {
	if a.kind == wrongID {
		b = otherID(b)
	}
	ack, err := s.p.acknowledgement(b, code, why)
	if err != nil || a.kind == unframed {
		return ack, err
	}
	block, err := mllp.AppendBlock(nil, ack)
	if err == nil && a.kind == twice {
		block = append(block, block...)
	}
	return block, err
}

// acknowledgement is the answer to b with a control ID of the platform's own,
// and an ERR segment where the message was not taken.
func (p *Platform) acknowledgement(b []byte, code string, why *problem) ([]byte, error) {
	o := pcd.AckOptions{ControlID: string(p.ids.Append(nil)), Now: p.o.Now()}
	if why != nil {
		o.Errors = []pcd.AckError{{Code: why.code, Severity: "E", User: why.text}}
	}
	return pcd.AppendAck(nil, b, code, o)
}

// otherID is the message as if it had another control ID.
func otherID(b []byte) []byte {
	f := bytes.SplitN(b, []byte("|"), 11)
	f[9] = []byte("NOTYOURS")
	return bytes.Join(f, []byte("|"))
}
