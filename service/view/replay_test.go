package view

import (
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"holdfast"
	"holdfast/internal/part"
	"holdfast/service/segment"
	"holdfast/service/view/viewtest"
)

// busy is a journal in which rows of most kinds are written, changed and deleted, long after they were made: two machines
// back up, one of them is revoked, and what is not needed is condemned or moved.
func busy(t *testing.T, seed uint64, segments int) *world {
	w, c, thief := withThief(t)
	rng := rand.New(rand.NewPCG(seed, 0))
	n := 0
	var loose, kept []holdfast.Name // blocks that nothing links to, or that something does
	var trees []viewtest.Block
	revoked := false
	for s := range segments {
		for range 1 + rng.IntN(12) {
			w.now += rng.Int64N(1000)
			n++
			by := c
			if !revoked && rng.IntN(4) == 0 {
				by = thief
			}
			switch k := rng.IntN(10); {
			case k < 6 || len(loose) < 3:
				b := by.Chunk(n, 1+rng.IntN(100))
				w.store(by, b)
				loose = append(loose, b.Name)
			case k < 8:
				below := []holdfast.Name{loose[0], loose[1], loose[2]}
				if len(kept) > 0 && rng.IntN(2) == 0 {
					below = append(below, kept[rng.IntN(len(kept))])
				}
				var base viewtest.Block
				if len(trees) > 0 && rng.IntN(2) == 0 {
					base = trees[rng.IntN(len(trees))]
					below = append(below, base.Links[rng.IntN(len(base.Links)):]...)
				}
				slices.SortFunc(below, func(a, b holdfast.Name) int { return slices.Compare(a[:], b[:]) })
				b := by.Over(holdfast.KindTree, n, slices.Compact(below)...)
				rec := by.Stored(b, w.off).By(base.Name, base.Links)
				if w.try(rec) == nil { // something below may be suspect, or the base condemned
					if rec.Base.Name != (holdfast.Name{}) {
						w.based++
					}
					trees = append(trees, b)
					if got, err := NewReader(w.rows).Links(by.Vault, by.Group, b.Name); err != nil || !slices.Equal(got, b.Links) {
						w.t.Fatalf("links of %s by %s: %v, %v, want %v", b.Name, base.Name, got, err, b.Links)
					}
					kept, loose = append(kept, loose[:3]...), append(loose[3:], b.Name)
				} else {
					loose = loose[3:]
				}
			case k < 9:
				b := by.Over(holdfast.KindArchive, n, loose[0])
				if w.try(by.Stored(b, w.off)) == nil {
					w.accept(by, by.Commit(b.Name))
					kept, loose = append(kept, loose[0]), loose[1:]
				}
			default:
				if len(kept) > 0 {
					name := kept[rng.IntN(len(kept))]
					if b := w.block(c, name); b.Pos != w.pos {
						w.must(w.moved(c, name))
					}
				}
			}
		}
		switch s {
		case segments / 2: // each block asks whether there are revocations, and there were none
			w.revoke(c, thief, w.now-5000)
			revoked = true
		case segments * 3 / 4:
			w.now += 2 * keepMS
			for _, name := range loose {
				b := w.block(c, name)
				if b.Pos == w.pos {
					continue
				}
				w.must(segment.Condemned{Session: b.Session, Name: name, Place: b.Pos, Off: b.Off, Before: CondemnableBefore(w.now)})
			}
			loose = nil
		}
		if len(w.recs) == 0 {
			w.must(viewtest.New(1000 + s).Account())
		}
		w.seal()
	}
	if w.based == 0 {
		t.Fatal("no links were said by a base")
	}
	return w
}

// oneByOne is how the sequencer commits what it sequenced.
func oneByOne(t *testing.T, s *Store, w *world, from int, then func(i int)) {
	for i, x := range w.all[from:] {
		l := NewLayer(s)
		if err := ApplySegment(l, x.key, x.size, &x.trailer, logPub); err != nil {
			t.Fatal(err)
		}
		if err := s.Commit(l); err != nil {
			t.Fatal(err)
		}
		then(from + i)
	}
}

// everyHint fails unless each row of s has its hints.
func everyHint(t *testing.T, s *Store) {
	t.Helper()
	all := allRows(t, s)
	for k, v := range all {
		hints(k, []byte(v), func(h, v []byte) error {
			if is, ok := all[string(h)]; !ok || h[1] != localLike && is != string(v) {
				t.Fatalf("row %q has no hint %q", k, h)
			}
			return nil
		})
	}
}

// A replay makes the rows that the sequencer made, however much it writes at a time, from the beginning or from
// any segment on.
func TestReplayMakesTheSameRows(t *testing.T) {
	seeds, lots := uint64(2), []int{1, 5000, replayRows}
	if part.Heavy() {
		seeds, lots = 20, []int{1, 3000, 20_000, replayRows}
	}
	for seed := range seeds {
		w := busy(t, seed, 60)
		at := make([][32]byte, len(w.all))
		ref := memStore(t)
		oneByOne(t, ref, w, 0, func(i int) { at[i] = digest(t, ref) })
		for _, many := range []bool{false, true} {
			for _, lot := range lots {
				for _, from := range []int{0, 25} {
					s := memStore(t)
					oneByOne(t, s, &world{all: w.all[:from]}, 0, func(int) {})
					r, err := s.replay(100, many)
					if err != nil {
						t.Fatal(err)
					}
					r.lot = lot
					for _, x := range w.all[from:] {
						if err := r.Segment(x.key, x.size, &x.trailer, logPub); err != nil {
							t.Fatal(err)
						}
					}
					if err := r.Close(); err != nil {
						t.Fatal(err)
					}
					if digest(t, s) != at[len(at)-1] {
						t.Fatalf("seed %d, many %v, lots of %d bytes, from %d: the digest is another", seed, many, lot, from)
					}
					everyHint(t, s)
				}
			}
		}
	}
}

