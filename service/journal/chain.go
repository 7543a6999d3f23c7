package journal

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"

	"holdfast/service/bucket"
	"holdfast/service/segment"
)

// reach is how far beyond a segment that never landed others of its epoch may lie, and a bit more: no more than maxPending
// are on their way at a time. What lies farther proves that the segment was acknowledged.
const reach = 2 * maxPending

// bundleRead is how much of a bundle is read at a time, bytes.
const bundleRead = 4 << 20

// found is a segment as the bucket lists it.
type found struct {
	key  segment.Key
	size int64
}

// foundBundle is a bundle as the bucket lists it.
type foundBundle struct {
	key  segment.BundleKey
	size int64
}

func (f foundBundle) covers(pos segment.Position) bool {
	return f.key.First.Compare(pos) <= 0 && pos.Compare(f.key.Last) <= 0
}

// chain is the journal as it can be known from the bucket. Only keys were read for it, one takeover record, and the
// end of what no bundle holds.
type chain struct {
	table   []segment.Accepted // how each epoch in it ends
	pieces  []piece            // where its trailers are, in order
	listed  []found            // its segments that are in the bucket, in order, one landing each
	bundles []foundBundle      // that belong to it, by their first segment
	time    int64              // journal time of the last segment, ms
	outside Quarantine         // what was listed and is not in it
}

// piece is a part of the chain whose trailers are in one bundle, or each in its segment.
type piece struct {
	first, last segment.Position
	bundle      *foundBundle // nil: every segment is listed
}

// position returns the last segment's place and hash; zero if there is none.
func (c *chain) position() (segment.Position, [32]byte) {
	if len(c.table) == 0 {
		return segment.Position{}, [32]byte{}
	}
	a := c.table[len(c.table)-1]
	return segment.Position{Epoch: a.Epoch, Seq: a.LastSeq}, a.Hash
}

// line returns the number of the table's line for an epoch, or where it would be.
func (c *chain) line(epoch uint64) (int, bool) {
	return slices.BinarySearchFunc(c.table, epoch, func(a segment.Accepted, e uint64) int { return cmp.Compare(a.Epoch, e) })
}

// accepts reports whether the chain has a segment at pos.
func (c *chain) accepts(pos segment.Position) bool {
	i, ok := c.line(pos.Epoch)
	return ok && pos.Seq <= c.table[i].LastSeq
}

// next returns the place after pos, which the chain has; no if it is the last.
func (c *chain) next(pos segment.Position) (segment.Position, bool) {
	i, _ := c.line(pos.Epoch)
	switch {
	case pos.Seq < c.table[i].LastSeq:
		return pos.Next(), true
	case i+1 < len(c.table):
		return segment.Position{Epoch: c.table[i+1].Epoch}, true
	}
	return segment.Position{}, false
}

// count returns how many segments the chain has up to pos.
func (c *chain) count(pos segment.Position) (n int) {
	for _, a := range c.table {
		if a.Epoch > pos.Epoch {
			break
		}
		n += int(a.LastSeq) + 1
		if a.Epoch == pos.Epoch && pos.Seq < a.LastSeq {
			n -= int(a.LastSeq - pos.Seq)
		}
	}
	return n
}

// find returns the number of the listed segment at pos, or -1.
func (c *chain) find(pos segment.Position) int {
	i, ok := slices.BinarySearchFunc(c.listed, pos, func(f found, p segment.Position) int { return f.key.Position.Compare(p) })
	if !ok {
		return -1
	}
	return i
}

// has reports whether the segment at pos is part of the chain and has that hash. It reads a bundle if nothing else can say.
func (c *chain) has(ctx context.Context, cfg Config, pos segment.Position, hash [32]byte) (bool, error) {
	if !c.accepts(pos) {
		return false, nil
	}
	if i := c.find(pos); i >= 0 {
		return c.listed[i].key.Hash == hash, nil
	}
	if last, is := c.position(); last == pos {
		return is == hash, nil
	}
	for _, b := range c.bundles {
		if b.key.Last == pos {
			return b.key.Hash == hash, nil
		}
	}
	ok := false
	before := c.before(pos)
	err := c.between(before, pos).each(ctx, cfg, func(r raw) error {
		ok = r.key.Hash == hash
		return nil
	})
	return ok, err
}

