package sim

import (
	"bytes"
	"math"
	"testing"
	"time"
)

func TestFloatsHaveTheReferenceEncoding(t *testing.T) {
	for _, x := range []struct {
		f    float
		bits uint32
		text string
	}{
		{float{32000, -3}, 0xFD007D00, "32.000"},
		{float{-100000, -2}, 0xFEFE7960, "-1000.00"},
		{float{320, -1}, 0xFF000140, "32.0"},
		{float{320, 1}, 0x01000140, "3200"},
		{float{32, 2}, 0x02000020, "3200"},
		{float{-1, 0}, 0x00FFFFFF, "-1"},
		{float{15, -1}, 0xFF00000F, "1.5"},
		{float{950, -1}, 0xFF0003B6, "95.0"},
		{float{-4096, -2}, 0xFEFFF000, "-40.96"},
		{float{}, 0, "0"},
		{nan, 0x007FFFFF, ""},
	} {
		if got := x.f.bits(); got != x.bits {
			t.Errorf("%v: %08X, want %08X", x.f, got, x.bits)
		}
		if got := x.f.digits(); got != x.text {
			t.Errorf("%v: %q, want %q", x.f, got, x.text)
		}
	}
	if toFloat(math.NaN(), 1) != nan || toFloat(1e9, 0) != nan || toFloat(36.95, 1) != (float{370, -1}) {
		t.Errorf("rounding: %v %v %v", toFloat(math.NaN(), 1), toFloat(1e9, 0), toFloat(36.95, 1))
	}
}

func TestTextsAndTimesHaveTheReferenceEncoding(t *testing.T) {
	for _, x := range []struct {
		name string
		got  []byte
		want string
	}{
		{"label padded to six", appendString(nil, "ABP", 6), "000e 0041 0042 0050 0020 0020 0020 0000"},
		{"empty string", appendString(nil, "", 0), "0002 0000"},
		{"text of even length", appendText(nil, "M800"), "0006 4d383030 0000"},
		{"text of odd length", appendText(nil, "Philips"), "0008 5068696c69707300"},
		{"absolute time", appendBCD(nil, time.Date(2017, 11, 4, 14, 45, 28, 0, time.UTC)), "2017110414452800"},
		{"no absolute time", appendBCD(nil, time.Time{}), "ffffffffffffffff"},
	} {
		if !bytes.Equal(x.got, unhex(t, x.want)) {
			t.Errorf("%s: %x, want %s", x.name, x.got, x.want)
		}
	}
}

func TestALinkedResultIsSplitAsItsReceiverExpects(t *testing.T) {
	object := func(context, handle uint16, size int) encoded {
		return encoded{context: context, bytes: append(u16(nil, handle), make([]byte, size-2)...)}
	}
	objects := []encoded{object(0, 1, 200), object(0, 2, 200), object(1, 3, 200), object(1, 4, 900), object(1, 5, 100)}
	for _, x := range []struct {
		name    string
		limit   int
		closing bool
		links   []uint16 // 0: the closing RORS
		handles [][]uint16
	}{
		{"all in one", 2000, false, []uint16{0}, [][]uint16{{1, 2, 3, 4, 5}}},
		{"three parts and an empty end", 700, false, []uint16{1, 2, 3, 0}, [][]uint16{{1, 2, 3}, {4}, {5}, nil}},
		{"the end carries the last part", 700, true, []uint16{1, 3, 0}, [][]uint16{{1, 2, 3}, {4}, {5}}},
		{"two parts, the end carries one", 1300, true, []uint16{1, 0}, [][]uint16{{1, 2, 3}, {4, 5}}},
	} {
		h := pollHead{invoke: 7, number: 3, sequence: 9, extended: true, class: classNumeric, contexts: []uint16{0, 1}}
		list := make([]encoded, len(objects))
		copy(list, objects)
		for i := range list { // attribute lists of no attributes, padded by one opaque attribute
			n := len(list[i].bytes)
			list[i].bytes = appendAttributes(list[i].bytes[:2:2], []attribute{{0, 0xFFF0, make([]byte, n-10)}})
		}
		got := h.messages(list, 5000, x.limit, x.closing)
		if len(got) != len(x.links) {
			t.Errorf("%s: %d messages, want %d", x.name, len(got), len(x.links))
			continue
		}
		for i, o := range got {
			d, ok := decodePoll(t, o.pdu)
			var handles []uint16
			for _, o := range d.objects {
				handles = append(handles, o.handle)
			}
			count := uint16(i + 1)
			if x.links[i] == 0 {
				count = 0
			}
			if !ok || d.link != x.links[i] || d.count != count || d.invoke != 7 || d.number != 3 || d.sequence != 9 ||
				!bytes.Equal(u16s(handles), u16s(x.handles[i])) {
				t.Errorf("%s: part %d: link %d count %d handles %v", x.name, i, d.link, d.count, handles)
			}
			if d.size > x.limit && len(handles) > 1 {
				t.Errorf("%s: part %d has %d bytes", x.name, i, d.size)
			}
		}
	}
}

func u16s(list []uint16) (b []byte) {
	for _, v := range list {
		b = u16(b, v)
	}
	return b
}
