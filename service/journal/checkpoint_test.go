package journal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/service/bucket/sim"
	"holdfast/service/segment"
	"holdfast/service/view"
)

// checkpointed is config with parts of few rows, and a log that l gets.
func checkpointed(b *sim.Bucket, l *bytes.Buffer) Config {
	cfg := config(b)
	cfg.partSize = 2 << 10
	if l != nil {
		cfg.Log = slog.New(slog.NewTextHandler(l, nil))
	}
	return cfg
}

func mustCheckpoint(t *testing.T, j *Journal) CheckpointReport {
	t.Helper()
	r, err := j.Checkpoint(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if r.Untidy != nil {
		t.Fatal(r.Untidy)
	}
	return r
}

// drawn is a checkpoint of the store with everything that lies below its prefix.
type drawn struct {
	prefix   string
	manifest string
	parts    []string
}

func drawnOf(t *testing.T, s *sim.Store, r CheckpointReport) drawn {
	t.Helper()
	at := strings.LastIndexByte(r.Object, '/')
	d := drawn{prefix: r.Object[:at+1], manifest: r.Object}
	for _, k := range s.Keys() {
		if strings.HasPrefix(k, d.prefix) && k != r.Object {
			d.parts = append(d.parts, k)
		}
	}
	if len(d.parts) < 4 || len(d.parts) != r.Parts {
		t.Fatalf("%d parts, the report says %d", len(d.parts), r.Parts)
	}
	return d
}

// body returns the content of an object.
func body(t *testing.T, s *sim.Store, key string) []byte {
	t.Helper()
	raw, err := s.Clone().Connect(77).Get(context.Background(), key, 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// removed is what Damage makes of an object that is to go.
func removed([]byte) []byte { return nil }

// checkpointKeys returns the keys of all that lies in the bucket of checkpoints.
func checkpointKeys(s *sim.Store) (all []string) {
	for _, k := range s.Keys() {
		if strings.HasPrefix(k, checkpointPrefix(testCell)) {
			all = append(all, k)
		}
	}
	return all
}

// prefixes returns the checkpoints and attempts in the bucket, and how many of them have a manifest.
func prefixes(s *sim.Store) (all []string, finished int) {
	done := map[string]bool{}
	for _, k := range checkpointKeys(s) {
		p := k[:strings.LastIndexByte(k, '/')+1]
		if !slices.Contains(all, p) {
			all = append(all, p)
		}
		if strings.Contains(k, "/manifest-") {
			done[p] = true
		}
	}
	return all, len(done)
}

// small appends n segments of one record each.
func (c *client) small(t *testing.T, n int) {
	t.Helper()
	for range n {
		if err := c.append(context.Background(), func(tx *Tx) error { return tx.Record(segment.Metered{Account: c.ID, Names: 1}) }); err != nil {
			t.Fatal(err)
		}
	}
}

// A start is the newest checkpoint and the trailers after it: the same rows, of every kind, and no trailer before it is read.
func TestStartFromCheckpoint(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		b := sim.New(1)
		j := mustOpen(t, checkpointed(b, nil))
		c := &client{Customer: newCustomer(), j: j}
		if err := errors.Join(c.enrol(ctx), c.rule(ctx)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(31 * 24 * time.Hour)
		if err := c.ruleLater(ctx); err != nil {
			t.Fatal(err)
		}
		r := mustCheckpoint(t, j)
		want, pos, err := j.Digest(ctx)
		if err != nil || r.Position != pos || r.Digest != want {
			t.Fatalf("the checkpoint is of %s with digest %x, the view of %s with %x, %v", r.Position, r.Digest, pos, want, err)
		}
		drawnOf(t, b.Store(), r)
		c.small(t, 2*tail)
		mustClose(t, j)

		early := 0
		b2 := b.Store().Connect(2)
		b2.OnOp(func(op sim.Op, key string, _ int) sim.Fault {
			if k, err := segment.ParseKey(key); err == nil && op == sim.OpGet && k.Position.Compare(pos) <= 0 && k.Position.Seq > 0 { // a takeover record says what the journal is
				early++
			}
			return sim.Fault{}
		})
		j = mustOpen(t, config(b2))
		if i := j.Info(); i.Checkpoint != pos || i.Replayed != 2*tail || !i.Rebuilt || early > 0 {
			t.Fatalf("%+v, and %d reads of trailers before the checkpoint", i, early)
		}
		c.unsure = slices.Delete(c.unsure, 1, 2) // it was purged
		c.check(t, j)
		checkStore(t, b.Store(), j)
		c.resume(t, j)
		if err := c.append(ctx, func(tx *Tx) error { return tx.Record(segment.Metered{Account: c.ID, Names: 1}) }); err != nil {
			t.Fatal(err)
		}
		checkStore(t, b.Store(), j)
		mustClose(t, j)

		// Recover does that, and says so; Rebuild is from trailers alone. Both find the same.
		for _, from := range []bool{true, false} {
			make := Rebuild
			if from {
				make = Recover
			}
			rep, err := make(ctx, config(b.Store().Clone().Connect(3)))
			if err != nil || (rep.Checkpoint == pos) != from || (rep.Checkpoint != segment.Position{}) != from {
				t.Fatalf("%+v, %v", rep, err)
			}
			if from {
				want = rep.Digest
			} else if rep.Digest != want {
				t.Fatal("another digest from trailers alone")
			}
		}
	})
}

// A checkpoint is of one moment, whatever is committed while it is made; and rows that a later segment changed are as they were.
func TestCheckpointWhileAppending(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		b := sim.New(1)
		j := mustOpen(t, checkpointed(b, nil))
		c, run := &client{Customer: newCustomer(), j: j}, 0
		if err := c.drive(ctx, &run, 3); err != nil {
			t.Fatal(err)
		}
		want, pos, _ := j.Digest(ctx)
		n := 0
		b.OnOp(func(op sim.Op, key string, _ int) sim.Fault {
			if op == sim.OpPut && strings.Contains(key, "/checkpoint/") {
				if n++; n <= 3 {
					if err := c.append(ctx, func(tx *Tx) error { return tx.Record(segment.Metered{Account: c.ID, Names: 9}) }); err != nil {
						t.Error(err)
					}
				}
			}
			return sim.Fault{}
		})
		r := mustCheckpoint(t, j)
		if j.Position() == pos || r.Position != pos || r.Digest != want {
			t.Fatalf("the journal is at %s; the checkpoint at %s with %x, want %s with %x", j.Position(), r.Position, r.Digest, pos, want)
		}
		mustClose(t, j)
		j = mustOpen(t, config(b.Store().Connect(2)))
		if j.Info().Checkpoint != pos {
			t.Fatalf("%+v", j.Info())
		}
		c.check(t, j)
		checkStore(t, b.Store(), j)
		mustClose(t, j)
	})
}

