package journal

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/service/bucket/sim"
	"holdfast/service/segment"
	"holdfast/service/view"
	"holdfast/service/view/viewtest"
)

// actor is somebody who does something step by step, and stops at each until it is his turn.
type actor struct {
	*turns
	name  string
	begin func() error // all that he does
	ended chan error
	begun bool
	waits string // where he stopped, "" if he did not
	over  bool
}

func newActor(name string, begin func() error) *actor {
	return &actor{turns: newTurns(), name: name, begin: begin, ended: make(chan error, 1)}
}

// ready reports whether it can be his turn.
func (a *actor) ready() bool { return !a.over && (!a.begun || a.waits != "") }

func (a *actor) start() {
	a.begun = true
	go func() { a.ended <- a.begin() }()
}

// look notices what he came to.
func (a *actor) look(must func(error)) {
	select {
	case a.waits = <-a.arrived:
	case err := <-a.ended:
		must(err)
		a.over = true
		a.end() // another may have been taken for him
	default:
	}
}

// patience is for how long somebody who is at work may be so before he counts as one who waits for another.
const patience = 20 * time.Second

// inTurn lets them do what they do, one step at a time, as o says. It adds to went who was next, and where he had stopped.
func inTurn(t *testing.T, o *order, went *[]string, must func(error), actors ...*actor) {
	t.Helper()
	for {
		var ready []*actor
		atWork := 0
		for began := time.Now(); ; time.Sleep(time.Second) {
			synctest.Wait()
			ready, atWork = nil, 0
			for _, a := range actors {
				if a.begun && !a.over && a.waits == "" {
					a.look(must)
				}
				switch {
				case a.ready():
					ready = append(ready, a)
				case !a.over:
					atWork++
				}
			}
			took := time.Since(began)
			if atWork == 0 || took > patience && len(ready) > 0 {
				break
			}
			if took > time.Hour {
				t.Fatal("nobody goes on")
			}
		}
		if len(ready) == 0 {
			return
		}
		next := ready[0]
		if len(ready) > 1 {
			next = ready[o.choose(len(ready))]
		}
		*went = append(*went, next.name+": "+next.waits)
		next.waits = ""
		if next.begun {
			next.next <- struct{}{}
			continue
		}
		next.start()
	}
}

// TestScenarioS6EveryOrder has a segment on its way, from before it is uploaded until it is acknowledged, while the job condemns, moves,
// retires, bundles, deletes, removes what landed late, and sweeps, in every order of what either does to the bucket and to
// the view; the segment is that of the same process, or of an owner that was replaced, whose only act that anybody sees is that
// it lands. What is acknowledged is whole; what is not is not said to be kept; and of the live ones no object is deleted.
func TestScenarioS6EveryOrder(t *testing.T) {
	base := newDeadCell(t)
	for _, replaced := range []bool{false, true} {
		t.Run(fmt.Sprintf("replaced %v", replaced), func(t *testing.T) {
			var waited, swept atomic.Int32
			t.Cleanup(func() {
				t.Logf("in %d the job waited for the writer, in %d his segment was swept", waited.Load(), swept.Load())
				if !replaced && waited.Load() == 0 || replaced && swept.Load() == 0 {
					t.Error("the orders do not test what they should")
				}
			})
			explore(t, 1, func(t *testing.T, o *order) {
				synctest.Test(t, func(t *testing.T) { slowOrder(t, base, o, replaced, &waited, &swept) })
			})
		})
	}
}

