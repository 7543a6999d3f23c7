package journal

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"holdfast"
	"holdfast/service/bucket/sim"
	"holdfast/service/segment"
	"holdfast/service/view"
)

// reclaimed runs the job twice, without stops, and a checkpoint between.
func (w *freeing) reclaimed(j *Journal) error {
	goOn := func(string) {}
	if err := reclaimAll(j, w.pass, goOn); err != nil {
		return err
	}
	if _, err := j.Checkpoint(context.Background()); err != nil {
		return err
	}
	return reclaimAll(j, w.pass, goOn)
}

// newDeadCell returns what newDead begins others with.
func newDeadCell(t *testing.T) (base *cell) {
	synctest.Test(t, func(t *testing.T) {
		w := newDead(t, nil)
		base = w.cell()
		mustClose(t, w.j)
	})
	return base
}

// TestScenarioS4CrashInEveryJob lets the process die at each of its writes while it condemns, moves, retires, bundles, deletes and
// removes, and makes a checkpoint, applied or not, and its disk is gone as well. What starts from the bucket alone, by a
// checkpoint or by bundles and trailers, has the same digest; every archive is whole, and the job comes to its end.
func TestScenarioS4CrashInEveryJob(t *testing.T) {
	base := newDeadCell(t)
	total := 0
	synctest.Test(t, func(t *testing.T) {
		w := newDead(t, base)
		before := w.bucket.Writes()
		w.must(w.reclaimed(w.j))
		total = w.bucket.Writes() - before
		mustClose(t, w.j)
	})
	if total < 20 {
		t.Fatalf("only %d writes", total)
	}
	step := 3
	if every() {
		step = 1
	}
	deleted := 0
	for n := 1; n <= total; n += step {
		for _, applied := range []bool{false, true} {
			ok := t.Run(fmt.Sprintf("write %d, applied %v", n, applied), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := newDead(t, base)
					w.bucket.CrashAt(n, applied)
					if err := w.reclaimed(w.j); !errors.Is(err, sim.ErrCrashed) && !errors.Is(err, ErrStopped) {
						t.Fatalf("it survived: %v", err)
					}
					_ = w.j.Close(context.Background())
					w.bucket = w.store.Connect(2)
					w.j = w.process()
					w.c.j = w.j
					w.c.checkClosure(t, w.j, w.rootB.Name)
					if !w.j.Info().Rebuilt {
						t.Fatal("the disk was not lost")
					}
					checkStore(t, w.store, w.j) // from trailers alone
					w.must(w.reclaimed(w.j))
					for _, s := range clientSteps {
						w.step(s)
					}
					w.check(true)
					if st, err := w.j.Acked().Stats(); err != nil || st.Removed == 0 {
						t.Errorf("nothing was removed: %+v, %v", st, err)
					}
					deleted += w.bucket.Count(sim.OpDelete)
					mustClose(t, w.j)
				})
			})
			if !ok {
				return
			}
		}
	}
	if deleted == 0 {
		t.Error("nothing was deleted after any crash")
	}
}

// TestScenarioS6PausedCleaner pauses an owner before or after any of its calls while it reclaims. Another one takes over, makes an
// archive of what is being freed, reclaims all of it, before or after, and sweeps. When the first goes on, its deletes and whatever it wrote
// land; it acknowledges nothing. Nothing that is live is gone, and the journal is whole.
func TestScenarioS6PausedCleaner(t *testing.T) {
	base := newDeadCell(t)
	step, ways := 9, 1
	if every() {
		step = 1
	}
	if all() {
		ways = 2
	}
	for _, after := range []bool{false, true} {
		late := 0
		for n := 1; ; n += step {
			reached := false
			for _, first := range []bool{n%2 == 0, n%2 != 0}[:ways] {
				ok := t.Run(fmt.Sprintf("call %d, after it: %v, the archive first: %v", n, after, first), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) { reached = pausedCleaner(t, base, n, after, first, &late) })
				})
				if !ok {
					return
				}
			}
			if !reached {
				if n < 60 {
					t.Errorf("the owner made only %d calls", n)
				}
				break
			}
		}
		if late == 0 && every() && !after {
			t.Error("no delete of an owner that was replaced landed")
		}
	}
}

