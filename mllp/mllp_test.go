package mllp

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"
)

const ack = "MSH|^~\\&|P|H|G|W|20261121||ACK^R01^ACK|7|P|2.6\rMSA|CA|42\r"

func block(s string) string { return "\x0b" + s + "\x1c\r" }

// read takes blocks until the reader fails.
func read(r *Reader) (blocks []string, err error) {
	for {
		b, err := r.ReadBlock()
		if err != nil {
			return blocks, err
		}
		blocks = append(blocks, string(b))
	}
}

func TestReaderSurvivesRealPeers(t *testing.T) {
	big := strings.Repeat("OBX|1|ST|\r", 3000)
	for _, c := range []struct {
		name     string
		in       string
		optional bool
		want     []string
		skipped  int
		cut      int
	}{
		{name: "one block", in: block(ack), want: []string{ack}},
		{name: "several blocks in one piece", in: block("a") + block("b") + block("c"), want: []string{"a", "b", "c"}},
		{name: "a block larger than the first buffer", in: block(big) + block("b"), want: []string{big, "b"}},
		{name: "noise before the start byte", in: "hello\r\n" + block(ack), want: []string{ack}, skipped: 7},
		{name: "noise between blocks", in: block("a") + "\r\n" + block("b"), want: []string{"a", "b"}, skipped: 2},
		{name: "start and end doubled", in: "\x0b" + block("a") + "\x1c\r\x0b" + block("b") + "\x1c\r", want: []string{"a", "b"}, skipped: 6},
		{name: "a block given up for another", in: "\x0bMSH|half" + block(ack), want: []string{ack}, skipped: 9, cut: 1},
		{name: "the last 0x0D missing, another block follows", in: "\x0ba\x1c" + block("b"), want: []string{"a", "b"}},
		{name: "the last 0x0D missing, allowed", in: "\x0ba\x1c\x0bb\x1c", optional: true, want: []string{"a", "b"}},
		{name: "the last 0x0D missing at times", in: "\x0ba\x1c" + block("b") + "\x0bc\x1c", optional: true, want: []string{"a", "b", "c"}},
		{name: "0x1C within the text", in: block("a\x1cb"), want: []string{"a\x1cb"}},
		{name: "an empty block", in: block("") + block("b"), want: []string{"", "b"}},
		{name: "segments ended by LF", in: block("MSH|\nMSA|\n"), want: []string{"MSH|\nMSA|\n"}},
	} {
		for name, src := range map[string]io.Reader{
			"whole":              strings.NewReader(c.in),
			"byte by byte":       iotest.OneByteReader(strings.NewReader(c.in)),
			"halves":             iotest.HalfReader(strings.NewReader(c.in)),
			"EOF with the bytes": iotest.DataErrReader(strings.NewReader(c.in)),
		} {
			t.Run(c.name+", "+name, func(t *testing.T) {
				r := NewReader(src, 1<<16)
				r.FinalCROptional = c.optional
				got, err := read(r)
				if !slices.Equal(got, c.want) {
					t.Errorf("blocks are %q, not %q", got, c.want)
				}
				if trailing := strings.HasSuffix(c.in, "\x1c\r\x1c\r"); !trailing && err != io.EOF {
					t.Errorf("the stream ended with %v, not EOF", err)
				}
				if r.Skipped() != c.skipped || r.Cut() != c.cut {
					t.Errorf("%d bytes skipped and %d blocks cut, not %d and %d", r.Skipped(), r.Cut(), c.skipped, c.cut)
				}
			})
		}
	}
}