// Whatever is wrong with a checkpoint, the one before is used, and then trailers alone; the view is the same, and the log
// names what was of no use.
func TestBadCheckpointFallsBack(t *testing.T) {
	cut := func(n int) func([]byte) []byte { return func(b []byte) []byte { return b[:len(b)-n] } }
	flip := func(at int) func([]byte) []byte {
		return func(b []byte) []byte { b = bytes.Clone(b); b[at%len(b)] ^= 1; return b }
	}
	// remade puts another manifest in the place of d's, one that its key names.
	remade := func(t *testing.T, s *sim.Store, d drawn, change func(*view.Manifest)) string {
		m, err := view.ParseManifest(body(t, s, d.manifest))
		if err != nil {
			t.Fatal(err)
		}
		change(&m)
		raw := m.Encode()
		s.Damage(d.manifest, removed)
		key := manifestKey(d.prefix, raw)
		if err := s.Connect(50).Put(context.Background(), key, raw); err != nil {
			t.Fatal(err)
		}
		return key
	}
	cases := map[string]func(t *testing.T, s *sim.Store, d drawn) (named string){
		"manifest flipped": func(_ *testing.T, s *sim.Store, d drawn) string { s.Damage(d.manifest, flip(70)); return d.manifest },
		"manifest cut":     func(_ *testing.T, s *sim.Store, d drawn) string { s.Damage(d.manifest, cut(48)); return d.manifest },
		"manifest gone":    func(_ *testing.T, s *sim.Store, d drawn) string { s.Damage(d.manifest, removed); return "" },
		"manifest empty": func(_ *testing.T, s *sim.Store, d drawn) string {
			s.Damage(d.manifest, func([]byte) []byte { return []byte{} })
			return d.manifest
		},
		"first part flipped": func(_ *testing.T, s *sim.Store, d drawn) string { s.Damage(d.parts[0], flip(200)); return d.manifest },
		"last part cut": func(_ *testing.T, s *sim.Store, d drawn) string {
			s.Damage(d.parts[len(d.parts)-1], cut(1))
			return d.manifest
		},
		"middle part gone": func(_ *testing.T, s *sim.Store, d drawn) string { s.Damage(d.parts[2], removed); return d.manifest },
		"all parts gone": func(_ *testing.T, s *sim.Store, d drawn) string {
			for _, p := range d.parts {
				s.Damage(p, removed)
			}
			return d.manifest
		},
		"a part is another's": func(t *testing.T, s *sim.Store, d drawn) string {
			other := body(t, s, d.parts[3])
			s.Damage(d.parts[2], func([]byte) []byte { return other })
			return d.manifest
		},
		"another version": func(t *testing.T, s *sim.Store, d drawn) string {
			return remade(t, s, d, func(m *view.Manifest) { m.Version-- })
		},
		"another cell": func(t *testing.T, s *sim.Store, d drawn) string {
			return remade(t, s, d, func(m *view.Manifest) { m.Cell[3]++ })
		},
		"another position": func(t *testing.T, s *sim.Store, d drawn) string {
			return remade(t, s, d, func(m *view.Manifest) { m.Position.Seq-- })
		},
		"another hash": func(t *testing.T, s *sim.Store, d drawn) string {
			return remade(t, s, d, func(m *view.Manifest) { m.Hash[3]++ })
		},
		"rows less": func(t *testing.T, s *sim.Store, d drawn) string {
			return remade(t, s, d, func(m *view.Manifest) { m.Parts = m.Parts[:1] })
		},
		"no manifest": func(t *testing.T, s *sim.Store, d drawn) string {
			s.Damage(d.manifest, removed)
			key := manifestKey(d.prefix, []byte("?"))
			if err := s.Connect(50).Put(context.Background(), key, []byte("?")); err != nil {
				t.Fatal(err)
			}
			return key
		},
	}
	for name, spoil := range cases {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx := context.Background()
				b := sim.New(1)
				j := mustOpen(t, checkpointed(b, nil))
				c, run := &client{Customer: newCustomer(), j: j}, 0
				var made []CheckpointReport
				for n := 1; n <= 2; n++ {
					if err := c.drive(ctx, &run, n); err != nil {
						t.Fatal(err)
					}
					made = append(made, mustCheckpoint(t, j))
				}
				c.small(t, 3)
				mustClose(t, j)
				// The newest is of no use, then both.
				s := b.Store()
				for bad := 1; bad <= 2; bad++ {
					named := spoil(t, s, drawnOf(t, s, made[2-bad]))
					want := segment.Position{}
					if bad == 1 {
						want = made[0].Position
					}
					var log bytes.Buffer
					j := mustOpen(t, checkpointed(s.Connect(uint64(bad+1)), &log))
					if j.Info().Checkpoint != want {
						t.Fatalf("began with the checkpoint at %s, want %s\n%s", j.Info().Checkpoint, want, log.String())
					}
					if n := strings.Count(log.String(), "level=ERROR"); named != "" && (n != bad || !strings.Contains(log.String(), named)) {
						t.Errorf("the log does not name %s alone:\n%s", named, log.String())
					}
					c.check(t, j)
					checkStore(t, s, j)
					mustClose(t, j)
				}
				// The next one is made all the same, and used.
				j = mustOpen(t, checkpointed(s.Connect(9), nil))
				r := mustCheckpoint(t, j)
				mustClose(t, j)
				j = mustOpen(t, checkpointed(s.Connect(10), nil))
				if j.Info().Checkpoint != r.Position {
					t.Errorf("began with %s, not with the new one at %s", j.Info().Checkpoint, r.Position)
				}
				checkStore(t, s, j)
				mustClose(t, j)
			})
		})
	}
}

