// Package reclaim frees what nothing needs any more: it finds blocks without references, takes what is still live out of
// segments that are mostly dead, retires segments without live blocks, and deletes them after a grace
// (docs/format/4-journal.md, rules 16 to 20).
//
// Run is all of it, in order. Every step is a proposal to the journal, which decides; so a run may be cut off
// anywhere, repeated, or work from a view that is out of date, and the next one goes on with what is there. Nothing
// is kept on the local disk but the Spending.
//
// # When a segment is cleaned
//
// When keeping what is dead in it for another month costs more than copying what is live. With the prices of
// Amazon S3 that docs/operating.md names, a segment of 16 MiB of which the share p is live costs, in millionths of a
// dollar:
//
//	keeping the dead for a month              (1-p) x 16/1024 GiB x 23,000  =  359 (1-p)
//	the copy, beside the original for a week     p  x 359 x 7/30            =   84 p
//	one PUT for each 14 MiB of copies            p  x 16/14 x 5             =    6 p
//	GETs: its trailer, 4 MiB at a time, the epoch                           =    1 + 2 p
//
// so cleaning pays while 359 - 359 p > 1 + 92 p, that is p < 0.79. DefaultShare is a little below, for the records of
// the move, which stay for ever. Where reading is paid for by the byte (a service outside the store's region, at
// 90,000 a GiB) it pays below p = 0.19 only: set share to that there. On a disk of one's own nothing is paid, and what
// counts is room.
package reclaim

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"holdfast/service/journal"
	"holdfast/service/segment"
	"holdfast/service/view"
)

const (
	// DefaultShare is the share of live bytes up to which a segment is cleaned, percent.
	DefaultShare = 75
	// DefaultDeletes is how many objects are deleted in an hour.
	DefaultDeletes = 1000
	// DefaultCopy is how many bytes are copied in an hour.
	DefaultCopy = 16 << 30
	// maxCondemned is how many blocks one run condemns, and maxSegments how many segments it looks at for each purpose:
	// then another job has its turn.
	maxCondemned = 20_000
	maxSegments  = 1000
	// Segments that hold nothing but records, and tiny ones, are taken together: each run leaves a few such segments
	// itself, and a service that has nothing to do would go on for ever otherwise. fewBytes is for tiny ones.
	few      = 64
	fewBytes = 16 << 20
	// tinyAge is how old a tiny segment is before it is merged with others: the backup that wrote it may still go on.
	tinyAge = time.Hour
	// roomShare is the part of the free room on the bucket's disk that copies may take while their sources are still
	// there, one of so many parts.
	roomShare = 4
)

// Config says where to reclaim, and how much.
type Config struct {
	Journal *journal.Journal
	Log     *slog.Logger // nil discards
	// Share is the share of live bytes up to which a segment is cleaned, percent; 0 is DefaultShare, less than 0 none.
	Share int
	// Deletes and Copy bound what is done in an hour; 0 is DefaultDeletes and DefaultCopy. What was done in this hour is
	// in the Spending.
	Deletes  int
	Copy     uint64
	Spending *Spending // nil begins a new one
	// EndIdle, if set, ends the sessions that nobody uses, and says how many: what they may have been told of is kept.
	EndIdle func() int
	// Free, if set, says how much room there is where the bucket is, bytes, if that is limited.
	Free func() (bytes uint64, limited bool)
	// Enough, if set, says that it is time to end; Report.More then says that there is more to do.
	Enough func() bool
	// Did, if set, is told of everything that was done, when it is durable.
	Did func(n uint64)
}

func (c Config) withDefaults() Config {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	switch {
	case c.Share == 0:
		c.Share = DefaultShare
	case c.Share < 0:
		c.Share = 0
	}
	if c.Deletes == 0 {
		c.Deletes = DefaultDeletes
	}
	if c.Copy == 0 {
		c.Copy = DefaultCopy
	}
	if c.Spending == nil {
		c.Spending = new(Spending)
	}
	if c.EndIdle == nil {
		c.EndIdle = func() int { return 0 }
	}
	if c.Enough == nil {
		c.Enough = func() bool { return false }
	}
	if c.Did == nil {
		c.Did = func(uint64) {}
	}
	return c
}

// Amount is a number of things and their bytes.
type Amount struct {
	Count int    `json:"count"`
	Bytes uint64 `json:"bytes"`
}

