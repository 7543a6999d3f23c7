package sim

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"

	"holdfast/service/bucket"
	"holdfast/service/bucket/sim"
	"holdfast/service/journal"
	"holdfast/service/segment"
	"holdfast/service/view"
)

// What a process writes to its bucket, by what stands in it. A segment is named after the rarest of its records.
const (
	writesClaim     = "claim"
	writesTakeover  = "takeover"
	writesRecords   = "records"
	writesStored    = "blocks"
	writesCondemned = "condemned records"
	writesMoved     = "moved blocks"
	writesRetired   = "retired records"
	writesRemoved   = "removed records"
	writesDamaged   = "damaged records"
	writesMoney     = "a transfer of money"
	writesBundle    = "a bundle"
	writesPart      = "a part of a checkpoint"
	writesManifest  = "a checkpoint's manifest"
	deletesSegment  = "a delete of a segment"
	deletesBundle   = "a delete of a bundle"
	deletesPoint    = "a delete of a checkpoint"
	writesElse      = "something else"
)

// The steps are the writes of the jobs that free space, and of checkpoints: between any two of them a process may end.
var (
	freeingSteps    = []string{writesCondemned, writesMoved, writesRetired, writesBundle, deletesBundle, deletesSegment, writesRemoved}
	checkpointSteps = []string{writesPart, writesManifest, deletesPoint}
)

var rarity = map[segment.Type]int{
	segment.TypeStored: 1, segment.TypeDamaged: 2, segment.TypeCondemned: 3, segment.TypeMoved: 4, segment.TypeRetired: 5,
	segment.TypeRemoved: 6, segment.TypeTakeover: 7, segment.TypeTransfer: 8,
}

var rarest = []string{writesRecords, writesStored, writesDamaged, writesCondemned, writesMoved, writesRetired, writesRemoved, writesTakeover, writesMoney}

// whatPut names a Put.
func whatPut(key string, body []byte) string {
	if k, err := segment.ParseKey(key); err == nil {
		t, err := k.Parse(body[len(body)-int(k.Trailer):], int64(len(body)))
		if err != nil {
			return writesElse
		}
		top := 0
		for _, r := range t.Records {
			top = max(top, rarity[r.Record.Type()])
		}
		return rarest[top]
	}
	switch {
	case strings.Contains(key, "/bundle/"):
		return writesBundle
	case strings.Contains(key, "/manifest-"):
		return writesManifest
	case strings.Contains(key, "/checkpoint/"):
		return writesPart
	}
	return writesElse
}

func whatDelete(key string) string {
	switch {
	case strings.Contains(key, "/log/"):
		return deletesSegment
	case strings.Contains(key, "/bundle/"):
		return deletesBundle
	case strings.Contains(key, "/checkpoint/"):
		return deletesPoint
	}
	return writesElse
}

// process is one process of the service: its connection to the bucket, which it uses as a bucket, its view's disk
// and its journal.
type process struct {
	*sim.Bucket
	c    *cell
	disk *view.Disk
	host byte
	j    *journal.Journal

	mu      sync.Mutex
	failed  map[segment.Position]string // the key under which the newest attempt to store a segment failed
	deletes int                         // segments that it asked to be deleted
	// end or pause happens at the n-th write of that kind.
	at      string
	n       int
	applied bool
	pause   bool
	held    chan struct{} // closed when it is paused; nil if it is not to be
	resume  chan struct{} // closed when it goes on
}

// arm has the process end, or be paused, at the n-th write of that kind from now on (1 is the next), before or after it
// took effect. held is closed when it is paused.
func (p *process) arm(kind string, n int, applied, pause bool) (held <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.at, p.n, p.applied, p.pause = kind, n, applied, pause
	p.held, p.resume = make(chan struct{}), make(chan struct{})
	return p.held
}

// hold pauses the process at its next call.
func (p *process) hold() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.at, p.held, p.resume = "", make(chan struct{}), make(chan struct{})
	close(p.held)
}

// isHeld is closed when the process is paused.
func (p *process) isHeld() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.held
}

