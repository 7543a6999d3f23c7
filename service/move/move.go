// Package move takes a cell from one bucket to another.
//
// Assumption: nobody serves the cell meanwhile; the caller holds the lock of the data directory that owns it. Invariant: the
// epoch object, without which a bucket holds no journal, is written last, when every segment and every bundle of trailers that
// the old bucket lists is in the new one, of the same size, with every check sum right if it was copied here. So a new bucket
// is never a part of a journal that looks whole. Checkpoints stay behind: they can be made again. Nothing is deleted anywhere, and a move that was cut short goes on where it was.
package move

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"
	"time"

	"holdfast"
	"holdfast/service/bucket"
	"holdfast/service/segment"
)

const (
	workers    = 4                // segments on their way at a time: each is in memory
	attempts   = 8                // at each step of one object
	backoff    = time.Second      // after a failed attempt; doubles, but after damaged bytes
	opTimeout  = 90 * time.Second // of one request
	listPasses = 2                // a store may list late what was stored lately
)

// Errors that a caller acts on.
var (
	// ErrForeign reports that the old bucket's cell belongs to another host than the one that moves it.
	ErrForeign = errors.New("the cell belongs to another host; run move on that one, or, if it is gone for good, take the cell over with holdfastd serve --takeover first")
	// ErrForked reports that the two buckets hold different segments in one place: the cell was served from both.
	ErrForked = errors.New("the new bucket holds another history of this service: it was served from both buckets; use an empty one, and keep both as they are")
	// ErrNewer reports that the new bucket holds a state of the cell that the old one does not.
	ErrNewer = errors.New("the new bucket holds a later state of this service than the old one")
	// ErrDamaged reports bytes of the old bucket that fail their checks at every attempt.
	ErrDamaged = errors.New("damaged")
)

// Report says what was moved.
type Report struct {
	Objects, There int   // segments and bundles in all, and of those in the new bucket already
	Bytes          int64 // copied
}

// Cell copies the cell, which host owns, from one bucket to another. each, if not nil, is told how many objects of all
// are there, one call at a time.
func Cell(ctx context.Context, from, to bucket.Bucket, cell holdfast.CellID, host [16]byte, each func(done, all int)) (r Report, err error) {
	now, old, err := claims(ctx, from, to, cell, host)
	if err != nil {
		return r, err
	}
	have := map[string]int64{}
	if err := list(ctx, to, cell, func(o bucket.Object) { have[o.Key] = o.Size }); err != nil {
		return r, fmt.Errorf("list the new bucket: %w", err)
	}
	want := map[string]int64{}
	for range listPasses {
		if err := list(ctx, from, cell, func(o bucket.Object) { want[o.Key] = o.Size }); err != nil {
			return r, fmt.Errorf("list the old bucket: %w", err)
		}
	}
	if err := oneHistory(want, have, now); err != nil {
		return r, err
	}
	var todo []bucket.Object
	for key, size := range want {
		if s, ok := have[key]; !ok || s != size {
			todo = append(todo, bucket.Object{Key: key, Size: size})
		}
	}
	r.Objects, r.There = len(want), len(want)-len(todo)
	if err := copyAll(ctx, from, to, todo, func(o bucket.Object) {
		r.Bytes += o.Size
		if r.There++; each != nil {
			each(r.There, r.Objects)
		}
	}); err != nil {
		return r, err
	}
	r.There = r.Objects - len(todo)
	// Who took the cell over meanwhile has added to it what is not copied.
	if is, _, err := readClaim(ctx, from, cell); err != nil {
		return r, fmt.Errorf("read the epoch object of the old bucket: %w", err)
	} else if !bytes.Equal(is, now) {
		return r, fmt.Errorf("%w: it was taken over while it was copied", ErrForeign)
	}
	// The commit point of the move in the bucket.
	if bytes.Equal(now, old) {
		return r, nil
	}
	err = try(ctx, func(ctx context.Context) error {
		err := to.Swap(ctx, segment.EpochKey(cell), old, now)
		if err == nil {
			return nil
		}
		// It may have been done all the same.
		switch got, _, no := readClaim(ctx, to, cell); {
		case no != nil && !errors.Is(no, bucket.ErrNotFound):
			return no
		case bytes.Equal(got, now):
			return nil
		}
		return err
	})
	if err != nil {
		return r, fmt.Errorf("write the epoch object of the new bucket: %w", err)
	}
	return r, nil
}

