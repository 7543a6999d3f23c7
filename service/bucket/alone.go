package bucket

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"
)

// Alone returns b with a Swap that needs no conditional writes: it reads, compares, writes, and reads again. Nobody
// else may swap at the same time, and a write that was given up and lands late takes the object back to what it was
// then. docs/storage.md says what that means for the owner of a cell.
func Alone(b Bucket) Bucket {
	if p, ok := b.(Paced); ok {
		return pacedAlone{alone{b}, p}
	}
	return alone{b}
}

type alone struct{ Bucket }

// Swap implements Bucket. What it finds instead of new in the end is an error that means unknown: new may be back, or come back.
func (a alone) Swap(ctx context.Context, key string, old, new []byte) error {
	is, err := a.Get(ctx, key, 0, -1)
	switch {
	case errors.Is(err, ErrNotFound):
		if old != nil {
			return ErrChanged
		}
	case err != nil:
		return err
	case old == nil || !bytes.Equal(is, old):
		return ErrChanged
	}
	if err := a.Put(ctx, key, new); err != nil {
		return err
	}
	is, err = a.Get(ctx, key, 0, -1)
	if err == nil && !bytes.Equal(is, new) {
		err = &Error{Class: ClassServer, Err: fmt.Errorf("swap %s: somebody else wrote it at the same time, and this store cannot keep the two apart; only one process may own a cell here", key)}
	}
	return err
}

type pacedAlone struct {
	alone
	p Paced
}

// SlowAfter implements Paced.
func (a pacedAlone) SlowAfter(op Op, n int64) time.Duration { return a.p.SlowAfter(op, n) }

// Down implements Paced.
func (a pacedAlone) Down() (time.Time, error) { return a.p.Down() }
