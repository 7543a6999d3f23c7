package journal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"holdfast/service/bucket"
	"holdfast/service/segment"
	"holdfast/service/view"
)

const (
	// tail is how many of the last segments that a takeover is about to accept are read and verified before.
	// It exceeds maxPending: older ones were acknowledged by their owner.
	tail = 4 * maxPending
	// trailerReads is how often a trailer must come back wrong before it is called damaged.
	trailerReads = 4
	// ahead is how many trailers are fetched and decoded at a time while others are applied.
	ahead = 8
	// smallRecord is the size of the most frequent record, that of a stored block without links, bytes.
	smallRecord = 60
	// listPatience is how long a takeover waits for the bucket to list what it must have.
	listPatience = time.Minute
	// probeTimeout bounds one probe of the bucket.
	probeTimeout = 5 * time.Minute
	// chainTimeout bounds one list of the whole log and what is read to make sense of it.
	chainTimeout = 10 * time.Minute
)

// openStore opens the view. One that cannot be read is removed: it holds nothing that the bucket has not.
func openStore(cfg Config, log *slog.Logger) (*view.Store, error) {
	if cfg.Store != nil {
		return cfg.Store, nil
	}
	if cfg.Dir == "" {
		return view.OpenMem()
	}
	s, err := view.Open(cfg.Dir)
	if errors.Is(err, view.ErrDamaged) {
		log.Warn("the view cannot be read; making it anew", "dir", cfg.Dir, "err", err)
		if err := os.RemoveAll(cfg.Dir); err != nil {
			return nil, fmt.Errorf("remove the damaged view: %w", err)
		}
		s, err = view.Open(cfg.Dir)
	}
	return s, err
}

// claimCell makes the epoch object name us and the next epoch number (JOURNAL 4). It is the only
// conditional write. A claim of which the answer was lost is recognised by its random ID: an attempt that
// lands late finds either what it expects, and is ours, or something else, and does nothing.
func (j *Journal) claimCell(ctx context.Context) error {
	key := segment.EpochKey(j.cfg.Cell)
	sent := map[segment.Claim]bool{}
	var other []byte // names another host; read once
	return persist(ctx, getPatience, getTimeout, func(ctx context.Context) error {
		raw, err := j.cfg.Bucket.Get(ctx, key, 0, -1)
		var now segment.Claim // zero: the cell has never been claimed
		switch {
		case errors.Is(err, bucket.ErrNotFound):
			if !j.cfg.Create {
				return ErrNoJournal // asked again for a while: a 404 alone proves nothing
			}
			raw = nil
		case err != nil:
			return err
		default:
			if now, err = segment.ParseClaim(raw); err != nil {
				return err
			}
		}
		next := segment.Claim{Epoch: now.Epoch + 1, ID: random[[16]byte](), Host: j.cfg.Host}
		switch {
		case sent[now]:
			next = now
		case raw != nil && now.Host != j.cfg.Host && !j.cfg.Takeover:
			// A claim is only taken from its own host, or on a person's word (JOURNAL 5). Read it twice: one
			// flipped bit must not send the operator to --takeover.
			if !bytes.Equal(raw, other) {
				other = raw
				return ErrOwned
			}
			return final{fmt.Errorf("%w (epoch %d, host %x)", ErrOwned, now.Epoch, now.Host)}
		default:
			sent[next] = true
			if err := j.cfg.Bucket.Swap(ctx, key, raw, next.Encode()); err != nil {
				return err // unknown is not failed: read again
			}
		}
		j.claim, j.mine = next, next.Encode()
		return nil
	})
}

