package steady

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/service/bucket"
	"holdfast/service/bucket/sim"
	"holdfast/service/requests"
)

// opOf returns what the history says about an operation.
func (w *world) op(op bucket.Op) requests.Op {
	for _, o := range w.h.Report(0).Ops {
		if o.Op == op {
			return o
		}
	}
	return requests.Op{}
}

// A read that hangs is answered by another beside it, on a fresh connection and as another request; the one that hangs ends, and
// does not count as a failure of the store. A call that hangs without such help ends by its deadline.
func TestHang(t *testing.T) {
	for _, op := range bucket.Ops {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, first(op, 1, sim.Fault{Hang: true}))
			began := time.Now()
			err := w.calls()[op](t.Context())
			took := time.Since(began)
			if op != bucket.OpGet && op != bucket.OpList {
				if bucket.ClassOf(err) != bucket.ClassTimeout || len(w.spy.all) != 1 || took < patience || took > patience+time.Millisecond {
					t.Errorf("%s: %v after %d attempts and %v", op, err, len(w.spy.all), took)
				}
				return
			}
			if err != nil || took < soonestUnknown || took > soonestUnknown+time.Millisecond {
				t.Errorf("%s: %v after %v", op, err, took)
			}
			synctest.Wait() // for what was called off
			one, two := w.spy.all[0], w.spy.all[1]
			if len(w.spy.all) != 2 || !two.fresh || one.request == two.request {
				t.Errorf("%s: %v", op, w.spy.all)
			}
			o := w.op(op)
			if o.Hedges != 1 || o.Won != 1 || o.Failed != 0 || o.Classes[bucket.ClassCanceled] != 1 || o.Answered != 1 {
				t.Errorf("%s: %+v", op, o)
			}
			if n := w.Bucket.breaker.failures; n != 0 {
				t.Errorf("%s: %d failures of the store", op, n)
			}
		})
	}
}

// The first of the two that is answered wins, whichever it is; the other is called off.
func TestHedgeThatLoses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(op sim.Op, _ string, attempt int) sim.Fault {
			return sim.Fault{Slow: []time.Duration{0, 3 * time.Second, time.Hour}[attempt]}
		})
		began := time.Now()
		if err := w.calls()[bucket.OpGet](t.Context()); err != nil || time.Since(began) != 3*time.Second {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		synctest.Wait()
		if o := w.op(bucket.OpGet); o.Hedges != 1 || o.Won != 0 || o.Failed != 0 || o.Answered != 1 {
			t.Errorf("%+v", o)
		}
	})
	// If the first fails while the second is under way, the second is the call's.
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(op sim.Op, _ string, attempt int) sim.Fault {
			if attempt == 1 {
				return sim.Fault{Slow: 3 * time.Second, Err: sim.ErrFault}
			}
			return sim.Fault{Slow: 4 * time.Second}
		})
		began := time.Now()
		if err := w.calls()[bucket.OpGet](t.Context()); err != nil || time.Since(began) != soonestUnknown+rateTime(5, unknownRate)+4*time.Second {
			t.Errorf("%v after %v", err, time.Since(began))
		}
	})
}

// While a read and the hedge beside it are slow, there is a third way, and no fourth; one that fails is followed by the next
// attempt, however slow what is beside it.
func TestWaysBesideEachOther(t *testing.T) {
	wait := soonestUnknown + rateTime(5, unknownRate)
	for name, c := range map[string]struct {
		faults []sim.Fault // of the attempts in the order in which they are begun, from the first; then none
		took   time.Duration
		made   int
	}{
		"two hang":               {[]sim.Fault{{Hang: true}, {Hang: true}}, 3 * wait, 3},
		"three hang":             {[]sim.Fault{{Hang: true}, {Hang: true}, {Hang: true}}, patience + rateTime(5, leastRate), 4},
		"one fails, one is slow": {[]sim.Fault{{Slow: sim.CursedDelay, Err: sim.ErrFault}, {Slow: time.Hour}}, sim.CursedDelay, 3},
		"two fail, one is slow": {[]sim.Fault{{Slow: 3 * time.Second, Err: sim.ErrFault}, {Slow: time.Hour},
			{Err: sim.ErrFault}}, 3 * time.Second, 4},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, func(op sim.Op, _ string, attempt int) sim.Fault {
					if attempt <= len(c.faults) {
						return c.faults[attempt-1]
					}
					return sim.Fault{}
				})
				began := time.Now()
				err := w.calls()[bucket.OpGet](t.Context())
				if took := time.Since(began); err != nil || took < c.took || took > c.took+2*firstBackoff+2*firstBackoff {
					t.Errorf("%v after %v, want %v", err, took, c.took)
				}
				if n := len(w.spy.all); n != c.made {
					t.Errorf("%d requests, want %d: %v", n, c.made, w.spy.all)
				}
			})
		})
	}
}