func slowOrder(t *testing.T, base *cell, o *order, replaced bool, waited, swept *atomic.Int32) {
	ctx := context.Background()
	w := newDead(t, base)
	w.pass(view.Keep + time.Minute) // an open session would hold what is free
	w.session()
	block := w.c.Chunk(77, 5000)
	first, _ := w.block(w.j.Acked(), w.chunkB.Name)
	dead, _, err := w.j.Acked().Segment(first.Pos)
	w.must(err)
	body, err := w.bucket.Get(ctx, dead.Key.String(), 0, -1)
	w.must(err)
	old, slow := w.j, w.bucket // of the writer
	place := segment.Prefix(testCell, old.Position().Next())
	if replaced {
		w.bucket = w.store.Connect(3)
		cfg := w.config(w.bucket)
		cfg.Host, cfg.Takeover = hostB, true
		w.j = mustOpen(t, cfg)
		w.c.j = w.j
	}

	var job, writer *actor
	job = newActor("job", func() error { return w.sweeping(dead.Key, body, job.at) })
	writer = newActor("writer", func() error {
		tk, err := old.Append(ctx, func(tx *Tx) error {
			return tx.Stored(w.c.Session, block.Name, block.Kind, block.Links, block.Sealed)
		})
		if err != nil {
			return err
		}
		old.Flush()
		if err = tk.Wait(ctx); replaced && !errors.Is(err, ErrLost) {
			return fmt.Errorf("a writer that was replaced was told: %v", err)
		} else if replaced {
			err = nil
		}
		return err
	})
	var puts, reads atomic.Int32
	var landed, read atomic.Bool
	slow.OnOp(func(op sim.Op, key string, _ int) sim.Fault {
		switch {
		case op == sim.OpPut && strings.HasPrefix(key, place) && puts.Add(1) == 1:
			writer.at("before the put")
		case !replaced && op == sim.OpGet && strings.HasSuffix(key, "/epoch") && landed.Load() && reads.Add(1) == 1:
			writer.at("before the epoch is read")
		}
		return sim.Fault{}
	})
	deletes := func(op sim.Op, key string, attempt int) {
		switch {
		case op == sim.OpDelete, op == sim.OpList && (strings.HasSuffix(key, "/log/") || strings.HasPrefix(key, segment.Prefix(testCell, dead.Key.Position))):
			job.at(fmt.Sprint(op, " ", key, " ", attempt))
		}
	}
	uploads := func(op sim.Op, key string, _ int) {
		switch {
		case replaced:
		case op == sim.OpPut && strings.HasPrefix(key, place) && !landed.Load():
			writer.at("after the put")
			landed.Store(true)
		case op == sim.OpGet && strings.HasSuffix(key, "/epoch") && reads.Load() > 0 && !read.Swap(true):
			writer.at("after the epoch is read")
		}
	}
	slow.AfterOp = uploads
	w.bucket.AfterOp = deletes
	if !replaced {
		slow.AfterOp = func(op sim.Op, key string, attempt int) {
			deletes(op, key, attempt)
			uploads(op, key, attempt)
		}
	}
	var went []string
	defer func() {
		job.end()
		writer.end()
		if replaced {
			_ = old.Close(ctx)
		}
		w.j.Close(ctx)
		if t.Failed() {
			t.Logf("who was next:\n%s", strings.Join(went, "\n"))
		}
	}()
	if replaced {
		writer.start()
	}
	began := time.Now()
	inTurn(t, o, &went, w.must, job, writer)
	if time.Since(began) > patience {
		waited.Add(1)
	}
	slow.OnOp(nil)
	slow.AfterOp, w.bucket.AfterOp = nil, nil

	if replaced {
		if !strings.Contains(strings.Join(w.store.Keys(), "\n"), place) {
			swept.Add(1)
		}
		if _, ok := w.block(w.j.Acked(), block.Name); ok {
			t.Error("the block of an owner that was replaced is there")
		}
	} else {
		w.holds(block)
	}
	w.c.checkClosure(t, w.j, w.rootB.Name)
	w.must(w.sweeping(dead.Key, body, func(string) {}))
	if strings.Contains(strings.Join(w.store.Keys(), "\n"), segment.Prefix(testCell, dead.Key.Position)) {
		t.Error("what landed late is still there")
	}
	if replaced && strings.Contains(strings.Join(w.store.Keys(), "\n"), place) {
		t.Error("what an owner that was replaced wrote is still there")
	}
	checkStore(t, w.store, w.j)
}

// sweeping is the job, with a segment that lands once more after it was removed, and a sweep.
func (w *freeing) sweeping(twin segment.Key, body []byte, at func(string)) error {
	ctx := context.Background()
	if err := reclaimAll(w.j, w.pass, at); err != nil {
		return err
	}
	twin.Nonce[0]++
	if err := w.store.Connect(9).Put(ctx, twin.String(), body); err != nil {
		return err
	}
	at("landed once more")
	w.pass(view.Grace + time.Hour)
	if r, err := w.j.RemoveLate(ctx, 100); err != nil || r.Objects != 1 {
		return fmt.Errorf("of what landed late %+v was removed: %w", r, err)
	}
	at("removed what landed late")
	_, err := w.j.Sweep(ctx)
	return err
}

// holds fails unless the block is there and can be read.
func (w *freeing) holds(b viewtest.Block) {
	w.Helper()
	row, ok := w.block(w.j.Acked(), b.Name)
	if !ok {
		w.Fatal("the acknowledged block is not there")
	}
	if got, err := w.j.ReadBlock(context.Background(), row); err != nil || string(got) != string(b.Sealed) {
		w.Fatalf("the acknowledged block cannot be read: %v", err)
	}
}
