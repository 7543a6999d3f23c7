package journal

import (
	"context"
	"errors"
	"fmt"
	"time"

	"holdfast/service/bucket"
	"holdfast/service/segment"
	"holdfast/service/view"
)

const (
	// removeBatch is how many segments are deleted before that is recorded.
	removeBatch = 64
	// removeLists is how often the landings of a segment are listed, until no list shows one, before it is left for
	// the next time.
	removeLists = 4
)

// RemoveReport says what Remove and RemoveLate did.
type RemoveReport struct {
	Segments int   // that are gone, and are said to be
	Objects  int   // that were deleted
	Bytes    int64 // of them
	// Unbundled is how many more could go if a bundle held their trailers.
	Unbundled int
	// More says that there is more to do than the caller wanted.
	More bool

	failed int // segments running that could not be deleted, and could before
	again  int // that could not be deleted before, and are tried again
}

const (
	// maxFailed is how many segments running that cannot be deleted end a Remove: each took its time.
	maxFailed = 10
	// undeletedFor is for how long a segment of which a delete failed is left alone, so that those that fail for ever do not
	// take the time of others; maxUndeleted bounds those that are remembered.
	undeletedFor = 24 * time.Hour
	maxUndeleted = 4096
)

// Remove deletes the objects of segments that were retired at least view.Grace ago, at most max objects, or a few more,
// and records that they are gone (JOURNAL 19). It deletes nothing while deleting is frozen.
//
// The record that justifies each delete is the retired record, which is acknowledged: the rows that Remove looks at are
// (JOURNAL 8). The segment's trailer is in a bundle that this process has read whole (JOURNAL 12). So it does no harm when a
// delete lands late, even if we are no longer the owner by then: whoever came after us has that record, and that bundle.
//
// What a crash leaves: a retired segment of which some objects are gone, which nobody reads; the next Remove goes on.
func (j *Journal) Remove(ctx context.Context, max int) (r RemoveReport, err error) {
	ctx, done, err := j.beginFreeing(ctx)
	if err != nil {
		return r, err
	}
	defer done(&err)
	if err := j.MayDelete(ctx); err != nil {
		return r, fmt.Errorf("remove segments: %w", err)
	}
	c, _, err := j.bundles(ctx)
	if err != nil {
		return r, fmt.Errorf("remove segments: %w", err)
	}
	giveBack, err := j.Borrow(ctx)
	if err != nil {
		return r, fmt.Errorf("remove segments: %w", err)
	}
	defer giveBack()

	var due []view.Segment
	var last *Ticket
	flush := func() error {
		t, err := j.removeAll(ctx, due, &r)
		due = due[:0]
		if t != nil {
			last = t
		}
		return err
	}
	now := j.Now()
	err = func() error {
		for after := (segment.Position{}); ; {
			page, err := j.store.Retired(after, livePage)
			if err != nil {
				return err
			}
			for _, s := range page {
				after = s.Key.Position
				if !s.Removable(now) {
					continue
				}
				if r.Objects+len(due) >= max {
					r.More = true
					return flush()
				}
				if j.leftAlone(s.Key.Position, &r) {
					continue
				}
				ok, err := j.isBundled(ctx, c, s)
				if err != nil {
					return err
				}
				if !ok {
					r.Unbundled++
					continue
				}
				if due = append(due, s); len(due) == removeBatch {
					if err := flush(); err != nil {
						return err
					}
				}
			}
			if len(page) == 0 {
				return flush()
			}
		}
	}()
	if last != nil { // what the report says is durable, whatever else went wrong
		j.Flush()
		err = errors.Join(err, last.Wait(ctx))
	}
	if err != nil {
		return r, fmt.Errorf("remove segments: %w", err)
	}
	return r, nil
}

