package journal

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/cryptotest"
	"testing/synctest"
	"time"

	"holdfast/history"
	"holdfast/service/bucket"
	"holdfast/service/bucket/sim"
	"holdfast/service/segment"
	"holdfast/service/view"
	"holdfast/service/view/viewtest"
)

// drive enrols, if need be, and makes backups from run on until one fails or all are done.
func (c *client) drive(ctx context.Context, run *int, runs int) error {
	if !c.enrolled {
		if err := c.enrol(ctx); err != nil {
			return err
		}
	}
	for ; *run < runs; *run++ {
		if err := c.backup(ctx, *run, 7); err != nil {
			return err
		}
	}
	return nil
}

// The process dies at each of its writes, applied or not. The next one, with nothing but the bucket (or
// with the view that the dead one left), finds everything that was acknowledged, and the rest goes on.
func TestCrashAtEveryWrite(t *testing.T) {
	const runs = 2
	total := 0
	synctest.Test(t, func(t *testing.T) {
		b := sim.New(1)
		j := mustOpen(t, config(b))
		c, run := &client{Customer: newCustomer(), j: j}, 0
		if err := c.drive(context.Background(), &run, runs); err != nil {
			t.Fatal(err)
		}
		mustClose(t, j)
		total = b.Writes()
	})
	if total < 10 {
		t.Fatalf("only %d writes", total)
	}
	for n := 1; n <= total; n++ {
		for _, applied := range []bool{false, true} {
			name := fmt.Sprintf("write %d, applied %v", n, applied)
			ok := t.Run(name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					ctx := context.Background()
					b := sim.New(1)
					b.CrashAt(n, applied)
					c, run := &client{Customer: newCustomer()}, 0
					if j, err := Open(ctx, config(b)); err == nil {
						c.j = j
						if err := c.drive(ctx, &run, runs); err == nil {
							t.Fatal("it survived")
						} else if !errors.Is(err, ErrStopped) {
							t.Fatal(err)
						}
						_ = j.Close(ctx)
					}
					j := mustOpen(t, config(b.Store().Connect(2)))
					c.check(t, j)
					checkStore(t, b.Store(), j)
					c.resume(t, j)
					if err := c.drive(ctx, &run, runs); err != nil {
						t.Fatal(err)
					}
					if len(c.archives) != runs {
						t.Fatalf("%d archives", len(c.archives))
					}
					c.check(t, j)
					checkStore(t, b.Store(), j)
					mustClose(t, j)
				})
			})
			if !ok {
				return
			}
		}
	}
}

// inShort is the step of a loop over each operation: 1, but with -short, as under the race detector, n.
func inShort(n int) int {
	if testing.Short() {
		return n
	}
	return 1
}

// Each call of each kind fails once, in each form; the journal goes on by itself.
func TestEveryOperationFailsOnce(t *testing.T) {
	forms := map[string]sim.Fault{
		"failed":        {Err: sim.ErrFault},
		"applied":       {Err: sim.ErrFault, Applied: true},
		"hung":          {Hang: true},
		"hung, applied": {Hang: true, Applied: true},
		"late":          {Hang: true, Late: 3 * time.Minute},
		"slow":          {Slow: 20 * time.Second},
		"short":         {Short: true},
		"flip":          {Flip: true},
		"wrong":         {Wrong: true},
		"hidden":        {Hide: true},
	}
	step := inShort(10)
	for i, form := range slices.Sorted(maps.Keys(forms)) {
		fault := forms[form]
		t.Run(form, func(t *testing.T) {
			for n := 1 + i%step; ; n += step {
				done := false
				synctest.Test(t, func(t *testing.T) {
					b := sim.New(1)
					var op atomic.Int32
					b.OnOp(func(sim.Op, string, int) sim.Fault {
						if int(op.Add(1)) == n {
							return fault
						}
						return sim.Fault{}
					})
					ctx := context.Background()
					j := mustOpen(t, config(b))
					c, run := &client{Customer: newCustomer(), j: j}, 0
					if err := c.drive(ctx, &run, 1); err != nil {
						t.Fatalf("operation %d: %v", n, err)
					}
					mustClose(t, j)
					j = mustOpen(t, config(b))
					c.check(t, j)
					checkStore(t, b.Store(), j)
					mustClose(t, j)
					b.Store().Land()
					done = int(op.Load()) < n
				})
				if done || t.Failed() {
					return
				}
			}
		})
	}
}

