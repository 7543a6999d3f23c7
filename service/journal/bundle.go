package journal

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"holdfast/service/bucket"
	"holdfast/service/segment"
)

const (
	// maxProven bounds the bundles of which this process remembers that it has read them whole.
	maxProven = 4096
	// bundlePuts is how often a bundle is written, each time under a nonce of its own, until that is given up: for now.
	bundlePuts = 4
)

// BundleReport says what Bundle did.
type BundleReport struct {
	Segments int              // of which the trailer is in a bundle now, and was in none before
	Bundles  int              // that were written
	Bytes    int64            // of them
	Deleted  int              // bundles that are part of others
	Position segment.Position // up to which bundles hold all trailers; zero for none
}

// Bundled returns up to which segment bundles hold all trailers, and how many acknowledged segments come after it.
func (j *Journal) Bundled() (upTo segment.Position, after int) {
	j.mu.RLock()
	defer j.mu.RUnlock()
	c := chain{table: append(j.table[:len(j.table):len(j.table)], segment.Accepted{Epoch: j.acked.Epoch, LastSeq: j.acked.Seq})}
	return j.bundledTo, c.count(j.acked) - c.count(j.bundledTo)
}

// Bundle copies the trailers of all acknowledged segments that are in no bundle into bundles, so that these segments can
// be removed one day and no record is lost (JOURNAL 12). A bundle counts when it was read back and is what was written.
// The last bundle, if it has room, becomes a part of the next, and is deleted then. When Bundle fails, what the report
// says is done all the same.
//
// What a crash leaves: a bundle that nobody needs yet, or one that is a part of another; both say what is so. The next
// Bundle deletes those.
func (j *Journal) Bundle(ctx context.Context) (r BundleReport, err error) {
	ctx, done, err := j.beginFreeing(ctx)
	if err != nil {
		return r, err
	}
	defer done(&err)
	defer func() { r.Position, _ = j.Bundled() }()
	for more := true; more; {
		if more, err = j.bundleOnce(ctx, &r); err != nil {
			return r, fmt.Errorf("bundle trailers: %w", err)
		}
	}
	if err := j.tidyBundles(ctx, &r); err != nil {
		return r, fmt.Errorf("delete what is part of other bundles: %w", err)
	}
	return r, nil
}

// beginFreeing waits until nobody else bundles or removes. The context that it returns ends when the journal stops; done
// has an error say so.
func (j *Journal) beginFreeing(ctx context.Context) (_ context.Context, done func(*error), err error) {
	ctx, end, err := j.whileOpen(ctx)
	if err != nil {
		return nil, nil, err
	}
	select {
	case j.freeing <- struct{}{}:
	case <-ctx.Done():
		defer end()
		return nil, nil, cmp.Or(j.Err(), ctx.Err())
	}
	return ctx, func(err *error) {
		if stopped := j.Err(); *err != nil && stopped != nil && !errors.Is(*err, stopped) {
			*err = errors.Join(*err, stopped)
		}
		<-j.freeing
		end()
	}, nil
}

// bundles says which bundles hold which acknowledged segments: the chain up to the newest acknowledged one, with nothing
// listed but the bundles. Those that were found damaged are apart.
func (j *Journal) bundles(ctx context.Context) (c *chain, bad []foundBundle, err error) {
	st, err := j.Acked().Stats()
	if err != nil {
		return nil, nil, err
	}
	c = &chain{table: append(j.table[:len(j.table):len(j.table)], segment.Accepted{Epoch: st.Position.Epoch, LastSeq: st.Position.Seq, Hash: st.Hash})}
	var l listing
	err = persist(ctx, getPatience, listTimeout, func(ctx context.Context) error {
		return bucket.ListAll(ctx, j.cfg.Bucket, segment.BundlePrefix(j.cfg.Cell), "", func(o bucket.Object) error {
			l.bundle(j.cfg, o)
			return nil
		})
	})
	if err != nil {
		return nil, nil, fmt.Errorf("list the bundles: %w", err)
	}
	l.sortBundles()
	for _, b := range l.bundles {
		switch {
		case !fits(b, c.table):
		case j.bad[b.key]:
			bad = append(bad, b)
		default:
			c.bundles = append(c.bundles, b)
		}
	}
	j.mu.Lock()
	j.bundledTo = c.bundled()
	j.mu.Unlock()
	return c, bad, nil
}

