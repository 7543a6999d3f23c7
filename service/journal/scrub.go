package journal

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"holdfast"
	"holdfast/service/bucket"
	"holdfast/service/segment"
	"holdfast/service/view"
)

const (
	// badLooks is how often a block is looked at again, over other connections, before it is recorded as damaged. Each look reads
	// it blockReads times from the landing that the view names, and once from every other.
	badLooks = 3
	// maxSuspects bounds the blocks that wait for being looked at because a fetch found them bad. Any more are found when
	// they are fetched again, or scrubbed.
	maxSuspects = 256
)

// Scrubbed is what reading a segment found.
type Scrubbed struct {
	Blocks  int    // live, whose checksum was compared
	Bytes   uint64 // of them
	Read    uint64 // bytes asked of the bucket
	Damaged int    // bad in every landing, and not known before; the journal knows now
	Known   int    // bad still
	Whole   int    // known to be bad, and good again; the journal knows now
	Spare   int    // older copies of blocks that are bad: nothing but the newest is recorded
	// Trailer says what is wrong with the trailer in every landing; "" if one is good.
	Trailer string
	// Mended says that such a segment was stored anew from a bundle and its own blocks.
	Mended bool
	// Missing says that the bucket does not have the segment. Deleting is frozen then.
	Missing bool
}

// ScrubSegment reads the trailer and every live block of a segment and compares their checksums with what the journal
// says. A block that is bad in every landing is recorded as damaged, and one that was and is good again as whole; a
// record that is there already is not repeated. It returns false if the segment is not live.
//
// What cannot be read for now is an error, and nothing is concluded from it.
func (j *Journal) ScrubSegment(ctx context.Context, pos segment.Position) (s Scrubbed, live bool, err error) {
	row, live, err := j.Acked().Segment(pos)
	if err != nil || !live {
		return s, live, err
	}
	key, f := row.Key, found{row.Key, int64(row.Size)}
	var raw []byte // the trailer, if a bundle had to give it
	_, t, err := fetchTrailer(ctx, j.cfg.Bucket, f)
	s.Read += uint64(key.Trailer)
	for look := 0; look < badLooks && errors.Is(err, ErrDamaged); look++ {
		_, t, err = fetchTrailer(bucket.Fresh(ctx), j.cfg.Bucket, f)
		s.Read += uint64(key.Trailer)
	}
	switch {
	case errors.Is(err, bucket.ErrNotFound):
		s.Missing = true
		j.contradict(key, f.size, fmt.Sprintf("the bucket says that it has no segment %s, which was acknowledged (object %s)", pos, key))
		return s, true, nil
	case errors.Is(err, ErrDamaged):
		s.Trailer = err.Error()
		var no error
		if raw, no = j.bundled(ctx, key); no != nil {
			return s, true, no
		}
		if raw == nil {
			// The journal cannot be replayed past it. Only the view knows what it said.
			j.contradict(key, f.size, fmt.Sprintf("the trailer of segment %s is damaged in every landing and in no bundle (object %s)", pos, key))
			j.log.Error("THE JOURNAL IS DAMAGED: the trailer of a segment cannot be read anywhere in the bucket; keep this data directory, which alone knows what it held, "+
				"and bring the object back from the bucket's redundancy", "segment", pos, "object", key)
			return s, true, nil
		}
		if t, no = f.key.Parse(raw, f.size); no != nil {
			return s, true, no
		}
		j.log.Error("the trailer of a segment is damaged; a bundle holds it", "segment", pos, "object", key, "found", err)
	case err != nil:
		return s, true, err
	}
	if err := j.scrubBlocks(ctx, f, t, &s); err != nil || s.Missing || s.Trailer == "" {
		return s, true, err
	}
	s.Mended, err = j.mend(ctx, f, raw, t)
	return s, true, err
}