func (a *Amount) add(n int, bytes uint64) { a.Count, a.Bytes = a.Count+n, a.Bytes+bytes }

// Report says what a run did, or would do.
type Report struct {
	Sessions  int    `json:"ended_sessions"` // that nobody used
	Condemned Amount `json:"condemned"`      // blocks
	// Held is how many blocks nothing needs, but for sessions that are open and may have been told of them.
	Held    int    `json:"held_blocks"`
	Cleaned Amount `json:"cleaned"`       // segments, and the bytes that were live in them and were copied
	Merged  Amount `json:"merged"`        // tiny segments, likewise
	Made    int    `json:"made"`          // segments that hold these copies
	Retired Amount `json:"retired"`       // segments
	Bundled int    `json:"bundled"`       // segments of which the trailer was copied into a bundle
	Removed Amount `json:"removed"`       // segments of which nothing is left but that, and the bytes that were deleted
	Late    Amount `json:"late"`          // objects of removed segments that landed again, and were deleted
	Unread  int    `json:"unread_blocks"` // that could not be copied, because they are damaged or could not be read
	More    bool   `json:"more"`          // there is more to do at once
	// Left says why something was not done, a sentence each.
	Left []string `json:"left,omitempty"`
}

// Progress returns how much was done; 0 if nothing was.
func (r Report) Progress() uint64 {
	return uint64(r.Sessions + r.Condemned.Count + r.Cleaned.Count + r.Merged.Count + r.Made + r.Retired.Count + r.Bundled + r.Removed.Count + r.Late.Count)
}

func (r Report) String() string {
	var did []string
	say := func(n int, format string, a ...any) {
		if n > 0 {
			did = append(did, fmt.Sprintf(format, a...))
		}
	}
	say(r.Condemned.Count, "condemned %d blocks, %d bytes", r.Condemned.Count, r.Condemned.Bytes)
	say(r.Cleaned.Count, "cleaned %d segments of %d live bytes", r.Cleaned.Count, r.Cleaned.Bytes)
	say(r.Merged.Count, "merged %d small segments of %d bytes", r.Merged.Count, r.Merged.Bytes)
	say(r.Retired.Count, "retired %d segments, %d bytes", r.Retired.Count, r.Retired.Bytes)
	say(r.Bundled, "copied %d trailers into bundles", r.Bundled)
	say(r.Removed.Count, "deleted %d segments, %d bytes", r.Removed.Count, r.Removed.Bytes)
	say(r.Late.Count, "deleted %d objects that landed late, %d bytes", r.Late.Count, r.Late.Bytes)
	if len(did) == 0 {
		did = []string{"nothing to free"}
	}
	return strings.Join(append(did, r.Left...), "; ")
}

// Plus returns what two runs in a row did.
func (r Report) Plus(next Report) Report {
	sum := next // what it says of how things stand
	sum.Sessions += r.Sessions
	for _, x := range []struct{ to, more *Amount }{
		{&sum.Condemned, &r.Condemned}, {&sum.Cleaned, &r.Cleaned}, {&sum.Merged, &r.Merged}, {&sum.Retired, &r.Retired}, {&sum.Removed, &r.Removed},
		{&sum.Late, &r.Late},
	} {
		x.to.add(x.more.Count, x.more.Bytes)
	}
	sum.Made += r.Made
	sum.Bundled += r.Bundled
	return sum
}

// left notes why something was not done, once.
func (r *Report) left(format string, a ...any) { r.Left = append(r.Left, fmt.Sprintf(format, a...)) }

// Run frees what can be freed now and within the budgets, and returns what it did: that is durable, also if there is
// an error beside it. That deleting is frozen is no error; the report says so.
func Run(ctx context.Context, cfg Config) (r Report, err error) {
	cfg = cfg.withDefaults()
	j := cfg.Journal
	stop := func(err error) bool { return ctx.Err() != nil || j.Err() != nil || frozen(err) }

	// Sessions that nobody uses any more hold back what they may have been told of.
	r.Sessions = cfg.EndIdle()

	// 1. Condemn. Crash: what is acknowledged is condemned, each block once; the rest is found again.
	c, err := j.CondemnUnreferenced(ctx, maxCondemned)
	r.Condemned, r.Held = Amount{c.Blocks, c.Bytes}, c.Held
	r.More = c.More
	cfg.Did(uint64(c.Blocks))
	if err != nil && stop(err) {
		return r.ended(err)
	}

	// 2. Clean what is mostly dead, and 3. retire what is empty then. Crash: some blocks are at their new place, others
	// at the old one; a copy of which no record was acknowledged lies in a segment that the next start accepts, as moved,
	// or that no start ever accepts.
	//
	// 4. Bundle trailers, and 5. delete what was retired a grace ago, then what landed late. Crash: objects are gone of
	// segments that nobody reads, and the rest of them goes with the next run.
	for _, step := range []func(context.Context, Config, *Report) error{clean, merge, remove, late} {
		if no := step(ctx, cfg, &r); no != nil {
			err = errors.Join(err, no)
			if stop(no) {
				return r.ended(err)
			}
		}
	}
	return r.ended(err)
}

