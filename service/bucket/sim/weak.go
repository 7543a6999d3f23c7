package sim

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"time"

	"holdfast/service/bucket"
)

// Weakness is a promise that a store does not keep, without any error.
type Weakness int

// The weaknesses.
const (
	// StaleList lists what was there before the newest write.
	StaleList Weakness = iota
	// StaleRead reads what was there before the newest write of the object.
	StaleRead
	// BlindSwap swaps without comparing.
	BlindSwap
	// RacySwap compares, and swaps a little later.
	RacySwap
	// CreateRaces compares and swaps at once, except when there is nothing yet: then it is a RacySwap.
	CreateRaces
)

// Weak returns a connection to b's store that lacks one thing.
func Weak(b *Bucket, w Weakness) bucket.Bucket {
	return &weak{Bucket: b, lacks: w, before: map[string][]byte{}}
}

type weak struct {
	*Bucket
	lacks Weakness

	mu     sync.Mutex
	newest string            // key of the newest write
	before map[string][]byte // what each object was before its newest write; nil if there was none
}

// note remembers what the object is before it is written.
func (w *weak) note(ctx context.Context, key string) {
	old, err := w.Bucket.Get(ctx, key, 0, -1)
	if err != nil {
		old = nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.newest, w.before[key] = key, old
}

func (w *weak) Put(ctx context.Context, key string, body []byte) error {
	w.note(ctx, key)
	return w.Bucket.Put(ctx, key, body)
}

func (w *weak) Get(ctx context.Context, key string, off, n int64) ([]byte, error) {
	w.mu.Lock()
	old, ok := w.before[key]
	w.mu.Unlock()
	if w.lacks != StaleRead || !ok || off != 0 || n >= 0 {
		return w.Bucket.Get(ctx, key, off, n)
	}
	if old == nil {
		return nil, bucket.ErrNotFound
	}
	return old, nil
}

func (w *weak) List(ctx context.Context, prefix, after string, max int) ([]bucket.Object, error) {
	page, err := w.Bucket.List(ctx, prefix, after, max)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.lacks == StaleList && len(page) > 0 && page[len(page)-1].Key == w.newest {
		page = page[:len(page)-1]
	}
	return page, err
}

func (w *weak) Swap(ctx context.Context, key string, old, new []byte) error {
	if w.lacks == StaleList || w.lacks == StaleRead || w.lacks == CreateRaces && old != nil {
		w.note(ctx, key)
		return w.Bucket.Swap(ctx, key, old, new)
	}
	is, err := w.Bucket.Get(ctx, key, 0, -1)
	if err != nil && !errors.Is(err, bucket.ErrNotFound) {
		return err
	}
	if w.lacks != BlindSwap && ((is == nil) != (old == nil) || !bytes.Equal(is, old)) {
		return bucket.ErrChanged
	}
	if w.lacks != BlindSwap {
		t := time.NewTimer(time.Millisecond)
		defer t.Stop()
		<-t.C
		if is, err = w.Bucket.Get(ctx, key, 0, -1); err != nil { // whatever it is by now
			is = nil
		}
	}
	if err = w.Bucket.Swap(ctx, key, is, new); errors.Is(err, bucket.ErrChanged) {
		err = nil // another came between, and both were told that they won
	}
	return err
}
