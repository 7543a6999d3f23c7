package journal

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"holdfast/service/segment"
	"holdfast/service/view"
)

// besideRows is how much of the view changes in memory before a second view gets it, bytes.
const besideRows = 1 << 20

// Beside says how far a second view was made.
type Beside struct {
	Done     bool // it is where it was to be
	Segments int  // replayed by this call
	Records  int  // in them
	Read     int64
	All      int   // segments of the journal up to there
	Left     int   // of them, not replayed yet
	Size     int64 // of the trailers that were left at the beginning, bytes
	Took     time.Duration
}

// Beside makes a second view from trailers alone up to a place of the journal (JOURNAL 12, 13), in store, which
// serves nobody. It goes on from where the store is, ends when more says so, and can be called again. It uses little memory,
// one trailer or bundle at a time, for the service is at work meanwhile. more is told what is left at the beginning before
// anything is read, and after each 1 MiB of changes.
func (j *Journal) Beside(ctx context.Context, store *view.Store, to segment.Position, more func(Beside) bool) (b Beside, err error) {
	ctx, done, err := j.whileOpen(ctx)
	if err != nil {
		return b, err
	}
	defer done()
	began := time.Now()
	defer func() { b.Took = time.Since(began) }()
	cfg := j.cfg
	_, at, hash, err := store.Position()
	if err != nil {
		return b, err
	}
	stale := false
	c, err := findChain(ctx, cfg, math.MaxUint64, func(ctx context.Context, c *chain) error {
		if !c.accepts(to) {
			return fmt.Errorf("%w: segment %s, which this host has seen acknowledged, is not part of it", ErrContradiction, to)
		}
		if hash == [32]byte{} {
			return nil
		}
		ok, err := c.has(ctx, cfg, at, hash)
		stale = !ok || at.Compare(to) > 0
		return err
	})
	if err != nil {
		return b, fmt.Errorf("read journal: %w", err)
	}
	if stale {
		if err := store.Clear(); err != nil {
			return b, err
		}
		at = segment.Position{}
	}
	todo := c.between(at, to)
	b.Left, b.All, b.Size = todo.count(), c.count(to), todo.size()
	if b.Done = b.Left == 0; b.Done || !more(b) {
		return b, nil
	}
	l := view.NewLayer(store)
	err = todo.each(ctx, cfg, func(r raw) error {
		f, t := r.found, (*segment.Trailer)(nil)
		if r.trailer != nil {
			t, err = r.key.Parse(r.trailer, r.size)
		} else {
			f, t, err = fetchTrailer(ctx, cfg.Bucket, r.found)
		}
		if err != nil {
			return err
		}
		if err := view.ApplySegment(l, f.key, f.size, t, j.logPub); err != nil {
			return fmt.Errorf("%w: the journal cannot be replayed: %w", ErrDiffers, err)
		}
		b.Segments, b.Records, b.Read, b.Left = b.Segments+1, b.Records+len(t.Records), b.Read+int64(f.key.Trailer), b.Left-1
		if l.Size() < besideRows {
			return nil
		}
		if err := store.Commit(l); err != nil {
			return err
		}
		l.Reset()
		if !more(b) {
			return errEnough
		}
		return nil
	})
	if err == errEnough {
		return b, nil
	}
	if err != nil {
		return b, err
	}
	b.Done = true
	return b, store.Commit(l)
}

// errEnough ends a replay that goes on later.
var errEnough = errors.New("enough for now")

// ErrDiffers reports that the journal in the bucket does not make the view that the service works with.
var ErrDiffers = errors.New("the view is not what the journal says")

// Doubt freezes all deleting because a second view differs from the one that the service works with: what is freed
// follows from the view (JOURNAL 13). Only a person thaws that.
func (j *Journal) Doubt(found string) {
	j.mu.Lock()
	j.owe(segment.Frozen{Reason: segment.ReasonView, Text: found}, j.cfg.clock())
	j.mu.Unlock()
	select {
	case j.wake <- struct{}{}:
	default:
	}
}