// A checkpoint of another journal, that is whole in itself and says that it is of this cell, is not used: neither of a
// place that this one has, nor of one that it does not have (JOURNAL 10).
func TestCheckpointOffTheChain(t *testing.T) {
	for _, runs := range []int{1, 4} {
		synctest.Test(t, func(t *testing.T) {
			ctx := context.Background()
			foreign := sim.New(2)
			j := mustOpen(t, checkpointed(foreign, nil))
			other, run := &client{Customer: newCustomer(), j: j}, 0
			other.DayBytes = 1 << 30 // so that its segments have other bytes
			if err := other.drive(ctx, &run, runs); err != nil {
				t.Fatal(err)
			}
			r := mustCheckpoint(t, j)
			mustClose(t, j)

			b := sim.New(1)
			j = mustOpen(t, checkpointed(b, nil))
			c, run := &client{Customer: newCustomer(), j: j}, 0
			if err := c.drive(ctx, &run, 2); err != nil {
				t.Fatal(err)
			}
			end := j.Position()
			mustClose(t, j)
			if (r.Position.Compare(end) > 0) != (runs == 4) {
				t.Fatalf("the foreign one is of %s, ours ends at %s", r.Position, end)
			}
			for _, k := range checkpointKeys(foreign.Store()) {
				if err := b.Store().Connect(3).Put(ctx, k, body(t, foreign.Store(), k)); err != nil {
					t.Fatal(err)
				}
			}
			var log bytes.Buffer
			j = mustOpen(t, checkpointed(b.Store().Connect(4), &log))
			if j.Info().Checkpoint != (segment.Position{}) || !strings.Contains(log.String(), r.Object) || !strings.Contains(log.String(), "not part of the journal") {
				t.Fatalf("%+v\n%s", j.Info(), log.String())
			}
			c.check(t, j)
			checkStore(t, b.Store(), j)
			mustClose(t, j)
		})
	}
}