// before returns the place before pos, which the chain has; the zero place for the first.
func (c *chain) before(pos segment.Position) segment.Position {
	if pos.Seq > 0 {
		return segment.Position{Epoch: pos.Epoch, Seq: pos.Seq - 1}
	}
	if i, _ := c.line(pos.Epoch); i > 0 {
		return segment.Position{Epoch: c.table[i-1].Epoch, Seq: c.table[i-1].LastSeq}
	}
	return segment.Position{}
}

// cover says where the trailers of the segments from first to last are: in bundles as far as these reach, else in the
// segments themselves. If one is nowhere, it returns what is before it, its place, and false.
func (c *chain) cover(first, last segment.Position, bundles []foundBundle) (pieces []piece, missing segment.Position, ok bool) {
	var best *foundBundle // reaches farthest of those that begin before pos
	for pos, i := first, 0; ; {
		for ; i < len(bundles) && bundles[i].key.First.Compare(pos) <= 0; i++ {
			if best == nil || bundles[i].key.Last.Compare(best.key.Last) > 0 {
				best = &bundles[i]
			}
		}
		switch n := len(pieces); {
		case best != nil && best.covers(pos):
			p := piece{first: pos, last: best.key.Last, bundle: best}
			if p.last.Compare(last) > 0 {
				p.last = last
			}
			pos = p.last
			pieces = append(pieces, p)
		case c.find(pos) < 0:
			return pieces, pos, false
		case n > 0 && pieces[n-1].bundle == nil:
			pieces[n-1].last = pos
		default:
			pieces = append(pieces, piece{first: pos, last: pos})
		}
		if pos == last {
			return pieces, pos, true
		}
		if pos, ok = c.next(pos); !ok {
			return pieces, pos, true
		}
	}
}

// prefix returns how far bundles hold the chain without a gap, the pieces, the first place after that, and whether there
// is one.
func (c *chain) prefix() (pieces []piece, next segment.Position, more bool) {
	end, _ := c.position()
	pieces, next, all := (&chain{table: c.table}).cover(segment.Position{Epoch: c.table[0].Epoch}, end, c.bundles)
	return pieces, next, !all
}

// bundled returns up to which place bundles hold all trailers of the chain; the zero place for none.
func (c *chain) bundled() segment.Position {
	if len(c.table) == 0 {
		return segment.Position{}
	}
	pieces, _, _ := c.prefix()
	if len(pieces) == 0 {
		return segment.Position{}
	}
	return pieces[len(pieces)-1].last
}

// list returns every landing of every segment that the bucket lists, in order, and what else is there.
//
// The end is listed twice, and what either list shows counts. A store must list what was stored before
// (JOURNAL 9); one that forgets a fresh object once does no harm here. Bundles are listed last: a segment that was
// deleted before it could be listed was in one of them before that (JOURNAL 12).
func list(ctx context.Context, cfg Config) (listing, error) {
	var l listing
	strays := map[string]bool{}
	// Each page has its time, and is asked for again by itself: a log of many terabytes has a thousand.
	from := func(prefix, after string, known func(bucket.Object) bool) error {
		for last := false; !last; {
			var page []bucket.Object
			err := persist(ctx, getPatience, listTimeout, func(ctx context.Context) (err error) {
				page, last, err = bucket.ListPage(ctx, cfg.Bucket, prefix, after)
				return err
			})
			if err != nil {
				return err
			}
			for _, o := range page {
				after = o.Key
				switch {
				case known(o), strays[o.Key]:
				case len(strays) == maxOutside:
					l.moreStrays++
				default:
					strays[o.Key] = true
					l.strays = append(l.strays, o)
				}
			}
		}
		return nil
	}
	log := func(after string) error {
		return from(segment.LogPrefix(cfg.Cell), after, func(o bucket.Object) bool {
			k, err := segment.ParseKey(o.Key)
			if err != nil || k.Cell != cfg.Cell {
				return false
			}
			l.segments = append(l.segments, found{k, o.Size})
			return true
		})
	}
	if err := log(""); err != nil {
		return l, err
	}
	after, more := "", l.moreStrays
	if n := len(l.segments); n > tail {
		after = l.segments[n-tail].key.String()
	}
	l.moreStrays = 0
	if err := log(after); err != nil {
		return l, err
	}
	l.moreStrays = max(more, l.moreStrays) // the same ones again
	slices.SortFunc(l.segments, func(a, b found) int {
		return cmp.Or(a.key.Position.Compare(b.key.Position), bytes.Compare(a.key.Nonce[:], b.key.Nonce[:]),
			bytes.Compare(a.key.Hash[:], b.key.Hash[:]), cmp.Compare(a.key.Trailer, b.key.Trailer))
	})
	l.segments = slices.Compact(l.segments)
	err := from(segment.BundlePrefix(cfg.Cell), "", func(o bucket.Object) bool { return l.bundle(cfg, o) })
	l.sortBundles()
	return l, err
}