// isBundled reports whether a bundle that this process has read whole holds the trailer of a segment. What is proven was
// compared with the segment's row.
func (j *Journal) isBundled(ctx context.Context, c *chain, s view.Segment) (bool, error) {
	for _, b := range c.bundles {
		if !b.covers(s.Key.Position) || j.bad[b.key] {
			continue
		}
		if !j.proven[b.key] {
			if err := j.prove(ctx, b, nil); errors.Is(err, ErrDamaged) {
				continue
			} else if err != nil {
				return false, err
			}
		}
		return true, nil
	}
	return false, nil
}

// removeAll deletes every landing of the segments and appends the records that say so.
func (j *Journal) removeAll(ctx context.Context, all []view.Segment, r *RemoveReport) (*Ticket, error) {
	if len(all) == 0 {
		return nil, nil
	}
	if err := j.MayDelete(ctx); err != nil {
		return nil, err
	}
	// Not for safety: a process that was replaced has nothing to tidy.
	if err := j.stillOurs(ctx); err != nil {
		return nil, err
	}
	var gone []view.Segment
	var failed error
	for _, s := range all {
		ok, err := j.deleteLandings(ctx, s, r)
		if err != nil {
			if failed = j.passOver(ctx, s.Key.Position, fmt.Errorf("segment %s: %w", s.Key.Position, err), r); failed != nil {
				break
			}
			continue
		}
		r.failed = 0
		if ok {
			gone = append(gone, s)
			delete(j.undeleted, s.Key.Position)
		}
	}
	if len(gone) == 0 {
		return nil, failed
	}
	if err := j.MayDelete(ctx); err != nil { // it took a while
		return nil, errors.Join(failed, err)
	}
	n := 0
	t, err := j.Append(ctx, func(tx *Tx) error {
		n = 0
		for _, s := range gone {
			err := tx.Record(segment.Removed{Place: s.Key.Position})
			if err != nil && !errors.Is(err, view.ErrNoSegment) {
				return err
			}
			if err == nil {
				n++
			}
		}
		return nil
	})
	if err != nil {
		return nil, errors.Join(failed, err)
	}
	r.Segments += n
	return t, failed
}

// leftAlone reports whether a segment is not tried for now, because a delete of it failed. At most maxFailed of these are
// tried again at a time.
func (j *Journal) leftAlone(pos segment.Position, r *RemoveReport) bool {
	at, ok := j.undeleted[pos]
	switch {
	case !ok:
		return false
	case time.Since(at) < undeletedFor || r.again == maxFailed:
		return true
	}
	r.again++
	return false
}

// passOver returns nil if err is that of a delete that failed, and notes that: a store has been seen to fail one particular
// request for ever, and a delete has no other form, so the others go on. It returns err if it is another, if
// the caller or the journal ended meanwhile, or if too many failed running.
func (j *Journal) passOver(ctx context.Context, pos segment.Position, err error, r *RemoveReport) error {
	if !errors.As(err, new(undeleted)) || ctx.Err() != nil || j.Err() != nil {
		return err
	}
	if _, ok := j.undeleted[pos]; !ok {
		r.failed++
		if len(j.undeleted) >= maxUndeleted {
			clear(j.undeleted)
		}
	}
	j.undeleted[pos] = time.Now()
	if r.failed >= maxFailed {
		return err
	}
	j.log.Warn("a segment could not be deleted", "err", err)
	return nil
}

// deleteLandings deletes every landing of a segment, and lists until there is none. It says no if there always is one.
func (j *Journal) deleteLandings(ctx context.Context, s view.Segment, r *RemoveReport) (bool, error) {
	for range removeLists {
		all, err := j.allLandings(ctx, s.Key)
		if err != nil || len(all) == 0 {
			return err == nil, err
		}
		if err := j.dead(ctx, s.Key, all); err != nil {
			return false, err
		}
		for _, f := range all {
			if err := j.deleteLanding(ctx, f, r); err != nil {
				return false, err
			}
		}
	}
	return false, nil
}

// undeleted is the error of a delete that the bucket did not do.
type undeleted struct{ error }