// afterCheckpoint holds what must be so after any attempt to make one, with nothing but the bucket: a start finds the same as
// from trailers alone, the next attempt succeeds, and nothing is left of the one before.
func (c *client) afterCheckpoint(t *testing.T, s *sim.Store) {
	t.Helper()
	open := func(seed uint64) *Journal {
		cfg := checkpointed(s.Connect(seed), nil)
		cfg.Takeover = true
		return mustOpen(t, cfg)
	}
	j := open(70)
	c.check(t, j)
	checkStore(t, s, j)
	r := mustCheckpoint(t, j)
	if all, finished := prefixes(s); len(all) > keepCheckpoints || finished != len(all) {
		t.Fatalf("%d finished of %q", finished, all)
	}
	mustClose(t, j)
	j = open(71)
	if j.Info().Checkpoint != r.Position {
		t.Fatalf("began with %s, not with %s", j.Info().Checkpoint, r.Position)
	}
	checkStore(t, s, j)
	mustClose(t, j)
}

// The process dies at each of its writes while it makes a checkpoint, applied or not.
func TestCrashWhileCheckpointing(t *testing.T) {
	run := func(t *testing.T, n int, applied bool) (writes int) {
		synctest.Test(t, func(t *testing.T) {
			ctx := context.Background()
			b := sim.New(1)
			cfg := checkpointed(b, nil)
			cfg.partSize = 4 << 10
			j := mustOpen(t, cfg)
			c, run := &client{Customer: newCustomer(), j: j}, 0
			for n := 1; n <= 3; n++ { // so that there is something to remove
				if err := c.drive(ctx, &run, n); err != nil {
					t.Fatal(err)
				}
				if n < 3 {
					mustCheckpoint(t, j)
				}
			}
			before := b.Writes()
			if n > 0 {
				b.CrashAt(n, applied)
			}
			_, err := j.Checkpoint(ctx)
			writes = b.Writes() - before
			if n > 0 && !b.Crashed() {
				t.Fatalf("it survived: %v", err)
			}
			_ = j.Close(ctx)
			keys := checkpointKeys(b.Store())
			for _, k := range keys { // what has a manifest is whole
				prefix := k[:strings.LastIndexByte(k, '/')+1]
				if !strings.Contains(k, "/manifest-") {
					continue
				}
				m, err := view.ParseManifest(body(t, b.Store(), k))
				if err != nil {
					t.Fatal(err)
				}
				for i, p := range m.Parts {
					if part := partKey(prefix, i, p.Nonce); !slices.Contains(keys, part) {
						t.Errorf("%s names %s, which is not there", k, part)
					}
				}
			}
			c.afterCheckpoint(t, b.Store())
		})
		return writes
	}
	total := run(t, 0, false)
	if total < 10 {
		t.Fatalf("only %d writes", total)
	}
	for n := 1; n <= total; n++ {
		for _, applied := range []bool{false, true} {
			if run(t, n, applied); t.Failed() {
				t.Fatalf("write %d, applied %v", n, applied)
			}
		}
	}
}

