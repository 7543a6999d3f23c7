package journal

import (
	"context"
	"errors"
	"fmt"

	"holdfast/service/segment"
	"holdfast/service/view"
)

// Foreseen is what CondemnUnreferenced would do.
type Foreseen struct {
	CondemnReport
	// Segments are those in which something would be condemned, as they would be then.
	Segments []view.Segment
}

// where is a place in the journal.
type where struct {
	pos segment.Position
	off uint32
}

// Foresee returns what CondemnUnreferenced would do now, and changes nothing: it does the same to a copy of the rows that
// it changes, in borrowed memory.
func (j *Journal) Foresee(ctx context.Context, max int) (f Foreseen, err error) {
	giveBack, err := j.Borrow(ctx)
	if err != nil {
		return f, err
	}
	defer giveBack()
	snap, err := j.store.Snapshot()
	if err != nil {
		return f, err
	}
	defer snap.Close()
	layer := view.NewLayer(snap)
	now := j.Now()
	j.mu.RLock()
	oldest := j.oldest()
	j.mu.RUnlock()
	at := segment.Position{Epoch: j.claim.Epoch, Seq: 1<<64 - 1} // after everything

	// first are those that are without references already, in pages; then come those that become so.
	var after []byte
	first, n := true, 0
	held := map[where]bool{}
	for ctx.Err() == nil {
		var page []view.Unreferenced
		last := true
		if first {
			next := after
			if page, next, err = j.store.Unreferenced(view.CondemnableBefore(now), after, min(maxPage, max-f.Blocks)); err != nil {
				return f, err
			}
			last, after = next == nil, next
		} else if page, err = layer.Unreferenced(view.CondemnableBefore(now)); err != nil {
			return f, err
		}
		for _, u := range page {
			if f.Blocks >= max {
				break
			}
			ok, err := Candidate(u).condemn(view.NewReader(layer), now, oldest, func(r segment.Record) error {
				return view.Apply(layer, at, now, r, j.logPub)
			})
			if err != nil && !errors.Is(err, view.ErrNoSession) { // it was opened after the snapshot
				return f, fmt.Errorf("foresee what would be condemned: %w", err)
			}
			if ok {
				n++
				f.Blocks++
				f.Bytes += uint64(u.Block.Len)
				continue
			}
			if at := (where{u.Block.Pos, u.Block.Off}); !held[at] { // not again in the next pass
				held[at] = true
				f.Held++
			}
		}
		if f.Blocks >= max {
			f.More = true
			break
		}
		if !last {
			continue
		}
		if n == 0 {
			break
		}
		now, first, n = now+2, false, 0
	}
	if f.Segments, err = layer.Segments(); err != nil {
		return f, err
	}
	return f, ctx.Err()
}

// Written returns the journal time of a segment's last record, ms, with one request.
func (j *Journal) Written(ctx context.Context, s view.Segment) (int64, error) {
	_, t, err := fetchTrailer(ctx, j.cfg.Bucket, found{s.Key, int64(s.Size)})
	if err != nil {
		return 0, err
	}
	return t.Records[len(t.Records)-1].Time, nil
}