// Much goes wrong at random, for hours; every archive is made, and nothing that was promised is lost.
func TestRandomFaults(t *testing.T) {
	for seed := range uint64(20) {
		synctest.Test(t, func(t *testing.T) {
			cryptotest.SetGlobalRandom(t, seed) // for the nonces
			b := sim.New(seed)
			// Not Cursed: only a put can take another key (TestCursedPutIsAbandoned). Not Hide: a store that
			// forgets a fresh object twice running is not one (JOURNAL 9).
			b.Profile = sim.Profile{
				Fail: 60_000, Applied: 40_000, Hang: 10_000, Hung: 10_000, Late: 20_000, Slow: 50_000,
				Short: 20_000, Flip: 20_000, Wrong: 20_000,
			}
			ctx := context.Background()
			c, run := &client{Customer: newCustomer()}, 0
			for range 4 { // restarts
				j, err := Open(ctx, config(b))
				// A start says that it gives up when all has gone wrong for minutes, as it may by chance. Then it is started again.
				for tries := 0; tries < 3 && (errors.Is(err, ErrUnavailable) || errors.Is(err, ErrDamaged)); tries++ {
					j, err = Open(ctx, config(b))
				}
				if err != nil {
					t.Fatalf("seed %d: %v", seed, err)
				}
				c.resume(t, j)
				if err := c.drive(ctx, &run, run+2); err != nil {
					t.Fatalf("seed %d: %v", seed, err)
				}
				if err := j.Close(ctx); err != nil {
					t.Fatalf("seed %d: %v", seed, err)
				}
			}
			time.Sleep(time.Hour) // everything late has landed
			j := mustOpen(t, config(b.Store().Connect(0)))
			c.check(t, j)
			checkStore(t, b.Store(), j)
			if run != 8 || len(c.archives) != 8 {
				t.Fatalf("seed %d: %d archives", seed, len(c.archives))
			}
			mustClose(t, j)
		})
		if t.Failed() {
			return
		}
	}
}

// A request that fails for ever is abandoned for one under a fresh key.
func TestCursedPutIsAbandoned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := sim.New(1)
		j := mustOpen(t, config(b))
		cursed := ""
		attempts := map[string]int{}
		b.OnOp(func(op sim.Op, key string, attempt int) sim.Fault {
			if op != sim.OpPut {
				return sim.Fault{}
			}
			attempts[key]++
			if cursed == "" {
				cursed = key
			}
			if key == cursed {
				return sim.Fault{Slow: sim.CursedDelay, Err: sim.ErrFault}
			}
			return sim.Fault{}
		})
		c := &client{Customer: newCustomer(), j: j}
		within(t, 7*time.Second, "enrolment", func() {
			if err := c.enrol(context.Background()); err != nil {
				t.Fatal(err)
			}
		})
		if attempts[cursed] != 1 {
			t.Errorf("%d attempts on one key", attempts[cursed])
		}
		mustClose(t, j)
	})
}