// bundleOnce writes one bundle, if there is a segment without one. It says whether there may be more to do.
func (j *Journal) bundleOnce(ctx context.Context, r *BundleReport) (more bool, err error) {
	if err := j.Err(); err != nil {
		return false, err
	}
	c, _, err := j.bundles(ctx)
	if err != nil {
		return false, err
	}
	pieces, next, more := c.prefix()
	if !more {
		return false, nil
	}
	first, ok, err := j.Acked().Segment(next)
	if err == nil && !ok {
		err = fmt.Errorf("%w: segment %s was removed, and its trailer is in no bundle that is whole", ErrContradiction, next)
	}
	if err != nil {
		return false, err
	}
	giveBack, err := j.Borrow(ctx)
	if err != nil {
		return false, err
	}
	defer giveBack()
	b := segment.NewBundleBuilder(j.cfg.Cell)
	if n := len(pieces); n > 0 {
		last := *pieces[n-1].bundle
		held := c.count(last.key.Last) - c.count(c.before(last.key.First))
		if held < segment.MaxBundled && last.size+4+int64(first.Key.Trailer) <= segment.MaxBundle {
			if err := j.absorb(ctx, last, b); errors.Is(err, ErrDamaged) || errors.Is(err, bucket.ErrNotFound) {
				return true, nil // it is not counted on any more
			} else if err != nil {
				return false, err
			}
		}
	}
	n := 0
	for pos, ok := next, true; ok; pos, ok = c.next(pos) {
		if n > 0 && c.inBundle(pos) {
			break // a gap is closed
		}
		s, there, err := j.Acked().Segment(pos)
		if err == nil && !there {
			err = fmt.Errorf("%w: segment %s was removed, and its trailer is in no bundle that is whole", ErrContradiction, pos)
		}
		if err != nil {
			return false, err
		}
		if !b.Fits(int(s.Key.Trailer)) {
			break
		}
		if err := j.addTrailer(ctx, b, found{s.Key, int64(s.Size)}); err != nil {
			return false, err
		}
		n++
	}
	k, body := b.Finish([8]byte{})
	if err := j.putBundle(ctx, k, body); err != nil {
		return false, err
	}
	r.Segments, r.Bundles, r.Bytes = r.Segments+n, r.Bundles+1, r.Bytes+int64(len(body))
	return true, nil
}

// inBundle reports whether a bundle holds the segment at pos.
func (c *chain) inBundle(pos segment.Position) bool {
	for _, b := range c.bundles {
		if b.covers(pos) {
			return true
		}
	}
	return false
}

// absorb adds all trailers of a bundle to b, which is empty, and proves the bundle.
func (j *Journal) absorb(ctx context.Context, f foundBundle, b *segment.BundleBuilder) error {
	return j.prove(ctx, f, func(again bool, trailer []byte) error {
		if again {
			*b = *segment.NewBundleBuilder(j.cfg.Cell)
		}
		return b.Add(trailer)
	})
}

// prove reads a bundle whole and compares it with its key, with itself, and with what the view says of the segments that
// it holds. fn, if not nil, gets every trailer; again tells that it is the first, and those before are void. The error
// wraps ErrDamaged if the bundle fails at trailerReads readings; it is not counted on then any more.
func (j *Journal) prove(ctx context.Context, f foundBundle, fn func(again bool, trailer []byte) error) error {
	for bad := 1; ; bad++ {
		err := j.proveOnce(ctx, f, fn)
		switch {
		case err == nil:
			remember(j.proven, f.key)
			return nil
		case errors.Is(err, bucket.ErrNotFound), errors.Is(err, segment.ErrFormat) && bad == trailerReads:
			delete(j.proven, f.key)
			remember(j.bad, f.key)
			j.log.Error("a bundle of trailers is damaged", "bundle", f.key, "err", err)
			return fmt.Errorf("read bundle %s: %w: %w", f.key, ErrDamaged, err)
		case !errors.Is(err, segment.ErrFormat):
			return fmt.Errorf("read bundle %s: %w", f.key, err)
		}
	}
}

