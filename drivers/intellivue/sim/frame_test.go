package sim

import (
	"bytes"
	"encoding/binary"
	"testing"
)

func TestTheFrameCheckSequenceIsX25(t *testing.T) {
	if got := fcs([]byte("123456789")); got != 0x906E {
		t.Errorf("check value %04X, want 906E", got)
	}
	if got := fcs([]byte{0x3A, 0x71}); got != 0x269B {
		t.Errorf("guide's vector: %04X, want 269B", got)
	}
	if got := fcs([]byte{0x3A, 0x91}); got != 0xC195 {
		t.Errorf("guide's vector: %04X, want C195", got)
	}
	b := []byte{1, 2, 3, 0xC0}
	b = binary.LittleEndian.AppendUint16(b, fcs(b))
	if got := ^fcs(b); got != 0xF0B8 {
		t.Errorf("residue %04X, want F0B8", got)
	}
}

// The frame around an MDS create result, as the protocol reference has it, and
// a release request, whose C1 is escaped.
var framedExamples = []struct{ name, pdu, frame string }{
	{"create result", "e100000200020014000100010 00e002100000000000abd000d060000",
		"c0 11 01 00 1c e1 00 00 02 00 02 00 14 00 01 00 01 00 0e 00 21 00 00 00 00 00 0a bd 00 0d 06 00 00 39 17 c1"},
	{"release request", "0918c11661803080020101a08062808001000000000000000000",
		"c0 11 01 00 1a 09 18 7d e1 16 61 80 30 80 02 01 01 a0 80 62 80 80 01 00 00 00 00 00 00 00 00 00 41 08 c1"},
}

func TestFramesAreThoseOfTheReference(t *testing.T) {
	for _, x := range framedExamples {
		if got := appendFrame(nil, unhex(t, x.pdu)); !bytes.Equal(got, unhex(t, x.frame)) {
			t.Errorf("%s: %x", x.name, got)
		}
	}
}

func deframe(d *deframer, pieces ...[]byte) (pdus [][]byte) {
	for _, p := range pieces {
		d.feed(p, func(pdu []byte) { pdus = append(pdus, bytes.Clone(pdu)) })
	}
	return pdus
}

func TestFramesAreFoundHoweverTheyAreCut(t *testing.T) {
	var stream []byte
	for _, x := range framedExamples {
		stream = append(append(stream, 0x00, 0xFF, 0x7D), unhex(t, x.frame)...)
	}
	for size := 1; size <= len(stream); size++ {
		var d deframer
		var pieces [][]byte
		for at := 0; at < len(stream); at += size {
			pieces = append(pieces, stream[at:min(at+size, len(stream))])
		}
		got := deframe(&d, pieces...)
		if len(got) != 2 || d.bad != 0 {
			t.Fatalf("pieces of %d: %d frames, %d bad", size, len(got), d.bad)
		}
		for i, x := range framedExamples {
			if !bytes.Equal(got[i], unhex(t, x.pdu)) {
				t.Errorf("pieces of %d: %x", size, got[i])
			}
		}
	}
}

func TestADamagedFrameIsCountedAndTheNextOneIsFound(t *testing.T) {
	good := unhex(t, framedExamples[0].frame)
	change := func(at int, to byte) []byte {
		b := bytes.Clone(good)
		b[at] = to
		return b
	}
	for _, x := range []struct {
		name   string
		before []byte
	}{
		{"a bit is wrong", change(9, 0x55)},
		{"another protocol id", change(1, 0x12)},
		{"the length is wrong", change(4, 0x1B)},
		{"cut off by the next frame", good[:12]},
		{"aborted", append(bytes.Clone(good[:12]), 0x7D, 0xC1)},
		{"empty", []byte{0xC0, 0xC1}},
		{"endless", append([]byte{0xC0}, make([]byte, maxFrame+10)...)},
	} {
		var d deframer
		got := deframe(&d, x.before, good)
		if len(got) != 1 || d.bad != 1 {
			t.Errorf("%s: %d frames, %d bad, want 1 and 1", x.name, len(got), d.bad)
		}
	}
}

func TestEveryByteSurvivesTheFraming(t *testing.T) {
	all := make([]byte, 256)
	for i := range all {
		all[i] = byte(i)
	}
	frame := appendFrame(nil, all)
	for _, c := range frame[1 : len(frame)-1] {
		if c == frameBegin || c == frameEnd {
			t.Fatalf("unescaped %02X inside a frame", c)
		}
	}
	var d deframer
	if got := deframe(&d, frame); len(got) != 1 || !bytes.Equal(got[0], all) {
		t.Errorf("%x", got)
	}
}

func FuzzDeframer(f *testing.F) {
	for _, x := range framedExamples {
		f.Add(unhexMust(x.frame), 3)
	}
	f.Add([]byte{0xC0, 0x7D, 0xC1, 0xC0, 0xC0, 0x7D}, 1)
	f.Fuzz(func(t *testing.T, b []byte, cut int) {
		var whole, halves deframer
		cut = min(max(cut, 0), len(b))
		a, c := deframe(&whole, b), deframe(&halves, b[:cut], b[cut:])
		if len(a) != len(c) || whole.bad != halves.bad {
			t.Fatalf("cut at %d: %d and %d frames, %d and %d bad", cut, len(a), len(c), whole.bad, halves.bad)
		}
		var again deframer
		for i, pdu := range a {
			if !bytes.Equal(pdu, c[i]) {
				t.Fatalf("frame %d differs when cut", i)
			}
			if got := deframe(&again, appendFrame(nil, pdu)); len(got) != 1 || !bytes.Equal(got[0], pdu) {
				t.Fatalf("frame %x does not come back", pdu)
			}
		}
	})
}
