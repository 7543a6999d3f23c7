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

func newLife(t *testing.T, base *cell) *life {
	w := &life{freeing: newDead(t, base)}
	row, _ := w.block(w.j.Acked(), w.chunk.Name)
	w.first, w.stored = row.Pos, row.Session
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
// Some hundred of the orders run, in heavy runs a few thousand, and with HOLDFAST_ORDERS=all (make orders) each; and a third of them once
// more, with a crash, each at another place.
func TestScenarioS10WholeLife(t *testing.T) {
	base := newDeadCell(t)
	seen := &tally{n: map[string]int{}}
	t.Cleanup(func() {
		t.Logf("of what can become of the block: %v", seen.n)
		for _, what := range []string{"moved", "stored anew", "left where it was", "there after a crash"} {
			if seen.n[what] == 0 && !t.Failed() && (said == "" || all()) && !testing.Short() {
				t.Errorf("in no order it was %s", what)
			}
		}
	})
	spread := 4
	switch {
	case every():
		spread = 2
	case testing.Short():
		spread = 7
	}
	explore(t, spread, func(t *testing.T, o *order) {
		stops := 0
		synctest.Test(t, func(t *testing.T) { stops = wholeLife(t, base, o, -1, o.n%16 == 0, seen) })
		if crash := o.n / 3 % (stops + 1); o.n%3 == 0 {
			synctest.Test(t, func(t *testing.T) { wholeLife(t, base, o.again(), crash, o.n%16 == 8, seen) })
		}
	})
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

// wholeLife runs one order, with a crash before the job goes on from that stop, if it comes there. It returns how often the job
// stopped.
func wholeLife(t *testing.T, base *cell, o *order, crash int, rebuild bool, seen *tally) (stops int) {
	w := newLife(t, base)
	defer func() {
		w.g.end()
		w.j.Close(context.Background())
		if t.Failed() {
			t.Logf("a crash at %d; who was next, and where the job stopped:\n%s", crash, strings.Join(w.where, "\n"))
		}
	}()
	crashed, steps := false, lifeSteps
	for running := true; running || len(steps) > 0; {
		if running && stops == crash && !crashed {
			w.crash()
			crashed = true
		}
		if running && (len(steps) == 0 || o.choose(2) == 0) {
			if running = w.advance(); running {
				stops++
			}
			continue
		}
		w.where = append(w.where, "the client: "+steps[0])
		w.step(steps[0])
		w.whole()
		steps = steps[1:]
	}
	w.whole()
	row, _ := w.block(w.j.Acked(), w.chunk.Name)
	switch {
	case row.Pos == w.first:
		seen.add("left where it was") // the client's session was open all the time, so that nothing was free
	case row.Session == w.stored:
		seen.add("moved")
	default:
		seen.add("stored anew")
	}
	if crashed {
		seen.add("there after a crash")
	}
	if row.Pos != w.first {
		for _, k := range objects(w.store) {
			if k.Position == w.first {
				t.Errorf("segment %s is still there", k.Position)
			}
		}
	}
	w.check(rebuild)
	return stops
}