// claims returns the epoch object of the old bucket, and what the new one has in its place, nil for nothing. The errors say why
// the cell must not be moved so.
func claims(ctx context.Context, from, to bucket.Bucket, cell holdfast.CellID, host [16]byte) (now, old []byte, err error) {
	now, mine, err := readClaim(ctx, from, cell)
	if err != nil {
		return nil, nil, fmt.Errorf("read the epoch object of the old bucket: %w", err)
	}
	if mine.Host != host {
		return nil, nil, fmt.Errorf("%w (epoch %d, host %x)", ErrForeign, mine.Epoch, mine.Host)
	}
	old, theirs, err := readClaim(ctx, to, cell)
	switch {
	case errors.Is(err, bucket.ErrNotFound):
		return now, nil, nil
	case err != nil:
		return nil, nil, fmt.Errorf("read the epoch object of the new bucket: %w", err)
	case theirs != mine && theirs.Epoch >= mine.Epoch:
		return nil, nil, fmt.Errorf("%w: epoch %d, and the old bucket epoch %d", ErrNewer, theirs.Epoch, mine.Epoch)
	}
	return now, old, nil
}

// readClaim reads the epoch object until two reads in a row say the same: it has no check sum, and one flipped bit must
// not name another host.
func readClaim(ctx context.Context, b bucket.Bucket, cell holdfast.CellID) (raw []byte, c segment.Claim, err error) {
	err = try(ctx, func(ctx context.Context) error {
		for range 4 {
			read, err := b.Get(ctx, segment.EpochKey(cell), 0, -1)
			if err != nil {
				return err
			}
			if raw != nil && bytes.Equal(raw, read) {
				c, err = segment.ParseClaim(raw)
				return err
			}
			raw = read
		}
		return errors.New("no two reads of it say the same")
	})
	return raw, c, err
}

// oneHistory refuses a new bucket whose segments would not be a part of what is copied there: a place never has two
// contents (JOURNAL 6), and a later epoch is a later state. A bundle says what its last segment is. now is the epoch object of
// the old one.
func oneHistory(want, have map[string]int64, now []byte) error {
	claim, err := segment.ParseClaim(now)
	if err != nil {
		return err
	}
	at := map[segment.Position][32]byte{}
	for key := range want {
		if pos, hash, ok := place(key); ok {
			at[pos] = hash
		}
	}
	for _, key := range slices.Sorted(maps.Keys(have)) { // so that every attempt says the same
		pos, hash, ok := place(key)
		if _, moved := want[key]; moved || !ok {
			continue
		}
		if is, ok := at[pos]; ok && is != hash {
			return fmt.Errorf("%w (%s)", ErrForked, key)
		}
		if pos.Epoch > claim.Epoch {
			return fmt.Errorf("%w: segment %s, and the old bucket epoch %d", ErrNewer, pos, claim.Epoch)
		}
	}
	return nil
}

// place returns the segment that a key names, or the last one of the bundle that it names.
func place(key string) (segment.Position, [32]byte, bool) {
	if b, err := segment.ParseBundleKey(key); err == nil {
		return b.Last, b.Hash, true
	}
	k, err := segment.ParseKey(key)
	return k.Position, k.Hash, err == nil
}