func TestReaderNamesWhatIsWrong(t *testing.T) {
	for _, c := range []struct {
		name, in string
		is       []error
		text     string
	}{
		{"nothing came", "", []error{io.EOF}, "EOF"},
		{"no frame at all", ack, []error{io.ErrUnexpectedEOF, ErrNoFrame}, "no MLLP start byte in 57 bytes"},
		{"noise without end", strings.Repeat("x", 9000), []error{ErrNoFrame}, "no MLLP start byte in the first"},
		{"a start byte and no more", "\x0b", []error{io.ErrUnexpectedEOF}, "unfinished after 0 bytes"},
		{"a block over the limit, given up for another", "\x0b" + strings.Repeat("x", 101) + block("y"), []error{ErrTooLarge}, "larger than the limit"},
		{"half a block", "\x0bMSH|", []error{io.ErrUnexpectedEOF}, "unfinished after 4 bytes"},
		{"the last byte missing", "\x0bMSH|\x1c", []error{io.ErrUnexpectedEOF, ErrNoFinalCR}, "block ends in 0x1C without 0x0D"},
		{"one byte over the limit", block(strings.Repeat("x", 101)), []error{ErrTooLarge}, "larger than the limit of 100 bytes"},
		{"far over the limit", "\x0b" + strings.Repeat("x", 1<<20), []error{ErrTooLarge}, "larger than the limit of 100 bytes"},
	} {
		for name, src := range map[string]io.Reader{
			"whole":        strings.NewReader(c.in),
			"byte by byte": iotest.OneByteReader(strings.NewReader(c.in)),
		} {
			t.Run(c.name+", "+name, func(t *testing.T) {
				r := NewReader(src, 100)
				_, err := r.ReadBlock()
				for _, is := range c.is {
					if !errors.Is(err, is) {
						t.Errorf("%v is not %v", err, is)
					}
				}
				if err == nil || !strings.Contains(err.Error(), c.text) {
					t.Errorf("the error is %q, without %q", err, c.text)
				}
				if _, again := r.ReadBlock(); again == nil {
					t.Error("the error was not final")
				}
				if len(r.buf) > firstBuffer {
					t.Errorf("the buffer grew to %d bytes for a limit of 100", len(r.buf))
				}
			})
		}
	}
}

func TestReaderTakesABlockOfExactlyTheLimit(t *testing.T) {
	want := strings.Repeat("x", 100)
	got, err := read(NewReader(iotest.OneByteReader(strings.NewReader(block(want)+block("y"))), 100))
	if !slices.Equal(got, []string{want, "y"}) || err != io.EOF {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestReaderShowsTheBeginningOfAnUnframedMessage(t *testing.T) {
	r := NewReader(iotest.OneByteReader(strings.NewReader(ack)), 1000)
	if _, err := r.ReadBlock(); !errors.Is(err, ErrNoFrame) {
		t.Fatal(err)
	}
	if got := string(r.Stray()); got != ack[:8] {
		t.Errorf("stray bytes begin with %q", got)
	}
}

func TestReaderGivesUpOnASourceThatGivesNothing(t *testing.T) {
	if _, err := NewReader(idleReader{}, 100).ReadBlock(); !errors.Is(err, io.ErrNoProgress) {
		t.Error(err)
	}
}

type idleReader struct{}

func (idleReader) Read([]byte) (int, error) { return 0, nil }

func TestWaitEndsWhenABlockBegins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		defer near.Close()
		defer far.Close()
		c := NewConn(near, 1000)
		go func() {
			far.Write([]byte(block("a") + "\x1c\r"))
			time.Sleep(time.Hour)
			far.Write([]byte("\x0bb"))
			time.Sleep(2 * time.Second)
			far.Write([]byte("\x1c\r"))
		}()
		if b, err := c.ReadBlock(time.Now().Add(time.Second)); err != nil || string(b) != "a" {
			t.Fatalf("%q, %v", b, err)
		}
		// The doubled end of the first block is not the beginning of another.
		if err := c.Wait(time.Now().Add(2 * time.Hour)); err != nil {
			t.Fatal(err)
		}
		if b, err := c.ReadBlock(time.Now().Add(3 * time.Second)); err != nil || string(b) != "b" {
			t.Fatalf("%q, %v", b, err)
		}
		if err := c.Wait(time.Now().Add(time.Hour)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal(err)
		}
	})
}

func TestDeadlineIsForTheWholeBlock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		var peer sync.WaitGroup
		peer.Go(func() {
			for _, b := range []byte(block(ack)) {
				if _, err := far.Write([]byte{b}); err != nil {
					return
				}
				time.Sleep(time.Second)
			}
		})
		began := time.Now()
		_, err := NewConn(near, 1000).ReadBlock(began.Add(9500 * time.Millisecond))
		var cut *CutError
		if !errors.As(err, &cut) || cut.Inside != 9 || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("a peer of one byte per second ended in %v", err)
		}
		if d := time.Since(began); d != 9500*time.Millisecond {
			t.Errorf("it took %v", d)
		}
		near.Close()
		peer.Wait()
	})
}

