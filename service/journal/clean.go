package journal

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"holdfast"
	"holdfast/service/segment"
	"holdfast/service/view"
)

const (
	// maxMove is how much of blocks one segment takes that cleaning makes, bytes, and maxMoves how many blocks: others
	// wait for the sequencer meanwhile.
	maxMove  = 14 << 20
	maxMoves = 8192
	// maxSpan is what cleaning reads at a time, bytes, unless one block is larger, and maxGap what it reads between two
	// blocks in vain, for one request less.
	maxSpan = 4 << 20
	maxGap  = 256 << 10
	// maxPage is how many candidates are looked at together, and how many segments one append retires.
	maxPage = 1000
	// maxDamaged bounds the damaged blocks that a report names.
	maxDamaged = 100
)

// Unreferenced returns blocks of the acknowledged view without references; see view.Store.
func (j *Journal) Unreferenced(before int64, after []byte, max int) ([]view.Unreferenced, []byte, error) {
	return j.store.Unreferenced(before, after, max)
}

// Sparse returns segments of the acknowledged view of which little is live; see view.Store.
func (j *Journal) Sparse(percent int, after []byte, max int) ([]view.Segment, []byte, error) {
	return j.store.Sparse(percent, after, max)
}

// Tiny returns segments of the acknowledged view with little in them; see view.Store.
func (j *Journal) Tiny(after []byte, max int) ([]view.Segment, []byte, error) {
	return j.store.Tiny(after, max)
}

// Retired returns segments of the acknowledged view that wait to be removed; see view.Store.
func (j *Journal) Retired(after segment.Position, max int) ([]view.Segment, error) {
	return j.store.Retired(after, max)
}

// Now returns the journal time that a record appended now would have at least, ms.
func (j *Journal) Now() int64 {
	j.mu.RLock()
	defer j.mu.RUnlock()
	return max(j.time, j.now())
}

// CondemnReport says what was condemned.
type CondemnReport struct {
	Blocks int
	Bytes  uint64 // of them, sealed
	// Held is how many blocks without references stay for now, because a session that is open may have been told of them.
	Held int
	// More says that there were more than the caller wanted.
	More bool
}

// CondemnUnreferenced condemns blocks that nothing needs, at most max, and with them what only they needed, in the order
// in which that became so (JOURNAL 17). What it costs is in proportion to what it condemns, and to what sessions
// hold. When it returns, also with an error, what the report says is durable.
func (j *Journal) CondemnUnreferenced(ctx context.Context, max int) (r CondemnReport, err error) {
	var after []byte // what is before was looked at: what is condemned leaves its children behind it
	for {
		// The blocks that lost their last reference before now; in the next pass what they needed.
		before, n := view.CondemnableBefore(j.Now()), 0
		for done := false; !done; {
			page, next, err := j.store.Unreferenced(before, after, min(maxPage, max-r.Blocks))
			if err != nil {
				return r, fmt.Errorf("find what nothing needs: %w", err)
			}
			all := make([]Candidate, len(page))
			for i, u := range page {
				all[i] = Candidate(u)
			}
			did, size, err := j.condemn(ctx, all)
			if err != nil {
				return r, err
			}
			n, r.Blocks, r.Bytes, r.Held = n+did, r.Blocks+did, r.Bytes+size, r.Held+len(all)-did
			if next != nil {
				after = next
			}
			done = next == nil
			if r.Blocks >= max {
				r.More = true
				return r, nil
			}
		}
		if n == 0 {
			return r, nil
		}
		if err := j.tickOver(ctx); err != nil {
			return r, err
		}
	}
}