// bundle takes an object in if it is named like a bundle of the cell.
func (l *listing) bundle(cfg Config, o bucket.Object) bool {
	k, err := segment.ParseBundleKey(o.Key)
	if err != nil || k.Cell != cfg.Cell {
		return false
	}
	l.bundles = append(l.bundles, foundBundle{k, o.Size})
	return true
}

// sortBundles brings them into their order, each once: an attempt to list that failed may have shown some.
func (l *listing) sortBundles() {
	slices.SortFunc(l.bundles, func(a, b foundBundle) int {
		return cmp.Or(a.key.First.Compare(b.key.First), a.key.Last.Compare(b.key.Last), bytes.Compare(a.key.Nonce[:], b.key.Nonce[:]),
			bytes.Compare(a.key.Hash[:], b.key.Hash[:]))
	})
	l.bundles = slices.Compact(l.bundles)
}

// findChain says what the journal is, from a list that began after the claim (JOURNAL 4), or for a reader
// that claims nothing. Only epochs below limit count.
//
// The newest epoch of which the takeover record is there decides: it says how all earlier epochs end, and
// nothing that lists later changes that (JOURNAL 2). That record's segment is never deleted before a later one is
// acknowledged. Of itself the epoch contributes its segments up to the first that is missing: none after that can have
// been acknowledged (JOURNAL 3), unless so many are there that it must have been. A segment is there if it is listed, or if
// its trailer is in a bundle (JOURNAL 12).
//
// The error wraps ErrContradiction if the bucket lacks what a takeover record accepts, a bundle shows, or the caller
// knows to be acknowledged (known, JOURNAL 9), or has two contents for one place.
func findChain(ctx context.Context, cfg Config, limit uint64, known func(context.Context, *chain) error) (*chain, error) {
	var c *chain
	err := persist(ctx, listPatience, chainTimeout, func(ctx context.Context) error {
		l, err := list(ctx, cfg)
		if err != nil {
			return err
		}
		last := uint64(0)
		if n := len(l.segments); n > 0 {
			last = l.segments[n-1].key.Position.Epoch
		}
		for _, b := range l.bundles {
			last = max(last, b.key.Last.Epoch)
		}
		if last >= limit {
			return final{fmt.Errorf("%w: there are segments of epoch %d, which nobody claimed", ErrContradiction, last)}
		}
		c, err = newChain(ctx, cfg, l)
		if err == nil {
			c.outside = quarantine(l, c.table, math.MaxUint64)
			err = known(ctx, c)
		}
		// A list may lag behind; what should be there is looked for again for a while.
		return err
	})
	return c, err
}

