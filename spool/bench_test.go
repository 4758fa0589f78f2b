package spool

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

const (
	tmpfsMagic  = 0x01021994
	benchBytes  = 1500 // of a PCD-01 message with some ten numerics
	rawFileSize = 8 << 20
)

// benchDir is a folder on a real disk: SPOOL_BENCH_DIR, or the one for temporary files.
// On a tmpfs a sync costs nothing and the figures would mean nothing.
func benchDir(b *testing.B) string {
	b.Helper()
	dir := os.Getenv("SPOOL_BENCH_DIR")
	if dir == "" {
		dir = b.TempDir()
	}
	var fs syscall.Statfs_t
	if err := syscall.Statfs(dir, &fs); err != nil {
		b.Fatal(err)
	}
	if fs.Type == tmpfsMagic {
		b.Skipf("%s is a tmpfs: set SPOOL_BENCH_DIR to a folder on a disk", dir)
	}
	return dir
}

// rawLoop is one writer that writes and syncs n messages: at the end of a growing file,
// or over a file that is there, which costs less.
func rawLoop(b *testing.B, dir string, n int, grow bool) time.Duration {
	b.Helper()
	f, err := os.Create(filepath.Join(dir, "raw"))
	if err != nil {
		b.Fatal(err)
	}
	defer os.Remove(f.Name())
	defer f.Close()
	if !grow {
		if _, err := f.Write(make([]byte, rawFileSize)); err != nil {
			b.Fatal(err)
		}
		if err := f.Sync(); err != nil {
			b.Fatal(err)
		}
	}
	message := make([]byte, benchBytes)
	start := time.Now()
	for i := range n {
		at := int64(i) * benchBytes
		if !grow {
			at %= rawFileSize - benchBytes
		}
		if _, err := f.WriteAt(message, at); err != nil {
			b.Fatal(err)
		}
		if err := syscall.Fdatasync(int(f.Fd())); err != nil {
			b.Fatal(err)
		}
	}
	return time.Since(start) / time.Duration(n)
}

// enqueueLoop is so many writers that enqueue n messages together, each waiting until its
// own is durable, while one client takes them out again, if drain.
func enqueueLoop(b *testing.B, s *Spool, round, writers, n int, drain bool) time.Duration {
	b.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if drain {
		go func() {
			for q := s.Queue("q"); ; {
				e, err := q.Next(ctx)
				if err != nil {
					return
				}
				q.Sent(e.ID)
				q.Accepted(e.ID)
			}
		}()
	}
	var left atomic.Int64
	var wg sync.WaitGroup
	left.Store(int64(n))
	start := time.Now()
	for w := range writers {
		wg.Go(func() {
			message := make([]byte, benchBytes)
			for i := 0; left.Add(-1) >= 0; i++ {
				if _, err := s.Enqueue(ctx, Entry{Queue: "q", Device: "bed-1", ControlID: fmt.Sprintf("%d-%d-%d", round, w, i), Payload: message}); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	return time.Since(start) / time.Duration(n)
}

// BenchmarkEnqueue measures durable enqueues against a raw loop of write and fdatasync by
// one writer, in turns in the same run, as the disk has its moods. ns/op is the whole of
// a turn; the figures to read are the medians it reports.
func BenchmarkEnqueue(b *testing.B) {
	for _, c := range []struct {
		name    string
		writers int
		drain   bool
	}{{"writers=1", 1, false}, {"writers=16", 16, false}, {"writers=16 draining", 16, true}} {
		b.Run(c.name, func(b *testing.B) {
			dir := benchDir(b)
			path := filepath.Join(dir, "bench-spool.db")
			os.Remove(path)
			defer os.Remove(path)
			defer os.Remove(path + journalSuffix)
			s := open(b, path, Options{MaxBytes: 1 << 30})
			var fresh, over, ours []time.Duration
			var before, after runtime.MemStats
			allocs, total, round := uint64(0), 0, 0
			for b.Loop() {
				const n = 400
				fresh = append(fresh, rawLoop(b, dir, n, true))
				over = append(over, rawLoop(b, dir, n, false))
				runtime.ReadMemStats(&before)
				ours = append(ours, enqueueLoop(b, s, round, c.writers, n*c.writers, c.drain))
				runtime.ReadMemStats(&after)
				allocs += after.Mallocs - before.Mallocs
				total += n * c.writers
				round++
			}
			f, o, m := median(fresh), median(over), median(ours)
			b.ReportMetric(float64(m.Nanoseconds()), "ns/message")
			b.ReportMetric(float64(f.Nanoseconds()), "ns/raw-append")
			b.ReportMetric(float64(o.Nanoseconds()), "ns/raw-overwrite")
			b.ReportMetric(float64(f)/float64(m), "x-raw-append")
			b.ReportMetric(float64(o)/float64(m), "x-raw-overwrite")
			b.ReportMetric(float64(allocs)/float64(total), "allocs/message")
			s.Close()
		})
	}
}

func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}

// BenchmarkFullSpool fills a spool to its default bound of 64 MiB and opens it: what the
// longest outage costs in memory, in file and at the next start.
func BenchmarkFullSpool(b *testing.B) {
	path := filepath.Join(benchDir(b), "bench-full.db")
	defer os.Remove(path)
	defer os.Remove(path + journalSuffix)
	os.Remove(path)
	st := fill(b, path)
	empty, full := heap(), int64(0)
	for b.Loop() {
		s, err := Open(path, Options{Key: testKey})
		if err != nil {
			b.Fatal(err)
		}
		full = heap()
		if got := s.Stats().Messages; got != st.Messages {
			b.Fatalf("%d of %d are there", got, st.Messages)
		}
		s.Close()
	}
	b.ReportMetric(float64(st.Messages), "messages")
	b.ReportMetric(float64(st.FileBytes), "file-bytes")
	b.ReportMetric(float64(full-empty), "heap-bytes")
	b.ReportMetric(float64(residentFile(b)), "mapped-resident-bytes")
}

// fill fills a spool and closes it.
func fill(b *testing.B, path string) Stats {
	b.Helper()
	s, err := Open(path, Options{Key: testKey})
	if err != nil {
		b.Fatal(err)
	}
	enqueueLoop(b, s, 0, 16, 50_000, false)
	st := s.Stats()
	if err := s.Close(); err != nil {
		b.Fatal(err)
	}
	return st
}

// heap is what is in use of it.
func heap() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// residentFile is what of mapped files is in the memory of the process.
func residentFile(b *testing.B) (bytes int64) {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if _, err := fmt.Sscanf(line, "RssFile: %d kB", &bytes); err == nil {
			return bytes << 10
		}
	}
	return 0
}
