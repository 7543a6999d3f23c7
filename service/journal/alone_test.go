package journal

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"

	"holdfast"
	"holdfast/internal/part"
	"holdfast/service/bucket"
	"holdfast/service/bucket/sim"
	"holdfast/service/segment"
	"holdfast/service/view/viewtest"
)

// TestTwoOwnersAlone: on a store without conditional writes two processes claim the cell at once, which --single-owner
// forbids. The first is paused before its n-th call, the second before its m-th, the first goes on, then the second.
// Both may claim the same epoch, and a claim may come back. At most one of them goes on in the end. Nothing
// that anybody was told is kept is lost silently: the next start has it, or finds the contradiction and changes nothing.
func TestTwoOwnersAlone(t *testing.T) {
	ends := map[string]int{}
	firsts, seconds := 4, 10 // the claim is calls 1 to 4
	if part.Heavy() {
		firsts, seconds = 24, 24
	}
	for n := 1; n <= firsts; n++ {
		for m := 0; m <= seconds; m++ {
			synctest.Test(t, func(t *testing.T) { ends[twoAlone(t, n, m)]++ })
			if t.Failed() {
				t.Fatalf("the first before call %d, the second before call %d", n, m)
			}
		}
	}
	t.Logf("how the next start ended: %v", ends)
	if ends["all is there"] == 0 || ends["contradiction"] == 0 {
		t.Errorf("the next start always ended in one way: %v", ends)
	}
}

// racer is one of the two processes.
type racer struct {
	*client
	gate *gate
	err  error
	done chan struct{}
}

// race starts an owner that pauses before its n-th call, opens the cell and works.
func race(cfg Config, b *sim.Bucket, n int, c *client) *racer {
	r := &racer{client: c, gate: newGate(b, n, false), done: make(chan struct{})}
	go func() {
		defer close(r.done)
		var j *Journal
		if j, r.err = Open(context.Background(), cfg); r.err == nil {
			c.j = j
			run := 10
			r.err = c.drive(context.Background(), &run, 12)
		}
	}()
	return r
}

// twoAlone is one run of it and says how the next start ended. m = 0: the second is not paused, works and is restarted
// before the first goes on.
func twoAlone(t *testing.T, n, m int) string {
	ctx := context.Background()
	b := sim.New(1)
	alone := func(b *sim.Bucket, host byte) Config {
		cfg := config(bucket.Alone(b))
		cfg.Host, cfg.Takeover = [16]byte{host}, true
		return cfg
	}
	c := &client{Customer: newCustomer(), j: mustOpen(t, alone(b, 1))}
	run := 0
	if err := c.drive(ctx, &run, 1); err != nil {
		t.Fatal(err)
	}
	mustClose(t, c.j)

	c.j = nil
	b2, b3 := b.Store().Connect(2), b.Store().Connect(3)
	first := race(alone(b2, 1), b2, n, c)
	synctest.Wait()
	other := &client{Customer: viewtest.New(2)}
	if m == 0 {
		for range 2 {
			other.j = mustOpen(t, alone(b.Store().Connect(3), 2))
			if err := other.drive(ctx, &run, run+1); err != nil {
				t.Fatal(err)
			}
			mustClose(t, other.j)
			other.j = nil
		}
		m = 1
	}
	second := race(alone(b3, 2), b3, m, other)
	synctest.Wait()
	open := func(g *gate) {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.n, g.shut = -1, false
		close(g.opened)
	}
	open(first.gate)
	<-first.done
	before := b.Store().Keys()
	open(second.gate)
	<-second.done

	going := 0
	for i, r := range []*racer{first, second} {
		if r.j == nil {
			continue
		}
		err := r.append(ctx, func(tx *Tx) error {
			return tx.Record(segment.Account{ID: holdfast.AccountID{9, byte(i)}, Name: fmt.Sprint("late", i)})
		})
		if err == nil {
			going++
		} else if !errors.Is(err, ErrLost) {
			t.Fatal(err)
		}
		_ = r.j.Close(ctx)
	}
	if going > 1 {
		t.Fatal("both go on")
	}
	there := map[string]bool{}
	for _, k := range b.Store().Keys() {
		there[k] = true
	}
	for _, k := range before {
		if !there[k] {
			t.Errorf("%s is gone", k)
		}
	}
	next, err := Open(ctx, alone(b.Store().Connect(4), 3))
	if errors.Is(err, ErrContradiction) {
		return "contradiction"
	}
	if err != nil {
		t.Fatalf("the next start: %v", err)
	}
	c.check(t, next)
	other.check(t, next)
	mustClose(t, next)
	return "all is there"
}
