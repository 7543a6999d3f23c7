package journal

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/service/bucket/sim"
	"holdfast/service/bucket/steady"
	"holdfast/service/segment"
)

// SCENARIOS S8: a put and the one that was begun beside it both land after their writer has given up and another
// owner has closed the epoch. Neither becomes part of the journal, now or later, and what was acknowledged stays.
func TestScenarioS8OvertakenTwinsInAClosedEpoch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		b := sim.New(1)
		j := mustOpen(t, config(paced{b, time.Second}))
		c := newClient(t, j, 1)
		run := 0
		if err := c.drive(ctx, &run, 1); err != nil {
			t.Fatal(err)
		}
		b.OnOp(func(op sim.Op, _ string, _ int) sim.Fault {
			if op == sim.OpPut {
				return sim.Fault{Hang: true, Late: sim.UntilLand}
			}
			return sim.Fault{}
		})
		lost := c.Open()
		tk, err := j.Append(ctx, func(tx *Tx) error { _, err := tx.History(lost); return err })
		if err != nil {
			t.Fatal(err)
		}
		j.Flush()
		time.Sleep(5 * time.Second)
		b.Crash()
		if err := tk.Wait(ctx); !errors.Is(err, ErrStopped) {
			t.Fatalf("acknowledged: %v", err)
		}
		_ = j.Close(ctx)

		b2 := b.Store().Connect(2)
		j = mustOpen(t, config(b2))
		before := len(objects(b.Store()))
		if n := b.Store().Land(); n != maxCalls {
			t.Fatalf("%d puts landed late", n)
		}
		all := objects(b.Store())
		twins := map[segment.Position]int{}
		for _, k := range all {
			twins[k.Position]++
		}
		if len(all) != before+maxCalls || len(twins) != before+1 {
			t.Fatalf("%d objects at %d places after %d", len(all), len(twins), before)
		}
		for range 2 { // now, and after one more epoch
			if _, _, ok, _ := j.Acked().Record(lost.ID()); ok {
				t.Fatal("a segment that landed in a closed epoch became part of the journal")
			}
			if q, err := j.Quarantine(ctx); err != nil || q.Count != maxCalls {
				t.Errorf("quarantine %+v, %v", q, err)
			}
			c.check(t, j)
			checkStore(t, b.Store(), j)
			mustClose(t, j)
			j = mustOpen(t, config(b2))
		}
		c.resume(t, j)
		if err := c.drive(ctx, &run, 2); err != nil {
			t.Fatal(err)
		}
		c.check(t, j)
		mustClose(t, j)
	})
}

// SCENARIOS S9: many answers are short, have a wrong bit or are those of another object, and package steady is in
// between. Whatever is served is right: a wrong answer is read again, and if it is wrong again and again it is an error.
func TestScenarioS9ThroughSteady(t *testing.T) {
	for seed := range uint64(4) {
		synctest.Test(t, func(t *testing.T) {
			ctx := context.Background()
			b := sim.New(seed)
			b.Profile = sim.Profile{Short: 60_000, Flip: 60_000, Wrong: 60_000, Fail: 10_000}
			j, err := Open(ctx, config(steady.New(b, steady.Config{})))
			if err != nil {
				t.Fatal(err)
			}
			c := newClient(t, j, 1)
			run := 0
			if err := c.drive(ctx, &run, 4); err != nil {
				t.Fatal(err)
			}
			served, refused := 0, 0
			for range 5 {
				for _, blk := range c.acked {
					row, ok, err := j.Acked().Block(c.Vault, c.Group, blk.Name)
					if err != nil || !ok {
						t.Fatal(err)
					}
					switch got, err := j.ReadBlock(ctx, row); {
					case err == nil && !bytes.Equal(got, blk.Sealed):
						t.Fatalf("wrong bytes of block %s were served", blk.Name)
					case err == nil:
						served++
					case errors.Is(err, ErrDamaged):
						refused++
					default:
						t.Fatal(err)
					}
				}
			}
			if served < 100*refused || served == 0 {
				t.Errorf("%d reads were served, %d refused", served, refused)
			}
			if f := j.Freezes(); len(f) > 0 {
				t.Errorf("frozen: %+v", f)
			}
			mustClose(t, j)
			// Its trailers come back wrong as well. One that does so four times running ends the start; the next looks anew.
			for tries := 0; ; tries++ {
				if j, err = Open(ctx, config(steady.New(b, steady.Config{}))); err == nil {
					break
				}
				if tries == 5 || !errors.Is(err, ErrDamaged) {
					t.Fatal(err)
				}
			}
			mustClose(t, j)
			j = mustOpen(t, config(b.Store().Connect(9)))
			c.check(t, j)
			checkStore(t, b.Store(), j)
			mustClose(t, j)
		})
	}
}