// remember adds a key to a set of at most maxProven.
func remember(set map[segment.BundleKey]bool, k segment.BundleKey) {
	if len(set) >= maxProven {
		clear(set)
	}
	set[k] = true
}

func (j *Journal) proveOnce(ctx context.Context, f foundBundle, fn func(again bool, trailer []byte) error) error {
	r := segment.NewBundleReader(f.key, &ranges{ctx: ctx, b: j.cfg.Bucket, key: f.key.String(), size: f.size}, f.size)
	var other error // that the view says otherwise; it may be the bundle that is damaged
	for again := true; ; again = false {
		trailer, h, err := r.Next()
		if err == io.EOF {
			return other
		}
		if err != nil {
			return err
		}
		k, size := h.Key(trailer)
		s, ok, err := j.Acked().Segment(h.Position)
		if err != nil {
			return err
		}
		if ok && other == nil && (s.Key.Hash != k.Hash || int64(s.Size) != size) {
			other = fmt.Errorf("%w: segment %s is in bundle %s with another content than it was acknowledged with", ErrContradiction, h.Position, f.key)
		}
		if fn != nil {
			if err := fn(again, trailer); err != nil {
				return err
			}
		}
	}
}

// addTrailer reads the trailer of a segment from the bucket, verifies it against its key and the one before it, and adds
// it. If one landing is damaged or gone, another will do (JOURNAL 6).
func (j *Journal) addTrailer(ctx context.Context, b *segment.BundleBuilder, f found) error {
	err := j.addLanding(ctx, b, f)
	if !errors.Is(err, segment.ErrFormat) && !errors.Is(err, bucket.ErrNotFound) {
		return err
	}
	other, no := twins(ctx, j.cfg.Bucket, f.key)
	if no != nil {
		return errors.Join(err, no)
	}
	for _, twin := range other {
		if j.addLanding(ctx, b, twin) == nil {
			return nil
		}
	}
	return fmt.Errorf("%w: %w", ErrDamaged, err)
}

// addLanding is addTrailer of one landing. Bytes that fail are read again, trailerReads times in all.
func (j *Journal) addLanding(ctx context.Context, b *segment.BundleBuilder, f found) (err error) {
	for range trailerReads {
		err = b.AddFrom(int(f.key.Trailer), func(p []byte) error {
			src := &ranges{ctx: ctx, b: j.cfg.Bucket, key: f.key.String(), off: max(0, f.size-int64(f.key.Trailer)), size: f.size}
			if _, err := io.ReadFull(src, p); err != nil {
				return err
			}
			if h, err := segment.ParseHead(p); err != nil {
				return err
			} else if k, size := h.Key(p); k.Cell != f.key.Cell || k.Position != f.key.Position || k.Hash != f.key.Hash || size != f.size {
				return fmt.Errorf("%w: the trailer is not the one that its key names", segment.ErrFormat)
			}
			return nil
		})
		if err == nil || !errors.Is(err, segment.ErrFormat) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("read trailer of segment %s, object %s: %w", f.key.Position, f.key, err)
	}
	return nil
}

// putBundle writes a bundle and reads it back. Each attempt has a nonce of its own: what an earlier one left, or leaves
// later, is part of no other's business, and says the same or is damaged.
func (j *Journal) putBundle(ctx context.Context, k segment.BundleKey, body []byte) (err error) {
	for range bundlePuts {
		if err := j.Err(); err != nil {
			return err
		}
		k.Nonce = j.bundleNonce(k)
		put, cancel := context.WithTimeout(ctx, putTimeout)
		err = j.cfg.Bucket.Put(put, k.String(), body)
		cancel()
		if err == nil {
			if err = j.readBack(ctx, k, body); err == nil {
				remember(j.proven, k)
				return nil
			}
			if errors.Is(err, segment.ErrFormat) {
				remember(j.bad, k)
			}
		}
		if ctx.Err() != nil || errors.Is(err, bucket.ErrClosed) || refused(err) {
			break
		}
	}
	return fmt.Errorf("write bundle %s: %w", k, err)
}