func newChain(ctx context.Context, cfg Config, l listing) (*chain, error) {
	c := &chain{}
	top := -1 // landing of the newest takeover record
	for i, f := range l.segments {
		if f.key.Position.Seq == 0 && (top < 0 || f.key.Position.Epoch > l.segments[top].key.Position.Epoch) {
			top = i
		}
	}
	newest := uint64(0)
	if top >= 0 {
		newest = l.segments[top].key.Position.Epoch
	}
	for _, b := range l.bundles { // it holds what was acknowledged, and so was the takeover of that epoch before
		if b.key.Last.Epoch > newest {
			return nil, fmt.Errorf("%w: bundle %s holds segments of epoch %d, of which the takeover record is not listed", ErrContradiction, b.key, b.key.Last.Epoch)
		}
	}
	if top < 0 {
		return c, nil
	}
	_, t, err := fetchTrailer(ctx, cfg.Bucket, l.segments[top])
	if err != nil {
		return nil, err
	}
	c.table = slices.Clone(t.Records[0].Record.(segment.Takeover).Table)
	closed := len(c.table)
	c.table = append(c.table, segment.Accepted{Epoch: newest, LastSeq: math.MaxUint64}) // open until its end is found

	two := map[segment.Position]bool{} // places with two contents
	for i, f := range l.segments {
		switch n := len(c.listed); {
		case !c.accepts(f.key.Position):
		case n == 0 || c.listed[n-1].key.Position != f.key.Position:
			c.listed = append(c.listed, l.segments[i])
		case c.listed[n-1].key.Hash != f.key.Hash:
			// Landings under other nonces have the same bytes (JOURNAL 6), hence the same hash. One of another size
			// is damaged, like one with other bytes.
			two[f.key.Position] = true
		}
	}
	for _, b := range l.bundles {
		if !fits(b, c.table) {
			continue // it lies in quarantine
		}
		c.bundles = append(c.bundles, b)
		if i := c.find(b.key.Last); i >= 0 && c.listed[i].key.Hash != b.key.Hash {
			two[b.key.Last] = true
		}
	}

	first := segment.Position{Epoch: c.table[0].Epoch}
	end := segment.Position{Epoch: newest, Seq: math.MaxUint64}
	pieces, missing, ok := c.cover(first, end, c.bundles)
	if !ok && (missing.Epoch != newest || missing.Seq == 0) {
		return nil, fmt.Errorf("%w: segment %s is neither listed nor in a bundle", ErrContradiction, missing)
	}
	if n := len(c.listed); !ok && c.listed[n-1].key.Position.Seq > missing.Seq+reach {
		return nil, fmt.Errorf("%w: segment %s is neither listed nor in a bundle, and segment %s is there, which nobody wrote before that was acknowledged",
			ErrContradiction, missing, c.listed[n-1].key.Position)
	}
	c.pieces = pieces
	p := pieces[len(pieces)-1]
	c.table[closed].LastSeq = p.last.Seq
	if p.bundle != nil {
		c.table[closed].Hash = p.bundle.key.Hash
	} else {
		c.table[closed].Hash = c.listed[c.find(p.last)].key.Hash
	}
	for n := len(c.listed); n > 0 && c.listed[n-1].key.Position.Compare(p.last) > 0; n-- {
		c.listed = c.listed[:n-1]
	}
	for _, b := range c.bundles {
		if b.key.Last.Compare(p.last) > 0 { // nothing but what was acknowledged is bundled
			return nil, fmt.Errorf("%w: segment %s is neither listed nor in a bundle, and bundle %s holds later ones", ErrContradiction, missing, b.key)
		}
	}
	for _, f := range c.listed {
		if two[f.key.Position] {
			return nil, final{fmt.Errorf("%w: segment %s is there with two contents", ErrContradiction, f.key.Position)}
		}
	}
	for _, a := range c.table[:closed] {
		if i := c.find(segment.Position{Epoch: a.Epoch, Seq: a.LastSeq}); i >= 0 && c.listed[i].key.Hash != a.Hash {
			return nil, fmt.Errorf("%w: segment %d/%d is not the one that epoch %d accepted", ErrContradiction, a.Epoch, a.LastSeq, newest)
		}
	}
	return c, c.verify(ctx, cfg)
}

// fits reports whether a table of epochs accepts what a bundle says that it holds.
func fits(b foundBundle, table []segment.Accepted) bool {
	c := chain{table: table}
	i, ok := c.line(b.key.Last.Epoch)
	if !ok || !c.accepts(b.key.First) || !c.accepts(b.key.Last) {
		return false
	}
	a := table[i]
	return b.key.Last.Seq != a.LastSeq || b.key.Hash == a.Hash
}