// frozen reports whether an error says that nothing may be deleted.
func frozen(err error) bool {
	return errors.Is(err, view.ErrFrozen) || errors.Is(err, journal.ErrClocks)
}

// ended returns r and err, or what err says as a reason in r.
func (r Report) ended(err error) (Report, error) {
	if frozen(err) {
		r.More = false
		r.left("nothing is freed while deleting is frozen: %v", err)
		return r, nil
	}
	return r, err
}

// clean takes what is live out of segments that are mostly dead, the deadest first, and retires those without live blocks.
func clean(ctx context.Context, cfg Config, r *Report) error {
	j := cfg.Journal
	var records []view.Segment // that hold nothing else
	var after []byte
	for {
		page, next, err := j.Sparse(cfg.Share, after, maxSegments)
		if err != nil {
			return fmt.Errorf("find what is to be cleaned: %w", err)
		}
		var empty, sparse []view.Segment
		for _, s := range page {
			switch {
			case s.Body() == 0:
				if len(records) < maxSegments {
					records = append(records, s)
				}
			case s.Blocks == 0:
				empty = append(empty, s)
			default:
				sparse = append(sparse, s)
			}
		}
		// What needs no copy comes first: that makes room for the others.
		spent := false
		if err = retire(ctx, cfg, r, empty); err == nil {
			spent, err = move(ctx, cfg, r, sparse, &r.Cleaned, 0)
		}
		if err != nil {
			return err
		}
		if next == nil || spent {
			break
		}
		if cfg.Enough() {
			r.More = true
			break
		}
		after = next
	}
	if len(records) < few {
		return nil
	}
	return retire(ctx, cfg, r, records)
}

// move copies what is live in segments to others and retires them. It returns true if it ended before the last of them.
func move(ctx context.Context, cfg Config, r *Report, segments []view.Segment, did *Amount, before int64) (spent bool, err error) {
	if len(segments) == 0 {
		return false, nil
	}
	most, why := cfg.Spending.mayCopy(cfg, time.Now())
	if most == 0 {
		r.left("%d segments are not cleaned: %s", len(segments), why)
		return true, nil
	}
	all := len(segments)
	segments, tight := cfg.Spending.fit(cfg, segments, time.Now())
	c, err := cfg.Journal.Clean(ctx, segments, journal.CleanLimits{Bytes: most, Before: before, Enough: cfg.Enough})
	cfg.Spending.copied(c.Bytes, time.Now())
	did.add(c.Segments, c.Bytes)
	r.Made += c.Made
	r.Unread += c.Failed
	cfg.Did(uint64(c.Blocks))
	if c.Why != nil {
		r.left("%d blocks could not be copied: %v", c.Failed, c.Why)
	}
	if err == nil {
		err = retire(ctx, cfg, r, segments[:c.Looked])
	}
	if err == nil && c.Blocks == 0 && c.Why != nil && !errors.Is(c.Why, journal.ErrDamaged) {
		err = fmt.Errorf("clean: nothing could be copied: %w", c.Why) // it is tried again; what is damaged is not mended by that
	}
	if err != nil {
		return true, err
	}
	left := all - c.Looked
	if left == 0 || before > 0 {
		return false, nil
	}
	if c.Looked == len(segments) {
		r.left("%d segments are not cleaned: %s", left, tight)
		return true, nil
	}
	if more, why := cfg.Spending.mayCopy(cfg, time.Now()); more == 0 {
		r.left("%d segments are not cleaned: %s", left, why)
	} else {
		r.More = true
	}
	return true, nil
}