// Each call fails once while a checkpoint is made, in each form, and then while one is begun with (a few of them, with -short).
// Most are made up for; what is not costs a checkpoint, and nothing else.
func TestEveryOperationOfACheckpointFailsOnce(t *testing.T) {
	forms := map[string]sim.Fault{
		"failed":        {Err: sim.ErrFault},
		"applied":       {Err: sim.ErrFault, Applied: true},
		"hung":          {Hang: true},
		"hung, applied": {Hang: true, Applied: true},
		"late":          {Hang: true, Late: 3 * time.Minute},
		"short":         {Short: true},
		"flip":          {Flip: true},
		"wrong":         {Wrong: true},
		"hidden":        {Hide: true},
	}
	step := inShort(7)
	for i, form := range slices.Sorted(maps.Keys(forms)) {
		fault := forms[form]
		for _, starting := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, at a start %v", form, starting), func(t *testing.T) {
				made := 0
				for n, done := 1+i%step, false; !done && !t.Failed(); n += step {
					synctest.Test(t, func(t *testing.T) {
						ctx := context.Background()
						b := sim.New(1)
						cfg := checkpointed(b, nil)
						cfg.partSize = 12 << 10
						j := mustOpen(t, cfg)
						c, run := &client{Customer: newCustomer(), j: j}, 0
						if err := c.drive(ctx, &run, 2); err != nil {
							t.Fatal(err)
						}
						mustCheckpoint(t, j)
						var ops atomic.Int32
						once := func(b *sim.Bucket) {
							b.OnOp(func(op sim.Op, key string, _ int) sim.Fault {
								if strings.Contains(key, "/checkpoint/") && int(ops.Add(1)) == n {
									return fault
								}
								return sim.Fault{}
							})
						}
						s := b.Store()
						if starting {
							mustClose(t, j)
							b = s.Connect(2)
							once(b)
							j = mustOpen(t, checkpointed(b, nil))
						} else {
							once(b)
							if _, err := j.Checkpoint(ctx); err == nil {
								made++
							} else if !fault.Hide { // a 404 is final, once
								t.Errorf("operation %d: %v", n, err)
							}
						}
						c.check(t, j)
						checkStore(t, s, j)
						mustClose(t, j)
						s.Land()
						done = int(ops.Load()) < n
						c.afterCheckpoint(t, s)
					})
				}
				if !starting && made == 0 {
					t.Error("none was ever made")
				}
			})
		}
	}
}

// Checkpoints and starts at random places of a journal, over a bucket with faults of every kind: what is found is always what
// the trailers say.
func TestCheckpointsAtRandom(t *testing.T) {
	seeds := 6
	used := 0
	for seed := range seeds {
		synctest.Test(t, func(t *testing.T) {
			ctx := context.Background()
			rng := rand.New(rand.NewPCG(uint64(seed), 5))
			s := sim.New(uint64(seed)).Store()
			c, run := &client{Customer: newCustomer()}, 0
			for life := range 6 {
				b := s.Connect(uint64(100*seed + life))
				if life > 0 {
					b.Profile = sim.Profile{Fail: 20_000, Applied: 10_000, Short: 10_000, Flip: 20_000, Wrong: 10_000}
				}
				cfg := checkpointed(b, nil)
				cfg.partSize = 1 << (9 + rng.IntN(6))
				j, err := Open(ctx, cfg)
				if err != nil {
					t.Fatalf("seed %d, life %d: %v", seed, life, err)
				}
				if j.Info().Checkpoint != (segment.Position{}) {
					used++
				}
				c.resume(t, j)
				for range 1 + rng.IntN(3) {
					if rng.IntN(2) == 0 {
						if err := c.drive(ctx, &run, run+1); err != nil {
							t.Fatalf("seed %d, life %d: %v", seed, life, err)
						}
					}
					if rng.IntN(3) > 0 {
						if _, err := j.Checkpoint(ctx); err != nil {
							t.Logf("seed %d, life %d: %v", seed, life, err)
						}
					}
				}
				b.Profile = sim.Profile{}
				c.check(t, j)
				checkStore(t, s, j)
				if life%2 == 1 {
					b.Crash()
				}
				_ = j.Close(ctx)
			}
		})
	}
	if used < seeds {
		t.Errorf("only %d starts began with a checkpoint", used)
	}
}