// findChain is findChain after our claim. What the view holds was acknowledged: it must be there.
func (j *Journal) findChain(ctx context.Context) (*chain, error) {
	cell, pos, hash, err := j.store.Position()
	if err != nil {
		return nil, err
	}
	c, err := findChain(ctx, j.cfg, j.claim.Epoch, func(ctx context.Context, c *chain) error {
		if hash != [32]byte{} && cell == j.cfg.Cell {
			if ok, err := c.has(ctx, j.cfg, pos, hash); err != nil {
				return err
			} else if !ok {
				return fmt.Errorf("%w: segment %s, which this host has seen acknowledged, is not part of it", ErrContradiction, pos)
			}
		}
		if len(c.table) == 0 && !j.cfg.Create {
			return ErrNoJournal // it was begun with a takeover record, which no bucket may lose
		}
		return nil
	})
	if errors.Is(err, ErrContradiction) {
		// Segments of a later epoch are no contradiction if somebody has claimed it since.
		if lost := j.confirm(ctx, getPatience); lost != nil {
			return nil, lost
		}
	}
	return c, err
}

// replayed is a segment with its trailer, to be applied.
type replayed struct {
	found
	trailer *segment.Trailer
}

// takeOver writes our takeover record after the chain and sees it acknowledged: from here on the chain is
// what the journal is, for everybody.
func (j *Journal) takeOver(ctx context.Context, c *chain) (replayed, error) {
	pos := segment.Position{Epoch: j.claim.Epoch}
	_, prev := c.position()
	b := segment.NewBuilder(j.cfg.Cell)
	now := max(c.time, j.now())
	err := b.AddRecord(now, segment.Takeover{
		Epoch: j.claim.Epoch, Claim: j.claim.ID, Host: j.claim.Host, Table: c.table,
	})
	for _, f := range j.due() {
		err = errors.Join(err, b.AddRecord(now, f))
	}
	if err != nil {
		return replayed{}, err
	}
	j.clocks.owed = nil
	s := b.Seal(pos, prev)
	key, err := j.put(ctx, putPatience, pos, s, &j.work)
	if err != nil {
		return replayed{}, err
	}
	// It is durable, and so is all before it, which we listed. The same rule as for every segment (JOURNAL 2,
	// 3): the read of the epoch object begins after that.
	if err := j.confirm(ctx, getPatience); err != nil {
		return replayed{}, err
	}
	t, err := key.Parse(s.Body[len(s.Body)-int(s.TrailerLen):], int64(len(s.Body)))
	return replayed{found{key, int64(len(s.Body))}, t}, err
}

// catchUp brings the view to the end of the chain and adds the takeover.
func (j *Journal) catchUp(ctx context.Context, c *chain, takeover replayed, fresh bool) error {
	cell, pos, hash, err := j.store.Position()
	if err != nil {
		return err
	}
	// The view is used only if it lies on the accepted chain (JOURNAL 10).
	use := hash != [32]byte{} && cell == j.cfg.Cell && !fresh
	if use {
		if use, err = c.has(ctx, j.cfg, pos, hash); err != nil {
			return err
		}
	}
	if !use {
		if hash != [32]byte{} {
			if err := j.store.Clear(); err != nil {
				return err
			}
		}
		pos = segment.Position{}
	}
	end, _ := c.position()
	j.info.Rebuilt = !use && c.count(end) > 0
	if !fresh {
		m, err := loadCheckpoint(ctx, j.cfg, j.log, j.store, c, pos, end, loaders)
		if err != nil {
			return err
		}
		if j.info.Checkpoint = m.Position; m.Parts != nil {
			pos = m.Position
		}
	}
	todo := c.between(pos, end)
	n, err := replay(ctx, j.cfg, j.store, todo)
	if err != nil {
		return err
	}
	j.info.Replayed, j.info.Records = todo.count(), n
	if fresh || j.cfg.report {
		if j.foundDigest, j.foundPos, err = j.store.Digest(ctx); err != nil {
			return err
		}
	}
	l := view.NewLayer(j.store)
	if err := view.ApplySegment(l, takeover.key, takeover.size, takeover.trailer, j.logPub); err != nil {
		return err
	}
	return j.store.Commit(l)
}