// An object that is read whole, of which both requests for all of it are cursed, and a tenth of all others, is soon there: the
// service reads the epoch object before each acknowledgement. What is cursed is drawn: of 10,000 reads one took longer than 15 s,
// so that the chance of a false alarm is below one in a million.
func TestCursedWholeIsSoonThere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		seed := maphash.MakeSeed()
		w.Bucket.b = slowly{picky{w.spy, func(r request) bool {
			return r.off == 0 && (r.n < 0 || r.n == int64(len(body))) || maphash.Comparable(seed, r)%10 == 0
		}}}
		slow := 0
		for hour := range 500 {
			began := time.Now()
			got, err := w.Get(t.Context(), "s", 0, -1)
			took := time.Since(began)
			switch {
			case err != nil || took > 15*time.Second: // with nobody else who is answered, the breaker may open
				slow++
			case !bytes.Equal(got, body):
				t.Fatalf("hour %d: %q", hour, got)
			}
			time.Sleep(2 * time.Hour) // it is forgotten
		}
		if slow > 4 {
			t.Errorf("%d of 500 reads failed, or took longer than 15 s", slow)
		}
	})
}

// slowly is a picky store that fails as a cursed request does.
type slowly struct{ picky }

func (s slowly) Get(ctx context.Context, key string, off, n int64) ([]byte, error) {
	got, err := s.picky.Get(ctx, key, off, n)
	if err == nil {
		return got, nil
	}
	select {
	case <-time.After(sim.CursedDelay):
		return got, err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// SlowAfter follows what is usual for the size, within bounds.
func TestSlowAfter(t *testing.T) {
	w := newWorld(t, nil)
	if d := w.SlowAfter(bucket.OpPut, 16<<20); d != soonestUnknown+4*time.Second {
		t.Errorf("unknown: %v", d)
	}
	add := func(n int64, took time.Duration) {
		for range 2 * 512 {
			w.h.Add(requests.Attempt{Op: bucket.OpPut, Class: bucket.ClassOK, N: 1, Began: time.Now(), Took: took, Bytes: n})
		}
	}
	for _, c := range []struct{ usual, least, most time.Duration }{
		{time.Millisecond, soonest, soonest},
		{400 * time.Millisecond, 800 * time.Millisecond, 1200 * time.Millisecond},
		{1900 * time.Millisecond, latest, latest},
		{9 * time.Second, 11 * time.Second, 20 * time.Second},
	} {
		add(16<<20, c.usual)
		if d := w.SlowAfter(bucket.OpPut, 12<<20); d < c.least || d > c.most {
			t.Errorf("usually %v: slow after %v, want %v to %v", c.usual, d, c.least, c.most)
		}
	}
	if d := w.SlowAfter(bucket.OpPut, 100); d < soonestUnknown || d > soonestUnknown+time.Millisecond {
		t.Errorf("another size: %v", d)
	}
}

// A caller's second way takes from the budget, makes one attempt, and is refused when the budget is spent.
func TestCallersHedge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, always(bucket.OpPut, sim.Fault{Err: sim.ErrFault}))
		for i := range budget {
			if err := w.Put(bucket.Hedge(t.Context()), fmt.Sprintf("h/%d", i), body); !errors.Is(err, sim.ErrFault) {
				t.Fatalf("hedge %d: %v", i, err)
			}
		}
		if n := len(w.spy.all); n != budget || !w.spy.all[0].fresh {
			t.Errorf("%d attempts", n)
		}
		if err := w.Put(bucket.Hedge(t.Context()), "h/x", body); !errors.Is(err, bucket.ErrSpent) || len(w.spy.all) != budget {
			t.Errorf("%v, %d attempts", err, len(w.spy.all))
		}
		if d := w.SlowAfter(bucket.OpPut, 1); d != 0 {
			t.Errorf("slow after %v with nothing left", d)
		}
		time.Sleep(secondsPerToken * time.Second)
		if d := w.SlowAfter(bucket.OpPut, 1); d == 0 {
			t.Error("nothing comes back")
		}
	})
}

