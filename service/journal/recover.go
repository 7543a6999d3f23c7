package journal

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"slices"
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
	// batchRows is the size of changes that replay gathers before it writes them to the view, bytes.
	batchRows = 8 << 20
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

// found is a segment as the bucket lists it.
type found struct {
	key  segment.Key
	size int64
}

// chain is the journal as it can be known from the bucket.
type chain struct {
	segments []found            // in order, one landing each
	table    []segment.Accepted // how each epoch in it ends
	time     int64              // journal time of the last segment, ms
	outside  Quarantine         // what was listed and is not in it
}

// position returns the last segment's place and hash; zero if there is none.
func (c *chain) position() (segment.Position, [32]byte) {
	if len(c.segments) == 0 {
		return segment.Position{}, [32]byte{}
	}
	k := c.segments[len(c.segments)-1].key
	return k.Position, k.Hash
}

// index returns the place of a segment in c, or -1.
func (c *chain) index(pos segment.Position, hash [32]byte) int {
	i, ok := slices.BinarySearchFunc(c.segments, pos, func(f found, p segment.Position) int { return f.key.Position.Compare(p) })
	if !ok || c.segments[i].key.Hash != hash {
		return -1
	}
	return i
}

// list returns every landing of every segment that the bucket lists, in order, and what else is there.
//
// The end is listed twice, and what either list shows counts. A store must list what was stored before
// (JOURNAL 9); one that forgets a fresh object once does no harm here.
func list(ctx context.Context, cfg Config) (listing, error) {
	var l listing
	strays := map[string]bool{}
	from := func(after string) error {
		return persist(ctx, getPatience, listTimeout, func(ctx context.Context) error {
			return bucket.ListAll(ctx, cfg.Bucket, segment.LogPrefix(cfg.Cell), after, func(o bucket.Object) error {
				k, err := segment.ParseKey(o.Key)
				switch {
				case err == nil && k.Cell == cfg.Cell:
					l.segments = append(l.segments, found{k, o.Size})
				case strays[o.Key]:
				case len(strays) == maxOutside:
					l.moreStrays++
				default:
					strays[o.Key] = true
					l.strays = append(l.strays, o)
				}
				return nil
			})
		})
	}
	if err := from(""); err != nil {
		return l, err
	}
	after := ""
	if n := len(l.segments); n > tail {
		after = l.segments[n-tail].key.String()
	}
	if err := from(after); err != nil {
		return l, err
	}
	slices.SortFunc(l.segments, func(a, b found) int {
		return cmp.Or(a.key.Position.Compare(b.key.Position), bytes.Compare(a.key.Nonce[:], b.key.Nonce[:]),
			bytes.Compare(a.key.Hash[:], b.key.Hash[:]), cmp.Compare(a.key.Trailer, b.key.Trailer))
	})
	l.segments = slices.Compact(l.segments)
	return l, nil
}

// findChain says what the journal is, from a list that began after the claim (JOURNAL 4), or for a reader
// that claims nothing. Only epochs below limit count.
//
// The newest epoch of which the takeover record is there decides: it says how all earlier epochs end, and
// nothing that lists later changes that (JOURNAL 2). Of itself it contributes its segments up to the first
// that is missing: none after that can have been acknowledged (JOURNAL 3).
//
// The error wraps ErrContradiction if the list lacks what a takeover record accepts or what the caller
// knows to be acknowledged (known, JOURNAL 9), or has two contents for one place.
func findChain(ctx context.Context, cfg Config, limit uint64, known func(*chain) error) (*chain, error) {
	var c *chain
	err := persist(ctx, listPatience, chainTimeout, func(ctx context.Context) error {
		l, err := list(ctx, cfg)
		if err != nil {
			return err
		}
		all := l.segments
		if n := len(all); n > 0 && all[n-1].key.Position.Epoch >= limit {
			return final{fmt.Errorf("%w: there are segments of epoch %d, which nobody claimed", ErrContradiction, all[n-1].key.Position.Epoch)}
		}
		c, err = newChain(ctx, cfg, all)
		if err == nil {
			c.outside = quarantine(l, c.table, math.MaxUint64)
			err = known(c)
		}
		// A list may lag behind; what should be there is looked for again for a while.
		return err
	})
	return c, err
}