// replay applies a part of the chain to the store, in order (JOURNAL 11), from their trailers alone (JOURNAL 12). It returns how
// many records they had.
func replay(ctx context.Context, cfg Config, store *view.Store, s span) (records int, err error) {
	r, err := store.Replay(s.size() / smallRecord)
	if err != nil {
		return 0, err
	}
	done, all := 0, s.count()
	err = s.trailers(ctx, cfg, func(f found, t *segment.Trailer) error {
		if err := r.Segment(f.key, f.size, t, logKey(cfg)); err != nil {
			return err
		}
		records += len(t.Records)
		if done++; cfg.Progress != nil {
			cfg.Progress(done, all)
		}
		return nil
	})
	return records, errors.Join(err, r.Close())
}

// trailers calls fn with the trailer of each segment of s, in order, and the landing that it belongs to, while the next
// ones are fetched and decoded.
func (s span) trailers(ctx context.Context, cfg Config, fn func(found, *segment.Trailer) error) error {
	type result struct {
		f   found
		t   *segment.Trailer
		err error
	}
	ctx, cancel := context.WithCancel(ctx)
	queue := make(chan chan result, ahead)
	go func() {
		defer close(queue)
		err := s.each(ctx, cfg, func(r raw) error {
			c := make(chan result, 1)
			select {
			case queue <- c:
			case <-ctx.Done():
				return ctx.Err()
			}
			go func() {
				if r.trailer != nil {
					t, err := r.key.Parse(r.trailer, r.size)
					c <- result{r.found, t, err}
					return
				}
				f, t, err := fetchTrailer(ctx, cfg.Bucket, r.found)
				c <- result{f, t, err}
			}()
			return nil
		})
		if err != nil {
			c := make(chan result, 1)
			c <- result{err: err}
			select {
			case queue <- c:
			case <-ctx.Done():
			}
		}
	}()
	// Whatever happens, wait for all of them.
	defer func() {
		cancel()
		for c := range queue {
			<-c
		}
	}()
	for c := range queue {
		r := <-c
		if r.err != nil {
			return r.err
		}
		if err := fn(r.f, r.t); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// fetchTrailer reads a segment's trailer and verifies it against its key. If this landing of it is damaged or gone,
// another will do (JOURNAL 6): fetchTrailer also returns the one that was good. The error wraps ErrDamaged if
// none is.
func fetchTrailer(ctx context.Context, b bucket.Bucket, f found) (found, *segment.Trailer, error) {
	t, err := readTrailer(ctx, b, f)
	if !errors.Is(err, ErrDamaged) && !errors.Is(err, bucket.ErrNotFound) {
		return f, t, err
	}
	other, no := twins(ctx, b, f.key)
	if no != nil {
		return f, nil, errors.Join(err, no)
	}
	for _, twin := range other {
		if t, no := readTrailer(ctx, b, twin); no == nil {
			return twin, t, nil
		}
	}
	return f, nil, err
}

// readTrailer is fetchTrailer of one landing. Bytes that fail are read again, trailerReads times in all, before
// the error wraps ErrDamaged.
func readTrailer(ctx context.Context, b bucket.Bucket, f found) (t *segment.Trailer, err error) {
	bad := 0
	err = persist(ctx, getPatience, getTimeout, func(ctx context.Context) error {
		raw, err := b.Get(ctx, f.key.String(), max(0, f.size-int64(f.key.Trailer)), int64(f.key.Trailer))
		if err != nil && !errors.Is(err, bucket.ErrShort) {
			return err
		}
		if t, err = f.key.Parse(raw, f.size); err != nil {
			if bad++; bad == trailerReads {
				return final{fmt.Errorf("%w in the bucket: %w", ErrDamaged, err)}
			}
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read trailer of segment %s, object %s: %w", f.key.Position, f.key, err)
	}
	return t, nil
}
