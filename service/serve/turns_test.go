package serve

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"holdfast"
	"holdfast/wire"
)

func none() error { return nil }

func code(err error) wire.Code { return wire.CodeOf(err) }

func TestTurnsKeepTheOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr := newTurns()
		var mu sync.Mutex
		var admitted, appended []uint64
		var wg sync.WaitGroup
		for k := uint64(8); k > 0; k-- {
			wg.Go(func() {
				time.Sleep(time.Duration(10-k) * time.Second) // the later, the sooner
				a, err := tr.enter(t.Context(), k, func() error {
					mu.Lock()
					defer mu.Unlock()
					admitted = append(admitted, k)
					return nil
				})
				if err != nil {
					t.Errorf("batch %d: %v", k, err)
					return
				}
				time.Sleep(time.Duration(10-k) * time.Second)
				if err := tr.turn(t.Context(), a); err != nil {
					t.Errorf("batch %d: %v", k, err)
				}
				mu.Lock()
				appended = append(appended, k)
				mu.Unlock()
				tr.done(a)
			})
		}
		wg.Wait()
		want := []uint64{1, 2, 3, 4, 5, 6, 7, 8}
		if !slices.Equal(admitted, want) || !slices.Equal(appended, want) {
			t.Errorf("admitted %v, appended %v", admitted, appended)
		}
	})
}

func TestTurnsFailureSendsTheRestBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr := newTurns()
		var a [5]*attempt
		for k := uint64(1); k <= 4; k++ {
			var err error
			if a[k], err = tr.enter(t.Context(), k, none); err != nil {
				t.Fatal(err)
			}
		}
		tr.done(a[1])
		tr.fail(a[2])
		if tr.next != 2 || tr.admit != 2 {
			t.Errorf("next %d, admit %d: the turn did not go back", tr.next, tr.admit)
		}
		for k := 3; k <= 4; k++ {
			if err := tr.turn(t.Context(), a[k]); code(err) != wire.CodeOutOfOrder {
				t.Errorf("batch %d behind the failed one: %v", k, err)
			}
			tr.fail(a[k])
		}
		// The same again, in order, goes through; 1 may come once more at any time.
		for _, k := range []uint64{2, 1, 3, 4} {
			b, err := tr.enter(t.Context(), k, none)
			if err == nil {
				err = tr.turn(t.Context(), b)
			}
			if err != nil {
				t.Fatalf("batch %d: %v", k, err)
			}
			tr.done(b)
		}
		if tr.next != 5 || tr.admit != 5 || len(tr.live) != 0 {
			t.Errorf("next %d, admit %d, %d live", tr.next, tr.admit, len(tr.live))
		}
	})
}

func TestTurnsTwoAttemptsAtOneBatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr := newTurns()
		slow, _ := tr.enter(t.Context(), 1, none)
		again, _ := tr.enter(t.Context(), 1, none)
		two, err := tr.enter(t.Context(), 2, none)
		if err != nil {
			t.Fatal(err)
		}
		tr.fail(slow) // the other one is still there: nobody is sent back
		if tr.admit != 3 || two.void {
			t.Fatal("batch 2 was sent back")
		}
		tr.done(again)
		if err := tr.turn(t.Context(), two); err != nil {
			t.Error(err)
		}
		tr.done(two)
		late, err := tr.enter(t.Context(), 1, none)
		if err != nil {
			t.Fatal(err)
		}
		tr.fail(late) // it was appended before
		if tr.next != 3 || tr.admit != 3 {
			t.Errorf("next %d, admit %d", tr.next, tr.admit)
		}
	})
}

func TestTurnsRefuse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr := newTurns()
		if _, err := tr.enter(t.Context(), 1+maxAhead, none); code(err) != wire.CodeOutOfOrder {
			t.Errorf("a batch far ahead: %v", err)
		}
		start := time.Now()
		if _, err := tr.enter(t.Context(), 2, none); code(err) != wire.CodeOutOfOrder || time.Since(start) != turnPatience {
			t.Errorf("a batch whose predecessor never comes: %v after %v", err, time.Since(start))
		}
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(errors.New("gone"))
		if _, err := tr.enter(ctx, 2, none); err == nil || err.Error() != "gone" {
			t.Errorf("a client that left: %v", err)
		}
		full := errors.New("no memory")
		if _, err := tr.enter(t.Context(), 1, func() error { return full }); err != full {
			t.Errorf("no memory: %v", err)
		}
		if tr.admit != 1 || len(tr.live) != 0 || tr.waiting != 0 {
			t.Errorf("admit %d, %d live, %d waiting", tr.admit, len(tr.live), tr.waiting)
		}
		var wg sync.WaitGroup
		for range maxWaiting {
			wg.Go(func() { tr.enter(t.Context(), 2, none) })
		}
		synctest.Wait()
		if _, err := tr.enter(t.Context(), 2, none); code(err) != wire.CodeBusy {
			t.Errorf("too many wait: %v", err)
		}
		wg.Wait()
	})
}