func (u undeleted) Unwrap() error { return u.error }

func (j *Journal) deleteLanding(ctx context.Context, f found, r *RemoveReport) error {
	err := persist(ctx, getPatience, getTimeout, func(ctx context.Context) error { return j.cfg.Bucket.Delete(ctx, f.key.String()) })
	if err != nil {
		return undeleted{err}
	}
	r.Objects++
	r.Bytes += f.size
	return nil
}

// allLandings lists every landing of a segment. The error wraps ErrContradiction if something else lies in its place.
func (j *Journal) allLandings(ctx context.Context, k segment.Key) (all []found, err error) {
	err = persist(ctx, getPatience, listTimeout, func(ctx context.Context) error {
		all = nil
		return bucket.ListAll(ctx, j.cfg.Bucket, segment.Prefix(k.Cell, k.Position), "", func(o bucket.Object) error {
			f, err := segment.ParseKey(o.Key)
			if err != nil || f.Hash != k.Hash || f.Trailer != k.Trailer {
				return final{fmt.Errorf("%w: object %s lies where segment %s is", ErrContradiction, o.Key, k)}
			}
			all = append(all, found{f, o.Size})
			return nil
		})
	})
	return all, err
}

// dead looks once more whether the view has a live block in a segment that is to be deleted: the counts by which it was
// retired are one reason, and this is another. That they differ is an event that must never happen.
func (j *Journal) dead(ctx context.Context, k segment.Key, all []found) error {
	var t *segment.Trailer
	err := error(nil)
	for _, f := range all {
		if t, err = readTrailer(ctx, j.cfg.Bucket, f); err == nil {
			break
		}
		if !errors.Is(err, ErrDamaged) && !errors.Is(err, bucket.ErrNotFound) {
			return err
		}
	}
	if err != nil { // none of them is whole; the bundle is
		raw, err := j.bundled(ctx, k)
		if err == nil && raw == nil {
			err = fmt.Errorf("%w: the trailer of segment %s is in no bundle", ErrContradiction, k.Position)
		}
		if err == nil {
			t, err = segment.ParseTrailer(raw)
		}
		if err != nil {
			return err
		}
	}
	live, err := j.placed(k.Position, t)
	if err != nil || len(live) == 0 {
		return err
	}
	b := live[0]
	err = fmt.Errorf("block %s at %d in segment %s: %w: it is live, and the segment is retired", b.Name, b.Block.Off, k.Position, view.ErrDamaged)
	return errors.Join(err, impossible(view.Damaged(err)))
}

// RemoveLate deletes landings of segments that were removed before, at most max objects: a Put that was given up may land
// at any time. It finds them in a list of the whole log, and deletes nothing that is live or retired, nothing that is not
// acknowledged, and nothing while deleting is frozen. The records that justify it are acknowledged: a segment is in
// no row of the acknowledged view only after its removed record (JOURNAL 8).
func (j *Journal) RemoveLate(ctx context.Context, max int) (r RemoveReport, err error) {
	ctx, done, err := j.beginFreeing(ctx)
	if err != nil {
		return r, err
	}
	defer done(&err)
	if err := j.MayDelete(ctx); err != nil {
		return r, fmt.Errorf("remove what landed late: %w", err)
	}
	c, _, err := j.bundles(ctx)
	if err != nil {
		return r, fmt.Errorf("remove what landed late: %w", err)
	}
	giveBack, err := j.Borrow(ctx)
	if err != nil {
		return r, fmt.Errorf("remove what landed late: %w", err)
	}
	defer giveBack()
	late, err := j.late(ctx, c, max, &r)
	if err != nil {
		return r, fmt.Errorf("find what landed late: %w", err)
	}
	r.More = len(late) >= max
	for i, f := range late {
		if i%removeBatch == 0 {
			err := j.MayDelete(ctx)
			if err == nil {
				err = j.stillOurs(ctx)
			}
			if err != nil {
				return r, fmt.Errorf("remove what landed late: %w", err)
			}
		}
		pos := f.key.Position
		if time.Since(j.undeleted[pos]) < undeletedFor { // another landing of it, just now
			continue
		}
		err := j.wasRemoved(ctx, c, f)
		if err == nil {
			err = j.dead(ctx, f.key, []found{f})
		}
		if err == nil {
			err = j.deleteLanding(ctx, f, &r)
		}
		if err == nil {
			r.failed = 0
			delete(j.undeleted, pos)
		} else if err := j.passOver(ctx, pos, fmt.Errorf("object %s: %w", f.key, err), &r); err != nil {
			return r, fmt.Errorf("remove what landed late: %w", err)
		}
	}
	return r, nil
}

