package demo

import (
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"
)

// The screen that the live view needs.
const (
	screenWidth  = 80
	screenHeight = 24
)

// screen redraws a page in place: each frame is one write that goes to the top
// left and overwrites line by line, so that nothing flickers. It uses the
// alternate screen, so that what was there before comes back.
type screen struct{ out io.Writer }

func (s screen) open()  { io.WriteString(s.out, "\x1b[?1049h\x1b[?25l\x1b[2J") }
func (s screen) close() { io.WriteString(s.out, "\x1b[?25h\x1b[?1049l") }

func (s screen) draw(lines []string) {
	var b strings.Builder
	b.WriteString("\x1b[H")
	for i := range screenHeight - 1 {
		if i < len(lines) {
			b.WriteString(clip(lines[i], screenWidth))
		}
		b.WriteString("\x1b[K\r\n")
	}
	b.WriteString("\x1b[J")
	io.WriteString(s.out, b.String())
}

func clip(s string, n int) string {
	if utf8.RuneCountInString(s) <= n {
		return s
	}
	return string([]rune(s)[:n-1]) + "…"
}

// column is s in a column of the given width.
func column(s string, width int) string {
	s = clip(s, width-1)
	return s + strings.Repeat(" ", width-utf8.RuneCountInString(s))
}

const rule = "────────────────────────────────────────────────────────────────────────────────"

// page is the live view: the beds side by side as the platform has them, the
// gateway, the platform, and the last events.
func (d *demo) page(now time.Time) []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	elapsed := min(now.Sub(d.began), d.o.Duration)
	lines := []string{
		column("gatewayd demo: what the platform has received", 56) + fmt.Sprintf("%8.0f s of %.0f s", elapsed.Seconds(), d.o.Duration.Seconds()),
		rule,
	}
	var left, right []string
	for i, b := range d.beds {
		block := d.bedBlock(b, now)
		if i == 0 {
			left = block
		} else {
			right = block
		}
	}
	for i := range max(len(left), len(right)) {
		l, r := "", ""
		if i < len(left) {
			l = left[i]
		}
		if i < len(right) {
			r = right[i]
		}
		lines = append(lines, column(l, screenWidth/2)+r)
	}
	lines = append(lines, rule, d.gatewayLine(), d.platformLine(), rule)
	room := screenHeight - 1 - len(lines)
	return append(lines, d.events[max(0, len(d.events)-room):]...)
}

const bedLines = 10

func (d *demo) bedBlock(b *bed, now time.Time) []string {
	v := d.vitals[b.label]
	state := "not seen yet"
	if p, ok := d.portOf(b.name); ok {
		state = p.State
		if b.dead {
			state += fmt.Sprintf(", %d values refused", p.Simulated)
		}
	}
	block := []string{fmt.Sprintf("%s  %s", b.label, b.line), "  port " + state}
	for _, s := range signs {
		if text, ok := v.line(s); ok && len(block) < bedLines+1 {
			block = append(block, "  "+column(s.label, 7)+text)
		}
	}
	for len(block) < bedLines+1 {
		block = append(block, "")
	}
	if !v.at.IsZero() {
		block = append(block, fmt.Sprintf("  received %.1f s ago", now.Sub(v.at).Seconds()))
	}
	return block
}

func (d *demo) gatewayLine() string {
	r := d.report
	if r == nil {
		return "gatewayd   not running"
	}
	line := fmt.Sprintf("gatewayd   %s, spool %d", r.Verdict, r.Spool.Messages)
	for _, t := range r.Destinations {
		line += fmt.Sprintf(", %s, delivered %d, attempts %d", t.State, t.Delivered, t.Attempts)
	}
	return line
}

func (d *demo) platformLine() string {
	s := d.platform.State()
	up := "up"
	if !s.Alive {
		up = "DEAD"
	}
	return fmt.Sprintf("platform   %s, stored %d, acknowledged %d, sent again %d, rejected %d",
		up, s.Counts.Stored, s.Counts.Acks, s.Counts.Again, s.Counts.Rejected)
}
