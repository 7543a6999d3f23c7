package journal

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"time"

	"holdfast/service/bucket"
	"holdfast/service/ledger"
	"holdfast/service/segment"
	"holdfast/service/view"
)

// Report is what Rebuild and Check found.
type Report struct {
	Position segment.Position
	Digest   [32]byte
	// Checkpoint is where the checkpoint stands that Recover began with; zero if there was none.
	Checkpoint segment.Position
	Segments   int
	Records    int
	Blocks     int   // whose checksum was verified
	Bytes      int64 // of them
	Duration   time.Duration
	// Older is how many of the blocks fail their checksum and are not what their name stands for: they were stored anew since,
	// or freed. That is no problem.
	Older int
	// Books is how many books of the ledger there are; what they hold adds up to zero.
	Books int
	// Quarantine is what was listed and is not part of the journal. That is no problem.
	Quarantine Quarantine
	// Problems says what is wrong, at most maxProblems of them.
	Problems []string
}

const (
	maxProblems = 100
	// livePage is how many segments are read from a view at a time.
	livePage = 1000
	// checkRead is how much Check reads of a segment at a time, bytes, give or take a block.
	checkRead = 4 << 20
)

func logKey(cfg Config) ed25519.PublicKey { return cfg.LogKey.Public().(ed25519.PublicKey) }

// Rebuild makes the view in cfg.Dir anew from the bucket alone. It is a start like any other, with a claim
// of the cell and a takeover record, that does not use the view it finds, except that what that view
// knows to be acknowledged must be in the bucket. It reports what was there before that takeover record,
// so that the digest is that of the view before.
func Rebuild(ctx context.Context, cfg Config) (Report, error) {
	return rebuild(ctx, cfg, true)
}

// Recover is Rebuild for a view that is not there, with the newest checkpoint if one is of use; only the segments after it
// are replayed, and counted in the report.
func Recover(ctx context.Context, cfg Config) (Report, error) {
	cfg.report = true
	return rebuild(ctx, cfg, false)
}

func rebuild(ctx context.Context, cfg Config, fresh bool) (Report, error) {
	began := time.Now()
	j, err := open(ctx, cfg, fresh)
	if err != nil {
		return Report{}, err
	}
	r := Report{Checkpoint: j.info.Checkpoint, Segments: j.info.Replayed, Records: j.info.Records, Digest: j.foundDigest, Position: j.foundPos}
	err = j.Close(ctx)
	r.Duration = time.Since(began)
	return r, err
}

// Check compares the view in cfg.Dir with one rebuilt from the bucket beside it (JOURNAL 13), adds up the books of the ledger,
// and reads everything that is live: each trailer and bundle, and each block against its checksum, those after the view's
// position included.
// It claims nothing and writes nothing but a temporary view beside cfg.Dir. No Journal may be open on
// cfg.Dir. progress, unless nil, is called now and then.
//
// The error wraps ErrDamaged if something is wrong; the report then says what.
func Check(ctx context.Context, cfg Config, progress func(done, total int64)) (Report, error) {
	began := time.Now()
	var r Report
	problem := func(err error) {
		if len(r.Problems) < maxProblems {
			r.Problems = append(r.Problems, err.Error())
		}
	}
	live, err := view.Open(cfg.Dir)
	if err != nil {
		return r, err
	}
	defer live.Close()
	cell, pos, hash, err := live.Position()
	if err != nil {
		return r, err
	}
	if cell != cfg.Cell {
		return r, fmt.Errorf("the view in %s is that of cell %s, not of %s; make it anew with holdfastd rebuild", cfg.Dir, cell, cfg.Cell)
	}
	c, err := findChain(ctx, cfg, math.MaxUint64, func(ctx context.Context, c *chain) error {
		ok, err := c.has(ctx, cfg, pos, hash)
		if err == nil && !ok {
			err = fmt.Errorf("%w: segment %s, which this host has seen acknowledged, is not part of it", ErrContradiction, pos)
		}
		return err
	})
	if err != nil {
		return r, fmt.Errorf("read journal: %w", err)
	}

	r.Quarantine = c.outside
	// The shadow: as much of the journal as the view contains, by the code that made the view.
	tmp, err := os.MkdirTemp(filepath.Dir(filepath.Clean(cfg.Dir)), "check-")
	if err != nil {
		return r, fmt.Errorf("make a place for the second view: %w", err)
	}
	defer os.RemoveAll(tmp)
	shadow, err := view.Open(tmp)
	if err != nil {
		return r, err
	}
	defer shadow.Close()
	if r.Records, err = replay(ctx, cfg, shadow, c.between(segment.Position{}, pos)); err != nil {
		return r, fmt.Errorf("replay journal: %w", err)
	}
	r.Segments = c.count(pos)
	want, _, err := shadow.Digest(ctx)
	if err != nil {
		return r, err
	}
	if r.Digest, r.Position, err = live.Digest(ctx); err != nil {
		return r, err
	}
	if want != r.Digest {
		problem(fmt.Errorf("the view is not what the bucket says at %s; rebuild it", pos))
	}
	var sum ledger.Balance
	if r.Books, sum, err = live.Books(); err != nil {
		return r, err
	}
	if !sum.Zero() {
		problem(fmt.Errorf("what the %d books of the ledger hold adds up to %s, not to zero", r.Books, sum))
	}

	// What is live at the end of the journal, which may be later.
	end, _ := c.position()
	if _, err := replay(ctx, cfg, shadow, c.between(pos, end)); err != nil {
		return r, fmt.Errorf("replay journal: %w", err)
	}

	// Every byte of it. What is retired may be gone (JOURNAL 19).
	for _, b := range c.bundles {
		if _, err := readBundle(ctx, cfg.Bucket, b); errors.Is(err, ErrDamaged) || errors.Is(err, bucket.ErrNotFound) {
			problem(err)
		} else if err != nil {
			return r, err
		}
	}
	var done, total int64
	err = eachLive(shadow, func(s view.Segment) error {
		total += int64(s.Size)
		return nil
	})
	if err != nil {
		return r, err
	}
	err = eachLive(shadow, func(s view.Segment) error {
		blocks, bytes, err := checkSegment(ctx, cfg, c, s, problem, func(b segment.Placed) (bool, error) {
			newest, err := newestAt(view.NewReader(shadow), b, s.Key.Position)
			if err == nil && !newest {
				r.Older++
			}
			return newest, err
		})
		r.Blocks += blocks
		r.Bytes += bytes
		if done += int64(s.Size); progress != nil {
			progress(done, total)
		}
		return err
	})
	r.Duration = time.Since(began)
	if err != nil {
		return r, err
	}
	if len(r.Problems) > 0 {
		return r, fmt.Errorf("%w: problems found: %d", ErrDamaged, len(r.Problems))
	}
	return r, nil
}