// The two newest are kept, and the newest attempt of this process; all else goes, unless deleting is frozen.
func TestOldCheckpointsGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		b := sim.New(1)
		j := mustOpen(t, checkpointed(b, nil))
		c, run := &client{Customer: newCustomer(), j: j}, 0
		var made []CheckpointReport
		for n := 1; n <= 4; n++ {
			if err := c.drive(ctx, &run, n); err != nil {
				t.Fatal(err)
			}
			made = append(made, mustCheckpoint(t, j))
		}
		want := []string{drawnOf(t, b.Store(), made[2]).prefix, drawnOf(t, b.Store(), made[3]).prefix}
		if all, n := prefixes(b.Store()); !slices.Equal(all, want) || n != 2 {
			t.Fatalf("%d finished of %q, want %q", n, all, want)
		}

		// Something else lies there as well.
		for _, k := range []string{"zzz", "0/1", attemptPrefix(testCell, segment.Position{Epoch: 1}, [8]byte{1})[len(checkpointPrefix(testCell)):] + "zzz"} {
			if err := b.Put(ctx, checkpointPrefix(testCell)+k, []byte("x")); err != nil {
				t.Fatal(err)
			}
		}
		// An attempt fails half way. It stays while it is the newest of this process, and goes with the next.
		fail := func(on bool) {
			b.OnOp(func(op sim.Op, key string, _ int) sim.Fault {
				if on && op == sim.OpGet && strings.Contains(key, "/checkpoint/") {
					return sim.Fault{Flip: true}
				}
				return sim.Fault{}
			})
		}
		fail(true)
		if _, err := j.Checkpoint(ctx); !errors.Is(err, ErrDamaged) {
			t.Fatal(err)
		}
		first := j.checkpoints.newest
		if _, err := j.Checkpoint(ctx); !errors.Is(err, ErrDamaged) {
			t.Fatal(err)
		}
		second := j.checkpoints.newest
		fail(false)
		all, n := prefixes(b.Store()) // those two, and of the first attempt nothing is left
		if !slices.Contains(all, first) || !slices.Contains(all, second) || n != 2 {
			t.Fatalf("%d finished of %q", n, all)
		}
		mustCheckpoint(t, j)
		if all, n := prefixes(b.Store()); slices.Contains(all, first) || slices.Contains(all, second) || n != 2 {
			t.Fatalf("%d finished of %q", n, all)
		}
		for _, k := range []string{"zzz", "0/1"} {
			if !slices.Contains(checkpointKeys(b.Store()), checkpointPrefix(testCell)+k) {
				t.Errorf("%s is gone, which is none of ours", k)
			}
		}

		// Nothing is removed while deleting is frozen, and no more are made when there are too many.
		if err := c.append(ctx, func(tx *Tx) error {
			return tx.Record(segment.Frozen{Reason: segment.ReasonJump, Text: "a test"})
		}); err != nil {
			t.Fatal(err)
		}
		before := checkpointKeys(b.Store())
		_, n = prefixes(b.Store())
		for ; ; n++ {
			r, err := j.Checkpoint(ctx)
			if n >= maxCheckpoints {
				if !errors.Is(err, view.ErrFrozen) {
					t.Fatalf("checkpoint %d: %v", n, err)
				}
				break
			}
			if err != nil || !errors.Is(r.Untidy, view.ErrFrozen) || r.Removed > 0 {
				t.Fatalf("checkpoint %d: %+v, %v", n, r, err)
			}
		}
		after := checkpointKeys(b.Store())
		for _, k := range before {
			if !slices.Contains(after, k) {
				t.Errorf("%s is gone", k)
			}
		}
		mustClose(t, j)
	})
}

