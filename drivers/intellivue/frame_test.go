package intellivue

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/bedside-gateway/gatewayd/drivers"
)

// An outcome is what a deframer makes of bytes.
type outcome struct {
	fates []drivers.Frame
	users [][]byte
}

func deframe(pieces ...[]byte) (o outcome) {
	var d deframer
	for _, p := range pieces {
		for {
			rest, user, fate, ok := d.next(p)
			if !ok {
				break
			}
			o.fates = append(o.fates, fate)
			if fate == drivers.FrameGood {
				o.users = append(o.users, bytes.Clone(user))
			}
			p = rest
		}
	}
	return o
}

func TestTheCheckValueIsThatOfTheGuide(t *testing.T) {
	if got := fcs([]byte("123456789")); got != 0x906E {
		t.Errorf("FCS of 123456789 is %04X, want 906E", got)
	}
	for data, want := range map[string]uint16{"\x3A\x71": 0x269B, "\x3A\x91": 0xC195} {
		if got := fcs([]byte(data)); got != want {
			t.Errorf("FCS of %x is %04X, want %04X", data, got, want)
		}
	}
	if got := fcsRun(append([]byte("123456789"), 0x6E, 0x90)); got != fcsResidue {
		t.Errorf("residue %04X", got)
	}
}

func TestFramesOfThePublishedExamplesAreMadeAndRead(t *testing.T) {
	frames, messages := fieldRequests(t, "rs232-framed-examples.txt"), fieldRequests(t, "requests-vscapturemp.txt")
	n := 0
	for name, frame := range frames {
		user, ok := messages[name]
		if !ok {
			continue
		}
		n++
		if got := appendFrame(nil, user); !bytes.Equal(got, frame) {
			t.Errorf("%s: frame\n%x, want\n%x", name, got, frame)
		}
		if o := deframe(frame); len(o.users) != 1 || !bytes.Equal(o.users[0], user) {
			t.Errorf("%s: read as %v", name, o)
		}
	}
	if n < 6 {
		t.Errorf("only %d examples", n)
	}
}

func TestTheFrameOfTheGuideIsMade(t *testing.T) {
	want := unhex(t, "c0 11 01 00 1c e1 00 00 02 00 02 00 14 00 01 00 01 00 0e 00 21 00 00 00 00 00 0a bd 00 0d 06 00 00 39 17 c1")
	if got := appendFrame(nil, want[5:len(want)-3]); !bytes.Equal(got, want) {
		t.Errorf("%x, want %x", got, want)
	}
}

func TestEveryByteSurvivesTheFrame(t *testing.T) {
	all := make([]byte, 256)
	for i := range all {
		all[i] = byte(i)
	}
	for _, user := range [][]byte{nil, all, bytes.Repeat([]byte{frameBegin, frameEnd, frameEscape}, 400), make([]byte, maxUserData)} {
		frame := appendFrame(nil, user)
		if bytes.Count(frame, []byte{frameBegin}) != 1 || bytes.Count(frame, []byte{frameEnd}) != 1 {
			t.Errorf("a frame of %d bytes holds its own borders", len(user))
		}
		if o := deframe(frame); len(o.users) != 1 || !bytes.Equal(o.users[0], user) {
			t.Errorf("%d bytes did not come through: %v", len(user), o.fates)
		}
	}
}

func TestAnythingWrongIsCountedAndTheNextFrameIsRead(t *testing.T) {
	good := appendFrame(nil, releaseRequest)
	flipped := bytes.Clone(good)
	flipped[9] ^= 1
	short := []byte{frameBegin, 1, 2, 3, frameEnd}
	header := func(b ...byte) []byte { // a frame with another header and a right check value
		c := fcs(b)
		return append(append([]byte{frameBegin}, b...), byte(c), byte(c>>8), frameEnd)
	}
	for name, c := range map[string]struct {
		before []byte
		want   []drivers.Frame
	}{
		"noise":                       {[]byte("login: \r\n"), []drivers.Frame{drivers.FrameNoise}},
		"a check value that is wrong": {flipped, []drivers.Frame{drivers.FrameChecksum}},
		"a frame that is cut":         {good[:20], []drivers.Frame{drivers.FrameMalformed}},
		"a frame that is aborted":     {append(bytes.Clone(good[:20]), frameEscape, frameEnd), []drivers.Frame{drivers.FrameMalformed}},
		"a frame without content":     {short, []drivers.Frame{drivers.FrameMalformed}},
		"another protocol id":         {header(0x12, 1, 0, 0), []drivers.Frame{drivers.FrameMalformed}},
		"another length":              {header(0x11, 1, 0, 9, 1), []drivers.Frame{drivers.FrameMalformed}},
		"begins in a row":             {[]byte{frameBegin, frameBegin, frameBegin}, nil},
		"a frame without end":         {append([]byte{frameBegin}, make([]byte, 3*maxFrame)...), []drivers.Frame{drivers.FrameOversize}},
		"escapes without end":         {append([]byte{frameBegin}, bytes.Repeat([]byte{frameEscape, 1}, 2*maxFrame)...), []drivers.Frame{drivers.FrameOversize}},
	} {
		o := deframe(slices.Concat(c.before, good))
		if want := append(slices.Clone(c.want), drivers.FrameGood); !slices.Equal(o.fates, want) {
			t.Errorf("%s: %v, want %v", name, o.fates, want)
		}
		if len(o.users) != 1 || !bytes.Equal(o.users[0], releaseRequest) {
			t.Errorf("%s: the frame behind it is lost", name)
		}
	}
}

func TestAStreamMayComeInAnyPieces(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	var stream []byte
	for range 20 {
		stream = append(stream, appendFrame(nil, abortRequest)...)
		stream = append(stream, "noise"[:random.IntN(5)]...)
	}
	want := deframe(stream)
	for range 50 {
		var pieces [][]byte
		for p := stream; len(p) > 0; {
			n := 1 + random.IntN(min(len(p), 90))
			pieces = append(pieces, p[:n])
			p = p[n:]
		}
		got := deframe(pieces...)
		if !slices.Equal(got.fates, want.fates) || !slices.EqualFunc(got.users, want.users, bytes.Equal) {
			t.Fatalf("%v in pieces, %v in one", got.fates, want.fates)
		}
	}
}
