package journal

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"holdfast"
	"holdfast/history"
	"holdfast/internal/enc"
	"holdfast/service/bucket/dir"
	"holdfast/service/bucket/sim"
	"holdfast/service/segment"
	"holdfast/service/view"
	"holdfast/service/view/viewtest"
)

func readEntry(raw []byte) (history.Entry, int) {
	r := enc.NewReader(raw)
	e := history.ReadEntry(r)
	if r.Err() != nil {
		return e, 0
	}
	return e, r.Offset()
}

func newClient(t *testing.T, j *Journal, n int) *client {
	t.Helper()
	c := &client{Customer: viewtest.New(n), j: j}
	if err := c.enrol(context.Background()); err != nil {
		t.Fatal(err)
	}
	return c
}

// What is appended is there after a restart, from the view and without it, on a real disk.
func TestRestartAndRebuildOnDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		base := t.TempDir()
		b, err := dir.Create(filepath.Join(base, "bucket"))
		if err != nil {
			t.Fatal(err)
		}
		cfg := config(b)
		cfg.Dir = filepath.Join(base, "view")
		j := mustOpen(t, cfg)
		c := newClient(t, j, 1)
		for run := range 3 {
			if err := c.backup(context.Background(), run, 10); err != nil {
				t.Fatal(err)
			}
		}
		c.check(t, j)
		mustClose(t, j)

		j = mustOpen(t, cfg)
		c.check(t, j)
		if i := j.Info(); i.Epoch != 2 || i.Replayed != 0 || i.Rebuilt {
			t.Fatalf("%+v", i)
		}
		c.resume(t, j)
		if err := c.backup(context.Background(), 3, 5); err != nil {
			t.Fatal(err)
		}
		want, pos, err := j.Digest(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		mustClose(t, j)

		r, err := Check(context.Background(), cfg, nil)
		if err != nil || r.Digest != want || r.Position != pos || r.Blocks != 10*3+5+4*2 {
			t.Fatalf("%+v, %v", r, err)
		}

		// Another machine with nothing but the bucket.
		lost := cfg
		lost.Dir, lost.Host = filepath.Join(base, "other"), hostB
		if _, err := Open(context.Background(), lost); !errors.Is(err, ErrOwned) {
			t.Fatalf("start on a foreign cell: %v", err)
		}
		lost.Takeover = true
		j = mustOpen(t, lost)
		if !j.Info().Rebuilt {
			t.Fatal("made from what?")
		}
		c.check(t, j)
		want, pos, _ = j.Digest(context.Background())
		mustClose(t, j)
		r, err = Check(context.Background(), lost, nil)
		if err != nil || r.Digest != want || r.Position != pos {
			t.Fatalf("%+v, %v", r, err)
		}
		if _, err := Open(context.Background(), cfg); !errors.Is(err, ErrOwned) {
			t.Fatalf("the old host took the cell back: %v", err)
		}

		lost.Takeover = false
		r, err = Rebuild(context.Background(), lost)
		if err != nil || r.Position != pos || r.Digest != want || r.Segments < 10 {
			t.Fatalf("%+v, %v", r, err)
		}
		j = mustOpen(t, lost)
		if i := j.Info(); i.Rebuilt || i.Replayed != 0 {
			t.Fatalf("the rebuilt view is not used: %+v", i)
		}
		c.check(t, j)
		mustClose(t, j)
	})
}