// Who was replaced makes no checkpoint any more, and removes none.
func TestReplacedOwnerLeavesCheckpoints(t *testing.T) {
	for _, when := range []string{"parts", "manifest", "removing"} {
		synctest.Test(t, func(t *testing.T) {
			ctx := context.Background()
			b := sim.New(1)
			j := mustOpen(t, checkpointed(b, nil))
			c, run := &client{Customer: newCustomer(), j: j}, 0
			for n := 1; n <= 3; n++ {
				if err := c.drive(ctx, &run, n); err != nil {
					t.Fatal(err)
				}
				if n < 3 {
					mustCheckpoint(t, j)
				}
			}
			var j2 *Journal
			taken := false
			b.OnOp(func(op sim.Op, key string, _ int) sim.Fault {
				manifest := strings.Contains(key, "/manifest-")
				now := map[string]bool{"parts": op == sim.OpPut && !manifest, "manifest": op == sim.OpGet && !manifest, "removing": op == sim.OpPut && manifest}[when]
				if !taken && now && strings.Contains(key, "/checkpoint/") {
					taken = true
					cfg := checkpointed(b.Store().Connect(2), nil)
					cfg.Host, cfg.Takeover = hostB, true
					j2 = mustOpen(t, cfg)
					if when == "removing" {
						mustCheckpoint(t, j2)
					}
				}
				return sim.Fault{}
			})
			if _, err := j.Checkpoint(ctx); !errors.Is(err, ErrLost) {
				t.Fatalf("%s: %v", when, err)
			}
			_, finished := prefixes(b.Store())
			if want := map[string]int{"parts": 2, "manifest": 2, "removing": 3}[when]; finished != want {
				t.Errorf("%s: %d checkpoints, want %d", when, finished, want)
			}
			if !errors.Is(j.Err(), ErrLost) {
				t.Errorf("it goes on: %v", j.Err())
			}
			_ = j.Close(ctx)
			checkStore(t, b.Store(), j2)
			mustClose(t, j2)
			c.afterCheckpoint(t, b.Store())
		})
	}
}

// A view that lacks little replays it, without asking for checkpoints; one that lacks much takes one, if that is quicker.
func TestViewFarBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		disk := view.NewDisk()
		b := sim.New(1)
		openOn := func(b *sim.Bucket, behind int) *Journal {
			s, err := disk.Open()
			if err != nil {
				t.Fatal(err)
			}
			cfg := checkpointed(b, nil)
			cfg.Store, cfg.behind = s, behind
			return mustOpen(t, cfg)
		}
		j := openOn(b, 0)
		c, run := &client{Customer: newCustomer(), j: j}, 0
		if err := c.drive(ctx, &run, 2); err != nil {
			t.Fatal(err)
		}
		mustClose(t, j)
		old := disk.Crash(100, 1) // what is not synced stays as well
		j = openOn(b, 0)
		c.resume(t, j)
		c.small(t, 400)
		mustClose(t, j)
		young := disk.Crash(100, 1)
		j = openOn(b, 0)
		c.resume(t, j)
		c.small(t, 20)
		r := mustCheckpoint(t, j)
		c.small(t, 5)
		mustClose(t, j)

		for _, try := range []struct {
			disk       *view.Disk
			behind     int
			asked, use bool
		}{
			{old, 0, false, false},   // 400 segments are not worth asking
			{old, 100, true, true},   // were they
			{young, 10, true, false}, // a view of which all rows are more than the records that it lacks
			{old, 425, true, false},  // the checkpoint alone is not so far away
		} {
			disk = try.disk.Crash(100, 1)
			s := b.Store().Clone()
			at := s.Connect(5)
			var asks atomic.Bool
			at.OnOp(func(_ sim.Op, key string, _ int) sim.Fault {
				if strings.Contains(key, "/checkpoint/") {
					asks.Store(true)
				}
				return sim.Fault{}
			})
			j := openOn(at, try.behind)
			want := segment.Position{}
			if try.use {
				want = r.Position
			}
			i, asked := j.Info(), asks.Load()
			if i.Checkpoint != want || i.Rebuilt || asked != try.asked || try.use && i.Replayed != 5 {
				t.Errorf("%+v: %+v, asked %v", try, i, asked)
			}
			c.check(t, j)
			checkStore(t, s, j)
			mustClose(t, j)
		}
	})
}

