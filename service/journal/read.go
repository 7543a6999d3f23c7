package journal

import (
	"context"
	"errors"
	"fmt"

	"holdfast"
	"holdfast/service/bucket"
	"holdfast/service/segment"
	"holdfast/service/view"
)

// Accounts returns at most max accounts of the acknowledged view in the order of their names, after the name after.
func (j *Journal) Accounts(after string, max int) ([]view.Account, error) {
	return j.store.Accounts(after, max)
}

// Damaged returns at most max blocks of a group that are damaged in the bucket, as far as is known, in the order of their
// names after the name after; the zero name begins.
func (j *Journal) Damaged(v holdfast.VaultID, g holdfast.GroupID, after holdfast.Name, max int) ([]view.Damage, error) {
	return j.store.DamagedOf(v, g, after, max)
}

// ReadBlock returns the sealed bytes of an acknowledged block. It verifies the checksum; the error wraps ErrDamaged when
// the block was wrong blockReads times, and in every other landing.
func (j *Journal) ReadBlock(ctx context.Context, b view.Block) ([]byte, error) {
	r := j.ReadBlocks(ctx, []view.Block{b})[0]
	return r.Sealed, r.Err
}

// Read is the result of reading one block.
type Read struct {
	Sealed []byte
	Err    error
}

// ReadBlocks reads blocks of one segment, ascending by Off, with one request that spans all of them; the
// caller chooses them so that the span, gaps included, is what it wants to hold. One result a block, with
// errors as ReadBlock's; the Sealed share memory. It panics if the blocks are of different segments or not
// in order.
//
// An object that is not there, and has no twin, is an error like any other and says nothing about the block: a
// contradiction is not a deletion. It freezes all deleting, and the segment is looked for (JOURNAL 14).
func (j *Journal) ReadBlocks(ctx context.Context, blocks []view.Block) []Read {
	out := make([]Read, len(blocks))
	if len(blocks) == 0 {
		return out
	}
	first, last := blocks[0], blocks[len(blocks)-1]
	for i, b := range blocks {
		if b.Pos != first.Pos || i > 0 && b.Off < blocks[i-1].Off+blocks[i-1].Len {
			panic("journal: ReadBlocks of blocks that are not neighbours in order")
		}
	}
	fail := func(err error) []Read {
		for i, b := range blocks {
			out[i].Err = fmt.Errorf("read block at %d in segment %s: %w", b.Off, b.Pos, err)
		}
		return out
	}
	s, ok, err := j.Acked().Segment(first.Pos)
	if err != nil {
		return fail(err)
	}
	if !ok {
		return fail(fmt.Errorf("the segment is not acknowledged"))
	}
	span := int64(last.Off) + int64(last.Len) - int64(first.Off)
	raw, err := j.get(ctx, s.Key, int64(first.Off), span)
	if err != nil && ctx.Err() == nil {
		// Over another connection: what answered 404, or cut, may not be the store.
		raw, err = j.get(bucket.Fresh(ctx), s.Key, int64(first.Off), span)
	}
	switch {
	case err == nil, ctx.Err() != nil:
	case errors.Is(err, bucket.ErrShort): // what is left of it may hold some of them
		raw, err = nil, nil
	case errors.Is(err, bucket.ErrNotFound):
		var other []found
		if other, err = twins(ctx, j.cfg.Bucket, s.Key); err != nil {
			break
		}
		err = bucket.ErrNotFound
		for _, f := range other {
			if raw, err = j.get(ctx, f.key, int64(first.Off), span); err == nil {
				s.Key = f.key
				break
			}
		}
		// One that is retired may just have been removed.
		if errors.Is(err, bucket.ErrNotFound) && ctx.Err() == nil && s.Retired == 0 {
			j.contradict(s.Key, int64(s.Size), fmt.Sprintf("the bucket says that it has no segment %s, which was acknowledged (object %s)", s.Key.Position, s.Key))
		}
	}
	if err != nil {
		return fail(err)
	}
	for i, b := range blocks {
		out[i] = j.verified(ctx, s.Key, b, raw, int(b.Off-first.Off))
	}
	return out
}

// maxTwins bounds the landings of one segment that are looked for.
const maxTwins = 16

// twins returns other landings of a segment: the same bytes under other nonces (JOURNAL 6). It is
// asked when one landing turns out to be bad.
func twins(ctx context.Context, b bucket.Bucket, k segment.Key) (other []found, err error) {
	all, err := landingsOf(ctx, b, k)
	for _, f := range all {
		if f.key.Nonce != k.Nonce {
			other = append(other, f)
		}
	}
	return other, err
}

// landingsOf lists the landings of a segment.
func landingsOf(ctx context.Context, b bucket.Bucket, k segment.Key) (all []found, err error) {
	ctx, cancel := context.WithTimeout(ctx, getTimeout)
	defer cancel()
	list, err := b.List(ctx, segment.Prefix(k.Cell, k.Position), "", maxTwins)
	for _, o := range list {
		f, err := segment.ParseKey(o.Key)
		if err == nil && f.Hash == k.Hash && f.Trailer == k.Trailer {
			all = append(all, found{f, o.Size})
		}
	}
	return all, err
}

// get reads a range of a segment, with a deadline.
func (j *Journal) get(ctx context.Context, key segment.Key, off, n int64) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, getTimeout)
	defer cancel()
	return j.cfg.Bucket.Get(ctx, key.String(), off, n)
}

// blockReads is how often a block must come back wrong before it is called damaged: a store that fails in a row is not one
// that lost it, and whoever restores is told once.
const blockReads = 4

// verified cuts b out of raw, or reads it again, over other connections, if its bytes there are wrong: a reader or a
// line can err where the store does not. If they are wrong every time, another landing of the segment may be good.
func (j *Journal) verified(ctx context.Context, key segment.Key, b view.Block, raw []byte, at int) Read {
	if end := at + int(b.Len); end <= len(raw) {
		if p := raw[at:end:end]; segment.SumOf(p) == b.Sum {
			return Read{Sealed: p}
		}
	}
	var again []byte
	var err error
	for range blockReads - 1 {
		if again, err = j.get(bucket.Fresh(ctx), key, int64(b.Off), int64(b.Len)); err == nil && segment.SumOf(again) == b.Sum {
			return Read{Sealed: again}
		}
		if err != nil && !errors.Is(err, bucket.ErrShort) {
			break
		}
	}
	if err == nil || errors.Is(err, bucket.ErrShort) {
		var other []found
		if other, err = twins(ctx, j.cfg.Bucket, key); err == nil {
			err = fmt.Errorf("%w in the bucket: its checksum is wrong", ErrDamaged)
		}
		for _, f := range other {
			if again, no := j.get(ctx, f.key, int64(b.Off), int64(b.Len)); no == nil && segment.SumOf(again) == b.Sum {
				j.log.Warn("a landing of a segment is damaged; another is good", "damaged", key, "good", f.key)
				return Read{Sealed: again}
			}
		}
	}
	return Read{Err: fmt.Errorf("read block at %d in segment %s: %w", b.Off, b.Pos, err)}
}
