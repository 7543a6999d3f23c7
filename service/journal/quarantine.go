package journal

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"holdfast/service/bucket"
	"holdfast/service/segment"
)

// maxOutside bounds the objects that a Quarantine names; it counts all.
const maxOutside = 1000

// Quarantine is what lies under the log's prefix and is not part of the journal (JOURNAL 7): segments that no
// takeover accepted, because they landed too late or after one that is missing, and objects that are none.
// Nobody was told that anything in it is kept.
type Quarantine struct {
	Count   int
	Bytes   int64
	Objects []Outside // the first of them
}

// Outside is one object in quarantine.
type Outside struct {
	Key  string
	Size int64
	Why  string // it is not part of the journal
	// Sweep may delete it: it is a segment of an epoch that is over.
	Sweep bool
}

func (q *Quarantine) add(o Outside) {
	q.Count++
	q.Bytes += o.Size
	if len(q.Objects) < maxOutside {
		q.Objects = append(q.Objects, o)
	}
}

// quarantine says which of the listed objects are outside the accepted table. Of epochs from limit on
// nothing is: they are not over, and what is on its way there may be acknowledged any moment.
func quarantine(l listing, table []segment.Accepted, limit uint64) (q Quarantine) {
	for _, f := range l.segments {
		pos := f.key.Position
		if pos.Epoch >= limit {
			continue
		}
		i, ok := slices.BinarySearchFunc(table, pos.Epoch, func(a segment.Accepted, e uint64) int { return int(int64(a.Epoch) - int64(e)) })
		if ok && pos.Seq <= table[i].LastSeq {
			continue // it, or another landing of it
		}
		why := fmt.Sprintf("no takeover accepted epoch %d", pos.Epoch)
		if ok {
			why = fmt.Sprintf("epoch %d ended with segment %d", pos.Epoch, table[i].LastSeq)
		}
		q.add(Outside{f.key.String(), f.size, why, true})
	}
	for _, b := range l.bundles {
		if b.key.Last.Epoch < limit && !fits(b, table) {
			q.add(Outside{b.key.String(), b.size, "it is a bundle of what no takeover accepted", false})
		}
	}
	for _, o := range l.strays {
		q.add(Outside{o.Key, o.Size, "it is not named like a segment or a bundle", false})
	}
	q.Count += l.moreStrays
	return q
}

// Quarantine lists the log and says what in it is not part of the journal.
func (j *Journal) Quarantine(ctx context.Context) (Quarantine, error) {
	l, err := list(ctx, j.cfg)
	if err != nil {
		return Quarantine{}, fmt.Errorf("list the quarantine: %w", err)
	}
	return quarantine(l, j.table, j.claim.Epoch), nil
}

// Sweep deletes the segments in quarantine, at most maxOutside, and returns what it deleted; other objects
// there are a person's to judge. It deletes nothing of an epoch that is not over.
//
// The record that justifies each delete is our takeover record, which Open saw acknowledged (JOURNAL 7, 8):
// its table says for ever how the epochs before ours ended. So it does no harm when a delete lands late,
// even if we are no longer the owner by then. Nor does it when a segment lands once more after its delete:
// it lies in quarantine again.
func (j *Journal) Sweep(ctx context.Context) (swept Quarantine, err error) {
	if err := j.Err(); err != nil {
		return swept, err
	}
	if err := j.MayDelete(ctx); err != nil {
		return swept, fmt.Errorf("sweep the quarantine: %w", err)
	}
	q, err := j.Quarantine(ctx)
	if err != nil {
		return swept, err
	}
	// Not for safety: a process that was replaced has nothing to tidy.
	if err := j.confirm(ctx, getPatience); err != nil {
		if errors.Is(err, ErrLost) {
			j.stop(err)
		}
		return swept, fmt.Errorf("sweep the quarantine: %w", err)
	}
	for _, o := range q.Objects {
		if !o.Sweep {
			continue
		}
		err := persist(ctx, getPatience, getTimeout, func(ctx context.Context) error { return j.cfg.Bucket.Delete(ctx, o.Key) })
		if err != nil {
			return swept, fmt.Errorf("sweep the quarantine: %w", err)
		}
		swept.add(o)
	}
	j.log.Info("quarantine swept", "objects", swept.Count, "bytes", swept.Bytes)
	return swept, nil
}

// listing is what a list of the log and of the bundles shows.
type listing struct {
	segments   []found         // every landing of every segment, in order
	bundles    []foundBundle   // in order
	strays     []bucket.Object // named like neither, at most maxOutside
	moreStrays int
}
