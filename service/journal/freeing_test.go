package journal

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"holdfast"
	"holdfast/history"
	"holdfast/internal/part"
	"holdfast/service/bucket/sim"
	"holdfast/service/segment"
	"holdfast/service/view"
	"holdfast/service/view/viewtest"
)

// days lets time pass for a journal and its store, without waiting for it.
type days struct {
	store *sim.Store
	ahead time.Duration
}

func (d *days) config(b *sim.Bucket) Config {
	cfg := config(b)
	cfg.Watch, cfg.clock = seldom, func() time.Time { return time.Now().Add(d.ahead) }
	return cfg
}

func (d *days) pass(by time.Duration) {
	d.ahead += by
	d.store.SetSkew(d.ahead)
}

const (
	week = 7*24*time.Hour + time.Minute
	// seldom is between two looks of a journal in which days pass: whoever deletes looks anyway.
	seldom = 1000 * time.Hour
)

// freeing is a cell in which the archive A0, whose root links to the chunk C, is deleted and freed, while a client
// makes the archive A1 over the same chunk. Each actor does his steps in order; the test decides whose is next. The archive
// B0 stays; it lies in one segment with A0.
type freeing struct {
	*testing.T
	days
	bucket *sim.Bucket
	j      *Journal
	c      *client
	old    history.Record // A0
	chunk  viewtest.Block
	root0  viewtest.Block
	root1  viewtest.Block
	chunkB viewtest.Block
	rootB  viewtest.Block

	// The client.
	in     *Journal // the process in which the session was opened; a session does not survive it (JOURNAL 15)
	start  int64    // of the session, ms
	told   bool     // by the session: C is there
	done   bool     // A1 is committed
	resent int

	proposed []Candidate
	broken   string // what was promised and not kept
}

// The steps of the client and of the world.
var (
	clientSteps = []string{"open", "have", "child", "parent", "commit"}
	worldSteps  = []string{"delete", "purge", "propose root", "condemn root", "propose child", "condemn child"}
)

func (w *freeing) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

// cell is what a freeing left, to begin others with.
type cell struct {
	store *sim.Store
	ahead time.Duration
}

func (w *freeing) cell() *cell { return &cell{w.store, w.ahead} }

// newFreeing returns the cell with A0 in it, on a copy of base if that is not nil.
func newFreeing(t *testing.T, base *cell) *freeing {
	w := &freeing{T: t}
	if base == nil {
		w.bucket = sim.New(1)
		w.store = w.bucket.Store()
	} else {
		w.store, w.ahead = base.store.Clone(), base.ahead
		w.bucket = w.store.Connect(1)
	}
	w.j = w.process()
	w.c = &client{Customer: newCustomer(), j: w.j}
	w.chunk = w.c.Chunk(1, 1000)
	w.root0 = w.c.Over(holdfast.KindArchive, 0, w.chunk.Name)
	w.root1 = w.c.Over(holdfast.KindArchive, 1, w.chunk.Name)
	w.chunkB = w.c.Chunk(2, 1000)
	w.rootB = w.c.Over(holdfast.KindArchive, 2, w.chunkB.Name)
	ctx := context.Background()
	if base == nil {
		w.must(w.c.enrol(ctx))
		w.must(w.c.record(ctx, w.c.Open()))
		w.must(w.c.upload(ctx, w.chunkB, w.rootB, w.chunk, w.root0))
		w.must(w.c.record(ctx, w.c.Commit(w.rootB.Name)))
		w.old = w.c.Commit(w.root0.Name)
		w.must(w.c.record(ctx, w.old))
		w.must(w.j.Close(ctx))
		return w
	}
	w.c.Genesis()
	w.c.Open() // the session of A0
	w.c.resume(t, w.j)
	raw, err := w.j.Acked().History(w.c.Vault, 0, 1<<30)
	w.must(err)
	for len(raw) > 0 {
		var e history.Entry
		e, raw = cutEntry(t, raw)
		if b, err := history.ParseBody(e.Record.Body); err != nil || b.Type == history.TypeCommit {
			w.must(err)
			w.old = e.Record // the last one
		}
	}
	return w
}