func pausedCleaner(t *testing.T, base *cell, n int, after, first bool, late *int) bool {
	ctx := context.Background()
	w := newDead(t, base)
	old, was := w.j, w.bucket
	g := newGate(was, n, after)
	done := make(chan error, 1)
	go func() { done <- w.reclaimed(old) }()
	select {
	case <-g.paused:
	case err := <-done:
		w.must(err)
		mustClose(t, old)
		return false
	}
	synctest.Wait()
	deletes := was.Count(sim.OpDelete)

	w.bucket = w.store.Connect(3)
	cfg := w.config(w.bucket)
	cfg.Host, cfg.Takeover = hostB, true
	w.j = mustOpen(t, cfg)
	w.c.j = w.j
	archive := func() {
		for _, s := range clientSteps {
			w.step(s)
		}
	}
	if first {
		archive()
	}
	w.must(w.reclaimed(w.j))
	if !first {
		archive()
	}
	if _, err := w.j.Sweep(ctx); err != nil {
		t.Fatalf("paused at %s: %v", g.where(), err)
	}

	close(g.opened)
	err := <-done
	if last := w.c.lost(old); !errors.Is(last, ErrLost) {
		t.Fatalf("paused at %s, the job ended with: %v; and then it appended, with: %v", g.where(), err, last)
	}
	_ = old.Close(ctx)
	*late += was.Count(sim.OpDelete) - deletes
	if !after && strings.HasPrefix(g.where(), string(sim.OpDelete)) { // it was counted when it was held, and lands now
		*late++
	}
	for range 2 { // now, and after the heir's restart
		w.c.checkClosure(t, w.j, w.rootB.Name)
		w.c.checkClosure(t, w.j, w.root1.Name)
		checkStore(t, w.store, w.j)
		mustClose(t, w.j)
		w.j = mustOpen(t, cfg)
		w.c.j = w.j
	}
	w.must(w.reclaimed(w.j))
	w.check(true)
	mustClose(t, w.j)
	return true
}

// lost appends something to a journal that was replaced.
func (c *client) lost(j *Journal) error {
	t, err := j.Append(context.Background(), func(tx *Tx) error {
		return tx.Record(segment.Account{ID: holdfast.AccountID{9}, Name: "late"})
	})
	if err == nil {
		j.Flush()
		err = t.Wait(context.Background())
	}
	return err
}

// TestScenarioS6SlowWriter has a segment uploaded and not acknowledged, at each stage of that, for days, while the job removes what
// landed late and the quarantine is swept. Its age justifies nothing: it is acknowledged in the end, and whole. What landed once
// more of a segment that was removed is deleted, and nothing else.
func TestScenarioS6SlowWriter(t *testing.T) {
	base := newDeadCell(t)
	for _, at := range []string{"before the put", "after the put", "before the epoch is read", "after the epoch is read"} {
		t.Run(at, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { slowWriter(t, base, at) })
		})
	}
}