// SCENARIOS S8: the same PUT lands twice, late, after its writer has given up.
func TestScenarioS8LatePut(t *testing.T) {
	t.Run("twins", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := sim.New(1)
			j := mustOpen(t, config(b))
			// Every call fails; it lands when the test says so, or has landed.
			var calm atomic.Bool
			var puts atomic.Int32
			b.OnOp(func(op sim.Op, _ string, _ int) sim.Fault {
				switch {
				case calm.Load() || op != sim.OpPut:
					return sim.Fault{}
				case puts.Add(1)%2 == 0:
					return sim.Fault{Err: sim.ErrFault, Applied: true}
				}
				return sim.Fault{Err: sim.ErrFault, Late: sim.UntilLand}
			})
			c := &client{Customer: newCustomer(), j: j}
			tk, err := j.Append(context.Background(), func(tx *Tx) error { return tx.Record(c.Account()) })
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Minute)
			calm.Store(true)
			if err := tk.Wait(context.Background()); err != nil {
				t.Fatal(err)
			}
			if err := c.enrol(context.Background()); err != nil {
				t.Fatal(err)
			}
			run := 0
			if err := c.drive(context.Background(), &run, 1); err != nil {
				t.Fatal(err)
			}
			if b.Store().Land() == 0 {
				t.Fatal("nothing landed late")
			}
			at := map[segment.Position]int{}
			twins := 0
			for _, k := range objects(b.Store()) {
				if at[k.Position]++; at[k.Position] > 1 {
					twins++
				}
			}
			if twins == 0 {
				t.Fatal("no twins: the test does not test")
			}
			mustClose(t, j)
			j = mustOpen(t, config(b))
			c.check(t, j)
			checkStore(t, b.Store(), j)
			mustClose(t, j)
		})
	})

	// A segment of a closed epoch that lands after the next owner listed is never part of the journal,
	// although it continues it without a gap; nor is what was acknowledged ever cut.
	t.Run("closed epoch", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			ctx := context.Background()
			b := sim.New(1)
			j := mustOpen(t, config(b))
			c := &client{Customer: newCustomer(), j: j}
			if err := c.enrol(ctx); err != nil {
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
			time.Sleep(time.Second)
			b.Crash()
			if err := tk.Wait(ctx); !errors.Is(err, ErrStopped) {
				t.Fatalf("acknowledged: %v", err)
			}
			_ = j.Close(ctx)

			b2 := b.Store().Connect(2)
			j = mustOpen(t, config(b2))
			if b.Store().Land() == 0 {
				t.Fatal("nothing landed late")
			}
			for range 2 { // now, and after one more epoch
				if _, _, ok, _ := j.Acked().Record(lost.ID()); ok {
					t.Fatal("a segment that landed in a closed epoch became part of the journal")
				}
				checkStore(t, b.Store(), j)
				mustClose(t, j)
				j = mustOpen(t, config(b2))
			}
			c.resume(t, j)
			run := 0
			if err := c.drive(ctx, &run, 1); err != nil {
				t.Fatal(err)
			}
			c.check(t, j)
			mustClose(t, j)
		})
	})

	// The takeover record of an owner that came between lands after a later owner listed.
	t.Run("takeover record", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			ctx := context.Background()
			b := sim.New(1)
			j := mustOpen(t, config(b))
			c := &client{Customer: newCustomer(), j: j}
			run := 0
			if err := c.drive(ctx, &run, 1); err != nil {
				t.Fatal(err)
			}
			mustClose(t, j)
			between := b.Store().Connect(2)
			between.OnOp(func(op sim.Op, _ string, _ int) sim.Fault {
				if op == sim.OpPut {
					between.Crash()
					return sim.Fault{Err: sim.ErrFault, Late: sim.UntilLand}
				}
				return sim.Fault{}
			})
			if _, err := Open(ctx, config(between)); err == nil {
				t.Fatal("it survived")
			}
			j = mustOpen(t, config(b.Store().Connect(3)))
			if b.Store().Land() != 1 {
				t.Fatal("nothing landed late")
			}
			c.resume(t, j)
			if err := c.drive(ctx, &run, 2); err != nil {
				t.Fatal(err)
			}
			mustClose(t, j)
			j = mustOpen(t, config(b.Store().Connect(4)))
			c.check(t, j)
			checkStore(t, b.Store(), j)
			mustClose(t, j)
		})
	})

	// Other content under the place of an accepted segment stops the start.
	t.Run("other content", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			ctx := context.Background()
			b := sim.New(1)
			j := mustOpen(t, config(b))
			c := &client{Customer: newCustomer(), j: j}
			if err := c.enrol(ctx); err != nil {
				t.Fatal(err)
			}
			mustClose(t, j)
			k := objects(b.Store())[1]
			k.Nonce[0]++
			k.Hash[0]++
			if err := b.Put(ctx, k.String(), []byte("x")); err != nil {
				t.Fatal(err)
			}
			if _, err := Open(ctx, config(b)); !errors.Is(err, ErrContradiction) {
				t.Fatalf("two contents of %s: %v", k.Position, err)
			}
		})
	})
}

