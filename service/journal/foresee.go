package journal

import (
	"context"
	"errors"
	"fmt"

	"holdfast"
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
	now, starts := j.starts()
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
			ok, err := j.foresee(layer, at, now, starts, Candidate(u))
			if err != nil {
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

// starts returns the journal time, and since when the oldest open session of each vault that has one is open.
func (j *Journal) starts() (now int64, oldest map[holdfast.VaultID]int64) {
	j.mu.RLock()
	defer j.mu.RUnlock()
	oldest = map[holdfast.VaultID]int64{}
	for _, o := range j.open {
		if at, ok := oldest[o.vault]; !ok || o.start < at {
			oldest[o.vault] = o.start
		}
	}
	return max(j.time, j.now()), oldest
}

// foresee condemns a candidate in layer, if it may be condemned.
func (j *Journal) foresee(layer *view.Layer, at segment.Position, now int64, starts map[holdfast.VaultID]int64, c Candidate) (bool, error) {
	s, ok, err := view.NewReader(layer).Session(c.Block.Session)
	if err != nil || !ok {
		return false, err
	}
	oldest := now
	if start, ok := starts[s.Vault]; ok {
		oldest = min(oldest, start)
	}
	err = view.Apply(layer, at, now, segment.Condemned{
		Session: c.Block.Session, Name: c.Name, Place: c.Block.Pos, Off: c.Block.Off, Before: view.CondemnableBefore(oldest),
	}, j.logPub)
	switch {
	case errors.Is(err, view.ErrMoved), errors.Is(err, view.ErrReferenced), errors.Is(err, view.ErrTooYoung):
		return false, nil
	}
	return err == nil, err
}

// Written returns the journal time of a segment's last record, ms, with one request.
func (j *Journal) Written(ctx context.Context, s view.Segment) (int64, error) {
	_, t, err := fetchTrailer(ctx, j.cfg.Bucket, found{s.Key, int64(s.Size)})
	if err != nil {
		return 0, err
	}
	return t.Records[len(t.Records)-1].Time, nil
}