// eachLive calls fn for every segment of a view that is neither retired nor removed, in the order of the journal.
func eachLive(store *view.Store, fn func(view.Segment) error) error {
	for after := (segment.Position{}); ; {
		page, err := store.Segments(after, livePage)
		if err != nil {
			return err
		}
		for _, s := range page {
			if err := fn(s); err != nil {
				return err
			}
			after = s.Key.Position
		}
		if len(page) == 0 {
			return nil
		}
	}
}

// byOffset orders the blocks of a segment as they lie in it.
func byOffset(a, b segment.Placed) int { return cmp.Compare(a.Off, b.Off) }

// newestAt reports whether a block of the segment at pos is what its name stands for.
func newestAt(r view.Reader, b segment.Placed, pos segment.Position) (bool, error) {
	ses, ok, err := r.Session(b.Session)
	if err != nil || !ok {
		return false, err
	}
	now, ok, err := r.Block(ses.Vault, ses.Group, b.Name)
	return ok && now.Pos == pos && now.Off == b.Off, err
}

// checkSegment verifies a segment that is live: its trailer, and every block in it. What is wrong with a block is a problem if
// matters says so.
func checkSegment(ctx context.Context, cfg Config, c *chain, s view.Segment, problem func(error), matters func(segment.Placed) (bool, error)) (blocks int, bytes int64, err error) {
	i := c.find(s.Key.Position)
	if i < 0 || c.listed[i].key.Hash != s.Key.Hash {
		problem(fmt.Errorf("segment %s, which is live, is not in the bucket", s.Key.Position))
		return 0, 0, nil
	}
	f, t, err := fetchTrailer(ctx, cfg.Bucket, c.listed[i])
	if errors.Is(err, ErrDamaged) || errors.Is(err, bucket.ErrNotFound) {
		problem(err)
		return 0, 0, nil
	}
	if err != nil {
		return 0, 0, err
	}
	return checkBlocks(ctx, cfg, f, t, problem, matters)
}

// checkBlocks verifies the checksum of every block of a segment, a few MiB at a time.
func checkBlocks(ctx context.Context, cfg Config, f found, t *segment.Trailer, problem func(error), matters func(segment.Placed) (bool, error)) (blocks int, bytes int64, err error) {
	list := slices.SortedFunc(t.Blocks(), byOffset)
	for len(list) > 0 {
		from, to, n := int64(list[0].Off), int64(0), 0
		for n < len(list) && int64(list[n].Off)-from < checkRead {
			to = max(to, int64(list[n].Off)+int64(list[n].Len))
			n++
		}
		get := func(from, n int64) (raw []byte, err error) {
			err = persist(ctx, getPatience, getTimeout, func(ctx context.Context) (err error) {
				raw, err = cfg.Bucket.Get(ctx, f.key.String(), from, n)
				return err
			})
			return raw, err
		}
		raw, err := get(from, to-from)
		if err != nil {
			return blocks, bytes, fmt.Errorf("read segment %s: %w", f.key.Position, err)
		}
		for _, s := range list[:n] {
			at := int64(s.Off) - from
			ok := at+int64(s.Len) <= int64(len(raw)) && segment.SumOf(raw[at:at+int64(s.Len)]) == s.Sum
			if !ok { // a reader can err where the store does not
				again, err := get(int64(s.Off), int64(s.Len))
				ok = err == nil && segment.SumOf(again) == s.Sum
			}
			if !ok { // another landing will do
				other, err := twins(ctx, cfg.Bucket, f.key)
				if err != nil {
					return blocks, bytes, fmt.Errorf("look for another landing of segment %s: %w", f.key.Position, err)
				}
				for _, o := range other {
					if raw, err := cfg.Bucket.Get(ctx, o.key.String(), int64(s.Off), int64(s.Len)); err == nil && segment.SumOf(raw) == s.Sum {
						ok = true
					}
				}
			}
			bad := false
			if !ok {
				if bad, err = matters(s); err != nil {
					return blocks, bytes, err
				}
			}
			if bad {
				problem(fmt.Errorf("block %s at %d in segment %s fails its checksum (object %s)", s.Name, s.Off, f.key.Position, f.key))
			}
			blocks++
			bytes += int64(s.Len)
		}
		list = list[n:]
	}
	return blocks, bytes, nil
}