// tickOver waits until journal time has moved on: what was condemned with now may take along what it needed after it.
func (j *Journal) tickOver(ctx context.Context) error {
	t := time.NewTimer(2 * time.Millisecond)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// CleanLimits bounds what one Clean does.
type CleanLimits struct {
	Bytes uint64 // that it copies, about
	// Before, unless 0, ends at the first segment that has a record of that journal time or later, ms.
	Before int64
	// Enough, if set, says that it is time to end; what was begun is ended.
	Enough func() bool
}

// CleanReport says what was cleaned.
type CleanReport struct {
	Looked   int    // segments, from the first on, that were dealt with
	Segments int    // of these, those of which all that was live is elsewhere now, but for what could not be read
	Blocks   int    // that were moved
	Bytes    uint64 // of them
	Made     int    // segments into which they were
	// Damaged is the first of the blocks that failed their checksums in every landing, and were left where they are.
	Damaged []Candidate
	// Failed is how many blocks could not be read otherwise, and Why the first error.
	Failed int
	Why    error
}

// move is a live block on its way from one segment to another.
type move struct {
	vault    holdfast.VaultID
	session  holdfast.SessionID
	name     holdfast.Name
	from     segment.Position
	fromOff  uint32
	len, off uint32
	sum      [16]byte
	kind     holdfast.Kind
	read     bool
}

// block returns what is known of the block where it comes from.
func (m *move) block() view.Block {
	return view.Block{Pos: m.from, Off: m.fromOff, Len: m.len, Kind: m.kind, Sum: m.sum, Session: m.session}
}

// Clean copies what is live in segments to segments of its own, and records where it is now (JOURNAL 18, 19). The bytes
// are verified on the way. A segment that is cleaned holds no live block any more and can be retired; what an aborted
// Clean leaves is whole segments and their records, and nothing else, but for one that was on its way.
//
// Blocks lie in the order of their vaults, and of a vault in the order in which they lay before: an archive stays
// together (JOURNAL 20).
func (j *Journal) Clean(ctx context.Context, segments []view.Segment, lim CleanLimits) (r CleanReport, err error) {
	if err := j.MayDelete(ctx); err != nil {
		return r, fmt.Errorf("clean: %w", err)
	}
	var plan []move
	planned := uint64(0)  // bytes of it
	looked, whole := 0, 0 // segments that were looked at, and of which all is planned, and not reported
	enough := func() bool { return lim.Enough != nil && lim.Enough() }
	flush := func(all bool) error {
		for len(plan) > 0 {
			n := batch(plan)
			if n == len(plan) && !all {
				return nil
			}
			did, err := j.moveAll(ctx, plan[:n], &r)
			for _, m := range plan[:n] {
				planned -= uint64(m.len)
			}
			r.Bytes += did
			plan = slices.Delete(plan, 0, n)
			if err != nil {
				return err
			}
		}
		r.Looked, r.Segments, whole = looked, r.Segments+whole, 0
		return nil
	}
	for _, s := range segments {
		if enough() || lim.Bytes > 0 && r.Bytes+planned >= lim.Bytes {
			break
		}
		live, young, err := j.live(ctx, s, lim.Before)
		looked++
		if err != nil {
			if ctx.Err() != nil || j.Err() != nil {
				return r, fmt.Errorf("clean segment %s: %w", s.Key.Position, err)
			}
			r.fail(int(s.Blocks), err)
			continue
		}
		if young {
			looked--
			break
		}
		for _, m := range live {
			planned += uint64(m.len)
		}
		plan, whole = append(plan, live...), whole+1
		if err := flush(false); err != nil {
			return r, fmt.Errorf("clean: %w", err)
		}
	}
	if err := flush(true); err != nil {
		return r, fmt.Errorf("clean: %w", err)
	}
	return r, nil
}

func (r *CleanReport) fail(blocks int, err error) {
	r.Failed += blocks
	if r.Why == nil {
		r.Why = err
	}
}

// batch returns how many of the first moves go into one segment.
func batch(plan []move) int {
	size := 0
	for i, m := range plan {
		if size += int(m.len); i == maxMoves || i > 0 && size > maxMove {
			return i
		}
	}
	return len(plan)
}

// live returns the blocks whose place is in s, by their offsets: its trailer says what was put there, and the acknowledged
// view what of that is still there. young says that s is too young to be touched.
func (j *Journal) live(ctx context.Context, s view.Segment, before int64) (all []move, young bool, err error) {
	_, t, err := fetchTrailer(ctx, j.cfg.Bucket, found{s.Key, int64(s.Size)})
	if err != nil {
		return nil, false, err
	}
	if before > 0 && t.Records[len(t.Records)-1].Time >= before {
		return nil, true, nil
	}
	placed, err := j.placed(s.Key.Position, t)
	if err != nil {
		return nil, false, err
	}
	for _, p := range placed {
		if b := p.Block; !b.Damaged {
			all = append(all, move{vault: p.vault, session: b.Session, name: p.Name, from: b.Pos, fromOff: b.Off, len: b.Len, sum: b.Sum, kind: b.Kind})
		}
	}
	return all, false, nil
}

// spot is a block that the view has in a segment.
type spot struct {
	Candidate
	vault  holdfast.VaultID
	newest bool // the copy that its name stands for, not an alternate
}

// placed returns the blocks that the acknowledged view has in the segment at pos, by where they begin. Its trailer says what
// was put there; what is not there any more was moved, or condemned.
func (j *Journal) placed(pos segment.Position, t *segment.Trailer) (all []spot, err error) {
	r := j.Acked()
	sessions := map[holdfast.SessionID]view.Session{}
	for p := range t.Blocks() {
		ses, ok := sessions[p.Session]
		if !ok {
			if ses, ok, err = r.Session(p.Session); err == nil && !ok {
				err = fmt.Errorf("session %s: %w", p.Session, view.ErrNoSession)
			}
			if err != nil {
				return nil, err
			}
			sessions[p.Session] = ses
		}
		b, ok, err := r.Block(ses.Vault, ses.Group, p.Name)
		for i := uint32(0); err == nil && ok; i++ {
			if b.Pos == pos && b.Off == p.Off {
				all = append(all, spot{Candidate{p.Name, b}, ses.Vault, i == 0})
				break
			}
			b, ok, err = r.Alternate(ses.Vault, ses.Group, p.Name, i)
		}
		if err != nil {
			return nil, err
		}
	}
	slices.SortFunc(all, func(a, b spot) int { return cmp.Compare(a.Block.Off, b.Block.Off) })
	return all, nil
}

func byPlace(a, b move) int {
	return cmp.Or(a.from.Compare(b.from), cmp.Compare(a.fromOff, b.fromOff))
}

func byVault(a, b move) int {
	return cmp.Or(bytes.Compare(a.vault[:], b.vault[:]), byPlace(a, b))
}

// moveAll copies blocks into one segment, and records where they are. It returns the bytes that were moved once that is
// durable.
func (j *Journal) moveAll(ctx context.Context, all []move, r *CleanReport) (moved uint64, err error) {
	l, err := j.borrow(ctx)
	if err != nil {
		return 0, err
	}
	defer l.giveBack()
	slices.SortFunc(all, byVault)
	size := 0
	for i := range all {
		all[i].off = uint32(size)
		size += int(all[i].len)
	}
	b := segment.NewBuilder(j.cfg.Cell)
	body, _ := b.Space(size)
	slices.SortFunc(all, byPlace)
	for at := 0; at < len(all); {
		n := together(all[at:])
		if err := j.readInto(ctx, all[at:at+n], body, r); err != nil {
			return 0, err
		}
		at += n
	}
	slices.SortFunc(all, func(a, b move) int { return cmp.Compare(a.off, b.off) })

	did := 0
	t, err := j.appendAlone(ctx, l, b, func(tx *Tx) error {
		for _, m := range all {
			if !m.read {
				continue
			}
			err := tx.Record(segment.Moved{Session: m.session, Name: m.name, From: m.from, FromOff: m.fromOff, Off: m.off, Len: m.len, Sum: m.sum})
			if errors.Is(err, view.ErrMoved) { // freed, or moved, since it was looked up
				continue
			}
			if err != nil {
				return err
			}
			did, moved = did+1, moved+uint64(m.len)
		}
		return nil
	})
	if err != nil || did == 0 {
		return 0, err
	}
	if err := t.Wait(ctx); err != nil {
		return 0, err
	}
	r.Blocks += did
	r.Made++
	return moved, nil
}

// together returns how many of the first moves are read with one request.
func together(all []move) int {
	first, end := all[0], uint64(all[0].fromOff)+uint64(all[0].len)
	for i, m := range all[1:] {
		next := uint64(m.fromOff) + uint64(m.len)
		if m.from != first.from || uint64(m.fromOff) > end+maxGap || next-uint64(first.fromOff) > maxSpan {
			return i + 1
		}
		end = next
	}
	return len(all)
}

// readInto reads blocks of one span to where they are to be in body, and notes those that were read. What cannot be read
// stays where it is. The error says that the rest is not to be tried either.
func (j *Journal) readInto(ctx context.Context, all []move, body []byte, r *CleanReport) error {
	blocks := make([]view.Block, len(all))
	for i, m := range all {
		blocks[i] = m.block()
	}
	read := j.ReadBlocks(ctx, blocks)
	for i := range all {
		m, got := &all[i], read[i]
		if got.Err != nil && !errors.Is(got.Err, ErrDamaged) && len(all) > 1 {
			got = j.ReadBlocks(ctx, blocks[i:i+1])[0] // stores have been seen to fail one particular request
		}
		switch {
		case got.Err == nil:
			m.read = true
			copy(body[m.off:][:m.len], got.Sealed)
		case ctx.Err() != nil:
			return ctx.Err()
		case j.Err() != nil:
			return j.Err()
		case errors.Is(got.Err, ErrDamaged):
			j.Suspect(m.name, m.block()) // it is looked at again, and recorded
			if len(r.Damaged) < maxDamaged {
				r.Damaged = append(r.Damaged, Candidate{m.name, m.block()})
			}
			r.fail(1, got.Err)
		default:
			r.fail(1, got.Err)
		}
	}
	return nil
}

// RetireReport says what was retired.
type RetireReport struct {
	Segments int
	Bytes    uint64 // of their objects
}

// Retire appends a retired record for each of the segments that may be retired at that moment, and returns once that
// is durable. What holds live blocks, or is needed otherwise, is left alone.
func (j *Journal) Retire(ctx context.Context, segments []view.Segment) (r RetireReport, err error) {
	if err := j.MayDelete(ctx); err != nil {
		return r, fmt.Errorf("retire: %w", err)
	}
	var last *Ticket
	var did RetireReport
	for page := range slices.Chunk(segments, maxPage) {
		var n RetireReport
		t, err := j.Append(ctx, func(tx *Tx) error {
			n = RetireReport{}
			for _, s := range page {
				err := tx.Record(segment.Retired{Place: s.Key.Position})
				if errors.Is(err, view.ErrLive) || errors.Is(err, view.ErrNoSegment) {
					continue
				}
				if err != nil {
					return err
				}
				n.Segments++
				n.Bytes += s.Size
			}
			return nil
		})
		if err != nil {
			return r, fmt.Errorf("retire: %w", err)
		}
		last, did.Segments, did.Bytes = t, did.Segments+n.Segments, did.Bytes+n.Bytes
	}
	if did.Segments == 0 {
		return r, nil
	}
	j.Flush()
	if err := last.Wait(ctx); err != nil {
		return r, fmt.Errorf("retire: %w", err)
	}
	return did, nil
}