// newDead returns the cell of freeing in which A0 is purged: a good part of it can be freed. base is one of newDead's, or nil.
func newDead(t *testing.T, base *cell) *freeing {
	w := newFreeing(t, base)
	if base == nil {
		w = newFreeing(t, w.cell())
		w.step("delete")
		w.pass(week)
		w.service(history.TypePurge)
	}
	return w
}

func (w *freeing) process() *Journal {
	return mustOpen(w.T, w.config(w.bucket))
}

// restart crashes the process and starts another one. What was not durable is lost.
func (w *freeing) restart() {
	w.bucket.Crash()
	w.j.Close(context.Background())
	w.bucket = w.store.Connect(2)
	w.j = w.process()
	w.c.j = w.j
}

func (w *freeing) block(r view.Reader, name holdfast.Name) (view.Block, bool) {
	b, ok, err := r.Present(w.c.Vault, w.c.Group, name)
	w.must(err)
	return b, ok
}

// session makes sure that the client has a session: with the process, everything that it was told is gone.
func (w *freeing) session() {
	if w.in == w.j {
		return
	}
	time.Sleep(time.Second) // so that the record is durable at once, and the session starts in the ms of what follows
	open := w.c.Open()
	w.must(w.c.record(context.Background(), open))
	s, _, err := w.j.Acked().Session(w.c.Session)
	w.must(err)
	lost := w.in != nil
	w.in, w.start, w.told = w.j, s.Start, false
	if lost {
		w.have()
		w.child()
	}
}

func (w *freeing) have() {
	if b, ok := w.block(w.j.Acked(), w.chunk.Name); ok && b.Promised(w.start) {
		w.told = true
	}
}

func (w *freeing) child() {
	if !w.told {
		w.must(w.c.upload(context.Background(), w.chunk))
		w.told = true // stored, or known
	}
}

// parent stores A1's root. If the chunk is missing, the client sends it again; but it may not be missing after it
// was told in this session that it is there.
func (w *freeing) parent() {
	err := w.c.upload(context.Background(), w.root1)
	var m *view.MissingError
	if errors.As(err, &m) {
		if w.told {
			w.broken = "the session was told that the chunk is there, and it was condemned"
		}
		if len(m.Names) != 1 || m.Names[0] != w.chunk.Name {
			w.Fatalf("told to send %v again", m.Names)
		}
		w.resent++
		w.must(w.c.upload(context.Background(), w.chunk, w.root1))
		return
	}
	w.must(err)
}

func (w *freeing) commit() {
	ctx := context.Background()
	commit := w.c.Commit(w.root1.Name)
	err := w.c.record(ctx, commit)
	var m *view.MissingError
	if errors.As(err, &m) { // the root itself can be condemned once its session is gone
		w.told = false
		w.have()
		w.child()
		w.parent()
		err = w.c.record(ctx, commit)
	}
	w.must(err)
	w.done = true
	w.j.EndSession(w.c.Session)
}

// service appends a record of the service's about A0.
func (w *freeing) service(t history.Type) {
	w.must(w.j.MayDelete(context.Background()))
	w.must(w.c.record(context.Background(), w.c.ByService(t, history.IDs{w.old.ID()}.Encode())))
}

// propose finds what a background job would at best: all that has no references.
func (w *freeing) propose() {
	w.proposed = nil
	w.must(w.j.Sequenced(func(r view.Reader) error {
		for _, b := range []viewtest.Block{w.root0, w.chunk} {
			if row, ok := w.block(r, b.Name); ok && row.Count == 0 {
				w.proposed = append(w.proposed, Candidate{b.Name, row})
			}
		}
		return nil
	}))
}

// condemn appends what is allowed of the proposal, and does not wait for it: it is sequenced, and may be lost.
func (w *freeing) condemn() {
	w.must(w.j.MayDelete(context.Background()))
	_, err := w.j.Append(context.Background(), func(tx *Tx) error {
		for _, c := range w.proposed {
			if _, err := c.condemn(tx.Reader(), tx.now, tx.j.oldest(), tx.Record); err != nil {
				return err
			}
		}
		return nil
	})
	w.must(err)
}