// writes records each write by itself.
type writes struct {
	net.Conn
	all []string
}

func (w *writes) Write(p []byte) (int, error)      { w.all = append(w.all, string(p)); return len(p), nil }
func (w *writes) SetWriteDeadline(time.Time) error { return nil }

func TestWriterSendsOneBlockInOneWrite(t *testing.T) {
	var w writes
	c := NewConn(&w, 0)
	for _, m := range []string{ack, strings.Repeat("x", 1<<20), "y"} {
		w.all = nil
		if err := c.WriteBlock([]byte(m), time.Time{}); err != nil {
			t.Fatal(err)
		}
		if len(w.all) != 1 || w.all[0] != block(m) {
			t.Errorf("a message of %d bytes took %d writes", len(m), len(w.all))
		}
	}
}

func TestWriterRefusesFrameBytes(t *testing.T) {
	for _, c := range []struct {
		name, in string
		want     PayloadError
	}{
		{"start byte", "MSH|\rOBX|\x0b", PayloadError{0x0B, 9, 2}},
		{"end byte", "\x1c", PayloadError{0x1C, 0, 1}},
		{"the first of both", "a\x1cb\x0b", PayloadError{0x1C, 1, 1}},
		{"the first of both, the other way round", "a\x0bb\x1c", PayloadError{0x0B, 1, 1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var w writes
			err := NewConn(&w, 0).WriteBlock([]byte(c.in), time.Time{})
			var got *PayloadError
			if !errors.As(err, &got) || *got != c.want {
				t.Errorf("%v, not %v", err, &c.want)
			}
			if len(w.all) != 0 {
				t.Errorf("it wrote %q all the same", w.all)
			}
		})
	}
	var w writes
	if err := NewConn(&w, 0).WriteBlock(nil, time.Time{}); err != ErrEmpty || len(w.all) != 0 {
		t.Errorf("an empty message: %v, %d writes", err, len(w.all))
	}
}