// What a replay leaves to be merged is merged once the database is open, by itself, and no sooner: opening it would wait.
// Closing the store ends it.
func TestMergesBeginWhenOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var begun, early atomic.Int64
		s, err := open(vfs.NewMem(), "view", func(o *pebble.Options) {
			o.EventListener.CompactionBegin = func(pebble.CompactionInfo) {
				begun.Add(1)
				if !o.Experimental.CompactionScheduler.(*turns).opened.Load() {
					early.Add(1)
				}
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		w := busy(t, 1, 60)
		r, err := s.replay(100, true)
		if err != nil {
			t.Fatal(err)
		}
		r.lot = 1
		for _, x := range w.all {
			if err := r.Segment(x.key, x.size, &x.trailer, logPub); err != nil {
				t.Fatal(err)
			}
		}
		if err := errors.Join(r.write(), r.wait()); err != nil {
			t.Fatal(err)
		}
		if n := s.db.Metrics().Levels[0].Sublevels; n < 50 || begun.Load() > 0 {
			t.Fatalf("%d lots and %d merges before there is anything to merge", n, begun.Load())
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if n := s.db.Metrics().Levels[0].Sublevels; n > 4 || begun.Load() == 0 || early.Load() > 0 {
			t.Errorf("%d lots after %d merges, of which %d began while the database was being opened", n, begun.Load(), early.Load())
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

// A segment that is refused, and what came before it in its lot, is not in the store; nothing else is missing.
func TestReplayThatIsRefused(t *testing.T) {
	w := busy(t, 1, 30)
	at := make([][32]byte, len(w.all))
	ref := memStore(t)
	oneByOne(t, ref, w, 0, func(i int) { at[i] = digest(t, ref) })
	for _, many := range []bool{false, true} {
		s := memStore(t)
		r, err := s.replay(100, many)
		if err != nil {
			t.Fatal(err)
		}
		r.lot = 4000
		for _, x := range w.all[:20] {
			if err := r.Segment(x.key, x.size, &x.trailer, logPub); err != nil {
				t.Fatal(err)
			}
		}
		bad := w.all[20].trailer
		bad.Records = append(slices.Clone(bad.Records), segment.Timed{Time: bad.Records[len(bad.Records)-1].Time, Record: segment.Token{Account: holdfast.AccountID{9}}})
		if err := r.Segment(w.all[20].key, w.all[20].size, &bad, logPub); !errors.Is(err, ErrNoAccount) {
			t.Fatalf("a token of no account: %v", err)
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		_, pos, _, err := s.Position()
		if err != nil {
			t.Fatal(err)
		}
		if pos.Seq == 0 || pos.Seq >= 20 || digest(t, s) != at[pos.Seq] {
			t.Fatalf("many %v: the rows are not those of segment %s", many, pos)
		}
		// It goes on from there.
		oneByOne(t, s, w, int(pos.Seq)+1, func(int) {})
		if digest(t, s) != at[len(at)-1] {
			t.Fatal("the digest is another")
		}
	}
}

// After a power cut at any moment of a replay the store has the rows of some earlier segment, and what follows can be
// replayed.
func TestCrashedReplayIsAPrefix(t *testing.T) {
	w := busy(t, 2, 80)
	at := make([][32]byte, len(w.all))
	ref := memStore(t)
	oneByOne(t, ref, w, 0, func(i int) { at[i] = digest(t, ref) })
	rng := rand.New(rand.NewPCG(3, 4))
	type clone struct {
		fs    *vfs.MemFS
		after int
	}
	var (
		mu     sync.Mutex // the database works in goroutines of its own
		clones []clone
		after  int
	)
	fs := vfs.NewCrashableMem()
	cut := func() {
		mu.Lock()
		defer mu.Unlock()
		clones = append(clones, clone{fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 50 * rng.IntN(3), RNG: rng}), after})
	}
	ops := 0
	s, err := open(&opsFS{fs, func(op DiskOp, do func() error) error {
		if op.Write {
			mu.Lock()
			ops++
			now := ops%5 == 0
			mu.Unlock()
			if now {
				cut()
			}
		}
		return do()
	}}, "view")
	if err != nil {
		t.Fatal(err)
	}
	r, err := s.replay(100, true)
	if err != nil {
		t.Fatal(err)
	}
	r.lot = 12_000
	for i, x := range w.all {
		mu.Lock()
		after = i
		mu.Unlock()
		if err := r.Segment(x.key, x.size, &x.trailer, logPub); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(r.Close(), s.Close()); err != nil {
		t.Fatal(err)
	}
	lost, some := 0, 0
	for _, c := range clones {
		s, err := open(c.fs, "view")
		if errors.Is(err, ErrDamaged) {
			continue // it is made anew
		}
		if err != nil {
			t.Fatal(err)
		}
		_, pos, hash, err := s.Position()
		if err != nil {
			t.Fatal(err)
		}
		from := 0
		if hash != [32]byte{} {
			if from = int(pos.Seq) + 1; from > c.after+1 || digest(t, s) != at[pos.Seq] {
				t.Fatalf("a crash after segment %d: the rows are not those of segment %s", c.after, pos)
			}
			some++
		}
		if from < c.after+1 {
			lost++
		}
		oneByOne(t, s, w, from, func(int) {})
		if digest(t, s) != at[len(at)-1] {
			t.Fatalf("a crash after segment %d, replayed from %d: the digest is another", c.after, from)
		}
		everyHint(t, s)
		s.Close()
	}
	t.Logf("%d crashes: %d lost segments, %d had some", len(clones), lost, some)
	if lost == 0 || some == 0 {
		t.Error("the test does not test")
	}
}