// retire retires those of the segments that hold no live block.
func retire(ctx context.Context, cfg Config, r *Report, segments []view.Segment) error {
	if len(segments) == 0 {
		return nil
	}
	t, err := cfg.Journal.Retire(ctx, segments)
	r.Retired.add(t.Segments, t.Bytes)
	cfg.Did(uint64(t.Segments))
	return err
}

// merge moves what is in tiny segments together, if there are enough of them.
func merge(ctx context.Context, cfg Config, r *Report) error {
	page, _, err := cfg.Journal.Tiny(nil, maxSegments)
	if err != nil {
		return fmt.Errorf("find small segments: %w", err)
	}
	var bytes uint64
	for _, s := range page {
		bytes += s.Bytes
	}
	if !enoughTiny(len(page), bytes) {
		return nil
	}
	_, err = move(ctx, cfg, r, page, &r.Merged, cfg.Journal.Now()-tinyAge.Milliseconds())
	return err
}

// remove deletes what was retired a grace ago, as far as the budget goes. What is in no bundle yet is put into one first;
// that is due, too, when there is enough for a whole one.
func remove(ctx context.Context, cfg Config, r *Report) error {
	did, err := removeOnce(ctx, cfg, r)
	if err != nil {
		return err
	}
	if _, after := cfg.Journal.Bundled(); did.Unbundled == 0 && after < segment.MaxBundled {
		return nil
	}
	b, err := cfg.Journal.Bundle(ctx)
	r.Bundled += b.Segments
	cfg.Did(uint64(b.Segments))
	if err != nil {
		return err
	}
	if did.Unbundled == 0 {
		return nil
	}
	if did, err = removeOnce(ctx, cfg, r); err == nil && did.Unbundled > 0 {
		r.left("%d segments are not deleted: their trailers are in no bundle yet", did.Unbundled)
	}
	return err
}

func removeOnce(ctx context.Context, cfg Config, r *Report) (did journal.RemoveReport, err error) {
	most := cfg.Spending.mayDelete(cfg, time.Now())
	if most == 0 {
		r.spent(cfg)
		return did, nil
	}
	did, err = cfg.Journal.Remove(ctx, most)
	cfg.Spending.deleted(did.Objects, time.Now())
	r.Removed.add(did.Segments, uint64(did.Bytes))
	cfg.Did(uint64(did.Objects))
	if did.More {
		r.spent(cfg)
	}
	return did, err
}

// spent notes that no more is deleted in this hour.
func (r *Report) spent(cfg Config) {
	r.left("no more is deleted for now: the budget of %d objects an hour is spent", cfg.Deletes)
}

// late deletes what landed after its segment was removed, once a day: it takes a list of the whole log.
func late(ctx context.Context, cfg Config, r *Report) error {
	most := cfg.Spending.mayDelete(cfg, time.Now())
	if most == 0 || !cfg.Spending.lookLate(time.Now()) {
		return nil
	}
	did, err := cfg.Journal.RemoveLate(ctx, most)
	cfg.Spending.deleted(did.Objects, time.Now())
	r.Late.add(did.Objects, uint64(did.Bytes))
	cfg.Did(uint64(did.Objects))
	if err == nil && !did.More {
		cfg.Spending.lookedLate(time.Now())
	}
	return err
}

// enoughTiny reports whether so many tiny segments with so much in them are worth being merged.
func enoughTiny(n int, bytes uint64) bool { return n >= few || n >= 2 && bytes >= fewBytes }

// Waiting is what is retired, and is deleted after the grace.
type Waiting struct {
	Amount
	// Next is when the first of it may be deleted; zero if nothing waits.
	Next time.Time `json:"next,omitzero"`
	// More says that there is more than was counted.
	More bool `json:"more,omitempty"`
}

// maxWaiting bounds the segments that are counted.
const maxWaiting = 10_000

// Wait returns what waits to be deleted.
func Wait(j *journal.Journal) (w Waiting, err error) {
	var after segment.Position
	for {
		page, err := j.Retired(after, maxSegments)
		if err != nil {
			return w, err
		}
		for _, s := range page {
			w.add(1, s.Size)
			if at := time.UnixMilli(s.Retired).Add(view.Grace).UTC(); w.Next.IsZero() || at.Before(w.Next) {
				w.Next = at
			}
			after = s.Key.Position
		}
		if len(page) < maxSegments {
			return w, nil
		}
		if w.Count >= maxWaiting {
			w.More = true
			return w, nil
		}
	}
}
