package journal

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"holdfast"
	"holdfast/history"
	"holdfast/service/bucket/sim"
	"holdfast/service/segment"
	"holdfast/service/view"
)

// turns stops a job each time that it has done something to the bucket, or says so, until it is its turn again.
type turns struct {
	arrived chan string   // the job stopped there
	next    chan struct{} // it goes on
	off     chan struct{} // closed: it stops nowhere any more
	working atomic.Bool   // it is the job's turn, and nobody else makes calls
	stopped bool          // the job waits in at
	once    sync.Once
}

func newTurns() *turns {
	return &turns{arrived: make(chan string), next: make(chan struct{}), off: make(chan struct{})}
}

// at stops the job.
func (g *turns) at(where string) {
	select {
	case g.arrived <- where:
	case <-g.off:
		return
	}
	select {
	case <-g.next:
	case <-g.off:
	}
}

// end lets the job run to its end.
func (g *turns) end() { g.once.Do(func() { close(g.off) }) }

// watch stops the job after each of its calls to a bucket that
// concern the segment at pos, or a bundle's content.
func (g *turns) watch(b *sim.Bucket, pos segment.Position) {
	place := segment.Prefix(testCell, pos)
	b.AfterOp = func(op sim.Op, key string, attempt int) {
		bundle := strings.Contains(key, "/bundle/") && op != sim.OpList
		if g.working.Load() && op != sim.OpPut && strings.HasPrefix(key, place) || bundle {
			g.at(fmt.Sprint(op, " ", key, " ", attempt))
		}
	}
}

// life is freeing, with a job that frees and removes all that may be: condemn, move, retire, bundle, delete, removed, and that
// again.
type life struct {
	*freeing
	g      *turns
	ended  chan error         // of the job
	first  segment.Position   // where the chunk was in the beginning
	stored holdfast.SessionID // who stored it there
	where  []string           // where it stopped
}

// lifeSteps are the client's.
var lifeSteps = []string{"have", "child", "parent", "commit"}

func newLife(t *testing.T, base *sim.Store) *life {
	w := &life{freeing: newFreeing(t, base)}
	row, _ := w.block(w.j.Acked(), w.chunk.Name)
	w.first, w.stored = row.Pos, row.Session
	w.step("delete")
	w.pass(week)
	w.service(history.TypePurge)
	w.begin()
	return w
}

// begin starts the job, which stops at its first turn.
func (w *life) begin() {
	g, j, ended := newTurns(), w.j, make(chan error, 1)
	w.g, w.ended = g, ended
	g.watch(w.bucket, w.first)
	go func() { ended <- w.job(j, g.at) }()
}

// job is two runs of it. What a run has found is old by the time that it is used.
func (w *life) job(j *Journal, at func(string)) error {
	for range 2 {
		if err := reclaimAll(j, w.pass, at); err != nil {
			return err
		}
	}
	return nil
}

// reclaimAll frees, moves, bundles, deletes and removes all that may be, with the delays between.
func reclaimAll(j *Journal, pass func(time.Duration), at func(string)) error {
	ctx := context.Background()
	at("begin")
	pass(view.Keep + time.Second)
	if _, err := j.CondemnUnreferenced(ctx, 1000); err != nil {
		return err
	}
	at("condemned")
	found, _, err := j.Sparse(100, nil, 1000)
	if err != nil {
		return err
	}
	all, err := j.Segments(segment.Position{}, 1000)
	if err != nil {
		return err
	}
	at("found")
	if r, err := j.Clean(ctx, found, CleanLimits{}); err != nil || r.Failed > 0 {
		return errors.Join(err, r.Why)
	}
	at("cleaned")
	// It proposes all that there was, cleaned or not: what holds live blocks is refused.
	if _, err := j.Retire(ctx, all); err != nil {
		return err
	}
	at("retired")
	if _, err := j.Bundle(ctx); err != nil {
		return err
	}
	at("bundled")
	pass(view.Grace + time.Minute)
	r, err := j.Remove(ctx, 1000)
	if err == nil && r.Unbundled > 0 {
		err = fmt.Errorf("%d segments could not be removed", r.Unbundled)
	}
	if err != nil {
		return err
	}
	at("removed")
	_, err = j.RemoveLate(ctx, 1000)
	return err
}

// advance lets the job go on to its next stop; it reports whether it stopped, and did not end.
func (w *life) advance() bool {
	w.Helper()
	w.g.working.Store(true)
	defer w.g.working.Store(false)
	if w.g.stopped {
		w.g.next <- struct{}{}
	}
	select {
	case where := <-w.g.arrived:
		w.where = append(w.where, where)
		w.g.stopped = true
		return true
	case err := <-w.ended:
		w.must(err)
		w.g.stopped = false
		w.ended <- nil
		return false
	}
}