func TestGroupCommit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := sim.New(1)
		j := mustOpen(t, config(b))
		defer mustClose(t, j)
		ctx := context.Background()
		add := func(n int) *Ticket {
			t.Helper()
			tk, err := j.Append(ctx, func(tx *Tx) error { return tx.Record(viewtest.New(n).Account()) })
			if err != nil {
				t.Fatal(err)
			}
			return tk
		}
		wait := func(tk *Ticket) {
			t.Helper()
			if err := tk.Wait(ctx); err != nil {
				t.Fatal(err)
			}
		}
		// Nobody waits: five seconds.
		began := time.Now()
		wait(add(1))
		if d := time.Since(began); d != maxAge {
			t.Errorf("an idle segment was sealed after %s", d)
		}
		// Somebody waits: at once; again: 250 ms later; and all who came meanwhile with it.
		began = time.Now()
		tk := add(2)
		j.Flush()
		wait(tk)
		if d := time.Since(began); d != 0 {
			t.Errorf("the first flush took %s", d)
		}
		puts := b.Count(sim.OpPut)
		var last *Ticket
		for n := range 20 {
			last = add(3 + n)
			j.Flush()
		}
		wait(last)
		if d := time.Since(began); d != flushEvery || b.Count(sim.OpPut) != puts+1 {
			t.Errorf("20 flushes took %s and %d objects", d, b.Count(sim.OpPut)-puts)
		}
		// A ticket of an append that added nothing waits for what it saw.
		add(50)
		none, err := j.Append(ctx, func(*Tx) error { return nil })
		if err != nil {
			t.Fatal(err)
		}
		select {
		case <-none.Done():
			t.Error("an empty append is acknowledged before what it saw")
		default:
		}
		wait(none)
		idle, _ := j.Append(ctx, func(*Tx) error { return nil })
		select {
		case <-idle.Done():
		default:
			t.Error("nothing is pending and the ticket waits")
		}
	})
}

func TestLargeSegmentsAreSealedAndAppendWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := sim.New(1)
		j := mustOpen(t, config(b))
		c := newClient(t, j, 1)
		ctx := context.Background()
		if err := c.record(ctx, c.Open()); err != nil {
			t.Fatal(err)
		}
		atWork, most := 0, 0
		var mu sync.Mutex
		b.OnOp(func(op sim.Op, key string, attempt int) sim.Fault {
			if op != sim.OpPut {
				return sim.Fault{}
			}
			mu.Lock()
			defer mu.Unlock()
			atWork++
			most = max(most, atWork)
			time.AfterFunc(time.Second, func() { mu.Lock(); atWork--; mu.Unlock() })
			return sim.Fault{Slow: time.Second}
		})
		began := time.Now()
		sealed := make([]byte, 4<<20)
		for i := range 50 { // 200 MiB, 13 segments, two at a time
			name := holdfast.Name{byte(i), 1}
			if _, err := j.Append(ctx, func(tx *Tx) error {
				return tx.Stored(c.Session, name, holdfast.KindChunk, nil, sealed)
			}); err != nil {
				t.Fatal(err)
			}
			j.mu.Lock()
			if len(j.queue) > maxPending {
				t.Fatalf("%d segments are pending", len(j.queue))
			}
			j.mu.Unlock()
		}
		mustClose(t, j)
		if d := time.Since(began); d < 6*time.Second || d > 8*time.Second {
			t.Errorf("13 segments of a second each took %s", d)
		}
		if most != maxPuts {
			t.Errorf("%d puts at a time", most)
		}
		if n := b.Store().Bytes(); n < 200<<20 || n > 201<<20 {
			t.Errorf("%d bytes in the bucket", n)
		}
		if free := len(j.free); free > maxPending+1 {
			t.Errorf("%d builders", free)
		}
	})
}

func TestAppendIsAllOrNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := sim.New(1)
		j := mustOpen(t, config(b))
		c := newClient(t, j, 1)
		ctx := context.Background()
		if err := c.record(ctx, c.Open()); err != nil {
			t.Fatal(err)
		}
		before := func() (n int, size int) {
			j.mu.Lock()
			defer j.mu.Unlock()
			return len(j.overlay.Pending()), j.cur.b.Size()
		}
		rows, size := before()
		boom := errors.New("boom")
		store := func(tx *Tx, b viewtest.Block) error { return tx.Stored(c.Session, b.Name, b.Kind, b.Links, b.Sealed) }
		for name, fn := range map[string]func(tx *Tx) error{
			"error": func(tx *Tx) error { return errors.Join(store(tx, c.Chunk(1, 100)), boom) },
			"panic": func(tx *Tx) error {
				if err := store(tx, c.Chunk(1, 100)); err != nil {
					t.Fatal(err)
				}
				panic("fn panics")
			},
			"too large": func(tx *Tx) error {
				for i := range 10 {
					if err := store(tx, c.Chunk(i, 4<<20)); err != nil {
						if i == 0 || !errors.Is(err, ErrTooLarge) {
							t.Errorf("block %d: %v", i, err)
						}
						return err
					}
				}
				return nil
			},
			"missing": func(tx *Tx) error {
				return errors.Join(store(tx, c.Chunk(1, 100)), store(tx, c.Over(holdfast.KindTree, 1, c.Chunk(2, 1).Name)))
			},
		} {
			func() {
				defer func() {
					if r := recover(); (r != nil) != (name == "panic") {
						t.Errorf("%s: %v", name, r)
					}
				}()
				if _, err := j.Append(ctx, fn); err == nil {
					t.Errorf("%s: no error", name)
				}
			}()
			if r, s := before(); r != rows || s != size {
				t.Fatalf("%s left %d rows and %d bytes behind", name, r-rows, s-size)
			}
		}
		// A refusal inside leaves the transaction usable.
		tk, err := j.Append(ctx, func(tx *Tx) error {
			if err := store(tx, c.Chunk(1, 100)); err != nil {
				return err
			}
			if err := store(tx, c.Chunk(1, 100)); !errors.Is(err, view.ErrDuplicate) {
				t.Errorf("stored twice: %v", err)
			}
			var missing *view.MissingError
			if err := store(tx, c.Over(holdfast.KindTree, 1, c.Chunk(2, 1).Name)); !errors.As(err, &missing) {
				t.Errorf("missing: %v", err)
			}
			return store(tx, c.Over(holdfast.KindTree, 2, c.Chunk(1, 1).Name))
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := j.Sequenced(func(r view.Reader) error {
			_, ok, err := r.Block(c.Vault, c.Group, c.Chunk(1, 1).Name)
			if !ok {
				t.Error("a sequenced block is not there")
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
		if _, ok, _ := j.Acked().Block(c.Vault, c.Group, c.Chunk(1, 1).Name); ok {
			t.Error("a block is acknowledged before it is durable")
		}
		j.Flush()
		if err := tk.Wait(ctx); err != nil {
			t.Fatal(err)
		}
		if _, ok, _ := j.Acked().Block(c.Vault, c.Group, c.Chunk(1, 1).Name); !ok {
			t.Error("an acknowledged block is not there")
		}
		checkStore(t, b.Store(), j)
		mustClose(t, j)
		if _, err := j.Append(ctx, func(*Tx) error { return nil }); !errors.Is(err, ErrClosed) || !errors.Is(err, ErrStopped) {
			t.Errorf("append after close: %v", err)
		}
		mustClose(t, j)
	})
}

// Many at once, under the race detector.
func TestConcurrentClients(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := sim.New(1)
		j := mustOpen(t, config(b))
		var wg sync.WaitGroup
		clients := make([]*client, 8)
		for i := range clients {
			clients[i] = newClient(t, j, i)
			wg.Go(func() {
				for run := range 3 {
					if err := clients[i].backup(context.Background(), run, 7); err != nil {
						t.Error(describe(run, err))
					}
					_ = j.Sequenced(func(r view.Reader) error { _, err := r.Stats(); return err })
					j.Position()
				}
			})
		}
		wg.Wait()
		for _, c := range clients {
			c.check(t, j)
		}
		checkStore(t, b.Store(), j)
		mustClose(t, j)
	})
}