// SCENARIOS S9: short reads, flipped bits, the wrong object, a list that misses a fresh object.
func TestScenarioS9WeakStore(t *testing.T) {
	for name, fault := range map[string]sim.Fault{"short": {Short: true}, "flip": {Flip: true}, "wrong": {Wrong: true}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx := context.Background()
				b := sim.New(1)
				j := mustOpen(t, config(b))
				c := &client{Customer: newCustomer(), j: j}
				run := 0
				if err := c.drive(ctx, &run, 1); err != nil {
					t.Fatal(err)
				}
				for _, always := range []bool{false, true} {
					gets := 0
					b.OnOp(func(op sim.Op, key string, _ int) sim.Fault {
						if gets++; op == sim.OpGet && strings.Contains(key, "/log/") && (always || gets%blockReads != 0) {
							return fault
						}
						return sim.Fault{}
					})
					for _, blk := range c.acked {
						row, _, err := j.Acked().Block(c.Vault, c.Group, blk.Name)
						if err != nil {
							t.Fatal(err)
						}
						gets = 0
						got, err := j.ReadBlock(ctx, row)
						switch {
						case always && !errors.Is(err, ErrDamaged):
							t.Fatalf("served from a bad store: %v", err)
						case !always && (err != nil || string(got) != string(blk.Sealed)):
							t.Fatalf("not read again: %v", err)
						}
					}
					if always {
						break
					}
				}
				b.OnOp(nil)
				mustClose(t, j)

				// Recovery from trailers that come back wrong now and then, or always.
				b = b.Store().Connect(2)
				b.OnOp(func(op sim.Op, key string, attempt int) sim.Fault {
					if op == sim.OpGet && attempt%2 == 1 {
						return fault
					}
					return sim.Fault{}
				})
				j = mustOpen(t, config(b))
				c.check(t, j)
				b.OnOp(nil)
				checkStore(t, b.Store(), j)
				mustClose(t, j)
				b.OnOp(func(op sim.Op, key string, _ int) sim.Fault {
					if op == sim.OpGet && strings.Contains(key, "/log/") {
						return fault
					}
					return sim.Fault{}
				})
				if _, err := Open(ctx, config(b)); !errors.Is(err, ErrDamaged) {
					t.Fatalf("start on damaged trailers: %v", err)
				}
			})
		})
	}
	t.Run("damage is found by check", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			ctx := context.Background()
			b := sim.New(1)
			cfg := config(b)
			cfg.Dir = t.TempDir() + "/view"
			j := mustOpen(t, cfg)
			c := &client{Customer: newCustomer(), j: j}
			run := 0
			if err := c.drive(ctx, &run, 1); err != nil {
				t.Fatal(err)
			}
			row, _, err := j.Acked().Block(c.Vault, c.Group, c.acked[3].Name)
			if err != nil {
				t.Fatal(err)
			}
			seg, _, err := j.Acked().Segment(row.Pos)
			if err != nil {
				t.Fatal(err)
			}
			mustClose(t, j)
			if r, err := Check(ctx, cfg, nil); err != nil || r.Blocks != 9 {
				t.Fatalf("%+v %v", r, err)
			}
			b.Store().Damage(seg.Key.String(), func(p []byte) []byte { p[row.Off+1] ^= 4; return p })
			if r, err := Check(ctx, cfg, nil); !errors.Is(err, ErrDamaged) || len(r.Problems) != 1 || !strings.Contains(r.Problems[0], c.acked[3].Name.String()) {
				t.Fatalf("%+v %v", r, err)
			}
		})
	})
	t.Run("hidden tail", func(t *testing.T) {
		for _, wait := range []time.Duration{5 * time.Second, time.Hour} {
			synctest.Test(t, func(t *testing.T) {
				ctx := context.Background()
				b := sim.New(1)
				cfg := config(b)
				cfg.Dir = t.TempDir() + "/view"
				j := mustOpen(t, cfg)
				c := &client{Customer: newCustomer(), j: j}
				run := 0
				if err := c.drive(ctx, &run, 1); err != nil {
					t.Fatal(err)
				}
				mustClose(t, j)
				began := time.Now()
				b.OnOp(func(op sim.Op, _ string, _ int) sim.Fault {
					return sim.Fault{Hide: op == sim.OpList && time.Since(began) < wait}
				})
				j, err := Open(ctx, cfg)
				if wait == time.Hour {
					// It never shows up: nobody may write over it.
					if !errors.Is(err, ErrContradiction) {
						t.Fatalf("the newest segment is hidden: %v", err)
					}
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				c.check(t, j)
				mustClose(t, j)
			})
		}
	})
}