func newChain(ctx context.Context, cfg Config, all []found) (*chain, error) {
	c := &chain{}
	// at maps each place to its landings in all.
	type span struct{ from, to int }
	at := map[segment.Position]span{}
	top := -1 // landing of the newest takeover record
	for i, f := range all {
		s, ok := at[f.key.Position]
		if !ok {
			s.from = i
		}
		s.to = i + 1
		at[f.key.Position] = s
		if f.key.Position.Seq == 0 && (top < 0 || f.key.Position.Epoch > all[top].key.Position.Epoch) {
			top = i
		}
	}
	// take appends the segment at pos, if it is there.
	take := func(pos segment.Position) (bool, error) {
		s, ok := at[pos]
		if !ok {
			return false, nil
		}
		for _, f := range all[s.from:s.to] {
			// Landings under other nonces have the same bytes (JOURNAL 6), hence the same hash. One of another size
			// is damaged, like one with other bytes.
			if f.key.Hash != all[s.from].key.Hash {
				return false, final{fmt.Errorf("%w: segment %s is there with two contents", ErrContradiction, pos)}
			}
		}
		c.segments = append(c.segments, all[s.from])
		return true, nil
	}
	if top < 0 {
		return c, nil
	}
	_, t, err := fetchTrailer(ctx, cfg.Bucket, all[top])
	if err != nil {
		return nil, err
	}
	c.table = slices.Clone(t.Records[0].Record.(segment.Takeover).Table)
	for _, a := range c.table {
		for pos := (segment.Position{Epoch: a.Epoch}); pos.Seq <= a.LastSeq; pos = pos.Next() {
			if ok, err := take(pos); err != nil {
				return nil, err
			} else if !ok {
				return nil, fmt.Errorf("%w: segment %s is not listed", ErrContradiction, pos)
			}
		}
		if _, hash := c.position(); hash != a.Hash {
			return nil, fmt.Errorf("%w: segment %d/%d is not the one that epoch %d accepted", ErrContradiction, a.Epoch, a.LastSeq, t.Position.Epoch)
		}
	}
	for pos := t.Position; ; pos = pos.Next() {
		if ok, err := take(pos); err != nil {
			return nil, err
		} else if !ok {
			break
		}
	}
	pos, hash := c.position()
	c.table = append(c.table, segment.Accepted{Epoch: pos.Epoch, LastSeq: pos.Seq, Hash: hash})

	// Read the end of it: what we are about to accept must be whole and linked.
	for i := max(0, len(c.segments)-tail); i < len(c.segments); i++ {
		f, t, err := fetchTrailer(ctx, cfg.Bucket, c.segments[i])
		if err != nil {
			return nil, err
		}
		c.segments[i] = f
		if i > 0 && t.Prev != c.segments[i-1].key.Hash {
			return nil, final{fmt.Errorf("%w: segment %s does not continue %s", ErrContradiction, t.Position, c.segments[i-1].key.Position)}
		}
		c.time = t.Records[len(t.Records)-1].Time
	}
	return c, nil
}

// findChain is findChain after our claim. What the view holds was acknowledged: it must be there.
func (j *Journal) findChain(ctx context.Context) (*chain, error) {
	cell, pos, hash, err := j.store.Position()
	if err != nil {
		return nil, err
	}
	c, err := findChain(ctx, j.cfg, j.claim.Epoch, func(c *chain) error {
		if hash != [32]byte{} && cell == j.cfg.Cell && c.index(pos, hash) < 0 {
			return fmt.Errorf("%w: segment %s, which this host has seen acknowledged, is not part of it", ErrContradiction, pos)
		}
		if len(c.segments) == 0 && !j.cfg.Create {
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
	from := c.index(pos, hash) + 1
	if hash == [32]byte{} || cell != j.cfg.Cell || fresh {
		from = 0
	}
	if from == 0 && hash != [32]byte{} {
		if err := j.store.Clear(); err != nil {
			return err
		}
	}
	j.info.Rebuilt = from == 0 && len(c.segments) > 0
	n, err := replay(ctx, j.cfg, j.store, c.segments[from:])
	if err != nil {
		return err
	}
	j.info.Replayed, j.info.Records = len(c.segments)-from, n
	if fresh {
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

// replay applies segments to the store, in order (JOURNAL 11), from their trailers alone (JOURNAL 12). It returns how
// many records they had.
func replay(ctx context.Context, cfg Config, store *view.Store, segments []found) (records int, err error) {
	if _, pos, _, err := store.Position(); err != nil {
		return 0, err
	} else if pos == (segment.Position{}) { // from nothing
		var n int64
		for _, f := range segments {
			n += int64(f.key.Trailer) / smallRecord
		}
		store.Expect(n)
		defer store.Expect(0)
	}
	l, done := view.NewLayer(store), 0
	err = eachTrailer(ctx, cfg.Bucket, segments, func(f found, t *segment.Trailer) error {
		if err := view.ApplySegment(l, f.key, f.size, t, logKey(cfg)); err != nil {
			return err
		}
		records += len(t.Records)
		if done++; cfg.Progress != nil {
			cfg.Progress(done, len(segments))
		}
		if l.Size() < batchRows {
			return nil
		}
		defer l.Reset()
		return store.Commit(l)
	})
	if err != nil {
		return records, err
	}
	return records, store.Commit(l)
}

// eachTrailer calls fn with the trailer of each segment, in order, and the landing that it came from, while the next
// ones are fetched and decoded.
func eachTrailer(ctx context.Context, b bucket.Bucket, segments []found, fn func(found, *segment.Trailer) error) error {
	type result struct {
		f   found
		t   *segment.Trailer
		err error
	}
	ctx, cancel := context.WithCancel(ctx)
	queue := make(chan chan result, ahead)
	go func() {
		defer close(queue)
		for _, f := range segments {
			c := make(chan result, 1)
			select {
			case queue <- c:
			case <-ctx.Done():
				return
			}
			go func() {
				f, t, err := fetchTrailer(ctx, b, f)
				c <- result{f, t, err}
			}()
		}
	}()
	// Whatever happens, wait for all of them.
	defer func() {
		cancel()
		for c := range queue {
			<-c
		}
	}()
	for range segments {
		c, ok := <-queue
		if !ok {
			return ctx.Err()
		}
		r := <-c
		if r.err != nil {
			return r.err
		}
		if err := fn(r.f, r.t); err != nil {
			return err
		}
	}
	return nil
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