func (w *freeing) step(what string) {
	switch what {
	case "open":
		w.session()
	case "have":
		w.session()
		w.have()
	case "child":
		w.session()
		w.child()
	case "parent":
		w.session()
		w.parent()
	case "commit":
		w.session()
		w.commit()
	case "delete":
		w.must(w.c.record(context.Background(), w.c.ByOwner(history.TypeDelete, history.IDs{w.old.ID()}.Encode())))
	case "purge":
		w.pass(week)
		w.service(history.TypePurge)
	case "propose root":
		w.pass(view.Keep + time.Second)
		w.propose()
	case "propose child":
		time.Sleep(time.Millisecond)
		w.propose()
	case "condemn root", "condemn child":
		w.condemn()
	case "restart":
		w.restart()
	default:
		panic(what)
	}
}

// check is the oracle. A1 is there and everything below it is live, referenced and can be fetched, now and when
// all that may be freed has been.
func (w *freeing) check(rebuild bool) {
	w.Helper()
	if !w.done {
		w.Fatal("the archive is not committed")
	}
	for range 3 {
		w.c.checkClosure(w.T, w.j, w.root1.Name)
		w.pass(view.Keep + time.Second)
		w.propose()
		w.condemn()
		t, err := w.j.Append(context.Background(), func(*Tx) error { return nil })
		w.must(err)
		w.j.Flush()
		w.must(t.Wait(context.Background()))
	}
	if _, ok := w.block(w.j.Acked(), w.root0.Name); ok {
		w.Fatal("the root of the purged archive is never freed")
	}
	if rebuild {
		checkStore(w.T, w.store, w.j)
	}
	if w.broken != "" {
		w.Fatal(w.broken)
	}
}

// leaves lists the steps that leave something in memory, which a restart takes away: what the session was told, or a
// record that is not durable. A restart after any other step is the same as one before it.
var leaves = []string{"have", "child", "parent", "condemn root", "condemn child"}

// orders calls fn with every way to do all of a and all of b, each in its own order, and a restart nowhere or after each
// step that leaves something (in heavy runs, at every place).
func orders(a, b []string, fn func([]string)) {
	var walk func(done, a, b []string, restart bool)
	walk = func(done, a, b []string, restart bool) {
		done = done[:len(done):len(done)]
		if len(a)+len(b) == 0 {
			fn(done)
		}
		if len(a) > 0 {
			walk(append(done, a[0]), a[1:], b, restart)
		}
		if len(b) > 0 {
			walk(append(done, b[0]), a, b[1:], restart)
		}
		if restart && (every() || len(done) > 0 && slices.Contains(leaves, done[len(done)-1])) {
			walk(append(done, "restart"), a, b, false)
		}
	}
	walk(nil, a, b, true)
}

// every reports whether all orders are to be run; under the race detector they would take a quarter of an hour.
func every() bool { return all() || part.Heavy() && !testing.Short() }

// TestScenarioS10FreedWhileNeeded deduplicates against a block that is being freed, in every order of what the client,
// the background job and the operator's luck do. The archive commits whole, or the client is told what to send
// again and it commits whole then; and what a session was told is there stays. Every order without a restart runs; of those
// with one a third, and in heavy runs all, with restarts at every place.
func TestScenarioS10FreedWhileNeeded(t *testing.T) {
	var base *cell
	synctest.Test(t, func(t *testing.T) { base = newFreeing(t, nil).cell() })
	var all [][]string
	restarts := 0
	orders(clientSteps, worldSteps, func(steps []string) {
		if slices.Contains(steps, "restart") {
			if restarts++; restarts%3 != 0 && !every() {
				return // all of them take a minute: a third of them here
			}
			if testing.Short() {
				return
			}
		}
		all = append(all, steps)
	})
	t.Logf("%d orders run; there are %d with a restart", len(all), restarts)
	const shares = 4 // of the orders, side by side
	for share := range shares {
		t.Run(fmt.Sprint(share), func(t *testing.T) {
			t.Parallel()
			for n := share; n < len(all) && !t.Failed(); n += shares {
				synctest.Test(t, func(t *testing.T) { freedWhileNeeded(t, base, all[n], n%20 < shares) })
			}
		})
	}
}