// run has n callers make calls for so long, waiting a little between them, and returns how many calls they made.
func (w *world) run(t *testing.T, n int, length time.Duration) (calls int) {
	ctx, cancel := context.WithTimeout(t.Context(), length)
	defer cancel()
	var wg sync.WaitGroup
	var mu sync.Mutex
	for i := range n {
		wg.Go(func() {
			for k := 0; ctx.Err() == nil; k++ {
				mu.Lock()
				calls++
				mu.Unlock()
				key := fmt.Sprintf("r/%d/%d", i, k)
				switch k % 3 {
				case 0:
					w.Put(ctx, key, body)
				case 1:
					w.Get(ctx, "k", int64(100+k%30_000), 5)
				case 2:
					w.List(ctx, "a/", "", 0)
				}
				select {
				case <-time.After(100 * time.Millisecond):
				case <-ctx.Done():
				}
			}
		})
	}
	wg.Wait()
	return calls
}

// A store that is dead for ten minutes is asked rarely, whether it fails or hangs; once it answers again, that is seen within
// seconds and all goes on.
func TestNoStormOnADeadStore(t *testing.T) {
	const callers, minutes = 10, 10
	for what, fault := range map[string]sim.Fault{
		"refuses": {Err: failing(bucket.ClassConnection)}, "hangs": {Hang: true}, "denies": {Err: failing(bucket.ClassDenied)},
	} {
		synctest.Test(t, func(t *testing.T) {
			var mu sync.Mutex
			dead := true
			w := newWorld(t, func(sim.Op, string, int) sim.Fault {
				mu.Lock()
				defer mu.Unlock()
				if dead {
					return fault
				}
				return sim.Fault{}
			})
			began := time.Now()
			calls := w.run(t, callers, minutes*time.Minute)
			n := len(w.spy.all)
			// Until it opens: calls, each 100 ms at least, of ten callers in a little more than breakAfter, and the
			// budget. Then one each half of the longest wait, and the first few.
			most := callers*int(breakAfter/(100*time.Millisecond)+1) + budget + minutes*60*2/int(lastProbe/time.Second) + 5
			t.Logf("%s: %d calls made %d requests in %d minutes; at most %d", what, calls, n, minutes, most)
			if n > most || calls < 10*n {
				t.Errorf("%s: %d calls made %d requests, more than %d", what, calls, n, most)
			}
			since, cause := w.Down()
			if since.Before(began) || since.Sub(began) > time.Second || bucket.ClassOf(cause) == bucket.ClassOpen || cause == nil {
				t.Errorf("%s: down since %v (%v), began %v", what, since, cause, began)
			}
			err := w.Put(t.Context(), "x", body)
			if !errors.Is(err, bucket.ErrDown) || strings.Contains(err.Error(), "put x") { // it was the one that sees
				err = w.Put(t.Context(), "y", body)
			}
			if !errors.Is(err, bucket.ErrDown) || !strings.HasPrefix(err.Error(), bucket.ErrDown.Error()+" (since ") || strings.Contains(err.Error(), "put y") {
				t.Errorf("%s: %v, want ErrDown, and nothing of the request that was not sent", what, err)
			}
			mu.Lock()
			dead = false
			mu.Unlock()
			again := time.Now()
			for w.Put(t.Context(), "x", body) != nil {
				time.Sleep(100 * time.Millisecond)
			}
			if d := time.Since(again); d > lastProbe+patience {
				t.Errorf("%s: it took %v to see that it answers", what, d)
			}
			if since, _ := w.Down(); !since.IsZero() {
				t.Errorf("%s: down since %v although it answers", what, since)
			}
		})
	}
}

// While the breaker is open one attempt at a time goes through, first to last probe after another; a call that hangs
// there holds up the next for its deadline only.
func TestHalfOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(sim.Op, string, int) sim.Fault { return sim.Fault{Err: sim.ErrFault} })
		w.run(t, 5, 30*time.Second)
		if since, _ := w.Down(); since.IsZero() {
			t.Fatal("it is not open")
		}
		open := time.Now()
		w.sim.OnOp(func(sim.Op, string, int) sim.Fault { return sim.Fault{Hang: true} })
		w.spy.all = nil
		w.run(t, 20, 2*time.Minute)
		for i, s := range w.spy.all {
			at := s.at.Sub(open)
			if i == 0 {
				if at > lastProbe {
					t.Errorf("the first came after %v", at)
				}
				continue
			}
			gap := s.at.Sub(w.spy.all[i-1].at)
			if gap < patience+lastProbe/2 || gap > patience+lastProbe+200*time.Millisecond {
				t.Errorf("probe %d came %v after the one before", i+1, gap)
			}
		}
		if len(w.spy.all) < 7 {
			t.Errorf("%d probes", len(w.spy.all))
		}
	})
}

