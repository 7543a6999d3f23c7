package reclaim

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sort"
	"time"

	"holdfast/service/segment"
	"holdfast/service/view"
)

// Plan returns what Run would do now, and changes nothing: the same, if nobody else does anything meanwhile, but for the
// segments of records that Run itself writes, and that Made is an estimate.
func Plan(ctx context.Context, cfg Config) (r Report, err error) {
	cfg = cfg.withDefaults()
	if err := cfg.Journal.MayDelete(ctx); err != nil {
		return r.ended(err)
	}
	f, err := cfg.Journal.Foresee(ctx, maxCondemned)
	if err != nil {
		return r.ended(err)
	}
	r.Condemned, r.Held, r.More = Amount{f.Blocks, f.Bytes}, f.Held, f.More
	p := plan{cfg: cfg, r: &r, now: map[segment.Position]view.Segment{}, gone: map[segment.Position]bool{}}
	for _, s := range f.Segments {
		p.now[s.Key.Position] = s
	}
	if err := p.clean(); err != nil {
		return r.ended(err)
	}
	if err := p.merge(ctx); err != nil {
		return r.ended(err)
	}
	if err := p.remove(); err != nil {
		return r.ended(err)
	}
	return r, nil
}

// remove is what remove will do, if each segment has landed once.
func (p *plan) remove() error {
	most, now := p.cfg.Spending.mayDelete(p.cfg, time.Now()), p.cfg.Journal.Now()
	for after := (segment.Position{}); ; {
		page, err := p.cfg.Journal.Retired(after, maxSegments)
		if err != nil || len(page) == 0 {
			return err
		}
		for _, s := range page {
			after = s.Key.Position
			switch {
			case !s.Removable(now):
			case p.r.Removed.Count == most:
				p.r.spent(p.cfg)
				return nil
			default:
				p.r.Removed.add(1, s.Size)
			}
		}
	}
}

// plan is a Plan that is being made.
type plan struct {
	cfg    Config
	r      *Report
	now    map[segment.Position]view.Segment // as they will be, of those that change
	gone   map[segment.Position]bool         // will be retired
	copied uint64
}

// as returns s as it will be.
func (p *plan) as(s view.Segment) view.Segment {
	if x, ok := p.now[s.Key.Position]; ok {
		return x
	}
	return s
}

// clean is what clean will do.
func (p *plan) clean() error {
	j := p.cfg.Journal
	var all []view.Segment
	seen := map[segment.Position]bool{}
	add := func(s view.Segment) {
		if !seen[s.Key.Position] && (s.Blocks == 0 || s.Bytes*100 <= uint64(p.cfg.Share)*s.Body()) {
			seen[s.Key.Position] = true
			all = append(all, s)
		}
	}
	for _, s := range p.now {
		add(s)
	}
	var after []byte
	for {
		page, next, err := j.Sparse(p.cfg.Share, after, maxSegments)
		if err != nil {
			return fmt.Errorf("find what is to be cleaned: %w", err)
		}
		for _, s := range page {
			add(p.as(s))
		}
		if next == nil || len(all) >= maxPlanned {
			p.r.More = p.r.More || next != nil
			break
		}
		after = next
	}
	slices.SortFunc(all, func(a, b view.Segment) int {
		return cmp.Or(cmp.Compare(class(a), class(b)), a.Key.Position.Compare(b.Key.Position))
	})
	var records, sparse []view.Segment
	for _, s := range all {
		switch {
		case s.Body() == 0:
			records = append(records, s)
		case s.Blocks == 0:
			p.retire(s)
		default:
			sparse = append(sparse, s)
		}
	}
	p.move(sparse, &p.r.Cleaned, true)
	if len(records) >= few {
		for _, s := range records {
			if s.Key.Position.Seq > 0 || s.Key.Position.Epoch != j.Info().Epoch { // not our takeover
				p.retire(s)
			}
		}
	}
	return nil
}

// maxPlanned bounds the segments that a plan looks at to be cleaned.
const maxPlanned = 10_000

// class returns the class of a segment by how much of it is live: of each that is planned, something is dead.
func class(s view.Segment) byte {
	c, _ := s.SparseClass()
	return c
}

// retire notes that s will be.
func (p *plan) retire(s view.Segment) {
	p.gone[s.Key.Position] = true
	p.r.Retired.add(1, s.Size)
}

// move is what move will do.
func (p *plan) move(segments []view.Segment, did *Amount, say bool) {
	most, why := p.cfg.Spending.mayCopy(p.cfg, time.Now())
	n, all := 0, len(segments)
	var bytes uint64
	segments, tight := p.cfg.Spending.fit(p.cfg, segments, time.Now())
	for _, s := range segments {
		if p.copied >= most {
			break
		}
		n++
		bytes += s.Bytes
		p.copied += s.Bytes
		p.retire(s)
	}
	did.add(n, bytes)
	p.r.Made += int((bytes + madeOf - 1) / madeOf)
	if left := all - n; left > 0 && say {
		switch {
		case n == len(segments) && most > 0:
			why = tight
		case most > 0:
			why = "the budget to copy is spent then"
		}
		p.r.left("%d segments are not cleaned: %s", left, why)
	}
}

// madeOf is about how much of copies goes into one segment, bytes.
const madeOf = 14 << 20

// merge is what merge will do.
func (p *plan) merge(ctx context.Context) error {
	page, _, err := p.cfg.Journal.Tiny(nil, maxSegments)
	if err != nil {
		return fmt.Errorf("find small segments: %w", err)
	}
	var left []view.Segment
	var bytes uint64
	for _, s := range page {
		if s = p.as(s); !p.gone[s.Key.Position] && s.Blocks > 0 {
			left = append(left, s)
			bytes += s.Bytes
		}
	}
	if !enoughTiny(len(left), bytes) {
		return nil
	}
	// They are in the order of the journal, and so of time: those that are old enough come first.
	before := p.cfg.Journal.Now() - tinyAge.Milliseconds()
	old := sort.Search(len(left), func(i int) bool {
		if err != nil {
			return true
		}
		var at int64
		at, err = p.cfg.Journal.Written(ctx, left[i])
		return at >= before
	})
	if err != nil {
		return fmt.Errorf("look how old small segments are: %w", err)
	}
	p.move(left[:old], &p.r.Merged, false)
	return nil
}
