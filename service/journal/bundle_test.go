package journal

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"holdfast"
	"holdfast/internal/part"
	"holdfast/service/bucket"
	"holdfast/service/bucket/sim"
	"holdfast/service/segment"
	"holdfast/service/view"
	"holdfast/service/view/viewtest"
)

// weeks is what a customer and the jobs of a service do in a few weeks: backups, an upload that nobody commits, which is
// condemned; segments without live blocks are retired, bundled, and removed. It goes on where it failed.
type weeks struct {
	*client
	store      *sim.Store
	ahead      atomic.Int64 // of virtual time, ns: the view's timers make days slow
	stage, run int
	// freeing is told when the journal begins and ends to bundle or remove.
	freeing func(bool)
	bundled BundleReport
	removed RemoveReport
}

const stages = 7

func newWeeks(b *sim.Bucket) *weeks {
	return &weeks{client: &client{Customer: newCustomer()}, store: b.Store()}
}

// config is config with the clock of these weeks.
func (l *weeks) config(b *sim.Bucket) Config {
	cfg := config(b)
	cfg.clock = func() time.Time { return time.Now().Add(time.Duration(l.ahead.Load())) }
	return cfg
}

// wait lets time pass, for the service and the store.
func (l *weeks) wait(d time.Duration) { l.store.SetSkew(time.Duration(l.ahead.Add(int64(d)))) }

func (l *weeks) live(ctx context.Context, j *Journal) error {
	l.j = j
	free := func(fn func() error) error {
		if l.freeing != nil {
			l.freeing(true)
			defer l.freeing(false)
		}
		return fn()
	}
	for ; l.stage < stages; l.stage++ {
		err := [stages]func() error{
			func() error { return l.drive(ctx, &l.run, 2) },
			func() error { return l.waste(ctx) },
			func() error { return l.retire(ctx) },
			func() error { return free(func() error { return l.bundle(ctx) }) },
			func() error { l.wait(view.Grace + time.Hour); return nil },
			func() error { return free(func() error { return l.remove(ctx) }) },
			func() error { return l.drive(ctx, &l.run, 4) },
		}[l.stage]()
		if err != nil {
			return fmt.Errorf("stage %d: %w", l.stage, err)
		}
	}
	return nil
}

// waste uploads blocks that nobody commits, and has them condemned.
func (l *weeks) waste(ctx context.Context) error {
	if err := l.record(ctx, l.Open()); err != nil {
		return err
	}
	kept := slices.Clone(l.acked)
	var waste []viewtest.Block
	for i := range 3 {
		waste = append(waste, l.Chunk(9000+i, 2000))
	}
	if err := l.upload(ctx, waste...); err != nil {
		return err
	}
	l.acked = kept
	l.j.EndSession(l.Session)
	l.wait(view.Keep + time.Hour)
	var all []Candidate
	for _, b := range waste {
		row, ok, err := l.j.Acked().Block(l.Vault, l.Group, b.Name)
		if err != nil {
			return err
		}
		if ok && row.Count == 0 {
			all = append(all, Candidate{b.Name, row})
		}
	}
	_, err := l.j.Condemn(ctx, all)
	return err
}

