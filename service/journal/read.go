package journal

import (
	"context"
	"fmt"

	"holdfast/service/segment"
	"holdfast/service/view"
)

// ReadBlock returns the sealed bytes of an acknowledged block. It verifies the checksum and reads once
// more before it returns an error that wraps ErrDamaged.
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
// An object that is not there is an error like any other and says nothing about the block: a
// contradiction is not a deletion.
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
		raw, err = j.get(ctx, s.Key, int64(first.Off), span)
	}
	if err != nil {
		return fail(err)
	}
	for i, b := range blocks {
		out[i] = j.verified(ctx, s.Key, b, raw, int(b.Off-first.Off))
	}
	return out
}

// get reads a range of a segment, with a deadline.
func (j *Journal) get(ctx context.Context, key segment.Key, off, n int64) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, getTimeout)
	defer cancel()
	return j.cfg.Bucket.Get(ctx, key.String(), off, n)
}

// verified cuts b out of raw, or reads it once more if its bytes there are wrong: a reader or a line can
// err where the store does not.
func (j *Journal) verified(ctx context.Context, key segment.Key, b view.Block, raw []byte, at int) Read {
	if end := at + int(b.Len); end <= len(raw) {
		if p := raw[at:end:end]; segment.SumOf(p) == b.Sum {
			return Read{Sealed: p}
		}
	}
	again, err := j.get(ctx, key, int64(b.Off), int64(b.Len))
	if err == nil && segment.SumOf(again) == b.Sum {
		return Read{Sealed: again}
	}
	if err == nil {
		err = fmt.Errorf("%w in the bucket: its checksum is wrong", ErrDamaged)
	}
	return Read{Err: fmt.Errorf("read block at %d in segment %s: %w", b.Off, b.Pos, err)}
}