// late lists landings of segments that were removed, at most max, without those that are left alone.
func (j *Journal) late(ctx context.Context, c *chain, max int, r *RemoveReport) (late []found, err error) {
	after := ""
	enough := errors.New("enough")
	err = persist(ctx, getPatience, chainTimeout, func(ctx context.Context) error {
		return bucket.ListAll(ctx, j.cfg.Bucket, segment.LogPrefix(j.cfg.Cell), after, func(o bucket.Object) error {
			if len(late) >= max {
				return final{enough}
			}
			after = o.Key
			k, err := segment.ParseKey(o.Key)
			if err != nil || k.Cell != j.cfg.Cell || !c.accepts(k.Position) {
				return nil // not part of the journal, or not yet
			}
			if _, ok, err := j.Acked().Segment(k.Position); err != nil {
				return final{err}
			} else if !ok && !j.leftAlone(k.Position, r) {
				late = append(late, found{k, o.Size})
			}
			return nil
		})
	})
	if err == enough {
		err = nil
	}
	return late, err
}

// wasRemoved returns nil if a bundle holds the trailer that the key of a landing names: then it is a landing of a
// segment of the journal, and one of which no row is left.
func (j *Journal) wasRemoved(ctx context.Context, c *chain, f found) error {
	for _, b := range c.bundles {
		if !b.covers(f.key.Position) {
			continue
		}
		is := [32]byte{}
		err := j.prove(ctx, b, func(_ bool, trailer []byte) error {
			h, err := segment.ParseHead(trailer)
			if err == nil && h.Position == f.key.Position {
				is = segment.HashOf(trailer)
			}
			return err
		})
		switch {
		case errors.Is(err, ErrDamaged):
			continue
		case err != nil:
			return err
		case is != f.key.Hash:
			return fmt.Errorf("%w: it is not what segment %s was before it was removed", ErrContradiction, f.key.Position)
		}
		return nil
	}
	return fmt.Errorf("%w: segment %s has no row in the view, and its trailer is in no bundle", ErrContradiction, f.key.Position)
}

// unlisted freezes deleting if a live segment is not in the bucket as the chain was listed, and has it looked for
// (JOURNAL 14): the chain needs no list of what is in bundles. It looks once more before; more than maxMissing are found
// when they are read.
func (j *Journal) unlisted(ctx context.Context, c *chain) error {
	missing := 0
	return eachLive(j.store, func(s view.Segment) error {
		k := s.Key
		if i := c.find(k.Position); i >= 0 && c.listed[i].key.Hash == k.Hash || k.Position.Epoch == j.claim.Epoch || missing == maxMissing {
			return nil
		}
		var all []found
		err := persist(ctx, getPatience, getTimeout, func(ctx context.Context) (err error) {
			all, err = landingsOf(bucket.Fresh(ctx), j.cfg.Bucket, k)
			return err
		})
		if err != nil || len(all) > 0 {
			return err
		}
		missing++
		j.contradict(k, int64(s.Size), fmt.Sprintf("the bucket does not list segment %s, which was acknowledged and is live (object %s)", k.Position, k))
		return nil
	})
}