// retire retires what has no live block.
func (l *weeks) retire(ctx context.Context) error {
	var empty []segment.Position
	err := eachLive(l.j.store, func(s view.Segment) error {
		if s.Blocks == 0 && s.Key.Position != (segment.Position{Epoch: l.j.claim.Epoch}) {
			empty = append(empty, s.Key.Position)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := l.j.MayDelete(ctx); err != nil {
		return err
	}
	return l.append(ctx, func(tx *Tx) error {
		for _, pos := range empty {
			if err := tx.Record(segment.Retired{Place: pos}); err != nil {
				return err
			}
		}
		return nil
	})
}

func (l *weeks) bundle(ctx context.Context) (err error) {
	l.bundled, err = l.j.Bundle(ctx)
	return err
}

func (l *weeks) remove(ctx context.Context) (err error) {
	l.removed, err = l.j.Remove(ctx, 1000)
	return err
}

// settled checks that after them everything is as it should be: what was retired is gone, and nothing else.
func (l *weeks) settled(t *testing.T, s *sim.Store, j *Journal) {
	t.Helper()
	l.check(t, j)
	checkStore(t, s, j)
	st, err := j.Acked().Stats()
	if err != nil {
		t.Fatal(err)
	}
	if st.Removed < 5 {
		t.Errorf("%d segments are removed", st.Removed)
	}
	there := map[segment.Position]bool{}
	for _, k := range objects(s) {
		there[k.Position] = true
		if _, ok, err := j.Acked().Segment(k.Position); err != nil || !ok {
			t.Errorf("segment %s is there and not known: %v", k.Position, err)
		}
	}
	err = eachLive(j.store, func(s view.Segment) error {
		if !there[s.Key.Position] {
			t.Errorf("segment %s is live and not there", s.Key.Position)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if f := j.Freezes(); len(f) > 0 {
		t.Errorf("frozen: %v", f)
	}
}

func bundleKeys(s *sim.Store) (keys []segment.BundleKey) {
	for _, k := range s.Keys() {
		if p, err := segment.ParseBundleKey(k); err == nil {
			keys = append(keys, p)
		}
	}
	return keys
}

// Segments are bundled and removed; what is left and the bundles are the whole journal, for a start with its view, with
// none, for check and rebuild.
func TestBundleAndRemove(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		b := sim.New(1)
		l := newWeeks(b)
		cfg := l.config(b)
		cfg.Dir = filepath.Join(t.TempDir(), "view")
		j := l.aged(t, cfg)
		if l.bundled.Segments < 10 || l.bundled.Bundles != 1 || l.bundled.Position.Seq+1 != uint64(l.bundled.Segments) {
			t.Errorf("bundled: %+v", l.bundled)
		}
		if l.removed.Segments < 5 || l.removed.Objects != l.removed.Segments || l.removed.Bytes == 0 || l.removed.Unbundled != 0 || l.removed.More {
			t.Errorf("removed: %+v", l.removed)
		}
		l.settled(t, b.Store(), j)
		if r, err := j.Remove(ctx, 1000); err != nil || r != (RemoveReport{}) {
			t.Errorf("removed again: %+v, %v", r, err)
		}
		// The next bundle takes the first one in.
		first := bundleKeys(b.Store())
		if r, err := j.Bundle(ctx); err != nil || r.Bundles != 1 || r.Deleted != 1 || r.Position != j.Position() {
			t.Errorf("bundled again: %+v, %v", r, err)
		}
		second := bundleKeys(b.Store())
		if len(first) != 1 || len(second) != 1 || first[0].First != second[0].First || second[0].Last != j.Position() {
			t.Errorf("bundles: %v, then %v", first, second)
		}
		if upTo, after := j.Bundled(); upTo != j.Position() || after != 0 {
			t.Errorf("bundled up to %s, and %d after it", upTo, after)
		}
		puts := b.Count(sim.OpPut)
		if r, err := j.Bundle(ctx); err != nil || r.Bundles+r.Segments+r.Deleted != 0 || b.Count(sim.OpPut) != puts {
			t.Errorf("nothing to bundle: %+v, %v", r, err)
		}
		want, at, err := j.Digest(ctx)
		if err != nil {
			t.Fatal(err)
		}
		mustClose(t, j)

		if r, err := Check(ctx, cfg, nil); err != nil || r.Digest != want || r.Position != at || len(r.Problems) > 0 {
			t.Fatalf("check: %+v, %v", r, err)
		}
		gets := b.Count(sim.OpGet)
		r, err := Rebuild(ctx, cfg)
		if err != nil || r.Digest != want || r.Position != at {
			t.Fatalf("rebuild: %+v, %v", r, err)
		}
		if n := b.Count(sim.OpGet) - gets; n > 25 {
			t.Errorf("%d reads for a rebuild from one bundle", n)
		}
		for range 2 { // with the view, then without
			j = mustOpen(t, cfg)
			l.settled(t, b.Store(), j)
			if upTo, _ := j.Bundled(); upTo != at {
				t.Errorf("a start says that %s is bundled, not %s", upTo, at)
			}
			mustClose(t, j)
			cfg.Dir = ""
		}
	})
}

// The process dies at each of its writes, applied or not: the next one, from the bucket alone, finds everything that was
// acknowledged, and goes on to the same end.
func TestFreeingCrashesAtEveryWrite(t *testing.T) {
	total := 0
	synctest.Test(t, func(t *testing.T) {
		b := sim.New(1)
		l := newWeeks(b)
		mustClose(t, l.aged(t, l.config(b)))
		total = b.Writes()
	})
	for n := 1; n <= total; n += inShort(5) {
		for _, applied := range []bool{false, true} {
			ok := t.Run(fmt.Sprintf("write %d of %d, applied %v", n, total, applied), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					ctx := context.Background()
					b := sim.New(1)
					l := newWeeks(b)
					b.CrashAt(n, applied)
					if j, err := Open(ctx, l.config(b)); err == nil {
						if err := l.live(ctx, j); err == nil {
							t.Fatal("it survived")
						} else if !errors.Is(err, ErrStopped) && !b.Crashed() {
							t.Fatal(err)
						}
						_ = j.Close(ctx)
					}
					j := mustOpen(t, l.config(b.Store().Connect(2)))
					l.resume(t, j)
					l.check(t, j)
					checkStore(t, b.Store(), j)
					if err := l.live(ctx, j); err != nil {
						t.Fatal(err)
					}
					if _, err := j.Bundle(ctx); err != nil { // what the dead one left of bundles goes
						t.Fatal(err)
					}
					l.settled(t, b.Store(), j)
					if k := bundleKeys(b.Store()); len(k) != 1 {
						t.Errorf("%d bundles: %v", len(k), k)
					}
					mustClose(t, j)
				})
			})
			if !ok {
				return
			}
		}
	}
}

// Each call of Bundle and Remove fails once, in each form (with HOLDFAST_HEAVY; else some); then they are run again.
func TestEveryOperationOfFreeingFailsOnce(t *testing.T) {
	forms := map[string]sim.Fault{
		"failed":  {Err: sim.ErrFault},
		"applied": {Err: sim.ErrFault, Applied: true},
		"late":    {Err: sim.ErrFault, Late: 3 * time.Hour},
		"short":   {Short: true},
		"flip":    {Flip: true},
		"wrong":   {Wrong: true},
		"hidden":  {Hide: true},
	}
	step := 5
	switch {
	case testing.Short():
		step = 25
	case part.Heavy():
		step = 1
	}
	for i, form := range slices.Sorted(maps.Keys(forms)) {
		fault := forms[form]
		t.Run(form, func(t *testing.T) {
			for n := 1 + i%step; ; n += step {
				done := false
				synctest.Test(t, func(t *testing.T) {
					b := sim.New(1)
					l := newWeeks(b)
					var op atomic.Int32
					var on atomic.Bool
					b.OnOp(func(sim.Op, string, int) sim.Fault {
						if on.Load() && int(op.Add(1)) == n {
							return fault
						}
						return sim.Fault{}
					})
					ctx := context.Background()
					j := mustOpen(t, l.config(b))
					l.freeing = on.Store
					for try := 0; ; try++ {
						err := l.live(ctx, j)
						if err == nil {
							break
						}
						if try == 1 {
							t.Fatalf("operation %d: %v", n, err)
						}
					}
					time.Sleep(4 * time.Hour) // what is late has landed
					if _, err := j.Bundle(ctx); err != nil {
						t.Fatalf("operation %d: %v", n, err)
					}
					if _, err := j.RemoveLate(ctx, 1000); err != nil {
						t.Fatalf("operation %d: %v", n, err)
					}
					if _, err := j.Remove(ctx, 1000); err != nil { // a delete that a hidden list had missed
						t.Fatalf("operation %d: %v", n, err)
					}
					l.settled(t, b.Store(), j)
					mustClose(t, j)
					j = mustOpen(t, l.config(b.Store().Connect(2)))
					l.settled(t, b.Store(), j)
					mustClose(t, j)
					done = int(op.Load()) < n
				})
				if t.Failed() {
					t.Fatalf("operation %d", n)
				}
				if done {
					if n < 30 {
						t.Errorf("only %d operations", n)
					}
					return
				}
			}
		})
	}
}

// aged returns a journal with weeks behind it.
func (l *weeks) aged(t *testing.T, cfg Config) *Journal {
	t.Helper()
	j := mustOpen(t, cfg)
	if err := l.live(context.Background(), j); err != nil {
		t.Fatal(err)
	}
	return j
}

// A bundle is damaged, or gone, or a list does not show it. Nothing is removed on its word; as long as the segments are
// there, a start does not need it, and the next Bundle mends it. When they are gone, a start says what is missing.
func TestBundleDamaged(t *testing.T) {
	ways := map[string]func([]byte) []byte{
		"a bit":  func(b []byte) []byte { b[len(b)/2] ^= 1; return b },
		"cut":    func(b []byte) []byte { return b[:len(b)-1] },
		"empty":  func(b []byte) []byte { return b[:0] },
		"gone":   func(b []byte) []byte { return nil },
		"longer": func(b []byte) []byte { return append(b, 0) },
	}
	for way, change := range ways {
		t.Run(way+", with the segments", func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx := context.Background()
				b := sim.New(1)
				l := newWeeks(b)
				j, _ := l.retired(t, b)
				mustClose(t, j)
				bad := bundleKeys(b.Store())[0]
				b.Store().Damage(bad.String(), change)
				j = mustOpen(t, l.config(b))
				l.check(t, j)
				checkStore(t, b.Store(), j)
				l.wait(view.Grace + time.Hour)
				if r, err := j.Remove(ctx, 1000); err != nil || r.Segments+r.Objects != 0 || r.Unbundled == 0 {
					t.Fatalf("removed on the word of a damaged bundle: %+v, %v", r, err)
				}
				if r, err := j.Bundle(ctx); err != nil || r.Segments < 10 || way != "gone" && r.Deleted != 1 {
					t.Fatalf("bundled: %+v, %v", r, err)
				}
				if k := bundleKeys(b.Store()); len(k) != 1 || k[0] == bad {
					t.Fatalf("bundles: %v", k)
				}
				if r, err := j.Remove(ctx, 1000); err != nil || r.Segments < 5 {
					t.Fatalf("removed: %+v, %v", r, err)
				}
				l.settled(t, b.Store(), j)
				mustClose(t, j)
			})
		})
		t.Run(way+", without them", func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx := context.Background()
				b := sim.New(1)
				l := newWeeks(b)
				cfg := l.config(b)
				cfg.Dir = filepath.Join(t.TempDir(), "view")
				j := l.aged(t, cfg)
				mustClose(t, j)
				k := bundleKeys(b.Store())[0]
				b.Store().Damage(k.String(), change)
				_, err := Open(ctx, l.config(b))
				if !errors.Is(err, ErrContradiction) || !strings.Contains(err.Error(), "segment ") || way != "gone" && !strings.Contains(err.Error(), k.String()) {
					t.Fatalf("a start from nothing: %v", err)
				}
				if way == "gone" {
					return
				}
				// The view needs nothing of it. Check says what is wrong.
				_, err = Check(ctx, cfg, nil)
				if !errors.Is(err, ErrContradiction) && !errors.Is(err, ErrDamaged) {
					t.Fatalf("check: %v", err)
				}
				j = mustOpen(t, cfg)
				l.check(t, j)
				if _, err := j.Bundle(ctx); !errors.Is(err, ErrContradiction) {
					t.Errorf("bundled: %v", err)
				}
				mustClose(t, j)
			})
		})
	}
}

