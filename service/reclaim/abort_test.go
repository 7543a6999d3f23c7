package reclaim

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"holdfast/internal/part"
	"holdfast/service/bucket/sim"
	"holdfast/service/segment"
	"holdfast/service/view"
)

// littered is a world in which there is something to condemn, to clean and to retire, and, if there are enough small
// archives, to merge.
func littered(t *testing.T, small int) *world {
	w := newWorld(t)
	w.halves(20_000, 0, 60)
	for i := range small { // tiny segments
		w.backup(500, 1000+i)
	}
	w.backup(20_000, seq(100, 130)...)
	w.remove(small + 2)
	w.remove(0)
	w.check()
	return w
}

// state is what a run comes to.
type state struct {
	live, retired, blocks, bytes uint64
}

func (w *world) state() state {
	w.Helper()
	s, err := w.j.Acked().Stats()
	w.must(err)
	return state{s.Segments, s.Retired, s.Blocks, s.Bytes}
}

// within reports whether s is what want is, but for a few segments of records that each process adds, and of copies.
func (s state) within(want state, segments uint64) bool {
	return s.blocks == want.blocks && s.bytes == want.bytes && s.live <= want.live+segments
}

// TestAbortAtEveryWrite: the process ends at the n-th write of a run, applied or not, for every n. The next one finishes the
// job: each block is freed once (the view counts them), nothing that is kept suffers, and nothing is left behind.
func TestAbortAtEveryWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := littered(t, few)
		w.close()
		base, kept := w.store.Clone(), w.kept
		again := func() {
			w.store, w.spending = base.Clone(), new(Spending)
			w.bucket = w.store.Connect(3)
			w.open()
		}
		again()
		w.run(Config{})
		want, writes := w.state(), w.bucket.Writes()
		w.check()
		w.close()
		if writes < 8 {
			t.Fatalf("a run makes %d writes", writes)
		}
		for n := 1; ; n++ {
			reached := false
			for _, applied := range []bool{false, true} {
				again()
				w.kept = kept
				w.bucket.CrashAt(n, applied)
				_, err := Run(context.Background(), Config{Journal: w.j, Spending: w.spending})
				if crashed := w.bucket.Crashed(); crashed != (err != nil) {
					t.Fatalf("write %d, applied %v: crashed %v, %v", n, applied, crashed, err)
				} else if crashed {
					reached = true
				}
				w.restart()
				w.check()
				w.run(Config{})
				w.check()
				if got := w.state(); !got.within(want, 4) {
					t.Errorf("write %d, applied %v: %+v, want about %+v", n, applied, got, want)
				}
				if r := w.run(Config{}); r.Progress() != 0 {
					t.Errorf("write %d, applied %v: a third run %s", n, applied, r)
				}
				w.close()
			}
			if !reached {
				break
			}
		}
	})
}

// TestScenarioR2Aborts: 142 runs in a row are aborted, at every point that a run has. What is in the bucket afterwards, and
// what the next process has to know, is within a constant of a run that was not aborted.
func TestScenarioR2Aborts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := littered(t, 4)
		w.close()
		base := w.store.Clone()
		w.open()
		w.run(Config{})
		want, bytes, writes := w.state(), w.store.Bytes(), w.bucket.Writes()
		w.close()

		w.store = base
		w.bucket = w.store.Connect(3)
		w.open()
		freed := 0
		for i := range 142 {
			w.bucket.CrashAt(1+i%writes, i/writes%2 == 1)
			r, err := Run(context.Background(), Config{Journal: w.j, Spending: w.spending})
			if err != nil && !errors.Is(err, sim.ErrCrashed) && !w.bucket.Crashed() {
				t.Fatal(err)
			}
			freed += r.Condemned.Count
			w.restart()
		}
		w.run(Config{})
		w.check()
		got := w.state()
		if !got.within(want, 3*few) {
			t.Errorf("after 142 aborts %+v, want about %+v", got, want)
		}
		// Each process leaves its takeover, a few hundred bytes of records and its epochs.
		if most := bytes + 142*4096; w.store.Bytes() > most {
			t.Errorf("after 142 aborts there are %d bytes in the bucket, and %d without", w.store.Bytes(), bytes)
		}
		w.close()
	})
}

// TestEveryCallFails: each call to the bucket of a run fails once, applied or not. The run does all the same what it
// would do.
func TestEveryCallFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		small := 4
		if part.Heavy() {
			small = few
		}
		w := littered(t, small)
		w.close()
		base := w.store.Clone()
		want := state{}
		for n := 0; ; n++ { // 0 fails none
			reached := false
			for _, f := range []sim.Fault{{Err: errors.New("no")}, {Err: errors.New("no"), Applied: true}} {
				w.store, w.spending = base.Clone(), new(Spending)
				w.bucket = w.store.Connect(3)
				w.open()
				calls := 0
				w.bucket.OnOp(func(op sim.Op, _ string, _ int) sim.Fault {
					if op == sim.OpNow { // nothing is deleted while the clock cannot be read
						return sim.Fault{}
					}
					if calls++; calls == n {
						reached = true
						return f
					}
					return sim.Fault{}
				})
				w.run(Config{})
				w.bucket.OnOp(nil)
				w.check()
				if n == 0 {
					want = w.state()
				} else if got := w.state(); got != want {
					t.Errorf("call %d: %+v, want %+v", n, got, want)
				}
				w.close()
			}
			if n > 0 && !reached {
				break
			}
		}
	})
}

// TestFrozen: nothing is freed while deleting is frozen, a run says why, and goes on afterwards.
func TestFrozen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := littered(t, 4)
		defer w.close()
		before := w.state()
		w.store.SetSkew(-view.Keep)
		r := w.run(Config{})
		if got := w.state(); got.blocks != before.blocks || got.retired != before.retired || r.Progress() != 0 || r.More || len(r.Left) != 1 {
			t.Errorf("%+v: %+v after %+v", r, got, before)
		}
		if want := "nothing is freed while deleting is frozen: "; len(r.Left) == 1 && r.Left[0][:len(want)] != want {
			t.Errorf("it says %q", r.Left)
		}
	})
}

// TestNothingCanBeRead: a run that fails to read whatever it wants to copy fails, and says so; what needs no copy is freed
// all the same. One that meets damage goes on with the rest and does not fail.
func TestNothingCanBeRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := littered(t, 4)
		defer w.close()
		var bad []string
		for _, k := range w.store.Keys() {
			if _, err := segment.ParseKey(k); err == nil {
				bad = append(bad, k)
			}
		}
		w.bucket.OnOp(func(op sim.Op, key string, _ int) sim.Fault {
			if op == sim.OpGet && slices.Contains(bad, key) {
				return sim.Fault{Err: errors.New("cursed")}
			}
			return sim.Fault{}
		})
		r, err := Run(context.Background(), Config{Journal: w.j, Spending: w.spending})
		if err == nil || !strings.Contains(err.Error(), "nothing could be copied") || r.Condemned.Count == 0 || r.Retired.Count == 0 || r.Cleaned.Bytes != 0 || r.Unread == 0 {
			t.Errorf("%+v, %v", r, err)
		}
		w.bucket.OnOp(nil)
		if r := w.run(Config{}); r.Cleaned.Bytes == 0 {
			t.Errorf("when it can be read again: %s", r)
		}
		w.check()
	})
}