// disarm takes back what has not happened yet.
func (p *process) disarm() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.at, p.held, p.resume = "", nil, nil
}

// goOn ends a pause.
func (p *process) goOn() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.resume != nil {
		close(p.resume)
		p.resume = nil
	}
}

// wait is where a process is paused.
func (p *process) wait() {
	p.mu.Lock()
	resume := p.resume
	paused := false
	if p.held != nil {
		select {
		case <-p.held:
			paused = true
		default:
		}
	}
	p.mu.Unlock()
	if paused && resume != nil {
		<-resume
	}
}

// write does a write of that kind, at which the process may end or be paused.
func (p *process) write(kind string, do func(bucket.Bucket) error) error {
	p.wait()
	p.mu.Lock()
	hit := p.at == kind
	if hit {
		p.n--
		hit = p.n == 0
	}
	if hit {
		p.at = ""
	}
	applied, pause := p.applied, p.pause
	p.mu.Unlock()
	switch {
	case !hit:
	case pause:
		var err error
		if applied {
			err = do(p.Bucket)
		}
		p.mu.Lock()
		close(p.held)
		p.mu.Unlock()
		p.wait()
		if applied {
			return err
		}
	default:
		p.Bucket.Crash()
		switch {
		case slices.Contains(freeingSteps, kind):
			p.c.reached("a process ended between two steps of freeing space")
		case slices.Contains(checkpointSteps, kind):
			p.c.reached("a process ended between two steps of a checkpoint")
		}
		if applied {
			if err := do(p.c.store.Connect(0)); err != nil {
				return err
			}
			p.c.reached("a process ended after " + kind)
		} else {
			p.c.reached("a process ended before " + kind)
		}
		return sim.ErrCrashed
	}
	return do(p.Bucket)
}

// Put is part of bucket.Bucket.
func (p *process) Put(ctx context.Context, key string, body []byte) error {
	kind := whatPut(key, body)
	k, isSegment := segment.ParseKey(key)
	if isSegment == nil {
		p.mu.Lock()
		if before := p.failed[k.Position]; before != "" && before != key {
			p.c.reached("a fresh key was taken after a put that failed")
		}
		p.mu.Unlock()
	}
	err := p.write(kind, func(b bucket.Bucket) error { return b.Put(ctx, key, body) })
	if err == nil {
		p.c.wrote(kind, key, body)
	} else if isSegment == nil {
		p.mu.Lock()
		p.failed[k.Position] = key
		p.mu.Unlock()
	}
	return err
}

// Delete is part of bucket.Bucket.
func (p *process) Delete(ctx context.Context, key string) error {
	kind := whatDelete(key)
	if kind == deletesSegment {
		p.mu.Lock()
		p.deletes++
		p.mu.Unlock()
		p.c.mayDelete(p, key)
	}
	return p.write(kind, func(b bucket.Bucket) error { return b.Delete(ctx, key) })
}

// Swap is part of bucket.Bucket.
func (p *process) Swap(ctx context.Context, key string, old, new []byte) error {
	return p.write(writesClaim, func(b bucket.Bucket) error { return b.Swap(ctx, key, old, new) })
}

// Get is part of bucket.Bucket.
func (p *process) Get(ctx context.Context, key string, off, n int64) ([]byte, error) {
	p.wait()
	return p.Bucket.Get(ctx, key, off, n)
}

// List is part of bucket.Bucket.
func (p *process) List(ctx context.Context, prefix, after string, max int) ([]bucket.Object, error) {
	p.wait()
	return p.Bucket.List(ctx, prefix, after, max)
}

// asked returns how many deletes of segments the process asked for.
func (p *process) asked() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.deletes
}

// dead reports whether the process has ended.
func (p *process) dead() bool { return p.Crashed() || p.j != nil && p.j.Err() != nil }

// gone reports whether an error is that of a process that has ended.
func gone(err error) bool {
	return errors.Is(err, journal.ErrStopped) || errors.Is(err, bucket.ErrClosed)
}