// A large Put that hangs while it is the probe does not hold up all others for the time that a slow line is given.
func TestLargeProbe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(sim.Op, string, int) sim.Fault { return sim.Fault{Err: sim.ErrFault} })
		w.Bucket.slack = mostSlack
		w.run(t, 5, 30*time.Second)
		w.sim.OnOp(func(op sim.Op, _ string, _ int) sim.Fault { return sim.Fault{Hang: op == bucket.OpPut} })
		time.Sleep(lastProbe)
		var wg sync.WaitGroup
		wg.Go(func() { w.Put(t.Context(), "large", make([]byte, 16<<20)) })
		synctest.Wait()
		began := time.Now()
		for w.calls()[bucket.OpGet](t.Context()) != nil {
			time.Sleep(100 * time.Millisecond)
		}
		if took := time.Since(began); took > patience+16*time.Second+lastProbe+time.Second {
			t.Errorf("a read was answered after %v", took)
		}
		wg.Wait()
	})
}

// A probe whose caller gives up says nothing, and another may follow.
func TestProbeGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(sim.Op, string, int) sim.Fault { return sim.Fault{Err: sim.ErrFault} })
		w.run(t, 5, 30*time.Second)
		w.sim.OnOp(func(sim.Op, string, int) sim.Fault { return sim.Fault{Slow: time.Second / 2} })
		time.Sleep(lastProbe)
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		if err := w.Put(ctx, "x", body); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("the probe: %v", err)
		}
		if since, _ := w.Down(); since.IsZero() {
			t.Error("it closed")
		}
		if err := w.Put(t.Context(), "x", body); err != nil {
			t.Errorf("the next: %v", err)
		}
	})
}

// A request that fails for ever does not open the breaker: not alone, nor beside others that are answered.
func TestCursedRequestsDoNotOpenTheBreaker(t *testing.T) {
	for _, company := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, func(op sim.Op, key string, _ int) sim.Fault {
				if strings.HasPrefix(key, "cursed") {
					return sim.Fault{Slow: sim.CursedDelay, Err: sim.ErrFault}
				}
				return sim.Fault{}
			})
			for i := range 200 {
				if err := w.Delete(t.Context(), "cursed"); !errors.Is(err, sim.ErrFault) {
					t.Fatalf("delete %d: %v", i, err)
				}
				if !company {
					continue
				}
				// Others that are cursed too, and one that is answered.
				if err := w.Put(t.Context(), fmt.Sprintf("cursed/%d", i), body); !errors.Is(err, sim.ErrFault) {
					t.Fatalf("put %d: %v", i, err)
				}
				if err := w.Put(t.Context(), fmt.Sprintf("good/%d", i), body); err != nil {
					t.Fatalf("put %d: %v", i, err)
				}
			}
			if since, _ := w.Down(); !since.IsZero() {
				t.Errorf("down since %v", since)
			}
		})
	}
}

// On a store of which half fails, what is added to the calls stays within the budget.
func TestBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		w.sim.Profile = sim.Profile{Fail: 500_000}
		began := time.Now()
		calls := w.run(t, 10, 3*time.Minute)
		answered := uint64(0)
		for _, o := range w.h.Report(0).Ops {
			answered += o.Answered
		}
		extra := len(w.spy.all) - calls
		most := budget + int(answered)/answersPerToken + int(time.Since(began).Seconds())/secondsPerToken
		t.Logf("%d calls, %d answered, %d requests beyond; at most %d", calls, answered, extra, most)
		if extra > most || extra < most*9/10 {
			t.Errorf("%d requests beyond %d calls, at most %d belong", extra, calls, most)
		}
	})
}

// The line is slow: what does not arrive in time gets more time, until it arrives.
func TestSlowLine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(sim.Op, string, int) sim.Fault { return sim.Fault{Slow: 70 * time.Second} })
		big := make([]byte, 16<<20)
		tries := 1
		for ; w.Put(t.Context(), fmt.Sprintf("big/%d", tries), big) != nil; tries++ {
			if tries > 10 {
				t.Fatal("it never arrives")
			}
		}
		if tries != 3 { // 26 s, 42 s, 74 s
			t.Errorf("it arrived after %d tries", tries)
		}
		if err := w.Put(t.Context(), "big/again", big); err != nil {
			t.Errorf("the next: %v", err)
		}
	})
}