func freedWhileNeeded(t *testing.T, base *cell, steps []string, rebuild bool) {
	w := newFreeing(t, base)
	defer func() {
		w.j.Close(context.Background())
		if t.Failed() {
			t.Log("the order was ", strings.Join(steps, ", "))
		}
	}()
	for _, s := range steps {
		w.step(s)
	}
	w.check(rebuild)
}

// TestScenarioS10OldPlace has a job come back with what it found long ago: the block was freed meanwhile, and stored
// anew. The new place is not touched, however old and unneeded it is; and each place is freed once.
func TestScenarioS10OldPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		b := sim.New(1)
		d := days{store: b.Store()}
		j := mustOpen(t, d.config(b))
		c := newClient(t, j, 1)
		chunk := c.Chunk(1, 1000)
		store := func() view.Block {
			t.Helper()
			if err := c.record(ctx, c.Open()); err != nil {
				t.Fatal(err)
			}
			if err := c.upload(ctx, chunk); err != nil {
				t.Fatal(err)
			}
			j.EndSession(c.Session)
			row, ok, err := j.Acked().Block(c.Vault, c.Group, chunk.Name)
			if err != nil || !ok {
				t.Fatal(err)
			}
			return row
		}
		condemn := func(what string, want int, rows ...view.Block) {
			t.Helper()
			var all []Candidate
			for _, r := range rows {
				all = append(all, Candidate{chunk.Name, r})
			}
			if n, err := j.Condemn(ctx, all); err != nil || n != want {
				t.Errorf("%s: %d freed, want %d: %v", what, n, want, err)
			}
		}
		live := func(want bool, blocks uint64) {
			t.Helper()
			st, err := j.Acked().Stats()
			if err != nil || st.Blocks != blocks || st.Bytes != 1000*blocks {
				t.Errorf("%+v, want %d blocks: %v", st, blocks, err)
			}
			u, err := j.Acked().Usage(c.ID, 0)
			if err != nil || u.Blocks != blocks || u.Bytes != 1000*blocks || u.Billed != blocks*holdfast.Billed(1000) {
				t.Errorf("%+v, want %d blocks: %v", u, blocks, err)
			}
			if _, ok, err := j.Acked().Present(c.Vault, c.Group, chunk.Name); ok != want || err != nil {
				t.Errorf("the block is there: %v, want %v: %v", ok, want, err)
			}
		}
		first := store()
		condemn("too young", 0, first)
		d.pass(view.Keep + time.Second)
		condemn("found twice", 1, first, first)
		live(false, 0)
		second := store()
		if second.Pos == first.Pos {
			t.Fatal("stored anew at the old place")
		}
		d.pass(view.Keep + time.Second)
		condemn("the old place", 0, first)
		live(true, 1)
		condemn("the new one", 1, second)
		condemn("both again", 0, first, second)
		live(false, 0)

		// What may be condemned any moment is stored anew rather than called known; the old copy goes with the new.
		third := store()
		d.pass(view.Keep + time.Second)
		fourth := store()
		if fourth.Pos == third.Pos {
			t.Error("a block that may be condemned any moment was called known")
		}
		live(true, 2)
		condemn("the one before", 0, third)
		d.pass(view.Keep + time.Second)
		condemn("the newest", 1, fourth)
		live(false, 0)
		for _, r := range []view.Block{first, second, third, fourth} {
			if s, ok, err := j.Acked().Segment(r.Pos); err != nil || !ok || s.Blocks != 0 || s.Bytes != 0 {
				t.Errorf("segment %s: %+v %v", r.Pos, s, err)
			}
		}
		checkStore(t, b.Store(), j)
		mustClose(t, j)
	})
}