// Another owner takes the cell over while a segment is on its way, at every moment of it. The old owner
// acknowledges nothing that the new one does not have, stops, and a restart does not take the cell back.
func TestLostEpoch(t *testing.T) {
	steal := func(t *testing.T, b *sim.Bucket) *Journal {
		cfg := config(b.Store().Connect(7))
		cfg.Host, cfg.Takeover = hostB, true
		return mustOpen(t, cfg)
	}
	for _, at := range []string{"before the put", "after the put", "after the read"} {
		t.Run(at, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx := context.Background()
				b := sim.New(1)
				j := mustOpen(t, config(b))
				c := &client{Customer: newCustomer(), j: j}
				if err := c.enrol(ctx); err != nil {
					t.Fatal(err)
				}
				var thief *Journal
				b.OnOp(func(op sim.Op, key string, _ int) sim.Fault {
					if thief != nil {
						return sim.Fault{}
					}
					if at == "before the put" && op == sim.OpPut || at == "after the put" && op == sim.OpGet {
						thief = steal(t, b)
					}
					return sim.Fault{}
				})
				open := c.Open()
				err := c.record(ctx, open)
				if at == "after the read" {
					if err != nil {
						t.Fatal(err)
					}
					thief = steal(t, b)
					err = c.record(ctx, c.Open())
				}
				if !errors.Is(err, ErrLost) || !errors.Is(err, ErrStopped) {
					t.Fatalf("acknowledged by the loser: %v", err)
				}
				_, _, ok, _ := thief.Acked().Record(open.ID())
				if want := at != "before the put"; ok != want {
					t.Errorf("the new owner has the segment: %v, want %v", ok, want)
				}
				if _, err := j.Append(ctx, func(*Tx) error { return nil }); !errors.Is(err, ErrLost) {
					t.Fatalf("append after the loss: %v", err)
				}
				_ = j.Close(ctx)
				if _, err := Open(ctx, config(b)); !errors.Is(err, ErrOwned) {
					t.Fatalf("restart of the loser: %v", err)
				}
				c.resume(t, thief)
				run := 0
				if err := c.drive(ctx, &run, 2); err != nil {
					t.Fatal(err)
				}
				c.check(t, thief)
				checkStore(t, b.Store(), thief)
				mustClose(t, thief)
			})
		})
	}
}

// An epoch object that is gone or was set back is no reason to begin again.
func TestEpochObjectMustNotVanish(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		b := sim.New(1)
		j := mustOpen(t, config(b))
		c := &client{Customer: newCustomer(), j: j}
		if err := c.enrol(ctx); err != nil {
			t.Fatal(err)
		}
		mustClose(t, j)
		b.Store().Damage(segment.EpochKey(testCell), func([]byte) []byte { return nil })
		if _, err := Open(ctx, config(b)); !errors.Is(err, ErrContradiction) {
			t.Fatalf("start without the epoch object: %v", err)
		}
	})
}

// The owner is paused where it has read the epoch object and not yet acknowledged: a claim after that read
// lists what was durable before it.
func TestPausedOwner(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		b := sim.New(1)
		j := mustOpen(t, config(b))
		c := &client{Customer: newCustomer(), j: j}
		if err := c.enrol(ctx); err != nil {
			t.Fatal(err)
		}
		// Two segments; the first hangs, the second lands. A read that begins before the first is durable must
		// not acknowledge it.
		var mu sync.Mutex
		var first string
		var reads atomic.Int32
		b.OnOp(func(op sim.Op, key string, _ int) sim.Fault {
			mu.Lock()
			defer mu.Unlock()
			switch {
			case op == sim.OpPut && first == "":
				first = key
				return sim.Fault{Slow: 10 * time.Second}
			case op == sim.OpGet && key == segment.EpochKey(testCell):
				reads.Add(1)
				if _, err := b.Store().Connect(5).Get(ctx, first, 0, -1); errors.Is(err, bucket.ErrNotFound) {
					t.Error("the epoch object was read before an earlier segment was durable")
				}
			}
			return sim.Fault{}
		})
		r := c.Open()
		one, err := j.Append(ctx, func(tx *Tx) error { _, err := tx.History(r); return err })
		if err != nil {
			t.Fatal(err)
		}
		c.Accepted(r)
		j.Flush()
		time.Sleep(time.Second)
		two, err := j.Append(ctx, func(tx *Tx) error { _, err := tx.History(c.Open()); return err })
		if err != nil {
			t.Fatal(err)
		}
		j.Flush()
		time.Sleep(5 * time.Second)
		select {
		case <-two.Done():
			t.Fatal("acknowledged before its predecessor was durable")
		default:
		}
		if err := errors.Join(two.Wait(ctx), one.Wait(ctx)); err != nil {
			t.Fatal(err)
		}
		if reads.Load() != 2 {
			t.Errorf("%d reads", reads.Load())
		}
		mustClose(t, j)
	})
}