// TestTurnsSim lets batches of a session fail at random places and be sent again, in bad order, until all
// were appended; and asserts that a batch is never appended before its predecessor.
func TestTurnsSim(t *testing.T) {
	for seed := range uint64(30) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				rng := rand.New(rand.NewPCG(seed, 1))
				var mu sync.Mutex
				roll := func(n int) int { mu.Lock(); defer mu.Unlock(); return rng.IntN(n) }
				tr := newTurns()
				b := newBudget(4, 4) // four batches hold memory at a time
				const n = 40
				var done [n + 1]bool
				var wg sync.WaitGroup
				queue := make(chan uint64, n)
				for k := uint64(1); k <= n; k++ {
					queue <- k
				}
				close(queue)
				try := func(k uint64) error {
					var release func()
					a, err := tr.enter(t.Context(), k, func() (err error) {
						ctx, cancel := context.WithTimeout(t.Context(), time.Duration(1+roll(60))*time.Second)
						defer cancel()
						release, err = b.acquire(ctx, holdfast.VaultID{}, 1, nil)
						return err
					})
					if err != nil {
						if release != nil {
							release()
						}
						return err
					}
					defer release()
					time.Sleep(time.Duration(roll(1000)) * time.Millisecond)
					if roll(5) == 0 {
						tr.fail(a)
						return errBody
					}
					if err := tr.turn(t.Context(), a); err != nil {
						tr.fail(a)
						return err
					}
					mu.Lock()
					if k > 1 && !done[k-1] {
						t.Errorf("batch %d was appended before its predecessor", k)
					}
					done[k] = true
					mu.Unlock()
					tr.done(a)
					return nil
				}
				for range 8 {
					wg.Go(func() {
						for k := range queue {
							for try(k) != nil {
								time.Sleep(time.Duration(roll(3000)) * time.Millisecond)
							}
						}
					})
				}
				wg.Wait()
				if tr.next != n+1 || tr.admit != n+1 || len(tr.live) != 0 || b.free != 4 || len(b.held) != 0 {
					t.Errorf("next %d, admit %d, %d live, %d free", tr.next, tr.admit, len(tr.live), b.free)
				}
			})
		})
	}
}

func TestBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBudget(10, 6)
		u, v, x := holdfast.VaultID{1}, holdfast.VaultID{2}, holdfast.VaultID{3}
		get := func(id holdfast.VaultID, n int64) func() {
			t.Helper()
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			r, err := b.acquire(ctx, id, n, nil)
			if err != nil {
				return nil
			}
			return r
		}
		r1 := get(u, 6)
		if r1 == nil || get(u, 1) != nil {
			t.Fatal("a vault's share is wrong")
		}
		r2 := get(v, 4)
		if r2 == nil {
			t.Fatal("one vault keeps another out")
		}
		if get(x, 1) != nil {
			t.Fatal("more than the total")
		}
		// The first in the queue is first, and a large claim is not starved by small ones.
		var mu sync.Mutex // guards order: synctest.Wait orders goroutines for people, not for the race detector
		var order []int
		var wg sync.WaitGroup
		for i, n := range []int64{5, 1, 1} {
			wg.Go(func() {
				time.Sleep(time.Duration(i) * time.Millisecond)
				r, err := b.acquire(t.Context(), holdfast.VaultID{byte(10 + i)}, n, nil)
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				order = append(order, i)
				mu.Unlock()
				time.Sleep(time.Millisecond)
				r()
			})
		}
		time.Sleep(10 * time.Millisecond)
		r2() // 4 are free now: not enough for the first
		synctest.Wait()
		if len(order) != 0 {
			t.Errorf("%v overtook a larger claim", order)
		}
		r1()
		r1() // giving back twice is giving back once
		wg.Wait()
		if len(order) != 3 {
			t.Errorf("order %v", order)
		}
		if b.free != 10 || len(b.held) != 0 || len(b.queue) != 0 {
			t.Errorf("%d free, %d held, %d queued", b.free, len(b.held), len(b.queue))
		}
	})
}