// verify reads the end of the chain: what we are about to accept must be whole and linked. What is in a bundle was
// acknowledged; only the link to what follows it is looked at.
func (c *chain) verify(ctx context.Context, cfg Config) error {
	n := len(c.pieces)
	p := c.pieces[n-1]
	if p.bundle != nil {
		return c.between(c.before(p.last), p.last).trailers(ctx, cfg, func(_ found, t *segment.Trailer) error {
			c.time = t.Records[len(t.Records)-1].Time
			return nil
		})
	}
	from, to := c.find(p.first), c.find(p.last)
	link := func(i int) (*segment.Trailer, error) {
		f, t, err := fetchTrailer(ctx, cfg.Bucket, c.listed[i])
		if err != nil {
			return nil, err
		}
		c.listed[i] = f
		before, prev := c.before(f.key.Position), [32]byte{}
		switch {
		case i > from:
			prev = c.listed[i-1].key.Hash
		case n > 1:
			prev = c.pieces[n-2].bundle.key.Hash
		}
		if t.Prev != prev {
			return nil, final{fmt.Errorf("%w: segment %s does not continue %s", ErrContradiction, t.Position, before)}
		}
		return t, nil
	}
	begin := max(from, to-tail+1)
	if begin > from && n > 1 {
		if _, err := link(from); err != nil {
			return err
		}
	}
	for i := begin; i <= to; i++ {
		t, err := link(i)
		if err != nil {
			return err
		}
		c.time = t.Records[len(t.Records)-1].Time
	}
	return nil
}

// span is a part of a chain.
type span struct {
	c         *chain
	after, to segment.Position // the segments after one place, up to another
}

// all is the whole chain.
func (c *chain) all() span {
	to, _ := c.position()
	return span{c, segment.Position{}, to}
}

// between returns the segments after one place, or all for the zero one, up to another, which the chain has.
func (c *chain) between(after, to segment.Position) span { return span{c, after, to} }

// count returns the number of segments in s.
func (s span) count() int { return s.c.count(s.to) - s.c.count(s.after) }

// size returns the size of the trailers in s, bytes; more where only a part of a bundle is in it.
func (s span) size() (n int64) {
	for _, p := range s.pieces() {
		if p.bundle != nil {
			n += p.bundle.size
			continue
		}
		for _, f := range s.c.listed[s.c.find(p.first) : s.c.find(p.last)+1] {
			n += int64(f.key.Trailer)
		}
	}
	return n
}

// pieces returns where the trailers of s are.
func (s span) pieces() (all []piece) {
	for _, p := range s.c.pieces {
		if p.last.Compare(s.after) <= 0 || p.first.Compare(s.to) > 0 {
			continue
		}
		if p.first.Compare(s.after) <= 0 {
			p.first, _ = s.c.next(s.after)
		}
		if p.last.Compare(s.to) > 0 {
			p.last = s.to
		}
		all = append(all, p)
	}
	return all
}

// raw is a trailer that is not decoded. Key and size are those of a landing that is listed; if there is none, or none is
// known, the nonce is zeros.
type raw struct {
	found
	trailer []byte // nil: it is to be read from the segment
}

// each calls fn for every segment of s, in order, with the trailer if it comes from a bundle, which was proven whole. A
// bundle that is damaged or gone is no harm where other bundles and the segments themselves hold what it held.
func (s span) each(ctx context.Context, cfg Config, fn func(raw) error) error {
	return s.c.each(ctx, cfg, s.pieces(), s.c.bundles, fn)
}