// TestCondemnHoldsReplayToTheRecord: what a record may condemn follows from the record, not from who replays it.
func TestCondemnHoldsReplayToTheRecord(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		b := sim.New(1)
		d := days{store: b.Store()}
		j := mustOpen(t, d.config(b))
		defer mustClose(t, j)
		c := newClient(t, j, 1)
		if err := c.record(ctx, c.Open()); err != nil {
			t.Fatal(err)
		}
		chunk := c.Chunk(1, 1000)
		if err := c.upload(ctx, chunk); err != nil {
			t.Fatal(err)
		}
		row, _, err := j.Acked().Block(c.Vault, c.Group, chunk.Name)
		if err != nil {
			t.Fatal(err)
		}
		d.pass(view.Keep + time.Second)
		if err := j.MayDelete(ctx); err != nil {
			t.Fatal(err)
		}
		rec := segment.Condemned{Session: row.Session, Name: chunk.Name, Place: row.Pos, Off: row.Off}
		for what, x := range map[string]struct {
			change func(now int64, r *segment.Condemned)
			want   error
		}{
			"not before its last reference went":  {func(_ int64, r *segment.Condemned) { r.Before = row.Since }, view.ErrTooYoung},
			"a session that starts in the future": {func(now int64, r *segment.Condemned) { r.Before = view.CondemnableBefore(now) + 1 }, view.ErrTooYoung},
			"another segment":                     {func(_ int64, r *segment.Condemned) { r.Place.Seq-- }, view.ErrMoved},
			"another place in it":                 {func(_ int64, r *segment.Condemned) { r.Off++ }, view.ErrMoved},
			"another name":                        {func(_ int64, r *segment.Condemned) { r.Name[0]++ }, view.ErrMoved},
			"a session that is not there":         {func(_ int64, r *segment.Condemned) { r.Session[0]++ }, view.ErrNoSession},
			"as it should be":                     {func(int64, *segment.Condemned) {}, nil},
		} {
			_, err := j.Append(ctx, func(tx *Tx) error {
				r := rec
				r.Before = view.CondemnableBefore(tx.Now())
				x.change(tx.Now(), &r)
				if err := tx.Record(r); !errors.Is(err, x.want) || (err == nil) != (x.want == nil) {
					t.Errorf("%s: %v, want %v", what, err, x.want)
				}
				return errUndo
			})
			if err != errUndo {
				t.Fatal(err)
			}
		}
	})
}

// TestCondemnDropsTheLinksOfEveryCopy: a tree that was stored twice counted what it links to twice.
func TestCondemnDropsTheLinksOfEveryCopy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		b := sim.New(1)
		d := days{store: b.Store()}
		j := mustOpen(t, d.config(b))
		defer mustClose(t, j)
		c := newClient(t, j, 1)
		chunk := c.Chunk(1, 1000)
		tree := c.Over(holdfast.KindTree, 1, chunk.Name)
		row := func(n holdfast.Name) view.Block {
			t.Helper()
			r, ok, err := j.Acked().Present(c.Vault, c.Group, n)
			if err != nil || !ok {
				t.Fatal(n, err)
			}
			return r
		}
		for n := range uint64(3) {
			if err := c.record(ctx, c.Open()); err != nil {
				t.Fatal(err)
			}
			if err := c.upload(ctx, chunk, tree); err != nil {
				t.Fatal(err)
			}
			j.EndSession(c.Session)
			if r := row(chunk.Name); r.Count != n+1 {
				t.Errorf("stored %d times, and %d references", n+1, r.Count)
			}
			d.pass(view.Keep + time.Second)
		}
		for i := range uint32(3) {
			if _, ok, err := j.Acked().Alternate(c.Vault, c.Group, tree.Name, i); ok != (i < 2) || err != nil {
				t.Errorf("alternate %d is there: %v, %v", i, ok, err)
			}
		}
		if n, err := j.Condemn(ctx, []Candidate{{chunk.Name, row(chunk.Name)}, {tree.Name, row(tree.Name)}}); err != nil || n != 1 {
			t.Fatal(n, err)
		}
		if r := row(chunk.Name); r.Count != 0 {
			t.Errorf("%d references are left", r.Count)
		}
		d.pass(time.Second)
		if n, err := j.Condemn(ctx, []Candidate{{chunk.Name, row(chunk.Name)}}); err != nil || n != 1 {
			t.Fatal(n, err)
		}
		if st, err := j.Acked().Stats(); err != nil || st.Blocks != 0 || st.Bytes != 0 {
			t.Errorf("%+v, %v", st, err)
		}
		checkStore(t, b.Store(), j)
	})
}

var errUndo = fmt.Errorf("take it back")