// What a bundle shows was acknowledged. A start whose list lacks it says so, and looks again.
func TestBundleShowsWhatIsHidden(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		b := sim.New(1)
		l := newWeeks(b)
		j := mustOpen(t, l.config(b))
		c := l.client
		c.j = j
		run := 0
		if err := c.drive(ctx, &run, 2); err != nil {
			t.Fatal(err)
		}
		if _, err := j.Bundle(ctx); err != nil {
			t.Fatal(err)
		}
		mustClose(t, j)
		all := objects(b.Store())

		// Of the segments in the bundle none needs to be listed but the takeover record of the newest epoch; what is live is
		// looked for.
		s := b.Store().Clone()
		live := all[len(all)-4]
		s.Damage(live.String(), func([]byte) []byte { return nil })
		j = mustOpen(t, l.config(s.Connect(2)))
		if f := j.Freezes(); len(f) != 1 || f[0].Reason != segment.ReasonContradiction || f[0].Place != live.Position {
			t.Errorf("a live segment is gone, and frozen is %v", f)
		}
		mustClose(t, j)

		s = b.Store().Clone()
		s.Damage(all[0].String(), func([]byte) []byte { return nil })
		if _, err := Open(ctx, l.config(s.Connect(3))); !errors.Is(err, ErrContradiction) || !strings.Contains(err.Error(), "takeover record is not listed") {
			t.Errorf("without the takeover record: %v", err)
		}

		// A bundle that does not follow the one before: what is between was acknowledged.
		s = b.Store().Clone()
		k := bundleKeys(s)[0]
		gap := k
		gap.First, gap.Last = segment.Position{Epoch: 1, Seq: k.Last.Seq + 3}, segment.Position{Epoch: 1, Seq: k.Last.Seq + 4}
		if err := s.Connect(4).Put(ctx, gap.String(), []byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(ctx, l.config(s.Connect(5))); !errors.Is(err, ErrContradiction) || !strings.Contains(err.Error(), "holds later ones") {
			t.Errorf("with a gap: %v", err)
		}

		// Two contents, one of them in a bundle.
		s = b.Store().Clone()
		k.Hash[0]++
		if err := s.Connect(6).Put(ctx, k.String(), []byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(ctx, l.config(s.Connect(7))); !errors.Is(err, ErrContradiction) || !strings.Contains(err.Error(), "two contents") {
			t.Errorf("two contents: %v", err)
		}

		// Of an epoch that ended otherwise it is none: it lies in quarantine, and stays there.
		s = b.Store().Clone()
		j = mustOpen(t, l.config(s.Connect(8)))
		mustClose(t, j)
		k.Last = segment.Position{Epoch: 1, Seq: all[len(all)-1].Position.Seq + 1}
		if err := s.Connect(9).Put(ctx, k.String(), []byte("x")); err != nil {
			t.Fatal(err)
		}
		j = mustOpen(t, l.config(s.Connect(10)))
		if q := j.Info().Quarantine; q.Count != 1 || q.Objects[0].Key != k.String() || q.Objects[0].Sweep {
			t.Errorf("in quarantine: %+v", q)
		}
		if q, err := j.Sweep(ctx); err != nil || q.Count != 0 {
			t.Errorf("swept: %+v, %v", q, err)
		}
		c.check(t, j)
		mustClose(t, j)
	})
}