func slowWriter(t *testing.T, base *cell, at string) {
	ctx := context.Background()
	w := newDead(t, base)
	first, _ := w.block(w.j.Acked(), w.chunkB.Name)
	s, _, err := w.j.Acked().Segment(first.Pos)
	w.must(err)
	body, err := w.bucket.Get(ctx, s.Key.String(), 0, -1)
	w.must(err)
	w.must(w.reclaimed(w.j))
	if _, ok, err := w.j.Acked().Segment(first.Pos); ok || err != nil {
		t.Fatal("the segment is not removed", err)
	}

	w.session()
	release := make(chan struct{})
	var mu sync.Mutex
	slow, landed := "", false // the key of the slow writer's segment
	wait := func(now bool) {
		if now {
			<-release
		}
	}
	w.bucket.OnOp(func(op sim.Op, key string, _ int) sim.Fault {
		mu.Lock()
		put := op == sim.OpPut && strings.Contains(key, "/log/")
		if put && slow == "" {
			slow = key
		}
		read := op == sim.OpGet && strings.HasSuffix(key, "/epoch") && landed
		mu.Unlock()
		wait(put && at == "before the put" || read && at == "before the epoch is read")
		return sim.Fault{}
	})
	w.bucket.AfterOp = func(op sim.Op, key string, _ int) {
		mu.Lock()
		put := op == sim.OpPut && strings.Contains(key, "/log/")
		landed = landed || put
		read := op == sim.OpGet && strings.HasSuffix(key, "/epoch") && landed
		mu.Unlock()
		wait(put && at == "after the put" || read && at == "after the epoch is read")
	}
	block := w.c.Chunk(77, 5000)
	tk, err := w.j.Append(ctx, func(tx *Tx) error { return tx.Stored(w.c.Session, block.Name, block.Kind, block.Links, block.Sealed) })
	w.must(err)
	w.j.Flush()
	time.Sleep(time.Minute)
	mu.Lock()
	there := slow != "" && (at == "before the put" || landed)
	mu.Unlock()
	if !there {
		t.Fatal("the segment is not on its way: the test does not test")
	}

	// Another landing of what was removed, and days go by.
	twin := s.Key
	twin.Nonce[0]++
	w.must(w.store.Connect(9).Put(ctx, twin.String(), body))
	w.pass(view.Grace + time.Hour)
	removed := make(chan error, 1)
	go func() {
		r, err := w.j.RemoveLate(ctx, 100)
		if err == nil && r.Objects != 1 {
			err = fmt.Errorf("removed %+v", r)
		}
		if err == nil {
			_, err = w.j.Sweep(ctx)
		}
		removed <- err
	}()
	time.Sleep(time.Second)
	keys := strings.Join(w.store.Keys(), "\n")
	if at != "before the put" && !strings.Contains(keys, slow) {
		t.Fatalf("%s: the slow writer's segment was deleted", at)
	}
	close(release)
	w.must(<-removed)
	w.must(tk.Wait(ctx))
	if strings.Contains(strings.Join(w.store.Keys(), "\n"), twin.String()) {
		t.Error("what landed late is still there")
	}
	row, ok, err := w.j.Acked().Present(w.c.Vault, w.c.Group, block.Name)
	if err != nil || !ok {
		t.Fatalf("the acknowledged block is not there: %v", err)
	}
	if got, err := w.j.ReadBlock(ctx, row); err != nil || string(got) != string(block.Sealed) {
		t.Fatalf("the acknowledged block cannot be read: %v", err)
	}
	w.c.checkClosure(t, w.j, w.rootB.Name)
	checkStore(t, w.store, w.j)
	mustClose(t, w.j)
}

// TestScenarioS4EveryStartCoversEveryRecordType: a start from a checkpoint with every record of freeing behind it, one from a
// checkpoint of all that these left, and one from bundles without any checkpoint find what trailers alone say.
// TestRebuildCoversEveryRecordType fails for a type that this journal has not.
func TestScenarioS4EveryStartCoversEveryRecordType(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		b := sim.New(1)
		j := mustOpen(t, config(b))
		c := newClient(t, j, 1)
		if err := c.rule(ctx); err != nil {
			t.Fatal(err)
		}
		time.Sleep(8 * 24 * time.Hour)
		mustCheckpoint(t, j)
		at := j.Position()
		time.Sleep(view.Keep + time.Second)
		freeEverything(t, j, c)
		start := func(what string, want segment.Position) {
			t.Helper()
			mustClose(t, j)
			j = mustOpen(t, config(b))
			if i := j.Info(); i.Checkpoint != want || !i.Rebuilt {
				t.Fatalf("%s: %+v, want a start from the checkpoint at %s", what, i, want)
			}
			checkStore(t, b.Store(), j)
		}
		start("freed since", at)
		mustCheckpoint(t, j)
		start("freed before", j.Position())
		for _, k := range checkpointKeys(b.Store()) {
			b.Store().Damage(k, removed)
		}
		start("no checkpoint", segment.Position{})
		mustClose(t, j)
	})
}
