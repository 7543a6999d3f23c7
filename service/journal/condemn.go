package journal

import (
	"context"
	"errors"
	"fmt"

	"holdfast"
	"holdfast/service/segment"
	"holdfast/service/view"
)

// maxCondemn bounds what one Append condemns, rows of the view in bytes: others are waiting for the sequencer.
const maxCondemn = 1 << 20

// sessionStart is a session that may rely on what it was told is there.
type sessionStart struct {
	vault holdfast.VaultID
	start int64 // journal time of its open record, ms
}

// EndSession says that nobody relies any more on what a session was told. Until then, and from its open record
// on, no block is condemned that it may have been told of (JOURNAL 17). A session that nobody ends keeps
// blocks for as long as this process lives, and no longer (JOURNAL 15).
func (j *Journal) EndSession(id holdfast.SessionID) {
	j.mu.Lock()
	defer j.mu.Unlock()
	delete(j.open, id)
}

// Candidate is a block, at one place, of which somebody found that it may be freed. It is a proposal, made
// from any view however old: only what still holds when its turn comes is done (JOURNAL 1).
type Candidate struct {
	Name  holdfast.Name
	Block view.Block
}

// Condemn appends a condemned record for every candidate that may be condemned at that moment and returns how many
// those are, once they are durable. What has references, moved, or may have been promised to a session is
// left alone. The error wraps view.ErrFrozen while deleting is frozen.
func (j *Journal) Condemn(ctx context.Context, all []Candidate) (n int, err error) {
	n, _, err = j.condemn(ctx, all)
	return n, err
}

// condemn is Condemn; size is the bytes of what it condemned.
func (j *Journal) condemn(ctx context.Context, all []Candidate) (n int, size uint64, err error) {
	if err := j.MayDelete(ctx); err != nil {
		return 0, 0, fmt.Errorf("condemn: %w", err)
	}
	var last *Ticket
	for len(all) > 0 {
		var did int
		var bytes uint64
		t, err := j.Append(ctx, func(tx *Tx) error {
			did, bytes = 0, 0
			oldest := tx.j.oldest()
			for len(all) > 0 && tx.layer.Size() < maxCondemn {
				ok, err := all[0].condemn(tx.Reader(), tx.now, oldest, tx.Record)
				if err != nil {
					return err
				}
				if ok {
					did++
					bytes += uint64(all[0].Block.Len)
				}
				all = all[1:]
			}
			return nil
		})
		if err != nil {
			return n, size, fmt.Errorf("condemn: %w", err)
		}
		n, size = n+did, size+bytes
		last = t
	}
	if n == 0 {
		return 0, 0, nil
	}
	j.Flush()
	if err := last.Wait(ctx); err != nil {
		return n, size, fmt.Errorf("condemn: %w", err)
	}
	return n, size, nil
}

// oldest returns the journal time since when the oldest open session of each vault that has one is open. mu is held.
func (j *Journal) oldest() map[holdfast.VaultID]int64 {
	oldest := map[holdfast.VaultID]int64{}
	for _, o := range j.open {
		if at, ok := oldest[o.vault]; !ok || o.start < at {
			oldest[o.vault] = o.start
		}
	}
	return oldest
}

// condemn has record add the record of a candidate, if it may be condemned now. Sessions whose open record comes later in
// the journal than those that oldest knows find the block gone already.
func (c Candidate) condemn(r view.Reader, now int64, oldest map[holdfast.VaultID]int64, record func(segment.Record) error) (bool, error) {
	s, ok, err := r.Session(c.Block.Session)
	if err != nil {
		return false, err
	}
	if !ok {
		return false, fmt.Errorf("block %s: %w: %s", c.Name, view.ErrNoSession, c.Block.Session)
	}
	start := now
	if at, ok := oldest[s.Vault]; ok {
		start = min(now, at)
	}
	err = record(segment.Condemned{
		Session: c.Block.Session, Name: c.Name, Place: c.Block.Pos, Off: c.Block.Off, Before: view.CondemnableBefore(start),
	})
	switch {
	case errors.Is(err, view.ErrMoved), errors.Is(err, view.ErrReferenced), errors.Is(err, view.ErrTooYoung):
		return false, nil
	}
	return err == nil, err
}