// A list that does not show a bundle once does no harm.
func TestHiddenBundle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := sim.New(1)
		l := newWeeks(b)
		j := l.aged(t, l.config(b))
		mustClose(t, j)
		hidden := 0
		b.OnOp(func(op sim.Op, key string, _ int) sim.Fault {
			if op == sim.OpList && strings.HasSuffix(key, "/bundle/") && hidden == 0 {
				hidden++
				return sim.Fault{Hide: true}
			}
			return sim.Fault{}
		})
		j = mustOpen(t, l.config(b))
		l.settled(t, b.Store(), j)
		if hidden != 1 {
			t.Error("nothing was hidden: the test does not test")
		}
		mustClose(t, j)
	})
}

// A view that stands inside of what is bundled and gone goes on from there; one that stands on another chain is refused.
func TestViewInsideTheBundles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		b := sim.New(1)
		l := newWeeks(b)
		old, err := view.OpenMem()
		if err != nil {
			t.Fatal(err)
		}
		cfg := l.config(b)
		j := mustOpen(t, cfg)
		l.j = j
		if err := l.enrol(ctx); err != nil {
			t.Fatal(err)
		}
		// The old view stands at the newest segment, which holds records only.
		c, err := findChain(ctx, cfg, 1<<63, anyChain)
		if err != nil {
			t.Fatal(err)
		}
		at, hash := c.position()
		if _, err := replay(ctx, cfg, old, c.all()); err != nil {
			t.Fatal(err)
		}
		if err := l.live(ctx, j); err != nil {
			t.Fatal(err)
		}
		mustClose(t, j)
		if _, ok, _ := j.Acked().Segment(at); ok {
			t.Fatal("the test does not test")
		}
		c, err = findChain(ctx, cfg, 1<<63, anyChain)
		if err != nil {
			t.Fatal(err)
		}
		if c.find(at) >= 0 {
			t.Fatalf("segment %s is still there", at)
		}
		for _, is := range []bool{true, false} {
			if ok, err := c.has(ctx, cfg, at, hash); err != nil || ok != is {
				t.Errorf("segment %s is part of the chain: %v, %v", at, ok, err)
			}
			hash[0]++
		}
		cfg.Store = old
		j = mustOpen(t, cfg)
		if i := j.Info(); i.Rebuilt || i.Replayed == 0 {
			t.Errorf("the view was not used: %+v", i)
		}
		l.settled(t, b.Store(), j)
		mustClose(t, j)
	})
}

// What lands once more after it was removed is deleted again, and nothing else: not what is live or retired, not what is
// in quarantine, not what is not acknowledged.
func TestRemoveLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		b := sim.New(1)
		l := newWeeks(b)
		bodies := map[string][]byte{}
		l.freeing = func(on bool) {
			for _, k := range objects(b.Store()) {
				if raw, err := b.Get(ctx, k.String(), 0, -1); err == nil {
					bodies[k.String()] = raw
				}
			}
		}
		j := l.aged(t, l.config(b))
		l.freeing = nil
		if err := l.retire(ctx); err != nil { // some are retired and not due
			t.Fatal(err)
		}
		there := b.Store().Keys()
		late := 0
		for key, raw := range bodies {
			k, _ := segment.ParseKey(key)
			if !slices.Contains(there, key) {
				late++
				if late%2 == 0 { // under another nonce
					k.Nonce[0]++
				}
				if err := b.Put(ctx, k.String(), raw); err != nil {
					t.Fatal(err)
				}
			}
		}
		ahead := segment.Key{Cell: testCell, Position: segment.Position{Epoch: 1, Seq: j.Position().Seq + 5}, Trailer: 500}
		if err := b.Put(ctx, ahead.String(), []byte("on its way")); err != nil {
			t.Fatal(err)
		}
		there = append(there, ahead.String())
		slices.Sort(there)
		if late < 5 {
			t.Fatalf("%d were removed", late)
		}
		if q, err := j.Quarantine(ctx); err != nil || q.Count != 0 {
			t.Errorf("late landings are no quarantine: %+v, %v", q, err)
		}
		if r, err := j.RemoveLate(ctx, 2); err != nil || r.Objects != 2 || !r.More {
			t.Errorf("two: %+v, %v", r, err)
		}
		if r, err := j.RemoveLate(ctx, 1000); err != nil || r.Objects != late-2 || r.More || r.Segments != 0 {
			t.Errorf("the others: %+v, %v", r, err)
		}
		if now := b.Store().Keys(); !slices.Equal(now, there) {
			t.Errorf("there were\n%s\nand now\n%s", strings.Join(there, "\n"), strings.Join(now, "\n"))
		}
		// Something else in the place of what was removed is for a person to look at.
		for key, raw := range bodies {
			if k, _ := segment.ParseKey(key); !slices.Contains(there, key) {
				k.Hash[0]++
				if err := b.Put(ctx, k.String(), raw); err != nil {
					t.Fatal(err)
				}
				if r, err := j.RemoveLate(ctx, 1000); !errors.Is(err, ErrContradiction) || r.Objects != 0 {
					t.Errorf("another content: %+v, %v", r, err)
				}
				break
			}
		}
		mustClose(t, j)
	})
}