// A view made beside the live one, from a checkpoint and the trailers after it, at any place that has one before it, is the same.
func TestSecondViewFromCheckpoint(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		b := sim.New(1)
		j := mustOpen(t, checkpointed(b, nil))
		c, run := &client{Customer: newCustomer(), j: j}, 0
		digests := map[segment.Position][32]byte{}
		var made []CheckpointReport
		note := func() {
			d, pos, err := j.Digest(ctx)
			if err != nil {
				t.Fatal(err)
			}
			digests[pos] = d
		}
		for n := 1; n <= 3; n++ {
			if err := c.drive(ctx, &run, n); err != nil {
				t.Fatal(err)
			}
			note()
			if n < 3 {
				made = append(made, mustCheckpoint(t, j))
			}
			c.small(t, 2)
			note()
		}
		from := map[segment.Position]int{}
		c2, err := findChain(ctx, config(b), 1<<63, func(context.Context, *chain) error { return nil })
		if err != nil {
			t.Fatal(err)
		}
		for pos, want := range digests {
			s, err := view.OpenMem()
			if err != nil {
				t.Fatal(err)
			}
			at, err := j.FromCheckpoint(ctx, s, pos)
			if err != nil {
				t.Fatal(err)
			}
			from[at]++
			if _, err := replay(ctx, config(b), s, c2.between(at, pos)); err != nil {
				t.Fatal(err)
			}
			if got, is, err := s.Digest(ctx); err != nil || got != want || is != pos {
				t.Errorf("at %s: digest %x at %s, %v, want %x", pos, got, is, err, want)
			}
			s.Close()
		}
		if from[made[0].Position] != 2 || from[made[1].Position] != 4 || from[segment.Position{}] != 0 {
			t.Errorf("made from %v", from)
		}

		// A manifest that says another digest than its rows have is found.
		d := drawnOf(t, b.Store(), made[1])
		m, err := view.ParseManifest(body(t, b.Store(), d.manifest))
		if err != nil {
			t.Fatal(err)
		}
		m.Digest[0]++
		raw := m.Encode()
		b.Store().Damage(d.manifest, removed)
		if err := b.Put(ctx, manifestKey(d.prefix, raw), raw); err != nil {
			t.Fatal(err)
		}
		s, err := view.OpenMem()
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if _, err := j.FromCheckpoint(ctx, s, j.Position()); !errors.Is(err, ErrDamaged) {
			t.Error(err)
		}
		mustClose(t, j)
	})
}

// Close ends a checkpoint that is being made; a second one is refused meanwhile.
func TestCloseWhileCheckpointing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		b := sim.New(1)
		j := mustOpen(t, checkpointed(b, nil))
		c, run := &client{Customer: newCustomer(), j: j}, 0
		if err := c.drive(ctx, &run, 1); err != nil {
			t.Fatal(err)
		}
		b.OnOp(func(op sim.Op, key string, _ int) sim.Fault {
			if op == sim.OpPut && strings.Contains(key, "/checkpoint/") {
				return sim.Fault{Hang: true}
			}
			return sim.Fault{}
		})
		ended := make(chan error)
		go func() {
			_, err := j.Checkpoint(ctx)
			ended <- err
		}()
		time.Sleep(time.Second)
		if _, err := j.Checkpoint(ctx); !errors.Is(err, ErrCheckpointing) {
			t.Error(err)
		}
		within(t, time.Second, "closing", func() {
			go func() {
				if err := j.Close(ctx); err != nil {
					t.Error(err)
				}
			}()
			if err := <-ended; !errors.Is(err, ErrClosed) {
				t.Error(err)
			}
		})
		synctest.Wait()
		if _, err := j.Checkpoint(ctx); !errors.Is(err, ErrClosed) {
			t.Error(err)
		}
	})
}

// A request that fails for ever is abandoned: what it was to store is stored under another key, manifests included.
func TestCheckpointAbandonsCursedRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		b := sim.New(1)
		j := mustOpen(t, checkpointed(b, nil))
		c, run := &client{Customer: newCustomer(), j: j}, 0
		if err := c.drive(ctx, &run, 1); err != nil {
			t.Fatal(err)
		}
		cursed, sound := map[string]bool{}, false
		b.OnOp(func(op sim.Op, key string, _ int) sim.Fault {
			if op != sim.OpPut || !strings.Contains(key, "/checkpoint/") {
				return sim.Fault{}
			}
			if is, known := cursed[key]; known && is {
				return sim.Fault{Err: sim.ErrFault}
			}
			cursed[key], sound = !sound, !sound // every other object
			if cursed[key] {
				return sim.Fault{Err: sim.ErrFault}
			}
			return sim.Fault{}
		})
		within(t, time.Minute, "a checkpoint", func() { mustCheckpoint(t, j) })
		mustClose(t, j)
		c.afterCheckpoint(t, b.Store())
	})
}