// scrubBlocks reads the live blocks of a segment, checkRead bytes at a time.
func (j *Journal) scrubBlocks(ctx context.Context, f found, t *segment.Trailer, s *Scrubbed) error {
	all, err := j.placed(f.key.Position, t)
	if err != nil {
		return err
	}
	var bad, good []Candidate
	for len(all) > 0 {
		n := 1
		for n < len(all) && int64(all[n].Block.Off)+int64(all[n].Block.Len)-int64(all[0].Block.Off) <= checkRead {
			n++
		}
		part := all[:n]
		all = all[n:]
		blocks := make([]view.Block, n)
		for i, c := range part {
			blocks[i] = c.Block
		}
		s.Read += uint64(blocks[n-1].Off+blocks[n-1].Len) - uint64(blocks[0].Off)
		for i, r := range j.ReadBlocks(ctx, blocks) {
			c := part[i]
			if errors.Is(r.Err, ErrDamaged) && !c.Block.Damaged {
				s.Read += badLooks * blockReads * uint64(c.Block.Len)
				r.Err = j.lookAgain(ctx, c.Block)
			}
			switch {
			case errors.Is(r.Err, bucket.ErrNotFound):
				s.Missing = true
				return nil
			case errors.Is(r.Err, ErrDamaged) && !c.newest && c.Block.Damaged: // it was stored anew for that
				s.Spare++
			case errors.Is(r.Err, ErrDamaged) && !c.newest:
				s.Spare++
				j.log.Warn("an older copy of a block is damaged", "block", c.Name, "segment", c.Block.Pos, "found", r.Err)
			case errors.Is(r.Err, ErrDamaged) && c.Block.Damaged:
				s.Known++
			case errors.Is(r.Err, ErrDamaged):
				bad = append(bad, c.Candidate)
			case r.Err != nil:
				return r.Err
			case c.newest && c.Block.Damaged:
				good = append(good, c.Candidate)
			}
			s.Blocks++
			s.Bytes += uint64(c.Block.Len)
		}
	}
	if s.Damaged, err = j.NoteDamage(ctx, bad, false); err != nil {
		return err
	}
	s.Whole, err = j.NoteDamage(ctx, good, true)
	return err
}

// lookAgain reads a block that was bad over other connections. It returns an error that wraps ErrDamaged only if it was bad every
// time.
func (j *Journal) lookAgain(ctx context.Context, b view.Block) (err error) {
	for range badLooks {
		if _, err = j.ReadBlock(bucket.Fresh(ctx), b); !errors.Is(err, ErrDamaged) {
			return err
		}
	}
	return err
}

// NoteDamage records blocks that are bad where they are, or that are whole again, and returns how many of them were not
// known to be so, once that is durable. What moved or went meanwhile is left out.
func (j *Journal) NoteDamage(ctx context.Context, all []Candidate, whole bool) (n int, err error) {
	if len(all) == 0 {
		return 0, nil
	}
	doing := "record that blocks are damaged"
	if whole {
		doing = "record that blocks are whole again"
	}
	var last *Ticket
	var noted []Candidate
	for len(all) > 0 {
		var now []Candidate
		t, err := j.Append(ctx, func(tx *Tx) error {
			now = nil
			for len(all) > 0 && tx.layer.Size() < maxCondemn {
				c := all[0]
				err := tx.Record(segment.Damaged{Session: c.Block.Session, Name: c.Name, Place: c.Block.Pos, Off: c.Block.Off, Whole: whole})
				switch {
				case err == nil:
					now = append(now, c)
				case !errors.Is(err, view.ErrMoved) && !errors.Is(err, view.ErrDuplicate):
					return err
				}
				all = all[1:]
			}
			return nil
		})
		if err != nil {
			return n, fmt.Errorf("%s: %w", doing, err)
		}
		noted, last = append(noted, now...), t
	}
	j.Flush()
	if err := last.Wait(ctx); err != nil {
		return 0, fmt.Errorf("%s: %w", doing, err)
	}
	for _, c := range noted {
		if whole {
			j.log.Warn("a block that was damaged is whole again", "block", c.Name, "segment", c.Block.Pos)
		} else {
			j.log.Error("a block is damaged in the bucket; its owner's next run is told to send it again", "block", c.Name, "kind", c.Block.Kind, "segment", c.Block.Pos, "offset", c.Block.Off)
		}
	}
	return len(noted), nil
}

// Suspect says that a block failed its checksum when somebody read it. It is looked at again soon, and recorded as damaged
// if it is.
func (j *Journal) Suspect(name holdfast.Name, b view.Block) {
	j.suspects.add(Candidate{name, b})
}

// suspects are blocks that wait for being looked at.
type suspects struct {
	mu  sync.Mutex
	all map[holdfast.Name]Candidate
}

func (s *suspects) add(c Candidate) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all == nil {
		s.all = map[holdfast.Name]Candidate{}
	}
	if len(s.all) < maxSuspects && !c.Block.Damaged {
		s.all[c.Name] = c
	}
}