// Nothing is deleted while deleting is frozen, before the grace is over, without a bundle, or by an owner that was
// replaced.
func TestRemoveRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		b := sim.New(1)
		l := newWeeks(b)
		j := mustOpen(t, l.config(b))
		l.j = j
		if err := errors.Join(l.drive(ctx, &l.run, 2), l.retire(ctx)); err != nil {
			t.Fatal(err)
		}
		before := b.Store().Keys()
		nothing := func(what string, r RemoveReport, err, want error) {
			t.Helper()
			if r.Objects != 0 || r.Segments != 0 || !errors.Is(err, want) || (err == nil) != (want == nil) {
				t.Errorf("%s: %+v, %v", what, r, err)
			}
			for _, k := range before {
				if !slices.Contains(b.Store().Keys(), k) {
					t.Fatalf("%s: %s is gone", what, k)
				}
			}
		}
		r, err := j.Remove(ctx, 1000)
		nothing("at once", r, err, nil)
		l.wait(view.Grace + time.Hour)
		r, err = j.Remove(ctx, 1000)
		nothing("not bundled", r, err, nil)
		if r.Unbundled == 0 {
			t.Errorf("not bundled: %+v", r)
		}
		if _, err := j.Bundle(ctx); err != nil {
			t.Fatal(err)
		}
		b.Store().SetSkew(time.Duration(l.ahead.Load()) + time.Hour)
		r, err = j.Remove(ctx, 1000)
		nothing("frozen", r, err, view.ErrFrozen)
		r, err = j.RemoveLate(ctx, 1000)
		nothing("frozen, late", r, err, view.ErrFrozen)
		l.wait(0)
		time.Sleep(3 * time.Hour)
		if _, err := j.Thaw(ctx, "Zoë", "the clock is right"); err != nil && !errors.Is(err, ErrThawed) {
			t.Fatal(err)
		}

		cfg := l.config(b.Store().Connect(2))
		cfg.Host, cfg.Takeover = hostB, true
		heir := mustOpen(t, cfg)
		r, err = j.Remove(ctx, 1000)
		nothing("replaced", r, err, ErrLost)
		<-j.Stopped()
		_ = j.Close(ctx)
		if r, err := heir.Remove(ctx, 3); err != nil || r.Objects != 3 || r.Segments != 3 || !r.More {
			t.Errorf("three: %+v, %v", r, err)
		}
		l.j = heir
		l.check(t, heir)
		checkStore(t, b.Store(), heir)
		mustClose(t, heir)
	})
}

// Two contents at the place of a retired segment are for a person: nothing there is deleted.
func TestRemoveMeetsAnotherContent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		b := sim.New(1)
		l := newWeeks(b)
		j := mustOpen(t, l.config(b))
		l.j = j
		if err := errors.Join(l.drive(ctx, &l.run, 1), l.retire(ctx), l.bundle(ctx)); err != nil {
			t.Fatal(err)
		}
		l.wait(view.Grace + time.Hour)
		page, err := j.store.Retired(segment.Position{}, 1)
		if err != nil {
			t.Fatal(err)
		}
		k := page[0].Key
		k.Nonce[0]++
		k.Hash[0]++
		if err := b.Put(ctx, k.String(), []byte("x")); err != nil {
			t.Fatal(err)
		}
		if r, err := j.Remove(ctx, 1000); !errors.Is(err, ErrContradiction) || r.Objects != 0 {
			t.Errorf("%+v, %v", r, err)
		}
		for _, k := range []segment.Key{k, page[0].Key} {
			if !slices.Contains(b.Store().Keys(), k.String()) {
				t.Errorf("%s is gone", k)
			}
		}
		mustClose(t, j)
	})
}

// Bundles are full at last: a thousand trailers each, which nobody writes again.
func TestBundlesFill(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		b := sim.New(1)
		l := newWeeks(b)
		j := mustOpen(t, l.config(b))
		c := l.client
		c.j = j
		if err := c.enrol(ctx); err != nil {
			t.Fatal(err)
		}
		written := int64(0)
		for n := range 3 {
			for range 600 {
				if err := c.append(ctx, func(tx *Tx) error { return tx.Record(segment.Metered{Account: c.ID, Names: 1}) }); err != nil {
					t.Fatal(err)
				}
			}
			r, err := j.Bundle(ctx)
			if err != nil || r.Position != j.Position() {
				t.Fatalf("%+v, %v", r, err)
			}
			written += r.Bytes
			var have []int
			for _, k := range bundleKeys(b.Store()) {
				have = append(have, int(k.Last.Seq-k.First.Seq)+1)
			}
			all := int(j.Position().Seq) + 1
			want := [][]int{{all}, {1024, all - 1024}, {1024, all - 1024}}[n]
			if !slices.Equal(have, want) {
				t.Errorf("bundles of %v segments, not %v", have, want)
			}
		}
		checkStore(t, b.Store(), j)
		mustClose(t, j)
	})
}

// SCENARIOS S4: after years of removed segments the disk is lost. The bundles and what is left make the same view.
func TestScenarioS4FromBundles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		b := sim.New(1)
		l := newWeeks(b)
		cfg := l.config(b)
		cfg.Dir = filepath.Join(t.TempDir(), "view")
		for year := range 4 {
			j, err := Open(ctx, cfg)
			if err != nil {
				t.Fatal(err)
			}
			if l == nil {
				l = newWeeks(b)
			}
			l.stage = 0
			if year > 0 {
				l.resume(t, j)
				l.run = 2 // once more, as far as it is not there
			}
			if err := l.live(ctx, j); err != nil {
				t.Fatalf("year %d: %v", year, err)
			}
			l.check(t, j)
			mustClose(t, j)
		}
		j := mustOpen(t, cfg)
		want, at, err := j.Digest(ctx)
		if err != nil {
			t.Fatal(err)
		}
		st, _ := j.Acked().Stats()
		if st.Removed < 20 {
			t.Errorf("%d segments removed", st.Removed)
		}
		mustClose(t, j)
		cfg.Dir = filepath.Join(t.TempDir(), "another")
		r, err := Rebuild(ctx, cfg)
		if err != nil || r.Digest != want || r.Position != at {
			t.Fatalf("%+v, %v; want %x at %s", r, err, want, at)
		}
		j = mustOpen(t, cfg)
		l.settled(t, b.Store(), j)
		mustClose(t, j)
	})
}