func TestSteadyStateAllocatesNothing(t *testing.T) {
	in := []byte(strings.Repeat(block(ack), 50))
	src := bytes.NewReader(nil)
	r := NewReader(src, 1<<16)
	var w writes
	c := NewConn(discard{&w}, 0)
	message := []byte(ack)
	if n := testing.AllocsPerRun(50, func() {
		src.Reset(in)
		r.err = nil
		for range 50 {
			if _, err := r.ReadBlock(); err != nil {
				t.Fatal(err)
			}
		}
		if err := c.WriteBlock(message, time.Time{}); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations for 50 blocks read and one written", n)
	}
}

type discard struct{ net.Conn }

func (discard) Write(p []byte) (int, error)      { return len(p), nil }
func (discard) SetWriteDeadline(time.Time) error { return nil }

// python3-hl7 is a client that this project did not write.
func TestReaderTakesWhatPythonHL7Sends(t *testing.T) {
	tool, err := exec.LookPath("mllp_send")
	if err != nil {
		t.Skip("mllp_send of python3-hl7 is not installed")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	got := make(chan string, 1)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		c := NewConn(conn, 1<<16)
		b, err := c.ReadBlock(time.Now().Add(20 * time.Second))
		if err != nil {
			got <- err.Error()
			return
		}
		got <- string(b)
		c.WriteBlock([]byte(ack), time.Now().Add(20*time.Second))
	}()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	file := filepath.Join(t.TempDir(), "message.hl7")
	if err := os.WriteFile(file, []byte("MSH|^~\\&|G|W|P|H|20261121||ORU^R01^ORU_R01|42|P|2.6\rPID|||X\r"), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(tool, "--port", port, "--loose", "--file", file, "127.0.0.1")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if m := <-got; !strings.HasPrefix(m, "MSH|^~\\&|G|") || !strings.Contains(m, "PID|||X") {
		t.Errorf("it sent %q", m)
	}
	if !strings.Contains(string(out), "MSA|CA|42") {
		t.Errorf("it read %q", out)
	}
}

// The reader must give the same blocks however the stream is cut in pieces,
// keep within its limit, and lose no byte from its counts.
func FuzzReader(f *testing.F) {
	for _, s := range []string{block(ack), "noise" + block("a") + block("b"), "\x0b\x0ba\x1c\r\x1c\r", "\x0ba\x1c\x0bb\x1c", "\x0bhalf", ack, "\x0b\x1c\x1c\r"} {
		f.Add([]byte(s), uint64(1), false)
		f.Add([]byte(s), uint64(7), true)
	}
	f.Fuzz(func(t *testing.T, in []byte, seed uint64, optional bool) {
		const limit = 64
		whole := NewReader(bytes.NewReader(in), limit)
		pieces := NewReader(&piecemeal{in, rand.New(rand.NewPCG(seed, 0))}, limit)
		whole.FinalCROptional, pieces.FinalCROptional = optional, optional
		a, errA := read(whole)
		b, errB := read(pieces)
		if !slices.Equal(a, b) {
			t.Fatalf("whole %q (%v), in pieces %q (%v)", a, errA, b, errB)
		}
		if errors.Is(errA, ErrTooLarge) != errors.Is(errB, ErrTooLarge) {
			t.Fatalf("whole %v, in pieces %v", errA, errB)
		}
		total := whole.Skipped()
		for _, m := range a {
			if len(m) > limit {
				t.Fatalf("a block of %d bytes", len(m))
			}
			total += len(m) + 2
		}
		if total > len(in) {
			t.Fatalf("%d bytes counted of %d", total, len(in))
		}
	})
}

// What AppendBlock frames, after Check, a Reader returns.
func FuzzRoundTrip(f *testing.F) {
	f.Add([]byte(ack), []byte("x"))
	f.Fuzz(func(t *testing.T, a, b []byte) {
		if Check(a) != nil || Check(b) != nil {
			t.Skip()
		}
		framed, _ := AppendBlock(nil, a)
		framed, _ = AppendBlock(framed, b)
		r := NewReader(bytes.NewReader(framed), len(a)+len(b))
		got, err := read(r)
		if err != io.EOF || !slices.Equal(got, []string{string(a), string(b)}) || r.Skipped() != 0 {
			t.Fatalf("%q, %v", got, err)
		}
	})
}

type piecemeal struct {
	rest   []byte
	random *rand.Rand
}

func (p *piecemeal) Read(b []byte) (int, error) {
	if len(p.rest) == 0 {
		return 0, io.EOF
	}
	n := copy(b[:min(len(b), 1+p.random.IntN(5))], p.rest)
	p.rest = p.rest[n:]
	return n, nil
}

// The peer is bufio with the same job done by ReadSlice: no limit over its
// buffer, no noise, no doubled frames.
func BenchmarkReadBlock(b *testing.B) {
	message := strings.Repeat("OBX|1|NM|150456^MDC_PULS_OXIM_SAT_O2^MDC|1.6.1.150456|97|262688^MDC_DIM_PERCENT^MDC|||||R|||20261121|\r", 40)
	in := []byte(strings.Repeat(block(message), 64))
	b.Run("mllp", func(b *testing.B) {
		b.ReportAllocs()
		b.SetBytes(int64(len(in)))
		src := bytes.NewReader(nil)
		r := NewReader(src, 1<<20)
		for b.Loop() {
			src.Reset(in)
			r.err = nil
			for range 64 {
				if m, err := r.ReadBlock(); err != nil || len(m) != len(message) {
					b.Fatal(len(m), err)
				}
			}
		}
	})
	b.Run("bufio", func(b *testing.B) {
		b.ReportAllocs()
		b.SetBytes(int64(len(in)))
		src := bytes.NewReader(nil)
		r := bufio.NewReaderSize(src, 1<<16)
		for b.Loop() {
			src.Reset(in)
			r.Reset(src)
			for range 64 {
				m, err := r.ReadSlice(endBlock)
				if err != nil || len(m) != len(message)+2 {
					b.Fatal(len(m), err)
				}
				r.Discard(1)
			}
		}
	})
}

func BenchmarkAppendBlock(b *testing.B) {
	message := bytes.Repeat([]byte("OBX|1|NM|150456^MDC_PULS_OXIM_SAT_O2^MDC|1.6.1.150456|97|\r"), 60)
	b.ReportAllocs()
	b.SetBytes(int64(len(message)))
	var dst []byte
	for b.Loop() {
		var err error
		if dst, err = AppendBlock(dst[:0], message); err != nil {
			b.Fatal(err)
		}
	}
}