func (c *chain) each(ctx context.Context, cfg Config, pieces []piece, bundles []foundBundle, fn func(raw) error) error {
	for _, p := range pieces {
		if p.bundle == nil {
			for _, f := range c.listed[c.find(p.first) : c.find(p.last)+1] {
				if err := fn(raw{f, nil}); err != nil {
					return err
				}
			}
			continue
		}
		held, err := readBundle(ctx, cfg.Bucket, *p.bundle)
		if errors.Is(err, ErrDamaged) || errors.Is(err, bucket.ErrNotFound) {
			bad := *p.bundle
			bundles = slices.DeleteFunc(slices.Clone(bundles), func(b foundBundle) bool { return b == bad })
			instead, missing, ok := c.cover(p.first, p.last, bundles)
			if !ok {
				return fmt.Errorf("%w: %w; segment %s, which it held, is not listed, and in no other bundle", ErrContradiction, err, missing)
			}
			if cfg.Log != nil {
				cfg.Log.Error("a bundle of trailers is damaged; they are read from where else they are", "bundle", bad.key, "err", err)
			}
			err = c.each(ctx, cfg, instead, bundles, fn)
			if err != nil {
				return err
			}
			continue
		}
		if err != nil {
			return err
		}
		for _, r := range held {
			pos := r.key.Position
			if pos.Compare(p.first) < 0 || pos.Compare(p.last) > 0 {
				continue
			}
			if i := c.find(pos); i >= 0 {
				if c.listed[i].key.Hash != r.key.Hash {
					return fmt.Errorf("%w: segment %s is there with two contents: object %s, and in bundle %s", ErrContradiction, pos, c.listed[i].key, p.bundle.key)
				}
				r.key.Nonce = c.listed[i].key.Nonce
			}
			if i, ok := c.line(pos.Epoch); !ok || c.table[i].LastSeq == pos.Seq && c.table[i].Hash != r.key.Hash {
				return fmt.Errorf("%w: segment %s, in bundle %s, is not the one that a later epoch accepted", ErrContradiction, pos, p.bundle.key)
			}
			if err := fn(r); err != nil {
				return err
			}
		}
	}
	return nil
}

// readBundle reads a bundle into memory and proves it: every trailer in it continues the one before, and the last is the
// one that its key names. Bytes that fail are read again, trailerReads times in all, before the error wraps ErrDamaged.
func readBundle(ctx context.Context, b bucket.Bucket, f foundBundle) (all []raw, err error) {
	for bad := 1; ; bad++ {
		// Of a small part of it the size says nothing: it is read as it was listed.
		body := make([]byte, 0, min(f.size, segment.MaxTrailer+segment.MaxBundled))
		src := &ranges{ctx: ctx, b: b, key: f.key.String(), size: f.size}
		all, err = unbundle(f, io.TeeReader(src, collect{&body}), &body)
		if err == nil {
			return all, nil
		}
		if !errors.Is(err, segment.ErrFormat) {
			return nil, fmt.Errorf("read bundle %s: %w", f.key, err)
		}
		if bad == trailerReads {
			return nil, fmt.Errorf("read bundle %s: %w in the bucket: %w", f.key, ErrDamaged, err)
		}
	}
}

// collect keeps what is written to it.
type collect struct{ p *[]byte }

func (c collect) Write(b []byte) (int, error) {
	*c.p = append(*c.p, b...)
	return len(b), nil
}

// unbundle proves the bundle that src yields and returns its trailers as parts of body, into which src puts what it yields.
func unbundle(f foundBundle, src io.Reader, body *[]byte) (all []raw, err error) {
	var ends []int
	r := segment.NewBundleReader(f.key, src, f.size)
	for {
		t, h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, err
		}
		k, size := h.Key(t)
		all = append(all, raw{found: found{k, size}})
		ends = append(ends, len(*body))
	}
	for i, end := range ends {
		all[i].trailer = (*body)[end-int(all[i].key.Trailer) : end : end]
	}
	return all, nil
}

// ranges reads an object of the bucket from off to size in pieces, each as often as its patience lasts.
type ranges struct {
	ctx       context.Context
	b         bucket.Bucket
	key       string
	off, size int64
	rest      []byte // read and not yielded
}

// Read is part of io.Reader.
func (r *ranges) Read(p []byte) (int, error) {
	if len(r.rest) == 0 {
		n := min(r.size-r.off, bundleRead)
		if n <= 0 {
			return 0, io.EOF
		}
		err := persist(r.ctx, getPatience, getTimeout, func(ctx context.Context) (err error) {
			r.rest, err = r.b.Get(ctx, r.key, r.off, n)
			if errors.Is(err, bucket.ErrShort) {
				return final{fmt.Errorf("%w: the object ends before byte %d: %w", segment.ErrFormat, r.off+n, err)}
			}
			return err
		})
		if err != nil {
			return 0, err
		}
		r.off += int64(len(r.rest))
		if int64(len(r.rest)) != n {
			return 0, fmt.Errorf("%w: %d bytes came for %d", segment.ErrFormat, len(r.rest), n)
		}
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}