// Two owners: the one that was replaced had sent a delete of everything that it could, of retired segments, of a bundle that
// became part of another; all of these deletes land at any moment of the next owner's life, which bundles and removes
// as well. Nothing that anybody needs goes.
func TestLateDeletesOfAnEarlierOwner(t *testing.T) {
	puts := 0
	for n := 1; n == 1 || n <= puts; n += 3 {
		synctest.Test(t, func(t *testing.T) {
			ctx := context.Background()
			b := sim.New(1)
			l := newWeeks(b)
			j := mustOpen(t, l.config(b))
			l.j = j
			must := func(err error) {
				t.Helper()
				if err != nil {
					t.Fatal(err)
				}
			}
			must(l.drive(ctx, &l.run, 2))
			must(l.bundle(ctx))
			must(l.retire(ctx))
			l.wait(view.Grace + time.Hour)
			// From here on no delete of this owner arrives before the test says so.
			deletes := 0
			b.OnOp(func(op sim.Op, _ string, _ int) sim.Fault {
				if op == sim.OpDelete {
					deletes++
					return sim.Fault{Err: sim.ErrFault, Late: sim.UntilLand}
				}
				return sim.Fault{}
			})
			short, stop := context.WithTimeout(ctx, 5*time.Minute)
			defer stop()
			_, err := j.Bundle(short) // the first bundle becomes part of another
			if err == nil {
				t.Fatal("the delete of a bundle was not sent")
			}
			short, stop = context.WithTimeout(ctx, 5*time.Minute)
			defer stop()
			if r, err := j.Remove(short, 1000); err == nil || r.Segments != 0 {
				t.Fatalf("%+v, %v", r, err)
			}
			if deletes < 2 {
				t.Fatalf("%d deletes", deletes)
			}
			b.Crash()
			_ = j.Close(ctx)

			next := b.Store().Connect(2)
			calls := 0
			next.OnOp(func(op sim.Op, _ string, _ int) sim.Fault {
				if op.Writes() {
					if calls++; calls == n {
						b.Store().Land()
					}
				}
				return sim.Fault{}
			})
			j = mustOpen(t, l.config(next))
			l.resume(t, j)
			l.check(t, j)
			l.stage = 2
			must(l.live(ctx, j))
			puts = calls
			b.Store().Land()
			if _, err := j.Bundle(ctx); err != nil {
				t.Fatal(err)
			}
			l.settled(t, b.Store(), j)
			mustClose(t, j)
			j = mustOpen(t, l.config(b.Store().Connect(3)))
			l.settled(t, b.Store(), j)
			mustClose(t, j)
		})
		if t.Failed() {
			t.Fatalf("landed at write %d", n)
		}
	}
	if puts < 20 {
		t.Errorf("only %d writes", puts)
	}
}

// retired returns a journal with segments that are retired, of which the trailers are in a bundle.
func (l *weeks) retired(t *testing.T, b *sim.Bucket) (*Journal, []view.Segment) {
	t.Helper()
	ctx := context.Background()
	l.j = mustOpen(t, l.config(b))
	if err := errors.Join(l.drive(ctx, &l.run, 4), l.retire(ctx), l.bundle(ctx)); err != nil {
		t.Fatal(err)
	}
	all, err := l.j.store.Retired(segment.Position{}, 100)
	if err != nil || len(all) < 5 {
		t.Fatal(len(all), err)
	}
	return l.j, all
}

// due returns a journal with segments that may be deleted now, and what deletes them: Remove, or, of those that it
// deleted and that landed again, RemoveLate.
func (l *weeks) due(t *testing.T, b *sim.Bucket, late bool) (j *Journal, all []view.Segment, run func(context.Context) (RemoveReport, error)) {
	t.Helper()
	ctx := context.Background()
	j, all = l.retired(t, b)
	l.wait(view.Grace + time.Hour)
	if !late {
		return j, all, func(ctx context.Context) (RemoveReport, error) { return j.Remove(ctx, 1000) }
	}
	before := b.Store().Clone()
	if r, err := j.Remove(ctx, 1000); err != nil || r.Segments != len(all) {
		t.Fatalf("%+v, %v", r, err)
	}
	for _, s := range all {
		if err := b.Put(ctx, s.Key.String(), body(t, before, s.Key.String())); err != nil {
			t.Fatal(err)
		}
	}
	return j, all, func(ctx context.Context) (RemoveReport, error) { return j.RemoveLate(ctx, 1000) }
}

// A run that was cut off while it deleted, or could not look at a segment, is no reason to leave that alone: the next one
// deletes it.
func TestRemoveAfterOneThatWasCutOff(t *testing.T) {
	for _, late := range []bool{false, true} {
		for _, way := range []string{"cut off", "not looked at"} {
			t.Run(fmt.Sprintf("late %v, %s", late, way), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					b := sim.New(1)
					l := newWeeks(b)
					j, all, run := l.due(t, b, late)
					ctx, cut := context.WithCancel(context.Background())
					defer cut()
					bad := all[1].Key.String()
					b.OnOp(func(op sim.Op, key string, _ int) (f sim.Fault) {
						switch {
						case way == "cut off" && op == sim.OpDelete && key == bad:
							cut()
							f.Hang = true
						case way == "not looked at" && op == sim.OpGet && key == bad:
							f.Err = errors.New("broken")
						}
						return f
					})
					if r, err := run(ctx); err == nil || r.Objects != 1 {
						t.Errorf("with a fault: %+v, %v", r, err)
					}
					b.OnOp(nil)
					if r, err := run(context.Background()); err != nil || r.Objects != len(all)-1 {
						t.Errorf("%+v, %v", r, err)
					}
					l.settled(t, b.Store(), j)
					mustClose(t, j)
				})
			})
		}
	}
}

// A delete that fails for ever keeps no other segment, and takes its time once a day; when the store does it, the segment goes.
func TestDeletesThatFailForEver(t *testing.T) {
	for _, late := range []bool{false, true} {
		t.Run(fmt.Sprint("late ", late), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx := context.Background()
				b := sim.New(1)
				l := newWeeks(b)
				j, all, run := l.due(t, b, late)
				tried := 0
				b.OnOp(func(op sim.Op, key string, _ int) (f sim.Fault) {
					if op == sim.OpDelete && (key == all[0].Key.String() || key == all[2].Key.String()) {
						tried++
						f.Err = errors.New("no")
					}
					return f
				})
				if r, err := run(ctx); err != nil || r.Objects != len(all)-2 || tried == 0 {
					t.Errorf("two of %d fail: %+v, %v; tried %d times", len(all), r, err, tried)
				}
				tried = 0
				if r, err := run(ctx); err != nil || r.Objects != 0 || tried > 0 {
					t.Errorf("at once again: %+v, %v; tried %d times", r, err, tried)
				}
				time.Sleep(undeletedFor)
				if r, err := run(ctx); err != nil || r.Objects != 0 || tried == 0 {
					t.Errorf("a day later: %+v, %v; tried %d times", r, err, tried)
				}
				b.OnOp(nil)
				time.Sleep(undeletedFor)
				if r, err := run(ctx); err != nil || r.Objects != 2 || len(j.undeleted) > 0 {
					t.Errorf("when it works: %+v, %v", r, err)
				}
				l.settled(t, b.Store(), j)
				mustClose(t, j)
			})
		})
	}
}

