package main

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/term"
)

// bar shows progress on a terminal: bytes, paths, rate and time left. Where standard error is no
// terminal it is nil, and its methods only pass messages on.
type bar struct {
	pool    *mpb.Progress
	bar     *mpb.Bar
	done    chan struct{}
	once    sync.Once
	ended   sync.WaitGroup
	mu      sync.Mutex
	bytes   uint64 // expected in all; 0 while unknown
	entries uint64
}

const refresh = 200 * time.Millisecond

// newBar begins to show what the two counters say.
func newBar(ctx context.Context, bytes, entries func() uint64) *bar {
	if !term.IsTerminal(int(os.Stderr.Fd())) {
		return nil
	}
	b := &bar{done: make(chan struct{})}
	b.pool = mpb.New(mpb.WithOutput(os.Stderr), mpb.WithRefreshRate(refresh), mpb.WithWidth(40))
	began := time.Now()
	b.bar = b.pool.New(0, mpb.BarStyle(),
		mpb.BarRemoveOnComplete(),
		mpb.PrependDecorators(decor.Any(func(decor.Statistics) string {
			b.mu.Lock()
			defer b.mu.Unlock()
			s := size(bytes())
			if b.bytes > 0 {
				s += " of " + size(b.bytes)
			}
			s += "  " + plural(entries(), "path")
			return s + " "
		})),
		mpb.AppendDecorators(decor.Any(func(decor.Statistics) string {
			b.mu.Lock()
			defer b.mu.Unlock()
			n, took := bytes(), time.Since(began).Seconds()
			s := fmt.Sprintf(" %s/s", size(uint64(float64(n)/took)))
			if n > 0 && b.bytes > n {
				left := time.Duration(took / float64(n) * float64(b.bytes-n) * float64(time.Second))
				s += "  " + left.Round(time.Second).String() + " left"
			}
			return s
		})))
	b.ended.Go(func() {
		t := time.NewTicker(refresh)
		defer t.Stop()
		for {
			select {
			case <-b.done:
				return
			case <-ctx.Done():
				return
			case <-t.C:
				b.mu.Lock()
				total := b.bytes
				b.mu.Unlock()
				if total > 0 {
					b.bar.SetTotal(int64(max(total, bytes()+1)), false)
					b.bar.SetCurrent(int64(bytes()))
				}
			}
		}
	})
	return b
}

// total says how much there is in all.
func (b *bar) total(bytes, entries uint64) {
	if b == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.bytes, b.entries = bytes, entries
}

// more adds to how much there is in all.
func (b *bar) more(bytes, entries uint64) {
	if b == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.bytes, b.entries = b.bytes+bytes, b.entries+entries
}

// say shows a message above the bar.
func (b *bar) say(message string) {
	if b == nil {
		warn(message)
		return
	}
	select {
	case <-b.done:
		warn(message)
	default:
		fmt.Fprintln(b.pool, "holdfast: "+oneLine(message))
	}
}

// stop takes the bar away. It may be called again.
func (b *bar) stop() {
	if b == nil {
		return
	}
	b.once.Do(func() {
		close(b.done)
		b.ended.Wait()
		b.bar.Abort(true)
		b.pool.Wait()
	})
}

// countTree estimates what a backup will meet, for the time left. Errors do not matter here.
func countTree(ctx context.Context, base string, roots []string) (bytes, entries uint64) {
	for _, r := range roots {
		if !filepath.IsAbs(r) {
			r = filepath.Join(base, r)
		}
		filepath.WalkDir(r, func(_ string, d fs.DirEntry, err error) error {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err != nil {
				return nil
			}
			entries++
			if d.Type().IsRegular() {
				if info, err := d.Info(); err == nil {
					bytes += uint64(info.Size())
				}
			}
			return nil
		})
	}
	return bytes, entries
}