// The power is cut at every call to the bucket, with more or less of what the view had not synced on its
// disk. The next start on that disk and that bucket finds everything that was acknowledged, and the view is
// what the bucket says.
func TestPowerCutAtEveryOperation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		disk := view.NewDisk()
		b := sim.New(1)
		cfg := config(b)
		var err error
		if cfg.Store, err = disk.Open(); err != nil {
			t.Fatal(err)
		}
		type cut struct {
			disk     *view.Disk
			store    *sim.Store
			acked    []viewtest.Block
			archives []history.Record
		}
		var cuts []cut
		c, run := &client{Customer: newCustomer()}, 0
		b.OnOp(func(sim.Op, string, int) sim.Fault {
			// What was promised before the power went is in this copy; the disk after it, the bucket last.
			acked, archives := slices.Clone(c.acked), slices.Clone(c.archives)
			seed := uint64(len(cuts))
			cuts = append(cuts, cut{disk.Crash(int(seed%5)*25, seed), b.Store().Clone(), acked, archives})
			return sim.Fault{}
		})
		j := mustOpen(t, cfg)
		c.j = j
		if err := c.drive(ctx, &run, 3); err != nil {
			t.Fatal(err)
		}
		b.OnOp(nil)
		mustClose(t, j)
		behind := 0
		for i, cut := range cuts {
			cfg := config(cut.store.Connect(1))
			if cfg.Store, err = cut.disk.Open(); err != nil {
				t.Fatalf("cut %d: %v", i, err)
			}
			j, err := Open(ctx, cfg)
			if err != nil {
				t.Fatalf("cut %d: %v", i, err)
			}
			if j.Info().Replayed > 1 {
				behind++
			}
			after := &client{Customer: c.Customer, j: j, acked: cut.acked, archives: cut.archives, unsure: c.unsure}
			after.check(t, j)
			checkStore(t, cut.store, j)
			mustClose(t, j)
		}
		if behind == 0 || len(cuts) < 40 {
			t.Errorf("%d cuts, %d with a view that was behind: the test does not test", len(cuts), behind)
		}
	})
}

// What is not acknowledged is not in the view on disk, and segments are acknowledged in order, however
// late the epoch object answers for the first.
func TestAcknowledgedInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		b := sim.New(1)
		j := mustOpen(t, config(b))
		c := &client{Customer: newCustomer(), j: j}
		if err := c.enrol(ctx); err != nil {
			t.Fatal(err)
		}
		var reads atomic.Int32
		b.OnOp(func(op sim.Op, key string, _ int) sim.Fault {
			if op == sim.OpGet {
				if reads.Add(1) == 1 {
					return sim.Fault{Slow: 10 * time.Second}
				}
			}
			return sim.Fault{}
		})
		var records []history.Record
		var tickets []*Ticket
		for range 2 {
			r := c.Open()
			tk, err := j.Append(ctx, func(tx *Tx) error { _, err := tx.History(r); return err })
			if err != nil {
				t.Fatal(err)
			}
			c.Accepted(r)
			records, tickets = append(records, r), append(tickets, tk)
			j.Flush()
			time.Sleep(time.Second)
		}
		if reads.Load() != 2 {
			t.Fatalf("%d reads: the second segment is not as far as this test wants it", reads.Load())
		}
		for i, tk := range tickets {
			select {
			case <-tk.Done():
				t.Errorf("segment %d is acknowledged too early", i)
			default:
			}
			if _, _, ok, err := j.Acked().Record(records[i].ID()); err != nil || ok {
				t.Errorf("segment %d is in the view before it is acknowledged: %v", i, err)
			}
		}
		if err := tickets[1].Wait(ctx); err != nil {
			t.Fatal(err)
		}
		select {
		case <-tickets[0].Done():
		default:
			t.Error("the second was acknowledged before the first")
		}
		checkStore(t, b.Store(), j)
		mustClose(t, j)
	})
}