// take returns all of them, and forgets them.
func (s *suspects) take() (all []Candidate) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.all {
		all = append(all, c)
	}
	clear(s.all)
	return all
}

// examine looks at the blocks that were bad when somebody read them.
func (j *Journal) examine(ctx context.Context) {
	var bad []Candidate
	for _, c := range j.suspects.take() {
		if errors.Is(j.lookAgain(ctx, c.Block), ErrDamaged) {
			bad = append(bad, c)
		}
	}
	if _, err := j.NoteDamage(ctx, bad, false); err != nil && j.Err() == nil {
		j.log.Warn("blocks that are damaged are not recorded yet", "err", err)
	}
}

// Segments returns at most max segments that are neither retired nor removed, in the order of the journal, after the place
// after.
func (j *Journal) Segments(after segment.Position, max int) ([]view.Segment, error) {
	return j.store.Segments(after, max)
}

// DamagedBlocks returns how many blocks are known to be damaged, counted up to max.
func (j *Journal) DamagedBlocks(max int) (n int, err error) {
	const page = 1000
	var after *view.Damage
	for n < max {
		all, err := j.store.Damaged(after, min(page, max-n))
		if err != nil {
			return n, err
		}
		if len(all) == 0 {
			break
		}
		n += len(all)
		after = &all[len(all)-1]
	}
	return n, nil
}

// bundled returns the trailer of a segment, which has the hash that its key names, out of a bundle; nil if none holds it.
func (j *Journal) bundled(ctx context.Context, key segment.Key) (raw []byte, err error) {
	var with []foundBundle
	err = persist(ctx, getPatience, listTimeout, func(ctx context.Context) error {
		with = nil
		return bucket.ListAll(ctx, j.cfg.Bucket, segment.BundlePrefix(j.cfg.Cell), "", func(o bucket.Object) error {
			if k, err := segment.ParseBundleKey(o.Key); err == nil && k.Cell == j.cfg.Cell {
				if b := (foundBundle{k, o.Size}); b.covers(key.Position) {
					with = append(with, b)
				}
			}
			return nil
		})
	})
	if err != nil {
		return nil, fmt.Errorf("list bundles: %w", err)
	}
	for _, b := range with {
		all, err := readBundle(ctx, j.cfg.Bucket, b)
		if errors.Is(err, ErrDamaged) || errors.Is(err, bucket.ErrNotFound) {
			j.log.Error("a bundle of trailers is damaged", "bundle", b.key, "err", err)
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, r := range all {
			if r.key.Position == key.Position && r.key.Hash == key.Hash {
				return slices.Clone(r.trailer), nil
			}
		}
	}
	return nil, nil
}

// mend stores a segment once more of which the trailer is damaged in every landing: the same bytes under a fresh nonce
// (JOURNAL 6), if all of them can be proven: the trailer by its hash, and everything before it by checksums. It does not for
// a segment that is larger than others, or of which a block is lost.
func (j *Journal) mend(ctx context.Context, f found, trailer []byte, t *segment.Trailer) (bool, error) {
	if f.size > segment.Target+maxAppend/4 {
		return false, nil
	}
	giveBack, err := j.Borrow(ctx)
	if err != nil {
		return false, err
	}
	defer giveBack()
	body := make([]byte, t.BodySize, f.size)
	at := uint32(0)
	for _, p := range slices.SortedFunc(t.Blocks(), byOffset) {
		if p.Off != at {
			return false, nil
		}
		raw, err := j.ReadBlock(ctx, view.Block{Pos: f.key.Position, Off: p.Off, Len: p.Len, Sum: p.Sum})
		if errors.Is(err, ErrDamaged) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		copy(body[at:], raw)
		at += p.Len
	}
	if at != t.BodySize {
		return false, nil
	}
	body = append(body, trailer...)
	key := f.key
	// Whether we own the cell still does not matter: it is another landing of what was acknowledged.
	err = persist(ctx, getPatience, putTimeout, func(ctx context.Context) error {
		key.Nonce = random[[8]byte]()
		return j.cfg.Bucket.Put(ctx, key.String(), body)
	})
	if err != nil {
		return false, fmt.Errorf("store segment %s anew: %w", key.Position, err)
	}
	_, err = readTrailer(ctx, j.cfg.Bucket, found{key, f.size})
	if err != nil {
		return false, err
	}
	j.log.Warn("a segment of which the trailer was damaged is stored anew", "segment", key.Position, "damaged", f.key, "good", key)
	return true, nil
}