// A store that deletes nothing ends a run, which does not wait for each.
func TestNoDeleteWorks(t *testing.T) {
	for _, late := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			b := sim.New(1)
			l := newWeeks(b)
			j, all, run := l.due(t, b, late)
			if len(all) <= maxFailed {
				t.Fatal(len(all))
			}
			down := errors.New("down")
			b.OnOp(func(op sim.Op, _ string, _ int) (f sim.Fault) {
				if op == sim.OpDelete {
					f.Err = down
				}
				return f
			})
			within(t, (maxFailed+1)*getPatience, "a run", func() {
				if r, err := run(context.Background()); !errors.Is(err, down) || r.Objects != 0 {
					t.Errorf("late %v: %+v, %v", late, r, err)
				}
			})
			mustClose(t, j)
		})
	}
}

// A segment that landed twice goes with both landings.
func TestRemoveTwins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		b := sim.New(1)
		l := newWeeks(b)
		j, retired := l.retired(t, b)
		for i, s := range retired {
			raw, err := b.Get(ctx, s.Key.String(), 0, -1)
			if err != nil {
				t.Fatal(err)
			}
			s.Key.Nonce[0]++
			if i == 1 { // one landing of it is damaged: it goes all the same
				raw[len(raw)-1] ^= 1
			}
			if err := b.Put(ctx, s.Key.String(), raw); err != nil {
				t.Fatal(err)
			}
		}
		l.wait(view.Grace + time.Hour)
		if r, err := j.Remove(ctx, 1000); err != nil || r.Segments != len(retired) || r.Objects != 2*len(retired) {
			t.Errorf("%+v, %v", r, err)
		}
		l.settled(t, b.Store(), j)
		mustClose(t, j)
	})
}

// corrupting is a bucket that stores something else than the first bundle that it is given.
type corrupting struct {
	*sim.Bucket
	done atomic.Bool
}

func (b *corrupting) Put(ctx context.Context, key string, body []byte) error {
	if strings.Contains(key, "/bundle/") && !b.done.Swap(true) {
		body = slices.Clone(body)
		body[len(body)/2] ^= 1
	}
	return b.Bucket.Put(ctx, key, body)
}

// A bundle counts when it was read back and is what was written; one that is not is replaced.
func TestBundleIsReadBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		b := sim.New(1)
		l := newWeeks(b)
		cfg := l.config(b)
		cfg.Bucket = &corrupting{Bucket: b}
		j := mustOpen(t, cfg)
		if err := l.live(ctx, j); err != nil {
			t.Fatal(err)
		}
		if l.bundled.Bundles != 1 || l.bundled.Deleted != 1 {
			t.Errorf("%+v", l.bundled)
		}
		if k := bundleKeys(b.Store()); len(k) != 1 {
			t.Errorf("bundles: %v", k)
		}
		l.settled(t, b.Store(), j)
		mustClose(t, j)
	})
}

// What comes after a bundle continues it: a start reads the first of it, however much there is.
func TestBundleIsLinked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		b := sim.New(1)
		l := newWeeks(b)
		j := mustOpen(t, l.config(b))
		l.j = j
		for _, stage := range []func() error{
			func() error { return l.drive(ctx, &l.run, 2) }, func() error { return l.bundle(ctx) }, func() error { return l.drive(ctx, &l.run, 6) },
		} {
			if err := stage(); err != nil {
				t.Fatal(err)
			}
		}
		mustClose(t, j)
		k := bundleKeys(b.Store())[0]
		if after := j.Position().Seq - k.Last.Seq; after < 2*tail {
			t.Fatalf("%d segments after the bundle", after)
		}
		raw, err := b.Get(ctx, k.String(), 0, -1)
		if err != nil {
			t.Fatal(err)
		}
		// The bundle says that it ends with another segment; the one that it holds is not listed.
		for _, o := range objects(b.Store()) {
			if o.Position == k.Last {
				b.Store().Damage(o.String(), func([]byte) []byte { return nil })
			}
		}
		b.Store().Damage(k.String(), func([]byte) []byte { return nil })
		k.Hash[0]++
		if err := b.Put(ctx, k.String(), raw); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(ctx, l.config(b)); !errors.Is(err, ErrContradiction) || !strings.Contains(err.Error(), "does not continue") {
			t.Errorf("a start: %v", err)
		}
	})
}

// Before a retired segment is deleted, it is looked up once more whether anything lives there.
func TestDeadIsLookedUpOnceMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		b := sim.New(1)
		l := newWeeks(b)
		j := l.aged(t, l.config(b))
		live, dead := 0, 0
		for _, k := range objects(b.Store()) {
			s, _, err := j.Acked().Segment(k.Position)
			if err != nil {
				t.Fatal(err)
			}
			events := caught(t, func() { err = j.dead(ctx, k, []found{{k, int64(s.Size)}}) })
			switch {
			case s.Blocks > 0:
				live++
				if !errors.Is(err, view.ErrDamaged) || len(events) != 1 {
					t.Errorf("segment %s has %d live blocks: %v, %d events", k.Position, s.Blocks, err, len(events))
				}
			default:
				dead++
				if err != nil {
					t.Error(err)
				}
			}
		}
		if live == 0 || dead == 0 {
			t.Errorf("%d live, %d dead", live, dead)
		}
		mustClose(t, j)
	})
}