// bundleNonce returns a nonce that makes a bundle stay beside damaged ones of the same range (see tidyBundles).
func (j *Journal) bundleNonce(k segment.BundleKey) (nonce [8]byte) {
	nonce = random[[8]byte]()
	n := binary.BigEndian.Uint64(nonce[:])
	for b := range j.bad {
		if is := binary.BigEndian.Uint64(b.Nonce[:]); b.First == k.First && b.Last == k.Last && n >= is && is > 0 {
			n = is - 1
		}
	}
	binary.BigEndian.PutUint64(nonce[:], n)
	return nonce
}

// readBack compares a bundle in the bucket with what was written, byte for byte.
func (j *Journal) readBack(ctx context.Context, k segment.BundleKey, body []byte) (err error) {
	for range trailerReads {
		err = func() error {
			src := &ranges{ctx: ctx, b: j.cfg.Bucket, key: k.String(), size: int64(len(body))}
			for rest := body; len(rest) > 0; {
				if len(src.rest) == 0 {
					if _, err := src.Read(nil); err != nil {
						return err
					}
				}
				n := len(src.rest)
				if !bytes.Equal(src.rest, rest[:n]) {
					return fmt.Errorf("%w: the bucket returns other bytes than were written", segment.ErrFormat)
				}
				rest, src.rest = rest[n:], nil
			}
			return nil
		}()
		if err == nil || !errors.Is(err, segment.ErrFormat) {
			break
		}
	}
	return err
}

// tidyBundles deletes bundles that are part of another one, which was proven.
//
// Why no trailer is lost: the bundle that justifies a delete is greater than the deleted one in an order of all bundles
// (the larger range, or of equal ones the smaller nonce), so that the greatest that holds a trailer is never deleted,
// whoever deletes, and whenever a delete lands. An owner that was replaced knows none of its successor's bundles: they were
// written after the claim, and who lists them confirms after that, and finds the claim (JOURNAL 8).
func (j *Journal) tidyBundles(ctx context.Context, r *BundleReport) error {
	c, bad, err := j.bundles(ctx)
	if err != nil {
		return err
	}
	var all []foundBundle
	for _, b := range append(bad, c.bundles...) {
		for _, larger := range c.bundles {
			if larger.holds(b) {
				all = append(all, b)
				break
			}
		}
	}
	if len(all) == 0 {
		return nil
	}
	if err := j.MayDelete(ctx); err != nil {
		j.log.Info("bundles that are part of others stay for now", "bundles", len(all), "why", err)
		return nil
	}
	if err := j.stillOurs(ctx); err != nil {
		return err
	}
	giveBack, err := j.Borrow(ctx)
	if err != nil {
		return err
	}
	defer giveBack()
	for _, b := range all {
		proven := false
		for _, larger := range c.bundles {
			if !larger.holds(b) {
				continue
			}
			if !j.proven[larger.key] {
				if err := j.prove(ctx, larger, nil); errors.Is(err, ErrDamaged) {
					continue
				} else if err != nil {
					return err
				}
			}
			proven = true
			break
		}
		if !proven {
			continue
		}
		err := persist(ctx, getPatience, getTimeout, func(ctx context.Context) error { return j.cfg.Bucket.Delete(ctx, b.key.String()) })
		if err != nil {
			return err
		}
		r.Deleted++
	}
	return nil
}

// holds reports whether every segment of b is in f as well, and f is the one that stays.
func (f foundBundle) holds(b foundBundle) bool {
	switch {
	case f.key == b.key || !f.covers(b.key.First) || !f.covers(b.key.Last):
		return false
	case f.key.First == b.key.First && f.key.Last == b.key.Last:
		return bytes.Compare(f.key.Nonce[:], b.key.Nonce[:]) < 0
	}
	return true
}