func list(ctx context.Context, b bucket.Bucket, cell holdfast.CellID, each func(bucket.Object)) error {
	// Bundles last: what is not in the log any more is in one of them.
	for _, prefix := range []string{segment.LogPrefix(cell), segment.BundlePrefix(cell)} {
		err := bucket.ListAll(ctx, patient{b}, prefix, "", func(o bucket.Object) error {
			each(o)
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// patient asks for each page of a list as often as try does.
type patient struct{ bucket.Bucket }

func (p patient) List(ctx context.Context, prefix, after string, max int) (page []bucket.Object, err error) {
	err = try(ctx, func(ctx context.Context) (err error) {
		page, err = p.Bucket.List(ctx, prefix, after, max)
		return err
	})
	return page, err
}

// copyAll copies objects, several at a time; done is told of each, one call at a time.
func copyAll(ctx context.Context, from, to bucket.Bucket, todo []bucket.Object, done func(bucket.Object)) error {
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	queue := make(chan bucket.Object)
	var mu sync.Mutex
	var work sync.WaitGroup
	for range workers {
		work.Go(func() {
			for o := range queue {
				if err := copyOne(ctx, from, to, o); err != nil {
					fail(err)
					continue
				}
				mu.Lock()
				done(o)
				mu.Unlock()
			}
		})
	}
	for _, o := range todo {
		select {
		case queue <- o:
			continue
		case <-ctx.Done():
		}
		break
	}
	close(queue)
	work.Wait()
	return context.Cause(ctx)
}

// copyOne copies an object whose every byte was checked.
func copyOne(ctx context.Context, from, to bucket.Bucket, o bucket.Object) error {
	var body []byte
	err := try(ctx, func(ctx context.Context) error {
		var err error
		// A length says how long it may take.
		if body, err = from.Get(ctx, o.Key, 0, o.Size); err != nil {
			return err
		}
		return check(o, body)
	})
	if err != nil {
		return fmt.Errorf("read %s from the old bucket: %w", o.Key, err)
	}
	if err := try(ctx, func(ctx context.Context) error { return to.Put(ctx, o.Key, body) }); err != nil {
		return fmt.Errorf("write %s to the new bucket: %w", o.Key, err)
	}
	return nil
}

// check compares an object with what its key, its trailers and the list say of it. What is neither a segment nor a bundle can
// only be compared with the list.
func check(o bucket.Object, body []byte) error {
	if int64(len(body)) != o.Size {
		return fmt.Errorf("%w: it has %d bytes, and was listed with %d", ErrDamaged, len(body), o.Size)
	}
	if k, err := segment.ParseBundleKey(o.Key); err == nil {
		return checkBundle(k, body)
	}
	k, err := segment.ParseKey(o.Key)
	if err != nil {
		return nil
	}
	if int64(k.Trailer) > o.Size {
		return fmt.Errorf("%w: it is shorter than its trailer", ErrDamaged)
	}
	t, err := k.Parse(body[len(body)-int(k.Trailer):], o.Size)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	for _, r := range t.Records {
		s, ok := r.Record.(segment.Stored)
		if !ok {
			continue
		}
		if end := int64(s.Off) + int64(s.Len); end > o.Size || segment.SumOf(body[s.Off:end]) != s.Sum {
			return fmt.Errorf("%w: block %s has another check sum", ErrDamaged, s.Name)
		}
	}
	return nil
}

func checkBundle(k segment.BundleKey, body []byte) error {
	r := segment.NewBundleReader(k, bytes.NewReader(body), int64(len(body)))
	for {
		_, _, err := r.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%w: %w", ErrDamaged, err)
		}
	}
}

// try makes a few attempts at what a store may fail; what is not there is not there after another one as well.
func try(ctx context.Context, fn func(context.Context) error) error {
	pause := backoff
	for n := 1; ; n++ {
		c, cancel := context.WithTimeout(ctx, opTimeout)
		err := fn(c)
		cancel()
		if err == nil || ctx.Err() != nil || n == attempts || errors.Is(err, bucket.ErrChanged) || n > 1 && errors.Is(err, bucket.ErrNotFound) {
			if ctx.Err() != nil {
				err = context.Cause(ctx)
			}
			return err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
		if !errors.Is(err, ErrDamaged) {
			pause *= 2
		}
	}
}