// Journal time never runs backwards, across restarts with a clock that does.
func TestTimeIsMonotonic(t *testing.T) {
	b := sim.New(1)
	var last int64
	store := b.Store()
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(48 * time.Hour)
		j := mustOpen(t, config(b))
		newClient(t, j, 1)
		if _, err := j.Append(context.Background(), func(tx *Tx) error { last = tx.Now(); return tx.Record(viewtest.New(2).Account()) }); err != nil {
			t.Fatal(err)
		}
		mustClose(t, j)
	})
	synctest.Test(t, func(t *testing.T) { // begins in the year 2000 again
		j := mustOpen(t, config(store.Connect(2)))
		defer mustClose(t, j)
		if _, err := j.Append(context.Background(), func(tx *Tx) error {
			if tx.Now() < last || tx.Now() <= time.Now().UnixMilli() {
				t.Errorf("time %d after %d", tx.Now(), last)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	})
}

// freeEverything has a block called damaged, moves it and all others out of their segments, and removes these.
func freeEverything(t *testing.T, j *Journal, c *client) {
	t.Helper()
	ctx := context.Background()
	for i := range c.sent {
		row, ok, err := j.Acked().Block(c.Vault, c.Group, c.sent[i].Name)
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			continue
		}
		if n, err := j.NoteDamage(ctx, []Candidate{{c.sent[i].Name, row}}, false); err != nil || n != 1 {
			t.Fatal(n, err)
		}
		break
	}
	all, err := j.store.Segments(segment.Position{}, 1000)
	if err != nil {
		t.Fatal(err)
	}
	if r, err := j.Clean(ctx, all, CleanLimits{Bytes: 1 << 30}); err != nil || r.Blocks < 10 {
		t.Fatalf("%+v, %v", r, err)
	}
	if all, err = j.store.Segments(segment.Position{}, 1000); err != nil {
		t.Fatal(err)
	}
	if r, err := j.Retire(ctx, all); err != nil || r.Segments < 10 {
		t.Fatalf("%+v, %v", r, err)
	}
	time.Sleep(view.Grace + time.Minute)
	if r, err := j.Bundle(ctx); err != nil || r.Segments < 10 {
		t.Fatalf("%+v, %v", r, err)
	}
	if r, err := j.Remove(ctx, 1000); err != nil || r.Segments < 10 {
		t.Fatalf("%+v, %v", r, err)
	}
}

// Every record type is in this journal, and a rebuild of it gives the same digest.
func TestRebuildCoversEveryRecordType(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := sim.New(1)
		j := mustOpen(t, config(b))
		c := newClient(t, j, 1)
		if err := c.rule(context.Background()); err != nil {
			t.Fatal(err)
		}
		mustClose(t, j)
		time.Sleep(31 * 24 * time.Hour)
		j = mustOpen(t, config(b))
		c.j = j
		// A month without a service looks like a clock that was set wrong, until a person says that it was not.
		if err := c.ruleLater(context.Background()); !errors.Is(err, view.ErrFrozen) {
			t.Fatal(err)
		}
		if f, err := j.Thaw(context.Background(), "Zoë", "we were away"); err != nil || len(f) != 1 || f[0].Reason != segment.ReasonJump {
			t.Fatal(f, err)
		}
		if err := c.ruleLater(context.Background()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(view.Keep + time.Second)
		if n, err := j.Condemn(context.Background(), c.unreferenced(t, j)); err != nil || n != 1 {
			t.Fatal(n, err)
		}
		freeEverything(t, j, c)
		mustClose(t, j)
		j = mustOpen(t, config(b))
		defer mustClose(t, j)
		have := map[string]bool{}
		c2, err := findChain(context.Background(), config(b), 1<<63, anyChain)
		if err != nil {
			t.Fatal(err)
		}
		if err := c2.all().trailers(context.Background(), config(b), func(f found, tr *segment.Trailer) error {
			for _, r := range tr.Records {
				have[r.Record.Type().String()] = true
				if h, ok := r.Record.(segment.History); ok {
					body, err := history.ParseBody(h.Entry.Record.Body)
					if err != nil {
						return err
					}
					have[body.Type.String()] = true
				}
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		for typ := range 256 {
			for _, name := range []string{segment.Type(typ).String(), history.Type(typ).String()} {
				if name != fmt.Sprintf("type %d", typ) && !have[name] {
					t.Errorf("no %s record is covered", name)
				}
			}
		}
		checkStore(t, b.Store(), j)
	})
}

// TestRowsPendingAreBounded has the bucket hang while a customer sends small blocks and many links: what
// the view will have to change waits in memory, and there must be little of it.
func TestRowsPendingAreBounded(t *testing.T) {
	if testing.Short() {
		t.Skip("a million rows, one after another: minutes under the race detector, which has nothing to find in them")
	}
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		b := sim.New(1)
		j := mustOpen(t, config(b))
		c := &client{Customer: newCustomer(), j: j}
		if err := errors.Join(c.enrol(ctx), c.record(ctx, c.Open())); err != nil {
			t.Fatal(err)
		}
		const n = 3 * 16384
		names := make([]holdfast.Name, n)
		for i := range names {
			binary.BigEndian.PutUint32(names[i][:], uint32(i))
		}
		sealed := make([]byte, 100)
		for i := 0; i < n; i += 16384 {
			if err := c.append(ctx, func(tx *Tx) (err error) {
				for _, name := range names[i : i+16384] {
					err = errors.Join(err, tx.Stored(c.Session, name, holdfast.KindChunk, nil, sealed))
				}
				return err
			}); err != nil {
				t.Fatal(err)
			}
		}
		var hang atomic.Bool
		hang.Store(true)
		b.OnOp(func(op sim.Op, _ string, _ int) sim.Fault {
			return sim.Fault{Hang: op == sim.OpPut && hang.Load()}
		})
		tree := func(k int) error {
			short, cancel := context.WithTimeout(ctx, time.Second)
			defer cancel()
			_, err := j.Append(short, func(tx *Tx) error {
				links := names[k%3*16384:][:16384]
				return tx.Stored(c.Session, holdfast.Name{0xff, byte(k)}, holdfast.KindTree, links, sealed)
			})
			return err
		}
		k := 0
		for ; tree(k) == nil; k++ {
		}
		rows := 0
		j.mu.RLock()
		for _, p := range append(slices.Clone(j.queue), j.cur) {
			rows += p.layer.Size()
		}
		j.mu.RUnlock()
		if limit := (maxPending + 1) * (maxRows + 2<<20); rows > limit || k < 4 {
			t.Errorf("after %d appends %d bytes of rows are pending, more than %d", k, rows, limit)
		}
		// It goes on when the bucket does.
		hang.Store(false)
		time.Sleep(putTimeout + time.Minute)
		if err := tree(k); err != nil {
			t.Error(err)
		}
		mustClose(t, j)
	})
}

// TestListOfManyPages: the time that a list may take is each page's, and what is listed twice is counted once.
func TestListOfManyPages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		b := sim.New(1)
		j := mustOpen(t, config(b))
		defer mustClose(t, j)
		for i := range 4500 {
			if err := b.Put(ctx, fmt.Sprintf("%sx%04d", segment.LogPrefix(testCell), i), nil); err != nil {
				t.Fatal(err)
			}
		}
		failed := map[string]bool{}
		b.OnOp(func(op sim.Op, key string, attempt int) sim.Fault {
			if op != sim.OpList {
				return sim.Fault{}
			}
			if attempt%3 == 0 {
				failed[key] = true
				return sim.Fault{Err: sim.ErrFault}
			}
			return sim.Fault{Slow: listTimeout / 2}
		})
		q, err := j.Quarantine(ctx)
		b.OnOp(nil)
		if err != nil || q.Count != 4500 || len(failed) == 0 {
			t.Fatalf("%d objects in quarantine, %d lists failed: %v", q.Count, len(failed), err)
		}
	})
}