// A claim of which the answer is lost, or that lands after it was given up, is one claim.
func TestClaimWithoutAnswer(t *testing.T) {
	for name, fault := range map[string]sim.Fault{
		"applied": {Err: sim.ErrFault, Applied: true},
		"late":    {Err: sim.ErrFault, Late: 10 * time.Millisecond},
	} {
		synctest.Test(t, func(t *testing.T) {
			b := sim.New(1)
			b.OnOp(func(op sim.Op, _ string, attempt int) sim.Fault {
				if op == sim.OpSwap && attempt == 1 {
					return fault
				}
				return sim.Fault{}
			})
			j := mustOpen(t, config(b))
			if e := j.Info().Epoch; e != 1 {
				t.Errorf("%s: the claim of epoch 1 was not recognised: epoch %d", name, e)
			}
			mustClose(t, j)
		})
	}
}

// An emptied bucket, or another one in its place, is not taken for a new service: starting at nothing would
// hide that everything is gone.
func TestEmptiedBucketIsNoNewService(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := sim.New(1)
		j := mustOpen(t, config(b))
		mustClose(t, j)
		cfg := config(b)
		cfg.Create = false
		mustClose(t, mustOpen(t, cfg)) // this one has its journal

		cfg.Bucket = sim.New(2)
		if _, err := Open(t.Context(), cfg); !errors.Is(err, ErrNoJournal) {
			t.Errorf("another bucket: %v", err)
		}
		if n := cfg.Bucket.(*sim.Bucket).Writes(); n != 0 {
			t.Errorf("%d writes to the other bucket", n)
		}
		// The epoch object is there and the log is gone.
		objects, err := b.List(t.Context(), segment.LogPrefix(testCell), "", 1000)
		if err != nil || len(objects) == 0 {
			t.Fatal(len(objects), err)
		}
		for _, o := range objects {
			if err := b.Delete(t.Context(), o.Key); err != nil {
				t.Fatal(err)
			}
		}
		cfg.Bucket = b
		if _, err := Open(t.Context(), cfg); !errors.Is(err, ErrNoJournal) {
			t.Errorf("emptied bucket: %v", err)
		}
	})
}

// TestWeakStoreIsRefused: a start tries the bucket out before it claims anything.
func TestWeakStoreIsRefused(t *testing.T) {
	for _, w := range []sim.Weakness{sim.StaleList, sim.StaleRead, sim.BlindSwap, sim.RacySwap, sim.CreateRaces} {
		synctest.Test(t, func(t *testing.T) {
			b := sim.New(1)
			cfg := config(sim.Weak(b, w))
			cfg.Probe = true
			j, err := Open(context.Background(), cfg)
			if err == nil {
				mustClose(t, j)
			}
			if !errors.Is(err, bucket.ErrWeak) {
				t.Errorf("weakness %d: %v", w, err)
			}
			for _, k := range b.Store().Keys() {
				if !strings.Contains(k, "/probe/") {
					t.Errorf("weakness %d: %s was written to a store that was refused", w, k)
				}
			}
			cfg.Bucket = b
			mustClose(t, mustOpen(t, cfg))
		})
	}
}

// misread is a bucket of which some reads of the epoch object have one bit flipped, in the random part of the claim and
// always the same.
type misread struct {
	bucket.Bucket
	left atomic.Int32
}

func (m *misread) Get(ctx context.Context, key string, off, n int64) ([]byte, error) {
	raw, err := m.Bucket.Get(ctx, key, off, n)
	if err == nil && key == segment.EpochKey(testCell) && m.left.Add(-1) >= 0 {
		raw[20] ^= 1
	}
	return raw, err
}

// A few reads of the epoch object that are damaged in one way do not end an owner. If they stay so,
// somebody else owns the cell.
func TestMisreadEpoch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		b := sim.New(1)
		m := &misread{Bucket: b}
		j := mustOpen(t, config(m))
		defer j.Close(ctx)
		c, run := &client{Customer: newCustomer(), j: j}, 0
		for n := range int32(agreed) {
			m.left.Store(n)
			if err := c.drive(ctx, &run, run+1); err != nil {
				t.Fatalf("after %d damaged reads: %v", n, err)
			}
			if m.left.Load() > 0 {
				t.Fatalf("%d damaged reads of %d are left", m.left.Load(), n)
			}
		}
		c.check(t, j)
		checkStore(t, b.Store(), j)
		m.left.Store(agreed)
		if err := c.drive(ctx, &run, run+1); !errors.Is(err, ErrLost) && !errors.Is(err, ErrStopped) {
			t.Fatalf("another claim, for good: %v", err)
		}
		if err := j.Err(); !errors.Is(err, ErrLost) {
			t.Fatalf("another claim, for good: %v", err)
		}
	})
}