// A caller that gives up gets its own error at once, leaves nothing running, and is no failure of the store.
func TestCallerGivesUp(t *testing.T) {
	for _, op := range bucket.Ops {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, always(op, sim.Fault{Hang: true}))
			ctx, cancel := context.WithCancel(t.Context())
			time.AfterFunc(5*time.Second, cancel)
			began := time.Now()
			err := w.calls()[op](ctx)
			if !errors.Is(err, context.Canceled) || time.Since(began) != 5*time.Second {
				t.Errorf("%s: %v after %v", op, err, time.Since(began))
			}
			synctest.Wait()
			if o := w.op(op); o.Attempts != 0 || o.Classes[bucket.ClassCanceled] == 0 {
				t.Errorf("%s: %+v", op, o)
			}
		})
	}
}

// The history has every request that reached the store, and what became of it.
func TestHistoryIsExact(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(op sim.Op, key string, attempt int) sim.Fault {
			if key == "cursed" || op == bucket.OpGet && attempt <= 2 {
				return sim.Fault{Slow: sim.CursedDelay, Err: sim.ErrFault}
			}
			return sim.Fault{Slow: 10 * time.Millisecond}
		})
		for range 8 {
			w.Put(t.Context(), "good", body)
		}
		w.Put(t.Context(), "cursed", body)
		w.Put(t.Context(), "cursed", body) // a caller who repeats it all the same
		w.Get(t.Context(), "none", 0, 5)
		o := w.op(bucket.OpPut)
		if o.Attempts != 11 || o.Answered != 8 || o.Failed != 3 || o.Classes[bucket.ClassOK] != 8 || o.Classes[bucket.ClassServer] != 3 || o.Exhausted != 2 {
			t.Errorf("put: %+v", o)
		}
		for k, want := range []requests.Chance{{Tried: 9, Failed: 1, Alone: 1}, {Tried: 1, Failed: 1, Alone: 1}, {Tried: 1, Failed: 1}, {}} {
			if o.Same[k] != want {
				t.Errorf("put after %d failures: %+v, want %+v", k, o.Same[k], want)
			}
		}
		for n, want := range []requests.Chance{{Tried: 10, Failed: 2}, {Tried: 1, Failed: 1}, {}} {
			if o.ByAttempt[n] != want {
				t.Errorf("put, attempt %d: %+v, want %+v", n+1, o.ByAttempt[n], want)
			}
		}
		if o.Bad.Median != 4.88 || o.Bad.Max != 4.88 || o.Good.Median != 0.01 || o.Alike != 1 {
			t.Errorf("put: good %+v, bad %+v, alike %v", o.Good, o.Bad, o.Alike)
		}
		// The first fails; so would the hedge beside it, if the next attempt did not call it off.
		synctest.Wait()
		o = w.op(bucket.OpGet)
		if made := len(w.spy.all) - 11; made != 3 || o.Attempts != 2 || o.Hedges != 1 || o.Won != 0 ||
			o.Classes[bucket.ClassServer] != 1 || o.Classes[bucket.ClassCanceled] != 1 || o.Classes[bucket.ClassNotFound] != 1 {
			t.Errorf("get: %+v, of %d", o, made)
		}
	})
}

// An answer that is not what was asked for is a failure, and made good.
func TestAnswersAreChecked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, first(bucket.OpGet, 1, sim.Fault{Short: true}))
		if err := w.calls()[bucket.OpGet](t.Context()); err != nil {
			t.Error(err)
		}
		if o := w.op(bucket.OpGet); o.Classes[bucket.ClassCorrupt] != 1 {
			t.Errorf("%+v", o)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		w.Bucket.b = liar{w.sim}
		if l, err := w.List(t.Context(), "a/", "a/1", 2); bucket.ClassOf(err) != bucket.ClassCorrupt {
			t.Errorf("%v, %v", l, err)
		}
	})
}

// liar lists from the beginning whatever it is asked.
type liar struct{ bucket.Bucket }

func (l liar) List(ctx context.Context, prefix, after string, max int) ([]bucket.Object, error) {
	return l.Bucket.List(ctx, prefix, "", max)
}