// Bundles of one range stay by their nonces, whoever looks: of two owners that delete, both keep the same one.
func TestWhichBundleStays(t *testing.T) {
	at := func(first, last uint64, nonce byte) foundBundle {
		return foundBundle{segment.BundleKey{First: segment.Position{Epoch: 1, Seq: first}, Last: segment.Position{Epoch: 1, Seq: last}, Nonce: [8]byte{nonce}}, 1}
	}
	all := []foundBundle{at(0, 9, 1), at(0, 9, 2), at(0, 5, 0), at(3, 9, 0), at(4, 12, 7), at(10, 12, 1), at(13, 14, 1)}
	for _, a := range all {
		for _, b := range all {
			if a.holds(b) && b.holds(a) || a == b && a.holds(b) {
				t.Errorf("%v and %v would delete one another", a.key, b.key)
			}
			for _, c := range all {
				if a.holds(b) && b.holds(c) && !a.holds(c) {
					t.Errorf("%v holds %v, that %v, and the first not the last", a.key, b.key, c.key)
				}
			}
		}
	}
	if !all[0].holds(all[1]) || !all[0].holds(all[2]) || !all[1].holds(all[3]) || all[0].holds(all[4]) || !all[4].holds(all[5]) {
		t.Error("what is part of what")
	}
}

// SCENARIOS S5: the owner is paused before or after any of its calls while it bundles and removes. Another one takes over and
// does the same. Whatever the old one does when it goes on, all that was acknowledged is there, and a start from
// nothing finds it. (With HOLDFAST_HEAVY every call.)
func TestScenarioS5PausedWhileFreeing(t *testing.T) {
	step := 11
	if part.Heavy() {
		step = 1
	}
	for i, after := range []bool{false, true} {
		for k := 1 + i*step/2; ; k += step {
			reached := false
			synctest.Test(t, func(t *testing.T) { reached = pausedWhileFreeing(t, k, after) })
			if t.Failed() {
				t.Fatalf("paused at call %d, after it: %v", k, after)
			}
			if !reached {
				if t.Logf("%d calls at most", k); k < 40 {
					t.Errorf("only %d calls", k)
				}
				break
			}
		}
	}
}

func pausedWhileFreeing(t *testing.T, k int, after bool) bool {
	ctx := context.Background()
	b := sim.New(1)
	l := newWeeks(b)
	old := b.Store().Connect(2)
	g := newGate(old, 1<<30, after)
	j := mustOpen(t, l.config(old))
	l.j = j
	if err := errors.Join(l.drive(ctx, &l.run, 2), l.bundle(ctx), l.retire(ctx), l.drive(ctx, &l.run, 3)); err != nil {
		t.Fatal(err)
	}
	l.wait(view.Grace + time.Hour)
	g.mu.Lock()
	g.n = g.ops + k
	g.mu.Unlock()
	done := make(chan error, 1)
	go func() {
		_, err := j.Bundle(ctx)
		_, no := j.Remove(ctx, 1000)
		done <- errors.Join(err, no)
	}()
	select {
	case <-g.paused:
	case err := <-done:
		g.mu.Lock()
		g.n = 0 // what the test reads now is not paused
		g.mu.Unlock()
		if err != nil {
			t.Fatal(err)
		}
		l.settled(t, b.Store(), j)
		mustClose(t, j)
		return false
	}
	synctest.Wait()

	cfg := l.config(b.Store().Connect(3))
	cfg.Host, cfg.Takeover = hostB, true
	heir := mustOpen(t, cfg)
	other, run := &client{Customer: viewtest.New(2), j: heir}, 0
	if err := other.drive(ctx, &run, 1); err != nil {
		t.Fatal(err)
	}
	if _, err := heir.Bundle(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := heir.Remove(ctx, 1000); err != nil {
		t.Fatal(err)
	}

	close(g.opened)
	if err := <-done; err != nil && !errors.Is(err, ErrStopped) && !errors.Is(err, ErrLost) {
		t.Logf("paused at %s, it ended with: %v", g.where(), err)
	}
	l.j = j
	if err := l.append(ctx, func(tx *Tx) error { return tx.Record(segment.Account{ID: holdfast.AccountID{9}, Name: "late"}) }); !errors.Is(err, ErrLost) {
		t.Fatalf("paused at %s, it still appends: %v", g.where(), err)
	}
	_ = j.Close(ctx)

	l.resume(t, heir)
	for range 2 { // now, and from nothing
		if _, err := heir.Sweep(ctx); err != nil { // a record that says what is gone, of an epoch that was over
			t.Fatal(err)
		}
		if _, err := heir.RemoveLate(ctx, 1000); err != nil {
			t.Fatal(err)
		}
		other.j = heir
		other.check(t, heir)
		l.settled(t, b.Store(), heir)
		mustClose(t, heir)
		heir = mustOpen(t, cfg)
	}
	mustClose(t, heir)
	return true
}

// Where bundles overlap, one that is damaged is not needed, though segments are gone.
func TestOverlappingBundles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		b := sim.New(1)
		l := newWeeks(b)
		j := l.aged(t, l.config(b))
		first := bundleKeys(b.Store())[0]
		raw, err := b.Get(ctx, first.String(), 0, -1)
		if err != nil {
			t.Fatal(err)
		}
		if r, err := j.Bundle(ctx); err != nil || r.Deleted != 1 {
			t.Fatalf("%+v, %v", r, err)
		}
		mustClose(t, j)
		second := bundleKeys(b.Store())[0]
		if err := b.Put(ctx, first.String(), raw); err != nil { // as if it had not been deleted
			t.Fatal(err)
		}
		b.Store().Damage(second.String(), func(b []byte) []byte { b[len(b)/2] ^= 1; return b })
		j = mustOpen(t, l.config(b))
		l.settled(t, b.Store(), j)
		mustClose(t, j)
	})
}

// Who reads a block where it was, out of a segment that is retired and being removed, is told that it is not there; deleting
// does not freeze for that.
func TestReadOfWhatIsRemoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		b := sim.New(1)
		l := newWeeks(b)
		j := mustOpen(t, l.config(b))
		l.j = j
		if err := errors.Join(l.drive(ctx, &l.run, 1), l.retire(ctx)); err != nil {
			t.Fatal(err)
		}
		retired, err := j.store.Retired(segment.Position{}, 1)
		if err != nil {
			t.Fatal(err)
		}
		b.Store().Damage(retired[0].Key.String(), func([]byte) []byte { return nil })
		if _, err := j.ReadBlock(ctx, view.Block{Pos: retired[0].Key.Position, Len: 10}); !errors.Is(err, bucket.ErrNotFound) {
			t.Errorf("read: %v", err)
		}
		if f := j.Freezes(); len(f) > 0 {
			t.Errorf("frozen: %v", f)
		}
		mustClose(t, j)
	})
}