// finish lets the job end.
func (w *life) finish() {
	w.Helper()
	w.g.end()
	w.must(<-w.ended)
}

// crash takes the process away, with the job and what is not durable, and starts both anew.
func (w *life) crash() {
	w.bucket.Crash()
	w.g.end()
	<-w.ended
	w.restart()
	w.begin()
}

// whole fails unless every archive that is committed can be read.
func (w *life) whole() {
	w.Helper()
	w.c.checkClosure(w.T, w.j, w.rootB.Name)
	if w.done {
		w.c.checkClosure(w.T, w.j, w.root1.Name)
	}
}

// TestScenarioS10WholeLife deduplicates against a block through all of its life: it is condemned, or moved, its segment
// retired, its trailer bundled, the object deleted, and recorded as removed, while a client makes an archive that needs
// it, in every order of what the client does and of what the job does to the view and to the bucket, and with a crash.
// The archive commits whole, or the client is told what to send again; and every archive reads back at any time.
// By default a spread of the orders runs; in heavy runs many more.
func TestScenarioS10WholeLife(t *testing.T) {
	var base *sim.Store
	stops := 0
	synctest.Test(t, func(t *testing.T) {
		base = newFreeing(t, nil).store
		w := newLife(t, base)
		for w.advance() {
			stops++
		}
		t.Logf("the job stops at: %s", strings.Join(w.where, "\n"))
		w.finish()
		w.j.Close(context.Background())
	})
	if stops < 8 {
		t.Fatalf("the job stops only %d times", stops)
	}
	// An order: how often the job has stopped when the client takes each of its steps, and when the process crashes.
	var all [][]int
	var walk func(order []int)
	walk = func(order []int) {
		if len(order) == len(lifeSteps) {
			all = append(all, append([]int{}, order...))
			return
		}
		from := 0
		if len(order) > 0 {
			from = order[len(order)-1]
		}
		for n := from; n <= stops; n++ {
			walk(append(order, n))
		}
	}
	walk(nil)
	most := 120
	if every() {
		most = 4000
	}
	stride := max(1, len(all)/most)
	for stride > 1 && stride%2 == 0 || stride%3 == 0 && stride > 1 {
		stride++
	}
	const shares = 4
	seen := &tally{n: map[string]int{}}
	t.Cleanup(func() {
		t.Logf("%d orders; of what can become of the block: %v", len(all), seen.n)
		for _, what := range []string{"moved", "stored anew", "left where it was", "there after a crash"} {
			if seen.n[what] == 0 && !t.Failed() {
				t.Errorf("in no order it was %s", what)
			}
		}
	})
	for share := range shares {
		t.Run(fmt.Sprint(share), func(t *testing.T) {
			t.Parallel()
			run := 0
			for n := share * stride; n < len(all) && !t.Failed(); n += shares * stride {
				crash := -2 // none
				if n%3 == 0 {
					crash = (n / 3) % (stops + 1)
				}
				synctest.Test(t, func(t *testing.T) { wholeLife(t, base, all[n], crash, n%16 == 0, seen) })
				run++
			}
			t.Logf("%d of %d orders", run, len(all))
		})
	}
}

// tally counts what happened, in runs side by side.
type tally struct {
	mu sync.Mutex
	n  map[string]int
}

func (y *tally) add(what string) {
	y.mu.Lock()
	defer y.mu.Unlock()
	y.n[what]++
}

func wholeLife(t *testing.T, base *sim.Store, order []int, crash int, rebuild bool, seen *tally) {
	w := newLife(t, base)
	defer func() {
		w.g.end()
		w.j.Close(context.Background())
		if t.Failed() {
			t.Logf("the client's steps were at the job's stops %v, a crash at %d; the job stopped at\n%s", order, crash, strings.Join(w.where, "\n"))
		}
	}()
	stops := 0
	for i, s := range lifeSteps {
		for stops < order[i] {
			if stops == crash {
				w.crash()
				crash = -1
			}
			if !w.advance() {
				break
			}
			stops++
		}
		w.step(s)
		w.whole()
	}
	w.finish()
	w.whole()
	switch b, _ := w.block(w.j.Acked(), w.chunk.Name); {
	case b.Pos == w.first:
		seen.add("left where it was") // the client's session was open all the time, so that nothing was free
	case b.Session == w.stored:
		seen.add("moved")
	default:
		seen.add("stored anew")
	}
	if crash == -1 {
		seen.add("there after a crash")
	}
	if b, _ := w.block(w.j.Acked(), w.chunk.Name); b.Pos != w.first {
		for _, k := range objects(w.store) {
			if k.Position == w.first {
				t.Errorf("segment %s is still there", k.Position)
			}
		}
	}
	w.check(rebuild)
}
