package view

import (
	"bytes"
	"errors"
	"maps"
	"slices"
	"testing"

	"holdfast"
	"holdfast/history"
	"holdfast/service/segment"
	"holdfast/service/view/viewtest"
)

func (w *world) segment(pos segment.Position) (Segment, bool) {
	w.t.Helper()
	s, ok, err := NewReader(w.rows).Segment(pos)
	if err != nil {
		w.t.Fatal(err)
	}
	return s, ok
}

func (w *world) stats() Stats {
	w.t.Helper()
	s, err := NewReader(w.rows).Stats()
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

// moved is the record that copies a block, from where it is, into the segment that is being filled.
func (w *world) moved(c *viewtest.Customer, n holdfast.Name) segment.Moved {
	b := w.block(c, n)
	return segment.Moved{Session: b.Session, Name: n, From: b.Pos, FromOff: b.Off, Off: w.off, Len: b.Len, Sum: b.Sum}
}

// A segment's life after its blocks: what lives is moved, then it is retired, then, when the grace is over, removed; and
// each of these happens once, and not before it may.
func TestSegmentIsFreed(t *testing.T) {
	w := newWorld(t)
	c := w.enrolled(1)
	w.accept(c, c.Open())
	dead, live, other := c.Chunk(1, 50), c.Chunk(2, 60), c.Chunk(3, 70)
	w.store(c, dead)
	w.store(c, live)
	root := c.Over(holdfast.KindArchive, 1, live.Name)
	w.store(c, root)
	w.accept(c, c.Commit(root.Name))
	at := w.pos
	w.refuse(w.moved(c, live.Name), ErrMoved) // it is in this very segment
	w.seal()
	w.now += keepMS + 1
	b := w.block(c, dead.Name)
	w.must(segment.Condemned{Session: b.Session, Name: dead.Name, Place: b.Pos, Off: b.Off, Before: CondemnableBefore(w.now)})
	w.refuse(segment.Retired{Place: at}, ErrLive)
	w.refuse(segment.Removed{Place: at}, ErrNoSegment)
	before, blocks := w.stats(), w.block(c, live.Name)
	wrong := w.moved(c, live.Name)
	wrong.FromOff++
	w.refuse(wrong, ErrMoved)
	wrong = w.moved(c, live.Name)
	wrong.Len--
	w.refuse(wrong, ErrMoved)
	wrong = w.moved(c, live.Name)
	wrong.Sum[0]++
	w.refuse(wrong, ErrMoved)
	first := w.moved(c, live.Name)
	w.must(first)
	w.refuse(first, ErrMoved) // it was there
	w.must(w.moved(c, root.Name))
	w.store(c, other) // beside what is moved
	to := w.pos
	after := w.block(c, live.Name)
	if after.Pos != to || after.Off != first.Off || after.Stored != blocks.Stored || after.Sum != blocks.Sum || after.Count != 1 || after.Session != blocks.Session {
		t.Errorf("moved from %+v to %+v", blocks, after)
	}
	w.must(segment.Retired{Place: at})
	w.refuse(segment.Retired{Place: at}, ErrNoSegment)
	w.refuse(segment.Retired{Place: segment.Position{Epoch: 1}}, ErrLive) // the newest takeover
	w.refuse(segment.Retired{Place: segment.Position{Epoch: 9, Seq: 9}}, ErrNoSegment)
	w.seal()
	s, ok := w.segment(to)
	if !ok || s.Blocks != 3 || s.Bytes != uint64(len(live.Sealed)+len(root.Sealed)+len(other.Sealed)) {
		t.Errorf("segment with what was moved: %+v", s)
	}
	if r, ok := w.segment(at); !ok || r.Retired != w.now || r.Blocks != 0 || r.Size == 0 {
		t.Errorf("retired: %+v, %v", r, ok)
	}
	now := w.stats()
	if now.Blocks != before.Blocks+1 || now.Bytes != before.Bytes+uint64(len(other.Sealed)) {
		t.Errorf("blocks were %+v and are %+v", before, now)
	}
	if now.Segments != before.Segments || now.Retired != 1 || now.Removed != 0 {
		t.Errorf("segments were %+v and are %+v", before, now)
	}
	w.now += graceMS - 1
	w.refuse(segment.Removed{Place: at}, ErrGrace)
	w.now++
	w.must(segment.Removed{Place: at})
	w.refuse(segment.Removed{Place: at}, ErrNoSegment)
	if _, ok := w.segment(at); ok {
		t.Error("it is there")
	}
	end := w.stats()
	if end.Retired != 0 || end.Removed != 1 || end.Objects >= now.Objects {
		t.Errorf("segments were %+v and are %+v", now, end)
	}
	for k, v := range w.rows.rows {
		if v != nil && (k == string(nonceKey(at)) || k == string(retiredKey(at)) || k == string(posKey(at))) {
			t.Errorf("row %q is left", k)
		}
	}
}

// Nothing is moved, retired or removed while deleting is frozen.
func TestNothingIsCleanedWhileFrozen(t *testing.T) {
	w := newWorld(t)
	c := w.enrolled(1)
	w.accept(c, c.Open())
	x := c.Chunk(1, 50)
	w.store(c, x)
	w.seal()
	empty := w.pos
	w.accept(c, c.Open())
	w.seal()
	w.must(segment.Retired{Place: empty})
	w.accept(c, c.Open())
	also := w.pos
	w.seal()
	w.now += graceMS
	w.must(segment.Frozen{Reason: segment.ReasonClocks, Text: "x"})
	since := w.now
	w.refuse(w.moved(c, x.Name), ErrFrozen)
	w.refuse(segment.Retired{Place: also}, ErrFrozen)
	w.refuse(segment.Removed{Place: empty}, ErrFrozen)
	w.must(segment.Thawed{Reason: segment.ReasonClocks, Since: since, Text: "y"})
	w.must(w.moved(c, x.Name))
	w.must(segment.Retired{Place: also})
	w.must(segment.Removed{Place: empty})
}

// A block that is damaged is not there for those who store or link, and can be fetched. Stored anew it is whole for
// everybody; moved it is whole, since what is copied has the right checksum.
func TestDamagedBlock(t *testing.T) {
	w := newWorld(t)
	c := w.enrolled(1)
	w.accept(c, c.Open())
	leaf := c.Chunk(1, 50)
	w.store(c, leaf)
	root := c.Over(holdfast.KindArchive, 1, leaf.Name)
	w.store(c, root)
	w.accept(c, c.Commit(root.Name))
	w.seal()
	damaged := func(n holdfast.Name, whole bool) segment.Damaged {
		b := w.block(c, n)
		return segment.Damaged{Session: b.Session, Name: n, Place: b.Pos, Off: b.Off, Whole: whole}
	}
	rows := func() (n int) {
		for k, v := range w.rows.rows {
			if k[0] == rowDamaged && v != nil {
				n++
			}
		}
		return n
	}
	present := func() bool {
		_, ok, err := NewReader(w.rows).Present(c.Vault, c.Group, leaf.Name)
		if err != nil {
			t.Fatal(err)
		}
		return ok
	}
	w.refuse(damaged(leaf.Name, true), ErrDuplicate)
	wrong := damaged(leaf.Name, false)
	wrong.Off++
	w.refuse(wrong, ErrMoved)
	w.must(damaged(leaf.Name, false))
	w.refuse(damaged(leaf.Name, false), ErrDuplicate)
	if present() || rows() != 1 {
		t.Error("a damaged block is there")
	}
	var missing *MissingError
	if err := w.try(c.Stored(c.Over(holdfast.KindTree, 5, leaf.Name), w.off)); !errors.As(err, &missing) || !slices.Equal(missing.Names, []holdfast.Name{leaf.Name}) {
		t.Errorf("a link to a damaged block: %v", err)
	}
	w.must(damaged(leaf.Name, true))
	if !present() || rows() != 0 {
		t.Error("a block that is whole again is not there")
	}
	w.must(damaged(leaf.Name, false))
	old := w.block(c, leaf.Name)
	w.store(c, leaf)
	if b := w.block(c, leaf.Name); b.Damaged || b.Count != 1 || b.Pos != w.pos || !present() || rows() != 0 {
		t.Errorf("stored anew: %+v", b)
	}
	if alt, ok, err := NewReader(w.rows).Alternate(c.Vault, c.Group, leaf.Name, 0); err != nil || !ok || alt.Pos != old.Pos {
		t.Errorf("the old place: %+v, %v, %v", alt, ok, err)
	}
	w.seal()
	// The old place is an alternate, which is moved as well.
	alt, _, _ := NewReader(w.rows).Alternate(c.Vault, c.Group, leaf.Name, 0)
	w.must(segment.Moved{Session: alt.Session, Name: leaf.Name, From: alt.Pos, FromOff: alt.Off, Off: w.off, Len: alt.Len, Sum: alt.Sum})
	if now, ok, _ := NewReader(w.rows).Alternate(c.Vault, c.Group, leaf.Name, 0); !ok || now.Pos != w.pos || now.Damaged {
		t.Errorf("alternate moved: %+v", now)
	}
	w.must(damaged(root.Name, false))
	if err := w.try(w.entry(c.Commit(root.Name), c.Vault)); !errors.As(err, &missing) {
		t.Errorf("a commit of a damaged root: %v", err)
	}
}

// What is in the store has its hints, whatever was committed in whatever pieces; and looking removes those that say
// something else.
func TestHints(t *testing.T) {
	w := newWorld(t)
	s, err := OpenMem()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	commit := func() {
		t.Helper()
		l := NewLayer(s)
		maps.Copy(l.rows, w.rows.rows)
		if err := s.Commit(l); err != nil {
			t.Fatal(err)
		}
	}
	unreferenced := func(before int64) (names []holdfast.Name) {
		t.Helper()
		var next []byte
		for {
			all, n, err := s.Unreferenced(before, next, 1)
			if err != nil {
				t.Fatal(err)
			}
			for _, u := range all {
				names = append(names, u.Name)
			}
			if next = n; next == nil {
				return names
			}
		}
	}
	sparse := func(percent int) (at []segment.Position) {
		t.Helper()
		var next []byte
		for {
			all, n, err := s.Sparse(percent, next, 1)
			if err != nil {
				t.Fatal(err)
			}
			for _, x := range all {
				at = append(at, x.Key.Position)
			}
			if next = n; next == nil {
				return at
			}
		}
	}
	local := func(kind byte) (n int) {
		t.Helper()
		if _, n, err = s.scan([]byte{rowLocal, kind}, []byte{rowLocal, kind + 1}, 1000, func(_, _ []byte) error { return nil }); err != nil {
			t.Fatal(err)
		}
		return n
	}
	c := w.enrolled(1)
	w.accept(c, c.Open())
	w.seal()
	a, b := c.Chunk(1, 310), c.Chunk(2, 100)
	w.store(c, a)
	w.store(c, b)
	at := w.pos
	w.seal()
	commit()
	if got := unreferenced(w.now + 1); len(got) != 2 || len(unreferenced(w.now)) != 0 {
		t.Fatalf("unreferenced: %v", got)
	}
	if got := sparse(0); !slices.Equal(got, []segment.Position{{Epoch: 1}, {Epoch: 1, Seq: 1}}) {
		t.Errorf("without blocks: %v", got)
	}
	if got := sparse(99); len(got) != 2 {
		t.Errorf("nothing of %v is dead", got)
	}
	first := w.now
	w.now += 5
	root := c.Over(holdfast.KindArchive, 1, a.Name)
	w.store(c, root)
	w.seal()
	commit()
	if got := unreferenced(w.now); !slices.Equal(got, []holdfast.Name{b.Name}) {
		t.Errorf("one has a reference now: %v", got)
	}
	if n := local(localUnused); n != 2 { // b, and the root that no commit names
		t.Errorf("%d hints of blocks", n)
	}
	w.now += keepMS + 10
	row := w.block(c, b.Name)
	w.must(segment.Condemned{Session: row.Session, Name: b.Name, Place: row.Pos, Off: row.Off, Before: first + 1})
	w.seal()
	commit()
	if got := unreferenced(first + 1); len(got) != 0 {
		t.Errorf("condemned, and still there: %v", got)
	}
	share := 100 * len(a.Sealed) / (len(a.Sealed) + len(b.Sealed))
	if got := sparse(share + 1); !slices.Contains(got, at) {
		t.Errorf("%d %% of %s live: %v", share, at, got)
	}
	if got := sparse(share); slices.Contains(got, at) {
		t.Errorf("more of %s is live: %v", at, got)
	}
	tiny, next, err := s.Tiny(nil, 100)
	if err != nil || next != nil || len(tiny) != 2 {
		t.Errorf("tiny: %+v, %v", tiny, err)
	}
	w.must(w.moved(c, a.Name))
	w.must(segment.Retired{Place: at})
	w.seal()
	commit()
	if got := sparse(share + 1); slices.Contains(got, at) {
		t.Errorf("retired, and hinted at: %v", got)
	}
	live, err := s.Segments(segment.Position{}, 100)
	if err != nil || len(live) != int(w.stats().Segments) {
		t.Errorf("%d segments, %v", len(live), err)
	}
	if more, err := s.Segments(live[1].Key.Position, 2); err != nil || len(more) != 2 || more[0] != live[2] {
		t.Errorf("segments after %s: %+v, %v", live[1].Key.Position, more, err)
	}
	gone, err := s.Retired(segment.Position{}, 100)
	if err != nil || len(gone) != 1 || gone[0].Key.Position != at || gone[0].Retired != w.now {
		t.Errorf("retired: %+v, %v", gone, err)
	}
	row = w.block(c, a.Name)
	w.must(segment.Damaged{Session: row.Session, Name: a.Name, Place: row.Pos, Off: row.Off})
	w.accept(c, c.Signed(history.TypeFreeze, nil))
	w.seal()
	commit()
	if all, err := s.Damaged(nil, 10); err != nil || len(all) != 1 || all[0].Name != a.Name || all[0].Since != w.now || all[0].Block.Pos != row.Pos {
		t.Errorf("damaged: %+v, %v", all, err)
	}
}

// TestLike: which block has links like others is found by the smallest of them, says what the newest one that has it
// linked to, and is forgotten with it. Links by a base that has not what they say are refused.
func TestLike(t *testing.T) {
	w := newWorld(t)
	s, err := OpenMem()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	committed := map[string][]byte{}
	commit := func() { // what has changed since the last time
		t.Helper()
		l := NewLayer(s)
		for k, v := range w.rows.rows {
			if was, ok := committed[k]; !ok || (was == nil) != (v == nil) || !bytes.Equal(was, v) {
				l.rows[k], committed[k] = v, bytes.Clone(v)
			}
		}
		if err := s.Commit(l); err != nil {
			t.Fatal(err)
		}
	}
	c := w.enrolled(1)
	w.accept(c, c.Open())
	var chunks []holdfast.Name
	for i := range 40 {
		b := c.Chunk(i, 10)
		w.store(c, b)
		chunks = append(chunks, b.Name)
	}
	slices.SortFunc(chunks, func(a, b holdfast.Name) int { return bytes.Compare(a[:], b[:]) })
	tree := c.Over(holdfast.KindTree, 1, chunks[:30]...)
	w.store(c, tree)
	w.seal()
	commit()
	like := func(links []holdfast.Name, want holdfast.Name, of []holdfast.Name) {
		t.Helper()
		name, got, err := NewReader(s).Like(c.Vault, c.Group, links)
		if err != nil || name != want || !slices.Equal(got, of) {
			t.Errorf("like %s...: %s, %d links, %v", links[0], name, len(got), err)
		}
	}
	like(chunks[:31], tree.Name, tree.Links)
	like(chunks[1:31], holdfast.Name{}, nil)

	after := c.Over(holdfast.KindTree, 2, append(slices.Clone(chunks[:20]), chunks[21:35]...)...)
	rec := c.Stored(after, w.off).By(tree.Name, tree.Links)
	if rec.Base.Name != tree.Name || len(rec.Links) != 5 || !slices.Equal(rec.Base.Without, []uint32{20}) {
		t.Fatalf("by the first tree: %+v", rec.Base)
	}
	for _, wrong := range []segment.Base{{Name: tree.Name, Without: []uint32{30}}, {Name: chunks[0], Without: []uint32{0}}, {Name: tree.Name}} {
		no := rec
		no.Base, no.Links = wrong, tree.Links[:1]
		w.refuse(no, segment.ErrFormat)
	}
	w.must(rec)
	if got, err := NewReader(w.rows).Links(c.Vault, c.Group, after.Name); err != nil || !slices.Equal(got, after.Links) {
		t.Errorf("links by a base: %d of %d, %v", len(got), len(after.Links), err)
	}
	if b := w.block(c, chunks[3]); b.Count != 2 {
		t.Errorf("a block to which both link has %d references", b.Count)
	}
	if b := w.block(c, chunks[20]); b.Count != 1 {
		t.Errorf("a block to which only the base links has %d references", b.Count)
	}
	w.seal()
	commit()
	like(chunks, after.Name, after.Links)

	// When all of it is condemned, no hint is left.
	for range 2 {
		w.now += 2 * keepMS
		for _, name := range append(slices.Clone(chunks), tree.Name, after.Name) {
			if b, ok, err := NewReader(w.rows).Block(c.Vault, c.Group, name); err != nil {
				t.Fatal(err)
			} else if ok && b.Count == 0 {
				w.must(segment.Condemned{Session: b.Session, Name: name, Place: b.Pos, Off: b.Off, Before: CondemnableBefore(w.now)})
			}
		}
		w.seal()
		commit()
	}
	if _, n, err := s.scan([]byte{rowLocal, localLike}, []byte{rowLocal, localLike + 1}, 1000, func(_, _ []byte) error { return nil }); err != nil || n != 0 {
		t.Errorf("%d hints are left, %v", n, err)
	}
	if got, err := NewReader(s).Links(c.Vault, c.Group, after.Name); err != nil || got != nil {
		t.Errorf("links are left: %d, %v", len(got), err)
	}
}
